"""The demo shop: a deterministic catalogue with planted structure, histories and queries.

Merrowdale sells outdoor, home and craft goods. Everything in it is invented, and drawn from a seed: items
whose text follows a grammar, shoppers with tastes who buy in sessions, and queries whose relevant items are
known. So a chapter can run without data, and a test can compare what a method found with what was planted.

What is planted. An item has a type, a brand and a style, which its text shows but does not name. A shopper
likes one to three departments, one style, two brands and a price level. Within a session the next item tends
to complement the last one (tent, sleeping mat, lantern) in the same brand or style, so the last
items matter most.

Two warts are deliberate, since real catalogues have them: product lines, where one product comes in several
colours or sizes under nearly the same text, and three items without a description.

The vocabulary is in `synthetic_words`; the files are those of a data folder: see `write_demo_shop`.
"""

import gzip
import json
from pathlib import Path
from string import Formatter
from typing import NamedTuple

import numpy as np

from semid_lib.data import demo_words as words

ROOT_CATEGORY = "Merrowdale"
QUERY_KINDS = ("title", "attribute", "brand", "need", "style", "typo")


class _Feature(NamedTuple):
    phrase: str
    sentence: str
    need: str


class _Kind(NamedTuple):
    """A product type, a line of `words.ASSORTMENT` and those below it."""

    name: str
    plural: str
    department: str
    price: float
    complements: list[str]
    axis: str
    sizes: list[str]
    dyed: bool
    materials: list[str]
    uses: list[str]
    features: list[_Feature]

    @property
    def is_plural(self) -> bool:
        return self.name == self.plural

    @property
    def label(self) -> str:
        return self.plural.capitalize()


class _Brand(NamedTuple):
    name: str
    price_level: int
    style: str
    departments: list[str]
    story: str


class _Style(NamedTuple):
    title: list[str]
    names: list[str]
    colours: list[str]
    query: list[str]
    says: list[str]


def _blocks(text: str) -> list[list[str]]:
    """Paragraphs of a table as lists of lines, an indented line joined to the one before it."""
    joined = text.strip().replace("\n  ", " ")
    return [block.splitlines() for block in joined.split("\n\n")]


def _field(line: str) -> tuple[str, list[str]]:
    name, values = line.split(": ", 1)
    return name, values.split(", ")


def _parse_kinds(text: str) -> list[_Kind]:
    kinds = []
    for department, *lines in _blocks(text):
        starts = [i for i, line in enumerate(lines) if " / " in line]
        for start, stop in zip(starts, [*starts[1:], len(lines)], strict=True):
            name, plural, price, complements = lines[start].split(" / ")
            (axis, sizes), (cloth, materials), (_, uses) = map(_field, lines[start + 1 : start + 4])
            features = [_Feature(*line[2:].split(" | ")) for line in lines[start + 4 : stop]]
            what = (name, plural, department[2:], float(price), complements.split(", "))
            kinds.append(_Kind(*what, axis, sizes, cloth == "material", materials, uses, features))
    return kinds


def _parse_style(name: str, *lines: str) -> tuple[str, _Style]:
    lists = [_field(line)[1] for line in lines[:4]]
    return name[2:], _Style(*lists, says=[line[2:] for line in lines[4:]])


def _parse_brand(line: str) -> _Brand:
    name, level, style, departments, story = line.split(" | ")
    return _Brand(name, int(level), style, departments.split(", "), story)


_KINDS = _parse_kinds(words.ASSORTMENT)
_STYLE_TABLE = dict(_parse_style(*lines) for lines in _blocks(words.STYLES))
_BRAND_TABLE = [_parse_brand(line) for line in words.BRANDS.strip().splitlines()]
_KIND_INDEX = {kind.name: i for i, kind in enumerate(_KINDS)}
_TITLES, _INTRODUCTIONS = _blocks(words.TITLES)[0], _blocks(words.INTRODUCTIONS)[0]
_QUERY_FORMS = {name[2:]: forms for name, *forms in _blocks(words.QUERIES)}

STYLES = tuple(_STYLE_TABLE)
BRANDS = tuple(brand.name for brand in _BRAND_TABLE)
PRODUCT_TYPES = tuple(kind.label for kind in _KINDS)
DEPARTMENTS = tuple(dict.fromkeys(kind.department for kind in _KINDS))

