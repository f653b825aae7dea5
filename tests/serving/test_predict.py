"""Batch predictions: right answers in every format, the same file after kill -9, the old one on a full disk."""

import csv
import json
import os
import resource
import signal
import threading
from functools import partial, partialmethod
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pyarrow import fs
from tqdm import tqdm

from semid_lib.cli import main
from semid_lib.data import folder
from semid_lib.data.item_ids import ItemIds
from semid_lib.serving import batch_io
from semid_lib.serving import predict as batch
from semid_lib.serving.predict import Outcome, predict
from semid_lib.serving.recommender import Recommender
from semid_lib.workbench import remote
from semid_lib.workbench.text import has_controls


@pytest.fixture
def histories(shop):
    ids = shop.items["item_id"].to_numpy()
    return {f"u{at}": ids[history].tolist() for at, history in enumerate(shop.histories)}


@pytest.fixture
def input_path(histories, tmp_path):
    path = tmp_path / "histories.txt"
    path.write_text("".join(f"{user} {' '.join(map(str, items))}\n" for user, items in histories.items()))
    return path


@pytest.fixture
def many(input_path, monkeypatch):
    """183 records in blocks of 64, three of which cannot be answered."""
    monkeypatch.setattr(batch, "BLOCK", 64)
    lines = input_path.read_text().splitlines()
    input_path.write_text("\n".join(["ann nothing", *lines, "\xff", *lines, "bob 5", *lines]), "latin-1")
    return input_path


def contents(output: Path) -> list[bytes]:
    return [Path(f"{output}{ending}").read_bytes() for ending in ("", ".rejected")]


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


def test_records_that_cannot_be_answered_are_told(recommender_to_serve, shop, tmp_path):
    known, path = int(shop.items["item_id"][0]), tmp_path / "in.txt"
    path.write_bytes(f"ann {known}\nbob x\ncarl {known} 5\n".encode() + b"\xff\n" + b"dora\n")
    assert predict(recommender_to_serve, "", path, tmp_path / "out.csv") == Outcome(2, 3)
    assert table(tmp_path / "out.csv")["user_id"].tolist() == ["ann", "dora"]
    rejected = [json.loads(line) for line in (tmp_path / "out.csv.rejected").read_text().splitlines()]
    assert [(one["line"], one["text"]) for one in rejected] == [(2, "bob x"), (3, f"carl {known} 5"), (4, "\\xff")]
    assert rejected[0]["reason"] == "item id 'x' is not in the catalogue"
    path.write_text(f"ann {known}\n")
    predict(recommender_to_serve, "", path, tmp_path / "out.csv")
    assert not (tmp_path / "out.csv.rejected").exists()  # of an older run


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"output_path": "out.xlsx"}, "ends in '.xlsx'"),
        *(({"k": wrong}, "topk must be a whole number of at least 1, got") for wrong in (0, "3", True)),
        ({"queries": True, "input_path": "q.txt"}, r"no search model: train one \(chapter 05 or 10\)"),
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


def test_exit_codes(served_folder, shop, histories, input_path, tmp_path, capsys):
    words = ["predict", "--model", str(served_folder)]

    def run(*more, output="out.csv", source=("--input", str(input_path))):
        return main([*words, *source, "--output", str(tmp_path / output), *more])

    assert run("--topk", "3") == 0
    assert "60 records answered, 0 rejected" in capsys.readouterr().err
    folder.write_folder(tmp_path / "shop", shop.items.to_dict("records"), list(histories.items()))
    of_a_shop = ("--data", str(tmp_path / "shop"))
    assert run("--topk", "3", output="again.csv", source=of_a_shop) == 0
    assert (tmp_path / "again.csv").read_bytes() == (tmp_path / "out.csv").read_bytes()
    assert main([*words, *of_a_shop, "--user", "u7", "--topk", "2"]) == 0
    answer, titles = json.loads(capsys.readouterr().out), shop.items.set_index("item_id")["title"]
    assert answer["user_id"] == "u7" and answer["titles"] == titles[answer["item_ids"]].tolist()
    assert run(output="nowhere/out.csv") == 1
    assert "resume" not in capsys.readouterr().err  # nothing was kept there
    with batch._locked(tmp_path / "out.csv"):
        assert run() == 1
    assert "resume" not in capsys.readouterr().err  # the blocks are of the other run
    input_path.write_text("ann x\x85\n")  # which ends a line for Python, not for JSON lines
    assert run() == 2
    assert main([*words, "--input", str(input_path)]) == 2
    assert capsys.readouterr().err.endswith("line 1: item id 'x' is not in the catalogue\n")
    for wrong in ([], ["--data", "demo", "--queries"], ["--input", "x.txt", "--data", "demo"], ["--user", "ann"]):
        assert main([*words, *wrong]) == 1  # 2 would say that records were rejected
    assert main([*words, "--no-such-option"]) == main(["predict"]) == main(["deploy", "predict"]) == 1


