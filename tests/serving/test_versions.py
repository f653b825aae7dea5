"""A recommender's folder as versions: changes, kills, rollback, refit, status, and the command."""

import json
import re

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from filelock import FileLock
from kills import killed_at

from semid_lib.cli import main
from semid_lib.ids import rqvae
from semid_lib.ids.tokenizer import ItemTokenizer
from semid_lib.serving import predict as batch
from semid_lib.serving import saved
from semid_lib.serving.catalogue import versions
from semid_lib.serving.recommender import Recommender
from semid_lib.workbench import atomic


def new(first: int, n: int) -> pd.DataFrame:
    numbers = range(first, first + n)
    return pd.DataFrame({"item_id": [10 * one for one in numbers], "title": [f"thing {one}" for one in numbers]})


@pytest.fixture
def folder(living, tmp_path):
    living.recommender.save_pretrained(tmp_path / "shop", {"data": "things"})
    return tmp_path / "shop"


def content_of(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def answers(folder):
    recommender = Recommender.from_pretrained(folder)
    query = np.ones((1, 8), np.float32)
    found = [*recommender.recommend([[0, 70], []], k=20), *recommender.search(["thing 3"], 20, query_vectors=query)]
    return [part.tolist() for part in found]


def add(folder, *numbers):
    return versions.change(folder, lambda old: old.add_items(pd.concat([new(one, 1) for one in numbers])))


def remove(folder, *numbers):
    return versions.change(folder, lambda old: old.remove_items([10 * one for one in numbers]))


# --- what a folder says ---


def test_a_saved_folder_is_a_version_and_can_be_changed_after_loading(folder, tmp_path):
    config = json.loads((folder / "config.json").read_text())
    assert config["version"] | {"written": ""} == {"number": 1, "parent": None, "change": "saved", "written": ""}
    assert config["tokenizer"] == {"encoder": "all-MiniLM-L6-v2", "max_characters": 1000, "n_fitted": 30}
    loaded = Recommender.from_pretrained(folder)
    parent = atomic.sha256(folder / "config.json")
    fresh, _ = loaded.add_items(new(100, 2))
    fresh, _ = fresh.remove_items([10])
    assert fresh.version[:3] == (2, parent, "add 2 items; remove 1 item")
    assert fresh.version_name is None  # until it is saved
    fresh.save_pretrained(tmp_path / "other")
    again = Recommender.from_pretrained(tmp_path / "other")
    assert (
        again.version == fresh.version and again.item_ids.removed == {"10"} and again.provenance == {"data": "things"}
    )
    assert again.recommend([[10]]).skipped == 1
    np.testing.assert_array_equal(again.tokenizer.quantizer.codebooks, loaded.tokenizer.quantizer.codebooks)


def test_a_folder_without_version_and_codebooks_is_read_and_can_lose_items(folder):
    (folder / "quantizer.safetensors").unlink()
    config = json.loads((folder / "config.json").read_text())
    for part in (config, config, config["sha256"]):
        for name in ("version", "tokenizer", "quantizer.safetensors"):
            part.pop(name, None)
    (folder / "config.json").write_text(json.dumps(config))
    assert "codebooks and encoder were not saved" in str(versions.status(folder))
    with pytest.raises(ValueError, match="does not know how its items got"):
        add(folder, 100)
    remove(folder, 3)
    assert versions.status(folder).version[::2] == (2, "remove 1 item")


def test_the_quantizer_of_an_rqvae_is_kept(living, tmp_path):
    vectors = living.recommender.model.vectors.numpy()
    fitted = rqvae.fit_rqvae(vectors, rqvae.RQVAEConfig(2, 4, hidden_dim=8, n_epochs=1))
    tokenizer = ItemTokenizer(fitted, 30, max_characters=60)
    tokenizer.save(tmp_path / "q.safetensors")
    loaded = ItemTokenizer.load(tmp_path / "q.safetensors", tokenizer.facts())
    np.testing.assert_array_equal(loaded.quantizer.encode(vectors), fitted.codes)
    np.testing.assert_array_equal(loaded.quantizer.decode(fitted.codes), fitted.decode(fitted.codes))
    assert loaded.facts() == tokenizer.facts() and loaded.dim == 8


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": {"number": 0}}, "version is .*expected number, parent, change and written"),
        ({"version": {"number": 1, "parent": "../x", "change": "", "written": ""}}, "version is"),
        ({"tokenizer": {"encoder": 3}}, "tokenizer is .*expected encoder, max_characters and n_fitted"),
        ({"tokenizer": {"encoder": "e", "max_characters": 9, "n_fitted": 99}}, "fitted to 99 items, expected"),
        ({"tokenizer": {"encoder": "e", "max_characters": 9, "n_fitted": 9}}, "encoder is .*but that of the IDs 'e'"),
    ],
)
def test_a_forged_config_is_refused(folder, change, message):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(ValueError, match=message):
        Recommender.from_pretrained(folder)


