"""Answer a file of histories or queries, or the histories of a data set.

`batch_io` lists the formats of the input. The output is CSV, JSONL or Parquet by its ending. It has one record per
answered record, in the order of the input: `user_id` (or `query`), `item_ids` and `scores`, best first. Paths may be
addresses such as "s3://bucket/folder" (`remote`); work is then kept next to the local copy of the output.

Item ids are the shop's own, text or integers. In JSONL all are text if one is an integer beyond 2^53. In CSV they are
separated by spaces, or a JSON list if an id of the catalogue has spaces.

Each answered block is saved in the folder `<output>.parts`, so a run that was killed resumes there; the result is the
same to the last byte. The output appears atomically. Records that cannot be answered are in `<output>.rejected` with
line and reason.
"""

import contextlib
import csv
import itertools
import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from filelock import FileLock, Timeout
from tqdm.auto import tqdm

from semid_lib.data.item_ids import ItemIds
from semid_lib.serving import batch_io
from semid_lib.serving.recommender import Recommender
from semid_lib.workbench import remote, workers
from semid_lib.workbench.atomic import fresh_file
from semid_lib.workbench.store import sha256
from semid_lib.workbench.text import check_count, shown

BLOCK = 4096  # records that are answered, and saved, together
_BLOCK_BYTES = 2**21  # or fewer that have so many bytes: their item ids take up to 100 MiB while they are read

Source = batch_io.RecordFile | batch_io.DataHistories


class Outcome(NamedTuple):
    """Records that were answered and rejected, in this run and in the interrupted ones that it resumed."""

    answered: int
    rejected: int


def predict(
    recommender: Recommender,
    model_facts: str,
    input_path: str | Path | Source,
    output_path: str | Path,
    k: int = 10,
    queries: bool = False,
    progress: bool = False,
    run: workers.Run = workers.here,
) -> Outcome:
    """Answer every record of a file; items of a history are left out as the recommender was made.

    Parameters
    ----------
    recommender : Recommender
    model_facts : str
        Identifies the model, such as its commit or the checksum of its `config.json`. An interrupted run is resumed if
        model, input, settings and version are the same, and starts again otherwise.
    input_path : str, Path or batch_io.DataHistories
    output_path : str or Path
        Ends in one of `ENDINGS`.
    k : int
        Items per record, fewer where the catalogue has fewer.
    queries : bool
        The input has texts instead of histories.
    run : workers.Run
        Where to do the work.

    Raises
    ------
    ValueError
        For another ending, an input that `batch_io.RecordFile` refuses as a whole or that changes while it is read,
        k < 1, or a model that cannot answer this.
    OSError
        If a file cannot be read or written, as on a full disk; the output is then unchanged.
    BlockingIOError
        If another run is writing the same output.
    """
    place, output_path = output_path, remote.local(output_path)
    if remote.is_remote(place):
        output_path.parent.mkdir(parents=True, exist_ok=True)
    load = _loader(recommender, k, queries)
    with _opened(input_path, output_path, k, queries) as source:
        settings = [output_path.suffix, int(k), queries, BLOCK, _BLOCK_BYTES]
        facts = {"model": model_facts, "input": source.facts(), "settings": settings}
        with _Work(output_path, {"version": metadata.version("semid-lib"), **facts}) as work:
            _answer(source, load, run, work, progress)
            outcome = work.publish("query" if queries else "user_id", recommender.item_ids)
            _send(place, output_path)
            shutil.rmtree(work.folder)
    return outcome


def predict_folder(
    model: str | Path, source: str | Path | Source, output_path: str | Path, revision: str | None = None, **how: Any
) -> Outcome:
    """Load a recommender by `from_pretrained` and `predict`: its commit or checksum identifies the work to resume."""
    recommender = Recommender.from_pretrained(model, revision=revision)
    facts = str(recommender.source or sha256(remote.local(model) / "config.json"))
    return predict(recommender, facts, source, output_path, **how)


def can_resume(output_path: str | Path) -> bool:
    """Whether an interrupted run left finished blocks next to an output."""
    return _beside(remote.local(output_path), ".parts").exists()


