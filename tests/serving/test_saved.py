"""Folders of recommenders: what is saved is loaded, and each damaged, stale or forged file is one sentence.

A folder whose checksums were computed again after its content was changed is *sealed*: only what a file says can give
it away.
"""

import copy
import datetime
import decimal
import hashlib
import json
import os
import re
import resource
import shutil
import signal
import struct

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from kills import killed, killed_at
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from semid_lib.serving import saved
from semid_lib.serving.recommender import Recommender
from semid_lib.workbench import atomic

FILES = ["config.json", "items.parquet", "model.safetensors", "semantic_ids.npz"]


@pytest.fixture
def recommender(shop, new_timeline) -> Recommender:
    paths = [[["Home", "Clocks"]], [["Home", "Rugs"], ["Gifts"]], [], [["Garden"]]] * 10
    return Recommender(new_timeline(), shop.ids, shop.items.assign(brand=["Ash", None] * 20, categories=paths))


@pytest.fixture
def folder(recommender, tmp_path):
    recommender.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def other(shop, new_timeline) -> Recommender:
    return Recommender(new_timeline(seed=1), shop.ids, shop.items.assign(title="new"))


@pytest.fixture(scope="module")
def search_folders(shop, searchable, searchers, tmp_path_factory):
    folders = {}
    for kind, searcher in searchers.items():
        folders[kind] = tmp_path_factory.mktemp("search") / kind
        Recommender(None, shop.ids, searchable, searcher).save_pretrained(folders[kind])
    return folders


@pytest.fixture
def search_folder(search_folders, tmp_path):
    """Makes a copy of a folder with a search model."""
    return lambda kind: shutil.copytree(search_folders[kind], tmp_path / kind)


def content_of(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def change_json(path, change):
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | change), encoding="utf-8")


def sealed(folder):
    names = json.loads((folder / "config.json").read_text())["sha256"]
    sums = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names}
    change_json(folder / "config.json", {"sha256": sums})


