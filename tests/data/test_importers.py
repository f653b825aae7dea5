"""Importing tables and raw Amazon dumps; the products are invented."""

import gzip
import json
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from kills import killed

from semid_lib.cli import main
from semid_lib.data import dataset as data
from semid_lib.data.importers import import_amazon, import_table
from semid_lib.data.importers.values import number
from semid_lib.data.importers.writing import k_core_positions


def jsonl(*records: dict) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


def histories(dataset: data.Dataset) -> dict[str, list[int | str]]:
    """User id -> item ids."""
    users = zip(dataset.histories.user_ids, dataset.histories, strict=True)
    return {user: dataset.item_ids.at(rows).tolist() for user, rows in users}


# --- k-core ---


def test_k_core_by_hand():
    # u0: a b; u1: a b; u2: b c. Item c has one, so u2 falls to one and goes; a and b keep two each.
    users, items = np.array([0, 0, 1, 1, 2, 2]), np.array([0, 1, 0, 1, 1, 2])
    assert k_core_positions(users, items, 2).tolist() == [0, 1, 2, 3]
    assert k_core_positions(users, items, 0).tolist() == [0, 1, 2, 3, 4, 5]
    assert k_core_positions(users, items, 3).tolist() == []
    assert k_core_positions(users[:0], items[:0], 5).tolist() == []


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), max_size=40), st.integers(0, 4))
def test_k_core_is_the_largest_part_with_enough(pairs, k):
    users, items = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
    kept = k_core_positions(users, items, k).tolist()
    one_by_one = list(range(len(pairs)))
    while poor := [
        p
        for p in one_by_one
        if sum(users[q] == users[p] for q in one_by_one) < k or sum(items[q] == items[p] for q in one_by_one) < k
    ]:
        one_by_one.remove(poor[0])
    assert kept == one_by_one


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
COLUMNS = {"item_id": "sku", "title": "name", "brand": "maker", "categories": "kind", "description": "text"}
ORDER_COLUMNS = {"user_id": "customer", "interaction_item_id": "product", "timestamp": "when"}


@pytest.fixture
def shop(tmp_path):
    (tmp_path / "shop.csv").write_text(SHOP)
    (tmp_path / "orders.csv.gz").write_bytes(gzip.compress(ORDERS.encode()))
    return tmp_path


def test_import_table_from_csv(shop):
    report = import_table(
        shop / "shop.csv", shop / "out", **COLUMNS, interactions=shop / "orders.csv.gz", **ORDER_COLUMNS
    )
    loaded = data.load(shop / "out")
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
    assert report.counts == {
        "items": 3,
        "interactions": 4,
        "interactions_without_customer": 0,
        "interactions_without_product": 0,
        "interactions_without_when": 0,
        "interactions_with_unknown_item": 0,
        "interactions_outside_k_core": 0,
        "n_items": 3,
        "n_users": 2,
        "n_interactions": 4,
    }
    assert "n interactions                  4" in str(report)


def test_import_table_from_parquet(tmp_path):
    items = pd.DataFrame(
        {"item_id": [30, 10], "title": ["Soap", None], "tags": [["Bath", "Soap"], None], "size": [1.5, None]}
    )
    items.assign(added=pd.Timestamp("2024-01-01")).to_parquet(tmp_path / "items.parquet")
    orders = pd.DataFrame(
        {
            "user_id": [5, 5, None, 6],
            "item_id": [10, 30, 10, None],
            "at": pd.to_datetime(["2024-01-02", "2024-01-01", None, None]),
        }
    )
    orders.to_parquet(tmp_path / "orders.parquet")
    report = import_table(
        tmp_path / "items.parquet",
        tmp_path / "out",
        categories="tags",
        interactions=tmp_path / "orders.parquet",
        timestamp="at",
    )
    loaded = data.load(tmp_path / "out")
    assert loaded.items["item_id"].tolist() == [30, 10]
    assert loaded.items["title"].tolist() == ["Soap", ""]
    assert loaded.items["categories"].tolist() == [[["Bath", "Soap"]], []]
    assert loaded.items["size"].tolist() == [1.5, None]
    assert loaded.items["added"].tolist() == ["2024-01-01 00:00:00"] * 2
    assert histories(loaded) == {"5": [30, 10]}
    assert report.counts["interactions_without_user_id"] == 1
    assert report.counts["interactions_without_item_id"] == 1
    assert report.counts["interactions_without_at"] == 2


