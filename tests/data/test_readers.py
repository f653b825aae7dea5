"""One reader for delimited text, JSON lines, Parquet and Arrow, with the line of what cannot be read."""

import csv
import gzip
import io
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from semid_lib.data import dataset, readers, text_files
from semid_lib.data.text_files import Layout

ROWS = {"sku": ["A-1", "A-2"], "name": ["Red pen, fine", 'A "big" cup\nwith a line break'], "price": ["3,50", ""]}


def written(rows: dict, separator: str = ",", **how) -> str:
    text = io.StringIO()
    csv.writer(text, delimiter=separator, **how).writerows([list(rows), *zip(*rows.values(), strict=True)])
    return text.getvalue()


def read(tmp_path, content, wanted=("sku",), name="shop.csv", layout=None, **how):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return readers.read(path, wanted, layout, **how)


def lines(table) -> list[int]:
    return [int(table.place(at).rpartition(" ")[2]) for at in range(len(table.frame))]


def arrow_bytes(table: pa.Table, kind: str) -> bytes:
    """A table as a Parquet file, an Arrow file or an Arrow stream."""
    sink = pa.BufferOutputStream()
    makers = {"parquet": pq.ParquetWriter, "arrow": pa.ipc.new_file, "stream": pa.ipc.new_stream}
    with makers[kind](sink, table.schema) as file:
        file.write_table(table)
    return sink.getvalue().to_pybytes()


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "cp1252"])
def test_separators_and_marked_encodings_are_found_out(tmp_path, separator, encoding):
    content = written(ROWS, separator).encode(encoding)
    layout = Layout(encoding=encoding) if encoding == "cp1252" else None
    table = read(tmp_path, content, layout=layout)
    assert table.frame.to_dict("list") == ROWS
    assert lines(table) == [2, 3]
    for name in ("shop.csv.gz", "shop.csv", "SHOP.CSV.GZ"):
        assert read(tmp_path, gzip.compress(content), name=name, layout=layout).frame.to_dict("list") == ROWS


@settings(max_examples=30)
@given(
    st.lists(st.tuples(*[st.text(st.characters(exclude_categories=["Cs"]), max_size=6)] * 2)),
    st.sampled_from(text_files.SEPARATORS[:4]),
)
def test_whatever_a_csv_writer_writes_is_read_back(tmp_path_factory, rows, separator):
    rows = [("A", "b"), *rows]
    columns = {"sku": [sku for sku, _ in rows], "name": [name for _, name in rows]}
    table = read(tmp_path_factory.mktemp("csv"), written(columns, separator), ["sku", "name"])
    assert table.frame.to_dict("list") == columns


def test_a_file_without_a_header_takes_the_names_that_are_given(tmp_path):
    table = read(tmp_path, "1::1193::5\n1::661::3\n", ["user"], "ratings.dat", Layout(names=["user", "item", "stars"]))
    assert table.frame.to_dict("list") == {"user": ["1", "1"], "item": ["1193", "661"], "stars": ["5", "3"]}
    assert lines(table) == [1, 2]


def test_comments_and_the_line_of_excel_come_before_a_header(tmp_path):
    for before in ("# export of 2024-01-01\n", "sep=,\n", "# a, b\n# c\n"):
        table = read(tmp_path, before + written(ROWS))
        assert table.frame.to_dict("list") == ROWS
        assert lines(table)[0] == 2 + before.count("\n")
    assert read(tmp_path, "sep=:\nsku:name\nA:b\n").frame.to_dict("list") == {"sku": ["A"], "name": ["b"]}
    assert read(tmp_path, "#sku,name\nA,b\n", ["#sku"]).frame.to_dict("list") == {"#sku": ["A"], "name": ["b"]}


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r", "\r\r\n"])
def test_lines_of_every_system_with_separators_at_their_end(tmp_path, end):
    table = read(tmp_path, f'sku,name,,{end}A,"b\rc",,{end}D,e,,{end}'.encode())
    assert table.frame.to_dict("list") == {"sku": ["A", "D"], "name": ["b\rc", "e"]}
    assert lines(table) == [2, 4]
    with pytest.raises(ValueError, match="line 2: 3 fields, expected 2 as in the header"):
        read(tmp_path, f"sku,name,{end}A,b,c{end}")


