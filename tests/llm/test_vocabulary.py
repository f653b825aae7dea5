"""Semantic-ID tokens in a vocabulary, and where their rows start."""

import numpy as np
import pytest
import torch

from semid_lib.ids.semantic_ids import sid_tokens, to_tokens, token_layout, trained_tokens
from semid_lib.llm.vocabulary import extend_vocabulary


def weights(model):
    return {name: weight.clone() for name, weight in model.state_dict().items()}


def test_every_code_becomes_one_special_token(extended, ids):
    model, tokenizer, tokens = extended()
    assert [len(level) for level in tokens] == list(ids.sizes)
    assert [tokenizer.convert_ids_to_tokens(level.tolist()) for level in tokens] == sid_tokens(ids.sizes)
    text = to_tokens(ids.unique)[0]
    assert tokenizer(text)["input_ids"] == [tokens[level][code] for level, code in enumerate(ids.unique[0])]
    assert tokenizer.decode(tokenizer("tent" + text)["input_ids"], skip_special_tokens=True) == "tent"
    assert model.get_input_embeddings().weight.shape[0] == model.config.vocab_size == len(tokenizer)


@pytest.mark.parametrize("tied", [True, False])
def test_new_rows_start_as_the_mean_of_their_items_words(base, ids, items, tied):
    model, tokenizer = base(tied=tied)
    titles = ["", *items["title"][1:]]  # an item without a text does not count
    tables = ("get_input_embeddings", "get_output_embeddings")
    old = {name: getattr(model, name)().weight.detach().clone() for name in tables}
    tokens = extend_vocabulary(model, tokenizer, ids, titles, noise=0.0)
    noisy, other = base(tied=tied)
    extend_vocabulary(noisy, other, ids, titles, noise=0.02)
    for name, ordinary in old.items():
        weight = getattr(model, name)().weight.detach()
        assert torch.equal(weight[: len(ordinary)], ordinary)
        words = {row: ordinary[tokenizer(title)["input_ids"]].mean(0) for row, title in enumerate(titles) if title}
        length = ordinary.norm(dim=1).median()
        for level, layout in enumerate(tokens):
            for code, token in enumerate(layout):
                rows = [row for row in words if ids.unique[row, level] == code] or list(words)
                mean = torch.stack([words[row] for row in rows]).mean(0)
                torch.testing.assert_close(weight[token], mean * length / mean.norm(), atol=1e-6, rtol=1e-5)
        difference = (getattr(noisy, name)().weight - weight)[len(ordinary) :].norm(dim=1) / length
        assert 0.015 < difference.mean() < 0.025
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == tied
    assert len(noisy.lm_head.weight[len(ordinary) :].unique(dim=0)) == sum(ids.sizes)


def test_existing_tokens_keep_their_rows(extended, base, ids, items):
    model, tokenizer, tokens = extended()
    with torch.no_grad():
        model.lm_head.weight[tokens[0][0]] = 7.0  # as if trained
    before, n_tokens = weights(model), len(tokenizer)
    again = extend_vocabulary(model, tokenizer, ids, list(items["title"]))
    assert len(tokenizer) == n_tokens and all(map(np.array_equal, again, tokens))
    assert all(torch.equal(before[name], weight) for name, weight in model.state_dict().items())
    fresh, _ = base()  # has no rows for them yet
    extend_vocabulary(fresh, tokenizer, ids, list(items["title"]))
    assert not torch.equal(fresh.lm_head.weight[tokens[0][0]], model.lm_head.weight[tokens[0][0]])
    assert torch.equal(fresh.lm_head.weight[tokens[0][1]], model.lm_head.weight[tokens[0][1]])


def test_spare_rows_are_used_first(base, ids, items):
    model, tokenizer = base()
    model.resize_token_embeddings(320, mean_resizing=False)  # 300 tokens, as Qwen3 has 267 rows more than tokens
    before = weights(model)["lm_head.weight"]
    tokens = extend_vocabulary(model, tokenizer, ids, list(items["title"]))
    assert model.config.vocab_size == 320 and trained_tokens(tokens) == list(range(300, 312))
    moved = (model.lm_head.weight != before).any(dim=1).nonzero()[:, 0].tolist()
    assert moved == trained_tokens(tokens)


def test_what_does_not_fit_is_refused(base, extended, ids, items):
    model, tokenizer = base()
    tokenizer.add_tokens(["<|sid_0_0|>", "<|sid_0_1|>"], special_tokens=True)
    with pytest.raises(ValueError, match="another layout"):
        extend_vocabulary(model, tokenizer, ids, list(items["title"]))
    _, tokenizer, _ = extended()
    with pytest.raises(ValueError, match="another layout"):
        token_layout(tokenizer, (4, 4))
    with pytest.raises(ValueError, match="19 texts for 20"):
        extend_vocabulary(model, tokenizer, ids, list(items["title"])[1:])
    with pytest.raises(ValueError, match="no item has a text"):
        extend_vocabulary(*base(), ids, [""] * len(ids))
