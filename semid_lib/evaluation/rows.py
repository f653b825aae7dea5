"""How an evaluation is written down: result rows, one a metric, merged over seeds; figures on a page; files of TREC.

`write_run` and `write_qrels` write lists, and what is relevant, for trec_eval, ir_measures, PyTerrier and ranx.
"""

import re
import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from semid_lib.workbench.atomic import fresh_file

_METRICS = {"recall": "Recall", "ndcg": "NDCG", "mrr": "MRR", "validity_rate": "validity rate"}
# raw keys of results, as a page shows them
LABELS = {
    "popularity": "popularity",
    "item_knn": "item-kNN",
    "item_knn_file_order": "item-kNN + file order",
    "user_knn": "user-kNN",
    "sequential_rules": "sequential rules",
    "ease": "EASE",
    "slist": "SLIST",
    "transition_graph": "transition graph",
    "text_only": "text only",
    "sasrec": "SASRec",
    "tiger": "TIGER",
    "tiger_long": "TIGER, trained for longer",
    "timeline": "timeline",
    "timeline_item_knn": "timeline + item-kNN",
    "timeline_slist": "timeline + SLIST",
    "code_head": "code head",
    "code_head_alone": "code head, trained alone",
    "code_head_item_knn": "code head x item-kNN",
    "item_head": "item head",
    "item_head_alone": "item head, trained alone",
    "item_head_item_knn": "item head x item-kNN",
    "item_head_slist": "item head x SLIST",
}
# as a table shows them, which has room for more words
NAMES = LABELS | {
    "timeline": "timeline model",
    # chapter 13
    "recent_popularity": "popularity, recent",
    "item_knn_fresh": "item-kNN, fresh counts",
    "slist_fresh": "SLIST, fresh counts",
    "timeline_scores": "timeline, new items by scores",
    "timeline_room": "timeline, room for new items",
    "timeline_slist_known": "timeline + SLIST, known items only",
    "timeline_slist_room": "timeline + SLIST, room for new items",
    "timeline_sales": "timeline, recent sales",
    "timeline_slist_sales": "timeline + SLIST, recent sales",
    "timeline_slist_late": "timeline + SLIST, trained until the test",
    # search
    "bm25": "BM25",
    "llm": "LLM",
    "hybrid": "hybrid ranker",
    "hybrid_untrained": "hybrid ranker, untrained",
    # sets of queries
    "own": "the data set's own queries",
    "synthetic": "synthetic queries",
}
NAMES |= {
    f"synthetic_{item}_item_{kind}_kind": f"synthetic queries, {item} item, {kind} kind"
    for item in ("seen", "unseen")
    for kind in ("seen", "unseen")
}
NAMES |= {f"{name}_and_bm25": f"{NAMES.get(name, name)} + BM25" for name in ("dense", "hybrid", "llm")}
LATER_DAY = "later_day_"  # begins the names of metrics of the users whose target lies on a later day than their history


def metric_name(metric: str) -> str:
    """The name of a metric on a page.

    >>> [metric_name(metric) for metric in ("recall@10", "later_day_ndcg@10", "mrr", "seen items")]
    ['Recall@10', 'NDCG@10, later day', 'MRR', 'seen items']
    """
    name, at, k = metric.removeprefix(LATER_DAY).partition("@")
    return _METRICS.get(name, name) + at + k + ", later day" * metric.startswith(LATER_DAY)


def in_brackets(spread: float) -> str:
    """A standard deviation over seeds, to be appended to `shown`.

    >>> in_brackets(0.00214)
    ' (.0021)'
    """
    return f" ({spread:.4f})".replace("(0.", "(.")


def shown(mean: float, low: float, high: float) -> str:
    """A mean with the half-width of its interval, joined by spaces at which no line breaks.

    >>> shown(0.0714, 0.0680, 0.0748) == ".0714\\xa0±\\xa0.0034"
    True
    >>> shown(-0.5, -0.6, -0.4).split("\\xa0")[0]
    '−.5000'
    """
    numbers = (f"{value:.4f}".replace("-", "−") for value in (mean, (high - low) / 2))
    return "\N{NO-BREAK SPACE}±\N{NO-BREAK SPACE}".join(re.sub(r"^(−?)0\.", r"\1.", number) for number in numbers)


def cell(row: Mapping[str, Any]) -> str:
    """A row with an interval as a cell of a table, with its spread over seeds if it has one.

    >>> cell({"value": 0.5, "ci95": [0.4, 0.6], "spread": 0.0123}).replace("\xa0", " ")
    '.5000 ± .1000 (.0123)'
    """
    return shown(row["value"], *row["ci95"]) + (in_brackets(row["spread"]) if "spread" in row else "")


