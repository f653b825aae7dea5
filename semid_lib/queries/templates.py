"""Queries written from an item's own fields by templates: no model, no cost, 30,000 a second.

Nothing here knows a domain or looks at a second item: what a query says comes from its item's title, brand,
categories and description. So a catalogue may grow without a change to the queries of the items it had. From real
queries one thing is taken: how many words they have (61 queries of shoppers for Beauty items, ESCI data set, 2 to 10
words, a median of 3 or 4).

The phrases are English. An item whose words are mostly in another script gets queries of its own words only, without
"need" and "question". A title in another language with Latin letters cannot be told apart and gets English phrases. In
scripts without spaces, such as Chinese or Thai, two neighbouring characters are taken for a word, which is right only
by chance; queries are made of neighbours, without typing errors. So queries by templates imitate shoppers best in
English: elsewhere, compare methods on queries by a language model (`query_llm`) or on real ones.
"""

import re
import unicodedata
from collections.abc import Callable, Mapping
from functools import partial
from random import Random
from typing import NamedTuple

import regex

from semid_lib.ids.embed import plain_text
from semid_lib.workbench.text import UNSPACED

# how a query is phrased: one name per family
KINDS = (
    "fragment",  # neighbouring words of the title
    "words",  # some words of the title, in their order
    "brand_type",  # opi nail polish
    "attribute_type",  # red crackle nail polish
    "brand_words",  # opi red shatter
    "need",  # something for dry hair
    "question",  # which shampoo is best for dry hair
    "typo",  # one of the above with a slip of the finger, or two in a long one
    "drop",  # one of the above without one of its words
)

_LENGTHS = (2, 2, 3, 3, 3, 3, 4, 4, 5, 5, 6)  # words, drawn evenly: about the lengths of the 61 real queries
_FIRST_WORDS = 24  # of a title: what comes later in a long one is search bait
_FIRST_CHARACTERS = 600  # of a description
_NO_BRAND = {"", "unknown", "generic", "n/a", "na", "none", "null", "unbranded", "no brand", "various", "other"}


def _set(text: str) -> frozenset[str]:
    return frozenset(text.split())


_JOINING = _set(
    "a an and are as at be by can de for from how if in into is it its la le no not of on or our per so than that the"
    " their them then these they this to up was we what when where which who why will with without you your"
)
_PACKING = _set(
    "new pack packs set sets piece pieces pc pcs count ct box case lot bulk total size sizes each pair model item sale"
    " best free bonus authentic genuine original guarantee assorted varies color colors vary only official brand"
    " quality high authorized includes included including qty quantity bottle bottles bottled packaging"
)
_PRODUCTS = _set("set sets box case bottle kit")  # packing too, but a chisel set is a thing
_UNITS = _set(
    "oz ounce ounces fl fluid ml l liter liters litre litres g gr gram grams kg mg lb lbs pound pounds mm cm m inch"
    " inches in ft feet foot yd yard yards x w v volt watt watts"
)
_CHARACTERS = {n: regex.compile(rf"(?V1)({UNSPACED}{{1,{n}}})") for n in (1, 2)}  # of scripts without spaces
_GAP = regex.compile(rf"(?V1)(?<={UNSPACED}) (?={UNSPACED})")
_NO_LATIN = regex.compile(r"(?V1)[\p{L}--\p{Latin}]")
_TOKEN_BREAK = re.compile(r"[^\w.'+]+|_+|(?<!\d)[.+]+|[.+]+(?!\d)|'+(?!\w)|(?<!\w)'+")
_TOKEN_BREAK_WIDE = re.compile("[\\s!-&(-*,\\-/:-@\\[-`{-~\u00a1-\u00bf\u2010-\u206f\u3000-\u303f\uff00-\uff0f]+")
_OTHERS = {"’": "'", "\u00ad": "", "\u200c": "", "\u200d": ""}  # soft hyphens and joiners part no word
_SEGMENT_BREAK = re.compile(r"\s+[-–—~|:]+\s+|[,;|()\[\]:★!]+|\s(?=with |for |by |w/)", re.IGNORECASE)
_PURPOSE = re.compile(r"\bfor ((?:[^\W\d_]|['-])+(?: (?:[^\W\d_]|['-])+){0,3})", re.IGNORECASE)
_FEATURE = re.compile(
    r"\bwith ((?>(?:[^\W\d_]|['-])+(?: (?!in mind)(?:[^\W\d_]|['-])+){0,2}))(?! in mind)", re.IGNORECASE
)
_INITIALS = re.compile(r"\b(?:[^\W\d_]\.){2,}(?:[^\W\d_]\b)?")  # e.l.f.
_ONE_OF = {"knives": "knife", "shelves": "shelf", "scarves": "scarf", "leaves": "leaf", "scissors": "scissors"}
_EMPTY_PURPOSES = {"use", "more", "example", "best results", "years", "sale", "over", "all", "every", "any", "one"}

