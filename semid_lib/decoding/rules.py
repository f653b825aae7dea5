"""Business rules: which items may be returned, as boolean masks over the rows of the item table.

A rule is a NumPy array: (n_items,) bool for all users, or (n_users, n_items) if users differ, as from
`np.stack([for_ann, for_bob])`. Combine rules with `&`, `|` and `~`; the two shapes broadcast. Pass the result as
`allowed=`.

>>> items = pd.DataFrame({"item_id": [7, 8, 9], "brand": ["Ash", "Birch", "Ash"], "price": [12.0, 30.0, None]})
>>> brand(items, "ash") & ~items_with_ids(items, [9])
array([ True, False, False])
"""

import difflib
from collections.abc import Collection, Hashable, Iterable, Sequence
from numbers import Number

import numpy as np
import pandas as pd

from semid_lib.data.item_ids import ItemIds
from semid_lib.data.table import category_column
from semid_lib.decoding.ranking import checked_rows
from semid_lib.workbench.text import folded, shown


def category(items: pd.DataFrame, *names: str) -> np.ndarray:
    """Items of at least one of these categories, at any level of any of their paths: (n_items,) bool.

    A name is compared with complete names of a path, ignoring case, width and the form of accented letters
    (`text.folded`). If a name occurs below several others, combine them: `category(items, "Makeup") & category(items,
    "Face")`. Without names, no item matches.

    Raises
    ------
    ValueError
        For a name that no item has (the message has the closest), and for a cell without category paths.

    Examples
    --------
    >>> items = pd.DataFrame({"categories": [[["Home", "Clocks"]], [], [["Gifts"], ["Home", "Rugs"]]]})
    >>> category(items, "home"), category(items, "Clocks") & category(items, "Home")
    (array([ True, False,  True]), array([ True, False, False]))
    """
    _column(items, "categories")
    held = [{name for path in paths for name in path} for paths in category_column(items)]
    return _holding("category", held, names)


def one_of(items: pd.DataFrame, column: str, *values) -> np.ndarray:
    """Items with one of these values in a column: (n_items,) bool.

    Text is compared as a whole, spelled as by `text.folded`, and never equals a number: "7" is not 7. None and NaN
    match nothing. Without values, no item matches.

    Raises
    ------
    ValueError
        For a column that is missing or holds lists, and for a value that no item has (the message has the closest).

    Examples
    --------
    >>> one_of(pd.DataFrame({"style": ["bold", "Plain", "bold"]}), "style", "BOLD")
    array([ True, False,  True])
    """
    cells = _column(items, column)
    if lists := [cell for cell in cells if not isinstance(cell, Hashable)]:
        raise ValueError(f"column {column!r} holds {shown(lists[0])}, expected text or numbers")
    held = [(cell,) if there else () for cell, there in zip(cells, cells.notna(), strict=True)]
    return _holding(column, held, values)


def brand(items: pd.DataFrame, *names: str) -> np.ndarray:
    """Items of one of these brands: (n_items,) bool, see `one_of`."""
    return one_of(items, "brand", *names)


def price(items: pd.DataFrame, low: float | None = None, high: float | None = None) -> np.ndarray:
    """Items with a price from low to high, both included: (n_items,) bool, see `between`.

    Examples
    --------
    >>> price(pd.DataFrame({"price": [5, 20, None, 19.95]}), high=19.95)
    array([ True, False, False,  True])
    """
    return between(items, "price", low, high)


def between(items: pd.DataFrame, column: str, low: float | None = None, high: float | None = None) -> np.ndarray:
    """Items with a number from low to high, both included, in a column: (n_items,) bool.

    An item without a value (None, NaN) never matches, even without bounds. True counts as 1, so that `low=1` finds what
    is in stock, be it counted or only marked.

    Raises
    ------
    ValueError
        For a missing column, text in it such as "$12.99" (CSV holds nothing else), a bound that is NaN, or low > high.

    Examples
    --------
    >>> between(pd.DataFrame({"stock": [3, 0, None]}), "stock", low=1).tolist()
    [True, False, False]
    """
    low, high = -np.inf if low is None else low, np.inf if high is None else high
    for bound in (low, high):
        if not isinstance(bound, Number):
            raise ValueError(f"a bound of {column} is {shown(bound)}, expected a number or None")
    if not low <= high:
        raise ValueError(f"{column} from {low} to {high} holds nothing, expected low <= high")
    cells = _column(items, column)
    if wrong := [cell for cell in cells.dropna() if not isinstance(cell, Number)]:
        raise ValueError(f"column {column!r} holds {shown(wrong[0])}, expected numbers (see pd.to_numeric)")
    number = cells.astype(object).where(cells.notna(), np.nan).to_numpy(np.float64)
    return (number >= low) & (number <= high)


def items_with_ids(items: pd.DataFrame, item_ids: Iterable[int | str]) -> np.ndarray:
    """Items with these external ids, in any order: (n_items,) bool; `~items_with_ids(items, blocked)` blocks them.

    Raises
    ------
    ValueError
        For an unknown id, and for one id instead of several.

    Examples
    --------
    >>> items_with_ids(pd.DataFrame({"item_id": ["A-1", "A-2", "A-3"]}), ["A-3", "A-1"])
    array([ True, False,  True])
    """
    _column(items, "item_id")
    if isinstance(item_ids, str | bytes) or not isinstance(item_ids, Iterable):
        raise ValueError(f"item_ids is {shown(item_ids)}, expected a list of item ids")
    mask = np.zeros(len(items), dtype=bool)
    mask[ItemIds(items).rows(item_ids)] = True
    return mask


def seen(histories: Sequence[Sequence[int]], n_items: int) -> np.ndarray:
    """Items of each history of item rows (not external ids): (n_users, n_items) bool.

    To leave out seen items, `exclude_seen=True` needs less memory.

    Raises
    ------
    ValueError
        Naming the history for a row outside 0 .. n_items - 1.

    Examples
    --------
    >>> seen([[2, 0, 2], []], n_items=3)
    array([[ True, False,  True],
           [False, False, False]])
    """
    checked = checked_rows(histories, n_items)
    mask = np.zeros((len(checked), n_items), dtype=bool)
    for user, rows in enumerate(checked):
        mask[user, rows] = True
    return mask


def _column(items: pd.DataFrame, name: str) -> pd.Series:
    if name not in items:
        raise ValueError(f"the items have no column {name!r}, but {', '.join(map(repr, items.columns))}")
    return items[name]


def _key(value: Hashable) -> Hashable:
    return folded(value) if isinstance(value, str) else value


def _holding(kind: str, held: Sequence[Collection], wanted: tuple) -> np.ndarray:
    """Which items hold a wanted value; each that is wanted must be held by some item."""
    keyed = [{_key(value): value for value in values} for values in held]
    spelling = {key: value for names in keyed for key, value in names.items()}
    for value in wanted:
        if not isinstance(value, Hashable) or _key(value) not in spelling:
            texts = {str(key): shown(spelt) for key, spelt in spelling.items()}
            close = difflib.get_close_matches(folded(str(value)), texts, cutoff=0)
            closest = ", ".join(texts[text] for text in close) or "nothing"
            raise ValueError(f"no item has the {kind} {shown(value)}, the closest of {len(spelling)}: {closest}")
    keys = set(map(_key, wanted))
    return np.array([not keys.isdisjoint(names) for names in keyed], dtype=bool)
