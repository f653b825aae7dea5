"""Answer a file of histories or queries.

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
import hashlib
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


class Outcome(NamedTuple):
    """Records that were answered and rejected, in this run and in the interrupted ones that it resumed."""

    answered: int
    rejected: int
    skipped: int = 0  # items of the histories that were left out, because they were removed from the catalogue

    def __str__(self) -> str:
        removed = f", items of histories left out as removed: {self.skipped}" if self.skipped else ""
        return f"{self.answered} records answered, {self.rejected} rejected{removed}"


def predict(
    recommender: Recommender,
    model_facts: str,
    input_path: str | Path,
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
    input_path : str or Path
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
    load, name = _loader(recommender, k, queries), "query" if queries else "user_id"
    with opened(input_path, output_path, k, queries) as source, _locked(output_path) as parts:
        settings = [output_path.suffix, int(k), queries, BLOCK, _BLOCK_BYTES]
        facts = json.dumps([metadata.version("semid-lib"), model_facts, source.facts(), settings])
        folder = parts / hashlib.sha256(facts.encode()).hexdigest()[:16]  # blocks of other work are not used
        paths = _answer(source, load, run, folder, progress)
        outcome = _publish(paths, folder, output_path, name, recommender.item_ids)
        if remote.is_remote(place):
            try:
                remote.send(place)
                remote.send(f"{place}.rejected")
            except (ValueError, ConnectionError) as error:
                raise ConnectionError(f"{error}; the finished output is {output_path}") from error
        shutil.rmtree(parts, ignore_errors=True)  # Windows does not delete the lock
    return outcome


def predict_folder(
    model: str | Path, input_path: str | Path, output_path: str | Path, how: dict[str, Any], **more: Any
) -> Outcome:
    """Load a recommender by `from_pretrained(model, **how)` and `predict`; its commit or checksum identifies it."""
    recommender = Recommender.from_pretrained(model, **how)
    facts = str(recommender.source or sha256(remote.local(model) / "config.json"))
    return predict(recommender, facts, input_path, output_path, **more)


def can_resume(output_path: str | Path) -> bool:
    """Whether an interrupted run left finished blocks next to an output."""
    return _beside(remote.local(output_path), ".parts").exists()


@contextlib.contextmanager
def opened(where: str | Path, output: Path, k: int, queries: bool) -> Iterator[batch_io.RecordFile]:
    """Open the input; refuse it, or the path of the output, before anything is written. Raises as `predict` does."""
    check_count("topk", k)
    if output.suffix not in ENDINGS:
        raise ValueError(f"{output} ends in {output.suffix!r}, expected {', '.join(ENDINGS)}")
    if not output.parent.is_dir():
        raise ValueError(f"{output.parent} is not a folder: create it, or choose another output")
    with batch_io.RecordFile(remote.fetch(where), queries) as source:
        if output.is_dir() or output.resolve() == source.path.resolve():
            found = "a folder" if output.is_dir() else "the input as well"
            raise ValueError(f"{output} is {found}: choose another output")
        next(iter(source), None)
        yield source


def _loader(recommender: Recommender, k: int, queries: bool) -> workers.Load:
    if (recommender.searcher if queries else recommender.model) is None:
        kind, chapter = ("search", "05 or 10") if queries else ("next-item", "07")
        raise ValueError(f"the folder has no {kind} model: train one (chapter {chapter})")
    return partial(partial, _with_answers, recommender, min(int(k), len(recommender.items)), queries)


def _answer(
    source: batch_io.RecordFile, load: workers.Load, run: workers.Run, folder: Path, progress: bool
) -> list[Path]:
    """Answer what is not yet in the folder, block by block, and return the files of all blocks, in order."""
    paths = sorted(folder.glob("[0-9]*.parquet"))
    n_records = sum(pq.read_metadata(path).num_rows for path in paths)
    with tqdm(total=source.n_bytes, desc="answering", unit="B", unit_scale=True, disable=not progress) as bar:
        records = iter(source)
        bar.update(sum(record.n_bytes for record in itertools.islice(records, n_records)))
        for block in run(load, _blocks(records)):
            source.check()
            paths.append(folder / f"{len(paths):09}.parquet")
            with fresh_file(paths[-1]) as fresh:
                pq.write_table(block, fresh)
            bar.update(pc.sum(block["n_bytes"]).as_py())
        source.check()
    return paths


def _publish(paths: Sequence[Path], folder: Path, output: Path, name: str, item_ids: ItemIds) -> Outcome:
    """Write the output and the rejected records, and move them to their places, the output last."""
    beside, n_rejected, n_records, n_skipped = _beside(output, ".rejected"), 0, 0, 0
    with fresh_file(folder / "rejected") as path, open(path, "w", encoding="utf-8") as stream:
        for block in map(pq.read_table, paths):
            refused = block.filter(pc.is_valid(block["reason"])).select(["line", "reason", "text"])
            stream.writelines(json.dumps(one, ensure_ascii=False) + "\n" for one in refused.to_pylist())
            n_records, n_rejected = n_records + len(block), n_rejected + len(refused)
            n_skipped += pc.sum(block["skipped"]).as_py()
    with fresh_file(folder / "output") as path:
        _WRITERS[output.suffix](path, name, item_ids, map(_answered, map(pq.read_table, paths)))
    if n_rejected:
        (folder / "rejected").replace(beside)
    else:
        beside.unlink(missing_ok=True)
    (folder / "output").replace(output)
    return Outcome(n_records - n_rejected, n_rejected, n_skipped)


def _beside(path: Path, ending: str) -> Path:
    return path.with_name(path.name + ending)


@contextlib.contextmanager
def _locked(output: Path) -> Iterator[Path]:
    """The folder of unfinished work, for one run at a time; the lock of a process ends with it."""
    folder = _beside(output, ".parts")
    folder.mkdir(exist_ok=True)
    try:
        with FileLock(folder / "lock", timeout=0):
            yield folder
    except Timeout:
        raise BlockingIOError(f"another run is writing {output}: wait for it, or choose another output") from None


# --- blocks of records, as Arrow tables: Python's objects take 20 times as much memory ---

_READ = {"line": pa.int64(), "n_bytes": pa.int64(), "text": pa.string(), "key": pa.string()}
_RECORDS = pa.schema(_READ | {"item_ids": pa.list_(pa.string()), "reason": pa.string()})
_FOUND = {"rows": pa.list_(pa.int64()), "scores": pa.list_(pa.float32())}
_ANSWERS = pa.schema(_READ | {"reason": pa.string(), "skipped": pa.int64()} | _FOUND)

_Answer = tuple[str, list[int], list[float]]  # key; rows of the item table, best first; scores


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


def _with_answers(recommender: Recommender, k: int, queries: bool, block: pa.Table) -> pa.Table:
    """A block with answers, or reasons why there are none, in place of item ids."""
    reasons, histories, skipped, known = block["reason"].to_pylist(), [], [], recommender.item_ids
    for at, value in enumerate(block["item_ids"]):  # one by one: see _BLOCK_BYTES
        item_ids = [item_id for item_id in value.as_py() if item_id not in known.removed]
        history = [known.row_of.get(item_id, -1) for item_id in item_ids]
        if reasons[at] is None and -1 in history:
            reasons[at] = f"item id {shown(item_ids[history.index(-1)])} is not in the catalogue"
        skipped.append(len(value) - len(item_ids) if reasons[at] is None else 0)
        histories.append(np.array(history, dtype=np.int64))
    rows: list[list[int]] = [[] for _ in histories]
    scores: list[list[float]] = [[] for _ in histories]
    if readable := [at for at, reason in enumerate(reasons) if reason is None]:
        if queries:
            found = recommender.searcher.search(block["key"].take(readable).to_pylist(), k)
        else:
            found = recommender.rank([histories[at] for at in readable], k)
        for at, row, score in zip(readable, *found, strict=True):
            n = int((row >= 0).sum())  # empty places are at the end
            rows[at], scores[at] = row[:n].tolist(), score[:n].tolist()
    return pa.table([*block.select(list(_READ)).columns, reasons, skipped, rows, scores], schema=_ANSWERS)


def _answered(block: pa.Table) -> Iterator[_Answer]:
    """The answered records of a block from `_with_answers`."""
    found = block.filter(pc.is_null(block["reason"])).select(["key", "rows", "scores"])
    return zip(*(column.to_pylist() for column in found.columns), strict=True)


# --- formats of the output ---

_Blocks = Iterable[Iterable[_Answer]]


def _write_csv(path: Path, name: str, item_ids: ItemIds, blocks: _Blocks) -> None:
    ids = list(map(str, item_ids.values))
    plain = all(not text.startswith("[") and text.split() == [text] for text in ids)
    with open(path, "w", encoding="utf-8", newline="") as stream:
        # with its own line ends, csv quotes all others, also a lone \r
        writer = csv.writer(SimpleNamespace(write=lambda line: stream.write(line.removesuffix("\r\n") + "\n")))
        writer.writerow([name, "item_ids", "scores"])
        for key, rows, scores in itertools.chain.from_iterable(blocks):
            found = [ids[row] for row in rows]
            cell = " ".join(found) if plain else json.dumps(found, ensure_ascii=False)
            writer.writerow([key, cell, " ".join(map(_short, scores))])


def _write_jsonl(path: Path, name: str, item_ids: ItemIds, blocks: _Blocks) -> None:
    ids = item_ids.for_json
    with open(path, "w", encoding="utf-8") as stream:
        for key, rows, scores in itertools.chain.from_iterable(blocks):
            answer = {name: key, "item_ids": [ids[row] for row in rows], "scores": [float(_short(x)) for x in scores]}
            stream.write(json.dumps(answer, ensure_ascii=False) + "\n")


def _write_parquet(path: Path, name: str, item_ids: ItemIds, blocks: _Blocks) -> None:
    ids = item_ids.values.tolist()
    kind = pa.int64() if all(type(one) is int and -(2**63) <= one < 2**63 for one in ids) else pa.string()
    ids = ids if kind == pa.int64() else list(map(str, ids))
    schema = pa.schema({name: pa.string(), "item_ids": pa.list_(kind), "scores": pa.list_(pa.float32())})
    with pq.ParquetWriter(path, schema) as writer:
        for block in blocks:
            if lines := [(key, [ids[row] for row in rows], scores) for key, rows, scores in block]:
                writer.write_table(pa.table([list(column) for column in zip(*lines, strict=True)], schema=schema))


_WRITERS: dict[str, Callable[[Path, str, ItemIds, _Blocks], None]] = {
    ".csv": _write_csv,
    ".jsonl": _write_jsonl,
    ".parquet": _write_parquet,
}
ENDINGS = tuple(_WRITERS)


def _short(score: float) -> str:
    """The shortest text that gives the same float32."""
    return str(np.float32(score))
