"""The files of a data set: read, check, write.

One data set is one folder: `items` as `.jsonl`, `.csv`, `.parquet` or `.arrow` (exactly one), and optionally histories
(`sequences.tsv` and `timestamps.tsv` or `relative_time.tsv`, or `sequences.jsonl`, which may hold Unix times) and
`queries*.jsonl`; text may be gzipped (`.gz`). Text is UTF-8, one record per line; a blank line is an error except at
the end of a file.
Nothing is dropped silently: bad input is a ValueError that names file, line, value and what was expected.
"""

import gzip
import hashlib
import json
import re
import shutil
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path

from semid_lib.data import readers, table
from semid_lib.data.text_files import opened
from semid_lib.workbench import remote
from semid_lib.workbench.atomic import check_replaceable, fresh_folder
from semid_lib.workbench.store import Store, data_name
from semid_lib.workbench.text import shown

ITEM_FILES = "items.jsonl, items.jsonl.gz, items.csv, items.csv.gz, items.parquet, items.arrow"
DATA_FILE = re.compile(
    r"items\.(parquet|arrow)|"
    r"(items\.(csv|jsonl)|queries.*\.jsonl|sequences\.(tsv|jsonl)|(timestamps|relative_time)\.tsv)(\.gz)?"
)
_EVENTS = "sequence|interaction|rating|review|order|event|purchase|transaction|basket|click|view|session"
# the file that is read, and patterns of names that look like it: such a file would be missed silently
_LOOKS_LIKE = {
    "items": (ITEM_FILES, "(item|product|catalog|catalogue)s?"),
    "sequences": ("sequences.tsv or sequences.jsonl", f"history|histories|({_EVENTS})s?"),
    "timestamps": ("timestamps.tsv", "(timestamp|time)s?"),
    "relative_time": ("relative_time.tsv", "relative_(timestamp|time)s?"),
    "queries": ("queries.jsonl", "query|queries|search|searches"),
}
_DATA_ENDINGS = re.compile(
    r"(csv|tsv|txt|dat|data|json|jsonl|ndjson|parquet|arrow|feather|xlsx?|inter)(\.(gz|bz2|xz|zst|zip))?"
)


def fingerprint(folder: str | Path) -> str:
    """SHA-256 of name, length and uncompressed bytes of each file of a data set, also of those in folders.

    Raises ValueError if the folder holds no data set.
    """
    digest = hashlib.sha256()
    for file in files_of(folder):
        name = _name(file) if file.parent == Path(folder) else f"{file.parent.name}/{file.name}"
        digest.update(f"{name}\0{sum(map(len, _blocks(file)))}\0".encode())
        for block in _blocks(file):
            digest.update(block)
    return digest.hexdigest()


def open_store(data: str | Path, scale: str, root: str | Path | None = None) -> Store:
    """The store of a data set that is not loaded.

    Parameters
    ----------
    data : str or Path
        "demo" or the folder of a data set, here or at an address.
    scale : str
        A name of `scale.NAMES`, or "bench".
    root : str or Path, optional
        As `Store` takes it.

    Raises
    ------
    ValueError
        If there is no such folder, or it holds no data set.
    """
    known = "" if data == "demo" else fingerprint(remote.fetch(data))
    return Store(data_name(data), scale, known, root)


def has_histories(folder: str | Path) -> bool:
    """Whether a data set has histories, without reading them. Raises ValueError if the folder holds no data set."""
    return "sequences" in data_files(folder)


def files_of(folder: str | Path) -> list[Path]:
    """The files of a data set, one by one where the item table is a folder of them; no other files.

    Raises ValueError if the folder holds no data set.

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     write_folder(folder, [{"item_id": 7, "title": "Soap"}], [("ann", [7, 7])])
    ...     Path(folder, "notes.txt").touch()
    ...     [file.name for file in files_of(folder)]
    ['items.jsonl.gz', 'sequences.jsonl.gz']
    """
    return [file for path in data_files(folder).values() for file in readers.files(path)]


# --- files ---


