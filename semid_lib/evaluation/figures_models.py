"""Figures of chapters 05 and 10 (search), 06 (decoding), 07, 11, 12 (next item). Conventions: `evaluation.figures`."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from semid_lib.evaluation import evaluate, metrics, plotting
from semid_lib.evaluation.figures import CHANCE, EXACT, MAIN, SECOND, colour
from semid_lib.evaluation.rows import LABELS

# --- search: chapters 05 and 10 ---


def fine_tuning_loss(losses: pd.DataFrame, floor: float) -> Figure:
    """Loss against step, a line per stage. losses: columns stage, step, loss. floor: a reference in nats per token."""
    figure, axis = plt.subplots(figsize=(7.5, 3.4), layout="constrained")
    for name, part in losses.groupby("stage", sort=False):
        axis.plot(part["step"], part["loss"], label=f"stage: {name}", linewidth=1)
    axis.axhline(floor, **CHANCE, label="codes by use alone")
    axis.set(xlabel="step", ylabel="loss, nats per token of the answer", ylim=0)
    axis.legend(frameon=False)
    return figure


def prefix_accuracy(accuracy: pd.DataFrame) -> Figure:
    """Share of first answers whose first codes are right, a line per method. accuracy: a row per method."""
    figure, axis = plt.subplots(figsize=(7.5, 3.6), layout="constrained")
    for name, share in zip(map(str, accuracy.index), accuracy.to_numpy(), strict=True):
        style = CHANCE if name == "most common prefix" else {"color": colour(name), "marker": "o"}
        if name.endswith(", free"):
            style = style | {"linestyle": "--"}
        axis.plot(np.arange(1, len(share) + 1), share, **style, label=name)
    axis.set(xlabel="first codes that must be right", ylabel="share of the queries", ylim=0)
    axis.set_xticks(np.arange(1, accuracy.shape[1] + 1))
    axis.legend(frameon=False)
    return figure


def recall_panels(panels: Mapping[str, tuple[dict[str, evaluate.QueryEvaluation], np.ndarray]]) -> Figure:
    """Recall@10 with 95% intervals of every method, a panel per set of queries.

    panels: of each title the evaluations, by method, and which of their queries count, (n,) bool; empty sets are left
    out.
    """
    panels = {title: panel for title, panel in panels.items() if panel[1].any()}
    titles = plotting.labels(panels, width=40).drawn
    figure, axes = plt.subplots(
        1, len(panels), figsize=(10, 3.4), layout="constrained", sharex=True, sharey=True, squeeze=False
    )
    for axis, title, (evaluations, chosen) in zip(axes[0], titles, panels.values(), strict=True):
        for place, (name, evaluation) in enumerate(evaluations.items()):
            values = evaluation.per_query["recall@10"].to_numpy()[chosen]
            [(mean, low, high)] = metrics.bootstrap_intervals(values[:, None])
            axis.plot([low, high], [place, place], color=colour(name), linewidth=2)
            axis.plot(mean, place, "o", color=colour(name))
        axis.set(title=title, xlabel="Recall@10", xlim=0)
        axis.set_yticks(range(len(evaluations)), evaluations)
    axes[0, 0].invert_yaxis()
    return figure


# --- next item: chapters 07, 11 and 12 ---


def training_curves(run: Any) -> Figure:
    """Training loss and validation recall against the epoch; the kept epoch is marked. run: `recipes.Trained`."""
    epochs = pd.DataFrame(run.epochs)
    looks, best = epochs.dropna(), run.best
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.3), layout="constrained")
    left.plot(epochs["epoch"], epochs["loss"], color=colour("timeline"))
    left.set(xlabel="epoch", ylabel="training loss, both heads (nats per item)")
    right.plot(looks["epoch"], looks["validation"], color=colour("timeline"), marker="o", markersize=3)
    right.plot(best.epoch, best.validation, "o", color="black", label="kept")
    right.set(xlabel="epoch", ylabel="Recall@10, validation")
    right.set_ylim(0, 1.1 * right.get_ylim()[1])
    right.legend(frameon=False)
    return figure


def validation_against_time(runs: Mapping[str, Mapping[int, Any]], item_knn: float) -> Figure:
    """Recall@10 on validation against seconds of training, a line per run.

    runs: of each model its `recipes.Trained`, by seed. item_knn: its recall, without training.
    """
    figure, axis = plt.subplots(figsize=(7, 3.8), layout="constrained")
    for name, of_seeds in runs.items():
        for seed, run in of_seeds.items():
            curve = pd.DataFrame(run.epochs).dropna()
            label = LABELS[name] if seed == min(of_seeds) else None
            style: dict[str, Any] = {"color": colour(LABELS[name]), "marker": "o", "markersize": 3}
            axis.plot(curve["seconds"], curve["validation"], **style, label=label)
    axis.axhline(item_knn, color=colour("item-kNN"), linestyle="--", label="item-kNN, no training")
    axis.set(xscale="log", xlabel="seconds of training", ylabel="Recall@10, validation", ylim=0)
    axis.legend(frameon=False)
    return figure


def recall_curves(evaluations: Mapping[str, evaluate.Evaluation], n_items: int) -> Figure:
    """Recall@K against K with 95% bands, a line per method. evaluations: by raw name, with lists of equal length."""
    length = min(each.recommended.shape[1] for each in evaluations.values())
    ks = np.unique(np.geomspace(1, length, 40).astype(int))
    figure, axis = plt.subplots(figsize=(7, 4.2), layout="constrained")
    for name, each in evaluations.items():
        hits = np.stack([metrics.recall_at_k(each.rank, k) for k in ks], axis=1)
        mean, low, high = np.array(metrics.bootstrap_intervals(hits, n_resamples=200)).T
        axis.plot(ks, mean, color=colour(LABELS[name]), label=LABELS[name])
        axis.fill_between(ks, low, high, color=colour(LABELS[name]), alpha=0.2, linewidth=0)
    axis.plot(ks, ks / n_items, **CHANCE, label="by chance")
    axis.set(xscale="log", yscale="log", xlabel="K", ylabel="Recall@K, test", ylim=(1e-3, 3))
    axis.legend(frameon=False, loc="upper left", ncols=2)
    return figure


def recall_by_group(evaluations: Mapping[str, evaluate.Evaluation], groups: Mapping[str, Sequence]) -> Figure:
    """Recall@10 of every method in every group of users, with 95% intervals. groups: label of an axis to one a user."""
    figure, axes = plt.subplots(1, len(groups), figsize=(10, 3.8), layout="constrained", sharey=True)
    width = 0.78 / len(evaluations)
    for axis, (label, of_users) in zip(np.atleast_1d(axes), groups.items(), strict=True):
        for position, (name, each) in enumerate(evaluations.items()):
            part = evaluate.by_group(each, of_users).xs("recall@10", level="metric")
            at = np.arange(len(part)) + width * (position - (len(evaluations) - 1) / 2)
            error = [part["mean"] - part["low"], part["high"] - part["mean"]]
            style = {"color": colour(LABELS[name]), "ecolor": "grey", "label": LABELS[name]}
            axis.bar(at, part["mean"], width, yerr=error, **style)
        names = [f"{group}\n{n:,}" for group, n in zip(part.index, part["n"], strict=True)]
        axis.set_xticks(np.arange(len(part)), names)
        axis.set_xlabel(label)
    figure.axes[0].set_ylabel("Recall@10, test")
    figure.axes[-1].legend(frameon=False, fontsize=8)
    return figure


def recall_by_rate(table: pd.DataFrame, measured: float) -> Figure:
    """Recall of all, known and new targets against the rate of new items. table: of `new_items_study.at_rates`."""
    figure, axes = plt.subplots(1, 2, figsize=(10, 3.4), layout="constrained")
    for axis, k in zip(axes, (10, 100), strict=True):
        for (kind, lines), style in zip(table.groupby("kind"), ("-", "--", ":"), strict=False):
            axis.plot(lines["rate"], lines[f"recall@{k}"], style, color=colour("timeline"), marker="o", label=kind)
        if measured:
            axis.axvline(measured, color="grey", linewidth=1)
        axis.set(xscale="log", xlabel="rate of new items", ylabel=f"Recall@{k}, validation", ylim=0)
        axis.legend(frameon=False, title="targets")
    return figure


def beam_widths(table: pd.DataFrame) -> Figure:
    """Recall@K and time against the beam width. table: `recall@K` and `ms per user` by width, and a line "exact"."""
    widths = table.drop(index="exact")
    x = widths.index.astype(int)
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.4), layout="constrained")
    for k, shade in zip((10, 100, 1000), (1.0, 0.7, 0.45), strict=True):
        if f"recall@{k}" in table:
            line = widths[f"recall@{k}"].to_numpy(dtype=float)
            left.plot(x, line, color=colour("timeline"), alpha=shade, marker="o", label=f"Recall@{k}")
            left.axhline(table.loc["exact", f"recall@{k}"], **EXACT, alpha=shade)
    left.set(xscale="log", xlabel="beam width", ylabel="Recall@K, test", ylim=0)
    right.plot(x, widths["ms per user"], color=colour("timeline"), marker="o", label="beam search")
    right.axhline(table.loc["exact", "ms per user"], **EXACT, label="all items scored")
    right.set(xscale="log", yscale="log", xlabel="beam width", ylabel="ms per user, in batches")
    for axis in (left, right):
        axis.legend(frameon=False)
    return figure


# --- decoding: chapter 06 ---


def trie(tree: Any) -> Figure:
    """A small `PrefixTrie` as a tree: codes on the edges, items at the leaves."""
    place = [np.arange(tree.n_items, dtype=float)]
    for depth in reversed(range(tree.n_levels)):
        start = tree.child_start[depth].tolist()
        place.insert(0, np.array([place[0][low:high].mean() for low, high in pairwise(start)]))
    figure, axis = plt.subplots(figsize=(8, 3.4), layout="constrained")
    for depth in range(tree.n_levels):
        for node in range(tree.n_nodes(depth)):
            for code, child in tree.children(depth, node).items():
                x, y = (place[depth][node], place[depth + 1][child]), (-depth, -depth - 1)
                axis.plot(x, y, color="grey", linewidth=1, zorder=1)
                axis.text(float(np.mean(x)), float(np.mean(y)), code, ha="center", va="center", backgroundcolor="w")
    for depth, places in enumerate(place):
        axis.scatter(places, [-depth] * len(places), color=MAIN, zorder=2)
    for leaf in range(tree.n_items):
        axis.text(leaf, -tree.n_levels - 0.35, f"item {tree.item[leaf]}", ha="center")
    depths = np.arange(tree.n_levels + 1)
    axis.set(ylim=(-tree.n_levels - 0.6, 0.3), ylabel="depth", xticks=[])
    axis.set_yticks(-depths, depths)
    axis.spines[["top", "right", "bottom"]].set_visible(False)
    return figure


def beams_against_exact(table: pd.DataFrame, recall: float, ms: float) -> Figure:
    """What a beam finds and what it takes, against its width. table: as in chapter 06. recall, ms: of exact ranking."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.4), layout="constrained")
    left.plot(table["share of the exact top 10"], color=MAIN, marker="o", label="of the exact top 10, found")
    left.plot(table["Recall@10"], color=SECOND, marker="o", label="Recall@10 of the nearest item")
    left.axhline(recall, color=SECOND, linestyle="--", linewidth=1, label="Recall@10, exact")
    left.set(xscale="log", xlabel="beam width", ylabel="share", ylim=(0, 1.05))
    right.plot(table["ms per prompt"], color=MAIN, marker="o", label="beam search")
    right.axhline(ms, **EXACT, label="all items scored")
    right.set(xscale="log", yscale="log", xlabel="beam width", ylabel="ms per prompt")
    for axis in (left, right):
        axis.legend(frameon=False)
        axis.set_xticks(table.index, table.index)
        axis.minorticks_off()
    return figure
