"""SASRec: self-attention over item embeddings, a baseline without semantic IDs (Kang & McAuley 2018).

One learned vector per item serves as input and output. Two things differ from the paper. The loss is the full
cross-entropy over the catalogue instead of one negative per item, which explains most of the distance between the
strong and the weak figures that go by this name (Petrov & Macdonald 2023; Klenitskiy & Vasilev 2023). And a learned
start precedes the first item, so that an empty history can be encoded.

SASRec cannot recommend new items: those without interactions are trained as wrong answers only, which moves all their
vectors in much the same way, so that their scores do not tell one from another.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from semid_lib.decoding.ranking import ItemRows, Ranked, rank_by_scores
from semid_lib.next_item.batches import pad


@dataclass(frozen=True)
class SASRecConfig:
    """The shape of a SASRec; the defaults were chosen on Beauty's validation items (see the log)."""

    n_items: int
    dim: int = 64
    n_layers: int = 2
    n_heads: int = 2
    dropout: float = 0.5
    max_length: int = 50  # the most recent items that the model reads


class SASRec(nn.Module):
    """A causal transformer over item vectors, trained by `training.fit` on `batches.histories_in_batches`.

    Examples
    --------
    >>> model = SASRec(SASRecConfig(n_items=5)).eval()
    >>> model.rank([[0, 3], []], k=3).items.shape
    (2, 3)
    """

    def __init__(self, config: SASRecConfig):
        super().__init__()
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

        Parameters
        ----------
        histories : (B, T) int64 tensor
            Item rows in time order, -1 after the end.
        """
        real = histories >= 0
        hidden = self.encode(histories)[:, :-1][real]  # (N, dim)
        return F.cross_entropy(hidden @ self.item.weight.T, histories[real])

    def encode(self, histories: torch.Tensor) -> torch.Tensor:
        """Encode the first 0, 1, ... T <= max_length items of each history: (B, T) item rows -> (B, T + 1, dim)."""
        if histories.shape[1] > self.config.max_length:
            raise ValueError(f"histories hold {histories.shape[1]} items, expected at most {self.config.max_length}")
        items = self.item(histories.clamp(min=0))  # the causal mask hides the padding
        x = torch.cat([self.start.expand(len(histories), 1, -1), items], dim=1)
        x = self.read(x + self.position.weight[: x.shape[1]])
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1], device=x.device)
        return self.encoder(x, mask=mask, is_causal=True)

    @torch.inference_mode()
    def scores(self, histories: Sequence[np.ndarray]) -> np.ndarray:
        """Logits of all items after the last `max_length` items of each history, (n, n_items) float32."""
        rows = pad(histories, self.config.max_length).to(self.item.weight.device)
        hidden = self.encode(rows)[torch.arange(len(rows)), (rows >= 0).sum(dim=1)]
        return (hidden @ self.item.weight.T).float().cpu().numpy()

    def rank(self, histories: ItemRows, k: int, exclude_seen: bool = True, progress: bool = False) -> Ranked:
        """Find the k items with the highest logits; the model must be in evaluation mode."""
        return rank_by_scores(histories, self.config.n_items, k, exclude_seen, progress, self.scores)
