"""A recommender and a test split in, a table with intervals out.

One protocol for every method: the held-out item is ranked against the whole catalogue (full ranking, no sampled
negatives), lists hold items and not semantic IDs, and intervals come from resampling users. Methods of search are
measured by `evaluate_queries`, where a query may have several relevant items.
"""

import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from semid_lib.data import dataset
from semid_lib.evaluation import metrics
from semid_lib.evaluation.rows import LATER_DAY, in_brackets, metric_rows, over_seeds, shown

_NEEDED = "Leave-one-out needs 3 interactions of a user, a time-based split one before and one after its moments"
KS = (1, 5, 10, 50, 100, 1000)  # of every published Recall@K
# metrics that are also given for the users whose target lies on a later day than their history: "later_day_recall@10"
OF_LATER_DAY = ("recall@5", "recall@10", "recall@100", "recall@1000", "ndcg@10")


class Evaluation(NamedTuple):
    """What one method did on one set of examples."""

    rank: np.ndarray  # (n,) float64, 1-based rank of each target, inf where it was not in the list
    recommended: np.ndarray  # (n, k) int64 item rows, -1 where fewer exist
    seconds: float  # wall time of the recommendations alone
    exclude_seen: bool = True  # whether the lists left out items of the history
    later_day: np.ndarray | None = None  # (n,) bool, see `dataset.Examples`; None if unknown


class QueryEvaluation(NamedTuple):
    """What one method of search did on one set of queries."""

    per_query: pd.DataFrame  # (n, metrics): recall@k, mrr (its values, reciprocal ranks) and validity_rate
    rank: np.ndarray  # (n,) float64, 1-based rank of the first relevant item, inf where none was found
    recommended: np.ndarray  # (n, max(ks)) int64 item rows, -1 where there was none
    seconds: float  # wall time of all queries in one call
    seconds_alone: np.ndarray  # wall time of each of some queries, asked one by one


def evaluate(rank: Callable, examples, k: int, exclude_seen: bool | None = None, **options) -> Evaluation:
    """Get lists of k items for histories and find the held-out items in them.

    Parameters
    ----------
    rank : callable
        `rank(histories, k, exclude_seen=..., **options)` returns an object with `items`, (n, k) item rows.
    examples : dataset.Examples
    k : int
        Length of the lists.
    exclude_seen : bool, optional
        Leave out items of the history. By default what the split chose on its validation targets
        (`examples.exclude_seen`): True, unless users interact with the same items again.
    **options
        Passed to rank.

    Raises
    ------
    ValueError
        If there are no examples.

    Warns
    -----
    UserWarning
        If seen items are excluded although targets are among them.

    Examples
    --------
    >>> from semid_lib.next_item import baselines
    >>> from semid_lib.data import dataset as data
    >>> split = data.leave_one_out(data.Histories.from_lists([[0, 1, 0, 1], [1, 0, 1, 0]]))
    >>> found = evaluate(baselines.Popularity(split.train, n_items=3).rank, split.test, k=2)
    >>> found.rank.tolist(), found.exclude_seen
    ([2.0, 1.0], False)
    """
    if not len(examples.targets):
        raise ValueError(f"there are no users to evaluate on: expected one at least. {_NEEDED}")
    if exclude_seen is None:
        exclude_seen = getattr(examples, "exclude_seen", True)
    repeated = dataset.repeat_share(examples) if exclude_seen else 0.0
    if repeated >= dataset.REPEATS_MATTER:
        warnings.warn(
            f"{repeated:.0%} of the targets are items of the user's own history, which exclude_seen leaves out: "
            "no method can find them. Pass exclude_seen=False",
            stacklevel=2,
        )
    started = time.perf_counter()
    recommended = np.asarray(rank(examples.histories, k, exclude_seen=exclude_seen, **options).items)
    seconds = time.perf_counter() - started
    found = metrics.ranks(recommended, examples.targets)
    return Evaluation(found, recommended, seconds, exclude_seen, getattr(examples, "later_day", None))


