"""Text to item without training: BM25, dense retrieval and their fusion, which a model that writes IDs has to beat.

All answer `search(queries, k, allowed, query_vectors)` with the best items of each query, best first, as item rows.
What is not allowed never comes out, equal scores go to the lower row, and a list that cannot be filled ends in -1.
Queries are scored in blocks, so that 10,000 of them against 100,000 items take some hundred MiB.
"""

import functools
import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise
from typing import Protocol

import numpy as np
import regex
from tqdm.auto import tqdm

from semid_lib.decoding.ranking import Ranked, checked_mask, top_k
from semid_lib.ids import embed as encoders
from semid_lib.workbench import arguments
from semid_lib.workbench.text import UNSPACED, folded, normal, shown

_SCORES_AT_ONCE = 2**24  # queries x items in a block: 64 MiB of float32
_WORD = re.compile(r"\w\w+")
_RUN = regex.compile(rf"(?V1)({UNSPACED}+)|((?:(?!{UNSPACED})\w){{2,}})")  # of characters without spaces, or a word


class Searcher(Protocol):
    """What `FusedRanks` needs of its parts: the best k rows of each query, as the classes of this module answer."""

    def search(
        self,
        queries: Sequence[str],
        k: int,
        allowed: np.ndarray | None = None,
        query_vectors: np.ndarray | None = None,
        progress: bool = False,
    ) -> Ranked: ...


class _Scored:
    """Search by a score for every item: `scores` is the method's own, `search` is the same for all."""

    n_items: int
    floor = -np.inf  # a score at or below it is no answer

    def scores(self, queries: Sequence[str], query_vectors: np.ndarray | None = None) -> np.ndarray:
        raise NotImplementedError

    def search(
        self,
        queries: Sequence[str],
        k: int,
        allowed: np.ndarray | None = None,
        query_vectors: np.ndarray | None = None,
        progress: bool = False,
    ) -> Ranked:
        """The k best items for each query, best first: item rows and scores, (n_queries, k) each.

        allowed: which items may come out, bool, (n_items,) or (n_queries, n_items), as `rules` makes them; None for
        all. query_vectors: (n_queries, dim) vectors of the queries by the encoder of the items, so that none is
        embedded twice; what needs none ignores them. Places that no item can fill hold -1 and -inf.

        Raises ValueError for k below 1, a mask or vectors of another shape, and a query that is no text or is blank,
        with its position.
        """
        queries = checked_queries(queries, k)
        allowed = checked_mask(allowed, len(queries), self.n_items)
        query_vectors = _checked_vectors(query_vectors, len(queries))
        parts = [Ranked(np.empty((0, k), dtype=np.int64), np.empty((0, k), dtype=np.float32))]
        for block in _blocks(len(queries), self.n_items, progress):
            scores = self.scores(queries[block], None if query_vectors is None else query_vectors[block])
            scores[scores <= self.floor] = -np.inf
            if allowed is not None:
                scores[~np.broadcast_to(allowed if len(allowed) == 1 else allowed[block], scores.shape)] = -np.inf
            parts.append(top_k(scores, k))
        return Ranked(*(np.concatenate(part) for part in zip(*parts, strict=True)))


