"""Filters of queries, with a report, and a split so that the test uses other words than the training."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from semid_lib.ids.embed import normalize
from semid_lib.queries.item_facts import words

_BLOCK = 1024  # queries scored at once: block x n_items float32 in memory


def query_key(query: str) -> str:
    """A key that ignores case, punctuation, hyphens, apostrophes and the order of words.

    >>> query_key("Dry hair: L'Oreal") == query_key("loreal dry-hair")
    True
    """
    return " ".join(sorted(words(query.replace("'", "").replace("’", ""))))


# --- filters: (n,) bool, True for the queries to drop ---


def wrong_length(queries: pd.DataFrame, min_words: int = 2, max_words: int = 12) -> np.ndarray:
    """Queries with too few or too many words; the 61 real ones for Beauty have 2 to 10.

    >>> wrong_length(pd.DataFrame({"query": ["pen", "red pen"]}))
    array([ True, False])
    """
    n_words = queries["query"].map(lambda query: len(words(query))).to_numpy(dtype=np.int64)
    return (n_words < min_words) | (n_words > max_words)


def repeated(queries: pd.DataFrame) -> np.ndarray:
    """Queries with the `query_key` of an earlier query of the same item.

    >>> repeated(pd.DataFrame({"item": [0, 0, 1], "query": ["red pen", "Pen, red", "red pen"]}))
    array([False,  True, False])
    """
    keys = pd.DataFrame({"item": queries["item"], "key": queries["query"].map(query_key)})
    return keys.duplicated().to_numpy()


def leaks_title(queries: pd.DataFrame, titles: Sequence[str], max_coverage: float = 0.8) -> np.ndarray:
    """Queries that are the title, or almost: a model would learn to copy, and a test would measure nothing.

    A query leaks if it has exactly the words of the title, or at least four words and `max_coverage` of the title's
    distinct words. Shorter ones ("camping tent" for "Camping tent 2") are what shoppers type.

    >>> asked = pd.DataFrame({"item": [0, 0, 0], "query": ["gel pen", "red gel pens box", "do you have red gel pens"]})
    >>> leaks_title(asked, ["Red gel pens"])
    array([False,  True,  True])
    """
    keys = [frozenset(query_key(title).split()) for title in titles]
    leaks = np.zeros(len(queries), dtype=bool)
    for at, (item, query) in enumerate(zip(queries["item"], queries["query"], strict=True)):
        asked, title = query_key(query).split(), keys[item]
        covers = len(asked) >= 4 and len(title.intersection(asked)) >= max_coverage * len(title)
        leaks[at] = bool(title) and (title == set(asked) or covers)
    return leaks


def ambiguous(queries: pd.DataFrame) -> np.ndarray:
    """Queries of several items, by `query_key`: they have no single right answer, as many real ones ("nail polish").

    >>> ambiguous(pd.DataFrame({"item": [0, 0, 1], "query": ["red pen", "pen", "Pen, red"]}))
    array([ True, False,  True])
    """
    keys = queries["query"].map(query_key)
    return (queries.groupby(keys.to_numpy())["item"].transform("nunique") > 1).to_numpy(dtype=bool)


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
        If shapes do not fit, a row is out of range or a vector is not finite.

    Examples
    --------
    >>> vectors = np.array([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    >>> round_trip_ranks([2, 0], np.array([[0.1, 1.0], [0.1, 1.0]]), vectors)
    array([1, 3])
    """
    rows = np.asarray(items, dtype=np.int64)
    if len(query_vectors) != len(rows) or query_vectors.shape[1:] != item_vectors.shape[1:]:
        raise ValueError(
            f"vectors are {query_vectors.shape} and {item_vectors.shape}, expected ({len(rows)}, dim) and "
            "(n_items, dim)"
        )
    if rows.size and not 0 <= rows.min() <= rows.max() < len(item_vectors):
        raise ValueError(f"item rows go from {rows.min()} to {rows.max()}, expected 0 to {len(item_vectors) - 1}")
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


