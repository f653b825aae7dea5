"""Two controls for semantic IDs, which should lose: codes without meaning, and codes that are told the category.

They offer what the quantizers of `quantize` offer: `codes`, `sizes`, `encode`, `decode`.
"""

import hashlib
import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from tqdm.auto import tqdm

from semid_lib.ids.quantize import check_settings, checked_codes, decode, finite_vectors, kmeans, nearest


@dataclass(frozen=True, eq=False)
class RandomCodes:
    """Codes without meaning. `codes` (n, n_levels) int64; `codebooks` as of `ResidualQuantizer`, or None."""

    codes: np.ndarray
    codebook_size: int
    seed: int
    codebooks: np.ndarray | None

    @property
    def sizes(self) -> tuple[int, ...]:
        """Number of codes of each level."""
        return (self.codebook_size,) * self.codes.shape[1]

    def encode(self, vectors: np.ndarray) -> np.ndarray:
        """Fresh codes, drawn anew per vector but fixed by its bytes: (m, dim) -> (m, n_levels) int64.

        A fitted vector does not get its row of `codes` back: that depends on the row alone.
        """
        n_levels, seed = self.codes.shape[1], str(self.seed).encode()
        rows = finite_vectors(vectors) + 0.0  # -0.0 becomes 0.0, which has other bytes
        digests = [hashlib.shake_128(seed + row.tobytes()).digest(8 * n_levels) for row in rows]
        drawn = np.frombuffer(b"".join(digests), dtype="<u8").reshape(-1, n_levels)
        return (drawn % np.uint64(self.codebook_size)).astype(np.int64)

    def decode(self, codes: np.ndarray) -> np.ndarray:
        """The mean vector, moved per level by how the items of a code differ from it: (m, <= n_levels) -> (m, dim).

        What such codes can tell of a vector, which is next to nothing. Raises ValueError if no vectors were given.
        """
        if self.codebooks is None:
            raise ValueError("random codes stand for no vectors: give random_codes the vectors to average")
        return decode(codes, self.codebooks)


def random_codes(
    n: int, n_levels: int = 3, codebook_size: int = 256, seed: int = 0, vectors: np.ndarray | None = None
) -> RandomCodes:
    """Codes drawn independently and uniformly for n items (the random IDs of TIGER, section 4.2).

    vectors: (n, dim), only for `decode`. Some items collide by chance, about n^2 / (2 codebook_size^n_levels) pairs.
    Raises ValueError for n < 1, n_levels < 1, codebook_size < 2, or vectors of another number.

    >>> control = random_codes(4, n_levels=2, codebook_size=8)
    >>> control.codes.shape, control.sizes
    ((4, 2), (8, 8))
    """
    if n < 1 or n_levels < 1 or codebook_size < 2:
        raise ValueError(f"expected n >= 1, n_levels >= 1, codebook_size >= 2, got {n}, {n_levels}, {codebook_size}")
    codes = np.random.default_rng(seed).integers(codebook_size, size=(n, n_levels))
    if vectors is None:
        return RandomCodes(codes, codebook_size, seed, None)
    vectors = finite_vectors(vectors)
    if len(vectors) != n:
        raise ValueError(f"{len(vectors)} vectors for {n} items")
    mean = vectors.mean(axis=0)
    codebooks = np.stack([_means(vectors - mean, level, codebook_size) for level in codes.T])
    codebooks[0] += mean
    return RandomCodes(codes, codebook_size, seed, codebooks)


