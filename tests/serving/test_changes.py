"""Items come, change and go in memory: published IDs stay, answers are items of the catalogue, bad input is refused."""

import os

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from semid_lib.decoding.trie import PrefixTrie
from semid_lib.ids import embed, quantize
from semid_lib.ids.tokenizer import ItemTokenizer
from semid_lib.serving.recommender import Recommender


def new(first: int, n: int) -> pd.DataFrame:
    numbers = range(first, first + n)
    return pd.DataFrame({"item_id": [10 * one for one in numbers], "title": [f"thing {one}" for one in numbers]})


def codes(recommender: Recommender) -> dict[int, tuple]:
    return dict(zip(recommender.items["item_id"].tolist(), map(tuple, recommender.ids.unique.tolist()), strict=True))


def check(recommender: Recommender) -> None:
    """Each part has the same catalogue, and answers hold each of its items once."""
    n, known = len(recommender.items), set(recommender.items["item_id"].tolist())
    assert len(set(codes(recommender).values())) == len(known) == n
    ids, vectors = recommender.ids.unique, recommender.model.vectors.numpy()
    for trie in (recommender.model.trie, recommender.searcher.trie):
        np.testing.assert_array_equal(trie.ids(), PrefixTrie.build(ids).ids())
    texts = embed.item_texts(recommender.items)
    np.testing.assert_allclose(vectors, embed.normalize(embed.embed(texts)), atol=1e-6)
    leaves = recommender.searcher.scorer.leaf_vectors[recommender.searcher.trie.leaf_of_item.long()]
    np.testing.assert_array_equal(leaves.numpy(), vectors)
    assert len(recommender.model.item.weight) == recommender.model.config.n_items <= n
    for found in (
        recommender.recommend([[], recommender.items["item_id"].tolist()[-2:]], k=n, exclude_seen=False),
        recommender.search([texts[-1]], k=n, query_vectors=vectors[-1:]),
    ):
        for line in found.item_ids.tolist():
            assert set(line) == known


# --- one change ---


def test_lists_have_as_many_new_items_as_asked(living):
    fresh, _ = living.recommender.add_items(new(100, 5))
    histories, later = [[0, 10], [1020], []], set(new(100, 5)["item_id"])

    def n_new(**how) -> list[int]:
        found = fresh.recommend(histories, 8, exclude_seen=False, beam_width=35, **how)
        assert all(len(set(line)) == 8 for line in found.item_ids.tolist())
        assert (np.diff(found.scores, axis=1) <= 0).all()
        return [len(later & set(line)) for line in found.item_ids.tolist()]

    plain = n_new()
    assert n_new(new_items=(0, 8)) == plain
    assert n_new(new_items=(0, 0)) == [0, 0, 0] and n_new(new_items=(3, 3)) == [3, 3, 3]
    assert n_new(new_items=(8, 8)) == [5, 5, 5]  # there are no more
    assert n_new(new_items=(2, 4)) == [min(max(each, 2), 4) for each in plain]
    garden = np.isin(fresh.items["item_id"], [0, 10, 20, 1000, 1010])
    found = fresh.recommend([[30]], 4, new_items=(1, 1), allowed=garden)
    assert len(later & set(found.item_ids[0])) == 1 and set(found.item_ids[0]) <= {0, 10, 20, 1000, 1010}
    for wrong in ((2, 1), (-1, 3), (0, 1.5), 3, (1,)):
        with pytest.raises(ValueError, match="new_items"):
            fresh.recommend([[]], new_items=wrong)
    assert living.recommender.recommend([[0]], 3, new_items=(2, 3)).item_ids.shape == (1, 3)  # it has no new items


def test_a_rate_gives_new_items_room_and_is_saved(living, tmp_path):
    fresh, _ = living.recommender.add_items(new(100, 5))

    def best_is_new(recommender):
        return recommender.rank([np.array([0])], 1, weights=(0.0, 1.0), exact=True).items[0, 0] >= 30

    crowded, report = fresh.set_new_item_rate(np.float64(1000))
    scarce, _ = crowded.set_new_item_rate(1e-6)
    assert str(report) == "give new items the rate 1000" and fresh.model.config.new_item_rate == 0
    assert best_is_new(crowded) and not best_is_new(scarce)
    crowded.save_pretrained(tmp_path / "shop")
    assert Recommender.from_pretrained(tmp_path / "shop").model.config.new_item_rate == 1000
    with pytest.raises(ValueError, match="new_item_rate is -1, expected a number of at least 0"):
        fresh.set_new_item_rate(-1)
    with pytest.raises(ValueError, match="no next-item model"):
        Recommender(None, fresh.ids, fresh.items, fresh.searcher).set_new_item_rate(1)


