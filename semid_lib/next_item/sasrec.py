"""SASRec: self-attention over item IDs, the baseline that semantic IDs have to beat (Kang & McAuley 2018).

An item is one learned vector, which is read as input and scored as output. Two things are not as in the paper. The
loss is the full cross-entropy over the catalogue instead of one negative an item, which explains most of the distance
between the strong and the weak figures that go by this name (Petrov & Macdonald 2023; Klenitskiy & Vasilev 2023). And
a learned start precedes the first item, so that an empty history has an answer, too. Items without interactions are
trained as wrong answers alone: the cross-entropy moves their vectors away from every context, much in the same way for
all of them. Their scores do not tell one such item from another, so SASRec cannot recommend new items.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from semid_lib.decoding.ranking import Ranked, rank_by_scores
from semid_lib.next_item.timeline import pad


@dataclass(frozen=True)
class SASRecConfig:
    """The shape of a SASRec; the defaults were chosen on Beauty's validation items (see the log)."""

    n_items: int
    dim: int = 64
    n_layers: int = 2
    n_heads: int = 2
    dropout: float = 0.5
    max_length: int = 50  # the most recent items that the model sees


class SASRec(nn.Module):
    """A causal transformer over item vectors, to be trained by `training.fit` on `timeline.training_batches`.

    The recipe that goes with the defaults: batches of 64, a learning rate of 2e-3 and 17 epochs.

    Raises ValueError if the catalogue is empty.

    >>> model = SASRec(SASRecConfig(n_items=5)).eval()
    >>> model.rank([[0, 3], []], k=3).items.shape
    (2, 3)
    """

    def __init__(self, config: SASRecConfig):
        super().__init__()
        if config.n_items < 1:
            raise ValueError(f"n_items must be at least 1, got {config.n_items}")
        self.config = config
        self.item = nn.Embedding(config.n_items, config.dim)
        self.start = nn.Parameter(torch.zeros(config.dim))
        self.position = nn.Embedding(config.max_length + 1, config.dim)
        self.read = nn.Sequential(nn.LayerNorm(config.dim), nn.Dropout(config.dropout))
        layer = nn.TransformerEncoderLayer(
            config.dim, config.n_heads, 4 * config.dim, config.dropout, activation="gelu", batch_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, config.n_layers, enable_nested_tensor=False)
        for table in (self.item, self.position):
            nn.init.normal_(table.weight, std=0.02)

    def forward(self, histories: torch.Tensor) -> torch.Tensor:
        """Mean over all items of a batch of -log p(item | the items before it), a scalar in nats.

        histories: (B, T) item rows in time order, -1 after the end.
        """
        real = histories >= 0
        hidden = self.encode(histories)[:, :-1][real]  # (N, dim)
        return F.cross_entropy(hidden @ self.item.weight.T, histories[real])

    def encode(self, histories: torch.Tensor) -> torch.Tensor:
        """What the model knows after 0, 1, ... T items: (B, T) item rows -> (B, T + 1, dim).

        Raises ValueError if T is above `max_length`.
        """
        if histories.shape[1] > self.config.max_length:
            raise ValueError(f"histories hold {histories.shape[1]} items, expected at most {self.config.max_length}")
        items = self.item(histories.clamp(min=0))  # what stands after the end is seen by nobody: the mask is causal
        x = torch.cat([self.start.expand(len(histories), 1, -1), items], dim=1)
        x = self.read(x + self.position.weight[: x.shape[1]])
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1], device=x.device)
        return self.encoder(x, mask=mask, is_causal=True)

    @torch.inference_mode()
    def scores(self, histories: Sequence[np.ndarray]) -> np.ndarray:
        """The logit of every item after each history, (n, n_items) float32; of long histories the end counts."""
        rows = pad(histories, self.config.max_length).to(self.item.weight.device)
        hidden = self.encode(rows)[torch.arange(len(rows)), (rows >= 0).sum(dim=1)]
        return (hidden @ self.item.weight.T).float().cpu().numpy()

    def rank(
        self, histories: Sequence[np.ndarray], k: int, exclude_seen: bool = True, progress: bool = False
    ) -> Ranked:
        """The k items with the highest logits, every item of the catalogue scored; a model in evaluation mode."""
        return rank_by_scores(histories, self.config.n_items, k, exclude_seen, progress, self.scores)
