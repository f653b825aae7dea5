"""Supervised fine-tuning of a language model on semantic IDs, with trl's SFTTrainer.

Two stages. First the rows of the new tokens alone, with everything else frozen, so that they find their places among
words that keep theirs. Then the model: LoRA (Hu et al. 2021) beside its linear maps, the new rows still in training, or
all of it. A 4-billion model on a GPU and a small one from scratch on a CPU go through the same code.

What is ours and what is theirs: `SFTTrainer` makes batches, steps, logs and checkpoints; peft holds what is trained.
trl 1.15 computes its loss by a Triton kernel that has no CPU version, and reads a bias off the output head that peft
0.21 does not show when rows of the head are trained; `sft_trainer` and `_with_rows` go round both.
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
import pandas as pd
import torch

from semid_lib.ids.semantic_ids import trained_tokens
from semid_lib.llm.base_models import MODELS, Estimate, estimate_cost, facts_of
from semid_lib.llm.examples import ensure_chat_template, require_packages, tokenize
from semid_lib.llm.trainer import Pools, answer_loss, answer_trainer, lengths_of, padded, progress_bar
from semid_lib.workbench.atomic import fresh_file

_MAPS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class FineTuning:
    """How a language model is fine-tuned; the defaults are for a pretrained model on one GPU."""

    method: Literal["lora", "full"] = "lora"  # what the second stage trains: LoRA and the new rows, or everything
    row_steps: int = 1000  # of the first stage, which trains the new rows alone; 0 for a model from scratch
    row_learning_rate: float = 1e-3
    n_epochs: float = 2.0  # of the second stage; 0 stops after the first
    learning_rate: float = 2e-4  # of the second stage at its peak: 2e-4 for LoRA, 2e-5 for a whole pretrained model
    batch_size: int = 16  # examples on a device at a time
    accumulation: int = 1  # batches that make one step
    max_length: int = 512  # tokens of an example; longer ones are refused
    rank: int = 32  # of LoRA
    alpha: int = 64  # of LoRA: its product is scaled by alpha / rank
    dropout: float = 0.0  # on the input of LoRA
    weight_decay: float = 0.0
    warmup_share: float = 0.05  # of each stage's steps; then half a cosine down to 0
    pool: int = 8  # batches that are drawn at random together and then sorted by length, to save padding; 1 does not
    packing: bool = False  # several examples in one sequence of max_length, see `fine_tune`
    save_every: int = 200  # steps between two checkpoints: what an interruption loses at most
    seed: int = 0

    def __post_init__(self):
        if self.method not in ("lora", "full"):
            raise ValueError(f"method is {self.method!r}, expected 'lora' or 'full'")
        if self.row_steps < 0 or not self.n_epochs >= 0 or not self.row_steps + self.n_epochs > 0:
            raise ValueError(f"row_steps {self.row_steps} and n_epochs {self.n_epochs} must be >= 0, and not both 0")
        for name in ("batch_size", "accumulation", "max_length", "rank", "pool", "save_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("learning_rate", "row_learning_rate"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")

    @property
    def stages(self) -> tuple[str, ...]:
        """The stages that have something to do, in order."""
        return ("rows",) * (self.row_steps > 0) + (self.method,) * (self.n_epochs > 0)

    def n_steps(self, stage: str, n_examples: int) -> int:
        """Steps of a stage, without packing."""
        per_epoch = math.ceil(math.ceil(n_examples / self.batch_size) / self.accumulation)
        return self.row_steps if stage == "rows" else math.ceil(self.n_epochs * per_epoch)


class FineTuned(NamedTuple):
    """What fine-tuning gave."""

    model: Any  # merged, in evaluation mode; of 4-bit weights, the adapter still beside them (see `merge_adapter`)
    n_steps: dict[str, int]  # of each stage, those before an interruption included
    losses: list[tuple[str, int, float]]  # stage, step, mean loss of an answer's token since the last entry
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
    callbacks: Sequence = (),
) -> FineTuned:
    """Teach a model the rows in the stages of the config; the model is changed in place and handed back merged.

    model, tokenizer: extended by `vocabulary.extend_vocabulary`, whose layout is `tokens`. rows: `training_rows`.
    folder: checkpoints go there every `save_every` steps, and the adapter or model of each stage; with resume the run
    goes on where one with the same settings, rows and model stopped, without it what is there goes. callbacks: of
    transformers' Trainer.

    The first stage moves the new rows and nothing else. LoRA keeps them in training. Packing is for GPUs: trl makes one
    sequence of a whole batch, whose attention mask has the square of its length, and the same examples share a sequence
    in every epoch. (transformers keeps packed examples apart with "sdpa", although trl warns that it might not.)

    Raises ImportError naming the extra that is missing, ValueError for rows that are too long (`tokenize`), a head
    with a bias (peft would drop it), 4-bit weights that are to be trained, or a folder that holds a run with other
    settings.
    """
    require_packages()
    if config.method == "full" and _is_four_bit(model):
        raise ValueError("4-bit weights cannot be trained themselves: use method 'lora', or load_base(four_bit=False)")
    started = time.perf_counter()
    folder = Path(folder)
    ensure_chat_template(tokenizer)
    data = tokenize(rows, tokenizer, config.max_length)
    _begin(folder, _settings(model, data, tokens, config), resume)
    model.config.use_cache = False  # nothing to keep while training
    n_steps, losses = {}, []
    for stage in config.stages:
        done = folder / stage / "final"
        if not (done / "stage.json").is_file():
            model, report = _train(model, tokenizer, data, tokens, config, stage, folder / stage, progress, callbacks)
            with fresh_file(done / "stage.json") as partial:
                partial.write_text(json.dumps(report) + "\n", encoding="utf-8")
        else:
            model = _finished(model, stage, done)
        report = json.loads((done / "stage.json").read_text(encoding="utf-8"))
        n_steps[stage] = report["n_steps"]
        losses += [(stage, step, loss) for step, loss in report["losses"]]
    model.config.use_cache = True
    return FineTuned(model.eval(), n_steps, losses, time.perf_counter() - started)


def merge_adapter(base, tokenizer, adapter: str | Path):
    """The base model with an adapter of `fine_tune` merged into its weights: a plain model again.

    For 4-bit training, whose adapter cannot be merged without loss where it was trained: give the same base in bfloat16
    (`load_base(name, four_bit=False)`) and the adapter's folder, the run's `lora/final`. base is changed in place.
    """
    require_packages()
    from peft import PeftModel

    if len(tokenizer) > base.get_input_embeddings().weight.shape[0]:
        base.resize_token_embeddings(len(tokenizer), mean_resizing=False)  # the adapter holds what goes there
    return PeftModel.from_pretrained(base, str(adapter)).merge_and_unload().eval()


def save_model(model, tokenizer, folder: str | Path) -> Path:
    """Write a merged model and its tokenizer as transformers and vLLM load them (safetensors), and return the folder.

    Its generation config keeps the tokens that end, start and pad and says nothing else but not to sample: sampling or
    a penalty on repetitions, as many instruct models bring them, would silently break beams.
    Raises ValueError for a model whose adapter is not merged.
    """
    if hasattr(model, "peft_config"):
        raise ValueError("the model still has an adapter beside its weights: merge it first (merge_adapter)")
    from transformers import GenerationConfig

    kept = {name: getattr(model.generation_config, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    model.generation_config = GenerationConfig(do_sample=False, **kept)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return Path(folder)


# --- before it starts ---


def measured_speed(model, data, config: FineTuning, tokens: Sequence[np.ndarray] = (), n_batches: int = 3) -> float:
    """Tokens a second of training, padding left out, from a few batches forward and backward; weights stay as they are.

    data: of `tokenize`. tokens: measure the last stage of the config with its adapter; without them, the whole model.
    """
    require_packages()
    trained = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    wrapped = model if not len(tokens) or config.method == "full" else _with_rows(model, tokens, config, "lora")
    order = np.array(list(Pools(lengths_of(data), config.batch_size, config.pool, config.seed)))
    n_tokens, seconds = 0, 0.0
    wrapped.train()
    for place in range(n_batches + 1):  # the first is to warm up
        examples = data[np.take(order, range(place * config.batch_size, (place + 1) * config.batch_size), mode="wrap")]
        batch = padded(examples, wrapped.device)
        begun = time.perf_counter()
        loss = answer_loss(wrapped, batch)
        loss.backward()
        loss.item()  # waits for a GPU
        if place:
            seconds += time.perf_counter() - begun
            n_tokens += int(batch["attention_mask"].sum())
        wrapped.zero_grad(set_to_none=True)
    if wrapped is not model:
        wrapped.unload()
    for name, parameter in model.eval().named_parameters():
        parameter.requires_grad = trained[name]
    return n_tokens / seconds


def estimate(model, data, config: FineTuning, tokens: Sequence[np.ndarray], tokens_per_second: float) -> Estimate:
    """Memory and time of `fine_tune` with this model and these examples (`base_models.estimate_cost` has the formulas).

    data: of `tokenize`. tokens_per_second: from `measured_speed`, or of a run like this one.
    """
    facts, lengths = facts_of(model), lengths_of(data)
    n_rows = sum(len(level) for level in tokens) * facts.hidden_size * (1 if facts.tied else 2)
    n_trained = facts.n_parameters if config.stages[-1] == "full" else n_rows
    n_trained += facts.lora_parameters(config.rank) * (config.stages[-1] == "lora")
    a_step = config.batch_size * config.accumulation
    n_examples = sum(config.n_steps(stage, len(lengths)) * a_step for stage in config.stages)
    on_gpu = model.device.type == "cuda"
    return estimate_cost(
        facts,
        int(n_examples * lengths.mean()),
        tokens_per_second,
        batch_tokens=config.batch_size * (config.max_length if config.packing else int(lengths.max())),
        n_trained=n_trained,
        bits=4 if _is_four_bit(model) else 16 if on_gpu else 32,
        checkpointing=on_gpu,
    )


def estimate_known(data, n_codes: int, config: FineTuning, operations_per_second: float = 1e14) -> pd.DataFrame:
    """What fine-tuning each known model on these examples would take, a row per model, before one is downloaded.

    Time is 6 floating-point operations for each parameter and token (Kaplan et al. 2020, arXiv 2001.08361, section
    2.1), by a speed of the GPU that is an assumption: an order of magnitude. data: of `tokenize`, by whatever
    tokenizer. n_codes: new tokens.

    Columns: name and revision on the hub, parameters, memory with 16-bit and 4-bit weights, hours.
    """
    lengths = lengths_of(data)
    steps = sum(config.n_steps(stage, len(lengths)) for stage in config.stages)
    n_tokens = int(steps * config.batch_size * config.accumulation * lengths.mean())
    table = {}
    for name, facts in MODELS.items():
        trained = facts.lora_parameters(config.rank) + n_codes * facts.hidden_size * (1 if facts.tied else 2)
        speed = operations_per_second / (6 * facts.n_parameters)
        batch = config.batch_size * int(lengths.max())
        costs = [estimate_cost(facts, n_tokens, speed, batch, trained, bits) for bits in (16, 4)]
        table[name] = {
            "name on the hub": facts.name,
            "revision": facts.revision[:8],
            "parameters, 10^9": facts.n_parameters / 1e9,
            "GiB at 16 bits": costs[0].memory_gib,
            "GiB at 4 bits": costs[1].memory_gib,
            "hours": costs[0].seconds / 3600,
        }
    return pd.DataFrame(table).T


# --- a stage ---


def _train(model, tokenizer, data, tokens, config, stage, folder, progress, callbacks):
    """One stage: the model with its adapter merged, and what it reports."""
    from transformers import PrinterCallback

    wrapped = model.requires_grad_(True) if stage == "full" else _with_rows(model, tokens, config, stage)
    forward = model.__dict__.get("forward")
    trainer = answer_trainer()(
        model=wrapped,
        args=_arguments(model, config, stage, folder, config.n_steps(stage, len(data))),
        train_dataset=data,
        processing_class=tokenizer,
        callbacks=list(callbacks),
    )
    trainer.pool = 1 if config.packing else config.pool
    trainer.remove_callback(PrinterCallback)
    if progress:
        trainer.add_callback(progress_bar(stage))
    dtype = model.dtype
    for parameter in wrapped.parameters():
        if parameter.requires_grad:  # small steps need float32; trl rounds what is trained beside 4-bit weights
            parameter.data = parameter.data.float()
    checkpoint = last_checkpoint(folder)
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    del model.forward  # trl leaves one of its own on the model
    if forward is not None:
        model.forward = forward
    report = {
        "n_steps": trainer.state.global_step,
        "losses": [(entry["step"], entry["loss"]) for entry in trainer.state.log_history if "loss" in entry],
    }
    done = folder / "final"
    if stage == "full":
        model.to(dtype).save_pretrained(done)
        return model, report
    wrapped.peft_config["default"].base_model_name_or_path = model.name_or_path
    wrapped.save_pretrained(done, save_embedding_layers=False)
    merged = wrapped if stage == "lora" and _is_four_bit(model) else wrapped.merge_and_unload()
    return merged, report


def _with_rows(model, tokens, config: FineTuning, stage: str):
    """The model with an adapter that trains the new rows, and in the stage "lora" LoRA as well."""
    from peft import LoraConfig, get_peft_model
    from peft.utils.constants import DUMMY_TARGET_MODULES

    table, head = model.get_input_embeddings(), model.get_output_embeddings()
    if getattr(head, "bias", None) is not None:
        raise ValueError(f"the output head of {type(model).__name__} has a bias, which peft drops: use method 'full'")
    names = {id(module): name for name, module in model.named_modules()}
    new = trained_tokens(tokens)
    layers = [names[id(table)]] if head.weight is table.weight else [names[id(table)], names[id(head)]]
    adapter = LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        # none in the first stage; peft's own TrainableTokensConfig would do, but trl refuses it on an output head
        target_modules=DUMMY_TARGET_MODULES if stage == "rows" else list(_MAPS),
        trainable_token_indices=dict.fromkeys(layers, new),
        task_type="CAUSAL_LM",
    )
    torch.manual_seed(config.seed)  # LoRA begins at random
    wrapped = get_peft_model(model, adapter)
    if not hasattr(wrapped.get_output_embeddings(), "bias"):
        wrapped.get_output_embeddings().bias = None  # trl asks for it
    # with a name, peft would ask the hub at every checkpoint whether the vocabulary has grown, and then save all rows
    wrapped.peft_config["default"].base_model_name_or_path = ""
    return wrapped


def _arguments(model, config: FineTuning, stage: str, folder: Path, n_steps: int):
    from trl import SFTConfig

    on_gpu = model.device.type == "cuda"
    return SFTConfig(
        output_dir=str(folder),
        max_steps=config.row_steps if stage == "rows" else -1,
        num_train_epochs=config.n_epochs,
        learning_rate=config.row_learning_rate if stage == "rows" else config.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=config.warmup_share,
        # decay would only pull the new rows to 0
        weight_decay=0.0 if stage == "rows" else config.weight_decay,
        per_device_train_batch_size=config.batch_size,
        gradient_accumulation_steps=config.accumulation,
        max_length=config.max_length if config.packing else None,  # none is longer: nothing to cut
        packing=config.packing,
        use_cpu=not on_gpu,
        bf16=on_gpu,
        gradient_checkpointing=on_gpu,
        dataloader_pin_memory=on_gpu,
        save_steps=config.save_every,
        save_total_limit=2,
        logging_steps=min(10, max(1, n_steps // 10)),
        seed=config.seed,
        report_to="none",
        disable_tqdm=True,  # in a notebook it would write a table with a line for every entry; see `progress_bar`
    )


def _finished(model, stage: str, folder: Path):
    """The model as a stage that was finished before left it."""
    from peft import PeftModel

    if stage == "full":
        return type(model).from_pretrained(folder).to(model.device)
    wrapped = PeftModel.from_pretrained(model, str(folder))
    return wrapped if stage == "lora" and _is_four_bit(model) else wrapped.merge_and_unload()


def last_checkpoint(folder: str | Path) -> Path | None:
    """The latest whole checkpoint of transformers' Trainer in a folder: the state is what it writes last."""
    whole = [state.parent for state in Path(folder).glob("checkpoint-*/trainer_state.json")]
    return max(whole, key=lambda path: int(path.name.rpartition("-")[2]), default=None)


