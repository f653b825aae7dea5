"""The trie inside other people's decoders: transformers' `generate`, vLLM, and the grammar libraries.

Our own search is `decode.constrained_beam_search`; these adapters are for who already serves a language model, and
for comparison. All but the exports of text share one layout: `tokens[level][code]` is the id of that code's token in
the model's vocabulary. Codes above the trie's may have tokens too, and levels may share them (not under vLLM).
"""

import json
import re
from collections.abc import Callable, Sequence
from functools import cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch

from semid_lib.decoding.subset import Subset
from semid_lib.decoding.trie import PrefixTrie
from semid_lib.ids.semantic_ids import sid_tokens

_FORMAT = "semid tokens 1"


# --- tokens ---


def code_tokens(tokenizer, sizes: Sequence[int]) -> tuple[np.ndarray, ...]:
    """Look up the token `<|sid_{level}_{code}|>` of every code: per level, (sizes[level],) int64 ids.

    tokenizer: a tokenizer of transformers, or anything whose `get_vocab()` is {text: id} with the added tokens. The
    names are those of `semantic_ids.to_tokens`. Raises ValueError naming the first token that is missing.

    >>> from types import SimpleNamespace
    >>> vocabulary = {"the": 0, "<|sid_0_0|>": 7, "<|sid_0_1|>": 4, "<|sid_1_0|>": 5}
    >>> code_tokens(SimpleNamespace(get_vocab=lambda: vocabulary), (2, 1))
    (array([7, 4]), array([5]))
    """
    vocabulary = tokenizer.get_vocab()
    for name in (name for names in sid_tokens(sizes) for name in names):
        if name not in vocabulary:
            raise ValueError(f"the tokenizer has no token {name}: add the tokens of all codes to it first")
    return tuple(np.array([vocabulary[name] for name in names], dtype=np.int64) for names in sid_tokens(sizes))


def check_tokens(tokens: Sequence[np.ndarray], trie: PrefixTrie, vocab_size: int | None = None) -> None:
    """Raise one ValueError unless every code of the trie has a token of its own within its level.

    tokens: per level, (at least trie.sizes[level],) integer ids, all in 0 .. vocab_size - 1 (None: any that are not
    negative), none twice within a level.

    >>> trie = PrefixTrie.build(np.array([[1, 0], [0, 2]]))
    >>> check_tokens([np.array([3, 4]), np.array([5, 6, 7])], trie, vocab_size=8)
    >>> check_tokens([np.array([3, 4]), np.array([5, 6])], trie, vocab_size=8)
    Traceback (most recent call last):
    ValueError: level 1 has 2 tokens, the trie has codes up to 2
    """
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
            raise ValueError(f"token {found[count > 1][0]} stands for two codes of level {level}")


def save_tokens(path: str | Path, tokens: Sequence[np.ndarray], end_token: int) -> None:
    """Write the tokens and the one that ends an answer as JSON, for `VLLMTrieProcessor`."""
    content = {"format": _FORMAT, "tokens": [np.asarray(ids).tolist() for ids in tokens], "end_token": int(end_token)}
    Path(path).write_text(json.dumps(content) + "\n", encoding="utf-8")


def load_tokens(path: str | Path) -> tuple[tuple[np.ndarray, ...], int]:
    """Read what `save_tokens` wrote: tokens and end_token. Raises ValueError naming the file if it is another."""
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not a file of tokens: {error}") from error
    if not isinstance(content, dict) or content.get("format") != _FORMAT:
        raise ValueError(f"{path} is not a file of tokens: expected format {_FORMAT!r}")
    levels, end_token = content.get("tokens"), content.get("end_token")
    numbers = [*(ids for level in levels for ids in level), end_token] if _are_lists(levels) else [None]
    if not all(type(number) is int and 0 <= number < 2**31 for number in numbers):
        raise ValueError(f"{path} is not a file of tokens: expected a list of integers >= 0 a level, and end_token")
    return tuple(np.array(ids, dtype=np.int64) for ids in levels), end_token


def _are_lists(levels) -> bool:
    return isinstance(levels, list) and all(isinstance(level, list) for level in levels)


