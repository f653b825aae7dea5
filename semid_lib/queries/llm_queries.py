"""Queries from a language model: prompt, answers, costs and a cache.

Answers are cached in a JSON-lines file per model, prompt version and settings; each answer is appended as it arrives.
So an interrupted run resumes where it stopped, and no answer is requested twice.
"""

import contextlib
import hashlib
import json
import re
import threading
import tomllib
import warnings
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from semid_lib.ids.embed import item_texts
from semid_lib.queries import endpoint, local_model
from semid_lib.queries.endpoint import Endpoint
from semid_lib.queries.local_model import LocalModel
from semid_lib.workbench import workers
from semid_lib.workbench.text import normal, shown

PROMPT = tomllib.loads(Path(__file__).with_name("prompt.toml").read_text(encoding="utf-8"))
KINDS = PROMPT["kinds"]  # families of phrasings, with their explanations
_COMPLETION_TOKENS = 18  # of one query with its kind and the JSON around it


class Answers(NamedTuple):
    """Queries of a language model, and the items without any."""

    queries: pd.DataFrame  # item (int64), query, kind, source
    failed: pd.DataFrame  # item (int64), reason (str)
    counts: dict[str, int]  # items, from_cache, failed; requests and tokens of this run


class CostEstimate(NamedTuple):
    """Requests of a run; tokens and cost are approximate."""

    requests: int
    from_cache: int  # items without a request: their text is in the cache, or occurs twice
    prompt_tokens: int
    completion_tokens: int
    cost: float  # in the currency of the prices


def messages(text: str, n: int) -> list[dict[str, str]]:
    """The chat that requests n queries for one item.

    >>> [message["role"] for message in messages("Red gel pen", 4)]
    ['system', 'user']
    """
    kinds = "\n".join(f"- {kind}: {explained}" for kind, explained in KINDS.items())
    user = PROMPT["user"].format(text=_encodable(text), n=n, kinds=kinds)
    return [{"role": "system", "content": PROMPT["system"]}, {"role": "user", "content": user}]


def answer_schema(n: int | None = None, max_characters: int | None = None) -> dict[str, Any]:
    """The JSON schema of an answer, with exactly n queries if given (some endpoints do not support that).

    >>> answer_schema(4)["properties"]["queries"]["minItems"]
    4
    """

    def strict(**properties) -> dict[str, Any]:
        return {
            **{"type": "object", "properties": properties},
            **{"required": list(properties), "additionalProperties": False},
        }

    limits = {"minLength": 2, "maxLength": max_characters} if max_characters else {}
    query = strict(kind={"type": "string", "enum": list(KINDS)}, query={"type": "string", **limits})
    size = {"minItems": n, "maxItems": n} if n else {}
    return strict(queries={"type": "array", "items": query, **size})


def parse_answer(text: str, n: int) -> list[tuple[str, str]]:
    """At most n different (query, kind) of an answer; prose, code fences and thoughts around the JSON are ignored.

    A bare list and queries without a kind are accepted; unknown kinds become "other".

    Raises
    ------
    ValueError
        If the answer has no query.

    Examples
    --------
    >>> parse_answer('Sure: ```json\\n{"queries": [{"kind": "need", "query": "Write on Glass"}, "gel pen"]}\\n```', 4)
    [('write on glass', 'need'), ('gel pen', 'other')]
    """
    text = re.sub(r"<think>.*?(</think>|\Z)", "", text, flags=re.DOTALL)
    for start in (match.start() for match in re.finditer(r"[\[{]", text)):
        try:
            value, _ = json.JSONDecoder().raw_decode(text, start)
        except (ValueError, RecursionError):
            continue
        if found := _queries_of(value):
            return found[:n]
        break  # JSON of another shape: its parts are no answer either
    raise ValueError(f"no queries in the answer {text[:200]!r}")


