"""One way to run a chapter (`semid run`): from its source to an executed notebook, a log and a line in a table.

`artefacts/<data>/<scale>/executed/` holds for each chapter `<chapter>.ipynb`, only if all of it ran; else
`<chapter>.failed.ipynb`, as far as it came; `<chapter>.log`, everything that its cells printed and, at the end, the
error; `<chapter>.json`, the facts of its last run. The rows' values alone are in `metrics/<chapter>.json` next to it,
for `dvc metrics`. A run that fails leaves no rows. Exit codes: 0 it ran, 1 it failed or cannot be run, 130 it was
stopped.

A chapter is up to date if it is made from the same as its last run: `made_from` lists digests of its source, the
library, the data, its parameters and the chapters that it needs. Times of files do not count. The same chapter of the
same data and scale runs once at a time; a second run is refused.
"""

import ast
import contextlib
import hashlib
import json
import logging
import os
import re
import signal
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from semid_lib.workbench import remote, store, tracking
from semid_lib.workbench import scale as scales

NOTEBOOKS = Path(__file__).resolve().parents[2] / "notebooks"
_LIBRARY = Path(__file__).resolve().parents[1]


def names(notebooks: Path = NOTEBOOKS) -> list[str]:
    """The chapters, in their order.

    >>> names()[0]
    '01_catalogue_and_embeddings'
    """
    return sorted(path.stem for path in notebooks.glob("[0-9]*.py"))


def needs(notebooks: Path = NOTEBOOKS) -> dict[str, list[str]]:
    """Which chapters must have been run before each, as `needs.txt` beside them says.

    >>> needs()["02_semantic_ids"]
    ['01_catalogue_and_embeddings']
    """
    found: dict[str, list[str]] = {name: [] for name in names(notebooks)}
    file = notebooks / "needs.txt"
    for line in file.read_text(encoding="utf-8").splitlines() if file.is_file() else []:
        name, _, before = line.partition(":")
        if not line.startswith("#") and line.strip():
            found[name] = before.split()
    return found


def before(name: str, notebooks: Path = NOTEBOOKS) -> list[str]:
    """All chapters that must have been run before one, in their order.

    >>> before("03_codebook_analysis")
    ['01_catalogue_and_embeddings', '02_semantic_ids']
    """
    direct = needs(notebooks)[name]
    return sorted({*direct, *(each for one in direct for each in before(one, notebooks))})


def in_order(notebooks: Path = NOTEBOOKS) -> list[str]:
    """The chapters, each after those that it needs.

    >>> in_order().index("10_hybrid_ranker") < in_order().index("08_modal_deployment")
    True
    """
    found: dict[str, None] = {}
    for name in names(notebooks):
        waiting = [*before(name, notebooks), name]
        found |= dict.fromkeys(sorted(waiting, key=lambda each: len(before(each, notebooks))))
    return list(found)


def folder_of(data: str, scale: str, root: str | Path | None = None) -> Path:
    """Where a run's executed chapters are. data: "demo" or the folder of a data set."""
    return store.open_store(data, scale, root).path("executed").resolve()


def parameters_of(source: Path) -> dict[str, Any]:
    """The parameters of a chapter and their defaults. Raises ValueError if it has no cell that is tagged so."""
    import jupytext

    tagged = [cell for cell in jupytext.read(source).cells if "parameters" in cell.metadata.get("tags", [])]
    if len(tagged) != 1:
        raise ValueError(f"{source} has {len(tagged)} cells that are tagged parameters, expected one")
    assignments = [node for node in ast.parse(tagged[0].source).body if isinstance(node, ast.Assign)]
    return {node.targets[0].id: ast.literal_eval(node.value) for node in assignments}


