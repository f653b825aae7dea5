"""How time and memory grow with the catalogue, stage by stage: every point in a process of its own, on one thread.

What a catalogue of n items looks like is taken from a real one (`semid_lib.studies.growth`). Rows are written after
every point. A point that would take longer than the budget or more memory than is allowed, by the curve so far, is
left out, and a row says so.
"""

import resource
import time
from concurrent.futures.process import BrokenProcessPool

import numpy as np
import pandas as pd
import torch
import typer
from measuring import alone, sample_of
from tqdm import tqdm

from semid_lib.data import dataset
from semid_lib.ids import embed
from semid_lib.studies.growth import laws, points, stages
from semid_lib.studies.growth.points import LeftOut, Point
from semid_lib.workbench import store

MASK = "mask step, 400 beams"
MUST = {  # the point, what of it, and what it must be
    "trie_of_1e6_build_s": ("trie, build", 10**6, "cost", "< 5"),
    "trie_of_1e6_bytes_an_item": ("trie, build", 10**6, "kept", "<= 40"),
    "mask_step_400_beams_at_1e6_ms": (MASK, 10**6, "cost", "< 5"),
    "trie_of_1e7_build_s": ("trie, build", 10**7, "cost", "< 60"),
    "trie_of_1e7_open_s": ("trie, open", 10**7, "cost", "< .1"),
}
MUST_OF_MASK, MUST_OF_EMBEDDING = "< .2", ">= .9"  # caches leave something to the exponent of the mask


def one(stage: str, n: int, data: str, scale: str) -> Point:
    """A point, measured in this process."""
    torch.set_num_threads(1)
    # an allocation beyond this fails here, instead of the kernel choosing somebody to end
    resource.setrlimit(resource.RLIMIT_DATA, (20 * points.GIB, 20 * points.GIB))
    return stages.measure(stage, n, sample_of(data, scale))


def embedding_in_turns(data: str, scale: str, n: int = 1024, turns: int = 3) -> dict[str, float]:
    """`embed.embed` beside plain sentence-transformers on the same texts, in turns: texts a second, medians."""
    torch.set_num_threads(1)
    texts = [f"{at} {text}" for at, text in enumerate((sample_of(data, scale).texts * 2)[:n])]
    plain = embed.Encoder()._model
    work = {
        "loading": lambda: embed.embed(texts[:1]),
        "here": lambda: embed.embed(texts),
        "plain": lambda: plain.encode(texts, batch_size=64, show_progress_bar=False),
    }
    seconds = pd.DataFrame(0.0, range(turns), list(work))
    for turn in range(turns):
        for name, run in work.items():
            started = time.perf_counter()
            run()
            seconds.loc[turn, name] = time.perf_counter() - started
    median = seconds.median()
    return {"here": len(texts) / (median["here"] - median["loading"]), "plain": len(texts) / median["plain"]}


def rows_of(found: list, speeds: dict[str, float], of: dict[str, stages.Stage]) -> list[dict]:
    """Points, promises, laws, and where each stage becomes too slow or too large."""
    rows = points.as_rows(found, {name: stage.unit for name, stage in of.items()})
    rows += [
        {"key": f"growth_embedding/texts_a_second/{name}", "value": v, "unit": "1/s"} for name, v in speeds.items()
    ]
    measured = {(point.stage, point.n): point for point in found if isinstance(point, Point)}
    promises = []
    for name, (stage, n, what, must) in MUST.items():
        if point := measured.get((stage, n)):
            promises.append((name, point.kept / n if what == "kept" else point.cost, must))
    large = [point for point in found if point.stage == MASK and point.n >= 10**5]
    if law := points.fit_all(large).get(MASK):
        promises.append(("mask_step_exponent", law.exponent, MUST_OF_MASK))
    if speeds:
        promises.append(("embedding_of_plain_throughput", speeds["here"] / speeds["plain"], MUST_OF_EMBEDDING))
    rows += [
        {"key": f"growth_must/{name}", "value": laws.short(value), "must": must, "wish": None}
        for name, value, must in promises
    ]
    limits = {name: stage.limit for name, stage in of.items()}
    for line in laws.sensible(points.fit_all(found), points.fit_all(found, "peak", 2**22), limits, stages.MEMORY):
        stage = line.pop("stage")
        facts = {"stage": stage, "by": line.pop("by"), "limit": of[stage].why, "extrapolated": line.pop("extrapolated")}
        rows += [
            {"key": f"growth_law/{stage}/{name.replace(' ', '_')}", "value": float(f"{value:.4g}"), **facts}
            for name, value in line.items()
            if value is not None and np.isfinite(value)
        ]
    return rows


def main(
    data: str = "demo", scale: str = "laptop", largest: float = 1e7, budget: float = 120, memory: float = 12
) -> None:
    """Measure all stages up to so many items, with so many seconds and GiB for a point.

    data: demo, or a folder: the catalogue that the others are like, on which chapters 01 and 02 have run.
    """
    of, sizes = stages.stages_for(sample_of(data, scale)), points.half_decades(1000, largest)
    shelf, name = store.Store("random", "bench", fingerprint=""), dataset.load(data).name
    found: list[Point | LeftOut] = []
    patience = 60 + 5 * budget

    def measure(stage: str, n: int) -> Point:
        try:
            return alone(one, stage, n, data, scale, timeout=patience)
        except (TimeoutError, MemoryError, BrokenProcessPool):  # a cost beyond all bounds ends the walk of this stage
            return Point(stage, n, *[float("inf")] * 4)
        except RuntimeError as error:
            if "memory" not in str(error):  # torch's word for a MemoryError
                raise
            return Point(stage, n, *[float("inf")] * 4)

    def record(speeds: dict[str, float]) -> list[dict]:
        rows = rows_of(found, speeds, of)
        shelf.record("growth", [row | {"like": name} for row in rows])
        return rows

    walk = points.walk(of, sizes, measure, budget, memory * points.GIB)
    for point in tqdm(walk, desc="points", total=len(of) * len(sizes)):
        is_done = isinstance(point, LeftOut) or np.isfinite(point.wall)
        found.append(point if is_done else LeftOut(point.stage, point.n, patience, "did not end"))
        record({})
    rows = record(alone(embedding_in_turns, data, scale))
    print(pd.DataFrame(rows)[["key", "value"]].to_string(index=False), store.hardware(), sep="\n")


if __name__ == "__main__":
    typer.run(main)
