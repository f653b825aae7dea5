"""The training loop of the small models, on accelerate.

The model is any module whose `forward(batch)` returns a scalar loss. accelerate places it: one process on CPU or GPU,
or several started by `accelerate launch` or `torchrun`. Processes share each batch, so that a run takes the same steps
on any number of them. Given a folder, a stopped run resumes from its newest checkpoint.
"""

import logging
import math
import random
import shutil
import time
from collections.abc import Callable, Iterator, Sized
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, is_dataclass
from pathlib import Path
from pickle import UnpicklingError  # what torch raises for a damaged file; nothing is unpickled here
from typing import Any, NamedTuple, Self, cast

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import is_initialized
from accelerate.utils import broadcast_object_list, find_batch_size, send_to_device, set_seed
from filelock import FileLock, Timeout
from safetensors import SafetensorError
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from semid_lib.workbench.weights import check_config, digest

_FORMAT = 3
_SAVE_EVERY = 1000  # steps
_DAMAGED = (ValueError, KeyError, TypeError, OSError, RuntimeError, EOFError, SafetensorError, UnpicklingError)


@dataclass(frozen=True)
class TrainingConfig:
    """How a small model is trained; `next_item.recipes` has the settings of chapter 07."""

    n_epochs: int = 30
    learning_rate: float = 1e-3  # at its peak: linear warm-up, then half a cosine (Loshchilov & Hutter 2017)
    warmup_share: float = 0.1  # of all steps
    weight_decay: float = 0.05
    max_gradient_norm: float = 1.0
    validate_every: int = 2  # epochs between two validations
    patience: int = 3  # validations without improvement before training stops
    seed: int = 0

    def __post_init__(self):
        check_config(self, {"learning_rate": 1e-12, "warmup_share": 0, "weight_decay": 0, "seed": 0})

    @classmethod
    def sized(cls, n_epochs: int, min_steps: int, steps_per_epoch: int, n_looks: int = 15, **settings) -> Self:
        """Settings with `n_epochs`, but at least `min_steps` steps, and about `n_looks` validations."""
        n_epochs = max(n_epochs, math.ceil(min_steps / steps_per_epoch))
        return cls(n_epochs=n_epochs, validate_every=max(1, round(n_epochs / n_looks)), **settings)


class Epoch(NamedTuple):
    """The record of one epoch; `validation` is `nan` for an epoch without one."""

    epoch: int
    loss: float
    validation: float
    seconds: float  # of training without validation, since the start of the run


@dataclass
class _Run:
    """The state of a run that accelerate does not keep."""

    epoch: int = 1  # the current one
    order: list[list[int]] = field(default_factory=list)  # its batches; none before it has begun
    step: int = 0  # how many of them are done
    loss: float = 0.0  # their sum
    seconds: float = 0.0
    epochs: list[Epoch] = field(default_factory=list)
    best: float = -math.inf  # on validation
    best_weights: dict[str, torch.Tensor] = field(default_factory=dict)
    looks_since: int = 0  # validations since the best

    def is_over(self, config: TrainingConfig) -> bool:
        return self.epoch > config.n_epochs or self.looks_since >= config.patience


def fit(
    model: torch.nn.Module,
    loader: DataLoader,
    config: TrainingConfig,
    validate: Callable[[torch.nn.Module], float] | None = None,
    progress: bool = False,
    folder: str | Path | None = None,
) -> list[Epoch]:
    """Train the model in place and leave it with its best weights on validation.

    AdamW without weight decay on vectors (biases, norms), clipped gradients, bfloat16 where the GPU has it. The global
    random generators are seeded inside, and restored afterwards. Several processes each take every n-th sequence of a
    batch; their losses are weighted by `model.n_targets(batch)` if that method exists, else by their sequences.

    Parameters
    ----------
    model : torch.nn.Module
    loader : DataLoader
        Batches for `model(batch) -> loss`.
    config : TrainingConfig
    validate : callable, optional
        The figure to maximize, called on the model in evaluation mode every `validate_every` epochs; training stops
        after `patience` validations without a better one. Without it the last weights are kept.
    progress : bool
    folder : path, optional
        For checkpoints, every 1,000 steps and after each epoch; only the newest is kept, and each is written
        atomically. A run that finds one resumes from it, and on CPU ends with the same weights as without a stop.

    Raises
    ------
    ValueError
        If the loader is empty, if the loss or the validation figure stops being finite, if the folder holds another run
        (other data, model, config or number of processes) or a damaged one, or if another process trains in it.
    """
    if not len(loader):
        raise ValueError("the loader has no batches: expected at least one to train on")
    accelerator = _accelerator()
    with _random_states_kept(), _alone_in(folder, accelerator):
        set_seed(config.seed, device_specific=True)
        return _train(accelerator, model, loader, config, validate, progress, folder)


