"""Popularity, item-kNN and top-k on four items, and the item-kNN against two plain loops."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from semid_lib.decoding.ranking import top_k
from semid_lib.next_item.baselines import ItemKNN, Popularity

# counts: item 0 twice, 1 three times, 2 twice, 3 once
HISTORIES = [np.array([0, 1, 2]), np.array([0, 1]), np.array([3, 2, 1])]
some_histories = st.lists(st.lists(st.integers(0, 5), max_size=7).map(np.array), min_size=1, max_size=6)


def test_popularity_by_hand():
    ranked = Popularity(HISTORIES, n_items=5).rank([[], [1, 1], [0, 1, 2, 3, 4]], k=3)
    assert ranked.items.tolist() == [[1, 0, 2], [0, 2, 3], [-1, -1, -1]]
    assert ranked.scores[:2].tolist() == [[3, 2, 2], [2, 2, 1]]
    assert (ranked.scores[2] == -np.inf).all()


def test_seen_items_come_out_when_they_may():
    assert Popularity(HISTORIES, 4).rank([[1]], k=4, exclude_seen=False).items.tolist() == [[1, 0, 2, 3]]
    knn = ItemKNN([np.array([0, 1, 0])], n_items=2)
    assert knn.rank([[0, 1]], k=2, exclude_seen=False).items.tolist() == [[0, 1]]
    assert knn.rank([[0, 1]], k=2).items.tolist() == [[-1, -1]]


def test_similarity_by_hand():
    knn = ItemKNN(HISTORIES, 4, popularity_exponent=0.0, backward=0.5)
    similarity = knn.similarity.toarray()
    assert similarity[0, 1] == 2  # twice right behind it
    assert similarity[1, 0] == 1  # twice right before it, at half weight
    assert similarity[0, 2] == pytest.approx(2**-0.5)
    assert similarity[1, 2] == similarity[2, 1] == 1.5  # once after and once before
    assert similarity[3, 1] == pytest.approx(2**-0.5)
    assert similarity[0, 3] == 0
    assert (similarity.diagonal() == 0).all()


def test_recent_items_vote_with_more_weight():
    knn = ItemKNN([np.array([0, 1]), np.array([2, 3])], n_items=4, popularity_exponent=0.0, decay=0.7)
    assert knn.rank([[0, 2]], k=2).scores[0].tolist() == pytest.approx([1, 0.7])
    assert knn.rank([[0, 2]], k=2).items.tolist() == [[3, 1]]
    assert knn.rank([[2, 0]], k=2).items.tolist() == [[1, 3]]


def test_an_item_that_is_bought_again_votes_for_itself():
    knn = ItemKNN([np.array([0, 0, 0, 1]), np.array([2, 1])], n_items=3, popularity_exponent=0.0)
    assert knn.similarity[0, 0] == pytest.approx(1.5 * (2 + 2**-0.5))  # two steps of one and one of two, both ways
    assert knn.rank([[0]], k=1, exclude_seen=False).items.tolist() == [[0]]
    assert knn.rank([[0]], k=1).items.tolist() == [[1]]


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
    st.sampled_from([0.0, 0.3, 0.5]),
    st.sampled_from([0.0, 0.5, 1.0]),
    st.sampled_from([1, 2, 50]),
)
def test_similarity_equals_two_loops(histories, exponent, backward, window):
    knn = ItemKNN(histories, 6, exponent, backward, window=window)
    expected = plain(histories, 6, exponent, backward, window)
    np.testing.assert_allclose(knn.similarity.toarray(), expected, rtol=1e-5, atol=1e-6)


@given(some_histories, st.lists(st.integers(0, 5), min_size=1, max_size=6))
def test_the_plain_special_case_scores_like_two_loops(histories, asked):
    knn = ItemKNN(histories, 6, popularity_exponent=0.5, backward=1.0, decay=1.0)
    expected = plain(histories, 6, 0.5, 1.0, 50)[asked].sum(axis=0)
    ranked = knn.rank([asked], k=6, exclude_seen=False)
    votes = np.maximum(ranked.scores[0], 0)  # how items without a vote are ordered is another matter
    np.testing.assert_allclose(votes, expected[ranked.items[0]], rtol=1e-5, atol=1e-5)
    assert sorted(ranked.items[0]) == list(range(6))


def test_a_prior_is_the_logarithm_of_votes():
    knn, asked = ItemKNN(HISTORIES, n_items=5), [[0], [], [2, 1]]
    scores, prior = knn.scores(asked), knn.prior(asked, weight=3.0, floor=0.01)
    assert scores.shape == prior.shape == (3, 5)
    assert (scores.dtype, prior.dtype) == (np.float32, np.float32)
    voted = scores > 0
    assert voted.sum(axis=1).tolist() == [2, 0, 4]
    np.testing.assert_allclose(prior[voted], 3 * np.log(scores[voted] + 0.01), rtol=1e-5)
    np.testing.assert_allclose(prior[~voted], 3 * np.log(0.01), rtol=1e-5)
    assert knn.scores([]).shape == (0, 5)


def test_without_votes_the_popular_items_come():
    knn = ItemKNN(HISTORIES, n_items=5)
    assert knn.rank([[], [4]], k=4).items.tolist() == [[1, 0, 2, 3], [1, 0, 2, 3]]


def test_a_vote_counts_more_than_popularity_however_old():
    # 0 -> 1 was seen once; item 2 is bought alone and often; the last 80 items of the shopper lead nowhere
    histories = [np.array([0, 1]), *[np.array([2])] * 9]
    knn = ItemKNN(histories, n_items=4)
    assert knn.rank([np.array([0] + [3] * 80)], k=2).items.tolist() == [[1, 2]]


@given(some_histories, some_histories, st.integers(1, 9), st.booleans())
def test_lists_never_repeat_and_scores_never_rise(histories, asked, k, exclude_seen):
    for method in (Popularity(histories, 6), ItemKNN(histories, 6)):
        ranked = method.rank(asked, k, exclude_seen)
        assert ranked.items.shape == ranked.scores.shape == (len(asked), k)
        for items, scores, history in zip(ranked.items, ranked.scores, asked, strict=True):
            real = items[items >= 0].tolist()
            seen = set(history.tolist()) if exclude_seen else set()
            assert len(real) == len(set(real)) == min(k, 6 - len(seen))
            assert not seen & set(real)
            assert (scores[:-1] >= scores[1:]).all()


def test_a_block_does_not_change_the_answer(monkeypatch):
    knn = ItemKNN(HISTORIES, n_items=4)
    asked = [np.array([0]), np.array([], dtype=np.int64), np.array([2, 1]), np.array([3])]
    together = knn.rank(asked, k=3)
    monkeypatch.setattr("semid_lib.next_item.baselines._BLOCK", 1)
    np.testing.assert_array_equal(knn.rank(asked, k=3).items, together.items)


@pytest.mark.parametrize("method", [Popularity(HISTORIES, 4), ItemKNN(HISTORIES, 4)])
def test_nobody_asks(method):
    assert method.rank([], k=3).items.shape == (0, 3)


@pytest.mark.parametrize("k", [0, -1])
def test_k_below_one_is_refused(k):
    with pytest.raises(ValueError, match=str(k)):
        Popularity(HISTORIES, 4).rank([[0]], k)


@pytest.mark.parametrize("method", [Popularity(HISTORIES, 4), ItemKNN(HISTORIES, 4)], ids=["popularity", "item-kNN"])
@pytest.mark.parametrize(("history", "found"), [([4], "item row 4"), ([0, -1], "item row -1"), ([0.5], "0.5")])
def test_rows_outside_the_catalogue_are_refused(method, history, found):
    with pytest.raises(ValueError, match=f"history 1 .*{found}.*, expected (0 to 3|integer item rows)"):
        method.rank([[0], history], k=1)


def test_no_history_to_learn_from():
    for histories in ([], [np.array([], dtype=np.int64)]):
        assert ItemKNN(histories, n_items=3).rank([[1]], k=3).items.tolist() == [[0, 2, -1]]
        assert Popularity(histories, n_items=3).rank([[1]], k=3).items.tolist() == [[0, 2, -1]]


def test_top_k_by_hand():
    scores = np.array([[1, 3, 3, 2], [5, 5, 5, 5], [-np.inf, 0, -np.inf, -1]], dtype=np.float32)
    best = top_k(scores, 3)
    assert best.items.tolist() == [[1, 2, 3], [0, 1, 2], [1, 3, -1]]
    assert best.scores.tolist() == [[3, 3, 2], [5, 5, 5], [0, -1, -np.inf]]
    assert top_k(np.full((1, 2), -np.inf, np.float32), 3).items.tolist() == [[-1, -1, -1]]


@given(st.lists(st.sampled_from([-np.inf, -1.0, 0.0, 0.5, 2.0]), min_size=1, max_size=12), st.integers(1, 15))
def test_top_k_equals_sorting_everything(scores, k):
    expected = sorted((-score, column) for column, score in enumerate(scores) if score > -np.inf)[:k]
    found = top_k(np.array([scores], dtype=np.float32), k)
    assert found.items[0].tolist() == [column for _, column in expected] + [-1] * (k - len(expected))
