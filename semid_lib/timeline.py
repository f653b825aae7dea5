"""The timeline model: a history is one position per item, and a small head writes the next item's codes.

TIGER (Rajput et al. 2023) spells a history out code by code and encodes it once per training prefix. Here every item
is one position, as in RPG (Hou et al. 2025), and a causal transformer is trained on all positions in one pass: one
forward per user instead of one per prefix. Unlike RPG the head is autoregressive: code after code, coarse to fine.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from semid_lib.training import LengthBuckets


@dataclass(frozen=True)
class TimelineConfig:
    """The shape of a timeline model; what is needed to build it again from its weights."""

    sizes: tuple[int, ...]  # number of codes at each position of a semantic ID, the disambiguation code included
    text_dim: int  # dimensions of the text embeddings
    dim: int = 128  # width of the model
    n_layers: int = 2
    n_heads: int = 2
    dropout: float = 0.2
    max_length: int = 50  # the most recent items that the model sees


class State(NamedTuple):
    """What decoding carries from level to level."""

    hidden: torch.Tensor  # (batch, beams, dim) float32: the context plus the codes chosen so far


class Timeline(nn.Module):
    """A causal transformer over items with a head over codes.

    ids: (n_items, n_positions) integer semantic IDs, each row distinct. vectors: (n_items, text_dim) float text
    embeddings. Both are buffers: a new item needs a row in each and no training.
    """

    def __init__(self, config: TimelineConfig, ids: np.ndarray, vectors: np.ndarray):
        super().__init__()
        self.config = config
        n_positions, dim = len(config.sizes), config.dim
        if ids.shape[1] != n_positions or vectors.shape != (len(ids), config.text_dim):
            raise ValueError(
                f"ids {ids.shape} and vectors {vectors.shape} do not fit sizes {config.sizes} "
                f"and text_dim {config.text_dim}"
            )
        self.register_buffer("ids", torch.tensor(ids, dtype=torch.long))
        self.register_buffer("vectors", torch.tensor(vectors, dtype=torch.float32))
        self.code = nn.ModuleList(nn.Embedding(size, dim) for size in config.sizes)
        # embeddings come at any scale; without bringing them to one, training took twice as many epochs (see the log)
        self.text = nn.Sequential(
            nn.LayerNorm(config.text_dim, elementwise_affine=False), nn.Linear(config.text_dim, dim)
        )
        self.start = nn.Parameter(torch.zeros(dim))  # stands before the first item: an empty history is answered too
        self.position = nn.Embedding(config.max_length + 1, dim)
        self.dropout = nn.Dropout(config.dropout)
        layer = nn.TransformerEncoderLayer(
            dim, config.n_heads, 4 * dim, config.dropout, activation="gelu", batch_first=True, norm_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, config.n_layers, nn.LayerNorm(dim), enable_nested_tensor=False)
        self.head = nn.ModuleList(HeadLevel(dim, size, config.dropout) for size in config.sizes)
        for table in self.code:
            nn.init.normal_(table.weight, std=0.5)  # at the scale of the projected text
        nn.init.normal_(self.position.weight, std=0.02)

    def forward(self, histories: torch.Tensor) -> torch.Tensor:
        """Mean over all items of a batch of -log p(item | the items before it), a scalar in nats.

        histories: (B, T) item rows in time order, -1 after the end.
        """
        hidden = self.encode(histories)[:, :-1]
        real = histories >= 0
        target = self.ids[histories[real]]  # (N, n_positions)
        return self._negative_log_likelihood(hidden[real], target)

    def _negative_log_likelihood(self, hidden: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        loss = hidden.new_zeros(())
        for level, head in enumerate(self.head):
            loss = loss + F.cross_entropy(head(hidden), target[:, level])
            hidden = hidden + self.code[level](target[:, level])
        return loss

    def encode(self, histories: torch.Tensor) -> torch.Tensor:
        """What the model knows after 0, 1, ... T items: (B, T) item rows -> (B, T + 1, dim)."""
        if histories.shape[1] > self.config.max_length:
            raise ValueError(f"histories hold {histories.shape[1]} items, expected at most {self.config.max_length}")
        items = self.item_vectors(histories.clamp(min=0))
        start = self.start.expand(len(histories), 1, -1)
        x = torch.cat([start, items], dim=1)
        x = self.dropout(x + self.position.weight[: x.shape[1]])
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1], device=x.device)
        return self.encoder(x, mask=mask, is_causal=True)

    def item_vectors(self, rows: torch.Tensor) -> torch.Tensor:
        """An item as the model reads it: the sum of its code embeddings and its projected text, (..., dim)."""
        codes = self.ids[rows]
        return self.text(self.vectors[rows]) + sum(table(codes[..., i]) for i, table in enumerate(self.code))

    # what `decode.constrained_beam_search` asks of a model

    @property
    def n_levels(self) -> int:
        return len(self.config.sizes)

    def begin(self, histories: torch.Tensor, normalization: str = "vocabulary") -> tuple[State, torch.Tensor]:
        """Read a batch of histories and score the first code: -> state, log-probabilities (B, 1, sizes[0]).

        A level has a vocabulary of its own here, so both normalizations are one.
        """
        lengths = (histories >= 0).sum(dim=1)
        hidden = self.encode(histories)[torch.arange(len(histories), device=histories.device), lengths]
        state = State(hidden[:, None])
        return state, self._log_probabilities(state, 0)

    def advance(
        self, state: State, level: int, parents: torch.Tensor, codes: torch.Tensor
    ) -> tuple[State, torch.Tensor]:
        """Extend beams by a code and score the next: parents (B, W) index the old beams, codes (B, W) of `level`.

        Returns the new state and log-probabilities (B, W, sizes[level + 1]).
        """
        hidden = state.hidden.gather(1, parents[..., None].expand(-1, -1, state.hidden.shape[-1]))
        state = State(hidden + self.code[level](codes))
        return state, self._log_probabilities(state, level + 1)

    def _log_probabilities(self, state: State, level: int) -> torch.Tensor:
        return self.head[level](state.hidden).log_softmax(dim=-1)


class HeadLevel(nn.Module):
    """Scores of the codes of one level: a residual two-layer perceptron, then a linear map."""

    def __init__(self, dim: int, size: int, dropout: float):
        super().__init__()
        self.mix = nn.Sequential(
            nn.LayerNorm(dim),
            nn.Linear(dim, 2 * dim),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(2 * dim, dim),
        )
        self.norm = nn.LayerNorm(dim)
        self.out = nn.Linear(dim, size)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.out(self.norm(hidden + self.mix(hidden)))


def pad(histories: Sequence[np.ndarray], max_length: int) -> torch.Tensor:
    """The last `max_length` item rows of each history, -1 after the end: -> (n, longest) int64.

    >>> pad([np.array([4, 5, 6]), np.array([7])], max_length=2)
    tensor([[ 5,  6],
            [ 7, -1]])
    """
    recent = [np.asarray(history, dtype=np.int64)[-max_length:] for history in histories]
    padded = np.full((len(recent), max(map(len, recent), default=0)), -1, dtype=np.int64)
    for row, history in zip(padded, recent, strict=True):
        row[: len(history)] = history
    return torch.from_numpy(padded)


def training_batches(histories: Sequence[np.ndarray], max_length: int, batch_size: int, seed: int = 0) -> DataLoader:
    """Batches for `training.fit`: (B, T) item rows padded with -1, sequences of similar length together.

    Histories without an item teach nothing and are left out; of longer ones than `max_length` the end is kept.
    """
    histories = [history for history in histories if len(history)]
    if not histories:
        raise ValueError("no history holds an item: there is nothing to train on")
    lengths = np.minimum([len(history) for history in histories], max_length)
    return DataLoader(
        histories,
        batch_sampler=LengthBuckets(lengths, batch_size, seed),
        collate_fn=lambda rows: pad(rows, max_length),
    )
