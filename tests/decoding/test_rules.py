"""Business rules against plain loops over the table, and what must not pass in silence."""

import os
import unicodedata
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from semid_lib.data import dataset
from semid_lib.decoding import rules

ITEMS = pd.DataFrame(
    {
        "item_id": [30, 10, 20, 40],
        "brand": ["Ash", "Birch", "ash", ""],
        "price": [12.0, None, 20.0, 7.5],
        "categories": [[["Home", "Clocks"]], [], [["Gifts"], ["Home", "Wall Clocks"]], [["Garden", "Clocks"]]],
    }
)
REAL = pytest.mark.skipif("SEMID_DATA" not in os.environ, reason="SEMID_DATA does not name the folder of the real data")


@pytest.fixture(scope="module")
def demo():
    return dataset.load("demo").items


def real(name):
    return dataset.load(Path(__file__).parents[2] / os.environ["SEMID_DATA"] / name).items


def rows(mask):
    assert mask.dtype == bool
    assert mask.ndim == 1
    return np.flatnonzero(mask).tolist()


# --- categories and brands ---


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["Home"], [0, 2]),
        (["Clocks"], [0, 3]),  # a whole name: not "Wall Clocks"
        (["wall CLOCKS"], [2]),
        (["Gifts", "Garden"], [2, 3]),
        ([], []),
    ],
)
def test_a_category_is_a_whole_name_in_any_path(names, expected):
    assert rows(rules.category(ITEMS, *names)) == expected


def test_two_categories_together_tell_equal_names_apart():
    assert rows(rules.category(ITEMS, "Garden") & rules.category(ITEMS, "Clocks")) == [3]


def test_a_table_from_parquet_gives_the_same_categories(demo, tmp_path):
    demo.to_parquet(tmp_path / "items.parquet")
    again = pd.read_parquet(tmp_path / "items.parquet")
    assert type(again["categories"][0]) is not list
    np.testing.assert_array_equal(rules.category(again, "Camping"), rules.category(demo, "Camping"))


def test_flat_lists_and_missing_categories():
    items = pd.DataFrame({"categories": [["Home", "Rugs"], None, [], float("nan")]})
    assert rows(rules.category(items, "rugs")) == [0]


@pytest.mark.parametrize("paths", [3, [3], [b"Home"], {"Home": 1}, [[]]])
def test_what_is_no_category_path_is_named_with_its_row(paths):
    items = pd.DataFrame({"categories": [[["Home"]], paths]})
    with pytest.raises(ValueError, match=r"item row 1: categories is .*, expected a list of paths"):
        rules.category(items, "Home")


@pytest.mark.parametrize("one", ["Caf\u00e9", "Cafe\u0301", "CAF\u00c9", "Ｃａｆ\u00e9", "Caf&eacute;", "Café™"])
def test_spellings_of_one_name_are_one(one):
    other = "Cafe\u0301"
    items = pd.DataFrame({"brand": [one, other, "Cafe"], "categories": [[["Home", one]], [[other]], [["Cafe"]]]})
    for name in (one, other):
        assert rows(rules.brand(items, name)) == rows(rules.category(items, name)) == [0, 1]


@given(st.text(min_size=1, max_size=12))
def test_composed_and_decomposed_names_are_one(name):
    forms = [unicodedata.normalize(form, name) for form in ("NFC", "NFD")]
    items = pd.DataFrame({"brand": [*forms, name + "x"], "categories": [[[form]] for form in [*forms, name + "x"]]})
    for form in forms:
        assert rows(rules.brand(items, form)) == rows(rules.category(items, form)) == [0, 1]


def test_brands_whatever_the_case():
    assert rows(rules.brand(ITEMS, "ASH")) == [0, 2]
    assert rows(rules.brand(ITEMS, "Ash", "birch")) == [0, 1, 2]
    assert rows(~rules.brand(ITEMS, "Ash")) == [1, 3]


@pytest.mark.parametrize(
    ("rule", "wanted", "closest"),
    [(rules.category, "Clock", "'Clocks', 'Wall Clocks'"), (rules.brand, "Brich", "of 3: 'Birch'")],
)
def test_a_name_that_no_item_has_is_named_with_the_closest(rule, wanted, closest):
    with pytest.raises(ValueError, match=rf"{wanted}.*{closest}"):
        rule(ITEMS, "ash" if rule is rules.brand else "Home", wanted)


@pytest.mark.parametrize("wanted", [["Home", "Clocks"], ("Home",), None, 3])
def test_what_is_no_name_is_no_category(wanted):
    with pytest.raises(ValueError, match="no item has the category"):
        rules.category(ITEMS, wanted)