@pytest.mark.parametrize(
    ("times", "seconds"),
    [
        (["1400000000", "1400000001"], [1400000000, 1400000001]),
        (["1400000000000", "1400000001999"], [1400000000, 1400000001]),
        (["2014-05-13", "2014-05-13 16:53:20+00:00"], [1399939200, 1400000000]),
    ],
)
def test_import_table_reads_times(tmp_path, times, seconds):
    (tmp_path / "items.csv").write_text("item_id,title\n1,a\n")
    (tmp_path / "orders.csv").write_text("user_id,item_id,t\n" + "".join(f"u,1,{time}\n" for time in times))
    import_table(tmp_path / "items.csv", tmp_path / "out", interactions=tmp_path / "orders.csv", timestamp="t")
    assert data.load(tmp_path / "out").histories.times.tolist() == seconds


def test_import_table_counts_what_it_leaves_out(shop):
    (shop / "orders.csv").write_text("user_id,sku\nann,A-1\n,A-1\nbob,\nbob,A-9\nann,A-2\nbob,A-1\n")
    arguments = {
        "items": shop / "shop.csv",
        "item_id": "sku",
        "title": "name",
        "interactions": shop / "orders.csv",
    }
    with pytest.raises(ValueError, match=r"orders\.csv, line 5: item 'A-9' is unknown"):
        import_table(output=shop / "out", **arguments)
    report = import_table(output=shop / "out", unknown_items="drop", **arguments)
    assert histories(data.load(shop / "out")) == {"ann": ["A-1", "A-2"], "bob": ["A-1"]}
    assert data.load(shop / "out").histories.times is None
    assert report.counts["interactions_without_user_id"] == 1
    assert report.counts["interactions_without_sku"] == 1
    assert report.counts["interactions_with_unknown_item"] == 1


def test_import_table_k_core_keeps_only_its_items(shop):
    (shop / "orders.csv").write_text("user_id,sku\na,A-2\na,A-3\nb,A-2\nb,A-3\nb,A-1\n")
    arguments = {"item_id": "sku", "title": "name", "interactions": shop / "orders.csv"}
    report = import_table(shop / "shop.csv", shop / "out", k_core=2, **arguments)
    assert histories(data.load(shop / "out")) == {"a": ["A-2", "A-3"], "b": ["A-2", "A-3"]}
    assert report.counts["interactions_outside_k_core"] == 1
    assert report.counts["items_outside_k_core"] == 1
    with pytest.raises(ValueError, match="no interaction is left"):
        import_table(shop / "shop.csv", shop / "none", k_core=9, **arguments)


def test_import_table_refuses_bad_input(shop):
    def run(items=SHOP, orders=None, **arguments):
        (shop / "i.csv").write_text(items)
        if orders is not None:
            (shop / "o.csv").write_text(orders)
            arguments["interactions"] = shop / "o.csv"
        return import_table(shop / "i.csv", shop / "out", **{"item_id": "sku", "title": "name", **arguments})

    with pytest.raises(ValueError, match=r"i\.csv has no column 'Name', expected one of \['sku', 'name'"):
        run(title="Name")
    with pytest.raises(ValueError, match=r"i\.csv has columns \['code', 'name'\], none for item_id: name it"):
        run(items="code,name\n1,2\n", item_id=None)
    with pytest.raises(ValueError, match=r"o\.csv has no column 'sku', expected one of \['user_id', 'item'\]"):
        run(orders="user_id,item\n1,2\n")
    with pytest.raises(ValueError, match=r"i\.csv, line 4: item_id A occurs before, in i\.csv, line 2"):
        run(items="sku,name\nA,a\nB,b\nA,c\n")
    with pytest.raises(ValueError, match=r"i\.csv, line 3: no 'sku', expected an item id"):
        run(items="sku,name\nA,a\n,b\n")
    with pytest.raises(ValueError, match=r"i\.csv, line 2: column 'kind': '\[1\]', expected a list"):
        run(items="sku,name,kind\nA,a,[1]\n", categories="kind")
    with pytest.raises(ValueError, match=r"i\.csv, line 2: 3 fields, expected 2 as in the header"):
        run(items="sku,name\nA,a,b\nB,b,c\n")
    with pytest.raises(ValueError, match=r"o\.csv, line 3: column 't': time 'soon', expected an ISO date"):
        run(orders="user_id,sku,t\nu,A-1,2024-01-01\nu,A-1,soon\n", timestamp="t")
    with pytest.raises(ValueError, match=r"o\.csv, line 3: column 't': time 1400000000000, expected Unix seconds as"):
        run(orders="user_id,sku,t\nu,A-1,1400000000\nu,A-1,1400000000000\n", timestamp="t")
    with pytest.raises(ValueError, match=r"o\.csv, line 3: column 'user_id': id 'a\\tb', expected text without"):
        run(orders='user_id,sku\nu,A-1\n"a\tb",A-1\n')
    with pytest.raises(ValueError, match=r"o\.csv is empty"):
        run(orders="user_id,sku,t\n", timestamp="t")
    with pytest.raises(ValueError, match="no interaction is left"):
        run(orders="user_id,sku,t\nu,,5\n", timestamp="t")
    with pytest.raises(ValueError, match="column 'brand' would be kept as 'source_brand', expected that name to be"):
        run(items="sku,name,brand,source_brand\nA,a,b,c\n", brand="")
    with pytest.raises(ValueError, match="unknown_items is 'keep'"):
        run(unknown_items="keep")
    for k_core in (5, -1):
        with pytest.raises(ValueError, match=f"k_core is {k_core}, expected 0 without interactions"):
            run(k_core=k_core)
    with pytest.raises(ValueError, match=r"nowhere\.csv is not a file"):
        import_table(shop / "nowhere.csv", shop / "out")
    assert not (shop / "out").exists()


