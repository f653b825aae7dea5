"""Queries from a transformers model in this process; outlines keeps its answers to the JSON schema."""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyarrow as pa

from semid_lib.workbench import workers


@dataclass(frozen=True, eq=False)
class LocalModel:
    """A transformers causal language model in this process.

    Even a model with random weights gives valid JSON, which is how the tests run. Compiling the schema comes first: for
    8 queries and a vocabulary of 60,000 tokens it takes 12 s on one core.
    """

    name: str  # of the model and its revision: answers are cached under it
    model: Any  # a transformers PreTrainedModel
    tokenizer: Any  # its tokenizer, with a padding token
    temperature: float = 0.8
    max_tokens: int = 1024  # per answer
    batch_size: int = 8
    max_characters: int = 80  # per query

    @property
    def settings(self) -> dict[str, Any]:
        """What an answer depends on, besides the prompt; caches are named by it."""
        settings = {name: getattr(self, name) for name in ("temperature", "max_tokens", "max_characters")}
        return {"model": self.name, **settings}


def complete(
    source: LocalModel,
    chats: Mapping[str, list[dict[str, str]]],
    schema: dict[str, Any],
    seed: int,
    run: workers.Run = workers.here,
) -> Iterator[tuple[str, str]]:
    """Answer all chats in batches: yields (key, text of the answer)."""
    keys, size = list(chats), source.batch_size
    parts = [keys[at : at + size] for at in range(0, len(keys), size)]
    batches = (pa.table({"key": part, "prompt": [_prompt(source, chats[key]) for key in part]}) for part in parts)
    for part, answer in zip(parts, run(partial(_writer, source, schema, seed), batches), strict=True):
        yield from zip(part, answer["text"].to_pylist(), strict=True)


def _writer(source: LocalModel, schema: dict[str, Any], seed: int) -> Callable[[pa.Table], pa.Table]:
    """The work of one worker: a table of prompts to a table of texts."""
    try:
        import outlines
    except ImportError as error:
        raise ImportError("a local model needs the extra 'queries': pip install 'semid-lib[queries]'") from error
    import torch

    model = outlines.from_transformers(source.model, source.tokenizer)
    model.type_adapter.has_chat_template = False  # type: ignore[attr-defined]  # _prompt has applied it
    generator = outlines.Generator(model, outlines.json_schema(json.dumps(schema)))
    options = {"max_new_tokens": source.max_tokens, "do_sample": True, "temperature": source.temperature}

    def write(batch: pa.Table) -> pa.Table:
        stream = f"{seed}/{batch['key'][0].as_py()}/1"
        with torch.random.fork_rng():
            torch.manual_seed(int(hashlib.sha256(stream.encode()).hexdigest()[:15], 16))
            return pa.table({"text": generator.batch(batch["prompt"].to_pylist(), **options)})

    return write


def _prompt(source: LocalModel, chat: list[dict[str, str]]) -> str:
    if source.tokenizer.chat_template is None:
        return "\n\n".join(message["content"] for message in chat) + "\n\n"
    options = {"add_generation_prompt": True, "enable_thinking": False}
    return source.tokenizer.apply_chat_template(chat, tokenize=False, **options)