def answers(
    recommender: Recommender, source: str | Path | Source, k: int = 10, queries: bool = False
) -> Iterator[dict | batch_io.Record]:
    """Answer records one by one, with titles and without an output file; arguments and errors as for `predict`.

    Yields
    ------
    dict or batch_io.Record
        `user_id` (or `query`), `item_ids`, `scores` and `titles`, or a record that cannot be answered, with its reason.
    """
    load = _loader(recommender, k, queries)
    titles = recommender.items.get("title", pd.Series([None] * len(recommender.items))).tolist()
    ids, name = recommender.item_ids.for_json, "query" if queries else "user_id"
    with _opened(source, None, k, queries) as found:
        for block in workers.here(load, _blocks(found)):
            rejected = block.filter(pc.is_valid(block["reason"])).drop_columns(["rows", "scores"])
            yield from (batch_io.Record(**row, item_ids=[]) for row in rejected.to_pylist())
            for one in _answered(block):
                yield _fields(name, ids, one) | {"titles": [titles[row] for row in one.rows]}
        found.check()


def check(input_path: str | Path, output_path: str | Path, k: int, queries: bool) -> None:
    """Refuse bad input before a model is loaded; raises as `predict` does."""
    with _opened(input_path, Path(output_path), k, queries):
        pass


@contextlib.contextmanager
def _opened(where: str | Path | Source, path: Path | None, k: int, queries: bool) -> Iterator[Source]:
    """Open the input; refuse it, or the output path, before anything is written."""
    check_count("topk", k)
    if path is not None and path.suffix not in ENDINGS:
        raise ValueError(f"{path} ends in {path.suffix!r}, expected {', '.join(ENDINGS)}")
    if path is not None and not path.parent.is_dir():
        raise ValueError(f"{path.parent} is not a folder: create it, or choose another output")
    if path is not None and path.is_dir():
        raise ValueError(f"{path} is a folder, expected the name of a file")
    with batch_io.RecordFile(remote.fetch(where), queries) if isinstance(where, str | Path) else where as source:
        if path is not None and source.path is not None and source.path.resolve() == path.resolve():
            raise ValueError(f"{path} is the input as well: choose another output")
        next(iter(source), None)
        yield source


def _loader(recommender: Recommender, k: int, queries: bool) -> workers.Load:
    if (recommender.searcher if queries else recommender.model) is None:
        kind, chapter = ("search", "05 or 10") if queries else ("next-item", "07")
        raise ValueError(f"the folder has no {kind} model: train one (chapter {chapter})")
    return partial(_Answerer, recommender, k, queries)


def _answer(source: Source, load: workers.Load, run: workers.Run, work: "_Work", progress: bool) -> None:
    with tqdm(total=source.n_bytes, desc="answering", unit="B", unit_scale=True, disable=not progress) as bar:
        records = iter(source)
        bar.update(sum(record.n_bytes for record in itertools.islice(records, work.n_records)))
        for block in run(load, _blocks(records)):
            source.check()
            work.save(block)
            bar.update(pc.sum(block["n_bytes"]).as_py())
        source.check()


def _send(place: str | Path, output_path: Path) -> None:
    """To a remote place; nothing is done for a path of this machine."""
    if remote.is_remote(place):
        try:
            remote.send(place)
            remote.send(f"{place}.rejected")
        except (ValueError, ConnectionError) as error:
            raise ConnectionError(f"{error}; the finished output is {output_path}") from error


# --- blocks of records, as Arrow tables: Python's objects take 20 times as much memory ---

_RECORDS = pa.schema(
    {"line": pa.int64(), "n_bytes": pa.int64(), "text": pa.string(), "key": pa.string()}
    | {"item_ids": pa.list_(pa.string()), "reason": pa.string()}
)
_ANSWERS = {"rows": pa.list_(pa.int64()), "scores": pa.list_(pa.float32())}


class _Answered(NamedTuple):
    key: str
    rows: list[int]  # of the item table, best first
    scores: list[float]


def _blocks(records: Iterable[batch_io.Record]) -> Iterator[pa.Table]:
    block: list[batch_io.Record] = []
    n_bytes = 0
    for record in records:
        block.append(record)
        n_bytes += record.n_bytes
        if len(block) == BLOCK or n_bytes >= _BLOCK_BYTES:
            table, block, n_bytes = _as_table(block), [], 0
            yield table
    if block:
        yield _as_table(block)


