"""The item table as a service reads it: by item id, by title, by category and by the prefix of a semantic ID."""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch

from semid_lib.semantic_ids import SemanticIDs
from semid_lib.trie import PrefixTrie


class UnknownError(ValueError):
    """An item id or a category that the catalogue does not have."""


class SharedPrefix(NamedTuple):
    """Which item begins with the same codes, and how many of them."""

    row: int
    n_codes: int


class Prefix(NamedTuple):
    """The items whose semantic IDs begin with the same codes."""

    codes: tuple[int, ...]
    n_items: int
    rows: np.ndarray  # some of them, (at most `limit`,) int64 item rows in the order of their IDs


class Catalogue:
    """What answers about items need, kept in the form in which it is asked for.

    items: a table with `item_id` and `title`, and `brand` and `categories` where known, a row per semantic ID. `rules`
    reads every category path anew, which takes tens of milliseconds at 12,000 items; a server keeps the rows of each
    name instead.

    >>> items = pd.DataFrame({"item_id": [7, 8, 9], "title": ["Red pen", "Blue pen", "Tent"]})
    >>> ids = SemanticIDs.from_codes(np.array([[0, 1], [0, 2], [3, 0]]), codebook_size=4)
    >>> catalogue = Catalogue(items, ids, PrefixTrie.build(ids.unique))
    >>> catalogue.find("pen", limit=5), catalogue.describe(0)["semantic_id"]
    ([0, 1], [0, 1])
    >>> catalogue.shared_prefix(0, catalogue.rows([9, 8]))
    SharedPrefix(row=1, n_codes=1)
    """

    def __init__(self, items: pd.DataFrame, ids: SemanticIDs, trie: PrefixTrie):
        self.item_ids = [int(item_id) for item_id in items["item_id"]]
        self.row_of = {item_id: row for row, item_id in enumerate(self.item_ids)}
        self.titles = _texts(items, "title")
        self.brands = _texts(items, "brand")
        self.paths = [_paths(cell) for cell in items["categories"]] if "categories" in items else [[]] * len(items)
        self.codes, self._trie = ids.unique, trie.to("cpu")
        self._folded = [(title or "").casefold() for title in self.titles]
        self._leaf = self._trie.leaf_of_item().numpy()
        self._category_rows, self.category_names = _by_category(self.paths)

    def __len__(self) -> int:
        return len(self.item_ids)

    def rows(self, item_ids: Iterable[int]) -> np.ndarray:
        """The rows of items: (n,) int64. Raises UnknownError for the first id that is no item's, with its position."""
        rows = [self.row_of.get(item_id, -1) for item_id in item_ids]
        if -1 in rows:
            at = rows.index(-1)
            raise UnknownError(f"item id {list(item_ids)[at]} at position {at} is not in the catalogue")
        return np.array(rows, dtype=np.int64)

    def describe(self, row: int) -> dict[str, Any]:
        """One item, ready for JSON."""
        return {
            "item_id": self.item_ids[row],
            "title": self.titles[row] or "",
            "brand": self.brands[row],
            "categories": self.paths[row],
            "semantic_id": self.codes[row].tolist(),
        }

    def allowed(self, categories: Sequence[str], blocked: Iterable[int]) -> np.ndarray | None:
        """Items of at least one of these categories that are not blocked: (n_items,) bool, None for all.

        Categories as in `rules.category`: a whole name at any level of a path, whatever the case; without names, all
        items match. Raises UnknownError for a name that no item has, and for an unknown blocked item.
        """
        blocked = self.rows(blocked)
        if not categories and not len(blocked):
            return None
        mask = np.full(len(self), not categories)
        for name in categories:
            if name.casefold() not in self._category_rows:
                raise UnknownError(f"no item has the category {name!r}")
            mask[self._category_rows[name.casefold()]] = True
        mask[blocked] = False
        return mask

    def find(self, text: str, limit: int) -> list[int]:
        """Rows of at most so many items whose titles hold every word of a text, or its beginning: earliest first."""
        words = list(dict.fromkeys(text.casefold().split()))
        if not words:
            return []
        found = []
        for row, title in enumerate(self._folded):
            if all(word in title for word in words):
                at = title.find(words[0])
                inside_a_word = at > 0 and title[at - 1].isalnum()
                found.append((inside_a_word, at, len(title), row))
        return [row for *_, row in sorted(found)[:limit]]

    def neighbours(self, row: int, limit: int) -> list[Prefix]:
        """The items that begin with the same codes as this one, for each prefix from the longest to one code.

        Each prefix lists the items whose IDs are nearest among those that no longer prefix has; one that adds none is
        left out. The item itself is neither counted nor listed.
        """
        found, own = [], int(self._leaf[row])
        inner = (own, own + 1)
        for depth in range(self._trie.n_levels - 1, 0, -1):
            node = self._trie.ancestor(depth, torch.tensor([own]))
            low, high = (int(end) for end in self._trie.leaves(depth, node))
            leaves = np.r_[low : inner[0], inner[1] : high]
            if len(leaves):
                nearest = np.sort(leaves[np.argsort(np.abs(leaves - own), kind="stable")[:limit]])
                rows = self._trie.item.numpy()[nearest].astype(np.int64)
                found.append(Prefix(tuple(self.codes[row, :depth].tolist()), high - low - 1, rows))
            inner = (low, high)
        return found

    def shared_prefix(self, row: int, history: np.ndarray) -> SharedPrefix | None:
        """The item of a history whose semantic ID begins as this one's does for longest, the most recent of equals."""
        if not len(history):
            return None
        n_codes = np.cumprod(self.codes[history] == self.codes[row], axis=1).sum(axis=1)
        at = len(history) - 1 - int(n_codes[::-1].argmax())
        return SharedPrefix(int(history[at]), int(n_codes[at])) if n_codes[at] else None


def _texts(items: pd.DataFrame, column: str) -> list[str | None]:
    if column not in items:
        return [None] * len(items)
    return [str(cell) if there else None for cell, there in zip(items[column], items[column].notna(), strict=True)]


def _paths(cell) -> list[list[str]]:
    """Category paths as lists of text; Parquet gives arrays of arrays, and None where there are none."""
    paths = cell if isinstance(cell, (list, np.ndarray)) else []
    return [[path] if isinstance(path, str) else [str(name) for name in path] for path in paths]


def _by_category(paths: list[list[list[str]]]) -> tuple[dict[str, np.ndarray], dict[str, int]]:
    """The rows of each category by its folded name, and the number of items by the name as it is written."""
    rows: dict[str, list[int]] = {}
    written: dict[str, str] = {}
    for row, item in enumerate(paths):
        for folded, name in {name.casefold(): name for path in item for name in path}.items():
            rows.setdefault(folded, []).append(row)
            written.setdefault(folded, name)
    by_size = sorted(rows, key=lambda folded: (-len(rows[folded]), folded))
    return (
        {folded: np.array(found) for folded, found in rows.items()},
        {written[folded]: len(rows[folded]) for folded in by_size},
    )
