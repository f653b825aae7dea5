"""Parts of the timeline model that the hybrid ranker uses, too: a head over codes, dropout, prefix probabilities."""

import math

import torch
from torch import nn

from semid_lib.decoding.trie import PrefixTrie


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
