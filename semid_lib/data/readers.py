"""One reader of tables for importers and data folders: JSON lines, delimited text, Parquet and Arrow.

What cannot be read is a ValueError with file, line (row, in Parquet and Arrow) and what was expected. A byte order mark
is accepted, and text may be gzipped.
"""

import ast
import codecs
import contextlib
import csv
import gzip
import io
import json
import math
import re
import tokenize
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from pathlib import Path
from typing import BinaryIO, NamedTuple, NoReturn

import numpy as np
import pandas as pd

from semid_lib.workbench.text import shown

LONGEST_LINE = 2**26  # bytes; a longer one is refused, so that memory stays bounded
_ADJACENT = re.compile(r"""['"]\s*['"]""")  # two texts with nothing between them, or an empty one
SEPARATORS = (",", ";", "\t", "|", "::")
_TOGETHER = 16_384  # records that become a piece of a table together
# how databases and pandas write a missing value as text
NOTHING = frozenset(
    [
        "",
        "NULL",
        "Null",
        "null",
        "(null)",
        "\\N",
        "nan",
        "NaN",
        "NAN",
        "-nan",
        "None",
        "none",
        "NONE",
        "NA",
        "N/A",
        "n/a",
        "#N/A",
        "<NA>",
        "NaT",
        "nil",
        "undefined",
    ]
)


@dataclass(frozen=True)
class Layout:
    """How a file of delimited text is written; what is None is found out.

    separator: one of `SEPARATORS` or any other text; None takes the first that gives the columns that are wanted.
    encoding: a name that Python knows; None is UTF-8, or UTF-16 if the file begins with its mark.
    escape: the character before a quote inside a quoted field, where quotes are not doubled.
    names: of the columns, where the file has no header.
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


class Table(NamedTuple):
    """Records in columns, with the place of each."""

    path: Path
    frame: pd.DataFrame
    lines: np.ndarray  # (n,) int64, from 1: where each record begins
    unit: str = "line"
    typed: bool = True  # False where all is text, as in CSV

    def fail(self, at: int, problem: str) -> NoReturn:
        raise ValueError(f"{self.path}, {self.unit} {self.lines[at]}: {problem}")

    def fail_at(self, column: str) -> Callable[[int, str], NoReturn]:
        """`fail` for a value of one column."""
        return lambda at, problem: self.fail(at, f"column {column!r}: {problem}")


def read(
    path: str | Path,
    wanted: Sequence[str] = (),
    layout: Layout | None = None,
    only: bool = False,
    each: Sequence[str] = (),
) -> Table:
    """Read a table whose columns include those that are wanted.

    Parameters
    ----------
    path : path
        `.parquet`, `.arrow` or `.feather` (a file, or a folder of them), `.jsonl`, `.ndjson` or `.json`; every other
        file is delimited text.
    wanted : sequence of str
        Columns that must be there.
    layout : Layout, optional
        Of delimited text.
    only : bool
        Keep the wanted columns alone.
    each : sequence of str
        Fields that every JSON record must have.

    Returns
    -------
    Table
        Text of delimited files stays text; JSON values are Python objects; Parquet and Arrow keep their types.

    Raises
    ------
    ValueError
        If the file cannot be read or lacks a column.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder, "shop.csv")
    ...     _ = path.write_text("sku;name\\nA-1;Pen\\n")
    ...     read(path, ["sku"]).frame.to_dict("list")
    {'sku': ['A-1'], 'name': ['Pen']}
    """
    path, layout = _checked(path), layout or Layout()
    kind = _kind(path)
    if kind == "arrow":
        table = _arrow_table(path, wanted, only)
    elif kind == "json":
        table = _json_table(path, wanted, only, each)
    else:
        table = _text_table(path, wanted, layout, only)
    if not len(table.frame):
        raise _empty(path)
    return table


def names_of(path: str | Path, wanted: Sequence[str] = (), layout: Layout | None = None) -> list[str]:
    """The names of the columns of a table; of JSON, those of all records. Raises as `read` does."""
    path = _checked(path)
    kind = _kind(path)
    if kind == "arrow":
        return list(_arrow_schema(path).names)
    if kind == "json":
        names = list(dict.fromkeys(chain.from_iterable(record for _, record in json_records(path))))
        if not names:
            raise _empty(path)
        return names
    return next(delimited(path, wanted, layout or Layout()))[1]


def _empty(path: Path) -> ValueError:
    return ValueError(f"{path} is empty, expected at least one record")


def _checked(path: str | Path) -> Path:
    path = Path(path)
    if not path.is_file() and not (path.is_dir() and _kind(path) == "arrow"):
        raise ValueError(f"{path} is not a file, expected CSV, JSON lines, Parquet or Arrow")
    return path


def _kind(path: Path) -> str:
    ending = path.name.lower().removesuffix(".gz").rpartition(".")[2]
    if ending in ("xlsx", "xls", "ods"):
        raise ValueError(f"{path} is a spreadsheet, expected CSV: save the sheet as CSV UTF-8")
    kinds = dict.fromkeys(("parquet", "arrow", "feather"), "arrow") | dict.fromkeys(("jsonl", "ndjson", "json"), "json")
    return kinds.get(ending, "text")


def _lacking(where: str, names: Sequence[str], wanted: Sequence[str]) -> None:
    if missing := [name for name in wanted if name not in names]:
        raise ValueError(f"{where} has no column {missing[0]!r}, expected one of {shown(list(names), 300)}")


# --- lines ---


def lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Number, from 1, and bytes of each line, with its end; without a byte order mark of UTF-8.

    Raises ValueError for a damaged gzip file, and for a line longer than `LONGEST_LINE`.
    """
    number = 0
    with opened(path) as file:
        try:
            while line := file.readline(LONGEST_LINE + 1):
                number += 1
                if len(line) > LONGEST_LINE:
                    raise ValueError(f"{path}, line {number}: longer than {LONGEST_LINE} bytes")
                yield number, line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise ValueError(f"{path}, after line {number}: truncated or corrupt gzip ({error})") from error


