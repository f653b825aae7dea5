"""The files of a data set: read, check, write.

One data set is one folder: `items.jsonl`, `items.csv`, `items.parquet` or `items.arrow` (exactly one), and optionally
`sequences.tsv`, `timestamps.tsv` and `queries*.jsonl`; text may be gzipped (`.gz`). Text is UTF-8
(a byte order mark is accepted), one record a line; empty lines are an error except at the end of a file.
Nothing is dropped silently: bad input is a ValueError that names file, line, value and what was expected.
"""

import codecs
import csv
import gzip
import hashlib
import io
import json
import os
import re
import shutil
import tempfile
import zlib
from array import array
from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import Path
from typing import NamedTuple, NoReturn

import numpy as np
import pandas as pd

from semid_lib import table
from semid_lib.table import shown

ITEM_FILES = "items.jsonl, items.jsonl.gz, items.csv, items.csv.gz, items.parquet, items.arrow"
DATA_FILE = re.compile(
    r"items\.(parquet|arrow)|(items\.(csv|jsonl)|queries.*\.jsonl|(sequences|timestamps)\.tsv)(\.gz)?"
)


class Contents(NamedTuple):
    """What the files of one data set hold, checked; the columns are described in `data.Dataset`."""

    items: pd.DataFrame
    histories: tuple | None  # user_ids, items, offsets, times: the fields of `data.Histories`
    queries: pd.DataFrame | None
    fingerprint: str


def read_folder(folder: str | Path, columns: Sequence[str] | None = None) -> Contents:
    """Read and check the files of one data set; `data.load` says what they may hold and what is refused.

    columns: of the items, besides `item_id` and `title`; None for all.

    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_folder(folder, [{"item_id": 7, "title": "Soap"}], [("ann", [7, 7])])
    ...     items, (user_ids, rows, offsets, times), queries, fingerprint = read_folder(folder)
    >>> items["title"].tolist(), user_ids.tolist(), rows.tolist(), offsets.tolist(), times, queries
    (['Soap'], ['ann'], [0, 0], [0, 2], None, None)
    """
    files = {kind: _File(path, _read_bytes(path)) for kind, path in _data_files(Path(folder)).items()}
    items = _items(files["items"], columns)
    index = pd.Index(items["item_id"])
    histories = _histories(files, index) if "sequences.tsv" in files else None
    queries = _queries([file for kind, file in files.items() if kind.startswith("queries")], index)
    digest = hashlib.sha256()
    for file in files.values():
        file.add_to(digest)
    return Contents(items, histories, queries, digest.hexdigest())


# --- files ---


class _File(NamedTuple):
    path: Path
    content: bytes  # uncompressed; of an item table that is read in batches, none

    @property
    def name(self) -> str:
        return self.path.name.removesuffix(".gz")

    def add_to(self, digest) -> None:
        """Name, length and bytes; of a folder those of each of its files."""
        if self.path.suffix not in table.SUFFIXES:
            digest.update(f"{self.name}\0{len(self.content)}\0".encode() + self.content)
            return
        for file in table.files(self.path):
            digest.update(f"{file.relative_to(self.path.parent)}\0{file.stat().st_size}\0".encode())
            with open(file, "rb") as stream:
                while block := stream.read(2**20):
                    digest.update(block)

    def fail(self, number: int, problem: str) -> NoReturn:
        raise ValueError(f"{self.path}, line {number}: {problem}")

    def text(self) -> str:
        content = self.content.removeprefix(codecs.BOM_UTF8)
        try:
            return content.decode("utf-8").rstrip("\r\n")
        except UnicodeDecodeError as error:
            line = content.count(b"\n", 0, error.start) + 1
            self.fail(line, f"byte {content[error.start]:#04x} is not UTF-8, expected UTF-8 text")


def _data_files(folder: Path) -> dict[str, Path]:
    """Kinds ("items" or the name without .gz) -> paths, in order; each once, and at least the items."""
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder, expected one that holds one of {ITEM_FILES}")
    found: dict[str, Path] = {}
    for path in _existing_files(folder):
        name = path.name.removesuffix(".gz")
        kind = "items" if name.startswith("items.") else name
        if kind in found:
            raise ValueError(f"{folder} holds both {found[kind].name} and {path.name}, expected one of them")
        found[kind] = path
    if "items" not in found:
        raise ValueError(f"{folder} holds no items, looked for {ITEM_FILES}")
    if "timestamps.tsv" in found and "sequences.tsv" not in found:
        path = found["timestamps.tsv"]
        raise ValueError(f"{path} stands alone, expected a sequences.tsv with the same users")
    return dict(sorted(found.items()))