def test_sales_lift_what_sells_and_last_through_other_changes(living, tmp_path):
    fresh, _ = living.recommender.add_items(new(100, 2))
    sold = {1000: 40, 0: 5, 7: 3}  # 7 is no item
    moved, report = fresh.follow_sales(list(sold), list(sold.values()))
    assert str(report) == "follow the sales of 2 items; 1 ids are not in the catalogue"
    assert moved.model.trend.argmax() == 30 and not fresh.model.trend.any()
    best = moved.recommend([[20]], 32, exclude_seen=False).item_ids[0].tolist()
    before = fresh.recommend([[20]], 32, exclude_seen=False).item_ids[0].tolist()
    assert best.index(1000) < before.index(1000)
    moved.save_pretrained(tmp_path / "shop")
    again = Recommender.from_pretrained(tmp_path / "shop")
    torch.testing.assert_close(again.model.trend, moved.model.trend)
    later, _ = again.remove_items([0, 10])
    later, _ = later.add_items(new(200, 1))
    torch.testing.assert_close(later.model.trend, torch.cat([moved.model.trend[2:], torch.zeros(1)]))
    assert later.model.n_trained.tolist() == list(range(2, 30))
    forgotten, report = moved.follow_sales([], [])
    assert str(report) == "forget sales" and not forgotten.model.trend.any()
    with pytest.raises(ValueError, match="give each once"):
        fresh.follow_sales([0, "0"], [1, 2])
    with pytest.raises(ValueError, match="2 ids and 1 numbers"):
        fresh.follow_sales([0, 10], [1])
    with pytest.raises(ValueError, match="none of the 1 items with sales is in the catalogue"):
        fresh.follow_sales([7], [1])
    with pytest.raises(ValueError, match="smoothing is 0, expected a number above 0"):
        fresh.follow_sales([0], [1], smoothing=0)
    with pytest.raises(ValueError, match="expected one of them"):
        fresh.recommend([[]], new_items=(0, 1), diversity=(1, 1))
    with pytest.raises(ValueError, match="at least 0"):
        fresh.follow_sales([0], [-1])
    with pytest.raises(ValueError, match="no next-item model"):
        Recommender(None, fresh.ids, fresh.items, fresh.searcher).follow_sales([0], [1])


def test_added_items_are_recommended_and_found_at_once(living):
    old, before = living.recommender, codes(living.recommender)
    fresh, report = old.add_items(new(100, 5))
    assert (report.change, report.n_items, report.encoded) == ("add 5 items", 5, 5)
    assert codes(fresh).items() >= before.items() and codes(old) == before
    assert (fresh.model.config.n_items, fresh.tokenizer.n_fitted) == (30, 30)
    assert fresh.recommend([[1020, 0]], k=3).item_ids.shape == (1, 3)
    query = embed.embed(["thing 103"])
    assert fresh.search(["thing 103"], 1, query_vectors=query).item_ids.tolist() == [[1030]]
    check(fresh)


def test_what_the_models_say_of_old_items_stays(living):
    """New items take probability from old ones, but the scores of the code head do not change, nor item embeddings."""
    fresh, _ = living.recommender.add_items(new(100, 5))
    fresh, _ = fresh.remove_items([0, 30, 1000])
    old, model = living.recommender.model, fresh.model
    assert model.config.n_items == 28
    kept = [row for row in range(30) if row not in (0, 3)]
    assert torch.equal(model.item.weight, old.item.weight[kept])
    rows = [np.array([5, 9])], [np.array([kept.index(5), kept.index(9)])]
    one, other = (
        each.rank(at, 40, exclude_seen=False, weights=(1.0, 0.0)) for each, at in zip((old, model), rows, strict=True)
    )
    before = dict(zip(one.items[0].tolist(), one.scores[0].tolist(), strict=True))
    after = dict(zip(other.items[0].tolist(), other.scores[0].tolist(), strict=True))
    for row, was in enumerate(kept):
        assert after[row] == pytest.approx(before[was], abs=1e-5)
    check(fresh)