class BM25(_Scored):
    """Items that share words with the query, rare words first (Robertson & Zaragoza 2009; bm25s, Lù 2024).

    With f the times a word stands in an item's text, l the number of its words, N items and n of them with the word:

        score = sum over the query's words of log(1 + (N - n + .5) / (n + .5)) f / (f + 1.5 (.25 + .75 l / mean l)),

    Lucene's form with the defaults of bm25s. Words are what `terms` finds, compared as `text.folded` spells them; 33
    English stop words are left out. An item without a word of the query never comes out: lists may be short, and that
    of a query whose words are all unknown is empty.

    texts: one an item, (n_items,); "" is never found. stem: compare English stems (Porter's second algorithm, by
    snowballstemmer), so that "tents" finds "tent"; this was chosen on template queries for Beauty and on a demo shop,
    where it adds .01 to Recall@10. Without it the words are those of bm25s by default.

    Raises ValueError for a value that is no text, or if no text has a word; ImportError without the extra 'search'.

    >>> bm25 = BM25(["red gel pen", "red tent", "", "blue tent"])
    >>> bm25.search(["a red pen", "tent", "zebra"], k=2).items
    array([[ 0,  1],
           [ 1,  3],
           [-1, -1]])
    """

    floor = 0.0  # every word that matches adds something above 0

    def __init__(self, texts: Sequence[str], stem: bool = True):
        texts = arguments.listed("texts", texts, "one text per item")
        if (wrong := next((row for row, text in enumerate(texts) if not isinstance(text, str)), None)) is not None:
            raise ValueError(f'the text of item row {wrong} is {shown(texts[wrong])}, expected text, "" for none')
        self.n_items, self.stem = len(texts), stem
        words = self._words(terms(text, singles=True) for text in texts)
        if not any(words):
            raise ValueError(f"none of {len(texts)} texts has a word that counts, expected at least one")
        self._index = _bm25s().BM25(k1=1.5, b=0.75, method="lucene")
        self._index.index(words, show_progress=False)

    def scores(self, queries: Sequence[str], query_vectors: np.ndarray | None = None) -> np.ndarray:
        """Scores of all items, 0 without a common word: (n_queries, n_items) float32, all in memory."""
        scores = np.zeros((len(queries), self.n_items), dtype=np.float32)
        for row, words in zip(scores, self._words(map(terms, queries)), strict=True):
            if words:
                row[:] = self._index.get_scores(words)
        return scores

    def _words(self, found: Iterable[list[str]]) -> list[list[str]]:
        """Without stop words, and stemmed."""
        stemmer = _stemmer().stemWords if self.stem else None
        texts, options = list(map(" ".join, found)), {"return_ids": False, "show_progress": False}
        return _bm25s().tokenize(texts, token_pattern=r"\S+", stopwords="english", stemmer=stemmer, **options)


def terms(text: str, singles: bool = False) -> list[str]:
    """The words of a text that BM25 compares, with repetitions.

    A word is two or more letters, marks and digits in a row, so the "c" of "vitamin c" is lost. Chinese, Japanese,
    Thai, Lao, Khmer and Burmese put no spaces between words: there, each two neighbouring characters are a word, and a
    character without neighbours is one alone.

    Parameters
    ----------
    text : str
    singles : bool
        Add each character of these scripts. BM25 does so for items and not for queries: a query of one character then
        finds something, and a longer one is not matched by single characters.

    Returns
    -------
    list of str
        As `text.folded` spells them.

    References
    ----------
    Apache Lucene, CJKBigramFilter, whose `outputUnigrams` is `singles`.

    Examples
    --------
    >>> terms("Vitamin C, 無線イヤホン 5-pack"), terms("茶"), terms("緑茶", singles=True)
    (['vitamin', '無線', '線イ', 'イヤ', 'ヤホ', 'ホン', 'pack'], ['茶'], ['緑', '茶', '緑茶'])
    """
    text, found = folded(text), []
    if text.isascii():
        return _WORD.findall(text)
    for unspaced, word in _RUN.findall(text):
        characters = regex.findall(r"\X", unspaced)
        found += [word] if word else characters if singles or len(characters) == 1 else []
        found += map("".join, pairwise(characters))
    return found


