"""What `growth` has measured: every stage from text to answer, on a catalogue of any size that lies as a real one does.

A real catalogue (`Sample`) is enlarged or reduced to n items:

- codes: each level's codes are Zipf-distributed below their prefix, with the exponent at which two random items of one
  prefix share the next code as often as they do in the sample; the last level tells items apart, as ours do;
- vectors: a point between two items that are neighbours in the order of their semantic IDs, and, to have length 1, as
  much as is missing in the direction of the difference of two other neighbours;
- histories: copies of the sample's, each over items of its own, so that lengths and popularity stay, and users and
  interactions grow in proportion to items;
- texts: those of the sample with a number in front, so that no two are the same.

Models have random weights: their speed does not depend on them. Memory is the highest resident set of this process
above what it had before, which only Linux tells; measure in a process that did nothing else before.
"""

import itertools
import re
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
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
from semid_lib.studies.growth import GIB, Point
from semid_lib.workbench.training import seeded

DAY = 86_400.0
CODEBOOK_SIZE, N_LEVELS = 256, 4  # of the catalogues of codes
N_USERS, BEAM_WIDTH, K = 8, 50, 10  # of an answer: users at once, beams of each, items for each
_NEIGHBOURS = 8  # places in the order of IDs within which a vector's two parents lie
_WARM_UP = 60  # items on which everything is loaded and compiled before the first measurement of a stage


class Sample(NamedTuple):
    """What a real catalogue looks like."""

    vectors: np.ndarray  # (m, dim) float32 of length 1
    codes: np.ndarray  # (m, n_levels) int64, before collisions are resolved
    codebook_size: int
    texts: list[str]  # (m,)
    histories: list[np.ndarray] | None  # of item rows


def sample(shop, shelf) -> Sample:
    """The sample of a `data.Dataset`, with what chapters 01 and 02 have written in its `store.Store`."""
    vectors = embed.normalize(shelf.load("embeddings")["vectors"])
    histories = None if shop.histories is None else list(shop.histories)
    found = shelf.load("semantic_ids")
    return Sample(vectors, found["kmeans_codes"], found["codebooks"].shape[1], embed.item_texts(shop.items), histories)


# --- a catalogue of any size ---

_STEEPEST = 50.0  # the largest exponent: all items have the first code


def zipf_exponents(codes: np.ndarray, codebook_size: int) -> tuple[float, ...]:
    """Per level, the s of p(r) ~ r^-s, r = 1 .. K, under which two items of one prefix share the next code as often.

    codes: (n, n_levels) integers below K = codebook_size. A level at which no two items share a prefix, or at which
    codes are spread evenly, gets 0; one at which all items of a prefix share the next code gets the largest, 50. Raises
    ValueError for codes that are no table of at least two items.

    >>> zipf_exponents(np.array([[0, 0], [0, 1], [1, 0], [1, 1]]), 2), zipf_exponents(np.array([[3, 0], [3, 0]]), 4)
    ((0.0, 0.0), (50.0, 50.0))
    """
    from scipy.optimize import brentq

    if codes.ndim != 2 or len(codes) < 2:
        raise ValueError(f"codes must be (n, n_levels) of two items or more, got {codes.shape}")
    rank = np.arange(1, codebook_size + 1, dtype=np.float64)

    def shared(s: float) -> float:
        return float(np.sum((rank**-s / np.sum(rank**-s)) ** 2))

    exponents, pairs = [], len(codes) * (len(codes) - 1)
    for level in range(codes.shape[1]):
        count = np.unique(codes[:, : level + 1], axis=0, return_counts=True)[1]
        deeper = int(np.sum(count * (count - 1)))
        share = min(deeper / pairs if pairs else 0.0, shared(_STEEPEST))
        even = share <= shared(0.0)
        exponents.append(0.0 if even else float(brentq(lambda s, at=share: shared(s) - at, 0.0, _STEEPEST, xtol=1e-6)))
        pairs = deeper
    return tuple(exponents)


