"""Search by a language model that generates semantic IDs, and its free generations, without a trie.

The rate at which free generations name an item shows how much of the trie the model has learned.
"""

import json
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch

from semid_lib.decoding.adapters import level_of_tokens
from semid_lib.decoding.scorers import CausalScorer, check_tokens, load_tokens, save_tokens
from semid_lib.decoding.trie import PrefixTrie
from semid_lib.ids.semantic_ids import SemanticIDs, trained_tokens
from semid_lib.llm.base_models import load_base
from semid_lib.llm.examples import TEMPLATE_ARGUMENTS, encode_prompts, ensure_chat_template, prompt_for
from semid_lib.llm.fine_tuning import merge_adapter, save_model
from semid_lib.search.generative import GenerativeSearch
from semid_lib.search.hybrid_ranker import HybridSearch
from semid_lib.workbench.text import one_line, shown
from semid_lib.workbench.weights import shapes_of

TOKENS = "semantic_id_tokens.json"
_ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")


@dataclass(frozen=True)
class Adapter:
    """An adapter of LoRA fine-tuning, and the model of the hub that it was trained on.

    Raises
    ------
    ValueError
        For a revision that is no commit: a branch moves.
    """

    base: str  # name on the hub
    revision: str  # commit, 40 hexadecimal digits
    folder: Path  # `lora/final` of the run of `fine_tuning.fine_tune`

    def __post_init__(self):
        if not re.fullmatch(r"[0-9a-f]{40}", self.revision):
            raise ValueError(f"the adapter is for {self.base} at {self.revision!r}, expected a commit of 40 digits")


class LanguageModelSearch(GenerativeSearch):
    """Search by a language model that was fine-tuned to answer queries with semantic IDs.

    Parameters
    ----------
    tokens : sequence of arrays
        Token of each code per level, as `vocabulary.extend_vocabulary` returns them.
    adapter : Adapter, optional
        Saved in place of the model, into which it must be merged: hundreds of megabytes for a model of 4 billion
        parameters, which has eight gigabytes.
    """

    def __init__(
        self,
        model,
        tokenizer,
        tokens: Sequence[np.ndarray],
        trie: PrefixTrie,
        beam_width: int = 100,
        batch_size: int = 16,
        adapter: Adapter | None = None,
    ):
        super().__init__(CausalScorer(model, tokens), trie, beam_width, batch_size)
        self.model, self.tokenizer, self.tokens, self.adapter = model, tokenizer, tokens, adapter

    def save(self, folder: Path) -> tuple[dict, list[str]]:
        """Save the model to `llm/`, as vLLM loads it, with its tokenizer and tokens: -> as `HybridSearch.save`.

        An adapter is saved in place of the model, which is then loaded by name and commit.

        Raises
        ------
        ValueError
            For an adapter without the rows of the tokens.
        """
        facts: dict[str, Any] = {"type": "language model", "beam_width": self.beam_width, "task": "query_to_id"}
        written = folder / "llm"
        if self.adapter is None:
            save_model(self.model, self.tokenizer, written)
        else:
            _copy_adapter(self.adapter, self.tokens, written)
            self.tokenizer.save_pretrained(written)
            facts["base"] = {"name": self.adapter.base, "revision": self.adapter.revision}
        save_tokens(written / TOKENS, self.tokens, end_token(self.tokenizer))
        return facts, sorted(str(path.relative_to(folder)) for path in written.iterdir())

    @classmethod
    def load(cls, folder: Path, facts: dict, trie: PrefixTrie, device="cpu") -> "LanguageModelSearch":
        """Load what `save` wrote; ValueError names a file that does not fit."""
        llm, base, adapter = folder / "llm", None, None
        if "base" in facts:
            adapter = Adapter(facts["base"]["name"], facts["base"]["revision"], llm)
            base = load_base(adapter.base, adapter.revision, four_bit=False)[0]
        model, tokenizer = _language_model(llm, base)
        tokens = saved_tokens(llm, trie, model.get_input_embeddings().weight.shape[0])
        model = model.to(device).eval()
        return cls(model, tokenizer, tokens, trie, facts["beam_width"], adapter=adapter)

    def _contexts(self, queries: list[str], query_vectors: np.ndarray | None):
        return encode_prompts(self.tokenizer, [prompt_for(self.tokenizer, query) for query in queries])


def saved_tokens(folder: Path, trie: PrefixTrie, vocab_size: int) -> tuple[np.ndarray, ...]:
    """The tokens of a saved model; ValueError naming the file if they do not fit the trie or the model."""
    tokens, end = load_tokens(folder / TOKENS)
    try:
        check_tokens(tokens, trie, vocab_size)
        level_of_tokens(tokens, end)
    except ValueError as error:
        raise ValueError(f"{folder / TOKENS} does not fit the semantic IDs or the model: {error}") from error
    return tokens


