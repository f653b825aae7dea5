"""Batches of histories for training: whole histories (timeline model, SASRec) or every prefix of them (TIGER)."""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch.utils.data import DataLoader, Sampler

from semid_lib.decoding.ranking import ItemRows, padded

_NO_ITEMS = "no history holds an item: there is nothing to train on"


class LengthBuckets(Sampler[list[int]]):
    """Batches of sequences of similar length, in another random order every epoch.

    Sequences are shuffled, cut into pools of `pool` batches and sorted by length within a pool. The batches of all
    pools are shuffled again, so that padding falls to a few per cent and batches stay random.

    Examples
    --------
    >>> sorted(sorted(batch) for batch in LengthBuckets(np.array([9, 1, 9, 1]), batch_size=2))
    [[0, 2], [1, 3]]
    """

    def __init__(self, lengths: np.ndarray, batch_size: int, seed: int = 0, pool: int = 50):
        self.lengths, self.batch_size, self.seed, self.pool = np.asarray(lengths), batch_size, seed, pool
        self.rng = np.random.default_rng(seed)

    def __len__(self) -> int:
        return math.ceil(len(self.lengths) / self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        order = self.rng.permutation(len(self.lengths))
        span = self.batch_size * self.pool
        batches = []
        for start in range(0, len(order), span):
            chunk = order[start : start + span]
            chunk = chunk[np.argsort(self.lengths[chunk], kind="stable")]
            batches += [chunk[i : i + self.batch_size].tolist() for i in range(0, len(chunk), self.batch_size)]
        for i in self.rng.permutation(len(batches)):
            yield batches[i]

    def state_dict(self) -> dict[str, Any]:
        """The state of the random generator, which decides the order of the next epochs."""
        return cast("dict[str, Any]", self.rng.bit_generator.state)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.rng.bit_generator.state = state


def pad(histories: ItemRows, max_length: int | None = None) -> torch.Tensor:
    """`ranking.padded` as a tensor: the last `max_length` item rows of each history, -1 after the end."""
    return torch.from_numpy(padded(histories, max_length))


def histories_in_batches(histories: ItemRows, max_length: int, batch_size: int, seed: int = 0) -> DataLoader:
    """Make batches for `training.fit`: (B, T) item rows padded with -1, sequences of similar length together.

    Empty histories are left out; of histories longer than `max_length` the end is used.

    Raises
    ------
    ValueError
        If no history holds an item.
    """
    kept = [history for history in histories if len(history)]
    if not kept:
        raise ValueError(_NO_ITEMS)
    buckets = LengthBuckets(np.minimum([len(history) for history in kept], max_length), batch_size, seed)
    return DataLoader(cast("Any", kept), batch_sampler=buckets, collate_fn=lambda rows: pad(rows, max_length))


def some_backward(histories: torch.Tensor, share: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Turn a random share of the histories of a batch around; also which ones, (B, 1) bool.

    Examples
    --------
    >>> some_backward(torch.tensor([[1, 2, 3], [4, 5, -1]]), share=1.0)[0]
    tensor([[ 3,  2,  1],
            [ 5,  4, -1]])
    """
    real = histories >= 0
    backward = torch.rand(len(histories), 1, device=histories.device) < share
    last = real.sum(dim=1, keepdim=True) - 1
    places = torch.arange(histories.shape[1], device=histories.device)
    return histories.gather(1, torch.where(backward & real, last - places, places)), backward


class Prefixes(NamedTuple):
    """A batch of TIGER: histories and the item that follows each."""

    histories: torch.Tensor  # (B, T) int64 item rows, -1 after the end
    targets: torch.Tensor  # (B,) int64 item rows


class PrefixDataset:
    """Every interaction as a target, to be predicted from at most `max_length` before it; prefixes are cut when read.

    Examples
    --------
    >>> PrefixDataset([[4, 5, 6], [7]], max_length=2).__getitems__([0, 2, 3])
    Prefixes(histories=tensor([[-1, -1],
            [ 4,  5],
            [-1, -1]]), targets=tensor([4, 6, 7]))
    """

    def __init__(self, histories: ItemRows, max_length: int):
        parts = [np.asarray(history, dtype=np.int64) for history in histories]
        self.items = np.concatenate([np.empty(0, dtype=np.int64), *parts])
        n_before = np.concatenate([np.empty(0, dtype=np.int64), *[np.arange(len(part)) for part in parts]])
        self.lengths = np.minimum(n_before, max_length)

    def __len__(self) -> int:
        return len(self.items)

    def __getitems__(self, indices: list[int]) -> Prefixes:
        at = np.array(indices)
        lengths = self.lengths[at][:, None]
        place = np.arange(lengths.max())
        histories = np.where(place < lengths, self.items[np.minimum(at[:, None] - lengths + place, at[:, None])], -1)
        return Prefixes(torch.from_numpy(histories), torch.from_numpy(self.items[at]))


def prefixes_in_batches(histories: ItemRows, max_length: int, batch_size: int, seed: int = 0) -> DataLoader:
    """Make batches of `Prefixes` for `training.fit`: each interaction once, histories of similar length together.

    The first interaction of a user is predicted from an empty history.

    Raises
    ------
    ValueError
        If no history holds an item.
    """
    samples = PrefixDataset(histories, max_length)
    if not len(samples):
        raise ValueError(_NO_ITEMS)
    buckets = LengthBuckets(samples.lengths, batch_size, seed)
    return DataLoader(cast("Any", samples), batch_sampler=buckets, collate_fn=lambda batch: batch)
