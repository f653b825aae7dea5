"""Constrained beam search against an exhaustive ranking of all items."""

import functools
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from semid_lib.decoding import beam_search
from semid_lib.decoding.beam_search import Beams, constrained_beam_search, exact_ranking
from semid_lib.decoding.trie import PrefixTrie


class TableScorer:
    """A model whose log-probabilities are a random table for every (context, prefix); contexts are integers.

    impossible: share of codes that get -inf. table: {prefix: log-probabilities} to say them by hand instead.
    """

    def __init__(self, sizes, impossible=0.0, table=None):
        self.sizes, self.impossible, self.table = sizes, impossible, table
        self.row = functools.cache(self.row)

    def row(self, context, prefix):
        if self.table is not None:
            return np.array(self.table[prefix], dtype=np.float32)
        rng = np.random.default_rng([context, len(prefix), *prefix])
        logits = 2 * rng.normal(size=self.sizes[len(prefix)])
        row = (logits - np.log(np.exp(logits).sum())).astype(np.float32)
        row[rng.random(len(row)) < self.impossible] = -np.inf
        return row

    def begin(self, contexts, normalization="vocabulary"):
        return self._scored([(context, [()]) for context in contexts])

    def advance(self, state, level, parents, codes):
        rows = zip(state, parents.tolist(), codes.tolist(), strict=True)
        return self._scored(
            [(context, [(*beams[p], c) for p, c in zip(ps, cs, strict=True)]) for (context, beams), ps, cs in rows]
        )

    def _scored(self, state):
        return state, torch.tensor(np.array([[self.row(c, prefix) for prefix in beams] for c, beams in state]))

    def item_score(self, context, semantic_id):
        prefixes = [tuple(semantic_id[:level]) for level in range(len(semantic_id))]
        rows = [self.row(context, prefix) for prefix in prefixes]
        return float(sum(row[code] for row, code in zip(rows, semantic_id, strict=True)))


def search(model, contexts, trie, beam_width, k, excluded=None, allowed=None, **options):
    """Both ways of choosing candidates, which must agree to the bit."""
    subset = trie.subset(allowed, excluded)
    found = []
    for beams in (0, 10**9):  # from how many on the loop is compiled
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(beam_search, "_COMPILED_FROM", beams)
            found.append(constrained_beam_search(model, contexts, trie, beam_width, k, subset, **options))
    assert found[0].items.tolist() == found[1].items.tolist()
    assert found[0].scores.tolist() == found[1].scores.tolist()
    return found[0]


def exhaustive(score_of, ids, excluded, k):
    """The k best items by scoring every one, and their scores; -1 and -inf where fewer are left."""
    scored = [(-score_of(row), row, item) for item, row in enumerate(ids.tolist()) if item not in excluded]
    best = [(item, -negative) for negative, _, item in sorted(scored) if negative < np.inf][:k]
    best += [(-1, -np.inf)] * (k - len(best))
    return [item for item, _ in best], [score for _, score in best]


def as_tensor(excluded):
    """Rows of item rows, padded with -1."""
    longest = max(map(len, excluded))
    return torch.tensor([[*row, *[-1] * (longest - len(row))] for row in excluded], dtype=torch.long)


@st.composite
def shops(draw):
    """Sizes, distinct IDs, a mask for all or for each of three contexts, and items that each of them excludes."""
    sizes = draw(st.lists(st.integers(1, 4), min_size=1, max_size=4))
    rows = draw(st.lists(st.tuples(*[st.integers(0, n - 1) for n in sizes]), unique=True, min_size=1, max_size=20))
    n = len(rows)
    excluded = draw(st.lists(st.lists(st.integers(0, n - 1), max_size=2 * n), min_size=3, max_size=3))
    shape = draw(st.sampled_from([(n,), (3, n)]))
    bits = st.lists(st.booleans(), min_size=int(np.prod(shape)), max_size=int(np.prod(shape)))
    mask = draw(st.just(np.ones(shape, dtype=bool)) | bits.map(lambda bits: np.array(bits).reshape(shape)))
    return sizes, np.array(rows), excluded, mask


