"""An index of words: which texts hold all words of a query, or words that begin so, without reading every text.

Words are compared as `text.folded` writes them. Chinese, Japanese, Thai and a few other scripts put no spaces between
words: there every letter and every pair of letters is indexed, so that a query is found anywhere in a text.
"""

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from semid_lib.workbench.text import characters, words

_STEM = 4  # letters that two words must share to be forms of one, such as jacket and jackets
_END = "\U0010ffff"


def shared_words(asked: Iterable[str], text: str) -> list[str]:
    """Those of some `words` that a text holds too, in the same or a longer or shorter form, in the order asked.

    >>> shared_words(words("warm jackets, 蓝色手机壳"), "Rain Jacket 手机壳")
    ['jackets', '手机', '机壳']
    """
    held = set(_entries(words(text)))
    return [part for word in asked for part in _parts(word) if part in held or any(_akin(part, one) for one in held)]


class WordIndex:
    """Which of some texts hold the words of a query.

    Parameters
    ----------
    texts : sequence of str

    Examples
    --------
    >>> index = WordIndex(["Red pen", "A pencil", "Tent", "蓝色手机壳"])
    >>> index.find("pen", limit=5), index.find("手机", limit=5), "tents" in index, "zebra" in index
    ([0, 1], [3], True, False)
    """

    def __init__(self, texts: Sequence[str]):
        number: dict[str, int] = {}  # of each word, in the order met
        found, counts = [], []
        self._unspaced: dict[int, list[str]] = {}  # words of such scripts, to look for runs of three letters or more
        for row, text in enumerate(texts):
            entries = words(text)
            if runs := [word for word in entries if characters(word)]:
                self._unspaced[row] = runs
                entries = list(_entries(entries))
            counts.append(len(entries))
            found += [number.setdefault(word, len(number)) for word in entries]
        self._lengths = np.array([len(text) for text in texts], dtype=np.int64)
        self._words = sorted(number)
        rank = np.empty(len(number), dtype=np.int64)
        rank[[number[word] for word in self._words]] = np.arange(len(number))
        of_entry = rank[np.array(found, dtype=np.int64)]
        by_word = np.argsort(of_entry, kind="stable")
        self._starts = np.searchsorted(of_entry[by_word], np.arange(len(number) + 1))
        counts = np.array(counts, dtype=np.int64)
        self._rows = np.repeat(np.arange(len(counts)), counts)[by_word]
        self._places = (np.arange(len(found)) - np.repeat(np.cumsum(counts) - counts, counts))[by_word]

    def __contains__(self, word: str) -> bool:
        """Whether a text holds a word of `words`, or a longer or shorter form of it."""
        return any(self._has(part) or (len(part) >= _STEM and self._has_akin(part)) for part in _parts(word))

    def find(self, query: str, limit: int) -> list[int]:
        """Rows of at most `limit` texts that hold every word of a query, or a word that begins with it.

        Texts with the first word near their beginning come first, shorter ones before longer ones.
        """
        asked = list(dict.fromkeys(words(query)))
        if not asked:
            return []
        parts = list(dict.fromkeys(part for word in asked for part in _parts(word)))
        nowhere = np.iinfo(np.int64).max
        place = np.full(len(self._lengths), nowhere)
        within = self._within(parts[0])
        np.minimum.at(place, self._rows[within], self._places[within])
        holds = place < nowhere
        for part in parts[1:]:
            also = np.zeros(len(holds), dtype=bool)
            also[self._rows[self._within(part)]] = True
            holds &= also
        rows = np.flatnonzero(holds)
        rows = rows[np.lexsort((rows, self._lengths[rows], place[rows]))]
        return list(self._with_runs(rows.tolist(), [word for word in asked if characters(word)], limit))

    def _with_runs(self, rows: list[int], runs: list[str], limit: int) -> Iterator[int]:
        """The first rows whose texts hold these runs whole; their pairs of letters alone may occur apart."""
        for row in rows:
            if limit <= 0:
                return
            if all(any(run in word for word in self._unspaced[row]) for run in runs):
                limit -= 1
                yield row

    def _within(self, part: str) -> slice:
        """Where the rows and places of all words are that begin with a part."""
        first = bisect_left(self._words, part)
        return slice(self._starts[first], self._starts[bisect_left(self._words, part + _END, lo=first)])

    def _has(self, word: str) -> bool:
        at = bisect_left(self._words, word)
        return at < len(self._words) and self._words[at] == word

    def _has_akin(self, word: str) -> bool:
        at = bisect_left(self._words, word)
        longer = at < len(self._words) and self._words[at].startswith(word)
        return longer or any(self._has(word[:length]) for length in range(_STEM, len(word)))


def _akin(one: str, other: str) -> bool:
    return min(len(one), len(other)) >= _STEM and (one.startswith(other) or other.startswith(one))


def _pairs(word: str) -> list[str]:
    """Each letter of a word with the next one, the last letter alone."""
    letters = characters(word)
    return [first + second for first, second in zip(letters, [*letters[1:], ""], strict=True)]


def _parts(word: str) -> list[str]:
    """The entries of the index that a text with a query's word must have."""
    pairs = _pairs(word) if characters(word) else [word]
    return pairs[:-1] or pairs


def _entries(found: Iterable[str]) -> Iterator[str]:
    """The entries of the index for the words of a text."""
    for word in found:
        yield from _pairs(word) if characters(word) else [word]
