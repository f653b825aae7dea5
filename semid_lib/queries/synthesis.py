"""Synthetic queries: made by one function, filtered with a report, split so that the test asks in new words.

A catalogue without logs has no queries. `synthesize` writes some for each item, by templates (`query_templates`) or
by a language model (`query_llm`); `filter_queries` drops what would teach or measure nothing and says why;
`split_queries` holds out items and phrasings; `save_queries` keeps them, with their vectors, for the chapters after.
"""

import io
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa

from semid_lib.data.table import category_column, text_column
from semid_lib.ids.embed import normalize
from semid_lib.queries import llm_queries, templates
from semid_lib.queries.endpoint import Endpoint
from semid_lib.queries.templates import words
from semid_lib.workbench import workers
from semid_lib.workbench.store import Store

_BLOCK = 1024  # queries scored at once: block x n_items float32 in memory
_TOGETHER = 2048  # items that one worker writes for at a time


def synthesize(
    items: pd.DataFrame,
    n_per_item: int,
    source: str | Endpoint | llm_queries.LocalModel = "templates",
    seed: int = 0,
    cache=None,
    progress: bool = False,
    weights: Mapping[str, int] | None = None,
    run: workers.Run = workers.here,
) -> pd.DataFrame:
    """Queries that each item should answer, at most `n_per_item` of them an item, item after item.

    items: an item table of `data.load`; only `title` is needed. source: "templates", or a language model: a
    `query_llm.Endpoint` or `LocalModel`. cache: a folder in which a model's answers are kept, so that none is paid
    twice; templates need none. The queries by templates depend on the seed and on the item alone (its `item_id`, or
    its row where there is none), and those for a small n are the first of those for a larger one; of a model, the
    seed is only used by `LocalModel`. weights: of the templates' kinds, such as {"need": 2} for twice as many of one
    and {"drop": 0} for none; 1 for the others. run: where they are written, see `distributed`; an endpoint is asked
    from here only.

    Returns `item` (int64, row of the item table), `query` (str, lower case), `kind` (str, its family of phrasings)
    and `source` (str, "templates" or the model's name). Items without text have no queries, items of one word may
    have fewer than n; a model may fail on some: a warning counts them, `query_llm.ask` returns why.

    Raises ValueError for another source, n_per_item below 1, a table without titles, and weights that are unknown,
    negative or for a language model, which chooses itself; errors of an endpoint are in `query_llm.ask`.

    >>> tent = pd.DataFrame({"item_id": [7], "title": ["Two-person camping tent with storm guys"]})
    >>> synthesize(tent, 3)["query"].tolist()
    ['camping tent storm guys', 'camping tent person or similar', 'camping tnet']
    """
    if n_per_item < 1:
        raise ValueError(f"n_per_item is {n_per_item}, expected at least 1")
    if "title" not in items:
        raise ValueError(f"the items have columns {list(items)}, expected a title")
    if source == "templates":
        return _from_templates(items, n_per_item, seed, weights, run)
    if isinstance(source, str):
        raise ValueError(f"source is {source!r}, expected 'templates', an Endpoint or a LocalModel")
    if weights is not None:
        raise ValueError(f"weights are {dict(weights)}, expected None: they are for templates only")
    return llm_queries.ask(items, n_per_item, source, seed=seed, cache=cache, progress=progress, run=run).queries


def _from_templates(items: pd.DataFrame, n_per_item: int, seed: int, weights, run: workers.Run) -> pd.DataFrame:
    streams = items["item_id"] if "item_id" in items else range(len(items))
    columns = {name: text_column(items, name) for name in ("title", "brand", "description")}
    columns |= {"stream": [f"{seed}/{stream}" for stream in streams], "categories": category_column(items)}
    table = pa.table(columns, schema=_FIELDS)
    batches = (table.slice(at, _TOGETHER) for at in range(0, len(table), _TOGETHER))
    answers = run(partial(_template_writer, n_per_item, weights), batches)
    written = (row for answer in answers for row in answer["queries"].to_pylist())
    found = [(row, *query) for row, queries in enumerate(written) for query in queries]
    queries = pd.DataFrame(found, columns=["item", "query", "kind"]).astype({"item": np.int64})
    return queries.astype({"query": str, "kind": str}).assign(source="templates")


