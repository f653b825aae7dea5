"""Recommendations for a file of histories or queries, or for the customers of a data set:

python -m semid_lib.serving.predict --model FOLDER --input-path histories.txt --output-path preds.csv --topk 10
python -m semid_lib.serving.predict --model FOLDER --data shop --user ann --user bob

FOLDER is one that `Recommender.save_pretrained` wrote, or a repository on the Hugging Face Hub, "org/name", of which
`--revision` is a branch, tag or commit. Folders and files may be addresses such as "s3://bucket/folder" (`places`);
work is then kept next to the local copy of the output.

Input: a file (`records` lists the formats), or with `--data` the histories of a data set, of all customers or of each
`--user`. Output: CSV, JSONL or Parquet by its ending, one record per record that was answered, in the order of the
input: `user_id` (or `query`), `item_ids` and `scores`, best first. Without `--output-path` the answers are printed as
JSON lines, with the titles of the items.

Item ids are the shop's own, text or integers. In JSONL all are text if one is an integer beyond 2^53. In CSV they are
separated by spaces, or a JSON list if an id of the catalogue has spaces.

Answers are saved after every block, so a run that was killed resumes where it stopped; the result is the same to the
last byte. The output appears atomically. Records that cannot be answered are in `<output>.rejected` with line and
reason.

`--workers N` shares the blocks among N processes of one core each on this machine, `--ray-address HOST:PORT` among
those of a Ray cluster that this machine has joined; the defaults are SEMID_WORKERS and SEMID_RAY_ADDRESS. The result is
the same (see `distributed`).

Exit codes: 0 every record was answered, 2 some were rejected, 1 the run failed.
"""

import argparse
import contextlib
import csv
import itertools
import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from filelock import FileLock, Timeout
from tqdm.auto import tqdm

from semid_lib.data.item_ids import ItemIds
from semid_lib.serving import batch_io as records
from semid_lib.serving.recommender import Recommender
from semid_lib.workbench import remote, workers
from semid_lib.workbench.arguments import count
from semid_lib.workbench.store import sha256
from semid_lib.workbench.text import shown

ENDINGS = (".csv", ".jsonl", ".parquet")
BLOCK = 4096  # records that are answered, and saved, together
_BLOCK_BYTES = 2**21  # or fewer that have so many bytes: their item ids take up to 100 MiB while they are read


class Outcome(NamedTuple):
    """Records that were answered and rejected, in this run and in the interrupted ones that it resumed."""

    answered: int
    rejected: int


class _Done(NamedTuple):
    """Progress of the files next to the output."""

    records: int = 0
    output_bytes: int = 0
    rejected_bytes: int = 0
    rejected: int = 0


