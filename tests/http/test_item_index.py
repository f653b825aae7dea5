"""Items by id, title, category and prefix, against the plain ways to find the same."""

import numpy as np
import pandas as pd
import pytest

from semid_lib.data.item_ids import UnknownItemError
from semid_lib.decoding import rules
from semid_lib.decoding.trie import PrefixTrie
from semid_lib.ids.semantic_ids import SemanticIDs
from semid_lib.serving.http.item_index import ItemIndex, UnknownError


@pytest.fixture
def index(recommender_to_serve) -> ItemIndex:
    return ItemIndex(recommender_to_serve.items, recommender_to_serve.ids, recommender_to_serve.trie)


def index_of(**columns) -> ItemIndex:
    """An index of items with these columns, and a semantic ID for each row."""
    n = len(next(iter(columns.values())))
    items = pd.DataFrame({"item_id": range(n), "title": [f"item {row}" for row in range(n)]} | columns)
    ids = SemanticIDs.from_codes(np.arange(n)[:, None] // [4, 1] % 4, codebook_size=4)
    return ItemIndex(items, ids, PrefixTrie.build(ids.unique))


def test_an_item_is_described_in_plain_values(index, shop):
    assert index.describe(0) == {
        "item_id": shop.items["item_id"].tolist()[0],
        "title": "item in row 0",
        "brand": "Ash",
        "categories": [["Home", "Clocks"]],
        "price": None,
        "semantic_id": shop.ids.unique[0].tolist(),
    }
    assert index.describe(1)["brand"] is None and index.describe(2)["categories"] == []
    for prices, expected in (
        ([1, 2.5, np.inf, None], [1.0, 2.5, None, None]),
        (["12.99", "$5", None, "nan"], [12.99, None, None, None]),
    ):
        priced = index_of(price=prices)
        assert [priced.describe(row)["price"] for row in range(4)] == expected


def test_allowed_items_are_those_of_rules(index, recommender_to_serve):
    items, (first, *others) = recommender_to_serve.items, recommender_to_serve.items["item_id"].tolist()[:3]
    assert index.allowed([], [], []) is None
    for names in (["home"], ["GARDEN", "gifts"], ["Rugs", "Rugs"]):
        np.testing.assert_array_equal(index.allowed(names, [], []), rules.category(items, *names))
    expected = rules.brand(items, "Ash") & rules.category(items, "Clocks") & ~rules.items_with_ids(items, [first])
    np.testing.assert_array_equal(index.allowed(["Clocks"], ["ASH"], [first]), expected)
    with pytest.raises(UnknownError, match="no item has the brand 'Birch': GET /catalogue lists"):
        index.allowed([], ["Birch"], others)
    with pytest.raises(UnknownItemError, match="blocked_items, position 1: item id 5 is not in the catalogue"):
        index.allowed([], [], [first, 5])


def test_names_are_compared_as_unicode_reads_them():
    index = index_of(brand=["Cafe\u0301", "Caf\u00e9", "L&amp;S", "\uff21\uff22\uff23"])
    assert index.brands.n_items == {"Cafe\u0301": 2, "\uff21\uff22\uff23": 1, "L&amp;S": 1}
    for name, rows in (("CAF\u00c9", [0, 1]), ("cafe\u0301", [0, 1]), ("l&s", [2]), ("L&amp;S", [2]), ("abc", [3])):
        assert np.flatnonzero(index.allowed([], [name], [])).tolist() == rows


@pytest.mark.parametrize("cell", ["Home > Rugs", "['Home', 'Rugs']", ["Home", "Rugs"], [["Home", "Rugs"]]])
def test_categories_in_any_form_are_one_path(cell):
    index = index_of(categories=pd.Series([cell, None]))
    assert [index.describe(row)["categories"] for row in (0, 1)] == [[["Home", "Rugs"]], []]
    assert index.allowed(["rugs"], [], []).tolist() == [True, False]


def test_examples_are_large_categories_then_titles(index):
    assert index.example_queries == ["Clocks", "Garden", "Gifts", "item in row 0", "item in row 8"]
    titles = ["Red pen, fine (blue)", "Tent", "Tent", "!", "\u624b\u673a\u58f3"]
    assert index_of(title=titles).example_queries == ["Red pen", "Tent", "\u624b\u673a\u58f3"]


def test_an_item_id_finds_its_item_first():
    index = index_of(item_id=["A/7", "B0-1", "-1", "x"], title=["Lamp A 7", "Lamp", "Lamp", "B0 1"])
    assert index.find("A/7", 5) == [0] and index.find(" -1 ", 5)[0] == 2
    assert index.find("B0-1", 5) == [1, 3] and index.find("B0-1", 1) == [1]


def test_the_words_of_a_query_are_found_in_all_that_an_item_shows(index):
    assert index.matched_words(0, "an ash clock in rows, zebra") == ["ash", "clock", "in"]
    assert index.knows_word_of("zebra rugs") and not index.knows_word_of("zebra")


def test_neighbours_are_all_items_with_the_prefix_each_listed_once(index, shop):
    unique, row_of = shop.ids.unique, index.item_ids.row
    for row in range(0, 40, 3):
        groups, few = index.neighbours(row, limit=50), index.neighbours(row, limit=2)
        expected, listed = [], {row}
        for depth in range(unique.shape[1] - 1, 0, -1):
            same = set(np.flatnonzero((unique[:, :depth] == unique[row, :depth]).all(axis=1)).tolist())
            if same - listed:
                expected.append((unique[row, :depth].tolist(), len(same) - 1, same - listed))
            listed |= same
        rows = [{row_of(item["item_id"]) for item in group["items"]} for group in groups]
        assert [(one["prefix"], one["n_items"], found) for one, found in zip(groups, rows, strict=True)] == expected
        for some, found in zip(few, rows, strict=True):
            some_rows = {row_of(item["item_id"]) for item in some["items"]}
            assert len(some["items"]) == min(2, len(found)) and some_rows <= found


def test_the_shared_prefix_is_the_longest_and_latest(index, shop):
    unique, history = shop.ids.unique, np.arange(20)
    for row in range(40):
        lengths = [int(np.cumprod(unique[seen] == unique[row]).sum()) for seen in history]
        why = index.why(row, history)
        if max(lengths):
            latest = max(at for at, length in enumerate(lengths) if length == max(lengths))
            assert (index.item_ids.row(why["item_id"]), why["shared_codes"]) == (latest, max(lengths))
        else:
            assert why is None
    assert index.why(0, history[:0]) is None