def figures(evaluation: Evaluation | QueryEvaluation, ks: Sequence[int] = KS) -> pd.DataFrame:
    """Every metric of one evaluation with its 95% interval: index metric, columns mean, low, high.

    ks is for users; queries have been counted already. What the lists are too short for is left out rather than
    reported too low: Recall and NDCG at a longer K, and MRR for lists under 100, since it counts an item outside the
    list as 0. If the target lies on a later day than the history for some users but not for all, the metrics of
    `OF_LATER_DAY` follow for these users alone, with `later_day_` before their names: the order within a day may be
    that of the file.

    >>> two = Evaluation(np.array([1.0, np.inf]), np.zeros((2, 10)), 0.0, later_day=np.array([False, True]))
    >>> figures(two, ks=[5])["mean"].to_dict()
    {'recall@5': 0.5, 'ndcg@5': 0.5, 'ndcg@10': 0.5, 'later_day_recall@5': 0.0, 'later_day_ndcg@10': 0.0}
    """
    return _with_later_day(_values(evaluation, ks), _later_day(evaluation))


def differences(
    evaluation: Evaluation | QueryEvaluation, baseline: Evaluation | QueryEvaluation, ks: Sequence[int] = KS
) -> pd.DataFrame:
    """By how much a method is ahead of another on the same users or queries, as `figures`: a paired bootstrap test.

    What makes one user or query hard cancels, so these intervals are narrower than those of the two
    methods suggest: a method is ahead if the interval lies above 0. Of 20 such tests between equal methods, one finds
    a difference. Raises ValueError if the users or the metrics differ.
    """
    ours, theirs = _values(evaluation, ks), _values(baseline, ks)
    if ours.shape != theirs.shape or list(ours) != list(theirs):
        raise ValueError(f"evaluations of {ours.shape} and {theirs.shape}, expected the same users and metrics")
    later, of_theirs = _later_day(evaluation), _later_day(baseline)
    if later is not None and of_theirs is not None and (later != of_theirs).any():
        raise ValueError("the targets of other users lie on a later day, expected the same users")
    return _with_later_day(ours - theirs, later)


def _values(evaluation: Evaluation | QueryEvaluation, ks: Sequence[int]) -> pd.DataFrame:
    """The values whose means are the figures: (n, metrics)."""
    if isinstance(evaluation, QueryEvaluation):
        return evaluation.per_query
    length, rank = evaluation.recommended.shape[1], evaluation.rank
    values = {f"recall@{k}": metrics.recall_at_k(rank, k) for k in ks if k <= length}
    values |= {f"ndcg@{k}": metrics.ndcg_at_k(rank, k) for k in (5, 10) if k <= length}
    if length >= 100:
        values["mrr"] = metrics.reciprocal_rank(rank)
    return pd.DataFrame(values)


def _later_day(evaluation: Evaluation | QueryEvaluation) -> np.ndarray | None:
    later = getattr(evaluation, "later_day", None)
    return later if later is not None and later.any() and not later.all() else None


def _with_later_day(values: pd.DataFrame, later: np.ndarray | None) -> pd.DataFrame:
    """Intervals of all users, then of those on a later day alone, who are resampled among themselves."""
    found = _intervals(values)
    if later is None:
        return found
    chosen = [name for name in OF_LATER_DAY if name in values]
    return pd.concat([found, _intervals(values.loc[later, chosen].add_prefix(LATER_DAY))])


def rows(key: str, of_seeds: list[Evaluation], seeds: Sequence[int]) -> list[dict[str, Any]]:
    """Result rows of one method: every metric with its interval, and over several seeds as `rows.over_seeds`."""
    pairs = [(each, figures(each)) for each in of_seeds]
    return _rows(key, pairs, seeds)


def difference_rows(
    key: str, of_seeds: list[Evaluation], baselines: list[Evaluation], seeds: Sequence[int]
) -> list[dict[str, Any]]:
    """Result rows of `differences`, seed by seed, merged as those of `rows`.

    baselines: of each seed one, or a single one that all are compared with.

    >>> ours, theirs = (Evaluation(np.array([rank, 2.0]), np.zeros((2, 1)), 0.0) for rank in (1.0, 2.0))
    >>> difference_rows("ahead", [ours, ours], [theirs], seeds=[0, 1])[0]["value"]
    0.5
    """
    baselines = baselines * len(of_seeds) if len(baselines) == 1 else baselines
    pairs = [(each, differences(each, other)) for each, other in zip(of_seeds, baselines, strict=True)]
    return _rows(key, pairs, seeds)