_NEEDS = (
    *("something for {purpose}", "{type} for {purpose}", "good for {purpose}", "{attribute} {type} for {purpose}"),
    *("for {purpose} {attribute}", "something {attribute} for {purpose}", "{type} with {feature}", "{purpose} {type}"),
    *("something with {feature}", "{type} for {domain}", "{attribute} {type} for {domain}", "need {attribute} {type}"),
    *("something {attribute}", "looking for {attribute} {type}", "{type} {attribute} or similar", "looking for {any}"),
)
_QUESTIONS = (
    *("what is the best {type} for {purpose}", "which {type} is good for {purpose}", "what helps with {purpose}"),
    *("what {type} should i use for {purpose}", "is there a {type} with {feature}", "which {type} has {feature}"),
    *("can you recommend a {attribute} {type}", "do you have {attribute} {type}", "any {attribute} {type}"),
    *("where can i buy {brand} {type}", "does {brand} make {attribute} {type}", "what is a good {type} by {brand}"),
    *("how do i choose {attribute} {type}", "do you have {any}", "where can i buy {any}"),
)


class _Facts(NamedTuple):
    """What a query can say about one item; all in lower case."""

    title: list[str]  # words of the title, sizes and joining words too
    sized: list[bool]  # which of them are part of an amount
    content: list[int]  # positions of those that say something
    brand: str
    types: list[str]  # what the thing is called
    attributes: list[str]  # words of the title that are neither brand nor type
    purposes: list[str]  # what it is for
    features: list[str]  # what it comes with
    domains: list[str]  # names of wider categories
    english: bool  # whether an English phrase can be put around its words
    spaced: bool  # whether its words are words; else only neighbours are put together


def item_queries(
    stream: str, n: int, title: str, brand="", categories=(), description="", weights: Mapping[str, int] | None = None
) -> list[tuple[str, str]]:
    """At most `n` different (query, kind) of one item, in lower case.

    stream: names the random stream. The kinds take turns in a random order, those that the item has no words for are
    passed over; the first queries do not depend on n. An item without text has none, one with a single word has few.
    weights: turns of a kind in each round; 1 for kinds that are not named, 0 for none. Raises ValueError for an
    unknown kind, weights that are not whole numbers from 0 up, and if nothing is left.

    >>> item_queries("a", 4, "OPI Red Shatter Crackle Nail Polish", "OPI", [["Beauty", "Nails", "Nail Polish"]])[:3]
    [('shatter polish', 'words'), ('opi shatter crackle', 'brand_words'), ('shatter crackle nail', 'fragment')]
    """
    turns = _turns(weights or {})
    random, facts = Random(stream), _facts(title, brand, categories, description)
    if not facts.title and not facts.types:
        return []
    order = [kind for _, kind in sorted((random.random(), kind) for kind in turns)]
    found: dict[str, str] = {}
    attempt = idle = 0
    while len(found) < n and idle < 3 * len(order):  # many in a row with nothing new: there is no more to say
        kind = order[attempt % len(order)]
        query = _WRITERS[kind](random, facts)
        attempt, idle = attempt + 1, idle + 1
        if query and query not in found and any(map(str.isalnum, query)):
            found[query], idle = kind, 0
    return list(found.items())


def _turns(weights: Mapping[str, int]) -> list[str]:
    if unknown := set(weights) - set(KINDS):
        raise ValueError(f"weights has {sorted(unknown)}, expected some of {list(KINDS)}")
    if wrong := {kind: weight for kind, weight in weights.items() if not isinstance(weight, int) or weight < 0}:
        raise ValueError(f"weights are {wrong}, expected whole numbers from 0 up")
    turns = [kind for kind in KINDS for _ in range(weights.get(kind, 1))]
    if not turns:
        raise ValueError("all weights are 0, expected at least one kind")
    return turns


