"""The baselines on a few items, and against plain loops."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from semid_lib.next_item.baselines import (
    ItemKNN,
    Popularity,
    SequentialRules,
    TextOnly,
    TransitionGraph,
    UserKNN,
)

# counts: item 0 twice, 1 three times, 2 twice, 3 once
HISTORIES = [np.array([0, 1, 2]), np.array([0, 1]), np.array([3, 2, 1])]
some_histories = st.lists(st.lists(st.integers(0, 5), max_size=7).map(np.array), min_size=1, max_size=6)


def test_popularity_by_hand():
    ranked = Popularity(HISTORIES, n_items=5).rank([[], [1, 1], [0, 1, 2, 3, 4]], k=3)
    assert ranked.items.tolist() == [[1, 0, 2], [0, 2, 3], [-1, -1, -1]]
    assert ranked.scores[:2].tolist() == [[3, 2, 2], [2, 2, 1]]


def test_similarity_by_hand():
    knn = ItemKNN(HISTORIES, 4, popularity_exponent=0.0, backward=0.5)
    expected = np.zeros((4, 4))
    expected[0, 1], expected[1, 0] = 2, 1  # 1 follows 0 twice; backwards at half weight
    expected[0, 2], expected[2, 0] = 2**-0.5, 0.5 * 2**-0.5
    expected[1, 2] = expected[2, 1] = 1.5  # once after and once before
    expected[3, 2], expected[2, 3] = 1, 0.5
    expected[3, 1], expected[1, 3] = 2**-0.5, 0.5 * 2**-0.5
    np.testing.assert_allclose(knn.similarity.toarray(), expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("train", "history", "options", "expected"),
    [
        ([[0, 1], [2, 3]], [0, 2], {}, [3, 1, -1, -1]),  # recent items have more weight
        ([[0, 1], [2, 3]], [2, 0], {}, [1, 3, -1, -1]),
        ([[0, 0, 0, 1], [2, 1]], [0], {"exclude_seen": False}, [0, 1, 2, -1]),  # a repeated item votes for itself
        ([[0, 1], *[[2]] * 9], [0] + [3] * 80, {}, [1, 2, -1, -1]),  # any vote counts more than popularity
        ([[0, 1, 2], [0, 1], [3, 2, 1]], [], {}, [1, 0, 2, 3]),  # no votes: by popularity
        ([], [1], {}, [0, 2, 3, -1]),
    ],
)
def test_votes_by_hand(train, history, options, expected):
    n_items = 3 if expected == [0, 1, 2, -1] else 4
    knn = ItemKNN([np.array(each) for each in train], n_items, popularity_exponent=0.0)
    assert knn.rank([history], k=4, **options).items.tolist() == [expected]


def plain(histories, n_items, exponent, backward, window):
    """The docstring's formula as two loops over the places of every history."""
    count = np.maximum(np.bincount(np.concatenate(histories).astype(int), minlength=n_items), 1)
    similarity = np.zeros((n_items, n_items))
    for history in histories:
        for p, i in enumerate(history):
            for q, j in enumerate(history):
                if p != q and abs(p - q) <= window:
                    weight = abs(p - q) ** -0.5 * (1 if q > p else backward)
                    similarity[int(i), int(j)] += weight / (count[int(i)] * count[int(j)]) ** exponent
    return similarity


@given(
    some_histories,
    st.lists(st.integers(0, 5), max_size=6),
    st.sampled_from([0.0, 0.3]),
    st.sampled_from([0.0, 0.5, 1.0]),
    st.sampled_from([1, 2, 50]),
)
def test_scores_equal_two_loops(histories, asked, exponent, backward, window):
    knn = ItemKNN(histories, 6, exponent, backward, decay=0.5, window=window)
    expected = plain(histories, 6, exponent, backward, window)
    np.testing.assert_allclose(knn.similarity.toarray(), expected, rtol=1e-5, atol=1e-6)
    weight = 0.5 ** np.arange(len(asked))[::-1]
    votes = weight @ expected[np.array(asked, dtype=int)]
    found = knn.scores([np.array(asked, dtype=int)])[0]
    np.testing.assert_allclose(np.maximum(found, 0), votes, rtol=1e-5, atol=1e-5)
    assert ((found > 0) == (votes > 0)).all() and (found >= -1).all()


def test_a_prior_is_the_logarithm_of_votes():
    knn, asked = ItemKNN(HISTORIES, n_items=5), [[0], [], [2, 1]]
    scores, prior = knn.scores(asked), knn.prior(asked)
    assert (scores.dtype, prior.dtype) == (np.float32, np.float32)
    np.testing.assert_allclose(prior, 1.5 * np.log(np.maximum(scores, 0) + 0.03), rtol=1e-5)
    assert knn.scores([]).shape == (0, 5)


# --- the other baselines that let the items of a history vote ---

