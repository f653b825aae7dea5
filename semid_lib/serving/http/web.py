"""The recommender as an HTTP service, with a page to try it (`semid serve`).

The service listens on loopback, unless told otherwise. If the environment variable SEMID_TOKEN is set, all requests
about items need it as a bearer token. After SIGTERM the service answers what it has accepted, and ends.
"""

import contextlib
import ctypes
import gc
import ipaddress
import logging
import os
from collections.abc import AsyncIterator
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import unquote

import uvicorn
from fastapi import APIRouter, Depends, FastAPI, HTTPException, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, PlainTextResponse
from fastapi.security import HTTPBearer
from fastapi.staticfiles import StaticFiles
from fastapi_offline import FastAPIOffline
from prometheus_client import generate_latest
from starlette.middleware.trustedhost import TrustedHostMiddleware

from semid_lib.data.item_ids import UnknownItemError
from semid_lib.serving.http import schemas
from semid_lib.serving.http.batching import OverloadedError
from semid_lib.serving.http.item_index import UnknownError
from semid_lib.serving.http.middleware import TOKEN, Guard, JsonLines, Limits, Meters, check_token, log
from semid_lib.serving.http.reloading import CHECK_SECONDS, Origin, Reloader
from semid_lib.serving.http.service import Service, UnableError
from semid_lib.serving.recommender import Recommender
from semid_lib.workbench import remote
from semid_lib.workbench.store import Timer

_PAGE = Path(__file__).parent / "page"
_PROMETHEUS = "text/plain; version=0.0.4; charset=utf-8"
_REFUSALS = {
    400: "a host name that is not served, or a request that is not HTTP",
    401: "no token, or a wrong one",
    404: "no such item, or the model cannot answer this",
    408: "the body took longer than 10 seconds to arrive",
    413: "the body is longer than 1 MiB",
    415: "a browser sent a body that it does not declare as JSON",
    503: "not ready, or too many requests wait: see Retry-After",
    504: "the answer took longer than 10 seconds",
}
router = APIRouter(
    responses={status: {"model": schemas.Problem, "description": why} for status, why in _REFUSALS.items()}
)


async def _service_of(request: Request) -> AsyncIterator[Service]:
    """The version that serves now; the request ends with it, even if another one takes over meanwhile."""
    with request.app.state.service.in_use() as service:
        if (name := service.recommender.version_name) is not None:
            request.state.counts["version"] = name
        yield service


Serving = Annotated[Service, Depends(_service_of)]


async def _row(item_id: str, service: Serving) -> int:
    """The item that a path names, percent-encoded (see `middleware`)."""
    try:
        return service.index.item_ids.row(unquote(item_id))
    except UnknownItemError as error:
        raise HTTPException(404, str(error)) from None


Row = Annotated[int, Depends(_row)]


@router.post("/recommend", response_model=schemas.Answer, tags=["answers"])
async def recommend(question: schemas.RecommendQuestion, service: Serving, request: Request):
    """The most probable next items after a history; an empty history gets the usual first items."""
    answer = await service.recommend(question)
    request.state.counts.update(k=question.k, history=len(question.item_ids), answers=len(answer["items"]))
    return answer


@router.post("/search", response_model=schemas.Answer, tags=["answers"])
async def search(question: schemas.SearchQuestion, service: Serving, request: Request):
    """The best items for a query."""
    answer = await service.search(question)
    request.state.counts.update(k=question.k, answers=len(answer["items"]))
    return answer


@router.post("/predictions/{model}", response_model=schemas.Predictions, tags=["TorchServe"])
async def predictions(model: str, question: schemas.PredictQuestion, service: Serving, request: Request):
    """Next items for several users, in TorchServe's format. The name of the model does not matter: there is one."""
    answer = await service.predict(question)
    request.state.counts.update(k=question.topk, histories=len(question.instances))
    return answer


@router.get("/ping", response_model=schemas.State, tags=["TorchServe"])
async def ping():
    """The process is alive, in TorchServe's words."""
    return {"status": "Healthy"}


@router.get("/catalogue", response_model=schemas.CatalogueFacts, tags=["items"])
async def facts(service: Serving):
    """Size, categories and brands of the catalogue, and what the loaded model can do."""
    return service.facts()


