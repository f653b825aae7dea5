"""BM25 by hand and against plain loops, dense retrieval against sorting, two fusions, and what no search may do."""

import math
import re
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from semid_lib.search.retrieval import BM25, Dense, FusedScores, terms
from semid_lib.workbench.weights import mapped, save_weights

TEXTS = ["red gel pen", "red tent red", "blue tent with pegs"]
VECTORS = np.array([[1.0, 0.0], [0.0, 2.0], [3.0, 3.0], [1.0, 0.0], [-1.0, 0.0]])

WORDS = ("red", "blue", "pen", "tent", "pegs")
some_texts = st.lists(st.lists(st.sampled_from(WORDS), max_size=6).map(" ".join), min_size=2, max_size=9).filter(any)
some_queries = st.lists(st.lists(st.sampled_from([*WORDS, "zebra"]), min_size=1, max_size=4).map(" ".join), max_size=4)


def plain_bm25(texts, query):
    """The formula of the docstring, word by word."""
    documents = [text.split() for text in texts]
    mean = sum(map(len, documents)) / len(documents)
    scores = []
    for document in documents:
        score = 0.0
        for word in query.split():
            n = sum(word in other for other in documents)
            f = document.count(word)
            idf = math.log(1 + (len(documents) - n + 0.5) / (n + 0.5))
            score += idf * f / (f + 1.5 * (0.25 + 0.75 * len(document) / mean)) if f else 0.0
        scores.append(score)
    return scores


def ordered(scores, k, floor=-np.inf):
    """The rows of the k best scores above the floor, ties to the lower row, filled up with -1."""
    rows = sorted((-score, row) for row, score in enumerate(scores) if score > floor)[:k]
    return [row for _, row in rows] + [-1] * (k - len(rows))


# --- BM25 ---


def test_bm25_by_hand():
    # "with" is a stop word, so all three texts have 3 words, as many as the mean: the length plays no part
    found = BM25(TEXTS).search(["red tent", "blue"], k=3)
    both = math.log(1 + 1.5 / 2.5)  # red and tent stand in two of three
    rare = math.log(1 + 2.5 / 1.5)
    assert found.items.tolist() == [[1, 0, 2], [2, -1, -1]]
    np.testing.assert_allclose(found.scores[0], [both * (2 / 3.5 + 1 / 2.5), both / 2.5, both / 2.5], rtol=1e-6)
    np.testing.assert_allclose(found.scores[1], [rare / 2.5, -np.inf, -np.inf], rtol=1e-6)


@given(some_texts, some_queries, st.integers(1, 11))
@settings(max_examples=40)
def test_bm25_equals_plain_loops(texts, queries, k):
    found = BM25(texts).search(queries, k)
    for query, items, scores in zip(queries, *found, strict=True):
        expected = np.array(plain_bm25(texts, query))
        real = items[items >= 0]
        assert len(real) == len(set(real)) == min(k, (expected > 0).sum())
        np.testing.assert_allclose(scores[: len(real)], np.sort(expected[expected > 0])[::-1][:k], rtol=1e-5)
        np.testing.assert_allclose(scores[: len(real)], expected[real], rtol=1e-5)
        assert all(a < b for a, b, s, t in zip(real, real[1:], scores, scores[1:], strict=False) if s == t)


@pytest.mark.parametrize("query", ["zebra", "the", "?!", "x", "12345"])
def test_a_query_without_a_known_word_finds_nothing(query):
    found = BM25(TEXTS).search([query, "pen"], k=2)
    assert found.items.tolist() == [[-1, -1], [0, -1]]
    assert (found.scores[0] == -np.inf).all()


def test_a_repeated_word_counts_more():
    found = BM25(TEXTS).search(["RED, tents!", "red red tent"], k=3)
    assert found.scores[1, 0] > found.scores[0, 0]  # stems are compared


# --- BM25 beyond ASCII ---

# Chinese, Thai: no spaces; then Korean, Hindi, Greek: spaces, and marks
SCRIPTS = [
    ("无线蓝牙耳机 降噪", "耳机"),
    ("กระเป๋าเดินทาง", "กระเป๋า"),
    ("블루투스 이어폰", "이어폰"),
    ("कॉफ़ी का मग", "मग"),
    ("Ασύρματα ακουστικά", "ΑΚΟΥΣΤΙΚΆ"),
]


def test_a_part_of_a_title_finds_it_in_every_script():
    found = BM25([*(title for title, _ in SCRIPTS), ""]).search([query for _, query in SCRIPTS], k=1)
    assert found.items.ravel().tolist() == list(range(len(SCRIPTS)))


