"""Items of the demo shop: drawn from the tables of words, then put into text."""

import tomllib
from pathlib import Path
from typing import NamedTuple

import numpy as np

# one random stream per part, 0 to 5: more shoppers do not change the items, nor more queries the histories
ITEM_STREAM, TEXT_STREAM = 0, 1

_LINE_SHARE = 0.10  # share of products that come in two to four variants
_OFF_STYLE_SHARE = 0.2  # share of items that leave the style of their brand
_PRICE_OF_LEVEL = {1: 0.7, 2: 0.9, 3: 1.2, 4: 1.6}


class Feature(NamedTuple):
    phrase: str
    sentence: str
    need: str


class Product(NamedTuple):
    """A product type."""

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
    features: list[Feature]

    @property
    def label(self) -> str:
        return self.plural.capitalize()


class Brand(NamedTuple):
    name: str
    price_level: int
    style: str
    departments: list[str]
    story: str


WORDS = tomllib.loads(Path(__file__).with_name("words.toml").read_text(encoding="utf-8"))
BRANDS = [Brand(*row) for row in WORDS["brands"]]
PRODUCTS = [Product(**row | {"features": [Feature(*one) for one in row["features"]]}) for row in WORDS["products"]]
STYLES = list(WORDS["styles"])


class Draft(NamedTuple):
    """One item before it is put into words."""

    product: Product
    brand: Brand
    style: str
    name: str
    adjective: str
    material: str
    use: str
    features: tuple[Feature, Feature]
    line: int  # number of the product line; variants share it
    size: str
    colour: str | None
    title: str = ""

    def filled(self, form: str, **more: str) -> str:
        """A template of a title or an introduction with the words of this item, in upper case first."""
        words = {"kind": self.product.name, "brand": self.brand.name, "feature": self.features[0].phrase}
        words["colour"] = f", {self.colour}" if self.colour else ""
        text = form.format(**self._asdict() | words | more)
        return text[0].upper() + text[1:]


def pick(rng: np.random.Generator, options):
    return options[int(rng.random() * len(options))]


def draft_items(n_items: int, seed: int) -> list[Draft]:
    """n_items drafts with distinct titles, in random order."""
    rng = np.random.default_rng([seed, ITEM_STREAM])
    drafts: dict[str, Draft] = {}  # by title
    line = 0
    while len(drafts) < n_items:
        draft = _draft_product(rng, line)
        n_variants = 2 + int(rng.random() * 3) if rng.random() < _LINE_SHARE else 1
        for variant in _variants(rng, draft, n_variants)[: n_items - len(drafts)]:
            # a title of 4 to 10 words that is not taken; variants of a line get the first pattern
            for at in [0] if n_variants > 1 else rng.permutation(len(WORDS["titles"])):
                title = variant.filled(WORDS["titles"][at])
                if 4 <= len(title.split()) <= 10 and title not in drafts:
                    drafts[title] = variant._replace(title=title)
                    break
        line += 1
    in_order = list(drafts.values())
    return [in_order[at] for at in rng.permutation(n_items)]


def _draft_product(rng: np.random.Generator, line: int) -> Draft:
    product = pick(rng, PRODUCTS)
    brand = pick(rng, [brand for brand in BRANDS if product.department in brand.departments])
    style = pick(rng, STYLES) if rng.random() < _OFF_STYLE_SHARE else brand.style
    words, n_features = WORDS["styles"][style], len(product.features)
    apart = [(one, other) for one in range(n_features) for other in range(one + 2, n_features)]
    features = tuple(product.features[at] for at in rng.permutation(pick(rng, apart)))
    lists = (words["names"], words["title"], product.materials, product.uses, product.sizes)
    name, adjective, material, use, size = (pick(rng, options) for options in lists)
    colour = pick(rng, words["colours"]) if product.dyed else None
    return Draft(product, brand, style, name, adjective, material, use, features, line, size, colour)


def _variants(rng: np.random.Generator, draft: Draft, n_variants: int) -> list[Draft]:
    """The draft itself, or n_variants of it in other colours (other sizes, where there are no colours)."""
    if n_variants == 1:
        return [draft]
    if draft.colour is None:
        return [draft._replace(size=size) for size in draft.product.sizes[:n_variants]]
    colours = WORDS["styles"][draft.style]["colours"]
    return [draft._replace(colour=colours[at]) for at in rng.permutation(6)[:n_variants]]


def item_record(item_id: int, draft: Draft, seed: int) -> dict:
    product = draft.product
    rng = np.random.default_rng([seed, TEXT_STREAM, draft.line])  # variants share their words and their price
    attributes = {"material": draft.material, "colour": draft.colour, product.axis: draft.size, "use": draft.use}
    attributes["features"] = ", ".join(feature.phrase for feature in draft.features)
    return {
        "item_id": item_id,
        "title": draft.title,
        "brand": draft.brand.name,
        "price": _price(rng, draft),
        "categories": [["Merrowdale", product.department, product.label]],
        "description": _description(rng, draft),
        "attributes": {name: value for name, value in attributes.items() if value is not None},
        "style": draft.style,
    }


def _price(rng: np.random.Generator, draft: Draft) -> float:
    price = draft.product.price * _PRICE_OF_LEVEL[draft.brand.price_level] * np.exp(0.1 * rng.standard_normal())
    if draft.product.axis in WORDS["priced_axes"]:
        price *= 0.85 + 0.15 * draft.product.sizes.index(draft.size)
    return round(float(price)) - 0.05 if price < 60 else float(round(price))


def _description(rng: np.random.Generator, draft: Draft) -> str:
    """Two to four sentences: what it is, its features, its style, its brand."""
    short = f"{draft.material} {draft.product.name}"
    texts, this = {"short": short, "full": f"{draft.size} {short}"}, "these"
    pronouns = {"it": "them", "It": "They"}
    if draft.product.name != draft.product.plural:
        texts, this = {name: _with_article(text) for name, text in texts.items()}, "this"
        pronouns = {"it": "it", "It": "It"}
    says = [form for form in WORDS["styles"][draft.style]["says"] if draft.colour or "{colour}" not in form]
    sentences = [draft.filled(pick(rng, WORDS["introductions"]), this=this, **texts), draft.features[0].sentence]
    if rng.random() < 0.65:
        sentences.append(draft.features[1].sentence)
    if rng.random() < 0.7:
        sentences.append(pick(rng, says).format(**pronouns, colour=draft.colour))
    if rng.random() < 0.3 and len(sentences) < 4:
        sentences.append(draft.brand.story)
    return " ".join(sentences)


def _with_article(text: str) -> str:
    """The text after "a" or "an", as it is read aloud.

    >>> [_with_article(text) for text in ("olive board", "one-person tent", "18 cm pot", "unscented candle")]
    ['an olive board', 'a one-person tent', 'an 18 cm pot', 'an unscented candle']
    """
    sounds = ("a", "e", "i", "o", "un", "8", "11", "18")
    vowel = text.lower().startswith(sounds) and not text.startswith("one")
    return f"{'an' if vowel else 'a'} {text}"
