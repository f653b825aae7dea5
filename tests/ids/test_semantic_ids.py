"""Semantic IDs: one per item, collisions resolved at least cost, the same after a trip through tokens and files."""

import hashlib
import json
from collections import Counter, defaultdict
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from semid_lib.ids import codebooks, control_codes, quantize, semantic_ids
from semid_lib.ids.semantic_ids import (
    SemanticIDs,
    disambiguation_codes,
    from_tokens,
    least_cost_codes,
    load_ids,
    resolve_collisions,
    save_ids,
    sinkhorn_codes,
    sinkhorn_plan,
    to_tokens,
)

some_codes = hnp.arrays(np.int64, st.tuples(st.integers(1, 25), st.integers(1, 3)), elements=st.integers(0, 2))
some_costs = hnp.arrays(np.float64, st.tuples(st.integers(1, 5), st.integers(1, 4)), elements=st.integers(0, 20))


class Residual:
    """Frozen codebooks with the methods of a quantizer, every distance written out."""

    def __init__(self, codebooks):
        self.codebooks = np.asarray(codebooks, dtype=np.float32)
        self.sizes = (self.codebooks.shape[1],) * len(self.codebooks)

    def encode(self, vectors):
        return quantize.encode(vectors, self.codebooks)

    def decode(self, codes):
        return quantize.decode(codes, self.codebooks)

    def last_level_costs(self, vectors):
        left = vectors - self.decode(self.encode(vectors)[:, :-1]) if len(self.codebooks) > 1 else vectors
        return np.sum((left[:, None] - self.codebooks[-1]) ** 2, axis=2)


# level 0: about 0 or about 100; level 1: 0, 1 or 3 more
LINE = Residual([[[0.0], [100.0], [200.0]], [[0.0], [1.0], [3.0]]])


@st.composite
def catalogues(draw):
    """A quantizer with two levels of K codewords, and vectors, many of them equal."""
    size, dim = draw(st.integers(2, 4)), draw(st.integers(1, 2))
    numbers = st.integers(-6, 6).map(float)
    levels = draw(hnp.arrays(np.float32, (2, size, dim), elements=numbers))
    vectors = draw(hnp.arrays(np.float32, st.tuples(st.integers(1, 14), st.just(dim)), elements=numbers))
    return Residual(levels), vectors


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


def test_room_for_disambiguation_codes_can_be_kept():
    ids = SemanticIDs(np.array([[0, 1], [1, 1]]), np.array([0, 0]), codebook_size=2, disambiguation_size=3)
    assert (ids.unique.tolist(), ids.sizes) == ([[0, 1, 0], [1, 1, 0]], (2, 2, 3))
    wider = SemanticIDs(np.array([[0, 1], [0, 1]]), np.array([0, 4]), codebook_size=2, disambiguation_size=3)
    assert wider.sizes == (2, 2, 5)


# --- collisions ---


def test_three_items_under_one_prefix_by_hand():
    # 0.45 and 0 are both nearest to 0. In row order the first would take it and the second pay 1; better is that
    # the first moves to 1 for .3025 - .2025 more. The item at 103 is under another prefix and stays.
    vectors = np.array([[0.45], [0.0], [3.0], [103.0]], dtype=np.float32)
    codes = LINE.encode(vectors)
    assert codes.tolist() == [[0, 0], [0, 0], [0, 2], [1, 2]]
    ids, report = resolve_collisions(codes, vectors, LINE)
    assert ids.unique.tolist() == [[0, 1], [0, 0], [0, 2], [1, 2]]
    assert (report.collisions, report.moved, report.left_over) == (1, 1, 0)
    assert report.distortion_before == pytest.approx(0.45**2 / 4)
    assert report.distortion_after == pytest.approx(0.55**2 / 4)
    assert report.growth == pytest.approx(0.55**2 / 0.45**2 - 1)


def test_who_has_its_code_alone_may_have_to_move_for_others():
    # two items at 0, one at 1.2; codewords 0, 1, 3: 0, 0, 1.2 -> 0, 1, 3 costs 1 + 3.24, as there is no other way
    vectors = np.array([[1.2], [0.0], [0.0]], dtype=np.float32)
    ids, report = resolve_collisions(LINE.encode(vectors), vectors, LINE)
    assert ids.codes[0].tolist() == [0, 2]
    assert sorted(ids.codes[1:, 1]) == [0, 1]
    assert (report.collisions, report.moved) == (1, 2)


