"""The cost model against a container that is simulated request by request, and against days that need no model."""

import math
from dataclasses import replace

import numpy as np
import pytest

from semid_lib.studies.service.endpoint_costs import Policy, Service, bill, break_even, cycle, traffic

EVEN = (1.0,) * 24
ENDPOINT = Service(cold_seconds=4.0, seconds=0.5, concurrency=8, fill=0.7)
PRICE = 1e-4
MONTH = 365.25 / 12 * 86400  # seconds


def simulate(rate, service, window, n_requests, seed=0):
    """Waits of requests and the share of time asleep, for one container, by nothing but its rules."""
    arrivals = np.cumsum(np.random.default_rng(seed).exponential(1 / rate, n_requests)).tolist()
    waits, sleeps_at, ready, up, woken = [], -math.inf, 0.0, 0.0, 0.0
    for arrival in arrivals:
        if arrival >= sleeps_at:
            up += max(sleeps_at - woken, 0.0)
            woken, ready = arrival, arrival + service.cold_seconds
        waits.append(max(ready - arrival, 0.0))
        sleeps_at = max(ready, arrival) + service.seconds + window
    up += min(sleeps_at, arrivals[-1]) - woken
    return np.array(waits), 1 - up / arrivals[-1]


@pytest.mark.parametrize("rate", [0.005, 0.2])
@pytest.mark.parametrize("window", [2.0, 20.0])
def test_closed_forms_agree_with_a_simulation(rate, window):
    n = 40_000
    waits, asleep = simulate(rate, ENDPOINT, window, n)
    found = cycle(rate, ENDPOINT, window)
    assert (1 / rate) / (found.up + 1 / rate) == pytest.approx(found.asleep)  # (2) and (3) give (4)
    assert found.asleep == pytest.approx(asleep, abs=0.012)
    assert found.cold == pytest.approx((waits > 0).mean(), abs=0.012)
    for t in (0.5, 2.0, 3.9):
        longer = (1 + rate * (ENDPOINT.cold_seconds - t)) * found.asleep
        assert longer == pytest.approx((waits > t).mean(), abs=0.012)


def test_quantiles_agree_with_a_simulation():
    rate, window = 0.5, 10.0  # busy enough for the 99th percentile to come while a container wakes, not at its start
    waits, _ = simulate(rate, ENDPOINT, window, 60_000)
    paid = bill(ENDPOINT, PRICE, traffic(86400 * rate, EVEN), Policy(window))
    assert 0.5 < paid.p99 - ENDPOINT.seconds < 3.9
    assert paid.p99 - ENDPOINT.seconds == pytest.approx(np.quantile(waits, 0.99), abs=0.3)
    assert paid.p50 - ENDPOINT.seconds == np.quantile(waits, 0.5) == 0


def test_rare_requests_are_all_cold_and_pay_for_their_own_window():
    paid = bill(ENDPOINT, PRICE, traffic(0.1, EVEN), Policy(window=60))
    assert paid.cold_share == pytest.approx(1, abs=1e-3)
    assert paid.money == pytest.approx(0.1 * MONTH / 86400 * (4 + 0.5 + 60) * PRICE, rel=1e-3)
    assert (paid.p50, paid.p99) == (4.5, 4.5)
    assert paid.cold_a_month == pytest.approx(0.1 * MONTH / 86400, rel=1e-3)


def test_what_never_sleeps_costs_the_month_and_is_never_cold():
    for policy in (Policy(60, min_containers=1), Policy(60, warm_hours=tuple(range(24)))):
        paid = bill(ENDPOINT, PRICE, traffic(1000, EVEN), policy)
        assert paid.money == pytest.approx(PRICE * MONTH)
        assert (paid.cold_share, paid.p50, paid.p99, paid.containers) == (0, 0.5, 0.5, 1)
    assert bill(ENDPOINT, PRICE, traffic(1000, EVEN), Policy(60, min_containers=3)).containers == 3


def test_much_traffic_costs_what_never_sleeping_costs_and_then_more_containers():
    awake = bill(ENDPOINT, PRICE, traffic(1e5, EVEN), Policy(60))
    assert awake.money == pytest.approx(PRICE * MONTH)
    busy = bill(ENDPOINT, PRICE, traffic(86400 * 40, EVEN), Policy(60))  # 20 at a time; a container is given 5.6
    assert busy.containers == 4 and busy.money == pytest.approx(4 * PRICE * MONTH)


def test_hours_count_by_themselves():
    shop_hours = (0.0,) * 8 + (1.0,) * 12 + (0.0,) * 4
    one = bill(ENDPOINT, PRICE, traffic(600, shop_hours), Policy(60))
    even = bill(ENDPOINT, PRICE, traffic(1200, EVEN), Policy(60))  # the same rate, twice as long
    assert one.money == pytest.approx(even.money / 2)
    assert one.cold_share == pytest.approx(even.cold_share)
    kept = bill(ENDPOINT, PRICE, traffic(600, shop_hours), Policy(60, warm_hours=tuple(range(8, 20))))
    assert kept.cold_share == 0 and kept.money == pytest.approx(PRICE * MONTH / 2)
    half = bill(ENDPOINT, PRICE, traffic(600, shop_hours), Policy(60, warm_hours=tuple(range(8, 14))))
    assert half.cold_share == pytest.approx(one.cold_share / 2)


@pytest.mark.parametrize("profile", [EVEN, tuple(float(hour % 12) for hour in range(24))])
def test_at_break_even_both_cost_the_same(profile):
    rented = 0.4 * PRICE
    per_day = break_even(ENDPOINT, PRICE, rented, profile, window=60)
    sleeping = bill(ENDPOINT, PRICE, traffic(per_day, profile), Policy(60))
    assert sleeping.money == pytest.approx(rented * MONTH)
    if profile == EVEN:
        rate, span = per_day / 86400, 60.5
        assert math.exp(rate * span) + rate * 4.0 == pytest.approx(1 / (1 - 0.4))


def test_break_even_at_the_ends():
    assert break_even(ENDPOINT, PRICE, PRICE, EVEN, 60) == math.inf
    assert break_even(ENDPOINT, PRICE, 0.0, EVEN, 60) == 0
    assert break_even(ENDPOINT, 0.0, PRICE, EVEN, 60) == math.inf
    mornings = (1.0,) * 6 + (0.0,) * 18
    assert break_even(ENDPOINT, PRICE, 0.5e-4, mornings, 60) == math.inf


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: traffic(0, EVEN), "per_day is 0, expected more than 0 requests"),
        (lambda: traffic(math.nan, EVEN), "per_day is nan"),
        (lambda: traffic(1, (1.0,) * 23), "expected 24 weights"),
        (lambda: replace(ENDPOINT, seconds=0), "seconds is 0, expected more than 0"),
        (lambda: replace(ENDPOINT, fill=1.5), "fill is 1.5, expected a share"),
        (lambda: Policy(60, warm_hours=(24,)), r"warm_hours is \(24,\), expected hours from 0 to 23"),
    ],
)
def test_what_makes_no_sense_is_refused(make, said):
    with pytest.raises(ValueError, match=said):
        make()
