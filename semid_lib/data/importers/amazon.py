"""Import raw Amazon dumps: reviews and metadata of 2014, 2018 or 2023."""

import contextlib
import html
import json
import re
from array import array
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from semid_lib.data import folder, times
from semid_lib.data.importers import writing
from semid_lib.data.importers.values import line_of, number, text_of
from semid_lib.data.importers.writing import ImportReport
from semid_lib.data.readers import is_nothing, literal
from semid_lib.data.table import category_paths
from semid_lib.data.text_files import lines
from semid_lib.workbench.text import has_controls, shown

_GARBAGE_TITLE = re.compile(r"getTime|<\s*/?(script|style|span|div|img|a)\b", re.IGNORECASE)  # in 2018


def import_amazon(
    metadata: str | Path,
    reviews: str | Path,
    output: str | Path,
    *,
    k_core: int = 5,
    min_rating: float = 0.0,
    overwrite: bool = False,
    progress: bool = False,
) -> ImportReport:
    """Import a raw Amazon dump (2014, 2018 or 2023; plain or gzipped), read line by line.

    A review is an interaction at its time, ties in file order. Left out are reviews below `min_rating`, then a user's
    second review of an item, then all outside the k-core. Items keep their ASINs as ids, in the order of the metadata,
    of which the first line of an ASIN counts; items of the k-core without metadata follow with an empty title.
    `k_core=0` keeps the whole catalogue. Users are numbered from 1 in the order of the reviews; reviewer ids are not
    written. Titles that are HTML or JavaScript, as in 2018, become empty. Only title, brand, description, categories
    and price are kept. Values that cannot be read are left out and counted.

    Raises
    ------
    ValueError
        Naming file and line of a line that is not a record, and if no interaction is left.

    Examples
    --------
    >>> import tempfile
    >>> from semid_lib.data import dataset as data
    >>> with tempfile.TemporaryDirectory() as here:
    ...     metadata, reviews = Path(here, "meta.json"), Path(here, "reviews.json")
    ...     _ = metadata.write_text("{'asin': 'B7', 'title': 'Soap &amp; water'}\\n")
    ...     _ = reviews.write_text('{"reviewerID": "R1", "asin": "B7", "unixReviewTime": 1400000000}\\n')
    ...     report = import_amazon(metadata, reviews, Path(here, "out"), k_core=0)
    ...     shop = data.load(Path(here, "out"))
    >>> shop.items["title"].tolist(), shop.histories.times, report.counts["items_without_metadata"]
    (['Soap & water'], array([1400000000]), 0)
    """
    if k_core < 0:
        raise ValueError(f"k_core is {k_core}, expected 0 or more")
    folder.check_output(output, overwrite)
    counts: dict[str, int] = {}
    found, asins = _read_reviews(reviews, min_rating, counts, progress)
    first = found.drop_duplicates(["user", "item"])
    counts["repeated_reviews"] = len(found) - len(first)
    kept = writing.k_core(first, k_core, "reviews", counts)
    in_core = [asins[code] for code in np.unique(kept["item"])]
    records = _read_metadata(metadata, set(in_core) if k_core else None, counts, progress)
    without = [{"item_id": asin, "title": ""} for asin in in_core if asin not in records]
    counts["items_without_metadata"] = len(without)
    users = (pd.factorize(kept["user"], sort=True)[0] + 1).astype(str)
    kept = kept.assign(user=users, item=[asins[code] for code in kept["item"]])
    return writing.write(output, [*records.values(), *without], kept, counts, reviews, overwrite)


