"""Catalogue, histories, queries: load a data set, and split its histories.

What its files look like, and what is refused in them, is in `folder`.
"""

import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from semid_lib.data import folder
from semid_lib.data.item_ids import ItemIds
from semid_lib.data.sequences import first_fall
from semid_lib.workbench import remote, store
from semid_lib.workbench.text import shown


@dataclass(frozen=True, eq=False)
class Histories:
    """Who interacted with what, in time order: all histories end to end in flat arrays.

    user_ids: (n_users,) object array of str.
    items: (n_interactions,) int64 item rows, which are positions in the item table, not external item ids.
    offsets: (n_users + 1,) int64; the history of user position u is `items[offsets[u]:offsets[u + 1]]`.
    times: (n_interactions,) int64 Unix seconds that never fall within a history, or None.

    Raises ValueError if the arrays do not fit together.

    >>> histories = Histories.from_lists([[4, 2, 7], [2]])
    >>> histories.offsets, histories.lengths
    (array([0, 3, 4]), array([3, 1]))
    >>> [history.tolist() for history in histories]
    [[4, 2, 7], [2]]
    """

    user_ids: np.ndarray
    items: np.ndarray
    offsets: np.ndarray
    times: np.ndarray | None = None

    def __post_init__(self):
        n_users, n_items, offsets = len(self.user_ids), len(self.items), self.offsets
        ends_fit = len(offsets) == n_users + 1 and offsets[0] == 0 and offsets[-1] == n_items
        if not ends_fit or (np.diff(offsets) < 0).any():
            raise ValueError(f"offsets are {offsets}, expected {n_users + 1} that rise from 0 to {n_items}")
        if self.times is None:
            return
        if len(self.times) != n_items:
            raise ValueError(f"there are {len(self.times)} times, expected {n_items}, one an interaction")
        if (user := first_fall(self.times, offsets)) >= 0:
            raise ValueError(f"times of user {self.user_ids[user]!r} go backwards, expected time order")

    @classmethod
    def from_lists(cls, lists: Iterable[Sequence[int]], user_ids=None, times=None) -> "Histories":
        """Histories from one list of item rows a user, and optionally one list of Unix seconds a user.

        user_ids: strings, by default "0", "1", ... Raises ValueError if numbers or lengths differ.

        >>> Histories.from_lists([[4, 2], []], user_ids=["ann", "bob"], times=[[10, 20], []]).times
        array([10, 20])
        """
        lists = list(lists)
        ids = [str(position) for position in range(len(lists))] if user_ids is None else list(user_ids)
        lengths = [len(rows) for rows in lists]
        if times is not None and (found := [len(seconds) for seconds in times]) != lengths:
            raise ValueError(f"times have lengths {shown(found)}, expected {shown(lengths)}")
        flat_times = None if times is None else np.fromiter(chain.from_iterable(times), dtype=np.int64)
        items = np.fromiter(chain.from_iterable(lists), dtype=np.int64)
        return cls(np.array(ids, dtype=object), items, _offsets(lengths), flat_times)

    def __iter__(self) -> Iterator[np.ndarray]:
        return (self[position] for position in range(len(self)))

    def __len__(self) -> int:
        return len(self.user_ids)

    def __getitem__(self, user_position: int) -> np.ndarray:
        """The item rows of one user, in time order: a view, (length,) int64."""
        user = range(len(self))[user_position]  # IndexError out of range, which also ends a `for`
        return self.items[self.offsets[user] : self.offsets[user + 1]]

    @property
    def lengths(self) -> np.ndarray:
        """Interactions of each user, (n_users,) int64."""
        return np.diff(self.offsets)

    def select(self, user_positions) -> "Histories":
        """The histories of some users in the given order; positions are integers or a boolean mask.

        >>> [history.tolist() for history in Histories.from_lists([[4], [], [5, 6]]).select([2, 0])]
        [[5, 6], [4]]
        """
        users = np.arange(len(self))[user_positions]
        return _first_interactions(self, users, self.lengths[users])


