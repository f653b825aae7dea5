"""The time from nothing to the first answer of the service, part by part, and of the answers after it.

Every start is a fresh process of the same service (`semid_lib.serving.http.web`). Some of its steps are timed, and the
rest counts as "server and first answer". The files are in the memory of the machine, which does nothing else. The times
do not include what a provider does before our process begins (find a machine, fetch the image, start the container),
nor the first read of the files from a disk or a network.

The parts before "our imports" are Python and other libraries, the others are ours. "text encoder" is the import and the
loading of the one that reads queries, for a service that answers nothing else.
"""

import compileall
import gc
import http.client
import importlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from types import MethodType
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:  # the measured process begins with this module, and its imports must cost nothing
    import pandas as pd

    from semid_lib.data.dataset import Dataset

_PACKAGE = Path(__file__).resolve().parents[2]
_PATIENCE = 120  # seconds for one start
_LIBRARIES = {
    "torch": ("torch", "safetensors.torch"),
    "pandas": ("pandas", "pyarrow.parquet"),
    "FastAPI": ("fastapi", "fastapi_offline", "uvicorn", "prometheus_client"),
}
PARTS = (
    *("interpreter", *_LIBRARIES, "text encoder"),
    *("our imports", "checksums", "item table", "weights", "app", "warm-up", "server and first answer"),
)
OURS = PARTS[PARTS.index("our imports") :]


@dataclass(frozen=True)
class Way:
    """One way to start the service; by default as it is."""

    compiled: bool = True  # our modules were compiled before
    collector: bool = False  # leave Python's garbage collector on while importing and loading
    checksums: bool = True  # hold the files of the folder against those in config.json
    batches_first: bool = False  # warm up for batches, which loads numba, before the service opens
    forked: bool = False  # from a process that has loaded everything: what a memory snapshot aims at


WAYS = {
    "as it is": Way(),
    "forked when loaded": Way(forked=True),
    "without checksums": Way(checksums=False),
    "collector left on": Way(collector=True),
    "our code not compiled": Way(compiled=False),
    "batches first": Way(batches_first=True),
}


class Start(NamedTuple):
    """One start."""

    seconds: dict[str, float]  # by part, in order; together they are the time to the first answer
    warm_ms: list[float]  # of each answer after the first, one client


def measure(folder: str | Path, questions: Sequence[dict], way: Way = Way()) -> Start:
    """Start the service in a fresh process, repeat the first request until it is answered, then send all others.

    folder: what `Recommender.save_pretrained` wrote. questions: bodies for POST /search where they hold "query", else
    for /recommend. Of a forked start only the time since the fork counts.
    Raises ValueError if the folder cannot be served or a question is refused, RuntimeError if no answer comes in 120 s.
    """
    if not questions:
        raise ValueError("there is no question to ask, expected at least one")
    with closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    if way.compiled:
        compileall.compile_dir(_PACKAGE, quiet=2)
    command = [sys.executable, "-c", "from semid_lib.studies.service.service_start import _serve; _serve()"]
    with tempfile.TemporaryFile() as said:
        started = time.monotonic()
        process = subprocess.Popen(
            [*command, json.dumps({"folder": str(folder), "port": port, "started": started, **vars(way)})],
            env=_environment(way),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=said,
            start_new_session=True,
        )
        try:
            assert process.stdin and process.stdout
            parts = json.loads(process.stdout.readline() or "null")  # just before the server begins
            if parts is None:
                said.seek(0)
                words = said.read().decode().strip().splitlines()
                raise ValueError(words[-1] if words else f"the service of {folder} ended before it began")
            if way.forked:
                parts, started = {}, time.monotonic()
                process.stdin.write(b"\n")
                process.stdin.flush()
            answered = _first_answer(process, port, questions[0])
            parts[PARTS[-1]] = answered - started - sum(parts.values())  # time without a clock
            warm_ms = _warm_answers(port, questions[1:])
        finally:
            _stop(process)
    return Start({part: parts[part] for part in PARTS if part in parts}, warm_ms)


