"""The timeline model: a history is one position per item, and the next item's codes are written by two voices.

TIGER (Rajput et al. 2023) spells a history out code by code and encodes it once per training prefix. Here every item
is one position, as in RPG (Hou et al. 2025), and a causal transformer is trained on all positions in one pass: one
forward per user instead of one per prefix.

From what the transformer knows two voices speak. *The code head* writes code after code, coarse to fine, as TIGER
does; it is strong far down the list and for items that nobody bought yet. *The item head* is a softmax over the
catalogue, as SASRec has it (Kang & McAuley 2018); items with an embedding of their own make it strong at the top. Both
give every item a probability, and so every prefix of a semantic ID; the model's probability is the mean of the two. It
is still written code by code under the trie, and its beam search approaches the exact mean. A third voice may join: the
item head after it has heard another method, such as item-kNN; then the mean is of three.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from semid_lib.decoding import ranking
from semid_lib.decoding.beam_search import Diversity
from semid_lib.decoding.ranking import Ranked, padded
from semid_lib.decoding.trie import PrefixTrie
from semid_lib.workbench.weights import check_config

# Adam moves all weights at one pace, but an item occurs rarely: its own embedding moves so many times further a step
_PACE = 8
_TEXTS_AT_ONCE = 2**16  # items whose text embeddings are in memory together: 96 MiB of float32 at 384 dimensions
_HISTORIES_AT_ONCE = 50  # in an exact ranking
_ITEMS_AT_ONCE = 2**24  # histories x items that the item head scores in one step: 64 MiB of float32
_SCORES_AT_ONCE = 2**21  # beams x codes x histories in one step: 8 MiB of float32, which stays near the cache


@dataclass(frozen=True)
class TimelineConfig:
    """The shape of a timeline model; what is needed to build it again from its weights."""

    sizes: tuple[int, ...]  # number of codes at each position of a semantic ID, the disambiguation code included
    text_dim: int  # dimensions of the text embeddings
    n_items: int  # the first rows of the catalogue, which get an embedding of their own; later rows are new items
    dim: int = 128  # width of the model
    n_layers: int = 2
    n_heads: int = 2
    dropout: float = 0.2
    item_dropout: float = 0.3  # share of items that are treated as new ones in a training step
    n_sampled: int = 1000  # items beside those of the batch that the item head is trained against in a step
    temperature: float = 0.07  # of the item head's cosines at first; it is learned
    max_length: int = 50  # the most recent items that the model sees

    def __post_init__(self):
        shares = ("dropout", "item_dropout")
        check_config(self, dict.fromkeys(shares, 0) | {"temperature": 1e-6}, dict.fromkeys(shares, 1))
        if self.dim % self.n_heads:
            raise ValueError(f"dim is {self.dim}, expected a multiple of n_heads, {self.n_heads}")


class State(NamedTuple):
    """What decoding carries from level to level, for W beams of each of B histories."""

    hidden: torch.Tensor  # (B, W, dim) float32: the context plus the codes chosen so far
    node: torch.Tensor  # (B, W) int64 nodes of the model's own trie, -1 for a prefix of no item
    written: torch.Tensor  # (B, W, K) log-probability of each longer prefix under the code head
    total: torch.Tensor  # (B, W, K) the same under the model
    code_share: float  # of the code head in the mean
    masses: tuple[torch.Tensor, ...]  # per depth from 1 on: (B, n_nodes) log-probability of a node by the other voices


class Timeline(nn.Module):
    """A causal transformer over items with a head over codes and one over items.

    ids: (n_items, n_positions) integer semantic IDs, each row distinct. vectors: (n_items, text_dim) float text
    embeddings, copied unless they are a float32 tensor, so that `torch.from_numpy` of a mapped array stays mapped. Both
    are buffers: a new item needs a row in each, behind the others, and no training. It is read and recommended by its
    codes and its text; only rows below `config.n_items` have an embedding of their own, and while training a random
    share of them does without.
    """

    def __init__(self, config: TimelineConfig, ids: np.ndarray, vectors: np.ndarray | torch.Tensor):
        super().__init__()
        self.config = config
        n_positions, dim = len(config.sizes), config.dim
        if ids.shape[1] != n_positions or vectors.shape != (len(ids), config.text_dim) or len(ids) < config.n_items:
            raise ValueError(
                f"ids {ids.shape} and vectors {vectors.shape} do not fit sizes {config.sizes}, "
                f"text_dim {config.text_dim} and n_items {config.n_items}"
            )
        self.register_buffer("ids", torch.tensor(ids, dtype=torch.long))
        if not isinstance(vectors, torch.Tensor):
            vectors = torch.tensor(vectors, dtype=torch.float32)
        self.register_buffer("vectors", vectors.float())
        self._trie = PrefixTrie.build(ids)
        self.code = nn.ModuleList(nn.Embedding(size, dim) for size in config.sizes)
        # embeddings come at any scale; without bringing them to one, training took twice as many epochs (see the log)
        self.text = nn.Sequential(
            nn.LayerNorm(config.text_dim, elementwise_affine=False), nn.Linear(config.text_dim, dim)
        )
        self.item = nn.Embedding(config.n_items, dim)
        self.start = nn.Parameter(torch.zeros(dim))  # stands before the first item: an empty history is answered too
        self.position = nn.Embedding(config.max_length + 1, dim)
        self.dropout = Dropout(config.dropout)
        layer = nn.TransformerEncoderLayer(
            dim, config.n_heads, 4 * dim, config.dropout, activation="gelu", batch_first=True, norm_first=True
        )
        layer.dropout, layer.dropout1, layer.dropout2 = (Dropout(config.dropout) for _ in range(3))
        layer.self_attn.dropout = 0.0  # its scores never are in memory as a whole then
        self.encoder = nn.TransformerEncoder(layer, config.n_layers, nn.LayerNorm(dim), enable_nested_tensor=False)
        self.head = nn.ModuleList(HeadLevel(dim, size, config.dropout) for size in config.sizes)
        self.query = nn.Linear(dim, dim)  # what the item head looks for
        self.log_temperature = nn.Parameter(torch.tensor(math.log(config.temperature)))
        for table in self.code:
            nn.init.normal_(table.weight, std=0.5)  # at the scale of the projected text
        nn.init.normal_(self.item.weight, std=0.1 / _PACE)  # at first an item is what its codes and its text say
        nn.init.normal_(self.position.weight, std=0.02)
        self._kept: tuple | None = None  # see `_catalogue`

    def n_targets(self, histories: torch.Tensor) -> torch.Tensor:
        """What the loss of a batch is a mean over, for `training.fit` on several processes."""
        return (histories >= 0).sum()

    def forward(self, histories: torch.Tensor) -> torch.Tensor:
        """Mean over all items of a batch of what the heads lose, a scalar in nats: the sum of their -log p(item).

        histories: (B, T) item rows in time order, -1 after the end. In training the item head's sum over the catalogue
        is estimated: the items of the batch, which are the popular ones, count as they are, and a random sample
        stands for all others.
        """
        real = histories >= 0
        rows, weight = self._compared(histories[real])
        own = torch.rand(self.config.n_items, device=rows.device) >= self.config.item_dropout * self.training
        vectors = self.item_vectors(rows, own)
        at = torch.searchsorted(rows, histories.clamp(min=0)).clamp(max=len(rows) - 1)  # padding reads any of them
        hidden = self._encode(vectors[at])[:, :-1][real]
        scores = F.linear(self._query(hidden), F.normalize(vectors, dim=-1), weight)
        codes = self._negative_log_likelihood(hidden, self.ids[histories[real]])
        return codes + F.cross_entropy(scores, at[real])

    def _compared(self, items: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Item rows in ascending order, those of the batch among them, and the log of how many each one stands for."""
        in_batch = torch.zeros(len(self.ids), dtype=torch.bool, device=items.device)
        in_batch[items] = True
        others = (~in_batch).nonzero()[:, 0]
        n_others = len(others)
        if self.training and n_others > self.config.n_sampled:
            others = others[torch.randperm(n_others, device=items.device)[: self.config.n_sampled]]
        chosen = in_batch.clone()
        chosen[others] = True
        rows = chosen.nonzero()[:, 0]
        log_share = math.log(n_others / len(others)) if len(others) else 0.0
        return rows, torch.where(in_batch[rows], 0.0, log_share)

    def _negative_log_likelihood(self, hidden: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        loss = hidden.new_zeros(())
        for level, head in enumerate(self.head):
            loss = loss + F.cross_entropy(head(hidden), target[:, level])
            if level + 1 < self.n_levels:
                hidden = hidden + self.code[level](target[:, level])
        return loss

    def encode(self, histories: torch.Tensor) -> torch.Tensor:
        """What the model knows after 0, 1, ... T items: (B, T) item rows -> (B, T + 1, dim)."""
        return self._encode(self.item_vectors(histories.clamp(min=0)))

    def _encode(self, items: torch.Tensor) -> torch.Tensor:
        if items.shape[1] > self.config.max_length:
            raise ValueError(f"histories hold {items.shape[1]} items, expected at most {self.config.max_length}")
        x = torch.cat([self.start.expand(len(items), 1, -1), items], dim=1)
        x = self.dropout(x + self.position.weight[: x.shape[1]])
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1], device=x.device)
        return self.encoder(x, mask=mask, is_causal=True)

    def item_vectors(self, rows: torch.Tensor, own: torch.Tensor | None = None) -> torch.Tensor:
        """An item as the model reads it: its codes' embeddings, its projected text and its own embedding, (..., dim).

        own: (n_items,) bool, which of the first `n_items` rows may use theirs; None for all.
        """
        codes, known = self.ids[rows], rows < self.config.n_items
        place = rows.clamp(max=self.config.n_items - 1)
        if own is not None:
            known = known & own[place]
        said = self.text(self.vectors[rows]) + sum(table(codes[..., i]) for i, table in enumerate(self.code))
        return said + _PACE * self.item(place) * known[..., None]

    def _query(self, hidden: torch.Tensor) -> torch.Tensor:
        return F.normalize(self.query(hidden), dim=-1) * torch.exp(-self.log_temperature)

    def rank(
        self,
        histories: Sequence[Sequence[int]],
        k: int,
        exclude_seen: bool = True,
        beam_width: int | None = None,
        progress: bool = False,
        allowed: np.ndarray | None = None,
        diversity: Diversity | tuple[int, int] | None = None,
        prior: Callable[[Sequence[np.ndarray]], np.ndarray] | None = None,
        exact: bool = False,
    ) -> Ranked:
        """Find the k most probable next items after each history; see `ranking.rank`.

        Parameters
        ----------
        histories, k, exclude_seen, progress, allowed, diversity, exact
            As for `ranking.rank`. The model reads the last `config.max_length` items of a longer history.
        beam_width : int, optional
            Prefixes kept per level, at least k; by default max(50, k).
        prior : callable, optional
            histories -> (n, n_items) float32 log-scale scores, such as `ItemKNN.prior`: see `begin`.

        Raises
        ------
        ValueError
            As `ranking.rank` does, and for a model in training mode.
        """
        if self.training:
            raise ValueError("the model is in training mode, with dropout on: call its eval() first")
        k, beam_width = ranking.widths(k, beam_width)
        n_at_once = _HISTORIES_AT_ONCE if exact else _SCORES_AT_ONCE // (beam_width * max(self.config.sizes))

        def contexts(batch: list[np.ndarray], _: np.ndarray):
            recent = pad(batch, self.config.max_length).to(self.start.device)
            return recent if prior is None else (recent, torch.from_numpy(prior(batch)).to(self.start.device))

        return ranking.rank(
            self if prior is None else WithPrior(self),
            self.trie,
            histories,
            k,
            contexts,
            beam_width=beam_width,
            n_at_once=min(n_at_once, _ITEMS_AT_ONCE // len(self.ids)),
            exclude_seen=exclude_seen,
            allowed=allowed,
            diversity=diversity,
            exact=exact,
            progress=progress,
        )

    # what `constrained_beam_search` needs of a model

    @property
    def n_levels(self) -> int:
        return len(self.config.sizes)

    def begin(
        self, histories: torch.Tensor, normalization: str = "vocabulary", prior: torch.Tensor | None = None
    ) -> tuple[State, torch.Tensor]:
        """Encode histories and score the first code of the next item.

        The model averages code head and item head. A prior adds a third component: softmax(item-head scores + prior).
        Each level has its own vocabulary, so both normalizations are the same.

        Parameters
        ----------
        histories : (B, T) int64 tensor
            Item rows in time order, -1 after the end; T <= config.max_length.
        normalization : str
        prior : (B, n_items) float32 tensor, optional
            Log-scale scores in catalogue order, see `ItemKNN.prior`.

        Returns
        -------
        state : State
            Input of `advance`.
        log_probs : (B, 1, sizes[0]) float32 tensor

        Raises
        ------
        ValueError
            If T or the shape of prior does not fit.

        Examples
        --------
        >>> config = TimelineConfig(sizes=(2, 2), text_dim=2, n_items=3, dim=8, n_layers=1, n_heads=1)
        >>> model = Timeline(config, np.array([[0, 0], [0, 1], [1, 0]]), np.eye(3, 2)).eval()
        >>> model.begin(torch.tensor([[0, 2], [1, -1]]))[1].shape
        torch.Size([2, 1, 2])
        """
        lengths = (histories >= 0).sum(dim=1)
        hidden = self.encode(histories)[torch.arange(len(histories), device=histories.device), lengths]
        scores = F.linear(self._query(hidden), self._catalogue())
        listed, code_share = scores.log_softmax(dim=-1), 1 / 2
        if prior is not None:
            if prior.shape != scores.shape:
                raise ValueError(f"the prior is {tuple(prior.shape)}, expected {tuple(scores.shape)}: histories, items")
            advised = (scores + prior[:, self.trie.item.long()]).log_softmax(dim=-1)
            # without the item head's own word, items that the other method does not know would be lost in the tail
            listed, code_share = torch.logaddexp(listed, advised) - math.log(2), 1 / 3
        masses = log_masses(self.trie, listed)
        root = torch.zeros((len(hidden), 1), dtype=torch.long, device=hidden.device)
        nothing = hidden.new_zeros(root.shape)
        return self._score(0, hidden[:, None], root, nothing, nothing, code_share, masses)

    def advance(
        self, state: State, level: int, parents: torch.Tensor, codes: torch.Tensor
    ) -> tuple[State, torch.Tensor]:
        """Extend beams by a code and score the next: parents (B, W) index the old beams, codes (B, W) of `level`.

        Returns the new state and log-probabilities (B, W, sizes[level + 1]).
        """
        hidden = state.hidden.gather(1, parents[..., None].expand(-1, -1, state.hidden.shape[-1]))
        node = self.trie.step(level, state.node.gather(1, parents), codes)
        at = parents * self.config.sizes[level] + codes
        written, total = (scores.flatten(1).gather(1, at) for scores in (state.written, state.total))
        hidden = hidden + self.code[level](codes)
        return self._score(level + 1, hidden, node, written, total, state.code_share, state.masses)

    def _score(self, level: int, hidden, node, written, total, code_share, masses) -> tuple[State, torch.Tensor]:
        """All voices' probabilities of prefixes that are one code longer, and of that code given the prefix."""
        written = written[..., None] + self.head[level](hidden).log_softmax(dim=-1)
        listed = self._listed(level, node, masses[level]) + math.log((1 - code_share) / code_share)
        longer = torch.logaddexp(written, listed) + math.log(code_share)
        return State(hidden, node, written, longer, code_share, masses), longer - total[..., None]

    def _listed(self, level: int, node: torch.Tensor, mass: torch.Tensor) -> torch.Tensor:
        """What the voices that know items give to the children of nodes (B, W): (B, W, sizes[level]), -inf for none."""
        trie, known = self.trie, node.clamp(min=0)
        first = trie.child_start[level][known].long()
        column = torch.arange(trie.branching[level], device=node.device)
        child = (first[..., None] + column).clamp(max=trie.n_nodes(level + 1) - 1)
        real = (column < (trie.child_start[level][known + 1] - first)[..., None]) & (node >= 0)[..., None]
        unused = self.config.sizes[level]  # a column for the unused places, which is cut off
        code = trie.code[level][child].long().masked_fill(~real, unused)
        listed = mass.new_full((*node.shape, unused + 1), -torch.inf)
        return listed.scatter_(2, code, mass.gather(1, child.flatten(1)).view(child.shape))[..., :-1]

    def _catalogue(self) -> torch.Tensor:
        """All items as the item head compares them, in the order of the leaves: (n_items, dim) of unit length.

        Kept while no gradient is asked for and no weight changes, since for one user they cost more than all the rest.
        """
        leaves = self.trie.item.long()
        weights = [self.item.weight, *self.text.parameters(), *(table.weight for table in self.code)]
        if torch.is_grad_enabled():
            return F.normalize(self.item_vectors(leaves), dim=-1)
        version = [(weight.data_ptr(), weight._version) for weight in weights]
        kept = self._kept
        if kept is None or kept[0] != version:
            vectors = torch.empty(len(leaves), self.config.dim, device=leaves.device)
            for part, some in zip(vectors.split(_TEXTS_AT_ONCE), leaves.split(_TEXTS_AT_ONCE), strict=True):
                part.copy_(F.normalize(self.item_vectors(some), dim=-1))
            kept = self._kept = version, vectors
        return kept[1]

    @property
    def trie(self) -> PrefixTrie:
        """The prefix trie of all items, on the device of the model."""
        self._trie = self._trie.to(self.start.device)
        return self._trie


class WithPrior(NamedTuple):
    """A timeline model as a `Scorer` whose contexts are pairs of histories and prior, see `Timeline.begin`."""

    model: Timeline

    @property
    def n_levels(self) -> int:
        return self.model.n_levels

    def begin(self, contexts: tuple[torch.Tensor, torch.Tensor], normalization: str = "vocabulary"):
        histories, prior = contexts
        return self.model.begin(histories, normalization, prior)

    def advance(self, state: State, level: int, parents: torch.Tensor, codes: torch.Tensor):
        return self.model.advance(state, level, parents, codes)


def log_masses(trie: PrefixTrie, leaf_scores: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Log of the summed probabilities under each node: (B, n_leaves) log-probabilities of the leaves in their order.

    Returns (B, n_nodes) for each depth from 1 to the last, which is `leaf_scores` itself.

    >>> trie = PrefixTrie.build(np.array([[0, 0], [0, 1], [1, 0]]))
    >>> [mass.exp().tolist() for mass in log_masses(trie, torch.tensor([[0.5, 0.25, 0.25]]).log())]
    [[[0.75, 0.25]], [[0.5, 0.25, 0.25]]]
    """
    highest = leaf_scores.amax(dim=1, keepdim=True)
    weight, masses = torch.exp(leaf_scores - highest), []
    for depth in range(1, trie.n_levels):
        nodes = torch.arange(trie.n_nodes(depth), device=weight.device)
        above = nodes.repeat_interleave(trie.leaf_start[depth].diff())  # of each leaf, its node
        total = weight.new_zeros((len(weight), len(nodes))).index_add(1, above, weight)
        masses.append(torch.log(total + torch.finfo(total.dtype).tiny) + highest)
    return (*masses, leaf_scores)


class Dropout(nn.Module):
    """Dropout that draws a byte for each number: on a CPU torch's own took a quarter of a training step (see the log).

    The share is rounded to 256ths.
    """

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


def pad(histories: Sequence[np.ndarray], max_length: int | None = None) -> torch.Tensor:
    """`ranking.padded` as a tensor."""
    return torch.from_numpy(padded(histories, max_length))


def training_batches(histories: Sequence[np.ndarray], max_length: int, batch_size: int, seed: int = 0) -> DataLoader:
    """Batches for `training.fit`: (B, T) item rows padded with -1, sequences of similar length together.

    Histories without an item teach nothing and are left out; of longer ones than `max_length` the end is kept.
    """
    from semid_lib.workbench.training import LengthBuckets  # accelerate comes with it, which a service does without

    histories = [history for history in histories if len(history)]
    if not histories:
        raise ValueError("no history holds an item: there is nothing to train on")
    lengths = np.minimum([len(history) for history in histories], max_length)
    return DataLoader(
        histories,
        batch_sampler=LengthBuckets(lengths, batch_size, seed),
        collate_fn=lambda rows: pad(rows, max_length),
    )
