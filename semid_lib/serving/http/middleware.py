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
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

log = logging.getLogger("semid_lib.serving.http.web")
TOKEN = "SEMID_TOKEN"  # the environment variable of the bearer token

# these need no token, as they show no items
_PUBLIC = re.compile(r"/(docs|openapi\.json|healthz|readyz|ping|(page|static-offline-docs)/.*)?", re.DOTALL)
_POLICY = "default-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
# Swagger's page has its script and styles inside; it shows nothing that somebody else wrote
_DOCS_POLICY = "default-src 'self' 'unsafe-inline'; img-src 'self' data:; frame-ancestors 'none'"
_SECURITY = ((b"x-content-type-options", b"nosniff"), (b"referrer-policy", b"no-referrer"))
_METHODS = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}  # what else a client makes up is "other"
_DECLARE = "send JSON with the header Content-Type: application/json (curl --json, or -H 'Content-Type: ...' with -d)"
_CLOSE = {"Connection": "close"}  # the rest of the body is not read
# A body of a megabyte takes 30 ms to parse, in which nothing else is answered: large ones wait for each other.
_LARGE, _LARGE_AT_ONCE = 2**16, 2
_DRAINED = 8  # times the limit on a body that is read before the answer, so that the client gets to read it


@dataclass(frozen=True)
class Limits:
    """Limits on one request, and on all together."""

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
    """Counts and times for Prometheus, in a separate registry."""

    def __init__(self):
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        about = "Time from the end of the request's headers to the end of the answer"
        seconds = (0.005, 0.01, 0.02, 0.03, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)
        labels = ("method", "path", "status")
        self.requests = Counter("semid_requests", "Requests answered", labels, registry=self.registry)
        self.seconds = Histogram("semid_request_seconds", about, ["path"], buckets=seconds, registry=self.registry)
        sizes, about = (1, 2, 4, 8, 16, 32), "Questions answered together"
        self.batch = Histogram("semid_batch_size", about, buckets=sizes, registry=self.registry)
        self.waiting = Gauge("semid_waiting", "Questions in the queue", registry=self.registry)


