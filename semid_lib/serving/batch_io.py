"""Histories or queries as a stream of records.

| file       | a history                                                     | a query                        |
| ---------- | ------------------------------------------------------------- | ------------------------------ |
| `.txt`     | `user_id item_1 item_2 ...`                                   | the line                       |
| `.tsv`     | `user_id`, a tab, `item_1 item_2 ...`; as `sequences.tsv`     |                                |
| `.csv`     | columns `user_id`, `item_ids` (`A-1 A-2` or `["A 1", "A 2"]`) | column `query`                 |
| `.jsonl`   | `{"user_id": "ann", "item_ids": ["A-1", 17]}`                 | `{"query": "red nail polish"}` |
| `.parquet` | columns `user_id`, `item_ids` (a list)                        | column `query`                 |

Text is UTF-8 and may be gzipped (`.gz`). A record that cannot be read is returned with its line and the reason, and
reading continues after it. Memory does not grow with the file.
"""

import codecs
import contextlib
import csv
import gzip
import hashlib
import json
import os
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from semid_lib.data import dataset
from semid_lib.data.readers import literal
from semid_lib.workbench.text import has_controls, shown

ENDINGS = (".txt", ".tsv", ".csv", ".jsonl", ".parquet")
LONGEST = 2**20  # bytes of one line, or of one CSV record
_ROWS = 64  # of Parquet that are read together
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")  # except white space, which a query may have


class Record(NamedTuple):
    """One history or query, or the reason why it cannot be read."""

    line: int  # where it begins, from 1; a CSV header counts. In Parquet: the row
    n_bytes: int  # approximate: 1 for a blank line
    text: str  # as in the file, without the end of the line; "" for a blank line
    key: str  # the user id, or the query
    item_ids: list[str]  # oldest first, integers as decimal text; empty for a query
    reason: str | None = None


class RecordFile:
    """The records of a file: a context manager, and an iterable that starts again each time.

    Parameters
    ----------
    path : str or Path
        Its ending is the format, see the module.
    queries : bool
        The file has texts instead of histories.

    Raises
    ------
    ValueError
        For another ending, a file without the required columns, and damaged gzip or Parquet.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder, "histories.txt")
    ...     size = path.write_text("ann A-1 17\\n\\n")
    ...     with RecordFile(path, queries=False) as file:
    ...         list(file)
    [Record(line=1, n_bytes=11, text='ann A-1 17', key='ann', item_ids=['A-1', '17'], reason=None)]
    """

    def __init__(self, path: str | Path, queries: bool):
        self.path, self.queries, self.ending = Path(path), queries, ending(path)
        known = [one for one in ENDINGS if one != ".tsv" or not queries]
        if self.ending.removesuffix(".gz") not in known or self.ending == ".parquet.gz":
            raise ValueError(f"{path} ends in {self.ending!r}, expected {', '.join(known)}, text also with .gz")

    def __enter__(self) -> "RecordFile":
        self._stream = open(self.path, "rb")
        self._state = self._now()
        is_plain = self.ending in ENDINGS and self.ending != ".parquet"
        self.n_bytes = self._state[0] if is_plain else None  # sum over the records, if known before reading
        return self

    def __exit__(self, *_) -> None:
        self._stream.close()

    def facts(self) -> list[str]:
        """Identify the content: ending and checksum."""
        self._stream.seek(0)
        found = [self.ending, hashlib.file_digest(self._stream, "sha256").hexdigest()]
        self.check()
        return found

    def check(self) -> None:
        """Raise ValueError if the file was written to after it was opened."""
        if self._now() != self._state:
            raise ValueError(f"{self.path} changed while it was read: run again when it is complete")

    def _now(self) -> tuple[int, int]:
        state = os.fstat(self._stream.fileno())
        return state.st_size, state.st_mtime_ns

    def __iter__(self) -> Iterator[Record]:
        self._stream.seek(0)
        kind = self.ending.removesuffix(".gz")
        opened: Callable[[Any], Any] = gzip.open if self.ending.endswith(".gz") else contextlib.nullcontext
        parse: Callable[[Any], dict[str, Any]] = _PARSERS.get(kind, dict)
        try:
            with opened(self._stream) as stream:
                found = _rows(stream, self._columns) if kind == ".parquet" else _text_records(stream, kind == ".csv")
                if kind == ".csv":
                    parse = self._csv_parser(next(found, None))
                for raw in found:
                    yield _record(raw, parse, self.queries)
        except (EOFError, OSError, zlib.error, pa.ArrowException) as error:
            raise ValueError(f"{self.path} is truncated or corrupt, expected a {self.ending} file: {error}") from error

    def _columns(self, names: list[str]) -> list[str]:
        wanted = ["query"] if self.queries else ["user_id", "item_ids"]
        if missing := [name for name in wanted if names.count(name) != 1]:
            raise ValueError(f"{self.path} has the columns {names}, expected one {missing[0]!r}")
        return wanted

    def _csv_parser(self, header: "_Raw | None") -> Callable[[list[str]], dict[str, Any]]:
        if header is not None and header.reason:
            raise ValueError(f"{self.path}, line 1: {header.reason}")
        names = [] if header is None else [name.strip() for name in header.found]
        wanted = self._columns(names)

        def parse(cells: list[str]) -> dict[str, Any]:
            if len(cells) != len(names):
                raise ValueError(f"the record has {len(cells)} cells, the header {len(names)}")
            fields: dict[str, Any] = {name: cells[names.index(name)] for name in wanted}
            if not self.queries:  # separated by white space, or a JSON or Python list
                text = fields["item_ids"]
                fields["item_ids"] = literal(text) if text.lstrip().startswith("[") else text.split()
            return fields

        return parse


