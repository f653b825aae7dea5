"""Quantizers: by hand, against brute force, scikit-learn and faiss, and what they must refuse."""

import itertools
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.cluster import KMeans

from semid_lib.ids import codebooks, quantize

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
    np.testing.assert_array_equal(result.decode(result.codes), SQUARE)


def test_shapes_and_types(vectors):
    result = quantize.fit_residual_kmeans(vectors, n_levels=3, codebook_size=8)
    assert (result.codes.shape, result.codes.dtype) == ((300, 3), np.int64)
    assert (result.codebooks.shape, result.codebooks.dtype) == ((3, 8, 6), np.float32)
    assert result.sizes == (8, 8, 8)


def test_encoding_the_fitted_vectors_gives_their_codes_again(vectors):
    result = quantize.fit_residual_kmeans(vectors, n_levels=3, codebook_size=8)
    np.testing.assert_array_equal(quantize.encode(vectors, result.codebooks), result.codes)
    # one at a time as well: nothing about a vector's codes depends on its neighbours
    for row in (0, 17, 299):
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
    ours = 300 * codebooks.distortion(vectors, result.decode(result.codes))
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


def test_fewer_distinct_vectors_than_codewords_are_exact_and_leave_codes_unused():
    vectors = np.repeat(np.eye(3), 8, axis=0)
    result = quantize.fit_residual_kmeans(vectors, n_levels=2, codebook_size=6)
    assert result.sizes == (6, 6)
    np.testing.assert_array_equal(result.decode(result.codes), vectors)
    assert codebooks.utilization(result.codes, 6).tolist() == [3 / 6, 1 / 6]
    assert result.codes.max(axis=0).tolist() == [2, 0]  # of equal codewords the first


def test_fewer_distinct_residuals_than_codewords_leave_codes_unused():
    vectors = np.repeat(np.random.default_rng(0).normal(size=(6, 3)), 8, axis=0).astype(np.float32)
    result = quantize.fit_residual_kmeans(vectors, n_levels=3, codebook_size=6)
    np.testing.assert_array_equal(result.decode(result.codes), vectors)
    assert codebooks.utilization(result.codes, 6).tolist() == [1, 1 / 6, 1 / 6]
    assert not result.codes[:, 1:].any()


def test_many_copies_of_one_vector_take_one_code_and_leave_the_rest_to_others(vectors):
    crowd = np.concatenate([np.repeat(vectors[:1], 5000, axis=0), vectors])
    result = quantize.fit_residual_kmeans(crowd, n_levels=2, codebook_size=32)
    assert codebooks.utilization(result.codes, 32)[0] == 1
    assert len(np.unique(result.codes[:5001], axis=0)) == 1


def test_as_many_codewords_as_vectors_is_exact(vectors):
    result = quantize.fit_residual_kmeans(vectors[:20], n_levels=1, codebook_size=20)
    np.testing.assert_allclose(result.decode(result.codes), vectors[:20], atol=1e-6)


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
        ({"vectors": np.array([[0.0], [1.0], [1e30]])}, "row 2"),
        ({"vectors": np.zeros((4, 0))}, r"\(4, 0\)"),
        ({"vectors": np.zeros((0, 2))}, "0 vectors"),
        ({"vectors": np.ones((1, 2))}, "1 vectors, but fewer than 2 different ones: .* at least 2 items"),
        ({"vectors": np.ones((9, 2))}, "9 vectors, but fewer than 2 different"),
        ({"vectors": np.array([[0.0, 1.0], [-0.0, 1.0]])}, "2 vectors, but fewer than 2 different"),
        ({"codebook_size": 1}, "codebook_size >= 2 .* got 2, 1 and 25"),
        ({"n_levels": 0}, "at least 1 level.* got 0"),
        ({"n_iterations": 0}, "n_iterations >= 1, got 2, 2 and 0"),
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


# --- beams, costs, other implementations ---


