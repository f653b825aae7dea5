"""From a recommender and examples to figures and tables, by hand."""

from typing import NamedTuple

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from semid_lib.data import dataset as data
from semid_lib.evaluation import evaluate
from semid_lib.evaluation.rows import over_seeds
from semid_lib.next_item.baselines import Popularity


class Examples(NamedTuple):
    histories: list
    targets: np.ndarray


# item 1 is the most popular, then 0, then 2; item 3 was never seen
METHOD = Popularity([[0, 1], [1], [0, 1, 2]], n_items=4)


def of_ranks(rank, length):
    return evaluate.Evaluation(np.array(rank, dtype=float), np.zeros((len(rank), length), np.int64), 0.0)


def test_evaluate_ranks_the_targets():
    found = evaluate.evaluate(METHOD.rank, Examples([[1], [0], [0, 1]], np.array([0, 3, 2])), k=2)
    assert found.recommended.tolist() == [[0, 2], [1, 2], [2, 3]]
    assert found.rank.tolist() == [1, np.inf, 1]
    assert found.seconds > 0


def test_without_users_the_protocol_is_told():
    with pytest.raises(ValueError, match=r"no users to evaluate on.*3 interactions"):
        evaluate.evaluate(METHOD.rank, Examples([], np.array([], dtype=np.int64)), k=2)


# a shop where customers buy the same again, and one where they do not
AGAIN = data.leave_one_out(data.Histories.from_lists([[0, 1, 0, 1, 0], [2, 1, 2, 1, 2], [3, 0, 3, 0, 3]]))
NEW = data.leave_one_out(data.Histories.from_lists([[0, 1, 2, 3], [2, 1, 0, 3]]))


def test_who_buys_again_is_recommended_seen_items_and_warned_without_them():
    rank = Popularity(AGAIN.train, 4).rank
    found = evaluate.evaluate(rank, AGAIN.test, k=4)
    assert not found.exclude_seen and np.isfinite(found.rank).all()
    assert evaluate.evaluate(Popularity(NEW.train, 4).rank, NEW.test, k=4).exclude_seen
    with pytest.warns(UserWarning, match="100% of the targets are items of the user's own history"):
        found = evaluate.evaluate(rank, AGAIN.test, k=4, exclude_seen=True)
    assert np.isinf(found.rank).all()


def test_a_table_says_where_seen_items_were_allowed():
    always = of_ranks([1] * 4, length=10)
    assert "seen items" not in evaluate.table({"a": always, "b": [always, always]}).index
    table = evaluate.table({"a": always._replace(exclude_seen=False), "b": [always, always]})
    assert table.loc["seen items"].to_dict() == {"a": "allowed", "b": "excluded"}


def test_figures_by_hand():
    measured = evaluate.figures(of_ranks([1, 3, 7, 11, np.inf], length=100), ks=[1, 5, 20])
    assert measured.index.name == "metric"
    assert measured["mean"].to_dict() == pytest.approx(
        {
            **{"recall@1": 1 / 5, "recall@5": 2 / 5, "recall@20": 4 / 5},
            **{"ndcg@5": (1 + 1 / 2) / 5, "ndcg@10": (1 + 1 / 2 + 1 / 3) / 5},
            "mrr": (1 + 1 / 3 + 1 / 7 + 1 / 11) / 5,
        }
    )
    assert (measured["low"] <= measured["mean"]).all()
    assert (measured["mean"] <= measured["high"]).all()
    assert list(measured.columns) == ["mean", "low", "high"]


@pytest.mark.parametrize(
    ("length", "reported"),
    [
        (4, ["recall@1"]),
        (9, ["recall@1", "recall@5", "ndcg@5"]),
        (99, ["recall@1", "recall@5", "recall@10", "recall@50", "ndcg@5", "ndcg@10"]),
        (1000, [*(f"recall@{k}" for k in (1, 5, 10, 50, 100, 1000)), "ndcg@5", "ndcg@10", "mrr"]),
    ],
)
def test_lists_too_short_for_a_metric_do_not_report_it(length, reported):
    assert list(evaluate.figures(of_ranks([1, np.inf], length)).index) == reported