VECTORS = np.array([[1, 0], [0, 2], [1, 1], [0, 0.5], [-1, 0]], dtype=float)
METHODS = {
    "sequential rules": SequentialRules,
    "user-kNN": UserKNN,
    "text only": lambda histories, n_items: TextOnly(histories, VECTORS[:n_items]),
    "transition graph": lambda histories, n_items: TransitionGraph(histories, VECTORS[:n_items]),
}


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_conventions_of_a_ranking(method):
    model = method(HISTORIES, 5)
    ranked = model.rank([[0, 2], [], [0, 1, 2, 3, 4]], k=5)
    assert sorted(ranked.items[0]) == [-1, -1, 1, 3, 4]
    assert ranked.items[1].tolist() == [1, 0, 2, 3, 4]  # by popularity, ties by item row
    assert (ranked.items[2] == -1).all() and (ranked.scores[2] == -np.inf).all()
    assert sorted(model.rank([[0, 2]], k=5, exclude_seen=False).items[0]) == [0, 1, 2, 3, 4]
    assert model.scores([[0], []]).dtype == np.float32 and model.scores([]).shape == (0, 5)
    assert method([], 3).rank([[]], k=3).items.tolist() == [[0, 1, 2]]


@given(some_histories, st.lists(st.integers(0, 5), max_size=6), st.sampled_from([1, 3]), st.sampled_from([0.0, 0.5]))
def test_rules_equal_two_loops(histories, asked, window, decay):
    votes = np.zeros(6)
    for age, item in enumerate(asked[::-1]):
        for history in histories:
            for at in np.flatnonzero(history == item):
                for distance, follower in enumerate(history[at + 1 :][:window], start=1):
                    votes[int(follower)] += decay**age / distance**0.75
    found = SequentialRules(histories, 6, decay, window, distance_exponent=0.75).scores([np.array(asked, dtype=int)])
    np.testing.assert_allclose(np.maximum(found[0], 0), votes, rtol=1e-5, atol=1e-6)


@given(some_histories, st.lists(st.integers(0, 5), max_size=6), st.sampled_from([1, 2, 50]))
def test_user_knn_equals_plain_loops(histories, asked, n_neighbours):
    count = np.maximum(np.bincount(np.concatenate(histories).astype(int), minlength=6), 1)
    near = []
    for history in histories:
        shared = [0.5**age * count[item] ** -0.3 for age, item in enumerate(asked[::-1]) if item in history]
        near.append(sum(shared) / max(len(set(history)), 1) ** 0.7)
    least = sorted(near, reverse=True)[:n_neighbours][-1]  # equally similar histories are all kept
    votes = np.zeros(6)
    for history, similarity in zip(histories, near, strict=True):
        for item in {int(item) for item in history}:
            votes[item] += similarity * (similarity >= least * (1 - 1e-6))
    knn = UserKNN(histories, 6, n_neighbours, decay=0.5, popularity_exponent=0.3, length_exponent=0.7)
    found = np.maximum(knn.scores([np.array(asked, dtype=int)])[0], 0)
    np.testing.assert_allclose(found, votes, rtol=1e-4, atol=1e-5)


def test_text_by_hand():
    text = TextOnly([[4]], VECTORS, decay=0.5)
    wanted = np.array([0.5, 1.0]) / np.hypot(0.5, 1.0)  # item 1 last, item 0 before it
    expected = [wanted[0], wanted[1], wanted.sum() / 2**0.5, wanted[1], -wanted[0]]
    np.testing.assert_allclose(text.scores([[0, 1]])[0], expected, rtol=1e-6)
    assert text.rank([[3]], k=2).items.tolist() == [[1, 2]]  # the length of a vector does not matter
    assert text.rank([[]], k=1).items.tolist() == [[4]]


def test_transitions_by_hand():
    flat = np.zeros((6, 2))  # all texts alike
    graph = TransitionGraph([[0, 1, 2], [0, 1], [0, 3], [4, 0]], flat, decay=0.5, edge=1, one_step=10, two_steps=3)
    rare = np.log(2) / np.log(3)  # 0 -> 3 once, 0 -> 1 twice
    np.testing.assert_allclose(graph.scores([[0]])[0, 1:4], [11, 3, 10 + rare], rtol=1e-6)
    np.testing.assert_allclose(graph.scores([[4, 5]])[0, [0, 1, 3]], [5.5, 1.5, 1.5], rtol=1e-6)
    assert graph.rank([[0]], k=5).items.tolist() == [[1, 3, 2, 4, 5]]
    assert graph.rank([[2]], k=2).items.tolist() == [[0, 1]]  # nothing follows item 2: by popularity
    back = TransitionGraph([[0, 1, 0]], np.zeros((3, 1)), edge=0, one_step=10, two_steps=3)
    assert back.similarity.toarray().tolist() == [[0, 10, 0], [10, 0, 0], [0, 0, 0]]  # two steps back to itself
    near = TransitionGraph([[0, 1, 2], [0, 3]], VECTORS, edge=0, one_step=0, two_steps=0)
    np.testing.assert_allclose(near.scores([[2, 0]]), TextOnly([[0]], VECTORS, decay=0.6).scores([[2, 0]]), rtol=1e-6)
