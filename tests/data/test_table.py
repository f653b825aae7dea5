"""The item table in batches: the same rows, types and errors as read at once, wherever a batch or a file ends."""

import datetime
import io
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import feather

from semid_lib.data import dataset, folder, readers, table

ROOT = Path(__file__).resolve().parents[2]
ITEMS = [
    {"item_id": 7, "title": "Red pen", "brand": None, "categories": [["Office", "Pens"]], "price": 2.5, "stock": 3},
    {"item_id": 2**62, "title": None, "brand": "Acme", "categories": None, "price": None, "stock": 0},
    {"item_id": -3, "title": "Ünï", "brand": "", "categories": [], "price": 1.0, "stock": 1},
    {"item_id": 1, "title": "Tent", "brand": "Acme", "categories": [["Camping"], ["Sale", "Tents"]], "stock": 9},
    {"item_id": 2, "title": "Mug", "brand": "Acme", "categories": [["Kitchen"]], "price": 4.0, "stock": 2},
]
SCHEMA = pa.schema(
    {"item_id": pa.int64(), "title": pa.string(), "brand": pa.string(), "price": pa.float64(), "stock": pa.int32()}
    | {"categories": pa.list_(pa.list_(pa.string()))}
)


def write(path, records, schema=SCHEMA):
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = pa.Table.from_pylist(records, schema=schema)
    pq.write_table(rows, path) if path.suffix == ".parquet" else feather.write_feather(rows, path)
    return path


def same(items, others):
    pd.testing.assert_frame_equal(items[sorted(items)], others[sorted(others)])
    assert items.to_dict("list").keys() == others.to_dict("list").keys()


@pytest.mark.parametrize("ending", ["parquet", "arrow"])
@pytest.mark.parametrize("size", [1, 2, 5, 100])
def test_a_table_is_the_same_in_batches_of_any_size_and_as_json_lines(tmp_path, monkeypatch, ending, size):
    folder.write_folder(tmp_path / "lines", [dict.fromkeys(SCHEMA.names) | item for item in ITEMS])
    path = write(tmp_path / "table" / f"items.{ending}", ITEMS)
    monkeypatch.setattr(readers, "BATCH", size)
    items = dataset.load(path.parent).items
    same(items, dataset.load(tmp_path / "lines").items)
    assert items["title"].tolist() == ["Red pen", "", "Ünï", "Tent", "Mug"]
    assert items["categories"].tolist()[2:4] == [[], [["Camping"], ["Sale", "Tents"]]]
    assert [len(batch) for batch in table.batches(path)] == [min(size, 5 - at) for at in range(0, 5, size)]


def test_a_folder_of_files_is_read_in_the_order_of_their_names(tmp_path):
    whole = tmp_path / "parts" / "items.parquet"
    write(whole / "part-1.parquet", ITEMS[3:])
    write(whole / "part-0.parquet", ITEMS[:3])
    (whole / "_SUCCESS").touch()
    one = write(tmp_path / "one" / "items.parquet", ITEMS)
    same(dataset.load(whole.parent).items, dataset.load(one.parent).items)
    assert dataset.load(whole.parent).fingerprint != dataset.load(one.parent).fingerprint
    before = dataset.load(whole.parent).fingerprint
    (whole / "part-1.parquet").rename(whole / "part-2.parquet")
    assert dataset.load(whole.parent).fingerprint != before
    folder.write_folder(whole.parent, [{"item_id": 1, "title": ""}], overwrite=True)
    assert [path.name for path in whole.parent.iterdir()] == ["items.jsonl.gz"]