def _existing_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if DATA_FILE.fullmatch(path.name))


def files_of(folder: str | Path) -> list[Path]:
    """The files of a data set, one by one where the item table is a folder of them; nothing else that lies there.

    Raises ValueError as `table.files` does.

    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_folder(folder, [{"item_id": 7, "title": "Soap"}], [("ann", [7, 7])])
    ...     Path(folder, "notes.txt").touch()
    ...     [file.name for file in files_of(folder)]
    ['items.jsonl.gz', 'sequences.tsv.gz']
    """
    return [file for path in _existing_files(Path(folder)) for file in table.files(path)]


def _read_bytes(path: Path) -> bytes:
    if path.suffix in table.SUFFIXES:
        return b""
    content = path.read_bytes()
    if path.suffix == ".gz":
        try:
            content = gzip.decompress(content)
        except (OSError, EOFError, zlib.error) as error:
            raise ValueError(f"{path}: truncated or corrupt gzip ({error})") from error
    if not content.removeprefix(codecs.BOM_UTF8).strip(b"\r\n"):
        raise ValueError(f"{path} is empty, expected at least one record")
    return content


# --- records: JSON lines, CSV, Parquet ---


def _records(file: _File, required: tuple[str, ...]) -> dict[int, dict]:
    """Line at which each record begins -> record; at least one."""
    readers = {"jsonl": _jsonl_records, "csv": _csv_records}
    records = dict(readers[file.name.rpartition(".")[2]](file))
    for number, record in records.items():
        if lacking := [name for name in required if name not in record]:
            found = f"{shown(list(record))}, expected also {lacking[0]!r}"
            if not file.name.endswith(".jsonl"):
                raise ValueError(f"{file.path} has columns {found}")
            file.fail(number, f"the fields are {found}")
    if not records:
        raise ValueError(f"{file.path} is empty, expected at least one record")
    return records


def _jsonl_records(file: _File) -> Iterable[tuple[int, dict]]:
    for number, line in enumerate(file.text().split("\n"), 1):  # splitlines would also split at U+2028
        if not line.strip():
            file.fail(number, "blank line, expected a JSON object")
        try:
            value = json.loads(line)
            if "\\ud" in line.lower():
                json.dumps(value, ensure_ascii=False).encode()  # half of a surrogate pair is no text
        except json.JSONDecodeError as error:
            file.fail(number, f"broken JSON at column {error.colno} ({error.msg}), the line is {shown(line)}")
        except (ValueError, RecursionError) as error:  # a number of 5,000 digits, 100,000 brackets
            file.fail(number, f"JSON that cannot be read ({shown(str(error))}), the line is {shown(line)}")
        if not isinstance(value, dict):
            file.fail(number, f"{shown(value)} is not a JSON object")
        yield number, value


def _csv_records(file: _File) -> Iterable[tuple[int, dict]]:
    reader = csv.reader(io.StringIO(file.text(), newline=""), strict=True)
    header, number = None, 1
    try:
        for row in reader:
            header = row if header is None else header
            if len(row) != len(header):
                file.fail(number, f"{len(row)} fields, expected {len(header)} as in the header")
            if len(set(header)) < len(header):
                file.fail(number, f"the header is {shown(header)}, expected every name once")
            if row is not header:
                yield number, _typed(file, number, dict(zip(header, row, strict=True)))
            number = reader.line_num + 1  # a quoted field may span lines
    except csv.Error as error:
        file.fail(number, f"broken CSV ({error})")


def _typed(file: _File, number: int, record: dict) -> dict:
    """A record of CSV, where all is text; `item_id` becomes an integer if it is one, `categories` lists."""
    if re.fullmatch("-?[0-9]{1,30}", record.get("item_id", "")):
        record["item_id"] = int(record["item_id"])
    try:
        if "categories" in record:
            record["categories"] = json.loads(record["categories"] or "[]")
    except (ValueError, RecursionError):
        text = shown(record["categories"])
        file.fail(number, f'categories is {text}, expected JSON such as [["Office", "Paper"]]')
    return record


# --- items and queries ---