def forbidden(mask, excluded, context):
    row = mask if mask.ndim == 1 else mask[context]
    return set(np.flatnonzero(~row).tolist()) | set(excluded[context])


@settings(max_examples=25)
@given(shops(), st.integers(1, 25), st.integers(0, 8), st.integers(1, 30), st.sampled_from([0.0, 0.4]))
def test_wide_beams_and_the_exact_ranking_score_every_item_and_narrow_beams_fill_lists(
    shop, k, spare, block, impossible
):
    sizes, ids, excluded, mask = shop
    model, trie, contexts = TableScorer(sizes, impossible), PrefixTrie.build(ids), [0, 1, 2]
    wide = search(model, contexts, trie, max(k, len(ids)), k, as_tensor(excluded), mask)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(beam_search, "_PREFIXES_AT_ONCE", block)
        exact = exact_ranking(model, contexts, trie, k, trie.subset(mask, as_tensor(excluded)))
    narrow = search(model, contexts, trie, k + spare, k, as_tensor(excluded), mask)
    alone = search(model, [1], trie, k + spare, k, as_tensor(excluded[1:2]), mask if mask.ndim == 1 else mask[1:2])
    assert alone.items.tolist() == narrow.items[[1]].tolist()
    for context in contexts:
        out = forbidden(mask, excluded, context)
        items, scores = exhaustive(lambda row, c=context: model.item_score(c, row), ids, out, k)
        for found in (wide, exact):
            assert found.items[context].tolist() == items
            np.testing.assert_allclose(found.scores[context], scores, atol=1e-5)
        found = [item for item in narrow.items[context].tolist() if item >= 0]
        assert len(found) == len(set(found)) and not set(found) & out
        assert impossible or len(found) == min(k, len(ids) - len(out))
        scores = [model.item_score(context, ids[item].tolist()) for item in found]
        np.testing.assert_allclose(narrow.scores[context, : len(found)], scores, atol=1e-5)
        assert scores == sorted(scores, reverse=True)


def test_no_excluded_item_at_all_may_be_an_empty_tensor():
    ids, model = np.array([[0, 0], [0, 1], [1, 0]]), TableScorer([2, 2])
    trie = PrefixTrie.build(ids)
    without = search(model, [0], trie, 3, 3)
    for nothing in (torch.empty((1, 0), dtype=torch.long), torch.full((1, 4), -1)):
        found = search(model, [0], trie, 3, 3, nothing)
        assert found.items.tolist() == without.items.tolist()


def test_a_narrow_beam_passes_a_subtree_without_items_left():
    # the best first code leads to excluded items only; a beam of one must not follow it
    ids = np.array([[0, 0], [0, 1], [1, 0]])
    table = {(): np.log([0.9, 0.1]), (0,): np.log([0.5, 0.5]), (1,): np.log([0.5, 0.5])}
    found = search(TableScorer([2, 2], table=table), [0], PrefixTrie.build(ids), 1, 1, torch.tensor([[0, 1]]))
    assert found.items.tolist() == [[2]]


def test_a_narrow_beam_is_greedy():
    # item 1 is the most probable (.4 x 1), but its first code is the less probable one
    ids = np.array([[0, 0], [1, 0], [0, 1]])
    table = {(): np.log([0.6, 0.4]), (0,): np.log([0.5, 0.5]), (1,): np.array([0.0, -np.inf])}
    trie, model = PrefixTrie.build(ids), TableScorer([2, 2], table=table)
    assert search(model, [0], trie, beam_width=1, k=1).items.tolist() == [[0]]
    assert search(model, [0], trie, beam_width=2, k=1).items.tolist() == [[1]]


def test_a_model_that_gives_up_half_way():
    table = {(): [0.0, 0.0], (0,): [-np.inf, -np.inf], (1,): [-np.inf, -np.inf]}
    table |= {(first, second): [0.0, 0.0] for first in (0, 1) for second in (0, 1)}
    ids = np.array([[0, 0, 0], [1, 1, 1]])
    found = search(TableScorer([2, 2, 2], table=table), [0], PrefixTrie.build(ids), 2, 2)
    assert found.items.tolist() == [[-1, -1]]


