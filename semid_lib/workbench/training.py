"""One visible training loop for the small models, on accelerate.

The model is any module whose `forward(batch)` returns a scalar loss. accelerate places it: one process on CPU or GPU,
or several started by `accelerate launch` or `torchrun`. A batch of the loader is shared out among the processes, so
that a run takes the same steps on any number of them. Given a folder, a run that was stopped resumes where it was.
"""

import hashlib
import json
import logging
import math
import random
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, is_dataclass
from pathlib import Path
from pickle import UnpicklingError  # what torch raises for a damaged file; nothing is pickled here
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import is_initialized
from accelerate.utils import broadcast_object_list, find_batch_size, send_to_device, set_seed
from filelock import FileLock, Timeout
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch.utils.data import DataLoader, Sampler
from tqdm.auto import tqdm

_FORMAT = 2


@dataclass(frozen=True)
class TrainingConfig:
    """How a small model is trained; the recipes of chapter 07 are in `next_item`."""

    n_epochs: int = 30
    learning_rate: float = 1e-3  # at its peak: linear warm-up, then half a cosine (Loshchilov & Hutter 2017)
    warmup_share: float = 0.1  # of all steps
    weight_decay: float = 0.05
    max_gradient_norm: float = 1.0
    validate_every: int = 2  # epochs between two looks at the validation users
    patience: int = 3  # looks without improvement before training stops
    seed: int = 0

    def __post_init__(self):
        for name in ("n_epochs", "validate_every", "patience"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate must be positive, got {self.learning_rate}")

    @classmethod
    def sized(cls, n_epochs: int, min_steps: int, steps_per_epoch: int, n_looks: int = 15, **settings) -> Self:
        """`n_epochs`, or more on a small data set, where they would be fewer than `min_steps` steps.

        About `n_looks` looks at the validation users are spread over them.

        >>> TrainingConfig.sized(30, min_steps=1200, steps_per_epoch=24).n_epochs
        50
        """
        n_epochs = max(n_epochs, math.ceil(min_steps / steps_per_epoch))
        return cls(n_epochs=n_epochs, validate_every=max(1, round(n_epochs / n_looks)), **settings)


class Epoch(NamedTuple):
    """What one epoch did; `validation` is `nan` for epochs without a look at the validation users."""

    epoch: int
    loss: float
    validation: float
    seconds: float  # training alone, since the start of the run


class LengthBuckets(Sampler[list[int]]):
    """Batches of sequences of about equal length, in another random order every epoch.

    Sequences are shuffled, cut into pools of `pool` batches, sorted by length within a pool, and the batches of all
    pools shuffled again: padding falls to a few per cent and the composition of batches stays random.

    >>> sorted(sorted(batch) for batch in LengthBuckets(np.array([9, 1, 9, 1]), batch_size=2))
    [[0, 2], [1, 3]]
    """

    def __init__(self, lengths: np.ndarray, batch_size: int, seed: int = 0, pool: int = 50):
        self.lengths, self.batch_size, self.seed, self.pool = np.asarray(lengths), batch_size, seed, pool
        self.rng = np.random.default_rng(seed)

    def __len__(self) -> int:
        return math.ceil(len(self.lengths) / self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        order = self.rng.permutation(len(self.lengths))
        span = self.batch_size * self.pool
        batches = []
        for start in range(0, len(order), span):
            chunk = order[start : start + span]
            chunk = chunk[np.argsort(self.lengths[chunk], kind="stable")]
            batches += [chunk[i : i + self.batch_size].tolist() for i in range(0, len(chunk), self.batch_size)]
        for i in self.rng.permutation(len(batches)):
            yield batches[i]

    def state_dict(self) -> dict:
        """What the order of the next epochs hangs on; JSON."""
        return self.rng.bit_generator.state

    def load_state_dict(self, state: dict) -> None:
        self.rng.bit_generator.state = state


@dataclass
class _Run:
    """Where a run is."""

    epoch: int = 1  # the one under way
    order: list[list[int]] = field(default_factory=list)  # its batches; none before it has begun
    step: int = 0  # how many of them are done
    loss: float = 0.0  # their sum
    seconds: float = 0.0
    epochs: list[Epoch] = field(default_factory=list)
    best: float = -math.inf  # on validation
    best_weights: dict[str, torch.Tensor] = field(default_factory=dict)
    looks_since: int = 0


def fit(
    model: torch.nn.Module,
    loader: DataLoader,
    config: TrainingConfig,
    validate: Callable[[torch.nn.Module], float] | None = None,
    progress: bool = False,
    folder: str | Path | None = None,
    save_every: int = 1000,
) -> list[Epoch]:
    """Train the model in place and leave it with its best weights on validation; one record per epoch.

    AdamW without weight decay on vectors (biases, norms), clipped gradients; bfloat16 where the GPU has it. The random
    generators of Python, NumPy and torch are seeded within, and left as they were before.

    Several processes each take every n-th sequence of a batch. The loss is a mean over the whole batch: the means of
    the processes count by `model.n_targets(batch)` if there is such a method, else by their sequences. Validation,
    the progress bar and checkpoints are for the first process alone.

    Parameters
    ----------
    model : torch.nn.Module
    loader : DataLoader
        Batches for `model(batch) -> loss`.
    config : TrainingConfig
    validate : callable, optional
        The figure to maximize, called on the model in evaluation mode every `validate_every` epochs; training stops
        after `patience` looks without a better one. Without it the last weights are kept.
    progress : bool
    folder : path, optional
        For checkpoints, every `save_every` steps and after each epoch; only the newest is kept, and each is written
        atomically. A run that finds one resumes from it, and on CPU ends with the same weights as a run that was never
        stopped.
    save_every : int

    Returns
    -------
    list of Epoch

    Raises
    ------
    ValueError
        If the loss or the validation figure stops being finite, if the folder holds another run (of other data, another
        model, config or number of processes) or a damaged one, or if another process trains in it.
    """
    accelerator = _accelerator()
    with _random_states_kept(), _alone_in(folder, accelerator):
        set_seed(config.seed, device_specific=True)
        return _train(accelerator, model, loader, config, validate, progress, folder, save_every)


def _train(accelerator, model, loader, config, validate, progress, folder, save_every) -> list[Epoch]:
    n_steps = config.n_epochs * len(loader)
    optimizer = _adamw(model, config)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, warmup_then_cosine(n_steps, config.warmup_share))
    identity = {} if folder is None else _identity(model, loader)
    wrapped, optimizer, scheduler = accelerator.prepare(model, optimizer, scheduler)
    if accelerator.num_processes > 1:
        wrapped.broadcast_buffers = False  # tables that nothing trains; they would be sent at every step
    checkpoints = None
    if folder is not None:
        checkpoints = _Checkpoints(accelerator, Path(folder), loader, asdict(config) | identity, save_every)
    run = _Run() if checkpoints is None else checkpoints.latest()
    shown = progress and accelerator.is_main_process
    done = (run.epoch - 1) * len(loader) + run.step
    with tqdm(total=n_steps, initial=done, desc="training", unit="step", disable=not shown) as bar:
        while run.epoch <= config.n_epochs and run.looks_since < config.patience:
            loss = _one_epoch(accelerator, wrapped, loader, optimizer, scheduler, config, run, bar, checkpoints)
            look = validate is not None and (run.epoch % config.validate_every == 0 or run.epoch == config.n_epochs)
            figure = _in_evaluation(accelerator, model, validate) if look else math.nan
            if look and not math.isfinite(figure):
                raise ValueError(f"validate returned {figure} after epoch {run.epoch}: expected a finite number")
            run.epochs.append(Epoch(run.epoch, loss, figure, run.seconds))
            bar.set_postfix(epoch=run.epoch, loss=f"{loss:.3f}", validation=f"{figure:.4f}")
            if look and figure > run.best:
                weights = {name: value.detach().clone() for name, value in model.state_dict().items()}
                run.best, run.best_weights, run.looks_since = figure, weights, 0
            elif look:
                run.looks_since += 1
            run.epoch, run.order, run.step, run.loss = run.epoch + 1, [], 0, 0.0
            if checkpoints is not None:
                checkpoints.save(run)
    accelerator.unwrap_model(wrapped, keep_fp32_wrapper=False)  # forward as it was before bfloat16
    if run.best_weights:
        model.load_state_dict(run.best_weights)
    model.eval()
    return run.epochs


def warmup_then_cosine(n_steps: int, warmup_share: float) -> Callable[[int], float]:
    """The learning rate of a step as a share of its peak: up in a line, down to 0 along half a cosine."""
    n_warmup = max(1, round(warmup_share * n_steps))

    def share(step: int) -> float:
        if step < n_warmup:
            return (step + 1) / n_warmup
        return 0.5 * (1 + math.cos(math.pi * (step - n_warmup) / max(1, n_steps - n_warmup)))

    return share


def _one_epoch(accelerator, model, loader, optimizer, scheduler, config, run, bar, checkpoints) -> float:
    model.train()
    total, before, started = torch.tensor(run.loss, device=accelerator.device), run.seconds, time.perf_counter()
    if not run.order:
        run.order = _order(loader)
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
        if checkpoints is not None and run.step % checkpoints.save_every == 0 and run.step < len(run.order):
            run.loss = float(accelerator.reduce(total, "mean"))
            run.seconds = before + time.perf_counter() - started
            checkpoints.save(run)
    mean = float(accelerator.reduce(total, "mean")) / len(run.order)
    run.seconds = before + time.perf_counter() - started
    if not math.isfinite(mean):
        raise ValueError(f"the loss became {mean}; try a smaller learning_rate than {config.learning_rate}")
    return mean


def _order(loader: DataLoader) -> list[list[int]]:
    """The batches of the next epoch as indices, by the very draws that iterating over the loader would make.

    The first process draws for all of them.
    """
    indices = DataLoader(range(len(loader.dataset)), batch_sampler=loader.batch_sampler, collate_fn=list)
    [order] = broadcast_object_list([list(indices)])
    return order


def _batches(accelerator: Accelerator, loader: DataLoader, order: list[list[int]]) -> DataLoader:
    """What this process takes of the batches."""
    n, index = accelerator.num_processes, accelerator.process_index
    # with fewer sequences than processes each is repeated, which leaves the mean as it is
    shares = [(batch if len(batch) >= n else batch * n)[index::n] for batch in order]
    how = {name: getattr(loader, name) for name in ("collate_fn", "num_workers", "pin_memory")}
    generator = torch.Generator()  # iterating draws a number, which was drawn in `_order`
    return DataLoader(loader.dataset, batch_sampler=shares, generator=generator, **how)


def _weight(accelerator: Accelerator, model: torch.nn.Module, batch) -> torch.Tensor:
    """What the loss of this process counts, so that the mean over processes is the mean over the whole batch."""
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
    precision = None  # what was begun, by transformers' Trainer for example, stays
    if not is_initialized():
        precision = "bf16" if torch.cuda.is_available() and torch.cuda.is_bf16_supported() else "no"
    return Accelerator(
        cpu=not torch.accelerator.is_available(),  # else processes that `torchrun` starts would not know of each other
        mixed_precision=precision,
        step_scheduler_with_optimizer=False,  # one step of the schedule a batch, however many processes share it
    )


def _adamw(model: torch.nn.Module, config: TrainingConfig) -> torch.optim.AdamW:
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.learning_rate)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Draw on the CPU from a seed, such as first weights; torch's global generator is left as it was.

    Examples
    --------
    >>> with seeded(3):
    ...     first = torch.rand(2)
    >>> with seeded(3):
    ...     torch.equal(torch.rand(2), first)
    True
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