def table(
    folder: str | Path,
    questions: Sequence[dict],
    ways: Mapping[str, Way] = WAYS,
    repeats: int = 5,
    progress: bool = False,
) -> "pd.DataFrame":
    """A row per start: the `PARTS` in seconds, "total", and "p50" and "p99" of the warm answers in milliseconds.

    The index is way and repeat. The ways take turns, so that a busy minute of the machine affects all of them. Raises
    the errors of `measure`.
    """
    import numpy as np
    import pandas as pd
    from tqdm.auto import tqdm

    turns = [(name, repeat) for repeat in range(repeats) for name in ways]
    rows = {}
    for name, repeat in tqdm(turns, desc="cold starts", unit="start", disable=not progress):
        seconds, warm = measure(folder, questions, ways[name])
        p50, p99 = np.percentile(warm, [50, 99]) if warm else (np.nan, np.nan)
        parts = dict.fromkeys(PARTS, 0.0) | seconds
        rows[name, repeat] = parts | {"total": sum(seconds.values()), "p50": p50, "p99": p99}
    return pd.DataFrame(rows).T.rename_axis(["way", "repeat"]).loc[list(ways)]


def example_requests(folder: Path, shop: "Dataset", n: int, seed: int) -> list[dict]:
    """Random histories for a folder with a next-item model, else the first words of titles as queries.

    Parameters
    ----------
    folder : Path
        What `Recommender.save_pretrained` wrote.
    shop : Dataset
    n, seed : int

    Returns
    -------
    list of dict
        Bodies of requests, as `measure` takes them.
    """
    import numpy as np

    rng = np.random.default_rng(seed)
    if "model" in json.loads((folder / "config.json").read_text(encoding="utf-8")):
        ids = shop.item_ids.for_json
        histories = [rng.integers(len(ids), size=length) for length in rng.integers(1, 20, n)]
        return [{"item_ids": [ids[row] for row in history]} for history in histories]
    titles = shop.items["title"][shop.items["title"].str.strip() != ""]
    return [{"query": " ".join(title.split()[:5])[:200]} for title in titles.sample(n, replace=True, random_state=seed)]


def imports(module: str = "semid_lib.serving.http.web") -> "pd.DataFrame":
    """Seconds and modules of each package that a module imports, in a fresh process, the slowest package first.

    `python -X importtime` slows everything down a little. A package counts without the packages that it imports;
    Python's standard library is one line.
    """
    import pandas as pd

    command = [sys.executable, "-X", "importtime", "-c", f"import {module}"]
    run = subprocess.run(command, capture_output=True, text=True, check=True, env=_environment(Way()))
    lines = re.findall(r"^import time:\s+(\d+) \|\s+\d+ \|\s*(\w+)", run.stderr, re.MULTILINE)
    found = pd.DataFrame(lines, columns=["own", "package"]).astype({"own": int})
    found.loc[found["package"].isin(sys.stdlib_module_names), "package"] = "Python's own"
    own = (found["own"] / 1e6).groupby(found["package"])
    packages = pd.DataFrame(own.agg(seconds="sum", modules="size"))
    return packages.sort_values("seconds", ascending=False)


# --- the process that asks ---


def _environment(way: Way) -> dict[str, str]:
    environment = {**os.environ, "PYTHONPATH": str(_PACKAGE.parent)}
    environment.pop("SEMID_TOKEN", None)
    if not way.compiled:
        environment["PYTHONDONTWRITEBYTECODE"] = "1"
    if way.forked:
        environment["OMP_NUM_THREADS"] = "1"  # threads of OpenMP do not live through a fork
    return environment


def _first_answer(process: subprocess.Popen, port: int, question: dict) -> float:
    """When the first answer came."""
    late = time.monotonic() + _PATIENCE
    while process.poll() is None and time.monotonic() < late:
        try:
            _warm_answers(port, [question])
            return time.monotonic()
        except OSError:
            time.sleep(0.002)
    raise RuntimeError("the service did not answer")


