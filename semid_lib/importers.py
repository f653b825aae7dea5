"""Write a data set folder, which `semid_lib.data.load` reads, from other people's files.

`import_table` takes a catalogue and interactions as CSV or Parquet with columns of any name, `import_amazon`
the raw Amazon dumps of 2014, 2018 and 2023. What is left out is counted in the report. On the command line,
where the options are those of the two functions:

    python -m semid_lib.importers table --items shop.csv --output DIR [--interactions orders.csv ...]
    python -m semid_lib.importers amazon --metadata meta.json.gz --reviews reviews.json.gz --output DIR
"""

import argparse
import ast
import gzip
import html
import inspect
import json
import re
import sys
import zlib
from array import array
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import NamedTuple, NoReturn

import numpy as np
import pandas as pd
from tqdm import tqdm

from semid_lib import folder
from semid_lib.table import category_paths

GARBAGE_TITLE = re.compile(r"getTime|<\s*/?(script|style|span|div|img|a)\b", re.IGNORECASE)  # in 2018
OUR_FIELDS = ("item_id", "title", "brand", "description", "categories", "source_id")


class ImportReport(NamedTuple):
    """What an import read, left out and wrote.

    >>> print(ImportReport(Path("shop"), {"reviews": 1200, "n_items": 7}))
    reviews  1,200
    n items      7
    """

    output: Path
    counts: dict[str, int]

    def __str__(self) -> str:
        width = max(len(name) for name in self.counts)
        last = max(len(f"{count:,}") for count in self.counts.values())
        return "\n".join(f"{name.replace('_', ' '):{width}}  {n:{last},}" for name, n in self.counts.items())


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
    item_id: str = "item_id",
    title: str = "title",
    brand: str | None = None,
    description: str | None = None,
    categories: str | None = None,
    category_separator: str = ">",
    interactions: str | Path | None = None,
    user_id: str = "user_id",
    interaction_item_id: str | None = None,
    timestamp: str | None = None,
    unknown_items: str = "error",
    k_core: int = 0,
    overwrite: bool = False,
) -> ImportReport:
    """Import a catalogue, and optionally interactions, from CSV (also gzipped) or Parquet with named columns.

    `item_id` to `categories` name columns of the items; `user_id`, `interaction_item_id` (unless it is called
    as in the items) and `timestamp` those of the interactions. Item ids are kept if all are integers;
    otherwise (SKUs) items are numbered from 1 in file order and the original is kept as `source_id`.
    Categories are lists, JSON lists, or one path as text with a separator. All other columns are kept as
    extra fields (text from CSV), under `source_<name>` if they are called like a field of ours. Interactions
    are put in time order, ties in file order; without `timestamp`, file order is time order. Times are ISO
    dates (UTC where they name no zone), Unix seconds, or, from 1e11 on, Unix milliseconds. A repeated
    purchase is kept. `k_core` above 0 keeps the k-core of the interactions, and only its items.

    Raises ValueError naming a missing column, a repeated item id, a time that cannot be read, an item that is
    not in the catalogue (unless `unknown_items` is "drop", which counts them), and if no interaction is left.

    >>> import tempfile
    >>> from semid_lib import data
    >>> with tempfile.TemporaryDirectory() as here:
    ...     shop, output = Path(here, "shop.csv"), Path(here, "shop")
    ...     _ = shop.write_text("sku,name,kind\\nA-1,Red lipstick,Make-up > Lips\\n")
    ...     _ = import_table(shop, output, item_id="sku", title="name", categories="kind")
    ...     data.load(output).items.loc[0].to_dict()
    {'item_id': 1, 'title': 'Red lipstick', 'categories': [['Make-up', 'Lips']], 'source_id': 'A-1'}
    """
    if unknown_items not in ("error", "drop"):
        raise ValueError(f"unknown_items is {unknown_items!r}, expected 'error' or 'drop'")
    if k_core and interactions is None:
        raise ValueError(f"k_core is {k_core}, expected 0 without interactions")
    folder.check_output(output, overwrite)
    fields = {"title": title, "brand": brand, "description": description, "categories": categories}
    fields = {ours: name for ours, name in fields.items() if name is not None}
    frame = _read_frame(items, [item_id, *fields.values()])
    ids = _item_texts(items, frame[item_id])
    records = _table_records(items, frame, ids, fields, category_separator)
    counts = {"items": len(records)}
    if interactions is None:
        folder.write_folder(output, records, overwrite=overwrite)
        return ImportReport(Path(output), counts | {"n_items": len(records)})
    columns = [user_id, interaction_item_id or item_id] + ([] if timestamp is None else [timestamp])
    frame = _read_frame(interactions, columns)[columns]
    found, users = _table_interactions(interactions, frame, ids, unknown_items, counts)
    kept = _k_core(found, k_core, "interactions", counts)
    item_ids = np.array([record["item_id"] for record in records], dtype=np.int64)
    if k_core:
        records = [records[row] for row in np.unique(kept["item"])]
        counts["items_outside_k_core"] = len(item_ids) - len(records)
    kept = kept.assign(user=users[kept["user"]], item=item_ids[kept["item"]])
    return _write(output, records, kept, counts, overwrite)


