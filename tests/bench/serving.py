"""A recommender in use: cold start, latency for one client, throughput for many, batch, and memory over time.

Client and server share the machine, so run it where nothing else runs; rows go to the store of the data set at scale
"bench", each with what it must reach and with what users wish for: an answer in less than 1 s when hot, 5 s when cold.
Debian's wrk, where it is installed, judges the load of many clients a second time.
"""

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
import threading
import time
from pathlib import Path
from typing import Annotated

import httpx
import numpy as np
import pandas as pd
import typer
from tqdm import tqdm

from semid_lib.data.folder import open_store
from semid_lib.serving import saved
from semid_lib.workbench import store
from semid_lib.workbench.atomic import fresh_folder

SEMID = [sys.executable, "-m", "semid_lib.cli"]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
MUST = {  # what is asked of the Beauty model on two cores
    "cold_start_s": "< 5",
    "one_client_p50_ms": "< 30",
    "one_client_p99_ms": "< 100",
    "many_clients_requests_per_s": ">= 150",
    "many_clients_p99_ms": "< 1000",
    "reload_slowest_ms": "< 1000",
    "errors": "0",
    "batch_users_per_s": ">= 1000",
    "memory_growth_mib": "< 10",
}
WISH = {f"{task}cold_start_s": "< 5" for task in ("", "search_")}
WISH |= {f"{task}{clients}_p99_ms": "< 1000" for task in ("", "search_") for clients in ("one_client", "many_clients")}
_WRK = """
wrk.method, wrk.headers["Content-Type"] = "POST", "application/json"
function request() return wrk.format(nil, "/recommend", nil, bodies[math.random(#bodies)]) end
function done(all, latency)
  local errors = all.errors.connect + all.errors.read + all.errors.write + all.errors.status + all.errors.timeout
  print(string.format("%f %f %d", all.requests / all.duration * 1e6, latency:percentile(99) / 1000, errors))
end
"""


class Server:
    """The service as a process of its own, until the block ends."""

    def __init__(self, folder: Path, *options: str):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        command = [*SEMID, "serve", "--model", str(folder), "--port", str(self.port), *options]
        self.process = subprocess.Popen(command, stderr=subprocess.DEVNULL, env=ENVIRONMENT)

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, *_) -> None:
        self.process.terminate()
        self.process.wait(60)

    def wait(self, path: str = "/readyz", question: dict | None = None) -> None:
        """Ask until there is an answer: that all models are loaded, or that to a question."""
        while self.process.poll() is None:
            with contextlib.suppress(httpx.TransportError):
                answer = httpx.request("POST" if question else "GET", self.url + path, json=question, timeout=60)
                if answer.status_code != 503:
                    answer.raise_for_status()
                    return
            time.sleep(0.02)
        raise RuntimeError(f"the service ended with code {self.process.returncode}")

    def memory(self) -> float:
        """Resident memory in MiB."""
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text(encoding="utf-8").split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


async def load(server: Server, path: str, questions: list[dict], n_clients: int, until: int | threading.Event):
    """Each client asks as soon as it is answered, until so many requests or an event.

    Returns milliseconds of each request, seconds in all, and errors.
    """
    requests = range(until) if isinstance(until, int) else iter(until.is_set, True)
    times, errors, left = [], 0, iter(tqdm(requests, desc=f"{n_clients} clients"))

    async def client(number: int) -> None:
        nonlocal errors
        choose = random.Random(number)
        async with httpx.AsyncClient(base_url=server.url, timeout=60) as one:
            for _ in left:
                started = time.perf_counter()
                try:
                    answer = await one.post(path, json=choose.choice(questions))
                    errors += answer.status_code != 200 or len(answer.json()["items"]) != 10
                except httpx.HTTPError:
                    errors += 1
                times.append(1000 * (time.perf_counter() - started))

    started = time.perf_counter()
    await asyncio.gather(*(client(number) for number in range(n_clients)))
    return np.array(times), time.perf_counter() - started, errors


def measured_load(server: Server, path: str, questions: list[dict], n_requests: int, prefix: str = "") -> dict:
    """One client, then many, on a warm service."""
    measured = {"errors": asyncio.run(load(server, path, questions, 8, min(500, n_requests)))[2]}
    for name, n_clients in ((f"{prefix}one_client", 1), (f"{prefix}many_clients", 32)):
        times, seconds, errors = asyncio.run(load(server, path, questions, n_clients, n_requests))
        measured |= {f"{name}_p{quantile}_ms": np.percentile(times, quantile) for quantile in (50, 99)}
        measured[f"{name}_requests_per_s"] = len(times) / seconds
        measured["errors"] += errors
    return measured


def judged_by_wrk(server: Server, questions: list[dict]) -> dict:
    if (wrk := shutil.which("wrk")) is None:
        print("wrk is not installed: no second judge of the load")
        return {}
    bodies = ", ".join(f"[[{json.dumps(question)}]]" for question in questions[:1000])
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
        script.write(f"bodies = {{{bodies}}}\n{_WRK}")
        script.flush()
        command = [wrk, "-t1", "-c32", "-d15s", "--timeout", "60s", "-s", script.name, server.url]
        said = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1].split()
    names = ("wrk_many_clients_requests_per_s", "wrk_many_clients_p99_ms", "errors")
    return dict(zip(names, map(float, said), strict=True))


def cold_start(folder: Path, path: str, question: dict) -> float:
    """Seconds from the start of a process to its answer to one question, the median of three."""
    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        with Server(folder) as server:
            server.wait(path, question)
            seconds.append(time.perf_counter() - started)
    return float(np.median(seconds))


