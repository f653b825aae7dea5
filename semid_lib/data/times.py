"""Times of interactions in any unit: a number is read in the unit that puts it between 1990 and 2100.

Few numbers have two such readings: 1.4e9 can only be seconds, 1.4e12 milliseconds, 20140513 a date. If a number has
two, the first in `_READINGS` is taken: 2014051310 is an hour of 2014, not a second of 2033. Years, months, day numbers
and .NET ticks are recognized but refused.
"""

from collections.abc import Callable
from typing import NamedTuple, NoReturn

import numpy as np
import pandas as pd

UNITS = ("auto", "s", "ms", "us", "ns", "excel", "date")
_FIRST, _LAST = 631_152_000, 4_102_444_800  # 1990 and 2100 in Unix seconds
_CENTURY = 36_525 * 86_400  # seconds
_EXCEL_EPOCH = -2_209_161_600  # 30 December 1899


class _Reading(NamedTuple):
    """One way to read a number as a time."""

    name: str
    low: float
    high: float
    scale: int = 0  # nanoseconds of 1; 0 if it is refused
    digits: str = ""  # the format of a compact date

    def fits(self, numbers: np.ndarray) -> np.ndarray:
        """Which numbers can be read so: (n,) bool."""
        inside = (numbers >= self.low) & (numbers < self.high)
        if self.digits and inside.any():
            there = numbers[inside]
            inside[inside] = self.dates(there).notna().to_numpy() & (there == np.floor(there))
        return inside

    def dates(self, numbers: np.ndarray) -> pd.Series:
        """Compact dates, NaT where there is no such day or hour."""
        texts = pd.Series(numbers.astype(np.int64)).astype(str)
        return pd.to_datetime(texts, format=self.digits, utc=True, errors="coerce")


_READINGS = [
    _Reading("times as YYYYMMDDhh", 1_990_010_100, 2_099_123_124, digits="%Y%m%d%H"),
    _Reading(".NET ticks", 627_667_488e9, 662_380_416e9),
    _Reading("Unix seconds", _FIRST, _LAST, 10**9),
    _Reading("Unix milliseconds", _FIRST * 1e3, _LAST * 1e3, 10**6),
    _Reading("Unix microseconds", _FIRST * 1e6, _LAST * 1e6, 10**3),
    _Reading("Unix nanoseconds", _FIRST * 1e9, _LAST * 1e9, 1),
    _Reading("dates as YYYYMMDD", 19_900_101, 20_991_232, digits="%Y%m%d"),
    _Reading("times as YYYYMMDDhhmm", 199_001_010_000, 209_912_312_360, digits="%Y%m%d%H%M"),
    _Reading("times as YYYYMMDDhhmmss", 19_900_101_000_000, 20_991_231_235_960, digits="%Y%m%d%H%M%S"),
    _Reading("years", 1990, 2100),
    _Reading("months as YYYYMM", 199_001, 209_913),
    _Reading("Excel's day numbers", 32_874, 73_051),
    _Reading("days since 1970", 7305, 32_874),
]
_SCALES = {"s": 10**9, "ms": 10**6, "us": 10**3, "ns": 1}

Fail = Callable[[int, str], NoReturn]


def nanoseconds(values: pd.Series, fail: Fail, unit: str = "auto") -> np.ndarray:
    """Unix nanoseconds of a column of times without missing values.

    Parameters
    ----------
    values : pandas.Series
        Dates, numbers, or text that holds either; ISO dates without a zone are UTC.
    fail : callable
        `fail(at, problem)` raises for the value at a position.
    unit : str
        One of `UNITS`; "auto" takes the only reading between 1990 and 2100, "date" reads ISO dates alone.

    Returns
    -------
    (n,) int64 array
        Exact, so that interactions within one second keep their order.

    Examples
    --------
    >>> def fail(at, problem):
    ...     raise ValueError(f"row {at + 1}: {problem}")
    >>> times = nanoseconds(pd.Series(["1400000000123", "1400000000001"]), fail)
    >>> (times // 10**6).tolist()
    [1400000000123, 1400000000001]
    >>> nanoseconds(pd.Series([41770.5]), fail, "excel") // 10**9
    array([1399809600])
    """
    if unit not in UNITS:
        raise ValueError(f"time unit {unit!r}, expected one of {', '.join(UNITS)}")
    values = values.reset_index(drop=True)
    if pd.api.types.infer_dtype(values) in ("datetime", "datetime64", "date"):
        return _from_dates(values, pd.to_datetime(values, utc=True, errors="coerce"), fail)
    numbers = pd.to_numeric(values, errors="coerce")
    size = numbers.to_numpy(np.float64)
    if np.isnan(size).all() or unit == "date":
        return _from_dates(values, _iso_dates(values), fail)
    is_bool = np.array([isinstance(value, bool) for value in values], dtype=bool)
    _check(np.isfinite(size) & ~is_bool, values, "a date or a Unix time", fail)
    return _from_numbers(numbers, unit, fail)


