"""A file in, a file out: right answers in every format, after kill -9 the same file, and on a full disk the old one."""

import contextlib
import csv
import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from kills import killed

from semid_lib.data import folder
from semid_lib.data.item_ids import ItemIds
from semid_lib.serving import batch_io
from semid_lib.serving import predict as batch
from semid_lib.serving.predict import Answered, Outcome, answers, main, predict
from semid_lib.serving.recommender import Recommender
from semid_lib.workbench.text import has_controls

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def histories(shop):
    ids = shop.items["item_id"].to_numpy()
    return {f"u{at}": ids[history].tolist() for at, history in enumerate(shop.histories)}


@pytest.fixture
def input_path(histories, tmp_path):
    path = tmp_path / "histories.txt"
    path.write_text("".join(f"{user} {' '.join(map(str, items))}\n" for user, items in histories.items()))
    return path


def table(path: Path) -> pd.DataFrame:
    """Any output as a table of lists."""
    if path.suffix == ".parquet":
        return pd.read_parquet(path)
    if path.suffix == ".jsonl":
        return pd.read_json(path, lines=True, dtype={"user_id": str})
    found = pd.read_csv(path, dtype=str, keep_default_na=False)
    for column, kind in (("item_ids", int), ("scores", float)):
        found[column] = [[kind(one) for one in cell.split()] for cell in found[column]]
    return found


@pytest.mark.parametrize("ending", batch.ENDINGS)
def test_answers_are_those_of_the_recommender_in_order(recommender_to_serve, histories, input_path, tmp_path, ending):
    output = tmp_path / f"out{ending}"
    assert predict(recommender_to_serve, "", input_path, output, k=7) == Outcome(60, 0)
    expected = recommender_to_serve.recommend(list(histories.values()), k=7)
    found = table(output)
    assert found["user_id"].tolist() == list(histories)
    np.testing.assert_array_equal(np.array(found["item_ids"].tolist()), expected.item_ids)
    np.testing.assert_array_equal(np.array(found["scores"].tolist(), np.float32), expected.scores)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["histories.txt", output.name]


def test_lists_are_as_long_as_there_are_items(recommender_to_serve, tmp_path, histories, input_path):
    predict(recommender_to_serve, "", input_path, tmp_path / "out.jsonl", k=np.int64(128))
    found = table(tmp_path / "out.jsonl")
    for items, answer in zip(histories.values(), found["item_ids"], strict=True):
        assert len(answer) == 40 - len(set(items)) and not set(answer) & set(items)


def test_texts_are_answered_too(recommender_to_serve, tmp_path):
    (tmp_path / "queries.csv").write_text('query\n"row 7, or 8"\nrow 9\n zebra\n""\n')
    outcome = predict(recommender_to_serve, "", tmp_path / "queries.csv", tmp_path / "out.csv", k=3, queries=True)
    with open(tmp_path / "out.csv", newline="") as stream:
        header, first, second, nothing = csv.reader(stream)
    assert header == ["query", "item_ids", "scores"] and outcome == Outcome(3, 1)
    assert first[0] == "row 7, or 8" and nothing == ["zebra", "", ""]
    assert second[1].split() == list(map(str, recommender_to_serve.search(["row 9"], 3).item_ids[0]))


def test_lines_that_cannot_be_answered_are_told(recommender_to_serve, shop, tmp_path):
    known = int(shop.items["item_id"][0])
    (tmp_path / "in.txt").write_bytes(f"ann {known}\nbob x\ncarl {known} 5\n".encode() + b"\xff\n" + b"dora\n")
    outcome = predict(recommender_to_serve, "", tmp_path / "in.txt", tmp_path / "out.csv")
    assert outcome == Outcome(2, 3)
    assert table(tmp_path / "out.csv")["user_id"].tolist() == ["ann", "dora"]
    rejected = [json.loads(line) for line in (tmp_path / "out.csv.rejected").read_text().splitlines()]
    assert [(one["line"], one["text"]) for one in rejected] == [(2, "bob x"), (3, f"carl {known} 5"), (4, "\\xff")]
    assert rejected[0]["reason"] == "item id 'x' is not in the catalogue"
    assert rejected[1]["reason"] == "item id '5' is not in the catalogue"
    (tmp_path / "in.txt").write_text(f"ann {known}\n")
    predict(recommender_to_serve, "", tmp_path / "in.txt", tmp_path / "out.csv")
    assert not (tmp_path / "out.csv.rejected").exists()  # of an older run


