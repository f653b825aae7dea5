"""A service that follows its folder: a new version is loaded beside the old one and takes over between two requests.

Every few seconds the files of the folder are compared with those that were seen before; `POST /reload` does it at once.
A new version is loaded and warmed up in a thread. Then new requests get it, those in flight end with the old one, and
the old one is freed. Each version has a queue of its own, so no batch mixes two. Whatever is wrong with a new version,
the old one stays.
"""

import asyncio
import contextlib
import gc
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from starlette.datastructures import State

from semid_lib.serving.http import schemas
from semid_lib.serving.http.middleware import facts_of, log
from semid_lib.serving.http.service import Service, UnableError
from semid_lib.serving.recommender import Recommender
from semid_lib.workbench.store import Timer, sha256
from semid_lib.workbench.text import one_line

CHECK_SECONDS = 5.0  # between two looks at the folder
_SWITCH_SECONDS = 0.0002
_PLAIN = (ValueError, OSError, ImportError)  # their messages say which file is wrong, and nothing about users


@dataclass(frozen=True)
class Origin:
    """Where a service is loaded from, again and again.

    Parameters
    ----------
    model : str or Path
        A folder as a Path, which is watched; else a repository of the Hub or an address such as "s3://bucket/folder",
        which is looked up only when `POST /reload` asks.
    how : mapping
        Other arguments of `Recommender.from_pretrained`.
    rules : Path, optional
        A JSON file of `schemas.Rules`, which hold for every answer; it is watched, too.
    seconds : float, optional
        Between two looks; None: only `POST /reload` looks; 0: nothing does, the service stays as it is.
    """

    model: str | Path
    how: Mapping[str, Any] = field(default_factory=dict)
    rules: Path | None = None
    seconds: float | None = CHECK_SECONDS

    def look(self) -> list[tuple | None]:
        """The state of all files; it differs when one of them was written, replaced, added or removed."""
        paths = [] if self.rules is None else [self.rules]
        if isinstance(self.model, Path):
            with contextlib.suppress(OSError):  # it is being replaced
                paths += [self.model, *sorted(self.model.rglob("*"))]
        return list(map(_state, paths))

    def is_served_by(self, service: Service) -> bool:
        """Whether the folder still holds the version of a service; False where that takes a request to find out."""
        try:
            return isinstance(self.model, Path) and sha256(self.model / "config.json") == service.recommender.saved_as
        except OSError:
            return False

    def load(self, like: Service) -> Service:
        """Load what is there now and warm it up, with the limits and meters of another service.

        Raises
        ------
        ValueError, OSError, ImportError
            As `Recommender.from_pretrained` and `read_rules` do, and if it cannot answer what the other one answers.
        """
        if isinstance(self.model, Path) and not self.model.is_dir():  # else its name would be looked up on the Hub
            raise FileNotFoundError(f"{self.model} is missing: expected a folder that save_pretrained wrote")
        service = Service(Recommender.from_pretrained(self.model, **self.how), like.limits, like.meters)
        lost = [f"/{task}" for task, can in like.can.items() if can and not service.can[task]]
        if lost:
            raise ValueError(f"{self.model} has no model for {lost[0]}, which the service answers: restart to drop it")
        self.read_rules(service)
        service.warm_up()
        service.warm_up_rest()
        return service

    def read_rules(self, service: Service) -> None:
        """Let the rules of the file hold for a service.

        Raises
        ------
        ValueError
            Naming the file if it does not hold `schemas.Rules`, or the rules do not fit the catalogue.
        OSError
            If it cannot be read.
        """
        if self.rules is None:
            return
        try:
            unknown = service.hold(schemas.Rules.model_validate_json(self.rules.read_bytes()))
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))[:100]
            raise ValueError(f"{self.rules}: {where}{': ' if where else ''}{first['msg']}") from None
        except ValueError as error:
            raise ValueError(f"{self.rules}: {error}") from error
        log.info("rules", extra={"facts": {"allowed": service.n_allowed, "unknown_items": unknown}})


def _state(path: Path) -> tuple | None:
    try:
        facts = path.stat()
    except OSError:
        return None
    return path.as_posix(), facts.st_ino, facts.st_mtime_ns, facts.st_size


