"""The files of a data set: read, check, write.

One data set is one folder: `items` as `.jsonl`, `.csv`, `.parquet` or `.arrow` (exactly one), and optionally histories
(`sequences.tsv` and `timestamps.tsv`, or `sequences.jsonl`, which holds both) and `queries*.jsonl`; text may be
gzipped (`.gz`). Text is UTF-8, one record a line; empty lines are an error except at the end of a file.
Nothing is dropped silently: bad input is a ValueError that names file, line, value and what was expected.
"""

import gzip
import hashlib
import json
import re
import shutil
from array import array
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import NamedTuple, NoReturn

import numpy as np
import pandas as pd

from semid_lib.data import readers, table, times
from semid_lib.data.item_ids import ItemIds, read_ids
from semid_lib.workbench.atomic import check_replaceable, fresh_folder
from semid_lib.workbench.text import normal, shown

ITEM_FILES = "items.jsonl, items.jsonl.gz, items.csv, items.csv.gz, items.parquet, items.arrow"
DATA_FILE = re.compile(
    r"items\.(parquet|arrow)|(items\.(csv|jsonl)|queries.*\.jsonl|sequences\.(tsv|jsonl)|timestamps\.tsv)(\.gz)?"
)
# names that people give to such files; one that we do not read would be missed without a word
_LOOKS_LIKE = {
    "items": "item items product products catalogue catalog",
    "sequences": "sequence sequences history histories interaction interactions rating ratings review reviews order "
    "orders event events purchase purchases transaction transactions basket baskets click clicks view views session "
    "sessions",
    "timestamps": "timestamp timestamps time times",
    "queries": "query queries search searches",
}
_PLAIN = re.compile(r"[^\s\x00-\x1f\x7f\ufeff]+")  # what a line of tab-separated text keeps as it is
_DATA_ENDINGS = re.compile(
    r"(csv|tsv|txt|dat|data|json|jsonl|ndjson|parquet|arrow|feather|xlsx?|inter)(\.(gz|bz2|xz|zst|zip))?"
)


class Contents(NamedTuple):
    """What the files of one data set hold, checked; the columns are described in `data.Dataset`."""

    items: pd.DataFrame
    histories: tuple | None  # user_ids, items, offsets, times: the fields of `data.Histories`
    queries: pd.DataFrame | None
    fingerprint: str


def read_folder(folder: str | Path, columns: Sequence[str] | None = None) -> Contents:
    """Read and check the files of one data set; `data.load` says what they may hold and what is refused.

    columns: of the items, besides `item_id` and `title`; None for all.

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     write_folder(folder, [{"item_id": 7, "title": "Soap"}], [("ann", [7, 7])])
    ...     items, (user_ids, rows, offsets, seconds), queries, fingerprint = read_folder(folder)
    >>> items["title"].tolist(), user_ids.tolist(), rows.tolist(), offsets.tolist(), seconds, queries
    (['Soap'], ['ann'], [0, 0], [0, 2], None, None)
    """
    files = _data_files(Path(folder))
    items = _items(files["items"], columns)
    ids = ItemIds(items[["item_id"]])
    histories = _histories(files, ids) if _has_histories(files) else None
    queries = _queries([file for kind, file in files.items() if kind.startswith("queries")], ids)
    return Contents(items, histories, queries, _fingerprint(files))


def fingerprint(folder: str | Path) -> str:
    """The fingerprint of a data set, as `read_folder` returns it, without reading records.

    Raises ValueError if the folder holds no data set.

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     write_folder(folder, [{"item_id": 7, "title": "Soap"}])
    ...     fingerprint(folder) == read_folder(folder).fingerprint
    True
    """
    return _fingerprint(_data_files(Path(folder)))


def has_histories(folder: str | Path) -> bool:
    """Whether a data set has histories, without reading them. Raises ValueError if the folder holds no data set.

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     write_folder(folder, [{"item_id": 7, "title": "Soap"}])
    ...     has_histories(folder)
    False
    """
    return _has_histories(_data_files(Path(folder)))


def _has_histories(files: dict[str, Path]) -> bool:
    return any(kind.startswith("sequences") for kind in files)


def _fingerprint(files: dict[str, Path]) -> str:
    digest = hashlib.sha256()
    for file in files.values():
        _add_to(digest, file)
    return digest.hexdigest()


# --- files ---


def _name(path: Path) -> str:
    return path.name.removesuffix(".gz")


