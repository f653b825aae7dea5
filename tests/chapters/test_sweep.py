"""A grid over a chapter of a few lines: artefacts apart, one table, nothing run twice."""

import json
import os
from pathlib import Path

import pandas as pd
import pytest

from semid_lib.chapters import runner, sweep
from semid_lib.cli import main
from semid_lib.workbench import store

ROOT = Path(__file__).resolve().parents[2]
FIRST = """# %% tags=["parameters"]
DATA = "demo"
SCALE = "laptop"
SEED = 0
"""
SECOND = """# %% tags=["parameters"]
DATA = "demo"
SCALE = "laptop"
SEED = 0
WIDTH = 1

# %%
import json
import os
from pathlib import Path

from semid_lib.workbench import store

here = Path(os.environ["SEMID_ARTEFACTS"]) / "demo" / SCALE
factor = int((here / "factor.txt").read_text())
assert os.environ.get("FAILING_SEED") != str(SEED)
rows = [{"key": "toy/mine/mrr", "value": factor * (SEED + 10 * WIDTH), "ci95": [0.0, 1.0]}]
store.hardware = lambda: ""  # it would import torch
store.Store("demo", SCALE, "f").record("02_toy", rows)
(here / "own.txt").write_text("of this point")
"""
PIPELINE = """stages:
  01_first:
    cmd: unused
    outs:
      - artefacts/${name}/${scale}/factor.txt
      - artefacts/${name}/${scale}/rows/01_first.json
  02_toy:
    deps:
      - artefacts/${name}/${scale}/factor.txt
"""


@pytest.fixture
def source(tmp_path, monkeypatch):
    """The second chapter of two; the first has left factor.txt."""
    monkeypatch.setenv("SEMID_ARTEFACTS", str(tmp_path / "artefacts"))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    notebooks = tmp_path / "repository" / "notebooks"
    notebooks.mkdir(parents=True)
    (notebooks / "01_first.py").write_text(FIRST, encoding="utf-8")
    (notebooks / "02_toy.py").write_text(SECOND, encoding="utf-8")
    (notebooks.parent / "dvc.yaml").write_text(PIPELINE, encoding="utf-8")
    shared = tmp_path / "artefacts" / "demo" / "smoke"
    shared.mkdir(parents=True)
    (shared / "factor.txt").write_text("2", encoding="utf-8")
    return notebooks / "02_toy.py"


def command(source, *axes):
    return main(["sweep", "--notebooks", str(source.parent), "02_toy", *axes, "--scale", "smoke"])


def test_a_sweep_of_the_first_chapter_needs_no_artefacts_yet(source, capfd, monkeypatch):
    monkeypatch.setenv("SEMID_ARTEFACTS", str(source.parents[2] / "nothing" / "yet"))
    monkeypatch.setattr(sweep.subprocess, "run", lambda *command, **settings: None)
    arguments = ["sweep", "--notebooks", str(source.parent), "01_first", "SEED=0", "--scale", "smoke"]
    assert main(arguments) == 1 and "0 of 1 points have run" in capfd.readouterr().out


@pytest.mark.slow
def test_a_sweep_by_hand(source, capfd, monkeypatch):
    monkeypatch.setenv("FAILING_SEED", "0")
    assert command(source, "SEED=0,1", "WIDTH=1") == 1  # the first point fails, which does not stop the other
    printed = capfd.readouterr()
    assert "1 of 2 points have run" in printed.out and "AssertionError" in printed.err
    shared = store.default_root() / "demo" / "smoke"
    assert [file.name for file in shared.iterdir()] == ["factor.txt"]  # the run itself is as it was
    monkeypatch.delenv("FAILING_SEED")
    assert command(source, "SEED=0,1", "WIDTH=1,2") == 0
    printed = capfd.readouterr().out
    assert printed.count("02_toy: ran in") == 3  # one of the four had run
    assert "| toy/demo/mine/mrr | 1 | 21 | 1.414 | 2 |" in printed
    assert "| toy/demo/mine/mrr | 2 | 41 | 1.414 | 2 |" in printed
    home = store.default_root() / "sweeps" / "demo" / "smoke" / "02_toy"
    table = pd.read_parquet(home / "table.parquet")
    assert table[["SEED", "WIDTH", "value"]].to_numpy().tolist() == [[0, 1, 20], [0, 2, 40], [1, 1, 22], [1, 2, 42]]
    assert len(pd.read_csv(home / "table.csv")) == 4
    assert command(source, "SEED=1", "WIDTH=1") == 0
    assert "ran in" not in capfd.readouterr().out
    # when the chapter before has run again, the point is out of date
    earlier = runner.folder_of("demo", "smoke", store.default_root()) / "01_first.json"
    earlier.parent.mkdir(parents=True)
    facts = {"state": "executed", "made_from": {"source": "another"}, "wrote": {}}
    earlier.write_text(json.dumps(facts), encoding="utf-8")
    assert command(source, "SEED=1", "WIDTH=1") == 0
    assert capfd.readouterr().out.count("02_toy: ran in") == 1


@pytest.mark.slow
def test_chapters_before_are_run_if_asked_and_out_of_date(source, capfd, monkeypatch):
    monkeypatch.setattr(sweep, "run", lambda *_: 0)
    for started in (1, 0):  # the second time it is up to date
        assert command(source, "SEED=1", "--needed") == 0
        assert capfd.readouterr().out.count("01_first: started") == started
    assert command(source, "SEDE=1", "--needed") == 1


@pytest.mark.parametrize("axes", [["SEED"], ["SEED="], ["SEED=1,,2"], ["SEED=1", "SEED=2"], ["SEED=1,1"], ["1=2"]])
def test_a_grid_that_cannot_be_right_is_refused(axes):
    with pytest.raises(ValueError, match="expected"):
        sweep.grid(axes)


def test_what_cannot_be_swept_is_said_before_anything_runs(source, capsys):
    assert command(source, "SEDE=1") == 1
    assert "no parameter 'SEDE'" in capsys.readouterr().err
    assert command(source, "SEED=a/b,a_b") == 1
    assert "share a folder" in capsys.readouterr().err
    (store.default_root() / "demo" / "smoke" / "factor.txt").unlink()
    assert command(source, "SEED=1") == 1
    assert "factor.txt is not there: run 01_first" in capsys.readouterr().err
