"""Recommendations for a file of histories or queries:

python -m semid_lib.predict --model FOLDER --input-path histories.txt --output-path preds.csv --topk 10

FOLDER may be a repository on the Hugging Face Hub, "org/name", of which `--revision` gives a branch, tag or commit.
All three may be addresses such as "s3://bucket/folder" (`places`); work is then kept beside the copy of the output.

`records` says what the input may look like; the output is CSV, JSONL or Parquet by its ending, one line per line that
was answered, in the order of the input: `user_id` (or `query`), `item_ids` and `scores`, best first.

Work is kept beside the output after every block, so that a run that was killed goes on where it stopped, and its file
is the same to the last byte. The output itself appears whole or not at all. Lines that cannot be answered stand in
`<output>.rejected` with their number and reason.

`--workers N` shares the blocks out among N processes of one core each on this machine, `--ray-address HOST:PORT` among
those of a Ray cluster that this machine has joined, by default as SEMID_WORKERS and SEMID_RAY_ADDRESS say; the file is
the same (see `distributed`).

Exit codes: 0 every line was answered, 2 some were rejected, 1 the run failed.
"""

import argparse
import contextlib
import csv
import fcntl
import io
import itertools
import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from tqdm import tqdm

from semid_lib import distributed, places, records
from semid_lib.recommender import Recommender
from semid_lib.store import sha256

ENDINGS = (".csv", ".jsonl", ".parquet")
BLOCK = 4096  # lines that are answered, and kept, together
_BLOCK_BYTES = 2**24  # or fewer that have so many bytes: the item ids in them take up to 200 MiB


class Outcome(NamedTuple):
    """What a run did, counting what an interrupted run before it did."""

    answered: int
    rejected: int


class _Done(NamedTuple):
    """How far the files beside the output have come."""

    lines: int = 0  # records of the input that are dealt with
    output_bytes: int = 0
    rejected_bytes: int = 0
    rejected: int = 0


def predict(
    recommender: Recommender,
    model_facts: str,
    input_path: str | Path,
    output_path: str | Path,
    k: int = 10,
    queries: bool = False,
    progress: bool = False,
    run: distributed.Run = distributed.here,
) -> Outcome:
    """Answer every line of a file; items of a history never come out again.

    model_facts: what tells this model from others, as its commit or the checksum of its `config.json`; work that an
    interrupted run left is taken up if model, input, k and version are the same, and thrown away otherwise.
    run: where, see `distributed`; workers are sent the recommender as it is here.

    Raises ValueError for an ending that is none of `ENDINGS`, input that `records.read` refuses as a whole, k below 1,
    or a model that cannot do this; OSError if a file cannot be read or written, such as on a full disk, and
    BlockingIOError for a second run with the same output at the same time. The output is then what it was before.
    """
    place, output_path = output_path, places.local(output_path)
    input_path = places.fetch(input_path)
    if places.is_remote(place):
        output_path.parent.mkdir(parents=True, exist_ok=True)
    check(input_path, output_path, k, queries)
    if (recommender.searcher if queries else recommender.model) is None:
        raise ValueError(f"the folder holds no {'model of search' if queries else 'model of the next item'}")
    facts = {
        "version": metadata.version("semid-lib"),
        "model": model_facts,
        "input": sha256(input_path),
        "settings": [input_path.suffix, output_path.suffix, k, queries, BLOCK, _BLOCK_BYTES],
    }
    key = "query" if queries else "user_id"
    with _Work(output_path, facts, _FORMATS[output_path.suffix](key)) as work:
        load = partial(_Answerer, recommender, k, queries)
        n_bytes = input_path.stat().st_size
        with tqdm(total=n_bytes, desc="answering", unit="B", unit_scale=True, disable=not progress) as bar:
            everything = records.read(input_path, queries)
            bar.update(sum(record.n_bytes for record in itertools.islice(everything, work.done.lines)))
            for block in run(load, map(_as_table, _blocks(everything))):
                work.keep(len(block), *_from_table(block))
                bar.update(pc.sum(block["n_bytes"]).as_py())
            bar.update(n_bytes - bar.n)
        done = work.publish()
    if places.is_remote(place):
        try:
            places.send(place)
            places.send(f"{place}.rejected")
        except (ValueError, ConnectionError) as error:
            raise ConnectionError(f"{error}; the finished output is {output_path}") from error
    return Outcome(done.lines - done.rejected, done.rejected)


