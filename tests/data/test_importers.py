"""Importing tables and raw Amazon dumps; the products are invented."""

import gzip
import json

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from kills import killed_at

from semid_lib.data import dataset as data
from semid_lib.data import folder
from semid_lib.data.importers import import_amazon, import_table
from semid_lib.data.importers.values import number
from semid_lib.data.importers.writing import k_core_positions
from semid_lib.workbench import atomic


def jsonl(*records: dict) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


def histories(dataset: data.Dataset) -> dict[str, list[int | str]]:
    """User id -> item ids."""
    users = zip(dataset.histories.user_ids, dataset.histories, strict=True)
    return {user: dataset.item_ids.at(rows).tolist() for user, rows in users}


@pytest.fixture
def table(tmp_path):
    """Write and import tables: table(items, orders, **options) -> the data set and the report."""

    def run(items, orders=None, name="i.csv", **options):
        for content, path in ((items, tmp_path / name), (orders, tmp_path / "o.csv")):
            if content is not None:
                path.write_bytes(content if isinstance(content, bytes) else content.encode())
        if orders is not None:
            options["interactions"] = tmp_path / "o.csv"
        report = import_table(tmp_path / name, tmp_path / "out", overwrite=True, **options)
        return data.load(tmp_path / "out"), report

    return run


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), max_size=40), st.integers(0, 4))
def test_k_core_is_the_largest_part_with_enough(pairs, k):
    users, items = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
    left = list(range(len(pairs)))
    while poor := [p for p in left if min(list(one[left]).count(one[p]) for one in (users, items)) < k]:
        left.remove(poor[0])
    assert k_core_positions(users, items, k).tolist() == left


# --- tables ---

SHOP = """sku,name,maker,kind,text,price,brand
A-1,Red lipstick,Aurora,Make-up > Lips,Long lasting,9.50,x
A-2,Soap,,"[[""Bath"", ""Soap""], [""Gifts""]]",,3,y
A-3,,Brook,,,,
"""
ORDERS = """customer,product,when,shop
ann,A-2,2024-01-02,1
bob,A-1,2024-01-05,1
ann,A-1,2024-01-01T12:00:00Z,1
ann,A-2,2024-01-02,2
"""


def test_a_table_with_named_columns(table):
    columns = {"title": "name", "brand": "maker", "categories": "kind", "description": "text"}
    loaded, report = table(SHOP, ORDERS, **columns, interaction_item_id="product", timestamp="when")
    assert loaded.items.to_dict("list") == {
        "item_id": ["A-1", "A-2", "A-3"],
        "title": ["Red lipstick", "Soap", ""],
        "brand": ["Aurora", "", "Brook"],
        "description": ["Long lasting", "", ""],
        "categories": [[["Make-up", "Lips"]], [["Bath", "Soap"], ["Gifts"]], []],
        "price": [9.5, 3, None],
        "source_brand": ["x", "y", ""],
    }
    assert histories(loaded) == {"ann": ["A-1", "A-2", "A-2"], "bob": ["A-1"]}
    assert loaded.histories.times.tolist() == [1704110400, 1704153600, 1704153600, 1704412800]
    assert report.counts == {"items": 3, "interactions": 4, "n_items": 3, "n_users": 2, "n_interactions": 4} | {
        f"interactions_{name}": 0
        for name in ("without_customer", "without_product", "without_when", "with_unknown_item", "outside_k_core")
    }
    assert "n interactions                    4" in str(report)


