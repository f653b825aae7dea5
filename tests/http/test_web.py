"""The HTTP service: the library's answers, limits that hold, nothing told to strangers or to the log."""

import asyncio
import contextlib
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from urllib.parse import quote

import httpx
import numpy as np
import pytest
from hypothesis.errors import Unsatisfiable

from semid_lib.cli import main
from semid_lib.next_item.timeline import Timeline
from semid_lib.serving.http import schemas, web
from semid_lib.serving.recommender import Recommender

ROOT = Path(__file__).resolve().parents[2]
FUZZ_EXAMPLES = int(os.environ.get("SEMID_FUZZ", "6"))  # requests of each kind; more by hand


def found(response: httpx.Response) -> list[int]:
    assert response.status_code == 200, response.text
    return [item["item_id"] for item in response.json()["items"]]


async def post_all(client: httpx.Client, bodies: list[dict]) -> list[httpx.Response]:
    async with httpx.AsyncClient(base_url=client.base_url, timeout=30) as many:
        return await asyncio.gather(*(many.post("/recommend", json=body) for body in bodies))


# --- answers ---


def test_recommendations_are_those_of_the_library(client, recommender_to_serve, ids):
    history = ids[:4]
    answer = client.post("/recommend", json={"item_ids": history, "k": 6}).json()
    expected = recommender_to_serve.recommend([history], k=6)
    assert [item["item_id"] for item in answer["items"]] == expected.item_ids[0].tolist()
    np.testing.assert_allclose([item["score"] for item in answer["items"]], expected.scores[0], atol=1e-5)
    of_item = {"item_id", "title", "brand", "categories", "price", "semantic_id"}
    assert set(answer["items"][0]) == of_item | {"score", "why", "matched_words"}
    assert answer["any_word_found"] is None and answer["items"][0]["matched_words"] == []
    assert len(found(client.post("/recommend", json={"item_ids": []}))) == 10
    many = {"topk": 200, "instances": [{"user_id": "u", "item_ids": history}]}
    for exclude_seen, expected in ((True, ids[4:]), (False, ids)):  # by default as the recommender was made
        recommender_to_serve.exclude_seen = exclude_seen
        by_default = {"item_ids": history, "k": 200}
        assert sorted(found(client.post("/recommend", json=by_default))) == sorted(expected)
        opposite = found(client.post("/recommend", json=by_default | {"exclude_seen": not exclude_seen}))
        assert len(opposite) == 80 - 4 - len(expected)
        [answer] = client.post("/predictions/m", json=many).json()["predictions"]
        assert sorted(answer["predictions"]) == sorted(expected)


def test_rules_hold(client, ids):
    rules = {"k": 40, "allowed_categories": ["Garden", "clocks"], "allowed_brands": ["ash"]}
    for path, asked, rows in (
        ("/recommend", {"item_ids": ids[:2], "blocked_items": [ids[4]]}, range(8, 40, 4)),
        ("/search", {"query": "item", "blocked_items": [ids[4]]}, [0, *range(8, 40, 4)]),
    ):
        assert sorted(found(client.post(path, json=rules | asked))) == sorted(ids[row] for row in rows)


def test_a_floor_and_a_ceiling_for_new_items(new_client, recommender_to_serve, new_timeline, ids):
    model = new_timeline()
    config = replace(model.config, n_items=30)
    newer = Timeline(config, recommender_to_serve.ids.unique, model.vectors.numpy()).eval()
    client = new_client(recommender=Recommender(newer, recommender_to_serve.ids, recommender_to_serve.items))
    for share in ({"at_most": 0}, {"at_least": 3, "at_most": 4}, {"at_least": 6}):
        answer = found(client.post("/recommend", json={"item_ids": ids[:2], "k": 6, "new_items": share}))
        n_new = len(set(answer) & set(ids[30:]))
        assert len(set(answer)) == 6 and share.get("at_least", 0) <= n_new <= share.get("at_most", 6)
    refused = client.post("/recommend", json={"item_ids": [], "new_items": {"at_least": 3, "at_most": 1}})
    assert refused.status_code == 422 and "at_least should not be above at_most" in refused.text


def test_items_that_were_removed_are_left_out_of_a_history_and_counted(new_client, recommender_to_serve, ids):
    parts = recommender_to_serve.model, recommender_to_serve.ids, recommender_to_serve.items
    client = new_client(recommender=Recommender(*parts, removed=["gone"]))
    with_gone = client.post("/recommend", json={"item_ids": [ids[3], "gone"]}).json()
    without = client.post("/recommend", json={"item_ids": [ids[3]]}).json()
    assert (with_gone.pop("skipped"), without.pop("skipped")) == (1, 0) and with_gone == without