def check(input_path: Path, output_path: Path, k: int, queries: bool) -> None:
    """Refuse what can be refused before a model is loaded; raises as `predict` does."""
    if output_path.suffix not in ENDINGS:
        raise ValueError(f"{output_path} ends in {output_path.suffix!r}, expected {', '.join(ENDINGS)}")
    if k < 1:
        raise ValueError(f"topk must be at least 1, got {k}")
    if input_path.resolve() == output_path.resolve():
        raise ValueError(f"{output_path} is the input as well")
    next(records.read(input_path, queries), None)  # an input that is refused as a whole leaves no trace


def _blocks(everything: Iterable[records.Record]) -> Iterator[list[records.Record]]:
    block, n_bytes = [], 0
    for record in everything:
        block.append(record)
        n_bytes += record.n_bytes
        if len(block) == BLOCK or n_bytes >= _BLOCK_BYTES:
            yield block
            block, n_bytes = [], 0
    if block:
        yield block


class Answered(NamedTuple):
    """One line of the output."""

    key: str
    item_ids: list[int]
    scores: list[float]


_RECORDS = pa.schema(
    {"line": pa.int64(), "n_bytes": pa.int64(), "text": pa.string(), "key": pa.string()}
    | {"item_ids": pa.list_(pa.int64()), "reason": pa.string()}
)
_ANSWERS = [pa.field("item_ids", pa.list_(pa.int64())), pa.field("scores", pa.list_(pa.float32()))]


def _as_table(block: list[records.Record]) -> pa.Table:
    """A row a record; a number that is no int64 is no item id either."""
    rows = []
    for record in block:
        large = next((item_id for item_id in record.item_ids if not -(2**63) <= item_id < 2**63), None)
        if large is not None:
            record = record._replace(item_ids=[], reason=_unknown(large))  # noqa: PLW2901
        rows.append(record)
    return pa.table([list(column) for column in zip(*rows, strict=True)], schema=_RECORDS)


def _unknown(item_id: int) -> str:
    return f"item id {item_id} is not in the catalogue"


def _from_table(block: pa.Table) -> tuple[list[Answered], list[records.Record]]:
    """What `_Answerer` gave: the answered lines, and the rejected ones."""
    refused = [reason is not None for reason in block["reason"].to_pylist()]
    answered = block.filter(pc.invert(pa.array(refused))).select(["key", "item_ids", "scores"])
    rejected = block.filter(pa.array(refused)).select(_RECORDS.names)
    columns = zip(*(column.to_pylist() for column in answered.columns), strict=True)
    return [Answered(*row) for row in columns], [records.Record(**row) for row in rejected.to_pylist()]


class _Answerer:
    """Blocks of records in, the same with their answers, or reasons why there are none, out."""

    def __init__(self, recommender: Recommender, k: int, queries: bool):
        self.recommender, self.k, self.queries = recommender, min(k, len(recommender.items)), queries
        self.item_ids = recommender.items["item_id"].to_numpy(np.int64)
        self.row_of = {item_id: row for row, item_id in enumerate(self.item_ids.tolist())}

    def __call__(self, block: pa.Table) -> pa.Table:
        histories, reasons = block["item_ids"].to_pylist(), block["reason"].to_pylist()
        for at, history in enumerate(histories):
            unknown = next((item_id for item_id in history if item_id not in self.row_of), None)
            if reasons[at] is None and unknown is not None:
                reasons[at] = _unknown(unknown)
        readable = [at for at, reason in enumerate(reasons) if reason is None]
        item_ids, scores = [[] for _ in histories], [[] for _ in histories]
        if readable:
            answers = self._answers([histories[at] for at in readable], block["key"].take(readable).to_pylist())
            lengths = (answers[0] >= 0).sum(axis=1).tolist()  # empty places stand at the end
            for at, n, *answer in zip(readable, lengths, *(part.tolist() for part in answers), strict=True):
                item_ids[at], scores[at] = answer[0][:n], answer[1][:n]
        block = block.set_column(block.column_names.index("reason"), "reason", pa.array(reasons, pa.string()))
        block = block.drop_columns(["item_ids"])
        for field, values in zip(_ANSWERS, (item_ids, scores), strict=True):
            block = block.append_column(field, pa.array(values, field.type))
        return block

    def _answers(self, histories: list[list[int]], keys: list[str]) -> tuple[np.ndarray, np.ndarray]:
        if self.queries:
            return self.recommender.search(keys, self.k)
        rows = [np.array([self.row_of[one] for one in history], dtype=np.int64) for history in histories]
        items, scores = self.recommender.rank(rows, self.k)
        return np.where(items >= 0, self.item_ids[items], -1), scores