Source = records.RecordFile | records.DataHistories


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
        Identifies the model, such as its commit or the checksum of its `config.json`. The work of an interrupted run is
        resumed if model, input, settings and version are the same, and discarded otherwise.
    input_path : str, Path or records.DataHistories
    output_path : str or Path
        Ends in one of `ENDINGS`.
    k : int
        Items per record, fewer where the catalogue has fewer.
    queries : bool
        The input has texts instead of histories.
    run : distributed.Run
        Where to do the work.

    Returns
    -------
    Outcome

    Raises
    ------
    ValueError
        For another ending, an input that `records.RecordFile` refuses as a whole or that changes while it is read,
        k < 1, or a model that cannot answer this.
    OSError
        If a file cannot be read or written, as on a full disk; the output is then unchanged.
    BlockingIOError
        If another run is writing the same output.

    Examples
    --------
    In `tests/test_predict.py`; a trained model is required.
    """
    place, output_path = output_path, remote.local(output_path)
    if remote.is_remote(place):
        output_path.parent.mkdir(parents=True, exist_ok=True)
    with _opened(input_path, output_path, k, queries) as source:
        facts = {
            "version": metadata.version("semid-lib"),
            "model": model_facts,
            "input": source.facts(),
            "settings": [output_path.suffix, int(k), queries, BLOCK, _BLOCK_BYTES],
        }
        form = _FORMATS[output_path.suffix]("query" if queries else "user_id", recommender.item_ids)
        load = _loader(recommender, k, queries)
        with _Work(output_path, facts, form) as work:
            if not work.complete:
                _answer(source, load, run, work, progress)
            work.publish()
            _send(place, output_path)
            work.forget()
    return Outcome(work.done.records - work.done.rejected, work.done.rejected)


def answers(
    recommender: Recommender, source: str | Path | Source, k: int = 10, queries: bool = False
) -> Iterator[dict | records.Record]:
    """Answer records one by one, with titles and without an output file.

    Parameters
    ----------
    recommender, source, k, queries
        As in `predict`.

    Yields
    ------
    dict or records.Record
        `user_id` (or `query`), `item_ids`, `scores` and `titles`, or a record that cannot be answered, with its reason.

    Raises
    ------
    ValueError
        As in `predict`.
    """
    load = _loader(recommender, k, queries)
    titles = recommender.items.get("title", pd.Series([None] * len(recommender.items))).tolist()
    form = _Jsonl("query" if queries else "user_id", recommender.item_ids)
    with _opened(source, None, k, queries) as found:
        for block in workers.here(load, _blocks(found)):
            answered, rejected = _from_table(block)
            yield from rejected
            yield from (form.fields(one) | {"titles": [titles[row] for row in one.rows]} for one in answered)
        found.check()


def check(input_path: str | Path, output_path: str | Path, k: int, queries: bool) -> None:
    """Refuse bad input before a model is loaded; raises as `predict` does."""
    with _opened(input_path, Path(output_path), k, queries):
        pass


@contextlib.contextmanager
def _opened(where: str | Path | Source, output_path: Path | None, k: int, queries: bool) -> Iterator[Source]:
    """The input, which is refused here if it is refused as a whole, before anything is written."""
    if output_path is not None:
        _check_output(output_path)
    count("topk", k)
    is_path = isinstance(where, str | Path)
    with records.RecordFile(remote.fetch(where), queries) if is_path else where as source:
        if output_path is not None and source.path is not None and source.path.resolve() == output_path.resolve():
            raise ValueError(f"{output_path} is the input as well: choose another output")
        next(iter(source), None)
        yield source


def _check_output(path: Path) -> None:
    if path.suffix not in ENDINGS:
        raise ValueError(f"{path} ends in {path.suffix!r}, expected {', '.join(ENDINGS)}")
    if not path.parent.is_dir():
        raise ValueError(f"{path.parent} is not a folder: create it, or choose another output")
    if path.is_dir():
        raise ValueError(f"{path} is a folder, expected the name of a file")


def _loader(recommender: Recommender, k: int, queries: bool) -> workers.Load:
    if (recommender.searcher if queries else recommender.model) is None:
        kind, chapter = ("search", "05") if queries else ("next-item", "07")
        raise ValueError(f"the folder has no {kind} model: train one (chapter {chapter})")
    return partial(_Answerer, recommender, k, queries)


def _answer(source: Source, load: workers.Load, run: workers.Run, work: "_Work", progress: bool) -> None:
    with tqdm(total=source.n_bytes, desc="answering", unit="B", unit_scale=True, disable=not progress) as bar:
        everything = iter(source)
        bar.update(sum(record.n_bytes for record in itertools.islice(everything, work.done.records)))
        for block in run(load, _blocks(everything)):
            source.check()
            work.save(len(block), *_from_table(block))
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


def _blocks(everything: Iterable[records.Record]) -> Iterator[pa.Table]:
    block, n_bytes = [], 0
    for record in everything:
        block.append(record)
        n_bytes += record.n_bytes
        if len(block) == BLOCK or n_bytes >= _BLOCK_BYTES:
            table, block, n_bytes = _as_table(block), [], 0  # Python's objects take 20 times as much as Arrow's
            yield table
    if block:
        yield _as_table(block)


class Answered(NamedTuple):
    """One record of the output."""

    key: str
    rows: list[int]  # of the item table, best first
    scores: list[float]


_RECORDS = pa.schema(
    {"line": pa.int64(), "n_bytes": pa.int64(), "text": pa.string(), "key": pa.string()}
    | {"item_ids": pa.list_(pa.string()), "reason": pa.string()}
)
_ANSWERS = [pa.field("rows", pa.list_(pa.int64())), pa.field("scores", pa.list_(pa.float32()))]


def _as_table(block: list[records.Record]) -> pa.Table:
    return pa.table([list(column) for column in zip(*block, strict=True)], schema=_RECORDS)


def _from_table(block: pa.Table) -> tuple[list[Answered], list[records.Record]]:
    """Answered and rejected records of a block from `_Answerer`."""
    refused = [reason is not None for reason in block["reason"].to_pylist()]
    answered = block.filter(pc.invert(pa.array(refused))).select(list(Answered._fields))
    rejected = block.filter(pa.array(refused)).drop_columns(["rows", "scores"]).to_pylist()
    columns = zip(*(column.to_pylist() for column in answered.columns), strict=True)
    return [Answered(*row) for row in columns], [records.Record(**row, item_ids=[]) for row in rejected]


class _Answerer:
    """Takes a block of records and returns it with answers, or reasons why there are none, in place of item ids."""

    def __init__(self, recommender: Recommender, k: int, queries: bool):
        self.recommender, self.k, self.queries = recommender, min(int(k), len(recommender.items)), queries
        self.row_of = recommender.item_ids.row_of

    def __call__(self, block: pa.Table) -> pa.Table:
        reasons, histories = block["reason"].to_pylist(), []
        for at, value in enumerate(block["item_ids"]):  # one by one, see `_blocks`
            item_ids = value.as_py()
            histories.append(np.array([self.row_of.get(item_id, -1) for item_id in item_ids], dtype=np.int64))
            if reasons[at] is None and (histories[at] < 0).any():
                unknown = item_ids[int((histories[at] < 0).argmax())]
                reasons[at] = f"item id {shown(unknown)} is not in the catalogue"
        readable = [at for at, reason in enumerate(reasons) if reason is None]
        rows, scores = [[] for _ in histories], [[] for _ in histories]
        if readable:
            found = self._answers([histories[at] for at in readable], block["key"].take(readable).to_pylist())
            for at, row, score in zip(readable, *found, strict=True):
                n = int((row >= 0).sum())  # empty places are at the end
                rows[at], scores[at] = row[:n].tolist(), score[:n].tolist()
        block = block.set_column(block.column_names.index("reason"), "reason", pa.array(reasons, pa.string()))
        block = block.drop_columns(["item_ids"])
        for field, values in zip(_ANSWERS, (rows, scores), strict=True):
            block = block.append_column(field, pa.array(values, field.type))
        return block

    def _answers(self, histories: list[np.ndarray], keys: list[str]) -> tuple[np.ndarray, np.ndarray]:
        """Item rows and scores, each (n, k), with -1 and -inf where there are fewer than k."""
        if self.queries:
            return self.recommender.searcher.search(keys, self.k)
        return self.recommender.rank(histories, self.k)


class _Work:
    """The files next to an unfinished output; a context manager that locks the output against other runs.

    `.partial` and `.rejected.partial` only grow, and `.progress` has how many of their bytes count: the rest belongs to
    a block that was not finished, and is cut off. When all records are answered, `.progress` identifies the complete
    file, and is deleted last, so that a run killed while it publishes resumes there.
    """

    def __init__(self, output_path: Path, facts: dict, form: "_Csv | _Jsonl | _Parquet"):
        self.output, self.facts, self.form = output_path, facts, form
        self.rejected, self._progress = _beside(output_path, ".rejected"), _beside(output_path, ".progress")
        self._paths = [_beside(output_path, ".partial"), _beside(output_path, ".rejected.partial")]
        self._finished = _beside(self._paths[0], form.ending)

    def __enter__(self) -> "_Work":
        with contextlib.ExitStack() as opened:
            opened.enter_context(_locked(self.output))
            self.done, self.complete = self._resumed()
            self._files = []
            if not self.complete:
                self._files = [opened.enter_context(open(path, "ab")) for path in self._paths]
                for file, size in zip(self._files, (self.done.output_bytes, self.done.rejected_bytes), strict=True):
                    file.truncate(size)
                if not self.done.output_bytes:
                    self._append(self.form.head, b"", 0, 0)
            self._close = opened.pop_all().close
        return self

    def __exit__(self, *_) -> None:
        self._close()

    def _resumed(self) -> tuple[_Done, list[int] | None]:
        """Progress of an earlier run with the same facts, if its files are as it left them."""
        try:
            saved = json.loads(self._progress.read_text(encoding="utf-8"))
            done, complete = _Done(*saved["done"]), saved["complete"]
            if saved["facts"] == self.facts:
                if complete and complete in (_state(self.output), _state(self._finished)):
                    return done, complete
                sizes = [path.stat().st_size for path in self._paths]
                if sizes[0] >= done.output_bytes and sizes[1] >= done.rejected_bytes:
                    return done, None
        except (OSError, ValueError, KeyError, TypeError):
            pass
        return _Done(), None

    def save(self, n_records: int, answered: list[Answered], rejected: list[records.Record]) -> None:
        """Write the results of a block, so that it is not answered again."""
        refused = [{"line": one.line, "reason": one.reason, "text": one.text} for one in rejected]
        text = "".join(json.dumps(one, ensure_ascii=False) + "\n" for one in refused)
        body = self.form.encode(answered) if answered else b""
        self._append(body, text.encode("utf-8"), n_records, len(rejected))

    def _append(self, output: bytes, rejected: bytes, n_records: int, n_rejected: int) -> None:
        for file, content in zip(self._files, (output, rejected), strict=True):
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        more = (n_records, len(output), len(rejected), n_rejected)
        self.done = _Done(*(old + new for old, new in zip(self.done, more, strict=True)))
        self._note()

    def _note(self) -> None:
        facts = {"facts": self.facts, "done": self.done, "complete": self.complete}
        written = _beside(self._progress, ".new")
        written.write_text(json.dumps(facts), encoding="utf-8")
        written.replace(self._progress)

    def publish(self) -> None:
        """Move the finished files to their places, the output last. Each step can be repeated."""
        for file in self._files:
            file.close()
        if not self.complete:
            self.form.finish(self._paths[0], self._finished)
            self.complete = _state(self._finished)
            self._note()
        if _state(self.output) == self.complete:
            return
        if not self.done.rejected:
            self._paths[1].unlink(missing_ok=True)
            self.rejected.unlink(missing_ok=True)
        elif self._paths[1].exists():
            self._paths[1].replace(self.rejected)
        self._finished.replace(self.output)

    def forget(self) -> None:
        """Delete what a published output does not need."""
        self._paths[0].unlink(missing_ok=True)
        self._progress.unlink()


def _beside(path: Path, ending: str) -> Path:
    return path.with_name(path.name + ending)


def _state(path: Path) -> list[int] | None:
    """What stays the same when a file is moved, and differs from any other file's; None if it is missing."""
    try:
        state = path.stat()
    except FileNotFoundError:
        return None
    return [state.st_size, state.st_mtime_ns]


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


