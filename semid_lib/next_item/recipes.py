"""The models of chapter 07 with their training settings, and their runs, which are kept and found again.

    semid train timeline --data ../shared/data/beauty --scale laptop
    torchrun --nproc_per_node 8 --no-python semid train tiger --data ../shared/data/beauty --scale full

A run belongs to its data, semantic IDs, settings, seed and code. It is trained once and then read from
`artefacts/<data>/<scale>/runs`; a stopped run resumes. `train` makes the runs of chapter 07 beforehand, also in several
processes: each batch is divided among them, so that they take the same steps as one process. On CPUs, use torchrun;
`accelerate launch` starts one process only. A second command for a run in progress is refused.
"""

import ast
import inspect
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from accelerate import PartialState
from torch.utils.data import DataLoader

from semid_lib.data import dataset
from semid_lib.decoding import beam_search, ranking
from semid_lib.decoding.beam_search import exact_scores
from semid_lib.evaluation import metrics
from semid_lib.ids.embed import normalize
from semid_lib.ids.semantic_ids import SemanticIDs
from semid_lib.next_item import batches, layers
from semid_lib.next_item.sasrec import SASRec, SASRecConfig
from semid_lib.next_item.tiger import Tiger, TigerConfig
from semid_lib.next_item.timeline import Timeline, TimelineConfig
from semid_lib.workbench import scale, store, training
from semid_lib.workbench.store import Store
from semid_lib.workbench.training import Epoch, TrainingConfig
from semid_lib.workbench.weights import digest

MODELS = ("timeline", "tiger", "sasrec")
_NARROW = 20  # beam width that is good enough to compare epochs
_SCORED_AT_ONCE = 50  # histories in an exact scoring
Prior = Callable[[Sequence[np.ndarray]], np.ndarray]  # see `Timeline.rank`


class Task(NamedTuple):
    """What a model is trained on, the examples that choose the epoch, and where its runs are kept."""

    train: dataset.Histories
    validation: dataset.Examples | None  # None: the last weights are kept
    sizes: scale.Scale
    runs: Path | None = None  # None: nothing is kept


class Trained(NamedTuple):
    """A model in evaluation mode with its best weights on validation, and the record of its training."""

    model: Timeline | Tiger | SASRec
    epochs: list[Epoch]  # `validation` is Recall@10
    origin: dict[str, str]  # the machine and the commit that it was trained on

    @property
    def best(self) -> Epoch:
        """The epoch whose weights the model has."""
        looks = [epoch for epoch in self.epochs if np.isfinite(epoch.validation)]
        return max(looks, key=lambda epoch: epoch.validation) if looks else self.epochs[-1]

    @property
    def seconds(self) -> float:
        """Seconds of training without validation."""
        return self.epochs[-1].seconds


def sample(examples: dataset.Examples, n: int | None, seed: int = 0) -> dataset.Examples:
    """A random sample of examples, in their order; all of them for None."""
    chosen = np.sort(np.random.default_rng(seed).permutation(len(examples.targets))[:n])
    later_day = None if examples.later_day is None else examples.later_day[chosen]
    return examples._replace(
        histories=examples.histories.select(chosen),
        targets=examples.targets[chosen],
        users=examples.users[chosen],
        later_day=later_day,
    )


def log_probs(
    model: Timeline,
    histories: Sequence[np.ndarray],
    prior: Prior | None = None,
    weights: Sequence[float] | None = None,
) -> np.ndarray:
    """The log-probability of every item after each history: (n, n_items) float32, seen items included.

    Parameters
    ----------
    model : Timeline
    histories, prior, weights
        As for `Timeline.rank`. A weight of 1 gives one component alone.
    """
    parts = [np.empty((0, len(model.ids)), dtype=np.float32)]
    for start in range(0, len(histories), _SCORED_AT_ONCE):
        context = model.context(histories[start : start + _SCORED_AT_ONCE], prior, weights)
        parts.append(exact_scores(model, context, model.trie).cpu().numpy())
    return np.concatenate(parts)


