"""The training loop: what it keeps, refuses and repeats, how it resumes, and how several processes share it."""

import json
import math
import os
import random
import subprocess
import sys
from dataclasses import replace
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from kills import killed_at
from safetensors.torch import save, save_file
from torch import nn
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torch.utils.data import DataLoader, TensorDataset

from semid_lib.next_item.batches import LengthBuckets, histories_in_batches
from semid_lib.workbench import training
from semid_lib.workbench.training import TrainingConfig, fit


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


def scripted(figures, weights):
    """A validation that answers from a list and notes the weight that it was shown."""
    answers = iter(figures)

    def validate(model):
        assert not model.training
        weights.append(float(model.weight.detach()))
        return next(answers)

    return validate


def test_every_batch_is_seen_once_an_epoch_in_another_order():
    histories = [np.full(1 + row % 9, row) for row in range(40)]
    model = Toy()
    fit(model, histories_in_batches(histories, 50, batch_size=8), TrainingConfig(n_epochs=2))
    firsts = [batch[:, 0].tolist() for batch in model.batches]
    assert sorted(chain(*firsts[:5])) == sorted(chain(*firsts[5:])) == list(range(40))
    assert firsts[:5] != firsts[5:]


def test_the_best_weights_on_validation_are_kept():
    model, weights = Toy(), []
    config = TrainingConfig(n_epochs=6, validate_every=1, patience=9, learning_rate=0.1)
    epochs = fit(model, numbers(4), config, scripted([0.1, 0.5, 0.3, 0.5, 0.2, 0.4], weights))
    assert len(set(weights)) == 6
    assert float(model.weight.detach()) == weights[1]  # the first of two equally good
    assert [epoch.validation for epoch in epochs] == [0.1, 0.5, 0.3, 0.5, 0.2, 0.4]


@pytest.mark.parametrize(
    ("n_epochs", "validate_every", "figures", "validated"),
    [(50, 2, [0.3, 0.4, 0.4, 0.1], [2, 4, 6, 8]), (5, 4, [0.3, 0.4], [4, 5])],
)
def test_validation_stops_training_and_the_last_epoch_is_validated(n_epochs, validate_every, figures, validated):
    config = TrainingConfig(n_epochs=n_epochs, validate_every=validate_every, patience=2)
    epochs = fit(Toy(), numbers(3), config, scripted(figures, []))
    assert [epoch.epoch for epoch in epochs] == list(range(1, validated[-1] + 1))
    assert [epoch.epoch for epoch in epochs if not math.isnan(epoch.validation)] == validated


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_training(bad):
    model = Toy(lambda weight, step: weight * bad if step == 5 else (weight - 3) ** 2)
    with pytest.raises(ValueError, match=r"loss became .*learning_rate than 0.25"):
        fit(model, numbers(3), TrainingConfig(n_epochs=10, learning_rate=0.25))
    assert len(model.batches) == 6  # the epoch was finished, the next one not begun


@pytest.mark.parametrize("figure", [math.nan, math.inf, -math.inf])
def test_a_validation_that_is_not_finite_stops_training(figure):
    config = TrainingConfig(n_epochs=6, validate_every=2)
    with pytest.raises(ValueError, match=f"validate returned {figure} after epoch 4"):
        fit(Toy(), numbers(3), config, scripted([0.3, figure], []))


def test_a_loader_without_batches_is_refused():
    with pytest.raises(ValueError, match="the loader has no batches: expected at least one to train on"):
        fit(Toy(), DataLoader(torch.zeros(0), batch_sampler=LengthBuckets(np.zeros(0), 8)), TrainingConfig())


def test_gradients_are_clipped():
    model, norms = Toy(lambda weight, step: 10.0**step * weight), []
    hook = register_optimizer_step_pre_hook(lambda *_: norms.append(float(model.weight.grad)))
    try:
        fit(model, numbers(3), TrainingConfig(n_epochs=1, max_gradient_norm=0.5))
    finally:
        hook.remove()
    assert norms == pytest.approx([0.5] * 3, rel=1e-3)


def test_weight_decay_is_for_matrices_alone():
    model = nn.Linear(2, 2)
    model.forward = lambda batch: 0 * (model.weight.sum() + model.bias.sum())
    before = model.bias.clone(), model.weight.clone()
    fit(model, numbers(5), TrainingConfig(n_epochs=2, learning_rate=0.1, weight_decay=0.5))
    assert torch.equal(model.bias, before[0])
    assert (model.weight.abs() < 0.9 * before[1].abs()).all()


@pytest.mark.parametrize(
    ("n_epochs", "min_steps", "steps_per_epoch", "expected"), [(30, 1200, 24, 50), (30, 1200, 88, 30), (1, 10, 3, 4)]
)
def test_sized_adds_epochs_on_small_data_only(n_epochs, min_steps, steps_per_epoch, expected):
    config = TrainingConfig.sized(n_epochs, min_steps, steps_per_epoch, patience=7)
    assert (config.n_epochs, config.patience) == (expected, 7)
    for n in range(15, 200):
        assert 10 <= math.ceil(n / TrainingConfig.sized(n, 1, 1, n_looks=15).validate_every) <= 22, n


