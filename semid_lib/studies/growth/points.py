"""Measured points of a stage: measure them from small to large, write them as result rows, and read them again."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from semid_lib.studies.growth.laws import Law, fit, short

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
    """A point that was not measured, because the law so far predicts that it would take too much."""

    stage: str
    n: int
    expected: float  # seconds, or bytes
    why: str  # "time" or "memory"


def walk(
    stages: Iterable[str],
    sizes: Sequence[int],
    measure: Callable[[str, int], Point],
    budget: float,
    memory: float = 12 * GIB,
) -> Iterator[Point | LeftOut]:
    """Each stage at each size, from small to large, until a point would take more than `budget` seconds or `memory`.

    The law of the last three points predicts what the next one takes; the first two are always measured, since a law
    needs them. After one that is left out, or whose `wall` is infinite, no
    larger one is tried.

    >>> slow = lambda stage, n: Point(stage, n, cost=n, peak=1.0, kept=1.0, wall=n)
    >>> [(type(one).__name__, one.n) for one in walk(["a"], [10, 100, 1000], slow, budget=200)]
    [('Point', 10), ('Point', 100), ('LeftOut', 1000)]
    """
    for stage in stages:
        points: list[Point] = []
        for n in sorted(sizes):
            if points and not math.isfinite(points[-1].wall):
                break
            if len(points) > 1:
                wall, peak = (expected(points, name, n) for name in ("wall", "peak"))
                if wall > budget or peak > memory:
                    yield LeftOut(stage, n, *((peak, "memory") if peak > memory else (wall, "time")))
                    break
            points.append(measure(stage, n))
            yield points[-1]


def half_decades(low: float, high: float) -> list[int]:
    """Sizes from low to high, two a decade, which is as far apart as a bend may be found.

    >>> half_decades(1000, 100_000)
    [1000, 3162, 10000, 31623, 100000]
    """
    first, last = round(2 * math.log10(low)), round(2 * math.log10(high))
    return [round(10 ** (half / 2)) for half in range(first, last + 1)]


_FLOOR = {"wall": 0.1, "peak": 2.0**24}  # seconds, bytes: smaller values do not predict larger sizes


def expected(points: Sequence[Point], name: str, n: int) -> float:
    """The `wall` or `peak` of a point at n, predicted from the last three."""
    last = points[-3:]  # fixed costs of small sizes would hide the growth
    return fit([point.n for point in last], [max(getattr(point, name), _FLOOR[name]) for point in last]).at(n)


def as_rows(points: Iterable[Point | LeftOut], units: Mapping[str, str]) -> list[dict[str, Any]]:
    """Points as rows for `Store.record`: time, peak memory in MiB and bytes an item; and what was left out."""
    made = []
    for point in points:
        name = f"{point.stage} ({units[point.stage]})"
        if isinstance(point, LeftOut):
            facts = {"stage": point.stage, "n": point.n, "why": point.why}
            made.append({"key": f"growth_left_out/{name}/{point.n}", "value": short(point.expected), **facts})
            continue
        facts = {"stage": point.stage, "n": point.n}
        time = {"unit": units[point.stage], "wall": short(point.wall)}
        made += [
            {"key": f"growth_time/{name}/{point.n:,}", "value": short(point.cost), **facts, **time},
            {"key": f"growth_memory/{point.stage}/{point.n:,}", "value": short(point.peak / 2**20), **facts},
            {"key": f"growth_bytes/{point.stage}/{point.n:,}", "value": short(point.kept / point.n), **facts},
        ]
    return made


def from_rows(rows: Iterable[Mapping[str, Any]]) -> list[Point]:
    """The points that `as_rows` wrote, from result rows of any kind.

    >>> point = Point("trie", 1000, cost=0.5, peak=2.0**20, kept=12_000.0, wall=1.0)
    >>> from_rows(as_rows([point], {"trie": "s"})) == [point]
    True
    """
    found: dict[tuple[str, int], dict[str, Mapping[str, Any]]] = {}
    for row in rows:
        topic = row["key"].split("/")[0]
        if topic in ("growth_time", "growth_memory", "growth_bytes"):
            found.setdefault((row["stage"], row["n"]), {})[topic] = row
    made = []
    for (stage, n), of in found.items():
        if len(of) == 3:
            time, memory, size = (of[f"growth_{topic}"] for topic in ("time", "memory", "bytes"))
            made.append(Point(stage, n, time["value"], memory["value"] * 2**20, size["value"] * n, time["wall"]))
    return made


def fit_all(points: Iterable[Point | LeftOut], name: str = "cost", least: float = 0.0) -> dict[str, Law]:
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
