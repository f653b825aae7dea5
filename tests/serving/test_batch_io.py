"""Records of a batch: what each format says, and a reason with its line for what cannot be read."""

import csv
import gzip
import json
import os
import tracemalloc

import pandas as pd
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from semid_lib.data import folder
from semid_lib.serving import batch_io
from semid_lib.serving.batch_io import DataHistories, RecordFile
from semid_lib.workbench.text import has_controls


def written(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def read(path, queries=False):
    with RecordFile(path, queries) as file:
        return [(one.line, one.key, one.item_ids, one.reason) for one in file]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.txt", "ann A-1 -2 3\n\t bob\r\ncarl 7"),
        ("a.tsv", "ann\tA-1 -2 3\nbob\t\r\ncarl\t7"),
        ("a.csv", 'item_ids,age,user_id\nA-1 -2 3,30,ann\n"",31,"bob"\r\n7,,carl'),
        ("b.csv", 'user_id,item_ids\nann,"[""A-1"", -2, ""3""]"\nbob,[]\ncarl,7'),
        ("c.csv", "user_id,item_ids\nann,\"['A-1', -2, '3']\"\nbob,[]\ncarl,['7']"),
        (
            "a.jsonl",
            '{"user_id": "ann", "item_ids": ["A-1", -2, 3]}\n{"item_ids": [], "user_id": "bob", "more": 1}\n'
            '{"user_id": "carl", "item_ids": ["7"]}\n\n\n',
        ),
    ],
)
def test_histories_in_every_format(tmp_path, name, content):
    found = read(written(tmp_path, name, content))
    expected = [("ann", ["A-1", "-2", "3"], None), ("bob", [], None), ("carl", ["7"], None)]
    assert [one[1:] for one in found] == expected
    assert [one[0] for one in found] == ([2, 3, 4] if name.endswith(".csv") else [1, 2, 3])
    with_mark = written(tmp_path, name, b"\xef\xbb\xbf" + content.encode())
    assert read(with_mark) == found
    assert read(written(tmp_path, f"{name}.gz", gzip.compress(content.encode()))) == found


@pytest.mark.parametrize("user_ids", [["ann", "7"], [11, 7]])
@pytest.mark.parametrize("item_ids", [[["A 1", "17"], []], [[1, -2], []]])
def test_histories_in_parquet(tmp_path, user_ids, item_ids):
    pd.DataFrame({"age": 3, "item_ids": item_ids, "user_id": user_ids}).to_parquet(tmp_path / "a.parquet")
    expected = [(1, str(user_ids[0]), list(map(str, item_ids[0])), None), (2, "7", [], None)]
    assert read(tmp_path / "a.parquet") == expected


def test_rows_of_parquet_that_are_no_histories(tmp_path):
    rows = {"user_id": ["ann", None, "bob", "carl"], "item_ids": [[1.5], [2.0], None, [None]]}
    pd.DataFrame(rows).to_parquet(tmp_path / "a.parquet")
    reasons = [reason for *_, reason in read(tmp_path / "a.parquet")]
    assert reasons == [
        "'item_ids' is [1.5], expected a list of text or integers",
        "'user_id' is None, expected text",
        "'item_ids' is None, expected a list of text or integers",
        "'item_ids' is [None], expected a list of text or integers",
    ]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("q.txt", " red, nail polish \nshampoo\n"),
        ("q.csv", 'id,query\n1,"red, nail polish"\n2,shampoo'),
        ("q.jsonl", '{"query": "red, nail polish", "item_ids": [4]}\n{"query": "shampoo"}'),
    ],
)
def test_queries_in_every_format(tmp_path, name, content):
    found = read(written(tmp_path, name, content), queries=True)
    assert [one[1:] for one in found] == [("red, nail polish", [], None), ("shampoo", [], None)]
    pd.DataFrame({"query": [one[1] for one in found]}).to_parquet(tmp_path / "q.parquet")
    assert [one[1:] for one in read(tmp_path / "q.parquet", queries=True)] == [one[1:] for one in found]


