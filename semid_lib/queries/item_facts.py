"""Facts about one item that a query can use: its words, brand, product types, attributes, purposes and features."""

import re
import tomllib
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import regex

from semid_lib.ids.embed import plain_text
from semid_lib.workbench.text import UNSPACED

DATA = tomllib.loads(Path(__file__).with_name("templates.toml").read_text(encoding="utf-8"))
JOINING, PACKING, PRODUCTS, UNITS, _ARTICLES = (
    frozenset(DATA["words"][name].split()) for name in ("joining", "packing", "products", "units", "articles")
)

_FIRST_WORDS = 24  # of a title: later words of a long title are there for search engines
_FIRST_CHARACTERS = 600  # of a description
_CHARACTERS = {n: regex.compile(rf"(?V1)({UNSPACED}{{1,{n}}})") for n in (1, 2)}  # of scripts without spaces
_GAP = regex.compile(rf"(?V1)(?<={UNSPACED}) (?={UNSPACED})")
_NO_LATIN = regex.compile(r"(?V1)[\p{L}--\p{Latin}]")
_TOKEN_BREAK = re.compile(r"[^\w.'+]+|_+|(?<!\d)[.+]+|[.+]+(?!\d)|'+(?!\w)|(?<!\w)'+")
_TOKEN_BREAK_WIDE = re.compile("[\\s!-&(-*,\\-/:-@\\[-`{-~\u00a1-\u00bf\u2010-\u206f\u3000-\u303f\uff00-\uff0f]+")
_OTHERS = {"’": "'", "\u00ad": "", "\u200c": "", "\u200d": ""}  # soft hyphens and joiners do not separate words
_SEGMENT_BREAK = re.compile(r"\s+[-–—~|:]+\s+|[,;|()\[\]:★!]+|\s(?=with |for |by |w/)", re.IGNORECASE)
_WORD = r"(?:[^\W\d_]|['-])+"
_PURPOSE = re.compile(rf"\bfor ({_WORD}(?: {_WORD}){{0,3}})", re.IGNORECASE)
_FEATURE = re.compile(rf"\bwith ((?>{_WORD}(?: (?!in mind){_WORD}){{0,2}}))(?! in mind)", re.IGNORECASE)
_INITIALS = re.compile(r"\b(?:[^\W\d_]\.){2,}(?:[^\W\d_]\b)?")  # e.l.f.


class Facts(NamedTuple):
    """What a query can use, in lower case."""

    title: list[str]  # all words of the title
    sized: list[bool]  # (n_words,) whether a word belongs to an amount
    content: list[int]  # positions of the words with a meaning of their own
    brand: str
    types: list[str]  # what the item is called
    attributes: list[str]  # words of the title that are in neither brand nor type
    purposes: list[str]  # what it is for
    features: list[str]  # what it comes with
    domains: list[str]  # names of wider categories
    english: bool  # whether an English phrase fits around its words
    spaced: bool  # whether its script puts spaces between words; if not, only neighbours are joined


def facts_of(title: str, brand: str = "", categories: Sequence[Sequence[str]] = (), description: str = "") -> Facts:
    """Read the facts from the fields of one item.

    >>> facts = facts_of("OPI Red Nail Polish, 0.5 oz", "OPI", [["Beauty", "Nails", "Nail Polish"]], "For dry nails.")
    >>> facts.types, facts.attributes, facts.purposes, facts.domains
    (['nail polish'], ['red'], ['dry nails'], ['nails'])
    """
    plain = plain_text(title)
    title_words = _units(plain)[:_FIRST_WORDS]
    brand_words = [] if brand.strip().lower() in DATA["phrases"]["no_brand"] else _units(plain_text(brand))
    sized = _sizes(title_words)
    content = [
        at
        for at, word in enumerate(title_words)
        if not sized[at] and word not in JOINING and any(map(str.isalpha, word))
    ]
    types = _types([name for path in categories for name in path[-1:]], plain, brand_words, title_words)
    taken = {_singular(word) for phrase in [*types, *brand_words] for word in phrase.split()}
    attributes = [
        word
        for word in dict.fromkeys(title_words[at] for at in content)
        if _singular(word) not in taken and word not in PACKING and (len(word) > 2 or not word.isascii())
    ]
    text = f"{plain} . {plain_text(description)[:_FIRST_CHARACTERS]}" if description else plain
    domains = [" ".join(_units(name)) for path in categories for name in path[1:-1]]
    found = [*title_words, *" ".join(types).split()]
    return Facts(
        title=title_words,
        sized=sized,
        content=content,
        brand=" ".join(brand_words),
        types=types,
        attributes=attributes,
        purposes=_phrases(_PURPOSE, text),
        features=_phrases(_FEATURE, text),
        domains=[domain for domain in domains if domain],
        english=_mostly_without(_NO_LATIN, found),
        spaced=_mostly_without(_CHARACTERS[1], found),
    )


