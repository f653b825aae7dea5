"""The card of a recommender on the Hub: what it holds, what was measured of it, how to use it, where its limits are.

Numbers come from result rows alone, through the tables of `report`; without rows the card says that there are none.
"""

import json
import re
from collections.abc import Sequence
from importlib import metadata
from typing import Any

from semid_lib.evaluation.report import markdown_table
from semid_lib.llm.llm_search import LightSearch
from semid_lib.llm.vllm_search import VLLMSearch
from semid_lib.serving.saved import check_provenance
from semid_lib.workbench import store
from semid_lib.workbench.text import one_line

_TOPICS = {"next_item": "The next item after a history", "search": "Items for a query"}
_LIMITS = """
- Only the {n_items:,} items of the table come out. A new item needs a semantic ID, and a model trained with it.
- Scores are log-probabilities among these items: they rank the items of one answer, and do not say how good it is.
- It repeats what is in its data, popularity and gaps included; figures hold for the data that they name.
"""
_LIMITS_OF = {
    "next-item": "- Of a history the last {max_length} items count; an empty one gets what shoppers start with.\n",
    "search": "- It was not measured on queries unlike those of its training, in language, length or subject.\n",
}


def model_card(
    recommender, repo: str, rows: Sequence[dict[str, Any]], data: str | None = None, licence: str | None = None
) -> str:
    """The text of README.md for the Hub, which begins with metadata in YAML.

    recommender: a `Recommender`. rows: as `store.Store.rows` has them; those of a metric with its interval make a table
    for each topic, all methods side by side, and others are left out. data: the name of the data set, by default that
    of the rows or of the recommender's provenance. licence: as the Hub calls it.
    Raises ValueError for a row without provenance, rows of which none has an interval, a topic whose rows come from
    different runs, and rows of other data than those that the recommender was made from.
    """
    rows, origin = _measured(rows), recommender.provenance
    for row in rows if "fingerprint" in origin else []:
        check_provenance(origin, row["fingerprint"], f"the recommender, by row {row['key']!r},")
    tables = _tables(rows)
    data = data or ", ".join(dict.fromkeys(row["data"] for row in rows)) or str(origin.get("data", ""))
    parts = [
        _front_matter(recommender, licence),
        f"# {repo}\n\nA recommender that generates the semantic IDs of items, by `semid_lib`: {_tasks(recommender)}.",
        f"## What it holds\n\n{_contents(recommender, data)}",
        f"## How to use it\n\n{_usage(recommender, repo)}",
        f"## What was measured\n\n{tables or 'Nothing was measured of this model, or nothing was handed to its card.'}",
        f"## Limits\n\n{_limits(recommender)}",
        f"## Licence\n\n{licence or 'None is given here: ask the owner of the repository.'}",
    ]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _front_matter(recommender, licence: str | None) -> str:
    from huggingface_hub import ModelCardData

    adapter = getattr(recommender.searcher, "adapter", None)
    facts = ModelCardData(
        license=licence,
        library_name="semid-lib",
        tags=["recommendation", "generative-recommendation", "semantic-ids", *_parts(recommender)],
        base_model=None if adapter is None else adapter.base,
    )
    return f"---\n{facts.to_yaml()}\n---"


def _parts(recommender) -> list[str]:
    """The tags of what it can do."""
    return ["next-item"] * (recommender.model is not None) + ["search"] * (recommender.searcher is not None)


def _tasks(recommender) -> str:
    words = {"next-item": "next items for a history", "search": "items for a query"}
    return " and ".join(words[part] for part in _parts(recommender))


