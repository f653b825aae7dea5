"""One spelling for text: how titles, brands, categories, rules and queries are stored and compared."""

import html
import unicodedata

import regex

# a character of a script that puts no spaces between words, with its marks: a pattern of the package regex
UNSPACED = r"(?:[\w&&[\p{Han}\p{Hiragana}\p{Katakana}ー\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}]]\p{M}*)"
_TRADEMARKS = str.maketrans("™℠", "  ")  # letters to NFKC: "Pilot™" would be "pilottm"
_INVISIBLE = regex.compile(r"\p{Default_Ignorable_Code_Point}+")  # soft hyphens, joiners, variation selectors


def normal(text: str) -> str:
    """Text in Unicode's normal form C, so that a composed and a decomposed letter are one.

    >>> normal("Cafe\\u0301") == "Caf\\u00e9"
    True
    """
    return unicodedata.normalize("NFC", text)


def folded(text: str) -> str:
    """Text as it is compared: case, width, HTML entities, invisible characters and ™ make no difference, accents do.

    Apart from the entities and ™, this is Unicode's toNFKC_Casefold (The Unicode Standard, section 3.13).

    >>> folded("\\uff21\\uff22\\uff23 L&amp;S Cafe\\u0301"), folded("Stra\\u00dfe\\u2122")
    ('abc l&s café', 'strasse')
    """
    visible = _INVISIBLE.sub("", html.unescape(text).translate(_TRADEMARKS))
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", visible).casefold()).strip()
