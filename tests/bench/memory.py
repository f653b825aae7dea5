"""Whether a large catalogue fits into a small machine: peak of resident memory from its files to recommendations.

Each stage has a process of its own, as chapters have, and takes what the ones before it left on disk. Items are those
of the demo shop again and again, vectors are made to be like those of `--data` (`semid_lib.studies.growth`). The
model is not trained, and of the texts the encoder reads the first few only; neither changes what has to be in memory.
"""

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import typer
from measuring import alone, sample_of

from semid_lib.data import dataset, table
from semid_lib.ids import embed, quantize
from semid_lib.studies.growth import catalogue, points, stages
from semid_lib.workbench import store

MUST = "<= 4"  # GiB, for a million items


def write_items(path: Path, n: int) -> None:
    """A Parquet file of n items with the columns and texts of the demo shop, numbered."""
    import pyarrow as pa
    from pyarrow import parquet

    shop = pa.Table.from_pandas(dataset.load("demo").items, preserve_index=False)
    with parquet.ParquetWriter(path, shop.schema) as file:
        for start in range(0, n, len(shop)):
            part = shop.slice(0, min(len(shop), n - start)).to_pydict()
            part["item_id"] = list(range(start, start + len(part["item_id"])))
            part["title"] = [f"{title}, {start + at}" for at, title in enumerate(part["title"])]
            file.write_table(pa.table(part, schema=shop.schema))


def kept_in(where: Path) -> store.Store:
    return store.Store("shop", "laptop", "", where / "artefacts")


def read(where: Path, *_) -> None:
    """Reading the item table in batches: every column, checked, some thousand rows at a time."""
    for items in table.batches(where / "shop" / "items.parquet"):
        embed.item_texts(items)


def vectors(where: Path, data: str, scale: str) -> None:
    """Texts and embeddings: batches of texts in, vectors on disk."""
    encoder, like = embed.Encoder(), sample_of(data, scale)

    def made() -> Iterator[np.ndarray]:
        at = 0
        for items in table.batches(where / "shop" / "items.parquet", ["brand", "description", "categories"]):
            texts = embed.item_texts(items)
            if not at:
                encoder(texts[:512])
            yield catalogue.vectors_like(like, len(texts), seed=at)
            at += len(texts)

    kept_in(where).save_batches("embeddings", "vectors", made())


def semantic_ids(where: Path, *_) -> None:
    """Semantic IDs: residual k-means on mapped vectors, collisions resolved."""
    from semid_lib.ids.assignment import resolve_collisions

    mapped = kept_in(where).load("embeddings")["vectors"]
    quantizer = quantize.fit_residual_kmeans(mapped, 3, quantize.suggest_codebook_size(len(mapped)), n_iterations=5)
    resolve_collisions(quantizer.codes, mapped, quantizer)[0].save(where / "ids.npz")


def model(where: Path, *_):
    """Trie, model and saving: a timeline model of the next item."""
    import torch

    from semid_lib.ids.semantic_ids import SemanticIDs
    from semid_lib.next_item.timeline import Timeline, TimelineConfig
    from semid_lib.serving.recommender import Recommender

    items = dataset.load(str(where / "shop"), columns=[]).items
    ids, mapped = SemanticIDs.load(where / "ids.npz"), kept_in(where).load("embeddings")["vectors"]
    torch.manual_seed(0)
    config = TimelineConfig(ids.sizes, mapped.shape[1], len(items))
    recommender = Recommender(Timeline(config, ids.unique, torch.from_numpy(mapped)), ids, items)
    recommender.save_pretrained(where / "recommender")
    return recommender


def answer(recommender) -> None:
    ids = recommender.items["item_id"].to_numpy()
    rng = np.random.default_rng(0)
    recommender.recommend([rng.choice(ids, 10).tolist() for _ in range(stages.N_USERS)], k=stages.K)


def model_and_answer(where: Path, *_) -> None:
    """The same, and answers by the model that was just built."""
    answer(model(where))


def load_and_answer(where: Path, *_) -> None:
    """Loading what was saved, and answering."""
    from semid_lib.serving.recommender import Recommender

    answer(Recommender.from_pretrained(where / "recommender"))


STAGES = {
    "reading the item table": read,
    "texts and embeddings": vectors,
    "semantic IDs": semantic_ids,
    "trie, model and saving": model,
    "the same, and answering": model_and_answer,
    "loading and answering": load_and_answer,
}


def peak(name: str, *arguments) -> float:
    """GiB that this process took at most, after a stage."""
    STAGES[name](*arguments)
    return stages.memory("VmHWM") / points.GIB


def main(data: str = "demo", scale: str = "laptop", items: int = 10**6) -> None:
    """Measure all stages on so many items. data: demo, or a folder, with chapters 01 and 02: what vectors are like."""
    rows = []
    with tempfile.TemporaryDirectory() as found:
        (Path(found) / "shop").mkdir()
        write_items(Path(found) / "shop" / "items.parquet", items)
        for name in STAGES:
            started = time.perf_counter()
            gib = alone(peak, name, Path(found), data, scale)
            seconds = time.perf_counter() - started
            facts = {"must": MUST if items == 10**6 else None, "wish": None, "n": items, "wall": round(seconds, 1)}
            rows.append({"key": f"memory/{name}, GiB", "value": round(gib, 3), **facts})
            print(f"{name:28} {gib:6.2f} GiB {seconds:6.0f} s", flush=True)
    store.Store("random", "bench", "").record("memory", rows)
    print(f"{items:,} items, {store.hardware()}")


if __name__ == "__main__":
    typer.run(main)
