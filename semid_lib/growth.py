"""How a cost grows with the catalogue: power laws with intervals from measured points, and what follows from them.

Most costs here are close to a n^b over the sizes that one machine can measure, which is a line in logarithms:

    (1)  log cost = log a + b log n + error

fitted by least squares, with Student's t for the interval of b. Where one line does not do, because a fixed cost gives
way to one that grows, or a table no longer fits the cache, a second begins at one of the measured sizes (a *bend*):

    (2)  log cost = log a + b log n + d max(0, log n - log n_0) + error

Beyond the last measured point a law is an extrapolation: it assumes that nothing bends again.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

_BENDS = 0.15  # a smaller change of the exponent is no bend
_SIGNIFICANT = 0.01  # and it has to be unlikely by chance, whichever of the measured sizes it stands at
GIB = 2**30


class Point(NamedTuple):
    """One stage, measured at one size of the catalogue."""

    stage: str
    n: int  # items
    cost: float  # in the unit of the stage, such as seconds or milliseconds a user
    peak: float  # bytes of memory at the highest, the inputs included, above what the imported libraries take
    kept: float  # bytes of the arrays that are kept to answer from, or are the result
    wall: float  # seconds of the whole measurement, with making its inputs


class LeftOut(NamedTuple):
    """A point that was not measured, since the curve so far says that it would take too much."""

    stage: str
    n: int
    expected: float  # seconds, or bytes
    why: str  # "time" or "memory"


@dataclass(frozen=True)
class Law:
    """A fitted cost; made by `fit`."""

    exponent: float  # b, or b + d after a bend
    low: float  # of its 95% interval; infinite where two points leave nothing to judge by
    high: float
    bend: float | None  # n_0, None for a straight line
    before: float  # the exponent below the bend; that of the line without one
    n_from: int  # the measured sizes lie between these
    n_to: int
    _coefficients: np.ndarray = field(repr=False)
    _covariance: np.ndarray = field(repr=False)
    _spread: float = field(repr=False)  # standard deviation of the error, in logarithms
    _quantile: float = field(repr=False)

    def at(self, n: float) -> float:
        """The cost at n items."""
        return float(np.exp(_design(np.log([n]), self._at) @ self._coefficients)[0])

    def between(self, n: float) -> tuple[float, float]:
        """The 95% interval in which a measurement at n items would lie, if the law holds there."""
        line = _design(np.log([n]), self._at)[0]
        variance = self._spread**2 + line @ self._covariance @ line
        factor = math.exp(min(self._quantile * math.sqrt(variance), 700.0))
        return self.at(n) / factor, self.at(n) * factor

    def reaches(self, limit: float) -> float:
        """The first n of 1 or more at which the cost is `limit`, infinite if it never is.

        >>> fit([1000, 10_000], [0.1, 1.0]).reaches(100)
        1000000.0
        """
        if self.at(1) >= limit:
            return 1.0
        edges = [1.0, *([self.bend] if self.bend else []), math.inf]
        for start, slope in zip(edges, (self.before, self.exponent), strict=False):
            if slope <= 0:
                continue
            n = start * (limit / self.at(start)) ** (1 / slope)
            if n <= edges[edges.index(start) + 1]:
                return float(f"{n:.12g}")
        return math.inf

    @property
    def _at(self) -> float | None:
        return None if self.bend is None else math.log(self.bend)


def fit(sizes: Sequence[float], costs: Sequence[float]) -> Law:
    """The law of costs measured at sizes, with a bend if one is there: (m,) positive numbers each, m of 2 or more.

    A bend is looked for among five points or more, at each of the inner ones; it is taken if the exponent changes
    by more than .15 there and an F-test, with its level divided by the number of places tried, says that chance
    does not do that once in a hundred. Raises ValueError for other shapes, sizes that are all the same, or a number
    that is not positive.

    >>> law = fit([100, 1000, 10_000], [0.2, 2.0, 20.0])
    >>> round(law.exponent, 3), law.bend, round(law.at(10**6))
    (1.0, None, 2000)
    """
    n, cost = np.asarray(sizes, dtype=np.float64), np.asarray(costs, dtype=np.float64)
    if n.ndim != 1 or n.shape != cost.shape or len(n) < 2 or len(np.unique(n)) < 2:
        raise ValueError(f"expected two or more sizes, not all the same, and a cost for each, got {n} and {cost}")
    if not (np.isfinite(n) & np.isfinite(cost) & (n > 0) & (cost > 0)).all():
        raise ValueError(f"sizes and costs must be positive and finite, got {n} and {cost}")
    x, y = np.log(n), np.log(cost)
    at = _bend(x, y)
    design = _design(x, at)
    coefficients, squares = _least_squares(design, y)
    freedom = len(x) - design.shape[1]
    spread = math.sqrt(squares / freedom) if freedom else 0.0
    covariance = spread**2 * np.linalg.inv(design.T @ design)
    slope = np.array([0.0, 1.0, 1.0][: design.shape[1]])
    exponent, quantile = float(slope @ coefficients), _student(freedom)
    margin = quantile * math.sqrt(slope @ covariance @ slope) if freedom else math.inf
    bend = None if at is None else float(n[np.abs(x - at).argmin()])
    ends = int(n.min()), int(n.max())
    law = exponent, exponent - margin, exponent + margin, bend, float(coefficients[1]), *ends
    return Law(*law, coefficients, covariance, spread, quantile if freedom else math.inf)


def _design(x: np.ndarray, at: float | None) -> np.ndarray:
    columns = [np.ones_like(x), x] + ([] if at is None else [np.maximum(0, x - at)])
    return np.column_stack(columns)


def _least_squares(design: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, float]:
    coefficients = np.linalg.lstsq(design, y)[0]
    return coefficients, float(np.sum((y - design @ coefficients) ** 2))


def _bend(x: np.ndarray, y: np.ndarray) -> float | None:
    """Where the line bends, None if it does not."""
    from scipy.stats import f as fisher

    inner = np.unique(x)[1:-1]
    freedom = len(x) - 3
    if freedom < 2 or not len(inner):
        return None
    _, straight = _least_squares(_design(x, None), y)
    tried = [(_least_squares(_design(x, at), y), at) for at in inner]
    (coefficients, squares), at = min(tried, key=lambda one: one[0][1])
    gain = (straight - squares) / max(squares / freedom, np.finfo(float).tiny)
    unlikely = fisher.sf(gain, 1, freedom) < _SIGNIFICANT / len(inner)
    return float(at) if unlikely and abs(coefficients[2]) > _BENDS else None


def _student(freedom: int) -> float:
    from scipy.stats import t  # slow to import

    return float(t.ppf(0.975, freedom)) if freedom else math.inf


def crossing(cheap_later: Law, cheap_now: Law, largest: float = 1e12) -> float:
    """The first n at which the first law is no more than the second, infinite if that is not below `largest`.

    >>> crossing(fit([1, 100], [50, 50]), fit([1, 100], [1, 100]))
    50.0
    """
    grid = np.logspace(0, math.log10(largest), 4001)
    below = [cheap_later.at(n) <= cheap_now.at(n) for n in grid]
    if not any(below):
        return math.inf
    low, high = (grid[max(below.index(True) - 1, 0)], grid[below.index(True)])
    for _ in range(60):
        middle = math.sqrt(low * high)
        low, high = (low, middle) if cheap_later.at(middle) <= cheap_now.at(middle) else (middle, high)
    return float(f"{high:.6g}")


# --- points, measured one after the other ---


def walk(
    stages: Iterable[str],
    sizes: Sequence[int],
    measure: Callable[[str, int], Point],
    budget: float,
    memory: float = 12 * GIB,
    known: Iterable[Point] = (),
) -> Iterator[Point | LeftOut]:
    """Each stage at each size, from small to large, until a point would take more than `budget` seconds or `memory`.

    What a point would take is said by the law of those before it, or by proportion to the larger of two; the first two
    are measured whatever they take, since a law needs them. A point in `known` is not measured again. After one that
    is left out, or that took infinitely long, no larger one is tried.

    >>> slow = lambda stage, n: Point(stage, n, cost=n, peak=1.0, kept=1.0, wall=n)
    >>> [(type(one).__name__, one.n) for one in walk(["a"], [10, 100, 1000], slow, budget=200)]
    [('Point', 10), ('Point', 100), ('LeftOut', 1000)]
    """
    there = {(point.stage, point.n): point for point in known}
    for stage in stages:
        points: list[Point] = []
        for n in sorted(sizes):
            if points and not math.isfinite(points[-1].wall):
                break
            if (stage, n) not in there and len(points) > 1:
                wall, peak = (expected(points, name, n) for name in ("wall", "peak"))
                if wall > budget or peak > memory:
                    yield LeftOut(stage, n, *((peak, "memory") if peak > memory else (wall, "time")))
                    break
            point = there.get((stage, n)) or measure(stage, n)
            points.append(point)
            yield point


def half_decades(low: float, high: float) -> list[int]:
    """Sizes from low to high, two a decade, which is as far apart as a bend may be found.

    >>> half_decades(1000, 100_000)
    [1000, 3162, 10000, 31623, 100000]
    """
    first, last = round(2 * math.log10(low)), round(2 * math.log10(high))
    return [round(10 ** (half / 2)) for half in range(first, last + 1)]


def expected(points: Sequence[Point], name: str, n: int) -> float:
    """What `wall`, `peak` or another field of a point would be at n, by the points there are."""
    values = [max(getattr(point, name), 1e-9) for point in points]
    if len(points) < 3:
        return values[-1] * n / points[-1].n
    # the last three: what is fixed at small sizes says little about larger ones
    return fit([point.n for point in points[-3:]], values[-3:]).at(n)


def rows(points: Iterable[Point | LeftOut], units: Mapping[str, str]) -> list[dict[str, Any]]:
    """Points as rows for `Store.record`: time, peak memory in MiB and bytes an item; and what was left out."""
    made = []
    for point in points:
        name = f"{point.stage} ({units[point.stage]})"
        if isinstance(point, LeftOut):
            facts = {"stage": point.stage, "n": point.n, "why": point.why}
            made.append({"key": f"growth_left_out/{name}/{point.n}", "value": _short(point.expected), **facts})
            continue
        facts = {"stage": point.stage, "n": point.n}
        time = {"unit": units[point.stage], "wall": _short(point.wall)}
        made += [
            {"key": f"growth_time/{name}/{point.n:,}", "value": _short(point.cost), **facts, **time},
            {"key": f"growth_memory/{point.stage}/{point.n:,}", "value": _short(point.peak / 2**20), **facts},
            {"key": f"growth_bytes/{point.stage}/{point.n:,}", "value": _short(point.kept / point.n), **facts},
        ]
    return made


def points(rows: Iterable[Mapping[str, Any]]) -> list[Point | LeftOut]:
    """The points that `rows` wrote, read from result rows of any kind; an empty list if there are none.

    >>> point = Point("trie", 1000, cost=0.5, peak=2.0**20, kept=12_000.0, wall=1.0)
    >>> points(rows([point], {"trie": "s"})) == [point]
    True
    """
    found: dict[tuple[str, int], dict[str, float]] = {}
    left: list[Point | LeftOut] = []
    for row in rows:
        topic = row["key"].split("/")[0]
        if topic == "growth_left_out":
            left.append(LeftOut(row["stage"], row["n"], row["value"], row["why"]))
        elif topic in ("growth_time", "growth_memory", "growth_bytes"):
            one = found.setdefault((row["stage"], row["n"]), {})
            one[topic] = row["value"]
            if topic == "growth_time":
                one["wall"] = row["wall"]
    whole = [
        Point(stage, n, one["growth_time"], one["growth_memory"] * 2**20, one["growth_bytes"] * n, one["wall"])
        for (stage, n), one in found.items()
        if len(one) == 4
    ]
    return whole + left


def laws(points: Iterable[Point | LeftOut], name: str = "cost", least: float = 0.0) -> dict[str, Law]:
    """The law of each stage with two or more points: of `cost`, `peak` or `kept`.

    least: smaller values are not counted; a peak of a few MiB is within what the allocator does.
    """
    by_stage: dict[str, list[Point]] = {}
    for point in points:
        if isinstance(point, Point) and getattr(point, name) > least:
            by_stage.setdefault(point.stage, []).append(point)
    return {
        stage: fit([point.n for point in measured], [getattr(point, name) for point in measured])
        for stage, measured in by_stage.items()
        if len(measured) > 1
    }


def _short(value: float) -> float:
    """To six digits that count."""
    return float(f"{value:.6g}")


def sensible(
    costs: Mapping[str, Law], peaks: Mapping[str, Law], limits: Mapping[str, float], memory: float
) -> list[dict[str, Any]]:
    """For each stage its exponent with the interval, its bend, and the first n at which it is no longer sensible.

    limits: the greatest sensible cost of each stage; memory: the greatest sensible peak, in bytes. Whichever is
    reached first counts, and `by` says which; `extrapolated` whether that n lies beyond what was measured.

    >>> line = sensible({"a": fit([10, 100], [1, 10])}, {"a": fit([10, 100], [1, 10])}, {"a": 50}, 20)[0]
    >>> line["no longer sensible from"], line["by"], line["extrapolated"]
    (200.0, 'memory', True)
    """
    lines = []
    for stage, law in costs.items():
        by_time = law.reaches(limits[stage])
        by_memory = peaks[stage].reaches(memory) if stage in peaks else math.inf
        n = min(by_time, by_memory)
        lines.append(
            {
                "stage": stage,
                "exponent": law.exponent,
                "low": law.low,
                "high": law.high,
                "bends at": law.bend,
                "no longer sensible from": n,
                "by": "" if n == math.inf else "time" if by_time <= by_memory else "memory",
                "extrapolated": n > law.n_to,
            }
        )
    return lines


class Offer(NamedTuple):
    """What a way to answer costs on a catalogue of n items, by its laws."""

    stage: str
    cost: float  # in the unit of the stage
    low: float  # and the 95% interval of a measurement there
    high: float
    kept: float  # bytes to answer from
    peak: float  # bytes at the highest, as far as it is known
    extrapolated: bool  # beyond the largest size that was measured
    fits: bool  # within both limits


def offers(
    n: int,
    costs: Mapping[str, Law],
    kept: Mapping[str, Law],
    peaks: Mapping[str, Law],
    limits: Mapping[str, float],
    memory: float,
) -> dict[str, Offer]:
    """Each stage of `costs` at n items; see `sensible` for the limits."""
    made = {}
    for stage, law in costs.items():
        low, high = law.between(n)
        holds = kept[stage].at(n)
        peak = max(holds, peaks[stage].at(n)) if stage in peaks else holds
        fits = law.at(n) <= limits[stage] and peak <= memory
        made[stage] = Offer(stage, law.at(n), low, high, holds, peak, n > law.n_to, fits)
    return made
