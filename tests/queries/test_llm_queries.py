"""A language model as a source: a real server that misbehaves on purpose, a cache that loses nothing, a tiny model."""

import json
import logging
import signal
import struct
import threading
import time
import traceback
from collections import Counter
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socket import SO_LINGER, SOL_SOCKET

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from semid_lib.queries.endpoint import Endpoint, EndpointError
from semid_lib.queries.llm_queries import answer_schema, ask, estimate_cost, parse_answer
from semid_lib.queries.synthesis import llm_queries, synthesize

KEY = "sk-of-nobody-0123456789"


def answer(*queries, kind="need"):
    return json.dumps({"queries": [{"kind": kind, "query": query} for query in queries]})


def completion(content, **message):
    choice = {"message": {"role": "assistant", "content": content, **message}, "finish_reason": "stop"}
    return {"choices": [choice], "usage": {"prompt_tokens": 100, "completion_tokens": 20}}


def good(about):
    return 200, completion(answer(f"something {about}", f"{about} for two")), {}


class Server(ThreadingHTTPServer):
    """Plays a script per product: a list of (status, body, headers) or of functions; then it answers well.

    `asked` counts the requests per product, which is the first word of its title in lower case.
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.script, self.asked, self.bodies, self.keys = {}, Counter(), [], []
        self.at_once = self.most_at_once = 0
        self.lock = threading.Lock()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def handle_error(self, request, client_address):
        pass  # clients that went away are part of the test


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        about = body["messages"][1]["content"].split("<product>\n")[1].split()[0].strip(".,").lower()
        with self.server.lock:
            self.server.asked[about] += 1
            self.server.bodies.append(body)
            self.server.keys.append(self.headers.get("Authorization"))
            self.server.at_once += 1
            self.server.most_at_once = max(self.server.most_at_once, self.server.at_once)
            script = self.server.script.get(about, self.server.script.get("*", []))
            step = script.pop(0) if script else good(about)
        try:
            self.reply(step(self, about) if callable(step) else step)
        finally:
            with self.server.lock:
                self.server.at_once -= 1

    def reply(self, step):
        if step is None:
            return
        status, content, headers = step
        data = content.encode() if isinstance(content, str) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": len(data), **headers}.items():
            self.send_header(name, str(value))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass


def reset(handler, about):
    """Hang up without a word, so that the client sees a reset."""
    handler.connection.setsockopt(SOL_SOCKET, SO_LINGER, struct.pack("ii", 1, 0))
    handler.connection.close()
    handler.close_connection = True


def slow(handler, about):
    time.sleep(0.6)
    return good(about)


@pytest.fixture
def server(monkeypatch):
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SOME_KEY", KEY)
    server = Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def source(server, **options) -> Endpoint:
    defaults = {"api_key_variable": "SOME_KEY", "backoff": 0.01, "max_backoff": 0.02, "timeout": 5.0, "concurrency": 2}
    return Endpoint(server.url, "test/model-1", **defaults | options)


def shop(*titles):
    return pd.DataFrame({"title": titles})


# --- answers ---


def test_two_items(server):
    answers = ask(shop("Lamp", "Tent"), 2, source(server))
    assert answers.queries.to_dict("list") == {
        "item": [0, 0, 1, 1],
        "query": ["something lamp", "lamp for two", "something tent", "tent for two"],
        "kind": ["need"] * 4,
        "source": ["test/model-1"] * 4,
    }
    assert answers.queries["item"].dtype == "int64"
    assert answers.failed.empty
    assert answers.counts == {
        **{"items": 2, "no_text": 0, "from_cache": 0, "failed": 0, "refused": 0, "short": 0},
        **{"requests": 2, "prompt_tokens": 200, "completion_tokens": 40},
    }


def test_one_function_for_all_sources(server):
    found = synthesize(shop("Lamp"), 2, source(server))
    assert found["query"].tolist() == ["something lamp", "lamp for two"]
    assert list(found) == list(synthesize(shop("Lamp"), 2))


def test_what_is_sent(server):
    ask(shop("Lamp"), 3, source(server, extra={"seed": 7}, temperature=None))
    [body] = server.bodies
    assert body["model"] == "test/model-1"
    assert body["seed"] == 7
    assert "temperature" not in body
    assert body["response_format"]["json_schema"]["schema"] == answer_schema()
    assert "3 different search queries" in body["messages"][1]["content"]
    assert server.keys == [f"Bearer {KEY}"]


def test_without_key_or_schema(server):
    ask(shop("Lamp"), 3, source(server, api_key_variable=None, structured="none"))
    assert server.keys == [None]
    assert "response_format" not in server.bodies[0]


def test_requests_are_concurrent_and_bounded(server):
    server.script["*"] = [lambda handler, about: (time.sleep(0.05), good(about))[1]] * 12
    ask(shop(*(f"lamp{i}" for i in range(12))), 2, source(server, concurrency=3))
    assert server.most_at_once == 3


def test_an_item_without_text_is_not_asked_about(server):
    answers = ask(shop("", "Lamp"), 2, source(server))
    assert answers.failed.values.tolist() == [[0, "the item has no text", False]]
    assert answers.counts["no_text"] == 1
    assert sum(server.asked.values()) == 1


def test_items_with_the_same_text_are_asked_once(server):
    answers = ask(shop("Lamp", "Lamp"), 2, source(server))
    assert server.asked["lamp"] == 1
    assert answers.queries["item"].tolist() == [0, 0, 1, 1]


# --- what goes wrong and comes right ---


@pytest.mark.parametrize(
    "trouble",
    [
        (429, {"error": {"message": "slow down"}}, {}),
        (500, "oops", {}),
        (503, "<html>busy</html>", {}),
        (200, "<html>a proxy's page</html>", {}),
        (200, {"no": "choices"}, {}),
        (200, {"choices": []}, {}),
        (200, ["a list"], {}),
        (200, {"choices": [{"message": None}]}, {}),
        (200, completion('{"queries": [{"kind": "need", "query": "a la'), {}),
        (200, completion("Here you are!"), {}),
        (200, completion('{"queries": {"need": "a lamp"}}'), {}),
        (200, completion('{"answers": ["a lamp"]}'), {}),
        (200, completion('{"queries": [1, null, {"kind": "need"}, {"query": "  "}]}'), {}),
        (200, completion(None), {}),
        (200, completion(""), {}),
        reset,
        slow,
    ],
    ids=lambda trouble: trouble.__name__ if callable(trouble) else str(trouble[1])[:40],
)
def test_a_second_attempt_follows(server, trouble):
    server.script["lamp"] = [trouble]
    answers = ask(shop("Lamp"), 2, source(server, timeout=0.3))
    assert answers.queries["query"].tolist() == ["something lamp", "lamp for two"]
    assert server.asked["lamp"] == 2
    assert answers.counts["requests"] == 2


def test_retry_after_is_honoured(server):
    server.script["lamp"] = [(429, "wait", {"Retry-After": "0.4"})]
    started = time.monotonic()
    ask(shop("Lamp"), 2, source(server))
    assert time.monotonic() - started >= 0.4


def test_who_asks_to_wait_for_an_hour_has_run_out(server):
    server.script["lamp"] = [(429, "tomorrow", {"Retry-After": "3600"})]
    with pytest.raises(EndpointError, match=r"tomorrow.*asks to wait for 3600 s"):
        ask(shop("Lamp"), 2, source(server))


def test_waits_grow_and_differ(server, monkeypatch):
    from semid_lib.queries.endpoint import _Client

    client = _Client(source(server, backoff=1.0, max_backoff=10.0), {}, str, print)
    state = type("State", (), {"outcome": type("Outcome", (), {"exception": staticmethod(ValueError)})})()
    waits = []
    for attempt in (1, 1, 2, 3, 9):
        state.attempt_number = attempt
        waits.append(client.retrying.wait(state))
    assert waits[0] != waits[1]
    assert all(low <= wait <= low + 1 for wait, low in zip(waits, (1, 1, 2, 4, 10), strict=True))


# --- what goes wrong for good ---


def test_broken_answers_end_in_a_reason(server):
    server.script["lamp"] = [(200, completion("Here you are!"), {})] * 9
    with pytest.warns(UserWarning, match="1 of 2 items got no queries"):
        answers = ask(shop("Lamp", "Tent"), 2, source(server, max_attempts=3))
    assert server.asked == {"lamp": 3, "tent": 1}
    [[item, reason, refused]] = answers.failed.values.tolist()
    assert (item, refused) == (0, False)
    assert "Here you are!" in reason
    assert answers.queries["item"].unique().tolist() == [1]
    assert answers.counts["completion_tokens"] == 80  # those of broken answers are paid too


def test_an_answer_that_was_cut_off_says_so(server):
    cut = completion('{"queries": [')
    cut["choices"][0]["finish_reason"] = "length"
    server.script["lamp"] = [(200, cut, {})] * 9
    with pytest.warns(UserWarning):
        answers = ask(shop("Lamp"), 2, source(server, max_tokens=5, max_attempts=2))
    assert "cut off at max_tokens 5" in answers.failed["reason"][0]


@pytest.mark.parametrize(
    "refusal",
    [
        (200, completion(None, refusal="I will not."), {}),
        (200, completion("I'm sorry, but I can't help with that."), {}),
        (200, {"choices": [{"message": {"content": ""}, "finish_reason": "content_filter"}]}, {}),
        (400, {"error": {"message": "the prompt was filtered", "code": "content_filter"}}, {}),
    ],
)
def test_a_refusal_is_counted_and_not_asked_again(server, refusal, tmp_path):
    server.script["lamp"] = [refusal]
    with pytest.warns(UserWarning, match="1 of them refused"):
        answers = ask(shop("Lamp", "Tent"), 2, source(server), cache=tmp_path)
    assert answers.failed["refused"].tolist() == [True]
    assert answers.counts["refused"] == 1
    with pytest.warns(UserWarning):
        ask(shop("Lamp", "Tent"), 2, source(server), cache=tmp_path)
    assert server.asked == {"lamp": 1, "tent": 1}
    again = ask(shop("Lamp", "Tent"), 2, source(server), cache=tmp_path, retry_failed=True)
    assert again.failed.empty
    assert server.asked == {"lamp": 2, "tent": 1}


@pytest.mark.parametrize(
    ("status", "body", "message"),
    [
        (
            401,
            {"error": {"message": f"Incorrect API key provided: {KEY}"}},
            r"401 from .*Incorrect API key.*\[API key\]",
        ),
        (403, {"detail": "not your model"}, "403 from .*not your model"),
        (404, {"object": "error", "message": "no model named test/model-1"}, "404 from .*no model named"),
        (400, "response_format is unknown", "400 from .*response_format is unknown"),
        (307, "", "307 from .*no message"),
        (429, {"error": {"message": "pay first", "code": "insufficient_quota"}}, "429 from .*pay first"),
    ],
)
def test_what_no_attempt_can_mend_ends_the_run(server, status, body, message, tmp_path, caplog):
    caplog.set_level(logging.DEBUG)
    server.script["*"] = [(status, body, {})] * 99
    with pytest.raises(EndpointError, match=message) as caught:
        ask(shop(*(f"lamp{i}" for i in range(30))), 2, source(server), cache=tmp_path)
    assert sum(server.asked.values()) <= 2  # those that were under way
    told = "".join(traceback.format_exception(caught.value)) + caplog.text
    assert KEY not in told + "".join(path.read_text() for path in tmp_path.iterdir())


def test_a_dead_endpoint_is_given_up(server, tmp_path):
    server.script["*"] = [(500, "down", {})] * 999
    with pytest.raises(EndpointError, match=r"10 chats in a row got no answer.*500 from .*down"):
        ask(shop(*(f"lamp{i}" for i in range(40))), 2, source(server, max_attempts=2), cache=tmp_path)
    assert sum(server.asked.values()) <= 24
    server.script.clear()
    server.asked.clear()
    answers = ask(shop(*(f"lamp{i}" for i in range(40))), 2, source(server), cache=tmp_path)
    assert len(answers.queries) == 80  # what got no answer was asked again
    assert set(server.asked.values()) == {1}


def test_nobody_listens():
    closed = Endpoint("http://127.0.0.1:9/v1", "m", api_key_variable=None, max_attempts=1, backoff=0.01)
    with pytest.warns(UserWarning):
        answers = ask(shop("Lamp"), 2, closed)
    assert "ConnectError" in answers.failed["reason"][0]


@pytest.mark.parametrize("key", ["", "  ", "two words", "line\nbreak", "schlüssel"])
def test_a_key_that_is_none(server, monkeypatch, key):
    monkeypatch.setenv("SOME_KEY", key)
    with pytest.raises(ValueError, match="SOME_KEY") as caught:
        ask(shop("Lamp"), 2, source(server))
    assert not key.strip() or key not in str(caught.value)
    assert not server.asked


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"base_url": "ftp://127.0.0.1"}, "base_url"),
        ({"base_url": "http://name:word@127.0.0.1/v1"}, "base_url"),
        ({"base_url": "http://127.0.0.1/v1?key=word"}, "base_url"),
        ({"structured": "xml"}, "structured is 'xml'"),
        ({"concurrency": 0}, "concurrency is 0"),
        ({"max_attempts": 0}, "max_attempts is 0"),
    ],
)
def test_an_endpoint_refuses(options, message):
    with pytest.raises(ValueError, match=message) as caught:
        Endpoint(**{"base_url": "http://127.0.0.1:8000/v1", "model": "m"} | options)
    assert "word" not in str(caught.value).replace("password", "")


# --- the cache ---


def test_nothing_is_asked_twice(server, tmp_path):
    items = shop("Lamp", "Tent")
    first = ask(items, 2, source(server), cache=tmp_path)
    more = ask(shop("Kettle", "Lamp", "Tent"), 2, source(server), cache=tmp_path)
    assert server.asked == {"lamp": 1, "tent": 1, "kettle": 1}
    assert more.counts["from_cache"] == 2
    assert more.counts["requests"] == 1
    assert more.queries["query"].tolist()[2:] == first.queries["query"].tolist()


def test_settings_and_numbers_have_files_of_their_own(server, tmp_path):
    ask(shop("Lamp"), 2, source(server), cache=tmp_path)
    ask(shop("Lamp"), 3, source(server), cache=tmp_path)
    ask(shop("Lamp"), 2, source(server, temperature=0.1), cache=tmp_path)
    ask(shop("Lamp"), 2, source(server, timeout=9.0, concurrency=1), cache=tmp_path)  # no setting of the answer
    assert server.asked["lamp"] == 3
    assert len(list(tmp_path.iterdir())) == 3
    assert all(path.name.startswith("test-model-1-prompt1-") for path in tmp_path.iterdir())
    assert "127.0.0.1" not in "".join(path.read_text() for path in tmp_path.iterdir())


def test_another_prompt_does_not_meet_old_answers(server, tmp_path, monkeypatch):
    ask(shop("Lamp"), 2, source(server), cache=tmp_path)
    monkeypatch.setattr(llm_queries, "SYSTEM_PROMPT", "Write queries.")  # even if its version was forgotten
    ask(shop("Lamp"), 2, source(server), cache=tmp_path)
    assert server.asked["lamp"] == 2


@pytest.mark.parametrize("rest", [b'{"key": "abc", "ans', b'{"key": "\xc3', b'{"key": 7}\n', b"[]\n", b"\n", b"null"])
def test_half_a_last_line_is_tolerated(server, tmp_path, rest):
    ask(shop("Lamp", "Tent"), 2, source(server), cache=tmp_path)
    [path] = tmp_path.iterdir()
    with path.open("ab") as file:
        file.write(rest)
    ask(shop("Lamp", "Tent", "Kettle"), 2, source(server), cache=tmp_path)
    ask(shop("Lamp", "Tent", "Kettle"), 2, source(server), cache=tmp_path)
    assert server.asked == {"lamp": 1, "tent": 1, "kettle": 1}


def test_an_answer_cut_in_two_is_asked_again(server, tmp_path):
    ask(shop("Lamp", "Tent"), 2, source(server, concurrency=1), cache=tmp_path)
    [path] = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:-30])
    assert ask(shop("Lamp", "Tent"), 2, source(server), cache=tmp_path).counts["from_cache"] == 1
    assert sorted(server.asked.values()) == [1, 2]


@pytest.fixture
def ctrl_c():
    """Python's own answer to Ctrl-C; a run in the background starts with the signal ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_ctrl_c_loses_nothing(server, tmp_path, ctrl_c):
    titles = [f"lamp{i}" for i in range(40)]

    def interrupt(handler, about):
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
        time.sleep(0.1)
        return good(about)

    server.script["lamp11"] = [interrupt]
    with pytest.raises(KeyboardInterrupt):
        ask(shop(*titles), 2, source(server), cache=tmp_path)
    n_before = sum(server.asked.values())
    assert 11 <= n_before < 40
    time.sleep(0.1)
    assert sum(server.asked.values()) == n_before  # it has stopped
    answers = ask(shop(*titles), 2, source(server), cache=tmp_path)
    assert set(server.asked.values()) == {1}  # the one under way, too, was stored
    assert answers.counts["from_cache"] == n_before
    assert len(answers.queries) == 80


