"""The prefix trie against a dictionary of dictionaries, its subsets against sets of rows."""

import json
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file

from semid_lib.decoding import trie as trie_module
from semid_lib.decoding.trie import PrefixTrie


@st.composite
def distinct_ids(draw, max_items=30):
    """Distinct IDs in any order, of a few codes far apart: branching is ragged, codes are no node numbers."""
    n_levels = draw(st.integers(1, 4))
    codes = [st.sampled_from(sorted(draw(st.sets(st.integers(0, 300), min_size=1, max_size=5))))] * n_levels
    rows = draw(st.lists(st.tuples(*codes), unique=True, min_size=1, max_size=max_items))
    return np.array(rows)


@st.composite
def tries(draw, max_items=30):
    """IDs, the rows that have a leaf (a few may have been removed), and the trie."""
    ids = draw(distinct_ids(max_items))
    removed = draw(st.sets(st.integers(0, len(ids) - 1), max_size=min(3, len(ids) - 1)))
    rows = [row for row in range(len(ids)) if row not in removed]
    return ids, rows, PrefixTrie.build(ids).remove(sorted(removed))


def rows_below(ids, rows, depth):
    """{prefix: rows} of a depth, node after node."""
    found = {}
    for row in sorted(rows, key=lambda row: ids[row].tolist()):
        found.setdefault(tuple(ids[row, :depth].tolist()), []).append(row)
    return found


def arrays(trie):
    """All that a trie holds, types included."""
    held = [*trie.code, *trie.child_start, *trie.leaf_start, trie.item]
    return [(str(array.dtype), array.tolist()) for array in held], trie.n_rows


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


def test_a_trie_that_is_there_need_not_move():
    trie = PrefixTrie.build(np.array([[0, 3], [1, 3]]))
    assert trie.to("cpu") is trie


def test_a_trie_moves_whole():
    trie = PrefixTrie.build(np.array([[0, 3], [1, 3]])).to("meta")
    tensors = [*trie.code, *trie.child_start, *trie.leaf_start, trie.item]
    assert {tensor.device for tensor in tensors} == {torch.device("meta")}


# --- what it holds ---


@given(tries())
def test_ids_come_back_and_build_the_same_trie(drawn):
    ids, rows, trie = drawn
    assert trie.ids().dtype == np.int64
    assert trie.ids().tolist() == ids[trie.item.numpy()].tolist() == sorted(ids[rows].tolist())
    again = PrefixTrie.build(trie.ids())
    assert arrays(again)[0][:-1] == arrays(trie)[0][:-1]  # all but the rows
    assert again.item.tolist() == list(range(len(rows)))


@given(tries())
def test_sizes_and_branching(drawn):
    ids, rows, trie = drawn
    assert trie.sizes == tuple((ids[rows].max(axis=0) + 1).tolist())
    children = [[0] * len(rows_below(ids, rows, depth)) for depth in range(trie.n_levels)]
    for depth in range(trie.n_levels):
        parents = list(rows_below(ids, rows, depth))
        for prefix in rows_below(ids, rows, depth + 1):
            children[depth][parents.index(prefix[:-1])] += 1
    assert trie.branching == tuple(map(max, children))


@pytest.mark.parametrize(
    ("code", "dtype"),
    [
        (255, torch.uint8),
        (256, torch.int16),
        (32_767, torch.int16),
        (32_768, torch.int32),
        (2**31 - 1, torch.int32),
    ],
)
def test_each_level_has_the_smallest_type_that_holds_its_codes(code, dtype):
    trie = PrefixTrie.build(np.array([[code, 3], [0, 0]]))
    assert [level.dtype for level in trie.code] == [dtype, torch.uint8]
    assert trie.ids().tolist() == [[0, 0], [code, 3]]
    everything = [*trie.child_start, *trie.leaf_start, trie.item]
    assert {array.dtype for array in everything} == {torch.int32}


