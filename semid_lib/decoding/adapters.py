"""Semantic IDs in other decoders: `generate` of transformers, and vLLM for language models that are served by it.

Our own search is `beam_search.constrained_beam_search`. `tokens[level][code]` is the token id of a code in the model's
vocabulary, see `semantic_ids.token_layout`. Levels may have more tokens than the trie has codes.
"""

from collections.abc import Sequence
from functools import cache, partial

import numpy as np
import torch

from semid_lib.decoding.scorers import check_tokens, load_tokens
from semid_lib.decoding.trie import PrefixTrie


def allowed_tokens_fn(sequences: np.ndarray, prompt_length: int) -> partial:
    """A `prefix_allowed_tokens_fn` for `generate` of transformers that allows these sequences of tokens.

    It asks a trie of nested dicts once for each beam and token: plain, and slow beside `constrained_beam_search`. After
    tokens that begin no sequence, as in beams that `generate` does not use, it allows token 0, since transformers
    refuses an empty list.

    Parameters
    ----------
    sequences : (n, L) int array
        The tokens of each semantic ID.
    prompt_length : int
        Tokens before the ID: those of the padded prompt, or 1 for an encoder-decoder.

    Raises ValueError for sequences of another form and a negative length.

    Examples
    --------
    >>> follow = allowed_tokens_fn(np.array([[5, 7], [5, 8]]), prompt_length=1)
    >>> follow(0, torch.tensor([1, 5])), follow(0, torch.tensor([1, 6]))
    ([7, 8], [0])
    """
    sequences = np.asarray(sequences)
    if sequences.ndim != 2 or not np.issubdtype(sequences.dtype, np.integer) or prompt_length < 0:
        found = f"{sequences.dtype} {sequences.shape} after {prompt_length} tokens"
        raise ValueError(f"sequences are {found}, expected (n, L) integers after 0 or more tokens")
    trie: dict = {}
    for tokens in sequences.tolist():
        node = trie
        for token in tokens:
            node = node.setdefault(token, {})
    return partial(_follow, trie, prompt_length)


def _follow(trie: dict, prompt_length: int, _: int, sequence: torch.Tensor) -> list[int]:
    for token in sequence[prompt_length:].tolist():
        trie = trie.get(token, {})
    return list(trie) or [0]