def test_quotes_that_a_backslash_escapes(tmp_path):
    content = 'sku,name\nA,"The \\"best\\", pen"\n'
    with pytest.raises(ValueError, match=r"shop\.csv, line 2: broken CSV .*escaped by a backslash, say so"):
        read(tmp_path, content)
    assert read(tmp_path, content, layout=Layout(escape="\\")).frame["name"].tolist() == ['The "best", pen']


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("sku,name\nA,b,c\n", "line 2: 3 fields, expected 2 as in the header"),
        ("sku,name\n\nA,b\n", "line 2: blank line, expected a record"),
        ('sku,name\nA,"b\n', r"line 2: broken CSV"),
        ("sku,sku\nA,b\n", "line 1: the header is .*, expected every name once"),
        ("name\nb\n", r"has no column 'sku', expected one of \['name'\]"),
        (b"sku,name\nA,caf\xe9\n", "line 2: byte 0xe9 is not UTF-8, .*latin-1"),
        ("sku,name\n", "is empty, expected at least one record"),
        ("", "is empty, expected at least one record"),
        (b"sku,name\nA," + b"x" * 300, "line 2: longer than 200 bytes"),
    ],
)
def test_what_is_wrong_with_a_text_file_is_said_with_its_line(tmp_path, monkeypatch, content, message):
    monkeypatch.setattr(text_files, "LONGEST_LINE", 200)
    with pytest.raises(ValueError, match=rf"shop\.csv.*{message}"):
        read(tmp_path, content)


@pytest.mark.parametrize("damage", [lambda b: b[:-12], lambda b: b[:15] + b"\xff\xff" + b[17:]])
@pytest.mark.parametrize("name", ["shop.csv.gz", "shop.jsonl.gz"])
def test_a_damaged_gzip_is_named(tmp_path, damage, name):
    content = written(ROWS) if "csv" in name else json.dumps({"sku": "A", "name": "b" * 50}) + "\n"
    with pytest.raises(ValueError, match=rf"{name}: truncated or corrupt gzip after [0-9,]+ bytes of its content"):
        read(tmp_path, damage(gzip.compress(content.encode())), name=name)


def test_json_lines_a_json_list_parquet_and_arrow_hold_the_same(tmp_path):
    records = [{"sku": "A-1", "size": 3, "tags": ["a"]}, {"sku": "A-2", "size": None, "tags": []}]
    lines = "".join(json.dumps(record) + "\n" for record in records)
    whole = pa.Table.from_pylist(records)
    contents = {"a.jsonl": lines.encode(), "b.json": json.dumps(records, indent=2).encode(), "c.ndjson": lines.encode()}
    contents |= {"d.parquet": arrow_bytes(whole, "parquet"), "e.arrow": arrow_bytes(whole, "arrow")}
    contents |= {"f.arrow": arrow_bytes(whole, "stream")}
    for name, written_bytes in contents.items():
        table = read(tmp_path, written_bytes, name=name)
        assert [list(map(bool, row)) for row in table.frame.isna().to_numpy()] == [[False] * 3, [False, True, False]]
        assert table.frame["sku"].tolist() == ["A-1", "A-2"], name
        assert [list(tags) for tags in table.frame["tags"]] == [["a"], []], name
        assert readers.names_of(tmp_path / name) == ["sku", "size", "tags"]
        only = read(tmp_path, written_bytes, ["size"], name, only=True).frame
        assert list(only) == ["size"] and only["size"][0] == 3


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"sku": "A"', "broken JSON at column 12"),
        ('{"sku": 1, "sku": 2}', "'sku' occurs twice"),
        ('{"sku": Infinity}', "Infinity does not fit"),
        ('{"sku": 1e400}', "1e400 does not fit"),
        ('{"sku": "\\ud800"}', "JSON that cannot be read"),
        ("[1]", r"\[1\] is not a JSON object"),
    ],
)
def test_json_that_could_be_read_wrongly_is_refused_with_its_line(tmp_path, line, message):
    good = '{"sku": "A"}\n'
    with pytest.raises(ValueError, match=rf"shop\.jsonl, line 2: .*{message}"):
        read(tmp_path, f"{good}{line}\n{good}", name="shop.jsonl")


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow"])
def test_what_is_no_parquet_or_arrow_file_is_named(tmp_path, name):
    with pytest.raises(ValueError, match=rf"{name} cannot be read"):
        read(tmp_path, "nothing of the kind", name=name)
    with pytest.raises(ValueError, match=r"a\.xlsx is a spreadsheet, expected CSV"):
        read(tmp_path, "", name="a.xlsx")
    with pytest.raises(ValueError, match="is not a file"):
        readers.read(tmp_path / "nowhere.csv")


