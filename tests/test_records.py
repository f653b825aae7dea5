"""Lines of a batch: what each format says, and a reason with its number for what cannot be read."""

import tracemalloc

import pytest

from semid_lib import records


def written(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def read(path, queries=False):
    return [(one.line, one.key, one.item_ids, one.reason) for one in records.read(path, queries)]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.txt", "ann 1 -2 3\n\t bob\r\ncarl 7"),
        ("a.csv", 'item_ids,age,user_id\n1 -2 3,30,ann\n"",31,"bob"\r\n7,,carl'),
        (
            "a.jsonl",
            '{"user_id": "ann", "item_ids": [1, -2, 3]}\n{"item_ids": [], "user_id": "bob", "more": 1}\n'
            '{"user_id": "carl", "item_ids": [7]}\n\n\n',
        ),
    ],
)
def test_histories_in_every_format(tmp_path, name, content):
    found = read(written(tmp_path, name, content))
    assert [one[1:] for one in found] == [("ann", [1, -2, 3], None), ("bob", [], None), ("carl", [7], None)]
    assert [one[0] for one in found] == ([2, 3, 4] if name == "a.csv" else [1, 2, 3])
    with_mark = written(tmp_path, name, b"\xef\xbb\xbf" + content.encode())
    assert read(with_mark) == found


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


@pytest.mark.parametrize(
    ("name", "line", "reason"),
    [
        ("a.txt", "ann 1 x", "item id 'x'"),
        ("a.txt", "ann 1_0", "item id '1_0'"),
        ("a.txt", "ann 1.0", "item id '1.0'"),
        ("a.txt", "ann ١", "item id '١'"),
        ("a.txt", "ann " + "9" * 30, "item id '999"),
        ("a.txt", " \t ", "empty"),
        ("a.txt", b"\xff 1", "not UTF-8: invalid start byte at byte 0"),
        ("a.txt", "ann " + "1 " * 2**20, "longer than 1048576 bytes"),
        ("a.csv", "ann", "1 cells, the header 2"),
        ("a.csv", 'ann,"1', "not CSV"),
        ("a.csv", ",1 2", "user id is empty"),
        ("a.jsonl", "{", "not JSON"),
        ("a.jsonl", "[" * 100_000, "not JSON"),
        ("a.jsonl", "[1]", "is list"),
        ("a.jsonl", '{"item_ids": [1]}', "'user_id' is missing"),
        ("a.jsonl", '{"user_id": true, "item_ids": [1]}', "'user_id' is missing or not"),
        ("a.jsonl", '{"user_id": "a", "item_ids": [true]}', "'item_ids' is missing or not"),
        ("a.jsonl", '{"user_id": "a", "item_ids": [1.0]}', "'item_ids' is missing or not"),
        ("a.jsonl", '{"user_id": "a"}', "'item_ids' is missing"),
        ("a.jsonl", '{"user_id": "\\ud800", "item_ids": []}', "surrogates not allowed"),
    ],
)
def test_a_line_that_cannot_be_read_is_numbered_and_stops_nothing(tmp_path, name, line, reason):
    line = line if isinstance(line, bytes) else line.encode()
    good = {"a.txt": b"bob 7", "a.csv": b"bob,7", "a.jsonl": b'{"user_id": "bob", "item_ids": [7]}'}[name]
    head = b"user_id,item_ids\n" if name == "a.csv" else b""
    path = written(tmp_path, name, head + b"\n".join([good, line, good, b""]))
    before, wrong, after = records.read(path, queries=False)
    assert (
        (before.key, before.item_ids, before.reason) == (after.key, after.item_ids, after.reason) == ("bob", [7], None)
    )
    assert reason in wrong.reason and wrong.line == 2 + bool(head)
    assert wrong.item_ids == [] and len(wrong.text) < 200_000


def test_empty_lines_count_unless_they_end_the_file(tmp_path):
    assert [one[0] for one in read(written(tmp_path, "a.txt", "a 1\n\n\nb 2\n\n\n\n"))] == [1, 2, 3, 4]
    assert read(written(tmp_path, "a.txt", "")) == []
    assert read(written(tmp_path, "a.csv", "user_id,item_ids\n")) == []


def test_empty_lines_take_no_memory_however_many(tmp_path):
    path = written(tmp_path, "a.txt", "a 1\n" + 20_000 * " \n" + "b 2\n" + 20_000 * "\n")
    tracemalloc.start()
    try:
        assert sum(1 for _ in records.read(path, queries=False)) == 20_002
        assert tracemalloc.get_traced_memory()[1] < 500_000
    finally:
        tracemalloc.stop()


def test_a_json_user_id_may_be_a_number(tmp_path):
    assert read(written(tmp_path, "a.jsonl", '{"user_id": 5, "item_ids": [1]}')) == [(1, "5", [1], None)]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.tsv", "a 1", r"ends in '.tsv'"),
        ("a.csv", "", "expected one 'user_id'"),
        ("a.csv", "user_id,items\na,1", "expected one 'item_ids'"),
        ("a.csv", "user_id,user_id,item_ids\na,b,1", "expected one 'user_id'"),
    ],
)
def test_a_file_that_makes_no_sense_is_refused_whole(tmp_path, name, content, said):
    with pytest.raises(ValueError, match=said):
        read(written(tmp_path, name, content))