@pytest.mark.parametrize("missing", [None, float("nan")])
def test_parquet_with_missing_values(tmp_path, missing):
    when = {"released": pd.Timestamp("2024-01-02").date(), "sizes": [1.5, float("nan")]}
    items = {"item_id": [30, 10], "title": ["Soap", None], "tags": [["Bath", "Soap"], None], "extra": [when, when]}
    pd.DataFrame(items).assign(added=pd.Timestamp("2024-01-01")).to_parquet(tmp_path / "i.parquet")
    orders = {
        "user_id": pa.array([5.0, missing, 6.0, 5.0, 5.0], pa.float64(), from_pandas=False),
        "item_id": pa.array([10, 10, None, 30, 30], pa.int64()),
        "at": pa.array([1.5e12, 1.4e12, 1.4e12, missing, 1.4e12], pa.float64(), from_pandas=False),
    }
    pq.write_table(pa.table(orders), tmp_path / "o.parquet")
    columns = {"categories": "tags", "interactions": tmp_path / "o.parquet", "timestamp": "at"}
    report = import_table(tmp_path / "i.parquet", tmp_path / "out", **columns)
    loaded = data.load(tmp_path / "out")
    assert histories(loaded) == {"5": [30, 10]}
    assert [report.counts[f"interactions_without_{name}"] for name in orders] == [1, 1, 1]
    first = {"item_id": 30, "title": "Soap", "categories": [["Bath", "Soap"]], "added": "2024-01-01 00:00:00"}
    assert loaded.items.iloc[0].to_dict() == first | {"extra": {"released": "2024-01-02", "sizes": [1.5, None]}}
    assert loaded.items.iloc[1][["title", "categories"]].tolist() == ["", []]


def test_unknown_items_are_an_error_or_counted(table):
    orders = "user_id,sku\nann,A-1\n,A-1\nbob,\nbob,A-9\nann,A-2\nbob,A-1\n"
    with pytest.raises(ValueError, match=r"o\.csv, line 5: item 'A-9' is unknown.*--unknown-items drop"):
        table(SHOP, orders)
    loaded, report = table(SHOP, orders, unknown_items="drop")
    assert histories(loaded) == {"ann": ["A-1", "A-2"], "bob": ["A-1"]} and loaded.histories.times is None
    names = ("without_user_id", "without_sku", "with_unknown_item")
    assert [report.counts[f"interactions_{name}"] for name in names] == [1, 1, 1]


def test_a_k_core_keeps_only_its_items(table):
    orders = "user_id,sku\na,A-2\na,A-3\nb,A-2\nb,A-3\nb,A-1\n"
    loaded, report = table(SHOP, orders, k_core=2)
    assert histories(loaded) == {"a": ["A-2", "A-3"], "b": ["A-2", "A-3"]}
    assert loaded.items["item_id"].tolist() == ["A-2", "A-3"]
    assert report.counts["interactions_outside_k_core"] == report.counts["items_outside_k_core"] == 1


BAD_TABLES = [
    ({"title": "Name"}, r"i\.csv has no column 'Name', expected one of \['sku', 'name'"),
    ({"items": "code,name\n1,2\n"}, r"i\.csv has columns \['code', 'name'\], none for item_id: name it"),
    ({"orders": "user_id,item\n1,2\n"}, r"o\.csv has no column 'sku', expected one of \['user_id', 'item'\]"),
    ({"items": "sku,name\nA,a\nB,b\nA,c\n"}, r"i\.csv, line 4: sku A occurs before, in i\.csv, line 2"),
    ({"items": "sku,name\nA,a\n,b\n"}, r"i\.csv, line 3: no 'sku', expected an item id"),
    ({"items": "sku,name,kind\nA,a,[1]\n", "categories": "kind"}, r"line 2: column 'kind': '\[1\]', expected a list"),
    ({"orders": "user_id,sku,t\nu,A-1,2024-01-01\nu,A-1,soon\n"}, r"o\.csv, line 3: column 't': time 'soon', expected"),
    (
        {"orders": "user_id,sku,t\nu,A-1,1400000000\nu,A-1,1400000000000\n"},
        r"o\.csv, line 3: column 't': time 1400000000000, expected Unix seconds as",
    ),
    (
        {"orders": 'user_id,sku\n"a\tb",A-1\n', "timestamp": ""},
        r"line 2: column 'user_id': 'a\\tb', expected an integer or text",
    ),
    ({"orders": "user_id,sku,t\nu,,5\n"}, "no interaction is left"),
    (
        {"items": "sku,name,brand,source_brand\nA,a,b,c\n", "brand": ""},
        "column 'brand' would be kept as 'source_brand', expected that name to be",
    ),
    ({"unknown_items": "keep"}, "unknown_items is 'keep'"),
    ({"decimal": "x"}, "decimal is 'x'"),
    ({"k_core": 5}, "k_core is 5, expected 0 without interactions"),
    ({"items": jsonl({"sku": "A", "name": {"en": "Soap"}}), "name": "i.jsonl"}, r"i\.jsonl, line 1: column 'name': .*"),
]


