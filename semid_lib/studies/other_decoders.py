"""One step of constrained decoding by other libraries: mask the codes that cannot follow, and select the best beams.

B users have W beams each, and a model gives log-probabilities over a vocabulary in which the codes of all levels are
distinct tokens, as an LLM has it: token = FIRST + level x codebook_size + code. `decoding_study.compare`
times them: it makes the state of a decoder anew before every step, because libraries keep the masks of a state. That is
not timed, which favours the matchers: in a beam search they are copied and advanced at every step.
"""

import sys
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch.nn.functional import pad

from semid_lib.decoding import beam_search
from semid_lib.decoding.adapters import allowed_tokens_fn
from semid_lib.decoding.trie import PrefixTrie

FIRST, END = 3, 1  # tokens before those of semantic IDs: padding, end, unknown


Found = tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # values (B, W) float32, beams and tokens (B, W) int64


def random_ids(n: int, n_levels: int, codebook_size: int, seed: int = 0) -> np.ndarray:
    """n distinct random semantic IDs, (n, n_levels) int64."""
    number = np.random.default_rng(seed).choice(codebook_size**n_levels, n, replace=False)
    return np.column_stack(np.unravel_index(number, (codebook_size,) * n_levels)).astype(np.int64)


class Peer:
    """A way to constrain one step, built for (n, L) IDs, L > 1.

    `prepare(level, prefixes)` gives the state before a step, `step(level, state, scores, log_probabilities)` the W best
    continuations of each user in any order; those of value -inf mean nothing.
    """

    name = ""
    limit: int | None = None  # it does not take more items, or not in a minute
    n_bytes: int | None = None  # None if the library does not say

    def __init__(self, ids: np.ndarray, codebook_size: int):
        self.n_levels, self.codebook_size = ids.shape[1], codebook_size
        self.n_tokens = FIRST + self.n_levels * codebook_size

    def tokens(self, ids: np.ndarray) -> np.ndarray:
        """Codes of levels 0, 1, ... in the last dimension as tokens."""
        return ids + FIRST + self.codebook_size * np.arange(ids.shape[-1])


class TriePeer(Peer):
    """This library: `beam_search.select` in plain torch."""

    name, compiled = "here, torch", False

    def __init__(self, ids: np.ndarray, codebook_size: int):
        super().__init__(ids, codebook_size)
        self.trie = PrefixTrie.build(ids)
        self.n_bytes = self.trie.n_bytes

    def prepare(self, level: int, prefixes: torch.Tensor):
        node = torch.zeros(prefixes.shape[:2], dtype=torch.long)
        for above in range(level):
            node = self.trie.step(above, node, prefixes[..., above])
        return node

    def step(self, level: int, state, scores: torch.Tensor, log_probabilities: torch.Tensor) -> Found:
        first, n_beams = FIRST + level * self.codebook_size, scores.shape[1]
        if level == 0:  # a user has one row
            state, scores, log_probabilities = state[:, :1], scores[:, :1], log_probabilities[::n_beams]
        codes = log_probabilities[:, first : first + self.codebook_size].view(*scores.shape, -1)
        beam = beam_search.Beam(state, scores, state, state)
        found = beam_search.select(self.trie, level, beam, codes, n_beams, compiled=self.compiled)
        missing = (0, n_beams - found.node.shape[1])
        return pad(found.score, missing, value=-torch.inf), pad(found.parent, missing), pad(found.code, missing) + first


class CompiledTriePeer(TriePeer):
    """The same with the compiled loop of `kernel`."""

    name, compiled = "here, compiled", True


