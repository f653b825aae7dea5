"""Baselines without a network: popularity, neighbours, sequential rules, a transition graph and text similarity.

All have the `rank(histories, k, exclude_seen)` of the models and `scores(histories)`, in item rows. All but popularity
let the items of a history vote, with a weight that falls with their age: the order of the history costs nothing and
makes the baselines stronger. `linear` has those that solve a linear system.
"""

from collections.abc import Sequence
from typing import Any

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
        self.counts = np.bincount(flat(histories), minlength=n_items).astype(np.float32)

    def rank(self, histories: ItemRows, k: int, exclude_seen: bool = True, progress: bool = False) -> Ranked:
        """Find the k most popular items, the same for all users except for excluded items."""
        return rank_by_scores(
            histories, len(self.counts), k, exclude_seen, progress, lambda block: np.tile(self.counts, (len(block), 1))
        )


class Votes:
    """What the baselines below share: an item t positions from the end of a history votes with weight `decay` ** t.

    The scores of a history are its votes times `similarity`, (n_items, n_items), of which row i is what item i votes
    for. Items with a score of exactly 0 are ranked by popularity, between -1 and 0. So an empty history gets the
    popular items.

    Examples
    --------
    >>> votes = Votes([[0, 1], [1]], n_items=3, decay=0.5)
    >>> votes.similarity = np.array([[0, 1, 0], [0, 0, 1], [0, 0, 0]], dtype=np.float32)
    >>> votes.scores([[0, 1], []])
    array([[-0.5,  0.5,  1. ],
           [-0.5,  0. , -1. ]], dtype=float32)
    """

    similarity: Any  # (n_items, n_items) float32, an array or a sparse array
    prior_power, prior_floor = 2.0, 0.01  # of `prior`; chosen for SLIST

    def __init__(self, histories: Sequence[np.ndarray], n_items: int, decay: float):
        self.decay = decay
        self.counts = np.bincount(flat(histories), minlength=n_items)
        self.without_votes = (self.counts / max(self.counts.max(initial=0), 1) - 1).astype(np.float32)

    def rank(self, histories: ItemRows, k: int, exclude_seen: bool = True, progress: bool = False) -> Ranked:
        """Find the k items with the highest score for each history; for an empty one, the popular items."""
        return rank_by_scores(histories, len(self.without_votes), k, exclude_seen, progress, self.scores)

    def scores(self, histories: Sequence[np.ndarray]) -> np.ndarray:
        """Scores of every item, (n, n_items) float32; an item without votes is between -1 and 0, by popularity."""
        total = self._total(decayed(histories, len(self.without_votes), self.decay))
        return np.where(total != 0, total, self.without_votes)

    def _total(self, votes) -> np.ndarray:
        """Scores, (n, n_items) float32, of votes, a sparse array of the same shape."""
        total = votes @ self.similarity
        return total if isinstance(total, np.ndarray) else total.toarray()

    def prior(self, histories: Sequence[np.ndarray]) -> np.ndarray:
        """Log-scale scores, `prior_power` * log(max(score, 0) + `prior_floor`), for `Recommender.rank(prior=...)`.

        Power and floor were chosen on Beauty's validation items, for SLIST and for item-kNN.

        Parameters
        ----------
        histories : sequence of arrays of item rows

        Returns
        -------
        (n_histories, n_items) float32 array

        References
        ----------
        Chapter 07, eq-prior.

        Examples
        --------
        >>> ItemKNN([np.array([0, 1])], n_items=3).prior([np.array([0])]).round(2)
        array([[-5.26,  0.04, -5.26]], dtype=float32)
        """
        scores = np.maximum(self.scores(histories), 0)
        return (self.prior_power * np.log(scores + self.prior_floor)).astype(np.float32)


class ItemKNN(Votes):
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

    prior_power, prior_floor = 1.5, 0.03

    def __init__(
        self,
        histories: Sequence[np.ndarray],
        n_items: int,
        popularity_exponent: float = 0.2,
        backward: float = 0.25,
        decay: float = 0.7,
        window: int = 50,
    ):
        import scipy.sparse as sp  # 0.17 s, which a service does not spend

        super().__init__(histories, n_items, decay)
        followed = follows(histories, n_items, window, 0.5)
        damping = sp.diags_array(np.maximum(self.counts, 1.0) ** -popularity_exponent)
        both = followed + backward * followed.T  # a repeated item votes for itself
        self.similarity = (damping @ both @ damping).tocsr().astype(np.float32)