def service(folder: Path, histories: list[dict], queries: list[dict], n_requests: int, n_soak: int) -> dict:
    measured, errors = {"cold_start_s": cold_start(folder, "/recommend", histories[0])}, 0
    with Server(folder) as server:
        server.wait()
        parts = [measured_load(server, "/recommend", histories, n_requests), judged_by_wrk(server, histories)]
        if httpx.get(f"{server.url}/catalogue").json()["can_search"]:
            measured["search_cold_start_s"] = cold_start(folder, "/search", queries[0])
            parts.append(measured_load(server, "/search", queries, n_requests // 5, "search_"))
        for part in parts:
            errors += part.pop("errors", 0)
            measured |= part
        if n_soak:
            memory = [server.memory()]
            for _ in range(10):
                errors += asyncio.run(load(server, "/recommend", histories, 32, n_soak // 10))[2]
                memory.append(server.memory())
            print("memory in MiB, each tenth of the requests:", *np.round(memory, 1))
            measured |= {"memory_mib": memory[-1], "memory_growth_mib": memory[-1] - memory[1]}
    return {**measured, "errors": errors}


def reloads(folder: Path, histories: list[dict], n: int = 3) -> dict:
    """The folder is replaced several times while many clients ask: slowest answer, errors, and the most memory."""
    seconds = []
    with tempfile.TemporaryDirectory() as place:
        served = Path(place) / "model"
        shutil.copytree(folder, served)
        with Server(served, "--check-seconds", "0.5") as server:
            server.wait()
            memory = [server.memory()]
            stop = threading.Event()

            def replace() -> None:
                for number in range(1, n + 1):
                    time.sleep(3)
                    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
                    with fresh_folder(served) as fresh:
                        shutil.copytree(folder, fresh, dirs_exist_ok=True)
                        config["version"] = saved.Version(number + 1, change="none")._asdict()
                        (fresh / "config.json").write_text(json.dumps(config), encoding="utf-8")
                    started = time.perf_counter()
                    name = f"{number + 1}-"
                    while not httpx.get(f"{server.url}/readyz", timeout=60).json()["version"].startswith(name):
                        memory.append(server.memory())
                        time.sleep(0.05)
                    seconds.append(time.perf_counter() - started)
                time.sleep(3)
                stop.set()

            asyncio.run(load(server, "/recommend", histories, 32, 300))  # warm
            before, _, _ = asyncio.run(load(server, "/recommend", histories, 32, 1000))  # to compare with
            thread = threading.Thread(target=replace)
            thread.start()
            times, _, errors = asyncio.run(load(server, "/recommend", histories, 32, stop))
            thread.join()
            memory.append(server.memory())
    return {
        "reload_s": float(np.median(seconds)),
        "reload_before_p99_ms": np.percentile(before, 99),
        "reload_before_slowest_ms": before.max(),
        "reload_p99_ms": np.percentile(times, 99),
        "reload_slowest_ms": times.max(),
        "reload_over_1_s": int((times > 1000).sum()),
        "reload_requests": len(times),
        "reload_memory_mib": max(memory),
        "reload_memory_growth_mib": memory[-1] - memory[0],
        "errors": errors,
    }


def batch(folder: Path, histories: list[list[int]], n_users: int) -> dict:
    """A file in, a file out, with the start of the process."""
    choose = random.Random(0)
    with tempfile.TemporaryDirectory() as place:
        source, target = Path(place) / "histories.txt", Path(place) / "preds.csv"
        lines = [f"{user} {' '.join(map(str, choose.choice(histories)))}\n" for user in range(n_users)]
        source.write_text("".join(lines), encoding="utf-8")
        paths = ["--model", folder, "--input-path", source, "--output-path", target, "--topk", "10"]
        started = time.perf_counter()
        subprocess.run([*SEMID, "predict", *map(str, paths)], check=True, env=ENVIRONMENT)
        seconds = time.perf_counter() - started
        answered = len(target.read_bytes().splitlines()) - 1
    return {"batch_users_per_s": answered / seconds, "batch_users": answered}


def main(
    model: Annotated[Path, typer.Option()],
    data: str = "demo",
    requests: int = 3000,
    soak: int = 100_000,
    users: int = 200_000,
    only_reloads: bool = False,
) -> None:
    """Measure a saved recommender.

    data: what it was trained on; requests: for each number of clients; soak: over which memory is watched, 0 for none;
    users: of the batch, 0 for none; only_reloads: replace the folder under load, and measure nothing else.
    """
    items = pd.read_parquet(model / "items.parquet", columns=["item_id", "title"])
    choose = random.Random(1)
    histories = [choose.choices(items["item_id"].tolist(), k=choose.randint(1, 20)) for _ in range(5000)]
    titles = [" ".join(title.split()[:5])[:200] for title in items["title"].dropna() if title.strip()]
    asked = [{"item_ids": history, "k": 10} for history in histories]
    queries = [{"query": title, "k": 10} for title in choose.choices(titles, k=1000)]
    measured = reloads(model, asked)
    if not only_reloads:
        errors = measured.pop("errors")
        measured |= service(model, asked, queries, requests, soak)
        measured["errors"] += errors
    if users and not only_reloads:
        measured |= batch(model, histories, users)
    rows = [
        {"key": f"serving/{name}", "value": round(float(value), 4), "must": MUST.get(name), "wish": WISH.get(name)}
        for name, value in measured.items()
    ]
    print(open_store(data, "bench").record("serving", rows))
    print(pd.DataFrame(rows).to_string(index=False), store.hardware(), sep="\n")


if __name__ == "__main__":
    typer.run(main)
