"""Measures of codes, on catalogues small enough to count."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.metrics import adjusted_mutual_info_score

from semid_lib.ids import codebooks
from semid_lib.ids.codebooks import drift

# four items; level 0 uses codes 0 (three times) and 2 (once), level 1 uses all four
CODES = np.array([[0, 0], [0, 1], [0, 2], [2, 3]])
some_codes = hnp.arrays(np.int64, st.tuples(st.integers(1, 12), st.integers(1, 3)), elements=st.integers(0, 4))
quick = settings(max_examples=40)


def test_use_by_hand():
    np.testing.assert_array_equal(codebooks.code_counts(CODES, 4), [[3, 0, 1, 0], [1, 1, 1, 1]])
    np.testing.assert_array_equal(codebooks.utilization(CODES, 4), [0.5, 1.0])
    entropy = -(0.75 * np.log(0.75) + 0.25 * np.log(0.25))
    np.testing.assert_allclose(codebooks.perplexity(CODES, 4), [np.exp(entropy), 4.0])
    for bad in (-1, 4):
        with pytest.raises(ValueError, match=f"{bad}.*expected 0 to 3"):
            codebooks.code_counts(np.array([[0], [bad]]), codebook_size=4)


@given(some_codes)
@quick
def test_use_and_collisions_of_any_codes(codes):
    perplexity = codebooks.perplexity(codes, 5)
    assert ((perplexity >= 1 - 1e-9) & (perplexity <= codebooks.utilization(codes, 5) * 5 + 1e-9)).all()
    distinct = len({tuple(row) for row in codes.tolist()})
    assert codebooks.collision_rate(codes) == pytest.approx(1 - distinct / len(codes))
    sizes = codebooks.collision_sizes(codes)
    assert (sizes @ np.arange(len(sizes)), sizes.sum(), sizes[0]) == (len(codes), distinct, 0)


# --- meaning of prefixes ---


def test_purity_by_hand():
    # pairs under a prefix: (a, a), (a, b), (a, b) and (b, b): 2 of 4 agree. Of all ten pairs, 3 + 1 agree by label.
    prefixes, labels = np.array([[0], [0], [0], [1], [1]]), np.array(["a", "a", "b", "b", "b"])
    purity = codebooks.prefix_purity(prefixes, labels)
    assert (purity.observed, purity.expected) == (0.5, 0.4)
    assert purity.adjusted == pytest.approx(0.1 / 0.6)
    # resampled prefixes: both the first (1 / 3), both the second (1), or one of each
    assert (purity.low, purity.high) == pytest.approx(((1 / 3 - 0.4) / 0.6, 1))
    assert purity == codebooks.prefix_purity(prefixes, labels)  # the seed decides
    with pytest.raises(ValueError, match="label 4 is missing, as are 1 in all"):
        codebooks.prefix_purity(prefixes, np.array([*"aabb", None], dtype=object))


@given(some_codes, st.data())
@quick
def test_purity_counts_pairs(prefixes, data):
    labels = np.array(data.draw(st.lists(st.sampled_from("abc"), min_size=len(prefixes), max_size=len(prefixes))))
    purity = codebooks.prefix_purity(prefixes, labels, n_resamples=20)
    pairs = list(combinations(range(len(labels)), 2))
    together = [(i, j) for i, j in pairs if (prefixes[i] == prefixes[j]).all()]
    if not together or len(set(labels)) == 1:
        assert np.isnan(purity).all()
    else:
        assert purity.observed == pytest.approx(np.mean([labels[i] == labels[j] for i, j in together]))
        assert purity.expected == pytest.approx(np.mean([labels[i] == labels[j] for i, j in pairs]))
        assert purity.low <= purity.high or len({tuple(prefixes[i]) for i, _ in together}) == 1


def test_neighbours_by_hand():
    # on a line at 0, 1, 3, 10, 11: the two nearest are {1, 3}, {0, 3}, {1, 0}, {11, 3}, {10, 3}
    line = np.array([[0.0], [1.0], [3.0], [10.0], [11.0]])
    codes = np.array([[0, 0], [0, 0], [0, 1], [1, 0], [1, 0]])
    found = codebooks.neighbour_preservation(line, codes, k=2)
    np.testing.assert_allclose(found.share, [8 / 10, 4 / 10])
    np.testing.assert_allclose(found.by_chance, [4 / 10, 2 / 10])
    everyone = codebooks.neighbour_preservation(line, codes, k=10)  # of fewer items than neighbours all are near
    np.testing.assert_allclose(everyone.share, everyone.by_chance)


@given(st.integers(0, 99), st.integers(1, 5))
@quick
def test_neighbours_equal_brute_force(seed, k):
    rng = np.random.default_rng(seed)
    vectors, codes = rng.normal(size=(12, 3)) + 100, rng.integers(3, size=(12, 2))
    distance = np.linalg.norm(vectors[:, None] - vectors, axis=2) + np.diag([np.inf] * 12)
    near = distance.argsort(axis=1)[:, :k]
    expected = [np.mean((codes[near, :d] == codes[:, None, :d]).all(axis=2)) for d in (1, 2)]
    np.testing.assert_allclose(codebooks.neighbour_preservation(vectors, codes, k).share, expected)


@given(st.integers(1, 40), st.integers(1, 9), st.integers(1, 9), st.integers(0, 99))
@quick
def test_stability_equals_that_of_scikit_learn(n, size, other_size, seed):
    rng = np.random.default_rng(seed)
    codes, others = rng.integers(size, size=(n, 1)), rng.integers(other_size, size=(n, 1))
    found = codebooks.prefix_stability(codes, others)[0]
    if np.isnan(found):
        assert {len(np.unique(each)) for each in (codes, others)} <= {1, n}
    else:
        assert found == pytest.approx(adjusted_mutual_info_score(codes.ravel(), others.ravel()), abs=1e-9)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: codebooks.prefix_purity(CODES, np.array(["a", "b"])), "2 labels for 4 items"),
        (lambda: codebooks.neighbour_preservation(np.zeros((4, 2)), CODES, 0), "got 0 among 4"),
        (lambda: codebooks.neighbour_preservation(np.zeros((3, 2)), CODES, 1), "3 vectors for 4"),
        (lambda: codebooks.prefix_stability(CODES, CODES[:3]), r"\(4, 2\) and \(3, 2\)"),
        (lambda: codebooks.squared_errors(np.zeros((2, 2)), np.zeros((3, 2))), r"\(2, 2\)"),
        (lambda: codebooks.squared_errors(np.zeros((2, 2)), np.zeros(1)), r"\(2, 2\)"),
    ],
)
def test_what_does_not_fit_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# --- distortion ---


def test_squared_errors_are_computed_in_double_precision():
    vectors, reconstructed = np.random.default_rng(0).normal(size=(2, 7, 3))
    expected = ((vectors - reconstructed) ** 2).sum(axis=1)
    np.testing.assert_allclose(codebooks.squared_errors(vectors, reconstructed), expected)
    np.testing.assert_allclose(codebooks.squared_errors(vectors, vectors[0]), ((vectors - vectors[0]) ** 2).sum(axis=1))
    large = np.full((3, 1), 1e4, dtype=np.float32)
    assert codebooks.distortion(large, np.full((3, 1), 1e4 + 1e-3)) == pytest.approx(1e-6, rel=1e-6)
    assert np.isnan(codebooks.distortion(vectors[:0], vectors[:0]))


# --- drift ---


def test_drift_by_hand():
    found = drift(np.arange(1.0, 101.0), np.array([99.0, 103.0, 50.0, 20.0]))
    assert (found.n_items, found.ratio, found.share_above) == (4, 68 / 50.5, 0.5)
    assert found.ks == pytest.approx(0.48)  # widest apart at 98: 98 of 100 against 2 of 4
    assert not found.refit  # too few to judge
    assert found.advice.startswith("too few to judge (under 30): 4 new items, ratio 1.35")


@pytest.mark.parametrize(
    ("new", "refit"),
    [
        (np.full(30, 1.4), False),
        (np.full(30, 1.6), True),  # on average half as much again
        (np.full(29, 1.6), False),  # too few
        (np.r_[np.full(70, 0.5), np.full(30, 2.0)], True),  # the mean is as before, but many are far off
    ],
)
def test_the_rule(new, refit):
    reference = np.r_[np.full(94, 1.0 - 6 * 0.45 / 94), np.full(6, 1.45)]  # mean 1, 95th percentile 1.45
    found = drift(reference, new)
    assert found.refit == refit == found.advice.startswith("refit")


def test_drift_without_new_items_and_with_exact_codebooks():
    found = drift(np.ones(5), np.ones(0))
    assert np.isnan([found.ratio, found.share_above, found.ks]).all()
    assert (found.refit, found.advice) == (False, "too few to judge (under 30): no new items")
    assert drift(np.zeros(5), np.zeros(50)).ratio == 1
    assert drift(np.zeros(5), np.ones(50)).refit
    for wrong in ((np.ones(0), np.ones(5)), (np.ones(5), np.array([np.nan])), (np.array([-1.0]), np.ones(5))):
        with pytest.raises(ValueError, match="expected finite errors >= 0"):
            drift(*wrong)