class _TokenTrie:
    """A trie that is walked by tokens instead of codes."""

    def __init__(self, trie: PrefixTrie, tokens: Sequence[np.ndarray], vocab_size: int | None = None):
        check_tokens(tokens, trie, vocab_size)
        self.trie, self.device = trie, trie.item.device
        self.token = [torch.as_tensor(np.asarray(ids), device=self.device).long() for ids in tokens]
        self.code = []  # per level: token -> code, -1 for all others; the last entry stands for all greater tokens
        for ids in self.token:
            code = torch.full((int(ids.max()) + 2,), -1, device=self.device)
            code[ids] = torch.arange(len(ids), device=self.device)
            self.code.append(code)

    def node(self, prefix: torch.Tensor) -> torch.Tensor:
        """The nodes that (B, depth) int64 tokens lead to: (B,) int64, -1 for what begins no item."""
        prefix = prefix.to(self.device)
        node = torch.zeros(len(prefix), dtype=torch.long, device=self.device)
        for level, ids in enumerate(prefix.T):
            node = self.trie.step(level, node, self.code[level][ids.clamp(max=len(self.code[level]) - 1)])
        return node

    def following(self, depth: int, node: torch.Tensor, subset: Subset | None, context: torch.Tensor):
        """What may follow (B,) nodes of a depth, as one list: places in `node` (n,) and tokens (n,) int64."""
        row, code = self.trie.allowed_mask(depth, node).nonzero(as_tuple=True)
        if subset is not None:
            child = self.trie.step(depth, node[row], code)
            left = subset.has(depth + 1, child, context.to(self.device)[row])
            row, code = row[left], code[left]
        return row, self.token[depth][code]


# --- transformers ---


