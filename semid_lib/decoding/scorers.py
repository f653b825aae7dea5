"""transformers models as scorers for constrained beam search: T5 and decoder-only models.

`model.generate` encodes the prompt once per beam and copies the cache whenever beams change places. Here beams are
neighbours in one sequence: a step feeds the last code of all beams of a context side by side, and an attention mask
lets each attend to the prompt and to its own earlier codes (tree attention; SpecInfer, arXiv 2305.09781, section 4).
The prompt is encoded once per context, no cache is reordered, and the models are not changed.
"""

import copy
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from semid_lib.decoding.trie import PrefixTrie

_TOKENS_FORMAT = "semid tokens 1"
_LOGITS_AT_ONCE = 2**24  # entries of (positions x vocabulary) computed together: 64 MiB of float32


class State(NamedTuple):
    """What decoding carries from level to level."""

    cache: Any  # a transformers cache of keys and values, one row per context; never changed in place
    path: torch.Tensor  # (B, W, n) int64: positions of the codes of each beam among all codes fed so far
    depth: tuple[int, ...]  # the level of each code fed so far; -1 for a decoder's start token
    prompt_mask: torch.Tensor  # (B, n_prompt) bool: real tokens of the context
    normalization: str


class CausalScorer:
    """A decoder-only transformers model (Qwen3, Llama, ...) that generates semantic IDs after a prompt.

    Contexts are the output of a tokenizer: `input_ids` and `attention_mask`, (B, T) each, padded on either side. Scores
    under "vocabulary" are those of `generate`; under "level" the rest of the vocabulary is not computed.

    Beams side by side need a model that uses positions and attention masks as given. Models that count positions in the
    cache (ALiBi), keep a recurrent state or change their logits would score wrongly, so a few tokens are compared with
    the model's own logits first.

    Parameters
    ----------
    model : PreTrainedModel
        With a plain linear head and "sdpa" or "eager" attention.
    tokens : per level, (n_codes,) int arrays
        The token of each code.

    Raises
    ------
    ValueError
        For a model whose scores differ, another attention, or tokens outside the vocabulary.
    """

    def __init__(self, model, tokens: Sequence[np.ndarray]):
        self.model = model
        self.tokens = _token_tensors(model, tokens)
        self.n_levels = len(self.tokens)
        config = model.config.get_text_config()
        for name in ("final_logit_softcapping", "logit_scale", "logits_scaling"):
            if getattr(config, name, None) not in (None, 1, 1.0):
                raise ValueError(f"{type(model).__name__} changes its logits ({name}), which is not supported")
        if model.config.is_encoder_decoder or "local" in (getattr(config, "attention_layers", None) or ()):
            raise ValueError(
                f"{type(model).__name__} is not a decoder-only model whose layers all attend to the whole prompt"
            )
        self.window = getattr(config, "sliding_window", None) if _has_sliding_layers(config) else None
        self.layer_types = set(getattr(config, "layer_types", None) or ())
        self._probe()

    def begin(self, contexts: Mapping[str, torch.Tensor], normalization: str = "vocabulary"):
        """Encode the prompts and score the first code: state, scores (B, 1, n_codes)."""
        from transformers import DynamicCache

        ids, mask = _inputs(self.model, contexts)
        device = ids.device
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
        """Feed the codes of all beams and score the next level: state, scores (B, W, n_codes)."""
        path = _longer(state.path, parents, len(state.depth))
        n_fed = len(state.depth) + codes.shape[1]
        prompt = state.prompt_mask[:, None].expand(-1, codes.shape[1], -1)
        seen = torch.cat([prompt, _own(path, n_fed)], dim=2)[:, None]  # (B, 1, W, n_keys)
        positions = (state.prompt_mask.sum(dim=1, keepdim=True) + level).expand(-1, codes.shape[1])
        cache = _branch(state.cache)
        seen = torch.where(seen, 0.0, torch.finfo(self.model.dtype).min).to(self.model.dtype)
        by_kind = self.window is not None and self.layer_types
        mask = {kind: seen for kind in self.layer_types} if by_kind else seen
        hidden = self._body(self.tokens[level].to(codes.device)[codes], mask, positions, cache)
        depth = state.depth + (level,) * codes.shape[1]
        state = State(cache, path, depth, state.prompt_mask, state.normalization)
        return state, self._scores(hidden, level + 1, state.normalization)

    @torch.inference_mode()
    def _probe(self) -> None:
        """Raise ValueError unless two beams over a few tokens get the model's own scores."""
        name, was_training = type(self.model).__name__, self.model.training
        self.model.eval()
        codes = torch.tensor([[0, len(level) - 1] for level in self.tokens[:2]], device=self.model.device)
        start = torch.tensor([[int(self.tokens[0][0]), int(self.tokens[-1][-1]), int(self.tokens[0][-1])]])
        prompt = {"input_ids": start.to(codes.device), "attention_mask": torch.ones_like(start)}
        try:
            state, found = self.begin(prompt)
            written = [prompt["input_ids"]] * 2
            for level in range(min(3, self.n_levels)):
                logits = self.model(input_ids=torch.cat(written)).logits[:, -1].float()
                own = (logits - logits.logsumexp(dim=-1, keepdim=True))[:, self.tokens[level]]
                loose = 1e-3 if self.model.dtype in (torch.float32, torch.float64) else 0.5
                if not torch.allclose(found[0].expand_as(own), own, rtol=1e-4, atol=loose):
                    raise ValueError(
                        f"its scores differ from its own logits by up to {float((found[0] - own).abs().max()):.3g}"
                    )
                if level + 1 == min(3, self.n_levels):
                    break
                parents = torch.tensor([[0, 0]] if level == 0 else [[1, 0]], device=codes.device)
                state, found = self.advance(state, level, parents, codes[level : level + 1])
                tokens = self.tokens[level][codes[level]]
                written = [
                    torch.cat([written[int(parent)], token.view(1, 1)], dim=1)
                    for parent, token in zip(parents[0], tokens, strict=True)
                ]
        except Exception as error:
            raise ValueError(f"{name} cannot be searched with beams side by side: {error}") from error
        finally:
            self.model.train(was_training)

    def _body(self, ids, mask, positions, cache) -> torch.Tensor:
        output = self.model.get_decoder()(
            input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True
        )
        return output.last_hidden_state

    def _scores(self, hidden: torch.Tensor, level: int, normalization: str) -> torch.Tensor:
        return _code_scores(self.model.get_output_embeddings(), hidden, self.tokens[level], normalization)