@pytest.mark.parametrize(
    ("name", "line", "reason"),
    [
        ("a.txt", " \t ", "empty"),
        ("a.txt", b"\xff 1", "not UTF-8: invalid start byte at byte 0"),
        ("a.txt", "ann " + "1 " * 2**20, "longer than 1048576 bytes"),
        ("a.txt", "a\0nn 1", r"the user id is 'a\x00nn', expected text without control characters"),
        ("a.tsv", "ann 1", "expected a user id, a tab and item ids"),
        ("a.tsv", "\t1", "user id is empty"),
        ("a.csv", "ann", "1 cells, the header 2"),
        ("a.csv", '"a"n,1', "not CSV"),
        ("a.csv", '"an\nn",1', r"the user id is 'an\nn', expected"),
        ("a.csv", '"an\rn",1', r"the user id is 'an\rn', expected"),
        ("a.csv", '"a\nn"n,1', "not CSV"),
        ("a.csv", "an\rn,1", "not CSV"),
        ("a.csv", b'ann,"\xff"', "not UTF-8"),
        ("a.csv", ",1 2", "user id is empty"),
        ("a.csv", "ann,[1", "'[1' is neither JSON nor a Python literal: write lists as JSON"),
        ("a.csv", "ann,['A' 'B']", "is neither JSON nor a Python literal"),  # as NumPy prints two ids
        ("a.csv", "ann,[1.5]", "'item_ids' is [1.5], expected"),
        ("a.csv", "ann," + "1 " * 2**20, "longer than 1048576 bytes"),
        ("a.csv", 'ann,"' + "1\n" * 2**20 + '"', "longer than 1048576 bytes: is a quote missing?"),
        ("a.jsonl", "{", "not JSON"),
        ("a.jsonl", "[" * 100_000, "not JSON"),
        ("a.jsonl", "[1]", "is list"),
        ("a.jsonl", '{"item_ids": [1]}', "'user_id' is None, expected text"),
        ("a.jsonl", '{"user_id": true, "item_ids": [1]}', "'user_id' is True"),
        ("a.jsonl", '{"user_id": "a", "item_ids": [true]}', "'item_ids' is [True], expected"),
        ("a.jsonl", '{"user_id": "a", "item_ids": [1.0]}', "'item_ids' is [1.0]"),
        ("a.jsonl", '{"user_id": "a", "item_ids": "1 2"}', "'item_ids' is '1 2'"),
        ("a.jsonl", '{"user_id": "a"}', "'item_ids' is None"),
        ("a.jsonl", '{"user_id": "\\ud800", "item_ids": []}', "surrogates not allowed"),
        ("a.jsonl", '{"user_id": "a", "item_ids": ["\\ud800"]}', "surrogates not allowed"),
    ],
)
def test_a_record_that_cannot_be_read_is_numbered_and_stops_nothing(tmp_path, name, line, reason):
    line = line if isinstance(line, bytes) else line.encode()
    good = {"txt": b"bob 7", "tsv": b"bob\t7", "csv": b"bob,7", "jsonl": b'{"user_id": "bob", "item_ids": [7]}'}
    good = good[name.rpartition(".")[2]]
    head = b"user_id,item_ids\n" if name == "a.csv" else b""
    path = written(tmp_path, name, head + b"\n".join([good, line, good, b""]))
    with RecordFile(path, queries=False) as file:
        before, wrong, after = file
    for one in (before, after):
        assert (one.key, one.item_ids, one.reason) == ("bob", ["7"], None)
    assert reason in wrong.reason and wrong.line == 2 + bool(head)
    assert after.line == wrong.line + 1 + line.count(b"\n")
    assert wrong.item_ids == [] and len(wrong.text) < 200_000


@pytest.mark.parametrize("text", ["1_0", "1.0", "+1", "01", "١", "9" * 30, "NULL", "nan", "\\N"])
def test_ids_are_text_as_it_is(tmp_path, text):
    assert read(written(tmp_path, "a.txt", f"{text} {text}")) == [(1, text, [text], None)]
    line = json.dumps({"user_id": text, "item_ids": [text]})
    assert read(written(tmp_path, "a.jsonl", line)) == [(1, text, [text], None)]


def test_an_integer_has_any_number_of_digits(tmp_path):
    line = '{"user_id": 5, "item_ids": [' + "9" * 10_000 + "]}"
    assert read(written(tmp_path, "a.jsonl", line)) == [(1, "5", ["9" * 10_000], None)]


