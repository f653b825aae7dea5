"""The models of chapter 07 with their recipes, and their runs, which are kept and found again.

    semid train timeline --data ../shared/data/beauty --scale laptop
    torchrun --nproc_per_node 8 --no-python semid train tiger --data ../shared/data/beauty --scale full

A run belongs to its data, semantic IDs, settings, seed and code: trained once, it is read from
`artefacts/<data>/<scale>/runs` by whoever asks for the same again, so that a chapter can be run anew in minutes, and
what was stopped goes on. The commands do beforehand, in processes or on machines of their own, what chapter 07 would
do itself. A batch is shared out among the processes: they take the same steps on the same batches, and only what is
drawn at random differs, such as the items that each process of a timeline compares. `accelerate launch` does as well as
`torchrun` where there are GPUs; on CPUs it starts one process only. A second command for a run under way is refused.
"""

import ast
import hashlib
import inspect
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate import PartialState

from semid_lib.data import dataset
from semid_lib.decoding import beam_search, ranking
from semid_lib.evaluation import metrics
from semid_lib.evaluation.metrics import ranks, recall_at_k
from semid_lib.ids.embed import normalize
from semid_lib.ids.semantic_ids import SemanticIDs
from semid_lib.next_item import tiger as tiger_module
from semid_lib.next_item import timeline as timeline_module
from semid_lib.next_item.sasrec import SASRec, SASRecConfig
from semid_lib.next_item.tiger import Tiger, TigerConfig
from semid_lib.next_item.timeline import Timeline, TimelineConfig
from semid_lib.workbench import scale, store, training
from semid_lib.workbench.store import Store
from semid_lib.workbench.training import Epoch, TrainingConfig

MODELS = ("timeline", "tiger", "sasrec")


class Task(NamedTuple):
    """What a model is trained on, by which examples it is stopped, and where its runs are kept."""

    train: dataset.Histories
    validation: dataset.Examples | None  # None: nobody is asked, the last weights are kept
    sizes: scale.Scale
    runs: Path | None = None  # None: nothing is kept


class Trained(NamedTuple):
    """A model in evaluation mode with its best weights on validation, and how it came there."""

    model: torch.nn.Module
    epochs: list[Epoch]  # `validation` is Recall@10
    origin: dict[str, str]  # the machine and the commit that it was trained on

    @property
    def best(self) -> Epoch:
        """The epoch whose weights the model has."""
        looks = [epoch for epoch in self.epochs if np.isfinite(epoch.validation)]
        return max(looks, key=lambda epoch: epoch.validation) if looks else self.epochs[-1]

    @property
    def seconds(self) -> float:
        """Of training, without looks at validation."""
        return self.epochs[-1].seconds


def sample(examples: dataset.Examples, n: int | None, seed: int = 0) -> dataset.Examples:
    """A random sample of examples, in their order; all of them for None."""
    chosen = np.sort(np.random.default_rng(seed).permutation(len(examples.targets))[:n])
    histories, targets, users = examples.histories.select(chosen), examples.targets[chosen], examples.users[chosen]
    return dataset.Examples(histories, targets, users, examples.exclude_seen)


def train_timeline(
    task: Task,
    ids: SemanticIDs,
    vectors: np.ndarray,
    seed: int = 0,
    n_epochs: int | None = None,
    progress: bool = False,
) -> Trained:
    """A timeline model. n_epochs: other than what the scale says. vectors: (n_items, text_dim) text embeddings."""
    sizes = task.sizes
    config = TimelineConfig(
        sizes=ids.sizes,
        text_dim=vectors.shape[1],
        n_items=len(ids),
        dim=sizes.dim,
        n_layers=sizes.n_layers,
        dropout=sizes.dropout,
    )
    with training.seeded(seed):
        model = Timeline(config, ids.unique, vectors)
    loader = timeline_module.training_batches(task.train, config.max_length, sizes.batch_size, seed)
    recipe = {"learning_rate": 1e-3 if sizes.name == "full" else 3e-3, "seed": seed}
    settings = TrainingConfig.sized(sizes.n_epochs, sizes.min_steps, len(loader), n_looks=7, **recipe)
    return _trained(model, loader, _with(settings, n_epochs), task, _narrow(model.rank), (ids, vectors), progress)


