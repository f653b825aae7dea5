"""Popularity and item-kNN on four items, and the item-kNN against two plain loops."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from semid_lib.next_item.baselines import ItemKNN, Popularity

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
    scores, prior = knn.scores(asked), knn.prior(asked, weight=3.0, floor=0.01)
    assert (scores.dtype, prior.dtype) == (np.float32, np.float32)
    np.testing.assert_allclose(prior, 3 * np.log(np.maximum(scores, 0) + 0.01), rtol=1e-5)
    assert knn.scores([]).shape == (0, 5)
