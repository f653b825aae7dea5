"""Send random requests to a real server process from many clients at once: none may end in a 5xx or without an answer.

    python tests/bench/fuzz.py --requests 100000 --clients 32

Of the requests, 45% are for next items, 20% searches, 2% batches of up to 64 histories, and the rest reads. Histories,
k and batches go up to their limits, small ones more often. A third of the requests is invalid: wrong fields, broken
JSON, odd bytes, paths and headers. Without --model the server gets an untrained model of the demo shop's 2,000 items,
which costs as much as a trained one. Exit code 1 if a request failed or p99 is a second or more.
"""

import asyncio
import json
import random
import tempfile
import time
from collections import Counter
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pandas as pd
import torch
import typer
from serving import Server
from tqdm import tqdm

from semid_lib.data import dataset
from semid_lib.ids.embed import item_texts, normalize
from semid_lib.ids.semantic_ids import SemanticIDs
from semid_lib.next_item.timeline import Timeline, TimelineConfig
from semid_lib.search.hybrid_ranker import HybridRanker, HybridRankerConfig, HybridSearch
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


def untrained(folder: Path) -> Path:
    """Save a recommender of the demo shop whose weights and semantic IDs are random."""
    items, rng = dataset.load("demo").items, np.random.default_rng(0)
    torch.manual_seed(0)
    vectors = normalize(rng.normal(size=(len(items), 384)).astype(np.float32))
    ids = SemanticIDs.from_codes(rng.integers(64, size=(len(items), 3)), codebook_size=64)
    model = Timeline(TimelineConfig(ids.sizes, 384, len(items)), ids.unique, vectors)
    ranker = HybridRanker(HybridRankerConfig(ids.sizes, 384, word_weight=0.2), ids.unique, vectors)
    Recommender(model, ids, items, HybridSearch(ranker, BM25(item_texts(items)))).save_pretrained(folder)
    return folder


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

    def _question(self, kind: str) -> dict:
        history = lambda: self._some(self.item_ids, schemas.MAX_HISTORY)  # noqa: E731
        if kind == "predictions/m":
            instances = [{"user_id": n, "item_ids": history()} for n in range(self._size(schemas.MAX_INSTANCES))]
            return {"topk": self._size(schemas.MAX_K), "instances": instances}
        question = {"k": self._size(schemas.MAX_K)}
        question |= {"item_ids": history()} if kind == "recommend" else {"query": self._query()}
        options = [("allowed_categories", self.names, 5), ("allowed_brands", self.brands, schemas.MAX_NAMES)]
        for name, values, most in [*options, ("blocked_items", self.item_ids, schemas.MAX_BLOCKED)]:
            if self.choose.random() < 0.3:
                question[name] = self._some(values, most)
        return question

    def _ask(self, kind: str, wrong: bool) -> bytes:
        question = self._question(kind)
        if not wrong:
            return self._bytes("POST", f"/{kind}", json.dumps(question).encode(), "application/json")
        body = json.dumps(self._spoilt(question)).encode()
        if self.choose.random() < 0.2:
            at = self.choose.randrange(len(body))
            odd = [body[:at], b"[" * 5000, body[:at] + self.choose.randbytes(9) + body[at:], b"\xff\xfe"]
            body = self.choose.choice(odd)
        return self._bytes("POST", f"/{kind}", body, self.choose.choice(_TYPES))

    def _spoilt(self, question: dict) -> dict:
        """The same with a field that is missing, wrong, long, or with many unknown ones."""
        field, what, value = self.choose.choice(list(question)), self.choose.randrange(4), self.choose.choice(_VALUES)
        if what == 0:
            return {name: value for name, value in question.items() if name != field}
        if what == 3:
            return question | {f"{n:x}": value for n in range(self._size(20_000))}
        return question | {field: value if what == 1 else [value] * self._size(2000)}

    def _read(self, wrong: bool) -> bytes:
        method = self.choose.choice(["GET", "GET", "GET", "HEAD", "OPTIONS", "DELETE", "QWX"]) if wrong else "GET"
        item = str(self.choose.choice(_TEXTS[:4] if wrong else self.item_ids))
        title = self.choose.choice(_TEXTS) if wrong else self._query()[:30]
        item, title = (quote(text.encode("utf-8", "replace"), safe="") for text in (item, title))
        limit = self.choose.choice([0, 51, "a", ""]) if wrong else self.choose.randint(1, 50)
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
        """Send a request and read the whole answer; 0 if none comes."""
        try:
            return await asyncio.wait_for(self._status(request), 60)
        except (OSError, EOFError, TimeoutError):
            self.writer = None
            return 0

    async def _status(self, request: bytes) -> int:
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


async def fuzz(port: int, items: pd.DataFrame, n_requests: int, n_clients: int) -> pd.DataFrame:
    """A line per request: its beginning, its path, its status (0: no answer), and its milliseconds."""
    lines, left = [], iter(tqdm(range(n_requests), desc=f"{n_clients} clients", mininterval=5))

    async def client(seed: int) -> None:
        fuzzer, connection = Fuzzer(items, seed), Connection(port)
        for _ in left:
            request, started = fuzzer.request(), time.perf_counter()
            status = await connection.status(request)
            path = "/" + request.split(b" ", 2)[1].decode().split("/")[1].split("?")[0]
            lines.append((request[:300], path, status, 1000 * (time.perf_counter() - started)))

    await asyncio.gather(*(client(seed) for seed in range(n_clients)))
    return pd.DataFrame(lines, columns=["request", "path", "status", "ms"])


def main(model: Path | None = None, requests: int = 100_000, clients: int = 32) -> None:
    """Send so many requests to a folder that save_pretrained wrote, or to an untrained model."""
    with tempfile.TemporaryDirectory() as place:
        folder = model or untrained(Path(place) / "model")
        with Server(folder) as server:
            server.wait()
            memory = server.memory()
            items = pd.read_parquet(folder / "items.parquet")
            found = asyncio.run(fuzz(server.port, items, requests, clients))
            server.wait()
            print(f"memory in MiB: {memory:.0f} before, {server.memory():.0f} after")
    print("status:", dict(sorted(Counter(found["status"]).items())))
    print(found.groupby("path")["ms"].describe(percentiles=[0.5, 0.9, 0.99, 0.999]).round(1).to_string())
    failed = found[(found["status"] == 0) | (found["status"] >= 500)]
    print(*("failed: " + repr(request) for request in failed["request"][:5]), sep="\n")
    raise typer.Exit(int(len(failed) > 0 or found["ms"].quantile(0.99) >= 1000))


if __name__ == "__main__":
    typer.run(main)
