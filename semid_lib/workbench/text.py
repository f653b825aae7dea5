"""Text and values from users: how text is stored and compared, how messages quote values, and checks of arguments.

A check returns the value in one form, or raises a ValueError that names the value and what was expected.
"""

import html
import re
import unicodedata
from collections.abc import Mapping, Set
from numbers import Integral
from typing import Any

import numpy as np
import regex

# a character of a script that puts no spaces between words, with its marks: a pattern of the package regex
UNSPACED = r"(?:[\w&&[\p{Han}\p{Hiragana}\p{Katakana}ー\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}]]\p{M}*)"
_ASCII_WORD = re.compile(r"\w+")
_WORD = regex.compile(rf"(?V1){UNSPACED}+|(?:(?!{UNSPACED})\w)+")
_CHARACTER = regex.compile(rf"(?V1){UNSPACED}")
_TRADEMARKS = str.maketrans("™℠", "  ")  # letters to NFKC: "Pilot™" would be "pilottm"
_CONTROLS = regex.compile(r"[\p{Cc}\u2028\u2029]")
_INVISIBLE = regex.compile(r"\p{Default_Ignorable_Code_Point}+")  # soft hyphens, joiners, variation selectors
_MOST = 2**24
_ONE_USER = "for one user, write recommend([[1, 2, 3]])"


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


def check_count(name: str, value: Any, least: int = 1) -> int:
    """A number of items or beams, as an int; NumPy's integers are welcome.

    Raises
    ------
    ValueError
        If the value is no integer, below `least` or above 2^24, where the lists of one user would take 200 MB.

    Examples
    --------
    >>> check_count("k", 3.0)
    Traceback (most recent call last):
    ValueError: k must be a whole number of at least 1, got 3.0
    """
    if not isinstance(value, Integral) or isinstance(value, bool) or value < least:
        raise ValueError(f"{name} must be a whole number of at least {least}, got {shown(value)}")
    if int(value) > _MOST:
        raise ValueError(f"{name} is {shown(value)}, expected at most {_MOST}")
    return int(value)


def check_flag(name: str, value: Any) -> bool:
    """A choice, as a bool. Raises ValueError for anything but True and False (NumPy's included), such as "no"."""
    if not isinstance(value, bool | np.bool_):
        raise ValueError(f"{name} must be True or False, got {shown(value)}")
    return bool(value)


def check_list(name: str, values: Any, expected: str) -> list:
    """Several values in order: a list, array, Series or generator as a list.

    Parameters
    ----------
    name : str
        The argument, in the plural.
    values : iterable
    expected : str
        For the message of an error.

    Raises
    ------
    ValueError
        For one text, a table, a mapping, a set (it has no order) and what is not iterable.
    """
    if not _is_list(values):
        what = f"a {type(values).__name__}" if hasattr(values, "columns") else shown(values)
        raise ValueError(f"{name} are {what}, expected {expected}")
    return list(values)


def check_histories(values: Any) -> list:
    """Several histories in order, each as it is; what they hold is checked by the caller.

    Raises
    ------
    ValueError
        If the values are no list of lists, such as one flat history.

    Examples
    --------
    >>> check_histories(((7, 9), []))
    [(7, 9), []]
    >>> check_histories([7, 9])
    Traceback (most recent call last):
    ValueError: history 0 is 7, expected a list of items: for one user, write recommend([[1, 2, 3]])
    """
    found = check_list("histories", values, f"a list of histories: {_ONE_USER}")
    for at, history in enumerate(found):
        if not _is_list(history):
            raise ValueError(f"history {at} is {shown(history)}, expected a list of items: {_ONE_USER}")
    return found


def _is_list(values: Any) -> bool:
    if isinstance(values, str | bytes | Mapping | Set) or hasattr(values, "columns"):
        return False
    try:
        iter(values)
    except TypeError:
        return False
    return True
