"""Chapter 06: a small language model over codes alone, and how long decoding takes."""

import time
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from sklearn.neighbors import NearestNeighbors
from transformers import Qwen3Config, Qwen3ForCausalLM

from semid_lib.decoding.trie import PrefixTrie
from semid_lib.ids.semantic_ids import SemanticIDs
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
    config = Qwen3Config(
        vocab_size=int(task.tokens[-1][-1]) + 1,
        hidden_size=sizes.dim,
        intermediate_size=3 * sizes.dim,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=None,
    )
    model = Qwen3ForCausalLM(config)
    loader: torch.utils.data.DataLoader = torch.utils.data.DataLoader(
        cast(Any, task.pairs), batch_size=256, shuffle=True
    )
    settings = training.TrainingConfig.sized(1, sizes.similar_steps, len(loader), seed=seed)
    return model, training.fit(_WithLoss(model), loader, settings, progress=progress)


def items_of(sequences: torch.Tensor, task: Similar, trie: PrefixTrie) -> np.ndarray:
    """The item that each generated sequence (a prompt and an ID) names, -1 for none: (n,) int64."""
    starts = torch.tensor([int(level[0]) for level in task.tokens])
    codes = sequences[:, trie.n_levels :] - starts
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