def _add_to(digest, path: Path) -> None:
    """Name, length and bytes, uncompressed; of a folder those of each of its files."""
    if path.suffix in table.SUFFIXES:
        parts = [(str(file.relative_to(path.parent)), file) for file in readers.files(path)]
    else:
        parts = [(_name(path), path)]
    for name, file in parts:
        size = sum(map(len, _blocks(file)))
        digest.update(f"{name}\0{size}\0".encode())
        for block in _blocks(file):
            digest.update(block)


def _blocks(path: Path) -> Iterator[bytes]:
    with readers.opened(path) as file:
        while block := file.read(2**20):
            yield block


def _fail(path: Path, number: int, problem: str) -> NoReturn:
    raise ValueError(f"{path}, line {number}: {problem}")


def _data_files(folder: Path) -> dict[str, Path]:
    """Kinds ("items" or the name without .gz) -> paths, in order; each once, and at least the items."""
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder, expected one that holds one of {ITEM_FILES}")
    found: dict[str, Path] = {}
    for path in _existing_files(folder):
        kind = "items" if path.name.startswith("items.") else _name(path)
        if not path.is_file() and path.suffix not in table.SUFFIXES:
            raise ValueError(f"{path} is not a file, expected one: remove it, or the broken link")
        if kind in found:
            raise ValueError(f"{folder} holds both {found[kind].name} and {path.name}, expected one of them")
        found[kind] = path
    if "items" not in found:
        raise ValueError(f"{folder} holds no items, looked for {ITEM_FILES}")
    if "sequences.jsonl" in found and (other := found.keys() & {"sequences.tsv", "timestamps.tsv"}):
        raise ValueError(f"{folder} holds both sequences.jsonl and {min(other)}, expected one of them")
    if "timestamps.tsv" in found and "sequences.tsv" not in found:
        raise ValueError(f"{folder} has timestamps.tsv but no sequences.tsv: add it, or remove timestamps.tsv")
    _refuse_look_alikes(folder, {kind.partition(".")[0] for kind in found})
    return dict(sorted(found.items()))


def _refuse_look_alikes(folder: Path, read: set[str]) -> None:
    """A file that seems meant, but is not read, is an error: `sequences.csv`, or `orders.csv` without histories."""
    for path in sorted(folder.iterdir()):
        stem, _, ending = path.name.lower().partition(".")
        stem = re.sub(r"[\s_(-]*[0-9][0-9\s_)-]*$", "", stem)  # "orders_2024", "sequences (1)"
        if DATA_FILE.fullmatch(path.name) or not _DATA_ENDINGS.fullmatch(ending):
            continue
        for kind, names in _LOOKS_LIKE.items():
            if stem == kind or (stem in names.split() and kind not in read):
                read_as = {"items": ITEM_FILES, "sequences": "sequences.tsv or sequences.jsonl"}
                wanted = read_as.get(kind, f"{kind}.tsv" if kind == "timestamps" else "queries.jsonl")
                raise ValueError(
                    f"{path} is not read, but looks like {kind}, expected {wanted}: import it "
                    "(semid import table --help), or move it out of the folder"
                )


def _existing_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if DATA_FILE.fullmatch(path.name))


def files_of(folder: str | Path) -> list[Path]:
    """The files of a data set, one by one where the item table is a folder of them; nothing else that lies there.

    Raises ValueError as `readers.files` does.

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     write_folder(folder, [{"item_id": 7, "title": "Soap"}], [("ann", [7, 7])])
    ...     Path(folder, "notes.txt").touch()
    ...     [file.name for file in files_of(folder)]
    ['items.jsonl.gz', 'sequences.tsv.gz']
    """
    return [file for path in _existing_files(Path(folder)) for file in readers.files(path)]


# --- items and queries ---


def _items(path: Path, columns: Sequence[str] | None) -> pd.DataFrame:
    if path.suffix in table.SUFFIXES:
        return table.read(path, columns)
    typed = not _name(path).endswith(".csv")
    found = readers.read(path, table.REQUIRED, each=table.REQUIRED)
    names = dict.fromkeys(["item_id", *found.frame])
    values = {name: found.frame[name].tolist() for name in names}
    if not typed:
        values["item_id"] = read_ids(found.frame["item_id"], found.fail, typed)
    items = pd.DataFrame({name: table.column(name, values[name], found.fail) for name in names})
    lines = f"{found.unit} {{}}".format

    def place(at: int) -> str:
        return f"{path}, {lines(found.lines[at])}"

    table.check_ids(items["item_id"], place)
    if columns is not None:
        if lacking := [name for name in columns if name not in items]:
            raise ValueError(f"{path} has fields {shown(list(items))}, expected also {lacking[0]!r}")
        items = items[[name for name in items if name in {*table.REQUIRED, *columns}]]
    try:
        table.arrow_table(items, lambda row: lines(found.lines[row - 1]))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return items


