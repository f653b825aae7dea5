"""The trained whole: ids in and out, the same answers from a folder, and clear words about a damaged one."""

import json
import re
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from semid_lib.decoding.trie import PrefixTrie
from semid_lib.ids.embed import item_texts
from semid_lib.ids.semantic_ids import SemanticIDs
from semid_lib.llm.base_models import small_model
from semid_lib.llm.llm_search import LanguageModelSearch, LightSearch
from semid_lib.llm.vocabulary import extend_vocabulary
from semid_lib.next_item.timeline import Timeline
from semid_lib.search.hybrid_ranker import QueryModel, QueryModelConfig
from semid_lib.search.retrieval import BM25
from semid_lib.serving.recommender import Recommender
from semid_lib.workbench.store import sha256

FILES = ["config.json", "items.parquet", "model.safetensors", "semantic_ids.npz"]


@pytest.fixture
def recommender(shop, new_timeline) -> Recommender:
    return Recommender(new_timeline(), shop.ids, shop.items)


@pytest.fixture
def folder(recommender, tmp_path):
    recommender.save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


@pytest.fixture
def histories(shop):
    """Histories of item ids."""
    item_id = shop.items["item_id"].to_numpy()
    return [item_id[history].tolist() for history in shop.histories[:8]]


def test_item_ids_are_those_of_the_rows(shop, recommender, histories):
    found = recommender.recommend(histories, k=10)
    ranked = recommender.rank(shop.histories[:8], k=10)
    assert (ranked.items != found.item_ids).all()  # the ids of this shop are no row numbers
    np.testing.assert_array_equal(found.item_ids, shop.items["item_id"].to_numpy()[ranked.items])
    np.testing.assert_array_equal(found.scores, ranked.scores)
    assert (found.item_ids.shape, found.item_ids.dtype, found.scores.dtype) == ((8, 10), object, np.float32)


def test_scores_fall_and_items_do_not_repeat(recommender, histories):
    found = recommender.recommend(histories, k=20)
    assert (np.diff(found.scores, axis=1) <= 0).all()
    assert all(len(set(row)) == 20 for row in found.item_ids.tolist())


def test_each_history_gets_its_own_answer_in_its_own_place(recommender, histories, monkeypatch):
    together = recommender.recommend(histories, k=5)
    alone = [recommender.recommend([history], k=5) for history in histories]
    np.testing.assert_array_equal(together.item_ids, np.vstack([answer.item_ids for answer in alone]))
    np.testing.assert_allclose(together.scores, np.vstack([answer.scores for answer in alone]), atol=1e-5)
    monkeypatch.setattr("semid_lib.next_item.timeline._SCORES_AT_ONCE", 1)  # one user at a time
    np.testing.assert_array_equal(recommender.recommend(histories, k=5).item_ids, together.item_ids)


def test_items_of_the_history_are_left_out_or_not(recommender, histories):
    without = recommender.recommend(histories, k=28)
    everything = recommender.recommend(histories, k=40, exclude_seen=False)
    for history, kept, complete in zip(histories, without.item_ids, everything.item_ids, strict=True):
        assert not set(history) & set(kept.tolist())
        assert sorted(complete) == sorted(recommender.items["item_id"])
        assert kept.tolist() == [item for item in complete if item not in history][:28]


def test_an_item_bought_twice_takes_no_neighbour_with_it(shop, recommender):
    item_id = shop.items["item_id"].to_numpy()
    for item in item_id.tolist():
        found = recommender.recommend([[item, item, item]], k=39)
        assert set(found.item_ids[0].tolist()) == set(item_id.tolist()) - {item}


