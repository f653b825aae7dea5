"""Queries of the demo shop: what a shopper types who looks for one of its items."""

from collections import defaultdict
from string import Formatter

import numpy as np

from semid_lib.data.demo_shop.items import PRODUCTS, WORDS, Product, pick

QUERY_STREAM = 5  # see `items`
QUERY_KINDS = ("title", "attribute", "brand", "need", "style", "typo")
_BY_LABEL = {product.label: product for product in PRODUCTS}
_MAX_RELEVANT = 12  # items per query

# values that are drawn for a query, in this order, and the largest number of attributes
_DRAWN = {
    "attribute": (("asked", "noun", "feature"), 3),
    "brand": (("max_price", "asked"), 1),
    "need": (("feature", "max_price", "asked"), 2),
    "style": (("max_price", "look", "asked"), 1),
}
_FIXED = {"attribute": ["type"], "brand": ["brand", "type"], "need": ["type", "feature"], "style": ["type", "style"]}


def write_queries(items: list[dict], n_queries: int, seed: int) -> list[dict]:
    """Distinct queries, each written for one item and relevant to all items that satisfy its constraints."""
    rng = np.random.default_rng([seed, QUERY_STREAM])
    ids_with = _ids_with(items)
    queries: dict[str, dict] = {}
    for _ in range(1_000 + 20 * n_queries):
        if len(queries) == n_queries:
            break
        item, kind = pick(rng, items), QUERY_KINDS[len(queries) % len(QUERY_KINDS)]
        text, constraints = _write_query(rng, item, pick(rng, QUERY_KINDS[:-1]) if kind == "typo" else kind)
        item_ids = _relevant(constraints, ids_with, items)
        typed = _misspell(rng, text) if kind == "typo" else text
        query = {"query": typed, "item_ids": item_ids, "kind": kind, "constraints": constraints}
        if kind == "typo":
            query["meant"] = text
        if len(item_ids) <= _MAX_RELEVANT:
            queries.setdefault(typed, query)
    if len(queries) < n_queries:
        raise ValueError(f"n_queries is {n_queries}, expected at most {len(queries)} for {len(items)} items")
    return list(queries.values())


def _title_words(title: str) -> list[str]:
    return title.replace(",", "").lower().split()


def _ids_with(items: list[dict]) -> dict[tuple[str, str], set[int]]:
    """Item ids by (constraint, value)."""
    found = defaultdict(set)
    for item in items:
        facts = [("type", item["categories"][0][2]), ("brand", item["brand"]), ("style", item["style"])]
        facts += item["attributes"].items()
        facts += [("feature", phrase) for phrase in item["attributes"]["features"].split(", ")]
        for fact in [*facts, *(("title_words", word) for word in _title_words(item["title"]))]:
            found[fact].add(item["item_id"])
    return found


def _relevant(constraints: dict, ids_with: dict[tuple[str, str], set[int]], items: list[dict]) -> list[int]:
    """Ids of the items that satisfy all constraints, ascending."""
    facts = [fact for fact in constraints.items() if fact[0] not in ("max_price", "title_words")]
    facts += [("title_words", word) for word in constraints.get("title_words", [])]
    budget, found = constraints.get("max_price", np.inf), set.intersection(*(ids_with[fact] for fact in facts))
    return sorted(item_id for item_id in found if items[item_id - 1]["price"] <= budget)


def _write_query(rng: np.random.Generator, item: dict, kind: str) -> tuple[str, dict]:
    """A query for one item, and the constraints that it states."""
    if kind == "title":
        return _title_fragment(rng, item)
    product, attributes = _BY_LABEL[item["categories"][0][2]], item["attributes"]
    names, most = _DRAWN[kind]
    features = [one for one in product.features if one.phrase in attributes["features"].split(", ")]
    draw = {
        "asked": lambda: _some_attributes(rng, product, attributes, most),
        "noun": lambda: pick(rng, [product.name, product.name, product.plural]),
        "feature": lambda: pick(rng, features),
        "max_price": lambda: _budget(rng, item["price"]),
        "look": lambda: pick(rng, WORDS["styles"][item["style"]]["query"]),
    }
    fields = {"kind": product.name, "plural": product.plural, "use": attributes["use"], "brand": item["brand"]}
    fields |= {"lower_brand": item["brand"].lower()} | {name: draw[name]() for name in names}
    if "feature" in fields:
        fields |= {"feature": fields["feature"].phrase, "need": fields["feature"].need}
    asked = fields["asked"]
    values = list(asked.values())
    fields |= {"asked": " ".join(values), "reversed": " ".join(reversed(values)), "listed": ", ".join(values)}
    form = pick(rng, WORDS["queries"][kind])
    named = {name for _, name, _, _ in Formatter().parse(form)}
    facts = fields | {"type": product.label, "style": item["style"]}
    constraints = {name: facts[name] for name in _FIXED[kind]}
    constraints |= asked if named & {"asked", "reversed", "listed"} else {}
    constraints |= {name: fields[name] for name in ("max_price", "feature", "use") if name in named}
    return form.format(**fields), constraints


def _some_attributes(rng: np.random.Generator, product: Product, attributes: dict, most: int) -> dict:
    """One to `most` of size, colour and material, in this order."""
    names = [name for name in (product.axis, "colour", "material") if name in attributes]
    n_chosen = 1 + int(rng.random() * most)
    return {names[at]: attributes[names[at]] for at in sorted(rng.permutation(len(names))[:n_chosen])}


def _budget(rng: np.random.Generator, price: float) -> int:
    """A round sum that is enough for the price."""
    step = 5 if price < 50 else 20
    return step * (int(price) // step + 1 + int(rng.random() * 2))


def _title_fragment(rng: np.random.Generator, item: dict) -> tuple[str, dict]:
    """Two to four words of the title."""
    title, joining = _title_words(item["title"]), WORDS["joining_words"]
    length = 2 + int(rng.random() * 3)
    start = int(rng.random() * max(1, len(title) - length + 1))
    fragment = title[start : start + length]
    while fragment[-1] in joining or fragment[-1].isdigit():
        fragment.pop()
    while fragment[0] in joining + WORDS["units"]:
        fragment.pop(0)
    return " ".join(fragment), {"title_words": fragment}


def _misspell(rng: np.random.Generator, text: str) -> str:
    """Add one typing error, or two to a long text, never in the first letter of a word."""
    parts = text.split()
    long_parts = [at for at, part in enumerate(parts) if len(part) >= 5]
    for at in rng.permutation(long_parts)[: 2 if len(text) > 30 else 1]:
        parts[at] = _misspelled(rng, parts[at])
    return " ".join(parts)


def _misspelled(rng: np.random.Generator, word: str) -> str:
    at = 1 + int(rng.random() * (len(word) - 2))
    before, letter, after = word[:at], word[at], word[at + 1 :]
    row = next((row for row in WORDS["keyboard"] if letter in row), None)
    neighbour = row[row.index(letter) - 1] if row else letter
    errors = [before + after[0] + letter + after[1:], before + after, before + letter + letter + after]
    errors.append(before + neighbour + after)
    return pick(rng, [error for error in errors if error != word])
