"""Write a data set folder, which `semid_lib.data.dataset.load` reads, from other people's files.

`import_table` takes a catalogue and interactions as CSV, JSON lines, Parquet or Arrow with columns of any name,
`import_amazon` the raw Amazon dumps of 2014, 2018 and 2023. What is left out is counted in the report. The commands
are `semid import table` and `semid import amazon`.
"""

import ast
import datetime
import decimal as decimals
import html
import json
import re
from array import array
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from semid_lib.data import folder, readers, times
from semid_lib.data.item_ids import read_ids
from semid_lib.data.readers import Layout, Table, is_nothing
from semid_lib.data.table import arrow_table, category_paths, typed
from semid_lib.workbench.text import has_controls, normal, shown

GARBAGE_TITLE = re.compile(r"getTime|<\s*/?(script|style|span|div|img|a)\b", re.IGNORECASE)  # in 2018
OUR_FIELDS = ("item_id", "title", "brand", "description", "categories", "price")
# column names that need no option, as they are most often written
OBVIOUS = {
    "item_id": "item_id itemid sku asin parent_asin product_id productid article_id product id",
    "title": "title name product_name product_title item_name",
    "brand": "brand brand_name manufacturer vendor",
    "description": "description product_description",
    "categories": "categories category category_path product_type",
    "price": "price",
    "user_id": "user_id userid customer_id customerid customer user reviewer_id reviewerid",
    "timestamp": "timestamp time datetime date created_at ordered_at order_date event_time unix_time unixreviewtime",
}


class ImportReport(NamedTuple):
    """What an import read, left out and wrote; columns: our names -> those of the files.

    >>> print(ImportReport(Path("shop"), {"reviews": 1200, "n_items": 7}, {"title": "name"}))
    title is read from name
    reviews  1,200
    n items      7
    """

    output: Path
    counts: dict[str, int]
    columns: Mapping[str, str] = {}
    left_out: Sequence[str] = ()  # columns, with the reason

    def __str__(self) -> str:
        lines = [f"{ours} is read from {theirs}" for ours, theirs in self.columns.items()]
        lines += [f"left out: {reason}" for reason in self.left_out]
        width = max(len(name) for name in self.counts)
        last = max(len(f"{count:,}") for count in self.counts.values())
        counts = (f"{name.replace('_', ' '):{width}}  {count:{last},}" for name, count in self.counts.items())
        return "\n".join([*lines, *counts])


def k_core_positions(users: np.ndarray, items: np.ndarray, k: int) -> np.ndarray:
    """Positions of the interactions in the k-core: the most where each user and each item has at least k.

    Removing a user may leave an item with too few and the other way round, so it repeats until all have k.
    users, items: (n,) integers from 0. Returns (n_kept,) int64, rising; everything for k = 0.

    Here item 2 has one interaction; without it user 1 has one; without that user, item 1 still has two:

    >>> k_core_positions(np.array([0, 0, 1, 1, 2, 2]), np.array([0, 1, 0, 2, 0, 1]), k=2)
    array([0, 1, 4, 5])
    """
    kept = np.arange(len(users))
    while True:
        user, item = users[kept], items[kept]
        enough = (np.bincount(user)[user] >= k) & (np.bincount(item)[item] >= k)
        if enough.all():
            return kept
        kept = kept[enough]


# --- tables ---


