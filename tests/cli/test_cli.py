"""The command: what it lists, how it refuses, and that its options are those of the functions behind them."""

import inspect
import subprocess
import sys

import pytest

from semid_lib.cli import demo, importing, main
from semid_lib.data import dataset, demo_shop, importers
from semid_lib.serving.http import web
from semid_lib.serving.recommender import Recommender

COMMANDS = ["run", "train", "sweep", "summary", "folder", "predict", "serve", "push", "demo"]
COMMANDS += ["import table", "import amazon", "results publish", "results check"]
COMMANDS += [f"catalogue shop {name}" for name in ("status", "add", "remove", "update", "refit", "rollback")]
COMMANDS += [f"deploy {name}" for name in ("upload", "predict", "train", "fetch", "measure")]


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_has_help_and_an_example(command, capsys):
    assert main([*command.split(), "--help"]) == 0
    assert f"semid {command}" in capsys.readouterr().out.split("Example: ")[1].replace("\n ", "")


def test_help_imports_nothing_heavy():
    code = (
        "import sys, time; from semid_lib.cli import main; main(['--help']); print(time.process_time(), *sys.modules)"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    seconds, *loaded = told.splitlines()[-1].split()
    assert float(seconds) < 0.5
    assert not {"torch", "numpy", "pandas", "semid_lib.workbench"} & set(loaded)


@pytest.mark.parametrize("name", ["import_table", "import_amazon"])
def test_options_of_an_import_are_the_parameters_of_its_function(name):
    asked, known = (inspect.signature(getattr(module, name)).parameters for module in (importing, importers))
    assert asked.keys() == known.keys()
    plain = {key: each.default for key, each in known.items()} | ({"progress": True} if "progress" in known else {})
    assert {key: each.default for key, each in asked.items()} == plain


def test_exit_codes(tmp_path, capsys, monkeypatch):
    assert main(["serve"]) == 2 and main(["no-such-command"]) == 2
    capsys.readouterr()
    assert main(["import", "table", "--items", str(tmp_path / "none.csv"), "--output", str(tmp_path / "out")]) == 1
    told = capsys.readouterr().err
    assert told.startswith("error: ") and told.count("\n") == 1 and "none.csv" in told

    def broken(*_, **__):
        raise KeyError("a bug")

    monkeypatch.setattr(importers, "import_table", broken)
    with pytest.raises(KeyError, match="a bug"):
        main(["import", "table", "--items", "x.csv", "--output", "out"])


@pytest.mark.slow
def test_the_demo_trains_once_and_serves_what_answers(tmp_path, monkeypatch):
    demo_shop.write_demo_shop(tmp_path / "shop", n_items=100, n_users=60, n_queries=5)
    shop, served = dataset.load(tmp_path / "shop"), []
    demo.train(shop, tmp_path / "demo", n_epochs=1, progress=False)
    monkeypatch.setattr(web, "serve", lambda folder, port: served.append((folder, port)))
    assert main(["demo", "--folder", str(tmp_path / "demo"), "--port", "8181", "--no-browser"]) == 0
    assert served == [(tmp_path / "demo", 8181)]
    recommender = Recommender.from_pretrained(tmp_path / "demo")
    assert recommender.recommend([shop.items["item_id"].tolist()[:2]], k=5).item_ids.shape == (1, 5)
    title = shop.items["title"][7]
    assert recommender.items["title"][recommender.searcher.search([title], 3).items[0, 0]] == title