def _queries(files: list[Path], ids: ItemIds) -> pd.DataFrame | None:
    found = []
    for path in files:
        for number, record in readers.json_records(path):
            if lacking := [name for name in ("query", "item_ids") if name not in record]:
                _fail(path, number, f"the fields are {shown(list(record))}, expected also {lacking[0]!r}")
            if taken := record.keys() & {"item_rows", "source"}:
                raise ValueError(f"{path} has a field {min(taken)!r}, expected another name (we add it)")
            rows = _relevant_rows(path, number, record, ids)
            ours = {"query": normal(record["query"]), "item_rows": rows, "source": _name(path).removesuffix(".jsonl")}
            found.append(record | ours)
    if not found:
        if files:
            raise ValueError(f"{files[0]} is empty, expected at least one record")
        return None
    names = dict.fromkeys([*ours, *chain.from_iterable(found)])
    return pd.DataFrame({name: table.typed([record.get(name) for record in found]) for name in names})


def _relevant_rows(path: Path, number: int, record: dict, ids: ItemIds) -> np.ndarray:
    query, wanted = record["query"], record["item_ids"]
    if not isinstance(query, str) or not query.strip():
        _fail(path, number, f"query is {shown(query)}, expected some text")
    plain = isinstance(wanted, list) and all(type(item_id) in (int, str) for item_id in wanted)
    rows = _rows(path, number, wanted, ids) if plain else ()
    if not 0 < len(rows) == len(set(rows)):
        _fail(path, number, f"item_ids is {shown(wanted)}, expected a list of at least one item id, each once")
    return rows


def _rows(path: Path, number: int, item_ids: Sequence[int | str], ids: ItemIds) -> np.ndarray:
    rows = [ids.row_of.get(str(item_id), -1) for item_id in item_ids]
    if -1 in rows:
        unknown = shown(item_ids[rows.index(-1)])
        _fail(path, number, f"item {unknown} is unknown, expected an item_id of the items file")
    return np.array(rows, dtype=np.int64)


# --- histories ---


class _User(NamedTuple):
    """One line of histories."""

    line: int
    rows: np.ndarray  # (length,) int64 item rows
    seconds: array | None  # as many times


def _histories(files: dict[str, Path], ids: ItemIds) -> tuple:
    """User ids, item rows, offsets, and times or None."""
    if "sequences.jsonl" in files:
        path = timed = files["sequences.jsonl"]
        users = _json_users(path, ids)
    else:
        path, timed = files["sequences.tsv"], files.get("timestamps.tsv", files["sequences.tsv"])
        users = _tsv_users(path, files.get("timestamps.tsv"), ids)
    if not users:
        raise ValueError(f"{path} is empty, expected at least one record")
    offsets = np.cumsum([0, *(len(user.rows) for user in users.values())], dtype=np.int64)
    rows = np.concatenate([user.rows for user in users.values()])
    seconds = _end_to_end(timed, users, offsets)
    return np.array(list(users), dtype=object), rows, offsets, seconds


def _end_to_end(path: Path, users: dict[str, _User], offsets: np.ndarray) -> np.ndarray | None:
    """All times, checked: (n_interactions,) int64."""
    if all(user.seconds is None for user in users.values()):
        return None
    found = np.fromiter(chain.from_iterable(user.seconds for user in users.values()), dtype=np.int64)
    lines = [user.line for user in users.values()]

    def fail(at: int, problem: str) -> NoReturn:
        _fail(path, lines[int(np.searchsorted(offsets, at, side="right")) - 1], problem)

    times.check_seconds(found, fail)
    if (user := first_fall(found, offsets)) >= 0:
        seconds = found[offsets[user] : offsets[user + 1]].tolist()
        _fail(path, lines[user], f"times {shown(seconds)} go backwards, expected time order")
    return found


