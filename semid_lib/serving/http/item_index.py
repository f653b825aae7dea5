"""The item table as the service reads it: by item id, word, category, brand and prefix of a semantic ID."""

import re
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
import torch

from semid_lib.data.item_ids import ItemIds
from semid_lib.data.table import category_column
from semid_lib.decoding.trie import PrefixTrie
from semid_lib.ids.semantic_ids import SemanticIDs
from semid_lib.serving.http.word_index import WordIndex, shared_words
from semid_lib.workbench.text import folded, shown, words

_EXAMPLES, _EXAMPLE_WORDS = 5, 6  # example queries, and words in one of a title
_LONGER = 4  # a name in another Unicode form has at most so many times the letters


class UnknownError(ValueError):
    """A category or brand that the catalogue does not have."""


class Names:
    """Items by a name, such as a category or a brand.

    Parameters
    ----------
    what : str
        What the names are, for the message of an error.
    of_items : sequence of iterables of str
        The names of each item.

    Attributes
    ----------
    n_items : dict
        Number of items of each name, as it is first written, largest first.

    Examples
    --------
    >>> brands = Names("brand", [["Ash"], [], ["ASH"], ["Birch"]])
    >>> brands.n_items, brands.mask(["ash"])
    ({'Ash': 2, 'Birch': 1}, array([ True, False,  True, False]))
    """

    def __init__(self, what: str, of_items: Sequence[Iterable[str]]):
        self.what, self._n = what, len(of_items)
        self._rows: dict[str, list[int]] = {}
        written: dict[str, str] = {}
        for row, names in enumerate(of_items):
            for name, own in {folded(name): name for name in names}.items():
                self._rows.setdefault(name, []).append(row)
                written.setdefault(name, own)
        self._longest = max(map(len, written.values()), default=0)
        by_size = sorted(self._rows, key=lambda name: (-len(self._rows[name]), name))
        self.n_items = {written[name]: len(self._rows[name]) for name in by_size}

    def mask(self, names: Iterable[str]) -> np.ndarray:
        """Items with at least one of these names, whatever the case: (n_items,) bool. Raises UnknownError."""
        mask = np.zeros(self._n, dtype=bool)
        for name in names:
            is_short = len(name) <= _LONGER * self._longest  # folding a megabyte takes half a second
            rows = self._rows.get(folded(name)) if is_short else None
            if rows is None:
                raise UnknownError(f"no item has the {self.what} {shown(name)}: GET /catalogue lists those that exist")
            mask[rows] = True
        return mask