@pytest.mark.parametrize("at_once", [2**24, 1])
def test_a_prior_of_its_own_goes_with_each_history(shop, recommender, monkeypatch, at_once):
    monkeypatch.setattr("semid_lib.next_item.timeline._ITEMS_AT_ONCE", at_once)  # 1: users one by one, in another order
    wanted = [7, 3, 30, 12]
    histories = [np.arange(length) + 20 for length in (5, 1, 9, 3)]

    def prior(batch):
        scores = np.zeros((len(batch), 40), np.float32)
        for line, history in zip(scores, batch, strict=True):
            line[wanted[[5, 1, 9, 3].index(len(history))]] = 50  # so much that the item head knows no other item
        return scores

    ranked = recommender.rank(histories, k=40, exclude_seen=False, prior=prior)
    assert ranked.items[:, 0].tolist() == wanted
    assert (np.abs(np.exp(ranked.scores[:, 0]) - 1 / 3) < 0.2).all()  # the mean of 1 and what both heads say
    assert (np.sort(ranked.items, axis=1) == np.arange(40)).all()


def test_a_prior_counts_by_its_differences_alone(shop, recommender):
    ranked = [
        recommender.rank(shop.histories[:8], 10, prior=lambda batch, by=by: np.full((len(batch), 40), by, np.float32))
        for by in (0, 3)
    ]
    np.testing.assert_array_equal(*(found.items for found in ranked))
    np.testing.assert_allclose(*(found.scores for found in ranked), atol=1e-4)


def test_an_exact_ranking_is_that_of_a_beam_that_drops_nothing(shop, recommender):
    prior = np.linspace(0, 2, 40, dtype=np.float32)
    rules = {"allowed": np.arange(40) % 3 > 0, "prior": lambda batch: np.tile(prior, (len(batch), 1))}
    for options in ({}, {"exclude_seen": False}, rules):
        exact, wide = (
            recommender.rank(shop.histories[:6], 12, **options, **how) for how in ({"exact": True}, {"beam_width": 500})
        )
        np.testing.assert_array_equal(exact.items, wide.items)
        np.testing.assert_allclose(exact.scores, wide.scores, atol=1e-4)
    with pytest.raises(ValueError, match="exact and diversity are both given"):
        recommender.rank(shop.histories[:6], 12, exact=True, diversity=(2, 1))


def test_a_prior_of_another_shape_is_refused(shop, recommender):
    for shape in [(1, 40), (2, 39)]:
        with pytest.raises(ValueError, match=f"prior is \\({shape[0]}, {shape[1]}\\), expected \\(2, 40\\)"):
            recommender.rank(shop.histories[:2], 5, prior=lambda _, shape=shape: np.zeros(shape, np.float32))


def test_items_before_the_window_are_left_out_too(shop, recommender):
    item_id = shop.items["item_id"].to_numpy()
    history = item_id[np.arange(30)].tolist()  # the model sees the last 12
    found = recommender.recommend([history], k=10)
    assert set(found.item_ids[0]) == set(item_id[30:])
    recent = recommender.recommend([history[-12:]], k=40, exclude_seen=False).item_ids[0]
    assert found.item_ids[0].tolist() == [item for item in recent if item not in history]


def test_an_empty_history_gets_an_answer(recommender, histories):
    empty = recommender.recommend([[]], k=5)
    assert None not in empty.item_ids
    beside = recommender.recommend([histories[0], [], histories[1]], k=5)
    assert beside.item_ids[1].tolist() == empty.item_ids[0].tolist()


def test_nobody_asks(recommender):
    found = recommender.recommend([], k=5)
    assert found.item_ids.shape == found.scores.shape == (0, 5)


@pytest.mark.parametrize("exclude_seen", [True, False])
def test_more_places_than_items_are_padded(recommender, histories, exclude_seen):
    found = recommender.recommend(histories, k=45, exclude_seen=exclude_seen)
    for history, items, scores in zip(histories, found.item_ids, found.scores, strict=True):
        left = 40 - exclude_seen * len(set(history))
        assert len(set(items[:left])) == left
        assert None not in items[:left]
        assert items[left:].tolist() == [None] * (45 - left)
        assert (scores[left:] == -np.inf).all()


