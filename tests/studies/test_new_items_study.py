"""What chapter 13 computes through the library."""

import doctest

import numpy as np
import pandas as pd
import pytest

from semid_lib.data import dataset
from semid_lib.evaluation import evaluate
from semid_lib.ids import embed
from semid_lib.next_item import recipes
from semid_lib.next_item.baselines import TextOnly
from semid_lib.studies import new_items_study as study
from semid_lib.workbench import scale

DAY = 86_400


@pytest.fixture(scope="module")
def histories() -> dataset.Histories:
    """Users of eight days; items 10 to 13 come on the sixth day, and 14 on the last."""
    rng = np.random.default_rng(0)
    baskets = []
    for _ in range(60):
        first, late = rng.choice(10, 5, replace=False), rng.choice([*range(10), 10, 11, 12, 13], 2, replace=False)
        last = 14 if rng.random() < 0.2 else int(rng.integers(10))
        baskets.append([*first, *late, last])
    return dataset.Histories.from_lists(baskets, times=[[DAY * day for day in range(1, 9)]] * len(baskets))


@pytest.fixture(scope="module")
def new(histories) -> study.Launch:
    split = dataset.time_split(histories, validation_share=0.25, test_share=0.125)
    return study.launch(histories, split, 15, split.moments[1])


def test_examples():
    assert doctest.testmod(study).failed == 0


def test_a_launch_orders_items_by_when_they_came_and_hides_what_training_cannot_know(new, histories):
    assert new.n_known == 10 and new.order[:10].tolist() == list(range(10))
    assert set(new.order[10:14]) == {10, 11, 12, 13} and new.order[14] == 14 and new.n_validation == 14
    assert new.train.items.max() < 10
    for history, placed in zip(histories, new.histories, strict=True):
        np.testing.assert_array_equal(new.order[placed], history)
    learnable = new.learnable()
    assert learnable.targets.max() < 10 and max(max(each, default=0) for each in learnable.histories) < 10
    assert len(learnable.targets) == (~new.is_new(new.validation)).sum() < len(new.validation.targets)


def test_the_rate_is_sales_of_a_new_item_over_those_of_a_known_one(new):
    targets = new.validation.targets
    expected = ((targets >= 10).sum() / 4) / ((targets < 10).sum() / 10)
    assert study.new_item_rate(new) == pytest.approx(expected)
    known = new.validation._replace(targets=np.zeros_like(targets))
    assert study.new_item_rate(new._replace(validation=known)) == 0
    assert study.new_item_rate(new._replace(n_validation=new.n_known)) == 0


def test_held_out_items_are_in_no_history_and_only_in_test_targets(histories):
    split = study.hold_out(histories, share=0.2, seed=3)
    before = dataset.leave_one_out(histories)
    shown = set(split.train.items) | set(split.validation.targets) | set(split.test.histories.items)
    gone = set(before.test.targets) - shown  # those drawn, and what comes only at the end: item 14
    assert 14 in gone and len(gone - {14}) in (1, 2) and round(0.2 * len(set(before.test.targets))) == 2
    np.testing.assert_array_equal(split.test.targets, before.test.targets)
    held = study.launch(histories, split, 15)
    assert set(held.order[held.n_known :]) >= gone and held.n_validation == 15


def test_a_model_of_known_items_gets_the_new_ones_afterwards(new, monkeypatch):
    items = pd.DataFrame({"item_id": np.arange(100, 115), "title": [f"thing {n}" for n in range(15)]})
    vectors = embed.normalize(np.random.default_rng(1).normal(size=(15, 8)).astype(np.float32))
    sizes = scale.get("smoke", "demo")
    task = recipes.Task(new.train, None, sizes)
    made = study.made(new, items, vectors, "all-MiniLM-L6-v2", task, seed=0, n_epochs=1)
    recommender = made.recommender
    assert recommender.model.config.n_items == 10 and made.report.n_items == 5 and made.n_epochs == 1
    assert recommender.items["item_id"].tolist() == [100 + row for row in new.order]
    np.testing.assert_allclose(recommender.model.vectors.numpy(), vectors[new.order], atol=1e-6)
    assert recommender.model.n_trained.sum() == len(new.train.items)

    lines = study.at_rates(recommender, new, [0.01, 1000.0], 5, new.validation)
    of_new = lines[lines["kind"] == "new"].set_index("rate")
    assert of_new.loc[1000.0, "recall@10"] > of_new.loc[0.01, "recall@10"]
    assert recommender.model.config.new_item_rate == 0  # as it was

    sales = study.recent_sales(new.histories, 6 * DAY, 15, days=3)
    found = study.at_smoothings(recommender, sales, [0.1, np.inf], 3, new.learnable())
    assert found.index.tolist() == [0.1, np.inf] and not recommender.model.trend.any()
    placed = vectors[new.order]
    only = study.only(TextOnly(new.train, placed), np.arange(15) >= 10)
    ranks = {"text_only": only, "timeline": recommender.rank}
    assert study.among_new(ranks, new, new.validation).empty  # 4 new items make no list of ten
    assert (only([[0, 1]], 5).items >= 10).all()


def test_rows_and_tables_tell_kinds_of_targets_apart():
    is_new = np.array([False, False, True, True])
    lists = np.zeros((4, 100), dtype=np.int64)

    def evaluation(*rank: float) -> evaluate.Evaluation:
        return evaluate.Evaluation(np.array(rank), lists, 1.0)

    measured = {
        "text_only": [evaluation(1, np.inf, 1, 1)],
        "timeline": [evaluation(1, 1, np.inf, 1), evaluation(1, 1, np.inf, np.inf)],
    }
    rows = study.rows_of("new_items", measured, is_new, [0, 1])
    values = {row["key"]: row["value"] for row in rows}
    assert values["new_items_all/text_only/recall@10"] == 0.75
    assert values["new_items_known/timeline/recall@10"] == 1 and values["new_items_new/timeline/recall@10"] == 0.25
    table = study.table(rows)
    assert list(table.columns) == [f"Recall@{k}, {kind}" for kind in study.KINDS for k in (10, 100)]
    assert study.best(rows, "new_items", "recall@10") == {
        "all targets": "text only",
        "known targets": "timeline model",
        "new targets": "text only",
    }
    ahead = study.ahead_rows("new_items", measured, [("text_only", "timeline")], is_new, [0, 1])
    found = {row["key"]: row["value"] for row in ahead}
    assert found["new_items_new_ahead_of_timeline/text_only/recall@10"] == 0.5
    assert study.difference_table(ahead).index.tolist() == ["(text only) − (timeline model)"]
