"""Many chats with a language model behind an OpenAI-compatible endpoint, by the client of the package openai.

The client retries lost connections and busy servers. Here an error of one chat is separated from an error of all
chats: the first is recorded, the second (a wrong key, an unknown model) ends the run with the server's message.
"""

import json
import os
import re
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from typing import Any

_GIVE_UP_AFTER = 10  # chats in a row without any answer
_RETRIED = {408, 409, 429}  # and from 500 up, as the client does
_FILTERED = {"content_filter", "content_policy_violation"}
_REFUSAL = re.compile(r"\s*((i['’]?m |i am )?sorry|i can(['’]?t|not)|i['’]?m unable|as an ai)\b", re.IGNORECASE)


class EndpointError(RuntimeError):
    """The endpoint answers no request, and a retry would not help. Answers so far are kept."""


@dataclass(frozen=True)
class Endpoint:
    """A model behind an OpenAI-compatible server, such as vLLM or `transformers serve` at `http://127.0.0.1:8000/v1`.

    Raises
    ------
    ValueError
        For a URL that is not http(s) or has a password, an unknown `structured`, or numbers that are not positive.
    """

    base_url: str  # up to and including /v1
    model: str
    api_key_variable: str | None = "OPENAI_API_KEY"  # environment variable with the key; None sends no key
    structured: str = "json_schema"  # or "json_object" or "none", for servers without JSON schemas
    temperature: float | None = 0.8  # None: not sent
    max_tokens: int | None = 1024  # per answer; None: not sent
    extra: Mapping[str, Any] = field(default_factory=dict)  # more fields of the request, such as "seed"
    concurrency: int = 8  # requests at the same time
    timeout: float = 60.0  # seconds without a byte
    max_attempts: int = 5  # per chat

    def __post_init__(self):
        if not re.fullmatch(r"https?://[^\s/@]+(/[^\s@?#]*)?", self.base_url):
            raise ValueError("base_url is not http(s)://host/path without password and query")
        if self.structured not in ("json_schema", "json_object", "none"):
            raise ValueError(f"structured is {self.structured!r}, expected json_schema, json_object or none")
        for name in ("concurrency", "timeout", "max_attempts"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} is {getattr(self, name)}, expected a positive number")

    @property
    def settings(self) -> dict[str, Any]:
        """Settings that an answer depends on, besides model and prompt."""
        names = ("structured", "temperature", "max_tokens")
        return {**{name: getattr(self, name) for name in names}, "extra": dict(self.extra)}


class _RefusedError(Exception):
    """The model, or a content filter, refuses."""


def complete(
    source: Endpoint,
    chats: Mapping[str, list[dict[str, str]]],
    schema: dict[str, Any],
    parse: Callable[[str], Any],
    store: Callable[[str, dict], Any],
) -> None:
    """Send all chats, at most `source.concurrency` at a time, and pass each result to `store`.

    After an error or Ctrl-C, no new requests are sent; running ones finish and are stored.

    Parameters
    ----------
    chats : mapping
        Key to list of messages.
    schema : dict
        JSON schema of an answer.
    parse : callable
        Text of an answer to a value. If it raises ValueError, the chat is sent again.
    store : callable
        `store(key, record)`, called from several threads. A record has `answer`, or `reason`, `final` and `refused`,
        and always `spent` (requests, tokens). If it is `final`, the model has answered: do not ask again.

    Raises
    ------
    EndpointError
        If no chat can be answered.
    ValueError
        If there is no API key.
    """
    client = _Client(source, schema, parse, store)
    # threads, because in a notebook an event loop is already running
    pool = ThreadPoolExecutor(source.concurrency, thread_name_prefix="chat")
    try:
        for future in as_completed([pool.submit(client.send, key, chat) for key, chat in chats.items()]):
            future.result()
    finally:
        client.stop.set()
        pool.shutdown(wait=True, cancel_futures=True)
        client.api.close()


