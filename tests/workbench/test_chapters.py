"""The runner on a chapter of a few lines, and on one that fails; the Makefile on three of them."""

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
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from semid_lib.cli import main
from semid_lib.data.folder import write_folder
from semid_lib.workbench import chapters, store

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


@pytest.fixture
def notebooks(tmp_path):
    folder = tmp_path / "repository" / "notebooks"
    folder.mkdir(parents=True)
    (folder / "01_toy.py").write_text(SOURCE, encoding="utf-8")
    return folder


@pytest.fixture(autouse=True)
def elsewhere(monkeypatch, tmp_path):
    monkeypatch.setenv("SEMID_ARTEFACTS", str(tmp_path / "artefacts"))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))


def command(notebooks):
    words = "01_toy", "--scale", "smoke"
    return [sys.executable, "-m", "semid_lib.cli", "run", "--notebooks", notebooks, *words]


def left_in(folder):
    return sorted(file.name for file in folder.iterdir() if file.suffix != ".lock")


def run(notebooks, *words):
    return subprocess.run([*command(notebooks), *words], capture_output=True, text=True, check=False, cwd=ROOT)


def test_a_chapter_runs_whole(notebooks):
    ran = run(notebooks, "-p", "SEED", "3", "-p", "WIDTH", "two")
    assert ran.returncode == 0 and "WARNING" not in ran.stderr, ran.stderr
    assert re.fullmatch(r"01_toy: started on demo, smoke\n01_toy: ran in \d+\.\d minutes\n", ran.stdout)
    folder = chapters.folder_of("demo", "smoke")
    assert left_in(folder) == ["01_toy.ipynb", "01_toy.json", "01_toy.log"]
    assert "seed 3 width two" in (folder / "01_toy.log").read_text(encoding="utf-8")
    facts = chapters.facts_of("01_toy", folder)
    assert facts["parameters"] == {"DATA": "demo", "SCALE": "smoke", "SEED": 3, "WIDTH": "two"}
    assert (facts["state"], facts["rows"], facts["fingerprint"]) == ("executed", 2, "f" * 64)
    assert facts["commit"] == store.commit()["commit"] and facts["seconds"] > 0
    metrics = json.loads((folder.parent / "metrics" / "01_toy.json").read_text(encoding="utf-8"))
    assert metrics == {"toy/demo/seed": 3, "toy/demo/mine/recall@10": 0.5}
    cells = jupytext.read(folder / "01_toy.ipynb").cells
    assert any("image/png" in output.get("data", {}) for cell in cells for output in cell.get("outputs", []))


def test_a_chapter_that_fails_leaves_its_error_and_no_executed_notebook(notebooks):
    source = notebooks / "01_toy.py"
    source.write_text(PLAIN, encoding="utf-8")
    assert chapters.run(source, scale="smoke")["state"] == "executed"
    folder = chapters.folder_of("demo", "smoke")
    whole = (folder / "01_toy.ipynb").read_bytes()
    source.write_text(FAILING, encoding="utf-8")
    failed = run(notebooks)
    assert failed.returncode == 1
    [sentence] = [line for line in failed.stderr.splitlines() if line.startswith("01_toy")]
    told = (
        r"01_toy: failed after 0\.\d minutes in In \[\d+\], `seen = SEED`: KeyError: 'no such shelf'; it leaves no rows"
    )
    assert re.match(told, sentence)
    assert str(folder / "01_toy.log") in sentence
    assert (folder / "01_toy.log").read_text(encoding="utf-8").rstrip().endswith("KeyError: 'no such shelf'")
    assert "no such shelf" in (folder / "01_toy.failed.ipynb").read_text(encoding="utf-8")
    assert (folder / "01_toy.ipynb").read_bytes() == whole  # of the run before, and older than the source
    assert not list(folder.glob("*.running*"))
    assert chapters.state("01_toy", store.open_store("demo", "smoke"), notebooks) == "failed"
    source.write_text(PLAIN, encoding="utf-8")
    assert chapters.run(source, scale="smoke")["state"] == "executed"
    assert not (folder / "01_toy.failed.ipynb").exists()
    assert chapters.state("01_toy", store.open_store("demo", "smoke"), notebooks) == "executed"


