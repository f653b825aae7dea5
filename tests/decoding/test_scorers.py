"""transformers models as scorers: the same lists as `generate`, and as scoring every item."""

import numpy as np
import pytest
import torch
import transformers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from semid_lib.decoding import beam_search, scorers
from semid_lib.decoding.adapters import allowed_tokens_fn
from semid_lib.decoding.beam_search import constrained_beam_search, exact_ranking
from semid_lib.decoding.scorers import CausalScorer, EncoderDecoderScorer
from semid_lib.decoding.trie import PrefixTrie

SIZES = (12, 12, 12)
FIRST = 5  # tokens before the first code
TOKENS = [FIRST + 12 * level + np.random.default_rng(level).permutation(12) for level in range(3)]  # in no order
VOCABULARY = FIRST + sum(SIZES) + 4
SMALL = {"vocab_size": VOCABULARY, "pad_token_id": 0, "eos_token_id": None, "bos_token_id": None}
SHAPE = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}


def t5(**changes):
    config = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4, "decoder_start_token_id": 0}
    return T5ForConditionalGeneration(T5Config(**SMALL | config | changes))


def qwen3(**changes):
    return Qwen3ForCausalLM(Qwen3Config(**SMALL | SHAPE | {"num_key_value_heads": 2, "head_dim": 8} | changes))


def llama(**changes):
    return LlamaForCausalLM(LlamaConfig(**SMALL | SHAPE | changes))


def qwen2_with_sliding_layers(**changes):
    sliding = {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 1, "num_key_value_heads": 2}
    return Qwen2ForCausalLM(Qwen2Config(**SMALL | SHAPE | sliding | changes))


MODELS = {
    "t5": t5,
    "t5, gated, tied": lambda: t5(feed_forward_proj="gated-gelu", tie_word_embeddings=True),
    "t5, eager": lambda: t5(attn_implementation="eager"),
    "qwen3": qwen3,
    "qwen3, eager": lambda: qwen3(attn_implementation="eager"),
    "llama": llama,
    "qwen2, sliding layers": qwen2_with_sliding_layers,
    "mistral, all layers sliding": lambda: transformers.MistralForCausalLM(
        transformers.MistralConfig(**SMALL | SHAPE | {"num_key_value_heads": 2, "sliding_window": 16})
    ),
    "gpt2, learned positions": lambda: transformers.GPT2LMHeadModel(
        transformers.GPT2Config(**SMALL, n_embd=32, n_layer=2, n_head=4, n_positions=32)
    ),
}


def sharpened(model, seed):
    """Weights drawn anew and larger, so that scores are far apart; in evaluation mode."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim > 1:
                weight.normal_(std=0.5 if "relative" in name else 1.2 / weight.shape[1] ** 0.5, generator=generator)
    return model.eval()


def scorer_of(model):
    return (EncoderDecoderScorer if model.config.is_encoder_decoder else CausalScorer)(model, TOKENS)


def prompts(seed, side="left"):
    """Three prompts of 7, 4 and 1 tokens."""
    ids = torch.from_numpy(np.random.default_rng(seed).integers(1, VOCABULARY, (3, 7)))
    place = torch.arange(7)
    mask = torch.stack([(place >= 7 - n) if side == "left" else (place < n) for n in (7, 4, 1)]).long()
    return {"input_ids": ids * mask, "attention_mask": mask}


def random_trie(seed, n=120):
    return PrefixTrie.build(np.unique(np.random.default_rng(seed).integers(0, 12, (n, 3)), axis=0))


def generated(model, contexts, trie, width):
    """Items and scores by transformers' own beam search, kept to the trie by its own hook."""
    ids = trie.ids()
    leaf_of = {tuple(row): leaf for leaf, row in enumerate(ids.tolist())}
    code_of = {int(token): code for level in TOKENS for code, token in enumerate(level)}
    start = 1 if model.config.is_encoder_decoder else contexts["input_ids"].shape[1]
    tokens = np.column_stack([of_level[codes] for of_level, codes in zip(TOKENS, ids.T, strict=True)])
    out = model.generate(
        **contexts,
        max_new_tokens=3,
        min_new_tokens=3,
        num_beams=width,
        num_return_sequences=width,
        do_sample=False,
        length_penalty=0.0,
        prefix_allowed_tokens_fn=allowed_tokens_fn(tokens, start),
        return_dict_in_generate=True,
        output_scores=True,
    )
    written = out.sequences[:, start : start + 3].tolist()
    leaves = [leaf_of[tuple(code_of[token] for token in row)] for row in written]
    items = trie.item_at(torch.tensor(leaves)).view(-1, width)
    return items, out.sequences_scores.view(-1, width)


