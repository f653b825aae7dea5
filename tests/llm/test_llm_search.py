"""Models that write IDs behind one search, and what a language model writes without a trie."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from semid_lib.decoding.beam_search import constrained_beam_search
from semid_lib.decoding.scorers import CausalScorer
from semid_lib.decoding.trie import PrefixTrie
from semid_lib.ids.semantic_ids import SemanticIDs
from semid_lib.llm import llm_search
from semid_lib.llm.base_models import small_model
from semid_lib.llm.examples import encode_prompts, prompt_for
from semid_lib.llm.llm_search import LanguageModelSearch, LightSearch, prefix_accuracy, read_answers, write_freely
from semid_lib.llm.vocabulary import extend_vocabulary
from semid_lib.search import retrieval
from semid_lib.search.hybrid_ranker import QueryModel, QueryModelConfig

N_ITEMS, DIM = 30, 8
TEXTS = [
    f"{colour} {thing}" for colour in ("red", "blue", "green") for thing in ["tent", "lamp", "soap", "pen", "cup"]
] * 2
QUERIES = ["red tent", "a lamp", "blue pen for school", "soap", "green"]


@pytest.fixture(scope="module")
def ids():
    rng = np.random.default_rng(0)
    codes = rng.permutation(np.unique(rng.integers(4, size=(90, 3)), axis=0))[:N_ITEMS]
    return SemanticIDs.from_codes(codes, codebook_size=4)


@pytest.fixture(scope="module")
def vectors():
    return np.random.default_rng(1).normal(size=(N_ITEMS, DIM)).astype(np.float32)


@pytest.fixture(scope="module")
def query_vectors():
    return np.random.default_rng(2).normal(size=(len(QUERIES), DIM)).astype(np.float32)


@pytest.fixture(scope="module")
def light(ids, vectors):
    torch.manual_seed(0)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return QueryModel(QueryModelConfig(ids.sizes, DIM, dim=16, n_buckets=64), ids.unique, unit)


@pytest.fixture(scope="module")
def language(ids):
    model, tokenizer = small_model(TEXTS, 300, hidden_size=16, n_layers=1, n_heads=2)
    return model.eval(), tokenizer, extend_vocabulary(model, tokenizer, ids, TEXTS)


# --- search ---


def test_an_untrained_light_model_is_dense_retrieval(light, vectors, query_vectors):
    expected = retrieval.Dense(vectors).search(QUERIES, N_ITEMS, query_vectors=query_vectors)
    found = LightSearch(light).search(QUERIES, N_ITEMS, query_vectors=query_vectors)
    np.testing.assert_array_equal(found.items, expected.items)
    assert (np.diff(found.scores) <= 0).all()


def test_with_word_scores_it_begins_as_dense_and_bm25_together(light, ids, vectors, query_vectors):
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    words = retrieval.BM25(TEXTS)
    model = QueryModel(replace(light.config, word_weight=0.3), ids.unique, unit)
    found = LightSearch(model, words).search(QUERIES, N_ITEMS, query_vectors=query_vectors)
    together = retrieval.Dense(vectors).scores(QUERIES, query_vectors) + 0.3 * words.scores(QUERIES)
    np.testing.assert_array_equal(found.items, np.argsort(-together, axis=1, kind="stable"))


def test_words_that_are_missing_not_wanted_or_of_other_items(light, ids, vectors):
    with pytest.raises(ValueError, match=r"word_weight 0\.0 and 30 items and comes with word scores of 30"):
        LightSearch(light, retrieval.BM25(TEXTS))
    model = QueryModel(replace(light.config, word_weight=0.3), ids.unique, vectors)
    with pytest.raises(ValueError, match="comes without word scores"):
        LightSearch(model)
    with pytest.raises(ValueError, match="30 items and comes with word scores of 2"):
        LightSearch(model, retrieval.BM25(TEXTS[:2]))


def test_batches_for_training_hold_every_query_once(light, ids, vectors, query_vectors):
    words = retrieval.BM25(TEXTS)
    search = LightSearch(QueryModel(replace(light.config, word_weight=0.3), ids.unique, vectors), words)
    loader = search.training_batches(QUERIES, query_vectors, np.arange(5) + 10, batch_size=2)
    seen = []
    for asked, items in loader:
        rows = items.numpy() - 10
        expected = words.scores([QUERIES[row] for row in rows])
        np.testing.assert_array_equal(asked.matches, expected)
        lengths = np.linalg.norm(query_vectors[rows], axis=1, keepdims=True)
        np.testing.assert_allclose(asked.vectors, query_vectors[rows] / lengths, atol=1e-6)
        seen += rows.tolist()
    assert sorted(seen) == list(range(5)) != seen


def test_vectors_are_made_if_they_are_not_given(light, query_vectors):
    asked = []

    def embed(texts):
        asked.append(list(texts))
        return query_vectors[[QUERIES.index(text) for text in texts]]

    search = LightSearch(light, embed=embed, batch_size=2)
    found = search.search(QUERIES, 5)
    assert asked == [QUERIES[:2], QUERIES[2:4], QUERIES[4:]]
    expected = LightSearch(light).search(QUERIES, 5, query_vectors=query_vectors)
    np.testing.assert_array_equal(found.items, expected.items)


def test_a_language_model_answers_as_its_beam_search(language, ids):
    model, tokenizer, tokens = language
    trie = PrefixTrie.build(ids.unique)
    prompts = encode_prompts(tokenizer, [prompt_for(tokenizer, query) for query in QUERIES])
    expected = constrained_beam_search(CausalScorer(model, tokens), prompts, trie, 100, 10)
    found = LanguageModelSearch(model, tokenizer, tokens, trie, batch_size=3).search(QUERIES, 10)
    np.testing.assert_array_equal(found.items, expected.items.numpy())
    np.testing.assert_allclose(found.scores, expected.scores.numpy(), atol=1e-5)


def test_what_is_not_allowed_never_comes_out(light, query_vectors):
    search = LightSearch(light, batch_size=2)
    one = np.arange(N_ITEMS) % 3 == 0
    each = np.random.default_rng(3).random((len(QUERIES), N_ITEMS)) < 0.3
    for allowed in (one, each):
        found = search.search(QUERIES, N_ITEMS, allowed, query_vectors).items
        for row, mask in zip(found, np.broadcast_to(allowed, each.shape), strict=True):
            assert set(row[row >= 0]) == set(np.flatnonzero(mask))


def test_a_beam_is_as_wide_as_the_list(light, query_vectors):
    found = LightSearch(light, beam_width=3).search(QUERIES, 20, query_vectors=query_vectors)
    assert (found.items >= 0).all()


def test_scores_for_fusion(light, query_vectors):
    search = LightSearch(light, beam_width=10)
    found = search.search(QUERIES, 10, query_vectors=query_vectors)
    scores = search.scores(QUERIES, query_vectors)
    assert scores.shape == (len(QUERIES), N_ITEMS)
    np.testing.assert_allclose(np.take_along_axis(scores, found.items, axis=1), found.scores, rtol=1e-6)
    np.testing.assert_array_equal(scores.min(axis=1), found.scores[:, -1])
    fused = retrieval.FusedScores(search, retrieval.BM25(TEXTS)).search(QUERIES, 5, query_vectors=query_vectors)
    assert (fused.items >= 0).all()


def test_no_queries_and_blank_ones(light, query_vectors):
    assert LightSearch(light).search([], 5, query_vectors=query_vectors[:0]).items.shape == (0, 5)
    with pytest.raises(ValueError, match="query 1 is ' ', expected some text"):
        LightSearch(light).search(["a", " "], 5, query_vectors=query_vectors[:2])
    with pytest.raises(ValueError, match="queries are 'soap', expected a list"):  # not four letters
        LightSearch(light).search("soap", 5, query_vectors=query_vectors[:4])
    with pytest.raises(ValueError, match="k must be a whole number of at least 1, got 0"):
        LightSearch(light).search(["a"], 0, query_vectors=query_vectors[:1])
    with pytest.raises(ValueError, match=r"allowed is bool \(3,\), expected bool \(30,\)"):
        LightSearch(light).search(["a"], 5, np.ones(3, dtype=bool), query_vectors[:1])
    with pytest.raises(ValueError, match="beam_width 0"):
        LightSearch(light, beam_width=0)


# --- without a trie ---


class Scripted:
    """A model that writes what it is told."""

    device = torch.device("cpu")

    def __init__(self, answers):
        self.answers = torch.tensor(answers)

    def generate(self, input_ids, **options):
        now, self.answers = self.answers[: len(input_ids)], self.answers[len(input_ids) :]
        return torch.cat([input_ids, now], dim=1)


def test_free_answers_are_read_as_they_are(language, ids):
    _, tokenizer, tokens = language
    end = llm_search.end_token(tokenizer)
    assert end == tokenizer.eos_token_id
    item = [int(level[code]) for level, code in zip(tokens, ids.unique[7], strict=True)]
    answers = [[*item, end], [*item, item[0]], [item[0], item[0], item[2], end], [end, 0, 0, 0]]
    trie = PrefixTrie.build(ids.unique)
    written = write_freely(Scripted(answers), tokenizer, tokens, trie, QUERIES[:4], batch_size=3)
    assert written.items.tolist() == [7, -1, -1, -1]
    assert written.codes[0].tolist() == ids.unique[7].tolist()
    assert written.codes[2, 1] == -1
    assert (written.codes[3] == -1).all()


def test_drawing_repeats_and_leaves_the_generator_alone(language, ids):
    trie = PrefixTrie.build(ids.unique)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    drawn = [write_freely(*language, trie, QUERIES, sample=True, seed=seed).codes for seed in (0, 0, 1)]
    assert torch.equal(torch.get_rng_state(), before)
    np.testing.assert_array_equal(drawn[0], drawn[1])
    greedy = [write_freely(*language, trie, QUERIES, batch_size=size).codes for size in (2, 64)]
    np.testing.assert_array_equal(*greedy)


def test_tokens_of_codes_need_not_be_in_order():
    trie = PrefixTrie.build(np.array([[0, 1], [1, 0]]))
    tokens = [np.array([9, 4]), np.array([3, 7])]
    written = read_answers(np.array([[9, 7, 0], [4, 3, 0], [4, 4, 0], [99, 3, 0]]), tokens, trie, end_token=0)
    assert written.codes.tolist() == [[0, 1], [1, 0], [1, -1], [-1, 0]]
    assert written.items.tolist() == [0, 1, -1, -1]


def test_the_end_is_what_the_template_writes():
    text = "<user>question<assistant>ANSWER<|im_end|>\n"
    tokenizer = SimpleNamespace(
        chat_template="given",
        pad_token="x",
        apply_chat_template=lambda messages, tokenize, **options: text,
    )
    # a tokenizer is called like a function, which a namespace cannot be
    fake = type("Fake", (), {**vars(tokenizer), "__call__": lambda self, given, **_: {"input_ids": [len(given), 1]}})()
    fake.apply_chat_template = tokenizer.apply_chat_template
    assert llm_search.end_token(fake) == len("<|im_end|>\n")


def test_prefixes_of_another_shape():
    with pytest.raises(ValueError, match=r"\(1, 2\) and those wanted \(1, 3\)"):
        prefix_accuracy(np.zeros((1, 2)), np.zeros((1, 3)))
