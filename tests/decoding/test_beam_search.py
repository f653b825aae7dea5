"""Constrained beam search against an exhaustive ranking of all items."""

import subprocess
import sys
from itertools import chain, zip_longest

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from semid_lib.decoding import beam_search, ranking
from semid_lib.decoding.beam_search import Beams, constrained_beam_search, exact_ranking
from semid_lib.decoding.trie import PrefixTrie


class TableScorer:
    """A model whose log-probabilities are a random table for every (context, prefix); contexts are integers.

    impossible: share of codes that get -inf. table: {prefix: log-probabilities} to say them by hand instead.
    """

    def __init__(self, sizes, impossible=0.0, table=None):
        self.sizes, self.impossible, self.table = sizes, impossible, table

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
    subset = None if excluded is None and allowed is None else trie.subset(allowed, excluded)
    torch_only = constrained_beam_search(model, contexts, trie, beam_width, k, subset, compiled=False, **options)
    found = constrained_beam_search(model, contexts, trie, beam_width, k, subset, compiled=True, **options)
    assert found.items.tolist() == torch_only.items.tolist()
    assert found.scores.tolist() == torch_only.scores.tolist()
    return found


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
    """Distinct IDs, and for each of three contexts a list of excluded items, perhaps with repetitions."""
    sizes = draw(st.lists(st.integers(1, 4), min_size=1, max_size=4))
    rows = draw(st.lists(st.tuples(*[st.integers(0, n - 1) for n in sizes]), unique=True, min_size=1, max_size=20))
    items = st.integers(0, len(rows) - 1)
    excluded = draw(st.lists(st.lists(items, max_size=2 * len(rows)), min_size=3, max_size=3))
    return sizes, np.array(rows), excluded


def check(sizes, ids, excluded, k, impossible=0.0):
    """A beam as wide as the catalogue gives exactly the exhaustive ranking."""
    model, contexts = TableScorer(sizes, impossible), [0, 1, 2]
    found = search(model, contexts, PrefixTrie.build(ids), max(len(ids), k), k, as_tensor(excluded))
    for context in contexts:
        score_of = lambda row, context=context: model.item_score(context, row)  # noqa: E731
        items, scores = exhaustive(score_of, ids, excluded[context], k)
        assert found.items[context].tolist() == items
        np.testing.assert_allclose(found.scores[context], scores, atol=1e-5)


@given(shops())
def test_a_full_beam_ranks_all_items(shop):
    sizes, ids, _ = shop
    check(sizes, ids, [[], [], []], k=len(ids))


@given(shops(), st.data())
def test_a_full_beam_with_excluded_items(shop, data):
    sizes, ids, excluded = shop
    excluded = [sorted(set(row)) for row in excluded]
    room = len(ids) - max(map(len, excluded))
    if room > 0:
        check(sizes, ids, excluded, k=data.draw(st.integers(1, room)))


def test_an_item_that_is_excluded_twice_takes_no_neighbour_with_it():
    # items 0 and 1 share their first code, and the shopper bought item 0 twice
    ids = np.array([[0, 0], [0, 1], [1, 0]])
    check([2, 2], ids, [[0, 0], [0, 0], [0, 0]], k=2)


@given(shops())
def test_excluded_lists_may_repeat_items(shop):
    sizes, ids, excluded = shop
    room = len(ids) - max(len(set(row)) for row in excluded)
    if room > 0:
        check(sizes, ids, excluded, k=room)


@given(shops(), st.integers(1, 25))
def test_places_that_no_item_fills_are_padded(shop, k):
    sizes, ids, excluded = shop
    check(sizes, ids, [sorted(set(row)) for row in excluded], k)


@pytest.mark.parametrize("n_levels", [1, 2, 3])
def test_with_everything_excluded_nothing_comes_out(n_levels):
    ids = np.stack(np.unravel_index(np.arange(2**n_levels), (2,) * n_levels), axis=1)
    everything = torch.arange(len(ids)).expand(2, -1)
    found = search(TableScorer([2] * n_levels), [0, 1], PrefixTrie.build(ids), 4, 2, everything)
    assert found.items.tolist() == [[-1, -1], [-1, -1]]
    assert (found.scores == -torch.inf).all()


def test_everything_excluded_for_one_context_leaves_the_other_alone():
    ids = np.array([[0, 0], [0, 1], [1, 0], [1, 1]])
    check([2, 2], ids, [[0, 1, 2, 3], [], [1]], k=3)


