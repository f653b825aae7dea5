"""Add, remove and update the items of a recommender, in memory.

The recommender itself does not change. The new one shares the weights of its models and has another catalogue: semantic
IDs, trie, item table, vectors, and words of BM25. The semantic IDs of items that stay never change; an item that was
added later may get the ID of one that was removed.
"""

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd
import torch

from semid_lib.data.item_ids import ItemIds, UnknownItemError
from semid_lib.decoding.trie import PrefixTrie
from semid_lib.ids import assignment, embed
from semid_lib.ids.quantize import finite_vectors
from semid_lib.ids.semantic_ids import SemanticIDs
from semid_lib.llm.llm_search import LanguageModelSearch
from semid_lib.next_item.timeline import Timeline
from semid_lib.search.hybrid_ranker import HybridRanker, HybridSearch
from semid_lib.search.retrieval import BM25
from semid_lib.serving.saved import Version
from semid_lib.workbench.text import check_list, shown

if TYPE_CHECKING:
    from semid_lib.serving.recommender import Recommender


class Report(NamedTuple):
    """What a change did."""

    change: str  # one line, such as "add 1,000 items"
    n_items: int  # that were added, removed or updated
    at_nearest: int = 0  # new items with exactly the codes that the quantizer gives them
    elsewhere: int = 0  # new items whose prefix was full: they got the nearest prefix with room
    encoded: int = 0  # texts that were encoded
    unknown: int = 0  # ids with sales that the catalogue does not have

    def __str__(self) -> str:
        facts = self.change
        if self.change.startswith("add"):
            facts += f": {self.at_nearest:,} have the nearest ID, {self.elsewhere:,} another prefix as theirs was full"
        facts += f"; {self.encoded:,} texts encoded" if self.encoded else ""
        return facts + (f"; {self.unknown:,} ids are not in the catalogue" if self.unknown else "")


class _Parts(NamedTuple):
    """A catalogue, and the rows of the old one that it begins with."""

    ids: SemanticIDs
    items: pd.DataFrame
    vectors: np.ndarray | None  # (n_items, dim) float32; None if no part of the recommender has any
    kept: np.ndarray  # (n_old,) bool


def add_items(
    recommender: "Recommender", items: pd.DataFrame, vectors: np.ndarray | None = None
) -> "tuple[Recommender, Report]":
    """Add items, which get semantic IDs from the codebooks of the recommender.

    The models can recommend and find the new items at once, by codes and text; they have no training signal until the
    models are trained again. If all IDs with the prefix of an item are in use, it gets the nearest prefix with room.

    Parameters
    ----------
    recommender : Recommender
        With a `tokenizer`.
    items : pandas.DataFrame
        With `item_id` and text: `title`, `brand`, `categories` or `description`.
    vectors : (n, dim) array, optional
        Text vectors by the encoder of the recommender, so that it need not run. By default it encodes the texts, and
        some of those that the catalogue has, to see whether it is the same encoder.

    Raises
    ------
    ValueError
        For an id that exists, an item without text, an encoder that gives known items other vectors, vectors that do
        not fit, a recommender without a tokenizer, and if all prefixes near an item are full.
    """
    old, known = _tokenizer(recommender), recommender.item_ids
    items = _with_ids_like(recommender.items, items)
    ItemIds(items)  # each id once
    if again := [item for item in items["item_id"].tolist() if str(item) in known.row_of]:
        raise ValueError(f"item {shown(again[0])} exists already: update it, or remove it first")
    new, encoded = _vectors(recommender, items, vectors)
    ids, found = assignment.add_items(recommender.ids, new, old.quantizer, keep_sizes=True)
    both = vectors_of(recommender)
    both = None if both is None else np.concatenate([both, new])
    table = pd.concat([recommender.items, items], ignore_index=True)
    parts = _Parts(ids, table, both, np.ones(len(recommender.ids), dtype=bool))
    report = Report(f"add {_items(len(items))}", len(items), found.at_nearest, found.elsewhere, encoded)
    removed = known.removed - set(map(str, items["item_id"]))
    return _rebuilt(recommender, parts, removed, report), report