@pytest.mark.parametrize(
    ("name", "value"),
    [("n_epochs", 0), ("validate_every", 0), ("patience", 0), ("learning_rate", 0.0), ("learning_rate", math.nan)],
)
def test_settings_out_of_range_are_refused(name, value):
    with pytest.raises(ValueError, match=name):
        TrainingConfig(**{name: value})


# --- runs that are stopped ---


@pytest.fixture(autouse=True)
def saves_often(monkeypatch):
    monkeypatch.setattr(training, "_SAVE_EVERY", 3)


class StoppedError(Exception):
    pass


class Stopping(nn.Module):
    """A model with dropout and a table, until a step at which the process is as good as killed."""

    def __init__(self, at=10**6, seed=1, table=1.0):
        super().__init__()
        torch.manual_seed(seed)
        self.layers = nn.Sequential(nn.Linear(1, 8), nn.GELU(), nn.Dropout(0.5), nn.Linear(8, 1))
        self.register_buffer("table", torch.tensor([1.0, table]))
        self.left = at

    def forward(self, batch):
        self.left -= 1
        if self.left < 0:
            raise StoppedError
        return ((self.layers(batch[:, None]) - batch.sin()[:, None]) ** 2).mean()

    def equals(self, other):
        return all(torch.equal(value, other.state_dict()[name]) for name, value in self.state_dict().items())


NUMBERS = torch.linspace(-3, 3, 60)
LENGTHS = np.random.default_rng(0).integers(1, 51, size=60)


def in_buckets(data=NUMBERS, seed=5):
    return DataLoader(data, batch_sampler=LengthBuckets(LENGTHS, 8, seed, pool=3))


def shuffled():
    return DataLoader(NUMBERS, batch_size=8, shuffle=True)


def shuffled_by_a_generator():
    return DataLoader(NUMBERS, batch_size=8, shuffle=True, generator=torch.Generator().manual_seed(5))


LOOKS = TrainingConfig(n_epochs=6, validate_every=1, patience=2, learning_rate=0.02, seed=3)
ONE = TrainingConfig(n_epochs=1)


def look(model):
    """A figure that depends on the weights, so that it differs if they do; it falls after some epochs."""
    return -abs(float(model.layers[3].weight.norm()) - 0.45)


@pytest.mark.parametrize(
    ("make_loader", "steps"),  # 8 steps are an epoch
    [(in_buckets, [11, 1, 7]), (in_buckets, [16]), (shuffled, [3, 10]), (shuffled_by_a_generator, [13])],
)
def test_a_stopped_run_ends_with_the_same_weights(tmp_path, make_loader, steps):
    def start(at, folder=None):
        model = Stopping(at)
        return model, fit(model, make_loader(), LOOKS, look, folder=folder)

    complete, expected = start(10**6)
    for at in steps:
        with pytest.raises(StoppedError):
            start(at, tmp_path)
    torch.manual_seed(99)  # as another process might
    resumed, epochs = start(10**6, tmp_path)
    assert [epoch[:3] for epoch in epochs] == [epoch[:3] for epoch in expected]
    assert len(epochs) < LOOKS.n_epochs  # it was stopped early, so that best weights and patience were kept as well
    assert resumed.equals(complete)
    assert len(list(tmp_path.glob("step_*"))) == 1
    assert start(0, tmp_path)[0].equals(complete)  # a finished run is read


@pytest.mark.parametrize(
    ("model", "loader", "settings", "differs"),
    [
        ({}, in_buckets, {"learning_rate": 0.25}, r"learning_rate is 0\.001, this one has 0\.25"),
        ({}, lambda: DataLoader(NUMBERS[:50], batch_size=8), {}, "n_sequences is 60, this one has 50"),
        ({}, lambda: DataLoader(NUMBERS, batch_size=10), {}, "batches is 8 of 8, this one has 6 of 10"),
        ({}, lambda: in_buckets(NUMBERS.flip(0)), {}, "data is"),
        ({}, lambda: in_buckets(seed=6), {}, "order is .*seed 5"),
        ({}, shuffled, {}, "order is .*LengthBuckets, seed 5, this one has RandomSampler, BatchSampler, seed None"),
        ({"table": 2.5}, in_buckets, {}, "model is"),
    ],
)
def test_a_run_of_something_else_is_refused(tmp_path, model, loader, settings, differs):
    fit(Stopping(), in_buckets(), ONE, folder=tmp_path)
    with pytest.raises(ValueError, match=f"holds another run: its {differs}.*Choose another folder"):
        fit(Stopping(**model), loader(), replace(ONE, **settings), folder=tmp_path)


