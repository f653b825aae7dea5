"""One way to run a chapter: from its source to an executed notebook, a log and a line in a table.

    python -m semid_lib.chapters run 07_next_item --data demo --scale laptop -p SEED 1
    python -m semid_lib.chapters summary --data demo --scale laptop

In `artefacts/<data>/<scale>/executed/` stand for each chapter `<chapter>.ipynb`, only when all of it ran; else
`<chapter>.failed.ipynb`, as far as it came; `<chapter>.log`, everything that its cells printed and, at the end, the
error; `<chapter>.json`, the facts of its last run. The rows' values alone are in `metrics/<chapter>.json` next to it,
for `dvc metrics`. Exit codes: 0 it ran, 1 it failed or cannot be run, 130 it was stopped.
"""

import argparse
import ast
import contextlib
import json
import logging
import os
import re
import signal
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from semid_lib import places, store, tracking
from semid_lib import scale as scales

NOTEBOOKS = Path(__file__).resolve().parent.parent / "notebooks"


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


def folder_of(data: str, scale: str, root: str | Path | None = None) -> Path:
    """Where a run's executed chapters stand. data: "demo" or the folder of a data set."""
    return places.local(root or store.default_root()).resolve() / data_name(data) / scale / "executed"


def data_name(data: str) -> str:
    """The data set's name, as `data.load` gives it.

    >>> data_name("demo"), data_name("somewhere/beauty/")
    ('demo', 'beauty')
    """
    return data if data == "demo" else Path(data).resolve().name


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

    `facts["state"]` is "executed" or "failed"; a failed run has an `error`, one line. Raises ValueError if the run
    cannot begin: an unknown chapter, scale or parameter, or no data.
    """
    asked = check(source, data, scale, parameters or {})
    root = root or os.environ.get("SEMID_ARTEFACTS") or store.default_root()
    folder = folder_of(data, scale, root)
    artefacts = str(root if places.is_remote(root) else folder.parent.parent.parent)
    folder.mkdir(parents=True, exist_ok=True)
    name = source.stem
    rows_file = folder.parent / "rows" / f"{name}.json"
    rows_before = rows_file.stat().st_mtime_ns if rows_file.exists() else None
    facts: dict[str, Any] = {
        "chapter": name,
        "state": "failed",
        "data": data_name(data),
        "scale": scale,
        "group": group,
        "parameters": parameters_of(source) | asked,
        "threads": os.environ.get("OMP_NUM_THREADS", ""),
        **store.commit(),
    }
    clock = store.Clock()
    running = folder / f"{name}.running.ipynb"
    try:
        with _logged(folder / f"{name}.log"), _environment("SEMID_ARTEFACTS", artefacts):
            facts |= _execute(source, running, asked, progress)
    finally:
        # whatever ended it, a keyboard too, there is no notebook that looks executed and is not
        notebook = folder / f"{name}{'' if facts['state'] == 'executed' else '.failed'}.ipynb"
        if running.exists():
            running.replace(notebook)
    facts |= {"seconds": round(clock.seconds, 1), "ended": round(time.time())}
    rows = _rows(rows_file, rows_before, facts["state"])
    origin = rows[0] if rows else {}
    facts |= {"rows": len(rows)} | {name: origin.get(name, "") for name in ("hardware", "fingerprint")}
    if facts["state"] == "executed":
        (folder / f"{name}.failed.ipynb").unlink(missing_ok=True)
        _write(folder.parent / "metrics" / f"{name}.json", {row["key"]: row["value"] for row in rows})
    _write(folder / f"{name}.json", facts)
    kept = [notebook, folder / f"{name}.log", rows_file]
    tracking.log_run(facts, rows, [file for file in kept if file.is_file()])
    if places.is_remote(root):
        places.send(f"{root.rstrip('/')}/{data_name(data)}/{scale}")
    return facts


def check(source: Path, data: str, scale: str, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """What is injected into the parameters of a chapter. Raises ValueError if it could not be run with this."""
    if not source.is_file():
        there = ", ".join(names(source.parent))
        raise ValueError(f"no chapter {source.stem!r}, expected one of {there}")
    if scale not in scales.NAMES:
        raise ValueError(f"SCALE is {scale!r}, expected one of {', '.join(scales.NAMES)}")
    if data != "demo" and not (places.exists(data) if places.is_remote(data) else Path(data).is_dir()):
        raise ValueError(f"DATA is {data!r}, expected demo or a folder")
    known = parameters_of(source)
    asked = {"DATA": data if data == "demo" or places.is_remote(data) else str(Path(data).resolve()), "SCALE": scale}
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


def _rows(file: Path, mtime_before: int | None, state: str) -> list[dict[str, Any]]:
    """The rows that this run recorded. A chapter that ran and recorded none leaves none of an earlier run."""
    if file.exists() and file.stat().st_mtime_ns != mtime_before:
        return json.loads(file.read_text(encoding="utf-8"))
    if state == "executed":
        _write(file, [])
    return []


def _write(path: Path, content) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    partial.replace(path)


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
def _environment(name: str, value: str) -> Iterator[None]:
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


# --- the table ---


def facts_of(name: str, folder: Path) -> dict[str, Any]:
    """What is known of a chapter's last run; empty if it has never been run."""
    file = folder / f"{name}.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