@pytest.mark.parametrize("ending", batch.ENDINGS)
@pytest.mark.parametrize("cut", [0, 5])
@pytest.mark.parametrize("stop", [1, 4])
def test_an_interrupted_run_goes_on_with_the_same_bytes(
    recommender_to_serve, input_path, tmp_path, monkeypatch, ending, cut, stop
):
    monkeypatch.setattr(batch, "BLOCK", 8)
    input_path.write_text(input_path.read_text().replace("u9 ", "u9 x "))
    predict(recommender_to_serve, "", input_path, tmp_path / f"whole{ending}")
    output, calls = tmp_path / f"out{ending}", []

    class Failing(Recommender):
        def rank(self, histories, k):
            calls.append(len(histories))
            if len(calls) == stop:
                raise KeyboardInterrupt
            return Recommender.rank(self, histories, k)

    failing = Failing(recommender_to_serve.model, recommender_to_serve.ids, recommender_to_serve.items)
    with pytest.raises(KeyboardInterrupt):
        predict(failing, "", input_path, output)
    assert not output.exists()
    with open(f"{output}.partial", "ab") as partial:  # a block that was being written when the process died
        partial.write(b"x" * cut)
    assert predict(failing, "", input_path, output) == Outcome(59, 1)
    blocks = [8, 7, 8, 8, 8, 8, 8, 4]
    assert calls == blocks[:stop] + blocks[stop - 1 :]  # the block that was broken off again, and what came after it
    assert output.read_bytes() == (tmp_path / f"whole{ending}").read_bytes()
    assert Path(f"{output}.rejected").read_bytes() == (tmp_path / f"whole{ending}.rejected").read_bytes()


def test_blocks_of_long_lines_are_short(input_path, monkeypatch):
    monkeypatch.setattr(batch, "_BLOCK_BYTES", 200)
    with batch_io.RecordFile(input_path, queries=False) as file:
        everything = list(file)
    blocks = list(batch._blocks(everything))
    found = [batch_io.Record(**row) for block in blocks for row in block.to_pylist()]
    assert found == everything and len(blocks) > 5
    for block in blocks:
        assert sum(block["n_bytes"].to_pylist()[:-1]) < 200


@pytest.mark.parametrize("change", ["model", "input", "k", "partial", "progress", "facts"])
def test_work_for_something_else_is_thrown_away(recommender_to_serve, input_path, tmp_path, monkeypatch, change):
    monkeypatch.setattr(batch, "BLOCK", 16)
    output, save = tmp_path / "out.csv", batch._Work.save

    def stop(work, *args):
        save(work, *args)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(batch._Work, "save", stop)
        predict(recommender_to_serve, "a", input_path, output)
    if change == "input":
        input_path.write_text(input_path.read_text().replace("u0 ", "v0 "))
    if change in ("partial", "progress"):
        Path(f"{output}.{change}").write_bytes(b"{")
    if change == "facts":
        Path(f"{output}.progress").write_text('{"done": [1, 1, 0, 0]}')
    settings = {"model_facts": "b" if change == "model" else "a", "k": 9 if change == "k" else 10}
    predict(recommender_to_serve, input_path=input_path, output_path=output, **settings)
    predict(recommender_to_serve, input_path=input_path, output_path=tmp_path / "fresh.csv", **settings)
    assert output.read_bytes() == (tmp_path / "fresh.csv").read_bytes()