def run(
    source: Path,
    data: str = "demo",
    scale: str = "laptop",
    parameters: Mapping[str, Any] | None = None,
    root: str | Path | None = None,
    group: str = "",
    progress: bool = False,
) -> dict[str, Any]:
    """Run a chapter; returns the facts of the run, which are also kept beside the executed notebook.

    source: its file in py:percent; it runs in that folder. data: "demo" or a folder. parameters: besides DATA and
    SCALE. root: where its artefacts go, by default `store.default_root()`, where MLflow's database always is; to an
    address such as "s3://bucket/runs" everything in the folder of the data and scale is sent when it has ended. group:
    a name for runs that belong together. progress: show a bar over the cells.

    `facts["state"]` is "executed" or "failed"; a failed run has an `error`, one line, and leaves no rows, not those of
    an earlier run either. Raises ValueError if the run cannot begin: an unknown chapter, scale or parameter, no data,
    or another process that runs the same.
    """
    asked = check(source, data, scale, parameters or {})
    root = root or os.environ.get("SEMID_ARTEFACTS") or store.default_root()
    shelf = store.open_store(data, scale, root)
    folder = shelf.path("executed").resolve()
    with _alone(folder, source.stem):
        facts = {
            "chapter": source.stem,
            "state": "failed",
            "data": shelf.data,
            "scale": scale,
            "group": group,
            "parameters": parameters_of(source) | asked,
            "threads": os.environ.get("OMP_NUM_THREADS", ""),
            "made_from": made_from(source, shelf, parameters),
            **store.commit(),
        }
        artefacts = str(root if remote.is_remote(root) else folder.parent.parent.parent)
        return _run(source, shelf, facts, asked, artefacts, progress)


def _run(
    source: Path, shelf: store.Store, facts: dict[str, Any], asked: dict[str, Any], artefacts: str, progress: bool
) -> dict[str, Any]:
    """`run`, when nothing else runs this chapter."""
    name, folder = source.stem, shelf.path("executed").resolve()
    rows_file, run = folder.parent / "rows" / f"{name}.json", uuid.uuid4().hex
    for old in (rows_file, folder.parent / "metrics" / f"{name}.json", folder / f"{name}.json"):
        old.unlink(missing_ok=True)
        shelf.send(old.relative_to(folder.parent).as_posix())
    for left in rows_file.parent.glob(store.pending_rows(rows_file, "*").name):
        left.unlink()  # of a run that was killed
    clock, running = store.Clock(), folder / f"{name}.running.ipynb"
    told = json.dumps({"chapter": name, "id": run, "seed": facts["parameters"].get("SEED")})
    waiting = store.pending_rows(rows_file, run)
    try:
        with _logged(folder / f"{name}.log"), _environment({"SEMID_ARTEFACTS": artefacts, store.RUN: told}):
            facts |= _execute(source, running, asked, progress)
        rows = json.loads(waiting.read_text(encoding="utf-8")) if waiting.is_file() else []
    finally:
        waiting.unlink(missing_ok=True)
        # whatever ended it, a keyboard too, there is no notebook that looks executed and is not
        notebook = folder / f"{name}{'' if facts['state'] == 'executed' else '.failed'}.ipynb"
        if running.exists():
            running.replace(notebook)
    facts |= {"seconds": round(clock.seconds, 1), "ended": round(time.time()), "wrote": _written(shelf, name)}
    origin = rows[0] if rows else {}
    facts |= {"rows": len(rows)} | {key: origin.get(key, "") for key in ("hardware", "fingerprint")}
    if facts["state"] == "executed":
        (folder / f"{name}.failed.ipynb").unlink(missing_ok=True)
        store.write_json(folder.parent / "metrics" / f"{name}.json", {row["key"]: row["value"] for row in rows})
        store.write_json(rows_file, rows)
    store.write_json(folder / f"{name}.json", facts)
    kept = [notebook, folder / f"{name}.log", rows_file]
    tracking.log_run(facts, rows, [file for file in kept if file.is_file()])
    shelf.send()
    return facts


