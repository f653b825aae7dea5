"""transformers models as scorers for constrained beam search: an encoder-decoder (T5) and any decoder-only model.

`model.generate` reads the prompt once per beam and copies the whole cache whenever beams change places. Here beams are
neighbours in one sequence: a step feeds the last code of all beams of a context side by side, and an attention mask
lets each see the prompt, its own earlier codes and nothing of the others (tree attention; SpecInfer, arXiv 2305.09781,
section 4). The prompt is read and kept once per context, no cache is reordered, and the models stay as they are.
"""

import copy
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

_LOGITS_AT_ONCE = 2**24  # entries of (positions x vocabulary) computed together: 64 MiB of float32


class State(NamedTuple):
    """What decoding carries from level to level."""

    cache: Any  # a transformers cache of keys and values, one row per context; never changed in place
    path: torch.Tensor  # (B, W, n) int64: the places, among all codes fed so far, of the codes of each beam
    depth: tuple[int, ...]  # of each code fed so far, the level; -1 for a decoder's start token
    prompt_mask: torch.Tensor  # (B, n_prompt) bool: which tokens of the context are real
    normalization: str


class CausalScorer:
    """A decoder-only transformers model (Qwen3, Llama, ...) that writes semantic IDs after a prompt.

    model: with a plain linear head over the vocabulary and "sdpa" or "eager" attention. tokens: per level the token of
    each code, (n_codes,) integers. Contexts are what a tokenizer returns: `input_ids` and `attention_mask`, (B, T)
    each, padded on either side.

    Scores under "vocabulary" are what `generate` ranks by: log-probabilities over everything the model could write.
    Under "level" the rest of the vocabulary is never computed.
    """

    def __init__(self, model, tokens: Sequence[np.ndarray]):
        self.model = model.eval()
        self.tokens = _token_tensors(model, tokens)
        self.n_levels = len(self.tokens)
        config = model.config.get_text_config()
        for name in ("final_logit_softcapping", "logit_scale", "logits_scaling"):
            if getattr(config, name, None) not in (None, 1, 1.0):
                raise ValueError(f"{type(model).__name__} changes its logits ({name}), which is not supported")
        self.window = getattr(config, "sliding_window", None) if _has_sliding_layers(config) else None
        self.layer_types = set(getattr(config, "layer_types", None) or ())

    def begin(self, contexts: Mapping[str, torch.Tensor], normalization: str = "vocabulary"):
        """Read the prompts and score the first code: -> state, scores (B, 1, n_codes)."""
        from transformers import DynamicCache

        device = self.model.device
        ids, mask = contexts["input_ids"].to(device), contexts["attention_mask"].to(device).bool()
        if not mask.any(dim=1).all():
            raise ValueError(f"prompt {int((~mask.any(dim=1)).nonzero()[0])} is empty")
        longest = ids.shape[1] + len(self.tokens)
        if self.window is not None and longest > self.window:
            raise ValueError(f"prompt and ID have {longest} tokens, more than the sliding window of {self.window}")
        positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
        cache = DynamicCache()
        hidden = self._body(ids, mask.long(), positions, cache)
        last = mask.shape[1] - 1 - mask.flip(1).long().argmax(dim=1)
        hidden = hidden[torch.arange(len(ids), device=device), last][:, None]
        path = torch.empty((len(ids), 1, 0), dtype=torch.long, device=device)
        return State(cache, path, (), mask, normalization), self._scores(hidden, 0, normalization)

    def advance(self, state: State, level: int, parents: torch.Tensor, codes: torch.Tensor):
        """Feed the codes of all beams and score the next level: -> state, scores (B, W, n_codes)."""
        path = _longer(state.path, parents, len(state.depth))
        n_fed = len(state.depth) + codes.shape[1]
        prompt = state.prompt_mask[:, None].expand(-1, codes.shape[1], -1)
        seen = torch.cat([prompt, _own(path, n_fed)], dim=2)[:, None]  # (B, 1, W, n_keys)
        positions = (state.prompt_mask.sum(dim=1, keepdim=True) + level).expand(-1, codes.shape[1])
        cache = _branch(state.cache)
        seen = torch.where(seen, 0.0, torch.finfo(self.model.dtype).min).to(self.model.dtype)
        mask = {kind: seen for kind in self.layer_types} if self.window is not None else seen
        hidden = self._body(self.tokens[level][codes], mask, positions, cache)
        depth = state.depth + (level,) * codes.shape[1]
        state = State(cache, path, depth, state.prompt_mask, state.normalization)
        return state, self._scores(hidden, level + 1, state.normalization)

    def _body(self, ids, mask, positions, cache) -> torch.Tensor:
        output = self.model.get_decoder()(
            input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True
        )
        return output.last_hidden_state

    def _scores(self, hidden: torch.Tensor, level: int, normalization: str) -> torch.Tensor:
        return _code_scores(self.model.get_output_embeddings(), hidden, self.tokens[level], normalization)