@contextlib.contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """A file of text for reading bytes, unpacked if it begins as gzip does, whatever its name."""
    with path.open("rb") as raw:
        packed = raw.read(2) == b"\x1f\x8b"
        raw.seek(0)
        with gzip.open(raw) if packed else raw as file:
            yield file


def decoded(path: Path, encoding: str | None = None) -> Iterator[tuple[int, str]]:
    """Number and text of each line, with its end. Raises ValueError naming the first byte that is not text."""
    if encoding is None:
        with opened(path) as file, contextlib.suppress(OSError, EOFError, zlib.error):
            encoding = _wide_encoding(file.read(4))
    name = codecs.lookup(encoding or "utf-8").name
    if name.startswith(("utf-16", "utf-32")):
        yield from _wide(path, name)
        return
    for number, line in lines(path):
        try:
            yield number, line.decode(name)
        except UnicodeDecodeError as error:
            hint = "" if encoding else ": give the encoding of the file, such as latin-1 or cp1252, or save it as UTF-8"
            problem = f"byte {line[error.start]:#04x} is not {name.upper()}, expected {name.upper()} text{hint}"
            raise ValueError(f"{path}, line {number}: {problem}") from error


def _wide_encoding(start: bytes) -> str | None:
    """UTF-16 or UTF-32 by the mark of a file, or by the zeros beside its first letters."""
    for mark in (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):  # UTF-32 first
        if start.startswith(mark):
            return "utf-32" if len(mark) == 4 else "utf-16"
    return {(False, True, False, True): "utf-16-le", (True, False, True, False): "utf-16-be"}.get(
        tuple(byte == 0 for byte in start)
    )


def _wide(path: Path, encoding: str) -> Iterator[tuple[int, str]]:
    number = 0
    with opened(path) as file:
        try:
            for number, line in enumerate(io.TextIOWrapper(file, encoding, newline=""), 1):
                yield number, line
        except UnicodeError as error:
            raise ValueError(f"{path}, after line {number}: not {encoding.upper()} text ({error})") from error
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise ValueError(f"{path}, after line {number}: truncated or corrupt gzip ({error})") from error


def filled(found: Iterable[tuple[int, str]], path: Path) -> Iterator[tuple[int, str]]:
    """Lines without their ends; empty ones are left out at the end of a file, and refused before it."""
    blank = 0
    for number, line in found:
        text = line.rstrip("\r\n")
        if not text.strip():
            blank = blank or number
            continue
        if blank:
            raise ValueError(f"{path}, line {blank}: blank line, expected a record: remove the line")
        yield number, text


# --- JSON ---


