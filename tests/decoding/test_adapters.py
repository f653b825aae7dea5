"""The trie as a logits processor of vLLM, without vLLM (`tests/test_vllm.py` runs an engine), and files of tokens."""

import abc
import json
import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch

from semid_lib.decoding import adapters, scorers
from semid_lib.decoding.scorers import check_tokens
from semid_lib.decoding.trie import PrefixTrie

END = 1


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        ([[3, 4]], "1 levels, the trie has 2"),
        ([[3], [5, 6, 7]], "level 0 has 1 tokens"),
        ([[3, 4], [5, 6, 8]], "token 8 of level 1 is outside the vocabulary of 8"),
        ([[3, -1], [5, 6, 7]], "token -1 of level 0"),
        ([[3, 4], [5, 6, 5]], "token 5 is of two codes of level 1"),
        ([[3.0, 4.0], [5, 6, 7]], "expected a row of integers"),
    ],
)
def test_tokens_that_do_not_fit_are_refused(tokens, message):
    trie = PrefixTrie.build(np.array([[1, 0], [0, 2]]))
    with pytest.raises(ValueError, match=message):
        check_tokens([np.array(ids) for ids in tokens], trie, 8)


def test_tokens_survive_a_file(tmp_path):
    scorers.save_tokens(tmp_path / "t.json", [np.array([3, 4]), np.array([9])], 1)
    tokens, end = scorers.load_tokens(tmp_path / "t.json")
    assert ([ids.tolist() for ids in tokens], end) == ([[3, 4], [9]], 1)
    good = {"format": "semid tokens 1", "tokens": [[3]], "end_token": 1}
    others = ({"format": "x"}, {"tokens": [3]}, {"tokens": [[-1]]}, {"end_token": "1"})
    for content in ("{", "[]", *(json.dumps(good | other) for other in others)):
        (tmp_path / "t.json").write_text(content)
        with pytest.raises(ValueError, match=r"t\.json is not a file of tokens"):
            scorers.load_tokens(tmp_path / "t.json")


@pytest.fixture
def engine(tmp_path):
    """A processor over four items of three levels, as an engine would make it."""
    trie = PrefixTrie.build(np.array([[0, 0, 1], [0, 1, 0], [1, 0, 0], [1, 0, 1]]))
    trie.save(tmp_path / "trie.safetensors")
    scorers.save_tokens(tmp_path / "tokens.json", [np.array([8, 7]), np.array([6, 5]), np.array([4, 3])], END)
    settings = {"semid_trie": str(tmp_path / "trie.safetensors"), "semid_tokens": str(tmp_path / "tokens.json")}
    config = SimpleNamespace(additional_config=settings, model_config=SimpleNamespace(get_vocab_size=lambda: 10))
    return SimpleNamespace(make=lambda: adapters._VLLMTrie(config, torch.device("cpu"), False), settings=settings)


def update(added=(), removed=(), moved=()):
    def request(place, prompt, output, **extra):
        return place, SimpleNamespace(extra_args=extra or None), prompt, output

    moved = [(source, target, SimpleNamespace(name=name)) for source, target, name in moved]
    return SimpleNamespace(added=[request(*a[:3], **a[3]) for a in added], removed=removed, moved=moved)


def allowed(processor, n):
    scores = processor.apply(torch.zeros(n, 10, dtype=torch.bfloat16))
    assert scores.dtype == torch.float32
    finite = scores[scores > -torch.inf]
    assert torch.allclose(finite, torch.full_like(finite, -np.log(10.0)))  # of the whole vocabulary
    return [row.nonzero().flatten().tolist() for row in scores > -torch.inf]


