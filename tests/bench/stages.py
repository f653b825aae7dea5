"""Speed and memory of the stages, side by side in one run; `make bench DATA=... SCALE=...` has the same data.

Times are the best of a few repeats on an otherwise idle machine; compare ratios, not absolute times. The model is
untrained: its speed does not depend on its weights.
"""

import argparse
import resource
import sys
import time

import numpy as np
import pandas as pd
import torch

from semid_lib.data import dataset
from semid_lib.decoding import trie
from semid_lib.ids import embed, quantize, semantic_ids
from semid_lib.next_item import baselines, timeline
from semid_lib.serving.recommender import Recommender
from semid_lib.workbench import store

BEAM_WIDTHS = (10, 50, 200, 1000)


def best_of(work, repeats: int = 3) -> tuple[float, object]:
    """Seconds of the fastest repeat, and what the work returned."""
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        result = work()
        seconds.append(time.perf_counter() - started)
    return min(seconds), result


def measure(source: str, n_users: int) -> list[dict]:
    """One row per stage: key, value, unit."""
    rows = []

    def note(key: str, value: float, unit: str) -> None:
        rows.append({"key": f"bench/{key}", "value": round(value, 4), "unit": unit})

    seconds, shop = best_of(lambda: dataset.load(source))
    note("load", seconds, "s")
    texts = embed.item_texts(shop.items)
    loading, _ = best_of(lambda: embed.embed(texts[:1]), 2)
    seconds, _ = best_of(lambda: embed.embed(texts[:1024]), 1)
    note("embed/load_model", loading, "s")
    note("embed", len(texts[:1024]) / (seconds - loading), "texts/s")
    vectors = np.random.default_rng(0).standard_normal((len(shop.items), 384)).astype(np.float32)
    size = quantize.suggest_codebook_size(len(vectors))
    seconds, result = best_of(lambda: quantize.fit_residual_kmeans(vectors, 3, size), 1)
    note("residual_kmeans_fit", seconds, "s")
    seconds, _ = best_of(lambda: quantize.encode(vectors, result.codebooks))
    note("encode", len(vectors) / seconds, "items/s")
    ids = semantic_ids.SemanticIDs.from_codes(result.codes, size)
    note("trie_build", best_of(lambda: trie.PrefixTrie.build(ids.unique))[0], "s")
    if shop.histories is not None:
        split = dataset.leave_one_out(shop.histories)
        note("item_knn_fit", best_of(lambda: baselines.ItemKNN(split.train, len(vectors)), 1)[0], "s")
        histories = split.test.histories.select(np.arange(min(n_users, len(split.test.targets))))
        config = timeline.TimelineConfig(sizes=ids.sizes, text_dim=384, n_items=len(ids))
        torch.manual_seed(0)
        recommender = Recommender(timeline.Timeline(config, ids.unique, vectors), ids, shop.items)
        for width in BEAM_WIDTHS:
            seconds, _ = best_of(lambda width=width: recommender.rank(histories, 10, beam_width=width))
            note(f"recommend/beam_{width}", 1000 * seconds / len(histories), "ms a user")
        one = histories.select([0])
        note("recommend/one_user", 1000 * best_of(lambda: recommender.rank(one, 10), 20)[0], "ms")
    note("peak_memory", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, "GiB")
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default="demo", help="demo, or the folder of a data set")
    parser.add_argument("--users", type=int, default=500)
    options = parser.parse_args()
    shop = dataset.load(options.data)
    rows = measure(options.data, options.users)
    store.Store(shop.name, "bench", shop.fingerprint).record("stages", rows)
    print(f"{shop.name}: {len(shop.items):,} items; {store.hardware()}; {torch.get_num_threads()} thread(s)")
    print(pd.DataFrame(rows).to_string(index=False))
    return 0


if __name__ == "__main__":
    sys.exit(main())
