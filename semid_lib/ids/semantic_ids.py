"""The semantic IDs of a catalogue: as codes, as tokens of a language model, and as files.

A semantic ID is the tuple of an item's codes, coarse to fine. Items that share all codes (a collision) get a
disambiguation code as well, as in TIGER (Rajput et al. 2023, section 3.1), so that each ID names one item.
"""

import operator
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np

from semid_lib.ids.codebooks import collision_rate, utilization
from semid_lib.workbench.atomic import check_only, fresh_file, fresh_folder
from semid_lib.workbench.store import sha256, write_json

_FILES = ("semantic_ids.npz", "codes.npy", "codes_with_suffix.npy", "item_ids.json")


@dataclass(frozen=True, eq=False)
class SemanticIDs:
    """The semantic IDs of a catalogue, one row per item in the order of the item table.

    Make them with `from_codes` or `assignment.resolve_collisions`.

    Attributes
    ----------
    codes : (n_items, n_levels) int64 array in 0 .. codebook_size - 1
    disambiguation_code : (n_items,) int64 array
        Never counted in `n_levels`.
    codebook_size : int
    disambiguation_size : int
        Room for this many disambiguation codes, even if fewer are in use: the IDs of a trained model keep their width
        when items leave, and new items can use the spare codes.

    Raises
    ------
    ValueError
        If two items have one ID, or a code is out of range.
    """

    codes: np.ndarray
    disambiguation_code: np.ndarray
    codebook_size: int
    disambiguation_size: int = 1

    def __post_init__(self):
        n, extra = len(self.codes), self.disambiguation_code
        if self.codes.ndim != 2 or self.codes.dtype != np.int64:
            raise ValueError(f"codes must be (n_items, n_levels) int64, got {self.codes.shape} {self.codes.dtype}")
        if extra.shape != (n,) or not np.issubdtype(extra.dtype, np.integer):
            raise ValueError(f"disambiguation_code must be ({n},) integers, got {extra.shape} {extra.dtype}")
        for name in ("codebook_size", "disambiguation_size"):
            if not isinstance(getattr(self, name), Integral):
                raise ValueError(f"{name} is {getattr(self, name)!r}, expected a whole number")
        for name, values, low, high in (
            ("codebook_size is", self.codebook_size, 0, 2**31),
            ("disambiguation_size is", self.disambiguation_size, 1, 2**31),
            ("codes hold", self.codes, 0, self.codebook_size),
            ("disambiguation_code holds", extra, 0, 2**31),
        ):
            wrong = np.extract((np.less(values, low)) | np.greater_equal(values, high), values)
            if wrong.size:
                raise ValueError(f"{name} {wrong[0]}, expected {low} to {high - 1}")
        n_distinct = len(np.unique(np.column_stack([self.codes, extra]), axis=0))
        if n_distinct < n:
            raise ValueError(f"{n} items share {n_distinct} semantic IDs: each item needs its own")

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
        """One distinct row per item, as models generate it and the trie holds it.

        (n_items, n_levels) int64, or (n_items, n_levels + 1) with the disambiguation code if any item needs one.
        """
        if len(self.sizes) == self.n_levels:
            return self.codes
        return np.column_stack([self.codes, self.disambiguation_code])

    @property
    def sizes(self) -> tuple[int, ...]:
        """Number of codes at each position of `unique`."""
        room = max(self.disambiguation_size, int(self.disambiguation_code.max(initial=0)) + 1)
        return (self.codebook_size,) * self.n_levels + ((room,) if room > 1 else ())

    def __len__(self) -> int:
        return len(self.codes)

    def save(self, path: str | Path, **more: Any) -> None:
        """Write one file in numpy's `.npz` format, without pickle, under exactly this name. more: further arrays."""
        more |= {name: np.int64(getattr(self, name)) for name in ("codebook_size", "disambiguation_size")}
        with fresh_file(path) as partial, open(partial, "wb") as file:
            np.savez(file, codes=self.codes, disambiguation_code=self.disambiguation_code, **more)

    @classmethod
    def load(cls, path: str | Path) -> "SemanticIDs":
        """Read the file of `save`, or `semantic_ids.npz` of `save_ids`.

        Raises ValueError that names the file if it is not such a file. Compressed arrays are refused too: `save` never
        compresses, and a small file must not fill the memory.
        """
        try:
            with open(path, "rb") as file:
                if not zipfile.is_zipfile(file):  # numpy would take it for a pickle
                    raise ValueError("it is no .npz archive")
            with np.load(path, allow_pickle=False) as saved:
                if any(part.compress_type for part in saved.zip.infolist()):
                    raise ValueError("its arrays are compressed")
                sizes = (operator.index(saved[name][()]) for name in ("codebook_size", "disambiguation_size"))
                return cls(saved["codes"], saved["disambiguation_code"], *sizes)
        except FileNotFoundError:
            raise
        except Exception as error:  # a damaged archive raises a dozen types
            raise ValueError(f"{path} is no file of semantic IDs: {error}; expected one of SemanticIDs.save") from error


