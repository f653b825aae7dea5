"""A service follows its folder: under load, beside broken versions, and without telling strangers about it."""

import gc
import json
import shutil
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from semid_lib.next_item.timeline import Timeline
from semid_lib.serving import saved
from semid_lib.serving.http import reloading, web
from semid_lib.serving.http.middleware import Limits
from semid_lib.serving.recommender import Recommender
from semid_lib.workbench.atomic import fresh_file, fresh_folder
from semid_lib.workbench.store import sha256

OFTEN = 0.01  # seconds between two looks


@pytest.fixture
def new_version(recommender_to_serve, new_timeline, served_folder):
    """Replaces the folder by a version with other weights, whose titles and config.json have its number."""

    def make(number: int, **table) -> Recommender:
        items = recommender_to_serve.items.assign(title=f"version {number}")
        version = Recommender(new_timeline(seed=number), recommender_to_serve.ids, items)
        made = served_folder.with_name("made")
        version.save_pretrained(made)
        with fresh_folder(served_folder) as fresh:
            shutil.copytree(made, fresh, dirs_exist_ok=True)
            config = json.loads((fresh / "config.json").read_text(encoding="utf-8"))
            config["version"] = saved.Version(number, **table)._asdict()
            (fresh / "config.json").write_text(json.dumps(config))
        return version

    return make


@pytest.fixture
def following(served_folder, serve):
    """Starts a service that follows the folder: a client, which has the application."""

    def start(**more) -> httpx.Client:
        app = web.load_app(served_folder, Limits(seconds=120), **{"check_seconds": OFTEN} | more)
        app.state.service.warm_up_rest()
        client = httpx.Client(base_url=serve(app), timeout=120)
        client.app = app
        return client

    return start


def put(path: Path, content: str) -> None:
    """Write a file as a whole."""
    with fresh_file(path) as fresh:
        fresh.write_text(content, encoding="utf-8")


def wait(client: httpx.Client, is_so) -> dict:
    """What /readyz says when it says what the test waits for."""
    while not is_so(answer := client.get("/readyz").raise_for_status().json()):
        time.sleep(0.01)
    return answer


def asked(client: httpx.Client, history: list[int], k: int = 10) -> tuple[str, list[int]]:
    items = client.post("/recommend", json={"item_ids": history, "k": k}).raise_for_status().json()["items"]
    [title] = {item["title"] for item in items}
    return title, [item["item_id"] for item in items]


def test_it_switches_between_requests_and_every_answer_is_of_one_version(new_version, following, ids):
    versions, histories = {1: new_version(1)}, [ids[:n] for n in range(1, 9)]
    client, seen, stop = following(), [], threading.Event()

    def ask_until_stopped(history: list[int]) -> None:
        with httpx.Client(base_url=client.base_url, timeout=120) as one:
            while not stop.is_set():
                seen.append((history, *asked(one, history)))

    with ThreadPoolExecutor(8) as aside:
        asking = [aside.submit(ask_until_stopped, history) for history in histories]
        for number in (1, 2, 3):
            versions[number] = versions.get(number) or new_version(number)
            wait(client, lambda said, name=f"{number}-": said["version"].startswith(name) and not said["loading"])
            n_before = len(seen)
            while len(seen) < n_before + 20 and not any(each.done() for each in asking):
                time.sleep(0.01)
        stop.set()
        for each in asking:
            each.result()  # no request failed
    assert {title for _, title, _ in seen} == {"version 1", "version 2", "version 3"}
    expected = {
        (f"version {number}", len(history)): version.recommend([history], 10).item_ids[0].tolist()
        for number, version in versions.items()
        for history in histories
    }
    assert len({tuple(found) for found in expected.values()}) > len(histories)  # the versions answer differently
    for history, title, found in seen:
        assert found == expected[title, len(history)]


