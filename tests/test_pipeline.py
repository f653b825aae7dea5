"""dvc.yaml against the chapters, and DVC itself on a clone of the repository: two real stages on a tiny catalogue.

DVC has an environment of its own (constraints-dvc.txt, `make test` makes it); without it what needs it is skipped.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from semid_lib.chapters import runner
from semid_lib.cli import main
from semid_lib.data import demo_shop
from semid_lib.data.folder import open_store, write_folder
from semid_lib.workbench.store import sha256

ROOT = Path(__file__).resolve().parent.parent
STAGES = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
TOOL = Path(sys.prefix) / "dvc" / "bin" / "python"
needs_dvc = pytest.mark.skipif(not TOOL.exists(), reason="no DVC: `make test` installs it in .venv/dvc")


# --- dvc.yaml ---


def test_each_chapter_is_a_stage_that_runs_it_as_make_does():
    assert list(STAGES) == runner.names()
    for name, stage in STAGES.items():
        [command, *_] = stage["cmd"] if isinstance(stage["cmd"], list) else [stage["cmd"]]
        assert command == f".venv/bin/semid run {name} --only --params params.yaml"
        assert {f"notebooks/{name}.py", "semid_lib", "${files}"} <= set(stage["deps"])
        folder = "artefacts/${name}/${scale}/"
        assert {f"executed/{name}.ipynb", f"rows/{name}.json"} <= set(runner.stages()[name].outputs)
        assert stage["metrics"] == [f"{folder}metrics/{name}.json"]


def test_a_stage_reads_what_an_earlier_one_writes():
    written = {path for stage in runner.stages().values() for path in stage.outputs}
    for name, stage in STAGES.items():
        read = {path.removeprefix("artefacts/${name}/${scale}/") for path in stage["deps"] if path.startswith("art")}
        assert read <= written and name not in runner.before(name)


def test_parameters_of_stages_are_parameters_of_their_chapters():
    for name, stage in STAGES.items():
        [(file, listed)] = stage["params"][0].items()
        assert file == f"notebooks/{name}.py"
        assert set(listed) <= runner.parameters_of(ROOT / file).keys() - {"DATA", "SCALE"}


def test_nothing_secret_and_no_remote_is_committed():
    config = (ROOT / ".dvc" / "config").read_text(encoding="utf-8")
    assert re.findall(r"^\[(.*)\]", config, flags=re.MULTILINE) == ["core"]
    assert "analytics = false" in config
    assert "/config.local" in (ROOT / ".dvc" / ".gitignore").read_text(encoding="utf-8")


# --- DVC ---


class Clone:
    """The files of the repository under a git of their own, on a catalogue of 150 items."""

    def __init__(self, folder: Path):
        self.folder = folder
        for name in ("semid_lib", "notebooks"):
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "*.ipynb"))
        for name in (".dvc/config", ".dvc/.gitignore", ".dvcignore", ".gitignore", "dvc.yaml", "pyproject.toml"):
            (folder / name).parent.mkdir(exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
        items = [{"item_id": item["item_id"], "title": item["title"]} for item in demo_shop.demo_shop().items[:150]]
        write_folder(folder / "data" / "tiny", items)
        name = open_store(str(folder / "data" / "tiny"), "smoke").folder.parent.name
        self.run = f"artefacts/{name}/smoke"
        parameters = {"data": "data/tiny", "name": name, "files": "data/tiny", "scale": "smoke"}
        (folder / "params.yaml").write_text(yaml.safe_dump(parameters), encoding="utf-8")
        command = folder / ".venv" / "bin" / "semid"  # as in an installation, but of the clone's own code
        command.parent.mkdir(parents=True)
        command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m semid_lib.cli "$@"\n', encoding="utf-8")
        command.chmod(0o755)
        own = {name: value for name, value in os.environ.items() if not name.startswith(("GIT_", "DVC_", "AWS_"))}
        own.pop("SEMID_ARTEFACTS")
        path = os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])
        identity = {
            f"GIT_{who}_{what}": "tests@localhost" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")
        }
        self.environment = own | identity | {
            "PYTHONPATH": path, "SEMID_TRACKING": "0", "HOME": str(folder.parent), "DVC_NO_ANALYTICS": "1",
        }  # fmt: skip
        for words in (["init", "-q"], ["add", "."], ["commit", "-qm", "as it is"]):
            self._run(["git", *words])

    def _run(self, command) -> str:
        ran = subprocess.run(
            command, cwd=self.folder, env=self.environment, capture_output=True, text=True, check=False
        )
        assert ran.returncode == 0, ran.stdout + ran.stderr
        return ran.stdout + ran.stderr

    def dvc(self, *words) -> str:
        return self._run([TOOL, "-m", "dvc", *words])

    def status(self) -> str:
        return self._run(["git", "status", "--porcelain"])

    def sums(self) -> dict[str, str]:
        files = [file for file in (self.folder / self.run).rglob("[!.]*") if file.is_file()]
        kept = [file for file in files if file.suffix not in (".log", ".json") or file.parent.name == "rows"]
        return {str(file.relative_to(self.folder)): sha256(file) for file in kept}

    def forget(self) -> None:
        """As on another machine: neither outputs nor cache."""
        shutil.rmtree(self.folder / "artefacts")
        shutil.rmtree(self.folder / ".dvc" / "cache")


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """A clone on which two chapters have been run by DVC."""
    made = Clone(tmp_path_factory.mktemp("clone") / "repository")
    made.printed = made.dvc("repro", "02_semantic_ids")
    return made


@pytest.mark.slow
@needs_dvc
def test_dvc_runs_what_has_changed_and_nothing_else(clone):
    assert "01_catalogue_and_embeddings: ran" in clone.printed and "02_semantic_ids: ran" in clone.printed
    assert clone.status() == "?? dvc.lock\n"
    rows = yaml.safe_load((clone.folder / clone.run / "rows" / "02_semantic_ids.json").read_text(encoding="utf-8"))
    assert not any(row["dirty"] for row in rows)  # dvc.lock alone is no change of the source
    assert "ran in" not in clone.dvc("repro", "02_semantic_ids")
    source = clone.folder / "notebooks" / "02_semantic_ids.py"
    text = source.read_text(encoding="utf-8")
    source.write_text(text.replace("N_LEVELS = 3", "N_LEVELS = 2"), encoding="utf-8")
    assert "N_LEVELS" in clone.dvc("params", "diff")
    again = clone.dvc("repro", "02_semantic_ids")
    assert "02_semantic_ids: ran" in again and "01_catalogue_and_embeddings: ran" not in again
    assert "semantic_ids/tiny" in clone.dvc("metrics", "show")


@pytest.mark.slow
@needs_dvc
def test_what_was_pushed_is_pulled_byte_for_byte(clone, tmp_path):
    clone.dvc("remote", "add", "--local", "folder", str(tmp_path / "remote"))
    before = clone.sums()
    assert len(before) >= 6
    clone.dvc("push", "--remote", "folder", "02_semantic_ids", "--with-deps")
    clone.forget()
    clone.dvc("pull", "--remote", "folder", "02_semantic_ids", "--with-deps")
    assert clone.sums() == before
    assert "config" not in clone.status()


def test_the_parameters_of_params_yaml_are_those_of_dvc_yaml():
    known = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    text = (ROOT / "dvc.yaml").read_text(encoding="utf-8")
    assert set(re.findall(r"\$\{(\w+)\}", text)) == known.keys() - {"data"}  # which never meets a shell
    assert known["data"] == known["name"] == "demo"
    assert (ROOT / known["files"]).is_dir()


def test_a_name_that_is_not_that_of_the_artefacts_is_refused(tmp_path, monkeypatch, capsys):
    write_folder(tmp_path / "my shop", [{"item_id": 1, "title": "Pen"}])
    monkeypatch.chdir(tmp_path)
    (tmp_path / "params.yaml").write_text(yaml.safe_dump({"data": "my shop", "name": "my shop", "scale": "smoke"}))
    assert main(["run", "01_catalogue_and_embeddings", "--only", "--params", "params.yaml"]) == 1
    assert re.search(r"has the name 'my shop', expected 'my_shop-[0-9a-f]{8}'", capsys.readouterr().err)
