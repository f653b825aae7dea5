"""Lists as files of TREC, by hand; and that ranx, which reads them, finds the figures that we report."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from semid_lib.data import dataset
from semid_lib.decoding.ranking import Ranked
from semid_lib.evaluation import evaluate, rows
from semid_lib.next_item.baselines import ItemKNN

ITEMS = ["A-1", 7, "ü", "A-4"]


# --- the files ---


def test_a_run_and_qrels_by_hand(tmp_path):
    rows.write_run(tmp_path / "run.txt", np.array([[2, 1, -1], [-1, -1, -1], [0, 3, 2]]), ITEMS, tag="mine")
    assert (tmp_path / "run.txt").read_text(encoding="utf-8").splitlines() == [
        *("0 Q0 ü 1 3 mine", "0 Q0 7 2 2 mine"),
        *("2 Q0 A-1 1 3 mine", "2 Q0 A-4 2 2 mine", "2 Q0 ü 3 1 mine"),
    ]
    rows.write_qrels(tmp_path / "qrels.txt", np.array([3, 1]), ITEMS, query_ids=np.array(["ann", "bob"]))
    assert (tmp_path / "qrels.txt").read_text(encoding="utf-8") == "ann 0 A-4 1\nbob 0 7 1\n"


@pytest.mark.parametrize(
    ("lists", "options", "problem"),
    [
        ([[0]], {"query_ids": ["ann lee"]}, "query id 'ann lee', expected text without white space"),
        ([[0]], {"item_ids": ["a", ""]}, "item id '', expected text"),
        ([[0]], {"item_ids": ["1", 1]}, "item id '1' occurs twice"),
        ([[0]], {"tag": "item kNN"}, "tag 'item kNN'"),
        ([[0]], {"query_ids": ["a", "b"]}, "2 query ids for 1 lists"),
        ([[0, 4]], {}, "item rows are 0 to 4, expected 0 to 3"),
        ([[-1, 0]], {}, "no item after an empty place"),
        ([[0, 1], [1, 1]], {}, "list 1 has an item twice"),
        ([0], {}, r"the lists are \(1,\)"),
    ],
)
def test_what_no_tool_would_read_as_meant_is_refused(tmp_path, lists, options, problem):
    with pytest.raises(ValueError, match=problem):
        rows.write_run(tmp_path / "run.txt", np.array(lists), **{"item_ids": ITEMS} | options)
    assert list(tmp_path.iterdir()) == []


def test_a_target_outside_the_catalogue_is_refused(tmp_path):
    with pytest.raises(ValueError, match="item rows are -1 to 1"):
        rows.write_qrels(tmp_path / "qrels.txt", [[0, 1], [-1]], ITEMS)


# --- ranx ---

METRICS = [*(f"recall@{k}" for k in (1, 5, 10, 100, 1000)), "ndcg@5", "ndcg@10", "mrr"]
# in a process of its own: Numba, which compiles ranx for a minute, is told when it is loaded to interpret instead
ASK = """
import json, sys
from ranx import Qrels, Run, evaluate
found = {}
for name in sys.argv[2:]:
    qrels, run = (kind.from_file(f"{name}.{ending}.txt") for kind, ending in ((Qrels, "qrels"), (Run, "run")))
    evaluate(qrels, run, METRICS, make_comparable=True)
    found[name] = {metric: {query: float(each[query]) for query in each} for metric, each in run.scores.items()}