def test_a_wide_beam_finds_the_best_codes_of_all(vectors):
    result = quantize.fit_residual_kmeans(vectors, n_levels=3, codebook_size=4)
    every = np.array(list(itertools.product(range(4), repeat=3)))
    squared = np.sum((vectors[:, None].astype(np.float64) - result.decode(every)) ** 2, axis=2)
    best = squared.min(axis=1)
    codes = result.encode(vectors, beam_width=64)
    np.testing.assert_allclose(np.sum((vectors - result.decode(codes)) ** 2, axis=1), best, rtol=1e-3, atol=1e-4)
    by_width = [codebooks.distortion(vectors, result.decode(result.encode(vectors, width))) for width in (1, 3, 64)]
    assert by_width == sorted(by_width, reverse=True)
    assert by_width[0] > by_width[2]


def test_a_beam_does_not_mind_the_origin(vectors):
    moved = quantize.fit_residual_kmeans(vectors + 1000, n_levels=2, codebook_size=8)
    greedy, beam = (codebooks.distortion(vectors + 1000, moved.decode(moved.encode(vectors + 1000, w))) for w in (1, 8))
    assert beam <= greedy


def test_codes_are_those_of_faiss_with_our_codebooks(vectors):
    import faiss

    result = quantize.fit_residual_kmeans(vectors, n_levels=3, codebook_size=8)
    theirs = faiss.ResidualQuantizer(6, 3, 3)
    faiss.copy_array_to_vector(result.codebooks.ravel(), theirs.codebooks)
    theirs.is_trained = True
    theirs.compute_codebook_tables()
    for width in (1, 5):
        theirs.max_beam_size = width
        packed = np.unpackbits(theirs.compute_codes(vectors), axis=1, bitorder="little")[:, :9]
        codes = packed.reshape(-1, 3, 3) @ [1, 2, 4]
        np.testing.assert_array_equal(result.encode(vectors, width), codes)


def test_distortion_is_no_worse_than_that_of_faiss(vectors):
    import faiss

    ours = quantize.fit_residual_kmeans(vectors, n_levels=3, codebook_size=8)
    theirs = faiss.ResidualQuantizer(6, 3, 3)
    theirs.max_beam_size = 1
    theirs.train(vectors)
    theirs_left = codebooks.distortion(vectors, theirs.decode(theirs.compute_codes(vectors)))
    assert codebooks.distortion(vectors, ours.decode(ours.codes)) < 1.05 * theirs_left