# One random stream per part, so that more shoppers do not change the items, nor more queries the histories.
_ITEM_STREAM, _TEXT_STREAM, _POPULARITY_STREAM, _HISTORY_STREAM, _TIME_STREAM, _QUERY_STREAM = range(6)

_LINE_SHARE = 0.10  # share of products that come as a line of two to four variants
_OFF_STYLE_SHARE = 0.2  # share of items that leave the style of their brand
_N_WITHOUT_DESCRIPTION = 3
_PRICE_OF_LEVEL = {1: 0.7, 2: 0.9, 3: 1.2, 4: 1.6}
_PRICED_AXES = (
    *("capacity", "volume", "pieces", "pans", "pockets", "contents"),
    *("diameter", "length", "height", "size", "sole", "burners"),
)

_NEW_SESSION = 0.3  # chance that the next item starts a new session
_COMPLEMENT_WEIGHTS = (20.0, 10.0, 5.0)  # pull of the first, second and third complement of the last type
_SAME_TYPE, _SAME_DEPARTMENT, _ELSEWHERE = 2.0, 1.0, 0.05
_SAME_LINE, _SAME_BRAND, _SAME_STYLE = 2.0, 2.5, 8.0  # pull of the last item's line, brand and style
_LINGER = 2.0  # a new session favours the department of the last item
_FAVOURITE_STYLE, _FAVOURITE_BRAND, _OTHER_DEPARTMENT = 4.0, 2.5, 0.02
_PRICE_WIDTH = 0.4  # tolerance of a shopper, in log price relative to the type's usual price
_POPULARITY_EXPONENT, _POPULARITY_SHIFT = 0.5, 10.0

_START_TIME = 1_672_531_200  # 2023-01-01 00:00 UTC
_TWO_YEARS = 2 * 365 * 86_400
_SHORTEST, _LONGEST, _MEAN_EXTRA = 5, 40, 5.0

_MAX_RELEVANT = 12


class Truth(NamedTuple):
    """What was planted. Row i of an item array is item_id i + 1, row u of a taste array is user_id u + 1.

    Integers index `PRODUCT_TYPES`, `DEPARTMENTS`, `BRANDS` and `STYLES`; items of one product line share
    their `item_line`.
    """

    item_type: np.ndarray  # (n_items,) int64
    item_department: np.ndarray  # (n_items,) int64
    item_brand: np.ndarray  # (n_items,) int64
    item_style: np.ndarray  # (n_items,) int64
    item_line: np.ndarray  # (n_items,) int64
    item_popularity: np.ndarray  # (n_items,) float64, sums to 1
    item_price_level: np.ndarray  # (n_items,) float64, log of price over the type's usual price
    style_vectors: np.ndarray  # (n_items, n_styles) float32, rows sum to 1: the style, mixed with the brand's
    complements: np.ndarray  # (n_types, n_types) float64, pull from the last item's type to the next one's
    department_tastes: np.ndarray  # (n_users, n_departments) float64
    style_tastes: np.ndarray  # (n_users, n_styles) float64
    brand_tastes: np.ndarray  # (n_users, n_brands) float64
    price_tastes: np.ndarray  # (n_users,) float64, on the scale of item_price_level


class DemoShop(NamedTuple):
    """The records that `write_demo_shop` writes, and the truth behind them."""

    items: list[dict]
    sequences: list[tuple[int, list[int]]]
    timestamps: list[tuple[int, list[int]]]
    queries: list[dict]
    truth: Truth


