"""Items that come and go: old IDs stay as they are, new ones are free, and the trie leads to them."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from semid_lib.decoding.trie import PrefixTrie
from semid_lib.ids import codebooks, quantize
from semid_lib.ids.new_items import add_items, drift, remove_items
from semid_lib.ids.semantic_ids import SemanticIDs, resolve_collisions


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
        left = vectors - self.decode(self.encode(vectors)[:, :-1])
        return np.sum((left[:, None] - self.codebooks[-1]) ** 2, axis=2)


# level 0: about 0, 100 or 200; level 1: 0, 1 or 3 more
LINE = Residual([[[0.0], [100.0], [200.0]], [[0.0], [1.0], [3.0]]])


def on_the_line(*places) -> np.ndarray:
    return np.array(places, dtype=np.float32)[:, None]


def follow(trie: PrefixTrie, code) -> int:
    """The item that a semantic ID leads to."""
    node = 0
    for depth, each in enumerate(code.tolist()):
        node = trie.children(depth, node)[each]
    return int(trie.item[node])


@st.composite
def shops(draw):
    """A quantizer, the IDs of some items under either policy, and vectors of further ones."""
    size = draw(st.integers(2, 4))
    numbers = st.integers(-6, 6).map(float)
    quantizer = Residual(draw(hnp.arrays(np.float32, (2, size, 1), elements=numbers)))
    vectors, more = (
        draw(hnp.arrays(np.float32, st.tuples(st.integers(low, 9), st.just(1)), elements=numbers)) for low in (1, 0)
    )
    policy = draw(st.sampled_from(["reassign", "disambiguate"]))
    return quantizer, resolve_collisions(quantizer.encode(vectors), vectors, quantizer, policy)[0], more


# --- they come ---


def test_a_new_item_gets_the_nearest_free_code_by_hand():
    old = SemanticIDs.from_codes(np.array([[0, 0], [1, 1]]), codebook_size=3)
    ids, report = add_items(old, on_the_line(0.2, 101.2, 103.0), LINE)
    # 0 is taken: 1 is nearer than 3. Under 100 the code 1 is taken: 101.2 goes to 100, since 103 is nearer to 103.
    assert ids.codes.tolist() == [[0, 0], [1, 1], [0, 1], [1, 0], [1, 2]]
    assert report == (3, 1, 0, True)


def test_items_that_arrive_together_are_matched_at_least_cost():
    old = SemanticIDs.from_codes(np.array([[1, 0]]), codebook_size=3)
    ids, report = add_items(old, on_the_line(0.45, 0.0), LINE)
    assert ids.codes[1:].tolist() == [[0, 1], [0, 0]]  # one after the other, 0.45 would have taken 0
    assert (report.at_nearest, report.left_over) == (1, 0)


def test_a_full_prefix_needs_a_disambiguation_code():
    old = SemanticIDs.from_codes(np.array([[0, 0], [0, 1], [0, 2]]), codebook_size=3)
    ids, report = add_items(old, on_the_line(0.9, 0.9), LINE)
    assert ids.codes[3:].tolist() == [[0, 1], [0, 1]]
    assert ids.disambiguation_code.tolist() == [0, 0, 0, 1, 2]
    assert report == (2, 0, 2, False)  # IDs are one code longer: a trained model cannot write them


def test_spare_disambiguation_codes_take_what_is_left_over():
    old = SemanticIDs(np.array([[0, 0], [0, 1], [0, 2]]), np.zeros(3, dtype=int), 3, disambiguation_size=2)
    ids, report = add_items(old, on_the_line(0.9), LINE)
    assert (ids.sizes, report.left_over, report.same_sizes) == (old.sizes, 1, True)


def test_the_trie_leads_to_new_items_and_old_ones_stay():
    vectors = np.random.default_rng(0).normal(size=(300, 4)).astype(np.float32)
    quantizer = quantize.fit_residual_kmeans(vectors[:200], n_levels=3, codebook_size=16)
    old, _ = resolve_collisions(quantizer.codes, vectors[:200], quantizer)
    ids, report = add_items(old, vectors[200:], quantizer)
    assert report.same_sizes
    assert ids.unique[:200].tobytes() == old.unique.tobytes()
    trie = PrefixTrie.build(ids.unique)
    assert [follow(trie, code) for code in ids.unique] == list(range(300))
    np.testing.assert_array_equal(ids.codes[200:, :2], quantizer.encode(vectors[200:])[:, :2])


@given(shops())
def test_new_items_never_take_a_used_id(shop):
    quantizer, old, vectors = shop
    ids, report = add_items(old, vectors, quantizer)
    taken = {tuple(row) for row in old.codes.tolist()}
    assert len(ids) == len(old) + len(vectors)
    assert ids.codes[: len(old)].tobytes() == old.codes.tobytes()
    assert ids.disambiguation_code[: len(old)].tobytes() == old.disambiguation_code.tobytes()
    if report.same_sizes:
        assert ids.unique[: len(old)].tobytes() == old.unique.tobytes()
    assert report.same_sizes or report.left_over
    new = ids.codes[len(old) :]
    np.testing.assert_array_equal(new[:, 0], quantizer.encode(vectors)[:, 0])
    for code, number in zip(new.tolist(), ids.disambiguation_code[len(old) :].tolist(), strict=True):
        assert (number > 0) or tuple(code) not in taken
        if number:  # only where the prefix is full
            used = {last for first, last in ids.codes.tolist() if first == code[0]}
            assert len(used) == quantizer.codebooks.shape[1]


@given(shops())
def test_a_single_item_gets_the_nearest_that_is_free(shop):
    quantizer, old, vectors = shop
    for vector in vectors[:2]:
        prefix = quantizer.encode(vector[None])[0, 0]
        taken = old.codes[old.codes[:, 0] == prefix, 1]
        costs = quantizer.last_level_costs(vector[None])[0]
        free = np.setdiff1d(np.arange(len(costs)), taken)
        ids, report = add_items(old, vector[None], quantizer)
        assert report.left_over == (len(free) == 0)
        assert costs[ids.codes[-1, 1]] == costs[free if len(free) else ...].min()


def test_no_new_item_changes_nothing():
    old = SemanticIDs.from_codes(np.array([[0, 0], [0, 0]]), codebook_size=3)
    ids, report = add_items(old, np.empty((0, 1), dtype=np.float32), LINE)
    assert ids.unique.tobytes() == old.unique.tobytes()
    assert report == (0, 0, 0, True)


def test_a_quantizer_of_other_ids_is_refused():
    with pytest.raises(ValueError, match=r"codes \(1, 2\) of 3, expected \(1, 3\) of 3"):
        add_items(SemanticIDs.from_codes(np.zeros((1, 3), dtype=int), 3), on_the_line(0), LINE)
    with pytest.raises(ValueError, match=r"of 3, expected .* of 5"):
        add_items(SemanticIDs.from_codes(np.zeros((1, 2), dtype=int), 5), on_the_line(0), LINE)
    ids = SemanticIDs.from_codes(np.zeros((1, 2), dtype=int), 3)
    with pytest.raises(ValueError, match="retired IDs have 1 levels, expected 2"):
        add_items(ids, on_the_line(0), LINE, SemanticIDs.from_codes(np.zeros((1, 1), dtype=int), 3))
    with pytest.raises(ValueError, match="row 1"):
        add_items(ids, on_the_line(0, np.nan), LINE)


# --- they go ---


def test_a_freed_id_is_given_again_unless_retired():
    old = SemanticIDs.from_codes(np.array([[0, 0], [0, 1], [2, 0]]), codebook_size=3)
    kept, removed = remove_items(old, np.array([0]))
    assert (kept.codes.tolist(), removed.codes.tolist()) == ([[0, 1], [2, 0]], [[0, 0]])
    assert add_items(kept, on_the_line(0), LINE)[0].codes[-1].tolist() == [0, 0]
    assert add_items(kept, on_the_line(0), LINE, retired=removed)[0].codes[-1].tolist() == [0, 2]


def test_a_freed_disambiguation_code_is_given_again_unless_retired():
    old = SemanticIDs.from_codes(np.array([[0, 0], [0, 1], [0, 2], [0, 0], [0, 0]]), codebook_size=3)
    kept, removed = remove_items(old, np.array([3]))
    assert kept.disambiguation_code.tolist() == [0, 0, 0, 2]
    assert add_items(kept, on_the_line(0), LINE)[0].disambiguation_code[-1] == 1
    assert add_items(kept, on_the_line(0), LINE, retired=removed)[0].disambiguation_code[-1] == 3


@given(shops(), st.data())
def test_what_stays_is_unchanged(shop, data):
    quantizer, ids, vectors = shop
    rows = np.array(data.draw(st.lists(st.integers(0, len(ids) - 1), unique=True)), dtype=np.int64)
    kept, removed = remove_items(ids, rows)
    stay = np.setdiff1d(np.arange(len(ids)), rows)
    assert kept.unique.tobytes() == ids.unique[stay].tobytes()
    assert removed.unique.tobytes() == ids.unique[np.sort(rows)].tobytes()
    assert kept.sizes == removed.sizes == ids.sizes
    again, _ = add_items(kept, vectors, quantizer, retired=removed)
    retired = {(*code, extra) for code, extra in zip(removed.codes.tolist(), removed.disambiguation_code, strict=True)}
    new = zip(again.codes[len(kept) :].tolist(), again.disambiguation_code[len(kept) :], strict=True)
    assert retired.isdisjoint((*code, extra) for code, extra in new)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([2], "2 to 2, expected 0 to 1"),
        ([-1], "-1"),
        ([0, 0], "1 are distinct"),
        ([True, False], "bool"),
        ([0.0], "float64"),
        ([[0]], r"\(1, 1\)"),
    ],
)
def test_rows_that_are_not_there_are_refused(rows, message):
    with pytest.raises(ValueError, match=message):
        remove_items(SemanticIDs.from_codes(np.array([[0], [1]]), 2), np.array(rows))


# --- when to fit again ---


def test_drift_by_hand():
    found = drift(np.arange(1.0, 101.0), np.array([99.0, 103.0, 50.0, 20.0]))
    assert (found.n_items, found.ratio, found.share_above) == (4, 68 / 50.5, 0.5)
    assert found.ks == pytest.approx(0.48)  # widest apart at 98: 98 of 100 against 2 of 4
    assert not found.refit  # too few to judge
    assert found.advice.startswith("too few to judge (under 30): 4 new items, ratio 1.35")


@pytest.mark.parametrize(
    ("new", "refit"),
    [
        (np.full(30, 1.4), False),
        (np.full(30, 1.6), True),  # on average half as much again
        (np.full(29, 1.6), False),  # too few
        (np.r_[np.full(70, 0.5), np.full(30, 2.0)], True),  # the mean is as before, but many are far off
    ],
)
def test_the_rule(new, refit):
    reference = np.r_[np.full(94, 1.0 - 6 * 0.45 / 94), np.full(6, 1.45)]  # mean 1, 95th percentile 1.45
    found = drift(reference, new)
    assert found.refit == refit
    assert found.advice.startswith("refit") == refit


def test_items_of_another_kind_are_noticed_and_more_of_the_same_are_not():
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(2, 20, 16))
    draw = lambda kind, n: centres[kind, rng.integers(20, size=n)] + 0.2 * rng.normal(size=(n, 16))  # noqa: E731
    levels = quantize.fit_residual_kmeans(draw(0, 2000), n_levels=2, codebook_size=16).codebooks
    fitted, same, other = (
        codebooks.squared_errors(vectors, quantize.decode(quantize.encode(vectors, levels), levels))
        for vectors in (draw(0, 2000), draw(0, 200), draw(1, 200))
    )
    assert not drift(fitted, same).refit
    assert drift(fitted, other).refit
    assert drift(fitted, other).ks > 0.9


def test_no_new_items_are_too_few_to_judge():
    found = drift(np.ones(5), np.ones(0))
    assert (found.n_items, found.refit) == (0, False)
    assert np.isnan([found.ratio, found.share_above, found.ks]).all()
    assert found.advice == "too few to judge (under 30): no new items"


def test_exact_codebooks():
    assert drift(np.zeros(5), np.zeros(50)).ratio == 1
    assert drift(np.zeros(5), np.ones(50)).refit


@pytest.mark.parametrize(
    ("training", "new", "message"),
    [
        ([], [1.0], "no training errors"),
        ([[1.0]], [1.0], r"\(1, 1\)"),
        ([1.0], [-1.0], "-1.0"),
        ([np.nan], [1.0], "training errors must be finite"),
    ],
)
def test_errors_that_are_none_are_refused(training, new, message):
    with pytest.raises(ValueError, match=message):
        drift(np.array(training), np.array(new))
