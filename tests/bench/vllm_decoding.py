"""Constrained decoding in vLLM: our trie and our beams, its own beams, and its structured outputs, on the same weights.

Runs wherever vLLM does (the head of `tests/test_vllm.py` says how to install it): a small Qwen3 that has learned for a
minute what the IDs of a random catalogue look like, asked with the words of its items, all in float32. Each engine is
started in a process of its own, one after the other. Without a GPU, times are of the processor, on one thread, so that
other work of the machine does not count; with one, they are by the clock. Rows: data set "vllm", scale "bench".
"""

import os
import re
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import typer
from measuring import alone, record
from tqdm import tqdm

from semid_lib.decoding import scorers
from semid_lib.decoding.trie import PrefixTrie
from semid_lib.ids.semantic_ids import SemanticIDs, sid_tokens
from semid_lib.llm.base_models import small_model
from semid_lib.llm.examples import encode_prompts, prompt_for
from semid_lib.llm.llm_search import LanguageModelSearch, end_token, load_searcher
from semid_lib.llm.vllm_search import VLLMSearch
from semid_lib.llm.vocabulary import extend_vocabulary
from semid_lib.studies import other_decoders
from semid_lib.workbench import store

K, N_QUERIES, CODES = 10, 8, 256
clock = time.perf_counter if torch.cuda.is_available() else time.process_time
ENGINES = ("trie", "xgrammar", "outlines")
SETTINGS = {  # of the processes that run an engine
    "HF_HUB_OFFLINE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_REGEX_COMPILATION_TIMEOUT_S": "600",  # after 5 s vLLM refuses a regular expression
    "VLLM_USE_V2_MODEL_RUNNER": "0",
}
WORDS = ["red", "blue", "green", "warm", "light", "tent", "lamp", "soap", "pen", "cup", "chair", "shoe", "hat", "rope"]
WORDS += ["knife", "bottle", "paint", "brush", "phone", "cable", "mug", "glove", "desk", "shelf", "plant", "pot"]


class Case:
    """A catalogue of random IDs, a model in a folder, and what is asked of it."""

    def __init__(self, folder: Path):
        self.folder, self.ids = folder, SemanticIDs.load(folder / "ids.npz")
        self.trie = PrefixTrie.build(self.ids.unique)
        self.tokens, self.end = scorers.load_tokens(folder / "llm" / "semantic_id_tokens.json")
        words = np.random.default_rng(1).choice(WORDS, (N_QUERIES, 40))
        self.queries = {"short": [" ".join(row[:5]) for row in words], "long": [" ".join(row) for row in words]}
        spelled = [tuple(int(self.tokens[level][code]) for level, code in enumerate(row)) for row in self.ids.unique]
        self.item = {tokens: row for row, tokens in enumerate(spelled)}

    def here(self, width: int) -> LanguageModelSearch:
        facts = {"type": "language model", "beam_width": width, "task": "query_to_id"}
        return load_searcher(self.folder, facts, self.ids, pd.DataFrame())

    def prompts(self, tokenizer, length: str = "short") -> list[dict]:
        asked = [prompt_for(tokenizer, query) for query in self.queries[length]]
        return [{"prompt_token_ids": ids} for ids in tokenizer(asked, add_special_tokens=False)["input_ids"]]

    def rows(self, answers: list[list[int]]) -> list[int]:
        """The item of each answer, with or without the token that ends it; -1 for what is none."""
        written = [tuple(answer[:-1] if answer[-1:] == [self.end] else answer) for answer in answers]
        return [self.item.get(tokens, -1) for tokens in written]


def make_case(folder: Path, n_items: int, n_steps: int) -> None:
    ids = SemanticIDs.from_codes(other_decoders.random_ids(n_items, 3, CODES), codebook_size=CODES)
    texts = [" ".join(row) for row in np.random.default_rng(0).choice(WORDS, (n_items, 5))]
    model, tokenizer = small_model(texts, 400, hidden_size=128)
    tokens = extend_vocabulary(model, tokenizer, ids, texts)
    learn(model, tokenizer, [prompt_for(tokenizer, text) for text in texts], tokens, ids, n_steps)
    LanguageModelSearch(model, tokenizer, tokens, PrefixTrie.build(ids.unique)).save(folder)
    ids.save(folder / "ids.npz")


