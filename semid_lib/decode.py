"""Constrained beam search: the best items under a model, and nothing that is not an item.

A model takes part through two methods. `begin(contexts)` reads a batch of contexts and scores the first code;
`advance(state, level, parents, codes)` extends the surviving beams by one code and scores the next. Contexts are read
once however wide the beam, the first step has one row per context, and the last step writes no state.
"""

from typing import NamedTuple, Protocol

import torch
from torch.nn import functional

from semid_lib.trie import PrefixTrie


class Scorer(Protocol):
    """What a model must offer; `timeline.Timeline` is one."""

    def begin(self, contexts): ...
    def advance(self, state, level, parents, codes): ...


class Beams(NamedTuple):
    """The items found, best first; places that no item could fill hold -1 and -inf."""

    items: torch.Tensor  # (B, k) int64 rows of the catalogue
    scores: torch.Tensor  # (B, k) float32: log-probability of the whole semantic ID


@torch.inference_mode()
def constrained_beam_search(
    model: Scorer, contexts, trie: PrefixTrie, beam_width: int, k: int, excluded: torch.Tensor | None = None
) -> Beams:
    """The k most probable items for each context, by a beam search that only follows the trie.

    excluded: (B, m) item rows that must not come out, such as items already bought, -1 for unused places; a node is
    followed only while some item under it is not excluded. A beam at least as wide as the number of prefixes is exact;
    a narrower one may miss items whose first codes look poor, but it returns min(k, items left) items all the same,
    unless the model gives items the probability 0: those never come out. Equal scores are ordered by semantic ID.
    Raises ValueError if k < 1, beam_width < k, or the model's scores hold NaN.
    """
    if k < 1 or beam_width < k:
        raise ValueError(f"expected 1 <= k <= beam_width, got k={k} and beam_width={beam_width}")
    state, log_probabilities = model.begin(contexts)
    node = torch.zeros((len(log_probabilities), 1), dtype=torch.long, device=log_probabilities.device)
    score = torch.zeros(node.shape, device=node.device)
    seen = None if excluded is None else _seen_leaves(trie, excluded)
    for level in range(trie.n_levels):
        if (torch.isnan(log_probabilities.sum(dim=-1)) & (score > -torch.inf)).any():
            raise ValueError(f"the model scored codes of level {level} with NaN")
        beam, child, real = _children(trie, level, node, score)
        code = trie.code[level][child]
        value = score.gather(1, beam) + log_probabilities[_rows(beam), beam, code]
        possible = real if seen is None else real & ~_all_seen(trie, level + 1, child, seen)
        value = value.masked_fill(~possible, -torch.inf)
        best = value.argsort(dim=1, descending=True, stable=True)
        if level == trie.n_levels - 1:
            return _answer(trie, child, value, best[:, :k], k)
        # in the order of their nodes, not of their scores: children then come in the order of their IDs
        kept = best[:, :beam_width].sort(dim=1).values
        node, score = child.gather(1, kept), value.gather(1, kept)
        state, log_probabilities = model.advance(state, level, beam.gather(1, kept), code.gather(1, kept))
    raise AssertionError("a trie has at least one level")


def _children(trie: PrefixTrie, level: int, node: torch.Tensor, score: torch.Tensor):
    """The children of all live beams side by side, beam after beam; a row per context, padded to the longest.

    node, score: (B, W). Returns for each of C columns its beam (B, C), its node one level deeper (B, C) and whether
    it is a child at all (B, C).
    """
    first = trie.child_start[level][node]
    count = torch.where(score > -torch.inf, trie.child_start[level][node + 1] - first, 0)
    end = count.cumsum(dim=1)
    longest = max(int(end[:, -1].max()), 1) if len(node) else 1
    column = torch.arange(longest, device=node.device).repeat(len(node), 1)
    beam = torch.searchsorted(end, column, right=True).clamp(max=node.shape[1] - 1)
    child = first.gather(1, beam) + column - (end - count).gather(1, beam)
    real = column < end[:, -1:]
    return beam, torch.where(real, child, 0), real


def _answer(trie: PrefixTrie, leaf: torch.Tensor, value: torch.Tensor, best: torch.Tensor, k: int) -> Beams:
    """The items of the best leaves, padded to k places."""
    score = value.gather(1, best)
    item = torch.where(score > -torch.inf, trie.item[leaf.gather(1, best)], -1)
    missing = (0, k - best.shape[1])
    return Beams(functional.pad(item, missing, value=-1), functional.pad(score, missing, value=-torch.inf))


def _seen_leaves(trie: PrefixTrie, excluded: torch.Tensor) -> torch.Tensor:
    """Excluded items as leaves in ascending order, each once; unused places past the last leaf: (B, m) int64."""
    leaf = torch.where(excluded >= 0, trie.leaf_of_item()[excluded.clamp(min=0)], trie.n_items).sort(dim=1).values
    repeated = functional.pad(leaf[:, 1:] == leaf[:, :-1], (1, 0))
    return leaf.masked_fill(repeated, trie.n_items).sort(dim=1).values


def _all_seen(trie: PrefixTrie, depth: int, node: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
    """Whether every item under a node is excluded: its interval of leaves holds as many seen leaves as leaves."""
    low, high = trie.leaf_start[depth][node], trie.leaf_start[depth][node + 1]
    return torch.searchsorted(seen, high) - torch.searchsorted(seen, low) == high - low


def _rows(index: torch.Tensor) -> torch.Tensor:
    return torch.arange(len(index), device=index.device)[:, None]
