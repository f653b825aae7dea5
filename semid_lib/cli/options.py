"""Options that several commands share, and groups of commands that print plain text."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand


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
Notebooks = Annotated[Path | None, typer.Option(envvar="SEMID_NOTEBOOKS", metavar="FOLDER", help="Of the chapters.")]

# of click, or of the copy of it in newer versions of typer
_UsageError: type[Exception] = typer.BadParameter.__mro__[1]
group = partial(typer.Typer, no_args_is_help=True, rich_markup_mode=None, add_completion=False)


class Answers(TyperCommand):
    """A command whose exit code 2 means that records were rejected, so wrong usage is 1."""

    def make_context(self, *args: Any, **more: Any) -> Any:
        with _usage_is_a_failure():
            return super().make_context(*args, **more)

    def invoke(self, ctx: Any) -> Any:
        with _usage_is_a_failure():
            return super().invoke(ctx)


@contextmanager
def _usage_is_a_failure() -> Iterator[None]:
    try:
        yield
    except _UsageError as error:
        error.exit_code = 1  # type: ignore[attr-defined]
        raise
