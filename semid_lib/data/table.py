"""The item table: the same checks for a few items or for a million, which Parquet and Arrow files give batch by batch.

`items.parquet` and `items.arrow` are one file, or a folder of such files that are read in the order of their names.
Of a batch the values are Python objects while they are checked; of a whole table they never are at once.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import numpy as np
import pandas as pd

from semid_lib.data.item_ids import plain_id
from semid_lib.data.readers import arrow_batches, files, is_nothing, literal, names_of
from semid_lib.workbench.text import has_controls, normal, shown

if TYPE_CHECKING:
    import pyarrow as pa

REQUIRED = ("item_id", "title")
SUFFIXES = (".parquet", ".arrow")
_BATCH = 16_384  # rows


def batches(path: str | Path, columns: Sequence[str] | None = None) -> Iterator[pd.DataFrame]:
    """The items of a Parquet or Arrow file, or of a folder of such files, some thousand rows at a time.

    columns: which to read and check, besides `item_id` and `title`; None for all. The frames are what `read` puts
    together, which alone sees whether an id occurs twice. Raises ValueError naming file, row, value and what was
    expected, for a file that cannot be read, and for files that have not the columns of the first.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     pd.DataFrame({"item_id": [7, 9], "title": ["Pen", None]}).to_parquet(f"{folder}/items.parquet")
    ...     [batch["title"].tolist() for batch in batches(f"{folder}/items.parquet")]
    [['Pen', '']]
    """
    first = None
    for file in files(path):
        for names, row, batch in _arrow_batches(file, columns):
            first = first or (file, set(names))
            if set(names) != first[1]:
                raise ValueError(f"{file} has columns {shown(names)}, expected those of {first[0].name}")

            def fail(at: int, problem: str, file=file, row=row) -> NoReturn:
                raise ValueError(f"{file}, row {row + at}: {problem}")

            yield pd.DataFrame({name: column(name, batch[name].to_pylist(), fail) for name in names})


def read(path: str | Path, columns: Sequence[str] | None = None) -> pd.DataFrame:
    """All `batches` as one table, in which every item id occurs once. Raises ValueError as `batches` does."""
    parts = list(batches(path, columns))
    if not parts:
        raise ValueError(f"{path} is empty, expected at least one record")
    items = pd.concat(parts, ignore_index=True)

    def place(at: int) -> str:
        file, row = _place(path, at)
        return f"{file}, row {row}"

    check_ids(items["item_id"], place)
    return items


def _arrow_batches(file: Path, columns: Sequence[str] | None) -> Iterator[tuple]:
    """Names of the columns, number of the first row, and a record batch."""
    import pyarrow as pa

    try:
        names = names_of(file)
        wanted = list(dict.fromkeys(["item_id", *names]))
        if columns is not None:
            wanted = [name for name in wanted if name in {*REQUIRED, *columns}]
        if lacking := [name for name in (*REQUIRED, *(columns or [])) if name not in names]:
            raise ValueError(f"{file} has columns {shown(names)}, expected also {lacking[0]!r}")
        row = 1
        for batch in _batches_of(file, wanted):
            for at in range(0, batch.num_rows, _BATCH):
                yield wanted, row + at, batch.slice(at, _BATCH)
            row += batch.num_rows
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{file} cannot be read: {error}") from error


def _batches_of(file: Path, columns: list[str]) -> Iterator["pa.RecordBatch"]:
    from pyarrow import dataset

    if file.suffix == ".arrow":
        return arrow_batches(file, columns)
    # ahead of what is worked on, one batch is read and no other file
    return dataset.dataset(file.absolute(), format="parquet").to_batches(
        columns=columns, batch_size=_BATCH, batch_readahead=1, fragment_readahead=1
    )


def _place(path: str | Path, at: int) -> tuple[Path, int]:
    """File and row, from 1, of a row of the whole table."""
    for file in files(path):
        n_rows = sum(batch.num_rows for *_, batch in _arrow_batches(file, []))
        if at < n_rows:
            return file, at + 1
        at -= n_rows
    raise AssertionError("the row is none of the table")


# --- values ---


def column(name: str, values: list, fail: Callable[[int, str], NoReturn]) -> pd.Series:
    """One column of items, checked; `fail(at, problem)` raises for the first value that is refused."""
    found = []
    for at, value in enumerate(values):
        try:
            found.append(_checked(name, value))
        except ValueError as error:
            fail(at, str(error))
    return typed(found)


def typed(values: list) -> pd.Series:
    """Values as a column, with the type of all if that is one plain type, else objects."""
    kinds = {type(value) for value in values}
    plain = len(kinds) == 1 and kinds <= {str, int, float, bool}
    return pd.Series(values, dtype=None if plain else object)


def _checked(name: str, value):
    """The value of one field of an item as the table holds it."""
    if name == "item_id":
        return _checked_id(value)
    if name in ("title", "brand", "description"):
        if is_nothing(value):
            return ""
        if not isinstance(value, str):
            raise ValueError(f"{name} is {shown(value)}, expected a string or null")
        return normal(value)
    return category_paths(value) if name == "categories" else value


def _checked_id(value) -> int | str:
    value = plain_id(value)
    is_text = isinstance(value, str) and not is_nothing(value) and not has_controls(value)
    if not is_text and (type(value) is not int or not -(2**63) <= value < 2**63):
        raise ValueError(f"item_id is {shown(value)}, expected an integer in int64 or text")
    return value


def check_ids(ids: pd.Series, place: Callable[[int], str]) -> None:
    """Refuse a column of item ids of two types, and an id that occurs twice; `place(at)` names file and line.

    >>> check_ids(pd.Series([7, "A-1"]), "shop.jsonl, line {}".format)
    Traceback (most recent call last):
        ...
    ValueError: shop.jsonl, line 1: item_id is 'A-1', but 7 in line 0: expected text or integers for all
    """
    if pd.api.types.is_object_dtype(ids):
        first, other = ids.iloc[0], next(value for value in ids if type(value) is not type(ids.iloc[0]))
        where = f"{shown(first)} in {place(0).rpartition(', ')[2]}"
        at = ids.tolist().index(other)
        raise ValueError(f"{place(at)}: item_id is {shown(other)}, but {where}: expected text or integers for all")
    if not (again := ids.duplicated()).any():
        return
    item_id = ids[again].iloc[0]
    first, second = np.flatnonzero(ids == item_id)[:2].tolist()
    earlier, later = place(first), place(second)
    file, _, line = earlier.rpartition(", ")
    where = line if later.startswith(f"{file}, ") else f"{Path(file).name}, {line}"
    raise ValueError(f"{later}: item_id {item_id} occurs before, in {where}")


def category_paths(value, separator: str = ">") -> list[list[str]]:
    """Categories of one item as a list of paths from the root down; a flat list of strings is one path.

    Text, as in CSV, is a JSON or Python list, or one path with a separator. null, NaN and "" are no path, and null in a
    list is left out; arrays, as a table read from Parquet has them, are lists. Raises ValueError if the value is
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
    raise ValueError(f"categories is {shown(value)}, expected a list of paths, each a list of strings, or one as text")