def test_some_columns_are_read_and_the_others_are_not_even_checked(tmp_path):
    bad = [ITEMS[0] | {"categories": [[]]}, ITEMS[1]]
    path = write(tmp_path / "items.parquet", bad)
    shop = dataset.load(tmp_path, columns=["stock"])
    assert list(shop.items) == ["item_id", "title", "stock"]
    assert list(dataset.load(tmp_path, columns=[]).items) == ["item_id", "title"]
    with pytest.raises(ValueError, match=r"items\.parquet, row 1: categories is \[\[\]\], expected a list of paths"):
        list(table.batches(path))
    with pytest.raises(ValueError, match=r"items\.parquet has no column 'colour'"):
        dataset.load(tmp_path, columns=["colour"])
    path.unlink()
    folder.write_folder(tmp_path, ITEMS)
    same(dataset.load(tmp_path, columns=["stock"]).items, dataset.load(tmp_path).items[["item_id", "title", "stock"]])
    with pytest.raises(ValueError, match=r"items\.jsonl\.gz has no column 'colour'"):
        dataset.load(tmp_path, columns=["colour"])


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ({"item_id": [b"5"], "title": ["a"]}, r"part-0.parquet, row 1: item_id is b'5', expected an integer"),
        (
            {"item_id": ["A", "B", "B"], "title": ["a"] * 3},
            "part-0.parquet, row 3: item_id B occurs before, in part-0.parquet, row 2",
        ),
        ({"item_id": [5, 6, None], "title": ["a"] * 3}, "part-0.parquet, row 3: item_id is None, expected an integer"),
        ({"item_id": np.array([2**63], np.uint64), "title": ["a"]}, "row 1: item_id is 9223372036854775808, expected"),
        ({"item_id": [5, 6], "title": [["a"], ["b"]]}, r"row 1: title is \['a'\], expected a string or null"),
        ({"item_id": [4, 6, 8, 6], "title": ["a"] * 4}, "row 4: item_id 6 occurs before, in part-0.parquet, row 2"),
        ({"item_id": [9], "title": ["a"], "brand": [b"a"]}, r"row 1: brand is b'a', expected a string or null"),
        ({"item_id": [9], "name": ["a"]}, r"has no column 'title', expected one of \['item_id', 'name'\]"),
        ({"item_id": [], "title": []}, "is empty, expected at least one record"),
    ],
)
def test_bad_values_are_named_with_file_and_row(tmp_path, monkeypatch, rows, message):
    monkeypatch.setattr(readers, "BATCH", 2)
    whole = tmp_path / "items.parquet"
    whole.mkdir()
    pq.write_table(pa.table(rows), whole / "part-0.parquet")
    with pytest.raises(ValueError, match=message):
        dataset.load(tmp_path)


def test_files_that_do_not_belong_together_are_refused(tmp_path):
    whole = tmp_path / "items.parquet"
    write(whole / "a.parquet", ITEMS[:2])
    write(whole / "b.parquet", ITEMS[1:3])
    with pytest.raises(ValueError, match=rf"b.parquet, row 1: item_id {2**62} occurs before, in a.parquet, row 2"):
        dataset.load(tmp_path)
    pq.write_table(pa.table({"item_id": [5], "title": ["a"], "colour": ["red"]}), whole / "b.parquet")
    with pytest.raises(ValueError, match=r"b.parquet has columns .*colour.*, expected .* as in the first file"):
        dataset.load(tmp_path)
    (whole / "b.parquet").write_bytes((whole / "a.parquet").read_bytes()[:-20])
    with pytest.raises(ValueError, match=r"b.parquet cannot be read"):
        dataset.load(tmp_path)
    (whole / "b.parquet").unlink()
    (whole / "country=NL").mkdir()
    with pytest.raises(ValueError, match=r"holds .*country=NL.*, expected files that end in .parquet"):
        dataset.load(tmp_path)
    write(tmp_path / "items.arrow", ITEMS)
    with pytest.raises(ValueError, match=r"holds both items.arrow and items.parquet"):
        dataset.load(tmp_path)


def test_each_file_of_a_data_set_is_named(tmp_path):
    (tmp_path / "items.arrow").mkdir()
    names = ["items.arrow/part-0.arrow", "items.arrow/part-1.arrow", "queries_real.jsonl", "sequences.tsv.gz"]
    for name in [*names, "notes.txt", "items.arrow/_SUCCESS"]:
        (tmp_path / name).touch()
    assert folder.files_of(tmp_path) == [tmp_path / name for name in names]


