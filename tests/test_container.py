"""The Dockerfile without Docker: its steps are read, checked, and done in an empty folder and environment.

Installing takes minutes, so that part runs only with SEMID_CONTAINER=1; the rest always does.
"""

import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import time
from fnmatch import fnmatch
from pathlib import Path

import httpx
import pytest

ROOT = Path(__file__).resolve().parent.parent


def steps() -> list[tuple[str, str]]:
    """Instructions and their arguments, continued lines joined."""
    text = re.sub(r"\\\n", " ", re.sub(r"(?m)^\s*#.*\n", "", (ROOT / "Dockerfile").read_text(encoding="utf-8")))
    return [tuple(line.split(None, 1)) for line in text.splitlines() if line.strip()]


def stage(number: int) -> list[tuple[str, str]]:
    """The instructions after the n-th FROM."""
    starts = [at for at, (name, _) in enumerate(steps()) if name == "FROM"]
    return steps()[starts[number] : [*starts, len(steps())][number + 1]]


def only(name: str, number: int = 1) -> str:
    [argument] = [argument for step, argument in stage(number) if step == name]
    return argument


def sent(path: Path) -> bool:
    """Whether .dockerignore lets a file through: the last line that fits decides."""
    through = True
    for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines():
        pattern, inside = line.removeprefix("!"), path.relative_to(ROOT).as_posix()
        heads = [inside, *(parent.as_posix() for parent in Path(inside).parents)]
        fits = any(
            fnmatch(head, pattern.removeprefix("**/")) or head.endswith(f"/{pattern.removeprefix('**/')}")
            for head in heads
        )
        if line and not line.startswith("#") and fits:
            through = line.startswith("!")
    return through


def copied(to: Path) -> None:
    """Do what the first stage's COPY lines do."""
    for argument in (argument for step, argument in stage(0) if step == "COPY"):
        copy(argument, to)


def copy(argument: str, to: Path) -> None:
    """Do what one COPY line of the first stage does."""
    *sources, target = shlex.split(argument)
    for source in sources:
        path, inside = ROOT / source, to / target / ("" if (ROOT / source).is_dir() else source)
        assert path.exists() and (path.is_dir() or sent(path)), source
        if path.is_dir():
            shutil.copytree(path, inside, ignore=lambda folder, names: [n for n in names if not sent(Path(folder) / n)])
        else:
            inside.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, inside)


def environment(**more: str) -> dict[str, str]:
    """What ENV says, and nothing of this process that would help, but one thread."""
    variables = dict(pair.split("=", 1) for pair in shlex.split(only("ENV")) if not pair.startswith("PATH="))
    return {"PATH": os.defpath, "HOME": "/nonexistent", "OMP_NUM_THREADS": "1", **variables, **more}


def test_the_image_is_pinned_small_and_not_root():
    bases = [argument.split()[0] for step, argument in steps() if step == "FROM"]
    assert len(set(bases)) == 1 and re.fullmatch(r"python:3\.11\.\d+-slim-[a-z]+", bases[0])
    assert int(only("USER")) > 0
    taken = [argument for step, argument in stage(1) if step == "COPY"]
    assert taken == [f"--from=build {folder} {folder}" for folder in ("/opt/semid", "/opt/code")]
    assert not [step for step, _ in stage(1) if step == "RUN"]
    names = [step for step, _ in stage(1)]
    assert names.index("USER") < names.index("ENTRYPOINT")
    depend, code = [argument for step, argument in stage(0) if step == "RUN"]
    assert "--no-cache-dir" in depend and "--constraint constraints.txt" in depend
    assert '".[serve,search,embed]"' in depend  # a folder of chapter 07 may search too
    assert "--no-cache-dir" in code and "--no-deps" in code


def test_a_change_of_the_code_installs_nothing_again():
    made = [step for step, _ in stage(0)]
    copies_code = stage(0).index(("COPY", "semid_lib semid_lib"))
    assert made[copies_code:] == ["COPY", "RUN"]  # before it stand the layer of dependencies and what that needs
    assert "semid_lib" not in "".join(argument for step, argument in stage(0)[:copies_code] if step == "COPY")


def test_only_what_is_copied_is_sent(tmp_path):
    assert [name for name in ("tests", "book", ".git", ".venv", "artefacts", "notebooks") if sent(ROOT / name)] == []
    copied(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {
        *("pyproject.toml", "constraints.txt", "README.md", "LICENSE", "semid_lib"),
    }
    assert (tmp_path / "semid_lib/serving/http/page/index.html").is_file() and not list(tmp_path.rglob("__pycache__"))


def answered(python: Path | str, folder: Path, item_id: int, variables: dict[str, str]) -> None:
    """ENTRYPOINT as batch and as service on the model in `folder`, from an empty folder beside it."""
    data = folder / "data"
    data.mkdir()
    (data / "histories.txt").write_text(f"ann {item_id}\n")
    entry = json.loads(only("ENTRYPOINT"))
    assert entry[0] == "semid"

    def run(*words):
        return subprocess.run(
            [python, "-m", "semid_lib.cli", *words],
            cwd=data,
            env=variables,
            capture_output=True,
            text=True,
            check=False,
        )

    assert "--input" in run(*entry[1:], *json.loads(only("CMD"))).stdout
    options = ["--model", str(folder / "model"), "--input", "histories.txt", "--output", "preds.csv"]
    batch = run(*entry[1:], *options)
    assert batch.returncode == 0, batch.stderr
    assert (data / "preds.csv").read_text().startswith("user_id,item_ids,scores\nann,")

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    serve = ["-m", "semid_lib.cli", "serve", "--model", str(folder / "model"), "--port", str(port)]
    service = subprocess.Popen([python, *serve], cwd=data, env=variables, stderr=subprocess.DEVNULL)
    try:
        while service.poll() is None:
            try:
                page = httpx.get(f"http://127.0.0.1:{port}/page/page.js")
                break
            except httpx.TransportError:
                time.sleep(0.1)
        assert page.status_code == 200
        answer = httpx.post(f"http://127.0.0.1:{port}/recommend", json={"item_ids": [item_id], "k": 3})
        assert len(answer.json()["items"]) == 3
    finally:
        service.terminate()
        service.wait(30)


@pytest.mark.slow
def test_what_is_copied_predicts_and_serves(tmp_path, served_folder, shop):
    copied(tmp_path / "build")
    answered(
        sys.executable,
        tmp_path,
        int(shop.items["item_id"][0]),
        environment(PYTHONPATH=str(tmp_path / "build"), NUMBA_DISABLE_JIT="1"),
    )


@pytest.mark.skipif(os.environ.get("SEMID_CONTAINER") != "1", reason="SEMID_CONTAINER=1 installs for minutes")
def test_the_image_is_built_and_answers(tmp_path, served_folder, shop):
    (tmp_path / "build").mkdir()
    for step, argument in stage(0):
        if step == "COPY":
            copy(argument, tmp_path / "build")
        elif step == "RUN":
            subprocess.run(argument.replace("/opt", str(tmp_path)), shell=True, cwd=tmp_path / "build", check=True)
    shutil.rmtree(tmp_path / "build")  # the second stage has the environment and the code alone
    variables = {name: value.replace("/opt", str(tmp_path)) for name, value in environment().items()}
    answered(tmp_path / "semid/bin/python", tmp_path, int(shop.items["item_id"][0]), variables)
