"""Limits hold, strangers are refused, and neither the log nor the metrics tell what users ask for."""

import asyncio
import json
import logging
import socket
import threading
import time

import pytest

from semid_lib.serving.http import schemas, web
from semid_lib.serving.http.middleware import Guard, JsonLines, Limits, Meters


def logged(caplog, n: int) -> list[dict]:
    """The lines of n requests; a line is written after the answer is sent."""
    while len(records := [record for record in caplog.records if record.message == "request"]) < n:
        time.sleep(0.01)
    return [json.loads(JsonLines().format(record)) for record in records]


# --- limits ---

WRONG = [
    ("/recommend", {}, "Field required"),
    ("/recommend", {"item_ids": [], "k": schemas.MAX_K + 1}, "less than or equal to 256"),
    ("/recommend", {"item_ids": [], "k": True}, "valid integer"),
    ("/recommend", {"item_ids": ["1"]}, "item_ids, position 0: item id '1' is not in the catalogue"),
    *(("/recommend", {"item_ids": [wrong]}, "item id should be") for wrong in ("", 1.0, True, 10**40)),
    ("/recommend", {"item_ids": [None] * 1000}, "item id should be"),
    ("/recommend", {"item_ids": [1003] * 1001}, "at most 1000"),
    ("/recommend", {"item_ids": [], "blocked_items": [5]}, "blocked_items, position 0: item id 5"),
    ("/recommend", {"item_ids": [], "allowed_categories": [""] * 50}, "at least 1 character"),
    ("/recommend", {"item_ids": [], "allowed_brands": ["B" * 9999]}, "no item has the brand 'BBB"),
    ("/recommend", {"item_ids": [], "topk": 5}, "Unknown field 'topk', expected some of k, "),
    ("/recommend", {"item_ids": [], "k" * 9999: 5}, "Unknown field 'kkk"),
    ("/recommend", {f"{n:x}": 1 for n in range(70_000)}, "Unknown field '0', "),  # an error for each takes a second
    *(("/search", {"query": blank}, "A query should be some text, not only spaces") for blank in (" ", "\x1c\x1f")),
    ("/search", {"query": "a" * 201}, "at most 200"),
    ("/predictions/m", {"instances": []}, "at least 1"),
    ("/predictions/m", {"instances": [{"user_id": "1", "item_ids": []}] * 65}, "at most 64"),
    ("/predictions/m", {"instances": [{"item_ids": []}] * 64}, "Field required"),
    *(
        ("/predictions/m", {"instances": [{"user_id": wrong, "item_ids": []}]}, "A user id should be an integer of")
        for wrong in (1.5, True, None, "a" * 201)
    ),
]


def test_wrong_requests_get_422_and_a_sentence(client):
    for path, body, said in WRONG:
        answer = client.post(path, json=body)
        assert answer.status_code == 422 and said in answer.text, answer.text
        assert len(answer.text) < 1000  # the input is not sent back
    for body in (b"", b"{", b"\xff", b'{"item_ids": [NaN]}', b"[" * 50_000, b'{"item_ids": [%s]}' % (b"9" * 9999)):
        answer = client.post("/recommend", content=body, headers={"content-type": "application/json"})
        assert answer.status_code in (400, 422) and answer.json()["detail"]


