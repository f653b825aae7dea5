"""Residual k-means as plain functions: vectors in, short tuples of codes out.

Level 0 clusters the vectors; each further level clusters what the levels before it left over (Juang & Gray 1982;
the residual quantizer of Zeghidour et al. 2021, eq. 1, without a learned encoder). Codes therefore run from coarse
to fine, which is what makes a shared prefix mean similarity.
"""

import warnings
from typing import NamedTuple

import numpy as np
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning
from tqdm import tqdm


class Quantization(NamedTuple):
    """Codes of the fitted vectors and the codebooks that encode further ones."""

    codes: np.ndarray  # (n, n_levels) int64 in 0 .. codebook_size - 1
    codebooks: np.ndarray  # (n_levels, codebook_size, dim) float32


def fit_residual_kmeans(
    vectors: np.ndarray,
    n_levels: int = 3,
    codebook_size: int = 256,
    n_iterations: int = 25,
    seed: int = 0,
    progress: bool = False,
) -> Quantization:
    """Cluster the vectors, then the residuals, level by level (k-means++ start, Lloyd's iterations).

    vectors: (n, dim) float, finite, n >= codebook_size. Greedy: no level looks ahead to the next, which costs a few
    per cent of distortion against a joint search and keeps prefixes meaningful.
    Raises ValueError for vectors that are not finite or not 2-D, n_levels < 1, codebook_size < 2, or fewer vectors
    than codewords.

    >>> vectors = np.array([[0.0], [1.0], [10.0], [11.0]])
    >>> result = fit_residual_kmeans(vectors, n_levels=2, codebook_size=2)
    >>> decode(result.codes, result.codebooks).ravel()  # two centres, then their two offsets: exact
    array([ 0.,  1., 10., 11.], dtype=float32)
    """
    vectors = _checked(vectors, n_levels, codebook_size)
    residual = vectors.copy()
    codebooks = np.empty((n_levels, codebook_size, vectors.shape[1]), dtype=np.float32)
    for level in tqdm(range(n_levels), desc="residual k-means", unit="level", disable=not progress):
        kmeans = KMeans(codebook_size, n_init=1, max_iter=n_iterations, random_state=seed + level)
        with warnings.catch_warnings():
            # a residual may hold fewer distinct vectors than codewords; the spare ones then stay unused, and
            # `codebooks.utilization` shows it
            warnings.simplefilter("ignore", ConvergenceWarning)
            codebooks[level] = kmeans.fit(residual).cluster_centers_
        residual -= codebooks[level][nearest(residual, codebooks[level])]
    return Quantization(encode(vectors, codebooks), codebooks)


def encode(vectors: np.ndarray, codebooks: np.ndarray) -> np.ndarray:
    """Codes of any vectors under fixed codebooks, greedily level by level: (n, dim) -> (n, n_levels) int64.

    codebooks: (n_levels, codebook_size, dim). This is how an item that arrives later gets its codes.
    Raises ValueError if the dimensions differ or a vector is not finite.

    >>> encode(np.array([[9.0]]), np.array([[[0.0], [10.0]], [[-1.0], [1.0]]]))
    array([[1, 0]])
    """
    vectors = _finite(vectors)
    if vectors.shape[1] != codebooks.shape[2]:
        raise ValueError(f"vectors have {vectors.shape[1]} dimensions, the codebooks {codebooks.shape[2]}")
    residual = vectors.copy()
    codes = np.empty((len(vectors), len(codebooks)), dtype=np.int64)
    for level, codebook in enumerate(codebooks):
        codes[:, level] = nearest(residual, codebook)
        residual -= codebook[codes[:, level]]
    return codes


def decode(codes: np.ndarray, codebooks: np.ndarray) -> np.ndarray:
    """The vectors that codes stand for, the sum of their codewords: (n, m <= n_levels) -> (n, dim).

    Fewer columns than levels give the coarser vector of a prefix.

    >>> decode(np.array([[1, 0]]), np.array([[[0.0], [10.0]], [[-1.0], [1.0]]]))
    array([[9.]])
    """
    levels = range(codes.shape[1])
    return np.sum([codebooks[level][codes[:, level]] for level in levels], axis=0)


def suggest_codebook_size(n_items: int) -> int:
    """The smallest power of two K with K^2 >= 2 n_items, between 4 and 1024.

    The first two levels then have at least two prefixes per item: room enough for few collisions, and prefixes that
    still hold several items at level 0.

    >>> [suggest_codebook_size(n) for n in (100, 2_000, 12_101, 100_000)]
    [16, 64, 256, 512]
    """
    return min(1024, max(4, 2 ** int(np.ceil(np.log2(2 * max(n_items, 1)) / 2))))


def nearest(vectors: np.ndarray, codebook: np.ndarray, block: int = 8192) -> np.ndarray:
    """Index of the closest codeword by Euclidean distance, the lowest index on a tie: (n, dim) -> (n,) int64.

    Works through `block` vectors at a time, so memory stays at block x codebook_size floats.

    >>> nearest(np.array([[0.4], [2.0]]), np.array([[0.0], [1.0]]))
    array([0, 1])
    """
    origin = codebook.mean(axis=0)  # distances do not change, and far from the origin float32 keeps its digits
    codebook = codebook - origin
    half_norms = 0.5 * np.sum(codebook**2, axis=1)  # |v - c|^2 / 2 = |v|^2 / 2 - v.c + |c|^2 / 2; the first is constant
    starts = range(0, len(vectors), block)
    return np.concatenate(
        [np.argmin(half_norms - (vectors[start : start + block] - origin) @ codebook.T, axis=1) for start in starts]
        or [np.empty(0, dtype=np.int64)]
    )


def _finite(vectors: np.ndarray) -> np.ndarray:
    vectors = np.asarray(vectors, dtype=np.float32)
    if vectors.ndim != 2:
        raise ValueError(f"vectors must be (n, dim), got shape {vectors.shape}")
    finite = np.isfinite(vectors).all(axis=1)
    if not finite.all():
        row = int(np.flatnonzero(~finite)[0])
        raise ValueError(f"{np.sum(~finite)} of {len(vectors)} vectors hold NaN or infinity, the first is row {row}")
    return vectors


def _checked(vectors: np.ndarray, n_levels: int, codebook_size: int) -> np.ndarray:
    vectors = _finite(vectors)
    if n_levels < 1 or codebook_size < 2:
        raise ValueError(f"expected n_levels >= 1 and codebook_size >= 2, got {n_levels} and {codebook_size}")
    if len(vectors) < codebook_size:
        raise ValueError(
            f"{len(vectors)} vectors cannot fill {codebook_size} codewords: "
            f"choose a codebook_size of at most {len(vectors)}"
        )
    return vectors