class TrieLogitsProcessor:
    """Keeps `generate` of transformers on the trie: greedy, sampling or beams, and any layout of the vocabulary.

        processor = TrieLogitsProcessor(trie, tokens, prompt_length=inputs.input_ids.shape[1], beam_width=10)
        found = model.generate(**inputs, logits_processor=[processor], num_beams=10, num_return_sequences=10,
                               max_new_tokens=trie.n_levels, do_sample=False)
        rows = processor.items(found)

    `generate` only calls its processors, so this needs no base class and the module no transformers. It comes before
    temperature, top-k and top-p, which therefore choose among items. Under beams the scores are logarithms of a
    softmax over the *whole* vocabulary, not over the codes that may follow; greedy and sampling give plain logits.

    What may not follow gets -inf. A row with nothing to follow is left *as it is*: such rows are dead beams, which
    `generate` keeps to have `num_beams` of them when fewer prefixes are reachable. Their score is -inf already and
    stays so whatever is added, while a row of -inf only would be NaN after the softmax of a sampler or
    `renormalize_logits`. If *all* beams of a context are dead, no item could come out, and a ValueError says so.

    With fewer items than beams `generate` fills up with repetitions and worse: drop what has `sequences_scores` below
    -1e8. A processor serves any number of batches whose prompts are equally long (pad on the left).
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
        """Raises ValueError for tokens that do not fit, and a subset of another trie or with a context without items.

        prompt_length: how many tokens precede the ID: those of the padded prompt, or 1, the start token, for an
        encoder-decoder. beam_width: rows a context, `num_beams`, or `num_return_sequences` when sampling without
        beams. subset: for one context or for each; row r belongs to context r // beam_width. end_token: the only
        token after a complete ID, with its own score; None leaves those rows as they are, which suits
        `max_new_tokens=trie.n_levels`.
        """
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
            raise ValueError(
                f"{input_ids.shape[1]} tokens for a prompt of {self.prompt_length}, "
                f"or token {self._largest} outside the vocabulary of {scores.shape[1]}"
            )
        kept = torch.full_like(scores, -torch.inf)
        if depth >= self.trie.n_levels:
            if self.end_token is None:
                return scores
            kept[:, self.end_token] = scores[:, self.end_token]
            return kept
        context = self._context(len(scores), self.beam_width)
        node = self._walk.node(input_ids[:, self.prompt_length :])
        row, token = (part.to(scores.device) for part in self._walk.following(depth, node, self.subset, context))
        kept[row, token] = scores[row, token]
        alive = torch.zeros(len(scores), dtype=torch.bool, device=scores.device)
        alive[row] = True
        lost = ~alive.view(-1, self.beam_width).any(dim=1)
        if lost.any():
            raise ValueError(
                f"no row of context {int(lost.int().argmax())} begins an item with the {depth} tokens "
                f"after the first {self.prompt_length}: is prompt_length right?"
            )
        kept[~alive] = scores[~alive]
        return kept

    def items(self, sequences: torch.Tensor) -> torch.Tensor:
        """The catalogue rows of what `generate` returned: (B, length) int64 -> (B,) int64, -1 for what is no item.

        An item outside the subset of its context is -1 too; each context must have equally many sequences.
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
    """Keeps vLLM on the trie, in all requests of an engine: a V1 logits processor (tried with vLLM 0.32.0).

        trie.save("trie.safetensors")
        save_tokens("tokens.json", tokens, tokenizer.eos_token_id)
        llm = LLM(model, logits_processors=["semid_lib.decoding.adapters:VLLMTrieProcessor"],
                  additional_config={"semid_trie": "trie.safetensors", "semid_tokens": "tokens.json"},
                  logprobs_mode="processed_logits", max_logprobs=-1)
        llm.beam_search(prompts, BeamSearchParams(beam_width=10, max_tokens=trie.n_levels))

    Keep the trie out of the model's folder, where vLLM takes every safetensors file for weights.
    The same settings are options of `vllm serve` (`--logits-processors`, `--additional-config` with JSON, ...). The
    paths are settings of the engine because `LLM.beam_search` makes its own requests and passes no `extra_args`.
    A request of `generate` may bring `extra_args={"semid_allowed": [rows of the catalogue]}` for a subset (rows that
    are not in the trie do nothing), or `{"semid": False}` to be left alone.

    Scores: the log-softmax over the vocabulary comes first, then the mask; with `processed_logits` that is what
    vLLM returns and its beam search adds up, which therefore ranks as that of transformers does.

    Where the ID begins: `beam_search` submits each beam anew with its tokens appended to the prompt, so neither the
    length of the prompt nor the number of new tokens tells. But the level of the last token does: after a token of
    level l the last l + 1 tokens are the prefix, after anything else a new ID begins. A prompt may thus end with items
    of a history. So tokens must differ between levels, and `max_tokens` of a beam search be n_levels exactly: one
    more step would begin a second ID. In `generate`, only the end token follows a complete ID. It is also all that
    follows a prefix of no item (a dead beam, whose score is -inf and stays so): drop answers of -inf and those that
    are no item.

    vLLM's V2 model runner, the default on a GPU, has another interface: set VLLM_USE_V2_MODEL_RUNNER=0.
    `vllm_search.VLLMSearch` does all this for a folder, and keeps to rules by a beam search of its own.
    """

    def __init__(self, vllm_config, device: torch.device, is_pin_memory: bool):
        """Read the two files. Raises ValueError for a missing setting, or tokens that do not fit."""
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
        self._requests = {}  # place in the batch -> tokens of the prompt, tokens since (vLLM extends them), subset

    @classmethod
    def validate_params(cls, sampling_params) -> None:
        """Raise ValueError for `extra_args` that are not as described; vLLM then refuses that request alone."""
        extra = sampling_params.extra_args or {}
        rows = extra.get("semid_allowed", [0])
        if not isinstance(rows, list) or not rows or not all(type(row) is int and row >= 0 for row in rows):
            raise ValueError(f"semid_allowed must be a list of catalogue rows, got {rows!r}")
        if extra.get("semid", True) not in (True, False):  # the server makes 0 of false
            raise ValueError(f"semid must be true or false, got {extra['semid']!r}")

    def is_argmax_invariant(self) -> bool:
        return False

    def update_state(self, batch_update) -> None:
        """Follow which request stands where; in the order that vLLM asks for: removed, added, moved."""
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
        alike = {}  # requests at one depth with one subset go together
        for place, (prompt, output, subset) in self._requests.items():
            prefix = self._prefix(prompt, output)
            alike.setdefault((len(prefix), subset), []).append((place, prefix))
        for (depth, subset), rows in alike.items():
            place = torch.tensor([place for place, _ in rows], device=scores.device)
            kept = torch.full((len(rows), scores.shape[1]), -torch.inf, device=scores.device)
            ends = torch.ones(len(rows), dtype=torch.bool, device=scores.device)
            if depth < self.trie.n_levels:
                node = self._walk.node(torch.tensor([prefix for _, prefix in rows], dtype=torch.long))
                row, token = self._walk.following(depth, node, subset, torch.zeros(len(rows), dtype=torch.long))
                kept[row, token] = scores[place[row], token]
                ends[row] = False
            kept[ends, self.end_token] = scores[place[ends], self.end_token]
            scores[place] = kept
        return scores

    def _prefix(self, prompt: list[int], output: list[int]) -> list[int]:
        """The tokens of the ID that is being written: none to n_levels of them."""
        last = output[-1] if output else prompt[-1] if prompt else -1
        depth = self._level.get(last, -1) + 1
        if depth == self.trie.n_levels and not output:
            return []  # an item of the history: the answer is still to come
        return [*prompt[max(0, len(prompt) + len(output) - depth) :], *output][-depth:] if depth else []