@contextlib.contextmanager
def _alone(folder: Path, name: str) -> Iterator[None]:
    """Hold the lock of a chapter's run; the lock of a process that has ended holds nothing up."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / f".{name}.lock", timeout=0):
            yield
    except Timeout:
        raise ValueError(f"another process runs it now, into {folder}: wait until it ends, or stop it") from None


def check(source: Path, data: str, scale: str, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """What is injected into the parameters of a chapter. Raises ValueError if it could not be run with this."""
    if not source.is_file():
        there = ", ".join(names(source.parent))
        raise ValueError(f"no chapter {source.stem!r}, expected one of {there}")
    if scale not in scales.NAMES:
        raise ValueError(f"SCALE is {scale!r}, expected one of {', '.join(scales.NAMES)}")
    if data != "demo" and not (remote.exists(data) if remote.is_remote(data) else Path(data).is_dir()):
        raise ValueError(f"DATA is {data!r}, expected demo or a folder")
    known = parameters_of(source)
    asked = {"DATA": data if data == "demo" or remote.is_remote(data) else str(Path(data).resolve()), "SCALE": scale}
    for key in parameters:
        if key in asked or key not in known:
            expected = ", ".join(sorted(known.keys() - asked.keys())) or "none"
            raise ValueError(f"{source.stem} takes no parameter {key!r} here, expected one of {expected}")
    return asked | dict(parameters)


def _execute(source: Path, running: Path, parameters: dict[str, Any], progress: bool) -> dict[str, Any]:
    """Convert and execute; `running` is written after every cell. What is found: state, error, the slowest cell."""
    import jupytext
    import papermill

    notebook = jupytext.read(source)
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    jupytext.write(notebook, running)
    found: dict[str, Any] = {"state": "failed"}
    try:
        papermill.execute_notebook(
            running, running, parameters, cwd=source.parent, progress_bar=progress, log_output=True,
            extra_arguments=["--IPKernelApp.log_level=CRITICAL"],  # else it tells of its ports and its end
        )  # fmt: skip
        found["state"] = "executed"
    except papermill.PapermillExecutionError as error:
        _log("%s", re.sub(r"\x1b\[[\d;]*m", "", "\n".join(error.traceback)))
        found |= _failure(f"In [{error.exec_count}]", error.source, f"{error.ename}: {error.evalue}")
    except Exception as error:  # a kernel that died or did not start
        _log("the run ended with an error", exc_info=True)
        begun = [cell for cell in _code_cells(running) if cell.metadata.get("papermill", {}).get("start_time")]
        code = begun[-1].source if begun else ""
        found |= _failure(f"In [{len(begun)}]", code, f"{type(error).__name__}: {error}")
    timed = [(cell.metadata.get("papermill", {}).get("duration") or 0.0, cell) for cell in _code_cells(running)]
    seconds, slowest = max(timed, key=lambda pair: pair[0], default=(0.0, {"source": ""}))
    slow = {
        "cell": slowest.get("execution_count"),
        "line": _first_line(slowest["source"]),
        "seconds": round(seconds, 1),
    }
    return found | {"slowest": slow}


def _failure(cell: str, code: str, error: str) -> dict[str, str]:
    line = " ".join(error.split())  # an error may go over many lines; the log has them
    return {"error": line[:500], "cell": f"{cell}, `{_first_line(code)}`"}


def _code_cells(notebook: Path) -> list[Any]:
    import nbformat

    return [cell for cell in nbformat.read(notebook, as_version=4).cells if cell.cell_type == "code"]


def _first_line(code: str) -> str:
    lines = [line.strip() for line in code.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    return lines[0][:60] if lines else ""


@contextlib.contextmanager
def _logged(file: Path) -> Iterator[None]:
    """What papermill says, with the output of the cells, goes to this file and nowhere else."""
    handler = logging.FileHandler(file, mode="w", encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    logger = logging.getLogger("papermill")
    was = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    try:
        yield
    except BaseException:
        _log("the run was stopped", exc_info=True)
        raise
    finally:
        logger.level, logger.propagate = was
        logger.removeHandler(handler)
        handler.close()


def _log(message: str, *words, exc_info: bool = False) -> None:
    logging.getLogger("papermill").error(message, *words, exc_info=exc_info)


@contextlib.contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value


# --- what is up to date ---


def made_from(source: Path, shelf: store.Store, parameters: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """What a chapter is made from: digests of its source, the library and the data, its parameters, what it needs.

    parameters: other than the defaults in the source, which its digest covers. Of the demo shop, the library is the
    data. `needs` has, of each chapter that must have run before, a digest of what it was made from and of what it
    wrote; None if it has not run.
    """
    files = sorted(_LIBRARY.rglob("*.py"))
    library = hashlib.sha256("".join(f"{file.name} {store.sha256(file)}\n" for file in files).encode())
    folder = shelf.path("executed")
    return {
        "source": store.sha256(source),
        "library": library.hexdigest(),
        "data": shelf.fingerprint or shelf.data,
        "parameters": json.loads(json.dumps(dict(parameters or {}))),
        "needs": {each: _digest_of_run(facts_of(each, folder)) for each in needs(source.parent)[source.stem]},
    }


def _digest_of_run(facts: Mapping[str, Any]) -> str | None:
    if facts.get("state") != "executed":
        return None
    known = json.dumps([facts.get("made_from"), facts.get("wrote")], sort_keys=True)
    return hashlib.sha256(known.encode()).hexdigest()[:16]


def _written(shelf: store.Store, name: str) -> dict[str, str]:
    """The artefacts and models in a run's folder that a chapter has written, with a digest of each."""
    keys = [path.stem for path in shelf.folder.glob("*.safetensors")]
    keys += [path.parent.name for path in shelf.folder.glob("*/config.json")]
    found = {key: shelf.origin_of(key) for key in sorted(set(keys))}
    return {key: origin["digest"] for key, origin in found.items() if origin.get("chapter") == name}


