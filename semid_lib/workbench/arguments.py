"""Checks of what callers pass to `recommend`, `rank` and `search`: one sentence says what was expected."""

from collections.abc import Mapping, Set
from numbers import Integral
from typing import Any

import numpy as np

from semid_lib.workbench.text import shown

_MOST = 2**24
_ONE_USER = "for one user, write recommend([[1, 2, 3]])"


def count(name: str, value: Any) -> int:
    """A number of items or beams, as an int; NumPy's integers are welcome.

    Raises
    ------
    ValueError
        If the value is no integer, below 1 or above 2^24, where the lists of one user would take 200 MB.

    Examples
    --------
    >>> count("k", 3.0)
    Traceback (most recent call last):
    ValueError: k must be a whole number of at least 1, got 3.0
    """
    if not isinstance(value, Integral) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name} must be a whole number of at least 1, got {shown(value)}")
    if value > _MOST:
        raise ValueError(f"{name} is {shown(value)}, expected at most {_MOST}")
    return int(value)


def flag(name: str, value: Any) -> bool:
    """A choice, as a bool. Raises ValueError for anything but True and False (NumPy's included), such as "no"."""
    if not isinstance(value, bool | np.bool_):
        raise ValueError(f"{name} must be True or False, got {shown(value)}")
    return bool(value)


def listed(name: str, values: Any, expected: str) -> list:
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


def histories(values: Any) -> list:
    """Several histories in order, each as it is; what they hold is checked by the caller.

    Raises
    ------
    ValueError
        If the values are no list of lists, such as one flat history.

    Examples
    --------
    >>> histories(((7, 9), []))
    [(7, 9), []]
    >>> histories([7, 9])
    Traceback (most recent call last):
    ValueError: history 0 is 7, expected a list of items: for one user, write recommend([[1, 2, 3]])
    """
    found = listed("histories", values, f"a list of histories: {_ONE_USER}")
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
