"""Chapter 13: models that were trained before some items came."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, cast

import numpy as np
import pandas as pd

from semid_lib.data import dataset
from semid_lib.data.sequences import offsets_of
from semid_lib.decoding.ranking import Ranked, ranker
from semid_lib.evaluation import evaluate, metrics
from semid_lib.evaluation.rows import NAMES, cell, metric_name
from semid_lib.ids import assignment, quantize
from semid_lib.ids.tokenizer import ItemTokenizer
from semid_lib.next_item import recipes
from semid_lib.next_item.baselines import Votes
from semid_lib.next_item.timeline import Timeline
from semid_lib.serving.catalogue.changes import Report
from semid_lib.serving.recommender import Recommender

_DAY = 86_400  # seconds
KINDS = ("all", "known", "new")  # of test targets
METRICS = ("recall@10", "recall@100", "recall@1000")  # that pages show


class Launch(NamedTuple):
    """Histories and examples over a catalogue in the order in which its items came: those of the training data first.

    An item comes when it is first sold. At any time the catalogue is a beginning of this order.
    """

    order: np.ndarray  # (n_items,) rows of the data
    n_known: int  # items of the training data
    histories: dataset.Histories  # all, in the new rows
    train: dataset.Histories
    validation: dataset.Examples
    test: dataset.Examples
    n_validation: int  # items that came before the test examples begin

    def is_new(self, examples: dataset.Examples) -> np.ndarray:
        """Whether the target of each example is an item that training did not show, (n,) bool."""
        return examples.targets >= self.n_known

    def learnable(self) -> dataset.Examples:
        """The validation examples whose target is known, with the known items of their histories alone."""
        kept = np.flatnonzero(~self.is_new(self.validation))
        histories = [history[history < self.n_known] for history in self.validation.histories.select(kept)]
        return self.validation._replace(
            histories=dataset.Histories.from_lists(histories),
            targets=self.validation.targets[kept],
            users=self.validation.users[kept],
            later_day=None,
        )


def launch(histories: dataset.Histories, split: dataset.Split, n_items: int, moment: int | None = None) -> Launch:
    """Order a catalogue by when its items came, for a split of its histories.

    Parameters
    ----------
    histories : dataset.Histories
        With times, unless all items occur in training.
    split : dataset.Split
        Of them.
    n_items : int
    moment : int, optional
        When the test examples begin; None: all items may be validation targets.

    Examples
    --------
    >>> found = dataset.Histories.from_lists([[4, 2], [2, 0, 1]], times=[[10, 50], [20, 40, 60]])
    >>> split = dataset.time_split(found, validation_share=0.2, test_share=0.4)
    >>> new = launch(found, split, 5, split.moments[1])
    >>> new.order, new.n_known, new.n_validation, [history.tolist() for history in new.train]
    (array([2, 4, 0, 1, 3]), 2, 3, [[1], [0]])
    """
    known = np.isin(np.arange(n_items), split.train.items)
    came = np.full(n_items, np.iinfo(np.int64).max)
    if histories.times is not None:
        np.minimum.at(came, histories.items, histories.times)
    order = np.lexsort((came, ~known))
    order[: known.sum()].sort()
    place = np.empty(n_items, dtype=np.int64)
    place[order] = np.arange(n_items)

    def placed(each: dataset.Histories) -> dataset.Histories:
        return replace(each, items=place[each.items])

    def examples(each: dataset.Examples) -> dataset.Examples:
        return each._replace(histories=placed(each.histories), targets=place[each.targets])

    n_validation = n_items if moment is None else int((known | (came < moment)).sum())
    parts = placed(histories), placed(split.train), examples(split.validation), examples(split.test)
    return Launch(order, int(known.sum()), *parts, n_validation)


def hold_out(histories: dataset.Histories, share: float = 0.05, seed: int = 0) -> dataset.Split:
    """Leave-one-out, with a share of the test items removed from all that comes before: TIGER's test of cold start.

    Parameters
    ----------
    histories : dataset.Histories
    share : float
        Of the distinct test targets.
    seed : int
        Of the draw.

    References
    ----------
    Rajput et al. (2023), section 4.3.
    """
    split = dataset.leave_one_out(histories)
    targets = np.unique(split.test.targets)
    gone = np.random.default_rng(seed).choice(targets, max(1, round(share * len(targets))), replace=False)

    def without(each: dataset.Histories) -> dataset.Histories:
        return dataset.Histories.from_lists([history[~np.isin(history, gone)] for history in each])

    kept = ~np.isin(split.validation.targets, gone)
    validation = split.validation._replace(
        histories=without(split.validation.histories.select(np.flatnonzero(kept))),
        targets=split.validation.targets[kept],
        users=split.validation.users[kept],
        later_day=None,
    )
    test = split.test._replace(histories=without(split.test.histories), later_day=None)
    return split._replace(train=without(split.train), validation=validation, test=test)


class Made(NamedTuple):
    """A recommender whose model knows the first items of a `Launch`, and has the others since."""

    recommender: Recommender  # its rows are those of the launch
    report: Report  # how the new items got their semantic IDs
    n_epochs: int  # the best one on validation


def made(
    new: Launch,
    items: pd.DataFrame,
    vectors: np.ndarray,
    encoder: str,
    task: recipes.Task,
    seed: int,
    n_epochs: int | None = None,
    progress: bool = False,
) -> Made:
    """Train the timeline model on the known items alone, then add the others: as production does.

    Parameters
    ----------
    new : Launch
    items, vectors
        Of the data, in its order: the table, and text vectors of length 1, (n_items, dim) float32.
    encoder : str
        Of the vectors.
    task : recipes.Task
        Sizes, and where runs are kept; its histories and examples are replaced by those of `new`.
    seed : int
    n_epochs : int, optional
        Train so many epochs, and look at no validation users.
    progress : bool
    """
    items, vectors, n = items.iloc[new.order].reset_index(drop=True), vectors[new.order], new.n_known
    kmeans = quantize.fit_residual_kmeans(vectors[:n], 3, quantize.suggest_codebook_size(n))
    ids, _ = assignment.resolve_collisions(kmeans.codes, vectors[:n], kmeans)
    looked_at = recipes.sample(new.learnable(), task.sizes.validation_users) if n_epochs is None else None
    task = task._replace(train=new.train, validation=looked_at)
    run = recipes.train_timeline(task, ids, vectors[:n], seed, n_epochs, progress=progress)
    before = Recommender(cast("Timeline", run.model), ids, items[:n], tokenizer=ItemTokenizer(kmeans, n, encoder))
    return Made(*before.add_items(items[n:], vectors[n:]), run.best.epoch)


def set_rate(recommender: Recommender, rate: float) -> None:
    """Let a recommender's model give new items this rate, see `TimelineConfig.new_item_rate`."""
    model = _model(recommender)
    model.config = replace(model.config, new_item_rate=rate)