def _rows(key: str, pairs: list[tuple[Evaluation, pd.DataFrame]], seeds: Sequence[int]) -> list[dict[str, Any]]:
    found = []
    for seed, (each, measured) in zip(seeds, pairs, strict=True):
        facts = {"seed": seed, "seconds": round(each.seconds, 1)}
        is_later = measured.index.str.startswith(LATER_DAY)
        found += metric_rows(key, measured[~is_later], n=len(each.rank), **facts)
        if each.later_day is not None and is_later.any():
            found += metric_rows(key, measured[is_later], n=int(each.later_day.sum()), **facts)
    return over_seeds(found) if len(pairs) > 1 else found


def table(evaluations: dict[str, Evaluation | list[Evaluation]], ks: Sequence[int] = KS) -> pd.DataFrame:
    """One column per method, one row per metric, "mean ± half the interval's width" in each cell.

    Of a list of evaluations, one a seed, the means over seeds, and in brackets the standard deviation over them. If
    lists of any method could hold items of the history, a last row "seen items" has "allowed" or "excluded" for each.
    """
    by_name = {name: each if isinstance(each, list) else [each] for name, each in evaluations.items()}
    columns = {}
    for name, of_seeds in by_name.items():
        measured = [figures(each, ks) for each in of_seeds]
        mean = sum(measured[1:], measured[0]) / len(measured)
        cells = {metric: shown(*line) for metric, line in zip(mean.index, mean.to_numpy(), strict=True)}
        if len(measured) > 1:
            spread = pd.concat([each["mean"] for each in measured], axis=1).std(axis=1)
            cells = {metric: cell + in_brackets(spread[metric]) for metric, cell in cells.items()}
        columns[name] = cells
    found = pd.DataFrame(columns)
    excluded = {name: all(each.exclude_seen for each in of_seeds) for name, of_seeds in by_name.items()}
    if not all(excluded.values()):
        found.loc["seen items"] = {name: "excluded" if out else "allowed" for name, out in excluded.items()}
    return found


# --- queries, which may have several relevant items ---


def evaluate_queries(
    search: Callable,
    queries: Sequence[str],
    relevant: Sequence,
    ks: Sequence[int] = (1, 10, 100),
    *,
    n_items: int,
    allowed: np.ndarray | None = None,
    query_vectors: np.ndarray | None = None,
    n_alone: int = 20,
    seed: int = 0,
) -> QueryEvaluation:
    """Ask `search(queries, max(ks), ...).items` and count: the same protocol for every method.

    relevant: of each query an array of item rows, or one row. `recall@k` is `metrics.recall_of_relevant`; `mrr` takes
    the first relevant item and is left out for lists under 100. `validity_rate` is the share of a list's places that
    hold an item, and one that is allowed, of as many places as could: below 1 if a method answers with less than it
    might, or with what is no item. allowed and query_vectors are handed to `search` if they are given; with vectors
    the time does not count embedding the queries.

    The clock starts after one query that warms the method up. Then all are asked in one call, and `n_alone` of them,
    drawn by the seed, one by one.

    Raises ValueError if there is no query or their numbers differ, for a relevant row outside the catalogue, and for
    lists of another shape; other errors are those of `metrics.recall_of_relevant`.

    >>> class Lists(NamedTuple):
    ...     items: np.ndarray
    >>> found = evaluate_queries(lambda queries, k: Lists(np.array([[2, 0]] * len(queries))), ["a", "b"], [0, [1, 2]],
    ...     ks=(1, 2), n_items=3)
    >>> found.per_query.values.tolist(), found.rank.tolist()
    ([[0.0, 1.0, 1.0], [0.5, 0.5, 1.0]], [2.0, 1.0])
    """
    queries, relevant, k = list(queries), [np.atleast_1d(rows) for rows in relevant], max(ks)
    if not queries or len(relevant) != len(queries):
        raise ValueError(f"{len(queries)} queries and {len(relevant)} sets of relevant items, expected as many and one")
    for position, rows in enumerate(relevant):
        if rows.size and rows.max() >= n_items:
            raise ValueError(f"item {rows.max()} is relevant to query {position}, expected rows below {n_items}")

    query_vectors = None if query_vectors is None else np.asarray(query_vectors)

    def timed(at: Sequence[int] | np.ndarray) -> tuple[np.ndarray, float]:
        options = {} if query_vectors is None else {"query_vectors": query_vectors[at]}
        if allowed is not None:
            options["allowed"] = allowed[at] if np.ndim(allowed) == 2 and len(allowed) > 1 else allowed
        asked = [queries[i] for i in at]
        started = time.perf_counter()
        items = np.asarray(search(asked, k, **options).items)
        return items, time.perf_counter() - started

    timed([0])
    everything = np.arange(len(queries))
    recommended, seconds = timed(everything)
    if recommended.shape != (len(queries), k):
        raise ValueError(f"the lists are {recommended.shape}, expected ({len(queries)}, {k})")
    some = np.random.default_rng(seed).permutation(everything)[:n_alone]
    alone = np.array([timed([i])[1] for i in some])

    per_query = {f"recall@{k}": metrics.recall_of_relevant(recommended, relevant, k) for k in ks}
    rank = metrics.first_ranks(recommended, relevant)
    if k >= 100:
        per_query["mrr"] = metrics.reciprocal_rank(rank)
    per_query["validity_rate"] = _share_filled(recommended, n_items, allowed)
    return QueryEvaluation(pd.DataFrame(per_query), rank, recommended, seconds, alone)