@torch.inference_mode()
def log_probs_of(
    model: Timeline,
    histories: Sequence[np.ndarray],
    items: np.ndarray,
    prior: Prior | None = None,
    weights: Sequence[float] | None = None,
) -> np.ndarray:
    """The log-probability of one item after each history: (n,) float32.

    Parameters
    ----------
    model, histories, prior, weights
        As for `log_probs`.
    items : (n,) int array
        Item rows.
    """
    parts = [np.empty(0, dtype=np.float32)]
    for start in range(0, len(items), _SCORED_AT_ONCE):
        part = slice(start, start + _SCORED_AT_ONCE)
        codes = model.ids[torch.as_tensor(items[part], device=model.ids.device)]
        state, scores = model.begin(model.context(histories[part], prior, weights))
        found = scores[:, 0].gather(1, codes[:, :1])[:, 0]
        first = torch.zeros((len(codes), 1), dtype=torch.long, device=codes.device)
        for level in range(model.n_levels - 1):
            state, scores = model.advance(state, level, first, codes[:, level : level + 1])
            found = found + scores[:, 0].gather(1, codes[:, level + 1 : level + 2])[:, 0]
        parts.append(found.cpu().numpy())
    return np.concatenate(parts)


def mixture_weights(
    model: Timeline, examples: dataset.Examples, prior: Prior | None = None, n_steps: int = 100
) -> tuple[float, ...]:
    """The weights of a mixture on validation users.

    Code head and item head get the weights under which the targets are most probable, by expectation maximization. The
    item head with prior gets the share, in quarters, with the highest Recall@10 of a beam of 50; the smallest of equal
    ones. Under the most probable weights it got nothing on Beauty and Toys (see the log): a sharp prior is often right
    at the top, and very sure where it is wrong.

    Parameters
    ----------
    model : Timeline
    examples : dataset.Examples
        Validation users.
    prior : callable, optional
        As for `Timeline.rank`.
    n_steps : int

    Returns
    -------
    tuple of float
        For `Timeline.rank`: of the code head, the item head and, with a prior, the item head with prior.

    References
    ----------
    Dempster, Laird and Rubin (1977), for components that stay as they are.
    """
    histories, targets = list(examples.histories), examples.targets
    log_probs = [log_probs_of(model, histories, targets, weights=alone) for alone in ((1.0, 0.0), (0.0, 1.0))]
    probabilities = np.exp(log_probs, dtype=np.float64)
    weights = np.full(2, 1 / 2)
    for _ in range(n_steps):
        shares = weights[:, None] * probabilities + np.finfo(float).tiny
        weights = (shares / shares.sum(axis=0)).mean(axis=1)
    code, item = (weights / weights.sum()).tolist()
    if prior is None:
        return code, item
    mixtures = [((1 - share) * code, (1 - share) * item, share) for share in (0, 1 / 4, 1 / 2, 3 / 4, 1)]

    def recall(mixture: tuple[float, ...]) -> float:
        found = model.rank(histories, 10, examples.exclude_seen, prior=prior, weights=mixture)
        return float(metrics.recall_at_k(metrics.ranks(found.items, targets), 10).mean())

    return max(mixtures, key=recall)


def train_timeline(
    task: Task,
    ids: SemanticIDs,
    vectors: np.ndarray,
    seed: int = 0,
    n_epochs: int | None = None,
    code_weight: float = 1 / 2,
    progress: bool = False,
) -> Trained:
    """Train a timeline model and choose the weights of its mixture on the validation users.

    Parameters
    ----------
    task : Task
    ids : SemanticIDs
    vectors : (n_items, text_dim) float32 array
        Text embeddings.
    seed : int
    n_epochs : int, optional
        By default what the scale says.
    code_weight : float
        With 0 the item head is trained alone, with 1 the code head.
    progress : bool
    """
    sizes = task.sizes
    shape = {"dim": sizes.dim, "n_layers": sizes.n_layers, "dropout": sizes.dropout, "code_weight": code_weight}
    config = TimelineConfig(ids.sizes, vectors.shape[1], len(ids), **shape)
    with training.seeded(seed):
        model = Timeline(config, ids.unique, vectors)
    model.n_trained += torch.from_numpy(np.bincount(task.train.items, minlength=len(ids)))
    loader = batches.histories_in_batches(task.train, config.max_length, sizes.batch_size, seed)
    how = {"n_looks": 7, "learning_rate": 1e-3 if sizes.name == "full" else 3e-3}
    settings = _settings(task, loader, seed, n_epochs, sizes.n_epochs, **how)
    trained = _trained(model, loader, settings, task, [ids.unique, vectors], progress)
    if task.validation is not None and 0 < code_weight < 1:
        model.config = replace(config, code_weight=mixture_weights(model, task.validation)[0])
    return trained


