"""Artefacts with their provenance, and result rows: chapters exchange files only through a store.

`artefacts/<data>/<scale>/` holds all that a run wrote. An artefact is a safetensors file of arrays; its header has
their provenance: data, commit, seed and a digest of each artefact that was loaded before. Loading an artefact of other
data, or one made from an artefact that has changed since, is an error.
"""

import hashlib
import json
import os
import platform
import re
import subprocess
import tempfile
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
from semid_lib.workbench.atomic import check_files, check_names, read_json, reported, sha256, write_json
from semid_lib.workbench.weights import digest, mapped, save_weights

__all__ = ["check_files", "check_names", "sha256", "write_json"]  # callers know them from here
_REPOSITORY = Path(__file__).resolve().parents[2]
RUN = "SEMID_RUN"  # environment variable that describes a run to the kernel of its chapter, as JSON


def default_root() -> Path:
    """`SEMID_ARTEFACTS` (of an address, its local copy), else `artefacts` in the repository or the working folder."""
    if named := os.environ.get("SEMID_ARTEFACTS"):
        return remote.local(named)
    return (_REPOSITORY if (_REPOSITORY / "pyproject.toml").is_file() else Path.cwd()) / "artefacts"


def data_name(data: str | Path) -> str:
    """The name of a data set in the keys of rows: "demo", or that of its folder ("demo_folder" if it is called demo).

    >>> data_name("demo"), data_name("data/beauty/"), data_name("s3://bucket/shop"), data_name("./demo")
    ('demo', 'beauty', 'shop', 'demo_folder')
    """
    if data == "demo":
        return "demo"
    name = remote.local(data).resolve().name
    return "demo_folder" if name == "demo" else name


def folder_name(data: str, fingerprint: str) -> str:
    """The name of the folder with the artefacts of a data set: readable, unique, and safe in a shell and in make.

    It follows the content: folders of one name have separate artefacts, and moved or copied data find theirs again.
    The fingerprint is "" for rows that belong to no data set, such as those of a benchmark.

    >>> folder_name("my shop & co", "1a2b3c4d5e6f"), folder_name("demo", "9f8e7d6c"), folder_name("random", "")
    ('my_shop_co-1a2b3c4d', 'demo', 'random')
    """
    if data == "demo" or not fingerprint:
        return data
    plain = re.sub(r"[^\w.-]+", "_", text.normal(data))[:60].strip("._-")
    return f"{plain or 'data'}-{fingerprint[:8]}"


@dataclass(frozen=True, eq=False)
class Artefact:
    """Arrays, read as `artefact["name"]`, and the facts saved with them.

    The arrays are memory-mapped. A change to one stays in this process.
    """

    arrays: dict[str, np.ndarray]
    facts: dict[str, Any]

    def __getitem__(self, name: str) -> np.ndarray:
        return self.arrays[name]


