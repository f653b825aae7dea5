"""Chapter 12: how much of a next-item score comes from the order of the file and from the protocol."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd

from semid_lib.data import dataset
from semid_lib.decoding.ranking import Ranked, ranker
from semid_lib.evaluation import evaluate
from semid_lib.evaluation.rows import LABELS, metric_name
from semid_lib.ids.semantic_ids import SemanticIDs
from semid_lib.next_item import recipes
from semid_lib.next_item.baselines import Votes
from semid_lib.next_item.timeline import Timeline
from semid_lib.studies import next_item_study
from semid_lib.workbench import scale

_DAY = 86_400  # seconds
METRICS = ("recall@5", "recall@10", "ndcg@10", "later_day_recall@10", "later_day_ndcg@10")  # that pages show


def by_day(histories: dataset.Histories) -> dataset.Histories:
    """The same histories with times cut to the UTC day, as on the Amazon 2014 data.

    Raises
    ------
    ValueError
        Without times.

    Examples
    --------
    >>> by_day(dataset.Histories.from_lists([[0, 1]], times=[[5, 86_405]])).times
    array([    0, 86400])
    """
    return replace(histories, times=dataset.times_of(histories) // _DAY * _DAY)


def with_file_order(baseline: Votes, item_key: Sequence, factor: float = 2.0) -> Callable[..., Ranked]:
    """A baseline that reads the order of the file, as a function for `evaluate.evaluate`: a forbidden method.

    If the file lists the items of a day by a key, the next item of the day has a higher key than the last one. So
    positive scores of items with a higher key than the last item of the history are multiplied by a factor. What
    this gains comes from the order of the file, not from what users do.

    Parameters
    ----------
    baseline : Votes
        Such as `ItemKNN`.
    item_key : (n_items,) sequence of int or str
        As for `dataset.same_time_order`.
    factor : float

    Examples
    --------
    >>> from semid_lib.next_item.baselines import ItemKNN
    >>> knn = ItemKNN([[0, 1, 2], [1, 0], [1, 0]], n_items=3)
    >>> knn.rank([[1]], k=2).items, with_file_order(knn, [1, 2, 3], factor=9.0)([[1]], k=2).items
    (array([[0, 2]]), array([[2, 0]]))
    """
    order = np.unique(np.asarray(item_key), return_inverse=True)[1]

    def score(block: list[np.ndarray]) -> np.ndarray:
        scores = baseline.scores(block)
        last = np.array([order[history[-1]] if len(history) else len(order) for history in block])
        return np.where((scores > 0) & (order > last[:, None]), factor * scores, scores)

    return ranker(len(order), score)


def lists_of_ten(
    histories: dataset.Histories,
    ids: SemanticIDs,
    vectors: np.ndarray,
    sizes: scale.Scale,
    runs: Path | None,
    seed: int = 0,
    progress: bool = False,
) -> dict[str, evaluate.Evaluation]:
    """Train all methods but TIGER on histories in some order, and evaluate lists of ten of their test users.

    Parameters
    ----------
    histories : dataset.Histories
        Before the split.
    ids : SemanticIDs
    vectors : (n_items, dim) float32 array
        Text embeddings of unit length.
    sizes : Scale
    runs : Path or None
        Where trained models are kept and found again.
    seed : int
        Of the training.
    progress : bool
        Show that of training.

    Returns
    -------
    dict
        An evaluation for each of `next_item_study.untrained`, SASRec, the timeline model, and this with each prior.
    """
    split = dataset.leave_one_out(histories)
    validation = recipes.sample(split.validation, sizes.validation_users)
    test = recipes.sample(split.test, sizes.test_users)
    task = recipes.Task(split.train, validation, sizes, runs)
    untrained = next_item_study.untrained(list(split.train), vectors)
    sasrec = recipes.train_sasrec(task, len(ids), seed, progress=progress).model
    timeline = cast("Timeline", recipes.train_timeline(task, ids, vectors, seed, progress=progress).model)
    priors = {name: untrained[name].prior for name in ("item_knn", "slist")}
    weights = next_item_study.prior_weights(timeline, validation, priors)
    components = next_item_study.component_ranks(timeline, priors, weights)
    ranks = {name: each.rank for name, each in untrained.items()} | {"sasrec": sasrec.rank}
    ranks |= {name: components[name] for name in ("timeline", "timeline_item_knn", "timeline_slist")}
    return {name: evaluate.evaluate(rank, test, 10) for name, rank in ranks.items()}


def of_users(
    evaluations: Mapping[str, evaluate.Evaluation], chosen: np.ndarray, k: int = 10
) -> dict[str, evaluate.Evaluation]:
    """The evaluations of some users, with the first k items of each list. chosen: (n,) bool."""
    return {
        name: evaluate.Evaluation(each.rank[chosen], each.recommended[chosen, :k], each.seconds, each.exclude_seen)
        for name, each in evaluations.items()
    }


def change_rows(
    topic: str,
    changed: Mapping[str, Sequence[evaluate.Evaluation]],
    usual: Mapping[str, evaluate.Evaluation],
    seeds: Sequence[int],
) -> list[dict[str, Any]]:
    """Result rows `topic/method/metric`: a method's score under another protocol minus the usual, on the same users.

    Parameters
    ----------
    topic : str
    changed : mapping of str to sequence of Evaluation
        Of each method one evaluation a seed or draw, with lists of ten at least.
    usual : mapping of str to Evaluation
        Of each method in `changed`.
    seeds : sequence of int
        Of the seeds or draws.

    Examples
    --------
    >>> usual, other = (evaluate.Evaluation(np.array([rank]), np.zeros((1, 10)), 0.0) for rank in (2.0, 1.0))
    >>> [row["key"] for row in change_rows("a_minus_b", {"ease": [other]}, {"ease": usual}, [0]) if row["value"] == 1]
    ['a_minus_b/ease/recall@1']
    """

    def cut(each: evaluate.Evaluation) -> evaluate.Evaluation:
        return each._replace(recommended=each.recommended[:, :10])

    rows = []
    for name, each in changed.items():
        rows += evaluate.difference_rows(f"{topic}/{name}", [cut(one) for one in each], [cut(usual[name])], seeds)
    return rows


def of_draws(rows: Iterable[Mapping[str, Any]], seed: int) -> list[dict[str, Any]]:
    """Rows whose seeds are those of the shuffling: these as `draws`, and the seed of the training.

    >>> of_draws([{"key": "shuffled/ease/mrr", "value": 0.5, "seeds": [0, 1]}], seed=7)
    [{'key': 'shuffled/ease/mrr', 'value': 0.5, 'draws': [0, 1], 'seed': 7}]
    """
    found = []
    for row in rows:
        draws = row.get("seeds", [row.get("seed")])
        kept = {name: fact for name, fact in row.items() if name != "seeds"}
        found.append(kept | {"draws": draws, "seed": seed})
    return found


def ahead_by_day(
    evaluations: Mapping[str, evaluate.Evaluation], over: str, seed: int
) -> tuple[list[dict[str, Any]], dict[str, dict[str, evaluate.Evaluation]]]:
    """By how much each method is ahead of one, on users with a same-day target and on the others.

    Parameters
    ----------
    evaluations : mapping of str to Evaluation
        With `later_day`.
    over : str
        The method that all others are compared with.
    seed : int

    Returns
    -------
    rows : list of dict
        With keys `same_day_ahead_of_<over>/method/metric`, and `later_day_...`.
    parts : dict
        The evaluations of both groups of users, "same_day" and "later_day"; a group without users is left out.
    """
    later = next(iter(evaluations.values())).later_day
    rows, parts = [], {}
    for group, users in (("same_day", ~later), ("later_day", later)) if later is not None else ():
        if users.any():
            parts[group] = of_users(evaluations, users)
            others = {name: [each] for name, each in parts[group].items() if name != over}
            same = dict.fromkeys(others, parts[group][over])
            rows += change_rows(f"{group}_ahead_of_{over}", others, same, [seed])
    return rows, parts


def headings(topic: str, metrics: Iterable[str] = METRICS) -> dict[tuple[str, str], str]:
    """The columns of a `change_table` of one topic.

    >>> headings("refit_gain", ["recall@10"])
    {('refit_gain', 'recall@10'): 'Recall@10'}
    """
    return {(topic, metric): metric_name(metric) for metric in metrics}


def change_table(rows: Iterable[Mapping[str, Any]], columns: Mapping[tuple[str, str], str]) -> pd.DataFrame:
    """Rows of `change_rows` as a page shows them, a line per method. columns: heading of each (topic, metric)."""
    found: dict[str, dict[str, str]] = {}
    for row in rows:
        topic, method, metric = row["key"].split("/")
        if heading := columns.get((topic, metric)):
            low, high = row["ci95"]
            cell = f"{row['value']:+.4f} ({low:+.4f} to {high:+.4f})"
            found.setdefault(heading, {})[LABELS[method]] = cell
    return pd.DataFrame(found)


def means(of_seeds: Mapping[str, Sequence[evaluate.Evaluation]], metric: str = "recall@10") -> pd.Series:
    """A metric of each method, as a mean over its seeds or draws, by the name of the method on a page."""

    def name_of(key: str) -> str:
        return LABELS[key.removesuffix("_seen_allowed").removesuffix("_refit")]

    return pd.Series(
        {
            name_of(key): np.mean([evaluate.figures(each)["mean"][metric] for each in some])
            for key, some in of_seeds.items()
        }
    )


def order_table(
    usual: Mapping[str, evaluate.Evaluation],
    shuffled: Mapping[str, Sequence[evaluate.Evaluation]],
    metric: str = "recall@10",
) -> pd.DataFrame:
    """A line per method: a metric in the usual order and as a mean over draws, and the method's place in each."""

    before = means({name: [usual[name]] for name in shuffled}, metric)
    after = means(shuffled, metric)
    columns = {"usual": before, "shuffled": after}
    places = {"place": before, "place, shuffled": after}
    columns |= {name: each.rank(ascending=False, method="min").astype(int) for name, each in places.items()}
    return pd.DataFrame(columns)
