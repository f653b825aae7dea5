"""Lines and records of text files: decoding, JSON lines, delimited text.

Text may be gzipped and may begin with a byte order mark. Input that cannot be read is a ValueError with file and line.
"""

import codecs
import contextlib
import csv
import gzip
import io
import json
import math
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, dropwhile
from pathlib import Path
from typing import BinaryIO, cast

from semid_lib.workbench.text import shown

LONGEST_LINE = 2**26  # bytes; a longer line is refused, so that memory stays bounded
SEPARATORS = (",", ";", "\t", "|", "::")


@dataclass(frozen=True)
class Layout:
    """The format of a file of delimited text; None means that it is found out.

    Parameters
    ----------
    separator : str, optional
        One of `SEPARATORS` or any other text; by default the first that gives the wanted columns.
    encoding : str, optional
        A name that Python knows; by default UTF-8, or UTF-16 or UTF-32 if the file begins like one.
    escape : str, optional
        The character before a quote inside a quoted field, if quotes are not doubled.
    names : sequence of str, optional
        Names of the columns of a file without a header.
    """

    separator: str | None = None
    encoding: str | None = None
    escape: str | None = None
    names: Sequence[str] | None = None

    def __post_init__(self):
        try:
            "".encode(self.encoding or "utf-8")
        except LookupError as error:
            raise ValueError(f"encoding {self.encoding!r} ({error}), expected one such as utf-8 or cp1252") from error
        if self.separator == "" or len(self.escape or "\\") != 1:
            given = f"separator is {self.separator!r} and escape {self.escape!r}"
            raise ValueError(f"{given}, expected some text and one character")


# --- lines ---


@contextlib.contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """Open a file for reading bytes, unpacked if it begins like gzip, whatever its name."""
    with path.open("rb") as raw:
        packed = raw.read(2) == b"\x1f\x8b"
        raw.seek(0)
        with gzip.open(raw) if packed else raw as file:
            try:
                yield cast(BinaryIO, file)
            except (EOFError, zlib.error, gzip.BadGzipFile) as error:
                where = f"after {file.tell():,} bytes of its content"
                raise ValueError(f"{path}: truncated or corrupt gzip {where} ({error})") from error


def lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Number, from 1, and bytes of each line, with its end, without a byte order mark of UTF-8.

    Raises ValueError for a damaged gzip file, and for a line longer than `LONGEST_LINE`.
    """
    number = 0
    with opened(path) as file:
        while line := file.readline(LONGEST_LINE + 1):
            number += 1
            if len(line) > LONGEST_LINE:
                raise ValueError(f"{path}, line {number}: longer than {LONGEST_LINE} bytes")
            yield number, line.removeprefix(codecs.BOM_UTF8) if number == 1 else line


def decoded(path: Path, encoding: str | None = None) -> Iterator[tuple[int, str]]:
    """Number and text of each line, with its end. Raises ValueError naming the first byte that is not text."""
    if encoding is None:
        with opened(path) as file:
            encoding = _wide_encoding(file.read(4))
    name = codecs.lookup(encoding or "utf-8").name
    if name.startswith(("utf-16", "utf-32")):
        with opened(path) as file:
            try:
                yield from enumerate(io.TextIOWrapper(file, name, newline="\n"), 1)
            except UnicodeError as error:
                raise ValueError(f"{path}: not {name.upper()} text ({error})") from error
        return
    for number, line in lines(path):
        try:
            yield number, line.decode(name)
        except UnicodeDecodeError as error:
            hint = "" if encoding else ": give the encoding of the file, such as latin-1 or cp1252, or save it as UTF-8"
            problem = f"byte {line[error.start]:#04x} is not {name.upper()}, expected {name.upper()} text{hint}"
            raise ValueError(f"{path}, line {number}: {problem}") from error


def _wide_encoding(start: bytes) -> str | None:
    """UTF-16 or UTF-32 by the byte order mark of a file, or by the zeros among its first bytes."""
    for mark in (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):  # UTF-32 first
        if start.startswith(mark):
            return "utf-32" if len(mark) == 4 else "utf-16"
    zeros = "".join("0" if byte == 0 else "x" for byte in start)
    return {"x0x0": "utf-16-le", "0x0x": "utf-16-be"}.get(zeros)


def text_lines(path: Path, encoding: str | None = None) -> Iterator[tuple[int, str]]:
    """Number and text of each line, without its end; a blank line is refused, except at the end of the file."""
    found = ((number, line.rstrip("\r\n")) for number, line in decoded(path, encoding))
    return _filled(path, found, lambda line: not line.strip())


def _filled(path: Path, found: Iterable[tuple], is_blank: Callable) -> Iterator[tuple]:
    """Records with their numbers; blank ones are left out at the end of a file, and refused before it."""
    blank = 0
    for number, record in found:
        if is_blank(record):
            blank = blank or number
        elif blank:
            raise ValueError(f"{path}, line {blank}: blank line, expected a record: remove the line")
        else:
            yield number, record


# --- JSON ---


def json_records(path: Path, needed: Sequence[str] = ()) -> Iterator[tuple[int, dict]]:
    """Line and record of JSON lines; of a `.json` file that holds one list, the number of each record.

    needed: fields that every record must have.
    """
    found: Iterable = ((number, _json_value(path, number, line)) for number, line in text_lines(path))
    if path.name.removesuffix(".gz").endswith(".json"):
        with opened(path) as file:
            is_list = file.read(1024).removeprefix(codecs.BOM_UTF8).lstrip().startswith(b"[")
        if is_list:
            found = enumerate(_json_value(path, 1, "".join(line for _, line in decoded(path))), 1)
    for number, record in found:
        if not isinstance(record, dict):
            raise ValueError(f"{path}, line {number}: {shown(record)} is not a JSON object")
        if lacking := [name for name in needed if name not in record]:
            fields = f"{shown(list(record))}, expected also {lacking[0]!r}"
            raise ValueError(f"{path}, line {number}: the fields are {fields}")
        yield number, record


def _json_value(path: Path, number: int, text: str):
    """The value of some JSON; NaN is null. Raises ValueError with file and line."""
    try:
        value = json.loads(text, object_pairs_hook=_each_once, parse_constant=_finite, parse_float=_finite)
        if "\\ud" in text.lower():
            json.dumps(value, ensure_ascii=False).encode()  # half of a surrogate pair is no text
        return value
    except json.JSONDecodeError as error:
        problem = f"broken JSON at column {error.colno} ({error.msg})"
    except (ValueError, RecursionError) as error:  # a number of 5,000 digits, 100,000 brackets
        problem = f"JSON that cannot be read ({shown(str(error))})"
    raise ValueError(f"{path}, line {number}: {problem}, the line is {shown(text)}")


def _each_once(pairs: list[tuple[str, object]]) -> dict:
    found = dict(pairs)
    if len(found) < len(pairs):
        name = Counter(name for name, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"field {name!r} occurs twice")
    return found


def _finite(text: str) -> float | None:
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"{text} does not fit into a number of 64 bits")
    return None if math.isnan(value) else value


# --- delimited text ---


def delimited(path: Path, wanted: Sequence[str], layout: Layout) -> Iterator[tuple[int, list[str]]]:
    """The header, then the rows of delimited text, each with the line at which it begins.

    A first line `sep=;` (Excel) names the separator. Lines before the header that begin with # are left out.
    Separators at the end of the lines make no column.
    """
    found = _universal(decoded(path, layout.encoding))
    separator, header = layout.separator, list(layout.names or ())
    for number, line in found:
        if match := re.fullmatch(r"\s*\"?sep=(.+?)\"?\s*", line):
            separator = separator or match[1]
            continue
        chosen = separator or _separator(line, () if header else wanted, layout)
        names = [name.strip() for name in _cells(line, chosen, layout)]
        is_comment = line.startswith("#") and (len(names) == 1 or not set(wanted) <= set(names))
        if header:  # this line is a row already
            last, found = number - 1, chain([(number, line)], found)
            break
        if line.strip() and not is_comment:
            last, header = number, list(dropwhile(lambda name: not name, names[::-1]))[::-1]
            break
    else:
        raise empty_file(path)
    if len(set(header)) < len(header):
        raise ValueError(f"{path}, line {last}: the header is {shown(header)}, expected every name once")
    check_columns(path, header, wanted)
    yield last, header
    width = len(header)
    rows = _rows(path, found, chosen, layout, last)
    for number, row in _filled(path, rows, lambda row: row in ([], [""])):
        if len(row) < width or any(row[width:]):
            raise ValueError(f"{path}, line {number}: {len(row)} fields, expected {width} as in the header")
        yield number, row[:width]


def _universal(found: Iterable[tuple[int, str]]) -> Iterator[tuple[int, str]]:
    """Lines that may also end in a carriage return alone, as Excel on a Mac writes them, numbered afresh."""
    number = 0
    for _, line in found:
        parts = [line] if line.find("\r", 0, -2) < 0 else re.findall(r"[^\r]*\r+\n?|[^\r]+", line)
        for part in parts:
            number += 1
            yield number, part


def _separator(line: str, wanted: Sequence[str], layout: Layout) -> str:
    """The first separator that gives the wanted columns, else the one that gives most columns."""
    cells = {one: [cell.strip() for cell in _cells(line, one, layout)] for one in SEPARATORS}
    for one, names in cells.items():
        if wanted and set(wanted) <= set(names) and (len(names) > 1 or max(map(len, cells.values())) == 1):
            return one
    return max(SEPARATORS, key=lambda one: len(cells[one]))


def _reader(texts: Iterable[str], separator: str, layout: Layout):
    csv.field_size_limit(LONGEST_LINE)
    return csv.reader(texts, delimiter=separator, strict=True, escapechar=layout.escape, doublequote=not layout.escape)


def _cells(line: str, separator: str, layout: Layout) -> list[str]:
    if len(separator) == 1:
        with contextlib.suppress(csv.Error):
            return next(_reader([line], separator, layout), [])
    return line.rstrip("\r\n").split(separator)


def _rows(path: Path, found: Iterator, separator: str, layout: Layout, last: int) -> Iterator[tuple[int, list[str]]]:
    """Rows after line `last` with the line at which each begins; a quoted field may span lines."""
    if len(separator) > 1:  # there are no quotes
        yield from ((number, _cells(line, separator, layout)) for number, line in found)
        return
    reader = _reader((line for _, line in found), separator, layout)
    while True:
        start = last + reader.line_num + 1
        try:
            row = next(reader, None)
        except csv.Error as error:
            hint = ": if quotes are escaped by a backslash, say so (escape)" if "expected after" in str(error) else ""
            raise ValueError(f"{path}, line {start}: broken CSV ({error}){hint}") from error
        if row is None:
            return
        yield start, row


# --- errors ---


def empty_file(path: str | Path) -> ValueError:
    return ValueError(f"{path} is empty, expected at least one record")


def check_columns(path: Path, names: Sequence[str], wanted: Iterable[str]) -> None:
    """Raise ValueError naming the first of the wanted columns that a file lacks."""
    if missing := [name for name in wanted if name not in names]:
        raise ValueError(f"{path} has no column {missing[0]!r}, expected one of {shown(list(names), 300)}")
