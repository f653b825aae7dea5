"""Artefacts and rows: what is written comes back, whole or not at all, and says where it comes from."""

import contextlib
import gc
import hashlib
import json
import re
import resource
import shutil
import subprocess
import unicodedata
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from kills import at_line, killed, killed_at
from safetensors import safe_open
from safetensors.numpy import save_file

from semid_lib.data import dataset
from semid_lib.data.folder import open_store, write_folder
from semid_lib.evaluation.rows import metric_rows, over_seeds
from semid_lib.workbench import atomic, store, weights

ORIGIN = {"data", "fingerprint", "scale", "commit", "dirty", "hardware", "written", "chapter", "seed", "parents"}


@pytest.fixture
def shelf(tmp_path) -> store.Store:
    return store.Store("shop", "smoke", "1a2b3c4d5e", root=tmp_path)


def test_what_is_saved_comes_back(shelf):
    arrays = {"vectors": np.eye(3, dtype=np.float32), "part": np.arange(6).reshape(2, 3).T, "one": np.int64(7)}
    shelf.save("things", arrays, n_levels=3, note="by hand")
    loaded = shelf.load("things")
    for name, array in arrays.items():
        np.testing.assert_array_equal(loaded[name], array)
        assert loaded[name].dtype == np.asarray(array).dtype
    assert (loaded.facts["n_levels"], loaded.facts["note"]) == (3, "by hand")
    assert loaded.facts["provenance"].keys() == ORIGIN | {"digest"}
    assert loaded.facts["provenance"]["fingerprint"] == "1a2b3c4d5e"


def test_an_artefact_lies_in_the_folder_of_its_data_and_scale(shelf, tmp_path):
    assert not shelf.has("things")
    assert shelf.save("things", {"a": np.zeros(1)}) == tmp_path / "shop-1a2b3c4d" / "smoke" / "things.safetensors"
    assert shelf.has("things")
    assert not store.Store("shop", "laptop", shelf.fingerprint, root=tmp_path).has("things")
    assert shelf.path("model").parent == tmp_path / "shop-1a2b3c4d" / "smoke"
    assert shelf.cache("vectors") == store.Store("other", "full", "", root=tmp_path).cache("vectors")


def test_the_root_comes_from_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("SEMID_ARTEFACTS", str(tmp_path / "elsewhere"))
    assert store.Store("demo", "smoke", "f").folder == tmp_path / "elsewhere" / "demo" / "smoke"
    monkeypatch.setenv("SEMID_ARTEFACTS", "")
    assert store.default_root() == store.Store("demo", "smoke", "f").folder.parent.parent
    monkeypatch.delenv("SEMID_ARTEFACTS")
    assert store.default_root() == Path(__file__).resolve().parents[2] / "artefacts"


