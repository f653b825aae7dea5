"""What chapter 12 computes through the library."""

import doctest

import numpy as np
import pytest

from semid_lib.data import dataset
from semid_lib.evaluation import evaluate
from semid_lib.evaluation.rows import LABELS
from semid_lib.next_item.baselines import ItemKNN
from semid_lib.studies import next_item_study
from semid_lib.studies import protocol_study as protocol
from semid_lib.workbench import scale


def test_examples():
    assert doctest.testmod(protocol).failed == 0


def evaluation(rank: list[float], later: list[bool] | None = None, k: int = 100) -> evaluate.Evaluation:
    day = None if later is None else np.array(later)
    return evaluate.Evaluation(np.array(rank), np.zeros((len(rank), k), dtype=np.int64), 1.0, True, day)


def test_the_file_order_changes_only_positive_scores_of_higher_keys():
    knn = ItemKNN([[0, 1], [1, 2], [1, 0], [3, 1]], n_items=5)
    key = np.array(["d", "b", "a", "c", "e"])  # after item 1 come, by key, items 3, 0 and 4
    histories = [[2, 1], [0], []]
    with_order = protocol.with_file_order(knn, key, factor=3.0)(histories, 5, exclude_seen=False)
    before = knn.scores([np.array(history, dtype=int) for history in histories])
    factor = np.ones_like(before)
    for line, higher in enumerate(([0, 3, 4], [4], [])):
        factor[line, higher] = 3.0
    expected = np.where(before > 0, before * factor, before)
    np.testing.assert_allclose(with_order.scores, np.sort(expected, axis=1)[:, ::-1], rtol=1e-6)
    assert (with_order.items[2] == knn.rank([[]], 5, exclude_seen=False).items[0]).all()
    without = protocol.with_file_order(knn, key, factor=1.0)(histories, 5)
    assert (without.items == knn.rank(histories, 5).items).all()


def test_the_order_of_a_file_is_worth_something_until_it_is_shuffled():
    """Four random items of eight on one day, listed by item row: what is last is the order of the file alone."""
    rng = np.random.default_rng(0)
    baskets = [np.sort(rng.choice(8, 4, replace=False)) for _ in range(400)]
    days = protocol.by_day(dataset.Histories.from_lists(baskets, times=[[6, 7, 8, 9]] * len(baskets)))
    assert dataset.same_time_order(days, np.arange(8))[0] == 1.0 and dataset.same_time_share(days) == 1.0
    gains = []
    for some in (days, dataset.shuffle_same_time(days, seed=0)):
        split = dataset.leave_one_out(some)
        knn = ItemKNN(split.train, n_items=8)
        methods = {"ease": knn.rank, "slist": protocol.with_file_order(knn, np.arange(8), factor=100.0)}
        lists = {name: [evaluate.evaluate(rank, split.test, 1)] for name, rank in methods.items()}
        found = protocol.means(lists, "recall@1")
        gains.append(found["SLIST"] - found["EASE"])
    assert gains[0] > 0.1 and gains[1] < 0.05


def test_same_day_and_later_day_users_are_compared_apart():
    later = [True, False, False, True]
    found = {"item_knn": evaluation([1, 20, 1, 1], later), "sasrec": evaluation([20, 2, 1, np.inf], later)}
    rows, parts = protocol.ahead_by_day(found, "item_knn", seed=3)
    values = {row["key"]: (row["value"], row["n"], row["seed"]) for row in rows}
    assert values["same_day_ahead_of_item_knn/sasrec/recall@10"] == (0.5, 2, 3)
    assert values["later_day_ahead_of_item_knn/sasrec/recall@10"] == (-1.0, 2, 3)
    assert {key.split("/")[1] for key in values} == {"sasrec"}
    assert parts["later_day"]["item_knn"].rank.tolist() == [1, 1]
    assert parts["same_day"]["sasrec"].recommended.shape == (2, 10)
    assert list(protocol.ahead_by_day({"item_knn": evaluation([1], [True])}, "item_knn", 0)[1]) == ["later_day"]
    assert protocol.ahead_by_day({"item_knn": evaluation([1])}, "item_knn", 0) == ([], {})
    table = protocol.change_table(rows, {("same_day_ahead_of_item_knn", "recall@10"): "same day"})
    assert table.loc["SASRec", "same day"].startswith("+0.5000 (")


def test_the_change_is_the_mean_over_draws_and_the_places_follow_the_means():
    usual = {"item_knn": evaluation([1, 1, 20]), "ease": evaluation([1, 20, 20], k=10)}
    draws = {
        "item_knn": [evaluation([20, 20, 20]), evaluation([1, 20, 20])],
        "ease": [evaluation([1, 20, 20]), evaluation([1, 1, 20])],
    }
    rows = protocol.change_rows("shuffled_gain", draws, usual, [0, 1])
    values = {row["key"]: row["value"] for row in rows}
    assert values["shuffled_gain/item_knn/recall@10"] == pytest.approx(-0.5)
    assert values["shuffled_gain/ease/recall@10"] == pytest.approx(1 / 6, abs=1e-6)
    assert not any(key.endswith("@100") for key in values)  # the usual lists may have ten items
    table = protocol.order_table(usual, draws)
    assert table["usual"].tolist() == pytest.approx([2 / 3, 1 / 3])
    assert table["shuffled"].tolist() == pytest.approx([1 / 6, 1 / 2])
    assert table["place"].tolist() == [1, 2] and table["place, shuffled"].tolist() == [2, 1]
    refit = protocol.means({f"{name}_refit": each for name, each in draws.items()})
    assert refit.equals(table["shuffled"].rename(None))


def test_all_methods_are_trained_on_one_order_and_found_again(shop, tmp_path):
    histories = dataset.Histories.from_lists(shop.histories, times=[[0] * len(each) for each in shop.histories])
    sizes = scale.get("smoke", dim=8, min_steps=2)
    found = protocol.lists_of_ten(histories, shop.ids, shop.vectors, sizes, tmp_path)
    baselines = set(next_item_study.untrained([], shop.vectors))
    assert set(found) == baselines | {"sasrec", "timeline", "timeline_item_knn", "timeline_slist"}
    assert set(found) <= set(LABELS)
    n_tested = min(int((histories.lengths >= 3).sum()), sizes.test_users)
    assert {each.recommended.shape for each in found.values()} == {(n_tested, 10)}
    kept = sorted(tmp_path.iterdir())
    again = protocol.lists_of_ten(histories, shop.ids, shop.vectors, sizes, tmp_path)
    assert all((again[name].rank == each.rank).all() for name, each in found.items())
    mixed = dataset.shuffle_same_time(protocol.by_day(histories), seed=1)
    other = protocol.lists_of_ten(mixed, shop.ids, shop.vectors, sizes, tmp_path)
    assert len(sorted(tmp_path.iterdir())) == 2 * len(kept) == 4
    assert any((other[name].rank != each.rank).any() for name, each in found.items())


def test_days_need_times():
    with pytest.raises(ValueError, match="times is None, expected histories with times"):
        protocol.by_day(dataset.Histories.from_lists([[0, 1]]))
