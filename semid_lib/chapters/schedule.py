"""Run all chapters that are out of date, several at once, and tell in a table how each ended."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

from semid_lib.chapters import runner
from semid_lib.chapters.runner import NOTEBOOKS, facts_of, is_up_to_date, stages
from semid_lib.data.folder import open_store
from semid_lib.workbench import store
from semid_lib.workbench.workers import cores

# models that are trained beside other chapters, before the chapter that finds their runs
TRAININGS = {"07_next_item": ("timeline", "tiger", "sasrec")}


def run_all(
    wanted: Sequence[str],
    data: str,
    scale: str,
    jobs: int | None = None,
    notebooks: Path = NOTEBOOKS,
    again: bool = True,
) -> int:
    """Run chapters and those they need, each in a process of its own; go on with what needs no chapter that failed.

    Parameters
    ----------
    wanted : list of str
        These run in any case, those they need only if they are out of date. Without any, all that are out of date.
    data, scale : str
    jobs : int, optional
        Chapters that run at once; by default 2, or 1 at full, where a chapter has the accelerator for itself.
    again : bool
        Run the wanted chapters in any case; False: only if they are out of date.

    Returns
    -------
    int
        The exit code: 0 if all that ran succeeded.

    Raises
    ------
    ValueError
        For an unknown chapter or scale, and data that do not exist.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that the chapters are ended, too
    for name in wanted or runner.names(notebooks)[:1]:
        runner.check(notebooks / f"{name}.py", data, scale, {})
    n_cores = cores()
    jobs = jobs or min(n_cores, 1 if scale == "full" else 2)
    graph = graph_of(wanted or runner.names(notebooks), notebooks, with_trainings=jobs > 1)
    shelf = open_store(data, scale)

    def start(node: str, alone: bool) -> subprocess.Popen | None:
        chapter, _, model = node.partition(".")
        if not (again and chapter in wanted) and is_up_to_date(notebooks / f"{chapter}.py", shelf):
            return None
        words = ["train", model, f"--before={chapter}"] if model else ["run", chapter, "--only"]
        words += ["--progress"] if jobs == 1 and not model else []
        threads = os.environ.get("OMP_NUM_THREADS") or str(n_cores if alone else max(1, n_cores // jobs))
        environment = os.environ | {"OMP_NUM_THREADS": threads, "SEMID_NOTEBOOKS": str(notebooks)}
        command = [sys.executable, "-m", "semid_lib.cli", *words, f"--data={data}", f"--scale={scale}"]
        return subprocess.Popen(command, env=environment)

    return int(not _follow(graph, start, jobs))


def graph_of(wanted: Sequence[str], notebooks: Path = NOTEBOOKS, with_trainings: bool = False) -> dict[str, list[str]]:
    """The chapters wanted and all before them, with what each needs; trainings are nodes "chapter.model".

    >>> graph_of(["03_codebook_analysis"])["03_codebook_analysis"]
    ['01_catalogue_and_embeddings', '02_semantic_ids']
    """
    chapters = sorted({*wanted, *(each for name in wanted for each in runner.before(name, notebooks))})
    graph = {name: stages(notebooks)[name].needs for name in chapters}
    for name, models in TRAININGS.items() if with_trainings else ():
        if name in graph:
            trainings = {f"{name}.{model}": graph[name] for model in models}
            graph |= trainings | {name: [*graph[name], *trainings]}
    return graph


def _follow(
    graph: Mapping[str, Sequence[str]], start: Callable[[str, bool], subprocess.Popen | None], jobs: int
) -> bool:
    """Start each node when those before it have succeeded, first what most others wait for; whether all succeeded."""
    waiting_for = {node: sum(node in _all_before(other, graph) for other in graph) for node in graph}
    sorter, has_failed = TopologicalSorter(graph), False
    ready: set[str] = set()
    running: dict[str, subprocess.Popen] = {}
    sorter.prepare()
    try:
        while sorter.is_active():
            ready |= set(sorter.get_ready())
            if ready and len(running) < jobs:
                node = min(ready, key=lambda node: (-waiting_for[node], node))
                ready.remove(node)
                process = start(node, not ready and not running)
                if process is None:
                    sorter.done(node)
                else:
                    running[node] = process
            elif not running:
                break  # the rest needs a chapter that failed
            elif ended := [node for node, process in running.items() if process.poll() is not None]:
                if running.pop(ended[0]).returncode == 0:
                    sorter.done(ended[0])
                else:
                    has_failed = True
            else:
                time.sleep(0.05)
    finally:
        for process in running.values():
            process.send_signal(signal.SIGTERM)
            process.wait()
    return not has_failed


def _all_before(node: str, graph: Mapping[str, Sequence[str]]) -> set[str]:
    return {*graph[node], *(each for one in graph[node] for each in _all_before(one, graph))}


def run_one(
    source: Path,
    data: str,
    scale: str,
    parameters: Mapping[str, Any],
    root: str | None = None,
    group: str = "",
    progress: bool = False,
) -> int:
    """Run a chapter and print how it went; returns the exit code: 0, 1 if it failed, 130 if it was stopped."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that the kernel is ended, too
    name = source.stem
    runner.check(source, data, scale, parameters)
    print(f"{name}: started on {store.data_name(data)}, {scale}", flush=True)
    try:
        facts = runner.run(source, data, scale, parameters, root, group, progress)
    except KeyboardInterrupt:
        print(f"{name}: stopped", file=sys.stderr)
        return 130
    minutes = f"{facts['seconds'] / 60:.1f} minutes"
    if facts["state"] == "executed":
        print(f"{name}: ran in {minutes}", flush=True)
        return 0
    log = runner.folder_of(data, scale, root) / f"{name}.log"
    where = f"{facts['cell']}: {facts['error']}"
    print(f"{name}: failed after {minutes} in {where}; it leaves no rows; log: {log}", file=sys.stderr)
    return 1


def train_before(source: Path, model: str, data: str, scale: str, train: Callable[[], None]) -> None:
    """Train a model before its chapter, unless that is up to date, and keep the time for the summary.

    What training prints on stderr goes to `executed/<chapter>.<model>.log`.
    """
    shelf = open_store(data, scale)
    if is_up_to_date(source, shelf):
        return
    timer, log = store.Timer(), shelf.path("executed") / f"{source.stem}.{model}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "w", encoding="utf-8") as stream, contextlib.redirect_stderr(stream):
        train()
    facts = {"seconds": round(timer.seconds, 1), "made_from": runner.made_from(source, shelf)}
    store.write_json(log.with_suffix(".json"), facts)


def state(name: str, shelf: store.Store, notebooks: Path = NOTEBOOKS) -> str:
    """How a chapter is: "executed", "out of date", "failed", "unfinished" or "not run"."""
    folder = shelf.path("executed")
    facts = facts_of(name, folder)
    if (folder / f"{name}.running.ipynb").exists() or (not facts and (folder / f"{name}.failed.ipynb").exists()):
        return "unfinished"  # running now, stopped or killed
    if not facts:
        return "not run"
    if facts["state"] == "failed":
        return "failed"
    is_fresh = is_up_to_date(notebooks / f"{name}.py", shelf)
    is_fresh = is_fresh and all(state(each, shelf, notebooks) == "executed" for each in stages(notebooks)[name].needs)
    return "executed" if is_fresh else "out of date"


def summary(data: str = "demo", scale: str = "laptop", notebooks: Path = NOTEBOOKS) -> str:
    """All chapters of a run as a table, with the models that were trained before them."""
    shelf, folder = open_store(data, scale), runner.folder_of(data, scale)
    lines, total = [["chapter", "state", "minutes", "slowest cell", "rows", "commit", "ended"]], 0.0
    for name in runner.names(notebooks):
        facts = facts_of(name, folder)
        trained = {model: facts_of(f"{name}.{model}", folder) for model in TRAININGS.get(name, ())}
        for model, training in trained.items():
            if facts and training.get("made_from") == facts["made_from"]:
                lines.append([f"  {model}", "trained", f"{training['seconds'] / 60:.1f}", "", "", "", ""])
                total += training["seconds"] / 60
        line = [name, state(name, shelf, notebooks), "", "", "", "", ""]
        if facts:
            slow = facts["slowest"]
            line[2:] = [
                f"{facts['seconds'] / 60:.1f}",
                f"{slow['seconds'] / 60:.1f} in [{slow['cell']}] {slow['line'][:32]}",
                str(facts["rows"]),
                facts["commit"][:8] + "+" * facts["dirty"],
                datetime.fromtimestamp(facts["ended"]).strftime("%d %b %H:%M"),
            ]
            total += facts["seconds"] / 60
        lines.append(line)
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    table = ["  ".join(word.ljust(width) for word, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    return "\n".join([f"{shelf.data}, {scale}", *table, f"{total:.1f} minutes in all"])


def of_dvc(params: Path) -> tuple[str, str]:
    """Data and scale of DVC's params.yaml. Raises ValueError if its name is not that of the data's artefacts."""
    import yaml

    asked = yaml.safe_load(params.read_text(encoding="utf-8"))
    name = open_store(asked["data"], asked["scale"]).folder.parent.name
    if asked["name"] != name:
        raise ValueError(f"{params} has the name {asked['name']!r}, expected {name!r} for these data: change it there")
    return asked["data"], asked["scale"]