def _tsv_users(path: Path, timestamps: Path | None, ids: ItemIds) -> dict[str, _User]:
    lines_of_times = None if timestamps is None else _tsv_lines(timestamps)
    users: dict[str, _User] = {}
    for number, user_id, tokens in _tsv_lines(path):
        _check_user(path, number, user_id, users)
        rows, seconds = _rows(path, number, tokens, ids), None
        if lines_of_times is not None:
            seconds = _seconds_beside(timestamps, next(lines_of_times, None), user_id, len(rows))
        users[user_id] = _User(number, rows, seconds)
    if lines_of_times is not None and (extra := next(lines_of_times, None)):
        _fail(timestamps, extra[0], f"user {shown(extra[1])}, expected the {len(users)} users of the sequences")
    return users


def _tsv_lines(path: Path) -> Iterator[tuple[int, str, list[str]]]:
    """Line, user and values separated by single spaces."""
    for number, line in readers.filled(readers.decoded(path, "utf-8"), path):
        user_id, tab, rest = line.partition("\t")
        if not tab or not user_id:
            _fail(path, number, f"the line is {shown(line)}, expected a user id, a tab and item ids")
        yield number, user_id, rest.split(" ") if rest else []


def _seconds_beside(path: Path, found: tuple | None, user_id: str, length: int) -> array:
    """The times of one user, who must be the one of the sequences, and as many as there are items."""
    if found is None:
        raise ValueError(f"{path} has no times of user {shown(user_id)}, expected the users of the sequences")
    number, other, tokens = found
    if other != user_id:
        _fail(path, number, f"user {shown(other)}, expected {shown(user_id)} as in the sequences")
    if len(tokens) != length:
        _fail(path, number, f"{len(tokens)} times, expected {length} as in the sequences")
    if wrong := next((token for token in tokens if not _is_int64(token)), None):
        _fail(path, number, f"{shown(wrong)} is not an integer in int64, expected integers and single spaces")
    return array("q", map(int, tokens))


def _is_int64(token: str) -> bool:
    return bool(re.fullmatch("-?[0-9]{1,30}", token)) and -(2**63) <= int(token) < 2**63


def _check_user(path: Path, number: int, user_id: str, users: dict[str, _User]) -> None:
    if readers.is_nothing(user_id):
        _fail(path, number, f"user {shown(user_id)} is a word for a missing value: name the user or remove the line")
    if user_id in users:
        _fail(path, number, f"user {shown(user_id)} occurs before, in line {users[user_id].line}")


def _json_users(path: Path, ids: ItemIds) -> dict[str, _User]:
    users: dict[str, _User] = {}
    timed = None
    for number, record in readers.json_records(path):
        user_id, item_ids, seconds = (record.get(name) for name in ("user_id", "item_ids", "timestamps"))
        if type(user_id) not in (str, int):
            _fail(path, number, f"user_id is {shown(user_id)}, expected text")
        _check_user(path, number, str(user_id), users)
        if not isinstance(item_ids, list) or not all(type(one) in (int, str) for one in item_ids):
            _fail(path, number, f"item_ids is {shown(item_ids)}, expected a list of item ids")
        timed = seconds is not None if timed is None else timed
        integers = isinstance(seconds, list) and all(type(one) is int and _is_int64(str(one)) for one in seconds)
        if (seconds is not None) != timed or (timed and (not integers or len(seconds) != len(item_ids))):
            expected = f"{len(item_ids)} integers, as many as item_ids" if timed else "none, as in line 1"
            _fail(path, number, f"timestamps is {shown(seconds)}, expected {expected}")
        rows = _rows(path, number, item_ids, ids)
        users[str(user_id)] = _User(number, rows, array("q", seconds) if timed else None)
    return users


def first_fall(times: np.ndarray, offsets: np.ndarray) -> int:
    """Position of the first user whose times fall, or -1; from one user to the next, time may go back.

    >>> first_fall(np.array([5, 9, 1, 7, 6]), np.array([0, 2, 5]))
    1
    """
    falls = np.setdiff1d(np.flatnonzero(np.diff(times) < 0) + 1, offsets)
    return int(np.searchsorted(offsets, falls[0], side="right")) - 1 if len(falls) else -1


# --- write ---