def _as_table(block: list[batch_io.Record]) -> pa.Table:
    return pa.table([list(column) for column in zip(*block, strict=True)], schema=_RECORDS)


def _answered(block: pa.Table) -> Iterator[_Answered]:
    """The answered records of a block from `_Answerer`."""
    found = block.filter(pc.is_null(block["reason"])).select(list(_Answered._fields))
    return itertools.starmap(_Answered, zip(*(column.to_pylist() for column in found.columns), strict=True))


class _Answerer:
    """Takes a block of records and returns it with answers, or reasons why there are none, in place of item ids."""

    def __init__(self, recommender: Recommender, k: int, queries: bool):
        self.recommender, self.k, self.queries = recommender, min(int(k), len(recommender.items)), queries
        self.row_of = recommender.item_ids.row_of

    def __call__(self, block: pa.Table) -> pa.Table:
        reasons, histories = block["reason"].to_pylist(), []
        for at, value in enumerate(block["item_ids"]):  # one by one: see _BLOCK_BYTES
            item_ids = value.as_py()
            histories.append(np.array([self.row_of.get(item_id, -1) for item_id in item_ids], dtype=np.int64))
            if reasons[at] is None and (histories[at] < 0).any():
                unknown = item_ids[int((histories[at] < 0).argmax())]
                reasons[at] = f"item id {shown(unknown)} is not in the catalogue"
        readable = [at for at, reason in enumerate(reasons) if reason is None]
        rows: list[list[int]] = [[] for _ in histories]
        scores: list[list[float]] = [[] for _ in histories]
        if readable:
            found = self._rank([histories[at] for at in readable], block["key"].take(readable).to_pylist())
            for at, row, score in zip(readable, *found, strict=True):
                n = int((row >= 0).sum())  # empty places are at the end
                rows[at], scores[at] = row[:n].tolist(), score[:n].tolist()
        block = block.set_column(block.column_names.index("reason"), "reason", pa.array(reasons, pa.string()))
        block = block.drop_columns(["item_ids"])
        for name, values in zip(_ANSWERS, (rows, scores), strict=True):
            block = block.append_column(name, pa.array(values, _ANSWERS[name]))
        return block

    def _rank(self, histories: list[np.ndarray], keys: list[str]) -> tuple[np.ndarray, np.ndarray]:
        """Item rows and scores, each (n, k), with -1 and -inf where there are fewer than k."""
        if self.queries:
            return self.recommender.searcher.search(keys, self.k)
        return self.recommender.rank(histories, self.k)


class _Work:
    """Answered blocks in the folder `<output>.parts`; a context manager that locks the output against other runs.

    Each block is a file that is written atomically, so a run that was killed resumes after the last one. The output is
    written from all blocks; the folder is deleted last, so a run that was killed before answers nothing again.
    """

    def __init__(self, output: Path, facts: dict):
        self.output, self.folder, self._facts = output, _beside(output, ".parts"), json.dumps(facts)

    def __enter__(self) -> "_Work":
        with contextlib.ExitStack() as opened:
            opened.enter_context(_locked(self.output))
            facts = self.folder / "facts.json"
            if not facts.is_file() or facts.read_text(encoding="utf-8") != self._facts:
                shutil.rmtree(self.folder, ignore_errors=True)
                with fresh_file(facts) as path:
                    path.write_text(self._facts, encoding="utf-8")
            n_blocks = next(at for at in itertools.count() if not self._block(at).is_file())
            self._paths = [self._block(at) for at in range(n_blocks)]
            self.n_records = sum(pq.read_metadata(path).num_rows for path in self._paths)
            self._close = opened.pop_all().close
        return self

    def __exit__(self, *_) -> None:
        self._close()

    def _block(self, at: int) -> Path:
        return self.folder / f"{at:06}.parquet"

    def save(self, block: pa.Table) -> None:
        """Keep an answered block, so that it is not answered again."""
        path = self._block(len(self._paths))
        with fresh_file(path) as partial:
            pq.write_table(block, partial)
        self._paths.append(path)

    def publish(self, name: str, item_ids: ItemIds) -> Outcome:
        """Write the output and the rejected records, and move them to their places, the output last."""
        rejected, output = self.folder / "rejected", self.folder / "output"
        n_rejected = n_records = 0
        with fresh_file(rejected) as path, open(path, "w", encoding="utf-8") as stream:
            for block in map(pq.read_table, self._paths):
                refused = block.filter(pc.is_valid(block["reason"])).select(["line", "reason", "text"])
                stream.writelines(json.dumps(one, ensure_ascii=False) + "\n" for one in refused.to_pylist())
                n_records, n_rejected = n_records + len(block), n_rejected + len(refused)
        with fresh_file(output) as path:
            _WRITERS[self.output.suffix](path, name, item_ids, map(_answered, map(pq.read_table, self._paths)))
        if n_rejected:
            rejected.replace(_beside(self.output, ".rejected"))
        else:
            _beside(self.output, ".rejected").unlink(missing_ok=True)
        output.replace(self.output)
        return Outcome(n_records - n_rejected, n_rejected)


