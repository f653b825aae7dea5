"""A Sphinx extension: a chapter's page says how to run it, and status.md what this copy of the book was made from.

    python book/pages.py EXECUTED.ipynb ...    copy executed chapters into book/chapters, without paths of this machine

Everything is read from the executed notebooks in `book/chapters`, `pyproject.toml` and what is installed, whenever the
book is built; nothing is typed. Pages name the place of such a text by a comment: `<!-- runs -->`, `<!-- versions -->`,
and `<!-- room: data -->` for the reference of `semid_lib/data`, from its docstrings.
"""

import json
import platform
import re
import shlex
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import semid_lib

_BOOK = Path(__file__).resolve().parent
# the line that `Store.origin` prints: data, scale; commit; machine; day
_ORIGIN = re.compile(r"^(\S.*), (smoke|laptop|full); ([^;]+); ([^;]+); (\d{4}-\d\d-\d\d)$", re.MULTILINE)
_TERM = re.compile(r'\[([^\]]+)\]\(\.\./book/notation\.md(?:\s+"([^"]+)")?\)')
_CITE = re.compile(r'\[[^\]]+\]\(\.\./book/references\.bib\s+"([^"]+)"\)')
_ROOM = re.compile(r"<!-- room: ([\w/]+) -->")
_WIDGET = "application/vnd.jupyter.widget-view+json"
_NOT_IN_CHAPTERS = ("all", "book", "dev")


class Run(NamedTuple):
    """Where an executed chapter comes from."""

    data: str
    scale: str
    commit: str
    hardware: str
    day: str
    seconds: float


def run_of(notebook: dict[str, Any]) -> Run | None:
    """What an executed notebook says of its run; None if it was not run to its end by papermill."""
    seconds = notebook["metadata"].get("papermill", {}).get("duration")
    outputs = [output for cell in notebook["cells"] for output in cell.get("outputs", [])]
    found = _ORIGIN.search("\n".join("".join(output.get("text", "")) for output in outputs))
    if not found or not seconds:
        return None
    data, scale, commit, hardware, day = found.groups()
    return Run(data, scale, commit, hardware, day, seconds)


def how_to_run(chapter: str, run: Run | None) -> str:
    """The line under a chapter's introduction, as Markdown.

    >>> run = Run("beauty", "laptop", "0a7b", "2 cores", "2026-11-22", 9)
    >>> how_to_run("07_next_item", run).split("`")[1]
    'make run NOTEBOOK=07_next_item DATA=path/to/beauty SCALE=laptop'
    >>> how_to_run("07_next_item", None).split(". ")[-1]
    'This page was not executed ([status](../status.md)).'
    """
    command = f"make run NOTEBOOK={chapter}"
    if run:
        command += "" if run.data == "demo" else f" DATA={shlex.quote(f'path/to/{run.data}')}"
        command += f" SCALE={run.scale}"
    made = f"was made in {_duration(run.seconds)}" if run else "was not executed"
    return (
        f"**Run it yourself**: `{command}` runs this chapter, and before it those that it needs; `make lab` opens it "
        f"in JupyterLab. This page {made} ([status](../status.md))."
    )


