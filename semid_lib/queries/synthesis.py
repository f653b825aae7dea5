"""Synthetic queries for a catalogue, from templates, and the artefact that keeps queries."""

import io
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa

from semid_lib.data.table import category_column, text_column
from semid_lib.queries import templates
from semid_lib.workbench import workers
from semid_lib.workbench.store import Store
from semid_lib.workbench.text import shown

_TOGETHER = 2048  # items per batch of a worker


def synthesize(
    items: pd.DataFrame,
    n_per_item: int,
    seed: int = 0,
    weights: Mapping[str, int] | None = None,
    run: workers.Run = workers.here,
) -> pd.DataFrame:
    """Write at most `n_per_item` queries per item that this item should answer, from templates.

    Queries depend only on the seed and the item (its `item_id`, or its row if there is none); those for a small n are
    the first of those for a larger one. Items without text have no queries, items of one word may have fewer than n.

    Parameters
    ----------
    items : DataFrame
        An item table of `dataset.load`; only `title` is required.
    weights : mapping, optional
        Turns of the kinds, such as {"need": 2, "drop": 0}; default 1.
    run : workers.Run
        Where the queries are written.

    Returns
    -------
    DataFrame
        `item` (int64, row of the item table), `query` (str, lower case), `kind` (str, family of phrasings) and `source`
        (str, "templates").

    Raises
    ------
    ValueError
        For n_per_item < 1, a table without titles, or wrong weights.

    Examples
    --------
    >>> tent = pd.DataFrame({"item_id": [7], "title": ["Two-person camping tent with storm guys"]})
    >>> synthesize(tent, 3)["query"].tolist()
    ['camping tent storm guys', 'camping tent person or similar', 'camping tnet']
    """
    if n_per_item < 1:
        raise ValueError(f"n_per_item is {n_per_item}, expected at least 1")
    if not isinstance(seed, int | np.integer):  # a source, in earlier versions
        raise ValueError(f"seed is {shown(seed)}, expected a whole number: llm_queries.ask asks language models")
    if "title" not in items:
        raise ValueError(f"the items have columns {list(items)}, expected a title")
    streams = items["item_id"] if "item_id" in items else range(len(items))
    columns: dict[str, list] = {name: text_column(items, name) for name in ("title", "brand", "description")}
    columns |= {"stream": [f"{seed}/{stream}" for stream in streams], "categories": category_column(items)}
    table = pa.table(columns)
    batches = (table.slice(at, _TOGETHER) for at in range(0, len(table), _TOGETHER))
    answers = run(partial(_writer, n_per_item, weights), batches)
    written = (queries for answer in answers for queries in answer["queries"].to_pylist())
    found = [(row, *query) for row, queries in enumerate(written) for query in queries]
    types = {"item": np.int64, "query": str, "kind": str}
    return pd.DataFrame(found, columns=list(types)).astype(types).assign(source="templates")


def _writer(n_per_item: int, weights: Mapping[str, int] | None) -> Callable[[pa.Table], pa.Table]:
    """The work of one worker: fields of items to a list of [query, kind] each."""

    def write(batch: pa.Table) -> pa.Table:
        rows = batch.to_pylist()
        return pa.table({"queries": [templates.item_queries(n=n_per_item, weights=weights, **row) for row in rows]})

    return write


class SavedQueries(NamedTuple):
    """Queries of `save_queries`: tables with an index from 0, and one vector per row."""

    train: pd.DataFrame  # item, query, kind, source, and other saved columns
    test: pd.DataFrame  # the same, and cell
    train_vectors: np.ndarray  # (n_train, dim) float32
    test_vectors: np.ndarray  # (n_test, dim) float32


def save_queries(
    store: Store, train: pd.DataFrame, test: pd.DataFrame, train_vectors: np.ndarray, test_vectors: np.ndarray, **facts
) -> Path:
    """Save queries and their vectors as one artefact, `synthetic_queries`, so that they always fit each other.

    Texts are saved as the bytes of a Parquet file, vectors as float16 (cosines change by less than .001).

    Parameters
    ----------
    facts
        Other facts for a reader, as JSON.

    Raises
    ------
    ValueError
        If there are not as many vectors as queries.
    """
    arrays = {}
    for part, table, vectors in (("train", train, train_vectors), ("test", test, test_vectors)):
        if len(table) != len(vectors):
            raise ValueError(f"{part} has {len(table)} queries and {len(vectors)} vectors, expected as many")
        arrays[f"{part}_vectors"] = np.asarray(vectors, np.float16)
    texts = pd.concat([train.assign(part="train"), test.assign(part="test")], ignore_index=True)
    arrays["texts"] = np.frombuffer(texts.to_parquet(index=False), np.uint8)
    return store.save("synthetic_queries", arrays, **facts)


def load_queries(store: Store) -> SavedQueries:
    """Load the queries of `save_queries`.

    Raises
    ------
    FileNotFoundError
        If there are none.
    ValueError
        If they were made from other data.
    """
    saved = store.load("synthetic_queries")
    texts = pd.read_parquet(io.BytesIO(saved["texts"].tobytes()))
    train, test = (
        texts[texts["part"] == part].drop(columns="part").reset_index(drop=True) for part in ("train", "test")
    )
    train_vectors, test_vectors = (saved[f"{part}_vectors"].astype(np.float32) for part in ("train", "test"))
    # only the test has cells
    return SavedQueries(train.drop(columns="cell", errors="ignore"), test, train_vectors, test_vectors)
