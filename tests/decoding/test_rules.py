"""Business rules against plain loops over the table, and what must not pass in silence."""

import unicodedata

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


@pytest.fixture(scope="module")
def demo():
    return dataset.load("demo").items


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


def test_flat_lists_and_missing_categories():
    items = pd.DataFrame({"categories": [["Home", "Rugs"], None, [], float("nan")]})
    assert rows(rules.category(items, "rugs")) == [0]


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


# --- single items, single shoppers ---


def test_allow_and_block_lists_by_external_id():
    assert rows(rules.items_with_ids(ITEMS, [20, 30, 20])) == [0, 2]
    assert rows(~rules.items_with_ids(ITEMS, {40})) == [0, 1, 2]
    assert (
        rows(rules.items_with_ids(ITEMS, np.array([], dtype=np.int64))) == rows(rules.items_with_ids(ITEMS, [])) == []
    )


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


# --- bad input ---


def of(column, *cells):
    return pd.DataFrame({column: pd.Series(cells, dtype=object)})


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (lambda: rules.category(ITEMS, "Home", "Clock"), "no item has the category 'Clock'.*'Clocks', 'Wall Clocks'"),
        (lambda: rules.category(ITEMS, ["Home"]), "no item has the category"),
        (lambda: rules.category(of("categories", [], []), "Home"), "the closest of 0: nothing"),
        (
            lambda: rules.category(of("categories", [["Home"]], 3), "Home"),
            "row 1: categories is 3, expected a list",
        ),
        (lambda: rules.brand(ITEMS, "ash", "Brich"), "no item has the brand 'Brich', the closest of 3: 'Birch'"),
        (lambda: rules.brand(of("brand", "a", ["a"]), "a"), r"'brand' holds \['a'\], expected text or numbers"),
        (lambda: rules.brand(of("title", "a"), "a"), "no column 'brand', but 'title'"),
        (lambda: rules.price(of("price", 5, "$12.99"), high=9), r"'price' holds '\$12.99', expected numbers"),
        (lambda: rules.price(of("title", "a")), "no column 'price', but 'title'"),
        (lambda: rules.price(ITEMS, high="5"), "a bound of price is '5', expected a number or None"),
        (lambda: rules.price(ITEMS, 9, 5), "low <= high"),
        (lambda: rules.price(ITEMS, float("nan")), "low <= high"),
        (lambda: rules.items_with_ids(ITEMS, [10, 11]), "item id 11 is not in the catalogue"),
        (lambda: rules.items_with_ids(ITEMS, [10.0]), "expected an integer or text"),
        (lambda: rules.items_with_ids(ITEMS, "A"), "item_ids is 'A', expected a list"),
        (lambda: rules.items_with_ids(ITEMS, 10), "item_ids is 10, expected a list"),
    ],
)
def test_bad_input_is_named_with_what_was_expected(rule, message):
    with pytest.raises(ValueError, match=message):
        rule()
