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


@given(distinct_ids(max_items=12), st.data())
def test_a_subset_equals_sets(ids, data):
    trie = PrefixTrie.build(ids)
    allowed, excluded = data.draw(limits(len(ids)))
    inside, left = by_sets(len(ids), allowed, excluded)
    subset = trie.subset(allowed, excluded)
    subset.check_contexts(N_CONTEXTS)
    for depth in range(trie.n_levels + 1):
        below = [set(each) for each in rows_below(ids, depth).values()]
        node, context = torch.arange(len(below)).repeat(N_CONTEXTS, 1), torch.arange(N_CONTEXTS)[:, None]
        assert subset.has(depth, node, context).tolist() == [[bool(each & known) for each in below] for known in left]
        allowed_items = [[len(each & known) for each in below] for known in inside]
        assert subset.n_allowed(depth, node, context).tolist() == allowed_items
        if excluded is not None:
            pairs = zip(*(each.tolist() for each in subset.emptied(depth)), strict=True)
            held = {(b, i) for b in range(N_CONTEXTS) for i in range(len(below)) if below[i] & inside[b]}
            assert set(pairs) == {(b, i) for b, i in held if not below[i] & left[b]}


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
    allowed, _ = data.draw(limits(len(ids)))
    subset = trie.subset(allowed)
    for level, children in enumerate(trie.tables):
        penalty = subset.penalty(level).view(-1, *children.shape)
        assert set(penalty.unique().tolist()) <= {0.0, -np.inf}
        context, child = torch.arange(len(penalty))[:, None, None], children.clamp(min=0).expand_as(penalty)
        assert torch.equal(penalty == 0, (children >= 0) & (subset.n_allowed(level + 1, child, context) > 0))


def left_in(subset):
    return subset.has(subset.trie.n_levels, torch.arange(3), torch.tensor(0))[subset.trie.leaf_of_item].tolist()


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "make",
    [list, pd.Series, torch.tensor, lambda mask: pd.Series(mask, index=[7, 8, 9]), lambda mask: mask[::-1][::-1]],
)
def test_a_mask_may_come_as(make):
    assert left_in(PrefixTrie.build(THREE).subset(make(np.array([True, False, True])))) == [True, False, True]


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
        with pytest.raises(ValueError, match=rf"allowed is for 3 contexts, excluded for {number}"):
            trie.subset(mask, lists[:number])
    for subset in (trie.subset(mask), trie.subset(None, lists)):
        with pytest.raises(ValueError, match="the subset is for 3 contexts, there are 2"):
            subset.check_contexts(2)
    with pytest.raises(ValueError, match="excludes items already"):
        trie.subset(None, lists).without(lists + 1)
    assert left_in(trie.subset(mask[:1], lists)) == [False, True, True]