# --- files as shops have them ---


def imported(folder, items: str, orders: str | None = None, name: str = "i.csv", **options):
    """The data set and the report of an import."""
    (folder / name).write_text(items)
    if orders is not None:
        (folder / "o.csv").write_text(orders)
        options["interactions"] = folder / "o.csv"
    report = import_table(folder / name, folder / "out", overwrite=True, **options)
    return data.load(folder / "out"), report


def test_obvious_columns_are_taken_and_reported(tmp_path):
    items = "SKU,Name,Brand,Price,Category,Colour\nA-1,Pen,Aurora,3.50,Office > Pens,red\n"
    orders = "Customer,SKU,Created at\nann,A-1,2024-01-02\n"
    loaded, report = imported(tmp_path, items, orders)
    assert loaded.items.iloc[0].to_dict() == {
        "item_id": "A-1",
        "title": "Pen",
        "brand": "Aurora",
        "categories": [["Office", "Pens"]],
        "price": 3.5,
        "Colour": "red",
    }
    assert report.columns["timestamp"] == "Created at" and "brand is read from Brand\n" in str(report)
    assert histories(loaded) == {"ann": ["A-1"]}
    kept, _ = imported(tmp_path, items, brand="", price="")
    assert kept.items[["Brand", "Price"]].to_numpy().tolist() == [["Aurora", "3.50"]]


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        (["1", "20"], [1, 20]),
        (["1.0", "20.0"], [1, 20]),
        (["007", "20"], ["007", "20"]),
        (["A-1", "20"], ["A-1", "20"]),
        (["-1", "0"], [-1, 0]),
        (["1.5", "20"], ["1.5", "20"]),
        (["9223372036854775807", "1"], [9223372036854775807, 1]),
        (["9223372036854775808", "1"], ["9223372036854775808", "1"]),
        (["B 1", "b/2?#"], ["B 1", "b/2?#"]),
    ],
)
def test_ids_stay_those_of_the_shop(tmp_path, ids, expected):
    items = "item_id,title\n" + "".join(f"{item_id},x\n" for item_id in ids)
    orders = "user_id,item_id\n" + "".join(f"a b,{item_id}\n" for item_id in ids)
    loaded, _ = imported(tmp_path, items, orders)
    assert loaded.items["item_id"].tolist() == expected
    assert histories(loaded) == {"a b": expected}
    as_floats = orders if isinstance(expected[0], str) else orders.replace("\n", ".0\n").replace(".0.0", ".0")
    as_floats = as_floats.replace("item_id.0", "item_id")
    if "9223372036854775807" not in ids:
        assert histories(imported(tmp_path, items, as_floats)[0]) == {"a b": expected}