def words(text: str, n_characters: int = 1) -> list[str]:
    """The words of a text in lower case, without punctuation or mark-up characters; numbers keep their point.

    Hyphens part words, as most shoppers leave them out. In scripts without spaces each character, with its marks,
    counts as a word; n_characters = 2: each pair.

    >>> words("L'Oréal Long-Lasting 0.5 oz. Gel (SPF 30+)"), words("黑色 pen")
    (["l'oréal", 'long', 'lasting', '0.5', 'oz', 'gel', 'spf', '30'], ['黑', '色', 'pen'])
    """
    if "." in text:
        text = _INITIALS.sub(lambda initials: initials[0].replace(".", ""), text)
    if text.isascii():
        return [word for word in _TOKEN_BREAK.split(text.lower()) if word]
    # letters may come with marks that are not letters (Devanagari); symbols such as ★ and ™ are none, but NFKC says TM
    text = "".join(c if c.isascii() or unicodedata.category(c)[0] in "LMN" else _OTHERS.get(c, " ") for c in text)
    text = unicodedata.normalize("NFKC", text).lower()
    text = _CHARACTERS[n_characters].sub(r" \1 ", text)
    pieces = _TOKEN_BREAK_WIDE.split(text)
    found = [w for piece in pieces for w in (_TOKEN_BREAK.split(piece) if piece.isascii() else [piece.strip(".'+")])]
    return [word for word in found if any(map(str.isalnum, word))]


# --- what an item says ---

_units = partial(words, n_characters=2)  # the words of which queries are made


def _facts(title: str, brand: str, categories, description: str) -> _Facts:
    plain = plain_text(title)
    all_words = _units(plain)[:_FIRST_WORDS]
    brand_words = [] if brand.strip().lower() in _NO_BRAND else _units(plain_text(brand))
    sized = _sizes(all_words)
    content = [
        i for i, word in enumerate(all_words) if not sized[i] and word not in _JOINING and any(map(str.isalpha, word))
    ]
    names = [name for path in categories for name in path[-1:]]
    types = _types(names, plain, brand_words, all_words)
    taken = {_stem(word) for phrase in [*types, " ".join(brand_words)] for word in phrase.split()}
    attributes = [
        word
        for word in dict.fromkeys(all_words[i] for i in content)
        if _stem(word) not in taken and word not in _PACKING and (len(word) > 2 or not word.isascii())
    ]
    prose = plain
    if description:
        prose += " . " + plain_text(description)[:_FIRST_CHARACTERS]
    domains = [" ".join(_units(name)) for path in categories for name in path[1:-1]]
    return _Facts(
        *(all_words, sized, content, " ".join(brand_words), types, attributes),
        *(_phrases(_PURPOSE, prose), _phrases(_FEATURE, prose), [domain for domain in domains if domain]),
        *(_mostly_without(script, [*all_words, *" ".join(types).split()]) for script in (_NO_LATIN, _CHARACTERS[1])),
    )


def _mostly_without(letter: regex.Pattern, found: list[str]) -> bool:
    return sum(letter.search(word) is not None for word in found) <= len(found) / 2


def _sizes(tokens: list[str]) -> list[bool]:
    """Which words are part of an amount: 8 oz, 250ml, pack of 6, 1/2; the 30 of "spf 30" counts too."""
    sized = []
    for i, token in enumerate(tokens):
        number = token.rstrip("mlozgkcinftx")  # 250ml
        is_number = token[0].isdigit() and not any(map(str.isalpha, number))
        sized.append(is_number or (i > 0 and sized[-1] and (token in _UNITS or token in _PACKING)))
    return sized


def _types(names: list[str], title: str, brand_words: list[str], title_words: list[str]) -> list[str]:
    """What the thing is: parts of its category's name (those that the title speaks of, if any), the title's head."""
    title_stems = {_stem(word) for word in title_words}
    parts = [_units(part) for name in dict.fromkeys(names) for part in re.split(r"[,&/]| and ", name)]
    parts = [part for part in parts if part]
    spoken_of = [part for part in parts if _stem(part[-1]) in title_stems]
    phrases = [" ".join([*part[:-1], _singular(part[-1])]) for part in spoken_of or parts]
    head = _head(title, brand_words)
    return list(dict.fromkeys([*phrases, *([head] if head else [])]))