def test_a_second_run_for_the_same_output_is_refused(recommender_to_serve, input_path, tmp_path, monkeypatch):
    def meanwhile(work, *_):
        monkeypatch.undo()
        with pytest.raises(BlockingIOError, match="another run is writing"):
            predict(recommender_to_serve, "", input_path, tmp_path / "out.csv")
        raise KeyboardInterrupt

    monkeypatch.setattr(batch._Work, "save", meanwhile)
    with pytest.raises(KeyboardInterrupt):
        predict(recommender_to_serve, "", input_path, tmp_path / "out.csv")


@pytest.mark.parametrize("ending", batch.ENDINGS)
def test_the_next_run_begins_when_everything_is_in_its_place(
    recommender_to_serve, input_path, tmp_path, monkeypatch, ending
):
    output, replace, begun = tmp_path / f"out{ending}", Path.replace, []

    def meanwhile(path, target):
        replace(path, target)
        if target == output and not begun:
            begun.append(True)
            with contextlib.suppress(BlockingIOError):
                predict(recommender_to_serve, "", input_path, output)

    monkeypatch.setattr(Path, "replace", meanwhile)
    assert predict(recommender_to_serve, "", input_path, output) == Outcome(60, 0)
    assert begun and sorted(path.name for path in tmp_path.iterdir()) == ["histories.txt", output.name]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"output_path": "out.xlsx"}, "ends in '.xlsx'"),
        *(({"k": wrong}, "topk must be a whole number of at least 1, got") for wrong in (0, "3", None, 1.5, True)),
        ({"queries": True, "input_path": "q.txt"}, "no search model: train one"),
        ({"output_path": "histories.txt"}, "ends in '.txt'"),
        ({"input_path": "in.csv", "output_path": "in.csv"}, "is the input as well"),
        ({"input_path": "in.csv"}, "expected one 'user_id'"),
        ({"output_path": "nowhere/out.csv"}, "nowhere is not a folder: create it"),
        ({"output_path": "taken.csv"}, "taken.csv is a folder"),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_is_written(
    recommender_to_serve, input_path, tmp_path, monkeypatch, change, said
):
    monkeypatch.chdir(tmp_path)
    Path("in.csv").write_text("a,b\n")
    Path("q.txt").write_text("shampoo\n")
    Path("taken.csv").mkdir()
    recommender_to_serve.searcher = None
    before = sorted(tmp_path.iterdir())
    with pytest.raises(ValueError, match=said):
        predict(recommender_to_serve, "", **{"input_path": input_path, "output_path": "out.csv", **change})
    assert sorted(tmp_path.iterdir()) == before


def test_exit_codes(served_folder, input_path, tmp_path, capsys):
    def run(*more, output="out.csv", model=served_folder):
        paths = ["--model", str(model), "--input-path", str(input_path), "--output-path", str(tmp_path / output)]
        return main([*paths, *more])

    assert run("--topk", "3") == 0
    assert "60 records answered, 0 rejected" in capsys.readouterr().err
    assert run("--topk", "0") == 1
    assert run(output="nowhere/out.csv") == 1
    assert "resume" not in capsys.readouterr().err  # nothing was kept there
    assert run(model=tmp_path) == 1
    assert "config.json is missing" in capsys.readouterr().err
    input_path.write_text("ann x\n")
    assert run() == 2
    assert json.loads((tmp_path / "out.csv.rejected").read_text())["line"] == 1
    with pytest.raises(SystemExit, match="1"):
        main(["--topk", "3"])
    assert "--model" in capsys.readouterr().err


# --- faults, in a process of their own ---


def command(folder, input_path, output_path, *more) -> list[str]:
    paths = ["--model", folder, "--input-path", input_path, "--output-path", output_path]
    return [sys.executable, "-m", "semid_lib.serving.predict", *map(str, paths), *more]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


