"""One reader of tables for importers and data folders: JSON lines, delimited text, Parquet and Arrow.

Input that cannot be read is a ValueError with file, line (row, in Parquet and Arrow) and what was expected.
"""

import ast
import bisect
import contextlib
import io
import json
import math
import re
import tokenize
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import accumulate, chain, islice, pairwise
from pathlib import Path
from typing import NamedTuple, NoReturn

import pandas as pd

from semid_lib.data.text_files import Layout, check_columns, delimited, empty_file, json_records
from semid_lib.workbench.text import shown

BATCH = 16_384  # records that become a piece of a table together
# how databases and pandas write a missing value as text
_NOTHING = re.compile(
    r"|NULL|Null|null|\(null\)|\\N|-?nan|NaN|NAN|None|none|NONE|NA|N/A|n/a|#N/A|<NA>|NaT|nil|undefined"
)
_ADJACENT = re.compile(r"""['"]\s*['"]""")  # two texts with nothing between them, or an empty one
_KINDS = {"parquet": "arrow", "arrow": "arrow", "feather": "arrow", "jsonl": "json", "ndjson": "json", "json": "json"}


class Table(NamedTuple):
    """Records in columns."""

    path: Path
    frame: pd.DataFrame
    place: Callable[[int], str]  # file and line (row, in Parquet and Arrow) of a record
    typed: bool = True  # False where all values are text, as in CSV

    def fail(self, at: int, problem: str, column: str = "") -> NoReturn:
        """Raise ValueError with the place of a record and, optionally, the column."""
        raise ValueError(f"{self.place(at)}: {f'column {column!r}: ' if column else ''}{problem}")


def read(path: str | Path, wanted: Sequence[str] = (), layout: Layout | None = None, only: bool = False) -> Table:
    """Read a table with certain columns.

    Parameters
    ----------
    path : path
        `.parquet`, `.arrow` or `.feather` (a file, or a folder of them), `.jsonl`, `.ndjson` or `.json`; every other
        file is delimited text.
    wanted : sequence of str
        Columns that the table must have.
    layout : Layout, optional
        Of delimited text.
    only : bool
        Keep only the wanted columns.

    Returns
    -------
    Table
        Delimited text stays text; the values of other formats are Python objects.

    Raises
    ------
    ValueError
        If the file cannot be read, is empty or lacks a column.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder, "shop.csv")
    ...     _ = path.write_text("sku;name\\nA-1;Pen\\n")
    ...     read(path, ["sku"]).frame.to_dict("list")
    {'sku': ['A-1'], 'name': ['Pen']}
    """
    return joined(path, pieces(path, wanted, layout, only))


def pieces(
    path: str | Path, wanted: Sequence[str] = (), layout: Layout | None = None, only=False, each: Sequence[str] = ()
) -> Iterator[Table]:
    """The table that `read` returns, some thousand records at a time; JSON at once, since every record may have fields
    of its own.

    each: fields that every JSON record must have.
    """
    path = Path(path)
    kind = _kind(path)
    if kind == "arrow":
        yield from _arrow_pieces(path, wanted, only)
    elif kind == "json":
        numbers, records = [], []
        names: dict[str, None] = {}
        for number, record in json_records(path, each):
            numbers.append(number)
            names |= dict.fromkeys(record)
            records.append({name: record.get(name) for name in wanted} if only else record)
        check_columns(path, list(names), wanted if records else ())
        columns = {name: [record.get(name) for record in records] for name in names if not only or name in wanted}
        if records:
            yield _piece(path, pd.DataFrame(columns, dtype=object), numbers)
    else:
        rows = delimited(path, wanted, layout or Layout())
        header = next(rows)[1]
        kept = [name for name in header if not only or name in wanted]
        while piece := list(islice(rows, BATCH)):
            frame = pd.DataFrame([row for _, row in piece], columns=header, dtype="str")[kept]
            yield _piece(path, frame, [number for number, _ in piece], typed=False)


def joined(path: str | Path, found: Iterable[Table]) -> Table:
    """All pieces of a table as one. Raises ValueError if there are no records."""
    found = list(found)
    starts = [0, *accumulate(len(piece.frame) for piece in found)]
    if not starts[-1]:
        raise empty_file(path)

    def place(at: int) -> str:
        which = bisect.bisect_right(starts, at) - 1
        return places[which](at - starts[which])

    places = [piece.place for piece in found]
    return Table(Path(path), pd.concat([piece.frame for piece in found], ignore_index=True), place, found[0].typed)


