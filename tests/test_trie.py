"""The prefix trie against a dictionary of dictionaries."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from semid_lib.trie import PrefixTrie


@st.composite
def distinct_ids(draw):
    """Distinct IDs in any order, of a few codes far apart: branching is ragged, codes are no node numbers."""
    n_levels = draw(st.integers(1, 4))
    codes = [st.sampled_from(sorted(draw(st.sets(st.integers(0, 300), min_size=1, max_size=5))))] * n_levels
    rows = draw(st.lists(st.tuples(*codes), unique=True, min_size=1, max_size=30))
    return np.array(rows)


def naive(ids):
    """{code: {code: ... item}}, built item by item."""
    root = {}
    for item, row in enumerate(ids.tolist()):
        node = root
        for code in row[:-1]:
            node = node.setdefault(code, {})
        node[row[-1]] = item
    return root


def items_below(tree):
    """Items in the order of their IDs."""
    return [tree] if isinstance(tree, int) else [item for code in sorted(tree) for item in items_below(tree[code])]


@given(distinct_ids())
def test_every_node_equals_the_dictionary(ids):
    trie = PrefixTrie.build(ids)
    nodes_seen = [0] * (trie.n_levels + 1)

    def check(depth, node, tree):
        assert node == nodes_seen[depth]  # nodes are numbered in the order of their prefixes
        nodes_seen[depth] += 1
        start, stop = (int(bound) for bound in trie.leaves(depth, torch.tensor(node)))
        assert trie.item[start:stop].tolist() == items_below(tree)
        if depth < trie.n_levels:
            children = trie.children(depth, node)
            assert list(children) == sorted(tree)
            for code, child in children.items():
                check(depth + 1, child, tree[code])

    check(0, 0, naive(ids))
    assert [len(start) - 1 for start in trie.leaf_start] == nodes_seen[:-1]
    assert [trie.n_nodes(depth) for depth in range(trie.n_levels + 1)] == nodes_seen
    assert [len(start) - 1 for start in trie.child_start] == nodes_seen[:-1]
    assert [len(code) for code in trie.code] == nodes_seen[1:]


@given(distinct_ids())
def test_leaves_and_items_are_each_other_s_inverse(ids):
    trie = PrefixTrie.build(ids)
    assert (trie.n_items, trie.n_levels) == ids.shape
    assert trie.item[trie.leaf_of_item()].tolist() == list(range(len(ids)))
    assert ids[trie.item.numpy()].tolist() == sorted(ids.tolist())


def test_one_item():
    trie = PrefixTrie.build(np.array([[4, 0, 9]]))
    assert [trie.children(depth, 0) for depth in range(3)] == [{4: 0}, {0: 0}, {9: 0}]
    assert trie.item.tolist() == [0]


def test_one_level():
    trie = PrefixTrie.build(np.array([[7], [2], [5]]))
    assert trie.children(0, 0) == {2: 0, 5: 1, 7: 2}
    assert trie.item.tolist() == [1, 2, 0]


def test_equal_codes_below_different_parents_stay_apart():
    trie = PrefixTrie.build(np.array([[0, 3], [1, 3], [1, 4]]))
    assert trie.children(1, 0) == {3: 0}
    assert trie.children(1, 1) == {3: 1, 4: 2}


def test_two_items_with_one_id_are_both_named():
    with pytest.raises(ValueError, match=r"items 1 and 3 share the semantic ID \(0, 2\)"):
        PrefixTrie.build(np.array([[5, 1], [0, 2], [0, 3], [0, 2]]))


@pytest.mark.parametrize(
    "ids", [np.empty((0, 3), np.int64), np.empty((3, 0), np.int64), np.array([1, 2]), np.array([[0, -1]])]
)
def test_what_is_no_table_of_ids_is_refused(ids):
    with pytest.raises(ValueError, match=r"semantic IDs|negative"):
        PrefixTrie.build(ids)


def test_codes_that_are_not_integers_are_refused():
    with pytest.raises(ValueError, match="integer"):
        PrefixTrie.build(np.array([[0.2], [0.7]]))


def test_a_trie_moves_whole():
    trie = PrefixTrie.build(np.array([[0, 3], [1, 3]])).to("meta")
    tensors = [*trie.code, *trie.child_start, *trie.leaf_start, trie.item]
    assert {tensor.device for tensor in tensors} == {torch.device("meta")}
