"""The shop's own item ids to rows and back."""

from decimal import Decimal
from uuid import UUID

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from semid_lib.data.item_ids import ItemIds, UnknownItemError, read_ids

INTEGERS = st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=8, unique=True)
TEXTS = st.lists(st.text(min_size=1, max_size=6), min_size=1, max_size=8, unique=True)


@given(st.one_of(INTEGERS, TEXTS), st.data())
def test_ids_and_rows_are_inverse(values, drawn):
    ids = ItemIds(pd.DataFrame({"item_id": values}))
    rows = drawn.draw(st.lists(st.integers(0, len(values) - 1), max_size=10))
    asked = [values[row] for row in rows]
    assert ids.rows(asked).tolist() == ids.rows([str(one) for one in asked]).tolist() == rows
    assert ids.at(np.array([*rows, -1])).tolist() == [*asked, None]
    assert ids.at(np.array(rows, dtype=int).reshape(-1, 1)).shape == (len(rows), 1)


@given(INTEGERS)
def test_ids_in_json_survive_a_browser(values):
    shown = ItemIds(pd.DataFrame({"item_id": values})).for_json
    assert [int(value) for value in shown] == values
    assert all(isinstance(value, str) or int(float(value)) == value for value in shown)
    assert len({type(value) for value in shown}) == 1


@pytest.mark.parametrize(
    ("item_id", "message"),
    [
        (9, "item id 9 is not in the catalogue"),
        ("007", "item id '007' is not in the catalogue"),
        ("1_0", "item id '1_0' is not in the catalogue"),
        (1.0, r"item id 1\.0, expected an integer or text"),
        (None, "item id None, expected an integer or text"),
        (True, "item id True, expected an integer or text"),
        (pd.NA, "item id <NA>, expected an integer or text"),
        ("", "item id '', expected an integer or text"),
        ([1], r"item id \[1\], expected an integer or text"),
    ],
)
def test_what_names_no_item_is_refused_with_its_place(item_id, message):
    ids = ItemIds(pd.DataFrame({"item_id": [7, -1, 10]}))
    with pytest.raises(UnknownItemError, match=rf"^history 3, position 1: {message}"):
        ids.rows([7, item_id], "history 3")
    with pytest.raises(ValueError, match=message):
        ids.row(item_id)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([7, 8, 7], "item_id 7 occurs twice: remove one row"),
        (["A", "B", "A"], "item_id A occurs twice"),
        ([1.5, 2.0], r"item_id is 1\.5, expected an integer or text"),
        (["A", None], "item_id is (None|nan), expected an integer or text"),
        ([b"A"], "item_id is b'A', expected an integer or text"),
    ],
)
def test_columns_of_ids_that_cannot_be_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        ItemIds(pd.DataFrame({"item_id": values}))


@pytest.mark.parametrize(
    ("values", "ids"),
    [
        ([Decimal("7"), Decimal("-8"), None], [7, -8, None]),
        ([UUID(int=7), UUID(int=8)], ["00000000-0000-0000-0000-000000000007", "00000000-0000-0000-0000-000000000008"]),
        ([2**63 - 1, -(2**63)], [2**63 - 1, -(2**63)]),
        ([2**63, 7], ["9223372036854775808", "7"]),
        ([Decimal(10**30), None], [str(10**30), None]),
    ],
)
def test_ids_of_databases_are_integers_in_64_bits_or_text(values, ids):
    def fail(at, problem):
        raise ValueError(f"row {at + 1}: {problem}")

    assert read_ids(pd.Series(values, dtype=object), fail) == ids
    with pytest.raises(ValueError, match=r"row 2: Decimal\('7\.5'\), expected an integer or text"):
        read_ids(pd.Series([1, Decimal("7.5")], dtype=object), fail)


def test_removed_items_are_left_out_of_rows_and_unknown_otherwise():
    ids = ItemIds(pd.DataFrame({"item_id": [7, 9]}), removed=[8])
    assert ids.rows([9, 8, "8", 7]).tolist() == [1, 0]
    with pytest.raises(UnknownItemError, match="item id 8 is not in the catalogue"):
        ids.row(8)
    with pytest.raises(UnknownItemError, match="position 1: item id 6"):
        ids.rows([8, 6])