def _queries_of(value: Any) -> list[tuple[str, str]]:
    entries = value.get("queries") if isinstance(value, dict) else value
    found: dict[str, str] = {}
    for entry in entries if isinstance(entries, list) else []:
        query, kind = (entry.get("query"), entry.get("kind")) if isinstance(entry, dict) else (entry, None)
        query = " ".join(normal(_encodable(query).lower()).split()).strip("\"'“”. ") if isinstance(query, str) else ""
        if any(map(str.isalnum, query)) and len(query) <= 200:
            found.setdefault(query, kind if isinstance(kind, str) and kind in KINDS else "other")
    return list(found.items())


def _encodable(text: str) -> str:
    """Without lone surrogates, which JSON can spell and UTF-8 cannot."""
    return text.encode(errors="ignore").decode()


def estimate_cost(
    items: pd.DataFrame,
    n_per_item: int,
    source: Endpoint | LocalModel,
    *,
    price_prompt: float = 0.0,
    price_completion: float = 0.0,
    cache: str | Path | None = None,
) -> CostEstimate:
    """Requests, tokens and cost of `ask`, before it is called.

    One token is assumed per four bytes of UTF-8 (close for English, high for scripts with three bytes per letter), and
    18 per query with its JSON. Retries and the thoughts of a reasoning model are not included.

    Parameters
    ----------
    price_prompt, price_completion : float
        Per million tokens.

    Examples
    --------
    >>> pens = pd.DataFrame({"title": ["Red gel pen", "Red gel pen", ""]})
    >>> estimate_cost(pens, 8, Endpoint("http://127.0.0.1:8000/v1", "any"), price_completion=2.0)[:2]
    (1, 1)
    """
    chats = _chats(items, n_per_item)
    todo = _Cache(cache, source, n_per_item).missing(chats)
    texts = [part["content"] for chat in todo.values() for part in chat]
    schema = json.dumps(answer_schema()) if isinstance(source, Endpoint) else ""
    prompt = len(todo) * _n_tokens(schema) + sum(4 + _n_tokens(text) for text in texts)
    completion = len(todo) * (_COMPLETION_TOKENS * n_per_item + 8)
    cost = (prompt * price_prompt + completion * price_completion) / 1e6
    return CostEstimate(len(todo), len(chats) - len(todo), prompt, completion, cost)


