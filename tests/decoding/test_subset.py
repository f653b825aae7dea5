"""Subsets of a trie against sets of rows."""

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tries import distinct_ids, rows_below

from semid_lib.decoding.trie import PrefixTrie

THREE = np.array([[5, 1], [0, 2], [0, 3]])
N_CONTEXTS = 3


@st.composite
def limits(draw, n_rows):
    """allowed and excluded for three contexts, as `PrefixTrie.subset` takes them."""
    bits = st.integers(0, 2**n_rows - 1).map(lambda bits: [bool(bits >> row & 1) for row in range(n_rows)])
    each = st.lists(bits, min_size=N_CONTEXTS, max_size=N_CONTEXTS)
    allowed = draw(st.none() | (bits | each).map(np.array))
    if draw(st.booleans()):
        return allowed, None
    length = draw(st.integers(0, 8))
    row = st.lists(st.integers(-1, n_rows - 1), min_size=length, max_size=length)
    excluded = draw(st.lists(row, min_size=N_CONTEXTS, max_size=N_CONTEXTS))
    return allowed, torch.tensor(excluded, dtype=torch.long).reshape(N_CONTEXTS, length)


def by_sets(n_rows, allowed, excluded):
    """For each context, the allowed rows, and those that are not excluded."""
    allowed = np.ones(n_rows, dtype=bool) if allowed is None else allowed
    masks = np.broadcast_to(allowed, (N_CONTEXTS, allowed.shape[-1]))
    inside = [set(np.flatnonzero(mask).tolist()) for mask in masks]
    taken = [set()] * N_CONTEXTS if excluded is None else [set(each) for each in excluded.tolist()]
    return inside, [each - gone for each, gone in zip(inside, taken, strict=True)]


def check(subset, ids, inside, left, masked, listed):
    """All answers of a subset against sets; masked, listed: whether it has a mask, and excluded items."""
    trie = subset.trie
    assert subset.n_left().tolist() in ([len(each) for each in left], [len(left[0])] * (subset.n_contexts == 1))
    for depth in range(trie.n_levels + 1):
        below = [set(each) for each in rows_below(ids, depth).values()]
        node = torch.arange(len(below)).repeat(N_CONTEXTS, 1)
        has = [[bool(each & known) for each in below] for known in left]
        assert subset.has(depth, node).tolist() == has
        context = torch.arange(N_CONTEXTS).repeat_interleave(len(below))
        assert subset.has(depth, node.flatten(), context.flip(0)).tolist() == [
            each for known in has[::-1] for each in known
        ]
        if masked:
            allowed = [[bool(each & known) for each in below] for known in inside]
            assert subset.allowed(depth, node).tolist() == allowed
            assert subset.allowed(depth, node[..., None]).squeeze(-1).tolist() == allowed
        if listed:
            pairs = zip(*(each.tolist() for each in subset.emptied(depth)), strict=True)
            emptied = {(b, i) for b in range(N_CONTEXTS) for i in range(len(below)) if below[i] & inside[b]}
            assert set(pairs) == {(b, i) for b, i in emptied if not has[b][i]}


@given(distinct_ids(max_items=12), st.data())
def test_a_subset_equals_sets(drawn, data):
    ids, trie = drawn, PrefixTrie.build(drawn)
    allowed, excluded = data.draw(limits(len(ids)))
    subset = trie.subset(allowed, excluded)
    check(subset, ids, *by_sets(len(ids), allowed, excluded), allowed is not None, excluded is not None)


@given(distinct_ids(max_items=12), st.data())
def test_two_subsets_together_equal_the_common_sets(drawn, data):
    ids, trie = drawn, PrefixTrie.build(drawn)
    one, two = data.draw(limits(len(ids))), data.draw(limits(len(ids)))
    (inside, _), (inside_two, _) = by_sets(len(ids), one[0], None), by_sets(len(ids), two[0], None)
    inside = [each & other for each, other in zip(inside, inside_two, strict=True)]
    left = zip(inside, by_sets(len(ids), *one)[1], by_sets(len(ids), *two)[1], strict=True)
    masked, listed = (any(each is not None for each in pair) for pair in zip(one, two, strict=True))
    check(trie.subset(*one) & trie.subset(*two), ids, inside, [a & b & c for a, b, c in left], masked, listed)


