"""The command, groups of commands that print plain text, and options that several share."""

from functools import partial
from pathlib import Path
from typing import Annotated

import typer


def _known(scale: str) -> str:
    from semid_lib.workbench.scale import check

    check(scale)
    return scale


Data = Annotated[str, typer.Option(metavar="FOLDER", help="The folder of a data set, or demo.")]
Scale = Annotated[str, typer.Option(callback=_known, help="smoke, laptop or full.")]
Model = Annotated[str, typer.Option(metavar="FOLDER", help="What Recommender.save_pretrained wrote, or org/name.")]
Revision = Annotated[str | None, typer.Option(help="Of org/name: a branch, a tag or, better, a commit.")]
TopK = Annotated[int, typer.Option("--topk", help="Items in each answer.")]
Queries = Annotated[bool, typer.Option("--queries", help="The input has texts instead of histories.")]
Notebooks = Annotated[Path, typer.Option(envvar="SEMID_NOTEBOOKS", metavar="FOLDER", help="Of the chapters.")]
NOTEBOOKS = Path(__file__).resolve().parents[2] / "notebooks"

group = partial(typer.Typer, no_args_is_help=True, rich_markup_mode=None, add_completion=False)
app = group(help="Generative recommendation with semantic IDs. `semid COMMAND --help` has an example of each.")
