"""Statistics of codes, on catalogues small enough to count."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.metrics import adjusted_mutual_info_score

from semid_lib.ids import codebooks, quantize

# four items; level 0 uses codes 0 (three times) and 2 (once), level 1 uses all four
CODES = np.array([[0, 0], [0, 1], [0, 2], [2, 3]])
some_codes = hnp.arrays(np.int64, st.tuples(st.integers(1, 12), st.integers(1, 3)), elements=st.integers(0, 4))


def test_by_hand():
    np.testing.assert_array_equal(codebooks.code_counts(CODES, 4), [[3, 0, 1, 0], [1, 1, 1, 1]])
    np.testing.assert_array_equal(codebooks.utilization(CODES, 4), [0.5, 1.0])
    entropy = -(0.75 * np.log(0.75) + 0.25 * np.log(0.25))
    np.testing.assert_allclose(codebooks.perplexity(CODES, 4), [np.exp(entropy), 4.0])


@pytest.mark.parametrize("bad", [-1, 4])
def test_codes_outside_the_codebook_are_refused(bad):
    with pytest.raises(ValueError, match=str(bad)):
        codebooks.code_counts(np.array([[0], [bad]]), codebook_size=4)


def test_dead_codes_by_hand():
    assert [level.tolist() for level in codebooks.dead_codes(CODES, 4)] == [[1, 3], []]


@given(some_codes)
def test_dead_codes_are_those_that_utilization_misses(codes):
    dead = codebooks.dead_codes(codes, 5)
    np.testing.assert_allclose([1 - len(level) / 5 for level in dead], codebooks.utilization(codes, 5))
    for level, column in zip(dead, codes.T, strict=True):
        assert set(level.tolist()).isdisjoint(column.tolist())


@given(some_codes)
def test_perplexity_lies_between_one_and_the_codes_in_use(codes):
    used = codebooks.utilization(codes, 5) * 5
    perplexity = codebooks.perplexity(codes, 5)
    assert (perplexity >= 1 - 1e-9).all()
    assert (perplexity <= used + 1e-9).all()


@given(some_codes)
def test_collision_rate_counts_distinct_tuples(codes):
    distinct = len({tuple(row) for row in codes.tolist()})
    assert codebooks.collision_rate(codes) == pytest.approx(1 - distinct / len(codes))


def test_collision_sizes_by_hand():
    codes = np.array([[1, 1], [1, 1], [0, 2], [1, 1], [2, 0], [2, 0]])
    assert codebooks.collision_sizes(codes).tolist() == [0, 1, 1, 1]  # one alone, one pair, one of three


@given(some_codes)
def test_collision_sizes_add_up(codes):
    sizes = codebooks.collision_sizes(codes)
    assert sizes @ np.arange(len(sizes)) == len(codes)
    assert 1 - sizes.sum() / len(codes) == pytest.approx(codebooks.collision_rate(codes))


# --- do prefixes mean anything? ---


def test_pair_agreement_by_hand():
    # pairs that share a prefix: three under 0 (labels a a b: one agrees), one under 1 (b b: agrees)
    prefixes = np.array([[0], [1], [0], [0], [1]])
    assert codebooks.pair_agreement(prefixes, np.array(["a", "b", "a", "b", "b"])) == pytest.approx(2 / 4)
    assert np.isnan(codebooks.pair_agreement(np.arange(3)[:, None], np.array([1, 1, 1])))


@given(some_codes, st.data())
def test_pair_agreement_equals_counting_pairs(prefixes, data):
    labels = np.array(data.draw(st.lists(st.integers(0, 2), min_size=len(prefixes), max_size=len(prefixes))))
    pairs = [(i, j) for i, j in combinations(range(len(labels)), 2) if (prefixes[i] == prefixes[j]).all()]
    expected = np.mean([labels[i] == labels[j] for i, j in pairs]) if pairs else np.nan
    assert codebooks.pair_agreement(prefixes, labels) == pytest.approx(expected, nan_ok=True)


def test_purity_by_hand():
    # pairs under a prefix: (a, a), (a, b), (a, b) and (b, b): 2 of 4 agree. Of all ten pairs, 3 + 1 agree by label.
    prefixes, labels = np.array([[0], [0], [0], [1], [1]]), np.array(["a", "a", "b", "b", "b"])
    purity = codebooks.prefix_purity(prefixes, labels)
    assert (purity.observed, purity.expected) == (0.5, 0.4)
    assert purity.adjusted == pytest.approx(0.1 / 0.6)
    # resampled prefixes: both the first (1 / 3), both the second (1), or one of each
    assert purity.low == pytest.approx((1 / 3 - 0.4) / 0.6)
    assert purity.high == pytest.approx(1)


@given(some_codes, st.data())
def test_purity_observes_pair_agreement(prefixes, data):
    labels = np.array(data.draw(st.lists(st.integers(0, 2), min_size=len(prefixes), max_size=len(prefixes))))
    purity = codebooks.prefix_purity(prefixes, labels, n_resamples=20)
    pairs = list(combinations(labels, 2))
    if np.isnan(purity.observed):
        assert len(np.unique(prefixes, axis=0)) == len(prefixes) or len(set(labels.tolist())) == 1
    else:
        assert purity.observed == codebooks.pair_agreement(prefixes, labels)
        assert purity.expected == pytest.approx(np.mean([a == b for a, b in pairs]))
        assert purity.low <= purity.high or np.isnan(purity.low)


def test_random_labels_are_pure_by_chance_only():
    rng = np.random.default_rng(0)
    prefixes, labels = rng.integers(40, size=(2000, 1)), rng.choice(["a", "b", "c"], p=[0.7, 0.2, 0.1], size=2000)
    purity = codebooks.prefix_purity(prefixes, labels)
    assert purity.observed > 0.5
    assert purity.low < 0 < purity.high
    assert abs(purity.adjusted) < 0.02
    assert purity == codebooks.prefix_purity(prefixes, labels)  # the seed decides


def test_purity_has_no_interval_from_a_single_prefix():
    purity = codebooks.prefix_purity(np.array([[0], [0], [0], [1]]), np.array([1, 1, 2, 2]))
    assert purity.observed == pytest.approx(1 / 3)
    assert np.isnan([purity.low, purity.high]).all()


def test_purity_needs_a_label_each():
    with pytest.raises(ValueError, match="2 labels for 4 items"):
        codebooks.prefix_purity(CODES, np.array([1, 2]))


@pytest.mark.parametrize("missing", [None, float("nan")])
def test_items_without_a_label_have_no_purity(missing):
    labels = np.array(["a", missing, 3, missing], dtype=object)
    for measure in (codebooks.prefix_purity, codebooks.pair_agreement):
        with pytest.raises(ValueError, match="label 1 is missing, as are 2 in all: leave these items out"):
            measure(CODES, labels)


def test_labels_of_any_kind():
    mixed, plain = np.array(["a", 3, ("b",), 3], dtype=object), np.array([0, 1, 2, 1])
    assert codebooks.pair_agreement(CODES[:, :1], mixed) == codebooks.pair_agreement(CODES[:, :1], plain)


def test_neighbours_by_hand():
    # on a line at 0, 1, 3, 10, 11: the two nearest are {1, 3}, {0, 3}, {1, 0}, {11, 3}, {10, 3}
    line = np.array([[0.0], [1.0], [3.0], [10.0], [11.0]])
    codes = np.array([[0, 0], [0, 0], [0, 1], [1, 0], [1, 0]])
    found = codebooks.neighbour_preservation(line, codes, k=2)
    np.testing.assert_allclose(found.share, [8 / 10, 4 / 10])
    np.testing.assert_allclose(found.by_chance, [4 / 10, 2 / 10])


@given(st.integers(0, 99), st.integers(1, 5), st.sampled_from([1, 4, 100]))
def test_neighbours_equal_brute_force_in_any_block(seed, k, block):
    rng = np.random.default_rng(seed)
    vectors, codes = rng.normal(size=(12, 3)) + 100, rng.integers(3, size=(12, 2))
    distance = np.linalg.norm(vectors[:, None] - vectors, axis=2) + np.diag([np.inf] * 12)
    near = distance.argsort(axis=1)[:, :k]
    expected = [np.mean((codes[near, :d] == codes[:, None, :d]).all(axis=2)) for d in (1, 2)]
    found = codebooks.neighbour_preservation(vectors, codes, k, block=block)
    np.testing.assert_allclose(found.share, expected)


def test_random_codes_preserve_neighbours_by_chance_only():
    rng = np.random.default_rng(0)
    found = codebooks.neighbour_preservation(rng.normal(size=(800, 4)), rng.integers(4, size=(800, 2)), n_queries=500)
    np.testing.assert_allclose(found.share, found.by_chance, atol=0.02)
    np.testing.assert_allclose(found.by_chance, [1 / 4, 1 / 16], atol=0.01)


@pytest.mark.parametrize(("k", "n", "message"), [(0, 4, "got 0 among 4"), (1, 3, "3 vectors for 4")])
def test_neighbours_that_do_not_exist_are_refused(k, n, message):
    with pytest.raises(ValueError, match=message):
        codebooks.neighbour_preservation(np.zeros((n, 2)), CODES, k)


def test_of_fewer_items_than_neighbours_all_are_near():
    found = codebooks.neighbour_preservation(np.arange(4.0)[:, None], CODES, k=10)
    np.testing.assert_allclose(found.share, found.by_chance)
    with pytest.raises(ValueError, match="2 or more items, got 10 among 1"):
        codebooks.neighbour_preservation(np.zeros((1, 2)), CODES[:1])


def test_names_of_codes_do_not_matter_to_stability():
    rng = np.random.default_rng(0)
    codes = rng.integers(6, size=(300, 2))
    renamed = rng.permutation(6)[codes]
    np.testing.assert_allclose(codebooks.prefix_stability(codes, renamed), 1)
    np.testing.assert_allclose(codebooks.prefix_stability(codes, rng.integers(6, size=(300, 2))), 0, atol=0.05)


@given(st.integers(1, 40), st.integers(1, 9), st.integers(1, 9), st.integers(0, 99))
def test_stability_equals_that_of_scikit_learn(n, size, other_size, seed):
    rng = np.random.default_rng(seed)
    codes, others = rng.integers(size, size=(n, 1)), rng.integers(other_size, size=(n, 1))
    found = codebooks.prefix_stability(codes, others)[0]
    if np.isnan(found):
        groups = {len(np.unique(each)) for each in (codes, others)}
        assert groups <= {1, n}
    else:
        assert found == pytest.approx(adjusted_mutual_info_score(codes.ravel(), others.ravel()), abs=1e-9)


def test_stability_needs_the_same_items():
    with pytest.raises(ValueError, match=r"\(4, 2\) and \(3, 2\)"):
        codebooks.prefix_stability(CODES, CODES[:3])


# --- what is lost ---


def test_squared_errors_in_any_block():
    vectors, reconstructed = np.random.default_rng(0).normal(size=(2, 7, 3))
    expected = ((vectors - reconstructed) ** 2).sum(axis=1)
    for block in (1, 3, 100):
        np.testing.assert_allclose(codebooks.squared_errors(vectors, reconstructed, block), expected)
    np.testing.assert_allclose(codebooks.squared_errors(vectors, vectors[0]), ((vectors - vectors[0]) ** 2).sum(axis=1))


@pytest.mark.parametrize("shape", [(3, 2), (2, 3), (1,), ()])
def test_a_reconstruction_of_another_shape_is_refused(shape):
    with pytest.raises(ValueError, match=r"\(2, 2\)"):
        codebooks.squared_errors(np.zeros((2, 2)), np.zeros(shape))


def test_distortion_per_level_of_residual_k_means():
    vectors = np.random.default_rng(0).normal(size=(60, 3)).astype(np.float32)
    quantizer = quantize.fit_residual_kmeans(vectors, n_levels=3, codebook_size=4)
    found = codebooks.distortion_per_level(vectors, quantizer.codes, quantizer.decode)
    assert found.shape == (3,)
    assert found.tolist() == sorted(found, reverse=True)
    assert found[-1] == codebooks.distortion(vectors, quantizer.decode(quantizer.codes))


def test_distortion_by_hand():
    vectors = np.array([[0.0, 0.0], [3.0, 4.0]])
    assert codebooks.distortion(vectors, vectors) == 0
    assert codebooks.distortion(vectors, np.zeros((2, 2))) == 12.5


def test_distortion_is_computed_in_double_precision():
    vectors = np.full((3, 1), 1e4, dtype=np.float32)
    assert codebooks.distortion(vectors, np.full((3, 1), 1e4 + 1e-3)) == pytest.approx(1e-6, rel=1e-6)
