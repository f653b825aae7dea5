"""A grid over a chapter of a few lines: artefacts apart, one table, nothing run twice."""

import json
import os
from pathlib import Path

import pandas as pd
import pytest

from semid_lib.cli import main
from semid_lib.workbench import chapters, store, sweep

ROOT = Path(__file__).resolve().parents[2]
FIRST = """# %% tags=["parameters"]
DATA = "demo"
SCALE = "laptop"
"""
SECOND = """# %% tags=["parameters"]
DATA = "demo"
SCALE = "laptop"
SEED = 0
WIDTH = 1
FAIL = False

# %%
import json
import os
from pathlib import Path

from semid_lib.workbench import store

here = Path(os.environ["SEMID_ARTEFACTS"]) / "demo" / SCALE
factor = int((here / "factor.txt").read_text())
assert not FAIL or SEED
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
    (notebooks / "needs.txt").write_text("02_toy: 01_first\n", encoding="utf-8")
    (notebooks.parent / "dvc.yaml").write_text(PIPELINE, encoding="utf-8")
    shared = tmp_path / "artefacts" / "demo" / "smoke"
    shared.mkdir(parents=True)
    (shared / "factor.txt").write_text("2", encoding="utf-8")
    return notebooks / "02_toy.py"


def command(source, *axes):
    return main(["sweep", "--notebooks", str(source.parent), "02_toy", *axes, "--scale", "smoke"])


def test_a_sweep_by_hand(source, capfd):
    assert command(source, "SEED=0,1", "WIDTH=1") == 0
    home = sweep.folder("02_toy", "demo", "smoke")
    first = (home / "SEED=0,WIDTH=1" / "demo" / "smoke" / "executed" / "02_toy.ipynb").stat().st_mtime_ns
    capfd.readouterr()
    assert command(source, "SEED=0,1", "WIDTH=1,2") == 0
    printed = capfd.readouterr().out
    assert printed.count("02_toy: ran in") == 2  # two of the four had run
    assert (home / "SEED=0,WIDTH=1" / "demo" / "smoke" / "executed" / "02_toy.ipynb").stat().st_mtime_ns == first
    assert "| toy/demo/mine/mrr | 1 | 21 | 1.414 | 2 |" in printed
    assert "| toy/demo/mine/mrr | 2 | 41 | 1.414 | 2 |" in printed
    table = pd.read_parquet(home / "table.parquet")
    assert table[["SEED", "WIDTH", "value"]].to_numpy().tolist() == [[0, 1, 20], [0, 2, 40], [1, 1, 22], [1, 2, 42]]
    assert len(pd.read_csv(home / "table.csv")) == 4
    shared = store.default_root() / "demo" / "smoke"
    assert [file.name for file in shared.iterdir()] == ["factor.txt"]  # the run itself is as it was


def test_a_point_that_fails_does_not_stop_the_others_and_is_run_again(source, capfd):
    assert command(source, "SEED=0,1", "FAIL=True") == 1
    printed = capfd.readouterr()
    assert "1 of 2 points have run" in printed.out and "AssertionError" in printed.err
    source.write_text(SECOND.replace("assert not FAIL or SEED\n", ""), encoding="utf-8")
    assert command(source, "SEED=0,1", "FAIL=True") == 0
    assert capfd.readouterr().out.count("02_toy: ran in") == 2  # the source has changed for both


def test_a_point_runs_again_when_the_chapter_before_it_has(source, capfd):
    assert command(source, "SEED=0") == 0
    earlier = chapters.folder_of("demo", "smoke", store.default_root()) / "01_first.json"
    earlier.parent.mkdir(parents=True)
    for ran, made in ((1, "first"), (0, "first"), (1, "second"), (0, "second")):
        facts = {"state": "executed", "made_from": {"source": made}, "wrote": {}}
        earlier.write_text(json.dumps(facts), encoding="utf-8")
        capfd.readouterr()
        assert command(source, "SEED=0") == 0
        assert capfd.readouterr().out.count("02_toy: ran in") == ran


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


def test_the_pipeline_says_what_the_chapters_write():
    written = sweep.outputs(ROOT / "dvc.yaml")
    assert list(written) == chapters.names()
    assert "embeddings.safetensors" in written["01_catalogue_and_embeddings"]
    assert "runs" in written["07_next_item"]