def train_tiger(
    task: Task, ids: SemanticIDs, seed: int = 0, n_epochs: int | None = None, progress: bool = False
) -> Trained:
    """A TIGER. At full the sizes are the paper's and the recipe is that of cornac's reproduction.

    That is dropout .2, a peak rate of 3e-4 and a cosine, weight decay .035, the best epoch on validation. At laptop
    model and epochs are cut down to twenty minutes of one core on the Beauty benchmark, the steps are ten times larger,
    and there is no dropout: so short a training of so small a model gains nothing from it (see the log).
    """
    sizes = task.sizes
    config = TigerConfig(
        dim=sizes.tiger_dim,
        n_layers=sizes.tiger_layers,
        n_heads=sizes.tiger_heads,
        head_dim=sizes.tiger_head_dim,
        ff_dim=sizes.tiger_ff_dim,
        dropout=sizes.tiger_dropout,
    )
    with training.seeded(seed):
        model = Tiger(config, ids)
    loader = tiger_module.training_batches(task.train, config, sizes.tiger_batch_size, seed)
    recipe = {"learning_rate": 3e-4 if sizes.name == "full" else 3e-3, "weight_decay": 0.035, "seed": seed}
    settings = TrainingConfig.sized(sizes.tiger_epochs, sizes.min_steps, len(loader), **recipe)
    return _trained(model, loader, _with(settings, n_epochs), task, _narrow(model.rank), (ids,), progress)


def train_sasrec(
    task: Task, n_items: int, seed: int = 0, n_epochs: int | None = None, progress: bool = False
) -> Trained:
    """A SASRec with the full cross-entropy; its recipe was chosen on Beauty's validation items (see the log)."""
    sizes = task.sizes
    with training.seeded(seed):
        model = SASRec(SASRecConfig(n_items=n_items))
    loader = timeline_module.training_batches(task.train, model.config.max_length, 64, seed)
    recipe = {"learning_rate": 2e-3, "seed": seed}
    settings = TrainingConfig.sized(sizes.sasrec_epochs, sizes.min_steps, len(loader), **recipe)
    return _trained(model, loader, _with(settings, n_epochs), task, model.rank, (), progress)


def _with(settings: TrainingConfig, n_epochs: int | None) -> TrainingConfig:
    return settings if n_epochs is None else replace(settings, n_epochs=n_epochs)


def _narrow(rank: Callable) -> Callable:
    """With a narrow beam, which is good enough to compare epochs."""
    return lambda histories, k, **options: rank(histories, k, beam_width=20, **options)


def _trained(model, loader, settings, task: Task, rank: Callable, made_of: tuple, progress: bool) -> Trained:
    def recall(_) -> float:
        found = rank(task.validation.histories, 10, exclude_seen=task.validation.exclude_seen)
        return float(recall_at_k(ranks(found.items, task.validation.targets), 10).mean())

    validate = None if task.validation is None else recall
    folder = None
    if task.runs is not None:
        asked = task.train, task.validation, settings, loader.batch_sampler.batch_size, model.config, *made_of
        folder = task.runs / f"{type(model).__name__.lower()}_{settings.seed}_{_digest(type(model), asked)}"
    epochs = training.fit(model, loader, settings, validate, progress, folder)
    return Trained(model, epochs, _origin(folder))


def _origin(folder: Path | None) -> dict[str, str]:
    """Where the run was trained, which is here if nobody has said so before."""
    here = {"trained_on": store.hardware(), "trained_commit": store.commit()["commit"]}
    if folder is None:
        return here
    file = folder / "origin.json"
    if not file.is_file() and PartialState().is_main_process:
        store.write_json(file, here)
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else here


def _digest(kind: type, asked: tuple) -> str:
    """A digest of all that a run depends on: the data as the model sees them, settings, and the code of the modules.

    These are the model's module, training, and what chooses the epoch (decoding and metrics). Other code and the
    versions of packages are not covered: delete the runs after a change there that matters.
    """
    found = hashlib.sha256()
    modules = [sys.modules[kind.__module__], training, beam_search, ranking, metrics]
    if kind is SASRec:
        modules.append(timeline_module)  # its batches are made there
    for module in modules:
        found.update(ast.dump(ast.parse(inspect.getsource(module))).encode())  # comments and line breaks do not count
    for part in asked:
        _add(found, part)
    return found.hexdigest()[:12]


