"""Chapters 07 and 11: their shop, what one hands to the other, and their tables and result rows."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from semid_lib.data import dataset
from semid_lib.decoding.ranking import ranker
from semid_lib.evaluation import evaluate, metrics
from semid_lib.evaluation.rows import LABELS, LATER_DAY, cell, metric_name, over_seeds, table_rows
from semid_lib.ids import assignment, embed, quantize
from semid_lib.ids.semantic_ids import SemanticIDs
from semid_lib.next_item import baselines, linear, recipes
from semid_lib.next_item.timeline import Timeline
from semid_lib.workbench import scale
from semid_lib.workbench.store import Store

LISTS = "next_item_lists"  # the artefact that chapter 07 writes and chapters 11 and 12 read
# the methods that a figure with bars has room for
MAIN = ("popularity", "item_knn", "slist", "sasrec", "tiger", "timeline", "timeline_slist")


def load_shop(data: str | Path) -> tuple[dataset.Dataset, str]:
    """A data set with histories to predict from: that of the name, or the demo shop and why it takes its place."""
    shop, why = dataset.load(data), ""
    if shop.histories is None:
        why = "has no histories"
    elif shop.histories.lengths.max(initial=0) < 3:
        why = f"has {len(shop.histories)} histories, none of the 3 interactions needed"
    elif len(shop.items) < 10:
        why = f"has {len(shop.items)} items, lists of ten need 10"
    if not why:
        return shop, ""
    return dataset.load("demo"), f"{shop.name} {why}: this page shows the demo shop instead."


def text_vectors(shop: dataset.Dataset, artefacts: Store, instead: str) -> tuple[np.ndarray, str]:
    """Text vectors of unit length, (n_items, dim) float32, and the name of their encoder.

    For the demo shop in place of another (instead is not empty), without its own chapter 01, they are made here.
    """
    if artefacts.has("embeddings") or not instead:
        saved = artefacts.load("embeddings")
        return embed.normalize(saved["vectors"]), saved.facts["embedder"]
    texts = embed.item_texts(shop.items, scale.get(artefacts.scale).text_characters)
    return embed.normalize(embed.embed(texts, cache=artefacts.cache("embeddings"))), embed.DEFAULT_MODEL


def load_ids(shop: dataset.Dataset, artefacts: Store, instead: str) -> tuple[SemanticIDs, SemanticIDs, np.ndarray]:
    """Semantic IDs by residual k-means and by RQ-VAE, and text vectors of unit length, (n_items, dim).

    For the demo shop in place of another (instead is not empty), without its own chapters 01 and 02, the IDs are made
    here, and both are those by k-means.
    """
    if artefacts.has("semantic_ids") or not instead:
        vectors, _ = text_vectors(shop, artefacts, "")
        return recipes.load_ids(artefacts), recipes.load_ids(artefacts, rqvae=True), vectors
    vectors, _ = text_vectors(shop, artefacts, instead)
    kmeans = quantize.fit_residual_kmeans(vectors, 3, quantize.suggest_codebook_size(len(vectors)))
    ids, _ = assignment.resolve_collisions(kmeans.codes, vectors, kmeans)
    return ids, ids, vectors


def time_split(histories: dataset.Histories) -> tuple[Any, str]:
    """The time-based split, or None and why there is none."""
    if histories.times is None:
        return None, "has no times"
    try:
        return dataset.time_split(histories), ""
    except ValueError as error:
        return None, f"has no time-based split: {error}"


def run_table(runs: Mapping[str, Mapping[int, recipes.Trained]]) -> pd.DataFrame:
    """A line per run: its size, its best epoch, its validation score and the seconds it took."""
    columns = ["parameters", "epochs", "best epoch", "Recall@10, validation", "seconds"]
    lines = {}
    for name, of_seeds in runs.items():
        for seed, run in of_seeds.items():
            size, best = sum(weight.numel() for weight in run.model.parameters()), run.best
            cells = (f"{size:,}", len(run.epochs), best.epoch, f"{best.validation:.4f}", round(run.seconds))
            lines[f"{LABELS[name]}, seed {seed}"] = cells
    return pd.DataFrame.from_dict(lines, orient="index", columns=columns)


def table(evaluations: Mapping[str, Any], columns: Iterable[str] = ()) -> pd.DataFrame:
    """`evaluate.table` as a page shows it: a line per method, by its name, for some or all metrics."""
    shown = evaluate.table(dict(evaluations)).T
    if columns := [column for column in columns if column in shown]:
        shown = shown[columns]
    return shown.rename(
        index=lambda name: LABELS[name.removesuffix("_seen_allowed").removesuffix("_refit")], columns=metric_name
    )


def untrained(train: Sequence[np.ndarray], vectors: np.ndarray) -> dict[str, Any]:
    """The baselines without a neural network, by their keys, at the settings chosen on Beauty's validation users."""
    n_items = len(vectors)
    return {
        "popularity": baselines.Popularity(train, n_items),
        "item_knn": baselines.ItemKNN(train, n_items),
        "sequential_rules": baselines.SequentialRules(train, n_items),
        "user_knn": baselines.UserKNN(train, n_items),
        "ease": linear.EASE(train, n_items),
        "slist": linear.SLIST(train, n_items),
        "transition_graph": baselines.TransitionGraph(train, vectors),
        "text_only": baselines.TextOnly(train, vectors),
    }