def test_a_kernel_that_dies_is_a_failure_of_its_cell(notebooks):
    dying = PLAIN.replace("print(", "import os\n\nos._exit(9)\nprint(")
    (notebooks / "01_toy.py").write_text(dying, encoding="utf-8")
    facts = chapters.run(notebooks / "01_toy.py", scale="smoke")
    assert facts["state"] == "failed"
    assert "DeadKernelError" in facts["error"] and "seen = SEED" in facts["cell"]
    folder = chapters.folder_of("demo", "smoke")
    assert not (folder / "01_toy.ipynb").exists() and (folder / "01_toy.failed.ipynb").is_file()
    assert "DeadKernelError" in (folder / "01_toy.log").read_text(encoding="utf-8")


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_a_run_that_is_stopped_ends_its_kernel_and_leaves_no_executed_notebook(notebooks, how):
    told = notebooks / "kernel"
    slow = PLAIN.replace(
        "print(", f"import os, time\n\nopen({str(told)!r}, 'w').write(str(os.getpid()))\ntime.sleep(99)\nprint("
    )
    (notebooks / "01_toy.py").write_text(slow, encoding="utf-8")
    heard = {"preexec_fn": lambda: signal.signal(how, signal.SIG_DFL)}  # what runs in the background ignores SIGINT
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command(notebooks), cwd=ROOT, **pipes, **heard) as process:
        while not told.exists() or not told.read_text():
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(how)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130 and errors.rstrip().endswith("01_toy: stopped")
    folder = chapters.folder_of("demo", "smoke")
    assert left_in(folder) == ["01_toy.failed.ipynb", "01_toy.log"]
    assert chapters.state("01_toy", store.open_store("demo", "smoke"), notebooks) == "unfinished"
    assert not Path("/proc", told.read_text()).exists()


def test_rows_of_an_earlier_run_do_not_stay_when_a_run_records_none(notebooks):
    store.Store("demo", "smoke", "f" * 64).record("01_toy", [{"key": "toy/seed", "value": 0}])
    (notebooks / "01_toy.py").write_text(PLAIN, encoding="utf-8")
    assert chapters.run(notebooks / "01_toy.py", scale="smoke")["rows"] == 0
    assert store.Store("demo", "smoke", "").rows() == []


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["-p", "SEDE=1"], "no parameter 'SEDE' here, expected one of SEED, WIDTH"),
        (["-p", "SCALE=full"], "no parameter 'SCALE'"),
        (["--scale", "huge"], "SCALE is 'huge', expected one of smoke"),
        (["--data", "nowhere"], "DATA is 'nowhere', expected demo or a folder"),
        (["--notebooks", "."], "no chapter '01_toy'"),
    ],
)
def test_what_cannot_be_run_is_said_before_anything_runs(notebooks, words, problem, capsys):
    folder = words.pop() if words[0] == "--notebooks" else str(notebooks)
    command = ["run", "--notebooks", folder, "01_toy", "--scale", "smoke", *words[words[0] == "--notebooks" :]]
    assert main(command) == 1
    assert problem in capsys.readouterr().err
    assert not (Path(os.environ["SEMID_ARTEFACTS"]) / "demo").exists()


@pytest.mark.parametrize("text", ["", "{", "null"])
def test_damaged_facts_of_a_run_are_named(notebooks, text, capsys):
    folder = chapters.folder_of("demo", "smoke")
    folder.mkdir(parents=True)
    (folder / "01_toy.json").write_text(text)
    for words in (["stale"], ["summary"], ["run", "01_toy", "--if-stale"]):
        assert main([*words, "--notebooks", str(notebooks), "--scale", "smoke"]) == 1
        assert f"{folder / '01_toy.json'} is damaged" in capsys.readouterr().err


