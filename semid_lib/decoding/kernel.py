"""One step of constrained beam search as a compiled loop: the same answer as the torch code in `decode`, sooner.

torch has to lay all candidates out before it can choose. A loop need not: it visits beams from the best down. Once
`width` candidates are kept, and the worst of them is better than the next beam extended by the highest score of any
code, no candidate of that beam or of any after it can enter. This changes nothing in the answer, whatever the scores.

numba compiles it at its first use, which takes some seconds, once: the result is kept beside this file.
"""

import numpy as np
from numba import njit

NAN = -1  # returned instead of a number of beams when a candidate's score is not a number


@njit(cache=True, nogil=True)
def _worse(value, child, other_value, other_child):
    """Whether a candidate comes after another: a lower score, or an equal one and a later ID."""
    return value < other_value or (value == other_value and child > other_child)


@njit(cache=True, nogil=True)
def _sift_down(values, children, beams, n):
    """Put the worst candidate back at the top of the heap after its top was replaced."""
    at = 0
    while True:
        worst = 2 * at + 1
        if worst >= n:
            return
        if worst + 1 < n and _worse(values[worst + 1], children[worst + 1], values[worst], children[worst]):
            worst += 1
        if not _worse(values[worst], children[worst], values[at], children[at]):
            return
        values[at], values[worst] = values[worst], values[at]
        children[at], children[worst] = children[worst], children[at]
        beams[at], beams[worst] = beams[worst], beams[at]
        at = worst


@njit(cache=True, nogil=True)
def _sift_up(values, children, beams, at):
    while at:
        above = (at - 1) // 2
        if not _worse(values[at], children[at], values[above], children[above]):
            return
        values[at], values[above] = values[above], values[at]
        children[at], children[above] = children[above], children[at]
        beams[at], beams[above] = beams[above], beams[at]
        at = above


@njit(cache=True, nogil=True)
def _contains(ordered, wanted):
    at = np.searchsorted(ordered, wanted)
    return at < len(ordered) and ordered[at] == wanted


@njit(cache=True, nogil=True)
def select(  # noqa: PLR0912 one loop over candidates, each test sets most of them aside
    node,
    score,
    scores,
    highest,
    code,
    child_start,
    leaf_start,
    count,
    allowed,
    empty,
    empty_start,
    child,
    value,
    beam,
    last,
):
    """Fill child, value and beam with the best candidates of each context; returns the most any context has, or NAN.

    node (B, W) int64, score (B, W) float32: the beams, -inf for dead ones. scores (B, W, K) float32: log-probabilities
    of codes; highest (B,) float32: the highest of each context. code, child_start: the trie's arrays of this level;
    leaf_start: of the depth below, empty where children are leaves. Which children are allowed: (G, n_children) bool
    `allowed`, or `count`, (G, n_leaves + 1) int32 running sums of allowed leaves, both with G 0 for all. empty: (n,)
    int64 children that are not to be followed either, those of context b from empty_start[b] on in ascending order.
    child, value, beam, last: (B, width), written in the order of the children, the rest of each row left as it is;
    `last` is the code of the child.
    """
    width, most = child.shape[1], 0
    for b in range(node.shape[0]):
        values, children, beams, n = value[b], child[b], beam[b], 0
        group = b if max(len(count), len(allowed)) > 1 else 0
        taken = empty[empty_start[b] : empty_start[b + 1]]
        edge = np.float32(-np.inf)  # what a candidate must reach to be kept
        for w in np.argsort(-score[b]):
            above, row = score[b, w], scores[b, w]
            if above == -np.inf or above + highest[b] < edge:  # no later beam can do better
                break
            for c in range(child_start[node[b, w]], child_start[node[b, w] + 1]):
                total = above + row[code[c]]
                if total < edge or total == -np.inf:
                    continue
                if n == width and total == edge and c > children[0]:
                    continue
                if np.isnan(total):
                    return NAN
                if allowed.shape[0] and not allowed[group, c]:
                    continue
                if count.shape[0] and count[group, leaf_start[c + 1]] == count[group, leaf_start[c]]:
                    continue
                if len(taken) and _contains(taken, c):
                    continue
                at = 0 if n == width else n
                values[at], children[at], beams[at] = total, c, w
                if n == width:
                    _sift_down(values, children, beams, n)
                else:
                    n += 1
                    _sift_up(values, children, beams, at)
                if n == width:
                    edge = values[0]
        order = np.argsort(children[:n])
        values[:n], children[:n], beams[:n] = values[:n][order], children[:n][order], beams[:n][order]
        for at in range(n):
            last[b, at] = code[children[at]]
        most = max(most, n)
    return most