# --- interruptions ---


@pytest.mark.parametrize(("ending", "stop"), [(".csv", 1), (".jsonl", 2), (".parquet", 3)])
def test_an_interrupted_run_goes_on_with_the_same_bytes(
    recommender_to_serve, many, tmp_path, monkeypatch, ending, stop
):
    predict(recommender_to_serve, "", many, tmp_path / f"whole{ending}")
    output, calls, rank = tmp_path / f"out{ending}", [], Recommender.rank

    def failing(self, histories, k):
        calls.append(len(histories))
        if len(calls) == stop:
            raise KeyboardInterrupt
        return rank(self, histories, k)

    monkeypatch.setattr(Recommender, "rank", failing)
    with pytest.raises(KeyboardInterrupt):
        predict(recommender_to_serve, "", many, output)
    assert not output.exists()
    assert predict(recommender_to_serve, "", many, output) == Outcome(180, 3)
    assert len(calls) == 3 + 1  # of three blocks one was answered again
    assert contents(output) == contents(tmp_path / f"whole{ending}")


@pytest.mark.parametrize("change", ["model", "input", "k"])
def test_work_for_something_else_is_thrown_away(recommender_to_serve, many, tmp_path, monkeypatch, change):
    output = tmp_path / "out.csv"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(batch, "_publish", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        predict(recommender_to_serve, "a", many, output)
    if change == "input":
        many.write_text(many.read_text("latin-1").replace("u0 ", "v0 "), "latin-1")
    settings = {"model_facts": "b" if change == "model" else "a", "k": 9 if change == "k" else 10}
    predict(recommender_to_serve, input_path=many, output_path=output, **settings)
    predict(recommender_to_serve, input_path=many, output_path=tmp_path / "fresh.csv", **settings)
    assert contents(output) == contents(tmp_path / "fresh.csv")


def forked(work) -> int:
    """The exit code of a process that does it; negative: the signal that ended it."""
    if not (pid := os.fork()):
        status = 1
        tqdm.set_lock(threading.RLock())  # see kills.py
        try:
            work()
            status = 0
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.mark.slow
@pytest.mark.parametrize(("ending", "n_rejected"), [(".csv", 3), (".jsonl", 3), (".parquet", 0)])
def test_killed_at_each_step_it_ends_with_the_same_bytes(
    recommender_to_serve, many, tmp_path, monkeypatch, ending, n_rejected
):
    """A step is one file that appears, changes its name or is deleted."""
    if not n_rejected:
        many.write_text("".join(line for line in many.read_text("latin-1").splitlines(True) if line[0] == "u"))
    whole, output = tmp_path / f"whole{ending}", tmp_path / f"out{ending}"
    outcome = predict(recommender_to_serve, "", many, whole)

    def killed_at(step):
        steps = iter(range(step))

        def counted(function, *args, **more):
            if next(steps, None) is None:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **more)

        Path.replace = partialmethod(partial(counted, Path.replace))
        Path.unlink = partialmethod(partial(counted, Path.unlink))
        predict(recommender_to_serve, "", many, output)

    for step in range(100):
        output.write_text("the old output")
        Path(f"{output}.rejected").write_text("of the old output")
        status = forked(lambda step=step: killed_at(step))
        assert output.read_bytes() in (b"the old output", whole.read_bytes()) and status in (0, -signal.SIGKILL)
        with monkeypatch.context() as patch:
            if list(Path(f"{output}.parts").glob(f"*/{2:09}.parquet")):  # the last block: nothing is answered again
                patch.setattr(Recommender, "rank", None)
            assert predict(recommender_to_serve, "", many, output) == outcome
        assert output.read_bytes() == whole.read_bytes()
        found, expected = (Path(f"{path}.rejected") for path in (output, whole))
        assert (found.read_bytes() == expected.read_bytes()) if n_rejected else not found.exists()
        assert sorted(tmp_path.glob("*.parts")) == sorted(tmp_path.glob(".*out*")) == []
        if not status:
            assert step > 12  # three blocks, rejected records, output: each a new name and its renaming; and two places
            return
    raise AssertionError("it never ends")