def test_table_has_a_column_a_method_and_a_row_a_metric():
    always, never = of_ranks([1] * 4, length=100), of_ranks([np.inf] * 4, length=100)
    shown = evaluate.table({"oracle": always, "nothing": never}, ks=[10])
    assert shown.columns.tolist() == ["oracle", "nothing"]
    assert shown.index.tolist() == ["recall@10", "ndcg@5", "ndcg@10", "mrr"]
    assert (shown["oracle"] == "1.0000\xa0±\xa0.0000").all()
    assert (shown["nothing"] == ".0000\xa0±\xa0.0000").all()


def test_a_table_of_several_seeds_gives_means_and_the_spread():
    rng = np.random.default_rng(0)
    seeds = [of_ranks(rng.integers(1, 20, size=40), length=100) for _ in range(3)]
    one, several = (evaluate.table({"mine": found}, ks=[10]) for found in (seeds[0], seeds))
    values = np.array([(found.rank <= 10).mean() for found in seeds])
    figures = [evaluate.figures(found, ks=[10]).loc["recall@10"] for found in seeds]
    half = np.mean([(each["high"] - each["low"]) / 2 for each in figures])
    expected = f"{values.mean():.4f}\xa0±\xa0{half:.4f} ({values.std(ddof=1):.4f})".replace("0.", ".")
    assert several["mine"]["recall@10"] == expected
    assert one["mine"].equals(evaluate.table({"mine": seeds[:1]}, ks=[10])["mine"])
    assert "(" not in one["mine"]["recall@10"]


def test_rows_of_one_seed_and_of_several():
    first, second = of_ranks([1, np.inf, 3], length=10), of_ranks([1, 2, np.inf], length=10)
    alone = {row["key"]: row for row in evaluate.rows("next_item/mine", [first], [7])}
    assert alone["next_item/mine/recall@1"]["value"] == pytest.approx(1 / 3, abs=1e-6)
    assert (alone["next_item/mine/recall@1"]["seed"], alone["next_item/mine/recall@1"]["n"]) == (7, 3)
    both = {row["key"]: row for row in evaluate.rows("next_item/mine", [first, second], [7, 8])}
    assert both["next_item/mine/recall@5"] | {"ci95": 0} == {
        "key": "next_item/mine/recall@5", "n": 3, "seeds": [7, 8], "seconds": 0.0, "ci95": 0,
        "value": pytest.approx(2 / 3, abs=1e-6), "spread": 0.0,
    }  # fmt: skip
    with pytest.raises(ValueError, match="zip"):
        evaluate.rows("next_item/mine", [first], [7, 8])


# --- users whose target lies on a later day ---

LATER = np.array([True, False, True, False, True])


def test_figures_of_a_later_day_by_hand():
    found = of_ranks([1, 3, 7, 11, np.inf], length=100)._replace(later_day=LATER)
    measured = evaluate.figures(found)
    later = measured[measured.index.str.startswith("later_day_")]
    assert later["mean"].to_dict() == pytest.approx(
        {
            **{"later_day_recall@5": 1 / 3, "later_day_recall@10": 2 / 3, "later_day_recall@100": 2 / 3},
            "later_day_ndcg@10": (1 + 1 / 3) / 3,
        }
    )
    rest = measured.drop(later.index)
    pd.testing.assert_frame_equal(rest, evaluate.figures(found._replace(later_day=None)))
    alone = evaluate.figures(of_ranks([1, 7, np.inf], length=100), ks=(5, 10, 100))
    pd.testing.assert_frame_equal(
        later.rename(index=lambda name: name.removeprefix("later_day_")),
        alone.loc[[*evaluate.OF_LATER_DAY[:3], "ndcg@10"]],
    )
    assert list(evaluate.table({"mine": found}).index) == list(measured.index)