def test_the_summary_says_how_each_chapter_stands(notebooks):
    for name in ("01_toy", "02_next"):
        (notebooks / f"{name}.py").write_text(PLAIN, encoding="utf-8")
    (notebooks / "needs.txt").write_text("# who needs whom\n02_next: 01_toy\n", encoding="utf-8")
    folder = chapters.folder_of("demo", "smoke")
    assert [line.split()[1:] for line in chapters.summary("demo", "smoke", notebooks=notebooks).splitlines()[2:]] == [
        ["not", "run"]
    ] * 2
    for name, seconds in (("01_toy", 60.0), ("02_next", 120.0)):
        chapters.run(notebooks / f"{name}.py", scale="smoke")
        file = folder / f"{name}.json"
        facts = json.loads(file.read_text(encoding="utf-8")) | {"seconds": seconds}
        file.write_text(json.dumps(facts), encoding="utf-8")
    lines = chapters.summary("demo", "smoke", notebooks=notebooks).splitlines()
    assert lines[-1] == "critical path: 01_toy -> 02_next, 3.0 of 3.0 minutes"
    assert "executed" in lines[2] and "executed" in lines[3]
    training = {"seconds": 240.0, "made_from": facts["made_from"]}
    (folder / "02_next.tiger.json").write_text(json.dumps(training), encoding="utf-8")
    old = training | {"made_from": {}}  # of an earlier run of the chapter
    (folder / "02_next.sasrec.json").write_text(json.dumps(old), encoding="utf-8")
    (folder / "02_next.timeline.json").write_text(json.dumps(training | {"seconds": 30.0}), encoding="utf-8")
    lines = chapters.summary("demo", "smoke", notebooks=notebooks).splitlines()
    assert lines[3].split() == ["tiger", "trained", "4.0"] and lines[5].startswith("02_next")
    assert lines[-1] == "critical path: 01_toy -> 02_next.tiger -> 02_next, 7.0 of 7.5 minutes"


def test_chapters_that_wait_for_each_other_by_hand():
    minutes = {"a": 1.0, "b": 2.0, "c": 4.0, "d": 1.0}
    wanted = {"a": [], "b": ["a"], "c": [], "d": ["b", "c"]}
    assert chapters.critical_path(minutes, wanted) == ["c", "d"]
    assert chapters.critical_path({}, wanted) == []


# --- up to date, by content ---


@pytest.fixture
def two(notebooks):
    """Two chapters that have run, the second of which needs the first; returns what is stale now."""
    saving = "import numpy as np\nfrom semid_lib.workbench import store\n\nstore.hardware = str\n"
    saving += 'store.Store("demo", SCALE, "f").save("things", {"a": np.ones(2)})\n'
    (notebooks / "01_toy.py").write_text(PLAIN + saving, encoding="utf-8")
    (notebooks / "02_next.py").write_text(PLAIN, encoding="utf-8")
    (notebooks / "needs.txt").write_text("02_next: 01_toy\n", encoding="utf-8")
    for name in ("01_toy", "02_next"):
        chapters.run(notebooks / f"{name}.py", scale="smoke")
    return lambda: chapters.stale("demo", "smoke", notebooks=notebooks)


def test_an_edit_makes_a_chapter_stale_and_its_undoing_restores_it(notebooks, two):
    assert two() == []
    for source in notebooks.glob("*.py"):
        text = source.read_text(encoding="utf-8")
        os.utime(source, (time.time() + 99,) * 2)
        assert two() == []  # times do not count
        source.write_text(text + "# more\n", encoding="utf-8")
        assert two() == (["01_toy", "02_next"] if source.stem == "01_toy" else ["02_next"])
        source.write_text(text, encoding="utf-8")
        assert two() == []


def test_a_chapter_before_it_makes_a_chapter_stale_if_it_wrote_something_else(notebooks, two):
    first = notebooks / "01_toy.py"
    text = first.read_text(encoding="utf-8")
    chapters.run(first, scale="smoke")
    assert two() == []  # the same again
    first.write_text(text.replace("ones", "zeros"), encoding="utf-8")
    chapters.run(first, scale="smoke")
    assert two() == ["02_next"]
    first.write_text(text, encoding="utf-8")
    chapters.run(first, scale="smoke")
    assert two() == []
    store.Store("demo", "smoke", "f").save("things", {"a": np.zeros(2)})  # by hand, in JupyterLab
    assert two() == ["01_toy", "02_next"]


