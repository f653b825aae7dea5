"""Search without a trained model: BM25, dense retrieval, and their sum.

All methods answer `search(queries, k, allowed, query_vectors)` with the best item rows of each query. Equal scores are
ordered by row, and a list that cannot be filled ends in -1. Queries are scored in blocks, so that 10,000 of them
against 100,000 items need some hundred MiB.
"""

import functools
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import regex
from safetensors import SafetensorError, safe_open
from tqdm.auto import tqdm

from semid_lib.decoding.ranking import Ranked, checked_mask, top_k
from semid_lib.ids.embed import normalize
from semid_lib.ids.quantize import distinct_rows
from semid_lib.workbench.text import characters, check_count, check_list, normal, shown, words
from semid_lib.workbench.weights import load_weights, save_weights

if TYPE_CHECKING:
    import bm25s

_FORMAT, _INDEX = "bm25 1", ("data", "indices", "indptr")  # of a file, and its arrays besides the words
_SCORES_AT_ONCE = 2**24  # queries x items in a block: 64 MiB of float32


class Search:
    """Search by `scores`, which a method gives every item; `GenerativeSearch` finds the best items in another way."""

    floor = -np.inf  # an item with a score at or below this is not returned

    def __init__(self, n_items: int, batch_size: int = 0):
        self.n_items, self.batch_size = n_items, batch_size or max(1, _SCORES_AT_ONCE // n_items)

    def search(
        self,
        queries: Sequence[str],
        k: int,
        allowed: np.ndarray | None = None,
        query_vectors: np.ndarray | None = None,
        progress: bool = False,
    ) -> Ranked:
        """Find the k best items for each query.

        Parameters
        ----------
        queries : (n_queries,) sequence of str
        k : int
        allowed : (n_items,) or (n_queries, n_items) bool array, optional
            Items that may be returned, see `rules`; by default all.
        query_vectors : (n_queries, dim) array, optional
            Vectors of the queries by the encoder of the items; methods without vectors ignore them.
        progress : bool

        Returns
        -------
        Ranked
            Item rows (n_queries, k) int64, best first, -1 if unused; scores (n_queries, k) float32, -inf if unused.

        Raises
        ------
        ValueError
            If k is below 1, mask or vectors do not fit, or a query is blank or not text.
        """
        queries = checked_queries(queries, k)
        mask = checked_mask(allowed, len(queries), self.n_items)
        vectors = None if query_vectors is None else np.asarray(query_vectors)
        if vectors is not None and len(vectors) != len(queries):
            raise ValueError(f"there are {len(vectors)} query vectors, expected {len(queries)}")
        parts = [Ranked(np.empty((0, k), dtype=np.int64), np.empty((0, k), dtype=np.float32))]
        starts = range(0, len(queries), self.batch_size)
        for start in tqdm(starts, desc="searching", unit="batch", disable=not progress):
            rows = slice(start, start + self.batch_size)
            of_rows = mask if mask is None or len(mask) == 1 else mask[rows]
            parts.append(self._best(queries[rows], k, of_rows, None if vectors is None else vectors[rows]))
        return Ranked(*(np.concatenate(part) for part in zip(*parts, strict=True)))

    def _best(self, queries: list[str], k: int, mask: np.ndarray | None, vectors: np.ndarray | None) -> Ranked:
        scores = self.scores(queries, vectors)
        scores[scores <= self.floor] = -np.inf
        if mask is not None:
            scores[~np.broadcast_to(mask, scores.shape)] = -np.inf
        return top_k(scores, k)

    def scores(self, queries: Sequence[str], query_vectors: np.ndarray | None = None) -> np.ndarray:
        """Scores of all items: (n_queries, n_items) float32, all in memory."""
        raise NotImplementedError


class BM25(Search):
    """Rank items by the words they share with the query, rare words first.

    With f the count of a word in an item's text, l the text's number of words, N items and n of them with the word:

        score = sum over the query's words of log(1 + (N - n + .5) / (n + .5)) f / (f + 1.5 (.25 + .75 l / mean l)),

    Lucene's form with the defaults of bm25s. Words are the English stems (Porter's second algorithm) of those of
    `terms`, without 33 stop words. Stems added .01 to Recall@10 on template queries for Beauty; on its 61 real queries
    no difference could be measured (book/log.md). Items that share no word with the query are not returned.

    Parameters
    ----------
    texts : (n_items,) sequence of str
        An item with "" is never found.

    Raises
    ------
    ValueError
        If texts is no list of texts, or no text has a word.
    ImportError
        Without the extra 'search'.

    References
    ----------
    Robertson & Zaragoza (2009); bm25s, Lù (2024).

    Examples
    --------
    >>> bm25 = BM25(["red gel pen", "red tent", "", "blue tent"])
    >>> bm25.search(["a red pen", "tent", "zebra"], k=2).items
    array([[ 0,  1],
           [ 1,  3],
           [-1, -1]])
    """

    floor = 0.0  # every matching word adds more than 0

    def __init__(self, texts: Sequence[str]):
        texts = check_list("texts", texts, "one text per item")
        if (wrong := next((row for row, text in enumerate(texts) if not isinstance(text, str)), None)) is not None:
            raise ValueError(f'the text of item row {wrong} is {shown(texts[wrong])}, expected text, "" for none')
        index = self._prepare()
        found = self._stems(terms(text, singles=True) for text in texts)
        if not any(found):
            raise ValueError(f"none of {len(texts)} texts has a word that counts, expected at least one")
        super().__init__(len(texts))
        index.index(found, show_progress=False)
        self._index = index

    def _prepare(self) -> "bm25s.BM25":
        """The tokenizer, and an empty index. Raises ImportError without the extra."""
        try:
            import bm25s
            import snowballstemmer
        except ImportError as error:
            raise ImportError("BM25 needs the extra 'search': pip install 'semid-lib[search]'") from error
        self._tokenize = functools.partial(
            bm25s.tokenize,
            token_pattern=r"\S+",
            stopwords="english",
            stemmer=snowballstemmer.stemmer("english").stemWords,
            return_ids=False,
            show_progress=False,
        )
        return bm25s.BM25(k1=1.5, b=0.75, method="lucene")

    def save(self, path: str | Path) -> None:
        """Write the index as one safetensors file, so that `load` need not read all texts again."""
        number_of = {word: number for word, number in self._index.vocab_dict.items() if word}
        words = sorted(number_of)  # bm25s numbers them in another order in each process
        start = self._index.scores["indptr"].astype(np.int64)
        numbers = np.array([number_of[word] for word in words])
        indptr = np.concatenate([[0], np.cumsum(start[numbers + 1] - start[numbers])])
        place = np.arange(indptr[-1]) + np.repeat(start[numbers] - indptr[:-1], np.diff(indptr))
        arrays = {name: self._index.scores[name][place] for name in ("data", "indices")} | {"indptr": indptr}
        arrays["words"] = np.frombuffer("\n".join(words).encode(), dtype=np.uint8)
        save_weights(path, arrays, metadata={"format": _FORMAT, "items": str(self.n_items)})

    @classmethod
    def load(cls, path: str | Path, n_items: int) -> "BM25":
        """Read what `save` wrote for a catalogue of so many items.

        Raises
        ------
        ValueError
            Naming the file if it is not such an index, or of another number of items.
        """
        try:
            with safe_open(path, framework="numpy") as saved:
                facts = saved.metadata() or {}
            if facts.get("format") != _FORMAT or facts.get("items") != str(n_items):
                raise ValueError(f"it is {facts.get('format')!r} of {facts.get('items')} items, expected {n_items}")
            arrays = {name: array.numpy() for name, array in load_weights(path).items()}
            words = arrays["words"].tobytes().decode().split("\n")
            data, indices, indptr = (arrays[name] for name in _INDEX)
            fits = len(indptr) == len(words) + 1 and len(data) == len(indices) == indptr[-1] and indptr[0] == 0
            if not fits or (np.diff(indptr) < 0).any() or not ((indices >= 0) & (indices < n_items)).all():
                raise ValueError("its arrays do not fit each other")
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            why = str(error).removeprefix(f"{path}: ")
            raise ValueError(f"{path} is no index of words of this catalogue: {why}") from error
        loaded = cls.__new__(cls)
        index = loaded._prepare()
        index.scores = {"data": data, "indices": indices, "indptr": indptr, "num_docs": n_items}
        index.vocab_dict = {word: number for number, word in enumerate(words)}
        index.unique_token_ids_set, index.nonoccurrence_array = set(range(len(words))), None
        Search.__init__(loaded, n_items)
        loaded._index = index
        return loaded

    def scores(self, queries: Sequence[str], query_vectors: np.ndarray | None = None) -> np.ndarray:
        """Scores of all items, 0 without a common word: (n_queries, n_items) float32, all in memory."""
        scores = np.zeros((len(queries), self.n_items), dtype=np.float32)
        for row, stems in zip(scores, self._stems(map(terms, queries)), strict=True):
            if stems:
                row[:] = self._index.get_scores(stems)
        return scores

    def _stems(self, found: Iterable[list[str]]) -> list[list[str]]:
        return self._tokenize(list(map(" ".join, found)))


def terms(text: str, singles: bool = False) -> list[str]:
    """The words of a text that BM25 compares, with repetitions.

    A word has two or more characters, so the "c" of "vitamin c" is lost. In scripts without spaces (Chinese, Japanese,
    Thai, ...) each pair of neighbouring characters is a word, and a character without neighbours is one.

    Parameters
    ----------
    singles : bool
        Add each character of these scripts. BM25 does so for items, not for queries: a query of one character then
        finds something, and a longer one is not matched by single characters.

    References
    ----------
    Apache Lucene, CJKBigramFilter, whose `outputUnigrams` is `singles`.

    Examples
    --------
    >>> terms("Vitamin C, 無線イヤホン 5-pack"), terms("茶"), terms("緑茶", singles=True)
    (['vitamin', '無線', '線イ', 'イヤ', 'ヤホ', 'ホン', 'pack'], ['茶'], ['緑', '茶', '緑茶'])
    """
    found: list[str] = []
    for word in words(text):
        if letters := characters(word):
            found += letters if singles or len(letters) == 1 else []
            found += map("".join, pairwise(letters))
        elif len(word) > 1:
            found.append(word)
    return found


class Dense(Search):
    """Rank items by the exact cosine similarity of their vectors to the query's.

    Parameters
    ----------
    item_vectors : (n_items, dim) array
        Of any length. Items with equal vectors get equal scores. Queries need their vectors, by the same encoder.

    Raises
    ------
    ValueError
        If the vectors are not a finite matrix with at least one row.

    Examples
    --------
    >>> dense = Dense(np.array([[2.0, 0.0], [0.0, 1.0], [1.0, 0.0]]))
    >>> dense.search(["pen"], k=2, query_vectors=np.array([[1.0, 0.1]])).items
    array([[0, 2]])
    """

    def __init__(self, item_vectors: np.ndarray):
        vectors = np.asarray(item_vectors, dtype=np.float32)
        if vectors.ndim != 2 or not len(vectors) or not np.isfinite(vectors).all():
            raise ValueError(f"item vectors are {vectors.shape}, expected (n_items, dim), finite, with one at least")
        super().__init__(len(vectors))
        # products of equal columns may differ in the last bit, so each distinct vector is scored once
        first, same, _ = distinct_rows(vectors)
        self._distinct, self._place = normalize(vectors[first]), np.searchsorted(first, same)

    def scores(self, queries: Sequence[str], query_vectors: np.ndarray | None = None) -> np.ndarray:
        """Cosines with all items, in [-1, 1]: (n_queries, n_items) float32, all in memory."""
        vectors = np.asarray(query_vectors, dtype=np.float32)
        if vectors.shape != (len(queries), self._distinct.shape[1]) or not np.isfinite(vectors).all():
            raise ValueError(
                f"query vectors are {vectors.shape}, expected ({len(queries)}, {self._distinct.shape[1]}), finite"
            )
        scores = normalize(vectors) @ self._distinct.T
        return scores if len(self._distinct) == self.n_items else scores[:, self._place]


class FusedScores(Search):
    """Rank items by the sum of several methods' scores, each standardized over all items of a query.

    A method without results contributes zero. Statistics are over the whole catalogue, so `allowed` removes items
    without reordering the others. On 1,500 template queries for Beauty, the sum of BM25 and dense had .032
    more Recall@10 than reciprocal rank fusion (paired 95% interval .021 to .043; book/log.md).

    Parameters
    ----------
    methods
        At least one, with `n_items` and `scores(queries, query_vectors)`, all for the same number of items.

    References
    ----------
    CombSUM, Fox & Shaw (1994); the z-score, Renda & Straccia (2003).

    Examples
    --------
    >>> pens = FusedScores(BM25(["red pen", "pen", "tent"]), Dense(np.array([[1.0, 0.0], [1.0, 0.2], [0.0, 1.0]])))
    >>> pens.search(["red pen"], k=3, query_vectors=np.array([[1.0, 0.2]])).items
    array([[0, 1, 2]])
    """

    def __init__(self, *methods: Search):
        sizes = {method.n_items for method in methods}
        if len(sizes) != 1:
            raise ValueError(f"the methods have {sorted(sizes)} items, expected one method at least and one number")
        super().__init__(sizes.pop())
        self.methods = methods

    def scores(self, queries: Sequence[str], query_vectors: np.ndarray | None = None) -> np.ndarray:
        """Sums of standardized scores: (n_queries, n_items) float32, all in memory."""
        total = np.zeros((len(queries), self.n_items), dtype=np.float32)
        for method in self.methods:
            scores = method.scores(queries, query_vectors)
            scores -= scores.mean(axis=1, keepdims=True, dtype=np.float64).astype(np.float32)
            spread = scores.std(axis=1, keepdims=True, dtype=np.float64).astype(np.float32)
            total += np.divide(scores, spread, out=np.zeros_like(scores), where=spread > 1e-6)
        return total


def checked_queries(queries: Sequence[str], k: int) -> list[str]:
    """The queries as a list, each in Unicode's normal form C.

    Raises ValueError for one text instead of several, a query that is blank or not text, with its position, and k < 1.

    >>> checked_queries(["Cafe\\u0301"], k=1) == ["Caf\\u00e9"]
    True
    """
    check_count("k", k)
    queries = check_list("queries", queries, "a list of texts")
    for position, query in enumerate(queries):
        if not isinstance(query, str) or not query.strip():
            raise ValueError(f"query {position} is {shown(query)}, expected some text")
        if regex.search(r"\p{Cs}", query):
            raise ValueError(f"query {position} is {shown(query)}, which holds half of a surrogate pair: remove it")
    return list(map(normal, queries))
