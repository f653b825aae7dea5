"""Residual k-means: vectors to short tuples of codes, coarse to fine.

A quantizer has `codes` (n, n_levels) int64 of the fitted vectors, `sizes` (codes per level), `encode(vectors)` for
other vectors and `decode(codes)` for their reconstruction. Equal vectors get equal codes; `assignment` separates such
items. `rqvae` has the other quantizer.

k-means runs in faiss, imported when first needed. The same seed gives the same result on one machine with the same
number of threads. On Linux, faiss and torch each bring their own OpenMP; they work together in either import order.
"""

from dataclasses import dataclass

import numpy as np
from tqdm.auto import tqdm

MIN_ITEMS = 2  # with different vectors: equal ones leave nothing to tell apart
_BLOCK = 8192  # vectors per step
_SAMPLE = 200_000  # of more vectors, the codebooks are fitted to a random sample of this size
_START_DIMENSIONS = 128  # principal components in which k-means chooses its start
_SETTLED = 3e-4  # k-means stops when an iteration lowers its objective by less than this share


@dataclass(frozen=True, eq=False)
class ResidualQuantizer:
    """A codebook per level; a vector is approximated by the sum of one codeword of each.

    Attributes
    ----------
    codes : (n, n_levels) int64 array in 0 .. codebook_size - 1
    codebooks : (n_levels, codebook_size, dim) float32 array
    """

    codes: np.ndarray
    codebooks: np.ndarray

    @property
    def sizes(self) -> tuple[int, ...]:
        """Number of codes of each level."""
        return (self.codebooks.shape[1],) * len(self.codebooks)

    def encode(self, vectors: np.ndarray, beam_width: int = 1) -> np.ndarray:
        """`encode` with these codebooks."""
        return encode(vectors, self.codebooks, beam_width)

    def decode(self, codes: np.ndarray) -> np.ndarray:
        """`decode` with these codebooks."""
        return decode(codes, self.codebooks)

    def last_level_costs(self, vectors: np.ndarray, codes: np.ndarray) -> np.ndarray:
        """Squared distance of each vector to the prefix of its codes plus each codeword of the last level.

        (m, dim), (m, n_levels - 1 or more) -> (m, codebook_size) float32.

        >>> quantizer = ResidualQuantizer(np.zeros((0, 2), np.int64), np.array([[[0.0], [10.0]], [[-1.0], [1.0]]]))
        >>> quantizer.last_level_costs(np.array([[9.5]]), np.array([[1]]))  # the residual is -0.5
        array([[0.25, 2.25]], dtype=float32)
        """
        vectors, last = finite_vectors(vectors), self.codebooks[-1].astype(np.float32)
        origin = last.mean(axis=0)
        costs = np.empty((len(vectors), len(last)), dtype=np.float32)
        for rows in _blocks(len(vectors)):
            left = vectors[rows] - decode(codes[rows, : len(self.codebooks) - 1], self.codebooks) - origin
            costs[rows] = np.sum(left**2, axis=1, keepdims=True) - 2 * left @ (last - origin).T
            costs[rows] += np.sum((last - origin) ** 2, axis=1)
        return np.maximum(costs, 0, out=costs)