def test_what_is_in_flight_ends_with_the_old_version_which_is_freed_then(new_version, following, ids, monkeypatch):
    new_version(1)
    client, rank, entered, release = following(check_seconds=None), Timeline.rank, threading.Event(), threading.Event()
    old = client.app.state.service
    slow = weakref.ref(old.recommender.model)

    def rank_slowly(model, *args, **more):
        if model is slow():
            entered.set()
            release.wait(60)
        return rank(model, *args, **more)

    monkeypatch.setattr(Timeline, "rank", rank_slowly)
    with ThreadPoolExecutor(1) as aside:
        late = aside.submit(asked, client, ids[:3])
        entered.wait(60)
        new_version(2)
        said = client.post("/reload")
        assert (said.status_code, said.json()["version"][:2], said.json()["loading"]) == (202, "1-", True)
        wait(client, lambda said: said["version"].startswith("2-"))
        assert asked(client, ids[:3])[0] == "version 2"  # does not wait for the old one
        assert not late.done()
        gone = [weakref.ref(part) for part in (old.recommender.model, old.index, old)]
        del old
        gc.disable()  # it is freed without a search for garbage, which would hold up requests
        try:
            release.set()
            assert late.result()[0] == "version 1"
            del late
            for _ in range(3000):
                if not any(part() for part in gone):
                    break
                time.sleep(0.01)
            assert [part() for part in gone] == [None] * 3
        finally:
            gc.enable()


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        (
            "items.parquet",
            "",
            "model/items.parquet is not the file that was saved in this folder: its checksum differs",
        ),
        ("config.json", "{", "model/config.json is not JSON: "),
        ("config.json", '{"format": 3}', "model/config.json has format 3, this version reads formats 2 and 3"),
    ],
)
def test_a_broken_version_is_not_served_and_another_one_is(
    new_version, following, served_folder, caplog, name, content, said
):
    new_version(1)
    client = following()
    new_version(2)
    wait(client, lambda said: said["version"].startswith("2-"))
    config = json.loads((served_folder / "config.json").read_text())
    config["version"]["number"] = 3
    put(served_folder / "config.json", json.dumps(config))
    wait(client, lambda said: said["version"].startswith("3-"))
    with caplog.at_level("ERROR"):
        config["version"]["number"] = 4
        if name != "config.json":
            put(served_folder / name, content)
            content = json.dumps(config)
        put(served_folder / "config.json", content)
        answer = wait(client, lambda said: said["refused"])
    assert answer["refused"].startswith(said) and answer["version"].startswith("3-") and answer["status"] == "ready"
    record = caplog.records[-1]
    assert record.getMessage() == "not reloaded"
    assert (record.facts["version"], record.facts["refused"]) == (answer["version"], answer["refused"])
    new_version(5)
    assert wait(client, lambda said: said["version"].startswith("5-"))["refused"] is None


def test_a_version_that_cannot_answer_or_is_gone_is_not_served(new_version, following, served_folder, monkeypatch):
    new_version(1)
    client = following()
    with monkeypatch.context() as patched:
        patched.setattr(Timeline, "rank", lambda *_, **__: 1 / 0)  # the dummy request finds out
        new_version(2)
        assert wait(client, lambda said: said["refused"])["refused"] == "ZeroDivisionError, see the log"
    assert client.post("/reload").status_code == 202  # tried again
    wait(client, lambda said: said["version"].startswith("2-") and said["refused"] is None)
    served_folder.rename(served_folder.with_name("away"))
    said = wait(client, lambda said: said["refused"])
    assert said["refused"] == "model is missing: expected a folder that save_pretrained wrote"
    served_folder.with_name("away").rename(served_folder)
    assert wait(client, lambda said: said["refused"] is None)["version"].startswith("2-")


def test_a_version_that_cannot_do_what_is_served_is_refused(new_version, following, recommender_to_serve, monkeypatch):
    new_version(1)
    client = following()
    load = Recommender.from_pretrained

    def without_model(*args, **how):
        loaded = load(*args, **how)
        loaded.model, loaded.searcher = None, loaded
        return loaded

    monkeypatch.setattr(Recommender, "from_pretrained", without_model)
    monkeypatch.setattr(Recommender, "trie", recommender_to_serve.trie)
    new_version(2)
    assert (
        "has no model for /recommend, which the service answers"
        in wait(client, lambda said: said["refused"])["refused"]
    )