def _n_tokens(text: str) -> int:
    return -(-len(text.encode()) // 4)


def ask(
    items: pd.DataFrame,
    n_per_item: int,
    source: Endpoint | LocalModel,
    *,
    seed: int = 0,
    cache: str | Path | None = None,
    progress: bool = False,
    run: workers.Run = workers.here,
) -> Answers:
    """Request queries from a language model for each item with a text.

    A failing item does not end the run. Lost connections, timeouts, 429 and 5xx are retried with growing waits (or
    after Retry-After), and so are answers without usable JSON. The remaining failures are in `failed` with their
    reasons. Items whose requests got no answer are requested again in the next run; refusals and broken JSON are not.

    Parameters
    ----------
    cache : path, optional
        Folder of answers. Each answer is appended as it arrives, so neither Ctrl-C nor a crash loses one.
    run : workers.Run
        Where a `LocalModel` runs. An endpoint is called from this process only: it has workers of its own.

    Raises
    ------
    EndpointError
        With the server's message, for other errors (401, 404, ...) and after 10 items in a row without an answer.
    ValueError
        If the API key is not set, or for an endpoint with another `run`.
    ImportError
        If the extra `queries` is not installed.
    """
    if isinstance(source, Endpoint) and run is not workers.here:
        raise ValueError(f"an endpoint ({source.model}) is asked from one process, expected run=workers.here")
    if not isinstance(source, Endpoint | LocalModel):
        raise ValueError(f"source is {shown(source)}, expected an Endpoint or a LocalModel")
    chats = _chats(items, n_per_item)
    known = _Cache(cache, source, n_per_item)
    todo = known.missing(chats)
    n_known = sum(key not in todo for key, _ in chats.values())
    with tqdm(total=len(todo), desc="asking", unit="item", disable=not (progress and todo)) as bar:

        def store(key: str, record: dict) -> None:
            known.add(key, record)
            bar.update()

        if todo and isinstance(source, Endpoint):
            endpoint.complete(source, todo, answer_schema(), partial(parse_answer, n=n_per_item), store)
        elif todo and isinstance(source, LocalModel):
            schema = answer_schema(n_per_item, source.max_characters)
            for key, text in local_model.complete(source, todo, schema, seed, run):
                store(key, _record(text, n_per_item))
    return _answers(items, source.settings["model"], chats, known, n_known)


def _record(text: str, n: int) -> dict[str, Any]:
    """The record of a local model's answer, as those of `endpoint.complete`."""
    try:
        return {"answer": parse_answer(text, n), "spent": {"requests": 1}}
    except ValueError as error:
        return {"reason": str(error), "final": True, "spent": {"requests": 1}}


def _chats(items: pd.DataFrame, n: int) -> dict[int, tuple[str, list[dict[str, str]]]]:
    """Row -> (key, chat) of the items with a text."""
    if n < 1:
        raise ValueError(f"n_per_item is {n}, expected at least 1")
    chats = {row: messages(text, n) for row, text in enumerate(item_texts(items)) if text}
    return {row: (hashlib.sha256(json.dumps(chat).encode()).hexdigest()[:32], chat) for row, chat in chats.items()}


def _answers(items: pd.DataFrame, model: str, chats: dict, known: "_Cache", n_known: int) -> Answers:
    no_text = {"reason": "the item has no text"}
    records = [known.records[chats[row][0]] if row in chats else no_text for row in range(len(items))]
    found = [(row, *query) for row, record in enumerate(records) for query in record.get("answer", [])]
    types = {"item": np.int64, "query": str, "kind": str}
    queries = pd.DataFrame(found, columns=list(types)).astype(types).assign(source=model)
    reasons = [(row, record["reason"]) for row, record in enumerate(records) if "reason" in record]
    failed = pd.DataFrame(reasons, columns=["item", "reason"]).astype({"item": np.int64, "reason": str})
    spent = {name: known.spent[name] for name in ("requests", "prompt_tokens", "completion_tokens")}
    if len(failed):
        message = f"{len(failed)} of {len(items)} items got no queries; llm_queries.ask returns the reasons"
        warnings.warn(message, stacklevel=3)
    return Answers(queries, failed, {"items": len(items), "from_cache": n_known, "failed": len(failed), **spent})


class _Cache:
    """Answers by key, in memory and, with a folder, in a file that only grows."""

    def __init__(self, folder: str | Path | None, source: Endpoint | LocalModel, n: int):
        self.records: dict[str, dict] = {}
        self.spent: Counter = Counter()
        self.lock = threading.Lock()
        self.path: Path | None = None
        if folder is None:
            return
        facts = json.dumps({**source.settings, "prompt": PROMPT["version"], "n_per_item": n}, sort_keys=True)
        digest = hashlib.sha256(facts.encode()).hexdigest()[:12]
        slug = re.sub(r"[^A-Za-z0-9.-]+", "-", source.settings["model"]).strip("-.")[:60]
        self.path = Path(folder) / f"{slug}-prompt{PROMPT['version']}-{digest}.jsonl"
        for line in self.path.read_bytes().splitlines() if self.path.exists() else []:
            # half a line of a run that was killed: requested again
            with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError):
                record = json.loads(line)
                if "answer" in record or record.keys() >= {"reason", "final"}:
                    self.records[record.pop("key")] = record

    def missing(self, chats: dict[int, tuple[str, list]]) -> dict[str, list[dict[str, str]]]:
        """Key -> chat of what has to be requested."""
        final = {key for key, record in self.records.items() if record.get("final", True)}
        return {key: chat for key, chat in chats.values() if key not in final}

    def add(self, key: str, record: dict) -> None:
        with self.lock:
            self.records[key] = record
            self.spent.update(record["spent"])
            if self.path is not None:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                line = json.dumps({"key": key, **record}, ensure_ascii=False)
                with open(self.path, "ab") as file:  # a new line first, because a killed run may leave half a line
                    file.write(b"\n" + line.encode(errors="replace"))
