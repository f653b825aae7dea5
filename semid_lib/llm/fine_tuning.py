"""Supervised fine-tuning of a language model on semantic IDs, with trl and peft.

There are two stages. The first trains the rows of the new tokens and freezes everything else, so that these rows adapt
to words that do not move. The second trains LoRA matrices (Hu et al. 2021) and the new rows, or the whole model. A
4-billion model on a GPU and a small model from scratch on a CPU use the same code.

trl's `SFTTrainer` makes batches, steps, logs and checkpoints; peft holds the trained parameters. trl 1.15 computes its
loss by a Triton kernel without a CPU version (see `trainer`), and reads a bias of the output head that peft 0.21 hides
when rows of the head are trained (see `with_rows`).
"""

import dataclasses
import hashlib
import json
import math
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch

from semid_lib.ids.semantic_ids import trained_tokens
from semid_lib.llm.examples import tokenize
from semid_lib.llm.trainer import answer_trainer, progress_bar
from semid_lib.workbench.atomic import fresh_file

_MAPS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
_ROW_LEARNING_RATE = 1e-3
_WARMUP = 0.05  # share of each stage's steps; then half a cosine down to 0


@dataclass(frozen=True)
class FineTuning:
    """Settings of fine-tuning; the defaults are for a pretrained model on one GPU."""

    method: Literal["lora", "full"] = "lora"  # second stage: LoRA and the new rows, or all weights
    row_steps: int = 1000  # of the first stage, which trains the new rows; 0 for a model from scratch
    n_epochs: float = 2.0  # of the second stage; 0 stops after the first
    learning_rate: float = 2e-4  # peak of the second stage: 2e-4 for LoRA, 2e-5 for a whole pretrained model
    batch_size: int = 16  # examples per device and batch: what the memory for activations grows with
    accumulation: int = 1  # batches per step: 4 of 4 examples train as 1 of 16 in less memory
    rank: int = 32  # of LoRA, whose product is doubled
    weight_decay: float = 0.0
    pool: int = 8  # batches that are drawn together and sorted by length, to save padding; 1 does not sort
    save_every: int = 200  # steps between two checkpoints: what an interruption loses at most
    seed: int = 0

    def __post_init__(self):
        if self.method not in ("lora", "full"):
            raise ValueError(f"method is {self.method!r}, expected 'lora' or 'full'")
        if self.row_steps < 0 or not self.n_epochs >= 0 or not self.row_steps + self.n_epochs > 0:
            raise ValueError(f"row_steps {self.row_steps} and n_epochs {self.n_epochs} must be >= 0, and not both 0")
        for name in ("batch_size", "accumulation", "rank", "pool", "save_every", "learning_rate"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)}, expected a positive number")

    @property
    def stages(self) -> tuple[str, ...]:
        """The stages with at least one step, in order."""
        return ("rows",) * (self.row_steps > 0) + (self.method,) * (self.n_epochs > 0)

    def n_steps(self, stage: str, n_examples: int) -> int:
        """Steps of a stage."""
        per_epoch = math.ceil(math.ceil(n_examples / self.batch_size) / self.accumulation)
        return self.row_steps if stage == "rows" else math.ceil(self.n_epochs * per_epoch)


class FineTuned(NamedTuple):
    """The result of fine-tuning."""

    model: Any  # merged, in evaluation mode; with 4-bit weights the adapter is separate (see `merge_adapter`)
    losses: list[tuple[str, int, float]]  # stage, step, mean loss per answer token since the last entry
    seconds: float  # of this call


