"""What several test files need: a shop small enough to rank exhaustively, and a place to write to."""

import contextlib
import logging
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["SEMID_TRACKING"] = "0"
os.environ.setdefault("OMP_NUM_THREADS", "1")

from typing import NamedTuple

import chromium
import numpy as np
import pandas as pd
import pytest
from hypothesis import settings

from semid_lib.ids.semantic_ids import SemanticIDs

# no deadline: the cores are shared; no database: tests write nowhere but into their temporary folder; and a run tries
# the examples of the run before, so that a commit does not fail by chance (--hypothesis-profile default draws new ones)
settings.register_profile("steady", deadline=None, database=None, derandomize=True)
settings.load_profile("steady")

N_ITEMS = 40
DVC_PYTHON = Path(sys.prefix) / "dvc" / "bin" / "python"  # an environment of its own


class Shop(NamedTuple):
    """40 items and 60 shoppers; after item i everybody takes item (i + 1) mod 40."""

    vectors: np.ndarray  # (40, 8) float32, of length 1
    ids: SemanticIDs  # two levels of four codes, so 40 items collide and need a disambiguation code
    items: pd.DataFrame  # item_id is not the row: 1003, 1010, ... in a shuffled order
    histories: list[np.ndarray]  # item rows, 2 to 12 of them


def pytest_collection_modifyitems(items):
    """The longest file first, so that no worker waits for another in the end."""
    items.sort(key=lambda item: item.path.name != "test_notebooks.py")


@pytest.fixture(autouse=True)
def logging_as_before():
    """Remove handlers that a command left: the stream of its test is closed, so that each later line would fail.

    A handler that fails formats a traceback, for which Python 3.11 parses code. In the thread of a service this can
    collide with Hypothesis, which parses code, too: SystemError, "AST constructor recursion depth mismatch".
    """
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.fixture(scope="session", autouse=True)
def artefacts_elsewhere(tmp_path_factory):
    """Whatever asks for the default folder of artefacts gets a temporary one."""
    before = os.environ.get("SEMID_ARTEFACTS")
    os.environ["SEMID_ARTEFACTS"] = str(tmp_path_factory.mktemp("artefacts"))
    yield
    if before is None:
        del os.environ["SEMID_ARTEFACTS"]
    else:
        os.environ["SEMID_ARTEFACTS"] = before


@pytest.fixture(scope="session")
def shop() -> Shop:
    rng = np.random.default_rng(7)
    vectors = rng.normal(size=(N_ITEMS, 8)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    ids = SemanticIDs.from_codes(rng.integers(4, size=(N_ITEMS, 2)), codebook_size=4)
    items = pd.DataFrame({"item_id": 1003 + 7 * rng.permutation(N_ITEMS)})
    items["title"] = [f"item in row {row}" for row in range(N_ITEMS)]
    histories = [
        (start + np.arange(length)) % N_ITEMS
        for start, length in zip(rng.integers(N_ITEMS, size=60), rng.integers(2, 13, size=60), strict=True)
    ]
    return Shop(vectors, ids, items, histories)


@pytest.fixture
def new_timeline(shop):
    """Makes an untrained timeline model of the shop, in evaluation mode; `settings` change its shape."""
    import torch

    from semid_lib.next_item.timeline import Timeline, TimelineConfig

    torch.set_num_threads(1)

    def make(seed: int = 0, spread: float = 1.0, **settings) -> Timeline:
        torch.manual_seed(seed)
        settings = {"dim": 16, "n_layers": 1, "n_heads": 2, "max_length": 12} | settings
        config = TimelineConfig(shop.ids.sizes, text_dim=8, n_items=N_ITEMS, **settings)
        model = Timeline(config, shop.ids.unique, shop.vectors)
        with torch.no_grad():  # as initialized all items are about equally probable, which would hide mistakes
            for table in [*model.code, model.item_encoder.position, model.code_encoder.position]:
                table.weight.normal_(std=spread)
        return model.eval()

    return make


@pytest.fixture
def recommender_to_serve(shop, new_timeline):
    """A recommender of the shop with brands and categories, which finds items by the words of their titles too."""
    from semid_lib.decoding.ranking import Ranked, top_k
    from semid_lib.decoding.trie import PrefixTrie
    from semid_lib.search.retrieval import checked_queries
    from semid_lib.serving.recommender import Recommender

    class ByWords:
        trie, n_items = PrefixTrie.build(shop.ids.unique), N_ITEMS

        def search(self, queries, k, allowed=None, query_vectors=None, progress=False) -> Ranked:
            queries = checked_queries(queries, k)
            titles = [set(title.split()) for title in shop.items["title"]]
            scores = np.array([[len(set(query.split()) & title) for title in titles] for query in queries], np.float32)
            scores[(scores == 0) | ~np.broadcast_to(True if allowed is None else allowed, scores.shape)] = -np.inf
            return top_k(scores, k)

    items = shop.items.assign(
        brand=["Ash", None] * (N_ITEMS // 2),
        categories=[[["Home", "Clocks"]], [["Home", "Rugs"], ["Gifts"]], [], [["Garden"]]] * (N_ITEMS // 4),
    )
    return Recommender(new_timeline(), shop.ids, items, ByWords())


@pytest.fixture
def served_folder(recommender_to_serve, tmp_path):
    """The same recommender in a folder, without its search by words."""
    recommender_to_serve.searcher = None
    recommender_to_serve.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture(scope="session")
def browser(tmp_path_factory):
    """Port of a headless Chromium's DevTools."""
    with chromium.running(tmp_path_factory.mktemp("chromium")) as port:
        yield port


@pytest.fixture
def serve():
    """Starts an ASGI application on a free port of loopback: serve(app) -> its URL; it is stopped after the test."""
    import uvicorn

    with contextlib.ExitStack() as running:

        def start(app) -> str:
            server = uvicorn.Server(uvicorn.Config(app, port=0, log_config=None, access_log=False))
            thread = threading.Thread(target=server.run)
            thread.start()
            running.callback(thread.join)
            running.callback(setattr, server, "should_exit", True)
            while not server.started:
                assert thread.is_alive(), "the server did not start"
                time.sleep(0.01)
            return f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"

        yield start


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_for(process, is_ready, seconds: int = 300) -> None:
    """Wait until a process that was started is ready; the deadline is a guard alone, as others share the cores."""
    for _ in range(10 * seconds):
        if is_ready():
            return
        assert process.poll() is None, f"{process.args} has ended"
        time.sleep(0.1)
    raise TimeoutError(f"{process.args} is not ready")


def answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture(scope="session")
def s3_server():
    """An S3-compatible server on loopback, moto of .venv/dvc; its URL."""
    if not DVC_PYTHON.exists():
        pytest.skip("no S3 server: `make test` installs it in .venv/dvc")
    port = free_port()
    command = [DVC_PYTHON, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for(server, lambda: answers(port))
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait()
