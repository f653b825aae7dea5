"""Histories of users, and the histories and queries of a data folder: records that name items of its item table."""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise, zip_longest
from pathlib import Path
from typing import NoReturn

import numpy as np
import pandas as pd

from semid_lib.data import readers, table, times
from semid_lib.data.item_ids import ItemIds, fits_int64
from semid_lib.data.text_files import empty_file, json_records, text_lines
from semid_lib.workbench.text import normal, shown

_INTEGER = re.compile("-?[0-9]{1,19}")


@dataclass(frozen=True, eq=False)
class Histories:
    """The items that each user interacted with, in time order: all histories end to end in flat arrays.

    Parameters
    ----------
    user_ids : (n_users,) object array of str
    items : (n_interactions,) int64 array
        Item rows: positions in the item table, not item ids.
    offsets : (n_users + 1,) int64 array
        The history of user position u is `items[offsets[u]:offsets[u + 1]]`.
    times : (n_interactions,) int64 array, optional
        Unix seconds; they never fall within a history.
    times_are_relative : bool
        Times count from each user's first interaction, so they cannot be compared between users.

    Examples
    --------
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
    times_are_relative: bool = False

    @classmethod
    def from_lists(
        cls, lists: Iterable[Sequence[int] | np.ndarray], user_ids=None, times=None, times_are_relative: bool = False
    ) -> "Histories":
        """Histories from a list of item rows per user and, optionally, a list of seconds per user.

        user_ids: strings, by default "0", "1", ... Raises ValueError if lengths differ, or times go backwards.

        >>> Histories.from_lists([[4, 2], []], user_ids=["ann", "bob"], times=[[10, 20], []]).times
        array([10, 20])
        """
        lists = list(lists)
        ids = list(map(str, range(len(lists)))) if user_ids is None else list(user_ids)
        lengths = [len(rows) for rows in lists]
        for user, length, seconds in zip(ids, lengths, times or [], strict=times is not None):
            if len(seconds) != length or any(later < earlier for earlier, later in pairwise(seconds)):
                raise ValueError(f"times of user {user!r} are {shown(seconds)}, expected {length} in time order")
        items, flat = (np.fromiter(chain.from_iterable(parts or []), dtype=np.int64) for parts in (lists, times))
        found = None if times is None else flat
        return cls(np.array(ids, dtype=object), items, offsets_of(lengths), found, times_are_relative)

    def __iter__(self) -> Iterator[np.ndarray]:
        return (self[position] for position in range(len(self)))

    def __len__(self) -> int:
        return len(self.user_ids)

    def __getitem__(self, user_position: int) -> np.ndarray:
        """The item rows of one user, in time order: a view, (length,) int64."""
        user = range(len(self))[user_position]
        return self.items[self.offsets[user] : self.offsets[user + 1]]

    @property
    def lengths(self) -> np.ndarray:
        """Interactions of each user, (n_users,) int64."""
        return np.diff(self.offsets)

    def select(self, user_positions) -> "Histories":
        """The histories of some users in the given order; positions are integers or a boolean mask."""
        users = np.arange(len(self))[user_positions]
        return self.first(users, self.lengths[users])

    def first(self, user_positions: np.ndarray, lengths: np.ndarray) -> "Histories":
        """The first `lengths` interactions of each of these users."""
        offsets = offsets_of(lengths)
        where = np.arange(offsets[-1]) + np.repeat(self.offsets[user_positions] - offsets[:-1], lengths)
        times = None if self.times is None else self.times[where]
        return Histories(self.user_ids[user_positions], self.items[where], offsets, times, self.times_are_relative)


def offsets_of(lengths) -> np.ndarray:
    """Where each of some lists begins if they are put end to end, and where the last ends."""
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])


def read_queries(files: list[Path], ids: ItemIds) -> pd.DataFrame | None:
    """The records of some files with the item rows and the source of each, or None without files."""
    found: list[dict] = []
    for path in files:
        source = path.name.removesuffix(".gz").removesuffix(".jsonl")
        for number, record in json_records(path, ("query", "item_ids")):
            if taken := record.keys() & {"item_rows", "source"}:
                raise ValueError(f"{path} has a field {min(taken)!r}, expected another name (we add it)")
            query, item_ids = record["query"], record["item_ids"]
            if not isinstance(query, str) or not query.strip():
                _fail(path, number, f"query is {shown(query)}, expected some text")
            rows = _rows(path, number, item_ids, ids)
            if not 0 < len(rows) == len(set(rows)):
                _fail(path, number, f"item_ids is {shown(item_ids)}, expected at least one item id, each once")
            found.append(record | {"query": normal(query), "item_rows": rows, "source": source})
    if files and not found:
        raise empty_file(files[0])
    names = dict.fromkeys(["query", "item_rows", "source", *chain.from_iterable(found)])
    columns = {name: table.typed([record.get(name) for record in found]) for name in names}
    return pd.DataFrame(columns) if files else None


def read_histories(files: dict[str, Path], ids: ItemIds) -> Histories | None:
    """The histories of a data set, or None without a file.

    files: as `folder.data_files` returns them.
    """
    path = files.get("sequences")
    if path is None:
        return None
    relative = "relative_time" in files
    timed = files.get("relative_time", files.get("timestamps", path))
    line_of: dict[str, int] = {}
    rows, seconds = [], []
    users = _json_users(path) if ".jsonl" in path.name else _tsv_users(path, timed)
    for number, user_id, item_ids, moments in users:
        if readers.is_nothing(user_id):
            _fail(path, number, f"user {shown(user_id)} is a word for a missing value: name the user")
        if user_id in line_of:
            _fail(path, number, f"user {shown(user_id)} occurs before, in line {line_of[user_id]}")
        line_of[user_id] = number
        rows.append(_rows(path, number, item_ids, ids))
        if moments is not None:
            seconds.append(_seconds(timed, number, moments, len(item_ids)))
        if len(seconds) not in (0, len(rows)):
            _fail(path, number, "timestamps in some lines only, expected them in all lines or in none")
    if not rows:
        raise empty_file(path)
    histories = Histories.from_lists(rows, line_of, seconds or None, relative)
    if histories.times is not None:
        lines = np.repeat(list(line_of.values()), histories.lengths)

        def fail(at: int, problem: str) -> NoReturn:
            _fail(timed, int(lines[at]), problem)

        if relative:
            times.check_relative(histories.times, histories.offsets, fail)
        else:
            times.check_seconds(histories.times, fail)
    return histories


def _fail(path: Path, number: int, problem: str) -> NoReturn:
    raise ValueError(f"{path}, line {number}: {problem}")


def _rows(path: Path, number: int, item_ids, ids: ItemIds) -> np.ndarray:
    """Rows of a list of item ids: (n,) int64."""
    if not isinstance(item_ids, list):
        _fail(path, number, f"item_ids is {shown(item_ids)}, expected a list of item ids")
    return ids.rows(item_ids, f"{path}, line {number}")


def _json_users(path: Path) -> Iterator[tuple]:
    """Line, user id, item ids, and times or None."""
    for number, record in json_records(path, ("user_id", "item_ids")):
        user_id = record["user_id"]
        if type(user_id) not in (str, int):
            _fail(path, number, f"user_id is {shown(user_id)}, expected text")
        yield number, str(user_id), record["item_ids"], record.get("timestamps")


def _tsv_users(path: Path, timed: Path) -> Iterator[tuple]:
    """Line, user id, item ids, and times or None, which are in a file of their own."""
    if timed == path:
        yield from ((*user, None) for user in _tsv_lines(path))
        return
    missing: tuple = (0, None, [])
    for user, other in zip_longest(_tsv_lines(path), _tsv_lines(timed), fillvalue=missing):
        if other[1] != user[1]:
            found, expected = (f"user {shown(one[1])}" if one[0] else "no more users" for one in (other, user))
            problem = f"{found}, expected {expected} as in the sequences"
            _fail(timed, max(user[0], other[0]), problem)
        yield *user, other[2]


def _tsv_lines(path: Path) -> Iterator[tuple[int, str, list[str]]]:
    """Line, user id and values separated by single spaces."""
    for number, line in text_lines(path, "utf-8"):
        user_id, tab, rest = line.partition("\t")
        if not tab or not user_id:
            _fail(path, number, f"the line is {shown(line)}, expected a user id, a tab and item ids")
        yield number, user_id, rest.split(" ") if rest else []


def _seconds(path: Path, number: int, values, length: int) -> np.ndarray:
    """Times of one user, integers or their decimal text: (length,) int64."""
    if not isinstance(values, list) or len(values) != length:
        _fail(path, number, f"times are {shown(values)}, expected {length} integers, as many as items")
    for value in values:
        if type(value) not in (int, str) or not _INTEGER.fullmatch(str(value)) or not fits_int64(int(value)):
            _fail(path, number, f"time {shown(value)} is not a whole number of seconds")
    seconds = list(map(int, values))
    if any(later < earlier for earlier, later in pairwise(seconds)):
        _fail(path, number, f"times {shown(seconds)} go backwards, expected time order")
    return np.array(seconds, dtype=np.int64)
