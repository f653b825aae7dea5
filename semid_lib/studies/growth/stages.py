"""Every stage from text to answer, measured on a made catalogue of n items.

Models have random weights: their speed does not depend on them. Memory is the highest resident set of this process
above what it had before, which only Linux tells; measure in a process that did nothing else before.
"""

import itertools
import re
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch

from semid_lib.decoding import beam_search, scorers
from semid_lib.decoding.trie import PrefixTrie
from semid_lib.ids import assignment, embed, quantize, rqvae, semantic_ids
from semid_lib.next_item import baselines
from semid_lib.next_item.timeline import Timeline, TimelineConfig
from semid_lib.search import retrieval
from semid_lib.serving.recommender import Recommender
from semid_lib.studies.growth import catalogue
from semid_lib.studies.growth.points import GIB, Point
from semid_lib.workbench.training import seeded

N_USERS, BEAM_WIDTH, K = 8, 50, 10  # of an answer: users at once, beams of each, items for each
_WARM_UP = 60  # items on which everything is loaded and compiled before the first measurement of a stage


class Work(NamedTuple):
    """The timed part of a stage."""

    runs: tuple[Callable[[], Any], ...]  # of several the slowest counts
    kept: Callable[[Any], float]  # bytes, of what a run returns
    per: float = 1.0  # what the seconds are divided by


class Stage(NamedTuple):
    """A stage of the pipeline or a way to answer."""

    unit: str
    limit: float  # in that unit: a higher cost is too slow
    why: str  # the limit in words
    prepare: Callable[[catalogue.Sample, int, int], Work]  # sample, items, seed

    @property
    def is_answer(self) -> bool:
        """Whether it is done for each user, and not once for a catalogue."""
        return self.unit.startswith("ms")


DAY = 86_400.0
MEMORY = 24 * GIB  # more at once is too large, whatever the stage
STAGES: dict[str, Stage] = {}
_EPOCHS = rqvae.RQVAEConfig().n_epochs
_PER_USER = ("ms a user", 100.0, "100 ms a user")


def _stage(name: str, unit: str, limit: float, why: str) -> Callable:
    def register(prepare: Callable[[catalogue.Sample, int, int], Work]) -> Callable:
        STAGES[name] = Stage(unit, limit, why, prepare)
        return prepare

    return register


def stages_for(like: catalogue.Sample) -> dict[str, Stage]:
    """The stages that can be measured on a sample: all of `STAGES`, or those that need no histories."""
    return {name: stage for name, stage in STAGES.items() if like.histories or not name.startswith("item-kNN")}


_warm: set[str] = set()


def measure(stage: str, n: int, like: catalogue.Sample, seed: int = 0, seconds: float = 0.5) -> Point:
    """Measure a stage of `STAGES` on n items: the median of as many runs as fit in `seconds`, one at least.

    Raises ValueError for an unknown stage, and for histories that a sample does not have.
    """
    if stage not in STAGES:
        raise ValueError(f"stage {stage!r} is none of {', '.join(STAGES)}")
    made = STAGES[stage].prepare
    if stage not in _warm:
        for run in made(like, _WARM_UP, seed).runs:
            run()  # imports and compiles
        _warm.add(stage)
    before = memory("VmRSS")
    started = time.perf_counter()
    work = made(like, n, seed)
    if sys.platform == "linux":
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # VmHWM begins anew
    medians = []
    for run in work.runs:
        if STAGES[stage].is_answer:
            run()  # what is kept between answers is made at the first
        times: list[float] = []
        while not times or sum(times) < seconds:
            begun = time.perf_counter()
            result = run()
            times.append(time.perf_counter() - begun)
            if len(times) == 1:
                peak = memory("VmHWM") - before
                kept = float(work.kept(result))
            del result
        medians.append(float(np.median(times)))
    scale = 1000 if STAGES[stage].is_answer else 1
    return Point(stage, n, max(medians) / work.per * scale, max(peak, 0), kept, time.perf_counter() - started)


def memory(name: str) -> float:
    """Bytes of this process: VmRSS now, VmHWM at the highest. 0 where there is no /proc.

    Not `resource.getrusage`: its maximum cannot be set back, and a process inherits that of the one which started it.
    """
    if sys.platform != "linux":
        return 0.0
    status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    return 1024.0 * int(re.findall(rf"{name}:\s+(\d+)", status)[0])


@_stage("embedding", "s", DAY, "a day")
def _embedding(like: catalogue.Sample, n: int, seed: int) -> Work:
    encoder = embed.Encoder()
    texts = [f"{at} {like.texts[at % len(like.texts)]}" for at in range(n)]
    return Work((lambda: encoder(texts),), _bytes)


@_stage("residual k-means", "s", DAY, "a day")
def _residual_kmeans(like: catalogue.Sample, n: int, seed: int) -> Work:
    vectors, size = catalogue.vectors_like(like, n, seed), quantize.suggest_codebook_size(n)
    fit = partial(quantize.fit_residual_kmeans, vectors, 3, size, seed=seed)
    return Work((fit,), lambda fitted: _bytes(fitted.codes, fitted.codebooks))


