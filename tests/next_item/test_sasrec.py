"""SASRec: the loss by hand, no look ahead, exact ranking of the catalogue, and that it learns."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from semid_lib.evaluation import metrics
from semid_lib.next_item.sasrec import SASRec, SASRecConfig
from semid_lib.next_item.timeline import pad, training_batches
from semid_lib.workbench import training

some_histories = st.lists(st.lists(st.integers(0, 39), max_size=15).map(np.array), min_size=1, max_size=5)


def new_sasrec(seed: int = 0, **settings) -> SASRec:
    """An untrained model of 40 items whose logits differ enough for mistakes to show."""
    torch.manual_seed(seed)
    config = SASRecConfig(**{"n_items": 40, "dim": 16, "n_layers": 1, "max_length": 12} | settings)
    model = SASRec(config)
    with torch.no_grad():
        for table in (model.item, model.position):
            table.weight.normal_()
    return model.eval()


def test_the_loss_is_the_cross_entropy_over_the_whole_catalogue(shop):
    model, histories = new_sasrec(), shop.histories[:5]
    logits = model.scores([history[:t] for history in histories for t in range(len(history))]).astype(np.float64)
    targets = np.concatenate(histories)
    by_hand = np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(len(targets)), targets]
    with torch.no_grad():
        loss = float(model(pad(histories, 12)))
    assert loss == pytest.approx(by_hand.mean(), abs=1e-4)
    assert by_hand.std() > 0.5  # the items differ, so that an average over the wrong ones would show


def test_an_item_without_interactions_is_trained_as_a_wrong_answer():
    model = new_sasrec()
    model(torch.tensor([[3, 9, 27]])).backward()
    cold = model.item.weight.grad[5]
    assert cold.abs().max() > 0
    # a step against the gradient lowers the item's mean score after these histories
    with torch.no_grad():
        hidden = model.encode(torch.tensor([[3, 9, 27]]))[0, :-1]
    assert float((hidden @ cold).mean()) > 0


def test_the_model_does_not_look_ahead():
    model = new_sasrec()
    history = torch.tensor([[3, 9, 27, 1, 5]])
    changed = history.clone()
    changed[0, 3] = 30
    for context in (torch.no_grad(), torch.inference_mode()):  # torch takes another path through the encoder
        with context:
            before, after = model.encode(history), model.encode(changed)
        torch.testing.assert_close(before[:, :4], after[:, :4])
        assert ((before - after)[:, 4:].abs().amax(dim=-1) > 1e-3).all()


@given(some_histories)
def test_a_batch_scores_as_each_history_alone_and_the_end_of_a_long_one(histories):
    model = new_sasrec()
    together = model.scores(histories)
    assert together.shape == (len(histories), 40)
    for scores, history in zip(together, histories, strict=True):
        np.testing.assert_allclose(scores, model.scores([history[-12:]])[0], atol=1e-4)


def test_the_order_of_a_history_matters():
    forth, back = new_sasrec().scores([[3, 9, 27], [9, 3, 27]])
    assert np.abs(forth - back).max() > 1e-3


def test_the_vectors_that_are_read_are_those_that_are_scored():
    model = new_sasrec()
    with torch.no_grad():
        model.item.weight[7] *= 100
    scores = model.scores([[1, 2]])[0]
    assert np.abs(scores).argmax() == 7
    assert sum(parameter.numel() for parameter in model.parameters() if len(parameter) == 40) == 40 * 16


@given(some_histories, st.integers(1, 45), st.booleans())
def test_lists_are_the_exact_order_of_all_items(histories, k, exclude_seen):
    model = new_sasrec()
    ranked = model.rank(histories, k, exclude_seen)
    for items, scores, history in zip(ranked.items, model.scores(histories), histories, strict=True):
        seen = set(history.tolist()) if exclude_seen else set()
        order = [item for item in np.argsort(-scores, kind="stable") if item not in seen][:k]
        # a history in another batch has logits that may differ in the last bit: compare their values
        np.testing.assert_allclose(scores[items[items >= 0]], scores[order], atol=1e-4)
        assert (items[len(order) :] == -1).all()
        assert not seen & set(items.tolist())


def test_who_has_seen_everything_gets_nothing_and_who_has_seen_nothing_an_answer():
    ranked = new_sasrec(max_length=50).rank([np.arange(40), []], k=3)
    assert ranked.items[0].tolist() == [-1, -1, -1]
    assert (ranked.items[1] >= 0).all()
    assert new_sasrec().rank([], k=3).items.shape == (0, 3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: SASRec(SASRecConfig(n_items=0)), "n_items must be at least 1, got 0"),
        (lambda: new_sasrec().rank([[3, 40]], k=2), "history 0 holds item row 40, expected 0 to 39"),
        (lambda: new_sasrec().rank([[3], [-1]], k=2), "history 1 holds item row -1, expected 0 to 39"),
        (lambda: new_sasrec().rank([[3]], k=0), "k must be a whole number of at least 1, got 0"),
        (lambda: new_sasrec()(torch.zeros((1, 13), dtype=torch.long)), "hold 13 items, expected at most 12"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_every_parameter_learns(shop):
    model = new_sasrec().train()
    model(pad(shop.histories, 12)).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


def test_it_learns_what_comes_next(shop):
    torch.manual_seed(0)
    model = SASRec(SASRecConfig(n_items=40, dim=32, n_layers=1, dropout=0.1, max_length=12))
    loader = training_batches(shop.histories, 12, batch_size=8)
    epochs = training.fit(model, loader, training.TrainingConfig(n_epochs=25, learning_rate=5e-3))
    assert epochs[-1].loss < epochs[0].loss
    asked = [np.array([item, (item + 1) % 40]) for item in range(40)]
    found = metrics.ranks(model.rank(asked, k=5).items, (np.arange(40) + 2) % 40)
    assert metrics.recall_at_k(found, 1).mean() > 0.9