class Guard:
    """ASGI middleware: token, limits, headers, one log line and one count per request.

    HEAD is answered as GET without a body. A POST is read as JSON whatever its Content-Type, as `curl -d` calls it a
    form; only multipart is refused, and what a browser sends undeclared: with such a request, which needs no preflight,
    a page of another site could make a service on loopback work.

    Parameters
    ----------
    token : str or None
        The bearer token of all requests but those for pages and health.
    """

    def __init__(self, app: ASGIApp, limits: Limits, token: str | None, meters: Meters):
        self.app, self.limits, self.meters = app, limits, meters
        self.token = None if token is None else token.encode()
        self._large = asyncio.Semaphore(_LARGE_AT_ONCE)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        started, status, method = time.perf_counter(), 0, scope["method"]
        facts: dict[str, Any] = {}
        scope = {**scope, "method": "GET" if method == "HEAD" else method, "path": _path(scope)}
        scope.setdefault("state", {})["counts"] = facts

        async def send_on(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                policy = _DOCS_POLICY if scope["path"] == "/docs" else _POLICY
                security = (*_SECURITY, (b"content-security-policy", policy.encode()))
                message = {**message, "headers": [*message["headers"], *security]}
            elif method == "HEAD":
                message = {**message, "body": b""}
            await send(message)

        async def refuse(code: int, detail: str, headers: Any = None) -> None:
            if not status:  # once an answer has begun, it can only be broken off
                await JSONResponse({"detail": detail}, code, headers)(scope, receive, send_on)

        try:
            await self._answer(scope, receive, send_on)
        except HTTPException as refused:
            await refuse(refused.status_code, refused.detail, refused.headers)
        except ClientDisconnect:
            status = 499
        except Exception as error:  # said without its message, which may hold data of the user
            facts |= facts_of(error)
            await refuse(500, "the server failed; its log says where")
        finally:
            self._note(getattr(scope.get("route"), "path_format", "other"), method, status, started, facts)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = dict(scope["headers"])
        if not self._may_ask(scope["path"], headers):
            raise HTTPException(401, "a bearer token is needed", {"WWW-Authenticate": "Bearer"} | _CLOSE)
        if scope["method"] == "POST" and not _may_be_json(headers):
            raise HTTPException(415, _DECLARE, _CLOSE)
        async with self._in_time(408, "sending the request", _CLOSE):
            body = await self._read(Request(scope, receive))
        messages = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive_again() -> Message:
            return messages.pop() if messages else await receive()

        turn = self._large if len(body) > _LARGE else contextlib.nullcontext()
        others = [pair for pair in scope["headers"] if pair[0] != b"content-type"]
        scope["headers"] = [*others, (b"content-type", b"application/json")]  # FastAPI reads no other type
        async with self._in_time(504, "the answer"), turn:
            await self.app(scope, receive_again, send)

    @contextlib.asynccontextmanager
    async def _in_time(self, status: int, what: str, headers: dict[str, str] | None = None) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(self.limits.seconds):
                yield
        except TimeoutError:
            raise HTTPException(status, f"{what} took more than {self.limits.seconds:g} seconds", headers) from None

    def _may_ask(self, path: str, headers: dict[bytes, bytes]) -> bool:
        scheme, _, sent = headers.get(b"authorization", b"").partition(b" ")
        is_known = self.token is None or (scheme.lower() == b"bearer" and hmac.compare_digest(sent.strip(), self.token))
        return is_known or _PUBLIC.fullmatch(path) is not None

    async def _read(self, request: Request) -> bytes:
        body, size, most = bytearray(), 0, self.limits.max_body
        async for part in request.stream():
            size += len(part)
            if size > _DRAINED * most:
                break
            if size <= most:
                body += part
        if size > most:
            raise HTTPException(413, f"a body holds at most {most} bytes", _CLOSE)
        return bytes(body)

    def _note(self, path: str, method: str, status: int, started: float, more: dict[str, Any]) -> None:
        seconds, method = time.perf_counter() - started, method if method in _METHODS else "other"
        self.meters.requests.labels(method, path, str(status)).inc()
        self.meters.seconds.labels(path).observe(seconds)
        facts = {"method": method, "path": path, "status": status, "ms": round(1000 * seconds, 2), **more}
        log.log(logging.ERROR if "error" in more else logging.INFO, "request", extra={"facts": facts})


def _path(scope: Scope) -> str:
    """The path; that of an item as sent, percent-encoded: a "/" of its id (%2F) is not the one before "neighbours"."""
    if not scope["path"].startswith("/items/"):
        return scope["path"]
    sent = (scope.get("raw_path") or b"").decode("latin-1").partition("?")[0]
    return sent if sent.startswith("/items/") else quote(scope["path"])


def _may_be_json(headers: dict[bytes, bytes]) -> bool:
    """Whether a body is declared as JSON, or comes from a client that is no browser and sends no files."""
    declared = headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
    if declared == b"application/json" or re.fullmatch(rb"application/[^/]+\+json", declared):
        return True
    return not declared.startswith(b"multipart/") and not {b"origin", b"sec-fetch-site"} & set(headers)


def facts_of(error: Exception) -> dict[str, Any]:
    """An error as the log has it: its type and the last five places, without its message, which may hold user data."""
    frames = traceback.extract_tb(error.__traceback__)[-5:]
    places = [f"{frame.filename.rpartition('/')[2]}:{frame.lineno} {frame.name}" for frame in frames]
    return {"error": type(error).__name__, "at": places}


class JsonLines(logging.Formatter):
    """One JSON object per line: time, level, event, and the facts that came with it."""

    def format(self, record: logging.LogRecord) -> str:
        when = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line = {"time": when, "level": record.levelname.lower(), "event": record.getMessage()}
        return json.dumps({**line, **getattr(record, "facts", {})})
