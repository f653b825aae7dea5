"""The hybrid ranker: a small model for a CPU that generates semantic IDs from a query's vector and words.

At each level it adds two kinds of logits. *Text scores*: the frozen sentence encoder's cosine between query and items,
and optionally a word score such as BM25, as a distribution over the catalogue, summed up to the nodes of the trie.
Alone they rank by the sum of both scores, new items included. *Trained scores*: the code head of the timeline
model on the query's vector and hashed words, trained on synthetic queries. Both are normalized over the children of a
prefix, so the probabilities of the items sum to one.
"""

import hashlib
import json
import threading
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import regex
import torch
from safetensors import SafetensorError, safe_open
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from semid_lib.decoding.trie import PrefixTrie
from semid_lib.ids import embed as encoders
from semid_lib.ids.semantic_ids import SemanticIDs
from semid_lib.next_item.layers import HeadLevel, prefix_log_probs
from semid_lib.search.generative import GenerativeSearch
from semid_lib.search.retrieval import BM25
from semid_lib.workbench.text import one_line
from semid_lib.workbench.weights import check_config, check_shapes, load_weights, save_weights

_WORD = regex.compile(r"\w+")  # unlike re, with the marks of Hindi or Thai
_FORMAT, _WORDS = "query model 1", "word_index.safetensors"
_GRAMS = 64  # hashed pieces of a query that are looked at


