"""Two kinds of codes to compare learned codes with: random ones, and a tree that starts from the shop's categories."""

from collections.abc import Sequence

import numpy as np

from semid_lib.ids.quantize import finite_vectors, kmeans, nearest
from semid_lib.ids.semantic_ids import equal_rows
from semid_lib.workbench.text import shown


def random_codes(n: int, n_levels: int = 3, codebook_size: int = 256, seed: int = 0) -> np.ndarray:
    """Independent uniform codes for n items, as the random IDs of TIGER (section 4.2): (n, n_levels) int64.

    About n^2 / (2 codebook_size^n_levels) pairs collide by chance.

    >>> random_codes(4, n_levels=2, codebook_size=8).shape
    (4, 2)
    """
    return np.random.default_rng(seed).integers(codebook_size, size=(n, n_levels))


def category_codes(
    vectors: np.ndarray, labels: Sequence[str], n_levels: int = 3, codebook_size: int = 256, seed: int = 0
) -> np.ndarray:
    """Codes of a category tree: level 0 follows the labels, k-means splits each node further.

    With more labels than codes, the most frequent labels keep a code and each other one joins the label with the
    nearest mean. With fewer, k-means splits the largest labels until all codes are used. A node of m items with r
    levels below it gets m^(1/r) children, at most codebook_size. So only equal vectors share all codes while there is
    room, and a code means different things under different parents.

    Parameters
    ----------
    vectors : (n, dim) float array
    labels : (n,) sequence of str
        "" is a label like any other.

    Returns
    -------
    (n, n_levels) int64 array

    Raises
    ------
    ValueError
        If there are no vectors, they are not finite, there is not one text each, or a size is too small.

    References
    ----------
    The hierarchical k-means of DSI, Tay et al. (2022).

    Examples
    --------
    >>> vectors = np.array([[0.0], [1.0], [5.0], [7.0]])
    >>> category_codes(vectors, ["pen", "pen", "ink", "ink"], n_levels=2, codebook_size=2)[:, 0]
    array([1, 1, 0, 0])
    """
    rng, vectors = np.random.default_rng(seed), finite_vectors(vectors)
    if not len(vectors) or len(labels) != len(vectors):
        raise ValueError(f"{len(labels)} labels for {len(vectors)} vectors: expected one each, of at least one item")
    if wrong := [label for label in labels if not isinstance(label, str)]:
        raise ValueError(f"labels must be texts, got {shown(wrong[0])}")
    if n_levels < 1 or codebook_size < 2:
        raise ValueError(f"expected n_levels >= 1 and codebook_size >= 2, got {n_levels} and {codebook_size}")
    groups = _grouped_labels(vectors, np.asarray(labels, dtype=str), codebook_size)
    codes = np.empty((len(vectors), n_levels), dtype=np.int64)
    first = 0
    for rows, n_codes in zip(groups, _codes_per_group(codebook_size, np.array(list(map(len, groups)))), strict=True):
        centres = _centres(vectors[rows], n_codes, rng)
        codes[rows, 0] = first + nearest(vectors[rows], centres)
        first += len(centres)
    for level in range(1, n_levels):
        for rows in equal_rows(codes[:, :level]):
            wanted = min(codebook_size, int(np.ceil(round(len(rows) ** (1 / (n_levels - level)), 9))))
            codes[rows, level] = nearest(vectors[rows], _centres(vectors[rows], wanted, rng))
    return codes


def _grouped_labels(vectors: np.ndarray, labels: np.ndarray, codebook_size: int) -> list[np.ndarray]:
    """Rows of each label in alphabetic order; beyond codebook_size, rare labels join the nearest frequent one."""
    groups = equal_rows(labels)
    if len(groups) <= codebook_size:
        return groups
    ranked = sorted(range(len(groups)), key=lambda label: (-len(groups[label]), label))
    means = np.stack([vectors[groups[label]].mean(axis=0) for label in ranked])
    joins = nearest(means[codebook_size:], means[:codebook_size])
    for label, kept in zip(ranked[codebook_size:], joins, strict=True):
        groups[ranked[kept]] = np.union1d(groups[ranked[kept]], groups[label])
    return [groups[label] for label in sorted(ranked[:codebook_size])]


def _codes_per_group(n_codes: int, sizes: np.ndarray) -> np.ndarray:
    """One code each, then one by one to the group with most items per code, never more codes than items."""
    given = np.ones(len(sizes), dtype=np.int64)
    while given.sum() < n_codes and (given < sizes).any():
        given[np.argmax(np.where(given < sizes, sizes / given, 0))] += 1
    return given


def _centres(members: np.ndarray, wanted: int, rng: np.random.Generator) -> np.ndarray:
    """Centres of at most `wanted` clusters of the members, none without members."""
    if wanted == 1:
        return members.mean(axis=0, keepdims=True)
    centres = kmeans(members, wanted, 25, rng)
    return centres[np.unique(nearest(members, centres))]