def test_what_is_loaded_is_mapped_and_may_be_written_to(shelf):
    path = shelf.save("things", {"a": np.zeros((50_000, 8)), "none": np.empty((0, 4), np.uint16)})
    before = path.read_bytes()
    loaded = shelf.load("things")
    assert (loaded["none"].shape, loaded["none"].dtype) == ((0, 4), np.uint16)
    assert type(loaded["a"]) is np.ndarray  # and prints as one
    assert str(path) in Path("/proc/self/maps").read_text(encoding="utf-8")
    loaded["a"][0, 0] = 7
    assert (loaded["a"][0, 0], shelf.load("things")["a"][0, 0]) == (7, 0)
    shelf.save("things", {"a": np.ones(1)})  # whoever has the old one keeps it
    assert loaded["a"].sum() == 7
    assert shelf.load("things")["a"].tolist() == [1]
    path.write_bytes(before[:-8])
    with pytest.raises(ValueError, match="is damaged"):
        shelf.load("things")


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int16, np.uint64, np.float16, np.float32, np.float64])
@pytest.mark.parametrize("sizes", [(3,), (0, 2, 5), (8, 8, 1)])
def test_batches_make_the_artefact_that_one_array_makes(shelf, dtype, sizes):
    whole = (np.arange(sum(sizes) * 6).reshape(-1, 2, 3) % 2).astype(dtype)
    ends = np.cumsum(sizes)
    shelf.save("one", {"vectors": whole}, note="é" * 5)
    path = shelf.save_batches(
        "many", "vectors", (whole[end - n : end] for end, n in zip(ends, sizes, strict=True)), note="é" * 5
    )
    for name in ("one", "many"):
        loaded = shelf.load(name)
        np.testing.assert_array_equal(loaded["vectors"], whole)
        assert (loaded["vectors"].dtype, loaded.facts["note"]) == (np.dtype(dtype), "é" * 5)
    with safe_open(path, framework="numpy") as file:  # as others read it
        np.testing.assert_array_equal(file.get_tensor("vectors"), whole)


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([], "no rows for 'v'"),
        (
            [np.zeros((2, 3)), np.zeros((1, 4))],
            r"from row 2 on rows of 'v' are float64 \(4,\), expected float64 \(3,\)",
        ),
        ([np.zeros(2), np.zeros(2, np.float32)], "from row 2 on rows of 'v' are float32"),
        ([np.array(["a"])], "expected numbers"),
    ],
)
def test_batches_that_do_not_fit_leave_the_old_artefact(shelf, batches, message):
    shelf.save("things", {"v": np.arange(2)})
    with pytest.raises(ValueError, match=message):
        shelf.save_batches("things", "v", batches)
    assert shelf.load("things")["v"].tolist() == [0, 1]


def test_a_missing_artefact_says_what_to_do(shelf):
    with pytest.raises(FileNotFoundError, match="run the chapter that writes 'things'"):
        shelf.load("things")


def test_an_artefact_of_other_data_is_refused(shelf, tmp_path):
    store.Store("demo", "smoke", "f", root=tmp_path).save("things", {"a": np.zeros(1)})
    changed = store.Store("demo", "smoke", "another", root=tmp_path)  # the demo shop of another version
    with pytest.raises(ValueError, match=r"other data \(fingerprint f, expected another\): run the chapter"):
        changed.load("things")
    changed.save("things", {"a": np.ones(1)})
    assert changed.load("things")["a"] == 1
    copied = shelf.save("things", {"a": np.zeros(1)})
    elsewhere = store.Store("shop", "smoke", "2b" * 8, root=tmp_path)
    elsewhere.folder.mkdir(parents=True)
    shutil.copy(copied, elsewhere.folder)
    with pytest.raises(ValueError, match="other data"):
        elsewhere.load("things")


@pytest.mark.parametrize(
    "bad", [np.array([{}]), np.array(["a", None]), pd.Series(["a", "b"], dtype=object), np.zeros(1, "i4,O")]
)
def test_python_objects_are_refused_by_name_and_nothing_is_written(shelf, bad):
    with pytest.raises(ValueError, match="'bad' of artefact 'things'"):
        shelf.save("things", {"good": np.zeros(1), "bad": bad})
    assert not shelf.has("things")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # of files that were left open
def test_wherever_a_save_is_interrupted_the_old_or_the_new_artefact_is_whole(shelf):
    def stop():
        raise KeyboardInterrupt

    seen, line, finished = set(), 0, False
    while not finished:
        shelf.save("things", {"a": np.zeros(3)}, made="first")
        line += 2
        with contextlib.suppress(KeyboardInterrupt):
            at_line(lambda: shelf.save("things", {"a": np.ones(3)}, made="second"), line, stop, store, weights, atomic)
            finished = True
        loaded = shelf.load("things")
        seen.add((loaded["a"].tolist()[0], loaded.facts["made"]))
    gc.collect()
    assert seen == {(0.0, "first"), (1.0, "second")}


def test_rows_carry_their_origin_and_the_data_in_their_key(shelf):
    shelf.record("07_next_item", [{"key": "next_item/knn/mrr", "value": 0.5, "n": 9}])
    [row] = shelf.rows()
    assert row.keys() == {"key", "value", "n"} | ORIGIN
    assert row["chapter"] == "07_next_item"
    assert (row["key"], row["value"], row["n"]) == ("next_item/shop/knn/mrr", 0.5, 9)
    assert (row["data"], row["scale"], row["fingerprint"]) == ("shop", "smoke", shelf.fingerprint)
    assert "GiB" in row["hardware"]