@dataclass(frozen=True, eq=False)
class CategoryTree:
    """Nodes under nodes: the first code names a category, each further one a child of the node before it.

    `codes` (n, n_levels) int64; `centroids` per level (n_nodes, dim) float32, children of a node side by side;
    `starts` per deeper level (n_parents + 1,) int64, where the children of each parent begin; `label_codes` the codes
    of level 0 that the items of a label may have.
    """

    codes: np.ndarray
    centroids: tuple[np.ndarray, ...]
    starts: tuple[np.ndarray, ...]
    label_codes: dict[str, np.ndarray]

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """Number of codes of each level: of the node with most children."""
        return (len(self.centroids[0]), *(int(np.diff(starts).max()) for starts in self.starts))

    def encode(self, vectors: np.ndarray, labels: Sequence[str] | None = None) -> np.ndarray:
        """(m, dim) -> (m, n_levels) int64: the closest centroid among the children of the node so far.

        labels: (m,) strings, which limit level 0 to the codes of the label; without one, or with one that was not in
        the fitted catalogue, every code of level 0 is open. Raises ValueError as `fit_category_tree`.
        """
        vectors = finite_vectors(vectors)
        if vectors.shape[1] != self.centroids[0].shape[1]:
            raise ValueError(f"vectors have {vectors.shape[1]} dimensions, the tree {self.centroids[0].shape[1]}")
        every = np.arange(len(self.centroids[0]))
        node = np.empty(len(vectors), dtype=np.int64)
        for label, rows in _groups(np.full(len(vectors), "") if labels is None else _checked_labels(labels, vectors)):
            open_codes = every if labels is None else self.label_codes.get(str(label), every)
            node[rows] = open_codes[nearest(vectors[rows], self.centroids[0][open_codes])]
        codes = [node]
        for centroids, starts in zip(self.centroids[1:], self.starts, strict=True):
            codes.append(_child(vectors, node, centroids, starts))
            node = starts[node] + codes[-1]
        return np.column_stack(codes)

    def decode(self, codes: np.ndarray) -> np.ndarray:
        """The centroid of the node that codes lead to: (m, 1 .. n_levels) -> (m, dim) float32.

        Raises ValueError if there is no such node.
        """
        codes = checked_codes(codes, (len(self.centroids), *self.sizes))
        if not codes.shape[1]:
            raise ValueError("expected codes of at least one level")
        node = codes[:, 0]
        for level, starts in enumerate(self.starts[: codes.shape[1] - 1], start=1):
            child = starts[node] + codes[:, level]
            if (missing := np.flatnonzero(child >= starts[node + 1])).size:
                raise ValueError(f"no node of the tree has the codes {codes[missing[0], : level + 1].tolist()}")
            node = child
        return self.centroids[codes.shape[1] - 1][node]


def fit_category_tree(
    vectors: np.ndarray,
    labels: Sequence[str],
    n_levels: int = 3,
    codebook_size: int = 256,
    n_iterations: int = 25,
    seed: int = 0,
    progress: bool = False,
) -> CategoryTree:
    """A code per category, then k-means inside each parent (after the hierarchical k-means of DSI, Tay et al. 2022).

    labels: (n,) strings; "" is a label like others. Of more labels than codes the most frequent keep a code and the
    rest join the one of nearest centroid; of fewer, the largest are split by k-means until all codes are given. A node
    of m items with r levels to go gets m^(1/r) children, at most codebook_size, so that the codes of a level are spent
    evenly and only equal vectors share all codes (while there is room). One code means different things under
    different parents: that is what this is a control for.
    Raises ValueError as `fit_residual_kmeans`, but takes any number of distinct vectors; or for labels that are not
    one string per vector.

    >>> vectors = np.array([[0.0], [1.0], [5.0], [7.0]])
    >>> tree = fit_category_tree(vectors, ["pen", "pen", "ink", "ink"], n_levels=2, codebook_size=2)
    >>> tree.codes[:, 0]
    array([1, 1, 0, 0])
    """
    rng = np.random.default_rng(seed)
    vectors = finite_vectors(vectors)
    check_settings(n_levels, codebook_size, n_iterations)
    labels = _checked_labels(labels, vectors)
    if not len(vectors):
        raise ValueError("no vectors to cluster")
    roots, label_codes = _label_centroids(vectors, labels, codebook_size, n_iterations, rng)
    tree = CategoryTree(np.empty((0, 1), dtype=np.int64), (roots,), (), label_codes)
    node = tree.encode(vectors, labels)[:, 0]
    for to_go in tqdm(range(n_levels - 1, 0, -1), desc="category tree", unit="level", disable=not progress):
        children = list(tree.centroids[-1][:, None])  # a node that lost its items to rounding is its own child
        for parent, rows in _groups(node):
            wanted = min(codebook_size, int(np.ceil(round(len(rows) ** (1 / to_go), 9))))
            children[parent] = _children(vectors[rows], wanted, n_iterations, rng)
        starts = (*tree.starts, np.concatenate([[0], np.cumsum([len(each) for each in children])]))
        tree = CategoryTree(tree.codes, (*tree.centroids, np.concatenate(children)), starts, label_codes)
        node = starts[-1][node] + _child(vectors, node, tree.centroids[-1], starts[-1])
    return CategoryTree(tree.encode(vectors, labels), tree.centroids, tree.starts, label_codes)


