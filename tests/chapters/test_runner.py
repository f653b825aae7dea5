"""Chapters of a few lines: run, failed, killed, out of date; several at once; and what the Makefile hands on."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jupytext
import numpy as np
import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from semid_lib.chapters import runner, schedule
from semid_lib.cli import main
from semid_lib.data.folder import open_store, write_folder
from semid_lib.workbench import store

ROOT = Path(__file__).resolve().parents[2]
SOURCE = """# %% tags=["parameters"]
DATA = "demo"
SCALE = "laptop"
SEED = 0
WIDTH = None

# %%
import matplotlib.pyplot as plt

from semid_lib.workbench import store

shelf = store.Store("demo", SCALE, "f" * 64)

# %%
figure, axes = plt.subplots(figsize=(1, 1))
axes.plot([0, SEED])
plt.show()

# %%
rows = [{"key": "toy/seed", "value": SEED}, {"key": "toy/mine/recall@10", "value": 0.5, "ci95": [0.25, 0.75], "n": 4}]
shelf.record("01_toy", rows)
print("seed", SEED, "width", WIDTH)
"""
# the same without a figure and rows, which take seconds to import
PLAIN = SOURCE[: SOURCE.index("# %%\nimport")] + '# %%\nseen = SEED\nprint("seed", SEED)\n'
FAILING = PLAIN.replace("print(", 'raise KeyError("no such shelf")\nprint(')
# it saves an artefact
SAVING = (
    PLAIN
    + """import numpy as np
from semid_lib.workbench import store