@pytest.mark.parametrize("later", [None, np.ones(5, bool), np.zeros(5, bool)])
def test_without_both_kinds_of_users_nothing_is_reported_of_a_later_day(later):
    found = of_ranks([1, 3, 7, 11, np.inf], length=100)._replace(later_day=later)
    assert not evaluate.figures(found).index.str.startswith("later_day_").any()
    assert not any("later_day" in row["key"] for row in evaluate.rows("next_item/mine", [found], [0]))


def test_rows_of_a_later_day_count_their_own_users():
    found = of_ranks([1, 3, 7, 11, np.inf], length=100)._replace(later_day=LATER)
    other = of_ranks([2, 3, np.inf, 11, np.inf], length=100)._replace(later_day=LATER)
    rows = {row["key"]: row for row in evaluate.rows("next_item/mine", [found, found], [0, 1])}
    assert rows["next_item/mine/recall@10"]["n"] == 5
    assert rows["next_item/mine/later_day_recall@10"]["n"] == 3
    ahead = {row["key"]: row for row in evaluate.difference_rows("ahead", [found, found], [other], [0, 1])}
    assert ahead["ahead/recall@1"]["value"] == pytest.approx(1 / 5)
    assert ahead["ahead/later_day_recall@10"]["value"] == pytest.approx(1 / 3, abs=1e-6)
    assert (ahead["ahead/later_day_recall@10"]["n"], ahead["ahead/recall@1"]["seeds"]) == (3, [0, 1])
    with pytest.raises(ValueError, match="zip"):
        evaluate.difference_rows("ahead", [found] * 3, [other] * 2, [0, 1, 2])
    with pytest.raises(ValueError, match="expected the same users"):
        evaluate.differences(found, other._replace(later_day=~LATER))


def test_a_split_says_who_is_tested_on_a_later_day():
    day = 86_400
    times = [[0, 1, day, day + 5], [3 * day - 1, 3 * day - 1, 3 * day - 1, 3 * day], [5, 6, 7, 8]]
    split = data.leave_one_out(data.Histories.from_lists([[0, 1, 2, 3]] * 3, times=times))
    assert split.validation.later_day.tolist() == [True, False, False]
    assert split.test.later_day.tolist() == [False, True, False]
    found = evaluate.evaluate(Popularity(split.train, 4).rank, split.test, k=4)
    assert found.later_day is split.test.later_day
    assert data.leave_one_out(data.Histories.from_lists([[0, 1, 2]])).test.later_day is None


def test_an_item_that_shares_its_semantic_id_with_the_target_is_no_hit(shop):
    """Counted on semantic IDs, this method would be right every time; it is right where nobody shares the code."""
    codes = shop.ids.codes
    twin = np.array([np.flatnonzero((codes == own).all(axis=1))[0] for own in codes])
    targets = np.arange(len(codes))

    class Ranked(NamedTuple):
        items: np.ndarray

    examples = Examples([[]] * len(codes), targets)
    found = evaluate.evaluate(lambda histories, k, exclude_seen: Ranked(twin[:, None]), examples, k=1)
    assert (codes[found.recommended[:, 0]] == codes[targets]).all()
    n_different = len(np.unique(codes, axis=0))
    assert n_different < len(codes)
    assert evaluate.figures(found).loc["recall@1", "mean"] == n_different / len(codes)


some_ranks = st.lists(st.sampled_from([1.0, 2.0, 6.0, 50.0, np.inf]), min_size=1, max_size=12)


