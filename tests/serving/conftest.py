"""Recommenders with a search model, made once: tests copy what they change."""

import hashlib
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pandas as pd
import pytest
import torch

from semid_lib.decoding.trie import PrefixTrie
from semid_lib.ids import assignment, quantize
from semid_lib.ids import embed as encoders
from semid_lib.ids.embed import item_texts
from semid_lib.ids.tokenizer import ItemTokenizer
from semid_lib.llm.base_models import small_model
from semid_lib.llm.llm_search import LanguageModelSearch
from semid_lib.llm.vocabulary import extend_vocabulary
from semid_lib.next_item.timeline import Timeline, TimelineConfig
from semid_lib.search.hybrid_ranker import HybridRanker, HybridRankerConfig, HybridSearch
from semid_lib.search.retrieval import BM25
from semid_lib.serving.recommender import Recommender


@pytest.fixture
def recommender(shop, new_timeline) -> Recommender:
    return Recommender(new_timeline(), shop.ids, shop.items)


@pytest.fixture
def histories(shop) -> list[list[int]]:
    """Eight histories of item ids."""
    item_id = shop.items["item_id"].to_numpy()
    return [item_id[history].tolist() for history in shop.histories[:8]]


@pytest.fixture(scope="session")
def searchable(shop) -> pd.DataFrame:
    """The item table with titles to search in."""
    things = [f"{colour} {thing}" for colour in ("red", "blue") for thing in ("tent", "lamp", "soap", "pen", "cup")]
    paths = [[["Shop", "Garden"], ["Gifts"]], [], [["Shop", "Bath"]], [["Gifts"]]] * 10
    return shop.items.assign(title=things * 4, categories=paths)


@pytest.fixture(scope="session")
def queries() -> list[str]:
    return ["red tent", "a lamp for the garden", "soap"]


@pytest.fixture(scope="session")
def query_vectors(shop, queries) -> np.ndarray:
    return np.random.default_rng(3).normal(size=(len(queries), shop.vectors.shape[1])).astype(np.float32)


@pytest.fixture(scope="session")
def searchers(shop, searchable) -> dict:
    """A searcher of each kind."""
    torch.manual_seed(0)
    texts, trie = item_texts(searchable), PrefixTrie.build(shop.ids.unique)
    config = HybridRankerConfig(shop.ids.sizes, shop.vectors.shape[1], dim=16, n_buckets=64, word_weight=0.2)
    hybrid = HybridSearch(HybridRanker(config, shop.ids.unique, shop.vectors), BM25(texts))
    model, tokenizer = small_model(texts, 300, hidden_size=16, n_layers=1, n_heads=2)
    tokens = extend_vocabulary(model, tokenizer, shop.ids, texts)
    return {"hybrid": hybrid, "language": LanguageModelSearch(model.eval(), tokenizer, tokens, trie, beam_width=20)}


# --- a catalogue that changes ---


def vectors_of_texts(texts, model=encoders.DEFAULT_MODEL, **_) -> np.ndarray:
    """An encoder without a model: eight numbers from the hash of model and text."""
    digests = (hashlib.sha256(f"{model} {text}".encode()).digest()[:8] for text in texts)
    return np.array([np.frombuffer(digest, np.uint8) for digest in digests], np.float32) - 127.5


def things(first: int, n: int) -> pd.DataFrame:
    """Items with numbers from `first` on."""
    numbers = range(first, first + n)
    return pd.DataFrame({"item_id": [10 * one for one in numbers], "title": [f"thing {one}" for one in numbers]})


class LivingShop(NamedTuple):
    """30 items; 3 levels of 4 codes, so there are 64 semantic IDs, and no disambiguation code."""

    recommender: Recommender  # answers histories and queries
    items: pd.DataFrame


@pytest.fixture
def living(monkeypatch) -> LivingShop:
    monkeypatch.setattr(encoders, "embed", vectors_of_texts)
    return make_living()


@pytest.fixture(scope="module")
def living_once() -> Iterator[Recommender]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encoders, "embed", vectors_of_texts)
        yield make_living().recommender


def make_living() -> LivingShop:
    torch.manual_seed(0)
    items = things(0, 30)
    vectors = encoders.normalize(vectors_of_texts(item_texts(items)))
    kmeans = quantize.fit_residual_kmeans(vectors, 3, 4)
    ids, _ = assignment.resolve_collisions(kmeans.codes, vectors, kmeans)
    ids, _ = assignment.add_items(assignment.remove_items(ids, np.arange(30)), vectors, kmeans, keep_sizes=True)
    shape = TimelineConfig(ids.sizes, text_dim=8, n_items=30, dim=8, n_layers=1, n_heads=1, max_length=6)
    model = Timeline(shape, ids.unique, vectors).eval()
    model.n_trained += torch.arange(30)
    ranker = HybridRanker(HybridRankerConfig(ids.sizes, 8, dim=8, n_buckets=16, word_weight=0.1), ids.unique, vectors)
    search = HybridSearch(ranker, BM25(item_texts(items)))
    return LivingShop(Recommender(model, ids, items, search, tokenizer=ItemTokenizer(kmeans, 30)), items)
