"""Quantizers: vectors in, short tuples of codes out, by one small interface.

| made by | codes | what it is for |
|---|---|---|
| `fit_residual_kmeans` | coarse to fine, shared codebooks | semantic IDs; the default |
| `fit_product_quantization` | one per subspace, all equally coarse | models that predict all codes at once (RPG) |

Each gives an object with `codes` (n, n_levels) int64 of the fitted vectors, `sizes` (codes per level),
`encode(vectors)` for vectors that arrive later and `decode(codes)` for the vectors that codes stand for. Equal vectors
get equal codes, however many there are (but for random codes, and items of two categories): to tell such items apart
is the work of `semantic_ids`.

A catalogue needs `MIN_ITEMS` items with different vectors. With fewer of them than codewords, codewords repeat: each
vector is then exact at the first level, and `codebooks.utilization` shows how many codewords are in use.

k-means runs in faiss, loaded when first needed. One seed gives one result on one machine and number of threads. On
Linux faiss and torch each bring their own OpenMP and live together in either order of import.
"""

from dataclasses import dataclass

import numpy as np
from tqdm.auto import tqdm

MIN_ITEMS = 2  # with different vectors: equal ones leave nothing to tell apart
_BLOCK = 8192  # vectors worked on at a time
_START_DIMENSIONS = 128  # principal components in which k-means chooses where to start
_SETTLED = 3e-4  # k-means stops when an iteration lowers its objective by less than this share


@dataclass(frozen=True, eq=False)
class ResidualQuantizer:
    """A codebook per level; a vector is about the sum of one codeword of each.

    `codes` (n, n_levels) int64 in 0 .. codebook_size - 1; `codebooks` (n_levels, codebook_size, dim) float32.
    """

    codes: np.ndarray
    codebooks: np.ndarray

    @property
    def sizes(self) -> tuple[int, ...]:
        """Number of codes of each level."""
        return (self.codebooks.shape[1],) * len(self.codebooks)

    def encode(self, vectors: np.ndarray, beam_width: int = 1) -> np.ndarray:
        """The function `encode` with these codebooks."""
        return encode(vectors, self.codebooks, beam_width)

    def decode(self, codes: np.ndarray) -> np.ndarray:
        """The function `decode` with these codebooks."""
        return decode(codes, self.codebooks)

    def last_level_costs(self, vectors: np.ndarray, codes: np.ndarray | None = None) -> np.ndarray:
        """What each codeword of the last level would cost: (m, dim) -> (m, codebook_size) float32, >= 0.

        The squared distance from what the levels before the last leave over of a vector to each last codeword, which
        is the distortion of the vector with that last code. codes: (m, n_levels - 1 or more), whose prefixes count;
        by default `encode(vectors)`.

        >>> quantizer = ResidualQuantizer(np.zeros((0, 2), np.int64), np.array([[[0.0], [10.0]], [[-1.0], [1.0]]]))
        >>> quantizer.last_level_costs(np.array([[9.5]]))  # -0.5 is left: .25 to -1, 2.25 to 1
        array([[0.25, 2.25]], dtype=float32)
        """
        vectors = finite_vectors(vectors)
        codes = self.encode(vectors) if codes is None else np.asarray(codes)
        if codes.ndim != 2 or len(codes) != len(vectors) or codes.shape[1] < len(self.codebooks) - 1:
            raise ValueError(f"codes must be ({len(vectors)}, {len(self.codebooks) - 1} or more), got {codes.shape}")
        last = self.codebooks[-1].astype(np.float32)
        origin = last.mean(axis=0)
        costs = np.empty((len(vectors), len(last)), dtype=np.float32)
        for rows in _blocks(len(vectors)):
            left = vectors[rows] - self.decode(codes[rows, : len(self.codebooks) - 1]) - origin
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
    max_training_vectors: int = 200_000,
) -> ResidualQuantizer:
    """Cluster the vectors, then what is left over, level by level (Juang & Gray 1982; SoundStream, Zeghidour 2021).

    vectors: (n, dim) float, as they come or of length 1; at least `MIN_ITEMS` distinct ones. n_iterations: at most,
    per level. The codebooks are fitted to a random sample of max_training_vectors where there are more. Greedy: no
    level looks ahead to the next, which keeps prefixes meaningful; `encode` with a beam looks ahead.
    A level may have fewer distinct residuals than codewords, always so in a tiny catalogue; its last codewords then
    repeat its first, no vector gets them, and `codebooks.utilization` shows it.
    Raises ValueError for vectors that are not finite, not 2-D or all the same, n_levels < 1, codebook_size < 2, or
    n_iterations < 1.

    >>> vectors = np.array([[0.0], [1.0], [10.0], [11.0]])
    >>> quantizer = fit_residual_kmeans(vectors, n_levels=2, codebook_size=2)
    >>> quantizer.decode(quantizer.codes).ravel()  # two centres, then their two offsets: exact
    array([ 0.,  1., 10., 11.], dtype=float32)
    """
    rng = np.random.default_rng(seed)
    vectors, sample = _checked(vectors, n_levels, codebook_size, n_iterations, max_training_vectors, rng)
    left = sample.copy()
    codebooks = np.empty((n_levels, codebook_size, vectors.shape[1]), dtype=np.float32)
    for level in tqdm(range(n_levels), desc="residual k-means", unit="level", disable=not progress):
        codebooks[level] = kmeans(left, codebook_size, n_iterations, rng)
        for rows in _blocks(len(left)):
            left[rows] -= codebooks[level][nearest(left[rows], codebooks[level])]
    return ResidualQuantizer(encode(vectors, codebooks), codebooks)