@settings(max_examples=10)
@given(some_ranks, st.data())
def test_a_difference_is_the_same_with_its_sign_changed_from_the_other_side(rank, data):
    other = data.draw(st.permutations(rank))
    ours, theirs = of_ranks(rank, 100), of_ranks(other, 100)
    there, back = evaluate.differences(ours, theirs), evaluate.differences(theirs, ours)
    np.testing.assert_allclose(there["mean"], -back["mean"], atol=1e-12)
    np.testing.assert_allclose(there["low"], -back["high"], atol=1e-12)
    apart = evaluate.figures(ours)["mean"] - evaluate.figures(theirs)["mean"]
    np.testing.assert_allclose(there["mean"], apart, atol=1e-12)
    assert (evaluate.differences(ours, ours) == 0).all(axis=None)


def test_a_paired_difference_sees_what_two_intervals_hide():
    rng = np.random.default_rng(0)
    hit = rng.random(400) < 0.5
    gained = ~hit & (rng.random(400) < 0.06)
    weak, strong = (of_ranks(np.where(found, 1.0, np.inf), 1) for found in (hit, hit | gained))
    assert evaluate.figures(weak).loc["recall@1", "high"] > evaluate.figures(strong).loc["recall@1", "low"]
    found = evaluate.differences(strong, weak).loc["recall@1"]
    assert found["low"] > 0
    assert found["mean"] == pytest.approx(gained.mean())


def test_differences_need_the_same_users_and_metrics():
    for other in (of_ranks([1], 100), of_ranks([1, 2], 10), asked()):
        with pytest.raises(ValueError, match="expected the same users and metrics"):
            evaluate.differences(of_ranks([1, 2], 100), other)


# --- what lists expose ---


def test_popularity_groups_by_hand():
    # of 20 interactions item 0 has the first 6, items 1 and 2 the next 10, items 3 and 4 the last 4, item 5 none
    groups = evaluate.popularity_groups(np.array([6, 5, 5, 2, 2, 0]))
    assert list(groups) == ["head", "mid", "mid", "tail", "tail", "cold"]
    assert list(evaluate.popularity_groups(np.zeros(2, dtype=int))) == ["cold", "cold"]
    assert list(evaluate.popularity_groups(np.array([3]))) == ["head"]


@given(st.lists(st.integers(0, 30), min_size=1, max_size=30).map(np.array))
def test_popularity_groups_divide_the_interactions(counts):
    groups = np.array(evaluate.popularity_groups(counts))
    assert ((groups == "cold") == (counts == 0)).all()
    head, mid, tail = (counts[groups == name] for name in ("head", "mid", "tail"))
    for more, less in ((head, mid), (mid, tail), (head, tail)):
        assert not (more.size and less.size) or more.min() >= less.max()
    assert tail.sum() <= 0.2 * counts.sum() + 1e-9  # who crosses a border belongs to the more popular side
    if counts.sum():
        assert head.sum() >= 0.2 * counts.sum() - 1e-9


def test_exposure_by_hand():
    counts = np.array([6, 5, 5, 2, 2, 0])
    lists = {"popular": np.array([[0, 1], [0, 2]]), "shorter": np.array([[3, -1], [5, 0], [-1, -1]])}
    found = evaluate.exposure(lists | {"nobody": np.empty((0, 2), dtype=int)}, counts)
    assert list(found) == ["coverage", "popularity", "head", "mid", "tail", "cold"]
    assert found.loc["popular"].tolist() == pytest.approx([3 / 6, (11 + 11) / 4, 0.5, 0.5, 0, 0])
    assert found.loc["shorter"].tolist() == pytest.approx([3 / 6, (2 + 3) / 2, 0.25, 0, 0.5, 0.25])
    assert found.loc["nobody", "coverage"] == 0
    assert found.loc["nobody"].drop("coverage").isna().all()


# --- queries ---


class Lists(NamedTuple):
    items: np.ndarray


class Searcher:
    """Answers each query with its list, and remembers how it was asked."""

    def __init__(self, lists):
        self.lists, self.calls = lists, []

    def search(self, queries, k, **options):
        self.calls.append((list(queries), options))
        return Lists(np.array([(self.lists[query] + [-1] * k)[:k] for query in queries]))