def test_words_for_nothing_are_missing_values_and_counted(tmp_path):
    items = 'item_id,title,categories\n1,Pen,nan\n2,NULL,"[""Office""]"\n3,Hat,None\n'
    orders = "user_id,item_id\nNULL,1\n\\N,2\nnan,3\nNone,1\nann,3\nann,NaN\n"
    loaded, report = imported(tmp_path, items, orders)
    assert histories(loaded) == {"ann": [3]}
    assert report.counts["interactions_without_user_id"] == 4
    assert report.counts["interactions_without_item_id"] == 1
    assert loaded.items["title"].tolist() == ["Pen", "", "Hat"]
    assert loaded.items["categories"].tolist() == [[], [["Office"]], []]


def test_lists_are_joined_and_other_values_named(tmp_path):
    record = {"item_id": "A", "title": ["Soap", "bar"], "brand": ["Aurora"], "description": ["Soft.", None, "Warm."]}
    loaded, _ = imported(tmp_path, jsonl(record), name="i.jsonl")
    assert loaded.items.iloc[0].to_dict() == {
        "item_id": "A",
        "title": "Soap, bar",
        "brand": "Aurora",
        "description": "Soft.\nWarm.",
    }
    for field, value in {"title": {"en": "Soap"}, "brand": True, "description": [["a", {"b": 1}]]}.items():
        with pytest.raises(ValueError, match=rf"i\.jsonl, line 2: column '{field}': .*, expected text"):
            imported(tmp_path, jsonl(record, record | {"item_id": "B", field: value}), name="i.jsonl")


def test_prices_become_numbers(tmp_path):
    items = "item_id;title;price\n1;Pen;3,50\n2;Cup;1.299,00 €\n3;Hat;on request\n4;Mug;\n"
    loaded, report = imported(tmp_path, items)
    assert loaded.items["price"].tolist() == [3.5, 1299.0, None, None]
    assert report.counts["prices_without_a_number"] == 1
    dollars, _ = imported(tmp_path, 'item_id,title,price\n1,Pen,$3.50\n2,Cup,"1,299.00"\n')
    assert dollars.items["price"].tolist() == [3.5, 1299.0]
    given, _ = imported(tmp_path, 'item_id,title,price\n1,Pen,"1,250"\n', decimal=",")
    assert given.items["price"].tolist() == [1.25]


def test_a_column_that_cannot_be_kept_stops_no_import(tmp_path):
    when = {"released": pd.Timestamp("2024-01-02").date(), "sizes": [1.5, float("nan")]}
    pd.DataFrame({"item_id": [1, 2], "title": ["a", "b"], "extra": [when, when]}).to_parquet(tmp_path / "i.parquet")
    import_table(tmp_path / "i.parquet", tmp_path / "out")
    kept = data.load(tmp_path / "out").items["extra"][0]
    assert kept == {"released": "2024-01-02", "sizes": [1.5, None]}
    mixed = jsonl({"item_id": 1, "title": "a", "tag": "x", "size": 3.5}, {"item_id": 2, "title": "b", "tag": ["x"]})
    loaded, report = imported(tmp_path, mixed + jsonl({"item_id": 3, "title": "c", "size": "None"}), name="i.jsonl")
    assert list(loaded.items) == ["item_id", "title", "size"]
    assert loaded.items["size"].tolist()[0] == 3.5 and "column 'tag' is 'x' in row 1" in report.left_out[0]
    assert "left out: column 'tag'" in str(report)


@pytest.mark.parametrize("missing", [None, float("nan")])
def test_missing_values_of_parquet_are_counted(tmp_path, missing):
    import pyarrow as pa
    import pyarrow.parquet as pq

    orders = {"user_id": [5.0, missing, 6.0, 6.0], "item_id": [1, 1, 2, 1], "t": [1.4e12, 1.4e12, missing, 1.5e12]}
    types = {"user_id": pa.float64(), "item_id": pa.int64(), "t": pa.float64()}
    columns = {name: pa.array(values, types[name], from_pandas=False) for name, values in orders.items()}
    pq.write_table(pa.table(columns), tmp_path / "o.parquet")
    (tmp_path / "i.csv").write_text("item_id,title\n1,a\n2,b\n")
    report = import_table(tmp_path / "i.csv", tmp_path / "out", interactions=tmp_path / "o.parquet", timestamp="t")
    assert histories(data.load(tmp_path / "out")) == {"5": [1], "6": [1]}
    assert report.counts["interactions_without_user_id"] == report.counts["interactions_without_t"] == 1