def test_removed_items_are_left_out_of_histories_and_counted(living):
    fresh, report = living.recommender.remove_items([20, "50"])
    assert report.change == "remove 2 items" and fresh.item_ids.removed == {"20", "50"}
    found, same = fresh.recommend([[20, 0, 50, 70], [20]], k=5), fresh.recommend([[0, 70], []], k=5)
    np.testing.assert_array_equal(found.item_ids, same.item_ids)
    assert (found.skipped, same.skipped) == (3, 0)
    with pytest.raises(ValueError, match="item id 21 is not in the catalogue"):
        fresh.recommend([[20, 21]])
    back, _ = fresh.add_items(living.items[living.items["item_id"] == 20])
    assert back.item_ids.removed == {"50"} and back.model.config.n_items == 28 and len(back.items) == 29
    check(back)


def test_an_update_changes_vector_and_table_and_no_id(living):
    before = codes(living.recommender)
    changed = pd.DataFrame({"item_id": [50, 20], "title": ["red lamp", "thing 2"], "price": [2.5, 3.5]})
    fresh, report = living.recommender.update_items(changed)
    assert (report.n_items, report.encoded) == (2, 1)  # the title of 20 is as it was
    assert codes(fresh) == before and fresh.items["title"][5] == "red lamp" and fresh.items["price"][2] == 3.5
    assert fresh.items["price"].isna().sum() == 28 and living.recommender.items["title"][5] == "thing 5"
    assert fresh.search(["red lamp"], 1, query_vectors=embed.embed(["red lamp"])).item_ids.tolist() == [[50]]
    check(fresh)


def test_a_full_prefix_sends_an_item_to_the_nearest_with_room_and_then_refuses(living):
    recommender = living.recommender
    sizes, free = recommender.ids.sizes, 64 - 30
    same = new(100, free + 1).assign(title="thing 1")  # one text, so one prefix
    with pytest.raises(ValueError, match="all 4 prefixes near a new item are full"):
        recommender.add_items(same)
    used = {tuple(row) for row in recommender.ids.codes.tolist()}
    mine = tuple(recommender.tokenizer.quantizer.encode(recommender.model.vectors.numpy()[1:2])[0])
    under = [sum(row[:2] == (mine[0], code) for row in used) for code in range(4)]
    fresh, report = recommender.add_items(same[: 16 - sum(under)])
    assert report.elsewhere == 16 - sum(under) - (4 - under[mine[1]]) and fresh.ids.sizes == sizes
    check(fresh)


def test_with_an_encoder_but_no_vectors_a_language_model_follows(living, shop, searchable, searchers):
    kmeans = quantize.fit_residual_kmeans(shop.vectors, 2, 4)
    old = Recommender(None, shop.ids, searchable, searchers["language"], tokenizer=ItemTokenizer(kmeans, 40))
    fresh, report = old.add_items(pd.DataFrame({"item_id": [5], "title": ["red sofa"]}))
    fresh, _ = fresh.remove_items([1003])
    assert report.n_items == 1 and len(fresh.search(["red sofa"], k=40).item_ids[0]) == 40
    assert set(fresh.search(["red sofa"], k=40).item_ids[0]) == set(fresh.items["item_id"])


# --- any sequence ---

ITEMS = st.lists(st.integers(30, 60), min_size=1, max_size=4, unique=True)
STEPS = st.lists(st.tuples(st.sampled_from(["add", "remove", "update"]), ITEMS, st.integers(0, 2**16)), max_size=6)


