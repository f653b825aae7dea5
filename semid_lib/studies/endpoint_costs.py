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
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

_HOUR = 3600.0
_DAYS = 365.25 / 12  # of a month
SECONDS_A_MONTH = 24 * _HOUR * _DAYS


@dataclass(frozen=True)
class Price:
    """What a container costs while it is up."""

    name: str
    per_second: float  # all that is billed: GPU, cores, memory; in whatever currency
    source: str  # where it was read
    date: str  # and when: prices change

    def __post_init__(self):
        _check("a price", self.per_second, self.per_second >= 0, "0 or more a second")


@dataclass(frozen=True)
class Traffic:
    """How many requests come, and when."""

    per_day: float
    profile: tuple[float, ...]  # a weight for each of 24 hours, in any unit

    def __post_init__(self):
        _check("per_day", self.per_day, self.per_day > 0, "more than 0 requests")
        fits = len(self.profile) == 24 and min(self.profile) >= 0 and sum(self.profile) > 0
        _check("profile", self.profile, fits, "24 weights, none below 0 and one above")

    @property
    def rates(self) -> np.ndarray:
        """Requests a second in each hour: (24,) float64.

        >>> Traffic(86400, (1,) * 24).rates[:2]
        array([1., 1.])
        """
        weights = np.asarray(self.profile, dtype=np.float64)
        return self.per_day * weights / weights.sum() / _HOUR


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


def cycle(rate: np.ndarray | float, service: Service, window: float) -> Cycle:
    """Waking and sleeping of one container that requests reach at `rate` a second.

    A request a minute, a window of 59 s and answers of 1 s: a gap of over a minute ends each session.

    >>> found = cycle(1 / 60, Service(cold_seconds=0, seconds=1, concurrency=1, fill=1), window=59)
    >>> round(found.gap, 4), round(found.up), round(found.asleep, 4)
    (0.3679, 103, 0.3679)
    """
    rate, cold = np.asarray(rate, dtype=np.float64), service.cold_seconds
    span = service.seconds + window
    gap = np.exp(-rate * span)
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        up = cold + np.where(rate > 0, np.expm1(rate * span) / rate, span)
    asleep = gap / (1 + rate * cold * gap)
    found = (gap, up, asleep, (1 + rate * cold) * asleep)
    return Cycle(*(value if value.ndim else float(value) for value in found))


def bill(service: Service, price: Price, traffic: Traffic, policy: Policy) -> Bill:
    """Money and waiting for a month of this traffic, hour by hour by (1) to (5)."""
    rates = traffic.rates
    kept = np.full(24, policy.min_containers)
    kept[list(policy.warm_hours)] = np.maximum(kept[list(policy.warm_hours)], 1)
    needed = np.maximum(np.ceil(rates * service.seconds / (service.concurrency * service.fill)), 1)
    found = cycle(rates, service, policy.window)
    sleeps = kept == 0
    containers = np.where(sleeps, (1 - found.asleep) * needed, np.maximum(needed, kept))
    asleep = np.where(sleeps, found.asleep, 0.0)
    share = rates / rates.sum()
    hours_up = float(containers.sum() * _DAYS)
    cold_share = float(share @ (asleep * (1 + rates * service.cold_seconds)))
    p50, p99 = (service.seconds + _wait(quantile, share, rates, asleep, service) for quantile in (0.5, 0.99))
    return Bill(
        money=hours_up * _HOUR * price.per_second,
        hours_up=hours_up,
        cold_share=cold_share,
        cold_a_month=cold_share * traffic.per_day * _DAYS,
        p50=p50,
        p99=p99,
        containers=int(max(needed.max(), kept.max())),
    )


def _wait(quantile: float, share: np.ndarray, rates: np.ndarray, asleep: np.ndarray, service: Service) -> float:
    """The wait that a share of requests stays below: (5), over all hours, is a line in t with a step at C."""
    step, slope = float(share @ asleep), float(share @ (asleep * rates))
    over = 1 - quantile
    if over >= step + slope * service.cold_seconds:
        return 0.0
    return service.cold_seconds if over <= step else service.cold_seconds - (over - step) / slope


def break_even(service: Service, sleeps: Price, awake: Price, profile: Sequence[float], window: float) -> float:
    """Requests a day above which a container that never sleeps, at its own price, costs less than one that does.

    Infinity if it never does, 0 if it always does. Both are one container; in closed form for an even day, where (4)
    gives exp(lambda tau) + lambda C = 1 / (1 - ratio of the prices), else found by halving.

    >>> fast = Service(cold_seconds=0, seconds=1, concurrency=8, fill=1)
    >>> half = break_even(fast, Price("a", 2e-4, "", ""), Price("b", 1e-4, "", ""), (1,) * 24, window=59)
    >>> round(half), round(86400 * np.log(2) / 60)
    (998, 998)
    """
    ratio = awake.per_second / sleeps.per_second if sleeps.per_second else np.inf
    if ratio >= 1:
        return float("inf")
    if ratio <= 0:
        return 0.0
    unit = Traffic(1.0, tuple(profile))

    def time_up(per_day: float) -> float:
        return float(np.mean(1 - cycle(replace(unit, per_day=per_day).rates, service, window).asleep))

    if time_up(1e12) <= ratio:  # hours without any request, in which one that sleeps is never up
        return float("inf")
    low, high = 0.0, 1.0
    while time_up(high) < ratio:
        low, high = high, 2 * high
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if time_up(middle) < ratio else (low, middle)
    return high


def _check(name: str, value, fits: bool, expected: str) -> None:
    if not fits or not np.all(np.isfinite(value)):
        raise ValueError(f"{name} is {value}, expected {expected}")
