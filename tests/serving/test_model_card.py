"""The card: metadata that the Hub reads, what the folder holds, numbers from rows alone, and code that runs."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import yaml
from huggingface_hub import ModelCard

from semid_lib.serving.model_card import model_card
from semid_lib.serving.recommender import Recommender

ROOT = Path(__file__).resolve().parents[2]
NOTHING = "No results were given"


@pytest.fixture
def rows() -> list[dict]:
    """Published rows of a run: metrics with intervals, and much else."""
    return json.loads((ROOT / "book" / "results" / "demo-laptop.json").read_text(encoding="utf-8"))


def test_the_metadata_is_what_the_hub_reads(recommender):
    card = ModelCard(model_card(recommender, "ann/shop", [], licence="cc-by-4.0"))
    assert card.data.license == "cc-by-4.0" and card.data.library_name == "semid-lib"
    assert {"recommendation", "semantic-ids", "next-item"} <= set(card.data.tags) and "search" not in card.data.tags
    head = yaml.safe_load(model_card(recommender, "ann/shop", []).split("---")[1])
    assert "license" not in head and "pipeline_tag" not in head  # the Hub's pipelines have none for it


def test_it_says_what_the_folder_holds(recommender):
    text = model_card(recommender, "ann/shop", [], data="clocks")
    n = sum(weight.numel() for weight in recommender.model.parameters())
    for fact in ("clocks", "| 40 (`items.parquet`: `item_id`, `title`)", "2 levels of 4 codes", "semid_lib", f"{n:,}"):
        assert fact in text
    assert "4 x 4 x 5, the last of them a disambiguation code of 5" in text  # 40 items share 16 pairs of codes
    text = model_card(recommender, "ann/shop", [])
    assert "not named" in text and NOTHING in text and "±" not in text and "Recall" not in text


def test_rows_become_tables_with_intervals_beside_the_baselines(recommender, rows):
    wanted = [row for row in rows if row["key"].startswith(("next_item/", "search/"))]
    text = model_card(recommender, "ann/shop", wanted)
    assert NOTHING not in text and "| data | demo |" in text
    assert "### Next item after a history" in text and "### Items for a query" in text
    [row] = [row for row in rows if row["key"] == "next_item/demo/popularity/recall@10"]
    shown = f"{row['value']:.4f}".removeprefix("0")
    table = text.partition("### Next item after a history")[2].partition("###")[0].splitlines()
    [line] = [line for line in table if line.startswith("| Recall@10 | ")]
    assert shown in line and "| popularity |" in table[2] and row["commit"][:10] in text
    assert text.count("95% bootstrap interval") == 2


def test_rows_without_an_interval_stay_out(recommender, rows):
    text = model_card(recommender, "ann/shop", [row for row in rows if row["key"].startswith(("beam/", "next_item/"))])
    assert text.count("###") == 1
    some = [row for row in rows if row["key"].startswith("next_item/")]
    with pytest.raises(ValueError, match="come from 2 runs"):
        model_card(recommender, "ann/shop", [*some[1:], some[0] | {"commit": "0" * 40}])
    lacking = {name: value for name, value in some[0].items() if name != "hardware"}
    with pytest.raises(ValueError, match=r"row 'next_item/.*' has no hardware, expected rows as"):
        model_card(recommender, "ann/shop", [lacking])
    with pytest.raises(ValueError, match=r"none of \d+ rows has ci95"):
        model_card(recommender, "ann/shop", [row for row in rows if row["key"].startswith("beam/")])


def test_it_says_what_the_recommender_was_made_from(recommender, rows, tmp_path):
    origin = {"data": "clocks", "fingerprint": "ab" * 32, "scale": "smoke", "commit": "0f" * 20, "seed": 3}
    recommender.save_pretrained(tmp_path / "m", origin | {"parents": ["semantic_ids"], "dirty": False})
    text = model_card(recommender, "ann/shop", [])
    assert "| data | clocks |" in text
    made_from = 'fingerprint `ababababab`; scale `smoke`; commit `0f0f0f0f0f`; seed `3`; parents `["semantic_ids"]`'
    assert f"| made from | {made_from} |" in text
    some = [row | {"fingerprint": "ab" * 32} for row in rows if row["key"].startswith("next_item/")]
    assert NOTHING not in model_card(recommender, "ann/shop", some)
    with pytest.raises(ValueError, match=r"the recommender, by row .* was made from other data"):
        model_card(recommender, "ann/shop", [*some, some[-1] | {"fingerprint": "cd" * 32}])


def test_names_of_the_catalogue_do_not_break_the_table(shop, new_timeline):
    items = shop.items.assign(**{"a|b`c\nd": 1})
    text = model_card(Recommender(new_timeline(), shop.ids, items), "ann/shop", [], data="x|y")
    assert r"`a\|b'c d`" in text and r"| data | x\|y |" in text


@pytest.mark.parametrize("ids", ["numbers", "text"])
def test_the_code_in_it_runs(shop, new_timeline, tmp_path, monkeypatch, ids):
    items = shop.items if ids == "numbers" else shop.items.assign(item_id=[f"A'{row}\"" for row in range(40)])
    recommender = Recommender(new_timeline(), shop.ids, items)
    monkeypatch.chdir(tmp_path)
    [code] = re.findall(r"```python\n(.*?)```", model_card(recommender, "ann/shop", []), re.DOTALL)
    assert code.count("\n") == 3
    recommender.save_pretrained("ann/shop")
    names: dict = {}
    exec(code.replace(', revision="main"', ""), names)
    found = eval(code.splitlines()[-1], names)
    first = recommender.items["item_id"].iloc[0]
    np.testing.assert_array_equal(found, recommender.recommend([[first]], k=10).item_ids)
