"""Many chats with a language model behind an OpenAI-compatible endpoint: plain HTTP, bounded, patient, no secret told.

What goes wrong with one chat is told apart from what would go wrong with all of them: the first is tried again or
recorded, the second ends the run at once with what the server said.
"""

import email.utils
import json
import os
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from typing import Any

_LONGEST_WAIT = 600.0  # seconds; an endpoint that asks for more has run out of something
_GIVE_UP_AFTER = 10  # chats in a row that got no answer at all
_RETRIED = {408, 409, 425, 429, 500, 502, 503, 504, 520, 522, 524, 529}
_REFUSAL = re.compile(r"\s*((i['’]?m |i am )?sorry|i can(['’]?t|not)|i['’]?m unable|as an ai)\b", re.IGNORECASE)


class EndpointError(RuntimeError):
    """The endpoint does not answer any request, and asking again would not help; answers so far are kept."""


@dataclass(frozen=True)
class Endpoint:
    """A model behind an OpenAI-compatible server, such as vLLM at `http://127.0.0.1:8000/v1`.

    Raises ValueError for a URL that is not http(s) or carries a password, for an unknown `structured`, and for
    numbers that are not positive.
    """

    base_url: str  # up to and including /v1
    model: str
    api_key_variable: str | None = "OPENAI_API_KEY"  # environment variable of the key; None: no key is sent
    structured: str = "json_schema"  # or "json_object" or "none", for servers that know no schema
    temperature: float | None = 0.8  # None: not sent
    max_tokens: int | None = 1024  # of one answer; None: not sent
    extra: Mapping[str, Any] = field(default_factory=dict)  # further fields of the request, such as "seed"
    concurrency: int = 8  # requests under way at once
    timeout: float = 60.0  # seconds without a byte
    max_attempts: int = 5  # of one chat
    backoff: float = 1.0  # seconds before the second attempt, then doubled, with as much jitter
    max_backoff: float = 60.0  # seconds; a Retry-After of the server may be longer

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
        """What an answer depends on, beside model and prompt; not where the server stands."""
        names = ("structured", "temperature", "max_tokens")
        return {**{name: getattr(self, name) for name in names}, "extra": dict(self.extra)}


class _NoAnswerError(Exception):
    """No answer this time."""

    def __init__(self, reason: str, retry_after: float = 0.0):
        super().__init__(reason)
        self.retry_after = retry_after


class _BrokenAnswerError(Exception):
    """An answer without usable JSON."""


class _RefusedError(Exception):
    """The model, or a filter before it, does not want to."""


def complete(
    source: Endpoint,
    chats: Mapping[str, list[dict[str, str]]],
    schema: dict[str, Any],
    parse: Callable[[str], Any],
    store: Callable[[str, dict], Any],
) -> None:
    """Send all chats, at most `source.concurrency` at once, and hand each result to `store` as it comes.

    chats: by key, each a list of messages. schema: of the answer, sent with the request. parse: makes something of
    the text of an answer, or raises ValueError, and then the chat is sent again. store(key, record) is called from
    several threads; a record has `answer`, or `reason`, `final` and `refused`, and always `spent` (requests, tokens).
    `final` says that the model answered, and that another run had better not ask again.

    Raises EndpointError if no chat can be answered, ValueError if there is no API key. After these, and after Ctrl-C,
    nothing new is sent, and what is under way is waited for and stored.
    """
    client = _Client(source, schema, parse, store)
    # threads, since in a notebook an event loop is running already
    pool = ThreadPoolExecutor(source.concurrency, thread_name_prefix="chat")
    try:
        for future in as_completed([pool.submit(client.send, key, chat) for key, chat in chats.items()]):
            future.result()
    finally:
        client.stop.set()
        pool.shutdown(wait=True, cancel_futures=True)
        client.http.close()


