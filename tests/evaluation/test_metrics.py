"""Ranking metrics and their intervals, by hand and against what must always hold."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from semid_lib.evaluation import metrics

RANK = np.array([1.0, 2.0, 7.0, 10.0, np.inf])
some_ranks = st.lists(st.one_of(st.integers(1, 30).map(float), st.just(np.inf)), min_size=1, max_size=20).map(np.array)


def test_ranks_are_positions_from_one_and_inf_for_a_miss():
    lists = np.array([[4, 2, 9], [4, 2, 9], [4, 2, 9], [-1, -1, -1]])
    np.testing.assert_array_equal(metrics.ranks(lists, np.array([4, 9, 5, 0])), [1, 3, np.inf, np.inf])


def test_ranks_refuse_an_item_twice_and_name_list_and_item():
    with pytest.raises(ValueError, match=r"list 1 .*item 8 "):
        metrics.ranks(np.array([[1, 2, 3], [8, 5, 8]]), np.array([1, 5]))


@pytest.mark.parametrize(("lists", "targets"), [([1, 2], [1]), ([[1, 2]], [1, 2]), ([[1, 2]], [-1]), ([[1, 2]], [[1]])])
def test_ranks_refuse_shapes_and_targets_that_mean_nothing(lists, targets):
    with pytest.raises(ValueError, match=r"expected|negative"):
        metrics.ranks(np.array(lists), np.array(targets))


def test_metrics_by_hand():
    np.testing.assert_array_equal(metrics.recall_at_k(RANK, 7), [1, 1, 1, 0, 0])
    np.testing.assert_allclose(metrics.ndcg_at_k(RANK, 7), [1, 1 / np.log2(3), 1 / 3, 0, 0])
    np.testing.assert_allclose(metrics.reciprocal_rank(RANK), [1, 0.5, 1 / 7, 0.1, 0])


@given(some_ranks, st.integers(1, 29))
def test_longer_lists_never_lose_and_ndcg_never_exceeds_recall(rank, k):
    assert (metrics.recall_at_k(rank, k) <= metrics.recall_at_k(rank, k + 1)).all()
    assert (metrics.ndcg_at_k(rank, k) <= metrics.ndcg_at_k(rank, k + 1)).all()
    assert (metrics.ndcg_at_k(rank, k) <= metrics.recall_at_k(rank, k)).all()
    assert ((metrics.ndcg_at_k(rank, k) > 0) == (metrics.recall_at_k(rank, k) > 0)).all()


@pytest.mark.parametrize("k", [0, -3])
@pytest.mark.parametrize("metric", [metrics.recall_at_k, metrics.ndcg_at_k])
def test_k_below_one_is_refused(metric, k):
    with pytest.raises(ValueError, match=str(k)):
        metric(RANK, k)


def test_validity_rate_counts_filled_places_only():
    assert metrics.validity_rate(np.array([[0, 4], [5, -1]]), n_items=5) == pytest.approx(2 / 3)
    assert metrics.validity_rate(np.array([[0, -7]]), n_items=5) == 0.5
    assert np.isnan(metrics.validity_rate(np.array([[-1, -1]]), n_items=5))


def test_bootstrap_covers_a_known_mean_as_often_as_it_says():
    # every column is a sample of its own with mean 3
    samples = np.random.default_rng(0).exponential(3.0, size=(80, 400))
    for confidence, low, high in [(0.95, 0.90, 0.98), (0.5, 0.42, 0.58)]:
        intervals = metrics.bootstrap_intervals(samples, n_resamples=400, confidence=confidence)
        covered = np.mean([interval.low <= 3.0 <= interval.high for interval in intervals])
        assert low < covered < high


def test_bootstrap_depends_on_its_seed_alone():
    values = np.random.default_rng(2).random((50, 3))
    first, again, other = (metrics.bootstrap_intervals(values, 100, seed=seed) for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_bootstrap_columns_share_their_resamples():
    column = np.random.default_rng(3).random(40)
    low, high = metrics.bootstrap_intervals(np.column_stack([column, column + 1]), 100)
    assert np.subtract(high, low) == pytest.approx([1, 1, 1])


def test_bootstrap_of_nobody_and_of_one():
    with pytest.raises(ValueError, match="no users"):
        metrics.bootstrap_intervals(np.empty((0, 2)))
    assert metrics.bootstrap_intervals(np.array([[0.25]])) == [(0.25, 0.25, 0.25)]


# --- what lists expose ---

some_lists = st.integers(1, 6).flatmap(
    lambda k: st.lists(
        st.lists(st.integers(-1, 9), min_size=k, max_size=k, unique_by=lambda item: item if item >= 0 else object()),
        min_size=1,
        max_size=8,
    ).map(np.array)
)


def test_coverage_by_hand():
    assert metrics.coverage(np.array([[0, 3], [3, -1], [-1, -1]]), n_items=5) == 0.4
    assert metrics.coverage(np.array([[-1, 5], [7, 4]]), n_items=5) == 0.2  # 5 and 7 are no items of five
    assert metrics.coverage(np.empty((0, 10), dtype=int), n_items=5) == 0
    with pytest.raises(ValueError, match="got 0"):
        metrics.coverage(np.array([[0]]), n_items=0)


@given(some_lists, st.integers(0, 7))
def test_coverage_is_a_share_that_more_users_never_lower(lists, n):
    part, whole = metrics.coverage(lists[:n], 10), metrics.coverage(lists, 10)
    assert 0 <= part <= whole <= min(1, lists.size / 10)
    assert whole == len({item for row in lists.tolist() for item in row} - {-1}) / 10


def test_list_means_by_hand():
    lists = np.array([[0, 3], [3, -1], [-1, -1], [-1, 1]])
    found = metrics.list_means(lists, np.array([4, 2, 9, 1]))
    np.testing.assert_array_equal(found, [2.5, 1, np.nan, 2])
    tail = metrics.list_means(lists, np.array([False, True, False, True]))
    np.testing.assert_array_equal(tail, [0.5, 1, np.nan, 1])
    for wrong in ([[0, 4]], [[0, -2]]):
        with pytest.raises(ValueError, match="expected -1 for none and rows below 4"):
            metrics.list_means(np.array(wrong), np.ones(4))


@given(some_lists, st.lists(st.integers(0, 50), min_size=10, max_size=10).map(np.array))
def test_list_means_equal_plain_loops(lists, values):
    found = metrics.list_means(lists, values)
    for mean, row in zip(found, lists.tolist(), strict=True):
        worth = [values[item] for item in row if item >= 0]
        assert mean == pytest.approx(np.mean(worth)) if worth else np.isnan(mean)


# --- several relevant items ---

some_queries = st.lists(
    st.tuples(
        st.lists(st.integers(0, 12), unique=True, min_size=6, max_size=6),
        st.lists(st.integers(0, 15), min_size=1, max_size=5),
    ),
    min_size=1,
    max_size=5,
)


def test_several_relevant_items_by_hand():
    lists = np.array([[4, 2, 9], [4, 2, 9], [1, -1, -1]])
    relevant = [np.array([9, 2]), np.array([7, 8]), np.array([1, 1, 2, 3, 4])]
    assert metrics.recall_of_relevant(lists, relevant, 2).tolist() == [0.5, 0, 0.25]
    assert metrics.recall_of_relevant(lists, relevant, 3).tolist() == [1, 0, 0.25]
    assert metrics.first_ranks(lists, relevant).tolist() == [2, np.inf, 1]


@given(some_queries, st.integers(1, 6))
def test_recall_and_first_ranks_equal_plain_sets(queries, k):
    lists, relevant = np.array([items for items, _ in queries]), [np.array(rows) for _, rows in queries]
    recall, first = metrics.recall_of_relevant(lists, relevant, k), metrics.first_ranks(lists, relevant)
    for query, (items, rows) in enumerate(queries):
        assert recall[query] == pytest.approx(len(set(items[:k]) & set(rows)) / len(set(rows)))
        places = [place for place, item in enumerate(items, 1) if item in rows]
        assert first[query] == (min(places) if places else np.inf)
    assert ((recall > 0) == (metrics.recall_at_k(first, k) > 0)).all()


@given(some_queries, st.integers(1, 6))
def test_with_one_relevant_item_it_is_the_recall_of_its_rank(queries, k):
    lists, targets = np.array([items for items, _ in queries]), np.array([rows[0] for _, rows in queries])
    relevant = targets[:, None]
    np.testing.assert_array_equal(metrics.first_ranks(lists, relevant), metrics.ranks(lists, targets))
    expected = metrics.recall_at_k(metrics.ranks(lists, targets), k)
    np.testing.assert_array_equal(metrics.recall_of_relevant(lists, relevant, k), expected)


@pytest.mark.parametrize(
    ("lists", "relevant", "k", "message"),
    [
        ([[1, 2]], [[1], [2]], 1, "n relevant"),
        ([1, 2], [[1], [2]], 1, "n relevant"),
        ([[1, 2], [1, 2]], [[1], []], 1, "of query 1"),
        ([[1, 2]], [[-1]], 1, "of query 0"),
        ([[1, 2]], [[1.5]], 1, "of query 0"),
        ([[1, 1]], [[1]], 1, "more than once"),
        ([[1, 2]], [[1]], 3, "2 places, expected at least k = 3"),
        ([[1, 2]], [[1]], 0, "got 0"),
    ],
)
def test_relevant_items_and_lists_that_mean_nothing_are_refused(lists, relevant, k, message):
    with pytest.raises(ValueError, match=message):
        metrics.recall_of_relevant(np.array(lists), relevant, k)