def _items(file: _File, columns: Sequence[str] | None) -> pd.DataFrame:
    if file.path.suffix in table.SUFFIXES:
        return table.read(file.path, columns)
    records = _records(file, required=table.REQUIRED)
    names = dict.fromkeys(["item_id", *chain.from_iterable(records.values())])
    numbers = list(records)
    items = pd.DataFrame(
        {
            name: table.column(
                name,
                [record.get(name) for record in records.values()],
                lambda at, problem: file.fail(numbers[at], problem),
            )
            for name in names
        }
    )
    first: dict[int, int] = {}
    for number, item_id in zip(numbers, items["item_id"], strict=True):
        if first.setdefault(item_id, number) != number:
            file.fail(number, f"item_id {item_id} occurs before, in line {first[item_id]}")
    if columns is None:
        return items
    if lacking := [name for name in columns if name not in items]:
        raise ValueError(f"{file.path} has fields {shown(list(items))}, expected also {lacking[0]!r}")
    return items[[name for name in items if name in {*table.REQUIRED, *columns}]]


def _queries(files: list[_File], index: pd.Index) -> pd.DataFrame | None:
    found = []
    for file in files:
        for number, record in _records(file, required=("query", "item_ids")).items():
            if taken := record.keys() & {"item_rows", "source"}:
                raise ValueError(f"{file.path} has a field {min(taken)!r}, expected another name (we add it)")
            rows = _relevant_rows(file, number, record, index)
            ours = {"query": record["query"], "item_rows": rows, "source": file.name.removesuffix(".jsonl")}
            found.append(ours | record)
    if not found:
        return None
    names = dict.fromkeys(chain.from_iterable(found))
    return pd.DataFrame({name: table.typed([record.get(name) for record in found]) for name in names})


def _relevant_rows(file: _File, number: int, record: dict, index: pd.Index) -> np.ndarray:
    query, ids = record["query"], record["item_ids"]
    if not isinstance(query, str) or not query.strip():
        file.fail(number, f"query is {shown(query)}, expected some text")
    integers = isinstance(ids, list) and all(type(item_id) is int for item_id in ids)
    if not integers or not ids or len(set(ids)) < len(ids):
        file.fail(number, f"item_ids is {shown(ids)}, expected a list of at least one integer, each once")
    if unknown := [item_id for item_id in ids if item_id not in index]:
        file.fail(number, f"item {unknown[0]} is unknown, expected an item_id of the items file")
    return index.get_indexer(ids).astype(np.int64)


# --- histories ---


def _histories(files: dict[str, _File], index: pd.Index) -> tuple:
    """User ids, item rows, offsets, and times or None."""
    file, timestamps = files["sequences.tsv"], files.get("timestamps.tsv")
    sequences = _read_sequences(file)
    offsets = np.cumsum([0, *map(len, sequences.values())], dtype=np.int64)
    item_ids = _end_to_end(sequences)
    rows = index.get_indexer(item_ids).astype(np.int64)
    if (rows < 0).any():
        position = int((rows < 0).argmax())
        line = int(np.searchsorted(offsets, position, side="right"))
        file.fail(line, f"item {item_ids[position]} is unknown, expected an item_id of the items file")
    times = None if timestamps is None else _read_times(timestamps, sequences, offsets)
    return np.array(list(sequences), dtype=object), rows, offsets, times


def _read_sequences(file: _File) -> dict[str, array]:
    """User id -> integers; the line of a user is the position + 1."""
    found: dict[str, array] = {}
    plain = re.compile(r"[0-9 \r-]*")  # int() alone would also take 1_000 and the digits of other scripts
    for number, line in enumerate(file.text().split("\n"), 1):
        user_id, tab, rest = line.partition("\t")
        if not tab or not user_id:
            file.fail(number, f"the line is {shown(line)}, expected a user id, a tab and integers")
        if user_id in found:
            first = list(found).index(user_id) + 1
            file.fail(number, f"user {shown(user_id)} occurs before, in line {first}")
        try:
            found[user_id] = array("q", map(int, rest.split() if plain.fullmatch(rest) else [rest]))
        except (ValueError, OverflowError):
            bad = shown(next(token for token in rest.split(" ") if not _is_int64(token)))
            file.fail(number, f"{bad} is not an integer in int64, expected integers and single spaces")
    return found


def _is_int64(token: str) -> bool:
    return bool(re.fullmatch("-?[0-9]{1,30}", token)) and -(2**63) <= int(token) < 2**63


