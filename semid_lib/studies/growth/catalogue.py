"""A catalogue of any size that resembles a real one.

A real catalogue (`Sample`) is enlarged or reduced to n items:

- codes of a level are Zipf-distributed below their prefix, with the exponent at which two random items of one prefix
  share the next code as often as in the sample; the last level tells items apart, as ours does;
- a vector lies between two items that are neighbours in the order of their semantic IDs, and is brought to length 1 in
  the direction of the difference of two other neighbours;
- histories are copies of the sample's over other items, so that users and interactions grow in proportion to items.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from semid_lib.ids import embed

CODEBOOK_SIZE, N_LEVELS = 256, 4  # of the catalogues of codes
_NEIGHBOURS = 8  # places in the order of IDs within which a vector's two parents lie


class Sample(NamedTuple):
    """A real catalogue."""

    vectors: np.ndarray  # (m, dim) float32 of length 1
    codes: np.ndarray  # (m, n_levels) int64, before collisions are resolved
    codebook_size: int
    texts: list[str]  # (m,)
    histories: list[np.ndarray] | None  # of item rows


def sample(shop, shelf) -> Sample:
    """The sample of a `dataset.Dataset`, with what chapters 01 and 02 have written in its `store.Store`."""
    vectors = embed.normalize(shelf.load("embeddings")["vectors"])
    histories = None if shop.histories is None else list(shop.histories)
    found = shelf.load("semantic_ids")
    return Sample(vectors, found["kmeans_codes"], found["codebooks"].shape[1], embed.item_texts(shop.items), histories)


_STEEPEST = 50.0  # the largest exponent: all items have the first code


def zipf_exponents(codes: np.ndarray, codebook_size: int) -> tuple[float, ...]:
    """Per level, the s of p(r) ~ r^-s, r = 1 .. K, under which two items of one prefix share the next code as often.

    codes: (n, n_levels) integers below K = codebook_size, n > 1, else ValueError. Exponents lie between 0 (codes are
    spread evenly, or no two items share a prefix) and 50 (all items of a prefix share the next code).

    >>> zipf_exponents(np.array([[0, 0], [0, 1], [1, 0], [1, 1]]), 2), zipf_exponents(np.array([[3, 0], [3, 0]]), 4)
    ((0.0, 0.0), (50.0, 50.0))
    """
    from scipy.optimize import brentq

    if codes.ndim != 2 or len(codes) < 2:
        raise ValueError(f"codes must be (n, n_levels) of two items or more, got {codes.shape}")
    rank = np.arange(1, codebook_size + 1, dtype=np.float64)

    def shared(s: float) -> float:
        return float(np.sum((rank**-s / np.sum(rank**-s)) ** 2))

    exponents, pairs = [], len(codes) * (len(codes) - 1)
    for level in range(codes.shape[1]):
        count = np.unique(codes[:, : level + 1], axis=0, return_counts=True)[1]
        deeper = int(np.sum(count * (count - 1)))
        share = min(deeper / pairs if pairs else 0.0, shared(_STEEPEST))
        even = share <= shared(0.0)
        exponents.append(0.0 if even else float(brentq(lambda s, at=share: shared(s) - at, 0.0, _STEEPEST, xtol=1e-6)))
        pairs = deeper
    return tuple(exponents)


def made_ids(
    n: int,
    exponents: Sequence[float],
    codebook_size: int = CODEBOOK_SIZE,
    n_levels: int = N_LEVELS,
    seed: int = 0,
) -> np.ndarray:
    """n distinct semantic IDs, (n, n_levels) int64, with Zipf-distributed codes below every prefix.

    exponents: as of `zipf_exponents`; the last one is used for further levels as well. The codes of a prefix are the
    ranks, shifted by a number that depends on the prefix. The last level numbers the items of a prefix; those beyond
    codebook_size are drawn again with half the skew. Raises ValueError for more items than half of all IDs.

    >>> made_ids(5, (1.0,), codebook_size=4, n_levels=2).shape
    (5, 2)
    """
    if not 1 <= n <= codebook_size**n_levels // 2:
        raise ValueError(f"expected 1 to {codebook_size**n_levels // 2} items for {n_levels} levels, got {n}")
    rng = np.random.default_rng(seed)
    skew = np.array([exponents[min(level, len(exponents) - 1)] for level in range(n_levels - 1)])
    prefix, missing = np.empty(0, dtype=np.int64), n
    while missing:
        prefix = np.sort(np.append(prefix, _prefixes(missing, skew, codebook_size, rng)))
        begins = np.flatnonzero(np.diff(prefix, prepend=-1))
        rank = np.arange(n) - np.repeat(begins, np.diff(begins, append=n))
        prefix, skew = prefix[rank < codebook_size], skew / 2
        missing = n - len(prefix)
    last = (rank + _turn(prefix)) % codebook_size
    codes = [*np.unravel_index(prefix, (codebook_size,) * (n_levels - 1)), last]
    return np.column_stack(codes)[rng.permutation(n)].astype(np.int64, copy=False)


def _prefixes(n: int, skew: np.ndarray, codebook_size: int, rng: np.random.Generator) -> np.ndarray:
    prefix = np.zeros(n, dtype=np.int64)
    for s in skew:
        weight = np.arange(1, codebook_size + 1, dtype=np.float64) ** -s
        rank = np.searchsorted(np.cumsum(weight / weight.sum()), rng.random(n)).clip(max=codebook_size - 1)
        prefix = prefix * codebook_size + (rank + _turn(prefix)) % codebook_size
    return prefix


def _turn(prefix: np.ndarray) -> np.ndarray:
    """A number that depends on the prefix: the upper bits of a multiplicative hash (Knuth)."""
    return (prefix.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) >> np.uint64(40)).astype(np.int64)


def vectors_like(like: Sample, n: int, seed: int = 0) -> np.ndarray:
    """n vectors between neighbours of the sample: (n, dim) float32 of length 1; see the head of this module."""
    rng = np.random.default_rng(seed)
    order = np.lexsort(like.codes.T[::-1])
    vectors = np.empty((n, like.vectors.shape[1]), dtype=np.float32)
    for start in range(0, n, 65_536):  # a block at a time: no second copy of them all
        part = vectors[start : start + 65_536]
        (one, other), (third, fourth) = (_neighbours(order, len(part), rng) for _ in range(2))
        share = rng.uniform(0.25, 0.75, (len(part), 1)).astype(np.float32)
        part[:] = (1 - share) * like.vectors[one] + share * like.vectors[other]
        missing = np.sqrt(np.maximum(0, 1 - np.sum(part**2, axis=1, keepdims=True)))
        part += missing * embed.normalize(like.vectors[third] - like.vectors[fourth])
        part[:] = embed.normalize(part)
    return vectors


def _neighbours(order: np.ndarray, n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """n rows at random, and for each another one that is near it in an order."""
    at = rng.integers(0, len(order), n)
    return order[at], order[(at + rng.integers(1, _NEIGHBOURS + 1, n)) % len(order)]


def histories_like(like: Sample, n: int) -> list[np.ndarray]:
    """Copies of the sample's histories over n items: copy c of row i is row (i + c m) mod n of the new catalogue.

    Users are as many a item as in the sample. Raises ValueError for a sample without histories.
    """
    if like.histories is None:
        raise ValueError("the sample has no histories, expected some")
    m, n_users = len(like.vectors), len(like.histories)
    wanted = max(1, n_users * n // m)
    return [(like.histories[user % n_users] + user // n_users * m) % n for user in range(wanted)]