class EncoderDecoderScorer:
    """A T5 of transformers that reads a history and writes semantic IDs, as TIGER does (Rajput et al. 2023).

    tokens: per level the token of each code in the decoder's vocabulary. Contexts: `input_ids` and `attention_mask`,
    (B, T) each. The encoder runs once per context, and so does the cross-attention's part of it.
    """

    def __init__(self, model, tokens: Sequence[np.ndarray]):
        if model.config.model_type != "t5":
            raise ValueError(f"expected a T5, got model type {model.config.model_type!r}")
        self.model = model.eval()
        self.tokens = _token_tensors(model, tokens)
        self.n_levels = len(self.tokens)

    def begin(self, contexts: Mapping[str, torch.Tensor], normalization: str = "vocabulary"):
        """Read the histories and score the first code: -> state, scores (B, 1, n_codes)."""
        from transformers import DynamicCache, EncoderDecoderCache

        device = self.model.device
        ids, mask = contexts["input_ids"].to(device), contexts["attention_mask"].to(device).bool()
        if not mask.any(dim=1).all():
            raise ValueError(f"context {int((~mask.any(dim=1)).nonzero()[0])} is empty")
        encoded = self.model.get_encoder()(input_ids=ids, attention_mask=mask.long()).last_hidden_state
        cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
        path = torch.zeros((len(ids), 1, 1), dtype=torch.long, device=device)
        state = State(cache, path, (-1,), mask, normalization)
        start = torch.full((len(ids), 1), self.model.config.decoder_start_token_id, device=device)
        return state, self._decode(state, start, 0, encoded)

    def advance(self, state: State, level: int, parents: torch.Tensor, codes: torch.Tensor):
        """Feed the codes of all beams and score the next level: -> state, scores (B, W, n_codes)."""
        from transformers import EncoderDecoderCache

        path = _longer(state.path, parents, len(state.depth))
        cache = EncoderDecoderCache(_branch(state.cache.self_attention_cache), state.cache.cross_attention_cache)
        depth = state.depth + (level,) * codes.shape[1]
        state = State(cache, path, depth, state.prompt_mask, state.normalization)
        # the keys and values of the encoder's output are in the cache; the tensor itself is looked at no more
        return state, self._decode(state, self.tokens[level][codes], level + 1, state.prompt_mask[..., None])

    def _decode(self, state: State, ids: torch.Tensor, level: int, encoded: torch.Tensor) -> torch.Tensor:
        """Run the decoder's blocks as the model itself does, but with positions that are levels and not places."""
        decoder = self.model.get_decoder()
        hidden = decoder.embed_tokens(ids)
        attention = decoder.block[0].layer[0].SelfAttention
        bias = attention.compute_bias(1, level + 1, hidden.device, past_seen_tokens=level)  # (1, heads, 1, level + 1)
        bias = bias[..., torch.tensor(state.depth, device=hidden.device) + 1]
        hidden_from = torch.finfo(hidden.dtype).min
        bias = torch.where(_own(state.path, len(state.depth))[:, None], bias, hidden_from)  # (B, heads, W, n_fed)
        cross = torch.where(state.prompt_mask[:, None, None], 0.0, hidden_from).to(hidden.dtype)  # (B, 1, 1, T)
        for block in decoder.block:
            hidden = block(hidden, None, bias, encoded, None, cross, past_key_values=state.cache, is_causal=False)[0]
        hidden = decoder.final_layer_norm(hidden)
        if self.model.config.scale_decoder_outputs:
            hidden = hidden * self.model.model_dim**-0.5
        return _code_scores(self.model.lm_head, hidden, self.tokens[level], state.normalization)


def _token_tensors(model, tokens: Sequence[np.ndarray]) -> tuple[torch.Tensor, ...]:
    if model.config._attn_implementation not in ("sdpa", "eager"):
        raise ValueError(f"attention {model.config._attn_implementation!r} takes no mask, expected 'sdpa' or 'eager'")
    n_tokens = model.get_output_embeddings().weight.shape[0]
    found = tuple(torch.as_tensor(np.asarray(level), dtype=torch.long, device=model.device) for level in tokens)
    for level, ids in enumerate(found):
        if not len(ids) or int(ids.min()) < 0 or int(ids.max()) >= n_tokens or len(ids.unique()) != len(ids):
            raise ValueError(
                f"the tokens of level {level} must be distinct ids below {n_tokens}, the model's vocabulary"
            )
    return found


def _has_sliding_layers(config) -> bool:
    types = getattr(config, "layer_types", None)
    return "sliding_attention" in types if types else bool(getattr(config, "sliding_window", None))


def _branch(cache):
    """A copy that can grow without the original: transformers caches put new tensors in place of the old ones."""
    branch = copy.copy(cache)
    branch.layers = [copy.copy(layer) for layer in cache.layers]
    return branch


def _longer(path: torch.Tensor, parents: torch.Tensor, n_fed: int) -> torch.Tensor:
    """The paths of the surviving beams with their new codes, which are fed as the places n_fed, n_fed + 1, ..."""
    own = n_fed + torch.arange(parents.shape[1], device=path.device).expand(len(path), -1)
    return torch.cat([path.gather(1, parents[..., None].expand(-1, -1, path.shape[2])), own[..., None]], dim=2)


def _own(path: torch.Tensor, n_fed: int) -> torch.Tensor:
    """Which of the codes fed so far belong to each beam: (B, W, n_fed) bool."""
    return torch.zeros((*path.shape[:2], n_fed), dtype=torch.bool, device=path.device).scatter_(2, path, True)


def _code_scores(head, hidden: torch.Tensor, tokens: torch.Tensor, normalization: str) -> torch.Tensor:
    """Scores of the codes, (B, W, dim) -> (B, W, n_codes) float32; the whole vocabulary only for its normalizer."""
    if normalization == "level":
        bias = None if head.bias is None else head.bias[tokens]
        return torch.nn.functional.linear(hidden, head.weight[tokens], bias).float()
    flat = hidden.reshape(-1, hidden.shape[-1])
    scores = torch.empty((len(flat), len(tokens)), dtype=torch.float32, device=hidden.device)
    rows = max(1, _LOGITS_AT_ONCE // head.weight.shape[0])
    for at in range(0, len(flat), rows):
        logits = head(flat[at : at + rows]).float()
        scores[at : at + rows] = logits[:, tokens] - logits.logsumexp(dim=-1, keepdim=True)
    return scores.view(*hidden.shape[:-1], -1)