def test_rows_of_a_chapter_are_replaced_and_those_of_others_kept(shelf):
    shelf.record("07_next_item", [{"key": "next_item/a/mrr", "value": 1}, {"key": "next_item/b/mrr", "value": 2}])
    shelf.record("02_semantic_ids", [{"key": "ids/c", "value": 3}])
    shelf.record("07_next_item", [{"key": "next_item/a/mrr", "value": 4}])
    assert [(row["key"], row["value"]) for row in shelf.rows()] == [
        ("ids/shop/c", 3),
        ("next_item/shop/a/mrr", 4),
    ]


@pytest.mark.parametrize("row", [{"key": "a/b"}, {"value": 1}])
def test_a_row_without_key_or_value_is_refused(shelf, row):
    with pytest.raises(ValueError, match="no key or no value"):
        shelf.record("07_next_item", [row])
    assert shelf.rows() == []


def test_rows_are_strict_json(shelf):
    # NaN is not JSON: other readers of book/results stop at it
    with pytest.raises(ValueError, match=r"(?i)nan|not finite|json"):
        shelf.record("07_next_item", [{"key": "a/b", "value": float("nan")}])


def test_metric_rows_name_metric_and_interval():
    table = pd.DataFrame({"mean": [0.5, 1], "low": [0.25, 1], "high": [0.75, 1]}, index=["mrr", "recall@5"])
    rows = metric_rows("next_item/knn", table, n=4, seed=0)
    assert rows[0] == {"key": "next_item/knn/mrr", "value": 0.5, "ci95": [0.25, 0.75], "n": 4, "seed": 0}
    assert [row["key"] for row in rows] == ["next_item/knn/mrr", "next_item/knn/recall@5"]


def test_rows_of_seeds_become_their_mean_and_spread():
    def rows_of(seed, recall, seconds):
        table = pd.DataFrame({"mean": [recall, 1], "low": [recall - 0.1, 1], "high": [recall + 0.2, 1]}, ["r", "mrr"])
        return metric_rows("next_item/mine", table, n=4, seed=seed, seconds=seconds)

    merged = over_seeds(rows_of(0, 0.2, 3.0) + rows_of(5, 0.5, 5.0))
    assert merged[0] == {
        **{"key": "next_item/mine/r", "value": 0.35, "ci95": [0.25, 0.55], "n": 4},
        **{"spread": round(0.3 / 2**0.5, 6), "seeds": [0, 5], "seconds": 4.0},
    }
    assert [row["key"] for row in merged] == ["next_item/mine/r", "next_item/mine/mrr"]
    assert merged[1]["spread"] == 0


@pytest.mark.parametrize("seeds", [[0], [0, 0], [0, None]])
def test_rows_of_one_seed_have_no_spread(seeds):
    rows = [{"key": "next_item/mine/mrr", "value": 0.5, "seed": seed} for seed in seeds]
    with pytest.raises(ValueError, match=r"next_item/mine/mrr.* two or more different ones"):
        over_seeds(rows)