def _read_reviews(
    path: str | Path, min_rating: float, counts: dict[str, int], progress: bool
) -> tuple[pd.DataFrame, list[str]]:
    """Interactions in time order (user and item as codes, time in nanoseconds), and the ASINs by code."""
    left_out = ("without_user_item_or_time", "with_unreadable_values", "below_min_rating")
    counts |= dict.fromkeys(("reviews", *(f"reviews_{why}" for why in left_out)), 0)
    code_of: dict[str, dict[str, int]] = {"user": {}, "item": {}}
    columns = {name: array("q") for name in ("user", "item", "time")}
    for review in _records(path, progress):
        counts["reviews"] += 1
        found = {"user": _first(review, "reviewerID", "user_id"), "item": _first(review, *_ASIN)}
        time, rating = _first(review, "timestamp", "unixReviewTime"), _first(review, "overall", "rating")
        moment, stars = times.nanosecond(number(time) or 0), 0 if rating is None else number(rating)
        if any(map(is_nothing, (*found.values(), time))) or time in (-1, "-1"):
            counts["reviews_without_user_item_or_time"] += 1
        elif moment is None or stars is None or not all(map(_is_text_id, found.values())):
            counts["reviews_with_unreadable_values"] += 1
        elif stars < min_rating:
            counts["reviews_below_min_rating"] += 1
        else:
            columns["time"].append(moment)
            for name, value in found.items():
                columns[name].append(code_of[name].setdefault(value, len(code_of[name])))
    frame = pd.DataFrame({name: np.frombuffer(column, dtype=np.int64) for name, column in columns.items()})
    return writing.in_time_order(frame), list(code_of["item"])


def _read_metadata(
    path: str | Path, wanted: set[str] | None, counts: dict[str, int], progress: bool
) -> dict[str, dict]:
    """ASIN -> item, in file order; of all items, or of those wanted."""
    kinds = ("metadata", "metadata_without_asin", "metadata_outside_k_core", "metadata_repeated")
    counts |= dict.fromkeys((*kinds, "garbage_titles", "unreadable_values"), 0)
    records: dict[str, dict] = {}
    for raw in _records(path, progress):
        counts["metadata"] += 1
        asin = _first(raw, *_ASIN)
        if not _is_text_id(asin):
            counts["metadata_without_asin"] += 1
        elif wanted is not None and asin not in wanted:
            counts["metadata_outside_k_core"] += 1
        elif asin in records:
            counts["metadata_repeated"] += 1
        else:
            records[asin] = {"item_id": asin} | _fields(raw, counts)
    return records


def _fields(raw: dict, counts: dict[str, int]) -> dict:
    """Our fields of one item; a value that cannot be read is counted and left out."""
    fields = {}
    for name, (read, *theirs) in _FIELDS.items():
        try:
            fields[name] = read(_first(raw, *theirs))
            json.dumps(fields[name], ensure_ascii=False).encode()  # half of a surrogate pair is no text
        except (ValueError, TypeError):
            counts["unreadable_values"] += 1
            fields[name] = read(None)
    if fields["title"] and _GARBAGE_TITLE.search(str(raw["title"])):
        counts["garbage_titles"] += 1
        fields["title"] = ""
    return fields


def _price(value) -> float | None:
    if is_nothing(value):
        return None
    if (found := number(value)) is None:
        raise ValueError("expected a price")
    return float(found)


def _paths(value) -> list[list[str]]:
    """Category paths; some dumps hold empty names or empty paths."""
    if isinstance(value, list):
        value = [part for part in value if part]
        value = [[name for name in part if name] if isinstance(part, list) else part for part in value]
    return [[" ".join(html.unescape(name).split()) for name in path] for path in category_paths(value)]


_ASIN = ("parent_asin", "asin")
# our name -> how it is read, and names in the dumps
_FIELDS: dict[str, tuple] = {
    "title": (line_of, "title"),
    "brand": (line_of, "brand", "store"),
    "description": (text_of, "description"),
    "categories": (_paths, "categories", "category"),
    "price": (_price, "price"),
}


def _first(record: dict, *names: str):
    """The first of some fields that has a value."""
    return next((record[name] for name in names if not is_nothing(record.get(name))), None)


def _is_text_id(value) -> bool:
    return isinstance(value, str) and not has_controls(value)


def _records(path: str | Path, progress: bool) -> Iterator[dict]:
    """The record of every line that is not blank: JSON, or a Python literal as in 2014."""
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path} is not a file, expected JSON lines (.gz)")
    for at, line in tqdm(lines(path), path.name, unit=" lines", disable=not progress):
        if line.strip():
            record = None
            with contextlib.suppress(ValueError):
                record = literal(line.decode())
            if not isinstance(record, dict):
                text = shown(line.decode(errors="replace").strip())
                raise ValueError(f"{path}, line {at}: {text}, expected a JSON object or a Python dict in UTF-8")
            yield record
