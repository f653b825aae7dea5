"""Quantizers side by side in one run: distortion, seconds, utilization and collisions, and what unique IDs cost.

The vectors are those that chapter 01 left for DATA at SCALE; 100,000 random vectors show time and memory at size.
"""

import argparse
import resource
import sys
import time

import faiss
import numpy as np
import pandas as pd

from semid_lib.data import dataset
from semid_lib.ids import assignment, codebooks, embed, quantize, rqvae
from semid_lib.workbench import store

N_LEVELS = 3


def timed(work):
    """What the work returned, and its seconds."""
    started = time.perf_counter()
    result = work()
    return result, time.perf_counter() - started


def faiss_greedy(vectors: np.ndarray, n_bits: int):
    """faiss's own residual quantizer without a beam: codes and reconstruction."""
    peer = faiss.ResidualQuantizer(vectors.shape[1], N_LEVELS, n_bits)
    peer.max_beam_size = 1
    peer.train(vectors)
    packed = peer.compute_codes(vectors)
    return packed[:, :N_LEVELS].astype(np.int64) if n_bits == 8 else None, peer.decode(packed)


def line(name: str, vectors, codes, decoded, seconds: float, size: int) -> dict:
    return {
        "method": name,
        "distortion": codebooks.distortion(vectors, decoded),
        "seconds": seconds,
        "utilization_min": np.nan if codes is None else codebooks.utilization(codes, size).min(),
        "collision_rate": np.nan if codes is None else codebooks.collision_rate(codes),
    }


def compare(vectors: np.ndarray) -> list[dict]:
    size = quantize.suggest_codebook_size(len(vectors))
    lines = []
    kmeans, seconds = timed(lambda: quantize.fit_residual_kmeans(vectors, N_LEVELS, size))
    lines.append(line("residual k-means", vectors, kmeans.codes, kmeans.decode(kmeans.codes), seconds, size))
    codes, more = timed(lambda: kmeans.encode(vectors, beam_width=8))
    lines.append(line("residual k-means, beam 8", vectors, codes, kmeans.decode(codes), seconds + more, size))
    (codes, decoded), seconds = timed(lambda: faiss_greedy(vectors, int(np.log2(size))))
    lines.append(line("faiss.ResidualQuantizer, greedy", vectors, codes, decoded, seconds, size))
    for policy in ("reassign", "sinkhorn"):
        (ids, report), seconds = timed(lambda p=policy: assignment.resolve_collisions(kmeans.codes, vectors, kmeans, p))
        decoded = kmeans.decode(ids.codes)
        lines.append(line(f"k-means codes, then {policy}", vectors, ids.codes, decoded, seconds, size))
        lines[-1]["left_over"] = report.left_over
    config = rqvae.RQVAEConfig(n_levels=N_LEVELS, codebook_size=size)
    learned, seconds = timed(lambda: rqvae.fit_rqvae(vectors, config))
    lines.append(line("RQ-VAE", vectors, learned.codes, learned.decode(learned.codes), seconds, size))
    return lines


def at_size(n: int, dim: int = 384) -> dict:
    """Time and memory above the data for n random vectors, 3 x 256; run it before anything else takes memory."""
    vectors = np.random.default_rng(0).standard_normal((n, dim)).astype(np.float32)
    quantize.fit_residual_kmeans(vectors[:2000], 1, 16)  # loads faiss
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    _, seconds = timed(lambda: quantize.fit_residual_kmeans(vectors, N_LEVELS, 256))
    gib = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**20
    return {"method": f"residual k-means, {n:,} x {dim}", "seconds": seconds, "gib_above_data": gib}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default="demo", help="demo, or the folder of a data set")
    parser.add_argument("--scale", default="laptop")
    options = parser.parse_args()
    large = at_size(100_000)
    shop = dataset.load(options.data)
    shelf = store.Store(shop.name, options.scale, shop.fingerprint)
    lines = [*compare(embed.normalize(shelf.load("embeddings")["vectors"])), large]
    rows = [
        {"key": f"bench/{one['method']}/{what}", "value": round(float(value), 5)}
        for one in lines
        for what, value in one.items()
        if what != "method" and np.isfinite(value)
    ]
    store.Store(shop.name, "bench", shop.fingerprint).record("quantizers", rows)
    print(f"{shop.name}: {len(shop.items):,} items; {store.hardware()}")
    print(pd.DataFrame(lines).round(4).to_string(index=False, na_rep=""))
    return 0


if __name__ == "__main__":
    sys.exit(main())
