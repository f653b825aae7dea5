"""One reader of tables for importers and data folders: JSON lines, delimited text, Parquet and Arrow.

Input that cannot be read is a ValueError with file, line (row, in Parquet and Arrow) and what was expected.
"""

import ast
import contextlib
import io
import json
import math
import re
import tokenize
from collections.abc import Iterator, Sequence
from itertools import chain, islice, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, NoReturn

import pandas as pd

from semid_lib.data.text_files import Layout, check_columns, delimited, empty_file, json_records
from semid_lib.workbench.text import shown

if TYPE_CHECKING:
    import pyarrow as pa

BATCH = 16_384  # records that become a piece of a table together
# how databases and pandas write a missing value as text
_NOTHING = re.compile(
    r"|NULL|Null|null|\(null\)|\\N|-?nan|NaN|NAN|None|none|NONE|NA|N/A|n/a|#N/A|<NA>|NaT|nil|undefined"
)
_ADJACENT = re.compile(r"""['"]\s*['"]""")  # two texts with nothing between them, or an empty one
_KINDS = {"parquet": "arrow", "arrow": "arrow", "feather": "arrow", "jsonl": "json", "ndjson": "json", "json": "json"}


class Table(NamedTuple):
    """Records in columns, with the place of each."""

    path: Path
    frame: pd.DataFrame
    lines: Sequence[int]  # from 1: where each record begins
    unit: str = "line"
    typed: bool = True  # False where all values are text, as in CSV

    def place(self, at: int) -> str:
        return f"{self.path}, {self.unit} {self.lines[at]}"

    def fail(self, at: int, problem: str, column: str = "") -> NoReturn:
        """Raise ValueError with the place of a record and, optionally, the column."""
        raise ValueError(f"{self.place(at)}: {f'column {column!r}: ' if column else ''}{problem}")


def read(
    path: str | Path,
    wanted: Sequence[str] = (),
    layout: Layout | None = None,
    only: bool = False,
    each: Sequence[str] = (),
) -> Table:
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
    each : sequence of str
        Fields that every JSON record must have.

    Returns
    -------
    Table
        Delimited text stays text; JSON values are Python objects; Parquet and Arrow keep their types.

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
    path = Path(path)
    match _kind(path):
        case "arrow":
            table = _arrow_table(path, wanted, only)
        case "json":
            table = _json_table(path, wanted, only, each)
        case _:
            table = _text_table(path, wanted, layout or Layout(), only)
    if not len(table.frame):
        raise empty_file(path)
    return table


def names_of(path: str | Path, wanted: Sequence[str] = (), layout: Layout | None = None) -> list[str]:
    """The names of the columns of a table; of JSON, those of all records. Raises as `read` does."""
    path = Path(path)
    match _kind(path):
        case "arrow":
            return list(_arrow_schema(files(path)[0]).names)
        case "json":
            names = list(dict.fromkeys(chain.from_iterable(record for _, record in json_records(path))))
        case _:
            names = next(delimited(path, wanted, layout or Layout()))[1]
    if not names:
        raise empty_file(path)
    return names


def _kind(path: Path) -> str:
    """ "arrow", "json" or "text"; raises ValueError if there is no such file."""
    ending = path.name.lower().removesuffix(".gz").rpartition(".")[2]
    if ending in ("xlsx", "xls", "ods"):
        raise ValueError(f"{path} is a spreadsheet, expected CSV: save the sheet as CSV UTF-8")
    kind = _KINDS.get(ending, "text")
    if not path.is_file() and not (path.is_dir() and kind == "arrow"):
        raise ValueError(f"{path} is not a file, expected CSV, JSON lines, Parquet or Arrow")
    return kind


# --- text ---


def _json_table(path: Path, wanted: Sequence[str], only: bool, each: Sequence[str]) -> Table:
    numbers, records = [], []
    names: dict[str, None] = {}
    for number, record in json_records(path):
        if lacking := [name for name in each if name not in record]:
            found = f"{shown(list(record))}, expected also {lacking[0]!r}"
            raise ValueError(f"{path}, line {number}: the fields are {found}")
        numbers.append(number)
        names |= dict.fromkeys(record)
        records.append({name: record.get(name) for name in wanted} if only else record)
    check_columns(path, list(names), wanted if records else ())
    kept = [name for name in names if not only or name in wanted]
    columns = {name: pd.Series([record.get(name) for record in records], dtype=object) for name in kept}
    return Table(path, pd.DataFrame(columns), numbers)