@pytest.mark.skipif(sys.platform != "linux", reason="limits of a process are set as on Linux")
def test_kill_9_then_a_full_disk_then_the_same_file(served_folder, input_path, tmp_path):
    text = input_path.read_text()
    input_path.write_text("".join(text.replace("u", f"v{copy}-") for copy in range(200)))  # 12,000 lines
    output, progress = tmp_path / "out.csv", tmp_path / "out.csv.progress"
    output.write_text("the old output")
    arguments = command(served_folder, input_path, output, "--topk", "20")

    process = subprocess.Popen(arguments, env=environment(), stderr=subprocess.DEVNULL, cwd=tmp_path)
    while not (progress.is_file() and json.loads(progress.read_text())["done"][0]):
        assert process.poll() is None, "it ended before it was killed"
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert output.read_text() == "the old output"
    done, n_bytes = json.loads(progress.read_text())["done"][:2]
    assert 0 < done < 12_000

    limit = n_bytes + 100_000  # a write beyond it fails, as on a full disk
    full = subprocess.run(
        arguments,
        env=environment(),
        capture_output=True,
        text=True,
        cwd=tmp_path,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
        check=False,
    )
    assert full.returncode == 1 and "failed: [Errno 27] File too large" in full.stderr
    assert ". Finished blocks are kept: fix the cause and run the same command to resume\n" in full.stderr
    assert output.read_text() == "the old output"

    assert (
        subprocess.run(arguments, env=environment(), stderr=subprocess.DEVNULL, cwd=tmp_path, check=False).returncode
        == 0
    )
    once = tmp_path / "once.csv"
    predict(Recommender.from_pretrained(served_folder), "", input_path, once, k=20)
    assert output.read_bytes() == once.read_bytes()
    assert not list(tmp_path.glob("out.csv.*"))


@pytest.fixture
def many(input_path, histories, monkeypatch):
    """A batch that takes a moment: histories in blocks of eight, three of which cannot be answered."""
    monkeypatch.setattr(batch, "BLOCK", 8)
    lines = input_path.read_text().splitlines()
    input_path.write_text("\n".join(["ann nothing", *lines, "\xff", *lines, "bob 5", *lines]), "latin-1")
    return input_path


def contents(output: Path) -> list[bytes]:
    return [Path(f"{output}{ending}").read_bytes() for ending in ("", ".rejected")]


@pytest.mark.parametrize("ending", batch.ENDINGS)
def test_killed_ten_times_at_random_it_ends_with_the_same_bytes(recommender_to_serve, many, tmp_path, ending):
    whole, output, draw = tmp_path / f"whole{ending}", tmp_path / f"out{ending}", random.Random(5)
    start = time.monotonic()
    predict(recommender_to_serve, "", many, whole)
    seconds, n_kills = time.monotonic() - start, 0
    while n_kills < 10:  # as often as it takes: a run that was resumed has less to do
        output.write_text("the old output")
        longest = 0.8 * seconds  # it grows, so that a slow start comes further in the end
        while not killed(lambda: predict(recommender_to_serve, "", many, output), draw.uniform(0.02, 1) * longest):
            n_kills, longest = n_kills + 1, 1.3 * longest
            assert output.read_bytes() in (b"the old output", whole.read_bytes())
        assert contents(output) == contents(whole)
        assert sorted(tmp_path.glob("out*")) == [output, Path(f"{output}.rejected")]


