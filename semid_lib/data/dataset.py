"""Load a data set (catalogue, histories, queries) and split its histories.

The module `folder` says which files a data set has.
"""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from semid_lib.data import folder, table
from semid_lib.data.item_ids import ItemIds
from semid_lib.data.sequences import Histories, offsets_of, read_histories, read_queries
from semid_lib.workbench import remote, store


@dataclass(frozen=True, eq=False)
class Dataset:
    """A catalogue and, if the folder has them, histories and queries.

    Parameters
    ----------
    items : pandas.DataFrame
        One row per item in file order: `item_id` (int64 or str, unique) and `title` (str); optional `brand` and
        `description` (str, "" if missing) and `categories` (paths, each a list of str from the root down); all other
        fields as they are.
    queries : pandas.DataFrame, optional
        `query` (str), `item_rows` (int64 arrays of the relevant item rows), `source` (file name without ending) and
        all fields of the files.
    counts : dict of str to int
        Sizes, and what is odd but allowed, such as empty titles.
    fingerprint : str
        SHA-256 of names and uncompressed bytes of the files.
    """

    name: str
    items: pd.DataFrame
    histories: Histories | None
    queries: pd.DataFrame | None
    counts: dict[str, int]
    fingerprint: str

    @cached_property
    def item_ids(self) -> ItemIds:
        """The item ids, and the row of each."""
        return ItemIds(self.items)


REPEATS_MATTER = 0.01  # with this share of repeated validation targets or more, lists may contain seen items


class Examples(NamedTuple):
    """Prediction tasks: predict `targets[i]` from `histories[i]`."""

    histories: Histories  # input of the model
    targets: np.ndarray  # (n,) int64 item rows
    users: np.ndarray  # (n,) int64 positions in the histories that were split
    exclude_seen: bool = True  # whether lists leave out items of the history; a split sets it, see `repeat_share`
    later_day: np.ndarray | None = (
        None  # (n,) bool: the target's UTC day is after that of the last item; None: no times
    )


class Split(NamedTuple):
    """Training histories (all users in their order, some perhaps empty) and the two sets of examples."""

    train: Histories
    validation: Examples
    test: Examples
    n_too_short: int  # users who can never be tested: under 3 interactions (leave-one-out), under 2 (time-based split)
    moments: tuple[int, int] | None  # Unix seconds at which validation and test begin; None for leave-one-out


# --- load ---


def load(data: str | Path = "demo", columns: Sequence[str] | None = None) -> Dataset:
    """Load and check a data set.

    Every item needs `item_id` (an integer in int64 or text, one type for all, unique) and `title` (a string; null or ""
    is allowed and counted). A flat list of strings in `categories` is one path, and so is text with `>`. CSV has no
    types: its fields stay text, except `item_id`, which is an integer if all are.

    Parameters
    ----------
    data : str or Path
        A folder, also one at "s3://bucket/folder", or "demo" for the demo shop. "./demo" is a folder of that name; its
        data set is named "demo_folder".
    columns : sequence of str, optional
        Of the items, besides `item_id` and `title`; by default all. Other columns of a Parquet or Arrow table are not
        read; `table.batches` reads them in batches.

    Raises
    ------
    ValueError
        Naming file, line (row in Parquet), value and what was expected.

    Examples
    --------
    >>> with tempfile.TemporaryDirectory() as path:
    ...     items = [{"item_id": 7, "title": "Red lipstick"}, {"item_id": 9, "title": ""}]
    ...     folder.write_folder(path, items, [("ann", [9, 7])])
    ...     shop = load(path)
    >>> shop.items["title"].tolist(), shop.histories[0].tolist(), shop.counts["empty_titles"]
    (['Red lipstick', ''], [1, 0], 1)
    >>> shop.item_ids.rows([9])
    array([1])
    """
    with tempfile.TemporaryDirectory() as demo:
        path: str | Path = demo
        if data == "demo":
            from semid_lib.data import demo_shop

            demo_shop.write_demo_shop(demo)
        else:
            path = remote.fetch(data)
        files = folder.data_files(path)
        items = table.read(files["items"], columns)
        ids = ItemIds(items)
        queries = read_queries([file for kind, file in files.items() if kind.startswith("queries")], ids)
        histories, fingerprint = read_histories(files, ids), folder.fingerprint(path)
    counts = _counts(items, histories, queries)
    return Dataset(store.data_name(data), items, histories, queries, counts, fingerprint)