class Store:
    """The artefacts and rows of one data set at one scale.

    Artefacts loaded from a store are parents of those saved in it later, see `provenance`. A root at
    "s3://bucket/folder" has a local copy at `folder`: artefacts and rows are fetched when read and sent when written.

    Parameters
    ----------
    data, scale : str
    fingerprint : str
        Of the data's content; artefacts of other content are refused.
    root : str or Path, optional
        By default `SEMID_ARTEFACTS` or `default_root()`.
    """

    def __init__(self, data: str, scale: str, fingerprint: str, root: str | Path | None = None):
        self.data, self.scale, self.fingerprint = data, scale, fingerprint
        root = str(root or os.environ.get("SEMID_ARTEFACTS") or default_root()).rstrip("/")
        self._place = f"{root}/{folder_name(data, fingerprint)}/{scale}"
        self.folder = remote.local(self._place)
        self._parents: dict[str, str] = {}  # digests of the artefacts that were loaded

    def save(self, name: str, arrays: Mapping[str, np.ndarray], **facts) -> Path:
        """Write arrays of numbers, and facts (JSON) about them, atomically; others raise ValueError."""
        # safetensors writes the memory of an array as it lies, so it must lie in order
        ordered = {key: np.asarray(arrays[key], order="C") for key in sorted(arrays)}
        for key, array in ordered.items():
            if array.dtype.kind not in "biuf":
                raise ValueError(f"array {key!r} of artefact {name!r} is {array.dtype}, expected numbers")
        origin = self.provenance() | {"digest": digest([json.dumps(facts, sort_keys=True, allow_nan=False), ordered])}
        origin["parents"].pop(name, None)  # an older one of the same name
        target = self._file(name)
        save_weights(target, ordered, {"facts": json.dumps({**facts, "provenance": origin})})
        self.send(target.name)
        return target

    def save_batches(self, name: str, key: str, batches: Iterable[np.ndarray], **facts) -> Path:
        """`save` one array whose rows come in batches; one batch at a time is in memory.

        The batches are (n, ...) arrays of one dtype and row shape, with at least one row; others raise ValueError.

        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as root:
        ...     shelf = Store("shop", "smoke", "", root)
        ...     path = shelf.save_batches("things", "squares", (np.arange(n, n + 2) ** 2 for n in (0, 2)))
        ...     shelf.load("things")["squares"]
        array([0, 1, 4, 9])
        """
        row, n_rows = np.empty(0), 0
        self.folder.mkdir(parents=True, exist_ok=True)
        with reported(self._file(name)), tempfile.TemporaryFile(dir=self.folder) as file:
            for batch in map(np.ascontiguousarray, batches):
                row = row if n_rows else batch[:0]
                if (batch.dtype, batch.shape[1:]) != (row.dtype, row.shape[1:]):
                    found, expected = f"{batch.dtype} {batch.shape[1:]}", f"{row.dtype} {row.shape[1:]}"
                    raise ValueError(f"from row {n_rows} on rows of {key!r} are {found}, expected {expected}")
                file.write(batch.data)
                n_rows += len(batch)
            if not n_rows:
                raise ValueError(f"no rows for {key!r} of artefact {name!r}, expected at least one")
            file.flush()
            rows = np.memmap(file, row.dtype, "r", shape=(n_rows, *row.shape[1:]))
            return self.save(name, {key: np.asarray(rows)}, **facts)

    def has(self, name: str) -> bool:
        """Whether this artefact exists."""
        return remote.exists(f"{self._place}/{self._file(name).name}")

    def load(self, name: str) -> Artefact:
        """Load an artefact; its arrays are memory-mapped.

        Raises
        ------
        FileNotFoundError
            If it does not exist.
        ValueError
            If it is damaged, or `check` refuses it.
        """
        path = self._file(name)
        if not self.has(name):
            do = f"run the chapter that writes {name!r} with the same DATA and SCALE first"
            raise FileNotFoundError(f"{self._place}/{path.name} is missing: {do}")
        with _readable(path):
            arrays, metadata = mapped(remote.fetch(f"{self._place}/{path.name}"))
            artefact = Artefact(arrays, json.loads(metadata["facts"]))
            origin = dict(artefact.facts["provenance"])
        self.check(origin, path)
        self._parents[name] = origin.get("digest", "")
        return artefact

    def check(self, origin: Mapping[str, Any], path: Path) -> None:
        """Raise ValueError for what was made from other data, or from an artefact (at any depth) that changed since.

        `origin` is what `provenance` returned when it was written; `path` is for the message.
        """
        waiting, seen = [(origin, path)], set()
        while waiting:
            origin, path = waiting.pop()
            again = f"run {origin.get('chapter') or 'the chapter that writes it'} again"
            if (found := origin.get("fingerprint", "")) != self.fingerprint:
                other = f"fingerprint {found[:12]}, expected {self.fingerprint[:12]}"
                raise ValueError(f"{path} was made from other data ({other}): {again}")
            for name, made_of in origin.get("parents", {}).items():
                now = self.origin_of(name)
                if now and now.get("digest") != made_of:
                    changed = f"digest {made_of}, which has digest {now.get('digest')} now"
                    raise ValueError(f"{path} is out of date: it was made from {name!r} with {changed}: {again}")
                if now and name not in seen:
                    seen.add(name)
                    waiting.append((now, self._file(name)))

    def checked(self, name: str) -> Path:
        """The folder of a model, such as a Recommender. Raises ValueError as `check` does."""
        if origin := self.origin_of(name):
            self.check(origin, self.path(name))
        return self.path(name)

    def origin_of(self, name: str) -> dict[str, Any]:
        """The provenance of an artefact or of a model's folder on this machine; empty without one."""
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
        """A folder for what writes its own files, such as a Recommender."""
        return self.folder / name

    def send(self, name: str = "") -> None:
        """Send what has changed at `path`, or in the whole folder, where the root is an address."""
        remote.send(f"{self._place}/{name}".rstrip("/"))

    def cache(self, name: str) -> Path:
        """A folder shared by all data sets and scales, for what is keyed by its own content."""
        return self.folder.parent.parent / "cache" / name

    def origin(self) -> str:
        """One line for the top of a page: data, scale, commit and machine of this run."""
        facts = self.provenance()
        changed = ", changed" if facts["dirty"] else ""
        code = f"{facts['commit'][:8] or 'no commit'}{changed}"
        return f"{self.data}, {self.scale}; {code}; {facts['hardware']}; {facts['written'][:10]}"

    def provenance(self) -> dict[str, Any]:
        """The origin of what is written now: data, commit, machine, chapter, seed, and digests of its parents.

        Chapter and seed are None outside a run of `semid run`.
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
        """Save the result rows of a chapter in place of those of its last run.

        Each row needs `key` (such as "next_item/item_knn/recall@10") and `value`; `ci95`, `n`, `seed` and `seconds` are
        usual. Provenance and the data set's name are added here. A chapter run by `semid run` gets its rows when it
        has succeeded; a run that fails leaves none.
        """
        for row in rows:
            if not {"key", "value"} <= row.keys():
                raise ValueError(f"row {row} has no key or no value")
        origin, run = self.provenance() | {"chapter": chapter}, _run()
        seed = {"seed": origin.pop("seed")}
        complete = []
        for row in rows:
            topic, _, rest = row["key"].partition("/")
            key = {"key": f"{topic}/{self.data}/{rest}"}
            complete.append({**({} if "seeds" in row else seed), **row, **key, **origin})
        path = self.folder / "rows" / f"{chapter}.json"
        if run.get("chapter") == chapter:
            path = pending_rows(path, run["id"])
        write_json(path, complete)
        self.send(f"rows/{path.name}")
        return path

    def rows(self) -> list[dict[str, Any]]:
        """All result rows, in the order of the chapters."""
        if remote.exists(f"{self._place}/rows"):
            remote.fetch(f"{self._place}/rows")
        files = sorted((self.folder / "rows").glob("[!.]*.json"))
        return [row for file in files for row in read_json(file, list)]


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """One sentence where an artefact is damaged, or a file that is none."""
    try:
        yield
    except (SafetensorError, LookupError, TypeError, AttributeError, json.JSONDecodeError) as error:
        again = "delete it and run the chapter that writes it again"
        raise ValueError(f"{path} is damaged, or no artefact ({error!r}): {again}") from error


def pending_rows(path: Path, run: str) -> Path:
    """Where the rows of a run wait for its end."""
    return path.with_name(f".{path.stem}.{run}.partial")


def _run() -> dict[str, Any]:
    """The run of a chapter that this process belongs to; empty outside one."""
    return json.loads(os.environ.get(RUN) or "{}")


@cache
def hardware() -> str:
    """The machine in words: processors, memory, accelerator; no host name.

    >>> "GiB" in hardware()
    True
    """
    import torch  # rows of pure NumPy work need not wait for it

    gib = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return f"{os.cpu_count()} x {_processor()}, {gib:.0f} GiB, {', '.join(gpus) or 'no GPU'}"


def _processor() -> str:
    file = Path("/proc/cpuinfo")
    found = re.search(r"^model name\s*: *(.*)", file.read_text(encoding="utf-8"), re.M) if file.is_file() else None
    return re.sub(r"\((R|TM)\)", "", found[1]).strip() if found else platform.processor() or platform.machine()


def commit() -> dict[str, Any]:
    """The commit of this code, and whether the working tree differs from it; empty outside a git checkout.

    Without a repository, SEMID_COMMIT may name it, with a + if the tree differed.
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


class Timer:
    """Seconds since it was made, for rows and status lines.

    >>> Timer().seconds >= 0
    True
    """

    def __init__(self):
        self.started = time.perf_counter()

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self.started