class TransformersPeer(Peer):
    """Nested dicts behind transformers' own processor, as in most repositories, and the selection of its beam search.

    Its bookkeeping of sequences and stopping criteria is left out.
    """

    name = "transformers, dict trie"

    def __init__(self, ids: np.ndarray, codebook_size: int):
        from transformers.generation import PrefixConstrainedLogitsProcessor

        super().__init__(ids, codebook_size)
        self.processor = PrefixConstrainedLogitsProcessor
        self.allowed = allowed_tokens_fn(self.tokens(ids), prompt_length=1)

    @property
    def n_bytes(self) -> int:  # type: ignore[override]
        total, nodes = 0, [self.allowed.args[0]]
        while nodes:
            total += sum(map(sys.getsizeof, nodes))
            nodes = [child for node in nodes for child in node.values()]
        return total

    def prepare(self, level: int, prefixes: torch.Tensor):
        return pad(torch.from_numpy(self.tokens(prefixes.flatten(0, 1).numpy())), (1, 0))

    def step(self, level: int, state, scores: torch.Tensor, log_probabilities: torch.Tensor) -> Found:
        values = self.processor(self.allowed, scores.shape[1])(state, log_probabilities)
        values = (values.view(*scores.shape, -1) + scores[:, :, None]).view(len(scores), -1)
        values, index = values.topk(2 * scores.shape[1])
        values, kept = values.topk(scores.shape[1])
        index = index.gather(1, kept)
        return values, index // self.n_tokens, index % self.n_tokens