# --- small things ---


def _is_four_bit(model) -> bool:
    return bool(getattr(model, "is_loaded_in_4bit", False))


def _settings(model, data, tokens, config: FineTuning) -> dict[str, Any]:
    """What two runs must share for one to go on where the other stopped."""
    content = hashlib.sha256()
    for ids in data["input_ids"]:
        content.update(np.array(ids, dtype=np.int64).tobytes())
    first = model.get_input_embeddings().weight.flatten()[:8].tolist()  # tells models of one shape apart
    return {
        **dataclasses.asdict(config),
        "examples": content.hexdigest(),
        "tokens": trained_tokens(tokens),
        "model": [type(model).__name__, model.num_parameters(), *first],
    }


def _begin(folder: Path, settings: dict[str, Any], resume: bool) -> None:
    """Note the settings of a new run, or hold those of an old one against them."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "settings.json"
    if file.is_file() and resume:
        before = json.loads(file.read_text(encoding="utf-8"))
        free = {"save_every"}
        different = [name for name in settings if name not in free and settings[name] != before.get(name)]
        if different:
            raise ValueError(
                f"{folder} holds a run with other {', '.join(different)}: give another folder, or resume=False to "
                "start anew"
            )
        return
    for stage in ("rows", "lora", "full"):
        shutil.rmtree(folder / stage, ignore_errors=True)
    with fresh_file(file) as partial:
        partial.write_text(json.dumps(settings) + "\n", encoding="utf-8")
