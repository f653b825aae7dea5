"""Search by models that generate semantic IDs under a prefix trie, with the interface of `retrieval`."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from semid_lib.decoding.beam_search import constrained_beam_search
from semid_lib.decoding.ranking import Ranked
from semid_lib.decoding.trie import PrefixTrie
from semid_lib.search.retrieval import Search


class GenerativeSearch(Search):
    """Search by constrained beam search; a subclass turns queries into the scorer's contexts.

    Scores are log-probabilities. The beam is `beam_width`, or k if that is larger.
    """

    def __init__(self, scorer, trie: PrefixTrie, beam_width: int, batch_size: int):
        super().__init__(trie.n_items, batch_size)
        self.scorer, self.trie, self.beam_width = scorer, trie, beam_width

    def _contexts(self, queries: list[str], query_vectors: np.ndarray | None) -> Any:
        raise NotImplementedError

    def _best(self, queries: list[str], k: int, mask: np.ndarray | None, vectors: np.ndarray | None) -> Ranked:
        contexts = self._contexts(queries, vectors)
        found = constrained_beam_search(self.scorer, contexts, self.trie, max(self.beam_width, k), k, mask)
        return Ranked(found.items.cpu().numpy(), found.scores.float().cpu().numpy())

    def scores(self, queries: Sequence[str], query_vectors: np.ndarray | None = None) -> np.ndarray:
        """Log-probabilities for `retrieval.FusedScores`: (n_queries, n_items) float32, exact for the items in the beam.

        The other items get the score of the last item found, an upper bound that most of them stay below.
        """
        found = self.search(queries, min(self.beam_width, self.n_items), query_vectors=query_vectors)
        filled = found.items >= 0
        scores = np.where(filled, found.scores, np.inf).min(axis=1)[:, None].repeat(self.n_items, axis=1)
        scores[np.nonzero(filled)[0], found.items[filled]] = found.scores[filled]
        return scores