def test_a_single_item_left_fills_a_single_place(shop, recommender):
    item_id = shop.items["item_id"].to_numpy()
    found = recommender.recommend([item_id[:39].tolist()], k=3)
    assert found.item_ids.tolist() == [[int(item_id[39]), None, None]]


def test_who_bought_everything_gets_nothing(shop, recommender):
    found = recommender.recommend([shop.items["item_id"].tolist()], k=3)
    assert found.item_ids.tolist() == [[None, None, None]]


@pytest.mark.parametrize("at_once", [2**20, 60, 1])
def test_long_histories_change_no_answer_of_others(recommender, shop, monkeypatch, at_once):
    histories = [np.tile(np.arange(30), 5), *shop.histories[:6], np.arange(39)]
    expected = [recommender.rank([history], k=40).items[0].tolist() for history in histories]
    monkeypatch.setattr("semid_lib.decoding.ranking._SEEN_AT_ONCE", at_once)
    assert recommender.rank(histories, k=40).items.tolist() == expected


def test_a_long_history_among_short_ones_takes_no_memory_for_them(recommender, shop, monkeypatch):
    places = []
    usual = PrefixTrie.subset

    def subset(self, allowed=None, excluded=None):
        places.append(excluded.size)
        return usual(self, allowed, excluded)

    monkeypatch.setattr(PrefixTrie, "subset", subset)
    monkeypatch.setattr("semid_lib.decoding.ranking._SEEN_AT_ONCE", 100)
    short, long = [np.array([5])] * 300, np.tile(np.arange(40), 25_000)
    items = recommender.rank([*short, long], k=3).items
    assert max(places) <= 100 and sum(places) <= 300 + 40
    assert (items[-1] == -1).all() and (items[:-1] >= 0).all()


# --- business rules and diversity ---


@pytest.mark.parametrize("per_user", [False, True])
@pytest.mark.parametrize("at_once", [2**21, 1])
def test_rules_hold_and_lists_are_as_full_as_they_can_be(shop, recommender, histories, monkeypatch, per_user, at_once):
    monkeypatch.setattr(
        "semid_lib.next_item.timeline._SCORES_AT_ONCE", at_once
    )  # 1: users one by one, in another order
    n_items = len(shop.items)
    rng = np.random.default_rng(0)
    allowed = rng.random((len(histories), n_items) if per_user else n_items) < 0.2
    row_of = {item: row for row, item in enumerate(shop.items["item_id"].tolist())}
    answer = recommender.recommend(histories, k=n_items, allowed=allowed)
    for user, history in enumerate(histories):
        mask = allowed[user] if per_user else allowed
        rows = {row_of[item] for item in answer.item_ids[user].tolist() if item is not None}
        assert rows == set(np.flatnonzero(mask).tolist()) - {row_of[item] for item in history}


def test_rules_that_allow_all_change_nothing(recommender, histories, shop):
    plain = recommender.recommend(histories, k=5)
    ruled = recommender.recommend(histories, k=5, allowed=np.ones(len(shop.items), dtype=bool))
    assert ruled.item_ids.tolist() == plain.item_ids.tolist()


def test_a_diverse_list_has_few_of_a_kind(recommender, histories, shop):
    answer = recommender.rank([np.empty(0, dtype=np.int64)], k=8, beam_width=len(shop.items), diversity=(1, 1))
    first_codes = [shop.ids.unique[row, 0] for row in answer.items[0] if row >= 0]
    assert len(set(first_codes)) == len(first_codes) == min(8, len(np.unique(shop.ids.unique[:, 0])))


def test_rules_for_other_users_or_items_are_refused(recommender, histories, shop):
    with pytest.raises(
        ValueError, match=rf"allowed is bool \(99, 40\), expected bool \(40,\) or \({len(histories)}, 40\)"
    ):
        recommender.recommend(histories, k=1, allowed=np.ones((99, len(shop.items)), dtype=bool))
    with pytest.raises(ValueError, match="expected bool"):
        recommender.recommend(histories, k=1, allowed=np.ones(3, dtype=bool))


