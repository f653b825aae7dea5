"""Subsets of a trie's items: business rules and seen items, without building another trie.

A running sum of allowed leaves tells in two look-ups whether an interval of leaves, and so a node, holds any. The few
items excluded from single contexts are sorted lists.
"""

import copy
from typing import TYPE_CHECKING, cast

import numpy as np
import torch

if TYPE_CHECKING:
    from semid_lib.decoding.trie import PrefixTrie


DENSE = 2**18  # a depth has a table of its nodes and codes if that has no more entries


class Subset:
    """Some items of a trie, for all contexts or for each; made by `PrefixTrie.subset`."""

    def __init__(self, trie: "PrefixTrie", mask: torch.Tensor | None, excluded: torch.Tensor | None):
        self.trie, self.mask = trie, mask  # (G, n_items) bool in the order of the leaves, G = 1 or B
        self.n_contexts = _common({len(mask)} - {1} if mask is not None else set(), _lengths(excluded))
        if mask is not None:
            self.count = torch.zeros((len(mask), trie.n_items + 1), dtype=torch.int32, device=mask.device)
            torch.cumsum(mask, dim=1, dtype=torch.int32, out=self.count[:, 1:])
        self._tables: dict = {}  # made by `nodes` and `penalty`
        self.excluded = self._inside(excluded)  # (B, m) int64 leaves, ascending, n_items in unused places

    def _inside(self, excluded: torch.Tensor | None) -> torch.Tensor | None:
        """Excluded leaves without those that the mask does not allow."""
        if excluded is None or self.mask is None:
            return excluded
        n_items = self.trie.n_items
        outside = ~self.mask[_group(self.mask, excluded), excluded.clamp(max=n_items - 1)]
        return excluded.masked_fill(outside, n_items).sort(dim=1).values

    def __and__(self, other: "Subset") -> "Subset":
        """The items in both; ValueError for different tries or numbers of contexts."""
        if self.trie is not other.trie:
            raise ValueError("the subsets are of different tries, expected the same")
        numbers = [{each.n_contexts} - ({1} if each.excluded is None else set()) for each in (self, other)]
        n_contexts = _common(*numbers)
        both = copy.copy(other if self.mask is None else self)  # sharing one mask and its tables
        if self.mask is not None and other.mask is not None:
            both = Subset(self.trie, self.mask & other.mask, None)
        lists = [subset.excluded for subset in (self, other) if subset.excluded is not None]
        if lists:
            both.excluded = both._inside(_unique(torch.cat(lists, dim=1), self.trie.n_items))
        both.n_contexts = n_contexts
        return both

    def for_contexts(self, n: int) -> "Subset":
        """The same subset for n contexts; ValueError if it is for another number."""
        if self.n_contexts not in (1, n):
            raise ValueError(f"the subset is for {self.n_contexts} contexts, there are {n}")
        if self.excluded is None or len(self.excluded) == n:
            return self
        wider = copy.copy(self)
        wider.excluded, wider.n_contexts = self.excluded.expand(n, -1), n
        return wider

    def n_left(self) -> torch.Tensor:
        """The number of items of each context: (n_contexts,) int64."""
        left = torch.full((self.n_contexts,), self.trie.n_items, device=self.trie.item.device)
        if self.mask is not None:
            left = self.count[:, -1].long().expand(self.n_contexts)
        return left if self.excluded is None else left - (self.excluded < self.trie.n_items).sum(dim=1)

    def has(self, depth: int, node: torch.Tensor, context: torch.Tensor | None = None) -> torch.Tensor:
        """Whether nodes (...) of a depth have any item left: (...) bool.

        context: the context of each node, (...) int64; by default the first dimension of `node`.
        """
        if context is None:
            context = _rows(node)
        low, high = self.trie.leaves(depth, node)
        left = high - low
        if self.mask is not None:
            group = context if len(self.mask) != 1 else torch.zeros_like(context)
            left = self.count[group, high] - self.count[group, low]
        if self.excluded is not None:
            for leaf in self.excluded.T:  # few columns
                left = left - ((leaf[context] >= low) & (leaf[context] < high)).long()
        return left > 0

    def allowed(self, depth: int, node: torch.Tensor) -> torch.Tensor:
        """`has` for nodes (B, ...) by the mask alone."""
        nodes, group = self.nodes(depth), _group(cast("torch.Tensor", self.mask), node)
        if nodes is not None:
            return nodes[group, node]
        low, high = self.trie.leaves(depth, node)
        return self.count[group, high] != self.count[group, low]

    def keep(self, scores: torch.Tensor) -> None:
        """Set the scores (B, n_items) of all other leaves to -inf, in place."""
        if self.mask is not None:
            scores.masked_fill_(~self.mask, -torch.inf)
        if self.excluded is not None:
            context, place = torch.nonzero(self.excluded < self.trie.n_items, as_tuple=True)
            scores[context, self.excluded[context, place]] = -torch.inf

    def nodes(self, depth: int) -> torch.Tensor | None:
        """`allowed` for a whole depth, (G, n_nodes) bool; None for a depth with too many nodes."""
        if depth == self.trie.n_levels:
            return self.mask
        if self.trie.n_nodes(depth) > DENSE:
            return None
        if depth not in self._tables:
            at_start = self.count[:, self.trie.leaf_start[depth]]
            self._tables[depth] = at_start[:, 1:] != at_start[:, :-1]
        return self._tables[depth]

    def penalty(self, level: int) -> torch.Tensor:
        """`PrefixTrie.penalty` for the allowed items: (G, n_nodes + 1, sizes[level]) float32."""
        if ("penalty", level) not in self._tables:
            children = cast("torch.Tensor", self.trie.table(level))
            allowed = cast("torch.Tensor", self.nodes(level + 1))[:, children.clamp(min=0)] & (children >= 0)
            self._tables["penalty", level] = penalty_of(allowed)
        return self._tables["penalty", level]

    def emptied(self, depth: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Nodes of a depth whose allowed items are all excluded: (n,) contexts and (n,) nodes, int64."""
        excluded = cast("torch.Tensor", self.excluded)
        node = self.trie.ancestor(depth, excluded)
        used = excluded < self.trie.n_items
        node = torch.where(used, node, self.trie.n_nodes(depth)).contiguous()
        taken = torch.searchsorted(node, node, right=True) - torch.searchsorted(node, node)
        low, high = self.trie.leaves(depth, torch.where(used, node, 0))
        left = high - low
        if self.mask is not None:
            group = _group(self.mask, node)
            left = self.count[group, high] - self.count[group, low]
        context, place = torch.nonzero(used & (taken == left), as_tuple=True)
        return context, node[context, place]


def as_mask(allowed, trie: "PrefixTrie") -> torch.Tensor | None:
    """A mask over catalogue rows as one over leaves, (G, n_items) bool."""
    if allowed is None:
        return None
    mask = allowed if isinstance(allowed, torch.Tensor) else np.array(allowed)  # a copy: torch needs it writable
    if mask.dtype not in (torch.bool, bool) or mask.ndim not in (1, 2) or mask.shape[-1] != trie.n_items:
        n = trie.n_items
        raise ValueError(f"allowed is {mask.dtype} {tuple(mask.shape)}, expected bool ({n},) or (contexts, {n})")
    return torch.atleast_2d(torch.as_tensor(mask, device=trie.item.device))[:, trie.item]


def as_leaves(excluded: torch.Tensor | np.ndarray | None, trie: "PrefixTrie") -> torch.Tensor | None:
    """Catalogue rows as leaves, (B, m) int64: ascending, each once, n_items in unused places."""
    if excluded is None:
        return None
    excluded = torch.as_tensor(excluded, device=trie.item.device)
    integers = excluded.dtype in (torch.int32, torch.int64)  # torch indexes with bool and uint8 as masks
    if not integers or excluded.ndim != 2 or (excluded.numel() and int(excluded.max()) >= trie.n_items):
        found = f"{excluded.dtype} {tuple(excluded.shape)}"
        raise ValueError(f"excluded is {found}, expected (contexts, m) integer rows below {trie.n_items}")
    leaf = trie._leaf[excluded.clamp(min=0)].long()  # few of them: the whole array is not converted
    return _unique(torch.where(excluded >= 0, leaf, trie.n_items), trie.n_items)


def penalty_of(possible: torch.Tensor) -> torch.Tensor:
    """0 where possible, else -inf, float32."""
    return torch.zeros(possible.shape, device=possible.device).masked_fill_(~possible, -torch.inf)


def _rows(index: torch.Tensor) -> torch.Tensor:
    """The first index of every element, in a shape that broadcasts: (B, 1, ...) int64."""
    return torch.arange(len(index), device=index.device).reshape(-1, *[1] * (index.ndim - 1))


def _group(mask: torch.Tensor, index: torch.Tensor) -> torch.Tensor | int:
    """The row of a mask for each context: its own, or the only one."""
    return _rows(index) if len(mask) != 1 else 0


def _lengths(excluded: torch.Tensor | None) -> set[int]:
    return set() if excluded is None else {len(excluded)}


def _common(*numbers: set[int]) -> int:
    """The one number of contexts, 1 if there is none: a single mask fits any number."""
    found = set().union(*numbers)
    if len(found) > 1:
        raise ValueError(f"allowed and excluded are for {sorted(found)} contexts, expected one number")
    return found.pop() if found else 1


def _unique(leaf: torch.Tensor, unused: int) -> torch.Tensor:
    """Sort each row and replace repetitions by `unused`, which is greater than all others."""
    leaf = leaf.sort(dim=1).values
    repeated = torch.zeros_like(leaf, dtype=torch.bool)
    repeated[:, 1:] = leaf[:, 1:] == leaf[:, :-1]
    return leaf.masked_fill(repeated, unused).sort(dim=1).values
