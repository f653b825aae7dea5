"""The training loop: what it covers, keeps, refuses and repeats."""

import math
from itertools import chain

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torch.utils.data import DataLoader

from semid_lib.timeline import training_batches
from semid_lib.training import LengthBuckets, TrainingConfig, fit


class Toy(nn.Module):
    """Loss (weight - 3)^2, whatever the batch; keeps what it is given."""

    def __init__(self, loss=lambda weight, step: (weight - 3) ** 2):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.loss, self.batches = loss, []

    def forward(self, batch):
        self.batches.append(batch)
        return self.loss(self.weight, len(self.batches))


def numbers(n_batches: int) -> DataLoader:
    return DataLoader(torch.arange(2.0 * n_batches), batch_size=2)


LENGTHS = np.random.default_rng(0).integers(1, 51, size=3000)


def test_buckets_cover_everything_once_an_epoch_in_new_batches():
    buckets = LengthBuckets(LENGTHS, batch_size=32, pool=10)
    epochs = [list(buckets) for _ in range(3)]
    for batches in epochs:
        assert sorted(chain(*batches)) == list(range(3000))
        assert len(batches) == len(buckets)
        assert max(map(len, batches)) == 32
    as_sets = [{frozenset(batch) for batch in batches} for batches in epochs]
    assert not as_sets[0] & as_sets[1]


def test_buckets_leave_little_padding_and_no_order_of_lengths():
    batches = list(LengthBuckets(LENGTHS, batch_size=32))
    room = sum(len(batch) * LENGTHS[batch].max() for batch in batches)
    assert 1 - LENGTHS.sum() / room < 0.05
    means = np.array([LENGTHS[batch].mean() for batch in batches])
    assert abs(np.corrcoef(means, np.arange(len(means)))[0, 1]) < 0.4


def test_buckets_repeat_with_their_seed():
    first, again, other = (list(LengthBuckets(LENGTHS, 32, seed=seed)) for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_fit_sees_every_history_once_an_epoch_in_new_batches():
    histories = [np.full(length, row) for row, length in enumerate(LENGTHS[:40])]
    model = Toy()
    fit(model, training_batches(histories, 50, batch_size=8), TrainingConfig(n_epochs=2))
    firsts = [batch[:, 0].tolist() for batch in model.batches]
    assert sorted(chain(*firsts[:5])) == sorted(chain(*firsts[5:])) == list(range(40))
    assert firsts[:5] != firsts[5:]


def test_a_tiny_shop_is_learned_by_heart(shop, new_timeline):
    model = new_timeline(spread=0.02, dim=32, dropout=0.0)
    config = TrainingConfig(n_epochs=60, learning_rate=1e-2)
    epochs = fit(model, training_batches(shop.histories, 12, batch_size=20), config)
    assert [epoch.epoch for epoch in epochs] == list(range(1, 61))
    # an untrained model starts near the sum of the logarithms of the sizes; item i + 1 always follows item i,
    # so nothing but the first item of a history stays uncertain
    assert epochs[0].loss > 0.7 * np.log(shop.ids.sizes).sum()
    assert epochs[-1].loss < epochs[0].loss / 4
    assert not model.training


def test_a_seed_gives_the_same_losses(shop, new_timeline):
    def losses(seed):
        loader = training_batches(shop.histories, 12, batch_size=20, seed=seed)
        epochs = fit(new_timeline(dropout=0.3), loader, TrainingConfig(n_epochs=4, seed=seed))
        return [epoch.loss for epoch in epochs]

    assert losses(1) == losses(1)
    assert losses(1) != losses(2)


def scripted(figures, weights):
    """A validation that answers from a list and notes the weight that it was shown."""
    answers = iter(figures)

    def validate(model):
        assert not model.training
        weights.append(float(model.weight.detach()))
        return next(answers)

    return validate


def test_the_best_weights_on_validation_are_kept():
    model, weights = Toy(), []
    config = TrainingConfig(n_epochs=6, validate_every=1, patience=9, learning_rate=0.1)
    epochs = fit(model, numbers(4), config, scripted([0.1, 0.5, 0.3, 0.5, 0.2, 0.4], weights))
    assert len(set(weights)) == 6
    assert float(model.weight.detach()) == weights[1]  # the first of two equally good
    assert [epoch.validation for epoch in epochs] == [0.1, 0.5, 0.3, 0.5, 0.2, 0.4]


def test_without_validation_the_last_weights_are_kept():
    model = Toy()
    epochs = fit(model, numbers(20), TrainingConfig(n_epochs=10, learning_rate=0.2))
    assert float(model.weight.detach()) == pytest.approx(3, abs=0.3)
    assert all(math.isnan(epoch.validation) for epoch in epochs)


def test_training_stops_when_validation_does_not_improve():
    weights = []
    config = TrainingConfig(n_epochs=50, validate_every=2, patience=2)
    epochs = fit(Toy(), numbers(3), config, scripted([0.3, 0.4, 0.4, 0.1], weights))
    assert len(epochs) == 8
    assert [epoch.epoch for epoch in epochs if not math.isnan(epoch.validation)] == [2, 4, 6, 8]


def test_the_last_epoch_is_always_looked_at():
    weights = []
    fit(Toy(), numbers(3), TrainingConfig(n_epochs=5, validate_every=4), scripted([0.3, 0.4], weights))
    assert len(weights) == 2


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_training(bad):
    model = Toy(lambda weight, step: weight * bad if step == 5 else (weight - 3) ** 2)
    with pytest.raises(ValueError, match=r"loss became .*learning_rate than 0.25"):
        fit(model, numbers(3), TrainingConfig(n_epochs=10, learning_rate=0.25))
    assert len(model.batches) == 6  # the epoch was finished, no further one begun


@pytest.mark.parametrize("n_steps", [1, 2, 9, 10, 19])
def test_any_number_of_steps_can_be_trained(n_steps):
    epochs = fit(Toy(), numbers(1), TrainingConfig(n_epochs=n_steps))
    assert len(epochs) == n_steps


def test_gradients_are_clipped():
    model, norms = Toy(lambda weight, step: 10.0**step * weight), []
    hook = register_optimizer_step_pre_hook(lambda *_: norms.append(float(model.weight.grad)))
    try:
        fit(model, numbers(3), TrainingConfig(n_epochs=1, max_gradient_norm=0.5))
    finally:
        hook.remove()
    assert norms == pytest.approx([0.5] * 3, rel=1e-3)


def test_weight_decay_is_for_matrices_alone():
    class Still(nn.Module):
        def __init__(self):
            super().__init__()
            self.matrix, self.bias = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2))

        def forward(self, batch):
            return 0 * (self.matrix.sum() + self.bias.sum())

    model = Still()
    fit(model, numbers(5), TrainingConfig(n_epochs=2, learning_rate=0.1, weight_decay=0.5))
    assert (model.bias == 1).all()
    assert (model.matrix < 0.9).all()


@pytest.mark.parametrize(
    ("n_epochs", "min_steps", "steps_per_epoch", "expected"), [(30, 1200, 24, 50), (30, 1200, 88, 30), (1, 10, 3, 4)]
)
def test_sized_adds_epochs_on_small_data_only(n_epochs, min_steps, steps_per_epoch, expected):
    config = TrainingConfig.sized(n_epochs, min_steps, steps_per_epoch, patience=7)
    assert (config.n_epochs, config.patience) == (expected, 7)


def test_sized_looks_about_as_often_as_asked():
    for n_epochs in range(15, 200):
        config = TrainingConfig.sized(n_epochs, 1, 1, n_looks=15)
        assert 10 <= math.ceil(n_epochs / config.validate_every) <= 22, n_epochs


@pytest.mark.parametrize(
    "setting",
    [
        {"n_epochs": 0},
        {"validate_every": 0},
        {"patience": 0},
        {"learning_rate": 0.0},
        {"learning_rate": math.nan},
    ],
)
def test_settings_that_mean_nothing_are_refused(setting):
    with pytest.raises(ValueError, match=next(iter(setting))):
        TrainingConfig(**setting)