def _model(recommender: Recommender) -> Timeline:
    return cast("Timeline", recommender.model)


def only(baseline: Votes, allowed: np.ndarray) -> Callable[..., Ranked]:
    """A baseline that ranks some items alone, as a function for `evaluate.evaluate`. allowed: (n_items,) bool."""

    def score(block: list[np.ndarray]) -> np.ndarray:
        return np.where(allowed, baseline.scores(block), -np.inf).astype(np.float32)

    return ranker(len(allowed), score)


def new_item_rate(new: Launch) -> float:
    """How often a new item is bought in the validation window for each time that a known one is, on average.

    It is what `TimelineConfig.new_item_rate` means; 0 if no new item came.
    """
    n_new, share = new.n_validation - new.n_known, new.is_new(new.validation).mean()
    return float(share / n_new / ((1 - share) / new.n_known)) if n_new and share < 1 else 0.0


def recent_sales(histories: dataset.Histories, until: int, n_items: int, days: int = 30) -> np.ndarray:
    """How often each item was sold in the last days before a time, (n_items,) int64.

    >>> found = dataset.Histories.from_lists([[0, 1, 1]], times=[[0, 86_400, 3 * 86_400]])
    >>> recent_sales(found, 3 * 86_400, n_items=3, days=2)
    array([0, 1, 0])
    """
    times = dataset.times_of(histories)
    return np.bincount(histories.items[(times >= until - days * _DAY) & (times < until)], minlength=n_items)


def before(histories: dataset.Histories, until: int) -> dataset.Histories:
    """The interactions of each user before a time.

    >>> [each.tolist() for each in before(dataset.Histories.from_lists([[0, 1]], times=[[5, 9]]), until=9)]
    [[0]]
    """
    times = dataset.times_of(histories)
    kept = times < until
    offsets = offsets_of(kept)[histories.offsets]
    return replace(histories, items=histories.items[kept], offsets=offsets, times=times[kept])


def parts(evaluation: evaluate.Evaluation, is_new: np.ndarray) -> dict[str, evaluate.Evaluation]:
    """The evaluation of all users, and of those whose target is known or new."""
    users = {"all": np.ones(len(is_new), dtype=bool), "known": ~is_new, "new": is_new}
    return {
        kind: evaluation._replace(
            rank=evaluation.rank[chosen], recommended=evaluation.recommended[chosen], later_day=None
        )
        for kind, chosen in users.items()
        if chosen.any()
    }


def rows_of(
    topic: str,
    measured: Mapping[str, Sequence[evaluate.Evaluation]],
    is_new: np.ndarray,
    seeds: Sequence[int],
) -> list[dict[str, Any]]:
    """Result rows `<topic>_<kind>/method/metric` for each kind of target. measured: of each method one a seed."""
    found = []
    for name, of_seeds in measured.items():
        each = [parts(one, is_new) for one in of_seeds]
        for kind in each[0]:
            found += evaluate.rows(f"{topic}_{kind}/{name}", [one[kind] for one in each], seeds[: len(each)])
    return found


def table(rows: Sequence[Mapping[str, Any]], which: Sequence[str] = METRICS) -> pd.DataFrame:
    """Rows of `rows_of` as a page shows them: a line per method, its metrics on all users and on both kinds."""
    found: dict[str, dict[str, str]] = {}
    for kind in KINDS:
        for row in rows:
            topic, method, metric = row["key"].split("/")
            if topic.endswith(f"_{kind}") and metric in which:
                found.setdefault(NAMES[method], {})[f"{metric_name(metric)}, {kind}"] = cell(row)
    return pd.DataFrame.from_dict(found, orient="index")