def _read_frame(path: str | Path, columns: list[str]) -> pd.DataFrame:
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path} is not a file, expected CSV or Parquet")
    try:
        if path.suffix == ".parquet":
            frame = pd.read_parquet(path, dtype_backend="pyarrow")
        else:  # as text, so that 007 stays 007
            frame = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8-sig")
    except (ValueError, OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    if not isinstance(frame.index, pd.RangeIndex):
        raise ValueError(f"{path} has more fields in its lines than in its header, expected as many")
    for name in columns:
        if name not in frame:
            raise ValueError(f"{path} has no column {name!r}, expected one of {list(frame.columns)}")
    return frame


def _as_text(column: pd.Series) -> pd.Series:
    """Text with NA for missing or empty; integers that Parquet holds as floats come out as integers."""
    if pd.api.types.is_float_dtype(column) and (column.astype("Float64").dropna() % 1 == 0).all():
        column = column.astype("Int64")
    text = column.astype("string")
    return text.mask(text.str.strip() == "")


def _item_texts(path: str | Path, column: pd.Series) -> pd.Index:
    """The item ids as text, each once."""
    ids = pd.Index(_as_text(column))
    if ids.hasnans:
        _fail(path, ids.isna(), f"no {column.name!r}, expected an item id")
    if not ids.is_unique:
        twice = ids.duplicated()
        _fail(path, twice, f"{column.name} {ids[twice][0]!r} occurs before, expected each item once")
    return ids


def _fail(path: str | Path, wrong: np.ndarray, problem: str) -> NoReturn:
    """wrong: (n_rows,) bool; the message names the first row."""
    raise ValueError(f"{path}, row {int(wrong.argmax()) + 1}: {problem}")


def _table_records(
    path: str | Path, frame: pd.DataFrame, ids: pd.Index, fields: dict[str, str], separator: str
) -> list[dict]:
    """One record an item; fields: ours -> column of the frame."""
    numbers = [int(text) if re.fullmatch("0|-?[1-9][0-9]{0,17}", text) else None for text in ids]
    named = None in numbers
    columns = {name: [_plain(value) for value in frame[name].tolist()] for name in frame.columns}
    kept: dict = {"item_id": range(1, len(ids) + 1) if named else numbers}
    for ours, theirs in fields.items():
        if ours == "categories":
            kept[ours] = [_table_paths(path, row, v, separator) for row, v in enumerate(columns[theirs], 1)]
        else:
            kept[ours] = ["" if value is None else str(value) for value in columns[theirs]]
    kept |= {"source_id": ids.tolist()} if named else {}
    for name in frame.columns.difference([ids.name, *fields.values()], sort=False):
        field = f"source_{name}" if name in OUR_FIELDS else name
        if field in kept or (field != name and field in columns):
            problem = f"column {name!r} would be kept as {field!r}"
            raise ValueError(f"{path}: {problem}, expected that name to be free")
        kept[field] = columns[name]
    return [dict(zip(kept, values, strict=True)) for values in zip(*kept.values(), strict=True)]


def _plain(value):
    """A value that JSON can hold: missing becomes None, dates and the like text."""
    if isinstance(value, (str, int, list, dict)) or (isinstance(value, float) and np.isfinite(value)):
        return value
    return None if value is None or pd.isna(value) else str(value)


def _table_paths(path: str | Path, row: int, value, separator: str) -> list[list[str]]:
    try:
        if isinstance(value, str) and value.lstrip().startswith("["):
            value = json.loads(value)
        elif isinstance(value, str):
            value = [name.strip() for name in value.split(separator) if name.strip()]
        return category_paths(value)
    except ValueError as error:
        raise ValueError(f"{path}, row {row}: {error}") from error


def _table_interactions(
    path: str | Path, frame: pd.DataFrame, ids: pd.Index, unknown_items: str, counts: dict[str, int]
) -> tuple[pd.DataFrame, pd.Index]:
    """Complete interactions with known items in time order (user, item, time), and the user ids by code."""
    frame = frame.apply(lambda column: column if pd.api.types.is_numeric_dtype(column) else _as_text(column))
    missing = frame.isna()
    counts["interactions"] = len(frame)
    counts |= {f"interactions_without_{name}": int(missing[name].sum()) for name in frame}
    user_id, item_id, *timestamp = (frame[name] for name in frame)
    rows = ids.get_indexer(_as_text(item_id)).astype(np.int64)
    complete = ~missing.any(axis=1).to_numpy()
    unknown = complete & (rows < 0)
    if unknown.any() and unknown_items == "error":
        item = item_id[int(unknown.argmax())]
        _fail(path, unknown, f"item {item!r} is unknown, expected one of the items file")
    counts["interactions_with_unknown_item"] = int(unknown.sum())
    kept = complete & (rows >= 0)
    codes, users = pd.factorize(_as_text(user_id[kept]))
    found = {"user": codes, "item": rows[kept]}
    if timestamp:
        found["time"] = _unix_seconds(path, timestamp[0][kept])
    return _in_time_order(pd.DataFrame(found)), users


def _unix_seconds(path: str | Path, column: pd.Series) -> np.ndarray:
    """Unix seconds of a column without missing values; see `import_table` for what it may hold."""
    if column.empty:
        return np.empty(0, dtype=np.int64)
    numbers = pd.to_numeric(column, errors="coerce")
    if numbers.isna().any():
        dates = pd.to_datetime(column, format="ISO8601", utc=True, errors="coerce")
        if dates.isna().any():
            row = dates.index[dates.isna()][0]
            wanted = "expected an ISO date or a Unix time"
            raise ValueError(f"{path}, row {row + 1}: time {column[row]!r}, {wanted}")
        return dates.astype("datetime64[s, UTC]").astype(np.int64).to_numpy()
    milliseconds = numbers >= 1e11  # as seconds that would be after the year 5138
    if milliseconds.any() != milliseconds.all() or numbers.between(19000101, 21001231).all():
        span, wanted = f"{numbers.min()} to {numbers.max()}", "Unix seconds or milliseconds, or 2014-07-23"
        raise ValueError(f"{path}: {column.name} is {span}, expected {wanted}")
    return (numbers // (1000 if milliseconds.any() else 1)).to_numpy(np.int64)


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
    output: str | Path, records: Collection[dict], kept: pd.DataFrame, counts: dict[str, int], overwrite: bool
) -> ImportReport:
    """Write items, and interactions in time order with the users and items by their ids."""
    if kept.empty:
        raise ValueError(f"no interaction is left, expected at least one; counts: {counts}")
    users = kept.groupby("user", sort=False)
    times = users["time"].agg(list).items() if "time" in kept else None
    folder.write_folder(output, records, users["item"].agg(list).items(), times, overwrite=overwrite)
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

    A review is an interaction at its time, ties in file order. Left out are reviews below `min_rating`, then
    a user's second review of an item, then all outside the k-core. Items are numbered from 1 in the order of
    the metadata, which keep the first line of an asin; items of the k-core without metadata follow, in the
    order of the reviews, with an empty title. `k_core=0` keeps the whole catalogue, otherwise it is that of
    the k-core. Users are numbered from 1 in the order of the reviews, and reviewer ids are not written. HTML
    entities are decoded; titles that are HTML or JavaScript, as in 2018, become empty. Only title, brand,
    description, categories and asin are kept.

    Raises ValueError naming file and line of what cannot be read, and if no interaction is left.

    >>> import tempfile
    >>> from semid_lib import data
    >>> with tempfile.TemporaryDirectory() as here:
    ...     metadata, reviews = Path(here, "meta.json"), Path(here, "reviews.json")
    ...     _ = metadata.write_text("{'asin': 'B7', 'title': 'Soap &amp; water'}\\n")
    ...     _ = reviews.write_text('{"reviewerID": "R1", "asin": "B7", "unixReviewTime": 1400000000}\\n')
    ...     report = import_amazon(metadata, reviews, Path(here, "out"), k_core=0)
    ...     shop = data.load(Path(here, "out"))
    >>> shop.items["title"].tolist(), shop.histories.times, report.counts["items_without_metadata"]
    (['Soap & water'], array([1400000000]), 0)
    """
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
    records |= {asin: {"asin": asin, "title": ""} for asin in without}
    records = {asin: {"item_id": number} | records[asin] for number, asin in enumerate(records, 1)}
    users = (pd.factorize(kept["user"], sort=True)[0] + 1).astype(str)
    items = [records[asins[code]]["item_id"] for code in kept["item"]]
    return _write(output, records.values(), kept.assign(user=users, item=items), counts, overwrite)


def _read_reviews(
    path: str | Path, min_rating: float, counts: dict[str, int], progress: bool
) -> tuple[pd.DataFrame, list[str]]:
    """Interactions in file order (user and item as codes, time), and the asins by code."""
    counts |= {"reviews": 0, "reviews_without_user_item_or_time": 0, "reviews_below_min_rating": 0}
    user_codes: dict[str, int] = {}
    asins: dict[str, int] = {}
    users, items, times = array("q"), array("q"), array("q")
    for line, review in _records(path, progress):
        counts["reviews"] += 1
        user, asin = review.get("reviewerID") or review.get("user_id"), _asin(review)
        try:
            time, rating = _review_time(review), float(review.get("overall") or review.get("rating") or 0)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path}, line {line}: {error}, expected numbers as time and rating") from error
        if not user or not asin or time is None:
            counts["reviews_without_user_item_or_time"] += 1
        elif rating < min_rating:
            counts["reviews_below_min_rating"] += 1
        else:
            users.append(user_codes.setdefault(str(user), len(user_codes)))
            items.append(asins.setdefault(asin, len(asins)))
            times.append(time)
    columns = {"user": users, "item": items, "time": times}
    found = pd.DataFrame({name: np.frombuffer(column, dtype=np.int64) for name, column in columns.items()})
    return found, list(asins)


def _review_time(review: dict) -> int | None:
    """Unix seconds; 2023 has milliseconds."""
    milliseconds = review.get("timestamp")
    seconds = review.get("unixReviewTime") if milliseconds is None else milliseconds // 1000
    return None if seconds is None else int(seconds)


def _asin(record: dict) -> str:
    return str(record.get("parent_asin") or record.get("asin") or "")


def _read_metadata(
    path: str | Path, wanted: set[str] | None, counts: dict[str, int], progress: bool
) -> dict[str, dict]:
    """Asin -> item, in file order; of all items, or of those wanted."""
    kinds = ("metadata", "metadata_without_asin", "metadata_outside_k_core", "metadata_repeated")
    counts |= dict.fromkeys((*kinds, "garbage_titles"), 0)
    records: dict[str, dict] = {}
    for line, raw in _records(path, progress):
        counts["metadata"] += 1
        asin = _asin(raw)
        if not asin:
            counts["metadata_without_asin"] += 1
        elif wanted is not None and asin not in wanted:
            counts["metadata_outside_k_core"] += 1
        elif asin in records:
            counts["metadata_repeated"] += 1
        else:
            try:
                records[asin] = {"asin": asin} | _amazon_fields(raw)
            except (TypeError, ValueError) as error:
                raise ValueError(f"{path}, line {line}: {error}") from error
            counts["garbage_titles"] += bool(raw.get("title")) and not records[asin]["title"]
    return records


def _amazon_fields(raw: dict) -> dict:
    title = raw.get("title") or ""
    parts = raw.get("description") or []
    parts = [parts] if isinstance(parts, str) else parts
    paths = raw.get("categories") or raw.get("category") or []
    if isinstance(paths, list):
        paths = [part for part in paths if part]  # some hold empty names or empty paths
    return {
        "title": "" if GARBAGE_TITLE.search(title) else _clean(title),
        "brand": _clean(raw.get("brand") or raw.get("store") or ""),
        "description": "\n".join(html.unescape(part).strip() for part in parts),
        "categories": [[_clean(name) for name in path] for path in category_paths(paths)],
    }


def _clean(text: str) -> str:
    """Text without HTML entities, in one line.

    >>> _clean("Soap &amp;\\n  water ")
    'Soap & water'
    """
    return " ".join(html.unescape(text).split())


def _records(path: str | Path, progress: bool) -> Iterator[tuple[int, dict]]:
    """Line number and record of every line that is not blank."""
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path} is not a file, expected JSON lines (.gz)")
    number = 0
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
        try:
            for number, line in enumerate(tqdm(file, path.name, unit=" lines", disable=not progress), 1):
                if line.strip():
                    yield number, _record(path, number, line)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise ValueError(f"{path}, after line {number}: truncated or corrupt gzip ({error})") from error


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


# --- command line ---


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit status: 0, or 2 after one line on stderr."""
    options = vars(_parser().parse_args(arguments))
    run = options.pop("run")
    try:
        report = run(**options)
    except (ValueError, OSError) as error:
        print("error:", " ".join(str(error).split()), file=sys.stderr)
        return 2
    print(report)
    return 0


def _parser() -> argparse.ArgumentParser:
    """A command for each function; its options are the parameters, and its description the docstring."""
    parser = argparse.ArgumentParser("python -m semid_lib.importers", description=__doc__.split("\n\n")[0])
    commands = parser.add_subparsers(required=True)
    for name, run in (("table", import_table), ("amazon", import_amazon)):
        about = inspect.getdoc(run).split("\n\n>>>")[0]
        style = argparse.RawDescriptionHelpFormatter
        command = commands.add_parser(name, help=about.split("\n")[0], description=about, formatter_class=style)
        command.set_defaults(run=run)
        for parameter in inspect.signature(run).parameters.values():
            _add_option(command, parameter)
    command.set_defaults(progress=True)
    return parser


def _add_option(command: argparse.ArgumentParser, parameter: inspect.Parameter) -> None:
    option, default = "--" + parameter.name.replace("_", "-"), parameter.default
    if default is parameter.empty:
        command.add_argument(option, required=True)
    elif isinstance(default, bool):
        command.add_argument(option, default=default, action=argparse.BooleanOptionalAction)
    else:
        kind = str if default is None else type(default)
        command.add_argument(
            option, default=default, type=kind, help=None if default is None else "default: %(default)s"
        )


if __name__ == "__main__":
    sys.exit(main())
