"""One spelling for text: how titles, brands, categories, rules and queries are stored and compared."""

import html
import unicodedata


def normal(text: str) -> str:
    """Text in Unicode's normal form C, so that a composed and a decomposed letter are one.

    >>> normal("Cafe\\u0301") == "Caf\\u00e9"
    True
    """
    return unicodedata.normalize("NFC", text)


def folded(text: str) -> str:
    """Text as it is compared: case, width (NFKC) and HTML entities make no difference, accents do.

    >>> folded("\\uff21\\uff22\\uff23 L&amp;S Cafe\\u0301"), folded("Stra\\u00dfe")
    ('abc l&s café', 'strasse')
    """
    return normal(unicodedata.normalize("NFKC", html.unescape(text)).casefold())