def _counts(items: pd.DataFrame, histories: Histories | None, queries: pd.DataFrame | None) -> dict[str, int]:
    texts = {name: items[name].str.strip() for name in ("title", "brand", "description") if name in items}
    titles = texts["title"]
    counts: dict[str, Any] = {
        "n_items": len(items),
        "n_users": len(histories or ()),
        "n_interactions": len(histories.items) if histories else 0,
        "n_queries": 0 if queries is None else len(queries),
        "empty_titles": (titles == "").sum(),
        "repeated_titles": titles[titles != ""].duplicated().sum(),  # all but the first of each
    }
    counts |= {f"empty_{name}s": (text == "").sum() for name, text in texts.items()}
    if "categories" in items:
        counts["items_without_categories"] = (items["categories"].str.len() == 0).sum()
    if histories is not None:
        users = np.repeat(np.arange(len(histories)), histories.lengths)
        repeated = pd.DataFrame({"user": users, "item": histories.items}).duplicated()
        counts["items_without_interactions"] = len(items) - len(np.unique(histories.items))
        counts["empty_histories"] = (histories.lengths == 0).sum()
        counts["histories_under_3"] = (histories.lengths < 3).sum()
        counts["repeated_interactions"] = repeated.sum()  # the user had the item already
    return {name: int(count) for name, count in counts.items()}


# --- split ---