def _head(title: str, brand_words: list[str]) -> str:
    """The last words of the first stretch of a title that says more than the brand: "Uni Mechanical Pencil, Kuru"."""
    for segment in _SEGMENT_BREAK.split(title)[:4]:
        tokens = _units(segment)
        sized = _sizes(tokens)
        said = [
            token
            for token, size in zip(tokens, sized, strict=True)
            if not size and token not in _JOINING and token not in brand_words
            if not token.isdigit() and (token not in _PACKING or token in _PRODUCTS)
        ]
        if said:
            return _join(said[-2:])
    return ""


def _phrases(pattern: re.Pattern, prose: str) -> list[str]:
    """What stands after "for" or "with", up to the next joining word."""
    found = []
    for match in pattern.finditer(prose):
        phrase = []
        for word in _units(match[1]):
            if word in _JOINING and not (phrase == [] and word in ("your", "the", "a", "an")):
                break
            phrase += [] if word in _JOINING else [word]
        text = " ".join(phrase)
        if text and text not in _EMPTY_PURPOSES and phrase[-1] not in _PACKING:
            found.append(text)
    return list(dict.fromkeys(found))


def _singular(word: str) -> str:
    """One of it, in English and by rule.

    >>> [_singular(word) for word in ("brushes", "mascaras", "accessories", "glosses", "glass", "creams")]
    ['brush', 'mascara', 'accessory', 'gloss', 'glass', 'cream']
    """
    if word in _ONE_OF:
        return _ONE_OF[word]
    if len(word) < 4 or not word.endswith("s") or word.endswith(("ss", "us", "is")):
        return word
    if word.endswith("ies") and len(word) > 4:
        return word[:-3] + "y"
    return word[:-2] if word.endswith(("shes", "ches", "sses", "xes")) else word[:-1]


_stem = _singular  # enough to tell that two words are the same but for their number


# --- what a shopper writes ---


def _pick(random: Random, options):
    # only random() is promised to give the same numbers in every version of Python
    return options[int(random.random() * len(options))]


def _some(random: Random, positions: list[int], n: int, anywhere: bool = True) -> list[int]:
    """n of the positions, all if there are fewer, in their order; neighbours only if not `anywhere`."""
    if not anywhere:
        start = int(random.random() * max(1, len(positions) - n + 1))
        return positions[start : start + n]
    return sorted(position for _, position in sorted((random.random(), position) for position in positions)[:n])


def _join(parts: list[str]) -> str:
    text = " ".join(part for part in parts if part)
    return text if text.isascii() else _GAP.sub("", text)


def _fragment(random: Random, facts: _Facts) -> str:
    """Neighbouring words from one that says something on; no joining words at the ends, no half of an amount."""
    if not facts.content:
        return _join(facts.title[:3])
    start, length = _pick(random, facts.content), _pick(random, _LENGTHS)
    stop = min(start + length, len(facts.title))
    start = max(0, min(start, stop - length))  # at the end of the title: the words before it
    if stop < len(facts.title) and facts.sized[stop]:  # in the middle of an amount, or just before one
        while stop > start + 1 and facts.sized[stop - 1]:
            stop -= 1
    while stop > start + 1 and facts.title[stop - 1] in _JOINING:
        stop -= 1
    while start < stop - 1 and (facts.title[start] in _JOINING or facts.title[start] in _UNITS):
        start += 1
    return _join(facts.title[start:stop])


def _words(random: Random, facts: _Facts) -> str:
    keep = [i for i in facts.content if facts.title[i] not in _PACKING] or facts.content
    chosen = [facts.title[i] for i in _some(random, keep, _pick(random, _LENGTHS), facts.spaced)]
    return _join(list(dict.fromkeys(chosen)))


def _brand(random: Random, facts: _Facts) -> str:
    """The brand as it is typed: often without its apostrophe."""
    return facts.brand.replace("'", "") if random.random() < 0.5 else facts.brand


def _type(random: Random, facts: _Facts) -> str:
    return _pick(random, facts.types) if facts.types else ""


def _attributes(random: Random, facts: _Facts, most: int) -> str:
    chosen = _some(random, list(range(len(facts.attributes))), 1 + int(random.random() * most), facts.spaced)
    return _join([facts.attributes[i] for i in chosen])


