"""TIGER: one probability by two paths, lists without mistakes, files, and whether it learns."""

import json
from dataclasses import asdict

import numpy as np
import pytest
import torch
from transformers import AutoModelForSeq2SeqLM

from semid_lib.data import dataset, demo_shop
from semid_lib.evaluation.metrics import ranks, recall_at_k
from semid_lib.ids.semantic_ids import SemanticIDs
from semid_lib.next_item.baselines import Popularity
from semid_lib.next_item.batches import Prefixes, pad, prefixes_in_batches
from semid_lib.next_item.tiger import Tiger, TigerConfig
from semid_lib.workbench.training import TrainingConfig, fit

SMALL = TigerConfig(dim=16, n_layers=1, n_heads=2, head_dim=8, ff_dim=32, dropout=0.0, max_length=5)
NOTHING = np.array([], dtype=np.int64)


@pytest.fixture(scope="module")
def model(shop):
    """An untrained model; weights drawn so wide that items differ in probability, which would hide mistakes if not."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = Tiger(SMALL, shop.ids).eval()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1:
                weight.normal_(std=0.5)
    return model


def loss_of(model, histories, targets):
    with torch.no_grad():
        return float(model(Prefixes(pad(histories, 5), torch.tensor(targets))))


def test_a_token_is_one_code_of_one_level(shop, model):
    offsets = 2 + np.cumsum([0, *shop.ids.sizes[:-1]])
    np.testing.assert_array_equal(model.tokens, shop.ids.unique + offsets)
    assert model.t5.config.vocab_size == 2 + sum(shop.ids.sizes)


def test_training_and_ranking_agree_on_every_probability(shop, model):
    histories = [NOTHING, *shop.histories[:4]]
    ranked = model.rank(histories, k=40, exclude_seen=False, exact=True)
    assert ranked.scores.std(axis=1).min() > 0.5
    for history, items, scores in zip(histories, *ranked, strict=True):
        losses = [loss_of(model, [history], [item]) for item in items[[0, 7, 39]]]
        np.testing.assert_allclose(losses, -scores[[0, 7, 39]], atol=1e-3)
    together = loss_of(model, histories, ranked.items[:, 3].tolist())
    assert together == pytest.approx(-ranked.scores[:, 3].mean(), abs=1e-3)


@pytest.mark.parametrize("exclude_seen", [True, False])
def test_a_wide_beam_ranks_as_scoring_every_item_does(shop, model, exclude_seen):
    histories = [NOTHING, *shop.histories[:20]]
    exact = model.rank(histories, 40, exclude_seen, exact=True)
    beam = model.rank(histories, 40, exclude_seen, beam_width=40)
    assert beam.items.tolist() == exact.items.tolist()
    np.testing.assert_allclose(beam.scores, exact.scores, atol=1e-4)


def test_the_recent_items_of_a_long_history_are_read_and_all_are_excluded(model):
    long = np.arange(20)
    found = model.rank([long, long[-5:], long[:5]], k=40, exclude_seen=False).items
    np.testing.assert_array_equal(found[0], found[1])
    assert (found[0] != found[2]).any()
    assert set(model.rank([long], k=40).items[0].tolist()) == {-1, *range(20, 40)}


def test_a_model_in_training_mode_is_refused(shop):
    with pytest.raises(ValueError, match=r"training mode, with dropout on: call its eval\(\) first"):
        Tiger(SMALL, shop.ids).train().rank([[1, 2]], k=5)


@pytest.mark.slow
def test_it_learns_more_than_popularity_with_every_parameter():
    made = demo_shop.demo_shop(n_items=200, n_users=600, n_queries=0)
    of_item = [[item["categories"][0][-1] for item in made.items], [item["style"] for item in made.items]]
    codes = np.stack([np.unique(names, return_inverse=True)[1] for names in of_item], axis=1)
    ids = SemanticIDs.from_codes(codes, int(codes.max()) + 1)
    split = dataset.leave_one_out(dataset.Histories.from_lists([np.array(row) - 1 for _, row in made.sequences]))
    torch.manual_seed(0)
    model = Tiger(TigerConfig(dim=32, n_layers=1, n_heads=2, head_dim=16, ff_dim=64, dropout=0.0), ids)
    before = {name: value.clone() for name, value in model.named_parameters()}
    loader = prefixes_in_batches(split.train, model.config.max_length, batch_size=64)
    fit(model, loader, TrainingConfig(n_epochs=3, learning_rate=3e-3))
    assert all((value != before[name]).any() for name, value in model.named_parameters())

    def recall(method):
        found = method.rank(split.test.histories, 10).items
        return recall_at_k(ranks(found, split.test.targets), 10).mean()

    assert recall(model) > 2 * recall(Popularity(split.train, len(ids)))  # .35 against .115 when it was written


# --- files ---


@pytest.fixture
def saved(model, tmp_path):
    model.save_pretrained(tmp_path / "tiger")
    return tmp_path / "tiger"


def test_what_is_loaded_ranks_as_what_was_saved(shop, model, saved):
    loaded = Tiger.from_pretrained(saved)
    assert loaded.config == model.config and not loaded.training
    for found, expected in zip(loaded.rank(shop.histories[:9], 5), model.rank(shop.histories[:9], 5), strict=True):
        np.testing.assert_array_equal(found, expected)
    t5 = AutoModelForSeq2SeqLM.from_pretrained(saved).eval()
    inputs = model._contexts(pad(shop.histories[:3], 5)) | {"decoder_input_ids": torch.zeros((3, 1), dtype=torch.long)}
    with torch.no_grad():
        assert torch.equal(t5(**inputs).logits, model.t5(**inputs).logits)


def test_a_save_replaces_the_folder_atomically_or_leaves_it(model, saved, monkeypatch):
    before = {path.name: path.read_bytes() for path in saved.iterdir()}

    def full(self, path):
        raise OSError("no space left")

    monkeypatch.setattr(SemanticIDs, "save", full)
    with pytest.raises(OSError, match="no space left"):
        model.save_pretrained(saved)
    assert {path.name: path.read_bytes() for path in saved.iterdir()} == before
    assert [path.name for path in saved.parent.iterdir()] == ["tiger"]
    (saved / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"holds 'notes\.txt'"):
        model.save_pretrained(saved)


def tiger(**changes):
    return lambda config: config | {"tiger": config["tiger"] | changes}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda config: None, "is not that of a TIGER"),
        (lambda config: {}, "it has no entry 'tiger'"),
        (tiger(format=7), "it has format 7, expected format 1"),
        (tiger(config=asdict(SMALL) | {"dim": 24}), "does not fit model.safetensors"),
        (tiger(config=asdict(SMALL) | {"n_user_tokens": 9}), "it has user tokens, which this version does not know"),
    ],
)
def test_a_config_that_does_not_fit_is_refused(saved, change, message):
    path = saved / "config.json"
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    with pytest.raises(ValueError, match=message):
        Tiger.from_pretrained(saved)


def test_a_config_of_before_without_user_tokens_is_read(saved):
    path = saved / "config.json"
    path.write_text(json.dumps(tiger(config=asdict(SMALL) | {"n_user_tokens": 0})(json.loads(path.read_text()))))
    assert Tiger.from_pretrained(saved).config == SMALL


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.json", b"{", r"config\.json is not that of a TIGER"),
        ("config.json", None, r"config\.json is not that of a TIGER: .*No such file"),
        ("semantic_ids.npz", b"other", r"semantic_ids\.npz is not the file that was saved"),
        ("model.safetensors", None, r"model\.safetensors is missing"),
    ],
)
def test_a_damaged_or_missing_file_is_named(saved, name, content, message):
    (saved / name).unlink()
    if content is not None:
        (saved / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        Tiger.from_pretrained(saved)