def test_an_unknown_item_names_its_history_and_itself(recommender, histories):
    with pytest.raises(ValueError, match=r"history 2, position 1: item id 999 "):
        recommender.recommend([histories[0], [], [histories[1][0], 999]])


@pytest.mark.parametrize("k", [0, -2])
def test_k_below_one_is_refused(recommender, histories, k):
    with pytest.raises(ValueError, match=f"k.*{k}"):
        recommender.recommend(histories, k=k)


def test_a_beam_narrower_than_k_is_refused(recommender, histories):
    with pytest.raises(ValueError, match="k is 5 and beam_width 4: expected"):
        recommender.recommend(histories, k=5, beam_width=4)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_model_that_training_moved_to_the_gpu_still_recommends(recommender, histories):
    before = recommender.recommend(histories, k=5)
    recommender.model.to("cuda")  # as `training.fit` does, after the recommender was made
    after = recommender.recommend(histories, k=5)
    np.testing.assert_array_equal(after.item_ids, before.item_ids)


def test_parts_that_do_not_belong_together_are_refused(shop, new_timeline):
    model = new_timeline()
    others = SemanticIDs.from_codes(shop.ids.codes[::-1].copy(), 4)
    for ids, items in [(shop.ids, shop.items[:-1]), (others, shop.items)]:
        with pytest.raises(ValueError, match="do not belong together"):
            Recommender(model, ids, items)
    twice = shop.items.assign(item_id=[1003, *shop.items["item_id"][1:-1], 1003])
    with pytest.raises(ValueError, match="1003 occurs twice"):
        Recommender(model, shop.ids, twice)


def test_what_is_loaded_recommends_what_was_saved(recommender, folder, histories):
    loaded = Recommender.from_pretrained(folder)
    before, after = (who.recommend([*histories, []], k=10) for who in (recommender, loaded))
    np.testing.assert_array_equal(before.item_ids, after.item_ids)
    np.testing.assert_array_equal(before.scores, after.scores)
    pd.testing.assert_frame_equal(loaded.items, recommender.items)
    assert loaded.model.config == recommender.model.config


def test_a_shop_whose_customers_buy_again_says_so_once(shop, new_timeline, histories, tmp_path):
    again = Recommender(new_timeline(), shop.ids, shop.items, exclude_seen=False)
    again.save_pretrained(tmp_path)
    for who in (again, Recommender.from_pretrained(tmp_path)):
        for history, found in zip(histories, who.recommend(histories, k=40).item_ids, strict=True):
            assert set(history) <= set(found)
        for history, found in zip(histories, who.recommend(histories, k=40, exclude_seen=True).item_ids, strict=True):
            assert not set(history) & set(found)


def test_folders_of_before_exclude_seen_items(folder, histories):
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    del config["exclude_seen"]
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    found = Recommender.from_pretrained(folder).recommend(histories, k=40).item_ids
    assert not any(set(history) & set(items) for history, items in zip(histories, found, strict=True))


def test_the_folder_holds_four_files_and_no_pickle(folder):
    assert sorted(path.name for path in folder.iterdir()) == FILES
    with zipfile.ZipFile(folder / "semantic_ids.npz") as archive:
        names = {name.removesuffix(".npy") for name in archive.namelist()}
    assert names == {"codes", "codebook_size", "disambiguation_code", "disambiguation_size"}
    np.load(folder / "semantic_ids.npz", allow_pickle=False)["codes"]


def test_saving_again_replaces_what_was_there(shop, new_timeline, folder, histories):
    other = Recommender(new_timeline(seed=1), shop.ids, shop.items)
    other.save_pretrained(folder)
    loaded = Recommender.from_pretrained(folder)
    np.testing.assert_array_equal(loaded.recommend(histories).item_ids, other.recommend(histories).item_ids)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(folder, name):
    (folder / name).unlink()
    with pytest.raises(ValueError, match=f"{name} is missing"):
        Recommender.from_pretrained(folder)