def _read_times(file: _File, sequences: dict[str, array], offsets: np.ndarray) -> np.ndarray:
    """Times of the same users and as many as in the sequences, in time order for each user."""
    found = _read_sequences(file)
    if len(found) != len(sequences):
        raise ValueError(f"{file.path} has {len(found)} users, expected {len(sequences)} as in the sequences")
    for line, (user_id, expected) in enumerate(zip(found, sequences, strict=True), 1):
        if user_id != expected:
            file.fail(line, f"user {shown(user_id)}, expected {shown(expected)} as in the sequences")
        n_times, n_items = len(found[user_id]), len(sequences[user_id])
        if n_times != n_items:
            file.fail(line, f"{n_times} times, expected {n_items} as in the sequences")
    times = _end_to_end(found)
    if line := first_fall(times, offsets) + 1:
        seconds = times[offsets[line - 1] : offsets[line]].tolist()
        file.fail(line, f"times {shown(seconds)} go backwards, expected time order")
    return times


def first_fall(times: np.ndarray, offsets: np.ndarray) -> int:
    """Position of the first user whose times fall, or -1; from one user to the next, time may go back.

    >>> first_fall(np.array([5, 9, 1, 7, 6]), np.array([0, 2, 5]))
    1
    """
    falls = np.setdiff1d(np.flatnonzero(np.diff(times) < 0) + 1, offsets)
    return int(np.searchsorted(offsets, falls[0], side="right")) - 1 if len(falls) else -1


def _end_to_end(sequences: dict[str, array]) -> np.ndarray:
    return np.fromiter(chain.from_iterable(sequences.values()), dtype=np.int64)


# --- write ---


def write_folder(
    folder: str | Path,
    items: Iterable[dict],
    sequences: Iterable[tuple[str, Sequence[int]]] | None = None,
    timestamps: Iterable[tuple[str, Sequence[int]]] | None = None,
    queries: Iterable[dict] | None = None,
    *,
    overwrite: bool = False,
) -> None:
    """Write one data set that `data.load` reads, as gzipped JSONL and TSV; equal content gives equal bytes.

    items: records with `item_id` and `title`. sequences, timestamps: pairs of a user id and a list of
    integers, in the same order. queries: records with `query` and `item_ids`. Files get their names when all
    are complete; `overwrite` then removes the data files that were there, and leaves other files alone.

    Raises ValueError if the folder is not empty and `overwrite` is false, for a part without records, for a
    user id that is empty or holds a tab or newline, and for a value that is not JSON; `load` checks the rest.

    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_folder(folder, [{"item_id": 1, "title": "Red lipstick"}], [("ann", [1])])
    ...     sorted(path.name for path in Path(folder).iterdir())
    ['items.jsonl.gz', 'sequences.tsv.gz']
    """
    folder = Path(folder)
    check_output(folder, overwrite)
    parts = {
        "items.jsonl.gz": (_json_line, items),
        "sequences.tsv.gz": (_tsv_line, sequences),
        "timestamps.tsv.gz": (_tsv_line, timestamps),
        "queries.jsonl.gz": (_json_line, queries),
    }
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".partial-") as partial:
        for name, (line_of, records) in parts.items():
            if records is not None:
                _write_lines(Path(partial, name), map(line_of, records))
        for old in _existing_files(folder):
            shutil.rmtree(old) if old.is_dir() else old.unlink()
        for path in Path(partial).iterdir():
            os.replace(path, folder / path.name)


def check_output(folder: str | Path, overwrite: bool = False) -> None:
    """Raise ValueError if a folder cannot be written to: it is a file, or not empty and `overwrite` is false.

    >>> check_output("a/folder/that/is/new")
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file, expected a folder")
    if folder.is_dir() and not overwrite and any(folder.iterdir()):
        raise ValueError(f"{folder} is not empty, expected an empty or new folder (or overwrite)")


def _write_lines(path: Path, lines: Iterable[str]) -> None:
    n_lines = 0
    # no name and no time of writing, which would change the bytes
    with path.open("wb") as raw, gzip.GzipFile("", "wb", compresslevel=6, fileobj=raw, mtime=0) as file:
        try:
            for line in lines:
                file.write(line.encode() + b"\n")
                n_lines += 1
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path.name}, line {n_lines + 1} cannot be written: {error}") from error
    if not n_lines:
        raise ValueError(f"no records for {path.name}, expected at least one (or None)")


_json_line = json.JSONEncoder(ensure_ascii=False, allow_nan=False).encode


def _tsv_line(user: tuple[str, Sequence[int]]) -> str:
    user_id, values = user
    if not isinstance(user_id, str) or not user_id or "\t" in user_id or "\n" in user_id:
        raise ValueError(f"user id {shown(user_id)}, expected text without tab and newline")
    return f"{user_id}\t{' '.join(map(str, values))}"