def fine_tune(
    model,
    tokenizer,
    rows: Sequence[dict[str, Any]],
    tokens: Sequence[np.ndarray],
    config: FineTuning,
    folder: str | Path,
    resume: bool = True,
    progress: bool = False,
) -> FineTuned:
    """Train a model on the rows, in the stages of the config; the model is changed in place.

    Parameters
    ----------
    model, tokenizer
        After `vocabulary.extend_vocabulary`, which returns `tokens`.
    rows : sequence of dict
        Of `examples.training_rows`.
    folder : path
        For checkpoints, and for the adapter or model of each stage.
    resume : bool
        Continue a run with the same settings, rows and model; otherwise delete it.

    Raises
    ------
    ImportError
        Naming the missing extra.
    ValueError
        For rows that are too long, an output head with a bias (peft would drop it), 4-bit weights with method "full",
        or a folder with a run of other settings.
    """
    if config.method == "full" and is_four_bit(model):
        raise ValueError("4-bit weights cannot be trained: use method 'lora', or load_base(four_bit=False)")
    started, folder = time.perf_counter(), Path(folder)
    data = tokenize(rows, tokenizer)
    _begin(folder, _settings(model, data, tokens, config), resume)
    model.config.use_cache = False  # there is nothing to cache in training
    losses = []
    for stage in config.stages:
        done = folder / stage / "final" / "stage.json"
        if done.is_file():
            model = _saved(model, stage, done.parent)
        else:
            model, report = _train(model, tokenizer, data, tokens, config, stage, folder / stage, progress)
            _write_json(done, report)
        losses += [(stage, *entry) for entry in json.loads(done.read_text(encoding="utf-8"))["losses"]]
    model.config.use_cache = True
    return FineTuned(model.eval(), losses, time.perf_counter() - started)


def merge_adapter(base, tokenizer, adapter: str | Path):
    """Merge an adapter of `fine_tune` (the run's `lora/final`) into the weights of its base model, in place.

    For 4-bit training: load the base in bfloat16 (`load_base(name, four_bit=False)`), because an adapter cannot be
    merged into 4-bit weights without loss.
    """
    from peft import PeftModel

    if len(tokenizer) > base.get_input_embeddings().weight.shape[0]:
        base.resize_token_embeddings(len(tokenizer), mean_resizing=False)  # the adapter has these rows
    return PeftModel.from_pretrained(base, str(adapter)).merge_and_unload().eval()


