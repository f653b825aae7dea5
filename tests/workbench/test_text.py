"""First calls that go wrong: each gets one sentence, whatever it is asked of; and those that should go right do."""

import numpy as np
import pandas as pd
import pytest
import torch

from semid_lib.next_item.baselines import ItemKNN, Popularity

SMALL = [[0, 1], [1, 2]]
METHODS = {"popularity": Popularity(SMALL, 40).rank, "item_knn": ItemKNN(list(map(np.array, SMALL)), 40).rank}


@pytest.fixture
def asked(recommender_to_serve):
    """Each way to ask for items after a history of item ids; all name the same items."""
    row_of = recommender_to_serve.item_ids.row_of
    return {"recommend": recommender_to_serve.recommend, "rank": recommender_to_serve.rank, **METHODS}, row_of


@pytest.mark.parametrize("way", ["recommend", "rank", *METHODS])
@pytest.mark.parametrize(
    ("histories", "message"),
    [
        (
            [1003, 1010],
            r"history 0 is 1003, expected a list of items: for one user, write recommend\(\[\[1, 2, 3\]\]\)",
        ),
        (np.array([3, 4]), r"history 0 is np\.int64\(3\), expected a list of items"),
        ([[], 1003], "history 1 is 1003, expected a list of items"),
        ("A-1", "histories are 'A-1', expected a list of histories"),
        (["A-1"], "history 0 is 'A-1', expected a list of items"),
        ([b"A-1"], "history 0 is b'A-1', expected a list of items"),
        (None, "histories are None, expected a list of histories"),
        (5, "histories are 5, expected a list of histories"),
        (np.array(5), r"histories are array\(5\), expected a list of histories"),
        ([None], "history 0 is None, expected a list of items"),
        ({"ann": [1]}, r"histories are \{'ann': \[1\]\}, expected a list of histories"),
        ([{1, 2}], r"history 0 is \{1, 2\}, expected a list of items"),
        (pd.DataFrame({"item": [1]}), "histories are a DataFrame, expected a list of histories"),
        ([[None]], "history 0"),
        ([[1.0]], "history 0"),
        ([[pd.NA]], "history 0"),
        ([[True]], "history 0"),
        ([[[1, 2]]], "history 0"),
        ([[1, [2]]], "history 0"),
        (pd.DataFrame({"user": [1, 1], "item": [2, 3]}).groupby("user")["item"], "history 0"),
        (np.ones((2, 3)), "history 0"),
    ],
)
def test_histories_that_are_none_get_one_sentence(asked, way, histories, message):
    with pytest.raises(ValueError, match=message) as error:
        asked[0][way](histories, k=3)
    assert len(str(error.value)) < 200 and "\n" not in str(error.value)


def test_histories_of_any_kind_of_list_are_taken(recommender_to_serve, shop):
    ids = shop.items["item_id"].to_numpy()
    expected = recommender_to_serve.recommend([ids[:3].tolist(), ids[3:6].tolist()], k=3).item_ids.tolist()
    table = ids[:6].reshape(2, 3)
    users = pd.DataFrame({"user": [0, 0, 0, 1, 1, 1], "item": ids[:6]})
    for histories in (
        table,
        tuple(map(tuple, table.tolist())),
        pd.Series(table.tolist(), index=["ann", "bob"]),
        users.groupby("user")["item"].agg(list),
        [pd.Series(row) for row in table],
        torch.tensor(table.tolist()),
        (iter(row) for row in table.tolist()),
        [[str(item) for item in row] for row in table.tolist()],
    ):
        assert recommender_to_serve.recommend(histories, k=3).item_ids.tolist() == expected
    rows = np.arange(6).reshape(2, 3)
    by_rows = recommender_to_serve.rank(rows, k=3).items.tolist()
    for histories in (rows.astype(np.uint8), pd.Series(rows.tolist()), [range(3), iter([3, 4, 5])]):
        assert recommender_to_serve.rank(histories, k=3).items.tolist() == by_rows
    assert [[ids[row] for row in found] for found in by_rows] == expected


@pytest.mark.parametrize("way", ["recommend", "rank", *METHODS])
@pytest.mark.parametrize("k", [0, -1, 3.0, "3", None, True, np.float64(3)])
def test_a_k_that_counts_nothing_is_refused(asked, way, k):
    with pytest.raises(ValueError, match="k must be a whole number of at least 1, got"):
        asked[0][way]([[]], k=k)


@pytest.mark.parametrize("way", ["recommend", "rank", *METHODS])
@pytest.mark.parametrize("k", [2**24 + 1, 10**12, 10**30])
def test_a_k_that_no_memory_holds_is_refused(asked, way, k):
    with pytest.raises(ValueError, match=f"k is {k}, expected at most 16777216"):
        asked[0][way]([[]], k=k)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beam_width": 0}, "beam_width must be a whole number of at least 1, got 0"),
        ({"beam_width": "50"}, "beam_width must be a whole number of at least 1, got '50'"),
        ({"beam_width": 2}, "k is 3 and beam_width 2: expected 1 <= k <= beam_width. Set beam_width to 3 or more"),
        ({"beam_width": 10**30}, "beam_width is 10{30}, expected at most 16777216"),
        ({"exclude_seen": "no"}, "exclude_seen must be True or False, got 'no'"),
        ({"exclude_seen": 0}, "exclude_seen must be True or False, got 0"),
        (
            {"allowed": [1, 2]},
            r"allowed is int64 \(2,\), expected bool \(40,\) or \(1, 40\): rules.items_with_ids makes",
        ),
        ({"allowed": np.ones(40)}, r"allowed is float64 \(40,\), expected bool"),
        ({"allowed": np.ones((2, 40), bool)}, r"allowed is bool \(2, 40\), expected bool"),
        ({"allowed": True}, r"allowed is bool \(\), expected bool"),
        *(
            ({"diversity": wrong}, r"diversity is .*, expected \(at least 1, a prefix length from 1 to 3\)")
            for wrong in (3, "21", (2,), (0, 1), (2, 4), (2, 1.0), (2, 1, 1), (True, 1))
        ),
    ],
)
def test_options_that_mean_nothing_are_refused(recommender_to_serve, options, message):
    for ask in (recommender_to_serve.recommend, recommender_to_serve.rank):
        with pytest.raises(ValueError, match=message):
            ask([[]], k=3, **options)


@pytest.mark.parametrize(
    ("queries", "message"),
    [
        ("tent", "queries are 'tent', expected a list of texts"),
        (None, "queries are None, expected a list of texts"),
        ([None], "query 0 is None, expected some text"),
        (["tent", 3], "query 1 is 3, expected some text"),
        ([" "], "query 0 is ' ', expected some text"),
        (pd.DataFrame({"query": ["tent"]}), "queries are a DataFrame, expected a list of texts"),
        ({"tent": 1}, r"queries are \{'tent': 1\}, expected a list of texts"),
    ],
)
def test_queries_that_are_none_get_one_sentence(recommender_to_serve, queries, message):
    with pytest.raises(ValueError, match=message):
        recommender_to_serve.search(queries, k=3)
