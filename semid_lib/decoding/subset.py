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


class Subset:
    """Some items of a trie, for all contexts or for each; made by `PrefixTrie.subset`."""

    def __init__(self, trie: "PrefixTrie", mask: torch.Tensor | None):
        self.trie, self.mask = trie, mask  # (G, n_items) bool in the order of the leaves, G = 1 or B; None for all
        self.excluded: torch.Tensor | None = None  # (B, m) int64 leaves, ascending, n_items in unused places
        if mask is not None:
            self.count = torch.zeros((len(mask), trie.n_items + 1), dtype=torch.int32, device=mask.device)
            torch.cumsum(mask, dim=1, dtype=torch.int32, out=self.count[:, 1:])
        self._penalties: dict[int, torch.Tensor] = {}

    def without(self, excluded: torch.Tensor | np.ndarray) -> "Subset":
        """The same items but those that each context excludes; `excluded` is as for `PrefixTrie.subset`.

        Raises ValueError if the subset excludes items already, or its mask is for another number of contexts.
        """
        if self.excluded is not None:
            raise ValueError("the subset excludes items already: give all of them at once")
        n_items, fewer = self.trie.n_items, copy.copy(self)  # sharing one mask and its tables
        leaf = _as_leaves(excluded, self.trie)
        if self.mask is not None:
            if len(self.mask) not in (1, len(leaf)):
                raise ValueError(f"allowed is for {len(self.mask)} contexts, excluded for {len(leaf)}")
            group = _rows(leaf) if len(self.mask) > 1 else 0
            leaf = leaf.masked_fill(~self.mask[group, leaf.clamp(max=n_items - 1)], n_items)
        leaf = leaf.sort(dim=1).values
        repeated = torch.zeros_like(leaf, dtype=torch.bool)
        repeated[:, 1:] = leaf[:, 1:] == leaf[:, :-1]
        fewer.excluded = leaf.masked_fill(repeated, n_items).sort(dim=1).values
        return fewer

    def check_contexts(self, n: int) -> None:
        """Raise ValueError unless the subset is for n contexts; a mask may be for any number."""
        found = n if self.mask is None or len(self.mask) == 1 else len(self.mask)
        found = found if self.excluded is None else len(self.excluded)
        if found != n:
            raise ValueError(f"the subset is for {found} contexts, there are {n}")

    def n_allowed(self, depth: int, node: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        """The number of items under nodes that the mask allows; context: of each node, in a shape that broadcasts."""
        low, high = self.trie.leaves(depth, node)
        if self.mask is None:
            return high - low
        group = context if len(self.mask) > 1 else 0
        return self.count[group, high] - self.count[group, low]

    def has(self, depth: int, node: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        """Whether nodes (...) of a depth have any item left in their contexts (...): (...) bool."""
        left = self.n_allowed(depth, node, context)
        if self.excluded is not None:
            low, high = self.trie.leaves(depth, node)
            for leaf in self.excluded.T:  # few columns
                left = left - ((leaf[context] >= low) & (leaf[context] < high)).long()
        return left > 0

    def keep(self, scores: torch.Tensor) -> None:
        """Set the scores (B, n_items) of all other leaves to -inf, in place."""
        if self.mask is not None:
            scores.masked_fill_(~self.mask, -torch.inf)
        if self.excluded is not None:
            context, place = torch.nonzero(self.excluded < self.trie.n_items, as_tuple=True)
            scores[context, self.excluded[context, place]] = -torch.inf

    def penalty(self, level: int) -> torch.Tensor:
        """`PrefixTrie.tables` to be added to scores, by the mask alone: 0 for an allowed child and -inf for others.

        (n_nodes + 1, sizes[level]) float32, one after the other for the masks of several contexts.
        """
        if level not in self._penalties:
            children = cast("torch.Tensor", self.trie.tables[level])
            group = torch.arange(1 if self.mask is None else len(self.mask), device=children.device)[:, None, None]
            allowed = (self.n_allowed(level + 1, children.clamp(min=0), group) > 0) & (children >= 0)
            penalty = torch.zeros(allowed.shape, device=allowed.device).masked_fill_(~allowed, -torch.inf)
            self._penalties[level] = penalty.view(-1, children.shape[1])
        return self._penalties[level]

    def emptied(self, depth: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Nodes of a depth whose allowed items are all excluded: (n,) contexts and (n,) nodes, int64."""
        excluded = cast("torch.Tensor", self.excluded)
        used = excluded < self.trie.n_items
        node = self.trie.ancestor(depth, excluded)
        node = torch.where(used, node, self.trie.n_nodes(depth)).contiguous()
        taken = torch.searchsorted(node, node, right=True) - torch.searchsorted(node, node)
        left = self.n_allowed(depth, torch.where(used, node, 0), _rows(node))
        context, place = torch.nonzero(used & (taken == left), as_tuple=True)
        return context, node[context, place]


def as_mask(allowed, trie: "PrefixTrie") -> torch.Tensor:
    """A mask over catalogue rows as one over leaves, (G, n_items) bool."""
    mask = allowed if isinstance(allowed, torch.Tensor) else np.array(allowed)  # a copy: torch needs it writable
    if mask.dtype not in (torch.bool, bool) or mask.ndim not in (1, 2) or mask.shape[-1] != trie.n_items:
        n = trie.n_items
        raise ValueError(f"allowed is {mask.dtype} {tuple(mask.shape)}, expected bool ({n},) or (contexts, {n})")
    return torch.atleast_2d(torch.as_tensor(mask, device=trie.item.device))[:, trie.item]


def _as_leaves(excluded: torch.Tensor | np.ndarray, trie: "PrefixTrie") -> torch.Tensor:
    """Catalogue rows as leaves, (B, m) int64: n_items for -1."""
    excluded = torch.as_tensor(excluded, device=trie.item.device)
    integers = excluded.dtype in (torch.int32, torch.int64)  # torch indexes with bool and uint8 as masks
    if not integers or excluded.ndim != 2 or (excluded.numel() and int(excluded.max()) >= trie.n_items):
        found = f"{excluded.dtype} {tuple(excluded.shape)}"
        raise ValueError(f"excluded is {found}, expected (contexts, m) integer rows below {trie.n_items}")
    leaf = trie.leaf_of_item[excluded.clamp(min=0)].long()  # few of them: the whole array is not converted
    return torch.where(excluded >= 0, leaf, trie.n_items)


def _rows(index: torch.Tensor) -> torch.Tensor:
    """The first index of every element, in a shape that broadcasts: (B, 1, ...) int64."""
    return torch.arange(len(index), device=index.device).reshape(-1, *[1] * (index.ndim - 1))