@pytest.mark.parametrize(("asked", "message"), BAD_TABLES)
def test_bad_tables(table, tmp_path, asked, message):
    times = {"timestamp": "t"} if "orders" in asked and ",t\n" in asked["orders"] else {}
    with pytest.raises(ValueError, match=message):
        table(**{"items": SHOP, **times, **asked})
    with pytest.raises(ValueError, match=r"nowhere\.csv is not a file"):
        import_table(tmp_path / "nowhere.csv", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_obvious_columns_are_taken_and_reported(table):
    items = "SKU,Name,Brand,Price,Category,Colour\nA-1,Cafe\u0301 L&amp;S,Cafe\u0301,3.50,Office > Pens,red\n"
    loaded, report = table(items, "Customer,SKU,Created at\nann,A-1,2024-01-02\n")
    assert loaded.items.iloc[0].to_dict() == {
        "item_id": "A-1",
        "title": "Caf\u00e9 L&S",
        "brand": "Caf\u00e9",
        "categories": [["Office", "Pens"]],
        "price": 3.5,
        "Colour": "red",
    }
    assert report.columns["timestamp"] == "Created at" and "brand is read from Brand\n" in str(report)
    assert histories(loaded) == {"ann": ["A-1"]}
    kept, _ = table(items, brand="", price="")
    assert kept.items[["Brand", "Price"]].to_numpy().tolist() == [["Caf\u00e9", "3.50"]]


@pytest.mark.parametrize(("ids", "expected"), [(["1.0", "20.0"], [1, 20]), (["007", "20"], ["007", "20"])])
def test_ids_stay_those_of_the_shop(table, ids, expected):
    one, other = ids
    loaded, _ = table(f"item_id,title\n{one},x\n{other},x\n", f"user_id,item_id\na b,{one}\na b,{other}\n")
    assert loaded.items["item_id"].tolist() == expected and histories(loaded) == {"a b": expected}


def test_words_for_a_missing_value_are_counted(table):
    items = 'item_id,title,categories\n1,Pen,nan\n2,NULL,"[""Office""]"\n3,Hat,None\n'
    loaded, report = table(items, "user_id,item_id\nNULL,1\n\\N,2\nnan,3\nNone,1\nann,3.0\nann,NaN\n")
    assert histories(loaded) == {"ann": [3]}
    assert [report.counts[f"interactions_without_{name}"] for name in ("user_id", "item_id")] == [4, 1]
    assert loaded.items["title"].tolist() == ["Pen", "", "Hat"]
    assert loaded.items["categories"].tolist() == [[], [["Office"]], []]


def test_json_lines_join_lists_and_leave_out_columns_of_mixed_types(table):
    record = {"item_id": "A", "title": ["Soap", "bar"], "brand": ["Aurora"], "description": ["Soft.", None, "Warm."]}
    others = [{"item_id": "B", "title": "b", "tag": "x", "size": 3.5}, {"item_id": "C", "tag": ["x"], "size": "None"}]
    loaded, report = table(jsonl(record, *others), name="i.jsonl")
    first = {"item_id": "A", "title": "Soap, bar", "brand": "Aurora", "description": "Soft.\nWarm.", "size": None}
    assert loaded.items.astype(object).iloc[0].to_dict() == first
    assert loaded.items["size"].tolist() == [None, 3.5, None]
    assert report.left_out[0].startswith("column 'tag' is ") and report.left_out[0].endswith("expected one type")
    assert "left out: column 'tag' is" in str(report) and "'x' in row 2" in report.left_out[0]


@pytest.mark.parametrize(
    ("items", "options", "prices"),
    [
        ("item_id;title;price\n1;Pen;3,50\n2;Cup;1.299,00 €\n3;Hat;on request\n4;Mug;\n", {}, [3.5, 1299, None, None]),
        ('item_id,title,price\n1,Pen,$3.50\n2,Cup,"1,299.00"\n', {}, [3.5, 1299.0]),
        ('item_id,title,price\n1,Pen,"1,250"\n', {"decimal": ","}, [1.25]),
    ],
)
def test_prices_become_numbers(table, items, options, prices):
    loaded, report = table(items, **options)
    assert loaded.items["price"].tolist() == prices
    assert report.counts.get("prices_without_a_number", 0) == ("on request" in items)


@pytest.mark.parametrize(
    ("text", "sign", "price"),
    [
        ("3,50", ".", None),  # no group of thousands: not 350
        ("3.5", ",", None),
        ("1,234", ".", 1234),
        ("1,23,456.50", ".", 123456.5),  # India
        ("CHF 1'299.-", ".", 1299),
        ("1\u202f299,00 €", ",", 1299),
    ],
)
def test_thousands_are_grouped(text, sign, price):
    assert number(text, sign) == price


def test_ratings_of_movielens(table):
    loaded, _ = table(
        "1|Toy Story (1995)|x\n2|Caf\u00e9|y\n".encode("latin-1"),
        "196\t1\t3\t881250949\n196\t2\t3\t881250940\n",
        encoding="latin-1",
        item_columns="movie,title,genres",
        item_id="movie",
        interaction_columns="user,movie,stars,time",
    )
    assert histories(loaded) == {"196": [2, 1]} and loaded.items["title"][1] == "Caf\u00e9"


@pytest.mark.slow
@pytest.mark.parametrize("line", range(5, 155, 5))
def test_an_import_that_is_killed_leaves_the_old_data_set_or_the_new_one(tmp_path, line):
    (tmp_path / "i.csv").write_text("item_id,title\n1,a\n2,b\n")
    (tmp_path / "o.csv").write_text("user_id,item_id,time\nann,1,1400000000\n")

    def run(interactions=None):
        import_table(tmp_path / "i.csv", tmp_path / "out", interactions=interactions, overwrite=True)
        return contents()

    def contents() -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}

    whole = [run(tmp_path / "o.csv"), run()]
    killed_at(lambda: run(tmp_path / "o.csv"), line, folder, atomic)
    assert contents() in whole and run() == whole[1]
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


