"""trl's SFTTrainer with two parts of our own: a loss that runs on a CPU, and the order of the examples."""

from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm


def answer_loss(model, batch: dict[str, torch.Tensor], n_answer_tokens: torch.Tensor | int | None = None):
    """Mean cross-entropy of the answers' tokens; logits are computed for these tokens only.

    Parameters
    ----------
    batch : dict
        Inputs of the model, and `labels` (B, T) with -100 outside the answers.
    n_answer_tokens : int, optional
        Divisor, if the batch is one of several of a step; default: the tokens of this batch.
    """
    base = model.get_base_model() if hasattr(model, "peft_config") else model
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    hidden = base.get_decoder()(**inputs | {"use_cache": False}).last_hidden_state[:, :-1]
    labels = batch["labels"][:, 1:]
    answered = labels != -100
    logits = base.get_output_embeddings()(hidden[answered]).float()
    total = torch.nn.functional.cross_entropy(logits, labels[answered], reduction="sum")
    return total / (answered.sum() if n_answer_tokens is None else n_answer_tokens)


class Pools(torch.utils.data.Sampler[int]):
    """An order of examples in which batches hold similar lengths; it differs by epoch.

    Batches of a random pool are sorted by length. transformers' "group_by_length" sorts 50 batches together: with
    little data the same examples always meet, and a model learns several times more slowly (measured).
    """

    def __init__(self, lengths: np.ndarray, batch_size: int, pool: int, seed: int):
        self.lengths, self.batch_size, self.pool, self.seed, self.epoch = lengths, batch_size, pool, seed, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch  # called by the Trainer, also when a run resumes in a later epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self):
        rng = np.random.default_rng((self.seed, self.epoch))
        order, size = rng.permutation(len(self.lengths)), self.batch_size
        n_whole = len(order) // size * size  # an incomplete batch comes last
        batches: list[np.ndarray] = []
        for start in range(0, n_whole, size * self.pool):
            drawn = order[start : min(start + size * self.pool, n_whole)]
            batches += list(drawn[np.argsort(self.lengths[drawn], kind="stable")].reshape(-1, size))
        for place in rng.permutation(len(batches)):
            yield from batches[place].tolist()
        yield from order[n_whole:].tolist()


def answer_trainer(pool: int, **arguments):
    """An SFTTrainer with the order of `Pools`, and on a CPU with `answer_loss`: trl's kernel needs a GPU."""
    from transformers import PrinterCallback
    from trl import SFTTrainer

    class AnswerTrainer(SFTTrainer):
        def _get_train_sampler(self, train_dataset=None):
            data = self.train_dataset if train_dataset is None else train_dataset
            size = self.args.per_device_train_batch_size * self.args.world_size
            return Pools(lengths_of(data), size, pool, self.args.seed)

        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            if self.args.device.type == "cuda" or return_outputs:
                return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
            return answer_loss(model, inputs, num_items_in_batch)

    trainer = AnswerTrainer(**arguments)
    trainer.remove_callback(PrinterCallback)
    return trainer


def progress_bar(stage: str):
    """A callback of transformers' Trainer: one bar, in terminals and notebooks."""
    from transformers import TrainerCallback

    class Bar(TrainerCallback):
        bar: Any

        def on_train_begin(self, args, state, control, **kwargs):
            shown = {"desc": f"stage {stage}", "unit": "step", "mininterval": 2}  # a notebook keeps every refresh
            self.bar = tqdm(total=state.max_steps, initial=state.global_step, **shown)

        def on_step_end(self, args, state, control, **kwargs):
            self.bar.update(state.global_step - self.bar.n)

        def on_train_end(self, args, state, control, **kwargs):
            self.bar.close()

    return Bar()


def lengths_of(data) -> np.ndarray:
    """Tokens of each example of `examples.tokenize`: (n,) int64."""
    return np.array([len(ids) for ids in data["input_ids"]])
