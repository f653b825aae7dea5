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

from semid_lib.workbench.text import one_line

_ATTEMPTS = 5  # per chat
_GIVE_UP_AFTER = 10  # chats in a row without any answer
_RETRIED = {408, 409, 429}  # and from 500 up, as the client does
_FILTERED = {"content_filter", "content_policy_violation"}


class EndpointError(RuntimeError):
    """The endpoint answers no request, and a retry would not help. Answers so far are kept."""


@dataclass(frozen=True)
class Endpoint:
    """A model behind an OpenAI-compatible server, such as vLLM or `transformers serve` at `http://127.0.0.1:8000/v1`.

    Raises
    ------
    ValueError
        For a URL that is not http(s), or that has a password or a query.
    """

    base_url: str  # up to and including /v1
    model: str
    api_key_variable: str | None = "OPENAI_API_KEY"  # environment variable with the key; None sends no key
    temperature: float = 0.8
    max_tokens: int = 1024  # per answer
    # more fields of the request, such as "seed"; None leaves a field out: "response_format" for servers without schemas
    extra: Mapping[str, Any] = field(default_factory=dict)
    concurrency: int = 8  # requests at the same time
    timeout: float = 60.0  # seconds without a byte

    def __post_init__(self):
        if not re.fullmatch(r"https?://[^\s/@]+(/[^\s@?#]*)?", self.base_url):
            raise ValueError("base_url is not http(s)://host/path without password and query")

    @property
    def settings(self) -> dict[str, Any]:
        """What an answer depends on, besides the prompt; caches are named by it."""
        settings = {"model": self.model, "temperature": self.temperature, "max_tokens": self.max_tokens}
        return {**settings, "structured": "json_schema", "extra": dict(self.extra)}


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
        `store(key, record)`, called from several threads. A record has `answer`, or `reason` and `final`, and always
        `spent` (requests, tokens). If it is `final`, the model has answered: do not ask again.

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


class _Client:
    def __init__(self, source: Endpoint, schema: dict, parse: Callable, store: Callable):
        try:
            import openai
        except ImportError as error:
            raise ImportError("an endpoint needs the extra 'queries': pip install 'semid-lib[queries]'") from error
        self.source, self.parse, self.store, self.errors = source, parse, store, openai
        self.key = _api_key(source.api_key_variable)
        self.api = openai.OpenAI(
            api_key=self.key or "none",
            base_url=source.base_url,
            timeout=source.timeout,
            max_retries=_ATTEMPTS - 1,
        )
        form = {"type": "json_schema", "json_schema": {"name": "answer", "strict": True, "schema": schema}}
        fields = {"temperature": source.temperature, "max_tokens": source.max_tokens, "response_format": form}
        self.headers = {} if self.key else {"Authorization": openai.Omit()}
        self.fields = {name: value for name, value in {**fields, **source.extra}.items() if value is not None}
        self.stop, self.lock, self.in_a_row = threading.Event(), threading.Lock(), 0

    def send(self, key: str, chat: list[dict[str, str]]) -> None:
        """Send one chat and store the result; raises EndpointError to end the run."""
        spent: Counter = Counter()
        try:
            record = self.answer(chat, spent)
            if record is None:
                return
            self.store(key, {**record, "spent": dict(spent)})
            with self.lock:
                self.in_a_row = 0 if record.get("final", True) else self.in_a_row + 1
                if self.in_a_row >= _GIVE_UP_AFTER:
                    reason = record["reason"]
                    raise EndpointError(f"{_GIVE_UP_AFTER} chats in a row got no answer, the last one: {reason}")
        except EndpointError:
            self.stop.set()
            raise

    def answer(self, chat: list[dict[str, str]], spent: Counter) -> dict[str, Any] | None:
        """The record of one chat; None if the run ended before its last attempt."""
        reason = ""
        for _ in range(_ATTEMPTS):
            if self.stop.is_set():
                return None
            spent["requests"] += 1  # the client's own retries are not counted
            try:
                create: Any = self.api.chat.completions.with_raw_response.create
                response = create(
                    model=self.source.model, messages=chat, extra_body=self.fields, extra_headers=self.headers
                )
                return self.read(response.text, spent)
            except self.errors.APIError as error:
                return self.no_answer(error)
            except ValueError as error:
                reason = str(error)
        return self.failure(reason, final=True)

    def read(self, text: str, spent: Counter) -> dict[str, Any]:
        """The record of a response; servers differ, so nothing about its shape is taken for granted."""
        try:
            body = json.loads(text)
            usage, choice = body.get("usage") or {}, body["choices"][0]
            for name in ("prompt_tokens", "completion_tokens"):
                spent[name] += usage[name] if isinstance(usage.get(name), int) else 0
            message, ended = choice["message"], choice.get("finish_reason")
            content, refusal = str(message.get("content") or ""), message.get("refusal")
        except (ValueError, LookupError, TypeError, AttributeError):
            raise ValueError(f"the response is no chat completion: {text[:200]!r}") from None
        if refusal or ended == "content_filter":
            return self.failure(str(refusal or "stopped by the content filter"), final=True)
        try:
            return {"answer": self.parse(content)}
        except ValueError as error:
            cut = f", cut off at max_tokens {self.source.max_tokens}" if ended == "length" else ""
            raise ValueError(f"{error}{cut}") from None

    def no_answer(self, error: Any) -> dict[str, Any]:
        """The record of a request that failed after its retries; raises EndpointError if all others would fail, too."""
        if not isinstance(error, self.errors.APIStatusError):
            return self.failure(f"{type(error).__name__}: {error}")
        message = f"{error.status_code} from {self.source.base_url}: {error.response.text}"
        codes = {error.code, error.type}
        if codes & _FILTERED:
            return self.failure(message, final=True)
        if "insufficient_quota" in codes or (error.status_code < 500 and error.status_code not in _RETRIED):
            # from None: the chain would hold the request, and with it the key
            raise EndpointError(self.clean(message)) from None
        return self.failure(message)

    def failure(self, reason: str, final: bool = False) -> dict[str, Any]:
        return {"reason": self.clean(reason), "final": final}

    def clean(self, text: str) -> str:
        """A message without the API key."""
        return one_line(text.replace(self.key, "[API key]") if self.key else text, 500)


def _api_key(variable: str | None) -> str:
    if variable is None:
        return ""
    key = os.environ.get(variable, "").strip()
    if not re.fullmatch("[!-~]+", key):  # an HTTP client would quote it in its error
        found = "has characters that no API key has" if key else "is not set (api_key_variable=None sends no key)"
        raise ValueError(f"the environment variable {variable} {found}")
    return key