def test_without_any_category_the_message_says_so():
    with pytest.raises(ValueError, match="no item has the category 'Home', the closest of 0: nothing"):
        rules.category(pd.DataFrame({"categories": [[], []]}), "Home")


def test_one_of_takes_numbers_too_and_skips_what_is_missing():
    items = pd.DataFrame({"year": [2012, 2014, None, 2012]})
    assert rows(rules.one_of(items, "year", 2012)) == [0, 3]
    with pytest.raises(ValueError, match=r"no item has the year 2013, .*2012.*"):
        rules.one_of(items, "year", 2013)
    with pytest.raises(ValueError, match="no item has the colour None, the closest of 1: 'red'"):
        rules.one_of(pd.DataFrame({"colour": pd.Series(["red", None], dtype=object)}), "colour", None)


def test_one_of_keeps_text_and_numbers_apart():
    items = pd.DataFrame({"size": pd.Series(["7", 7, 7.5, "XL", b"XL", None, pd.NA, ("a", "b")], dtype=object)})
    assert rows(rules.one_of(items, "size", "7")) == [0]
    assert rows(rules.one_of(items, "size", 7.0, "xl")) == [1, 3]
    assert rows(rules.one_of(items, "size", b"XL", ("a", "b"))) == [4, 7]
    with pytest.raises(ValueError, match=r"no item has the size .7\.5., the closest of 6: 7\.5"):
        rules.one_of(items, "size", "7.5")


@pytest.mark.parametrize("cell", [["a"], {"a": 1}, np.array(["a"])])
def test_one_of_refuses_a_column_of_lists(cell):
    with pytest.raises(ValueError, match=r"'brand' holds .*, expected text or numbers"):
        rules.brand(pd.DataFrame({"brand": ["a", cell]}), "a")


# --- numbers ---


def test_prices_include_both_ends_and_never_what_has_none():
    assert rows(rules.price(ITEMS)) == [0, 2, 3]
    assert rows(rules.price(ITEMS, low=12)) == [0, 2]
    assert rows(rules.price(ITEMS, high=12)) == [0, 3]
    assert rows(rules.price(ITEMS, low=8, high=20)) == [0, 2]
    assert rows(~rules.price(ITEMS, high=12)) == [1, 2]  # what has no price, too


numbers = st.one_of(st.none(), st.integers(-3, 3), st.floats(-3, 3), st.just(float("nan")))


@given(st.lists(numbers, max_size=8), st.sampled_from([None, "object", "Float64"]), st.floats(-3, 0), st.floats(0, 3))
def test_between_equals_a_loop(cells, dtype, low, high):
    items = pd.DataFrame({"stock": pd.Series(cells, dtype=dtype)})
    expected = [row for row, cell in enumerate(cells) if cell is not None and low <= cell <= high]
    assert rows(rules.between(items, "stock", low, high)) == expected


def test_what_is_in_stock_counted_or_marked():
    items = pd.DataFrame({"stock": [3, 0, 1], "marked": [True, False, True], "some": [True, None, False]})
    assert rows(rules.between(items, "stock", low=1)) == rows(rules.between(items, "marked", low=1)) == [0, 2]
    assert rows(rules.between(items, "some", low=1)) == [0]


@pytest.mark.parametrize("cells", [["5", "7"], ["$12.99", None], [5, "7"], [[5], 7]])
def test_prices_that_are_no_numbers_are_refused_and_shown(cells):
    with pytest.raises(ValueError, match=r"'price' holds .*, expected numbers"):
        rules.price(pd.DataFrame({"price": cells}), high=9)


def test_text_of_csv_becomes_a_price_as_the_message_says(tmp_path):
    (tmp_path / "items.csv").write_text("item_id,title,price\n1,Soap,5\n2,Rug,\n3,Clock,7.5\n")
    items = dataset.load(tmp_path).items
    with pytest.raises(ValueError, match="expected numbers"):
        rules.price(items, high=6)
    assert rows(rules.price(items.assign(price=pd.to_numeric(items["price"])), high=6)) == [0]


@pytest.mark.parametrize("bound", ["5", [5], pd.NA])
def test_a_bound_is_a_number(bound):
    with pytest.raises(ValueError, match=r"a bound of price is .*, expected a number or None"):
        rules.price(ITEMS, high=bound)


@pytest.mark.parametrize("bounds", [(9, 5), (float("nan"), 5), (5, float("nan")), (float("nan"), None)])
def test_bounds_that_hold_nothing_are_refused(bounds):
    with pytest.raises(ValueError, match="low <= high"):
        rules.price(ITEMS, *bounds)