def nanosecond(number: float) -> int | None:
    """Unix nanoseconds of one number in the only unit that gives a time between 1990 and 2100, or None.

    >>> nanosecond(1400000000123) // 10**6, nanosecond(7)
    (1400000000123, None)
    """
    found = (reading for reading in _READINGS if reading.scale and reading.low <= number < reading.high)
    return next((round(number * reading.scale) for reading in found), None)


def check_seconds(times: np.ndarray, fail: Fail) -> None:
    """Refuse Unix seconds, (n,) int64, that lie after 2100 or are clearly in another unit.

    Examples
    --------
    >>> def fail(at, problem):
    ...     raise ValueError(problem)
    >>> check_seconds(np.array([20140513, 20140514]), fail)
    Traceback (most recent call last):
        ...
    ValueError: the times look like dates as YYYYMMDD, expected Unix seconds
    """
    if not len(times):
        return
    late = np.abs(times.astype(np.float64)) >= _LAST
    at = int(late.argmax()) if late.any() else 0
    doubtful = times[late] if late.any() else times
    for reading in _READINGS:
        if reading.name != "Unix seconds" and reading.fits(doubtful.astype(np.float64)).all():
            fail(at, f"the times look like {reading.name}, expected Unix seconds")
    if late.any():
        fail(at, f"time {times[at]} is not between 1834 and 2100, expected Unix seconds")


def check_relative(times: np.ndarray, offsets: np.ndarray, fail: Fail) -> None:
    """Refuse seconds since each user's first interaction, (n,) int64, that do not start at 0 or exceed a century.

    offsets: (n_users + 1,) int64, where the times of each user begin.

    Examples
    --------
    >>> def fail(at, problem):
    ...     raise ValueError(problem)
    >>> check_relative(np.array([0, 86400, 1400000000, 1400000000]), np.array([0, 2, 4]), fail)
    Traceback (most recent call last):
        ...
    ValueError: the first time is 1400000000, expected 0: seconds since the user's first interaction
    """
    first = offsets[:-1][np.diff(offsets) > 0]
    if (wrong := first[times[first] != 0]).size:
        problem = "expected 0: seconds since the user's first interaction"
        fail(int(wrong[0]), f"the first time is {times[wrong[0]]}, {problem}")
    if (late := times > _CENTURY).any():
        at = int(late.argmax())
        fail(at, f"time {times[at]} is more than a century, expected seconds since the user's first interaction")


def _iso_dates(values: pd.Series) -> pd.Series:
    """Text as dates; pandas alone would also take "now", and "2014-05" for its first day."""
    texts = values.astype(str).str.strip()
    days = texts.where(texts.str.match(r"[0-9]{4}([0-9]{4}|[-/.][0-9]{1,2}[-/.][0-9]{1,2})(?![0-9])"))
    return pd.to_datetime(days, format="ISO8601", utc=True, errors="coerce")


def _from_dates(values: pd.Series, dates: pd.Series, fail: Fail) -> np.ndarray:
    _check(dates.notna().to_numpy(), values, "an ISO date such as 2014-05-13 or a Unix time", fail)
    _check(dates.dt.year.between(1990, 2099).to_numpy(), values, "a time between 1990 and 2100", fail)
    return dates.astype("datetime64[ns, UTC]").astype(np.int64).to_numpy()


def _check(good: np.ndarray, values: pd.Series, expected: str, fail: Fail) -> None:
    if not good.all():
        at = int(np.argmin(good))
        fail(at, f"time {values.iloc[[at]].tolist()[0]!r}, expected {expected}")


def _from_numbers(numbers: pd.Series, unit: str, fail: Fail) -> np.ndarray:
    size = numbers.to_numpy(np.float64)
    if unit != "auto":
        epoch, scale = (_EXCEL_EPOCH, 86_400 * 10**9) if unit == "excel" else (0, _SCALES[unit])
        _check(np.abs(size * (scale / 1e9) + epoch) < _LAST, numbers, f"a time before 2100 in the unit {unit!r}", fail)
        return _scaled(numbers, scale) + epoch * 10**9
    reading = max(_READINGS, key=lambda reading: reading.fits(size).sum())
    fits = reading.fits(size)
    hint = "dates such as 2014-05-13, or the unit of the times (--time-unit)"
    if not fits.any():
        fail(0, f"time {numbers[0]} is in no known unit, expected {hint}")
    _check(fits, numbers, f"{reading.name} as in the other rows", fail)
    if reading.scale:
        return _scaled(numbers, reading.scale)
    if not reading.digits:
        fail(0, f"time {numbers[0]}: the times look like {reading.name}, expected {hint}")
    return _from_dates(numbers, reading.dates(size), fail)


def _scaled(numbers: pd.Series, scale: int) -> np.ndarray:
    """Whole numbers are scaled without rounding."""
    whole = pd.api.types.is_integer_dtype(numbers)
    return np.round(numbers.to_numpy(np.int64 if whole else np.float64) * scale).astype(np.int64)