def json_records(path: Path) -> Iterator[tuple[int, dict]]:
    """Line and record of JSON lines; of a `.json` file that holds one list, the number of each record."""
    if path.name.removesuffix(".gz").endswith(".json"):
        with opened(path) as file:
            is_list = file.read(1024).removeprefix(codecs.BOM_UTF8).lstrip().startswith(b"[")
        if is_list:
            text = "".join(line for _, line in decoded(path))
            yield from ((at, _object(path, at, one)) for at, one in enumerate(json_value(path, 1, text), 1))
            return
    for number, line in filled(decoded(path), path):
        yield number, _object(path, number, json_value(path, number, line))


def _object(path: Path, number: int, value) -> dict:
    if not isinstance(value, dict):
        raise ValueError(f"{path}, line {number}: {shown(value)} is not a JSON object")
    return value


def json_value(path: Path, number: int, line: str):
    """The value of one line of JSON; NaN is null. Raises ValueError with file and line."""
    try:
        value = json.loads(line, object_pairs_hook=_each_once, parse_constant=_constant, parse_float=_finite)
        if "\\ud" in line.lower():
            json.dumps(value, ensure_ascii=False).encode()  # half of a surrogate pair is no text
        return value
    except json.JSONDecodeError as error:
        problem = f"broken JSON at column {error.colno} ({error.msg}), the line is {shown(line)}"
    except (ValueError, RecursionError) as error:  # a number of 5,000 digits, 100,000 brackets
        problem = f"JSON that cannot be read ({shown(str(error))}), the line is {shown(line)}"
    raise ValueError(f"{path}, line {number}: {problem}")


def _each_once(pairs: list[tuple[str, object]]) -> dict:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"field {next(name for name in names if names.count(name) > 1)!r} occurs twice")
    return found


def _finite(text: str) -> float:
    if math.isinf(value := float(text)):
        raise ValueError(f"{text} does not fit into a number of 64 bits")
    return value


def _constant(text: str) -> None:
    if text != "NaN":
        raise ValueError(f"{text} is no number")


def _json_table(path: Path, wanted: Sequence[str], only: bool, each: Sequence[str]) -> Table:
    numbers, records, names = [], [], dict.fromkeys(())
    for number, record in json_records(path):
        if lacking := [name for name in each if name not in record]:
            found = f"{shown(list(record))}, expected also {lacking[0]!r}"
            raise ValueError(f"{path}, line {number}: the fields are {found}")
        numbers.append(number)
        names |= dict.fromkeys(record)
        records.append({name: record.get(name) for name in wanted} if only else record)
    _lacking(str(path), list(names), wanted if records else ())
    kept = [name for name in names if not only or name in wanted]
    columns = {name: pd.Series([record.get(name) for record in records], dtype=object) for name in kept}
    return Table(path, pd.DataFrame(columns), np.array(numbers, dtype=np.int64))


# --- delimited text ---


def _text_table(path: Path, wanted: Sequence[str], layout: Layout, only: bool) -> Table:
    rows = delimited(path, wanted, layout)
    names = next(rows)[1]
    kept = [at for at, name in enumerate(names) if not only or name in wanted]
    numbers, pieces, columns = [], [], {names[at]: [] for at in kept}
    for number, row in rows:
        numbers.append(number)
        for at in kept:
            columns[names[at]].append(row[at])
        if len(numbers) % _TOGETHER == 0:
            pieces.append(_texts(columns))
    pieces.append(_texts(columns))
    return Table(path, pd.concat(pieces, ignore_index=True), np.array(numbers, dtype=np.int64), typed=False)


def _texts(columns: dict[str, list[str]]) -> pd.DataFrame:
    """The columns as a piece of a table; the lists are emptied."""
    piece = pd.DataFrame({name: pd.Series(values, dtype="str") for name, values in columns.items()})
    for values in columns.values():
        values.clear()
    return piece


def delimited(path: Path, wanted: Sequence[str], layout: Layout) -> Iterator[tuple[int, list[str]]]:
    """The header, then the rows of delimited text, each with the line at which it begins.

    A first line `sep=;` (Excel) names the separator. Lines that begin with # before the header are left out. Separators
    at the end of the lines make no column.
    """
    found = _universal(decoded(path, layout.encoding))
    number, header, separator = 0, list(layout.names or ()), layout.separator
    if not header:
        number, line, separator = _header(path, found, wanted, layout)
        header = [name.strip() for name in _cells(line, separator, layout)]
        while header and not header[-1]:
            header.pop()
        if len(set(header)) < len(header):
            raise ValueError(f"{path}, line {number}: the header is {shown(header)}, expected every name once")
    _lacking(str(path), header, wanted)
    yield number, header
    if separator is None:
        first = next(found, None)
        if first is None:
            return
        separator, found = _separator(first[1], (), layout), _before(first, found)
    yield from _rows(path, found, len(header), separator, layout, number)


