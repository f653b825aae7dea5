"""Power laws with intervals from measured costs, and what follows from them.

Most costs here are close to a n^b over the sizes that one machine can measure, which is a line in logarithms:

    (1)  log cost = log a + b log n + error

fitted by least squares, with Student's t for the interval of b. Where a line does not fit there are two others: a fixed
cost besides the one that grows, such as reading the history before items are looked at,

    (2)  log cost = log(c + a n^b) + error

or a second line from one of the measured sizes on (a *bend*), such as where a table no longer fits the cache:

    (3)  log cost = log a + b log n + d max(0, log n - log n_0) + error

Beyond the last measured point a law is an extrapolation: it assumes that nothing bends again.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

REACH = 10  # times the largest measured size: a law is asked nothing beyond
_MATTERS = 0.15  # a smaller change of the exponent is no bend, a smaller share of the smallest cost no fixed cost
_SIGNIFICANT = 0.01  # level of the F-test, divided by the number of forms tried
_FIXED = math.inf  # the form of equation (2); that of (1) is None, that of (3) is log n_0
_Form = float | None


@dataclass(frozen=True)
class Law:
    """A cost as a function of the number of items; made by `fit`."""

    exponent: float  # b, after a bend b + d
    low: float  # of its 95% interval; infinite where two points leave nothing to judge by
    high: float
    fixed: float | None  # c, None without a cost that does not grow
    bend: float | None  # n_0, None without a bend
    n_from: int  # the measured sizes lie between these
    n_to: int
    _form: _Form = field(repr=False)
    _parameters: np.ndarray = field(repr=False)
    _covariance: np.ndarray = field(repr=False)
    _spread: float = field(repr=False)  # standard deviation of the error, in logarithms
    _quantile: float = field(repr=False)  # of Student's t

    def at(self, n: float) -> float:
        """The cost at n items."""
        return math.exp(_values(self._form, np.log([n]), self._parameters)[0])

    def between(self, n: float) -> tuple[float, float]:
        """The 95% interval in which a measurement at n items would lie, if the law holds there."""
        if math.isinf(self._quantile):
            return 0.0, math.inf
        slope = _slopes(self._form, np.log([n]), self._parameters)[0]
        variance = self._spread**2 + slope @ self._covariance @ slope
        factor = math.exp(min(self._quantile * math.sqrt(variance), 700.0))
        return self.at(n) / factor, self.at(n) * factor

    def reaches(self, limit: float) -> float:
        """The first n at which the cost is `limit`, infinite if that is not below 10^15.

        Below the smallest measured size none is looked for, unless the cost was too much there already.

        >>> fit([1000, 10_000], [0.1, 1.0]).reaches(100)
        1000000.0
        """
        start = 1.0 if self.at(self.n_from) >= limit else self.n_from
        return _first(lambda n: self.at(n) >= limit * (1 - 1e-12), start)

    def curve(self) -> tuple[np.ndarray, np.ndarray]:
        """A hundred sizes between the smallest and the largest measured one, and the costs there."""
        sizes = np.geomspace(self.n_from, self.n_to, 100)
        return sizes, np.exp(_values(self._form, np.log(sizes), self._parameters))


def _values(form: _Form, x: np.ndarray, parameters: np.ndarray) -> np.ndarray:
    """Log cost at (m,) log n. Parameters: log a, b; log c, log a, b; or log a, b, d."""
    if form == _FIXED:
        return np.logaddexp(parameters[0], parameters[1] + parameters[2] * x)
    return _slopes(form, x, parameters) @ parameters


def _slopes(form: _Form, x: np.ndarray, parameters: np.ndarray) -> np.ndarray:
    """The derivatives of log cost by the parameters: (m, 2) or (m, 3)."""
    if form == _FIXED:
        share = 1 / (1 + np.exp(parameters[1] + parameters[2] * x - parameters[0]))  # of the fixed cost
        return np.column_stack([share, 1 - share, (1 - share) * x])
    return np.column_stack([np.ones_like(x), x] + ([] if form is None else [np.maximum(0, x - form)]))


def _fitted(form: _Form, x: np.ndarray, y: np.ndarray) -> tuple[float, _Form, np.ndarray]:
    """Fit a form by least squares: its sum of squared residuals, the form, its parameters.

    The sum is infinite if the third parameter makes no difference, so that the plain line is taken instead.
    """
    if form == _FIXED:
        from scipy.optimize import least_squares

        found = [
            least_squares(
                lambda p: _values(form, x, p) - y,
                [y.min() - 0.1, y[x.argmax()] - b * x.max(), b],
                lambda p: _slopes(form, x, p),
                x_scale=(1, x.max(), 1),
            )
            for b in (0.5, 1.0, 2.0)
        ]
        parameters = min(found, key=lambda one: one.cost).x
        share = _slopes(form, np.array([x.min(), x.max()]), parameters)[:, 0]
        matters = parameters[2] > 0 and share[0] > _MATTERS and share[1] < 1 - _MATTERS
    else:
        parameters = np.linalg.lstsq(_slopes(form, x, np.empty(0)), y)[0]
        matters = form is None or abs(parameters[2]) > _MATTERS
    squares = float(np.sum((y - _values(form, x, parameters)) ** 2))
    return squares if matters else math.inf, form, parameters


def _best(x: np.ndarray, y: np.ndarray) -> tuple[float, _Form, np.ndarray]:
    """The fit of the form to take."""
    line, freedom = _fitted(None, x, y), len(x) - 3
    if freedom < 2:
        return line
    from scipy.stats import f as fisher  # slow to import

    forms: list[_Form] = [_FIXED, *np.unique(x)[1:-1].tolist()]
    best = min((_fitted(form, x, y) for form in forms), key=lambda one: one[0])
    gain = (line[0] - best[0]) / max(best[0] / freedom, np.finfo(float).tiny)
    return best if math.isfinite(gain) and fisher.sf(gain, 1, freedom) < _SIGNIFICANT / len(forms) else line


def fit(sizes: Sequence[float], costs: Sequence[float]) -> Law:
    """The law of costs measured at sizes: (m,) positive numbers each, m of 2 or more.

    With five points or more a fixed cost, and a bend at each of the inner points, are tried. The best of them is taken
    if it is not too small to matter, and if an F-test, with its level divided by the number of forms tried, says that
    chance does not do that once in a hundred. Raises ValueError for other shapes, sizes that are all the same, or a
    number that is not positive.

    >>> law = fit([100, 1000, 10_000], [0.2, 2.0, 20.0])
    >>> round(law.exponent, 3), law.fixed, law.bend, round(law.at(10**6))
    (1.0, None, None, 2000)
    """
    n, cost = np.asarray(sizes, dtype=np.float64), np.asarray(costs, dtype=np.float64)
    if n.ndim != 1 or n.shape != cost.shape or len(np.unique(n)) < 2:
        raise ValueError(f"expected two or more sizes, not all the same, and a cost for each, got {n} and {cost}")
    if not (np.isfinite(n) & np.isfinite(cost) & (n > 0) & (cost > 0)).all():
        raise ValueError(f"sizes and costs must be positive and finite, got {n} and {cost}")
    from scipy.stats import t as student

    x, y = np.log(n), np.log(cost)
    squares, form, parameters = _best(x, y)
    freedom = len(x) - len(parameters)
    quantile = float(student.ppf(0.975, freedom)) if freedom else math.inf
    spread = math.sqrt(squares / freedom) if freedom else 0.0
    slopes = _slopes(form, x, parameters)
    covariance = spread**2 * np.linalg.pinv(slopes.T @ slopes)
    of_exponent = np.array([0.0, 0.0, 1.0] if form == _FIXED else [0.0, 1.0, 1.0][: len(parameters)])
    exponent = float(of_exponent @ parameters)
    margin = quantile * math.sqrt(of_exponent @ covariance @ of_exponent) if freedom else math.inf
    fixed = math.exp(parameters[0]) if form == _FIXED else None
    bend = None if form is None or fixed else float(n[np.abs(x - form).argmin()])
    low, high, ends = exponent - margin, exponent + margin, (int(n.min()), int(n.max()))
    return Law(exponent, low, high, fixed, bend, *ends, form, parameters, covariance, spread, quantile)


def crossing(cheap_later: Law, cheap_now: Law) -> float:
    """The first n at which the first law is no more than the second, infinite if that is not below 10^15.

    >>> crossing(fit([1, 100], [50, 50]), fit([1, 100], [1, 100]))
    50.0
    """
    return _first(lambda n: cheap_later.at(n) <= cheap_now.at(n) * (1 + 1e-12))


def _first(is_so: Callable[[float], bool], start: float = 1.0) -> float:
    """The first n from `start` to 10^15 for which something is so, to six digits; infinite if for none."""
    grid = np.geomspace(start, 1e15, 3001)
    found = next((at for at, n in enumerate(grid) if is_so(n)), None)
    if found is None:
        return math.inf
    low, high = grid[max(found - 1, 0)], grid[found]
    for _ in range(60 if found else 0):
        middle = math.sqrt(low * high)
        low, high = (low, middle) if is_so(middle) else (middle, high)
    return short(float(high))


def two_digits(number: float) -> str:
    """A number with two significant digits.

    >>> two_digits(1_384_000), two_digits(0.0521)
    ('1,400,000', '0.052')
    """
    return f"{float(f'{number:.2g}'):,.10g}"


def short(value: float) -> float:
    """To six digits that count."""
    return float(f"{value:.6g}")


def sensible(
    costs: Mapping[str, Law], peaks: Mapping[str, Law], limits: Mapping[str, float], memory: float
) -> list[dict[str, Any]]:
    """The exponent of each stage, and the first n at which it is too slow or too large.

    Parameters
    ----------
    limits : mapping
        The highest acceptable cost of each stage.
    memory : float
        The highest acceptable peak, in bytes.

    Returns
    -------
    list of dict
        A line per stage. `by` is "time" or "memory", whichever limit is reached first; `extrapolated` means that n is
        larger than all measured sizes. n is infinite and `by` is empty beyond `REACH` times the largest of them.

    Examples
    --------
    >>> line = sensible({"a": fit([10, 100], [1, 10])}, {"a": fit([10, 100], [1, 10])}, {"a": 50}, 20)[0]
    >>> line["no longer sensible from"], line["by"], line["extrapolated"]
    (200.0, 'memory', True)
    """
    lines = []
    for stage, law in costs.items():
        by_time = law.reaches(limits[stage])
        by_memory = peaks[stage].reaches(memory) if stage in peaks else math.inf
        n, by = min((by_time, "time"), (by_memory, "memory"), key=lambda end: end[0])
        if n > REACH * law.n_to:
            n, by = math.inf, ""
        facts = {"exponent": law.exponent, "low": law.low, "high": law.high, "fixed": law.fixed, "bends at": law.bend}
        end = {"no longer sensible from": n, "by": by, "extrapolated": n > law.n_to}
        lines.append({"stage": stage, **facts, **end})
    return lines


class Offer(NamedTuple):
    """The cost of a way to answer on a catalogue of n items, by its laws; nan where memory alone rules it out."""

    stage: str
    cost: float  # in the unit of the stage
    high: float  # the upper end of the 95% interval of a measurement there
    kept: float  # bytes to answer from
    extrapolated: bool  # beyond the largest size that was measured
    fits: bool  # within both limits

    def __str__(self) -> str:
        """The cost in a few characters: a star marks an extrapolation, brackets a limit that is exceeded."""
        text = "memory" if math.isnan(self.cost) else two_digits(self.cost) + "*" * self.extrapolated
        return text if self.fits else f"({text})"


def offers(
    n: int,
    costs: Mapping[str, Law],
    kept: Mapping[str, Law],
    peaks: Mapping[str, Law],
    limits: Mapping[str, float],
    memory: float,
) -> dict[str, Offer]:
    """Each stage of `costs` at n items, except those that were never measured on a tenth of them (`REACH`).

    limits and memory are those of `sensible`. Arrays grow without bends: a stage whose arrays do not fit into memory is
    offered at any size, with `fits` false.
    """
    made = {}
    for stage, law in costs.items():
        holds = kept[stage].at(n)
        is_near = n <= REACH * law.n_to
        if not is_near and holds <= memory:
            continue
        cost, high = (law.at(n), law.between(n)[1]) if is_near else (math.nan, math.nan)
        peak = max(holds, peaks[stage].at(n)) if stage in peaks else holds
        fits = cost <= limits[stage] and peak <= memory
        made[stage] = Offer(stage, cost, high, holds, n > law.n_to, fits)
    return made


def first_that_fits(stages: Sequence[str], found: Mapping[str, Offer]) -> Offer | None:
    """The first stage whose offer fits; None if none does, or if one before it has no offer."""
    for stage in stages:
        if stage not in found or found[stage].fits:
            return found.get(stage)
    return None