def _share_filled(recommended: np.ndarray, n_items: int, allowed: np.ndarray | None) -> np.ndarray:
    """The share of places that hold an allowed item, of those that could: (n,) float64; 1 where none could."""
    n, k = recommended.shape
    mask = np.ones((1, n_items), dtype=bool) if allowed is None else np.atleast_2d(allowed)
    places = np.minimum(mask.sum(axis=1), k)
    real = (recommended >= 0) & (recommended < n_items)
    mask = np.broadcast_to(mask, (n, n_items))
    real &= np.take_along_axis(mask, np.where(real, recommended, 0), axis=1)
    return np.where(places > 0, real.sum(axis=1) / np.maximum(places, 1), 1.0)


def query_table(evaluations: dict[str, QueryEvaluation]) -> pd.DataFrame:
    """One column per method; a row per metric, "mean ± half the interval's width", and two for the time of a query.

    The times are in ms: the median of queries asked one by one, and the mean of all in one call.
    """
    columns = {}
    for name, evaluation in evaluations.items():
        measured = figures(evaluation)
        column = {metric: shown(*line) for metric, line in zip(measured.index, measured.to_numpy(), strict=True)}
        if len(evaluation.seconds_alone):
            column["ms, one by one"] = f"{1000 * np.median(evaluation.seconds_alone):.1f}"
        columns[name] = column | {"ms, in one call": f"{1000 * evaluation.seconds / len(evaluation.rank):.1f}"}
    return pd.DataFrame(columns)


# --- parts of the users or queries ---


def by_group(evaluation: Evaluation | QueryEvaluation, groups: Sequence, ks: Sequence[int] = KS) -> pd.DataFrame:
    """The figures of each group of users or queries: index (group, metric), columns mean, low, high, n.

    groups: (n,) a label each, such as the length of the history by `pandas.cut` or the popularity of the target by
    `popularity_groups`. Categories come out in their order, other labels in the order in which they first
    appear. Small groups have wide intervals, and one user none to speak of: read n. ks is for users; queries have been
    counted already. Raises ValueError for another number of labels or a missing one.

    >>> figures = pd.DataFrame({"recall@1": [1.0, 0.0, 0.0]})
    >>> found = by_group(QueryEvaluation(figures, np.array([1.0, 2.0, 2.0]), None, 0.0, None), ["typo", "need", "need"])
    >>> found["mean"].to_dict(), found["n"].tolist()
    ({('typo', 'recall@1'): 1.0, ('need', 'recall@1'): 0.0}, [1, 2])
    """
    values = _values(evaluation, ks)
    labels = pd.Series(groups if isinstance(groups, pd.Categorical) else list(groups))
    if len(labels) != len(values) or labels.isna().any():
        n, missing = len(values), int(labels.isna().sum())
        raise ValueError(f"{len(labels)} labels, {missing} of them missing, expected {n}, one each")
    parts = {}
    for label, chosen in values.groupby(labels, sort=isinstance(groups, pd.Categorical), observed=True):
        parts[label] = _intervals(chosen).assign(n=len(chosen))
    return pd.concat(parts, names=["group"])


