"""`make lab`: what is saved in JupyterLab changes the edited line of a chapter's source, and nothing else."""

import difflib
import json
import os
import shutil
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
from conftest import answers, free_port, wait_for

from semid_lib.chapters import runner

ROOT = Path(__file__).resolve().parent.parent
TOKEN = "only-for-this-test"
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """A copy of the chapters, their sources before, and a function that asks the server that `make lab` starts."""
    folder = tmp_path_factory.mktemp("lab") / "repository"
    shutil.copytree(ROOT / "notebooks", folder / "notebooks", ignore=shutil.ignore_patterns("*.ipynb", ".*"))
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, folder)
    before = {file.stem: file.read_text(encoding="utf-8") for file in (folder / "notebooks").glob("*.py")}
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS", "JUPYTER"))}
    clean["HOME"] = str(folder.parent)
    words = ["INSTALLED=pyproject.toml", f"BIN={Path(sys.executable).parent}", "lab"]
    planned = subprocess.run(["make", "-n", *words], cwd=folder, capture_output=True, text=True, check=True, env=clean)
    *before_it, server = [line for line in planned.stdout.splitlines() if not line.startswith("#")]
    for line in before_it:
        subprocess.run(line, shell=True, cwd=folder, check=True, env=clean)
    port = free_port()
    server += f" --no-browser --allow-root --ip=127.0.0.1 --port={port} --IdentityProvider.token={TOKEN}"
    url = f"http://127.0.0.1:{port}"

    def ask(path: str, content=None):
        headers = {"Authorization": f"token {TOKEN}", "Content-Type": "application/json"}
        body = None if content is None else json.dumps(content).encode()
        request = urllib.request.Request(url + path, body, headers, method="PUT" if body else "GET")
        with urllib.request.urlopen(request, timeout=120) as answer:
            return json.loads(answer.read())

    with open(folder.parent / "log", "wb") as log:
        process = subprocess.Popen(f"exec {server}", shell=True, cwd=folder, env=clean, stdout=log, stderr=log)
    try:
        wait_for(process, lambda: answers(port))
        yield folder / "notebooks", before, ask
    finally:
        process.terminate()
        process.wait()


@pytest.mark.slow
def test_opening_the_lab_changes_no_source(lab):
    notebooks, before, _ = lab
    assert {file.stem: file.read_text(encoding="utf-8") for file in notebooks.glob("*.py")} == before


@pytest.mark.slow
@pytest.mark.parametrize("chapter", runner.names()[:2])
def test_a_save_changes_the_edited_line_and_nothing_else(lab, chapter):
    notebooks, before, ask = lab
    path = f"/api/contents/notebooks/{chapter}.ipynb"
    opened = ask(path)
    cell = next(cell for cell in opened["content"]["cells"] if "parameters" in cell["metadata"].get("tags", []))
    cell["source"] = cell["source"].replace('SCALE = "laptop"', 'SCALE = "smoke"')
    cell["outputs"] = [{"output_type": "stream", "name": "stdout", "text": "a run"}]
    ask(path, {"type": "notebook", "format": "json", "content": opened["content"]})
    after = (notebooks / f"{chapter}.py").read_text(encoding="utf-8")
    changed = [line for line in difflib.ndiff(before[chapter].splitlines(), after.splitlines()) if line[0] in "+-"]
    [line] = [line for line in before[chapter].splitlines() if line.startswith('SCALE = "laptop"')]
    assert changed == [f"- {line}", "+ " + line.replace('"laptop"', '"smoke"')]
    assert after.endswith("\n") == before[chapter].endswith("\n")
