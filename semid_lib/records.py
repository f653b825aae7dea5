"""The lines of a batch: read one by one from text, CSV or JSONL; what cannot be read is kept with its reason.

One record is one line, so that a file larger than memory can be streamed and a line number says where to look.

| file     | a history                                   | a query (text)                       |
| -------- | ------------------------------------------- | ------------------------------------ |
| `.txt`   | `user_id item_1 item_2 ...`                 | the query                            |
| `.csv`   | columns `user_id`, `item_ids` ("1 2 3")     | column `query`                       |
| `.jsonl` | `{"user_id": "ann", "item_ids": [1, 2, 3]}` | `{"query": "red nail polish"}`       |
"""

import csv
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

ENDINGS = (".txt", ".csv", ".jsonl")
_LONGEST = 2**20  # bytes of one line
_ITEM_ID = re.compile(r"-?[0-9]{1,18}")


class Record(NamedTuple):
    """One line: what it says, or why it cannot be read."""

    line: int  # from 1; a CSV header counts
    n_bytes: int  # about: 1 for a line of spaces
    text: str  # the line as it stands, without its end; of spaces nothing
    key: str  # the user id, or the query itself
    item_ids: list[int]  # oldest first; empty for a query
    reason: str | None = None


def read(path: str | Path, queries: bool) -> Iterator[Record]:
    """The records of a file, by its ending; empty lines at the end of the file are no records.

    queries: the lines hold texts instead of histories. Raises ValueError for another ending, and for a CSV file
    without the columns that are needed.
    """
    path = Path(path)
    if path.suffix not in ENDINGS:
        raise ValueError(f"{path} ends in {path.suffix!r}, expected {', '.join(ENDINGS)}")
    with open(path, "rb") as stream:
        lines = _lines(stream)
        if path.suffix == ".csv":
            parse = _csv_parser(path, next(lines, None), queries)
        else:
            parse = {".txt": _parse_text, ".jsonl": _parse_json}[path.suffix]
        n_empty = 0  # they are counted, not kept: there may be any number
        for line, raw, reason in lines:
            text = raw.decode("utf-8", "backslashreplace").rstrip("\r\n")
            if reason is None and not text.strip():
                n_empty += 1
                continue
            for number in range(line - n_empty, line):
                yield Record(number, 1, "", "", [], "the line is empty")
            n_empty = 0
            yield _record(line, raw, text, reason, parse, queries)


def _lines(stream: BinaryIO) -> Iterator[tuple[int, bytes, str | None]]:
    """Number, bytes and complaint of each line; of one that is too long only the beginning is kept."""
    number = 0
    while raw := stream.readline(_LONGEST):
        number += 1
        reason = None
        if not raw.endswith(b"\n") and len(raw) == _LONGEST:
            reason = f"the line is longer than {_LONGEST} bytes"
            while (rest := stream.readline(_LONGEST)) and not rest.endswith(b"\n"):
                pass
            raw = raw[:1000]
        if number == 1:
            raw = raw.removeprefix(b"\xef\xbb\xbf")
        yield number, raw, reason


def _record(line: int, raw: bytes, text: str, reason: str | None, parse: Callable, queries: bool) -> Record:
    key, item_ids = "", []
    try:
        if reason is not None:
            raise ValueError(reason)
        try:
            raw.decode("utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(f"the line is not UTF-8: {error.reason} at byte {error.start}") from error
        key, item_ids = parse(text, queries)
        if not key.strip():
            raise ValueError(f"the {'query' if queries else 'user id'} is empty")
        key.encode("utf-8")  # JSON may hold half of a surrogate pair, which no file can
    except ValueError as error:
        return Record(line, len(raw), text, "", [], str(error))
    return Record(line, len(raw), text, key, item_ids)


def _parse_text(text: str, queries: bool) -> tuple[str, list[int]]:
    if queries:
        return text.strip(), []
    user_id, *items = text.split()
    return user_id, _item_ids(items)


def _item_ids(texts: list[str]) -> list[int]:
    if wrong := next((text for text in texts if not _ITEM_ID.fullmatch(text)), None):
        raise ValueError(f"item id {wrong[:50]!r}, expected an integer")
    return [int(text) for text in texts]


def _parse_json(text: str, queries: bool) -> tuple[str, list[int]]:
    try:
        record = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"the line is not JSON: {error}") from error
    if not isinstance(record, dict):
        raise ValueError(f"the line is {type(record).__name__}, expected an object")
    if queries:
        return _json_text(record, "query", (str,)), []
    user_id, item_ids = _json_text(record, "user_id", (str, int)), record.get("item_ids")
    if not isinstance(item_ids, list) or not all(type(item) is int for item in item_ids):
        raise ValueError("'item_ids' is missing or not a list of integers")
    return user_id, item_ids


def _json_text(record: dict[str, Any], name: str, types: tuple[type, ...]) -> str:
    if type(record.get(name)) not in types:
        raise ValueError(f"{name!r} is missing or not {' or '.join(kind.__name__ for kind in types)}")
    return str(record[name])


def _csv_parser(path: Path, header: tuple | None, queries: bool) -> Callable[[str, bool], tuple[str, list[int]]]:
    names = [] if header is None else next(csv.reader([header[1].decode("utf-8", "replace")]), [])
    names = [name.strip() for name in names]
    wanted = ["query"] if queries else ["user_id", "item_ids"]
    if missing := [name for name in wanted if names.count(name) != 1]:
        raise ValueError(f"{path} has the columns {names}, expected one {missing[0]!r}")

    def parse(text: str, queries: bool) -> tuple[str, list[int]]:
        try:
            [cells] = csv.reader([text], strict=True)
        except csv.Error as error:
            raise ValueError(f"the line is not CSV: {error}") from error
        if len(cells) != len(names):
            raise ValueError(f"the line has {len(cells)} cells, the header {len(names)}")
        found = dict(zip(names, cells, strict=True))
        return (found["query"].strip(), []) if queries else (found["user_id"], _item_ids(found["item_ids"].split()))

    return parse