@pytest.mark.parametrize("ending", batch.ENDINGS)
@pytest.mark.parametrize("n_rejected", [0, 3])
def test_killed_at_each_step_of_publishing_nothing_is_answered_again(
    recommender_to_serve, many, tmp_path, monkeypatch, ending, n_rejected
):
    if not n_rejected:
        many.write_text("".join(line for line in many.read_text("latin-1").splitlines(True) if line[0] == "u"))
    whole, output = tmp_path / f"whole{ending}", tmp_path / f"out{ending}"
    assert predict(recommender_to_serve, "", many, whole).rejected == n_rejected

    def publish_until(step):
        n_steps = 0

        def counted(function):
            def call(*args, **kwargs):
                nonlocal n_steps
                if n_steps == step:
                    os.kill(os.getpid(), signal.SIGKILL)
                n_steps += 1
                return function(*args, **kwargs)

            return call

        def publish(work, publish=batch._Work.publish):
            for name in ("replace", "unlink", "write_text"):
                setattr(Path, name, counted(getattr(Path, name)))
            publish(work)

        batch._Work.publish = publish
        predict(recommender_to_serve, "", many, output)

    def not_again(*_):
        raise AssertionError("a block is answered again")

    for step in range(20):
        output.write_text("the old output")
        Path(f"{output}.rejected").write_text("of the old output")
        finished = not os.waitstatus_to_exitcode(forked(lambda step=step: publish_until(step)))
        resumable = Path(f"{output}.progress").exists()
        if resumable:
            assert output.read_bytes() in (b"the old output", whole.read_bytes())
            with monkeypatch.context() as patch:
                patch.setattr(batch._Answerer, "__call__", not_again)
                assert predict(recommender_to_serve, "", many, output) == Outcome(180, n_rejected)
        assert output.read_bytes() == whole.read_bytes()
        found, expected = (Path(f"{path}.rejected") for path in (output, whole))
        assert (found.read_bytes() == expected.read_bytes()) if n_rejected else not found.exists()
        left = {path.suffix for path in tmp_path.glob("out*") if path not in (output, found)}
        assert left == (set() if finished or resumable else {".lock"})
        if finished:
            assert step >= 6  # two of the progress, one of the rejected lines, output, progress, lock
            return
    raise AssertionError("it never ends")


def forked(work) -> int:
    """The wait status of a process that does it."""
    if not (pid := os.fork()):
        status = 1
        with contextlib.suppress(BaseException):
            work()
            status = 0
        os._exit(status)
    return os.waitpid(pid, 0)[1]


def test_the_lock_of_a_killed_run_is_gone(recommender_to_serve, many, tmp_path):
    output = tmp_path / "out.csv"

    def hold():
        with batch._locked(output):
            time.sleep(60)

    assert not killed(hold, 1)
    assert Path(f"{output}.lock").exists()
    with batch._locked(output), pytest.raises(BlockingIOError, match="wait for it, or choose another output"):
        predict(recommender_to_serve, "", many, output)
    assert predict(recommender_to_serve, "", many, output) == Outcome(180, 3)


def test_input_that_changes_ends_the_run_without_an_output(recommender_to_serve, many, tmp_path, monkeypatch):
    rank, output = Recommender.rank, tmp_path / "out.csv"

    def meanwhile(*args):
        with open(many, "a") as stream:
            stream.write("\nzoe")
        return rank(*args)

    monkeypatch.setattr(Recommender, "rank", meanwhile)
    with pytest.raises(ValueError, match="changed while it was read"):
        predict(recommender_to_serve, "", many, output)
    assert not output.exists()
    monkeypatch.undo()
    assert predict(recommender_to_serve, "", many, output) == Outcome(181, 3)


# --- the shop's own ids ---


SHOPS = {
    "integers": lambda numbers: numbers.tolist(),
    "negative": lambda numbers: (-numbers).tolist(),
    "around zero": lambda numbers: (np.argsort(np.argsort(numbers)) - 20).tolist(),
    "skus": lambda numbers: [f"A-{number}" for number in numbers],
    "with spaces": lambda numbers: [f'A {number}, "n"' for number in numbers],
    "in brackets": lambda numbers: [f"[{number}]" for number in numbers],
    "large": lambda numbers: (2**62 + numbers).tolist(),
}


@pytest.fixture(params=SHOPS)
def renamed(recommender_to_serve, shop, request):
    """The recommender, with other ids."""
    ids = SHOPS[request.param](shop.items["item_id"].to_numpy())
    items = recommender_to_serve.items.assign(item_id=ids)
    return Recommender(recommender_to_serve.model, shop.ids, items, recommender_to_serve.searcher)


