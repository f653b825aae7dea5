"""The prefix trie: which codes may follow a prefix, so that only real items come out.

The semantic IDs are sorted once. A node at depth d is then a run of rows that share d codes, its number is its rank
among the runs of that depth, and its children are a consecutive range of the next depth. Two small integer arrays per
depth hold everything, there is no pointer to chase, and every node covers an interval of items, so that a subset of
the catalogue needs no trie of its own (the layout that won in our measurements; compare STATIC, arXiv 2602.22647).
"""

import copy
import json
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

_FORMAT = "semid prefix trie 1"
DENSE = 2**18  # a depth gets a table of (nodes x codes) children while it has no more entries than this


@dataclass(frozen=True, eq=False)
class PrefixTrie:
    """All semantic IDs of a catalogue as a tree; made by `PrefixTrie.build`.

    Depth 0 holds the root alone, depth `n_levels` one leaf per item. For each depth d < n_levels, node i has the
    children `child_start[d][i] .. child_start[d][i + 1] - 1` of depth d + 1; `code[d]` is the code that leads to each
    node of depth d + 1. `leaf_start[d][i]` is the first leaf under node i of depth d (the leaves themselves need no
    entry), and `item[leaf]` the row of the item in the catalogue. Integers are as small as they can be: a million
    items with four codes below 256 take 10 MiB.
    """

    code: tuple[torch.Tensor, ...]  # per level: (n_nodes[d + 1],) uint8, int16 or int32
    child_start: tuple[torch.Tensor, ...]  # per level: (n_nodes[d] + 1,) int32
    leaf_start: tuple[torch.Tensor, ...]  # per depth < n_levels: (n_nodes[d] + 1,) int32; the last is child_start's
    item: torch.Tensor  # (n_leaves,) int32 rows of the catalogue
    n_rows: int  # rows of the catalogue, those without a leaf included
    _tables: dict = field(default_factory=dict, repr=False)  # what `table` and `penalty` made, by level

    @classmethod
    def build(cls, ids: np.ndarray) -> "PrefixTrie":
        """Build the trie of (n_items, n_levels) integer semantic IDs, one distinct row per item.

        Raises ValueError when there is no item, a code is negative or above 2^31 - 1, or two items share an ID.

        >>> trie = PrefixTrie.build(np.array([[1, 0], [0, 2], [1, 3]]))
        >>> trie.children(1, 1)  # below the second node of depth 1, which is code 1
        {0: 1, 3: 2}
        >>> trie.item.tolist()  # leaves in the order of their IDs: (0, 2), (1, 0), (1, 3)
        [1, 0, 2]
        """
        ids = _checked(ids)
        order = _order(ids)
        return cls._from_sorted(ids[order], order, len(ids))

    @classmethod
    def _from_sorted(cls, ids: np.ndarray, item: np.ndarray, n_rows: int) -> "PrefixTrie":
        """The trie of IDs in ascending order, of which row r belongs to row item[r] of the catalogue."""
        n_leaves, n_levels = ids.shape
        is_new = np.zeros(n_leaves, dtype=bool)  # row r begins a node of the depth at hand
        is_new[0] = True
        starts = [np.zeros(1, dtype=np.int64)]
        for level in range(n_levels):
            is_new[1:] |= ids[1:, level] != ids[:-1, level]
            starts.append(np.flatnonzero(is_new))
        if len(starts[-1]) != n_leaves:
            row = int(np.flatnonzero(~is_new)[0])
            raise ValueError(f"items {item[row - 1]} and {item[row]} share the semantic ID {tuple(ids[row].tolist())}")
        code = tuple(_smallest(ids[starts[level + 1], level]) for level in range(n_levels))
        # the children of a node begin where its own leaves begin
        children = tuple(
            _int32(np.append(np.searchsorted(below, above), len(below))) for above, below in pairwise(starts)
        )
        leaves = tuple(_int32(np.append(start, n_leaves)) for start in starts[:-2]) + children[-1:]
        return cls(code, children, leaves, _int32(item), n_rows)

    # what it holds

    @property
    def n_levels(self) -> int:
        """Codes of an ID; a disambiguation code is one of them here, if the IDs that were given have one."""
        return len(self.code)

    @property
    def n_items(self) -> int:
        """Items that have a leaf."""
        return len(self.item)

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """Per level, one more than the greatest code."""
        return tuple(int(code.max()) + 1 for code in self.code)

    @cached_property
    def branching(self) -> tuple[int, ...]:
        """Per level, the greatest number of children of one node."""
        return tuple(int(start.diff().max()) for start in self.child_start)

    @property
    def n_bytes(self) -> int:
        """Bytes of all arrays, without the tables that `table` makes."""
        return sum(tensor.nbytes for tensor in self._arrays().values())

    def n_nodes(self, depth: int) -> int:
        """Nodes at a depth from 0 (the root) to n_levels (the items)."""
        return 1 if depth == 0 else len(self.code[depth - 1])

    def ids(self) -> np.ndarray:
        """The semantic IDs in ascending order, (n_items, n_levels) int64; row r belongs to item `item[r]`."""
        columns = []
        for depth, code in enumerate(self.code, start=1):
            low, high = self.leaves(depth, torch.arange(len(code), device=code.device))
            columns.append(code.long().repeat_interleave(high - low).cpu().numpy())
        return np.column_stack(columns)

    # walking

    def children(self, depth: int, node: int) -> dict[int, int]:
        """The children of one node as {code: node of the next depth}; for reading, not for speed."""
        start, stop = self.child_start[depth][node : node + 2].tolist()
        return dict(zip(self.code[depth][start:stop].tolist(), range(start, stop), strict=True))

    def step(self, depth: int, node: torch.Tensor, code: torch.Tensor) -> torch.Tensor:
        """The child that a code leads to: (...) int64 nodes of a depth, (...) codes -> (...) nodes below, -1 for none.

        A node of -1 has no children, so that a wrong turn stays wrong. Each of the few steps halves all ranges at once.

        >>> trie = PrefixTrie.build(np.array([[1, 0], [0, 2], [1, 3]]))
        >>> trie.step(1, torch.tensor([1, 1, 0, -1]), torch.tensor([3, 2, 2, 0]))
        tensor([ 2, -1,  0, -1])
        """
        start, codes = self.child_start[depth], self.code[depth]
        known = node.clamp(min=0)
        low, code = start[known].long(), code.long()  # codes as small integers would wrap a greater one round
        end = torch.where(node >= 0, start[known + 1].long(), low)
        high = end
        for _ in range(self.branching[depth].bit_length()):
            middle = (low + high) // 2
            below = (middle < high) & (codes[middle.clamp(max=len(codes) - 1)].long() < code)
            low, high = torch.where(below, middle + 1, low), torch.where(below, high, middle)
        found = (low < end) & (codes[low.clamp(max=len(codes) - 1)].long() == code)
        return torch.where(found, low, -1)

    def allowed_mask(self, depth: int, node: torch.Tensor, subset: "Subset | None" = None) -> torch.Tensor:
        """Which codes may follow: (B,) int64 nodes of a depth -> (B, sizes[depth]) bool; a node of -1 allows none.

        >>> PrefixTrie.build(np.array([[1, 0], [0, 2], [1, 3]])).allowed_mask(1, torch.tensor([0, 1])).int()
        tensor([[0, 0, 1, 0],
                [1, 0, 0, 1]], dtype=torch.int32)
        """
        mask = torch.zeros((len(node), self.sizes[depth] + 1), dtype=torch.bool, device=node.device)
        row, child = self.listed(depth, node)
        code = self.code[depth][child].long()
        mask[row, code] = True if subset is None else subset.for_contexts(len(node)).has(depth + 1, child, row)
        return mask[:, :-1]

    def listed(self, depth: int, node: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """All children of all nodes in one list: the place of the parent in `node`, and the child."""
        known = node.clamp(min=0)
        first = self.child_start[depth][known].long()
        count = torch.where(node >= 0, self.child_start[depth][known + 1] - first, 0)
        row = torch.arange(len(node), device=node.device).repeat_interleave(count)
        skipped = count.cumsum(0) - count
        return row, first[row] + torch.arange(len(row), device=node.device) - skipped[row]

    def item_at(self, leaf: torch.Tensor) -> torch.Tensor:
        """The catalogue rows of leaves: (...) int64 -> (...) int64, -1 for a leaf of -1."""
        return torch.where(leaf >= 0, self.item[leaf.clamp(min=0)].long(), -1)

    def leaves(self, depth: int, node: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The interval of leaves under nodes: (...) -> first leaf and the one past the last, (...) integers."""
        if depth == self.n_levels:
            return node, node + 1
        return self.leaf_start[depth][node], self.leaf_start[depth][node + 1]

    def ancestor(self, depth: int, leaf: torch.Tensor) -> torch.Tensor:
        """The node of a depth above each leaf: (...) int64 -> (...) int64."""
        if depth == self.n_levels:
            return leaf
        return torch.searchsorted(self.leaf_start[depth], leaf.to(torch.int32), right=True) - 1

    def leaf_of_item(self) -> torch.Tensor:
        """The leaf of each catalogue row: (n_rows,) int64, the inverse of `item`; -1 for a row without one."""
        return self._leaf.long()

    @cached_property
    def _leaf(self) -> torch.Tensor:
        """`leaf_of_item` as int32, kept: every request with excluded items looks some up."""
        leaf = torch.full((self.n_rows,), -1, dtype=torch.int32, device=self.item.device)
        leaf[self.item.long()] = torch.arange(self.n_items, dtype=torch.int32, device=self.item.device)
        return leaf

    def table(self, level: int) -> torch.Tensor | None:
        """The children of a whole depth as a table, (n_nodes + 1, sizes[level]) int32 with -1 for none, or None.

        Only the first depths have one, where nodes are few and nearly all codes occur; there a row of the table is
        faster to take than a range of children. The last row has no children.
        """
        if (self.n_nodes(level) + 1) * self.sizes[level] > DENSE:
            return None
        if level not in self._tables:
            start, code = self.child_start[level], self.code[level].long()
            table = torch.full((len(start), self.sizes[level]), -1, dtype=torch.int32, device=code.device)
            parent = torch.arange(len(start) - 1, device=code.device).repeat_interleave(start.diff())
            table[parent, code] = torch.arange(len(code), dtype=torch.int32, device=code.device)
            self._tables[level] = table
        return self._tables[level]

    def penalty(self, level: int) -> torch.Tensor:
        """`table` as what to add to scores: (n_nodes + 1, sizes[level]) float32, 0 for a child and -inf for none."""
        if ("penalty", level) not in self._tables:
            self._tables["penalty", level] = _penalty(self.table(level) >= 0)
        return self._tables["penalty", level]

    # items that come and go

    def add(self, ids: np.ndarray) -> "PrefixTrie":
        """The trie with more items, (n_new, n_levels) IDs; they become the catalogue rows n_rows, n_rows + 1, ...

        All other rows stay, and whoever still searches the old trie is not disturbed. The arrays are made anew, which
        takes a quarter of a second at a million items, so there is no overlay that every search would have to look
        at. Raises ValueError as `build` does.

        >>> trie = PrefixTrie.build(np.array([[1, 0], [0, 2]])).add(np.array([[0, 1]]))
        >>> trie.item.tolist()
        [2, 1, 0]
        """
        ids = _checked(ids)
        if ids.shape[1] != self.n_levels:
            raise ValueError(f"new semantic IDs have {ids.shape[1]} levels, the trie has {self.n_levels}")
        together = np.concatenate([self.ids(), ids])
        item = np.append(self.item.cpu().numpy(), np.arange(self.n_rows, self.n_rows + len(ids)))
        order = _order(together)
        return self._from_sorted(together[order], item[order], self.n_rows + len(ids)).to(self.item.device)

    def remove(self, rows: np.ndarray) -> "PrefixTrie":
        """The trie without the items at these catalogue rows; all others keep their rows.

        To hide items for one request, a `Subset` is cheaper. Raises ValueError for a row that has no leaf, and if no
        item would be left.
        """
        if not np.size(rows):
            return self
        if np.asarray(rows).dtype.kind not in "iu":
            raise ValueError(f"rows to remove are {np.asarray(rows).dtype}, expected integers")
        rows, leaf = np.unique(rows), self.leaf_of_item().cpu().numpy()
        wrong = (rows < 0) | (rows >= self.n_rows)
        wrong[~wrong] = leaf[rows[~wrong]] < 0
        if wrong.any():
            raise ValueError(f"row {rows[wrong][0]} is not in the trie")
        if len(rows) == self.n_items:
            raise ValueError("a trie cannot be empty: all of its items would be removed")
        kept = np.ones(self.n_items, dtype=bool)
        kept[leaf[rows]] = False
        trie = self._from_sorted(self.ids()[kept], self.item.cpu().numpy()[kept], self.n_rows)
        return trie.to(self.item.device)

    # devices and files

    def to(self, device: torch.device | str) -> "PrefixTrie":
        """The same trie on another device."""
        device = torch.empty(0, device=device).device  # "cuda" is one of "cuda:0", "cuda:1", ...
        if self.item.device == device:
            return self
        return self._from_arrays({name: tensor.to(device) for name, tensor in self._arrays().items()}, self.n_rows)

    def save(self, path: str | Path) -> None:
        """Write one safetensors file, which `load` and `open` map into memory instead of reading it."""
        # one entry, since safetensors writes several in a random order, and equal tries are equal files
        facts = {"facts": json.dumps({"format": _FORMAT, "n_levels": self.n_levels, "n_rows": self.n_rows})}
        save_file({name: tensor.cpu().contiguous() for name, tensor in self._arrays().items()}, path, metadata=facts)

    @classmethod
    def load(cls, path: str | Path) -> "PrefixTrie":
        """`open` a file that `save` wrote and `check` all of it, which takes a second at ten million items.

        Raises ValueError naming the file if it is not one, or not consistent.
        """
        trie = cls.open(path)
        trie.check(path)
        return trie

    @classmethod
    def open(cls, path: str | Path) -> "PrefixTrie":
        """Map a file that `save` wrote into memory: nothing is read but the header and the ends of the arrays.

        Shapes, types, the size of the file and the first and last entry of every array are checked. What lies between
        is not, so use `load` for a file that may be damaged. Raises ValueError as `load` does.
        """
        try:
            with safe_open(path, framework="pt") as file:
                header = file.metadata() or {}
                facts = json.loads(header.get("facts", "{}")) | header  # the format was an entry of its own before
                if facts.get("format") != _FORMAT:
                    raise ValueError(f"{path} has format {facts.get('format')!r}, expected {_FORMAT!r}")
                arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            trie = cls._from_arrays(arrays, facts["n_rows"])
            if not trie.n_levels == facts["n_levels"] > 0 or trie._arrays().keys() != arrays.keys():
                raise KeyError(f"{facts['n_levels']} levels and the arrays {sorted(arrays)} do not belong together")
        except (SafetensorError, OSError, KeyError, TypeError, json.JSONDecodeError) as error:
            raise ValueError(f"{path} is not the file of a prefix trie: {error}") from error
        trie._check_shapes(path)
        return trie

    def _arrays(self) -> dict[str, torch.Tensor]:
        arrays = {"item": self.item}
        for level in range(self.n_levels):
            arrays |= {f"code.{level}": self.code[level], f"child_start.{level}": self.child_start[level]}
        return arrays | {f"leaf_start.{depth}": self.leaf_start[depth] for depth in range(self.n_levels - 1)}

    @classmethod
    def _from_arrays(cls, arrays: dict, n_rows: int) -> "PrefixTrie":
        n_levels = sum(name.startswith("code.") for name in arrays)
        code, children = (
            tuple(arrays[f"{name}.{level}"] for level in range(n_levels)) for name in ("code", "child_start")
        )
        leaves = tuple(arrays[f"leaf_start.{depth}"] for depth in range(n_levels - 1)) + children[-1:]
        return cls(code, children, leaves, arrays["item"], n_rows)

    def _check_shapes(self, path: str | Path) -> None:
        """Raise ValueError unless lengths and types are right, and all that the first and last entries can say."""
        for name, array in self._arrays().items():
            dtypes = (torch.uint8, torch.int16, torch.int32) if name.startswith("code.") else (torch.int32,)
            if array.ndim != 1 or not len(array) or array.dtype not in dtypes:
                raise ValueError(f"{path}: {name} is {array.dtype} {tuple(array.shape)}, expected {dtypes} (n,)")
        if type(self.n_rows) is not int or self.n_rows > 2**31:
            raise ValueError(f"{path}: the number of rows is {self.n_rows!r}, expected an integer up to 2^31")
        for depth in range(self.n_levels):
            start, leaf, n_below = self.child_start[depth], self.leaf_start[depth], len(self.code[depth])
            if len(start) != self.n_nodes(depth) + 1 or (int(start[0]), int(start[-1])) != (0, n_below):
                raise ValueError(f"{path}: the children of depth {depth} do not fit the nodes of depth {depth + 1}")
            if len(leaf) != len(start) or (int(leaf[0]), int(leaf[-1])) != (0, self.n_items):
                raise ValueError(f"{path}: the leaves of depth {depth} are not those of its children")
        if len(self.item) != len(self.code[-1]) or len(self.item) > self.n_rows:
            raise ValueError(f"{path}: the leaves do not hold distinct rows of a catalogue of {self.n_rows}")

    def check(self, name: str | Path = "the trie") -> None:
        """Raise ValueError unless every index points where it must: a damaged file must not lead to a wrong item.

        name: what the error calls it. `load` has done this, `open` has not.
        """
        self._check_shapes(name)
        for depth in reversed(range(self.n_levels)):  # the leaves of depth + 1 are then known to be right
            start = self.child_start[depth].long()
            if bool((start.diff() <= 0).any()):
                raise ValueError(f"{name}: the children of depth {depth} do not fit the nodes of depth {depth + 1}")
            low = self.leaves(depth + 1, start[:-1])[0]
            if bool((low != self.leaf_start[depth][:-1]).any()):
                raise ValueError(f"{name}: the leaves of depth {depth} are not those of its children")
            ascends = self.code[depth].long().diff() > 0
            ascends[start[1:-1] - 1] = True  # from one parent to the next
            if int(self.code[depth].min()) < 0 or not bool(ascends.all()):
                raise ValueError(f"{name}: the codes of level {depth} do not ascend from 0 below each node")
        ordered = self.item.sort().values
        inside = int(ordered[0]) >= 0 and int(ordered[-1]) < self.n_rows and bool((ordered.diff() > 0).all())
        if not inside:
            raise ValueError(f"{name}: the leaves do not hold distinct rows of a catalogue of {self.n_rows}")

    # subsets

    def subset(self, allowed=None, excluded: torch.Tensor | None = None) -> "Subset":
        """The items that may come out, for `decode.constrained_beam_search`.

        allowed: (n_rows,) bool for all contexts, or (B, n_rows) for each its own; None allows all. excluded: (B, m)
        int64 catalogue rows to leave out, -1 for unused places. Raises ValueError for another shape, dtype or row.

        >>> trie = PrefixTrie.build(np.array([[1, 0], [0, 2], [1, 3]]))
        >>> trie.subset(np.array([True, False, True]), excluded=torch.tensor([[2], [-1]])).n_left()
        tensor([1, 2])
        """
        return Subset(self, _as_mask(allowed, self), _as_leaves(excluded, self))


class Subset:
    """Some of a trie's items, with no trie of its own; made by `PrefixTrie.subset`.

    A running sum of allowed leaves answers in two look-ups whether an interval of leaves, and so a node, holds one.
    Items taken out of single contexts are few: they are kept as sorted lists.
    """

    def __init__(self, trie: PrefixTrie, mask: torch.Tensor | None, excluded: torch.Tensor | None):
        self.trie, self.mask = trie, mask  # (G, n_items) bool in the order of the leaves, G = 1 or B
        _n_contexts([mask], [excluded])  # they must agree
        if mask is not None:
            self.count = torch.zeros((len(mask), trie.n_items + 1), dtype=torch.int32, device=mask.device)
            torch.cumsum(mask, dim=1, dtype=torch.int32, out=self.count[:, 1:])
        self._tables: dict = {}  # what `nodes` and `penalty` made
        self.excluded = self._inside(excluded)  # (B, m) int64 leaves, ascending, n_items in unused places

    def _inside(self, excluded: torch.Tensor | None) -> torch.Tensor | None:
        """Excluded leaves without those that the mask does not allow anyway."""
        if excluded is None or self.mask is None:
            return excluded
        n_items = self.trie.n_items
        outside = ~self.mask[_group(self.mask, excluded), excluded.clamp(max=n_items - 1)]
        return excluded.masked_fill(outside, n_items).sort(dim=1).values

    def __and__(self, other: "Subset") -> "Subset":
        """What both allow. Raises ValueError if they are of different tries or for different numbers of contexts."""
        if self.trie is not other.trie:
            raise ValueError("two subsets of different tries")
        _n_contexts([self.mask, other.mask], [self.excluded, other.excluded])  # they must agree
        masked = other if self.mask is None else self
        both = copy.copy(masked)  # one mask and what was made of it can be shared
        if self.mask is not None and other.mask is not None:
            both = Subset(self.trie, self.mask & other.mask, None)
        lists = [subset.excluded for subset in (self, other) if subset.excluded is not None]
        if lists:
            both.excluded = both._inside(_unique(torch.cat(lists, dim=1), self.trie.n_items))
        return both

    @property
    def n_contexts(self) -> int:
        """The number of contexts it is for, 1 if it fits any number."""
        return _n_contexts([self.mask], [self.excluded])

    def for_contexts(self, n: int) -> "Subset":
        """The same for n contexts. Raises ValueError if it is for another number of them."""
        if self.n_contexts not in (1, n):
            raise ValueError(f"the subset is for {self.n_contexts} contexts, there are {n}")
        if self.excluded is None or len(self.excluded) == n:
            return self
        wider = copy.copy(self)
        wider.excluded = self.excluded.expand(n, -1)
        return wider

    def n_left(self) -> torch.Tensor:
        """How many items each context may get: (n_contexts,) int64."""
        left = torch.full((self.n_contexts,), self.trie.n_items, device=self.trie.item.device)
        if self.mask is not None:
            left = self.count[:, -1].long().expand(self.n_contexts)
        return left if self.excluded is None else left - (self.excluded < self.trie.n_items).sum(dim=1)

    def has(self, depth: int, node: torch.Tensor, context: torch.Tensor | None = None) -> torch.Tensor:
        """Whether any item is left under nodes of a depth, (...) bool.

        context: to which context each node belongs, (...) int64; None if the first dimension of `node` is the context.
        """
        if context is None:
            context = _rows(node)
        low, high = self.trie.leaves(depth, node)
        left = high - low
        if self.mask is not None:
            group = context if len(self.mask) != 1 else torch.zeros_like(context)
            left = self.count[group, high] - self.count[group, low]
        if self.excluded is not None:
            taken = self.excluded.new_tensor(0)
            for leaf in self.excluded.T:  # few columns
                taken = taken + ((leaf[context] >= low) & (leaf[context] < high))
            left = left - taken
        return left > 0

    def allowed(self, depth: int, node: torch.Tensor) -> torch.Tensor:
        """`has` by the mask alone, for (B, ...) nodes."""
        nodes, group = self.nodes(depth), _group(self.mask, node)
        if nodes is not None:
            return nodes[group, node]
        low, high = self.trie.leaves(depth, node)
        return self.count[group, high] != self.count[group, low]

    def keep(self, scores: torch.Tensor) -> None:
        """Set the scores of all other leaves to -inf, in place: (B, n_items), a row per context."""
        if self.mask is not None:
            scores.masked_fill_(~self.mask, -torch.inf)
        if self.excluded is not None:
            context, place = torch.nonzero(self.excluded < self.trie.n_items, as_tuple=True)
            scores[context, self.excluded[context, place]] = -torch.inf

    def nodes(self, depth: int) -> torch.Tensor | None:
        """`allowed` for a whole depth, (G, n_nodes) bool; None where that would be more work than asking."""
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
            children = self.trie.table(level)
            allowed = self.nodes(level + 1)[:, children.clamp(min=0)] & (children >= 0)
            self._tables["penalty", level] = _penalty(allowed)
        return self._tables["penalty", level]

    def emptied(self, depth: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Nodes of a depth that hold allowed items, all of them excluded: (n,) contexts and (n,) nodes, int64."""
        node = self.trie.ancestor(depth, self.excluded)  # a place that is not used gives a node past the last
        used = self.excluded < self.trie.n_items
        node = torch.where(used, node, self.trie.n_nodes(depth)).contiguous()
        taken = torch.searchsorted(node, node, right=True) - torch.searchsorted(node, node)
        low, high = self.trie.leaves(depth, torch.where(used, node, 0))
        left = high - low
        if self.mask is not None:
            group = _group(self.mask, node)
            left = self.count[group, high] - self.count[group, low]
        context, place = torch.nonzero(used & (taken == left), as_tuple=True)
        return context, node[context, place]


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
    """The order of the rows, equal ones by their number: (n,) int64.

    Codes and the row's number usually fit one 64-bit integer; sorting those is ten times faster than `np.lexsort`.
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


def _penalty(possible: torch.Tensor) -> torch.Tensor:
    return torch.zeros(possible.shape, device=possible.device).masked_fill_(~possible, -torch.inf)


def _rows(index: torch.Tensor) -> torch.Tensor:
    """The number of the first dimension everywhere, in a shape that broadcasts: (B, 1, ...) int64."""
    return torch.arange(len(index), device=index.device).reshape(-1, *[1] * (index.ndim - 1))


def _group(mask: torch.Tensor, index: torch.Tensor) -> torch.Tensor | int:
    """The row of a mask for each context: its own, or the only one."""
    return _rows(index) if len(mask) != 1 else 0


def _n_contexts(masks: list, lists: list) -> int:
    """For how many contexts they are, if they agree; a single mask fits any number."""
    numbers = {len(mask) for mask in masks if mask is not None} - {1}
    numbers |= {len(excluded) for excluded in lists if excluded is not None}
    if len(numbers) > 1:
        raise ValueError(f"allowed and excluded are for {sorted(numbers)} contexts, expected one number")
    return numbers.pop() if numbers else 1


def _as_mask(allowed, trie: PrefixTrie) -> torch.Tensor | None:
    if allowed is None:
        return None
    mask = allowed if isinstance(allowed, torch.Tensor) else np.array(allowed)  # a copy: torch wants it writable
    if mask.dtype not in (torch.bool, bool) or mask.ndim not in (1, 2) or mask.shape[-1] != trie.n_rows:
        raise ValueError(
            f"allowed is {mask.dtype} {tuple(mask.shape)}, expected bool ({trie.n_rows},) or (contexts, {trie.n_rows})"
        )
    return torch.atleast_2d(torch.as_tensor(mask, device=trie.item.device))[:, trie.item]


def _as_leaves(excluded: torch.Tensor | None, trie: PrefixTrie) -> torch.Tensor | None:
    """Catalogue rows as leaves in ascending order, each once; unused places past the last leaf: (B, m) int64."""
    if excluded is None:
        return None
    excluded = torch.as_tensor(excluded, device=trie.item.device)
    integers = excluded.dtype in (torch.int32, torch.int64)  # torch would take bool and uint8 for masks
    if not integers or excluded.ndim != 2 or (excluded.numel() and int(excluded.max()) >= trie.n_rows):
        found = f"{excluded.dtype} {tuple(excluded.shape)}"
        raise ValueError(f"excluded must be (contexts, m) integer rows below {trie.n_rows}, got {found}")
    leaf = trie._leaf[excluded.clamp(min=0)].long()
    return _unique(torch.where((excluded >= 0) & (leaf >= 0), leaf, trie.n_items), trie.n_items)


def _unique(leaf: torch.Tensor, unused: int) -> torch.Tensor:
    """Each row sorted, repetitions replaced by `unused`, which is greater than all others."""
    leaf = leaf.sort(dim=1).values
    repeated = torch.zeros_like(leaf, dtype=torch.bool)
    repeated[:, 1:] = leaf[:, 1:] == leaf[:, :-1]
    return leaf.masked_fill(repeated, unused).sort(dim=1).values