def _warm_answers(port: int, questions: Sequence[dict]) -> list[float]:
    """Milliseconds of each answer, over one connection."""
    times = []
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=_PATIENCE)) as connection:
        for question in questions:
            started = time.monotonic()
            path = "/search" if "query" in question else "/recommend"
            connection.request("POST", path, json.dumps(question).encode(), {"Content-Type": "application/json"})
            answer = connection.getresponse()
            content = answer.read()
            if answer.status != 200:
                raise ValueError(f"{question} was answered with {answer.status}: {content.decode()[:200]}")
            times.append(1000 * (time.monotonic() - started))
    return times


def _stop(process: subprocess.Popen) -> None:
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGTERM)
    try:
        process.communicate(timeout=_PATIENCE)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


# --- the process that answers ---


def _serve() -> None:
    """The service with clocks: `web.serve`, and a line of JSON with the seconds of each part before it opens."""
    begun = time.monotonic()
    facts = json.loads(sys.argv[1])
    folder, port, started = (facts.pop(name) for name in ("folder", "port", "started"))
    way, spent = Way(**facts), {"interpreter": begun - started}
    inside: dict[str, float] = {}  # of from_pretrained
    if not way.collector:
        gc.disable()  # as `semid serve` does first of all
    load = importlib.import_module
    for part, modules in _LIBRARIES.items():
        _clocked(spent, part, lambda modules=modules: [load(module) for module in modules])()
    compiled_at = sys.pycache_prefix
    if not way.compiled:
        sys.pycache_prefix = os.path.join(tempfile.gettempdir(), "nothing is compiled here")
    web = _clocked(spent, "our imports", lambda: load("semid_lib.serving.http.web"))()
    sys.pycache_prefix = compiled_at
    import uvicorn

    from semid_lib.ids import embed
    from semid_lib.serving import recommender, saved
    from semid_lib.serving.http.service import Service

    _clock(embed.Encoder, "__init__", spent, "text encoder")
    _clock(saved, "check_files", inside, "checksums")
    _clock(saved, "read_items", inside, "item table")
    _clock(recommender.Recommender, "from_pretrained", spent, "weights")
    _clock(web, "create_app", spent, "app")
    if not way.checksums:
        setattr(saved, "check_files", lambda *_, **__: None)  # noqa: B010
    if way.batches_first or way.forked:  # a fork beside the thread of the other warm-up would leave its locks locked
        one, batches = Service.warm_up, Service.warm_up_rest
        setattr(Service, "warm_up", lambda self: (one(self), batches(self)))  # noqa: B010
        setattr(Service, "warm_up_rest", lambda self: None)  # noqa: B010
    _clock(Service, "warm_up", spent, "warm-up")
    run = uvicorn.run

    def run_after_note(*args, **more) -> None:
        spent["weights"] -= sum(inside.values())
        spent["warm-up"] -= spent.get("text encoder", 0.0)
        print(json.dumps(spent | inside), flush=True)
        if way.forked:
            sys.stdin.readline()
            if child := os.fork():
                signal.signal(signal.SIGTERM, signal.SIG_IGN)  # it is for the child
                sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        run(*args, **more)

    setattr(uvicorn, "run", run_after_note)  # noqa: B010
    try:
        web.serve(folder, port=port)
    except (ValueError, OSError, ImportError) as error:
        sys.exit(f"cannot serve {folder}: {error}")


def _clocked(spent: dict[str, float], part: str, work: Callable) -> Callable:
    """The same work; what it takes is added to a part."""

    def clocked(*args, **more):
        started = time.monotonic()
        try:
            return work(*args, **more)
        finally:
            spent[part] = spent.get(part, 0.0) + time.monotonic() - started

    return clocked


def _clock(owner: Any, name: str, spent: dict[str, float], part: str) -> None:
    """Add the time of a function or method to a part, wherever it is called."""
    work = _clocked(spent, part, getattr(owner, name))
    setattr(owner, name, staticmethod(work) if isinstance(getattr(owner, name), MethodType) else work)