def test_no_excluded_item_at_all_may_be_an_empty_tensor():
    ids, model = np.array([[0, 0], [0, 1], [1, 0]]), TableScorer([2, 2])
    trie = PrefixTrie.build(ids)
    without = search(model, [0], trie, 3, 3)
    for nothing in (torch.empty((1, 0), dtype=torch.long), torch.full((1, 4), -1)):
        found = search(model, [0], trie, 3, 3, nothing)
        assert found.items.tolist() == without.items.tolist()


@given(shops(), st.integers(1, 6), st.integers(0, 6))
def test_a_narrow_beam_fills_as_many_places_as_items_are_left(shop, k, spare):
    sizes, ids, excluded = shop
    excluded = [sorted(set(row)) for row in excluded]
    if any(len(row) == len(ids) for row in excluded):
        return  # tested above
    model = TableScorer(sizes)
    found = search(model, [0, 1, 2], PrefixTrie.build(ids), k + spare, k, as_tensor(excluded))
    for context in range(3):
        items = [item for item in found.items[context].tolist() if item >= 0]
        assert len(items) == len(set(items)) == min(k, len(ids) - len(excluded[context]))
        assert not set(items) & set(excluded[context])
        scores = found.scores[context, : len(items)].tolist()
        assert scores == sorted(scores, reverse=True)
        np.testing.assert_allclose(scores, [model.item_score(context, ids[item].tolist()) for item in items], atol=1e-5)


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


@given(shops(), st.floats(0.1, 0.6))
def test_items_of_probability_zero_never_come_out(shop, impossible):
    sizes, ids, _ = shop
    check(sizes, ids, [[], [], []], len(ids), impossible)


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
    sizes, ids, excluded = shop
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
    for compiled in (False, True):
        with pytest.raises(ValueError, match=f"level {level} .*NaN"):
            constrained_beam_search(TableScorer([2, 2], table=table), [0], trie, 2, 1, compiled=compiled)


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


@given(st.lists(st.integers(0, 30), max_size=20), st.integers(1, 6), st.integers(1, 40), st.randoms())
def test_parts_of_an_order_fit_in_their_room(lengths, size, room, random):
    order = list(range(len(lengths)))
    random.shuffle(order)
    parts = [
        part.tolist() for part in ranking.in_parts(np.array(order, dtype=int), [[0] * n for n in lengths], size, room)
    ]
    assert list(chain(*parts)) == order
    for part, after in zip_longest(parts, parts[1:], fillvalue=[]):
        taken = [len(some) * max(lengths[at] for at in some) for some in (part, part + after[:1])]
        assert 1 <= len(part) <= size
        assert len(part) == 1 or taken[0] <= room
        assert not after or len(part) == size or taken[1] > room  # no smaller than it must be


@given(shops(), st.integers(1, 6))
def test_one_context_gets_what_it_gets_in_a_batch(shop, k):
    sizes, ids, excluded = shop
    excluded = [sorted(set(row))[: len(ids) - 1] for row in excluded]
    trie, model = PrefixTrie.build(ids), TableScorer(sizes)
    together = search(model, [0, 1, 2], trie, k + 1, k, as_tensor(excluded))
    for context in range(3):
        alone = search(model, [context], trie, k + 1, k, as_tensor([excluded[context]]))
        assert alone.items.tolist() == together.items[[context]].tolist()
        np.testing.assert_allclose(alone.scores, together.scores[[context]], atol=1e-6)


def test_the_timeline_model_is_ranked_like_every_other(shop, new_timeline):
    from semid_lib.next_item.timeline import pad

    model, trie = new_timeline(), PrefixTrie.build(shop.ids.unique)
    histories = [shop.histories[0], shop.histories[1], np.array([], dtype=np.int64)]
    contexts = pad(histories, model.config.max_length)
    found = search(model, contexts, trie, beam_width=40, k=40)
    for row in range(len(histories)):
        # every item is scored by itself, along the one path of its ID
        expected = torch.stack([item_log_probability(model, contexts[[row]], ids) for ids in model.ids])
        assert found.items[row].tolist() == expected.argsort(descending=True).tolist()
        np.testing.assert_allclose(found.scores[row], expected.sort(descending=True).values, atol=1e-5)


