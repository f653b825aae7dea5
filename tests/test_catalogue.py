"""Items by id, title, category and prefix, against the plain ways to find the same."""

import numpy as np
import pytest

from semid_lib import rules
from semid_lib.catalogue import Catalogue, UnknownError


@pytest.fixture
def catalogue(recommender_to_serve) -> Catalogue:
    return Catalogue(recommender_to_serve.items, recommender_to_serve.ids, recommender_to_serve.trie)


def test_rows_are_those_of_the_table(catalogue, shop):
    ids = shop.items["item_id"].tolist()
    assert catalogue.rows(ids[::-1]).tolist() == list(range(39, -1, -1))
    assert catalogue.rows([]).dtype == np.int64
    with pytest.raises(UnknownError, match="item id 5 at position 1"):
        catalogue.rows([ids[0], 5])


def test_an_item_is_described_in_plain_values(catalogue, shop):
    first, third = catalogue.describe(0), catalogue.describe(2)
    assert first["brand"] == "Ash" and catalogue.describe(1)["brand"] is None
    assert first["categories"] == [["Home", "Clocks"]] and third["categories"] == []
    assert first["semantic_id"] == shop.ids.unique[0].tolist()


@pytest.mark.parametrize("names", [["home"], ["GARDEN", "gifts"], ["Rugs", "Rugs"]])
def test_categories_are_those_of_rules(catalogue, recommender_to_serve, names):
    np.testing.assert_array_equal(catalogue.allowed(names, []), rules.category(recommender_to_serve.items, *names))


def test_blocked_items_are_taken_out(catalogue, shop):
    blocked = shop.items["item_id"].tolist()[:3]
    assert catalogue.allowed([], []) is None
    np.testing.assert_array_equal(catalogue.allowed([], blocked), ~rules.items_with_ids(shop.items, blocked))
    assert not catalogue.allowed(["Clocks"], blocked)[0]
    with pytest.raises(UnknownError, match="'Boats'"):
        catalogue.allowed(["Boats"], [])


def test_categories_are_listed_with_their_items(catalogue):
    assert catalogue.category_names == {"Home": 20, "Clocks": 10, "Garden": 10, "Gifts": 10, "Rugs": 10}


def test_titles_are_found_by_all_words_and_beginnings_first(catalogue):
    found = [catalogue.titles[row] for row in catalogue.find("ROW item 3", limit=50)]
    assert found[0] == "item in row 3" and len(found) == 13  # 3, 13, 23 and 30 to 39
    assert catalogue.find("zebra", 5) == catalogue.find("  ", 5) == []
    assert len(catalogue.find("item", 7)) == 7


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
