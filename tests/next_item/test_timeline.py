"""The timeline model: one probability by two paths, no look ahead, and histories of every length."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from semid_lib.decoding.beam_search import exact_ranking
from semid_lib.decoding.trie import PrefixTrie
from semid_lib.next_item.timeline import Dropout, Timeline, TimelineConfig, WithPrior, pad, training_batches


@torch.inference_mode()
def log_probability(model, history, item):
    """log p(item | history) as decoding computes it, code after code."""
    codes = model.ids[item]
    state, scores = model.begin(pad([history], model.config.max_length))
    total = float(scores[0, 0, codes[0]])
    for level in range(len(codes) - 1):
        state, scores = model.advance(state, level, torch.zeros((1, 1), dtype=torch.long), codes[level].view(1, 1))
        total += float(scores[0, 0, codes[level + 1]])
    return total


@torch.no_grad()
def both_heads(model, history):
    """log p(item | history) of every item under the code head and under the item head, by their formulas: 2 x (n,)."""
    hidden = model.encode(pad([history], model.config.max_length))[0, -1]
    written = []
    for codes in model.ids:
        state, logs = hidden, 0.0
        for level, code in enumerate(codes):
            logs += float(model.head[level](state).log_softmax(dim=-1)[code])
            state = state + model.code[level].weight[code]
        written.append(logs)
    items = model.item_vectors(torch.arange(len(model.ids)))
    cosines = torch.cosine_similarity(model.query(hidden)[None], items)
    return torch.tensor(written), (cosines / model.log_temperature.exp()).log_softmax(dim=0)


def test_the_loss_is_that_of_both_heads(shop, new_timeline):
    model, histories = new_timeline(), shop.histories[:5]
    heads = [both_heads(model, history[:t]) for history in histories for t in range(len(history))]
    items = np.concatenate(histories)
    with torch.no_grad():
        loss = float(model(pad(histories, 12)))
    for head in (0, 1):  # the items differ, so that an average over the wrong ones would show
        assert np.std([float(logs[head][item]) for logs, item in zip(heads, items, strict=True)]) > 0.5
    expected = np.mean([float(sum(logs[item] for logs in each)) for each, item in zip(heads, items, strict=True)])
    assert loss == pytest.approx(-expected, abs=1e-4)


@pytest.mark.parametrize("with_prior", [False, True])
def test_decoding_gives_every_item_the_mean_of_all_voices(shop, new_timeline, with_prior):
    model, histories = new_timeline(), [*shop.histories[:3], np.array([], dtype=np.int64)]
    prior = torch.randn((4, 40), generator=torch.manual_seed(1))
    padded = pad(histories, 12)
    scorer, contexts = (WithPrior(model), (padded, prior)) if with_prior else (model, padded)
    with torch.inference_mode():
        found = exact_ranking(scorer, contexts, PrefixTrie.build(shop.ids.unique), 40)
    for user, history in enumerate(histories):
        written, chosen = both_heads(model, history)
        voices = [written, chosen]
        if with_prior:
            voices.append((chosen + prior[user]).log_softmax(dim=0))
        mean = sum(voice.exp() for voice in voices) / len(voices)
        torch.testing.assert_close(found.scores[user].exp(), mean[found.items[user]], rtol=1e-4, atol=1e-7)


def test_the_probabilities_of_all_id_prefixes_sum_to_one(shop, new_timeline):
    config = new_timeline().config
    kept = ~(shop.ids.unique[:, :2] == [3, 2]).all(axis=1)
    model = Timeline(replace(config, n_items=10), shop.ids.unique[kept], shop.vectors[kept]).eval()
    with torch.no_grad():
        state, first = model.begin(torch.tensor([[3, 9, 27], [1, -1, -1], [5, 6, -1]]))
        parents, codes = torch.tensor([[0, 0]] * 3), torch.tensor([[1, 3]] * 3)
        state, second = model.advance(state, 0, parents, codes)
        _, third = model.advance(state, 1, torch.tensor([[1]] * 3), torch.tensor([[2]] * 3))
    assert first.shape == (3, 1, 4)
    assert second.shape == (3, 2, 4)
    for scores in (first, second, third):  # below a prefix of no item the code head speaks alone
        torch.testing.assert_close(scores.exp().sum(-1), torch.ones(scores.shape[:2]))


def test_the_model_does_not_look_ahead(shop, new_timeline):
    model = new_timeline()
    history = torch.tensor([[3, 9, 27, 1, 5]])
    changed = history.clone()
    changed[0, 3] = 30
    for context in (torch.no_grad(), torch.inference_mode()):  # torch takes another path through the encoder
        with context:
            before, after = model.encode(history), model.encode(changed)
        torch.testing.assert_close(before[:, :4], after[:, :4])
        assert ((before - after)[:, 4:].abs().amax(dim=-1) > 1e-3).all()


def test_the_order_of_a_history_matters(new_timeline):
    model = new_timeline()
    with torch.no_grad():
        _, scores = model.begin(torch.tensor([[3, 9, 27], [9, 3, 27]]))
    assert (scores[0] - scores[1]).abs().max() > 1e-3


def test_padding_changes_nothing(shop, new_timeline):
    model = new_timeline()
    longest, short = np.arange(12), np.array([7, 8])
    with torch.no_grad():
        _, together = model.begin(pad([longest, short], 12))
        _, alone = model.begin(pad([short], 12))
        losses = [float(model(pad([history], 12))) for history in (longest, short)]
        loss = float(model(pad([longest, short], 12)))
    torch.testing.assert_close(together[[1]], alone)
    assert loss == pytest.approx((12 * losses[0] + 2 * losses[1]) / 14, abs=1e-4)  # the mean over items


def test_an_empty_history_has_an_answer(new_timeline):
    model = new_timeline()
    empty = np.array([], dtype=np.int64)
    with torch.no_grad():
        _, alone = model.begin(pad([empty], 12))
        _, beside = model.begin(pad([np.arange(5), empty], 12))
    assert alone.exp().sum() == pytest.approx(1)
    torch.testing.assert_close(beside[[1]], alone)


def test_of_a_long_history_the_recent_items_count(new_timeline):
    model = new_timeline()
    long = np.arange(30) % 40
    with torch.no_grad():
        _, scores = model.begin(pad([long], 12))
        _, recent = model.begin(pad([long[-12:]], 12))
        _, others = model.begin(pad([long[:12]], 12))
    torch.testing.assert_close(scores, recent)
    assert (scores - others).abs().max() > 1e-3


def test_a_new_item_needs_no_training(shop, new_timeline):
    model = new_timeline()
    ids = np.vstack([shop.ids.unique, [[3, 3, shop.ids.sizes[2] - 1]]])
    vectors = np.vstack([shop.vectors, np.full((1, 8), 8**-0.5, np.float32)])
    larger = Timeline(model.config, ids, vectors)
    learned = {name: value for name, value in model.state_dict().items() if name not in ("ids", "vectors")}
    assert larger.load_state_dict(learned, strict=False).missing_keys == ["ids", "vectors"]
    larger.eval()
    history = shop.histories[0]
    before, after = (both_heads(each, history) for each in (model, larger))
    torch.testing.assert_close(after[0][:40], before[0])
    torch.testing.assert_close(after[1][:40].log_softmax(dim=0), before[1])  # its share is taken from all alike
    assert -30 < log_probability(larger, [*history, 40], 40) < 0  # it can be read and it can be written
    with torch.no_grad():  # of its own it has no embedding, whatever the others have learned
        new, old = larger.item_vectors(torch.tensor([40, 39]))
        larger.item.weight.add_(1)
        new_later, old_later = larger.item_vectors(torch.tensor([40, 39]))
    torch.testing.assert_close(new_later, new)
    torch.testing.assert_close(old_later, old + 8)


def test_in_training_items_do_without_their_own_embedding(shop, new_timeline):
    model = new_timeline(item_dropout=0.5, dropout=0.0).train()
    model(pad(shop.histories, 12)).backward()
    without = (model.item.weight.grad == 0).all(dim=1).sum()
    assert 8 < without < 32  # half of 40
    with torch.no_grad():
        losses = {float(model.eval()(pad(shop.histories[:3], 12))) for _ in range(3)}
    assert len(losses) == 1


def test_a_sample_of_items_stands_for_the_catalogue(shop, new_timeline):
    model = new_timeline(n_sampled=10).train()
    items = torch.tensor([3, 9, 9, 30])
    rows, weight = model._compared(items)
    assert rows.tolist() == sorted(set(rows.tolist())) and {3, 9, 30} < set(rows.tolist())
    assert len(rows) == 13
    assert weight.exp().sum() == pytest.approx(40)
    assert (weight[torch.isin(rows, items)] == 0).all()
    for compared, weight in (model.eval()._compared(items), new_timeline(n_sampled=40).train()._compared(items)):
        assert compared.tolist() == list(range(40)) and (weight == 0).all()
    with torch.no_grad():  # over many samples the estimated sum over the catalogue is the sum
        scores, model = torch.randn(40), model.train()
        sums = [(scores[rows] + weight).exp().sum() for rows, weight in (model._compared(items) for _ in range(2000))]
    assert np.mean(sums) == pytest.approx(float(scores.exp().sum()), rel=0.02)


@torch.no_grad()
def test_changed_weights_are_seen_at_once(shop, new_timeline):
    model, history = new_timeline(), shop.histories[0]
    before = log_probability(model, history, 5)
    kept = {name: value.clone() for name, value in model.state_dict().items()}
    for weight in (model.item.weight, model.text[1].weight, model.code[2].weight):
        weight.normal_()
        changed = log_probability(model, history, 5)
        written, chosen = both_heads(model, history)
        assert changed == pytest.approx(float(torch.logaddexp(written[5], chosen[5])) - np.log(2), abs=1e-4)
    model.load_state_dict(kept)
    assert log_probability(model, history, 5) == pytest.approx(before, abs=1e-6)


def test_the_model_keeps_tables_of_its_own(shop, new_timeline):
    ids, vectors = shop.ids.unique.copy(), shop.vectors.copy()
    model = Timeline(new_timeline().config, ids, vectors)
    other = {"ids": torch.zeros_like(model.ids), "vectors": torch.zeros_like(model.vectors)}
    model.load_state_dict(other, strict=False)
    np.testing.assert_array_equal(vectors, shop.vectors)
    np.testing.assert_array_equal(ids, shop.ids.unique)


def test_a_tensor_of_vectors_is_taken_as_it_is(shop, new_timeline):
    vectors = torch.from_numpy(shop.vectors.copy())
    model = Timeline(new_timeline().config, shop.ids.unique, vectors)
    assert model.vectors.data_ptr() == vectors.data_ptr()


def test_every_parameter_learns(shop, new_timeline):
    model = new_timeline().train()
    model(pad(shop.histories, 12)).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize(("n_positions", "n_vectors", "dim"), [(2, 40, 8), (3, 39, 8), (3, 40, 7)])
def test_tables_that_do_not_fit_are_refused(n_positions, n_vectors, dim):
    config = TimelineConfig(sizes=(4, 4, 4), text_dim=8, n_items=40, dim=8)
    with pytest.raises(ValueError, match="do not fit"):
        Timeline(config, np.zeros((40, n_positions), np.int64), np.zeros((n_vectors, dim)))


def test_fewer_items_than_have_an_embedding_are_refused(shop, new_timeline):
    with pytest.raises(ValueError, match="n_items 40"):
        Timeline(new_timeline().config, shop.ids.unique[:39], shop.vectors[:39])


@pytest.mark.parametrize(
    "setting",
    [
        {"dropout": 1.0},
        {"dropout": -0.1},
        {"item_dropout": math.nan},
        {"n_sampled": 0},
        {"n_layers": 2.0},
        {"dim": True},
        {"n_heads": 3},
        {"temperature": 0},
        {"temperature": "hot"},
        {"max_length": 0},
    ],
)
def test_a_config_that_cannot_be_is_refused(setting):
    with pytest.raises(ValueError, match=next(iter(setting))):
        TimelineConfig(**{"sizes": (4, 4, 4), "text_dim": 8, "n_items": 40} | setting)


@pytest.mark.parametrize("share", [0.0, 0.25, 0.9])
def test_dropout_drops_its_share_and_keeps_the_mean(share):
    dropout, x = Dropout(share), torch.ones(101, 103)  # numbers of elements that no 8 divides
    dropped = dropout(x)
    assert float((dropped == 0).float().mean()) == pytest.approx(share, abs=0.015)
    assert float(dropped.mean()) == pytest.approx(1, abs=0.05)
    assert len(dropped.unique()) == 1 + (share > 0)
    assert dropout.eval()(x) is x


def test_pad_by_hand():
    padded = pad([np.array([1, 2, 3]), [], np.array([4])], max_length=2)
    assert padded.tolist() == [[2, 3], [-1, -1], [4, -1]]
    assert pad([], 5).shape == (0, 0)
    assert pad([[], []], 5).shape == (2, 0)


def test_training_batches_hold_every_history_once():
    histories = [np.arange(length) + 100 * length for length in (1, 0, 7, 3, 0, 3, 9)]
    batches = list(training_batches(histories, max_length=5, batch_size=2))
    rows = [[item for item in row if item >= 0] for batch in batches for row in batch.tolist()]
    expected = [history[-5:].tolist() for history in histories if len(history)]
    assert sorted(rows) == sorted(expected)
    assert max(len(batch) for batch in batches) == 2
    with pytest.raises(ValueError, match="nothing to train on"):
        training_batches([[], []], 5, 2)