@torch.inference_mode()
def item_log_probability(model, context, codes):
    state, log_probabilities = model.begin(context)
    total = log_probabilities[0, 0, codes[0]]
    for level in range(len(codes) - 1):
        parent = torch.zeros((1, 1), dtype=torch.long)
        state, log_probabilities = model.advance(state, level, parent, codes[level].view(1, 1))
        total = total + log_probabilities[0, 0, codes[level + 1]]
    return total


# --- subsets ---


@st.composite
def shops_with_rules(draw):
    """A shop, a mask for all or for each of three contexts, and excluded items."""
    sizes, ids, excluded = draw(shops())
    rows = draw(st.sampled_from([(), (3,)]))
    n = int(np.prod(rows, dtype=int)) * len(ids)
    mask = np.array(draw(st.lists(st.booleans(), min_size=n, max_size=n))).reshape(*rows, len(ids))
    return sizes, ids, excluded, mask


def forbidden(mask, excluded, context):
    row = mask if mask.ndim == 1 else mask[context]
    return set(np.flatnonzero(~row).tolist()) | set(excluded[context])


@given(shops_with_rules(), st.integers(1, 8), st.integers(0, 8))
def test_rules_and_excluded_items_together(shop, k, spare):
    sizes, ids, excluded, mask = shop
    model, trie = TableScorer(sizes), PrefixTrie.build(ids)
    narrow = search(model, [0, 1, 2], trie, k + spare, k, as_tensor(excluded), mask)
    wide = search(model, [0, 1, 2], trie, max(k, len(ids)), k, as_tensor(excluded), mask)
    for context in range(3):
        out = forbidden(mask, excluded, context)
        items, scores = exhaustive(lambda row, c=context: model.item_score(c, row), ids, out, k)
        assert wide.items[context].tolist() == items
        np.testing.assert_allclose(wide.scores[context], scores, atol=1e-5)
        found = [item for item in narrow.items[context].tolist() if item >= 0]
        assert len(set(found)) == min(k, len(ids) - len(out))
        assert not set(found) & out


@given(shops_with_rules(), st.integers(1, 25), st.integers(1, 30))
def test_the_exact_ranking_scores_every_item(shop, k, block):
    sizes, ids, excluded, mask = shop
    model, trie = TableScorer(sizes), PrefixTrie.build(ids)
    subset = trie.subset(mask, as_tensor(excluded))
    found = exact_ranking(model, [0, 1, 2], trie, k, subset, block=block)
    for context in range(3):
        out = forbidden(mask, excluded, context)
        items, scores = exhaustive(lambda row, c=context: model.item_score(c, row), ids, out, k)
        assert found.items[context].tolist() == items
        np.testing.assert_allclose(found.scores[context], scores, atol=1e-5)


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
    assert constrained_beam_search(scorer, [], trie, 2, 2, compiled=False).items.shape == (0, 2)


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


# --- diversity, normalization, bad models ---


@given(shops(), st.integers(1, 3), st.integers(1, 10), st.data())
def test_diversity_takes_the_best_that_fit(shop, n_items, k, data):
    sizes, ids, _ = shop
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
    np.testing.assert_allclose(exact_ranking(model, [0], trie, 2, normalization="level").scores, by_level.scores)


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
        with pytest.raises(ValueError, match="scores 2 codes at level 1, the trie holds code 5"):
            way(Ones([1, 2]), [0], trie, 1, 1)


def test_exact_ranking_names_nan_and_bad_sizes():
    trie = PrefixTrie.build(np.array([[0, 0], [0, 1]]))
    with pytest.raises(ValueError, match="level 1 with NaN"):
        exact_ranking(TableScorer([1, 2], table={(): [0.0], (0,): [np.nan, 0.0]}), [0], trie, 1)
    for k, block, wrong in ((0, 1, "k"), (1, 0, "block")):
        with pytest.raises(ValueError, match=f"{wrong} must be a whole number of at least 1, got 0"):
            exact_ranking(Ones([1, 2]), [0], trie, k, block=block)


# --- the two ways to choose candidates ---


@given(st.integers(0, 2**31), st.integers(1, 5), st.sampled_from([1, 3, 40]), st.booleans())
def test_both_ways_choose_the_same_among_many_candidates(seed, n_values, width, rules):
    """Scores of few different values, so that ties stand at every edge; long rows, so that blocks are set aside."""
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
