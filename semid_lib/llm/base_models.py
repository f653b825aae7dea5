"""The language models to fine-tune: facts about known ones, loading, and a small one from scratch.

No code from a model's repository is run.
"""

import importlib.util
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from semid_lib.ids.embed import normalize
from semid_lib.llm.examples import MAX_LENGTH, ensure_chat_template


@dataclass(frozen=True)
class ModelFacts:
    """Name and shape of a model."""

    name: str  # on the Hugging Face hub
    revision: str  # commit of these facts
    n_parameters: int
    hidden_size: int
    n_layers: int
    intermediate_size: int  # of the feed-forward block
    query_size: int  # heads x head size
    key_size: int  # key-value heads x head size
    vocabulary_size: int  # rows of the input embedding
    tied: bool  # whether the output head is the input embedding

    def lora_parameters(self, rank: int) -> int:
        """Parameters of LoRA matrices of a rank for all seven linear maps of each layer."""
        d, q, k, f = self.hidden_size, self.query_size, self.key_size, self.intermediate_size
        return self.n_layers * rank * (2 * (d + q) + 2 * (d + k) + 3 * (d + f))


_KNOWN = tomllib.loads(Path(__file__).with_name("models.toml").read_text(encoding="utf-8"))
MODELS = {key: ModelFacts(**facts) for key, facts in _KNOWN.items()}
DEFAULT_MODEL = "qwen3-4b"


def facts_of(model) -> ModelFacts:
    """The facts of a model in memory (Qwen3, Llama, Mistral and others with the same attribute names)."""
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


def load_base(name: str = DEFAULT_MODEL, revision: str | None = None, four_bit: bool | None = None):
    """Load a language model and its tokenizer, in float32 on a CPU and bfloat16 on a GPU.

    Parameters
    ----------
    name : str
        A key of `MODELS`, a name on the hub, or a local folder.
    four_bit : bool, optional
        Load 4-bit weights through unsloth, for QLoRA (Dettmers et al. 2023); default: if there are CUDA and unsloth.
        unsloth must be imported before trl, transformers and peft, so call this function first. Written for unsloth
        2026.10 and never run, since no GPU was available.

    Raises
    ------
    FileNotFoundError
        If the model is neither local nor can be downloaded.
    ValueError
        If `four_bit` is set without CUDA and unsloth.
    """
    known = MODELS.get(name)
    if known:
        name, revision = known.name, revision or known.revision
    has_unsloth = torch.cuda.is_available() and importlib.util.find_spec("unsloth") is not None
    if four_bit and not has_unsloth:
        raise ValueError("four_bit needs CUDA and unsloth (pip install unsloth): leave it out for bfloat16")
    try:
        if has_unsloth and four_bit is not False and not _has_images(name, revision):
            from unsloth import FastLanguageModel

            return FastLanguageModel.from_pretrained(
                name, revision=revision, max_seq_length=MAX_LENGTH, load_in_4bit=True, trust_remote_code=False
            )
        return _load(name, revision)
    except OSError as error:  # transformers' error for missing files
        download = f"hf download {name}" + (f" --revision {revision}" if revision else "")
        raise FileNotFoundError(
            f"{name} is neither a local folder nor in the cache of models, and it could not be downloaded. With a "
            f"network, run `{download}` once with HF_HUB_OFFLINE unset (for a gated model, accept its licence on the "
            "hub and run `hf auth login`); without one, copy the model's folder here and give its path as the name"
        ) from error


def _has_images(name: str, revision: str | None) -> bool:
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=False)
    return config.get_text_config() is not config


def _load(name: str, revision: str | None):
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoTokenizer

    has_images, on_gpu = _has_images(name, revision), torch.cuda.is_available()
    kind = AutoModelForImageTextToText if has_images else AutoModelForCausalLM
    tokenizer = AutoTokenizer.from_pretrained(name, revision=revision, trust_remote_code=False)
    dtype = torch.bfloat16 if on_gpu else torch.float32
    model: Any = kind.from_pretrained(name, revision=revision, trust_remote_code=False, dtype=dtype)
    model = text_half(model) if has_images else model
    return (model.cuda() if on_gpu else model), tokenizer


def text_half(model):
    """The language model of a model of images and text, as a separate model with the same weights."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        text = AutoModelForCausalLM.from_config(model.config.get_text_config())
    setattr(text, text.base_model_prefix, model.get_decoder())
    text.set_output_embeddings(model.get_output_embeddings())
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
    """Make a small Qwen3 with random weights, and a byte-level BPE tokenizer trained on the texts.

    The tokenizer lower-cases, and has an end token, a padding token and the plain chat template of `examples`.
    Feed-forward blocks are three times as wide as the model. Weights have a standard deviation of hidden_size ** -0.5:
    with Qwen's 0.02, made for wide models, a narrow model learns several times more slowly.

    Parameters
    ----------
    embed : callable, optional
        Texts to vectors, such as an `embed.Encoder`. The embeddings of the tokens then start from its vectors
        (`meaning_rows`), so that words of similar meaning start near each other.

    Returns
    -------
    model, tokenizer

    Raises
    ------
    ValueError
        Without texts.

    Examples
    --------
    >>> model, tokenizer = small_model(["a blue tent", "a blue lamp"], 300, hidden_size=16, n_layers=1, n_heads=2)
    >>> tokenizer.decode(tokenizer("A blue tent")["input_ids"])
    'a blue tent'
    """
    from transformers import Qwen3Config, Qwen3ForCausalLM

    tokenizer = _small_tokenizer(texts, vocabulary_size)
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
        model: Any = Qwen3ForCausalLM(config)
    if embed is not None:
        tokens = [tokenizer.decode([token]).strip() or " " for token in range(len(tokenizer))]
        rows = meaning_rows(embed(tokens), hidden_size)
        with torch.no_grad():
            model.get_input_embeddings().weight.copy_(torch.from_numpy(rows))
    return model, tokenizer


def _small_tokenizer(texts: Sequence[str], vocabulary_size: int):
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    if not any(texts):
        raise ValueError("there are no texts to train a tokenizer on")
    core = Tokenizer(models.BPE())
    core.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    special, alphabet = ["<|pad|>", "<|end|>"], pre_tokenizers.ByteLevel.alphabet()
    options: dict[str, Any] = {"special_tokens": special, "initial_alphabet": alphabet, "show_progress": False}
    core.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=vocabulary_size, **options))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, pad_token=special[0], eos_token=special[1])
    ensure_chat_template(tokenizer)
    return tokenizer


def meaning_rows(vectors: np.ndarray, hidden_size: int) -> np.ndarray:
    """Turn vectors of tokens into rows of an embedding: their first principal components, scaled to length 1.

    Returns
    -------
    (n_tokens, hidden_size) float32 array
        With zeros for missing components, and for a token at the mean.

    Examples
    --------
    >>> rows = meaning_rows(np.array([[3.0, 0.1], [1.0, -0.1], [2.0, 0.0]]), 1)
    >>> np.abs(rows).round(2).tolist()  # the second dimension varies little and is left out
    [[1.0], [1.0], [0.0]]
    """
    centred = vectors - vectors.mean(axis=0)
    _, _, components = np.linalg.svd(centred, full_matrices=False)
    rows = normalize(centred @ components[:hidden_size].T).astype(np.float32)
    return np.pad(rows, [(0, 0), (0, hidden_size - rows.shape[1])])
