"""The outermost layer of the service: token, limits on size and time, headers, metrics and the log.

Of a request the log has method, path template, status, duration and counts: no item ids, no user ids, no queries.
"""

import asyncio
import contextlib
import hmac
import json
import logging
import re
import time
import traceback
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import prometheus_client
from starlette.responses import JSONResponse

log = logging.getLogger("semid_lib.serving.http.web")
TOKEN = "SEMID_TOKEN"  # the environment variable of the bearer token

# paths that need no token, as they show no items
_PUBLIC = ("/page/", "/static-offline-docs/")
_PUBLIC_PAGES = {"/", "/docs", "/openapi.json", "/healthz", "/readyz", "/ping"}
_HEADERS = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "content-security-policy": "default-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
}
# Swagger's page has its script and styles inside; it shows nothing that somebody else wrote
_DOCS_POLICY = "default-src 'self' 'unsafe-inline'; img-src 'self' data:; frame-ancestors 'none'"
_METHODS = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}  # what else a client makes up is "other"
_DECLARE = "send JSON with the header Content-Type: application/json (curl --json, or -H 'Content-Type: ...' with -d)"
# A body of a megabyte takes 30 ms to parse, in which nothing else is answered: large ones wait for each other.
_LARGE, _LARGE_AT_ONCE = 2**16, 2
_DRAINED = 8  # times the limit on a body that is read before the answer, so that the client gets to read it


@dataclass(frozen=True)
class Limits:
    """What one request, and all together, may take."""

    max_body: int = 2**20  # bytes
    seconds: float = 10.0  # for reading a request, and again for answering it
    max_batch: int = 32  # histories or queries that are answered together
    max_queue: int = 512  # that may wait; then 503


def check_token(token: str) -> None:
    """Raises ValueError for a bearer token that no client could send."""
    if not re.fullmatch(r"[!-~]([ -~]*[!-~])?", token):
        raise ValueError(
            f"the token ({TOKEN}) is empty or has other characters: expected printable ASCII without spaces at its ends"
        )


class Meters:
    """Counts and times for Prometheus, in a registry of its own."""

    def __init__(self):
        self.registry = prometheus_client.CollectorRegistry()
        prometheus_client.ProcessCollector(registry=self.registry)
        self.requests = prometheus_client.Counter(
            "semid_requests", "Requests answered", ["method", "path", "status"], registry=self.registry
        )
        self.seconds = prometheus_client.Histogram(
            "semid_request_seconds",
            "Time from the end of the request's headers to the end of the answer",
            ["path"],
            buckets=(0.005, 0.01, 0.02, 0.03, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10),
            registry=self.registry,
        )
        self.batch = prometheus_client.Histogram(
            "semid_batch_size", "Questions answered together", buckets=(1, 2, 4, 8, 16, 32), registry=self.registry
        )
        self.waiting = prometheus_client.Gauge("semid_waiting", "Questions in the queue", registry=self.registry)

    def page(self) -> bytes:
        """All of them in Prometheus' text format."""
        return prometheus_client.generate_latest(self.registry)


class _TooLargeError(Exception):
    pass


class _GoneError(Exception):
    """The client went away before its request was complete."""