@dataclass(frozen=True, eq=False)
class Dataset:
    """A catalogue and, where the folder has them, histories and queries.

    items: one row an item in file order: `item_id` (int64 or str, unique) and `title` (str); where the file has
        them, `brand` and `description` (str, "" for missing) and `categories` (a list of paths, each a list
        of str from the root down); all other fields as they are.
    queries: `query` (str), `item_rows` (int64 array of the relevant item rows), `source` (file name without
        ending) and all fields of the file; or None.
    counts: what there is, and what a reader should know about it, in an order fit for a table.
    fingerprint: SHA-256 of the names and bytes of the files, uncompressed: gzip does not change it.
    """

    name: str
    items: pd.DataFrame
    histories: Histories | None
    queries: pd.DataFrame | None
    counts: dict[str, int]
    fingerprint: str

    @cached_property
    def item_ids(self) -> ItemIds:
        """The shop's own ids, and the row of each."""
        return ItemIds(self.items)

    def rows(self, item_ids: Sequence[int | str]) -> np.ndarray:
        """Item rows of item ids: (n,) int64. Raises ValueError naming an unknown id.

        The example is in `load`.
        """
        return self.item_ids.rows(item_ids)


REPEATS_MATTER = 0.01  # from this share of repeated validation targets on, lists may hold items of the history


class Examples(NamedTuple):
    """What a model is asked: predict `targets[i]` from `histories[i]`."""

    histories: Histories  # what the model sees
    targets: np.ndarray  # (n,) int64 item rows
    users: np.ndarray  # (n,) int64 positions in the histories that were split
    exclude_seen: bool = True  # whether lists leave out items of the history; a split chooses it, see `repeat_share`


class Split(NamedTuple):
    """Training histories (all users in their order, some perhaps empty) and the two sets of examples."""

    train: Histories
    validation: Examples
    test: Examples
    n_too_short: int  # users who can never be tested: under 3 interactions (leave-one-out), under 2 (by time)
    moments: tuple[int, int] | None  # Unix seconds at which validation and test begin; None for leave-one-out


# --- load ---


def load(data: str | Path = "demo", columns: Sequence[str] | None = None) -> Dataset:
    """Load and check one data set: a folder, here or at "s3://bucket/folder", or "demo" for the synthetic shop.

    columns: of the items, besides `item_id` and `title`; by default all. Of a large Parquet or Arrow table others are
    then not read at all; `table.batches` reads them when they are needed.

    Every item needs `item_id` (an integer in int64 or text, one kind for all, unique) and `title` (a string; null or ""
    is allowed and counted). A flat list of strings in `categories` is taken as one path, text as a JSON or Python list
    or as one path with `>`. CSV has no types: its fields stay text, except `item_id`, which is an integer if all are.
    Histories are in `sequences.tsv` and `timestamps.tsv`, or in `sequences.jsonl`. A folder that is called demo is
    "./demo"; its data set is named "demo_folder".

    Raises ValueError naming file, 1-based line (row in Parquet), the value and what was expected; ConnectionError where
    `places.fetch` does.

    >>> with tempfile.TemporaryDirectory() as path:
    ...     items = [{"item_id": 7, "title": "Red lipstick"}, {"item_id": 9, "title": ""}]
    ...     folder.write_folder(path, items, [("ann", [9, 7])])
    ...     shop = load(path)
    >>> shop.items["title"].tolist(), shop.histories[0].tolist(), shop.counts["empty_titles"]
    (['Red lipstick', ''], [1, 0], 1)
    >>> shop.rows([9])
    array([1])
    """
    if data != "demo":
        path = remote.fetch(data)
        return _load(path, store.data_name(path), columns)
    from semid_lib.data import demo_shop

    with tempfile.TemporaryDirectory() as path:
        demo_shop.write_demo_shop(path)
        return _load(path, "demo", columns)


def _load(path: str | Path, name: str, columns: Sequence[str] | None) -> Dataset:
    items, fields, queries, fingerprint = folder.read_folder(path, columns)
    histories = None if fields is None else Histories(*fields)
    return Dataset(name, items, histories, queries, _counts(items, histories, queries), fingerprint)


def _counts(items: pd.DataFrame, histories: Histories | None, queries: pd.DataFrame | None) -> dict[str, int]:
    titles = items["title"].str.strip()
    counts = {
        "n_items": len(items),
        "n_users": 0 if histories is None else len(histories),
        "n_interactions": 0 if histories is None else len(histories.items),
        "n_queries": 0 if queries is None else len(queries),
        "empty_titles": (titles == "").sum(),
        "repeated_titles": titles[titles != ""].duplicated().sum(),  # all but the first of each
    }
    for name, label in (("brand", "empty_brands"), ("description", "empty_descriptions")):
        if name in items:
            counts[label] = (items[name].str.strip() == "").sum()
    if "categories" in items:
        counts["items_without_categories"] = (items["categories"].str.len() == 0).sum()
    if histories is not None:
        counts["items_without_interactions"] = len(items) - len(np.unique(histories.items))
        counts["empty_histories"] = (histories.lengths == 0).sum()
        counts["histories_under_3"] = (histories.lengths < 3).sum()
        counts["repeated_interactions"] = _repeated(histories).sum()  # the user had the item already
    return {name: int(count) for name, count in counts.items()}