# --- formats: a head, blocks that are appended as bytes, and what completes the file ---


class _Csv:
    ending = ""

    def __init__(self, key: str, item_ids: ItemIds):
        self.head = f"{key},item_ids,scores\n".encode()
        self._ids = list(map(str, item_ids.values))
        self._plain = all(not text.startswith("[") and text.split() == [text] for text in self._ids)

    def encode(self, answered: list[Answered]) -> bytes:
        lines: list[str] = []
        # with its own line ends, csv quotes all others, also a lone \r
        csv.writer(SimpleNamespace(write=lines.append)).writerows(
            (one.key, self._cell([self._ids[row] for row in one.rows]), " ".join(map(_short, one.scores)))
            for one in answered
        )
        return "".join(line.removesuffix("\r\n") + "\n" for line in lines).encode("utf-8")

    def _cell(self, ids: list[str]) -> str:
        return " ".join(ids) if self._plain else json.dumps(ids, ensure_ascii=False)

    def finish(self, partial: Path, finished: Path) -> None: ...


class _Jsonl:
    ending, head = "", b""

    def __init__(self, key: str, item_ids: ItemIds):
        self._key, self._ids = key, item_ids.for_json

    def fields(self, one: Answered) -> dict:
        scores = [float(_short(score)) for score in one.scores]
        return {self._key: one.key, "item_ids": [self._ids[row] for row in one.rows], "scores": scores}

    def encode(self, answered: list[Answered]) -> bytes:
        return "".join(json.dumps(self.fields(one), ensure_ascii=False) + "\n" for one in answered).encode("utf-8")

    def finish(self, partial: Path, finished: Path) -> None: ...