def test_surest_first_is_not_least_cost():
    # the surest entry for the second code is a hair better for item 0, and item 1 then pays dearly
    costs = np.array([[0.0, 1.0], [0.1, 9.0]])
    assert least_cost_codes(costs).tolist() == [1, 0]


@given(some_costs)
def test_no_assignment_costs_less(costs):
    items, size = costs.shape
    codes = least_cost_codes(costs)
    distinct = min(items, size)
    assert len(set(codes.tolist())) == distinct
    all_ways = (way for way in product(range(size), repeat=items) if len(set(way)) == distinct)
    least = min(sum(costs[item, code] for item, code in enumerate(way)) for way in all_ways)
    assert costs[np.arange(items), codes].sum() == least


@given(some_costs, st.data())
def test_only_free_codewords_are_given_while_there_are_any(costs, data):
    free = np.array(data.draw(st.lists(st.booleans(), min_size=costs.shape[1], max_size=costs.shape[1])))
    codes = least_cost_codes(costs, free)
    given = Counter(code for code in codes.tolist() if free[code])
    assert len(given) == min(len(costs), free.sum())
    if len(costs) <= free.sum():
        assert set(given.values()) == {1}
        assert given.total() == len(costs)


@given(some_costs, st.sampled_from([0.005, 0.01, 0.1, 1.0]))
def test_sinkhorn_gives_distinct_codes_and_never_a_better_total(costs, epsilon):
    rows = np.arange(len(costs))
    codes = sinkhorn_codes(costs, epsilon)
    assert len(set(codes.tolist())) == min(costs.shape)
    assert costs[rows, codes].sum() >= costs[rows, least_cost_codes(costs)].sum()


@given(some_costs, st.sampled_from([0.005, 0.1, 1.0]))
def test_the_plan_shares_each_item_out(costs, epsilon):
    plan = np.exp(sinkhorn_plan(costs, epsilon, n_iterations=50))
    np.testing.assert_allclose(plan.sum(axis=1), 1)


def test_the_plan_is_balanced_when_converged():
    costs = np.random.default_rng(0).random((6, 3))
    plan = np.exp(sinkhorn_plan(costs, epsilon=0.5, n_iterations=500))
    np.testing.assert_allclose(plan.sum(axis=0), 2)  # six items on three codewords
    roomy = np.exp(sinkhorn_plan(costs.T, epsilon=0.5, n_iterations=500))
    assert (roomy.sum(axis=0) <= 1 + 1e-9).all()  # three items on six codewords: at most one on each


def test_a_sharp_plan_is_the_least_cost_assignment():
    costs = np.random.default_rng(1).random((5, 8))
    np.testing.assert_array_equal(sinkhorn_codes(costs, 0.005, 2000), least_cost_codes(costs))


@pytest.mark.parametrize("epsilon", [0.0, -1.0, 0.001, float("nan")])
def test_a_plan_that_would_underflow_is_refused(epsilon):
    with pytest.raises(ValueError, match=str(epsilon)):
        sinkhorn_plan(np.zeros((2, 2)), epsilon)


@given(catalogues(), st.sampled_from(["reassign", "sinkhorn"]))
def test_after_reassignment_ids_are_distinct_where_there_is_room(catalogue, policy):
    quantizer, vectors = catalogue
    codes, size = quantizer.encode(vectors), quantizer.codebooks.shape[1]
    ids, report = resolve_collisions(codes, vectors, quantizer, policy)
    np.testing.assert_array_equal(ids.codes[:, :-1], codes[:, :-1])
    under = Counter(codes[:, 0].tolist())
    assert report.left_over == sum(max(0, n - size) for n in under.values())
    assert len(np.unique(ids.codes, axis=0)) == len(codes) - report.left_over
    assert report.collisions == len(codes) - len(np.unique(codes, axis=0))
    assert report.moved == (ids.codes != codes).any(axis=1).sum()
    assert report.distortion_after == pytest.approx(codebooks.distortion(vectors, quantizer.decode(ids.codes)))
    alone = [
        row
        for row, prefix in enumerate(codes[:, 0])
        if len(np.unique(codes[codes[:, 0] == prefix], axis=0)) == under[prefix]
    ]
    np.testing.assert_array_equal(ids.codes[alone], codes[alone])  # no collision under the prefix: nothing moves