TIME = datetime.datetime(2026, 1, 2, 3, 4)
REFUSED = {
    "number and text": ([3.5, None, "None"], "'price' is 3.5 in row 1 and 'None' in row 3: expected one type"),
    "lists of two depths": ([[["a"]], [], ["a"]], "'price' is [['a']] in row 1 and ['a'] in row 3"),
    "truth and number": ([True, 1], "'price' is True in row 1 and 1 in row 2"),
    "text and bytes": (["a", b"a"], "'price' is 'a' in row 1 and b'a' in row 2"),
    "date and time": ([TIME.date(), TIME], "in row 1 and datetime.datetime(2026, 1, 2, 3, 4) in row 2"),
    "records of two types": ([{}, {"a": 1}, {"a": "x"}], "{'a': 1} in row 2 and {'a': 'x'} in row 3"),
    "a float that would round an integer": ([0.5, 2**60], "0.5 in row 1 and 1152921504606846976 in row 2"),
    "beyond 64 bits": ([1, 2**63], "'price' is 9223372036854775808 in row 2, expected text, a number of 64 bits"),
    "half a character": (["a", "\ud800"], r"'price' is '\ud800' in row 2, expected text"),
    "a set": ([{1, 2}], "'price' is {1, 2} in row 1, expected text"),
    "records without names": ([None, {}], "which Parquet cannot hold"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_column_that_cannot_be_written_is_refused_with_its_rows_and_values(case):
    values, message = REFUSED[case]
    items = pd.DataFrame({"item_id": np.arange(len(values)), "price": pd.Series(values, dtype=object)})
    with pytest.raises(ValueError, match=re.escape(message)):
        table.arrow_table(items)


def test_column_names_are_text_and_occur_once_and_the_caller_says_how_a_row_is_called():
    with pytest.raises(ValueError, match="column name 'a' occurs twice: rename the column"):
        table.arrow_table(pd.DataFrame([[1, 2]], columns=["a", "a"]))
    with pytest.raises(ValueError, match="column name 3 is not text: rename the column"):
        table.arrow_table(pd.DataFrame([[1, 2]], columns=["a", 3]))
    with pytest.raises(ValueError, match="is 1 in line 2 of the file and 'b' in line 3 of the file"):
        table.arrow_table(pd.DataFrame({"a": [1, "b"]}), place=lambda row: f"line {row + 1} of the file")


SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.floats(), st.text(max_size=3), st.binary(max_size=2),
    st.dates(), st.datetimes(), st.decimals(allow_nan=False, allow_infinity=False, places=2),
)  # fmt: skip
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc"), inner), max_leaves=4
)


def like(value):
    """A value as it may be read back: without what is missing, numbers by their value."""
    if isinstance(value, dict):
        return {name: like(part) for name, part in value.items() if not missing(part)}
    if isinstance(value, list):
        return [like(part) for part in value]
    return None if missing(value) else value


def missing(value):
    return value is None or (isinstance(value, float) and np.isnan(value)) or (isinstance(value, dict) and not value)


@given(st.one_of(st.lists(VALUES, min_size=1, max_size=4), st.lists(SCALARS, min_size=1, max_size=4)))
def test_what_is_not_refused_can_be_written_and_is_read_back(values):
    file = io.BytesIO()
    try:
        found = table.arrow_table(pd.DataFrame({"x": pd.Series(values, dtype=object)}))
    except ValueError as error:
        assert str(error).startswith("column 'x' is ") and "row " in str(error)
        return
    pq.write_table(found, file)
    read = pq.read_table(file)["x"].to_pylist()
    # records with missing names come back with null there
    assert [like(like(value)) for value in read] == [like(like(value)) for value in values]


@pytest.mark.parametrize("value", ["[]", " [] ", "[null]", [None], "null", np.array([], dtype=object)])
def test_empty_lists_of_categories_are_no_path(value):
    assert table.category_paths(value) == []
    assert table.category_paths(["Office", None]) == table.category_paths('["Office", null]') == [["Office"]]
