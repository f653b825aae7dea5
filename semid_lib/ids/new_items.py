"""Items that come and go after a model was trained: IDs for new items, freed IDs, and when to fit again.

The codebooks stay frozen, and so does every ID that was given. A new item gets a free last code under the prefix that
the quantizer gives it; a trie built of old and new IDs then leads to it, without training. What the model cannot do is
prefer it for reasons its prefix does not tell. A *quantizer* is what `semantic_ids` says.
"""

from typing import NamedTuple

import numpy as np

from semid_lib.ids.semantic_ids import SemanticIDs, last_level_costs, least_cost_codes, rows_by_prefix


class AdditionReport(NamedTuple):
    """How well the new items found a place."""

    n_items: int
    at_nearest: int  # items that have the very codes that the quantizer gives them
    left_over: int  # items that share all codes with another and got a disambiguation code for it
    same_sizes: bool  # a model made for the old `ids.sizes` can write the new IDs; always so if left_over is 0


def add_items(
    ids: SemanticIDs, vectors: np.ndarray, quantizer, retired: SemanticIDs | None = None
) -> tuple[SemanticIDs, AdditionReport]:
    """Semantic IDs of the old items, unchanged and first, then of the new ones, with codebooks as they are.

    New items that arrive together under one prefix are matched to its free last codes at the least total cost, so a
    single one gets the nearest that is free. If a prefix has no room, the items left over share their nearest last
    code and get the smallest disambiguation code that is free: `same_sizes` then says whether a trained model can
    write it. Adding in several batches may cost more than adding at once, and never moves the earlier items. A free
    code may be one that no item carried in training, whose token a model never saw: see `codebooks.dead_codes`.

    vectors: (m, dim) float, of the new items. retired: IDs of removed items that shall not be given again; by default
    all that `ids` does not hold are free.
    Raises ValueError if the quantizer has other levels or codebook sizes than the IDs, or refuses the vectors.

    >>> class Line:  # one level, codewords 0, 1 and 2
    ...     sizes = (3,)
    ...     encode = lambda self, vectors: np.abs(vectors - np.arange(3)).argmin(axis=1)[:, None]
    ...     last_level_costs = lambda self, vectors: (vectors - np.arange(3)) ** 2
    >>> old = SemanticIDs.from_codes(np.array([[1]]), codebook_size=3)
    >>> add_items(old, np.array([[0.9]]), Line())[0].codes.ravel()  # 1 is taken, 0 nearer than 2
    array([1, 0])
    """
    encoded = _encoded(ids, vectors, quantizer)
    if retired is not None and retired.n_levels != ids.n_levels:
        raise ValueError(f"retired IDs have {retired.n_levels} levels, expected {ids.n_levels} as the others")
    given = [ids.codes] if retired is None else [ids.codes, retired.codes]
    codes = np.concatenate([*given, encoded])
    first_new = len(codes) - len(encoded)
    costs = last_level_costs(quantizer, vectors, encoded)
    for rows in rows_by_prefix(codes):
        new = rows[rows >= first_new]
        if len(new):
            free = np.ones(costs.shape[1], dtype=bool)
            free[codes[rows[rows < first_new], -1]] = False
            codes[new, -1] = least_cost_codes(costs[new - first_new], free)
    numbers = [each.disambiguation_code for each in (ids, retired) if each is not None]
    extra = _free_numbers(codes, np.concatenate(numbers))
    added = SemanticIDs(
        np.concatenate([ids.codes, codes[first_new:]]),
        np.concatenate([ids.disambiguation_code, extra]),
        ids.codebook_size,
        ids.disambiguation_size,
    )
    at_nearest = int(np.sum((codes[first_new:] == encoded).all(axis=1) & (extra == 0)))
    return added, AdditionReport(len(encoded), at_nearest, int(np.count_nonzero(extra)), added.sizes == ids.sizes)


def _encoded(ids: SemanticIDs, vectors: np.ndarray, quantizer) -> np.ndarray:
    codes = quantizer.encode(vectors)
    if codes.shape != (len(vectors), ids.n_levels) or max(quantizer.sizes) != ids.codebook_size:
        raise ValueError(
            f"the quantizer gives codes {codes.shape} of {max(quantizer.sizes)}, "
            f"expected ({len(vectors)}, {ids.n_levels}) of {ids.codebook_size} as in the IDs"
        )
    return codes


def _free_numbers(codes: np.ndarray, taken: np.ndarray) -> np.ndarray:
    """The smallest free disambiguation code of each row after the first len(taken), which have theirs."""
    used: dict[tuple[int, ...], set[int]] = {}
    for row, number in zip(codes[: len(taken)].tolist(), taken.tolist(), strict=True):
        used.setdefault(tuple(row), set()).add(number)
    numbers = []
    for row in codes[len(taken) :].tolist():
        there = used.setdefault(tuple(row), set())
        numbers.append(next(number for number in range(len(there) + 1) if number not in there))
        there.add(numbers[-1])
    return np.array(numbers, dtype=np.int64)


