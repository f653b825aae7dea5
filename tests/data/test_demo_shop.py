"""The demo shop: its files, and whether its structure can be found and is as hard to find as it should be."""

import itertools
from collections import Counter

import numpy as np
import pytest

from semid_lib.data import dataset, demo_shop
from semid_lib.data.demo_shop import items, queries

SMALL = {"n_items": 300, "n_users": 60, "n_queries": 30}


@pytest.fixture(scope="module")
def shop():
    return demo_shop.demo_shop(n_items=600, n_users=200, n_queries=60)


def test_published_rows_were_measured_on_these_bytes():
    assert dataset.load("demo").fingerprint == "e28c454ead344661270ccccf819727546e78c1b14a05b976a649ae26738a3efc"


def test_files_hold_the_records_and_differ_by_seed(tmp_path):
    made = demo_shop.demo_shop(**SMALL)
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        demo_shop.write_demo_shop(tmp_path / name, **SMALL, seed=seed)
    a, b, c = ([path.read_bytes() for path in sorted((tmp_path / name).iterdir())] for name in "abc")
    assert a == b and not set(a) & set(c)
    loaded = dataset.load(tmp_path / "a")
    assert loaded.items.to_dict("records") == made.items
    assert loaded.histories.times.tolist() == [time for _, times in made.timestamps for time in times]
    assert [loaded.item_ids.at(rows).tolist() for rows in loaded.histories] == [ids for _, ids in made.sequences]
    assert loaded.queries["query"].tolist() == [query["query"] for query in made.queries]


def test_parts_do_not_disturb_each_other():
    few = demo_shop.demo_shop(**SMALL)
    more = demo_shop.demo_shop(**{**SMALL, "n_users": 90, "n_queries": 40})
    assert more.items == few.items
    assert (more.sequences[:60], more.timestamps[:60], more.queries[:30]) == few[1:]


def test_too_many_queries_for_a_small_catalogue(monkeypatch):
    monkeypatch.setattr(queries, "_MAX_RELEVANT", 0)
    with pytest.raises(ValueError, match="n_queries is 6, expected at most 0 for 100 items"):
        demo_shop.demo_shop(n_items=100, n_users=0, n_queries=6)


def test_items_are_complete_and_read_well(shop):
    titles = [item["title"] for item in shop.items]
    assert len(set(titles)) == 600 and all(4 <= len(title.split()) <= 10 for title in titles)
    assert sum(item["description"] == "" for item in shop.items) == 3
    assert {item["brand"] for item in shop.items} == {brand.name for brand in items.BRANDS}
    assert {item["categories"][0][2] for item in shop.items} == {product.label for product in items.PRODUCTS}
    for item in shop.items:
        text = f"{item['title']} . {item['description']}"
        assert item["price"] > 0 and not set("{}|") & set(text), text
        words = text.lower().replace(",", " ,").split()
        for first, second in itertools.pairwise(words):
            assert first != second, text
            assert not (first == "a" and second[0] in "aei") and not (first == "an" and second[0] not in "aeiou18"), (
                text
            )


def test_histories_are_valid(shop):
    lengths = [len(ids) for _, ids in shop.sequences]
    assert [user_id for user_id, _ in shop.sequences] == list(range(1, 201))
    assert min(lengths) == 5 and max(lengths) <= 40 and 8.5 < np.mean(lengths) < 10.5
    for (user_id, ids), (same_user, times) in zip(shop.sequences, shop.timestamps, strict=True):
        assert user_id == same_user and len(ids) == len(times) == len(set(ids)) and set(ids) <= set(range(1, 601))
        assert times == sorted(times) and times[0] >= 1_672_531_200 and times[-1] - times[0] <= 2 * 365 * 86_400


def satisfies(item, constraints) -> bool:
    """The constraints read from the item's record, without the module's own index."""
    facts = item["attributes"] | {"brand": item["brand"], "style": item["style"], "type": item["categories"][0][2]}
    checks = {
        "max_price": lambda value: item["price"] <= value,
        "title_words": lambda value: set(value) <= set(item["title"].lower().replace(",", "").split()),
        "feature": lambda value: value in facts["features"].split(", "),
    }
    return all(
        checks[name](value) if name in checks else facts.get(name) == value for name, value in constraints.items()
    )


def test_queries_name_exactly_the_items_that_satisfy_them(shop):
    assert len({query["query"] for query in shop.queries}) == 60
    assert Counter(query["kind"] for query in shop.queries) == dict.fromkeys(queries.QUERY_KINDS, 10)
    singular = {product.label: product.name for product in items.PRODUCTS}
    for query in shop.queries:
        text, kind, constraints = query["query"], query["kind"], query["constraints"]
        assert query["item_ids"] == [item["item_id"] for item in shop.items if satisfies(item, constraints)]
        assert 1 <= len(query["item_ids"]) <= 20
        if kind == "need":
            names = (constraints["type"].lower(), singular[constraints["type"]])
            assert not any(f" {name} " in f" {text} ".replace(",", " ") for name in names), text
        assert kind != "typo" or text != query["meant"]
        assert kind != "style" or constraints["style"] not in text
        assert kind != "title" or constraints["title_words"] == text.split()