class SequentialRules(Votes):
    """Recommends items that came after the user's items in other histories (Ludewig and Jannach 2018).

    The rule i -> j has weight

        s(i -> j) = sum over histories in which j comes after i of 1 / distance ** distance_exponent,

    for distances up to `window`. In the paper only the last item of a history has rules (`decay` = 0) and the
    exponent is 1; here all items vote, as in `Votes`. Nothing corrects for the popularity of items, unlike in
    `ItemKNN`. The defaults were chosen on Beauty's validation items.

    Examples
    --------
    >>> rules = SequentialRules([[0, 1, 2], [1, 2]], n_items=3, distance_exponent=1.0)
    >>> rules.similarity.toarray()
    array([[0. , 1. , 0.5],
           [0. , 0. , 2. ],
           [0. , 0. , 0. ]], dtype=float32)
    """

    def __init__(
        self,
        histories: Sequence[np.ndarray],
        n_items: int,
        decay: float = 0.5,
        window: int = 50,
        distance_exponent: float = 0.5,
    ):
        super().__init__(histories, n_items, decay)
        self.similarity = follows(histories, n_items, window, distance_exponent)


class UserKNN(Votes):
    """Recommends the items of the histories that are most similar to the user's (V-SKNN, Ludewig and Jannach 2018).

    The similarity of a history to another one, v, is the sum of the weights of the items they share: `decay` ** t for
    an item t positions from the end, divided by n ** popularity_exponent, where n counts interactions, and the sum
    divided by length(v) ** length_exponent. Each of the `n_neighbours` most similar histories then votes for its items
    with that similarity. A user who is in the training histories is its own neighbour, which changes nothing but the
    items already seen. The defaults were chosen on Beauty's validation items.

    Examples
    --------
    >>> knn = UserKNN([[0, 1, 2], [0, 3], [4, 5]], n_items=6)
    >>> knn.rank([[2, 0]], k=3).items
    array([[1, 3, 4]])
    """

    def __init__(
        self,
        histories: Sequence[np.ndarray],
        n_items: int,
        n_neighbours: int = 200,
        decay: float = 0.7,
        popularity_exponent: float = 0.25,
        length_exponent: float = 0.25,
    ):
        import scipy.sparse as sp

        super().__init__(histories, n_items, decay)
        self.n_neighbours = n_neighbours
        self.held = decayed(histories, n_items, 1.0, once=True)  # (n_histories, n_items)
        lengths = np.maximum(np.diff(self.held.indptr), 1.0).astype(np.float32)
        rare = np.maximum(self.counts, 1.0).astype(np.float32) ** -popularity_exponent
        self.to_histories = sp.diags_array(rare) @ self.held.T @ sp.diags_array(lengths**-length_exponent)

    def _total(self, votes) -> np.ndarray:
        near = (votes @ self.to_histories).tocsr()
        for start, stop in zip(near.indptr[:-1], near.indptr[1:], strict=True):
            if stop - start > self.n_neighbours:
                line = near.data[start:stop]
                line[line < np.partition(line, -self.n_neighbours)[-self.n_neighbours]] = 0
        return (near @ self.held).toarray()


class TextOnly(Votes):
    """Recommends items whose text is similar to the texts of the history; nothing is trained.

    The score is the cosine of an item's text vector and the sum of the history's, each of length 1 and weighted by
    `decay` ** age. It knows nothing of interactions, so items that nobody has bought yet are ranked like all others.
    The default was chosen for Recall@10 on Beauty's validation items; longer lists gain from 0.7.

    Parameters
    ----------
    histories : sequence of arrays of item rows
        For an empty history, which gets the popular items.
    vectors : (n_items, dim) float array
        Text vectors of the items, of any length but 0.
    decay : float

    Examples
    --------
    >>> text = TextOnly([], vectors=np.array([[1.0, 0.0], [0.0, 1.0], [3.0, 1.0]]))
    >>> text.rank([[0]], k=2).items
    array([[2, 1]])
    """

    def __init__(self, histories: Sequence[np.ndarray], vectors: np.ndarray, decay: float = 0.3):
        super().__init__(histories, len(vectors), decay)
        self.vectors = np.array(vectors, dtype=np.float32)
        self.vectors /= np.maximum(np.linalg.norm(self.vectors, axis=1, keepdims=True), 1e-12)

    def _total(self, votes) -> np.ndarray:
        wanted = votes @ self.vectors  # (n, dim)
        return (wanted / np.maximum(np.linalg.norm(wanted, axis=1, keepdims=True), 1e-12)) @ self.vectors.T