class _Client:
    def __init__(self, source: Endpoint, schema: dict, parse: Callable, store: Callable):
        try:
            import httpx
            import tenacity
        except ImportError as error:
            raise ImportError("an endpoint needs the extra 'queries': pip install 'semid-lib[queries]'") from error
        self.source, self.schema, self.parse, self.store = source, schema, parse, store
        self.key = _api_key(source.api_key_variable)
        headers = {"Authorization": f"Bearer {self.key}"} if self.key else {}
        limits = httpx.Limits(max_connections=source.concurrency)
        self.http = httpx.Client(headers=headers, timeout=source.timeout, limits=limits)
        self.no_answer: type[Exception] = httpx.TransportError
        self.stop = threading.Event()
        self.in_a_row, self.lock = 0, threading.Lock()
        growing = tenacity.wait_exponential(source.backoff, source.max_backoff) + tenacity.wait_random(
            0, source.backoff
        )
        self.retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type((_NoAnswerError, _BrokenAnswerError)),
            stop=tenacity.stop_after_attempt(source.max_attempts) | tenacity.stop_when_event_set(self.stop),
            wait=lambda state: max(growing(state), getattr(state.outcome.exception(), "retry_after", 0.0)),
            sleep=tenacity.sleep_using_event(self.stop),
            reraise=True,
        )

    def send(self, key: str, chat: list[dict[str, str]]) -> None:
        """Send one chat until there is something to store; raises EndpointError where the whole run should end."""
        spent: Counter = Counter()
        try:
            record = {"answer": self.retrying.copy()(self.once, chat, spent)}
        except (_NoAnswerError, _BrokenAnswerError, _RefusedError) as error:
            if self.stop.is_set() and not isinstance(error, _RefusedError):
                return  # not given all its attempts
            final = not isinstance(error, _NoAnswerError)
            record = {"reason": self.clean(str(error)), "final": final, "refused": isinstance(error, _RefusedError)}
        except EndpointError:
            self.stop.set()
            raise
        self.store(key, {**record, "spent": dict(spent)})
        with self.lock:
            self.in_a_row = 0 if record.get("final", True) else self.in_a_row + 1
            given_up = self.in_a_row >= _GIVE_UP_AFTER
        if given_up:
            self.stop.set()
            raise EndpointError(f"{_GIVE_UP_AFTER} chats in a row got no answer, the last one: {record['reason']}")

    def once(self, chat: list[dict[str, str]], spent: Counter) -> Any:
        """One request. Raises one of the four errors."""
        if self.stop.is_set():
            raise _NoAnswerError("the run ended")
        spent["requests"] += 1
        url = f"{self.source.base_url.rstrip('/')}/chat/completions"
        try:
            response = self.http.post(url, json=self.body(chat))
        except self.no_answer as error:
            # from None: the chain would carry the request, and with it the key
            raise _NoAnswerError(f"{type(error).__name__}: {error}") from None
        if response.status_code != 200:
            self.refuse(response)
        try:
            body = response.json()
            usage, choice = body.get("usage") or {}, body["choices"][0]
            message, ended = choice["message"], choice.get("finish_reason")
            for name in ("prompt_tokens", "completion_tokens"):
                spent[name] += usage[name] if isinstance(usage.get(name), int) else 0
            text, refusal = message.get("content"), message.get("refusal")
        except (ValueError, LookupError, TypeError, AttributeError):
            raise _BrokenAnswerError(f"the response is no chat completion: {response.text[:200]!r}") from None
        if refusal or ended == "content_filter":
            raise _RefusedError(str(refusal or "stopped by the content filter")[:300])
        try:
            return self.parse(text if isinstance(text, str) else "")
        except ValueError as error:
            if isinstance(text, str) and _REFUSAL.match(text):
                raise _RefusedError(text[:300]) from None
            cut = f", cut off at max_tokens {self.source.max_tokens}" if ended == "length" else ""
            raise _BrokenAnswerError(f"{error}{cut}") from None

    def body(self, chat: list[dict[str, str]]) -> dict[str, Any]:
        schema = {"name": "answer", "strict": True, "schema": self.schema}
        body = {
            "model": self.source.model,
            "messages": chat,
            "temperature": self.source.temperature,
            "max_tokens": self.source.max_tokens,
            "response_format": {
                "json_schema": {"type": "json_schema", "json_schema": schema},
                "json_object": {"type": "json_object"},
                "none": None,
            }[self.source.structured],
            **self.source.extra,
        }
        return {name: value for name, value in body.items() if value is not None}

    def refuse(self, response) -> None:
        """Sort a response that is not 200: raises _NoAnswerError, _RefusedError or EndpointError."""
        status, (message, codes) = response.status_code, _error_of(response)
        message = self.clean(f"{status} from {self.source.base_url}: {message}")
        if "content_filter" in codes or "content_policy_violation" in codes:
            raise _RefusedError(message)
        if status not in _RETRIED or "insufficient_quota" in codes:
            raise EndpointError(message)
        wait = _seconds(response.headers.get("retry-after"))
        if wait > _LONGEST_WAIT:
            raise EndpointError(f"{message} (asks to wait for {wait:.0f} s)")
        raise _NoAnswerError(message, wait)

    def clean(self, text: str) -> str:
        return text.replace(self.key, "[API key]") if self.key else text


def _api_key(variable: str | None) -> str:
    if variable is None:
        return ""
    key = os.environ.get(variable, "").strip()
    if not key:
        raise ValueError(f"the environment variable {variable} is not set (api_key_variable=None sends no key)")
    if not re.fullmatch("[!-~]+", key):  # an HTTP client would show it in its complaint
        raise ValueError(f"the environment variable {variable} holds characters that no API key has")
    return key


def _error_of(response) -> tuple[str, set[str]]:
    """What a server says about an error, and its codes, in the shapes that OpenAI, vLLM and FastAPI use."""
    try:
        body = response.json()
    except ValueError:
        body = None
    error = body.get("error", body) if isinstance(body, dict) else body
    if not isinstance(error, dict):
        return " ".join(str(error or response.text).split())[:300] or "(no message)", set()
    message = next((str(error[name]) for name in ("message", "detail") if error.get(name)), json.dumps(error))
    return message[:500], {str(error.get(name)) for name in ("code", "type")}


def _seconds(retry_after: str | None) -> float:
    """A Retry-After header in seconds from now; 0 where there is none or it makes no sense.

    >>> _seconds("7"), _seconds("Thu, 01 Jan 1970 00:00:10 GMT"), _seconds("soon"), _seconds(None)
    (7.0, 0.0, 0.0, 0.0)
    """
    if not retry_after:
        return 0.0
    if re.fullmatch(r"\d{1,9}(\.\d+)?", retry_after.strip()):
        return float(retry_after)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(retry_after).timestamp() - time.time())
    except ValueError:
        return 0.0