def is_up_to_date(source: Path, shelf: store.Store, parameters: Mapping[str, Any] | None = None) -> bool:
    """Whether the last run of a chapter was made from what is there now, and all that it wrote is still there."""
    name, folder = source.stem, shelf.path("executed")
    facts = facts_of(name, folder)
    outputs = (folder / f"{name}.ipynb", folder.parent / "rows" / f"{name}.json")
    return (
        facts.get("state") == "executed"
        and all(file.is_file() for file in outputs)
        and facts.get("made_from") == made_from(source, shelf, parameters)
        and all(shelf.origin_of(key).get("digest") == digest for key, digest in facts["wrote"].items())
    )


def stale(data: str, scale: str, wanted: Sequence[str] = (), notebooks: Path = NOTEBOOKS) -> list[str]:
    """The chapters that are not up to date, in the order in which they are wanted; of all chapters by default."""
    shelf = store.open_store(data, scale)
    return [name for name in wanted or names(notebooks) if state(name, shelf, notebooks) != "executed"]


def train_before(source: Path, model: str, data: str, scale: str, train: Callable[[], None]) -> None:
    """Train a model of a chapter beforehand, beside other chapters, and keep its time for the summary.

    Nothing is done if the chapter is up to date. train: raises ValueError if the data have no histories, see
    `recipes.train`.
    """
    shelf = store.open_store(data, scale)
    if is_up_to_date(source, shelf):
        return
    clock = store.Clock()
    train()
    facts = {"seconds": round(clock.seconds, 1), "made_from": made_from(source, shelf)}
    store.write_json(shelf.path("executed") / f"{source.stem}.{model}.json", facts)


def _trainings(name: str, folder: Path) -> dict[str, float]:
    """Minutes of the models that were trained beforehand for the last run of a chapter."""
    files = sorted(folder.glob(f"{name}.*.json"))
    facts = {file.stem: store.read_json(file, dict) for file in files}
    now = facts_of(name, folder).get("made_from")
    return {stem: each["seconds"] / 60 for stem, each in facts.items() if each["made_from"] == now}


# --- the table ---


def facts_of(name: str, folder: Path) -> dict[str, Any]:
    """What is known of a chapter's last run; empty if it has never been run."""
    file = folder / f"{name}.json"
    return store.read_json(file, dict) if file.is_file() else {}


def state(name: str, shelf: store.Store, notebooks: Path = NOTEBOOKS) -> str:
    """How a chapter is: "executed", "out of date", "failed", "unfinished" or "not run".

    Out of date is what make would run again: the source, the library, the data, a parameter or a chapter before has
    changed since.
    """
    folder = shelf.path("executed")
    facts = facts_of(name, folder)
    if (folder / f"{name}.running.ipynb").exists() or (not facts and (folder / f"{name}.failed.ipynb").exists()):
        return "unfinished"  # running now, stopped or killed
    if not facts:
        return "not run"
    if facts["state"] == "failed":
        return "failed"
    is_fresh = is_up_to_date(notebooks / f"{name}.py", shelf)
    is_fresh = is_fresh and all(state(each, shelf, notebooks) == "executed" for each in needs(notebooks)[name])
    return "executed" if is_fresh else "out of date"


