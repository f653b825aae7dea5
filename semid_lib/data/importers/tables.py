"""Import a catalogue and interactions from tables with columns of any name."""

import contextlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NoReturn

import numpy as np
import pandas as pd

from semid_lib.data import folder, readers, times
from semid_lib.data.importers import writing
from semid_lib.data.importers.values import decimal_sign, line_of, number, plain, text_of
from semid_lib.data.importers.writing import ImportReport
from semid_lib.data.item_ids import read_ids
from semid_lib.data.readers import Table, is_nothing
from semid_lib.data.table import arrow_table, category_paths, check_ids, each, typed
from semid_lib.data.text_files import Layout
from semid_lib.workbench.text import shown

# usual names of columns, which need no option
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
_OUR_FIELDS = ("item_id", "title", "brand", "description", "categories", "price")


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
    """Import a catalogue, and optionally interactions, from CSV, JSON lines, Parquet or Arrow.

    A column that is not named is found if it has a usual name (`OBVIOUS`); the report says which were taken. Lists of
    texts are joined, HTML entities decoded; a price becomes a number, without its currency. All other columns are kept
    as extra fields (text from CSV), under `source_<name>` if they are called like a field of ours; a column whose
    values differ in type is left out and reported. Words for a missing value, such as NULL and nan, are missing values.
    Interactions are put in time order, ties in file order; a repeated purchase is kept.

    Parameters
    ----------
    items, interactions : path
    output : path
        The data folder to write.
    item_id, title, brand, description, categories, price : str, optional
        Columns of the items; "" leaves a field out. Item ids are integers if all are, else text.
    category_separator : str
        Between the names of a path, where categories are neither lists nor JSON or Python lists.
    user_id, interaction_item_id, timestamp : str, optional
        Columns of the interactions. Without `timestamp`, file order is time order.
    time_unit : str
        One of `times.UNITS`. "auto" reads ISO dates (UTC where they name no zone), compact dates, and Unix seconds to
        nanoseconds between 1990 and 2100.
    separator, encoding, escape : str, optional
        Of text files, see `Layout`.
    decimal : str, optional
        The sign in prices, "." or ","; found out by default.
    item_columns, interaction_columns : str, optional
        Names of the columns, with commas between them, of files without a header.
    unknown_items : str
        "error", or "drop" to leave out interactions with items that are not in the catalogue, and count them.
    k_core : int
        Above 0, keep the k-core of the interactions and only its items.
    overwrite : bool
        Replace the data set of a folder that is not empty.

    Raises
    ------
    ValueError
        Naming file, line and value: a missing column, a repeated item id, a time that cannot be read, an unknown item;
        and if no interaction is left.

    Examples
    --------
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
    for name, value, allowed in (("unknown_items", unknown_items, ("error", "drop")), ("decimal", decimal, (".", ","))):
        if value not in allowed and value is not None:
            raise ValueError(f"{name} is {value!r}, expected one of {allowed}")
    if k_core < 0 or (k_core and interactions is None):
        raise ValueError(f"k_core is {k_core}, expected 0 without interactions, else 0 or more")
    folder.check_output(output, overwrite)
    layout = Layout(separator, encoding, escape)
    asked = dict(zip(_OUR_FIELDS, (item_id, title, brand, description, categories, price), strict=True))
    columns, table = _read(items, asked, layout, item_columns, needed=("item_id", "title"))
    ids = read_ids(table.frame[columns["item_id"]], partial(table.fail, column=columns["item_id"]), table.typed)
    if None in ids:
        table.fail(ids.index(None), f"no {columns['item_id']!r}, expected an item id")
    check_ids(pd.Series(ids), table.place, columns["item_id"])
    counts = {"items": len(ids)}
    fields, left_out = _fields(table, ids, columns, category_separator, decimal, counts)
    records = [dict(zip(fields, row, strict=True)) for row in zip(*fields.values(), strict=True)]
    if interactions is None:
        folder.write_folder(output, records, overwrite=overwrite)
        return ImportReport(Path(output), counts | {"n_items": len(records)}, columns, left_out)
    asked = {"user_id": user_id, "item_id": interaction_item_id or columns["item_id"], "timestamp": timestamp}
    theirs, log = _read(interactions, asked, layout, interaction_columns, needed=("user_id", "item_id"), only=True)
    columns |= {f"interaction_{ours}" if ours == "item_id" else ours: name for ours, name in theirs.items()}
    found = _interactions(log, theirs, ids, unknown_items, time_unit, counts)
    kept = writing.k_core(found, k_core, "interactions", counts)
    if k_core:
        counts["items_outside_k_core"] = len(records) - kept["item"].nunique()
        records = [records[row] for row in np.unique(kept["item"])]
    kept = kept.assign(user=kept["user_id"], item=[ids[row] for row in kept["item"]]).drop(columns="user_id")
    written = writing.write(output, records, kept, counts, interactions, overwrite)
    return written._replace(columns=columns, left_out=left_out)


def _read(
    path, asked: Mapping[str, str | None], layout: Layout, names: str | None, needed: Sequence[str], only: bool = False
) -> tuple[dict[str, str], Table]:
    """Which column each field comes from, and the table. asked: our name -> theirs, "" for none, None to find it."""
    layout = replace(layout, names=names.split(",") if names else None)
    there = readers.names_of(path, [name for name in asked.values() if name], layout)
    alike = {re.sub(r"[\s-]+", "_", name.strip().lower()): name for name in reversed(there)}
    columns = {}
    for ours, theirs in asked.items():
        obvious = [alike[name] for name in OBVIOUS[ours].split() if name in alike]
        if theirs or (theirs is None and obvious):
            columns[ours] = theirs or obvious[0]
        elif ours in needed:
            option = f"--{ours.replace('_', '-')}"
            raise ValueError(f"{path} has columns {shown(there, 300)}, none for {ours}: name it ({option})")
    return columns, readers.read(path, list(columns.values()), layout, only)


def _fields(
    table: Table, ids: list, columns: Mapping[str, str], separator: str, sign: str | None, counts: dict[str, int]
) -> tuple[dict[str, list], list[str]]:
    """Our fields of all items by name, and which columns were left out, and why."""
    values = {str(name): table.frame[name].tolist() for name in table.frame}
    read: dict[str, Callable] = {"title": line_of, "brand": line_of, "description": text_of}
    read["categories"] = partial(category_paths, separator=separator)
    fields = {"item_id": ids}
    for ours in [name for name in read if name in columns]:
        fields[ours] = each(values[columns[ours]], read[ours], partial(table.fail, column=columns[ours]))
    if "price" in columns:
        texts = [None if is_nothing(one) else one for one in values[columns["price"]]]
        sign = sign or decimal_sign(texts)
        fields["price"] = [number(one, sign) for one in texts]
        lost = sum(found is None and one is not None for found, one in zip(fields["price"], texts, strict=True))
        counts |= {"prices_without_a_number": lost} if lost else {}
    left_out = []
    for name in [name for name in values if name not in columns.values()]:
        field = f"source_{name}" if name in _OUR_FIELDS else name
        if field in fields or (field != name and field in values):
            problem = f"column {name!r} would be kept as {field!r}"
            raise ValueError(f"{table.path}: {problem}, expected that name to be free")
        try:
            fields[field] = _of_one_type(name, values[name])
        except ValueError as error:
            left_out.append(str(error).removesuffix(". Make them alike, or leave it out"))
    return fields, left_out


def _of_one_type(name: str, values: list) -> list:
    """The values of a column that Parquet can hold, if necessary with null for words such as "None"."""

    def refuse(_: int, problem: str) -> NoReturn:
        raise ValueError(f"column {name!r} is {problem}")

    values = each(values, plain, refuse)
    with contextlib.suppress(ValueError):
        arrow_table(pd.DataFrame({name: typed(values)}))
        return values
    values = [None if is_nothing(value) else value for value in values]
    arrow_table(pd.DataFrame({name: typed(values)}))
    return values


def _interactions(
    table: Table, columns: Mapping[str, str], ids: list, unknown_items: str, unit: str, counts: dict[str, int]
) -> pd.DataFrame:
    """Complete interactions with known items in time order: user_id, user (its code), item (row), perhaps time."""
    read = {}
    for ours, theirs in columns.items():
        values = table.frame[theirs]
        if ours == "timestamp":
            read[ours] = [None if is_nothing(value) else value for value in values.tolist()]
        else:
            own = read_ids(values, partial(table.fail, column=theirs), table.typed)
            read[ours] = [None if value is None else str(value) for value in own]
    found = pd.DataFrame(read, dtype=object)
    missing = found.isna()
    counts["interactions"] = len(found)
    counts |= {f"interactions_without_{columns[ours]}": int(missing[ours].sum()) for ours in columns}
    found = found[~missing.any(axis=1)]
    row_of = {str(item_id): row for row, item_id in enumerate(ids)}
    rows = np.array([row_of.get(item_id, -1) for item_id in found["item_id"]], dtype=np.int64)
    found = found.assign(item=rows)
    unknown = found[found["item"] < 0]
    if len(unknown) and unknown_items == "error":
        expected = "expected one of the items file; `--unknown-items drop` leaves such interactions out"
        table.fail(unknown.index[0], f"item {unknown['item_id'].iloc[0]!r} is unknown, {expected}")
    counts["interactions_with_unknown_item"] = len(unknown)
    found = found[found["item"] >= 0]
    kept = found[["user_id", "item"]].assign(user=pd.factorize(found["user_id"])[0])
    if "timestamp" in found:
        fail = partial(table.fail, column=columns["timestamp"])
        at = found.index
        kept["time"] = times.nanoseconds(found["timestamp"], lambda row, problem: fail(at[row], problem), unit)
    return writing.in_time_order(kept)
