"""Semantic IDs: one per item, and the same after a trip through tokens and files."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from semid_lib.ids.semantic_ids import (
    SemanticIDs,
    disambiguation_codes,
    equal_rows,
    save_ids,
    to_tokens,
    token_layout,
    trained_tokens,
)

some_codes = hnp.arrays(np.int64, st.tuples(st.integers(1, 25), st.integers(1, 3)), elements=st.integers(0, 2))
IDS = SemanticIDs.from_codes(np.array([[0, 1], [2, 2], [0, 1]]), codebook_size=3)


@given(some_codes)
@settings(max_examples=40)
def test_unique_rows_are_distinct_and_begin_with_the_codes(codes):
    ids = SemanticIDs.from_codes(codes, codebook_size=3)
    assert len({tuple(row) for row in ids.unique.tolist()}) == len(codes) == len(ids)
    np.testing.assert_array_equal(ids.unique[:, : ids.n_levels], codes)
    assert len(ids.sizes) == ids.unique.shape[1]
    assert (ids.unique < ids.sizes).all()
    assert (ids.unique.max(axis=0) + 1 == ids.sizes)[ids.n_levels :].all()  # no spare disambiguation code
    numbers = disambiguation_codes(codes)
    for rows in equal_rows(codes):
        assert numbers[rows].tolist() == list(range(len(rows)))


@pytest.mark.parametrize(
    ("codes", "extra", "room", "sizes"),
    [
        ([[0, 1], [1, 0]], [0, 0], 1, (2, 2)),
        ([[0, 1], [0, 1], [0, 1]], [0, 1, 2], 1, (2, 2, 3)),
        ([[0, 1], [1, 1]], [0, 0], 3, (2, 2, 3)),  # room is kept
        ([[0, 1], [0, 1]], [0, 4], 3, (2, 2, 5)),
    ],
)
def test_a_disambiguation_code_is_no_level(codes, extra, room, sizes):
    ids = SemanticIDs(np.array(codes), np.array(extra), 2, room)
    assert (ids.sizes, ids.n_levels, ids.unique.shape[1]) == (sizes, 2, len(sizes))


# --- tokens ---


def test_the_layout_of_tokens():
    def layout(*tokens, sizes=(2, 1)):
        vocabulary = {"pen": 0} | {f"<|sid_{token}|>": number for number, token in enumerate(tokens, start=7)}
        return token_layout(SimpleNamespace(get_vocab=lambda: vocabulary), sizes)

    assert [level.tolist() for level in layout("0_1", "0_0", "1_0")] == [[8, 7], [9]]
    assert trained_tokens(layout("0_1", "0_0", "1_0")) == [7, 8, 9]
    assert to_tokens(IDS.unique[:1]) == ["<|sid_0_0|><|sid_1_1|><|sid_2_0|>"]
    assert layout() is None
    for tokens in (("0_0", "0_1"), ("0_0", "0_1", "1_0", "2_0")):
        with pytest.raises(ValueError, match=rf"the tokenizer holds {len(tokens)} .* than the sizes \(2, 1\)"):
            layout(*tokens)


# --- files ---


@pytest.mark.parametrize("item_ids", [[11, "α", "B 2"], np.array([4, 9, 8])])
def test_files_there_and_back(tmp_path, line, item_ids):
    IDS.save(tmp_path / "alone")  # under exactly this name
    assert SemanticIDs.load(tmp_path / "alone").unique.tolist() == IDS.unique.tolist()
    folder = save_ids(tmp_path / "ids", IDS, line.codebooks, item_ids, {"seed": 3}, {"commit": "abc"})
    read = SemanticIDs.load(folder / "semantic_ids.npz")
    assert (read.unique.tolist(), read.sizes) == (IDS.unique.tolist(), IDS.sizes)
    np.testing.assert_array_equal(np.load(folder / "semantic_ids.npz")["codebooks"], line.codebooks)
    np.testing.assert_array_equal(np.load(folder / "codes.npy"), IDS.codes)
    assert np.load(folder / "codes_with_suffix.npy").tolist() == [[0, 1, 0], [2, 2, 0], [0, 1, 1]]
    assert json.loads((folder / "item_ids.json").read_text()) == list(item_ids)
    summary = json.loads((folder / "summary.json").read_text())
    assert (summary["config"], summary["provenance"]) == ({"seed": 3}, {"commit": "abc"})
    assert (summary["n_items"], summary["sizes"], set(summary["sha256"])) == (
        3, [3, 3, 2], {"codes.npy", "codes_with_suffix.npy", "item_ids.json", "semantic_ids.npz"},
    )  # fmt: skip
    assert summary["collision_rate"] == pytest.approx(1 / 3)
    assert summary["utilization"] == pytest.approx([2 / 3, 2 / 3])


def test_files_of_others_are_kept(tmp_path, line):
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(ValueError, match=r"mine\.txt"):
        save_ids(tmp_path, IDS, line.codebooks, [1, 2, 3])


@pytest.mark.parametrize(
    ("n_levels", "item_ids", "message"),
    [
        (1, [1, 2, 3], r"\(1, 3, 1\), expected \(2, 3, dim\)"),
        (2, [1, 2], "2 item ids, expected 3 different ones"),
        (2, [1, 2, "1"], "3 item ids, expected 3 different ones"),
    ],
)
def test_what_does_not_fit_is_not_saved(tmp_path, line, n_levels, item_ids, message):
    with pytest.raises(ValueError, match=message):
        save_ids(tmp_path / "ids", IDS, line.codebooks[:n_levels], item_ids)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"codes": IDS.codes.astype(np.int32)}, "codes must be .* int64"),
        ({"codes": IDS.codes - 1}, "codes hold -1, expected 0 to 2"),
        ({"codes": IDS.codes + 1}, "codes hold 3, expected 0 to 2"),
        ({"codes": np.array([{}], dtype=object)}, "no file of semantic IDs"),
        ({"disambiguation_code": np.zeros(2, int)}, r"\(3,\) integers, got \(2,\)"),
        ({"disambiguation_code": np.zeros(3, int)}, "3 items share 2 semantic IDs"),
        ({"codebook_size": np.int64(10**12)}, "codebook_size is 1000000000000"),
        ({"codebook_size": np.float64(3)}, "no file of semantic IDs"),
        ({"disambiguation_size": None}, "no file of semantic IDs"),
    ],
)
def test_a_damaged_file_is_named(tmp_path, change, message):
    IDS.save(tmp_path / "ids.npz")
    arrays = dict(np.load(tmp_path / "ids.npz")) | change
    np.savez(tmp_path / "ids.npz", **{name: array for name, array in arrays.items() if array is not None})
    with pytest.raises(ValueError, match=rf"ids\.npz.*{message}"):
        SemanticIDs.load(tmp_path / "ids.npz")
    (tmp_path / "ids.npz").write_bytes(b"hello")
    with pytest.raises(ValueError, match=r"it is no \.npz archive"):
        SemanticIDs.load(tmp_path / "ids.npz")


def test_a_compressed_file_is_not_unpacked_and_a_broken_one_is_named(tmp_path):
    path = tmp_path / "ids.npz"
    IDS.save(path)
    np.savez_compressed(tmp_path / "small.npz", **np.load(path))
    with pytest.raises(ValueError, match=r"small\.npz is no file of semantic IDs: its arrays are compressed"):
        SemanticIDs.load(tmp_path / "small.npz")
    np.save(tmp_path / "codes.npy", IDS.codes)
    for content in (b"", b"something else", path.read_bytes()[:300], (tmp_path / "codes.npy").read_bytes()):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"ids\.npz is no file of .*; expected one of SemanticIDs\.save") as caught:
            SemanticIDs.load(path)
        assert "unsafely" not in str(caught.value)  # as numpy says of what is no archive
