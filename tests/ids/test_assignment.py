"""One ID per item: collisions resolved at minimum cost, new items on free IDs, old ones unchanged."""

from collections import Counter
from itertools import product

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from semid_lib.ids import assignment, codebooks, quantize
from semid_lib.ids.assignment import add_items, least_cost_codes, remove_items, resolve_collisions, sinkhorn_codes
from semid_lib.ids.semantic_ids import SemanticIDs

some_costs = hnp.arrays(np.float64, st.tuples(st.integers(1, 5), st.integers(1, 4)), elements=st.integers(0, 20))
quick = settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])


@st.composite
def catalogues(draw):
    """Two levels of codewords, and vectors, many of them equal."""
    size, dim = draw(st.integers(2, 4)), draw(st.integers(1, 2))
    numbers = st.integers(-6, 6).map(float)
    levels = draw(hnp.arrays(np.float32, (2, size, dim), elements=numbers))
    return levels, draw(hnp.arrays(np.float32, st.tuples(st.integers(1, 14), st.just(dim)), elements=numbers))


def on_the_line(*places) -> np.ndarray:
    return np.array(places, dtype=np.float32)[:, None]


# --- collisions ---


def test_three_items_under_one_prefix_by_hand(line):
    # 0.45 and 0 are both nearest to 0. In row order the first would take it and the second pay 1; better is that
    # the first moves to 1 for .3025 - .2025 more. The item at 103 is under another prefix and stays.
    vectors = on_the_line(0.45, 0.0, 3.0, 103.0)
    codes = line.encode(vectors)
    assert codes.tolist() == [[0, 0], [0, 0], [0, 2], [1, 2]]
    ids, report = resolve_collisions(codes, vectors, line)
    assert ids.unique.tolist() == [[0, 1], [0, 0], [0, 2], [1, 2]]
    assert (report.collisions, report.moved, report.left_over) == (1, 1, 0)
    assert report.distortion_before == pytest.approx(0.45**2 / 4)
    assert report.distortion_after == pytest.approx(0.55**2 / 4)


@given(some_costs)
@quick
def test_no_assignment_costs_less(costs):
    items, size = costs.shape
    codes, other = least_cost_codes(costs), sinkhorn_codes(costs)
    distinct = min(items, size)
    assert len(set(codes.tolist())) == len(set(other.tolist())) == distinct
    all_ways = (way for way in product(range(size), repeat=items) if len(set(way)) == distinct)
    least = min(sum(costs[item, code] for item, code in enumerate(way)) for way in all_ways)
    assert costs[np.arange(items), codes].sum() == least <= costs[np.arange(items), other].sum()


@given(catalogues(), st.sampled_from(["reassign", "sinkhorn", "disambiguate"]))
@quick
def test_ids_are_distinct_and_prefixes_stay(quantizer_of, catalogue, policy):
    levels, vectors = catalogue
    quantizer = quantizer_of(levels)
    codes, size = quantizer.encode(vectors), levels.shape[1]
    ids, report = resolve_collisions(codes, vectors, quantizer, policy)
    np.testing.assert_array_equal(ids.codes[:, :-1], codes[:, :-1])
    assert report.collisions == len(codes) - len(np.unique(codes, axis=0))
    assert report.moved == (ids.codes != codes).any(axis=1).sum()
    assert report.distortion_after == pytest.approx(codebooks.distortion(vectors, quantizer.decode(ids.codes)))
    under = Counter(codes[:, 0].tolist())
    if policy == "disambiguate":
        assert (report.moved, report.left_over) == (0, report.collisions)
        return
    assert report.left_over == sum(max(0, n - size) for n in under.values())
    assert len(np.unique(ids.codes, axis=0)) == len(codes) - report.left_over
    calm = [len(np.unique(codes[codes[:, 0] == prefix], axis=0)) == under[prefix] for prefix in codes[:, 0]]
    np.testing.assert_array_equal(ids.codes[calm], codes[calm])  # no collision under the prefix: nothing moves


def test_on_codebooks_of_residual_k_means(monkeypatch):
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(60, 6))[rng.integers(60, size=400)] + 0.05 * rng.normal(size=(400, 6))
    quantizer = quantize.fit_residual_kmeans(vectors, n_levels=3, codebook_size=16)
    ids, report = resolve_collisions(quantizer.codes, vectors, quantizer)
    assert report.collisions > 10
    assert (report.left_over, ids.unique.shape, codebooks.collision_rate(ids.codes)) == (0, (400, 3), 0)
    assert report.growth == pytest.approx(report.distortion_after / report.distortion_before - 1)
    monkeypatch.setattr(assignment, "_PREFIXES", 1)  # a batch for each prefix
    np.testing.assert_array_equal(resolve_collisions(quantizer.codes, vectors, quantizer)[0].codes, ids.codes)
    assert assignment.codes_of(vectors[:0], quantizer).shape == (0, 3)
    np.testing.assert_array_equal(assignment.codes_of(vectors, quantizer), quantizer.codes)


def test_more_copies_of_one_vector_than_codewords_keep_a_disambiguation_code(line):
    vectors = np.zeros((8, 1), dtype=np.float32)
    ids, report = resolve_collisions(line.encode(vectors), vectors, line)
    assert (report.collisions, report.left_over) == (7, 5)
    assert Counter(ids.codes[:, 1].tolist()) == {0: 6, 1: 1, 2: 1}  # those left over stay at their nearest
    assert ids.sizes == (3, 3, 6)
    assert np.isnan(report.growth)