def _train(accelerator, model, loader, config, validate, progress, folder) -> list[Epoch]:
    n_steps = config.n_epochs * len(loader)
    optimizer = _adamw(model, config)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, warmup_then_cosine(n_steps, config.warmup_share))
    identity = {} if folder is None else _identity(model, loader)
    wrapped, optimizer, scheduler = accelerator.prepare(model, optimizer, scheduler)
    if accelerator.num_processes > 1:
        wrapped.broadcast_buffers = False  # constant tables, which would be sent at every step
    run, checkpoints = _Run(), None
    if folder is not None:
        checkpoints = _Checkpoints(accelerator, Path(folder), loader, config, identity)
        run = checkpoints.latest()
    shown = progress and accelerator.is_main_process
    done = (run.epoch - 1) * len(loader) + run.step
    with tqdm(total=n_steps, initial=done, desc="training", unit="step", disable=not shown) as bar:
        while not run.is_over(config):
            loss = _one_epoch(accelerator, wrapped, loader, optimizer, scheduler, config, run, bar, checkpoints)
            look = validate is not None and (run.epoch % config.validate_every == 0 or run.epoch == config.n_epochs)
            figure = _in_evaluation(accelerator, model, validate) if look else math.nan
            if look and not math.isfinite(figure):
                raise ValueError(f"validate returned {figure} after epoch {run.epoch}: expected a finite number")
            run.epochs.append(Epoch(run.epoch, loss, figure, run.seconds))
            bar.set_postfix(epoch=run.epoch, loss=f"{loss:.3f}", validation=f"{figure:.4f}")
            run.looks_since += look
            if look and figure > run.best:
                weights = {name: value.detach().clone() for name, value in model.state_dict().items()}
                run.best, run.best_weights, run.looks_since = figure, weights, 0
            run.epoch, run.order, run.step, run.loss = run.epoch + 1, [], 0, 0.0
            if checkpoints is not None:
                checkpoints.save(run)
    accelerator.unwrap_model(wrapped, keep_fp32_wrapper=False)  # forward as it was before bfloat16
    if run.best_weights:
        model.load_state_dict(run.best_weights)
    model.eval()
    return run.epochs


def warmup_then_cosine(n_steps: int, warmup_share: float) -> Callable[[int], float]:
    """The learning rate of a step as a share of its peak: linear warm-up, then half a cosine down to 0."""
    n_warmup = max(1, round(warmup_share * n_steps))

    def share(step: int) -> float:
        if step < n_warmup:
            return (step + 1) / n_warmup
        return 0.5 * (1 + math.cos(math.pi * (step - n_warmup) / max(1, n_steps - n_warmup)))

    return share


def _one_epoch(accelerator, model, loader, optimizer, scheduler, config, run, bar, checkpoints) -> float:
    model.train()
    total, before, started = torch.tensor(run.loss, device=accelerator.device), run.seconds, time.perf_counter()

    def note() -> None:
        run.loss, run.seconds = float(accelerator.reduce(total, "mean")), before + time.perf_counter() - started

    run.order = run.order or _order(loader)
    for batch in _batches(accelerator, loader, run.order[run.step :]):
        batch = send_to_device(batch, accelerator.device)  # noqa: PLW2901
        loss = model(batch)
        if accelerator.num_processes > 1:
            loss = loss * _weight(accelerator, model, batch)
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(model.parameters(), config.max_gradient_norm)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad(set_to_none=True)
        total += loss.detach()
        run.step += 1
        bar.update()
        if checkpoints is not None and run.step % _SAVE_EVERY == 0 and run.step < len(run.order):
            note()
            checkpoints.save(run)
    note()
    mean = run.loss / len(run.order)
    if not math.isfinite(mean):
        raise ValueError(f"the loss became {mean}; try a smaller learning_rate than {config.learning_rate}")
    return mean


