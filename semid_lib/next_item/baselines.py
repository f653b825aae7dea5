"""Baselines without training: popularity and item-kNN.

Both have the `rank(histories, k, exclude_seen)` of the models, in item rows. The item-kNN uses the order of the
history, which costs nothing and makes it a stronger baseline.
"""

from collections.abc import Sequence

import numpy as np

from semid_lib.decoding.ranking import ItemRows, Ranked, rank_by_scores


class Popularity:
    """Recommends the items with the most interactions; ties go to the lower item row.

    Examples
    --------
    >>> Popularity([[0, 1], [1]], n_items=3).rank([[0]], k=2).items
    array([[1, 2]])
    """

    def __init__(self, histories: Sequence[np.ndarray], n_items: int):
        self.counts = np.bincount(_flat(histories), minlength=n_items).astype(np.float32)

    def rank(self, histories: ItemRows, k: int, exclude_seen: bool = True, progress: bool = False) -> Ranked:
        """Find the k most popular items, the same for all users except for excluded items."""
        return rank_by_scores(
            histories, len(self.counts), k, exclude_seen, progress, lambda block: np.tile(self.counts, (len(block), 1))
        )


class ItemKNN:
    """Recommends items that are near the user's items in other histories (Sarwar et al. 2001), in their order.

    The similarity of two items is

        s(i -> j) = sum over histories that hold both of w(i, j) / (n_i n_j) ** popularity_exponent,

    where w is 1 / sqrt(distance) if j comes after i, and `backward` times that if before; n counts interactions.
    Items further apart than `window` are not counted. An item t positions from the end of the user's history votes with
    weight `decay` ** t; items without a vote follow, by popularity. The defaults were chosen on Beauty's validation
    items.

    Examples
    --------
    >>> knn = ItemKNN([np.array([0, 1, 2]), np.array([0, 1]), np.array([3, 2])], n_items=4)
    >>> knn.rank([np.array([0])], k=2).items
    array([[1, 2]])
    """

    def __init__(
        self,
        histories: Sequence[np.ndarray],
        n_items: int,
        popularity_exponent: float = 0.3,
        backward: float = 0.5,
        decay: float = 0.7,
        window: int = 50,
    ):
        import scipy.sparse as sp  # 0.17 s, which a service does not spend

        self.decay = decay
        flat, user = _flat(histories), np.repeat(np.arange(len(histories)), [len(h) for h in histories])
        followed = sp.csr_array((n_items, n_items), dtype=np.float32)
        for distance in range(1, min(window, max(map(len, histories), default=1) - 1) + 1):
            same = user[distance:] == user[:-distance]
            pair = (flat[:-distance][same], flat[distance:][same])
            weight = np.full(len(pair[0]), distance**-0.5, dtype=np.float32)
            followed = followed + sp.csr_array((weight, pair), shape=(n_items, n_items))
        damping = sp.dia_array(
            (np.maximum(np.bincount(flat, minlength=n_items), 1.0)[None] ** -popularity_exponent, [0]),
            shape=(n_items, n_items),
        )
        both = followed + backward * followed.T  # a repeated item votes for itself
        self.similarity = (damping @ both @ damping).tocsr().astype(np.float32)
        # scores of items without votes: by popularity, between -1 and 0
        counts = np.bincount(flat, minlength=n_items)
        self.without_votes = (counts / max(counts.max(), 1) - 1).astype(np.float32)

    def rank(self, histories: ItemRows, k: int, exclude_seen: bool = True, progress: bool = False) -> Ranked:
        """Find the k items with the most votes of each history; for an empty one, the popular items."""
        return rank_by_scores(histories, len(self.without_votes), k, exclude_seen, progress, self.scores)

    def prior(self, histories: Sequence[np.ndarray], weight: float = 2.0, floor: float = 0.01) -> np.ndarray:
        """Log-scale item-kNN scores, weight * log(votes + floor), for `Recommender.rank(prior=...)`.

        Parameters
        ----------
        histories : sequence of arrays of item rows
        weight, floor : float
            Defaults chosen on Beauty's validation items; floor > 0 replaces zero votes.

        Returns
        -------
        (n_histories, n_items) float32 array

        References
        ----------
        Chapter 07, eq-prior; Sarwar et al. (2001).

        Examples
        --------
        >>> ItemKNN([np.array([0, 1])], n_items=3).prior([np.array([0])], weight=1.0, floor=0.5).round(2)
        array([[-0.69,  0.41, -0.69]], dtype=float32)
        """
        return (weight * np.log(np.maximum(self.scores(histories), 0) + floor)).astype(np.float32)

    def scores(self, histories: Sequence[np.ndarray]) -> np.ndarray:
        """Votes for every item, (n, n_items) float32; items without a vote are between -1 and 0, by popularity."""
        import scipy.sparse as sp

        lengths = np.array([len(history) for history in histories], dtype=np.int64)
        age = np.concatenate([np.empty(0), *[np.arange(length)[::-1] for length in lengths]])
        row = np.repeat(np.arange(len(histories)), lengths)
        votes = sp.csr_array(
            ((self.decay**age).astype(np.float32), (row, _flat(histories))),
            shape=(len(histories), self.similarity.shape[0]),
        )
        total = (votes @ self.similarity).toarray()
        return np.where(total > 0, total, self.without_votes)


def _flat(histories: Sequence[np.ndarray]) -> np.ndarray:
    return np.concatenate([np.empty(0, np.int64), *[np.asarray(history, dtype=np.int64) for history in histories]])