@pytest.mark.parametrize("output", batch.ENDINGS)
@pytest.mark.parametrize("ending", [".csv", ".jsonl", ".parquet"])
def test_ids_are_the_shops_own(renamed, shop, tmp_path, ending, output):
    """Histories with the ids are read, answers have them, and answers can be read as histories."""
    ids = renamed.item_ids.values
    histories = {f"u{at}": ids[rows].tolist() for at, rows in enumerate(shop.histories)}
    expected = renamed.recommend(list(histories.values()), k=5)
    given, found = tmp_path / f"in{ending}", tmp_path / f"out{output}"
    if ending == ".parquet":
        texts = {user: list(map(str, items)) for user, items in histories.items()}
        pd.DataFrame({"user_id": texts.keys(), "item_ids": texts.values()}).to_parquet(given)
    elif ending == ".jsonl":
        lines = [json.dumps({"user_id": user, "item_ids": items}) for user, items in histories.items()]
        given.write_text("\n".join(lines))
    else:
        with open(given, "w", newline="") as stream:
            rows = [(user, json.dumps(items)) for user, items in histories.items()]
            csv.writer(stream).writerows([("user_id", "item_ids"), *rows])
    assert predict(renamed, "", given, found, k=5) == Outcome(60, 0)
    with batch_io.RecordFile(found, queries=False) as file:
        again = [(one.key, one.item_ids) for one in file]
    assert again == [(user, list(map(str, row))) for user, row in zip(histories, expected.item_ids, strict=True)]
    if output == ".jsonl":
        texts = max(abs(one) if isinstance(one, int) else 0 for one in ids) > 2**53
        lines = [json.loads(line)["item_ids"] for line in found.read_text().splitlines()]
        assert lines == [list(map(str, row)) if texts else row.tolist() for row in expected.item_ids]
    if output == ".parquet":
        kind = "int64" if all(isinstance(one, int) for one in ids) else "string"
        assert str(pq.read_schema(found).field("item_ids").type.value_type) == kind


def test_ids_with_spaces_are_a_json_list_in_csv(recommender_to_serve, shop, tmp_path):
    (tmp_path / "in.txt").write_text("ann")
    for suffix, expected in (("", str.split), (" b", json.loads)):
        items = recommender_to_serve.items.assign(item_id=[f"{n}{suffix}" for n in range(40)])
        renamed = Recommender(recommender_to_serve.model, shop.ids, items)
        predict(renamed, "", tmp_path / "in.txt", tmp_path / "out.csv", k=3)
        [cell] = pd.read_csv(tmp_path / "out.csv", dtype=str)["item_ids"]
        assert expected(cell) == renamed.recommend([[]], k=3).item_ids[0].tolist()


def test_numbers_that_an_importer_gave_are_answered_with_the_shops_ids(recommender_to_serve, shop, tmp_path):
    items = recommender_to_serve.items.assign(item_id=range(1, 41), source_id=[f"A-{row}" for row in range(40)])
    renamed = Recommender(recommender_to_serve.model, shop.ids, items)
    (tmp_path / "in.txt").write_text(f"ann {items['item_id'][3]}\nann A-3\nann A-40\n")
    assert predict(renamed, "", tmp_path / "in.txt", tmp_path / "out.jsonl") == Outcome(2, 1)
    first, second = (json.loads(line)["item_ids"] for line in (tmp_path / "out.jsonl").read_text().splitlines())
    assert first == second == renamed.recommend([["A-3"]]).item_ids[0].tolist()
    assert "item id 'A-40' is not in" in (tmp_path / "out.jsonl.rejected").read_text()


IDS = ItemIds(pd.DataFrame({"item_id": [3, -1]}))


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1), min_size=1))
@example(["NULL", "nan", "a\rb", 'a"b', "a,b", "\u2028", "\x85", " ", "=1+1", "\\", "a\r\nb", "007"])
def test_every_reader_gets_the_user_ids_back(tmp_path_factory, keys):
    """Also those that are not accepted as user ids, since a query may hold line breaks."""
    path = tmp_path_factory.mktemp("written")
    keys = [key for key in keys if not batch_io._CONTROL.search(key)] or ["ann"]
    answered = [Answered(key, [1, 0], [-0.5, -2.0]) for key in keys]
    for ending, kind in batch._FORMATS.items():
        form = kind("user_id", IDS)
        (path / "partial").write_bytes(form.head + form.encode(answered))
        if form.ending:
            form.finish(path / "partial", path / f"out{ending}")
        else:
            (path / "partial").rename(path / f"out{ending}")
    with open(path / "out.csv", newline="", encoding="utf-8") as stream:
        assert list(csv.reader(stream)) == [
            ["user_id", "item_ids", "scores"],
            *([key, "-1 3", "-0.5 -2.0"] for key in keys),
        ]
    frame = pd.read_csv(path / "out.csv", dtype=str, keep_default_na=False)
    assert frame["user_id"].tolist() == keys
    assert pd.read_parquet(path / "out.parquet")["user_id"].tolist() == keys
    with open(path / "out.jsonl", encoding="utf-8") as stream:
        assert [json.loads(line)["user_id"] for line in stream] == keys
    for ending in batch.ENDINGS:
        with batch_io.RecordFile(path / f"out{ending}", queries=False) as file:
            for key, one in zip(keys, file, strict=True):
                accepted = key.strip() and not has_controls(key)
                assert (one.key, one.item_ids) == ((key, ["-1", "3"]) if accepted else ("", []))


