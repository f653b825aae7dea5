"""Run a chapter: from its source to an executed notebook, a log and rows; and know when it is out of date.

`artefacts/<data>/<scale>/executed/` has for each chapter `<chapter>.ipynb` if all of it ran, else
`<chapter>.failed.ipynb`; `<chapter>.log`, all output of its cells and the error; `<chapter>.json`, the facts of its
last run. `metrics/<chapter>.json` has the values of its rows, for `dvc metrics`. A run that fails leaves no rows.

A chapter is up to date if the digests of its source, the library, the data, its parameters and the chapters it needs
are those of its last run. Times of files do not count. `dvc.yaml` says which chapters it needs.
"""

import ast
import contextlib
import hashlib
import json
import logging
import os
import re
import time
import uuid
from collections.abc import Iterator, Mapping
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

from filelock import FileLock, Timeout

from semid_lib.chapters import tracking
from semid_lib.data.folder import open_store
from semid_lib.workbench import remote, store
from semid_lib.workbench import scale as scales

_LIBRARY = Path(__file__).resolve().parents[1]
NOTEBOOKS = _LIBRARY.parent / "notebooks"
_LOG = logging.getLogger("papermill")
_RUN_FOLDER = "artefacts/${name}/${scale}/"  # of a path in dvc.yaml


class FailedError(RuntimeError):
    """A chapter that failed; the message says where and why."""


class Stage(NamedTuple):
    """A chapter in `dvc.yaml`."""

    needs: list[str]  # chapters that write what it reads
    outputs: list[str]  # paths in the folder of a run


def names(notebooks: Path = NOTEBOOKS) -> list[str]:
    """The chapters, in order.

    >>> names()[0]
    '01_catalogue_and_embeddings'
    """
    return sorted(path.stem for path in notebooks.glob("[0-9]*.py"))


def stages(notebooks: Path = NOTEBOOKS) -> dict[str, Stage]:
    """What each chapter needs and writes, by the `dvc.yaml` beside the folder of notebooks.

    >>> stages()["02_semantic_ids"].needs
    ['01_catalogue_and_embeddings']
    """
    file = notebooks.parent / "dvc.yaml"
    listed = _stages(file.read_text(encoding="utf-8")) if file.is_file() else {}
    return {name: listed.get(name, Stage([], [])) for name in names(notebooks)}


@cache
def _stages(text: str) -> dict[str, Stage]:
    import yaml

    listed = yaml.safe_load(text)["stages"]
    outputs = {name: _paths(stage.get("outs", [])) for name, stage in listed.items()}
    writer = {path: name for name, paths in outputs.items() for path in paths}
    read = {name: _paths(stage.get("deps", [])) for name, stage in listed.items()}
    needs = {name: sorted({writer[path] for path in paths if path in writer}) for name, paths in read.items()}
    return {name: Stage(needs[name], outputs[name]) for name in listed}


def _paths(entries: list) -> list[str]:
    """Paths in the folder of a run, of entries that are paths or have options."""
    paths = [next(iter(entry)) if isinstance(entry, dict) else entry for entry in entries]
    return [path.removeprefix(_RUN_FOLDER) for path in paths if path.startswith(_RUN_FOLDER)]


def before(name: str, notebooks: Path = NOTEBOOKS) -> list[str]:
    """All chapters that must run before one, in order.

    >>> before("03_codebook_analysis")
    ['01_catalogue_and_embeddings', '02_semantic_ids']
    """
    direct = stages(notebooks)[name].needs
    return sorted({*direct, *(each for one in direct for each in before(one, notebooks))})


def in_order(notebooks: Path = NOTEBOOKS) -> list[str]:
    """The chapters, each after those that it needs.

    >>> names = in_order()
    >>> names.index("10_hybrid_ranker") < names.index("08_modal_deployment")
    True
    """
    graph = {name: stage.needs for name, stage in stages(notebooks).items()}
    return list(TopologicalSorter(graph).static_order())


def folder_of(data: str, scale: str, root: str | Path | None = None) -> Path:
    """The folder of executed chapters. data: "demo" or the folder of a data set."""
    return open_store(data, scale, root).path("executed").resolve()


def facts_of(name: str, folder: Path) -> dict[str, Any]:
    """The facts of a chapter's last run; empty if it has never been run."""
    file = folder / f"{name}.json"
    return store.read_json(file, dict) if file.is_file() else {}


def parameters_of(source: Path) -> dict[str, Any]:
    """The parameters of a chapter and their defaults.

    Raises
    ------
    ValueError
        If it does not have exactly one cell tagged parameters.
    """
    import jupytext

    tagged = [cell for cell in jupytext.read(source).cells if "parameters" in cell.metadata.get("tags", [])]
    if len(tagged) != 1:
        raise ValueError(f"{source} has {len(tagged)} cells tagged parameters, expected one")
    assignments = [node for node in ast.parse(tagged[0].source).body if isinstance(node, ast.Assign)]
    return {ast.unparse(node.targets[0]): ast.literal_eval(node.value) for node in assignments}


