"""How time and memory grow with the catalogue, stage by stage: every point in a process of its own, on one thread.

What a catalogue of n items looks like is taken from a real one (`semid_lib.studies.growth`). Rows are
written after every point; a second run at the same commit on the same machine keeps the points that are there. A
point that would take longer than the budget or more memory than is allowed, by the curve so far, is
left out, and a row says so.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm import tqdm

from semid_lib.studies.growth import catalogue, laws
from semid_lib.studies.growth import points as growth
from semid_lib.workbench import store

ROOT = Path(__file__).resolve().parent.parent.parent
MUST = {
    "trie_of_1e6_build_s": "< 5",
    "trie_of_1e6_bytes_an_item": "<= 40",
    "mask_step_400_beams_at_1e6_ms": "< 5",
    "trie_of_1e7_build_s": "< 60",
    "trie_of_1e7_open_s": "< .1",
    "mask_step_exponent": "< .2",  # caches leave something; candidates grow until every prefix has many children
    "embedding_of_plain_throughput": ">= .9",
}


def one(stage: str, n: int, like) -> dict:
    """A point, measured in this process."""
    import resource

    import torch

    from semid_lib.studies.growth import stages as growth_stages

    torch.set_num_threads(1)
    # an allocation beyond this fails here, instead of the kernel choosing somebody to end
    resource.setrlimit(resource.RLIMIT_DATA, (20 * growth.GIB, 20 * growth.GIB))
    return growth_stages.measure(stage, n, like)._asdict()


def embedding_in_turns(texts: list[str], turns: int = 3) -> dict:
    """`embed.embed` beside plain sentence-transformers on the same texts, in turns: texts a second, medians."""
    from semid_lib.ids import embed

    plain = embed.Encoder()._model
    seconds: dict[str, list[float]] = {"loading": [], "here": [], "plain": []}
    work = {
        "loading": lambda: embed.embed(texts[:1]),
        "here": lambda: embed.embed(texts),
        "plain": lambda: plain.encode(texts, batch_size=64, show_progress_bar=False),
    }
    for _ in range(turns):
        for name, run in work.items():
            started = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - started)
    loading, here, theirs = (float(np.median(seconds[name])) for name in ("loading", "here", "plain"))
    return {"here": len(texts) / (here - loading), "plain": len(texts) / theirs}


def child(options, *more: str, timeout: float) -> dict | None:
    """What this script prints as JSON when run again with other options; None if it did not come to an end."""
    command = [sys.executable, __file__, "--data", options.data, "--scale", options.scale, *more]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    try:
        said = subprocess.run(command, check=True, capture_output=True, text=True, timeout=timeout, env=environment)
    except subprocess.TimeoutExpired:
        return None
    except subprocess.CalledProcessError as error:
        if "MemoryError" in error.stderr or "not enough memory" in error.stderr or error.returncode < 0:
            return None
        raise RuntimeError(f"{' '.join(more)} failed:\n{error.stderr[-2000:]}") from error
    return json.loads(said.stdout.splitlines()[-1])


def kept_points(shelf: store.Store, like: str) -> tuple[list[growth.Point], list[dict]]:
    """Points, and the rows about embedding, of an earlier run that this one may go on from.

    like: the data set that its catalogues were like.
    """
    origin = shelf.provenance() | {"like": like}
    rows = [row for row in shelf.rows() if row["key"].startswith("growth_")]
    same = [
        row for row in rows if all(row.get(name) == origin[name] for name in ("commit", "dirty", "hardware", "like"))
    ]
    if len(same) < len(rows):
        print(f"{len(rows) - len(same)} rows of another commit, machine or data set are measured again")
    points = [point for point in growth.from_rows(same) if isinstance(point, growth.Point)]
    turns = [
        {name: row[name] for name in ("key", "value", "unit")}
        for row in same
        if row["key"].startswith("growth_embedding/")
    ]
    return points, [row | {"key": row["key"].replace("/random/", "/", 1)} for row in turns]


def must_rows(points: list, turns: list[dict]) -> list[dict]:
    """What the bench promises, as far as it was measured."""
    at = {(point.stage, point.n): point for point in points if isinstance(point, growth.Point)}
    found = {}

    def note(name: str, stage: str, n: int, value) -> None:
        if (stage, n) in at:
            found[name] = value(at[stage, n])

    note("trie_of_1e6_build_s", "trie, build", 10**6, lambda point: point.cost)
    note("trie_of_1e6_bytes_an_item", "trie, build", 10**6, lambda point: point.kept / point.n)
    note("mask_step_400_beams_at_1e6_ms", "mask step, 400 beams", 10**6, lambda point: point.cost)
    note("trie_of_1e7_build_s", "trie, build", 10**7, lambda point: point.cost)
    note("trie_of_1e7_open_s", "trie, open", 10**7, lambda point: point.cost)
    large = [point for point in points if point.stage == "mask step, 400 beams" and point.n >= 10**5]
    if law := growth.fit_all(large).get("mask step, 400 beams"):
        found["mask_step_exponent"] = law.exponent
    speeds = {row["key"].split("/")[-1]: row["value"] for row in turns}
    if turns:
        found["embedding_of_plain_throughput"] = speeds["here"] / speeds["plain"]
    return [
        {"key": f"growth_must/{name}", "value": float(f"{value:.6g}"), "must": MUST[name], "wish": None}
        for name, value in found.items()
    ]


def fit_rows(points: list, stages: dict, memory: float) -> list[dict]:
    """Exponents with intervals, bends, and where each stage stops being sensible."""
    limits = {name: stage.limit for name, stage in stages.items()}
    lines = laws.sensible(growth.fit_all(points), growth.fit_all(points, "peak", 2**22), limits, memory)
    made = []
    for line in lines:
        stage, by = line.pop("stage"), line.pop("by")
        facts = {"stage": stage, "by": by, "limit": stages[stage].why, "extrapolated": line.pop("extrapolated")}
        made += [
            {"key": f"growth_law/{stage}/{name.replace(' ', '_')}", "value": float(f"{value:.4g}"), **facts}
            for name, value in line.items()
            if value is not None and np.isfinite(value)
        ]
    return made


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default="demo", help="demo, or a folder: the catalogue that the others are like")
    parser.add_argument("--scale", default="laptop", help="at which chapters 01 and 02 have run on it")
    parser.add_argument("--largest", type=float, default=1e7, help="items")
    parser.add_argument("--budget", type=float, default=120, help="seconds that a point may take, its inputs included")
    parser.add_argument("--memory", type=float, default=12, help="GiB that a point may take")
    parser.add_argument("--stages", nargs="*", help="by default all of growth_stages.STAGES")
    parser.add_argument("--fresh", action="store_true", help="measure again what is there")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--items", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()

    from semid_lib.data import dataset
    from semid_lib.studies.growth import stages as growth_stages

    shop = dataset.load(options.data)
    like = catalogue.sample(shop, store.Store(shop.name, options.scale, shop.fingerprint))
    if options.one == "embedding in turns":
        texts = [f"{at} {text}" for at, text in enumerate((like.texts * 2)[: options.items])]
        print(json.dumps(embedding_in_turns(texts)))
        return 0
    if options.one:
        print(json.dumps(one(options.one, options.items, like)))
        return 0
    return run(options, growth_stages, like, shop.name)


def run(options, growth_stages, like, name: str) -> int:
    stages = growth_stages.stages_for(like)
    wanted = options.stages or list(stages)
    sizes = growth.half_decades(1000, options.largest)
    shelf = store.Store("random", "bench", fingerprint="")
    known, turns = ([], []) if options.fresh else kept_points(shelf, name)
    units = {name: stage.unit for name, stage in stages.items()}
    found: list = [point for point in known if point.stage not in wanted]

    def record() -> None:
        rows = growth.as_rows(found, units) + turns + must_rows(found, turns)
        rows += fit_rows(found, stages, growth_stages.MEMORY)
        shelf.record("growth", [row | {"like": name} for row in rows])

    def measure(stage: str, n: int) -> growth.Point:
        bar.set_description(f"{stage}, {n:,}")
        said = child(options, "--one", stage, "--items", str(n), timeout=60 + 5 * options.budget)
        if said is None:  # a cost beyond all bounds ends the walk of this stage
            nothing = float("inf")
            return growth.Point(stage, n, nothing, nothing, nothing, nothing)
        return growth.Point(**said)

    with tqdm(desc="points", total=len(wanted) * len(sizes), file=sys.stderr) as bar:
        for point in growth.walk(wanted, sizes, measure, options.budget, options.memory * growth.GIB, known):
            if isinstance(point, growth.Point) and not np.isfinite(point.wall):
                found.append(growth.LeftOut(point.stage, point.n, 60 + 5 * options.budget, "did not end"))
            else:
                found.append(point)
            bar.update()
            record()
    if not turns and "embedding" in wanted:
        said = child(options, "--one", "embedding in turns", "--items", "1024", timeout=3600)
        turns += [
            {"key": f"growth_embedding/texts_a_second/{name}", "value": v, "unit": "1/s"} for name, v in said.items()
        ]
    record()
    show(found, turns, stages, growth_stages.MEMORY)
    return 0


def show(found: list, turns: list[dict], stages: dict, memory: float) -> None:
    measured = pd.DataFrame([point for point in found if isinstance(point, growth.Point)])
    measured["bytes an item"] = measured.pop("kept") / measured["n"]
    measured["peak MiB"] = measured.pop("peak") / 2**20
    print(measured.to_string(index=False, float_format="{:.4g}".format))
    for point in found:
        if isinstance(point, growth.LeftOut):
            print(f"left out, {point.why}: {point.stage} at {point.n:,}, expected {point.expected:.3g}")
    for rows in (fit_rows(found, stages, memory), turns, must_rows(found, turns)):
        print(pd.DataFrame(rows).to_string(index=False))
    print(store.hardware())


if __name__ == "__main__":
    sys.exit(main())