def _order(loader: DataLoader) -> list[list[int]]:
    """The batches of the next epoch as indices, drawn as by iterating over the loader; process 0 draws for all."""
    indices: DataLoader = DataLoader(
        cast("Any", range(len(cast("Sized", loader.dataset)))), batch_sampler=loader.batch_sampler, collate_fn=list
    )
    [order] = broadcast_object_list([list(indices)])
    return order


def _batches(accelerator: Accelerator, loader: DataLoader, order: list[list[int]]) -> DataLoader:
    """The share of this process in each batch."""
    n, index = accelerator.num_processes, accelerator.process_index
    # if sequences are fewer than processes, each is repeated, which does not change the mean
    shares = [(batch if len(batch) >= n else batch * n)[index::n] for batch in order]
    return _reader(loader, shares)


def _reader(loader: DataLoader, batches: list[list[int]]) -> DataLoader:
    """The data in other batches; iterating draws a seed, here from a separate generator."""
    return DataLoader(
        loader.dataset,
        batch_sampler=batches,
        generator=torch.Generator(),
        collate_fn=loader.collate_fn,
        num_workers=loader.num_workers,
        pin_memory=loader.pin_memory,
    )


def _weight(accelerator: Accelerator, model: torch.nn.Module, batch) -> torch.Tensor:
    """The weight of this process's loss that makes the mean over processes the mean over the whole batch."""
    n_targets = getattr(accelerator.unwrap_model(model), "n_targets", find_batch_size)(batch)
    n_targets = torch.as_tensor(n_targets, dtype=torch.float32, device=accelerator.device)
    return n_targets / accelerator.reduce(n_targets, "mean")


def _in_evaluation(accelerator: Accelerator, model: torch.nn.Module, validate) -> float:
    figure = math.nan
    model.eval()
    if accelerator.is_main_process:
        with torch.inference_mode():
            figure = float(validate(model))
    return broadcast_object_list([figure])[0]


def _accelerator() -> Accelerator:
    precision = None  # keep what is set up, by transformers' Trainer for example
    if not is_initialized():
        precision = "bf16" if torch.cuda.is_available() and torch.cuda.is_bf16_supported() else "no"
    return Accelerator(
        cpu=not torch.accelerator.is_available(),  # otherwise processes of `torchrun` would run separately
        mixed_precision=precision,
        step_scheduler_with_optimizer=False,  # one step per batch for any number of processes
    )


def _adamw(model: torch.nn.Module, config: TrainingConfig) -> torch.optim.AdamW:
    parameters = [p for p in model.parameters() if p.requires_grad]
    matrices = {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": config.weight_decay}
    vectors = {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0}
    return torch.optim.AdamW([matrices, vectors], lr=config.learning_rate)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed torch's random numbers on the CPU inside the block, for initial weights, and restore them afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


@contextmanager
def _random_states_kept() -> Iterator[None]:
    """Restore the global random generators of Python, NumPy and torch after the block."""
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002  not ours to change
    devices = range(torch.cuda.device_count()) if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)  # noqa: NPY002


@contextmanager
def _alone_in(folder: str | Path | None, accelerator: Accelerator) -> Iterator[None]:
    """Keep other runs out of the folder; the operating system frees the lock of a process that is killed."""
    if folder is None:
        yield
        return
    Path(folder).mkdir(parents=True, exist_ok=True)
    lock, is_free = FileLock(Path(folder) / ".run.lock", timeout=0), True
    if accelerator.is_main_process:
        try:
            lock.acquire()
        except Timeout:
            is_free = False
    if not broadcast_object_list([is_free])[0]:
        raise ValueError(f"another process trains in {folder}: wait for it, or choose another folder")
    try:
        yield
    finally:
        lock.release()


