"""Search by models that generate semantic IDs under a prefix trie, with the interface of `retrieval`."""

import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from semid_lib.decoding.beam_search import constrained_beam_search
from semid_lib.decoding.ranking import Ranked, checked_mask
from semid_lib.decoding.trie import PrefixTrie
from semid_lib.ids import embed as encoders
from semid_lib.ids.semantic_ids import SemanticIDs
from semid_lib.search.hybrid_ranker import HybridRanker, Queries, hashed_words
from semid_lib.search.retrieval import BM25, checked_queries
from semid_lib.workbench.weights import load_weights, save_weights, shapes_of


class GenerativeSearch:
    """Search by constrained beam search; a subclass turns queries into the scorer's contexts."""

    def __init__(self, scorer, trie: PrefixTrie, beam_width: int, batch_size: int):
        if beam_width < 1 or batch_size < 1:
            raise ValueError(f"beam_width {beam_width} and batch_size {batch_size}, expected at least 1 of each")
        self.scorer, self.trie, self.beam_width, self.batch_size = scorer, trie, beam_width, batch_size
        self.n_items = trie.n_items

    def _contexts(self, queries: list[str], query_vectors: np.ndarray | None) -> Any:
        raise NotImplementedError

    def search(
        self,
        queries: Sequence[str],
        k: int,
        allowed: np.ndarray | None = None,
        query_vectors: np.ndarray | None = None,
        progress: bool = False,
    ) -> Ranked:
        """Find the k most probable items per query, with their log-probabilities.

        Parameters
        ----------
        k : int
            The beam is `beam_width`, or k if that is larger.
        allowed : (n_items,) or (n_queries, n_items) bool array, optional
            Items that may be returned, see `rules`.
        query_vectors : (n_queries, dim) array, optional
            Vectors of the queries by the items' encoder; a language model reads the texts only.

        Returns
        -------
        Ranked
            items and scores, (n_queries, k) each; -1 and -inf if unused.

        Raises
        ------
        ValueError
            For a single text instead of a list, a blank query, k < 1, or a mask that does not fit.
        """
        queries = checked_queries(queries, k)
        allowed = checked_mask(allowed, len(queries), self.n_items)
        parts = [Ranked(np.empty((0, k), dtype=np.int64), np.empty((0, k), dtype=np.float32))]
        starts = range(0, len(queries), self.batch_size)
        for start in tqdm(starts, desc="searching", unit="batch", disable=not progress):
            rows = slice(start, start + self.batch_size)
            contexts = self._contexts(queries[rows], None if query_vectors is None else query_vectors[rows])
            mask = allowed if allowed is None or len(allowed) == 1 else allowed[rows]
            found = constrained_beam_search(self.scorer, contexts, self.trie, max(self.beam_width, k), k, mask)
            parts.append(Ranked(found.items.cpu().numpy(), found.scores.float().cpu().numpy()))
        return Ranked(*(np.concatenate(part) for part in zip(*parts, strict=True)))

    def scores(self, queries: Sequence[str], query_vectors: np.ndarray | None = None) -> np.ndarray:
        """Log-probabilities for `retrieval.FusedScores`: (n_queries, n_items) float32, exact for the items in the beam.

        The other items get the score of the last item found, an upper bound that most of them stay below.
        """
        found = self.search(queries, min(self.beam_width, self.n_items), query_vectors=query_vectors)
        filled = found.items >= 0
        scores = np.where(filled, found.scores, np.inf).min(axis=1)[:, None].repeat(self.n_items, axis=1)
        scores[np.nonzero(filled)[0], found.items[filled]] = found.scores[filled]
        return scores


class LightSearch(GenerativeSearch):
    """Search by a hybrid ranker (`HybridRanker`), which reads the vector and the words of a query.

    Parameters
    ----------
    model : HybridRanker
    words : BM25, optional
        Of the items' texts, for a model with a `word_weight`.
    embed : str or callable
        The items' encoder: a name for `embed.Encoder`, loaded at the first query without a vector, or a function from
        texts to vectors of any length.

    Raises
    ------
    ValueError
        If `words` is missing, not needed, or of other items.
    """

    def __init__(
        self,
        model: HybridRanker,
        words: BM25 | None = None,
        embed: str | Callable[[Sequence[str]], np.ndarray] = encoders.DEFAULT_MODEL,
        beam_width: int = 100,
        batch_size: int = 32,
    ):
        super().__init__(model.eval(), model.trie, beam_width, batch_size)
        weight = model.config.word_weight
        if (words is None) != (weight == 0) or (words is not None and words.n_items != self.n_items):
            known = "without word scores" if words is None else f"with word scores of {words.n_items} items"
            raise ValueError(f"the model has word_weight {weight} and {self.n_items} items and comes {known}")
        self.words, self.embed = words, embed
        self._encode: Callable | None = None if isinstance(embed, str) else embed
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
        """Save the model and the items' vectors: -> facts for `load`, and file names.

        Word scores are computed again from the item table, and the encoder is saved by name.

        Raises
        ------
        ValueError
            If `embed` is a function, which has no name.
        """
        if not isinstance(self.embed, str):
            raise ValueError("embed is a function, which cannot be saved: give the name of a model")
        self.scorer.save(folder / "query_model.safetensors")
        vectors = self.scorer.leaf_vectors.cpu()[self.trie.leaf_of_item().cpu()]
        save_weights(folder / "item_vectors.safetensors", {"vectors": vectors.contiguous()})
        files = ["query_model.safetensors", "item_vectors.safetensors"]
        return {"type": "light", "beam_width": self.beam_width, "encoder": self.embed}, files

    @classmethod
    def load(cls, folder: Path, facts: dict, ids: SemanticIDs, items: pd.DataFrame, device="cpu") -> "LightSearch":
        """Load what `save` wrote; ValueError names a file that does not fit the items."""
        path = folder / "item_vectors.safetensors"
        shape = shapes_of(path).get("vectors", ())
        if len(shape) != 2 or shape[0] != len(ids):
            raise ValueError(f"{path}: tensor 'vectors' has shape {shape}, expected ({len(ids)}, dim)")
        vectors = load_weights(path)["vectors"]
        if not vectors.is_floating_point():
            raise ValueError(f"{path}: tensor 'vectors' is {vectors.dtype}, expected real numbers")
        model = HybridRanker.load(folder / "query_model.safetensors", ids.unique, vectors.float().numpy()).to(device)
        words = BM25(encoders.item_texts(items)) if model.config.word_weight else None
        return cls(model, words, facts["encoder"], facts["beam_width"])

    def _contexts(self, queries: list[str], query_vectors: np.ndarray | None) -> Queries:
        if query_vectors is None:
            with self._loading:  # a service may load it in the background at the same time
                self._encode = self._encode or encoders.Encoder(str(self.embed))
            query_vectors = self._encode(queries)
        unit = torch.from_numpy(encoders.normalize(np.asarray(query_vectors, dtype=np.float32)))
        hashed = hashed_words(queries, self.scorer.config.n_buckets)
        return Queries(unit, hashed, None if self.words is None else torch.from_numpy(self.words.scores(queries)))
