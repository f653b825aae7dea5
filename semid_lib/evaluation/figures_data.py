"""Figures of the chapters on catalogues, vectors, IDs and queries: 01 to 04. Conventions: `evaluation.figures`."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from semid_lib.evaluation import plotting
from semid_lib.evaluation.figures import CHANCE, MAIN, colour


def label_counts(labels: Mapping[str, pd.Series], n_bars: int = 15) -> tuple[Figure, str]:
    """Bars of the most frequent labels of items, a panel per kind; and the note of `plotting.labels`."""
    figure, axes = plt.subplots(1, len(labels), figsize=(10, 4), layout="constrained", squeeze=False)
    notes = []
    for axis, (kind, values) in zip(axes[0], labels.items(), strict=True):
        notes.append(plotting.bars(axis, values.value_counts().head(n_bars), kind, color=MAIN))
        axis.set(title=f"{kind}: the largest of {values[values != ''].nunique():,}", xlabel="items")
    return figure, "\n".join(filter(None, notes))


def history_lengths(lengths: np.ndarray, popularity: np.ndarray) -> Figure:
    """Histogram of the lengths of histories, and interactions of an item against its rank.

    lengths: (n_users,); popularity: (n_items,) interactions per item, largest first.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
    left.hist(lengths, bins=np.arange(0, np.quantile(lengths, 0.99) + 2) - 0.5, color=MAIN)
    left.set(xlabel="interactions per user (up to the 99th percentile)", ylabel="users")
    right.loglog(np.arange(1, len(popularity) + 1), popularity, color=MAIN)
    right.set(xlabel="rank of the item by popularity", ylabel="interactions")
    return figure


def item_map(
    places: np.ndarray, groups: Sequence, members: Sequence, method: str, kind: str = "label"
) -> tuple[Figure, str]:
    """Items as dots in the colours of their groups; and the note of `plotting.labels`.

    Parameters as of `plotting.draw_map`.
    """
    figure, axis = plt.subplots(figsize=(10, 5.5), layout="constrained")
    note = plotting.draw_map(axis, places, groups, members, method, kind)
    axis.set_title(kind)
    axis.legend(loc="center left", bbox_to_anchor=(1, 0.5), markerscale=3, frameon=False)
    return figure, note


