"""The one ranking of histories in item rows: by beam search, by scores, and its checks."""

from itertools import chain, zip_longest

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from semid_lib.decoding import ranking
from semid_lib.decoding.trie import PrefixTrie

N_ITEMS = 12
TRIE = PrefixTrie.build(np.stack(np.divmod(np.random.default_rng(0).permutation(16)[:N_ITEMS], 4), axis=1))
HISTORIES = st.lists(st.lists(st.integers(0, N_ITEMS - 1), max_size=15), max_size=6)


class ByLength:
    """A model whose scores depend on the length of a history and its position, so that mixed-up batches show."""

    def begin(self, contexts, normalization):
        torch.manual_seed(0)
        self.tables = torch.randn(20, 2, 4).log_softmax(-1)
        return torch.tensor(contexts), self.tables[contexts, 0][:, None]

    def advance(self, state, level, parents, codes):
        return state, self.tables[state, 1][:, None].expand(-1, codes.shape[1], -1)


def item_scores(histories):
    """The scores of all items by `ByLength`: (n, N_ITEMS)."""
    model, ids = ByLength(), TRIE.ids()[TRIE.leaf_of_item]
    model.begin([0], "vocabulary")
    tables = model.tables[[len(history) for history in histories]].numpy()
    return tables[:, 0, ids[:, 0]] + tables[:, 1, ids[:, 1]]


def rank(histories, k, n_at_once=2, **options):
    contexts = lambda batch, at: [len(history) for history in batch]  # noqa: E731
    return ranking.rank(ByLength(), TRIE, histories, k, contexts, beam_width=k, n_at_once=n_at_once, **options)


@given(HISTORIES, st.integers(1, 15), st.booleans(), st.booleans(), st.sampled_from(["none", "all", "each"]))
def test_rank_equals_sorting_all_scores(histories, k, exclude_seen, exact, rules):
    rng = np.random.default_rng(len(histories))
    allowed = {"none": None, "all": rng.random(N_ITEMS) < 0.5, "each": rng.random((len(histories), N_ITEMS)) < 0.5}[
        rules
    ]
    found = rank(histories, 15, exclude_seen=exclude_seen, exact=exact, allowed=allowed)
    scores = item_scores(histories)
    if allowed is not None:
        scores[~np.broadcast_to(allowed, scores.shape)] = -np.inf
    by_scores = ranking.rank_by_scores(histories, N_ITEMS, 15, exclude_seen, False, lambda block: scores.copy())
    np.testing.assert_array_equal(found.items >= 0, by_scores.items >= 0)
    np.testing.assert_allclose(found.scores, by_scores.scores, atol=1e-5)
    for items, row, history in zip(found.items, scores, histories, strict=True):
        real = items[items >= 0]
        assert len(set(real.tolist())) == len(real)
        assert not exclude_seen or not set(real.tolist()) & set(history)
        np.testing.assert_array_equal(row[real], -np.sort(-row[real]))


@pytest.mark.parametrize("name", ["_SEEN_AT_ONCE", "_MASKS_AT_ONCE", "_BLOCK"])
def test_blocks_change_no_answer(monkeypatch, name):
    histories = [[], list(range(11)), [5] * 14, [1, 2]]
    allowed = np.tile(np.arange(N_ITEMS) != 7, (4, 1))
    calls = [
        lambda: rank(histories, 12, 9, allowed=allowed),
        lambda: ranking.rank_by_scores(histories, N_ITEMS, 5, True, False, item_scores),
    ]
    expected = [call().items.tolist() for call in calls]
    monkeypatch.setattr(ranking, name, 1)
    assert [call().items.tolist() for call in calls] == expected


def test_diversity_and_exact_exclude_each_other():
    found = rank([[]], 4, diversity=(1, 1)).items[0]
    first = TRIE.ids()[TRIE.leaf_of_item][found[found >= 0], 0]
    assert len(set(first.tolist())) == len(first)
    with pytest.raises(ValueError, match="exact and diversity are both given"):
        rank([[]], 4, diversity=(1, 1), exact=True)


@pytest.mark.parametrize(
    "method", [rank, lambda h, k, **o: ranking.rank_by_scores(h, N_ITEMS, k, True, False, item_scores)]
)
@pytest.mark.parametrize(
    ("histories", "k", "message"),
    [
        ([[0], [12]], 2, "history 1 holds item row 12, expected 0 to 11"),
        ([[0, -1]], 2, "history 0 holds item row -1"),
        ([[0.5]], 2, r"history 0 is \[0.5\], expected integer item rows from 0 to 11"),
        ([[[1], [2, 3]]], 2, "history 0 is .*expected integer item rows"),
        ([1, 2], 2, "history 0 is 1, expected a list of items"),
        ([[0]], 0, "k must be a whole number of at least 1, got 0"),
    ],
)
def test_bad_histories_and_k_are_refused(method, histories, k, message):
    with pytest.raises(ValueError, match=message):
        method(histories, k)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"allowed": np.ones((3, 12), dtype=bool)}, r"allowed is bool \(3, 12\), expected bool \(12,\) or \(2, 12\)"),
        ({"allowed": np.ones(12)}, "allowed is float64"),
        ({"exclude_seen": "no"}, "exclude_seen must be True or False, got 'no'"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        rank([[0], [1]], 2, **options)


def test_widths():
    assert ranking.widths(10, None) == (10, 50)
    assert ranking.widths(70, None) == (70, 70)
    assert ranking.widths(10, 20) == (10, 20)


@given(st.lists(st.sampled_from([-np.inf, -1.0, 0.0, 0.5, 2.0]), min_size=1, max_size=12), st.integers(1, 15))
def test_top_k_equals_sorting_everything(scores, k):
    expected = sorted((-score, column) for column, score in enumerate(scores) if score > -np.inf)[:k]
    found = ranking.top_k(np.array([scores], dtype=np.float32), k)
    assert found.items[0].tolist() == [column for _, column in expected] + [-1] * (k - len(expected))


def test_padded_by_hand():
    assert ranking.padded([np.array([1, 2, 3]), [], [4]], max_length=2).tolist() == [[2, 3], [-1, -1], [4, -1]]
    assert ranking.padded([], 5).shape == (0, 0)


@given(st.lists(st.integers(0, 30), max_size=20), st.integers(1, 6), st.integers(1, 40), st.randoms())
def test_parts_of_an_order_fit_in_their_room(lengths, size, room, random):
    order = list(range(len(lengths)))
    random.shuffle(order)
    lists = [[0] * n for n in lengths]
    parts = [part.tolist() for part in ranking.in_parts(np.array(order, dtype=int), lists, size, room)]
    assert list(chain(*parts)) == order
    for part, after in zip_longest(parts, parts[1:], fillvalue=[]):
        taken = [len(some) * max(lengths[at] for at in some) for some in (part, part + after[:1])]
        assert 1 <= len(part) <= size
        assert len(part) == 1 or taken[0] <= room
        assert not after or len(part) == size or taken[1] > room  # no smaller than it must be
