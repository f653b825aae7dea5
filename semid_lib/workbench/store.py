"""Named artefacts with their provenance, and result rows: the only way chapters pass things on.

One folder per data set and scale, `artefacts/<data>/<scale>/`, holds everything that a run wrote; `folder_name` gives
the name of a data set's folder, here and everywhere else. An artefact is one safetensors file with arrays and, in its
header, their provenance: data, commit, seed, and a digest of each artefact that was loaded before. Loading an artefact
that was made from other data, or from an artefact that has changed since, is an error.
"""

import hashlib
import json
import os
import platform
import re
import subprocess
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from semid_lib.workbench import remote, text
from semid_lib.workbench.atomic import check_files, check_names, fresh_file, read_json, reported, sha256, write_json
from semid_lib.workbench.weights import DTYPES, header_of, mapped, save_weights

__all__ = ["check_files", "check_names", "sha256", "write_json"]  # callers know them from here
_REPOSITORY = Path(__file__).resolve().parents[2]
RUN = "SEMID_RUN"  # environment variable: what `chapters.run` tells the kernel of a chapter, as JSON


def default_root() -> Path:
    """`SEMID_ARTEFACTS` if set; else `artefacts` in the repository, or in the working folder without one.

    Of an address, such as "s3://bucket/runs", the copy on this machine.
    """
    if named := os.environ.get("SEMID_ARTEFACTS"):
        return remote.local(named)
    return (_REPOSITORY if (_REPOSITORY / "pyproject.toml").is_file() else Path.cwd()) / "artefacts"


def data_name(data: str | Path) -> str:
    """The name of a data set, as it is in the keys of rows: "demo", or that of its folder.

    A folder that is called demo is "demo_folder", so that it is never taken for the demo shop.

    >>> data_name("demo"), data_name("data/beauty/"), data_name("s3://bucket/shop"), data_name("./demo")
    ('demo', 'beauty', 'shop', 'demo_folder')
    """
    if data == "demo":
        return "demo"
    name = remote.local(data).resolve().name
    return "demo_folder" if name == "demo" else name


def folder_name(data: str, fingerprint: str) -> str:
    """The name of the folder that holds the artefacts of a data set: readable, unique, and safe in a shell and in make.

    It follows the content: two folders of one name have artefacts of their own, and data that were moved or copied
    find theirs again. After an edit of the data there is a new folder; the old one may be deleted.

    Parameters
    ----------
    data : str
        The data set's name (`data_name`).
    fingerprint : str
        Of the data's content (`folder.fingerprint`); "" for rows that belong to no data set, such as those of a bench.

    Examples
    --------
    >>> folder_name("my shop & co", "1a2b3c4d5e6f"), folder_name("demo", "9f8e7d6c"), folder_name("random", "")
    ('my_shop_co-1a2b3c4d', 'demo', 'random')
    """
    if data == "demo" or not fingerprint:
        return data
    plain = re.sub(r"[^\w.-]+", "_", text.normal(data))[:60].strip("._-")
    return f"{plain or 'data'}-{fingerprint[:8]}"


@dataclass(frozen=True, eq=False)
class Artefact:
    """Arrays, read as `artefact["name"]`, and the facts that were saved with them.

    The arrays are mapped from the file: what nobody looks at is not read, and what is changed in one changes in this
    process alone, never in the file.
    """

    arrays: dict[str, np.ndarray]
    facts: dict[str, Any]

    def __getitem__(self, name: str) -> np.ndarray:
        return self.arrays[name]


