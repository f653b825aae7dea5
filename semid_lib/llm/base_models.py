"""The language models that are fine-tuned: facts about those we know, loading them, and a small one from scratch.

Nothing here runs code from a model's repository.
"""

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from semid_lib.ids.embed import normalize

_GIB = 2**30


@dataclass(frozen=True)
class ModelFacts:
    """What a model is called and how large it is."""

    name: str  # on the Hugging Face hub
    revision: str  # the commit that these facts are of
    n_parameters: int
    hidden_size: int
    n_layers: int
    intermediate_size: int  # of the feed-forward block
    query_size: int  # heads x head size
    key_size: int  # key-value heads x head size
    vocabulary_size: int  # rows of the input embedding
    tied: bool  # whether the output head is the input embedding

    def lora_parameters(self, rank: int) -> int:
        """Parameters of LoRA matrices of that rank beside all seven linear maps of each layer."""
        d, q, k, f = self.hidden_size, self.query_size, self.key_size, self.intermediate_size
        return self.n_layers * rank * (2 * (d + q) + 2 * (d + k) + 3 * (d + f))


# Shapes: the models' config.json as others quote it; parameters: counted on a model of that shape without weights (a
# test counts them again). The commits are those that public repositories pin; the hub itself was not reachable. Not
# confirmed: whether they are the newest. Ministral is a model of images and text, of which `load_base` takes the text
# half; its instruct weights in bfloat16 are a repository of their own, as the main one has them in float8. Llama asks
# for its licence to be accepted on the hub.
MODELS = {
    "qwen3-4b": ModelFacts(
        *("Qwen/Qwen3-4B", "1cfa9a7208912126459214e8b04321603b3df60c", 4_022_468_096),
        *(2560, 36, 9728, 4096, 1024, 151_936, True),
    ),
    "qwen3-8b": ModelFacts(
        *("Qwen/Qwen3-8B", "b968826d9c46dd6066d109eabc6255188de91218", 8_190_735_360),
        *(4096, 36, 12_288, 4096, 1024, 151_936, False),
    ),
    "ministral-3b": ModelFacts(
        *("mistralai/Ministral-3-3B-Instruct-2512-BF16", "ecc3ba8b43a45610e709327c049d24b009bfec88", 3_429_006_336),
        *(3072, 26, 9216, 4096, 1024, 131_072, True),
    ),
    "llama-3.2-3b": ModelFacts(
        *("meta-llama/Llama-3.2-3B-Instruct", "0cb88a4f764b7a12671c53f0838cd831a0843b95", 3_212_749_824),
        *(3072, 28, 8192, 3072, 1024, 128_256, True),
    ),
}
DEFAULT_MODEL = "qwen3-4b"


def facts_of(model) -> ModelFacts:
    """The facts of a model in memory (Qwen3, Llama, Mistral and others that name their shape as these do)."""
    config = model.config.get_text_config()
    heads = config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    return ModelFacts(
        name=config._name_or_path or type(model).__name__,
        revision="",
        n_parameters=model.num_parameters(),
        hidden_size=config.hidden_size,
        n_layers=config.num_hidden_layers,
        intermediate_size=config.intermediate_size,
        query_size=heads * size,
        key_size=(getattr(config, "num_key_value_heads", None) or heads) * size,
        vocabulary_size=config.vocab_size,
        tied=model.get_output_embeddings().weight is model.get_input_embeddings().weight,
    )


# --- loading ---


