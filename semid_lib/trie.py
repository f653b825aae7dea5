"""The prefix trie: which codes may follow a prefix, so that only real items come out.

The semantic IDs are sorted once. A node at depth d is then a run of rows that share d codes, its number is its rank
among the runs of that depth, and its children are a consecutive range of the next depth. Two integer arrays per
depth hold everything, there is no pointer to chase, and every node covers an interval of items (the layout that won
in our measurements; compare STATIC, arXiv 2602.22647).
"""

from dataclasses import dataclass

import numpy as np
import torch


@dataclass(frozen=True, eq=False)
class PrefixTrie:
    """All semantic IDs of a catalogue as a tree; made by `PrefixTrie.build`.

    Depth 0 holds the root alone, depth `n_levels` one leaf per item. For each depth d < n_levels, node i has the
    children `child_start[d][i] .. child_start[d][i + 1] - 1` of depth d + 1; `code[d]` is the code that leads to each
    node of depth d + 1. `leaf_start[d][i]` is the first leaf under node i of depth d, and `item[leaf]` the row of the
    item in the catalogue.
    """

    code: tuple[torch.Tensor, ...]  # per level: (n_nodes[d + 1],) int64
    child_start: tuple[torch.Tensor, ...]  # per level: (n_nodes[d] + 1,) int64
    leaf_start: tuple[torch.Tensor, ...]  # per depth: (n_nodes[d] + 1,) int64
    item: torch.Tensor  # (n_items,) int64

    @classmethod
    def build(cls, ids: np.ndarray) -> "PrefixTrie":
        """Build the trie of (n_items, n_levels) integer semantic IDs, one distinct row per item.

        Raises ValueError when there is no item, a code is negative or two items share an ID.

        >>> trie = PrefixTrie.build(np.array([[1, 0], [0, 2], [1, 3]]))
        >>> trie.children(1, 1)  # below the second node of depth 1, which is code 1
        {0: 1, 3: 2}
        >>> trie.item.tolist()  # leaves in the order of their IDs: (0, 2), (1, 0), (1, 3)
        [1, 0, 2]
        """
        ids = np.asarray(ids)
        if ids.ndim != 2 or not ids.size:
            raise ValueError(f"semantic IDs must be (n_items, n_levels) with at least one item, got {ids.shape}")
        if not np.issubdtype(ids.dtype, np.integer):
            raise ValueError(f"semantic IDs must be integers, got {ids.dtype}")
        if ids.min() < 0:
            raise ValueError(f"code {ids.min()} is negative")
        order = np.lexsort(ids.T[::-1])
        ordered = ids[order]
        # is_new[r, l]: row r differs from the row above in one of the first l + 1 codes, so a node begins there
        is_new = np.ones(ids.shape, dtype=bool)
        is_new[1:] = np.logical_or.accumulate(ordered[1:] != ordered[:-1], axis=1)
        if not is_new[:, -1].all():
            row = int(np.flatnonzero(~is_new[:, -1])[0])
            raise ValueError(
                f"items {order[row - 1]} and {order[row]} share the semantic ID {tuple(ordered[row].tolist())}"
            )
        n_items, n_levels = ids.shape
        starts = [np.array([0])] + [np.flatnonzero(is_new[:, level]) for level in range(n_levels)]
        codes = [ordered[starts[level + 1], level] for level in range(n_levels)]
        # the children of a node begin where its own rows begin
        children = [np.append(np.searchsorted(starts[d + 1], starts[d]), len(starts[d + 1])) for d in range(n_levels)]
        return cls(
            code=_tensors(codes),
            child_start=_tensors(children),
            leaf_start=_tensors([np.append(start, n_items) for start in starts]),
            item=torch.from_numpy(order.astype(np.int64)),
        )

    @property
    def n_levels(self) -> int:
        return len(self.code)

    @property
    def n_items(self) -> int:
        return len(self.item)

    def children(self, depth: int, node: int) -> dict[int, int]:
        """The children of one node as {code: node of the next depth}; for reading, not for speed."""
        start, stop = self.child_start[depth][node : node + 2].tolist()
        return dict(zip(self.code[depth][start:stop].tolist(), range(start, stop), strict=True))

    def leaf_of_item(self) -> torch.Tensor:
        """The leaf of each item row: (n_items,) int64, the inverse of `item`."""
        return torch.argsort(self.item)

    def to(self, device: torch.device | str) -> "PrefixTrie":
        """The same trie on another device."""
        move = lambda tensors: tuple(tensor.to(device) for tensor in tensors)  # noqa: E731
        return PrefixTrie(move(self.code), move(self.child_start), move(self.leaf_start), self.item.to(device))


def _tensors(arrays: list[np.ndarray]) -> tuple[torch.Tensor, ...]:
    return tuple(torch.from_numpy(array.astype(np.int64)) for array in arrays)