def remove_items(recommender: "Recommender", item_ids: Sequence[int | str]) -> "tuple[Recommender, Report]":
    """Remove items. Histories may still hold them: they are left out when a history is read.

    Raises
    ------
    ValueError
        For an id that the catalogue does not have, that is given twice, or if nothing that a model was trained on would
        be left.
    """
    item_ids = check_list("item_ids", item_ids, "a list of item ids")
    known = recommender.item_ids
    gone = [item for item in item_ids if str(item) in known.removed]
    if gone:
        raise UnknownItemError(f"item {shown(gone[0])} was removed before")
    rows = known.rows(item_ids)
    kept = np.ones(len(recommender.ids), dtype=bool)
    kept[rows] = False
    if len(rows) - (~kept).sum():
        raise ValueError(f"{len(rows)} ids are those of {(~kept).sum()} items: give each once")
    if not kept.any():
        raise ValueError("no item would be left: expected at least one")
    vectors = vectors_of(recommender)
    parts = _Parts(
        assignment.remove_items(recommender.ids, rows),
        recommender.items[kept].reset_index(drop=True),
        None if vectors is None else vectors[kept],
        kept,
    )
    report = Report(f"remove {_items(len(rows))}", len(rows))
    return _rebuilt(recommender, parts, known.removed | set(map(str, known.at(rows))), report), report


def update_items(
    recommender: "Recommender", items: pd.DataFrame, vectors: np.ndarray | None = None
) -> "tuple[Recommender, Report]":
    """Give items other facts: the columns of `items` replace those of the catalogue, the others stay.

    The semantic ID of an item stays. If its text changes, so do its vector and its words for BM25. Parameters and
    errors are those of `add_items`, but the ids must exist.
    """
    items = _with_ids_like(recommender.items, items)
    ItemIds(items)
    rows = recommender.item_ids.rows(items["item_id"].tolist())
    if len(rows) < len(items):
        item = next(item for item in items["item_id"].tolist() if str(item) in recommender.item_ids.removed)
        raise UnknownItemError(f"item {shown(item)} was removed before: add it")
    changed = recommender.items.iloc[rows].reset_index(drop=True)
    for name in items.columns.drop("item_id"):
        changed[name] = items[name].to_numpy()
    order = np.arange(len(recommender.ids))
    order[rows] = len(order) + np.arange(len(rows))
    table = pd.concat([recommender.items, changed], ignore_index=True).iloc[order].reset_index(drop=True)
    both, encoded = vectors_of(recommender), 0
    if both is not None and len(rows):
        before, after = (embed.item_texts(each) for each in (recommender.items.iloc[rows], table.iloc[rows]))
        other = np.array([one != two for one, two in zip(before, after, strict=True)])
        if other.any():
            given = None if vectors is None else np.asarray(vectors)[other]
            new, encoded = _vectors(recommender, table.iloc[rows[other]], given)
            both = both.copy()
            both[rows[other]] = new
    parts = _Parts(recommender.ids, table, both, np.ones(len(order), dtype=bool))
    report = Report(f"update {_items(len(rows))}", len(rows), encoded=encoded)
    return _rebuilt(recommender, parts, recommender.item_ids.removed, report), report