class AnyScorer(TableScorer):
    """A model that scores codes by any numbers at all, so that many are equal and many above 0."""

    def __init__(self, sizes, scores):
        super().__init__(sizes)
        self.scores = np.array(scores, dtype=np.float32)

    def row(self, context, prefix):
        return np.random.default_rng([context, len(prefix), *prefix]).choice(self.scores, self.sizes[len(prefix)])


SCORES = st.sampled_from([[-3, -2, -1, 0, 1, 2, 3], [-np.inf, -1e4, -0.5, 0, 1e-7, 1e4], [0, 1], [1, 2, 4, 8], [5]])


@given(shops(), SCORES, st.integers(1, 3), st.integers(0, 2))
def test_both_loops_choose_alike_whatever_the_scores(shop, scores, k, spare):
    sizes, ids, excluded, _ = shop
    model, trie = AnyScorer(sizes, scores), PrefixTrie.build(ids)
    search(model, [0, 1, 2], trie, k + spare, k, as_tensor(excluded))  # compares the loops
    items = search(model, [0, 1, 2], trie, max(k, len(ids)), k).items
    for context in range(3):
        score_of = lambda row, context=context: model.item_score(context, row)  # noqa: E731
        real = [row for row in ids.tolist() if score_of(row) > -np.inf]
        assert sum(item >= 0 for item in items[context].tolist()) == min(k, len(real))


def test_a_poor_beam_may_be_extended_by_a_score_above_0():
    # the second beam is worse than the candidates of the first, but its child is the best of all
    table = {(): [-1.0, -5.0], (0,): [-1.0, -1.0], (1,): [9.0, -1.0]}
    trie = PrefixTrie.build(np.array([[0, 0], [0, 1], [1, 0]]))
    found = search(TableScorer([2, 2], table=table), [0], trie, beam_width=2, k=2)
    assert found.items.tolist() == [[2, 0]]
    assert found.scores.tolist() == [[4.0, -2.0]]


def test_equal_scores_come_in_the_order_of_the_ids():
    # both IDs have log-probability -3, but the beam meets the second one first
    table = {(): [-2.0, -1.0], (0,): [-1.0], (1,): [-2.0]}
    trie = PrefixTrie.build(np.array([[1, 0], [0, 0]]))
    found = search(TableScorer([2, 1], table=table), [0], trie, beam_width=2, k=2)
    assert found.scores.tolist() == [[-3.0, -3.0]]
    assert found.items.tolist() == [[1, 0]]


@pytest.mark.parametrize("level", [0, 1])
def test_nan_is_refused_and_its_level_named(level):
    table = {(): [-1.0, -1.0], (0,): [-1.0, -1.0], (1,): [-1.0, -1.0]}
    table[(0,) * level] = [-1.0, np.nan]
    trie = PrefixTrie.build(np.array([[0, 0], [0, 1], [1, 0], [1, 1]]))
    for beams in (1, 64):
        with pytest.raises(ValueError, match=f"NaN at level {level}: expected log-probabilities"):
            constrained_beam_search(TableScorer([2, 2], table=table), [0] * beams, trie, 2, 1)


@pytest.mark.parametrize(
    ("beam_width", "k", "message"),
    [
        (5, 0, "k must be a whole number of at least 1, got 0"),
        (5, 2.0, "k must be a whole number of at least 1, got 2.0"),
        (True, 1, "beam_width must be a whole number of at least 1, got True"),
        (4, 5, "k is 5 and beam_width 4: expected 1 <= k <= beam_width. Set beam_width to 5 or more"),
    ],
)
def test_bad_widths_are_refused(beam_width, k, message):
    with pytest.raises(ValueError, match=message):
        search(TableScorer([1]), [0], PrefixTrie.build(np.array([[0]])), beam_width, k)


def test_a_mask_may_be_given_as_it_is():
    trie = PrefixTrie.build(np.array([[0, 0], [0, 1], [1, 0]]))
    model = TableScorer([2, 2])
    for mask in (np.array([True, False, False]), torch.tensor([[True, False, False], [False, False, True]])):
        found = constrained_beam_search(model, [0, 1], trie, 3, 2, allowed=mask)
        assert found.items[:, 0].tolist() == ([0, 0] if mask.ndim == 1 else [0, 2])
        assert found.items[:, 1].tolist() == [-1, -1]