# --- split ---


def leave_one_out(histories: Histories, allow_empty: bool = False) -> Split:
    """Hold out the last two interactions of each user: the second last for validation, the last for the test.

    Each target is predicted from all interactions before it, so the test history includes the validation item. Users
    with fewer than 3 interactions keep all of them in `train` and are counted in `n_too_short`. The limit of this
    protocol: other users' interactions after a test item are in `train`, so the future leaks (into popularity, for
    example). `time_split` has no such leak.

    Parameters
    ----------
    histories : Histories
    allow_empty : bool
        Return a split without examples, for its `train`, instead of raising an error.

    Returns
    -------
    Split
        Its examples exclude seen items unless the validation targets repeat: see `repeat_share`.

    Raises
    ------
    ValueError
        If no user has 3 interactions.

    Examples
    --------
    >>> split = leave_one_out(Histories.from_lists([[1, 2, 3, 4], [5, 6]]))
    >>> [history.tolist() for history in split.train], split.n_too_short
    ([[1, 2], [5, 6]], 1)
    >>> split.validation.histories[0], split.validation.targets, split.test.histories[0], split.test.targets
    (array([1, 2]), array([3]), array([1, 2, 3]), array([4]))
    """
    lengths = histories.lengths
    users = np.flatnonzero(lengths >= 3)
    if not len(users) and not allow_empty:
        numbers = f"{len(lengths)} users: {(lengths == 1).sum()} have 1 interaction, {(lengths == 2).sum()} have 2"
        raise ValueError(f"leave-one-out needs a user with 3 interactions, there are {numbers}. Add interactions")
    everybody = np.arange(len(histories))
    return _split(
        train=_first_interactions(histories, everybody, np.where(lengths >= 3, lengths - 2, lengths)),
        validation=_examples(histories, users, lengths[users] - 2),
        test=_examples(histories, users, lengths[users] - 1),
        n_too_short=len(histories) - len(users),
    )


def time_split(histories: Histories, validation_share: float = 0.1, test_share: float = 0.1) -> Split:
    """Cut everybody at the same two moments, so that nothing after a moment is known before it.

    The moments are the times at which the last `validation_share + test_share` and the last `test_share` of
    all interactions begin; what happens at the very moment belongs to the later part, so ties may make a part
    larger than its share. `train` holds what lies before the first moment. A user with an earlier interaction
    and one in the window gives one example a window: the first interaction in it is the target, all before it
    the history.

    Its examples exclude seen items unless the validation targets repeat: see `repeat_share`. Raises ValueError without
    times, for shares that are not positive or leave nothing, and if ties or short histories leave a part empty.

    >>> histories = Histories.from_lists([[1, 2], [3, 4, 5]], times=[[10, 50], [20, 40, 60]])
    >>> split = time_split(histories, validation_share=0.2, test_share=0.4)
    >>> split.moments, [history.tolist() for history in split.train]
    ((40, 50), [[1], [3]])
    >>> split.validation.targets, split.test.targets, split.test.histories[1]
    (array([4]), array([2, 5]), array([3, 4]))
    """
    times = np.sort(_times(histories))
    if not (validation_share > 0 and test_share > 0 and validation_share + test_share < 1):
        shares = f"{validation_share} and {test_share}"
        raise ValueError(f"shares are {shares}, expected positive, with a sum below 1")
    if len(times) < 3:
        raise ValueError(f"there are {len(times)} interactions, expected at least 3 to cut into three parts")
    if times[0] == times[-1]:
        raise ValueError(f"all interactions have time {times[0]}, a time-based split needs several: use leave_one_out")
    n_held_out = np.round([(validation_share + test_share) * len(times), test_share * len(times)]).astype(int)
    first, second = times[-np.maximum(n_held_out, 1)].tolist()
    if not times[0] < first < second:
        begin = f"{times[0]}, {first} and {second}"
        raise ValueError(f"the split would start at times {begin}: expected increasing times. Change the shares")
    train, past = _n_before(histories, first), _n_before(histories, second)
    valid = np.flatnonzero((train > 0) & (past > train))
    test = np.flatnonzero((past > 0) & (histories.lengths > past))
    for name, users, moment in (("validation", valid, first), ("test", test, second)):
        if not len(users):
            needed = f"interactions before time {moment} and in the {name} part that starts then"
            raise ValueError(f"no user has {needed}: expected one at least. Change the shares, or add interactions")
    return _split(
        train=_first_interactions(histories, np.arange(len(histories)), train),
        validation=_examples(histories, valid, train[valid]),
        test=_examples(histories, test, past[test]),
        n_too_short=int((histories.lengths < 2).sum()),
        moments=(first, second),
    )


