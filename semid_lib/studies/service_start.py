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
import hashlib
import http.client
import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from types import MethodType
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

if TYPE_CHECKING:  # the measured process begins with this module, and its imports must cost nothing
    import pandas as pd

    from semid_lib.data.dataset import Dataset

_PACKAGE = Path(__file__).resolve().parents[1]
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

    bytecode: Literal["all", "not ours", "none"] = "all"  # which modules were compiled before
    collector: bool = False  # leave Python's garbage collector on while importing and loading
    checksums: bool = True  # hold the files of the folder against those in config.json
    batches_first: bool = False  # warm up for batches, which loads numba, before the service opens
    kernel_cache: bool = True  # find what numba compiled at an earlier start
    forked: bool = False  # from a process that has loaded everything: what a memory snapshot aims at


WAYS = {
    "as it is": Way(),
    "forked when loaded": Way(forked=True),
    "without checksums": Way(checksums=False),
    "collector left on": Way(collector=True),
    "our code not compiled": Way(bytecode="not ours"),
    "nothing compiled": Way(bytecode="none"),
    "batches first": Way(batches_first=True),
    "batches first, no kernel kept": Way(batches_first=True, kernel_cache=False),
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
    with ExitStack() as stack:
        temporary = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        with closing(socket.socket()) as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        said = temporary / "said"
        errors = stack.enter_context(open(said, "w", encoding="utf-8"))
        command = [sys.executable, "-c", "from semid_lib.studies.service_start import _serve; _serve()"]
        facts = {"folder": str(folder), "port": port, "nothing": str(temporary / "nothing"), **vars(way)}
        environment = _environment(way, temporary) | {"SEMID_COLD_START": json.dumps(facts)}
        if way.bytecode == "all":
            compileall.compile_dir(_PACKAGE, quiet=2)
        started = time.monotonic()
        process = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            start_new_session=True,
        )
        stack.callback(_stop, process)
        assert process.stdin and process.stdout
        line = process.stdout.readline()  # just before the server begins
        if not line:
            raise ValueError(_last_words(said) or f"the service of {folder} ended before it began")
        stamps = json.loads(line)
        if way.forked:
            stamps, started = {}, time.monotonic()
            process.stdin.write(b"\n")
            process.stdin.flush()
        answered = _first_answer(process, port, questions[0], said)
        parts = _parts(stamps, started, answered)
        return Start(parts, _warm_answers(port, questions[1:]))


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

    turns = [(repeat, name) for repeat in range(repeats) for name in ways]
    rows = {}
    for repeat, name in tqdm(turns, desc="cold starts", unit="start", disable=not progress):
        seconds, warm = measure(folder, questions, ways[name])
        p50, p99 = np.percentile(warm, [50, 99]) if warm else (np.nan, np.nan)
        rows[name, repeat] = {part: seconds.get(part, 0.0) for part in PARTS}
        rows[name, repeat] |= {"total": sum(seconds.values()), "p50": p50, "p99": p99}
    found = pd.DataFrame(rows).T.rename_axis(["way", "repeat"])
    return found.loc[list(ways)]


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
    run = subprocess.run(command, capture_output=True, text=True, check=True, env=_environment(Way(), Path()))
    seconds: dict[str, list[float]] = {}
    for line in run.stderr.splitlines():
        head, _, rest = line.partition("import time:")
        own, _, named = rest.partition("|")
        if head or not own.strip().isdigit():
            continue
        package = named.rpartition("|")[2].strip().partition(".")[0]
        seconds.setdefault("Python's own" if package in sys.stdlib_module_names else package, []).append(int(own) / 1e6)
    rows = {package: {"seconds": sum(own), "modules": len(own)} for package, own in seconds.items()}
    return pd.DataFrame(rows).T.rename_axis("package").sort_values("seconds", ascending=False)


# --- the process that asks ---


def _environment(way: Way, temporary: Path) -> dict[str, str]:
    environment = {**os.environ, "PYTHONPATH": str(_PACKAGE.parent)}
    environment.pop("SEMID_TOKEN", None)
    if way.bytecode != "all":
        environment["PYTHONDONTWRITEBYTECODE"] = "1"
    if way.bytecode == "none":
        environment["PYTHONPYCACHEPREFIX"] = str(temporary / "nothing")
    if not way.kernel_cache:
        environment["NUMBA_CACHE_DIR"] = str(temporary / "kernels")
    if way.forked:
        environment["OMP_NUM_THREADS"] = "1"  # threads of OpenMP do not live through a fork
    return environment


def _first_answer(process: subprocess.Popen, port: int, question: dict, said: Path) -> float:
    """When the first answer came."""
    late = time.monotonic() + _PATIENCE
    while process.poll() is None and time.monotonic() < late:
        try:
            with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=_PATIENCE)) as connection:
                _ask(connection, question)
            return time.monotonic()
        except OSError:
            time.sleep(0.002)
    raise RuntimeError(_last_words(said) or "the service did not answer")