def demo_shop(*, n_items: int = 2000, n_users: int = 2000, n_queries: int = 300, seed: int = 0) -> DemoShop:
    """Build the demo shop in memory.

    The same arguments give the same shop. More users leave the items, and the users before them, as they
    were. Item and user ids count from 1. A query carries its `kind` and the `constraints` that every relevant
    item satisfies and no other item does; a "typo" query also carries the text that was `meant`.

    Raises ValueError for fewer than 100 items, for negative counts, and when a catalogue is too small for the
    number of distinct queries.

    >>> shop = demo_shop(n_items=200, n_users=20, n_queries=10)
    >>> len(shop.items), len(shop.sequences), len(shop.queries)
    (200, 20, 10)
    >>> sorted(shop.items[0])
    ['attributes', 'brand', 'categories', 'description', 'item_id', 'price', 'style', 'title']
    >>> shop.truth.style_vectors.shape
    (200, 8)
    """
    if n_items < 100:
        raise ValueError(f"n_items is {n_items}, expected at least 100")
    for name, count in (("n_users", n_users), ("n_queries", n_queries), ("seed", seed)):
        if count < 0:
            raise ValueError(f"{name} is {count}, expected 0 or more")
    drafts = _draft_items(n_items, seed)
    items = [_item_record(i + 1, draft, seed) for i, draft in enumerate(drafts)]
    for item in items[n_items // 7 :: n_items // 3][:_N_WITHOUT_DESCRIPTION]:
        item["description"] = ""
    truth = _plant(drafts, items, n_users, seed)
    sequences, timestamps = _histories(truth, seed)
    return DemoShop(items, sequences, timestamps, _queries(items, n_queries, seed), truth)


def write_demo_shop(
    folder: str | Path, *, n_items: int = 2000, n_users: int = 2000, n_queries: int = 300, seed: int = 0
) -> None:
    """Write the demo shop into `folder` (made if need be), byte for byte the same for the same arguments.

    `items.jsonl.gz` has one item a line; `sequences.tsv.gz` one user a line, as id, tab, item ids in time
    order; `timestamps.tsv.gz` the Unix seconds of the same interactions; `queries_demo.jsonl.gz` one query a
    line. Errors are those of `demo_shop`.
    """
    shop = demo_shop(n_items=n_items, n_users=n_users, n_queries=n_queries, seed=seed)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    _write_lines(folder / "items.jsonl.gz", [json.dumps(item, ensure_ascii=False) for item in shop.items])
    _write_lines(folder / "sequences.tsv.gz", [_tsv_line(*row) for row in shop.sequences])
    _write_lines(folder / "timestamps.tsv.gz", [_tsv_line(*row) for row in shop.timestamps])
    _write_lines(folder / "queries_demo.jsonl.gz", [json.dumps(q, ensure_ascii=False) for q in shop.queries])


def _tsv_line(user_id: int, values: list[int]) -> str:
    return f"{user_id}\t{' '.join(map(str, values))}"


def _write_lines(path: Path, lines: list[str]) -> None:
    text = "".join(line + "\n" for line in lines)
    path.write_bytes(gzip.compress(text.encode(), mtime=0))  # a time stamp would change the bytes


# ---- items -------------------------------------------------------------------------------------------------


class _Draft(NamedTuple):
    """One item before it is put into words."""

    kind: _Kind
    brand: _Brand
    style: str
    name: str
    adjective: str
    material: str
    use: str
    features: tuple[_Feature, _Feature]
    line: int
    size: str
    colour: str | None
    title: str


def _pick(rng: np.random.Generator, options):
    return options[int(rng.random() * len(options))]


def _draft_items(n_items: int, seed: int) -> list[_Draft]:
    """n_items drafts with distinct titles, product lines shuffled among the rest."""
    rng = np.random.default_rng([seed, _ITEM_STREAM])
    drafts: list[_Draft] = []
    titles: set[str] = set()
    line = 0
    while len(drafts) < n_items:
        draft = _draft_product(rng, line)
        n_variants = 2 + int(rng.random() * 3) if rng.random() < _LINE_SHARE else 1
        for variant in _variants(rng, draft, n_variants)[: n_items - len(drafts)]:
            title = _title(rng, variant, titles, plain=n_variants > 1)
            if title is not None:
                titles.add(title)
                drafts.append(variant._replace(title=title))
        line += 1
    return [drafts[i] for i in rng.permutation(n_items)]


def _draft_product(rng: np.random.Generator, line: int) -> _Draft:
    kind = _pick(rng, _KINDS)
    brand = _pick(rng, [brand for brand in _BRAND_TABLE if kind.department in brand.departments])
    style = _pick(rng, STYLES) if rng.random() < _OFF_STYLE_SHARE else brand.style
    voice = _STYLE_TABLE[style]
    apart = [(a, b) for a in range(len(kind.features)) for b in range(a + 2, len(kind.features))]
    features = tuple(kind.features[i] for i in rng.permutation(_pick(rng, apart)))
    return _Draft(
        kind,
        brand,
        style,
        name=_pick(rng, voice.names),
        adjective=_pick(rng, voice.title),
        material=_pick(rng, kind.materials),
        use=_pick(rng, kind.uses),
        features=features,
        line=line,
        size=_pick(rng, kind.sizes),
        colour=_pick(rng, voice.colours) if kind.dyed else None,
        title="",
    )


def _variants(rng: np.random.Generator, draft: _Draft, n_variants: int) -> list[_Draft]:
    """The draft itself, or n_variants of it in other colours (other sizes, where there are no colours)."""
    if n_variants == 1:
        return [draft]
    if draft.colour is None:
        return [draft._replace(size=size) for size in draft.kind.sizes[:n_variants]]
    colours = [_STYLE_TABLE[draft.style].colours[i] for i in rng.permutation(6)[:n_variants]]
    return [draft._replace(colour=colour) for colour in colours]


def _title(rng: np.random.Generator, draft: _Draft, taken: set[str], *, plain: bool) -> str | None:
    """A title of 4 to 10 words that is not taken, or None; variants of a line get the plain pattern."""
    fields = {
        **draft._asdict(),
        "kind": draft.kind.name,
        "brand": draft.brand.name,
        "feature": draft.features[0].phrase,
        "colour": f", {draft.colour}" if draft.colour else "",
    }
    for i in [0] if plain else rng.permutation(len(_TITLES)):
        title = _capitalized(_TITLES[i].format(**fields))
        if 4 <= len(title.split()) <= 10 and title not in taken:
            return title
    return None


def _capitalized(text: str) -> str:
    return text[0].upper() + text[1:]


def _item_record(item_id: int, draft: _Draft, seed: int) -> dict:
    kind = draft.kind
    # Keyed by line, so that the variants of a line share their words and their price.
    rng = np.random.default_rng([seed, _TEXT_STREAM, draft.line])
    attributes = {"material": draft.material, "colour": draft.colour, kind.axis: draft.size, "use": draft.use}
    attributes["features"] = ", ".join(feature.phrase for feature in draft.features)
    return {
        "item_id": item_id,
        "title": draft.title,
        "brand": draft.brand.name,
        "price": _price(rng, draft),
        "categories": [[ROOT_CATEGORY, kind.department, kind.label]],
        "description": _description(rng, draft),
        "attributes": {name: value for name, value in attributes.items() if value is not None},
        "style": draft.style,
    }


def _price(rng: np.random.Generator, draft: _Draft) -> float:
    price = draft.kind.price * _PRICE_OF_LEVEL[draft.brand.price_level] * np.exp(0.1 * rng.standard_normal())
    if draft.kind.axis in _PRICED_AXES:
        price *= 0.85 + 0.15 * draft.kind.sizes.index(draft.size)
    return round(float(price)) - 0.05 if price < 60 else float(round(price))


def _with_article(text: str) -> str:
    """The text after "a" or "an", by how it is read aloud.

    >>> [_with_article(text) for text in ("olive board", "one-person tent", "18 cm pot", "unscented candle")]
    ['an olive board', 'a one-person tent', 'an 18 cm pot', 'an unscented candle']
    """
    sounds = ("a", "e", "i", "o", "un", "8", "11", "18")
    vowel = text.lower().startswith(sounds) and not text.startswith("one")
    return f"{'an' if vowel else 'a'} {text}"


def _description(rng: np.random.Generator, draft: _Draft) -> str:
    """Two to four sentences: what it is and for what, what is special, how it looks, who makes it."""
    kind, style = draft.kind, _STYLE_TABLE[draft.style]
    says = [line for line in style.says if draft.colour or "{colour}" not in line]
    pronouns = {"it": "them", "It": "They"} if kind.is_plural else {"it": "it", "It": "It"}
    sentences = [_capitalized(_introduction(rng, draft)), draft.features[0].sentence]
    if rng.random() < 0.65:
        sentences.append(draft.features[1].sentence)
    if rng.random() < 0.7:
        sentences.append(_pick(rng, says).format(**pronouns, colour=draft.colour))
    if rng.random() < 0.3 and len(sentences) < 4:
        sentences.append(draft.brand.story)
    return " ".join(sentences)


def _introduction(rng: np.random.Generator, draft: _Draft) -> str:
    kind = draft.kind
    article = (lambda text: text) if kind.is_plural else _with_article
    fields = {
        **draft._asdict(),
        "kind": kind.name,
        "brand": draft.brand.name,
        "this": "these" if kind.is_plural else "this",
        "full": article(f"{draft.size} {draft.material} {kind.name}"),
        "short": article(f"{draft.material} {kind.name}"),
    }
    return _pick(rng, _INTRODUCTIONS).format(**fields)


# ---- what is planted ---------------------------------------------------------------------------------------


def _plant(drafts: list[_Draft], items: list[dict], n_users: int, seed: int) -> Truth:
    """Truth of the items, as drafted, and tastes of n_users shoppers."""
    item_type = np.array([_KIND_INDEX[draft.kind.name] for draft in drafts])
    item_style = np.array([STYLES.index(draft.style) for draft in drafts])
    brand_style = np.array([STYLES.index(draft.brand.style) for draft in drafts])
    usual_price = np.array([draft.kind.price for draft in drafts])
    one_hot = np.eye(len(STYLES), dtype=np.float32)
    tastes = [_tastes(np.random.default_rng([seed, _HISTORY_STREAM, user])) for user in range(n_users)]
    return Truth(
        item_type=item_type,
        item_department=np.array([DEPARTMENTS.index(draft.kind.department) for draft in drafts]),
        item_brand=np.array([BRANDS.index(draft.brand.name) for draft in drafts]),
        item_style=item_style,
        item_line=np.array([draft.line for draft in drafts]),
        item_popularity=_popularity(len(drafts), seed),
        item_price_level=np.log(np.array([item["price"] for item in items]) / usual_price),
        style_vectors=np.float32(0.75) * one_hot[item_style] + np.float32(0.25) * one_hot[brand_style],
        complements=_complement_matrix(),
        department_tastes=np.array([row[0] for row in tastes]).reshape(n_users, len(DEPARTMENTS)),
        style_tastes=np.array([row[1] for row in tastes]).reshape(n_users, len(STYLES)),
        brand_tastes=np.array([row[2] for row in tastes]).reshape(n_users, len(BRANDS)),
        price_tastes=np.array([row[3] for row in tastes]).reshape(n_users),
    )


def _popularity(n_items: int, seed: int) -> np.ndarray:
    """(n_items,) float64 with a long tail: a shifted power law over a random ranking."""
    rank = np.random.default_rng([seed, _POPULARITY_STREAM]).permutation(n_items)
    weights = (rank + _POPULARITY_SHIFT) ** -_POPULARITY_EXPONENT
    return weights / weights.sum()


def _complement_matrix() -> np.ndarray:
    departments = np.array([DEPARTMENTS.index(kind.department) for kind in _KINDS])
    matrix = np.where(departments[:, None] == departments[None, :], _SAME_DEPARTMENT, _ELSEWHERE)
    np.fill_diagonal(matrix, _SAME_TYPE)
    for i, kind in enumerate(_KINDS):
        for name, weight in zip(kind.complements, _COMPLEMENT_WEIGHTS, strict=True):
            matrix[i, _KIND_INDEX[name]] = weight
    return matrix


def _tastes(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
    """One shopper: weights of departments, styles and brands, and a price level."""
    liked = rng.permutation(len(DEPARTMENTS))[: 1 + int(rng.random() * 3)]
    departments = np.full(len(DEPARTMENTS), _OTHER_DEPARTMENT)
    departments[liked] = 0.3 + rng.random(len(liked))
    styles = np.ones(len(STYLES))
    styles[int(rng.random() * len(STYLES))] = _FAVOURITE_STYLE
    names = {DEPARTMENTS[i] for i in liked}
    familiar = [i for i, brand in enumerate(_BRAND_TABLE) if names.intersection(brand.departments)]
    brands = np.ones(len(BRANDS))
    brands[[familiar[i] for i in rng.permutation(len(familiar))[:2]]] = _FAVOURITE_BRAND
    return departments, styles, brands, float(rng.normal(0.0, 0.35))


# ---- histories ---------------------------------------------------------------------------------------------


def _attraction(truth: Truth, user: int) -> np.ndarray:
    """(n_items,) float64: how much shopper `user` (a row) likes each item, whatever came before."""
    distance = (truth.item_price_level - truth.price_tastes[user]) / _PRICE_WIDTH
    return (
        truth.item_popularity
        * truth.department_tastes[user][truth.item_department]
        * (truth.style_vectors @ truth.style_tastes[user])
        * truth.brand_tastes[user][truth.item_brand]
        * np.exp(-0.5 * distance**2)
    )


def _pull(truth: Truth, last: int) -> np.ndarray:
    """(n_items,) float64: how much the item at row `last` calls for each item in the same session."""
    alike = truth.style_vectors @ truth.style_vectors[last]
    return (
        truth.complements[truth.item_type[last]][truth.item_type]
        * (1 + (_SAME_STYLE - 1) * alike)
        * np.where(truth.item_brand == truth.item_brand[last], _SAME_BRAND, 1.0)
        * np.where(truth.item_line == truth.item_line[last], _SAME_LINE, 1.0)
    )


def _fresh_weights(truth: Truth, attraction: np.ndarray, last: int) -> np.ndarray:
    lingers = truth.item_department == truth.item_department[last]
    return attraction * np.where(lingers, _LINGER, 1.0)


def next_item_probabilities(truth: Truth, user_id: int, history: list[int]) -> np.ndarray:
    """The probabilities from which the next item was drawn: the best that any recommender can know.

    A next item starts a new session, chosen by taste alone, or continues the last one, where taste is
    multiplied by the pull of the last item. `history` is one or more item ids. Returns (n_items,) float64
    that sums to 1, row i for item_id i + 1, zero for items of the history. Raises ValueError if history is
    empty.

    >>> shop = demo_shop(n_items=200, n_users=1, n_queries=0)
    >>> user_id, items = shop.sequences[0]
    >>> p = next_item_probabilities(shop.truth, user_id, items[:-1])
    >>> p.shape, round(float(p.sum()), 6), float(p[items[0] - 1])
    ((200,), 1.0, 0.0)
    """
    if not history:
        raise ValueError("history is empty, expected at least one item id")
    rows = np.asarray(history) - 1
    attraction = _attraction(truth, user_id - 1)
    attraction[rows] = 0.0
    fresh = _fresh_weights(truth, attraction, rows[-1])
    follow = attraction * _pull(truth, rows[-1])
    return _NEW_SESSION * fresh / fresh.sum() + (1 - _NEW_SESSION) * follow / follow.sum()


def _histories(truth: Truth, seed: int) -> tuple[list[tuple[int, list[int]]], list[tuple[int, list[int]]]]:
    sequences, timestamps = [], []
    for user in range(len(truth.price_tastes)):
        rng = np.random.default_rng([seed, _HISTORY_STREAM, user, 1])
        rows, starts = _history(rng, truth, user)
        sequences.append((user + 1, [row + 1 for row in rows]))
        times = _times(np.random.default_rng([seed, _TIME_STREAM, user]), np.array(starts))
        timestamps.append((user + 1, times))
    return sequences, timestamps


def _history(rng: np.random.Generator, truth: Truth, user: int) -> tuple[list[int], list[bool]]:
    """Rows of the items of one shopper in order, and which of them start a session."""
    length = min(_SHORTEST + int(rng.exponential(_MEAN_EXTRA)), _LONGEST, len(truth.item_type) // 2)
    attraction = _attraction(truth, user)
    rows, starts = [_draw(rng, attraction)], [True]
    while len(rows) < length:
        attraction[rows[-1]] = 0.0  # nothing is bought twice
        starts.append(bool(rng.random() < _NEW_SESSION))
        last = rows[-1]
        weights = _fresh_weights(truth, attraction, last) if starts[-1] else attraction * _pull(truth, last)
        rows.append(_draw(rng, weights))
    return rows, starts


def _draw(rng: np.random.Generator, weights: np.ndarray) -> int:
    """An index drawn with probability proportional to its weight."""
    cumulative = np.cumsum(weights)
    return int(np.searchsorted(cumulative, rng.random() * cumulative[-1], side="right"))


def _times(rng: np.random.Generator, starts: np.ndarray) -> list[int]:
    """Unix seconds: sessions anywhere within two years, half a minute to twenty minutes between items."""
    session = np.cumsum(starts) - 1
    begins = np.sort(rng.integers(0, _TWO_YEARS - 86_400, session[-1] + 1))
    gaps = np.where(starts, 0, rng.integers(30, 1_200, len(starts)))
    elapsed = np.cumsum(gaps)
    times = _START_TIME + begins[session] + elapsed - elapsed[starts][session]
    return np.maximum.accumulate(times).tolist()  # two sessions may overlap


# ---- queries -----------------------------------------------------------------------------------------------


def _queries(items: list[dict], n_queries: int, seed: int) -> list[dict]:
    """Distinct queries, each written for one item and relevant to all items that satisfy its constraints."""
    rng = np.random.default_rng([seed, _QUERY_STREAM])
    postings = _postings(items)
    prices = np.array([item["price"] for item in items])
    queries: dict[str, dict] = {}
    for _ in range(1_000 + 20 * n_queries):
        if len(queries) == n_queries:
            break
        item, kind = _pick(rng, items), QUERY_KINDS[len(queries) % len(QUERY_KINDS)]
        written_as = _pick(rng, QUERY_KINDS[:-1]) if kind == "typo" else kind
        text, constraints = _WRITERS[written_as](rng, item)
        item_ids = _relevant(constraints, postings, prices)
        query = {"query": text, "item_ids": item_ids, "kind": kind, "constraints": constraints}
        if kind == "typo":
            query |= {"query": _misspell(rng, text), "meant": text}
        if len(item_ids) <= _MAX_RELEVANT:
            queries.setdefault(query["query"], query)
    if len(queries) < n_queries:
        raise ValueError(f"n_queries is {n_queries}, expected at most {len(queries)} for {len(items)} items")
    return list(queries.values())


def _title_words(title: str) -> list[str]:
    return title.replace(",", "").lower().split()


def _postings(items: list[dict]) -> dict[tuple[str, str], set[int]]:
    """Item ids by (constraint, value)."""
    postings: dict[tuple[str, str], set[int]] = {}
    for item in items:
        facts = [("type", item["categories"][0][2]), ("brand", item["brand"]), ("style", item["style"])]
        facts += [fact for fact in item["attributes"].items() if fact[0] != "features"]
        facts += [("feature", phrase) for phrase in item["attributes"]["features"].split(", ")]
        facts += [("title_words", word) for word in _title_words(item["title"])]
        for fact in facts:
            postings.setdefault(fact, set()).add(item["item_id"])
    return postings


def _relevant(constraints: dict, postings: dict[tuple[str, str], set[int]], prices: np.ndarray) -> list[int]:
    """Ids of the items that satisfy all constraints, ascending."""
    budget = constraints.get("max_price", np.inf)
    pairs = [(name, value) for name, value in constraints.items() if name not in ("max_price", "title_words")]
    pairs += [("title_words", word) for word in constraints.get("title_words", [])]
    return sorted(i for i in set.intersection(*(postings[pair] for pair in pairs)) if prices[i - 1] <= budget)


def _budget(rng: np.random.Generator, item: dict) -> int:
    """A round sum that is enough for the item."""
    step = 5 if item["price"] < 50 else 20
    return step * (int(item["price"]) // step + 1 + int(rng.random() * 2))


def _kind_of(item: dict) -> _Kind:
    return _KINDS[PRODUCT_TYPES.index(item["categories"][0][2])]


def _some_attributes(rng: np.random.Generator, item: dict, n_least: int, n_most: int) -> dict[str, str]:
    """Between n_least and n_most of material, colour and size, in this order."""
    axis = _kind_of(item).axis
    names = [name for name in (axis, "colour", "material") if name in item["attributes"]]
    n_chosen = n_least + int(rng.random() * (n_most - n_least + 1))
    chosen = sorted(rng.permutation(len(names))[:n_chosen].tolist())
    return {names[i]: item["attributes"][names[i]] for i in chosen}


def _write_title(rng: np.random.Generator, item: dict) -> tuple[str, dict]:
    title = _title_words(item["title"])
    length = 2 + int(rng.random() * 3)
    start = int(rng.random() * max(1, len(title) - length + 1))
    fragment = title[start : start + length]
    while fragment[-1] in words.JOINING_WORDS or fragment[-1].isdigit():
        fragment.pop()
    while fragment[0] in (*words.JOINING_WORDS, *words.UNITS):
        fragment.pop(0)
    return " ".join(fragment), {"title_words": fragment}


def _write_attribute(rng: np.random.Generator, item: dict) -> tuple[str, dict]:
    kind, asked = _kind_of(item), _some_attributes(rng, item, 1, 3)
    noun = _pick(rng, [kind.name, kind.name, kind.plural])
    fields = {"noun": noun, "feature": _a_feature(rng, item).phrase, "use": item["attributes"]["use"]}
    return _write(rng, "attribute", {"type": kind.label}, asked, fields)


def _write_brand(rng: np.random.Generator, item: dict) -> tuple[str, dict]:
    kind, brand = _kind_of(item), item["brand"]
    fields = {"brand": brand, "lower_brand": brand.lower(), "kind": kind.name, "plural": kind.plural}
    fields["max_price"] = _budget(rng, item)
    asked = _some_attributes(rng, item, 1, 1)
    return _write(rng, "brand", {"brand": brand, "type": kind.label}, asked, fields)


def _write_need(rng: np.random.Generator, item: dict) -> tuple[str, dict]:
    feature = _a_feature(rng, item)
    fields = {"need": feature.need, "max_price": _budget(rng, item)}
    constraints = {"type": _kind_of(item).label, "feature": feature.phrase}
    return _write(rng, "need", constraints, _some_attributes(rng, item, 1, 2), fields)


def _write_style(rng: np.random.Generator, item: dict) -> tuple[str, dict]:
    kind = _kind_of(item)
    fields = {"kind": kind.name, "plural": kind.plural, "use": item["attributes"]["use"]}
    fields["max_price"] = _budget(rng, item)
    fields["look"] = _pick(rng, _STYLE_TABLE[item["style"]].query)
    asked = _some_attributes(rng, item, 1, 1)
    return _write(rng, "style", {"type": kind.label, "style": item["style"]}, asked, fields)


def _write(
    rng: np.random.Generator, kind: str, constraints: dict, asked: dict[str, str], fields: dict
) -> tuple[str, dict]:
    """A query in one of the forms of its kind, and the constraints with those that the form adds."""
    form, values = _pick(rng, _QUERY_FORMS[kind]), list(asked.values())
    ways = {"asked": " ".join(values), "reversed": " ".join(reversed(values)), "listed": ", ".join(values)}
    named = {name for _, name, _, _ in Formatter().parse(form)}
    extra = asked if named & ways.keys() else {}
    extra = extra | {name: fields[name] for name in ("max_price", "feature", "use") if name in named}
    return form.format(**fields, **ways), constraints | extra


def _a_feature(rng: np.random.Generator, item: dict) -> _Feature:
    """One of the item's features."""
    phrases = item["attributes"]["features"].split(", ")
    return _pick(rng, [feature for feature in _kind_of(item).features if feature.phrase in phrases])


_WRITERS = {
    "title": _write_title,
    "attribute": _write_attribute,
    "brand": _write_brand,
    "need": _write_need,
    "style": _write_style,
}


def _misspell(rng: np.random.Generator, text: str) -> str:
    """One slip of the finger in the text, or two in a long one, never in the first letter of a word."""
    parts = text.split()
    long_parts = [i for i, part in enumerate(parts) if len(part) >= 5]
    for i in rng.permutation(long_parts)[: 2 if len(text) > 30 else 1]:
        parts[i] = _slip(rng, parts[i])
    return " ".join(parts)


def _slip(rng: np.random.Generator, word: str) -> str:
    at = 1 + int(rng.random() * (len(word) - 2))
    swapped = word[:at] + word[at + 1] + word[at] + word[at + 2 :]
    row = next((row for row in words.KEYBOARD if word[at] in row), None)
    neighbour = row[row.index(word[at]) - 1] if row else word[at]
    slips = [swapped, word[:at] + word[at + 1 :], word[:at] + word[at] + word[at:]]
    slips.append(word[:at] + neighbour + word[at + 1 :])
    return _pick(rng, [slip for slip in slips if slip != word])