def catalogue(
    n: int,
    exponents: Sequence[float],
    codebook_size: int = CODEBOOK_SIZE,
    n_levels: int = N_LEVELS,
    seed: int = 0,
) -> np.ndarray:
    """n distinct semantic IDs, (n, n_levels) int64, with Zipf-distributed codes below every prefix.

    exponents: as of `zipf_exponents`; the last one serves for further levels as well. The codes of a prefix are the
    ranks, turned by a number that belongs to the prefix. The last level numbers the items of a prefix; those beyond
    codebook_size are drawn anew with half the skew. Raises ValueError for more items than half of all IDs.

    >>> catalogue(5, (1.0,), codebook_size=4, n_levels=2).shape
    (5, 2)
    """
    if not 1 <= n <= codebook_size**n_levels // 2:
        raise ValueError(f"expected 1 to {codebook_size**n_levels // 2} items for {n_levels} levels, got {n}")
    rng = np.random.default_rng(seed)
    skew = np.array([exponents[min(level, len(exponents) - 1)] for level in range(n_levels - 1)])
    prefix, missing = np.empty(0, dtype=np.int64), n
    while missing:
        prefix = np.sort(np.append(prefix, _prefixes(missing, skew, codebook_size, rng)))
        begins = np.flatnonzero(np.diff(prefix, prepend=-1))
        rank = np.arange(n) - np.repeat(begins, np.diff(begins, append=n))
        prefix, skew = prefix[rank < codebook_size], skew / 2
        missing = n - len(prefix)
    last = (rank + _turn(prefix)) % codebook_size
    codes = [*np.unravel_index(prefix, (codebook_size,) * (n_levels - 1)), last]
    return np.column_stack(codes)[rng.permutation(n)].astype(np.int64, copy=False)


def _prefixes(n: int, skew: np.ndarray, codebook_size: int, rng: np.random.Generator) -> np.ndarray:
    prefix = np.zeros(n, dtype=np.int64)
    for s in skew:
        weight = np.arange(1, codebook_size + 1, dtype=np.float64) ** -s
        rank = np.searchsorted(np.cumsum(weight / weight.sum()), rng.random(n)).clip(max=codebook_size - 1)
        prefix = prefix * codebook_size + (rank + _turn(prefix)) % codebook_size
    return prefix


def _turn(prefix: np.ndarray) -> np.ndarray:
    """A number that belongs to the prefix: the upper bits of a multiplicative hash (Knuth)."""
    return (prefix.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) >> np.uint64(40)).astype(np.int64)


def vectors_like(like: Sample, n: int, seed: int = 0) -> np.ndarray:
    """n vectors between neighbours of the sample: (n, dim) float32 of length 1; see the head of this module."""
    rng = np.random.default_rng(seed)
    order = np.lexsort(like.codes.T[::-1])
    vectors = np.empty((n, like.vectors.shape[1]), dtype=np.float32)
    for start in range(0, n, 65_536):  # a block at a time: no second copy of them all
        part = vectors[start : start + 65_536]
        (one, other), (third, fourth) = (_neighbours(order, len(part), rng) for _ in range(2))
        share = rng.uniform(0.25, 0.75, (len(part), 1)).astype(np.float32)
        part[:] = (1 - share) * like.vectors[one] + share * like.vectors[other]
        missing = np.sqrt(np.maximum(0, 1 - np.sum(part**2, axis=1, keepdims=True)))
        part += missing * embed.normalize(like.vectors[third] - like.vectors[fourth])
        part[:] = embed.normalize(part)
    return vectors