@pytest.mark.parametrize(
    ("prompt", "output", "expected"),
    [
        ([2, 2], [], [7, 8]),  # an ID begins
        ([2, 2], [8], [5, 6]),
        ([2, 2], [8, 6], [3]),
        ([2, 2], [7, 6, 4], [END]),  # complete
        ([2, 7], [], [6]),  # a beam: its ID so far is the end of the prompt
        ([2, 7, 6], [], [3, 4]),
        ([7, 6, 4, 7, 6, 3], [], [7, 8]),  # a history of items
        ([7, 6, 4, 8], [], [5, 6]),  # a beam after a history
        ([2, 7], [6], [3, 4]),
        (None, [8], [5, 6]),  # a prompt of embeddings
        ([], [], [7, 8]),
        ([6], [], [END]),  # level 1 without level 0: no item begins so
        ([2, 7], [5], [END]),  # a dead beam
        ([7, 6, 4], [2], [7, 8]),
    ],
)
def test_vllm_finds_the_prefix(engine, prompt, output, expected):
    processor = engine.make()
    processor.update_state(update(added=[(0, prompt, output, {})]))
    assert allowed(processor, 1) == [expected]


def test_vllm_follows_requests_through_the_batch(engine):
    processor = engine.make()
    running = [8]
    processor.update_state(update(added=[(0, [2], running, {}), (1, [2], [], {"semid": False}), (2, [2], [7], {})]))
    everything = list(range(10))
    assert allowed(processor, 3) == [[5, 6], everything, [6]]
    running.append(5)
    processor.update_state(None)
    assert allowed(processor, 3) == [[4], everything, [6]]
    processor.update_state(update(moved=[(0, 2, "SWAP")]))
    assert allowed(processor, 3) == [[6], everything, [4]]
    processor.update_state(update(removed=[0], moved=[(2, 0, "UNIDIRECTIONAL")]))
    assert allowed(processor, 3) == [[4], everything, everything]
    processor.update_state(update(added=[(1, [2], [7], {})], moved=[(0, 1, "UNIDIRECTIONAL")]))  # takes its place
    assert allowed(processor, 2) == [everything, [4]]
    assert not processor.is_argmax_invariant()


def test_vllm_refuses_a_bad_request():
    with pytest.raises(ValueError, match="semid must be true or false, got 'no'"):
        adapters._VLLMTrie.validate_params(SimpleNamespace(extra_args={"semid": "no"}))
    adapters._VLLMTrie.validate_params(SimpleNamespace(extra_args=None))


def test_vllm_refuses_bad_settings(engine):
    path = engine.settings["semid_tokens"]
    for tokens, end, message in [
        ([[8, 7], [8, 5], [4, 3]], END, "two levels"),
        ([[8, 7], [6, 5], [4, END]], END, "or is the end token"),
        ([[8, 7], [6, 5], [4, 3]], 10, "end token 10 is outside"),
        ([[8, 17], [6, 5], [4, 3]], END, "token 17 of level 0"),
    ]:
        scorers.save_tokens(path, [np.array(ids) for ids in tokens], end)
        with pytest.raises(ValueError, match=message):
            engine.make()
    del engine.settings["semid_tokens"]
    with pytest.raises(ValueError, match="additional_config has no 'semid_tokens'"):
        engine.make()


def test_vllm_finds_the_class_by_its_name(monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm.v1.sample.logits_processor", None)
    with pytest.raises(ImportError, match="VLLMTrieProcessor needs vLLM"):
        _ = adapters.VLLMTrieProcessor
    module = ModuleType("vllm.v1.sample.logits_processor")
    module.LogitsProcessor = abc.ABC
    for name in ("vllm", "vllm.v1", "vllm.v1.sample"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    made = adapters.VLLMTrieProcessor
    assert (made.__module__, made.__qualname__) == (adapters.__name__, "VLLMTrieProcessor")
    assert adapters.VLLMTrieProcessor is made
    adapters.__getattr__.cache_clear()
    with pytest.raises(AttributeError, match="no attribute 'Processor'"):
        _ = adapters.Processor


@pytest.mark.parametrize(("sequences", "length"), [([5, 7], 1), ([[5.0, 7.0]], 1), ([[5, 7]], -1)])
def test_sequences_of_another_form_are_refused(sequences, length):
    with pytest.raises(ValueError, match=r"expected \(n, L\) integers"):
        adapters.allowed_tokens_fn(np.array(sequences), length)
