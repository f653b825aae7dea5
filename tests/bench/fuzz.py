"""Send random requests to a real server process from many clients at once: none may end in a 5xx or without an answer.

    python tests/bench/fuzz.py --requests 100000 --clients 32

Of the requests, 45% are for next items, 20% searches, 2% batches of up to 64 histories, and the rest reads. Histories,
k and batches go up to their limits, small ones more often. A third of the requests is invalid: wrong fields, broken
JSON, odd bytes, paths and headers. Without --model the server gets an untrained model of the demo shop's 2,000 items,
which costs as much as a trained one. Exit code 1 if a request failed or p99 is a second or more.
"""

import argparse
import asyncio
import json
import os
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from urllib.parse import quote

import httpx
import numpy as np
import pandas as pd
import torch
from serving import Server
from tqdm import tqdm

from semid_lib.data import dataset
from semid_lib.ids.embed import item_texts
from semid_lib.ids.semantic_ids import SemanticIDs
from semid_lib.next_item.timeline import Timeline, TimelineConfig
from semid_lib.search.generative import LightSearch
from semid_lib.search.hybrid_ranker import HybridRanker, HybridRankerConfig
from semid_lib.search.retrieval import BM25
from semid_lib.serving.http import schemas
from semid_lib.serving.recommender import Recommender

_TEXTS = ["", " ", "\x00", "\u202e", "\ud800", "é" * 100, "手机壳", "[CLS] <|sid_0_1|>", "a" * 201, "<b>", "%2F/.."]
_TEXTS += ["&amp;" * 30]
_VALUES = [None, True, -1, 0, 0.5, 2**53, 2**63, -(2**63), 10**30, [], {}, [[]], [None], {"a": 1}, *_TEXTS]
_PATHS = ["/", "/docs", "/openapi.json", "/page/page.js", "/healthz", "/readyz", "/ping", "/metrics", "/catalogue"]
_ODD_PATHS = ["/items/", "/items/%ff", "/items/a%2Fneighbours", "/page/%2e%2e/web.py", "//catalogue", "/recommend/"]
_ODD_PATHS += ["/%00"]
_TYPES = ["application/json", "text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", ""]


def untrained(folder: Path) -> None:
    """Save a recommender of the demo shop whose weights and semantic IDs are random."""
    items, rng = dataset.load("demo").items, np.random.default_rng(0)
    torch.manual_seed(0)
    vectors = rng.normal(size=(len(items), 384)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    ids = SemanticIDs.from_codes(rng.integers(64, size=(len(items), 3)), codebook_size=64)
    model = Timeline(TimelineConfig(ids.sizes, 384, len(items)), ids.unique, vectors)
    searcher = LightSearch(
        HybridRanker(HybridRankerConfig(ids.sizes, 384, word_weight=0.2), ids.unique, vectors), BM25(item_texts(items))
    )
    Recommender(model, ids, items, searcher).save_pretrained(folder)


class Fuzzer:
    """Makes one random request after the other, as bytes of HTTP."""

    def __init__(self, items: pd.DataFrame, seed: int):
        self.choose, self.item_ids = random.Random(seed), items["item_id"].tolist()
        self.words = sorted({word for title in items["title"] for word in title.split()})
        self.names = sorted({name for paths in items["categories"] for path in paths for name in path})
        self.brands = sorted(items["brand"].dropna().unique())

    def request(self) -> bytes:
        """A request to one of the routes; every third one has something wrong."""
        kind = self.choose.choices(("recommend", "search", "predictions/m", "read"), (45, 20, 2, 33))[0]
        wrong = self.choose.random() < 1 / 3
        return self._read(wrong) if kind == "read" else self._ask(kind, wrong)

    def _size(self, most: int) -> int:
        """From 1 to most, small ones more often."""
        return int(most ** self.choose.random())

    def _some(self, values: list, most: int) -> list:
        return self.choose.choices(values, k=self._size(most))

    def _query(self) -> str:
        return " ".join(self._some(self.words, 10))[: schemas.MAX_TEXT]

    def _ask(self, kind: str, wrong: bool) -> bytes:
        if kind == "predictions/m":
            instances = [
                {"user_id": n, "item_ids": self._some(self.item_ids, schemas.MAX_HISTORY)}
                for n in range(self._size(schemas.MAX_INSTANCES))
            ]
            question = {"topk": self._size(schemas.MAX_K), "instances": instances}
        else:
            question = {"k": self._size(schemas.MAX_K)}
            if kind == "recommend":
                question["item_ids"] = self._some(self.item_ids, schemas.MAX_HISTORY)
                question["exclude_seen"] = self.choose.random() < 0.8
            else:
                question["query"] = self._query()
            if self.choose.random() < 0.3:
                question["allowed_categories"] = self._some(self.names, 5)
            if self.choose.random() < 0.2:
                question["allowed_brands"] = self._some(self.brands, schemas.MAX_NAMES)
            if self.choose.random() < 0.3:
                question["blocked_items"] = self._some(self.item_ids, schemas.MAX_BLOCKED)
        declared = "application/json"
        if wrong:
            question, declared = self._spoilt(question), self.choose.choice(_TYPES)
        body = json.dumps(question).encode()
        if wrong and self.choose.random() < 0.2:
            body = self._broken(body)
        return self._bytes("POST", f"/{kind}", body, declared)

    def _spoilt(self, question: dict) -> dict:
        """The same with a field that is wrong, missing, long or unknown."""
        field = self.choose.choice(list(question))
        what = self.choose.randrange(4)
        if what == 0:
            return {name: value for name, value in question.items() if name != field}
        if what == 1:
            return question | {field: self.choose.choice(_VALUES)}
        if what == 2:
            return question | {field: [self.choose.choice(_VALUES)] * self._size(2000)}
        return question | {f"{n:x}": self.choose.choice(_VALUES) for n in range(self._size(20_000))}

    def _broken(self, body: bytes) -> bytes:
        at = self.choose.randrange(len(body))
        return self.choose.choice(
            [body[:at], b"[" * 5000, body[:at] + self.choose.randbytes(9) + body[at:], b"\xff\xfe"]
        )

    def _read(self, wrong: bool) -> bytes:
        method = self.choose.choice(["GET", "GET", "GET", "HEAD", "OPTIONS", "DELETE", "QWX"]) if wrong else "GET"
        item = quote(
            str(self.choose.choice(_TEXTS[:4] if wrong else self.item_ids)).encode("utf-8", "replace"), safe=""
        )
        limit = self.choose.choice([0, 51, "a", ""]) if wrong else self.choose.randint(1, 50)
        title = quote(self.choose.choice(_TEXTS).encode("utf-8", "replace") if wrong else self._query()[:30])
        paths = [f"/items?title={title}&limit={limit}", f"/items/{item}", f"/items/{item}/neighbours?limit={limit}"]
        return self._bytes(method, self.choose.choice([*paths * 3, *(_ODD_PATHS if wrong else _PATHS)]))

    def _bytes(self, method: str, path: str, body: bytes = b"", declared: str = "") -> bytes:
        head = f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(body)}\r\n"
        return (head + (f"Content-Type: {declared}\r\n" if declared else "") + "\r\n").encode() + body


