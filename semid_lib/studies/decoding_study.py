"""Chapter 06: a small language model over codes alone, how long decoding takes, and a step by other libraries."""

import time
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from sklearn.neighbors import NearestNeighbors
from tqdm.auto import tqdm
from transformers import Qwen3Config, Qwen3ForCausalLM

from semid_lib.decoding.trie import PrefixTrie
from semid_lib.ids.semantic_ids import SemanticIDs
from semid_lib.studies import other_decoders
from semid_lib.workbench import training
from semid_lib.workbench.scale import Scale


class Similar(NamedTuple):
    """The task of the model: after the ID of an item, generate the ID of a similar one."""

    neighbours: np.ndarray  # (n_items, at most 10) rows of the nearest items by text embedding, nearest first
    held_out: np.ndarray  # rows that are never prompts in training
    tokens: list[np.ndarray]  # per level the token of each code; token 0 pads
    as_tokens: torch.Tensor  # (n_items, n_levels) int64, the IDs as tokens
    pairs: torch.Tensor  # (n_pairs, 2 * n_levels) int64, an ID and that of a neighbour


def similar_items(vectors: np.ndarray, ids: SemanticIDs, seed: int) -> Similar:
    """Pairs of similar items. vectors: (n_items, dim), unit length."""
    n = len(ids)
    nearest = NearestNeighbors(n_neighbors=min(10, n - 1), metric="cosine")
    neighbours = nearest.fit(vectors).kneighbors(return_distance=False)  # the item itself is left out
    held_out = np.random.default_rng(seed).permutation(n)[: min(max(20, n // 10), n // 2)]
    prompts = np.setdiff1d(np.arange(n), held_out)
    starts = 1 + np.cumsum([0, *ids.sizes[:-1]])
    tokens = [start + np.arange(size) for start, size in zip(starts, ids.sizes, strict=True)]
    as_tokens = torch.from_numpy(ids.unique + starts)
    left = as_tokens[np.repeat(prompts, neighbours.shape[1])]
    pairs = torch.cat([left, as_tokens[neighbours[prompts].ravel()]], dim=1)
    return Similar(neighbours, held_out, tokens, as_tokens, pairs)


class _WithLoss(torch.nn.Module):
    """A language model with its loss on the second ID of each pair."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, batch):
        labels = batch.clone()
        labels[:, : batch.shape[1] // 2] = -100
        return self.model(input_ids=batch, labels=labels).loss


def train(task: Similar, sizes: Scale, seed: int, progress: bool = False) -> tuple[Any, list[training.Epoch]]:
    """A small Qwen3 with a token per level and code, trained on the pairs of the task."""
    torch.manual_seed(seed)
    shape = {"hidden_size": sizes.dim, "intermediate_size": 3 * sizes.dim, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32}
    facts: dict[str, Any] = shape | heads | {"vocab_size": int(task.tokens[-1][-1]) + 1}
    model = Qwen3ForCausalLM(Qwen3Config(**facts, pad_token_id=0, bos_token_id=None, eos_token_id=None))
    loader: Any = torch.utils.data.DataLoader(cast(Any, task.pairs), batch_size=256, shuffle=True)
    settings = training.TrainingConfig.sized(1, sizes.similar_steps, len(loader), seed=seed)
    return model, training.fit(_WithLoss(model), loader, settings, progress=progress)


def items_of(sequences: torch.Tensor, tokens: list[np.ndarray], trie: PrefixTrie) -> np.ndarray:
    """The item that each generated sequence (a prompt and an ID) names, -1 for none: (n,) int64."""
    codes = sequences[:, -trie.n_levels :] - torch.tensor([int(level[0]) for level in tokens])
    node = torch.zeros(len(codes), dtype=torch.long)
    for level in range(trie.n_levels):
        node = trie.step(level, node, codes[:, level])
    return trie.item_at(node).numpy()


def best_seconds(work: Callable[[], Any], repeats: int = 3) -> tuple[float, Any]:
    """Seconds of the fastest of a few runs, and what the work returned."""
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        answer = work()
        seconds.append(time.perf_counter() - started)
    return min(seconds), answer


class Timed:
    """A scorer that adds up the seconds of its two methods in `parts`."""

    def __init__(self, scorer):
        self.scorer, self.parts = scorer, {"read the prompt": 0.0, "extend the beams": 0.0}

    def begin(self, *arguments):
        return self._add("read the prompt", self.scorer.begin, arguments)

    def advance(self, *arguments):
        return self._add("extend the beams", self.scorer.advance, arguments)

    def _add(self, part, method, arguments):
        started = time.perf_counter()
        answer = method(*arguments)
        self.parts[part] += time.perf_counter() - started
        return answer


# --- one step, by this library and by others ---


class Step(NamedTuple):
    """The beams before one step, and the model's answer to them."""

    prefixes: torch.Tensor  # (B, W, level) int64 codes, those of a user in ascending order, then unused ones
    scores: torch.Tensor  # (B, W) float32; -inf for an unused beam
    log_probabilities: torch.Tensor  # (B * W, V) float32, normalized over the vocabulary


def random_step(ids: np.ndarray, level: int, n_users: int, beam_width: int, codebook_size: int, seed: int = 0) -> Step:
    """Distinct real prefixes, likelier the more items they have, with random scores; level 0 has one beam per user."""
    rng = np.random.default_rng(seed)
    rows, count = np.zeros(1, dtype=np.int64), np.array([len(ids)])
    if level:
        key = np.ravel_multi_index(ids[:, :level].T, (codebook_size,) * level)
        _, rows, count = np.unique(key, return_index=True, return_counts=True)
    alive = min(beam_width, len(rows))
    weight = np.log(count) + rng.gumbel(size=(n_users, len(rows)))  # the greatest are a sample without replacement
    chosen = np.sort(np.argpartition(-weight, alive - 1, axis=1)[:, :alive], axis=1)
    chosen = chosen[:, np.arange(beam_width) % alive]
    scores = -rng.exponential(5 * level, size=(n_users, beam_width)).astype(np.float32)
    scores[:, alive:] = -np.inf
    n_tokens = other_decoders.FIRST + ids.shape[1] * codebook_size
    logits = 2 * rng.standard_normal((n_users * beam_width, n_tokens), dtype=np.float32)
    prefixes = torch.from_numpy(ids[rows[chosen], :level])
    return Step(prefixes, torch.from_numpy(scores), torch.from_numpy(logits).log_softmax(dim=-1))


def compare(
    ids: np.ndarray, n_users: int = 8, beam_width: int = 50, seconds: float = 1.0, seed: int = 0, progress: bool = False
) -> list[dict]:
    """Time each method on the same steps: one row per method.

    A method whose library is not installed is left out; one that cannot take all items gets a random part of them.

    Parameters
    ----------
    ids : (n, L) int64 array, L > 1
    seconds : float
        Each step is repeated for so long, at least twice; the fastest counts.

    Returns
    -------
    list of dict
        Items, seconds to build, MB, milliseconds of a step at each level, and their mean.

    Raises
    ------
    ValueError
        If the best values of a method differ from those of `TriePeer`.
    """
    codebook_size, rows = int(ids.max()) + 1, []
    shuffled = np.random.default_rng(seed).permutation(ids)
    steps: dict[tuple[int, int], Step] = {}
    truth: dict[tuple[int, int], torch.Tensor] = {}
    for kind in tqdm((*other_decoders.PEERS, *other_decoders.GRAMMARS), desc="methods", disable=not progress):
        part = shuffled[: kind.limit or len(ids)]
        try:
            started = time.perf_counter()
            peer = kind(part, codebook_size)
        except ImportError:
            continue
        row = {"method": kind.name, "items": len(part), "build s": time.perf_counter() - started}
        row["MB"] = np.nan if peer.n_bytes is None else peer.n_bytes / 1e6
        for level in range(ids.shape[1]):
            at = len(part), level
            if at not in steps:
                steps[at] = random_step(part, level, n_users, beam_width, codebook_size, seed)
                _, truth[at] = _fastest(other_decoders.TriePeer(part, codebook_size), level, steps[at], 0.0)
            best, values = _fastest(peer, level, steps[at], seconds)
            if not truth[at].equal(values):
                raise ValueError(f"{kind.name} chooses other beams than here, torch at level {level}")
            row[f"level {level} ms"] = 1000 * best
        row["mean ms"] = np.mean([value for name, value in row.items() if name.startswith("level")])
        rows.append(row)
    return rows


def _fastest(peer: Any, level: int, step: Step, seconds: float) -> tuple[float, torch.Tensor]:
    """The seconds of the fastest step, and the values it chose, best first."""
    times: list[float] = []
    spent = 0.0
    with torch.inference_mode():
        while len(times) < 2 or spent < seconds:
            state = peer.prepare(level, step.prefixes)
            started = time.perf_counter()
            values, _, _ = peer.step(level, state, step.scores, step.log_probabilities)
            times.append(time.perf_counter() - started)
            spent += times[-1] if len(times) > 1 else 0.0  # the first is set aside: it may compile, or make tables
    return min(times[1:]), values.sort(dim=1, descending=True).values
