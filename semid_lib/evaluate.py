"""A recommender and a test split in, a table with intervals out.

One protocol for every method: the held-out item is ranked against the whole catalogue (full ranking, no sampled
negatives), lists hold items and not semantic IDs, and intervals come from resampling users.
"""

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from semid_lib import metrics


class Evaluation(NamedTuple):
    """What one method did on one set of examples."""

    rank: np.ndarray  # (n,) float64, 1-based rank of each target, inf where it was not in the list
    recommended: np.ndarray  # (n, k) int64 item rows, -1 where fewer exist
    seconds: float  # wall time of the recommendations alone


def evaluate(rank: Callable, examples, k: int, **options) -> Evaluation:
    """Ask `rank(histories, k, **options).items` for lists and find the held-out items in them.

    examples: a `data.Examples` (histories, targets). options: passed on, such as exclude_seen=False.
    """
    started = time.perf_counter()
    recommended = np.asarray(rank(examples.histories, k, **options).items)
    return Evaluation(metrics.ranks(recommended, examples.targets), recommended, time.perf_counter() - started)


def figures(evaluation: Evaluation, ks: Sequence[int] = (5, 10, 100, 1000)) -> pd.DataFrame:
    """Every metric of one evaluation with its 95% interval: index metric, columns mean, low, high.

    What the lists are too short for is left out rather than reported too low: Recall at a longer K, and MRR for lists
    under 100, since it counts an item outside the list as 0.

    >>> measured = figures(Evaluation(np.array([1.0, np.inf]), np.zeros((2, 10)), 0.0), ks=[5])
    >>> measured["mean"].to_dict()
    {'recall@5': 0.5, 'ndcg@10': 0.5}
    """
    length = evaluation.recommended.shape[1]
    per_user = {f"recall@{k}": metrics.recall_at_k(evaluation.rank, k) for k in ks if k <= length}
    if length >= 10:
        per_user["ndcg@10"] = metrics.ndcg_at_k(evaluation.rank, 10)
    if length >= 100:
        per_user["mrr"] = metrics.reciprocal_rank(evaluation.rank)
    intervals = metrics.bootstrap_intervals(np.column_stack(list(per_user.values())))
    return pd.DataFrame(intervals, index=pd.Index(per_user, name="metric"))


def table(evaluations: dict[str, Evaluation], ks: Sequence[int] = (5, 10, 100, 1000)) -> pd.DataFrame:
    """One column per method, one row per metric, "mean ± half the interval's width" in each cell."""
    columns = {}
    for name, evaluation in evaluations.items():
        measured = figures(evaluation, ks)
        columns[name] = {metric: shown(*line) for metric, line in zip(measured.index, measured.to_numpy(), strict=True)}
    return pd.DataFrame(columns)


def shown(mean: float, low: float, high: float) -> str:
    """A mean with the half-width of its interval, joined by spaces at which no line breaks.

    >>> shown(0.0714, 0.0680, 0.0748) == ".0714\\xa0±\\xa0.0034"
    True
    """
    return "\N{NO-BREAK SPACE}±\N{NO-BREAK SPACE}".join(
        f"{value:.4f}".removeprefix("0") for value in (mean, (high - low) / 2)
    )
