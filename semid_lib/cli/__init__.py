"""The command `semid`: import data, run chapters, train, predict, serve and deploy.

A command imports the modules that it needs when it runs, so `semid --help` answers at once.
"""

import os
import sys
from collections.abc import Sequence

from semid_lib.cli import chapters, demo, deploy, importing, models, options

app = options.group(help="Generative recommendation with semantic IDs. `semid COMMAND --help` has an example of each.")
app.command(epilog=demo.EXAMPLES["demo"])(demo.demo)
app.add_typer(importing.app, name="import")
for name, example in chapters.EXAMPLES.items():
    app.command(name, epilog=example)(getattr(chapters, name))
app.add_typer(chapters.results, name="results")
for name, example in models.EXAMPLES.items():
    app.command(name, epilog=example, cls=options.Answers if name == "predict" else None)(getattr(models, name))
app.add_typer(deploy.app, name="deploy")


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
        app(arguments, prog_name="semid")
    except SystemExit as ended:
        return int(ended.code or 0)
    except Exception as error:
        if not _is_mendable(error) or os.environ.get("SEMID_TRACEBACK"):
            raise
        print(f"error: {' '.join(str(error).split()) or type(error).__name__}", file=sys.stderr)
        return 1
    return 0


def _is_mendable(error: Exception) -> bool:
    """Whether the message says what the user can do: bad values, files, networks and extras, and errors of our own."""
    ours = type(error).__module__.partition(".")[0] in ("semid_lib", "modal")
    return ours or isinstance(error, ValueError | OSError | ImportError)
