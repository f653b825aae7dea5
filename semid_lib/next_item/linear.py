"""Linear item-item baselines with a closed form: EASE and SLIST, one (n_items, n_items) matrix each.

Both invert the Gram matrix of the catalogue in place, in float32. Time grows with the cube of the catalogue and memory
with its square: 12,000 items take half a minute of a free core, and the matrix takes 590 MB.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from semid_lib.next_item.baselines import Votes, decayed

_ROWS = 1024  # of a matrix, multiplied at once


class EASE(Votes):
    """Predicts whether a user has an item from all other items, by ridge regression (Steck 2019).

    Of all matrices with a zero diagonal, `similarity` minimizes

        || X - X B ||^2 + regularization * || B ||^2,

    where row u of X is 1 for the items of history u. With P the inverse of X'X + regularization * I, it is
    B_ij = -P_ij / P_jj. The paper's scores are X B, `decay` = 1; here recent items have more weight, as in `Votes`. The
    defaults were chosen on Beauty's validation items.

    Examples
    --------
    >>> ease = EASE([[0, 1], [0, 1], [1, 2]], n_items=3, regularization=1.0)
    >>> ease.similarity.round(2)
    array([[ 0.  ,  0.67, -0.25],
           [ 0.57,  0.  ,  0.37],
           [-0.29,  0.5 ,  0.  ]], dtype=float32)
    """

    def __init__(self, histories: Sequence[np.ndarray], n_items: int, regularization: float = 50.0, decay: float = 0.8):
        super().__init__(histories, n_items, decay)
        held = decayed(histories, n_items, 1.0, once=True)
        inverse = regularized_inverse(held.T @ held, regularization)
        inverse /= -np.diag(inverse)
        np.fill_diagonal(inverse, 0.0)
        self.similarity = inverse


class SLIST(Votes):
    """Predicts the rest of a history from its beginning by ridge regression (Choi et al. 2021).

    `similarity` minimizes, without a constraint on its diagonal,

        share * || X - X B ||^2 + (1 - share) * || T - S B ||^2 + regularization * || B ||^2,

    the sum of the paper's models of consistency (SLIS) and of transitions (SLIT). X is as in `EASE`. S and T have a row
    for each place at which a history can be cut: the items before the cut and those after it, each with weight
    `training_decay` ** (items between it and the cut). The paper normalizes rows and weights histories by
    their date; here neither is done. The defaults were chosen on Beauty's validation items.

    Examples
    --------
    >>> slist = SLIST([[0, 1], [0, 1], [1, 2]], n_items=3, share=0.0, regularization=1.0)
    >>> slist.similarity.round(2)
    array([[0.  , 0.67, 0.  ],
           [0.  , 0.  , 0.5 ],
           [0.  , 0.  , 0.  ]], dtype=float32)
    """

    def __init__(
        self,
        histories: Sequence[np.ndarray],
        n_items: int,
        regularization: float = 100.0,
        share: float = 0.2,
        training_decay: float = 0.5,
        decay: float = 0.7,
    ):
        super().__init__(histories, n_items, decay)
        held = decayed(histories, n_items, 1.0, once=True)
        before, after = cuts(histories, n_items, training_decay)
        gram = share * (held.T @ held) + (1 - share) * (before.T @ before)
        wanted = share * (held.T @ held) + (1 - share) * (before.T @ after)
        self.similarity = regularized_inverse(gram, regularization)
        for start in range(0, n_items, _ROWS):  # in place
            self.similarity[start : start + _ROWS] = self.similarity[start : start + _ROWS] @ wanted


def cuts(histories: Sequence[np.ndarray], n_items: int, decay: float) -> tuple[Any, Any]:
    """Each history cut at each place between two items: weights of the items before, and of the items after.

    An item has weight `decay` ** (items between it and the cut).

    Returns
    -------
    before, after : (n_cuts, n_items) sparse float32 arrays

    Examples
    --------
    >>> before, after = cuts([[0, 1, 2]], n_items=3, decay=0.5)
    >>> before.toarray(), after.toarray()
    (array([[1. , 0. , 0. ],
           [0.5, 1. , 0. ]], dtype=float32), array([[0. , 1. , 0.5],
           [0. , 0. , 1. ]], dtype=float32))
    """
    parts = [np.asarray(history, dtype=np.int64) for history in histories]
    before = [part[:end] for part in parts for end in range(1, len(part))]
    after = [part[end:][::-1] for part in parts for end in range(1, len(part))]
    return decayed(before, n_items, decay), decayed(after, n_items, decay)


def regularized_inverse(gram, regularization: float) -> np.ndarray:
    """The inverse of gram + regularization * I, (n, n) float32, of a sparse Gram matrix.

    Raises
    ------
    ValueError
        For a regularization that is not positive.

    Examples
    --------
    >>> import scipy.sparse as sp
    >>> regularized_inverse(sp.csr_array([[1.0, 1.0], [1.0, 1.0]]), 1.0).round(2)
    array([[ 0.67, -0.33],
           [-0.33,  0.67]], dtype=float32)
    """
    from scipy.linalg import lapack

    if not regularization > 0:
        raise ValueError(f"regularization is {regularization}, expected a positive number")
    dense = gram.astype(np.float32).toarray()
    dense.flat[:: len(dense) + 1] += np.float32(regularization)
    # of the transpose, which is in the order that LAPACK works on in place; it writes the upper triangle only
    factor, _ = lapack.spotrf(dense.T, overwrite_a=True)
    inverse, _ = lapack.spotri(factor, overwrite_c=True)
    for row in range(len(inverse)):
        inverse[row + 1 :, row] = inverse[row, row + 1 :]
    return inverse.T
