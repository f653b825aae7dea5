"""What the chapters draw: the catalogue's own text as labels, bars, and items on a map.

A catalogue may hold any text. matplotlib reads `$` as mathematics, leaves labels that begin with `_` out of legends,
joins bars of equal names, and draws boxes for letters that its fonts lack.
"""

from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib import font_manager

from semid_lib.evaluation import metrics
from semid_lib.workbench.text import normal, one_line

# fonts with many scripts, of Linux, macOS and Windows: used where they are installed
_FONTS = (
    *("Noto Sans CJK SC", "Noto Sans CJK JP", "Noto Sans SC", "Noto Sans JP", "Noto Sans KR", "WenQuanYi Zen Hei"),
    *("WenQuanYi Micro Hei", "Droid Sans Fallback", "Arial Unicode MS", "PingFang SC", "Hiragino Sans GB"),
    *("Microsoft YaHei", "Yu Gothic", "Malgun Gothic", "Noto Sans", "Noto Sans Hebrew", "Noto Sans Arabic"),
    *("Noto Sans Devanagari", "Noto Sans Thai", "Nirmala UI", "Leelawadee UI", "Noto Emoji", "Segoe UI Symbol"),
)
_ITEMS_FOR_UMAP = 30  # distinct vectors: it compares each with 15 neighbours
_GREY = "lightgrey"


class Labels(NamedTuple):
    """Texts that matplotlib can draw, and what to print beside them."""

    drawn: list[str]
    note: str  # the texts that no installed font can draw, under the numbers that replace them; "" if there are none


def labels(names: Iterable, width: int = 32, kind: str = "label") -> Labels:
    """Labels for names of any kind: one line each, all different, without mathematics.

    Parameters
    ----------
    names : iterable
        Text as the catalogue has it; "" becomes "(none)".
    width : int
        Longer names lose their middle.
    kind : str
        What a name without glyphs is called, with its number: "brand 3".

    Examples
    --------
    >>> labels(["Running shoes, wide", "Running shoes, blue", "_new", "", "\\uffff"], width=14)[0]
    ['Running … wide', 'Running … blue', ' _new', '(none)', 'label 5']
    >>> labels(["\\uffff"], kind="brand").note.splitlines()[0]
    'No installed font draws every name, so numbers replace these:'
    """
    names = [normal(one_line(name, width)) for name in names]
    glyphs = _glyphs(tuple(plt.rcParams["font.family"]))
    missing = [at for at, name in enumerate(names) if not glyphs.issuperset(map(ord, name))]
    drawn = [name or "(none)" for name in names]
    for at in missing:
        drawn[at] = f"{kind} {at + 1}"
    # a legend leaves out what begins with "_"; matplotlib takes "\$" for "$"
    drawn = [" " * name.startswith("_") + name.replace("$", r"\$") for name in _different(drawn)]
    note = ["No installed font draws every name, so numbers replace these:"] if missing else []
    return Labels(drawn, "\n".join([*note, *(f"{kind} {at + 1}: {names[at]}" for at in missing)]))


def _different(names: Sequence[str]) -> list[str]:
    """Names of which equal ones are numbered."""
    found: dict[str, None] = {}
    for name in names:
        number, label = 1, name
        while label in found:
            number += 1
            label = f"{name} ({number})"
        found[label] = None
    return list(found)


@cache
def _glyphs(families: tuple[str, ...]) -> frozenset[int]:
    """The code points that at least one of the fonts in use can draw."""
    paths = [font_manager.findfont(font_manager.FontProperties(family=[family])) for family in families]
    return frozenset().union(*(font_manager.get_font(path).get_charmap() for path in paths)) - {0}


def use() -> None:
    """Settings of a chapter: fonts for many scripts, where they are installed, and tables that show `$` as it is."""
    installed = {font.name for font in font_manager.fontManager.ttflist}
    plt.rcParams["font.family"] = ["DejaVu Sans", *(name for name in _FONTS if name in installed)]
    pd.set_option("display.html.use_mathjax", False)
    pd.set_option("display.max_colwidth", 100)


