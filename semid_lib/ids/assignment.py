"""One semantic ID per item: encode a catalogue, resolve collisions, add and remove items.

Codebooks are fixed here. A *quantizer* is a `quantize.ResidualQuantizer`, an `rqvae.RQVAE`, or any object with `sizes`,
`encode(vectors)`, `decode(codes)` and `last_level_costs(vectors, codes)`: the (m, K) squared distances of the vectors,
minus the prefixes of their codes, to the codewords of the last level.
"""

from collections import defaultdict
from functools import partial
from itertools import count
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from semid_lib.ids import codebooks
from semid_lib.ids.semantic_ids import SemanticIDs, disambiguation_codes, equal_rows
from semid_lib.workbench import workers

_TOGETHER = 16_384  # vectors per batch of a worker
_PREFIXES = 512  # whose costs are in memory at a time


def codes_of(vectors: np.ndarray, quantizer, run: workers.Run = workers.here) -> np.ndarray:
    """`quantizer.encode(vectors)`, in this process or by workers: (n, dim) -> (n, n_levels) int64.

    run: see `workers`. Resolve collisions afterwards, in one place, because any two items can collide.

    >>> from semid_lib.ids.quantize import ResidualQuantizer
    >>> quantizer = ResidualQuantizer(np.zeros((0, 2), np.int64), np.array([[[0.0], [10.0]], [[-1.0], [1.0]]]))
    >>> codes_of(np.array([[9.0], [1.0]]), quantizer)
    array([[1, 0],
           [0, 1]])
    """
    vectors = np.asarray(vectors)
    if not len(vectors) or vectors.ndim != 2 or not vectors.shape[1]:
        return quantizer.encode(vectors)  # no codes, or an error
    starts = range(0, len(vectors), _TOGETHER)
    batches = (pa.table({"vector": workers.column(vectors[at : at + _TOGETHER])}) for at in starts)
    answers = run(partial(partial, _encoded, quantizer), batches)
    return np.concatenate([workers.rows_of(answer, "codes") for answer in answers])


def _encoded(quantizer, batch: pa.Table) -> pa.Table:
    return pa.table({"codes": workers.column(quantizer.encode(workers.rows_of(batch, "vector")))})


# --- collisions ---


class CollisionReport(NamedTuple):
    """The cost of unique IDs."""

    collisions: int  # items - distinct codes, before
    moved: int  # items whose last code changed
    distortion_before: float  # mean squared error of `quantizer.decode(codes)`
    distortion_after: float
    left_over: int  # items that still need a disambiguation code above 0

    @property
    def growth(self) -> float:
        """Relative growth of the distortion: 0.01 is one per cent; nan if the distortion was 0."""
        return self.distortion_after / self.distortion_before - 1 if self.distortion_before else float("nan")


def resolve_collisions(
    codes: np.ndarray, vectors: np.ndarray, quantizer, policy: str = "reassign"
) -> tuple[SemanticIDs, CollisionReport]:
    """Give every item a distinct semantic ID.

    Prefixes (all codes except the last) never change. If a prefix has more items than codewords, the items left over
    keep their nearest last code and get a disambiguation code.

    Parameters
    ----------
    codes : (n, n_levels) int array
        From `quantizer.encode(vectors)`, greedy or with a beam.
    vectors : (n, dim) array
    quantizer : quantizer
        See the module; only "disambiguate" does without its `last_level_costs`.
    policy : str
        "reassign" matches the items of each prefix with a collision to distinct last codes at minimum total squared
        distance, see `least_cost_codes`; "sinkhorn" does so by `sinkhorn_codes`. "disambiguate" keeps the codes and
        numbers the items that share them, as TIGER does (Rajput et al. 2023, section 3.1).

    Raises
    ------
    ValueError
        If the policy is unknown, or codes or vectors do not fit the quantizer or each other.
    """
    choose = {"reassign": least_cost_codes, "sinkhorn": sinkhorn_codes, "disambiguate": None}
    if policy not in choose:
        raise ValueError(f"policy {policy!r} is none of {', '.join(choose)}")
    codes = np.asarray(codes)
    if codes.ndim != 2 or not codes.size or not np.issubdtype(codes.dtype, np.integer):
        raise ValueError(f"codes must be (n, n_levels) integers of at least one item, got {codes.shape} {codes.dtype}")
    if len(vectors) != len(codes):
        raise ValueError(f"{len(vectors)} vectors for {len(codes)} rows of codes: expected one each")
    new, numbers = codes.astype(np.int64), disambiguation_codes(codes)
    if (assign := choose[policy]) is not None:
        crowded = [rows for rows in equal_rows(codes[:, :-1]) if numbers[rows].any()]
        for at in range(0, len(crowded), _PREFIXES):
            some = crowded[at : at + _PREFIXES]
            rows = np.concatenate(some)
            costs = quantizer.last_level_costs(vectors[rows], codes[rows])
            for row, own in zip(some, np.split(costs, np.cumsum(list(map(len, some)))[:-1]), strict=True):
                new[row, -1] = assign(own)
    ids = SemanticIDs.from_codes(new, max(quantizer.sizes))
    n_moved = int(np.any(new != codes, axis=1).sum())
    before = codebooks.distortion(vectors, quantizer.decode(codes))
    report = CollisionReport(
        collisions=int(np.count_nonzero(numbers)),
        moved=n_moved,
        distortion_before=before,
        distortion_after=codebooks.distortion(vectors, quantizer.decode(new)) if n_moved else before,
        left_over=int(np.count_nonzero(ids.disambiguation_code)),
    )
    return ids, report