def markdown(lines: dict[str, dict[str, str]], headings: Sequence[str] = ()) -> str:
    """Lines by name, with their cells by heading; the headings are all there are, unless named.

    >>> print(markdown({"item-kNN": {"MRR": ".5"}}))
    | | MRR |
    | --- | ---: |
    | item-kNN | .5 |
    """
    headings = headings or list(dict.fromkeys(heading for line in lines.values() for heading in line))
    rows = ["| | " + " | ".join(headings) + " |", "| --- |" + " ---: |" * len(headings)]
    for name, line in lines.items():
        rows.append(f"| {name} | " + " | ".join(line.get(heading, "") for heading in headings) + " |")
    return "\n".join(rows)


def number(value: float) -> str:
    """Whole and large numbers with commas, others to three digits that count.

    >>> [number(value) for value in (1_000_000, 4137.12, 0.12345, 25.678, 1.5, 0, -0.5)]
    ['1,000,000', '4,137', '.123', '25.7', '1.5', '0', '−.5']
    """
    is_whole = abs(value) >= 1000 or float(value).is_integer()
    digits = f"{abs(value):,.0f}" if is_whole else f"{abs(value):.3g}".removeprefix("0")
    return "−" + digits if value < 0 else digits


def metric_rows(key: str, measured, **facts) -> list[dict[str, Any]]:
    """Rows from a table of `evaluate.figures` (columns mean, low, high): one per metric, with its interval.

    >>> import pandas as pd
    >>> table = pd.DataFrame({"mean": [0.5], "low": [0.4], "high": [0.6]}, index=["mrr"])
    >>> metric_rows("next_item/popularity", table, n=100)
    [{'key': 'next_item/popularity/mrr', 'value': 0.5, 'ci95': [0.4, 0.6], 'n': 100}]
    """
    return [
        {"key": f"{key}/{metric}", "value": round(mean, 6), "ci95": [round(low, 6), round(high, 6)], **facts}
        for metric, (mean, low, high) in zip(measured.index, measured.to_numpy().tolist(), strict=True)
    ]


def table_rows(topic: str, lines: Mapping[Any, Mapping[str, float]]) -> list[dict[str, Any]]:
    """Rows of numbers without intervals from a table, line by line.

    >>> table_rows("beam", {50: {"ms a user": 0.93217}})
    [{'key': 'beam/50/ms_a_user', 'value': 0.9322}]
    """
    return [
        {"key": f"{topic}/{name}/{figure.replace(' ', '_')}", "value": round(float(value), 4)}
        for name, line in lines.items()
        for figure, value in line.items()
    ]