@given(catalogues())
def test_the_policies_in_order_of_distortion(catalogue):
    quantizer, vectors = catalogue
    codes = quantizer.encode(vectors)
    results = [
        resolve_collisions(codes, vectors, quantizer, policy) for policy in ("disambiguate", "reassign", "sinkhorn")
    ]
    (kept, none), (_, least), (_, other) = results
    np.testing.assert_array_equal(kept.unique, SemanticIDs.from_codes(codes, kept.codebook_size).unique)
    assert (none.moved, none.left_over) == (0, none.collisions)
    assert none.distortion_before == none.distortion_after <= least.distortion_after + 1e-6
    assert least.distortion_after <= other.distortion_after + 1e-6


def test_on_codebooks_of_residual_k_means():
    rng = np.random.default_rng(0)
    vectors = (rng.normal(size=(60, 6))[rng.integers(60, size=400)] + 0.05 * rng.normal(size=(400, 6))).astype(
        "float32"
    )
    quantizer = quantize.fit_residual_kmeans(vectors, n_levels=3, codebook_size=16)
    ids, report = resolve_collisions(quantizer.codes, vectors, quantizer)
    assert report.collisions > 10
    assert (report.left_over, ids.unique.shape, codebooks.collision_rate(ids.codes)) == (0, (400, 3), 0)
    by_hand, _ = resolve_collisions(quantizer.codes, vectors, Residual(quantizer.codebooks))
    np.testing.assert_array_equal(ids.codes, by_hand.codes)


def test_costs_are_those_of_the_given_prefixes():
    # 0.4 is nearest to 0, but 0 + 0.1 is farther from it than 1 - 0.5, which a beam finds
    quantizer = quantize.ResidualQuantizer(np.empty((0, 2), dtype=int), np.array([[[0.0], [1.0]], [[-0.55], [0.1]]]))
    vectors = np.array([[0.4], [0.4]], dtype=np.float32)
    codes = quantizer.encode(vectors, beam_width=2)
    assert codes.tolist() == [[1, 0], [1, 0]] != quantizer.encode(vectors).tolist()
    ids, report = resolve_collisions(codes, vectors, quantizer)
    assert sorted(ids.codes.tolist()) == [[1, 0], [1, 1]]
    assert report.distortion_after == pytest.approx((0.05**2 + 0.7**2) / 2)


def test_a_quantizer_without_costs_can_only_disambiguate():
    random = control_codes.random_codes(9, n_levels=1, codebook_size=2, vectors=np.zeros((9, 2)))
    assert resolve_collisions(random.codes, np.zeros((9, 2)), random, "disambiguate")[1].left_over == 7
    with pytest.raises(ValueError, match="RandomCodes has no last_level_costs"):
        resolve_collisions(random.codes, np.zeros((9, 2)), random)


def test_more_copies_of_one_vector_than_codewords_keep_a_disambiguation_code():
    vectors = np.zeros((8, 1), dtype=np.float32)
    ids, report = resolve_collisions(LINE.encode(vectors), vectors, LINE)
    assert (report.collisions, report.left_over) == (7, 5)
    assert Counter(ids.codes[:, 1].tolist()) == {0: 6, 1: 1, 2: 1}  # those left over stay at their nearest
    assert ids.sizes == (3, 3, 6)


def test_one_level_has_one_prefix():
    quantizer = Residual([[[0.0], [1.0], [5.0]]])
    vectors = np.array([[0.0], [0.4]], dtype=np.float32)
    assert resolve_collisions(quantizer.encode(vectors), vectors, quantizer)[0].codes.ravel().tolist() == [0, 1]


def test_costs_are_asked_for_in_batches_of_whole_prefixes():
    vectors = np.repeat(np.array([[0.0], [100.0], [200.0]], dtype=np.float32), 2, axis=0)
    codes = LINE.encode(vectors)
    for at_once in (1, 3, 100):
        found = list(semantic_ids._crowded_prefixes(codes, vectors, LINE, at_once))
        assert [rows.tolist() for rows, _ in found] == [[0, 1], [2, 3], [4, 5]]
        np.testing.assert_array_equal(np.concatenate([costs for _, costs in found]), LINE.last_level_costs(vectors))


