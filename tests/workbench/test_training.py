"""The training loop: what it covers, keeps, refuses and repeats, how it goes on, and how several processes share it."""

import json
import math
import os
import random
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from itertools import chain
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from kills import killed
from safetensors.torch import save, save_file
from torch import nn
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torch.utils.data import DataLoader, TensorDataset

from semid_lib.next_item.timeline import training_batches
from semid_lib.workbench import training
from semid_lib.workbench.training import LengthBuckets, TrainingConfig, fit


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


# --- runs that are stopped ---


class StoppedError(Exception):
    pass


class Stopping(nn.Module):
    """A model with dropout, until a step at which the process is as good as killed."""

    def __init__(self, at=10**6, seed=1):
        super().__init__()
        torch.manual_seed(seed)
        self.layers = nn.Sequential(nn.Linear(1, 8), nn.GELU(), nn.Dropout(0.5), nn.Linear(8, 1))
        self.left = at

    def forward(self, batch):
        self.left -= 1
        if self.left < 0:
            raise StoppedError
        return ((self.layers(batch[:, None]) - batch.sin()[:, None]) ** 2).mean()


NUMBERS = torch.linspace(-3, 3, 60)


def in_buckets():
    return DataLoader(NUMBERS, batch_sampler=LengthBuckets(LENGTHS[:60], 8, seed=5, pool=3))


def shuffled():
    return DataLoader(NUMBERS, batch_size=8, shuffle=True)


def shuffled_by_a_generator():
    return DataLoader(NUMBERS, batch_size=8, shuffle=True, generator=torch.Generator().manual_seed(5))


LOOKS = TrainingConfig(n_epochs=6, validate_every=1, patience=2, learning_rate=0.02, seed=3)


def look(model):
    """A figure that depends on the weights, so that it differs if they do; it falls after some epochs."""
    return -abs(float(model.layers[3].weight.norm()) - 0.45)


@pytest.mark.parametrize(
    ("make_loader", "steps"),  # 8 steps are an epoch
    [
        (in_buckets, [1]),
        (in_buckets, [11, 1, 7]),
        (in_buckets, [16]),
        (shuffled, [3, 10]),
        (shuffled_by_a_generator, [13]),
    ],
)
def test_a_run_that_is_stopped_ends_with_the_same_weights(tmp_path, make_loader, steps):
    def start(at, folder=None):
        model = Stopping(at)
        return model, fit(model, make_loader(), LOOKS, look, folder=folder, save_every=3)

    whole, expected = start(10**6)
    for at in steps:
        with pytest.raises(StoppedError):
            start(at, tmp_path)
    torch.manual_seed(99)  # what another process would have drawn before
    resumed, epochs = start(10**6, tmp_path)
    assert [epoch[:3] for epoch in epochs] == [epoch[:3] for epoch in expected]
    assert len(epochs) < LOOKS.n_epochs  # it was stopped early, so that best weights and looks were kept as well
    for name, value in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name
    assert len(list(tmp_path.glob("step_*"))) == 1


def test_a_run_that_is_over_is_not_run_again(tmp_path):
    first, again = Stopping(), Stopping(at=0, seed=2)
    epochs = fit(first, in_buckets(), LOOKS, look, folder=tmp_path)
    assert fit(again, in_buckets(), LOOKS, look, folder=tmp_path) == epochs
    for name, value in first.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name


@pytest.mark.parametrize("moment", ["while it is written", "before it has its name", "before the old one is gone"])
def test_a_run_may_be_killed_while_it_saves(tmp_path, monkeypatch, moment):
    whole = Stopping()
    fit(whole, in_buckets(), LOOKS, look)
    place = {
        "while it is written": (training, "save_file"),
        "before it has its name": (Path, "replace"),
        "before the old one is gone": (shutil, "rmtree"),
    }
    owner, name = place[moment]
    usual, calls = getattr(owner, name), []

    def killed(*arguments, **settings):
        calls.append(arguments)
        if len(calls) == 4:
            raise StoppedError
        return usual(*arguments, **settings)

    with monkeypatch.context() as patch, pytest.raises(StoppedError):
        patch.setattr(owner, name, killed)
        fit(Stopping(), in_buckets(), LOOKS, look, folder=tmp_path, save_every=3)
    resumed = Stopping(seed=7)
    fit(resumed, in_buckets(), LOOKS, look, folder=tmp_path, save_every=3)
    for key, value in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[key], value), key
    assert len(list(tmp_path.iterdir())) == 1