def filter_queries(
    queries: pd.DataFrame,
    titles: Sequence[str],
    *,
    drop_ambiguous: bool = False,
    query_vectors: np.ndarray | None = None,
    item_vectors: np.ndarray | None = None,
    k: int = 100,
) -> Filtered:
    """Drop queries that train or measure nothing: by length, repetition, title leakage, ambiguity and round trip.

    The filters run in this order, each on the queries that the previous one left. `found` counts the queries a filter
    applies to, `dropped` those it removed; ambiguous queries stay unless `drop_ambiguous`. The index does not change,
    so with that of `synthesize`, `query_vectors[kept.index]` are the vectors of `kept`. Embedding is the expensive
    part: filter without vectors first.

    Parameters
    ----------
    titles : sequence of str
        Of all items.
    query_vectors, item_vectors : (n, dim) and (n_items, dim) float arrays, optional
        With them, a query must find its item in the first `k` results of dense retrieval.

    Raises
    ------
    ValueError
        If only one kind of vectors is given, their number does not fit, or k < 1.

    Examples
    --------
    >>> asked = pd.DataFrame({"item": [0, 0, 0], "query": ["gel pen", "Pen, gel", "red gel pens box"]})
    >>> kept, report = filter_queries(asked, ["Red gel pens, box"])
    >>> kept["query"].tolist(), report[["filter", "dropped", "left"]].values.tolist()[1:3]
    (['gel pen'], [['repeated', 1, 2], ['title', 1, 1]])
    """
    if (query_vectors is None) != (item_vectors is None):
        raise ValueError("only one of query_vectors and item_vectors is given, expected both or none")
    if query_vectors is not None and len(query_vectors) != len(queries):
        raise ValueError(f"there are {len(query_vectors)} query vectors, expected {len(queries)}")
    if k < 1:
        raise ValueError(f"k is {k}, expected at least 1")
    at, report = np.arange(len(queries)), []

    def apply(name: str, found: np.ndarray, drops: bool = True) -> None:
        nonlocal at
        examples = " | ".join(queries["query"].iloc[at[found][:3]])
        at = at[~found] if drops else at
        n_found = int(found.sum())
        report.append((name, n_found, n_found if drops else 0, len(at), examples))

    apply("length", wrong_length(queries))
    apply("repeated", repeated(queries.iloc[at]))
    apply("title", leaks_title(queries.iloc[at], titles))
    apply("ambiguous", ambiguous(queries.iloc[at]), drop_ambiguous)
    if query_vectors is not None and item_vectors is not None:
        apply("round trip", round_trip_ranks(queries["item"].iloc[at], query_vectors[at], item_vectors) > k)
    columns = ["filter", "found", "dropped", "left", "examples"]
    return Filtered(queries.iloc[at], pd.DataFrame(report, columns=columns))


# --- split ---


class QuerySplit(NamedTuple):
    """Two parts of the queries, with their index labels; no wording is in both."""

    train: pd.DataFrame
    test: pd.DataFrame  # with `cell`, one of `CELLS`
    held_out_kinds: tuple[str, ...]
    n_dropped: int  # queries in neither part, because the training part has them in the same words


CELLS = ("seen item, seen kind", "seen item, unseen kind", "unseen item, seen kind", "unseen item, unseen kind")


def split_queries(
    queries: pd.DataFrame, test_share: float = 0.1, seed: int = 0, held_out_kinds: Sequence[str] | None = None
) -> QuerySplit:
    """Hold out items and kinds, so that the test asks something that the training did not.

    The test gets all queries of `test_share` of the items, all queries of the `held_out_kinds` and `test_share` of the
    other queries. Test queries with the `query_key` of a training query are dropped; these are mostly short and common
    ("nail polish"), so the test is slightly more specific than all queries.

    `cell` says whether item and kind of a test query occur in `train`. The cell "seen item, unseen kind" is mostly the
    largest: report by cell. Of the template kinds, "typo" and "drop" alter queries of other kinds, so training has
    seen something of each kind but "need" and "question".

    Parameters
    ----------
    held_out_kinds : sequence of str, optional
        Default: drawn, `test_share` of the kinds and at least one if there are two.

    Raises
    ------
    ValueError
        For a share outside (0, 1), an unknown kind, or an empty part.

    Examples
    --------
    >>> asked = pd.DataFrame({"item": np.repeat(np.arange(20), 2), "kind": ["need", "words"] * 20})
    >>> asked["query"] = [f"query {i}" for i in range(40)]
    >>> split = split_queries(asked, held_out_kinds=["need"])
    >>> split.train["kind"].unique().tolist(), split.test["cell"].value_counts().to_dict()
    (['words'], {'seen item, unseen kind': 17, 'unseen item, unseen kind': 3, 'unseen item, seen kind': 3})
    """
    if not 0 < test_share < 1:
        raise ValueError(f"test_share is {test_share}, expected a number between 0 and 1")
    rng = np.random.default_rng(seed)
    items, kinds = np.unique(queries["item"]), np.unique(queries["kind"].to_numpy(dtype=str))
    if held_out_kinds is None:
        n_kinds = min(max(1, round(test_share * len(kinds))), len(kinds) - 1)
        held_out_kinds = sorted(rng.permutation(kinds)[: max(0, n_kinds)].tolist())
    if unknown := set(held_out_kinds) - set(kinds):
        raise ValueError(f"held_out_kinds has {sorted(unknown)}, expected some of {kinds.tolist()}")
    held_out_items = rng.permutation(items)[: max(1, round(test_share * len(items)))]
    in_test = (queries["item"].isin(held_out_items) | queries["kind"].isin(held_out_kinds)).to_numpy()
    drawn = in_test | (rng.random(len(queries)) < test_share)
    in_test = in_test if drawn.all() else drawn  # with few queries, all may be drawn
    keys = queries["query"].map(query_key)
    known = keys.isin(keys[~in_test]).to_numpy()
    train, test = queries[~in_test], queries[in_test & ~known]
    if train.empty or test.empty:
        raise ValueError(
            f"{len(queries)} queries give {len(train)} for training and {len(test)} for the test, expected some of "
            "both: write more per item, or add items"
        )
    new_item = ~test["item"].isin(train["item"]).to_numpy()
    new_kind = ~test["kind"].isin(train["kind"]).to_numpy()
    test = test.assign(cell=np.array(CELLS, dtype=object)[2 * new_item + new_kind])
    return QuerySplit(train, test, tuple(held_out_kinds), int((in_test & known).sum()))