def without_data_and_scale(cells: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Cells of a notebook, where papermill's own cell keeps only what `Store.origin` does not print, if anything.

    >>> cell = {"source": ["# Parameters\\n", 'DATA = "/home/ann/shop"\\n', "N_LEVELS = 4\\n", 'SCALE = "full"\\n']}
    >>> cell["metadata"] = {"tags": ["injected-parameters"]}
    >>> without_data_and_scale([cell])[0]["source"]
    '# Parameters\\nN_LEVELS = 4\\n'
    """
    kept = []
    for cell in cells:
        if "injected-parameters" in cell["metadata"].get("tags", []):
            lines = "".join(cell["source"]).splitlines(keepends=True)
            lines = [line for line in lines if not line.startswith(("DATA = ", "SCALE = "))]
            if len(lines) > 1:
                kept.append(cell | {"source": "".join(lines)})
        else:
            kept.append(cell)
    return kept


def for_sphinx(text: str) -> str:
    """The Markdown of a chapter, whose links JupyterLab opens in `notebooks/`, with the roles and paths of the book.

    >>> for_sphinx('[IDs](../book/notation.md "semantic ID") [(Hu et al., 2021)](../book/references.bib "hu2021")')
    '{term}`IDs <semantic ID>` {cite}`hu2021`'
    >>> for_sphinx("[level](../book/notation.md), see the [log](../book/log.md)")
    '{term}`level`, see the [log](../log.md)'
    """
    text = _TERM.sub(lambda found: f"{{term}}`{found[1]}" + (f" <{found[2]}>`" if found[2] else "`"), text)
    return _CITE.sub(r"{cite}`\1`", text).replace("](../book/", "](../")


def numbered(text: str, chapter: str) -> str:
    """A chapter's first cell with its number in the title, which the sidebar and links to the chapter show.

    >>> numbered("# Next-item prediction", "07_next_item")
    '# 07 Next-item prediction'
    """
    return re.sub(r"\A# ", f"# {chapter[:2]} ", text)


def without_widgets(cell: dict[str, Any]) -> dict[str, Any]:
    """A cell without the outputs that need a running kernel, such as progress bars.

    >>> view, figure = {"data": {"application/vnd.jupyter.widget-view+json": {}}}, {"data": {"image/png": ""}}
    >>> without_widgets({"outputs": [view, figure]})
    {'outputs': [{'data': {'image/png': ''}}]}
    """
    if "outputs" not in cell:
        return cell
    return cell | {"outputs": [output for output in cell["outputs"] if _WIDGET not in output.get("data", {})]}


def published(notebook: dict[str, Any]) -> dict[str, Any]:
    """An executed notebook as readers may download it, without paths of the machine and without progress bars."""
    duration = {"duration": notebook["metadata"].get("papermill", {}).get("duration")}
    metadata = {**notebook["metadata"], "papermill": duration}
    metadata.pop("widgets", None)
    cells = [without_widgets(cell) for cell in without_data_and_scale(notebook["cells"])]
    return {**notebook, "metadata": metadata, "cells": cells}


def runs_table(notebooks: dict[str, dict[str, Any]]) -> str:
    """A line a chapter, by name, then the machines, as Markdown."""
    runs = {chapter: run_of(notebook) for chapter, notebook in notebooks.items()}
    lines = ["| chapter | data | scale | run on | commit | took |", "| --- | --- | --- | --- | --- | ---: |"]
    for chapter, run in runs.items():
        cells = [run.data, run.scale, run.day, f"`{run.commit}`", _duration(run.seconds)] if run else ["not executed"]
        lines.append(f"| [](chapters/{chapter}) | " + " | ".join([*cells, *[""] * (5 - len(cells))]) + " |")
    executed = {chapter: run for chapter, run in runs.items() if run}
    if executed:
        lines.append(f"| all | | | | | {_duration(sum(run.seconds for run in executed.values()))} |")
    machines: dict[str, list[str]] = {run.hardware: [] for run in executed.values()}
    for chapter, run in executed.items():
        machines[run.hardware].append(chapter[:2])
    where = [f"- chapters {', '.join(chapters)}: {machine}" for machine, chapters in machines.items()]
    return "\n".join([*lines, "", *where])


def reference(room: str) -> str:
    """A section for each module of a room of the library, filled by autodoc, as Markdown.

    >>> print(reference("search").splitlines()[-3])
    .. automodule:: semid_lib.search.retrieval
    """
    folder = Path(semid_lib.__file__).parent / room
    package = f"semid_lib.{room.replace('/', '.')}"
    names = [package] if "/" in room else []  # a room within a room may define its functions in the package itself
    names += [f"{package}.{file.stem}" for file in sorted(folder.glob("[!_]*.py"))]
    return "\n".join(f"## {name}\n\n```{{eval-rst}}\n.. automodule:: {name}\n   :members:\n```\n" for name in names)


def versions_table() -> str:
    """Python, this package and what its chapters depend on, at the versions installed here, as Markdown."""
    project = tomllib.loads((_BOOK.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = [needs for extra, needs in project["optional-dependencies"].items() if extra not in _NOT_IN_CHAPTERS]
    wanted = {re.split(r"[\s<>=!~;\[]", line)[0] for needs in (project["dependencies"], *extras) for line in needs}
    found = {name: _version(name) for name in sorted(wanted, key=str.lower)}
    found = {"Python": platform.python_version(), project["name"]: project["version"]} | found
    return "\n".join(["| | version |", "| --- | --- |", *(f"| {name} | {number} |" for name, number in found.items())])


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}\u00a0min\u00a0{rest}\u00a0s" if minutes else f"{rest}\u00a0s"


def _fill(app, docname: str, source: list[str]) -> None:
    """What stands in a page's source before it is parsed; the files stay as they are."""
    folder, _, name = docname.rpartition("/")
    if folder == "chapters":
        notebook = json.loads(source[0])
        for cell in notebook["cells"]:
            if cell["cell_type"] == "markdown":
                cell["source"] = for_sphinx("".join(cell["source"]))
        notebook["cells"][0]["source"] = numbered(notebook["cells"][0]["source"], name)
        line = {"cell_type": "markdown", "metadata": {}, "source": how_to_run(name, run_of(notebook))}
        if "id" in notebook["cells"][0]:
            line["id"] = "how-to-run"
        notebook["cells"].insert(1, line)
        source[0] = json.dumps(notebook)
    elif folder == "api":
        source[0] = _ROOM.sub(lambda found: reference(found[1]), source[0])
    elif "<!-- runs -->" in source[0] or "<!-- versions -->" in source[0]:
        files = sorted((_BOOK / "chapters").glob("*.ipynb"))
        notebooks = {file.stem: json.loads(file.read_text(encoding="utf-8")) for file in files}
        text = source[0].replace("<!-- runs -->", runs_table(notebooks))
        source[0] = text.replace("<!-- versions -->", versions_table())


def _mend(app, pagename, templatename, context, doctree) -> None:
    """Mend the HTML of a page.

    docutils calls a bibliography a list whose entries are none, which screen readers stumble over. A mean and its ± may
    be on two lines, so that wide tables fit.
    """
    if "body" in context:
        body = context["body"].replace('<div role="list" class="citation-list">', '<div class="citation-list">')
        context["body"] = body.replace("\N{NO-BREAK SPACE}±", " ±")


def setup(app) -> dict[str, bool]:
    """Called by Sphinx."""
    app.connect("source-read", _fill)
    app.connect("html-page-context", _mend)
    # the status page is made from files that are not its own source
    app.connect("env-get-outdated", lambda app, env, added, changed, removed: ["status"])
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def copy_chapters(executed: list[Path], folder: Path) -> None:
    """Make a folder hold exactly these chapters, as they are published; Sphinx reads again what is written here."""
    folder.mkdir(exist_ok=True)
    for old in set(folder.iterdir()) - {folder / file.name for file in executed}:
        old.unlink()
    for file in executed:
        text = json.dumps(published(json.loads(file.read_text(encoding="utf-8"))), indent=1) + "\n"
        target = folder / file.name
        if not target.exists() or target.read_text(encoding="utf-8") != text:
            target.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    copy_chapters([Path(file) for file in sys.argv[1:]], _BOOK / "chapters")