LISTS = {"pen": [0, 1, 2], "tent": [3], "red": [2, 0], "lamp": [1, 3, 0, 2]}
RELEVANT = [1, [3], np.array([0, 2]), np.array([2, 3])]


def asked(lists=LISTS, **options):
    settings = {"ks": (1, 3), "n_items": 4} | options
    return evaluate.evaluate_queries(Searcher(lists).search, list(lists), RELEVANT[: len(lists)], **settings)


def test_queries_by_hand():
    found = asked()
    assert found.per_query.to_dict("list") == {
        "recall@1": [0, 1, 0.5, 0],
        "recall@3": [1, 1, 1, 0.5],
        "validity_rate": [1, 1 / 3, 2 / 3, 1],
    }
    assert found.rank.tolist() == [2, 1, 1, 2]
    assert found.recommended.tolist() == [[0, 1, 2], [3, -1, -1], [2, 0, -1], [1, 3, 0]]
    assert found.seconds > 0
    assert len(found.seconds_alone) == 4


def test_validity_counts_the_places_that_could_hold_an_item():
    assert asked(ks=(100,)).per_query["validity_rate"].tolist() == [0.75, 0.25, 0.5, 1]  # of four items
    allowed = np.array([True, True, False, False])
    assert asked(allowed=allowed).per_query["validity_rate"].tolist() == [1, 0, 0.5, 1]
    nobody = np.zeros((4, 4), dtype=bool)
    assert (asked(allowed=nobody).per_query["validity_rate"] == 1).all()
    assert asked({"pen": [0, 4, 7]}).per_query["validity_rate"].tolist() == [1 / 3]


def test_how_a_method_is_asked():
    method, vectors = Searcher(LISTS), np.arange(8).reshape(4, 2)
    masks = np.eye(4, dtype=bool)
    names = list(LISTS)
    evaluate.evaluate_queries(
        method.search, names, RELEVANT, n_items=4, n_alone=2, allowed=masks, query_vectors=vectors
    )
    warm_up, everything, *alone = method.calls
    assert (warm_up[0], everything[0], [len(queries) for queries, _ in alone]) == (names[:1], names, [1, 1])
    for queries, options in method.calls:
        at = [names.index(query) for query in queries]
        np.testing.assert_array_equal(options["query_vectors"], vectors[at])
        np.testing.assert_array_equal(options["allowed"], masks[at])
    method = Searcher(LISTS)
    evaluate.evaluate_queries(method.search, names, RELEVANT, n_items=4, allowed=masks[0])
    assert all(options["allowed"].tolist() == [True, False, False, False] for _, options in method.calls)


@pytest.mark.parametrize(
    ("queries", "relevant", "message"),
    [
        ([], [], "0 queries"),
        (["pen"], [[1], [2]], "1 queries and 2 sets"),
        (["pen", "tent"], [[1], [2, 4]], "item 4 is relevant to query 1"),
        (["pen", "tent"], [[1], []], "of query 1"),
    ],
)
def test_queries_without_an_answer_are_refused(queries, relevant, message):
    with pytest.raises(ValueError, match=message):
        evaluate.evaluate_queries(Searcher(LISTS).search, queries, relevant, n_items=4)


def test_lists_of_another_shape_are_refused():
    def short(queries, k):
        return Lists(np.tile([0, 1, 2], (len(queries), 1)))

    with pytest.raises(ValueError, match=r"lists are \(2, 3\), expected \(2, 100\)"):
        evaluate.evaluate_queries(short, ["a", "b"], [0, 1], n_items=4)


def test_query_figures_and_table():
    assert "mrr" not in asked().per_query
    found, other = asked(ks=(1, 100)), asked({name: items[::-1] for name, items in LISTS.items()}, ks=(1, 100))
    measured = evaluate.figures(found)
    assert measured["mean"].to_dict() == {"recall@1": 0.375, "recall@100": 1, "mrr": 0.75, "validity_rate": 0.625}
    assert (measured["low"] <= measured["mean"]).all()
    shown = evaluate.query_table({"one": found, "other": other})
    assert shown.columns.tolist() == ["one", "other"]
    assert shown.index.tolist() == [*measured.index, "ms, one by one", "ms, in one call"]
    assert shown.loc["recall@1", "one"] == evaluate.shown(*measured.loc["recall@1"])


