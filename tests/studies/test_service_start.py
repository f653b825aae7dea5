"""Starts of the real service in processes of their own: what is measured, not how long it takes."""

import hashlib
import io
import json
import os
import time
from types import SimpleNamespace

import pytest
import uvicorn

from semid_lib.data.item_ids import ItemIds
from semid_lib.ids import embed
from semid_lib.serving import saved
from semid_lib.serving.http import web
from semid_lib.serving.http.service import Service
from semid_lib.serving.recommender import Recommender
from semid_lib.studies.service import service_start
from semid_lib.studies.service.service_start import PARTS, Way


@pytest.fixture
def questions(shop):
    ids = shop.items["item_id"].tolist()
    return [{"item_ids": ids[:at], "k": 3} for at in range(6)]


@pytest.mark.slow
def test_a_start_has_all_parts_that_its_way_has(served_folder, questions):
    seconds, warm_ms = service_start.measure(served_folder, questions)
    assert tuple(seconds) == tuple(part for part in PARTS if part != "text encoder")
    assert all(value > 0 for value in seconds.values()) and len(warm_ms) == 5
    assert tuple(service_start.measure(served_folder, questions, Way(forked=True)).seconds) == PARTS[-1:]
    seconds, _ = service_start.measure(served_folder, questions[:1], Way(checksums=False, compiled=False))
    assert "checksums" not in seconds and seconds["weights"] > 0


@pytest.mark.parametrize("way", [Way(), Way(compiled=False, checksums=False, forked=True)])
def test_the_process_that_answers_says_what_each_part_took(way, served_folder, monkeypatch, capsys):
    patched = [(hashlib, "file_digest"), (saved, "read_items"), (saved, "check_files"), (web, "create_app")]
    patched += [(embed.Encoder, "__init__"), (Recommender, "from_pretrained")]
    for owner, name in [*patched, (Service, "warm_up"), (Service, "warm_up_rest")]:
        monkeypatch.setattr(owner, name, vars(owner)[name])  # so that it comes back
    served: list[dict] = []
    monkeypatch.setattr(uvicorn, "run", lambda app, **more: served.append(more))
    monkeypatch.setattr(os, "fork", lambda: 0)
    monkeypatch.setattr("sys.stdin", io.StringIO("\n"))
    monkeypatch.delenv("SEMID_TOKEN", raising=False)
    facts = {"folder": str(served_folder), "port": 77, "started": time.monotonic(), **vars(way)}
    monkeypatch.setattr("sys.argv", ["-c", json.dumps(facts)])
    service_start._serve()
    spent = json.loads(capsys.readouterr().out)
    left_out = {"text encoder", PARTS[-1]} | (set() if way.checksums else {"checksums"})
    assert set(spent) == set(PARTS) - left_out and min(spent.values()) >= 0
    assert [more["port"] for more in served] == [77]
    monkeypatch.setattr("sys.argv", ["-c", json.dumps(facts | {"folder": "nowhere"})])
    with pytest.raises(SystemExit, match="cannot serve nowhere: "):
        service_start._serve()


@pytest.mark.parametrize("searches", [False, True])
def test_example_requests_fit_the_folder(searches, tmp_path, shop):
    (tmp_path / "config.json").write_text('{"searcher": 1}' if searches else '{"model": 1}', encoding="utf-8")
    like = SimpleNamespace(items=shop.items, item_ids=ItemIds(shop.items))
    [asked] = service_start.example_requests(tmp_path, like, 1, seed=0)
    assert asked["query"].startswith("item in row") if searches else asked["item_ids"][0] in set(shop.items["item_id"])


def test_a_table_by_hand(monkeypatch):
    slow, quick = Way(), Way(forked=True)
    asked, starts = [], {slow: [3.0, 5.0], quick: [1.0, 2.0]}

    def measure(folder, questions, way):
        asked.append(way)
        seconds = {"torch": starts[way].pop(0), PARTS[-1]: 0.25}
        return service_start.Start(seconds, [] if way is quick else [float(ms) for ms in range(101)])

    monkeypatch.setattr(service_start, "measure", measure)
    found = service_start.table("folder", [{}], {"slow": slow, "quick": quick}, repeats=2)
    assert asked == [slow, quick, slow, quick]  # the ways take turns
    assert found.index.tolist() == [("slow", 0), ("slow", 1), ("quick", 0), ("quick", 1)]
    assert found.columns.tolist() == [*PARTS, "total", "p50", "p99"]
    assert found["total"].tolist() == [3.25, 5.25, 1.25, 2.25]
    assert found[["p50", "p99"]].loc["slow"].to_numpy().tolist() == [[50.0, 99.0]] * 2
    assert found[["p50", "p99"]].loc["quick"].isna().all(axis=None)


@pytest.mark.slow
def test_a_folder_that_cannot_be_served_and_a_refused_request_say_why(served_folder, questions):
    with pytest.raises(ValueError, match="no question"):
        service_start.measure(served_folder, [])
    with pytest.raises(ValueError, match="answered with 422"):
        service_start.measure(served_folder, [{"item_ids": [5]}])
    with open(served_folder / "model.safetensors", "ab") as weights:
        weights.write(b"x")
    with pytest.raises(ValueError, match=r"model\.safetensors is not the file that was saved"):
        service_start.measure(served_folder, questions)


def test_imports_are_counted_by_package():
    found = service_start.imports("numpy.ma")
    assert {"numpy", "Python's own"} <= set(found.index)
    assert found["seconds"].is_monotonic_decreasing and (found["modules"] >= 1).all()
    assert found.loc["numpy", "modules"] > 10
