"""Settings that cannot work are refused by name; a measured response is cold only if the endpoint's counts say so."""

import json
import time
from types import SimpleNamespace

import pytest

from semid_lib.data.folder import write_folder
from semid_lib.serving import deployment
from semid_lib.serving.deployment import Answers, Settings, answer_rows, measure
from semid_lib.serving.http import web


def test_every_field_is_read_and_written_back_and_the_defaults_are_the_cheapest():
    there = {
        "SEMID_MODEL": "me/shop", "SEMID_REVISION": "a" * 40, "SEMID_ENGINE": "vllm", "SEMID_GPU": "H100:2",
        "SEMID_CPU": "4.5", "SEMID_MEMORY": "4096", "SEMID_SCALEDOWN": "300", "SEMID_MIN_CONTAINERS": "1",
        "SEMID_MAX_CONTAINERS": "3", "SEMID_CONCURRENCY": "8", "SEMID_TIMEOUT": "30", "SEMID_SNAPSHOT": "0",
        "SEMID_WARM_UP": "*/4 8-18 * * 1-5", "SEMID_PUBLIC": "1",
    }  # fmt: skip
    settings = Settings.from_environment({**there, "SEMID_TOKEN": "never kept", "HOME": "/"})
    assert settings.environment() == there and len(there) == len(Settings.model_fields)
    assert settings.how() == {"device": "cuda", "revision": "a" * 40, "engine": "vllm"}
    assert not settings.snapshots and not Settings(gpu="L4", engine="vllm").snapshots and Settings(gpu="L4").snapshots
    cheap = Settings.from_environment({"SEMID_GPU": ""})
    assert (cheap.gpu, cheap.min_containers, cheap.max_containers, cheap.public) == ("", 0, 1, False)
    assert cheap.environment() == {} and cheap.how()["device"] == "cpu"


@pytest.mark.parametrize(
    ("variable", "value", "expected"),
    [
        ("SEMID_SCALEDOWN", "1", "greater than or equal to 2"),
        ("SEMID_SCALEDOWN", "soon", "a valid integer"),
        ("SEMID_MIN_CONTAINERS", "2", "at most SEMID_MAX_CONTAINERS"),
        ("SEMID_TIMEOUT", "10", "greater than or equal to 21"),
        ("SEMID_SNAPSHOT", "perhaps", "a valid boolean"),
        ("SEMID_ENGINE", "tgi", "'transformers' or 'vllm'"),
        ("SEMID_ENGINE", "vllm", "a GPU"),
        ("SEMID_GPU", "L4; rm", "a name"),
        ("SEMID_MODEL", "../secrets", "the name of a folder in the Volume"),
        ("SEMID_REVISION", "main", "a commit"),
        ("SEMID_REVISION", "a" * 40, "owner/name"),
        ("SEMID_WARM_UP", "hourly", "five fields"),
    ],
)
def test_what_cannot_work_is_refused_by_name(variable, value, expected):
    with pytest.raises(ValueError, match=f"^SEMID_.* is .*{expected}.*$"):
        Settings.from_environment({variable: value})


def test_an_endpoint_is_open_only_on_purpose():
    Settings().check_token("a token")
    Settings(public=True).check_token(None)
    for settings, token in ((Settings(), None), (Settings(), ""), (Settings(public=True), "t"), (Settings(), " t")):
        with pytest.raises(ValueError, match="SEMID_TOKEN"):
            settings.check_token(token)


@pytest.fixture
def sleeper(recommender_to_serve, serve, monkeypatch):
    """A service that is gone when `measure` has waited: the next request meets a new one, as behind a scale to zero."""
    running, waited = [], [1]
    clock = SimpleNamespace(sleep=waited.append, perf_counter=time.perf_counter)
    monkeypatch.setattr(deployment, "time", clock)

    async def app(scope, receive, send):
        if scope["type"] == "lifespan":
            await receive()
            await send({"type": "lifespan.startup.complete"})
            await receive()
            for service in running:
                await service.state.service.batcher.__aexit__()
            await send({"type": "lifespan.shutdown.complete"})
            return
        if any(waited):
            running.append(web.create_app(recommender_to_serve, token="secret"))
            await running[-1].state.service.batcher.__aenter__()
        waited.clear()
        await running[-1](scope, receive, send)

    return serve(app)


def test_only_the_first_response_of_a_container_is_cold(sleeper, tmp_path, monkeypatch):
    found = measure(sleeper, "secret", cold=2, warm=5, wait=3)
    assert len(found.cold) == 2 and found.missed == 0 and len(found.warm) == 5
    monkeypatch.setenv("SEMID_TOKEN", "secret")
    monkeypatch.setenv("SEMID_ARTEFACTS", str(tmp_path / "artefacts"))
    write_folder(tmp_path / "tiny", [{"item_id": 1, "title": "pen"}])
    answers, _, path = deployment.measure_endpoint(sleeper, tmp_path / "tiny", "smoke", cold=1, warm=2, wait=0)
    assert (answers.cold, answers.missed) == ([], 1)  # it was awake
    assert [row["key"] for row in json.loads(path.read_text())] == [
        f"deployment/tiny/endpoint_warm/{name}" for name in ("p50_ms", "p95_ms")
    ]


def test_measuring_refuses(sleeper):
    for url in ("http://shop.example", "https://me:pass@shop.example", "shop.example", "file:///etc"):
        with pytest.raises(ValueError, match="https://host"):
            measure(url, "secret", 1, 1, 0)
    with pytest.raises(ValueError, match="answers 401"):
        measure(sleeper, "wrong", 0, 1, 0)
    with pytest.raises(OSError, match="does not answer"):
        measure("http://127.0.0.1:9", None, 0, 1, 0)


def test_another_service_is_named(serve):
    async def other(scope, receive, send):
        if scope["type"] == "http":
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"hello"})

    with pytest.raises(ValueError, match="is another service"):
        measure(serve(other), None, 0, 1, 0)


def test_rows_hold_what_was_measured_and_under_which_settings():
    rows = answer_rows(Answers([3.0, 1.0, 2.0], 0, [0.01] * 18 + [0.02, 0.03]), Settings(gpu="L4"))
    assert {row["key"]: (row["value"], row["n"]) for row in rows} == {
        "deployment/endpoint_cold/seconds": (2.0, 3),
        "deployment/endpoint_warm/p50_ms": (10.0, 20),
        "deployment/endpoint_warm/p95_ms": (20.5, 20),
    }
    assert rows[0]["endpoint"] == {"gpu": "L4", "cpu": 2.0, "engine": "transformers", "snapshot": True}
    assert answer_rows(Answers([], 1, []), Settings()) == []
