"""A file in, a file out: right answers in every format, after kill -9 the same file, and on a full disk the old one."""

import contextlib
import csv
import fcntl
import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from semid_lib import predict as batch
from semid_lib import records
from semid_lib.predict import Outcome, main, predict
from semid_lib.recommender import Recommender

ROOT = Path(__file__).resolve().parent.parent


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
    predict(recommender_to_serve, "", input_path, tmp_path / "out.jsonl", k=128)
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
    assert "item id 5 is not in the catalogue" in rejected[1]["reason"]
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
    everything = list(records.read(input_path, queries=False))
    blocks = list(batch._blocks(everything))
    assert [record for block in blocks for record in block] == everything and len(blocks) > 5
    for block in blocks:
        assert sum(record.n_bytes for record in block[:-1]) < 200


@pytest.mark.parametrize("change", ["model", "input", "k", "partial", "progress", "facts"])
def test_work_for_something_else_is_thrown_away(recommender_to_serve, input_path, tmp_path, monkeypatch, change):
    monkeypatch.setattr(batch, "BLOCK", 16)
    output, keep = tmp_path / "out.csv", batch._Work.keep

    def stop(work, *args):
        keep(work, *args)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(batch._Work, "keep", stop)
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

    monkeypatch.setattr(batch._Work, "keep", meanwhile)
    with pytest.raises(KeyboardInterrupt):
        predict(recommender_to_serve, "", input_path, tmp_path / "out.csv")


def test_a_run_that_ends_before_another_has_its_lock_keeps_its_output(
    recommender_to_serve, input_path, tmp_path, monkeypatch
):
    output, partial, flock = tmp_path / "out.csv", tmp_path / "out.csv.partial", fcntl.flock

    def publish_then_lock(file, how):
        partial.write_text("published")
        partial.replace(output)  # what `file` is now
        flock(file, how)

    monkeypatch.setattr(batch.fcntl, "flock", publish_then_lock)
    with pytest.raises(BlockingIOError, match="another run is writing"):
        predict(recommender_to_serve, "", input_path, output)
    assert output.read_text() == "published"


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
        ({"k": 0}, "topk must be at least 1"),
        ({"queries": True, "input_path": "q.txt"}, "no model of search"),
        ({"output_path": "histories.txt"}, "ends in '.txt'"),
        ({"input_path": "in.csv", "output_path": "in.csv"}, "is the input as well"),
        ({"input_path": "in.csv"}, "expected one 'user_id'"),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_is_written(
    recommender_to_serve, input_path, tmp_path, monkeypatch, change, said
):
    monkeypatch.chdir(tmp_path)
    Path("in.csv").write_text("a,b\n")
    Path("q.txt").write_text("shampoo\n")
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
    assert "60 lines answered, 0 rejected" in capsys.readouterr().err
    assert run("--topk", "0") == 1
    assert run(output="nowhere/out.csv") == 1
    assert "goes on" not in capsys.readouterr().err  # nothing was kept there
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
    return [sys.executable, "-m", "semid_lib.predict", *map(str, paths), *more]


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
    assert "the same command goes on" in full.stderr
    assert output.read_text() == "the old output"

    assert (
        subprocess.run(arguments, env=environment(), stderr=subprocess.DEVNULL, cwd=tmp_path, check=False).returncode
        == 0
    )
    once = tmp_path / "once.csv"
    predict(Recommender.from_pretrained(served_folder), "", input_path, once, k=20)
    assert output.read_bytes() == once.read_bytes()
    assert not list(tmp_path.glob("out.csv.*"))
