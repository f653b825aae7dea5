"""The demo shop: its files, and whether what was planted is there and as hard to find as it should be."""

import gzip
import itertools
import json
from collections import Counter

import numpy as np
import pytest

from semid_lib.data import demo_shop

FILES = ("items.jsonl.gz", "sequences.tsv.gz", "timestamps.tsv.gz", "queries_demo.jsonl.gz")
SMALL = {"n_items": 300, "n_users": 60, "n_queries": 30}


@pytest.fixture(scope="module")
def shop():
    return demo_shop.demo_shop()


def _bytes(folder):
    return [(folder / name).read_bytes() for name in FILES]


def _recall_at_10(shop, scores_of):
    """Leave-one-out against all items, the history left out; scores_of takes a user id and a history."""
    hits = []
    for user_id, items in shop.sequences:
        *history, target = items
        scores = np.array(scores_of(user_id, history), dtype=float)
        scores[np.array(history) - 1] = -np.inf
        hits.append((scores > scores[target - 1]).sum() < 10)
    return np.mean(hits)


def test_files_are_the_same_twice_and_differ_by_seed(tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        demo_shop.write_demo_shop(tmp_path / name, **SMALL, seed=seed)
    a, b, c = (_bytes(tmp_path / name) for name in "abc")
    assert a == b
    assert all(first != second for first, second in zip(a, c, strict=True))


def test_files_hold_the_records(tmp_path):
    demo_shop.write_demo_shop(tmp_path, **SMALL)
    shop = demo_shop.demo_shop(**SMALL)
    items, sequences, timestamps, queries = (gzip.decompress(data).decode().splitlines() for data in _bytes(tmp_path))
    assert [json.loads(line) for line in items] == shop.items
    assert [json.loads(line) for line in queries] == shop.queries
    for lines, records in ((sequences, shop.sequences), (timestamps, shop.timestamps)):
        rows = [line.split("\t") for line in lines]
        assert [(int(user), [int(value) for value in values.split(" ")]) for user, values in rows] == records


def test_parts_do_not_disturb_each_other():
    few = demo_shop.demo_shop(**SMALL)
    more = demo_shop.demo_shop(**{**SMALL, "n_users": 90, "n_queries": 40})
    assert more.items == few.items
    assert more.sequences[:60] == few.sequences
    assert more.timestamps[:60] == few.timestamps
    assert more.queries[:30] == few.queries


@pytest.mark.parametrize("bad", [{"n_items": 99}, {"n_users": -1}, {"n_queries": -1}, {"seed": -1}])
def test_bad_counts_are_named(bad):
    ((name, value),) = bad.items()
    with pytest.raises(ValueError, match=f"{name} is {value}, expected"):
        demo_shop.demo_shop(**bad)


def test_too_many_queries_for_a_small_catalogue():
    with pytest.raises(ValueError, match="n_queries is 6000, expected at most"):
        demo_shop.demo_shop(n_items=100, n_users=0, n_queries=6000)


def test_items_are_complete_and_distinct(shop):
    assert [item["item_id"] for item in shop.items] == list(range(1, 2001))
    titles = [item["title"] for item in shop.items]
    assert len(set(titles)) == 2000
    assert all(4 <= len(title.split()) <= 10 for title in titles)
    assert sum(item["description"] == "" for item in shop.items) == 3
    assert all(item["price"] > 0 for item in shop.items)
    assert {item["brand"] for item in shop.items} == set(demo_shop.BRANDS)
    assert {item["categories"][0][2] for item in shop.items} == set(demo_shop.PRODUCT_TYPES)
    assert {len(item["categories"][0]) for item in shop.items} == {3}


def test_text_reads_well(shop):
    for item in shop.items:
        text = item["description"]
        assert not set("{}|") & set(text + item["title"]), text
        assert text == "" or 2 <= sum(text.count(mark) for mark in ".?") <= 5, text
        words = f"{item['title']} . {text}".lower().replace(",", " ,").split()
        assert all(first != second for first, second in itertools.pairwise(words)), words
        for article, word in itertools.pairwise(words):
            assert not (article == "a" and word[0] in "aei"), (article, word)
            assert not (article == "an" and word[0] not in "aeiou18"), (article, word)


def test_style_is_not_a_label_but_shows_in_the_words(shop):
    assert np.mean([item["style"] in item["title"].lower() for item in shop.items]) < 0.01
    words = {style: Counter() for style in demo_shop.STYLES}
    for item in shop.items[:1000]:
        words[item["style"]].update(item["title"].lower().replace(",", "").split())
    held_out = shop.items[1000:]
    guesses = [max(words, key=lambda s: _likelihood(words[s], item["title"])) for item in held_out]
    accuracy = np.mean([guess == item["style"] for guess, item in zip(guesses, held_out, strict=True)])
    assert 0.5 < accuracy < 0.98  # by chance 0.125


def _likelihood(counts, title):
    total = counts.total() + 1000
    return sum(np.log((counts[word] + 0.5) / total) for word in title.lower().replace(",", "").split())


def test_product_lines_are_near_duplicates(shop):
    sizes = Counter(shop.truth.item_line.tolist())
    assert 0.1 < np.mean([sizes[line] > 1 for line in shop.truth.item_line.tolist()]) < 0.4
    line = next(line for line, size in sizes.items() if size > 1)
    members = [shop.items[row] for row in np.flatnonzero(shop.truth.item_line == line)]
    assert len({item["brand"] for item in members}) == len({item["categories"][0][2] for item in members}) == 1


def test_histories_are_valid(shop):
    lengths = [len(items) for _, items in shop.sequences]
    assert [user_id for user_id, _ in shop.sequences] == list(range(1, 2001))
    assert min(lengths) == 5 and max(lengths) <= 40 and 8.5 < np.mean(lengths) < 10.5
    for (user_id, items), (same_user, times) in zip(shop.sequences, shop.timestamps, strict=True):
        assert user_id == same_user and len(items) == len(times)
        assert len(set(items)) == len(items) and min(items) >= 1 and max(items) <= 2000
        assert times == sorted(times)
        assert times[0] - 1_672_531_200 >= 0 and times[-1] - times[0] <= 2 * 365 * 86_400


def _neighbours(shop):
    pairs = [pair for _, items in shop.sequences for pair in itertools.pairwise(items)]
    return np.array(pairs).T - 1


@pytest.mark.parametrize(
    "field, at_least, by_chance", [("department", 0.7, 0.2), ("style", 0.35, 0.2), ("brand", 0.15, 0.06)]
)
def test_neighbours_share(shop, field, at_least, by_chance):
    values = getattr(shop.truth, f"item_{field}")
    first, second = _neighbours(shop)
    shuffled = np.random.default_rng(0).permutation(second)
    assert np.mean(values[first] == values[second]) > at_least
    assert np.mean(values[first] == values[shuffled]) < by_chance


def test_complements_follow(shop):
    first, second = _neighbours(shop)
    types = shop.truth.item_type
    is_complement = shop.truth.complements >= sorted(set(shop.truth.complements.ravel()))[-3]
    shuffled = np.random.default_rng(0).permutation(second)
    assert np.mean(is_complement[types[first], types[second]]) > 0.5
    assert np.mean(is_complement[types[first], types[shuffled]]) < 0.12


def test_popularity_does_badly_and_item_knn_clearly_better(shop):
    counts = np.zeros(2000)
    together = np.zeros((2000, 2000), dtype=np.float32)
    for _, items in shop.sequences:
        rows = np.array(items[:-2]) - 1
        counts[rows] += 1
        together[np.ix_(rows, rows)] += 1
    cosine = together / np.sqrt(np.outer(counts.clip(1), counts.clip(1)))
    popularity = _recall_at_10(shop, lambda _, history: counts)
    item_knn = _recall_at_10(
        shop, lambda _, history: 0.5 ** np.arange(len(history))[::-1] @ cosine[np.array(history) - 1]
    )
    assert 0.005 < popularity < 0.04
    assert 0.08 < item_knn < 0.22


def test_the_oracle_is_clearly_better_still(shop):
    few = shop._replace(sequences=shop.sequences[:600])
    oracle = _recall_at_10(few, lambda u, history: demo_shop.next_item_probabilities(shop.truth, u, history))
    assert 0.28 < oracle < 0.5


def test_next_item_probabilities_need_a_history(shop):
    with pytest.raises(ValueError, match="history is empty"):
        demo_shop.next_item_probabilities(shop.truth, 1, [])


def _satisfies(item, constraints):
    """The constraints read from the item's public record, without the module's own index."""
    facts = {
        **item["attributes"],
        "brand": item["brand"],
        "style": item["style"],
        "type": item["categories"][0][2],
    }
    title = item["title"].lower().replace(",", "").split()
    for name, value in constraints.items():
        if name == "max_price":
            holds = item["price"] <= value
        elif name == "title_words":
            holds = set(value) <= set(title)
        elif name == "feature":
            holds = value in facts["features"].split(", ")
        else:
            holds = facts.get(name) == value
        if not holds:
            return False
    return True


def test_queries_name_exactly_the_items_that_satisfy_them(shop):
    assert len({query["query"] for query in shop.queries}) == len(shop.queries) == 300
    for query in shop.queries:
        expected = [item["item_id"] for item in shop.items if _satisfies(item, query["constraints"])]
        assert query["item_ids"] == expected
        assert 1 <= len(expected) <= 20


def test_query_kinds(shop):
    assert Counter(query["kind"] for query in shop.queries) == dict.fromkeys(demo_shop.QUERY_KINDS, 50)
    singular = {kind.label: kind.name for kind in demo_shop._KINDS}
    for query in shop.queries:
        text, kind, constraints = query["query"], query["kind"], query["constraints"]
        if kind == "need":
            names = (constraints["type"].lower(), singular[constraints["type"]])
            assert not any(f" {name} " in f" {text} ".replace(",", " ") for name in names), text
        elif kind == "typo":
            assert text != query["meant"]
        elif kind == "style":
            assert constraints["style"] not in text
        elif kind == "title":
            assert constraints["title_words"] == text.split()
