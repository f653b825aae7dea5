"""One function on many batches, in order: in this process, in workers on this machine, or on a cluster of machines.

`embed.embed`, `assignment.codes_of`, `synthesis.synthesize` and `predict.predict` take `run`: `here` by default, or the
`map` of a `Cluster`, whose workers are actors of Ray (Moritz et al. 2018). Chapters pass `chosen()`, which reads the
environment. Both apply the same function to the same batches, so the answers and their order are the same. Where a sum
of floating-point numbers depends on the number of threads (a worker has one), the last digit may differ.

Not the function is sent but `load`, which makes it once in each worker and so keeps a model there. The function takes a
batch, an Arrow table, and returns a table with as many rows. Ray sends `load` by pickle, from this process to its
workers. On one machine only this user can reach them. Anyone who can reach a cluster can run any code there: keep it in
a separate network.
"""

import logging
import os
import secrets
import socket
import tempfile
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from typing import Any

import numpy as np
import pyarrow as pa

Load = Callable[[], Callable[[pa.Table], pa.Table]]
Run = Callable[[Load, Iterable[pa.Table]], Iterator[pa.Table]]

_RETRIES = 3  # of a batch whose worker died
_AHEAD = 4  # batches per worker that are sent before the first answer is used
_LOOPBACK = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"  # Ray's switch, read when ray is imported: 0 binds all to loopback