def summary(
    data: str = "demo", scale: str = "laptop", root: str | Path | None = None, notebooks: Path = NOTEBOOKS
) -> str:
    """All chapters of a run as a table, with the longest chain of chapters that wait for each other."""
    shelf, wanted = store.open_store(data, scale, root), needs(notebooks)
    folder = shelf.path("executed")
    minutes: dict[str, float] = {}
    lines = [["chapter", "state", "minutes", "slowest cell", "rows", "commit", "ended"]]
    for name in names(notebooks):
        facts, direct = facts_of(name, folder), wanted[name]
        for training, spent in _trainings(name, folder).items():
            lines.append([f"  {training.removeprefix(name)[1:]}", "trained", f"{spent:.1f}", "", "", "", ""])
            minutes[training], wanted[training] = spent, direct
            wanted[name] = [*wanted[name], training]
        line = [name, state(name, shelf, notebooks)]
        if facts:
            minutes[name] = facts["seconds"] / 60
            slow = facts["slowest"]
            changed = "+" if facts["dirty"] else ""
            line += [
                f"{minutes[name]:.1f}",
                f"{slow['seconds'] / 60:.1f} in [{slow['cell']}] {slow['line'][:32]}",
                str(facts["rows"]),
                f"{facts['commit'][:8]}{changed}",
                datetime.fromtimestamp(facts["ended"]).strftime("%d %b %H:%M"),
            ]
        lines.append(line + [""] * (len(lines[0]) - len(line)))
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    table = ["  ".join(word.ljust(width) for word, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    chain = critical_path(minutes, wanted)
    if chain:
        longest, total = sum(minutes[name] for name in chain), sum(minutes.values())
        table.append(f"critical path: {' -> '.join(chain)}, {longest:.1f} of {total:.1f} minutes")
    return "\n".join([f"{shelf.data}, {scale}", *table])


def critical_path(minutes: Mapping[str, float], wanted: Mapping[str, Sequence[str]]) -> list[str]:
    """The chain of chapters, each needing the one before, that takes longest: no number of cores is faster.

    minutes: each chapter after those that it needs.

    >>> critical_path({"a": 1.0, "b": 5.0, "c": 2.0}, {"a": [], "b": ["a"], "c": ["a"]})
    ['a', 'b']
    """
    chains: dict[str, list[str]] = {}

    def length(chain: list[str]) -> float:
        return sum(minutes[name] for name in chain)

    for name in minutes:
        before_it = [chains[each] for each in wanted.get(name, ()) if each in chains]
        chains[name] = [*max(before_it, key=length, default=[]), name]
    return max(chains.values(), key=length, default=[])


# --- the command ---


def value(text: str) -> Any:
    """A parameter as it was typed: a Python literal, or else the text itself.

    >>> value("3"), value("0.5"), value("None"), value("all-MiniLM-L6-v2")
    (3, 0.5, None, 'all-MiniLM-L6-v2')
    """
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def parameters_from(texts: Sequence[str]) -> dict[str, Any]:
    """Parameters from KEY=VALUE. Raises ValueError for anything else or a key twice.

    >>> parameters_from(["SEED=1", "BASE_MODEL=models/small"])
    {'SEED': 1, 'BASE_MODEL': 'models/small'}
    """
    found: dict[str, Any] = {}
    for text in texts:
        key, equals, rest = text.partition("=")
        if not key.isidentifier() or not equals or key in found:
            raise ValueError(f"{text!r} is no parameter, expected KEY=VALUE with each key once")
        found[key] = value(rest)
    return found


def run_and_report(
    source: Path, data: str, scale: str, parameters: Mapping[str, Any], root: str | None = None, group: str = "",
    if_stale: bool = False, progress: bool = False,
) -> int:  # fmt: skip
    """Run a chapter and print how it went; returns the exit code."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that the kernel is ended, too
    name = source.stem
    check(source, data, scale, parameters)
    if if_stale and is_up_to_date(source, store.open_store(data, scale, root), parameters):
        return 0
    print(f"{name}: started on {store.data_name(data)}, {scale}", flush=True)
    try:
        facts = run(source, data, scale, parameters, root, group, progress)
    except KeyboardInterrupt:
        print(f"{name}: stopped", file=sys.stderr)
        return 130
    minutes = f"{facts['seconds'] / 60:.1f} minutes"
    if facts["state"] == "executed":
        print(f"{name}: ran in {minutes}", flush=True)
        return 0
    log = folder_of(data, scale, root) / f"{name}.log"
    where = f"{facts['cell']}: {facts['error']}"
    print(f"{name}: failed after {minutes} in {where}; it leaves no rows; log: {log}", file=sys.stderr)
    return 1


def of_dvc(params: Path) -> tuple[str, str]:
    """Data and scale of DVC's params.yaml. Raises ValueError if its name is not that of the data's artefacts."""
    import yaml

    asked = yaml.safe_load(params.read_text(encoding="utf-8"))
    name = store.open_store(asked["data"], asked["scale"]).folder.parent.name
    if asked["name"] != name:
        raise ValueError(f"{params} has the name {asked['name']!r}, expected {name!r} for these data: change it there")
    return asked["data"], asked["scale"]
