"""Answers of a language model: parsing, costs, and a tiny local model."""

import json
import sys
from dataclasses import replace
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from chat_server import answer
from hypothesis import given, settings
from hypothesis import strategies as st

from semid_lib.queries import llm_queries, local_model
from semid_lib.queries.endpoint import Endpoint
from semid_lib.queries.llm_queries import ask, estimate_cost, parse_answer
from semid_lib.workbench.workers import here


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (answer("A Lamp ", '"quoted"'), [("a lamp", "need"), ("quoted", "need")]),
        ("```json\n" + answer("a lamp") + "\n```", [("a lamp", "need")]),
        ("<think>{[ what now</think>" + answer("a lamp"), [("a lamp", "need")]),
        ("Of course [as asked]: " + answer("a lamp") + " Anything else?", [("a lamp", "need")]),
        (answer("a", "b", "c", "d"), [("a", "need"), ("b", "need"), ("c", "need")]),
        (answer("a", "A", "a "), [("a", "need")]),
        (answer("a", kind="poem"), [("a", "other")]),
        ('["a lamp", "a light"]', [("a lamp", "other"), ("a light", "other")]),
        (answer("x" * 300, "a"), [("a", "need")]),
        (answer("two\nlines"), [("two lines", "need")]),
        (r'{"queries": ["half \ud83d a pair"]}', [("half a pair", "other")]),
    ],
)
def test_parse_answer(text, expected):
    assert parse_answer(text, 3) == expected


@settings(max_examples=20)
@given(st.text() | st.recursive(st.none() | st.text() | st.integers(), st.lists).map(json.dumps))
def test_parse_answer_never_fails_otherwise(text):
    try:
        found = parse_answer(text, 2)
    except ValueError:
        return
    assert 1 <= len(found) <= 2


def test_cost_by_hand(tmp_path):
    """An estimate counts equal texts once, needs no key and writes nothing."""
    items = pd.DataFrame({"title": ["Lamp", "Tent", "Lamp", ""]})
    model = Endpoint("http://127.0.0.1:8000/v1", "m", "NOT_SET_ANYWHERE")
    estimate = estimate_cost(items, 5, model, price_prompt=1e6, price_completion=2e6, cache=tmp_path / "new")
    sent = [json.dumps(llm_queries.answer_schema()), *(part["content"] for part in llm_queries.messages("Lamp", 5))]
    n_tokens = sum(-(-len(text) // 4) for text in sent) + 2 * 4
    completion = 2 * (5 * 18 + 8)
    assert estimate == (2, 1, 2 * n_tokens, completion, 2 * n_tokens + 2 * completion)
    assert not (tmp_path / "new").exists()


# --- a local model ---


@pytest.fixture(scope="module")
def tiny():
    """A Qwen3 of random weights over single bytes: its answers have the right structure and no meaning."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

    letters = {letter: at for at, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=letters | {"<|end|>": 256}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>", pad_token="<|end|>")
    torch.manual_seed(0)
    config = Qwen3Config(
        **{"vocab_size": 257, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1},
        **{"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8, "eos_token_id": 256, "pad_token_id": 256},
    )
    return local_model.LocalModel("tiny", Qwen3ForCausalLM(config).eval(), fast, max_tokens=150, max_characters=6)


@pytest.mark.slow
def test_a_local_model_follows_the_schema(tiny, tmp_path):
    before = torch.random.get_rng_state()
    items, seen = pd.DataFrame({"title": ["Lamp", "Tent"]}), []

    def run(load, batches):
        seen.extend(batches)
        return here(load, seen)

    answers = ask(items, 2, replace(tiny, batch_size=1), seed=4, cache=tmp_path, run=run)
    assert [batch.num_rows for batch in seen] == [1, 1]
    assert torch.equal(before, torch.random.get_rng_state())
    assert answers.failed.empty and answers.counts["requests"] == 2
    assert set(answers.queries["kind"]) <= set(llm_queries.KINDS)
    assert answers.queries.groupby("item").size().between(1, 2).all()
    again = ask(items, 2, replace(tiny, model=None), seed=4, cache=tmp_path)
    pd.testing.assert_frame_equal(again.queries, answers.queries)  # without a model: from the cache


@pytest.mark.slow
def test_a_local_answer_that_is_cut_off_fails_with_a_reason(tiny, monkeypatch):
    with pytest.warns(UserWarning, match="1 of 1"):
        answers = ask(pd.DataFrame({"title": ["Lamp"]}), 2, replace(tiny, max_tokens=5))
    assert "no queries in the answer" in answers.failed["reason"][0]
    monkeypatch.setitem(sys.modules, "outlines", None)
    with pytest.raises(ImportError, match="extra 'queries'"):
        ask(pd.DataFrame({"title": ["Lamp"]}), 2, tiny)


def test_a_chat_template_is_used_without_thinking():
    tokenizer = SimpleNamespace(chat_template="some", apply_chat_template=lambda chat, **options: f"{options}")
    prompt = local_model._prompt(SimpleNamespace(tokenizer=tokenizer), llm_queries.messages("Lamp", 2))
    assert "'enable_thinking': False" in prompt and "'add_generation_prompt': True" in prompt
