"""Search through vLLM's engine, without vLLM: what is asked of it, and what is made of its answers.

`test_vllm.py` asks vLLM itself.
"""

import sys
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pandas as pd
import pytest
import torch
from transformers import AutoModelForCausalLM

from semid_lib.decoding import adapters
from semid_lib.decoding.beam_search import constrained_beam_search
from semid_lib.decoding.trie import PrefixTrie
from semid_lib.ids.semantic_ids import SemanticIDs
from semid_lib.llm.base_models import small_model
from semid_lib.llm.llm_search import LanguageModelSearch
from semid_lib.llm.vllm_search import VLLMSearch, load_searcher
from semid_lib.llm.vocabulary import extend_vocabulary
from semid_lib.serving.recommender import Recommender

N_ITEMS = 30
THINGS = ("tent", "lamp", "soap", "pen", "cup")
TEXTS = [f"{colour} {thing}" for colour in ("red", "blue", "green") for thing in THINGS] * 2
QUERIES = ["red tent", "a lamp", "blue pen for school and a long way home", "soap", "green"]


class Engine:
    """Stands in for `vllm.LLM`: the model in transformers, the processor in its place, and answers as vLLM has them."""

    started: ClassVar[list["Engine"]] = []

    def __init__(self, model, additional_config, **settings):
        self.settings, self.asked = settings, []
        self.model = AutoModelForCausalLM.from_pretrained(model, dtype=getattr(torch, settings["dtype"])).eval()
        vocab_size = self.model.config.vocab_size
        config = SimpleNamespace(
            additional_config=additional_config, model_config=SimpleNamespace(get_vocab_size=lambda: vocab_size)
        )
        self.processor = adapters._VLLMTrie(config, torch.device("cpu"), False)
        Engine.started.append(self)

    @torch.inference_mode()
    def generate(self, prompts, params, use_tqdm):
        assert params.max_tokens == 1 and params.logprobs <= self.settings["max_logprobs"]
        assert self.settings["logprobs_mode"] == "processed_logits"
        self.asked.append(len(prompts))
        answers = []
        for prompt in prompts:
            ids = prompt["prompt_token_ids"]
            added = [(0, SimpleNamespace(extra_args=None), ids, [])]
            self.processor.update_state(SimpleNamespace(added=added, removed=[], moved=[]))
            [scores] = self.processor.apply(self.model(input_ids=torch.tensor([ids])).logits[:, -1])
            best = scores.topk(params.logprobs)
            sampled = int(scores.argmax())  # stands before the best ones, also where it is one of them
            found = SimpleNamespace(
                token_ids=[sampled, *best.indices.tolist()], logprobs=[float(scores[sampled]), *best.values.tolist()]
            )
            answers.append(SimpleNamespace(outputs=[SimpleNamespace(logprobs=found)]))
        return answers


@pytest.fixture
def vllm(monkeypatch):
    """A module that looks like vLLM 0.32."""
    Engine.started.clear()
    module = SimpleNamespace(LLM=Engine, SamplingParams=SimpleNamespace, __version__="0.32.0")
    monkeypatch.setitem(sys.modules, "vllm", module)
    for name in ("VLLM_ENABLE_V1_MULTIPROCESSING", "VLLM_USE_V2_MODEL_RUNNER"):
        monkeypatch.setenv(name, "0")  # so that what is set here does not stay
    return module


@pytest.fixture(scope="module")
def ids():
    rng = np.random.default_rng(0)
    codes = rng.permutation(np.unique(rng.integers(4, size=(90, 3)), axis=0))[:N_ITEMS]
    return SemanticIDs.from_codes(codes, codebook_size=4)


@pytest.fixture(scope="module")
def ours(ids):
    model, tokenizer = small_model(TEXTS, 300, hidden_size=16, n_layers=1, n_heads=2)
    tokens = extend_vocabulary(model, tokenizer, ids, TEXTS)
    return LanguageModelSearch(model.eval(), tokenizer, tokens, PrefixTrie.build(ids.unique), beam_width=20)


