"""Values of other people's files as text, prices, and fields that JSON can hold."""

import datetime
import decimal
import html
import re
from collections.abc import Sequence

import numpy as np
import pandas as pd

from semid_lib.data.readers import is_nothing
from semid_lib.workbench.text import normal


def text_of(value, between: str = "\n") -> str:
    """The text of a title, brand or description: HTML entities decoded, lists joined, "" for a missing value.

    >>> text_of(["Soap &amp; water", None, "NULL"]), text_of(1984.0)
    ('Soap & water', '1984')
    >>> text_of({"a": 1})
    Traceback (most recent call last):
        ...
    ValueError: expected text
    """
    if is_nothing(value):
        return ""
    if isinstance(value, str):
        return normal(html.unescape(value)).strip()
    if isinstance(value, list | tuple):
        return between.join(filter(None, (text_of(one, between) for one in value)))
    if isinstance(value, int | float) and not isinstance(value, bool) and np.isfinite(value):
        return str(int(value) if value == int(value) else value)
    raise ValueError("expected text")


def line_of(value) -> str:
    """`text_of` in one line."""
    return " ".join(text_of(value, ", ").split())


def decimal_sign(prices: Sequence) -> str:
    """The decimal sign of prices as text: "," only if every comma among them ends in one or two digits.

    >>> decimal_sign(["3,50", "1.200,00"]), decimal_sign(["1,200", "3.5"])
    (',', '.')
    """
    texts = [value for value in prices if isinstance(value, str) and "," in value]
    return "," if texts and all(re.search(r"[0-9],[0-9]{1,2}\D*$", text) for text in texts) else "."


def number(value, sign: str = ".") -> float | int | None:
    """A price without currency and thousands separators, or None if it is not one number.

    >>> number("$1,299.00"), number("3,50 €", ","), number("from 3 to 5"), number(7), number("3,50", ".")
    (1299.0, 3.5, None, 7, None)
    """
    if isinstance(value, str):
        thousands = "." if sign == "," else ","
        found = re.fullmatch(r"[^\d-]*(-?\d[\d.,' \u00a0\u202f]*?)[^\d]*", value.strip())
        whole = rf"[0-9]+|[0-9]{{1,3}}([{thousands}'\s][0-9]{{2,3}})*[{thousands}'\s][0-9]{{3}}"
        if not found or not re.fullmatch(rf"-?({whole})([{sign}][0-9]+)?", found[1]):
            return None
        return float(re.sub(rf"['\s{thousands}]", "", found[1]).replace(sign, "."))
    value = float(value) if isinstance(value, decimal.Decimal) else value
    fits = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 2**53
    return value if fits else None


def plain(value):
    """A value that JSON can hold: missing values become None, dates ISO text. Raises ValueError for other types."""
    if isinstance(value, str):
        return normal(value)
    if value is None or value is pd.NA or value is pd.NaT or (isinstance(value, float) and not np.isfinite(value)):
        return None
    if isinstance(value, bool | int | float):
        return value
    if isinstance(value, list | tuple | np.ndarray):
        return [plain(one) for one in value]
    if isinstance(value, dict):
        return {str(name): plain(one) for name, one in value.items()}
    if isinstance(value, datetime.date | datetime.time | datetime.timedelta | decimal.Decimal):
        return str(value)
    raise ValueError(f"a value is of type {type(value).__name__}, expected text or a number")
