"""Folders and files at addresses such as `s3://bucket/folder`.

An address has a local copy below `SEMID_CACHE` (by default `~/.cache/semid-lib`). `fetch` brings there what has changed
in the store, `send` sends what has changed here. A file is replaced atomically on both sides.

pyarrow's file systems do all transfers. They read credentials, endpoint and region from the environment
(AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL, AWS_REGION, ...); none is an argument, part of an address, or written anywhere.
Errors are one sentence: ValueError for what has to be changed first, ConnectionError for what may pass on a retry.
"""

import contextlib
import errno
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from semid_lib.workbench import atomic

if TYPE_CHECKING:  # else imported where a place is asked: every module that has artefacts imports this one
    from pyarrow import fs

_REMOTE = re.compile(r"([a-z][a-z0-9+.-]*)://(.*)", re.DOTALL)
_REFUSED = r"ACCESS_DENIED|INVALID_ACCESS_KEY_ID|INVALID_CLIENT_TOKEN_ID|SIGNATURE_DOES_NOT_MATCH|HTTP status (401|403)"
_MISSING = r"NO_SUCH_BUCKET|NO_SUCH_KEY|RESOURCE_NOT_FOUND|HTTP status 404|Bucket '.*' not found"


def is_remote(where: str | Path) -> bool:
    """Whether it is an address outside this machine.

    >>> is_remote("s3://bucket/shop"), is_remote("data/shop")
    (True, False)
    """
    return isinstance(where, str) and _REMOTE.match(where) is not None