ONE = TrainingConfig(n_epochs=1)


class Known(Stopping):
    """A model that knows a table."""

    def __init__(self, table):
        super().__init__()
        self.register_buffer("table", torch.tensor(table))


@pytest.mark.parametrize(
    ("model", "loader", "settings", "differs"),
    [
        (Stopping, in_buckets, {"learning_rate": 0.25}, r"learning_rate is 0\.001, this one has 0\.25"),
        (Stopping, lambda: DataLoader(NUMBERS[:50], batch_size=8), {}, "n_sequences is 60, this one has 50"),
        (Stopping, lambda: DataLoader(NUMBERS, batch_size=10), {}, "n_batches is 8, this one has 6"),
        (Stopping, lambda: DataLoader(NUMBERS.flip(0), batch_sampler=in_buckets().batch_sampler), {}, "data is"),
        (
            Stopping,
            lambda: DataLoader(NUMBERS, batch_sampler=LengthBuckets(LENGTHS[:60], 8, 6)),
            {},
            "order is .*seed 5",
        ),
        (
            Stopping,
            shuffled,
            {},
            "order is .*LengthBuckets, seed 5, this one has RandomSampler, BatchSampler, seed None",
        ),
        (lambda: Known([1.0]), in_buckets, {}, "model is"),
    ],
)
def test_a_run_of_something_else_is_refused(tmp_path, model, loader, settings, differs):
    fit(Stopping(), in_buckets(), ONE, folder=tmp_path)
    with pytest.raises(ValueError, match=f"holds another run: its {differs}.*Choose another folder"):
        fit(model(), loader(), replace(ONE, **settings), folder=tmp_path)


def test_a_model_with_another_table_is_another_model(tmp_path):
    fit(Known([1.0, 2.0]), in_buckets(), ONE, folder=tmp_path)
    fit(Known([1.0, 2.0]), in_buckets(), ONE, folder=tmp_path)
    with pytest.raises(ValueError, match="holds another run: its model is"):
        fit(Known([1.0, 2.5]), in_buckets(), ONE, folder=tmp_path)


def test_a_histories_model_with_other_histories_is_another_run(shop, new_timeline, tmp_path):
    def train(histories):
        return fit(new_timeline(), training_batches(histories, 12, batch_size=20), ONE, folder=tmp_path)

    assert train(shop.histories)[0].seconds == train(shop.histories)[0].seconds  # read, not trained
    with pytest.raises(ValueError, match="holds another run: its data is"):
        train([history[::-1] for history in shop.histories])


def test_batches_of_any_kind_can_be_told_apart():
    def digest(labels, at=0):
        batch = {"x": torch.ones(2), "labels": labels, "more": [np.float32(at), (np.array(["a", None]), 1.5, None)]}
        return training._digest([SimpleNamespace(inputs=batch)])

    assert digest(["a", "b"]) == digest(["a", "b"])
    assert len({digest(["a", "b"]), digest(["ab"]), digest(["a", "c"]), digest(["a", "b"], 1)}) == 4


def test_a_folder_needs_a_step_to_save_at(tmp_path):
    with pytest.raises(ValueError, match="save_every must be at least 1, got 0"):
        fit(Stopping(), in_buckets(), ONE, folder=tmp_path, save_every=0)