def learn(model, tokenizer, prompts: list[str], tokens, ids: SemanticIDs, n_steps: int) -> None:
    """Teach the model some answers: enough to know what an ID looks like, and a part of which belongs to which text."""
    answers = np.column_stack([level[codes] for level, codes in zip(tokens, ids.unique.T, strict=True)])
    answers = np.column_stack([answers, np.full(len(answers), end_token(tokenizer))])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    rng = np.random.default_rng(0)
    for _ in tqdm(range(n_steps), desc="learning", file=sys.stderr):
        rows = rng.choice(len(prompts), 32)
        asked = encode_prompts(tokenizer, [prompts[row] for row in rows])
        answer = torch.from_numpy(answers[rows])
        given = torch.cat([asked["input_ids"], answer], dim=1)
        seen = torch.cat([asked["attention_mask"], torch.ones_like(answer)], dim=1)
        logits = model(input_ids=given, attention_mask=seen).logits[:, -answer.shape[1] - 1 : -1]
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), answer.flatten()).backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()


def nested(trie: PrefixTrie, words: list[list[str]], depth: int = 0, node: int = 0) -> str:
    """All IDs below a node as one expression of a grammar, `(a(b|c)|d(e|f))`; words[level][code] are its terminals."""
    parts = [
        words[depth][code] + (nested(trie, words, depth + 1, child) if depth + 1 < trie.n_levels else "")
        for code, child in trie.children(depth, node).items()
    ]
    return parts[0] if len(parts) == 1 else f"({'|'.join(parts)})"


def timed(work, repeats: int = 3) -> tuple[float, object]:
    """Milliseconds a query, the median of a few repeats after one that is not counted, and the answer."""
    work()
    times = []
    for _ in range(repeats):
        started = clock()
        answer = work()
        times.append(clock() - started)
    return 1000 * statistics.median(times) / N_QUERIES, answer


def line(case: Case, method: str, compile_s: float, ms: float, found: list[list[int]], best: np.ndarray) -> dict:
    """found: for each query the items of its answers, -1 for what is no item. best: (n_queries, K) of our decoder."""
    n_answers, n_valid = sum(map(len, found)), sum(row >= 0 for rows in found for row in rows)
    distinct = [set(rows) - {-1} for rows in found]
    return {
        "method": f"{len(case.ids):,} items: {method}",
        "compile s": compile_s,
        "ms a query": ms,
        "valid answers": n_valid / n_answers if n_answers else 0.0,
        f"items of {K}": sum(map(len, distinct)) / N_QUERIES,
        f"of the best {K}": sum(len(rows & set(row)) for rows, row in zip(distinct, best.tolist(), strict=True))
        / N_QUERIES,
    }


def beams(case: Case, engine, prompts: list[dict], width: int, **constraint) -> list[list[int]]:
    """The items that vLLM's own beam search finds."""
    from vllm.sampling_params import BeamSearchParams

    found = engine.beam_search(prompts, BeamSearchParams(width, max_tokens=case.trie.n_levels, **constraint))
    return [
        case.rows([beam.tokens[len(prompt["prompt_token_ids"]) :] for beam in answer.sequences])
        for prompt, answer in zip(prompts, found, strict=True)
    ]


# --- our trie ---


def with_trie(case: Case) -> dict[str, list[dict]]:
    """Our decoder, our beams over vLLM, and vLLM's beams with our processor."""
    started = clock()
    import vllm  # noqa: F401

    seconds = {"import vllm": clock() - started}
    started = clock()
    PrefixTrie.build(case.ids.unique)
    building = clock() - started
    started = clock()
    search = VLLMSearch(case.folder / "llm", case.trie, K, skip_tokenizer_init=False, max_logprobs=-1)
    seconds["engine"] = clock() - started
    for name in ("first answer", "second answer"):
        started = clock()
        search.search(case.queries["short"][:1], K)
        seconds[name] = clock() - started

    lines, lengths = [], []
    for length, width in (("short", K), ("short", 50), ("long", K), ("long", 50)):
        queries, here = case.queries[length], case.here(width)
        search.beam_width = width
        ours, best = timed(lambda: here.search(queries, width))  # noqa: B023
        through, found = timed(lambda: search.search(queries, width))  # noqa: B023
        prompts = case.prompts(search.tokenizer, length)
        theirs, written = timed(lambda: beams(case, search.scorer.engine, prompts, width))  # noqa: B023
        n_tokens = statistics.mean(len(prompt["prompt_token_ids"]) for prompt in prompts)
        lengths.append(
            {
                "method": f"{len(case.ids):,} items, prompts of {n_tokens:.0f} tokens, beam {width}",
                "here ms": ours,
                "VLLMSearch ms": through,
                "LLM.beam_search ms": theirs,
                "largest difference of a score": float(np.abs(found.scores - best.scores).max()),
                "queries with the same list": int((found.items == best.items).all(axis=1).sum()),
            }
        )
        if (length, width) == ("short", K):
            best = best.items
            lines.append(line(case, "here, transformers", building, ours, best.tolist(), best))
            lines.append(line(case, "VLLMSearch", building, through, found.items.tolist(), best))
            lines.append(line(case, "LLM.beam_search, trie", building, theirs, written, best))
    start = [{"method": f"{len(case.ids):,} items", **{f"{name} s": value for name, value in seconds.items()}}]
    return {"engines": lines, "vllm_search": lengths, "vllm_start": start}