def test_no_request_follows_a_wait_that_was_interrupted(server, tmp_path, ctrl_c):
    def interrupt(handler, about):
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
        return 429, "wait", {"Retry-After": "30"}

    server.script["lamp"] = [interrupt]
    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        ask(shop("Lamp"), 2, source(server), cache=tmp_path)
    assert time.monotonic() - started < 5
    assert server.asked["lamp"] == 1
    assert ask(shop("Lamp"), 2, source(server), cache=tmp_path).failed.empty  # not held against it


def test_the_key_is_nowhere(server, tmp_path, caplog):
    caplog.set_level(logging.DEBUG)
    server.script["lamp"] = [(200, completion(f"you sent {KEY}"), {})] * 9
    server.script["tent"] = [(500, f"with {KEY}", {})] * 9
    with pytest.warns(UserWarning) as warned:
        answers = ask(shop("Lamp", "Tent", "Kettle"), 2, source(server, max_attempts=2), cache=tmp_path)
    assert len(answers.failed) == 2
    written = "".join(path.read_text() for path in tmp_path.iterdir())
    assert "Kettle".lower() in written
    told = written + caplog.text + answers.failed.to_string() + str(answers.failed.values) + str(warned[0].message)
    assert KEY not in told + repr(source(server))


# --- parsing, cost ---


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (answer("A Lamp ", '"quoted"'), [("a lamp", "need"), ("quoted", "need")]),
        ("```json\n" + answer("a lamp") + "\n```", [("a lamp", "need")]),
        ("<think>{[ what now</think>" + answer("a lamp"), [("a lamp", "need")]),
        ("Of course [as asked]: " + answer("a lamp") + " Anything else?", [("a lamp", "need")]),
        (answer("a", "b", "c", "d"), [("a", "need"), ("b", "need"), ("c", "need")]),
        (answer("a", "A", "a "), [("a", "need")]),
        (answer("a", kind="poem"), [("a", "other")]),
        ('["a lamp", "a light"]', [("a lamp", "other"), ("a light", "other")]),
        (answer("x" * 300, "a"), [("a", "need")]),
        (answer("two\nlines"), [("two lines", "need")]),
        (r'{"queries": ["half \ud83d a pair"]}', [("half a pair", "other")]),
    ],
)
def test_parse_answer(text, expected):
    assert parse_answer(text, 3) == expected


