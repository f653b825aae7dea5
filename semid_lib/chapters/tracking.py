"""Log runs in MLflow: one run a chapter, in the experiment of its data set and scale.

Parameters come from the parameters cell, metrics from the result rows. Artefacts are the figures, the executed
notebook, the log and the rows. Without `MLFLOW_TRACKING_URI` runs go to `mlflow.db` (SQLite) and `mlruns/` in the
folder of artefacts. `SEMID_TRACKING=0` turns logging off. A problem here is one warning: results are files.
"""

import base64
import json
import logging
import os
import re
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock

from semid_lib.workbench import store

_logger = logging.getLogger(__name__)
_AT_ONCE = 500  # metrics in one request; MLflow takes up to 1,000
_LONGEST = 250  # characters of a metric's name


def uri(root: str | Path | None = None) -> str:
    """The tracking server: `MLFLOW_TRACKING_URI`, else the SQLite file in the folder of artefacts."""
    local = Path(root or store.default_root()).resolve() / "mlflow.db"
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{local}"


def metric_name(key: str) -> str:
    """A row's key as MLflow allows it: ASCII letters, digits, _-./ and spaces, at most 250 characters.

    >>> metric_name("next_item/demo/timeline/recall@10")
    'next_item/demo/timeline/recall_at_10'
    """
    return re.sub(r"[^\w\-./ ]", "_", key.replace("@", "_at_"), flags=re.ASCII)[-_LONGEST:]


def metrics(rows: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """Rows as metrics: the value, the ends of its interval and its spread over seeds.

    >>> metrics([{"key": "next_item/shop/mine/mrr", "value": 0.5, "ci95": [0.4, 0.6]}])
    {'next_item/shop/mine/mrr': 0.5, 'next_item/shop/mine/mrr_low': 0.4, 'next_item/shop/mine/mrr_high': 0.6}
    """
    found: dict[str, float] = {}
    for row in rows:
        low, high = row.get("ci95", (None, None))
        for ending, number in (("", row["value"]), ("_low", low), ("_high", high), ("_spread", row.get("spread"))):
            if isinstance(number, int | float):
                found[metric_name(row["key"] + ending)] = float(number)
    return found


def _figures(file: Path) -> list[bytes]:
    """The PNG images among the outputs of an executed notebook, in order; none of another file."""
    cells = json.loads(file.read_text(encoding="utf-8"))["cells"] if file.suffix == ".ipynb" else []
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    images = [output["data"]["image/png"] for output in outputs if "image/png" in output.get("data", {})]
    return [base64.b64decode("".join(image)) for image in images]


def log_run(
    facts: Mapping[str, Any],
    rows: list[dict[str, Any]],
    files: Iterable[Path],
    root: str | Path | None = None,
) -> str | None:
    """Log one run of a chapter.

    Parameters
    ----------
    facts : mapping
        What `runner.run` returns.
    rows : list of dict
    files : iterable of Path
        Logged as they are, with the figures of notebooks.
    root : str or Path, optional
        The folder of artefacts with the database; by default `store.default_root()`.

    Returns
    -------
    str or None
        The run's id; None if it was not logged.
    """
    if os.environ.get("SEMID_TRACKING") == "0":
        return None
    try:
        return _log_run(facts, rows, list(files), Path(root or store.default_root()).resolve())
    except Exception as error:  # a server that is down, a disk that is full: the chapter's results are there
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        hint = ". Install semid-lib[track] or set SEMID_TRACKING=0" if isinstance(error, ImportError) else ""
        _logger.warning("MLflow did not log %s (%s); results are saved%s", facts["chapter"], reason, hint)
        return None


def _log_run(facts: Mapping[str, Any], rows: list[dict[str, Any]], files: list[Path], root: Path) -> str:
    # nothing is sent to the makers of MLflow, and a server that is down is given up soon
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = os.environ["DO_NOT_TRACK"] = "true"
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Param

    logging.getLogger("mlflow").setLevel(logging.WARNING)  # else it tells of its database
    root.mkdir(parents=True, exist_ok=True)
    with FileLock(root / "mlflow.lock"):  # chapters that end at once make one database and one experiment
        client = MlflowClient(uri(root))
        name = f"{facts['data']}/{facts['scale']}"
        experiment = client.get_experiment_by_name(name)
        if experiment is None:
            here = None if os.environ.get("MLFLOW_TRACKING_URI") else (root / "mlruns").as_uri()
            experiment = client.get_experiment(client.create_experiment(name, artifact_location=here))
        ended = facts["ended"] * 1000
        run = client.create_run(
            experiment.experiment_id, int(ended - 1000 * facts["seconds"]), _tags(facts), facts["chapter"]
        ).info.run_id
        try:
            client.log_batch(run, params=[Param(key, str(value)) for key, value in facts["parameters"].items()])
            numbers = [Metric(key, value, int(ended), 0) for key, value in metrics(rows).items()]
            for first in range(0, len(numbers), _AT_ONCE):
                client.log_batch(run, metrics=numbers[first : first + _AT_ONCE])
            for file in files:
                client.log_artifact(run, str(file))
            with tempfile.TemporaryDirectory() as folder:
                for file in files:
                    for number, image in enumerate(_figures(file), 1):
                        path = Path(folder, f"figure_{number:02}.png")
                        path.write_bytes(image)
                        client.log_artifact(run, str(path), "figures")
        finally:
            status = "FINISHED" if facts["state"] == "executed" else "FAILED"
            client.set_terminated(run, status, end_time=int(ended))
    return run


def _tags(facts: Mapping[str, Any]) -> dict[str, str]:
    """The tags of a run; MLflow's page shows the commit under its own name for it."""
    names = ("chapter", "state", "data", "fingerprint", "scale", "commit", "dirty", "hardware", "error", "group")
    tags = {name: str(facts[name])[:5000] for name in names if facts.get(name) not in (None, "")}
    tags["seconds"] = f"{facts['seconds']:.1f}"
    return tags | {"mlflow.source.git.commit": facts["commit"], "mlflow.source.name": facts["chapter"]}