def _beside(path: Path, ending: str) -> Path:
    return path.with_name(path.name + ending)


@contextlib.contextmanager
def _locked(output: Path) -> Iterator[None]:
    """One run at a time; the lock of a process ends with it. Raises BlockingIOError if another run has it."""
    lock = FileLock(_beside(output, ".lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise BlockingIOError(f"another run is writing {output}: wait for it, or choose another output") from None
    try:
        yield
    finally:
        with contextlib.suppress(PermissionError):  # Windows deletes it on release
            Path(lock.lock_file).unlink(missing_ok=True)  # a run that has it open already notices, and opens a new one
        lock.release()


# --- formats of the output ---

_Blocks = Iterable[Iterable[_Answered]]


def _write_csv(path: Path, name: str, item_ids: ItemIds, blocks: _Blocks) -> None:
    ids = list(map(str, item_ids.values))
    plain = all(not text.startswith("[") and text.split() == [text] for text in ids)
    with open(path, "w", encoding="utf-8", newline="") as stream:
        # with its own line ends, csv quotes all others, also a lone \r
        write = SimpleNamespace(write=lambda line: stream.write(line.removesuffix("\r\n") + "\n"))
        writer = csv.writer(write)
        writer.writerow([name, "item_ids", "scores"])
        for one in itertools.chain.from_iterable(blocks):
            found = [ids[row] for row in one.rows]
            cell = " ".join(found) if plain else json.dumps(found, ensure_ascii=False)
            writer.writerow([one.key, cell, " ".join(map(_short, one.scores))])


def _write_jsonl(path: Path, name: str, item_ids: ItemIds, blocks: _Blocks) -> None:
    ids = item_ids.for_json
    with open(path, "w", encoding="utf-8") as stream:
        for one in itertools.chain.from_iterable(blocks):
            stream.write(json.dumps(_fields(name, ids, one), ensure_ascii=False) + "\n")


def _fields(name: str, ids: Sequence[int | str], one: _Answered) -> dict[str, Any]:
    scores = [float(_short(score)) for score in one.scores]
    return {name: one.key, "item_ids": [ids[row] for row in one.rows], "scores": scores}


def _write_parquet(path: Path, name: str, item_ids: ItemIds, blocks: _Blocks) -> None:
    ids = item_ids.values.tolist()
    kind = pa.int64() if all(type(one) is int and -(2**63) <= one < 2**63 for one in ids) else pa.string()
    ids = ids if kind == pa.int64() else list(map(str, ids))
    schema = pa.schema({name: pa.string(), "item_ids": pa.list_(kind), "scores": pa.list_(pa.float32())})
    with pq.ParquetWriter(path, schema) as writer:
        for block in blocks:
            lines = [(one.key, [ids[row] for row in one.rows], one.scores) for one in block]
            if lines:
                writer.write_table(pa.table([list(column) for column in zip(*lines, strict=True)], schema=schema))


_Writer = Callable[[Path, str, ItemIds, _Blocks], None]
_WRITERS: dict[str, _Writer] = {".csv": _write_csv, ".jsonl": _write_jsonl, ".parquet": _write_parquet}
ENDINGS = tuple(_WRITERS)


def _short(score: float) -> str:
    """The shortest text that gives the same float32."""
    return str(np.float32(score))