def _contents(recommender, data: str) -> str:
    ids = recommender.ids
    sizes = " x ".join(str(size) for size in ids.sizes)
    extra = f", the last of them a disambiguation code of {ids.sizes[-1]}" if len(ids.sizes) > ids.n_levels else ""
    lines = {
        "data": _cell(data) or "not named",
        "items": f"{len(ids):,} (`items.parquet`: {', '.join(f'`{_cell(name)}`' for name in recommender.items)})",
        "semantic IDs": f"{ids.n_levels} levels of {ids.codebook_size} codes (`semantic_ids.npz`; {sizes}{extra})",
    }
    if recommender.model is not None:
        n = sum(weight.numel() for weight in recommender.model.parameters())
        lines["next item"] = f"a timeline model of {n:,} parameters (`model.safetensors`)"
    if recommender.searcher is not None:
        lines["search"] = _searcher(recommender.searcher)
    if origin := {name: value for name, value in recommender.provenance.items() if name not in ("data", "dirty")}:
        lines["made from"] = "; ".join(f"{_cell(name)} `{_cell(_brief(value))}`" for name, value in origin.items())
    commit = store.commit()
    changed = " with uncommitted changes" if commit["dirty"] and commit["commit"] else ""
    lines["written by"] = f"`semid_lib` {metadata.version('semid-lib')}" + (
        f", commit `{commit['commit'][:10]}`{changed}" if commit["commit"] else ""
    )
    table = "| | |\n| --- | --- |\n" + "\n".join(f"| {name} | {text} |" for name, text in lines.items())
    return f"{table}\n\n`config.json` lists these files with their checksums, which are checked before they are read."


def _cell(text: str) -> str:
    """Text of the data inside a cell of a table, or as code there."""
    return one_line(text).replace("`", "'").replace("|", "\\|")


def _brief(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text[:10] if re.fullmatch(r"[0-9a-f]{40,}", text) else text


def _searcher(searcher) -> str:
    if isinstance(searcher, LightSearch):
        n = sum(weight.numel() for weight in searcher.scorer.parameters())
        return f"a light model of {n:,} parameters over the vectors of `{searcher.embed}` (`query_model.safetensors`)"
    if isinstance(searcher, VLLMSearch):
        return "a language model with tokens for the semantic IDs (`llm/`)"
    n = searcher.model.num_parameters()
    if searcher.adapter is None:
        return f"a language model of {n:,} parameters with tokens for the semantic IDs (`llm/`)"
    base, revision, _ = searcher.adapter
    return f"an adapter for `{base}` at `{revision[:10]}`, with tokens for the semantic IDs (`llm/`); {n:,} parameters"


def _usage(recommender, repo: str) -> str:
    first = recommender.item_ids.values[0]
    asked = f"recommend([[{first!r}]], k=10)" if recommender.model is not None else 'search(["what I look for"], k=10)'
    return f"""Where `semid_lib` is installed; of a private repository with HF_TOKEN set:

```python
from semid_lib.serving.recommender import Recommender
recommender = Recommender.from_pretrained("{repo}", revision="main")  # better a commit, which stays
recommender.{asked}.item_ids
```

As a service: `python -m semid_lib.serving.http.web --model {repo} --revision main`."""


def _measured(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows that can stand in a table: a metric of a method, with its interval and where it comes from."""
    measured = [row for row in rows if "ci95" in row and row["key"].count("/") == 3]
    if rows and not measured:
        raise ValueError(f"none of {len(rows)} rows has ci95 and a key topic/data/method/metric")
    for row in measured:
        if lacking := {"data", "scale", "commit", "dirty", "hardware", "fingerprint"} - row.keys():
            raise ValueError(f"row {row['key']!r} has no {min(lacking)}, expected rows as store.Store.rows has them")
    return measured


def _tables(rows: list[dict[str, Any]]) -> str:
    topics = dict.fromkeys(row["key"].partition("/")[0] for row in rows)
    return "\n".join(f"### {_TOPICS.get(topic, topic)}\n\n{markdown_table(rows, topic)}" for topic in topics)


def _limits(recommender) -> str:
    length = None if recommender.model is None else recommender.model.config.max_length
    text = _LIMITS.lstrip() + "".join(_LIMITS_OF[part] for part in _parts(recommender))
    return text.format(n_items=len(recommender.ids), max_length=length)