def load_base(name: str = DEFAULT_MODEL, revision: str | None = None, four_bit: bool | None = None, max_length=512):
    """A language model and its tokenizer: one of `MODELS`, a name on the hub, or a local folder.

    In float32 on CPU and bfloat16 on a GPU. four_bit: through unsloth with 4-bit weights, for QLoRA (Dettmers et al.
    2023); None does so where there are CUDA and unsloth. unsloth must be imported before trl, transformers and peft,
    so call this first. That path has been written for unsloth 2026.10 and not run here: there was no GPU.

    Raises FileNotFoundError that says what to do if the model is neither there nor to be had, ValueError if 4 bits are
    wanted without CUDA and unsloth.
    """
    facts = MODELS.get(name)
    revision = revision or (facts.revision if facts else None)
    name = facts.name if facts else name
    has_unsloth = torch.cuda.is_available() and importlib.util.find_spec("unsloth") is not None
    if four_bit and not has_unsloth:
        raise ValueError(
            "four_bit needs CUDA and unsloth (pip install unsloth): without them leave it out, for bfloat16"
        )
    try:
        if has_unsloth and four_bit is not False and not _has_images(name, revision):
            from unsloth import FastLanguageModel

            model, tokenizer = FastLanguageModel.from_pretrained(
                name, revision=revision, max_seq_length=max_length, load_in_4bit=True, trust_remote_code=False
            )
        else:
            model, tokenizer = _load(name, revision)
    except OSError as error:  # what transformers raises for files that are neither there nor to be had
        download = f"hf download {name}" + (f" --revision {revision}" if revision else "")
        raise FileNotFoundError(
            f"{name} is neither a local folder nor in the cache of models, and it could not be downloaded. With a "
            f"network, run `{download}` once with HF_HUB_OFFLINE unset (for a model that asks for it, accept its "
            "licence on the hub and `hf auth login`); without one, copy the model's folder here and give its path as "
            "the name"
        ) from error
    return model, tokenizer


def _has_images(name: str, revision: str | None) -> bool:
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=False)
    return config.get_text_config() is not config


def _load(name: str, revision: str | None):
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoTokenizer

    given = {"revision": revision, "trust_remote_code": False}
    kind = AutoModelForImageTextToText if _has_images(name, revision) else AutoModelForCausalLM
    tokenizer = AutoTokenizer.from_pretrained(name, **given)
    on_gpu = torch.cuda.is_available()
    model = kind.from_pretrained(name, dtype=torch.bfloat16 if on_gpu else torch.float32, **given)
    if kind is AutoModelForImageTextToText:
        model = text_half(model)
    return (model.cuda() if on_gpu else model), tokenizer


