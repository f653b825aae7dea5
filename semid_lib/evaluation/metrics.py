"""Recall@K, NDCG@K, MRR, what lists expose of a catalogue, and intervals; pure NumPy, usable on its own.

Everything starts from one array: the rank at which each user's held-out item was recommended. With a single
relevant item per user the metrics are short functions of that rank (Järvelin & Kekäläinen 2002 for NDCG). A query may
have several relevant items: `recall_of_relevant` counts them all, `first_ranks` finds the best placed one.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Interval(NamedTuple):
    """A mean with its confidence interval; all three in the unit of the values."""

    mean: float
    low: float
    high: float


def ranks(recommended: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """The 1-based position of each target in its list, `inf` where it was not recommended.

    recommended: (n, k) integers, best first, -1 where a list is shorter than k. targets: (n,) integers >= 0.
    Returns (n,) float64: `inf` makes every metric below zero without a special case.
    Raises ValueError if the shapes do not match, a target is negative or a list names an item twice (which
    would count as two chances).

    >>> ranks(np.array([[7, 3, 5], [1, 2, -1]]), np.array([3, 9]))
    array([ 2., inf])
    """
    recommended, targets = np.asarray(recommended), np.asarray(targets)
    if recommended.ndim != 2 or targets.shape != recommended.shape[:1]:
        raise ValueError(f"expected recommended (n, k) and targets (n,), got {recommended.shape} and {targets.shape}")
    if targets.size and targets.min() < 0:
        raise ValueError(f"target {targets.min()} is negative: a target is an item row, and -1 means 'no item'")
    _refuse_repeated(recommended)
    hits = recommended == targets[:, None]
    return np.where(hits.any(axis=1), hits.argmax(axis=1) + 1.0, np.inf)


def _refuse_repeated(recommended: np.ndarray) -> None:
    ordered = np.sort(recommended, axis=1)
    repeated = (ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0)
    if repeated.any():
        row, column = np.argwhere(repeated)[0]
        raise ValueError(f"list {row} recommends item {ordered[row, column]} more than once")


def recall_at_k(rank: np.ndarray, k: int) -> np.ndarray:
    """1 where the held-out item is among the first k, else 0: (n,) float64.

    With one relevant item per user this is also the hit rate.

    >>> recall_at_k(np.array([1, 4, np.inf]), k=3)
    array([1., 0., 0.])
    """
    return (rank <= _checked(k)).astype(np.float64)


def ndcg_at_k(rank: np.ndarray, k: int) -> np.ndarray:
    """1 / log2(1 + rank) within the first k, else 0: (n,) float64 in [0, 1].

    The ideal list has the one relevant item first, so the normalizer is 1.

    >>> ndcg_at_k(np.array([1, 3, 11]), k=10)
    array([1. , 0.5, 0. ])
    """
    return np.where(rank <= _checked(k), 1.0 / np.log2(1.0 + rank), 0.0)


def reciprocal_rank(rank: np.ndarray) -> np.ndarray:
    """1 / rank, and 0 for an item that was not recommended: (n,) float64. Its mean is the MRR.

    >>> reciprocal_rank(np.array([1, 4, np.inf]))
    array([1.  , 0.25, 0.  ])
    """
    return 1.0 / rank


def recall_of_relevant(recommended: np.ndarray, relevant: Sequence[np.ndarray], k: int) -> np.ndarray:
    """The share of each query's relevant items that is among the first k: (n,) float64 in [0, 1].

    The textbook's recall (Manning, Raghavan & Schütze 2008, section 8.3): the divisor is the number of relevant items,
    so with more of them than k it cannot reach 1, and with one it is `recall_at_k` of its rank.

    recommended: (n, at least k) integers, best first, -1 where a list is shorter. relevant: n arrays of item rows, one
    row at least in each; repeated ones count once.

    Raises ValueError for k below 1 or above the length of the lists, for a query without relevant items or with a
    negative one, a list that names an item twice, and if there are not as many queries as lists.

    >>> recall_of_relevant(np.array([[7, 3, 5], [1, 2, -1]]), [np.array([5, 7, 8, 9]), np.array([2])], k=2)
    array([0.25, 1.  ])
    """
    recommended, relevant = _checked_relevant(recommended, relevant)
    if recommended.shape[1] < _checked(k):
        raise ValueError(f"lists have {recommended.shape[1]} places, expected at least k = {k}")
    found = [np.isin(rows, items[:k]).mean() for rows, items in zip(relevant, recommended, strict=True)]
    return np.array(found, dtype=np.float64)


def first_ranks(recommended: np.ndarray, relevant: Sequence[np.ndarray]) -> np.ndarray:
    """The 1-based position of the first relevant item in each list, `inf` where there is none: (n,) float64.

    Arguments and errors as in `recall_of_relevant`. `reciprocal_rank` of it is the usual one for several relevant
    items, and `recall_at_k` of it the hit rate: 1 if any of them is among the first k.

    >>> first_ranks(np.array([[7, 3, 5], [1, 2, -1]]), [np.array([5, 3]), np.array([9])])
    array([ 2., inf])
    """
    recommended, relevant = _checked_relevant(recommended, relevant)
    first = np.full(len(recommended), np.inf)
    for query, (rows, items) in enumerate(zip(relevant, recommended, strict=True)):
        places = np.flatnonzero(np.isin(items, rows))
        if len(places):
            first[query] = places[0] + 1.0
    return first


def _checked_relevant(recommended: np.ndarray, relevant: Sequence) -> tuple[np.ndarray, list[np.ndarray]]:
    recommended = np.asarray(recommended)
    if recommended.ndim != 2 or len(relevant) != len(recommended):
        raise ValueError(f"expected recommended (n, k) and n relevant, got {recommended.shape} and {len(relevant)}")
    relevant = [np.unique(rows) for rows in relevant]
    for query, rows in enumerate(relevant):
        if not rows.size or rows.dtype.kind not in "iu" or rows[0] < 0:
            raise ValueError(f"relevant items of query {query} are {rows.tolist()}, expected item rows, one at least")
    _refuse_repeated(recommended)
    return recommended, relevant


def validity_rate(recommended: np.ndarray, n_items: int) -> float:
    """Share of the filled places that name an item of the catalogue; `nan` if no place is filled.

    recommended: (n, k) integers, -1 where nothing was generated.

    >>> validity_rate(np.array([[0, 5], [2, -1]]), n_items=3)
    0.6666666666666666
    """
    filled = recommended[recommended != -1]
    return float(((filled >= 0) & (filled < n_items)).mean()) if filled.size else float("nan")


# --- what lists expose, whoever asked ---


def coverage(recommended: np.ndarray, n_items: int) -> float:
    """Share of the catalogue that stands in at least one list, in [0, 1] (Herlocker et al. 2004, section 4.1).

    recommended: (n, k) integers, -1 where a list is shorter; what is no item of the catalogue covers nothing. More
    users can only cover more, so compare methods on the same ones. Raises ValueError for an empty catalogue.

    >>> coverage(np.array([[0, 2], [2, -1]]), n_items=4)
    0.5
    """
    if n_items < 1:
        raise ValueError(f"n_items must be at least 1, got {n_items}")
    items = np.unique(recommended)
    return float(((items >= 0) & (items < n_items)).sum() / n_items)


def list_means(recommended: np.ndarray, values: np.ndarray) -> np.ndarray:
    """The mean over each list of what its items are worth: (n,) float64, nan for a list without an item.

    With the items' interactions in training as values, the mean of this over users is the average recommendation
    popularity (ARP); with 1 for an item of the long tail and 0 for others, the average percentage of the long tail
    (APLT) (Abdollahpouri, Burke & Mobasher 2019).

    recommended: (n, k) integers, -1 where a list is shorter. values: (n_items,) numbers or Booleans.
    Raises ValueError for an item that has no value.

    >>> list_means(np.array([[0, 2], [1, -1]]), values=np.array([5, 3, 1]))
    array([3., 3.])
    """
    recommended, values = np.asarray(recommended), np.asarray(values, dtype=np.float64)
    if recommended.size and not -1 <= recommended.min() <= recommended.max() < len(values):
        beyond = f"{recommended.min()} to {recommended.max()}"
        raise ValueError(f"lists hold items {beyond}, expected -1 for none and rows below {len(values)}")
    filled = recommended >= 0
    total = np.where(filled, np.append(values, 0.0)[recommended], 0.0).sum(axis=1)
    n_filled = filled.sum(axis=1)
    return np.divide(total, n_filled, out=np.full(len(total), np.nan), where=n_filled > 0)


# --- intervals ---


def bootstrap_intervals(
    values: np.ndarray, n_resamples: int = 1000, confidence: float = 0.95, seed: int = 0
) -> list[Interval]:
    """Mean and percentile bootstrap interval of every column, resampling users (Efron & Tibshirani 1993, ch. 13).

    values: (n_users, n_columns) float. All columns share the resamples, so differences between columns may be
    compared. Raises ValueError when there is no user.

    >>> [interval] = bootstrap_intervals(np.repeat([0.0, 1.0], 50)[:, None])
    >>> interval.mean, interval.low < 0.45, interval.high > 0.55
    (0.5, True, True)
    """
    values = np.asarray(values, dtype=np.float64)
    n_users = len(values)
    if values.ndim != 2 or n_users == 0:
        raise ValueError(f"no users to average over: values are {values.shape}, expected (n_users, n_columns)")
    rng = np.random.default_rng(seed)
    means = np.empty((n_resamples, values.shape[1]))
    for resample in range(n_resamples):
        counts = np.bincount(rng.integers(n_users, size=n_users), minlength=n_users)
        means[resample] = counts @ values / n_users
    tail = (1.0 - confidence) / 2.0
    low, high = np.quantile(means, [tail, 1.0 - tail], axis=0)
    return [Interval(*map(float, column)) for column in zip(values.mean(axis=0), low, high, strict=True)]


def _checked(k: int) -> int:
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    return k