def _add(found, part: Any) -> None:
    match part:
        case np.ndarray():
            found.update(f"{part.shape} {part.dtype}".encode() + np.ascontiguousarray(part).tobytes())
        case dataset.Histories():
            _add(found, part.items)
            _add(found, part.offsets)
        case dataset.Examples():
            _add(found, part.histories)
            _add(found, part.targets)
            _add(found, part.exclude_seen)
        case SemanticIDs():
            _add(found, part.unique)
        case _:
            found.update(repr(part).encode())


# --- the command ---


def train(
    model: str, data: str = "demo", scale_name: str = "laptop", seed: int | None = None, split: str = "leave_one_out"
) -> None:
    """Train a model of `MODELS` and print its Recall@10; `semid train`.

    Parameters
    ----------
    data : str
        A folder of data, or "demo".
    seed : int, optional
        By default one run for each seed that chapter 07 uses.
    split : {"leave_one_out", "time"}

    Raises
    ------
    ValueError
        For an unknown model or split, and for data without histories.
    FileNotFoundError
        If a chapter before was not run.
    """
    for name, value, known in (("model", model, MODELS), ("split", split, ("leave_one_out", "time"))):
        if value not in known:
            raise ValueError(f"{name} is {value!r}, expected one of {', '.join(known)}")
    task, train_one = task_of(model, data, scale_name, split)
    seeds = range(_n_seeds(model, task.sizes)) if seed is None else [seed]
    for each in seeds:
        _tell(model, each, train_one(each), task.runs)
    PartialState().destroy_process_group()


def _n_seeds(model: str, sizes: scale.Scale) -> int:
    return sizes.tiger_seeds if model == "tiger" else sizes.n_seeds


def _tell(model: str, seed: int, trained: Trained, runs: Path) -> None:
    if PartialState().is_main_process:  # of those that training began
        best = trained.best
        print(f"{model}, seed {seed}: Recall@10 {best.validation:.4f} on validation after epoch {best.epoch}", end=", ")
        print(f"{trained.seconds:.0f} s of training; chapter 07 finds it in {runs}", flush=True)


def task_of(
    model: str, data: str, scale_name: str, split_name: str = "leave_one_out"
) -> tuple[Task, Callable[[int], Trained]]:
    """The task of a model on a data set, and the function that trains it with a seed."""
    shop, by_time = dataset.load(data), split_name == "time"
    sizes = scale.get(scale_name, shop.name)
    if shop.histories is None:
        raise ValueError(f"{shop.name} has no histories: there is nothing to train on")
    shelf = Store(shop.name, sizes.name, shop.fingerprint)
    split = dataset.time_split(shop.histories) if by_time else dataset.leave_one_out(shop.histories)
    runs = shelf.path("runs_by_time" if by_time else "runs")  # where chapter 11 or 07 looks
    task = Task(split.train, sample(split.validation, sizes.validation_users), sizes, runs)
    match model:
        case "timeline":
            ids, vectors = load_ids(shelf), normalize(shelf.load("embeddings")["vectors"])
            return task, lambda seed: train_timeline(task, ids, vectors, seed, progress=True)
        case "tiger":
            ids = load_ids(shelf, rqvae=True)
            return task, lambda seed: train_tiger(task, ids, seed, progress=True)
        case _:
            return task, lambda seed: train_sasrec(task, len(shop.items), seed, progress=True)


def load_ids(shelf: Store, rqvae: bool = False) -> SemanticIDs:
    """The semantic IDs that chapter 02 made by residual k-means, or those that it made by an RQ-VAE.

    Raises FileNotFoundError if that chapter has not been run, ValueError if it was by an older version.
    """
    saved = shelf.load("semantic_ids")
    names = ("rqvae_unique_codes", "rqvae_disambiguation_code") if rqvae else ("codes", "disambiguation_code")
    if missing := [name for name in names if name not in saved.arrays]:
        raise ValueError(f"semantic_ids holds no {missing[0]!r}: it is of an older version, run chapter 02 again")
    return SemanticIDs(*(saved[name] for name in names), saved.facts["codebook_size"])
