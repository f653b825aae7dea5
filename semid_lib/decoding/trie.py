"""The prefix trie: the semantic IDs of a catalogue as a tree, so that decoding follows only codes of real items.

The semantic IDs are sorted once. A node at depth d is then a run of rows that share d codes, its number is its rank
among the runs of that depth, and its children are a consecutive range of the next depth. Two small integer arrays per
depth hold everything, without pointers. Every node covers an interval of leaves, so that a subset of the catalogue
needs no separate trie. This layout won in our measurements; compare STATIC, arXiv 2602.22647.
"""

import json
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from semid_lib.decoding.subset import Subset, as_mask

_FORMAT = "semid prefix trie 1"
_DENSE = 2**18  # a depth has a table of its nodes and codes if that has no more entries


@dataclass(frozen=True, eq=False)
class PrefixTrie:
    """All semantic IDs of a catalogue as a tree; made by `PrefixTrie.build`.

    Depth 0 is the root, depth `n_levels` has one leaf per item. Integers are as small as they can be: a million items
    with four codes below 256 take 10 MiB.

    Attributes
    ----------
    code : tuple of (n_nodes[d + 1],) uint8, int16 or int32 tensors
        Per level d, the code that leads to each node of depth d + 1.
    child_start : tuple of (n_nodes[d] + 1,) int32 tensors
        Node i of depth d has the children `child_start[d][i] .. child_start[d][i + 1] - 1` of depth d + 1.
    leaf_start : tuple of (n_nodes[d] + 1,) int32 tensors
        The first leaf under each node of depth d < n_levels; the last entry is that of child_start.
    item : (n_items,) int32 tensor
        The catalogue row of each leaf.
    """

    code: tuple[torch.Tensor, ...]
    child_start: tuple[torch.Tensor, ...]
    leaf_start: tuple[torch.Tensor, ...]
    item: torch.Tensor

    @classmethod
    def build(cls, ids: np.ndarray) -> "PrefixTrie":
        """Build the trie of (n_items, n_levels) integer semantic IDs.

        Raises
        ------
        ValueError
            If there is no item, a code is negative or above 2^31 - 1, or two items share an ID.

        Examples
        --------
        >>> trie = PrefixTrie.build(np.array([[1, 0], [0, 2], [1, 3]]))
        >>> trie.children(1, 1)  # below the second node of depth 1, which is code 1
        {0: 1, 3: 2}
        >>> trie.item.tolist()  # leaves in the order of their IDs: (0, 2), (1, 0), (1, 3)
        [1, 0, 2]
        """
        ids = _checked(ids)
        item = _order(ids)
        ids = ids[item]
        is_new = np.zeros(len(ids), dtype=bool)  # row r begins a node of the current depth
        is_new[0] = True
        starts = [np.zeros(1, dtype=np.int64)]
        for level in range(ids.shape[1]):
            is_new[1:] |= ids[1:, level] != ids[:-1, level]
            starts.append(np.flatnonzero(is_new))
        if len(starts[-1]) != len(ids):
            row = int(np.flatnonzero(~is_new)[0])
            raise ValueError(f"items {item[row - 1]} and {item[row]} share the semantic ID {tuple(ids[row].tolist())}")
        code = tuple(_smallest(ids[start, level]) for level, start in enumerate(starts[1:]))
        # the children of a node begin where its own leaves begin
        children = tuple(
            _int32(np.append(np.searchsorted(below, above), len(below))) for above, below in pairwise(starts)
        )
        leaves = tuple(_int32(np.append(start, len(ids))) for start in starts[:-2]) + children[-1:]
        return cls(code, children, leaves, _int32(item))

    @property
    def n_levels(self) -> int:
        """Codes of an ID, a disambiguation code included."""
        return len(self.code)

    @property
    def n_items(self) -> int:
        """Items, and leaves."""
        return len(self.item)

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """Per level, the greatest code plus one."""
        return tuple(int(code.max()) + 1 for code in self.code)

    @cached_property
    def branching(self) -> tuple[int, ...]:
        """Per level, the greatest number of children of one node."""
        return tuple(int(start.diff().max()) for start in self.child_start)

    @property
    def n_bytes(self) -> int:
        """Bytes of all arrays, without tables."""
        return sum(tensor.nbytes for tensor in self._arrays().values())

    def n_nodes(self, depth: int) -> int:
        """The number of nodes at a depth from 0 (the root) to n_levels (the items)."""
        return 1 if depth == 0 else len(self.code[depth - 1])

    def ids(self) -> np.ndarray:
        """The semantic IDs in ascending order, (n_items, n_levels) int64; row r belongs to item `item[r]`."""
        columns = []
        for depth, code in enumerate(self.code, start=1):
            low, high = self.leaves(depth, torch.arange(len(code), device=code.device))
            columns.append(code.long().repeat_interleave(high - low).cpu().numpy())
        return np.column_stack(columns)

    def children(self, depth: int, node: int) -> dict[int, int]:
        """The children of one node, {code: node of the next depth}; for reading, not for speed."""
        start, stop = self.child_start[depth][node : node + 2].tolist()
        return dict(zip(self.code[depth][start:stop].tolist(), range(start, stop), strict=True))

    def step(self, depth: int, node: torch.Tensor, code: torch.Tensor) -> torch.Tensor:
        """Find the children that codes lead to, by binary search in all ranges at once.

        Parameters
        ----------
        depth : int
        node : (...) int64 tensor
            Nodes of the depth; -1 has no children.
        code : (...) integer tensor

        Returns
        -------
        (...) int64 tensor
            Nodes of the next depth, -1 for none.

        Examples
        --------
        >>> trie = PrefixTrie.build(np.array([[1, 0], [0, 2], [1, 3]]))
        >>> trie.step(1, torch.tensor([1, 1, 0, -1]), torch.tensor([3, 2, 2, 0]))
        tensor([ 2, -1,  0, -1])
        """
        start, codes = self.child_start[depth], self.code[depth]
        known = node.clamp(min=0)
        low, code = start[known].long(), code.long()  # comparing small integers would wrap
        end = torch.where(node >= 0, start[known + 1].long(), low)
        high = end
        for _ in range(self.branching[depth].bit_length()):
            middle = (low + high) // 2
            below = (middle < high) & (codes[middle.clamp(max=len(codes) - 1)].long() < code)
            low, high = torch.where(below, middle + 1, low), torch.where(below, high, middle)
        found = (low < end) & (codes[low.clamp(max=len(codes) - 1)].long() == code)
        return torch.where(found, low, -1)

    def allowed_mask(self, depth: int, node: torch.Tensor, subset: Subset | None = None) -> torch.Tensor:
        """Which codes can follow (B,) nodes of a depth: (B, sizes[depth]) bool; a node of -1 allows none.

        Examples
        --------
        >>> PrefixTrie.build(np.array([[1, 0], [0, 2], [1, 3]])).allowed_mask(1, torch.tensor([0, 1])).int()
        tensor([[0, 0, 1, 0],
                [1, 0, 0, 1]], dtype=torch.int32)
        """
        if subset is not None:
            subset.check_contexts(len(node))
        mask = torch.zeros((len(node), self.sizes[depth]), dtype=torch.bool, device=node.device)
        row, child = self.listed(depth, node)
        mask[row, self.code[depth][child].long()] = subset is None or subset.has(depth + 1, child, row)
        return mask

    def listed(self, depth: int, node: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """All children of (B,) nodes in one list: the position of the parent in `node`, and the child."""
        known = node.clamp(min=0)
        first = self.child_start[depth][known].long()
        count = torch.where(node >= 0, self.child_start[depth][known + 1] - first, 0)
        row = torch.arange(len(node), device=node.device).repeat_interleave(count)
        skipped = count.cumsum(0) - count
        return row, first[row] + torch.arange(len(row), device=node.device) - skipped[row]

    def item_at(self, leaf: torch.Tensor) -> torch.Tensor:
        """Catalogue rows of leaves: (...) int64 -> (...) int64, -1 for a leaf of -1."""
        return torch.where(leaf >= 0, self.item[leaf.clamp(min=0)].long(), -1)

    def leaves(self, depth: int, node: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The intervals of leaves under nodes (...): the first leaf, and the last plus one."""
        if depth == self.n_levels:
            return node, node + 1
        return self.leaf_start[depth][node], self.leaf_start[depth][node + 1]

    def ancestor(self, depth: int, leaf: torch.Tensor) -> torch.Tensor:
        """The node of a depth above each leaf: (...) int64 -> (...) int64."""
        if depth == self.n_levels:
            return leaf
        return torch.searchsorted(self.leaf_start[depth], leaf.to(torch.int32), right=True) - 1

    @cached_property
    def leaf_of_item(self) -> torch.Tensor:
        """The leaf of each catalogue row, the inverse of `item`: (n_items,) int32."""
        leaf = torch.empty_like(self.item)
        leaf[self.item.long()] = torch.arange(self.n_items, dtype=torch.int32, device=self.item.device)
        return leaf

    @cached_property
    def tables(self) -> tuple[torch.Tensor | None, ...]:
        """Per level, the children of the whole depth as a table, (n_nodes + 1, sizes[level]) int32 with -1 for none.

        None for depths with too many nodes. In the first depths, where nearly all codes occur, taking rows of the table
        is faster than collecting ranges of children. The last row has no children.
        """
        tables: list[torch.Tensor | None] = []
        for size, start, code in zip(self.sizes, self.child_start, self.code, strict=True):
            table = None
            if len(start) * size <= _DENSE:
                table = torch.full((len(start), size), -1, dtype=torch.int32, device=code.device)
                parent = torch.arange(len(start) - 1, device=code.device).repeat_interleave(start.diff())
                table[parent, code.long()] = torch.arange(len(code), dtype=torch.int32, device=code.device)
            tables.append(table)
        return tuple(tables)

    @cached_property
    def everything(self) -> Subset:
        """All items as a subset."""
        return Subset(self, None)

    # devices and files

    def to(self, device: torch.device | str) -> "PrefixTrie":
        """The same trie on another device."""
        device = torch.empty(0, device=device).device  # "cuda" is one of "cuda:0", "cuda:1", ...
        if self.item.device == device:
            return self
        return self._from_arrays({name: tensor.to(device) for name, tensor in self._arrays().items()})

    def save(self, path: str | Path) -> None:
        """Write one safetensors file, which `load` and `open` map into memory."""
        # one entry, because safetensors writes several in random order
        facts = {"facts": json.dumps({"format": _FORMAT, "n_levels": self.n_levels, "n_rows": self.n_items})}
        save_file({name: tensor.cpu().contiguous() for name, tensor in self._arrays().items()}, path, metadata=facts)

    @classmethod
    def load(cls, path: str | Path) -> "PrefixTrie":
        """`open` a file that `save` wrote and `check` all of it, which takes seconds at ten million items.

        Raises
        ------
        ValueError
            Naming the file if it is damaged or not a trie.
        """
        trie = cls.open(path)
        trie.check(path)
        return trie

    @classmethod
    def open(cls, path: str | Path) -> "PrefixTrie":
        """Map a file that `save` wrote into memory; only its header and the ends of its arrays are read and checked.

        Raises
        ------
        ValueError
            As `load` does. Use `load` for a file that may be damaged between the ends.
        """
        try:
            with safe_open(path, framework="pt") as file:
                header = file.metadata() or {}
                facts = json.loads(header.get("facts", "{}")) | header  # older files have the format as an entry
                if facts.get("format") != _FORMAT:
                    raise ValueError(f"{path} has format {facts.get('format')!r}, expected {_FORMAT!r}")
                arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            trie = cls._from_arrays(arrays)
            if not trie.n_levels == facts["n_levels"] > 0 or trie._arrays().keys() != arrays.keys():
                raise KeyError(f"{facts['n_levels']} levels and the arrays {sorted(arrays)} do not belong together")
            trie._check_ends()
            if facts["n_rows"] != trie.n_items:
                raise KeyError(f"{facts['n_rows']} rows and {trie.n_items} items: rows were removed. Build it again")
        except (SafetensorError, OSError, KeyError, TypeError, json.JSONDecodeError) as error:
            raise ValueError(f"{path} is not the file of a prefix trie: {error}") from error
        return trie

    def _arrays(self) -> dict[str, torch.Tensor]:
        arrays = {"item": self.item}
        for level in range(self.n_levels):
            arrays |= {f"code.{level}": self.code[level], f"child_start.{level}": self.child_start[level]}
        return arrays | {f"leaf_start.{depth}": self.leaf_start[depth] for depth in range(self.n_levels - 1)}

    @classmethod
    def _from_arrays(cls, arrays: dict[str, torch.Tensor]) -> "PrefixTrie":
        n_levels = sum(name.startswith("code.") for name in arrays)
        code, children = (tuple(arrays[f"{name}.{i}"] for i in range(n_levels)) for name in ("code", "child_start"))
        leaves = tuple(arrays[f"leaf_start.{depth}"] for depth in range(n_levels - 1)) + children[-1:]
        return cls(code, children, leaves, arrays["item"])

    def _check_ends(self) -> None:
        """Raise KeyError unless dtypes, lengths, and the first and last entries of all arrays fit together."""
        for name, array in self._arrays().items():
            dtypes = (torch.uint8, torch.int16, torch.int32) if name.startswith("code.") else (torch.int32,)
            if array.ndim != 1 or not len(array) or array.dtype not in dtypes:
                raise KeyError(f"{name} is {array.dtype} {tuple(array.shape)}, expected {dtypes} (n,)")
        for depth in range(self.n_levels):
            for name, start, n in (
                ("child_start", self.child_start[depth], len(self.code[depth])),
                ("leaf_start", self.leaf_start[depth], self.n_items),
            ):
                if len(start) != self.n_nodes(depth) + 1 or (int(start[0]), int(start[-1])) != (0, n):
                    raise KeyError(f"{name}.{depth} does not fit {self.n_nodes(depth)} nodes and {n} below them")
        if len(self.item) != len(self.code[-1]):
            raise KeyError(f"{len(self.code[-1])} leaves and {len(self.item)} items do not fit")

    def check(self, name: str | Path = "the trie") -> None:
        """Compare with the trie of its own IDs, so that a damaged file cannot lead to a wrong item; `load` does this.

        Raises
        ------
        ValueError
            Beginning with name.
        """
        starts = [*self.child_start, *self.leaf_start]
        fits = all(bool((start.diff() > 0).all()) for start in starts)  # so that `ids` stays small
        try:
            again = PrefixTrie.build(self.ids()) if fits else None
        except ValueError:
            again = None
        if again is not None:
            pairs = zip(self._arrays().items(), again._arrays().values(), strict=True)
            fits = all(torch.equal(one.long().cpu(), other.long()) for (part, one), other in pairs if part != "item")
        in_order = again is not None and torch.equal(again.item, torch.arange(self.n_items, dtype=torch.int32))
        rows = torch.arange(self.n_items, dtype=torch.int32)
        if not (fits and in_order and torch.equal(self.item.sort().values.cpu(), rows)):
            raise ValueError(f"{name}: the arrays are not those of a trie. Build it again from the semantic IDs")

    def subset(self, allowed=None, excluded: torch.Tensor | np.ndarray | None = None) -> Subset:
        """The items that may be returned, for `beam_search.constrained_beam_search`.

        Parameters
        ----------
        allowed : (n_items,) or (B, n_items) bool, optional
            For all contexts or for each.
        excluded : (B, m) int64, optional
            Catalogue rows to leave out, -1 in unused places.

        Raises
        ------
        ValueError
            For another shape or dtype, or a row outside the catalogue.

        Examples
        --------
        >>> trie = PrefixTrie.build(np.array([[1, 0], [0, 2], [1, 3]]))
        >>> subset = trie.subset(np.array([True, False, True]), excluded=torch.tensor([[2], [-1]]))
        >>> trie.allowed_mask(0, torch.tensor([0, 0]), subset)  # without items 1 and 2, and without item 1
        tensor([[False,  True],
                [False,  True]])
        """
        subset = self.everything if allowed is None else Subset(self, as_mask(allowed, self))
        return subset if excluded is None else subset.without(excluded)


def _checked(ids: np.ndarray) -> np.ndarray:
    ids = np.asarray(ids)
    if ids.ndim != 2 or not ids.size:
        raise ValueError(f"semantic IDs must be (n_items, n_levels) with at least one item, got {ids.shape}")
    if not np.issubdtype(ids.dtype, np.integer):
        raise ValueError(f"semantic IDs must be integers, got {ids.dtype}")
    if ids.min() < 0 or ids.max() >= 2**31:
        raise ValueError(f"code {ids.min()} is negative" if ids.min() < 0 else f"code {ids.max()} is above 2^31 - 1")
    return ids.astype(np.int64, copy=False)


def _order(ids: np.ndarray) -> np.ndarray:
    """The order of the rows, equal ones by position: (n,) int64.

    Codes and position usually fit one 64-bit integer; sorting those is ten times faster than `np.lexsort`.
    """
    bits = [int(code).bit_length() for code in [*ids.max(axis=0), len(ids) - 1]]
    if sum(bits) > 63:
        return np.lexsort(ids.T[::-1])
    key = np.zeros(len(ids), dtype=np.int64)
    for column, width in zip([*ids.T, np.arange(len(ids))], bits, strict=True):
        key = (key << width) | column
    return np.sort(key) & ((1 << bits[-1]) - 1)


def _smallest(code: np.ndarray) -> torch.Tensor:
    """Codes in the smallest integer type that torch can index with."""
    largest = int(code.max())
    dtype = np.uint8 if largest < 2**8 else np.int16 if largest < 2**15 else np.int32
    return torch.from_numpy(code.astype(dtype))


def _int32(values: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(values.astype(np.int32))
