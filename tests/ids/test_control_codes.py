import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from semid_lib.ids import codebooks, control_codes


@pytest.fixture(scope="module")
def vectors() -> np.ndarray:
    rng = np.random.default_rng(0)
    return (rng.normal(size=(12, 6))[rng.integers(12, size=300)] + 0.3 * rng.normal(size=(300, 6))).astype(np.float32)


def test_random_codes_are_even_and_know_nothing(vectors):
    control = control_codes.random_codes(300, n_levels=2, codebook_size=4, seed=1, vectors=vectors)
    assert (control.codes.shape, control.codes.dtype, control.sizes) == ((300, 2), np.int64, (4, 4))
    counts = codebooks.code_counts(control.codes, 4)
    assert (counts > 50).all()
    spread = codebooks.distortion(vectors, vectors.mean(axis=0))
    assert 0.9 * spread < codebooks.distortion(vectors, control.decode(control.codes)) <= spread
    by_hand = vectors[control.codes[:, 0] == 2].mean(axis=0)
    np.testing.assert_allclose(control.decode(np.array([[2]]))[0], by_hand, atol=1e-5)


def test_random_codes_of_new_vectors_hang_on_their_bytes(vectors):
    control, other = (control_codes.random_codes(5, n_levels=3, codebook_size=5, seed=seed) for seed in (0, 1))
    codes = control.encode(vectors)
    assert (codes.shape, codes.dtype, codes.min(), codes.max()) == ((300, 3), np.int64, 0, 4)
    np.testing.assert_array_equal(control.encode(vectors[::-1])[::-1], codes)
    assert not np.array_equal(other.encode(vectors), codes)
    np.testing.assert_array_equal(control.encode(np.array([[0.0]])), control.encode(np.array([[-0.0]])))
    assert control.encode(np.empty((0, 6))).shape == (0, 3)
    with pytest.raises(ValueError, match="stand for no vectors"):
        control.decode(control.codes)
    with pytest.raises(ValueError, match="300 vectors for 5 items"):
        control_codes.random_codes(5, vectors=vectors)
    with pytest.raises(ValueError, match="got 0, 3, 256"):
        control_codes.random_codes(0)


@pytest.fixture(scope="module")
def labels(vectors) -> list[str]:
    return [f"shelf {i % 5}" if i < 200 else "floor" for i in range(len(vectors))]


def test_a_tree_keeps_categories_apart_and_separates_all_items(vectors, labels):
    tree = control_codes.fit_category_tree(vectors, labels, n_levels=3, codebook_size=16)
    assert tree.sizes[0] == 16 and max(tree.sizes) <= 16
    assert all(len({labels[i] for i in np.flatnonzero(tree.codes[:, 0] == code)}) == 1 for code in range(16))
    assert len(tree.label_codes["floor"]) > len(tree.label_codes["shelf 0"])
    assert codebooks.collision_rate(tree.codes) == 0
    np.testing.assert_allclose(tree.decode(tree.codes), vectors, atol=1e-5)
    np.testing.assert_array_equal(tree.encode(vectors, labels), tree.codes)
    left = [codebooks.distortion(vectors, tree.decode(tree.codes[:, :m])) for m in (1, 2, 3)]
    assert left == sorted(left, reverse=True)


def test_more_labels_than_codes_join_the_nearest_frequent_one():
    vectors = np.array([[0.0], [0.2], [10.0], [10.2], [1.0], [9.0]])
    tree = control_codes.fit_category_tree(vectors, ["a", "a", "b", "b", "c", "d"], n_levels=2, codebook_size=2)
    code = tree.codes[:, 0]
    assert code[0] == code[1] == code[4] != code[2] == code[3] == code[5]
    np.testing.assert_allclose(tree.decode(code[:1, None]), [[0.4]], atol=1e-6)


def test_new_items_of_a_tree(vectors, labels):
    tree = control_codes.fit_category_tree(vectors, labels, n_levels=3, codebook_size=16)
    free = tree.encode(vectors)
    distance = np.linalg.norm(vectors[:, None].astype(np.float64) - tree.centroids[0], axis=2)
    np.testing.assert_array_equal(free[:, 0], distance.argmin(axis=1))
    np.testing.assert_array_equal(tree.encode(vectors, ["a label never seen"] * 300), free)
    bound = tree.encode(vectors, ["shelf 1"] * 300)
    assert np.isin(bound[:, 0], tree.label_codes["shelf 1"]).all()
    assert tree.encode(vectors[:0]).shape == (0, 3)
    tree.decode(bound)  # every code leads to a node


@given(
    hnp.arrays(np.int64, st.tuples(st.integers(1, 30), st.just(2)), elements=st.integers(-3, 3)),
    st.integers(2, 5),
    st.integers(1, 3),
    st.data(),
)
def test_any_tree_gives_the_fitted_codes_again(vectors, codebook_size, n_levels, data):
    labels = data.draw(st.lists(st.sampled_from("abcdefg"), min_size=len(vectors), max_size=len(vectors)))
    tree = control_codes.fit_category_tree(vectors, labels, n_levels, codebook_size)
    np.testing.assert_array_equal(tree.encode(vectors, labels), tree.codes)
    assert all(0 < size <= codebook_size for size in tree.sizes)
    assert np.isfinite(tree.decode(tree.codes)).all()
    assert tree.encode(vectors + 0.4).shape == tree.codes.shape


def test_what_a_tree_refuses(vectors, labels):
    with pytest.raises(ValueError, match="299 labels for 300 vectors"):
        control_codes.fit_category_tree(vectors, labels[1:])
    with pytest.raises(ValueError, match="strings, got None in row 299"):
        control_codes.fit_category_tree(vectors, [*labels[:-1], None])
    with pytest.raises(ValueError, match="no vectors"):
        control_codes.fit_category_tree(vectors[:0], [])
    with pytest.raises(ValueError, match="row 3"):
        control_codes.fit_category_tree(np.where(np.arange(300)[:, None] == 3, np.nan, vectors), labels)
    tree = control_codes.fit_category_tree(np.arange(4.0)[:, None], list("aaab"), n_levels=2, codebook_size=2)
    with pytest.raises(ValueError, match="no node of the tree"):
        tree.decode(np.array([[tree.codes[3, 0], 1]]))
    with pytest.raises(ValueError, match="2 dimensions, the tree 1"):
        tree.encode(np.zeros((1, 2)))
