"""Figures of the chapters, and the colours of the book: one per method, in one table.

Conventions for every function that draws a figure:

- it takes the arrays and tables that it draws, not models or shops, and returns the Figure; the chapter's cell calls it
  and then `plt.show()`, and has the alternative text in its metadata;
- colours come from `colour`; a figure without methods uses `MAIN`, and `SECOND` for one comparison;
- "by chance" is dotted black (`CHANCE`), an exact or ideal value dashed black (`EXACT`);
- axes have labels with units, legends no frame, and figures `layout="constrained"`.
"""

from collections.abc import Mapping

# one per method, all different; a method keeps its colour wherever it occurs
COLOURS = {
    # next-item models
    "popularity": "#7f7f7f",
    "item-kNN": "#ff7f0e",
    "SASRec": "#9467bd",
    "TIGER": "#d62728",
    "timeline": "#1f77b4",
    "timeline + item-kNN": "#2ca02c",
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
CHANCE = {"color": "black", "linestyle": ":", "linewidth": 1}
EXACT = {"color": "black", "linestyle": "--", "linewidth": 1}

# raw keys of results, as a page shows them
LABELS = {
    "popularity": "popularity",
    "item_knn": "item-kNN",
    "sasrec": "SASRec",
    "tiger": "TIGER",
    "timeline": "timeline",
    "timeline_item_knn": "timeline + item-kNN",
}


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
