"""Items by id, title, category and prefix, against the plain ways to find the same."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from semid_lib.data.item_ids import UnknownItemError
from semid_lib.decoding import rules
from semid_lib.decoding.trie import PrefixTrie
from semid_lib.ids.semantic_ids import SemanticIDs
from semid_lib.serving.http.item_index import Catalogue, UnknownError


@pytest.fixture
def catalogue(recommender_to_serve) -> Catalogue:
    return Catalogue(recommender_to_serve.items, recommender_to_serve.ids, recommender_to_serve.trie)


def test_an_item_is_described_in_plain_values(catalogue, shop):
    first, third = catalogue.describe(0), catalogue.describe(2)
    assert first["brand"] == "Ash" and catalogue.describe(1)["brand"] is None
    assert first["categories"] == [["Home", "Clocks"]] and third["categories"] == []
    assert first["price"] is None and "price" not in shop.items
    assert first["semantic_id"] == shop.ids.unique[0].tolist()


@pytest.mark.parametrize("names", [["home"], ["GARDEN", "gifts"], ["Rugs", "Rugs"]])
def test_categories_are_those_of_rules(catalogue, recommender_to_serve, names):
    np.testing.assert_array_equal(catalogue.allowed(names, [], []), rules.category(recommender_to_serve.items, *names))


def test_brands_are_those_of_rules_and_narrow_categories(catalogue, recommender_to_serve):
    items = recommender_to_serve.items
    np.testing.assert_array_equal(catalogue.allowed([], ["ASH"], []), rules.brand(items, "Ash"))
    both = rules.brand(items, "Ash") & rules.category(items, "Clocks")
    np.testing.assert_array_equal(catalogue.allowed(["Clocks"], ["Ash"], []), both)
    with pytest.raises(UnknownError, match="no item has the brand 'Birch': GET /catalogue lists"):
        catalogue.allowed([], ["Birch"], [])


def test_blocked_items_are_taken_out(catalogue, shop):
    blocked = shop.items["item_id"].tolist()[:3]
    assert catalogue.allowed([], [], []) is None
    np.testing.assert_array_equal(catalogue.allowed([], [], blocked), ~rules.items_with_ids(shop.items, blocked))
    assert not catalogue.allowed(["Clocks"], [], blocked)[0]
    with pytest.raises(UnknownError, match="no item has the category 'Boats'"):
        catalogue.allowed(["Boats"], [], [])
    with pytest.raises(UnknownItemError, match="blocked_items, position 1: item id 5 is not in the catalogue"):
        catalogue.allowed([], [], [blocked[0], 5])


def catalogue_of(**columns) -> Catalogue:
    """A catalogue with these columns, and a semantic ID for each row."""
    n = len(next(iter(columns.values())))
    items = pd.DataFrame({"item_id": range(n), "title": [f"item {row}" for row in range(n)]} | columns)
    ids = SemanticIDs.from_codes(np.arange(n)[:, None] // [4, 1] % 4, codebook_size=4)
    return Catalogue(items, ids, PrefixTrie.build(ids.unique))


def test_names_are_compared_as_unicode_reads_them():
    catalogue = catalogue_of(brand=["Cafe\u0301", "Caf\u00e9", "L&amp;S", "\uff21\uff22\uff23"])
    assert catalogue.with_brand.n_items == {"Cafe\u0301": 2, "\uff21\uff22\uff23": 1, "L&amp;S": 1}
    for name, rows in (("CAF\u00c9", [0, 1]), ("cafe\u0301", [0, 1]), ("l&s", [2]), ("L&amp;S", [2]), ("abc", [3])):
        assert np.flatnonzero(catalogue.allowed([], [name], [])).tolist() == rows


@given(st.lists(st.text(min_size=1, max_size=400), min_size=1, max_size=4))
def test_every_category_that_is_listed_is_found_by_its_name(names):
    catalogue = catalogue_of(categories=[[[name]] for name in names])
    for name, n_items in catalogue.with_category.n_items.items():
        assert catalogue.allowed([name], [], []).sum() == n_items


def test_prices_are_numbers_or_nothing():
    assert catalogue_of(price=[1, 2.5, np.inf, None]).prices == [1.0, 2.5, None, None]
    assert catalogue_of(price=["12.99", "$5", None, "nan"]).prices == [12.99, None, None, None]


@pytest.mark.parametrize("cell", ["Home > Rugs", "['Home', 'Rugs']", ["Home", "Rugs"], [["Home", "Rugs"]]])
def test_categories_in_any_form_are_one_path_as_in_rules(cell):
    cells = pd.Series([cell, None])
    catalogue = catalogue_of(categories=cells)
    assert catalogue.paths == [[["Home", "Rugs"]], []]
    masks = catalogue.allowed(["rugs"], [], []), rules.category(pd.DataFrame({"categories": cells}), "rugs")
    assert [mask.tolist() for mask in masks] == [[True, False]] * 2


def test_examples_are_large_categories_then_titles(catalogue):
    assert catalogue.example_queries == ["Clocks", "Garden", "Gifts", "item in row 0", "item in row 8"]
    titles = ["Red pen, fine (blue)", "Tent", "Tent", "!", "\u624b\u673a\u58f3"]
    assert catalogue_of(title=titles).example_queries == ["Red pen", "Tent", "\u624b\u673a\u58f3"]


def test_an_item_id_finds_its_item_first():
    catalogue = catalogue_of(item_id=["A/7", "B0-1", "-1", "x"], title=["Lamp A 7", "Lamp", "Lamp", "B0 1"])
    assert catalogue.find("A/7", 5) == [0] and catalogue.find(" -1 ", 5)[0] == 2
    assert catalogue.find("B0-1", 5) == [1, 3] and catalogue.find("B0-1", 1) == [1]


def test_the_words_of_a_query_are_found_in_all_that_an_item_shows(catalogue):
    assert catalogue.shared_words("an ash clock in rows, zebra", 0) == ["ash", "clock", "in"]
    assert catalogue.holds_word_of("zebra rugs") and not catalogue.holds_word_of("zebra")


def test_categories_are_listed_with_their_items(catalogue):
    assert catalogue.with_category.n_items == {"Home": 20, "Clocks": 10, "Garden": 10, "Gifts": 10, "Rugs": 10}


def test_neighbours_are_all_items_with_the_prefix_each_listed_once(catalogue, shop):
    unique = shop.ids.unique
    for row in range(40):
        groups = catalogue.neighbours(row, limit=50)
        expected, listed = [], {row}
        for depth in range(unique.shape[1] - 1, 0, -1):
            same = set(np.flatnonzero((unique[:, :depth] == unique[row, :depth]).all(axis=1)).tolist())
            if same - listed:
                expected.append((tuple(unique[row, :depth].tolist()), len(same) - 1, same - listed))
            listed |= same
        assert [(group.codes, group.n_items, set(group.rows.tolist())) for group in groups] == expected


def test_few_neighbours_are_taken_where_many_are(catalogue):
    for row in range(40):
        everything = catalogue.neighbours(row, limit=50)
        for some, group in zip(catalogue.neighbours(row, limit=2), everything, strict=True):
            assert len(some.rows) == min(2, len(group.rows)) and set(some.rows.tolist()) <= set(group.rows.tolist())


def test_the_shared_prefix_is_the_longest_and_latest(catalogue, shop):
    unique, history = shop.ids.unique, np.arange(20)
    for row in range(40):
        lengths = [int(np.cumprod(unique[seen] == unique[row]).sum()) for seen in history]
        shared = catalogue.shared_prefix(row, history)
        if max(lengths):
            assert shared.n_codes == max(lengths)
            assert shared.row == max(at for at, length in enumerate(lengths) if length == max(lengths))
        else:
            assert shared is None
    assert catalogue.shared_prefix(0, history[:0]) is None
