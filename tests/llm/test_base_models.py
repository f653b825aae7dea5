"""Base models: their facts, loading, and a small one from scratch."""

import sys
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from semid_lib.llm.base_models import MODELS, facts_of, load_base, small_model, text_half
from semid_lib.llm.examples import tokenize
from semid_lib.llm.fine_tuning import FineTuning, save_model
from semid_lib.llm.training_costs import estimate, estimate_known, measured_speed


@pytest.mark.parametrize("key", MODELS)
def test_the_table_counts_the_parameters_of_a_model_of_that_shape(key):
    from transformers import LlamaConfig, Ministral3Config, Qwen3Config

    facts = MODELS[key]
    kind = {"qwen3": Qwen3Config, "ministral": Ministral3Config, "llama": LlamaConfig}[key.split("-")[0]]
    config = kind(
        vocab_size=facts.vocabulary_size,
        hidden_size=facts.hidden_size,
        num_hidden_layers=facts.n_layers,
        intermediate_size=facts.intermediate_size,
        num_attention_heads=facts.query_size // 128,
        num_key_value_heads=facts.key_size // 128,
        head_dim=128,
        tie_word_embeddings=facts.tied,
    )
    with torch.device("meta"):
        found = facts_of(AutoModelForCausalLM.from_config(config))
    assert (found.n_parameters, len(facts.revision)) == (facts.n_parameters, 40)
    assert found.lora_parameters(8) == facts.lora_parameters(8)


def test_words_start_where_an_encoder_puts_them(items):
    """Tokens of similar meaning start near each other; the rest of the model is the same."""
    asked = []

    def embed(texts):
        asked.extend(texts)
        near = {"tent": [3.0, 1.0], "lamp": [3.0, 0.9]}
        noise = np.random.default_rng(0).normal(size=(len(texts), 20))
        return np.hstack([[near.get(text, [0.0, 0.0]) for text in texts], 0.01 * noise])

    shape = {"vocabulary_size": 400, "hidden_size": 8, "n_layers": 1, "n_heads": 2}
    (random, tokenizer), (placed, _) = (small_model(items["title"], **shape, embed=each) for each in (None, embed))
    assert asked == [tokenizer.decode([token]).strip() or " " for token in range(len(tokenizer))]
    rows = {word: placed.get_input_embeddings().weight[asked.index(word)] for word in ("tent", "lamp", "soap")}
    assert rows["tent"] @ rows["lamp"] > 0.99
    assert rows["tent"] @ rows["soap"] < 0.5
    assert placed.lm_head.weight is placed.model.embed_tokens.weight
    before, after = random.state_dict(), placed.state_dict()
    other = [name for name in before if not torch.equal(before[name], after[name])]
    assert sorted(other) == ["lm_head.weight", "model.embed_tokens.weight"]
    wider, _ = small_model(items["title"], 400, hidden_size=64, n_layers=1, n_heads=2, embed=embed)
    assert not wider.get_input_embeddings().weight[:, 22:].any()  # the encoder has no more dimensions


def test_the_text_half_of_a_model_of_images_is_a_separate_model(tmp_path):
    from transformers import Mistral3Config, Mistral3ForConditionalGeneration

    sizes = {"hidden_size": 32, "intermediate_size": 32, "head_dim": 16}
    shape = sizes | {"num_hidden_layers": 1, "num_attention_heads": 2}
    text = shape | {"model_type": "ministral3", "vocab_size": 40, "num_key_value_heads": 2, "tie_word_embeddings": True}
    vision = shape | {"model_type": "pixtral", "image_size": 28, "patch_size": 14}
    config = Mistral3Config(text_config=text, vision_config=vision, tie_word_embeddings=True)
    whole = Mistral3ForConditionalGeneration(config).eval()
    half, prompt = text_half(whole).eval(), torch.tensor([[5, 6, 7]])
    expected = whole(input_ids=prompt).logits
    assert torch.equal(half(input_ids=prompt).logits, expected)
    assert half.lm_head.weight is half.model.embed_tokens.weight
    half.save_pretrained(tmp_path)
    assert torch.equal(AutoModelForCausalLM.from_pretrained(tmp_path)(input_ids=prompt).logits, expected)


def test_loading(extended, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"hf download Qwen/Qwen3-4B --revision 1cfa9a7.*give its path"):
        load_base()
    with pytest.raises(ValueError, match="no texts to train a tokenizer"):
        small_model(["", ""])
    with pytest.raises(FileNotFoundError, match="no/such is neither a local folder"):
        load_base("no/such")
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="four_bit needs CUDA and unsloth"):
            load_base(four_bit=True)
    model, tokenizer, _ = extended()
    save_model(model, tokenizer, tmp_path)
    again, words = load_base(str(tmp_path))
    assert again.num_parameters() == model.num_parameters() and len(words) == len(tokenizer)


def test_four_bit_weights_come_through_unsloth(extended, tmp_path, monkeypatch):
    """What is sent to unsloth, which needs a GPU."""
    model, tokenizer, _ = extended()
    save_model(model, tokenizer, tmp_path)
    unsloth, asked = ModuleType("unsloth"), {}
    unsloth.__spec__ = ModuleSpec("unsloth", None)
    unsloth.FastLanguageModel = SimpleNamespace(from_pretrained=lambda name, **options: asked.update(options))
    monkeypatch.setitem(sys.modules, "unsloth", unsloth)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    load_base(str(tmp_path))
    assert asked == {"revision": None, "max_seq_length": 512, "load_in_4bit": True, "trust_remote_code": False}


# --- costs ---

CONFIG = FineTuning(row_steps=6, n_epochs=1, batch_size=8, rank=4)


@pytest.mark.slow
def test_the_estimate_and_the_speed_leave_the_model_as_it_is(extended, few_rows):
    model, tokenizer, tokens = extended()
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    data = tokenize(few_rows, tokenizer)
    speed = measured_speed(model, data, CONFIG, tokens)
    assert speed > 0 and all(torch.equal(before[name], weight) for name, weight in model.state_dict().items())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
    cost = estimate(model, data, CONFIG, tokens, tokens_per_second=speed)
    n_tokens = sum(map(len, data["input_ids"]))
    assert cost.seconds == pytest.approx((6 + 5) * 8 * n_tokens / 40 / speed, rel=0.01)
    assert 4 * model.num_parameters() / 2**30 == cost.weights_gib < cost.memory_gib < 0.1
    everything = estimate(model, data, FineTuning("full", 0), tokens, speed)
    assert everything.training_gib == pytest.approx(12 * model.num_parameters() / 2**30)
    assert measured_speed(model, data, FineTuning("full", batch_size=8), tokens) > 0


def test_what_known_models_would_take(extended, few_rows):
    data = tokenize(few_rows, extended()[1])
    table = estimate_known(data, 12, CONFIG, operations_per_second=1e12)
    assert table.index.tolist() == list(MODELS)
    n_tokens = (6 + 5) * 8 * np.mean([len(example) for example in data["input_ids"]])
    row, facts = table.loc["qwen3-4b"], MODELS["qwen3-4b"]
    assert row["hours"] == pytest.approx(int(n_tokens) * 6 * facts.n_parameters / 1e12 / 3600)
    assert row["GiB at 4 bits"] < row["GiB at 16 bits"] < table.loc["qwen3-8b", "GiB at 16 bits"]