@router.get("/items", response_model=schemas.Items, tags=["items"])
async def find(
    service: Serving,
    title: Annotated[str, Query(min_length=1, max_length=schemas.MAX_TEXT)],
    limit: Annotated[int, Query(ge=1, le=50)] = 10,
):
    """Items whose titles contain every word, or a word that begins with it; an item id finds its item first."""
    return {"items": await service.find(title, limit)}


@router.get("/items/{item_id:path}/neighbours", response_model=schemas.Neighbours, tags=["items"])
async def neighbours(row: Row, service: Serving, limit: Annotated[int, Query(ge=1, le=50)] = 6):
    """Items under the same prefixes, from the longest to a single code."""
    return {"item": service.index.describe(row), "prefixes": service.index.neighbours(row, limit)}


@router.get("/items/{item_id:path}", response_model=schemas.Item, tags=["items"])
async def item(row: Row, service: Serving):
    """One item."""
    return service.index.describe(row)


@router.get("/healthz", response_model=schemas.State, tags=["operation"])
async def healthz():
    """The process is alive."""
    return {"status": "alive"}


@router.get("/readyz", response_model=schemas.Ready, tags=["operation"])
async def readyz(service: Serving, request: Request):
    """Everything is loaded, the text encoder too, and half of the queue is free; 503 otherwise.

    While another version is loaded beside it, or after one was refused, the service is as ready as before.
    """
    if service.state != "ready":
        why = "the models are still loading" if service.state == "loading" else "loading failed, see the log"
        raise OverloadedError(f"not ready: {why}")
    if 2 * service.batcher.n_waiting > service.batcher.max_queue:
        raise OverloadedError("more than half of the queue is taken. Retry after 1 s")
    return {"status": "ready", **request.app.state.reloader.tell()}


@router.post("/reload", response_model=schemas.Ready, status_code=202, tags=["operation"])
async def reload(request: Request):
    """Look for a new version now, and load it beside the old one; /readyz tells when it serves, or why it does not."""
    request.app.state.reloader.ask()
    return {"status": "asked", **request.app.state.reloader.tell()}


@router.get("/metrics", response_class=PlainTextResponse, tags=["operation"])
async def metrics(service: Serving):
    """Counts and times in Prometheus' format."""
    service.meters.waiting.set(service.batcher.n_waiting)
    return PlainTextResponse(generate_latest(service.meters.registry), media_type=_PROMETHEUS)


@router.get("/", include_in_schema=False)
async def page():
    return FileResponse(_PAGE / "index.html")


# --- the application ---


def create_app(
    recommender: Recommender,
    limits: Limits | None = None,
    token: str | None = None,
    loopback_only: bool = False,
    origin: Origin | None = None,
) -> FastAPI:
    """The service as an ASGI application; its requests and answers are in `schemas`, and at /docs.

    Parameters
    ----------
    recommender : Recommender
    limits : Limits, optional
    token : str, optional
        The bearer token of requests about items; without one, anyone may send them.
    loopback_only : bool
        Answer only requests to 127.0.0.1, localhost or [::1], so that a page of another site cannot reach the service
        by DNS rebinding.
    origin : Origin, optional
        Where later versions come from; by default the service keeps this one.

    Raises
    ------
    ValueError
        If no client could send the token, or as `Origin.read_rules`.
    """
    if token is not None:
        check_token(token)
    limits, meters = limits or Limits(), Meters()

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI):
        async with app.state.reloader:
            yield
        log.info("stopped")

    app = FastAPIOffline(  # its documents come from this process
        title="Recommendations by semantic IDs",
        summary="Next items for a history, items for a query, and why.",
        version=metadata.version("semid-lib"),
        redoc_url=None,
        lifespan=lifespan,
        dependencies=[] if token is None else [Depends(HTTPBearer(auto_error=False))],
    )
    app.state.service = Service(recommender, limits, meters)
    app.state.reloader = Reloader(app.state, origin)
    if origin is not None:
        origin.read_rules(app.state.service)
    app.include_router(router)
    app.mount("/page", StaticFiles(directory=_PAGE), name="page")
    if loopback_only:
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=["127.0.0.1", "localhost", "[::1]"])
    app.add_middleware(Guard, limits=limits, token=token, meters=meters)
    for kind in (RequestValidationError, UnknownError, UnknownItemError, UnableError, OverloadedError):
        app.add_exception_handler(kind, _refuse)
    return app