@pytest.mark.parametrize("name", FILES)
def test_a_truncated_file_is_named(folder, name):
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=name):
        Recommender.from_pretrained(folder)


@pytest.mark.parametrize("name", FILES[1:])
def test_a_file_of_another_recommender_is_named(shop, new_timeline, folder, tmp_path, name):
    order = np.arange(40)[::-1]
    ids = SemanticIDs(shop.ids.codes[order], shop.ids.disambiguation_code[order], 4)
    model = Timeline(new_timeline().config, ids.unique, shop.vectors[order])
    Recommender(model, ids, shop.items[::-1]).save_pretrained(tmp_path / "other")
    (tmp_path / "other" / name).replace(folder / name)
    with pytest.raises(ValueError, match=f"{name} .*checksum"):
        Recommender.from_pretrained(folder)


@pytest.mark.parametrize("change", [{"format": 1}, {"model": {"type": "tiger"}}, {"sha256": None}, {"model": None}])
def test_a_config_that_says_something_else_is_named(folder, change):
    config = {**json.loads((folder / "config.json").read_text(encoding="utf-8")), **change}
    kept = {key: value for key, value in config.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(kept), encoding="utf-8")
    with pytest.raises(ValueError, match=r"config\.json"):
        Recommender.from_pretrained(folder)


@pytest.mark.parametrize("change", [{"n_layers": 2}, {"n_layer": 1}, {"sizes": None}])
def test_a_config_of_another_model_is_named(folder, change):
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["model"] |= change
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(ValueError, match=r"config\.json does not describe model\.safetensors"):
        Recommender.from_pretrained(folder)


def test_a_config_that_is_no_object_is_named(folder):
    (folder / "config.json").write_text("[]", encoding="utf-8")
    with pytest.raises(ValueError, match=r"config\.json"):
        Recommender.from_pretrained(folder)


# --- search ---

QUERIES = ["red tent", "a lamp for the garden", "soap"]


@pytest.fixture
def searchable(shop):
    """The shop with titles to search in."""
    things = [f"{colour} {thing}" for colour in ("red", "blue") for thing in ("tent", "lamp", "soap", "pen", "cup")]
    paths = [[["Shop", "Garden"], ["Gifts"]], [], [["Shop", "Bath"]], [["Gifts"]]] * 10
    return shop.items.assign(title=things * 4, categories=paths)


@pytest.fixture
def light(shop, searchable):
    torch.manual_seed(0)
    unit = shop.vectors / np.linalg.norm(shop.vectors, axis=1, keepdims=True)
    config = QueryModelConfig(shop.ids.sizes, unit.shape[1], dim=16, n_buckets=64, word_weight=0.2)
    return LightSearch(QueryModel(config, shop.ids.unique, unit), BM25(item_texts(searchable)))


@pytest.fixture
def language(shop, searchable):
    texts = item_texts(searchable)
    model, tokenizer = small_model(texts, 300, hidden_size=16, n_layers=1, n_heads=2)
    tokens = extend_vocabulary(model, tokenizer, shop.ids, texts)
    return LanguageModelSearch(model.eval(), tokenizer, tokens, PrefixTrie.build(shop.ids.unique), beam_width=20)


@pytest.fixture
def query_vectors(shop):
    return np.random.default_rng(3).normal(size=(len(QUERIES), shop.vectors.shape[1])).astype(np.float32)


@pytest.mark.parametrize("kind", ["light", "language"])
def test_search_from_a_folder_answers_as_before(request, shop, searchable, query_vectors, tmp_path, kind):
    recommender = Recommender(None, shop.ids, searchable, request.getfixturevalue(kind))
    found = recommender.search(QUERIES, 5, query_vectors=query_vectors)
    rows = recommender.searcher.search(QUERIES, 5, query_vectors=query_vectors)
    np.testing.assert_array_equal(found.item_ids, searchable["item_id"].to_numpy()[rows.items])
    recommender.save_pretrained(tmp_path)
    loaded = Recommender.from_pretrained(tmp_path)
    again = loaded.search(QUERIES, 5, query_vectors=query_vectors)
    np.testing.assert_array_equal(again.item_ids, found.item_ids)
    np.testing.assert_allclose(again.scores, found.scores, atol=1e-5)
    assert loaded.items["categories"].tolist() == searchable["categories"].tolist()
    assert loaded.model is None
    with pytest.raises(ValueError, match="no model of the next item"):
        loaded.recommend([[]], 5)