def _brand_type(random: Random, facts: _Facts) -> str:
    type_, extra = _type(random, facts), _attributes(random, facts, 1) if random.random() < 0.3 else ""
    return _without_repeats(f"{_brand(random, facts)} {extra} {type_}") if facts.brand and type_ else ""


def _attribute_type(random: Random, facts: _Facts) -> str:
    type_, extra = _type(random, facts), _attributes(random, facts, 3)
    return _without_repeats(f"{extra} {type_}") if type_ and extra else ""


def _brand_words(random: Random, facts: _Facts) -> str:
    of_brand = set(facts.brand.split())
    rest = [i for i in facts.content if facts.title[i] not in of_brand and facts.title[i] not in _PACKING]
    chosen = [facts.title[i] for i in _some(random, rest, 1 + int(random.random() * 3), facts.spaced)]
    return _join([_brand(random, facts), *chosen]) if facts.brand and chosen else ""


def _written(random: Random, facts: _Facts, forms: tuple[str, ...]) -> str:
    """One of the English forms that the item has words for."""
    if not facts.english:
        return ""
    fields = {
        "purpose": facts.purposes,
        "feature": facts.features,
        "domain": facts.domains,
        "type": facts.types,
        "attribute": facts.attributes,
        "brand": [facts.brand] if facts.brand else [],
        "any": [*facts.types, _join(facts.title[:4])],
    }
    fields = {name: values for name, values in fields.items() if values}
    usable = [form for form in forms if all(name in fields for name in _FIELDS_OF[form])]
    # what an item is for says most; forms that fit any item are for those that say nothing of it
    telling = [form for form in usable if "purpose" in _FIELDS_OF[form] or "feature" in _FIELDS_OF[form]]
    form = _pick(random, telling if telling and random.random() < 0.6 else usable)
    chosen = {name: _pick(random, fields[name]) for name in _FIELDS_OF[form]}
    query = _without_repeats(form.format(**chosen))
    return query if set(query.split()) - set(form.split()) else ""  # what do you say of a thing called "do"?


_FIELDS_OF = {form: tuple(re.findall(r"{(\w+)}", form)) for form in (*_NEEDS, *_QUESTIONS)}


def _need(random: Random, facts: _Facts) -> str:
    return _written(random, facts, _NEEDS)


def _question(random: Random, facts: _Facts) -> str:
    return _written(random, facts, _QUESTIONS)


def _plain_query(random: Random, facts: _Facts) -> str:
    writer = _pick(random, (_fragment, _words, _brand_type, _attribute_type, _brand_words, _attribute_type))
    return writer(random, facts) or _fragment(random, facts)


def _typo(random: Random, facts: _Facts) -> str:
    parts = _plain_query(random, facts).split()
    # without spaces, the next character may belong to another word; marks, which are not alphabetic, belong to a letter
    long_parts = [
        i for i, part in enumerate(parts) if len(part) >= 4 and part.isalpha() and not _CHARACTERS[1].search(part)
    ]
    for i in _some(random, long_parts, 1 if len(parts) < 5 else 2):
        parts[i] = _slip(random, parts[i])
    return _join(parts) if long_parts else ""


def _slip(random: Random, word: str) -> str:
    """Two letters swapped, one left out or one doubled; never the first."""
    at = 1 + int(random.random() * (len(word) - 2))
    slips = [
        word[:at] + word[at + 1] + word[at] + word[at + 2 :],
        word[:at] + word[at + 1 :],
        word[: at + 1] + word[at:],
    ]
    return _pick(random, [slip for slip in slips if slip != word])


def _drop(random: Random, facts: _Facts) -> str:
    parts = _plain_query(random, facts).split()
    if len(parts) < 3:
        return ""
    del parts[int(random.random() * len(parts))]
    while len(parts) > 1 and parts[-1] in _JOINING:
        parts.pop()
    return _join(parts)


def _without_repeats(text: str) -> str:
    """Each word once: "nail polish polish", "something for for"."""
    return _join(list(dict.fromkeys(text.split())))


_WRITERS: dict[str, Callable[[Random, _Facts], str]] = {
    "fragment": _fragment,
    "words": _words,
    "brand_type": _brand_type,
    "attribute_type": _attribute_type,
    "brand_words": _brand_words,
    "need": _need,
    "question": _question,
    "typo": _typo,
    "drop": _drop,
}
