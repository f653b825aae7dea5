"""The item table as a service reads it: by item id, word, category, brand and prefix of a semantic ID."""

import math
import re
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch

from semid_lib.data.item_ids import ItemIds
from semid_lib.data.table import category_column
from semid_lib.decoding.trie import PrefixTrie
from semid_lib.ids.semantic_ids import SemanticIDs
from semid_lib.serving.http.word_index import WordIndex, shared_words, words
from semid_lib.workbench.text import folded, shown

_EXAMPLES, _EXAMPLE_WORDS = 5, 6  # example queries, and words in one of a title
_LONGER = 4  # times the letters of a name in another Unicode form


class UnknownError(ValueError):
    """A category or brand that the catalogue does not have."""


class SharedPrefix(NamedTuple):
    """Which item begins with the same codes, and how many of them."""

    row: int
    n_codes: int


class Prefix(NamedTuple):
    """The items whose semantic IDs begin with the same codes."""

    codes: tuple[int, ...]
    n_items: int
    rows: np.ndarray  # some of them, (at most `limit`,) int64 item rows in the order of their IDs


class Names:
    """Which items have a name, such as a category or a brand.

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
        rows: dict[str, list[int]] = {}
        written: dict[str, str] = {}
        for row, names in enumerate(of_items):
            for name, own in {folded(name): name for name in names}.items():
                rows.setdefault(name, []).append(row)
                written.setdefault(name, own)
        self._rows = {name: np.array(found) for name, found in rows.items()}
        self._longest = max(map(len, written.values()), default=0)
        by_size = sorted(rows, key=lambda name: (-len(rows[name]), name))
        self.n_items = {written[name]: len(rows[name]) for name in by_size}

    def mask(self, names: Iterable[str]) -> np.ndarray:
        """Items with at least one of these names, whatever the case: (n_items,) bool. Raises UnknownError."""
        mask = np.zeros(self._n, dtype=bool)
        for name in names:
            known = len(name) <= _LONGER * self._longest  # folding a megabyte takes half a second
            rows = self._rows.get(folded(name)) if known else None
            if rows is None:
                raise UnknownError(f"no item has the {self.what} {shown(name)}: GET /catalogue lists those that exist")
            mask[rows] = True
        return mask


class Catalogue:
    """The item table, kept in the form in which a service reads it.

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
    >>> catalogue = Catalogue(items, ids, PrefixTrie.build(ids.unique))
    >>> catalogue.find("pen", limit=5), catalogue.describe(0)["semantic_id"]
    ([0, 1], [0, 1])
    >>> catalogue.shared_prefix(0, catalogue.item_ids.rows([9, 8]))
    SharedPrefix(row=1, n_codes=1)
    """

    def __init__(self, items: pd.DataFrame, ids: SemanticIDs, trie: PrefixTrie, item_ids: ItemIds | None = None):
        self.item_ids = ItemIds(items) if item_ids is None else item_ids
        self.titles, self.brands = _texts(items, "title"), _texts(items, "brand")
        self.paths = category_column(items)
        self.prices = _prices(items)
        self.codes, self._trie = ids.unique, trie.to("cpu")
        self._leaf = self._trie.leaf_of_item().numpy()
        self.with_category = Names(
            "category", [[name for path in paths for name in path if name] for paths in self.paths]
        )
        self.with_brand = Names("brand", [[brand] if brand else [] for brand in self.brands])

    def __len__(self) -> int:
        return len(self.titles)

    @cached_property
    def words(self) -> WordIndex:
        """The words of titles; made when it is first needed, a second at 100,000 items."""
        return WordIndex([title or "" for title in self.titles])

    @cached_property
    def _words_of_names(self) -> WordIndex:
        return WordIndex([*self.with_category.n_items, *self.with_brand.n_items])

    def describe(self, row: int) -> dict[str, Any]:
        """One item, ready for JSON."""
        return {
            "item_id": self.item_ids.for_json[row],
            "title": self.titles[row] or "",
            "brand": self.brands[row],
            "categories": self.paths[row],
            "price": self.prices[row],
            "semantic_id": self.codes[row].tolist(),
        }

    def allowed(
        self, categories: Sequence[str], brands: Sequence[str], blocked: Sequence[int | str]
    ) -> np.ndarray | None:
        """Items of one of these categories and one of these brands that are not blocked: (n_items,) bool.

        Names as in `rules.category` and `rules.brand`: whole, whatever the case, categories at any level of a path.
        No categories or no brands allow all. None if everything is allowed.

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
            mask &= self.with_category.mask(categories)
        if brands:
            mask &= self.with_brand.mask(brands)
        mask[self.item_ids.rows(blocked, "blocked_items")] = False
        return mask

    def find(self, text: str, limit: int) -> list[int]:
        """Rows of at most `limit` items whose titles hold every word of a text, or a word that begins with it.

        The item that has the text as its id comes first.
        """
        exact = [self.item_ids.row_of[text.strip()]] if text.strip() in self.item_ids.row_of else []
        return [*exact, *(row for row in self.words.find(text, limit + 1) if row not in exact)][:limit]

    def holds_word_of(self, query: str) -> bool:
        """Whether a title, brand or category holds a word of a query, or a longer or shorter form of it."""
        return any(word in index for word in words(query) for index in (self.words, self._words_of_names))

    def shared_words(self, query: str, row: int) -> list[str]:
        """The words of a query that an item's title, brand or categories hold."""
        texts = [self.titles[row], self.brands[row], *(name for path in self.paths[row] for name in path)]
        return shared_words(dict.fromkeys(words(query)), "\n".join(text for text in texts if text))

    @cached_property
    def example_queries(self) -> list[str]:
        """A few queries to try: the largest categories at the ends of paths, then beginnings of titles."""
        leaves = {folded(path[-1]) for paths in self.paths for path in paths if path}
        kinds = [name for name in self.with_category.n_items if folded(name) in leaves and len(words(name)) <= 4]
        step = max(1, len(self) // _EXAMPLES)
        titles = [_beginning(title or "") for title in self.titles[::step]]
        examples = dict.fromkeys(text for text in [*kinds[: _EXAMPLES - 2], *titles, *kinds] if words(text))
        return list(examples)[:_EXAMPLES]

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


def _beginning(title: str) -> str:
    """A title up to its first comma, bracket or dash, in a few words."""
    return " ".join(re.split(r"[,;:(|\[\u2013\u2014]", title)[0].split()[:_EXAMPLE_WORDS])[:100]


def _texts(items: pd.DataFrame, column: str) -> list[str | None]:
    if column not in items:
        return [None] * len(items)
    return [str(cell) if there else None for cell, there in zip(items[column], items[column].notna(), strict=True)]


def _prices(items: pd.DataFrame) -> list[float | None]:
    """Prices as JSON has them; None where there is no number."""
    if "price" not in items:
        return [None] * len(items)
    prices = pd.to_numeric(items["price"], errors="coerce")
    return [float(price) if not pd.isna(price) and math.isfinite(price) else None for price in prices]