def test_a_chapter_is_stale_for_other_parameters_another_library_and_lost_outputs(
    notebooks, two, monkeypatch, tmp_path
):
    chapters.run(notebooks / "02_next.py", scale="smoke", parameters={"SEED": 1})
    assert two() == ["02_next"]
    assert chapters.is_up_to_date(notebooks / "02_next.py", store.open_store("demo", "smoke"), {"SEED": 1})
    chapters.run(notebooks / "02_next.py", scale="smoke")
    assert two() == []
    with monkeypatch.context() as patch:
        (tmp_path / "other.py").write_text("changed = 1\n", encoding="utf-8")
        patch.setattr(chapters, "_LIBRARY", tmp_path)
        assert two() == ["01_toy", "02_next"]
    (chapters.folder_of("demo", "smoke").parent / "rows" / "02_next.json").unlink()
    assert two() == ["02_next"]


def test_models_are_trained_beforehand_if_there_are_histories_and_the_chapter_is_stale(
    notebooks, tmp_path, monkeypatch
):
    write_folder(tmp_path / "cold", [{"item_id": 1, "title": "Pen"}])
    write_folder(tmp_path / "my warm shop", [{"item_id": 1, "title": "Pen"}], [("ann", [1, 1, 1])])
    source, asked, status = notebooks / "01_toy.py", [], 0
    source.write_text(PLAIN, encoding="utf-8")

    def call(data):
        with monkeypatch.context() as patch:
            patch.setattr(chapters.subprocess, "run", lambda words, stderr, check: answer(words, stderr))
            return chapters.train(source, "tiger", data, "smoke")

    def answer(words, stderr):
        asked.append(words[3:])
        stderr.write("what training says")
        return subprocess.CompletedProcess(words, status)

    warm = str(tmp_path / "my warm shop")
    assert call(str(tmp_path / "cold")) == 0 and not asked
    assert call(warm) == 0
    assert asked == [["tiger", f"--data={warm}", "--scale=smoke"]]
    folder = chapters.folder_of(warm, "smoke")
    assert (folder / "01_toy.tiger.log").read_text(encoding="utf-8") == "what training says"
    status = 2
    assert call(warm) == 2
    chapters.run(source, warm, "smoke")
    assert call(warm) == 0 and len(asked) == 2  # the chapter is up to date
    assert re.search(r"tiger +trained +0\.0", chapters.summary(warm, "smoke", notebooks=notebooks))


# --- two at once, and rows of runs that fail ---


def test_the_same_chapter_does_not_run_twice_at_once(notebooks):
    source, told = notebooks / "01_toy.py", notebooks / "begun"
    slow = f"import time\n\nopen({str(told)!r}, 'w').close()\ntime.sleep(99)\nprint("
    source.write_text(PLAIN.replace("print(", slow), encoding="utf-8")
    with subprocess.Popen(command(notebooks), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as first:
        while not told.exists():
            assert first.poll() is None
            time.sleep(0.05)
        source.write_text(PLAIN, encoding="utf-8")
        second = run(notebooks)
        assert second.returncode == 1
        assert re.search(r"01_toy: another process runs it now, into .*: wait until it ends, or stop it", second.stderr)
        first.kill()  # it cannot tidy up
        first.wait()
    assert chapters.state("01_toy", store.open_store("demo", "smoke"), notebooks) == "unfinished"
    assert run(notebooks).returncode == 0  # the lock of a dead process holds nothing up
    assert chapters.stale("demo", "smoke", notebooks=notebooks) == []


def test_a_run_that_fails_leaves_no_rows_and_says_so(notebooks):
    source, shelf = notebooks / "01_toy.py", store.Store("demo", "smoke", "")
    assert run(notebooks).returncode == 0 and len(shelf.rows()) == 2
    source.write_text(SOURCE + "raise KeyError('after the rows')\n", encoding="utf-8")
    (shelf.path("rows") / ".01_toy.0a1b.partial").write_text("[]", encoding="utf-8")  # of a run that was killed
    failed = run(notebooks)
    assert failed.returncode == 1 and "it leaves no rows" in failed.stderr
    assert shelf.rows() == []
    folder = chapters.folder_of("demo", "smoke")
    assert not list(folder.parent.glob("rows/.*")) and not list(folder.parent.glob("metrics/*"))
    source.write_text(SOURCE, encoding="utf-8")
    assert run(notebooks).returncode == 0
    [row, _] = shelf.rows()
    assert (row["chapter"], row["seed"]) == ("01_toy", 0)


# --- the Makefile ---


@pytest.fixture
def repository(notebooks):
    """Three chapters under the real Makefile: the second needs the first, which fails; the third needs nothing."""
    folder = notebooks.parent
    for file in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / file, folder)
    (notebooks / "01_toy.py").write_text(FAILING, encoding="utf-8")
    (notebooks / "02_next.py").write_text(PLAIN, encoding="utf-8")
    (notebooks / "03_other.py").write_text(PLAIN, encoding="utf-8")
    (notebooks / "needs.txt").write_text("02_next: 01_toy\n", encoding="utf-8")
    return folder


