"""Semantic IDs: one per item, numbered in row order, and the same after a trip through tokens."""

from collections import defaultdict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from semid_lib.semantic_ids import SemanticIDs, disambiguation_codes, from_tokens, to_tokens

some_codes = hnp.arrays(np.int64, st.tuples(st.integers(1, 25), st.integers(1, 3)), elements=st.integers(0, 2))


def test_numbering_by_hand():
    codes = np.array([[1, 1], [0, 0], [1, 1], [0, 1], [0, 0], [1, 1]])
    np.testing.assert_array_equal(disambiguation_codes(codes), [0, 0, 1, 0, 1, 2])


@given(some_codes)
def test_items_of_one_tuple_are_numbered_in_row_order(codes):
    numbers = defaultdict(list)
    for row, number in zip(codes.tolist(), disambiguation_codes(codes).tolist(), strict=True):
        numbers[tuple(row)].append(number)
    for found in numbers.values():
        assert found == list(range(len(found)))


@given(some_codes)
def test_unique_rows_are_distinct_and_begin_with_the_codes(codes):
    ids = SemanticIDs.from_codes(codes, codebook_size=3)
    assert len({tuple(row) for row in ids.unique.tolist()}) == len(codes) == len(ids)
    np.testing.assert_array_equal(ids.unique[:, : ids.n_levels], codes)
    assert len(ids.sizes) == ids.unique.shape[1]
    assert (ids.unique < ids.sizes).all()
    assert (ids.unique.max(axis=0) + 1 == ids.sizes)[ids.n_levels :].all()  # no spare disambiguation code


def test_without_a_collision_there_is_no_further_code():
    ids = SemanticIDs.from_codes(np.array([[0, 1], [1, 0]]), codebook_size=2)
    assert (ids.unique.shape, ids.sizes, ids.n_levels) == ((2, 2), (2, 2), 2)


def test_the_disambiguation_code_is_no_level():
    ids = SemanticIDs.from_codes(np.array([[0, 1], [0, 1], [0, 1]]), codebook_size=2)
    assert (ids.unique.shape, ids.sizes, ids.n_levels) == ((3, 3), (2, 2, 3), 2)


@pytest.mark.parametrize(
    ("codes", "disambiguation_code", "message"),
    [
        (np.array([[0, 1], [0, 1]]), np.array([0, 0]), "2 items share 1"),
        (np.array([[0, 1], [0, 1]]), np.array([1, 1]), "2 items share 1"),
        (np.array([[0, 4]]), np.array([0]), "expected 0 to 3"),
        (np.array([[0, -1]]), np.array([0]), "-1"),
        (np.array([0, 1]), np.array([0, 0]), r"\(2,\)"),
        (np.array([[0.0, 1.0]]), np.array([0]), "float64"),
        (np.array([[0, 1], [1, 1]]), np.array([0]), "disambiguation"),
        (np.array([[0, 1], [1, 1]]), np.array([0, -1]), "disambiguation"),
    ],
)
def test_the_constructor_refuses(codes, disambiguation_code, message):
    with pytest.raises(ValueError, match=message):
        SemanticIDs(codes, disambiguation_code, codebook_size=4)


def test_from_codes_refuses_codes_outside_the_codebook():
    with pytest.raises(ValueError, match="expected 0 to 1"):
        SemanticIDs.from_codes(np.array([[0, 2]]), codebook_size=2)


def test_tokens_by_hand():
    assert to_tokens(np.array([[3, 0], [12, 7]])) == ["<|sid_0_3|><|sid_1_0|>", "<|sid_0_12|><|sid_1_7|>"]


@given(st.lists(st.integers(0, 2**40), min_size=1, max_size=6))
def test_tokens_there_and_back(codes):
    [text] = to_tokens(np.array([codes]))
    assert text.count("<|") == len(codes)
    assert from_tokens(text) == tuple(codes)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "pen",
        "<|sid_1_3|>",  # begins at level 1
        "<|sid_0_3|><|sid_2_1|>",  # a level is missing
        "<|sid_0_3|><|sid_0_3|>",  # a level twice
        "<|sid_1_3|><|sid_0_1|>",  # levels in the wrong order
        " <|sid_0_3|>",
        "<|sid_0_3|> <|sid_1_1|>",
        "<|sid_0_3|>\n",
        "<|sid_0_3|><|sid_1_",  # cut off
        "<|sid_0_-3|>",
        "<|sid_0_03|>",
        "<|sid_0_٣|>",  # a digit, but not one that we write
        "<|SID_0_3|>",
    ],
)
def test_anything_else_is_refused(text):
    with pytest.raises(ValueError, match="not a semantic ID"):
        from_tokens(text)
