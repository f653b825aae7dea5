"""A language model behind an endpoint: a real server that misbehaves, and a cache that loses nothing."""

import logging
import signal
import struct
import sys
import threading
import traceback
from socket import SO_LINGER, SOL_SOCKET

import pandas as pd
import pytest
from chat_server import KEY, completion, good, running

from semid_lib.queries import endpoint, llm_queries
from semid_lib.queries.endpoint import Endpoint, EndpointError
from semid_lib.queries.llm_queries import answer_schema, ask


@pytest.fixture
def server(monkeypatch):
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SOME_KEY", KEY)
    monkeypatch.setattr(endpoint, "_ATTEMPTS", 3)
    with running() as server:
        yield server


def source(server, **options) -> Endpoint:
    return Endpoint(server.url, "test/model-1", **{"api_key_variable": "SOME_KEY", "concurrency": 2} | options)


def shop(*titles):
    return pd.DataFrame({"title": titles})


def written(folder) -> str:
    return "".join(path.read_text() for path in folder.iterdir())


LAMPS = shop(*(f"lamp{i}" for i in range(40)))


# --- answers ---


def test_items_with_the_same_text_share_a_request_and_items_without_text_have_none(server):
    with pytest.warns(UserWarning, match="1 of 4 items got no queries"):
        answers = ask(shop("Lamp", "Tent", "", "Lamp"), 2, source(server))
    asked = ["something lamp", "lamp for two", "something tent", "tent for two"]
    assert answers.queries.to_dict("list") == {
        "item": [0, 0, 1, 1, 3, 3],
        "query": [*asked, *asked[:2]],
        "kind": ["need"] * 6,
        "source": ["test/model-1"] * 6,
    }
    assert answers.queries["item"].dtype == "int64"
    assert answers.failed.values.tolist() == [[2, "the item has no text"]]
    counts = {"requests": 2, "prompt_tokens": 200, "completion_tokens": 40}
    assert answers.counts == {"items": 4, "from_cache": 0, "failed": 1} | counts


def test_what_is_sent(server):
    ask(shop("Lamp"), 3, source(server, extra={"seed": 7, "temperature": None}))
    ask(shop("Lamp"), 3, source(server, api_key_variable=None, extra={"response_format": None}))
    body, bare = server.bodies
    assert (body["model"], body["seed"]) == ("test/model-1", 7)
    assert "temperature" not in body and bare["temperature"] == 0.8
    assert body["response_format"]["json_schema"]["schema"] == answer_schema()
    assert "response_format" not in bare
    assert "3 different search queries" in body["messages"][1]["content"]
    assert server.keys == [f"Bearer {KEY}", None]


def test_requests_are_concurrent_and_bounded(server):
    together = threading.Barrier(3)

    def wait(handler, about):
        together.wait(60)  # goes on as soon as three requests are here
        return good(about)

    server.script["*"] = [wait] * 12
    ask(LAMPS.head(12), 2, source(server, concurrency=3))
    assert server.most_at_once == 3


# --- failures ---


def reset(handler, about):
    """Disconnect without a reply, so that the client sees a reset."""
    handler.connection.setsockopt(SOL_SOCKET, SO_LINGER, struct.pack("ii", 1, 0))
    handler.connection.close()
    handler.close_connection = True


@pytest.mark.parametrize(
    "trouble",
    [
        (429, {"error": {"message": "slow down"}}),
        (503, "<html>busy</html>"),
        (200, "<html>a proxy's page</html>"),
        (200, {"choices": []}),
        (200, ["a list"]),
        (200, {"choices": [{"message": None}]}),
        (200, completion('{"queries": [1, null, {"kind": "need"}, {"query": "  "}]}')),
        (200, completion(None)),
        reset,
    ],
)
def test_a_second_attempt_follows(server, trouble):
    server.script["lamp"] = [trouble]
    answers = ask(shop("Lamp"), 2, source(server))
    assert answers.queries["query"].tolist() == ["something lamp", "lamp for two"]
    assert server.asked["lamp"] == 2