def _identity(model: torch.nn.Module, loader: DataLoader) -> dict[str, Any]:
    """What a run must share with the one in its folder: modules, config, shapes and buffers of the model; all data."""
    config = getattr(model, "config", None)
    shapes = {name: f"{weight.dtype} {tuple(weight.shape)}" for name, weight in model.named_parameters()}
    parts = [repr(model), repr(config) if is_dataclass(config) else "", dict(model.named_buffers()), shapes]
    n, sampler = len(cast("Sized", loader.dataset)), loader.batch_sampler
    size = getattr(sampler, "batch_size", 1)
    blocks = [list(range(start, min(start + size, n))) for start in range(0, n, size)]
    order = f"{type(loader.sampler).__name__}, {type(sampler).__name__}, seed {getattr(sampler, 'seed', None)}"
    shown = {"n_sequences": n, "batches": f"{len(loader)} of {size}", "order": order}
    return shown | {"model": digest(parts), "data": digest(_reader(loader, blocks))}


class _Checkpoints:
    """The newest state of a run in `folder/step_<n>`, complete as soon as it has that name.

    accelerate writes model, optimizer, schedule and random states; `run.pt` has the rest. Both are read with
    `weights_only`, which runs no code of the file.
    """

    def __init__(self, accelerator, folder: Path, loader: DataLoader, config, identity: dict):
        self.accelerator, self.folder, self.loader, self.config = accelerator, folder, loader, config
        processes = {"n_processes": accelerator.num_processes}
        self.settings = {"format": _FORMAT} | asdict(config) | identity | processes
        logging.getLogger("accelerate.utils.other").setLevel(logging.ERROR)  # at each save: tied weights are kept once

    def save(self, run: _Run) -> None:
        target = self.folder / f"step_{(run.epoch - 1) * len(self.loader) + run.step:09d}"
        partial = target.with_suffix(".partial")
        if self.accelerator.is_main_process:
            shutil.rmtree(partial, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        self.accelerator.save_state(str(partial))
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            state = vars(run) | {"epochs": [tuple(epoch) for epoch in run.epochs]}
            # states that decide the order of later epochs: the batch sampler's own, and the sampler's generator
            sampler, generator = self.loader.batch_sampler, getattr(self.loader.sampler, "generator", None)
            order = {
                "sampler": cast("Any", sampler).state_dict() if hasattr(sampler, "state_dict") else None,
                "generator": None if generator is None else generator.get_state(),
            }
            torch.save({"settings": self.settings, "run": state} | order, partial / "run.pt")
            partial.replace(target)
            for other in self.folder.glob("step_*"):
                if other != target:
                    shutil.rmtree(other)
        self.accelerator.wait_for_everyone()

    def latest(self) -> _Run:
        """The run of the newest checkpoint, with all states restored; a new run if there is none."""
        found = sorted(path for path in self.folder.glob("step_*") if path.suffix != ".partial")
        if not found:
            return _Run()
        try:
            saved = torch.load(found[-1] / "run.pt", map_location="cpu", weights_only=True)
            other = [name for name, value in self.settings.items() if saved["settings"].get(name) != value]
            if not other or other == ["n_processes"]:
                run = _Run(**saved["run"] | {"epochs": [Epoch(*epoch) for epoch in saved["run"]["epochs"]]})
                if not other or run.is_over(self.config):  # a finished run may have been trained by any number of them
                    if saved.get("sampler") is not None:
                        cast("Any", self.loader.batch_sampler).load_state_dict(saved["sampler"])
                    if saved.get("generator") is not None:
                        cast("Any", self.loader.sampler).generator.set_state(saved["generator"])
                    self.accelerator.load_state(str(found[-1]))
                    return run
        except _DAMAGED as error:
            raise ValueError(f"{found[-1]} is damaged: delete it to train from the start ({error!r})") from error
        differs = f"its {other[0]} is {saved['settings'].get(other[0])}, this one has {self.settings[other[0]]}"
        raise ValueError(f"{self.folder} holds another run: {differs}. Choose another folder, or delete that run")
