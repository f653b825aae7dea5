"""One function on many batches, in order: in this process, in workers on this machine, or on a cluster of machines.

What can be shared out (`embed.embed`, `semantic_ids.codes_of`, `queries.synthesize`, `predict.predict`) takes `run`:
`here` by default, or the `map` of a `Cluster`, which is Ray Data (Moritz et al. 2018 for Ray); the chapters take
`chosen()`, so that the environment says which. Both apply the same function to the same batches, so the answers are the
same and in the same order; where another number of threads adds up floating-point numbers (a worker has one thread),
their last digit may differ.

The function itself is not sent: `load` is, and makes it once in each worker, where a model is then kept. It takes a
batch, an Arrow table, and gives a table of as many rows. Ray sends `load` by pickle, from this process to its workers.
On one machine nobody else can speak to them; who can speak to a cluster may run anything there, so it must be in a
network of its own.
"""

import logging
import os
import secrets
import socket
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack

import numpy as np
import pyarrow as pa

Load = Callable[[], Callable[[pa.Table], pa.Table]]
Run = Callable[[Load, Iterable[pa.Table]], Iterator[pa.Table]]

_RETRIES = 3  # of a batch whose worker died
_FAILED = ["the function failed", "its traceback"]  # columns of what a worker gives instead of an answer


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

    n_workers: by default one for each core (or for each `gpus` GPUs). address: "host:port" or "auto" for a cluster that
    runs already and that this machine has joined; by default one is started here, which takes seconds and ends with
    the context: on loopback, without a dashboard, and without a word to Ray's makers. gpus: that each worker has for
    itself; with 0 it sees none.

    Raises ValueError for fewer than one worker, negative `gpus`, another kind of address, and more workers than the
    cluster has cores or GPUs for; RuntimeError if Ray is running in this process already; ConnectionError if Ray does
    not start, or does not answer at the address; ImportError that names the missing extra.
    """

    def __init__(self, n_workers: int | None = None, address: str | None = None, gpus: int = 0):
        if n_workers is not None and n_workers < 1:
            raise ValueError(f"n_workers is {n_workers}, expected at least 1")
        if gpus < 0:
            raise ValueError(f"gpus is {gpus}, expected at least 0")
        if address is not None and (not address or "/" in address or address == "local"):
            raise ValueError(f"the address is {address!r}, expected host:port of a Ray cluster, or auto")
        self.n_workers, self.address, self.gpus = n_workers, address, gpus

    def __enter__(self) -> "Cluster":
        os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
        try:
            import ray.data
        except ImportError as error:
            raise ImportError("workers need the extra 'distributed': pip install 'semid-lib[distributed]'") from error
        _knock(self.address)
        if ray.is_initialized():
            raise RuntimeError("Ray is running in this process already, expected ray.shutdown() before")
        with ExitStack() as opened:
            settings = {"address": self.address, "log_to_driver": False, "logging_level": logging.ERROR}
            if self.address is None:
                folder = tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp", ignore_cleanup_errors=True)
                # one level down, since Ray opens its folder to everybody; the one above stays closed
                settings |= self._on_loopback() | {"_temp_dir": os.path.join(opened.enter_context(folder), "ray")}
            opened.callback(ray.shutdown)
            try:
                ray.init(**settings)
            except Exception as error:  # Ray raises many kinds, and sometimes just this
                raise ConnectionError(f"Ray ({settings['address']}) did not answer: {error}") from error
            self.n_workers = self._room(ray.cluster_resources())
            self._close = opened.pop_all().close
        return self

    def __exit__(self, *_) -> None:
        self._close()

    def map(self, load: Load, batches: Iterable[pa.Table]) -> Iterator[pa.Table]:
        """Apply the function to each batch in a worker; results come in the order of the batches, as they are ready.

        All batches are put into Ray's memory first, which spills over to disk; the workers load when the first result
        is asked for, and end with the last. The batch of a worker that dies is done again, three times at most.

        Raises BatchError that names the rows where the function failed (it is not tried again), gave another number of
        rows, or killed its worker each time.
        """
        import ray.data

        shared, lengths, blocks = ray.put(load), [], []
        for batch in batches:
            lengths.append(len(batch))
            blocks.append(ray.put(batch))
        if not blocks:
            return
        starts = np.cumsum([0, *lengths]).tolist()
        at = 0  # the batch that is waited for
        try:
            for answer in self._results(blocks, shared):
                if answer.column_names == _FAILED:
                    message, trace = (column[0].as_py() for column in answer.columns)
                    error = BatchError(f"rows {starts[at]} to {starts[at + 1] - 1}: {message}")
                    error.add_note(trace)
                    raise error
                yield answer
                at += 1
        except ray.exceptions.RayError as error:
            what = f"a worker died over rows {starts[at]} to {starts[at + 1] - 1} or after"
            raise BatchError(f"{what}, {_RETRIES + 1} times: {error}") from error

    def _results(self, blocks: list, shared) -> Iterator[pa.Table]:
        """One table a block, in order."""
        import ray.data

        context = ray.data.DataContext.get_current().copy()
        context.execution_options.preserve_order = True
        context.target_max_block_size = None  # however large, an answer stays one
        context.enable_progress_bars = context.print_on_execution_start = False
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        with ray.data.DataContext.current(context), warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of `max_task_retries`, which goes with Ray 2.64
            answers = ray.data.from_arrow_refs(blocks).map_batches(
                _Worker,
                fn_constructor_args=(shared,),
                batch_size=None,  # a block is a batch
                batch_format="pyarrow",
                compute=ray.data.ActorPoolStrategy(size=self.n_workers),
                num_cpus=1,
                num_gpus=self.gpus,
                max_task_retries=_RETRIES,
            )
            return iter(answers.iter_batches(batch_size=None, batch_format="pyarrow"))

    def _on_loopback(self) -> dict:
        """Settings of a cluster on this machine that nobody else can speak to."""
        import ray._private.ray_constants

        ray._private.ray_constants.ENABLE_RAY_CLUSTER = False  # its own switch for one machine: all is on loopback
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))  # else it leaves one in the home folder
        n_cores = self.n_workers or len(os.sched_getaffinity(0))
        return {"address": "local", "num_cpus": n_cores, "include_dashboard": False}

    def _room(self, resources: dict[str, float]) -> int:
        room = int(resources.get("CPU", 0))
        if self.gpus:
            room = min(room, int(resources.get("GPU", 0)) // self.gpus)
        wanted = self.n_workers or max(room, 1)
        if wanted > room:
            has = f"{resources.get('CPU', 0):g} cores and {resources.get('GPU', 0):g} GPUs"
            raise ValueError(f"{wanted} workers with {self.gpus} GPUs each do not fit into a cluster of {has}")
        return wanted


def _knock(address: str | None) -> None:
    """Raise ConnectionError if nobody listens at host:port, which Ray needs two minutes to say."""
    host, _, port = (address or "").rpartition(":")
    if host and port.isdecimal():
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
        except (OSError, OverflowError) as error:  # the second for a port that is none
            raise ConnectionError(f"Ray ({address}) did not answer: {error}") from error


class _Worker:
    """What runs in a worker; errors are answers, so that they are raised in their place and nothing is tried again."""

    def __init__(self, shared):
        self._shared, self._function = shared, None

    def __call__(self, batch: pa.Table) -> pa.Table:
        import ray

        try:
            if self._function is None:
                self._function = ray.get(self._shared)()
            return _checked(self._function(batch), batch)
        except Exception as error:
            texts = f"{type(error).__name__}: {error}", traceback.format_exc()
            return pa.table({name: [text] for name, text in zip(_FAILED, texts, strict=True)})


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