def test_text_has_one_spelling(tmp_path):
    loaded, _ = imported(tmp_path, "item_id,title,brand\n1,Cafe\u0301 L&amp;S,Cafe\u0301\n")
    assert loaded.items[["title", "brand"]].values.tolist() == [["Caf\u00e9 L&S", "Caf\u00e9"]]


def test_ratings_of_movielens(tmp_path):
    (tmp_path / "u.item").write_bytes("1|Toy Story (1995)|x\n2|Caf\u00e9|y\n".encode("latin-1"))
    (tmp_path / "u.data").write_text("196\t1\t3\t881250949\n196\t2\t3\t881250940\n")
    import_table(
        tmp_path / "u.item",
        tmp_path / "out",
        encoding="latin-1",
        item_columns="movie,title,genres",
        item_id="movie",
        interactions=tmp_path / "u.data",
        interaction_columns="user,movie,stars,time",
    )
    assert histories(data.load(tmp_path / "out")) == {"196": [2, 1]}


# --- kills ---


def shop_of(tmp_path, tag: str):
    (tmp_path / f"{tag}.csv").write_text("item_id,title\n" + "".join(f"{i},{tag} {i}\n" for i in range(300)))
    orders = "".join(f"u{i % 50},{i % 300},{1_400_000_000 + i}\n" for i in range(1200))
    (tmp_path / f"{tag}_orders.csv").write_text("user_id,item_id,ts\n" + orders)
    return {"items": tmp_path / f"{tag}.csv", "interactions": tmp_path / f"{tag}_orders.csv", "timestamp": "ts"}


def test_an_import_that_is_killed_leaves_the_old_data_set_or_the_new_one(tmp_path):
    out, old, new = tmp_path / "out", shop_of(tmp_path, "old"), shop_of(tmp_path, "new")

    def contents() -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in out.iterdir()}

    def run(shop: dict) -> dict[str, bytes]:
        import_table(output=out, overwrite=True, **shop)
        return contents()

    began = time.perf_counter()
    whole = [run(new), run(old)]
    seconds = (time.perf_counter() - began) / 2
    rng = np.random.default_rng(0)
    for _ in range(30):
        killed(lambda: run(new), rng.uniform(0, 1.3 * seconds))
        assert contents() in whole
        assert data.load(out).histories.times is not None
        assert run(old) == whole[1]
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


@pytest.fixture
def dump(tmp_path):
    """Write metadata and reviews, import them, and return data set and counts."""

    def run(metadata: str, reviews: str, **options):
        (tmp_path / "meta.json.gz").write_bytes(gzip.compress(metadata.encode()))
        (tmp_path / "reviews.json").write_text(reviews)
        report = import_amazon(
            tmp_path / "meta.json.gz", tmp_path / "reviews.json", tmp_path / "out", overwrite=True, **options
        )
        return data.load(tmp_path / "out"), report.counts

    return run


def test_import_amazon_2014(dump):
    loaded, counts = dump(META_2014, REVIEWS_2014, k_core=0)
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
    assert counts == {
        "reviews": 6,
        "reviews_without_user_item_or_time": 1,
        "reviews_with_unreadable_values": 0,
        "reviews_below_min_rating": 0,
        "repeated_reviews": 1,
        "reviews_outside_k_core": 0,
        "metadata": 3,
        "metadata_without_asin": 0,
        "metadata_outside_k_core": 0,
        "metadata_repeated": 0,
        "garbage_titles": 0,
        "unreadable_values": 0,
        "items_without_metadata": 1,
        "n_items": 4,
        "n_users": 2,
        "n_interactions": 4,
    }


def test_import_amazon_min_rating(dump):
    loaded, counts = dump(META_2014, REVIEWS_2014, k_core=0, min_rating=3.0)
    assert counts["reviews_below_min_rating"] == 1
    assert histories(loaded) == {"1": ["P1"], "2": ["P3", "P2"]}


META_2018 = jsonl(
    {
        "asin": "P1",
        "title": "Pen",
        "brand": "Aurora",
        "category": ["Office &amp; School", "Pens"],
        "description": ["Blue.", "Fine &amp; dry."],
    },
    {"asin": "P1", "title": "Pen again"},
    {"asin": "P2", "title": "var aPageStart = (new Date()).getTime();\nvar ue_t0=1;", "category": []},
    {"asin": "P3", "title": '<span class="a-size">x</span>', "category": ["", "Office"]},
    {"asin": "P8", "title": "Only one review"},
    {"title": "no asin"},
)