def _label_centroids(vectors, labels, codebook_size, n_iterations, rng) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    groups = {str(label): rows for label, rows in _groups(labels)}
    home = {label: label for label in groups}
    if len(groups) > codebook_size:
        ranked = sorted(groups, key=lambda label: (-len(groups[label]), label))
        means = np.stack([vectors[groups[label]].mean(axis=0) for label in ranked])
        joins = nearest(means[codebook_size:], means[:codebook_size])
        home |= {label: ranked[kept] for label, kept in zip(ranked[codebook_size:], joins, strict=True)}
        for label in ranked[codebook_size:]:
            groups[home[label]] = np.union1d(groups[home[label]], groups.pop(label))
    pieces = _share_out(codebook_size, [len(rows) for rows in groups.values()])
    centroids, codes, n_codes = [], {}, 0
    for (label, rows), wanted in zip(groups.items(), pieces, strict=True):
        centroids.append(_children(vectors[rows], wanted, n_iterations, rng))
        codes[label] = np.arange(n_codes, n_codes + len(centroids[-1]))
        n_codes += len(centroids[-1])
    return np.concatenate(centroids), {label: codes[kept] for label, kept in home.items()}


def _share_out(n_codes: int, sizes: Sequence[int]) -> list[int]:
    """One code each, then one by one to whoever has most items per code: numbers of codes, no more than items."""
    given = [1] * len(sizes)
    waiting = [(-size, i) for i, size in enumerate(sizes) if size > 1]
    heapq.heapify(waiting)
    for _ in range(n_codes - len(sizes)):
        if not waiting:
            break
        _, i = heapq.heappop(waiting)
        given[i] += 1
        if given[i] < sizes[i]:
            heapq.heappush(waiting, (-sizes[i] / given[i], i))
    return given


def _children(members: np.ndarray, wanted: int, n_iterations: int, rng: np.random.Generator) -> np.ndarray:
    """Centroids of at most `wanted` clusters of the members, none without members."""
    if wanted == 1:
        return members.mean(axis=0, keepdims=True)
    centroids = kmeans(members, wanted, n_iterations, rng)
    return centroids[np.unique(nearest(members, centroids))]


def _child(vectors: np.ndarray, node: np.ndarray, centroids: np.ndarray, starts: np.ndarray) -> np.ndarray:
    codes = np.empty(len(vectors), dtype=np.int64)
    for parent, rows in _groups(node):
        codes[rows] = nearest(vectors[rows], centroids[starts[parent] : starts[parent + 1]])
    return codes


def _groups(keys: np.ndarray):
    """Each distinct key, in order, with the rows that have it."""
    distinct, inverse = np.unique(keys, return_inverse=True)
    order = np.argsort(inverse, kind="stable")
    ends = np.cumsum(np.bincount(inverse, minlength=len(distinct)))
    return zip(distinct, np.split(order, ends[:-1]) if len(distinct) else [], strict=True)


def _means(vectors: np.ndarray, codes: np.ndarray, codebook_size: int) -> np.ndarray:
    """The mean vector of each code, zero for a code without vectors: (codebook_size, dim) float32."""
    means = np.zeros((codebook_size, vectors.shape[1]), dtype=np.float32)
    for code, rows in _groups(codes):
        means[code] = vectors[rows].mean(axis=0)
    return means


def _checked_labels(labels: Sequence[str], vectors: np.ndarray) -> np.ndarray:
    if len(labels) != len(vectors):
        raise ValueError(f"{len(labels)} labels for {len(vectors)} vectors")
    for row, label in enumerate(labels):
        if not isinstance(label, str):
            raise ValueError(f"labels must be strings, got {label!r} in row {row}")
    return np.asarray(labels, dtype=str)