def test_on_a_full_disk_the_old_output_stays(recommender_to_serve, many, tmp_path):
    output = tmp_path / "out.jsonl"
    output.write_text("the old output")

    def limited():
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))  # blocks are smaller, the output is not
        with pytest.raises(OSError, match="File too large"):
            predict(recommender_to_serve, "", many, output)

    assert forked(limited) == 0
    assert output.read_text() == "the old output" and not list(tmp_path.glob(".out*"))
    assert predict(recommender_to_serve, "", many, output) == Outcome(180, 3)


def test_a_second_run_for_the_same_output_is_refused_and_the_lock_of_a_killed_one_is_gone(
    recommender_to_serve, many, tmp_path
):
    output = tmp_path / "out.csv"

    def killed_with_the_lock():
        with batch._locked(output):
            os.kill(os.getpid(), signal.SIGKILL)

    assert forked(killed_with_the_lock) == -signal.SIGKILL and Path(f"{output}.parts", "lock").exists()
    with batch._locked(output), pytest.raises(BlockingIOError, match="wait for it, or choose another output"):
        predict(recommender_to_serve, "", many, output)
    assert predict(recommender_to_serve, "", many, output) == Outcome(180, 3)


def test_input_that_changes_ends_the_run_without_an_output(recommender_to_serve, many, tmp_path, monkeypatch):
    rank, output = Recommender.rank, tmp_path / "out.csv"

    def meanwhile(*args):
        with open(many, "a") as stream:
            stream.write("\nzoe")
        return rank(*args)

    with monkeypatch.context() as patch, pytest.raises(ValueError, match="changed while it was read"):
        patch.setattr(Recommender, "rank", meanwhile)
        predict(recommender_to_serve, "", many, output)
    assert not output.exists()
    assert predict(recommender_to_serve, "", many, output) == Outcome(181, 3)