# --- vLLM's structured outputs ---


def with_grammar(case: Case, backend: str) -> dict[str, list[dict]]:
    """vLLM's beams, and as many samples, under a grammar of all IDs."""
    from vllm import LLM, SamplingParams
    from vllm.sampling_params import StructuredOutputsParams

    cpu = {} if torch.cuda.is_available() else {"block_size": 32, "enforce_eager": True, "kv_cache_memory_bytes": 2**30}
    engine = LLM(
        str(case.folder / "llm"),
        dtype="float32",
        generation_config="vllm",
        max_logprobs=-1,
        structured_outputs_config={"backend": backend},
        **cpu,
    )
    prompts = case.prompts(engine.get_tokenizer())
    if backend == "xgrammar":
        words = [[f"Token({token}) " for token in ids] for ids in case.tokens]
        asked = {"grammar": f"root ::= {nested(case.trie, words)}"}
    else:
        asked = {"regex": nested(case.trie, [list(map(re.escape, names)) for names in sid_tokens(case.trie.sizes)])}
    wanted = lambda: StructuredOutputsParams(**asked)  # noqa: E731  vLLM writes into it
    seconds = compile_seconds(engine, backend, wanted())
    best = case.here(K).search(case.queries["short"], K).items

    def samples() -> list[list[int]]:
        params = SamplingParams(n=K, temperature=1.0, seed=0, max_tokens=64, structured_outputs=wanted())
        answers = engine.generate(prompts, params, use_tqdm=False)
        return [case.rows([list(output.token_ids) for output in answer.outputs]) for answer in answers]

    lines = []
    for method, work in (
        (
            f"LLM.beam_search, {backend}",
            lambda: beams(case, engine, prompts, K, structured_outputs=wanted()),
        ),
        (f"{K} samples, {backend}", samples),
    ):
        ms, found = timed(work, repeats=1)
        lines.append(line(case, method, seconds, ms, found, best))
    return {"engines": lines}


def compile_seconds(engine, backend: str, wanted) -> float:
    """What vLLM's backend needs for a grammar that it has not seen."""
    from vllm.v1.structured_output.backend_outlines import OutlinesBackend
    from vllm.v1.structured_output.backend_xgrammar import XgrammarBackend
    from vllm.v1.structured_output.request import get_structured_output_key

    kind = {"xgrammar": XgrammarBackend, "outlines": OutlinesBackend}[backend]
    vocab_size = engine.model_config.get_vocab_size()
    made = kind(vllm_config=engine.llm_engine.vllm_config, tokenizer=engine.get_tokenizer(), vocab_size=vocab_size)
    started = clock()
    made.compile_grammar(*get_structured_output_key(wanted))
    return clock() - started


# --- together ---


def measured(folder: Path, engine: str) -> dict[str, list[dict]]:
    """The tables of one engine."""
    torch.set_num_threads(1)
    case = Case(folder)
    return with_trie(case) if engine == "trie" else with_grammar(case, engine)


def main(items: list[int] = [1000, 10_000], steps: int = 200, limit: int = 900) -> None:  # noqa: B006
    """Measure all engines on so many items, after so many steps of training, each for at most so many seconds."""
    os.environ.update(SETTINGS)
    torch.set_num_threads(1)
    tables: dict[str, list[dict]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for n_items in items:
            folder = Path(scratch) / str(n_items)
            make_case(folder, n_items, steps)
            for engine in ENGINES:
                try:
                    found = alone(measured, folder, engine, timeout=limit)
                except Exception as error:  # an engine that fails leaves the others their lines
                    print(f"{engine}, {n_items:,} items: {error!r}", file=sys.stderr)
                    continue
                for topic, lines in found.items():
                    tables.setdefault(topic, []).extend(lines)
    for topic, lines in tables.items():
        record(store.Store("vllm", "bench", fingerprint=""), topic, topic, lines)


if __name__ == "__main__":
    typer.run(main)
