"""The hybrid ranker: a proper distribution over items, dense retrieval before training, more after it."""

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch.utils.data import DataLoader

from semid_lib.decoding.beam_search import constrained_beam_search, exact_ranking
from semid_lib.decoding.trie import PrefixTrie
from semid_lib.search import hybrid_ranker
from semid_lib.search.hybrid_ranker import HybridRanker, HybridRankerConfig, Queries, balanced_weight, hashed_words
from semid_lib.workbench import training

SIZES, DIM = (5, 5, 5), 8


def unit(rng, n):
    vectors = rng.normal(size=(n, DIM)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.fixture(scope="module")
def catalogue():
    rng = np.random.default_rng(0)
    ids = rng.permutation(np.unique(rng.integers(0, 5, (60, 3)), axis=0))
    return ids, unit(rng, len(ids))


def queries(n, seed=1):
    rng = np.random.default_rng(seed)
    words = hashed_words([" ".join(rng.choice(["red", "blue", "soap", "pen"], 2)) for _ in range(n)], 64)
    return Queries(torch.from_numpy(unit(rng, n)), words)


def model(catalogue, **changes):
    torch.manual_seed(0)
    config = HybridRankerConfig(SIZES, DIM, dim=16, n_buckets=64, **changes)
    return HybridRanker(config, *catalogue).eval()


def first(asked, n):
    return Queries(*(part if part is None else part[:n] for part in asked))


def trained(catalogue, n_epochs=60):
    """A model that has learned to answer the query of each item with the item two places on."""
    asked, untrained = queries(len(catalogue[0])), model(catalogue, dropout=0.0)
    items = (torch.arange(len(catalogue[0])) + 2) % len(catalogue[0])

    def read(rows):
        return Queries(asked.vectors[rows], asked.words[rows]), items[rows]

    loader = DataLoader(range(len(items)), batch_size=16, shuffle=True, collate_fn=read)
    settings = training.TrainingConfig(n_epochs=n_epochs, learning_rate=1e-2, weight_decay=0.0)
    losses = [epoch.loss for epoch in training.fit(untrained, loader, settings)]
    return untrained.eval(), asked, items, losses


@pytest.fixture(scope="module")
def briefly(catalogue):
    return trained(catalogue, 3)


def test_before_training_it_ranks_as_dense_retrieval(catalogue):
    asked, trie = queries(7), PrefixTrie.build(catalogue[0])
    expected = np.argsort(-(asked.vectors.numpy() @ catalogue[1].T), axis=1)
    for found in (
        constrained_beam_search(model(catalogue), asked, trie, 60, 20),
        exact_ranking(model(catalogue), asked, trie, 20),
    ):
        assert found.items.tolist() == expected[:, :20].tolist()


def test_before_training_word_scores_weigh_what_they_are_told(catalogue):
    asked, trie = queries(7), PrefixTrie.build(catalogue[0])
    matches = np.random.default_rng(2).exponential(3.0, (7, len(catalogue[0]))).astype(np.float32)
    cosines = asked.vectors.numpy() @ catalogue[1].T
    weight = balanced_weight(cosines, matches)
    assert weight * matches.std(axis=1).mean() == pytest.approx(cosines.std(axis=1).mean())
    asked = asked._replace(matches=torch.from_numpy(matches))
    found = exact_ranking(model(catalogue, word_weight=weight), asked, trie, 20).items
    expected = np.argsort(-(cosines + weight * matches), axis=1)[:, :20]
    np.testing.assert_array_equal(found, expected)
    assert (expected != np.argsort(-cosines, axis=1)[:, :20]).any()


def test_word_scores_that_are_missing_or_not_wanted_are_refused(catalogue):
    asked, trie = queries(2), PrefixTrie.build(catalogue[0])
    with pytest.raises(ValueError, match=r"word_weight 0\.1, the queries come without"):
        exact_ranking(model(catalogue, word_weight=0.1), asked, trie, 1)
    with pytest.raises(ValueError, match=r"word_weight 0\.0, the queries come with"):
        exact_ranking(model(catalogue), asked._replace(matches=torch.zeros(2, len(catalogue[0]))), trie, 1)


def test_no_weight_balances_words_that_nobody_shares():
    with pytest.raises(ValueError, match="no query shares a word"):
        balanced_weight(np.ones((1, 2)), np.zeros((1, 2)))
    with pytest.raises(ValueError, match=r"\(1, 2\), word scores \(1, 3\)"):
        balanced_weight(np.ones((1, 2)), np.zeros((1, 3)))


def test_probabilities_sum_to_one_and_give_the_loss(catalogue, briefly):
    scorer, asked, items, _ = briefly
    found = exact_ranking(scorer, asked, PrefixTrie.build(catalogue[0]), len(catalogue[0]))
    np.testing.assert_allclose(found.scores.exp().sum(dim=1), 1.0, atol=1e-4)
    own = found.scores[found.items == items[:, None]]
    with torch.inference_mode():
        assert float(scorer((asked, items))) == pytest.approx(-float(own.mean()), abs=1e-4)


@pytest.mark.slow
def test_it_learns_what_the_texts_do_not_say(catalogue):
    scorer, asked, items, losses = trained(catalogue)
    found = constrained_beam_search(scorer, asked, PrefixTrie.build(catalogue[0]), 10, 1)
    assert (found.items[:, 0] == items).double().mean() > 0.9
    assert losses[-1] < losses[0] / 3


def test_a_trained_model_on_more_items_finds_the_new_one_by_its_text(catalogue, briefly, tmp_path):
    scorer, asked, *_ = briefly
    ids, vectors = catalogue
    scorer.save(tmp_path / "model.safetensors")
    free = next(row for row in np.ndindex(SIZES) if not (ids == row).all(axis=1).any())
    ids, vectors = np.vstack([ids, free]), np.vstack([vectors, asked.vectors[0]])
    grown = HybridRanker.load(tmp_path / "model.safetensors", ids, vectors)
    found = constrained_beam_search(grown, first(asked, 1), PrefixTrie.build(ids), 60, 10)
    assert len(ids) - 1 in found.items[0].tolist()


@pytest.mark.parametrize(
    ("ids", "vectors", "message"),
    [
        (np.zeros((1, 2), int), np.zeros((1, DIM)), "do not fit"),
        (np.zeros((1, 3), int), np.zeros((2, DIM)), "do not fit"),
        (np.array([[0, 5, 0]]), np.zeros((1, DIM)), r"codes up to \[0, 5, 0\]"),
    ],
)
def test_a_catalogue_that_does_not_fit_is_refused(ids, vectors, message):
    with pytest.raises(ValueError, match=message):
        HybridRanker(HybridRankerConfig(SIZES, DIM), ids, vectors)


def test_hashed_words_are_the_same_everywhere():
    words = hashed_words(["nail polish", ""], 1000)
    assert words.shape == (2, 64)
    assert words[0, :3].tolist() == [247, 978, 692]  # "nail", "polish", "nail polish": no other machine may differ
    assert (words[1] == 0).all()
    assert int(hashed_words(["x" * 500 + " y" * 500], 2).max()) == 1
    with pytest.raises(ValueError, match="n_buckets must be at least 2, got 1"):
        hashed_words(["a"], 1)


def test_marks_belong_to_words():
    assert hybrid_ranker._pieces("कॉफ़ी मग")[:2] == ["कॉफ़ी", "मग"]


def test_a_typing_error_keeps_most_pieces():
    right, wrong = hashed_words(["moisturizer", "moisturzer"])
    shared = set(right.tolist()) & set(wrong.tolist()) - {0}
    assert len(shared) >= 6


def test_a_saved_model_answers_as_before(catalogue, briefly, tmp_path):
    scorer, asked, *_ = briefly
    scorer.save(tmp_path / "model.safetensors")
    back = HybridRanker.load(tmp_path / "model.safetensors", *catalogue)
    assert back.config == scorer.config
    trie = PrefixTrie.build(catalogue[0])
    found, expected = (exact_ranking(each, asked, trie, 20) for each in (back, scorer))
    assert torch.equal(found.items, expected.items)
    assert torch.equal(found.scores, expected.scores)


def test_another_file_is_refused(catalogue, tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"something else")
    with pytest.raises(ValueError, match="is not a hybrid ranker"):
        HybridRanker.load(path, *catalogue)
    save_file({"weight": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match="expected format"):
        HybridRanker.load(path, *catalogue)
    with pytest.raises(ValueError, match="nowhere"):
        HybridRanker.load(tmp_path / "nowhere", *catalogue)
