"""Statistics of codes, on catalogues small enough to count."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from semid_lib import codebooks

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


def test_distortion_by_hand():
    vectors = np.array([[0.0, 0.0], [3.0, 4.0]])
    assert codebooks.distortion(vectors, vectors) == 0
    assert codebooks.distortion(vectors, np.zeros((2, 2))) == 12.5


def test_distortion_is_computed_in_double_precision():
    vectors = np.full((3, 1), 1e4, dtype=np.float32)
    assert codebooks.distortion(vectors, np.full((3, 1), 1e4 + 1e-3)) == pytest.approx(1e-6, rel=1e-6)