@pytest.mark.parametrize("figure", [math.nan, math.inf, -math.inf])
def test_a_validation_that_is_no_number_stops_training(figure):
    config = TrainingConfig(n_epochs=6, validate_every=2)
    with pytest.raises(ValueError, match=f"validate returned {figure} after epoch 4"):
        fit(Toy(), numbers(3), config, scripted([0.3, figure], []))


@pytest.mark.parametrize("stopped", [False, True])
def test_global_random_generators_are_left_alone(tmp_path, stopped):
    def draws():
        return random.random(), np.random.random(), torch.rand(1).item()  # noqa: NPY002

    states = random.getstate(), np.random.get_state(), torch.random.get_rng_state()  # noqa: NPY002
    expected = draws()
    random.setstate(states[0])
    np.random.set_state(states[1])  # noqa: NPY002
    torch.random.set_rng_state(states[2])
    model = Stopping()  # seeds torch
    torch.random.set_rng_state(states[2])
    if stopped:
        model.left = 11
        with pytest.raises(StoppedError):
            fit(model, shuffled(), LOOKS, look, folder=tmp_path)
    else:
        fit(model, shuffled(), LOOKS, look, folder=tmp_path)
    assert draws() == expected


def test_a_training_does_not_depend_on_what_was_drawn_before():
    losses = []
    for seed in (1, 2):
        model = Stopping()
        torch.manual_seed(seed)
        losses.append([epoch.loss for epoch in fit(model, shuffled(), LOOKS)])
    assert losses[0] == losses[1]


@pytest.mark.parametrize("name", ["run.json", "run.safetensors", "model.safetensors", "optimizer.bin", "scheduler.bin"])
def test_a_damaged_checkpoint_is_named(tmp_path, name):
    fit(Stopping(), in_buckets(), ONE, folder=tmp_path)
    [checkpoint] = tmp_path.iterdir()
    content = (checkpoint / name).read_bytes()
    (checkpoint / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=f"{checkpoint.name} is damaged: delete it"):
        fit(Stopping(), in_buckets(), ONE, folder=tmp_path)


def test_a_folder_is_for_one_run_at_a_time(tmp_path):
    found, alone, intruder = Stopping(), Stopping(), Stopping()

    def meanwhile(model):
        with pytest.raises(ValueError, match=r"another process trains in .*: wait for it, or choose another folder"):
            fit(intruder, in_buckets(), LOOKS, look, folder=tmp_path)
        return look(model)

    fit(found, in_buckets(), LOOKS, meanwhile, folder=tmp_path)
    fit(alone, in_buckets(), LOOKS, look)
    assert all(torch.equal(value, alone.state_dict()[name]) for name, value in found.state_dict().items())
    assert [path.name[:5] for path in tmp_path.iterdir()] == ["step_"]


def test_a_run_that_is_killed_thirty_times_ends_as_if_it_were_not(tmp_path):
    whole = Stopping()
    started = time.monotonic()
    expected = fit(whole, in_buckets(), LOOKS, look, folder=tmp_path / "whole", save_every=3)
    seconds, rng, n_kills, n_runs = time.monotonic() - started, np.random.default_rng(0), 0, 0
    while n_kills < 30:
        n_runs += 1
        folder = tmp_path / str(n_runs)

        def work(folder=folder):
            model = Stopping()
            epochs = fit(model, in_buckets(), LOOKS, look, folder=folder, save_every=3)
            save_file(model.state_dict(), folder / "final.safetensors")
            (folder / "epochs.json").write_text(json.dumps([epoch[:3] for epoch in epochs]), encoding="utf-8")

        longest = seconds  # it grows: a start that takes longer than all the work would else never come further
        while not killed(work, rng.uniform(0, longest)):
            n_kills, longest = n_kills + 1, 1.3 * longest
        assert (folder / "final.safetensors").read_bytes() == save(whole.state_dict())
        assert json.loads((folder / "epochs.json").read_text()) == [list(epoch[:3]) for epoch in expected]
        left = sorted(path.name.split("_")[0] for path in folder.iterdir())
        assert left == ["epochs.json", "final.safetensors", "step"]


