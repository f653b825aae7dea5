"""Commands of the workbench: run chapters, train a model, sweep parameters, publish results."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from semid_lib.cli.options import NOTEBOOKS, Data, Notebooks, Scale, app, group

results = group(help="Publish result rows in the book.")
app.add_typer(results, name="results")


@app.command(
    epilog="Example: semid run 07_next_item --data shop --scale smoke; with a parameter: semid run 02_semantic_ids "
    "-p N_LEVELS=4"
)
def run(
    chapters: Annotated[list[str] | None, typer.Argument(help="Such as 07_next_item; all by default.")] = None,
    data: Data = "demo",
    scale: Scale = "laptop",
    only: Annotated[bool, typer.Option("--only", help="Run one chapter and none before it.")] = False,
    parameter: Annotated[
        list[str] | None, typer.Option("--parameter", "-p", metavar="KEY=VALUE", help="Of the chapter; implies --only.")
    ] = None,
    jobs: Annotated[int | None, typer.Option(min=1, help="Chapters that run at once; by default 2, 1 at full.")] = None,
    params: Annotated[Path | None, typer.Option(metavar="FILE", help="DVC's params.yaml: data, name, scale.")] = None,
    artefacts: Annotated[str | None, typer.Option(metavar="FOLDER", help="Of one run, with --only.")] = None,
    label: Annotated[str, typer.Option("--group", help="A tag in MLflow for one run, with --only.")] = "",
    progress: Annotated[bool, typer.Option("--progress", help="Show a bar over the cells.")] = False,
    notebooks: Notebooks = NOTEBOOKS,
) -> None:
    """Run chapters, and those before them that are out of date; without names, all that are out of date.

    Executed notebooks, logs and rows are in the folder that `semid folder` prints. Exit codes: 0 all ran, 1 one failed,
    130 it was stopped. A run that fails leaves no rows.
    """
    from semid_lib.chapters import schedule
    from semid_lib.chapters import sweep as sweeps

    folder = notebooks.resolve()
    if params:
        data, scale = schedule.of_dvc(params)
    if not only and not parameter:
        if artefacts or label:
            raise typer.BadParameter("--artefacts and --group are for one run: expected --only or --parameter as well")
        failed = schedule.run_all(chapters or [], data, scale, jobs, folder)
        print(schedule.summary(data, scale, folder))
        raise typer.Exit(failed)
    if chapters is None or len(chapters) != 1:
        raise typer.BadParameter("expected one chapter with --only or --parameter")
    asked, bar = sweeps.parameters_from(parameter or []), progress and sys.stderr.isatty()
    raise typer.Exit(schedule.run_one(folder / f"{chapters[0]}.py", data, scale, asked, artefacts, label, bar))


@app.command(
    epilog="Example: semid train timeline --data shop --scale laptop; on several GPUs: torchrun --nproc_per_node 8 "
    "--no-python semid train tiger --data shop --scale full"
)
def train(
    model: Annotated[str, typer.Argument(help="timeline, tiger or sasrec.")],
    data: Data = "demo",
    scale: Scale = "laptop",
    seed: Annotated[int | None, typer.Option(help="By default every seed that chapter 07 uses.")] = None,
    split: Annotated[str, typer.Option(help="leave_one_out or time.")] = "leave_one_out",
    before: Annotated[
        str | None, typer.Option(metavar="CHAPTER", help="Do nothing if it is up to date or has no histories.")
    ] = None,
    notebooks: Notebooks = NOTEBOOKS,
) -> None:
    """Train a next-item model; chapter 07 finds the run. A run that was stopped resumes."""
    from semid_lib.chapters import schedule
    from semid_lib.data.folder import has_histories
    from semid_lib.workbench import remote

    def train_all() -> None:
        from semid_lib.next_item import recipes

        recipes.train(model, data, scale, seed, split)

    if before is None:
        train_all()
    elif data == "demo" or has_histories(remote.fetch(data)):
        schedule.train_before(notebooks.resolve() / f"{before}.py", model, data, scale, train_all)


@app.command(epilog="Example: semid sweep 07_next_item SEED=0,1,2 --scale laptop")
def sweep(
    chapter: Annotated[str, typer.Argument(help="Such as 07_next_item.")],
    axes: Annotated[list[str], typer.Argument(metavar="KEY=VALUE,VALUE...", help="Parameters and their values.")],
    data: Data = "demo",
    scale: Scale = "laptop",
    jobs: Annotated[int, typer.Option(min=1, help="Points that run at once.")] = 1,
    needed: Annotated[bool, typer.Option("--needed", help="First run the chapters before it, if out of date.")] = False,
    notebooks: Notebooks = NOTEBOOKS,
) -> None:
    """Run a chapter at each point of a grid, and collect all rows in one table."""
    from semid_lib.chapters import runner, schedule
    from semid_lib.chapters import sweep as sweeps

    source = notebooks.resolve() / f"{chapter}.py"
    for point in sweeps.grid(axes):
        runner.check(source, data, scale, point)
    earlier = runner.before(chapter, source.parent) if needed else []
    if earlier and (failed := schedule.run_all(earlier, data, scale, notebooks=source.parent, again=False)):
        raise typer.Exit(failed)
    raise typer.Exit(sweeps.run(source, axes, data, scale, jobs))


@app.command(epilog="Example: semid summary --data shop --scale smoke")
def summary(data: Data = "demo", scale: Scale = "laptop", notebooks: Notebooks = NOTEBOOKS) -> None:
    """Print which chapters are out of date, how the last runs ended and how long they took."""
    from semid_lib.chapters import schedule

    print(schedule.summary(data, scale, notebooks.resolve()))


@app.command(epilog="Example: semid folder --data shop --scale laptop")
def folder(data: Data = "demo", scale: Scale = "laptop") -> None:
    """Print where the artefacts of a data set and scale are."""
    from semid_lib.chapters import runner

    print(runner.folder_of(data, scale).parent)


@results.command(epilog="Example: semid results publish --data beauty --scale laptop")
def publish(data: Data = "demo", scale: Annotated[str, typer.Option(help="Of the rows.")] = "laptop") -> None:
    """Copy the rows of a run to book/results and write the tables of README and book again."""
    from semid_lib.evaluation import report

    report.publish(data, scale)


@results.command(epilog="Example: semid results check")
def check() -> None:
    """Fail if a table or a number on a page differs from its rows."""
    from semid_lib.evaluation import report

    if stale_pages := report.stale_pages():
        raise ValueError(f"tables or numbers differ from book/results: {', '.join(stale_pages)}")
