"""Memory and time of fine-tuning, before it starts."""

import time
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from semid_lib.llm.base_models import MODELS, ModelFacts, facts_of
from semid_lib.llm.fine_tuning import FineTuning, is_four_bit, with_rows
from semid_lib.llm.trainer import Pools, answer_loss, lengths_of

_GIB = 2**30


class Estimate(NamedTuple):
    """Expected memory and time."""

    weights_gib: float  # of the model
    training_gib: float  # trained parameters, their gradients and AdamW's moments
    activations_gib: float  # kept for the backward pass
    seconds: float

    @property
    def memory_gib(self) -> float:
        return self.weights_gib + self.training_gib + self.activations_gib


def measured_speed(model, data, config: FineTuning, tokens: Sequence[np.ndarray]) -> float:
    """Training speed in tokens per second, without padding, from three batches; the weights do not change.

    Parameters
    ----------
    data : datasets.Dataset
        Of `examples.tokenize`.
    tokens : sequence of arrays
        The rows that are trained with LoRA.
    """
    trained = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    wrapped = model if config.method == "full" else with_rows(model, tokens, config, "lora")
    timed = _timed(wrapped.train(), data, config)[1:]  # the first one warms up
    if wrapped is not model:
        wrapped.unload()
    for name, parameter in model.eval().named_parameters():
        parameter.requires_grad = trained[name]
    return sum(n for n, _ in timed) / sum(seconds for _, seconds in timed)


def _timed(wrapped, data, config: FineTuning) -> list[tuple[int, float]]:
    """Tokens and seconds of four batches, forward and backward."""
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

    collate, timed = DataCollatorForLanguageModeling(pad_token_id=0), []
    order = list(Pools(lengths_of(data), config.batch_size, config.pool, config.seed))
    for chosen in np.resize(order, (4, config.batch_size)).tolist():
        batch = {name: values.to(wrapped.device) for name, values in collate([data[at] for at in chosen]).items()}
        begun = time.perf_counter()
        loss = answer_loss(wrapped, batch)
        loss.backward()
        loss.item()  # waits for a GPU
        timed.append((int(batch["attention_mask"].sum()), time.perf_counter() - begun))
        wrapped.zero_grad(set_to_none=True)
    return timed


def estimate(model, data, config: FineTuning, tokens: Sequence[np.ndarray], tokens_per_second: float) -> Estimate:
    """Estimate `fine_tune` of a model in memory, with the speed of `measured_speed` or of a similar run."""
    on_gpu, four_bit = model.device.type == "cuda", is_four_bit(model)
    bits = 4 if four_bit else 16 if on_gpu else 32
    return _estimate(facts_of(model), data, config, sum(map(len, tokens)), tokens_per_second, bits, on_gpu)


def estimate_known(data, n_codes: int, config: FineTuning, operations_per_second: float) -> pd.DataFrame:
    """Estimate fine-tuning each model of `MODELS` by LoRA on these examples, before one is downloaded.

    Time is 6 floating-point operations per parameter and token (Kaplan et al. 2020, arXiv 2001.08361, section 2.1) at
    an assumed speed of the GPU: an order of magnitude.

    Parameters
    ----------
    data : datasets.Dataset
        Of `examples.tokenize`, by any tokenizer.
    n_codes : int
        New tokens.

    Returns
    -------
    DataFrame
        One row per model: name and revision on the hub, parameters, memory with 16-bit and 4-bit weights, hours.
    """
    table = {}
    for key, facts in MODELS.items():
        speed = operations_per_second / (6 * facts.n_parameters)
        half, quarter = (_estimate(facts, data, config, n_codes, speed, bits, True) for bits in (16, 4))
        table[key] = {
            "name on the hub": facts.name,
            "revision": facts.revision[:8],
            "parameters, 10^9": facts.n_parameters / 1e9,
            "GiB at 16 bits": half.memory_gib,
            "GiB at 4 bits": quarter.memory_gib,
            "hours": half.seconds / 3600,
        }
    return pd.DataFrame(table).T


def _estimate(
    facts: ModelFacts, data, config: FineTuning, n_codes: int, speed: float, bits: int, checkpointing: bool
) -> Estimate:
    """Estimate memory and time by arithmetic, to within a third; add one GiB for CUDA itself.

    Weights: bits / 8 bytes per parameter; 4-bit weights take 0.56 bytes with their scales, and embedding and head stay
    in 16 bits; fully trained weights take 4 bytes. Training: 12 bytes per trained parameter (gradient and two moments);
    if only a part is trained, 4 more for its value, and a copy of embedding and head with a float32 gradient.
    Activations: 2 or 4 bytes for each token of a batch times d per layer with checkpointing, else 16 d + 4 f, plus
    16 d + 4 f for one recomputed layer.
    """
    lengths, n_tables, width = lengths_of(data), 1 if facts.tied else 2, 4 if bits == 32 else 2
    table = facts.vocabulary_size * facts.hidden_size * n_tables
    if config.stages[-1] == "full":
        weights, training = 4.0 * facts.n_parameters, 12.0 * facts.n_parameters
    else:
        n_lora = facts.lora_parameters(config.rank) * (config.stages[-1] == "lora")
        weights = (facts.n_parameters - table) * 0.56 + table * 2 if bits == 4 else facts.n_parameters * width
        training = 16 * (n_codes * facts.hidden_size * n_tables + n_lora) + table * (width + 4)
    layer = 16 * facts.hidden_size + 4 * facts.intermediate_size
    kept = facts.n_layers * facts.hidden_size + layer if checkpointing else facts.n_layers * layer
    activations = config.batch_size * int(lengths.max()) * width * kept
    n_steps = sum(config.n_steps(stage, len(lengths)) for stage in config.stages)
    n_tokens = int(n_steps * config.batch_size * config.accumulation * lengths.mean())
    return Estimate(weights / _GIB, training / _GIB, activations / _GIB, n_tokens / speed)