def test_the_commit_is_that_of_a_git_checkout(tmp_path, monkeypatch):
    def git(*words):
        identity = ["-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false"]
        run = subprocess.run(["git", "-C", tmp_path, *identity, *words], capture_output=True, text=True, check=True)
        return run.stdout.strip()

    monkeypatch.setattr(store, "_REPOSITORY", tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert store.commit() == {"commit": "", "dirty": True}
    git("init")
    (tmp_path / "code.py").write_text("1")
    git("add", "code.py")
    git("commit", "-m", "first")
    assert store.commit() == {"commit": git("rev-parse", "HEAD"), "dirty": False}
    (tmp_path / "code.py").write_text("2")
    assert store.commit()["dirty"]


def test_the_origin_is_one_line_for_a_page(shelf):
    assert shelf.origin().startswith("shop, smoke; ")
    assert "\n" not in shelf.origin()


# --- the name of the folder ---


@given(st.text(st.characters(exclude_characters="/\0", exclude_categories=("Cs",)), min_size=1), st.binary(min_size=4))
def test_a_folder_name_is_safe_and_tells_data_apart(name, content):
    fingerprint = hashlib.sha256(content).hexdigest()
    if name == "demo":
        return
    found = store.folder_name(name, fingerprint)
    assert re.fullmatch(r"\w[\w.-]*-[0-9a-f]{8}", found)  # no word of make or of a shell
    assert len(found.encode()) <= 255
    assert found != store.folder_name(name, hashlib.sha256(fingerprint.encode()).hexdigest())
    assert store.folder_name(unicodedata.normalize("NFD", name), fingerprint) == store.folder_name(
        unicodedata.normalize("NFC", name), fingerprint
    )


def test_artefacts_follow_the_data_and_not_their_path(tmp_path):
    write_folder(tmp_path / "a" / "shop", [{"item_id": 1, "title": "Pen"}])
    write_folder(tmp_path / "b" / "shop", [{"item_id": 1, "title": "Ink"}])
    first, second = (open_store(str(tmp_path / name / "shop"), "smoke") for name in "ab")
    assert first.folder != second.folder and first.data == second.data == "shop"
    (tmp_path / "link").symlink_to(tmp_path / "a" / "shop")
    for same in (f"{tmp_path}/a/shop/", f"{tmp_path}/b/../a/shop", f"{tmp_path}/link"):
        assert open_store(same, "smoke").folder == first.folder
    shop = dataset.load(tmp_path / "a" / "shop")
    assert store.Store(shop.name, "smoke", shop.fingerprint).folder == first.folder
    shutil.copytree(tmp_path / "a" / "shop", tmp_path / "moved" / "shop")
    assert open_store(str(tmp_path / "moved" / "shop"), "smoke").folder == first.folder


def test_a_folder_called_demo_never_meets_the_demo_shop(tmp_path, monkeypatch):
    write_folder(tmp_path / "demo", [{"item_id": 1, "title": "Pen"}])
    monkeypatch.chdir(tmp_path)
    mine, built_in = open_store("./demo", "smoke"), open_store("demo", "smoke")
    assert mine.folder.parent.name.startswith("demo_folder-") and built_in.folder.parent.name == "demo"
    assert dataset.load(tmp_path / "demo").name == mine.data == "demo_folder"  # in rows, too


# --- provenance ---


@pytest.fixture
def chain(shelf, tmp_path):
    """Artefacts of which each was made from the one before: first, second, third."""
    shelf.save("first", {"a": np.zeros(2)})
    for old, new in (("first", "second"), ("second", "third")):
        each = store.Store("shop", "smoke", shelf.fingerprint, root=tmp_path)
        each.save(new, {"a": each.load(old)["a"] + 1})
    return store.Store("shop", "smoke", shelf.fingerprint, root=tmp_path)


def test_an_artefact_names_its_parents(chain):
    assert chain.load("third").facts["provenance"]["parents"] == {"second": chain.origin_of("second")["digest"]}
    chain.load("second")
    chain.save("third", {"a": np.ones(1)})  # what was loaded and is then written anew is no parent of itself
    assert chain.origin_of("third")["parents"].keys() == {"second"}
    chain.record("04", [{"key": "a/b", "value": 1}])
    assert chain.rows()[0]["parents"].keys() == {"second", "third"}


def test_what_was_made_from_an_older_artefact_is_refused(chain, tmp_path):
    chain.save("first", {"a": np.zeros(2)})  # the same content, written later
    assert chain.load("third")["a"].tolist() == [2, 2]
    other = store.Store("shop", "smoke", chain.fingerprint, root=tmp_path)
    other.save("first", {"a": np.ones(2)})
    assert other.load("first")["a"].tolist() == [1, 1]
    for name in ("second", "third"):
        with pytest.raises(
            ValueError, match=r"second.* is out of date: it was made from 'first' with digest .* again$"
        ):
            other.load(name)
    other.save("first", {"a": np.zeros(2)})
    assert other.load("third")["a"].tolist() == [2, 2]


def test_artefacts_that_were_made_from_each_other_can_be_loaded(chain):
    chain.load("third")
    chain.save("first", {"a": np.zeros(2)})  # as when a cell of a notebook runs again: the content is the same
    assert chain.load("second")["a"].tolist() == [1, 1]


@pytest.mark.parametrize("damage", ["cut", "garbage", "no metadata", "no provenance", "unknown numbers"])
def test_a_damaged_artefact_is_named_with_what_to_do(shelf, damage):
    path = shelf.save("mine", {"a": np.zeros(3)})
    match damage:
        case "cut":
            path.write_bytes(path.read_bytes()[:-4])
        case "garbage":
            path.write_bytes(b"garbage")
        case "no metadata":
            save_file({"a": np.zeros(3)}, path)
        case "no provenance":
            save_file({"a": np.zeros(3)}, path, {"facts": "[]"})
        case _:
            path.write_bytes(path.read_bytes().replace(b'"F64"', b'"X64"'))
    with pytest.raises(ValueError, match=r"mine\.safetensors is damaged, or no artefact .*: delete it and run"):
        shelf.load("mine")


def test_damaged_rows_and_configs_are_named(shelf):
    path = shelf.record("04", [{"key": "a/b", "value": 1}])
    shelf.path("model").mkdir()
    for text in ("[", "{", "5", "[" * 100_000):
        path.write_text(text)
        with pytest.raises(ValueError, match=r"rows/04\.json is damaged .*: delete it"):
            shelf.rows()
        (shelf.path("model") / "config.json").write_text(text)
        with pytest.raises(ValueError, match=r"model/config\.json is damaged .*: delete it"):
            shelf.checked("model")


def test_a_model_is_held_against_what_it_was_made_from(chain):
    chain.load("first")
    chain.path("model").mkdir()
    config = {"sha256": {"model.safetensors": "f" * 64}, "provenance": chain.provenance()}
    (chain.path("model") / "config.json").write_text(json.dumps(config), encoding="utf-8")
    assert chain.checked("model") == chain.path("model")
    chain.save("first", {"a": np.ones(9)})
    with pytest.raises(ValueError, match="model is out of date: it was made from 'first'"):
        chain.checked("model")
    assert chain.checked("none") == chain.path("none")


# --- a full disk, two writers ---


def full_disk():
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))


