"""Figures of the chapters on catalogues, vectors and IDs: 01. Conventions: `evaluation.figures`."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from semid_lib.evaluation import plotting
from semid_lib.evaluation.figures import MAIN


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
