"""Filters of queries, and the promises of a split."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from semid_lib.queries import filters, measures
from semid_lib.queries.filters import CELLS, filter_queries, query_key, round_trip_ranks, split_queries
from semid_lib.queries.synthesis import synthesize
from semid_lib.queries.templates import KINDS


@pytest.fixture(scope="module")
def asked(demo_items):
    return synthesize(demo_items.head(120), 9)


def table(*rows):
    return pd.DataFrame(rows, columns=["item", "query"])


@given(st.lists(st.sampled_from(["red", "Gel,", "dry-hair", "PEN", "l'oreal"]), min_size=1, max_size=5), st.randoms())
def test_a_key_ignores_case_order_and_punctuation(parts, random):
    shuffled = list(parts)
    random.shuffle(shuffled)
    assert query_key(" ".join(parts)) == query_key("  ".join(part.upper() for part in shuffled) + "!")
    assert query_key(" ".join(parts)) != query_key(" ".join([*parts, "pens"]))


def test_title_leaks_by_hand():
    titles = ["OPI Red Shatter Crackle Nail Polish", "Tent", "", "Gel pen"]
    asked = table(
        (0, "opi red shatter crackle nail polish"),  # the title
        (0, "nail polish, red shatter crackle"),  # five of its six words
        (0, "where can i buy red shatter crackle nail polish"),  # with other words around it
        (0, "red nail polish"),
        (0, "opi red nail polish"),  # four of six
        (1, "tent"),
        (1, "tent for two"),
        (2, "anything at all"),
        (3, "pen gel"),
        (3, "red gel pen"),
    )
    leaks = filters.leaks_title(asked, titles)
    assert leaks.tolist() == [True, True, True, False, False, True, False, False, True, False]


def test_round_trip_ranks_are_those_of_a_full_sort(monkeypatch):
    monkeypatch.setattr(filters, "_BLOCK", 7)
    rng = np.random.default_rng(0)
    item_vectors = rng.normal(size=(50, 5)).astype(np.float32)
    query_vectors = rng.normal(size=(30, 5)).astype(np.float32) * 3
    rows = rng.integers(50, size=30)
    unit = item_vectors / np.linalg.norm(item_vectors, axis=1, keepdims=True)
    order = np.argsort(-(query_vectors @ unit.T), axis=1)
    expected = 1 + np.argmax(order == rows[:, None], axis=1)
    np.testing.assert_array_equal(round_trip_ranks(rows, query_vectors, item_vectors), expected)
    equal = np.tile(np.float32([0.3, 0.7, 0.1]), (40, 1))
    assert (round_trip_ranks(np.arange(40), equal, equal) == 1).all()
    assert round_trip_ranks([0], np.zeros((1, 2)), np.eye(2)).tolist() == [1]  # no division by zero


@pytest.mark.parametrize(
    ("rows", "asked", "message"),
    [
        ([0, 1], np.eye(3)[:1], "rows of 3 items for 1 queries"),
        ([3], np.eye(3)[:1], "got .3"),
        ([-1], np.eye(3)[:1], "got .-1"),
        ([0], np.array([[np.nan, 0, 0]]), "not finite"),
    ],
)
def test_round_trip_refuses(rows, asked, message):
    with pytest.raises(ValueError, match=message):
        round_trip_ranks(rows, asked, np.eye(3))


def test_the_report_adds_up():
    asked = table(
        (0, "pen"),  # too short
        (0, "red pen"),
        (0, "Pen, red"),  # repeated
        (0, "fine red gel pen"),  # the title
        (1, "red pen"),  # as of item 0
        (1, "blue ink"),
    )
    asked.index = [10, 11, 12, 13, 14, 15]
    kept, report = filter_queries(asked, ["Fine red gel pen", "Blue ink pen for school"])
    assert kept.index.tolist() == [11, 14, 15]
    assert report.values.tolist() == [
        ["length", 1, 1, 5, "pen"],
        ["repeated", 1, 1, 4, "Pen, red"],
        ["title", 1, 1, 3, "fine red gel pen"],
        ["ambiguous", 2, 0, 3, "red pen | red pen"],
    ]
    assert filter_queries(table(), [""]).report["left"].tolist() == [0, 0, 0, 0]


def test_kept_queries_pass_again(asked, demo_items):
    titles = demo_items["title"][:120]
    once, report = filter_queries(asked, titles)
    assert 0 < report["dropped"].sum() == len(asked) - len(once)
    twice, again = filter_queries(once, titles)
    pd.testing.assert_frame_equal(once, twice)
    assert again["dropped"].sum() == 0


# --- split ---


def test_a_split_keeps_its_promises(asked):
    kinds = ["need", "typo"]
    train, test, n_dropped = split_queries(asked, kinds, seed=1)
    assert len(train) + len(test) + n_dropped == len(asked)
    assert not set(train.index) & set(test.index)
    assert not set(train["query"].map(query_key)) & set(test["query"].map(query_key))
    assert not set(kinds) & set(train["kind"])
    assert set(test["cell"]) == set(CELLS)
    new_item, new_kind = ~test["item"].isin(train["item"]), test["kind"].isin(kinds)
    assert (test["cell"] == [CELLS[2 * i + k] for i, k in zip(new_item, new_kind, strict=True)]).all()
    assert test[new_item]["item"].nunique() == 12  # of 120
    pd.testing.assert_frame_equal(train, asked.loc[train.index])  # only rows are removed
    pd.testing.assert_frame_equal(test, split_queries(asked, kinds, seed=1).test)
    assert set(test.index) != set(split_queries(asked, kinds, seed=2).test.index)
    assert set(split_queries(asked, []).test["cell"]) == {CELLS[0], CELLS[2]}


@pytest.mark.parametrize("seed", range(40))
def test_two_items_can_be_split(seed):
    asked = pd.DataFrame({"item": [0, 1], "query": ["red pen", "blue tent"], "kind": "words"})
    split = split_queries(asked, [], seed=seed)
    assert (len(split.train), split.test["cell"].tolist()) == (1, ["unseen item, seen kind"])


def test_split_refuses(asked):
    same = pd.DataFrame({"item": range(20), "query": "pen", "kind": "words"})
    for queries, kinds, message in [
        (same, [], "0 for the test"),
        (asked, ["poem"], "poem"),
        (asked, list(KINDS), "give 0 for training"),
    ]:
        with pytest.raises(ValueError, match=message):
            split_queries(queries, kinds)


# --- measures ---


def test_queries_are_compared_with_titles_and_with_the_training_part():
    own = measures.relevant_pairs(pd.DataFrame({"query": ["red pen", "ink"], "item_rows": [[0, 1], [1]]}))
    overlap = measures.title_overlap(own, ["Red pen", "Blue pen"])
    assert overlap[["words", "in_title"]].values.tolist() == [[2, 1.0], [2, 0.5], [1, 0.0]]
    means = measures.per_query(overlap[["words", "in_title"]], overlap["share"])
    assert means.values.tolist() == [[2, 0.75], [1, 0.0]]
    pairs = table((0, "good for red hair"), (0, "red hair")).assign(kind=["need", "words"])
    assert measures.own_word_pairs(pairs).round(2).to_dict() == {"need": 0.67, "words": 0.0}
    new = measures.new_words(table((0, "red ink"), (7, "ink gone")), table((0, "red pen"), (1, "blue ink")))
    assert new["new"].tolist() == [0.0, 0.5]
    assert new["new_for_item"].tolist() == pytest.approx([0.5, np.nan], nan_ok=True)