@pytest.mark.parametrize(
    "rule", [rules.price, lambda items: rules.brand(items, "a"), lambda items: rules.category(items, "a")]
)
def test_a_column_that_is_missing_is_named_with_those_that_exist(rule):
    with pytest.raises(ValueError, match=r"no column '(price|brand|categories)', but 'item_id', 'title'"):
        rule(pd.DataFrame({"item_id": [1], "title": ["Soap"]}))


# --- single items, single shoppers ---


def test_allow_and_block_lists_by_external_id():
    assert rows(rules.items_with_ids(ITEMS, [20, 30, 20])) == [0, 2]
    assert rows(~rules.items_with_ids(ITEMS, {40})) == [0, 1, 2]
    assert (
        rows(rules.items_with_ids(ITEMS, np.array([], dtype=np.int64))) == rows(rules.items_with_ids(ITEMS, [])) == []
    )


@pytest.mark.parametrize("ids", [[10, 11], [-1], np.array([True, False, True, False]), [10.0], ["A"]])
def test_ids_that_no_item_has_are_refused(ids):
    with pytest.raises(ValueError, match=r"item id (11|-1|'A') is not in the catalogue|expected an integer or text"):
        rules.items_with_ids(ITEMS, ids)


@pytest.mark.parametrize("ids", ["A", b"A", 10, None])
def test_one_id_instead_of_several_is_refused(ids):
    with pytest.raises(ValueError, match=f"item_ids is {ids!r}, expected a list"):
        rules.items_with_ids(ITEMS, ids)


def test_seen_marks_the_rows_of_each_history():
    histories = dataset.Histories.from_lists([[3, 0, 3], [], [1]])
    expected = [[True, False, False, True], [False] * 4, [False, True, False, False]]
    assert rules.seen(histories, 4).tolist() == rules.seen(list(histories), 4).tolist() == expected
    assert rules.seen([], 4).shape == (0, 4)


@pytest.mark.parametrize("history", [[0, 4], [-1], [0.5], [True, False], 2, None, "0", [[0]], [0, [1]]])
def test_a_history_that_holds_no_item_rows_is_named(history):
    with pytest.raises(
        ValueError, match=r"history 1 (is|holds) .*, expected (0 to 3|integer item rows|a list of items)"
    ):
        rules.seen([[2], history], 4)


def test_rules_for_all_and_rules_for_each_compose():
    mask = rules.price(ITEMS, high=15) & ~rules.seen([[0], [2], []], len(ITEMS))
    assert mask.shape == (3, 4)
    assert [rows(each) for each in mask] == [[3], [0, 3], [0, 3]]


# --- whole shops ---


def test_the_demo_shop_by_a_loop(demo):
    mask = rules.category(demo, "camping", "Garden") & rules.price(demo, 20, 60) & ~rules.one_of(demo, "style", "bold")
    expected = [
        row
        for row, item in enumerate(demo.to_dict("records"))
        if item["categories"][0][1] in ("Camping", "Garden") and 20 <= item["price"] <= 60 and item["style"] != "bold"
    ]
    assert rows(mask) == expected
    assert 0 < len(expected) < len(demo)
    assert rules.category(demo, "Merrowdale").all()  # the root of all paths


@pytest.mark.parametrize("rule", [rules.brand, rules.category])
def test_the_names_of_the_demo_shop_part_it(demo, rule):
    names = demo["brand"].unique() if rule is rules.brand else {paths[0][-1] for paths in demo["categories"]}
    np.testing.assert_array_equal(sum(rule(demo, name).astype(int) for name in names), 1)


@REAL
def test_real_catalogues():
    beauty, office = real("beauty"), real("office")
    paths = beauty["categories"]
    expected = np.array([any("Makeup" in path for path in item) for item in paths])
    np.testing.assert_array_equal(rules.category(beauty, "makeup"), expected)
    np.testing.assert_array_equal(rules.brand(beauty, "opi"), beauty["brand"].str.lower() == "opi")
    assert (~rules.brand(beauty, "")).sum() == 10_003  # as the description of the data says
    with pytest.raises(ValueError, match=r"no column 'price', but .*'brand'"):
        rules.price(beauty, high=20)
    with pytest.raises(ValueError, match="closest of 0: nothing"):
        rules.category(office, "Paper")
    assert rules.brand(office, "hp").sum() == (office["brand"].str.casefold() == "hp").sum() > 0