@given(distinct_ids(), st.integers(1, 2**31 // 301))
def test_codes_too_large_for_one_key_are_sorted_the_same(ids, factor):
    small, large = PrefixTrie.build(ids), PrefixTrie.build(ids * factor)
    assert large.ids().tolist() == (small.ids() * factor).tolist()
    assert large.item.tolist() == small.item.tolist()
    n_levels = ids.shape[1]
    assert arrays(large)[0][n_levels:] == arrays(small)[0][n_levels:]  # all but the codes


def test_levels_of_31_bits():
    rng = np.random.default_rng(3)
    ids = rng.choice([0, 7, 2**31 - 2, 2**31 - 1], size=(300, 6))
    ids = rng.permutation(np.unique(ids, axis=0))
    trie = PrefixTrie.build(ids)
    assert trie.item.tolist() == sorted(range(len(ids)), key=lambda row: ids[row].tolist())
    twice = np.concatenate([ids, ids[5:6]])
    with pytest.raises(ValueError, match=f"items 5 and {len(ids)} share"):
        PrefixTrie.build(twice)


def test_a_code_above_31_bits_is_refused_and_named():
    with pytest.raises(ValueError, match="code 2147483648 is above"):
        PrefixTrie.build(np.array([[2**31]]))


# --- walking ---


@given(tries())
def test_step_equals_the_dictionary(drawn):
    ids, rows, trie = drawn
    for depth in range(trie.n_levels):
        parents, children = list(rows_below(ids, rows, depth)), list(rows_below(ids, rows, depth + 1))
        codes = sorted({code + shift for code in ids[:, depth].tolist() for shift in (-1, 0, 1, 256)})
        node = torch.arange(-1, len(parents))[:, None].repeat(1, len(codes))
        code = torch.tensor(codes).repeat(len(node), 1)
        expected = [[-1] * len(codes)]
        for prefix in parents:
            expected.append([children.index((*prefix, c)) if (*prefix, c) in children else -1 for c in codes])
        assert trie.step(depth, node, code).tolist() == expected


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64])
def test_step_takes_codes_of_any_integer_type(dtype):
    trie = PrefixTrie.build(np.array([[5], [9]]))
    assert trie.step(0, torch.tensor([0, 0, 0, -1]), torch.tensor([5, 9, 6, 5], dtype=dtype)).tolist() == [0, 1, -1, -1]


@pytest.mark.parametrize("code", [261, -251, 5 + 2**16])
def test_a_single_code_does_not_wrap_round_in_the_type_of_the_codes(code):
    trie = PrefixTrie.build(np.array([[5], [9]]))
    assert trie.step(0, torch.tensor([0]), torch.tensor(code)).tolist() == [-1]
    assert trie.step(0, torch.tensor([0]), torch.tensor(5)).tolist() == [0]
    wide = PrefixTrie.build(np.array([[261], [9]]))
    assert wide.step(0, torch.tensor(0), torch.tensor([5, 9], dtype=torch.uint8)).tolist() == [-1, 0]


@given(tries(), st.data())
def test_allowed_mask_holds_the_children(drawn, data):
    _, _, trie = drawn
    for depth in range(trie.n_levels):
        nodes = data.draw(st.lists(st.integers(-1, trie.n_nodes(depth) - 1), max_size=6))  # in any order, repeated
        mask = trie.allowed_mask(depth, torch.tensor(nodes, dtype=torch.long))
        assert mask.shape == (len(nodes), trie.sizes[depth])
        expected = [[] if node < 0 else list(trie.children(depth, node)) for node in nodes]
        assert [torch.nonzero(row).flatten().tolist() for row in mask] == expected


@given(tries())
def test_leaves_and_rows_after_items_have_gone(drawn):
    ids, rows, trie = drawn
    leaf = trie.leaf_of_item()
    assert len(leaf) == trie.n_rows == len(ids)
    assert torch.nonzero(leaf >= 0).flatten().tolist() == rows
    assert trie.item_at(leaf).tolist() == [row if row in rows else -1 for row in range(len(ids))]
    assert trie.item_at(torch.tensor([[-1], [0]])).tolist() == [[-1], [int(trie.item[0])]]
    for depth in range(trie.n_levels + 1):
        above = [node for node, below in enumerate(rows_below(ids, rows, depth).values()) for _ in below]
        assert trie.ancestor(depth, torch.arange(trie.n_items)).tolist() == above