def refused(folder, name, message=""):
    """Loading raises one line that names the file and what is wrong, and takes almost no memory."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises((ValueError, OSError)) as caught:
        Recommender.from_pretrained(folder)
    text = str(caught.value)
    assert str(folder / name) in text and re.search(message, text) and "\n" not in text.strip(), text
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**18  # KiB


# --- what is saved is loaded ---


def test_what_is_loaded_recommends_what_was_saved(recommender, folder, histories, tmp_path):
    assert sorted(path.name for path in folder.iterdir()) == FILES
    loaded = Recommender.from_pretrained(folder)
    before, after = (each.recommend([*histories, []], k=10) for each in (recommender, loaded))
    np.testing.assert_array_equal(before.item_ids, after.item_ids)
    np.testing.assert_array_equal(before.scores, after.scores)
    pd.testing.assert_frame_equal(loaded.items, recommender.items)
    loaded.save_pretrained(tmp_path / "again")
    assert content_of(folder) == content_of(tmp_path / "again")


def test_a_folder_of_format_2_written_without_this_library_is_read(recommender, shop, histories, tmp_path):
    """Folders that users have keep loading: names, keys and types as they were in format 2, with one encoder."""
    model = recommender.model
    with torch.no_grad():
        for level, table in enumerate(model.chosen):
            table.weight.copy_(model.code[level].weight)
    model.code_encoder.load_state_dict(model.item_encoder.state_dict())
    weights = {
        name.removeprefix("item_encoder."): weight.numpy()
        for name, weight in model.state_dict().items()
        if not name.startswith(("chosen", "code_encoder", "item_encoder.backward"))
    }
    facts = {"codes": shop.ids.codes, "disambiguation_code": shop.ids.disambiguation_code}
    with open(tmp_path / "semantic_ids.npz", "wb") as file:
        np.savez(file, **facts, codebook_size=np.int64(4), disambiguation_size=np.int64(shop.ids.sizes[-1]))
    shop.items.to_parquet(tmp_path / "items.parquet")
    save_file(weights, tmp_path / "model.safetensors")
    model = {"sizes": list(shop.ids.sizes), "text_dim": 8, "n_items": 40, "dim": 16, "n_layers": 1, "n_heads": 2}
    model |= {"type": "timeline", "max_length": 12}
    (tmp_path / "config.json").write_text(json.dumps({"format": 2, "model": model, "sha256": dict.fromkeys(FILES[1:])}))
    sealed(tmp_path)
    loaded = Recommender.from_pretrained(tmp_path)  # without exclude_seen: items are left out
    loaded.save_pretrained(tmp_path / "again")
    for each in (loaded, Recommender.from_pretrained(tmp_path / "again")):
        found = each.recommend(histories, k=5)
        np.testing.assert_array_equal(found.item_ids, recommender.recommend(histories, k=5).item_ids)


def test_both_models_and_exclude_seen_are_kept(
    shop, searchable, searchers, new_timeline, histories, queries, query_vectors, tmp_path
):
    both = Recommender(new_timeline(), shop.ids, searchable, searchers["hybrid"], exclude_seen=False)
    both.save_pretrained(tmp_path)
    loaded = Recommender.from_pretrained(tmp_path)
    for history, found in zip(histories, loaded.recommend(histories, k=40).item_ids, strict=True):
        assert set(history) <= set(found)
    found, again = (each.search(queries, 5, query_vectors=query_vectors) for each in (both, loaded))
    np.testing.assert_array_equal(again.item_ids, found.item_ids)
    np.testing.assert_allclose(again.scores, found.scores, atol=1e-5)


def test_a_language_model_is_kept_without_what_another_left(shop, searchable, searchers, queries, search_folder):
    folder = search_folder("language")
    clean, loaded = content_of(folder), Recommender.from_pretrained(folder)
    expected = searchers["language"].search(queries, 5)
    np.testing.assert_array_equal(loaded.search(queries, 5).scores.argsort(), expected.scores.argsort())
    (folder / "llm" / "added_tokens.json").write_text('{"red": 3}')
    refused(folder, "llm/added_tokens.json", "is not listed")
    Recommender(None, shop.ids, searchable, searchers["language"]).save_pretrained(folder)
    assert content_of(folder).keys() == clean.keys()


def test_the_encoder_is_kept_by_name(shop, searchable, searchers, tmp_path):
    hybrid = copy.copy(searchers["hybrid"])
    hybrid.embed = "some/encoder"
    Recommender(None, shop.ids, searchable, hybrid).save_pretrained(tmp_path)
    assert Recommender.from_pretrained(tmp_path).searcher.embed == "some/encoder"


def test_a_hybrid_ranker_under_its_earlier_name_loads(searchers, queries, search_folder):
    folder = search_folder("hybrid")
    assert json.loads((folder / "config.json").read_text())["searcher"]["type"] == "hybrid ranker"
    expected = Recommender.from_pretrained(folder).searcher
    change_json(folder / "config.json", {"searcher": {"type": "light", "beam_width": 100, "encoder": expected.embed}})
    found = Recommender.from_pretrained(folder).searcher
    assert (type(found), found.embed, found.beam_width) == (type(expected), expected.embed, expected.beam_width)


def test_columns_of_all_kinds_come_back_as_they_were(recommender, tmp_path):
    recommender.items = recommender.items.assign(
        price=[1.5, None] * 20, stock=range(40), count=np.array([2**60 + 1, None] * 20, object),
        cost=[decimal.Decimal("1.10")] * 40, day=[datetime.date(2026, 1, 2)] * 40,
        made=pd.Timestamp("2026-01-02T03:04:05.123456"), new=[True, None] * 20, tags=[["a"], None] * 20,
        facts=[{"size": 1, "of": ["b"]}] * 40, colour=pd.Categorical(["red", "blue"] * 20), none=[None] * 40,
    )  # fmt: skip
    recommender.save_pretrained(tmp_path / "m")
    loaded = Recommender.from_pretrained(tmp_path / "m").items
    assert list(loaded) == list(recommender.items)
    for name in set(loaded) - {"price"}:
        assert loaded[name].tolist() == recommender.items[name].tolist(), name
    pd.testing.assert_series_equal(loaded["price"], recommender.items["price"])
    for nothing in (None, float("nan"), pd.NA):
        recommender.items = recommender.items.assign(brand=nothing, description=nothing, categories=nothing)
        recommender.save_pretrained(tmp_path / "m")
        assert Recommender.from_pretrained(tmp_path / "m").items[["brand", "categories"]].isna().all(axis=None)


def test_a_folder_may_have_any_name(recommender, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recommender.save_pretrained("~")
    assert len(Recommender.from_pretrained("~").items) == 40


# --- what cannot be saved leaves the folder as it was ---


def test_what_could_not_be_read_back_is_not_written(recommender, folder):
    before, items = content_of(folder), recommender.items
    with pytest.raises(ValueError, match="not JSON compliant"):
        recommender.save_pretrained(folder, {"loss": float("nan")})
    recommender.items = items.assign(extra=[3.5, "None"] * 20)
    with pytest.raises(ValueError, match="column 'extra' is"):
        recommender.save_pretrained(folder)
    recommender.items = items
    with torch.no_grad():
        recommender.model.item_encoder.start[0] = float("nan")
    with pytest.raises(ValueError, match=r"tensor 'item_encoder\.start' holds numbers that are not finite"):
        recommender.save_pretrained(folder)
    assert content_of(folder) == before


def test_a_folder_with_files_of_others_is_not_replaced(recommender, folder):
    (folder / ".DS_Store").write_text("")
    (folder / "query_model.safetensors").write_text("of an earlier model")
    recommender.save_pretrained(folder)
    assert sorted(content_of(folder)) == FILES
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"holds 'notes.txt'.*give another one"):
        recommender.save_pretrained(folder)
    assert (folder / "notes.txt").read_text() == "mine"


def test_a_full_disk_leaves_the_folder_as_it_was(folder, other):
    before = content_of(folder)

    def save_with_little_room():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        for room in (0, 3000, max(map(len, before.values())) - 1):
            resource.setrlimit(resource.RLIMIT_FSIZE, (room, resource.RLIM_INFINITY))
            with pytest.raises(OSError, match="could not be written and is as it was"):
                other.save_pretrained(folder)

    assert killed(save_with_little_room)
    assert content_of(folder) == before and [path.name for path in folder.parent.iterdir()] == ["model"]


@pytest.mark.slow
def test_a_folder_that_is_being_saved_when_the_process_is_killed_is_the_old_or_the_new_one(recommender, folder, other):
    contents, n_kills = [], 0
    for each in (other, recommender):
        each.save_pretrained(folder)
        contents.append(content_of(folder))
    for line in range(1, 10_000, 7):
        if killed_at(lambda: other.save_pretrained(folder), line, saved, atomic):
            break
        n_kills += 1
        assert content_of(folder) in contents
        recommender.save_pretrained(folder)
        assert content_of(folder) == contents[1] and [path.name for path in folder.parent.iterdir()] == ["model"]
    assert n_kills >= 30 and content_of(folder) == contents[0]


def test_a_folder_that_is_replaced_while_it_is_read_is_read_again(folder, other, monkeypatch):
    read, writes = saved.read_items, iter([other])

    def read_slowly(path):
        for each in writes:
            each.save_pretrained(folder)
        return read(path)

    monkeypatch.setattr(saved, "read_items", read_slowly)
    loaded = Recommender.from_pretrained(folder)
    assert loaded.items["title"].iloc[0] == "new"
    assert torch.equal(loaded.model.item_encoder.position.weight, other.model.item_encoder.position.weight)


def test_a_folder_that_changes_without_end_is_given_up(folder):
    def read():
        shutil.copy(folder / "config.json", folder / "next")
        (folder / "next").replace(folder / "config.json")
        raise ValueError("a checksum differs")

    with pytest.raises(OSError, match=f"was replaced {saved._TRIES} times while it was read"):
        saved.steady(folder, read)


# --- provenance ---


def test_a_recommender_of_other_data_is_refused_before_its_models_are_read(recommender, folder, tmp_path):
    origin = {"data": "shop", "fingerprint": "abc123", "scale": "smoke", "seed": 3, "parents": ["ids"]}
    assert Recommender.from_pretrained(folder).provenance == {}
    recommender.save_pretrained(tmp_path / "a", origin)
    assert (
        Recommender.from_pretrained(tmp_path / "a", fingerprint="abc123").provenance == recommender.provenance == origin
    )
    for wrong in ({"seed": float("nan")}, {"seed": np.ones(2)}, ["seed"]):
        with pytest.raises(ValueError, match=r"^provenance is .*seed.*, expected what JSON holds"):
            recommender.save_pretrained(tmp_path / "a", wrong)
    (tmp_path / "a" / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"a was made from other data \(fingerprint abc123, expected ffff\)"):
        Recommender.from_pretrained(tmp_path / "a", fingerprint="ffff")
    with pytest.raises(ValueError, match=r"\(fingerprint none, expected ffff\)"):
        Recommender.from_pretrained(folder, fingerprint="ffff")


# --- damaged folders ---


@pytest.mark.parametrize("name", FILES)
def test_a_missing_truncated_or_swapped_file_is_named(folder, other, tmp_path, name):
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[: len(content) // 2])
    refused(folder, name)
    other.save_pretrained(tmp_path / "other")
    if name in ("items.parquet", "model.safetensors"):
        shutil.copy(tmp_path / "other" / name, folder / name)
        refused(folder, name, "checksum differs")
    (folder / name).unlink()
    refused(folder, name, "is missing")
    os.mkfifo(folder / name)
    refused(folder, name, "is missing")


@pytest.mark.parametrize("content", [b"[" * 100_000, '{"format": 2}'.encode("utf-16"), b"[]"])
def test_a_config_that_is_none_is_refused(folder, content):
    (folder / "config.json").write_bytes(content)
    refused(folder, "config.json")


LANGUAGE = {"type": "language model", "beam_width": 9, "task": "query_to_id"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 1}, "has format 1, this version reads formats 2 and 3"),
        ({"provenance": "shop"}, "format"),
        ({"sha256": []}, "format"),
        ({"exclude_seen": "yes"}, "exclude_seen is 'yes', expected true or false"),
        ({"model": {"type": "tiger"}}, "type of model is 'tiger', expected 'timeline'"),
        ({"searcher": {"type": "hybrid ranker", "beam_width": 0, "encoder": "a/b"}}, "beam_width of searcher is 0"),
        ({"searcher": {"type": "hybrid ranker", "beam_width": 9, "encoder": 7}}, "encoder of searcher is 7"),
        ({"searcher": LANGUAGE | {"task": ["sing"]}}, "task of searcher is .'sing'., expected 'query_to_id'"),
        ({"searcher": LANGUAGE | {"base": {"name": "a/b", "revision": 7}}}, "base of searcher is"),
        *(({"sha256": {name: "0"}}, "lists") for name in ("../x.json", "/x.json", ".git/x.json", "x.py", "x.pkl", "")),
    ],
)
def test_a_value_of_the_config_of_another_type_is_named(folder, change, message):
    change_json(folder / "config.json", change)
    refused(folder, "config.json", message)


# --- sealed folders ---


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sizes": None}, "sizes is None, expected integers of at least 1"),
        ({"sizes": "abc"}, "sizes is 'abc', expected integers of at least 1"),
        ({"more": 1}, "'more'"),
        *(({name: 10**9}, "") for name in ("n_layers", "dim", "max_length")),
        ({"dropout": 2}, "dropout is 2"),
        ({"n_items": 41}, "item.weight"),
        ({"sizes": [2, 2, 2]}, "code.0.weight"),
        ({"sizes": [4, 4]}, "sizes"),
        ({"text_dim": 1}, "vectors"),
    ],
)
def test_a_setting_of_the_model_that_does_not_fit_is_refused_before_memory_is_taken(folder, change, message):
    model = json.loads((folder / "config.json").read_text())["model"]
    change_json(folder / "config.json", {"model": model | change})
    refused(folder, "config.json", f"does not describe model.safetensors: .*{message}")


def changed(**arrays):
    return lambda weights: weights | {name: make(weights[name]) for name, make in arrays.items()}


WEIGHTS = {
    "a table transposed": (changed(vectors=lambda x: np.ascontiguousarray(x.T)), r"'vectors' has shape \(8, 40\)"),
    "not a number": (changed(vectors=lambda x: np.full_like(x, np.nan)), "'vectors' holds numbers that are not finite"),
    "another type": (changed(vectors=lambda x: x.astype(np.int64)), "vectors is torch.int64, expected torch.float32"),
    "a missing tensor": (
        lambda weights: {name: weights[name] for name in weights if name != "query.bias"},
        "query.bias",
    ),
    "one too many": (lambda weights: weights | {"more": np.zeros(3, np.float32)}, "more"),
}


@pytest.mark.parametrize("case", WEIGHTS)
def test_sealed_weights_that_do_not_fit_are_refused(folder, case):
    change, message = WEIGHTS[case]
    save_file(change(load_file(folder / "model.safetensors")), folder / "model.safetensors")
    sealed(folder)
    refused(folder, "config.json", message)


def test_ids_and_layers_of_another_model_are_refused(folder):
    weights = load_file(folder / "model.safetensors")
    save_file(weights | {"ids": weights["ids"][::-1].copy()}, folder / "model.safetensors")
    sealed(folder)
    refused(folder, "", "expected the same items")
    last = {"item_encoder.encoder.layers.2999.norm1.weight": weights["item_encoder.encoder.layers.0.norm1.weight"]}
    save_file(weights | last, folder / "model.safetensors")
    model = json.loads((folder / "config.json").read_text())["model"]
    change_json(folder / "config.json", {"model": model | {"n_layers": 3000}})
    sealed(folder)
    refused(folder, "config.json", "n_layers is 3000, the file has 2 layers")


def test_a_sealed_file_that_is_no_weights_is_refused(folder):
    text = json.dumps({"vectors": {"dtype": "F32", "shape": [2**40, 2**40], "data_offsets": [0, 0]}}).encode()
    for content in (b"garbage", struct.pack("<Q", 2**62) + b"{}", struct.pack("<Q", len(text)) + text):
        (folder / "model.safetensors").write_bytes(content)
        sealed(folder)
        refused(folder, "model.safetensors", "is not a safetensors file")


ITEMS = {
    "no item_id": (lambda items: items.drop(columns="item_id"), "expected item_id"),
    "ids as real numbers": (lambda items: items.assign(item_id=items["item_id"] + 0.5), "item_id is of type double"),
    "ids beyond int64": (
        lambda items: items.assign(item_id=items["item_id"].astype(np.uint64) + np.uint64(2**63)),
        "type uint64",
    ),
    "titles as bytes": (lambda items: items.assign(title=[b"\xff"] * 40), "title is of type binary"),
    "one path": (lambda items: items.assign(categories=[["a"]] * 40), "categories is of type"),
    "categories too deep": (lambda items: items.assign(categories=[[[["a"]]]] * 40), "categories is of type"),
    "no path in a list": (lambda items: items.assign(categories=[[None, ["a"]]] * 40), "no null"),
    "no name in a path": (lambda items: items.assign(categories=[[[None, "a"]]] * 40), "no null"),
}


@pytest.mark.parametrize("case", ITEMS)
def test_sealed_item_tables_of_other_types_are_refused_and_none_can_be_made(folder, recommender, case):
    change, message = ITEMS[case]
    items = change(recommender.items)
    pq.write_table(pa.Table.from_pandas(items, preserve_index=False), folder / "items.parquet")
    sealed(folder)
    refused(folder, "items.parquet", message)
    with pytest.raises(ValueError, match=r"item_id|title|brand|categories"):
        Recommender(recommender.model, recommender.ids, items)


def half_characters(table):
    halves = pa.array([b"\xed\xa0\x80"] * 40)
    return table.set_column(1, "title", pa.Array.from_buffers(pa.string(), 40, halves.buffers()))


TABLES = {
    "a column twice": ("items.parquet", lambda table: table.append_column("title", table["title"])),
    "half characters": ("items.parquet", half_characters),
    "an id twice": ("", lambda table: table.set_column(0, "item_id", pa.array([7] * 40))),
}


@pytest.mark.parametrize("case", TABLES)
def test_sealed_item_tables_that_are_none_are_refused(folder, case):
    name, change = TABLES[case]
    pq.write_table(change(pq.read_table(folder / "items.parquet")), folder / "items.parquet")
    sealed(folder)
    refused(folder, name)


def with_other_vectors(path):
    with safe_open(path, framework="np") as file:
        facts = file.metadata()
    save_file({"vectors": np.ones((39, 8), np.float32)}, path, metadata=facts)


SEARCH_FILES = [
    ("query_model.safetensors", lambda path: path.write_bytes(b"garbage"), "is not a hybrid ranker"),
    ("item_vectors.safetensors", with_other_vectors, r"shape \(39, 8\), expected \(40"),
    ("llm/config.json", lambda path: change_json(path, {"hidden_size": 32}), "no language model that can be loaded"),
    ("llm/model.safetensors", lambda path: path.write_bytes(b"garbage"), "no language model that can be loaded"),
    ("llm/semantic_id_tokens.json", lambda path: change_json(path, {"end_token": 2.5}), "not a file of tokens"),
]


@pytest.mark.parametrize(("name", "change", "message"), SEARCH_FILES)
def test_a_search_model_that_does_not_fit_is_refused(search_folder, name, change, message):
    folder = search_folder("language" if name.startswith("llm") else "hybrid")
    change(folder / name)
    refused(folder, name, "checksum differs")
    sealed(folder)
    refused(folder, "llm" if name.startswith("llm") else name, message)


def test_an_item_table_of_another_length_is_refused_before_a_model_is_made_of_it(search_folder, searchable):
    folder = search_folder("hybrid")
    pq.write_table(pa.Table.from_pandas(searchable[:39], preserve_index=False), folder / "items.parquet")
    sealed(folder)
    refused(folder, "", "39 items, 40 semantic IDs: expected the same items")
