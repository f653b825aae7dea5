"""Semantic IDs: codes that are made unique, their tokens, and their files.

A semantic ID is the tuple of an item's codes, coarse to fine. Two items may share one (a collision). Either some of
them move to another last code under the same prefix (`resolve_collisions`), or a last disambiguation code numbers the
items under each tuple, as in TIGER (Rajput et al. 2023, section 3.1). A collision that is not resolved is not a hit:
recall is always counted on items.

A *quantizer* here is any object of `quantize` or `rqvae` with `sizes`, `encode(vectors)`, `decode(codes)` and
`last_level_costs(vectors)`: the (m, K) squared distances of what the levels before the last leave over of each vector
to the codewords of the last. If that takes `codes` as well, the prefixes are those of the codes, not of `encode`.
"""

import inspect
import json
import operator
import re
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import pairwise
from numbers import Integral
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa

from semid_lib.ids import codebooks as statistics
from semid_lib.workbench import workers
from semid_lib.workbench.atomic import check_only, fresh_file, fresh_folder, settled
from semid_lib.workbench.store import check_files, read_json, sha256
from semid_lib.workbench.text import shown

_FORMAT = 1
_FILES = ("semantic_ids.npz", "codes.npy", "codes_with_suffix.npy", "item_ids.json")
_TOKEN = re.compile(r"<\|sid_(0|[1-9][0-9]*)_(0|[1-9][0-9]*)\|>")
_TOGETHER = 16_384  # vectors that one worker is given at a time


def codes_of(vectors: np.ndarray, quantizer, run: workers.Run = workers.here) -> np.ndarray:
    """`quantizer.encode(vectors)`, which may be shared out among workers: (n, dim) -> (n, n_levels) int64.

    run: where, see `distributed`. Collisions are between any two items, so they are resolved afterwards, in one place.
    Raises what the quantizer raises, and ValueError for vectors that are no (n, dim >= 1) numbers.

    >>> from semid_lib.ids.quantize import ResidualQuantizer
    >>> quantizer = ResidualQuantizer(np.zeros((0, 2), np.int64), np.array([[[0.0], [10.0]], [[-1.0], [1.0]]]))
    >>> codes_of(np.array([[9.0], [1.0]]), quantizer)
    array([[1, 0],
           [0, 1]])
    """
    vectors = np.asarray(vectors)
    if vectors.ndim != 2 or not vectors.shape[1]:
        raise ValueError(f"vectors must be (n, dim >= 1), got shape {vectors.shape}")
    if not len(vectors):
        return quantizer.encode(vectors)
    batches = (
        pa.table({"vector": workers.column(vectors[at : at + _TOGETHER])}) for at in range(0, len(vectors), _TOGETHER)
    )
    answers = run(partial(_encoder, quantizer), batches)
    return np.concatenate([workers.rows_of(answer, "codes") for answer in answers])


