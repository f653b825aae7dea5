"""How good a set of codes is: are the codebooks used, what is lost, do prefixes mean anything, are they stable?

Everything works on plain arrays, whatever quantizer made them. A *prefix* of depth d is the first d codes of an item.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np


def code_counts(codes: np.ndarray, codebook_size: int) -> np.ndarray:
    """How many items carry each code of each level: (n_items, n_levels) integers -> (n_levels, codebook_size) int64.

    Raises ValueError if a code lies outside 0 .. codebook_size - 1.

    >>> code_counts(np.array([[0, 1], [0, 2]]), codebook_size=3)
    array([[2, 0, 0],
           [0, 1, 1]])
    """
    if codes.size and not (codes.min() >= 0 and codes.max() < codebook_size):
        raise ValueError(f"codes run from {codes.min()} to {codes.max()}, expected 0 to {codebook_size - 1}")
    return np.stack([np.bincount(level, minlength=codebook_size) for level in codes.T])


def utilization(codes: np.ndarray, codebook_size: int) -> np.ndarray:
    """Share of the codes of each level that at least one item carries: (n_levels,) float64 in (0, 1].

    >>> utilization(np.array([[0, 1], [0, 2]]), codebook_size=4)
    array([0.25, 0.5 ])
    """
    return (code_counts(codes, codebook_size) > 0).mean(axis=1)


def dead_codes(codes: np.ndarray, codebook_size: int) -> list[np.ndarray]:
    """The codes of each level that no item carries: one ascending int64 array per level.

    A model never sees a dead code, so its token stays untrained; codewords spent on nothing also cost distortion.

    >>> [level.tolist() for level in dead_codes(np.array([[0, 1], [0, 2]]), codebook_size=3)]
    [[1, 2], [0]]
    """
    return [np.flatnonzero(counts == 0) for counts in code_counts(codes, codebook_size)]


def perplexity(codes: np.ndarray, codebook_size: int) -> np.ndarray:
    """exp(entropy) of the codes of each level: the number of equally used codes that would be as diverse.

    Returns (n_levels,) float64 between 1 and codebook_size.

    >>> perplexity(np.array([[0, 1], [0, 2]]), codebook_size=4).round(6)
    array([1., 2.])
    """
    share = code_counts(codes, codebook_size) / len(codes)
    entropy = -(share * np.log(share, out=np.zeros_like(share), where=share > 0)).sum(axis=1)
    return np.exp(entropy)


def collision_rate(codes: np.ndarray) -> float:
    """1 - distinct semantic IDs / items, over the whole catalogue and before any disambiguation.

    >>> collision_rate(np.array([[0, 1], [0, 1], [0, 2], [3, 3]]))
    0.25
    """
    return 1.0 - len(np.unique(codes, axis=0)) / len(codes)


def collision_sizes(codes: np.ndarray) -> np.ndarray:
    """How many semantic IDs are carried by exactly 0, 1, 2, ... items: (largest group + 1,) int64.

    Entry 0 is always 0, so that the index is the size; `sizes[2:].sum()` counts the IDs with a collision.

    >>> collision_sizes(np.array([[0, 1], [0, 1], [0, 2], [3, 3]]))
    array([0, 2, 1])
    """
    return np.bincount(np.unique(codes, axis=0, return_counts=True)[1])


# --- do prefixes mean anything? ---


def pair_agreement(prefixes: np.ndarray, labels: np.ndarray) -> float:
    """Of all pairs of different items that share a prefix, the share that also has the same label.

    prefixes: (n_items, m) integer codes; labels: (n_items,) of any kind, none missing. `nan` if no two items share a
    prefix. Compare it with shuffled labels: large groups agree by chance.

    >>> pair_agreement(np.array([[0], [0], [0], [1]]), np.array(["a", "a", "b", "b"]))  # one of the three pairs
    0.3333333333333333
    """
    group, label = np.unique(prefixes, axis=0, return_inverse=True)[1], _numbered(labels)
    pairs = _pairs(np.bincount(group))
    return _pairs(np.unique([group, label], axis=1, return_counts=True)[1]) / pairs if pairs else float("nan")


def _numbered(labels: np.ndarray) -> np.ndarray:
    """Labels as numbers from 0: (n_items,) int64."""
    import pandas as pd  # slow to import

    numbers = pd.factorize(np.asarray(labels, dtype=object))[0]
    if missing := np.flatnonzero(numbers < 0).tolist():
        raise ValueError(f"label {missing[0]} is missing, as are {len(missing)} in all: leave these items out")
    return numbers


def _pairs(counts: np.ndarray) -> int:
    return int(np.sum(counts * (counts - 1)) // 2)


class Purity(NamedTuple):
    """Agreement on a label within prefixes, and what of it is more than chance."""

    observed: float  # share of pairs under one prefix that have the same label: `pair_agreement`
    expected: float  # the same over all pairs of the catalogue: two different items drawn blindly
    adjusted: float  # (observed - expected) / (1 - expected): 0 by chance, 1 if every prefix has a single label
    low: float  # 95% bootstrap interval of `adjusted`
    high: float


def prefix_purity(prefixes: np.ndarray, labels: np.ndarray, n_resamples: int = 1000, seed: int = 0) -> Purity:
    """How pure the prefixes are in a label such as category or brand, adjusted for chance, with an interval.

    Adjusted as in Hubert & Arabie (1985): what is above chance, of what could be. The bootstrap draws prefixes, not
    items, because the pairs under one prefix share their items; `expected` stays fixed. A prefix weighs by its pairs,
    so large ones dominate at depth 1.

    prefixes: (n_items, depth) integer codes. labels: (n_items,) of any kind; leave out items without one.
    All numbers are nan if no two items share a prefix or all items have one label, the interval if a single prefix
    holds all pairs.
    Raises ValueError unless there is one label per item, and no None or NaN among them.

    >>> prefix_purity(np.array([[0], [0], [1], [1]]), np.array(["a", "a", "b", "b"])).adjusted
    1.0
    >>> prefix_purity(np.array([[0], [0], [1], [1]]), np.array(["a", "b", "a", "b"])).adjusted  # worse than chance
    -0.49999999999999994
    """
    if len(labels) != len(prefixes):
        raise ValueError(f"{len(labels)} labels for {len(prefixes)} items: expected one each")
    group, label = np.unique(prefixes, axis=0, return_inverse=True)[1], _numbered(labels)
    pairs = _pairs_of_groups(np.bincount(group))
    (group_of_cell, _), cells = np.unique([group, label], axis=1, return_counts=True)
    agreeing = np.bincount(group_of_cell, weights=_pairs_of_groups(cells), minlength=len(pairs))
    possible, n_pairs = pairs > 0, len(label) * (len(label) - 1) / 2
    expected = _pairs(np.bincount(label)) / n_pairs if n_pairs else float("nan")
    if not possible.any() or expected == 1:
        return Purity(*[float("nan")] * 5)
    shares = _resampled_ratio(agreeing[possible], pairs[possible], n_resamples, seed)
    observed, adjusted = float(agreeing.sum() / pairs.sum()), (shares - expected) / (1 - expected)
    low, high = np.quantile(adjusted, [0.025, 0.975]) if possible.sum() > 1 else (np.nan, np.nan)
    return Purity(observed, expected, (observed - expected) / (1 - expected), float(low), float(high))


def _pairs_of_groups(counts: np.ndarray) -> np.ndarray:
    return counts * (counts - 1) // 2


def _resampled_ratio(parts: np.ndarray, wholes: np.ndarray, n_resamples: int, seed: int) -> np.ndarray:
    """sum(parts) / sum(wholes) in bootstrap samples of the entries: (n_resamples,) float64."""
    rng = np.random.default_rng(seed)
    drawn = (rng.integers(len(parts), size=len(parts)) for _ in range(n_resamples))  # one sample in memory at a time
    return np.array([parts[rows].sum() / wholes[rows].sum() for rows in drawn])


class Preservation(NamedTuple):
    """For each depth 1 .. n_levels, how many of the true neighbours lie under the same prefix."""

    share: np.ndarray  # (n_levels,) float64
    by_chance: np.ndarray  # (n_levels,) float64: the same for an item drawn blindly


def neighbour_preservation(
    vectors: np.ndarray,
    codes: np.ndarray,
    k: int = 10,
    n_queries: int | None = None,
    seed: int = 0,
    block: int = 1024,
) -> Preservation:
    """Of an item's true k nearest neighbours, the share that has the item's prefix, per depth.

    Neighbours are Euclidean; on vectors of length 1 that is the order of the cosine. Ties at the k-th place fall
    anyhow. With fewer than k other items all are neighbours, and the share is the one by chance. A small share is no
    fault in itself: a depth with few items per prefix cannot hold all k, so compare quantizers at one depth, and each
    with chance.

    vectors: (n, dim) float. codes: (n, n_levels). n_queries: judge only this many items, drawn by `seed` (their
    neighbours still come from all n); None judges all. Memory is block x n floats, time n_queries x n x dim.
    Raises ValueError unless there is one vector per row of codes, of two items or more, and k >= 1.

    >>> line = np.array([[0.0], [1.0], [10.0], [11.0]])
    >>> neighbour_preservation(line, np.array([[0, 0], [0, 1], [1, 0], [1, 0]]), k=1).share
    array([1. , 0.5])
    """
    vectors = np.asarray(vectors, dtype=np.float32)
    if len(vectors) != len(codes):
        raise ValueError(f"{len(vectors)} vectors for {len(codes)} rows of codes: expected one each")
    if k < 1 or len(vectors) < 2:
        raise ValueError(f"expected k >= 1 neighbours among 2 or more items, got {k} among {len(vectors)}")
    k = min(k, len(vectors) - 1)
    prefixes = [np.unique(codes[:, : d + 1], axis=0, return_inverse=True)[1] for d in range(codes.shape[1])]
    n = len(vectors)
    rows = np.arange(n) if n_queries is None else np.random.default_rng(seed).permutation(n)[:n_queries]
    near = _neighbours(vectors, rows, k, block)
    pairs = n * (n - 1) / 2
    return Preservation(
        share=np.array([np.mean(prefix[near] == prefix[rows, None]) for prefix in prefixes]),
        by_chance=np.array([_pairs(np.bincount(prefix)) / pairs for prefix in prefixes]),
    )


def _neighbours(vectors: np.ndarray, rows: np.ndarray, k: int, block: int) -> np.ndarray:
    """The k nearest other vectors of each of the rows, in any order: (len(rows), k) int64."""
    vectors = vectors - vectors.mean(axis=0)  # distances do not change, and float32 keeps its digits
    half_norms = 0.5 * np.sum(vectors**2, axis=1)
    near = np.empty((len(rows), k), dtype=np.int64)
    for start in range(0, len(rows), block):
        some = rows[start : start + block]
        distance = half_norms - vectors[some] @ vectors.T  # |v - w|^2 / 2 but for |v|^2 / 2, which is constant
        distance[np.arange(len(some)), some] = np.inf  # not oneself
        near[start : start + block] = np.argpartition(distance, k - 1, axis=1)[:, :k]
    return near


def prefix_stability(codes: np.ndarray, other_codes: np.ndarray) -> np.ndarray:
    """Do two runs group the items alike? Adjusted mutual information of their prefixes, per depth.

    1: the same partition, whatever the codes are called; 0: no more in common than by chance (Vinh et al. 2010,
    arithmetic mean, as in scikit-learn). nan where nothing can be said: both runs put every item into one group, or
    every item into a group of its own, as at full depth without collisions.

    codes, other_codes: (n_items, n_levels) of the same items in the same order. Returns (n_levels,) float64.
    Raises ValueError if the shapes differ.

    >>> prefix_stability(np.array([[0, 0], [0, 1], [1, 1]]), np.array([[5, 0], [5, 2], [3, 2]]))
    array([ 1., nan])
    """
    if codes.shape != other_codes.shape:
        raise ValueError(f"codes {codes.shape} and {other_codes.shape} are not of the same items and levels")
    return np.array([_ami(codes[:, : d + 1], other_codes[:, : d + 1]) for d in range(codes.shape[1])])


def _ami(prefixes: np.ndarray, others: np.ndarray) -> float:
    group, other = (np.unique(each, axis=0, return_inverse=True)[1] for each in (prefixes, others))
    sizes, other_sizes = np.bincount(group), np.bincount(other)
    cells = np.unique([group, other], axis=1, return_counts=True)[1]
    entropies = _entropy(sizes), _entropy(other_sizes)
    mutual = sum(entropies) - _entropy(cells)
    by_chance = _expected_mutual_information(sizes, other_sizes)
    room = np.mean(entropies) - by_chance
    return float((mutual - by_chance) / room) if room > 1e-9 else float("nan")


def _entropy(counts: np.ndarray) -> float:
    share = counts / counts.sum()
    return float(-np.sum(share * np.log(share)))


def _expected_mutual_information(sizes: np.ndarray, other_sizes: np.ndarray) -> float:
    """Mean mutual information of two random partitions with these group sizes (Vinh et al. 2010).

    The terms depend on sizes alone, so pairs of groups with equal sizes are computed once: scikit-learn goes over all
    pairs, which takes ten seconds for 10,000 groups.
    """
    from scipy.special import gammaln, xlogy  # slow to import, and only needed here

    n = sizes.sum()
    (a, n_a), (b, n_b) = (np.unique(each, return_counts=True) for each in (sizes, other_sizes))
    total = 0.0
    for size, n_groups in zip(a, n_a, strict=True):
        shared = np.arange(1, size + 1)  # items in common of a group of `size` and one of each size in b
        common, other = np.meshgrid(shared, b)  # (len(b), size)
        possible = (common <= other) & (common >= size + other - n)
        common, other = common[possible], other[possible]
        ways = gammaln([size + 1, n - size + 1, 1]).sum() - gammaln(n + 1) + gammaln(other + 1) + gammaln(n - other + 1)
        ways -= gammaln(common + 1) + gammaln(size - common + 1) + gammaln(other - common + 1)
        ways -= gammaln(n - size - other + common + 1)  # log of the hypergeometric probability
        term = np.exp(ways) * xlogy(common / n, n * common / (size * other))
        total += n_groups * np.sum(term * n_b[np.searchsorted(b, other)])
    return float(total)


# --- what is lost ---


def squared_errors(vectors: np.ndarray, reconstructed: np.ndarray, block: int = 8192) -> np.ndarray:
    """Squared Euclidean distance of each vector to its reconstruction: (n, dim), (n, dim) -> (n,) float64.

    Raises ValueError if the shapes differ (one row of dim numbers may stand for all).

    >>> squared_errors(np.array([[0.0, 0.0], [1.0, 1.0]]), np.array([[0.0, 1.0], [1.0, 1.0]]))
    array([1., 0.])
    """
    vectors, reconstructed = np.asarray(vectors), np.asarray(reconstructed)
    if reconstructed.shape not in (vectors.shape, vectors.shape[1:]):
        raise ValueError(f"vectors are {vectors.shape}, their reconstruction {reconstructed.shape}: expected the same")
    reconstructed = np.broadcast_to(reconstructed, vectors.shape)
    errors = np.empty(len(vectors))
    for start in range(0, len(vectors), block):  # double precision, without a copy of everything in it
        some = slice(start, start + block)
        errors[some] = np.sum((vectors[some].astype(np.float64) - reconstructed[some]) ** 2, axis=1)
    return errors


def distortion(vectors: np.ndarray, reconstructed: np.ndarray) -> float:
    """Mean squared Euclidean distance between vectors and their reconstruction, summed over dimensions; nan of none.

    >>> distortion(np.array([[0.0, 0.0], [1.0, 1.0]]), np.array([[0.0, 1.0], [1.0, 1.0]]))
    0.5
    """
    errors = squared_errors(vectors, reconstructed)
    return float(np.mean(errors)) if len(errors) else float("nan")


def distortion_per_level(
    vectors: np.ndarray, codes: np.ndarray, decode: Callable[[np.ndarray], np.ndarray]
) -> np.ndarray:
    """Distortion when only the first 1, 2, ... codes are known: (n_levels,) float64, falling if every level helps.

    decode: (n, m) codes -> (n, dim) vectors for every m <= n_levels, as that of a residual quantizer does.

    >>> codebooks = np.array([[[0.0], [10.0]], [[-1.0], [1.0]]])
    >>> sum_of_codewords = lambda codes: sum(codebooks[level][codes[:, level]] for level in range(codes.shape[1]))
    >>> distortion_per_level(np.array([[11.0], [1.0]]), np.array([[1, 1], [0, 1]]), sum_of_codewords)
    array([1., 0.])
    """
    return np.array([distortion(vectors, decode(codes[:, : d + 1])) for d in range(codes.shape[1])])
