"""The timeline model: one probability by two paths, no look ahead, and histories of every length."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from semid_lib.decoding.beam_search import constrained_beam_search, exact_ranking
from semid_lib.decoding.trie import PrefixTrie
from semid_lib.next_item import recipes
from semid_lib.next_item.batches import pad
from semid_lib.next_item.layers import Dropout
from semid_lib.next_item.timeline import Context, Timeline, TimelineConfig


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
    read = model.item_vectors(pad([history], model.config.max_length))
    hidden, hidden_codes = (encoder(read)[0, -1] for encoder in (model.item_encoder, model.code_encoder))
    written = []
    for codes in model.ids:
        state, logs = hidden_codes, 0.0
        for level, code in enumerate(codes):
            logs += float(model.head[level](state).log_softmax(dim=-1)[code])
            state = state + model.chosen[level].weight[code] if level < 2 else None
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


def test_a_head_without_weight_is_not_trained(shop, new_timeline):
    histories = pad(shop.histories[:5], 12)
    losses = []
    for code_weight, unused in ((1.0, ("query", "item_encoder")), (0.0, ("head", "code_encoder", "chosen"))):
        model = new_timeline()
        model.config = replace(model.config, code_weight=code_weight)
        loss = model(histories)
        loss.backward()
        losses.append(loss.item())
        parts = [weight for name in unused for weight in getattr(model, name).parameters()]
        assert parts and all(weight.grad is None for weight in parts)
    assert new_timeline()(histories).item() == pytest.approx(sum(losses), abs=1e-4)


def test_training_reads_a_share_of_the_histories_backward(shop, new_timeline):
    model, histories = new_timeline(), shop.histories[:5]
    with torch.no_grad():
        forward, backward = (float(model(pad(rows, 12))) for rows in (histories, [row[::-1] for row in histories]))
    assert forward != pytest.approx(backward, abs=1e-3)
    model.train()
    for module in model.modules():
        if isinstance(module, Dropout):
            module.n_dropped = 0
    for share, expected in ((0.0, forward), (math.nextafter(1, 0), backward)):
        model.config = replace(model.config, backward=share, item_dropout=0.0)
        with torch.no_grad():
            assert float(model(pad(histories, 12))) == pytest.approx(expected, abs=1e-4)


SHARES = [None, (0.0, 1.0), (1.0, 0.0), (0.2, 0.8)]
WITH_PRIOR = [
    None,
    (0.2, 0.3, 0.5),
    (0.0, 0.5, 0.5),
    (0.5, 0.0, 0.5),
    (0.5, 0.5, 0.0),
    (1.0, 0.0, 0.0),
    (0.0, 0.0, 1.0),
]


@pytest.mark.parametrize("shares", [(2, each) for each in SHARES] + [(3, each) for each in WITH_PRIOR])
def test_decoding_gives_every_item_the_mixture_of_the_components(shop, new_timeline, shares):
    model, histories = new_timeline(), [*shop.histories[:3], np.array([], dtype=np.int64)]
    prior = torch.randn((4, 40), generator=torch.manual_seed(1))
    n_components, weights = shares
    context = Context(pad(histories, 12), prior if n_components == 3 else None, weights)
    with torch.inference_mode():
        found = exact_ranking(model, context, PrefixTrie.build(shop.ids.unique), 40)
        beams = constrained_beam_search(model, context, PrefixTrie.build(shop.ids.unique), 40, 40)

    def one_prior(user):
        return (lambda block: np.tile(prior[user], (len(block), 1))) if n_components == 3 else None

    every = np.concatenate(
        [recipes.log_probs(model, [row], one_prior(user), weights) for user, row in enumerate(histories)]
    )
    for user, history in enumerate(histories):
        by_code, by_item = both_heads(model, history)
        components = [by_code, by_item, (by_item + prior[user]).log_softmax(dim=0)][:n_components]
        used = weights or [1 / n_components] * n_components
        mixed = sum(weight * component.exp() for weight, component in zip(used, components, strict=True))
        torch.testing.assert_close(torch.from_numpy(every[user]).exp(), mixed, rtol=1e-4, atol=1e-7)
        of_item = recipes.log_probs_of(model, [history] * 40, np.arange(40), one_prior(user), weights)
        torch.testing.assert_close(torch.from_numpy(of_item).exp(), mixed, rtol=1e-4, atol=1e-7)
        for each in (found, beams):
            assert sorted(each.items[user].tolist()) == list(range(40))
            torch.testing.assert_close(each.scores[user].exp(), mixed[each.items[user]], rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("weights", [(0.5, 0.5, 0.5), (1.0,), (0.5, float("nan")), (1.5, -0.5)])
def test_mixture_weights_are_shares(shop, new_timeline, weights):
    with pytest.raises(ValueError, match="expected 2 from 0 to 1 with the sum 1"):
        new_timeline().rank(shop.histories[:1], 5, weights=weights)


def test_the_probabilities_of_all_id_prefixes_sum_to_one(shop, new_timeline):
    config = new_timeline().config
    kept = ~(shop.ids.unique[:, :2] == [3, 2]).all(axis=1)
    model = Timeline(replace(config, n_items=10), shop.ids.unique[kept], shop.vectors[kept]).eval()
    with torch.no_grad():
        state, first = model.begin(torch.tensor([[3, 9, 27], [1, -1, -1], [5, 6, -1]]))
        parents, codes = torch.tensor([[0, 0]] * 3), torch.tensor([[1, 3]] * 3)
        state, second = model.advance(state, 0, parents, codes)
        _, third = model.advance(state, 1, torch.tensor([[1]] * 3), torch.tensor([[2]] * 3))
    for scores in (first, second, third):  # below a prefix of no item only the code head gives probability
        torch.testing.assert_close(scores.exp().sum(-1), torch.ones(scores.shape[:2]))


def test_rank_is_the_mean_of_both_heads_and_refuses_training_mode(shop, new_timeline):
    model = new_timeline()
    found = model.rank(shop.histories[:2], 40, exclude_seen=False)
    for history, items, scores in zip(shop.histories, found.items, found.scores, strict=False):
        mean = torch.logaddexp(*both_heads(model, history)) - math.log(2)
        np.testing.assert_allclose(scores, mean[items], atol=1e-4)
    with pytest.raises(ValueError, match="the model is in training mode"):
        model.train().rank([[1]], 5)


def test_the_model_does_not_look_ahead_and_reads_the_order(new_timeline):
    model = new_timeline()
    history, changed = torch.tensor([[3, 9, 27, 1, 5]]), torch.tensor([[3, 9, 27, 30, 5]])
    for context in (torch.no_grad(), torch.inference_mode()):  # torch takes another path through the encoder
        with context:
            before, after = (
                torch.cat([encoder(model.item_vectors(rows)) for encoder in (model.item_encoder, model.code_encoder)])
                for rows in (history, changed)
            )
            _, scores = model.begin(torch.tensor([[3, 9, 27], [9, 3, 27]]))
        torch.testing.assert_close(before[:, :4], after[:, :4])
        assert ((before - after)[:, 4:].abs().amax(dim=-1) > 1e-3).all()
        assert (scores[0] - scores[1]).abs().max() > 1e-3


@torch.no_grad()
def test_padding_changes_nothing_and_long_histories_are_read_from_their_end(new_timeline):
    model, histories = new_timeline(), [np.arange(30), np.array([7, 8]), np.array([], dtype=np.int64)]
    _, together = model.begin(pad(histories, 12))
    for scores, history in zip(together, histories, strict=True):
        torch.testing.assert_close(scores[None], model.begin(pad([history[-12:]], 12))[1])
    losses = [float(model(pad([history], 12))) for history in histories[:2]]
    loss = float(model(pad(histories, 12)))
    assert loss == pytest.approx((12 * losses[0] + 2 * losses[1]) / 14, abs=1e-4)  # the mean over items


def test_a_new_item_needs_no_training(shop, new_timeline):
    model = new_timeline()
    ids = np.vstack([shop.ids.unique, [[3, 3, shop.ids.sizes[2] - 1]]])
    vectors = np.vstack([shop.vectors, np.full((1, 8), 8**-0.5, np.float32)])
    larger = Timeline(model.config, ids, vectors)
    learned = {name: value for name, value in model.state_dict().items() if name not in ("ids", "vectors", "trend")}
    assert larger.load_state_dict(learned, strict=False).missing_keys == ["ids", "vectors", "trend"]
    larger.eval()
    history = shop.histories[0]
    before, after = (both_heads(each, history) for each in (model, larger))
    torch.testing.assert_close(after[0][:40], before[0])
    torch.testing.assert_close(after[1][:40].log_softmax(dim=0), before[1])  # its share is taken from all alike
    assert -30 < log_probability(larger, [*history, 40], 40) < 0  # it can be read and generated
    with torch.no_grad():  # it has no item embedding, whatever the others have learned
        new, old = larger.item_vectors(torch.tensor([40, 39]))
        larger.item.weight.add_(1)
        new_later, old_later = larger.item_vectors(torch.tensor([40, 39]))
    torch.testing.assert_close(new_later, new)
    torch.testing.assert_close(old_later, old + 8)


def test_new_items_get_the_share_of_the_rate_and_sales_move_scores(shop, new_timeline):
    config = replace(new_timeline().config, n_items=30, code_weight=0.0)
    model, history = Timeline(config, shop.ids.unique, shop.vectors).eval(), shop.histories[0][:4]

    def scores(**changed) -> np.ndarray:
        model.config = replace(config, **changed)
        return recipes.log_probs(model, [history])[0]

    plain, rated = scores(), scores(new_item_rate=1.5)
    new = np.arange(40) >= 30
    assert np.exp(rated[new]).sum() == pytest.approx(15 / 45, rel=1e-4)
    for part in (new, ~new):  # within each kind nothing changes
        np.testing.assert_allclose(np.diff(rated[part]), np.diff(plain[part]), atol=1e-4)
    with pytest.raises(ValueError, match="train it again"):
        model.set_trend(np.ones(40))
    model.n_trained += 10
    recent = np.where(new, 0, 1.0) + 9 * (np.arange(40) == 3) + 2 * (np.arange(40) == 35)
    model.set_trend(recent)
    moved = scores() - plain
    usual = np.where(new, 0, recent.sum() / 30)
    np.testing.assert_allclose(np.diff(moved), np.diff(np.log((recent + 0.3) / (usual + 0.3))), atol=1e-4)
    model.set_trend(None)
    np.testing.assert_array_equal(scores(), plain)
    model.n_trained[0] = -1  # as a forged file may have it
    with pytest.raises(ValueError, match="sales of at least 0"):
        model.set_trend(recent)
    model.n_trained[0] = 10
    for wrong in (np.ones(39), -np.ones(40), np.zeros(40)):
        with pytest.raises(ValueError, match="sales of at least 0"):
            model.set_trend(wrong)


def test_training_drops_item_embeddings_and_reaches_every_parameter(shop, new_timeline):
    model = new_timeline(item_dropout=0.5, dropout=0.0).train()
    model(pad(shop.histories, 12)).backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in model.parameters())
    without = (model.item.weight.grad == 0).all(dim=1).sum()
    assert 8 < without < 32  # half of 40


def test_a_sample_of_items_estimates_the_sum_over_the_catalogue(new_timeline):
    model = new_timeline(n_sampled=10).train()
    items = torch.tensor([3, 9, 9, 30])
    rows, weight = model._compared(items)
    assert rows.tolist() == sorted(set(rows.tolist())) and {3, 9, 30} < set(rows.tolist())
    assert len(rows) == 13
    assert (weight[torch.isin(rows, items)] == 0).all()
    with torch.no_grad():
        scores = torch.randn(40)
        sums = [(scores[rows] + weight).exp().sum() for rows, weight in (model._compared(items) for _ in range(2000))]
    assert np.mean(sums) == pytest.approx(float(scores.exp().sum()), rel=0.02)
    rows, weight = model.eval()._compared(items)
    assert rows.tolist() == list(range(40)) and (weight == 0).all()


@torch.no_grad()
def test_changed_weights_are_used_at_once(shop, new_timeline):
    model, history = new_timeline(), shop.histories[0]
    log_probability(model, history, 5)
    for weight in (model.item.weight, model.text[1].weight, model.code[2].weight):
        weight.normal_()
        by_code, by_item = both_heads(model, history)
        expected = float(torch.logaddexp(by_code[5], by_item[5])) - math.log(2)
        assert log_probability(model, history, 5) == pytest.approx(expected, abs=1e-4)


def test_arrays_are_copied_and_tensors_of_vectors_are_not(shop, new_timeline):
    ids, vectors = shop.ids.unique.copy(), shop.vectors.copy()
    model = Timeline(new_timeline().config, ids, vectors)
    model.ids.zero_(), model.vectors.zero_()
    np.testing.assert_array_equal(vectors, shop.vectors)
    np.testing.assert_array_equal(ids, shop.ids.unique)
    tensor = torch.from_numpy(vectors)
    assert Timeline(model.config, ids, tensor).vectors.data_ptr() == tensor.data_ptr()


@pytest.mark.parametrize(
    ("n_positions", "n_vectors", "dim", "n_ids"), [(2, 40, 8, 40), (3, 39, 8, 40), (3, 40, 7, 40), (3, 39, 8, 39)]
)
def test_tables_that_do_not_fit_are_refused(n_positions, n_vectors, dim, n_ids):
    config = TimelineConfig(sizes=(4, 4, 4), text_dim=8, n_items=40, dim=8)
    with pytest.raises(ValueError, match=r"do not fit.*n_items 40"):
        Timeline(config, np.zeros((n_ids, n_positions), np.int64), np.zeros((n_vectors, dim)))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[("dropout", 1.0), ("item_dropout", math.nan), ("n_sampled", 0), ("n_layers", 2.0), ("dim", True)],
        *[("n_heads", 3), ("temperature", 0), ("temperature", "hot"), ("max_length", 0)],
    ],
)
def test_a_config_that_cannot_be_is_refused(name, value):
    with pytest.raises(ValueError, match=name):
        TimelineConfig(**{"sizes": (4, 4, 4), "text_dim": 8, "n_items": 40} | {name: value})


@pytest.mark.parametrize("share", [0.0, 0.25, 0.9])
def test_dropout_drops_its_share_and_keeps_the_mean(share):
    dropout, x = Dropout(share), torch.ones(101, 103)  # numbers of elements that no 8 divides
    dropped = dropout(x)
    assert float((dropped == 0).float().mean()) == pytest.approx(share, abs=0.015)
    assert float(dropped.mean()) == pytest.approx(1, abs=0.05)
    assert dropout.eval()(x) is x


def test_a_history_that_is_too_long_is_refused(new_timeline):
    model = new_timeline()
    with pytest.raises(ValueError, match=f"expected at most {model.config.max_length}"):
        model.begin(torch.zeros((1, model.config.max_length + 1), dtype=torch.long))