def fit_residual_kmeans(
    vectors: np.ndarray,
    n_levels: int = 3,
    codebook_size: int = 256,
    n_iterations: int = 25,
    seed: int = 0,
    progress: bool = False,
) -> ResidualQuantizer:
    """Cluster the vectors, then their residuals, level by level.

    Each level takes the nearest codeword without looking ahead, so prefixes are plain clusters. A level with fewer
    distinct residuals than codewords repeats codewords; no vector gets the copies. Of more than 200,000 vectors, a
    random sample of that size is clustered.

    Parameters
    ----------
    vectors : (n, dim) float array
        Finite, at least `MIN_ITEMS` distinct ones.
    n_iterations : int
        At most, per level.

    Returns
    -------
    ResidualQuantizer

    Raises
    ------
    ValueError
        If the vectors are not finite, not 2-D or all equal, or a setting is too small.

    References
    ----------
    Juang & Gray (1982); SoundStream, Zeghidour et al. (2021).

    Examples
    --------
    >>> vectors = np.array([[0.0], [1.0], [10.0], [11.0]])
    >>> quantizer = fit_residual_kmeans(vectors, n_levels=2, codebook_size=2)
    >>> quantizer.decode(quantizer.codes).ravel()  # two centres, then their two offsets: exact
    array([ 0.,  1., 10., 11.], dtype=float32)
    """
    if n_levels < 1 or codebook_size < 2 or n_iterations < 1:
        settings = f"{n_levels}, {codebook_size} and {n_iterations}"
        raise ValueError(f"expected n_levels >= 1, codebook_size >= 2 and n_iterations >= 1, got {settings}")
    rng = np.random.default_rng(seed)
    vectors = sample = finite_vectors(vectors)
    if len(vectors) > _SAMPLE:
        sample = vectors[np.sort(rng.choice(len(vectors), _SAMPLE, replace=False))]
    check_distinct(sample)
    left = sample.copy()
    codebooks = np.empty((n_levels, codebook_size, vectors.shape[1]), dtype=np.float32)
    for level in tqdm(range(n_levels), desc="residual k-means", unit="level", disable=not progress):
        codebooks[level] = kmeans(left, codebook_size, n_iterations, rng)
        for rows in _blocks(len(left)):
            left[rows] -= codebooks[level][nearest(left[rows], codebooks[level])]
    return ResidualQuantizer(encode(vectors, codebooks), codebooks)


def encode(vectors: np.ndarray, codebooks: np.ndarray, beam_width: int = 1) -> np.ndarray:
    """Codes of vectors under fixed codebooks: (n, dim), (n_levels, codebook_size, dim) -> (n, n_levels) int64.

    Parameters
    ----------
    beam_width : int
        Partial sums kept per vector. 1 is greedy, as the fitted codes are. On Amazon Beauty, 8 lowers the distortion
        by 0.7% in five times the time. Use one width for a whole catalogue.

    Raises
    ------
    ValueError
        If the dimensions differ, a vector is not finite, or beam_width < 1.

    Examples
    --------
    >>> encode(np.array([[9.0]]), np.array([[[0.0], [10.0]], [[-1.0], [1.0]]]))
    array([[1, 0]])
    """
    vectors, codebooks = finite_vectors(vectors), np.asarray(codebooks, dtype=np.float32)
    if vectors.shape[1] != codebooks.shape[2]:
        raise ValueError(f"vectors have {vectors.shape[1]} dimensions, the codebooks {codebooks.shape[2]}")
    if beam_width < 1:
        raise ValueError(f"expected beam_width >= 1, got {beam_width}")
    codes = np.empty((len(vectors), len(codebooks)), dtype=np.int64)
    for rows in _blocks(len(vectors), min(beam_width, 16)):
        if beam_width > 1:
            codes[rows] = _beam_search(vectors[rows], codebooks, beam_width)
            continue
        left = vectors[rows].copy()
        for level, codebook in enumerate(codebooks):
            codes[rows, level] = nearest(left, codebook)
            left -= codebook[codes[rows, level]]
    return codes


def _beam_search(vectors: np.ndarray, codebooks: np.ndarray, beam_width: int) -> np.ndarray:
    """|v - sum of c|^2 without |v|^2, from inner products alone: a beam never needs its residual."""
    codebooks = codebooks.copy()
    origin = codebooks[0].mean(axis=0)  # see `nearest`
    vectors, codebooks[0] = vectors - origin, codebooks[0] - origin
    codes = np.zeros((len(vectors), 1, 0), dtype=np.int64)  # (B, beams, levels so far)
    costs = np.zeros((len(vectors), 1), dtype=np.float32)
    for level, codebook in enumerate(codebooks):
        alone = np.sum(codebook**2, axis=1) - 2 * vectors @ codebook.T  # (B, K)
        longer = costs[:, :, None] + alone[:, None]  # (B, beams, K)
        for earlier in range(level):
            longer += (2 * codebooks[earlier] @ codebook.T)[codes[:, :, earlier]]
        longer = longer.reshape(len(vectors), -1)
        width = min(beam_width, longer.shape[1])
        kept = np.sort(np.argpartition(longer, width - 1, axis=1)[:, :width], axis=1)
        costs = np.take_along_axis(longer, kept, axis=1)
        beam, code = np.divmod(kept, len(codebook))
        codes = np.dstack([np.take_along_axis(codes, beam[:, :, None], axis=1), code])
    codes = codes[np.arange(len(codes)), costs.argmin(axis=1)]
    return np.column_stack([_first_equal(codebook)[codes[:, level]] for level, codebook in enumerate(codebooks)])


