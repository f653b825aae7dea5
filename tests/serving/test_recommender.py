"""Item ids in and out, rules and priors, search, and tables for notebooks; `test_saved` has its folders."""

import numpy as np
import pytest

from semid_lib.ids.semantic_ids import SemanticIDs
from semid_lib.serving.recommender import Recommender


def test_item_ids_are_those_of_the_rows_best_first(shop, recommender, histories):
    found, ranked = recommender.recommend(histories, k=10), recommender.rank(shop.histories[:8], k=10)
    assert (ranked.items != found.item_ids).all()  # the ids of this shop are no row numbers
    np.testing.assert_array_equal(found.item_ids, shop.items["item_id"].to_numpy()[ranked.items])
    np.testing.assert_array_equal(found.scores, ranked.scores)
    assert (found.item_ids.shape, found.item_ids.dtype, found.scores.dtype) == ((8, 10), object, np.float32)
    assert (np.diff(found.scores, axis=1) <= 0).all() and all(len(set(row)) == 10 for row in found.item_ids.tolist())


def test_items_of_the_history_are_left_out_or_not(shop, recommender, histories):
    without = recommender.recommend(histories, k=45)
    everything = recommender.recommend(histories, k=45, exclude_seen=False)
    for history, kept, complete in zip(histories, without.item_ids, everything.item_ids, strict=True):
        assert sorted(complete[:40]) == sorted(recommender.items["item_id"])
        left = [item for item in complete if item not in history and item is not None]
        assert kept.tolist() == left + [None] * (45 - len(left))
    assert (without.scores[np.equal(without.item_ids, None)] == -np.inf).all()
    ids = shop.items["item_id"].tolist()
    assert recommender.recommend([ids[:39], ids], k=2).item_ids.tolist() == [[ids[39], None], [None, None]]
    for item in ids:  # bought twice, it takes no neighbour with it
        assert set(recommender.recommend([[item, item]], k=39).item_ids[0]) == set(ids) - {item}


# --- priors and rules ---


@pytest.mark.parametrize("at_once", [2**24, 1])
def test_a_prior_of_its_own_goes_with_each_history(recommender, monkeypatch, at_once):
    monkeypatch.setattr("semid_lib.next_item.timeline._ITEMS_AT_ONCE", at_once)  # 1: users one by one, in another order
    wanted = {5: 7, 1: 3, 9: 30, 3: 12}  # length of the history -> item

    def prior(batch):
        scores = np.zeros((len(batch), 40), np.float32)
        for line, history in zip(scores, batch, strict=True):
            line[wanted[len(history)]] = 50  # so much that the item head knows no other item
        return scores

    ranked = recommender.rank([np.arange(n) + 20 for n in wanted], k=40, exclude_seen=False, prior=prior)
    assert ranked.items[:, 0].tolist() == list(wanted.values())
    assert (np.sort(ranked.items, axis=1) == np.arange(40)).all()
    with pytest.raises(ValueError, match=r"prior is \(1, 39\), expected \(1, 40\)"):
        recommender.rank([np.arange(3)], 5, prior=lambda _: np.zeros((1, 39), np.float32))


