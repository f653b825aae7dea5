"""Models load beside the first answers; whatever happens meanwhile, each request is answered or told why not."""

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from semid_lib.serving.http.batching import OverloadedError
from semid_lib.serving.http.middleware import JsonLines, Limits, Meters
from semid_lib.serving.http.schemas import SearchQuestion
from semid_lib.serving.http.service import Service
from semid_lib.serving.recommender import Recommender


@pytest.fixture
def slow_search(recommender_to_serve):
    """An event that searches of the recommender wait for."""
    loaded, search = threading.Event(), recommender_to_serve.searcher.search
    recommender_to_serve.searcher.search = lambda *args: loaded.wait(60) and search(*args)
    yield loaded
    loaded.set()


def test_a_service_warms_up_for_one_history_first_and_for_the_rest_afterwards(recommender_to_serve):
    calls, recommender = [], recommender_to_serve
    rank, search = recommender.rank, recommender.searcher.search
    recommender.rank = lambda asked, *args, allowed, **how: (
        calls.append(("rank", len(asked), allowed is not None)) or rank(asked, *args, allowed=allowed, **how)
    )
    recommender.searcher.search = lambda asked, *args: calls.append(("search", len(asked))) or search(asked, *args)
    service = Service(recommender, Limits(), Meters())
    service.warm_up()
    assert calls == [("rank", 1, False)]
    service.warm_up_rest()
    assert calls[1:] == [("rank", 8, False), ("rank", 8, True), ("search", 1)]
    [batches] = [metric for metric in service.meters.batch.collect() if metric.name == "semid_batch_size"]
    assert [sample.value for sample in batches.samples if sample.name.endswith("_count")] == [0]  # they are no traffic
    calls.clear()
    of_search = Recommender(None, recommender.ids, recommender.items, recommender.searcher)
    Service(of_search, Limits(), Meters()).warm_up()
    assert calls == [("search", 1)]
    impatient = Service(recommender, Limits(seconds=0.1), Meters())
    impatient.state = "loading"
    with pytest.raises(OverloadedError, match="the text encoder is still loading: retry after 1 s"):
        asyncio.run(impatient.search(SearchQuestion(query="row")))


def test_histories_are_answered_and_queries_wait_while_the_encoder_loads(new_client, slow_search, ids):
    client = new_client(Limits(seconds=60))
    client.service.warm_up_beside()
    answer = client.get("/readyz")
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    assert answer.json()["detail"] == "not ready: the models are still loading"
    assert client.get("/healthz").status_code == 200
    with ThreadPoolExecutor(1) as aside:
        query = aside.submit(client.post, "/search", json={"query": "row 17"})
        for _ in range(3):
            assert len(client.post("/recommend", json={"item_ids": ids[:2]}).json()["items"]) == 10
        assert not query.done()
        slow_search.set()
        assert query.result().json()["items"][0]["item_id"] == ids[17]
    assert client.get("/readyz").status_code == 200


def test_a_service_that_cannot_load_its_encoder_says_so(client, recommender_to_serve, caplog):
    def fail(*_):
        raise OSError("secret")

    recommender_to_serve.searcher.search = fail
    client.service.warm_up_beside()
    while (answer := client.get("/readyz")).json()["detail"] == "not ready: the models are still loading":
        time.sleep(0.01)
    assert (answer.status_code, answer.json()["detail"]) == (503, "not ready: loading failed, see the log")
    [record] = [record for record in caplog.records if record.message == "loading failed"]
    assert record.facts["error"] == "OSError" and "secret" not in JsonLines().format(record)
    assert client.post("/search", json={"query": "row"}).status_code == 500
    assert client.post("/recommend", json={"item_ids": []}).status_code == 200


def test_a_full_queue_says_when_to_come_back(new_client, recommender_to_serve):
    client, entered, release = (
        new_client(Limits(seconds=60, max_queue=4, max_batch=1)),
        threading.Event(),
        threading.Event(),
    )
    rank = recommender_to_serve.rank
    recommender_to_serve.rank = lambda *args, **more: (entered.set(), release.wait(60)) and rank(*args, **more)
    with ThreadPoolExecutor(5) as aside:
        accepted = [aside.submit(client.post, "/recommend", json={"item_ids": []})]
        entered.wait(60)
        accepted += [aside.submit(client.post, "/recommend", json={"item_ids": []}) for _ in range(4)]
        while client.service.batcher.n_waiting < 4:
            time.sleep(0.001)
        for refused in (client.post("/recommend", json={"item_ids": []}), client.get("/readyz")):
            assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
        release.set()
        assert {answer.result().status_code for answer in accepted} == {200}
    assert client.get("/readyz").json()["status"] == "ready"
