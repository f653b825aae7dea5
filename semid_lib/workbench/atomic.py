"""Files and folders that are replaced atomically: readers find the old content or the new one, also after a kill.

Each is written next to its target under a temporary name of its own, flushed, and renamed. Two writers do not mix, and
folders left by a killed writer are removed by the next one. Checksums and JSON files are here, too.
"""

import contextlib
import ctypes
import fcntl
import glob
import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Any

_PARTIAL, _ASIDE = ".partial", ".aside"
_UNIMPORTANT = re.compile(r"\.DS_Store|Thumbs\.db|\..+\.(?:lock|note|partial)")  # of `places`, for example
_EXCHANGE, _HERE = 2, -100  # RENAME_EXCHANGE and AT_FDCWD of Linux


@contextlib.contextmanager
def fresh_file(target: str | Path) -> Iterator[Path]:
    """A temporary name to write a file under; it replaces `target` at the end of the block.

    The folder of `target` is made if it does not exist.

    Examples
    --------
    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     with fresh_file(f"{folder}/facts.json") as partial:
    ...         size = partial.write_text("{}")
    ...     [path.name for path in Path(folder).iterdir()]
    ['facts.json']
    """
    target = Path(os.path.realpath(target))
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = _beside(target, _PARTIAL)
    partial.touch()
    mode = partial.stat().st_mode
    partial.unlink()
    try:
        with reported(target):
            yield partial
        partial.chmod(mode)  # as the umask says; safetensors writes a file for its owner alone
        _flush(partial)
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)


