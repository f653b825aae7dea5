"""Codes to compare with: random ones, and a category tree."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from semid_lib.ids import codebooks
from semid_lib.studies.control_codes import category_codes, random_codes


def test_random_codes_are_uniform_and_follow_the_seed():
    codes = random_codes(6000, n_levels=2, codebook_size=8, seed=3)
    assert (codes.shape, codes.dtype) == ((6000, 2), np.int64)
    counts = codebooks.code_counts(codes, 8)
    assert ((counts - 750) ** 2 / 750).sum(axis=1).max() < 24.3  # chi squared, 7 degrees of freedom, p = .001
    np.testing.assert_array_equal(codes, random_codes(6000, 2, 8, seed=3))
    assert (codes != random_codes(6000, 2, 8, seed=4)).any()


def test_a_tree_separates_categories_and_items():
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(300, 6)).astype(np.float32)
    labels = np.array([f"shelf {i % 5}" if i < 200 else "floor" for i in range(300)])
    codes = category_codes(vectors, labels, n_levels=3, codebook_size=16)
    assert all(len(set(labels[codes[:, 0] == code])) == 1 for code in range(16))
    assert len(np.unique(codes[200:, 0])) > len(np.unique(codes[labels == "shelf 0", 0]))  # the large label is split
    assert codebooks.collision_rate(codes) == 0


def test_rare_labels_join_the_nearest_frequent_one():
    vectors = np.array([[0.0], [0.2], [10.0], [10.2], [1.0], [9.0]])
    code = category_codes(vectors, ["a", "a", "b", "b", "c", "d"], n_levels=2, codebook_size=2)[:, 0]
    assert code.tolist() == [0, 0, 1, 1, 0, 1]


@given(
    hnp.arrays(np.int64, st.tuples(st.integers(1, 30), st.just(2)), elements=st.integers(-3, 3)),
    st.integers(2, 5),
    st.integers(1, 3),
    st.data(),
)
@settings(max_examples=30)
def test_any_tree_keeps_equal_items_together(vectors, codebook_size, n_levels, data):
    labels = np.array(data.draw(st.lists(st.sampled_from("abcdefg"), min_size=len(vectors), max_size=len(vectors))))
    codes = category_codes(vectors, labels, n_levels, codebook_size)
    assert ((codes >= 0) & (codes < codebook_size)).all()
    rows = np.unique(np.column_stack([vectors, labels.view(np.int32)]), axis=0, return_inverse=True)[1]
    assert all(len(np.unique(codes[rows == row], axis=0)) == 1 for row in range(rows.max() + 1))


@pytest.mark.parametrize(
    ("vectors", "labels", "message"),
    [
        (np.zeros((2, 1)), ["a"], "1 labels for 2 vectors"),
        (np.zeros((0, 1)), [], "0 labels for 0 vectors: .* at least one"),
        (np.array([[0.0], [np.nan]]), ["a", "b"], "row 1"),
    ],
)
def test_what_a_tree_refuses(vectors, labels, message):
    with pytest.raises(ValueError, match=message):
        category_codes(vectors, labels)


@pytest.mark.parametrize(
    ("labels", "options", "message"),
    [(["a", None], {}, "texts, got None"), (["a", "b"], {"n_levels": 0}, "got 0 and 256"), (["a"], {}, "1 labels for")],
)
def test_what_makes_no_tree_is_refused(labels, options, message):
    with pytest.raises(ValueError, match=message):
        category_codes(np.eye(2), labels, **options)