class ItemIndex:
    """The item table in the form in which the service reads it.

    `rules` reads every category path on each call, which takes tens of milliseconds at 12,000 items; a server keeps
    the rows of each name instead.

    Parameters
    ----------
    items : pandas.DataFrame
        A table with `item_id` and `title`, and `brand`, `categories` and `price` where known, a row per semantic ID.
    ids : SemanticIDs
    trie : PrefixTrie
    item_ids : ItemIds, optional
        Those of the table, if they were made before.

    Examples
    --------
    >>> items = pd.DataFrame({"item_id": [7, 8, 9], "title": ["Red pen", "Blue pen", "Tent"]})
    >>> ids = SemanticIDs.from_codes(np.array([[0, 1], [0, 2], [3, 0]]), codebook_size=4)
    >>> index = ItemIndex(items, ids, PrefixTrie.build(ids.unique))
    >>> index.find("pen", limit=5), index.describe(0)["semantic_id"]
    ([0, 1], [0, 1])
    >>> index.why(0, index.item_ids.rows([9, 8]))
    {'item_id': 8, 'title': 'Blue pen', 'shared_codes': 1}
    """

    def __init__(self, items: pd.DataFrame, ids: SemanticIDs, trie: PrefixTrie, item_ids: ItemIds | None = None):
        self.item_ids = ItemIds(items) if item_ids is None else item_ids
        self._title = [title or "" for title in _texts(items, "title")]
        self._brand, self._price, self._paths = _texts(items, "brand"), _prices(items), category_column(items)
        self.codes, self._trie = ids.unique, trie.to("cpu")
        self._leaf = self._trie.leaf_of_item.numpy()
        names = ([name for path in paths for name in path if name] for paths in self._paths)
        self.categories = Names("category", list(names))
        self.brands = Names("brand", [[brand] if brand else [] for brand in self._brand])

    def __len__(self) -> int:
        return len(self._title)

    @cached_property
    def _words_of_titles(self) -> WordIndex:
        """Made when it is first needed: that takes a second or two at 100,000 items."""
        return WordIndex(self._title)

    @cached_property
    def _words_of_names(self) -> WordIndex:
        return WordIndex([*self.categories.n_items, *self.brands.n_items])

    def describe(self, row: int) -> dict[str, Any]:
        """One item, ready for JSON."""
        return {
            "item_id": self.item_ids.for_json[row],
            "title": self._title[row],
            "brand": self._brand[row],
            "categories": self._paths[row],
            "price": self._price[row],
            "semantic_id": self.codes[row].tolist(),
        }

    def allowed(
        self, categories: Sequence[str], brands: Sequence[str], blocked: Sequence[int | str]
    ) -> np.ndarray | None:
        """Items of one of these categories and one of these brands that are not blocked.

        Names are compared as in `rules.category` and `rules.brand`: whole, whatever the case, categories at any level
        of a path. No categories or no brands allow all.

        Returns
        -------
        (n_items,) bool array, or None if everything is allowed

        Raises
        ------
        UnknownError
            For a name that no item has.
        UnknownItemError
            For a blocked item that the catalogue does not have.
        """
        if not categories and not brands and not blocked:
            return None
        mask = np.ones(len(self), dtype=bool)
        if categories:
            mask &= self.categories.mask(categories)
        if brands:
            mask &= self.brands.mask(brands)
        mask[self.item_ids.rows(blocked, "blocked_items")] = False
        return mask

    def find(self, text: str, limit: int) -> list[int]:
        """Rows of at most `limit` items whose titles contain every word of a text, or a word that begins with it.

        The item that has the text as its id comes first.
        """
        exact = [self.item_ids.row_of[text.strip()]] if text.strip() in self.item_ids.row_of else []
        return [*exact, *(row for row in self._words_of_titles.find(text, limit + 1) if row not in exact)][:limit]

    def knows_word_of(self, query: str) -> bool:
        """Whether a title, brand or category contains a word of a query, or a longer or shorter form of it."""
        return any(word in index for word in words(query) for index in (self._words_of_titles, self._words_of_names))

    def matched_words(self, row: int, query: str) -> list[str]:
        """The words of a query that an item's title, brand or categories contain."""
        texts = [self._title[row], self._brand[row] or "", *(name for path in self._paths[row] for name in path)]
        return shared_words(dict.fromkeys(words(query)), "\n".join(texts))

    @cached_property
    def example_queries(self) -> list[str]:
        """A few queries to try: the largest categories at the ends of paths, then beginnings of titles."""
        leaves = {folded(path[-1]) for paths in self._paths for path in paths if path}
        kinds = [name for name in self.categories.n_items if folded(name) in leaves and len(words(name)) <= 4]
        titles = [_beginning(title) for title in self._title[:: max(1, len(self) // _EXAMPLES)]]
        examples = dict.fromkeys(text for text in [*kinds[: _EXAMPLES - 2], *titles, *kinds] if words(text))
        return list(examples)[:_EXAMPLES]

    def neighbours(self, row: int, limit: int) -> list[dict[str, Any]]:
        """The items whose semantic IDs begin as this item's does, for each prefix from the longest to one code.

        Each prefix lists at most `limit` items, those whose IDs are nearest, without those of longer prefixes; a
        prefix that adds none is left out. The item itself is neither counted nor listed.
        """
        groups, own = [], int(self._leaf[row])
        inner = (own, own + 1)
        for depth in range(self._trie.n_levels - 1, 0, -1):
            node = self._trie.ancestor(depth, torch.tensor([own]))
            low, high = (int(end) for end in self._trie.leaves(depth, node))
            leaves = np.r_[low : inner[0], inner[1] : high]
            if len(leaves):
                nearest = np.sort(leaves[np.argsort(np.abs(leaves - own), kind="stable")[:limit]])
                items = [self.describe(other) for other in self._trie.item.numpy()[nearest].tolist()]
                groups.append({"prefix": self.codes[row, :depth].tolist(), "n_items": high - low - 1, "items": items})
            inner = (low, high)
        return groups

    def why(self, row: int, history: np.ndarray) -> dict[str, Any] | None:
        """The item of a history that shares most first codes with this one, the most recent of equals; else None."""
        if not len(history):
            return None
        n_codes = np.cumprod(self.codes[history] == self.codes[row], axis=1).sum(axis=1)
        at = len(history) - 1 - int(n_codes[::-1].argmax())
        if not n_codes[at]:
            return None
        other = int(history[at])
        return {
            "item_id": self.item_ids.for_json[other],
            "title": self._title[other],
            "shared_codes": int(n_codes[at]),
        }


def _beginning(title: str) -> str:
    """A title up to its first comma, bracket or dash, in a few words."""
    return " ".join(re.split(r"[,;:(|\[\u2013\u2014]", title)[0].split()[:_EXAMPLE_WORDS])[:100]


def _texts(items: pd.DataFrame, column: str) -> list[str | None]:
    cells = items.get(column, pd.Series([None] * len(items)))
    return [str(cell) if there else None for cell, there in zip(cells, cells.notna(), strict=True)]


def _prices(items: pd.DataFrame) -> list[float | None]:
    """Prices as JSON has them; None where there is no number."""
    cells = items.get("price", pd.Series([None] * len(items)))
    prices = pd.to_numeric(cells, errors="coerce").to_numpy(np.float64, na_value=np.nan)
    return [price if np.isfinite(price) else None for price in prices.tolist()]