@given(tries())
def test_a_table_holds_the_children_of_all_nodes(drawn):
    _, _, trie = drawn
    for level in range(trie.n_levels):
        table = trie.table(level)
        assert table.dtype == torch.int32
        assert table.shape == (trie.n_nodes(level) + 1, trie.sizes[level])
        for node in range(trie.n_nodes(level)):
            children = trie.children(level, node)
            assert table[node].tolist() == [children.get(code, -1) for code in range(trie.sizes[level])]
        assert (table[-1] == -1).all()
        assert trie.table(level) is table


def test_only_small_depths_have_a_table(monkeypatch):
    trie = PrefixTrie.build(np.array([[0, 4], [1, 0], [1, 1]]))  # tables of 2 x 2 and 3 x 5 entries
    monkeypatch.setattr(trie_module, "DENSE", 14)
    assert [trie.table(level) is None for level in range(2)] == [False, True]
    monkeypatch.setattr(trie_module, "DENSE", 15)
    assert trie.table(1) is not None
    assert PrefixTrie.build(np.array([[2**30, 0]])).table(0) is None


# --- items that come and go ---


@given(tries(), st.data())
def test_adding_equals_building_anew(drawn, data):
    ids, rows, trie = drawn
    new = data.draw(st.lists(st.sampled_from(rows), unique=True, max_size=len(rows) - 1))
    before = arrays(trie)
    if new:
        smaller = trie.remove(new)
        larger = smaller.add(ids[new])  # the same items under new rows
        assert larger.n_rows == len(ids) + len(new)
        moved = {row: len(ids) + place for place, row in enumerate(new)}
        assert larger.item.tolist() == [moved.get(row, row) for row in trie.item.tolist()]
        assert arrays(larger)[0][:-1] == before[0][:-1]
    assert arrays(trie) == before


@given(distinct_ids(), st.data())
def test_a_trie_grown_in_two_parts_is_the_trie_of_all(ids, data):
    cut = data.draw(st.integers(1, len(ids)))
    grown = PrefixTrie.build(ids[:cut])
    if cut < len(ids):
        grown = grown.add(ids[cut:])
    assert arrays(grown) == arrays(PrefixTrie.build(ids))


@given(distinct_ids(), st.data())
def test_removing_equals_building_without(ids, data):
    gone = data.draw(st.lists(st.integers(0, len(ids) - 1)).filter(lambda rows: len(set(rows)) < len(ids)))
    kept = np.setdiff1d(np.arange(len(ids)), gone)
    without, smaller = PrefixTrie.build(ids[kept]), PrefixTrie.build(ids).remove(np.array(gone, dtype=np.int64))
    assert arrays(smaller)[0][:-1] == arrays(without)[0][:-1]
    assert smaller.item.tolist() == kept[without.item.numpy()].tolist()
    assert smaller.n_rows == len(ids)


THREE = np.array([[5, 1], [0, 2], [0, 3]])


@pytest.mark.parametrize(
    ("new", "message"),
    [
        ([[0, 2]], r"items 1 and 3 share the semantic ID \(0, 2\)"),
        ([[7, 7], [8, 8], [7, 7]], r"items 3 and 5 share the semantic ID \(7, 7\)"),
        ([[1, 2, 3]], "have 3 levels, the trie has 2"),
        ([[1, -2]], "code -2 is negative"),
        ([[1, 2**31]], "above"),
        ([[0.5, 1.0]], "integers"),
        (np.empty((0, 2), np.int64), "at least one item"),
        ([1, 2], "semantic IDs must be"),
    ],
)
def test_items_that_cannot_be_added_are_named(new, message):
    with pytest.raises(ValueError, match=message):
        PrefixTrie.build(THREE).add(np.array(new))