@given(st.text(st.sampled_from("无线蓝牙耳机降噪𠮷コーヒーカップのงานสระ"), min_size=1, max_size=12), st.data())
@settings(max_examples=40)
def test_every_part_of_a_run_without_spaces_finds_it(run, data):
    start = data.draw(st.integers(0, len(run) - 1))
    part = run[start : data.draw(st.integers(start + 1, len(run)))]
    assert BM25(["pen", f"red {run}, 2"]).search([part], k=2).items.tolist() == [[1, -1]]


def test_words_of_a_run_are_pairs_of_neighbours_and_marks_stay_with_their_letter():
    assert terms("我购买了道具和服装。") == ["我购", "购买", "买了", "了道", "道具", "具和", "和服", "服装"]
    assert terms("A 茶 cup 2 for 水、火") == ["茶", "cup", "for", "水", "火"]  # alone, as in Lucene
    assert terms("ที่ดิน", singles=True) == ["ที่", "ดิ", "น", "ที่ดิ", "ดิน"]
    assert terms("葛\U000e0100飾区 का") == ["葛飾", "飾区", "का"]


SPELLINGS = [("Caf\u00e9", "Cafe\u0301"), ("L&amp;S Lamp", "l&s lamp"), ("ｺｰﾋｰ", "コーヒー"), ("Pilot™", "pilot")]


def test_a_saved_index_scores_as_before_and_another_one_is_refused(tmp_path):
    texts, path = ["red gel pen", "Red tent", "", "蓝色 tents", "ÉTÉ"], tmp_path / "words.safetensors"
    bm25 = BM25(texts)
    bm25.save(path)
    back, queries = BM25.load(path, len(texts)), ["red pen", "tent", "zebra", "蓝色", "été red", "the"]
    np.testing.assert_array_equal(back.scores(queries), bm25.scores(queries))
    for part, expected in zip(back.search(queries, 3), bm25.search(queries, 3), strict=True):
        np.testing.assert_array_equal(part, expected)
    first = path.read_bytes()
    back.save(path)
    assert path.read_bytes() == first
    with pytest.raises(ValueError, match=r"words\.safetensors is no index of words of this catalogue: .* of 5 items"):
        BM25.load(path, 6)
    arrays, facts = mapped(path)
    arrays = {name: array.copy() for name, array in arrays.items()}
    for name, wrong in (
        ("indices", arrays["indices"] + 5),
        ("indptr", arrays["indptr"][1:]),
        ("words", arrays["words"][:3]),
    ):
        save_weights(path, arrays | {name: wrong}, facts)
        with pytest.raises(ValueError, match="its arrays do not fit each other"):
            BM25.load(path, 5)
    path.write_bytes(b"something else")
    with pytest.raises(ValueError, match="is no index of words"):
        BM25.load(path, 5)


@pytest.mark.parametrize("pair", SPELLINGS)
def test_spellings_of_one_word_find_each_other(pair):
    found = BM25([*pair, "pen"]).search(pair, k=3)
    np.testing.assert_array_equal(found.items, [[0, 1, -1]] * 2)
    np.testing.assert_array_equal(found.scores[0], found.scores[1])


def test_a_missing_extra_is_one_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "bm25s", None)
    with pytest.raises(ImportError, match=r"pip install 'semid-lib\[search\]'"):
        BM25(TEXTS)


# --- dense ---


