"""Histories and queries of a data folder: records that name items of its item table."""

import re
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import NoReturn

import numpy as np
import pandas as pd

from semid_lib.data import readers, table, times
from semid_lib.data.item_ids import ItemIds
from semid_lib.data.text_files import empty_file, json_records, text_lines
from semid_lib.workbench.text import normal, shown

_INTEGER = re.compile("-?[0-9]{1,30}")


def _fail(path: Path, number: int, problem: str) -> NoReturn:
    raise ValueError(f"{path}, line {number}: {problem}")


def read_queries(files: list[Path], ids: ItemIds) -> pd.DataFrame | None:
    """The records of some files with the item rows and the source of each, or None without files."""
    found: list[dict] = []
    for path in files:
        for number, record in json_records(path):
            if lacking := [name for name in ("query", "item_ids") if name not in record]:
                _fail(path, number, f"the fields are {shown(list(record))}, expected also {lacking[0]!r}")
            if taken := record.keys() & {"item_rows", "source"}:
                raise ValueError(f"{path} has a field {min(taken)!r}, expected another name (we add it)")
            query, item_ids = record["query"], record["item_ids"]
            if not isinstance(query, str) or not query.strip():
                _fail(path, number, f"query is {shown(query)}, expected some text")
            rows = _rows(path, number, item_ids, ids)
            if not 0 < len(rows) == len(set(rows)):
                _fail(path, number, f"item_ids is {shown(item_ids)}, expected at least one item id, each once")
            ours = {
                "query": normal(query),
                "item_rows": rows,
                "source": path.name.removesuffix(".gz").removesuffix(".jsonl"),
            }
            found.append(record | ours)
    if not found:
        if files:
            raise empty_file(files[0])
        return None
    names = dict.fromkeys(["query", "item_rows", "source", *chain.from_iterable(found)])
    return pd.DataFrame({name: table.typed([record.get(name) for record in found]) for name in names})


def _rows(path: Path, number: int, item_ids, ids: ItemIds) -> np.ndarray:
    """Rows of a list of item ids: (n,) int64."""
    if not isinstance(item_ids, list) or not all(type(item_id) in (int, str) for item_id in item_ids):
        _fail(path, number, f"item_ids is {shown(item_ids)}, expected a list of item ids")
    rows = [ids.row_of.get(str(item_id), -1) for item_id in item_ids]
    if -1 in rows:
        unknown = shown(item_ids[rows.index(-1)])
        _fail(path, number, f"item {unknown} is unknown, expected an item_id of the items file")
    return np.array(rows, dtype=np.int64)


# --- histories ---


def read_histories(files: dict[str, Path], ids: ItemIds) -> tuple | None:
    """User ids, item rows, offsets, and times or None (the fields of `dataset.Histories`); None without a file.

    files: paths of `sequences.jsonl`, or of `sequences.tsv` and optionally `timestamps.tsv`, by name.
    """
    is_json = "sequences.jsonl" in files
    path = files.get("sequences.jsonl" if is_json else "sequences.tsv")
    if path is None:
        return None
    timed = files.get("timestamps.tsv", path)
    line_of: dict[str, int] = {}
    rows, seconds = [], []
    for number, user_id, item_ids, times_of_user in _json_users(path) if is_json else _tsv_users(path, timed):
        if readers.is_nothing(user_id):
            _fail(path, number, f"user {shown(user_id)} is a word for a missing value: name the user")
        if user_id in line_of:
            _fail(path, number, f"user {shown(user_id)} occurs before, in line {line_of[user_id]}")
        line_of[user_id] = number
        rows.append(_rows(path, number, item_ids, ids))
        if times_of_user is not None:
            seconds.append(_int64(timed, number, times_of_user, len(item_ids)))
        if len(seconds) not in (0, len(rows)):
            _fail(path, number, "timestamps in some lines only, expected them in all lines or in none")
    if not rows:
        raise empty_file(path)
    offsets = np.cumsum([0, *map(len, rows)], dtype=np.int64)
    found = _checked_times(timed, list(line_of.values()), np.concatenate(seconds), offsets) if seconds else None
    return np.array(list(line_of), dtype=object), np.concatenate(rows), offsets, found


def _json_users(path: Path) -> Iterator[tuple]:
    """Line, user id, item ids, and times or None."""
    for number, record in json_records(path):
        if type(user_id := record.get("user_id")) not in (str, int):
            _fail(path, number, f"user_id is {shown(user_id)}, expected text")
        yield number, str(user_id), record.get("item_ids"), record.get("timestamps")


def _tsv_users(path: Path, timed: Path) -> Iterator[tuple]:
    """Line, user id, item ids, and times or None, which are in a file of their own."""
    users, times_of = _tsv_lines(path), _tsv_lines(timed) if timed != path else None
    for number, user_id, item_ids in users:
        if times_of is None:
            yield number, user_id, item_ids, None
            continue
        if (found := next(times_of, None)) is None:
            raise ValueError(f"{timed} has no times of user {shown(user_id)}, expected the users of the sequences")
        number_of_times, other, seconds = found
        if other != user_id:
            _fail(timed, number_of_times, f"user {shown(other)}, expected {shown(user_id)} as in the sequences")
        yield number, user_id, item_ids, seconds
    if times_of is not None and (extra := next(times_of, None)):
        _fail(timed, extra[0], f"user {shown(extra[1])}, expected no more users than in the sequences")


def _tsv_lines(path: Path) -> Iterator[tuple[int, str, list[str]]]:
    """Line, user id and values separated by single spaces."""
    for number, line in text_lines(path, "utf-8"):
        user_id, tab, rest = line.partition("\t")
        if not tab or not user_id:
            _fail(path, number, f"the line is {shown(line)}, expected a user id, a tab and item ids")
        yield number, user_id, rest.split(" ") if rest else []


def _int64(path: Path, number: int, values, length: int) -> np.ndarray:
    """Times of one user, integers or their decimal text: (length,) int64."""
    if not isinstance(values, list) or len(values) != length:
        _fail(path, number, f"times are {shown(values)}, expected {length} integers, as many as items")
    for value in values:
        is_integer = type(value) in (int, str) and _INTEGER.fullmatch(str(value))
        if not is_integer or not -(2**63) <= int(value) < 2**63:
            _fail(path, number, f"time {shown(value)} is not an integer in int64, expected Unix seconds")
    return np.array(list(map(int, values)), dtype=np.int64)


def _checked_times(path: Path, lines: list[int], found: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    def fail(at: int, problem: str) -> NoReturn:
        _fail(path, lines[int(np.searchsorted(offsets, at, side="right")) - 1], problem)

    times.check_seconds(found, fail)
    if (user := first_fall(found, offsets)) >= 0:
        seconds = found[offsets[user] : offsets[user + 1]].tolist()
        _fail(path, lines[user], f"times {shown(seconds)} go backwards, expected time order")
    return found


def first_fall(times: np.ndarray, offsets: np.ndarray) -> int:
    """Position of the first user whose times fall, or -1; from one user to the next, time may go back.

    >>> first_fall(np.array([5, 9, 1, 7, 6]), np.array([0, 2, 5]))
    1
    """
    falls = np.setdiff1d(np.flatnonzero(np.diff(times) < 0) + 1, offsets)
    return int(np.searchsorted(offsets, falls[0], side="right")) - 1 if len(falls) else -1