class Reloader:
    """Keeps `state.service`, from which requests take the service, at the version that its origin has.

    `async with` starts and stops it, and the service with it.

    Parameters
    ----------
    state : starlette.datastructures.State
    origin : Origin, optional
        Without one nothing is watched, and `ask` refuses.

    Attributes
    ----------
    is_loading : bool
        Whether a new version is looked for or loaded.
    refused : str or None
        What is wrong with the version that the origin has now; the one before it is served.
    """

    def __init__(self, state: State, origin: Origin | None):
        self.state, self.origin = state, origin
        self.is_loading = False
        self.refused: str | None = None
        self._asked = asyncio.Event()
        self._seen: list | None = None  # nothing, so that the first look compares what was loaded

    async def __aenter__(self) -> "Reloader":
        await self.state.service.batcher.__aenter__()
        self._watch = asyncio.create_task(self._run())
        return self

    async def __aexit__(self, *_) -> None:
        self._watch.cancel()
        await asyncio.gather(self._watch, return_exceptions=True)
        await self.state.service.batcher.__aexit__()

    def ask(self) -> None:
        """Look now, and try again what was refused. Raises UnableError without an origin."""
        if self.origin is None or self.origin.seconds == 0:
            raise UnableError("this service does not reload: start it with `semid serve`, or deploy it again")
        self.is_loading = True
        self._asked.set()

    def tell(self) -> dict[str, Any]:
        """What is served, what is loaded, and what was refused: the fields of `schemas.Ready` besides its status."""
        name = self.state.service.recommender.version_name
        return {"version": name, "loading": self.is_loading, "refused": self.refused}

    async def _run(self) -> None:
        while self.origin is not None and self.origin.seconds != 0:
            try:
                async with asyncio.timeout(self.origin.seconds):
                    await self._asked.wait()
            except TimeoutError:
                pass
            was_asked = self._asked.is_set()
            self._asked.clear()
            found = await asyncio.to_thread(self.origin.look)
            if was_asked or found != self._seen:
                self._seen = found  # before it is loaded: what changes meanwhile is seen the next time
                await self._follow(self.origin)
            self.is_loading = self._asked.is_set()

    async def _follow(self, origin: Origin) -> None:
        """Serve what the origin has now; if that fails, say why, and go on as before."""
        old, timer, self.is_loading = self.state.service, Timer(), True
        try:
            if await asyncio.to_thread(origin.is_served_by, old):
                await asyncio.to_thread(origin.read_rules, old)
                new = old
            else:
                new = await asyncio.to_thread(_politely, origin.load, old)
        except Exception as error:  # of a file, of memory, of a model that fails: the service goes on
            why = _told(error, origin)
            log.error("not reloaded", extra={"facts": {**_served(old), "refused": why, **facts_of(error)}})
            self.refused = why
            return
        self.refused = None
        if new.recommender.saved_as == old.recommender.saved_as:  # also of the Hub, where it takes loading to find out
            log.info("unchanged", extra={"facts": _served(old)})
            return
        await new.batcher.__aenter__()
        self.state.service, self.is_loading = new, False
        facts = {**_served(new), "before": _served(old)["version"], "seconds": round(timer.seconds, 2)}
        log.info("reloaded", extra={"facts": facts})
        await old.retire()
        if gc.get_freeze_count():  # `web.serve` has frozen the first version
            await asyncio.to_thread(gc.collect)
            gc.freeze()


def _politely(load: Callable[[Service], Service], like: Service) -> Service:
    """Load in a thread that gives Python's lock back sooner: an answer takes it hundreds of times, 5 ms each else."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(_SWITCH_SECONDS)
    try:
        return load(like)
    finally:
        sys.setswitchinterval(before)


def _served(service: Service) -> dict[str, Any]:
    return {"version": service.recommender.version_name, "items": len(service.recommender.items)}


def _told(error: Exception, origin: Origin) -> str:
    """What is wrong, for everyone who may ask /readyz: without the folders of this machine."""
    if not isinstance(error, _PLAIN):
        return f"{type(error).__name__}, see the log"
    places = [place.parent for place in (origin.model, origin.rules) if isinstance(place, Path)]
    said = one_line(str(error), 300)
    for place in places:
        said = said.replace(f"{place.as_posix().rstrip('/')}/", "")
    return said