def train_tiger(
    task: Task, ids: SemanticIDs, seed: int = 0, n_epochs: int | None = None, progress: bool = False
) -> Trained:
    """Train a TIGER; at full scale with the sizes of the paper and the settings of cornac's reproduction.

    Those are dropout .2, a peak rate of 3e-4 with a cosine, weight decay .035 and the best epoch on validation. At
    laptop scale, model and epochs are cut to twenty minutes of one core on the Beauty benchmark, the learning rate is
    ten times larger and there is no dropout, which did not help so short a training (see the log).
    """
    sizes = task.sizes
    sized = ("dim", "heads", "head_dim", "layers", "ff_dim", "dropout")
    of_scale = {name: getattr(sizes, f"tiger_{name}") for name in sized}
    config = TigerConfig(n_layers=of_scale.pop("layers"), n_heads=of_scale.pop("heads"), **of_scale)
    with training.seeded(seed):
        model = Tiger(config, ids)
    loader = batches.prefixes_in_batches(task.train, config.max_length, sizes.tiger_batch_size, seed)
    how = {"learning_rate": 3e-4 if sizes.name == "full" else 3e-3, "weight_decay": 0.035}
    settings = _settings(task, loader, seed, n_epochs, sizes.tiger_epochs, **how)
    return _trained(model, loader, settings, task, [ids.unique], progress)


def train_sasrec(
    task: Task, n_items: int, seed: int = 0, n_epochs: int | None = None, progress: bool = False
) -> Trained:
    """Train a SASRec with the full cross-entropy; settings chosen on Beauty's validation items (see the log)."""
    with training.seeded(seed):
        model = SASRec(SASRecConfig(n_items=n_items))
    loader = batches.histories_in_batches(task.train, model.config.max_length, 64, seed)
    settings = _settings(task, loader, seed, n_epochs, task.sizes.sasrec_epochs, learning_rate=2e-3)
    return _trained(model, loader, settings, task, [], progress)


def _settings(task: Task, loader: DataLoader, seed: int, n_epochs: int | None, usual: int, **how) -> TrainingConfig:
    """How a model is trained: `n_epochs`, by default the usual ones of the scale and more if those are few steps."""
    settings = TrainingConfig.sized(usual, task.sizes.min_steps, len(loader), seed=seed, **how)
    return settings if n_epochs is None else replace(settings, n_epochs=n_epochs)


def _trained(
    model: Timeline | Tiger | SASRec,
    loader: DataLoader,
    settings: TrainingConfig,
    task: Task,
    made_of: list[np.ndarray],
    progress: bool,
) -> Trained:
    options: dict[str, Any] = {} if isinstance(model, SASRec) else {"beam_width": _NARROW}

    def recall(_) -> float:
        users = cast("dataset.Examples", task.validation)
        found = model.rank(users.histories, 10, exclude_seen=users.exclude_seen, **options)
        return float(metrics.recall_at_k(metrics.ranks(found.items, users.targets), 10).mean())

    folder = None
    if task.runs is not None:
        name = f"{type(model).__name__.lower()}_{settings.seed}"
        folder = task.runs / f"{name}_{_digest(model, loader, settings, task, made_of)}"
    epochs = training.fit(model, loader, settings, None if task.validation is None else recall, progress, folder)
    return Trained(model, epochs, _origin(folder))


def _origin(folder: Path | None) -> dict[str, str]:
    """Where the run was trained: as its folder says, else here."""
    here = {"trained_on": store.hardware(), "trained_commit": store.commit()["commit"]}
    if folder is None:
        return here
    file = folder / "origin.json"
    if not file.is_file() and PartialState().is_main_process:
        store.write_json(file, here)
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else here


