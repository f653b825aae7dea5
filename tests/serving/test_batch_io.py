"""Records of a batch: what each format says, and a reason with its line for what cannot be read."""

import csv
import gzip
import json
import os
import tracemalloc

import pandas as pd
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from semid_lib.data import folder
from semid_lib.serving.batch_io import RecordFile, write_histories
from semid_lib.workbench.text import has_controls


def written(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def read(path, queries=False):
    with RecordFile(path, queries) as file:
        return [(one.line, one.key, one.item_ids, one.reason) for one in file]


HISTORIES = [
    ("a.txt", "ann A-1 -2 3\n\t bob\r\ncarl 7"),
    ("a.tsv", "ann\tA-1 -2 3\nbob\t\r\ncarl\t7"),
    ("a.csv", 'item_ids,age,user_id\nA-1 -2 3,30,ann\n"",31,"bob"\r\n7,,carl'),
    ("b.csv", 'user_id,item_ids\nann,"[""A-1"", -2, ""3""]"\nbob,[]\ncarl,7'),
    ("c.csv", "user_id,item_ids\nann,\"['A-1', -2, '3']\"\nbob,[]\ncarl,['7']"),
    ("a.jsonl", '{"user_id": "ann", "item_ids": ["A-1", -2, 3]}\n{"item_ids": [], "user_id": "bob", "more": 1}\n'
     '{"user_id": "carl", "item_ids": ["7"]}\n\n\n'),
]  # fmt: skip


@pytest.mark.parametrize(("name", "content"), HISTORIES)
def test_histories_in_every_format(tmp_path, name, content):
    found = read(written(tmp_path, name, content))
    expected = [("ann", ["A-1", "-2", "3"], None), ("bob", [], None), ("carl", ["7"], None)]
    assert [one[1:] for one in found] == expected
    assert [one[0] for one in found] == ([2, 3, 4] if name.endswith(".csv") else [1, 2, 3])
    assert read(written(tmp_path, name, b"\xef\xbb\xbf" + content.encode())) == found
    assert read(written(tmp_path, f"{name}.gz", gzip.compress(content.encode()))) == found


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("q.txt", " red, nail polish \nshampoo\f\n"),
        ("q.csv", 'id,query\n1,"red, nail polish"\n2,shampoo'),
        ("q.jsonl", '{"query": "red, nail polish", "item_ids": [4]}\n{"query": "shampoo"}'),
    ],
)
def test_queries_in_every_format(tmp_path, name, content):
    found = read(written(tmp_path, name, content), queries=True)
    assert [one[1:] for one in found] == [("red, nail polish", [], None), ("shampoo", [], None)]
    pd.DataFrame({"query": [one[1] for one in found]}).to_parquet(tmp_path / "q.parquet")
    assert [one[1:] for one in read(tmp_path / "q.parquet", queries=True)] == [one[1:] for one in found]


def test_histories_in_parquet(tmp_path):
    for user_ids, item_ids in ((["ann", "7"], [["A 1", "17"], []]), ([11, 7], [[1, -2], []])):
        pd.DataFrame({"age": 3, "item_ids": item_ids, "user_id": user_ids}).to_parquet(tmp_path / "a.parquet")
        expected = [(1, str(user_ids[0]), list(map(str, item_ids[0])), None), (2, "7", [], None)]
        assert read(tmp_path / "a.parquet") == expected
    rows = {"user_id": ["ann", None, "carl"], "item_ids": [[1.5], [2.0], [None]]}
    pd.DataFrame(rows).to_parquet(tmp_path / "a.parquet")
    reasons = [reason for *_, reason in read(tmp_path / "a.parquet")]
    expected = "expected a list of text or integers"
    assert reasons == [f"'item_ids' is [1.5], {expected}", "'user_id' is None, expected text",
                       f"'item_ids' is [None], {expected}"]  # fmt: skip
    pd.DataFrame({"user_id": ["ann"], "items": [[1]]}).to_parquet(tmp_path / "a.parquet")
    with pytest.raises(ValueError, match="expected one 'item_ids'"):
        read(tmp_path / "a.parquet")