def test_an_empty_subset_gives_an_empty_answer():
    trie = PrefixTrie.build(np.array([[0, 0], [0, 1]]))
    for way in (constrained_beam_search, lambda *a, **options: exact_ranking(*a[:3], a[4], **options)):
        found = way(TableScorer([1, 2]), [0], trie, 2, 2, allowed=np.array([False, False]))
        assert found.items.tolist() == [[-1, -1]]
        assert (found.scores == -torch.inf).all()


def test_no_contexts_no_answers():
    trie = PrefixTrie.build(np.array([[0], [1]]))
    scorer = Ones([2])
    assert constrained_beam_search(scorer, [], trie, 2, 2).items.shape == (0, 2)


class Ones:
    """A model that scores every code of every beam with 0, whatever the beams are."""

    def __init__(self, sizes):
        self.sizes = sizes

    def begin(self, contexts, normalization="vocabulary"):
        return None, torch.zeros((len(contexts), 1, self.sizes[0]))

    def advance(self, state, level, parents, codes):
        return None, torch.zeros((*codes.shape, self.sizes[level + 1]))


@pytest.mark.parametrize(
    ("allowed", "message"),
    [
        (np.ones(3, dtype=bool), r"allowed is bool \(3,\), expected bool \(2,\) or \(contexts, 2\)"),
        (np.ones(2), "expected bool"),
        (np.ones((2, 2), dtype=bool), "for 2 contexts, there are 1"),
        (PrefixTrie.build(np.array([[0], [1]])).subset(), "another trie"),
    ],
)
def test_subsets_that_do_not_fit_are_refused(allowed, message):
    trie = PrefixTrie.build(np.array([[0], [1]]))
    for way in (constrained_beam_search, lambda *a: exact_ranking(*a[:3], *a[4:])):
        with pytest.raises(ValueError, match=message):
            way(Ones([2]), [0], trie, 1, 1, allowed)


@given(shops(), st.integers(1, 3), st.integers(1, 10), st.data())
def test_diversity_takes_the_best_that_fit(shop, n_items, k, data):
    sizes, ids, _, _ = shop
    prefix_length = data.draw(st.integers(1, len(sizes)))
    model, trie = TableScorer(sizes), PrefixTrie.build(ids)
    found = search(model, [0, 1], trie, max(k, len(ids)), k, diversity=(n_items, prefix_length))
    for context in range(2):
        ranking, _ = exhaustive(lambda row, c=context: model.item_score(c, row), ids, set(), len(ids))
        taken, expected = {}, []
        for item in ranking:
            prefix = tuple(ids[item, :prefix_length].tolist())
            taken[prefix] = taken.get(prefix, 0) + 1
            if taken[prefix] <= n_items:
                expected.append(item)
        expected = expected[:k] + [-1] * (k - len(expected[:k]))
        assert found.items[context].tolist() == expected


def test_level_normalization_divides_by_the_mass_of_the_level():
    # of the first level only half of the probability is on codes, and of the level below code 1 only a tenth
    table = {(): np.log([0.3, 0.2]), (0,): np.log([0.5, 0.5]), (1,): np.log([0.09, 0.01])}
    trie = PrefixTrie.build(np.array([[0, 0], [1, 0]]))
    model = TableScorer([2, 2], table=table)
    by_vocabulary = search(model, [0], trie, 2, 2)
    by_level = search(model, [0], trie, 2, 2, normalization="level")
    np.testing.assert_allclose(by_vocabulary.scores.exp(), [[0.15, 0.018]], rtol=1e-5)
    np.testing.assert_allclose(by_level.scores.exp(), [[0.4 * 0.9, 0.6 * 0.5]], rtol=1e-5)
    assert (by_vocabulary.items.tolist(), by_level.items.tolist()) == ([[0, 1]], [[1, 0]])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"normalization": "softmax"}, "'softmax', expected 'vocabulary' or 'level'"),
        ({"diversity": (0, 1)}, "diversity"),
        ({"diversity": (1, 0)}, "diversity"),
        ({"diversity": (1, 2)}, "prefix length from 1 to 1"),
    ],
)
def test_options_that_mean_nothing_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        constrained_beam_search(Ones([2]), [0], PrefixTrie.build(np.array([[0], [1]])), 1, 1, **options)