@contextlib.contextmanager
def fresh_folder(target: str | Path) -> Iterator[Path]:
    """An empty folder to write into; it replaces `target` at the end of the block.

    The old folder is removed with all it holds, so check it first (`check_only`). On Linux both change places in one
    step. Elsewhere the old one is renamed first; readers call `settled` in case of a kill in between.

    Raises
    ------
    ValueError
        As `check_replaceable`.
    OSError
        If something cannot be written; the old folder is unchanged.

    Examples
    --------
    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as root:
    ...     for name in ("old", "new"):
    ...         with fresh_folder(f"{root}/shop") as folder:
    ...             size = (folder / name).write_text("...")
    ...     [path.relative_to(root).as_posix() for path in Path(root).rglob("*")]
    ['shop', 'shop/new']
    """
    target = settled(os.path.realpath(target))
    check_replaceable(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    fresh = _beside(target, _PARTIAL)
    with contextlib.ExitStack() as stack:
        with _locked(target.parent):
            for left in [*_left_by(target, _PARTIAL), *_left_by(target, _ASIDE)]:
                with contextlib.suppress(OSError), _locked(left, fcntl.LOCK_NB):
                    shutil.rmtree(left)
            fresh.mkdir()
            stack.enter_context(_locked(fresh))  # while this process lives, so that it is no leftover
        stack.callback(shutil.rmtree, fresh, ignore_errors=True)
        with reported(target):
            yield fresh
        for path in [path for path in [*fresh.rglob("*"), fresh] if not path.is_symlink()]:
            if path.is_file():
                path.chmod(fresh.stat().st_mode & 0o666 | path.stat().st_mode & 0o111)  # scripts stay executable
            _flush(path)
        _swap(fresh, target)
        _flush(target.parent)


def check_replaceable(folder: str | Path) -> None:
    """Refuse a folder that `fresh_folder` cannot replace, before anything is written.

    Raises ValueError for a file, the current folder or one that holds it, and a mount point.
    """
    target = Path(os.path.realpath(folder))
    if target.exists() and not target.is_dir():
        raise ValueError(f"{folder} is a file, expected a folder")
    if target.is_mount() or Path.cwd().is_relative_to(target):
        raise ValueError(f"{folder} cannot be replaced as a whole: give the name of a folder inside it, or another one")


def check_only(folder: str | Path, names: Collection[str]) -> None:
    """Refuse to replace a folder with other files than `names`; hidden files of ours and of systems do not count.

    Raises ValueError that names the first of them.
    """
    for path in sorted(Path(folder).iterdir()) if Path(folder).is_dir() else []:
        if path.name not in names and not (path.is_file() and _UNIMPORTANT.fullmatch(path.name)):
            raise ValueError(
                f"{folder} holds {path.name!r}, expected only {', '.join(names)}: the folder is replaced as a whole, "
                "so give another one"
            )


def settled(target: str | Path) -> Path:
    """The folder as a path; if a kill came between two renames of `fresh_folder`, the old one is restored."""
    target = Path(target)
    if not target.exists():
        for old in _left_by(target, _ASIDE):
            with contextlib.suppress(OSError):  # another reader was first
                old.rename(target)
    return target


def check_files(folder: Path, sums: dict[str, str], names: Iterable[str] = ()) -> None:
    """Compare the files of a folder with checksums by name; `names` must be among them.

    Raises ValueError that names the first file that is missing, differs, or is outside the folder (`check_names`).
    """
    check_names([*names, *sums], folder)
    for name in dict.fromkeys([*names, *sums]):
        if not (folder / name).is_file():
            raise ValueError(f"{folder / name} is missing")
        if sha256(folder / name) != sums.get(name):
            raise ValueError(f"{folder / name} is not the file that was saved in this folder: its checksum differs")


def check_names(names: Iterable[str], where: str | Path) -> None:
    """Refuse names, read from a file, that are not plain paths inside a folder, such as "llm/model.safetensors".

    >>> check_names(["model.safetensors", "../model.safetensors"], "here")
    Traceback (most recent call last):
        ...
    ValueError: here lists '../model.safetensors', expected paths of plain names inside the folder
    """
    for name in names:
        if not all(re.fullmatch(r"\w[\w.-]*", part) for part in name.split("/")):
            raise ValueError(f"{where} lists {name!r}, expected paths of plain names inside the folder")


def sha256(file: str | Path) -> str:
    """The checksum of a file, in hexadecimal. Raises OSError if it cannot be read."""
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def read_json(path: Path, kind: type) -> Any:
    """What `write_json` wrote: a dict or a list. Raises ValueError naming the file if it is damaged."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(found, kind):
            raise ValueError(f"it holds a {type(found).__name__}, expected a {kind.__name__}")
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged ({error}): delete it, and make it again") from error
    return found


def write_json(path: Path, content) -> None:
    """Write JSON atomically; NaN raises ValueError, since it is no JSON."""
    with fresh_file(path) as partial:
        partial.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")


@contextlib.contextmanager
def reported(target: Path) -> Iterator[None]:
    """Turn an OSError that names no file, such as that of a full disk, into one sentence about this one."""
    try:
        yield
    except OSError as error:
        if type(error) is not OSError or error.filename is not None:
            raise
        sentence = OSError(f"{target} was not written; what was there before is unchanged ({error})")
        sentence.errno = error.errno
        raise sentence from error


def _swap(fresh: Path, target: Path) -> None:
    """Put the new folder in its place; what was there is then at `fresh`, or nowhere."""
    with contextlib.suppress(OSError):
        fresh.rename(target)  # where there is nothing, or an empty folder
        return
    if not _exchange(fresh, target):
        aside = _beside(target, _ASIDE)
        target.rename(aside)
        fresh.rename(target)
        aside.rename(fresh)


def _exchange(one: Path, other: Path) -> bool:
    """Let two folders change names in one step; False where the system or the file system cannot."""
    rename = getattr(ctypes.CDLL(None), "renameat2", None)
    return rename is not None and rename(_HERE, os.fsencode(one), _HERE, os.fsencode(other), _EXCHANGE) == 0


@contextlib.contextmanager
def _locked(folder: Path, how: int = 0) -> Iterator[None]:
    """Hold a folder's lock, which ends with the process. Raises OSError only if it shall not wait (LOCK_NB)."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | how)
        except OSError:  # taken, or a file system without locks
            if how:
                raise
        yield
    finally:
        os.close(handle)


def _left_by(target: Path, suffix: str) -> list[Path]:
    return [path for path in target.parent.glob(f".{glob.escape(target.name)}.????????{suffix}") if path.is_dir()]


def _beside(target: Path, suffix: str) -> Path:
    return target.with_name(f".{target.name}.{secrets.token_hex(4)}{suffix}")


def _flush(path: Path) -> None:
    """Have a file or folder written to the disk before it is renamed."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
