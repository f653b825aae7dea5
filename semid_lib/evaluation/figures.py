"""Figures of the chapters, and the colours of the book: one per method, in one table.

Conventions for every function that draws a figure:

- it takes the arrays and tables that it draws, not models or shops, and returns the Figure; the chapter's cell calls it
  and then `plt.show()`, and has the alternative text in its metadata;
- colours come from `colour`; a figure without methods uses `MAIN`, and `SECOND` for one comparison;
- "by chance" is dotted black (`CHANCE`), an exact or ideal value dashed black (`EXACT`);
- axes have labels with units, legends no frame, and figures `layout="constrained"`.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

# one per method, all different; a method keeps its colour wherever it occurs
COLOURS = {
    # next-item models
    "popularity": "#7f7f7f",
    "item-kNN": "#ff7f0e",
    "item-kNN + file order": "#ffbb78",
    "user-kNN": "#b35900",
    "sequential rules": "#e9c46a",
    "EASE": "#6b8e23",
    "SLIST": "#1b9e77",
    "transition graph": "#a0522d",
    "text only": "#c51b8a",
    "SASRec": "#9467bd",
    "TIGER": "#d62728",
    "TIGER, trained for longer": "#ff6b6b",
    "timeline": "#1f77b4",
    "timeline + item-kNN": "#2ca02c",
    "timeline + SLIST": "#006d2c",
    "code head": "#364fc7",
    "code head, trained alone": "#91a7ff",
    "code head x item-kNN": "#22b8cf",
    "item head": "#d9480f",
    "item head, trained alone": "#ffa94d",
    "item head x item-kNN": "#66a80f",
    "item head x SLIST": "#74c476",
    # search
    "BM25": "#bcbd22",
    "dense": "#17becf",
    "dense + BM25": "#0b7285",
    "dense, inverted lists": "#99e9f2",
    "hybrid ranker": "#e377c2",
    "hybrid ranker + BM25": "#a61e6d",
    "LLM": "#8c564b",
    "LLM + BM25": "#d4a373",
    # semantic IDs
    "residual k-means": "#3b5bdb",
    "RQ-VAE": "#2b8a3e",
    "random codes": "#adb5bd",
    "category tree": "#5f3dc4",
    # other steps that are timed
    "embedding": "#74c0fc",
    "collisions": "#795548",
    "trie": "#f06595",
    "trie, open": "#495057",
    "mask step": "#ffa8a8",
    "T5, exact scoring": "#7f1d1d",
    "T5": "#d62728",  # the network of TIGER
}
MAIN, SECOND = "#1f77b4", "#2ca02c"
CHANCE: dict[str, Any] = {"color": "black", "linestyle": ":", "linewidth": 1}
EXACT: dict[str, Any] = {"color": "black", "linestyle": "--", "linewidth": 1}


def colour(method: str, colours: Mapping[str, str] = COLOURS) -> str:
    """Colour of a method. A step of a method ("RQ-VAE, an epoch") has the colour of the method.

    Raises
    ------
    ValueError
        If no method of the table is meant.

    Examples
    --------
    >>> colour("RQ-VAE, an epoch") == colour("RQ-VAE")
    True
    """
    methods = [name for name in colours if method == name or method.startswith((f"{name},", f"{name} "))]
    if not methods:
        raise ValueError(f"no colour for {method!r}: add it to COLOURS")
    return colours[max(methods, key=len)]


# --- deployment: chapter 08 ---

POLICIES = ("#264653", "#5c940d", "#e8590c", "#862e9c")  # colours of up to four policies, none of a method


def cold_start_parts(seconds: pd.Series, ours: Collection[str]) -> Figure:
    """A stacked bar of the parts of a cold start: libraries in grey, ours in blue. seconds: by part, in their order."""
    figure, axis = plt.subplots(figsize=(10, 2.6), layout="constrained")
    left, n_ours = 0.0, len(ours)
    greys = iter(np.linspace(0.3, 0.85, len(seconds) - n_ours))
    blues = iter(plt.get_cmap("Blues")(np.linspace(0.95, 0.3, n_ours)))
    for part, width in seconds.items():
        colour_of_part = next(blues) if part in ours else str(next(greys))
        axis.barh(0, width, left=left, color=colour_of_part, edgecolor="w", label=part)
        left += width
    axis.set(yticks=[], xlabel="seconds since the process started", xlim=(0, left))
    figure.legend(loc="outside upper center", ncol=6, frameon=False)
    return figure


def cold_starts(medians: pd.DataFrame, totals: pd.Series) -> Figure:
    """Seconds to the first response, a bar per way to start and a dot per start.

    medians: a row per way, columns "libraries" and "ours". totals: seconds of each start, indexed by way.
    """
    figure, axis = plt.subplots(figsize=(9, 0.8 + 0.42 * len(medians)), layout="constrained")
    axis.barh(medians.index, medians["libraries"], color="0.65", label="Python and libraries")
    axis.barh(medians.index, medians["ours"], left=medians["libraries"], color=MAIN, label="this library")
    axis.plot(totals, totals.index, "k.", markersize=4, label="one start")
    axis.invert_yaxis()
    axis.set(xlabel="seconds to the first response", xlim=0)
    figure.legend(loc="outside upper center", ncol=3, frameon=False)
    return figure


def response_times(milliseconds: Sequence[float]) -> Figure:
    """Cumulative share of responses against milliseconds, with median and 99th percentile."""
    figure, axis = plt.subplots(figsize=(7, 3.2), layout="constrained")
    axis.ecdf(milliseconds, color=MAIN)
    for name, share, height in (("median", 50, 0.05), ("99%", 99, 0.4)):
        value = float(np.percentile(milliseconds, share))
        axis.axvline(value, **CHANCE)
        axis.text(value, height, f" {name}: {value:.1f} ms")
    axis.set(xscale="log", xlabel="milliseconds", ylabel="share of responses within", ylim=(0, 1))
    return figure


def cost_against_traffic(money: pd.DataFrame, cold: pd.DataFrame, rented: float, even: float) -> Figure:
    """Dollars per month and share of cold responses against requests per day, a line per policy.

    money, cold: a row per number of requests per day, a column per policy. rented: dollars per month of a rented
    machine. even: requests per day from which it is cheaper, or infinity.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
    for policy, line_colour in zip(money, POLICIES, strict=False):
        left.plot(money.index, money[policy], color=line_colour, label=policy)
        right.plot(cold.index, 100 * cold[policy], color=line_colour)
    left.axhline(rented, **CHANCE, label="rented by the month")
    if np.isfinite(even):
        left.plot(even, rented, "ko")
        left.annotate(f"{even:,.0f} per day", (even, rented), xytext=(6, -13), textcoords="offset points")
    left.set(xscale="log", xlabel="requests per day", ylabel="dollars per month", ylim=0)
    right.set(xscale="log", xlabel="requests per day", ylabel="cold responses (%)", ylim=(0, 103))
    figure.legend(loc="outside upper center", ncol=3, frameon=False)
    return figure


# --- growth: chapter 09 ---


def costs_by_size(
    points: pd.DataFrame, curves: Mapping[str, tuple[np.ndarray, np.ndarray]], label: str, limit: float | None = None
) -> Figure:
    """Costs by catalogue size on logarithmic axes: dots of this run, circles of published points, a curve per stage.

    points: columns stage, n, value, published. curves: sizes and fitted costs by stage. limit: a dotted line.
    """
    figure, axis = plt.subplots(figsize=(9, 5), layout="constrained")
    for (stage, published), some in points.groupby(["stage", "published"], sort=False):
        marker, fill = ("o", "none") if published else (".", colour(str(stage)))
        axis.plot(some["n"], some["value"], marker, color=colour(str(stage)), markerfacecolor=fill)
    for stage, (sizes, costs) in curves.items():
        axis.plot(sizes, costs, color=colour(stage), lw=1, label=stage)
    if limit is not None:
        axis.axhline(limit, **CHANCE)
    axis.set(xscale="log", yscale="log", xlabel="items", ylabel=label)
    axis.spines[["top", "right"]].set_visible(False)
    if curves:
        axis.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    return figure
