"""A recommender in use: cold start, latency for one client, throughput for many, batch, and memory over time.

Client and server share the machine, so run it where nothing else runs; rows go to the shelf of the data set at scale
"bench", each with what it must reach and with what users wish for: an answer in less than 1 s when hot, 5 s when cold.
Debian's wrk, where it is installed, judges the load of many clients a second time.
"""

import argparse
import asyncio
import contextlib
import json
import os
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx
import numpy as np
import pandas as pd
from tqdm import tqdm

from semid_lib.data.folder import open_store
from semid_lib.workbench import store

ROOT = Path(__file__).resolve().parent.parent.parent
MUST = {  # what is asked of the Beauty model on two cores
    "cold_start_s": "< 5",
    "one_client_p50_ms": "< 30",
    "one_client_p99_ms": "< 100",
    "many_clients_requests_per_s": ">= 150",
    "many_clients_p99_ms": "< 1000",
    "errors": "0",
    "batch_users_per_s": ">= 1000",
    "memory_growth_mib": "< 10",
}
WISH = {
    "cold_start_s": "< 5",
    "search_cold_start_s": "< 5",
    "one_client_p99_ms": "< 1000",
    "many_clients_p99_ms": "< 1000",
    "search_one_client_p99_ms": "< 1000",
    "search_many_clients_p99_ms": "< 1000",
}
_WRK = """
wrk.method, wrk.headers["Content-Type"] = "POST", "application/json"
function request() return wrk.format(nil, "/recommend", nil, bodies[math.random(#bodies)]) end
function done(all, latency)
  local errors = all.errors.connect + all.errors.read + all.errors.write + all.errors.status + all.errors.timeout
  print(string.format("%f %f %d", all.requests / all.duration * 1e6, latency:percentile(99) / 1000, errors))
end
"""


class Server:
    """The service as a process of its own."""

    def __init__(self, folder: Path):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        self.process = subprocess.Popen(
            [sys.executable, "-m", "semid_lib.cli", "serve", "--model", str(folder), "--port", str(port)],
            stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )

    def first_answer(self, question: dict) -> None:
        """Ask until the service listens and, for a query, has loaded its text encoder."""
        while self.process.poll() is None:
            with contextlib.suppress(httpx.TransportError):
                answer = httpx.post(self.url + _path(question), json=question, timeout=60)
                if answer.status_code != 503:
                    answer.raise_for_status()
                    return
            time.sleep(0.02)
        raise RuntimeError(f"the service ended with code {self.process.returncode}")

    def memory(self) -> float:
        """Resident memory in MiB."""
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text(encoding="utf-8").split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 2**20

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(60)


def _path(question: dict) -> str:
    return "/search" if "query" in question else "/recommend"


async def load(url: str, questions: list[dict], n_clients: int, n_requests: int) -> tuple[np.ndarray, float, int]:
    """Each client asks as soon as it is answered: milliseconds of each request, seconds in all, and errors."""
    times, errors, left = [], 0, iter(tqdm(range(n_requests), desc=f"{n_clients} clients", file=sys.stderr))

    async def client(number: int) -> None:
        nonlocal errors
        choose = random.Random(number)
        async with httpx.AsyncClient(base_url=url, timeout=60) as one:
            for _ in left:
                started = time.perf_counter()
                try:
                    question = choose.choice(questions)
                    answer = await one.post(_path(question), json=question)
                    errors += answer.status_code != 200 or len(answer.json()["items"]) != 10
                except httpx.HTTPError:
                    errors += 1
                times.append(1000 * (time.perf_counter() - started))

    started = time.perf_counter()
    await asyncio.gather(*(client(number) for number in range(n_clients)))
    return np.array(times), time.perf_counter() - started, errors


def measured_load(url: str, questions: list[dict], n_requests: int, prefix: str = "") -> tuple[dict[str, float], int]:
    """One client, then many, on a warm service: figures and errors."""
    errors, measured = asyncio.run(load(url, questions, 8, min(500, n_requests)))[2], {}
    for name, n_clients in ((f"{prefix}one_client", 1), (f"{prefix}many_clients", 32)):
        times, seconds, wrong = asyncio.run(load(url, questions, n_clients, n_requests))
        for quantile in (50, 99):
            measured[f"{name}_p{quantile}_ms"] = float(np.percentile(times, quantile))
        measured[f"{name}_requests_per_s"] = len(times) / seconds
        errors += wrong
    return measured, errors


