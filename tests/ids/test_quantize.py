"""Residual k-means: by hand, against brute force, scikit-learn and faiss, and what it refuses."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.cluster import KMeans

from semid_lib.ids import codebooks, quantize

# a far pair of clusters along x; within each, two points one apart along y
SQUARE = np.array([[0.0, 0.0], [0.0, 1.0], [10.0, 0.0], [10.0, 1.0]])


@pytest.fixture(scope="module")
def fitted(vectors):
    return quantize.fit_residual_kmeans(vectors, n_levels=3, codebook_size=8)


def left(vectors, quantizer, codes):
    return codebooks.distortion(vectors, quantizer.decode(codes))


def test_codes_equal_brute_force_and_do_not_depend_on_neighbours(vectors, fitted):
    residual = vectors.astype(np.float64)
    for codebook, code in zip(fitted.codebooks.astype(np.float64), fitted.codes.T, strict=True):
        np.testing.assert_array_equal(code, np.linalg.norm(residual[:, None] - codebook, axis=2).argmin(axis=1))
        residual = residual - codebook[code]
    assert (fitted.codes.dtype, fitted.codebooks.dtype, fitted.sizes) == (np.int64, np.float32, (8, 8, 8))
    np.testing.assert_array_equal(fitted.encode(vectors), fitted.codes)
    np.testing.assert_array_equal(fitted.encode(vectors[[17]])[0], fitted.codes[17])
    assert fitted.encode(vectors[:0]).shape == (0, 3)


def test_one_level_is_as_good_as_k_means_of_scikit_learn(vectors):
    result = quantize.fit_residual_kmeans(vectors, n_levels=1, codebook_size=8, n_iterations=100)
    theirs = [KMeans(8, n_init=1, random_state=seed).fit(vectors).inertia_ for seed in range(10)]
    assert min(theirs) * 0.999 <= 300 * left(vectors, result, result.codes) <= max(theirs) * 1.001


def test_the_seed_decides_and_the_vectors_stay(vectors, fitted):
    before = vectors.copy()
    again, other = (quantize.fit_residual_kmeans(vectors, 3, 8, seed=seed) for seed in (0, 2))
    np.testing.assert_array_equal(fitted.codebooks, again.codebooks)
    np.testing.assert_array_equal(fitted.codes, again.codes)
    assert not np.array_equal(fitted.codebooks, other.codebooks)
    np.testing.assert_array_equal(vectors, before)


@pytest.mark.parametrize(
    ("distinct", "used"), [(np.eye(3), [3 / 6, 1 / 6]), (np.random.default_rng(0).normal(size=(6, 3)), [1, 1 / 6])]
)
def test_fewer_distinct_vectors_or_residuals_than_codewords_leave_codes_unused(distinct, used):
    vectors = np.repeat(distinct, 8, axis=0).astype(np.float32)
    result = quantize.fit_residual_kmeans(vectors, n_levels=2, codebook_size=6)
    np.testing.assert_array_equal(result.decode(result.codes), vectors)
    assert codebooks.utilization(result.codes, 6).tolist() == used
    assert not result.codes[:, 1].any()  # of equal codewords the first


def test_a_start_is_chosen_among_principal_components(vectors, fitted, monkeypatch):
    monkeypatch.setattr(quantize, "_START_DIMENSIONS", 3)
    other = quantize.fit_residual_kmeans(vectors, n_levels=3, codebook_size=8)
    assert left(vectors, other, other.codes) < 1.2 * left(vectors, fitted, fitted.codes)


def test_many_copies_of_one_vector_take_one_code_and_leave_the_rest_to_others(vectors):
    crowd = np.concatenate([np.repeat(vectors[:1], 5000, axis=0), vectors])
    result = quantize.fit_residual_kmeans(crowd, n_levels=2, codebook_size=32)
    assert codebooks.utilization(result.codes, 32)[0] == 1
    assert len(np.unique(result.codes[:5001], axis=0)) == 1


@given(
    hnp.arrays(np.int64, st.tuples(st.integers(0, 9), st.just(2)), elements=st.integers(-9, 9)),
    hnp.arrays(np.int64, st.tuples(st.integers(1, 5), st.just(2)), elements=st.integers(-9, 9)),
    st.integers(1, 4),
)
@settings(max_examples=40)
def test_nearest_equals_brute_force_in_any_block_and_far_from_the_origin(vectors, codebook, block):
    # integers: every distance is exact, so ties are real; at 4096 they are exact in float32, their squares are not
    squared = ((vectors[:, None] - codebook[None]) ** 2).sum(axis=2)
    for origin in (0, 4096):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(quantize, "_BLOCK", block)
            found = quantize.nearest(np.float32(vectors + origin), np.float32(codebook + origin))
        np.testing.assert_array_equal(found, squared.argmin(axis=1))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vectors": np.zeros(4)}, r"\(4,\)"),
        ({"vectors": np.array([[0.0], [np.nan], [1.0]])}, "row 1"),
        ({"vectors": np.array([[0.0], [1.0], [1e30]])}, "row 2"),
        ({"vectors": np.zeros((4, 0))}, r"\(4, 0\)"),
        ({"vectors": np.zeros((0, 2))}, "0 vectors"),
        ({"vectors": np.ones((9, 2))}, "9 vectors, but fewer than 2 different ones: .* at least 2 items"),
        ({"codebook_size": 1}, "codebook_size >= 2 .* got 2, 1 and 25"),
        ({"n_levels": 0}, "n_levels >= 1.* got 0"),
        ({"n_iterations": 0}, "n_iterations >= 1, got 2, 2 and 0"),
    ],
)
def test_what_cannot_be_fitted_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        quantize.fit_residual_kmeans(**{"vectors": SQUARE, "n_levels": 2, "codebook_size": 2, **change})


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda q: q.encode(np.zeros((2, 3))), "3 dimensions, the codebooks 2"),
        (lambda q: q.encode(np.array([[0, np.inf]])), "row 0"),
        (lambda q: q.encode(np.zeros((1, 2)), beam_width=0), "beam_width >= 1, got 0"),
        (lambda q: q.decode(np.array([[0, 4]])), "level 1 run from 4 to 4, expected 0 to 3"),
        (lambda q: q.decode(np.array([[-1, 0]])), "level 0 run from -1"),
        (lambda q: q.decode(np.array([[0, 0, 0]])), r"at most 2\) integers, got \(1, 3\)"),
        (lambda q: q.decode(np.array([[0.0, 1.0]])), "float64"),
    ],
)
def test_what_cannot_be_encoded_or_decoded_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(quantize.ResidualQuantizer(np.zeros((0, 2), int), np.zeros((2, 4, 2))))


# --- beams, costs, other implementations ---


def test_a_wide_beam_finds_the_best_codes_of_all(vectors):
    result = quantize.fit_residual_kmeans(vectors, n_levels=3, codebook_size=4)
    every = np.array(list(itertools.product(range(4), repeat=3)))
    best = np.sum((vectors[:, None].astype(np.float64) - result.decode(every)) ** 2, axis=2).min(axis=1)
    codes = result.encode(vectors, beam_width=64)
    np.testing.assert_allclose(np.sum((vectors - result.decode(codes)) ** 2, axis=1), best, rtol=1e-3, atol=1e-4)
    narrow, middle, wide = (left(vectors, result, result.encode(vectors, width)) for width in (1, 3, 64))
    assert narrow >= middle >= wide and narrow > wide


def test_codes_are_those_of_faiss_with_our_codebooks(vectors, fitted):
    import faiss

    theirs = faiss.ResidualQuantizer(6, 3, 3)
    faiss.copy_array_to_vector(fitted.codebooks.ravel(), theirs.codebooks)
    theirs.is_trained = True
    theirs.compute_codebook_tables()
    for width in (1, 5):
        theirs.max_beam_size = width
        packed = np.unpackbits(theirs.compute_codes(vectors), axis=1, bitorder="little")[:, :9]
        np.testing.assert_array_equal(fitted.encode(vectors, width), packed.reshape(-1, 3, 3) @ [1, 2, 4])


def test_last_level_costs_are_distances(vectors, fitted):
    costs = fitted.last_level_costs(vectors, fitted.codes)
    for code in range(8):
        whole = np.column_stack([fitted.codes[:, :2], np.full(300, code)])
        squared = np.sum((vectors - fitted.decode(whole)) ** 2, axis=1)
        np.testing.assert_allclose(costs[:, code], squared, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(costs.argmin(axis=1), fitted.codes[:, 2])


def test_a_sample_is_enough_for_the_codebooks(vectors, monkeypatch):
    many = np.repeat(vectors, 40, axis=0) + 0.01 * np.random.default_rng(1).normal(size=(12000, 6))
    result = quantize.fit_residual_kmeans(many, 2, 8)
    monkeypatch.setattr(quantize, "_SAMPLE", 2000)
    sampled = quantize.fit_residual_kmeans(many, 2, 8)
    np.testing.assert_array_equal(sampled.encode(many), sampled.codes)  # more than one block
    assert left(many, sampled, sampled.codes) < 1.15 * left(many, result, result.codes)


@given(
    hnp.arrays(np.int64, st.tuples(st.integers(2, 30), st.just(2)), elements=st.integers(-5, 5)),
    st.integers(2, 4),
    st.integers(1, 3),
    st.integers(0, 5),
)
@settings(max_examples=40)
def test_equal_vectors_get_equal_codes(vectors, codebook_size, n_levels, seed):
    distinct, equal = np.unique(vectors, axis=0, return_inverse=True)
    if len(distinct) < quantize.MIN_ITEMS:
        with pytest.raises(ValueError, match="fewer than 2 different ones"):
            quantize.fit_residual_kmeans(vectors, n_levels, codebook_size, seed=seed)
        return
    result = quantize.fit_residual_kmeans(vectors, n_levels, codebook_size, seed=seed)
    np.testing.assert_array_equal(result.encode(vectors), result.codes)
    by_level = codebooks.distortion_per_level(vectors, result.codes, result.decode)
    assert np.all(np.diff(by_level) <= 1e-6)
    for group in range(len(distinct)):
        assert len(np.unique(result.codes[equal == group], axis=0)) == 1
    assert codebooks.utilization(result.codes, codebook_size)[0] == min(1, len(distinct) / codebook_size)
