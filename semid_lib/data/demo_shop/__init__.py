"""The demo shop: an invented catalogue with histories and queries, the same for the same seed.

Merrowdale sells outdoor, home and craft goods. An item has a product type, a brand and a style; its text shows the
style without naming it. A shopper likes one to three departments, one style, two brands and a price level. Within a
session, the next item tends to complement the last one (tent, sleeping mat, lantern) in the same brand or style, so the
last items matter most. Two faults of real catalogues are built in: variants with nearly the same text, and three items
without a description. The words are in `words.toml`.
"""

import gzip
import json
from pathlib import Path
from typing import NamedTuple

from semid_lib.data.demo_shop.histories import draw_histories
from semid_lib.data.demo_shop.items import draft_items, item_record
from semid_lib.data.demo_shop.queries import write_queries


class DemoShop(NamedTuple):
    """The records of a demo shop; item and user ids count from 1."""

    items: list[dict]
    sequences: list[tuple[int, list[int]]]  # user id, item ids in time order
    timestamps: list[tuple[int, list[int]]]  # user id, Unix seconds
    queries: list[dict]  # relevant are exactly the items that satisfy the `constraints`


def demo_shop(*, n_items: int = 2000, n_users: int = 2000, n_queries: int = 300, seed: int = 0) -> DemoShop:
    """Build the demo shop in memory.

    More users change neither the items nor the histories of the users before them. It needs about 100 items.

    Raises
    ------
    ValueError
        If the catalogue has too few distinct queries.

    Examples
    --------
    >>> shop = demo_shop(n_items=200, n_users=20, n_queries=10)
    >>> len(shop.items), len(shop.sequences), len(shop.queries)
    (200, 20, 10)
    >>> sorted(shop.items[0])
    ['attributes', 'brand', 'categories', 'description', 'item_id', 'price', 'style', 'title']
    """
    drafts = draft_items(n_items, seed)
    items = [item_record(item_id, draft, seed) for item_id, draft in enumerate(drafts, 1)]
    for item in items[n_items // 7 :: n_items // 3][:3]:
        item["description"] = ""
    sequences, timestamps = draw_histories(drafts, items, n_users, seed)
    return DemoShop(items, sequences, timestamps, write_queries(items, n_queries, seed))


def write_demo_shop(folder: str | Path, **arguments: int) -> None:
    """Write the demo shop as a data set folder; takes and raises what `demo_shop` does.

    Equal arguments give equal bytes.
    """
    shop = demo_shop(**arguments)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for name, records in (("items.jsonl.gz", shop.items), ("queries_demo.jsonl.gz", shop.queries)):
        _write_lines(folder / name, [json.dumps(record, ensure_ascii=False) for record in records])
    for name, rows in (("sequences.tsv.gz", shop.sequences), ("timestamps.tsv.gz", shop.timestamps)):
        _write_lines(folder / name, [f"{user_id}\t{' '.join(map(str, values))}" for user_id, values in rows])


def _write_lines(path: Path, lines: list[str]) -> None:
    text = "".join(line + "\n" for line in lines)
    path.write_bytes(gzip.compress(text.encode(), mtime=0))  # a time stamp would change the bytes