def group_table(
    evaluations: dict[str, Evaluation | QueryEvaluation], groups: Sequence, metric: str = "recall@10"
) -> pd.DataFrame:
    """One metric of every method in every group of users or queries, a row per group.

    Columns: their number, the mean of each method, and half of the widest interval in the row as "±", since
    some groups are small. groups: as of `by_group`, with its errors.
    """
    parts = {name: by_group(each, groups).xs(metric, level="metric") for name, each in evaluations.items()}
    table = pd.DataFrame({name: part["mean"] for name, part in parts.items()})
    table.insert(0, "n", next(iter(parts.values()))["n"])
    widest = np.max([(part["high"] - part["low"]) / 2 for part in parts.values()], axis=0)
    return table.assign(**{"±": widest}).rename_axis(None)


def popularity_groups(counts: np.ndarray) -> pd.Categorical:
    """Of each item whether it is of the head, the middle or the tail of the catalogue, or cold: (n_items,) labels.

    The most popular items that together have the first fifth of all interactions are the head, the least popular
    ones with the last fifth the tail, and items without any are cold. Ties are cut by item row.
    `popularity_groups(counts)[targets]` are labels for `by_group`.

    counts: (n_items,) integers >= 0, interactions in training: `np.bincount(train.items, minlength=n_items)`.

    >>> list(popularity_groups(np.array([2, 0, 5, 1, 2])))
    ['mid', 'cold', 'head', 'tail', 'mid']
    """
    counts = np.asarray(counts)
    order = np.argsort(-counts, kind="stable")
    before = np.empty(len(counts))  # the share of interactions that more popular items have
    before[order] = (np.cumsum(counts[order]) - counts[order]) / max(counts.sum(), 1)
    names = np.select([counts == 0, before < 0.2, before < 0.8], ["cold", "head", "mid"], "tail")
    return pd.Categorical(names, categories=["head", "mid", "tail", "cold"], ordered=True)


def exposure(lists: dict[str, np.ndarray], counts: np.ndarray) -> pd.DataFrame:
    """Which items lists show: index the names of the lists, columns coverage, popularity, head, mid, tail, cold.

    `popularity` is the mean number of training interactions of an item in a list, `head` ... `cold` are the shares
    of a list's places that items of `popularity_groups` hold; all are means over lists (ARP and, as `tail`, APLT of
    Abdollahpouri et al. 2019). They mean little alone: put in the users' histories (padded with -1) and their targets
    (`targets[:, None]`) to see what users choose by themselves.

    lists: of each method (n, k) item rows, -1 where a list is shorter: cut them to the K that is asked about.
    counts: as for `popularity_groups`. Lists without an item are left out of the means.

    >>> exposure({"mine": np.array([[2, 0], [2, -1]])}, counts=np.array([2, 0, 5, 1, 2])).round(2).loc["mine"].to_dict()
    {'coverage': 0.4, 'popularity': 4.25, 'head': 0.75, 'mid': 0.25, 'tail': 0.0, 'cold': 0.0}
    """
    groups = popularity_groups(counts)
    worth = {"popularity": counts} | {name: groups == name for name in groups.categories}
    rows = {}
    for name, items in lists.items():
        means = pd.DataFrame({column: metrics.list_means(items, values) for column, values in worth.items()}).mean()
        rows[name] = {"coverage": metrics.coverage(items, len(counts)), **means}
    return pd.DataFrame(rows).T


def _intervals(values: pd.DataFrame) -> pd.DataFrame:
    intervals = metrics.bootstrap_intervals(values.to_numpy())
    return pd.DataFrame(intervals, index=pd.Index(values.columns, name="metric"))
