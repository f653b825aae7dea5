"""Constrained beam search: the best items under a model, and nothing that is not an item.

A model takes part through two methods. `begin(contexts)` reads a batch of contexts and scores the first code;
`advance(state, level, parents, codes)` extends the surviving beams by one code and scores the next. Contexts are read
once however wide the beam, the first step has one row per context, and the last step writes no state.
"""

from typing import NamedTuple, Protocol

import torch

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
    followed only while some item under it is not excluded. A beam at least as wide as the number of prefixes is
    exact; a narrower one may miss items whose first codes look poor. Returns min(k, items left) items whenever
    beam_width >= k. Equal scores are ordered by semantic ID.
    Raises ValueError if k < 1, beam_width < k, or the model's scores hold NaN.
    """
    if k < 1 or beam_width < k:
        raise ValueError(f"expected 1 <= k <= beam_width, got k={k} and beam_width={beam_width}")
    state, log_probabilities = model.begin(contexts)
    batch = len(log_probabilities)
    node = torch.zeros((batch, 1), dtype=torch.long, device=log_probabilities.device)
    score = torch.zeros((batch, 1), device=log_probabilities.device)
    seen = None if excluded is None else _seen_leaves(trie, excluded)
    for level in range(trie.n_levels):
        last = level == trie.n_levels - 1
        beams = _select(trie, level, node, score, log_probabilities, seen, k if last else beam_width)
        node, score = beams.node, beams.score
        if not last:
            state, log_probabilities = model.advance(state, level, beams.parent, beams.code)
    alive = score > -torch.inf
    return Beams(torch.where(alive, trie.item[node], -1), score)


class _Selected(NamedTuple):
    node: torch.Tensor  # (B, W) nodes of the next depth
    score: torch.Tensor  # (B, W) float32, -inf for a place that nothing filled
    parent: torch.Tensor  # (B, W) which old beam each comes from
    code: torch.Tensor  # (B, W) the code that it added


def _select(trie, level, node, score, log_probabilities, seen, width) -> _Selected:
    """Gather the children of all live beams, score them, keep the best `width` per context."""
    if torch.isnan(log_probabilities).any():
        raise ValueError(f"the model scored codes of level {level} with NaN")
    batch, n_beams = node.shape
    first = trie.child_start[level][node]
    n_children = (trie.child_start[level][node + 1] - first) * (score > -torch.inf)
    # one flat list of all candidates, context after context, beam after beam, child after child
    beam = torch.repeat_interleave(n_children.flatten())
    context = beam // n_beams
    total = n_children.sum(dim=1)
    offset = torch.cumsum(n_children.flatten(), 0) - n_children.flatten()
    candidate = first.flatten()[beam] + torch.arange(len(beam), device=beam.device) - offset[beam]
    code = trie.code[level][candidate]
    value = score.flatten()[beam] + log_probabilities.flatten(0, 1)[beam, code]
    # ... laid out as one padded row per context
    column = torch.arange(len(beam), device=beam.device) - (torch.cumsum(total, 0) - total)[context]
    longest = max(int(total.max()), 1) if batch else 1
    padded = value.new_full((batch, longest), -torch.inf)
    padded[context, column] = value
    index = torch.zeros((batch, longest), dtype=torch.long, device=node.device)
    index[context, column] = torch.arange(len(beam), device=beam.device)
    if seen is not None:
        padded = _without_seen(trie, level, candidate, context, column, padded, seen)
    best, where = torch.sort(padded, dim=1, descending=True, stable=True)
    best, where = best[:, :width], where[:, :width]
    chosen = index.gather(1, where)
    return _Selected(candidate[chosen], best, beam[chosen] % n_beams, code[chosen])


def _seen_leaves(trie: PrefixTrie, excluded: torch.Tensor) -> torch.Tensor:
    """Excluded items as sorted leaves, unused places past the last leaf: (B, m) int64."""
    leaf = trie.leaf_of_item()[excluded.clamp(min=0)]
    return torch.where(excluded >= 0, leaf, trie.n_items).sort(dim=1).values


def _without_seen(trie, level, candidate, context, column, padded, seen):
    """-inf for every candidate under which all items are excluded: its interval of leaves holds none but those."""
    low, high = trie.leaf_start[level + 1][candidate], trie.leaf_start[level + 1][candidate + 1]
    interval = torch.zeros((*padded.shape, 2), dtype=torch.long, device=padded.device)
    interval[context, column] = torch.stack([low, high], dim=-1)
    n_seen = torch.searchsorted(seen, interval.flatten(1)).view(interval.shape).diff(dim=-1).squeeze(-1)
    return padded.masked_fill(n_seen >= interval[..., 1] - interval[..., 0], -torch.inf)