def import_table(
    items: str | Path,
    output: str | Path,
    *,
    item_id: str | None = None,
    title: str | None = None,
    brand: str | None = None,
    description: str | None = None,
    categories: str | None = None,
    price: str | None = None,
    category_separator: str = ">",
    interactions: str | Path | None = None,
    user_id: str | None = None,
    interaction_item_id: str | None = None,
    timestamp: str | None = None,
    time_unit: str = "auto",
    separator: str | None = None,
    decimal: str | None = None,
    encoding: str | None = None,
    escape: str | None = None,
    item_columns: str | None = None,
    interaction_columns: str | None = None,
    unknown_items: str = "error",
    k_core: int = 0,
    overwrite: bool = False,
) -> ImportReport:
    """Import a catalogue, and optionally interactions, from CSV, JSON lines, Parquet or Arrow with named columns.

    `item_id` to `price` name columns of the items; `user_id`, `interaction_item_id` (unless it is called as in the
    items) and `timestamp` those of the interactions. A column that is not named is found if it has an obvious name
    (`OBVIOUS`), and "" leaves it out; the report says which were taken. Item ids are the shop's own: integers if all
    are, else text.

    Categories are lists, JSON or Python lists, or one path as text with a separator. Lists of texts are joined, HTML
    entities decoded. A price becomes a number, without its currency. All other columns are kept as extra fields (text
    from CSV), under `source_<name>` if they are called like a field of ours; one whose values differ in type is left
    out, and reported. Words that stand for nothing, such as NULL and nan, are missing values.

    Interactions are put in time order, ties in file order; without `timestamp`, file order is time order. Times are
    ISO dates (UTC where they name no zone), compact dates, or Unix seconds to nanoseconds between 1990 and 2100; other
    numbers need a `time_unit`, one of `times.UNITS`. A repeated purchase is kept. `k_core` above 0 keeps the k-core of
    the interactions, and only its items.

    Of text files `separator`, `encoding` and `escape` are found out or as `readers.Layout` says; `item_columns` and
    `interaction_columns` name the columns of files without a header, with commas between them. `decimal` is the sign
    in prices, found out by default.

    Raises ValueError naming file, line and value for a missing column, a repeated item id, a time that cannot be read,
    an item that is not in the catalogue (unless `unknown_items` is "drop", which counts them), and if no interaction is
    left.

    >>> import tempfile
    >>> from semid_lib.data import dataset as data
    >>> with tempfile.TemporaryDirectory() as here:
    ...     shop, output = Path(here, "shop.csv"), Path(here, "shop")
    ...     _ = shop.write_text("sku;name;category;price\\nA-1;Red lipstick;Make-up > Lips;3,50\\n")
    ...     report = import_table(shop, output)
    ...     data.load(output).items.loc[0].to_dict()
    {'item_id': 'A-1', 'title': 'Red lipstick', 'categories': [['Make-up', 'Lips']], 'price': 3.5}
    >>> dict(report.columns)
    {'item_id': 'sku', 'title': 'name', 'categories': 'category', 'price': 'price'}
    """
    if unknown_items not in ("error", "drop"):
        raise ValueError(f"unknown_items is {unknown_items!r}, expected 'error' or 'drop'")
    if decimal not in (None, ".", ","):
        raise ValueError(f"decimal is {decimal!r}, expected '.' or ','")
    if k_core < 0 or (k_core and interactions is None):
        raise ValueError(f"k_core is {k_core}, expected 0 without interactions, else 0 or more")
    folder.check_output(output, overwrite)
    layout = Layout(separator, encoding, escape)
    asked = {"item_id": item_id, "title": title, "brand": brand, "description": description}
    asked |= {"categories": categories, "price": price}
    columns, table = _read(items, asked, layout, item_columns, needed=("item_id", "title"))
    ids = _item_ids(table, columns["item_id"])
    counts = {"items": len(table.frame)}
    records, left_out = _table_records(table, ids, columns, category_separator, decimal, counts)
    if interactions is None:
        folder.write_folder(output, records, overwrite=overwrite)
        return ImportReport(Path(output), counts | {"n_items": len(records)}, columns, left_out)
    asked = {"user_id": user_id, "item_id": interaction_item_id, "timestamp": timestamp}
    asked["item_id"] = asked["item_id"] or columns["item_id"]
    theirs, log = _read(interactions, asked, layout, interaction_columns, needed=("user_id", "item_id"), only=True)
    columns |= {f"interaction_{ours}" if ours == "item_id" else ours: name for ours, name in theirs.items()}
    found, users = _table_interactions(log, theirs, ids, unknown_items, time_unit, counts)
    kept = _k_core(found, k_core, "interactions", counts)
    if k_core:
        counts["items_outside_k_core"] = len(records) - kept["item"].nunique()
        records = [records[row] for row in np.unique(kept["item"])]
    kept = kept.assign(user=users[kept["user"]], item=np.array(ids, dtype=object)[kept["item"]])
    written = _write(interactions, output, records, kept, counts, overwrite)
    return written._replace(columns=columns, left_out=left_out)