def rqvae_training(history: pd.DataFrame, of_kmeans: float) -> Figure:
    """Distortion and utilization over the epochs, with the distortion of residual k-means as a dashed line.

    history: columns epoch, distortion and utilization (a tuple, one share per level), as `rqvae.RQVAEEpoch`.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.2), layout="constrained")
    left.plot(history["epoch"], history["distortion"], color=colour("RQ-VAE"), label="RQ-VAE")
    left.axhline(of_kmeans, color=colour("residual k-means"), linestyle="--", label="residual k-means")
    left.set(xlabel="epoch", ylabel="distortion of the catalogue")
    for level, used in enumerate(np.array(history["utilization"].tolist()).T):
        right.plot(history["epoch"], used, label=f"level {level}")
    right.set(xlabel="epoch", ylabel="utilization", ylim=(0, 1.05))
    for axis in (left, right):
        axis.legend(frameon=False)
    return figure


def code_use(methods: Mapping[str, np.ndarray], codebook_size: int) -> Figure:
    """Items per code, most used first, a panel per level; dotted, the even share. methods: codes of each."""
    n_items, n_levels = next(iter(methods.values())).shape
    figure, axes = plt.subplots(1, n_levels, figsize=(10, 3.2), layout="constrained", squeeze=False)
    for level, axis in enumerate(axes[0]):
        for name, codes in methods.items():
            counts = np.sort(np.bincount(codes[:, level], minlength=codebook_size))[::-1]
            axis.plot(np.arange(1, len(counts) + 1), counts, color=colour(name), label=name)
        axis.axhline(n_items / codebook_size, **CHANCE)
        axis.set(title=f"level {level}", xlabel="codes, most used first", yscale="symlog")
        axis.set_ylim(bottom=0)
    axes[0, 0].set_ylabel("items")
    axes[0, -1].legend(frameon=False, fontsize=8)
    return figure


def collision_groups(sizes: Mapping[str, np.ndarray], largest: int = 12) -> Figure:
    """Bars: semantic IDs by the number of items that share them. sizes: of `codebooks.collision_sizes`, per method."""
    figure, axis = plt.subplots(figsize=(8, 3.2), layout="constrained")
    width = 0.72 / len(sizes)
    for at, (name, groups) in enumerate(sizes.items()):
        place = np.arange(1, len(groups)) + width * (at - (len(sizes) - 1) / 2)
        axis.bar(place, groups[1:], width=width, color=colour(name), label=name)
    axis.set(xlabel="items that share all codes", ylabel="semantic IDs", yscale="log")
    axis.set(xlim=(0.4, largest + 0.6), xticks=range(1, largest + 1))
    axis.set_ylim(bottom=0.5)  # so that a single ID shows
    axis.legend(frameon=False)
    return figure


def neighbours_kept(kept: Mapping[str, tuple[np.ndarray, np.ndarray]], n_near: int) -> Figure:
    """Share of nearest neighbours with the same prefix, by its length; dotted, by chance.

    kept: share and chance, (n_levels,) each, per method, as `codebooks.Preservation`.
    """
    figure, axis = plt.subplots(figsize=(7, 3.6), layout="constrained")
    for name, (share, by_chance) in kept.items():
        depths = np.arange(1, len(share) + 1)
        axis.plot(depths, share, "o-", color=colour(name), label=name)
        axis.plot(depths, by_chance, ":", color=colour(name))
        axis.set_xticks(depths)
    axis.set(xlabel="codes of the prefix", ylabel=f"share of {n_near} nearest neighbours")
    axis.set_yscale("symlog", linthresh=1e-3)
    axis.set_ylim(0, 1.1)
    axis.legend(frameon=False)
    return figure


def two_maps(places: np.ndarray, groups: Mapping[str, tuple[Sequence, Sequence]], method: str) -> Figure:
    """The same map of items, a panel per title, coloured by (group of each item, groups to show)."""
    figure, axes = plt.subplots(1, len(groups), figsize=(10, 4.6), layout="constrained")
    for axis, (title, (group, members)) in zip(axes, groups.items(), strict=True):
        plotting.draw_map(axis, places, group, members, method)
        axis.set_title(title)
    return figure


def distortion_by_bits(sweep: Mapping[int, np.ndarray]) -> Figure:
    """Distortion against bits per item, a line per codebook size with a point per level."""
    figure, axis = plt.subplots(figsize=(7, 3.6), layout="constrained")
    for size, distortion in sweep.items():
        axis.plot(np.log2(size) * np.arange(1, len(distortion) + 1), distortion, "o-", label=f"{size} codes per level")
    axis.set(xlabel="bits per item (levels x log2 of the codebook size)", ylabel="distortion", ylim=0)
    axis.legend(frameon=False)
    return figure


def query_lengths(synthetic: pd.Series, real: pd.Series | None, longest: int = 14) -> Figure:
    """Share of the queries against their number of words. real: of the data set's own queries, if it has any."""
    figure, axis = plt.subplots(figsize=(7, 3.2), layout="constrained")
    lines = {"synthetic": (synthetic, MAIN)} | ({} if real is None else {"the data set's own": (real, "black")})
    for label, (n_words, shade) in lines.items():
        share = np.bincount(n_words.clip(upper=longest), minlength=longest + 1) / len(n_words)
        axis.plot(np.arange(longest + 1), share, "o-", color=shade, label=label)
    axis.set(xlabel=f"words per query ({longest}: or more)", ylabel="share of the queries", ylim=0)
    axis.legend(frameon=False)
    return figure


def round_trips(ranks: pd.Series, family: pd.Series, n_items: int, real: pd.DataFrame | None) -> Figure:
    """Share of queries whose item has at most a rank, a line per family, sorted by Recall@10.

    ranks, family: of each synthetic query. real: columns rank and share (weight) of the data set's own queries.
    """
    figure, axis = plt.subplots(figsize=(8.5, 4.2), layout="constrained")
    at = np.unique(np.geomspace(1, n_items, 60).astype(int))
    ordered = (ranks <= 10).groupby(family).mean().sort_values(ascending=False).index
    for place, (name, label) in enumerate(zip(ordered, plotting.labels(ordered).drawn, strict=True)):
        of_family = np.sort(ranks[family == name])
        found = np.searchsorted(of_family, at, side="right") / len(of_family)
        axis.plot(at, found, color=plt.get_cmap("viridis")(place / len(ordered)), label=label)
    if real is not None:
        weight = real["share"].to_numpy() / real["share"].sum()
        found = np.array([(weight * (real["rank"] <= rank)).sum() for rank in at])
        axis.plot(at, found, "--", color="black", label="the data set's own")
    axis.plot(at, at / n_items, **CHANCE, label="by chance")
    axis.axvline(10, color="lightgrey", linewidth=1, zorder=0)
    axis.set(xscale="log", xlabel="rank r of the item by cosine", ylim=(0, 1.02))
    axis.set_ylabel("share of the queries found by then")
    axis.legend(frameon=False, fontsize=9, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure
