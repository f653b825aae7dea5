"""SASRec: the loss by hand, no look ahead, exact ranking of the catalogue, and that it learns."""

import numpy as np
import pytest
import torch

from semid_lib.evaluation import metrics
from semid_lib.next_item.batches import histories_in_batches, pad
from semid_lib.next_item.sasrec import SASRec, SASRecConfig
from semid_lib.workbench import training


@pytest.fixture(scope="module")
def model() -> SASRec:
    """An untrained model of 40 items whose logits differ enough for mistakes to show."""
    torch.manual_seed(0)
    model = SASRec(SASRecConfig(n_items=40, dim=16, n_layers=1, max_length=12))
    with torch.no_grad():
        for table in (model.item, model.position):
            table.weight.normal_()
    return model.eval()


def test_the_loss_is_the_cross_entropy_over_the_whole_catalogue(shop, model):
    histories = shop.histories[:5]
    logits = model.scores([history[:t] for history in histories for t in range(len(history))]).astype(np.float64)
    targets = np.concatenate(histories)
    by_hand = np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(len(targets)), targets]
    assert by_hand.std() > 0.5  # the items differ, so that an average over the wrong ones would show
    with torch.no_grad():
        assert float(model(pad(histories, 12))) == pytest.approx(by_hand.mean(), abs=1e-4)


def test_the_model_does_not_look_ahead_and_reads_the_order(model):
    history, changed = torch.tensor([[3, 9, 27, 1, 5]]), torch.tensor([[3, 9, 27, 30, 5]])
    for context in (torch.no_grad(), torch.inference_mode()):  # torch takes another path through the encoder
        with context:
            before, after = model.encode(history), model.encode(changed)
        torch.testing.assert_close(before[:, :4], after[:, :4])
        assert ((before - after)[:, 4:].abs().amax(dim=-1) > 1e-3).all()
    forth, back = model.scores([[3, 9, 27], [9, 3, 27]])
    assert np.abs(forth - back).max() > 1e-3


def test_a_batch_scores_as_each_history_alone_and_a_long_one_by_its_end(model):
    histories = [np.arange(20), np.array([7]), np.array([], dtype=np.int64), np.array([3, 3, 9])]
    together = model.scores(histories)
    for scores, history in zip(together, histories, strict=True):
        np.testing.assert_allclose(scores, model.scores([history[-12:]])[0], atol=1e-4)
    ranked = model.rank(histories, 40, exclude_seen=False)
    np.testing.assert_allclose(ranked.scores, -np.sort(-together, axis=1), atol=1e-4)


def test_one_table_is_input_and_output(model):
    assert sum(parameter.numel() for parameter in model.parameters() if len(parameter) == 40) == 40 * 16


def test_it_learns_what_comes_next_with_every_parameter(shop):
    torch.manual_seed(0)
    model = SASRec(SASRecConfig(n_items=40, dim=32, n_layers=1, dropout=0.1, max_length=12))
    before = {name: value.clone() for name, value in model.named_parameters()}
    loader = histories_in_batches(shop.histories, 12, batch_size=8)
    training.fit(model, loader, training.TrainingConfig(n_epochs=20, learning_rate=5e-3))
    assert all((value != before[name]).any() for name, value in model.named_parameters())
    histories = [np.array([item, (item + 1) % 40]) for item in range(40)]
    found = metrics.ranks(model.rank(histories, k=5).items, (np.arange(40) + 2) % 40)
    assert metrics.recall_at_k(found, 1).mean() > 0.9


def test_a_history_that_is_too_long_is_refused(model):
    with pytest.raises(ValueError, match="hold 13 items, expected at most 12"):
        model(torch.zeros((1, 13), dtype=torch.long))