@pytest.mark.parametrize(
    ("codes", "change", "message"),
    [
        ([[0, 0], [0, 0]], {"policy": "greedy"}, "'greedy' is none of reassign, sinkhorn, disambiguate"),
        ([[0, 0]], {}, "2 vectors for 1 rows"),
        ([[0, -1], [0, 0]], {}, "-1 is negative"),
        ([[0, 3], [0, 0]], {}, "expected 0 to 2"),
        ([[0.0, 0.0], [0.0, 0.0]], {}, "float64"),
        ([0, 0], {}, r"\(2,\)"),
        (np.empty((0, 2), dtype=int), {}, r"\(0, 2\)"),
    ],
)
def test_what_cannot_be_resolved_is_refused(codes, change, message):
    with pytest.raises(ValueError, match=message):
        resolve_collisions(np.array(codes), np.zeros((2, 1), dtype=np.float32), LINE, **change)


@pytest.mark.parametrize("costs", [np.zeros((2, 4)), np.zeros((3, 3)), np.full((2, 3), np.nan)])
def test_costs_of_another_shape_are_refused(costs):
    quantizer = Residual(LINE.codebooks)
    quantizer.last_level_costs = lambda vectors: costs
    with pytest.raises(ValueError, match=r"last_level_costs gave .*expected \(2, 3\) finite"):
        resolve_collisions(np.zeros((2, 2), dtype=int), np.zeros((2, 1), dtype=np.float32), quantizer)


# --- tokens ---


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
        "<|sid_0_3|> and <|sid_1_1|>",  # words between
        "<|sid_0_3|><|sid_1_1|> or <|sid_0_3|><|sid_1_1|>",  # two IDs
        "<|sid_0_3|><|sid_1_1|><|sid_2_",  # cut off behind what could be a whole one
        "<|sid_0_3|><|sid_1_1|>|sid_2_4|>",
        "<|sid_0_3|><|sid_1_",  # cut off
        "<|sid_0_-3|>",
        "<|sid_0_03|>",
        "<|sid_0_٣|>",  # a digit, but not one that we write
        "<|SID_0_3|>",
    ],
)
def test_anything_else_is_refused(text):
    with pytest.raises(ValueError, match="is not one semantic ID"):
        from_tokens(text)


@given(st.lists(st.integers(0, 300), min_size=1, max_size=5), st.data())
def test_decoders_put_blanks_between_tokens_and_models_write_words_around_them(codes, data):
    blanks = data.draw(st.lists(st.text(" \n\t\u00a0", max_size=2), min_size=len(codes), max_size=len(codes)))
    words = st.sampled_from(["", " ", "The item is ", "<s>", "<|im_end|>", "\n- ", "(sid)", "."])
    tokens = to_tokens(np.array([codes]))[0].replace("><", ">\0<").split("\0")
    text = "".join(token + blank for token, blank in zip(tokens, blanks, strict=True))
    assert from_tokens(data.draw(words) + text + data.draw(words)) == tuple(codes)


@pytest.mark.parametrize("value", [b"<|sid_0_3|>", ["<|sid_0_3|>"], None, 3])
def test_tokens_are_text(value):
    with pytest.raises(ValueError, match="is not text"):
        from_tokens(value)


# --- files ---

IDS = SemanticIDs.from_codes(np.array([[0, 1], [2, 2], [0, 1]]), codebook_size=3)


@pytest.fixture
def folder(tmp_path):
    return save_ids(tmp_path / "ids", IDS, LINE.codebooks, [11, 7, 30], {"seed": 3}, {"commit": "abc"})


def test_files_there_and_back(folder):
    saved = load_ids(folder)
    np.testing.assert_array_equal(saved.ids.codes, IDS.codes)
    np.testing.assert_array_equal(saved.ids.unique, IDS.unique)
    assert saved.ids.sizes == IDS.sizes
    np.testing.assert_array_equal(saved.codebooks, LINE.codebooks)
    assert saved.item_ids == [11, 7, 30]
    assert (saved.summary["config"], saved.summary["provenance"]) == ({"seed": 3}, {"commit": "abc"})
    assert saved.summary["collision_rate"] == pytest.approx(1 / 3)
    assert saved.summary["utilization"] == pytest.approx([2 / 3, 2 / 3])
    assert sorted(path.name for path in folder.iterdir()) == [
        "codes.npy", "codes_with_suffix.npy", "item_ids.json", "semantic_ids.npz", "summary.json",
    ]  # fmt: skip