def test_a_quote_that_is_not_closed_rejects_what_it_spans(tmp_path):
    path = written(tmp_path, "a.csv", 'user_id,item_ids\nann,1\nbob,"2\ncarl,3\n')
    assert read(path) == [(2, "ann", ["1"], None), (3, "", [], "the record is not CSV: unexpected end of data")]


@pytest.mark.parametrize("end", [b"", b"\n", b"\r\n"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("more", [0, 1])
def test_a_line_of_a_mebibyte_is_the_longest(tmp_path, end, mark, more):
    path = written(tmp_path, "a.txt", mark + b"ann " + b"7" * (2**20 - 4 + more) + (end and end + b"bob 7"))
    found = read(path)
    assert (found[0][3] is None) == (not more)
    assert found[1:] == ([(2, "bob", ["7"], None)] if end else [])


def test_a_long_history_fits_into_a_cell(tmp_path):
    items = ["123456"] * 100_000  # more than the 128 KiB that Python's csv reads by default
    path = written(tmp_path, "a.csv", f"user_id,item_ids\nann,{' '.join(items)}")
    assert read(path) == [(2, "ann", items, None)]


def test_blank_lines_count_unless_they_end_the_file(tmp_path):
    assert [one[0] for one in read(written(tmp_path, "a.txt", "a 1\n\n\nb 2\n\n\n\n"))] == [1, 2, 3, 4]
    assert read(written(tmp_path, "a.txt", "")) == []
    assert read(written(tmp_path, "a.csv", "user_id,item_ids\n")) == []


@pytest.mark.parametrize(
    ("content", "n_records"),
    [("a,1\n" + 20_000 * " \n" + "b,2\n" + 20_000 * "\n", 20_002), ('"a' + 16_000 * (" " * 999 + "\n"), 1)],
)
def test_blank_lines_and_endless_records_take_no_memory(tmp_path, content, n_records):
    path = written(tmp_path, "a.csv", f"user_id,item_ids\n{content}")
    tracemalloc.start()
    try:
        with RecordFile(path, queries=False) as file:
            assert sum(1 for _ in file) == n_records
        assert tracemalloc.get_traced_memory()[1] < (500_000 if n_records > 1 else 8 * 2**20)
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("name", "content", "queries", "reason"),
    [
        ("a.xlsx", "a 1", False, r"ends in '.xlsx', expected .txt, .tsv, .csv, .jsonl, .parquet, text also with .gz"),
        ("a.parquet.gz", "", False, "ends in '.parquet.gz'"),
        ("a.tsv", "red pen", True, "ends in '.tsv', expected .txt, .csv"),
        ("a.csv", "", False, "expected one 'user_id'"),
        ("a.csv", "user_id,items\na,1", False, "expected one 'item_ids'"),
        ("a.csv", "user_id,user_id,item_ids\na,b,1", False, "expected one 'user_id'"),
        ("a.csv", "user_id,item_ids\ra,1\r", False, "a.csv, line 1: the record is not CSV: new-line character"),
        ("a.csv", "user_id,item_ids\na,1\n".encode("utf-16"), False, "a.csv, line 1: the line is not UTF-8"),
        ("a.txt.gz", "no gzip", False, "a.txt.gz: truncated or corrupt gzip"),
        ("a.txt.gz", gzip.compress(b"ann 1\n" * 9, mtime=0)[:-9], False, "a.txt.gz: truncated or corrupt gzip"),
        ("a.parquet", "no parquet", False, "a.parquet is not a Parquet file"),
    ],
)
def test_a_file_that_makes_no_sense_is_refused_whole(tmp_path, name, content, queries, reason):
    with pytest.raises(ValueError, match=reason):
        read(written(tmp_path, name, content), queries)


def test_columns_of_parquet_are_required(tmp_path):
    pd.DataFrame({"user_id": ["ann"], "items": [[1]]}).to_parquet(tmp_path / "a.parquet")
    with pytest.raises(ValueError, match="expected one 'item_ids'"):
        read(tmp_path / "a.parquet")


TEXTS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1)