def _encoder(quantizer):
    def encode(batch: pa.Table) -> pa.Table:
        return pa.table({"codes": workers.column(quantizer.encode(workers.rows_of(batch, "vector")))})

    return encode


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
    in `n_levels`. Made by `from_codes`; the constructor refuses two items with one ID. `disambiguation_size` keeps
    room for that many disambiguation codes even if fewer are in use, so that the IDs of a trained model keep their
    width when items leave, and have some to spare when items come.
    """

    codes: np.ndarray
    disambiguation_code: np.ndarray
    codebook_size: int
    disambiguation_size: int = 1

    def __post_init__(self):
        if self.codes.ndim != 2 or self.codes.dtype != np.int64:
            raise ValueError(f"codes must be (n_items, n_levels) int64, got {self.codes.shape} {self.codes.dtype}")
        for name, least in {"codebook_size": 0, "disambiguation_size": 1}.items():
            if not isinstance(getattr(self, name), Integral) or not least <= getattr(self, name) < 2**31:
                raise ValueError(f"{name} is {getattr(self, name)!r}, expected an integer from {least} to 2^31 - 1")
        if self.codes.size and not (self.codes.min() >= 0 and self.codes.max() < self.codebook_size):
            raise ValueError(
                f"codes run from {self.codes.min()} to {self.codes.max()}, expected 0 to {self.codebook_size - 1}"
            )
        extra = self.disambiguation_code
        right = extra.shape == (len(self.codes),) and np.issubdtype(extra.dtype, np.integer)
        if not right or (extra.size and not (extra.min() >= 0 and extra.max() < 2**31)):
            raise ValueError(
                f"disambiguation_code must be ({len(self.codes)},) integers from 0 to 2^31 - 1, got {extra.shape} "
                f"{extra.dtype} {extra}"
            )
        n_distinct = len(np.unique(np.column_stack([self.codes, extra]), axis=0))
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
        """One distinct row per item: the codes, and the disambiguation code where there is room for more than one.

        (n_items, n_levels) or (n_items, n_levels + 1) int64; this is what a model generates and the trie holds.
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

    def save(self, path: str | Path) -> None:
        """Write the table as one file in numpy's `.npz` format without pickle, under exactly this name."""
        _write_arrays(path, self._arrays())

    def _arrays(self) -> dict[str, np.ndarray]:
        sizes = {name: np.int64(getattr(self, name)) for name in ("codebook_size", "disambiguation_size")}
        return {"codes": self.codes, "disambiguation_code": self.disambiguation_code, **sizes}

    @classmethod
    def load(cls, path: str | Path) -> "SemanticIDs":
        """Read what `save` wrote. Raises ValueError naming the file if it is another one, or as the class does."""
        arrays = _read_arrays(path, ("codes", "disambiguation_code", "codebook_size", "disambiguation_size"))
        try:
            return cls(arrays[0], arrays[1], *(operator.index(size[()]) for size in arrays[2:]))
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path} does not hold semantic IDs: {error}") from error


# --- collisions ---


class CollisionReport(NamedTuple):
    """What it cost to make the IDs unique."""

    collisions: int  # items too many before: items - distinct codes
    moved: int  # items whose last code changed
    distortion_before: float  # mean squared error of `quantizer.decode(codes)`
    distortion_after: float
    left_over: int  # items that still need a disambiguation code above 0

    @property
    def growth(self) -> float:
        """Relative growth of distortion: 0.01 is one per cent; nan if there was none before."""
        return self.distortion_after / self.distortion_before - 1 if self.distortion_before else float("nan")


def resolve_collisions(
    codes: np.ndarray,
    vectors: np.ndarray,
    quantizer,
    policy: Literal["reassign", "sinkhorn", "disambiguate"] = "reassign",
) -> tuple[SemanticIDs, CollisionReport]:
    """Give every item an ID of its own, and say what it cost.

    "reassign": where two items under one prefix (all codes but the last) collide, all items under it are matched to
    distinct last codes at the least total cost (`least_cost_codes`). "sinkhorn": the same by `sinkhorn_codes`.
    "disambiguate": codes stay, a disambiguation code numbers the items of each tuple. Prefixes never change, so under
    one with more items than codewords no policy can separate all: those left over keep their nearest last code and
    get a disambiguation code as well, and the report counts them. Costs are of the quantizer's own space (latents for
    an RQ-VAE), the distortion in the report is of the vectors.

    codes: (n, n_levels) integers, as `quantizer.encode(vectors)` gives them, or by a beam if `last_level_costs` takes
    codes (otherwise other prefixes would have wrong costs, which is not checked). vectors: (n, dim).
    Raises ValueError for an unknown policy, codes that are no table of codes >= 0, vectors of another number, a
    quantizer without costs unless only to disambiguate, or costs of another shape than items x codewords.
    """
    codes = _checked_codes(codes, vectors)
    choose = {"reassign": least_cost_codes, "sinkhorn": sinkhorn_codes, "disambiguate": None}
    if policy not in choose:
        raise ValueError(f"policy {policy!r} is none of {', '.join(choose)}")
    new = codes.copy()
    if policy != "disambiguate":
        for rows, costs in _crowded_prefixes(codes, vectors, quantizer):
            new[rows, -1] = choose[policy](costs)
    ids = SemanticIDs.from_codes(new, max(quantizer.sizes))
    before = _distortion(vectors, codes, quantizer)
    report = CollisionReport(
        collisions=len(codes) - len(np.unique(codes, axis=0)),
        moved=int(np.any(new != codes, axis=1).sum()),
        distortion_before=before,
        distortion_after=_distortion(vectors, new, quantizer) if (new != codes).any() else before,
        left_over=int(np.count_nonzero(ids.disambiguation_code)),
    )
    return ids, report