class TransitionGraph(TextOnly):
    """Recommends items one or two transitions away whose text is similar: an untrained heuristic.

    It follows the idea of TGH (arXiv 2605.07125; read from the authors' code, haoyuhan1/GraphRec): the graph has an
    edge i -> j if j directly follows i in a training history. TGH fills a list of ten with 7, 2 and 1 items from one,
    two and three transitions after the last item, each part by text similarity plus the weight of the edge. To rank
    the whole catalogue, we add instead:

        score(j) = cos(text of the history, text of j)
                   + sum over the history's items i of decay ** age * (edge * log(1 + n_ij) / max_j log(1 + n_ij)
                                                               + one_step * [i -> j] + two_steps * [i -> . -> j]),

    where n_ij counts transitions and an item one transition away does not count as two away. The defaults were chosen
    on Beauty's validation items.

    Examples
    --------
    >>> graph = TransitionGraph([[0, 1, 2]], vectors=np.eye(4), edge=0.5, one_step=0.5, two_steps=0.25)
    >>> graph.scores([[0]])
    array([[ 1.  ,  1.  ,  0.25, -1.  ]], dtype=float32)
    """

    def __init__(
        self,
        histories: Sequence[np.ndarray],
        vectors: np.ndarray,
        decay: float = 0.6,
        edge: float = 0.3,
        one_step: float = 0.1,
        two_steps: float = 0.1,
    ):
        import scipy.sparse as sp

        super().__init__(histories, vectors, decay)
        n_items = len(vectors)
        counts = follows(histories, n_items, 1, 1.0).log1p()
        largest = counts.max(axis=1).toarray().ravel()
        weight = sp.diags_array(edge / np.where(largest > 0, largest, 1)) @ counts
        step = (counts > 0).astype(np.float32)
        second = (step @ step > 0).astype(np.float32)
        second = second - second.multiply(step + sp.eye_array(n_items) > 0)
        self.similarity = (weight + one_step * step + two_steps * second).tocsr().astype(np.float32)

    def _total(self, votes) -> np.ndarray:
        return super()._total(votes) + Votes._total(self, votes)


def trend(recent: np.ndarray, trained: np.ndarray, smoothing: float = 0.3) -> np.ndarray:
    """How much better items sell now than in training: (n_items,) float32, to be added to log-scale scores.

    log((recent + s) / (trained * share + s)), where share is that of all recent sales in those of training.

    Parameters
    ----------
    recent : (n_items,) array of numbers
        Sales of each item in the last weeks; they may be weighted by age.
    trained : (n_items,) array of numbers
        Sales of each item in the training data; 0 for a new one.
    smoothing : float
        s, in sales: the larger, the less a few sales move. Chosen on Beauty's validation window (see the log).

    Raises
    ------
    ValueError
        If the shapes differ, a number is negative or not finite, nothing was sold, or smoothing is not above 0.

    Examples
    --------
    >>> np.exp(trend(np.array([2, 2, 1]), np.array([30, 10, 0]))).round(2)
    array([0.57, 1.48, 4.33], dtype=float32)
    """
    recent, trained = np.asarray(recent, dtype=np.float64), np.asarray(trained, dtype=np.float64)
    right = recent.shape == trained.shape and np.isfinite(recent).all() and min(recent.min(), trained.min()) >= 0
    if not right or not recent.sum() or not trained.sum():
        wanted = f"expected {trained.shape} finite sales of at least 0, and one sale"
        raise ValueError(f"recent sales are {recent.shape} with the sum {recent.sum():g}, {wanted}")
    if not 0 < smoothing < np.inf:
        raise ValueError(f"smoothing is {smoothing}, expected a number above 0")
    usual = trained * recent.sum() / trained.sum()
    return np.log((recent + smoothing) / (usual + smoothing)).astype(np.float32)


def flat(histories: Sequence[np.ndarray]) -> np.ndarray:
    """All item rows of some histories, end to end: (n_interactions,) int64."""
    return np.concatenate([np.empty(0, np.int64), *[np.asarray(history, dtype=np.int64) for history in histories]])


def decayed(histories: Sequence[np.ndarray], n_items: int, decay: float, once: bool = False):
    """The weights `decay` ** age of the items of each history: a sparse (n, n_items) float32 array.

    The weights of an item that occurs several times are added, or with `once` all weights are 1.

    >>> decayed([[2, 0]], n_items=3, decay=0.5).toarray()
    array([[1. , 0. , 0.5]], dtype=float32)
    """
    import scipy.sparse as sp

    lengths = np.array([len(history) for history in histories], dtype=np.int64)
    age = np.concatenate([np.empty(0), *[np.arange(length)[::-1] for length in lengths]])
    place = (np.repeat(np.arange(len(lengths)), lengths), flat(histories))
    found = sp.csr_array(((decay**age).astype(np.float32), place), shape=(len(lengths), n_items))
    if once:
        found.data[:] = 1  # a sparse array made of places has each of them once
    return found


def follows(histories: Sequence[np.ndarray], n_items: int, window: int, distance_exponent: float):
    """How often item j comes after item i, up to `window` places later, weighted by 1 / distance ** distance_exponent.

    Returns
    -------
    (n_items, n_items) sparse float32 array

    Examples
    --------
    >>> follows([[0, 1, 2]], n_items=3, window=2, distance_exponent=1.0).toarray()
    array([[0. , 1. , 0.5],
           [0. , 0. , 1. ],
           [0. , 0. , 0. ]], dtype=float32)
    """
    import scipy.sparse as sp

    rows, user = flat(histories), np.repeat(np.arange(len(histories)), [len(history) for history in histories])
    found = sp.csr_array((n_items, n_items), dtype=np.float32)
    for distance in range(1, min(window, max(map(len, histories), default=1) - 1) + 1):
        same = user[distance:] == user[:-distance]
        pair = (rows[:-distance][same], rows[distance:][same])
        weight = np.full(len(pair[0]), distance**-distance_exponent, dtype=np.float32)
        found = found + sp.csr_array((weight, pair), shape=(n_items, n_items))
    return found
