"""Constrained beam search: the most probable items under a model, and nothing that is not an item.

A model takes part through two methods (`Scorer`): `begin(contexts)` encodes a batch of contexts and scores the first
code, `advance(state, level, parents, codes)` extends the surviving beams by one code and scores the next. Contexts are
encoded once for any beam width, candidates are gathered from the trie instead of masking a vocabulary, and beams
without items are dropped.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import torch
from torch.nn.functional import embedding, pad
from tqdm.auto import tqdm

from semid_lib.decoding.subset import Subset
from semid_lib.decoding.trie import PrefixTrie
from semid_lib.workbench.text import check_count, shown

Normalization = Literal["vocabulary", "level"]
_COMPILED_FROM = 64  # beams of a batch; for fewer, torch is fast enough and numba need not be loaded
_BLOCK = 32  # candidates that are skipped together
_PREFIXES_AT_ONCE = 256  # in an exact ranking


class Scorer(Protocol):
    """The methods that a model needs; `timeline.Timeline` is one, `scorers` has those for transformers models.

    Both return a state, which the search only passes on, and log-probabilities (B, W, K) of the next code for each
    beam. `normalization` says over what they are normalized: "vocabulary", everything that the model can generate, or
    "level", the codes of the level, for which unnormalized scores are enough. `parents` (B, W') are positions among the
    old beams, `codes` (B, W') the codes of `level` that extend them. `advance` must not change the old state. If a
    scorer has `n_levels`, it must be that of the trie.
    """

    def begin(self, contexts, normalization: Normalization = "vocabulary"): ...
    def advance(self, state, level: int, parents: torch.Tensor, codes: torch.Tensor): ...


class Beams(NamedTuple):
    """The items found, best first; -1 and -inf in places that no item fills."""

    items: torch.Tensor  # (B, k) int64 catalogue rows
    scores: torch.Tensor  # (B, k) float32 log-probabilities of semantic IDs


class Beam(NamedTuple):
    """The surviving prefixes of one depth, (B, W) each, in ascending order of their nodes; dead ones at the end."""

    node: torch.Tensor  # int64; the number of nodes of the depth for a dead beam
    score: torch.Tensor  # float32; -inf for a dead beam
    parent: torch.Tensor  # int64 position among the beams before
    code: torch.Tensor  # int64 code that was added last


@torch.inference_mode()
def constrained_beam_search(
    scorer: Scorer,
    contexts,
    trie: PrefixTrie,
    beam_width: int,
    k: int,
    allowed: Subset | np.ndarray | torch.Tensor | None = None,
    normalization: Normalization = "vocabulary",
    diversity: tuple[int, int] | None = None,
) -> Beams:
    """Find the k most probable items per context by beam search over a prefix trie.

    Exact if beam_width is at least the number of prefixes. A narrower beam can miss items whose first codes score low,
    but returns min(k, items allowed) items, unless diversity is given or the model gives items probability 0. Equal
    scores are ordered by semantic ID.

    Parameters
    ----------
    scorer : Scorer
    contexts : any
        B contexts, passed to `scorer.begin`.
    trie : PrefixTrie
    beam_width, k : int
        Prefixes kept per level, items returned; 1 <= k <= beam_width.
    allowed : (n_rows,) or (B, n_rows) bool, or Subset, optional
        Items that may be returned.
    normalization : "vocabulary" or "level"
        See `Scorer`; the two rank differently.
    diversity : (m, p), optional
        At most m items under one prefix of p codes: the best lists that the candidates of the beam allow.

    Returns
    -------
    Beams
        items (B, k) int64, best first, -1 if unused; scores (B, k) float32 log-probabilities, -inf if unused.

    Raises
    ------
    ValueError
        If k, beam_width, allowed or the scores do not fit, or a reachable code scores NaN.

    Examples
    --------
    >>> class Fixed:  # probabilities of codes 0 and 1 at each level
    ...     log = torch.tensor([0.7, 0.3]).log()
    ...     begin = lambda self, contexts, normalization: (None, self.log.expand(len(contexts), 1, 2))
    ...     advance = lambda self, state, level, parents, codes: (None, self.log.expand(*codes.shape, 2))
    >>> trie = PrefixTrie.build(np.array([[0, 0], [0, 1], [1, 1]]))
    >>> constrained_beam_search(Fixed(), ["ann"], trie, 3, 3, allowed=np.array([False, True, True])).items
    tensor([[ 1,  2, -1]])
    """
    k, beam_width = check_count("k", k), check_count("beam_width", beam_width)
    if beam_width < k:
        expected = f"1 <= k <= beam_width. Set beam_width to {k} or more"
        raise ValueError(f"k is {k} and beam_width {beam_width}: expected {expected}")
    n_alike, prefix_length = _checked_diversity(diversity, trie.n_levels)
    state, scores, subset = _begun(scorer, contexts, normalization, trie, allowed)
    zeros = torch.zeros((len(scores), 1), dtype=torch.long, device=scores.device)
    beam = Beam(zeros, torch.zeros(zeros.shape, device=zeros.device), zeros, zeros)
    prefix = zeros  # the node at depth `prefix_length` above each beam
    for level in range(trie.n_levels):
        is_last = level == trie.n_levels - 1
        every = beam.node.shape[1] * trie.branching[level]
        width = beam_width if not is_last else every if n_alike else k
        beam = select(trie, level, beam, _of_codes(scores, level, trie, normalization), width, subset)
        if n_alike:
            prefix = beam.node if level < prefix_length else prefix.gather(1, beam.parent)
        if not beam.node.shape[1] or is_last:  # no item is left for any context
            break
        state, scores = scorer.advance(state, level, beam.parent, beam.code)
    score = _thinned(beam.score, prefix, n_alike) if n_alike else beam.score
    return _answer(trie, beam.node, score, k)


@torch.inference_mode()
def exact_ranking(
    scorer: Scorer,
    contexts,
    trie: PrefixTrie,
    k: int,
    allowed: Subset | np.ndarray | torch.Tensor | None = None,
    progress: bool = False,
) -> Beams:
    """Find the k most probable items per context by scoring every item.

    The trie is expanded depth first in blocks of 256 prefixes, so that the model's part of the memory grows with the
    number of levels. The scores take 4 bytes per context and item.

    Parameters
    ----------
    scorer, contexts, trie, k, allowed
        As for `constrained_beam_search`, normalized over the vocabulary.
    progress : bool

    Examples
    --------
    >>> class Coin:  # a model for which every code has probability 1/2
    ...     begin = lambda self, contexts, normalization: (None, torch.full((len(contexts), 1, 2), 0.5).log())
    ...     advance = lambda self, state, level, parents, codes: (None, torch.full((*codes.shape, 2), 0.5).log())
    >>> trie = PrefixTrie.build(np.array([[1, 0], [0, 1], [1, 1]]))
    >>> exact_ranking(Coin(), ["ann"], trie, k=4).items
    tensor([[ 1,  0,  2, -1]])
    """
    k = check_count("k", k)
    state, scores, subset = _begun(scorer, contexts, "vocabulary", trie, allowed)
    everything = _leaf_scores(scorer, trie, state, scores, progress)
    subset.keep(everything)
    score, leaf = _top(everything, min(k, trie.n_items))
    leaf, order = leaf.sort(dim=1)
    return _answer(trie, leaf, score.gather(1, order), k)


@torch.inference_mode()
def exact_scores(scorer: Scorer, contexts, trie: PrefixTrie) -> torch.Tensor:
    """Score every item, arguments as for `exact_ranking`: (B, n_items) float32 log-probabilities, by item.

    >>> class Coin:  # a model for which every code has probability 1/2
    ...     begin = lambda self, contexts, normalization: (None, torch.full((len(contexts), 1, 2), 0.5).log())
    >>> exact_scores(Coin(), ["ann"], PrefixTrie.build(np.array([[1], [0]]))).exp()
    tensor([[0.5000, 0.5000]])
    """
    state, scores, _ = _begun(scorer, contexts, "vocabulary", trie, None)
    by_leaf = _leaf_scores(scorer, trie, state, scores)
    return torch.empty_like(by_leaf).index_copy_(1, trie.item.long(), by_leaf)


def _leaf_scores(scorer: Scorer, trie: PrefixTrie, state, scores: torch.Tensor, progress: bool = False) -> torch.Tensor:
    """The log-probability of every item, in the order of the leaves: (B, n_items)."""
    everything = torch.full((len(scores), trie.n_items), -torch.inf, device=scores.device)
    with tqdm(total=trie.n_items, desc="scoring every item", unit="item", disable=not progress) as bar:

        def expand(level: int, first: int, score: torch.Tensor, state, scores: torch.Tensor) -> None:
            """Score all items under nodes first, first + 1, ...; score is (B, n) for n nodes."""
            start = trie.child_start[level][first : first + score.shape[1] + 1].long()
            low, high = int(start[0]), int(start[-1])
            parent = torch.arange(score.shape[1], device=score.device).repeat_interleave(start.diff())
            code = trie.code[level][low:high].long()
            value = score[:, parent] + _of_codes(scores, level, trie, "vocabulary")[:, parent, code]
            if math.isnan(value.sum()):
                raise _nan_at(level)
            if level == trie.n_levels - 1:
                everything[:, low:high] = value
                bar.update(high - low)
                return
            for at in range(0, high - low, _PREFIXES_AT_ONCE):
                part = slice(at, at + _PREFIXES_AT_ONCE)
                parents, codes = (index[part].expand(len(score), -1) for index in (parent, code))
                expand(level + 1, low + at, value[:, part], *scorer.advance(state, level, parents, codes))

        expand(0, 0, torch.zeros((len(scores), 1), device=scores.device), state, scores)
    return everything


def select(
    trie: PrefixTrie,
    level: int,
    beam: Beam,
    scores: torch.Tensor,
    width: int,
    subset: Subset | None = None,
    compiled: bool | None = None,
) -> Beam:
    """One step of the search: the best `width` children of all beams of each context, in the order of their nodes.

    scores: (B, W, K) log-probabilities of the codes of `level`; ValueError if one that could be chosen is NaN.
    """
    if compiled is None:
        compiled = beam.node.numel() >= _COMPILED_FROM
    compiled = compiled and beam.node.device.type == "cpu" and scores.dtype == torch.float32
    found = ((compiled and _compiled()) or _select)(trie, level, beam, scores, width, subset or trie.everything)
    if found is None:
        raise _nan_at(level)
    return found


def _select(trie, level, beam, scores, width, subset) -> Beam | None:
    value, child_at = _candidates(trie, level, beam, scores, subset)
    n_columns = value.shape[2]
    value = value.flatten(1)
    best, at = _top(value, min(width, value.shape[1]))
    highest, lowest = (best[:, column].tolist() if best.shape[1] else [] for column in (0, -1))
    if any(map(math.isnan, highest)):  # NaN counts as greatest
        return None
    some_dead = not lowest or min(lowest) == -torch.inf
    if some_dead:  # they go to the end
        at = at.masked_fill(best == -torch.inf, value.shape[1])
    at, order = at.sort(dim=1)
    score = best.gather(1, order)
    if some_dead:
        n_alive = int((score > -torch.inf).sum(dim=1).max()) if score.numel() else 0
        at, score = at[:, :n_alive].clamp(max=max(value.shape[1] - 1, 0)), score[:, :n_alive]
    parent = at // n_columns
    child, code = child_at(parent, at - parent * n_columns)
    if some_dead:
        child = child.masked_fill(score == -torch.inf, trie.n_nodes(level + 1))
    return Beam(child, score, parent, code)


def _top(value: torch.Tensor, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The `width` greatest values of each row and their columns; of equal values the first columns.

    Rows are long and `width` is small: a block whose maximum is not among the `width` greatest maxima is skipped.
    """
    n_rows, n_columns = value.shape
    if 0 < 2 * width * _BLOCK < n_columns and n_columns % _BLOCK == 0:
        blocks = value.view(n_rows, -1, _BLOCK)
        highest, block = blocks.amax(dim=2).topk(width + 1, dim=1)
        block = block[:, :width]
        row = block + blocks.shape[1] * torch.arange(n_rows, device=value.device)[:, None]
        best, at = embedding(row, value.view(-1, _BLOCK)).flatten(1).topk(width + 1, dim=1)
        at = block.gather(1, at // _BLOCK) * _BLOCK + at % _BLOCK
        rest = torch.maximum(best[:, -1], highest[:, -1])
    else:
        best, at = value.topk(min(width + 1, n_columns), dim=1)
        rest = best[:, -1] if n_columns > width else best.new_full((n_rows,), -torch.inf)
    best, at = best[:, :width], at[:, :width]
    if width and any(a == b > -torch.inf for a, b in zip(best[:, -1].tolist(), rest.tolist(), strict=True)):
        at = value.argsort(dim=1, descending=True, stable=True)[:, :width]
        best = value.gather(1, at)
    return best, at


def _candidates(trie, level, beam, scores, subset) -> tuple[torch.Tensor, Callable]:
    """Scores of all children, (B, W, C) with -inf for none, and a function from positions to children and codes.

    Columns are codes if the trie has a table of the level, else first, second, ... children; both ascend.
    """
    table, total, mask = trie.tables[level], beam.score[..., None], subset.mask
    if table is not None:
        n_codes, row = table.shape[1], beam.node
        if mask is not None and len(mask) > 1:  # each context has a table of its own
            row = row + len(table) * torch.arange(len(row), device=row.device)[:, None]
        value = scores[..., :n_codes] + total
        value += embedding(row, subset.penalty(level))  # the fastest way to take rows

        def child_at(parent, column):
            return table[beam.node.gather(1, parent), column].long(), column

        column_of = lambda child, first: trie.code[level][child].long()  # noqa: E731
    else:
        start, last = trie.child_start[level], trie.n_nodes(level + 1) - 1
        first = start[beam.node].long()
        n_children = start[(beam.node + 1).clamp_(max=len(start) - 1)] - first
        column = torch.arange(trie.branching[level], device=beam.node.device)
        child = (first[..., None] + column).clamp_(max=last)
        possible = column < n_children[..., None]
        value = scores.gather(2, trie.code[level][child].long()) + total
        if mask is not None:
            context = torch.arange(len(child), device=child.device)[:, None, None]
            possible &= subset.n_allowed(level + 1, child, context) > 0
        value.masked_fill_(possible.logical_not_(), -torch.inf)

        def child_at(parent, column):
            child = (first.gather(1, parent) + column).clamp_(max=last)
            return child, trie.code[level][child].long()

        column_of = lambda child, first: child - first  # noqa: E731
    if subset.excluded is not None:
        context, child = subset.emptied(level + 1)
        parent = torch.searchsorted(trie.child_start[level], child.to(torch.int32), right=True) - 1
        place = torch.searchsorted(beam.node[context], parent[:, None]).squeeze(1).clamp(max=beam.node.shape[1] - 1)
        met = beam.node[context, place] == parent
        context, place, child, parent = context[met], place[met], child[met], parent[met]
        value[context, place, column_of(child, trie.child_start[level][parent].long())] = -torch.inf
    return value, child_at


@functools.cache
def _compiled() -> Callable | None:
    """`select` as a compiled loop; None without numba, or without a folder for its cache."""
    try:
        from semid_lib.decoding import kernel
    except (ImportError, RuntimeError):
        return None
    return kernel.select


def _answer(trie: PrefixTrie, leaf: torch.Tensor, score: torch.Tensor, k: int) -> Beams:
    """The items of the best leaves, padded to k; leaves ascend, so equal scores are in the order of the IDs."""
    score, order = score.sort(dim=1, descending=True, stable=True)
    score, leaf = score[:, :k], leaf.gather(1, order[:, :k])
    item = trie.item_at(torch.where(score > -torch.inf, leaf, -1))
    missing = (0, k - score.shape[1])
    return Beams(pad(item, missing, value=-1), pad(score, missing, value=-torch.inf))


def _thinned(score: torch.Tensor, prefix: torch.Tensor, n_items: int) -> torch.Tensor:
    """Scores (B, C) with -inf for all but the best n_items of each prefix; prefixes (B, C) ascend."""
    order = score.argsort(dim=1, descending=True, stable=True)
    order = order.gather(1, prefix.gather(1, order).argsort(dim=1, stable=True))  # by prefix, the best of each first
    ordered = prefix.gather(1, order).contiguous()
    rank = torch.arange(score.shape[1], device=score.device) - torch.searchsorted(ordered, ordered)
    return score.masked_fill(torch.zeros_like(rank).scatter(1, order, rank) >= n_items, -torch.inf)


def _begun(
    scorer, contexts, normalization: Normalization, trie: PrefixTrie, allowed
) -> tuple[Any, torch.Tensor, Subset]:
    """The state and scores of the contexts before the first code, and the items that they may return, all checked."""
    if getattr(scorer, "n_levels", trie.n_levels) != trie.n_levels:
        raise ValueError(f"the model generates {scorer.n_levels} levels, the trie has {trie.n_levels}")
    if normalization not in ("vocabulary", "level"):
        raise ValueError(f"normalization is {normalization!r}, expected 'vocabulary' or 'level'")
    subset = allowed if isinstance(allowed, Subset) else trie.subset(allowed)
    if subset.trie is not trie:
        raise ValueError("allowed is a subset of another trie")
    state, scores = scorer.begin(contexts, normalization)
    if scores.device != trie.item.device:
        raise ValueError(f"the model is on {scores.device}, the trie on {trie.item.device}: move it with trie.to(...)")
    subset.check_contexts(len(scores))
    return state, scores, subset


def _of_codes(scores: torch.Tensor, level: int, trie: PrefixTrie, normalization: Normalization) -> torch.Tensor:
    """A model's scores as float32 log-probabilities; ValueError for fewer codes than the trie has."""
    n, largest = scores.shape[-1], trie.sizes[level] - 1
    if n <= largest:
        raise ValueError(f"the model scores {n} codes at level {level}, the trie has codes up to {largest}")
    scores = scores.float()  # sums of half-precision scores would tie
    return scores.log_softmax(dim=-1) if normalization == "level" else scores


def _nan_at(level: int) -> ValueError:
    return ValueError(f"NaN at level {level}: expected log-probabilities. Check the weights, or score in float32")


def _checked_diversity(diversity: tuple[int, int] | None, n_levels: int) -> tuple[int, int]:
    """How many items of a list may share how many codes; zeros for no limit."""
    if diversity is None:
        return 0, 0
    try:
        n_items, prefix_length = (check_count("diversity", part) for part in diversity)
        if prefix_length > n_levels:
            raise ValueError
    except (TypeError, ValueError):
        expected = f"(at least 1, a prefix length from 1 to {n_levels})"
        raise ValueError(f"diversity is {shown(diversity)}, expected {expected}") from None
    return n_items, prefix_length
