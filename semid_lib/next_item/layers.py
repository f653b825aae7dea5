"""Parts of the timeline model: its shape, its input and state, an encoder, a head over codes, prefix probabilities.

The hybrid ranker uses the last two, too, and TIGER the dropout.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import nn

from semid_lib.decoding.trie import PrefixTrie
from semid_lib.workbench.weights import check_config


@dataclass(frozen=True)
class TimelineConfig:
    """The shape of a timeline model, from which it can be built again for its weights."""

    sizes: tuple[int, ...]  # codes at each position of a semantic ID, the disambiguation code included
    text_dim: int  # dimensions of the text embeddings
    n_items: int  # the first rows of the catalogue, which have an item embedding; later rows are new items
    dim: int = 128  # width of the model
    n_layers: int = 2
    n_heads: int = 2
    dropout: float = 0.2
    item_dropout: float = 0.3  # share of items without item embedding in a training step, as if they were new
    n_sampled: int = 1000  # items outside the batch that the item head is trained against in a step
    temperature: float = 0.07  # initial value, of the item head's cosines; it is learned
    max_length: int = 50  # the most recent items that the model reads
    backward: float = 0.3  # share of training histories that are read from the last item to the first
    code_weight: float = 1 / 2  # of code head against item head in the mixture; at 0 or 1 one of them is trained
    new_item_rate: float = 0.0  # how often a new item is bought for each time that one with an item embedding is, on
    # average: it sets what new items together get of the item head's probability; 0: what their scores say

    def __post_init__(self):
        shares = ("dropout", "item_dropout", "backward")
        least = dict.fromkeys((*shares, "code_weight", "new_item_rate"), 0) | {"temperature": 1e-6}
        check_config(self, least, dict.fromkeys(shares, 1) | {"code_weight": math.nextafter(1, 2)})
        if self.dim % self.n_heads:
            raise ValueError(f"dim is {self.dim}, expected a multiple of n_heads, {self.n_heads}")


def checked_weights(weights: Sequence[float], n: int) -> tuple[float, ...]:
    """Mixture weights as a tuple; ValueError unless they are n shares with the sum 1."""
    shares = tuple(float(weight) for weight in weights)
    if (
        len(shares) != n
        or not all(0 <= share <= 1 for share in shares)
        or not math.isclose(sum(shares), 1, abs_tol=1e-6)
    ):
        raise ValueError(f"mixture weights are {weights}, expected {n} from 0 to 1 with the sum 1")
    return shares


class Context(NamedTuple):
    """What `Timeline.begin` reads."""

    histories: torch.Tensor  # (B, T) int64 item rows in time order, -1 after the end, T <= config.max_length
    prior: torch.Tensor | None = None  # (B, n_items) float32 log-scale scores in catalogue order, see `Votes.prior`
    weights: tuple[float, ...] | None = None  # of code head, item head and, with a prior, item head with prior


class TimelineState(NamedTuple):
    """What decoding carries from level to level, for W beams of each of B histories."""

    hidden: torch.Tensor  # (B, W, dim) float32: the code head's context plus the codes chosen so far
    node: torch.Tensor  # (B, W) int64 nodes of the trie, -1 for a prefix of no item
    by_code: torch.Tensor  # (B, W, K) log-probability of each longer prefix under the code head
    total: torch.Tensor  # (B, W, K) the same under the mixture
    code_weight: float  # mixture weight of the code head
    by_item: tuple[torch.Tensor, ...]  # per depth from 1 on: (B, n_nodes) log of the other components' weighted sum


def prefix_log_probs(trie: PrefixTrie, leaf_log_probs: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Log-probabilities of all prefixes from those of the items, (B, n_leaves) in the order of the leaves.

    Returns
    -------
    tuple of (B, n_nodes) tensors
        One per depth from 1 on; the last is `leaf_log_probs` itself.

    Examples
    --------
    >>> import numpy as np
    >>> trie = PrefixTrie.build(np.array([[0, 0], [0, 1], [1, 0]]))
    >>> [depth.exp().tolist() for depth in prefix_log_probs(trie, torch.tensor([[0.5, 0.25, 0.25]]).log())]
    [[[0.75, 0.25]], [[0.5, 0.25, 0.25]]]
    """
    highest = leaf_log_probs.amax(dim=1, keepdim=True)
    weight, found = torch.exp(leaf_log_probs - highest), []
    for depth in range(1, trie.n_levels):
        nodes = torch.arange(trie.n_nodes(depth), device=weight.device)
        above = nodes.repeat_interleave(trie.leaf_start[depth].diff())  # the node of each leaf
        total = weight.new_zeros((len(weight), len(nodes))).index_add(1, above, weight)
        found.append(torch.log(total + torch.finfo(total.dtype).tiny) + highest)
    return (*found, leaf_log_probs)