def test_one_folder_holds_both_models(shop, searchable, new_timeline, light, query_vectors, histories, tmp_path):
    both = Recommender(new_timeline(), shop.ids, searchable, light)
    both.save_pretrained(tmp_path)
    loaded = Recommender.from_pretrained(tmp_path)
    np.testing.assert_array_equal(loaded.recommend(histories).item_ids, both.recommend(histories).item_ids)
    found, again = (each.search(QUERIES, 5, query_vectors=query_vectors) for each in (both, loaded))
    np.testing.assert_array_equal(again.item_ids, found.item_ids)


def test_search_keeps_to_what_is_allowed(shop, searchable, light, query_vectors):
    recommender = Recommender(None, shop.ids, searchable, light)
    allowed = np.arange(len(shop.items)) % 4 == 0
    found = recommender.search(QUERIES, len(shop.items), allowed, query_vectors)
    for row in found.item_ids:
        assert set(row.tolist()) - {None} == set(searchable["item_id"][allowed])


def test_a_file_of_the_searcher_is_checked_too(shop, searchable, language, light, tmp_path):
    for name, searcher in {"llm/model.safetensors": language, "item_vectors.safetensors": light}.items():
        folder = tmp_path / name.replace("/", "-")
        Recommender(None, shop.ids, searchable, searcher).save_pretrained(folder)
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        with pytest.raises(ValueError, match=f"{name} .*checksum"):
            Recommender.from_pretrained(folder)
        (folder / name).unlink()
        with pytest.raises(ValueError, match=f"{name} is missing"):
            Recommender.from_pretrained(folder)


def sealed(folder):
    """Compute the checksums of a changed folder again, so that only its content can give it away."""
    config = json.loads((folder / "config.json").read_text())
    config["sha256"] = {name: sha256(folder / name) for name in config["sha256"]}
    (folder / "config.json").write_text(json.dumps(config))


def with_tensors(**change):
    """Tensors of a file changed; without any, the first one left out."""

    def apply(path):
        tensors = load_file(path)
        kept = tensors | change if change else dict(list(tensors.items())[1:])
        save_file(kept, path, metadata=facts_of(path))

    return apply


def facts_of(path):
    with safe_open(path, framework="pt") as file:
        return file.metadata()


def with_facts(**change):
    def apply(path):
        facts = facts_of(path)
        facts["config"] = json.dumps(json.loads(facts["config"]) | change)
        save_file(load_file(path), path, metadata=facts)

    return apply


def with_json(**change):
    return lambda path: path.write_text(json.dumps(json.loads(path.read_text()) | change))