def check(source: Path, data: str, scale: str, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """The values for the parameters cell of a chapter.

    Raises
    ------
    ValueError
        For an unknown chapter, scale or parameter, and data that do not exist.
    """
    if not source.is_file():
        raise ValueError(f"no chapter {source.stem!r}, expected one of {', '.join(names(source.parent))}")
    scales.check(scale)
    if data != "demo" and not (remote.exists(data) if remote.is_remote(data) else Path(data).is_dir()):
        raise ValueError(f"DATA is {data!r}, expected demo or a folder")
    asked = {"DATA": data if data == "demo" or remote.is_remote(data) else str(Path(data).resolve()), "SCALE": scale}
    known = sorted(parameters_of(source).keys() - asked.keys())
    for name in sorted(parameters.keys() - known):
        expected = ", ".join(known) or "none"
        raise ValueError(f"{source.stem} takes no parameter {name!r} here, expected one of {expected}")
    return asked | dict(parameters)


# --- one run ---


def run(
    source: Path,
    data: str = "demo",
    scale: str = "laptop",
    parameters: Mapping[str, Any] | None = None,
    root: str | Path | None = None,
    group: str = "",
    progress: bool = False,
) -> dict[str, Any]:
    """Run a chapter in a kernel of its own.

    Parameters
    ----------
    source : Path
        Its file in py:percent; it runs in that folder.
    data, scale : str
    parameters : mapping, optional
        Besides DATA and SCALE.
    root : str or Path, optional
        Where its artefacts go; at an address such as "s3://bucket/runs" they are sent when the run has ended.
    group : str
        A name for runs that belong together.
    progress : bool
        Show a bar over the cells.

    Returns
    -------
    dict
        The facts of the run, also kept beside the notebook. `state` is "executed" or "failed"; a failed run has an
        `error` of one line.

    Raises
    ------
    ValueError
        As `check` does, and if another process runs the same.
    """
    asked = check(source, data, scale, parameters or {})
    root = root or os.environ.get("SEMID_ARTEFACTS") or store.default_root()
    shelf, name = open_store(data, scale, root), source.stem
    folder = shelf.path("executed").resolve()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / f".{name}.lock", timeout=0):  # it ends with the process
            facts = {
                "chapter": name,
                "state": "failed",
                "data": shelf.data,
                "scale": scale,
                "group": group,
                "parameters": parameters_of(source) | asked,
                "threads": os.environ.get("OMP_NUM_THREADS", ""),
                "made_from": made_from(source, shelf, parameters),
                **store.commit(),
            }
            artefacts = str(root if remote.is_remote(root) else folder.parents[2])
            return _run(source, shelf, facts, asked, artefacts, progress)
    except Timeout:
        message = f"{name}: another process runs it now, into {folder}: wait until it ends, or stop it"
        raise ValueError(message) from None


def _run(source: Path, shelf: store.Store, facts: dict, asked: dict, artefacts: str, progress: bool) -> dict[str, Any]:
    """`run`, when nothing else runs this chapter."""
    name, folder, run_id = source.stem, shelf.path("executed").resolve(), uuid.uuid4().hex
    rows_file, metrics_file = (folder.parent / part / f"{name}.json" for part in ("rows", "metrics"))
    for old in (rows_file, metrics_file, folder / f"{name}.json"):
        old.unlink(missing_ok=True)
        shelf.send(old.relative_to(folder.parent).as_posix())
    for left in rows_file.parent.glob(store.pending_rows(rows_file, "*").name):
        left.unlink()  # of a run that was killed
    timer, running = store.Timer(), folder / f"{name}.running.ipynb"
    waiting = store.pending_rows(rows_file, run_id)
    told = {"chapter": name, "id": run_id, "seed": facts["parameters"].get("SEED")}
    environment = {"SEMID_ARTEFACTS": artefacts, store.RUN: json.dumps(told)}
    try:
        with _logged(folder / f"{name}.log"), mock.patch.dict(os.environ, environment):
            facts |= _execute(source, running, asked, progress)
        rows = store.read_json(waiting, list) if waiting.is_file() else []
    finally:
        waiting.unlink(missing_ok=True)
        # however it ended, no notebook looks executed that is not
        notebook = folder / f"{name}{'' if facts['state'] == 'executed' else '.failed'}.ipynb"
        if running.exists():
            running.replace(notebook)
    origin = rows[0] if rows else {}
    facts |= {"seconds": round(timer.seconds, 1), "ended": round(time.time()), "wrote": _written(shelf, name)}
    facts |= {"rows": len(rows)} | {key: origin.get(key, "") for key in ("hardware", "fingerprint")}
    if facts["state"] == "executed":
        (folder / f"{name}.failed.ipynb").unlink(missing_ok=True)
        store.write_json(metrics_file, {row["key"]: row["value"] for row in rows})
        store.write_json(rows_file, rows)
    store.write_json(folder / f"{name}.json", facts)
    kept = [notebook, folder / f"{name}.log", rows_file]
    tracking.log_run(facts, rows, [file for file in kept if file.is_file()])
    shelf.send()
    return facts


