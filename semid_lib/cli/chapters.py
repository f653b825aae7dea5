"""Commands of the workbench: run chapters, train a model, sweep parameters, publish results."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from semid_lib.cli.options import Data, Notebooks, Scale, group

results = group(help="Publish result rows in the book.")

EXAMPLES = {
    "run": "Example: semid run 02_semantic_ids --data shop --scale smoke -p N_LEVELS=4",
    "train": "Example: semid train timeline --data shop --scale laptop; on several GPUs: torchrun --nproc_per_node 8 "
    "--no-python semid train tiger --data shop --scale full",
    "summary": "Example: semid summary --data shop --scale smoke",
    "stale": "Example: semid stale --data shop",
    "folder": "Example: semid folder --data shop --scale laptop",
    "sweep": "Example: semid sweep 07_next_item SEED=0,1,2 --scale laptop",
}


def _source(chapter: str, notebooks: Path | None) -> Path:
    from semid_lib.workbench import chapters

    return (notebooks or chapters.NOTEBOOKS).resolve() / f"{chapter}.py"


def run(
    chapter: Annotated[str, typer.Argument(help="Such as 07_next_item.")],
    data: Data = "demo",
    scale: Scale = "laptop",
    parameter: Annotated[
        list[str] | None, typer.Option("--parameter", "-p", metavar="KEY=VALUE", help="Of the chapter; repeat it.")
    ] = None,
    if_stale: Annotated[bool, typer.Option("--if-stale", help="Only if it is out of date.")] = False,
    params: Annotated[Path | None, typer.Option(metavar="FILE", help="DVC's params.yaml: data, name, scale.")] = None,
    artefacts: Annotated[str | None, typer.Option(metavar="FOLDER", help="Where the artefacts go.")] = None,
    label: Annotated[str, typer.Option("--group", help="A tag in MLflow for runs that belong together.")] = "",
    progress: Annotated[bool, typer.Option("--progress", help="Show a bar over the cells.")] = False,
    notebooks: Notebooks = None,
) -> None:
    """Run one chapter: executed notebook, log and rows are in `semid folder`.

    Exit codes: 0 it ran, 1 it failed, 130 it was stopped. A run that fails leaves no rows.
    """
    from semid_lib.workbench import chapters

    if params:
        data, scale = chapters.of_dvc(params)
    status = chapters.run_and_report(
        _source(chapter, notebooks),
        data,
        scale,
        chapters.parameters_from(parameter or []),
        artefacts,
        label,
        if_stale=if_stale,
        progress=progress and sys.stderr.isatty(),
    )
    raise typer.Exit(status)


def train(
    model: Annotated[str, typer.Argument(help="timeline, tiger or sasrec.")],
    data: Data = "demo",
    scale: Scale = "laptop",
    seed: Annotated[int | None, typer.Option(help="By default every seed that chapter 07 uses.")] = None,
    split: Annotated[str, typer.Option(help="leave_one_out or time.")] = "leave_one_out",
    before: Annotated[
        str | None, typer.Option(metavar="CHAPTER", help="Do nothing if it is up to date or has no histories.")
    ] = None,
    notebooks: Notebooks = None,
) -> None:
    """Train a next-item model; chapter 07 finds the run. A run that was stopped resumes."""
    from semid_lib.data.folder import has_histories
    from semid_lib.workbench import chapters, remote

    def train_all() -> None:
        from semid_lib.next_item import recipes

        recipes.train(model, data, scale, seed, split)

    if before is None:
        train_all()
    elif data == "demo" or has_histories(remote.fetch(data)):
        chapters.train_before(_source(before, notebooks), model, data, scale, train_all)


def sweep(
    chapter: Annotated[str, typer.Argument(help="Such as 07_next_item.")],
    axes: Annotated[list[str], typer.Argument(metavar="KEY=VALUE,VALUE...", help="Parameters and their values.")],
    data: Data = "demo",
    scale: Scale = "laptop",
    jobs: Annotated[int, typer.Option(help="Points that run at once.")] = 1,
    notebooks: Notebooks = None,
) -> None:
    """Run a chapter at each point of a grid, and collect all rows in one table."""
    from semid_lib.workbench import sweep as sweeps

    raise typer.Exit(sweeps.run_and_report(_source(chapter, notebooks), axes, data, scale, jobs))


def summary(data: Data = "demo", scale: Scale = "laptop", notebooks: Notebooks = None) -> None:
    """Print how the last run of each chapter ended and how long it took."""
    from semid_lib.workbench import chapters

    print(chapters.summary(data, scale, notebooks=notebooks or chapters.NOTEBOOKS))


def stale(
    wanted: Annotated[list[str] | None, typer.Argument(help="Only these, in this order.")] = None,
    data: Data = "demo",
    scale: Scale = "laptop",
    notebooks: Notebooks = None,
) -> None:
    """List the chapters that are out of date."""
    from semid_lib.workbench import chapters

    print(*chapters.stale(data, scale, wanted or (), notebooks or chapters.NOTEBOOKS))


def folder(data: Data = "demo", scale: Scale = "laptop") -> None:
    """Print where the artefacts of a data set and scale are."""
    from semid_lib.workbench import chapters

    print(chapters.folder_of(data, scale).parent)


@results.command(epilog="Example: semid results publish --data beauty --scale laptop")
def publish(data: Data = "demo", scale: Scale = "laptop") -> None:
    """Copy the rows of a run to book/results and write the tables of README and book again."""
    from semid_lib.evaluation import report

    report.publish(data, scale)


@results.command(epilog="Example: semid results check")
def check() -> None:
    """Fail if a table or a number on a page differs from its rows."""
    from semid_lib.evaluation import report

    if stale_pages := report.stale_pages():
        raise ValueError(f"tables or numbers differ from book/results: {', '.join(stale_pages)}")