# --- Amazon ---

META_2014 = """{'asin': 'P3', 'title': 'L&amp;S', 'brand': "Ann's", 'categories': [['Home', 'Light'], ['X']]}
{'asin': 'P1', 'description': 'A  soap &lt;3', 'title': 'Soap\\n bar', 'price': 3.5, 'categories': [['Bath']]}
{'asin': 'P9', 'title': 'Never bought'}
"""
REVIEWS_2014 = jsonl(
    {"reviewerID": "R2", "asin": "P1", "overall": 5.0, "unixReviewTime": 1300000000},
    {"reviewerID": "R1", "asin": "P3", "overall": 4.0, "unixReviewTime": 1390000000},
    {"reviewerID": "R1", "asin": "P1", "overall": 1.0, "unixReviewTime": 1380000000},
    {"reviewerID": "R1", "asin": "P2", "overall": 3.0, "unixReviewTime": 1380000000},
    {"reviewerID": "R1", "asin": "P3", "overall": 5.0, "unixReviewTime": 1370000000},
    {"reviewerID": "R3", "asin": "P1", "overall": 5.0},
)


def review(user: str, asin: str, time: int) -> dict:
    seconds = 1_400_000_000 + time
    return {"reviewerID": user, "asin": asin, "overall": 5.0, "unixReviewTime": seconds, "text": "\u2028fine"}