_FIELDS = pa.schema(
    {name: pa.string() for name in ("stream", "title", "brand", "description")}
    | {"categories": pa.list_(pa.list_(pa.string()))}
)


def _template_writer(n_per_item: int, weights) -> Callable[[pa.Table], pa.Table]:
    """What a worker does: the fields of items to a list of [query, kind] each."""

    def write(batch: pa.Table) -> pa.Table:
        found = [
            templates.item_queries(row.pop("stream"), n_per_item, **row, weights=weights) for row in batch.to_pylist()
        ]
        return pa.table({"queries": pa.array(found, pa.list_(pa.list_(pa.string())))})

    return write


# --- filters: each says which queries it would drop, as (n,) bool ---


def query_key(query: str) -> str:
    """What two queries have in common that differ in case, punctuation, hyphens, apostrophes or the order of words.

    >>> query_key("Dry hair: L'Oreal") == query_key("loreal dry-hair")
    True
    """
    return " ".join(sorted(words(query.replace("'", "").replace("’", ""))))


def repeated(queries: pd.DataFrame) -> np.ndarray:
    """Queries that an earlier one of the same item repeats, by `query_key`.

    >>> repeated(pd.DataFrame({"item": [0, 0, 1], "query": ["red pen", "Pen, red", "red pen"]}))
    array([False,  True, False])
    """
    keys = pd.DataFrame({"item": queries["item"], "key": queries["query"].map(query_key)})
    return keys.duplicated().to_numpy()


def ambiguous(queries: pd.DataFrame) -> np.ndarray:
    """Queries that are asked for two items or more, by `query_key`: they have no single right answer.

    Shoppers do ask so ("nail polish"), which is why `filter_queries` only counts them unless told to drop them.

    >>> ambiguous(pd.DataFrame({"item": [0, 0, 1], "query": ["red pen", "pen", "Pen, red"]}))
    array([ True, False,  True])
    """
    keys = queries["query"].map(query_key)
    return (queries.groupby(keys.to_numpy())["item"].transform("nunique") > 1).to_numpy(dtype=bool)


def leaks_title(queries: pd.DataFrame, titles: Sequence[str], max_coverage: float = 0.8) -> np.ndarray:
    """Queries that are the title, or nearly: they teach to copy, and as a test they measure nothing.

    A query leaks if it has the words of the title and no others, or if it has at least four words and covers at least
    `max_coverage` of the title's distinct ones. The length matters: two or three words that cover most of a short
    title ("camping tent" for "Camping tent 2") are what a shopper would type, four or more are the title with
    something left out or put around it. titles: of all items, (n_items,).

    >>> asked = pd.DataFrame({"item": [0, 0, 0], "query": ["gel pen", "red gel pens box", "do you have red gel pens"]})
    >>> leaks_title(asked, ["Red gel pens"])
    array([False,  True,  True])
    """
    keys = [frozenset(query_key(title).split()) for title in titles]
    leaks = np.zeros(len(queries), dtype=bool)
    for i, (item, query) in enumerate(zip(queries["item"], queries["query"], strict=True)):
        asked, title = query_key(query).split(), keys[item]
        covered = len(title.intersection(asked))
        is_title = covered == len(title) and title.issuperset(asked)
        leaks[i] = bool(title) and (is_title or (len(asked) >= 4 and covered >= max_coverage * len(title)))
    return leaks


