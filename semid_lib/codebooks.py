"""How well a set of codes uses its codebooks: utilization, perplexity, collisions, distortion; pure NumPy."""

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


def pair_agreement(prefixes: np.ndarray, labels: np.ndarray) -> float:
    """Of all pairs of different items that share a prefix, the share that also has the same label.

    prefixes: (n_items, m) integer codes; labels: (n_items,) of any comparable kind. `nan` if no two items share a
    prefix. Compare it with shuffled labels: large groups agree by chance.

    >>> pair_agreement(np.array([[0], [0], [0], [1]]), np.array(["a", "a", "b", "b"]))  # one of the three pairs
    0.3333333333333333
    """
    group = np.unique(prefixes, axis=0, return_inverse=True)[1]
    label = np.unique(labels, return_inverse=True)[1]
    pairs = _pairs(np.bincount(group))
    return _pairs(np.unique([group, label], axis=1, return_counts=True)[1]) / pairs if pairs else float("nan")


def _pairs(counts: np.ndarray) -> int:
    return int(np.sum(counts * (counts - 1)) // 2)


def distortion(vectors: np.ndarray, reconstructed: np.ndarray) -> float:
    """Mean squared Euclidean distance between vectors and their reconstruction, summed over dimensions.

    >>> distortion(np.array([[0.0, 0.0], [1.0, 1.0]]), np.array([[0.0, 1.0], [1.0, 1.0]]))
    0.5
    """
    difference = np.asarray(vectors, dtype=np.float64) - reconstructed
    return float(np.mean(np.sum(difference**2, axis=1)))