def least_cost_codes(costs: np.ndarray, free: np.ndarray | None = None) -> np.ndarray:
    """Distinct last codes for the items of one prefix at minimum total cost: (m, K) -> (m,) int64.

    The assignment problem, solved exactly (Crouse 2016, in SciPy). With more items than codewords, as many as
    possible get a codeword of their own; the others, again at minimum total cost, get their nearest.

    Parameters
    ----------
    costs : (m, K) finite array
        Cost of each item at each codeword.
    free : (K,) bool array, optional
        Codewords that may be assigned; by default all.

    Examples
    --------
    >>> least_cost_codes(np.array([[0.0, 1.0, 9.0], [0.0, 3.0, 9.0]]))  # moving the first costs 1, the second 3
    array([1, 0])
    """
    from scipy.optimize import linear_sum_assignment  # slow to import

    costs = np.asarray(costs, dtype=np.float64)
    codes = costs.argmin(axis=1)
    columns = np.arange(costs.shape[1]) if free is None else np.flatnonzero(free)
    extra = costs - costs.min(axis=1, keepdims=True)  # the price of leaving the nearest; 0 for an item left over
    items, chosen = linear_sum_assignment(extra[:, columns])
    codes[items] = columns[chosen]
    return codes


def sinkhorn_codes(costs: np.ndarray) -> np.ndarray:
    """Distinct last codes by Sinkhorn's algorithm, close to `least_cost_codes`: (m, K) -> (m,) int64.

    Cuturi's (2013) soft assignment of m items to K codewords, each with room for one item (m / K if m > K), in 50
    iterations. Its largest entries become codes, one per item and codeword; items left over keep their nearest. LC-Rec
    (Zheng et al. 2024) balances its last level in this way.

    >>> sinkhorn_codes(np.array([[0.0, 1.0, 9.0], [0.0, 3.0, 9.0]]))
    array([1, 0])
    """
    softness = 0.01  # in units of the largest cost difference; below 0.005, exp underflows
    extra = np.asarray(costs, dtype=np.float64) - np.min(costs, axis=1, keepdims=True)
    n_items, size = extra.shape
    log_kernel = -extra / (max(extra.max(), np.finfo(float).tiny) * softness)
    kernel, items = np.exp(log_kernel), np.ones(n_items)
    if n_items < size:  # a spare row takes the room that is left
        kernel, items = np.vstack([kernel, np.ones(size)]), np.append(items, size - n_items)
    left = np.ones(len(items))
    for _ in range(50):
        right = items.sum() / size / (left @ kernel)
        left = items / (kernel @ right)
    plan = log_kernel + np.log(left[:n_items, None]) + np.log(right)
    codes = extra.argmin(axis=1)
    for _ in range(min(plan.shape)):
        item, code = np.unravel_index(plan.argmax(), plan.shape)
        codes[item] = code
        plan[item, :] = plan[:, code] = -np.inf
    return codes


# --- items come and go ---


class AdditionReport(NamedTuple):
    """How well the new items fit in."""

    n_items: int
    at_nearest: int  # items with exactly the codes that the quantizer gives them
    left_over: int  # items that share all codes with another and got a disambiguation code
    same_sizes: bool  # whether a model trained on the old `ids.sizes` can generate the new IDs; true if left_over is 0
    elsewhere: int = 0  # items whose prefix was full and that got the nearest prefix with room, with `keep_sizes`