def test_last_level_costs_are_distances(vectors):
    result = quantize.fit_residual_kmeans(vectors, n_levels=3, codebook_size=8)
    costs = result.last_level_costs(vectors)
    assert (costs.shape, costs.dtype) == ((300, 8), np.float32)
    for code in range(8):
        whole = np.column_stack([result.codes[:, :2], np.full(300, code)])
        squared = np.sum((vectors - result.decode(whole)) ** 2, axis=1)
        np.testing.assert_allclose(costs[:, code], squared, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(costs.argmin(axis=1), result.codes[:, 2])
    np.testing.assert_array_equal(result.last_level_costs(vectors, result.codes), costs)
    with pytest.raises(ValueError, match=r"\(300, 2 or more\), got \(300, 1\)"):
        result.last_level_costs(vectors, result.codes[:, :1])


def test_a_sample_is_enough_for_the_codebooks(vectors):
    many = np.repeat(vectors, 40, axis=0) + 0.01 * np.random.default_rng(1).normal(size=(12000, 6))
    result, sampled = (quantize.fit_residual_kmeans(many, 2, 8, max_training_vectors=most) for most in (20_000, 2000))
    assert sampled.codes.shape == (12000, 2)  # more than one block
    np.testing.assert_array_equal(sampled.encode(many), sampled.codes)
    left = [codebooks.distortion(many, each.decode(each.codes)) for each in (result, sampled)]
    assert left[1] < 1.15 * left[0]


@given(
    hnp.arrays(np.int64, st.tuples(st.integers(2, 30), st.just(2)), elements=st.integers(-5, 5)),
    st.integers(2, 4),
    st.integers(1, 3),
    st.integers(0, 5),
)
def test_any_vectors_are_encoded_alike_or_refused(vectors, codebook_size, n_levels, seed):
    n_distinct = len(np.unique(vectors, axis=0))
    if n_distinct < quantize.MIN_ITEMS:
        with pytest.raises(ValueError, match="fewer than 2 different ones"):
            quantize.fit_residual_kmeans(vectors, n_levels, codebook_size, seed=seed)
        return
    result = quantize.fit_residual_kmeans(vectors, n_levels, codebook_size, seed=seed)
    np.testing.assert_array_equal(result.encode(vectors), result.codes)
    left = [codebooks.distortion(vectors, result.decode(result.codes[:, :m])) for m in range(n_levels + 1)]
    assert np.all(np.diff(left[1:]) <= 1e-6)
    equal = np.unique(vectors, axis=0, return_inverse=True)[1]
    for group in range(equal.max() + 1):
        assert len(np.unique(result.codes[equal == group], axis=0)) == 1
    assert codebooks.utilization(result.codes, codebook_size)[0] == min(1, n_distinct / codebook_size)


def test_torch_and_faiss_live_together():
    code = """import {order}, hashlib, numpy as np
from semid_lib.ids import quantize
vectors = np.random.default_rng(0).normal(size=(2000, 32)).astype(np.float32)
before = float((torch.ones(300, 300) @ torch.ones(300, 300)).sum())
result = quantize.fit_residual_kmeans(vectors, 2, 16)
layer = torch.nn.Linear(32, 4)
layer(torch.from_numpy(vectors)).sum().backward()
print(before, hashlib.sha256(result.codes.tobytes() + result.codebooks.tobytes()).hexdigest())"""
    commands = [[sys.executable, "-c", code.replace("{order}", order)] for order in ("torch, faiss", "faiss, torch")]
    runs = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for command in commands
    ]
    (one, one_error), (other, other_error) = [run.communicate() for run in runs]
    assert (one_error, other_error, [run.returncode for run in runs]) == ("", "", [0, 0])
    assert one == other and one.startswith("27000000.0 ")


@pytest.mark.parametrize(
    ("codes", "message"),
    [
        (np.array([[0, 4]]), "level 1 run from 4 to 4, expected 0 to 3"),
        (np.array([[-1, 0]]), "level 0 run from -1"),
        (np.array([[0, 0, 0]]), r"at most 2\) integers, got \(1, 3\)"),
        (np.array([[0.0, 1.0]]), "float64"),
    ],
)
def test_codes_outside_the_codebooks_are_refused(codes, message):
    with pytest.raises(ValueError, match=message):
        quantize.decode(codes, np.zeros((2, 4, 3)))


# --- product quantization ---


@pytest.mark.parametrize("rotate", [False, True])
def test_product_codes_equal_brute_force(vectors, rotate):
    result = quantize.fit_product_quantization(vectors, n_positions=3, codebook_size=8, rotate=rotate)
    turned = vectors @ result.rotation if rotate else vectors
    for position, codebook in enumerate(result.codebooks):
        part = turned[:, 2 * position : 2 * position + 2]
        distance = np.linalg.norm(part[:, None].astype(np.float64) - codebook, axis=2)
        np.testing.assert_array_equal(result.codes[:, position], distance.argmin(axis=1))
    assert (result.sizes, result.codebooks.shape) == ((8, 8, 8), (3, 8, 2))
    np.testing.assert_array_equal(result.encode(vectors), result.codes)
    picked = np.hstack([codebook[result.codes[:, i]] for i, codebook in enumerate(result.codebooks)])
    expected = picked @ result.rotation.T if rotate else picked
    np.testing.assert_allclose(result.decode(result.codes), expected, atol=1e-5)
    assert codebooks.utilization(result.codes, 8).tolist() == [1, 1, 1]


