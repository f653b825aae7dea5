"""Batches of histories and of their prefixes: everything once an epoch, little padding, reproducible orders."""

from itertools import chain

import numpy as np
import pytest

from semid_lib.data import dataset
from semid_lib.next_item.batches import LengthBuckets, histories_in_batches, prefixes_in_batches

LENGTHS = np.random.default_rng(0).integers(1, 51, size=3000)
HISTORIES = [np.arange(length) + 100 * length for length in (1, 0, 7, 3, 0, 3, 9)]


def test_buckets_hold_everything_once_in_new_batches_with_little_padding():
    buckets = LengthBuckets(LENGTHS, batch_size=32, pool=10)
    first, second = list(buckets), list(buckets)
    assert {frozenset(batch) for batch in first}.isdisjoint(frozenset(batch) for batch in second)
    for batches in (first, second):
        assert sorted(chain(*batches)) == list(range(3000))
        assert len(batches) == len(buckets)
        assert max(map(len, batches)) == 32
        assert 1 - LENGTHS.sum() / sum(len(batch) * LENGTHS[batch].max() for batch in batches) < 0.1
        means = np.array([LENGTHS[batch].mean() for batch in batches])
        assert abs(np.corrcoef(means, np.arange(len(means)))[0, 1]) < 0.4  # batches are not sorted by length


def test_buckets_repeat_with_their_seed_and_resume_from_their_state():
    one, two = LengthBuckets(LENGTHS, 32, seed=1), LengthBuckets(LENGTHS, 32, seed=2)
    assert list(one) == list(LengthBuckets(LENGTHS, 32, seed=1)) != list(two)
    two.load_state_dict(one.state_dict())
    assert list(one) == list(two)


def test_batches_hold_the_end_of_every_history_once():
    batches = list(histories_in_batches(HISTORIES, max_length=5, batch_size=2))
    rows = [[item for item in row if item >= 0] for batch in batches for row in batch.tolist()]
    assert sorted(rows) == sorted(history[-5:].tolist() for history in HISTORIES if len(history))
    assert max(map(len, batches)) == 2


def test_each_interaction_is_predicted_once_from_those_before_it():
    found = []
    for batch in prefixes_in_batches(HISTORIES, max_length=5, batch_size=4):
        assert len(batch.targets) <= 4
        for row, target in zip(batch.histories.tolist(), batch.targets.tolist(), strict=True):
            found.append(([item for item in row if item >= 0], target))
    expected = [(list(h[max(0, t - 5) : t]), int(h[t])) for h in HISTORIES for t in range(len(h))]
    assert sorted(found) == sorted(expected)


def test_prefixes_are_not_copied_and_have_little_padding():
    histories = dataset.Histories.from_lists([range(1 + user % 60) for user in range(1000)])
    loader = prefixes_in_batches(histories, 20, batch_size=64)
    assert loader.dataset.items.nbytes + loader.dataset.lengths.nbytes <= 2 * histories.items.nbytes
    rows = [batch.histories for batch in loader]
    assert sum(int((each < 0).sum()) for each in rows) / sum(each.numel() for each in rows) < 0.05


@pytest.mark.parametrize("make", [histories_in_batches, prefixes_in_batches])
def test_histories_without_items_are_refused(make):
    with pytest.raises(ValueError, match="no history holds an item: there is nothing to train on"):
        make([[], []], 5, 2)
