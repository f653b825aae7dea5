"""An index of words by SQLite's full-text search: texts that contain all words of a query, or words that begin so.

Words are compared as `text.folded` writes them. Chinese, Japanese, Thai and a few other scripts put no spaces between
words: there every character is indexed, so that a query is found anywhere in a text.
"""

import sqlite3
from collections.abc import Iterable, Sequence
from itertools import pairwise

from semid_lib.workbench.text import characters, words

_STEM = 4  # letters that two words must share to be forms of one, such as jacket and jackets
_RANKED = 1000  # texts of a query that are ordered; ordering 100,000 of them would take a third of a second
_OPTIONS = """tokenize="unicode61 remove_diacritics 0 categories 'L* N* M* Pc'", prefix='1 2'"""


def shared_words(asked: Iterable[str], text: str) -> list[str]:
    """Select the words that a text contains, too, in the same or a longer or shorter form, in the order asked.

    >>> shared_words(words("warm jackets, 蓝色手机壳"), "Rain Jacket 手机壳")
    ['jackets', '手机', '机壳']
    """
    found = words(text)
    return [part for word in asked for part in _parts(word) if any(_is_akin(part, other) for other in found)]


class WordIndex:
    """Texts by their words.

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
        # SQLite locks the connection itself, so threads can share it
        self._database = sqlite3.connect(":memory:", check_same_thread=False)
        self._database.execute(f"CREATE VIRTUAL TABLE texts USING fts5(words, content='', {_OPTIONS})")
        rows = ((row, " ".join(map(_spaced, words(text)))) for row, text in enumerate(texts))
        with self._database:
            self._database.executemany("INSERT INTO texts (rowid, words) VALUES (?, ?)", rows)

    def __contains__(self, word: str) -> bool:
        """Whether a text contains a word of `words`, or a longer or shorter form of it."""
        select = "SELECT 1 FROM texts WHERE words MATCH ? LIMIT 1"  # unordered: all texts with the word would be ranked
        return any(self._database.execute(select, (_forms(part),)).fetchone() for part in _parts(word))

    def find(self, query: str, limit: int) -> list[int]:
        """Rows of at most `limit` texts that contain every word of a query, or a word that begins with it.

        The order is that of BM25: short texts and rare words first. Of more than a thousand texts, only the first are
        ordered.
        """
        asked = list(dict.fromkeys(words(query)))
        if not asked:
            return []
        expression = " AND ".join(f"({_starting(word)})" for word in asked)
        first = "SELECT rowid, rank FROM texts WHERE words MATCH ? LIMIT ?"
        select = f"SELECT rowid FROM ({first}) ORDER BY rank, rowid LIMIT ?"
        return [row for (row,) in self._database.execute(select, (expression, max(limit, _RANKED), limit))]


def _spaced(word: str) -> str:
    """A word as it is indexed: characters of a script without spaces one by one."""
    return " ".join(characters(word)) or word


def _parts(word: str) -> list[str]:
    """The word, or of a script without spaces its pairs of characters."""
    letters = characters(word)
    return [first + second for first, second in pairwise(letters)] or [word]


def _is_akin(part: str, word: str) -> bool:
    """Whether a word has a part of the same script, or both begin alike with four letters or more."""
    if characters(part):
        return part in word
    begins = part.startswith(word) or word.startswith(part)
    return part == word or (min(len(part), len(word)) >= _STEM and begins)


def _starting(word: str) -> str:
    """The words that begin with this one, in SQLite's language; letters of a script without spaces in this order."""
    return f'"{_spaced(word)}" *'


def _forms(part: str) -> str:
    """The same word and its longer and shorter forms, in SQLite's language."""
    if characters(part) or len(part) < _STEM:
        return f'"{_spaced(part)}"'
    shorter = [f'"{part[:length]}"' for length in range(_STEM, len(part))]
    return " OR ".join([_starting(part), *shorter])