def test_a_server_that_does_not_reply_in_time_is_asked_again(server):
    replied = threading.Event()

    def wait(handler, about):
        replied.wait(60)  # until the second request has been answered
        return good(about)

    def reply(handler, about):
        replied.set()
        return good(about)

    server.script["lamp"] = [wait, reply]
    assert len(ask(shop("Lamp"), 2, source(server, timeout=0.5)).queries) == 2


def test_broken_answers_end_in_a_reason(server):
    server.script["lamp"] = [(200, completion("Here you are!"))] * 2
    server.script["lamp"] += [(200, completion("Here you are!", ended="length"))]
    with pytest.warns(UserWarning, match="1 of 2 items got no queries"):
        answers = ask(shop("Lamp", "Tent"), 2, source(server, max_tokens=5))
    assert server.asked == {"lamp": 3, "tent": 1}
    [[item, reason]] = answers.failed.values.tolist()
    assert item == 0 and "Here you are!" in reason and "cut off at max_tokens 5" in reason
    assert answers.queries["item"].unique().tolist() == [1]
    assert answers.counts["completion_tokens"] == 80  # broken answers are paid for, too


@pytest.mark.parametrize(
    "refusal",
    [
        (200, completion(None, refusal="I will not.")),
        (200, completion("", ended="content_filter")),
        (400, {"error": {"message": "the prompt was filtered", "code": "content_filter"}}),
    ],
)
def test_a_refusal_is_not_retried(server, refusal, tmp_path):
    server.script["lamp"] = [refusal]
    for _ in range(2):
        with pytest.warns(UserWarning, match="1 of 2 items"):
            answers = ask(shop("Lamp", "Tent"), 2, source(server), cache=tmp_path)
        assert answers.counts["failed"] == len(answers.failed) == 1
        assert server.asked == {"lamp": 1, "tent": 1}


@pytest.mark.parametrize(
    ("status", "body", "message"),
    [
        (401, {"error": {"message": f"Incorrect API key: {KEY}"}}, r"401 from .*Incorrect API key: \[API key\]"),
        (404, {"object": "error", "message": "no model named test/model-1"}, "404 from .*no model named"),
        (400, "response_format is unknown", "400 from .*response_format is unknown"),
        (400, "", "400 from "),
        (429, {"error": {"message": "pay first", "code": "insufficient_quota"}}, "429 from .*pay first"),
    ],
)
def test_an_error_of_all_requests_ends_the_run(server, status, body, message, tmp_path, caplog):
    caplog.set_level(logging.DEBUG)
    server.script["*"] = [(status, body)] * 999
    with pytest.raises(EndpointError, match=message) as caught:
        ask(LAMPS, 2, source(server), cache=tmp_path)
    assert len(server.asked) < 40
    told = "".join(traceback.format_exception(caught.value)) + caplog.text
    assert KEY not in told + written(tmp_path)


def test_an_endpoint_that_never_answers_ends_the_run(server, tmp_path):
    server.script["*"] = [(500, "down")] * 999
    with pytest.raises(EndpointError, match=r"10 chats in a row got no answer.*500 from .*down"):
        ask(LAMPS, 2, source(server), cache=tmp_path)
    assert len(server.asked) <= 12  # ten, and those that were running
    server.script.clear()
    server.asked.clear()
    answers = ask(LAMPS, 2, source(server), cache=tmp_path)
    assert len(answers.queries) == 80  # chats without an answer were sent again
    assert set(server.asked.values()) == {1}


def test_a_missing_package_names_the_extra(server, monkeypatch):
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(ImportError, match="extra 'queries'"):
        ask(shop("Lamp"), 2, source(server))
    with pytest.raises(ValueError, match="n_per_item is 0"):
        ask(shop("Lamp"), 0, source(server))


def test_no_server(monkeypatch):
    monkeypatch.setattr(endpoint, "_ATTEMPTS", 1)
    with pytest.warns(UserWarning):
        answers = ask(shop("Lamp"), 2, Endpoint("http://127.0.0.1:9/v1", "m", api_key_variable=None))
    assert "APIConnectionError" in answers.failed["reason"][0]


@pytest.mark.parametrize("key", ["", "  ", "two words", "line\nbreak", "schlüssel"])
def test_an_invalid_key_is_refused_and_not_quoted(server, monkeypatch, key):
    monkeypatch.setenv("SOME_KEY", key)
    with pytest.raises(ValueError, match="SOME_KEY") as caught:
        ask(shop("Lamp"), 2, source(server))
    assert not key.strip() or key not in str(caught.value)
    assert not server.asked