@settings(max_examples=int(os.environ.get("SEMID_EXAMPLES", "12")))
@given(STEPS)
def test_published_ids_stay_whatever_happens(living_once, steps):
    recommender, published = living_once, codes(living_once)
    for kind, numbers, draw in steps:
        held = recommender.items["item_id"].tolist()
        rng = np.random.default_rng(draw)
        some = rng.choice(held, min(len(numbers), len(held)), replace=False).tolist()
        if kind == "add":
            table = pd.concat([new(number, 1) for number in numbers if 10 * number not in held] or [new(0, 0)])
            recommender, _ = recommender.add_items(table)
        elif kind == "remove":
            if len(held) - len(some) < 25:
                continue
            recommender, _ = recommender.remove_items(some)
        else:
            titles = [f"thing {number}, {draw}" for number in range(len(some))]
            recommender, _ = recommender.update_items(pd.DataFrame({"item_id": some, "title": titles}))
        now = codes(recommender)
        assert all(published[item] == code for item, code in now.items() if item in published)
        published = {item: code for item, code in (published | now).items() if item in now}
        assert recommender.ids.sizes == living_once.ids.sizes
        check(recommender)


# --- bad input ---


def no_text(_):
    return pd.DataFrame({"item_id": [1], "title": ["  "]})


@pytest.mark.parametrize(
    ("what", "items", "message"),
    [
        ("add_items", new(3, 1), "item 30 exists already: update it, or remove it first"),
        ("add_items", no_text(0), "item 1 has no text, expected a title, a brand"),
        ("add_items", pd.DataFrame({"item_id": [1, 1], "title": ["a", "b"]}), "item_id 1 occurs twice"),
        ("add_items", pd.DataFrame({"item_id": ["A"], "title": ["a"]}), "'A', expected integers as in the catalogue"),
        ("add_items", pd.DataFrame({"title": ["a"]}), "the columns title, expected item_id"),
        ("update_items", new(99, 1), "item id 990 is not in the catalogue"),
        ("remove_items", [10, 11], "position 1: item id 11 is not in the catalogue"),
        ("remove_items", [10, "10"], "2 ids are those of 1 items: give each once"),
        ("remove_items", [10 * number for number in range(30)], "no item would be left"),
    ],
)
def test_bad_input_is_one_sentence(living, what, items, message):
    with pytest.raises(ValueError, match=message) as caught:
        getattr(living.recommender, what)(items)
    assert "\n" not in str(caught.value)


def test_another_encoder_is_refused(living, monkeypatch):
    recommender, items = living.recommender, new(100, 2)
    with pytest.raises(ValueError, match=r"vectors are \(2, 3\), expected \(2, 8\) as in the catalogue"):
        recommender.add_items(items, vectors=np.ones((2, 3)))
    recommender.tokenizer = recommender.tokenizer._replace(encoder="other")
    with pytest.raises(ValueError, match=r"other gives item 0 another vector \(cosine -?0\.\d+\) than the catalogue"):
        recommender.add_items(items)
    monkeypatch.setattr(embed, "embed", lambda texts, model: np.ones((len(texts), 5), np.float32))
    with pytest.raises(ValueError, match="other gives vectors of 5 dimensions, the catalogue 8"):
        recommender.add_items(items)
    search, recommender.searcher = recommender.searcher, None
    assert len(recommender.add_items(items, vectors=np.ones((2, 8)))[0].items) == 32  # the caller vouches for them
    with pytest.raises(ValueError, match="searcher's encoder is 'all-MiniLM-L6-v2', but that of the IDs 'other'"):
        Recommender(None, recommender.ids, recommender.items, search, tokenizer=recommender.tokenizer)


def test_removed_twice_and_updated_after_removal(living):
    fresh, _ = living.recommender.remove_items([10])
    for what, argument in (("remove_items", [10]), ("update_items", new(1, 1))):
        with pytest.raises(ValueError, match="item 10 was removed before"):
            getattr(fresh, what)(argument)


def test_without_a_tokenizer_items_leave_but_none_come(living):
    old = living.recommender
    bare = Recommender(old.model, old.ids, old.items, old.searcher)
    with pytest.raises(ValueError, match="does not know how its items got their semantic IDs"):
        bare.add_items(new(100, 1))
    check(bare.remove_items([10])[0])


def test_a_model_needs_an_item_that_it_was_trained_on(living):
    fresh, _ = living.recommender.add_items(new(100, 1))
    with pytest.raises(ValueError, match="no item that the next-item model was trained on would be left"):
        fresh.remove_items([10 * number for number in range(30)])
