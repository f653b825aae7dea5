"""Laws against costs that are known, and walks that stop in time."""

import math

import numpy as np
import pytest

from semid_lib.studies.growth import laws, points
from semid_lib.studies.growth.points import LeftOut, Point
from semid_lib.workbench import store

SIZES = np.array(points.half_decades(1000, 10_000_000))


def noisy(costs, seed, spread=0.1):
    return costs * np.exp(spread * np.random.default_rng(seed).standard_normal(len(costs)))


def test_a_power_is_found_and_its_intervals_contain_the_truth_nineteen_times_in_twenty():
    fitted = [laws.fit(SIZES, noisy(3e-6 * SIZES**0.8, seed)) for seed in range(60)]
    straight = [law for law in fitted if law.bend is None and law.fixed is None]
    assert len(straight) > 55  # chance looks like a bend once in a hundred at most
    assert 0.9 < np.mean([law.low <= 0.8 <= law.high for law in straight]) < 0.99
    truth = np.array([3e-6 * 1e8**0.8])
    new = [noisy(truth, 1000 + seed)[0] for seed in range(60)]
    within = [low <= one <= high for one, (low, high) in zip(new, (law.between(1e8) for law in fitted), strict=True)]
    assert 0.86 < np.mean(within) <= 1


def test_a_fixed_cost_and_a_bend_are_told_apart():
    seed = 0
    law = laws.fit(SIZES, noisy(0.5 + 1e-5 * SIZES, seed, 0.03))
    assert law.bend is None and law.fixed == pytest.approx(0.5, rel=0.1)
    assert law.exponent == pytest.approx(1, abs=0.1)
    low, high = law.between(10**8)
    assert low < 1000.5 < high < 2000  # a line through all points would say 130
    assert law.reaches(100) == pytest.approx(1e7, rel=0.3)
    law = laws.fit(SIZES, noisy(1e-7 * np.where(SIZES < 100_000, SIZES**1.5, 100_000**0.5 * SIZES), seed, 0.03))
    assert law.fixed is None and law.bend in (31_623, 100_000, 316_228)
    assert law.exponent == pytest.approx(1, abs=0.1) and law.low < 1.0 < law.high


def test_a_limit_is_reached_where_the_law_equals_it():
    bent = laws.fit(SIZES, np.where(SIZES < 50_000, 1.0, (SIZES / 31_623) ** 1.5))
    for law in (laws.fit(SIZES, 2e-3 * SIZES**0.5), bent):
        assert law.at(law.reaches(7.0)) == pytest.approx(7.0, rel=1e-4)
        sizes, costs = law.curve()
        assert (sizes[0], sizes[-1], costs[-1]) == pytest.approx((1000, 10**7, law.at(10**7)))
    assert laws.fit([10, 100], [5, 5]).reaches(6) == math.inf
    assert laws.fit([10, 100], [5, 50]).reaches(0.1) == 1  # it always was
    assert laws.fit([10, 100], [5, 50]).reaches(2) == pytest.approx(4, rel=1e-4)
    assert laws.fit([100, 1000], [40, 20]).reaches(100) == math.inf  # and not at 1, where the line would be above


def test_two_points_give_a_law_without_certainty():
    law = laws.fit([10, 100], [1, 10])
    assert (law.low, law.high) == (-math.inf, math.inf)
    assert law.between(1000) == (0, math.inf)


@pytest.mark.parametrize(
    ("sizes", "costs"),
    [([1], [1]), ([5, 5], [1, 2]), ([1, 2], [1, 2, 3]), ([1, 2], [0, 1]), ([1, 2], [1, math.nan]), ([0, 2], [1, 1])],
)
def test_no_law_from_what_is_none(sizes, costs):
    with pytest.raises(ValueError, match=r"expected two or more|must be positive"):
        laws.fit(sizes, costs)


def test_laws_that_never_meet_cross_nowhere():
    flat, rising = laws.fit([1, 100], [50, 50]), laws.fit([1, 100], [1, 100])
    assert laws.crossing(rising, flat) == 1
    assert laws.crossing(laws.fit([1, 100], [2, 200]), rising) == math.inf
    assert flat.at(laws.crossing(flat, rising)) == pytest.approx(50)


def test_a_stage_ends_where_the_first_of_its_limits_is_reached():
    costs = {"a": laws.fit([10, 100], [1, 10]), "flat": laws.fit([10, 100], [3, 3])}
    peaks = {"a": laws.fit([10, 100], [1, 100])}
    line, flat = laws.sensible(costs, peaks, {"a": 1000, "flat": 5}, memory=10_000)
    assert (line["no longer sensible from"], line["by"]) == (pytest.approx(1000), "memory")
    assert (flat["no longer sensible from"], flat["by"], flat["extrapolated"]) == (math.inf, "", True)
    found = laws.offers(500, costs, costs, peaks, {"a": 1000, "flat": 2}, memory=10_000)
    assert (str(found["a"]), str(found["flat"])) == ("50*", "(3*)")
    assert laws.first_that_fits(["flat", "a"], found) == found["a"]
    far = laws.offers(10**6, costs, costs, peaks, {"a": 1000, "flat": 5}, memory=10_000)
    assert {name: str(offer) for name, offer in far.items()} == {"a": "(memory)"}  # of the other nothing is known
    assert laws.first_that_fits(["a", "flat"], far) is None


# --- walks ---


def counted(exponent=1.0, memory=1.0):
    asked = []

    def measure(stage, n):
        asked.append((stage, n))
        return Point(stage, n, n**exponent, memory * n, 2.0 * n, n**exponent / 1000)

    return measure, asked


def test_a_walk_leaves_out_points_that_would_take_too_much_time_or_memory():
    measure, asked = counted(exponent=1.5)
    found = list(points.walk(["a", "b"], [1000, 10_000, 100, 100_000], measure, budget=100))
    assert asked == [(stage, n) for stage in "ab" for n in (100, 1000)]
    last = [one for one in found if isinstance(one, LeftOut)]
    assert [(one.stage, one.n, one.why) for one in last] == [("a", 10_000, "time"), ("b", 10_000, "time")]
    assert last[0].expected == pytest.approx(1000)
    measure, asked = counted(memory=2.0**24)
    [*_, last] = points.walk(["a"], [10, 100, 1000], measure, budget=1e9, memory=500 * 2**24)
    assert last == LeftOut("a", 1000, pytest.approx(1000 * 2**24), "memory") and len(asked) == 2


def test_points_survive_their_rows(tmp_path):
    measure, asked = counted(exponent=0.5)
    found = list(points.walk(["a, fast"], [10, 100, 1000], measure, budget=0))
    assert len(asked) == 2  # a law needs them
    shelf = store.Store("random", "bench", "", root=tmp_path)
    shelf.record("growth", points.as_rows(found, {"a, fast": "ms a user"}))
    *measured, left_out = found
    assert isinstance(left_out, LeftOut)
    for again, point in zip(points.from_rows(shelf.rows()), measured, strict=True):
        assert again[:2] == point[:2] and again[2:] == pytest.approx(point[2:], rel=1e-5)
