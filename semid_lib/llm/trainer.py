"""trl's trainer with two parts of our own: the loss, so that it runs on CPU too, and the order of the examples."""

import numpy as np
import torch
from tqdm.auto import tqdm


def answer_loss(model, batch: dict[str, torch.Tensor], n_answer_tokens: torch.Tensor | int | None = None):
    """Mean cross-entropy of the answers' tokens; the vocabulary is looked at for these alone.

    batch: what a model takes, and `labels` (B, T) with -100 for all but the answers. n_answer_tokens: to divide by, if
    the batch is one of several of a step; its own by default.
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
    """Examples in an order of which every `batch_size` are of about one length; another order each epoch."""

    def __init__(self, lengths: np.ndarray, batch_size: int, pool: int, seed: int):
        self.lengths, self.batch_size, self.pool, self.seed, self.epoch = lengths, batch_size, pool, seed, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch  # so that a run that is resumed in its third epoch finds that epoch's order

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self):
        rng = np.random.default_rng((self.seed, self.epoch))
        order, size = rng.permutation(len(self.lengths)), self.batch_size
        n_whole = len(order) // size * size  # what does not fill a batch comes last
        batches = []
        for start in range(0, n_whole, size * self.pool):
            drawn = order[start : min(start + size * self.pool, n_whole)]
            if self.pool > 1:
                drawn = drawn[np.argsort(self.lengths[drawn], kind="stable")]
            batches += list(drawn.reshape(-1, size))
        for place in rng.permutation(len(batches)):
            yield from batches[place].tolist()
        yield from order[n_whole:].tolist()


def answer_trainer():
    """A subclass of trl's SFTTrainer with `answer_loss` on CPU, where its own kernel does not run, and `Pools`.

    `pool` is to be set on it. transformers' own "group_by_length" sorts fifty batches together: on small data the same
    examples meet every time, and a model learns to tell 20 items apart several times more slowly (measured).
    """
    from trl import SFTTrainer

    class AnswerTrainer(SFTTrainer):
        pool = 1

        def _get_train_sampler(self, train_dataset=None):
            data = self.train_dataset if train_dataset is None else train_dataset
            size = self.args.per_device_train_batch_size * self.args.world_size
            return Pools(lengths_of(data), size, self.pool, self.args.seed)

        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            if self.args.device.type == "cuda" or return_outputs:
                return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
            return answer_loss(model, inputs, num_items_in_batch)

    return AnswerTrainer


def progress_bar(stage: str):
    """A callback for transformers' Trainer: one bar with the loss, in a terminal and in a notebook alike."""
    from transformers import TrainerCallback

    class Bar(TrainerCallback):
        def on_train_begin(self, args, state, control, **kwargs):
            shown = {"desc": f"stage {stage}", "unit": "step", "mininterval": 2}  # a notebook keeps every refresh
            self.bar = tqdm(total=state.max_steps, initial=state.global_step, **shown)

        def on_step_end(self, args, state, control, **kwargs):
            self.bar.update(state.global_step - self.bar.n)

        def on_log(self, args, state, control, logs=None, **kwargs):
            if logs and "loss" in logs:
                self.bar.set_postfix(loss=f"{float(logs['loss']):.3f}", refresh=False)

        def on_train_end(self, args, state, control, **kwargs):
            self.bar.close()

    return Bar()


def lengths_of(data) -> np.ndarray:
    """Tokens of each example of a data set of `tokenize`: (n,) int64."""
    return np.array([len(ids) for ids in data["input_ids"]])


def padded(examples: dict[str, list], device) -> dict[str, torch.Tensor]:
    """A batch as trl makes it: padded on the right."""

    def pad(lists, value):
        return torch.nn.utils.rnn.pad_sequence([torch.tensor(each) for each in lists], True, value).to(device)

    ids = examples["input_ids"]
    return {
        "input_ids": pad(ids, 0),
        "attention_mask": pad([[1] * len(each) for each in ids], 0),
        "labels": pad(examples["labels"], -100),
    }
