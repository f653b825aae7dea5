"""EASE and SLIST against ridge regressions that scikit-learn solves."""

import numpy as np
import pytest
from sklearn.linear_model import Ridge

from semid_lib.next_item.linear import EASE, SLIST, cuts, regularized_inverse

N_ITEMS = 7
HISTORIES = [np.random.default_rng(seed).permutation(6)[: 2 + seed % 4] for seed in range(12)]  # item 6 never occurs
METHODS = (EASE, SLIST)


def test_ease_equals_one_ridge_regression_per_item_on_the_other_items():
    held = np.zeros((len(HISTORIES), N_ITEMS))
    for line, history in zip(held, HISTORIES, strict=True):
        line[history] = 1
    expected = np.zeros((N_ITEMS, N_ITEMS))
    for item in range(N_ITEMS):
        others = np.arange(N_ITEMS) != item
        expected[others, item] = Ridge(alpha=2.5, fit_intercept=False).fit(held[:, others], held[:, item]).coef_
    np.testing.assert_allclose(EASE(HISTORIES, N_ITEMS, 2.5).similarity, expected, atol=1e-5)


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_slist_equals_a_ridge_regression_on_whole_and_on_cut_histories(share):
    rows, wanted, weights = [], [], []
    for history in HISTORIES:
        whole = np.bincount(history, minlength=N_ITEMS)
        rows, wanted, weights = [*rows, whole], [*wanted, whole], [*weights, share]
        for end in range(1, len(history)):
            before, after = np.zeros(N_ITEMS), np.zeros(N_ITEMS)
            for distance, item in enumerate(history[:end][::-1]):
                before[item] += 0.5**distance
            for distance, item in enumerate(history[end:]):
                after[item] += 0.5**distance
            rows, wanted, weights = [*rows, before], [*wanted, after], [*weights, 1 - share]
    ridge = Ridge(alpha=0.7, fit_intercept=False).fit(rows, wanted, sample_weight=weights)
    slist = SLIST(HISTORIES, N_ITEMS, regularization=0.7, share=share, training_decay=0.5)
    np.testing.assert_allclose(slist.similarity, ridge.coef_.T, atol=1e-5)


def test_an_item_of_two_places_counts_once_in_a_history_and_twice_in_its_cuts():
    twice, once = EASE([[0, 0, 1]], 2, 1.0), EASE([[0, 1]], 2, 1.0)
    assert (twice.similarity == once.similarity).all()
    before, after = cuts([[0, 0, 1], [1], []], 2, decay=0.5)
    assert before.toarray().tolist() == [[1, 0], [1.5, 0]] and after.toarray().tolist() == [[1, 0.5], [0, 1]]


@pytest.mark.parametrize("method", METHODS)
def test_the_end_of_a_history_weighs_most(method):
    model = method(HISTORIES, N_ITEMS, decay=0.5)
    expected = model.similarity[[3, 0]].T @ [0.5, 1.0]
    found = model.scores([[3, 0]])
    assert found.dtype == np.float32
    np.testing.assert_allclose(found[0, :6], expected[:6], rtol=1e-5)
    assert found[0, 6] == -1  # an item without interactions comes last


@pytest.mark.parametrize("method", METHODS)
def test_seen_items_are_excluded_and_an_empty_history_gets_popular_items(method):
    model = method([[0, 1], [0, 1], [1, 2], []], 4)
    assert set(model.rank([[0, 1]], k=4).items[0]) == {2, 3, -1}
    assert set(model.rank([[0, 1]], k=4, exclude_seen=False).items[0]) == {0, 1, 2, 3}
    assert model.rank([[]], k=4).items.tolist() == [[1, 0, 2, 3]]
    assert method([], 3).rank([[0]], k=3).items.tolist() == [[1, 2, -1]]  # nothing to learn from: ties by item row


def test_an_inverse_is_symmetric_and_an_inverse():
    import scipy.sparse as sp

    rows = np.random.default_rng(0).normal(size=(9, 6)).astype(np.float32)
    found = regularized_inverse(sp.csr_array(rows.T @ rows), 0.5)
    assert (found == found.T).all()
    np.testing.assert_allclose(found @ (rows.T @ rows + 0.5 * np.eye(6)), np.eye(6), atol=1e-4)
    for wrong in (0, -1.0, float("nan")):
        with pytest.raises(ValueError, match=f"regularization is {wrong}"):
            EASE([[0, 1]], 2, regularization=wrong)