class Store:
    """The artefacts and rows of one data set at one scale.

    data: the data set's name. fingerprint: of its content (`data.Dataset.fingerprint`); artefacts of another content
    are refused. root: by default `SEMID_ARTEFACTS` or `default_root()`.

    What is loaded from a store counts as a parent of all that is saved in it later: `provenance` names both.

    A root at "s3://bucket/folder" has a copy on this machine, in which `folder` lies: artefacts and rows are brought
    there when they are asked for and sent when they are written, and what stands at `path` by `bring` and `send`.
    """

    def __init__(self, data: str, scale: str, fingerprint: str, root: str | Path | None = None):
        self.data, self.scale, self.fingerprint = data, scale, fingerprint
        root = root or os.environ.get("SEMID_ARTEFACTS") or default_root()
        name = folder_name(data, fingerprint)
        self.folder = remote.local(root) / name / scale
        self._place = f"{root.rstrip('/')}/{name}/{scale}" if remote.is_remote(root) else None
        self._parents: dict[str, str] = {}  # digests of the artefacts that were loaded

    def save(self, name: str, arrays: Mapping[str, np.ndarray], **facts) -> Path:
        """Write arrays of numbers, and facts (JSON) about them, under a name; whole or not at all.

        Raises ValueError for an array that holds something else than numbers.
        """
        for key, array in arrays.items():
            if np.asarray(array).dtype.kind not in "biuf":
                raise ValueError(f"array {key!r} of artefact {name!r} is {np.asarray(array).dtype}, expected numbers")
        # safetensors writes the memory of an array as it lies, so it must lie in order
        ordered = {key: np.asarray(array, order="C") for key, array in arrays.items()}
        digest = _digest(facts)
        for key in sorted(ordered):
            _add(digest, key, ordered[key])
        target = self._file(name)
        with reported(target):
            save_weights(target, ordered, _header(facts, self._origin(name), digest))
        self.send(target.name)
        return target

    def save_batches(self, name: str, key: str, batches: Iterable[np.ndarray], **facts) -> Path:
        """`save` one array whose rows come in batches, of which one at a time is in memory; whole or not at all.

        batches: (n, ...) arrays of one dtype and one shape of a row, at least one. Raises ValueError for another one,
        and for an array that holds something else than numbers.

        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as root:
        ...     shelf = Store("shop", "smoke", "", root)
        ...     path = shelf.save_batches("things", "squares", (np.arange(n, n + 2) ** 2 for n in (0, 2)))
        ...     shelf.load("things")["squares"]
        array([0, 1, 4, 9])
        """
        target, digest, origin = self._file(name), _digest(facts), self._origin(name)
        with reported(target), fresh_file(target) as partial, open(partial, "wb") as file:
            row, n_rows, n_header = None, 0, 0
            for batch in map(np.asarray, batches):
                if row is None:
                    row = batch[:0]
                    if row.dtype not in DTYPES.values():
                        raise ValueError(f"array {key!r} of artefact {name!r} is {row.dtype}, expected numbers")
                    # how many rows there are is known last, and no number of rows is longer than this one
                    n_header = len(header_of(key, row, 10**18, _header(facts, origin, digest)))
                    file.seek(n_header)
                if batch.dtype != row.dtype or batch.shape[1:] != row.shape[1:]:
                    found, expected = f"{batch.dtype} {batch.shape[1:]}", f"{row.dtype} {row.shape[1:]}"
                    raise ValueError(f"from row {n_rows} on rows of {key!r} are {found}, expected {expected}")
                in_order = np.ascontiguousarray(batch)
                file.write(in_order.data)
                _add(digest, key, in_order)
                n_rows += len(batch)
            if row is None:
                raise ValueError(f"no rows for {key!r} of artefact {name!r}, expected at least one batch")
            file.seek(0)
            file.write(header_of(key, row, n_rows, _header(facts, origin, digest), n_header))
        self.send(target.name)
        return target

    def _origin(self, name: str) -> dict[str, Any]:
        """The provenance of an artefact, of which an older one of the same name is no parent."""
        origin = self.provenance()
        origin["parents"].pop(name, None)
        return origin

    def has(self, name: str) -> bool:
        """Whether a chapter has written this artefact."""
        file = self._file(name)
        return file.is_file() if self._place is None else remote.exists(f"{self._place}/{file.name}")

    def load(self, name: str) -> Artefact:
        """Read an artefact.

        Raises
        ------
        FileNotFoundError
            If no chapter has written it.
        ValueError
            If it is damaged, was made from other data, or from an artefact that has changed since; see `check`.
        """
        path = self._file(name)
        if not self.has(name):
            where = f"{self._place or self.folder}/{path.name}"
            raise FileNotFoundError(
                f"{where} is not there: run the chapter that writes {name!r} with the same DATA and SCALE first"
            )
        with _readable(path):
            arrays, metadata = mapped(self.bring(path.name))
            artefact = Artefact(arrays, json.loads(metadata["facts"]))
            origin = dict(artefact.facts["provenance"])
        self.check(origin, path)
        self._parents[name] = origin.get("digest", "")
        return artefact

    def check(self, origin: Mapping[str, Any], path: Path) -> None:
        """Refuse what does not belong to the data and artefacts of this store.

        Parameters
        ----------
        origin : mapping
            What `provenance` returned when it was written.
        path : Path
            Where it is, for the message.

        Raises
        ------
        ValueError
            If it was made from other data, or from an artefact (or, in turn, an artefact of that) that has changed.
        """
        waiting, seen = [(origin, path)], set()
        while waiting:
            origin, path = waiting.pop()
            again = f"run {origin.get('chapter') or 'the chapter that writes it'} again"
            if (found := origin.get("fingerprint", "")) != self.fingerprint:
                raise ValueError(
                    f"{path} was made from other data (fingerprint {found[:12]}, expected {self.fingerprint[:12]}): "
                    f"{again}"
                )
            for name, digest in origin.get("parents", {}).items():
                now = self.origin_of(name)
                if now and now.get("digest") != digest:
                    raise ValueError(
                        f"{path} is out of date: it was made from {name!r} with digest {digest}, which has digest "
                        f"{now.get('digest')} now: {again}"
                    )
                if now and name not in seen:
                    seen.add(name)
                    waiting.append((now, self._file(name)))

    def checked(self, name: str) -> Path:
        """The folder of a model, such as a Recommender. Raises ValueError as `check` does, if it names a provenance."""
        if origin := self.origin_of(name):
            self.check(origin, self.path(name))
        return self.path(name)

    def origin_of(self, name: str) -> dict[str, Any]:
        """The provenance of an artefact or of a model's folder, as it is on this machine; empty without one.

        The digest of a model is that of the checksums of its files.
        """
        if self._file(name).is_file():
            with _readable(self._file(name)), safe_open(self._file(name), framework="numpy") as file:
                return json.loads((file.metadata() or {}).get("facts", "{}")).get("provenance", {})
        config = self.path(name) / "config.json"
        known = read_json(config, dict) if config.is_file() else {}
        if not known.get("provenance"):
            return {}
        sums = json.dumps(known.get("sha256"), sort_keys=True)
        return known["provenance"] | {"digest": hashlib.sha256(sums.encode()).hexdigest()[:16]}

    def _file(self, name: str) -> Path:
        return self.folder / f"{name}.safetensors"

    def path(self, name: str) -> Path:
        """A folder for what writes itself, such as a Recommender."""
        return self.folder / name

    def bring(self, name: str = "") -> Path:
        """`path`, with what is there in the store where the root is an address. Raises as `places.fetch` does."""
        if self._place is not None:
            remote.fetch(f"{self._place}/{name}".rstrip("/"))
        return self.folder / name

    def send(self, name: str = "") -> None:
        """Send what has changed at `path`, or in the whole folder, where the root is an address."""
        if self._place is not None:
            remote.send(f"{self._place}/{name}".rstrip("/"))

    def cache(self, name: str) -> Path:
        """A folder shared by all data sets and scales, for what is keyed by its own content."""
        return self.folder.parent.parent / "cache" / name

    def origin(self) -> str:
        """One line for the top of a page: data, scale, commit and machine of this run."""
        facts = self.provenance()
        changed = ", changed" if facts["dirty"] else ""
        return (
            f"{self.data}, {self.scale}; {facts['commit'][:8] or 'no commit'}{changed}; "
            f"{facts['hardware']}; {facts['written'][:10]}"
        )

    def provenance(self) -> dict[str, Any]:
        """Where something written now comes from: data, commit, machine, chapter, seed, and digests of its parents.

        chapter and seed are those of the run (`chapters.run`); None in a notebook that was opened by hand.
        """
        run = _run()
        return {
            "data": self.data,
            "fingerprint": self.fingerprint,
            "scale": self.scale,
            **commit(),
            "hardware": hardware(),
            "written": datetime.now(UTC).isoformat(timespec="seconds"),
            "chapter": run.get("chapter"),
            "seed": run.get("seed"),
            "parents": dict(self._parents),
        }

    def record(self, chapter: str, rows: list[dict[str, Any]]) -> Path:
        """Keep the result rows of a chapter, replacing those of its last run.

        Each row needs `key` (such as "next_item/item_knn/recall@10") and `value`; `ci95`, `n`, `seed` and `seconds`
        are the usual others. Provenance is added here, and the data set's name goes into the key.

        In a run of the chapter (`chapters.run`) they replace the old rows when the run has succeeded: of a run that
        fails, no rows are kept.
        """
        for row in rows:
            if not {"key", "value"} <= row.keys():
                raise ValueError(f"row {row} has no key or no value")
        origin, run = self.provenance() | {"chapter": chapter}, _run()
        seed = {"seed": origin.pop("seed")}
        complete = [
            {**({} if "seeds" in row else seed), **row, "key": _with_data(row["key"], self.data), **origin}
            for row in rows
        ]
        path = self.folder / "rows" / f"{chapter}.json"
        if run.get("chapter") == chapter:
            path = pending_rows(path, run["id"])
        write_json(path, complete)
        self.send(f"rows/{path.name}")
        return path

    def rows(self) -> list[dict[str, Any]]:
        """All result rows, in the order of the chapters."""
        if self._place is not None and remote.exists(f"{self._place}/rows"):
            self.bring("rows")
        files = sorted((self.folder / "rows").glob("[!.]*.json"))
        return [row for file in files for row in read_json(file, list)]


