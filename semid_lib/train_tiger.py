"""Train a TIGER from the command line, in one process or several.

    python -m semid_lib.train_tiger --data ../shared/data/beauty --scale laptop
    torchrun --nproc_per_node 8 -m semid_lib.train_tiger --data ../shared/data/beauty --scale full

The semantic IDs are those that chapter 02 made of the same data at the same scale. The model goes to
`artefacts/<data>/<scale>/tiger`, for `Tiger.from_pretrained`. Its checkpoints stand beside it until training is over,
so that the same command goes on with a run that was stopped. A batch is shared out among the processes, so their number
changes how long it takes and, but for which units dropout hits, nothing else. `accelerate launch` does as well as
`torchrun` where there are GPUs; on CPUs it starts one process only.
"""

import argparse
import shutil
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from accelerate import PartialState

from semid_lib import data, scale
from semid_lib.metrics import ranks, recall_at_k
from semid_lib.semantic_ids import SemanticIDs
from semid_lib.store import Store
from semid_lib.tiger import Tiger, TigerConfig, training_batches
from semid_lib.training import Epoch, TrainingConfig, fit


class Trained(NamedTuple):
    """A model with its best weights on validation, and how it came there."""

    model: Tiger
    epochs: list[Epoch]  # `validation` is Recall@10


def train_tiger(
    histories: data.Histories,
    validation: data.Examples,
    ids: SemanticIDs,
    sizes: scale.Scale,
    seed: int = 0,
    progress: bool = False,
    folder: Path | None = None,
) -> Trained:
    """A TIGER of the size of a scale, trained on histories and stopped by Recall@10 on examples.

    folder: for checkpoints, see `training.fit`. At full the recipe is that of cornac's reproduction (dropout .2, a peak
    rate of 3e-4 and a cosine, weight decay .035, the best epoch on validation). At laptop model and epochs are cut down
    to an hour of one core, and the fewer steps are larger.
    """
    config = TigerConfig(
        dim=sizes.tiger_dim,
        n_layers=sizes.tiger_layers,
        n_heads=sizes.tiger_heads,
        head_dim=sizes.tiger_head_dim,
        ff_dim=sizes.tiger_ff_dim,
        dropout=sizes.tiger_dropout,
    )
    torch.manual_seed(seed)
    model = Tiger(config, ids)
    loader = training_batches(histories, config, sizes.tiger_batch_size, seed)
    recipe = {"learning_rate": 3e-4 if sizes.name == "full" else 1e-3, "weight_decay": 0.035, "seed": seed}
    settings = TrainingConfig.sized(sizes.tiger_epochs, sizes.min_steps, len(loader), **recipe)

    def recall(model: Tiger) -> float:
        found = model.rank(validation.histories, k=10, beam_width=20)
        return float(recall_at_k(ranks(found.items, validation.targets), 10).mean())

    return Trained(model, fit(model, loader, settings, recall, progress, folder))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m semid_lib.train_tiger", description=__doc__.split("\n\n")[0])
    parser.add_argument("--data", default="demo", help="a folder of data, or demo; default: %(default)s")
    parser.add_argument("--scale", default="laptop", choices=scale.NAMES, help="default: %(default)s")
    parser.add_argument("--seed", default=0, type=int, help="default: %(default)s")
    asked = parser.parse_args(arguments)
    try:
        shelf, trained = _train(asked.data, scale.get(asked.scale), asked.seed)
    except (ValueError, OSError) as error:
        print("error:", " ".join(str(error).split()), file=sys.stderr)
        return 2
    processes = PartialState()  # as training began them
    if processes.is_main_process:
        folder = shelf.path("tiger")
        trained.model.save_pretrained(folder)
        shutil.rmtree(shelf.path("tiger_checkpoints"))
        best = max(epoch.validation for epoch in trained.epochs if np.isfinite(epoch.validation))
        print(f"{folder}: Recall@10 {best:.4f} on validation, {trained.epochs[-1].seconds:.0f} s of training")
    processes.destroy_process_group()
    return 0


def _train(name: str, sizes: scale.Scale, seed: int) -> tuple[Store, Trained]:
    shop = data.load(name)
    if shop.histories is None:
        raise ValueError(f"{shop.name} has no histories: there is nothing to train on")
    shelf = Store(shop.name, sizes.name, shop.fingerprint)
    saved = shelf.load("semantic_ids")
    ids = SemanticIDs(saved["codes"], saved["disambiguation_code"], saved.facts["codebook_size"])
    split = data.leave_one_out(shop.histories)
    chosen = np.sort(np.random.default_rng(seed).permutation(len(split.validation.targets))[: sizes.validation_users])
    validation = data.Examples(
        split.validation.histories.select(chosen), split.validation.targets[chosen], split.validation.users[chosen]
    )
    return shelf, train_tiger(split.train, validation, ids, sizes, seed, True, shelf.path("tiger_checkpoints"))


if __name__ == "__main__":
    sys.exit(main())