def remove_items(ids: SemanticIDs, rows: np.ndarray) -> tuple[SemanticIDs, SemanticIDs]:
    """The IDs without those rows, and the removed ones, both in row order; what stays is unchanged.

    A removed ID is free, so `add_items` may give it to another item of the same prefix: room under a prefix is scarce,
    and a model knows an ID by its codes, which describe the newcomer as well. Where old logs still name items by ID,
    pass the removed ones as `retired`. Both results keep the width of `ids.unique`.

    rows: (r,) distinct integers. Raises ValueError for a row that is not there, or twice, or something else than rows.

    >>> kept, removed = remove_items(SemanticIDs.from_codes(np.array([[4], [2], [7]]), 8), np.array([1]))
    >>> kept.codes.ravel(), removed.codes.ravel()
    (array([4, 7]), array([2]))
    """
    rows = np.asarray(rows)
    if rows.ndim != 1 or (rows.size and not np.issubdtype(rows.dtype, np.integer)):
        raise ValueError(f"rows must be a list of row numbers, got {rows.shape} {rows.dtype}")
    if rows.size and not (rows.min() >= 0 and rows.max() < len(ids)):
        raise ValueError(f"rows run from {rows.min()} to {rows.max()}, expected 0 to {len(ids) - 1}")
    gone = np.zeros(len(ids), dtype=bool)
    gone[rows.astype(np.int64)] = True
    if gone.sum() < len(rows):
        raise ValueError(f"{len(rows)} rows, of which {gone.sum()} are distinct: expected each once")
    room = ids.sizes[ids.n_levels] if len(ids.sizes) > ids.n_levels else 1
    kept, removed = (
        SemanticIDs(ids.codes[these], ids.disambiguation_code[these], ids.codebook_size, room)
        for these in (~gone, gone)
    )
    return kept, removed


# --- when to fit again ---


class Drift(NamedTuple):
    """How much worse new items are encoded than those that the codebooks were fitted on."""

    n_items: int  # new items
    ratio: float  # mean squared error of the new items / that of the training items
    share_above: float  # of the new items, those above the 95th percentile of the training errors
    ks: float  # two-sample Kolmogorov-Smirnov statistic: 0 the same distribution, 1 no overlap
    refit: bool
    advice: str  # the same in a sentence, with the rule


def drift(
    training_errors: np.ndarray,
    new_errors: np.ndarray,
    max_ratio: float = 1.5,
    max_share_above: float = 0.25,
    min_items: int = 30,
) -> Drift:
    """Compare the squared errors of new items with those of the training items: are the codebooks still theirs?

    The rule: refit if there are at least `min_items` new items and `ratio` > `max_ratio` or `share_above` >
    `max_share_above`. The limits are not 1 and 0.05, because codebooks fit their own items best: on Beauty (3 x 256),
    items held out at random have ratio 1.2, share above .12 and KS .18, and items of a category that was not there
    at all 1.7 to 2.1, .4 to .75 and .7. For the same reason there is no p-value: KS finds that gap in any large sample.
    Errors of held-out items as `training_errors` take the gap out; then lower limits make sense.

    training_errors, new_errors: (n,) and (m,) float >= 0, of `codebooks.squared_errors(vectors,
    quantizer.decode(quantizer.encode(vectors)))`: before any re-assignment, which says nothing about the codebooks.
    Without new items all figures are nan.
    Raises ValueError if there are no training errors, or if either is not 1-D, negative or not finite.

    >>> drift(np.ones(50), np.full(40, 3.0)).advice
    'refit: 40 new items, ratio 3.00 (limit 1.5), share above 1.00 (limit 0.25)'
    """
    from scipy.stats import ks_2samp  # slow to import

    training_errors, new_errors = _checked_errors(training_errors, "training"), _checked_errors(new_errors, "new")
    if not training_errors.size:
        raise ValueError("there are no training errors, expected one number for each item that was fitted")
    if not new_errors.size:
        return Drift(0, *[float("nan")] * 3, False, f"too few to judge (under {min_items}): no new items")
    mean = training_errors.mean()
    ratio = float(new_errors.mean() / mean) if mean else float("inf" if new_errors.any() else 1)
    share_above = float(np.mean(new_errors > np.quantile(training_errors, 0.95)))
    refit = len(new_errors) >= min_items and (ratio > max_ratio or share_above > max_share_above)
    word = "refit" if refit else "keep" if len(new_errors) >= min_items else f"too few to judge (under {min_items})"
    advice = (
        f"{word}: {len(new_errors)} new items, ratio {ratio:.2f} (limit {max_ratio}), "
        f"share above {share_above:.2f} (limit {max_share_above})"
    )
    ks = float(ks_2samp(training_errors, new_errors, method="asymp").statistic)
    return Drift(len(new_errors), ratio, share_above, ks, bool(refit), advice)


def _checked_errors(errors: np.ndarray, name: str) -> np.ndarray:
    errors = np.asarray(errors, dtype=np.float64)
    if errors.ndim != 1:
        raise ValueError(f"{name} errors must be one number per item, got shape {errors.shape}")
    if not (np.isfinite(errors) & (errors >= 0)).all():
        raise ValueError(f"{name} errors must be finite and >= 0, got {errors.min()} to {errors.max()}")
    return errors