def _execute(source: Path, running: Path, parameters: dict[str, Any], progress: bool) -> dict[str, Any]:
    """Convert and execute; papermill writes `running` after every cell. Returns state, error and the slowest cell."""
    import jupytext
    import nbformat
    import papermill

    notebook = jupytext.read(source)
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    jupytext.write(notebook, running)
    found = {"state": "executed"}
    try:
        papermill.execute_notebook(
            running, running, parameters, cwd=source.parent, progress_bar=progress, log_output=True, start_timeout=600,
            extra_arguments=["--IPKernelApp.log_level=CRITICAL"],  # else it logs its ports and its end
        )  # fmt: skip
    except papermill.PapermillExecutionError as error:  # of a cell
        _LOG.error("%s", re.sub(r"\x1b\[[\d;]*m", "", "\n".join(error.traceback)))
        found = {"state": "failed", "error": f"{error.ename}: {error.evalue}"}
    except Exception as error:  # such as of a kernel that died
        _LOG.error("the run ended with an error", exc_info=True)
        found = {"state": "failed", "error": f"{type(error).__name__}: {error}"}
    number, seconds, cell, slowest = 0, 0.0, "In [0], ``", {"cell": None, "line": "", "seconds": 0.0}
    for each in nbformat.read(running, as_version=4).cells:
        times = each.metadata.get("papermill", {})
        if each.cell_type == "code" and times.get("start_time"):
            code = [line.strip() for line in each.source.splitlines() if line.strip() and line.lstrip()[0] != "#"]
            line, number = code[0][:60] if code else "", number + 1
            cell = f"In [{number}], `{line}`"
            if (times.get("duration") or 0.0) > seconds:
                seconds = times["duration"]
                slowest = {"cell": number, "line": line, "seconds": round(seconds, 1)}
    if "error" in found:
        found |= {"error": " ".join(found["error"].split())[:500], "cell": cell}
    return found | {"slowest": slowest}


@contextlib.contextmanager
def _logged(file: Path) -> Iterator[None]:
    """Send papermill's log, which has the output of the cells, to this file and nowhere else."""
    handler = logging.FileHandler(file, mode="w", encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    _LOG.addHandler(handler)
    _LOG.setLevel(logging.INFO)
    _LOG.propagate = False
    try:
        yield
    except BaseException:
        _LOG.error("the run was stopped", exc_info=True)
        raise
    finally:
        _LOG.removeHandler(handler)
        handler.close()


# --- what is up to date ---


def made_from(source: Path, shelf: store.Store, parameters: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Digests of what a chapter is made from: its source, library, data, parameters and the chapters it needs.

    `parameters` are those that differ from the defaults in the source. `needs` has a digest of each needed chapter's
    last run and of what it wrote; None if it has not run.
    """
    # words, templates and prices are TOML and Markdown
    files = sorted(file for file in _LIBRARY.rglob("*") if file.suffix in (".py", ".toml", ".md"))
    lines = (f"{file.relative_to(_LIBRARY).as_posix()} {store.sha256(file)}\n" for file in files)
    library = hashlib.sha256("".join(lines).encode())
    folder = shelf.path("executed")
    return {
        "source": store.sha256(source),
        "library": library.hexdigest(),
        "data": shelf.fingerprint or shelf.data,
        "parameters": json.loads(json.dumps(dict(parameters or {}))),
        "needs": {each: _digest_of_run(facts_of(each, folder)) for each in stages(source.parent)[source.stem].needs},
    }


def _digest_of_run(facts: Mapping[str, Any]) -> str | None:
    if facts.get("state") != "executed":
        return None
    known = json.dumps([facts.get("made_from"), facts.get("wrote")], sort_keys=True)
    return hashlib.sha256(known.encode()).hexdigest()[:16]


def _written(shelf: store.Store, name: str) -> dict[str, str]:
    """The artefacts and models in a run's folder that a chapter has written, with a digest of each."""
    keys = {path.stem for path in shelf.folder.glob("*.safetensors")}
    keys |= {path.parent.name for path in shelf.folder.glob("*/config.json")}
    found = {key: shelf.origin_of(key) for key in sorted(keys)}
    return {key: origin["digest"] for key, origin in found.items() if origin.get("chapter") == name}


def is_up_to_date(source: Path, shelf: store.Store, parameters: Mapping[str, Any] | None = None) -> bool:
    """Whether the last run of a chapter was made from what is there now, and all that it wrote is still there."""
    name, folder = source.stem, shelf.path("executed")
    facts = facts_of(name, folder)
    return (
        facts.get("state") == "executed"
        and (folder / f"{name}.ipynb").is_file()
        and (folder.parent / "rows" / f"{name}.json").is_file()
        and facts.get("made_from") == made_from(source, shelf, parameters)
        and all(shelf.origin_of(key).get("digest") == digest for key, digest in facts["wrote"].items())
    )