def test_model_input_and_output_may_be_in_a_store(recommender_to_serve, input_path, tmp_path, monkeypatch):
    """An object store, with folders of this machine in its place."""
    store = tmp_path / "bucket"
    (store / "model").mkdir(parents=True)
    monkeypatch.setenv("SEMID_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(remote, "_opened", lambda where: (fs.LocalFileSystem(), str(tmp_path / where[5:])))
    recommender_to_serve.searcher = None
    recommender_to_serve.save_pretrained("s3://bucket/model")
    (store / "in.txt").write_bytes(input_path.read_bytes())
    places = "s3://bucket/model", "s3://bucket/in.txt", "s3://bucket/out.csv", {}
    assert batch.predict_folder(*places) == predict(recommender_to_serve, "", input_path, tmp_path / "here.csv")
    assert (store / "out.csv").read_bytes() == (tmp_path / "here.csv").read_bytes()
    monkeypatch.setattr(remote, "send", lambda _: (_ for _ in ()).throw(ConnectionError("the store is gone")))
    with pytest.raises(ConnectionError, match=r"gone; the finished output is .*out\.csv") as caught:
        batch.predict_folder(*places)
    assert batch.can_resume(places[2]) and "cache" in str(caught.value)


# --- the shop's own ids ---


SHOPS = {
    "around zero": lambda numbers: (np.argsort(np.argsort(numbers)) - 20).tolist(),
    "skus": lambda numbers: [f"A-{number}" for number in numbers],
    "with spaces": lambda numbers: [f'A {number}, "n"' for number in numbers],
    "in brackets": lambda numbers: [f"[{number}]" for number in numbers],
    "large": lambda numbers: (2**62 + numbers).tolist(),
}


@pytest.mark.parametrize("kind", SHOPS)
def test_ids_are_the_shops_own(recommender_to_serve, shop, tmp_path, kind):
    """Histories with the ids are read, answers have them, and answers can be read as histories."""
    items = recommender_to_serve.items.assign(item_id=SHOPS[kind](shop.items["item_id"].to_numpy()))
    renamed = Recommender(recommender_to_serve.model, shop.ids, items)
    ids = renamed.item_ids.values
    histories = {f"u{at}": ids[rows].tolist() for at, rows in enumerate(shop.histories[:9])}
    expected = renamed.recommend(list(histories.values()), k=5).item_ids
    lines = [json.dumps({"user_id": user, "item_ids": items}) for user, items in histories.items()]
    (tmp_path / "in.jsonl").write_text("\n".join(lines))
    for ending in batch.ENDINGS:
        found = tmp_path / f"out{ending}"
        assert predict(renamed, "", tmp_path / "in.jsonl", found, k=5) == Outcome(9, 0)
        with batch_io.RecordFile(found, queries=False) as file:
            again = [(one.key, one.item_ids) for one in file]
        assert again == [(user, list(map(str, row))) for user, row in zip(histories, expected, strict=True)]
    lines = [json.loads(line)["item_ids"] for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert lines == [list(map(str, row)) if kind == "large" else row.tolist() for row in expected]
    assert pd.read_parquet(tmp_path / "out.parquet")["item_ids"].tolist()[0].tolist() == expected[0].tolist()
    in_csv = (tmp_path / "out.csv").read_text().splitlines()[1]
    assert ('"[""' in in_csv) == (kind in ("with spaces", "in brackets"))


IDS = ItemIds(pd.DataFrame({"item_id": [3, -1]}))


@settings(max_examples=30)
@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1), min_size=1))
@example(["NULL", "nan", "a\rb", 'a"b', "a,b", "\u2028", "\x85", " ", "=1+1", "\\", "a\r\nb", "007"])
def test_every_reader_gets_the_user_ids_back(tmp_path_factory, keys):
    """Also those that are not accepted as user ids, since a query may hold line breaks."""
    path = tmp_path_factory.mktemp("written")
    keys = [key for key in keys if not batch_io._CONTROL.search(key)] or ["ann"]
    answered = [(key, [1, 0], [-0.5, -2.0]) for key in keys]
    for ending, write in batch._WRITERS.items():
        write(path / f"out{ending}", "user_id", IDS, [answered])
    with open(path / "out.csv", newline="", encoding="utf-8") as stream:
        rows = [[key, "-1 3", "-0.5 -2.0"] for key in keys]
        assert list(csv.reader(stream)) == [["user_id", "item_ids", "scores"], *rows]
    frame = pd.read_csv(path / "out.csv", dtype=str, keep_default_na=False)
    assert frame["user_id"].tolist() == pd.read_parquet(path / "out.parquet")["user_id"].tolist() == keys
    with open(path / "out.jsonl", encoding="utf-8") as stream:
        assert [json.loads(line)["user_id"] for line in stream] == keys
    for ending in batch.ENDINGS:
        with batch_io.RecordFile(path / f"out{ending}", queries=False) as file:
            for key, one in zip(keys, file, strict=True):
                accepted = key.strip() and not has_controls(key)
                assert (one.key, one.item_ids) == ((key, ["-1", "3"]) if accepted else ("", []))
