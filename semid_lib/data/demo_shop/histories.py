"""Histories of the demo shop: sessions of shoppers with tastes."""

from typing import NamedTuple

import numpy as np

from semid_lib.data.demo_shop.items import (
    BRANDS,
    HISTORY_STREAM,
    POPULARITY_STREAM,
    PRODUCTS,
    STYLES,
    TIME_STREAM,
    Draft,
)

_NAMES = [product.name for product in PRODUCTS]
_DEPARTMENTS = list(dict.fromkeys(product.department for product in PRODUCTS))

_NEW_SESSION = 0.3  # probability that the next item starts a new session
_COMPLEMENT_WEIGHTS = (20.0, 10.0, 5.0)  # of the first, second and third complement of the last item's type
_SAME_TYPE, _SAME_DEPARTMENT, _ELSEWHERE = 2.0, 1.0, 0.05
_SAME_LINE, _SAME_BRAND, _SAME_STYLE = 2.0, 2.5, 8.0
_LINGER = 2.0  # a new session favours the department of the last item
_FAVOURITE_STYLE, _FAVOURITE_BRAND, _OTHER_DEPARTMENT = 4.0, 2.5, 0.02
_PRICE_WIDTH = 0.4  # tolerance of a shopper, in log price relative to the type's usual price

_START_TIME, _DAY = 1_672_531_200, 86_400  # 2023-01-01 00:00 UTC
_SHORTEST, _LONGEST, _MEAN_EXTRA = 5, 40, 5.0


class _Market(NamedTuple):
    """The items as arrays; integers are positions in the lists of products, departments and brands."""

    product: np.ndarray  # (n_items,) int64
    department: np.ndarray  # (n_items,) int64
    brand: np.ndarray  # (n_items,) int64
    line: np.ndarray  # (n_items,) int64
    popularity: np.ndarray  # (n_items,) float64, sums to 1
    price_level: np.ndarray  # (n_items,) float64, log of price over the type's usual price
    style: np.ndarray  # (n_items, n_styles) float32: the style of the item, mixed with that of its brand
    complements: np.ndarray  # (n_products, n_products) float64 weights, from the last item's type to the next one's

    def follow_weights(self, last: int) -> np.ndarray:
        """Weights of all items after row `last` in one session: (n_items,) float64."""
        alike = self.style @ self.style[last]
        return (
            self.complements[self.product[last]][self.product]
            * (1 + (_SAME_STYLE - 1) * alike)
            * np.where(self.brand == self.brand[last], _SAME_BRAND, 1.0)
            * np.where(self.line == self.line[last], _SAME_LINE, 1.0)
        )


def _market(drafts: list[Draft], items: list[dict], seed: int) -> _Market:
    one_hot, names = np.eye(len(STYLES), dtype=np.float32), [brand.name for brand in BRANDS]
    own = np.array([STYLES.index(draft.style) for draft in drafts])
    of_brand = np.array([STYLES.index(draft.brand.style) for draft in drafts])
    rank = np.random.default_rng([seed, POPULARITY_STREAM]).permutation(len(drafts))
    popularity = (rank + 10.0) ** -0.5  # a long tail
    usual_price = np.array([draft.product.price for draft in drafts])
    return _Market(
        product=np.array([_NAMES.index(draft.product.name) for draft in drafts]),
        department=np.array([_DEPARTMENTS.index(draft.product.department) for draft in drafts]),
        brand=np.array([names.index(draft.brand.name) for draft in drafts]),
        line=np.array([draft.line for draft in drafts]),
        popularity=popularity / popularity.sum(),
        price_level=np.log(np.array([item["price"] for item in items]) / usual_price),
        style=np.float32(0.75) * one_hot[own] + np.float32(0.25) * one_hot[of_brand],
        complements=_complement_weights(),
    )