store.hardware = str
store.Store("demo", SCALE, "f").save("things", {"a": np.ones(2)})
"""
)


@pytest.fixture
def notebooks(tmp_path):
    folder = tmp_path / "repository" / "notebooks"
    folder.mkdir(parents=True)
    (folder / "01_toy.py").write_text(PLAIN, encoding="utf-8")
    return folder


@pytest.fixture(autouse=True)
def elsewhere(monkeypatch, tmp_path):
    monkeypatch.setenv("SEMID_ARTEFACTS", str(tmp_path / "artefacts"))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))


def needing(notebooks, **needs):
    """Write a dvc.yaml in which each chapter reads the rows of those that it needs."""
    rows = "artefacts/${name}/${scale}/rows/%s.json"
    chapters = {*needs, *(each for found in needs.values() for each in found)}
    stages = {name: {"deps": [rows % each for each in needs.get(name, [])], "outs": [rows % name]} for name in chapters}
    (notebooks.parent / "dvc.yaml").write_text(yaml.safe_dump({"stages": stages}), encoding="utf-8")


def command(notebooks):
    words = "01_toy", "--only", "--scale", "smoke"
    return [sys.executable, "-m", "semid_lib.cli", "run", "--notebooks", notebooks, *words]


def run(notebooks, *words):
    return main([str(word) for word in command(notebooks)[3:]] + list(words))


def folder():
    return runner.folder_of("demo", "smoke")


def state(notebooks, name="01_toy"):
    return schedule.state(name, open_store("demo", "smoke"), notebooks)


def stale(notebooks):
    return [name for name in runner.names(notebooks) if state(notebooks, name) != "executed"]


def left():
    return sorted(file.name for file in folder().iterdir() if file.suffix != ".lock")


def test_a_chapter_runs_whole(notebooks, capsys):
    (notebooks / "01_toy.py").write_text(SOURCE, encoding="utf-8")
    assert run(notebooks, "-p", "SEED=3", "-p", "WIDTH=two") == 0
    assert re.fullmatch(r"01_toy: started on demo, smoke\n01_toy: ran in \d+\.\d minutes\n", capsys.readouterr().out)
    assert left() == ["01_toy.ipynb", "01_toy.json", "01_toy.log"]
    assert "seed 3 width two" in (folder() / "01_toy.log").read_text(encoding="utf-8")
    facts = runner.facts_of("01_toy", folder())
    assert facts["parameters"] == {"DATA": "demo", "SCALE": "smoke", "SEED": 3, "WIDTH": "two"}
    assert (facts["state"], facts["rows"], facts["fingerprint"]) == ("executed", 2, "f" * 64)
    assert facts["commit"] == store.commit()["commit"] and facts["seconds"] > 0
    metrics = json.loads((folder().parent / "metrics" / "01_toy.json").read_text(encoding="utf-8"))
    assert metrics == {"toy/demo/seed": 3, "toy/demo/mine/recall@10": 0.5}
    cells = jupytext.read(folder() / "01_toy.ipynb").cells
    assert any("image/png" in output.get("data", {}) for cell in cells for output in cell.get("outputs", []))
    assert store.Store("demo", "smoke", "").rows()[0]["seed"] == 3


@pytest.mark.slow
def test_a_run_that_fails_leaves_its_error_and_neither_rows_nor_an_executed_notebook(notebooks, capsys):
    source, shelf = notebooks / "01_toy.py", store.Store("demo", "smoke", "f" * 64)
    assert run(notebooks) == 0
    whole = (folder() / "01_toy.ipynb").read_bytes()
    shelf.record("01_toy", [{"key": "toy/seed", "value": 0}])
    (shelf.path("rows") / ".01_toy.0a1b.partial").write_text("[]", encoding="utf-8")  # of a run that was killed
    source.write_text(FAILING, encoding="utf-8")
    capsys.readouterr()
    assert run(notebooks) == 1
    told = r"01_toy: failed after 0\.\d minutes in In \[\d+\], `seen = SEED`: KeyError: 'no such shelf'; it leaves no"
    sentence = capsys.readouterr().err
    assert re.match(told, sentence) and str(folder() / "01_toy.log") in sentence
    assert (folder() / "01_toy.log").read_text(encoding="utf-8").rstrip().endswith("KeyError: 'no such shelf'")
    assert "no such shelf" in (folder() / "01_toy.failed.ipynb").read_text(encoding="utf-8")
    assert (folder() / "01_toy.ipynb").read_bytes() == whole  # of the run before, and older than the source
    assert shelf.rows() == [] and not list(folder().parent.glob("rows/.*")) and not list(folder().glob("*.running*"))
    assert state(notebooks) == "failed"
    source.write_text(PLAIN, encoding="utf-8")
    assert run(notebooks) == 0
    assert not (folder() / "01_toy.failed.ipynb").exists() and state(notebooks) == "executed"


@pytest.mark.slow
def test_a_kernel_that_dies_is_a_failure_of_its_cell(notebooks):
    dying = PLAIN.replace("print(", "import os\n\nos._exit(9)\nprint(")
    (notebooks / "01_toy.py").write_text(dying, encoding="utf-8")
    facts = runner.run(notebooks / "01_toy.py", scale="smoke")
    assert facts["state"] == "failed"
    assert "DeadKernelError" in facts["error"] and "seen = SEED" in facts["cell"]
    assert left() == ["01_toy.failed.ipynb", "01_toy.json", "01_toy.log"]
    assert "DeadKernelError" in (folder() / "01_toy.log").read_text(encoding="utf-8")


def sleeping(notebooks) -> Path:
    """A chapter that writes the id of its kernel into the file that is returned, and sleeps."""
    told = notebooks / "kernel"
    slow = f"import os, time\n\nopen({str(told)!r}, 'w').write(str(os.getpid()))\ntime.sleep(600)\nprint("
    (notebooks / "01_toy.py").write_text(PLAIN.replace("print(", slow), encoding="utf-8")
    return told


def wait_for(told, process):
    while not told.exists() or not told.read_text():
        assert process.poll() is None
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.parametrize("words", [["--only"], []], ids=["one", "all"])
def test_a_run_that_is_stopped_ends_its_kernel_and_leaves_no_executed_notebook(notebooks, words):
    told = sleeping(notebooks)
    asked = [word for word in command(notebooks) if word != "--only"] + words
    with subprocess.Popen(asked, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        wait_for(told, process)
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=600)
    assert process.returncode == 130 and errors.rstrip().endswith("01_toy: stopped")
    assert left() == ["01_toy.failed.ipynb", "01_toy.log"]
    assert state(notebooks) == "unfinished" and not Path("/proc", told.read_text()).exists()


@pytest.mark.slow
def test_the_same_chapter_does_not_run_twice_at_once(notebooks, capsys):
    told = sleeping(notebooks)
    with subprocess.Popen(command(notebooks), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as first:
        wait_for(told, first)
        (notebooks / "01_toy.py").write_text(PLAIN, encoding="utf-8")
        assert run(notebooks) == 1
        message = r"01_toy: another process runs it now, into .*: wait until it ends, or stop it"
        assert re.search(message, capsys.readouterr().err)
        first.kill()  # it cannot tidy up
        first.wait()
    assert state(notebooks) == "unfinished"
    assert run(notebooks) == 0 and stale(notebooks) == []  # the lock of a dead process holds nothing up


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["-p", "SEDE=1"], "no parameter 'SEDE' here, expected one of SEED, WIDTH"),
        (["-p", "SCALE=full"], "no parameter 'SCALE'"),
        (["-p", "SEED"], "'SEED' is no parameter, expected KEY=VALUE"),
        (["--scale", "huge"], "SCALE is 'huge', expected one of smoke"),
        (["--data", "nowhere"], "DATA is 'nowhere', expected demo or a folder"),
        (["--notebooks", "."], "no chapter '01_toy'"),
    ],
)
@pytest.mark.parametrize("only", ["--only", ""])
def test_what_cannot_be_run_is_said_before_anything_runs(notebooks, words, problem, only, capsys):
    command = ["run", "01_toy", "--notebooks", str(notebooks), "--scale", "smoke", *words, *only.split()]
    assert main(command) == 1
    assert problem in capsys.readouterr().err
    assert not (Path(os.environ["SEMID_ARTEFACTS"]) / "demo").exists()


@pytest.mark.parametrize("option", ["--artefacts=x", "--group=x"])
def test_options_of_one_run_are_not_ignored_by_a_run_of_several(notebooks, option, capsys):
    assert main(["run", "01_toy", "--notebooks", str(notebooks), option]) == 2
    assert "expected --only" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("text", ["", "{", "null"])
def test_damaged_facts_of_a_run_are_named(notebooks, text, capsys):
    folder().mkdir(parents=True)
    (folder() / "01_toy.json").write_text(text)
    for words in (["summary"], ["run"]):
        assert main([*words, "--notebooks", str(notebooks), "--scale", "smoke"]) == 1
        assert f"{folder() / '01_toy.json'} is damaged" in capsys.readouterr().err


# --- up to date, by content ---


@pytest.mark.slow
def test_what_makes_a_chapter_stale(notebooks, monkeypatch, tmp_path):
    first, second = notebooks / "01_toy.py", notebooks / "02_next.py"
    first.write_text(SAVING, encoding="utf-8")
    second.write_text(PLAIN, encoding="utf-8")
    needing(notebooks, **{"02_next": ["01_toy"]})
    lines = schedule.summary("demo", "smoke", notebooks).splitlines()
    assert [line.split()[1:] for line in lines[2:4]] == [["not", "run"]] * 2
    for source in (first, second):
        runner.run(source, scale="smoke")
    assert stale(notebooks) == []
    for source, found in ((first, ["01_toy", "02_next"]), (second, ["02_next"])):
        text = source.read_text(encoding="utf-8")
        os.utime(source, (time.time() + 99,) * 2)
        assert stale(notebooks) == []  # times do not count
        source.write_text(text + "# more\n", encoding="utf-8")
        assert stale(notebooks) == found
        source.write_text(text, encoding="utf-8")
        assert stale(notebooks) == []
    library, changed = runner._LIBRARY, tmp_path / "library"
    for name in ("data/folder.py", "data/demo_shop/words.toml", "serving/model_card.md"):
        shutil.copytree(library, changed, ignore=shutil.ignore_patterns("__pycache__"))
        with monkeypatch.context() as patch:
            patch.setattr(runner, "_LIBRARY", changed)
            assert stale(notebooks) == []
            with open(changed / name, "a", encoding="utf-8") as file:
                file.write("\n# changed\n")
            assert stale(notebooks) == ["01_toy", "02_next"]
        shutil.rmtree(changed)
    runner.run(first, scale="smoke")
    assert stale(notebooks) == []  # it wrote the same again
    first.write_text(SAVING.replace("ones", "zeros"), encoding="utf-8")
    runner.run(first, scale="smoke")
    assert stale(notebooks) == ["02_next"]
    runner.run(second, scale="smoke", parameters={"SEED": 1})
    assert stale(notebooks) == ["02_next"]
    assert runner.is_up_to_date(second, open_store("demo", "smoke"), {"SEED": 1})
    (folder().parent / "rows" / "02_next.json").unlink()
    assert not runner.is_up_to_date(second, open_store("demo", "smoke"), {"SEED": 1})
    store.Store("demo", "smoke", "f").save("things", {"a": np.ones(2)})  # by hand, in JupyterLab
    assert stale(notebooks) == ["01_toy", "02_next"]


# --- several at once ---


@pytest.mark.slow
def test_what_does_not_need_a_failed_chapter_runs_all_the_same(notebooks, capfd, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(4), raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    (notebooks / "01_toy.py").write_text(FAILING, encoding="utf-8")
    for name in ("02_next", "03_other"):
        (notebooks / f"{name}.py").write_text(PLAIN, encoding="utf-8")
    needing(notebooks, **{"02_next": ["01_toy"]})

    def run_all(*names):
        status = main(["run", *names, "--notebooks", str(notebooks), "--scale", "smoke"])
        printed = capfd.readouterr()
        return status, sorted(re.findall(r"(\w+): started", printed.out)), printed.out

    status, started, printed = run_all()
    assert (status, started) == (1, ["01_toy", "03_other"])
    table = printed[printed.index("demo, smoke\n") :]
    assert re.search(r"01_toy +failed", table) and re.search(r"02_next +not run", table)
    assert re.search(r"03_other +executed", table)
    assert runner.facts_of("03_other", folder())["threads"] == "2"  # 4 cores, 2 at once
    (notebooks / "01_toy.py").write_text(PLAIN, encoding="utf-8")
    assert run_all()[:2] == (0, ["01_toy", "02_next"])
    assert run_all()[:2] == (0, [])
    assert run_all("02_next")[:2] == (0, ["02_next"])  # what is named runs in any case


class Process:
    """A process that has ended before it is looked at."""

    def __init__(self, returncode):
        self.returncode = returncode

    def poll(self):
        return self.returncode


def test_chapters_that_others_wait_for_start_first_and_trainings_precede_their_chapter():
    graph = schedule.graph_of(["07_next_item", "03_codebook_analysis"], with_trainings=True)
    started = []

    def start(node, alone):
        started.append((node, alone))
        return Process(1) if node == "07_next_item.tiger" else Process(0)

    assert not schedule._follow(graph, start, jobs=2)
    assert started[:2] == [("01_catalogue_and_embeddings", True), ("02_semantic_ids", True)]
    assert [node for node, _ in started[2:]] == [
        *("07_next_item.sasrec", "07_next_item.tiger", "07_next_item.timeline", "03_codebook_analysis"),
    ]  # the training failed, so chapter 07 did not start
    alone = schedule.graph_of(["07_next_item"])
    assert not any("." in node for node in alone) and alone["07_next_item"] == [
        *("01_catalogue_and_embeddings", "02_semantic_ids"),
    ]


@pytest.mark.slow
def test_a_model_is_trained_beforehand_if_its_chapter_is_stale_and_counts_in_the_summary(notebooks, monkeypatch):
    monkeypatch.setattr(schedule, "TRAININGS", {"01_toy": ("tiger",)})
    asked, source = [], notebooks / "01_toy.py"

    def train():
        asked.append(1)
        print("epoch 1", file=sys.stderr)

    schedule.train_before(source, "tiger", "demo", "smoke", train)
    assert (folder() / "01_toy.tiger.log").read_text(encoding="utf-8") == "epoch 1\n"
    runner.run(source, scale="smoke")
    assert re.search(r"tiger +trained +0\.0", schedule.summary("demo", "smoke", notebooks))
    schedule.train_before(source, "tiger", "demo", "smoke", lambda: asked.append(2))
    assert asked == [1]


# --- the Makefile ---


ODD = "my $shop & co's; `touch x` $(touch x) (100%) #1, Café"
READING = PLAIN.replace(
    "seen = SEED", "from semid_lib.data import dataset as data\n\nseen = len(data.load(DATA).items)"
)


@pytest.fixture
def repository(notebooks):
    for file in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / file, notebooks.parent)
    return notebooks.parent


def make(repository, *words, **environment):
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS", "OMP_"))}
    # nothing is installed: the interpreter of the tests takes the place of the project's environment
    command = ["make", "INSTALLED=pyproject.toml", f"BIN={Path(sys.executable).parent}", "SCALE=smoke"]
    command += [f"SEMID={sys.executable} -m semid_lib.cli", *words]
    clean |= {"SEMID_NOTEBOOKS": str(repository / "notebooks")} | environment
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=repository, env=clean)


ASKING = """
shown:
\t@printf '%s' "$$DATA" > shown
asking:
\t@$(SEMID) folder $(ON)
"""


@pytest.mark.slow
@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(st.sampled_from("ab $&;'\"`\\#%()=:,é-~*?<>|!{}[]\t")), st.sampled_from(["argument", "environment"]))
@example("$(shell touch x)", "argument")
@example("$$a $(DATA) ${HOME} \\$b", "argument")
@example("-n --data=x\\", "environment")
def test_make_hands_data_to_commands_as_they_are(repository, name, how):
    (repository / "ask.mk").write_text(ASKING, encoding="utf-8")
    (repository / "shown").unlink(missing_ok=True)
    words = ["-f", "Makefile", "-f", "ask.mk", "shown"]
    ran = make(repository, *words, f"DATA=x{name}") if how == "argument" else make(repository, *words, DATA=f"x{name}")
    assert ran.returncode == 0, ran.stderr
    assert (repository / "shown").read_text(encoding="utf-8") == f"x{name}"
    assert not (repository / "x").exists()


@pytest.mark.parametrize("name", ["-n", "--help", "~"])
def test_make_takes_a_folder_whose_name_looks_like_an_option(repository, name):
    (repository / "ask.mk").write_text(ASKING, encoding="utf-8")
    write_folder(repository / name, [{"item_id": 1, "title": "Pen"}])
    asked = make(repository, "-f", "Makefile", "-f", "ask.mk", "asking", f"DATA={name}")
    assert asked.returncode == 0 and asked.stdout.strip() == str(runner.folder_of(repository / name, "smoke").parent)


@pytest.mark.slow
def test_a_shop_never_gets_the_results_of_another_of_its_name(notebooks, tmp_path, capfd):
    (notebooks / "01_toy.py").write_text(READING, encoding="utf-8")
    for where, titles in (("a", ["Pen"]), ("b", ["Pen", "Ink"])):
        write_folder(tmp_path / where / "shop", [{"item_id": n, "title": title} for n, title in enumerate(titles)])

    def ran(shop):
        assert main(["run", "--notebooks", str(notebooks), "--data", shop, "--scale", "smoke"]) == 0
        return "01_toy: ran" in capfd.readouterr().out

    assert [ran(str(tmp_path / where / "shop")) for where in "aabb"] == [True, False, True, False]
    (tmp_path / "a").rename(tmp_path / "moved")
    assert not ran(f"{tmp_path / 'moved' / 'shop'}/")