def write_histories(data: str | Path, users: Sequence[str], path: Path) -> None:
    """Write the histories of a data set as a `.jsonl` file, which `RecordFile` reads.

    Parameters
    ----------
    data : str or Path
        A folder that `dataset.load` reads, or "demo".
    users : sequence of str
        User ids to select, in this order; none for all.
    path : Path

    Raises
    ------
    ValueError
        If the data set has no histories or not this user, and what `dataset.load` raises.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder, "histories.jsonl")
    ...     write_histories("demo", ["17"], path)
    ...     path.read_text()[:41]
    '{"user_id": "17", "item_ids": [482, 851, '
    """
    shop = dataset.load(data, columns=())
    if shop.histories is None:
        raise ValueError(f"{data} has no histories: add sequences.tsv, or predict from a file")
    position_of = {user: position for position, user in enumerate(shop.histories.user_ids)}
    if unknown := [user for user in users if user not in position_of]:
        example = shown(next(iter(position_of), None))
        raise ValueError(f"user {shown(unknown[0])} is not among the {len(position_of)} users, such as {example}")
    with open(path, "w", encoding="utf-8") as stream:
        for user in dict.fromkeys(users or position_of):
            items = shop.item_ids.at(shop.histories[position_of[user]]).tolist()
            stream.write(json.dumps({"user_id": user, "item_ids": items}, ensure_ascii=False) + "\n")


def ending(path: str | Path) -> str:
    """The ending that names the format, with `.gz` where it has one.

    >>> ending("a/shop.1.jsonl.gz"), ending("shop.csv")
    ('.jsonl.gz', '.csv')
    """
    path = Path(path)
    return path.with_suffix("").suffix + ".gz" if path.suffix == ".gz" else path.suffix


# --- text: lines, and CSV records that may span lines ---


class _TooLongError(ValueError):
    pass


class _Lines:
    """Physical lines of a stream, as text; `content` has those of the record that `begin` began."""

    def __init__(self, stream: BinaryIO):
        self._stream, self.line, self.n_lines = stream, 1, 0

    def begin(self) -> None:
        self.line, self.n_lines, self.content = self.line + self.n_lines, 0, bytearray()

    def __iter__(self) -> "_Lines":
        return self

    def __next__(self) -> str:
        """Raises _TooLongError; `skip` then finds the end of the record."""
        raw = self._stream.readline(LONGEST + 5)  # a byte order mark and the line's end are not counted
        if not raw:
            raise StopIteration
        if self.line == 1 and not self.n_lines:
            raw = raw.removeprefix(codecs.BOM_UTF8)
        self.n_lines += 1
        self.content += raw
        if len(self.content) - len(raw) + len(raw.removesuffix(b"\n").removesuffix(b"\r")) > LONGEST:
            raise _TooLongError(f"the record is longer than {LONGEST} bytes")
        return raw.decode("utf-8", "surrogateescape")

    def skip(self, quotes: bool) -> None:
        """Read to the end of the record and keep its beginning; a line end inside quotes does not end it."""
        whole, is_open = self.content.endswith(b"\n"), quotes and self.content.count(b'"') % 2
        del self.content[1000:]
        while not whole or is_open:
            if not (raw := self._stream.readline(LONGEST)):
                return
            self.n_lines += whole
            whole, is_open = raw.endswith(b"\n"), is_open ^ (quotes and raw.count(b'"') % 2)


