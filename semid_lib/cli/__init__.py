"""The command `semid`: import data, run chapters, train, predict, serve, change a catalogue and deploy.

A command imports the modules that it needs when it runs, so `semid --help` answers at once.
"""

import os
import sys
from collections.abc import Sequence
from typing import Any

import typer

from semid_lib.cli import catalogue, chapters, demo, deploy, importing, models  # noqa: F401  they add commands to `app`
from semid_lib.cli.options import app

# of click, or of the copy of it in newer versions of typer
_UsageError: Any = typer.BadParameter.__mro__[1]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Parameters
    ----------
    arguments : list of str, optional
        By default those of the process.

    Returns
    -------
    int
        The exit code: 0 for success, 1 for an error that the user can mend (one sentence on stderr), 2 for wrong usage,
        130 for Ctrl-C. Of `predict`, 2 means that some records were rejected, and wrong usage is 1. Any other error is
        a bug and is raised.

    Examples
    --------
    >>> main(["run", "00_nothing"])  # and the sentence that names the chapters
    1
    """
    try:
        return int(app(arguments, prog_name="semid", standalone_mode=False) or 0)
    except _UsageError as error:
        error.show()
        return 1 if error.ctx and error.ctx.info_name == "predict" else 2
    except Exception as error:
        if not _is_mendable(error) or os.environ.get("SEMID_TRACEBACK"):
            raise
        print(f"error: {' '.join(str(error).split()) or type(error).__name__}", file=sys.stderr)
        return 1


def _is_mendable(error: Exception) -> bool:
    """Whether the message says what the user can do: bad values, files, networks and extras, and errors of our own."""
    ours = type(error).__module__.partition(".")[0] in ("semid_lib", "modal")
    return ours or isinstance(error, ValueError | OSError | ImportError)