@pytest.mark.parametrize(("name", "kind"), [("a.PARQUET", "parquet"), ("a.arrow", "stream")])
def test_types_that_pandas_supports_in_part_are_those_of_their_values(tmp_path, name, kind):
    columns = {"sku": pa.array(["A", "B", "A"]).dictionary_encode(), "price": pa.array([1.5, 2, 3], pa.float16())}
    frame = read(tmp_path, arrow_bytes(pa.table(columns), kind), name=name).frame
    assert frame.to_dict("list") == {"sku": ["A", "B", "A"], "price": [1.5, 2, 3]}


def test_a_folder_of_parts_is_one_table(tmp_path):
    folder = tmp_path / "orders.parquet"
    folder.mkdir()
    (folder / "_SUCCESS").touch()
    pq.write_table(pa.table({"sku": ["B"], "n": pa.nulls(1)}), folder / "part-1.parquet")
    pq.write_table(pa.table({"sku": ["A"], "n": pa.array([1], pa.int32())}), folder / "part-0.parquet")
    assert readers.names_of(folder) == ["sku", "n"]
    table = readers.read(folder, ["n"])
    assert table.frame["sku"].tolist() == ["A", "B"] and table.frame["n"].isna().tolist() == [False, True]
    pq.write_table(pa.table({"sku": ["C"]}), folder / "part-2.parquet")
    with pytest.raises(ValueError, match=r"part-2\.parquet has no column 'n'"):
        readers.read(folder, ["n"])


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_two_columns_of_one_name_are_refused(tmp_path, kind):
    content = arrow_bytes(pa.table([[1], ["a"], ["b"]], names=["sku", "name", "name"]), kind)
    with pytest.raises(ValueError, match=rf"a\.{kind} has the column 'name' twice"):
        read(tmp_path, content, name=f"a.{kind}")


@pytest.mark.parametrize("given", [{"encoding": "nope"}, {"encoding": "base64"}, {"escape": "ab"}, {"separator": ""}])
def test_a_layout_that_cannot_be_is_refused(given):
    with pytest.raises(ValueError, match=rf"{next(iter(given))} .*{next(iter(given.values()))}.*, expected"):
        Layout(**given)


@pytest.mark.parametrize("text", ["['Office' 'Pens']", "['Office'\n 'Pens']", "[\"it's\" 'new']"])
def test_lists_as_numpy_prints_them_are_refused_not_joined(text):
    with pytest.raises(ValueError, match="is neither JSON nor a Python literal: write lists as JSON"):
        readers.literal(text)


@given(st.lists(st.text(st.sampled_from("a'\" ,\\\n[]"), max_size=5), max_size=4))
def test_lists_as_python_prints_them_are_read(texts):
    assert readers.literal(str(texts)) == texts


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_a_folder_whose_name_a_shell_would_expand(tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "~").mkdir()
    (tmp_path / "~" / f"items.{kind}").write_bytes(arrow_bytes(pa.table({"item_id": [1], "title": ["Pen"]}), kind))
    assert list(dataset.load("~").items["title"]) == ["Pen"]