def _read(
    path: str | Path,
    asked: Mapping[str, str | None],
    layout: Layout,
    names: str | None,
    needed: Sequence[str],
    only: bool = False,
) -> tuple[dict[str, str], Table]:
    """Which column each field comes from, and the table. asked: our name -> theirs, "" for none, None to find it."""
    given = [name for name in asked.values() if name]
    layout = Layout(layout.separator, layout.encoding, layout.escape, names.split(",") if names else None)
    there = readers.names_of(path, given, layout)
    plain = {re.sub(r"[\s-]+", "_", name.strip().lower()): name for name in reversed(there)}
    columns = {}
    for ours, theirs in asked.items():
        obvious = [plain[name] for name in OBVIOUS[ours].split() if name in plain]
        if theirs or (theirs is None and obvious):
            columns[ours] = theirs or obvious[0]
        elif ours in needed:
            option = f"--{ours.replace('_', '-')}"
            raise ValueError(f"{path} has columns {shown(there, 300)}, none for {ours}: name it ({option})")
    return columns, readers.read(path, list(columns.values()), layout, only)


def _item_ids(table: Table, column: str) -> list[int] | list[str]:
    """The item ids of a table, each once."""
    ids = read_ids(table.frame[column], table.fail, table.typed)
    seen: dict[str, int] = {}
    for at, item_id in enumerate(ids):
        if item_id is None:
            table.fail(at, f"no {column!r}, expected an item id")
        if seen.setdefault(str(item_id), at) != at:
            where = f"{table.unit} {table.lines[seen[str(item_id)]]}"
            table.fail(at, f"{column} {item_id!r} occurs before, in {where}, expected each item once")
    return ids


def _table_records(
    table: Table, ids: list, columns: Mapping[str, str], separator: str, decimal: str | None, counts: dict[str, int]
) -> tuple[list[dict], list[str]]:
    """One record an item, and which columns were left out."""
    values = {name: table.frame[name].tolist() for name in table.frame}
    kept: dict[str, Sequence] = {"item_id": ids}
    for ours in ("title", "brand", "description", "categories"):
        if ours in columns:
            read = (lambda value: category_paths(value, separator)) if ours == "categories" else _TEXTS[ours]
            kept[ours] = [_value(table, at, columns[ours], read, one) for at, one in enumerate(values[columns[ours]])]
    if "price" in columns:
        texts = values[columns["price"]]
        sign = decimal or decimal_sign(texts)
        kept["price"] = [None if is_nothing(one) else number(one, sign) for one in texts]
        lost = sum(found is None and not is_nothing(one) for found, one in zip(kept["price"], texts, strict=True))
        counts |= {"prices_without_a_number": lost} if lost else {}
    left_out = []
    for name in [name for name in values if name not in columns.values()]:
        field = f"source_{name}" if name in OUR_FIELDS else name
        if field in kept or (field != name and field in values):
            problem = f"column {name!r} would be kept as {field!r}"
            raise ValueError(f"{table.path}: {problem}, expected that name to be free")
        try:
            kept[field] = _alike(field, [_plain(value) for value in values[name]])
        except ValueError as error:
            left_out.append(str(error).replace(": leave it out", "").replace(". Make them alike, or leave it out", ""))
    return [dict(zip(kept, row, strict=True)) for row in zip(*kept.values(), strict=True)], left_out


def _alike(name: str, values: list) -> list:
    """The values of a column that Parquet can hold, if need be with null for words such as "None"."""
    try:
        arrow_table(pd.DataFrame({name: typed(values)}))
    except ValueError:
        values = [None if is_nothing(value) else value for value in values]
        arrow_table(pd.DataFrame({name: typed(values)}))
    return values


def _value(table: Table, at: int, column: str, read: Callable, value):
    try:
        return read(value)
    except ValueError as error:
        table.fail(at, f"column {column!r}: {error}")


def text_of(value, between: str = "\n") -> str:
    """The text of a title, brand or description: HTML entities decoded, lists joined, "" for nothing.

    >>> text_of(["Soap &amp; water", None, "NULL"]), text_of(1984.0)
    ('Soap & water', '1984')
    >>> text_of({"a": 1})
    Traceback (most recent call last):
        ...
    ValueError: {'a': 1}, expected text
    """
    if is_nothing(value):
        return ""
    if isinstance(value, str):
        return normal(html.unescape(value)).strip()
    if isinstance(value, list | tuple):
        return between.join(filter(None, (text_of(one, between) for one in value)))
    if isinstance(value, int | float) and not isinstance(value, bool) and np.isfinite(value):
        return str(int(value) if value == int(value) else value)
    raise ValueError(f"{shown(value)}, expected text")