def least_cost_codes(costs: np.ndarray, free: np.ndarray | None = None) -> np.ndarray:
    """Distinct last codes for the items under one prefix, at the least total cost: (m, K) -> (m,) int64.

    The assignment problem, solved exactly (Crouse 2016, in SciPy). If there are more items than codewords, as many as
    possible get one of their own, and the others, chosen so that the total cost is least, their nearest.

    costs: (m, K) finite, of each item at each codeword. free: (K,) bool, the codewords that may be given; all if None.

    >>> least_cost_codes(np.array([[0.0, 1.0, 9.0], [0.0, 3.0, 9.0]]))  # the first gives way, at less cost
    array([1, 0])
    """
    from scipy.optimize import linear_sum_assignment  # slow to import

    costs = np.asarray(costs, dtype=np.float64)
    codes = costs.argmin(axis=1)
    columns = np.arange(costs.shape[1]) if free is None else np.flatnonzero(free)
    extra = costs - costs.min(axis=1, keepdims=True)  # what an item pays to leave its nearest; who is left over pays 0
    items, chosen = linear_sum_assignment(extra[:, columns])
    codes[items] = columns[chosen]
    return codes


def sinkhorn_codes(costs: np.ndarray, epsilon: float = 0.01, n_iterations: int = 50) -> np.ndarray:
    """Distinct last codes from a Sinkhorn plan, surest entries first: (m, K) -> (m,) int64.

    The entry of the plan that is largest among items without a code and codewords without an item is fixed, until one
    side is used up; items left over keep their nearest. The total cost is never below that of `least_cost_codes`, and
    usually close. Arguments as of `sinkhorn_plan`.

    >>> sinkhorn_codes(np.array([[0.0, 1.0, 9.0], [0.0, 3.0, 9.0]]))
    array([1, 0])
    """
    plan = sinkhorn_plan(costs, epsilon, n_iterations)
    codes = np.asarray(costs).argmin(axis=1)
    for _ in range(min(plan.shape)):
        item, code = np.unravel_index(plan.argmax(), plan.shape)
        codes[item] = code
        plan[item, :] = plan[:, code] = -np.inf
    return codes


def sinkhorn_plan(costs: np.ndarray, epsilon: float = 0.01, n_iterations: int = 50) -> np.ndarray:
    """Log of the entropy-regularized balanced assignment of items to codewords: (m, K) -> (m, K) float64.

    Items have one unit each and codewords room for one, or m / K if there are more items (Cuturi 2013). The
    balanced last level of LC-Rec (Zheng et al. 2024) fills all codewords equally; here, where m is mostly far below K,
    that would spread an item over many codewords, so a spare row takes the room that is left. exp(plan) has rows of
    sum 1.

    epsilon: how soft, in units of the largest difference that an item sees; the limit 0 is `least_cost_codes`.
    Raises ValueError for epsilon < 0.005, where exp underflows.
    """
    if not epsilon >= 0.005:
        raise ValueError(f"epsilon must be at least 0.005, got {epsilon}; sharper is least_cost_codes")
    extra = np.asarray(costs, dtype=np.float64) - np.min(costs, axis=1, keepdims=True)
    n_items, codebook_size = extra.shape
    log_kernel = -extra / (max(extra.max(), np.finfo(float).tiny) * epsilon)
    kernel, items = np.exp(log_kernel), np.ones(n_items)
    if n_items < codebook_size:
        kernel, items = np.vstack([kernel, np.ones(codebook_size)]), np.append(items, codebook_size - n_items)
    room = items.sum() / codebook_size
    left = np.ones(len(items))
    for _ in range(n_iterations):
        right = room / (left @ kernel)
        left = items / (kernel @ right)
    return log_kernel + np.log(left[:n_items, None]) + np.log(right)