def _lists(value):
    if not isinstance(value, list | tuple | np.ndarray):
        return value
    return [_lists(part) for part in value if part is not None]


def text_column(items: pd.DataFrame, name: str) -> list[str]:
    """A text field of each item.

    Parameters
    ----------
    items : pandas.DataFrame
    name : str
        A column, which need not exist.

    Returns
    -------
    list of str
        "" where a value is missing; the parts of a list as lines.

    Raises
    ------
    ValueError
        For a value that is no text, such as bytes or a number, with its row.

    Examples
    --------
    >>> text_column(pd.DataFrame({"description": ["Blue.", None, ["Two parts", "in a list"]]}), "description")
    ['Blue.', '', 'Two parts\\nin a list']
    """
    return [_text(value, name, row) for row, value in enumerate(items.get(name, [None] * len(items)))]


def category_column(items: pd.DataFrame) -> list[list[list[str]]]:
    """The category paths of each item.

    Parameters
    ----------
    items : pandas.DataFrame
        With or without a column `categories`.

    Returns
    -------
    list of list of list of str
        No path where a value is missing.

    Raises
    ------
    ValueError
        For a value that `category_paths` refuses, with its row.

    Examples
    --------
    >>> category_column(pd.DataFrame({"categories": [["Shop", "Camping"], None]}))
    [[['Shop', 'Camping']], []]
    """
    found = []
    for row, value in enumerate(items.get("categories", [None] * len(items))):
        try:
            found.append(category_paths(value))
        except ValueError as error:
            raise ValueError(f"item row {row}: {error}") from error
    return found