def disambiguation_codes(codes: np.ndarray) -> np.ndarray:
    """Number the items that share all codes 0, 1, 2, ... in row order: (n_items, n_levels) -> (n_items,) int64.

    >>> disambiguation_codes(np.array([[5, 1], [5, 2], [5, 1], [5, 1]]))
    array([0, 0, 1, 2])
    """
    _, group, sizes = np.unique(codes, axis=0, return_inverse=True, return_counts=True)
    numbers = np.empty(len(codes), dtype=np.int64)
    numbers[np.argsort(group, kind="stable")] = np.arange(len(codes)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return numbers


def equal_rows(values: np.ndarray) -> list[np.ndarray]:
    """The rows that hold each distinct value, values in ascending and rows in row order.

    >>> [rows.tolist() for rows in equal_rows(np.array([[5, 1], [2, 2], [5, 1]]))]
    [[1], [0, 2]]
    """
    group = np.unique(values, axis=0, return_inverse=True)[1]
    order = np.argsort(group, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(group[order])) + 1) if len(values) else []


# --- tokens ---


def to_tokens(ids: np.ndarray) -> list[str]:
    """Semantic IDs as text for a language model, one special token per (level, code).

    >>> to_tokens(np.array([[3, 12]]))
    ['<|sid_0_3|><|sid_1_12|>']
    """
    return ["".join(_token(level, code) for level, code in enumerate(row)) for row in ids.tolist()]


def sid_tokens(sizes: Sequence[int]) -> list[list[str]]:
    """Semantic-ID tokens of each level, one per code.

    >>> sid_tokens((2, 1))
    [['<|sid_0_0|>', '<|sid_0_1|>'], ['<|sid_1_0|>']]
    """
    return [[_token(level, code) for code in range(size)] for level, size in enumerate(sizes)]


def _token(level: int, code: int) -> str:
    return f"<|sid_{level}_{code}|>"


def token_layout(tokenizer, sizes: Sequence[int]) -> tuple[np.ndarray, ...] | None:
    """Look up the token ids of all codes: per level (size,) int64, or None if the tokenizer has no such tokens.

    Parameters
    ----------
    tokenizer : any
        Has `get_vocab()`, which returns {token: id}, such as a tokenizer of transformers.
    sizes : sequence of int
        Number of codes at each level, as `SemanticIDs.sizes`.

    Raises
    ------
    ValueError
        If the tokenizer holds only some of the tokens, or tokens of other sizes.
    """
    vocabulary = tokenizer.get_vocab()
    expected = sid_tokens(sizes)
    held = {token for token in vocabulary if token.startswith("<|sid_")}
    if not held:
        return None
    if held != {token for level in expected for token in level}:
        raise ValueError(
            f"the tokenizer holds {len(held)} semantic-ID tokens of another layout than the sizes {tuple(sizes)}; "
            "start from a tokenizer without them, or with all of them and no others"
        )
    return tuple(np.array([vocabulary[token] for token in level], dtype=np.int64) for level in expected)


def trained_tokens(tokens: Iterable[np.ndarray]) -> list[int]:
    """All token ids of a layout in ascending order."""
    return sorted(int(token) for level in tokens for token in level)


# --- files for other programs ---


def save_ids(
    folder: str | Path,
    ids: SemanticIDs,
    codebooks: np.ndarray,
    item_ids: Sequence,
    config: Mapping[str, Any] | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> Path:
    """Write semantic IDs as a folder for other programs, and return its path; the folder is replaced atomically.

    TIGER-style repositories read `codes.npy` (n, n_levels), `codes_with_suffix.npy` (n, n_levels + 1, with the
    disambiguation code) and `item_ids.json`, the item of each row. `semantic_ids.npz` has these arrays and the
    codebooks, for `SemanticIDs.load`. `summary.json` has config, provenance, collision rate, utilization per level, and
    checksums.

    Parameters
    ----------
    codebooks : (n_levels, codebook_size, dim) array
    item_ids : (n_items,) sequence of int or str
        Distinct.
    config, provenance : mapping, optional
        JSON.

    Raises
    ------
    ValueError
        If codebooks or item ids do not fit the IDs, or the folder has other files.
    """
    item_ids = [value.item() if isinstance(value, np.generic) else value for value in item_ids]
    if codebooks.ndim != 3 or codebooks.shape[:2] != (ids.n_levels, ids.codebook_size):
        raise ValueError(
            f"codebooks are {codebooks.shape}, expected ({ids.n_levels}, {ids.codebook_size}, dim) for these codes"
        )
    if not len(set(map(str, item_ids))) == len(item_ids) == len(ids):
        raise ValueError(f"there are {len(item_ids)} item ids, expected {len(ids)} different ones")
    check_only(folder, (*_FILES, "summary.json"))
    with fresh_folder(folder) as fresh:
        ids.save(fresh / "semantic_ids.npz", codebooks=codebooks)
        np.save(fresh / "codes.npy", ids.codes, allow_pickle=False)
        suffixed = np.column_stack([ids.codes, ids.disambiguation_code])
        np.save(fresh / "codes_with_suffix.npy", suffixed, allow_pickle=False)
        write_json(fresh / "item_ids.json", item_ids)
        summary = {
            "format": 1,
            "n_items": len(ids),
            "sizes": list(ids.sizes),
            "collision_rate": collision_rate(ids.codes),
            "utilization": utilization(ids.codes, ids.codebook_size).tolist(),
            "config": dict(config or {}),
            "provenance": dict(provenance or {}),
            "sha256": {name: sha256(fresh / name) for name in _FILES},
        }
        write_json(fresh / "summary.json", summary)
    return Path(folder)