def over_seeds(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of several seeds to one row a key: the mean over seeds as `value`, and their `spread` and `seeds`.

    `spread` is the sample standard deviation over seeds, for how far another seed may lie away. The ends of `ci95` are
    means over seeds: an interval over users for one trained model, which averaging models does not narrow. `seconds`
    are those of a seed; other facts stay if all seeds share them.

    Raises ValueError for a key with fewer than two rows, or with a seed twice or not named.

    >>> rows = [{"key": "next_item/mine/mrr", "value": v, "seed": s, "n": 9} for s, v in enumerate((0.1, 0.2, 0.3))]
    >>> over_seeds(rows)
    [{'key': 'next_item/mine/mrr', 'n': 9, 'value': 0.2, 'spread': 0.1, 'seeds': [0, 1, 2]}]
    """
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(row["key"], []).append(row)
    return [_over_seeds(key, group) for key, group in groups.items()]


def _over_seeds(key: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
    seeds = [row.get("seed") for row in rows]
    if len(rows) < 2 or None in seeds or len(set(seeds)) < len(seeds):
        raise ValueError(f"rows of {key!r} have seeds {seeds}, expected two or more different ones")
    values = [row["value"] for row in rows]
    shared = {name: fact for name, fact in rows[0].items() if all(row.get(name) == fact for row in rows)}
    merged = {**shared, "value": round(statistics.fmean(values), 6), "spread": round(statistics.stdev(values), 6)}
    merged["seeds"] = seeds
    if all("ci95" in row for row in rows):
        merged["ci95"] = [round(statistics.fmean(ends), 6) for ends in zip(*(row["ci95"] for row in rows), strict=True)]
    if all("seconds" in row for row in rows):
        merged["seconds"] = round(statistics.fmean(row["seconds"] for row in rows), 1)
    return merged


# --- files of TREC ---


def write_run(
    path: str | Path, recommended: np.ndarray, item_ids: Iterable, query_ids: Iterable | None = None, tag: str = "semid"
) -> None:
    """Write lists as a run of TREC, a line for each item: `query Q0 item rank score tag`.

    A list has an order only, so the score of rank r in a list of k places is k + 1 - r. An empty list has no line;
    trec_eval counts it only if it is asked to (`-c`), and ranx with `make_comparable=True`.

    Parameters
    ----------
    path : str or Path
        Replaced atomically.
    recommended : (n, k) integers
        Item rows, best first, -1 where a list is shorter, such as `evaluation.recommended`.
    item_ids : (n_items,) iterable of int or str
        Such as `shop.item_ids.values`.
    query_ids : (n,) iterable of int or str, optional
        Such as `split.test.histories.user_ids`; by default 0, 1, ...
    tag : str
        Name of the method.

    Raises
    ------
    ValueError
        For an id that is empty, occurs twice or has white space, which separates the fields; for an item row outside
        the catalogue; for an item twice in a list; and for one after an empty place, which other tools would move up.

    Examples
    --------
    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     write_run(f"{folder}/run.txt", np.array([[2, 0], [1, -1]]), ["A-1", "A-2", "A-3"], ["ann", "bob"])
    ...     print(Path(f"{folder}/run.txt").read_text(), end="")
    ann Q0 A-3 1 2 semid
    ann Q0 A-1 2 1 semid
    bob Q0 A-2 1 2 semid
    """
    recommended = np.asarray(recommended)
    if recommended.ndim != 2 or ((recommended[:, :-1] < 0) & (recommended[:, 1:] >= 0)).any():
        raise ValueError(f"the lists are {recommended.shape}, expected (n, k) with no item after an empty place (-1)")
    for at, line in enumerate(np.sort(recommended, axis=1)):
        if ((line[1:] == line[:-1]) & (line[1:] >= 0)).any():
            raise ValueError(f"list {at} has an item twice, expected different ones")
    [tag], k = _names("tag", [tag]), recommended.shape[1]
    filled = [line[line >= 0] for line in recommended]
    _write(path, filled, item_ids, query_ids, lambda item, rank: f"Q0 {item} {rank} {k + 1 - rank} {tag}")


def write_qrels(path: str | Path, relevant: Iterable, item_ids: Iterable, query_ids: Iterable | None = None) -> None:
    """Write what is relevant as qrels of TREC, a line for each item: `query 0 item 1`.

    Parameters
    ----------
    path, item_ids, query_ids
        As of `write_run`.
    relevant : iterable
        For each query an array of item rows, or one row: `split.test.targets` or `shop.queries["item_rows"]`.

    Raises
    ------
    ValueError
        For ids and item rows, as `write_run`.

    Examples
    --------
    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     write_qrels(f"{folder}/qrels.txt", [2, [0, 1]], ["A-1", "A-2", "A-3"])
    ...     print(Path(f"{folder}/qrels.txt").read_text(), end="")
    0 0 A-3 1
    1 0 A-1 1
    1 0 A-2 1
    """
    _write(path, [np.unique(rows) for rows in relevant], item_ids, query_ids, lambda item, _: f"0 {item} 1")


def _write(
    path: str | Path,
    lists: list[np.ndarray],
    item_ids: Iterable,
    query_ids: Iterable | None,
    fields: Callable[[str, int], str],
) -> None:
    """Write a line for each item of some lists, of fields(item id, rank), after the id of the query."""
    items = _names("item id", item_ids)
    queries = _names("query id", range(len(lists)) if query_ids is None else query_ids)
    if len(queries) != len(lists):
        raise ValueError(f"{len(queries)} query ids for {len(lists)} lists, expected one each")
    rows = np.concatenate([np.empty(0, np.int64), *lists])
    if rows.size and not 0 <= rows.min() <= rows.max() < len(items):
        raise ValueError(f"item rows are {rows.min()} to {rows.max()}, expected 0 to {len(items) - 1}")
    with fresh_file(path) as partial, partial.open("w", encoding="utf-8", newline="\n") as file:
        for query, of_query in zip(queries, lists, strict=True):
            file.writelines(f"{query} {fields(items[row], rank)}\n" for rank, row in enumerate(of_query.tolist(), 1))


def _names(kind: str, ids: Iterable) -> list[str]:
    """Ids as text; ValueError for one that a file of TREC cannot hold, and for one that occurs twice."""
    names = [str(each) for each in ids]
    for name in names:
        if name.split() != [name]:
            raise ValueError(f"{kind} {name!r}, expected text without white space, which separates fields: give others")
    if len(names) > len(set(names)):
        again = Counter(names).most_common(1)[0][0]
        raise ValueError(f"{kind} {again!r} occurs twice, expected each once")
    return names
