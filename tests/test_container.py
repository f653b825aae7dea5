"""The Dockerfile without Docker: its steps are read and checked, and what it copies answers in an empty folder."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def stages() -> list[list[tuple[str, str]]]:
    """Instructions and their arguments after each FROM, continued lines joined."""
    text = re.sub(r"\\\n", " ", re.sub(r"(?m)^\s*#.*\n", "", (ROOT / "Dockerfile").read_text(encoding="utf-8")))
    lines = [tuple(line.split(None, 1)) for line in text.splitlines() if line.strip()]
    starts = [at for at, (name, _) in enumerate(lines) if name == "FROM"]
    return [lines[start:end] for start, end in zip(starts, [*starts[1:], len(lines)], strict=True)]


BUILD, IMAGE = stages()


def arguments(stage: list[tuple[str, str]], name: str) -> list[str]:
    return [argument for step, argument in stage if step == name]


def test_the_image_is_pinned_small_and_not_root():
    bases = {argument.split()[0] for stage in (BUILD, IMAGE) for argument in arguments(stage, "FROM")}
    assert len(bases) == 1 and re.fullmatch(r"python:3\.11\.\d+-slim-[a-z]+", bases.pop())
    assert arguments(IMAGE, "COPY") == [f"--from=build {folder} {folder}" for folder in ("/opt/semid", "/opt/code")]
    assert int(arguments(IMAGE, "USER")[0]) > 0 and not arguments(IMAGE, "RUN")
    assert arguments(IMAGE, "ENTRYPOINT") == ['["semid", "predict"]']
    depend, code = arguments(BUILD, "RUN")
    assert "--no-cache-dir" in depend and "--constraint constraints.txt" in depend
    assert '".[serve,search,embed]"' in depend  # a folder of chapter 07 may search too
    assert "--no-cache-dir" in code and "--no-deps" in code


def test_a_change_of_the_code_installs_nothing_again_and_only_what_is_copied_is_sent():
    depend, code = (shlex.split(argument)[:-1] for argument in arguments(BUILD, "COPY"))
    assert "semid_lib" not in depend and code == ["semid_lib"]
    assert [step for step, _ in BUILD[-2:]] == ["COPY", "RUN"]  # before them is the layer of dependencies
    everything, *lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()[1:]
    assert everything == "*" and lines == [*(f"!{source}" for source in depend + code), "**/__pycache__"]


@pytest.mark.slow
def test_what_is_copied_predicts(tmp_path, served_folder, shop):
    shutil.copytree(ROOT / "semid_lib", tmp_path / "code" / "semid_lib", ignore=shutil.ignore_patterns("__pycache__"))
    variables = dict(pair.split("=", 1) for pair in shlex.split(arguments(IMAGE, "ENV")[0]) if pair[:5] != "PATH=")
    environment = {"PATH": os.defpath, "HOME": "/nonexistent", "OMP_NUM_THREADS": "1", "NUMBA_DISABLE_JIT": "1"}
    environment |= variables | {"PYTHONPATH": str(tmp_path / "code")}
    (tmp_path / "histories.txt").write_text(f"ann {shop.items['item_id'][0]}\n")
    options = ["--model", str(served_folder), "--input", "histories.txt", "--output", "preds.csv"]
    command = [sys.executable, "-m", "semid_lib.cli", "predict", *options]
    run = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert (tmp_path / "preds.csv").read_text().startswith("user_id,item_ids,scores\nann,")