def _complement_weights() -> np.ndarray:
    departments = np.array([_DEPARTMENTS.index(product.department) for product in PRODUCTS])
    weights = np.where(departments[:, None] == departments[None, :], _SAME_DEPARTMENT, _ELSEWHERE)
    np.fill_diagonal(weights, _SAME_TYPE)
    for row, product in enumerate(PRODUCTS):
        weights[row, [_NAMES.index(name) for name in product.complements]] = _COMPLEMENT_WEIGHTS
    return weights


def _taste_weights(market: _Market, rng: np.random.Generator) -> np.ndarray:
    """Draw a shopper: the weights of all items, whatever came before, (n_items,) float64."""
    liked = rng.permutation(len(_DEPARTMENTS))[: 1 + int(rng.random() * 3)]
    departments = np.full(len(_DEPARTMENTS), _OTHER_DEPARTMENT)
    departments[liked] = 0.3 + rng.random(len(liked))
    styles = np.ones(len(STYLES))
    styles[int(rng.random() * len(STYLES))] = _FAVOURITE_STYLE
    names = {_DEPARTMENTS[at] for at in liked}
    familiar = [at for at, brand in enumerate(BRANDS) if names.intersection(brand.departments)]
    brands = np.ones(len(BRANDS))
    brands[[familiar[at] for at in rng.permutation(len(familiar))[:2]]] = _FAVOURITE_BRAND
    distance = (market.price_level - float(rng.normal(0.0, 0.35))) / _PRICE_WIDTH
    return (
        market.popularity
        * departments[market.department]
        * (market.style @ styles)
        * brands[market.brand]
        * np.exp(-0.5 * distance**2)
    )


def draw_histories(drafts: list[Draft], items: list[dict], n_users: int, seed: int) -> tuple[list, list]:
    """One sequence of item ids and one of Unix seconds per shopper, each after the user id."""
    market = _market(drafts, items, seed)
    sequences, timestamps = [], []
    for user in range(n_users):
        taste = _taste_weights(market, np.random.default_rng([seed, HISTORY_STREAM, user]))
        rows, starts = _history(np.random.default_rng([seed, HISTORY_STREAM, user, 1]), market, taste)
        sequences.append((user + 1, [row + 1 for row in rows]))
        times = _times(np.random.default_rng([seed, TIME_STREAM, user]), np.array(starts))
        timestamps.append((user + 1, times))
    return sequences, timestamps


def _history(rng: np.random.Generator, market: _Market, taste: np.ndarray) -> tuple[list[int], list[bool]]:
    """Rows of the items of one shopper in order, and which of them start a session."""
    length = min(_SHORTEST + int(rng.exponential(_MEAN_EXTRA)), _LONGEST, len(taste) // 2)
    rows, starts = [_draw(rng, taste)], [True]
    while len(rows) < length:
        last = rows[-1]
        taste[last] = 0.0  # nothing is bought twice
        starts.append(bool(rng.random() < _NEW_SESSION))
        lingers = np.where(market.department == market.department[last], _LINGER, 1.0)
        rows.append(_draw(rng, taste * (lingers if starts[-1] else market.follow_weights(last))))
    return rows, starts


def _draw(rng: np.random.Generator, weights: np.ndarray) -> int:
    """A row drawn with probability proportional to its weight."""
    cumulative = np.cumsum(weights)
    return int(np.searchsorted(cumulative, rng.random() * cumulative[-1], side="right"))


def _times(rng: np.random.Generator, starts: np.ndarray) -> list[int]:
    """Unix seconds: sessions anywhere within two years, half a minute to twenty minutes between items."""
    session = np.cumsum(starts) - 1
    begins = np.sort(rng.integers(0, 2 * 365 * _DAY - _DAY, session[-1] + 1))
    elapsed = np.cumsum(np.where(starts, 0, rng.integers(30, 1_200, len(starts))))
    times = _START_TIME + begins[session] + elapsed - elapsed[starts][session]
    return np.maximum.accumulate(times).tolist()  # two sessions may overlap