def decode(codes: np.ndarray, codebooks: np.ndarray) -> np.ndarray:
    """Sum of the codewords: (n, m <= n_levels) -> (n, dim) float32; fewer columns give the vector of a prefix.

    Raises
    ------
    ValueError
        If a code is not in its codebook.

    Examples
    --------
    >>> decode(np.array([[1, 0]]), np.array([[[0.0], [10.0]], [[-1.0], [1.0]]]))
    array([[9.]], dtype=float32)
    """
    codes, codebooks = np.asarray(codes), np.asarray(codebooks, dtype=np.float32)
    n_levels, size, dim = codebooks.shape
    if codes.ndim != 2 or codes.shape[1] > n_levels or not np.issubdtype(codes.dtype, np.integer):
        raise ValueError(f"codes must be (n, at most {n_levels}) integers, got {codes.shape} {codes.dtype}")
    vectors = np.zeros((len(codes), dim), dtype=np.float32)
    for level, column in enumerate(codes.T):
        if column.size and not (column.min() >= 0 and column.max() < size):
            raise ValueError(
                f"codes of level {level} run from {column.min()} to {column.max()}, expected 0 to {size - 1}"
            )
        vectors += codebooks[level][column]
    return vectors


def suggest_codebook_size(n_items: int) -> int:
    """The smallest power of two K with K^2 >= 2 n_items, between 4 and 1024.

    The first two levels then have about two prefixes per item: few collisions, and level 0 still groups items.

    >>> [suggest_codebook_size(n) for n in (3, 100, 2_000, 12_101, 100_000)]
    [4, 16, 64, 256, 512]
    """
    return min(1024, max(4, 2 ** int(np.ceil(np.log2(2 * max(n_items, 1)) / 2))))


def nearest(vectors: np.ndarray, codebook: np.ndarray) -> np.ndarray:
    """Index of the closest codeword by Euclidean distance, the lowest on a tie: (n, dim) -> (n,) int64.

    >>> nearest(np.array([[0.4], [2.0]]), np.array([[0.0], [1.0]]))
    array([0, 1])
    """
    origin = _round_origin(codebook)
    centred = codebook - origin
    half_norms = 0.5 * np.sum(centred**2, axis=1)  # |v - c|^2 / 2 = |v|^2 / 2 - v.c + |c|^2 / 2; the first is constant
    found = np.empty(len(vectors), dtype=np.int64)
    for rows in _blocks(len(vectors)):
        found[rows] = np.argmin(half_norms - (vectors[rows] - origin) @ centred.T, axis=1)
    return _first_equal(codebook)[found]


def _round_origin(codebook: np.ndarray) -> np.ndarray:
    """About the mean: subtracting it keeps the distances, and the digits that float32 loses far from zero.

    Rounded to a power of two of the codebook's spread, so that ties between round numbers remain ties.
    """
    mean = codebook.mean(axis=0)
    spread = float(np.abs(codebook - mean).max())
    step = codebook.dtype.type(2.0 ** np.floor(np.log2(spread))) if spread > 1e-30 else 0
    return np.round(mean / step) * step if step else mean


# --- k-means and checks ---


