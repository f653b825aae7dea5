"""Interactions in order, their k-core, and the report of an import."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from semid_lib.data import folder


class ImportReport(NamedTuple):
    """Records read, left out and written by an import.

    >>> print(ImportReport(Path("shop"), {"reviews": 1200, "n_items": 7}, {"title": "name"}))
    title is read from name
    reviews    1,200
    n items        7
    """

    output: Path
    counts: dict[str, int]
    columns: Mapping[str, str] = {}  # our names -> those of the files
    left_out: Sequence[str] = ()  # columns, with the reason

    def __str__(self) -> str:
        lines = [f"{ours} is read from {theirs}" for ours, theirs in self.columns.items()]
        lines += [f"left out: {reason}" for reason in self.left_out]
        counts = pd.Series(self.counts).map("{:,}".format).rename(lambda name: name.replace("_", " "))
        return "\n".join([*lines, counts.to_string()])


def k_core_positions(users: np.ndarray, items: np.ndarray, k: int) -> np.ndarray:
    """Positions of the k-core: the largest set of interactions in which each user and each item has at least k.

    Removing a user may leave an item with too few and vice versa, so it repeats until all have k.

    Parameters
    ----------
    users, items : (n,) int64 arrays
        From 0.
    k : int
        0 keeps everything.

    Examples
    --------
    Item 2 has one interaction; without it, user 1 has one; without that user, item 1 still has two:

    >>> k_core_positions(np.array([0, 0, 1, 1, 2, 2]), np.array([0, 1, 0, 2, 0, 1]), k=2)
    array([0, 1, 4, 5])
    """
    kept = np.arange(len(users))
    while True:
        user, item = users[kept], items[kept]
        enough = (np.bincount(user)[user] >= k) & (np.bincount(item)[item] >= k)
        if enough.all():
            return kept
        kept = kept[enough]


def k_core(found: pd.DataFrame, k: int, name: str, counts: dict[str, int]) -> pd.DataFrame:
    """The k-core of interactions with columns `user` and `item`; counts the others as `name`."""
    kept = found.iloc[k_core_positions(found["user"].to_numpy(), found["item"].to_numpy(), k)]
    counts[f"{name}_outside_k_core"] = len(found) - len(kept)
    return kept


def in_time_order(found: pd.DataFrame) -> pd.DataFrame:
    """Interactions user by user, in time order; the sort is stable, so ties stay in file order."""
    return found.sort_values([name for name in ("user", "time") if name in found], kind="stable")


def write(
    output: str | Path, records: list[dict], kept: pd.DataFrame, counts: dict[str, int], source, overwrite: bool
) -> ImportReport:
    """Write a data folder; kept: user ids as text, item ids in time order and, perhaps, Unix nanoseconds as `time`."""
    if kept.empty:
        raise ValueError(f"{source}: no interaction is left, expected at least one; counts: {counts}")
    if "time" in kept:
        kept = kept.assign(time=kept["time"] // 10**9)
    lists = kept.groupby("user", sort=False).agg(list)
    seconds = zip(lists.index, lists["time"], strict=True) if "time" in lists else None
    folder.write_folder(output, records, zip(lists.index, lists["item"], strict=True), seconds, overwrite=overwrite)
    sizes = {"n_items": len(records), "n_users": len(lists), "n_interactions": len(kept)}
    return ImportReport(Path(output), counts | sizes)
