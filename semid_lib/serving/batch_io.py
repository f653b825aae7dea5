"""Histories or queries as a stream of records, from a file or from a data set.

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
from functools import partial
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

Parsed = tuple[str, list[str]]  # user id or query; item ids


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
        kind = self.ending.removesuffix(".gz")
        known = [one for one in ENDINGS if one != ".tsv" or not queries]
        if kind not in known or self.ending == ".parquet.gz":
            raise ValueError(f"{path} ends in {self.ending!r}, expected {', '.join(known)}, text also with .gz")

    def __enter__(self) -> "RecordFile":
        self._stream = open(self.path, "rb")
        self._state = self._now()
        is_plain = self.ending in ENDINGS and self.ending != ".parquet"
        self.n_bytes = self._state[0] if is_plain else None  # sum over the records, if known before reading
        return self

    def __exit__(self, *_) -> None:
        self._stream.close()

    def facts(self) -> list:
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
        if self.ending == ".parquet":
            yield from _parquet_records(self._stream, self.path, self.queries)
            return
        opened: Callable[[Any], Any] = gzip.open if self.ending.endswith(".gz") else contextlib.nullcontext
        try:
            with opened(self._stream) as stream:
                yield from _text_records(stream, self.ending.removesuffix(".gz"), self.path, self.queries)
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise ValueError(f"{self.path}: truncated or corrupt gzip ({error})") from error


class DataHistories:
    """The histories of a data set as records, with the interface of `RecordFile`.

    Parameters
    ----------
    where : str
        A folder that `dataset.load` reads, or "demo".
    users : sequence of str, optional
        User ids to select, in this order; None for all.

    Raises
    ------
    ValueError
        If the data set has no histories or not this user, and what `dataset.load` raises.

    Examples
    --------
    >>> with DataHistories("demo", users=["17"]) as histories:
    ...     [(record.key, record.item_ids[:2]) for record in histories]
    [('17', ['482', '851'])]
    """

    path, ending, n_bytes = None, "", None

    def __init__(self, where: str | Path, users: Sequence[str] | None = None):
        shop = dataset.load(where, columns=())
        if shop.histories is None:
            raise ValueError(f"{where} has no histories: add sequences.tsv, or predict from a file")
        position_of = {user: position for position, user in enumerate(shop.histories.user_ids)}
        if unknown := [user for user in users or () if user not in position_of]:
            example = shown(next(iter(position_of), None))
            raise ValueError(f"user {shown(unknown[0])} is not among the {len(position_of)} users, such as {example}")
        self._shop, self._histories = shop, shop.histories
        self._users = None if users is None else list(dict.fromkeys(users))
        self._positions = [position_of[user] for user in (position_of if self._users is None else self._users)]

    def __enter__(self) -> "DataHistories":
        return self

    def __exit__(self, *_) -> None: ...

    def facts(self) -> list:
        """Identify the content: fingerprint and users."""
        return [self._shop.fingerprint, self._users]

    def check(self) -> None:
        """Do nothing: the data set is in memory, so it cannot change."""

    def __iter__(self) -> Iterator[Record]:
        for position in self._positions:
            user = self._histories.user_ids[position]
            items = [str(item_id) for item_id in self._shop.item_ids.at(self._histories[position])]
            text = f"{user}\t{' '.join(items)}"
            yield _record(position + 1, len(text), text, partial(_checked, user, items, False))


def ending(path: str | Path) -> str:
    """The ending that names the format, with `.gz` where it has one.

    >>> ending("a/shop.1.jsonl.gz"), ending("shop.csv")
    ('.jsonl.gz', '.csv')
    """
    path = Path(path)
    return path.with_suffix("").suffix + ".gz" if path.suffix == ".gz" else path.suffix


# --- text: lines, and CSV records that may span lines ---


class _Raw(NamedTuple):
    line: int
    content: bytes
    cells: list[str] | None  # of CSV
    reason: str | None


def _text_records(stream: BinaryIO, kind: str, path: Path, queries: bool) -> Iterator[Record]:
    """Blank lines at the end of the file are no records."""
    found = _raw_records(stream, kind == ".csv")
    parse = _PARSERS[kind] if kind != ".csv" else _csv_parser(path, next(found, None), queries)
    n_blank = 0  # counted, not kept: there may be any number
    for raw in found:
        text = raw.content.decode("utf-8", "backslashreplace").rstrip("\r\n")
        if raw.reason is None and not text.strip():
            n_blank += 1
            continue
        for line in range(raw.line - n_blank, raw.line):
            yield Record(line, 1, "", "", [], "the line is empty")
        n_blank = 0
        yield _record(raw.line, len(raw.content), text, partial(_parsed, parse, raw, text, queries))


def _parsed(parse: Callable[[Any, bool], Parsed], raw: _Raw, text: str, queries: bool) -> Parsed:
    if raw.reason is not None:
        raise ValueError(raw.reason)
    try:
        raw.content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"the line is not UTF-8: {error.reason} at byte {error.start}") from error
    return parse(text if raw.cells is None else raw.cells, queries)


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


def _raw_records(stream: BinaryIO, is_csv: bool) -> Iterator[_Raw]:
    """Lines, or CSV records; a broken CSV record is rejected with all lines that its quotes span."""
    csv.field_size_limit(max(csv.field_size_limit(), LONGEST))
    lines = _Lines(stream)
    reader = csv.reader(lines, strict=True) if is_csv else lines
    while True:
        lines.begin()
        found, reason = None, None
        try:
            found = next(reader)
        except StopIteration:
            return
        except _TooLongError as error:
            lines.skip(quotes=is_csv)
            reason = f"{error}: is a quote missing?" if lines.n_lines > 1 else str(error)
        except csv.Error as error:
            reason = f"the record is not CSV: {error}"
        yield _Raw(lines.line, bytes(lines.content), found if isinstance(found, list) else None, reason)


# --- Parquet ---


def _parquet_records(stream: BinaryIO, path: Path, queries: bool) -> Iterator[Record]:
    try:
        file = pq.ParquetFile(stream)
        wanted = _columns(path, file.schema_arrow.names, queries)
        line = 0
        for batch in file.iter_batches(_ROWS, columns=wanted):
            for line, row in enumerate(batch.select(wanted).to_pylist(), line + 1):  # noqa: B020
                text = json.dumps(row, ensure_ascii=False, default=str)
                yield _record(line, len(text), text, partial(_from_fields, row, queries))
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path} is not a Parquet file that can be read ({error})") from error


# --- one record ---


def _record(line: int, n_bytes: int, text: str, parse: Callable[[], Parsed]) -> Record:
    try:
        key, item_ids = parse()
    except ValueError as error:
        return Record(line, n_bytes, text[:LONGEST], "", [], str(error))
    return Record(line, n_bytes, text, key, item_ids)


def _checked(key: str, item_ids: list[str], queries: bool) -> Parsed:
    name = "query" if queries else "user id"
    if not key.strip():
        raise ValueError(f"the {name} is empty")
    if _CONTROL.search(key) if queries else has_controls(key):
        raise ValueError(f"the {name} is {shown(key)}, expected text without control characters")
    "".join([key, *item_ids]).encode("utf-8")  # JSON may have half of a surrogate pair, which no file can
    return key, item_ids


def _parse_txt(text: str, queries: bool) -> Parsed:
    if queries:
        return _checked(text.strip(), [], queries)
    user_id, *items = text.split()
    return _checked(user_id, items, queries)


def _parse_tsv(text: str, queries: bool) -> Parsed:
    user_id, tab, items = text.partition("\t")
    if not tab:
        raise ValueError(f"the line is {shown(text)}, expected a user id, a tab and item ids")
    return _checked(user_id, items.split(" ") if items else [], queries)


def _parse_json(text: str, queries: bool) -> Parsed:
    try:
        record = json.loads(text, parse_int=str)  # integers as text: they may be ids of any length
    except (ValueError, RecursionError) as error:
        raise ValueError(f"the line is not JSON: {error}") from error
    if not isinstance(record, dict):
        raise ValueError(f"the line is {type(record).__name__}, expected an object")
    return _from_fields(record, queries)


_PARSERS = {".txt": _parse_txt, ".tsv": _parse_tsv, ".jsonl": _parse_json}


def _from_fields(record: dict[str, Any], queries: bool) -> Parsed:
    name = "query" if queries else "user_id"
    key, items = record.get(name), [] if queries else record.get("item_ids")
    if type(key) not in (str, int):
        raise ValueError(f"{name!r} is {shown(key)}, expected text")
    if not isinstance(items, list) or not all(type(item) in (str, int) for item in items):
        raise ValueError(f"'item_ids' is {shown(items)}, expected a list of text or integers")
    return _checked(str(key).strip() if queries else str(key), [str(item) for item in items], queries)


def _columns(path: Path, names: list[str], queries: bool) -> list[str]:
    wanted = ["query"] if queries else ["user_id", "item_ids"]
    if missing := [name for name in wanted if names.count(name) != 1]:
        raise ValueError(f"{path} has the columns {names}, expected one {missing[0]!r}")
    return wanted


def _csv_parser(path: Path, header: _Raw | None, queries: bool) -> Callable[[list[str], bool], Parsed]:
    names: list[str] = []
    if header is not None:
        try:
            _parsed(lambda *_: ("", []), header, "", queries)
        except ValueError as error:
            raise ValueError(f"{path}, line 1: {error}") from error
        names = [name.strip() for name in header.cells or ()]
    wanted = _columns(path, names, queries)

    def parse(cells: list[str], queries: bool) -> Parsed:
        if len(cells) != len(names):
            raise ValueError(f"the record has {len(cells)} cells, the header {len(names)}")
        fields: dict[str, Any] = {name: cells[names.index(name)] for name in wanted}
        if not queries:  # separated by white space, or a JSON or Python list
            text = fields["item_ids"]
            fields["item_ids"] = literal(text) if text.lstrip().startswith("[") else text.split()
        return _from_fields(fields, queries)

    return parse