class Dense(_Scored):
    """Items whose vectors point where the query's does: exact cosine similarity over all items.

    item_vectors: (n_items, dim), of any length; items with equal vectors get equal scores. embed: texts to vectors of
    the same encoder, such as `functools.partial(embed.embed, cache=folder)`; by default an `embed.Encoder()`, which is
    loaded at the first query that comes without its vector.

    Raises ValueError for vectors that are no finite matrix with a row at least, and for query vectors that do not fit.

    >>> dense = Dense(np.array([[2.0, 0.0], [0.0, 1.0], [1.0, 0.0]]))
    >>> dense.search(["pen"], k=2, query_vectors=np.array([[1.0, 0.1]])).items
    array([[0, 2]])
    """

    def __init__(self, item_vectors: np.ndarray, embed: Callable[[Sequence[str]], np.ndarray] | None = None):
        vectors = np.asarray(item_vectors, dtype=np.float32)
        if vectors.ndim != 2 or not len(vectors) or not np.isfinite(vectors).all():
            raise ValueError(f"item vectors are {vectors.shape}, expected (n_items, dim), finite, with one at least")
        self.n_items, self.embed = len(vectors), embed
        # a matrix product may give equal columns results that differ in the last bit: so score each vector once
        places: dict[bytes, int] = {}
        keys = (hashlib.blake2b(row, digest_size=16).digest() for row in np.ascontiguousarray(vectors))
        self._place = np.array([places.setdefault(key, len(places)) for key in keys])
        self._distinct = encoders.normalize(vectors[np.unique(self._place, return_index=True)[1]])

    def scores(self, queries: Sequence[str], query_vectors: np.ndarray | None = None) -> np.ndarray:
        """Cosines with all items, in [-1, 1]: (n_queries, n_items) float32, all in memory."""
        if query_vectors is None:
            self.embed = self.embed or encoders.Encoder()
            query_vectors = self.embed(queries)
        vectors = np.asarray(query_vectors, dtype=np.float32)
        if vectors.shape != (len(queries), self._distinct.shape[1]) or not np.isfinite(vectors).all():
            raise ValueError(
                f"query vectors are {vectors.shape}, expected ({len(queries)}, {self._distinct.shape[1]}), finite"
            )
        scores = encoders.normalize(vectors) @ self._distinct.T
        return scores if len(self._distinct) == self.n_items else scores[:, self._place]


class FusedScores(_Scored):
    """The sum of several methods' scores, each first brought to mean 0 and variance 1 over all items of a query.

    It keeps by how much an item is ahead, which ranks lose (Fox & Shaw 1994, CombSUM; the z-score as in Renda &
    Straccia 2003), but needs the scores of all items: `BM25`, `Dense`, or whatever has `n_items` and `scores`. A method
    that finds nothing says nothing. The mean is over the catalogue whatever is `allowed`, so a rule takes items away
    without changing the order of the rest. Of BM25 and dense on 1,500 template queries for Beauty it makes .03 of
    Recall@10 and .07 of MRR more than `FusedRanks` (demo shop: .02 and .04), and the same Recall@100.

    Raises ValueError without a method, or for methods of different numbers of items.

    >>> pens = FusedScores(BM25(["red pen", "pen", "tent"]), Dense(np.array([[1.0, 0.0], [1.0, 0.2], [0.0, 1.0]])))
    >>> pens.search(["red pen"], k=3, query_vectors=np.array([[1.0, 0.2]])).items
    array([[0, 1, 2]])
    """

    def __init__(self, *methods: _Scored):
        sizes = {method.n_items for method in methods}
        if len(sizes) != 1:
            raise ValueError(f"the methods know {sorted(sizes)} items, expected one method at least and one number")
        self.methods, self.n_items = methods, sizes.pop()

    def scores(self, queries: Sequence[str], query_vectors: np.ndarray | None = None) -> np.ndarray:
        """Sums of standardized scores: (n_queries, n_items) float32, all in memory."""
        total = np.zeros((len(queries), self.n_items), dtype=np.float32)
        for method in self.methods:
            scores = method.scores(queries, query_vectors)
            scores -= scores.mean(axis=1, keepdims=True, dtype=np.float64).astype(np.float32)
            spread = scores.std(axis=1, keepdims=True, dtype=np.float64).astype(np.float32)
            total += np.divide(scores, spread, out=np.zeros_like(scores), where=spread > 1e-6)
        return total


