"""Recommenders with a search model, made once: tests copy what they change."""

import numpy as np
import pandas as pd
import pytest
import torch

from semid_lib.decoding.trie import PrefixTrie
from semid_lib.ids.embed import item_texts
from semid_lib.llm.base_models import small_model
from semid_lib.llm.llm_search import LanguageModelSearch
from semid_lib.llm.vocabulary import extend_vocabulary
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