class Connection:
    """A connection to the server that is opened again when the server has closed it."""

    def __init__(self, port: int):
        self.port, self.writer = port, None

    async def status(self, request: bytes) -> int:
        """Send a request and read the whole answer."""
        if self.writer is None or self.writer.is_closing():
            self.reader, self.writer = await asyncio.open_connection("127.0.0.1", self.port)
        self.writer.write(request)
        head = (await self.reader.readuntil(b"\r\n\r\n")).lower()
        fields = dict(line.split(b": ", 1) for line in head.split(b"\r\n")[1:] if line)
        if not request.startswith(b"HEAD"):
            await self.reader.readexactly(int(fields.get(b"content-length", 0)))
        if fields.get(b"connection") == b"close":
            self.writer.close()
        return int(head.split()[1])


async def fuzz(
    port: int, items: pd.DataFrame, n_requests: int, n_clients: int
) -> tuple[np.ndarray, list[str], Counter, list[bytes]]:
    """Milliseconds and path of each request, the number of each status (0: no answer), and requests that failed."""
    times, paths, statuses, failed = [], [], Counter(), []
    left = iter(tqdm(range(n_requests), desc=f"{n_clients} clients", file=sys.stderr, mininterval=5))

    async def client(seed: int) -> None:
        fuzzer, connection = Fuzzer(items, seed), Connection(port)
        for _ in left:
            request, status = fuzzer.request(), 0
            started = time.perf_counter()
            try:
                status = await asyncio.wait_for(connection.status(request), 60)
            except (OSError, EOFError, TimeoutError):
                connection = Connection(port)
            times.append(1000 * (time.perf_counter() - started))
            paths.append(request.split(b" ", 2)[1].decode())
            statuses[status] += 1
            if status == 0 or status >= 500:
                failed.append(request[:300])

    await asyncio.gather(*(client(seed) for seed in range(n_clients)))
    return np.array(times), paths, statuses, failed


def _cpu(server: Server) -> float:
    """Seconds of CPU that the server has used."""
    user, system = (
        Path(f"/proc/{server.process.pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[11:13]
    )
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def until_ready(server: Server) -> None:
    while server.process.poll() is None:
        try:
            if httpx.get(f"{server.url}/readyz").status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    raise RuntimeError(f"the service ended with code {server.process.returncode}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="a folder that save_pretrained wrote; by default an untrained model")
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--clients", type=int, default=32)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = options.model or Path(place) / "model"
        if options.model is None:
            untrained(folder)
        server, items = Server(folder), pd.read_parquet(folder / "items.parquet")
        try:
            until_ready(server)
            memory, cpu, started = server.memory(), _cpu(server), time.perf_counter()
            port = int(server.url.rpartition(":")[2])
            times, paths, statuses, failed = asyncio.run(fuzz(port, items, options.requests, options.clients))
            seconds = time.perf_counter() - started
            until_ready(server)
            print(f"{len(times):,} requests of {options.clients} clients in {seconds:.0f} s")
            print(f"server: {1000 * (_cpu(server) - cpu) / len(times):.1f} ms of CPU per request")
            print("status: " + ", ".join(f"{status} {n}" for status, n in sorted(statuses.items())))
            for path in ("", "/recommend", "/search", "/predictions", "/items"):
                of_path = times[[one.startswith(path) for one in paths]]
                quantiles = ", ".join(f"p{at} {np.percentile(of_path, at):.0f}" for at in (50, 90, 99, 99.9, 100))
                print(f"{path or 'all'}: {len(of_path):,} requests, ms {quantiles}")
            print(f"memory in MiB: {memory:.0f} before, {server.memory():.0f} after")
        finally:
            server.stop()
    for request in failed[:5]:
        print("failed:", request)
    return int(bool(failed) or np.percentile(times, 99) >= 1000)


if __name__ == "__main__":
    sys.exit(main())
