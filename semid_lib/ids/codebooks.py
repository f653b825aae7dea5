"""Measures of codes: codebook use, collisions, meaning and stability of prefixes, distortion, drift.

All functions take plain arrays, whatever quantizer made them. A *prefix* of depth d is the first d codes of an item.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

_MIN_NEW, _MAX_RATIO, _MAX_SHARE_ABOVE = 30, 1.5, 0.25  # the rule of `drift`


def code_counts(codes: np.ndarray, codebook_size: int) -> np.ndarray:
    """Items per code at each level: (n_items, n_levels) -> (n_levels, codebook_size) int64.

    Raises ValueError if a code is outside 0 .. codebook_size - 1.

    >>> code_counts(np.array([[0, 1], [0, 2]]), codebook_size=3)
    array([[2, 0, 0],
           [0, 1, 1]])
    """
    if codes.size and not (codes.min() >= 0 and codes.max() < codebook_size):
        raise ValueError(f"codes run from {codes.min()} to {codes.max()}, expected 0 to {codebook_size - 1}")
    return np.stack([np.bincount(level, minlength=codebook_size) for level in codes.T])


def utilization(codes: np.ndarray, codebook_size: int) -> np.ndarray:
    """Share of the codes of each level that at least one item has: (n_levels,) float64 in (0, 1].

    A model never sees an unused (dead) code, so its token stays untrained.

    >>> utilization(np.array([[0, 1], [0, 2]]), codebook_size=4)
    array([0.25, 0.5 ])
    """
    return (code_counts(codes, codebook_size) > 0).mean(axis=1)


def perplexity(codes: np.ndarray, codebook_size: int) -> np.ndarray:
    """exp(entropy) of the codes of each level, between 1 and codebook_size: (n_levels,) float64.

    It is the number of equally used codes that would be as diverse.

    >>> perplexity(np.array([[0, 1], [0, 2]]), codebook_size=4).round(6)
    array([1., 2.])
    """
    return np.exp([_entropy(counts[counts > 0]) for counts in code_counts(codes, codebook_size)])


def collision_rate(codes: np.ndarray) -> float:
    """1 - distinct semantic IDs / items, for the whole catalogue before disambiguation.

    >>> collision_rate(np.array([[0, 1], [0, 1], [0, 2], [3, 3]]))
    0.25
    """
    return 1.0 - len(np.unique(codes, axis=0)) / len(codes)


def collision_sizes(codes: np.ndarray) -> np.ndarray:
    """Number of semantic IDs that exactly 0, 1, 2, ... items share: (largest group + 1,) int64.

    >>> collision_sizes(np.array([[0, 1], [0, 1], [0, 2], [3, 3]]))
    array([0, 2, 1])
    """
    return np.bincount(np.unique(codes, axis=0, return_counts=True)[1])


# --- meaning of prefixes ---


class Purity(NamedTuple):
    """How often two items with the same prefix have the same label, compared with chance."""

    observed: float  # share of the pairs of items with the same prefix that also have the same label
    expected: float  # the same share among all pairs of items
    adjusted: float  # (observed - expected) / (1 - expected): 0 by chance, 1 if every prefix has a single label
    low: float  # 95% bootstrap interval of `adjusted`
    high: float


def prefix_purity(prefixes: np.ndarray, labels: np.ndarray, n_resamples: int = 1000, seed: int = 0) -> Purity:
    """Purity of prefixes in a label such as category or brand, adjusted for chance, with an interval.

    The bootstrap resamples prefixes and not items, because pairs with the same prefix share items. A prefix weighs by
    its pairs, so large ones dominate. All numbers are nan if no two items share a prefix or all have one label; the
    interval is nan if one prefix has all the pairs.

    Parameters
    ----------
    prefixes : (n_items, depth) int array
    labels : (n_items,) array of str, none missing

    Raises
    ------
    ValueError
        If there is not one label per item, or one is None or NaN.

    References
    ----------
    Hubert & Arabie (1985).

    Examples
    --------
    >>> prefix_purity(np.array([[0], [0], [1], [1]]), np.array(["a", "a", "b", "b"])).adjusted
    1.0
    >>> prefix_purity(np.array([[0], [0], [1], [1]]), np.array(["a", "b", "a", "b"])).adjusted  # worse than chance
    -0.49999999999999994
    """
    if len(labels) != len(prefixes):
        raise ValueError(f"{len(labels)} labels for {len(prefixes)} items: expected one each")
    if missing := [row for row, label in enumerate(labels) if label is None or label != label]:  # noqa: PLR0124 NaN
        raise ValueError(f"label {missing[0]} is missing, as are {len(missing)} in all: leave these items out")
    group, label = _groups(prefixes), _groups(labels)
    pairs = _pairs(np.bincount(group))
    (group_of_cell, _), cells = np.unique([group, label], axis=1, return_counts=True)
    agreeing = np.bincount(group_of_cell, weights=_pairs(cells), minlength=len(pairs))
    expected = _shared_pairs(label)
    if not pairs.any() or expected == 1:
        return Purity(*[float("nan")] * 5)
    observed = float(agreeing.sum() / pairs.sum())
    agreeing, pairs = agreeing[pairs > 0], pairs[pairs > 0]
    rng = np.random.default_rng(seed)
    drawn = (rng.integers(len(pairs), size=len(pairs)) for _ in range(n_resamples))
    shares = np.array([agreeing[rows].sum() / pairs[rows].sum() for rows in drawn])
    low, high = np.quantile((shares - expected) / (1 - expected), [0.025, 0.975]) if len(pairs) > 1 else [np.nan] * 2
    return Purity(observed, expected, (observed - expected) / (1 - expected), float(low), float(high))


def _groups(prefixes: np.ndarray) -> np.ndarray:
    """Number the prefixes from 0: (n_items, depth) -> (n_items,) int64."""
    return np.unique(prefixes, axis=0, return_inverse=True)[1]


def _pairs(counts: np.ndarray) -> np.ndarray:
    return counts * (counts - 1) // 2


def _shared_pairs(group: np.ndarray) -> float:
    """Share of all pairs of items that are in one group; nan for a single item."""
    n_pairs = len(group) * (len(group) - 1) / 2
    return float(_pairs(np.bincount(group)).sum() / n_pairs) if n_pairs else float("nan")


class Preservation(NamedTuple):
    """Share of true neighbours with the same prefix, for each depth 1 .. n_levels."""

    share: np.ndarray  # (n_levels,) float64
    by_chance: np.ndarray  # (n_levels,) float64: the same for a random item in place of a neighbour


def neighbour_preservation(
    vectors: np.ndarray, codes: np.ndarray, k: int = 10, n_queries: int | None = None, seed: int = 0
) -> Preservation:
    """Share of an item's k nearest neighbours (Euclidean) that have the item's prefix, per depth.

    A depth with few items per prefix cannot hold all k, so compare quantizers at one depth, and each with chance.

    Parameters
    ----------
    vectors : (n, dim) float array
    codes : (n, n_levels) int array
    k : int
        With fewer than k other items, all are neighbours.
    n_queries : int, optional
        Number of items to average over, drawn by `seed`; by default all.
    block : int
        Items per step: memory is block x n floats.

    Raises
    ------
    ValueError
        If there is not one vector per row of codes, fewer than two items, or k < 1.

    Examples
    --------
    >>> line = np.array([[0.0], [1.0], [10.0], [11.0]])
    >>> neighbour_preservation(line, np.array([[0, 0], [0, 1], [1, 0], [1, 0]]), k=1).share
    array([1. , 0.5])
    """
    vectors = np.asarray(vectors, dtype=np.float32)
    n = len(vectors)
    if n != len(codes):
        raise ValueError(f"{n} vectors for {len(codes)} rows of codes: expected one each")
    if k < 1 or n < 2:
        raise ValueError(f"expected k >= 1 neighbours among 2 or more items, got {k} among {n}")
    rows = np.arange(n) if n_queries is None else np.random.default_rng(seed).permutation(n)[:n_queries]
    blocks = (rows[at : at + 1024] for at in range(0, len(rows), 1024))
    near = np.concatenate([_neighbours(vectors, block, min(k, n - 1)) for block in blocks])
    prefixes = [_groups(codes[:, : depth + 1]) for depth in range(codes.shape[1])]
    return Preservation(
        share=np.array([np.mean(prefix[near] == prefix[rows, None]) for prefix in prefixes]),
        by_chance=np.array([_shared_pairs(prefix) for prefix in prefixes]),
    )


def _neighbours(vectors: np.ndarray, rows: np.ndarray, k: int) -> np.ndarray:
    """The k nearest other vectors of each of the rows, in any order: (len(rows), k) int64."""
    vectors = vectors - vectors.mean(axis=0)  # distances do not change, and float32 keeps its digits
    half_norms = 0.5 * np.sum(vectors**2, axis=1)
    distance = half_norms - vectors[rows] @ vectors.T  # |v - w|^2 / 2 without |v|^2 / 2, which is constant
    distance[np.arange(len(rows)), rows] = np.inf  # an item is not its own neighbour
    return np.argpartition(distance, k - 1, axis=1)[:, :k]


def prefix_stability(codes: np.ndarray, other_codes: np.ndarray) -> np.ndarray:
    """Adjusted mutual information of the prefixes of two runs, per depth: (n_levels,) float64.

    1 if both group the items alike, whatever the codes are called; 0 if they agree no more than by chance. nan if
    both put all items into one group, or each into a group of its own.

    Raises ValueError unless both are (n_items, n_levels) of the same items in the same order.

    References
    ----------
    Vinh et al. (2010), with the arithmetic mean, as in scikit-learn.

    Examples
    --------
    >>> prefix_stability(np.array([[0, 0], [0, 1], [1, 1]]), np.array([[5, 0], [5, 2], [3, 2]]))
    array([ 1., nan])
    """
    if codes.shape != other_codes.shape:
        raise ValueError(f"codes {codes.shape} and {other_codes.shape} are not of the same items and levels")
    depths = range(1, codes.shape[1] + 1)
    return np.array([_adjusted_information(_groups(codes[:, :d]), _groups(other_codes[:, :d])) for d in depths])


def _adjusted_information(group: np.ndarray, other: np.ndarray) -> float:
    sizes, other_sizes = np.bincount(group), np.bincount(other)
    cells = np.unique([group, other], axis=1, return_counts=True)[1]
    entropies = _entropy(sizes), _entropy(other_sizes)
    mutual = sum(entropies) - _entropy(cells)
    by_chance = _expected_information(sizes, other_sizes)
    room = np.mean(entropies) - by_chance
    return float((mutual - by_chance) / room) if room > 1e-9 else float("nan")


def _entropy(counts: np.ndarray) -> float:
    share = counts / counts.sum()
    return float(-np.sum(share * np.log(share)))


def _expected_information(sizes: np.ndarray, other_sizes: np.ndarray) -> float:
    """Mean mutual information of two random partitions with these group sizes.

    Pairs of groups with equal sizes count once. scikit-learn visits all pairs (ten seconds for 10,000 groups), and
    scipy's hypergeometric distribution takes fifty times as long as the gamma functions here.
    """
    from scipy.special import gammaln, xlogy  # slow to import

    n = sizes.sum()
    others, times = np.unique(other_sizes, return_counts=True)
    total = 0.0
    for size, n_groups in zip(*np.unique(sizes, return_counts=True), strict=True):
        common, at = np.meshgrid(np.arange(1, size + 1), np.arange(len(others)))  # items that both groups hold
        possible = (common <= others[at]) & (common >= size + others[at] - n)
        common, at = common[possible], at[possible]
        other = others[at]
        ways = gammaln([size + 1, n - size + 1]).sum() - gammaln(n + 1) + gammaln(other + 1) + gammaln(n - other + 1)
        ways -= gammaln(common + 1) + gammaln(size - common + 1) + gammaln(other - common + 1)
        ways -= gammaln(n - size - other + common + 1)  # log of the hypergeometric probability
        term = np.exp(ways) * xlogy(common / n, n * common / (size * other))
        total += n_groups * np.sum(term * times[at])
    return float(total)


# --- distortion and drift ---


def squared_errors(vectors: np.ndarray, reconstructed: np.ndarray) -> np.ndarray:
    """Squared Euclidean distance of each vector to its reconstruction: (n, dim), (n, dim) -> (n,) float64.

    Raises ValueError if the shapes differ; one row of dim numbers may serve for all.

    >>> squared_errors(np.array([[0.0, 0.0], [1.0, 1.0]]), np.array([[0.0, 1.0], [1.0, 1.0]]))
    array([1., 0.])
    """
    if reconstructed.shape not in (vectors.shape, vectors.shape[1:]):
        raise ValueError(f"vectors are {vectors.shape}, their reconstruction {reconstructed.shape}: expected the same")
    reconstructed = np.broadcast_to(reconstructed, vectors.shape)
    errors = [np.empty(0)]
    for start in range(0, len(vectors), 8192):  # double precision, without a double copy of everything
        some = slice(start, start + 8192)
        errors.append(np.sum((vectors[some].astype(np.float64) - reconstructed[some]) ** 2, axis=1))
    return np.concatenate(errors)


def distortion(vectors: np.ndarray, reconstructed: np.ndarray) -> float:
    """Mean of `squared_errors`; nan without vectors.

    >>> distortion(np.array([[0.0, 0.0], [1.0, 1.0]]), np.array([[0.0, 1.0], [1.0, 1.0]]))
    0.5
    """
    errors = squared_errors(vectors, reconstructed)
    return float(np.mean(errors)) if len(errors) else float("nan")


def distortion_per_level(
    vectors: np.ndarray, codes: np.ndarray, decode: Callable[[np.ndarray], np.ndarray]
) -> np.ndarray:
    """Distortion with only the first 1, 2, ... codes: (n_levels,) float64.

    decode: (n, m) codes -> (n, dim) vectors for every m <= n_levels, as `ResidualQuantizer.decode`.

    >>> decode = lambda codes: codes @ np.array([[10.0], [1.0]])[: codes.shape[1]]
    >>> distortion_per_level(np.array([[11.0], [1.0]]), np.array([[1, 1], [0, 1]]), decode)
    array([1., 0.])
    """
    return np.array([distortion(vectors, decode(codes[:, : d + 1])) for d in range(codes.shape[1])])


class Drift(NamedTuple):
    """Errors of new items compared with those of the items that the codebooks were fitted to."""

    n_items: int  # new items
    ratio: float  # mean squared error of the new items / that of the training items
    share_above: float  # share of the new items above the 95th percentile of the training errors
    ks: float  # two-sample Kolmogorov-Smirnov statistic: 0 the same distribution, 1 no overlap
    refit: bool
    advice: str  # the same in a sentence, with the rule


def drift(training_errors: np.ndarray, new_errors: np.ndarray) -> Drift:
    """Decide whether codebooks still fit the items that arrive.

    Refit if there are at least 30 new items, and `ratio` > 1.5 or `share_above` > 0.25. The limits are above 1 and 0.05
    because codebooks fit their own items best. On Beauty (3 x 256), random held-out items have ratio 1.2, share above
    .12 and KS .18; items of an unseen category have 1.7 to 2.1, .4 to .75 and .7. The ratios are nan without new items.

    Parameters
    ----------
    training_errors, new_errors : (n,) and (m,) float arrays >= 0
        `squared_errors(vectors, quantizer.decode(quantizer.encode(vectors)))`, before any re-assignment.

    Raises
    ------
    ValueError
        If there are no training errors, or an error is negative or not finite.

    Examples
    --------
    >>> drift(np.ones(50), np.full(40, 3.0)).advice
    'refit: 40 new items, ratio 3.00 (limit 1.5), share above 1.00 (limit 0.25)'
    """
    from scipy.stats import ks_2samp  # slow to import

    n, errors = len(new_errors), np.concatenate([training_errors, new_errors])
    if not len(training_errors) or not (np.isfinite(errors) & (errors >= 0)).all():
        raise ValueError("expected finite errors >= 0 of new items and of at least one item that was fitted")
    if not n:
        nan = float("nan")
        return Drift(0, nan, nan, nan, refit=False, advice=f"too few to judge (under {_MIN_NEW}): no new items")
    mean = training_errors.mean()
    ratio = float(new_errors.mean() / mean) if mean else float("inf" if new_errors.any() else 1)
    share_above = float(np.mean(new_errors > np.quantile(training_errors, 0.95)))
    ks = float(ks_2samp(training_errors, new_errors, method="asymp").statistic)
    refit = n >= _MIN_NEW and (ratio > _MAX_RATIO or share_above > _MAX_SHARE_ABOVE)
    word = "refit" if refit else "keep" if n >= _MIN_NEW else f"too few to judge (under {_MIN_NEW})"
    limits = f"ratio {ratio:.2f} (limit {_MAX_RATIO}), share above {share_above:.2f} (limit {_MAX_SHARE_ABOVE})"
    return Drift(n, ratio, share_above, ks, refit, f"{word}: {n} new items, {limits}")
