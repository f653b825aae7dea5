"""Starts of the real service in processes of their own: what is measured, not how long it takes."""

import json

import numpy as np
import pytest

from semid_lib import cold_start
from semid_lib.cold_start import OURS, PARTS, WAYS, Way


@pytest.fixture
def questions(shop):
    ids = shop.items["item_id"].tolist()
    return [{"item_ids": ids[:at], "k": 3} for at in range(6)]


def test_a_fork_answers_without_any_of_the_parts_before(served_folder, questions):
    seconds, warm_ms = cold_start.measure(served_folder, questions, Way(forked=True))
    assert tuple(seconds) == PARTS[-1:] and len(warm_ms) == 5


def test_a_table_has_a_row_a_start_and_nothing_left_out(served_folder, questions):
    ways = {"as it is": WAYS["as it is"], "checksums off": Way(checksums=False, collector=True, bytecode="not ours")}
    found = cold_start.table(served_folder, questions, ways, repeats=1)
    assert found.index.tolist() == [("as it is", 0), ("checksums off", 0)]
    assert found.columns.tolist() == [*PARTS, "total", "p50", "p99"]
    np.testing.assert_allclose(found[list(PARTS)].sum(axis=1), found["total"])
    assert set(OURS) < set(PARTS) and (found.loc["as it is"].drop(columns="text encoder") > 0).all(axis=None)
    assert found.loc[("as it is", 0), "checksums"] > found.loc[("checksums off", 0), "checksums"] == 0
    assert (found["p50"] <= found["p99"]).all() and (found["p50"] > 0).all()


def test_a_folder_that_cannot_be_served_says_why(served_folder, questions):
    with open(served_folder / "model.safetensors", "ab") as weights:
        weights.write(b"x")
    with pytest.raises(ValueError, match=r"model\.safetensors is not the file that was saved"):
        cold_start.measure(served_folder, questions)


def test_a_question_that_is_refused_is_an_error(served_folder):
    with pytest.raises(ValueError, match="answered with 422"):
        cold_start.measure(served_folder, [{"item_ids": [5]}])
    with pytest.raises(ValueError, match="no question"):
        cold_start.measure(served_folder, [])


def test_imports_are_counted_by_package():
    found = cold_start.imports("semid_lib.metrics")
    assert {"numpy", "semid_lib", "Python's own"} <= set(found.index)
    assert found["seconds"].is_monotonic_decreasing and (found["modules"] >= 1).all()
    assert found.loc["numpy", "modules"] > 10 and found.loc["semid_lib", "modules"] == 2


def test_a_way_stays_json():
    assert all(Way(**json.loads(json.dumps(vars(way)))) == way for way in WAYS.values())