@pytest.fixture
def dump(tmp_path):
    """Write metadata and reviews, import them, and return data set and counts."""

    def run(metadata: str, reviews: str, **options):
        (tmp_path / "meta.json.gz").write_bytes(gzip.compress(metadata.encode()))
        (tmp_path / "reviews.json").write_text(reviews)
        paths = (tmp_path / "meta.json.gz", tmp_path / "reviews.json", tmp_path / "out")
        report = import_amazon(*paths, **{"k_core": 0, "overwrite": True, **options})
        return data.load(tmp_path / "out"), report.counts

    return run


def test_the_dump_of_2014(dump):
    loaded, counts = dump(META_2014, REVIEWS_2014)
    assert loaded.items.to_dict("list") == {
        "item_id": ["P3", "P1", "P9", "P2"],
        "title": ["L&S", "Soap bar", "Never bought", ""],
        "brand": ["Ann's", "", "", ""],
        "description": ["", "A  soap <3", "", ""],
        "categories": [[["Home", "Light"], ["X"]], [["Bath"]], [], []],
        "price": [None, 3.5, None, None],
    }
    # R2 comes first in the reviews; R1's lamp was first reviewed in 1370000000; P1 and P2 tie, in file order
    assert histories(loaded) == {"1": ["P1"], "2": ["P3", "P1", "P2"]}
    assert loaded.histories.times.tolist() == [1300000000, 1370000000, 1380000000, 1380000000]
    found = {"reviews": 6, "reviews_without_user_item_or_time": 1, "repeated_reviews": 1, "metadata": 3}
    found |= {"items_without_metadata": 1, "n_items": 4, "n_users": 2, "n_interactions": 4}
    assert {name: count for name, count in counts.items() if count} == found
    loaded, counts = dump(META_2014, REVIEWS_2014, min_rating=3.0)
    assert counts["reviews_below_min_rating"] == 1
    assert histories(loaded) == {"1": ["P1"], "2": ["P3", "P2"]}


def test_the_dump_of_2018_with_k_core(dump):
    pen = {"category": ["Office &amp; School", "Pens"], "description": ["Blue.", "Fine &amp; dry."]}
    metadata = jsonl(
        {"asin": "P1", "title": "Pen", "brand": "Aurora", **pen},
        {"asin": "P1", "title": "Pen again"},
        {"asin": "P2", "title": "var aPageStart = (new Date()).getTime();\nvar ue_t0=1;", "category": []},
        {"asin": "P3", "title": '<span class="a-size">x</span>', "category": ["", "Office"]},
        {"asin": "P8", "title": "Only one review"},
        {"title": "no asin"},
    )
    times = {"P3": 1, "P2": 2, "P1": 3, "P5": 4}
    reviews = [review(user, asin, time) for user in ("R7", "R5") for asin, time in times.items()]
    loaded, counts = dump(metadata, jsonl(*reviews, review("R7", "P8", 9), review("R9", "P1", 9)), k_core=2)
    assert loaded.items["title"].tolist() == ["Pen", "", "", ""]
    assert loaded.items["item_id"].tolist() == ["P1", "P2", "P3", "P5"]
    assert loaded.items["description"][0] == "Blue.\nFine & dry."
    assert loaded.items["categories"].tolist() == [[["Office & School", "Pens"]], [], [["Office"]], []]
    assert histories(loaded) == {user: ["P3", "P2", "P1", "P5"] for user in "12"}
    expected = {"reviews_outside_k_core": 2, "metadata_outside_k_core": 1, "metadata_without_asin": 1}
    expected |= {"metadata_repeated": 1, "garbage_titles": 2, "items_without_metadata": 1}
    assert expected.items() <= counts.items()