class StaticPeer(Peer):
    """STATIC (arXiv 2602.22647, "Vectorizing the Trie"), written from its description.

    From the paper: dense tables for the first two levels; below them a sparse matrix of states in compressed rows of
    (column, next state) pairs, of which as many are read for every beam as the widest state of the level has; a scatter
    into the vocabulary; top-K over all beams and tokens; next states gathered, except after the last code. State 0 is
    the sink. Ours: values are scattered into -inf instead of masked; reads beyond a row repeat its last pair; level 0
    has one row per user; lists are padded to W; and only the tokens of the level are read (`window`), like the paper's
    one vocabulary of codes for all levels.
    """

    name, window = "STATIC", True

    def __init__(self, ids: np.ndarray, codebook_size: int):
        super().__init__(ids, codebook_size)
        self.width = codebook_size if self.window else self.n_tokens
        ids = ids[np.lexsort(ids.T[::-1])]
        is_new = np.cumsum(ids[1:] != ids[:-1], axis=1) > 0
        starts = [np.append(0, np.flatnonzero(new) + 1) for new in is_new.T]  # per level: first rows of its nodes
        column = [ids[rows, level] + self.first_column(level) for level, rows in enumerate(starts)]
        self.next_state = torch.zeros((codebook_size, self.width), dtype=torch.int32)
        self.next_state[ids[starts[1], 0], column[1]] = torch.arange(1, len(starts[1]) + 1, dtype=torch.int32)
        self.forbidden = [torch.ones(self.width, dtype=torch.bool), self.next_state == 0]
        self.forbidden[0][column[0]] = False
        # the sink has a pair, too, so that pair p > 0 leads to state p + the number of states of two codes
        n_pairs, pointer, self.branching = 1, np.zeros(1, dtype=np.int64), [0, 0]
        for above, below in pairwise(starts[1:]):
            first = np.searchsorted(below, above)
            pointer, n_pairs = np.append(pointer, n_pairs + first), n_pairs + len(below)
            self.branching.append(int(np.diff(np.append(first, len(below))).max()))
        pairs = np.zeros((n_pairs, 2), dtype=np.int32)
        pairs[1:, 0] = np.concatenate([column[0][:0], *column[2:]])
        pairs[1:, 1] = np.arange(1, n_pairs) + len(starts[1])
        self.pairs = torch.from_numpy(pairs)
        self.pointer = torch.from_numpy(np.append(pointer, n_pairs).astype(np.int32))
        self.n_bytes = sum(one.nbytes for one in (*self.forbidden, self.next_state, self.pointer, self.pairs))

    def first_column(self, level: int) -> int:
        return 0 if self.window else FIRST + level * self.codebook_size

    def burst(self, level: int, state: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Columns and next states of all children, (N, branching of the level) each; the last one repeats."""
        place = self.pointer[state][:, None] + torch.arange(self.branching[level], dtype=torch.int32)
        pairs = self.pairs[torch.minimum(place, self.pointer[state + 1][:, None] - 1)]
        return pairs[..., 0].long(), pairs[..., 1]

    def follow(self, level: int, state: Any, column: torch.Tensor) -> torch.Tensor:
        """The states that columns lead to, (N,) -> (N,); of one code, the code itself."""
        if level < 2:
            return self.next_state[state, column].long() if level else column - self.first_column(0)
        columns, states = self.burst(level, state)
        return states.gather(1, (columns == column[:, None]).int().argmax(dim=1, keepdim=True))[:, 0].long()

    def prepare(self, level: int, prefixes: torch.Tensor):
        state = None
        for above in range(level):
            state = self.follow(above, state, prefixes[..., above].flatten() + self.first_column(above))
        return state

    def step(self, level: int, state, scores: torch.Tensor, log_probabilities: torch.Tensor) -> Found:
        n_users, beam_width = scores.shape
        first = FIRST + level * self.codebook_size - self.first_column(level)  # the token of column 0
        values, score = log_probabilities[:, first : first + self.width], scores.view(-1, 1)
        if level == 0:  # one beam is alive
            values = (values[::beam_width] + scores[:, :1]).masked_fill_(self.forbidden[0], -torch.inf)
        elif level == 1:
            values = (values + score).masked_fill_(self.forbidden[1][state], -torch.inf)
        else:
            columns, _ = self.burst(level, state)
            values = torch.full(values.shape, -torch.inf).scatter_(1, columns, values.gather(1, columns) + score)
        values = values.reshape(n_users, -1)
        missing = max(beam_width - values.shape[1], 0)
        values, index = pad(values, (0, missing), value=-torch.inf).topk(beam_width)
        index = index.where(values > -torch.inf, self.first_column(level))  # leads somewhere, but is not alive
        beams, column = index // self.width, index % self.width
        if level < self.n_levels - 1:
            rows = (beams + beam_width * torch.arange(n_users)[:, None]).flatten()
            self.carried = self.follow(level, state[rows] if level else None, column.flatten())
        return values, beams, column + first


class WideStaticPeer(StaticPeer):
    name, window = "STATIC, whole vocabulary", False


class GrammarPeer(Peer):
    """A library for structured output: a state per beam, whose allowed tokens the library writes as bits.

    We unpack and apply the bits, which is faster on a CPU than the libraries' own kernels.
    """

    state: Any  # (tokens) -> the state after them
    fill: Any  # (states, bits): sets the bits of the allowed tokens, (n_states, ceil(n_tokens / 32)) int32

    def prepare(self, level: int, prefixes: torch.Tensor):
        return [self.state(prefix) for prefix in self.tokens(prefixes.flatten(0, 1).numpy()).tolist()]

    def step(self, level: int, state, scores: torch.Tensor, log_probabilities: torch.Tensor) -> Found:
        bits = np.zeros((len(state), (self.n_tokens + 31) // 32), dtype=np.int32)
        self.fill(state, bits)
        forbidden = np.unpackbits((~bits).view(np.uint8), axis=1, count=self.n_tokens, bitorder="little")
        values = log_probabilities + scores.view(-1, 1)
        values.masked_fill_(torch.from_numpy(forbidden).view(torch.bool), -torch.inf)
        values, index = values.view(len(scores), -1).topk(scores.shape[1])
        return values, index // self.n_tokens, index % self.n_tokens

    def nested(self, ids: np.ndarray, terminal: str) -> str:
        """The trie as one expression, a (b c | d (e | f)) | g h i, of terminals such as "Token({})"."""

        def below(rows: np.ndarray, level: int) -> str:
            edges = [0, *np.flatnonzero(np.diff(rows[:, level])) + 1, len(rows)]
            one = [terminal.format(rows[low, level]) for low in edges[:-1]]
            if level + 1 < self.n_levels:
                after = [below(rows[low:high], level + 1) for low, high in pairwise(edges)]
                one = [f"{token} {rest}" for token, rest in zip(one, after, strict=True)]
            return one[0] if len(one) == 1 else f"({' | '.join(one)})"

        return below(self.tokens(ids[np.lexsort(ids.T[::-1])]), 0)


class OutlinesPeer(GrammarPeer):
    """outlines_core: a regular expression over characters, one per token, with the IDs as alternatives in order."""

    name, limit = "outlines_core", 100_000

    def __init__(self, ids: np.ndarray, codebook_size: int):
        from outlines_core import Guide, Index, Vocabulary

        super().__init__(ids, codebook_size)
        text = [chr(0x800 + token) for token in range(self.n_tokens)]  # of three bytes, none with a meaning
        vocabulary = Vocabulary(END, {text[token]: [token] for token in range(FIRST, self.n_tokens)})
        tokens = self.tokens(ids[np.lexsort(ids.T[::-1])]).tolist()
        index = Index("|".join("".join(text[token] for token in row) for row in tokens), vocabulary)
        self.guide = lambda: Guide(index)

    def state(self, prefix: list[int]):
        guide = self.guide()
        for token in prefix:
            guide.advance(token, return_tokens=False)
        return guide

    def fill(self, states: list, bits: np.ndarray) -> None:
        for row, guide in enumerate(states):
            guide.write_mask_into(bits.ctypes.data + row * bits.strides[0], bits.shape[1], bits.itemsize)


class XgrammarPeer(GrammarPeer):
    """xgrammar: an EBNF of one nested rule, whose terminals are tokens by their numbers."""

    name, limit = "xgrammar", 100_000

    def __init__(self, ids: np.ndarray, codebook_size: int):
        import xgrammar

        super().__init__(ids, codebook_size)
        text = [f"<{token}>" for token in range(self.n_tokens)]
        compiler = xgrammar.GrammarCompiler(xgrammar.TokenizerInfo(text, stop_token_ids=[END]), max_threads=1)
        compiled = compiler.compile_grammar(f"root ::= {self.nested(ids, 'Token({})')}")
        self.n_bytes, self.root = compiled.memory_size_bytes, xgrammar.GrammarMatcher(compiled)
        self.fill = xgrammar.BatchGrammarMatcher(max_threads=1).batch_fill_next_token_bitmask

    def state(self, prefix: list[int]):
        matcher = self.root.fork()
        assert all(matcher.accept_token(token) for token in prefix)
        return matcher


class LLGuidancePeer(GrammarPeer):
    """llguidance: a Lark grammar of one nested rule, whose terminals are special tokens by their numbers.

    Its symbols are numbered by 16 bits: it panics above some 20,000 random items.
    """

    name, limit = "llguidance", 20_000

    def __init__(self, ids: np.ndarray, codebook_size: int):
        import llguidance

        super().__init__(ids, codebook_size)
        text = [f"<{token}>".encode() for token in range(self.n_tokens)]
        special = list(range(self.n_tokens))
        about = SimpleNamespace(eos_token_id=END, bos_token_id=None, tokens=text, special_token_ids=special)
        tokenizer = llguidance.LLTokenizer(llguidance.TokenizerWrapper(about))
        limits = llguidance.LLParserLimits(max_grammar_size=10**8, max_items_in_row=10**6, step_max_items=10**8)
        grammar = llguidance.LLMatcher.grammar_from_lark(f"start: {self.nested(ids, '<[{}]>')}")
        self.root = llguidance.LLMatcher(tokenizer, grammar, limits=limits)
        if self.root.is_error():
            raise ValueError(f"llguidance, {len(ids)} items: {self.root.get_error().splitlines()[0]}")
        self.executor = llguidance.LLExecutor(num_threads=1)

    def state(self, prefix: list[int]):
        matcher = self.root.deep_copy()
        assert matcher.consume_tokens(prefix)
        return matcher

    def fill(self, states: list, bits: np.ndarray) -> None:
        rows = [(matcher, row) for row, matcher in enumerate(states)]
        self.executor.unsafe_compute_mask_ptr(rows, bits.ctypes.data, bits.strides[0], len(bits))


PEERS: tuple[Any, ...] = (TriePeer, CompiledTriePeer, TransformersPeer, StaticPeer, WideStaticPeer)
GRAMMARS = (OutlinesPeer, XgrammarPeer, LLGuidancePeer)