@given(distinct_ids(max_items=12), st.data())
def test_the_codes_of_a_subset(drawn, data):
    ids, trie = drawn, PrefixTrie.build(drawn)
    allowed, excluded = data.draw(limits(len(ids)))
    _, left = by_sets(len(ids), allowed, excluded)
    for depth in range(trie.n_levels):
        node = data.draw(st.lists(st.integers(-1, trie.n_nodes(depth) - 1), min_size=N_CONTEXTS, max_size=N_CONTEXTS))
        prefixes = [None if at < 0 else list(rows_below(ids, depth))[at] for at in node]
        mask = trie.allowed_mask(depth, torch.tensor(node), trie.subset(allowed, excluded))
        for context, prefix in enumerate(prefixes):
            codes = {ids[row, depth] for row in left[context] if tuple(ids[row, :depth].tolist()) == prefix}
            assert torch.nonzero(mask[context]).flatten().tolist() == sorted(codes)


@given(distinct_ids(max_items=12), st.data())
def test_the_penalty_of_a_subset_spares_children_with_allowed_items(ids, data):
    trie = PrefixTrie.build(ids)
    allowed, _ = data.draw(limits(len(ids)).filter(lambda limits: limits[0] is not None))
    subset = trie.subset(allowed)
    for level in range(trie.n_levels):
        penalty, children = subset.penalty(level), trie.table(level)
        assert set(penalty.unique().tolist()) <= {0.0, -np.inf}
        child = children.clamp(min=0)[None].expand(len(penalty), -1, -1)
        assert torch.equal(penalty == 0, (children >= 0) & subset.allowed(level + 1, child))


def test_no_contexts_no_answers():
    trie, none = PrefixTrie.build(THREE), torch.zeros((0, 2), dtype=torch.long)
    for subset in (trie.subset(np.ones((0, 3), bool)), trie.subset(np.ones(3, bool), none)):
        assert subset.n_left().tolist() == []
        assert subset.has(1, none).shape == subset.allowed(1, none).shape == (0, 2)


@pytest.mark.parametrize("make", [list, pd.Series, torch.tensor, lambda mask: pd.Series(mask, index=[7, 8, 9])])
def test_a_mask_may_come_as(make):
    assert PrefixTrie.build(THREE).subset(make([True, False, True])).n_left().tolist() == [2]


@pytest.mark.filterwarnings("error")
def test_a_mask_may_be_a_view():
    mask = np.array([True, False, False])
    for view in (mask[::-1], np.broadcast_to(mask, (1, 3)), np.stack([mask] * 2)[:, ::-1]):
        assert set(PrefixTrie.build(THREE).subset(view).n_left().tolist()) == {1}


@pytest.mark.parametrize(
    "allowed",
    [[1, 0, 1], [1.0, 0.0, 1.0], [True] * 2, [True] * 4, True, [[[True] * 3]], [[True]] * 3, ["yes"] * 3, [], [0, 2]],
)
def test_what_is_no_mask_over_the_rows_is_refused(allowed):
    with pytest.raises(ValueError, match=r"allowed is .*expected bool \(3,\)"):
        PrefixTrie.build(THREE).subset(np.array(allowed))


@pytest.mark.parametrize(
    "excluded",
    [
        *([0, 1], [[[0]]], [[3]], [[0.0]], [[True, False, True]]),
        *(torch.tensor([[1]], dtype=torch.uint8), torch.empty((2, 0)), torch.tensor(0)),
    ],
)
def test_what_is_no_list_of_rows_for_each_context_is_refused(excluded):
    with pytest.raises(ValueError, match=r"excluded is .*expected"):
        PrefixTrie.build(THREE).subset(None, torch.as_tensor(excluded))


def test_masks_and_lists_for_different_numbers_of_contexts_are_refused():
    trie, mask = PrefixTrie.build(THREE), np.ones((3, 3), dtype=bool)
    lists = torch.zeros((3, 1), dtype=torch.long)
    for number in (1, 2):
        with pytest.raises(ValueError, match=rf"\[{number}, 3\] contexts"):
            trie.subset(mask, lists[:number])
        with pytest.raises(ValueError, match=rf"\[{number}, 3\] contexts"):
            trie.subset(None, lists[:number]) & trie.subset(None, lists)
    with pytest.raises(ValueError, match=r"\[2, 3\] contexts"):
        trie.subset(mask[:2]) & trie.subset(mask)
    assert (trie.subset(mask[:1]) & trie.subset(mask, lists)).n_left().tolist() == [2, 2, 2]


def test_subsets_of_two_tries_do_not_meet():
    with pytest.raises(ValueError, match="of different tries"):
        PrefixTrie.build(THREE).subset() & PrefixTrie.build(THREE).subset()