@dataclass(frozen=True)
class HybridRankerConfig:
    """The shape of a hybrid ranker."""

    sizes: tuple[int, ...]  # number of codes at each position of a semantic ID
    text_dim: int  # dimensions of query and item vectors
    dim: int = 256  # width of the code head
    dropout: float = 0.2
    n_buckets: int = 2**15  # rows of the table of hashed words
    temperature: float = 0.05  # of the text scores; the initial value, it is trained
    word_weight: float = 0.0  # factor of word scores when added to cosines, see `balanced_weight`; 0: no word scores

    def __post_init__(self):
        least = {"dropout": 0, "n_buckets": 2, "temperature": 1e-6, "word_weight": 0}
        check_config(self, least, below={"dropout": 1})

    def weight_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the large tensors, to check a file before memory is allocated."""
        large: dict[str, tuple[int, ...]] = {
            "read.1.weight": (self.dim, self.text_dim),
            "words.weight": (self.n_buckets, self.dim),
        }
        return large | {f"head.{level}.out.weight": (size, self.dim) for level, size in enumerate(self.sizes)}


class Queries(NamedTuple):
    """Input of the model."""

    vectors: torch.Tensor  # (B, text_dim) float32 of unit length
    words: torch.Tensor  # (B, 64) int64 from `hashed_words`
    matches: torch.Tensor | None = None  # (B, n_items) float32 word scores by item row, only with a `word_weight`

    def to(self, device) -> "Queries":
        matches = None if self.matches is None else self.matches.to(device)
        return Queries(self.vectors.to(device), self.words.to(device), matches)


class State(NamedTuple):
    """State of the decoding between two levels."""

    hidden: torch.Tensor  # (B, W, dim): the query plus the codes chosen so far
    node: torch.Tensor  # (B, W) int64 nodes of the model's own trie
    text_scores: tuple[torch.Tensor, ...]  # per depth from 1: (B, n_nodes) log of the sum over the items of a node


class HybridRanker(nn.Module):
    """Scores codes for queries; a `beam_search.Scorer`.

    Parameters
    ----------
    config : HybridRankerConfig
    ids : (n_items, n_levels) int array
        Distinct semantic IDs.
    vectors : (n_items, text_dim) array
        Item embeddings of unit length, from the encoder of the queries. They are not trained, so `load` can combine
        the saved weights with another catalogue, such as one with new items.
    """

    def __init__(self, config: HybridRankerConfig, ids: np.ndarray, vectors: np.ndarray):
        super().__init__()
        self.config = config
        dim = config.dim
        self.read = nn.Sequential(
            nn.LayerNorm(config.text_dim, elementwise_affine=False), nn.Linear(config.text_dim, dim)
        )
        self.words = nn.EmbeddingBag(config.n_buckets, dim, mode="sum", padding_idx=0)
        self.dropout = nn.Dropout(config.dropout)
        self.code = nn.ModuleList(nn.Embedding(size, dim) for size in config.sizes[:-1])
        self.head = nn.ModuleList(HeadLevel(dim, size, config.dropout) for size in config.sizes)
        self.log_temperature = nn.Parameter(torch.tensor(float(np.log(config.temperature))))
        nn.init.normal_(self.words.weight, std=0.05)
        for parameter in (parameter for head in self.head for parameter in head.get_submodule("out").parameters()):
            nn.init.zeros_(parameter)  # an untrained model ranks by the text scores alone
        ids, vectors = np.asarray(ids), np.asarray(vectors, dtype=np.float32)
        fits = ids.shape == (len(vectors), self.n_levels) and vectors.shape == (len(vectors), config.text_dim)
        if not fits or (ids >= np.array(config.sizes)).any():
            raise ValueError(
                f"ids {ids.shape} with codes up to {ids.max(axis=0).tolist()} and vectors {vectors.shape} do not fit "
                f"sizes {config.sizes} and text_dim {config.text_dim}"
            )
        self.trie = PrefixTrie.build(ids)
        self.leaf_vectors: torch.Tensor
        self.register_buffer("leaf_vectors", torch.from_numpy(vectors[self.trie.item.numpy()]), persistent=False)

    def save(self, path: str | Path) -> None:
        """Write weights and config, but not the catalogue, as one safetensors file."""
        weights = {name: weight.contiguous() for name, weight in self.state_dict().items()}
        save_weights(path, weights, metadata={"format": _FORMAT, "config": json.dumps(asdict(self.config))})

    @classmethod
    def load(cls, path: str | Path, ids: np.ndarray, vectors: np.ndarray) -> "HybridRanker":
        """Read the file of `save` for a catalogue, the one of training or another; in evaluation mode.

        Raises ValueError that names the file if it is not such a file, or does not fit its config or the catalogue.
        """
        try:
            with safe_open(path, framework="pt") as saved:
                facts = saved.metadata() or {}
            if facts.get("format") != _FORMAT:
                raise ValueError(f"expected format {_FORMAT!r}")
            config = json.loads(facts["config"])
            config = HybridRankerConfig(**config | {"sizes": tuple(config["sizes"])})
            check_shapes(path, config.weight_shapes())
            model = cls(config, ids, vectors)
            model.load_state_dict(load_weights(path))
        except (OSError, SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
            why = one_line(str(error), 300).removeprefix(f"{path}: ")
            raise ValueError(f"{path} is not a hybrid ranker of this catalogue: {why}") from error
        return model.eval()

    @property
    def n_levels(self) -> int:
        return len(self.config.sizes)

    def forward(self, batch: tuple[Queries, torch.Tensor]) -> torch.Tensor:
        """Mean of -log p(item | query), in nats, over a batch of queries and their target item rows (B,)."""
        queries, items = batch
        hidden, text_scores = self._read(queries), self._text_scores(queries)
        leaf = self._trie().leaf_of_item[items].long()
        node, loss = torch.zeros_like(leaf), hidden.new_zeros(())
        for level in range(self.n_levels):
            target = self._trie().ancestor(level + 1, leaf)
            logits, child, _ = self._logits(level, node[:, None], hidden[:, None], text_scores)
            loss = loss + F.cross_entropy(logits[:, 0], target - child[:, 0, 0])
            if level + 1 < self.n_levels:
                hidden = hidden + self.code[level](self._trie().code[level][target].long())
            node = target
        return loss

    def begin(self, queries: Queries, normalization: str = "vocabulary") -> tuple[State, torch.Tensor]:
        """Encode queries and score the first code: -> state, log-probabilities (B, 1, sizes[0]).

        `normalization` has no effect: probabilities are always normalized over the children in the trie.
        """
        queries = queries.to(self.log_temperature.device)
        hidden = self._read(queries)[:, None]
        node = torch.zeros(hidden.shape[:2], dtype=torch.long, device=hidden.device)
        state = State(hidden, node, self._text_scores(queries))
        return state, self._log_probabilities(state, 0)

    def advance(
        self, state: State, level: int, parents: torch.Tensor, codes: torch.Tensor
    ) -> tuple[State, torch.Tensor]:
        """Extend beams by a code of `level`, score the next: -> state, log-probabilities (B, W, sizes[level + 1])."""
        node = self._trie().step(level, state.node.gather(1, parents), codes).clamp(min=0)
        hidden = state.hidden.gather(1, parents[..., None].expand(-1, -1, state.hidden.shape[-1]))
        state = State(hidden + self.code[level](codes), node, state.text_scores)
        return state, self._log_probabilities(state, level + 1)

    def _read(self, queries: Queries) -> torch.Tensor:
        words = queries.words
        if self.training:  # queries often lack whole words, or spell them differently
            words = words.masked_fill(torch.rand(words.shape, device=words.device) < 0.3, 0)
        return self.dropout(self.read(queries.vectors) + self.words(words))

    def _text_scores(self, queries: Queries) -> tuple[torch.Tensor, ...]:
        """Log of the sum of exp(text score / temperature) of the items under each node, depth by depth."""
        items = queries.vectors @ self.leaf_vectors.T
        if queries.matches is not None:
            items = items + self.config.word_weight * queries.matches[:, self._trie().item]
        return prefix_log_probs(self._trie(), items * torch.exp(-self.log_temperature))

    def _logits(self, level: int, node: torch.Tensor, hidden: torch.Tensor, text_scores) -> tuple[torch.Tensor, ...]:
        """Of the children of nodes (B, W): logits, -inf in unused places, nodes and codes, (B, W, branching) each."""
        trie = self._trie()
        first = trie.child_start[level][node].long()
        column = torch.arange(trie.branching[level], device=node.device)
        child = first[..., None] + column
        real = column < (trie.child_start[level][node + 1] - first)[..., None]
        place = child.clamp(max=trie.n_nodes(level + 1) - 1)
        code = trie.code[level][place].long()
        from_texts = text_scores[level].gather(1, place.flatten(1)).view(place.shape)
        trained = self.head[level](hidden).gather(2, code)
        return (from_texts + trained).masked_fill(~real, -torch.inf), child, code

    def _log_probabilities(self, state: State, level: int) -> torch.Tensor:
        logits, _, code = self._logits(level, state.node, state.hidden, state.text_scores)
        scores = logits.log_softmax(dim=-1)
        unused = self.config.sizes[level]  # a column for the unused places, which is cut off
        everything = scores.new_full((*scores.shape[:2], unused + 1), -torch.inf)
        code = code.masked_fill(scores == -torch.inf, unused)
        return everything.scatter_(2, code, scores)[..., :-1]

    def _trie(self) -> PrefixTrie:
        self.trie = self.trie.to(self.log_temperature.device)
        return self.trie


class HybridSearch(GenerativeSearch):
    """Search by a hybrid ranker, which reads the vector and the words of a query.

    Parameters
    ----------
    model : HybridRanker
    words : BM25, optional
        Of the items' texts, for a model with a `word_weight`.
    embed : str
        The items' encoder, as `embed.Encoder` knows it; loaded at the first query without a vector.

    Raises
    ------
    ValueError
        If `words` is missing, not needed, or of other items.
    """

    def __init__(
        self, model: HybridRanker, words: BM25 | None = None, embed: str = encoders.DEFAULT_MODEL, beam_width: int = 100
    ):
        super().__init__(model.eval(), model.trie, beam_width, batch_size=32)
        weight = model.config.word_weight
        if (words is None) != (weight == 0) or (words is not None and words.n_items != self.n_items):
            known = "without word scores" if words is None else f"with word scores of {words.n_items} items"
            raise ValueError(f"the model has word_weight {weight} and {self.n_items} items and comes {known}")
        self.words, self.embed = words, embed
        self._encoder: encoders.Encoder | None = None
        self._loading = threading.Lock()

    def training_batches(
        self, queries: Sequence[str], query_vectors: np.ndarray, items: np.ndarray, batch_size: int = 256, seed: int = 0
    ) -> DataLoader:
        """Batches for `training.fit`, shuffled each epoch: the model's inputs, and item rows.

        Word scores, one per query and item, are computed when they are needed.
        """
        targets = torch.from_numpy(np.array(items, dtype=np.int64))

        def read(rows: list[int]) -> tuple[Queries, torch.Tensor]:
            return self._contexts([queries[row] for row in rows], query_vectors[rows]), targets[rows]

        order = torch.Generator().manual_seed(seed)
        rows: Any = range(len(targets))
        return DataLoader(rows, batch_size, shuffle=True, generator=order, collate_fn=read)

    def save(self, folder: Path) -> tuple[dict, list[str]]:
        """Save the model, the items' vectors and the index of words: -> facts for `load`, and file names.

        The encoder is saved by name.
        """
        self.scorer.save(folder / "query_model.safetensors")
        vectors = self.scorer.leaf_vectors.cpu()[self.trie.leaf_of_item.cpu()]
        save_weights(folder / "item_vectors.safetensors", {"vectors": vectors.contiguous()})
        files = ["query_model.safetensors", "item_vectors.safetensors"]
        if self.words is not None:
            self.words.save(folder / _WORDS)
            files.append(_WORDS)
        facts = {"type": "hybrid ranker", "beam_width": self.beam_width, "encoder": self.embed}
        return {**facts, "word_index": self.words is not None}, files

    @classmethod
    def load(cls, folder: Path, facts: dict, ids: SemanticIDs, items: pd.DataFrame, device="cpu") -> "HybridSearch":
        """Load what `save` wrote; ValueError names a file that does not fit the items."""
        path = folder / "item_vectors.safetensors"
        vectors = load_weights(path).get("vectors", torch.empty(0))
        if vectors.ndim != 2 or len(vectors) != len(ids):
            raise ValueError(f"{path}: tensor 'vectors' has shape {tuple(vectors.shape)}, expected ({len(ids)}, dim)")
        model = HybridRanker.load(folder / "query_model.safetensors", ids.unique, vectors.float().numpy()).to(device)
        words = None
        if model.config.word_weight:  # folders of earlier versions have no index
            is_saved = facts.get("word_index") is True
            words = BM25.load(folder / _WORDS, len(ids)) if is_saved else BM25(encoders.item_texts(items))
        return cls(model, words, facts["encoder"], facts["beam_width"])

    def _contexts(self, queries: list[str], query_vectors: np.ndarray | None) -> Queries:
        if query_vectors is None:
            with self._loading:  # a service may load it in the background at the same time
                self._encoder = self._encoder or encoders.Encoder(self.embed)
            query_vectors = self._encoder(queries)
        vectors, dim = np.asarray(query_vectors, dtype=np.float32), self.scorer.config.text_dim
        if vectors.shape != (len(queries), dim) or not np.isfinite(vectors).all():
            raise ValueError(f"query vectors are {vectors.shape}, expected ({len(queries)}, {dim}), finite")
        unit = torch.from_numpy(encoders.normalize(vectors))
        hashed = hashed_words(queries, self.scorer.config.n_buckets)
        return Queries(unit, hashed, None if self.words is None else torch.from_numpy(self.words.scores(queries)))


def balanced_weight(cosines: np.ndarray, matches: np.ndarray) -> float:
    """The `word_weight` that gives both scores the same mean standard deviation over the catalogue.

    cosines, matches: (n_queries, n_items) of the same queries. Raises ValueError if no word score differs from another.

    >>> round(balanced_weight(np.array([[0.1, 0.5]]), np.array([[0.0, 8.0]])), 3)
    0.05
    """
    spread = float(np.std(matches, axis=1).mean())
    if not spread > 0:
        raise ValueError("no word score differs from another: no query shares a word with the items")
    return float(np.std(cosines, axis=1).mean()) / spread


def hashed_words(queries: Sequence[str], n_buckets: int = 2**15) -> torch.Tensor:
    """Queries as hashed words, word pairs and four-letter substrings: (n, 64) int64 from 1, 0 if unused.

    With substrings, a misspelt word or a plural shares most pieces with the right one (as in fastText, Bojanowski et
    al. 2017). Only the first 64 pieces are kept, words first.

    >>> words = hashed_words(["Nail polish", "nail POLISH!", "polish"])
    >>> bool((words[0] == words[1]).all()), len(set(words[0].tolist()) & set(words[2].tolist())) > 3
    (True, True)
    """
    found = np.zeros((len(queries), _GRAMS), dtype=np.int64)
    for row, query in zip(found, queries, strict=True):
        buckets = [_bucket(piece, n_buckets) for piece in _pieces(query)][:_GRAMS]
        row[: len(buckets)] = buckets
    return torch.from_numpy(found)


def _pieces(query: str) -> list[str]:
    words = _WORD.findall(query.lower())
    pairs = [f"{one} {two}" for one, two in pairwise(words)]
    letters = [
        f"#{word[at : at + 4]}" for word in (f"<{word}>" for word in words) for at in range(max(1, len(word) - 3))
    ]
    return words + pairs + letters


@lru_cache(maxsize=2**18)
def _bucket(piece: str, n_buckets: int) -> int:
    digest = hashlib.blake2b(piece.encode(), digest_size=8).digest()
    return 1 + int.from_bytes(digest, "little") % (n_buckets - 1)