def test_differences_are_those_of_each_query():
    better, worse = asked(ks=(1,)), asked({name: items[::-1] for name, items in LISTS.items()}, ks=(1,))
    assert evaluate.differences(better, worse).loc["recall@1", "mean"] == pytest.approx((0 + 0 + 0 - 0.5) / 4)


def test_groups_together_are_the_whole():
    found = asked()
    groups = evaluate.by_group(found, ["b", "a", "b", "b"])
    assert groups.index.names == ["group", "metric"]
    assert list(dict.fromkeys(groups.index.get_level_values("group"))) == ["b", "a"]
    recall = groups.xs("recall@3", level="metric")
    assert recall["n"].tolist() == [3, 1]
    assert recall["mean"].tolist() == pytest.approx([2.5 / 3, 1])
    assert np.average(recall["mean"], weights=recall["n"]) == pytest.approx(found.per_query["recall@3"].mean())
    for wrong in (["a"], ["a", "b", None, "a"]):
        with pytest.raises(ValueError, match="expected 4, one each"):
            evaluate.by_group(found, wrong)


def test_a_table_of_groups_has_every_method_and_the_widest_interval():
    ours, theirs = asked(), asked({name: items[::-1] for name, items in LISTS.items()})
    table = evaluate.group_table({"ours": ours, "theirs": theirs}, ["b", "a", "b", "b"], "recall@3")
    assert table.columns.tolist() == ["n", "ours", "theirs", "±"]
    assert table["n"].to_dict() == {"b": 3, "a": 1}
    for name, each in (("ours", ours), ("theirs", theirs)):
        figures = evaluate.by_group(each, ["b", "a", "b", "b"]).xs("recall@3", level="metric")
        assert table[name].tolist() == figures["mean"].tolist()
        assert (table["±"] >= (figures["high"] - figures["low"]) / 2).all()


def test_groups_of_users_come_out_in_the_order_of_the_categories():
    counts = np.array([6, 5, 5, 2, 2, 0])
    targets = np.array([5, 3, 0, 1, 4])
    found = of_ranks([np.inf, 2, 1, 3, np.inf], length=100)
    groups = evaluate.by_group(found, evaluate.popularity_groups(counts)[targets], ks=[2])
    recall = groups.xs("recall@2", level="metric")
    assert recall.index.tolist() == ["head", "mid", "tail", "cold"]
    assert recall["n"].tolist() == [1, 1, 2, 1]
    assert recall["mean"].tolist() == [1, 0, 0.5, 0]
    assert list(dict.fromkeys(groups.index.get_level_values("metric"))) == ["recall@2", "ndcg@5", "ndcg@10", "mrr"]
    lengths = pd.cut([3, 12, 4, 7, 30], [0, 4, 9, np.inf], labels=["up to 4", "5 to 9", "10 or more"])
    by_length = evaluate.by_group(found, lengths, ks=[2]).xs("recall@2", level="metric")
    assert by_length.index.tolist() == ["up to 4", "5 to 9", "10 or more"]
    assert by_length["n"].tolist() == [2, 1, 2]
    beyond = pd.cut([3, 12, 4, 7, 30], [0, 4, 9])
    with pytest.raises(ValueError, match="2 of them missing"):
        evaluate.by_group(found, beyond)


@pytest.mark.parametrize("seeds", [[0], [0, 0], [0, None]])
def test_rows_without_two_different_seeds_have_no_spread(seeds):
    with pytest.raises(ValueError, match="expected two or more different ones"):
        over_seeds([{"key": "next_item/mine/mrr", "value": 0.5, "seed": seed} for seed in seeds])