def data_files(folder: str | Path) -> dict[str, Path]:
    """The files of a data set by kind, in order; each once.

    Kinds are "items", "sequences", "timestamps" or "relative_time", and the names of queries. Raises ValueError if the
    folder holds no data set, two files of a kind, or a file that looks like data but is not read.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder, expected one that holds one of {ITEM_FILES}")
    paths = sorted(folder.iterdir())
    found: dict[str, Path] = {}
    for path in paths:
        if not DATA_FILE.fullmatch(path.name):
            continue
        kind = _name(path) if path.name.startswith("queries") else path.name.partition(".")[0]
        if not path.is_file() and path.suffix not in table.SUFFIXES:
            raise ValueError(f"{path} is not a file, expected one: remove it, or the broken link")
        if kind in found:
            raise ValueError(f"{folder} holds both {found[kind].name} and {path.name}, expected one of them")
        found[kind] = path
    if "items" not in found:
        raise ValueError(f"{folder} holds no items, looked for {ITEM_FILES}")
    timed = [kind for kind in ("timestamps", "relative_time") if kind in found]
    if len(timed) == 2:
        raise ValueError(f"{folder} holds both timestamps.tsv and relative_time.tsv, expected one of them")
    if timed and _name(found.get("sequences", folder)) != "sequences.tsv":
        raise ValueError(f"{folder} has {timed[0]}.tsv but no sequences.tsv: add it, or remove {timed[0]}.tsv")
    kinds = {kind.partition(".")[0] for kind in found}
    for path in paths:
        stem, _, ending = path.name.lower().partition(".")
        stem = re.sub(r"[\s_(-]*[0-9][0-9\s_)-]*$", "", stem)  # "orders_2024", "sequences (1)"
        if DATA_FILE.fullmatch(path.name) or not _DATA_ENDINGS.fullmatch(ending):
            continue
        for kind, (expected, names) in _LOOKS_LIKE.items():
            if stem == kind or (kind not in kinds and re.fullmatch(names, stem)):
                hint = "import it (semid import table --help), or move it out of the folder"
                raise ValueError(f"{path} is not read, but looks like {kind}, expected {expected}: {hint}")
    return dict(sorted(found.items()))


def _name(path: Path) -> str:
    return path.name.removesuffix(".gz")


def _blocks(path: Path) -> Iterator[bytes]:
    with opened(path) as file:
        while block := file.read(2**20):
            yield block


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
    """Write one data set that `dataset.load` reads, gzipped; equal content gives equal bytes.

    The folder appears atomically: a reader finds the old data set or the new one. With `overwrite`, files that are no
    part of a data set stay.

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
    ['items.jsonl.gz', 'sequences.jsonl.gz']
    """
    folder = Path(folder)
    check_output(folder, overwrite)
    with fresh_folder(folder) as new:
        if folder.is_dir():  # the files of others; links stay links, also to nowhere
            shutil.copytree(folder, new, symlinks=True, ignore=partial(_ours, folder), dirs_exist_ok=True)
        _write_records(new / "items.jsonl.gz", items)
        if sequences is not None:
            _write_records(new / "sequences.jsonl.gz", _history_records(sequences, timestamps))
        if queries is not None:
            _write_records(new / "queries.jsonl.gz", queries)


def _ours(folder: Path, path: str, names: list[str]) -> list[str]:
    """The files of the data set among the names in a folder, which are not copied."""
    return [name for name in names if Path(path) == folder and DATA_FILE.fullmatch(name)]


def check_output(folder: str | Path, overwrite: bool = False) -> None:
    """Raise ValueError if a folder cannot be written to: a file, the current folder, one not empty without `overwrite`.

    >>> check_output("a/folder/that/is/new")
    """
    folder = Path(folder)
    check_replaceable(folder)
    if folder.is_dir() and not overwrite and any(folder.iterdir()):
        raise ValueError(f"{folder} is not empty, expected an empty or new folder (or overwrite)")


def _history_records(sequences: Iterable[tuple], timestamps: Iterable[tuple] | None) -> Iterator[dict]:
    """The records of `sequences.jsonl`."""
    pairs = ((user, None) for user in sequences) if timestamps is None else zip(sequences, timestamps, strict=True)
    for (user_id, item_ids), times in pairs:
        if not isinstance(user_id, str) or readers.is_nothing(user_id):
            raise ValueError(f"user id {shown(user_id)}, expected text")
        record = {"user_id": user_id, "item_ids": list(item_ids)}
        yield record if times is None else record | {"timestamps": list(times[1])}


def _write_records(path: Path, records: Iterable[dict]) -> None:
    n_lines, line_of = 0, json.JSONEncoder(ensure_ascii=False, allow_nan=False).encode
    # no name and no time of writing, which would change the bytes
    with path.open("wb") as raw, gzip.GzipFile("", "wb", compresslevel=6, fileobj=raw, mtime=0) as file:
        try:
            for record in records:
                file.write(line_of(record).encode() + b"\n")
                n_lines += 1
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path.name}, line {n_lines + 1} cannot be written: {error}") from error
    if not n_lines:
        raise ValueError(f"no records for {path.name}, expected at least one (or None)")