def test_a_removed_id_is_free_again():
    trie = PrefixTrie.build(THREE).remove([1]).add(np.array([[0, 2]]))
    assert trie.item.tolist() == [3, 2, 0]
    with pytest.raises(ValueError, match="row 1 is not in the trie"):
        trie.remove([3, 1])


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([0, 3], "row 3 is not in the trie"),
        ([-1], "row -1 is not in the trie"),
        ([2, 1, 0, 0], "cannot be empty"),
        ([0.0], "float64, expected integers"),
        ([True, False, False], "bool, expected integers"),
    ],
)
def test_rows_that_cannot_be_removed_are_named(rows, message):
    with pytest.raises(ValueError, match=message):
        PrefixTrie.build(THREE).remove(np.array(rows))


def test_removing_nothing():
    trie = PrefixTrie.build(THREE)
    assert arrays(trie.remove([])) == arrays(trie)


# --- files ---


def contents(path):
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name).clone() for name in file.keys()}, file.metadata()  # noqa: SIM118


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "trie.safetensors"
    PrefixTrie.build(np.array([[1, 0, 3], [0, 2, 300], [1, 3, 1], [5, 3, 9], [5, 3, 2]])).save(path)
    return path


def refused(path, message=""):
    with pytest.raises(ValueError, match=rf"trie\.safetensors.*{message}"):
        PrefixTrie.load(path)


@given(tries())
def test_a_saved_trie_comes_back(drawn):
    _, _, trie = drawn
    with tempfile.TemporaryDirectory() as folder:
        trie.save(Path(folder, "trie"))
        again = PrefixTrie.load(str(Path(folder, "trie")))
        assert arrays(again) == arrays(trie)
        assert again.n_levels == trie.n_levels


def test_what_is_loaded_outlives_its_file(saved):
    trie = PrefixTrie.load(saved)
    before = arrays(trie)
    trie.remove([0]).save(saved)
    assert arrays(trie) == before
    assert PrefixTrie.load(saved).n_items == 4
    saved.unlink()
    assert arrays(trie) == before


def test_opening_reads_less_and_checks_less_than_loading(saved):
    assert arrays(PrefixTrie.open(saved)) == arrays(PrefixTrie.load(saved))
    held, metadata = contents(saved)
    save_file(held | {"code.0": held["code.0"].flip(0)}, saved, metadata=metadata)
    damaged = PrefixTrie.open(saved)
    refused(saved, "do not ascend")
    with pytest.raises(ValueError, match="the trie: the codes of level 0 do not ascend"):
        damaged.check()
    for name, array in held.items():
        save_file(held | {name: array[:-1].clone()}, saved, metadata=metadata)
        with pytest.raises(ValueError, match=r"trie\.safetensors"):
            PrefixTrie.open(saved)


def test_a_file_cut_anywhere_is_refused(saved):
    content = saved.read_bytes()
    for length in range(0, len(content), 3):
        saved.write_bytes(content[:length])
        refused(saved)


def test_what_is_no_file_of_a_trie_is_refused(saved, tmp_path):
    saved.write_text("item_id,title\n", encoding="utf-8")
    refused(saved)
    saved.unlink()
    refused(saved)  # missing
    saved.mkdir()
    refused(saved)


def test_another_format_is_refused(saved):
    arrays, metadata = contents(saved)
    facts = json.loads(metadata["facts"])
    second = {"facts": json.dumps(facts | {"format": "semid prefix trie 2"})}
    for other in (None, {"format": "pt"}, metadata | {"format": "semid prefix trie 2"}, second):
        save_file(arrays, saved, metadata=other)
        refused(saved, "format")
    before = {"format": facts.pop("format"), "facts": json.dumps(facts)}  # as earlier versions wrote it
    save_file(arrays, saved, metadata=before)
    assert PrefixTrie.load(saved).n_items == 5