class _Raw(NamedTuple):
    line: int
    n_bytes: int
    text: str
    found: Any  # a line, the cells of a CSV record, or a row of Parquet
    reason: str | None = None


def _text_records(stream: BinaryIO, is_csv: bool) -> Iterator[_Raw]:
    """Lines, or CSV records; a broken CSV record is rejected with all lines that its quotes span.

    Blank lines at the end of the file are no records.
    """
    csv.field_size_limit(max(csv.field_size_limit(), LONGEST))
    lines, n_blank = _Lines(stream), 0  # counted, not kept: there may be any number
    reader = csv.reader(lines, strict=True) if is_csv else lines
    while True:
        lines.begin()
        found: Any = None
        reason = None
        try:
            found = next(reader)
            lines.content.decode("utf-8")
        except StopIteration:
            return
        except _TooLongError as error:
            lines.skip(quotes=is_csv)
            reason = f"{error}: is a quote missing?" if lines.n_lines > 1 else str(error)
        except csv.Error as error:
            reason = f"the record is not CSV: {error}"
        except UnicodeDecodeError as error:
            reason = f"the line is not UTF-8: {error.reason} at byte {error.start}"
        text = lines.content.decode("utf-8", "backslashreplace").rstrip("\r\n")
        if reason is None and not text.strip():
            n_blank += 1
            continue
        yield from (_Raw(line, 1, "", None, "the line is empty") for line in range(lines.line - n_blank, lines.line))
        n_blank = 0
        yield _Raw(lines.line, len(lines.content), text, found if is_csv else text, reason)


def _rows(stream: BinaryIO, columns: Callable[[list[str]], list[str]]) -> Iterator[_Raw]:
    file = pq.ParquetFile(stream)
    wanted, line = columns(file.schema_arrow.names), 0
    for batch in file.iter_batches(_ROWS, columns=wanted):
        for line, row in enumerate(batch.select(wanted).to_pylist(), line + 1):  # noqa: B020
            text = json.dumps(row, ensure_ascii=False, default=str)
            yield _Raw(line, len(text), text, row)


# --- one record ---


def _parse_txt(line: str) -> dict[str, Any]:
    user_id, *items = line.split()
    return {"query": line, "user_id": user_id, "item_ids": items}


def _parse_tsv(line: str) -> dict[str, Any]:
    user_id, tab, items = line.partition("\t")
    if not tab:
        raise ValueError(f"the line is {shown(user_id)}, expected a user id, a tab and item ids")
    return {"user_id": user_id, "item_ids": items.split(" ") if items else []}


def _parse_json(line: str) -> dict[str, Any]:
    try:
        record = json.loads(line, parse_int=str)  # integers as text: they may be ids of any length
    except (ValueError, RecursionError) as error:
        raise ValueError(f"the line is not JSON: {error}") from error
    if not isinstance(record, dict):
        raise ValueError(f"the line is {type(record).__name__}, expected an object")
    return record


_PARSERS = {".txt": _parse_txt, ".tsv": _parse_tsv, ".jsonl": _parse_json}


def _record(raw: _Raw, parse: Callable[[Any], dict[str, Any]], queries: bool) -> Record:
    line, n_bytes, text, found, reason = raw
    try:
        if reason is None:
            return Record(line, n_bytes, text, *_checked(parse(found), queries))
    except ValueError as error:
        reason = str(error)
    return Record(line, n_bytes, text[:LONGEST], "", [], reason)


def _checked(fields: dict[str, Any], queries: bool) -> tuple[str, list[str]]:
    """The user id or query, and the item ids."""
    name = "query" if queries else "user_id"
    key, items = fields.get(name), [] if queries else fields.get("item_ids")
    if type(key) not in (str, int):
        raise ValueError(f"{name!r} is {shown(key)}, expected text")
    if not isinstance(items, list) or not all(type(item) in (str, int) for item in items):
        raise ValueError(f"'item_ids' is {shown(items)}, expected a list of text or integers")
    key, items, name = str(key).strip() if queries else str(key), list(map(str, items)), name.replace("_", " ")
    if not key.strip():
        raise ValueError(f"the {name} is empty")
    if _CONTROL.search(key) if queries else has_controls(key):
        raise ValueError(f"the {name} is {shown(key)}, expected text without control characters")
    "".join([key, *items]).encode("utf-8")  # JSON may have half of a surrogate pair, which no file can
    return key, items