def test_a_folder_that_is_replaced_twice_quickly_ends_with_the_last(new_version, following, monkeypatch):
    new_version(1)
    client, load, loaded = following(), reloading.Origin.load, []

    def load_slowly(self, like):
        service = load(self, like)
        loaded.append(service.recommender.version.number)
        if len(loaded) == 1:
            new_version(3)  # while version 2 is loaded
            new_version(4)
        return service

    monkeypatch.setattr(reloading.Origin, "load", load_slowly)
    new_version(2)
    wait(client, lambda said: said["version"].startswith("4-"))
    assert loaded == [2, 4]
    again = client.app.state.service
    client.post("/reload")
    wait(client, lambda said: not said["loading"])
    assert client.app.state.service is again and loaded == [2, 4]  # nothing new: nothing loaded


def test_only_who_has_the_token_may_ask_for_it_and_strangers_learn_no_more_than_a_name(new_version, following):
    new_version(1, change="2 items were added")
    client = following(token="sesame")
    assert client.post("/reload").status_code == 401
    assert client.post("/reload", headers={"authorization": "Bearer no"}).status_code == 401
    token = {"authorization": "Bearer sesame"}
    assert client.post("/reload", headers=token).status_code == 202
    assert client.get("/reload", headers=token).status_code == 405
    assert set(client.get("/readyz").json()) == {"status", "version", "loading", "refused"}
    facts = client.get("/catalogue", headers=token).json()["version"]
    assert (facts["name"][:2], facts["number"], facts["change"]) == ("1-", 1, "2 items were added")
    browser = {"origin": "http://evil.example", **token}
    assert client.post("/reload", headers=browser).status_code == 415


def test_a_version_is_named_by_number_and_digest(served_folder, following, client, caplog):
    with caplog.at_level("INFO"):
        following_one = following(check_seconds=None)
    name = f"1-{sha256(served_folder / 'config.json')[:12]}"
    assert following_one.get("/readyz").json()["version"] == name
    [loaded] = [record for record in caplog.records if record.getMessage() == "loaded"]
    assert loaded.facts["version"] == name
    assert following_one.app.state.service.facts()["version"]["name"] == name
    answer = client.post("/reload")
    assert answer.status_code == 404 and "does not reload" in answer.json()["detail"]
    assert following(check_seconds=0).post("/reload").status_code == 404


def test_rules_hold_for_every_answer_and_are_read_again(new_version, following, tmp_path, ids):
    new_version(1)
    rules = tmp_path / "rules.json"
    rules.write_text(json.dumps({"allowed_items": [*map(str, ids[:20]), "no such item"], "blocked_items": ids[:5]}))
    client = following(rules=rules)
    many = {"topk": 40, "instances": [{"user_id": "u", "item_ids": []}]}

    def found() -> list[list[int]]:
        [answer] = client.post("/predictions/m", json=many).json()["predictions"]
        body = {"item_ids": [], "k": 40}
        blocked = client.post("/recommend", json=body | {"blocked_items": ids[5:7]}).json()["items"]
        return [
            sorted(asked(client, [], 40)[1]),
            sorted(answer["predictions"]),
            sorted(one["item_id"] for one in blocked),
        ]

    assert found() == [sorted(ids[5:20]), sorted(ids[5:20]), sorted(ids[7:20])]
    put(rules, json.dumps({"blocked_items": ids[:10], "allowed_brands": ["ash"]}))
    while found()[0] != sorted(ids[10::2]):
        time.sleep(0.01)
    new_version(2)
    wait(client, lambda said: said["version"].startswith("2-"))
    assert found()[0] == sorted(ids[10::2])
    for wrong, said in (
        ({"allowed_brands": ["Oak"]}, "rules.json: no item has the brand 'Oak'"),
        ({"allowed_items": []}, "rules.json: the rules leave none of 40 items"),
        ({"blocked": []}, "rules.json: blocked: Extra inputs are not permitted"),
        ("no list", "rules.json: "),
    ):
        put(rules, json.dumps(wrong))
        assert wait(client, lambda answer, said=said: (answer["refused"] or "").startswith(said))["status"] == "ready"
        assert found()[0] == sorted(ids[10::2])
    put(rules, "{}")
    wait(client, lambda said: said["refused"] is None)
    assert found()[0] == sorted(ids)
    rules.write_text('{"allowed_brands": ["Oak"]}')
    with pytest.raises(ValueError, match="Oak"):
        web.load_app(tmp_path / "model", rules=rules)