@_stage("RQ-VAE, an epoch", "s", DAY / _EPOCHS, f"a day for {_EPOCHS} epochs")
def _rqvae(like: catalogue.Sample, n: int, seed: int) -> Work:
    config = rqvae.RQVAEConfig(codebook_size=quantize.suggest_codebook_size(n), n_epochs=1)
    fit = partial(rqvae.fit_rqvae, catalogue.vectors_like(like, n, seed), config, seed)
    return Work((fit,), lambda fitted: _bytes(fitted.codes, fitted.codebooks))


@_stage("collisions", "s", DAY, "a day")
def _collisions(like: catalogue.Sample, n: int, seed: int) -> Work:
    vectors, size = catalogue.vectors_like(like, n, seed), quantize.suggest_codebook_size(n)
    rough = quantize.fit_residual_kmeans(vectors[:40_000], 3, size, 3, seed)
    resolve = partial(assignment.resolve_collisions, rough.encode(vectors), vectors, rough)
    return Work((resolve,), lambda found: _bytes(found[0].codes, found[0].disambiguation_code))


def _bytes(*arrays: Any) -> float:
    return sum(array.nbytes for array in arrays)


def _ids(like: catalogue.Sample, n: int, seed: int) -> np.ndarray:
    return catalogue.made_ids(n, catalogue.zipf_exponents(like.codes, like.codebook_size), seed=seed)


def _trie(like: catalogue.Sample, n: int, seed: int) -> PrefixTrie:
    return PrefixTrie.build(_ids(like, n, seed))


@_stage("trie, build", "s", 3600.0, "an hour")
def _trie_build(like: catalogue.Sample, n: int, seed: int) -> Work:
    return Work((partial(PrefixTrie.build, _ids(like, n, seed)),), lambda trie: trie.n_bytes)


@_stage("trie, open", "s", 1.0, "a second")
def _trie_open(like: catalogue.Sample, n: int, seed: int) -> Work:
    folder = tempfile.TemporaryDirectory()
    path = Path(folder.name) / "trie.safetensors"
    _trie(like, n, seed).save(path)

    def opened(_=folder):  # the folder lives as long as this function
        return PrefixTrie.open(path)

    return Work((opened,), lambda trie: trie.n_bytes)


@_stage("item-kNN, fit", "s", DAY, "a day")
def _item_knn_fit(like: catalogue.Sample, n: int, seed: int) -> Work:
    return Work((partial(baselines.ItemKNN, catalogue.histories_like(like, n), n),), _sparse_bytes)


@_stage("mask step, 400 beams", "ms", 5.0, "5 ms")
def _mask_step(like: catalogue.Sample, n: int, seed: int) -> Work:
    trie, rng = _trie(like, n, seed), np.random.default_rng(seed)

    def of_level(level: int) -> Callable:
        beams = [random_beams(trie, level, N_USERS, BEAM_WIDTH, rng) for _ in range(16)]
        width = beams[0].node.shape[1]
        scores = 2 * torch.from_numpy(rng.standard_normal((N_USERS, width, catalogue.CODEBOOK_SIZE), dtype=np.float32))
        scores, turns = scores.log_softmax(dim=-1), itertools.cycle(beams)  # other nodes each time: no warm cache
        return lambda: beam_search.select(trie, level, next(turns), scores, BEAM_WIDTH, compiled=True)

    return Work(tuple(of_level(level) for level in range(trie.n_levels)), lambda _: trie.n_bytes)


def random_beams(
    trie: PrefixTrie, depth: int, n_users: int, beam_width: int, rng: np.random.Generator
) -> beam_search.Beam:
    """Beams at a depth, prefixes likelier the more items they have: (n_users, beam_width), at depth 0 the root.

    Users with fewer distinct prefixes have unused beams at the end, as in a search.
    """
    width = 1 if depth == 0 else beam_width
    node = torch.full((n_users, width), trie.n_nodes(depth))
    for user in range(n_users):
        leaves = torch.from_numpy(rng.integers(0, trie.n_items, 4 * width))
        found = trie.ancestor(depth, leaves).unique().numpy()
        found = np.sort(rng.permutation(found)[:width])
        node[user, : len(found)] = torch.from_numpy(found)
    score = -5 * depth * torch.from_numpy(rng.exponential(size=node.shape).astype(np.float32))
    score.masked_fill_(node == trie.n_nodes(depth), -torch.inf)
    return beam_search.Beam(node, score, torch.zeros_like(node), torch.zeros_like(node))