def _universal(found: Iterable[tuple[int, str]]) -> Iterator[tuple[int, str]]:
    """Lines that may also end in a carriage return alone, as Excel on a Mac writes them, numbered anew."""
    number = 0
    for _, line in found:
        parts = [line] if line.find("\r", 0, -2) < 0 else re.findall(r"[^\r]*\r+\n?|[^\r]+", line)
        for part in parts:
            number += 1
            yield number, part


def _before(first, rest) -> Iterator:
    yield first
    yield from rest


def _header(path: Path, found: Iterator, wanted: Sequence[str], layout: Layout) -> tuple[int, str, str]:
    separator = layout.separator
    for number, line in found:
        if match := re.fullmatch(r"\s*\"?sep=(.+?)\"?\s*", line):
            separator = separator or match[1]
            continue
        chosen = separator or _separator(line, wanted, layout)
        cells = _cells(line, chosen, layout)
        if not line.strip() or (line.startswith("#") and (len(cells) == 1 or not set(wanted) <= set(cells))):
            continue
        return number, line, chosen
    raise _empty(path)


def _separator(line: str, wanted: Sequence[str], layout: Layout) -> str:
    """The first separator that gives the columns that are wanted, else the one that gives most columns."""
    cells = {one: [cell.strip() for cell in _cells(line, one, layout)] for one in SEPARATORS}
    for one, names in cells.items():
        if wanted and set(wanted) <= set(names) and (len(names) > 1 or max(map(len, cells.values())) == 1):
            return one
    return max(SEPARATORS, key=lambda one: len(cells[one]))


def _dialect(separator: str, layout: Layout) -> dict:
    escape = {"escapechar": layout.escape, "doublequote": False} if layout.escape else {}
    return {"delimiter": separator, "strict": True, **escape}


def _cells(line: str, separator: str, layout: Layout) -> list[str]:
    if len(separator) > 1:
        return line.rstrip("\r\n").split(separator)
    with contextlib.suppress(csv.Error):
        return next(csv.reader([line], **_dialect(separator, layout)), [])
    return [line.rstrip("\r\n")]


def _rows(
    path: Path, found: Iterator, width: int, separator: str, layout: Layout, last: int
) -> Iterator[tuple[int, list[str]]]:
    """Rows as wide as the header, which ends at line `last`."""
    blank = 0
    for number, row in _split(path, found, separator, layout, last):
        if row in ([], [""]):
            blank = blank or number
            continue
        if blank:
            raise ValueError(f"{path}, line {blank}: blank line, expected a record: remove the line")
        if len(row) < width or any(row[width:]):
            raise ValueError(f"{path}, line {number}: {len(row)} fields, expected {width} as in the header")
        yield number, row[:width]


def _split(path: Path, found: Iterator, separator: str, layout: Layout, last: int) -> Iterator[tuple[int, list[str]]]:
    """Rows with the line at which each begins; a quoted field may span lines."""
    if len(separator) > 1:
        yield from ((number, line.rstrip("\r\n").split(separator)) for number, line in found)
        return
    csv.field_size_limit(LONGEST_LINE)

    def texts() -> Iterator[str]:
        nonlocal last
        for number, line in found:
            last = number
            yield line

    reader = csv.reader(texts(), **_dialect(separator, layout))
    while True:
        start = last + 1
        try:
            row = next(reader, None)
        except csv.Error as error:
            hint = ": if quotes are escaped by a backslash, say so (escape)" if "expected after" in str(error) else ""
            raise ValueError(f"{path}, line {start}: broken CSV ({error}){hint}") from error
        if row is None:
            return
        yield start, row


# --- Parquet and Arrow ---


def files(path: str | Path) -> list[Path]:
    """The files of a table, in the order in which their rows follow each other.

    Of a folder, names that begin with _ or . are left alone, as what writes such folders does. Raises ValueError for
    one that holds none, or holds something else: a folder named after a value, for instance, would be a column.
    """
    path = Path(path)
    if not path.is_dir():
        return [path]
    found = sorted(entry for entry in path.iterdir() if not entry.name.startswith(("_", ".")))
    if not found or not all(entry.is_file() and entry.suffix == path.suffix for entry in found):
        names = shown([entry.name for entry in found])
        raise ValueError(f"{path} is a folder that holds {names}, expected files that end in {path.suffix}")
    return found


