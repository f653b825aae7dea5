"""The timeline model: one position per item, and a mixture of two heads that generates the codes of the next item.

TIGER (Rajput et al. 2023) spells a history out code by code and encodes it once per training prefix. Here every item is
one position, as in RPG (Hou et al. 2025), and a causal transformer trains on all positions in one pass.

There are two heads, each with an encoder of its own. The *code head* scores one code after the other, coarse to fine,
as TIGER does; it is strong far down the list and for cold items. The *item head* is a softmax over the catalogue, as in
SASRec (Kang & McAuley 2018); item embeddings make it strong at the top. The model's probability is a mixture of the
two. It can still be decoded code by code under the trie, because both heads give every prefix of a semantic ID a
probability. A prior, such as the scores of SLIST added to those of the item head, makes a third component.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import cast

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from semid_lib.decoding import ranking
from semid_lib.decoding.ranking import ItemRows, Ranked
from semid_lib.decoding.trie import PrefixTrie
from semid_lib.next_item.baselines import trend
from semid_lib.next_item.batches import pad, some_backward
from semid_lib.next_item.layers import (
    Context,
    HeadLevel,
    HistoryEncoder,
    TimelineConfig,
    TimelineState,
    checked_weights,
    prefix_log_probs,
)

_PACE = 8  # item embeddings move so many times further per step of Adam, because an item occurs rarely
_TEXTS_AT_ONCE = 2**16  # items whose text embeddings are in memory together: 96 MiB of float32 at 384 dimensions
_HISTORIES_AT_ONCE = 50  # in an exact ranking
_ITEMS_AT_ONCE = 2**24  # histories x items that the item head scores in one step: 64 MiB of float32
_SCORES_AT_ONCE = 2**21  # beams x codes x histories in one step: 8 MiB of float32, which stays near the cache


class Timeline(nn.Module):
    """A causal transformer over items with a head over codes and one over items.

    Only rows below `config.n_items` have an item embedding. Training drops it at random, so that the model can read and
    recommend new items by codes and text. Train it on the items of the training period alone, and add later ones
    afterwards (`Recommender.add_items`): then they are unknown to it, and not wrong answers.

    Parameters
    ----------
    config : TimelineConfig
    ids : (n_items, n_positions) int64 array
        Semantic IDs, each row distinct.
    vectors : (n_items, text_dim) float array or float32 tensor
        Text embeddings. A tensor is not copied: `torch.from_numpy` of a mapped array stays mapped.

    Raises
    ------
    ValueError
        If the shapes of ids or vectors do not fit config.
    """

    ids: torch.Tensor
    vectors: torch.Tensor
    n_trained: torch.Tensor  # (config.n_items,) int64: how often training showed each item; 0 if nobody noted it
    trend: torch.Tensor  # (n_items,) float32, added to the scores of the item head: see `set_trend`

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
        self.register_buffer("n_trained", torch.zeros(config.n_items, dtype=torch.long))
        self.register_buffer("trend", torch.zeros(len(ids)))
        self._trie = PrefixTrie.build(ids)
        self.code = nn.ModuleList(nn.Embedding(size, dim) for size in config.sizes)
        # without normalizing the scale of the embeddings, training took twice as many epochs (see the log)
        self.text = nn.Sequential(
            nn.LayerNorm(config.text_dim, elementwise_affine=False), nn.Linear(config.text_dim, dim)
        )
        self.item = nn.Embedding(config.n_items, dim)
        self.item_encoder, self.code_encoder = HistoryEncoder(config), HistoryEncoder(config)
        self.query = nn.Linear(dim, dim)  # input of the item head
        self.log_temperature = nn.Parameter(torch.tensor(math.log(config.temperature)))
        self.head = nn.ModuleList(HeadLevel(dim, size, config.dropout) for size in config.sizes)
        self.chosen = nn.ModuleList(nn.Embedding(size, dim) for size in config.sizes[:-1])  # for the next level's head
        for table in (*self.code.children(), *self.chosen.children()):
            nn.init.normal_(cast("torch.Tensor", table.weight), std=0.5)  # at the scale of the projected text
        nn.init.normal_(self.item.weight, std=0.1 / _PACE)  # at first, codes and text dominate
        for part in (self.code_encoder, self.head, self.chosen):
            part.requires_grad_(config.code_weight > 0)
        for part in (self.item_encoder, self.query, self.log_temperature):  # type: ignore[assignment]
            part.requires_grad_(config.code_weight < 1)
        self._kept: tuple | None = None  # see `_catalogue`

    def n_targets(self, histories: torch.Tensor) -> torch.Tensor:
        """The number of targets in a batch, over which its loss is a mean; for `training.fit` in several processes."""
        return (histories >= 0).sum()

    def forward(self, histories: torch.Tensor) -> torch.Tensor:
        """Mean over all items of a batch of -log p(item), summed over the heads: a scalar in nats.

        In training, the item head's sum over the catalogue is estimated from the items of the batch and a random sample
        of all others, which is weighted up, and some histories are read backward: what was bought before an item also
        says which items belong together.

        Parameters
        ----------
        histories : (B, T) int64 tensor
            Item rows in time order, -1 after the end.
        """
        real = histories >= 0
        histories, backward = some_backward(histories, self.config.backward * self.training)
        rows, weight = self._compared(histories[real])
        own = torch.rand(self.config.n_items, device=rows.device) >= self.config.item_dropout * self.training
        vectors = self.item_vectors(rows, own)
        at = torch.searchsorted(rows, histories.clamp(min=0)).clamp(max=len(rows) - 1)  # padding reads any of them
        read, loss = vectors[at], vectors.new_zeros(())
        if self.config.code_weight > 0:
            # beside the item head it does not change what it reads: what helps codes harms items (see the log)
            codes_read = read.detach() if self.config.code_weight < 1 else read
            hidden = self.code_encoder(codes_read, backward)[:, :-1][real]
            loss = loss + self._negative_log_likelihood(hidden, self.ids[histories[real]])
        if self.config.code_weight < 1:
            hidden = self.item_encoder(read, backward)[:, :-1][real]
            scores = F.linear(self._query(hidden), F.normalize(vectors, dim=-1), weight)
            loss = loss + F.cross_entropy(scores, at[real])
        return loss

    def _compared(self, items: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Item rows in ascending order, with those of the batch, and the log of each one's weight."""
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
                hidden = hidden + self.chosen[level](target[:, level])
        return loss

    def item_vectors(self, rows: torch.Tensor, own: torch.Tensor | None = None) -> torch.Tensor:
        """Vectors of items: the sum of code embeddings, projected text and item embedding, (..., dim).

        own: (n_items,) bool, which of the first `n_items` rows use their item embedding; None for all.
        """
        codes, known = self.ids[rows], rows < self.config.n_items
        place = rows.clamp(max=self.config.n_items - 1)
        if own is not None:
            known = known & own[place]
        content = self.text(self.vectors[rows]) + sum(table(codes[..., i]) for i, table in enumerate(self.code))
        return content + _PACE * self.item(place) * known[..., None]

    def _query(self, hidden: torch.Tensor) -> torch.Tensor:
        return F.normalize(self.query(hidden), dim=-1) * torch.exp(-self.log_temperature)

    def rank(
        self,
        histories: ItemRows,
        k: int,
        exclude_seen: bool = True,
        beam_width: int | None = None,
        progress: bool = False,
        allowed: np.ndarray | None = None,
        diversity: tuple[int, int] | None = None,
        prior: Callable[[Sequence[np.ndarray]], np.ndarray] | None = None,
        weights: Sequence[float] | None = None,
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
        weights : sequence of float, optional
            Mixture weights of the code head, the item head and, with a prior, the item head with prior. By default,
            the last has 1/3, and the rest is shared as the config says.

        Raises
        ------
        ValueError
            As `ranking.rank` does, and for a model in training mode.
        """
        k, beam_width = ranking.widths(k, beam_width)
        n_at_once = _HISTORIES_AT_ONCE if exact else _SCORES_AT_ONCE // (beam_width * max(self.config.sizes))

        return ranking.rank(
            self,
            self.trie,
            histories,
            k,
            lambda batch, _: self.context(batch, prior, weights),
            beam_width=beam_width,
            n_at_once=min(n_at_once, _ITEMS_AT_ONCE // len(self.ids)),
            exclude_seen=exclude_seen,
            allowed=allowed,
            diversity=diversity,
            exact=exact,
            progress=progress,
        )

    def context(self, histories: Sequence[np.ndarray], prior=None, weights: Sequence[float] | None = None) -> Context:
        """The input of `begin` for histories of item rows; prior and weights as for `rank`."""
        if self.training:
            raise ValueError("the model is in training mode, with dropout on: call its eval() first")
        recent = pad(histories, self.config.max_length).to(self.query.weight.device)
        scores = None if prior is None else torch.from_numpy(prior(histories)).to(self.query.weight.device)
        return Context(recent, scores, None if weights is None else tuple(weights))

    @property  # what `constrained_beam_search` needs of a model begins here
    def n_levels(self) -> int:
        return len(self.config.sizes)

    def begin(
        self, contexts: torch.Tensor | Context, normalization: str = "vocabulary"
    ) -> tuple[TimelineState, torch.Tensor]:
        """Encode histories and score the first code of the next item.

        The model mixes code head and item head. A prior adds a third component: softmax(item-head scores + prior).
        Each level has its own vocabulary, so both normalizations are the same.

        Parameters
        ----------
        contexts : Context, or its histories alone
        normalization : str

        Returns
        -------
        state : TimelineState
            Input of `advance`.
        log_probs : (B, 1, sizes[0]) float32 tensor

        Raises
        ------
        ValueError
            If T or the shape of the prior does not fit.

        Examples
        --------
        >>> config = TimelineConfig(sizes=(2, 2), text_dim=2, n_items=3, dim=8, n_layers=1, n_heads=1)
        >>> model = Timeline(config, np.array([[0, 0], [0, 1], [1, 0]]), np.eye(3, 2)).eval()
        >>> model.begin(torch.tensor([[0, 2], [1, -1]]))[1].shape
        torch.Size([2, 1, 2])
        """
        histories, prior, weights = contexts if isinstance(contexts, Context) else Context(contexts)
        if weights is not None:
            weights = checked_weights(weights, 2 if prior is None else 3)
        else:
            of_prior, of_codes = 0 if prior is None else 1 / 3, self.config.code_weight
            weights = ((1 - of_prior) * of_codes, (1 - of_prior) * (1 - of_codes), of_prior)
        end = torch.arange(len(histories), device=histories.device), (histories >= 0).sum(dim=1)
        vectors = self.item_vectors(histories.clamp(min=0))
        code_weight, by_item = weights[0], cast("tuple[torch.Tensor, ...]", ())
        if code_weight < 1:
            hidden = self.item_encoder(vectors)[end]
            leaves = self.trie.item.long()
            scores, components = F.linear(self._query(hidden), self._catalogue()) + self.trend[leaves], []
            if weights[1]:
                components.append(self._log_shares(scores) + math.log(weights[1]))
            if prior is not None and weights[2]:
                if prior.shape != scores.shape:
                    expected = f"expected {tuple(scores.shape)}: histories, items"
                    raise ValueError(f"the prior is {tuple(prior.shape)}, {expected}")
                components.append(self._log_shares(scores + prior[:, leaves]) + math.log(weights[2]))
            by_item = prefix_log_probs(self.trie, functools.reduce(torch.logaddexp, components))
        hidden = self.code_encoder(vectors)[end] if code_weight else vectors.new_zeros((len(vectors), self.config.dim))
        root = torch.zeros((len(hidden), 1), dtype=torch.long, device=hidden.device)
        zero = hidden.new_zeros(root.shape)
        return self._score(0, hidden[:, None], root, zero, zero, code_weight, by_item)

    def _log_shares(self, scores: torch.Tensor) -> torch.Tensor:
        """Log-probabilities of the leaves: one softmax over all items, or one of known and one of new items."""
        n_known, rate = self.config.n_items, self.config.new_item_rate
        n_new = rate * (len(self.ids) - n_known)
        if not n_new:
            return scores.log_softmax(dim=-1)
        found, is_new = torch.empty_like(scores), self.trie.item >= n_known
        for part, weight in ((is_new, n_new), (~is_new, n_known)):
            found[:, part] = scores[:, part].log_softmax(dim=-1) + math.log(weight / (n_new + n_known))
        return found

    def set_trend(self, recent: np.ndarray | None, smoothing: float = 0.3) -> None:
        """Let the item head follow what sells now, without training: see `baselines.trend`.

        Parameters
        ----------
        recent : (n_items,) array of numbers, optional
            Sales of each item in the last weeks, also of new ones; None to forget them.
        smoothing : float

        Raises
        ------
        ValueError
            As `baselines.trend` does, and if the model does not know how often training showed each item.
        """
        if recent is not None and not self.n_trained.any():
            raise ValueError("this model does not know how often training showed each item: train it again")
        trained = np.pad(self.n_trained.cpu().numpy(), (0, len(self.ids) - self.config.n_items))
        found = np.zeros(len(trained), np.float32) if recent is None else trend(recent, trained, smoothing)
        self.trend = torch.from_numpy(found).to(self.trend.device)

    def advance(
        self, state: TimelineState, level: int, parents: torch.Tensor, codes: torch.Tensor
    ) -> tuple[TimelineState, torch.Tensor]:
        """Extend beams by one code and score the next level.

        Parameters
        ----------
        state : TimelineState
        level : int
            Of `codes`.
        parents : (B, W) int64 tensor
            Positions among the old beams.
        codes : (B, W) int64 tensor

        Returns
        -------
        state : TimelineState
        log_probs : (B, W, sizes[level + 1]) float32 tensor
        """
        hidden = state.hidden.gather(1, parents[..., None].expand(-1, -1, state.hidden.shape[-1]))
        node = self.trie.step(level, state.node.gather(1, parents), codes)
        at = parents * self.config.sizes[level] + codes
        by_code, total = (scores.flatten(1).gather(1, at) for scores in (state.by_code, state.total))
        hidden = hidden + self.chosen[level](codes)
        return self._score(level + 1, hidden, node, by_code, total, state.code_weight, state.by_item)

    def _score(
        self, level: int, hidden, node, by_code, total, code_weight, by_item
    ) -> tuple[TimelineState, torch.Tensor]:
        """Log-probabilities of prefixes that are one code longer, and of that code given the prefix."""
        longer = []
        if code_weight:
            by_code = by_code[..., None] + self.head[level](hidden).log_softmax(dim=-1)
            longer.append(by_code + math.log(code_weight))
        else:
            by_code = by_code[..., None].expand(*by_code.shape, self.config.sizes[level])  # not used
        if by_item:
            longer.append(self._of_children(level, node, by_item[level]))
        mixed = functools.reduce(torch.logaddexp, longer)
        before = total[..., None].clamp(min=torch.finfo(total.dtype).min)  # no item is below some prefixes
        return TimelineState(hidden, node, by_code, mixed, code_weight, by_item), mixed - before

    def _of_children(self, level: int, node: torch.Tensor, log_probs: torch.Tensor) -> torch.Tensor:
        """Log-probabilities of the children of nodes (B, W), by code: (B, W, sizes[level]), -inf for none."""
        row, child = self.trie.listed(level, node.flatten())
        found = log_probs.new_full((node.numel(), self.config.sizes[level]), -torch.inf)
        found[row, self.trie.code[level][child].long()] = log_probs[row // node.shape[1], child]
        return found.view(*node.shape, -1)

    def _catalogue(self) -> torch.Tensor:
        """Unit vectors of all items in the order of the leaves, (n_items, dim); cached until a weight changes.

        For one user they cost more than everything else.
        """
        leaves = self.trie.item.long()
        weights = [self.item.weight, *self.text.parameters(), *self.code.parameters()]
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
        self._trie = self._trie.to(self.query.weight.device)
        return self._trie