# --- a data set's own histories, and answers to read ---


@pytest.fixture
def data_folder(shop, tmp_path):
    ids = shop.items["item_id"].to_numpy()
    histories = [(f"u{at}", ids[rows].tolist()) for at, rows in enumerate(shop.histories)]
    folder.write_folder(tmp_path / "shop", shop.items.to_dict("records"), histories)
    return tmp_path / "shop"


def test_answers_for_customers_are_printed_with_titles(served_folder, data_folder, histories, capsys):
    words = ["--model", str(served_folder), "--data", str(data_folder), "--topk", "3"]
    assert main([*words, "--user", "u7", "--user", "u3"]) == 0
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    shop = Recommender.from_pretrained(served_folder)
    expected = shop.recommend([histories["u7"], histories["u3"]], k=3)
    assert [one["user_id"] for one in found] == ["u7", "u3"]
    assert [one["item_ids"] for one in found] == expected.item_ids.tolist()
    titles = shop.items.set_index("item_id")["title"]
    assert [one["titles"] for one in found] == [titles[row].tolist() for row in expected.item_ids]
    assert main([*words, "--user", "zoe"]) == 1
    assert "failed: user 'zoe' is not among the 60 users, such as 'u0'" in capsys.readouterr().err
    for more in (["--queries"], ["--input-path", "x.txt"]):
        with pytest.raises(SystemExit, match="1"):
            main([*words, *more])
    with pytest.raises(SystemExit, match="1"):
        main(["--model", "x", "--input-path", "x.txt", "--user", "ann"])


def test_a_data_set_gives_the_file_of_its_histories(served_folder, data_folder, input_path, tmp_path):
    words = ["--model", str(served_folder), "--output-path"]
    for name, more in {
        "a.csv": ["--data", str(data_folder)],
        "b.csv": ["--input-path", str(input_path)],
        "c.csv": ["--input-path", str(data_folder / "sequences.tsv.gz")],
    }.items():
        assert main([*words, str(tmp_path / name), *more]) == 0
    a, b, c = ((tmp_path / name).read_bytes() for name in ("a.csv", "b.csv", "c.csv"))
    assert a == b == c and a.count(b"\n") == 61


def test_printed_answers_have_what_cannot_be_answered_on_stderr(served_folder, input_path, capsys):
    input_path.write_text("ann\nbob nothing\n")
    assert main(["--model", str(served_folder), "--input-path", str(input_path)]) == 2
    found = capsys.readouterr()
    assert json.loads(found.out)["user_id"] == "ann"
    assert found.err == "line 2: item id 'nothing' is not in the catalogue\n"


def test_answers_without_titles(recommender_to_serve, input_path):
    one = recommender_to_serve
    untitled = Recommender(one.model, one.ids, one.items[["item_id"]])
    assert next(answers(untitled, input_path, k=2))["titles"] == [None, None]


def test_answers_in_python(recommender_to_serve, input_path, histories):
    first = next(answers(recommender_to_serve, input_path, k=2))
    assert first["item_ids"] == recommender_to_serve.recommend([histories["u0"]], k=2).item_ids[0].tolist()