@pytest.mark.parametrize("name", MODELS)
def test_the_same_items_in_the_same_order_as_generate(name):
    model, trie, contexts = sharpened(MODELS[name](), 0), random_trie(0), prompts(0)
    found = constrained_beam_search(scorer_of(model), contexts, trie, beam_width=9, k=9)
    items, scores = generated(model, contexts, trie, width=9)
    assert found.items.tolist() == items.tolist()
    np.testing.assert_allclose(found.scores, scores, atol=2e-5)


@pytest.mark.parametrize("name", ["t5", "qwen3"])
def test_a_wide_beam_equals_scoring_every_item_in_small_blocks(name, monkeypatch):
    model, trie, contexts = sharpened(MODELS[name](), 0), random_trie(1), prompts(0)
    scorer = scorer_of(model)
    beam = constrained_beam_search(scorer, contexts, trie, beam_width=200, k=50)
    for block in (1000, 7):
        monkeypatch.setattr(beam_search, "_PREFIXES_AT_ONCE", block)
        exact = exact_ranking(scorer, contexts, trie, k=50)
        assert exact.items.tolist() == beam.items.tolist()
        np.testing.assert_allclose(exact.scores, beam.scores, atol=2e-5)


@pytest.mark.parametrize("name", ["t5", "qwen3"])
def test_a_score_is_the_log_probability_of_the_whole_id(name):
    model, trie, contexts = sharpened(MODELS[name](), 0), random_trie(0), prompts(0)
    for normalization in ("vocabulary", "level"):
        found = constrained_beam_search(scorer_of(model), contexts, trie, 20, 5, normalization=normalization)
        row = trie.leaf_of_item[found.items[0, 3]]
        written = torch.tensor([[int(TOKENS[level][code]) for level, code in enumerate(trie.ids()[row])]])
        assert float(found.scores[0, 3]) == pytest.approx(
            whole_score(model, contexts, written, normalization), abs=2e-5
        )


@torch.inference_mode()
def whole_score(model, contexts, written, normalization):
    """The same by one plain forward pass of the model on the first prompt, which has no padding."""
    prompt = contexts["input_ids"][:1]
    if model.config.is_encoder_decoder:
        logits = model(
            input_ids=prompt, decoder_input_ids=torch.cat([torch.zeros((1, 1), dtype=int), written], 1)
        ).logits
    else:
        logits = model(input_ids=torch.cat([prompt, written], dim=1)).logits[:, prompt.shape[1] - 1 :]
    total = 0.0
    for level, token in enumerate(written[0].tolist()):
        among = logits[0, level] if normalization == "vocabulary" else logits[0, level, TOKENS[level]]
        total += float(logits[0, level, token] - among.logsumexp(0))
    return total


@pytest.mark.parametrize("name", ["t5", "qwen3"])
def test_padding_changes_nothing(name):
    model, trie = sharpened(MODELS[name](), 0), random_trie(0)
    alone = {key: value[1:2, 3:] for key, value in prompts(0, "left").items()}
    expected = constrained_beam_search(scorer_of(model), alone, trie, 9, 9)
    right = {key: value[1:2].roll(-3, dims=1) for key, value in prompts(0, "left").items()}
    # T5 sees where a token stands, so only a decoder-only model is the same under padding on the left
    others = [right] if name == "t5" else [right, {key: value[1:2] for key, value in prompts(0, "left").items()}]
    for contexts in others:
        found = constrained_beam_search(scorer_of(model), contexts, trie, 9, 9)
        assert found.items.tolist() == expected.items.tolist()
        np.testing.assert_allclose(found.scores, expected.scores, atol=2e-5)