class Dropout(nn.Module):
    """Dropout from random bytes, with the share rounded to 256ths; torch's took a quarter of a training step on CPU."""

    def __init__(self, share: float):
        super().__init__()
        self.n_dropped = min(round(256 * share), 255)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training or not self.n_dropped:
            return x
        words = torch.empty(math.ceil(x.numel() / 8), dtype=torch.int64, device=x.device).random_(-(2**63), None)
        kept = words.view(torch.uint8)[: x.numel()].view(x.shape) >= self.n_dropped
        return x * kept * (256 / (256 - self.n_dropped))


class HistoryEncoder(nn.Module):
    """A causal transformer over item vectors."""

    def __init__(self, config: TimelineConfig):
        super().__init__()
        dim, self.max_length = config.dim, config.max_length
        self.start = nn.Parameter(torch.zeros(dim))  # precedes the first item, so that an empty history can be encoded
        self.backward_start = nn.Parameter(torch.zeros(dim))  # the same for a history that is read backward
        self.position = nn.Embedding(config.max_length + 1, dim)
        nn.init.normal_(self.position.weight, std=0.02)
        self.dropout = Dropout(config.dropout)
        layer = nn.TransformerEncoderLayer(
            dim, config.n_heads, 4 * dim, config.dropout, activation="gelu", batch_first=True, norm_first=True
        )
        for name in ("dropout", "dropout1", "dropout2"):
            setattr(layer, name, Dropout(config.dropout))
        layer.self_attn.dropout = 0.0  # so that the attention scores are never in memory as a whole
        self.encoder = nn.TransformerEncoder(layer, config.n_layers, nn.LayerNorm(dim), enable_nested_tensor=False)

    def forward(self, items: torch.Tensor, backward: torch.Tensor | None = None) -> torch.Tensor:
        """Encode the first 0, 1, ... T items: (B, T, dim) vectors -> (B, T + 1, dim).

        backward: (B, 1) bool, which histories come with the last item first; None for none.
        """
        if items.shape[1] > self.max_length:
            raise ValueError(f"histories hold {items.shape[1]} items, expected at most {self.max_length}")
        start = self.start.expand(len(items), -1)
        if backward is not None:
            start = torch.where(backward, self.backward_start, start)
        x = torch.cat([start[:, None], items], dim=1)
        x = self.dropout(x + self.position.weight[: x.shape[1]])
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1], device=x.device)
        return self.encoder(x, mask=mask, is_causal=True)


class HeadLevel(nn.Module):
    """Scores of the codes of one level: a residual two-layer perceptron, then a linear map."""

    def __init__(self, dim: int, size: int, dropout: float):
        super().__init__()
        self.mix = nn.Sequential(
            nn.LayerNorm(dim),
            nn.Linear(dim, 2 * dim),
            nn.GELU(),
            Dropout(dropout),
            nn.Linear(2 * dim, dim),
        )
        self.norm = nn.LayerNorm(dim)
        self.out = nn.Linear(dim, size)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.out(self.norm(hidden + self.mix(hidden)))