def _line_of(value) -> str:
    """`text_of` in one line."""
    return " ".join(text_of(value, ", ").split())


_TEXTS: dict[str, Callable] = {"title": _line_of, "brand": _line_of, "description": text_of}


def decimal_sign(prices: Sequence) -> str:
    """The decimal sign of prices as text: "," only if every comma among them ends in one or two digits.

    >>> decimal_sign(["3,50", "1.200,00"]), decimal_sign(["1,200", "3.5"])
    (',', '.')
    """
    texts = [value for value in prices if isinstance(value, str) and "," in value]
    return "," if texts and all(re.search(r"[0-9],[0-9]{1,2}\D*$", text) for text in texts) else "."


def number(value, sign: str = ".") -> float | int | None:
    """A price without currency and thousands separators, or None if it is not one number.

    >>> number("$1,299.00"), number("3,50 €", ","), number("from 3 to 5"), number(7), number("3,50", ".")
    (1299.0, 3.5, None, 7, None)
    """
    if isinstance(value, str):
        thousands = "." if sign == "," else ","
        found = re.fullmatch(r"[^\d-]*(-?\d[\d.,' \u00a0\u202f]*?)[^\d]*", value.strip())
        whole = rf"[0-9]+|[0-9]{{1,3}}([{thousands}'\s][0-9]{{2,3}})*[{thousands}'\s][0-9]{{3}}"
        if not found or not re.fullmatch(rf"-?({whole})([{sign}][0-9]+)?", found[1]):
            return None
        return float(re.sub(rf"['\s{thousands}]", "", found[1]).replace(sign, "."))
    if isinstance(value, decimals.Decimal):
        value = float(value)
    fits = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 2**53
    return value if fits else None


def _plain(value):
    """A value that JSON can hold: missing becomes None, dates ISO text."""
    if isinstance(value, str):
        return normal(value)
    if value is None or value is pd.NA or value is pd.NaT or isinstance(value, bool | int):
        return None if value is pd.NA or value is pd.NaT else value
    if isinstance(value, float):
        return value if np.isfinite(value) else None
    if isinstance(value, list | tuple | np.ndarray):
        return [_plain(one) for one in value]
    if isinstance(value, dict):
        return {str(name): _plain(one) for name, one in value.items()}
    if isinstance(value, datetime.date | datetime.time | datetime.timedelta | decimals.Decimal):
        return str(value)
    raise ValueError(f"{shown(value)} is neither text nor a number")


def _table_interactions(
    table: Table, columns: Mapping[str, str], ids: list, unknown_items: str, unit: str, counts: dict[str, int]
) -> tuple[pd.DataFrame, pd.Index]:
    """Complete interactions with known items in time order (user, item, time), and the user ids by code."""
    frame = table.frame
    row_of = {str(item_id): row for row, item_id in enumerate(ids)}
    users = _texts(read_ids(frame[columns["user_id"]], table.fail_at(columns["user_id"]), table.typed))
    items = _texts(read_ids(frame[columns["item_id"]], table.fail_at(columns["item_id"]), table.typed))
    missing = {columns["user_id"]: users.isna(), columns["item_id"]: items.isna()}
    if "timestamp" in columns:
        missing[columns["timestamp"]] = _missing(frame[columns["timestamp"]])
    counts["interactions"] = len(frame)
    counts |= {f"interactions_without_{name}": int(found.sum()) for name, found in missing.items()}
    complete = ~np.any(list(missing.values()), axis=0)
    rows = np.array([row_of.get(item, -1) for item in items], dtype=np.int64)
    unknown = complete & (rows < 0)
    if unknown.any() and unknown_items == "error":
        at = int(unknown.argmax())
        problem = f"item {items[at]!r} is unknown, expected one of the items file, or unknown_items='drop'"
        table.fail(at, problem)
    counts["interactions_with_unknown_item"] = int(unknown.sum())
    kept = np.flatnonzero(complete & (rows >= 0))
    codes, names = pd.factorize(users[kept])
    found = {"user": codes, "item": rows[kept]}
    if "timestamp" in columns:
        column = columns["timestamp"]
        fail = table.fail_at(column)
        found["time"] = times.nanoseconds(frame[column].iloc[kept], lambda at, problem: fail(kept[at], problem), unit)
    return _in_time_order(pd.DataFrame(found)), pd.Index(names)