@given(st.integers(0, 2**32 - 1), st.integers(1, 30), st.integers(1, 40))
@settings(max_examples=40)
def test_dense_equals_sorting_and_equal_vectors_are_ties(seed, n_items, k):
    rng = np.random.default_rng(seed)
    distinct = rng.normal(size=(max(1, n_items // 2), 5)).astype(np.float32)
    vectors = distinct[rng.integers(len(distinct), size=n_items)]
    asked = rng.normal(size=(3, 5)).astype(np.float32)
    dense = Dense(vectors)
    found = dense.search(["a", "b", "c"], k, query_vectors=asked)
    scores = dense.scores(["a", "b", "c"], asked)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    np.testing.assert_allclose(scores, asked / np.linalg.norm(asked, axis=1, keepdims=True) @ unit.T, atol=1e-5)
    assert found.items.tolist() == [ordered(row, k) for row in scores]
    for row in scores:
        assert len(np.unique(row)) <= len(distinct)


@pytest.mark.parametrize("vectors", [np.ones(3), np.ones((0, 3)), np.array([[1.0, np.nan]])])
def test_vectors_that_are_no_finite_matrix_are_refused(vectors):
    with pytest.raises(ValueError, match="item vectors are"):
        Dense(vectors)


@pytest.mark.parametrize("vectors", [np.ones((2, 2)), np.ones((1, 3)), np.array([[np.inf, 1.0]]), None])
def test_query_vectors_that_do_not_fit_are_refused(vectors):
    with pytest.raises(ValueError, match="query vectors"):
        Dense(VECTORS).search(["a"], k=1, query_vectors=vectors)


# --- fusion ---


def test_sums_of_standard_scores_by_hand():
    bm25, dense = BM25(["pen", "red pen", "tent"]), Dense(VECTORS[:3])
    asked = np.array([[1.0, 1.0]])
    expected = np.zeros(3)
    for scores in (plain_bm25(["pen", "red pen", "tent"], "pen"), [0.5**0.5, 0.5**0.5, 1.0]):
        expected += (scores - np.mean(scores)) / np.std(scores)
    found = FusedScores(bm25, dense).search(["pen"], k=3, query_vectors=asked)
    assert found.items.tolist() == [ordered(expected, 3)]
    np.testing.assert_allclose(found.scores[0], np.sort(expected)[::-1], rtol=1e-4)


def test_a_method_that_finds_nothing_says_nothing():
    bm25, dense = BM25(["red gel pen"] * 2 + ["tent"] * 3), Dense(VECTORS)
    vectors = np.array([[1.0, 0.2]])
    alone = dense.search(["zebra"], k=5, query_vectors=vectors).items
    for fused in (FusedScores(dense), FusedScores(bm25, dense)):
        np.testing.assert_array_equal(fused.search(["zebra"], k=5, query_vectors=vectors).items, alone)


def test_item_texts_that_are_none_are_refused():
    with pytest.raises(ValueError, match='item row 1 is None, expected text, "" for none'):
        BM25(["pen", None])


def test_fusions_of_different_catalogues_are_refused():
    with pytest.raises(ValueError, match=r"\[3, 5\] items"):
        FusedScores(BM25(TEXTS), Dense(VECTORS))


# --- what holds for all ---

MANY = ["red gel pen", "red tent", "", "blue tent", "red gel pen"]
METHODS = {
    "bm25": BM25(MANY),
    "dense": Dense(VECTORS),
    "scores": FusedScores(BM25(MANY), Dense(VECTORS)),
}
every_method = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS.keys())
ASKED = ["red tent", "zebra", "pen"]
ASKED_VECTORS = np.array([[0.0, 1.0], [1.0, 0.1], [1.0, 0.0]])


@every_method
@given(mask=st.lists(st.booleans(), min_size=5, max_size=5))
@settings(max_examples=20)
def test_a_mask_takes_items_away_and_leaves_the_order(method, mask):
    free = method.search(ASKED, 5, query_vectors=ASKED_VECTORS).items
    items, scores = method.search(ASKED, 7, np.array(mask), ASKED_VECTORS)
    assert (items.dtype, scores.dtype, scores.shape) == (np.int64, np.float32, (3, 7))
    assert ((scores == -np.inf) == (items == -1)).all()
    for before, after in zip(free, items, strict=True):
        allowed = [row for row in before if row >= 0 and mask[row]]
        assert after.tolist() == allowed + [-1] * (7 - len(allowed))


@every_method
def test_a_short_list_is_the_beginning_of_a_long_one(method):
    assert method.search([], k=3).items.shape == (0, 3)
    long = method.search(ASKED, 7, query_vectors=ASKED_VECTORS).items
    for k in (1, 2, 5):
        np.testing.assert_array_equal(method.search(ASKED, k, query_vectors=ASKED_VECTORS).items, long[:, :k])


@every_method
def test_a_block_does_not_change_the_answer(method, monkeypatch):
    mask = np.array([[True] * 5, [True, False, True, True, True], [False, True, True, True, True]])
    together = method.search(ASKED, 5, mask, ASKED_VECTORS).items
    assert method.batch_size == 2**24 // 5
    monkeypatch.setattr(method, "batch_size", 1)
    np.testing.assert_array_equal(method.search(ASKED, 5, mask, ASKED_VECTORS).items, together)


@every_method
def test_bad_arguments_are_refused(method):
    for query in ("", " \t", None, b"pen", "half \ud83d"):
        with pytest.raises(ValueError, match=re.escape(f"query 1 is {query!r}, ")):
            method.search(["pen", query], k=1, query_vectors=np.ones((2, 2)))
    for queries in ("pen", None):
        with pytest.raises(ValueError, match=re.escape(f"queries are {queries!r}, expected a list of texts")):
            method.search(queries, k=1)
    with pytest.raises(ValueError, match="whole number of at least 1, got 0"):
        method.search(ASKED, 0)
    with pytest.raises(ValueError, match="allowed is"):
        method.search(ASKED, 1, np.ones(4, dtype=bool), ASKED_VECTORS)
    with pytest.raises(ValueError, match="there are 2 query vectors, expected 3"):
        method.search(ASKED, k=1, query_vectors=ASKED_VECTORS[:2])


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ("red pen", "texts are 'red pen', expected one text per item"),
        (["", "the", "?"], "none of 3 texts has a word"),
        ([], "none of 0 texts"),
    ],
)
def test_bm25_names_what_is_no_text(texts, message):
    with pytest.raises(ValueError, match=message):
        BM25(texts)