@contextmanager
def _random_states_kept() -> Iterator[None]:
    """Leave the global generators of Python, NumPy and torch as they were, whatever is drawn or seeded within."""
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002  what others use is kept for them
    devices = range(torch.cuda.device_count()) if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)  # noqa: NPY002


# --- checkpoints ---


@contextmanager
def _alone_in(folder: str | Path | None, accelerator: Accelerator) -> Iterator[None]:
    """Keep other runs out of the folder; the operating system frees the lock of a process that is killed."""
    if folder is None:
        yield
        return
    Path(folder).mkdir(parents=True, exist_ok=True)
    lock, is_free = FileLock(Path(folder) / "lock", timeout=0), True
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
        if lock.is_locked:
            Path(lock.lock_file).unlink(missing_ok=True)  # first: a process that opened it before sees that it is gone
            lock.release()


def _identity(model: torch.nn.Module, loader: DataLoader) -> dict[str, Any]:
    """What a run must share with the one that its folder holds, besides the config; JSON.

    Of the model: its modules, the config if that is a dataclass, the shapes of its weights and the content of its
    buffers, which training leaves alone. Of the data: everything that batches are made of.
    """
    config = getattr(model, "config", None)
    parts = [repr(model), repr(config) if is_dataclass(config) else "", dict(model.named_buffers())]
    shapes = {name: f"{weight.dtype} {tuple(weight.shape)}" for name, weight in model.named_parameters()}
    n, sampler = len(loader.dataset), loader.batch_sampler
    size = getattr(sampler, "batch_size", 1)
    blocks = [list(range(start, min(start + size, n))) for start in range(0, n, size)]
    # its own generator, since iterating draws a number
    how = {"collate_fn": loader.collate_fn, "generator": torch.Generator()}
    batches = DataLoader(loader.dataset, batch_sampler=blocks, **how)
    return {
        "n_sequences": n,
        "n_batches": len(loader),
        "batch_size": size,
        "order": f"{type(loader.sampler).__name__}, {type(sampler).__name__}, seed {getattr(sampler, 'seed', None)}",
        "model": _digest([*parts, shapes]),
        "data": _digest(batches),
    }