@pytest.mark.parametrize("stopped", [False, True])
def test_global_random_generators_are_neither_used_nor_changed(tmp_path, stopped):
    def draws():
        return random.random(), np.random.random(), torch.rand(1).item()  # noqa: NPY002

    losses = []
    for seed in (1, 2):
        model = Stopping(at=11 if stopped else 10**6)
        random.seed(seed), np.random.seed(seed), torch.manual_seed(seed)  # noqa: NPY002
        expected = draws()
        random.seed(seed), np.random.seed(seed), torch.manual_seed(seed)  # noqa: NPY002
        try:
            losses.append([epoch.loss for epoch in fit(model, shuffled(), LOOKS, look, folder=tmp_path / str(seed))])
        except StoppedError:
            losses.append([])
        assert draws() == expected
    assert losses[0] == losses[1]


@pytest.mark.parametrize("name", ["run.pt", "model.safetensors", "optimizer.bin", "scheduler.bin"])
def test_a_damaged_checkpoint_is_named(tmp_path, name):
    fit(Stopping(), in_buckets(), ONE, folder=tmp_path)
    [checkpoint] = tmp_path.glob("step_*")
    content = (checkpoint / name).read_bytes()
    (checkpoint / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=f"{checkpoint.name} is damaged: delete it"):
        fit(Stopping(), in_buckets(), ONE, folder=tmp_path)


def test_a_run_of_an_older_format_is_no_damaged_one(tmp_path):
    fit(Stopping(), in_buckets(), ONE, folder=tmp_path)
    [file] = tmp_path.glob("step_*/run.pt")
    torch.save({"settings": {"format": 2}, "run": {}}, file)
    with pytest.raises(ValueError, match="holds another run: its format is 2, this one has 3"):
        fit(Stopping(), in_buckets(), ONE, folder=tmp_path)


def test_a_checkpoint_runs_no_code(tmp_path):
    fit(Stopping(), in_buckets(), ONE, folder=tmp_path)
    [checkpoint] = tmp_path.glob("step_*")
    torch.save({"settings": Path("code")}, checkpoint / "run.pt")
    with pytest.raises(ValueError, match=r"is damaged: delete it.*[Ww]eights.only"):
        fit(Stopping(), in_buckets(), ONE, folder=tmp_path)


def test_a_folder_is_for_one_run_at_a_time(tmp_path):
    found, alone, intruder = Stopping(), Stopping(), Stopping()

    def meanwhile(model):
        with pytest.raises(ValueError, match=r"another process trains in .*: wait for it, or choose another folder"):
            fit(intruder, in_buckets(), LOOKS, look, folder=tmp_path)
        return look(model)

    fit(found, in_buckets(), LOOKS, meanwhile, folder=tmp_path)
    fit(alone, in_buckets(), LOOKS, look)
    assert found.equals(alone)


@pytest.mark.slow
def test_a_run_that_is_killed_thirty_times_ends_as_if_it_were_not(tmp_path):
    complete = Stopping()
    expected = fit(complete, in_buckets(), LOOKS, look, folder=tmp_path / "complete")
    rng, n_kills, n_runs = np.random.default_rng(0), 0, 0
    while n_kills < 30:
        n_runs += 1
        folder = tmp_path / str(n_runs)

        def work(folder=folder):
            model = Stopping()
            epochs = fit(model, in_buckets(), LOOKS, look, folder=folder)
            save_file(model.state_dict(), folder / "final.safetensors")
            (folder / "epochs.json").write_text(json.dumps([epoch[:3] for epoch in epochs]), encoding="utf-8")

        longest = 900  # lines; it grows, so that the run comes to its end
        while not killed_at(work, rng.integers(longest), training):
            n_kills, longest = n_kills + 1, longest * 5 // 4
        assert (folder / "final.safetensors").read_bytes() == save(complete.state_dict())
        assert json.loads((folder / "epochs.json").read_text()) == [list(epoch[:3]) for epoch in expected]
        left = sorted(path.name.split("_")[0] for path in folder.iterdir())
        assert left == [".run.lock", "epochs.json", "final.safetensors", "step"]


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
    """51 sequences: processes get unequally many, and of the last batch of three one gets two."""
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


def launched(tmp_path, what):
    """What a function of this file returns in each of two processes."""
    places = [str(Path(__file__).parent), *(str(Path(__file__).parents[up]) for up in (1, 2))]
    program = f"import sys, json; sys.path[:0] = {places}\n"
    program += "import test_training; from accelerate import PartialState\n"
    program += f"found = {what}\n"
    program += f"open(f'{tmp_path}/found_{{PartialState().process_index}}', 'w').write(json.dumps(found))\n"
    program += "PartialState().destroy_process_group()\n"
    (tmp_path / "program.py").write_text(program, encoding="utf-8")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, tmp_path / "program.py"], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads((tmp_path / f"found_{index}").read_text()) for index in range(2)]


@pytest.mark.slow
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
            loader = histories_in_batches(shop.histories, 12, batch_size=20)
            losses[precision] = fit(model, loader, TrainingConfig(n_epochs=2))[-1].loss
        finally:
            AcceleratorState._reset_state(True)
        assert set(seen) == {torch.float32 if precision == "no" else torch.bfloat16}
        assert all(weight.dtype == torch.float32 for weight in model.parameters())
        assert model.forward.__func__ is before.__func__
    assert losses["bf16"] == pytest.approx(losses["no"], rel=0.02)
    assert losses["bf16"] != losses["no"]
