"""Folders of recommenders that are damaged, stale, killed while they are written, or replaced while they are read.

A folder whose checksums were computed again after its content was changed is *sealed*: only what a file says can give
it away.
"""

import datetime
import decimal
import hashlib
import json
import os
import random
import resource
import shutil
import signal
import struct
import threading
import time

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from kills import killed
from safetensors.numpy import load_file, save_file

from semid_lib.serving import saved
from semid_lib.serving.recommender import Recommender
from semid_lib.workbench import atomic
from semid_lib.workbench.weights import save_weights

N_ITEMS = 40


@pytest.fixture
def recommender(shop, new_timeline) -> Recommender:
    paths = [[["Home", "Clocks"]], [["Home", "Rugs"], ["Gifts"]], [], [["Garden"]]] * (N_ITEMS // 4)
    return Recommender(new_timeline(), shop.ids, shop.items.assign(brand=["Ash", None] * 20, categories=paths))


@pytest.fixture
def folder(recommender, tmp_path):
    recommender.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def content_of(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def sealed(folder):
    config = json.loads((folder / "config.json").read_text())
    config["sha256"] = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in config["sha256"]}
    (folder / "config.json").write_text(json.dumps(config))


def refused(folder, name, message=""):
    """Loading raises one line that names the file and what is wrong, and takes no memory to speak of."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises((ValueError, OSError)) as caught:
        Recommender.from_pretrained(folder)
    text = str(caught.value)
    assert str(folder / name) in text and message in text and "\n" not in text.strip(), text
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**18  # KiB


# --- sealed folders ---


def changed(**arrays):
    return lambda weights: weights | {name: make(weights[name]) for name, make in arrays.items()}


WEIGHTS = {
    "a table transposed": (changed(vectors=lambda x: np.ascontiguousarray(x.T)), "'vectors' has shape (8, 40)"),
    "a table as one number": (changed(vectors=lambda x: np.array(1, np.float32)), "'vectors' has shape ()"),
    "fewer items": (changed(ids=lambda x: x[1:]), "'ids' has shape (39, 3)"),
    "not a number": (
        changed(vectors=lambda x: np.full_like(x, np.nan)),
        "tensor 'vectors' holds numbers that are not finite",
    ),
    "infinite": (changed(start=lambda x: np.full_like(x, np.inf)), "tensor 'start' holds numbers that are not finite"),
    "integers": (changed(vectors=lambda x: x.astype(np.int64)), "vectors is torch.int64, expected torch.float32"),
    "ids as real numbers": (changed(ids=lambda x: x.astype(np.float32)), "ids is torch.float32, expected torch.int64"),
    "a missing tensor": (lambda weights: {name: weights[name] for name in weights if name != "start"}, "start"),
    "one too many": (lambda weights: weights | {"more": np.zeros(3, np.float32)}, "more"),
    "a layer too many": (changed(**{"query.weight": lambda x: x[:1].copy()}), "query.weight"),
}


@pytest.mark.parametrize("case", WEIGHTS)
def test_sealed_weights_that_do_not_fit_are_refused(folder, case):
    change, message = WEIGHTS[case]
    save_file(change(load_file(folder / "model.safetensors")), folder / "model.safetensors")
    sealed(folder)
    refused(folder, "config.json", message)


def test_layers_that_the_file_does_not_have_are_not_made(folder):
    weights = load_file(folder / "model.safetensors")
    last = {"encoder.layers.2999.norm1.weight": weights["encoder.layers.0.norm1.weight"]}
    save_file(weights | last, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    config["model"]["n_layers"] = 3000
    (folder / "config.json").write_text(json.dumps(config))
    sealed(folder)
    refused(folder, "config.json", "n_layers is 3000, the file has 2 layers")


def test_ids_of_the_model_that_are_not_those_of_the_items_are_refused(folder):
    weights = load_file(folder / "model.safetensors")
    save_file(weights | {"ids": weights["ids"][::-1].copy()}, folder / "model.safetensors")
    sealed(folder)
    refused(folder, "", "do not belong together")


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_weights_in_another_precision_are_read(folder, recommender, dtype):
    weights = {name: tensor.to(dtype) if tensor.is_floating_point() else tensor
               for name, tensor in recommender.model.state_dict().items()}  # fmt: skip
    save_weights(folder / "model.safetensors", weights)
    sealed(folder)
    assert Recommender.from_pretrained(folder).model.start.dtype == torch.float32


@pytest.mark.parametrize(
    "header",
    [
        b"", b"garbage", struct.pack("<Q", 2**62) + b"{}", struct.pack("<Q", 99_000_000) + b"{" + b" " * 10,
        {"vectors": {"dtype": "F32", "shape": [-1, 384], "data_offsets": [0, 0]}},
        {"vectors": {"dtype": "F32", "shape": [2**40, 2**40], "data_offsets": [0, 0]}},
        {name: {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]} for name in ("vectors", "ids")},
    ],
)  # fmt: skip
def test_sealed_files_that_are_no_weights_are_refused(folder, header):
    if isinstance(header, dict):
        text = json.dumps(header).encode()
        header = struct.pack("<Q", len(text)) + text + b"\0" * 16
    (folder / "model.safetensors").write_bytes(header)
    sealed(folder)
    refused(folder, "model.safetensors", "is not a safetensors file")


@pytest.mark.parametrize(
    "change",
    [
        {"n_layers": 10**9}, {"n_layers": 2.0}, {"n_layers": True}, {"dim": 0}, {"dim": -1}, {"dim": 10**12},
        {"n_heads": 0}, {"n_heads": 3}, {"max_length": 0}, {"max_length": 10**9}, {"temperature": 0},
        {"temperature": "hot"}, {"sizes": "abc"}, {"sizes": None}, {"sizes": [64, 64, 65]}, {"sizes": [2, 2, 2]},
        {"sizes": [4, 4]}, {"n_items": 41}, {"n_items": "40"}, {"text_dim": 1}, {"dropout": 2}, {"more": 1},
        {"item_dropout": float("nan")},
    ],
)  # fmt: skip
def test_sealed_configs_that_do_not_fit_are_refused_before_memory_is_taken(folder, change):
    config = json.loads((folder / "config.json").read_text())
    config["model"] |= change
    (folder / "config.json").write_text(json.dumps(config))
    refused(folder, "config.json", "does not describe model.safetensors")


@pytest.mark.parametrize(
    "content", [b"", b"\0" * 99, b"[" * 100_000, b"{", '{"format": 2}'.encode("utf-16"), b"[]", b"null", b'"a"']
)
def test_a_config_that_is_none_is_refused(folder, content):
    (folder / "config.json").write_bytes(content)
    refused(folder, "config.json")


LANGUAGE = {"type": "language model", "beam_width": 9, "task": "query_to_id"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"exclude_seen": "yes"}, "exclude_seen 'yes', expected true or false"),
        ({"provenance": "shop"}, "format"),
        ({"sha256": []}, "format"),
        ({"searcher": {"type": "light", "beam_width": 0, "encoder": "a/b"}}, "beam_width is 0"),
        ({"searcher": {"type": "light", "beam_width": "9", "encoder": "a/b"}}, "beam_width is '9'"),
        ({"searcher": {"type": "light", "beam_width": 9, "encoder": 7}}, "encoder is 7"),
        ({"searcher": LANGUAGE | {"task": "sing"}}, "task is 'sing'"),
        ({"searcher": LANGUAGE | {"base": "gpt"}}, "base is 'gpt'"),
        ({"searcher": LANGUAGE | {"base": {"name": "a/b", "revision": 7}}}, "base is"),
    ],
)
def test_a_value_of_the_config_of_another_type_is_named(folder, change, message):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | change))
    refused(folder, "config.json", message)


ITEMS = {
    "no item_id": (lambda items: items.drop(columns="item_id"), "expected item_id"),
    "ids as real numbers": (lambda items: items.assign(item_id=items["item_id"] + 0.5), "item_id is of type double"),
    "an id that is no number": (
        lambda items: items.assign(item_id=items["item_id"].where(items["item_id"] > 1010)),
        "item_id is of type double",
    ),
    "ids beyond int64": (
        lambda items: items.assign(item_id=items["item_id"].astype(np.uint64) + np.uint64(2**63)), "type uint64",
    ),
    "ids as truth values": (lambda items: items.assign(item_id=True), "item_id is of type bool"),
    "ids as lists": (lambda items: items.assign(item_id=[[1]] * N_ITEMS), "item_id is of type list"),
    "titles as bytes": (lambda items: items.assign(title=[b"\xff"] * N_ITEMS), "title is of type binary"),
    "titles as numbers": (lambda items: items.assign(title=1), "title is of type int64"),
    "brands as lists": (lambda items: items.assign(brand=[["a"]] * N_ITEMS), "brand is of type list"),
    "categories as records": (lambda items: items.assign(categories=[{"a": 1}] * N_ITEMS), "categories is of type"),
    "categories too deep": (lambda items: items.assign(categories=[[[["a"]]]] * N_ITEMS), "categories is of type"),
    "one path": (lambda items: items.assign(categories=[["a"]] * N_ITEMS), "categories is of type"),
    "categories as text": (lambda items: items.assign(categories="Home"), "categories is of type"),
    "no path in a list": (lambda items: items.assign(categories=[[None, ["a"]]] * N_ITEMS), "no null"),
    "no name in a path": (lambda items: items.assign(categories=[[[None, "a"]]] * N_ITEMS), "no null"),
}  # fmt: skip


@pytest.mark.parametrize("case", ITEMS)
def test_sealed_item_tables_of_other_types_are_refused_and_none_can_be_made(folder, recommender, case):
    change, message = ITEMS[case]
    items = change(recommender.items)
    pq.write_table(pa.Table.from_pandas(items, preserve_index=False), folder / "items.parquet")
    sealed(folder)
    refused(folder, "items.parquet", message)
    with pytest.raises(ValueError, match=r"item_id|title|brand|categories"):
        Recommender(recommender.model, recommender.ids, items)


TABLES = {
    "a column twice": "items.parquet", "garbage": "items.parquet", "half characters": "items.parquet", "no rows": "",
    "an id twice": "", "an id that is empty": "",
}  # fmt: skip


@pytest.mark.parametrize("case", TABLES)
def test_sealed_item_tables_that_are_none_are_refused(folder, case):
    path = folder / "items.parquet"
    table = pq.read_table(path)
    if case == "a column twice":
        pq.write_table(table.append_column("title", table["title"]), path)
    elif case == "garbage":
        path.write_bytes(b"PAR1garbagePAR1")
    elif case == "no rows":
        pq.write_table(table[:0], path)
    elif case == "half characters":
        halves = pa.array([b"\xed\xa0\x80"] * N_ITEMS)
        text = pa.Array.from_buffers(pa.string(), N_ITEMS, halves.buffers())
        pq.write_table(table.set_column(1, "title", text), path)
    else:
        wrong = pa.array([7] * N_ITEMS if case == "an id twice" else ["", *map(str, range(1, N_ITEMS))])
        pq.write_table(table.set_column(0, "item_id", wrong), path)
    sealed(folder)
    refused(folder, TABLES[case])


def test_metadata_of_pandas_in_a_table_counts_for_nothing(folder, recommender):
    table = pa.Table.from_pandas(recommender.items)
    facts = json.loads(table.schema.metadata[b"pandas"])
    for column in facts["columns"]:
        column |= {"pandas_type": "categorical", "metadata": {"num_categories": 10**12, "ordered": True}}
    facts["index_columns"] = ["item_id"]
    pq.write_table(table.replace_schema_metadata({b"pandas": json.dumps(facts)}), folder / "items.parquet")
    sealed(folder)
    pd.testing.assert_frame_equal(Recommender.from_pretrained(folder).items, recommender.items)


def test_links_pipes_and_folders_in_place_of_files_are_refused(folder):
    path = folder / "model.safetensors"
    path.unlink()
    os.mkfifo(path)
    refused(folder, path.name, "is missing")
    path.unlink()
    path.symlink_to(path.name)
    refused(folder, path.name, "is missing")
    path.unlink()
    path.mkdir()
    refused(folder, path.name, "is missing")


# --- what is written is what was there, and no more ---


def test_columns_of_all_kinds_come_back_as_they_were(recommender, tmp_path):

    rng = np.random.default_rng(0)
    recommender.items = recommender.items.assign(
        price=[1.5, None] * 20, stock=rng.integers(0, 9, N_ITEMS), count=np.array([2**60 + 1, None] * 20, object),
        cost=[decimal.Decimal("1.10")] * N_ITEMS, day=[datetime.date(2026, 1, 2)] * N_ITEMS,
        made=pd.Timestamp("2026-01-02T03:04:05.123456"), new=[True, None] * 20, tags=[["a"], None] * 20,
        facts=[{"size": 1, "of": ["b"]}] * N_ITEMS, colour=pd.Categorical(["red", "blue"] * 20), none=[None] * N_ITEMS,
    )  # fmt: skip
    recommender.save_pretrained(tmp_path / "m")
    loaded = Recommender.from_pretrained(tmp_path / "m").items
    assert list(loaded) == list(recommender.items)
    for name in loaded:
        if name != "price":
            assert loaded[name].tolist() == recommender.items[name].tolist(), name
    pd.testing.assert_series_equal(loaded["price"], recommender.items["price"])


def test_fields_that_no_item_has_may_be_of_any_kind_of_nothing(recommender, tmp_path):
    for nothing in (None, float("nan"), pd.NA):
        recommender.items = recommender.items.assign(brand=nothing, description=nothing, categories=nothing)
        recommender.save_pretrained(tmp_path / "m")
        assert Recommender.from_pretrained(tmp_path / "m").items[["brand", "categories"]].isna().all(axis=None)


@pytest.mark.parametrize("values", [[3.5, "None"], [["a"], "a"], [2**64, 1], [{}, {}]])
def test_no_training_ends_in_a_failed_save(recommender, tmp_path, values):
    items = recommender.items.assign(extra=pd.Series(values * 20, dtype=object))
    with pytest.raises(ValueError, match="column 'extra' is"):
        Recommender(recommender.model, recommender.ids, items)
    recommender.save_pretrained(tmp_path / "m")
    before = content_of(tmp_path / "m")
    recommender.items = items  # set after it was made
    with pytest.raises(ValueError, match="column 'extra' is"):
        recommender.save_pretrained(tmp_path / "m")
    assert content_of(tmp_path / "m") == before


def test_weights_that_could_not_be_loaded_are_not_saved(recommender, folder):
    before = content_of(folder)
    with torch.no_grad():
        recommender.model.start[0] = float("nan")
    with pytest.raises(ValueError, match="tensor 'start' holds numbers that are not finite"):
        recommender.save_pretrained(folder)
    assert content_of(folder) == before


@pytest.mark.parametrize("name", ["~", "-n", "a b", "$(x)", "new\nline"])
def test_a_folder_may_have_any_name(recommender, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    recommender.save_pretrained(name)
    assert len(Recommender.from_pretrained(name).items) == N_ITEMS


def test_equal_recommenders_are_equal_folders(recommender, folder, tmp_path):
    recommender.save_pretrained(tmp_path / "again")
    Recommender.from_pretrained(folder).save_pretrained(tmp_path / "third")
    assert content_of(folder) == content_of(tmp_path / "again") == content_of(tmp_path / "third")


def test_a_folder_with_files_of_others_is_not_replaced(recommender, folder):
    (folder / ".DS_Store").write_text("")
    recommender.save_pretrained(folder)  # hidden files go
    assert sorted(path.name for path in folder.iterdir()) == sorted((*saved.ALWAYS, "config.json", "model.safetensors"))
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"holds 'notes.txt'.*give another one"):
        recommender.save_pretrained(folder)
    assert (folder / "notes.txt").read_text() == "mine"


def test_files_that_an_earlier_model_left_are_gone(recommender, folder):
    (folder / "llm").mkdir()
    (folder / "llm" / "added_tokens.json").write_text('{"rain": 3}')
    (folder / "query_model.safetensors").write_text("old")
    refused(folder, "llm/added_tokens.json", "is not listed")
    recommender.save_pretrained(folder)
    assert sorted(content_of(folder)) == sorted((*saved.ALWAYS, "config.json", "model.safetensors"))


# --- provenance ---

ORIGIN = {"data": "shop", "fingerprint": "abc123", "scale": "smoke", "commit": "f00", "seed": 3, "parents": ["ids"]}


def test_a_recommender_knows_what_it_was_made_from(recommender, folder, tmp_path):
    assert Recommender.from_pretrained(folder).provenance == {}
    recommender.save_pretrained(tmp_path / "a", ORIGIN)
    assert recommender.provenance == ORIGIN
    loaded = Recommender.from_pretrained(tmp_path / "a", fingerprint="abc123")
    assert loaded.provenance == ORIGIN
    loaded.save_pretrained(tmp_path / "b")
    assert content_of(tmp_path / "a") == content_of(tmp_path / "b")


def test_a_recommender_of_other_data_is_refused_before_its_models_are_read(recommender, folder, tmp_path):
    recommender.save_pretrained(tmp_path / "a", ORIGIN)
    (tmp_path / "a" / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"a was made from other data \(fingerprint abc123, expected ffff\)"):
        Recommender.from_pretrained(tmp_path / "a", fingerprint="ffff")
    with pytest.raises(ValueError, match=r"\(fingerprint none, expected ffff\)"):
        Recommender.from_pretrained(folder, fingerprint="ffff")


@pytest.mark.parametrize("wrong", [{"seed": np.int64(3)}, {"loss": float("nan")}, {"data": b"shop"}, [1], "shop"])
def test_provenance_is_json(recommender, folder, wrong):
    before = content_of(folder)
    with pytest.raises(ValueError, match=r"provenance is .*, expected what JSON holds"):
        recommender.save_pretrained(folder, wrong)
    assert content_of(folder) == before


# --- kills, full disks, readers beside writers ---


@pytest.fixture
def other(shop, new_timeline) -> Recommender:
    return Recommender(new_timeline(seed=1), shop.ids, shop.items.assign(title="new"))


@pytest.mark.parametrize("swap", ["exchange", "two renames"])
def test_after_a_kill_the_folder_is_the_old_or_the_new_recommender(folder, recommender, other, monkeypatch, swap):
    if swap == "two renames":
        monkeypatch.setattr(atomic, "_exchange", lambda one, other: False)
    old, moments, interrupted, began = content_of(folder), random.Random(7), 0, time.perf_counter()
    other.save_pretrained(folder)
    seconds, new = time.perf_counter() - began, content_of(folder)
    for number in range(30):
        before, coming, after = (new, recommender, old) if number % 2 == 0 else (old, other, new)
        (recommender if number % 2 else other).save_pretrained(folder)
        done = killed(lambda coming=coming: coming.save_pretrained(folder), moments.uniform(0, seconds))
        Recommender.from_pretrained(folder)
        assert content_of(folder) in ([after] if done else [before, after])
        interrupted += not done
    assert interrupted
    other.save_pretrained(folder)
    assert [path.name for path in folder.parent.iterdir() if path.suffix != ".new"] == ["model"]


def test_a_full_disk_leaves_the_folder_as_it_was(folder, other, recommender):
    before = content_of(folder)

    def save_with_little_room():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        for room in (0, 100, 3000, max(map(len, before.values())) - 1):
            resource.setrlimit(resource.RLIMIT_FSIZE, (room, resource.RLIM_INFINITY))
            with pytest.raises(OSError, match="could not be written and is as it was") as caught:
                other.save_pretrained(folder)
            assert str(folder) in str(caught.value) and "\n" not in str(caught.value)

    assert killed(save_with_little_room, 60)
    assert content_of(folder) == before
    assert [path.name for path in folder.parent.iterdir()] == ["model"]
    Recommender.from_pretrained(folder)


def test_a_reader_beside_a_writer_loads_the_old_or_the_new_one(folder, recommender, other):
    stop = threading.Event()

    def rewrite():
        while not stop.is_set():
            for each in (recommender, other):
                each.save_pretrained(folder)
                time.sleep(0.01)

    writer = threading.Thread(target=rewrite)
    writer.start()
    try:
        for _ in range(15):
            loaded = Recommender.from_pretrained(folder)
            new = loaded.items["title"].iloc[0] == "new"
            assert torch.equal(loaded.model.position.weight, (other if new else recommender).model.position.weight)
    finally:
        stop.set()
        writer.join()


def test_a_folder_that_changes_without_end_is_given_up(folder):
    number = 0

    def read():
        nonlocal number
        number += 1
        shutil.copy(folder / "config.json", folder / "next")
        (folder / "next").replace(folder / "config.json")
        raise ValueError("a checksum differs")

    with pytest.raises(OSError, match=f"was replaced {saved._TRIES} times while it was read"):
        saved.steady(folder, read)
    assert number == saved._TRIES
