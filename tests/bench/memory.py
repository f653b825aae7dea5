"""Whether a large catalogue fits into a small machine: peak of resident memory from its files to recommendations.

Each stage has a process of its own, as chapters have, and takes what the ones before it left on disk. Items are those
of the demo shop again and again, vectors are made to be like those of `--data` (`semid_lib.studies.growth`). The
model is not trained, and of the texts the encoder reads the first few only; neither changes what has to be in memory.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

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
            ids = range(start, min(start + len(shop), n))
            titles = [f"{title}, {at}" for at, title in zip(ids, shop["title"].to_pylist(), strict=False)]
            part = shop.slice(0, len(ids))
            for name, column in (("item_id", ids), ("title", titles)):
                at = part.column_names.index(name)
                part = part.set_column(at, shop.schema.field(at), pa.array(column, shop.schema.field(at).type))
            file.write_table(part)


def shelf_in(where: Path) -> store.Store:
    return store.Store("shop", "laptop", "", where / "artefacts")


def read(options: argparse.Namespace) -> None:
    """Reading the item table in batches: every column, checked, some thousand rows at a time."""
    for items in table.batches(options.where / "shop" / "items.parquet"):
        embed.item_texts(items)


def vectors(options: argparse.Namespace) -> None:
    """Texts and embeddings: batches of texts in, vectors on disk."""
    encoder, shop = embed.Encoder(), dataset.load(options.data)
    like = catalogue.sample(shop, store.Store(shop.name, options.scale, shop.fingerprint))

    def made() -> Iterator[np.ndarray]:
        at = 0
        for items in table.batches(options.where / "shop" / "items.parquet", ["brand", "description", "categories"]):
            texts = embed.item_texts(items)
            if not at:
                encoder(texts[:512])
            yield catalogue.vectors_like(like, len(texts), seed=at)
            at += len(texts)

    shelf_in(options.where).save_batches("embeddings", "vectors", made())


def semantic_ids(options: argparse.Namespace) -> None:
    """Semantic IDs: residual k-means on mapped vectors, collisions resolved."""
    from semid_lib.ids.assignment import resolve_collisions

    mapped = shelf_in(options.where).load("embeddings")["vectors"]
    quantizer = quantize.fit_residual_kmeans(mapped, 3, quantize.suggest_codebook_size(len(mapped)), n_iterations=5)
    resolve_collisions(quantizer.codes, mapped, quantizer)[0].save(options.where / "ids.npz")


def model(options: argparse.Namespace, then: Callable = lambda recommender: None) -> None:
    """Trie, model and saving: a timeline model of the next item."""
    import torch

    from semid_lib.ids.semantic_ids import SemanticIDs
    from semid_lib.next_item.timeline import Timeline, TimelineConfig
    from semid_lib.serving.recommender import Recommender

    items = dataset.load(str(options.where / "shop"), columns=[]).items
    ids, mapped = SemanticIDs.load(options.where / "ids.npz"), shelf_in(options.where).load("embeddings")["vectors"]
    torch.manual_seed(0)
    config = TimelineConfig(ids.sizes, mapped.shape[1], len(items))
    recommender = Recommender(Timeline(config, ids.unique, torch.from_numpy(mapped)), ids, items)
    recommender.save_pretrained(options.where / "recommender")
    then(recommender)


def answer(recommender) -> None:
    ids = recommender.items["item_id"].to_numpy()
    rng = np.random.default_rng(0)
    recommender.recommend([rng.choice(ids, 10).tolist() for _ in range(stages.N_USERS)], k=stages.K)


def model_and_answer(options: argparse.Namespace) -> None:
    """The same, and answers by the model that was just built."""
    model(options, answer)


def load_and_answer(options: argparse.Namespace) -> None:
    """Loading what was saved, and answering."""
    from semid_lib.serving.recommender import Recommender

    answer(Recommender.from_pretrained(options.where / "recommender"))


STAGES: dict[str, Callable[[argparse.Namespace], None]] = {
    "reading the item table": read,
    "texts and embeddings": vectors,
    "semantic IDs": semantic_ids,
    "trie, model and saving": model,
    "the same, and answering": model_and_answer,
    "loading and answering": load_and_answer,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="demo", help="demo, or a folder: what the vectors are like")
    parser.add_argument("--scale", default="laptop", help="at which chapters 01 and 02 have run on it")
    parser.add_argument("--items", type=int, default=10**6)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--where", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        STAGES[options.one](options)
        print(stages.memory("VmHWM"))
        return 0
    rows = []
    with tempfile.TemporaryDirectory() as found:
        where = Path(found)
        (where / "shop").mkdir()
        write_items(where / "shop" / "items.parquet", options.items)
        for name in STAGES:
            started = time.perf_counter()
            command = [sys.executable, __file__, "--data", options.data, "--scale", options.scale]
            command += ["--one", name, "--where", found]
            said = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            peak, seconds = float(said.stdout.split()[-1]) / points.GIB, time.perf_counter() - started
            must = MUST if options.items == 10**6 else None
            rows.append({"key": f"memory/{name}, GiB", "value": round(peak, 3), "must": must, "wish": None})
            rows[-1] |= {"n": options.items, "wall": round(seconds, 1)}
            print(f"{name:28} {peak:6.2f} GiB {seconds:6.0f} s", flush=True)
    store.Store("random", "bench", "").record("memory", rows)
    print(f"{options.items:,} items, {store.hardware()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