def wrong_length(queries: pd.DataFrame, min_words: int = 2, max_words: int = 12) -> np.ndarray:
    """Queries with fewer or more words; of the 61 real ones for Beauty none has fewer than 2 or more than 10.

    >>> wrong_length(pd.DataFrame({"query": ["pen", "red pen"]}))
    array([ True, False])
    """
    n_words = queries["query"].map(lambda query: len(words(query))).to_numpy(dtype=np.int64)
    return (n_words < min_words) | (n_words > max_words)


def round_trip_ranks(items: Sequence[int], query_vectors: np.ndarray, item_vectors: np.ndarray) -> np.ndarray:
    """The rank, from 1, at which dense retrieval by cosine brings each query's own item back: (n,) int64.

    items: (n,) item rows; query_vectors (n, dim) and item_vectors (n_items, dim) of one model. Ties are decided for
    the item: those with the same text cannot be told apart by any query, so they do not count against each other.

    Raises ValueError if shapes do not fit, a row is out of range or a vector is not finite.

    >>> vectors = np.array([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    >>> round_trip_ranks([2, 0], np.array([[0.1, 1.0], [0.1, 1.0]]), vectors)
    array([1, 3])
    """
    rows = np.asarray(items, dtype=np.int64)
    shapes = (query_vectors.shape, item_vectors.shape)
    if len(query_vectors) != len(rows) or query_vectors.shape[1:] != item_vectors.shape[1:]:
        raise ValueError(f"vectors are {shapes[0]} and {shapes[1]}, expected ({len(rows)}, dim) and (n_items, dim)")
    if rows.size and not 0 <= rows.min() <= rows.max() < len(item_vectors):
        raise ValueError(f"item rows go from {rows.min()} to {rows.max()}, expected 0 to {len(item_vectors) - 1}")
    if not (np.isfinite(query_vectors).all() and np.isfinite(item_vectors).all()):
        raise ValueError("a vector holds a value that is not finite")
    query_vectors, item_vectors = normalize(query_vectors), normalize(item_vectors)
    ranks = np.empty(len(rows), dtype=np.int64)
    for start in range(0, len(rows), _BLOCK):
        block = slice(start, start + _BLOCK)
        scores = query_vectors[block] @ item_vectors.T  # (block, n_items)
        own = np.take_along_axis(scores, rows[block, None], axis=1)
        ranks[block] = 1 + (scores > own + 1e-6).sum(axis=1)  # float32 sums of equal vectors may differ in the last bit
    return ranks


class Filtered(NamedTuple):
    """The queries that stay, with their index labels, and a row per filter that says what it did."""

    kept: pd.DataFrame
    report: pd.DataFrame  # filter, found, dropped, left, examples


def filter_queries(
    queries: pd.DataFrame,
    titles: Sequence[str],
    *,
    min_words: int = 2,
    max_words: int = 12,
    max_coverage: float = 0.8,
    drop_ambiguous: bool = False,
    query_vectors: np.ndarray | None = None,
    item_vectors: np.ndarray | None = None,
    k: int = 100,
) -> Filtered:
    """Drop what would teach or measure nothing: length, repetitions, title leakage, ambiguity, lost on a round trip.

    The filters run in this order, each on what the one before left; `found` counts what fits a filter, `dropped` what
    went for it (ambiguous queries stay unless `drop_ambiguous`), and `examples` shows up to three. titles: of all
    items. With `query_vectors` (n, dim), one a row of `queries`, and `item_vectors` (n_items, dim), a query must bring
    its item back within the first `k` by dense retrieval. Embedding is the dear part, so filter without vectors
    first: what is kept stays kept.

    The index is left alone, so with the one of `synthesize`, `query_vectors[kept.index]` are the vectors of `kept`.
    Raises ValueError if only one kind of vectors is given, if there are not as many as queries, or for k below 1.

    >>> asked = pd.DataFrame({"item": [0, 0, 0], "query": ["gel pen", "Pen, gel", "red gel pens box"]})
    >>> kept, report = filter_queries(asked, ["Red gel pens, box"])
    >>> kept["query"].tolist(), report[["filter", "dropped", "left"]].values.tolist()[1:3]
    (['gel pen'], [['repeated', 1, 2], ['title', 1, 1]])
    """
    if (query_vectors is None) != (item_vectors is None):
        raise ValueError("only one of query_vectors and item_vectors is given, expected both or none")
    if k < 1:
        raise ValueError(f"k is {k}, expected at least 1")
    tests = [
        ("length", lambda left, _: wrong_length(left, min_words, max_words), True),
        ("repeated", lambda left, _: repeated(left), True),
        ("title", lambda left, _: leaks_title(left, titles, max_coverage), True),
        ("ambiguous", lambda left, _: ambiguous(left), drop_ambiguous),
    ]
    if query_vectors is not None:
        if len(query_vectors) != len(queries):
            raise ValueError(f"there are {len(query_vectors)} query vectors, expected {len(queries)}")
        tests.append(
            ("round trip", lambda left, at: round_trip_ranks(left["item"], query_vectors[at], item_vectors) > k, True)
        )
    at, report = np.arange(len(queries)), []
    for name, test, drops in tests:
        left = queries.iloc[at]
        found = test(left, at)
        report.append(
            {
                "filter": name,
                "found": int(found.sum()),
                "dropped": int(found.sum()) if drops else 0,
                "left": int((~found).sum()) if drops else len(at),
                "examples": " | ".join(left["query"][found][:3]),
            }
        )
        at = at[~found] if drops else at
    return Filtered(queries.iloc[at], pd.DataFrame(report))