def review(user: str, asin: str, time: int) -> dict:
    return {
        "reviewerID": user,
        "asin": asin,
        "overall": 5.0,
        "unixReviewTime": 1_400_000_000 + time,
        "reviewText": "\u2028fine",
    }


def test_import_amazon_2018_with_k_core(dump):
    times = {"P3": 1, "P2": 2, "P1": 3, "P5": 4}
    reviews = [review(user, asin, time) for user in ("R7", "R5") for asin, time in times.items()]
    loaded, counts = dump(META_2018, jsonl(*reviews, review("R7", "P8", 9), review("R9", "P1", 9)), k_core=2)
    assert loaded.items["title"].tolist() == ["Pen", "", "", ""]
    assert loaded.items["item_id"].tolist() == ["P1", "P2", "P3", "P5"]
    assert loaded.items["description"].tolist() == ["Blue.\nFine & dry.", "", "", ""]
    assert loaded.items["categories"].tolist() == [[["Office & School", "Pens"]], [], [["Office"]], []]
    assert histories(loaded) == {user: ["P3", "P2", "P1", "P5"] for user in "12"}
    expected = {"reviews_outside_k_core": 2, "metadata_outside_k_core": 1, "metadata_without_asin": 1}
    expected |= {"metadata_repeated": 1, "garbage_titles": 2, "items_without_metadata": 1}
    assert expected.items() <= counts.items()


def test_import_amazon_2023(dump):
    meta = jsonl(
        {
            "parent_asin": "P1",
            "title": "Mug",
            "store": "Brook",
            "categories": ["Home", "Mugs"],
            "description": ["Big"],
        },
        {"parent_asin": "P2", "title": "Cup", "store": None, "categories": [], "description": []},
    )
    reviews = jsonl(
        {"user_id": "U1", "asin": "C9", "parent_asin": "P2", "timestamp": 1588687728923, "rating": 5.0},
        {"user_id": "U1", "asin": "C8", "parent_asin": "P1", "timestamp": 1588615855070, "rating": 3.0},
    )
    loaded, _ = dump(meta, reviews, k_core=0)
    assert loaded.items["brand"].tolist() == ["Brook", ""]
    assert loaded.items["categories"].tolist() == [[["Home", "Mugs"]], []]
    assert histories(loaded) == {"1": ["P1", "P2"]}
    assert loaded.histories.times.tolist() == [1588615855, 1588687728]


@pytest.mark.parametrize(
    ("field", "value", "kept", "n_unreadable"),
    [
        ("brand", ["Aurora"], "Aurora", 0),
        ("brand", 5, "5", 0),
        ("brand", {"name": "Aurora"}, "", 1),
        ("title", ["Soap", None, "bar"], "Soap, bar", 0),
        ("title", "\ud800", "", 1),
        ("description", ["Soft.", None, "Warm."], "Soft.\nWarm.", 0),
        ("description", [{"a": 1}], "", 1),
        ("categories", [5], [], 1),
        ("categories", ["Home", "", None], [["Home"]], 0),
        ("price", "None", None, 0),
        ("price", "$1,299.00", 1299.0, 0),
        ("price", "from 3 to 5", None, 1),
    ],
)
def test_one_value_of_amazon_that_cannot_be_read_stops_no_import(dump, field, value, kept, n_unreadable):
    meta = jsonl({"asin": "P1", "title": "Soap", "price": 3.5, field: value}, {"asin": "P2", "price": 1.5})
    loaded, counts = dump(meta, jsonl(review("R1", "P1", 5), review("R1", "P2", 6)), k_core=0)
    assert loaded.items[field].astype(object).where(loaded.items[field].notna(), None)[0] == kept
    assert counts["unreadable_values"] == n_unreadable


