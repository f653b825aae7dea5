"""Cost per month of an endpoint, and how many requests have to wait, for a policy of when it may stop.

A container is up from the request that wakes it until `window` seconds have passed without one. Requests come as a
Poisson process of rate $\\lambda$ a second, each is served in $s$ seconds beside others, and waking takes $C$ seconds,
in which further requests wait with the first. With $\\tau = s + w$ for a window of $w$ seconds, the gap that puts the
container to sleep is longer than $\\tau$, which has probability $q$, and one cycle of waking and sleeping is a renewal:

    (1)  q = exp(-lambda tau)
    (2)  E[seconds up in a cycle]      = C + (exp(lambda tau) - 1) / lambda
    (3)  E[seconds asleep in a cycle]  = 1 / lambda
    (4)  share of time asleep          = q / (1 + lambda C q)
    (5)  P(a request waits over t)     = (1 + lambda (C - t)) q / (1 + lambda C q),  0 <= t < C,  and 0 from C on

(2) is C and the busy period of a queue with infinitely many servers and service time tau (Takacs 1962, An Introduction
to the Theory of Queues), begun by all that waited; (5) counts the one that wakes and, by uniform arrival, those that
come while waking; at t = 0 it is the share of requests that meet a cold start. Each hour of the day has its own rate
and counts as if it lasted: a session over the turn of an hour is not told apart. The rate at which requests would
need a second container shows in `Bill.containers`; the starts of containers beyond the first are not counted as cold.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

_HOUR = 3600.0
_DAYS = 365.25 / 12  # of a month
SECONDS_A_MONTH = 24 * _HOUR * _DAYS


@dataclass(frozen=True)
class Service:
    """What was measured of the thing that is deployed."""

    cold_seconds: float  # from the request that wakes it until it can be served
    seconds: float  # a warm answer takes
    concurrency: int  # requests that one container serves at a time
    fill: float  # share of that which it is given before another container starts

    def __post_init__(self):
        _check("cold_seconds", self.cold_seconds, self.cold_seconds >= 0, "0 or more seconds")
        _check("seconds", self.seconds, self.seconds > 0, "more than 0 seconds")
        _check("concurrency", self.concurrency, self.concurrency >= 1, "1 or more")
        _check("fill", self.fill, 0 < self.fill <= 1, "a share above 0 and up to 1")


@dataclass(frozen=True)
class Policy:
    """When containers may go."""

    window: float  # idle seconds after which one goes: `scaledown_window` at Modal
    min_containers: int = 0  # kept at all hours
    warm_hours: tuple[int, ...] = ()  # of the day, 0 to 23, in which one is kept: a schedule that asks before it goes

    def __post_init__(self):
        _check("window", self.window, self.window >= 0, "0 or more seconds")
        _check("min_containers", self.min_containers, self.min_containers >= 0, "0 or more")
        _check("warm_hours", self.warm_hours, set(self.warm_hours) <= set(range(24)), "hours from 0 to 23")


class Bill(NamedTuple):
    """What a policy leads to."""

    money: float  # a month, in the currency of the price
    hours_up: float  # container hours a month
    cold_share: float  # of requests that wait for a container to start
    cold_a_month: float  # how many that are
    p50: float  # seconds until half of the requests are answered, waiting and all
    p99: float
    containers: int  # at the busiest hour


class Cycle(NamedTuple):
    """The quantities of (1) to (5) for one rate, or an array of them."""

    gap: np.ndarray | float  # (1): q
    up: np.ndarray | float  # (2), seconds
    asleep: np.ndarray | float  # (4), a share of the time
    cold: np.ndarray | float  # (5) at 0, a share of the requests


def traffic(per_day: float, profile: Sequence[float]) -> np.ndarray:
    """Requests a second in each hour, (24,) float64, from those of a day and a weight for each hour in any unit.

    >>> traffic(86400, (1,) * 24)[:2]
    array([1., 1.])
    """
    _check("per_day", per_day, per_day > 0, "more than 0 requests")
    fits = len(profile) == 24 and min(profile) >= 0 and sum(profile) > 0
    _check("profile", profile, fits, "24 weights, none below 0 and one above")
    weights = np.asarray(profile, dtype=np.float64)
    return per_day * weights / weights.sum() / _HOUR


def cycle(rate: np.ndarray | float, service: Service, window: float) -> Cycle:
    """Waking and sleeping of one container that requests reach at `rate` a second.

    A request a minute, a window of 59 s and answers of 1 s: a gap of over a minute ends each session.

    >>> found = cycle(1 / 60, Service(cold_seconds=0, seconds=1, concurrency=1, fill=1), window=59)
    >>> round(float(found.gap), 4), round(float(found.up)), round(float(found.asleep), 4)
    (0.3679, 103, 0.3679)
    """
    rate, cold = np.asarray(rate, dtype=np.float64), service.cold_seconds
    span = service.seconds + window
    gap = np.exp(-rate * span)
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        up = cold + np.where(rate > 0, np.expm1(rate * span) / rate, span)
    asleep = gap / (1 + rate * cold * gap)
    return Cycle(gap, up, asleep, (1 + rate * cold) * asleep)


def bill(service: Service, per_second: float, rates: np.ndarray, policy: Policy) -> Bill:
    """Money and waiting for a month of this traffic, hour by hour by (1) to (5).

    per_second: all that is billed for a container that is up, in whatever currency; rates: as of `traffic`.
    """
    kept = np.full(24, policy.min_containers)
    kept[list(policy.warm_hours)] = np.maximum(kept[list(policy.warm_hours)], 1)
    needed = np.maximum(np.ceil(rates * service.seconds / (service.concurrency * service.fill)), 1)
    asleep = np.where(kept == 0, cycle(rates, service, policy.window).asleep, 0.0)
    containers = np.where(kept == 0, (1 - asleep) * needed, np.maximum(needed, kept))
    share = rates / rates.sum()
    hours_up = float(containers.sum() * _DAYS)
    cold_share = float(share @ (asleep * (1 + rates * service.cold_seconds)))
    p50, p99 = (service.seconds + _wait(quantile, share, rates, asleep, service) for quantile in (0.5, 0.99))
    cold_a_month = cold_share * float(rates.sum()) * _HOUR * _DAYS
    most = int(max(needed.max(), kept.max()))
    return Bill(hours_up * _HOUR * per_second, hours_up, cold_share, cold_a_month, p50, p99, most)


def _wait(quantile: float, share: np.ndarray, rates: np.ndarray, asleep: np.ndarray, service: Service) -> float:
    """The wait that a share of requests stays below: (5), over all hours, is a line in t with a step at C."""
    step, slope = float(share @ asleep), float(share @ (asleep * rates))
    over = 1 - quantile
    if over >= step + slope * service.cold_seconds:
        return 0.0
    return service.cold_seconds if over <= step else service.cold_seconds - (over - step) / slope


def break_even(service: Service, sleeps: float, awake: float, profile: Sequence[float], window: float) -> float:
    """Requests a day above which a container that never sleeps, at its own price, costs less than one that does.

    sleeps, awake: their prices a second. Infinity if it never does, 0 if it always does. Both are one container; in
    closed form for an even day, where (4) gives exp(lambda tau) + lambda C = 1 / (1 - ratio of the prices), else found
    by halving.

    >>> fast = Service(cold_seconds=0, seconds=1, concurrency=8, fill=1)
    >>> round(break_even(fast, 2e-4, 1e-4, (1,) * 24, window=59)), round(86400 * np.log(2) / 60)
    (998, 998)
    """
    if awake <= 0:
        return 0.0
    day = traffic(1.0, profile)

    def costs_more(per_day: float) -> bool:
        return float(np.mean(1 - cycle(per_day * day, service, window).asleep)) * sleeps > awake

    low, high = 1e-9, 1e12
    if sleeps <= awake or not costs_more(high):  # or hours without any request, in which one that sleeps is never up
        return float("inf")
    for _ in range(100):
        middle = float(np.sqrt(low * high))
        low, high = (low, middle) if costs_more(middle) else (middle, high)
    return high


def _check(name: str, value, fits: bool, expected: str) -> None:
    if not fits or not np.all(np.isfinite(value)):
        raise ValueError(f"{name} is {value}, expected {expected}")