@pytest.mark.parametrize("per_user", [False, True])
@pytest.mark.parametrize("at_once", [2**21, 1])
def test_rules_hold_and_lists_are_as_full_as_they_can_be(recommender, histories, monkeypatch, per_user, at_once):
    monkeypatch.setattr("semid_lib.next_item.timeline._SCORES_AT_ONCE", at_once)  # 1: users one by one
    ids = recommender.items["item_id"].to_numpy()
    allowed = np.random.default_rng(0).random((len(histories), 40) if per_user else 40) < 0.2
    answer = recommender.recommend(histories, k=40, allowed=allowed)
    for user, history in enumerate(histories):
        mask = allowed[user] if per_user else allowed
        assert set(answer.item_ids[user].tolist()) - {None} == set(ids[mask].tolist()) - set(history)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"histories": [[1003], [1003, 999]]}, r"history 1, position 1: item id 999 "),
        ({"k": 5, "beam_width": 4}, "k is 5 and beam_width 4: expected"),
        ({"allowed": np.ones((99, 40), dtype=bool)}, r"allowed is bool \(99, 40\), expected bool \(40,\) or \(1, 40\)"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(recommender, arguments, message):
    with pytest.raises(ValueError, match=message):
        recommender.recommend(**{"histories": [[1003]], **arguments})


def test_parts_of_different_catalogues_are_refused(shop, searchable, searchers, recommender):
    others = SemanticIDs.from_codes(shop.ids.codes[::-1].copy(), 4)
    for ids, items in [(shop.ids, shop.items[:-1]), (others, shop.items)]:
        with pytest.raises(ValueError, match="in the model: expected the same items"):
            Recommender(recommender.model, ids, items)
    more_levels = SemanticIDs.from_codes(np.column_stack([shop.ids.codes, shop.ids.codes]), 4)
    for ids in (others, more_levels):
        with pytest.raises(ValueError, match="searcher's 40 semantic IDs are not those of the 40 items"):
            Recommender(None, ids, searchable, searchers["hybrid"])
    twice = shop.items.assign(item_id=[1003, *shop.items["item_id"][1:-1], 1003])
    with pytest.raises(ValueError, match="1003 occurs twice"):
        Recommender(recommender.model, shop.ids, twice)
    with pytest.raises(ValueError, match="neither a next-item model nor a search model"):
        Recommender(None, shop.ids, searchable)


# --- search ---


def test_search_finds_the_items_of_the_rows_that_are_allowed(
    shop, searchable, searchers, queries, query_vectors, recommender
):
    recommender_of_queries = Recommender(None, shop.ids, searchable, searchers["hybrid"])
    found = recommender_of_queries.search(queries, 5, query_vectors=query_vectors)
    rows = searchers["hybrid"].search(queries, 5, query_vectors=query_vectors).items
    np.testing.assert_array_equal(found.item_ids, searchable["item_id"].to_numpy()[rows])
    allowed = np.arange(40) % 4 == 0
    for row in recommender_of_queries.search(queries, 40, allowed, query_vectors).item_ids:
        assert set(row.tolist()) - {None} == set(searchable["item_id"][allowed])
    assert recommender_of_queries.search([], 5).item_ids.shape == (0, 5)
    with pytest.raises(ValueError, match="no next-item model"):
        recommender_of_queries.recommend([[]], 5)
    with pytest.raises(ValueError, match="no search model"):
        recommender.search(queries)


# --- in a notebook ---


def test_answers_are_shown_as_a_table_of_titles_and_escaped(shop, recommender, histories):
    items = shop.items.assign(title=[f"<b>$x^{row}$</b>\n" + "long " * 50 for row in range(40)])
    found = Recommender(recommender.model, shop.ids, items).recommend(histories, k=40)
    item_ids, scores = found  # still a pair
    table = found.to_frame()
    assert len(table) == (item_ids != np.array(None)).sum() < item_ids.size
    line = table[(table["list"] == 3) & (table["rank"] == 2)].iloc[0]
    assert (line["item_id"], line["score"]) == (item_ids[3, 1], scores[3, 1])
    assert line["title"] == items["title"][shop.items["item_id"] == line["item_id"]].item()
    page = found._repr_html_()
    assert page.count("&lt;b&gt;$x^") == 30 and "<b>" not in page and "long " * 30 not in page
    assert "mathjax_ignore" in page and f"from {len(histories)} lists" in page and len(repr(found)) < 100
    assert "item_id" in recommender.recommend([])._repr_html_()
    untitled = Recommender(recommender.model, shop.ids, shop.items[["item_id"]]).recommend(histories, k=3)
    assert "title" not in untitled.to_frame() and str(untitled.item_ids[0, 0]) in untitled._repr_html_()


def test_a_recommender_shows_what_it_can_do(shop, recommender):
    sizes = " x ".join(map(str, shop.ids.sizes))
    facts = f"items: 40, codes per semantic ID: {sizes}, next item: Timeline, search: none"
    assert repr(recommender) == f"Recommender({facts})"
