"""How long does `semid catalogue FOLDER add` take for 1,000 items? An untrained model of a large catalogue.

    python tests/bench/catalogue.py DATA FOLDER [N_NEW]

DATA is a data folder, such as Home Depot's 54,667 titles. Encoding all of them would take longer than all else, so the
vectors are random, but for the few that the change encodes again to compare. The new items are made of words of the
catalogue's titles. The time is that of the whole command, imports, encoder and checks of the folder included.
"""

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch

from semid_lib.data import dataset
from semid_lib.ids import assignment, embed, quantize
from semid_lib.ids import tokenizer as tokenizers
from semid_lib.next_item.timeline import Timeline, TimelineConfig
from semid_lib.search.hybrid_ranker import HybridRanker, HybridRankerConfig, HybridSearch
from semid_lib.search.retrieval import BM25
from semid_lib.serving.recommender import Recommender


def make(data: str, folder: Path) -> None:
    """Save an untrained recommender of the whole catalogue."""
    items = dataset.load(data).items
    rng, n = np.random.default_rng(0), len(items)
    vectors = rng.normal(size=(200, 384))[rng.integers(200, size=n)] + 0.7 * rng.normal(size=(n, 384))
    vectors = embed.normalize(vectors.astype(np.float32))
    looked_at = np.arange(n)[:: n // tokenizers._SAMPLE][: tokenizers._SAMPLE]
    vectors[looked_at] = embed.normalize(embed.embed(embed.item_texts(items.iloc[looked_at])))
    few = quantize.fit_residual_kmeans(vectors[::5], 3, 512, n_iterations=3)
    kmeans = quantize.ResidualQuantizer(few.encode(vectors), few.codebooks)
    ids, _ = assignment.resolve_collisions(kmeans.codes, vectors, kmeans)
    torch.manual_seed(0)
    model = Timeline(TimelineConfig(ids.sizes, 384, n), ids.unique, vectors)
    ranker = HybridRanker(HybridRankerConfig(ids.sizes, 384, word_weight=0.05), ids.unique, vectors)
    search = HybridSearch(ranker, BM25(embed.item_texts(items)))
    tokenizer = tokenizers.ItemTokenizer(kmeans, n)
    Recommender(model, ids, items, search, tokenizer=tokenizer).save_pretrained(folder)


def main(data: str, folder: str, n_new: str = "1000") -> None:
    place = Path(folder)
    if not (place / "config.json").is_file():
        make(data, place)
    titles, rng = Recommender.from_pretrained(place).items["title"].tolist(), np.random.default_rng()
    first = time.time_ns() // 10**6
    words = [" ".join(rng.permutation(titles[rng.integers(len(titles))].split())) for _ in range(int(n_new))]
    lines = (json.dumps({"item_id": first + at, "title": title}) for at, title in enumerate(words))
    (place.parent / "new.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    for words in (("add", str(place.parent / "new.jsonl")), ("remove", str(first)), ("status",), ("rollback",)):
        started = time.perf_counter()
        command = [sys.executable, "-m", "semid_lib.cli", "catalogue", folder, *words]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        print(f"{words[0]}: {time.perf_counter() - started:.1f} s; {(done.stdout + done.stderr).strip()}", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
