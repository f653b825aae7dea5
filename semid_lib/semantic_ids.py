"""Semantic IDs: codes, the disambiguation code that makes them unique, and their tokens.

A semantic ID is the tuple of an item's codes, coarse to fine. Two items may share one (a collision), so a last
disambiguation code numbers the items under each tuple, as in TIGER (Rajput et al. 2023, section 3.1). A collision
that is not resolved is not a hit: recall is always counted on items.
"""

import re
from dataclasses import dataclass
from functools import cached_property

import numpy as np

_TOKEN = re.compile(r"<\|sid_(\d+)_(\d+)\|>")


def disambiguation_codes(codes: np.ndarray) -> np.ndarray:
    """Number the items that share all codes 0, 1, 2, ... in row order: (n_items, n_levels) -> (n_items,) int64.

    >>> disambiguation_codes(np.array([[5, 1], [5, 2], [5, 1], [5, 1]]))
    array([0, 0, 1, 2])
    """
    _, group, sizes = np.unique(codes, axis=0, return_inverse=True, return_counts=True)
    order = np.argsort(group, kind="stable")  # items of a group side by side, in row order
    starts = np.repeat(np.cumsum(sizes) - sizes, sizes)
    numbers = np.empty(len(codes), dtype=np.int64)
    numbers[order] = np.arange(len(codes)) - starts
    return numbers


@dataclass(frozen=True, eq=False)
class SemanticIDs:
    """The semantic IDs of a catalogue, one row per item in the order of the item table.

    `codes` (n_items, n_levels) int64 in 0 .. codebook_size - 1; `disambiguation_code` (n_items,) int64, never counted
    in `n_levels`. Made by `from_codes`; the constructor refuses two items with one ID.
    """

    codes: np.ndarray
    disambiguation_code: np.ndarray
    codebook_size: int

    def __post_init__(self):
        if self.codes.ndim != 2 or self.codes.dtype != np.int64:
            raise ValueError(f"codes must be (n_items, n_levels) int64, got {self.codes.shape} {self.codes.dtype}")
        if self.codes.size and not (self.codes.min() >= 0 and self.codes.max() < self.codebook_size):
            raise ValueError(
                f"codes run from {self.codes.min()} to {self.codes.max()}, expected 0 to {self.codebook_size - 1}"
            )
        extra = self.disambiguation_code
        if extra.shape != (len(self.codes),) or (extra.size and extra.min() < 0):
            raise ValueError(
                f"disambiguation_code must be ({len(self.codes)},) integers >= 0, got {extra.shape} {extra}"
            )
        n_distinct = len(np.unique(self.unique, axis=0))
        if n_distinct < len(self.codes):
            raise ValueError(f"{len(self.codes)} items share {n_distinct} semantic IDs: each item needs its own")

    @classmethod
    def from_codes(cls, codes: np.ndarray, codebook_size: int) -> "SemanticIDs":
        """Add the disambiguation code to (n_items, n_levels) codes.

        >>> SemanticIDs.from_codes(np.array([[0, 1], [0, 1]]), codebook_size=2).unique
        array([[0, 1, 0],
               [0, 1, 1]])
        """
        return cls(np.asarray(codes, dtype=np.int64), disambiguation_codes(codes), codebook_size)

    @property
    def n_levels(self) -> int:
        return self.codes.shape[1]

    @cached_property
    def unique(self) -> np.ndarray:
        """One distinct row per item: the codes, and the disambiguation code where any item needs one.

        (n_items, n_levels) or (n_items, n_levels + 1) int64; this is what a model generates and the trie holds.
        """
        if not self.disambiguation_code.any():
            return self.codes
        return np.column_stack([self.codes, self.disambiguation_code])

    @property
    def sizes(self) -> tuple[int, ...]:
        """Number of codes at each position of `unique`."""
        spare = (int(self.disambiguation_code.max()) + 1,) if self.disambiguation_code.any() else ()
        return (self.codebook_size,) * self.n_levels + spare

    def __len__(self) -> int:
        return len(self.codes)


def to_tokens(ids: np.ndarray) -> list[str]:
    """Semantic IDs as text for a language model, one special token per (level, code).

    >>> to_tokens(np.array([[3, 12]]))
    ['<|sid_0_3|><|sid_1_12|>']
    """
    return ["".join(f"<|sid_{level}_{code}|>" for level, code in enumerate(row)) for row in ids.tolist()]


def from_tokens(text: str) -> tuple[int, ...]:
    """Codes of one semantic ID written as tokens; the inverse of `to_tokens`.

    Raises ValueError for anything but whole tokens whose levels run 0, 1, 2, ...

    >>> from_tokens("<|sid_0_3|><|sid_1_12|>")
    (3, 12)
    """
    pairs = [(int(level), int(code)) for level, code in _TOKEN.findall(text)]
    codes = tuple(code for _, code in pairs)
    if not codes or to_tokens(np.array([codes]))[0] != text:
        raise ValueError(f"{text!r} is not a semantic ID: expected tokens like <|sid_0_3|><|sid_1_12|>")
    return codes
