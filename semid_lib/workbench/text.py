"""One spelling for text: how titles, brands, categories, rules and queries are stored and compared."""

import html
import re
import unicodedata

import regex

# a character of a script that puts no spaces between words, with its marks: a pattern of the package regex
UNSPACED = r"(?:[\w&&[\p{Han}\p{Hiragana}\p{Katakana}ー\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}]]\p{M}*)"
_ASCII_WORD = re.compile(r"\w+")
_WORD = regex.compile(rf"(?V1){UNSPACED}+|(?:(?!{UNSPACED})\w)+")
_CHARACTER = regex.compile(rf"(?V1){UNSPACED}")
_TRADEMARKS = str.maketrans("™℠", "  ")  # letters to NFKC: "Pilot™" would be "pilottm"
_CONTROLS = regex.compile(r"[\p{Cc}\u2028\u2029]")
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
    text = html.unescape(text)
    if text.isascii():  # nothing else to do, which takes a tenth of the time
        return text.lower().strip()
    visible = _INVISIBLE.sub("", text.translate(_TRADEMARKS))
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", visible).casefold()).strip()


def words(text: str) -> list[str]:
    """The words of a text, folded, in their order; a run of a script without spaces is one word.

    >>> words("L&amp;S Caf\\u00e9-lamp, 手机壳 x2")
    ['l', 's', 'café', 'lamp', '手机壳', 'x2']
    """
    text = folded(text)
    return (_ASCII_WORD if text.isascii() else _WORD).findall(text)


def characters(word: str) -> list[str]:
    """The characters, with their marks, of a word in a script without spaces; none of any other word.

    >>> characters("手机"), characters("café")
    (['手', '机'], [])
    """
    return [] if word.isascii() else _CHARACTER.findall(word)


def one_line(text: str, width: int = 90) -> str:
    """Text as a chapter prints it: no line breaks or control characters, and at most `width` characters.

    Parameters
    ----------
    text : str
    width : int
        A longer text loses its middle, since names of one kind often begin alike.

    Examples
    --------
    >>> one_line("Red\\tlip\\u200bstick\\n"), one_line("Running shoes, size 10 wide", 20)
    ('Red lipstick', 'Running shoe…10 wide')
    """
    pieces = {"Cc": " ", "Zl": " ", "Zp": " ", "Cf": "", "Cs": ""}  # breaks and controls; invisible; halves of a pair
    text = "".join(pieces.get(unicodedata.category(letter), letter) for letter in str(text))
    text = " ".join(text.split())
    if len(text) <= width:
        return text
    end = (width - 1) * 2 // 5
    return f"{text[: width - 1 - end]}…{text[len(text) - end :]}"


def has_controls(text: str) -> bool:
    """Whether a text holds a control character or a line separator, which no file of lines can keep.

    >>> has_controls("a\\tb"), has_controls("l'été")
    (True, False)
    """
    return bool(_CONTROLS.search(text))


def shown(value, length: int = 60) -> str:
    """A value as a message quotes it: on one line, in at most so many characters."""
    text = re.sub(r"\s*\n\s*", " ", repr(value))
    return text if len(text) <= length else text[: length - 3] + "..."