@given(user=TEXTS, items=st.lists(TEXTS | st.integers()))
@example(user="ann", items=["A 1", "[", "", "-1", "a\u2028b", "a,b", 'a"b', "\r", "\x85"])
@example(user="[x]", items=[])
@example(user=" ann ", items=[])
def test_csv_and_json_hold_any_id(tmp_path_factory, user, items):
    """What one format cannot hold is rejected, never changed."""
    path, texts = tmp_path_factory.mktemp("any"), list(map(str, items))
    with open(path / "a.csv", "w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows([["user_id", "item_ids"], [user, json.dumps(items)]])
    written(path, "a.jsonl", json.dumps({"user_id": user, "item_ids": items}))
    allowed = user.strip() and not has_controls(user)
    for name in ("a.csv", "a.jsonl"):
        [(_, key, found, reason)] = read(path / name)
        assert (key, found) == ((user, texts) if allowed else ("", [])) and (reason is None) == bool(allowed)


def test_a_file_that_changes_is_refused(tmp_path):
    path = written(tmp_path, "a.txt", "ann 1\nbob 2\n")
    with RecordFile(path, queries=False) as file:
        facts = file.facts()
        assert facts == file.facts() and len(list(file)) == 2
        written(tmp_path, "b.txt", "carl 3\n")
        os.replace(tmp_path / "b.txt", path)  # another file of this name: the opened one is read on
        file.check()
        assert [one.key for one in file] == ["ann", "bob"]
    with RecordFile(path, queries=False) as file:
        assert file.facts() != facts
        with open(path, "a") as again:
            again.write("dora 4\n")
        with pytest.raises(ValueError, match=r"a\.txt changed while it was read: run again"):
            file.check()


# --- a data set's own histories ---


@pytest.fixture
def shop(tmp_path):
    items = [{"item_id": item_id, "title": "Pen"} for item_id in (7, -1, 9)]
    folder.write_folder(tmp_path / "shop", items, [("ann", [9, -1]), ("bob", []), ("carl", [7])])
    return tmp_path / "shop"


def test_histories_of_a_data_set(shop):
    everybody = [(1, "ann", ["9", "-1"], None), (2, "bob", [], None), (3, "carl", ["7"], None)]
    with DataHistories(shop) as histories:
        assert [(one.line, one.key, one.item_ids, one.reason) for one in histories] == everybody
        everything = histories.facts()
    with DataHistories(shop, users=["carl", "ann", "carl"]) as histories:
        assert [(one.line, one.key) for one in histories] == [(3, "carl"), (1, "ann")]
        assert histories.facts() != everything
    assert read(shop / "sequences.tsv.gz") == everybody  # the same as a file


@pytest.mark.parametrize("more", ["", " "])
def test_the_files_of_a_data_set_are_read_as_they_are_there(tmp_path, more):
    """With `more` they are sequences.jsonl.gz."""
    ids = ["[1]", f"A{more}\u00a01", "-1", "007"]
    histories = [("ann", ids), ("b\u00a0b", []), ("5", ids[::-1])]
    folder.write_folder(tmp_path / "shop", [{"item_id": one, "title": "Pen"} for one in ids], histories)
    [path] = (tmp_path / "shop").glob("sequences*")
    with DataHistories(tmp_path / "shop") as shop:
        assert [(one.key, one.item_ids) for one in shop] == histories
    assert [one[1:] for one in read(path)] == [(*one, None) for one in histories]


def test_a_line_of_a_data_set_may_hold_any_white_space_but_spaces(tmp_path):
    (tmp_path / "items.jsonl").write_text('{"item_id": "A\u00a01", "title": "Pen"}', "utf-8")
    path = written(tmp_path, "sequences.tsv", "ann\tA\u00a01 A\u00a01")
    with DataHistories(tmp_path) as shop:
        assert [one.item_ids for one in shop] == [one[2] for one in read(path)] == [["A\u00a01"] * 2]


def test_an_unknown_customer_is_named(shop):
    with pytest.raises(ValueError, match="user 'dora' is not among the 3 users, such as 'ann'"):
        DataHistories(shop, users=["ann", "dora"])
    (shop / "sequences.tsv.gz").unlink()
    with pytest.raises(ValueError, match=r"shop has no histories: add sequences\.tsv"):
        DataHistories(shop)


def test_the_ending_is_the_format():
    assert [batch_io.ending(name) for name in ("a.b.csv", "x/a.tsv.gz", "a")] == [".csv", ".tsv.gz", ""]