def rounded(table: pd.DataFrame, digits: int = 3) -> pd.DataFrame:
    """A table as a page shows it: numbers with so many digits, integers as they are, and nothing where there is none.

    Examples
    --------
    >>> rounded(pd.DataFrame({"of": ["a", "b"], "n": [7, 9], "recall": [0.12345, np.nan]})).to_numpy().tolist()
    [['a', '7', '0.123'], ['b', '9', '']]
    """

    def cell(value) -> str:
        if isinstance(value, str):
            return value
        if pd.isna(value):
            return ""
        return f"{value:,.{digits}f}" if isinstance(value, float) else f"{value:,}"

    return table.astype(object).map(cell)


def interval_table(values: Mapping[str, np.ndarray], name: str) -> pd.DataFrame:
    """Means with 95% intervals: a row per entry, columns mean, low and high.

    values: (n,) of each, of the same n users, queries or prompts. name: what the means are.
    """
    columns = np.column_stack([np.asarray(each, dtype=float) for each in values.values()])
    intervals = metrics.bootstrap_intervals(columns)
    return pd.DataFrame(intervals, index=pd.Index(values, name=name), columns=["mean", "low", "high"])


def bars(axis, counts: pd.Series, kind: str = "label", **options) -> str:
    """Horizontal bars, one per name, the first on top; returns the note of `labels`.

    Parameters
    ----------
    axis : matplotlib.axes.Axes
    counts : Series
        Lengths of the bars; the index holds their names.
    kind : str
        As in `labels`.
    **options
        Passed to `axis.barh`.
    """
    names = labels(counts.index, kind=kind)
    axis.barh(range(len(counts)), counts, **options)
    axis.set_yticks(range(len(counts)), names.drawn)
    axis.invert_yaxis()
    return names.note


def map_2d(vectors: np.ndarray, seed: int = 0) -> tuple[np.ndarray, str]:
    """Places of items on a map, and the name of the method that found them.

    UMAP needs some tens of distinct vectors. Fewer are projected on their two principal components.

    Parameters
    ----------
    vectors : (n, dim) array
    seed : int

    Returns
    -------
    places : (n, 2) array
    method : "UMAP" or "PCA"

    Examples
    --------
    >>> places, method = map_2d(np.array([[0.0, 0.0, 1.0], [0.0, 0.0, 3.0], [0.0, 0.0, 2.0]]))
    >>> np.abs(places).round(2).tolist(), method
    ([[1.0, 0.0], [1.0, 0.0], [0.0, 0.0]], 'PCA')
    """
    vectors = np.asarray(vectors)
    if len(np.unique(vectors, axis=0)) >= _ITEMS_FOR_UMAP:
        from umap import UMAP

        return UMAP(metric="cosine", random_state=seed, n_jobs=1).fit_transform(vectors), "UMAP"
    centred = np.vstack([vectors - vectors.mean(axis=0), np.zeros((2, vectors.shape[1]))])
    left, strength, _ = np.linalg.svd(np.pad(centred, ((0, 0), (0, 2))), full_matrices=False)
    return (left[:-2, :2] * strength[:2]), "PCA"


def draw_map(axis, places: np.ndarray, groups: Sequence, members: Sequence, method: str, kind: str = "label") -> str:
    """Items as dots, those of some groups in colours of their own; returns the note of `labels`.

    Parameters
    ----------
    axis : matplotlib.axes.Axes
    places, method : as `map_2d` returns them
    groups : (n,) sequence
        The group of each item.
    members : sequence
        At most ten groups, in the order of the legend; all other items are grey.
    kind : str
        As in `labels`.
    """
    names, of_items = labels(members, kind=kind), pd.Series(list(groups), dtype=object)
    others = ~of_items.isin(list(members)).to_numpy()
    if others.any():
        axis.scatter(*places[others].T, s=4, color=_GREY, label="other")
    for at, (member, name) in enumerate(zip(members, names.drawn, strict=True)):
        axis.scatter(*places[(of_items == member).to_numpy()].T, s=6, color=plt.get_cmap("tab10")(at), label=name)
    axis.set(xticks=[], yticks=[], xlabel=f"{method} 1 (no unit)", ylabel=f"{method} 2 (no unit)")
    return names.note