# --- several processes, and half precision ---


class Uneven(nn.Module):
    """A regression whose loss is a mean over numbers of which sequences have unequally many (nan: none)."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([1.0, -2.0]))

    def forward(self, batch):
        [values] = batch
        return ((values[~values.isnan()] - self.weight.sum()) ** 2).mean() + self.weight.norm() / 9

    def n_targets(self, batch):
        return (~batch[0].isnan()).sum()


def uneven_run():
    """51 sequences, so that a process gets more than another, and of the last batch of three one gets two."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 9, 51)
    values = torch.full((51, 8), torch.nan)
    for row, length in zip(values, lengths, strict=True):
        row[:length] = torch.from_numpy(rng.normal(length, 1, length))
    loader = DataLoader(TensorDataset(values), batch_sampler=LengthBuckets(lengths, 8, seed=4))
    model = Uneven()
    config = TrainingConfig(n_epochs=4, learning_rate=0.1, validate_every=1)
    epochs = fit(model, loader, config, lambda model: -abs(float(model.weight.sum()) - 3))
    return [epoch[:3] for epoch in epochs], model.weight.tolist()


def one_sequence_run():
    """A last batch of one sequence for two processes."""
    loader = DataLoader(TensorDataset(torch.tensor([[1.0], [4.0], [7.0]])), batch_size=2)
    model = Uneven()
    epochs = fit(model, loader, TrainingConfig(n_epochs=3, learning_rate=0.1))
    return [epoch[:2] for epoch in epochs], model.weight.tolist()


def launched(tmp_path, what, n_processes=2):
    """What a function of this file returns in each of several processes."""
    places = [str(Path(__file__).parent), *(str(Path(__file__).parents[up]) for up in (1, 2))]
    program = f"import sys, json; sys.path[:0] = {places}\n"
    program += "import test_training; from accelerate import PartialState\n"
    program += f"found = {what}\n"
    program += f"open(f'{tmp_path}/found_{{PartialState().process_index}}', 'w').write(json.dumps(found))\n"
    program += "PartialState().destroy_process_group()\n"
    (tmp_path / "program.py").write_text(program, encoding="utf-8")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(n_processes)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, tmp_path / "program.py"], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads((tmp_path / f"found_{index}").read_text()) for index in range(n_processes)]


def test_two_processes_take_the_steps_of_one(tmp_path):
    expected = [uneven_run(), one_sequence_run()]
    both = launched(tmp_path, "[test_training.uneven_run(), test_training.one_sequence_run()]")
    for found in both:
        for (epochs, weight), (expected_epochs, expected_weight) in zip(found, expected, strict=True):
            np.testing.assert_allclose(np.array(epochs), np.array(expected_epochs), rtol=1e-4)
            np.testing.assert_allclose(weight, expected_weight, rtol=1e-4)
    assert both[0] == both[1]


def test_a_run_begun_in_bfloat16_keeps_its_weights_in_float32(shop, new_timeline):
    losses = {}
    for precision in ("no", "bf16"):
        AcceleratorState._reset_state(True)
        try:
            Accelerator(mixed_precision=precision, cpu=True)
            model = new_timeline(dropout=0.0)
            before, seen = model.forward, []
            model.head[0].register_forward_hook(lambda *made, seen=seen: seen.append(made[2].dtype))
            loader = training_batches(shop.histories, 12, batch_size=20)
            losses[precision] = fit(model, loader, TrainingConfig(n_epochs=2))[-1].loss
        finally:
            AcceleratorState._reset_state(True)
        assert set(seen) == {torch.float32 if precision == "no" else torch.bfloat16}
        assert all(weight.dtype == torch.float32 for weight in model.parameters())
        assert model.forward.__func__ is before.__func__
    assert losses["bf16"] == pytest.approx(losses["no"], rel=0.02)
    assert losses["bf16"] != losses["no"]
