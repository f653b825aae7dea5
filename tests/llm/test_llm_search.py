"""Search by a language model, through transformers and through vLLM's engine, and free generations.

vLLM itself is not needed: a stand-in checks what is sent to it and returns answers in its format. `test_vllm.py` runs
the real one.
"""

import json
import sys
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from semid_lib.decoding import adapters, scorers
from semid_lib.decoding.beam_search import constrained_beam_search
from semid_lib.decoding.scorers import CausalScorer
from semid_lib.decoding.trie import PrefixTrie
from semid_lib.llm.examples import encode_prompts, prompt_for
from semid_lib.llm.llm_search import LanguageModelSearch, generate_freely, load_searcher
from semid_lib.llm.vllm_search import VLLMSearch
from semid_lib.serving.recommender import Recommender

QUERIES = ["red tent", "a lamp", "blue pen for school and a long way home", "soap", "green"]


@pytest.fixture(scope="module")
def ours(extended, ids):
    model, tokenizer, tokens = extended(hidden_size=16, n_layers=1)
    return LanguageModelSearch(model.eval(), tokenizer, tokens, PrefixTrie.build(ids.unique), beam_width=20)


@pytest.fixture(scope="module")
def folder(ours, tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    ours.save(folder)
    return folder / "llm"


def check_same(found, expected):
    np.testing.assert_array_equal(found.items, expected.items)
    np.testing.assert_allclose(found.scores, expected.scores, atol=1e-4)


def test_a_language_model_answers_as_its_beam_search(ours):
    prompts = encode_prompts(ours.tokenizer, [prompt_for(ours.tokenizer, query) for query in QUERIES])
    found = constrained_beam_search(CausalScorer(ours.model, ours.tokens), prompts, ours.trie, 20, 10)
    narrow = LanguageModelSearch(ours.model, ours.tokenizer, ours.tokens, ours.trie, 20, batch_size=3)
    expected = SimpleNamespace(items=found.items.numpy(), scores=found.scores.numpy())
    check_same(narrow.search(QUERIES, 10), expected)


def test_a_model_that_does_not_fit_its_files_is_refused(ours, tmp_path):
    facts, _ = ours.save(tmp_path)
    found = LanguageModelSearch.load(tmp_path, facts, ours.trie).search(QUERIES, 10)
    check_same(found, ours.search(QUERIES, 10))
    weights, config = tmp_path / "llm" / "model.safetensors", tmp_path / "llm" / "config.json"
    kept, known = load_file(weights), config.read_text()
    del kept["model.norm.weight"]
    save_file(kept, weights, {"format": "pt"})
    with pytest.raises(ValueError, match=r"1 weights are missing or of another shape, such as 'model\.norm"):
        LanguageModelSearch.load(tmp_path, facts, ours.trie)
    longer = {"num_hidden_layers": 7, "layer_types": ["full_attention"] * 7}
    config.write_text(json.dumps(json.loads(known) | longer))
    with pytest.raises(ValueError, match=r"config\.json has 7 layers, the weights have 1"):
        LanguageModelSearch.load(tmp_path, facts, ours.trie)


# --- without a trie ---


class Scripted:
    """A model that generates given tokens."""

    device = torch.device("cpu")

    def __init__(self, answers):
        self.answers = torch.tensor(answers)

    def generate(self, input_ids, **options):
        now, self.answers = self.answers[: len(input_ids)], self.answers[len(input_ids) :]
        return torch.cat([input_ids, now], dim=1)


def test_free_answers_are_read(ours, ids):
    end = ours.tokenizer.eos_token_id
    item = [int(level[code]) for level, code in zip(ours.tokens, ids.unique[7], strict=True)]
    answers = [[*item, end], [*item, item[0]], [item[0], item[0], item[2], end], [end, 0, 0, 0]]
    found = generate_freely(Scripted(answers), ours.tokenizer, ours.tokens, ours.trie, QUERIES[:4], batch_size=3)
    assert found.items.tolist() == [7, -1, -1, -1]
    assert found.codes[0].tolist() == ids.unique[7].tolist()
    assert found.codes[2, 1] == -1
    assert (found.codes[3] == -1).all()


def test_sampling_is_reproducible_and_leaves_the_generator_alone(ours):
    parts = (ours.model, ours.tokenizer, ours.tokens, ours.trie, QUERIES)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    drawn = [generate_freely(*parts, sample=True, seed=seed).codes for seed in (0, 0, 1)]
    assert torch.equal(torch.get_rng_state(), before)
    np.testing.assert_array_equal(drawn[0], drawn[1])
    np.testing.assert_array_equal(*(generate_freely(*parts, batch_size=size).codes for size in (2, 64)))


# --- through vLLM ---


class Engine:
    """A stand-in for `vllm.LLM`: the model in transformers, with the logits processor, and answers in vLLM's format."""

    started: ClassVar[list["Engine"]] = []

    def __init__(self, model, additional_config, **settings):
        self.settings, self.asked = settings, []
        self.model = AutoModelForCausalLM.from_pretrained(model, dtype=getattr(torch, settings["dtype"])).eval()
        vocab_size = self.model.config.vocab_size
        model_config = SimpleNamespace(get_vocab_size=lambda: vocab_size)
        config = SimpleNamespace(additional_config=additional_config, model_config=model_config)
        self.processor = adapters._VLLMTrie(config, torch.device("cpu"), False)
        Engine.started.append(self)

    @torch.inference_mode()
    def generate(self, prompts, params, use_tqdm):
        assert params.max_tokens == 1 and params.logprobs <= self.settings["max_logprobs"]
        assert self.settings["logprobs_mode"] == "processed_logits"
        self.asked.append(len(prompts))
        return [self.answer(prompt["prompt_token_ids"], params.logprobs) for prompt in prompts]

    def answer(self, ids, n):
        added = [(0, SimpleNamespace(extra_args=None), ids, [])]
        self.processor.update_state(SimpleNamespace(added=added, removed=[], moved=[]))
        [scores] = self.processor.apply(self.model(input_ids=torch.tensor([ids])).logits[:, -1])
        best, sampled = scores.topk(n), int(scores.argmax())  # the sampled token comes first, and again in its place
        tokens = [sampled, *best.indices.tolist()]
        found = SimpleNamespace(token_ids=tokens, logprobs=[float(scores[token]) for token in tokens])
        return SimpleNamespace(outputs=[SimpleNamespace(logprobs=found)])


@pytest.fixture
def vllm(monkeypatch):
    """A module that looks like vLLM 0.32."""
    Engine.started.clear()
    module = SimpleNamespace(LLM=Engine, SamplingParams=SimpleNamespace, __version__="0.32.0")
    monkeypatch.setitem(sys.modules, "vllm", module)
    for name in ("VLLM_ENABLE_V1_MULTIPROCESSING", "VLLM_USE_V2_MODEL_RUNNER"):
        monkeypatch.setenv(name, "0")  # so that values set in a test do not stay
    return module


def test_vllm_gives_the_answers_of_our_decoder_with_rules_too(vllm, ours, folder):
    search = VLLMSearch(folder, ours.trie, beam_width=20, batch_size=3)
    n_items = ours.n_items
    for k in (1, n_items + 3):
        check_same(search.search(QUERIES, k), ours.search(QUERIES, k))
    assert search.search([], 3).items.shape == (0, 3)
    with pytest.raises(ValueError, match="query 0 is ' ', expected some text"):
        search.search([" "], 3)
    each = np.random.default_rng(3).random((len(QUERIES), n_items)) < 0.3
    each[0], each[0, 7] = False, True  # dead beams from the first level on
    for allowed in (np.arange(n_items) % 3 == 0, each):
        found = search.search(QUERIES, n_items, allowed)
        check_same(found, ours.search(QUERIES, n_items, allowed))
    assert found.items[0].tolist() == [7] + [-1] * (n_items - 1)


def test_requests_of_vllm(vllm, ours, folder):
    search = VLLMSearch(folder, ours.trie, beam_width=5, gpu_memory_utilization=0.5, enforce_eager=False)
    search.search(["soap"] * 4, 5)
    [engine] = Engine.started
    assert engine.asked == [1, 3, 5]  # level 0 has three codes in use
    expected = {"generation_config": "vllm", "dtype": "float32", "trust_remote_code": False}
    expected |= {"gpu_memory_utilization": 0.5, "enforce_eager": False, "max_logprobs": max(ours.trie.branching)}
    assert engine.settings.items() >= expected.items()
    with pytest.raises(ValueError, match="none normalized by 'level'"):
        constrained_beam_search(search.scorer, [[3, 4]], ours.trie, 5, 5, normalization="level")


def test_tokens_that_do_not_fit_are_refused_before_vllm_starts(vllm, ours, folder, tmp_path):
    wide = PrefixTrie.build(np.array([[0, 0, 0], [9, 0, 0]]))
    with pytest.raises(ValueError, match=r"semantic_id_tokens\.json does not fit .* level 0 has 4 tokens"):
        VLLMSearch(folder, wide)
    ours.save(tmp_path)
    path = tmp_path / "llm" / "semantic_id_tokens.json"
    tokens, end_token = scorers.load_tokens(path)
    for wrong, message in [
        (tokens[:2], "tokens of 2 levels, the trie has 3"),
        ((*tokens[:2], tokens[1]), "two levels"),
        ((*tokens[:2], tokens[2] + 10_000), "outside the vocabulary"),
    ]:
        scorers.save_tokens(path, wrong, end_token)
        with pytest.raises(ValueError, match=message):
            VLLMSearch(tmp_path / "llm", ours.trie)
    path.unlink()
    with pytest.raises(ValueError, match="is not a file of tokens"):
        VLLMSearch(tmp_path / "llm", ours.trie)
    assert not Engine.started


def test_a_missing_or_another_vllm_says_what_to_install(vllm, ours, folder, monkeypatch):
    vllm.__version__ = "0.31.2"
    with pytest.raises(ImportError, match=r"made for vLLM 0\.32, and 0\.31\.2 is installed"):
        VLLMSearch(folder, ours.trie)
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(ImportError, match=r"pip install 'vllm==0\.32\.0' with an NVIDIA GPU"):
        VLLMSearch(folder, ours.trie)


def test_a_recommender_answers_through_vllm_and_is_saved_again(vllm, ours, ids, items, tmp_path):
    before = Recommender(None, ids, items[["title"]].assign(item_id=np.arange(len(items)) + 100), ours)
    before.save_pretrained(tmp_path / "first")
    loaded = Recommender.from_pretrained(tmp_path / "first", engine="vllm")
    assert isinstance(loaded.searcher, VLLMSearch)
    np.testing.assert_array_equal(loaded.search(QUERIES, 5).item_ids, before.search(QUERIES, 5).item_ids)
    for folder in ("first", "second"):  # over itself, and elsewhere
        loaded.save_pretrained(tmp_path / folder)
        again = Recommender.from_pretrained(tmp_path / folder)
        np.testing.assert_array_equal(again.search(QUERIES, 5).item_ids, before.search(QUERIES, 5).item_ids)


@pytest.mark.parametrize(
    ("facts", "engine", "message"),
    [
        ({"type": "hybrid ranker"}, "llama", "engine is 'llama', expected 'transformers' or 'vllm'"),
        ({"type": "hybrid ranker"}, "vllm", "has a search model of type 'hybrid ranker'"),
        ({"type": "language model", "task": "title_to_id"}, "transformers", "is asked 'title_to_id', expected 'query"),
        ({"type": "language model", "base": {"name": "org/base"}}, "vllm", "adapter for org/base, vLLM needs a model"),
    ],
)
def test_an_engine_that_does_not_fit_is_refused(ids, tmp_path, facts, engine, message):
    with pytest.raises(ValueError, match=message):
        load_searcher(tmp_path, {"beam_width": 5, "task": "query_to_id"} | facts, ids, pd.DataFrame(), engine=engine)