class EncoderDecoderScorer:
    """A T5 of transformers that encodes a history and generates semantic IDs, as TIGER does (Rajput et al. 2023).

    Contexts are `input_ids` and `attention_mask`, (B, T) each. The encoder and its part of the cross-attention run once
    per context.

    Parameters
    ----------
    model : T5ForConditionalGeneration
    tokens : per level, (n_codes,) int arrays
        The token of each code in the decoder's vocabulary.

    Raises
    ------
    ValueError
        For another model, or tokens outside the vocabulary.
    """

    def __init__(self, model, tokens: Sequence[np.ndarray]):
        if model.config.model_type != "t5":
            raise ValueError(f"expected a T5, got model type {model.config.model_type!r}")
        if model.config.decoder_start_token_id is None:
            raise ValueError("the T5 has no decoder_start_token_id: nothing to start an ID with")
        self.model = model
        self.tokens = _token_tensors(model, tokens)
        self.n_levels = len(self.tokens)

    def begin(self, contexts: Mapping[str, torch.Tensor], normalization: str = "vocabulary"):
        """Encode the histories and score the first code: state, scores (B, 1, n_codes)."""
        from transformers import DynamicCache, EncoderDecoderCache

        ids, mask = _inputs(self.model, contexts)
        device = ids.device
        encoded = self.model.get_encoder()(input_ids=ids, attention_mask=mask.long()).last_hidden_state
        cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
        path = torch.zeros((len(ids), 1, 1), dtype=torch.long, device=device)
        state = State(cache, path, (-1,), mask, normalization)
        start = torch.full((len(ids), 1), self.model.config.decoder_start_token_id, device=device)
        return state, self._decode(state, start, 0, encoded)

    def advance(self, state: State, level: int, parents: torch.Tensor, codes: torch.Tensor):
        """Feed the codes of all beams and score the next level: state, scores (B, W, n_codes)."""
        from transformers import EncoderDecoderCache

        path = _longer(state.path, parents, len(state.depth))
        cache = EncoderDecoderCache(_branch(state.cache.self_attention_cache), state.cache.cross_attention_cache)
        depth = state.depth + (level,) * codes.shape[1]
        state = State(cache, path, depth, state.prompt_mask, state.normalization)
        # keys and values of the encoder's output are in the cache; the tensor itself is not used any more
        ids = self.tokens[level].to(codes.device)[codes]
        return state, self._decode(state, ids, level + 1, state.prompt_mask[..., None])

    def _decode(self, state: State, ids: torch.Tensor, level: int, encoded: torch.Tensor) -> torch.Tensor:
        """Run the decoder's blocks as the model does, but with levels as positions."""
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