def add_items(
    ids: SemanticIDs, vectors: np.ndarray, quantizer, keep_sizes: bool = False
) -> tuple[SemanticIDs, AdditionReport]:
    """Assign semantic IDs to new items; codebooks and existing IDs do not change.

    New items of one prefix get free last codes at minimum total cost. If a prefix is full, the others get their
    nearest last code and the smallest free disambiguation code, which a trained model may be unable to generate: check
    `report.same_sizes`. A free code may be one that the model never saw in training.

    Parameters
    ----------
    ids : SemanticIDs
    vectors : (m, dim) float array
        Embeddings of the new items.
    quantizer : quantizer
        See the module.
    keep_sizes : bool
        For a model that is trained already: an item that would need a disambiguation code beyond `ids.sizes` gets the
        nearest prefix with a free last code instead, among those that differ in their last code alone.

    Returns
    -------
    added : SemanticIDs
        Existing items first, then the m new ones.
    report : AdditionReport

    Raises
    ------
    ValueError
        If levels or codebook sizes differ, or a vector is invalid. With `keep_sizes`, if no such prefix has room.

    Examples
    --------
    >>> class Line:  # one level, codewords 0, 1 and 2
    ...     sizes = (3,)
    ...     encode = lambda self, vectors: np.abs(vectors - np.arange(3)).argmin(axis=1)[:, None]
    ...     last_level_costs = lambda self, vectors, codes: (vectors - np.arange(3)) ** 2
    >>> old = SemanticIDs.from_codes(np.array([[1]]), codebook_size=3)
    >>> add_items(old, np.array([[0.9]]), Line())[0].codes.ravel()  # 1 is taken, 0 is nearer than 2
    array([1, 0])
    """
    encoded = quantizer.encode(vectors)
    if encoded.shape != (len(vectors), ids.n_levels) or max(quantizer.sizes) != ids.codebook_size:
        raise ValueError(
            f"the quantizer gives codes {encoded.shape} of {max(quantizer.sizes)}, "
            f"expected ({len(vectors)}, {ids.n_levels}) of {ids.codebook_size} as in the IDs"
        )
    codes, first_new = np.concatenate([ids.codes, encoded]), len(ids)
    costs = quantizer.last_level_costs(vectors, encoded)
    for rows in equal_rows(codes[:, :-1]):
        new = rows[rows >= first_new]
        if len(new):
            free = np.ones(costs.shape[1], dtype=bool)
            free[codes[rows[rows < first_new], -1]] = False
            codes[new, -1] = least_cost_codes(costs[new - first_new], free)
    numbers, elsewhere = _numbers(codes, ids.disambiguation_code), 0
    if keep_sizes:
        room = ids.sizes[ids.n_levels] if len(ids.sizes) > ids.n_levels else 1
        crowded = np.flatnonzero(numbers >= room)
        elsewhere, numbers[crowded] = len(crowded), 0
        _move(codes, crowded, vectors[crowded - first_new], quantizer)
    added = SemanticIDs(codes, numbers, ids.codebook_size, ids.disambiguation_size)
    extra = numbers[first_new:]
    at_nearest = int(np.sum((codes[first_new:] == encoded).all(axis=1) & (extra == 0)))
    left_over = int(np.count_nonzero(extra))
    return added, AdditionReport(len(encoded), at_nearest, left_over, added.sizes == ids.sizes, elsewhere)


def _move(codes: np.ndarray, rows: np.ndarray, vectors: np.ndarray, quantizer) -> None:
    """Give each of these rows the nearest prefix that has a free last code, and of those codes the nearest."""
    used: defaultdict[tuple[int, ...], set[int]] = defaultdict(set)
    for *prefix, last in np.delete(codes, rows, axis=0).tolist() if len(rows) else ():
        used[tuple(prefix)].add(last)
    for row, vector in zip(rows, vectors, strict=True):
        start = codes[row, :-1]
        prefixes = np.repeat(start[None], quantizer.sizes[-2] if len(start) else 1, axis=0)
        if len(start):
            prefixes[:, -1] = np.arange(len(prefixes))
        distances = np.sum((quantizer.decode(prefixes) - vector) ** 2, axis=1)
        with_room = (prefixes[at] for at in np.argsort(distances, kind="stable"))
        with_room = (each for each in with_room if len(used[tuple(each.tolist())]) < quantizer.sizes[-1])
        if (prefix := next(with_room, None)) is None:
            raise ValueError(f"all {len(prefixes)} prefixes near a new item are full: make all IDs anew")
        taken = used[tuple(prefix.tolist())]
        costs = quantizer.last_level_costs(vector[None], np.append(prefix, 0)[None])[0]
        costs[sorted(taken)] = np.inf
        codes[row] = [*prefix, costs.argmin()]
        taken.add(int(codes[row, -1]))


def _numbers(codes: np.ndarray, taken: np.ndarray) -> np.ndarray:
    """The disambiguation code of each row: the first len(taken) have theirs, the others get the smallest free one."""
    used: defaultdict[tuple[int, ...], set[int]] = defaultdict(set)
    numbers = taken.tolist()
    for at, row in enumerate(map(tuple, codes.tolist())):
        if at >= len(taken):
            numbers.append(next(number for number in count() if number not in used[row]))
        used[row].add(numbers[at])
    return np.array(numbers, dtype=np.int64)


def remove_items(ids: SemanticIDs, rows: np.ndarray) -> SemanticIDs:
    """The IDs of the items that stay, in row order and of unchanged width; `add_items` may use the others again.

    Raises ValueError unless rows are distinct integers (r,) from 0 to len(ids) - 1.

    >>> remove_items(SemanticIDs.from_codes(np.array([[4], [2], [7]]), 8), np.array([1])).codes.ravel()
    array([4, 7])
    """
    kept = ~np.isin(np.arange(len(ids)), rows)
    if len(ids) - kept.sum() != np.size(rows) or np.asarray(rows).dtype == bool:
        raise ValueError(f"rows are {np.ravel(rows)[:20].tolist()}, expected distinct ones from 0 to {len(ids) - 1}")
    room = ids.sizes[ids.n_levels] if len(ids.sizes) > ids.n_levels else 1
    return SemanticIDs(ids.codes[kept], ids.disambiguation_code[kept], ids.codebook_size, room)