@pytest.mark.parametrize(
    "facts",
    [
        *("", "{", "[3, 5]", "null", "{}"),
        *({"n_levels": 3}, {"n_rows": 5}),
        *({"n_levels": n_levels, "n_rows": 5} for n_levels in ("3", None, 0, -1, 2, 4, 10**12)),
        *({"n_levels": 3, "n_rows": n_rows} for n_rows in ("5", None, 5.0, 4, -1)),
    ],
)
def test_facts_that_do_not_fit_are_refused(saved, facts):
    held, metadata = contents(saved)
    text = facts if isinstance(facts, str) else json.dumps(facts)
    save_file(held, saved, metadata=metadata | {"facts": text})
    refused(saved)


def damages():
    """Name of an array -> what a program that went wrong might have written there."""
    changes = {
        "missing": lambda array: None,
        "empty": lambda array: array[:0],
        "shorter": lambda array: array[:-1],
        "longer": lambda array: torch.cat([array, array[-1:]]),
        "two dimensions": lambda array: array[:, None],
        "no dimension": lambda array: array[0].clone(),
        "float": lambda array: array.float(),
        "bool": lambda array: array.bool(),
        "negative": lambda array: torch.cat([array[:-1], -array[-1:].to(torch.int32) - 1]),
        "huge": lambda array: torch.cat([array[:-1], torch.tensor([2**31 - 1], dtype=torch.int32)]),
    }
    names = ["item", *(f"{kind}.{level}" for kind in ("code", "child_start") for level in range(3))]
    names += ["leaf_start.0", "leaf_start.1"]
    harmless = {(f"code.{level}", "huge") for level in range(3)}  # only another ID
    return [(name, kind, changes[kind]) for name in names for kind in changes if (name, kind) not in harmless]


@pytest.mark.parametrize(
    ("name", "kind", "change"), damages(), ids=lambda value: value if isinstance(value, str) else ""
)
def test_arrays_that_do_not_fit_each_other_are_refused(saved, name, kind, change):
    held, metadata = contents(saved)
    held[name] = change(held[name])
    save_file({name: array.contiguous() for name, array in held.items() if array is not None}, saved, metadata=metadata)
    refused(saved)


@pytest.mark.parametrize(
    ("name", "place", "value"),
    [
        *(("item", 2, 0), ("item", 2, 5)),  # twice, and past the catalogue
        *(("code.0", 1, 0), ("code.0", 1, 9)),  # twice below the root, and not ascending: a search would miss it
        *(("child_start.1", 1, 2), ("child_start.1", 2, 1), ("child_start.0", 0, 1)),
        *(("leaf_start.0", 0, 1), ("leaf_start.1", 2, 2), ("leaf_start.1", 3, 4)),
    ],
)
def test_a_wrong_number_is_refused(saved, name, place, value):
    held, metadata = contents(saved)
    held[name][place] = value
    save_file(held, saved, metadata=metadata)
    refused(saved)


def test_an_array_too_many_is_refused(saved):
    held, metadata = contents(saved)
    save_file(held | {"leaf_start.2": held["child_start.2"].clone()}, saved, metadata=metadata)
    refused(saved, "leaf_start.2")


@given(distinct_ids(max_items=8), st.data())
def test_a_changed_byte_gives_an_error_or_a_trie(ids, data):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "trie.safetensors")
        PrefixTrie.build(ids).save(path)
        content = bytearray(path.read_bytes())
        for _ in range(10):
            place, change = data.draw(st.integers(0, len(content) - 1)), data.draw(st.integers(1, 255))
            content[place] ^= change
            path.write_bytes(content)
            content[place] ^= change
            try:
                trie = PrefixTrie.load(path)
            except ValueError as error:
                assert "trie.safetensors" in str(error)
            else:  # other codes or rows, but a trie
                again = PrefixTrie.build(trie.ids())
                structure = slice(trie.n_levels, -1)  # a code that fell may need a smaller type
                assert arrays(again)[0][structure] == arrays(trie)[0][structure]
                assert again.ids().tolist() == trie.ids().tolist()


# --- subsets ---

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


def by_sets(rows, allowed, excluded):
    """For each context, the allowed rows that have a leaf, and those that are not excluded."""
    allowed = np.ones(max(rows) + 1, dtype=bool) if allowed is None else allowed
    masks = np.broadcast_to(allowed, (N_CONTEXTS, allowed.shape[-1]))
    inside = [{row for row in rows if mask[row]} for mask in masks]
    taken = [set()] * N_CONTEXTS if excluded is None else [set(each) for each in excluded.tolist()]
    return inside, [each - gone for each, gone in zip(inside, taken, strict=True)]