def test_the_rest_of_a_large_vocabulary_is_looked_at_in_parts(monkeypatch):
    model, trie, contexts = sharpened(qwen3(), 0), random_trie(0), prompts(0)
    whole = constrained_beam_search(scorer_of(model), contexts, trie, 9, 9)
    monkeypatch.setattr(scorers, "_LOGITS_AT_ONCE", 2 * VOCABULARY)
    parts = constrained_beam_search(scorer_of(model), contexts, trie, 9, 9)
    assert parts.items.tolist() == whole.items.tolist()
    np.testing.assert_allclose(parts.scores, whole.scores, atol=1e-6)


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        ([np.array([1, VOCABULARY])], f"level 0 must be distinct ids below {VOCABULARY}"),
        ([np.array([1, 2]), np.array([3, 3])], "level 1 must be distinct"),
        ([np.array([-1, 2])], "level 0 must be"),
        ([np.array([], dtype=int)], "level 0 must be"),
    ],
)
def test_tokens_that_are_not_the_model_s_are_refused(tokens, message):
    with pytest.raises(ValueError, match=message):
        CausalScorer(qwen3(), tokens)


@pytest.mark.parametrize("name", ["t5", "qwen3"])
def test_empty_contexts_training_mode_and_other_levels_are_refused(name):
    model, contexts = MODELS[name]().train(), prompts(0)
    scorer = scorer_of(model)
    assert model.training
    with pytest.raises(ValueError, match="training mode"):
        scorer.begin(contexts)
    model.eval()
    with pytest.raises(ValueError, match="the model generates 3 levels, the trie has 2"):
        constrained_beam_search(scorer, contexts, PrefixTrie.build(np.array([[0, 1]])), 9, 9)
    contexts["attention_mask"][2] = 0
    with pytest.raises(ValueError, match="context 2 is empty"):
        scorer.begin(contexts)


def test_models_that_do_not_fit_are_refused():
    without_start = t5()
    without_start.config.decoder_start_token_id = None
    with pytest.raises(ValueError, match="decoder_start_token_id"):
        EncoderDecoderScorer(without_start, TOKENS)
    with pytest.raises(ValueError, match="expected a T5"):
        EncoderDecoderScorer(qwen3(), TOKENS)
    model = qwen3()
    model.config.final_logit_softcapping = 30.0
    with pytest.raises(ValueError, match="final_logit_softcapping"):
        CausalScorer(model, TOKENS)
    long = {"input_ids": torch.ones((1, 20), dtype=torch.long), "attention_mask": torch.ones((1, 20), dtype=torch.long)}
    with pytest.raises(ValueError, match="23 tokens, more than the sliding window of 16"):
        CausalScorer(qwen2_with_sliding_layers().eval(), TOKENS).begin(long)


@pytest.mark.parametrize("name", ["t5", "qwen3"])
def test_half_precision_is_added_up_in_float32(name):
    model, trie = sharpened(MODELS[name](), 0).bfloat16(), random_trie(0)
    found = constrained_beam_search(scorer_of(model), prompts(0), trie, 20, 20)
    assert found.scores.dtype == torch.float32
    assert (found.items >= 0).all()


def refused():
    """Models whose answers would be wrong, each with what is said of it."""
    bloom = {"n_head": 4, "hidden_size": 32, "n_layer": 2}
    neo = {"hidden_size": 32, "num_layers": 2, "num_heads": 4, "window_size": 4}
    return {
        "places counted in the cache": (
            transformers.BloomForCausalLM,
            transformers.BloomConfig(**SMALL | bloom),
            "Bloom",
        ),
        "layers that see a part of the prompt": (
            transformers.GPTNeoForCausalLM,
            transformers.GPTNeoConfig(**SMALL | neo, attention_types=[[["global", "local"], 1]]),
            "layers all attend",
        ),
        "a recurrent state": (
            transformers.Mamba2ForCausalLM,
            transformers.Mamba2Config(
                **SMALL, hidden_size=32, num_heads=8, head_dim=8, num_hidden_layers=2, state_size=8
            ),
            "attention|side by side",
        ),
        "a step before the head": (
            transformers.BertLMHeadModel,
            transformers.BertConfig(**SMALL | SHAPE, is_decoder=True),
            "BertLMHeadModel cannot be searched",
        ),
        "an encoder": (
            transformers.T5ForConditionalGeneration,
            T5Config(**SMALL, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, decoder_start_token_id=0),
            "not a decoder-only model",
        ),
    }


@pytest.mark.parametrize("why", refused())
def test_models_that_would_answer_wrongly_are_refused(why):
    make, config, message = refused()[why]
    with pytest.raises(ValueError, match=message):
        CausalScorer(sharpened(make(config), 0), TOKENS)