@pytest.mark.parametrize(
    ("codes", "change", "message"),
    [
        ([[0, 0], [0, 0]], {"policy": "greedy"}, "'greedy' is none of reassign, sinkhorn, disambiguate"),
        ([[0, 0]], {}, "2 vectors for 1 rows"),
        ([[0, -1], [0, 0]], {}, "-1"),
        ([[0.0, 0.0], [0.0, 0.0]], {}, "float64"),
        (np.empty((0, 2), int), {}, "of at least one item"),
    ],
)
def test_what_cannot_be_resolved_is_refused(line, codes, change, message):
    with pytest.raises(ValueError, match=message):
        resolve_collisions(np.array(codes), np.zeros((2, 1), dtype=np.float32), line, **change)


# --- new items ---


@pytest.mark.parametrize(
    ("old", "new", "codes", "report"),
    [
        # 0 is taken: 1 is nearer than 3. Under 100 the code 1 is taken: 101.2 goes to 100, since 103 is nearer to 103
        ([[0, 0], [1, 1]], (0.2, 101.2, 103.0), [[0, 1], [1, 0], [1, 2]], (3, 1, 0, True)),
        # one after the other, 0.45 would have taken 0
        ([[1, 0]], (0.45, 0.0), [[0, 1], [0, 0]], (2, 1, 0, True)),
        # a full prefix: IDs are one code longer, so a trained model cannot generate them
        ([[0, 0], [0, 1], [0, 2]], (0.9, 0.9), [[0, 1], [0, 1]], (2, 0, 2, False)),
        ([[0, 0], [0, 0]], (), [], (0, 0, 0, True)),
    ],
)
def test_new_items_by_hand(line, old, new, codes, report):
    old = SemanticIDs.from_codes(np.array(old), codebook_size=3)
    ids, found = add_items(old, on_the_line(*new), line)
    assert ids.codes[: len(old)].tolist() == old.codes.tolist()
    assert ids.codes[len(old) :].tolist() == codes
    assert found[:4] == report


def test_spare_disambiguation_codes_take_what_is_left_over(line):
    old = SemanticIDs(np.array([[0, 0], [0, 1], [0, 2]]), np.zeros(3, dtype=int), 3, disambiguation_size=2)
    ids, report = add_items(old, on_the_line(0.9), line)
    assert (ids.sizes, report.left_over, report.same_sizes) == (old.sizes, 1, True)
    assert ids.disambiguation_code.tolist() == [0, 0, 0, 1]


@given(catalogues(), st.sampled_from(["reassign", "disambiguate"]), st.data())
@quick
def test_items_come_and_go_and_the_others_stay(quantizer_of, catalogue, policy, data):
    levels, vectors = catalogue
    quantizer, n_old = quantizer_of(levels), data.draw(st.integers(1, len(vectors)))
    old, _ = resolve_collisions(quantizer.encode(vectors[:n_old]), vectors[:n_old], quantizer, policy)
    rows = np.array(data.draw(st.lists(st.integers(0, n_old - 1), unique=True)), dtype=np.int64)
    kept = remove_items(old, rows)
    assert kept.unique.tobytes() == old.unique[np.setdiff1d(np.arange(n_old), rows)].tobytes()
    ids, report = add_items(kept, vectors[n_old:], quantizer)
    assert ids.codes[: len(kept)].tobytes() == kept.codes.tobytes()
    assert ids.disambiguation_code[: len(kept)].tobytes() == kept.disambiguation_code.tobytes()
    assert report.same_sizes or report.left_over
    np.testing.assert_array_equal(ids.codes[len(kept) :, 0], quantizer.encode(vectors[n_old:])[:, 0])
    for (first, _), extra in zip(ids.codes.tolist(), ids.disambiguation_code.tolist(), strict=True):
        if extra and policy == "reassign" and not len(rows):  # only if the prefix is full
            assert len(np.unique(ids.codes[ids.codes[:, 0] == first, 1])) == levels.shape[1]


def test_a_quantizer_of_other_ids_is_refused(line):
    with pytest.raises(ValueError, match=r"codes \(1, 2\) of 3, expected \(1, 3\) of 3"):
        add_items(SemanticIDs.from_codes(np.zeros((1, 3), int), 3), on_the_line(0), line)


@pytest.mark.parametrize("rows", [[2], [-1], [0, 0], [True, False]])
def test_rows_that_are_not_there_are_refused(rows):
    with pytest.raises(ValueError, match="rows"):
        remove_items(SemanticIDs.from_codes(np.array([[0], [1]]), 2), np.array(rows))


def test_with_sizes_kept_a_full_prefix_sends_items_to_the_nearest_with_room(line):
    full = SemanticIDs.from_codes(np.array([[0, 0], [0, 1], [0, 2], [1, 0]]), codebook_size=3)
    ids, report = add_items(full, on_the_line(49, 2, 210), line, keep_sizes=True)
    assert ids.codes[4:].tolist() == [[1, 1], [1, 2], [2, 2]]  # 100 + 0 is taken, then 101 is; 200 + 3
    assert report == (3, 1, 0, True, 2) and ids.sizes == full.sizes
    everything = SemanticIDs.from_codes(np.stack(np.divmod(np.arange(9), 3), axis=1), codebook_size=3)
    with pytest.raises(ValueError, match="all 3 prefixes near a new item are full: make all IDs anew"):
        add_items(everything, on_the_line(2), line, keep_sizes=True)
    room = SemanticIDs(full.codes, full.disambiguation_code, 3, disambiguation_size=2)
    ids, report = add_items(room, on_the_line(0), line, keep_sizes=True)  # a spare disambiguation code is used first
    assert ids.unique[4].tolist() == [0, 0, 1] and report == (1, 0, 1, True, 0)
