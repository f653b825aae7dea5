"""Filters of queries, with a report, and a split so that the test uses other words than the training."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from semid_lib.ids.embed import normalize
from semid_lib.queries.item_facts import words

_TEST_SHARE = 0.1
_BLOCK = 1024  # queries scored at once: block x n_items float32 in memory


def query_key(query: str) -> str:
    """A key that ignores case, punctuation, hyphens, apostrophes and the order of words.

    >>> query_key("Dry hair: L'Oreal") == query_key("loreal dry-hair")
    True
    """
    return " ".join(sorted(words(query.replace("'", "").replace("’", ""))))


# --- filters: (n,) bool, True for the queries to drop ---


def wrong_length(queries: pd.DataFrame) -> np.ndarray:
    """Queries with fewer than 2 or more than 12 words; the 61 real ones for Beauty have 2 to 10.

    >>> wrong_length(pd.DataFrame({"query": ["pen", "red pen"]}))
    array([ True, False])
    """
    n_words = np.array([len(words(query)) for query in queries["query"]], dtype=np.int64)
    return (n_words < 2) | (n_words > 12)


def repeated(queries: pd.DataFrame) -> np.ndarray:
    """Queries with the `query_key` of an earlier query of the same item.

    >>> repeated(pd.DataFrame({"item": [0, 0, 1], "query": ["red pen", "Pen, red", "red pen"]}))
    array([False,  True, False])
    """
    return queries[["item"]].assign(key=queries["query"].map(query_key)).duplicated().to_numpy()


def leaks_title(queries: pd.DataFrame, titles: Sequence[str]) -> np.ndarray:
    """Queries that are the title, or almost: a model would learn to copy, and a test would measure nothing.

    A query leaks if it has exactly the words of the title, or at least four words and four fifths of the title's
    distinct words. Shorter ones ("camping tent" for "Camping tent 2") are what shoppers type.

    >>> asked = pd.DataFrame({"item": [0, 0, 0], "query": ["gel pen", "red gel pens box", "do you have red gel pens"]})
    >>> leaks_title(asked, ["Red gel pens"])
    array([False,  True,  True])
    """
    keys = [set(query_key(title).split()) for title in titles]

    def leaks(item: int, query: str) -> bool:
        asked, title = query_key(query).split(), keys[item]
        covers = len(asked) >= 4 and len(title.intersection(asked)) >= 0.8 * len(title)
        return bool(title) and (title == set(asked) or covers)

    return np.array([leaks(*pair) for pair in zip(queries["item"], queries["query"], strict=True)], dtype=bool)


def ambiguous(queries: pd.DataFrame) -> np.ndarray:
    """Queries of several items, by `query_key`: they have no single right answer, as many real ones ("nail polish").

    >>> ambiguous(pd.DataFrame({"item": [0, 0, 1], "query": ["red pen", "pen", "Pen, red"]}))
    array([ True, False,  True])
    """
    keys = queries["query"].map(query_key).to_numpy()
    return (queries.groupby(keys)["item"].transform("nunique") > 1).to_numpy(dtype=bool)


def round_trip_ranks(items: ArrayLike, query_vectors: np.ndarray, item_vectors: np.ndarray) -> np.ndarray:
    """The rank of each query's own item in dense retrieval by cosine, from 1.

    Ties count for the item, because no query can separate items with the same text.

    Parameters
    ----------
    items : (n,) int
        Item rows.
    query_vectors : (n, dim) float array
    item_vectors : (n_items, dim) float array

    Returns
    -------
    (n,) int64 array

    Raises
    ------
    ValueError
        If there is not one vector per row, a row is out of range or a vector is not finite.

    Examples
    --------
    >>> vectors = np.array([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    >>> round_trip_ranks([2, 0], np.array([[0.1, 1.0], [0.1, 1.0]]), vectors)
    array([1, 3])
    """
    rows = np.asarray(items, dtype=np.int64)
    if len(query_vectors) != len(rows) or not np.isin(rows, np.arange(len(item_vectors))).all():
        raise ValueError(f"expected rows of {len(item_vectors)} items for {len(query_vectors)} queries, got {rows}")
    if not (np.isfinite(query_vectors).all() and np.isfinite(item_vectors).all()):
        raise ValueError("a vector has a value that is not finite")
    query_vectors, item_vectors = normalize(query_vectors), normalize(item_vectors)
    ranks = np.empty(len(rows), dtype=np.int64)
    for start in range(0, len(rows), _BLOCK):
        block = slice(start, start + _BLOCK)
        scores = query_vectors[block] @ item_vectors.T  # (block, n_items)
        own = np.take_along_axis(scores, rows[block, None], axis=1)
        ranks[block] = 1 + (scores > own + 1e-6).sum(axis=1)  # float32 sums of equal vectors can differ in the last bit
    return ranks


class Filtered(NamedTuple):
    """The remaining queries, with their index labels, and a report with one row per filter."""

    kept: pd.DataFrame
    report: pd.DataFrame  # filter, found, dropped, left, examples


def filter_queries(queries: pd.DataFrame, titles: Sequence[str]) -> Filtered:
    """Drop queries that train or measure nothing: by length, repetition and title leakage; count ambiguous ones.

    The filters run in this order, each on the queries that the previous one left. `found` counts the queries a filter
    applies to, `dropped` those it removed.

    Parameters
    ----------
    titles : sequence of str
        Of all items.

    Examples
    --------
    >>> asked = pd.DataFrame({"item": [0, 0, 0], "query": ["gel pen", "Pen, gel", "red gel pens box"]})
    >>> kept, report = filter_queries(asked, ["Red gel pens, box"])
    >>> kept["query"].tolist(), report[["filter", "dropped", "left"]].values.tolist()[1:3]
    (['gel pen'], [['repeated', 1, 2], ['title', 1, 1]])
    """
    kept, report = queries, []
    checks = {
        **{"length": wrong_length, "repeated": repeated},
        **{"title": lambda asked: leaks_title(asked, titles), "ambiguous": ambiguous},
    }
    for name, check in checks.items():
        found = check(kept)
        examples, n_found = " | ".join(kept["query"][found][:3]), int(found.sum())
        n_dropped = 0 if check is ambiguous else n_found
        kept = kept[~found] if n_dropped else kept
        report.append((name, n_found, n_dropped, len(kept), examples))
    return Filtered(kept, pd.DataFrame(report, columns=["filter", "found", "dropped", "left", "examples"]))


# --- split ---


class QuerySplit(NamedTuple):
    """Two parts of the queries, with their index labels; no wording is in both."""

    train: pd.DataFrame
    test: pd.DataFrame  # with `cell`, one of `CELLS`
    n_dropped: int  # queries in neither part, because the training part has them in the same words


CELLS = ("seen item, seen kind", "seen item, unseen kind", "unseen item, seen kind", "unseen item, unseen kind")


def split_queries(queries: pd.DataFrame, held_out_kinds: Sequence[str], seed: int = 0) -> QuerySplit:
    """Hold out items and kinds, so that the test asks something that the training did not.

    The test gets all queries of a tenth of the items, all queries of the `held_out_kinds` and a tenth of the other
    queries. Test queries with the `query_key` of a training query are dropped; these are mostly short and common ("nail
    polish"), so the test is slightly more specific than all queries.

    `cell` says whether item and kind of a test query occur in `train`. The cell "seen item, unseen kind" is mostly the
    largest: report by cell. Of the template kinds, "typo" and "drop" alter queries of other kinds, so training has
    seen something of each kind but "need" and "question".

    Raises
    ------
    ValueError
        For an unknown kind, or an empty part.

    Examples
    --------
    >>> asked = pd.DataFrame({"item": np.repeat(np.arange(20), 2), "kind": ["need", "words"] * 20})
    >>> asked["query"] = [f"query {i}" for i in range(40)]
    >>> split = split_queries(asked, ["need"])
    >>> split.train["kind"].unique().tolist(), split.test["cell"].value_counts().to_dict()
    (['words'], {'seen item, unseen kind': 17, 'unseen item, unseen kind': 3, 'unseen item, seen kind': 3})
    """
    if unknown := set(held_out_kinds) - set(queries["kind"]):
        raise ValueError(f"held_out_kinds has {sorted(unknown)}, expected some of {sorted(set(queries['kind']))}")
    rng, items = np.random.default_rng(seed), np.unique(queries["item"])
    held_out_items = rng.permutation(items)[: max(1, round(_TEST_SHARE * len(items)))]
    in_test = (queries["item"].isin(held_out_items) | queries["kind"].isin(held_out_kinds)).to_numpy()
    drawn = in_test | (rng.random(len(queries)) < _TEST_SHARE)
    in_test = in_test if drawn.all() else drawn  # with few queries, all may be drawn
    keys = queries["query"].map(query_key)
    known = keys.isin(keys[~in_test]).to_numpy()
    train, test = queries[~in_test], queries[in_test & ~known]
    if train.empty or test.empty:
        raise ValueError(
            f"{len(queries)} queries give {len(train)} for training and {len(test)} for the test, expected some of "
            "both: write more per item, or add items"
        )
    new_item, new_kind = (~test[name].isin(train[name]).to_numpy() for name in ("item", "kind"))
    test = test.assign(cell=np.array(CELLS, dtype=object)[2 * new_item + new_kind])
    return QuerySplit(train, test, int((in_test & known).sum()))