def state(name: str, data: str, folder: Path, notebooks: Path = NOTEBOOKS) -> str:
    """How a chapter stands: "executed", "out of date", "failed", "unfinished" or "not run".

    Out of date is what make would run again: the source, the library, the data or a chapter before is younger.
    """
    if (folder / f"{name}.running.ipynb").exists():
        return "unfinished"  # running now, or killed
    executed = folder / f"{name}.ipynb"
    facts = facts_of(name, folder)
    if facts.get("state") == "failed":
        return "failed"
    if not executed.exists():
        return "not run"
    earlier = [folder / f"{each}.ipynb" for each in needs(notebooks)[name]]
    return "executed" if is_younger(executed, [*inputs(notebooks / f"{name}.py", data), *earlier]) else "out of date"


def inputs(source: Path, data: str) -> list[Path]:
    """The files that a chapter is made from: its source, the library and the data."""
    from semid_lib import folder

    files = [source, *(source.parent.parent / "semid_lib").glob("*.py")]
    return files if data == "demo" else files + folder.files_of(places.local(data))


def is_younger(file: Path, than: Iterable[Path]) -> bool:
    """Whether a file was written after all others, which must be there."""
    written = file.stat().st_mtime_ns
    return all(one.exists() and one.stat().st_mtime_ns <= written for one in than)


def summary(
    data: str = "demo", scale: str = "laptop", root: str | Path | None = None, notebooks: Path = NOTEBOOKS
) -> str:
    """All chapters of a run as a table, with the longest chain of chapters that wait for each other."""
    folder = folder_of(data, scale, root)
    minutes: dict[str, float] = {}
    lines = [["chapter", "state", "minutes", "slowest cell", "rows", "commit", "ended"]]
    for name in names(notebooks):
        facts = facts_of(name, folder)
        line = [name, state(name, data, folder, notebooks)]
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
    chain = critical_path(minutes, needs(notebooks))
    if chain:
        longest, total = sum(minutes[name] for name in chain), sum(minutes.values())
        table.append(f"critical path: {' -> '.join(chain)}, {longest:.1f} of {total:.1f} minutes")
    return "\n".join([f"{data_name(data)}, {scale}", *table])


def critical_path(minutes: Mapping[str, float], wanted: Mapping[str, Sequence[str]]) -> list[str]:
    """The chain of chapters, each needing the one before, that takes longest: no number of cores is faster.

    >>> critical_path({"a": 1.0, "b": 5.0, "c": 2.0}, {"a": [], "b": ["a"], "c": ["a"]})
    ['a', 'b']
    """
    chains: dict[str, list[str]] = {}

    def length(chain: list[str]) -> float:
        return sum(minutes[name] for name in chain)

    for name in sorted(minutes):  # a chapter needs only chapters before it
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


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m semid_lib.chapters", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--notebooks", type=Path, default=NOTEBOOKS, metavar="FOLDER", help="of the chapters")
    commands = parser.add_subparsers(dest="command", required=True)
    runner = commands.add_parser("run", help="run one chapter")
    runner.add_argument("name", metavar="NAME", help="such as 07_next_item")
    for command in (runner, commands.add_parser("summary", help="how all chapters stand")):
        command.add_argument("--data", default="demo", metavar="FOLDER", help="demo, or the folder of a data set")
        command.add_argument("--scale", default="laptop", help=", ".join(scales.NAMES))
    runner.add_argument("-p", "--parameter", nargs=2, action="append", default=[], metavar=("KEY", "VALUE"))
    runner.add_argument("--artefacts", metavar="FOLDER", help="where the artefacts of this run go")
    runner.add_argument("--group", default="", help="a name for runs that belong together, a tag in MLflow")
    runner.add_argument("--progress", action="store_true", help="a bar over the cells, on a terminal")
    options = parser.parse_args(arguments)
    if options.command == "summary":
        print(summary(options.data, options.scale, notebooks=options.notebooks.resolve()))
        return 0
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that the kernel is ended, too
    source = options.notebooks.resolve() / f"{options.name}.py"
    parameters = {key: value(text) for key, text in options.parameter}
    print(f"{options.name}: started on {data_name(options.data)}, {options.scale}", flush=True)
    try:
        facts = run(
            source, options.data, options.scale, parameters, options.artefacts, options.group,
            progress=options.progress and sys.stderr.isatty(),
        )  # fmt: skip
    except ValueError as error:
        print(f"{options.name}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"{options.name}: stopped", file=sys.stderr)
        return 130
    if facts["state"] == "executed":
        print(f"{options.name}: ran in {facts['seconds'] / 60:.1f} minutes", flush=True)
        return 0
    log = folder_of(options.data, options.scale, options.artefacts) / f"{options.name}.log"
    where = f"{facts['cell']}: {facts['error']}"
    print(f"{options.name}: failed after {facts['seconds'] / 60:.1f} minutes in {where}; log: {log}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