class _Parquet:
    """Blocks are kept in Arrow's stream format, which can be appended to; Parquet cannot."""

    ending = ".parquet"

    def __init__(self, key: str, item_ids: ItemIds):
        self._ids = item_ids.values.tolist()
        integers = all(isinstance(value, int) and -(2**63) <= value < 2**63 for value in self._ids)
        kind = pa.int64() if integers else pa.string()
        self._ids = self._ids if integers else list(map(str, self._ids))
        self.schema = pa.schema({key: pa.string(), "item_ids": pa.list_(kind), "scores": pa.list_(pa.float32())})
        self.head = self.schema.serialize().to_pybytes()

    def encode(self, answered: list[Answered]) -> bytes:
        keys, rows, scores = zip(*answered, strict=True)
        columns = [list(keys), [[self._ids[row] for row in one] for one in rows], list(scores)]
        return pa.record_batch(columns, schema=self.schema).serialize().to_pybytes()

    def finish(self, partial: Path, finished: Path) -> None:
        with (
            open(partial, "rb") as stream,
            pa.ipc.open_stream(stream) as reader,
            pq.ParquetWriter(finished, self.schema) as writer,
        ):
            for batch in reader:
                writer.write_batch(batch)
        with open(finished, "rb+") as written:
            os.fsync(written.fileno())