def kmeans(points: np.ndarray, n_clusters: int, n_iterations: int, rng: np.random.Generator) -> np.ndarray:
    """(n, dim) float32 points -> (n_clusters, dim) float32 centres; each is used if there are enough distinct points.

    Starts with greedy k-means++ in few dimensions, which finds rare clusters: on text embeddings the distortion is 3
    to 7% lower than from random points, as in faiss. With no more distinct points than clusters, each is a centre,
    and they repeat in turn.
    """
    from sklearn.cluster import kmeans_plusplus  # slow to import

    first, _, counts = distinct_rows(points)
    if len(first) <= n_clusters:
        return points[np.resize(first, n_clusters)]
    origin = points.mean(axis=0)
    points = points[first] - origin
    weights = None if len(first) == counts.sum() else counts.astype(np.float32)
    axes = points  # centred, so that the leading eigenvectors are the principal axes
    if points.shape[1] > _START_DIMENSIONS:
        axes = points @ np.linalg.eigh(points.T @ points)[1][:, -_START_DIMENSIONS:]
    seed = int(rng.integers(2**31))
    centres = points[kmeans_plusplus(axes, n_clusters, sample_weight=weights, random_state=seed)[1]]
    for _ in range(5):
        centres = _lloyd(points, weights, centres, n_iterations, rng)
        codes = nearest(points, centres)
        unused = np.setdiff1d(np.arange(n_clusters), codes)
        if not len(unused):
            break
        far = np.einsum("nd,nd->n", points - centres[codes], points - centres[codes]) * counts
        centres[unused], n_iterations = points[np.argsort(-far, kind="stable")[: len(unused)]], 2
    return centres + origin


def _lloyd(points, weights, centres, n_iterations, rng) -> np.ndarray:
    import faiss

    kmeans = faiss.Kmeans(
        points.shape[1],
        len(centres),
        niter=n_iterations,
        seed=int(rng.integers(2**31)),
        early_stop_threshold=_SETTLED,
        min_points_per_centroid=1,  # no warning on stderr about few points
        max_points_per_centroid=len(points),  # no sampling: `fit_residual_kmeans` does that
    )
    kmeans.train(np.ascontiguousarray(points), weights=weights, init_centroids=np.ascontiguousarray(centres))
    return np.asarray(kmeans.centroids)


def distinct_rows(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The first of each set of equal rows, in order; for each row, the first that equals it; how often each occurs."""
    rows = np.ascontiguousarray(rows) + 0.0  # -0.0 equals 0.0, but its bytes differ
    keys = rows.view(np.dtype((np.void, rows.itemsize * rows.shape[1]))).ravel()
    _, first, inverse, counts = np.unique(keys, return_index=True, return_inverse=True, return_counts=True)
    order = np.argsort(first)
    return first[order], first[inverse], counts[order]


def _first_equal(codebook: np.ndarray) -> np.ndarray:
    """Maps each codeword to the first that equals it; equal codewords may differ in the last digit of a product."""
    return distinct_rows(codebook)[1]


def _blocks(n: int, divisor: int = 1) -> list[slice]:
    size = _BLOCK // divisor
    return [slice(start, start + size) for start in range(0, n, size)]


def finite_vectors(vectors: np.ndarray) -> np.ndarray:
    """The vectors as (n, dim) float32. Raises ValueError for another shape, NaN, infinity, or a length over 1e15."""
    with np.errstate(over="ignore"):
        vectors = np.asarray(vectors, dtype=np.float32)
    if vectors.ndim != 2 or not vectors.shape[1]:
        raise ValueError(f"vectors must be (n, dim >= 1), got shape {vectors.shape}")
    with np.errstate(over="ignore", invalid="ignore"):
        bad = np.flatnonzero(~(np.einsum("nd,nd->n", vectors, vectors) < 1e30))  # NaN compares as false
    if len(bad):
        raise ValueError(
            f"{len(bad)} of {len(vectors)} vectors hold NaN or infinity or are longer than 1e15, "
            f"the first is row {bad[0]}"
        )
    return vectors


def check_distinct(vectors: np.ndarray) -> None:
    """Raise ValueError if fewer than `MIN_ITEMS` of the (n, dim) vectors differ.

    >>> check_distinct(np.ones((3, 4)))
    Traceback (most recent call last):
    ValueError: 3 vectors, but fewer than 2 different ones: semantic IDs need at least 2 items with different texts
    """
    if not len(vectors) or (vectors == vectors[0]).all():
        raise ValueError(
            f"{len(vectors)} vectors, but fewer than {MIN_ITEMS} different ones: "
            f"semantic IDs need at least {MIN_ITEMS} items with different texts"
        )