def test_a_search_says_which_words_it_found(client, ids):
    assert found(client.post("/search", json={"query": "row 17"}))[0] == ids[17]
    answer = client.post("/search", json={"query": "a clock, zebra ROW 4", "k": 40}).json()
    words = {item["title"]: item["matched_words"] for item in answer["items"]}
    assert answer["any_word_found"] is True and words["item in row 4"] == ["clock", "row", "4"]
    assert client.post("/search", json={"query": "zebra"}).json() == {
        "items": [],
        "any_word_found": False,
        "skipped": 0,
    }


def test_answers_do_not_depend_on_company(client, recommender_to_serve, shop, ids):
    bodies = [
        {"item_ids": [ids[row] for row in history], "k": 1 + at % 3, "exclude_seen": at % 2 == 0}
        for at, history in enumerate(shop.histories[:40])
    ]
    for at in range(0, 40, 5):
        bodies[at]["blocked_items"] = ids[:at]
    for body, answer in zip(bodies, asyncio.run(post_all(client, bodies)), strict=True):
        allowed = ~np.isin(recommender_to_serve.items["item_id"], body.get("blocked_items", []))
        expected = recommender_to_serve.recommend([body["item_ids"]], body["k"], body["exclude_seen"], allowed=allowed)
        assert found(answer) == [item for item in expected.item_ids[0].tolist() if item is not None]


def test_items_by_id_title_and_prefix(client, shop, ids):
    item = client.get(f"/items/{ids[5]}").json()
    assert (item["title"], item["semantic_id"]) == ("item in row 5", shop.ids.unique[5].tolist())
    assert found(client.get("/items", params={"title": "row 5"}))[0] == ids[5]
    near = client.get(f"/items/{ids[5]}/neighbours", params={"limit": 3}).json()
    assert near["item"] == item and near["prefixes"][-1]["prefix"] == item["semantic_id"][:1]
    assert client.get("/items/5").status_code == client.get("/items/5/neighbours").status_code == 404


def test_facts_say_what_can_be_asked(new_client, recommender_to_serve, monkeypatch):
    items, long = recommender_to_serve.items, "Imported; machine wash cold, tumble dry low. " * 9
    items["brand"], items["categories"] = [f"brand {row}" for row in range(len(items))], [[["Home", long]]] * len(items)
    monkeypatch.setattr(schemas, "MAX_BRANDS", 3)
    client = new_client()
    facts = client.get("/catalogue").json()
    assert (facts["n_items"], facts["can_recommend"], facts["can_search"]) == (40, True, True)
    assert ([one["name"] for one in facts["brands"]], facts["n_brands"]) == (["brand 0", "brand 1", "brand 10"], 40)
    assert facts["categories"][0] == {"name": "Home", "n_items": 40} and len(facts["example_queries"]) == 5
    long = facts["categories"][1]["name"]  # whatever is listed can be chosen
    assert len(found(client.post("/recommend", json={"item_ids": [], "allowed_categories": [long]}))) == 10


def with_ids(recommender: Recommender, item_ids: list) -> Recommender:
    items = recommender.items.assign(item_id=item_ids)
    return Recommender(recommender.model, recommender.ids, items, recommender.searcher)


ODD_IDS = ["A/1", "A/1/neighbours", "\u00e9\u4e2d", "a b", "%2F", "?x=1", "#", "x" * 3000, "-1", "00", "'\"<"]


@pytest.mark.parametrize(
    ("item_ids", "in_json"),
    [
        (ODD_IDS + [f"SKU-{n}" for n in range(29)], None),
        ([-1, 0, 2**53 - 1, *range(5, 42)], None),
        ([2**53, *range(39)], str),
    ],
)
def test_the_shops_own_ids_go_in_and_out(new_client, recommender_to_serve, item_ids, in_json):
    client = new_client(recommender=with_ids(recommender_to_serve, item_ids))
    expected = item_ids if in_json is None else list(map(str, item_ids))
    for asked in (item_ids, expected):
        answer = client.post("/recommend", json={"item_ids": asked[:3], "k": 37, "blocked_items": asked[3:5]})
        assert sorted(map(str, found(answer))) == sorted(map(str, item_ids[5:])) and set(found(answer)) <= set(expected)
        whys = [item["why"]["item_id"] for item in answer.json()["items"] if item["why"]]
        assert whys and set(whys) <= set(expected[:3])
        many = {"topk": 40, "instances": [{"user_id": "u", "item_ids": asked[:30]}]}
        [answer] = client.post("/predictions/m", json=many).json()["predictions"]
        assert sorted(map(str, answer["predictions"])) == sorted(map(str, item_ids[30:]))
        assert set(answer["predictions"]) <= set(expected)
    for row, item_id in enumerate(expected[:12]):
        path = f"/items/{quote(str(item_id), safe='')}"
        assert client.get(path).json()["item_id"] == item_id
        assert client.get(f"{path}/neighbours").json()["item"]["title"] == f"item in row {row}"
    if str(item_ids[0]) == "A/1":  # as a proxy sends it that decodes paths
        assert client.get("/items/A/1").json()["item_id"] == "A/1"
        assert client.get("/items/A/1/neighbours").json()["item"]["item_id"] == "A/1"
    for nothing in ("5.0", "A%2f2", "%ff", "", "A%2F1%2Fx", "1.0"):
        assert client.get(f"/items/{nothing}").status_code == 404, nothing