def test_a_body_that_is_too_large_is_refused(new_client):
    client = new_client(Limits(max_body=1000))
    for size, status in ((900, 200), (1001, 413), (100_000, 413)):
        body = json.dumps({"item_ids": [], "allowed_categories": []}).ljust(size)
        headers = {"content-type": "application/json"}
        assert client.post("/recommend", content=body, headers=headers).status_code == status
        chunks = iter([body[: size // 2].encode(), body[size // 2 :].encode()])
        assert client.post("/recommend", content=chunks, headers=headers).status_code == status


def test_a_body_is_json_whatever_it_is_called_except_by_a_browser(client, recommender_to_serve, ids):
    many = {"topk": 4, "instances": [{"user_id": "1", "item_ids": ids[:4]}, {"user_id": 2, "item_ids": []}]}
    expected = recommender_to_serve.recommend([ids[:4], []], 4).item_ids.tolist()
    answers = [{"user_id": "1", "predictions": expected[0]}, {"user_id": 2, "predictions": expected[1]}]
    form, text = "application/x-www-form-urlencoded", "text/plain;charset=UTF-8"
    for declared in ({}, {"content-type": form}, {"content-type": text}, {"content-type": "application/vnd.api+json"}):
        answer = client.post("/predictions/tiger", content=json.dumps(many), headers=declared)
        assert answer.json() == {"predictions": answers}, declared
    browser = {"origin": "http://evil.example"}
    for declared in ({"content-type": "multipart/form-data; boundary=x"}, browser, {"content-type": text} | browser):
        answer = client.post("/recommend", content='{"item_ids": []}', headers=declared)
        assert answer.status_code == 415 and "Content-Type: application/json" in answer.json()["detail"]
        assert answer.headers["connection"] == "close"
    for json_type in ("application/json", "Application/JSON; charset=utf-8"):
        headers = {"content-type": json_type} | browser
        assert client.post("/recommend", content='{"item_ids": []}', headers=headers).status_code == 200


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
        while open_now < 2:
            await asyncio.sleep(0)
        await ask(100)
        release.set()
        await asyncio.gather(*large)

    asyncio.run(crowd())
    assert small_done == [2] and most == 2 and statuses.count(200) == 10


def test_time_is_limited_for_request_and_answer(new_client, recommender_to_serve):
    client, rank, told = new_client(Limits(seconds=1)), recommender_to_serve.rank, threading.Event()
    recommender_to_serve.rank = lambda *args, **more: told.wait(60) and rank(*args, **more)
    late = client.post("/recommend", json={"item_ids": []})
    told.set()
    assert late.status_code == 504 and "1 seconds" in late.json()["detail"]
    with socket.create_connection((client.base_url.host, client.base_url.port)) as line:
        line.sendall(b"POST /recommend HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
        line.settimeout(60)
        answer = b"".join(iter(lambda: line.recv(1000), b""))  # to the end: the rest of the body is not waited for
    assert answer.startswith(b"HTTP/1.1 408") and b"connection: close" in answer.lower()


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
        assert client.get(path).status_code == 200
    for path in ("/page/../metrics", "/page/%2e%2e/metrics", "//metrics", "/page/..%2f..%2fmetrics"):
        assert "semid_requests" not in client.get(path).text
    assert "HTTPBearer" in client.get("/openapi.json").text


@pytest.mark.parametrize("token", ["", " a", "säsam", "a\tb"])
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


def test_head_is_get_without_a_body_and_no_answer_allows_other_hosts(client, ids):
    paths = ["/", "/healthz", "/readyz", "/ping", "/catalogue", "/metrics", "/docs", "/openapi.json", "/page/page.js"]
    paths += ["/items?title=row", f"/items/{ids[0]}", f"/items/{ids[0]}/neighbours", "/nowhere", "/items/5"]
    for path in paths:
        head, get = client.head(path), client.get(path)
        assert (head.status_code, head.content) == (get.status_code, b""), path
        if path != "/metrics":
            assert head.headers["content-length"] == get.headers["content-length"]
        for headers in (head.headers, get.headers):
            assert headers["content-security-policy"].startswith("default-src 'self'")
            assert (headers["x-content-type-options"], headers["referrer-policy"]) == ("nosniff", "no-referrer")
    assert client.head("/recommend").status_code == 405
    docs = client.get("/docs").text
    assert "http://" not in docs and "https://" not in docs and "//cdn" not in docs
    assert 'semid_requests_total{method="HEAD",path="/items/{item_id}",status="404"} 1.0' in client.get("/metrics").text


def test_log_and_metrics_tell_how_it_went_and_nothing_about_users(client, recommender_to_serve, ids, caplog):
    def fail(*_, **__):
        raise ZeroDivisionError(f"secret {ids[0]}")

    with caplog.at_level(logging.INFO, logger="semid_lib.serving.http.web"):
        client.post("/recommend", json={"item_ids": [ids[7], ids[9]], "k": 3})
        client.post("/search", json={"query": "row seventeen"})
        client.post("/predictions/tiger", json={"instances": [{"user_id": "ann-77", "item_ids": [ids[7]]}]})
        client.get("/items", params={"title": "seventeen"})
        client.get(f"/items/{ids[7]}")
        client.request("QWX-77", "/secret/path")
        client.post("/recommend", json={"item_ids": [987654]})
        recommender_to_serve.rank = fail
        assert "secret" not in client.post("/recommend", json={"item_ids": [ids[7]]}).text
        lines = logged(caplog, 8)
    assert [(line["method"], line["path"], line["status"]) for line in lines] == [
        ("POST", "/recommend", 200),
        ("POST", "/search", 200),
        ("POST", "/predictions/{model}", 200),
        ("GET", "/items", 200),
        ("GET", "/items/{item_id}", 200),
        ("other", "other", 404),
        ("POST", "/recommend", 422),
        ("POST", "/recommend", 500),
    ]
    assert lines[0]["history"] == 2 and lines[0]["k"] == 3 and lines[0]["ms"] > 0
    assert lines[-1]["error"] == "ZeroDivisionError" and any("test_limits.py" in place for place in lines[-1]["at"])
    metrics = client.get("/metrics").text
    assert 'semid_requests_total{method="GET",path="/items/{item_id}",status="200"} 1.0' in metrics
    assert "semid_waiting 0.0" in metrics and "process_resident_memory_bytes" in metrics
    requests = [line for line in metrics.splitlines() if line.startswith("semid_requests_total")]  # not when it began
    # the digits of an item id may occur in a time by chance
    kept = [{key: value for key, value in line.items() if key not in ("time", "ms", "at")} for line in lines]
    for private in (str(ids[7]), str(ids[9]), "seventeen", "ann-77", "tiger", "secret", "987654", "QWX"):
        assert private not in json.dumps([kept, requests])