def last_level_costs(quantizer, vectors: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """`quantizer.last_level_costs` under the prefixes of the codes, checked: (m, dim), (m, n_levels) -> (m, K).

    Raises ValueError if the quantizer has none, or gives not one finite cost per item and codeword of the last level.
    """
    ask = getattr(quantizer, "last_level_costs", None)
    if ask is None:
        raise ValueError(f"a {type(quantizer).__name__} has no last_level_costs: its items cannot choose a last code")
    takes_codes = "codes" in inspect.signature(ask).parameters
    costs = np.asarray(ask(vectors, codes=codes) if takes_codes else ask(vectors))
    expected = (len(vectors), quantizer.sizes[-1])
    if costs.shape != expected or not np.isfinite(costs).all():
        raise ValueError(f"last_level_costs gave {costs.shape} {costs.dtype}, expected {expected} finite numbers")
    return costs


def rows_by_prefix(codes: np.ndarray) -> list[np.ndarray]:
    """The rows under each prefix (all codes but the last), prefixes in ascending and rows in row order.

    >>> [rows.tolist() for rows in rows_by_prefix(np.array([[5, 1], [2, 2], [5, 1]]))]
    [[1], [0, 2]]
    """
    group = np.unique(codes[:, :-1], axis=0, return_inverse=True)[1]
    order = np.argsort(group, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(group[order])) + 1) if len(codes) else []