def test_what_the_model_cannot_do_is_said(new_client, recommender_to_serve):
    both = recommender_to_serve
    cold = new_client(recommender=Recommender(None, both.ids, both.items, both.searcher))
    answer = cold.post("/recommend", json={"item_ids": []})
    assert answer.status_code == 404 and "no next-item model" in answer.json()["detail"]
    assert len(found(cold.post("/search", json={"query": "row"}))) == 10
    assert cold.get("/catalogue").json()["can_recommend"] is False
    both.searcher = None
    answer = new_client().post("/search", json={"query": "a"})
    assert answer.status_code == 404 and "no search model" in answer.json()["detail"]


# --- the process ---


@pytest.mark.slow
def test_sigterm_under_load_answers_what_was_accepted(served_folder, ids):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "semid_lib.cli", "serve", "--model", str(served_folder), "--port", str(port)]
    variables = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=variables, stderr=subprocess.PIPE, text=True)
    url, outcomes = f"http://127.0.0.1:{port}", []
    while process.poll() is None:
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(f"{url}/readyz").status_code == 200:
                break
        time.sleep(0.05)

    async def client(n):
        async with httpx.AsyncClient(base_url=url, timeout=30) as one:
            while True:
                try:
                    answer = await one.post("/recommend", json={"item_ids": ids[:n], "k": 30})
                except (httpx.ConnectError, httpx.RemoteProtocolError, httpx.ReadError) as error:
                    outcomes.append(type(error))
                    return
                outcomes.append(answer.status_code)

    async def load():
        clients = [asyncio.create_task(client(n)) for n in range(1, 17)]
        while outcomes.count(200) < 50:
            await asyncio.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        await asyncio.gather(*clients)

    try:
        asyncio.run(asyncio.wait_for(load(), 300))
        log = [json.loads(line) for line in process.communicate(timeout=120)[1].splitlines()]
    finally:
        process.kill()
    served = [line["status"] for line in log if line["event"] == "request" and line["path"] == "/recommend"]
    assert set(served) == {200}  # whatever it accepted, and each answer arrived:
    assert outcomes.count(200) == len(served) and log[-1]["event"].startswith("Finished")


def test_the_command_serves_loopback_and_warns_of_more(served_folder, monkeypatch, capsys):
    served, warned = [], []

    def run(app, host, limit_concurrency, **_):
        checked = web.TrustedHostMiddleware in [middleware.cls for middleware in app.user_middleware]
        served.append((host, checked, limit_concurrency))

    monkeypatch.setattr(web.uvicorn, "run", run)
    monkeypatch.setattr(logging, "basicConfig", lambda **_: None)
    monkeypatch.setattr(web.log, "warning", warned.append)
    monkeypatch.delenv("SEMID_TOKEN", raising=False)
    command = ["serve", "--model", str(served_folder)]
    assert main(command) == 0 and not warned
    assert main([*command, "--host", "0.0.0.0"]) == 0 and "no authentication" in warned[0]
    monkeypatch.setenv("SEMID_TOKEN", "sesame")
    assert main([*command, "--host", "0.0.0.0"]) == 0 and len(warned) == 1
    monkeypatch.setenv("SEMID_TOKEN", " ")
    assert main(command) == 1 and "SEMID_TOKEN" in capsys.readouterr().err
    assert served == [("127.0.0.1", True, 1024), ("0.0.0.0", False, 1024), ("0.0.0.0", False, 1024)]


# --- fuzzing ---


@pytest.mark.slow
def test_no_request_that_the_description_suggests_breaks_the_service(client):
    import schemathesis
    from hypothesis import HealthCheck, given, seed, settings
    from schemathesis import GenerationMode
    from schemathesis.checks import not_a_server_error
    from schemathesis.specs.openapi.checks import response_schema_conformance

    schema = schemathesis.openapi.from_url(f"{client.base_url}/openapi.json")
    operations = [result.ok() for result in schema.get_all_operations()]
    assert len(operations) == 12
    statuses = Counter()

    def fuzz(operation, mode):
        @seed(0)
        @settings(max_examples=FUZZ_EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
        @given(operation.as_strategy(generation_mode=mode))
        def asked(case):
            response = case.call()
            statuses[response.status_code] += 1
            case.validate_response(response, checks=[not_a_server_error, response_schema_conformance])

        asked()

    for operation in operations:
        fuzz(operation, GenerationMode.POSITIVE)
        with contextlib.suppress(Unsatisfiable):  # an operation without input has no wrong input
            fuzz(operation, GenerationMode.NEGATIVE)
    assert statuses[200] > 10 and statuses[422] > 20, statuses
    assert client.get("/readyz").status_code == 200