class FusedRanks:
    """Lists of several methods merged by rank: reciprocal rank fusion (Cormack, Clarke & Büttcher 2009).

    An item scores the sum of 1 / (60 + its rank) over the lists that hold it among their first `depth`. Nothing is
    fitted and only lists are needed, so any method with a `search` can take part, such as a beam search; where all have
    scores for every item, `FusedScores` is better at the top of the list. At most `depth` items of each list come out;
    `depth` and not k decides what votes, so a shorter list is the beginning of a longer one. 60 is the paper's
    constant.

    Raises ValueError without a method, or for a depth below 1.

    >>> pens = FusedRanks(BM25(["red pen", "pen", "tent"]), Dense(np.array([[1.0, 0.0], [1.0, 0.2], [0.0, 1.0]])))
    >>> pens.search(["pen"], k=3, query_vectors=np.array([[1.0, 0.2]])).items
    array([[1, 0, 2]])
    """

    def __init__(self, *searchers: Searcher, depth: int = 1000):
        if not searchers or depth < 1:
            raise ValueError(f"{len(searchers)} methods and depth {depth}, expected one at least of each")
        self.searchers, self.depth = searchers, depth

    def search(
        self,
        queries: Sequence[str],
        k: int,
        allowed: np.ndarray | None = None,
        query_vectors: np.ndarray | None = None,
        progress: bool = False,
    ) -> Ranked:
        """The k best items for each query, with the sums as scores; arguments and errors as of `BM25.search`."""
        queries = checked_queries(queries, k)
        lists = [
            searcher.search(queries, self.depth, allowed, query_vectors, progress).items for searcher in self.searchers
        ]
        items = np.full((len(queries), k), -1, dtype=np.int64)
        scores = np.full((len(queries), k), -np.inf, dtype=np.float32)
        votes = np.tile(1 / (60 + np.arange(1, self.depth + 1)), len(lists))
        for row, found in enumerate(np.hstack(lists)):
            rows, place = np.unique(found[found >= 0], return_inverse=True)
            # rounded, so that equal votes in another order are equal; unique gave ascending rows, stable keeps them
            total = np.round(np.bincount(place, votes[found >= 0], minlength=len(rows)), 12)
            best = np.argsort(-total, kind="stable")[:k]
            items[row, : len(best)], scores[row, : len(best)] = rows[best], total[best]
        return Ranked(items, scores)


def checked_queries(queries: Sequence[str], k: int) -> list[str]:
    """The queries as a list, each in its normal form.

    Parameters
    ----------
    queries : iterable of str
    k : int

    Returns
    -------
    list of str
        As `text.normal` writes them.

    Raises
    ------
    ValueError
        For one text instead of several, a query that is blank or no text, with its position, and a k below 1.

    Examples
    --------
    >>> checked_queries(["Cafe\\u0301"], k=1) == ["Caf\\u00e9"]
    True
    """
    arguments.count("k", k)
    queries = arguments.listed("queries", queries, "a list of texts")
    for position, query in enumerate(queries):
        if not isinstance(query, str) or not query.strip():
            raise ValueError(f"query {position} is {shown(query)}, expected some text")
        if regex.search(r"\p{Cs}", query):
            raise ValueError(f"query {position} is {shown(query)}, which holds half of a surrogate pair: remove it")
    return list(map(normal, queries))


def _checked_vectors(vectors: np.ndarray | None, n_queries: int) -> np.ndarray | None:
    if vectors is not None and len(vectors) != n_queries:
        raise ValueError(f"there are {len(vectors)} query vectors, expected {n_queries}")
    return None if vectors is None else np.asarray(vectors)


def _blocks(n_queries: int, n_items: int, progress: bool) -> Iterator[slice]:
    size = max(1, _SCORES_AT_ONCE // n_items)
    for start in tqdm(range(0, n_queries, size), desc="searching", unit="block", disable=not progress):
        yield slice(start, start + size)


def _bm25s():
    try:
        import bm25s
    except ImportError as error:
        raise ImportError("BM25 needs the extra 'search': pip install 'semid-lib[search]'") from error
    return bm25s


@functools.cache
def _stemmer():
    try:
        import snowballstemmer
    except ImportError as error:
        raise ImportError("stemming needs the extra 'search': pip install 'semid-lib[search]'") from error
    return snowballstemmer.stemmer("english")
