"""What Ray costs: the same work in this process and in one worker, at equal work, and the seconds until it begins.

Encoding 10^5 vectors of 384 dimensions into codes, batch recommendation for 10^5 histories, and embedding texts. Time
is taken from when the first batch is finished, where it was made, until the last answer is here: `overhead` is Ray's
over this process's, less one; of work that takes seconds, the median of five turns. `start` is how much later Ray
finishes its first batch; it is paid once for each `map`, and what the cluster itself takes to start, once a run.
"""

import time
from functools import partial
from pathlib import Path
from typing import Annotated

import numpy as np
import pyarrow as pa
import typer
from measuring import record

from semid_lib.data import dataset
from semid_lib.data.folder import open_store
from semid_lib.ids import embed, quantize, semantic_ids
from semid_lib.serving import batch_io, predict
from semid_lib.serving.recommender import Recommender
from semid_lib.workbench import workers

_TURNS, _SHORT = 5, 10.0  # turns, of what takes no longer in seconds
Work = tuple[workers.Load, list[pa.Table]]


def codes(n: int, dim: int = 384) -> Work:
    """Vectors at random under a residual quantizer of 3 x 256."""
    vectors = np.random.default_rng(0).standard_normal((n, dim)).astype(np.float32)
    quantizer = quantize.fit_residual_kmeans(vectors[:5000], 3, 256, n_iterations=5)
    together = max(1, min(semantic_ids._TOGETHER, n // 5))
    batches = [pa.table({"vector": workers.column(vectors[at : at + together])}) for at in range(0, n, together)]
    return partial(semantic_ids._encoder, quantizer), batches


def answers(n: int, folder: Path) -> Work:
    """Histories of 1 to 20 items at random."""
    recommender = Recommender.from_pretrained(folder)
    rng, item_ids = np.random.default_rng(0), np.array(list(map(str, recommender.item_ids.values)))
    histories = [
        batch_io.Record(at, 1, "", str(at), rng.choice(item_ids, rng.integers(1, 21)).tolist()) for at in range(n)
    ]
    together = max(1, min(predict.BLOCK, n // 8))
    batches = [predict._as_table(histories[at : at + together]) for at in range(0, n, together)]
    return predict._loader(recommender, 10, False), batches


def vectors(n: int, shop: dataset.Dataset) -> Work:
    """The texts of items, again and again."""
    texts = embed.item_texts(shop.items)
    texts = sorted((texts * (n // len(texts) + 1))[:n], key=len, reverse=True)
    together = max(1, min(embed._TOGETHER, n // 8))
    batches = [pa.table({"text": texts[at : at + together]}) for at in range(0, n, together)]
    return partial(embed._loaded, embed.DEFAULT_MODEL, 64), batches


def stamped(load: workers.Load):
    """The function, with the time at which it had finished beside its answers."""
    function = load()

    def stamp(batch: pa.Table) -> pa.Table:
        answer = function(batch)
        return answer.append_column("finished", pa.array([time.time()] * len(answer)))

    return stamp


def timed(run: workers.Run, work: Work) -> tuple[pa.Table, float, float]:
    """The answers, seconds until the first batch was finished, and from then until the last answer was here."""
    load, batches = work
    started = time.time()
    found = pa.concat_tables(run(partial(stamped, load), batches))
    first = found["finished"][0].as_py()
    return found.drop_columns(["finished"]), first - started, time.time() - first


def compare(name: str, work: Work, cluster: workers.Cluster) -> dict:
    turns = []
    while not turns or (len(turns) < _TURNS and turns[0][1] < _SHORT):
        alone, *times_alone = timed(workers.here, work)
        shared, *times_shared = timed(cluster.map, work)
        if not alone.equals(shared):
            raise AssertionError(f"{name}: the worker's answers differ")
        turns.append((*times_alone, *times_shared))
    first_alone, seconds_alone, first_shared, seconds_shared = np.median(turns, axis=0)
    n = len(alone) - len(work[1][0])  # without the first batch
    return {
        "method": name,
        "rows": len(alone),
        "rows_a_second_here": n / seconds_alone,
        "rows_a_second_ray": n / seconds_shared,
        "overhead": seconds_shared / seconds_alone - 1,
        "start": first_shared - first_alone,
    }


def main(model: Annotated[Path, typer.Option()], data: str = "demo", rows: int = 100_000, texts: int = 8192) -> None:
    """Compare; model: folder of a recommender of the next item; data: what it was trained on."""
    started = time.perf_counter()
    with workers.Cluster(1) as cluster:
        lines = [{"method": "the cluster itself", "start": time.perf_counter() - started}]
        lines += [
            compare("encoding into IDs", codes(rows), cluster),
            compare("batch recommendation", answers(rows, model), cluster),
            compare("embedding", vectors(texts, dataset.load()), cluster),
        ]
    record(open_store(data, "bench"), "distributed", "ray", [*lines[1:], lines[0]])


if __name__ == "__main__":
    typer.run(main)