def names_of(path: str | Path, wanted: Sequence[str] = (), layout: Layout | None = None) -> list[str]:
    """The names of the columns of a table; of JSON, those of all records. Raises as `read` does."""
    path = Path(path)
    kind = _kind(path)
    if kind == "arrow":
        with _opened_arrow(files(path)[0]) as (names, _):
            return names
    if kind == "text":
        return next(delimited(path, wanted, layout or Layout()))[1]
    fields = dict.fromkeys(chain.from_iterable(record for _, record in json_records(path)))
    if not fields:
        raise empty_file(path)
    return list(fields)


def files(path: str | Path) -> list[Path]:
    """The files of a table, in the order of their rows: the file itself, or those of a folder by name.

    Of a folder, names that begin with _ or . are ignored. Raises ValueError for a folder that is empty or holds
    anything else, such as a folder named after a value.
    """
    path = Path(path)
    if not path.is_dir():
        return [path]
    found = sorted(entry for entry in path.iterdir() if not entry.name.startswith(("_", ".")))
    if not found or not all(entry.is_file() and entry.suffix == path.suffix for entry in found):
        names = shown([entry.name for entry in found])
        raise ValueError(f"{path} is a folder that holds {names}, expected files that end in {path.suffix}")
    return found


def _kind(path: Path) -> str:
    """ "arrow", "json" or "text"; raises ValueError if there is no such file."""
    ending = path.name.lower().removesuffix(".gz").rpartition(".")[2]
    if ending in ("xlsx", "xls", "ods"):
        raise ValueError(f"{path} is a spreadsheet, expected CSV: save the sheet as CSV UTF-8")
    kind = _KINDS.get(ending, "text")
    if not path.is_file() and not (path.is_dir() and kind == "arrow"):
        raise ValueError(f"{path} is not a file, expected CSV, JSON lines, Parquet or Arrow")
    return kind


def _piece(path: Path, frame: pd.DataFrame, numbers: Sequence[int], unit: str = "line", typed: bool = True) -> Table:
    return Table(path, frame, lambda at: f"{path}, {unit} {numbers[at]}", typed)


def _arrow_pieces(path: Path, wanted: Sequence[str], only: bool) -> Iterator[Table]:
    first: list[str] = []
    for file in files(path):
        with _opened_arrow(file) as (names, batches):
            check_columns(file, names, wanted)
            first = first or names
            if set(names) != set(first):
                raise ValueError(f"{file} has columns {shown(names)}, expected {shown(first)} as in the first file")
            kept, row = [name for name in first if not only or name in wanted], 1
            for batch in batches(kept):
                for at in range(0, batch.num_rows, BATCH):
                    part = batch.slice(at, BATCH)
                    columns = {name: pd.Series(part[name].to_pylist(), dtype=object) for name in kept}
                    yield _piece(file, pd.DataFrame(columns), range(row, row + len(part)), "row")
                    row += len(part)


@contextlib.contextmanager
def _opened_arrow(path: Path) -> Iterator[tuple[list[str], Callable]]:
    """The columns and a reader of batches of a Parquet file, an Arrow file or an Arrow stream (as of `datasets`)."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        if path.suffix.lower() == ".parquet":
            file = pq.ParquetFile(path.absolute())  # absolute, since pyarrow expands a leading ~
            names, batches = file.schema_arrow.names, lambda columns: file.iter_batches(BATCH, columns=columns)
        else:
            source = pa.memory_map(str(path.absolute()))
            start = source.read(6)
            source.seek(0)
            if start == b"ARROW1":
                reader = pa.ipc.open_file(source)
                found = map(reader.get_batch, range(reader.num_record_batches))
            else:
                found = reader = pa.ipc.open_stream(source)
            names, batches = reader.schema.names, lambda columns: found
        if len(set(names)) < len(names):
            again = next(name for name in names if names.count(name) > 1)
            raise ValueError(f"{path} has the column {again!r} twice: rename one")
        yield names, batches
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error


# --- values ---


def each(values: Iterable, read: Callable, fail: Callable[[int, str], NoReturn]) -> list:
    """All values as `read` returns them; `fail(at, problem)` raises for the first that it refuses."""
    found = list(values)
    for at, value in enumerate(found):
        try:
            found[at] = read(value)
        except ValueError as error:
            fail(at, f"{shown(value)}, {error}")
    return found


def is_nothing(value) -> bool:
    """Whether a value is missing: null, NaN, blank text, or a word that programs write for it.

    >>> [is_nothing(value) for value in (None, float("nan"), " ", "NULL", "Nanna", 0)]
    [True, True, True, True, False, False]
    """
    if isinstance(value, str):
        return bool(_NOTHING.fullmatch(value.strip()))
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