def test_the_dump_of_2023(dump):
    meta = jsonl({"parent_asin": "P1", "title": "Mug", "store": "Brook", "categories": ["Home", "Mugs"]})
    reviews = jsonl(
        {"user_id": "U1", "asin": "C9", "parent_asin": "P2", "timestamp": 1588687728923, "rating": 5.0},
        {"user_id": "U1", "asin": "C8", "parent_asin": "P1", "timestamp": 1588615855070, "rating": 3.0},
    )
    loaded, _ = dump(meta, reviews)
    assert loaded.items[["brand", "categories"]].to_numpy().tolist() == [["Brook", [["Home", "Mugs"]]], ["", []]]
    assert histories(loaded) == {"1": ["P1", "P2"]}
    assert loaded.histories.times.tolist() == [1588615855, 1588687728]


@pytest.mark.parametrize(
    ("field", "value", "kept", "n_unreadable"),
    [
        ("brand", ["Aurora"], "Aurora", 0),
        ("brand", {"name": "Aurora"}, "", 1),
        ("title", "\ud800", "", 1),
        ("categories", [5], [], 1),
        ("categories", ["Home", "", None], [["Home"]], 0),
        ("price", "$1,299.00", 1299.0, 0),
        ("price", "from 3 to 5", None, 1),
    ],
)
def test_a_value_of_amazon_that_cannot_be_read_stops_no_import(dump, field, value, kept, n_unreadable):
    meta = jsonl({"asin": "P1", "title": "Soap", "price": 3.5, field: value}, {"asin": "P2", "price": 1.5})
    loaded, counts = dump(meta, jsonl(review("R1", "P1", 5), review("R1", "P2", 6)))
    assert loaded.items[field].astype(object).where(loaded.items[field].notna(), None)[0] == kept
    assert counts["unreadable_values"] == n_unreadable


@pytest.mark.parametrize(
    ("fields", "seconds"),
    [
        ({"unixReviewTime": "1400000000"}, 1400000000),
        ({"unixReviewTime": 1400000000000}, 1400000000),
        ({"unixReviewTime": None, "timestamp": "1588687728923"}, 1588687728),
        ({"unixReviewTime": "soon"}, None),
        ({"unixReviewTime": True}, None),
        ({"overall": "five"}, None),
        ({"reviewerID": ["R1"]}, None),
    ],
)
def test_times_of_amazon_are_read_in_their_unit_or_counted(dump, fields, seconds):
    loaded, counts = dump(META_2014, jsonl(review("R9", "P9", 0), review("R1", "P1", 0) | fields))
    assert loaded.histories.times.tolist()[1:] == ([] if seconds is None else [seconds])
    assert counts["reviews_with_unreadable_values"] == (seconds is None)


@pytest.mark.parametrize(
    ("metadata", "reviews", "k_core", "message"),
    [
        (META_2014, '{"asin": "P1"}\n{broken', 0, r"reviews\.json, line 2: '\{broken', expected a JSON object or a"),
        ("__import__('os').getcwd()", REVIEWS_2014, 0, r"meta\.json\.gz, line 1: .*expected a JSON object or a Python"),
        (META_2014, REVIEWS_2014, 5, "no interaction is left"),
        (META_2014, REVIEWS_2014, -1, "k_core is -1, expected 0 or more"),
    ],
)
def test_a_bad_dump(dump, tmp_path, metadata, reviews, k_core, message):
    with pytest.raises(ValueError, match=message):
        dump(metadata, reviews, k_core=k_core)
    with pytest.raises(ValueError, match=r"nowhere is not a file"):
        import_amazon(tmp_path / "meta.json.gz", tmp_path / "nowhere", tmp_path / "out")
    assert not (tmp_path / "out").exists()