# --- versions ---


def test_each_change_is_a_version_and_its_parents_are_kept(folder, monkeypatch):
    monkeypatch.setattr(versions, "KEPT", 2)
    first, ids = answers(folder), Recommender.from_pretrained(folder).ids.unique
    for number in range(4):
        add(folder, 100 + number)
    status = versions.status(folder)
    assert status.version[::2] == (5, "add 1 item") and [each.number for each in status.history] == [3, 4]
    assert status.version.parent == atomic.sha256(folder.parent / ".shop.versions" / "4" / "config.json")
    after = Recommender.from_pretrained(folder)
    np.testing.assert_array_equal(after.ids.unique[:30], ids)
    assert len(after.items) == 34 and answers(folder) != first
    same = (folder / "query_model.safetensors").stat().st_ino
    assert same == (folder.parent / ".shop.versions" / "3" / "query_model.safetensors").stat().st_ino


def test_a_rollback_restores_the_answers_and_can_be_undone(folder):
    first = answers(folder)
    add(folder, 100, 101)
    second = answers(folder)
    assert versions.rollback(folder)[::2] == (3, "roll back to version 1")
    assert answers(folder) == first
    versions.rollback(folder)
    assert answers(folder) == second and versions.status(folder).version.number == 4
    versions.rollback(folder, 1)
    assert answers(folder) == first
    for number, message in ((17, "version 17 of .* is not kept, kept are: 1, 2, 3, 4"), (5, "version 5 of")):
        with pytest.raises(ValueError, match=message):
            versions.rollback(folder, number)
    (folder.parent / ".shop.versions" / "2" / "items.parquet").write_bytes(b"damaged")
    before = content_of(folder)
    with pytest.raises(ValueError, match=r"items\.parquet is not the file that was saved"):
        versions.rollback(folder, 2)
    assert content_of(folder) == before


def test_versions_of_an_earlier_model_do_not_push_out_the_parent(folder):
    for number in (100, 101, 102):
        add(folder, number)
    fresh = Recommender.from_pretrained(folder)
    fresh.version = saved.Version()  # as a chapter saves it
    fresh.save_pretrained(folder)
    add(folder, 200)
    assert [each.number for each in versions.history(folder)] == [1]
    assert versions.rollback(folder)[::2] == (3, "roll back to version 1")


def test_a_failed_change_leaves_the_folder_and_two_do_not_run_at_once(folder):
    before = content_of(folder)
    with pytest.raises(ValueError, match="item 10 exists already"):
        add(folder, 1)
    with FileLock(folder.with_name(".shop.lock")), pytest.raises(BlockingIOError, match="another change of"):
        add(folder, 100)
    with pytest.raises(ValueError, match="is not a folder"):
        add(folder / "none", 100)
    with pytest.raises(ValueError, match=r"version before of .* is not kept, kept are: none"):
        versions.rollback(folder)
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"holds 'notes.txt'"):
        add(folder, 100)
    (folder / "notes.txt").unlink()
    assert content_of(folder) == before


def test_a_model_that_was_trained_again_is_the_next_version(folder, living):
    add(folder, 100)
    retrained = living.recommender
    assert versions.put(folder, retrained).number == 3
    assert versions.rollback(folder)[::2] == (4, "roll back to version 2")


@pytest.mark.slow
@pytest.mark.parametrize("work", ["add", "remove", "rollback", "refit"])
def test_a_kill_at_any_line_leaves_the_old_version_or_the_new_one(folder, work):
    add(folder, 100)
    do = {
        "add": lambda: add(folder, 101),
        "remove": lambda: remove(folder, 3, 100),
        "rollback": lambda: versions.rollback(folder),
        "refit": lambda: versions.refit(folder, drop_models=True),
    }[work]
    old, n_kills, seen = content_of(folder), 0, set()
    for line in range(1, 10_000, 23):
        if killed_at(do, line, versions, saved, atomic):
            break
        n_kills += 1
        number = Recommender.from_pretrained(folder).version.number  # it loads, so all checksums are right
        seen.add(number)
        if number == 2:
            assert content_of(folder) == old
        else:
            versions.rollback(folder, 2)  # what was kept is whole
            assert Recommender.from_pretrained(folder).items["item_id"].tolist()[-1] == 1000
            break
    assert n_kills >= 10 and seen <= {2, 3}
    left = [path.name for path in folder.parent.iterdir() if ".partial" not in path.name and ".aside" not in path.name]
    assert sorted(left) == [".shop.lock", ".shop.versions", "shop"]


def test_batch_predictions_leave_out_removed_items(folder, tmp_path):
    remove(folder, 1)
    (tmp_path / "in.txt").write_text("ann 10 0\nbob 0\n")
    outcome = batch.predict_folder(folder, tmp_path / "in.txt", tmp_path / "out.jsonl", {}, k=3)
    ann, bob = map(json.loads, (tmp_path / "out.jsonl").read_text().splitlines())
    assert outcome == (2, 0, 1) and str(outcome).endswith("items of histories left out as removed: 1")
    assert ann["item_ids"] == bob["item_ids"]


