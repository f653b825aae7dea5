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

from semid_lib.data.readers import each, is_nothing
from semid_lib.workbench.text import has_controls, shown

_WHOLE = re.compile(r"(0|-?[1-9][0-9]{0,18})(\.0+)?")  # pandas writes whole numbers as 7.0 where some are missing
_ID_TYPES = {int, str, np.str_, *(np.dtype(code).type for code in np.typecodes["AllInteger"])}  # bool is none
_LARGEST_IN_JSON = 2**53 - 1  # a browser reads JSON numbers as float64, and rounds larger integers


class UnknownItemError(ValueError):
    """An item id that the catalogue does not have, or a value that is no item id."""


class ItemIds:
    """Item ids in the order of the item table.

    An id is an integer or text, as in the column `item_id`. The decimal text of an integer names the same item as the
    integer, so that ids survive CSV, URLs and browsers.

    Parameters
    ----------
    items : pandas.DataFrame
        A table with `item_id`, one row per item.
    removed : collection of int or str
        Ids of items that were in the catalogue before: `rows` leaves them out.

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

    def __init__(self, items: pd.DataFrame, removed: Iterable[int | str] = ()):
        self.removed = frozenset(map(str, removed))
        column = items["item_id"]
        self._with_none = np.array([*column, None], dtype=object)  # row -1 is None
        self.values = self._with_none[:-1]
        if not pd.api.types.is_integer_dtype(column):
            if wrong := [value for value in self.values if not _is_id(value)]:
                raise ValueError(f"item_id is {shown(wrong[0])}, expected an integer or text")
            column = column.astype(str)
        if (again := column.duplicated()).any():
            raise ValueError(f"item_id {column[again].iloc[0]} occurs twice: remove one row")

    def __len__(self) -> int:
        return len(self.values)

    @cached_property
    def row_of(self) -> dict[str, int]:
        """Text of each id -> its row."""
        return {str(value): row for row, value in enumerate(self.values)}

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
        """The rows of items: (n,) int64, in the order asked, without items that were removed from the catalogue.

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
        rows = []
        for at, item_id in enumerate(item_ids.tolist() if hasattr(item_ids, "tolist") else item_ids):
            try:
                rows.append(self.row(item_id))
            except UnknownItemError as error:
                if str(item_id) in self.removed:
                    continue
                raise UnknownItemError(f"{where}{', ' if where else ''}position {at}: {error}") from error
        return np.array(rows, dtype=np.int64)

    def at(self, rows: np.ndarray) -> np.ndarray:
        """The ids at item rows of any shape: an object array of int or str, None where a row is -1."""
        return self._with_none[np.asarray(rows, dtype=np.int64)]

    @cached_property
    def for_json(self) -> list[int] | list[str]:
        """The ids as JSON holds them: all as text if one is an integer that a browser would round."""
        large = any(isinstance(value, int) and abs(value) > _LARGEST_IN_JSON for value in self.values)
        return [str(value) if large else value for value in self.values]


def read_ids(values: pd.Series, fail: Callable[[int, str], NoReturn], typed: bool = True) -> list:
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
    found = [one.strip() if isinstance(one, str) else one for one in each(values.tolist(), plain_id, fail)]
    if not typed and all(one is None or _WHOLE.fullmatch(one) for one in found):
        found = [one and int(one.partition(".")[0]) for one in found]
    if all(one is None or fits_int64(one) for one in found):
        return found
    return [one if one is None else str(one) for one in found]


def plain_id(value) -> int | str | None:
    """An id that its column may hold in another type, as an integer or text; None for a missing one.

    Raises ValueError for any other value.

    >>> plain_id(7.0), plain_id(decimal.Decimal("7")), plain_id(uuid.UUID(int=7)), plain_id("NULL")
    (7, 7, '00000000-0000-0000-0000-000000000007', None)
    """
    if is_nothing(value):
        return None
    if isinstance(value, uuid.UUID):
        return str(value)
    small = isinstance(value, float) and abs(value) <= _LARGEST_IN_JSON
    if (small or (isinstance(value, decimal.Decimal) and value.is_finite())) and value == int(value):
        return int(value)
    if not _is_id(value) or (isinstance(value, str) and has_controls(value)):
        raise ValueError("expected an integer or text without line breaks and control characters")
    return value


def fits_int64(value) -> bool:
    return isinstance(value, int) and -(2**63) <= value < 2**63


def _is_id(value) -> bool:
    return type(value) in _ID_TYPES and value != ""