def _texts(ids: list) -> pd.Series:
    return pd.Series([value if value is None else str(value) for value in ids], dtype="str")


def _missing(column: pd.Series) -> np.ndarray:
    if pd.api.types.is_numeric_dtype(column):  # in Arrow's columns NaN is not null
        return np.isnan(column.to_numpy(np.float64, na_value=np.nan))
    if pd.api.types.is_datetime64_any_dtype(column):
        return column.isna().to_numpy()
    return np.array([is_nothing(value) for value in column.tolist()], dtype=bool)


def _in_time_order(found: pd.DataFrame) -> pd.DataFrame:
    """User by user, in time order; both sorts are stable, so ties stay in file order."""
    if "time" in found:
        found = found.sort_values("time", kind="stable")
    return found.sort_values("user", kind="stable")


def _k_core(found: pd.DataFrame, k: int, what: str, counts: dict[str, int]) -> pd.DataFrame:
    kept = found.iloc[k_core_positions(found["user"].to_numpy(), found["item"].to_numpy(), k)]
    counts[f"{what}_outside_k_core"] = len(found) - len(kept)
    return kept


def _write(
    source: str | Path,
    output: str | Path,
    records: Collection[dict],
    kept: pd.DataFrame,
    counts: dict[str, int],
    overwrite: bool,
) -> ImportReport:
    """Write items, and interactions in time order with the users and items by their ids; time in nanoseconds."""
    if kept.empty:
        raise ValueError(f"{source}: no interaction is left, expected at least one; counts: {counts}")
    users = kept.groupby("user", sort=False)
    seconds = (kept["time"] // 10**9).groupby(kept["user"], sort=False).agg(list).items() if "time" in kept else None
    folder.write_folder(output, records, users["item"].agg(list).items(), seconds, overwrite=overwrite)
    sizes = {"n_items": len(records), "n_users": len(users), "n_interactions": len(kept)}
    return ImportReport(Path(output), counts | sizes)


# --- Amazon ---


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
    of which the first line of an ASIN counts; items of the k-core without metadata follow, in the order of the reviews,
    with an empty title. `k_core=0` keeps the whole catalogue, otherwise it is that of the k-core. Users are numbered
    from 1 in the order of the reviews, and reviewer ids are not written. HTML entities are decoded; titles that are
    HTML or JavaScript, as in 2018, become empty. Only title, brand, description, categories and price are kept. Values
    that cannot be read are left out and counted.

    Raises ValueError naming file and line of what is no record, and if no interaction is left.

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
    found = _in_time_order(found)
    first = found.drop_duplicates(["user", "item"])
    counts["repeated_reviews"] = len(found) - len(first)
    kept = _k_core(first, k_core, "reviews", counts)
    in_core = [asins[code] for code in np.unique(kept["item"])]
    records = _read_metadata(metadata, set(in_core) if k_core else None, counts, progress)
    without = [asin for asin in in_core if asin not in records]
    counts["items_without_metadata"] = len(without)
    records |= {asin: {"item_id": asin, "title": ""} for asin in without}
    users = (pd.factorize(kept["user"], sort=True)[0] + 1).astype(str)
    kept = kept.assign(user=users, item=[asins[code] for code in kept["item"]])
    return _write(reviews, output, records.values(), kept, counts, overwrite)


def _read_reviews(
    path: str | Path, min_rating: float, counts: dict[str, int], progress: bool
) -> tuple[pd.DataFrame, list[str]]:
    """Interactions in file order (user and item as codes, time in nanoseconds), and the asins by code."""
    counts |= {"reviews": 0, "reviews_without_user_item_or_time": 0, "reviews_with_unreadable_values": 0}
    counts["reviews_below_min_rating"] = 0
    user_codes: dict[str, int] = {}
    asins: dict[str, int] = {}
    users, items, moments = array("q"), array("q"), array("q")
    for _, review in _records(path, progress):
        counts["reviews"] += 1
        user, asin = _first(review, "reviewerID", "user_id"), _asin(review)
        time, rating = _first(review, "timestamp", "unixReviewTime"), _first(review, "overall", "rating")
        if any(is_nothing(value) for value in (user, asin, time)) or time in (-1, "-1"):
            counts["reviews_without_user_item_or_time"] += 1
            continue
        time, stars = number(time), 0 if rating is None else number(rating)
        moment = None if time is None else times.nanosecond(time)
        if moment is None or stars is None or not _is_text_id(user) or not _is_text_id(asin):
            counts["reviews_with_unreadable_values"] += 1
        elif stars < min_rating:
            counts["reviews_below_min_rating"] += 1
        else:
            users.append(user_codes.setdefault(user, len(user_codes)))
            items.append(asins.setdefault(asin, len(asins)))
            moments.append(moment)
    columns = {"user": users, "item": items, "time": moments}
    found = pd.DataFrame({name: np.frombuffer(column, dtype=np.int64) for name, column in columns.items()})
    return found, list(asins)


def _first(record: dict, *names: str):
    """The first of some fields that holds something."""
    return next((record[name] for name in names if not is_nothing(record.get(name))), None)


def _is_text_id(value) -> bool:
    return isinstance(value, str) and not has_controls(value)


def _asin(record: dict):
    return _first(record, "parent_asin", "asin")


def _read_metadata(
    path: str | Path, wanted: set[str] | None, counts: dict[str, int], progress: bool
) -> dict[str, dict]:
    """Asin -> item, in file order; of all items, or of those wanted."""
    kinds = ("metadata", "metadata_without_asin", "metadata_outside_k_core", "metadata_repeated")
    counts |= dict.fromkeys((*kinds, "garbage_titles", "unreadable_values"), 0)
    records: dict[str, dict] = {}
    for _, raw in _records(path, progress):
        counts["metadata"] += 1
        asin = _asin(raw)
        if not _is_text_id(asin):
            counts["metadata_without_asin"] += 1
        elif wanted is not None and asin not in wanted:
            counts["metadata_outside_k_core"] += 1
        elif asin in records:
            counts["metadata_repeated"] += 1
        else:
            records[asin] = {"item_id": asin} | _amazon_fields(raw, counts)
    return records


def _amazon_fields(raw: dict, counts: dict[str, int]) -> dict:
    def field(read: Callable, *names: str):
        """The first of these fields that can be read; what cannot is counted, and read as nothing."""
        try:
            found = read(_first(raw, *names))
            json.dumps(found, ensure_ascii=False).encode()  # half of a surrogate pair is no text
            return found
        except (ValueError, TypeError):
            counts["unreadable_values"] += 1
            return read(None)

    title = field(_line_of, "title")
    garbage = bool(GARBAGE_TITLE.search(str(raw.get("title")))) and bool(title)
    counts["garbage_titles"] += garbage
    return {
        "title": "" if garbage else title,
        "brand": field(_line_of, "brand", "store"),
        "description": field(text_of, "description"),
        "categories": field(_amazon_paths, "categories", "category"),
        "price": field(_price, "price"),
    }


def _price(value) -> float | None:
    found = None if is_nothing(value) else number(value)
    if found is None and not is_nothing(value):
        raise ValueError(f"{shown(value)}, expected a price")
    return None if found is None else float(found)


def _amazon_paths(value) -> list[list[str]]:
    """Category paths; some hold empty names or empty paths."""
    if isinstance(value, list):
        value = [part for part in value if part]
        value = [[name for name in part if name] if isinstance(part, list) else part for part in value]
    return [[" ".join(html.unescape(name).split()) for name in path] for path in category_paths(value)]


def _records(path: str | Path, progress: bool) -> Iterator[tuple[int, dict]]:
    """Line number and record of every line that is not blank."""
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path} is not a file, expected JSON lines (.gz)")
    for number, line in tqdm(readers.lines(path), path.name, unit=" lines", disable=not progress):
        if line.strip():
            yield number, _record(path, number, line)


def _record(path: Path, number: int, line: bytes) -> dict:
    try:
        text = line.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}, line {number}: {error}, expected UTF-8 text") from error
    for read in (
        json.loads,
        ast.literal_eval,
    ):  # the metadata of 2014 are Python literals; eval would run code
        try:
            record = read(text.strip())
            break
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            record = None
    if not isinstance(record, dict):
        raise ValueError(f"{path}, line {number}: {text[:60]!r}, expected a JSON object or a Python dict")
    return record