def test_the_key_is_nowhere(server, tmp_path, caplog):
    caplog.set_level(logging.DEBUG)
    server.script["lamp"] = [(200, completion(f"you sent {KEY}"))] * 9
    server.script["tent"] = [(500, f"with {KEY}")] * 9
    with pytest.warns(UserWarning) as warned:
        answers = ask(shop("Lamp", "Tent", "Kettle"), 2, source(server), cache=tmp_path)
    assert len(answers.failed) == 2 and "kettle" in written(tmp_path)
    told = written(tmp_path) + caplog.text + str(answers.failed.values) + str(warned[0].message)
    assert KEY not in told + repr(source(server))


@pytest.mark.parametrize("url", ["ftp://127.0.0.1", "http://name:word@127.0.0.1/v1", "http://127.0.0.1/v1?key=word"])
def test_an_address_that_is_no_endpoint_is_refused_and_not_quoted(url):
    with pytest.raises(ValueError, match="base_url") as caught:
        Endpoint(url, "m")
    assert "word" not in str(caught.value).replace("password", "")


# --- the cache ---


def test_answers_are_kept_by_settings_and_prompt(server, tmp_path, monkeypatch):
    first = ask(shop("Lamp", "Tent"), 2, source(server), cache=tmp_path)
    more = ask(shop("Kettle", "Lamp", "Tent"), 2, source(server), cache=tmp_path)
    assert server.asked == {"lamp": 1, "tent": 1, "kettle": 1}
    assert (more.counts["from_cache"], more.counts["requests"]) == (2, 1)
    assert more.queries["query"].tolist()[2:] == first.queries["query"].tolist()
    ask(shop("Lamp"), 3, source(server), cache=tmp_path)
    ask(shop("Lamp"), 2, source(server, temperature=0.1), cache=tmp_path)
    ask(shop("Lamp"), 2, source(server, timeout=9.0, concurrency=1), cache=tmp_path)  # no settings of the answer
    assert server.asked["lamp"] == 3
    assert len(list(tmp_path.glob("test-model-1-prompt1-*"))) == len(list(tmp_path.iterdir())) == 3
    assert "127.0.0.1" not in written(tmp_path)
    monkeypatch.setitem(llm_queries.PROMPT, "system", "Write queries.")  # without a new version
    ask(shop("Lamp"), 2, source(server), cache=tmp_path)
    assert server.asked["lamp"] == 4


def test_half_a_line_is_tolerated(server, tmp_path):
    ask(shop("Lamp", "Tent"), 2, source(server), cache=tmp_path)
    [path] = tmp_path.iterdir()
    for n, rest in enumerate(
        [b'{"key": "abc", "ans', b'{"key": "\xc3', b'{"key": 7}\n', b"[]\n", b"\n", b"null", b'"answer"']
    ):
        with path.open("ab") as file:
            file.write(b"\n" + rest)
        ask(shop("Lamp", "Tent", f"Kettle{n}"), 2, source(server), cache=tmp_path)
    assert server.asked == {"lamp": 1, "tent": 1} | {f"kettle{i}": 1 for i in range(n + 1)}
    path.write_bytes(path.read_bytes()[:-30])
    assert ask(shop("Lamp", "Tent", f"Kettle{n}"), 2, source(server), cache=tmp_path).counts["from_cache"] == 2


def test_ctrl_c_loses_nothing(server, tmp_path):
    def interrupt(handler, about):
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
        return good(about)

    server.script["lamp11"] = [interrupt]
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a background run ignores the signal
    try:
        with pytest.raises(KeyboardInterrupt):
            ask(LAMPS, 2, source(server), cache=tmp_path)
    finally:
        signal.signal(signal.SIGINT, before)
    n_before = sum(server.asked.values())
    assert n_before >= 11
    answers = ask(LAMPS, 2, source(server), cache=tmp_path)
    assert set(server.asked.values()) == {1}  # the running requests were stored, too
    assert answers.counts["from_cache"] == n_before
    assert len(answers.queries) == 80