def _warm_answers(port: int, questions: Sequence[dict]) -> list[float]:
    times = []
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=_PATIENCE)) as connection:
        for question in questions:
            started = time.monotonic()
            _ask(connection, question)
            times.append(1000 * (time.monotonic() - started))
    return times


def _ask(connection: http.client.HTTPConnection, question: dict) -> None:
    path = "/search" if "query" in question else "/recommend"
    connection.request("POST", path, json.dumps(question).encode(), {"Content-Type": "application/json"})
    answer = connection.getresponse()
    content = answer.read()
    if answer.status != 200:
        raise ValueError(f"{question} was answered with {answer.status}: {content.decode()[:200]}")


def _parts(stamps: dict[str, Any], started: float, answered: float) -> dict[str, float]:
    """The time between process start and first answer, by part; time without a clock belongs to the last one."""
    parts = {"interpreter": stamps["begun"] - started, **stamps["spent"]} if stamps else {}
    parts[PARTS[-1]] = answered - started - sum(parts.values())
    return {part: parts[part] for part in PARTS if part in parts}


def _last_words(said: Path) -> str:
    return (said.read_text(encoding="utf-8").strip().splitlines() or [""])[-1]


def _stop(process: subprocess.Popen) -> None:
    assert process.stdin and process.stdout
    with closing(process.stdin), closing(process.stdout):
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


# --- the process that answers ---


def _serve() -> None:
    """The service with clocks: `web.serve`, and a line of stamps before the server opens."""
    begun = time.monotonic()
    spent: dict[str, float] = {}
    inside: dict[str, float] = {}  # of from_pretrained
    facts = json.loads(os.environ.pop("SEMID_COLD_START"))
    folder, port, nothing = (facts.pop(name) for name in ("folder", "port", "nothing"))
    way = Way(**facts)
    if not way.collector:
        gc.disable()  # as `semid serve` does first of all
    for part, modules in _LIBRARIES.items():
        _clocked(spent, part, lambda modules=modules: [importlib.import_module(module) for module in modules])()
    compiled_at = sys.pycache_prefix
    if way.bytecode == "not ours":
        sys.pycache_prefix = nothing
    web = _clocked(spent, "our imports", lambda: importlib.import_module("semid_lib.serving.http.web"))()
    sys.pycache_prefix = compiled_at
    import uvicorn

    from semid_lib.ids import embed
    from semid_lib.serving import recommender, saved
    from semid_lib.serving.http.service import Service

    _clock(embed.Encoder, "__init__", spent, "text encoder")
    _clock(hashlib, "file_digest", inside, "checksums")
    _clock(saved, "read_items", inside, "item table")
    _clock(recommender.Recommender, "from_pretrained", spent, "weights")
    _clock(web, "create_app", spent, "app")
    if not way.checksums:
        _replace(saved, "check_files", lambda *_, **__: None)
    if way.batches_first or way.forked:  # a fork beside the thread of the other warm-up would leave its locks locked
        one, batches = Service.warm_up, Service.warm_up_rest
        _replace(Service, "warm_up", lambda self: (one(self), batches(self)))
        _replace(Service, "warm_up_rest", lambda self: None)
    _clock(Service, "warm_up", spent, "warm-up")
    run = uvicorn.run
    _replace(uvicorn, "run", lambda *args, **more: _open(run, way, begun, spent, inside, args, more))
    try:
        web.serve(folder, port=port)
    except (ValueError, OSError, ImportError) as error:
        sys.exit(f"cannot serve {folder}: {error}")


def _open(run: Callable, way: Way, begun: float, spent: dict, inside: dict, args: tuple, more: dict) -> None:
    spent["weights"] -= sum(inside.values())
    spent["warm-up"] -= spent.get("text encoder", 0.0)
    print(json.dumps({"begun": begun, "spent": spent | inside}), flush=True)
    if way.forked:
        sys.stdin.readline()
        if child := os.fork():
            signal.signal(signal.SIGTERM, signal.SIG_IGN)  # it is for the child
            sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    run(*args, **more)


def _clocked(spent: dict[str, float], part: str, work: Callable) -> Callable:
    """The same work; what it takes is added to a part."""

    def clocked(*args, **more):
        started = time.monotonic()
        try:
            return work(*args, **more)
        finally:
            spent[part] = spent.get(part, 0.0) + time.monotonic() - started

    return clocked


def _replace(owner: Any, name: str, work: Callable) -> None:
    setattr(owner, name, work)


def _clock(owner: Any, name: str, spent: dict[str, float], part: str) -> None:
    """Add the time of a function or method to a part, wherever it is called."""
    work = _clocked(spent, part, getattr(owner, name))
    _replace(owner, name, staticmethod(work) if isinstance(getattr(owner, name), MethodType) else work)