def judged_by_wrk(url: str, questions: list[dict], seconds: int = 15) -> tuple[dict[str, float], int]:
    if (wrk := shutil.which("wrk")) is None:
        print("wrk is not installed: no second judge of the load")
        return {}, 0
    bodies = ", ".join(f"[[{json.dumps(question)}]]" for question in questions[:1000])
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
        script.write(f"bodies = {{{bodies}}}\n{_WRK}")
        script.flush()
        command = [wrk, "-t1", "-c32", f"-d{seconds}s", "--timeout", "60s", "-s", script.name, url]
        said = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1].split()
    return {"wrk_many_clients_requests_per_s": float(said[0]), "wrk_many_clients_p99_ms": float(said[1])}, int(said[2])


def cold_start(folder: Path, question: dict) -> float:
    """Seconds from the start of a process to its answer to one question, the median of three."""
    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        server = Server(folder)
        try:
            server.first_answer(question)
            seconds.append(time.perf_counter() - started)
        finally:
            server.stop()
    return float(np.median(seconds))


def service(folder: Path, histories: list[dict], queries: list[dict], n_requests: int, n_soak: int) -> dict[str, float]:
    measured = {"cold_start_s": cold_start(folder, histories[0])}
    server, errors = Server(folder), 0
    try:
        server.first_answer(histories[0])
        for found, wrong in (
            measured_load(server.url, histories, n_requests),
            judged_by_wrk(server.url, histories),
        ):
            measured |= found
            errors += wrong
        if httpx.get(f"{server.url}/catalogue").json()["can_search"]:
            measured["search_cold_start_s"] = cold_start(folder, queries[0])
            server.first_answer(queries[0])
            found, wrong = measured_load(server.url, queries, n_requests // 5, "search_")
            measured |= found
            errors += wrong
        if n_soak:
            memory = [server.memory()]
            for _ in range(10):
                errors += asyncio.run(load(server.url, histories, 32, n_soak // 10))[2]
                memory.append(server.memory())
            print("memory in MiB, each tenth of the requests:", *np.round(memory, 1))
            measured["memory_mib"], measured["memory_growth_mib"] = memory[-1], memory[-1] - memory[1]
    finally:
        server.stop()
    return {**measured, "errors": errors}


def batch(folder: Path, histories: list[list[int]], n_users: int) -> dict[str, float]:
    """A file in, a file out, with the start of the process."""
    choose = random.Random(0)
    with tempfile.TemporaryDirectory() as place:
        source, target = Path(place) / "histories.txt", Path(place) / "preds.csv"
        with open(source, "w", encoding="utf-8") as lines:
            for user in range(n_users):
                lines.write(f"{user} {' '.join(map(str, choose.choice(histories)))}\n")
        paths = ["--model", folder, "--input-path", source, "--output-path", target, "--topk", "10"]
        started = time.perf_counter()
        command = [sys.executable, "-m", "semid_lib.cli", "predict", *map(str, paths)]
        subprocess.run(command, check=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
        seconds = time.perf_counter() - started
        with open(target, "rb") as answers:
            answered = sum(1 for _ in answers) - 1
    return {"batch_users_per_s": answered / seconds, "batch_users": answered}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="a folder that save_pretrained wrote")
    parser.add_argument("--data", default="demo", help="what it was trained on: demo, or the folder of a data set")
    parser.add_argument("--requests", type=int, default=3000, help="for each number of clients")
    parser.add_argument("--soak", type=int, default=100_000, help="requests over which memory is watched; 0 for none")
    parser.add_argument("--users", type=int, default=200_000, help="of the batch; 0 for none")
    options = parser.parse_args()
    items = pd.read_parquet(options.model / "items.parquet", columns=["item_id", "title"])
    choose = random.Random(1)
    histories = [choose.choices(items["item_id"].tolist(), k=choose.randint(1, 20)) for _ in range(5000)]
    asked = [{"item_ids": history, "k": 10} for history in histories]
    titles = [" ".join(title.split()[:5])[:200] for title in items["title"].dropna() if title.strip()]
    queries = [{"query": title, "k": 10} for title in choose.choices(titles, k=1000)]
    measured = service(options.model, asked, queries, options.requests, options.soak)
    if options.users:
        measured |= batch(options.model, histories, options.users)
    rows = [
        {"key": f"serving/{name}", "value": round(float(value), 4), "must": MUST.get(name), "wish": WISH.get(name)}
        for name, value in measured.items()
    ]
    print(open_store(options.data, "bench").record("serving", rows))
    for name, value in measured.items():
        print(f"{name:34} {value:12,.2f}   must {MUST.get(name, '-'):8} wish {WISH.get(name, '-')}")
    print(store.hardware())
    return 0


if __name__ == "__main__":
    sys.exit(main())