def _text_table(path: Path, wanted: Sequence[str], layout: Layout, only: bool) -> Table:
    rows = delimited(path, wanted, layout)
    names = next(rows)[1]
    kept = [name for name in names if not only or name in wanted]
    numbers: list[int] = []
    pieces = [pd.DataFrame(columns=kept, dtype="str")]
    while piece := list(islice(rows, BATCH)):
        numbers += [number for number, _ in piece]
        pieces.append(pd.DataFrame([row for _, row in piece], columns=names, dtype="str")[kept])
    return Table(path, pd.concat(pieces, ignore_index=True), numbers, typed=False)


# --- Parquet and Arrow ---


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


def arrow_batches(path: Path, columns: Sequence[str] | None = None) -> Iterator["pa.RecordBatch"]:
    """At most `BATCH` rows at a time of one Parquet or Arrow file. Raises ValueError if it cannot be read.

    columns: which to read, in this order; by default all.
    """
    with _opened_arrow(path) as file:
        if hasattr(file, "iter_batches"):
            batches = file.iter_batches(BATCH, columns=columns)
        elif hasattr(file, "num_record_batches"):
            batches = map(file.get_batch, range(file.num_record_batches))
        else:
            batches = iter(file)
        for batch in batches:
            chosen = batch if columns is None else batch.select(list(columns))
            yield from (chosen.slice(at, BATCH) for at in range(0, batch.num_rows, BATCH))


@contextlib.contextmanager
def _opened_arrow(path: Path) -> Iterator:
    """A reader of a Parquet file, an Arrow file, or an Arrow stream, as the library `datasets` writes it."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        if path.suffix.lower() == ".parquet":
            yield pq.ParquetFile(path.absolute())  # absolute, since pyarrow expands a leading ~
            return
        source = pa.memory_map(str(path.absolute()))
        start = source.read(6)
        source.seek(0)
        yield pa.ipc.open_file(source) if start == b"ARROW1" else pa.ipc.open_stream(source)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error


def _arrow_schema(path: Path) -> "pa.Schema":
    with _opened_arrow(path) as file:
        schema = getattr(file, "schema_arrow", None) or file.schema
    if again := [name for at, name in enumerate(schema.names) if name in schema.names[:at]]:
        raise ValueError(f"{path} has the column {again[0]!r} twice: rename one")
    return schema


def _arrow_table(path: Path, wanted: Sequence[str], only: bool) -> Table:
    import pyarrow as pa

    names = names_of(path)
    check_columns(path, names, wanted)
    parts = [_arrow_part(file, list(dict.fromkeys(wanted)) if only else names) for file in files(path)]
    try:
        whole = pa.concat_tables(parts, promote_options="permissive")
    except pa.ArrowException as error:
        raise ValueError(f"{path} cannot be read as one table: {error}") from error
    frame = whole.to_pandas(types_mapper=pd.ArrowDtype, ignore_metadata=True)
    return Table(path, frame, range(1, len(frame) + 1), "row")


def _arrow_part(path: Path, columns: list[str]) -> "pa.Table":
    import pyarrow as pa

    schema = _arrow_schema(path)
    check_columns(path, schema.names, columns)
    schema = pa.schema([schema.field(name) for name in columns])
    found = pa.Table.from_batches(arrow_batches(path, columns), schema)
    return found.cast(pa.schema([field.with_type(_plain(field.type)) for field in schema]))


def _plain(kind: "pa.DataType") -> "pa.DataType":
    """The type of the values themselves, for types that pandas supports only in part."""
    import pyarrow as pa

    if pa.types.is_dictionary(kind) or pa.types.is_run_end_encoded(kind):
        return kind.value_type
    return pa.float32() if pa.types.is_float16(kind) else kind


# --- values ---


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