def level_of_tokens(tokens: Sequence[np.ndarray], end_token: int) -> dict[int, int]:
    """The level of each token. Raises ValueError if one stands for two levels, or is the one that ends an answer.

    >>> level_of_tokens([np.array([7, 4]), np.array([5])], end_token=1)
    {7: 0, 4: 0, 5: 1}
    """
    level = {token: level for level, ids in enumerate(tokens) for token in ids.tolist()}
    if len(level) < sum(map(len, tokens)) or end_token in level:
        raise ValueError("a token stands for two levels, or the end: vLLM needs tokens that differ")
    return level


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
    """`VLLMTrieProcessor` is made when it is first asked for: vLLM takes seconds to import."""
    if name == "VLLMTrieProcessor":
        return _vllm_processor()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


# --- the same set as text ---


def to_regex(trie: PrefixTrie, texts: Sequence[Sequence[str]] | None = None) -> str:
    r"""A regular expression of all IDs, factored by the trie, for `outlines_core.Index` or `outlines`.

    Codes with equal continuations share one. texts: `texts[level][code]`, the text of each token; `<|sid_l_c|>` by
    default. Give outlines_core a Vocabulary with these tokens as ordinary texts: an Index knows no special tokens but
    the end. A regex describes text, so a vocabulary with pieces such as "<" may write an ID in pieces.

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

    tokens: with them the grammar is one of token ids, `Token(7, 4)`, and admits exactly the trie's sequences, special
    tokens included; without, of the texts `<|sid_l_c|>`, which a vocabulary may also write in pieces ("<" "|" ...).
    xgrammar's TokenizerInfo takes added tokens for ordinary text, special or not, so nothing is needed for either.
    Raises ValueError as `check_tokens` does.

    >>> print(to_xgrammar(PrefixTrie.build(np.array([[0, 1], [1, 1]])), [np.array([7, 4]), np.array([5, 6])]))
    n0 ::= Token(6)
    root ::= Token(7, 4) n0
    <BLANKLINE>
    """
    if tokens is None:
        return _rules(trie, sid_tokens(trie.sizes), lambda words: " | ".join(map(json.dumps, words)), "root", " ::=")
    check_tokens(tokens, trie)
    words = [list(map(str, np.asarray(ids).tolist())) for ids in tokens]
    return _rules(trie, words, lambda ids: f"Token({', '.join(ids)})", "root", " ::=")


def to_lark(trie: PrefixTrie, tokens: Sequence[np.ndarray] | None = None) -> str:
    """The same as `to_xgrammar` in the Lark dialect of llguidance, for `llguidance.grammar_from("lark", ...)`.

    tokens: with them a grammar of token ids, `<[7,4]>`; without, of `<|sid_l_c|>` without quotes, which llguidance
    takes for the special token of that name. In both it admits exactly the trie's sequences, never pieces; in quotes
    it would admit pieces *only*, because tokens in the form `<|...|>` are special for it even if they are not for the
    tokenizer. Raises ValueError as `check_tokens` does.

    >>> print(to_lark(PrefixTrie.build(np.array([[0, 1], [1, 1]]))))
    n0: <|sid_1_1|>
    start: (<|sid_0_0|> | <|sid_0_1|>) n0
    <BLANKLINE>
    """
    if tokens is None:
        return _rules(trie, sid_tokens(trie.sizes), " | ".join, "start", ":")
    check_tokens(tokens, trie)
    words = [list(map(str, np.asarray(ids).tolist())) for ids in tokens]
    return _rules(trie, words, lambda ids: f"<[{','.join(ids)}]>", "start", ":")


def _fold(trie: PrefixTrie, words: Sequence[Sequence[str]], join: Callable[[dict[str, list[str]]], str]) -> str:
    """The text of the root, from the leaves up; join makes that of a node from {text of children: their words}."""
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
    """A grammar of numbered rules, each after those that it names; the last is the root."""
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