# --- split ---


class QuerySplit(NamedTuple):
    """Two parts of the queries, with their index labels; no wording is in both."""

    train: pd.DataFrame
    test: pd.DataFrame  # with `cell`, one of `CELLS`
    held_out_kinds: tuple[str, ...]
    n_dropped: int  # queries in neither part: the training part asks in the same words


CELLS = ("seen item, seen kind", "seen item, unseen kind", "unseen item, seen kind", "unseen item, unseen kind")


def split_queries(
    queries: pd.DataFrame, test_share: float = 0.1, seed: int = 0, held_out_kinds: Sequence[str] | None = None
) -> QuerySplit:
    """Hold out items and phrasings, so that the test asks what training did not.

    To the test go all queries of `test_share` of the items, all queries of the `held_out_kinds` (by default drawn:
    `test_share` of the kinds, at least one if there are two), and, of the rest, `test_share` of the queries. Whatever
    of these says the same as a training query by `query_key` is dropped; it is mostly short and common ("nail
    polish"), so the test is a little more specific than what it was drawn from. The rest is `train`.

    `cell` says for each test query whether its item and its kind occur in `train`, so four questions can be answered
    apart: "seen item, seen kind" asks for another wording, "unseen item, unseen kind" for everything at once. An
    unseen item is one without training queries: a model may still know its title. Held-out kinds of training items
    make "seen item, unseen kind" the largest cell; report by cell, or draw from it. Of the kinds of `query_templates`,
    "need" and "question" are new ways of asking when held out; "typo" and "drop" spoil what the others wrote, so with
    them a model has seen something of every other kind but these two.

    Raises ValueError for a share outside (0, 1), an unknown kind, or if nothing is left to train or to test on.

    >>> asked = pd.DataFrame({"item": np.repeat(np.arange(20), 2), "kind": ["need", "words"] * 20})
    >>> asked["query"] = [f"query {i}" for i in range(40)]
    >>> split = split_queries(asked, held_out_kinds=["need"])
    >>> split.train["kind"].unique().tolist(), split.test["cell"].value_counts().to_dict()
    (['words'], {'seen item, unseen kind': 17, 'unseen item, unseen kind': 3, 'unseen item, seen kind': 3})
    """
    if not 0 < test_share < 1:
        raise ValueError(f"test_share is {test_share}, expected a number between 0 and 1")
    rng = np.random.default_rng(seed)
    items, kinds = np.unique(queries["item"]), np.unique(queries["kind"].to_numpy(dtype=str))
    if held_out_kinds is None:
        n_kinds = min(max(1, round(test_share * len(kinds))), len(kinds) - 1)
        held_out_kinds = sorted(rng.permutation(kinds)[: max(0, n_kinds)].tolist())
    if unknown := set(held_out_kinds) - set(kinds):
        raise ValueError(f"held_out_kinds has {sorted(unknown)}, expected some of {kinds.tolist()}")
    held_out_items = rng.permutation(items)[: max(1, round(test_share * len(items)))]
    by_item = queries["item"].isin(held_out_items).to_numpy()
    by_kind = queries["kind"].isin(held_out_kinds).to_numpy()
    in_test = by_item | by_kind
    drawn = in_test | (rng.random(len(queries)) < test_share)
    in_test = in_test if drawn.all() else drawn  # of a few queries chance may take all
    keys = queries["query"].map(query_key)
    known = keys.isin(keys[~in_test]).to_numpy()
    train, test = queries[~in_test], queries[in_test & ~known]
    if train.empty or test.empty:
        raise ValueError(
            f"{len(queries)} queries give {len(train)} to train on and {len(test)} to test on, expected some of both: "
            f"write more for each item, or add items"
        )
    new_item = ~test["item"].isin(train["item"]).to_numpy()
    new_kind = ~test["kind"].isin(train["kind"]).to_numpy()
    test = test.assign(cell=np.array(CELLS, dtype=object)[2 * new_item + new_kind])
    return QuerySplit(train, test, tuple(held_out_kinds), int((in_test & known).sum()))