class _Work:
    """The files beside an output that is not finished; a context manager that holds a lock on them.

    `.partial` and `.rejected.partial` only grow, and `.progress` says how much of them counts: what stands after that
    is of a block that was not finished, and is cut off.
    """

    def __init__(self, output_path: Path, facts: dict, form: "_Csv | _Jsonl | _Parquet"):
        self.output, self.facts, self.form = output_path, facts, form
        self.rejected = _beside(output_path, ".rejected")
        self._paths = [_beside(output_path, ".partial"), _beside(output_path, ".rejected.partial")]
        self._progress = _beside(output_path, ".progress")

    def __enter__(self) -> "_Work":
        with contextlib.ExitStack() as opened:
            partial = opened.enter_context(open(self._paths[0], "ab"))
            self._lock(partial)
            self._files = [partial, opened.enter_context(open(self._paths[1], "ab"))]
            self.done = self._resumed()
            for file, size in zip(self._files, (self.done.output_bytes, self.done.rejected_bytes), strict=True):
                file.truncate(size)
            if not self.done.output_bytes:
                self._append(self.form.head, b"", 0, 0)
            self._close = opened.pop_all().close
        return self

    def __exit__(self, *_) -> None:
        self._close()

    def _lock(self, partial: BinaryIO) -> None:
        """Raises BlockingIOError if another run has the file, or has just published it as its output."""
        try:
            fcntl.flock(partial, fcntl.LOCK_EX | fcntl.LOCK_NB)
            ours = os.path.samestat(os.fstat(partial.fileno()), os.stat(self._paths[0]))
        except (BlockingIOError, FileNotFoundError):
            ours = False
        if not ours:
            raise BlockingIOError(f"another run is writing {self.output}")

    def _resumed(self) -> _Done:
        try:
            saved = json.loads(self._progress.read_text(encoding="utf-8"))
            done = _Done(*saved["done"])
            sizes = [path.stat().st_size for path in self._paths]
            whole = sizes[0] >= done.output_bytes and sizes[1] >= done.rejected_bytes
            return done if saved["facts"] == self.facts and whole else _Done()
        except (OSError, ValueError, KeyError, TypeError):
            return _Done()

    def keep(self, n_lines: int, answered: list[Answered], rejected: list[records.Record]) -> None:
        """Write what became of a block, so that it is never answered again."""
        refused = [{"line": one.line, "reason": one.reason, "text": one.text} for one in rejected]
        text = "".join(json.dumps(one, ensure_ascii=False) + "\n" for one in refused)
        body = self.form.encode(answered) if answered else b""
        self._append(body, text.encode("utf-8"), n_lines, len(rejected))

    def _append(self, output: bytes, rejected: bytes, n_lines: int, n_rejected: int) -> None:
        for file, content in zip(self._files, (output, rejected), strict=True):
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        self.done = _Done(
            self.done.lines + n_lines,
            self.done.output_bytes + len(output),
            self.done.rejected_bytes + len(rejected),
            self.done.rejected + n_rejected,
        )
        written = _beside(self._progress, ".new")
        written.write_text(json.dumps({"facts": self.facts, "done": self.done}), encoding="utf-8")
        written.replace(self._progress)

    def publish(self) -> _Done:
        """Put the finished files in their places; the lock is given up last, since the next run begins then."""
        finished = self.form.finish(self._paths[0])
        if self.done.rejected:
            self._paths[1].replace(self.rejected)
        else:
            self._paths[1].unlink()
            self.rejected.unlink(missing_ok=True)
        self._progress.unlink()
        finished.replace(self.output)
        if finished != self._paths[0]:
            self._paths[0].unlink()
        return self.done


def _beside(path: Path, ending: str) -> Path:
    return path.with_name(path.name + ending)


