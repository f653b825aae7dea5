"""The item table: reading and checking it, a few items or a million, and whether it can be saved.

`items.parquet` and `items.arrow` are one file, or a folder of such files in the order of their names. They are read in
batches, so that only the values of one batch are Python objects at once.
"""

import bisect
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import numpy as np
import pandas as pd

from semid_lib.data import readers
from semid_lib.data.item_ids import fits_int64, plain_id, read_ids
from semid_lib.data.readers import Table, each, is_nothing, literal
from semid_lib.workbench.text import normal, shown

if TYPE_CHECKING:
    import pyarrow as pa

REQUIRED = ("item_id", "title")
SUFFIXES = (".parquet", ".arrow")


def batches(path: str | Path, columns: Sequence[str] | None = None) -> Iterator[pd.DataFrame]:
    """Read the items of a Parquet or Arrow file, or of a folder of such files, some thousand rows at a time.

    Parameters
    ----------
    path : path
    columns : sequence of str, optional
        Which to read and check, besides `item_id` and `title`; by default all.

    Yields
    ------
    pandas.DataFrame
        The next rows of what `read` returns. Only `read` sees whether an id occurs twice.

    Raises
    ------
    ValueError
        Naming file, row, value and what was expected; also if the files of a folder have different columns.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     pd.DataFrame({"item_id": [7, 9], "title": ["Pen", None]}).to_parquet(f"{folder}/items.parquet")
    ...     [batch["title"].tolist() for batch in batches(f"{folder}/items.parquet")]
    [['Pen', '']]
    """
    for piece in _checked(path, columns):
        yield piece.frame


def read(path: str | Path, columns: Sequence[str] | None = None) -> pd.DataFrame:
    """Read an item table of any format, in which every item id occurs once. Parameters and errors as of `batches`."""
    found = readers.joined(path, _checked(path, columns))
    items = found.frame
    if not found.typed:
        items["item_id"] = typed(read_ids(items["item_id"], found.fail, found.typed))
    check_ids(items["item_id"], found.place)
    if Path(path).suffix not in SUFFIXES:  # Parquet and Arrow hold one type a column
        try:
            arrow_table(items, lambda row: found.place(row - 1).rpartition(", ")[2])
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
    return items


def _checked(path: str | Path, columns: Sequence[str] | None) -> Iterator[Table]:
    """Pieces of the table, `item_id` first; the first bad value raises."""
    wanted, only = [*REQUIRED, *(columns or [])], columns is not None
    for piece in readers.pieces(path, wanted, only=only, each=REQUIRED):
        names = dict.fromkeys(["item_id", *piece.frame])
        yield piece._replace(frame=pd.DataFrame({name: typed(_values(piece, name)) for name in names}))


def _values(piece: Table, name: str) -> list:
    values = piece.frame[name].tolist()
    if name not in _CHECKS:
        return values
    return each(values, _CHECKS[name], lambda at, problem: piece.fail(at, f"{name} is {problem}"))


# --- values ---


def typed(values: list) -> pd.Series:
    """Values as a column, with the type of all if that is one plain type, else objects."""
    kinds = {type(value) for value in values}
    plain = len(kinds) == 1 and kinds <= {str, int, float, bool}
    return pd.Series(values, dtype=None if plain else object)


def _checked_id(value) -> int | str:
    found = plain_id(value)
    if isinstance(found, str) or (found is not None and fits_int64(found)):
        return found
    raise ValueError("expected an integer in int64 or text")


def _checked_text(value) -> str:
    if is_nothing(value):
        return ""
    if not isinstance(value, str):
        raise ValueError("expected a string or null")
    return normal(value)


def check_ids(ids: pd.Series, place: Callable[[int], str], column: str = "item_id") -> None:
    """Refuse a column of item ids of two types, and an id that occurs twice; `place(at)` names file and line.

    >>> check_ids(pd.Series([7, "A-1"]), "shop.jsonl, line {}".format)
    Traceback (most recent call last):
        ...
    ValueError: shop.jsonl, line 1: item_id is 'A-1', but 7 in line 0: expected text or integers for all
    """
    values = ids.tolist()
    first = values[0]
    for at, value in enumerate(values):
        if type(value) is not type(first):
            where = f"{shown(first)} in {place(0).rpartition(', ')[2]}"
            raise ValueError(f"{place(at)}: {column} is {shown(value)}, but {where}: expected text or integers for all")
    if (again := ids.duplicated()).any():
        at = int(again.argmax())
        earlier = Path(place(int((ids == values[at]).argmax()))).name
        raise ValueError(f"{place(at)}: {column} {values[at]} occurs before, in {earlier}")


def category_paths(value, separator: str = ">") -> list[list[str]]:
    """Categories of one item as a list of paths from the root down; a flat list of strings is one path.

    Text, as in CSV, is a JSON or Python list, or one path with a separator. null, NaN and "" mean no path; null in a
    list is left out; arrays, as in a table read from Parquet, are lists. Raises ValueError if the value is
    anything else, or if a path is empty.

    >>> category_paths(["Office", "Paper"]), category_paths("Office > Paper"), category_paths("['Office']")
    ([['Office', 'Paper']], [['Office', 'Paper']], [['Office']])
    >>> category_paths([["Office", "Paper"], ["Gifts"]])
    [['Office', 'Paper'], ['Gifts']]
    """
    if isinstance(value, str) and value.lstrip().startswith(("[", "{")):
        value = literal(value)
    value = _lists(value)
    if is_nothing(value) or value == []:
        return []
    paths = value
    if isinstance(value, str):
        paths = [part.strip() for part in (value.split(separator) if separator else [value]) if part.strip()]
    if isinstance(paths, list):
        paths = [paths] if all(isinstance(name, str) for name in paths) else paths
        if all(isinstance(p, list) and p and all(isinstance(name, str) for name in p) for p in paths):
            return [[normal(name) for name in path] for path in paths]
    raise ValueError("expected a list of paths, each a list of strings, or one path as text")


