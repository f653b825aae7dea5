"""The timeline model: one probability by two paths, no look ahead, and histories of every length."""

import numpy as np
import pytest
import torch

from semid_lib.timeline import Timeline, TimelineConfig, pad, training_batches


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


def test_training_and_decoding_agree_on_every_probability(shop, new_timeline):
    model, histories = new_timeline(), shop.histories[:5]
    one_by_one = [log_probability(model, history[:t], item) for history in histories for t, item in enumerate(history)]
    with torch.no_grad():
        loss = float(model(pad(histories, 12)))
    assert loss == pytest.approx(-np.mean(one_by_one), abs=1e-4)
    assert np.std(one_by_one) > 0.5  # the items differ, so that an average over the wrong ones would show


def test_the_probabilities_of_all_id_prefixes_sum_to_one(shop, new_timeline):
    model = new_timeline()
    with torch.no_grad():
        state, first = model.begin(pad(shop.histories[:3], 12))
        parents, codes = torch.tensor([[0, 0]] * 3), torch.tensor([[1, 3]] * 3)
        _, second = model.advance(state, 0, parents, codes)
    assert first.shape == (3, 1, 4)
    assert second.shape == (3, 2, 4)
    torch.testing.assert_close(first.exp().sum(-1), torch.ones(3, 1))
    torch.testing.assert_close(second.exp().sum(-1), torch.ones(3, 2))


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
    assert log_probability(larger, history, 5) == pytest.approx(log_probability(model, history, 5))
    assert -30 < log_probability(larger, [*history, 40], 40) < 0  # it can be read and it can be written


def test_the_model_keeps_tables_of_its_own(shop, new_timeline):
    ids, vectors = shop.ids.unique.copy(), shop.vectors.copy()
    model = Timeline(new_timeline().config, ids, vectors)
    other = {"ids": torch.zeros_like(model.ids), "vectors": torch.zeros_like(model.vectors)}
    model.load_state_dict(other, strict=False)
    np.testing.assert_array_equal(vectors, shop.vectors)
    np.testing.assert_array_equal(ids, shop.ids.unique)


def test_every_parameter_learns(shop, new_timeline):
    model = new_timeline().train()
    model(pad(shop.histories, 12)).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize(("n_positions", "n_vectors", "dim"), [(2, 40, 8), (3, 39, 8), (3, 40, 7)])
def test_tables_that_do_not_fit_are_refused(n_positions, n_vectors, dim):
    config = TimelineConfig(sizes=(4, 4, 4), text_dim=8, dim=8)
    with pytest.raises(ValueError, match="do not fit"):
        Timeline(config, np.zeros((40, n_positions), np.int64), np.zeros((n_vectors, dim)))


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