def cores() -> int:
    """How many cores this process may use, which may be fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class BatchError(RuntimeError):
    """A batch could not be done in a worker; the message names its rows, a note has the traceback."""


def here(load: Load, batches: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """Apply the function to each batch, in this process; its errors are raised as they are.

    Raises ValueError if it gives another number of rows than it was given.

    >>> def load():
    ...     return lambda batch: pa.table({"length": [len(text) for text in batch["text"].to_pylist()]})
    >>> [answer["length"].to_pylist() for answer in here(load, [pa.table({"text": ["red", "pens"]})])]
    [[3, 4]]
    """
    function = load()
    for batch in batches:
        yield _checked(function(batch), batch)


def chosen(n_workers: int | None = None, address: str | None = None) -> Run:
    """The way to run that is asked for: `here`, or the `map` of a `Cluster` that each call starts or joins, and leaves.

    n_workers, address: as of `Cluster`; if neither is given the environment says how many (SEMID_WORKERS) and where
    (SEMID_RAY_ADDRESS), and `here` it is if that is silent, too. Raises ValueError for a SEMID_WORKERS that is no
    number; what `Cluster` raises comes when the work begins.

    >>> chosen() is here  # nobody asked for anything
    True
    """
    if n_workers is None and address is None:
        wanted, address = os.environ.get("SEMID_WORKERS"), os.environ.get("SEMID_RAY_ADDRESS") or None
        if wanted and not wanted.isdecimal():
            raise ValueError(f"SEMID_WORKERS is {wanted!r}, expected a number of workers")
        n_workers = int(wanted) if wanted else None
    if n_workers is None and address is None:
        return here

    def run(load: Load, batches: Iterable[pa.Table]) -> Iterator[pa.Table]:
        with Cluster(n_workers, address) as cluster:
            yield from cluster.map(load, batches)

    return run


class Cluster:
    """Worker processes of one core each; a context manager. Needs the extra 'distributed'.

    n_workers: by default one for each core. address: "host:port" or "auto" for a cluster that runs already and that
    this machine has joined; by default one is started here, which takes seconds and ends with the context: on loopback,
    without a dashboard, and without a word to Ray's makers. Workers see no GPU.

    Raises ValueError for fewer than one worker, another kind of address, and more workers than the cluster has cores;
    RuntimeError if Ray is running in this process already; ConnectionError if Ray does not start, or does not answer at
    the address; ImportError that names the missing extra.
    """

    def __init__(self, n_workers: int | None = None, address: str | None = None):
        if n_workers is not None and n_workers < 1:
            raise ValueError(f"n_workers is {n_workers}, expected at least 1")
        if address is not None and (not address or "/" in address or address == "local"):
            raise ValueError(f"the address is {address!r}, expected host:port of a Ray cluster, or auto")
        self.n_workers, self.address = n_workers, address

    def __enter__(self) -> "Cluster":
        os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
        if self.address is None:
            os.environ[_LOOPBACK] = "0"
        try:
            import ray
        except ImportError as error:
            raise ImportError("workers need the extra 'distributed': pip install 'semid-lib[distributed]'") from error
        _knock(self.address)
        if ray.is_initialized():
            raise RuntimeError("Ray is running in this process already, expected ray.shutdown() before")
        with ExitStack() as opened:
            settings: dict[str, Any] = {"address": self.address}
            if self.address is None:
                os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))  # else it leaves one in the home folder
                folder = tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp", ignore_cleanup_errors=True)
                # one level down, since Ray opens its folder to everybody; the one above stays closed
                inner = os.path.join(opened.enter_context(folder), "ray")
                n_cores = self.n_workers or cores()
                settings = {"address": "local", "num_cpus": n_cores, "include_dashboard": False, "_temp_dir": inner}
            opened.callback(ray.shutdown)
            try:
                ray.init(**settings, log_to_driver=False, logging_level=logging.ERROR)
            except Exception as error:  # Ray raises many kinds, and sometimes just this
                raise ConnectionError(f"Ray ({settings['address']}) did not answer: {error}") from error
            if self.address is None and not ray.util.get_node_ip_address().startswith("127."):
                raise RuntimeError(f"ray was imported before {_LOOPBACK}=0 was set: restart Python and set it first")
            n_cores = int(ray.cluster_resources().get("CPU", 0))
            self.n_workers = self.n_workers or max(n_cores, 1)
            if self.n_workers > n_cores:
                raise ValueError(f"{self.n_workers} workers do not fit into a cluster of {n_cores} cores")
            self._close = opened.pop_all().close
        return self

    def __exit__(self, *_) -> None:
        self._close()

    def map(self, load: Load, batches: Iterable[pa.Table]) -> Iterator[pa.Table]:
        """Apply the function to each batch in a worker; results are in the order of the batches.

        Batches are streamed: a few per worker are read ahead of the first result. Workers take turns. They load when
        the first result is requested, and end with the last. If a worker dies, its batches are tried again, three times
        at most, and then once more one by one, since the death may have been the fault of another batch.

        Raises
        ------
        BatchError
            Names the rows where the function failed (it is not tried again), returned another number of rows, or killed
            its worker each time.
        """
        import ray

        new_worker: Any = ray.remote(num_cpus=1, max_restarts=-1, max_task_retries=_RETRIES)(_Worker)
        shared, row, n_workers = ray.put(load), 0, self.n_workers or 1
        workers: dict[int, Any] = {}  # by their turn; the last resort has -1
        sent: deque[tuple[Any, str, pa.Table]] = deque()  # answers to come, their rows, and the batches

        def alone(batch: pa.Table) -> Any:
            if -1 not in workers:  # beside the others, which have all cores
                workers[-1] = new_worker.options(num_cpus=0, max_task_retries=0).remote()
            return workers[-1].__call__.remote([shared], batch)

        try:
            for at, batch in enumerate(batches):
                if at < n_workers:
                    workers[at] = new_worker.remote()
                if len(sent) == _AHEAD * n_workers:
                    yield _received(*sent.popleft(), alone)
                answer = workers[at % n_workers].__call__.remote([shared], batch)  # in a list: `load` may fail there
                sent.append((answer, f"rows {row} to {row + len(batch) - 1}", batch))
                row += len(batch)
            while sent:
                yield _received(*sent.popleft(), alone)
        finally:
            for worker in workers.values():
                ray.kill(worker)


def _knock(address: str | None) -> None:
    """Raise ConnectionError if nobody listens at host:port, which Ray needs two minutes to say."""
    host, _, port = (address or "").rpartition(":")
    if host and port.isdecimal():
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
        except (OSError, OverflowError) as error:  # the second for a port that is none
            raise ConnectionError(f"Ray ({address}) did not answer: {error}") from error


def _received(coming: Any, rows: str, batch: pa.Table, alone: Callable[[pa.Table], Any]) -> pa.Table:
    """The answer to a batch, which is waited for. Raises BatchError."""
    import ray

    try:
        answer = ray.get(coming)
    except ray.exceptions.RayError:
        try:
            answer = ray.get(alone(batch))
        except ray.exceptions.RayError as error:
            raise BatchError(f"a worker died over {rows}, even when it had no others: {error}") from error
    if isinstance(answer, pa.Table):
        return answer
    message, trace = answer
    failure = BatchError(f"{rows}: {message}")
    failure.add_note(trace)
    raise failure


class _Worker:
    """Runs in a worker. Its errors are answers, so that they are raised in their place and nothing is tried again."""

    _function = None

    def __call__(self, shared: list, batch: pa.Table) -> pa.Table | tuple[str, str]:
        import ray

        try:
            if self._function is None:
                self._function = ray.get(shared[0])()
            return _checked(self._function(batch), batch)
        except Exception as error:
            return f"{type(error).__name__}: {error}", traceback.format_exc()


def _checked(answer: pa.Table, batch: pa.Table) -> pa.Table:
    if len(answer) != len(batch):
        raise ValueError(f"the function gave {len(answer)} rows, expected {len(batch)}, as many as the batch has")
    return answer


# --- rows of numbers as a column ---


def column(rows: np.ndarray) -> pa.FixedSizeListArray:
    """(n, dim) as a column of n lists; nothing is copied.

    >>> rows_of(pa.table({"vector": column(np.eye(2))}), "vector")
    array([[1., 0.],
           [0., 1.]])
    """
    return pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(rows).ravel()), rows.shape[1])


def rows_of(table: pa.Table, name: str) -> np.ndarray:
    """(n, dim) of a column that `column` made; read-only."""
    lists = table[name].combine_chunks()
    return lists.flatten().to_numpy().reshape(len(lists), lists.type.list_size)
