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


# --- single items ---


def test_allow_and_block_lists_by_external_id():
    assert rows(rules.items_with_ids(ITEMS, [20, 30, 20])) == [0, 2]
    assert rows(~rules.items_with_ids(ITEMS, {40})) == [0, 1, 2]
    assert (
        rows(rules.items_with_ids(ITEMS, np.array([], dtype=np.int64))) == rows(rules.items_with_ids(ITEMS, [])) == []
    )


# --- whole shops ---


def test_the_demo_shop_by_a_loop(demo):
    makers = demo["brand"].unique()[:3]
    mask = rules.category(demo, "camping", "Garden") & ~rules.brand(demo, *makers)
    expected = [
        row
        for row, item in enumerate(demo.to_dict("records"))
        if item["categories"][0][1] in ("Camping", "Garden") and item["brand"] not in makers
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
        (lambda: rules.brand(of("brand", "a", ["a"]), "a"), r"'brand' holds \['a'\], expected text"),
        (lambda: rules.brand(of("brand", "a", 7), "a"), "'brand' holds 7, expected text"),
        (lambda: rules.brand(of("title", "a"), "a"), "no column 'brand', but 'title'"),
        (lambda: rules.items_with_ids(ITEMS, [10, 11]), "item id 11 is not in the catalogue"),
        (lambda: rules.items_with_ids(ITEMS, [10.0]), "expected an integer or text"),
        (lambda: rules.items_with_ids(ITEMS, "A"), "item_ids is 'A', expected a list"),
        (lambda: rules.items_with_ids(ITEMS, 10), "item_ids is 10, expected a list"),
    ],
)
def test_bad_input_is_named_with_what_was_expected(rule, message):
    with pytest.raises(ValueError, match=message):
        rule()