class _Client:
    def __init__(self, source: Endpoint, schema: dict, parse: Callable, store: Callable):
        try:
            import openai
        except ImportError as error:
            raise ImportError("an endpoint needs the extra 'queries': pip install 'semid-lib[queries]'") from error
        self.source, self.schema, self.parse, self.store = source, schema, parse, store
        self.key = _api_key(source.api_key_variable)
        self.errors = openai
        self.api = openai.OpenAI(
            api_key=self.key or "none",
            base_url=source.base_url,
            timeout=source.timeout,
            max_retries=source.max_attempts - 1,
        )
        headers = {} if self.key else {"Authorization": openai.Omit()}
        self.always = {"model": source.model, "extra_body": dict(source.extra), "extra_headers": headers}
        self.stop = threading.Event()
        self.in_a_row, self.lock = 0, threading.Lock()

    def send(self, key: str, chat: list[dict[str, str]]) -> None:
        """Send one chat and store the result; raises EndpointError to end the run."""
        spent: Counter = Counter()
        try:
            record = self.answer(chat, spent)
        except EndpointError:
            self.stop.set()
            raise
        if record is None:
            return
        self.store(key, {**record, "spent": dict(spent)})
        with self.lock:
            self.in_a_row = 0 if record.get("final", True) else self.in_a_row + 1
            give_up = self.in_a_row >= _GIVE_UP_AFTER
        if give_up:
            self.stop.set()
            raise EndpointError(f"{_GIVE_UP_AFTER} chats in a row got no answer, the last one: {record['reason']}")

    def answer(self, chat: list[dict[str, str]], spent: Counter) -> dict[str, Any] | None:
        """The record of one chat; None if the run ended before its last attempt."""
        reason = ""
        for _ in range(self.source.max_attempts):
            if self.stop.is_set():
                return None
            try:
                response = self.api.chat.completions.with_raw_response.create(**self.body(chat))
                spent["requests"] += 1 + response.retries_taken
                return {"answer": self.read(response.text, spent)}
            except _RefusedError as error:
                return self.failure(str(error), final=True, refused=True)
            except self.errors.APIError as error:
                spent["requests"] += 1 + int(error.request.headers.get("x-stainless-retry-count", 0))
                return self.no_answer(error)
            except ValueError as error:
                reason = str(error)
        return self.failure(reason, final=True)

    def body(self, chat: list[dict[str, str]]) -> dict[str, Any]:
        schema = {"name": "answer", "strict": True, "schema": self.schema}
        form = {
            "json_schema": {"type": "json_schema", "json_schema": schema},
            "json_object": {"type": "json_object"},
            "none": None,
        }[self.source.structured]
        limits = {"temperature": self.source.temperature, "max_tokens": self.source.max_tokens, "response_format": form}
        sent = {name: value for name, value in limits.items() if value is not None}
        return {"messages": chat, **self.always, **sent}

    def read(self, text: str, spent: Counter) -> Any:
        """Parse a response; servers differ, so nothing about its shape is taken for granted."""
        try:
            body = json.loads(text)
            usage, choice = body.get("usage") or {}, body["choices"][0]
            message, ended = choice["message"], choice.get("finish_reason")
            for name in ("prompt_tokens", "completion_tokens"):
                spent[name] += usage[name] if isinstance(usage.get(name), int) else 0
            content, refusal = message.get("content"), message.get("refusal")
        except (ValueError, LookupError, TypeError, AttributeError):
            raise ValueError(f"the response is no chat completion: {text[:200]!r}") from None
        if refusal or ended == "content_filter":
            raise _RefusedError(str(refusal or "stopped by the content filter"))
        content = content if isinstance(content, str) else ""
        try:
            return self.parse(content)
        except ValueError as error:
            if _REFUSAL.match(content):
                raise _RefusedError(content) from None
            cut = f", cut off at max_tokens {self.source.max_tokens}" if ended == "length" else ""
            raise ValueError(f"{error}{cut}") from None

    def no_answer(self, error: Any) -> dict[str, Any]:
        """The record of a request that failed after its retries; raises EndpointError if all others would fail, too."""
        if not isinstance(error, self.errors.APIStatusError):
            return self.failure(f"{type(error).__name__}: {error}")
        body = error.body
        if isinstance(body, dict):
            body = body.get("message") or body.get("detail") or json.dumps(body)
        text = " ".join(str(body or "(no message)").split())[:500]
        message = f"{error.status_code} from {self.source.base_url}: {text}"
        codes = {error.code, error.type}
        if codes & _FILTERED:
            return self.failure(message, final=True, refused=True)
        retried = error.status_code in _RETRIED or error.status_code >= 500
        if not retried or "insufficient_quota" in codes:
            # from None: the chain would hold the request, and with it the key
            raise EndpointError(self.clean(message)) from None
        return self.failure(message)

    def failure(self, reason: str, final: bool = False, refused: bool = False) -> dict[str, Any]:
        return {"reason": self.clean(reason)[:500], "final": final, "refused": refused}

    def clean(self, text: str) -> str:
        return text.replace(self.key, "[API key]") if self.key else text


def _api_key(variable: str | None) -> str:
    if variable is None:
        return ""
    key = os.environ.get(variable, "").strip()
    if not key:
        raise ValueError(f"the environment variable {variable} is not set (api_key_variable=None sends no key)")
    if not re.fullmatch("[!-~]+", key):  # an HTTP client would quote it in its error
        raise ValueError(f"the environment variable {variable} has characters that no API key has")
    return key