# --- refit and status ---


def test_a_refit_drops_models_and_maps_ids(folder):
    add(folder, 100)
    before = Recommender.from_pretrained(folder)
    with pytest.raises(ValueError, match=r"drops the next-item model and the search model .* say that you mean it"):
        versions.refit(folder)
    report = versions.refit(folder, drop_models=True)
    after = Recommender.from_pretrained(folder)
    assert after.model is None and after.tokenizer.n_fitted == 31 and "no histories" in str(report)
    pairs = pq.read_table(folder / "id_map.parquet").to_pydict()
    assert pairs["item_id"] == after.items["item_id"].tolist()
    assert (pairs["old"], pairs["new"]) == (before.ids.unique.tolist(), after.ids.unique.tolist())
    assert report.moved == sum(one != two for one, two in zip(pairs["old"], pairs["new"], strict=True)) > 0
    vectors = before.model.vectors.numpy()
    assert after.search(["thing 7"], 1, query_vectors=vectors[7:8]).item_ids.tolist() == [[70]]
    add(folder, 102)  # the new codebooks serve later items
    assert versions.status(folder).version.number == 4 and not (folder / "id_map.parquet").exists()
    versions.rollback(folder, 2)
    assert Recommender.from_pretrained(folder).model is not None


def test_status_counts_and_says_what_is_due(folder, monkeypatch):
    status = versions.status(folder)
    assert (status.n_items, status.n_new, status.untrained, status.n_removed) == (30, 0, 0, 0)
    assert status.new_distortion is None and "of 0 new ones" in str(status)
    recommender = Recommender.from_pretrained(folder)
    vectors, codes = recommender.model.vectors.numpy(), recommender.ids.codes
    error = vectors - recommender.tokenizer.quantizer.decode(codes)
    assert status.distortion == pytest.approx(float((error**2).sum(axis=1).mean()), rel=1e-5)
    prefixes = pd.DataFrame(codes[:, :2]).value_counts()
    full = prefixes[prefixes == 4]
    assert (status.n_prefixes, status.full_prefixes, status.items_under_full) == (
        len(prefixes), len(full), full.sum(),
    )  # fmt: skip
    add(folder, *range(100, 110))
    remove(folder, 0, 101)
    monkeypatch.setattr(versions, "ENOUGH", 1)
    monkeypatch.setattr(versions, "DRIFTED", 0.01)
    status = versions.status(folder)
    assert (status.n_items, status.n_new, status.untrained, status.n_removed) == (38, 9, 9, 2)
    assert any(re.match(r"refit: the codes fit new items \d", line) for line in status.advice)
    assert "train again, on the same IDs: 23.7% of the items have no training signal (limit 20%)" in status.advice


# --- the command ---


def test_the_command_changes_a_folder(folder, tmp_path, capsys):
    (tmp_path / "new.jsonl").write_text('{"item_id": 5, "title": "red lamp"}\n{"item_id": 6, "title": "blue lamp"}\n')
    (tmp_path / "changed.csv").write_text("item_id,title\n5,green lamp\n")
    (tmp_path / "sales.csv").write_text("item_id,sales\n0,12\n20,1.5\n77,3\n")
    (tmp_path / "wrong.csv").write_text("item_id,sales\n0,-1\n")
    first, shop = answers(folder), ["catalogue", str(folder)]
    for words, told in (
        (["add", str(tmp_path / "new.jsonl")], "add 2 items: "),
        (["update", str(tmp_path / "changed.csv")], "update 1 item; 1 texts encoded"),
        (["remove", "6", "10"], "remove 2 items"),
        (["status"], "version 4 of "),
        (["sales", str(tmp_path / "sales.csv")], "follow the sales of 2 items; 1 ids are not in the catalogue"),
        (["room", "2"], "give new items the rate 2"),
        (["status"], "without training signal: 1 (3.3%), together 6.5% of the probability\nscores follow the sales"),
        (["rollback", "--to", "1"], "version 7: roll back to version 1"),
        (["refit", "--drop-models"], "of 30 items have another ID"),
    ):
        assert main([*shop, *words]) == 0
        assert told in capsys.readouterr().out
    assert main([*shop, "rollback"]) == 0 and answers(folder) == first
    capsys.readouterr()
    for words, told in (
        (
            ["add", str(tmp_path / "new.jsonl"), "--encoder", "other"],
            "by all-MiniLM-L6-v2, expected other",
        ),
        (["sales", str(tmp_path / "wrong.csv")], "wrong.csv, line 2: sales is '-1', expected a number of at least 0"),
        (["remove", "11"], "item id '11' is not in the catalogue"),
        (["refit"], "say that you mean it"),
    ):
        assert main([*shop, *words]) == 1
        assert told in capsys.readouterr().err
