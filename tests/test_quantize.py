"""Residual k-means: by hand, against brute force and scikit-learn, and what it must refuse."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.cluster import KMeans

from semid_lib import codebooks, quantize

# a far pair of clusters along x; within each, two points one apart along y
SQUARE = np.array([[0.0, 0.0], [0.0, 1.0], [10.0, 0.0], [10.0, 1.0]])


@pytest.fixture(scope="module")
def vectors() -> np.ndarray:
    rng = np.random.default_rng(0)
    return (rng.normal(size=(12, 6))[rng.integers(12, size=300)] + 0.3 * rng.normal(size=(300, 6))).astype(np.float32)


def brute_force(vectors, levels):
    """Codes by comparing every distance, in double precision."""
    residual, codes = vectors.astype(np.float64), []
    for codebook in levels.astype(np.float64):
        distance = np.linalg.norm(residual[:, None] - codebook[None], axis=2)
        codes.append(distance.argmin(axis=1))
        residual = residual - codebook[codes[-1]]
    return np.column_stack(codes)


def test_a_case_in_the_plane():
    result = quantize.fit_residual_kmeans(SQUARE, n_levels=2, codebook_size=2)
    assert {tuple(centre) for centre in result.codebooks[0].tolist()} == {(0.0, 0.5), (10.0, 0.5)}
    assert {tuple(offset) for offset in result.codebooks[1].tolist()} == {(0.0, -0.5), (0.0, 0.5)}
    assert result.codes[0, 0] == result.codes[1, 0] != result.codes[2, 0] == result.codes[3, 0]
    assert result.codes[0, 1] == result.codes[2, 1] != result.codes[1, 1] == result.codes[3, 1]
    np.testing.assert_array_equal(quantize.decode(result.codes, result.codebooks), SQUARE)


def test_shapes_and_types(vectors):
    result = quantize.fit_residual_kmeans(vectors, n_levels=3, codebook_size=8)
    assert (result.codes.shape, result.codes.dtype) == ((300, 3), np.int64)
    assert (result.codebooks.shape, result.codebooks.dtype) == ((3, 8, 6), np.float32)


def test_encoding_the_fitted_vectors_gives_their_codes_again(vectors):
    result = quantize.fit_residual_kmeans(vectors, n_levels=3, codebook_size=8)
    np.testing.assert_array_equal(quantize.encode(vectors, result.codebooks), result.codes)
    for row in (
        0,
        17,
        299,
    ):  # one at a time as well: nothing about a vector's codes depends on its neighbours
        np.testing.assert_array_equal(quantize.encode(vectors[[row]], result.codebooks)[0], result.codes[row])


def test_codes_equal_brute_force(vectors):
    result = quantize.fit_residual_kmeans(vectors, n_levels=3, codebook_size=8)
    np.testing.assert_array_equal(result.codes, brute_force(vectors, result.codebooks))


@pytest.mark.parametrize("n_iterations", [1, 25])
def test_every_level_lowers_the_distortion(vectors, n_iterations):
    result = quantize.fit_residual_kmeans(vectors, n_levels=4, codebook_size=8, n_iterations=n_iterations)
    left = [codebooks.distortion(vectors, quantize.decode(result.codes[:, :m], result.codebooks)) for m in range(1, 5)]
    assert left == sorted(left, reverse=True)
    assert left[0] < codebooks.distortion(vectors, np.zeros_like(vectors))
    assert left[-1] < left[0] / 2


def test_one_level_is_as_good_as_k_means_of_scikit_learn(vectors):
    result = quantize.fit_residual_kmeans(vectors, n_levels=1, codebook_size=8, n_iterations=100)
    ours = 300 * codebooks.distortion(vectors, quantize.decode(result.codes, result.codebooks))
    theirs = [KMeans(8, n_init=1, random_state=seed).fit(vectors).inertia_ for seed in range(10)]
    assert min(theirs) * 0.999 <= ours <= max(theirs) * 1.001


def test_the_seed_decides(vectors):
    first, again, other = (quantize.fit_residual_kmeans(vectors, 2, 8, seed=seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first.codebooks, again.codebooks)
    np.testing.assert_array_equal(first.codes, again.codes)
    assert not np.array_equal(first.codebooks, other.codebooks)


def test_the_vectors_are_left_as_they_were(vectors):
    before = vectors.copy()
    result = quantize.fit_residual_kmeans(vectors, 2, 4)
    quantize.encode(vectors, result.codebooks)
    np.testing.assert_array_equal(vectors, before)


@pytest.mark.parametrize("n_distinct", [1, 3])
def test_fewer_distinct_vectors_than_codewords(n_distinct):
    vectors = np.repeat(np.eye(3)[:n_distinct], 8, axis=0)
    result = quantize.fit_residual_kmeans(vectors, n_levels=2, codebook_size=6)
    assert np.isfinite(result.codebooks).all()
    np.testing.assert_allclose(quantize.decode(result.codes, result.codebooks), vectors, atol=1e-6)
    assert len(np.unique(result.codes, axis=0)) == n_distinct


def test_as_many_codewords_as_vectors_is_exact(vectors):
    result = quantize.fit_residual_kmeans(vectors[:20], n_levels=1, codebook_size=20)
    np.testing.assert_allclose(quantize.decode(result.codes, result.codebooks), vectors[:20], atol=1e-6)


def test_a_tie_goes_to_the_lower_index():
    codebook = np.array([[5.0], [1.0], [-1.0], [1.0]])
    np.testing.assert_array_equal(quantize.nearest(np.array([[0.0], [1.0], [-2.0], [3.0]]), codebook), [1, 1, 2, 0])


@given(
    hnp.arrays(np.int64, st.tuples(st.integers(0, 9), st.just(2)), elements=st.integers(-9, 9)),
    hnp.arrays(np.int64, st.tuples(st.integers(1, 5), st.just(2)), elements=st.integers(-9, 9)),
    st.integers(1, 4),
)
def test_nearest_equals_brute_force_in_any_block(vectors, codebook, block):
    # integers: every distance is exact, so ties are real
    squared = ((vectors[:, None] - codebook[None]) ** 2).sum(axis=2)
    found = quantize.nearest(vectors.astype(np.float32), codebook.astype(np.float32), block)
    np.testing.assert_array_equal(found, squared.argmin(axis=1))


def test_nearest_far_from_the_origin():
    # distances do not change when everything moves: 0.25 apart at 4096 is exact in float32, its square is not
    vectors = np.array([[0.0], [0.25], [0.5], [0.75]], dtype=np.float32)
    moved = quantize.nearest(vectors + np.float32(4096), vectors + np.float32(4096))
    np.testing.assert_array_equal(moved, [0, 1, 2, 3])


def test_decode_sums_codewords_and_takes_prefixes():
    levels = np.array([[[10.0, 0.0], [0.0, 20.0]], [[1.0, 1.0], [2.0, 2.0]]])
    np.testing.assert_array_equal(quantize.decode(np.array([[1, 0], [0, 1]]), levels), [[1, 21], [12, 2]])
    np.testing.assert_array_equal(quantize.decode(np.array([[1], [0]]), levels), [[0, 20], [10, 0]])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vectors": np.zeros(4)}, r"\(4,\)"),
        ({"vectors": np.array([[0.0], [np.nan], [1.0]])}, "row 1"),
        ({"vectors": np.array([[0.0], [1.0], [-np.inf]])}, "row 2"),
        ({"codebook_size": 5}, "4 vectors cannot fill 5"),
        ({"codebook_size": 1}, "codebook_size >= 2, got 2 and 1"),
        ({"n_levels": 0}, "n_levels >= 1.* got 0"),
    ],
)
def test_what_cannot_be_fitted_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        quantize.fit_residual_kmeans(**{"vectors": SQUARE, "n_levels": 2, "codebook_size": 2, **change})


@pytest.mark.parametrize(
    ("vectors", "message"),
    [(np.zeros((2, 3)), "3 dimensions, the codebooks 2"), (np.array([[0, np.inf]]), "row 0")],
)
def test_what_cannot_be_encoded_is_refused(vectors, message):
    with pytest.raises(ValueError, match=message):
        quantize.encode(vectors, np.zeros((2, 4, 2)))


def test_encoding_nothing_gives_no_codes():
    assert quantize.encode(np.empty((0, 2)), np.zeros((3, 4, 2))).shape == (0, 3)


@given(st.integers(1, 500_000))
def test_suggested_size_is_the_smallest_power_of_two_that_is_roomy(n_items):
    size = quantize.suggest_codebook_size(n_items)
    assert size in {4, 8, 16, 32, 64, 128, 256, 512, 1024}
    assert size**2 >= 2 * n_items
    assert size == 4 or (size // 2) ** 2 < 2 * n_items