def _digest(model, loader: DataLoader, settings: TrainingConfig, task: Task, made_of: list[np.ndarray]) -> str:
    """A digest of everything that a run depends on: data, settings, and the code of the modules.

    These are the model's module, batches, training, and what chooses the epoch (decoding and metrics). Other code and
    the versions of packages are not covered: delete the runs after a change there that matters.
    """
    modules = [sys.modules[type(model).__module__], batches, layers, training, beam_search, ranking, metrics]
    code = [ast.dump(ast.parse(inspect.getsource(module))) for module in modules]  # without comments and line breaks
    data: list[Any] = [task.train.items, task.train.offsets]
    if task.validation is not None:
        users = task.validation
        data += [users.histories.items, users.histories.offsets, users.targets, users.exclude_seen]
    batch_size = cast("Any", loader.batch_sampler).batch_size
    return digest([code, data, asdict(settings), batch_size, repr(model.config), made_of])


# --- the command ---


def train(
    model: str, data: str = "demo", scale_name: str = "laptop", seed: int | None = None, split: str = "leave_one_out"
) -> None:
    """Train a model of `MODELS` and print its Recall@10; `semid train`.

    Parameters
    ----------
    model : {"timeline", "tiger", "sasrec"}
    data : str
        A folder of data, or "demo".
    scale_name : {"smoke", "laptop", "full"}
    seed : int, optional
        By default one run for each seed that chapter 07 uses.
    split : {"leave_one_out", "time"}

    Raises
    ------
    ValueError
        For an unknown model or split, and for data without histories.
    FileNotFoundError
        If an earlier chapter was not run.
    """
    for name, value, known in (("model", model, MODELS), ("split", split, ("leave_one_out", "time"))):
        if value not in known:
            raise ValueError(f"{name} is {value!r}, expected one of {', '.join(known)}")
    task, train_one = task_of(model, data, scale_name, split)
    n_seeds = task.sizes.tiger_seeds if model == "tiger" else task.sizes.n_seeds
    for each in range(n_seeds) if seed is None else [seed]:
        trained = train_one(each)
        if PartialState().is_main_process:
            best = trained.best
            print(
                f"{model}, seed {each}: Recall@10 {best.validation:.4f} on validation after epoch {best.epoch}, "
                f"{trained.seconds:.0f} s of training; chapter 07 finds it in {task.runs}",
                flush=True,
            )
    PartialState().destroy_process_group()


def task_of(
    model: str, data: str, scale_name: str, split_name: str = "leave_one_out"
) -> tuple[Task, Callable[[int], Trained]]:
    """The task of a model on a data set, and the function that trains it with a seed."""
    shop, by_time = dataset.load(data), split_name == "time"
    sizes = scale.get(scale_name, shop.name)
    if shop.histories is None:
        raise ValueError(f"{shop.name} has no histories: there is nothing to train on")
    artefacts = Store(shop.name, sizes.name, shop.fingerprint)
    split = dataset.time_split(shop.histories) if by_time else dataset.leave_one_out(shop.histories)
    runs = artefacts.path("runs_by_time" if by_time else "runs")  # where chapter 11 or 07 looks
    task = Task(split.train, sample(split.validation, sizes.validation_users), sizes, runs)
    if model == "sasrec":
        return task, lambda seed: train_sasrec(task, len(shop.items), seed, progress=True)
    ids = load_ids(artefacts, rqvae=model == "tiger")
    if model == "tiger":
        return task, lambda seed: train_tiger(task, ids, seed, progress=True)
    vectors = normalize(artefacts.load("embeddings")["vectors"])
    return task, lambda seed: train_timeline(task, ids, vectors, seed, progress=True)


def load_ids(artefacts: Store, rqvae: bool = False) -> SemanticIDs:
    """Load the semantic IDs that chapter 02 made by residual k-means, or those by an RQ-VAE.

    Raises
    ------
    FileNotFoundError
        If that chapter was not run.
    ValueError
        If an older version of it was run.
    """
    saved = artefacts.load("semantic_ids")
    names = ("rqvae_unique_codes", "rqvae_disambiguation_code") if rqvae else ("codes", "disambiguation_code")
    if missing := [name for name in names if name not in saved.arrays]:
        raise ValueError(f"semantic_ids holds no {missing[0]!r}: an older version made it. Run chapter 02 again")
    codes, disambiguation_code = (saved[name] for name in names)
    return SemanticIDs(codes, disambiguation_code, saved.facts["codebook_size"])
