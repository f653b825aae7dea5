"""Queries from an item's own fields, by templates: no model, no cost, 30,000 per second.

The templates know no domain, and each item is processed alone: its title, brand, categories and description are all
that a query can contain. So adding items does not change the queries of the others. Kinds, words and phrases are in
`templates.toml`.

The phrases are English. An item whose words are mostly in another script gets queries from its own words, without
"need" and "question". Languages in Latin letters cannot be told apart and get English phrases. In scripts without
spaces, such as Chinese or Thai, two neighbouring characters count as a word, which is right only by chance. For
languages other than English, use queries by a language model (`llm_queries`) or real ones to compare methods.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from random import Random

from semid_lib.queries.item_facts import DATA, JOINING, PACKING, UNITS, Facts, facts_of, is_spaced, join

KINDS = tuple(DATA["kinds"])  # families of phrasings
_LENGTHS = DATA["lengths"]
_FIELDS_OF = {form: re.findall(r"{(\w+)}", form) for forms in DATA["forms"].values() for form in forms}


def item_queries(
    stream: str,
    n: int,
    title: str,
    brand: str = "",
    categories: Sequence[Sequence[str]] = (),
    description: str = "",
    weights: Mapping[str, int] | None = None,
) -> list[tuple[str, str]]:
    """At most `n` different (query, kind) of one item, in lower case.

    The kinds take turns in a random order; kinds without words in this item are skipped. The first queries do not
    depend on `n`. An item without text has no queries.

    Parameters
    ----------
    stream : str
        Name of the random stream.
    weights : mapping, optional
        Turns of a kind per round, 0 for none; default 1.

    Raises
    ------
    ValueError
        For an unknown kind, weights that are not whole numbers >= 0, or weights that are all 0.

    Examples
    --------
    >>> item_queries("a", 4, "OPI Red Shatter Crackle Nail Polish", "OPI", [["Beauty", "Nails", "Nail Polish"]])[:3]
    [('shatter polish', 'words'), ('opi shatter crackle', 'brand_words'), ('shatter crackle nail', 'fragment')]
    """
    turns = _turns(weights or {})
    random, facts = Random(stream), facts_of(title, brand, categories, description)
    if not facts.title and not facts.types:
        return []
    order = [kind for _, kind in sorted((random.random(), kind) for kind in turns)]
    found: dict[str, str] = {}
    attempt = idle = 0
    while len(found) < n and idle < 3 * len(order):  # stop after many attempts without a new query
        kind = order[attempt % len(order)]
        query = _WRITERS[kind](random, facts)
        attempt, idle = attempt + 1, idle + 1
        if query and query not in found and any(map(str.isalnum, query)):
            found[query], idle = kind, 0
    return list(found.items())


def _turns(weights: Mapping[str, int]) -> list[str]:
    fits = set(weights) <= set(KINDS) and all(isinstance(weight, int) for weight in weights.values())
    turns = [kind for kind in KINDS for _ in range(weights.get(kind, 1))] if fits else []
    if not turns or min(weights.values(), default=0) < 0:
        raise ValueError(f"weights are {dict(weights)}, expected whole numbers >= 0, not all 0, of {list(KINDS)}")
    return turns


# --- random choices: of Python's generator, only random() promises the same numbers in every version ---


def _pick(random: Random, options):
    return options[int(random.random() * len(options))]


def _some(random: Random, found: Sequence, n: int, anywhere: bool = True) -> list:
    """n of the entries (all if there are fewer) in their order; neighbours if not `anywhere`."""
    if not anywhere:
        start = int(random.random() * max(1, len(found) - n + 1))
        return list(found[start : start + n])
    return [found[at] for at in sorted(at for _, at in sorted((random.random(), at) for at in range(len(found)))[:n])]


# --- one function per kind: a query, or "" if the item lacks the words ---


def _fragment(random: Random, facts: Facts) -> str:
    """Neighbouring words, without joining words at the ends and without half an amount."""
    title = facts.title
    if not facts.content:
        return join(title[:3])
    start, length = _pick(random, facts.content), _pick(random, _LENGTHS)
    stop = min(start + length, len(title))
    start = max(0, min(start, stop - length))
    if stop < len(title) and facts.sized[stop]:  # inside an amount, or just before one
        while stop > start + 1 and facts.sized[stop - 1]:
            stop -= 1
    while stop > start + 1 and title[stop - 1] in JOINING:
        stop -= 1
    while start < stop - 1 and (title[start] in JOINING or title[start] in UNITS):
        start += 1
    return join(title[start:stop])


def _words(random: Random, facts: Facts) -> str:
    content = [facts.title[at] for at in facts.content]
    chosen = [word for word in content if word not in PACKING] or content
    return join(list(dict.fromkeys(_some(random, chosen, _pick(random, _LENGTHS), facts.spaced))))


def _brand(random: Random, facts: Facts) -> str:
    """The brand as people type it: half of the time without its apostrophe."""
    return facts.brand.replace("'", "") if random.random() < 0.5 else facts.brand


def _type(random: Random, facts: Facts) -> str:
    return _pick(random, facts.types) if facts.types else ""


def _attributes(random: Random, facts: Facts, most: int) -> str:
    return join(_some(random, facts.attributes, 1 + int(random.random() * most), facts.spaced))


def _brand_type(random: Random, facts: Facts) -> str:
    type_, extra = _type(random, facts), _attributes(random, facts, 1) if random.random() < 0.3 else ""
    return _without_repeats(f"{_brand(random, facts)} {extra} {type_}") if facts.brand and type_ else ""


def _attribute_type(random: Random, facts: Facts) -> str:
    type_, extra = _type(random, facts), _attributes(random, facts, 3)
    return _without_repeats(f"{extra} {type_}") if type_ and extra else ""


def _brand_words(random: Random, facts: Facts) -> str:
    brand, content = facts.brand.split(), [facts.title[at] for at in facts.content]
    rest = [word for word in content if word not in brand and word not in PACKING]
    chosen = _some(random, rest, 1 + int(random.random() * 3), facts.spaced)
    return join([_brand(random, facts), *chosen]) if facts.brand and chosen else ""


def _from_form(name: str) -> Callable[[Random, Facts], str]:
    """A writer that fills one of the English forms of that name for which the item has words."""
    forms = DATA["forms"][name]

    def write(random: Random, facts: Facts) -> str:
        if not facts.english:
            return ""
        fields = {
            "purpose": facts.purposes,
            "feature": facts.features,
            "domain": facts.domains,
            "type": facts.types,
            "attribute": facts.attributes,
            "brand": [facts.brand] if facts.brand else [],
            "any": [*facts.types, join(facts.title[:4])],
        }
        usable = [form for form in forms if all(fields[field] for field in _FIELDS_OF[form])]
        # purposes and features tell most about an item, so forms with them are preferred
        telling = [form for form in usable if {"purpose", "feature"} & set(_FIELDS_OF[form])]
        form = _pick(random, telling if telling and random.random() < 0.6 else usable)
        query = _without_repeats(form.format(**{field: _pick(random, fields[field]) for field in _FIELDS_OF[form]}))
        return query if set(query.split()) - set(form.split()) else ""  # an item called "do" adds no word

    return write


def _plain_query(random: Random, facts: Facts) -> str:
    writers = (_fragment, _words, _brand_type, _attribute_type, _brand_words, _attribute_type)
    return _pick(random, writers)(random, facts) or _fragment(random, facts)


def _typo(random: Random, facts: Facts) -> str:
    parts = _plain_query(random, facts).split()
    # not in scripts without spaces, where the next character may belong to another word, nor in words with marks
    usable = [at for at, part in enumerate(parts) if len(part) >= 4 and part.isalpha() and is_spaced(part)]
    for at in _some(random, usable, 1 if len(parts) < 5 else 2):
        parts[at] = _slip(random, parts[at])
    return join(parts) if usable else ""


def _slip(random: Random, word: str) -> str:
    """Two letters swapped, one left out or one doubled; never the first."""
    at = 1 + int(random.random() * (len(word) - 2))
    before, one, other, after = word[:at], word[at], word[at + 1], word[at + 2 :]
    slips = [before + other + one + after, before + other + after, before + one + one + other + after]
    return _pick(random, [slip for slip in slips if slip != word])


def _drop(random: Random, facts: Facts) -> str:
    parts = _plain_query(random, facts).split()
    if len(parts) < 3:
        return ""
    del parts[int(random.random() * len(parts))]
    while len(parts) > 1 and parts[-1] in JOINING:
        parts.pop()
    return join(parts)


def _without_repeats(text: str) -> str:
    """Each word once: "nail polish polish" becomes "nail polish"."""
    return join(list(dict.fromkeys(text.split())))


_WRITERS: dict[str, Callable[[Random, Facts], str]] = {
    "fragment": _fragment,
    "words": _words,
    "brand_type": _brand_type,
    "attribute_type": _attribute_type,
    "brand_words": _brand_words,
    "need": _from_form("need"),
    "question": _from_form("question"),
    "typo": _typo,
    "drop": _drop,
}
