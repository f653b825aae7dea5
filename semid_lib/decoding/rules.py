"""Business rules: which items may be returned, as boolean masks over the rows of the item table.

A rule is a NumPy array: (n_items,) bool for all users, or (n_users, n_items) if users differ, as from
`np.stack([for_ann, for_bob])`. Combine rules with `&`, `|` and `~`; the two shapes broadcast. Pass the result as
`allowed=`. Other columns need no function of their own:

>>> items = pd.DataFrame({"item_id": [7, 8, 9], "brand": ["Ash", "Birch", "Ash"], "price": [12.0, 30.0, None]})
>>> brand(items, "ash") & ~items_with_ids(items, [9])
array([ True, False, False])
>>> items["price"].between(5, 20).to_numpy()
array([ True, False, False])
"""

import difflib
from collections.abc import Collection, Iterable, Sequence

import numpy as np
import pandas as pd

from semid_lib.data.item_ids import ItemIds
from semid_lib.data.table import category_column
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


def brand(items: pd.DataFrame, *names: str) -> np.ndarray:
    """Items of one of these brands, spelled as by `text.folded`: (n_items,) bool. Without names, no item matches.

    Raises
    ------
    ValueError
        For a brand that no item has (the message has the closest), and for a cell without text.

    Examples
    --------
    >>> brand(pd.DataFrame({"brand": ["Ash", None, "Birch"]}), "ASH")
    array([ True, False, False])
    """
    held = []
    for cell in _column(items, "brand"):
        missing = pd.api.types.is_scalar(cell) and pd.isna(cell)
        if not missing and not isinstance(cell, str):
            raise ValueError(f"column 'brand' holds {shown(cell)}, expected text")
        held.append(() if missing else (cell,))
    return _holding("brand", held, names)


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


def _column(items: pd.DataFrame, name: str) -> pd.Series:
    if name not in items:
        raise ValueError(f"the items have no column {name!r}, but {', '.join(map(repr, items.columns))}")
    return items[name]


def _holding(kind: str, held: Sequence[Collection[str]], wanted: Sequence[str]) -> np.ndarray:
    """Which items hold a wanted name; each that is wanted must be held by some item."""
    keyed = [{folded(name): name for name in names} for names in held]
    spelling = {key: name for names in keyed for key, name in names.items()}
    keys = [folded(str(name)) for name in wanted]
    for key, name in zip(keys, wanted, strict=True):
        if key not in spelling:
            close = difflib.get_close_matches(key, spelling, cutoff=0)
            closest = ", ".join(shown(spelling[key]) for key in close) or "nothing"
            raise ValueError(f"no item has the {kind} {shown(name)}, the closest of {len(spelling)}: {closest}")
    return np.array([not names.keys().isdisjoint(keys) for names in keyed], dtype=bool)
