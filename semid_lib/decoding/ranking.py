"""Rank a catalogue for histories of item rows, by beam search over a prefix trie or by one score per item.

All next-item models and baselines rank through this module, so that seen items, business rules and empty places mean
the same everywhere.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from tqdm.auto import tqdm

from semid_lib.workbench.text import check_count, check_flag, check_histories, shown

if TYPE_CHECKING:
    from semid_lib.decoding.beam_search import Scorer
    from semid_lib.decoding.trie import PrefixTrie

ItemRows = Iterable[Sequence[int] | np.ndarray]  # histories: item rows of each user, oldest first
_BLOCK = 1024  # histories scored at once: block x n_items float32 in memory
_MASKS_AT_ONCE = 2**27  # histories x items of masks that differ by history, which take five bytes each
_SEEN_AT_ONCE = 2**20  # histories x items to exclude, padded to the longest: 8 MiB, and some copies of them


class Ranked(NamedTuple):
    """The best items for each history or query, best first; -1 and -inf in places that no item fills."""

    items: np.ndarray  # (n, k) int64 item rows
    scores: np.ndarray  # (n, k) float32


def rank(
    scorer: "Scorer",
    trie: "PrefixTrie",
    histories: ItemRows,
    k: int,
    contexts: Callable[[list[np.ndarray], np.ndarray], Any],
    *,
    beam_width: int,
    n_at_once: int,
    exclude_seen: bool = True,
    allowed: np.ndarray | None = None,
    diversity: tuple[int, int] | None = None,
    exact: bool = False,
    progress: bool = False,
) -> Ranked:
    """Find the k most probable next items after each history by beam search over a prefix trie.

    Histories of similar length are searched together.

    Parameters
    ----------
    scorer : Scorer
    trie : PrefixTrie
    histories : iterable of sequences of int
        Item rows, oldest first.
    k, beam_width : int
        Items returned, prefixes kept per level; see `widths`.
    contexts : callable
        (histories of a batch, their positions) -> input of `scorer.begin`.
    n_at_once : int
        Histories in a batch, at most.
    exclude_seen : bool
        Leave out all items of the history.
    allowed : (n_items,) or (n_histories, n_items) bool, optional
        Items that may be returned.
    diversity : (m, p), optional
        At most m items of a list share their first p codes.
    exact : bool
        Score every item instead of searching: beam_width is not used, and diversity is refused.
    progress : bool

    Returns
    -------
    Ranked

    Raises
    ------
    ValueError
        For a row outside the catalogue (the message names the history), and for arguments that do not fit.

    Examples
    --------
    >>> import torch
    >>> from semid_lib.decoding.trie import PrefixTrie
    >>> class Fixed:  # probabilities of codes 0 and 1, whatever the history
    ...     begin = lambda self, contexts, normalization: (None, torch.tensor([0.7, 0.3]).log().expand(contexts, 1, 2))
    >>> trie = PrefixTrie.build(np.array([[0], [1]]))
    >>> rank(Fixed(), trie, [[], [0]], 2, lambda batch, at: len(batch), beam_width=2, n_at_once=8).items
    array([[ 0,  1],
           [ 1, -1]])
    """
    # here, because popularity and BM25 rank without torch
    from semid_lib.decoding.beam_search import constrained_beam_search, exact_ranking

    k, exclude_seen = check_count("k", k), check_flag("exclude_seen", exclude_seen)
    rows = checked_rows(histories, trie.n_items)
    mask = checked_mask(allowed, len(rows), trie.n_items)
    if exact and diversity is not None:
        raise ValueError("exact and diversity are both given: expected one of them. An exact ranking has no beam")
    each = mask if mask is not None and len(mask) > 1 else None
    rules = trie.subset(mask if each is None else None)
    if each is not None:
        n_at_once = min(n_at_once, _MASKS_AT_ONCE // trie.n_items)
    items = np.full((len(rows), k), -1, dtype=np.int64)
    scores = np.full((len(rows), k), -np.inf, dtype=np.float32)
    seen = [np.unique(row) if exclude_seen else row[:0] for row in rows]
    by_length = np.argsort([len(row) for row in rows], kind="stable")
    with tqdm(total=len(rows), desc="recommending", unit="user", disable=not progress) as bar:
        for at in in_parts(by_length, seen, max(1, n_at_once), _SEEN_AT_ONCE):
            subset = rules if each is None else trie.subset(each[at])
            if exclude_seen:
                subset = subset.without(padded([seen[place] for place in at]))
            batch = contexts([rows[place] for place in at], at)
            if exact:
                found = exact_ranking(scorer, batch, trie, k, subset)
            else:
                found = constrained_beam_search(scorer, batch, trie, beam_width, k, subset, diversity=diversity)
            items[at], scores[at] = found.items.cpu().numpy(), found.scores.cpu().numpy()
            bar.update(len(at))
    return Ranked(items, scores)


def with_new_items(
    rank: Callable[[np.ndarray], Ranked], is_new: np.ndarray, limits: tuple[int, int], allowed: np.ndarray | None = None
) -> Ranked:
    """Lists with a floor and a ceiling for new items, each ordered by score.

    Parameters
    ----------
    rank : callable
        (n_items,) or (n_histories, n_items) bool, the items that may be returned -> Ranked with k places.
    is_new : (n_items,) bool
    limits : (at_least, at_most)
        New items in a list, from 0 on. It has fewer than `at_least` only if there are no more.
    allowed : (n_items,) or (n_histories, n_items) bool, optional

    Raises
    ------
    ValueError
        Unless limits are two integers with 0 <= at_least <= at_most.

    Examples
    --------
    >>> rank = lambda allowed: top_k(np.where(allowed, [[0.4, 0.3, 0.2, 0.1]], -np.inf), 2)
    >>> [with_new_items(rank, np.arange(4) > 1, limits).items.tolist() for limits in ((0, 2), (1, 2), (2, 2))]
    [[[0, 1]], [[0, 2]], [[2, 3]]]
    """
    if not isinstance(limits, tuple | list) or len(limits) != 2:
        raise ValueError(f"new_items is {shown(limits)}, expected a floor and a ceiling, such as (2, 4)")
    at_least, at_most = (check_count("new_items", each, 0) for each in limits)
    if at_least > at_most:
        raise ValueError(f"new_items is {at_least} to {at_most}, expected a floor and a ceiling that is not below it")
    among = np.ones(len(is_new), dtype=bool) if allowed is None else np.asarray(allowed)
    known = rank(among & ~is_new)
    if not at_most:
        return known
    new = rank(among & is_new)
    items = np.concatenate([known.items, new.items[:, :at_most]], axis=1)
    scores = np.concatenate([known.scores, new.scores[:, :at_most]], axis=1)
    k, place = known.items.shape[1], np.arange(items.shape[1])
    in_floor = (items >= 0) & (place >= k) & (place < k + at_least)
    chosen = np.lexsort((-scores, ~in_floor))[:, :k]  # the floor first, then by score
    best = np.argsort(-np.take_along_axis(scores, chosen, axis=1), axis=1, kind="stable")
    chosen = np.take_along_axis(chosen, best, axis=1)
    return Ranked(np.take_along_axis(items, chosen, axis=1), np.take_along_axis(scores, chosen, axis=1))


def rank_by_scores(
    histories: ItemRows,
    n_items: int,
    k: int,
    exclude_seen: bool,
    progress: bool,
    score: Callable[[list[np.ndarray]], np.ndarray],
) -> Ranked:
    """Find the k best items after each history by the scores of all items, block by block.

    Parameters
    ----------
    histories : sequence of sequences of int
    n_items, k : int
    exclude_seen, progress : bool
    score : callable
        Some histories -> (n, n_items) float32, which may be written to.

    Raises
    ------
    ValueError
        For k below 1 and for rows outside the catalogue.

    Examples
    --------
    >>> rank_by_scores([[1], [0]], 3, 2, True, False, lambda block: np.tile([0.2, 0.5, 0.1], (len(block), 1))).items
    array([[0, 2],
           [1, 2]])
    """
    k, exclude_seen = check_count("k", k), check_flag("exclude_seen", exclude_seen)
    rows = checked_rows(histories, n_items)
    parts = [Ranked(np.empty((0, k), dtype=np.int64), np.empty((0, k), dtype=np.float32))]
    for start in tqdm(range(0, len(rows), _BLOCK), desc="ranking", unit="block", disable=not progress):
        block = rows[start : start + _BLOCK]
        scores = score(block)
        if exclude_seen:
            for line, history in zip(scores, block, strict=True):
                line[history] = -np.inf
        parts.append(top_k(scores, k))
    return Ranked(*(np.concatenate(part) for part in zip(*parts, strict=True)))


def ranker(n_items: int, score: Callable[[list[np.ndarray]], np.ndarray]) -> Callable[..., Ranked]:
    """The ranking of a method that scores all items, as a function for `evaluate.evaluate`.

    score: as for `rank_by_scores`.

    Examples
    --------
    >>> ranker(3, lambda block: np.tile([0.2, 0.5, 0.1], (len(block), 1)))([[1]], k=2).items
    array([[0, 2]])
    """

    def rank(histories: ItemRows, k: int, exclude_seen: bool = True, progress: bool = False) -> Ranked:
        return rank_by_scores(histories, n_items, k, exclude_seen, progress, score)

    return rank


def top_k(scores: np.ndarray, k: int) -> Ranked:
    """Find the k best columns of each row of (n, n_items) float32 scores, equal scores by column; never one of -inf.

    Examples
    --------
    >>> top_k(np.array([[0.1, 0.5, 0.5, -np.inf]], dtype=np.float32), k=4).items
    array([[ 1,  2,  0, -1]])
    """
    n, n_items = scores.shape
    items = np.full((n, k), -1, dtype=np.int64)
    best = np.full((n, k), -np.inf, dtype=np.float32)
    kept = min(k, n_items)
    for row, line in enumerate(scores):  # row by row: only the few candidates at or above the k-th score are sorted
        edge = np.partition(line, n_items - kept)[n_items - kept]
        candidates = np.flatnonzero(line >= edge)
        order = candidates[np.argsort(-line[candidates], kind="stable")][:kept]
        real = order[line[order] > -np.inf]
        items[row, : len(real)], best[row, : len(real)] = real, line[real]
    return Ranked(items, best)


def widths(k: int, beam_width: int | None) -> tuple[int, int]:
    """k and the beam width, checked; the width is max(50, k) by default."""
    k = check_count("k", k)
    return k, max(50, k) if beam_width is None else check_count("beam_width", beam_width)


def checked_rows(histories: ItemRows, n_items: int) -> list[np.ndarray]:
    """Histories as arrays of item rows, each (length,) int64.

    Raises
    ------
    ValueError
        Naming the first history that holds something else than rows of a catalogue of n_items.

    Examples
    --------
    >>> checked_rows([[2, 0], []], n_items=3)
    [array([2, 0]), array([], dtype=int64)]
    """
    checked = []
    for at, history in enumerate(check_histories(histories)):
        values = history if hasattr(history, "__len__") else list(history)
        try:
            rows = np.asarray(values)
        except ValueError:  # it holds lists of different lengths
            rows = np.empty((1, 1), dtype=object)
        rows = rows if rows.size else np.empty(0, dtype=np.int64)
        if rows.ndim != 1 or not np.issubdtype(rows.dtype, np.integer):
            raise ValueError(f"history {at} is {shown(values)}, expected integer item rows from 0 to {n_items - 1}")
        if len(rows) and not 0 <= rows.min() <= rows.max() < n_items:
            wrong = rows[(rows < 0) | (rows >= n_items)][0]
            raise ValueError(f"history {at} holds item row {wrong}, expected 0 to {n_items - 1}")
        checked.append(rows.astype(np.int64, copy=False))
    return checked


def checked_mask(allowed: np.ndarray | None, n: int, n_items: int) -> np.ndarray | None:
    """The mask of allowed items as (1, n_items) or (n, n_items); ValueError for another shape or dtype."""
    if allowed is None:
        return None
    mask = np.asarray(allowed)
    if mask.dtype != bool or mask.shape not in ((n_items,), (1, n_items), (n, n_items)):
        raise ValueError(
            f"allowed is {mask.dtype} {mask.shape}, expected bool ({n_items},) or ({n}, {n_items}): "
            "rules.items_with_ids makes such a mask of item ids"
        )
    return np.atleast_2d(mask)


def padded(histories: ItemRows, max_length: int | None = None) -> np.ndarray:
    """The last `max_length` item rows of each history (default: all), -1 after the end: (n, longest) int64.

    Examples
    --------
    >>> padded([[4, 5, 6], [7]], max_length=2)
    array([[ 5,  6],
           [ 7, -1]])
    """
    recent = [np.asarray(history, dtype=np.int64)[-max_length if max_length else None :] for history in histories]
    rows = np.full((len(recent), max(map(len, recent), default=0)), -1, dtype=np.int64)
    for row, history in zip(rows, recent, strict=True):
        row[: len(history)] = history
    return rows


def in_parts(order: np.ndarray, lists: Sequence[Sequence | np.ndarray], size: int, room: int) -> Iterator[np.ndarray]:
    """Consecutive parts of an order over lists: at most `size` lists that, padded to the longest, fit in `room` places.

    A part has at least one list, however long.

    Examples
    --------
    >>> [part.tolist() for part in in_parts(np.array([2, 0, 1]), ["a", "long text", "b"], size=2, room=10)]
    [[2, 0], [1]]
    """
    lengths, start = np.array([len(each) for each in lists], dtype=np.int64), 0
    while start < len(order):
        part = order[start : start + size]
        n_places = np.maximum.accumulate(lengths[part]) * np.arange(1, len(part) + 1)
        part = part[: max(1, np.searchsorted(n_places, room, side="right"))]
        yield part
        start += len(part)