def local(where: str | Path) -> Path:
    """The path of its local copy, which need not exist; a path of this machine is returned as it is.

    Raises ValueError for an address with a key, a parameter, or a part that leads elsewhere.
    """
    address = _REMOTE.match(where) if isinstance(where, str) else None
    if address is None:
        return Path(where)
    scheme, path = address.groups()
    parts = path.rstrip("/").split("/")
    if re.search(r"[@?#]", path):
        raise ValueError(f"an address of {scheme} holds @, ? or #: credentials and endpoint belong in the environment")
    if any(part in ("", ".", "..") for part in parts):
        raise ValueError(f"{where} is no address, expected one like {scheme}://bucket/folder")
    cache = os.environ.get("SEMID_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "semid-lib"
    return Path(cache).expanduser().resolve().joinpath("places", scheme, *parts)


def exists(where: str) -> bool:
    """Whether this file or folder is there, in the store or on this machine. Raises as `fetch` does."""
    if not is_remote(where):
        return Path(where).exists()
    from pyarrow import fs

    system, path = _opened(where)
    with _plain_errors(where):
        return system.get_file_info(path).type != fs.FileType.NotFound


def fetch(where: str | Path) -> Path:
    """Update the local copy of a file or folder, and return its path; a path of this machine is returned as it is.

    Only changed files are downloaded. Files deleted in the store are deleted here if they came from there.

    Raises
    ------
    ValueError
        If there is nothing, or no right to see it.
    ConnectionError
        If the store cannot be reached, breaks off, or a file changes while it is read.
    """
    if not is_remote(where):
        return Path(where)
    from pyarrow import fs

    where = str(where)
    here, (system, path) = local(where), _opened(where)
    with _plain_errors(where):
        is_folder = system.get_file_info(path).type == fs.FileType.Directory
        names = set(_names(system, path)) if is_folder else {""}
        for name in sorted(names):
            if not (here / name).resolve().is_relative_to(here):
                raise ValueError(f"{where} lists {name!r}, expected names inside the folder")
            _download(system, f"{path}/{name}".rstrip("/"), here / name)
    for old in here.rglob("*") if is_folder else ():
        if old.is_file() and str(old.relative_to(here)) not in names and _noted(old):
            _note_of(old).unlink()
            old.unlink()
    return here


def send(where: str | Path, whole: bool = False) -> None:
    """Send the files of a local copy that are new or have changed, oldest first.

    So what was written last, such as a list of checksums, arrives last. A file that was deleted here is deleted there;
    in a folder only if `whole`, and at the end. Nothing happens for a path of this machine. Raises as `fetch` does.
    """
    if not is_remote(where):
        return
    from pyarrow import fs

    where = str(where)
    here, (system, path) = local(where), _opened(where)
    if not here.exists():
        with _plain_errors(where):
            if system.get_file_info(path).type == fs.FileType.File:
                system.delete_file(path)
        return
    files = [here] if here.is_file() else [file for file in here.rglob("*") if file.is_file()]
    for file in sorted(files, key=lambda file: file.stat().st_mtime_ns):
        state = _state(file)
        if (_noted(file) or {}).get("here") == state or file.suffix in (".partial", ".note", ".lock"):
            continue
        target = path if file == here else f"{path}/{file.relative_to(here).as_posix()}"
        with _plain_errors(where):
            fs.copy_files(str(file), target, fs.LocalFileSystem(), system)
            there = _seen(system, target)
        if there["size"] != state[0]:
            raise ConnectionError(f"{where}: of {file.name} {there['size']} bytes have arrived, expected {state[0]}")
        _note(file, there, state)
    with _plain_errors(where):
        for name in _names(system, path) if whole and here.is_dir() else ():
            if not (here / name).exists():
                system.delete_file(f"{path}/{name}")


def _names(system: "fs.FileSystem", path: str) -> Iterator[str]:
    """The files in a folder of the store, at any depth."""
    from pyarrow import fs

    for found in system.get_file_info(fs.FileSelector(path, recursive=True)):
        if found.type == fs.FileType.File:
            yield found.path[len(path) :].lstrip("/")


def _download(system: "fs.FileSystem", path: str, target: Path) -> None:
    from pyarrow import fs

    there, noted = _seen(system, path), _noted(target)
    if noted and noted["there"] == there and target.is_file() and _state(target) == noted["here"]:
        return
    with atomic.fresh_file(target) as partial:
        fs.copy_files(path, str(partial), system, fs.LocalFileSystem())
        if _seen(system, path) != there or partial.stat().st_size != there["size"]:
            raise ConnectionError(f"{path} has changed while it was read: try again")
        state = _state(partial)
    _note(target, there, state)


def _seen(system: "fs.FileSystem", path: str) -> dict[str, Any]:
    """What tells two contents of an object apart."""
    with system.open_input_file(path) as file:
        facts = file.metadata() or {}
        tag = next((value.decode() for name, value in facts.items() if name.lower() == "etag"), None)
        return {"size": file.size(), "tag": tag or str(system.get_file_info(path).mtime_ns)}


def _state(file: Path) -> list[int]:
    facts = file.stat()
    return [facts.st_size, facts.st_mtime_ns]


def _note_of(file: Path) -> Path:
    return file.with_name(f".{file.name}.note")


def _noted(file: Path) -> dict[str, Any] | None:
    """The state of the file, there and here, when both were last the same."""
    try:
        return json.loads(_note_of(file).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _note(file: Path, there: dict[str, Any], here: list[int]) -> None:
    with atomic.fresh_file(_note_of(file)) as partial:
        partial.write_text(json.dumps({"there": there, "here": here}), encoding="utf-8")


def _opened(where: str) -> tuple["fs.FileSystem", str]:
    import pyarrow as pa
    from pyarrow import fs

    local(where)  # it is an address
    with _plain_errors(where):
        try:
            return fs.FileSystem.from_uri(where.rstrip("/"))
        except pa.ArrowInvalid as error:
            raise ValueError(f"{where}: pyarrow knows no such kind of place, expected s3:// or another") from error


@contextlib.contextmanager
def _plain_errors(where: str) -> Iterator[None]:
    """Turn pyarrow's errors into one sentence about the address."""
    try:
        yield
    except ConnectionError:
        raise
    except OSError as error:
        if error.errno not in (None, errno.ENOENT):  # of this machine, such as a full disk
            raise
        text = str(error)
        if re.search(_REFUSED, text):
            raise ValueError(
                f"{where}: the store refuses this: expected credentials with a right to it in the environment, such as "
                "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
            ) from error
        if re.search(_MISSING, text) or isinstance(error, FileNotFoundError):
            raise ValueError(f"{where} is not there: the store has no such bucket or file") from error
        why = re.search(r"AWS Error \w+|curlCode: \d+, [^;]*", text)
        raise ConnectionError(
            f"{where}: the store cannot be reached, or broke off ({why[0] if why else type(error).__name__})"
        ) from error