def test_a_model_with_too_few_codes_is_refused():
    trie = PrefixTrie.build(np.array([[0, 0], [0, 5]]))
    for way in (constrained_beam_search, lambda *a: exact_ranking(*a[:3], a[4])):
        with pytest.raises(ValueError, match="scores 2 codes at level 1, the trie has codes up to 5"):
            way(Ones([1, 2]), [0], trie, 1, 1)


def test_exact_ranking_names_nan_and_bad_sizes():
    trie = PrefixTrie.build(np.array([[0, 0], [0, 1]]))
    with pytest.raises(ValueError, match="NaN at level 1"):
        exact_ranking(TableScorer([1, 2], table={(): [0.0], (0,): [np.nan, 0.0]}), [0], trie, 1)
    with pytest.raises(ValueError, match="k must be a whole number of at least 1, got 0"):
        exact_ranking(Ones([1, 2]), [0], trie, 0)


@settings(max_examples=20)
@given(st.integers(0, 2**31), st.integers(1, 5), st.sampled_from([1, 3, 40]), st.booleans())
def test_both_ways_choose_the_same_among_many_candidates(seed, n_values, width, rules):
    """Scores of few different values, so that many are equal; long rows, so that blocks are skipped."""
    rng = np.random.default_rng(seed)
    sizes = (64, 64, 300)
    trie = PrefixTrie.build(np.unique(rng.integers(0, sizes, (3000, 3)), axis=0))
    mask = rng.random((3, trie.n_items)) < 0.3
    subset = trie.subset(mask, torch.from_numpy(rng.integers(-1, trie.n_items, (3, 20)))) if rules else None
    zeros = torch.zeros((3, 1), dtype=torch.long)
    beam = beam_search.Beam(zeros, torch.zeros(3, 1), zeros, zeros)
    for level, size in enumerate(sizes):
        scores = -torch.from_numpy(rng.integers(0, n_values, (3, beam.node.shape[1], size))).float()
        one = beam_search.select(trie, level, beam, scores, width, subset, compiled=True)
        two = beam_search.select(trie, level, beam, scores, width, subset, compiled=False)
        alive = one.score > -torch.inf
        assert torch.equal(one.score, two.score)
        for first, second in zip(one, two, strict=True):
            assert torch.equal(first[alive], second[alive])
        beam = two


def test_the_loop_is_compiled_for_one_layout_of_its_arrays():
    """A second compilation takes seconds, in which a request waits."""
    trie = PrefixTrie.build(np.array([[0], [1], [2]]))
    wide = torch.zeros((2, 2), dtype=torch.long)
    beam = beam_search.Beam(wide[:, :1], torch.zeros(2, 2)[:, :1], wide[:, :1], wide[:, :1])  # as after dead beams
    beam_search.select(trie, 0, beam, torch.zeros(3).expand(2, 1, 3), 2, compiled=True)
    kernel = pytest.importorskip("semid_lib.decoding.kernel")
    assert {array.layout for signature in kernel._fill.signatures for array in signature} == {"C"}


@pytest.mark.slow
def test_without_numba_torch_does_the_work():
    program = (
        "import sys; sys.modules['numba'] = None\n"
        "import numpy as np, torch\n"
        "from semid_lib.decoding.beam_search import constrained_beam_search\n"
        "from semid_lib.decoding.trie import PrefixTrie\n"
        "class Ones:\n"
        "    def begin(self, contexts, normalization): return None, torch.zeros((1, 1, 2))\n"
        "print(constrained_beam_search(Ones(), [0], PrefixTrie.build(np.array([[1], [0]])), 2, 2).items.tolist())"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[[1, 0]]"


def test_the_answer_is_a_named_tuple_of_the_promised_types():
    found = constrained_beam_search(Ones([2]), [0], PrefixTrie.build(np.array([[0], [1]])), 5, 5)
    assert isinstance(found, Beams)
    assert (found.items.dtype, found.scores.dtype) == (torch.int64, torch.float32)
    assert found.items.tolist() == [[0, 1, -1, -1, -1]]