def prior_weights(
    model: Timeline, examples: dataset.Examples, priors: Mapping[str, Callable]
) -> dict[str, tuple[float, ...]]:
    """The weights of the mixture with each prior, by its name: see `recipes.mixture_weights`."""
    return {name: recipes.mixture_weights(model, examples, prior) for name, prior in priors.items()}


def component_ranks(model: Timeline, priors: Mapping[str, Callable], weights: Mapping[str, Sequence[float]]) -> dict:
    """The components of a timeline model, each alone and with each prior, as functions for `evaluate.evaluate`.

    priors: by name, such as that of item-kNN. weights: as `prior_weights` returns
    them.
    """
    found: dict[str, Callable] = {
        "code_head": partial(model.rank, weights=(1.0, 0.0)),
        "item_head": item_head(model),
        "timeline": model.rank,
    }
    for name, prior in priors.items():
        found[f"item_head_{name}"] = item_head(model, prior)
        found[f"timeline_{name}"] = partial(model.rank, prior=prior, weights=weights[name])
    return found


def item_head(model: Timeline, prior: Callable | None = None) -> Callable:
    """The item head alone, or times a prior; it scores every item at once, so no beam is needed."""
    weights, item = (0.0, 1.0) if prior is None else (0.0, 0.0, 1.0), model.trie.item.cpu().numpy()

    @torch.inference_mode()
    def score(block: list[np.ndarray]) -> np.ndarray:
        of_leaves = model.begin(model.context(block, prior, weights))[0].by_item[-1].cpu().numpy()
        scores = np.empty_like(of_leaves)
        scores[:, item] = of_leaves
        return scores

    return ranker(len(item), score)


def code_head_with_prior(model: Timeline, prior: Callable) -> Callable:
    """The code head times a prior: a prefix has no probability under it, so every item is scored."""

    def score(block: list[np.ndarray]) -> np.ndarray:
        return recipes.log_probs(model, block, weights=(1.0, 0.0)) + prior(block)

    return ranker(len(model.ids), score)


def difference_rows(
    measured: Mapping[str, list], pairs: Iterable[tuple[str, str]], seeds: Sequence[int]
) -> list[dict[str, Any]]:
    """Result rows of by how much one method is ahead of another on the same users; see `evaluate.difference_rows`.

    Parameters
    ----------
    measured : mapping of str to list of Evaluation
        Of each method one evaluation a seed. All of the first method are compared with the second's, if it has one.
    pairs : iterable of (str, str)
        Keys of both methods.
    seeds : sequence of int
    """
    rows = []
    for ours, theirs in pairs:
        used = seeds[: len(measured[ours])]
        rows += evaluate.difference_rows(f"{ours}_ahead_of/{theirs}", measured[ours], measured[theirs], used)
    return rows