@pytest.mark.parametrize("kind", ["save", "save_batches", "record"])
def test_on_a_full_disk_the_old_artefact_stays_and_the_error_says_so(shelf, kind):
    def save(n):
        if kind == "save":
            shelf.save("things", {"a": np.zeros(n)})
        elif kind == "save_batches":
            shelf.save_batches("things", "a", (np.zeros(n // 10) for _ in range(10)))
        else:
            shelf.record("things", [{"key": f"a/{number}", "value": 1} for number in range(n // 10)])

    save(10)
    before = {file: file.read_bytes() for file in shelf.folder.rglob("*") if file.is_file()}
    told = shelf.folder / "told"

    def work():
        full_disk()
        try:
            save(10_000)
        except OSError as error:
            told.write_text(str(error), encoding="utf-8")

    assert killed(work)
    message = told.read_text(encoding="utf-8")
    told.unlink()
    assert "File too large" in message and "things" in message
    assert "what was there before is unchanged" in message
    assert {file: file.read_bytes() for file in shelf.folder.rglob("*") if file.is_file()} == before


def test_of_two_writers_or_a_killed_one_one_artefact_is_left_whole(shelf):
    def save(number):
        shelf.save("things", {"a": np.full(500, number)}, writer=number)

    def left():
        loaded = shelf.load("things")
        assert (loaded["a"] == loaded.facts["writer"]).all() and len(loaded["a"]) == 500
        return loaded.facts["writer"]

    save(0)
    line, came = 0, True
    while came:  # the second writer begins and ends at each line of the first in turn
        line += 3
        came = at_line(lambda: save(1), line, lambda: save(2), atomic)
        assert left() in (1, 2)
        assert killed_at(lambda line=line: save(-line), line, atomic) is not came
        assert left() in (1, 2, -line)