def test_others_read_plain_arrays(folder):
    np.testing.assert_array_equal(np.load(folder / "codes.npy", allow_pickle=False), IDS.codes)
    suffixed = np.load(folder / "codes_with_suffix.npy", allow_pickle=False)
    assert suffixed.tolist() == [[0, 1, 0], [2, 2, 0], [0, 1, 1]]
    assert json.loads((folder / "item_ids.json").read_text()) == [11, 7, 30]


def test_the_suffix_is_there_even_if_no_item_needs_it(tmp_path):
    ids = SemanticIDs.from_codes(np.array([[0, 1], [1, 0]]), codebook_size=3)
    save_ids(tmp_path, ids, LINE.codebooks, np.array(["B001", "B002"]))
    assert np.load(tmp_path / "codes_with_suffix.npy").tolist() == [[0, 1, 0], [1, 0, 0]]
    assert load_ids(tmp_path).item_ids == ["B001", "B002"]
    assert load_ids(tmp_path).ids.sizes == (3, 3)


@pytest.mark.parametrize("item_ids", [["17", "B 2"], [2**63 - 1, -5], [1, "a"], np.array([4, 9]), ["α", "a" * 300]])
def test_item_ids_come_back_as_they_were(tmp_path, item_ids):
    ids = SemanticIDs.from_codes(np.array([[0, 1], [1, 0]]), codebook_size=3)
    found = load_ids(save_ids(tmp_path / "ids", ids, LINE.codebooks, item_ids)).item_ids
    assert found == list(item_ids) and list(map(type, found)) == [type(value) for value in np.array(item_ids, object)]


@pytest.mark.parametrize("name", ["ids", "ids.npz", "ids.v2"])
def test_the_file_has_the_name_that_was_given(tmp_path, name):
    IDS.save(tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    np.testing.assert_array_equal(SemanticIDs.load(tmp_path / name).unique, IDS.unique)


ARRAYS = {
    "codes": IDS.codes, "disambiguation_code": IDS.disambiguation_code, "codebook_size": np.int64(3),
    "disambiguation_size": np.int64(1),
}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"codes": IDS.codes.astype(float)}, "codes must be .* int64"),
        ({"codes": IDS.codes.astype(np.int32)}, "codes must be .* int64"),
        ({"codes": IDS.codes - 1}, "codes run from -1"),
        ({"codes": np.array([{}], dtype=object)}, "no file of semantic IDs"),
        ({"codes": np.zeros(3, np.int64)}, "codes must be"),
        ({"disambiguation_code": np.zeros(3)}, "integers from 0"),
        ({"disambiguation_code": np.array([2**62, 0, 1])}, "integers from 0"),
        ({"codebook_size": np.int64(10**12)}, "codebook_size is 1000000000000"),
        ({"codebook_size": np.float64(3)}, "does not hold semantic IDs"),
        ({"codebook_size": np.array([3, 3])}, "does not hold semantic IDs"),
        ({"disambiguation_size": np.int64(-5)}, "disambiguation_size is -5"),
        ({"disambiguation_size": None}, "no file of semantic IDs"),
    ],
)
def test_a_damaged_file_is_named(tmp_path, change, message):
    arrays = {name: array for name, array in (ARRAYS | change).items() if array is not None}
    np.savez(tmp_path / "ids.npz", **arrays)
    with pytest.raises(ValueError, match=rf"ids\.npz.*{message}"):
        SemanticIDs.load(tmp_path / "ids.npz")


def test_a_file_of_another_kind_is_named_and_a_compressed_one_is_not_unpacked(tmp_path):
    path = tmp_path / "ids.npz"
    np.savez_compressed(path, **ARRAYS)
    with pytest.raises(ValueError, match=r"ids\.npz is no file of semantic IDs: its arrays are compressed"):
        SemanticIDs.load(path)
    np.save(tmp_path / "x.npy", np.zeros(3))
    for content in (b"", b"garbage" * 100, (tmp_path / "x.npy").read_bytes()):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"ids\.npz is no file of semantic IDs"):
            SemanticIDs.load(path)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        SemanticIDs.load(tmp_path / "nowhere")


