"""TIGER: one probability by two paths, every prefix once, lists without mistakes, files, and whether it learns."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from semid_lib.data import dataset, demo_shop
from semid_lib.evaluation.metrics import ranks, recall_at_k
from semid_lib.ids.semantic_ids import SemanticIDs
from semid_lib.next_item.baselines import Popularity
from semid_lib.next_item.tiger import Batch, Prefixes, Tiger, TigerConfig, hashed_users, training_batches
from semid_lib.next_item.timeline import pad
from semid_lib.workbench import scale
from semid_lib.workbench.training import TrainingConfig, fit

SMALL = TigerConfig(dim=16, n_layers=1, n_heads=2, head_dim=8, ff_dim=32, dropout=0.0, max_length=5)
NOTHING = np.array([], dtype=np.int64)


def new_tiger(ids, spread=0.5, seed=0, **settings):
    """An untrained model; weights drawn so wide that items differ in probability, which would hide mistakes if not."""
    torch.manual_seed(seed)
    model = Tiger(replace(SMALL, **settings), ids).eval()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1:
                weight.normal_(std=spread)
    return model


@pytest.fixture(scope="module")
def model(shop):
    torch.set_num_threads(1)
    return new_tiger(shop.ids)


def batch_of(histories, targets, users=None):
    numbers = [-1] * len(targets) if users is None else users
    return Batch(pad(histories, 5), torch.tensor(targets), torch.tensor(numbers))


# --- the model ---


def test_the_paper_s_sizes_are_the_default(shop):
    config = Tiger(TigerConfig(), shop.ids).t5.config
    assert (config.num_layers, config.num_decoder_layers, config.d_model) == (4, 4, 128)
    assert (config.num_heads, config.d_kv, config.d_ff, config.dropout_rate) == (6, 64, 1024, 0.1)


def test_a_token_stands_for_one_code_of_one_level(shop, model):
    assert model.tokens.shape == (40, 3)  # two levels and a disambiguation code
    for level, size in enumerate(shop.ids.sizes):
        tokens = model.tokens[:, level] - 2 - sum(shop.ids.sizes[:level])
        np.testing.assert_array_equal(tokens, shop.ids.unique[:, level])
        assert int(tokens.max()) < size
    assert model.t5.config.vocab_size == 2 + sum(shop.ids.sizes)


def test_training_and_ranking_agree_on_every_probability(shop, model):
    histories = [NOTHING, *shop.histories[:4]]
    ranked = model.rank(histories, k=40, exclude_seen=False, exact=True)
    for history, items, scores in zip(histories, *ranked, strict=True):
        with torch.no_grad():
            losses = [float(model(batch_of([history], [item]))) for item in items[[0, 7, 39]]]
        np.testing.assert_allclose(losses, -scores[[0, 7, 39]], atol=1e-3)
    assert ranked.scores.std(axis=1).min() > 0.5
    with torch.no_grad():
        together = float(model(batch_of(histories, ranked.items[:, 3].tolist())))
    assert together == pytest.approx(-ranked.scores[:, 3].mean(), abs=1e-3)


def test_a_wide_beam_ranks_as_scoring_every_item_does(shop, model):
    histories = [NOTHING, *shop.histories[:20]]
    exact = model.rank(histories, k=40, exact=True)
    beam = model.rank(histories, k=40, beam_width=40)
    assert beam.items.tolist() == exact.items.tolist()
    np.testing.assert_allclose(beam.scores, exact.scores, atol=1e-4)


def test_every_parameter_learns(shop):
    model = new_tiger(shop.ids, n_user_tokens=3).train()
    model(batch_of(shop.histories[:8], list(range(8)), users=[0, 1, 2, 0, 1, 2, 0, 1])).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


# --- lists ---

HISTORIES = st.lists(st.lists(st.integers(0, 39), max_size=12), min_size=1, max_size=4)


@given(histories=HISTORIES, k=st.integers(1, 60), exclude_seen=st.booleans(), exact=st.booleans())
def test_lists_hold_distinct_items_that_may_come_out(model, histories, k, exclude_seen, exact):
    items, scores = model.rank(histories, k, exclude_seen, exact=exact)
    assert items.shape == scores.shape == (len(histories), k)
    for history, row, score in zip(histories, items, scores, strict=True):
        possible = set(range(40)) - (set(history) if exclude_seen else set())
        found = row[row >= 0].tolist()
        assert len(found) == len(set(found)) == min(k, len(possible))
        assert set(found) <= possible
        assert (row[len(found) :] == -1).all() and (score[len(found) :] == -np.inf).all()
        assert (np.diff(score[: len(found)]) <= 0).all()


def test_of_a_long_history_the_recent_items_count_and_all_are_excluded(model):
    long = np.arange(20)
    seen_allowed = model.rank([long, long[-5:], long[:5]], k=40, exclude_seen=False)
    np.testing.assert_array_equal(seen_allowed.items[0], seen_allowed.items[1])
    assert (seen_allowed.items[0] != seen_allowed.items[2]).any()
    assert set(model.rank([long], k=40).items[0].tolist()) == {-1, *range(20, 40)}


def test_an_empty_history_and_no_history(model):
    alone, beside = model.rank([NOTHING], k=5), model.rank([np.arange(9), []], k=5)
    np.testing.assert_array_equal(beside.items[1], alone.items[0])
    np.testing.assert_allclose(beside.scores[1], alone.scores[0], atol=1e-4)
    assert model.rank([], k=5).items.shape == (0, 5)


def test_who_has_seen_everything_gets_nothing(model):
    found = model.rank([np.arange(40), np.arange(39)], k=3)
    assert found.items.tolist() == [[-1, -1, -1], [39, -1, -1]]


def test_rules_for_all_and_for_each(model):
    few, each = np.zeros(40, dtype=bool), np.zeros((2, 40), dtype=bool)
    few[[4, 5, 6]] = True
    each[0, [4, 5]] = each[1, [30, 31]] = True
    histories = [np.array([4, 7]), np.array([30])]
    for exact in (False, True):
        assert set(model.rank(histories, 4, allowed=few, exact=exact).items[0].tolist()) == {5, 6, -1}
        found = model.rank(histories, 2, allowed=each, exact=exact).items
        assert found.tolist() == [[5, -1], [31, -1]]
    with pytest.raises(ValueError, match=r"allowed is bool \(3, 40\), expected bool \(40,\) or \(2, 40\)"):
        model.rank(histories, 2, allowed=np.ones((3, 40), dtype=bool))


@pytest.mark.parametrize(
    ("history", "message"),
    [
        ([3, 40], "history 1 holds item row 40, expected 0 to 39"),
        ([-1], "history 1 holds item row -1"),
        ([0.5], r"history 1 is \[0.5\], expected integer item rows"),
    ],
)
def test_rows_outside_the_catalogue_are_refused(model, history, message):
    with pytest.raises(ValueError, match=message):
        model.rank([[1], history], k=3)
    with pytest.raises(ValueError, match="k must be a whole number of at least 1, got 0"):
        model.rank([[1]], k=0)


def test_a_model_in_training_mode_is_refused(shop):
    with pytest.raises(ValueError, match=r"training mode, with dropout on: call its eval\(\) first"):
        new_tiger(shop.ids).train().rank([[1, 2]], k=5)


def test_user_tokens_change_the_answer_and_must_be_given(shop, model):
    personal = new_tiger(shop.ids, n_user_tokens=50)
    histories = [[1, 2], [1, 2], [1, 2]]
    found = personal.rank(histories, k=38, users=["ann", "bob", "ann"]).scores
    np.testing.assert_allclose(found[0], found[2], atol=1e-4)
    assert np.abs(found[0] - found[1]).max() > 1e-3
    with pytest.raises(ValueError, match="users are missing, the model has 50 tokens"):
        personal.rank(histories, k=3)
    with pytest.raises(ValueError, match="users are given, the model has 0 tokens"):
        model.rank(histories, k=3, users=["ann", "bob", "ann"])
    with pytest.raises(ValueError, match="2 users for 3 histories"):
        personal.rank(histories, k=3, users=["ann", "bob"])


# --- training ---


def test_each_interaction_is_predicted_once_from_those_before_it():
    histories = [np.arange(length) + 100 * length for length in (1, 0, 7, 3)]
    config = replace(SMALL, n_user_tokens=9)
    samples = []
    for batch in training_batches(histories, config, batch_size=4, users=["a", "b", "c", "d"]):
        assert len(batch.targets) <= 4
        samples += [
            (tuple(item for item in row if item >= 0), target, user)
            for row, target, user in zip(*(part.tolist() for part in batch), strict=True)
        ]
    numbers = hashed_users(["a", "b", "c", "d"], 4, 9)
    expected = [
        (tuple(history[max(0, t - 5) : t].tolist()), item, number)
        for history, number in zip(histories, numbers.tolist(), strict=True)
        for t, item in enumerate(history.tolist())
    ]
    assert sorted(samples) == sorted(expected)
    with pytest.raises(ValueError, match="nothing to train on"):
        training_batches([[], []], SMALL, 4)


def test_samples_copy_no_prefix_and_waste_little():
    histories = dataset.Histories.from_lists([range(1 + user % 60) for user in range(3000)])
    loader = training_batches(histories, TigerConfig(), batch_size=64)
    samples = loader.dataset
    assert isinstance(samples, Prefixes) and len(samples) == len(histories.items)
    arrays = (samples.items, samples.lengths, samples.users)
    assert sum(array.nbytes for array in arrays) <= 3 * histories.items.nbytes
    rows = [batch.histories for batch in loader]
    room = sum(each.numel() for each in rows)
    assert sum(int((each < 0).sum()) for each in rows) / room < 0.05


def test_it_learns_more_than_popularity():
    made = demo_shop.demo_shop(n_items=200, n_users=600, n_queries=0)
    codes = np.stack([made.truth.item_type, made.truth.item_style], axis=1)
    ids = SemanticIDs.from_codes(codes, int(codes.max()) + 1)
    histories = dataset.Histories.from_lists([np.array(row) - 1 for _, row in made.sequences])
    split = dataset.leave_one_out(histories)
    torch.manual_seed(0)
    model = Tiger(TigerConfig(dim=32, n_layers=1, n_heads=2, head_dim=16, ff_dim=64, dropout=0.0), ids)
    loader = training_batches(split.train, model.config, batch_size=64)
    fit(model, loader, TrainingConfig(n_epochs=3, learning_rate=3e-3))

    def recall(method):
        found = method.rank(split.test.histories, 10).items
        return recall_at_k(ranks(found, split.test.targets), 10).mean()

    assert recall(model) > 2 * recall(Popularity(split.train, len(ids)))  # .35 against .115 when it was written


# --- files ---


def test_what_is_loaded_ranks_as_what_was_saved(shop, tmp_path):
    model = new_tiger(shop.ids, n_user_tokens=4)
    model.save_pretrained(tmp_path)
    loaded = Tiger.from_pretrained(tmp_path)
    assert loaded.config == model.config and not loaded.training
    np.testing.assert_array_equal(loaded.ids.unique, shop.ids.unique)
    users = list(range(10))
    for found, expected in zip(
        loaded.rank(shop.histories[:10], 5, users=users), model.rank(shop.histories[:10], 5, users=users), strict=True
    ):
        np.testing.assert_array_equal(found, expected)


def test_a_save_replaces_the_folder_whole_or_leaves_it(shop, tmp_path, monkeypatch):
    model = new_tiger(shop.ids)
    model.save_pretrained(tmp_path / "tiger")
    before = {path.name: path.read_bytes() for path in (tmp_path / "tiger").iterdir()}

    def full(self, path):
        raise OSError("no space left")

    monkeypatch.setattr(SemanticIDs, "save", full)
    with pytest.raises(OSError, match="no space left"):
        model.save_pretrained(tmp_path / "tiger")
    assert {path.name: path.read_bytes() for path in (tmp_path / "tiger").iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["tiger"]
    (tmp_path / "tiger" / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"holds 'notes\.txt'"):
        model.save_pretrained(tmp_path / "tiger")


def test_transformers_reads_the_folder_as_a_t5(shop, model, tmp_path):
    from transformers import AutoModelForSeq2SeqLM

    model.save_pretrained(tmp_path)
    t5 = AutoModelForSeq2SeqLM.from_pretrained(tmp_path).eval()
    inputs = model._contexts(pad(shop.histories[:3], 5), torch.full((3,), -1))
    start = torch.zeros((3, 1), dtype=torch.long)
    with torch.no_grad():
        expected = model.t5(**inputs, decoder_input_ids=start).logits
        assert torch.equal(t5(**inputs, decoder_input_ids=start).logits, expected)


def test_files_that_do_not_belong_together_are_named(shop, model, tmp_path):
    with pytest.raises(ValueError, match=r"config\.json is missing: expected a folder"):
        Tiger.from_pretrained(tmp_path / "nothing")
    model.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    text = path.read_text()
    content = json.loads(text)

    def refused(config, message):
        path.write_text(config if isinstance(config, str) else json.dumps(config))
        with pytest.raises(ValueError, match=message):
            Tiger.from_pretrained(tmp_path)

    refused("{", r"config\.json is not JSON")
    refused({name: value for name, value in content.items() if name != "tiger"}, "no entry 'tiger'")
    refused(content | {"tiger": content["tiger"] | {"format": 7}}, "has format 7, this version reads format 1")
    other = content["tiger"]["config"]
    refused(content | {"tiger": content["tiger"] | {"config": other | {"dim": 24}}}, "does not fit model.safetensors")
    refused(content | {"tiger": content["tiger"] | {"config": other | {"depth": 2}}}, "does not fit model.safetensors")
    path.write_text(text)
    (tmp_path / "semantic_ids.npz").write_bytes(b"something else")
    refused(text, r"semantic_ids\.npz is not the file that was saved")
    (tmp_path / "model.safetensors").unlink()
    refused(text, r"model\.safetensors is missing")


def test_the_tiger_at_laptop_is_an_eighth_of_the_papers_as_the_readme_says():
    fields = {"dim": "dim", "n_layers": "layers", "n_heads": "heads", "head_dim": "head_dim", "ff_dim": "ff_dim"}
    ids = SemanticIDs.from_codes([[0, 0, 0], [255, 255, 255]], codebook_size=256)
    laptop, full = (
        Tiger(TigerConfig(**{field: getattr(scale.get(name), f"tiger_{size}") for field, size in fields.items()}), ids)
        for name in ("laptop", "full")
    )
    n_laptop, n_full = (sum(each.numel() for each in model.parameters()) for model in (laptop, full))
    assert round(n_full / n_laptop) == 8