class _VLLMTrie:
    """Restricts all requests of a vLLM engine to the trie: a V1 logits processor (tested with vLLM 0.32.0).

        trie.save("trie.safetensors")
        save_tokens("tokens.json", tokens, tokenizer.eos_token_id)
        llm = LLM(model, logits_processors=["semid_lib.decoding.adapters:VLLMTrieProcessor"],
                  additional_config={"semid_trie": "trie.safetensors", "semid_tokens": "tokens.json"},
                  logprobs_mode="processed_logits", max_logprobs=-1)
        llm.beam_search(prompts, BeamSearchParams(beam_width=10, max_tokens=trie.n_levels))

    Keep the trie out of the model's folder, where vLLM reads every safetensors file as weights. `vllm serve` has the
    same options. A request of `generate` may have `extra_args={"semid": False}` for no restriction; `LLM.beam_search`
    passes no `extra_args`.

    The mask follows the log-softmax over the vocabulary, so that vLLM's beam search ranks as that of transformers does.
    `beam_search` appends the tokens of a beam to the prompt and submits it again. So the level of the last token tells
    where an ID begins: after a token of level l, the last l + 1 tokens are the prefix; after any other token a new ID
    begins. Tokens must therefore differ between levels, and `max_tokens` of a beam search must be n_levels. Only the
    end token follows a complete ID, or a prefix of no item: drop answers of -inf and those that are no item.

    vLLM's V2 model runner, the default on a GPU, has another interface: set VLLM_USE_V2_MODEL_RUNNER=0.
    `llm.vllm_search.VLLMSearch` does all this for a folder.
    """

    def __init__(self, vllm_config, device: torch.device, is_pin_memory: bool):
        settings = vllm_config.additional_config
        for name in ("semid_trie", "semid_tokens"):
            if name not in settings:
                raise ValueError(f"additional_config has no {name!r}: the path of a file")
        tokens, self.end_token = load_tokens(settings["semid_tokens"])
        trie = self.trie = PrefixTrie.load(settings["semid_trie"]).to(device)
        vocab_size = vllm_config.model_config.get_vocab_size()
        check_tokens(tokens, trie, vocab_size)
        if not 0 <= self.end_token < vocab_size:
            raise ValueError(f"end token {self.end_token} is outside the vocabulary of {vocab_size}")
        self._level = level_of_tokens(tokens, self.end_token)
        self._tokens = [torch.as_tensor(ids, device=device) for ids in tokens]
        self._code = torch.full((trie.n_levels, vocab_size), -1, device=device)  # of each token, -1 for none
        for code, ids in zip(self._code, self._tokens, strict=True):
            code[ids] = torch.arange(len(ids), device=device)
        self._requests: dict[int, tuple] = {}  # place in the batch -> prompt, tokens since, which vLLM extends

    @classmethod
    def validate_params(cls, sampling_params) -> None:
        """Raise ValueError for wrong `extra_args`; vLLM then refuses that request alone."""
        wanted = (sampling_params.extra_args or {}).get("semid", True)
        if wanted not in (True, False):  # the server makes 0 of false
            raise ValueError(f"semid must be true or false, got {wanted!r}")

    def is_argmax_invariant(self) -> bool:
        return False

    def update_state(self, batch_update) -> None:
        """Follow requests through the batch, in the order that vLLM requires: removed, added, moved."""
        if batch_update is None:
            return
        for place in batch_update.removed:
            self._requests.pop(place, None)
        for place, params, prompt, output in batch_update.added:
            self._requests.pop(place, None)
            if (params.extra_args or {}).get("semid", True):
                self._requests[place] = prompt or [], output
        for source, target, direction in batch_update.moved:
            here, there = self._requests.pop(source, None), self._requests.pop(target, None)
            back = there if direction.name == "SWAP" else None
            self._requests |= {place: found for place, found in ((target, here), (source, back)) if found}

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        """(B, vocab_size) logits -> (B, vocab_size) float32 log-probabilities, -inf for what may not follow."""
        scores = logits.log_softmax(dim=-1, dtype=torch.float32)
        of_depth: dict[int, list] = {}
        for place, request in self._requests.items():
            prefix = self._prefix(*request)
            of_depth.setdefault(len(prefix), []).append((place, prefix))
        for depth, rows in of_depth.items():
            places = torch.tensor([place for place, _ in rows], device=scores.device)
            own, kept = scores[places], torch.full((len(rows), scores.shape[1]), -torch.inf, device=scores.device)
            ended = torch.ones(len(rows), dtype=torch.bool, device=scores.device)
            if depth < self.trie.n_levels:
                node = torch.zeros(len(rows), dtype=torch.long, device=scores.device)
                for level, token in enumerate(torch.tensor([prefix for _, prefix in rows], device=scores.device).T):
                    node = self.trie.step(level, node, self._code[level][token.long()])
                row, child = self.trie.listed(depth, node)
                token = self._tokens[depth][self.trie.code[depth][child].long()]
                kept[row, token], ended[row] = own[row, token], False
            kept[ended, self.end_token] = own[ended, self.end_token]
            scores[places] = kept
        return scores

    def _prefix(self, prompt: list[int], output: list[int]) -> list[int]:
        """The tokens of the current ID, at most n_levels."""
        last = output[-1] if output else prompt[-1] if prompt else -1
        depth = self._level.get(last, -1) + 1
        if depth == self.trie.n_levels and not output:
            return []  # an item of the history, before the answer
        return [*prompt[max(0, len(prompt) + len(output) - depth) :], *output][-depth:] if depth else []


def level_of_tokens(tokens: Sequence[np.ndarray], end_token: int) -> dict[int, int]:
    """The level of each token; ValueError if one is of two levels, or is the end token."""
    level = {token: level for level, ids in enumerate(tokens) for token in ids.tolist()}
    if len(level) < sum(map(len, tokens)) or end_token in level:
        raise ValueError("a token is of two levels, or is the end token: vLLM needs tokens that differ")
    return level


@cache
def __getattr__(name: str) -> type:
    """Make `VLLMTrieProcessor` at its first use, because importing vLLM takes seconds."""
    if name != "VLLMTrieProcessor":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        from vllm.v1.sample.logits_processor import LogitsProcessor
    except ImportError as error:
        raise ImportError("VLLMTrieProcessor needs vLLM: pip install 'vllm==0.32.0'") from error
    facts = {"__doc__": _VLLMTrie.__doc__, "__module__": __name__}  # so that the engine's process finds it here
    return type(name, (_VLLMTrie, LogitsProcessor), facts)
