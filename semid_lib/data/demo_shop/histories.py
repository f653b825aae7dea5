"""Histories of the demo shop: sessions of shoppers with tastes."""

import numpy as np

from semid_lib.data.demo_shop.items import BRANDS, PRODUCTS, STYLES, Draft

POPULARITY_STREAM, HISTORY_STREAM, TIME_STREAM = 2, 3, 4  # see `items`

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


class _Market:
    """The items as arrays; integers are positions in the lists of products, departments and brands."""

    def __init__(self, drafts: list[Draft], items: list[dict], seed: int):
        self.product = np.array([PRODUCTS.index(draft.product) for draft in drafts])
        self.brand = np.array([BRANDS.index(draft.brand) for draft in drafts])
        self.line = np.array([draft.line for draft in drafts])
        of_product = np.array([_DEPARTMENTS.index(product.department) for product in PRODUCTS])
        self.department = of_product[self.product]
        popularity = (np.random.default_rng([seed, POPULARITY_STREAM]).permutation(len(drafts)) + 10.0) ** -0.5
        self.popularity = popularity / popularity.sum()  # a long tail
        usual_price = np.array([draft.product.price for draft in drafts])
        self.price_level = np.log(np.array([item["price"] for item in items]) / usual_price)
        own, of_brand = np.array([(STYLES.index(draft.style), STYLES.index(draft.brand.style)) for draft in drafts]).T
        one_hot = np.eye(len(STYLES), dtype=np.float32)
        self.style = np.float32(0.75) * one_hot[own] + np.float32(0.25) * one_hot[of_brand]  # (n_items, n_styles)
        # (n_products, n_products) weights, from the last item's type to the next one's
        self.complements = np.where(of_product[:, None] == of_product, _SAME_DEPARTMENT, _ELSEWHERE)
        np.fill_diagonal(self.complements, _SAME_TYPE)
        names = [product.name for product in PRODUCTS]
        for row, product in enumerate(PRODUCTS):
            self.complements[row, [names.index(name) for name in product.complements]] = _COMPLEMENT_WEIGHTS

    def follow_weights(self, last: int) -> np.ndarray:
        """Weights of all items after row `last` in one session: (n_items,) float64."""
        weights = self.complements[self.product[last]][self.product]
        weights = weights * (1 + (_SAME_STYLE - 1) * (self.style @ self.style[last]))
        weights = weights * np.where(self.brand == self.brand[last], _SAME_BRAND, 1.0)
        return weights * np.where(self.line == self.line[last], _SAME_LINE, 1.0)


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
    weights = market.popularity * departments[market.department] * (market.style @ styles) * brands[market.brand]
    return weights * np.exp(-0.5 * distance**2)


def draw_histories(drafts: list[Draft], items: list[dict], n_users: int, seed: int) -> tuple[list, list]:
    """One sequence of item ids and one of Unix seconds per shopper, each after the user id."""
    market = _Market(drafts, items, seed)
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