@pytest.mark.parametrize(
    ("fields", "seconds"),
    [
        ({"unixReviewTime": "1400000000"}, 1400000000),
        ({"unixReviewTime": 1400000000000}, 1400000000),
        ({"unixReviewTime": None, "timestamp": "1588687728923"}, 1588687728),
        ({"unixReviewTime": None, "timestamp": 1588687728}, 1588687728),
        ({"unixReviewTime": None, "timestamp": 1588687728923000}, 1588687728),
        ({"unixReviewTime": "soon"}, None),
        ({"unixReviewTime": float("inf")}, None),
        ({"unixReviewTime": True}, None),
        ({"unixReviewTime": 2**70}, None),
        ({"overall": "five"}, None),
        ({"reviewerID": ["R1"]}, None),
        ({"asin": ["P1"]}, None),
    ],
)
def test_times_of_amazon_are_read_in_their_unit_or_counted(dump, fields, seconds):
    reviews = jsonl(review("R9", "P9", 0), review("R1", "P1", 0) | fields)
    loaded, counts = dump(META_2014, reviews, k_core=0)
    assert loaded.histories.times.tolist()[1:] == ([] if seconds is None else [seconds])
    assert counts["reviews_with_unreadable_values"] == (seconds is None)


def test_import_amazon_refuses_bad_input(dump, tmp_path):
    with pytest.raises(ValueError, match=r"reviews\.json, line 2: '\{broken', expected a JSON object or a Python dict"):
        dump(META_2014, '{"asin": "P1"}\n{broken')
    with pytest.raises(ValueError, match=r"meta\.json\.gz, line 1: .*expected a JSON object or a Python dict"):
        dump("__import__('os').getcwd()", REVIEWS_2014, k_core=0)
    with pytest.raises(ValueError, match=r"reviews\.json, line 1: '\[1\]"):
        dump(META_2014, "[1]")
    with pytest.raises(ValueError, match="no interaction is left"):
        dump(META_2014, REVIEWS_2014, k_core=5)
    (tmp_path / "cut.gz").write_bytes(gzip.compress(REVIEWS_2014.encode())[:-9])
    with pytest.raises(ValueError, match=r"cut\.gz: truncated or corrupt gzip"):
        import_amazon(tmp_path / "meta.json.gz", tmp_path / "cut.gz", tmp_path / "new")
    with pytest.raises(ValueError, match=r"nowhere is not a file"):
        import_amazon(tmp_path / "meta.json.gz", tmp_path / "nowhere", tmp_path / "new")
    assert not (tmp_path / "new").exists()


# --- command line ---


def test_command_line(shop, capsys):
    arguments = [
        "import",
        "table",
        "--items",
        str(shop / "shop.csv"),
        "--output",
        str(shop / "out"),
        "--item-id",
        "sku",
    ]
    assert main([*arguments, "--title", "name"]) == 0
    printed = "item_id is read from sku\ntitle is read from name\nbrand is read from brand\nprice is read from price\n"
    assert capsys.readouterr().out == f"{printed}items    3\nn items  3\n"
    assert main([*arguments, "--title", "name"]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert captured.err.endswith("out is not empty, expected an empty or new folder (or overwrite)\n")
    assert main([*arguments, "--title", "name", "--overwrite"]) == 0
    assert data.load(shop / "out").counts["n_items"] == 3


def test_command_line_amazon(tmp_path):
    (tmp_path / "meta.json").write_text(META_2014)
    (tmp_path / "reviews.json").write_text(REVIEWS_2014)
    command = [
        sys.executable,
        "-m",
        "semid_lib.cli",
        "import",
        "amazon",
        "--metadata",
        str(tmp_path / "meta.json"),
    ]
    command += ["--reviews", str(tmp_path / "reviews.json"), "--output", str(tmp_path / "out"), "--k-core"]
    done = subprocess.run([*command, "0"], capture_output=True, text=True, check=True)
    assert "n interactions                     4" in done.stdout
    assert "reviews.json: 6 lines" in done.stderr
    failed = subprocess.run(
        [*command, "5", "--overwrite", "--no-progress"], capture_output=True, text=True, check=False
    )
    assert failed.returncode == 1
    assert failed.stderr.startswith(f"error: {tmp_path}/reviews.json: no interaction is left")
    assert failed.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("text", "sign", "price"),
    [
        ("3,50", ".", None),  # no group of thousands: not 350
        ("3.5", ",", None),
        ("1,234", ".", 1234),
        ("1.234.567,5", ",", 1234567.5),
        ("1,23,456.50", ".", 123456.5),  # India
        ("CHF 1'299.-", ".", 1299),
        ("1\u202f299,00 €", ",", 1299),
        ("1.2.3", ".", None),
    ],
)
def test_thousands_stand_in_groups(text, sign, price):
    assert number(text, sign) == price
