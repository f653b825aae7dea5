"""Search by a hybrid ranker under a prefix trie."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from semid_lib.ids.semantic_ids import SemanticIDs
from semid_lib.search import retrieval
from semid_lib.search.generative import LightSearch
from semid_lib.search.hybrid_ranker import HybridRanker, HybridRankerConfig

N_ITEMS, DIM = 30, 8
THINGS = ("tent", "lamp", "soap", "pen", "cup")
TEXTS = [f"{colour} {thing}" for colour in ("red", "blue", "green") for thing in THINGS] * 2
QUERIES = ["red tent", "a lamp", "blue pen for school", "soap", "green"]


@pytest.fixture(scope="module")
def ids():
    rng = np.random.default_rng(0)
    codes = rng.permutation(np.unique(rng.integers(4, size=(90, 3)), axis=0))[:N_ITEMS]
    return SemanticIDs.from_codes(codes, codebook_size=4)


@pytest.fixture(scope="module")
def vectors():
    vectors = np.random.default_rng(1).normal(size=(N_ITEMS, DIM)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.fixture(scope="module")
def query_vectors():
    return np.random.default_rng(2).normal(size=(len(QUERIES), DIM)).astype(np.float32)


@pytest.fixture(scope="module")
def light(ids, vectors):
    torch.manual_seed(0)
    return HybridRanker(HybridRankerConfig(ids.sizes, DIM, dim=16, n_buckets=64), ids.unique, vectors)


@pytest.fixture(scope="module")
def with_words(light, ids, vectors):
    return HybridRanker(replace(light.config, word_weight=0.3), ids.unique, vectors)


def test_an_untrained_model_ranks_as_dense_retrieval_and_bm25_together(light, with_words, vectors, query_vectors):
    dense, words = retrieval.Dense(vectors), retrieval.BM25(TEXTS)
    expected = dense.search(QUERIES, N_ITEMS, query_vectors=query_vectors)
    found = LightSearch(light).search(QUERIES, N_ITEMS, query_vectors=query_vectors)
    np.testing.assert_array_equal(found.items, expected.items)
    assert (np.diff(found.scores) <= 0).all()
    found = LightSearch(with_words, words).search(QUERIES, N_ITEMS, query_vectors=query_vectors)
    together = dense.scores(QUERIES, query_vectors) + 0.3 * words.scores(QUERIES)
    np.testing.assert_array_equal(found.items, np.argsort(-together, axis=1, kind="stable"))


def test_words_that_do_not_fit_are_refused(light, with_words):
    with pytest.raises(ValueError, match=r"word_weight 0\.0 and 30 items and comes with word scores of 30"):
        LightSearch(light, retrieval.BM25(TEXTS))
    with pytest.raises(ValueError, match="comes without word scores"):
        LightSearch(with_words)
    with pytest.raises(ValueError, match="30 items and comes with word scores of 2"):
        LightSearch(with_words, retrieval.BM25(TEXTS[:2]))


def test_batches_for_training_have_every_query_once(with_words, query_vectors):
    words = retrieval.BM25(TEXTS)
    loader = LightSearch(with_words, words).training_batches(QUERIES, query_vectors, np.arange(5) + 10, batch_size=2)
    seen = []
    for asked, items in loader:
        rows = items.numpy() - 10
        np.testing.assert_array_equal(asked.matches, words.scores([QUERIES[row] for row in rows]))
        lengths = np.linalg.norm(query_vectors[rows], axis=1, keepdims=True)
        np.testing.assert_allclose(asked.vectors, query_vectors[rows] / lengths, atol=1e-6)
        seen += rows.tolist()
    assert sorted(seen) == list(range(5)) != seen


def test_missing_vectors_are_computed_batch_by_batch(light, query_vectors, tmp_path):
    asked = []

    def embed(texts):
        asked.append(list(texts))
        return query_vectors[[QUERIES.index(text) for text in texts]]

    search = LightSearch(light, embed=embed, batch_size=2)
    found = search.search(QUERIES, 5)
    assert asked == [QUERIES[:2], QUERIES[2:4], QUERIES[4:]]
    expected = LightSearch(light).search(QUERIES, 5, query_vectors=query_vectors)
    np.testing.assert_array_equal(found.items, expected.items)
    with pytest.raises(ValueError, match="embed is a function, which cannot be saved"):
        search.save(tmp_path)


def test_only_allowed_items_are_returned(light, query_vectors):
    search = LightSearch(light, batch_size=2)
    one = np.arange(N_ITEMS) % 3 == 0
    each = np.random.default_rng(3).random((len(QUERIES), N_ITEMS)) < 0.3
    for allowed in (one, each):
        found = search.search(QUERIES, N_ITEMS, allowed, query_vectors).items
        for row, mask in zip(found, np.broadcast_to(allowed, each.shape), strict=True):
            assert set(row[row >= 0]) == set(np.flatnonzero(mask))
    narrow = LightSearch(light, beam_width=3).search(QUERIES, 20, query_vectors=query_vectors)
    assert (narrow.items >= 0).all()  # the beam is as wide as the list


def test_scores_for_fusion(light, query_vectors):
    search = LightSearch(light, beam_width=10)
    found = search.search(QUERIES, 10, query_vectors=query_vectors)
    scores = search.scores(QUERIES, query_vectors)
    assert scores.shape == (len(QUERIES), N_ITEMS)
    np.testing.assert_allclose(np.take_along_axis(scores, found.items, axis=1), found.scores, rtol=1e-6)
    np.testing.assert_array_equal(scores.min(axis=1), found.scores[:, -1])
    fused = retrieval.FusedScores(search, retrieval.BM25(TEXTS)).search(QUERIES, 5, query_vectors=query_vectors)
    assert (fused.items >= 0).all()


@pytest.mark.parametrize(
    ("queries", "k", "allowed", "message"),
    [
        (["a", " "], 5, None, "query 1 is ' ', expected some text"),
        ("soap", 5, None, "queries are 'soap', expected a list"),  # not four letters
        (["a"], 0, None, "k must be a whole number of at least 1, got 0"),
        (["a"], 5, np.ones(3, dtype=bool), r"allowed is bool \(3,\), expected bool \(30,\)"),
    ],
)
def test_wrong_queries_are_refused(light, query_vectors, queries, k, allowed, message):
    search = LightSearch(light)
    assert search.search([], 5, query_vectors=query_vectors[:0]).items.shape == (0, 5)
    with pytest.raises(ValueError, match=message):
        search.search(queries, k, allowed, query_vectors[: len(queries)])
    with pytest.raises(ValueError, match="beam_width 0"):
        LightSearch(light, beam_width=0)