LONG = "1 " * 2**20
WRONG = {
    "a.txt": [
        (" \t ", "empty"), (b"\xff 1", "not UTF-8: invalid start byte at byte 0"),
        ("ann " + LONG, "longer than 1048576 bytes"), ("a\0nn 1", r"the user id is 'a\x00nn', expected text without"),
    ],
    "a.tsv": [("ann 1", "expected a user id, a tab and item ids"), ("\t1", "user id is empty")],
    "a.csv": [
        ("ann", "1 cells, the header 2"), ('"a"n,1', "not CSV"), ('"an\nn",1', r"the user id is 'an\nn', expected"),
        ('"a\nn"n,1', "not CSV"), ("an\rn,1", "not CSV"), (b'ann,"\xff"', "not UTF-8"), (",1 2", "user id is empty"),
        ("ann,[1", "'[1' is neither JSON nor a Python literal: write lists as JSON"),
        ("ann,['A' 'B']", "is neither JSON nor a Python literal"),  # as NumPy prints two ids
        ("ann," + LONG, "longer than 1048576 bytes"),
        ('ann,"' + ("1 " * 500 + "\n") * 2**11 + '"', "longer than 1048576 bytes: is a quote missing?"),
    ],
    "a.jsonl": [
        ("{", "not JSON"), ("[" * 100_000, "not JSON"), ("[1]", "is list"),
        ('{"item_ids": [1]}', "'user_id' is None, expected text"),
        ('{"user_id": true, "item_ids": [1]}', "'user_id' is True"),
        ('{"user_id": "a", "item_ids": [true]}', "'item_ids' is [True], expected"),
        ('{"user_id": "a", "item_ids": "1 2"}', "'item_ids' is '1 2'"), ('{"user_id": "a"}', "'item_ids' is None"),
        ('{"user_id": "\\ud800", "item_ids": []}', "surrogates not allowed"),
        ('{"user_id": "a", "item_ids": ["\\ud800"]}', "surrogates not allowed"),
    ],
}  # fmt: skip
GOOD = {"a.txt": b"bob 7", "a.tsv": b"bob\t7", "a.csv": b"bob,7", "a.jsonl": b'{"user_id": "bob", "item_ids": [7]}'}


@pytest.mark.parametrize(("name", "line", "reason"), [(name, *case) for name, cases in WRONG.items() for case in cases])
def test_a_record_that_cannot_be_read_is_numbered_and_stops_nothing(tmp_path, name, line, reason):
    line = line if isinstance(line, bytes) else line.encode()
    head = b"user_id,item_ids\n" if name == "a.csv" else b""
    path = written(tmp_path, name, head + b"\n".join([GOOD[name], line, GOOD[name], b""]))
    with RecordFile(path, queries=False) as file:
        before, wrong, after = file
    for one in (before, after):
        assert (one.key, one.item_ids, one.reason) == ("bob", ["7"], None)
    assert reason in wrong.reason and wrong.line == 2 + bool(head)
    assert after.line == wrong.line + 1 + line.count(b"\n")
    assert wrong.item_ids == [] and len(wrong.text) < 200_000


@pytest.mark.parametrize("text", ["1_0", "1.0", "+1", "01", "١", "9" * 30, "NULL", "\\N"])
def test_ids_are_text_as_it_is(tmp_path, text):
    assert read(written(tmp_path, "a.txt", f"{text} {text}")) == [(1, text, [text], None)]
    line = json.dumps({"user_id": text, "item_ids": [text]})
    assert read(written(tmp_path, "a.jsonl", line)) == [(1, text, [text], None)]


def test_long_numbers_and_long_histories_are_read(tmp_path):
    line = '{"user_id": 5, "item_ids": [' + "9" * 10_000 + "]}"
    assert read(written(tmp_path, "a.jsonl", line)) == [(1, "5", ["9" * 10_000], None)]
    items = ["123456"] * 100_000  # more than the 128 KiB that Python's csv reads by default
    assert read(written(tmp_path, "a.csv", f"user_id,item_ids\nann,{' '.join(items)}")) == [(2, "ann", items, None)]


def test_a_quote_that_is_not_closed_rejects_what_it_spans(tmp_path):
    path = written(tmp_path, "a.csv", 'user_id,item_ids\nann,1\nbob,"2\ncarl,3\n')
    assert read(path) == [(2, "ann", ["1"], None), (3, "", [], "the record is not CSV: unexpected end of data")]


