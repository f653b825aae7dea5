"""A run in MLflow's SQLite, and what happens when MLflow cannot be reached, is missing or is switched off."""

import base64
import json
import logging
import re
import sys
from pathlib import Path

import pytest

from semid_lib.chapters import tracking

PUBLISHED = sorted((Path(__file__).parents[2] / "book" / "results").glob("*.json"))
PIXEL = base64.b64encode(b"\x89PNG one").decode()
FACTS = {
    "chapter": "01_toy", "state": "executed", "data": "shop", "scale": "smoke", "group": "", "fingerprint": "f" * 64,
    "commit": "c" * 40, "dirty": False, "hardware": "2 x processor", "seconds": 12.5, "ended": 1_700_000_000, "rows": 2,
    "parameters": {"DATA": "demo", "SEED": 3, "WIDTH": None},
}  # fmt: skip
ROWS = [
    {"key": "toy/shop/mine/recall@10", "value": 0.5, "ci95": [0.25, 0.75], "spread": 0.125},
    {"key": "toy/shop/mine/items", "value": 7},
]


@pytest.fixture
def files(tmp_path):
    outputs = [{"output_type": "display_data", "metadata": {}, "data": {"image/png": PIXEL}}]
    notebook = tmp_path / "01_toy.ipynb"
    notebook.write_text(json.dumps({"cells": [{"outputs": outputs}, {"source": "no outputs"}]}), encoding="utf-8")
    log = tmp_path / "01_toy.log"
    log.write_text("it ran", encoding="utf-8")
    return [notebook, log]


@pytest.fixture(autouse=True)
def local(monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("SEMID_TRACKING", "1")
    # set for good by tracking; given back after the test
    for name in ("MLFLOW_DISABLE_TELEMETRY", "DO_NOT_TRACK", "MLFLOW_HTTP_REQUEST_MAX_RETRIES"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "2")


@pytest.mark.slow
def test_a_run_is_kept_with_all_that_belongs_to_it(tmp_path, files):
    from mlflow import MlflowClient
    from mlflow.telemetry.utils import is_telemetry_disabled

    root = tmp_path / "artefacts"
    kept = tracking.log_run(FACTS, ROWS, files, root)
    assert is_telemetry_disabled()
    client = MlflowClient(tracking.uri(root))
    run = client.get_run(kept)
    assert client.get_experiment(run.info.experiment_id).name == "shop/smoke"
    assert (run.info.run_name, run.info.status) == ("01_toy", "FINISHED")
    assert run.info.end_time - run.info.start_time == 12_500
    assert run.data.params == {"DATA": "demo", "SEED": "3", "WIDTH": "None"}
    mine = "toy/shop/mine/recall_at_10"
    assert run.data.metrics == {
        mine: 0.5, f"{mine}_low": 0.25, f"{mine}_high": 0.75, f"{mine}_spread": 0.125, "toy/shop/mine/items": 7.0,
    }  # fmt: skip
    expected = {"commit": "c" * 40, "dirty": "False", "fingerprint": "f" * 64, "state": "executed", "seconds": "12.5"}
    assert expected.items() <= run.data.tags.items() and "group" not in run.data.tags
    assert sorted(file.path for file in client.list_artifacts(kept)) == ["01_toy.ipynb", "01_toy.log", "figures"]
    image = Path(client.download_artifacts(kept, "figures/figure_01.png", str(tmp_path)))
    assert image.read_bytes() == base64.b64decode(PIXEL)
    assert {file.name for file in root.iterdir()} == {"mlflow.db", "mlflow.lock", "mlruns"}

    failed = tracking.log_run({**FACTS, "state": "failed", "error": "KeyError: 'x'", "group": "a sweep"}, [], [], root)
    run = client.get_run(failed)
    assert (run.info.status, run.data.tags["error"], run.data.tags["group"]) == ("FAILED", "KeyError: 'x'", "a sweep")


@pytest.mark.slow
def test_a_server_that_is_down_is_one_warning(tmp_path, files, monkeypatch, caplog):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")  # nobody listens there
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with caplog.at_level(logging.WARNING, tracking.__name__):
        assert tracking.log_run(FACTS, ROWS, files, tmp_path / "artefacts") is None
    [warning] = [record.getMessage() for record in caplog.records if record.name == tracking.__name__]
    assert warning.startswith("MLflow did not log 01_toy (")


def test_without_mlflow_the_warning_names_the_extra(tmp_path, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with caplog.at_level(logging.WARNING, tracking.__name__):
        assert tracking.log_run(FACTS, ROWS, [], tmp_path) is None
    [warning] = [record.getMessage() for record in caplog.records]
    assert "semid-lib[track]" in warning and "SEMID_TRACKING=0" in warning


def test_switched_off_it_leaves_nothing(tmp_path, files, monkeypatch):
    monkeypatch.setenv("SEMID_TRACKING", "0")
    assert tracking.log_run(FACTS, ROWS, files, tmp_path / "artefacts") is None
    assert not (tmp_path / "artefacts").exists()


@pytest.mark.parametrize("file", PUBLISHED, ids=lambda path: path.stem)
def test_all_published_rows_become_metrics_with_names_of_their_own(file):
    rows = json.loads(file.read_text(encoding="utf-8"))
    found = tracking.metrics(rows)
    wanted = sum(1 + 2 * ("ci95" in row) + ("spread" in row) for row in rows)
    assert len(found) == wanted
    assert all(re.fullmatch(r"[\w\-./ ]{1,250}", name, flags=re.ASCII) for name in found)