def _digest(parts) -> str:
    found = hashlib.sha256()
    for part in parts:
        _add(found, part)
    return found.hexdigest()[:16]


def _add(found, part: Any) -> None:
    match part:
        case np.ndarray() if part.dtype.kind in "OUS":
            _add(found, part.tolist())
        case torch.Tensor() | np.ndarray() | np.generic():
            array = torch.as_tensor(part).detach().cpu().contiguous()
            found.update(f"{array.dtype} {tuple(array.shape)}".encode())
            found.update(array.reshape(-1).view(torch.uint8).numpy())
        case Mapping():
            _add(found, list(part.items()))
        case list() | tuple():
            found.update(f"{len(part)} of".encode())
            for each in part:
                _add(found, each)
        case str() | bytes() | int() | float() | None:
            found.update(repr(part).encode())
        case _:
            _add(found, vars(part))


@contextmanager
def _without_warnings(name: str) -> Iterator[None]:
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


@contextmanager
def _readable(checkpoint: Path) -> Iterator[None]:
    try:
        yield
    except (ValueError, KeyError, OSError, RuntimeError, SafetensorError, UnpicklingError) as error:
        raise ValueError(f"{checkpoint} is damaged: delete it to train from the start ({error!r})") from error


class _Checkpoints:
    """The newest state of a run in `folder/step_<n>`, complete as soon as it has that name.

    accelerate writes model, optimizer, schedule and the random states of each process, and reads them with torch's
    `weights_only`, which runs no code of the file; `run.json` and `run.safetensors` hold the rest.
    """

    def __init__(self, accelerator, folder: Path, loader: DataLoader, settings: dict[str, Any], save_every: int):
        if save_every < 1:
            raise ValueError(f"save_every must be at least 1, got {save_every}")
        self.accelerator, self.folder, self.loader, self.save_every = accelerator, folder, loader, save_every
        self.settings = {"format": _FORMAT, "n_processes": accelerator.num_processes, **settings}

    def save(self, run: _Run) -> None:
        step = (run.epoch - 1) * len(self.loader) + run.step
        target = self.folder / f"step_{step:09d}"
        partial = target.with_suffix(".partial")
        if self.accelerator.is_main_process:
            shutil.rmtree(partial, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        with _without_warnings("accelerate.utils.other"):  # each save would tell that a T5's tied weights are kept once
            self.accelerator.save_state(str(partial))
        if self.accelerator.is_main_process:
            self._write(run, partial)
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            partial.replace(target)
            for other in self.folder.glob("step_*"):
                if other != target:
                    shutil.rmtree(other)
        self.accelerator.wait_for_everyone()

    def _write(self, run: _Run, folder: Path) -> None:
        tensors = {f"best.{name}": value for name, value in run.best_weights.items()}
        tensors["order"] = torch.tensor([index for batch in run.order for index in batch], dtype=torch.int64)
        tensors["sizes"] = torch.tensor([len(batch) for batch in run.order], dtype=torch.int64)
        if self._generator() is not None:
            tensors["generator"] = self._generator().get_state()
        save_file(tensors, folder / "run.safetensors")
        names = ("epoch", "step", "loss", "seconds", "epochs", "best", "looks_since")
        content = {"settings": self.settings, "run": {name: getattr(run, name) for name in names}}
        if hasattr(self.loader.batch_sampler, "state_dict"):
            content["sampler"] = self.loader.batch_sampler.state_dict()
        (folder / "run.json").write_text(json.dumps(content), encoding="utf-8")

    def latest(self) -> _Run:
        """The run of the newest checkpoint, all states set as they were; a new run if there is none."""
        found = sorted(path for path in self.folder.glob("step_*") if path.suffix != ".partial")
        if not found:
            return _Run()
        newest = found[-1]
        with _readable(newest):
            content = json.loads((newest / "run.json").read_text(encoding="utf-8"))
            settings, at = content["settings"], content["run"]
        self._check(settings, is_over=at["epoch"] > settings["n_epochs"] or at["looks_since"] >= settings["patience"])
        with _readable(newest):
            tensors = load_file(newest / "run.safetensors")
            if self._generator() is not None:
                self._generator().set_state(tensors["generator"])
            if "sampler" in content:
                self.loader.batch_sampler.load_state_dict(content["sampler"])
            self.accelerator.load_state(str(newest))
        run = _Run(**at | {"epochs": [Epoch(*epoch) for epoch in at["epochs"]]})
        indices = iter(tensors["order"].tolist())
        run.order = [[next(indices) for _ in range(size)] for size in tensors["sizes"].tolist()]
        best = {name[5:]: value for name, value in tensors.items() if name.startswith("best.")}
        run.best_weights = send_to_device(best, self.accelerator.device)
        return run

    def _check(self, held: dict, is_over: bool) -> None:
        for name, value in self.settings.items():
            if name == "n_processes" and is_over:
                continue  # a finished run may have been trained by any number of them
            if held.get(name) != value:
                raise ValueError(
                    f"{self.folder} holds another run: its {name} is {held.get(name)}, this one has {value}. "
                    "Choose another folder, or delete that run"
                )

    def _generator(self) -> torch.Generator | None:
        """A generator of the loader's own, if its order hangs on one."""
        return getattr(self.loader.sampler, "generator", None)