def write_folder(
    folder: str | Path,
    items: Iterable[dict],
    sequences: Iterable[tuple[str, Sequence[int | str]]] | None = None,
    timestamps: Iterable[tuple[str, Sequence[int]]] | None = None,
    queries: Iterable[dict] | None = None,
    *,
    overwrite: bool = False,
) -> None:
    """Write one data set that `data.load` reads, gzipped; equal content gives equal bytes.

    Histories become `sequences.tsv.gz`, or `sequences.jsonl.gz` if an id holds white space. The folder appears
    atomically: a reader finds the old data set or the new one. With `overwrite`, files that are no part of a data set
    stay.

    Parameters
    ----------
    items : iterable of dict
        Records with `item_id` and `title`.
    sequences, timestamps : iterable of (str, list), optional
        User ids, in the same order, with item ids and Unix seconds.
    queries : iterable of dict, optional
        Records with `query` and `item_ids`.

    Raises
    ------
    ValueError
        If the folder is not empty and `overwrite` is false, for a part without records, for a user id that `load`
        refuses, and for a value that is not JSON; `load` checks the rest.

    Examples
    --------
    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     write_folder(folder, [{"item_id": 1, "title": "Red lipstick"}], [("ann", [1])])
    ...     sorted(path.name for path in Path(folder).iterdir())
    ['items.jsonl.gz', 'sequences.tsv.gz']
    """
    folder = Path(folder)
    check_output(folder, overwrite)
    with fresh_folder(folder) as new:
        for other in folder.iterdir() if folder.is_dir() else ():
            if not DATA_FILE.fullmatch(other.name):
                _copy(other, new / other.name)
        _write_lines(new / "items.jsonl.gz", map(_json_line, items))
        if sequences is not None:
            _write_histories(new, sequences, timestamps)
        if queries is not None:
            _write_lines(new / "queries.jsonl.gz", map(_json_line, queries))


def _copy(path: Path, target: Path) -> None:
    """Copy a file or folder; links stay links, also to nowhere."""
    if path.is_dir() and not path.is_symlink():
        shutil.copytree(path, target, symlinks=True)
    else:
        shutil.copy2(path, target, follow_symlinks=False)


def check_output(folder: str | Path, overwrite: bool = False) -> None:
    """Raise ValueError if a folder cannot be written to: a file, the current folder, one not empty without `overwrite`.

    >>> check_output("a/folder/that/is/new")
    """
    folder = Path(folder)
    check_replaceable(folder)
    if folder.is_dir() and not overwrite and any(folder.iterdir()):
        raise ValueError(f"{folder} is not empty, expected an empty or new folder (or overwrite)")


def _write_histories(new: Path, sequences: Iterable[tuple], timestamps: Iterable[tuple] | None) -> None:
    users = [(user_id, list(item_ids)) for user_id, item_ids in sequences]
    seconds = None if timestamps is None else [list(found) for _, found in timestamps]
    for number, (user_id, _) in enumerate(users, 1):
        if not isinstance(user_id, str) or readers.is_nothing(user_id):
            raise ValueError(f"user {number}: id {shown(user_id)}, expected text")
    names = {user.replace(" ", "") for user, _ in users} | {str(one) for _, ids in users for one in ids}
    if all(map(_PLAIN.fullmatch, names)):
        _write_lines(new / "sequences.tsv.gz", map(_tsv_line, users))
        if seconds is not None:
            times_of = ((user_id, found) for (user_id, _), found in zip(users, seconds, strict=True))
            _write_lines(new / "timestamps.tsv.gz", map(_tsv_line, times_of))
        return
    records = [{"user_id": user_id, "item_ids": item_ids} for user_id, item_ids in users]
    if seconds is not None:
        records = [record | {"timestamps": found} for record, found in zip(records, seconds, strict=True)]
    _write_lines(new / "sequences.jsonl.gz", map(_json_line, records))


def _write_lines(path: Path, lines: Iterable[str]) -> None:
    n_lines = 0
    # no name and no time of writing, which would change the bytes
    with path.open("wb") as raw, gzip.GzipFile("", "wb", compresslevel=6, fileobj=raw, mtime=0) as file:
        try:
            for line in lines:
                file.write(line.encode() + b"\n")
                n_lines += 1
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path.name}, line {n_lines + 1} cannot be written: {error}") from error
    if not n_lines:
        raise ValueError(f"no records for {path.name}, expected at least one (or None)")


_json_line = json.JSONEncoder(ensure_ascii=False, allow_nan=False).encode


def _tsv_line(user: tuple[str, Sequence]) -> str:
    user_id, values = user
    return f"{user_id}\t{' '.join(map(str, values))}"