json.dump(found, open(sys.argv[1], "w"))
"""


def drawn_lists(rng, n, k, n_items):
    """n lists of different items; a few are empty, and many have fewer than k."""
    lists = rng.permuted(np.tile(np.arange(n_items), (n, 1)), axis=1)[:, :k]
    lengths = np.where(rng.random(n) < 0.3, rng.integers(k, size=n), k)
    lengths[:3] = 0, 1, k
    return np.where(np.arange(k) < lengths[:, None], lists, -1)


def of_users():
    """Lists of up to 1,000 of 1,500 items: many targets are missing, and some are at each rank to 10."""
    rng = np.random.default_rng(0)
    lists, targets = drawn_lists(rng, 100, 1000, 1500), rng.integers(1500, size=100)
    full = np.flatnonzero(lists[:, 9] >= 0)[:30]
    targets[full] = lists[full, np.arange(30) % 10]
    examples = dataset.Examples(dataset.Histories.from_lists([[]] * 100), targets, np.arange(100))
    found = evaluate.evaluate(lambda histories, k, exclude_seen: Ranked(lists, None), examples, k=1000)
    return found, targets, 1500


def of_queries():
    """One to four hundred relevant items of 1,500, so that the divisor of Recall matters at each K."""
    rng = np.random.default_rng(1)
    lists = drawn_lists(rng, 60, 1000, 1500)
    relevant = [rng.choice(1500, rng.integers(1, 400), replace=False) for _ in range(60)]
    found = evaluate.evaluate_queries(
        lambda asked, k: Ranked(lists[[int(query) for query in asked]], None),
        [str(query) for query in range(60)],
        relevant,
        ks=(1, 5, 10, 100, 1000),
        n_items=1500,
    )
    return found, relevant, 1500


def of_the_demo_shop():
    shop = dataset.load("demo")
    split = dataset.leave_one_out(shop.histories)
    knn = ItemKNN(split.train, len(shop.items))
    return evaluate.evaluate(knn.rank, split.test, k=100), split.test.targets, len(shop.items)


CASES = {"users": of_users, "queries": of_queries, "demo": of_the_demo_shop}


@pytest.fixture(scope="module")
def asked(tmp_path_factory):
    """Of each case our evaluation, and what ranx finds in the files written of it."""
    folder = tmp_path_factory.mktemp("trec")
    ours = {}
    for name, make in CASES.items():
        ours[name], relevant, n_items = make()
        item_ids = [f"item-{row}" for row in range(n_items)]
        rows.write_run(folder / f"{name}.run.txt", ours[name].recommended, item_ids)
        rows.write_qrels(folder / f"{name}.qrels.txt", relevant, item_ids)
    subprocess.run(
        [sys.executable, "-c", f"METRICS = {METRICS}\n{ASK}", "found.json", *CASES],
        check=True,
        cwd=folder,
        env=os.environ
        | {"NUMBA_DISABLE_JIT": "1", "HOME": str(folder)},  # ir_datasets writes to it when it is imported
    )
    theirs = json.loads((folder / "found.json").read_text())
    return {name: (ours[name], theirs[name]) for name in CASES}


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_ranx_agrees_to_six_digits(asked, name):
    ours, theirs = asked[name]
    figures = evaluate.figures(ours)["mean"]
    compared = [metric for metric in METRICS if metric in figures.index]
    left_out = {"users": set(), "queries": {"ndcg@5", "ndcg@10"}, "demo": {"recall@1000"}}
    assert set(METRICS) - set(compared) == left_out[name]
    for metric in compared:
        values = theirs[metric]
        assert len(values) == len(ours.rank), "ranx counts other users"
        assert figures[metric] == pytest.approx(np.mean(list(values.values())), abs=1e-6), metric
        assert 0 < figures[metric] < 1, "nothing is compared"


@pytest.mark.slow
def test_ranx_agrees_user_by_user_and_query_by_query(asked):
    ours, theirs = asked["users"]
    rank = np.array([theirs["mrr"][str(user)] for user in range(len(ours.rank))])
    np.testing.assert_allclose(1 / ours.rank, rank, atol=1e-6)
    ours, theirs = asked["queries"]
    for metric in ("recall@1", "recall@5", "recall@10", "recall@100", "recall@1000", "mrr"):
        values = [theirs[metric][str(query)] for query in range(len(ours.rank))]
        np.testing.assert_allclose(ours.per_query[metric], values, atol=1e-6)
