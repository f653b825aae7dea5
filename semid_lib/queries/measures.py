"""How synthetic queries compare with titles, with each other and with the training part."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pandas as pd

from semid_lib.queries.item_facts import words


def relevant_pairs(queries: pd.DataFrame) -> pd.DataFrame:
    """One row per query and relevant item of a data set's own queries; the index names the query.

    `share` is 1 / number of relevant items.

    >>> relevant_pairs(pd.DataFrame({"query": ["pen"], "item_rows": [[4, 7]]}))[["item", "share"]].values.tolist()
    [[4.0, 0.5], [7.0, 0.5]]
    """
    pairs = queries.assign(share=1 / queries["item_rows"].map(len)).explode("item_rows")
    return pairs.rename(columns={"item_rows": "item"}).astype({"item": np.int64})


def per_query(values: pd.DataFrame, share: pd.Series) -> pd.DataFrame:
    """Means over the relevant items of each query, from values by `relevant_pairs`."""
    return values.multiply(share, axis=0).groupby(level=0).sum()


def title_overlap(queries: pd.DataFrame, titles: Sequence[str]) -> pd.DataFrame:
    """Number of words of each query, and the share of them that its item's title has.

    >>> asked = pd.DataFrame({"item": [0], "query": ["soft red pen"]})
    >>> title_overlap(asked, ["Red pen"])[["words", "in_title"]].round(2).values.tolist()
    [[3.0, 0.67]]
    """
    in_titles = [set(words(title)) for title in titles]
    found = [words(query) for query in queries["query"]]
    shares = [
        np.mean([word in in_titles[item] for word in parts]) if parts else 0.0
        for parts, item in zip(found, queries["item"], strict=True)
    ]
    return queries.assign(words=[len(parts) for parts in found], in_title=shares)


def own_word_pairs(queries: pd.DataFrame) -> pd.Series:
    """Share of the neighbouring words of each kind that occur in no other kind, largest first.

    >>> asked = pd.DataFrame({"kind": ["need", "words"], "query": ["good for red hair", "red hair"]})
    >>> own_word_pairs(asked).round(2).to_dict()
    {'need': 0.67, 'words': 0.0}
    """
    pairs = queries["query"].map(lambda query: [" ".join(pair) for pair in pairwise(words(query))]).explode().dropna()
    kinds = queries["kind"][pairs.index]
    is_own = kinds.groupby(pairs.to_numpy()).transform("nunique") == 1
    return is_own.groupby(kinds).mean().sort_values(ascending=False)


def new_words(test: pd.DataFrame, train: pd.DataFrame) -> pd.DataFrame:
    """Share of the words of each test query that are new to its item, and new to all training queries.

    `new_for_item` is NaN for items without training queries.

    >>> train = pd.DataFrame({"item": [0, 1], "query": ["red pen", "blue ink"]})
    >>> new_words(pd.DataFrame({"item": [0], "query": ["red ink"]}), train)[["new_for_item", "new"]].values.tolist()
    [[0.5, 0.0]]
    """
    used: dict[int, set[str]] = {}
    for item, query in zip(train["item"], train["query"], strict=True):
        used.setdefault(item, set()).update(words(query))
    everywhere = set().union(*used.values())

    def share(query: str, known: set[str] | None) -> float:
        parts = words(query)
        return float(np.mean([word not in known for word in parts])) if known and parts else np.nan

    of_item = [share(query, used.get(item)) for query, item in zip(test["query"], test["item"], strict=True)]
    return test.assign(new_for_item=of_item, new=[share(query, everywhere) for query in test["query"]])