class Guard:
    """ASGI middleware: token, limits, headers, one log line and one count per request.

    HEAD is answered as GET without a body. A POST is read as JSON whatever its Content-Type, as `curl -d` calls it a
    form; only multipart is refused, and what a browser sends undeclared: with such a request, which needs no preflight,
    a page of another site could make a service on loopback work.

    token: the bearer token of all requests but those for pages and health; None for none.
    """

    def __init__(self, app: Callable, limits: Limits, token: str | None, meters: Meters):
        self.app, self.limits, self.meters = app, limits, meters
        self.token = None if token is None else token.encode()
        self._large = asyncio.Semaphore(_LARGE_AT_ONCE)

    async def __call__(self, scope: dict, receive: Callable, send: Callable) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        started, status, method = time.perf_counter(), 0, scope["method"]
        problem = {}
        scope = {**scope, "method": "GET" if method == "HEAD" else method}
        scope.setdefault("state", {})["counts"] = counts = {}

        async def send_on(message: dict) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message = {**message, "headers": [*message["headers"], *_headers(scope["path"])]}
            elif method == "HEAD":
                message = {**message, "body": b""}
            await send(message)

        async def refuse(code: int, detail: str, **headers: str) -> None:
            if not status:  # once an answer has begun, it can only be broken off
                await JSONResponse({"detail": detail}, code, headers)(scope, receive, send_on)

        reading = True
        try:
            if not self._may_ask(scope):
                await refuse(401, "a bearer token is needed", **{"WWW-Authenticate": "Bearer", "Connection": "close"})
            elif not _may_be_json(scope):
                await refuse(415, _DECLARE, Connection="close")
            else:
                async with asyncio.timeout(self.limits.seconds):
                    body = await self._read(receive)
                reading = False
                async with asyncio.timeout(self.limits.seconds), self._turn(body):
                    await self.app(_as_json(scope), _replayed(body, receive), send_on)
        except _TooLargeError:
            await refuse(413, f"a body holds at most {self.limits.max_body} bytes", Connection="close")
        except TimeoutError:
            late = f"took more than {self.limits.seconds:g} seconds"
            if reading:
                await refuse(408, f"sending the request {late}", Connection="close")
            else:
                await refuse(504, f"the answer {late}")
        except _GoneError:
            status = 499
        except Exception as error:  # said without its message, which may hold data of the user
            problem = facts_of(error)
            await refuse(500, "the server failed; its log says where")
        finally:
            self._note(scope, method, status, time.perf_counter() - started, {**counts, **problem})

    def _turn(self, body: bytes) -> contextlib.AbstractAsyncContextManager:
        return self._large if len(body) > _LARGE else contextlib.nullcontext()

    def _may_ask(self, scope: dict) -> bool:
        path = scope["path"]
        if self.token is None or path in _PUBLIC_PAGES or path.startswith(_PUBLIC):
            return True
        scheme, _, sent = dict(scope["headers"]).get(b"authorization", b"").partition(b" ")
        return scheme.lower() == b"bearer" and hmac.compare_digest(sent.strip(), self.token)

    async def _read(self, receive: Callable) -> bytes:
        parts, size = [], 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise _GoneError
            part = message.get("body", b"")
            size += len(part)
            if size <= self.limits.max_body:
                parts.append(part)
            else:
                parts.clear()
            if size > _DRAINED * self.limits.max_body or (size > self.limits.max_body and not message.get("more_body")):
                raise _TooLargeError
            if not message.get("more_body"):
                return b"".join(parts)

    def _note(self, scope: dict, method: str, status: int, seconds: float, more: dict[str, Any]) -> None:
        path = getattr(scope.get("route"), "path_format", "other")
        method = method if method in _METHODS else "other"
        self.meters.requests.labels(method, path, str(status)).inc()
        self.meters.seconds.labels(path).observe(seconds)
        facts = {"method": method, "path": path, "status": status, "ms": round(1000 * seconds, 2), **more}
        log.log(logging.ERROR if "error" in more else logging.INFO, "request", extra={"facts": facts})


def _replayed(body: bytes, receive: Callable) -> Callable[[], Awaitable[dict]]:
    """A `receive` that hands out a body that was read already, then what comes after it."""
    waiting = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive_again() -> dict:
        return waiting.pop() if waiting else await receive()

    return receive_again


def _headers(path: str) -> list[tuple[bytes, bytes]]:
    policy = {"content-security-policy": _DOCS_POLICY} if path == "/docs" else {}
    return [(name.encode(), value.encode()) for name, value in {**_HEADERS, **policy}.items()]


def _may_be_json(scope: dict) -> bool:
    """Whether the body of a POST is declared as JSON, or comes from a client that is no browser and sends no files."""
    headers = dict(scope["headers"])
    if scope["method"] != "POST":
        return True
    declared = headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
    if declared == b"application/json" or re.fullmatch(rb"application/[^/]+\+json", declared):
        return True
    return not declared.startswith(b"multipart/") and not {b"origin", b"sec-fetch-site"} & set(headers)


def _as_json(scope: dict) -> dict:
    """The scope of a request whose body is JSON; FastAPI reads no other."""
    others = [pair for pair in scope["headers"] if pair[0] != b"content-type"]
    scope["headers"] = [*others, (b"content-type", b"application/json")]
    return scope


def facts_of(error: Exception) -> dict[str, Any]:
    """An error as the log has it: its type and the last five places, without its message, which may hold user data."""
    frames = traceback.extract_tb(error.__traceback__)[-5:]
    places = [f"{frame.filename.rpartition('/')[2]}:{frame.lineno} {frame.name}" for frame in frames]
    return {"error": type(error).__name__, "at": places}


class JsonLines(logging.Formatter):
    """One JSON object a line: time, level, what happened, and the facts that came with it."""

    def format(self, record: logging.LogRecord) -> str:
        when = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line = {"time": when, "level": record.levelname.lower(), "event": record.getMessage()}
        return json.dumps({**line, **getattr(record, "facts", {})})