# --- an artefact ---


class SavedQueries(NamedTuple):
    """What `save_queries` wrote: tables with an index from 0, and a vector for each of their rows."""

    train: pd.DataFrame  # item, query, kind, source, and what else was saved
    test: pd.DataFrame  # the same, and cell
    train_vectors: np.ndarray  # (n_train, dim) float32
    test_vectors: np.ndarray  # (n_test, dim) float32


def save_queries(
    shelf: Store, train: pd.DataFrame, test: pd.DataFrame, train_vectors: np.ndarray, test_vectors: np.ndarray, **facts
) -> Path:
    """Write queries for a later chapter: one artefact, `synthetic_queries`, so that texts and vectors belong together.

    The table of texts is in it as the bytes of a Parquet file, the vectors are float16: half the disk for cosines that
    differ by less than .001. facts: whatever else a reader should know, as JSON.

    Raises ValueError if there are not as many vectors as queries.
    """
    arrays = {}
    for part, table, vectors in (("train", train, train_vectors), ("test", test, test_vectors)):
        if len(table) != len(vectors):
            raise ValueError(f"{part} has {len(table)} queries and {len(vectors)} vectors, expected as many")
        arrays[f"{part}_vectors"] = np.asarray(vectors, np.float16)
    texts = pd.concat([train.assign(part="train"), test.assign(part="test")], ignore_index=True)
    arrays["texts"] = np.frombuffer(texts.to_parquet(index=False), np.uint8)
    return shelf.save("synthetic_queries", arrays, **facts)


def load_queries(shelf: Store) -> SavedQueries:
    """Read what `save_queries` wrote on this shelf.

    Raises FileNotFoundError if nothing was written, ValueError if it was made from other data, or by a version that
    kept the texts in another file.
    """
    saved = shelf.load("synthetic_queries")
    if "texts" not in saved.arrays:
        raise ValueError("the artefact 'synthetic_queries' holds no texts: run the chapter that writes it again")
    texts = pd.read_parquet(io.BytesIO(saved["texts"].tobytes()))
    parts = [texts[texts["part"] == part].drop(columns="part").reset_index(drop=True) for part in ("train", "test")]
    parts[0] = parts[0].drop(columns="cell", errors="ignore")  # that of the test
    return SavedQueries(*parts, *(saved[f"{part}_vectors"].astype(np.float32) for part in ("train", "test")))