def _with_data(key: str, data: str) -> str:
    topic, _, rest = key.partition("/")
    return f"{topic}/{data}/{rest}"


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """One sentence where an artefact is damaged, or a file that is none."""
    try:
        yield
    except (SafetensorError, LookupError, TypeError, AttributeError, json.JSONDecodeError) as error:
        raise ValueError(
            f"{path} is damaged, or no artefact ({error!r}): delete it and run the chapter that writes it again"
        ) from error


def pending_rows(path: Path, run: str) -> Path:
    """Where the rows of a run wait for its end."""
    return path.with_name(f".{path.stem}.{run}.partial")


def _run() -> dict[str, Any]:
    """The run of a chapter that this process belongs to; empty outside one."""
    return json.loads(os.environ.get(RUN) or "{}")


def _digest(facts: Mapping[str, Any]) -> "hashlib._Hash":
    """A checksum of an artefact's content, to which `_add` adds arrays; it does not depend on place and time."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True, allow_nan=False).encode())


def _add(digest: "hashlib._Hash", key: str, array: np.ndarray) -> None:
    digest.update(f"{key} {array.dtype.str} {array.shape}".encode())
    digest.update(array.reshape(-1).view(np.uint8).data)


def _header(facts: Mapping[str, Any], origin: Mapping[str, Any], digest: "hashlib._Hash") -> dict[str, str]:
    """An artefact's metadata; of one length, whatever the digest is."""
    return {"facts": json.dumps({**facts, "provenance": {**origin, "digest": digest.hexdigest()[:16]}})}