def save_model(model, tokenizer, folder: str | Path) -> Path:
    """Save a merged model and its tokenizer as transformers and vLLM load them (safetensors).

    The generation config keeps the start, end and padding tokens only: sampling or a repetition penalty, as in many
    instruct models, would silently change beam search.

    Raises
    ------
    ValueError
        For a model whose adapter is not merged.
    """
    if hasattr(model, "peft_config"):
        raise ValueError("the model has an adapter that is not merged: merge it first (merge_adapter)")
    from transformers import GenerationConfig

    kept = {name: getattr(model.generation_config, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    model.generation_config = GenerationConfig(do_sample=False, **kept)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return Path(folder)


def last_checkpoint(folder: str | Path) -> Path | None:
    """The latest complete checkpoint of transformers' Trainer, which writes its state last."""
    whole = [state.parent for state in Path(folder).glob("checkpoint-*/trainer_state.json")]
    return max(whole, key=lambda path: int(path.name.rpartition("-")[2]), default=None)


def is_four_bit(model) -> bool:
    """Whether a model has 4-bit weights."""
    return bool(getattr(model, "is_loaded_in_4bit", False))


def with_rows(model, tokens: Sequence[np.ndarray], config: FineTuning, stage: str):
    """The model with a peft adapter that trains the new rows, and in the stage "lora" the LoRA matrices."""
    from peft import LoraConfig, get_peft_model
    from peft.utils.constants import DUMMY_TARGET_MODULES

    table, head = model.get_input_embeddings(), model.get_output_embeddings()
    if getattr(head, "bias", None) is not None:
        raise ValueError(f"the output head of {type(model).__name__} has a bias, which peft drops: use method 'full'")
    names = {id(module): name for name, module in model.named_modules()}
    layers = [names[id(table)]] if head.weight is table.weight else [names[id(table)], names[id(head)]]
    adapter = LoraConfig(
        r=config.rank,
        lora_alpha=2 * config.rank,
        # none in the first stage; peft has TrainableTokensConfig for this, but trl refuses it on an output head
        target_modules=DUMMY_TARGET_MODULES if stage == "rows" else _MAPS,
        trainable_token_indices=dict.fromkeys(layers, trained_tokens(tokens)),
        task_type="CAUSAL_LM",
    )
    torch.manual_seed(config.seed)  # LoRA starts from random values
    wrapped = get_peft_model(model, adapter)
    if not hasattr(wrapped.get_output_embeddings(), "bias"):
        wrapped.get_output_embeddings().bias = None  # trl reads it
    # with a name, peft would ask the hub at every checkpoint whether the vocabulary has grown, and save all rows
    wrapped.peft_config["default"].base_model_name_or_path = ""
    return wrapped


# --- a stage ---


def _train(model, tokenizer, data, tokens, config: FineTuning, stage: str, folder: Path, progress: bool):
    """Run one stage: -> the model with its adapter merged, and a report."""
    wrapped = model.requires_grad_(True) if stage == "full" else with_rows(model, tokens, config, stage)
    forward, dtype = model.__dict__.get("forward"), model.dtype
    trainer = answer_trainer(
        config.pool,
        model=wrapped,
        args=_arguments(model, config, stage, folder, config.n_steps(stage, len(data))),
        train_dataset=data,
        processing_class=tokenizer,
        callbacks=[progress_bar(stage)] if progress else [],
    )
    for parameter in wrapped.parameters():
        if parameter.requires_grad:  # small steps need float32; trl rounds what is trained next to 4-bit weights
            parameter.data = parameter.data.float()
    checkpoint = last_checkpoint(folder)
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    del model.forward  # trl has replaced it
    if forward is not None:
        model.forward = forward
    report = {"losses": [(entry["step"], entry["loss"]) for entry in trainer.state.log_history if "loss" in entry]}
    if stage == "full":
        model.to(dtype).save_pretrained(folder / "final")
        return model, report
    wrapped.peft_config["default"].base_model_name_or_path = model.name_or_path
    wrapped.save_pretrained(folder / "final", save_embedding_layers=False)
    return _merged(wrapped, model, stage), report


def _merged(wrapped, model, stage: str):
    return wrapped if stage == "lora" and is_four_bit(model) else wrapped.merge_and_unload()


def _saved(model, stage: str, folder: Path):
    """The model after a stage that an earlier run has finished."""
    from peft import PeftModel

    if stage == "full":
        return type(model).from_pretrained(folder).to(model.device)
    return _merged(PeftModel.from_pretrained(model, str(folder)), model, stage)


def _arguments(model, config: FineTuning, stage: str, folder: Path, n_steps: int):
    from trl import SFTConfig

    on_gpu, is_first = model.device.type == "cuda", stage == "rows"
    return SFTConfig(
        output_dir=str(folder),
        max_steps=config.row_steps if is_first else -1,
        num_train_epochs=config.n_epochs,
        learning_rate=_ROW_LEARNING_RATE if is_first else config.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=_WARMUP,
        weight_decay=0.0 if is_first else config.weight_decay,  # decay would only pull the new rows to 0
        per_device_train_batch_size=config.batch_size,
        gradient_accumulation_steps=config.accumulation,
        max_length=None,  # `tokenize` has checked it
        use_cpu=not on_gpu,
        bf16=on_gpu,
        gradient_checkpointing=on_gpu,
        dataloader_pin_memory=on_gpu,
        save_steps=config.save_every,
        save_total_limit=2,
        logging_steps=min(10, max(1, n_steps // 10)),
        seed=config.seed,
        report_to="none",
        disable_tqdm=True,  # in a notebook it would write a table with a line per entry; see `progress_bar`
    )


def _settings(model, data, tokens, config: FineTuning) -> dict[str, Any]:
    """The settings that a run must share with an interrupted one to resume it."""
    content = hashlib.sha256()
    for ids in data["input_ids"]:
        content.update(np.array(ids, dtype=np.int64).tobytes())
    first = model.get_input_embeddings().weight.flatten()[:8].tolist()  # differs between models of one shape
    return {
        **dataclasses.asdict(config),
        "examples": content.hexdigest(),
        "tokens": trained_tokens(tokens),
        "model": [type(model).__name__, model.num_parameters(), *first],
    }


def _begin(folder: Path, settings: dict[str, Any], resume: bool) -> None:
    """Write the settings of a new run, or compare them with those of an earlier one."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "settings.json"
    if file.is_file() and resume:
        before = json.loads(file.read_text(encoding="utf-8"))
        different = [name for name in settings if name != "save_every" and settings[name] != before.get(name)]
        if different:
            raise ValueError(
                f"{folder} has a run with other {', '.join(different)}: use another folder, or resume=False to start "
                "again"
            )
        return
    for stage in ("rows", "lora", "full"):
        shutil.rmtree(folder / stage, ignore_errors=True)
    _write_json(file, settings)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    with fresh_file(path) as partial:
        partial.write_text(json.dumps(content) + "\n", encoding="utf-8")