def _t5(seed: int):
    """A small T5 with random weights as a scorer, and prompts for it: twenty items of four codes each, and two more."""
    from transformers import T5Config, T5ForConditionalGeneration

    n_tokens = 3 + catalogue.N_LEVELS * catalogue.CODEBOOK_SIZE
    sizes = {"d_model": 128, "d_ff": 1024, "num_layers": 4, "num_heads": 6, "d_kv": 64}
    tokens_of = {"vocab_size": n_tokens, "decoder_start_token_id": 0, "pad_token_id": 0, "eos_token_id": 1}
    config = T5Config(**sizes, **tokens_of)  # type: ignore[arg-type]
    with seeded(seed):
        model = T5ForConditionalGeneration(config).eval()
        for name, weight in model.named_parameters():
            if weight.ndim > 1 and "relative" not in name:  # scores far apart, as those of a trained model are
                torch.nn.init.normal_(weight, std=1.2 / weight.shape[1] ** 0.5)
        prompt = torch.randint(3, n_tokens, (N_USERS, 82))
    tokens = [*(3 + np.arange(catalogue.N_LEVELS * catalogue.CODEBOOK_SIZE).reshape(catalogue.N_LEVELS, -1))]
    return scorers.EncoderDecoderScorer(model, tokens), {"input_ids": prompt, "attention_mask": torch.ones_like(prompt)}


@_stage("T5, beam search", *_PER_USER)
def _beam_search(like: catalogue.Sample, n: int, seed: int) -> Work:
    trie, (scorer, prompts) = _trie(like, n, seed), _t5(seed)
    search = partial(beam_search.constrained_beam_search, scorer, prompts, trie, BEAM_WIDTH, K)
    return Work((search,), lambda _: trie.n_bytes, N_USERS)


@_stage("T5, exact scoring", *_PER_USER)
def _exact_scoring(like: catalogue.Sample, n: int, seed: int) -> Work:
    trie, (scorer, prompts) = _trie(like, n, seed), _t5(seed)
    return Work((partial(beam_search.exact_ranking, scorer, prompts, trie, K),), lambda _: trie.n_bytes, N_USERS)


@_stage("timeline model", *_PER_USER)
def _recommend(like: catalogue.Sample, n: int, seed: int) -> Work:
    ids = semantic_ids.SemanticIDs.from_codes(_ids(like, n, seed), catalogue.CODEBOOK_SIZE)
    vectors = catalogue.vectors_like(like, n, seed)
    with seeded(seed):
        model = Timeline(TimelineConfig(ids.sizes, vectors.shape[1], n), ids.unique, vectors)
    recommender = Recommender(model, ids, pd.DataFrame({"item_id": np.arange(n)}))
    rng = np.random.default_rng(seed)
    histories = [rng.integers(0, n, 10) for _ in range(N_USERS)]
    others = 4 * n * model.config.dim  # what `Timeline` keeps to compare items
    kept = _bytes(*model.parameters(), *model.buffers()) + others + model.trie.n_bytes
    return Work((partial(recommender.rank, histories, K, beam_width=BEAM_WIDTH),), lambda _: kept, N_USERS)


@_stage("item-kNN", *_PER_USER)
def _item_knn_answer(like: catalogue.Sample, n: int, seed: int) -> Work:
    histories = catalogue.histories_like(like, n)
    knn = baselines.ItemKNN(histories, n)
    asked = list(itertools.islice(itertools.cycle(histories), N_USERS))
    return Work((partial(knn.rank, asked, K),), lambda _: _sparse_bytes(knn), N_USERS)


def _sparse_bytes(knn: baselines.ItemKNN) -> float:
    matrix = knn.similarity
    return _bytes(matrix.data, matrix.indices, matrix.indptr, knn.without_votes)


@_stage("dense", *_PER_USER)
def _dense(like: catalogue.Sample, n: int, seed: int) -> Work:
    dense = retrieval.Dense(catalogue.vectors_like(like, n, seed))
    queries = catalogue.vectors_like(like, N_USERS, seed + 1)
    search = partial(dense.search, ["a query"] * N_USERS, K, query_vectors=queries)
    return Work((search,), lambda _: 4 * n * queries.shape[1], N_USERS)


@_stage("dense, inverted lists", *_PER_USER)
def _dense_lists(like: catalogue.Sample, n: int, seed: int) -> Work:
    import faiss

    faiss.omp_set_num_threads(torch.get_num_threads())
    vectors, queries = catalogue.vectors_like(like, n, seed), catalogue.vectors_like(like, N_USERS, seed + 1)
    n_lists = max(1, int(n**0.5))
    coarse = faiss.IndexFlatIP(vectors.shape[1])
    index = faiss.IndexIVFFlat(coarse, vectors.shape[1], n_lists, faiss.METRIC_INNER_PRODUCT)
    index.cp.seed, index.cp.niter, index.nprobe = seed + 1, 10, min(16, n_lists)
    index.cp.min_points_per_centroid = 1
    index.cp.max_points_per_centroid = 64
    index.train(vectors)
    index.add(vectors)
    # a vector, its number, and the centres of the lists
    kept = 4 * (n + n_lists) * vectors.shape[1] + 8 * n
    return Work((partial(index.search, queries, K),), lambda _: kept, N_USERS)
