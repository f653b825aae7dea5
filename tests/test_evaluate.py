"""From a recommender and examples to figures and tables, by hand."""

from typing import NamedTuple

import numpy as np
import pytest

from semid_lib import evaluate
from semid_lib.baselines import Popularity


class Examples(NamedTuple):
    histories: list
    targets: np.ndarray


# item 1 is the most popular, then 0, then 2; item 3 was never seen
METHOD = Popularity([[0, 1], [1], [0, 1, 2]], n_items=4)


def of_ranks(rank, length):
    return evaluate.Evaluation(np.array(rank, dtype=float), np.zeros((len(rank), length), np.int64), 0.0)


def test_evaluate_ranks_the_targets():
    found = evaluate.evaluate(METHOD.rank, Examples([[1], [0], [0, 1]], np.array([0, 3, 1])), k=2)
    assert found.recommended.tolist() == [[0, 2], [1, 2], [2, 3]]
    assert found.rank.tolist() == [1, np.inf, np.inf]
    assert found.seconds > 0


def test_options_reach_the_recommender():
    found = evaluate.evaluate(METHOD.rank, Examples([[0, 1]], np.array([1])), k=2, exclude_seen=False)
    assert found.rank.tolist() == [1]


def test_figures_by_hand():
    measured = evaluate.figures(of_ranks([1, 3, 11, np.inf], length=100), ks=[1, 5, 20])
    assert measured.index.name == "metric"
    assert measured["mean"].to_dict() == pytest.approx(
        {"recall@1": 0.25, "recall@5": 0.5, "recall@20": 0.75, "ndcg@10": 1.5 / 4, "mrr": (1 + 1 / 3 + 1 / 11) / 4}
    )
    assert (measured["low"] <= measured["mean"]).all()
    assert (measured["mean"] <= measured["high"]).all()
    assert list(measured.columns) == ["mean", "low", "high"]


@pytest.mark.parametrize(
    ("length", "reported"),
    [(9, ["recall@5"]), (10, ["recall@5", "recall@10", "ndcg@10"]), (99, ["recall@5", "recall@10", "ndcg@10"])],
)
def test_lists_too_short_for_a_metric_do_not_report_it(length, reported):
    assert list(evaluate.figures(of_ranks([1, np.inf], length)).index) == reported


def test_table_has_a_column_a_method_and_a_row_a_metric():
    always, never = of_ranks([1] * 4, length=100), of_ranks([np.inf] * 4, length=100)
    shown = evaluate.table({"oracle": always, "nothing": never}, ks=[10])
    assert shown.columns.tolist() == ["oracle", "nothing"]
    assert shown.index.tolist() == ["recall@10", "ndcg@10", "mrr"]
    assert (shown["oracle"] == "1.0000\xa0±\xa0.0000").all()
    assert (shown["nothing"] == ".0000\xa0±\xa0.0000").all()


def test_shown_gives_half_of_the_interval():
    assert evaluate.shown(0.5, 0.4, 0.62) == ".5000\xa0±\xa0.1100"
    assert evaluate.shown(12.0, 11.0, 14.0) == "12.0000\xa0±\xa01.5000"
