"""One step of constrained beam search as a compiled loop: the same result as the torch code in `beam_search`, faster.

torch has to compute all candidates before it can choose. The loop visits beams from the best down. Once `width`
candidates are kept, and the worst of them is better than the next beam extended by the highest score of any code, no
later candidate can enter.

numba compiles it at first use, which takes some seconds; the result is cached next to this file.
"""

import heapq

import numpy as np
import torch
from numba import njit

from semid_lib.decoding.beam_search import Beam

_NO_COUNT, _NO_START, _NO_NODES = np.zeros((0, 1), np.int32), np.zeros(0, np.int32), np.zeros(0, np.int64)


def select(trie, level, beam, scores, width, subset) -> Beam | None:
    """`beam_search.select` for float32 tensors on the CPU; None if a candidate scores NaN."""
    n = len(beam.node)
    width = min(width, beam.node.shape[1] * trie.branching[level])
    child = torch.full((n, width), trie.n_nodes(level + 1))
    score, parent, code = torch.full((n, width), -torch.inf), torch.zeros_like(child), torch.zeros_like(child)
    empty, empty_start = _NO_NODES, np.zeros(n + 1, dtype=np.int64)
    if subset.excluded is not None:
        context, node = subset.emptied(level + 1)
        empty = node.numpy()
        np.cumsum(np.bincount(context.numpy(), minlength=n), out=empty_start[1:])
    is_last = level == trie.n_levels - 1
    n_alive = _fill(
        beam.node.contiguous().numpy(),  # numba would compile the loop again for another layout
        beam.score.contiguous().numpy(),
        scores.contiguous().numpy(),
        scores.amax(dim=(1, 2)).numpy(),
        trie.code[level].numpy(),
        trie.child_start[level].numpy(),
        _NO_START if is_last else trie.leaf_start[level + 1].numpy(),
        _NO_COUNT if subset.mask is None else subset.count.numpy(),
        empty,
        empty_start,
        child.numpy(),
        score.numpy(),
        parent.numpy(),
        code.numpy(),
    )
    return None if n_alive < 0 else Beam(*(part[:, :n_alive] for part in (child, score, parent, code)))


@njit(cache=True, nogil=True)
def _fill(  # noqa: PLR0912 one loop over candidates, each test skips most of them
    node,
    score,
    scores,
    highest,
    code,
    child_start,
    leaf_start,
    count,
    empty,
    empty_start,
    child,
    value,
    beam,
    last,
):
    """Fill child, value, beam and last with the best candidates of each context.

    node (B, W) int64, score (B, W) float32: the beams, -inf for dead ones. scores (B, W, K) float32: log-probabilities
    of codes; highest (B,): the highest of each context. code, child_start: arrays of the trie's level; leaf_start: of
    the depth below, empty if children are leaves. count: (G, n_leaves + 1) running sums of allowed leaves, empty if all
    are. empty: children that are excluded, those of context b from empty_start[b] on, ascending. child, value, beam,
    last: (B, width), written in the order of the children. Returns the greatest number of candidates of a context, -1
    for NaN.
    """
    width, most = child.shape[1], 0
    for b in range(node.shape[0]):
        group = b if len(count) > 1 else 0
        taken = empty[empty_start[b] : empty_start[b + 1]]
        kept = [(np.float32(0), np.int64(0), np.int64(0))]  # a heap with the worst first: score, -child, beam
        kept.clear()
        edge = np.float32(-np.inf)  # what a candidate must reach to be kept
        for w in np.argsort(-score[b]):
            above, row = score[b, w], scores[b, w]
            if above == -np.inf or above + highest[b] < edge:  # no later beam can do better
                break
            for c in range(child_start[node[b, w]], child_start[node[b, w] + 1]):
                total = above + row[code[c]]
                if total < edge or total == -np.inf:
                    continue
                if len(kept) == width and total == edge and c > -kept[0][1]:
                    continue
                if np.isnan(total):
                    return -1
                if len(count):
                    low, high = c, c + 1
                    if len(leaf_start):
                        low, high = leaf_start[c], leaf_start[c + 1]
                    if count[group, low] == count[group, high]:
                        continue
                at = np.searchsorted(taken, c)
                if at < len(taken) and taken[at] == c:
                    continue
                candidate = (total, np.int64(-c), np.int64(w))
                if len(kept) < width:
                    heapq.heappush(kept, candidate)
                else:
                    heapq.heapreplace(kept, candidate)
                if len(kept) == width:
                    edge = kept[0][0]
        n = len(kept)
        order = np.argsort(np.array([-candidate[1] for candidate in kept])) if n else np.zeros(0, np.int64)
        for place, at in enumerate(order):
            value[b, place], beam[b, place] = kept[at][0], kept[at][2]
            child[b, place] = -kept[at][1]
            last[b, place] = code[child[b, place]]
        most = max(most, n)
    return most
