"""One visible training loop for the small models, on accelerate.

The model is any module whose `forward(batch)` returns a scalar loss. accelerate places it: one process on CPU or GPU,
or several started with `accelerate launch`, without a line changed here.
"""

import copy
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple, Self

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch.utils.data import DataLoader, Sampler
from tqdm import tqdm


@dataclass(frozen=True)
class TrainingConfig:
    """How a small model is trained; the defaults are the recipe of chapter 07."""

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
        self.lengths, self.batch_size, self.pool = np.asarray(lengths), batch_size, pool
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


def fit(
    model: torch.nn.Module,
    loader: DataLoader,
    config: TrainingConfig,
    validate: Callable[[torch.nn.Module], float] | None = None,
    progress: bool = False,
) -> list[Epoch]:
    """Train the model in place and leave it with its best weights on validation; one record per epoch.

    loader: batches for `model(batch) -> loss`. validate: the figure to maximize, called on the model in evaluation
    mode every `validate_every` epochs; training stops after `patience` looks without a better one. Without it the last
    weights are kept. AdamW without weight decay on vectors (biases, norms), clipped gradients.
    Raises ValueError when the loss stops being finite.
    """
    set_seed(config.seed)
    accelerator = Accelerator()
    optimizer = _adamw(model, config)
    n_steps = config.n_epochs * len(loader)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, warmup_then_cosine(n_steps, config.warmup_share))
    wrapped, optimizer, loader, scheduler = accelerator.prepare(model, optimizer, loader, scheduler)
    best, best_weights, looks_since, epochs, seconds = -math.inf, None, 0, [], 0.0
    with tqdm(total=n_steps, desc="training", unit="step", disable=not progress) as bar:
        for epoch in range(1, config.n_epochs + 1):
            started = time.perf_counter()
            loss = _one_epoch(accelerator, wrapped, loader, optimizer, scheduler, config, bar)
            seconds += time.perf_counter() - started
            look = validate is not None and (epoch % config.validate_every == 0 or epoch == config.n_epochs)
            figure = _in_evaluation(model, validate) if look else math.nan
            epochs.append(Epoch(epoch, loss, figure, seconds))
            bar.set_postfix(epoch=epoch, loss=f"{loss:.3f}", validation=f"{figure:.4f}")
            if look and figure > best:
                best, best_weights, looks_since = figure, copy.deepcopy(model.state_dict()), 0
            elif look:
                looks_since += 1
            if looks_since >= config.patience:
                break
    if best_weights is not None:
        model.load_state_dict(best_weights)
    model.eval()
    return epochs


def warmup_then_cosine(n_steps: int, warmup_share: float) -> Callable[[int], float]:
    """The learning rate of a step as a share of its peak: up in a line, down to 0 along half a cosine."""
    n_warmup = max(1, round(warmup_share * n_steps))

    def share(step: int) -> float:
        if step < n_warmup:
            return (step + 1) / n_warmup
        return 0.5 * (1 + math.cos(math.pi * (step - n_warmup) / max(1, n_steps - n_warmup)))

    return share


def _one_epoch(accelerator, model, loader, optimizer, scheduler, config, bar) -> float:
    model.train()
    total = torch.zeros((), device=accelerator.device)
    for batch in loader:
        loss = model(batch)
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(model.parameters(), config.max_gradient_norm)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad(set_to_none=True)
        total += loss.detach()
        bar.update()
    mean = float(total) / len(loader)
    if not math.isfinite(mean):
        raise ValueError(f"the loss became {mean}; try a smaller learning_rate than {config.learning_rate}")
    return mean


def _in_evaluation(model: torch.nn.Module, validate: Callable[[torch.nn.Module], float]) -> float:
    model.eval()
    with torch.inference_mode():
        return float(validate(model))


def _adamw(model: torch.nn.Module, config: TrainingConfig) -> torch.optim.AdamW:
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.learning_rate)