def encode(vectors: np.ndarray, codebooks: np.ndarray, beam_width: int = 1) -> np.ndarray:
    """Codes of any vectors under fixed codebooks: (n, dim) -> (n, n_levels) int64.

    codebooks: (n_levels, codebook_size, dim). beam_width 1 is greedy, level by level, and what the fitted codes are.
    More keeps so many partial sums of codewords per vector (as faiss's additive quantizers do): at width 8 the
    distortion on Amazon's Beauty falls by .7%, in five times the time. Codes then fit together rather than prefixes, so
    use one width for a whole catalogue.
    Raises ValueError if the dimensions differ, a vector is not finite, or beam_width < 1.

    >>> encode(np.array([[9.0]]), np.array([[[0.0], [10.0]], [[-1.0], [1.0]]]))
    array([[1, 0]])
    """
    vectors, codebooks = finite_vectors(vectors), np.asarray(codebooks, dtype=np.float32)
    if vectors.shape[1] != codebooks.shape[2]:
        raise ValueError(f"vectors have {vectors.shape[1]} dimensions, the codebooks {codebooks.shape[2]}")
    if beam_width < 1:
        raise ValueError(f"expected beam_width >= 1, got {beam_width}")
    codes = np.empty((len(vectors), len(codebooks)), dtype=np.int64)
    search = _greedy if beam_width == 1 else _beam_search
    for rows in _blocks(len(vectors), _BLOCK // min(beam_width, 16)):
        codes[rows] = search(vectors[rows], codebooks, beam_width)
    return codes


def _greedy(vectors: np.ndarray, codebooks: np.ndarray, _) -> np.ndarray:
    left = vectors.copy()
    codes = np.empty((len(vectors), len(codebooks)), dtype=np.int64)
    for level, codebook in enumerate(codebooks):
        codes[:, level] = nearest(left, codebook)
        left -= codebook[codes[:, level]]
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
    """The vectors that codes stand for, the sum of their codewords: (n, m <= n_levels) -> (n, dim) float32.

    Fewer columns than levels give the coarser vector of a prefix. Raises ValueError for codes outside the codebooks.

    >>> decode(np.array([[1, 0]]), np.array([[[0.0], [10.0]], [[-1.0], [1.0]]]))
    array([[9.]], dtype=float32)
    """
    codebooks = np.asarray(codebooks, dtype=np.float32)
    codes = checked_codes(codes, codebooks.shape[:1] + codebooks.shape[1:2] * len(codebooks))
    vectors = np.zeros((len(codes), codebooks.shape[2]), dtype=np.float32)
    for level in range(codes.shape[1]):
        vectors += codebooks[level][codes[:, level]]
    return vectors


def suggest_codebook_size(n_items: int) -> int:
    """The smallest power of two K with K^2 >= 2 n_items, between 4 and 1024.

    The first two levels then have at least two prefixes per item: room enough for few collisions, and prefixes that
    still hold several items at level 0. Of a tiny catalogue some codewords stay unused.

    >>> [suggest_codebook_size(n) for n in (3, 100, 2_000, 12_101, 100_000)]
    [4, 16, 64, 256, 512]
    """
    return min(1024, max(4, 2 ** int(np.ceil(np.log2(2 * max(n_items, 1)) / 2))))


def nearest(vectors: np.ndarray, codebook: np.ndarray, block: int = _BLOCK) -> np.ndarray:
    """Index of the closest codeword by Euclidean distance, the lowest index on a tie: (n, dim) -> (n,) int64.

    Works through `block` vectors at a time, so memory stays at block x codebook_size floats.

    >>> nearest(np.array([[0.4], [2.0]]), np.array([[0.0], [1.0]]))
    array([0, 1])
    """
    origin = _round_origin(codebook)
    centred = codebook - origin
    half_norms = 0.5 * np.sum(centred**2, axis=1)  # |v - c|^2 / 2 = |v|^2 / 2 - v.c + |c|^2 / 2; the first is constant
    found = np.empty(len(vectors), dtype=np.int64)
    for rows in _blocks(len(vectors), block):
        found[rows] = np.argmin(half_norms - (vectors[rows] - origin) @ centred.T, axis=1)
    return _first_equal(codebook)[found]


def _round_origin(codebook: np.ndarray) -> np.ndarray:
    """About the mean; taken off, distances do not change, and far from zero float32 keeps its digits.

    Rounded to a power of two of the codebook's spread, so that the subtraction is exact where it can be and a tie in
    round numbers remains a tie.
    """
    mean = codebook.mean(axis=0)
    spread = float(np.abs(codebook - mean).max())
    step = codebook.dtype.type(2.0 ** np.floor(np.log2(spread))) if spread > 1e-30 else 0
    return np.round(mean / step) * step if step else mean


# --- product quantization ---


@dataclass(frozen=True, eq=False)
class ProductQuantizer:
    """A codebook per slice of the (rotated) vector; no position is coarser than another.

    `codes` (n, n_positions) int64; `codebooks` (n_positions, codebook_size, dim / n_positions) float32; `rotation`
    (dim, dim) float32, orthogonal: a vector is multiplied by it before it is cut into slices; None leaves it as it is.
    """

    codes: np.ndarray
    codebooks: np.ndarray
    rotation: np.ndarray | None

    @property
    def sizes(self) -> tuple[int, ...]:
        """Number of codes of each position."""
        return (self.codebooks.shape[1],) * len(self.codebooks)

    def encode(self, vectors: np.ndarray) -> np.ndarray:
        """(n, dim) -> (n, n_positions) int64. Raises ValueError if dim differs or a vector is not finite."""
        vectors = finite_vectors(vectors)
        n_positions, _, width = self.codebooks.shape
        if vectors.shape[1] != n_positions * width:
            raise ValueError(f"vectors have {vectors.shape[1]} dimensions, the codebooks {n_positions * width}")
        codes = np.empty((len(vectors), n_positions), dtype=np.int64)
        for rows in _blocks(len(vectors)):
            turned = vectors[rows] if self.rotation is None else vectors[rows] @ self.rotation
            for position, codebook in enumerate(self.codebooks):
                codes[rows, position] = nearest(turned[:, position * width : (position + 1) * width], codebook)
        return codes

    def decode(self, codes: np.ndarray) -> np.ndarray:
        """(n, n_positions) -> (n, dim) float32; all positions are needed, since a prefix is a slice, not a sketch."""
        codes = checked_codes(codes, (len(self.codebooks), *self.sizes))
        if codes.shape[1] != len(self.codebooks):
            raise ValueError(f"codes have {codes.shape[1]} positions, expected {len(self.codebooks)}")
        vectors = self.codebooks[np.arange(len(self.codebooks)), codes].reshape(len(codes), -1)
        return vectors if self.rotation is None else vectors @ self.rotation.T


def fit_product_quantization(
    vectors: np.ndarray,
    n_positions: int = 32,
    codebook_size: int = 256,
    rotate: bool = True,
    n_iterations: int = 25,
    n_rotations: int = 10,
    seed: int = 0,
    progress: bool = False,
    max_training_vectors: int = 200_000,
) -> ProductQuantizer:
    """Cut vectors into slices and cluster each on its own (Jegou et al. 2011), as RPG does (Hou et al. 2025).

    rotate: first turn the space so that the slices share the variance (OPQ, Ge et al. 2013), in n_rotations rounds of
    faiss, which works with the largest power of two up to codebook_size and the number of vectors. A slice with fewer
    distinct parts than codewords leaves codewords unused. For the rest see `fit_residual_kmeans`; also raises
    ValueError if n_positions does not divide dim.

    >>> vectors = np.array([[0.0, 5.0], [1.0, 5.0], [0.0, 7.0]])
    >>> quantizer = fit_product_quantization(vectors, n_positions=2, codebook_size=2, rotate=False)
    >>> quantizer.decode(quantizer.codes).tolist()
    [[0.0, 5.0], [1.0, 5.0], [0.0, 7.0]]
    """
    rng = np.random.default_rng(seed)
    vectors, sample = _checked(vectors, n_positions, codebook_size, n_iterations, max_training_vectors, rng)
    if vectors.shape[1] % n_positions:
        raise ValueError(f"n_positions must divide the {vectors.shape[1]} dimensions, got {n_positions}")
    rotation = _rotation(sample, n_positions, codebook_size, n_rotations, rng) if rotate else None
    sample = sample if rotation is None else sample @ rotation
    slices = tqdm(np.split(sample, n_positions, axis=1), "product quantization", unit="slice", disable=not progress)
    codebooks = np.stack([kmeans(np.ascontiguousarray(part), codebook_size, n_iterations, rng) for part in slices])
    unfitted = ProductQuantizer(np.empty((0, n_positions), dtype=np.int64), codebooks, rotation)
    return ProductQuantizer(unfitted.encode(vectors), codebooks, rotation)


def _rotation(sample, n_positions, codebook_size, n_rotations, rng) -> np.ndarray:
    import faiss

    dim = sample.shape[1]
    # of fewer vectors than dimensions OPQ writes past its memory (github.com/facebookresearch/faiss/issues/2637)
    sample = np.tile(sample, (-(-dim // len(sample)), 1))
    pq = faiss.ProductQuantizer(dim, n_positions, int(np.log2(min(codebook_size, len(sample)))))
    pq.cp.seed, pq.cp.min_points_per_centroid = int(rng.integers(2**31)), 1
    opq = faiss.OPQMatrix(dim, n_positions, dim)
    opq.niter, opq.pq = n_rotations, pq
    opq.train(np.ascontiguousarray(sample))
    return np.ascontiguousarray(faiss.vector_to_array(opq.A).reshape(dim, dim).T)


# --- k-means, and what they all need ---


def kmeans(points: np.ndarray, n_clusters: int, n_iterations: int, rng: np.random.Generator) -> np.ndarray:
    """(n, dim) float32 -> (n_clusters, dim) float32, each centre used while there are distinct points enough.

    Starts by greedy k-means++, in few dimensions: on text embeddings that is worth 3 to 7% of distortion over random
    points, faiss's own start, because rare clusters are found. Of no more distinct points than clusters each is a
    centre, repeated in turn to fill up.
    """
    first, _, counts = _distinct(points)
    if len(first) <= n_clusters:
        return points[np.resize(first, n_clusters)]
    origin = points.mean(axis=0)
    points = points[first] - origin
    weights = None if len(first) == counts.sum() else counts.astype(np.float32)
    centres = points[_start(points, weights, n_clusters, rng)]
    for _ in range(5):
        centres = _lloyd(points, weights, centres, n_iterations, rng)
        codes = nearest(points, centres)
        unused = np.setdiff1d(np.arange(n_clusters), codes)
        if not len(unused):
            break
        far = np.einsum("nd,nd->n", points - centres[codes], points - centres[codes]) * counts
        centres[unused], n_iterations = points[np.argsort(-far, kind="stable")[: len(unused)]], 2
    return centres + origin


def _start(points: np.ndarray, weights: np.ndarray | None, n_clusters: int, rng: np.random.Generator) -> np.ndarray:
    """Rows to start from. points: centred, so that the leading eigenvectors are the principal axes."""
    from sklearn.cluster import kmeans_plusplus

    if points.shape[1] > _START_DIMENSIONS:
        points = points @ np.linalg.eigh(points.T @ points)[1][:, -_START_DIMENSIONS:]
    seed = int(rng.integers(2**31))
    return kmeans_plusplus(points, n_clusters, sample_weight=weights, random_state=seed)[1]


def _lloyd(points, weights, centres, n_iterations, rng) -> np.ndarray:
    import faiss

    kmeans = faiss.Kmeans(
        points.shape[1],
        len(centres),
        niter=n_iterations,
        seed=int(rng.integers(2**31)),
        early_stop_threshold=_SETTLED,
        min_points_per_centroid=1,  # few points are no reason for a warning on stderr
        max_points_per_centroid=len(points),  # nor many for a sample: ours was taken before
    )
    kmeans.train(np.ascontiguousarray(points), weights=weights, init_centroids=np.ascontiguousarray(centres))
    return kmeans.centroids


def _distinct(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The first of each set of equal rows, in order; for each row, the first that equals it; how often each occurs."""
    rows = np.ascontiguousarray(rows) + 0.0  # -0.0 equals 0.0, its bytes do not
    keys = rows.view(np.dtype((np.void, rows.itemsize * rows.shape[1]))).ravel()
    _, first, inverse, counts = np.unique(keys, return_index=True, return_inverse=True, return_counts=True)
    order = np.argsort(first)
    return first[order], first[inverse], counts[order]


def _first_equal(codebook: np.ndarray) -> np.ndarray:
    """Maps each codeword to the first that equals it; equal codewords may differ in the last digit of a product."""
    return _distinct(codebook)[1]


def _blocks(n: int, size: int = _BLOCK) -> list[slice]:
    return [slice(start, start + size) for start in range(0, n, size)]


def finite_vectors(vectors: np.ndarray) -> np.ndarray:
    """The vectors as (n, dim) float32. Raises ValueError for another shape, NaN, infinity, or a length over 1e15."""
    with np.errstate(over="ignore"):
        vectors = np.asarray(vectors, dtype=np.float32)
    if vectors.ndim != 2 or not vectors.shape[1]:
        raise ValueError(f"vectors must be (n, dim >= 1), got shape {vectors.shape}")
    with np.errstate(over="ignore", invalid="ignore"):
        squares = [np.einsum("nd,nd->n", vectors[rows], vectors[rows]) for rows in _blocks(len(vectors))]
    bad = np.flatnonzero(~(np.concatenate([*squares, np.empty(0)]) < 1e30))  # NaN compares as false
    if len(bad):
        raise ValueError(
            f"{len(bad)} of {len(vectors)} vectors hold NaN or infinity or are longer than 1e15, "
            f"the first is row {bad[0]}"
        )
    return vectors


def check_distinct(vectors: np.ndarray) -> None:
    """Refuse vectors that leave nothing to tell apart.

    Parameters
    ----------
    vectors : (n, dim) array

    Raises
    ------
    ValueError
        If fewer than `MIN_ITEMS` of them differ.

    Examples
    --------
    >>> check_distinct(np.ones((3, 4)))
    Traceback (most recent call last):
    ValueError: 3 vectors, but fewer than 2 different ones: semantic IDs need at least 2 items with different texts
    """
    if not len(vectors) or (vectors == vectors[0]).all():
        raise ValueError(
            f"{len(vectors)} vectors, but fewer than {MIN_ITEMS} different ones: "
            f"semantic IDs need at least {MIN_ITEMS} items with different texts"
        )


def check_settings(n_levels: int, codebook_size: int, n_iterations: int) -> None:
    if n_levels < 1 or codebook_size < 2 or n_iterations < 1:
        raise ValueError(
            f"expected at least 1 level or position, codebook_size >= 2 and n_iterations >= 1, "
            f"got {n_levels}, {codebook_size} and {n_iterations}"
        )


def _checked(vectors, n_levels, codebook_size, n_iterations, max_training_vectors, rng):
    """The vectors, and the sample to fit to."""
    check_settings(n_levels, codebook_size, n_iterations)
    vectors = sample = finite_vectors(vectors)
    if len(vectors) > max_training_vectors:
        sample = vectors[np.sort(rng.choice(len(vectors), max_training_vectors, replace=False))]
    check_distinct(sample)
    return vectors, sample


def checked_codes(codes: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """shape: the number of levels, then the codes of each."""
    codes = np.asarray(codes)
    if codes.ndim != 2 or codes.shape[1] > shape[0] or not np.issubdtype(codes.dtype, np.integer):
        raise ValueError(f"codes must be (n, at most {shape[0]}) integers, got {codes.shape} {codes.dtype}")
    for level, (column, size) in enumerate(zip(codes.T, shape[1:], strict=False)):
        if column.size and not (column.min() >= 0 and column.max() < size):
            raise ValueError(
                f"codes of level {level} run from {column.min()} to {column.max()}, expected 0 to {size - 1}"
            )
    return codes