LIGHT_FILES = [
    ("query_model.safetensors", with_facts(n_buckets=10**12), "'words.weight' has shape"),
    ("query_model.safetensors", with_facts(dim=2.5), "dim is 2.5"),
    ("query_model.safetensors", with_facts(sizes=[4, 4]), "do not fit sizes|expected"),
    ("query_model.safetensors", with_facts(more=1), "more"),
    ("query_model.safetensors", with_facts(temperature=float("nan")), "temperature is nan"),
    ("query_model.safetensors", with_tensors(log_temperature=torch.tensor(float("nan"))), "not finite"),
    ("query_model.safetensors", lambda path: path.write_bytes(b"garbage"), "is not a file of a query model"),
    ("item_vectors.safetensors", with_tensors(vectors=torch.ones(39, 8)), r"shape \(39, 8\), expected \(40, dim\)"),
    ("item_vectors.safetensors", with_tensors(vectors=torch.full((40, 8), torch.inf)), "not finite"),
    ("item_vectors.safetensors", with_tensors(vectors=torch.ones(40, 8, dtype=torch.int64)), "expected real numbers"),
    ("item_vectors.safetensors", lambda path: save_file({"x": torch.ones(1)}, path), r"shape \(\), expected"),
]
LANGUAGE_FILES = [
    ("llm/config.json", with_json(num_hidden_layers=10**9), "no language model that can be loaded"),
    ("llm/config.json", with_json(num_hidden_layers=2, layer_types=None), "has 2 layers, the weights have 1"),
    ("llm/config.json", with_json(hidden_size=32), "no language model that can be loaded"),
    ("llm/config.json", with_json(model_type="abacus"), "no language model that can be loaded"),
    ("llm/config.json", lambda path: path.write_text("["), "no language model that can be loaded"),
    ("llm/tokenizer.json", lambda path: path.write_text("{}"), "no language model that can be loaded"),
    ("llm/model.safetensors", lambda path: path.write_bytes(b"garbage"), "no language model that can be loaded"),
    ("llm/model.safetensors", with_tensors(), "weights are missing"),
    ("llm/semantic_id_tokens.json", with_json(tokens=[[10**6] * 4] * 3), "outside the vocabulary"),
    ("llm/semantic_id_tokens.json", with_json(tokens=[["a"]]), "not a file of tokens"),
    ("llm/semantic_id_tokens.json", with_json(tokens=None), "not a file of tokens"),
    ("llm/semantic_id_tokens.json", with_json(end_token=2.5), "not a file of tokens"),
]


@pytest.mark.parametrize(("name", "change", "message"), LIGHT_FILES)
def test_a_sealed_light_model_that_does_not_fit_is_refused(shop, searchable, light, tmp_path, name, change, message):
    Recommender(None, shop.ids, searchable, light).save_pretrained(tmp_path / "m")
    change(tmp_path / "m" / name)
    sealed(tmp_path / "m")
    with pytest.raises(ValueError, match=f"{re.escape(str(tmp_path / 'm' / name))}.*({message})"):
        Recommender.from_pretrained(tmp_path / "m")


@pytest.mark.parametrize(("name", "change", "message"), LANGUAGE_FILES)
def test_a_sealed_language_model_that_does_not_fit_is_refused(
    shop, searchable, language, tmp_path, name, change, message
):
    Recommender(None, shop.ids, searchable, language).save_pretrained(tmp_path / "m")
    change(tmp_path / "m" / name)
    sealed(tmp_path / "m")
    with pytest.raises(ValueError, match=f"{re.escape(str(tmp_path / 'm' / 'llm'))}.*{message}") as caught:
        Recommender.from_pretrained(tmp_path / "m")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("left", ["added_tokens.json", "adapter_config.json", "model.safetensors.index.json", "a.bin"])
def test_what_another_model_left_is_neither_listed_nor_applied(shop, searchable, language, tmp_path, left):
    recommender = Recommender(None, shop.ids, searchable, language)
    recommender.save_pretrained(tmp_path / "clean")
    (tmp_path / "stale" / "llm" / "old").mkdir(parents=True)
    (tmp_path / "stale" / "llm" / left).write_text('{"red": 3}')
    recommender.save_pretrained(tmp_path / "stale")
    clean, stale = ({p.relative_to(f): p.read_bytes() for p in f.rglob("*") if p.is_file()}
                    for f in (tmp_path / "clean", tmp_path / "stale"))  # fmt: skip
    assert clean == stale


def test_the_encoder_is_kept_by_name(shop, searchable, light, tmp_path):
    light.embed = "some/encoder"
    Recommender(None, shop.ids, searchable, light).save_pretrained(tmp_path)
    assert Recommender.from_pretrained(tmp_path).searcher.embed == "some/encoder"
    nameless = LightSearch(light.scorer, light.words, embed=lambda texts: np.zeros((len(texts), 4)))
    with pytest.raises(ValueError, match="embed is a function"):
        Recommender(None, shop.ids, searchable, nameless).save_pretrained(tmp_path)