def test_room_for_disambiguation_codes_is_saved(tmp_path):
    ids = SemanticIDs(np.array([[0, 1]]), np.array([0]), codebook_size=3, disambiguation_size=4)
    assert load_ids(save_ids(tmp_path, ids, LINE.codebooks, [1])).ids.sizes == (3, 3, 4)


@pytest.mark.parametrize("name", ["semantic_ids.npz", "codes.npy", "codes_with_suffix.npy", "item_ids.json"])
def test_a_file_of_another_run_is_noticed(folder, name, tmp_path):
    other = SemanticIDs.from_codes(np.array([[0, 1], [2, 2], [0, 0]]), codebook_size=3)
    save_ids(tmp_path / "other", other, LINE.codebooks, [11, 7, 31])
    (tmp_path / "other" / name).replace(folder / name)
    with pytest.raises(ValueError, match=rf"{name} is not the file"):
        load_ids(folder)


@pytest.mark.parametrize(
    "name", ["semantic_ids.npz", "codes.npy", "codes_with_suffix.npy", "item_ids.json", "summary.json"]
)
def test_a_missing_file_is_named(folder, name):
    (folder / name).unlink()
    with pytest.raises(ValueError, match=rf"{name} is missing"):
        load_ids(folder)


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "is not JSON"), ("[]", "format None"), ('{"format": 9, "sha256": {}}', "format 9"), ('{"format": 1}', "1")],
)
def test_another_summary_is_refused(folder, text, message):
    (folder / "summary.json").write_text(text)
    with pytest.raises(ValueError, match=rf"summary.json .*{message}"):
        load_ids(folder)


@pytest.mark.parametrize("content", [b"[1,", b"5", b'["\xe9"]', b"[" * 100_000])
def test_item_ids_that_are_no_list_are_named(folder, content):
    (folder / "item_ids.json").write_bytes(content)
    summary = json.loads((folder / "summary.json").read_text())
    summary["sha256"]["item_ids.json"] = hashlib.sha256(content).hexdigest()
    (folder / "summary.json").write_text(json.dumps(summary))
    with pytest.raises(ValueError, match=r"item_ids\.json is damaged"):
        load_ids(folder)


def test_an_interrupted_write_leaves_the_old_file(folder, monkeypatch):
    before = (folder / "semantic_ids.npz").read_bytes()

    def broken(file, **arrays):
        file.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(np, "savez", broken)
    with pytest.raises(KeyboardInterrupt):
        save_ids(folder, IDS, LINE.codebooks, [1, 2, 3])
    assert (folder / "semantic_ids.npz").read_bytes() == before
    assert load_ids(folder).item_ids == [11, 7, 30]


@pytest.mark.parametrize(
    ("levels", "item_ids", "message"),
    [
        (LINE.codebooks[:1], [1, 2, 3], r"\(1, 3, 1\), expected \(2, 3, dim\)"),
        (LINE.codebooks[:, :2], [1, 2, 3], r"\(2, 2, 1\)"),
        (LINE.codebooks[0], [1, 2, 3], r"\(3, 1\)"),
        (LINE.codebooks, [1, 2], "2 item ids for 3"),
        (LINE.codebooks, [1, 2, 1], "2 are distinct"),
        (LINE.codebooks, [1, 2, "1"], "2 are distinct"),
        (LINE.codebooks, [1.5, 2.0, 3.0], r"item id 1\.5: expected an integer or text"),
        (LINE.codebooks, [1, 2, b"3"], r"item id b'3': expected an integer or text"),
        (LINE.codebooks, [1, 2, [3]], r"item id \[3\]: expected an integer or text"),
        (LINE.codebooks, [1, 2, True], "item id True: expected an integer or text"),
    ],
)
def test_what_does_not_fit_is_not_saved(tmp_path, levels, item_ids, message):
    with pytest.raises(ValueError, match=message):
        save_ids(tmp_path / "ids", IDS, levels, item_ids)
    assert not (tmp_path / "ids").exists()