def _text(value, name: str, row: int) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, list | tuple | np.ndarray):
        return "\n".join(text for text in (_text(part, name, row) for part in value) if text)
    if pd.isna(value) is True:
        return ""
    raise ValueError(f"item row {row}: {name} is {shown(value)}, expected text")


# --- writing ---


def arrow_table(items: pd.DataFrame, place: Callable[[int], str] = "row {}".format) -> "pa.Table":
    """An item table as Parquet holds it, so that a table that cannot be written is refused before anything is trained.

    Reading it back gives equal values, with four exceptions: a missing value (NaN, NaT) is null, a tuple or array is a
    list, integers among decimal numbers become such numbers, and all records of a column have the same names.

    Parameters
    ----------
    items : pandas.DataFrame
    place : function of int, optional
        How a message calls a row, counted from 1.

    Raises
    ------
    ValueError
        If a column name is not text or occurs twice, values of a column differ in type, or a value does not fit
        (an integer beyond 64 bits, a record without names). The message has the column, the rows and the values.

    Examples
    --------
    >>> arrow_table(pd.DataFrame({"item_id": [7, 9], "price": [3.5, "None"]}))
    Traceback (most recent call last):
        ...
    ValueError: column 'price' is 3.5 in row 1 and 'None' in row 2: expected one type. Make them alike, or leave it out
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    names = list(items.columns)
    for name in names:
        if not isinstance(name, str) or names.count(name) > 1:
            what = "occurs twice" if isinstance(name, str) else "is not text"
            raise ValueError(f"column name {shown(name)} {what}: rename the column")
    for name in names:
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
    """Values as an Arrow array, or None if it cannot hold them as they are."""
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
    """Whether a value and what is read back are equal: Arrow turns text into bytes, and times into dates, silently."""
    if isinstance(value, dict):
        return read is not None and all(_same(value.get(name), read[name]) for name in read)
    if isinstance(value, list | tuple | np.ndarray):
        return read is not None and len(value) == len(read) and all(map(_same, value, read))
    return value == read if read is not None else bool(pd.isna(value))


def _refuse(name: str, values: list, place: Callable[[int], str]) -> NoReturn:
    """Raise for the first value that does not fit, and the first before it that has another type."""
    fits, fails = 0, len(values)  # lengths of beginnings of the column
    while fails - fits > 1:
        middle = (fits + fails) // 2
        fits, fails = (fits, middle) if _held(values[:middle]) is None else (middle, fails)
    wrong, found = values[fits], f"{shown(values[fits])} in {place(fits + 1)}"
    if _held([wrong]) is not None:
        for at, value in enumerate(values[:fits]):
            if _held([value, wrong]) is None:
                raise ValueError(
                    f"column {name!r} is {shown(value)} in {place(at + 1)} and {found}: expected one type. "
                    "Make them alike, or leave it out"
                )
    raise ValueError(
        f"column {name!r} is {found}, expected text, a number of 64 bits, a date, or a list or record of these"
    )