def make(repository, *words, **environment):
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS", "OMP_"))}
    # nothing is installed: the interpreter of the tests takes the place of the project's environment
    command = ["make", "INSTALLED=pyproject.toml", f"BIN={Path(sys.executable).parent}", "SCALE=smoke", "CORES=4"]
    runner = f"SEMID={sys.executable} -m semid_lib.cli"
    clean |= {"SEMID_NOTEBOOKS": str(repository / "notebooks")} | environment
    return subprocess.run(
        [*command, runner, *words], capture_output=True, text=True, check=False, cwd=repository, env=clean
    )


def test_make_goes_on_with_what_does_not_need_a_failed_chapter_and_fails_in_the_end(repository):
    first = make(repository, "run")
    assert first.returncode != 0
    assert "03_other: ran in" in first.stdout and "02_next: started" not in first.stdout
    table = first.stdout[first.stdout.index("demo, smoke\n") :]
    assert re.search(r"01_toy +failed", table) and re.search(r"02_next +not run", table)
    assert re.search(r"03_other +executed", table)
    assert chapters.facts_of("03_other", chapters.folder_of("demo", "smoke"))["threads"] == "2"  # 4 cores, 2 at once
    (repository / "notebooks" / "01_toy.py").write_text(PLAIN, encoding="utf-8")
    second = make(repository, "run")
    assert second.returncode == 0, second.stderr
    assert "01_toy: ran" in second.stdout and "02_next: ran" in second.stdout and "03_other: " not in second.stdout
    for source in (repository / "notebooks").glob("*.py"):
        source.touch()
    third = make(repository, "run")
    assert third.returncode == 0 and "started" not in third.stdout
    forced = make(repository, "run", "NOTEBOOK=02_next")
    assert re.findall(r"\w+(?=: started)", forced.stdout) == ["02_next"]


ODD = "my $shop & co's; `touch x` $(touch x) (100%) #1, Café"
READING = PLAIN.replace(
    "seen = SEED", "from semid_lib.data import dataset as data\n\nseen = len(data.load(DATA).items)"
)


@pytest.mark.parametrize("how", ["argument", "environment"])
def test_make_takes_data_and_artefacts_in_folders_of_any_name(repository, tmp_path, how):
    write_folder(tmp_path / ODD, [{"item_id": 1, "title": "Pen"}])
    (repository / "notebooks" / "01_toy.py").write_text(READING, encoding="utf-8")
    artefacts = tmp_path / f"runs {ODD}"
    names = {"DATA": str(tmp_path / ODD), "SEMID_ARTEFACTS": str(artefacts)}
    if how == "argument":  # in make's own language, as on a command line
        ran = make(repository, "run", "NOTEBOOK=01_toy", *(f"{name}={value}" for name, value in names.items()))
    else:
        ran = make(repository, "run", "NOTEBOOK=01_toy", **names)
    assert ran.returncode == 0, ran.stderr
    assert f"01_toy: started on {ODD}, smoke" in ran.stdout
    [folder] = artefacts.iterdir()
    assert re.fullmatch(r"my_shop_co_s_touch_x_touch_x_100_1_Café-[0-9a-f]{8}", folder.name)
    assert (folder / "smoke" / "executed" / "01_toy.ipynb").is_file()
    assert not list(tmp_path.rglob("x"))