@cache
def hardware() -> str:
    """The machine in words: processors, memory, accelerator; no host name.

    >>> "GiB" in hardware()
    True
    """
    import torch  # rows of pure NumPy work need not wait for it

    pages = os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 0  # Windows does not say
    gib = pages and pages * os.sysconf("SC_PAGE_SIZE") / 2**30
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return f"{os.cpu_count()} x {_processor()}, {gib:.0f} GiB, {', '.join(gpus) or 'no GPU'}"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        name = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
        return name.replace("(R)", "").replace("(TM)", "")
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def commit() -> dict[str, Any]:
    """The commit that this code runs at and whether the working tree differs from it; empty outside a git checkout.

    Where the code was sent without its repository, the environment variable SEMID_COMMIT may name it, with a + behind
    it if the tree differed.
    """
    if name := os.environ.get("SEMID_COMMIT"):
        return {"commit": name.rstrip("+"), "dirty": name.endswith("+")}

    def git(*words):
        return subprocess.run(["git", "-C", _REPOSITORY, *words], capture_output=True, text=True, check=True).stdout

    try:
        # dvc.lock says what DVC has run, and is written between two chapters
        dirty = bool(git("status", "--porcelain", "--", ":/", ":(top,exclude)dvc.lock").strip())
        return {"commit": git("rev-parse", "HEAD").strip(), "dirty": dirty}
    except (OSError, subprocess.CalledProcessError):
        return {"commit": "", "dirty": True}


class Clock:
    """Seconds since it was made, for rows and status lines.

    >>> Clock().seconds >= 0
    True
    """

    def __init__(self):
        self.started = time.perf_counter()

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self.started