def _arrow_schema(path: Path):
    """The schema of a file; of a folder, that of its first file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = files(path)[0]
    try:
        schema = pq.read_schema(path.absolute()) if _is_parquet(path) else _arrow_reader(path).schema
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    if again := [name for at, name in enumerate(schema.names) if name in schema.names[:at]]:
        raise ValueError(f"{path} has the column {again[0]!r} twice: rename one")
    return schema


def _is_parquet(path: Path) -> bool:
    return path.suffix.lower() == ".parquet"


def _arrow_table(path: Path, wanted: Sequence[str], only: bool) -> Table:
    import pyarrow as pa

    names = _arrow_schema(path).names
    _lacking(str(path), names, wanted)
    columns = list(dict.fromkeys(wanted)) if only else names
    parts = [_arrow_part(file, columns) for file in files(path)]
    try:
        frame = pa.concat_tables(parts, promote_options="permissive").to_pandas(
            types_mapper=pd.ArrowDtype, ignore_metadata=True
        )
    except pa.ArrowException as error:
        raise ValueError(f"{path} cannot be read as one table: {error}") from error
    return Table(path, frame, np.arange(1, len(frame) + 1), "row")


def _arrow_part(path: Path, columns: list[str]):
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = _arrow_schema(path)
    _lacking(str(path), schema.names, columns)
    try:
        if _is_parquet(path):
            found = pq.read_table(path.absolute(), columns=columns)
        else:
            found = pa.Table.from_batches(arrow_batches(path, columns), schema.empty_table().select(columns).schema)
        return found.cast(pa.schema([field.with_type(_plain(field.type)) for field in found.schema]))
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error


def _plain(kind):
    """The type of the values themselves, for types that pandas computes with only in part."""
    import pyarrow as pa

    if pa.types.is_dictionary(kind) or pa.types.is_run_end_encoded(kind):
        return kind.value_type
    return pa.float32() if pa.types.is_float16(kind) else kind


def _arrow_reader(path: Path):
    """A reader of an Arrow file, or of a stream, as the library `datasets` writes it."""
    import pyarrow as pa

    source = pa.memory_map(str(path.absolute()))  # pyarrow expands a leading ~
    start = source.read(6)
    source.seek(0)
    return pa.ipc.open_file(source) if start == b"ARROW1" else pa.ipc.open_stream(source)


def arrow_batches(path: Path, columns: Sequence[str]) -> Iterator:
    """The record batches of an Arrow file or stream, with some of its columns. Raises what pyarrow raises."""
    reader = _arrow_reader(path)
    if hasattr(reader, "num_record_batches"):
        batches = (reader.get_batch(at) for at in range(reader.num_record_batches))
    else:
        batches = iter(reader)
    for batch in batches:
        yield batch.select(list(columns))


# --- values ---


def is_nothing(value) -> bool:
    """Whether a value is missing: null, NaN, blank text, or a word that is written for it.

    >>> [is_nothing(value) for value in (None, float("nan"), " ", "NULL", "Nanna", 0)]
    [True, True, True, True, False, False]
    """
    if isinstance(value, str):
        return value.strip() in NOTHING
    return value is None or value is pd.NA or value is pd.NaT or (isinstance(value, float) and math.isnan(value))


def literal(text: str):
    """A JSON value, or a Python literal as pandas writes lists. Raises ValueError.

    >>> literal('["Office"]'), literal("['Office', 'Pens']")
    (['Office'], ['Office', 'Pens'])
    """
    for reader in (json.loads, _python):
        with contextlib.suppress(ValueError, SyntaxError, MemoryError, RecursionError, TypeError):
            return reader(text)
    raise ValueError(f"{shown(text)} is neither JSON nor a Python literal: write lists as JSON")


def _python(text: str):
    """A Python literal. Python would join 'Office' 'Pens', as NumPy prints two texts, to one: that is refused."""
    text = text.strip()
    value = ast.literal_eval(text)
    if _ADJACENT.search(text):
        tokens = tokenize.generate_tokens(io.StringIO(text).readline)
        kinds = [token.type for token in tokens if token.type != tokenize.NL]
        if any(one == other == tokenize.STRING for one, other in pairwise(kinds)):
            raise ValueError("there is no comma between two texts")
    return value