@pytest.mark.parametrize("end", [b"", b"\n", b"\r\n"])
@pytest.mark.parametrize("more", [0, 1])
def test_a_line_of_a_mebibyte_is_the_longest(tmp_path, end, more):
    line = b"\xef\xbb\xbfann " + b"7" * (2**20 - 4 + more)
    found = read(written(tmp_path, "a.txt", line + (end and end + b"bob 7")))
    assert (found[0][3] is None) == (not more)
    assert found[1:] == ([(2, "bob", ["7"], None)] if end else [])


def test_blank_lines_count_unless_they_end_the_file(tmp_path):
    assert [one[0] for one in read(written(tmp_path, "a.txt", "a 1\n\n\nb 2\n\n\n\n"))] == [1, 2, 3, 4]
    assert read(written(tmp_path, "a.txt", "")) == read(written(tmp_path, "a.csv", "user_id,item_ids\n")) == []


@pytest.mark.parametrize(
    ("content", "n_records"),
    [("a,1\n" + 5000 * " \n" + "b,2\n" + 5000 * "\n", 5002), ('"a' + 16_000 * (" " * 999 + "\n"), 1)],
)
def test_blank_lines_and_endless_records_take_no_memory(tmp_path, content, n_records):
    path = written(tmp_path, "a.csv", f"user_id,item_ids\n{content}")
    tracemalloc.start()
    try:
        with RecordFile(path, queries=False) as file:
            assert sum(1 for _ in file) == n_records
        assert tracemalloc.get_traced_memory()[1] < (300_000 if n_records > 1 else 8 * 2**20)
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("name", "content", "queries", "reason"),
    [
        ("a.xlsx", "a 1", False, r"ends in '.xlsx', expected .txt, .tsv, .csv, .jsonl, .parquet, text also with .gz"),
        ("a.parquet.gz", "", False, "ends in '.parquet.gz'"),
        ("a.tsv", "red pen", True, "ends in '.tsv', expected .txt, .csv"),
        ("a.csv", "", False, "expected one 'user_id'"),
        ("a.csv", "user_id,user_id,item_ids\na,b,1", False, "expected one 'user_id'"),
        ("a.csv", "user_id,item_ids\ra,1\r", False, "a.csv, line 1: the record is not CSV: new-line character"),
        ("a.csv", "user_id,item_ids\na,1\n".encode("utf-16"), False, "a.csv, line 1: the line is not UTF-8"),
        ("a.txt.gz", gzip.compress(b"ann 1\n" * 9, mtime=0)[:-9], False, "a.txt.gz is truncated or corrupt"),
        ("a.parquet", "no parquet", False, "a.parquet is truncated or corrupt"),
    ],
)
def test_a_file_that_makes_no_sense_is_refused_whole(tmp_path, name, content, queries, reason):
    with pytest.raises(ValueError, match=reason):
        read(written(tmp_path, name, content), queries)


TEXTS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1)


@settings(max_examples=40)
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
        os.replace(written(tmp_path, "b.txt", "carl 3\n"), path)  # the file that was opened is read on
        file.check()
        assert facts == file.facts() and [one.key for one in file] == ["ann", "bob"]
    with RecordFile(path, queries=False) as file:
        assert file.facts() != facts
        with open(path, "a") as again:
            again.write("dora 4\n")
        with pytest.raises(ValueError, match=r"a\.txt changed while it was read: run again"):
            file.check()


def test_the_histories_of_a_data_set_are_those_of_its_file(tmp_path):
    ids = ["[1]", "A \u00a01", "-1", "007"]
    histories = [("ann", ids), ("b\u00a0b", []), ("5", ids[::-1])]
    folder.write_folder(tmp_path / "shop", [{"item_id": one, "title": "Pen"} for one in ids], histories)
    shop, path = tmp_path / "shop", tmp_path / "histories.jsonl"
    write_histories(shop, [], path)
    assert [one[1:] for one in read(path)] == [(*one, None) for one in histories]
    write_histories(shop, ["5", "ann", "5"], path)
    assert [one[1] for one in read(path)] == ["5", "ann"]
    with pytest.raises(ValueError, match="user 'dora' is not among the 3 users, such as 'ann'"):
        write_histories(shop, ["ann", "dora"], path)
    next(shop.glob("sequences*")).unlink()
    with pytest.raises(ValueError, match=r"shop has no histories: add sequences\.tsv"):
        write_histories(shop, [], path)