def follow_sales(
    recommender: "Recommender", item_ids: Sequence[int | str], sales: Sequence[float], smoothing: float = 0.3
) -> "tuple[Recommender, Report]":
    """Let the next-item model follow what sells now, without training: see `Timeline.set_trend`.

    Parameters
    ----------
    recommender : Recommender
    item_ids, sales : sequences
        How often each item was sold in the last weeks; 0 for items that are not listed. Ids that the catalogue does
        not have are counted in the report. Empty ones: forget all sales.
    smoothing : float
        See `baselines.trend`.

    Raises
    ------
    ValueError
        Without a next-item model, for an id that is given twice, and as `Timeline.set_trend` does.
    """
    if recommender.model is None:
        raise ValueError("this recommender has no next-item model, and only that one follows sales")
    row_of = recommender.item_ids.row_of
    if len(item_ids) != len(sales):
        raise ValueError(f"there are {len(item_ids)} ids and {len(sales)} numbers of sales, expected one each")
    if len(set(map(str, item_ids))) < len(item_ids):
        raise ValueError(f"{len(item_ids)} ids are those of fewer items: give each once, with all its sales")
    recent, n_known = np.zeros(len(recommender.ids)), 0
    for item_id, sold in zip(item_ids, sales, strict=True):
        if (row := row_of.get(str(item_id))) is not None:
            recent[row], n_known = sold, n_known + 1
    if len(item_ids) and not n_known:
        raise ValueError(f"none of the {len(item_ids)} items with sales is in the catalogue")
    unknown = len(item_ids) - n_known
    change = f"follow the sales of {_items(n_known)}" if n_known else "forget sales"
    report = Report(change, n_known, unknown=unknown)
    fresh = _copied(recommender, report)
    assert fresh.model is not None
    fresh.model.set_trend(recent if n_known else None, smoothing)
    return fresh, report


def set_new_item_rate(recommender: "Recommender", rate: float) -> "tuple[Recommender, Report]":
    """Let new items together have more or less of the next-item model's probability.

    Parameters
    ----------
    recommender : Recommender
    rate : float
        See `TimelineConfig.new_item_rate`; 0: what their scores say.

    Raises
    ------
    ValueError
        Without a next-item model, and for a rate that is no number of at least 0.
    """
    if recommender.model is None:
        raise ValueError("this recommender has no next-item model, and only that one ranks new items against others")
    rate = rate.item() if isinstance(rate, np.generic) else rate
    config = replace(recommender.model.config, new_item_rate=rate)
    report = Report(f"give new items the rate {rate:g}", len(recommender.ids) - config.n_items)
    fresh = _copied(recommender, report)
    assert fresh.model is not None
    fresh.model.config = config
    return fresh, report


def vectors_of(recommender: "Recommender") -> np.ndarray | None:
    """The text vectors of a recommender's items, (n_items, dim) float32 in row order; None if no model has any."""
    if recommender.model is not None:
        return recommender.model.vectors.cpu().numpy()
    if isinstance(recommender.searcher, HybridSearch):
        ranker = recommender.searcher.scorer
        return ranker.leaf_vectors.cpu()[ranker.trie.leaf_of_item.cpu().long()].numpy()
    return None


# --- parts ---


def _tokenizer(recommender: "Recommender"):
    if recommender.tokenizer is None:
        raise ValueError(
            "this recommender does not know how its items got their semantic IDs: save it with "
            "Recommender(..., tokenizer=ItemTokenizer(...))"
        )
    return recommender.tokenizer


def _items(n: int) -> str:
    return f"{n:,} item{'' if n == 1 else 's'}"


def _with_ids_like(table: pd.DataFrame, items: pd.DataFrame) -> pd.DataFrame:
    """New rows with item ids of the type that the catalogue has."""
    if "item_id" not in items:
        raise ValueError(f"the items have the columns {', '.join(map(str, items.columns))}, expected item_id")
    items, whole = items.reset_index(drop=True), pd.api.types.is_integer_dtype(table["item_id"])
    if whole and len(items) and not pd.api.types.is_integer_dtype(items["item_id"]):
        wrong = next((one for one in items["item_id"] if not isinstance(one, int | np.integer)), None)
        raise ValueError(f"item_id is {shown(wrong)}, expected integers as in the catalogue")
    ids = items["item_id"] if whole else items["item_id"].astype(str)
    return items.assign(item_id=ids.astype(table["item_id"].dtype))


def _vectors(recommender: "Recommender", items: pd.DataFrame, given: np.ndarray | None) -> tuple[np.ndarray, int]:
    """Vectors of length 1 of new or changed items, and how many texts were encoded."""
    tokenizer, known = _tokenizer(recommender), vectors_of(recommender)
    if not len(items):
        return np.empty((0, tokenizer.dim), dtype=np.float32), 0
    if given is None:
        if known is not None:
            tokenizer.check_encoder(recommender.items, known)
        return tokenizer.vectors(items), len(items)
    given = finite_vectors(given)
    if given.shape != (len(items), tokenizer.dim):
        raise ValueError(f"vectors are {given.shape}, expected ({len(items)}, {tokenizer.dim}) as in the catalogue")
    return embed.normalize(given), 0


