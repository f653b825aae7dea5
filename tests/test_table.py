"""The item table in batches: the same rows, types and errors as read at once, wherever a batch or a file ends."""

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow import feather

from semid_lib import data, folder, table

ROOT = Path(__file__).resolve().parent.parent
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
    monkeypatch.setattr(table, "_BATCH", size)
    items = data.load(path.parent).items
    same(items, data.load(tmp_path / "lines").items)
    assert items["title"].tolist() == ["Red pen", "", "Ünï", "Tent", "Mug"]
    assert items["categories"].tolist()[2:4] == [[], [["Camping"], ["Sale", "Tents"]]]
    assert [len(batch) for batch in table.batches(path)] == [min(size, 5 - at) for at in range(0, 5, size)]


def test_a_folder_of_files_is_read_in_the_order_of_their_names(tmp_path):
    whole = tmp_path / "parts" / "items.parquet"
    write(whole / "part-1.parquet", ITEMS[3:])
    write(whole / "part-0.parquet", ITEMS[:3])
    (whole / "_SUCCESS").touch()
    one = write(tmp_path / "one" / "items.parquet", ITEMS)
    same(data.load(whole.parent).items, data.load(one.parent).items)
    assert data.load(whole.parent).fingerprint != data.load(one.parent).fingerprint
    before = data.load(whole.parent).fingerprint
    (whole / "part-1.parquet").rename(whole / "part-2.parquet")
    assert data.load(whole.parent).fingerprint != before
    folder.write_folder(whole.parent, [{"item_id": 1, "title": ""}], overwrite=True)
    assert [path.name for path in whole.parent.iterdir()] == ["items.jsonl.gz"]


def test_some_columns_are_read_and_the_others_are_not_even_checked(tmp_path):
    bad = [ITEMS[0] | {"categories": [[]]}, ITEMS[1]]
    path = write(tmp_path / "items.parquet", bad)
    shop = data.load(tmp_path, columns=["stock"])
    assert list(shop.items) == ["item_id", "title", "stock"]
    assert list(data.load(tmp_path, columns=[]).items) == ["item_id", "title"]
    with pytest.raises(ValueError, match=r"items\.parquet, row 1: categories is \[\[\]\], expected a list of paths"):
        list(table.batches(path))
    with pytest.raises(ValueError, match=r"items\.parquet has columns .*, expected also 'colour'"):
        data.load(tmp_path, columns=["colour"])
    path.unlink()
    folder.write_folder(tmp_path, ITEMS)
    same(data.load(tmp_path, columns=["stock"]).items, data.load(tmp_path).items[["item_id", "title", "stock"]])
    with pytest.raises(ValueError, match=r"items\.jsonl\.gz has fields .*, expected also 'colour'"):
        data.load(tmp_path, columns=["colour"])


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ({"item_id": [b"5"], "title": ["a"]}, r"part-0.parquet, row 1: item_id is b'5', expected an integer"),
        ({"item_id": ["A", "B", "B"], "title": ["a"] * 3}, "part-0.parquet, row 3: item_id B occurs before, in row 2"),
        ({"item_id": [5, 6, None], "title": ["a"] * 3}, "part-0.parquet, row 3: item_id is None, expected an integer"),
        ({"item_id": np.array([2**63], np.uint64), "title": ["a"]}, "row 1: item_id is 9223372036854775808, expected"),
        ({"item_id": [5, 6], "title": [["a"], ["b"]]}, r"row 1: title is \['a'\], expected a string or null"),
        ({"item_id": [4, 6, 8, 6], "title": ["a"] * 4}, "row 4: item_id 6 occurs before, in row 2"),
        ({"item_id": [9], "title": ["a"], "brand": [b"a"]}, r"row 1: brand is b'a', expected a string or null"),
        ({"item_id": [9], "name": ["a"]}, r"has columns \['item_id', 'name'\], expected also 'title'"),
        ({"item_id": [], "title": []}, "is empty, expected at least one record"),
    ],
)
def test_bad_values_are_named_with_file_and_row(tmp_path, monkeypatch, rows, message):
    monkeypatch.setattr(table, "_BATCH", 2)
    whole = tmp_path / "items.parquet"
    whole.mkdir()
    pq.write_table(pa.table(rows), whole / "part-0.parquet")
    with pytest.raises(ValueError, match=message):
        data.load(tmp_path)


def test_files_that_do_not_belong_together_are_refused(tmp_path):
    whole = tmp_path / "items.parquet"
    write(whole / "a.parquet", ITEMS[:2])
    write(whole / "b.parquet", ITEMS[1:3])
    with pytest.raises(ValueError, match=rf"b.parquet, row 1: item_id {2**62} occurs before, in a.parquet, row 2"):
        data.load(tmp_path)
    pq.write_table(pa.table({"item_id": [5], "title": ["a"], "colour": ["red"]}), whole / "b.parquet")
    with pytest.raises(ValueError, match=r"b.parquet has columns .*colour.*, expected those of a.parquet"):
        data.load(tmp_path)
    (whole / "b.parquet").write_bytes((whole / "a.parquet").read_bytes()[:-20])
    with pytest.raises(ValueError, match=r"b.parquet is not a Parquet file that can be read"):
        data.load(tmp_path)
    (whole / "b.parquet").unlink()
    (whole / "country=NL").mkdir()
    with pytest.raises(ValueError, match=r"holds .*country=NL.*, expected files that end in .parquet"):
        data.load(tmp_path)
    write(tmp_path / "items.arrow", ITEMS)
    with pytest.raises(ValueError, match=r"holds both items.arrow and items.parquet"):
        data.load(tmp_path)


def test_each_file_of_a_data_set_is_named(tmp_path):
    (tmp_path / "items.arrow").mkdir()
    names = ["items.arrow/part-0.arrow", "items.arrow/part-1.arrow", "queries_real.jsonl", "sequences.tsv.gz"]
    for name in [*names, "notes.txt", "items.arrow/_SUCCESS"]:
        (tmp_path / name).touch()
    assert folder.files_of(tmp_path) == [tmp_path / name for name in names]