def check_tokens(tokens: Sequence[np.ndarray], trie: PrefixTrie, vocab_size: int | None = None) -> None:
    """Raise ValueError unless every code of the trie has a separate token within its level, below `vocab_size`."""
    if len(tokens) != trie.n_levels:
        raise ValueError(f"tokens of {len(tokens)} levels, the trie has {trie.n_levels}")
    for level, (ids, size) in enumerate(zip(map(np.asarray, tokens), trie.sizes, strict=True)):
        if ids.ndim != 1 or not np.issubdtype(ids.dtype, np.integer):
            raise ValueError(f"tokens of level {level} are {ids.shape} {ids.dtype}, expected a row of integers")
        if len(ids) < size:
            raise ValueError(f"level {level} has {len(ids)} tokens, the trie has codes up to {size - 1}")
        wrong = ids[(ids < 0) | (ids >= (np.inf if vocab_size is None else vocab_size))]
        if len(wrong):
            raise ValueError(f"token {wrong[0]} of level {level} is outside the vocabulary of {vocab_size}")
        found, count = np.unique(ids, return_counts=True)
        if (count > 1).any():
            raise ValueError(f"token {found[count > 1][0]} is of two codes of level {level}")


def save_tokens(path: str | Path, tokens: Sequence[np.ndarray], end_token: int) -> None:
    """Write the tokens, and the one that ends an answer, as JSON."""
    content = {
        "format": _TOKENS_FORMAT,
        "tokens": [np.asarray(ids).tolist() for ids in tokens],
        "end_token": int(end_token),
    }
    Path(path).write_text(json.dumps(content) + "\n", encoding="utf-8")


def load_tokens(path: str | Path) -> tuple[tuple[np.ndarray, ...], int]:
    """Read tokens and end_token that `save_tokens` wrote; ValueError naming the file for anything else."""
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        if content["format"] != _TOKENS_FORMAT:
            raise ValueError(f"its format is {content['format']!r}, expected {_TOKENS_FORMAT!r}")
        levels, end_token = content["tokens"], content["end_token"]
        if not all(type(n) is int and 0 <= n < 2**31 for n in [*(n for ids in levels for n in ids), end_token]):
            raise ValueError("expected integers >= 0")
        return tuple(np.array(ids, dtype=np.int64) for ids in levels), end_token
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{path} is not a file of tokens: {error}") from error


def _inputs(model, contexts: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens (B, T) int64 and which of them are real, (B, T) bool, on the device of the model."""
    if model.training:
        raise ValueError("the model is in training mode, with dropout on: call its eval() first")
    ids, mask = contexts["input_ids"].to(model.device), contexts["attention_mask"].to(model.device).bool()
    if not mask.any(dim=1).all():
        raise ValueError(f"context {int((~mask.any(dim=1)).nonzero()[0])} is empty")
    return ids, mask


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
    """A copy that can grow without the original: caches replace tensors and do not change them."""
    branch = copy.copy(cache)
    branch.layers = [copy.copy(layer) for layer in cache.layers]
    return branch


def _longer(path: torch.Tensor, parents: torch.Tensor, n_fed: int) -> torch.Tensor:
    """The paths of the surviving beams with their new codes, at positions n_fed, n_fed + 1, ..."""
    own = n_fed + torch.arange(parents.shape[1], device=path.device).expand(len(path), -1)
    return torch.cat([path.gather(1, parents[..., None].expand(-1, -1, path.shape[2])), own[..., None]], dim=2)


def _own(path: torch.Tensor, n_fed: int) -> torch.Tensor:
    """The codes fed so far that belong to each beam: (B, W, n_fed) bool."""
    return torch.zeros((*path.shape[:2], n_fed), dtype=torch.bool, device=path.device).scatter_(2, path, True)


def _code_scores(head, hidden: torch.Tensor, tokens: torch.Tensor, normalization: str) -> torch.Tensor:
    """Scores of the codes, (B, W, dim) -> (B, W, n_codes) float32; other tokens only enter the normalizer."""
    tokens = tokens.to(hidden.device)
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