def check(subset, drawn, inside, left, masked, listed):
    """All answers of a subset against sets; masked, listed: whether it has a mask, and excluded items."""
    ids, rows, trie = drawn
    assert subset.n_left().tolist() in ([len(each) for each in left], [len(left[0])] * (subset.n_contexts == 1))
    for depth in range(trie.n_levels + 1):
        below = [set(each) for each in rows_below(ids, rows, depth).values()]
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


@given(tries(max_items=12), st.data())
def test_a_subset_equals_sets(drawn, data):
    ids, rows, trie = drawn
    allowed, excluded = data.draw(limits(len(ids)))
    subset = trie.subset(allowed, excluded)
    check(subset, drawn, *by_sets(rows, allowed, excluded), allowed is not None, excluded is not None)


@given(tries(max_items=12), st.data())
def test_two_subsets_together_equal_the_common_sets(drawn, data):
    ids, rows, trie = drawn
    one, two = data.draw(limits(len(ids))), data.draw(limits(len(ids)))
    (inside, _), (inside_two, _) = by_sets(rows, one[0], None), by_sets(rows, two[0], None)
    inside = [each & other for each, other in zip(inside, inside_two, strict=True)]
    left = zip(inside, by_sets(rows, *one)[1], by_sets(rows, *two)[1], strict=True)
    masked, listed = (any(each is not None for each in pair) for pair in zip(one, two, strict=True))
    check(trie.subset(*one) & trie.subset(*two), drawn, inside, [a & b & c for a, b, c in left], masked, listed)


@given(tries(max_items=12), st.data())
def test_the_codes_of_a_subset(drawn, data):
    ids, rows, trie = drawn
    allowed, excluded = data.draw(limits(len(ids)))
    _, left = by_sets(rows, allowed, excluded)
    for depth in range(trie.n_levels):
        node = data.draw(st.lists(st.integers(-1, trie.n_nodes(depth) - 1), min_size=N_CONTEXTS, max_size=N_CONTEXTS))
        prefixes = [None if at < 0 else list(rows_below(ids, rows, depth))[at] for at in node]
        mask = trie.allowed_mask(depth, torch.tensor(node), trie.subset(allowed, excluded))
        for context, prefix in enumerate(prefixes):
            codes = {ids[row, depth] for row in left[context] if tuple(ids[row, :depth].tolist()) == prefix}
            assert torch.nonzero(mask[context]).flatten().tolist() == sorted(codes)


@given(tries(max_items=12), st.data())
def test_the_penalty_of_a_subset_spares_children_with_allowed_items(drawn, data):
    ids, _, trie = drawn
    allowed, _ = data.draw(limits(len(ids)).filter(lambda limits: limits[0] is not None))
    subset = trie.subset(allowed)
    for level in range(trie.n_levels):
        penalty, children = subset.penalty(level), trie.table(level)
        assert penalty.shape == (len(np.atleast_2d(allowed)), *children.shape)
        assert set(penalty.unique().tolist()) <= {0.0, -np.inf}
        assert torch.equal(trie.penalty(level) == 0, children >= 0)
        child = children.clamp(min=0)[None].expand(len(penalty), -1, -1)
        assert torch.equal(penalty == 0, (children >= 0) & subset.allowed(level + 1, child))


def test_without_limits_everything_is_left():
    trie = PrefixTrie.build(THREE).remove([0])
    for subset in (trie.subset(), trie.subset() & trie.subset()):
        assert subset.n_left().tolist() == [2]
        assert subset.has(1, torch.zeros((4, 1), dtype=torch.long)).all()


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
    with pytest.raises(ValueError, match="excluded must be"):
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
    with pytest.raises(ValueError, match="different tries"):
        PrefixTrie.build(THREE).subset() & PrefixTrie.build(THREE).subset()