def _neighbours(order: np.ndarray, n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """n rows at random, and for each another one that is near it in an order."""
    at = rng.integers(0, len(order), n)
    return order[at], order[(at + rng.integers(1, _NEIGHBOURS + 1, n)) % len(order)]


def histories_like(like: Sample, n: int) -> list[np.ndarray]:
    """Copies of the sample's histories over n items: copy c of row i is row (i + c m) mod n of the new catalogue.

    Users are as many a item as in the sample. Raises ValueError for a sample without histories.
    """
    if like.histories is None:
        raise ValueError("the sample has no histories, expected some")
    m, n_users = len(like.vectors), len(like.histories)
    wanted = max(1, n_users * n // m)
    return [(like.histories[user % n_users] + user // n_users * m) % n for user in range(wanted)]


# --- stages ---


class Work(NamedTuple):
    """What is timed, once its inputs are made."""

    run: Callable[[], Any] | tuple[Callable[[], Any], ...]  # of several the slowest counts
    kept: Callable[[Any], float]  # bytes, of what `run` returns
    per: float = 1.0  # what the seconds are divided by


@dataclass(frozen=True)
class Stage:
    """A stage of the pipeline or a way to answer."""

    unit: str
    limit: float  # in that unit: from here on it is not sensible
    why: str  # the limit in words
    prepare: Callable[[Sample, int, int], Work]  # sample, items, seed

    @property
    def is_answer(self) -> bool:
        """Whether it is done for each user, and not once for a catalogue."""
        return self.unit.startswith("ms")


_warm: set[str] = set()


def measure(stage: str, n: int, like: Sample, seed: int = 0, seconds: float = 0.5) -> Point:
    """Measure a stage of `STAGES` on n items: the median of as many runs as fit in `seconds`, one at least.

    Raises ValueError for an unknown stage, and what the stage raises for a sample that does not have what it takes.
    """
    if stage not in STAGES:
        raise ValueError(f"stage {stage!r} is none of {', '.join(STAGES)}")
    made = STAGES[stage].prepare
    if stage not in _warm:
        for run in _runs(made(like, _WARM_UP, seed)):
            run()  # imports and compiles
        _warm.add(stage)
    before = _memory("VmRSS")
    started = time.perf_counter()
    work = made(like, n, seed)
    if sys.platform == "linux":
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # VmHWM begins anew
    medians = []
    for run in _runs(work):
        if STAGES[stage].is_answer:
            run()  # what is kept between answers is made at the first
        times: list[float] = []
        while not times or sum(times) < seconds:
            begun = time.perf_counter()
            result = run()
            times.append(time.perf_counter() - begun)
            if len(times) == 1:
                peak = _memory("VmHWM") - before
                kept = float(work.kept(result))
            del result
        medians.append(float(np.median(times)))
    scale = 1000 if STAGES[stage].is_answer else 1
    return Point(stage, n, max(medians) / work.per * scale, max(peak, 0), kept, time.perf_counter() - started)


def _runs(work: Work) -> tuple[Callable[[], Any], ...]:
    return work.run if isinstance(work.run, tuple) else (work.run,)


def _memory(name: str) -> float:
    """Bytes of this process: VmRSS now, VmHWM at the highest. 0 where there is no /proc.

    Not `resource.getrusage`: its maximum cannot be set back, and a process inherits that of the one which started it.
    """
    if sys.platform != "linux":
        return 0.0
    status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    return 1024.0 * int(re.search(rf"{name}:\s+(\d+)", status)[1])


def _embedding(like: Sample, n: int, seed: int) -> Work:
    encoder = embed.Encoder()
    texts = [f"{at} {like.texts[at % len(like.texts)]}" for at in range(n)]
    return Work(lambda: encoder(texts), lambda vectors: vectors.nbytes)


def _residual_kmeans(like: Sample, n: int, seed: int) -> Work:
    vectors, size = vectors_like(like, n, seed), quantize.suggest_codebook_size(n)
    return Work(
        lambda: quantize.fit_residual_kmeans(vectors, 3, size, seed=seed),
        lambda fitted: fitted.codes.nbytes + fitted.codebooks.nbytes,
    )


def _rqvae(like: Sample, n: int, seed: int) -> Work:
    config = rqvae.RQVAEConfig(codebook_size=quantize.suggest_codebook_size(n), n_epochs=1)
    vectors = vectors_like(like, n, seed)
    return Work(
        lambda: rqvae.fit_rqvae(vectors, config, seed), lambda fitted: fitted.codes.nbytes + fitted.codebooks.nbytes
    )


def _collisions(like: Sample, n: int, seed: int) -> Work:
    vectors, size = vectors_like(like, n, seed), quantize.suggest_codebook_size(n)
    rough = quantize.fit_residual_kmeans(vectors, 3, size, 3, seed, max_training_vectors=40_000)
    return Work(
        lambda: assignment.resolve_collisions(rough.codes, vectors, rough)[0],
        lambda ids: ids.codes.nbytes + ids.disambiguation_code.nbytes,
    )


def _ids(like: Sample, n: int, seed: int) -> np.ndarray:
    return catalogue(n, zipf_exponents(like.codes, like.codebook_size), seed=seed)


def _trie_build(like: Sample, n: int, seed: int) -> Work:
    ids = _ids(like, n, seed)
    return Work(lambda: PrefixTrie.build(ids), lambda trie: trie.n_bytes)


def _trie_open(like: Sample, n: int, seed: int) -> Work:
    folder = tempfile.TemporaryDirectory()
    path = Path(folder.name) / "trie.safetensors"
    PrefixTrie.build(_ids(like, n, seed)).save(path)

    def opened(_=folder):  # the folder lives as long as this function
        return PrefixTrie.open(path)

    return Work(opened, lambda trie: trie.n_bytes)


def _mask_step(like: Sample, n: int, seed: int) -> Work:
    trie, rng = PrefixTrie.build(_ids(like, n, seed)), np.random.default_rng(seed)

    def of_level(level: int) -> Callable:
        beams = [random_beams(trie, level, N_USERS, BEAM_WIDTH, rng) for _ in range(16)]
        width = beams[0].node.shape[1]
        scores = 2 * torch.from_numpy(rng.standard_normal((N_USERS, width, CODEBOOK_SIZE), dtype=np.float32))
        scores, turns = scores.log_softmax(dim=-1), itertools.cycle(beams)  # other nodes each time: no warm cache
        return lambda: beam_search.select(trie, level, next(turns), scores, BEAM_WIDTH, compiled=True)

    return Work(tuple(of_level(level) for level in range(trie.n_levels)), lambda _: trie.n_bytes)


def random_beams(
    trie: PrefixTrie, depth: int, n_users: int, beam_width: int, rng: np.random.Generator
) -> beam_search.Beam:
    """Beams at a depth, prefixes the likelier the more items they have: (n_users, beam_width), at depth 0 the root.

    Users who get fewer distinct ones have dead beams at the end, as in a search.
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


def _t5(n_users: int, seed: int):
    """A small T5 with random weights as a scorer, and prompts for it: twenty items of four codes each, and two more."""
    from transformers import T5Config, T5ForConditionalGeneration

    n_tokens = 3 + N_LEVELS * CODEBOOK_SIZE
    config = T5Config(
        vocab_size=n_tokens,
        d_model=128,
        d_ff=1024,
        num_layers=4,
        num_heads=6,
        d_kv=64,
        decoder_start_token_id=0,
        pad_token_id=0,
        eos_token_id=1,
    )
    with seeded(seed):
        model = T5ForConditionalGeneration(config).eval()
        for name, weight in model.named_parameters():
            if weight.ndim > 1 and "relative" not in name:  # scores far apart, as those of a trained model are
                torch.nn.init.normal_(weight, std=1.2 / weight.shape[1] ** 0.5)
        prompt = torch.randint(3, n_tokens, (n_users, 82))
    tokens = [3 + level * CODEBOOK_SIZE + np.arange(CODEBOOK_SIZE) for level in range(N_LEVELS)]
    return scorers.EncoderDecoderScorer(model, tokens), {
        "input_ids": prompt,
        "attention_mask": torch.ones_like(prompt),
    }


def _beam_search(like: Sample, n: int, seed: int) -> Work:
    trie, (scorer, contexts) = PrefixTrie.build(_ids(like, n, seed)), _t5(N_USERS, seed)
    return Work(
        lambda: beam_search.constrained_beam_search(scorer, contexts, trie, BEAM_WIDTH, K),
        lambda _: trie.n_bytes,
        N_USERS,
    )


def _exact_scoring(like: Sample, n: int, seed: int) -> Work:
    trie, (scorer, contexts) = PrefixTrie.build(_ids(like, n, seed)), _t5(N_USERS, seed)
    return Work(lambda: beam_search.exact_ranking(scorer, contexts, trie, K), lambda _: trie.n_bytes, N_USERS)


def _recommend(like: Sample, n: int, seed: int) -> Work:
    ids = semantic_ids.SemanticIDs.from_codes(_ids(like, n, seed), CODEBOOK_SIZE)
    vectors = vectors_like(like, n, seed)
    with seeded(seed):
        model = Timeline(TimelineConfig(ids.sizes, vectors.shape[1], n), ids.unique, vectors)
    recommender = Recommender(model, ids, pd.DataFrame({"item_id": np.arange(n)}))
    rng = np.random.default_rng(seed)
    histories = [rng.integers(0, n, 10) for _ in range(N_USERS)]
    weights = [*model.parameters(), *model.buffers()]
    catalogue_bytes = 4 * n * model.config.dim  # what `Timeline` keeps to compare items
    return Work(
        lambda: recommender.rank(histories, K, beam_width=BEAM_WIDTH),
        lambda _: sum(w.nbytes for w in weights) + catalogue_bytes + model.trie.n_bytes,
        N_USERS,
    )


def _item_knn_fit(like: Sample, n: int, seed: int) -> Work:
    histories = histories_like(like, n)
    return Work(lambda: baselines.ItemKNN(histories, n), _sparse_bytes)


def _item_knn_answer(like: Sample, n: int, seed: int) -> Work:
    histories = histories_like(like, n)
    knn = baselines.ItemKNN(histories, n)
    asked = list(itertools.islice(itertools.cycle(histories), N_USERS))
    return Work(lambda: knn.rank(asked, K), lambda _: _sparse_bytes(knn), N_USERS)


def _sparse_bytes(knn: baselines.ItemKNN) -> float:
    matrix = knn.similarity
    return matrix.data.nbytes + matrix.indices.nbytes + matrix.indptr.nbytes + knn.without_votes.nbytes


def _dense(like: Sample, n: int, seed: int) -> Work:
    dense = retrieval.Dense(vectors_like(like, n, seed))
    queries = vectors_like(like, N_USERS, seed + 1)
    words = ["a query"] * N_USERS
    return Work(lambda: dense.search(words, K, query_vectors=queries), lambda _: 4 * n * queries.shape[1], N_USERS)


def _dense_lists(like: Sample, n: int, seed: int) -> Work:
    import faiss

    faiss.omp_set_num_threads(torch.get_num_threads())
    vectors, queries = vectors_like(like, n, seed), vectors_like(like, N_USERS, seed + 1)
    n_lists = max(1, int(n**0.5))
    coarse = faiss.IndexFlatIP(vectors.shape[1])
    index = faiss.IndexIVFFlat(coarse, vectors.shape[1], n_lists, faiss.METRIC_INNER_PRODUCT)
    index.cp.seed, index.cp.niter, index.nprobe = seed + 1, 10, min(16, n_lists)
    index.cp.min_points_per_centroid = 1
    index.cp.max_points_per_centroid = 64
    index.train(vectors)
    index.add(vectors)
    # a vector, its number, and the centres of the lists
    return Work(lambda: index.search(queries, K), lambda _: (4 * (n + n_lists) * vectors.shape[1]) + 8 * n, N_USERS)


_USER = 100.0  # ms

STAGES: dict[str, Stage] = {
    "embedding": Stage("s", DAY, "a day", _embedding),
    "residual k-means": Stage("s", DAY, "a day", _residual_kmeans),
    "RQ-VAE, an epoch": Stage(
        "s", DAY / rqvae.RQVAEConfig().n_epochs, f"a day for {rqvae.RQVAEConfig().n_epochs} epochs", _rqvae
    ),
    "collisions": Stage("s", DAY, "a day", _collisions),
    "trie, build": Stage("s", 3600.0, "an hour", _trie_build),
    "trie, open": Stage("s", 1.0, "a second", _trie_open),
    "item-kNN, fit": Stage("s", DAY, "a day", _item_knn_fit),
    "mask step, 400 beams": Stage("ms", 5.0, "5 ms", _mask_step),
    "T5, beam search": Stage("ms a user", _USER, "100 ms a user", _beam_search),
    "T5, exact scoring": Stage("ms a user", _USER, "100 ms a user", _exact_scoring),
    "timeline model": Stage("ms a user", _USER, "100 ms a user", _recommend),
    "item-kNN": Stage("ms a user", _USER, "100 ms a user", _item_knn_answer),
    "dense": Stage("ms a user", _USER, "100 ms a user", _dense),
    "dense, inverted lists": Stage("ms a user", _USER, "100 ms a user", _dense_lists),
}
MEMORY = 24 * GIB  # more at once is not sensible, whatever the stage
_WITH_HISTORIES = ("item-kNN, fit", "item-kNN")


def stages_for(like: Sample) -> dict[str, Stage]:
    """The stages that can be measured on a sample: all of `STAGES`, or those that need no histories."""
    return {name: stage for name, stage in STAGES.items() if like.histories or name not in _WITH_HISTORIES}
