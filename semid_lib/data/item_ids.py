"""Item ids, text or integers as the shop has them, and their rows in the item table.

The library works with rows. Only this module converts between ids and rows, at the edges of the library.
"""

import decimal
import re
import uuid
from collections.abc import Callable, Iterable
from functools import cached_property
from typing import NoReturn

import numpy as np
import pandas as pd

from semid_lib.data.readers import is_nothing
from semid_lib.workbench.text import has_controls, shown

_WHOLE = re.compile(r"(0|-?[1-9][0-9]{0,18})(\.0+)?")  # pandas writes whole numbers as 7.0 where some are missing
_ID_TYPES = {int, str, np.str_, *(np.dtype(code).type for code in np.typecodes["AllInteger"])}  # bool is none
_LARGEST_IN_JSON = 2**53 - 1  # a browser reads JSON numbers as float64, and rounds larger integers


class UnknownItemError(ValueError):
    """An item id that the catalogue does not have, or a value that is no item id."""


class ItemIds:
    """Item ids in the order of the item table.

    An id is an integer or text, as in the column `item_id`. The decimal text of an integer names the same item as the
    integer, so that ids survive CSV, URLs and browsers. Tables that were imported before SKUs could be ids hold numbers
    in `item_id` and the shop's ids in `source_id`: they are read by either, and `source_id` is returned.

    Parameters
    ----------
    items : pandas.DataFrame
        A table with `item_id`, one row per item.

    Raises
    ------
    ValueError
        If an id occurs twice, or is neither an integer nor text.

    Examples
    --------
    >>> ids = ItemIds(pd.DataFrame({"item_id": ["A-1", "A-2", "17"]}))
    >>> ids.rows(["A-2", 17]), ids.at(np.array([1, -1])).tolist()
    (array([1, 2]), ['A-2', None])
    """

    def __init__(self, items: pd.DataFrame):
        column = items["item_id"]
        self._numbers = column.tolist()
        if "source_id" in items and self._numbers == list(range(1, len(items) + 1)):
            source = items["source_id"]
            if source.is_unique and all(isinstance(value, str) for value in source):
                column = source
        own = column.tolist()
        if not pd.api.types.is_integer_dtype(column) and (wrong := [value for value in own if not _is_id(value)]):
            raise ValueError(f"item_id is {shown(wrong[0])}, expected an integer or text")
        if (again := column.astype(str).duplicated() if column.dtype == object else column.duplicated()).any():
            raise ValueError(f"item_id {column[again].iloc[0]} occurs twice: remove one row")
        self.values = np.empty(len(own), dtype=object)
        self.values[:] = own

    def __len__(self) -> int:
        return len(self.values)

    @cached_property
    def row_of(self) -> dict[str, int]:
        """Text of each id -> its row."""
        rows = {str(value): row for row, value in enumerate(self._numbers)}
        return rows | {str(value): row for row, value in enumerate(self.values)}

    def row(self, item_id: int | str) -> int:
        """The row of one item. Raises UnknownItemError.

        >>> ItemIds(pd.DataFrame({"item_id": [30, -1]})).row("-1")
        1
        """
        if not _is_id(item_id):
            raise UnknownItemError(f"item id {shown(item_id)}, expected an integer or text")
        row = self.row_of.get(str(item_id), -1)
        if row < 0:
            raise UnknownItemError(f"item id {shown(item_id)} is not in the catalogue")
        return row

    def rows(self, item_ids: Iterable[int | str], where: str = "") -> np.ndarray:
        """The rows of items: (n,) int64, in the order asked.

        Parameters
        ----------
        item_ids : iterable of int or str
        where : str
            Beginning of the message of an error, such as "history 3".

        Raises
        ------
        UnknownItemError
            If an id is not in the catalogue; the message gives its position.
        """
        ids = item_ids.tolist() if hasattr(item_ids, "tolist") else list(item_ids)
        found = [self.row_of.get(str(item_id), -1) if type(item_id) in _ID_TYPES else -1 for item_id in ids]
        if -1 in found:
            at = found.index(-1)
            try:
                self.row(ids[at])
            except UnknownItemError as error:
                raise UnknownItemError(f"{where}{', ' if where else ''}position {at}: {error}") from error
        return np.array(found, dtype=np.int64)

    def at(self, rows: np.ndarray) -> np.ndarray:
        """The ids at item rows of any shape: an object array of int or str, None where a row is -1."""
        rows = np.asarray(rows, dtype=np.int64)
        found = self.values[rows] if len(self) else np.empty(rows.shape, dtype=object)
        found[rows < 0] = None
        return found

    @cached_property
    def for_json(self) -> list[int] | list[str]:
        """The ids as JSON holds them: all as text if one is an integer that a browser would round."""
        large = any(isinstance(value, int) and abs(value) > _LARGEST_IN_JSON for value in self.values)
        return [str(value) if large else value for value in self.values]


def read_ids(
    values: pd.Series, fail: Callable[[int, str], NoReturn], typed: bool = True
) -> list[int] | list[int | None] | list[str | None]:
    """The ids of a column: integers if all are, in 64 bits, else text; None for a missing one.

    Parameters
    ----------
    values : pandas.Series
    fail : callable
        `fail(at, problem)` raises for the value at a position.
    typed : bool
        Whether text is meant as text. In CSV it is not: "7" and, after pandas, "7.0" are integers if all values are.

    Examples
    --------
    >>> def fail(at, problem):
    ...     raise ValueError(f"row {at + 1}: {problem}")
    >>> read_ids(pd.Series(["1.0", "2.0", "NULL"]), fail, typed=False), read_ids(pd.Series([7.0, None]), fail)
    ([1, 2, None], [7, None])
    >>> read_ids(pd.Series(["007", "8"]), fail, typed=False)
    ['007', '8']
    """
    found: list = [None if is_nothing(value) else plain_id(value) for value in values.tolist()]
    for at, value in enumerate(found):
        if isinstance(value, str):
            found[at] = value.strip()
            if has_controls(found[at]):
                fail(at, f"id {shown(value)}, expected text without line breaks and control characters")
        elif value is not None and not _is_id(value):
            fail(at, f"id {shown(value)}, expected an integer or text")
    there = [value for value in found if value is not None]
    if not typed and all(_WHOLE.fullmatch(value) and _in_int64(value.partition(".")[0]) for value in there):
        return [value if value is None else int(value.partition(".")[0]) for value in found]
    if any(isinstance(value, str) or not _in_int64(value) for value in there):
        return [value if value is None else str(value) for value in found]
    return found


def plain_id(value):
    """An id that its column holds in another type, as an integer or text: a whole number, a UUID.

    >>> plain_id(7.0), plain_id(decimal.Decimal("7")), plain_id(uuid.UUID(int=7)), plain_id(7.5)
    (7, 7, '00000000-0000-0000-0000-000000000007', 7.5)
    """
    if isinstance(value, float) and value.is_integer() and abs(value) <= _LARGEST_IN_JSON:
        return int(value)
    if isinstance(value, decimal.Decimal) and value.is_finite() and value == int(value):
        return int(value)
    return str(value) if isinstance(value, uuid.UUID) else value


def _in_int64(value: int | str) -> bool:
    return -(2**63) <= int(value) < 2**63


def _is_id(value) -> bool:
    return type(value) in _ID_TYPES and value != ""