async def _refuse(_: Request, error: Exception) -> JSONResponse:  # a coroutine: Starlette runs others in threads
    """The answer to a request that cannot be met: where and why, in FastAPI's form but without repeating the input."""
    if isinstance(error, UnableError):
        return JSONResponse({"detail": str(error)}, 404)
    if isinstance(error, OverloadedError):
        return JSONResponse({"detail": str(error)}, 503, {"Retry-After": "1"})
    wrong: list[dict[str, Any]] = [{"loc": ["body"], "msg": str(error)}]
    if isinstance(error, RequestValidationError):
        wrong = [{"loc": [_cut(part) for part in one["loc"]], "msg": one["msg"]} for one in error.errors()[:20]]
    return JSONResponse({"detail": [{**one, "type": "value_error"} for one in wrong]}, 422)


def _cut(part: Any) -> Any:
    """A place in the input; the name of an unknown field may be as long as the body."""
    return part[:50] if isinstance(part, str) else part


def load_app(
    model: str | Path,
    limits: Limits | None = None,
    token: str | None = None,
    loopback_only: bool = False,
    rules: Path | None = None,
    check_seconds: float | None = CHECK_SECONDS,
    **how,
) -> FastAPI:
    """Load a folder and make a service of it that has answered one request.

    Parameters
    ----------
    model, **how
        Arguments of `Recommender.from_pretrained`.
    limits, token, loopback_only
        Arguments of `create_app`.
    rules, check_seconds
        Of `Origin`.

    Raises
    ------
    ValueError, OSError, ImportError
        If the model cannot be loaded.
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):  # two heaps instead of eight per core, which rarely
        ctypes.CDLL(None).mallopt(-8, 2)  # shrink: glibc's M_ARENA_MAX
    timer = Timer()
    recommender = Recommender.from_pretrained(model, **how)
    is_folder = recommender.source is None and not remote.is_remote(model)
    origin = Origin(Path(model).absolute() if is_folder else str(model), how, rules, check_seconds)
    app = create_app(recommender, limits, token, loopback_only, origin)
    app.state.service.warm_up()
    facts: dict[str, Any] = {"items": len(recommender.items), "seconds": round(timer.seconds, 2)}
    if recommender.source is not None:
        facts["source"] = str(recommender.source)
    log.info("loaded", extra={"facts": {**facts, "version": app.state.reloader.tell()["version"]}})
    return app


def serve(
    model: str | Path,
    host: str = "127.0.0.1",
    port: int = 8080,
    revision: str | None = None,
    rules: Path | None = None,
    check_seconds: float | None = CHECK_SECONDS,
) -> None:
    """Load a recommender and serve it until SIGTERM or Ctrl-C.

    Parameters
    ----------
    model, revision
        Arguments of `Recommender.from_pretrained`.
    host : str
        Any address but loopback lets others connect; without a token, a warning is logged.
    port : int
    rules, check_seconds
        Of `Origin`.

    Raises
    ------
    ValueError, OSError, ImportError
        If the model cannot be loaded, or no client could send the token.
    """
    log_as_json()
    token, loopback = os.environ.get(TOKEN), _is_loopback(host)
    if token is None and not loopback:
        log.warning(f"no authentication: anyone who reaches {host}:{port} can send requests. Set {TOKEN} and restart")
    limits = Limits()
    app = load_app(model, limits, token, token is None and loopback, rules, check_seconds, revision=revision)
    gc.freeze()  # models stay: the collector need not look through them
    gc.enable()
    app.state.service.warm_up_beside()
    uvicorn.run(
        app,
        host=host,
        port=port,
        log_config=None,
        access_log=False,  # it would write down what people look for
        server_header=False,
        limit_concurrency=2 * limits.max_queue,
        timeout_graceful_shutdown=int(2 * limits.seconds) + 5,
    )


def log_as_json() -> None:
    """Write the log of this process to stderr, one JSON object per line."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines())
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    logging.getLogger("httpx").setLevel(logging.WARNING)  # it would log addresses that are signed for a while


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