def test_the_rotation_turns_and_helps():
    rng = np.random.default_rng(3)
    vectors = rng.normal(size=(500, 4)).astype(np.float32) * [5, 5, 0.1, 0.1]  # all variance in the first slice
    plain, turned = (quantize.fit_product_quantization(vectors, 2, 8, rotate=rotate) for rotate in (False, True))
    np.testing.assert_allclose(turned.rotation @ turned.rotation.T, np.eye(4), atol=1e-5)
    again = quantize.fit_product_quantization(vectors, 2, 8)
    np.testing.assert_array_equal(turned.codes, again.codes)
    left = [codebooks.distortion(vectors, each.decode(each.codes)) for each in (turned, plain)]
    assert left[0] < 0.8 * left[1]


def test_product_codes_are_those_of_faiss_with_our_codebooks(vectors):
    import faiss

    result = quantize.fit_product_quantization(vectors, n_positions=3, codebook_size=256, rotate=False)
    theirs = faiss.ProductQuantizer(6, 3, 8)
    faiss.copy_array_to_vector(result.codebooks.ravel(), theirs.centroids)
    np.testing.assert_array_equal(result.codes, theirs.compute_codes(vectors))


def test_a_constant_slice_uses_one_code():
    vectors = np.column_stack([np.arange(9.0), np.arange(9.0), np.ones(9), np.ones(9)])
    result = quantize.fit_product_quantization(vectors, n_positions=2, codebook_size=3, rotate=False)
    np.testing.assert_allclose(codebooks.utilization(result.codes, 3), [1, 1 / 3])


@pytest.mark.parametrize(("n", "dim"), [(2, 16), (8, 16), (15, 16), (20, 32), (300, 384)])
def test_fewer_vectors_than_dimensions_can_be_rotated(n, dim):
    # in a process of its own: what faiss does to its memory ends in a crash now or later
    code = f"""import numpy as np
from semid_lib.ids import quantize
vectors = np.random.default_rng(0).normal(size=({n}, {dim}))
fitted = quantize.fit_product_quantization(vectors, n_positions=4, codebook_size=16, n_rotations=3)
print(np.abs(fitted.rotation @ fitted.rotation.T - np.eye({dim})).max() < 1e-4)"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (run.returncode, run.stdout) == (0, "True\n"), run.stderr


def test_what_product_quantization_refuses(vectors):
    with pytest.raises(ValueError, match="n_positions must divide the 6 dimensions, got 4"):
        quantize.fit_product_quantization(vectors, n_positions=4, codebook_size=8)
    with pytest.raises(ValueError, match="9 vectors, but fewer than 2 different"):
        quantize.fit_product_quantization(np.ones((9, 6)), n_positions=3, codebook_size=2)
    result = quantize.fit_product_quantization(vectors, n_positions=3, codebook_size=8, rotate=False)
    with pytest.raises(ValueError, match="2 positions, expected 3"):
        result.decode(result.codes[:, :2])
    with pytest.raises(ValueError, match="5 dimensions, the codebooks 6"):
        result.encode(vectors[:, :5])


def test_the_library_of_lucidrains_finds_the_same_codes():
    from vector_quantize_pytorch import ResidualVQ

    vectors = np.random.default_rng(3).standard_normal((500, 12)).astype(np.float32)
    fitted = quantize.fit_residual_kmeans(vectors, n_levels=3, codebook_size=16)
    peer = ResidualVQ(dim=12, num_quantizers=3, codebook_size=16, rotation_trick=False).eval()
    for layer, codebook in zip(peer.layers, fitted.codebooks, strict=True):
        layer._codebook.embed.data.copy_(torch.from_numpy(codebook)[None])
    with torch.no_grad():
        decoded, codes, _ = peer(torch.from_numpy(vectors)[None])
    np.testing.assert_array_equal(codes[0].numpy(), fitted.codes)
    np.testing.assert_allclose(decoded[0].numpy(), fitted.decode(fitted.codes), atol=1e-5)