def ahead_rows(
    topic: str,
    measured: Mapping[str, Sequence[evaluate.Evaluation]],
    pairs: Sequence[tuple[str, str]],
    is_new: np.ndarray,
    seeds: Sequence[int],
) -> list[dict[str, Any]]:
    """Result rows `<topic>_<kind>_ahead_of_<theirs>/ours/metric`: paired differences for each kind of target."""
    found = []
    for ours, theirs in pairs:
        each, other = ([parts(one, is_new) for one in measured[name]] for name in (ours, theirs))
        for kind in each[0]:
            of_kind = [one[kind] for one in each], [one[kind] for one in other[: len(each)]]
            found += evaluate.difference_rows(f"{topic}_{kind}_ahead_of_{theirs}/{ours}", *of_kind, seeds[: len(each)])
    return found


def difference_table(rows: Sequence[Mapping[str, Any]], which: Sequence[str] = METRICS) -> pd.DataFrame:
    """Rows of `ahead_rows` as a page shows them: a line per pair."""
    found: dict[str, dict[str, str]] = {}
    for row in rows:
        topic, ours, metric = row["key"].split("/")
        kind, theirs = topic.split("_ahead_of_")
        if metric in which:
            line = found.setdefault(f"({NAMES[ours]}) − ({NAMES[theirs]})", {})
            line[f"{metric_name(metric)}, {kind.rpartition('_')[2]}"] = cell(row)
    return pd.DataFrame.from_dict(found, orient="index")


def best(rows: Sequence[Mapping[str, Any]], topic: str, metric: str) -> dict[str, str]:
    """The best method for each kind of target, as a page names it."""
    scores: dict[str, dict[str, float]] = {}
    for row in rows:
        of, method, measured = row["key"].split("/")
        for kind in KINDS:
            if of == f"{topic}_{kind}" and measured == metric:
                scores.setdefault(f"{kind} targets", {})[NAMES[method]] = row["value"]
    return {kind: max(each, key=lambda name: each[name]) for kind, each in scores.items()}


def at_rates(
    recommender: Recommender, new: Launch, rates: Sequence[float], k: int, examples: dataset.Examples
) -> pd.DataFrame:
    """Recall of validation examples at several rates of new items: a line per rate and kind of target.

    Lists hold items that came before the test examples; later ones still have their part of the probability.
    """
    allowed = np.arange(len(new.order)) < new.n_validation
    config, is_new, lines = _model(recommender).config, new.is_new(examples), []
    for rate in rates:
        set_rate(recommender, rate)
        found = recommender.rank(list(examples.histories), k, examples.exclude_seen, allowed=allowed)
        rank = metrics.ranks(found.items, examples.targets)
        for kind, chosen in (("all", np.full(len(rank), True)), ("known", ~is_new), ("new", is_new)):
            recalls = {f"recall@{at}": metrics.recall_at_k(rank[chosen], at) for at in (10, 100)}
            means = {name: float(each.mean()) for name, each in recalls.items() if chosen.any()}
            lines.append({"rate": rate, "kind": kind, **means})
    _model(recommender).config = config
    return pd.DataFrame(lines)


def at_smoothings(
    recommender: Recommender, sales: np.ndarray, smoothings: Sequence[float], k: int, examples: dataset.Examples
) -> pd.Series:
    """Recall@k of examples when the model follows sales, at several smoothings, the model as it is at infinity."""
    model, found = _model(recommender), {}
    for smoothing in smoothings:
        model.set_trend(sales if np.isfinite(smoothing) else None, smoothing)
        items = recommender.rank(list(examples.histories), k, examples.exclude_seen).items
        found[smoothing] = float(metrics.recall_at_k(metrics.ranks(items, examples.targets), k).mean())
    model.set_trend(None)
    return pd.Series(found, name=f"Recall@{k}, validation").rename_axis("smoothing")


def among_new(ranks: Mapping[str, Callable], new: Launch, examples: dataset.Examples) -> pd.DataFrame:
    """Lists of new items alone, for the users whose target is new: Recall of each method, a line per method.

    ranks: over the new items that came before the test examples. K stays below their number; without such items or
    users, the table is empty.
    """
    chosen = np.flatnonzero(new.is_new(examples))
    histories, targets = examples.histories.select(chosen), examples.targets[chosen]
    n_new, lines = new.n_validation - new.n_known, {}
    if not len(chosen) or n_new <= 10:
        return pd.DataFrame()
    for name, rank in ranks.items():
        found = rank(histories, min(100, n_new), exclude_seen=examples.exclude_seen)
        place = metrics.ranks(found.items, targets)
        lines[NAMES[name]] = {
            f"Recall@{k}": float(metrics.recall_at_k(place, k).mean()) for k in (10, 100) if k < n_new
        }
    return pd.DataFrame.from_dict(lines, orient="index")
