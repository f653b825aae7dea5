"""The model card of a recommender on the Hub: contents, usage, results and limits, by the template `model_card.md`.

Numbers come from result rows alone, through the tables of `report`; without rows the card says that there are none.
"""

import json
import re
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from semid_lib.evaluation.report import markdown_table
from semid_lib.serving.saved import check_provenance
from semid_lib.workbench import store
from semid_lib.workbench.text import one_line

_TEMPLATE = Path(__file__).with_suffix(".md")


def model_card(
    recommender, repo: str, rows: Sequence[dict[str, Any]], data: str | None = None, licence: str | None = None
) -> str:
    """Write the README.md of a repository on the Hub; it begins with metadata in YAML.

    Parameters
    ----------
    recommender : Recommender
    repo : str
        "org/name".
    rows : sequence of dict
        As `store.Store.rows` has them. Metrics with an interval make a table per topic, with all methods; others are
        left out.
    data : str, optional
        The name of the data set; by default that of the rows or of the recommender's provenance.
    licence : str, optional
        As the Hub calls it.

    Raises
    ------
    ValueError
        For a row without provenance, rows of which none has an interval, a topic whose rows come from different runs,
        and rows of other data than those that the recommender was made from.
    """
    from huggingface_hub import ModelCard, ModelCardData

    origin, given = recommender.provenance, len(rows)
    rows = [row for row in rows if "ci95" in row and row["key"].count("/") == 3]
    if given and not rows:
        raise ValueError(f"none of {given} rows has ci95 and a key topic/data/method/metric")
    for row in rows:
        if lacking := {"data", "scale", "commit", "dirty", "hardware", "fingerprint"} - row.keys():
            raise ValueError(f"row {row['key']!r} has no {min(lacking)}, expected rows as store.Store.rows has them")
        if "fingerprint" in origin:
            check_provenance(origin, row["fingerprint"], f"the recommender, by row {row['key']!r},")
    adapter = getattr(recommender.searcher, "adapter", None)
    parts = {"next-item": recommender.model, "search": recommender.searcher}
    tags = [tag for tag, part in parts.items() if part is not None]
    facts = ModelCardData(
        license=licence,
        library_name="semid-lib",
        tags=["recommendation", "generative-recommendation", "semantic-ids", *tags],
        base_model=None if adapter is None else adapter.base,
    )
    data = data or ", ".join(dict.fromkeys(row["data"] for row in rows)) or str(origin.get("data", ""))
    topics = dict.fromkeys(row["key"].partition("/")[0] for row in rows)
    card = ModelCard.from_template(
        facts,
        template_path=str(_TEMPLATE),
        repo=repo,
        licence=licence,
        tasks=[{"next-item": "next items for a history", "search": "items for a query"}[tag] for tag in tags],
        data=_cell(data),
        ids=recommender.ids,
        columns=[_cell(name) for name in recommender.items],
        first_id=repr(recommender.item_ids.values[0]),
        model=recommender.model,
        searcher=recommender.searcher,
        kind=type(recommender.searcher).__name__,
        n_parameters=lambda model: sum(weight.numel() for weight in model.parameters()),
        origin=[(_cell(name), _cell(_brief(value))) for name, value in origin.items() if name not in ("data", "dirty")],
        version=metadata.version("semid-lib"),
        commit=store.commit(),
        tables=[(topic, markdown_table(rows, topic).strip()) for topic in topics],
    )
    return str(card)


def _cell(text: str) -> str:
    """Text of the data for a cell of a table, also as code."""
    return one_line(text).replace("`", "'").replace("|", "\\|")


def _brief(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text[:10] if re.fullmatch(r"[0-9a-f]{40,}", text) else text