# --- formats: a head, blocks that are appended as bytes, and what makes a whole of them ---


class _Csv:
    def __init__(self, key: str):
        self.head = f"{key},item_ids,scores\n".encode()

    def encode(self, answered: list[Answered]) -> bytes:
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows(
            (key, " ".join(map(str, item_ids)), " ".join(map(_short, scores))) for key, item_ids, scores in answered
        )
        return text.getvalue().encode("utf-8")

    def finish(self, partial: Path) -> Path:
        return partial


class _Jsonl:
    head = b""

    def __init__(self, key: str):
        self.key = key

    def encode(self, answered: list[Answered]) -> bytes:
        lines = (
            json.dumps(
                {self.key: key, "item_ids": item_ids, "scores": [float(_short(score)) for score in scores]},
                ensure_ascii=False,
            )
            for key, item_ids, scores in answered
        )
        return "".join(line + "\n" for line in lines).encode("utf-8")

    def finish(self, partial: Path) -> Path:
        return partial


class _Parquet:
    """Blocks wait in Arrow's stream format, which can be appended to; Parquet cannot."""

    def __init__(self, key: str):
        self.schema = pa.schema({key: pa.string(), "item_ids": pa.list_(pa.int64()), "scores": pa.list_(pa.float32())})
        self.head = self.schema.serialize().to_pybytes()

    def encode(self, answered: list[Answered]) -> bytes:
        columns = [list(column) for column in zip(*answered, strict=True)]
        return pa.record_batch(columns, schema=self.schema).serialize().to_pybytes()

    def finish(self, partial: Path) -> Path:
        target = _beside(partial, ".parquet")
        with open(partial, "rb") as stream, pq.ParquetWriter(target, self.schema) as writer:
            for batch in _batches(stream):
                writer.write_batch(batch)
        with open(target, "rb+") as written:
            os.fsync(written.fileno())
        return target


_FORMATS = {".csv": _Csv, ".jsonl": _Jsonl, ".parquet": _Parquet}


def _batches(stream: BinaryIO) -> Iterator[pa.RecordBatch]:
    with pa.ipc.open_stream(stream) as reader:
        yield from reader


def _short(score: float) -> str:
    """The shortest text that gives the same float32."""
    return str(np.float32(score))


class _Parser(argparse.ArgumentParser):
    def error(self, message: str):
        """A wrong command is a failure: 2 says that lines were rejected."""
        self.print_usage(sys.stderr)
        self.exit(1, f"{self.prog}: {message}\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = _Parser(
        prog="python -m semid_lib.predict",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", required=True, metavar="FOLDER", help="of Recommender.save_pretrained, or org/name")
    parser.add_argument("--revision", help="of org/name: a branch, a tag or, better, a commit; main by default")
    parser.add_argument("--input-path", required=True, metavar="FILE", help=", ".join(records.ENDINGS))
    parser.add_argument("--output-path", required=True, metavar="FILE", help=", ".join(ENDINGS))
    parser.add_argument("--topk", type=int, default=10, help="items per line, 10 by default")
    parser.add_argument("--queries", action="store_true", help="the input holds texts, not histories")
    parser.add_argument("--workers", type=int, metavar="N", help="processes that share the work; by default this one")
    parser.add_argument(
        "--ray-address", metavar="HOST:PORT", help="of a Ray cluster, or auto; by default all its cores"
    )
    options = parser.parse_args(arguments)
    try:
        recommender = Recommender.from_pretrained(options.model, revision=options.revision)
        facts = str(recommender.source or sha256(places.local(options.model) / "config.json"))
        outcome = predict(
            *(recommender, facts, options.input_path, options.output_path, options.topk, options.queries),
            progress=True,
            run=distributed.chosen(options.workers, options.ray_address),
        )
    except (ValueError, ImportError, BlockingIOError, distributed.BatchError) as error:
        print(f"failed: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        kept = _beside(places.local(options.output_path), ".progress").exists()
        goes_on = "; blocks that were finished are kept, and the same command goes on" if kept else ""
        print(f"failed: {error}{goes_on}", file=sys.stderr)
        return 1
    print(f"{outcome.answered} lines answered, {outcome.rejected} rejected: {options.output_path}", file=sys.stderr)
    return 2 if outcome.rejected else 0


if __name__ == "__main__":
    sys.exit(main())