def test_a_config_of_another_searcher_is_named(shop, searchable, light, tmp_path):
    Recommender(None, shop.ids, searchable, light).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    del config["searcher"]["beam_width"]
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(ValueError, match=r"config\.json does not describe the model of search.*beam_width"):
        Recommender.from_pretrained(tmp_path)


def test_a_recommender_needs_a_model_and_one_catalogue(shop, searchable, recommender, light):
    with pytest.raises(ValueError, match="neither"):
        Recommender(None, shop.ids, searchable)
    with pytest.raises(ValueError, match="no model of search"):
        recommender.search(QUERIES)
    order = np.arange(len(shop.items))[::-1]
    others = SemanticIDs(shop.ids.codes[order], shop.ids.disambiguation_code[order], 4)
    with pytest.raises(ValueError, match="searcher's 40 semantic IDs are not those of the 40 items"):
        Recommender(None, others, searchable, light)


def test_a_loaded_model_is_mapped_and_reads_a_large_catalogue_some_at_a_time(
    recommender, histories, tmp_path, monkeypatch
):
    recommender.save_pretrained(tmp_path)
    loaded = Recommender.from_pretrained(tmp_path)
    assert str(tmp_path / "model.safetensors") in Path("/proc/self/maps").read_text(encoding="utf-8")
    assert {name: weight.requires_grad for name, weight in loaded.model.named_parameters()} == {
        name: weight.requires_grad for name, weight in recommender.model.named_parameters()
    }
    read = []
    of_all = Timeline.item_vectors
    monkeypatch.setattr(
        Timeline, "item_vectors", lambda self, rows, own=None: read.append(rows) or of_all(self, rows, own)
    )
    monkeypatch.setattr("semid_lib.next_item.timeline._TEXTS_AT_ONCE", 7)
    whole, parts = recommender.recommend(histories), loaded.recommend(histories)
    assert 7 in map(len, read)
    np.testing.assert_array_equal(parts.item_ids, whole.item_ids)
    np.testing.assert_allclose(parts.scores, whole.scores, rtol=1e-5)


# --- in a notebook ---


def test_answers_are_shown_as_a_table_of_titles_and_escaped(shop, recommender, histories):
    items = shop.items.assign(title=[f"<b>$x^{row}$</b>\n" + "long " * 50 for row in range(len(shop.items))])
    found = Recommender(recommender.model, shop.ids, items).recommend(histories, k=len(items))
    item_ids, scores = found  # still a pair
    table = found.to_frame()
    assert len(table) == (item_ids != np.array(None)).sum() < item_ids.size
    line = table[(table["list"] == 3) & (table["rank"] == 2)].iloc[0]
    assert (line["item_id"], line["score"]) == (item_ids[3, 1], scores[3, 1])
    assert line["title"] == items["title"][shop.items["item_id"] == line["item_id"]].item()
    page = found._repr_html_()
    assert page.count("&lt;b&gt;$x^") == 30 and "<b>" not in page and "long " * 30 not in page
    assert "mathjax_ignore" in page
    assert f"from {len(histories)} lists" in page and len(repr(found)) < 100


def test_an_empty_answer_and_one_without_titles_are_shown(shop, recommender, histories):
    assert "item_id" in recommender.recommend([])._repr_html_()
    found = Recommender(recommender.model, shop.ids, shop.items[["item_id"]]).recommend(histories, k=3)
    assert "title" not in found.to_frame() and str(found.item_ids[0, 0]) in found._repr_html_()


def test_a_recommender_says_what_it_can_do(shop, recommender):
    assert repr(recommender) == (
        f"Recommender(items: 40, codes per semantic ID: {' x '.join(map(str, shop.ids.sizes))}, "
        "next item: Timeline, search: none: no search())"
    )
    assert "no search()" in recommender._repr_html_()