def words(text: str, n_characters: int = 1) -> list[str]:
    """Split a text into words in lower case, without punctuation; numbers keep their decimal point.

    Hyphens separate words, since most shoppers leave them out. In scripts without spaces each character (with its
    marks) is a word, or each pair if `n_characters` is 2.

    >>> words("L'Oréal Long-Lasting 0.5 oz. Gel (SPF 30+)"), words("黑色 pen")
    (["l'oréal", 'long', 'lasting', '0.5', 'oz', 'gel', 'spf', '30'], ['黑', '色', 'pen'])
    """
    if "." in text:
        text = _INITIALS.sub(lambda initials: initials[0].replace(".", ""), text)
    if text.isascii():
        return [word for word in _TOKEN_BREAK.split(text.lower()) if word]
    # keep letters, marks (of Devanagari letters, for example) and numbers; NFKC would turn the symbol ™ into "TM"
    text = "".join(c if c.isascii() or unicodedata.category(c)[0] in "LMN" else _OTHERS.get(c, " ") for c in text)
    text = unicodedata.normalize("NFKC", text).lower()
    text = _CHARACTERS[n_characters].sub(r" \1 ", text)
    pieces = _TOKEN_BREAK_WIDE.split(text)
    found = [w for piece in pieces for w in (_TOKEN_BREAK.split(piece) if piece.isascii() else [piece.strip(".'+")])]
    return [word for word in found if any(map(str.isalnum, word))]


def join(parts: Sequence[str]) -> str:
    """Join words to a query, without spaces between characters of scripts that use none."""
    text = " ".join(part for part in parts if part)
    return text if text.isascii() else _GAP.sub("", text)


def is_spaced(text: str) -> bool:
    """Whether no character belongs to a script without spaces."""
    return not _CHARACTERS[1].search(text)


def _units(text: str) -> list[str]:
    """The words that queries are made of."""
    return words(text, n_characters=2)


def _mostly_without(letter: regex.Pattern, found: list[str]) -> bool:
    return sum(letter.search(word) is not None for word in found) <= len(found) / 2


def _sizes(tokens: list[str]) -> list[bool]:
    """Which words belong to an amount: 8 oz, 250ml, pack of 6, 1/2; also the 30 of "spf 30"."""
    sized: list[bool] = []
    for at, token in enumerate(tokens):
        number = token.rstrip("mlozgkcinftx")  # 250ml
        is_number = token[0].isdigit() and not any(map(str.isalpha, number))
        sized.append(is_number or (at > 0 and sized[-1] and (token in UNITS or token in PACKING)))
    return sized


def _types(names: list[str], title: str, brand_words: list[str], title_words: list[str]) -> list[str]:
    """Parts of the category's name, preferably those that occur in the title, and the head of the title."""
    title_stems = {_singular(word) for word in title_words}
    parts = [_units(part) for name in dict.fromkeys(names) for part in re.split(r"[,&/]| and ", name)]
    parts = [part for part in parts if part]
    in_title = [part for part in parts if _singular(part[-1]) in title_stems]
    phrases = [" ".join([*part[:-1], _singular(part[-1])]) for part in in_title or parts]
    head = _head(title, brand_words)
    return list(dict.fromkeys([*phrases, *([head] if head else [])]))


def _head(title: str, brand_words: list[str]) -> str:
    """The last words of the title's first segment that has more than the brand: "Uni Mechanical Pencil, Kuru"."""
    for segment in _SEGMENT_BREAK.split(title)[:4]:
        tokens = _units(segment)
        kept = [
            token
            for token, is_size in zip(tokens, _sizes(tokens), strict=True)
            if not (is_size or token in JOINING or token in brand_words or token.isdigit())
            and (token not in PACKING or token in PRODUCTS)
        ]
        if kept:
            return join(kept[-2:])
    return ""


def _phrases(pattern: re.Pattern, text: str) -> list[str]:
    """The words after "for" or "with", up to the next joining word."""
    found = []
    for match in pattern.finditer(text):
        phrase: list[str] = []
        for word in _units(match[1]):
            if word not in JOINING:
                phrase.append(word)
            elif phrase or word not in _ARTICLES:
                break
        joined = " ".join(phrase)
        if joined and joined not in DATA["phrases"]["empty_purposes"] and phrase[-1] not in PACKING:
            found.append(joined)
    return list(dict.fromkeys(found))


def _singular(word: str) -> str:
    """The singular of an English word, by rules.

    >>> [_singular(word) for word in ("brushes", "mascaras", "accessories", "glosses", "glass", "creams")]
    ['brush', 'mascara', 'accessory', 'gloss', 'glass', 'cream']
    """
    if word in DATA["singular"]:
        return DATA["singular"][word]
    if len(word) < 4 or not word.endswith("s") or word.endswith(("ss", "us", "is")):
        return word
    if word.endswith("ies") and len(word) > 4:
        return word[:-3] + "y"
    return word[:-2] if word.endswith(("shes", "ches", "sses", "xes")) else word[:-1]