def leave_one_out(histories: Histories, allow_empty: bool = False) -> Split:
    """Hold out the last two interactions of each user: the second last for validation, the last for the test.

    Each target is predicted from all interactions before it, so the test history includes the validation item. Users
    with fewer than 3 interactions keep all of them in `train`. The limit of this protocol: `train` contains what other
    users did after a test interaction, so the future leaks (into popularity, for example). `time_split` has no such
    leak.

    Parameters
    ----------
    histories : Histories
    allow_empty : bool
        Return a split without examples, for its `train`, instead of raising an error.

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
    n_train = np.where(lengths >= 3, lengths - 2, lengths)
    return _split(histories, n_train, users, users, lengths - 1, len(histories) - len(users))


def time_split(histories: Histories, validation_share: float = 0.1, test_share: float = 0.1) -> Split:
    """Split all histories at the same two times, so that nothing after a time is known before it.

    These are the times at which the last `validation_share + test_share` and the last `test_share` of all interactions
    begin. Interactions at such a time belong to the later part, so ties can make a part larger than its share. `train`
    holds the interactions before the first time. A user with earlier interactions and some in a part gives one example
    in that part: the first of these is the target, all interactions before it are the history.

    Raises
    ------
    ValueError
        Without times or with relative ones, for shares that leave nothing, and if ties or short histories leave a part
        empty.

    Examples
    --------
    >>> histories = Histories.from_lists([[1, 2], [3, 4, 5]], times=[[10, 50], [20, 40, 60]])
    >>> split = time_split(histories, validation_share=0.2, test_share=0.4)
    >>> split.moments, [history.tolist() for history in split.train]
    ((40, 50), [[1], [3]])
    >>> split.validation.targets, split.test.targets, split.test.histories[1]
    (array([4]), array([2, 5]), array([3, 4]))
    """
    times = np.sort(times_of(histories))
    if histories.times_are_relative:
        problem = "times count from each user's first interaction, expected Unix seconds (a folder with timestamps.tsv)"
        raise ValueError(f"{problem}. Use leave_one_out")
    if not (validation_share > 0 and test_share > 0 and validation_share + test_share < 1):
        raise ValueError(f"shares are {validation_share} and {test_share}, expected positive, with a sum below 1")
    if len(times) < 3:
        raise ValueError(f"there are {len(times)} interactions, expected at least 3 to split into three parts")
    n_held_out = np.round([(validation_share + test_share) * len(times), test_share * len(times)]).astype(int)
    first, second = times[-np.maximum(n_held_out, 1)].tolist()
    if not times[0] < first < second:
        begin = f"{times[0]}, {first} and {second}: expected increasing times"
        raise ValueError(f"the split would start at times {begin}. Change the shares, or use leave_one_out")
    train, past = _n_before(histories, first), _n_before(histories, second)
    valid = np.flatnonzero((train > 0) & (past > train))
    test = np.flatnonzero((past > 0) & (histories.lengths > past))
    for name, users, moment in (("validation", valid, first), ("test", test, second)):
        if not len(users):
            needed = f"interactions before time {moment} and in the {name} part that starts then"
            raise ValueError(f"no user has {needed}: expected one at least. Change the shares, or add interactions")
    return _split(histories, train, valid, test, past, int((histories.lengths < 2).sum()), (first, second))


def repeat_share(examples: Examples) -> float:
    """Share, in [0, 1], of the examples whose target is an item of their own history; 0 without examples.

    Where customers buy again, lists without seen items cannot contain these targets. If the share among validation
    targets is below `REPEATS_MATTER`, both sets of examples of a split exclude seen items, otherwise neither does.
    `evaluate.evaluate` follows; do the same with a recommender that is trained on the split.

    Examples
    --------
    >>> milk, bread, salt = 0, 1, 2
    >>> split = leave_one_out(Histories.from_lists([[milk, bread, milk, bread], [salt, bread, milk, salt]]))
    >>> repeat_share(split.validation), split.test.exclude_seen
    (0.5, False)
    """
    pairs = zip(examples.histories, examples.targets, strict=True)
    return float(np.mean([target in history for history, target in pairs])) if len(examples.targets) else 0.0


def leaf_categories(items: pd.DataFrame) -> pd.Series:
    """The last name of each item's first category path, "" if it has none: (n_items,) of str.

    >>> leaf_categories(pd.DataFrame({"categories": [[["Shop", "Camping"], ["Sale"]], []]})).tolist()
    ['Camping', '']
    """
    leaves = [paths[0][-1] if paths else "" for paths in table.category_column(items)]
    return pd.Series(leaves, index=items.index, dtype=str)


def same_time_share(histories: Histories) -> float:
    """Share, in [0, 1], of the users with at least two interactions whose last two carry the same time.

    The order of these two is arbitrary, and so is the target of leave-one-out. Raises ValueError without times, or if
    there are no such users.

    >>> same_time_share(Histories.from_lists([[1, 2, 3], [4, 5], [6]], times=[[10, 20, 20], [30, 40], [50]]))
    0.5
    """
    times = times_of(histories)
    last = histories.offsets[1:][histories.lengths >= 2] - 1
    if not len(last):
        raise ValueError(f"none of {len(histories)} users has two interactions, expected at least one")
    return float((times[last] == times[last - 1]).mean())


def shuffle_same_time(histories: Histories, seed: int = 0) -> Histories:
    """The same histories with each user's items of one time in random order.

    Where times have day resolution, the order within a day is that of the file, which a model can learn. Shuffle before
    the split, so that training, validation and test lose it. Raises ValueError without times.

    >>> histories = Histories.from_lists([[1, 2, 3, 4], [5, 6]], times=[[10, 20, 20, 20], [30, 30]])
    >>> [history.tolist() for history in shuffle_same_time(histories, seed=1)]
    [[1, 3, 4, 2], [5, 6]]
    """
    users = np.repeat(np.arange(len(histories)), histories.lengths)
    order = np.lexsort((np.random.default_rng(seed).random(len(users)), times_of(histories), users))
    return replace(histories, items=histories.items[order])


def same_time_order(histories: Histories, item_key: Sequence) -> tuple[float, float]:
    """Shares, in [0, 1], of neighbouring interactions whose key ascends: among those of one time, and among the others.

    If the first is near 1 and the second is not, items of one time are in the order of the key, not of the purchases.
    A share without such pairs is nan.

    Parameters
    ----------
    histories : Histories
    item_key : (n_items,) sequence of int or str
        Such as `shop.items["asin"]`.

    Raises
    ------
    ValueError
        Without times.

    Examples
    --------
    >>> histories = Histories.from_lists([[0, 2, 1], [1, 2, 0]], times=[[10, 10, 20], [30, 30, 40]])
    >>> same_time_order(histories, ["B001", "B002", "B003"])
    (1.0, 0.0)
    """
    keys = np.unique(np.asarray(item_key), return_inverse=True)[1][histories.items]
    users = np.repeat(np.arange(len(histories)), histories.lengths)
    neighbours = users[1:] == users[:-1]
    same, ascends = np.diff(times_of(histories)) == 0, np.diff(keys) > 0
    pairs = (ascends[neighbours & same], ascends[neighbours & ~same])
    first, other = (float(each.mean()) if len(each) else float("nan") for each in pairs)
    return first, other


def _split(histories: Histories, n_train, valid, test, n_past, n_too_short: int, moments=None) -> Split:
    """n_train, n_past: interactions of each user before validation and before the test; valid, test: users."""
    train = histories.first(np.arange(len(histories)), n_train)
    validation = _examples(histories, valid, n_train[valid])
    exclude = repeat_share(validation) < REPEATS_MATTER
    tested = _examples(histories, test, n_past[test])._replace(exclude_seen=exclude)
    return Split(train, validation._replace(exclude_seen=exclude), tested, n_too_short, moments)


def times_of(histories: Histories) -> np.ndarray:
    """The times of histories, (n_interactions,) int64; ValueError if they have none."""
    if histories.times is None:
        raise ValueError(
            "times is None, expected histories with times (a folder with timestamps.tsv or relative_time.tsv)"
        )
    return histories.times


def _n_before(histories: Histories, moment: int) -> np.ndarray:
    """Interactions of each user before a moment, (n_users,) int64."""
    return np.diff(offsets_of(times_of(histories) < moment)[histories.offsets])


def _examples(histories: Histories, users: np.ndarray, lengths: np.ndarray) -> Examples:
    """For each of these users, the first `lengths` >= 1 interactions as history and the next one as target."""
    at = histories.offsets[users] + lengths
    days = None if histories.times is None else histories.times // 86_400
    later_day = None if days is None else days[at] > days[at - 1]
    return Examples(histories.first(users, lengths), histories.items[at], users, later_day=later_day)