_FORMATS = {".csv": _Csv, ".jsonl": _Jsonl, ".parquet": _Parquet}


def _short(score: float) -> str:
    """The shortest text that gives the same float32."""
    return str(np.float32(score))


class _Parser(argparse.ArgumentParser):
    def error(self, message: str):
        """A wrong command is a failure: 2 is the code for rejected records."""
        self.print_usage(sys.stderr)
        self.exit(1, f"{self.prog}: {message}\n")


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = _Parser(
        prog="python -m semid_lib.serving.predict",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--model", required=True, metavar="FOLDER", help="of Recommender.save_pretrained, or org/name")
    add("--revision", help="of org/name: a branch, a tag or, better, a commit; main by default")
    add("--input-path", metavar="FILE", help=f"{', '.join(records.ENDINGS)}; text also with .gz")
    add("--data", metavar="FOLDER", help='a data set whose histories are the input, or "demo"')
    add("--user", action="append", metavar="ID", help="with --data: this customer; may be repeated; all by default")
    add("--output-path", metavar="FILE", help=f"{', '.join(ENDINGS)}; by default answers are printed")
    add("--topk", type=int, default=10, help="items per record, 10 by default")
    add("--queries", action="store_true", help="the input has texts instead of histories")
    add("--workers", type=int, metavar="N", help="processes that share the work; by default this one")
    add("--ray-address", metavar="HOST:PORT", help="of a Ray cluster, or auto; by default all its cores")
    options = parser.parse_args(arguments)
    if (options.input_path is None) == (options.data is None):
        parser.error("expected one of --input-path and --data")
    if options.data is None and options.user:
        parser.error("--user selects customers of a data set: expected --data as well")
    if options.data is not None and options.queries:
        parser.error("--data gives histories: expected --input-path with --queries")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    options = _options(arguments)
    try:
        source = options.input_path
        if options.data is not None:
            source = records.DataHistories(options.data, options.user)
        recommender = Recommender.from_pretrained(options.model, revision=options.revision)
        if options.output_path is None:
            return _print(answers(recommender, source, options.topk, options.queries))
        facts = str(recommender.source or sha256(remote.local(options.model) / "config.json"))
        outcome = predict(
            *(recommender, facts, source, options.output_path, options.topk, options.queries),
            progress=True,
            run=workers.chosen(options.workers, options.ray_address),
        )
    except (ValueError, ImportError, OSError, workers.BatchError, KeyboardInterrupt) as error:
        print(f"failed: {_reason(error, options.output_path)}", file=sys.stderr)
        return 1
    print(f"{outcome.answered} records answered, {outcome.rejected} rejected: {options.output_path}", file=sys.stderr)
    return 2 if outcome.rejected else 0


def _print(found: Iterable[dict | records.Record]) -> int:
    """Answers to stdout, rejected records to stderr; returns the exit code."""
    n_rejected = 0
    for one in found:
        if isinstance(one, records.Record):
            n_rejected += 1
            print(f"line {one.line}: {one.reason}", file=sys.stderr)
        else:
            sys.stdout.buffer.write(json.dumps(one, ensure_ascii=False).encode("utf-8") + b"\n")
            sys.stdout.buffer.flush()
    return 2 if n_rejected else 0


def _reason(error: BaseException, output_path: str | None) -> str:
    text = "interrupted" if isinstance(error, KeyboardInterrupt) else str(error).rstrip(".")
    resumable = not isinstance(error, ValueError | ImportError | BlockingIOError) and output_path is not None
    if resumable and _beside(remote.local(output_path), ".progress").exists():
        return f"{text}. Finished blocks are kept: fix the cause and run the same command to resume"
    return text


if __name__ == "__main__":
    sys.exit(main())