def load_searcher(
    folder: Path, facts: dict, ids: SemanticIDs, items: pd.DataFrame, device="cpu", engine: str = "transformers"
) -> GenerativeSearch:
    """Load the searcher whose `save` wrote to the folder and returned the facts, for these items in row order.

    Parameters
    ----------
    engine : {"transformers", "vllm"}
        What runs a language model; vLLM chooses its device itself.

    Raises
    ------
    ValueError
        Naming a file that cannot be read or does not fit; for another engine; or for vLLM with a folder that has no
        language model, or only an adapter.
    """
    if engine not in ("transformers", "vllm"):
        raise ValueError(f"engine is {engine!r}, expected 'transformers' or 'vllm'")
    folder, is_llm = Path(folder), facts["type"] == "language model"
    if is_llm and facts.get("task", "query_to_id") != "query_to_id":  # earlier versions could ask otherwise
        raise ValueError(f"{folder} has a model that is asked {facts['task']!r}, expected 'query_to_id'")
    if engine == "transformers":
        if not is_llm:
            return HybridSearch.load(folder, facts, ids, items, device)
        return LanguageModelSearch.load(folder, facts, PrefixTrie.build(ids.unique).to(device), device)
    if not is_llm:
        raise ValueError(f"engine 'vllm' runs language models, {folder} has a search model of type {facts['type']!r}")
    if "base" in facts:
        raise ValueError(f"{folder} has an adapter for {facts['base']['name']}, vLLM needs a model: save it whole")
    from semid_lib.llm.vllm_search import VLLMSearch

    return VLLMSearch(folder / "llm", PrefixTrie.build(ids.unique), facts["beam_width"])


def _language_model(folder: Path, base=None):
    """A saved model, or a base with the saved adapter, and the tokenizer.

    transformers would initialize missing weights at random, and build as many layers as the config has.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        if base is not None:
            return merge_adapter(base, tokenizer, folder), tokenizer
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False).get_text_config()
        names = [name for file in folder.glob("*.safetensors") for name in shapes_of(file)]
        layers = {layer for name in names for layer in re.findall(r"\.layers\.(\d+)\.", name)}
        if layers and config.num_hidden_layers != len(layers):
            raise ValueError(f"config.json has {config.num_hidden_layers} layers, the weights have {len(layers)}")
        options: dict[str, Any] = {"use_safetensors": True, "output_loading_info": True}
        loaded: Any = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=False, **options)
        model, found = loaded
        if lacking := [*found["missing_keys"], *found["mismatched_keys"]]:
            raise ValueError(f"{len(lacking)} weights are missing or of another shape, such as {shown(lacking[0])}")
        return model, tokenizer
    except Exception as error:  # of some twenty types, depending on which part of transformers meets the file
        raise ValueError(f"{folder} has no language model that can be loaded: {one_line(str(error), 300)}") from error


def _copy_adapter(adapter: Adapter, tokens: Sequence[np.ndarray], folder: Path) -> None:
    source = Path(adapter.folder)
    for name in _ADAPTER_FILES:
        if not (source / name).is_file():
            raise ValueError(f"{source / name} is missing: expected lora/final of a run of fine_tuning.fine_tune")
    trained = json.loads((source / _ADAPTER_FILES[0]).read_text(encoding="utf-8")).get("trainable_token_indices") or {}
    if not trained or any(sorted(rows) != trained_tokens(tokens) for rows in trained.values()):
        raise ValueError(f"{source} is an adapter without the rows of these semantic-ID tokens")
    folder.mkdir(parents=True, exist_ok=True)
    if source.resolve() != folder.resolve():
        for name in _ADAPTER_FILES:
            shutil.copyfile(source / name, folder / name)


# --- without a trie ---


class Generated(NamedTuple):
    """Free generations of a language model."""

    codes: np.ndarray  # (n, n_levels) int64, -1 for a token that is no code of its level
    items: np.ndarray  # (n,) int64 item rows, -1 if the answer is not exactly the semantic ID of an item


@torch.inference_mode()
def generate_freely(
    model,
    tokenizer,
    tokens: Sequence[np.ndarray],
    trie: PrefixTrie,
    queries: Sequence[str],
    sample: bool = False,
    batch_size: int = 64,
    seed: int = 0,
) -> Generated:
    """Let a language model answer queries over its whole vocabulary.

    An answer names an item if it has one code per level in order, these are the codes of an item, and the end follows.

    Parameters
    ----------
    sample : bool
        Sample each token from the full distribution; default: take the most probable.
    """
    answers = np.full((len(queries), len(tokens) + 1), -1)
    how = {"do_sample": True, "top_k": 0, "top_p": 1.0, "temperature": 1.0} if sample else {"do_sample": False}
    options = {**how, "max_new_tokens": len(tokens) + 1, "pad_token_id": tokenizer.pad_token_id}
    with torch.random.fork_rng(devices=[model.device] if model.device.type == "cuda" else []):
        torch.manual_seed(seed)
        for start in range(0, len(queries), batch_size):
            asked = [prompt_for(tokenizer, query) for query in queries[start : start + batch_size]]
            prompts = encode_prompts(tokenizer, asked).to(model.device)
            inputs = {name: prompts[name] for name in ("input_ids", "attention_mask")}
            answer = model.generate(**inputs, **options)[:, prompts["input_ids"].shape[1] :]
            answers[start : start + len(asked), : answer.shape[1]] = answer.cpu().numpy()
    codes = np.full((len(answers), len(tokens)), -1)
    node = torch.zeros(len(codes), dtype=torch.long)
    for level, ids in enumerate(tokens):
        row, code = np.nonzero(answers[:, level, None] == np.asarray(ids))
        codes[row, level] = code
        node = trie.step(level, node, torch.from_numpy(codes[:, level]))
    return Generated(codes, np.where(answers[:, -1] == end_token(tokenizer), trie.item_at(node).numpy(), -1))


def end_token(tokenizer) -> int:
    """The token with which the chat template ends an answer."""
    messages = [{"role": "user", "content": "question"}, {"role": "assistant", "content": "ANSWER"}]
    ensure_chat_template(tokenizer)
    text = tokenizer.apply_chat_template(messages, tokenize=False, **TEMPLATE_ARGUMENTS)
    return tokenizer(text.rpartition("ANSWER")[2], add_special_tokens=False)["input_ids"][0]