def _rebuilt(recommender: "Recommender", parts: _Parts, removed: frozenset[str], report: Report) -> "Recommender":
    tokenizer = recommender.tokenizer
    if tokenizer is not None:
        tokenizer = tokenizer._replace(n_fitted=int(parts.kept[: tokenizer.n_fitted].sum()))
    model = None if recommender.model is None else _timeline(recommender.model, parts)
    searcher = None if recommender.searcher is None else _searcher(recommender, parts)
    settings = (recommender.exclude_seen, tokenizer, removed)
    fresh = type(recommender)(model, parts.ids, parts.items, searcher, *settings)
    fresh.provenance, fresh.source, was = recommender.provenance, recommender.source, recommender.version
    if recommender.saved_as is not None:
        fresh.version = Version(was.number + 1, recommender.saved_as, report.change, now())
    elif was.parent is not None:  # a second change before it is saved
        fresh.version = was._replace(change=f"{was.change}; {report.change}", written=now())
    return fresh


def _copied(recommender: "Recommender", report: Report) -> "Recommender":
    """The same catalogue in other objects, of which a setting may be changed."""
    everything = np.ones(len(recommender.ids), dtype=bool)
    parts = _Parts(recommender.ids, recommender.items, vectors_of(recommender), everything)
    return _rebuilt(recommender, parts, recommender.item_ids.removed, report)


def now() -> str:
    """The time in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _timeline(model: Timeline, parts: _Parts) -> Timeline:
    """The model for another catalogue: rows of items that left are taken out, and new ones have no item embedding."""
    assert parts.vectors is not None
    kept = parts.kept[: model.config.n_items]
    if not kept.any():
        raise ValueError("no item that the next-item model was trained on would be left: train another one first")
    weights, device = model.state_dict(), model.query.weight.device
    if not kept.all():
        rows = torch.from_numpy(kept).to(device)
        weights |= {name: weights[name][rows] for name in ("item.weight", "n_trained")}
    trend = weights["trend"][torch.from_numpy(parts.kept).to(device)]
    weights["trend"] = torch.cat([trend, trend.new_zeros(len(parts.ids) - len(trend))])
    weights["ids"] = torch.from_numpy(parts.ids.unique).to(device)
    weights["vectors"] = torch.from_numpy(parts.vectors).to(device)
    config = replace(model.config, n_items=int(kept.sum()))
    with torch.random.fork_rng(devices=[]):  # it draws weights, which are replaced
        fresh = Timeline(config, parts.ids.unique, torch.zeros(()).expand(parts.vectors.shape))
    fresh.load_state_dict(weights, assign=True)
    return fresh.to(device).eval()


def _searcher(recommender: "Recommender", parts: _Parts) -> Any:
    searcher = recommender.searcher
    if isinstance(searcher, HybridSearch):
        assert parts.vectors is not None
        old, unit = searcher.scorer, parts.vectors
        if not np.allclose(np.linalg.norm(unit, axis=1), 1, atol=1e-3):  # a next-item model reads any length
            unit = embed.normalize(unit)
        with torch.random.fork_rng(devices=[]):
            fresh = HybridRanker(old.config, parts.ids.unique, unit)
        fresh.load_state_dict(old.state_dict(), assign=True)
        words = None if searcher.words is None else BM25(embed.item_texts(parts.items))
        found = HybridSearch(fresh.to(old.log_temperature.device), words, searcher.embed, searcher.beam_width)
        found._encoder = searcher._encoder
        return found
    if isinstance(searcher, LanguageModelSearch):
        shape = (searcher.beam_width, searcher.batch_size, searcher.adapter)
        trie = PrefixTrie.build(parts.ids.unique)
        return LanguageModelSearch(searcher.model, searcher.tokenizer, searcher.tokens, trie, *shape)
    raise ValueError(f"a {type(searcher).__name__} cannot take another catalogue: load it with engine='transformers'")
