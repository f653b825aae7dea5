"""Laws against costs that are known, walks that stop in time, and the bench that goes on where it stopped."""

import importlib.util
import math
from pathlib import Path

import numpy as np
import pytest

from semid_lib.studies import growth
from semid_lib.studies.growth import LeftOut, Point
from semid_lib.workbench import store

SIZES = np.array(growth.half_decades(1000, 10_000_000))


def noisy(costs, seed, spread=0.1):
    return costs * np.exp(spread * np.random.default_rng(seed).standard_normal(len(costs)))


def test_a_power_is_found_and_its_interval_holds_it_nineteen_times_in_twenty():
    laws = [growth.fit(SIZES, noisy(3e-6 * SIZES**0.8, seed)) for seed in range(300)]
    straight = [law for law in laws if law.bend is None and law.fixed is None]
    assert len(straight) > 290  # chance looks like a bend once in a hundred at most
    held = [law.low <= 0.8 <= law.high for law in straight]
    assert 0.9 < np.mean(held) < 0.99


def test_an_interval_for_new_points_holds_them_nineteen_times_in_twenty():
    truth = 3e-6 * 1e8**0.8
    held = []
    for seed in range(300):
        low, high = growth.fit(SIZES, noisy(3e-6 * SIZES**0.8, seed)).between(1e8)
        held.append(low <= noisy(np.array([truth]), 1000 + seed)[0] <= high)
    assert 0.88 < np.mean(held) <= 0.99


@pytest.mark.parametrize("seed", range(5))
def test_a_fixed_cost_beside_one_that_grows_is_told_apart(seed):
    law = growth.fit(SIZES, noisy(0.5 + 1e-5 * SIZES, seed, 0.03))
    assert law.bend is None and law.fixed == pytest.approx(0.5, rel=0.1)
    assert law.exponent == pytest.approx(1, abs=0.1)
    low, high = law.between(10**8)
    assert low < 1000.5 < high < 2000  # a line through all points would say 130
    assert law.reaches(100) == pytest.approx(1e7, rel=0.3)


@pytest.mark.parametrize("seed", range(5))
def test_a_cost_that_grows_more_slowly_from_some_size_on_bends_there(seed):
    costs = 1e-7 * np.where(SIZES < 100_000, SIZES**1.5, 100_000**0.5 * SIZES)
    law = growth.fit(SIZES, noisy(costs, seed, 0.03))
    assert law.fixed is None and law.bend in (31_623, 100_000, 316_228)
    assert law.exponent == pytest.approx(1, abs=0.1) and law.low < 1.0 < law.high


def test_what_a_law_reaches_is_where_it_is_at_the_limit():
    bent = growth.fit(SIZES, np.where(SIZES < 50_000, 1.0, (SIZES / 31_623) ** 1.5))
    for law in (growth.fit(SIZES, 2e-3 * SIZES**0.5), bent):
        assert law.at(law.reaches(7.0)) == pytest.approx(7.0, rel=1e-4)
    assert growth.fit([10, 100], [5, 5]).reaches(6) == math.inf
    assert growth.fit([10, 100], [5, 3]).reaches(100) == math.inf
    assert growth.fit([10, 100], [5, 50]).reaches(0.1) == 1  # it always was
    assert growth.fit([10, 100], [5, 50]).reaches(2) == pytest.approx(4, rel=1e-4)
    assert growth.fit([100, 1000], [40, 20]).reaches(100) == math.inf  # and not at 1, where the line would be above


def test_two_points_give_a_law_without_certainty():
    law = growth.fit([10, 100], [1, 10])
    assert (law.low, law.high) == (-math.inf, math.inf)
    assert law.between(1000) == (0, math.inf)


@pytest.mark.parametrize(
    ("sizes", "costs"),
    [([1], [1]), ([5, 5], [1, 2]), ([1, 2], [1, 2, 3]), ([1, 2], [0, 1]), ([1, 2], [1, math.nan]), ([0, 2], [1, 1])],
)
def test_no_law_from_what_is_none(sizes, costs):
    with pytest.raises(ValueError, match=r"expected two or more|must be positive"):
        growth.fit(sizes, costs)


def test_laws_that_never_meet_cross_nowhere():
    flat, rising = growth.fit([1, 100], [50, 50]), growth.fit([1, 100], [1, 100])
    assert growth.crossing(rising, flat) == 1
    assert growth.crossing(growth.fit([1, 100], [2, 200]), rising) == math.inf
    assert flat.at(growth.crossing(flat, rising)) == pytest.approx(50)


# --- walks ---


def counted(exponent=1.0, memory=1.0):
    asked = []

    def measure(stage, n):
        asked.append((stage, n))
        return Point(stage, n, n**exponent, memory * n, 2.0 * n, n**exponent / 1000)

    return measure, asked


def test_a_walk_leaves_out_what_would_take_too_long_by_the_law_of_the_last_points():
    measure, asked = counted(exponent=1.5)
    found = list(growth.walk(["a", "b"], [1000, 10_000, 100, 100_000], measure, budget=100))
    assert asked == [(stage, n) for stage in "ab" for n in (100, 1000)]
    last = [one for one in found if isinstance(one, LeftOut)]
    assert [(one.stage, one.n, one.why) for one in last] == [("a", 10_000, "time"), ("b", 10_000, "time")]
    assert last[0].expected == pytest.approx(1000)