def _crowded_prefixes(codes, vectors, quantizer, at_once: int = 8192) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Rows and costs of each prefix with a collision; costs are computed for about `at_once` items together."""
    collides = disambiguation_codes(codes) > 0
    crowded = [rows for rows in rows_by_prefix(codes) if collides[rows].any()]
    batch = np.cumsum([len(rows) for rows in crowded]) // at_once
    for number in np.unique(batch):
        prefixes = crowded[slice(*np.searchsorted(batch, [number, number + 1]))]
        rows = np.concatenate(prefixes)
        costs = last_level_costs(quantizer, vectors[rows], codes[rows])
        yield from zip(prefixes, np.split(costs, np.cumsum([len(rows) for rows in prefixes])[:-1]), strict=True)


def _distortion(vectors: np.ndarray, codes: np.ndarray, quantizer, at_once: int = 65_536) -> float:
    """`codebooks.distortion` without the vectors of all codes in memory at once."""
    blocks = [slice(start, start + at_once) for start in range(0, len(codes), at_once)]
    errors = [statistics.squared_errors(vectors[rows], quantizer.decode(codes[rows])) for rows in blocks]
    return float(np.mean(np.concatenate(errors)))


def _checked_codes(codes: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    codes = np.asarray(codes)
    if codes.ndim != 2 or not codes.size or not np.issubdtype(codes.dtype, np.integer):
        raise ValueError(f"codes must be (n, n_levels) integers of at least one item, got {codes.shape} {codes.dtype}")
    if codes.min() < 0:
        raise ValueError(f"code {codes.min()} is negative")
    if len(vectors) != len(codes):
        raise ValueError(f"{len(vectors)} vectors for {len(codes)} rows of codes: expected one each")
    return codes.astype(np.int64)


# --- tokens ---


def to_tokens(ids: np.ndarray) -> list[str]:
    """Semantic IDs as text for a language model, one special token per (level, code).

    >>> to_tokens(np.array([[3, 12]]))
    ['<|sid_0_3|><|sid_1_12|>']
    """
    return ["".join(_token(level, code) for level, code in enumerate(row)) for row in ids.tolist()]


def from_tokens(text: str) -> tuple[int, ...]:
    """Codes of the semantic ID in a text; the inverse of `to_tokens`.

    Decoders put white space between tokens and models write words around an ID, so both may be there.

    Parameters
    ----------
    text : str

    Returns
    -------
    tuple of int

    Raises
    ------
    ValueError
        If there is no ID or more than one, a level is missing, or other text is between its tokens.

    Examples
    --------
    >>> from_tokens("<|sid_0_3|><|sid_1_12|>"), from_tokens("Try <|sid_0_3|> <|sid_1_12|>!")
    ((3, 12), (3, 12))
    """
    if not isinstance(text, str):
        raise ValueError(f"{shown(text)} is not text: expected tokens like <|sid_0_3|><|sid_1_12|>")
    tokens = list(_TOKEN.finditer(text))
    levels = [int(token[1]) for token in tokens]
    apart = any(text[one.end() : other.start()].strip() for one, other in pairwise(tokens))
    broken = "sid_" in _TOKEN.sub("", text).lower()
    if not tokens or levels != list(range(len(tokens))) or apart or broken:
        found = f"levels {levels}" + ", text between them" * apart + ", a broken token" * broken
        raise ValueError(
            f"{shown(text)} is not one semantic ID (tokens of {found}): expected tokens of levels 0, 1, ... side by "
            "side, such as <|sid_0_3|><|sid_1_12|>"
        )
    return tuple(int(token[2]) for token in tokens)


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
    if held != (wanted := {token for level in expected for token in level}):
        missing, other = sorted(wanted - held), sorted(held - wanted)
        raise ValueError(
            f"the tokenizer holds semantic-ID tokens of another layout: {_some(missing)} missing, {_some(other)} not "
            f"of sizes {tuple(sizes)}; start from a tokenizer without them, or with all of them and no others"
        )
    return tuple(np.array([vocabulary[token] for token in level], dtype=np.int64) for level in expected)


def trained_tokens(tokens: Iterable[np.ndarray]) -> list[int]:
    """All token ids of a layout in ascending order."""
    return sorted(int(token) for level in tokens for token in level)


def _some(tokens: list[str]) -> str:
    return ", ".join(tokens[:3]) + (f" and {len(tokens) - 3} more" if len(tokens) > 3 else "") or "none"


# --- files ---


class SavedIDs(NamedTuple):
    """What `load_ids` found in a folder."""

    ids: SemanticIDs
    codebooks: np.ndarray  # (n_levels, codebook_size, dim)
    item_ids: list[int] | list[str]  # of each row
    summary: dict[str, Any]  # config, provenance, collision_rate, utilization, ...


def save_ids(
    folder: str | Path,
    ids: SemanticIDs,
    codebooks: np.ndarray,
    item_ids: Sequence,
    config: Mapping[str, Any] | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> Path:
    """Write semantic IDs for ourselves and for others, and return the folder.

    `semantic_ids.npz` holds everything (codes, disambiguation codes, codebooks), `summary.json` the config, the
    provenance, the collision rate and the utilization per level. TIGER-style repositories read `codes.npy`
    (n, n_levels), `codes_with_suffix.npy` (n, n_levels + 1, the disambiguation code last) and `item_ids.json`, the
    item of each row. No pickle. The folder is replaced as a whole.

    config, provenance: JSON. Raises ValueError for codebooks or item ids that do not fit the IDs, or a folder with
    other files in it.
    """
    item_ids = [value.item() if isinstance(value, np.generic) else value for value in item_ids]
    _check_fit(ids, codebooks, item_ids)
    check_only(folder, (*_FILES, "summary.json"))
    with fresh_folder(folder) as fresh:
        _write_ids(
            fresh, ids, codebooks, item_ids, {"config": dict(config or {}), "provenance": dict(provenance or {})}
        )
    return Path(folder)


def _write_ids(folder: Path, ids: SemanticIDs, codebooks: np.ndarray, item_ids: list, facts: dict[str, Any]) -> None:
    suffixed = np.column_stack([ids.codes, ids.disambiguation_code])
    _write_arrays(folder / "semantic_ids.npz", {**ids._arrays(), "codebooks": codebooks})
    _write(folder / "codes.npy", lambda file: np.save(file, ids.codes, allow_pickle=False))
    _write(folder / "codes_with_suffix.npy", lambda file: np.save(file, suffixed, allow_pickle=False))
    _write(folder / "item_ids.json", lambda file: file.write(_json(item_ids)))
    summary = {
        "format": _FORMAT,
        "n_items": len(ids),
        "sizes": list(ids.sizes),
        "collision_rate": statistics.collision_rate(ids.codes),
        "utilization": statistics.utilization(ids.codes, ids.codebook_size).tolist(),
        **facts,
        "sha256": {name: sha256(folder / name) for name in _FILES},
    }
    _write(folder / "summary.json", lambda file: file.write(_json(summary)))


def load_ids(folder: str | Path) -> SavedIDs:
    """Read what `save_ids` wrote.

    Raises ValueError naming the file that is missing, is not the one that the summary describes, or does not fit.
    """
    folder = settled(folder)
    summary = _read_summary(folder / "summary.json")
    check_files(folder, summary["sha256"], _FILES)
    item_ids = read_json(folder / "item_ids.json", list)
    [codebooks] = _read_arrays(folder / "semantic_ids.npz", ["codebooks"])
    ids = SemanticIDs.load(folder / "semantic_ids.npz")
    try:
        _check_fit(ids, codebooks, item_ids)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{folder}: its files do not fit each other: {error}") from error
    return SavedIDs(ids, codebooks, item_ids, summary)


def _check_fit(ids: SemanticIDs, codebooks: np.ndarray, item_ids: list) -> None:
    if codebooks.ndim != 3 or codebooks.shape[:2] != (ids.n_levels, ids.codebook_size):
        raise ValueError(
            f"codebooks are {codebooks.shape}, expected ({ids.n_levels}, {ids.codebook_size}, dim) for these codes"
        )
    if len(item_ids) != len(ids):
        raise ValueError(f"{len(item_ids)} item ids for {len(ids)} semantic IDs: expected one each, in row order")
    for item_id in item_ids:
        if not isinstance(item_id, int | str) or isinstance(item_id, bool):
            raise ValueError(f"item id {shown(item_id)}: expected an integer or text")
    if (n_distinct := len(set(map(str, item_ids)))) < len(item_ids):
        raise ValueError(f"{len(item_ids)} item ids, of which {n_distinct} are distinct: expected one an item")


def _write(path: Path, content) -> None:
    """The file as a whole or not at all: content(stream) writes it under another name, which is then renamed."""
    with fresh_file(path) as partial, open(partial, "wb") as file:
        content(file)


def _write_arrays(path: str | Path, arrays: Mapping[str, np.ndarray]) -> None:
    _write(Path(path), lambda file: np.savez(file, **arrays))


def _read_arrays(path: str | Path, names: Sequence[str]) -> list[np.ndarray]:
    """Arrays of an `.npz` file. Raises ValueError naming it if they are compressed, which `save` never does.

    So none is larger than the file, and a small one cannot fill the memory.
    """
    try:
        with np.load(path, allow_pickle=False) as saved:
            if any(part.compress_type for part in saved.zip.infolist()):
                raise ValueError("its arrays are compressed")
            return [saved[name] for name in names]
    except FileNotFoundError:
        raise
    except (
        ArithmeticError,
        AttributeError,
        EOFError,
        LookupError,
        MemoryError,
        OSError,
        TypeError,
        ValueError,
        zipfile.BadZipFile,
    ) as error:
        raise ValueError(f"{path} is no file of semantic IDs: {error}") from error


def _json(content) -> bytes:
    return (json.dumps(content, indent=1, allow_nan=False) + "\n").encode()


def _read_summary(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ValueError(f"{path} is missing: expected a folder that save_ids wrote")
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    found = summary if isinstance(summary, dict) else {}
    if found.get("format") != _FORMAT or not isinstance(found.get("sha256"), dict):
        raise ValueError(f"{path} has format {found.get('format')!r}, this version reads format {_FORMAT}")
    return found