@pytest.fixture(scope="module")
def folder(ours, tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    ours.save(folder)
    return folder / "llm"


def test_it_answers_as_our_own_decoder(vllm, ours, folder):
    search = VLLMSearch(folder, ours.trie, beam_width=20, batch_size=3)
    for k in (1, 10, N_ITEMS + 3):
        found, expected = search.search(QUERIES, k), ours.search(QUERIES, k)
        np.testing.assert_array_equal(found.items, expected.items)
        np.testing.assert_allclose(found.scores, expected.scores, atol=1e-4)
    assert search.search([], 3).items.shape == (0, 3)
    with pytest.raises(ValueError, match="query 0 is ' ', expected some text"):
        search.search([" "], 3)


def test_rules_hold_for_all_queries_or_for_each(vllm, ours, folder):
    search = VLLMSearch(folder, ours.trie)
    each = np.random.default_rng(3).random((len(QUERIES), N_ITEMS)) < 0.3
    each[0], each[0, 7] = False, True  # dead beams from the first level on
    for allowed in (np.arange(N_ITEMS) % 3 == 0, each):
        found, expected = (one.search(QUERIES, N_ITEMS, allowed) for one in (search, ours))
        np.testing.assert_array_equal(found.items, expected.items)
        np.testing.assert_allclose(found.scores, expected.scores, atol=1e-4)
    assert found.items[0].tolist() == [7] + [-1] * (N_ITEMS - 1)


def test_equal_beams_are_asked_once(vllm, ours, folder):
    search = VLLMSearch(folder, ours.trie, beam_width=5)
    search.search(["soap"] * 4, 5)
    [engine] = Engine.started
    assert engine.asked == [1, min(5, ours.trie.sizes[0]), 5]


def test_the_engine_is_told_not_to_sample_and_in_which_precision(vllm, ours, folder):
    VLLMSearch(folder, ours.trie, gpu_memory_utilization=0.5, enforce_eager=False)
    settings = Engine.started[0].settings
    assert (settings["generation_config"], settings["dtype"]) == ("vllm", "float32")
    assert settings["trust_remote_code"] is False
    assert settings["max_logprobs"] == max(ours.trie.branching)
    assert (settings["gpu_memory_utilization"], settings["enforce_eager"]) == (0.5, False)


def test_only_the_vocabulary_normalizes(vllm, ours, folder):
    scorer = VLLMSearch(folder, ours.trie).scorer
    with pytest.raises(ValueError, match="none normalized by 'level'"):
        constrained_beam_search(scorer, [[3, 4]], ours.trie, 5, 5, normalization="level")


def test_tokens_that_do_not_fit_are_refused_before_anything_starts(vllm, ours, folder, tmp_path):
    wide = PrefixTrie.build(np.array([[0, 0, 0], [9, 0, 0]]))
    with pytest.raises(ValueError, match=r"semantic_id_tokens\.json does not fit .* level 0 has 4 tokens"):
        VLLMSearch(folder, wide)
    ours.save(tmp_path)
    path = tmp_path / "llm" / "semantic_id_tokens.json"
    tokens, end_token = adapters.load_tokens(path)
    for wrong, message in [
        (tokens[:2], "tokens of 2 levels, the trie has 3"),
        ((*tokens[:2], tokens[1]), "a token stands for two levels"),
        ((*tokens[:2], tokens[2] + 10_000), "outside the vocabulary"),
    ]:
        adapters.save_tokens(path, wrong, end_token)
        with pytest.raises(ValueError, match=message):
            VLLMSearch(tmp_path / "llm", ours.trie)
    path.unlink()
    with pytest.raises(ValueError, match="is not a file of tokens"):
        VLLMSearch(tmp_path / "llm", ours.trie)
    assert not Engine.started


def test_without_vllm_or_with_another_it_says_what_to_install(vllm, ours, folder, monkeypatch):
    vllm.__version__ = "0.31.2"
    with pytest.raises(ImportError, match=r"made for vLLM 0\.32, and 0\.31\.2 is installed"):
        VLLMSearch(folder, ours.trie)
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(ImportError, match=r"pip install 'vllm==0\.32\.0' where there is an NVIDIA GPU"):
        VLLMSearch(folder, ours.trie)


def test_a_recommender_answers_through_it_and_is_saved_again(vllm, ours, ids, tmp_path):
    items = pd.DataFrame({"item_id": np.arange(N_ITEMS) + 100, "title": TEXTS})
    before = Recommender(None, ids, items, ours)
    before.save_pretrained(tmp_path / "first")
    loaded = Recommender.from_pretrained(tmp_path / "first", engine="vllm")
    assert isinstance(loaded.searcher, VLLMSearch)
    np.testing.assert_array_equal(loaded.search(QUERIES, 5).item_ids, before.search(QUERIES, 5).item_ids)
    for folder in ("first", "second"):  # over itself, and elsewhere
        loaded.save_pretrained(tmp_path / folder)
        again = Recommender.from_pretrained(tmp_path / folder)
        np.testing.assert_array_equal(again.search(QUERIES, 5).item_ids, before.search(QUERIES, 5).item_ids)


def test_another_engine_or_a_model_without_words(ids, tmp_path):
    with pytest.raises(ValueError, match="engine is 'llama', expected 'transformers' or 'vllm'"):
        load_searcher(tmp_path, {"type": "light", "beam_width": 5}, ids, None, engine="llama")
    with pytest.raises(ValueError, match="holds a model of search of type 'light'"):
        load_searcher(tmp_path, {"type": "light", "beam_width": 5}, ids, None, engine="vllm")
    adapter = {"type": "language model", "beam_width": 5, "task": "query_to_id", "base": {"name": "org/base"}}
    with pytest.raises(ValueError, match="adapter for org/base, and vLLM wants a model"):
        load_searcher(tmp_path, adapter, ids, None, engine="vllm")
