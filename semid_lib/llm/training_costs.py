"""Memory and time of fine-tuning, before it starts."""

import time
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from semid_lib.llm.base_models import MODELS, ModelFacts, facts_of
from semid_lib.llm.examples import require_packages
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


def estimate_training(
    facts: ModelFacts,
    n_tokens: int,
    tokens_per_second: float,
    batch_tokens: int,
    n_trained: int,
    bits: int = 16,
    checkpointing: bool = True,
) -> Estimate:
    """Estimate memory and time by arithmetic, to within a third; add one GiB for CUDA itself.

    Weights: bits / 8 bytes per parameter; 4-bit weights take 0.56 bytes with their scales, and embedding and head stay
    in 16 bits; fully trained weights take 4 bytes. Training: 12 bytes per trained parameter (gradient and two moments);
    if only a part is trained, 4 more for its value, and a copy of embedding and head with a float32 gradient.
    Activations: 2 or 4 bytes for each token of a batch times d per layer with checkpointing, else 16 d + 4 f, plus
    16 d + 4 f for one recomputed layer.

    Parameters
    ----------
    n_tokens : int
        Of all examples, times the epochs.
    batch_tokens : int
        Of one step on one device, with padding.
    n_trained : int
        Trained parameters.
    bits : {4, 16, 32}

    Raises
    ------
    ValueError
        For other bits, or a speed that is not positive.

    Examples
    --------
    >>> cost = estimate_training(MODELS["qwen3-4b"], 10**7, 5000, 8192, n_trained=66 * 10**6, bits=4)
    >>> round(cost.weights_gib, 1), round(cost.memory_gib), cost.seconds
    (2.6, 8, 2000.0)
    """
    if bits not in (4, 16, 32) or not tokens_per_second > 0:
        raise ValueError(f"expected 4, 16 or 32 bits and a positive speed, got {bits} and {tokens_per_second}")
    table = facts.vocabulary_size * facts.hidden_size * (1 if facts.tied else 2)
    width = 4 if bits == 32 else 2
    if n_trained < facts.n_parameters:
        weights = (facts.n_parameters - table) * 0.56 + table * 2 if bits == 4 else facts.n_parameters * width
        training = 16 * n_trained + table * (width + 4)
    else:
        weights, training = facts.n_parameters * 4, 12 * n_trained
    layer = 16 * facts.hidden_size + 4 * facts.intermediate_size
    kept = facts.n_layers * facts.hidden_size + layer if checkpointing else facts.n_layers * layer
    return Estimate(weights / _GIB, training / _GIB, batch_tokens * width * kept / _GIB, n_tokens / tokens_per_second)


def measured_speed(model, data, config: FineTuning, tokens: Sequence[np.ndarray] = (), n_batches: int = 3) -> float:
    """Training speed in tokens per second, without padding, from a few batches; the weights do not change.

    Parameters
    ----------
    data : datasets.Dataset
        Of `examples.tokenize`.
    tokens : sequence of arrays, optional
        Measure LoRA with the rows of these tokens; default: the whole model.
    """
    require_packages()
    trained = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    wrapped = model if not len(tokens) or config.method == "full" else with_rows(model, tokens, config, "lora")
    timed = _timed(wrapped.train(), data, config, n_batches)
    if wrapped is not model:
        wrapped.unload()
    for name, parameter in model.eval().named_parameters():
        parameter.requires_grad = trained[name]
    return sum(n for n, _ in timed) / sum(seconds for _, seconds in timed)


def _timed(wrapped, data, config: FineTuning, n_batches: int) -> list[tuple[int, float]]:
    """Tokens and seconds of batches forward and backward, after one for warming up."""
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

    collate, timed = DataCollatorForLanguageModeling(pad_token_id=0), []
    order = np.array(list(Pools(lengths_of(data), config.batch_size, config.pool, config.seed)))
    for place in range(n_batches + 1):
        chosen = np.take(order, range(place * config.batch_size, (place + 1) * config.batch_size), mode="wrap")
        batch = {name: values.to(wrapped.device) for name, values in collate([data[int(at)] for at in chosen]).items()}
        begun = time.perf_counter()
        loss = answer_loss(wrapped, batch)
        loss.backward()
        loss.item()  # waits for a GPU
        timed.append((int(batch["attention_mask"].sum()), time.perf_counter() - begun))
        wrapped.zero_grad(set_to_none=True)
    return timed[1:]


def estimate(model, data, config: FineTuning, tokens: Sequence[np.ndarray], tokens_per_second: float) -> Estimate:
    """Estimate `fine_tune` of a model in memory, with the speed of `measured_speed` or of a similar run."""
    on_gpu, four_bit = model.device.type == "cuda", is_four_bit(model)
    bits = 4 if four_bit else 16 if on_gpu else 32
    return _estimate(facts_of(model), data, config, sum(map(len, tokens)), tokens_per_second, bits, on_gpu)


def estimate_known(data, n_codes: int, config: FineTuning, operations_per_second: float = 1e14) -> pd.DataFrame:
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
    facts: ModelFacts, data, config: FineTuning, n_codes: int, speed: float, bits: int, on_gpu: bool
) -> Estimate:
    lengths = lengths_of(data)
    n_steps = sum(config.n_steps(stage, len(lengths)) for stage in config.stages)
    n_tokens = int(n_steps * config.batch_size * config.accumulation * lengths.mean())
    n_trained = facts.n_parameters
    if config.stages[-1] != "full":
        n_trained = n_codes * facts.hidden_size * (1 if facts.tied else 2)
        n_trained += facts.lora_parameters(config.rank) * (config.stages[-1] == "lora")
    return estimate_training(facts, n_tokens, speed, config.batch_size * int(lengths.max()), n_trained, bits, on_gpu)