def _lists(value):
    if not isinstance(value, list | tuple | np.ndarray):
        return value
    return [_lists(part) for part in value if part is not None]


_CHECKS: dict[str, Callable] = {"item_id": _checked_id, "categories": category_paths}
_CHECKS |= dict.fromkeys(("title", "brand", "description"), _checked_text)


def text_column(items: pd.DataFrame, name: str) -> list[str]:
    """A text field of each item: "" where the value or the column is missing.

    Raises ValueError for a value that is not text, such as bytes or a number, with its row.

    Examples
    --------
    >>> text_column(pd.DataFrame({"description": ["Blue.", None]}), "description")
    ['Blue.', '']
    """
    return _column(items, name, _checked_text)


def category_column(items: pd.DataFrame) -> list[list[list[str]]]:
    """The category paths of each item, none where the value or the column is missing.

    Raises ValueError for a value that `category_paths` refuses, with its row.

    Examples
    --------
    >>> category_column(pd.DataFrame({"categories": [["Shop", "Camping"], None]}))
    [[['Shop', 'Camping']], []]
    """
    return _column(items, "categories", category_paths)


def _column(items: pd.DataFrame, name: str, read: Callable) -> list:
    def fail(row: int, problem: str) -> NoReturn:
        raise ValueError(f"item row {row}: {name} is {problem}")

    return each(items.get(name, [None] * len(items)), read, fail)


# --- writing ---


def arrow_table(items: pd.DataFrame, place: Callable[[int], str] = "row {}".format) -> "pa.Table":
    """Convert an item table to Arrow, so that a table that Parquet cannot hold is refused before training.

    Reading it back gives equal values, except that missing values (NaN, NaT) are null, tuples and arrays are lists,
    integers among floats become floats, and all records of a column have the same names.

    Parameters
    ----------
    items : pandas.DataFrame
    place : callable, optional
        Name of a row, counted from 1, in messages.

    Raises
    ------
    ValueError
        With column, rows and values: if a name is not text or occurs twice, values of a column differ in type, or a
        value does not fit (an integer beyond 64 bits, a record without names).

    Examples
    --------
    >>> arrow_table(pd.DataFrame({"item_id": [7, 9], "price": [3.5, "None"]}))
    Traceback (most recent call last):
        ...
    ValueError: column 'price' is 3.5 in row 1 and 'None' in row 2: expected one type. Make them alike, or leave it out
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    for name, n_columns in Counter(items.columns).items():
        if not isinstance(name, str) or n_columns > 1:
            what = "occurs twice" if n_columns > 1 else "is not text"
            raise ValueError(f"column name {shown(name)} {what}: rename the column")
        array = _held(items[name])
        if array is None:
            _refuse(name, items[name].tolist(), place)
        try:
            pq.write_table(pa.table({name: array[:0]}), pa.BufferOutputStream())
        except pa.ArrowException as error:
            found = f"{shown(items[name].iloc[0])} in {place(1)}"
            raise ValueError(f"column {name!r} is {found}, which Parquet cannot hold: leave it out") from error
    return pa.Table.from_pandas(items, preserve_index=False).replace_schema_metadata()


def _held(values: pd.Series | list) -> "pa.Array | None":
    """Values as an Arrow array, or None if Arrow cannot hold them unchanged."""
    import pyarrow as pa

    try:
        array = pa.array(values, from_pandas=True)
        if isinstance(values, pd.Series) and not pd.api.types.is_object_dtype(values):
            return array
        values, read = list(values), array.to_pylist()
    except (pa.ArrowException, ValueError, TypeError, OverflowError):
        return None
    equal = not any(isinstance(value, np.ndarray) for value in values) and values == read
    return array if equal or all(map(_same, values, read)) else None


def _same(value, read) -> bool:
    """Whether a value is read back unchanged: Arrow silently turns text into bytes and times into dates."""
    if isinstance(value, dict):
        return read is not None and all(_same(value.get(name), read[name]) for name in read)
    if isinstance(value, list | tuple | np.ndarray):
        return read is not None and len(value) == len(read) and all(map(_same, value, read))
    return value == read if read is not None else bool(pd.isna(value))


def _refuse(name: str, values: list, place: Callable[[int], str]) -> NoReturn:
    """Raise for the first value that does not fit, and the first before it that has another type."""
    at = bisect.bisect_left(range(len(values)), True, key=lambda last: _held(values[: last + 1]) is None)
    wrong, found = values[at], f"{shown(values[at])} in {place(at + 1)}"
    for other in range(at if _held([wrong]) is not None else 0):
        if _held([values[other], wrong]) is None:
            both = f"{shown(values[other])} in {place(other + 1)} and {found}"
            raise ValueError(f"column {name!r} is {both}: expected one type. Make them alike, or leave it out")
    expected = "text, a number of 64 bits, a date, or a list or record of these"
    raise ValueError(f"column {name!r} is {found}, expected {expected}")
