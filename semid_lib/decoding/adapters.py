"""The trie in other decoders: transformers' `generate`, vLLM, and grammar libraries.

Our search is `beam_search.constrained_beam_search`; these adapters are for language models that are already served by
others, and for comparison. `tokens[level][code]` is the token id of a code in the model's vocabulary, see
`semantic_ids.token_layout`. Levels may have more tokens than the trie has codes.
"""

import json
import re
from collections.abc import Callable, Sequence
from functools import cache
from itertools import pairwise

import numpy as np
import torch

from semid_lib.decoding.scorers import check_tokens, load_tokens
from semid_lib.decoding.subset import Subset
from semid_lib.decoding.trie import PrefixTrie
from semid_lib.ids.semantic_ids import sid_tokens


class _TokenTrie:
    """A trie that is walked by tokens instead of codes."""

    def __init__(self, trie: PrefixTrie, tokens: Sequence[np.ndarray], vocab_size: int | None = None):
        check_tokens(tokens, trie, vocab_size)
        self.trie, self.device = trie, trie.item.device
        self.token = [torch.as_tensor(np.asarray(ids), device=self.device).long() for ids in tokens]
        self.code = []  # per level: token -> code, -1 for all others; the last entry is for all greater tokens
        for ids in self.token:
            code = torch.full((int(ids.max()) + 2,), -1, device=self.device)
            code[ids] = torch.arange(len(ids), device=self.device)
            self.code.append(code)

    def node(self, prefix: torch.Tensor) -> torch.Tensor:
        """The nodes of prefixes (B, depth) of tokens: (B,) int64, -1 for no item."""
        prefix = prefix.to(self.device)
        node = torch.zeros(len(prefix), dtype=torch.long, device=self.device)
        for level, ids in enumerate(prefix.T):
            node = self.trie.step(level, node, self.code[level][ids.clamp(max=len(self.code[level]) - 1)])
        return node

    def masked(
        self, prefix: torch.Tensor, scores: torch.Tensor, subset: Subset | None, context: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Scores (B, vocab_size) with -inf for tokens that cannot follow prefixes (B, depth); which rows have any."""
        depth = prefix.shape[1]
        row, child = self.trie.listed(depth, self.node(prefix))
        if subset is not None:
            left = subset.has(depth + 1, child, context.to(self.device)[row])
            row, child = row[left], child[left]
        token = self.token[depth][self.trie.code[depth][child].long()].to(scores.device)
        row = row.to(scores.device)
        kept = torch.full_like(scores, -torch.inf)
        kept[row, token] = scores[row, token]
        alive = torch.zeros(len(scores), dtype=torch.bool, device=scores.device)
        alive[row] = True
        return kept, alive


# --- transformers ---


class TrieLogitsProcessor:
    """Restricts `generate` of transformers to the trie: greedy, sampling or beams, and any vocabulary.

    Use::

        processor = TrieLogitsProcessor(trie, tokens, prompt_length=inputs.input_ids.shape[1], beam_width=10)
        found = model.generate(**inputs, logits_processor=[processor], num_beams=10, num_return_sequences=10,
                               max_new_tokens=trie.n_levels, do_sample=False)
        rows = processor.items(found)

    It precedes temperature, top-k and top-p, which therefore choose among items. With beams, scores are logarithms of a
    softmax over the *whole* vocabulary. One processor serves any batches whose prompts have the same length (pad on the
    left). A row that no token can follow is a dead beam of score -inf; it is left unchanged, because a softmax of only
    -inf is NaN. With fewer items than beams, `generate` repeats some: drop `sequences_scores` below -1e8.

    Parameters
    ----------
    trie : PrefixTrie
    tokens : per level, (n_codes,) int arrays
    prompt_length : int
        Tokens before the ID: those of the padded prompt, or 1 for an encoder-decoder.
    beam_width : int
        Rows per context: `num_beams`, or `num_return_sequences` when sampling without beams.
    subset : Subset, optional
        For one context or for each; row r belongs to context r // beam_width.
    end_token : int, optional
        The only token after a complete ID; by default such rows are unchanged.

    Raises
    ------
    ValueError
        For tokens that do not fit, and a subset of another trie or with a context without items.
    """

    def __init__(
        self,
        trie: PrefixTrie,
        tokens: Sequence[np.ndarray],
        prompt_length: int,
        beam_width: int = 1,
        subset: Subset | None = None,
        end_token: int | None = None,
    ):
        self._walk = _TokenTrie(trie, tokens)
        if prompt_length < 0 or beam_width < 1:
            raise ValueError(f"expected prompt_length >= 0 and beam_width >= 1, got {prompt_length} and {beam_width}")
        if subset is not None and subset.trie is not trie:
            raise ValueError("the subset is of another trie")
        if subset is not None and bool((subset.n_left() == 0).any()):
            raise ValueError(f"context {int(subset.n_left().argmin())} has no item left: leave it out of the batch")
        self.trie, self.prompt_length, self.beam_width = trie, prompt_length, beam_width
        self.subset, self.end_token = subset, end_token
        self._largest = max([end_token or 0, *(int(np.max(ids)) for ids in tokens)])

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """(B, length) int64 tokens so far and (B, vocab_size) float scores -> (B, vocab_size) float."""
        depth = input_ids.shape[1] - self.prompt_length
        if depth < 0 or self._largest >= scores.shape[1]:
            found = f"{input_ids.shape[1]} tokens for a prompt of {self.prompt_length}"
            raise ValueError(f"{found}, or token {self._largest} outside the vocabulary of {scores.shape[1]}")
        if depth >= self.trie.n_levels:
            return scores if self.end_token is None else _only(self.end_token, scores)
        context = self._context(len(scores), self.beam_width)
        kept, alive = self._walk.masked(input_ids[:, self.prompt_length :], scores, self.subset, context)
        lost = ~alive.view(-1, self.beam_width).any(dim=1)
        if lost.any():
            found = f"the {depth} tokens after the first {self.prompt_length} begin no item"
            raise ValueError(f"in context {int(lost.int().argmax())}, {found}: is prompt_length right?")
        kept[~alive] = scores[~alive]
        return kept

    def items(self, sequences: torch.Tensor) -> torch.Tensor:
        """Catalogue rows of the sequences (B, length) of `generate`: (B,) int64, -1 for no item or one not allowed.

        Each context must have equally many sequences.
        """
        ids = sequences[:, self.prompt_length : self.prompt_length + self.trie.n_levels]
        if ids.shape[1] < self.trie.n_levels:
            return torch.full((len(ids),), -1)
        leaf = self._walk.node(ids)
        if self.subset is not None:
            context = self._context(len(ids), max(1, len(ids) // self.subset.n_contexts)).to(leaf.device)
            left = self.subset.has(self.trie.n_levels, leaf.clamp(min=0), context)
            leaf = torch.where(left, leaf, -1)
        return self.trie.item_at(leaf).cpu()

    def _context(self, n_rows: int, per_context: int) -> torch.Tensor:
        n_contexts = 1 if self.subset is None else self.subset.n_contexts
        if n_rows % per_context or n_contexts not in (1, n_rows // per_context):
            raise ValueError(f"{n_rows} rows, {per_context} a context, for a subset of {n_contexts} contexts")
        return torch.arange(n_rows) // per_context if n_contexts > 1 else torch.zeros(n_rows, dtype=torch.long)


# --- vLLM ---


class _VLLMTrie:
    """Restricts all requests of a vLLM engine to the trie: a V1 logits processor (tested with vLLM 0.32.0).

        trie.save("trie.safetensors")
        save_tokens("tokens.json", tokens, tokenizer.eos_token_id)
        llm = LLM(model, logits_processors=["semid_lib.decoding.adapters:VLLMTrieProcessor"],
                  additional_config={"semid_trie": "trie.safetensors", "semid_tokens": "tokens.json"},
                  logprobs_mode="processed_logits", max_logprobs=-1)
        llm.beam_search(prompts, BeamSearchParams(beam_width=10, max_tokens=trie.n_levels))

    Keep the trie out of the model's folder, where vLLM reads every safetensors file as weights. `vllm serve` has the
    same options. A request of `generate` may have `extra_args={"semid_allowed": [catalogue rows]}` for a subset, or
    `{"semid": False}` for no restriction; `LLM.beam_search` passes no `extra_args`.

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
        trie = PrefixTrie.load(settings["semid_trie"]).to(device)
        vocab_size = vllm_config.model_config.get_vocab_size()
        self._walk, self.trie = _TokenTrie(trie, tokens, vocab_size), trie
        if not 0 <= self.end_token < vocab_size:
            raise ValueError(f"end token {self.end_token} is outside the vocabulary of {vocab_size}")
        self._level = level_of_tokens(tokens, self.end_token)
        self._requests: dict[int, tuple] = {}  # place in the batch -> prompt, tokens since (vLLM extends them), subset

    @classmethod
    def validate_params(cls, sampling_params) -> None:
        """Raise ValueError for wrong `extra_args`; vLLM then refuses that request alone."""
        extra = sampling_params.extra_args or {}
        rows = extra.get("semid_allowed", [0])
        if not isinstance(rows, list) or not rows or not all(type(row) is int and row >= 0 for row in rows):
            raise ValueError(f"semid_allowed must be a list of catalogue rows, got {rows!r}")
        if extra.get("semid", True) not in (True, False):  # the server makes 0 of false
            raise ValueError(f"semid must be true or false, got {extra['semid']!r}")

    def is_argmax_invariant(self) -> bool:
        return False

    def update_state(self, batch_update) -> None:
        """Follow requests through the batch, in the order that vLLM requires: removed, added, moved."""
        if batch_update is None:
            return
        for place in batch_update.removed:
            self._requests.pop(place, None)
        for place, params, prompt, output in batch_update.added:
            extra = params.extra_args or {}
            if extra.get("semid", True):
                self._requests[place] = prompt or [], output, self._subset(extra.get("semid_allowed"))
            else:
                self._requests.pop(place, None)
        for source, target, direction in batch_update.moved:
            here, there = self._requests.pop(source, None), self._requests.pop(target, None)
            back = there if direction.name == "SWAP" else None
            self._requests |= {place: found for place, found in ((target, here), (source, back)) if found}

    def _subset(self, rows: list[int] | None) -> Subset | None:
        if rows is None:
            return None
        allowed = np.zeros(self.trie.n_items, dtype=bool)
        allowed[[row for row in rows if row < len(allowed)]] = True
        return self.trie.subset(allowed)

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        """(B, vocab_size) logits -> (B, vocab_size) float32 log-probabilities, -inf for what may not follow."""
        scores = logits.log_softmax(dim=-1, dtype=torch.float32)
        alike: dict[tuple, list] = {}  # requests at one depth with one subset go together
        for place, (prompt, output, subset) in self._requests.items():
            prefix = self._prefix(prompt, output)
            alike.setdefault((len(prefix), subset), []).append((place, prefix))
        for (depth, subset), rows in alike.items():
            places = torch.tensor([place for place, _ in rows], device=scores.device)
            ends = _only(self.end_token, scores[places])
            if depth < self.trie.n_levels:
                prefixes = torch.tensor([prefix for _, prefix in rows], dtype=torch.long)
                kept, alive = self._walk.masked(prefixes, scores[places], subset, torch.zeros(len(rows)).long())
                ends[alive] = kept[alive]
            scores[places] = ends
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


def _only(token: int, scores: torch.Tensor) -> torch.Tensor:
    kept = torch.full_like(scores, -torch.inf)
    kept[:, token] = scores[:, token]
    return kept


@cache
def _vllm_processor() -> type:
    try:
        from vllm.v1.sample.logits_processor import LogitsProcessor
    except ImportError as error:
        raise ImportError("VLLMTrieProcessor needs vLLM: pip install 'vllm==0.32.0'") from error

    class VLLMTrieProcessor(_VLLMTrie, LogitsProcessor):
        __doc__ = _VLLMTrie.__doc__

    VLLMTrieProcessor.__qualname__ = "VLLMTrieProcessor"  # so that the engine's process finds it here
    return VLLMTrieProcessor


def __getattr__(name: str):
    """Make `VLLMTrieProcessor` at its first use, because importing vLLM takes seconds."""
    if name == "VLLMTrieProcessor":
        return _vllm_processor()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


# --- the same set as text ---


def to_regex(trie: PrefixTrie, texts: Sequence[Sequence[str]] | None = None) -> str:
    r"""A regular expression of all IDs, factored by the trie, for `outlines_core.Index` or `outlines`.

    texts: `texts[level][code]`, the text of each token, by default `<|sid_l_c|>`. Give outlines_core a Vocabulary with
    these tokens as ordinary texts. A regex describes text, so a vocabulary with pieces such as "<" may spell IDs.

    Examples
    --------
    >>> to_regex(PrefixTrie.build(np.array([[0, 1], [1, 1], [2, 0]])), ["abc", "xy"])
    '(?:(?:a|b)y|cx)'
    """

    def one_of(parts: list[str]) -> str:
        return parts[0] if len(parts) == 1 else f"(?:{'|'.join(parts)})"

    def node(options: dict[str, list[str]]) -> str:
        return one_of([one_of(list(map(re.escape, found))) + rest for rest, found in options.items()])

    return _fold(trie, texts or sid_tokens(trie.sizes), node)


def to_xgrammar(trie: PrefixTrie, tokens: Sequence[np.ndarray] | None = None) -> str:
    """A grammar of all IDs in the EBNF of `xgrammar.Grammar.from_ebnf`, one rule per distinct continuation.

    With tokens it is a grammar of token ids and admits exactly the trie's sequences; without, of the texts
    `<|sid_l_c|>`, which a vocabulary may also spell in pieces.

    Examples
    --------
    >>> print(to_xgrammar(PrefixTrie.build(np.array([[0, 1], [1, 1]])), [np.array([7, 4]), np.array([5, 6])]))
    n0 ::= Token(6)
    root ::= Token(7, 4) n0
    <BLANKLINE>
    """
    if tokens is None:
        return _rules(trie, sid_tokens(trie.sizes), lambda words: " | ".join(map(json.dumps, words)), "root", " ::=")
    return _rules(trie, _words(trie, tokens), lambda ids: f"Token({', '.join(ids)})", "root", " ::=")


def to_lark(trie: PrefixTrie, tokens: Sequence[np.ndarray] | None = None) -> str:
    """The same in the Lark dialect of llguidance, for `llguidance.grammar_from("lark", ...)`.

    Without tokens it is a grammar of special tokens `<|sid_l_c|>`, which also admits exactly the trie's sequences.

    Examples
    --------
    >>> print(to_lark(PrefixTrie.build(np.array([[0, 1], [1, 1]]))))
    n0: <|sid_1_1|>
    start: (<|sid_0_0|> | <|sid_0_1|>) n0
    <BLANKLINE>
    """
    if tokens is None:
        return _rules(trie, sid_tokens(trie.sizes), " | ".join, "start", ":")
    return _rules(trie, _words(trie, tokens), lambda ids: f"<[{','.join(ids)}]>", "start", ":")


def _words(trie: PrefixTrie, tokens: Sequence[np.ndarray]) -> list[list[str]]:
    check_tokens(tokens, trie)
    return [list(map(str, np.asarray(ids).tolist())) for ids in tokens]


def _fold(trie: PrefixTrie, words: Sequence[Sequence[str]], join: Callable[[dict[str, list[str]]], str]) -> str:
    """The text of the root, from the leaves up; join makes a node's text from {text below: words of children}."""
    below = [""] * trie.n_items
    for level in reversed(range(trie.n_levels)):
        code, here = trie.code[level].tolist(), []
        for start, stop in pairwise(trie.child_start[level].tolist()):
            options: dict[str, list[str]] = {}
            for child in range(start, stop):
                options.setdefault(below[child], []).append(words[level][code[child]])
            here.append(join(options))
        below = here
    return below[0]


def _rules(trie: PrefixTrie, words: Sequence[Sequence[str]], any_of: Callable, root: str, sign: str) -> str:
    """A grammar of numbered rules, each after those that it uses; the last is the root."""
    names: dict[str, str] = {}  # body of a rule -> its name

    def node(options: dict[str, list[str]]) -> str:
        parts = []
        for rest, found in options.items():
            choice = any_of(found)
            parts.append(f"({choice}) {rest}" if " | " in choice and rest else f"{choice} {rest}".rstrip())
        return names.setdefault(" | ".join(parts), f"n{len(names)}")

    _fold(trie, words, node)
    names[next(reversed(names))] = root
    return "".join(f"{name}{sign} {body}\n" for body, name in names.items())