def repeat_share(examples: Examples) -> float:
    """Share, in [0, 1], of the examples whose target is an item of their own history; 0 without examples.

    Where customers buy again, lists without seen items cannot hold these targets. `leave_one_out` and `time_split` look
    at the validation targets: below `REPEATS_MATTER` both sets of examples exclude seen items, from there on neither
    does. `evaluate.evaluate` follows, and so should a recommender that is trained on the split.

    Examples
    --------
    >>> milk, bread, salt = 0, 1, 2
    >>> split = leave_one_out(Histories.from_lists([[milk, bread, milk, bread], [salt, bread, milk, salt]]))
    >>> repeat_share(split.validation), split.test.exclude_seen
    (0.5, False)

    A recommender takes the choice over: `Recommender(model, ids, items, exclude_seen=split.validation.exclude_seen)`.
    """
    pairs = zip(examples.histories, examples.targets, strict=True)
    return float(np.mean([target in history for history, target in pairs])) if len(examples.targets) else 0.0


def leaf_categories(items: pd.DataFrame) -> pd.Series:
    """The last name of each item's first category path, "" where there is none: (n_items,) of str.

    >>> leaf_categories(pd.DataFrame({"categories": [[["Shop", "Camping"], ["Sale"]], []]})).tolist()
    ['Camping', '']
    """
    paths = items["categories"] if "categories" in items else [[]] * len(items)
    return pd.Series([item[0][-1] if item else "" for item in paths], index=items.index, dtype=str)


def same_time_share(histories: Histories) -> float:
    """Share, in [0, 1], of the users with at least two interactions whose last two carry the same time.

    Their order is arbitrary, and so is what leave-one-out asks. Raises ValueError without times, or
    if there are no such users.

    >>> same_time_share(Histories.from_lists([[1, 2, 3], [4, 5], [6]], times=[[10, 20, 20], [30, 40], [50]]))
    0.5
    """
    times = _times(histories)
    last = histories.offsets[1:][histories.lengths >= 2] - 1
    if not len(last):
        raise ValueError(f"none of {len(histories)} users has two interactions, expected at least one")
    return float((times[last] == times[last - 1]).mean())


def _split(train: Histories, validation: Examples, test: Examples, n_too_short: int, moments=None) -> Split:
    exclude = repeat_share(validation) < REPEATS_MATTER
    parts = (part._replace(exclude_seen=exclude) for part in (validation, test))
    return Split(train, *parts, n_too_short, moments)


def _repeated(histories: Histories) -> np.ndarray:
    """Whether the user had the item of each interaction before: (n_interactions,) bool."""
    user = np.repeat(np.arange(len(histories)), histories.lengths)
    return pd.DataFrame({"user": user, "item": histories.items}).duplicated().to_numpy()


def _times(histories: Histories) -> np.ndarray:
    if histories.times is None:
        raise ValueError("times is None, expected histories with times (a folder with timestamps.tsv)")
    return histories.times


def _n_before(histories: Histories, moment: int) -> np.ndarray:
    """Interactions of each user before a moment, (n_users,) int64."""
    return np.diff(_offsets(histories.times < moment)[histories.offsets])


def _offsets(lengths) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])


def _examples(histories: Histories, users: np.ndarray, lengths: np.ndarray) -> Examples:
    """For each of these users, the first `lengths` interactions as history and the next one as target."""
    targets = histories.items[histories.offsets[users] + lengths]
    return Examples(_first_interactions(histories, users, lengths), targets, users)


def _first_interactions(histories: Histories, users: np.ndarray, lengths: np.ndarray) -> Histories:
    """The first `lengths` interactions of each of these users."""
    offsets = _offsets(lengths)
    where = np.arange(offsets[-1]) + np.repeat(histories.offsets[users] - offsets[:-1], lengths)
    times = None if histories.times is None else histories.times[where]
    return Histories(histories.user_ids[users], histories.items[where], offsets, times)