def test_a_walk_leaves_out_what_would_not_fit_into_memory():
    measure, asked = counted(memory=2.0**24)
    [*_, last] = growth.walk(["a"], [10, 100, 1000], measure, budget=1e9, memory=500 * 2**24)
    assert last == LeftOut("a", 1000, pytest.approx(1000 * 2**24), "memory")
    assert len(asked) == 2


def test_the_first_two_points_are_measured_whatever_they_take():
    measure, asked = counted()
    list(growth.walk(["a"], [10, 100, 1000], measure, budget=0))
    assert asked == [("a", 10), ("a", 100)]


def test_what_is_known_is_not_measured_again():
    measure, asked = counted()
    before = list(growth.walk(["a"], [10, 100], measure, budget=1e9))
    asked.clear()
    found = list(growth.walk(["a"], [10, 100, 1000], measure, budget=1e9, known=before))
    assert asked == [("a", 1000)] and [point.n for point in found] == [10, 100, 1000]


def test_points_survive_their_rows(tmp_path):
    measure, _ = counted(exponent=0.5)
    found = list(growth.walk(["a, fast"], [10, 100, 1000], measure, budget=0.02))
    shelf = store.Store("random", "bench", "", root=tmp_path)
    shelf.record("growth", growth.rows(found, {"a, fast": "ms a user"}))
    again = growth.points(shelf.rows())
    assert [type(one) for one in again] == [type(one) for one in found]
    for one, other in zip(again, found, strict=True):
        assert one[:2] == other[:2]
        numbers = slice(2, None) if isinstance(one, Point) else slice(2, 3)
        assert one[numbers] == pytest.approx(other[numbers], rel=1e-5)


def test_a_stage_ends_where_the_first_of_its_limits_is_reached():
    costs = {"a": growth.fit([10, 100], [1, 10]), "flat": growth.fit([10, 100], [3, 3])}
    peaks = {"a": growth.fit([10, 100], [1, 100])}
    line, flat = growth.sensible(costs, peaks, {"a": 1000, "flat": 5}, memory=10_000)
    assert (line["no longer sensible from"], line["by"]) == (pytest.approx(1000), "memory")
    assert (flat["no longer sensible from"], flat["by"], flat["extrapolated"]) == (math.inf, "", True)
    found = growth.offers(500, costs, costs, peaks, {"a": 1000, "flat": 2}, memory=10_000)
    assert found["a"].fits and found["a"].extrapolated and found["a"].cost == pytest.approx(50)
    assert found["a"].peak == pytest.approx(2500) and not found["flat"].fits
    far = growth.offers(10**6, costs, costs, peaks, {"a": 1000, "flat": 5}, memory=10_000)
    assert far.keys() == {"a"}  # too large for its memory, however fast; of the other nothing is known
    assert math.isnan(far["a"].cost) and not far["a"].fits


# --- the bench ---


@pytest.fixture(scope="module")
def bench():
    file = Path(__file__).parents[1] / "bench" / "growth.py"
    spec = importlib.util.spec_from_file_location("bench_growth", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_bench_goes_on_from_rows_of_this_commit_and_no_other(bench, tmp_path, monkeypatch):
    shelf = store.Store("random", "bench", "", root=tmp_path)
    measure, _ = counted(memory=2.0**20)
    found = [measure("a", 10), measure("a", 100)]
    turns = [{"key": "growth_embedding/texts_a_second/here", "value": 95.0, "unit": "1/s"}]
    shelf.record("growth", [row | {"like": "demo"} for row in growth.rows(found, {"a": "s"}) + turns])
    assert bench.kept_points(shelf, "demo") == (found, turns)
    assert bench.kept_points(shelf, "beauty") == ([], [])
    monkeypatch.setenv("SEMID_COMMIT", "another")
    assert bench.kept_points(shelf, "demo") == ([], [])


def test_promises_are_measured_numbers_and_nothing_where_there_is_none(bench):
    steps = [Point("mask step, 400 beams", n, 0.5 * (n / 1e5) ** 0.1, 1, 1, 1) for n in (10**5, 10**6, 10**7)]
    built = [Point("trie, build", 10**6, 0.9, 1.0, 11e6, 1.0), Point("trie, build", 10**5, 0.1, 1.0, 1e6, 1.0)]
    turns = [
        {"key": "growth_embedding/texts_a_second/" + name, "value": v} for name, v in (("here", 95), ("plain", 100))
    ]
    rows = {row["key"].split("/")[1]: row for row in bench.must_rows([*built, *steps], turns)}
    assert rows["trie_of_1e6_build_s"]["value"] == 0.9 and rows["trie_of_1e6_build_s"]["must"] == "< 5"
    assert rows["trie_of_1e6_bytes_an_item"]["value"] == 11
    assert rows["mask_step_exponent"]["value"] == pytest.approx(0.1, abs=1e-4)
    assert rows["embedding_of_plain_throughput"]["value"] == 0.95
    assert "trie_of_1e7_build_s" not in rows and "trie_of_1e7_open_s" not in rows