@given(st.text() | st.recursive(st.none() | st.text() | st.integers(), st.lists).map(json.dumps))
def test_parse_answer_never_fails_otherwise(text):
    try:
        found = parse_answer(text, 2)
    except ValueError:
        return
    assert 1 <= len(found) <= 2


def test_fewer_queries_than_asked_are_taken_and_counted(server):
    server.script["lamp"] = [(200, completion(answer("a lamp")), {})]
    answers = ask(shop("Lamp"), 4, source(server))
    assert answers.queries["query"].tolist() == ["a lamp"]
    assert answers.counts["short"] == 1
    assert server.asked["lamp"] == 1


def test_cost_by_hand(server, tmp_path):
    items = shop("Lamp", "Tent", "Lamp", "")
    model = source(server, structured="none")
    words = type("Words", (), {"encode": staticmethod(str.split)})
    estimate = estimate_cost(items, 5, model, price_prompt=1e6, price_completion=2e6, cache=tmp_path, tokenizer=words)
    n_words = sum(len(message["content"].split()) + 4 for message in llm_queries.messages("Lamp", 5))
    assert estimate == (2, 1, 2 * n_words, 2 * (5 * 18 + 8), 2 * n_words + 2 * 2 * (5 * 18 + 8))
    assert not server.asked
    ask(items.head(1), 5, model, cache=tmp_path)
    assert estimate_cost(items, 5, model, cache=tmp_path).requests == 1


