"""The hybrid ranker: a proper distribution over items, dense retrieval and BM25 before training, more after it."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import save_file

from semid_lib.decoding.beam_search import exact_ranking
from semid_lib.ids import embed
from semid_lib.ids.semantic_ids import SemanticIDs
from semid_lib.search import hybrid_ranker, retrieval
from semid_lib.search.hybrid_ranker import HybridRanker, HybridRankerConfig, HybridSearch, balanced_weight, hashed_words
from semid_lib.workbench import training

N_ITEMS, DIM = 30, 8
THINGS = ("tent", "lamp", "soap", "pen", "cup")
TEXTS = [f"{colour} {thing}" for colour in ("red", "blue", "green") for thing in THINGS] * 2
QUERIES = ["red tent", "a lamp", "blue pen for school", "soap", "green"]
WORDS = retrieval.BM25(TEXTS)


def unit(n, seed):
    return embed.normalize(np.random.default_rng(seed).normal(size=(n, DIM)).astype(np.float32))


VECTORS, QUERY_VECTORS = unit(N_ITEMS, 1), 3 * unit(len(QUERIES), 2)


@pytest.fixture(scope="module")
def ids():
    rng = np.random.default_rng(0)
    codes = rng.permutation(np.unique(rng.integers(4, size=(90, 3)), axis=0))[:N_ITEMS]
    return SemanticIDs.from_codes(codes, codebook_size=4)


@pytest.fixture(scope="module")
def plain(ids):
    """Without word scores."""
    torch.manual_seed(0)
    return HybridRanker(HybridRankerConfig(ids.sizes, DIM, dim=16, dropout=0.0, n_buckets=64), ids.unique, VECTORS)


@pytest.fixture(scope="module")
def with_words(plain, ids):
    return HybridRanker(replace(plain.config, word_weight=0.3), ids.unique, VECTORS)


@pytest.fixture(scope="module")
def trained(plain, ids):
    """A model that has learned to answer each query with one of the last items."""
    torch.manual_seed(0)
    model = HybridRanker(plain.config, ids.unique, VECTORS)
    loader = HybridSearch(model).training_batches(QUERIES * 4, np.tile(QUERY_VECTORS, (4, 1)), np.tile(TARGETS, 4), 20)
    settings = training.TrainingConfig(n_epochs=8, learning_rate=3e-2, weight_decay=0.0)
    losses = [epoch.loss for epoch in training.fit(model, loader, settings)]
    assert losses[-1] < losses[0] / 2
    return model.eval()


TARGETS = np.arange(5) + 25


def search(model, k=N_ITEMS, words=None, **options):
    return HybridSearch(model, words).search(QUERIES, k, query_vectors=QUERY_VECTORS, **options)


def test_an_untrained_model_ranks_as_dense_retrieval_and_bm25_together(plain, with_words):
    dense = retrieval.Dense(VECTORS)
    expected = dense.search(QUERIES, N_ITEMS, query_vectors=QUERY_VECTORS)
    found = search(plain)
    np.testing.assert_array_equal(found.items, expected.items)
    assert (np.diff(found.scores) <= 0).all()
    together = dense.scores(QUERIES, QUERY_VECTORS) + 0.3 * WORDS.scores(QUERIES)
    expected = np.argsort(-together, axis=1, kind="stable")
    np.testing.assert_array_equal(search(with_words, words=WORDS).items, expected)


@pytest.mark.parametrize("vectors", [np.ones((1, DIM + 1)), np.full((1, DIM), np.nan)])
def test_query_vectors_that_do_not_fit_are_refused(plain, vectors):
    with pytest.raises(ValueError, match=r"expected \(1, 8\), finite"):
        HybridSearch(plain).search(["pen"], 1, query_vectors=vectors)


def test_words_that_do_not_fit_are_refused(plain, with_words):
    for model, words, message in (
        (plain, WORDS, r"word_weight 0\.0 and 30 items and comes with word scores of 30"),
        (with_words, None, "comes without word scores"),
        (with_words, retrieval.BM25(TEXTS[:2]), "30 items and comes with word scores of 2"),
    ):
        with pytest.raises(ValueError, match=message):
            HybridSearch(model, words)


def test_a_weight_gives_both_scores_the_same_spread():
    cosines = retrieval.Dense(VECTORS).scores(QUERIES, QUERY_VECTORS)
    weighted = balanced_weight(cosines, WORDS.scores(QUERIES)) * WORDS.scores(QUERIES)
    assert weighted.std(axis=1).mean() == pytest.approx(cosines.std(axis=1).mean(), rel=1e-5)
    with pytest.raises(ValueError, match="no query shares a word"):
        balanced_weight(np.ones((1, 2)), np.zeros((1, 2)))


def test_probabilities_sum_to_one_and_give_the_loss(trained):
    searcher = HybridSearch(trained)
    contexts = searcher._contexts(QUERIES, QUERY_VECTORS)
    found = exact_ranking(trained, contexts, trained.trie, N_ITEMS)
    np.testing.assert_allclose(found.scores.exp().sum(dim=1), 1.0, atol=1e-4)
    items = torch.from_numpy(TARGETS)
    with torch.inference_mode():
        loss = -float(found.scores[found.items == items[:, None]].mean())
        assert float(trained((contexts, items))) == pytest.approx(loss, abs=1e-4)


def test_batches_for_training_have_every_query_once(with_words):
    searcher = HybridSearch(with_words, WORDS)
    seen = []
    for asked, items in searcher.training_batches(QUERIES, QUERY_VECTORS, np.arange(5) + 10, batch_size=2):
        rows = items.numpy() - 10
        np.testing.assert_array_equal(asked.matches, WORDS.scores([QUERIES[row] for row in rows]))
        np.testing.assert_allclose(asked.vectors, QUERY_VECTORS[rows] / 3, atol=1e-6)
        seen += rows.tolist()
    assert sorted(seen) == list(range(5)) != seen


def test_missing_vectors_are_computed_batch_by_batch_by_an_encoder_that_is_loaded_once(plain, monkeypatch):
    loaded, asked = [], []

    def encode(texts):
        asked.append(list(texts))
        return QUERY_VECTORS[[QUERIES.index(text) for text in texts]]

    monkeypatch.setattr(embed, "Encoder", lambda name: loaded.append(name) or encode)
    searcher = HybridSearch(plain, embed="some/encoder")
    searcher.batch_size = 2
    found = searcher.search(QUERIES, 5)
    assert (loaded, asked) == (["some/encoder"], [QUERIES[:2], QUERIES[2:4], QUERIES[4:]])
    np.testing.assert_array_equal(found.items, search(plain, 5).items)


def test_only_allowed_items_are_returned(plain):
    one = np.arange(N_ITEMS) % 3 == 0
    each = np.random.default_rng(3).random((len(QUERIES), N_ITEMS)) < 0.3
    for allowed in (one, each):
        found = search(plain, allowed=allowed).items
        for row, mask in zip(found, np.broadcast_to(allowed, each.shape), strict=True):
            assert set(row[row >= 0]) == set(np.flatnonzero(mask))
    narrow = HybridSearch(plain, beam_width=3).search(QUERIES, 20, query_vectors=QUERY_VECTORS)
    assert (narrow.items >= 0).all()  # the beam is as wide as the list


def test_scores_for_fusion(plain):
    searcher = HybridSearch(plain, beam_width=10)
    found = search(plain, 10)
    scores = searcher.scores(QUERIES, QUERY_VECTORS)
    assert scores.shape == (len(QUERIES), N_ITEMS)
    np.testing.assert_allclose(np.take_along_axis(scores, found.items, axis=1), found.scores, rtol=1e-6)
    np.testing.assert_array_equal(scores.min(axis=1), found.scores[:, -1])
    fused = retrieval.FusedScores(searcher, WORDS).search(QUERIES, 5, query_vectors=QUERY_VECTORS)
    assert (fused.items >= 0).all()


def test_a_saved_model_answers_as_before_and_finds_a_new_item_by_its_text(trained, ids, tmp_path):
    trained.save(tmp_path / "model.safetensors")
    back = HybridRanker.load(tmp_path / "model.safetensors", ids.unique, VECTORS)
    assert back.config == trained.config
    for part, expected in zip(search(back), search(trained), strict=True):
        np.testing.assert_array_equal(part, expected)
    free = next(row for row in np.ndindex(ids.sizes) if not (ids.unique == row).all(axis=1).any())
    vectors = np.vstack([VECTORS, QUERY_VECTORS[0] / 3])
    grown = HybridRanker.load(tmp_path / "model.safetensors", np.vstack([ids.unique, free]), vectors)
    assert N_ITEMS in search(grown, 10).items[0].tolist()


def test_a_saved_search_answers_as_before(with_words, ids, tmp_path):
    facts, files = HybridSearch(with_words, WORDS, "some/encoder", beam_width=7).save(tmp_path)
    assert facts == {"type": "hybrid ranker", "beam_width": 7, "encoder": "some/encoder", "word_index": True}
    assert sorted(files) == sorted(path.name for path in tmp_path.iterdir())
    back = HybridSearch.load(tmp_path, facts, ids, pd.DataFrame({"title": ["other"] * N_ITEMS}))  # it has its index
    assert (back.beam_width, back.embed) == (7, "some/encoder")
    found = back.search(QUERIES, 10, query_vectors=QUERY_VECTORS)
    np.testing.assert_array_equal(found.items, search(with_words, 10, WORDS).items)
    earlier = HybridSearch.load(tmp_path, facts | {"word_index": False}, ids, pd.DataFrame({"title": TEXTS}))
    np.testing.assert_array_equal(earlier.search(QUERIES, 10, query_vectors=QUERY_VECTORS).items, found.items)
    fewer = SemanticIDs.from_codes(ids.codes[1:], 4)
    with pytest.raises(ValueError, match=r"item_vectors.* has shape \(30, 8\), expected \(29, dim\)"):
        HybridSearch.load(tmp_path, facts, fewer, pd.DataFrame({"title": TEXTS[1:]}))


def test_another_file_is_refused(plain, ids, tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"something else")
    with pytest.raises(ValueError, match="is not a hybrid ranker"):
        HybridRanker.load(path, ids.unique, VECTORS)
    save_file({"weight": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match="expected format"):
        HybridRanker.load(path, ids.unique, VECTORS)


@pytest.mark.parametrize(
    ("ids", "vectors", "message"),
    [
        (np.zeros((1, 2), int), np.zeros((1, DIM)), "do not fit"),
        (np.zeros((1, 3), int), np.zeros((2, DIM)), "do not fit"),
        (np.array([[0, 5, 0]]), np.zeros((1, DIM)), r"codes up to \[0, 5, 0\] .* do not fit"),
    ],
)
def test_a_catalogue_that_does_not_fit_is_refused(ids, vectors, message):
    with pytest.raises(ValueError, match=message):
        HybridRanker(HybridRankerConfig((5, 5, 5), DIM), ids, vectors)


def test_hashed_words_are_the_same_everywhere():
    words = hashed_words(["nail polish", ""], 1000)
    assert words.shape == (2, 64)
    assert words[0, :3].tolist() == [247, 978, 692]  # "nail", "polish", "nail polish": no other machine may differ
    assert (words[1] == 0).all()
    assert int(hashed_words(["x" * 500 + " y" * 500], 2).max()) == 1
    assert hybrid_ranker._pieces("कॉफ़ी मग")[:2] == ["कॉफ़ी", "मग"]  # marks belong to words
    right, wrong = hashed_words(["moisturizer", "moisturzer"])
    assert len(set(right.tolist()) & set(wrong.tolist()) - {0}) >= 6  # a typing error keeps most pieces
