"""The prefix trie against a dictionary of dictionaries, and its files."""

import json
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file
from tries import distinct_ids, rows_below

from semid_lib.decoding import trie as trie_module
from semid_lib.decoding.trie import PrefixTrie


def arrays(trie):
    """All arrays of a trie with their types."""
    held = [*trie.code, *trie.child_start, *trie.leaf_start, trie.item]
    return [(str(array.dtype), array.tolist()) for array in held]


@given(distinct_ids())
def test_nodes_children_and_leaves_equal_those_of_sorted_prefixes(ids):
    trie = PrefixTrie.build(ids)
    assert trie.ids().tolist() == ids[trie.item.numpy()].tolist() == sorted(ids.tolist())
    assert trie.item[trie.leaf_of_item].tolist() == list(range(len(ids)))
    assert trie.sizes == tuple((ids.max(axis=0) + 1).tolist())
    branching = []
    for depth in range(trie.n_levels + 1):
        below = rows_below(ids, depth)
        assert trie.n_nodes(depth) == len(below)
        above = [node for node, rows in enumerate(below.values()) for _ in rows]
        assert trie.ancestor(depth, torch.arange(trie.n_items)).tolist() == above
        low, high = trie.leaves(depth, torch.arange(len(below)))
        assert [trie.item[a:b].tolist() for a, b in zip(low, high, strict=True)] == list(below.values())
        if depth < trie.n_levels:
            nodes = {prefix: node for node, prefix in enumerate(rows_below(ids, depth + 1))}
            expected = [{p[-1]: node for p, node in nodes.items() if p[:-1] == prefix} for prefix in below]
            assert [trie.children(depth, node) for node in range(len(below))] == expected
            branching.append(max(map(len, expected)))
            table = trie.tables[depth]
            assert [{c: n for c, n in enumerate(row) if n >= 0} for row in table.tolist()] == [*expected, {}]
            assert torch.equal(trie.everything.penalty(depth) == 0, table >= 0)
    assert trie.branching == tuple(branching)


@given(distinct_ids(), st.data())
def test_step_and_allowed_mask_equal_the_children(ids, data):
    trie = PrefixTrie.build(ids)
    for depth in range(trie.n_levels):
        nodes = data.draw(st.lists(st.integers(-1, trie.n_nodes(depth) - 1), max_size=6))  # in any order, repeated
        children = [{} if node < 0 else trie.children(depth, node) for node in nodes]
        mask = trie.allowed_mask(depth, torch.tensor(nodes, dtype=torch.long))
        assert [torch.nonzero(row).flatten().tolist() for row in mask] == [sorted(each) for each in children]
        codes = sorted({code + shift for code in ids[:, depth].tolist() for shift in (-1, 0, 1, 256)})
        node = torch.tensor(nodes, dtype=torch.long)[:, None].expand(-1, len(codes))
        found = trie.step(depth, node, torch.tensor(codes).expand(len(nodes), -1))
        assert found.tolist() == [[each.get(code, -1) for code in codes] for each in children]


@pytest.mark.parametrize("code", [261, -251, 5 + 2**16])
def test_a_code_does_not_wrap_round_in_the_type_of_the_codes(code):
    trie = PrefixTrie.build(np.array([[5], [9]]))
    assert trie.step(0, torch.tensor([0]), torch.tensor(code)).tolist() == [-1]
    wide = PrefixTrie.build(np.array([[261], [9]]))
    assert wide.step(0, torch.tensor(0), torch.tensor([5, 9], dtype=torch.uint8)).tolist() == [-1, 0]


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([[5, 1], [0, 2], [0, 3], [0, 2]], r"items 1 and 3 share the semantic ID \(0, 2\)"),
        (np.empty((0, 3), np.int64), "semantic IDs must be"),
        (np.empty((3, 0), np.int64), "semantic IDs must be"),
        ([1, 2], "semantic IDs must be"),
        ([[0, -1]], "code -1 is negative"),
        ([[2**31]], "code 2147483648 is above"),
        ([[0.2], [0.7]], "integers"),
    ],
)
def test_what_is_no_table_of_ids_is_refused(ids, message):
    with pytest.raises(ValueError, match=message):
        PrefixTrie.build(np.array(ids))


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
    n_levels = ids.shape[1]
    assert arrays(large)[n_levels:] == arrays(small)[n_levels:]  # all but the codes


def test_levels_of_31_bits():
    ids = np.random.default_rng(3).choice([0, 7, 2**31 - 2, 2**31 - 1], size=(300, 6))
    ids = np.random.default_rng(4).permutation(np.unique(ids, axis=0))
    assert PrefixTrie.build(ids).ids().tolist() == sorted(ids.tolist())
    with pytest.raises(ValueError, match=f"items 5 and {len(ids)} share"):
        PrefixTrie.build(np.concatenate([ids, ids[5:6]]))


def test_only_small_depths_have_a_table(monkeypatch):
    for room, expected in ((14, [False, True]), (15, [False, False])):  # tables of 2 x 2 and 3 x 5 entries
        monkeypatch.setattr(trie_module, "_DENSE", room)
        tables = PrefixTrie.build(np.array([[0, 4], [1, 0], [1, 1]])).tables
        assert [table is None for table in tables] == expected


def test_a_trie_moves_to_another_device():
    trie = PrefixTrie.build(np.array([[0, 3], [1, 3]]))
    assert trie.to("cpu") is trie
    moved = trie.to("meta")
    assert {array.device.type for array in (*moved.code, *moved.child_start, *moved.leaf_start, moved.item)} == {"meta"}


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


@given(distinct_ids())
def test_a_saved_trie_comes_back(ids):
    trie = PrefixTrie.build(ids)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "trie")
        trie.save(path)
        loaded = PrefixTrie.load(str(path))
        PrefixTrie.build(ids[:1]).save(path)  # a mapped file is replaced, not changed
        assert arrays(loaded) == arrays(trie)


def test_open_checks_the_ends_and_load_everything(saved):
    assert arrays(PrefixTrie.open(saved)) == arrays(PrefixTrie.load(saved))
    held, metadata = contents(saved)
    save_file(held | {"code.0": held["code.0"].flip(0)}, saved, metadata=metadata)
    damaged = PrefixTrie.open(saved)
    refused(saved, "the arrays are not those of a trie")
    with pytest.raises(ValueError, match="the trie: the arrays are not those of a trie"):
        damaged.check()
    for name, array in held.items():
        save_file(held | {name: array[:-1].clone()}, saved, metadata=metadata)
        with pytest.raises(ValueError, match=r"trie\.safetensors"):
            PrefixTrie.open(saved)


def test_a_file_that_is_cut_missing_or_of_something_else_is_refused(saved):
    content = saved.read_bytes()
    for length in range(0, len(content), 7):
        saved.write_bytes(content[:length])
        refused(saved)
    saved.write_text("item_id,title\n", encoding="utf-8")
    refused(saved)
    saved.unlink()
    refused(saved)
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
        *({"n_levels": 3}, {"n_rows": 5}, {"n_levels": 3, "n_rows": 6}),
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


@settings(max_examples=40)
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
                assert arrays(again)[structure] == arrays(trie)[structure]
                assert again.ids().tolist() == trie.ids().tolist()