def test_an_estimate_needs_no_key_and_writes_nothing(tmp_path):
    model = Endpoint("http://127.0.0.1:8000/v1", "m", api_key_variable="NOT_SET_ANYWHERE")
    assert estimate_cost(shop("Lamp"), 5, model, cache=tmp_path / "new").requests == 1
    assert not (tmp_path / "new").exists()
    assert estimate_cost(shop("Lamp"), 5, replace(model, structured="none")).prompt_tokens > 200


# --- a local model ---


@pytest.fixture(scope="module")
def tiny():
    """A Qwen3 of random weights over single bytes: its answers have the right structure and say nothing."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

    letters = {letter: i for i, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=letters | {"<|end|>": 256}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>", pad_token="<|end|>")
    torch.manual_seed(0)
    config = Qwen3Config(
        **{"vocab_size": 257, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1},
        **{"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8, "eos_token_id": 256, "pad_token_id": 256},
    )
    model = Qwen3ForCausalLM(config).eval()
    return llm_queries.LocalModel("tiny", model, fast, max_tokens=150, max_characters=6, batch_size=2)


def test_a_local_model_keeps_to_the_structure(tiny, tmp_path):
    import torch

    before = torch.random.get_rng_state()
    items = shop("Lamp", "Tent")
    answers = ask(items, 2, replace(tiny, max_attempts=5), seed=3, cache=tmp_path)
    assert torch.equal(before, torch.random.get_rng_state())
    assert answers.failed.empty
    assert set(answers.queries["kind"]) <= set(llm_queries.KINDS)
    assert answers.queries.groupby("item").size().between(1, 2).all()
    again = ask(items, 2, replace(tiny, max_attempts=5, model=None), seed=3, cache=tmp_path)
    pd.testing.assert_frame_equal(again.queries, answers.queries)  # without a model: from the cache


def test_a_local_model_that_is_cut_off_fails_with_a_reason(tiny):
    with pytest.warns(UserWarning, match="1 of 1"):
        answers = ask(shop("Lamp"), 2, replace(tiny, max_tokens=5))
    assert "no queries in the answer" in answers.failed["reason"][0]
    assert answers.counts["requests"] == 2


def test_a_chat_template_is_used_and_thinking_switched_off(tiny):
    class Tokenizer:
        chat_template = "some"

        def apply_chat_template(self, chat, **options):
            return f"{chat[0]['role']} {options}"

    prompt = llm_queries._prompt(Tokenizer(), llm_queries.messages("Lamp", 2))
    assert "'enable_thinking': False" in prompt
    assert "'add_generation_prompt': True" in prompt