def difference_table(rows: Iterable[Mapping[str, Any]], later_day: bool = False) -> pd.DataFrame:
    """Rows of `difference_rows` as a page shows them: a line a pair, all metrics.

    later_day: those of the users whose target lies on a later day than their history, in place of those of all users.
    """
    lines: dict[str, dict[str, str]] = {}
    for row in rows:
        ours, theirs, metric = row["key"].replace("_ahead_of/", "/").split("/")
        names = (f"({LABELS[name]})" if "+" in LABELS[name] else LABELS[name] for name in (ours, theirs))
        if metric.startswith(LATER_DAY) == later_day:
            lines.setdefault(" − ".join(names), {})[metric_name(metric)] = cell(row)
    return pd.DataFrame.from_dict(lines, orient="index")


def training_rows(runs: Mapping[str, Mapping[int, recipes.Trained]]) -> list[dict[str, Any]]:
    """Result rows on training: seconds, epochs, best epoch and its validation score, over seeds."""
    rows = []
    for name, of_seeds in runs.items():
        lines = []
        for seed, run in of_seeds.items():
            facts = {"seconds": run.seconds, "epochs": len(run.epochs), "best epoch": run.best.epoch}
            made = table_rows("training", {name: facts | {"validation recall@10": run.best.validation}})
            lines += [row | {"seed": seed, **run.origin} for row in made]
        rows += over_seeds(lines) if len(of_seeds) > 1 else lines
    return rows


# --- what chapter 07 hands to chapters 11 and 12 ---


def save_lists(artefacts: Store, evaluations: Mapping[str, evaluate.Evaluation]) -> None:
    """Keep of each method the ranks of the test targets and the first ten items of every list."""
    later = [each.later_day for each in evaluations.values() if each.later_day is not None]
    arrays = {f"rank/{name}": each.rank for name, each in evaluations.items()}
    arrays |= {f"items/{name}": each.recommended[:, :10].astype(np.int64) for name, each in evaluations.items()}
    arrays |= {"later_day": later[0]} if later else {}
    excluded = [name for name, each in evaluations.items() if each.exclude_seen]
    artefacts.save(LISTS, arrays, methods=list(evaluations), excluded=excluded)


def load_lists(artefacts: Store) -> dict[str, evaluate.Evaluation]:
    """What `save_lists` kept, by method. Raises FileNotFoundError if chapter 07 has not been run."""
    saved = artefacts.load(LISTS)
    later = np.array(saved["later_day"]) if "later_day" in saved.arrays else None
    found = {}
    for name in saved.facts["methods"]:
        rank, items = (np.array(saved[f"{part}/{name}"]) for part in ("rank", "items"))
        found[name] = evaluate.Evaluation(rank, items, 0.0, name in saved.facts["excluded"], later)
    return found


# --- beams and times ---


def beam_rows(answers: Mapping[Any, evaluate.Evaluation], n_items: int) -> dict[Any, dict[str, float]]:
    """Recall, validity and time of each beam width; Recall@K where lists have K items."""
    rows = {}
    for width, each in answers.items():
        reached = [k for k in (10, 100, 1000) if k <= each.recommended.shape[1]]
        rows[width] = {f"recall@{k}": metrics.recall_at_k(each.rank, k).mean() for k in reached}
        rows[width]["validity"] = metrics.validity_rate(each.recommended, n_items)
        rows[width]["ms a user"] = 1000 * each.seconds / len(each.rank)
    return rows


def waiting_times(rank, histories: dataset.Histories, n_alone: int = 100, **options) -> dict[str, float]:
    """Milliseconds per user for ten recommendations: in one batch, and one user at a time (median and p99)."""
    started = time.perf_counter()
    rank(histories, 10, **options)
    batched = 1000 * (time.perf_counter() - started) / len(histories)
    alone = []
    for history in histories.select(slice(n_alone)):
        started = time.perf_counter()
        rank([history], 10, **options)
        alone.append(1000 * (time.perf_counter() - started))
    return {"batched_ms": batched, "alone_p50_ms": np.median(alone), "alone_p99_ms": np.quantile(alone, 0.99)}