def text_half(model):
    """The language model inside a model of images and text, as a model of its own that shares its weights."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        text = AutoModelForCausalLM.from_config(model.config.get_text_config())
    text.get_decoder().load_state_dict(model.get_decoder().state_dict(), assign=True)
    text.set_output_embeddings(model.get_output_embeddings())
    text.tie_weights()
    for rotary in (module for module in text.modules() if hasattr(module, "inv_freq")):  # buffers that no file holds
        source = next(module for module in model.get_decoder().modules() if hasattr(module, "inv_freq"))
        rotary.load_state_dict(source.state_dict(), assign=True)
        for name, buffer in source.named_buffers(recurse=False):
            setattr(rotary, name, buffer)
    text.generation_config = model.generation_config
    return text


# --- from scratch ---


def small_model(
    texts: Sequence[str],
    vocabulary_size: int = 8000,
    hidden_size: int = 256,
    n_layers: int = 4,
    n_heads: int = 4,
    tied: bool = True,
    seed: int = 0,
    embed: Callable[[Sequence[str]], np.ndarray] | None = None,
):
    """A small Qwen3 with random weights and a byte-level BPE tokenizer trained on the texts: (model, tokenizer).

    The tokenizer lower-cases (queries are, titles are not), reads any text, has an end and a padding token and the
    plain chat template of `sft_examples`. Feed-forward blocks are three times as wide as the model. Weights begin with
    a spread of hidden_size ** -0.5: with Qwen's own 0.02, made for wide models, a narrow one learns several times more
    slowly.

    embed: texts to vectors, such as an `embed.Encoder`. The rows of the words then begin with what a sentence encoder
    says of each token alone, so that words of like meaning begin as neighbours (`meaning_rows`).

    Raises ValueError without texts.

    >>> model, tokenizer = small_model(["a blue tent", "a blue lamp"], 300, hidden_size=16, n_layers=1, n_heads=2)
    >>> tokenizer.decode(tokenizer("A blue tent")["input_ids"])
    'a blue tent'
    """
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

    from semid_lib.llm.examples import ensure_chat_template

    if not any(texts):
        raise ValueError("there are no texts to train a tokenizer on")
    core = Tokenizer(models.BPE())
    core.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    special = ["<|pad|>", "<|end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary_size,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, pad_token=special[0], eos_token=special[1])
    ensure_chat_template(tokenizer)
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=hidden_size,
        intermediate_size=3 * hidden_size,
        num_hidden_layers=n_layers,
        num_attention_heads=n_heads,
        num_key_value_heads=n_heads,
        head_dim=hidden_size // n_heads,
        max_position_embeddings=2048,
        tie_word_embeddings=tied,
        initializer_range=hidden_size**-0.5,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen3ForCausalLM(config)
    if embed is not None:
        tokens = [tokenizer.decode([token]).strip() or " " for token in range(len(tokenizer))]
        rows = meaning_rows(embed(tokens), hidden_size)
        with torch.no_grad():
            model.get_input_embeddings().weight.copy_(torch.from_numpy(rows))
    return model, tokenizer


def meaning_rows(vectors: np.ndarray, hidden_size: int) -> np.ndarray:
    """Vectors of tokens as rows of an embedding: -> (n_tokens, hidden_size) float32 of length 1, as random rows have.

    They are centred and turned to their first `hidden_size` principal components; where there are fewer, zeros follow.
    A token at the very mean gets a row of zeros.

    >>> rows = meaning_rows(np.array([[3.0, 0.1], [1.0, -0.1], [2.0, 0.0]]), 1)
    >>> np.abs(rows).round(2).tolist()  # the second dimension says little and is left out
    [[1.0], [1.0], [0.0]]
    """
    centred = vectors - vectors.mean(axis=0)
    _, _, components = np.linalg.svd(centred, full_matrices=False)
    rows = normalize(centred @ components[:hidden_size].T).astype(np.float32)
    return np.pad(rows, [(0, 0), (0, hidden_size - rows.shape[1])])


# --- what it will cost ---


class Estimate(NamedTuple):
    """What fine-tuning will take, before it starts."""

    weights_gib: float  # the model's own
    training_gib: float  # what is trained, its gradients and AdamW's moments
    activations_gib: float  # what a step keeps for the backward pass
    seconds: float

    @property
    def memory_gib(self) -> float:
        return self.weights_gib + self.training_gib + self.activations_gib


def estimate_cost(
    facts: ModelFacts,
    n_tokens: int,
    tokens_per_second: float,
    batch_tokens: int,
    n_trained: int,
    bits: int = 16,
    checkpointing: bool = True,
) -> Estimate:
    r"""Memory and time of fine-tuning: arithmetic, good to a third; add a GiB for CUDA itself.

    weights = P \* bits / 8, where 4-bit weights take 0.56 bytes (with their scales) and leave the V x d embedding, and
    the head, in 16 bits; all in float32 if all are trained. training = 12 bytes per trained parameter (gradient, two
    moments; float32), and if that is not the whole model 4 more (its value beside the model's own) and a copy of the
    embedding that holds the new rows and its gradient in float32, for the head once more if it is not tied.
    activations = 2 or 4 bytes for each of the batch's tokens and (per layer, if checkpointed d, otherwise 16 d + 4 f;
    and of one layer recomputed 16 d + 4 f). seconds = tokens / tokens per second.

    facts: of the model. n_tokens: of all examples, times the epochs. tokens_per_second: measured (`sft.measured_speed`)
    or known. batch_tokens: of one step on one device, padding included. n_trained: parameters that are trained.
    bits: 4, 16 or 32. Raises ValueError for other bits or a speed that is not positive.

    >>> cost = estimate_cost(MODELS["qwen3-4b"], 10**7, 5000, 8192, n_trained=66 * 10**6, bits=4)
    >>> round(cost.weights_gib, 1), round(cost.memory_gib), cost.seconds
    (2.6, 8, 2000.0)
    """
    if bits not in (4, 16, 32) or not tokens_per_second > 0:
        raise ValueError(f"expected 4, 16 or 32 bits and a positive speed, got {bits} and {tokens_per_second}")
    table = facts.vocabulary_size * facts.hidden_size * (1 if facts.tied else 2)
    width = 4 if bits == 32 else 2
    weights = facts.n_parameters * width
    if bits == 4:
        weights = (facts.n_parameters - table) * 0.56 + table * 2
    training = 12 * n_trained
    if n_trained < facts.n_parameters:
        training += 4 * n_trained + table * (width + 4)
    else:
        weights = facts.n_parameters * 4
    layer = 16 * facts.hidden_size + 4 * facts.intermediate_size
    kept = facts.n_layers * facts.hidden_size + layer if checkpointing else facts.n_layers * layer
    return Estimate(weights / _GIB, training / _GIB, batch_tokens * width * kept / _GIB, n_tokens / tokens_per_second)