SHOWN = """
shown:
\t@printf '%s' "$$DATA" > shown
showing:
\t@$(MAKE) --jobs 2 -f Makefile -f show.mk shown
"""


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(st.sampled_from("ab $&;'\"`\\#%()=:,é-~*?<>|!{}[]\t")), st.sampled_from(["argument", "environment"]))
@example("$(shell touch x)", "argument")
@example("$$a $(DATA) ${HOME} \\$b", "argument")
@example("-n --data=x\\", "environment")
def test_make_hands_data_to_commands_as_they_are(repository, name, how):
    (repository / "show.mk").write_text(SHOWN, encoding="utf-8")
    (repository / "shown").unlink(missing_ok=True)
    words = ["-f", "Makefile", "-f", "show.mk", "showing"]
    ran = make(repository, *words, f"DATA=x{name}") if how == "argument" else make(repository, *words, DATA=f"x{name}")
    assert ran.returncode == 0, ran.stderr
    assert (repository / "shown").read_text(encoding="utf-8") == f"x{name}"
    assert not (repository / "x").exists()


ASKING = """
asking:
\t@$(SEMID) folder $(ON)
"""


@pytest.mark.parametrize("name", ["-n", "--help", "~"])
def test_make_takes_a_folder_whose_name_looks_like_an_option(repository, name):
    (repository / "ask.mk").write_text(ASKING, encoding="utf-8")
    write_folder(repository / name, [{"item_id": 1, "title": "Pen"}])
    asked = make(repository, "-f", "Makefile", "-f", "ask.mk", "asking", f"DATA={name}")
    assert asked.returncode == 0 and asked.stdout.strip() == str(chapters.folder_of(repository / name, "smoke").parent)


def test_make_never_gives_a_shop_the_results_of_another_of_its_name(repository, tmp_path):
    (repository / "notebooks" / "01_toy.py").write_text(READING, encoding="utf-8")
    for where, titles in (("a", ["Pen"]), ("b", ["Pen", "Ink"])):
        write_folder(tmp_path / where / "shop", [{"item_id": n, "title": title} for n, title in enumerate(titles)])
    for where, ran in (("a", True), ("a", False), ("b", True), ("b", False)):
        printed = make(repository, "01_toy", f"DATA={tmp_path / where / 'shop'}")
        assert printed.returncode == 0, printed.stderr
        assert ("01_toy: ran" in printed.stdout) == ran, where
    (tmp_path / "a").rename(tmp_path / "moved")
    assert "01_toy: ran" not in make(repository, "01_toy", f"DATA={tmp_path / 'moved' / 'shop'}/").stdout


def test_at_full_one_chapter_runs_at_a_time(repository):
    assert "--jobs 1 " in make(repository, "run", "SCALE=full", "--dry-run").stdout
    assert "--jobs 2 " in make(repository, "run", "--dry-run").stdout


def test_the_models_of_chapter_07_are_trained_before_it_where_chapters_run_at_once(tmp_path):
    def plan(*words):
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
        command = [
            "make",
            "--dry-run",
            "INSTALLED=pyproject.toml",
            f"SEMID_ARTEFACTS={tmp_path}",
            "SCALE=smoke",
            *words,
        ]
        printed = subprocess.run(command, cwd=ROOT, env=clean, capture_output=True, text=True, check=True).stdout
        return re.findall(r"chapters train 07_next_item \w+|chapters run \w+", printed)

    wanted = "WANTED=07_next_item 03_codebook_analysis"
    ahead = ["chapters run 01_catalogue_and_embeddings", "chapters run 02_semantic_ids"]
    models = [f"chapters train 07_next_item {model}" for model in ("timeline", "tiger", "sasrec")]
    last = ["chapters run 07_next_item", "chapters run 03_codebook_analysis"]
    assert plan("JOBS=2", wanted, "wanted") == ahead + models + last
    assert plan("JOBS=1", wanted, "wanted") == ahead + last
    alone = "WANTED=03_codebook_analysis"
    assert plan("JOBS=2", alone, "wanted") == [*ahead, "chapters run 03_codebook_analysis"]
