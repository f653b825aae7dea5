"""Fine-tuning a language model on semantic IDs: what is added, what is taught, what moves, and what comes out."""

import copy
import json
import os
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback

from semid_lib.data.dataset import Histories
from semid_lib.decoding.beam_search import constrained_beam_search
from semid_lib.decoding.scorers import CausalScorer
from semid_lib.decoding.trie import PrefixTrie
from semid_lib.ids.semantic_ids import SemanticIDs, sid_tokens, to_tokens, token_layout, trained_tokens
from semid_lib.llm.base_models import MODELS, facts_of, load_base, small_model, text_half
from semid_lib.llm.examples import TASKS, encode_prompts, prompt_for, tokenize, training_rows
from semid_lib.llm.fine_tuning import (
    FineTuning,
    estimate,
    estimate_known,
    fine_tune,
    last_checkpoint,
    measured_speed,
    merge_adapter,
    save_model,
)
from semid_lib.llm.trainer import Pools, answer_loss
from semid_lib.llm.vocabulary import extend_vocabulary

N_ITEMS = 20
WORDS = ["red", "blue", "tent", "lamp", "soap", "brush", "cream", "nail", "polish", "deluxe", "mini", "travel", "set"]
# as Qwen3's: an empty thought opens an answer that is not to be thought about
THINKING = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['role'] == 'assistant' %}<think>\n\n</think>\n\n{% endif %}{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)


@pytest.fixture(scope="module")
def items():
    rng = np.random.default_rng(0)
    titles = [" ".join(rng.choice(WORDS, 4)) + f" No. {row}" for row in range(N_ITEMS)]
    return pd.DataFrame({"title": titles, "description": ["a <b>thing</b>"] * 5 + [""] * (N_ITEMS - 5)})


@pytest.fixture(scope="module")
def ids():
    rng = np.random.default_rng(1)
    codes = np.unique(rng.integers(4, size=(60, 3)), axis=0)
    codes = rng.permutation(codes[codes[:, 0] != 2])[:N_ITEMS]  # code 2 of level 0 has no item
    return SemanticIDs.from_codes(codes, codebook_size=4)


@pytest.fixture
def base(items):
    """Makes a small model and its tokenizer, without semantic-ID tokens."""
    return lambda **changes: small_model(
        list(items["title"]), 300, **{"hidden_size": 32, "n_layers": 2, "n_heads": 2} | changes
    )


@pytest.fixture
def extended(base, ids, items):
    """Makes a small model, its tokenizer and the layout of its new tokens."""

    def make(**changes):
        model, tokenizer = base(**changes)
        return model, tokenizer, extend_vocabulary(model, tokenizer, ids, list(items["title"]))

    return make


SHORT = FineTuning(row_steps=6, n_epochs=1, batch_size=8, rank=4, save_every=4)


def weights(model):
    return {name: weight.clone() for name, weight in model.state_dict().items()}


def moved_rows(after, before, name):
    return (after[name] != before[name]).any(dim=1).nonzero()[:, 0].tolist()


def read(tokens, ids):
    """The tokens that some item carries: all that a model ever reads."""
    return sorted({int(tokens[level][code]) for row in ids.unique for level, code in enumerate(row)})


# --- vocabulary ---


def test_every_code_becomes_one_special_token(extended, ids):
    model, tokenizer, tokens = extended()
    assert [len(level) for level in tokens] == list(ids.sizes)
    assert [tokenizer.convert_ids_to_tokens(level.tolist()) for level in tokens] == sid_tokens(ids.sizes)
    text = to_tokens(ids.unique)[0]
    assert tokenizer(text)["input_ids"] == [tokens[level][code] for level, code in enumerate(ids.unique[0])]
    assert tokenizer.decode(tokenizer("tent" + text)["input_ids"], skip_special_tokens=True) == "tent"  # so read ids
    assert model.get_input_embeddings().weight.shape[0] == model.config.vocab_size == len(tokenizer)


@pytest.mark.parametrize("tied", [True, False])
def test_new_rows_begin_as_the_mean_of_their_items_words(base, ids, items, tied):
    model, tokenizer = base(tied=tied)
    titles = ["", *items["title"][1:]]  # an item without a text has no say
    old = {
        name: getattr(model, name)().weight.detach().clone()
        for name in ("get_input_embeddings", "get_output_embeddings")
    }
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


def test_a_tokenizer_that_has_the_tokens_keeps_them_and_the_model_its_rows(extended, base, ids, items):
    model, tokenizer, tokens = extended()
    with torch.no_grad():
        model.lm_head.weight[tokens[0][0]] = 7.0  # as if trained
    before, n_tokens = weights(model), len(tokenizer)
    again = extend_vocabulary(model, tokenizer, ids, list(items["title"]))
    assert len(tokenizer) == n_tokens and all(np.array_equal(a, b) for a, b in zip(again, tokens, strict=True))
    assert all(torch.equal(before[name], weight) for name, weight in model.state_dict().items())
    fresh, _ = base()  # has no rows for them yet
    extend_vocabulary(fresh, tokenizer, ids, list(items["title"]))
    assert not torch.equal(fresh.lm_head.weight[tokens[0][0]], model.lm_head.weight[tokens[0][0]])
    assert torch.equal(fresh.lm_head.weight[tokens[0][1]], model.lm_head.weight[tokens[0][1]])
    extend_vocabulary(model, tokenizer, ids, list(items["title"]), initialize=True)
    assert torch.equal(model.lm_head.weight, fresh.lm_head.weight)


def test_rows_that_a_model_has_to_spare_are_used_first(base, ids, items):
    model, tokenizer = base()
    model.resize_token_embeddings(320, mean_resizing=False)  # 300 tokens, as Qwen3 has 267 rows more than tokens
    before = weights(model)
    tokens = extend_vocabulary(model, tokenizer, ids, list(items["title"]))
    assert model.config.vocab_size == 320 and trained_tokens(tokens) == list(range(300, 312))
    assert moved_rows(model.state_dict(), before, "lm_head.weight") == trained_tokens(tokens)


def test_tokens_of_another_layout_are_named(base, extended, ids, items):
    model, tokenizer = base()
    tokenizer.add_tokens(["<|sid_0_0|>", "<|sid_0_1|>"], special_tokens=True)
    with pytest.raises(ValueError, match=r"another layout: <\|sid_0_2\|>, .* and 7 more missing, none not of sizes"):
        extend_vocabulary(model, tokenizer, ids, list(items["title"]))
    _, tokenizer, _ = extended()
    with pytest.raises(ValueError, match=r"none missing, <\|sid_2_0\|>, .* not of sizes \(4, 4\)"):
        token_layout(tokenizer, (4, 4))
    with pytest.raises(ValueError, match="19 texts for 20"):
        extend_vocabulary(model, tokenizer, ids, list(items["title"])[1:])
    with pytest.raises(ValueError, match="no item has a text"):
        extend_vocabulary(*base(), ids, [""] * N_ITEMS)


# --- examples ---


def test_the_mixture_follows_the_weights(items, ids):
    histories = Histories.from_lists([[3, 4, 5, 6], [7], [8, 9]])
    queries = (["soft soap", "lamp"], [2, 11])
    weights = {"query_to_id": 3, "title_to_id": 2, "description_to_id": 1, "id_to_title": 1, "history_to_id": 1}
    rows = training_rows(items, ids, 80, queries, histories, weights, seed=3)
    assert pd.Series([row["task"] for row in rows]).value_counts().to_dict() == {
        "query_to_id": 30, "title_to_id": 20, "description_to_id": 10, "id_to_title": 10, "history_to_id": 10,
    }  # fmt: skip
    assert rows == training_rows(items, ids, 80, queries, histories, weights, seed=3)
    assert rows != training_rows(items, ids, 80, queries, histories, weights, seed=4)
    asked = [row["completion"][0]["content"] for row in rows if row["task"] == "title_to_id"]
    assert sorted(asked) == sorted(to_tokens(ids.unique))  # each once before any twice
    assert len({row["prompt"][0]["content"][:5] for row in rows if row["task"] == "query_to_id"}) == 3  # phrasings
    as_asked = training_rows(items, ids, 9, queries, weights={"query_to_id": 1}, n_phrasings=1)
    assert {row["prompt"][0]["content"] for row in as_asked} == {
        "Find an item for: soft soap", "Find an item for: lamp",
    }  # fmt: skip


def test_what_there_is_no_material_for_is_left_out(items, ids):
    plain = items[["title"]]
    rows = training_rows(plain, ids, 9, weights={"title_to_id": 2, "id_to_title": 1, "history_to_id": 9})
    assert sorted(row["task"] for row in rows) == ["id_to_title"] * 3 + ["title_to_id"] * 6
    described = [row for row in training_rows(items, ids, 5, weights={"description_to_id": 1}, n_phrasings=1)]
    assert {row["prompt"][0]["content"] for row in described} == {"Find the item described as: a thing"}
    for weights, message in [
        ({"history_to_id": 1}, "nothing to teach"),
        ({"x": 1}, "weights"),
        ({"title_to_id": -1}, ">= 0"),
    ]:
        with pytest.raises(ValueError, match=message):
            training_rows(plain, ids, 9, weights=weights)
    with pytest.raises(ValueError, match="2 queries for 1 item rows"):
        training_rows(plain, ids, 9, (["a", "b"], [1]))


def test_a_history_shows_what_came_before_and_asks_for_what_came_next(items, ids):
    tokens = to_tokens(ids.unique)
    histories = Histories.from_lists([[3, 4, 5, 6], [7], [], [8, 9]])
    rows = training_rows(items, ids, 4, None, histories, {"history_to_id": 1}, n_phrasings=1, max_history=2)
    found = {(row["prompt"][0]["content"], row["completion"][0]["content"]) for row in rows}
    question = TASKS["history_to_id"][0]
    expected = {((3,), 4), ((3, 4), 5), ((4, 5), 6), ((8,), 9)}
    assert found == {(question.format("".join(tokens[i] for i in before)), tokens[after]) for before, after in expected}


def test_only_the_answer_is_learned_and_the_prompt_is_that_of_inference(extended, items, ids):
    _, tokenizer, tokens = extended()
    rows = training_rows(items, ids, 40, weights={"title_to_id": 1, "id_to_title": 1}, n_phrasings=1)
    data = tokenize(rows, tokenizer)
    for row, token_ids, labels in zip(rows, data["input_ids"], data["labels"], strict=True):
        answer = [label for label in labels if label != -100]
        assert token_ids[-len(answer) :] == answer and answer[-1] == tokenizer.eos_token_id
        if row["task"] == "title_to_id":
            assert [
                tokens[level].tolist().index(token) for level, token in enumerate(answer[:-1])
            ] in ids.unique.tolist()
            title = row["prompt"][0]["content"].partition(": ")[2]
            asked = encode_prompts(tokenizer, [prompt_for(tokenizer, title, "title_to_id"), "a longer one " * 9])
            ones = asked["attention_mask"][0].bool()
            assert asked["input_ids"][0][ones].tolist() == token_ids[: -len(answer)]
            assert ones.tolist() == sorted(ones.tolist())  # padded on the left
    with pytest.raises(ValueError, match=r"40 of 40 examples have more than 5 tokens, the longest \d+"):
        tokenize(rows, tokenizer, max_length=5)


@pytest.mark.parametrize("template", [None, THINKING])
def test_trl_reads_the_same_rows_alike(extended, items, ids, tmp_path, template):
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    model, tokenizer, _ = extended()
    if template:
        tokenizer.chat_template = template
    rows = training_rows(items, ids, 30, (["soap"], [1]))
    ours = tokenize(rows, tokenizer)
    arguments = SFTConfig(str(tmp_path), use_cpu=True, bf16=False, report_to="none")
    theirs = SFTTrainer(
        model, arguments, train_dataset=Dataset.from_list(rows), processing_class=tokenizer
    ).train_dataset
    assert theirs["input_ids"][:] == ours["input_ids"][:] and theirs["labels"][:] == ours["labels"][:]


def test_text_of_the_catalogue_cannot_end_a_turn_and_templates_must_keep_prompts(extended, items, ids):
    _, tokenizer, _ = extended()
    assert prompt_for(tokenizer, "<b>soap</b><|end|>  <|sid_0_1|>now") == "Find an item for: soap now\n"
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{{ messages | length }}{% endfor %}"
    with pytest.raises(ValueError, match="changes the prompt"):
        tokenize(training_rows(items, ids, 1), tokenizer)
    tokenizer.chat_template = tokenizer.eos_token = None
    with pytest.raises(ValueError, match="neither a chat template nor an eos_token"):
        prompt_for(tokenizer, "soap")


# --- training ---


def test_the_loss_is_the_model_s_own_on_the_answers(extended, items, ids):
    model, tokenizer, _ = extended()
    data = tokenize(training_rows(items, ids, 4), tokenizer)
    for example in data:
        batch = {name: torch.tensor([example[name]]) for name in ("input_ids", "labels")}
        torch.testing.assert_close(answer_loss(model, batch), model(**batch).loss)


def test_words_begin_where_an_encoder_puts_them(items):
    """Tokens of like meaning begin as neighbours; the rest of the model is the same."""
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
    before, after = weights(random), weights(placed)
    other = [name for name in before if not torch.equal(before[name], after[name])]
    assert sorted(other) == ["lm_head.weight", "model.embed_tokens.weight"]
    wider, _ = small_model(items["title"], 400, hidden_size=64, n_layers=1, n_heads=2, embed=embed)
    assert not wider.get_input_embeddings().weight[:, 22:].any()  # no more than the encoder has to say


def test_what_known_models_would_take(extended, items, ids):
    _, tokenizer, _ = extended()
    data, config = (
        tokenize(training_rows(items, ids, 64), tokenizer),
        FineTuning(row_steps=10, n_epochs=2, batch_size=16),
    )
    table = estimate_known(data, 12, config, operations_per_second=1e12)
    assert table.index.tolist() == list(MODELS)
    n_tokens = (10 + 2 * 4) * 16 * np.mean([len(example) for example in data["input_ids"]])
    row, facts = table.loc["qwen3-4b"], MODELS["qwen3-4b"]
    assert row["hours"] == pytest.approx(int(n_tokens) * 6 * facts.n_parameters / 1e12 / 3600)
    assert row["GiB at 4 bits"] < row["GiB at 16 bits"] < table.loc["qwen3-8b", "GiB at 16 bits"]


GPU_LOSS = """
import sys, torch
from semid_lib.llm.base_models import small_model
from semid_lib.llm.fine_tuning import FineTuning, _with_rows
from semid_lib.llm.trainer import answer_loss, padded
from trl import SFTConfig, SFTTrainer
from datasets import Dataset
for tied in (True, False):
    model, tokenizer = small_model(["soap"], 300, hidden_size=32, n_layers=1, n_heads=2, tied=tied)
    wrapped = _with_rows(model, [[250, 251]], FineTuning(rank=2), "lora").train()
    labels = [[-100, -100, 250, 251], [-100, 250, 6]]
    data = Dataset.from_dict({"input_ids": [[3, 4, 250, 251], [5, 250, 6]], "labels": labels})
    arguments = SFTConfig(sys.argv[1], use_cpu=True, bf16=False, report_to="none")
    trainer, gradients = SFTTrainer(wrapped, arguments, train_dataset=data, processing_class=tokenizer), []
    for loss_of in (answer_loss, trainer.compute_loss):
        loss = loss_of(wrapped, padded(data[:], "cpu"))
        loss.backward()
        gradients.append([loss.detach()] + [each.grad for each in wrapped.parameters() if each.grad is not None])
        wrapped.zero_grad()
    torch.testing.assert_close(*gradients)
"""


def test_the_loss_on_a_gpu_is_the_same(tmp_path):
    """trl's Triton kernel, which our trainer leaves in place on a GPU, run by Triton's interpreter."""
    pytest.importorskip("triton")
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    subprocess.run([sys.executable, "-c", GPU_LOSS, tmp_path], check=True, env=environment, capture_output=True)


@pytest.mark.parametrize("tied", [True, False])
def test_the_first_stage_moves_the_new_rows_and_nothing_else(extended, items, ids, tmp_path, tied):
    model, tokenizer, tokens = extended(tied=tied)
    before, new = weights(model), trained_tokens(tokens)
    config = FineTuning(row_steps=12, n_epochs=0, batch_size=8)
    tuned = fine_tune(model, tokenizer, training_rows(items, ids, 60), tokens, config, tmp_path)
    after = tuned.model.state_dict()
    assert tuned.n_steps == {"rows": 12} and after.keys() == before.keys()
    assert moved_rows(after, before, "lm_head.weight") == new
    assert moved_rows(after, before, "model.embed_tokens.weight") == (new if tied else read(tokens, ids))
    assert (after["model.embed_tokens.weight"] - before["model.embed_tokens.weight"]).abs().max() > 1e-3
    unmoved = [name for name in before if "embed" not in name and "lm_head" not in name]
    assert unmoved and all(torch.equal(after[name], before[name]) for name in unmoved)
    assert (tuned.model.lm_head.weight is tuned.model.model.embed_tokens.weight) == tied


@pytest.mark.parametrize("tied", [True, False])
def test_lora_moves_the_model_and_still_the_new_rows(extended, items, ids, tmp_path, tied):
    model, tokenizer, tokens = extended(tied=tied)
    before, new = weights(model), trained_tokens(tokens)
    config = FineTuning(row_steps=0, n_epochs=1, batch_size=8, rank=4, learning_rate=1e-2)
    rows = training_rows(items, ids, 60)
    after = fine_tune(model, tokenizer, rows, tokens, config, tmp_path).model.state_dict()
    assert moved_rows(after, before, "lm_head.weight") == new
    assert moved_rows(after, before, "model.embed_tokens.weight") == (new if tied else read(tokens, ids))
    for name, weight in before.items():
        if "embed" not in name and "lm_head" not in name:
            assert torch.equal(after[name], weight) == ("proj" not in name), name


@pytest.mark.parametrize("tied", [True, False])
def test_the_merged_folder_loads_without_peft_and_answers_the_same(extended, items, ids, tmp_path, tied):
    model, tokenizer, tokens = extended(tied=tied)
    untouched = copy.deepcopy(model)
    tuned = fine_tune(model, tokenizer, training_rows(items, ids, 40), tokens, SHORT, tmp_path / "run").model
    tuned.generation_config.update(do_sample=True, temperature=0.6, top_p=0.95, min_p=0.1, repetition_penalty=1.05)
    save_model(tuned, tokenizer, tmp_path / "merged")
    kept = json.loads((tmp_path / "merged" / "generation_config.json").read_text(encoding="utf-8"))
    kept = {name: value for name, value in kept.items() if value is not None}
    ends = {"eos_token_id": [tokenizer.eos_token_id], "pad_token_id": tokenizer.pad_token_id}  # trl makes it a list
    assert kept.pop("transformers_version") and kept == {"do_sample": False} | ends
    assert not [file for file in (tmp_path / "merged").iterdir() if "adapter" in file.name or file.suffix == ".bin"]
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    words = AutoTokenizer.from_pretrained(tmp_path / "merged")
    assert not any("peft" in type(module).__module__ for module in plain.modules())
    prompt = prompt_for(words, "soap")
    assert prompt == prompt_for(tokenizer, "soap")
    batch = encode_prompts(words, [prompt + to_tokens(ids.unique)[3], prompt])
    expected = tuned(**encode_prompts(tokenizer, [prompt + to_tokens(ids.unique)[3], prompt])).logits
    assert torch.equal(plain(**batch).logits, expected)
    assert all(map(np.array_equal, token_layout(words, ids.sizes), tokens))
    again = merge_adapter(untouched, tokenizer, tmp_path / "run" / "lora" / "final")  # as after 4-bit training
    # the rows of the first stage are in the adapter too
    torch.testing.assert_close(again(**batch).logits, expected, atol=1e-5, rtol=1e-5)


class StopAt(TrainerCallback):
    """An interruption: the power goes at a step of the stage."""

    def __init__(self, step, stage):
        self.step, self.stage = step, stage

    def on_step_end(self, args, state, control, **kwargs):
        if args.output_dir.endswith(self.stage) and state.global_step == self.step:
            raise KeyboardInterrupt


@pytest.mark.parametrize(("method", "stage", "step"), [("lora", "rows", 5), ("lora", "lora", 7), ("full", "full", 3)])
def test_an_interrupted_run_goes_on_and_ends_as_if_it_had_not_been(extended, items, ids, tmp_path, method, stage, step):
    rows = training_rows(items, ids, 40)
    config = FineTuning(method, 6, n_epochs=2, learning_rate=1e-3, batch_size=8, rank=4, pool=2, save_every=2)
    whole = fine_tune(*extended()[:2], rows, extended()[2], config, tmp_path / "whole")
    model, tokenizer, tokens = extended()
    with pytest.raises(KeyboardInterrupt):
        fine_tune(model, tokenizer, rows, tokens, config, tmp_path / "cut", callbacks=[StopAt(step, stage)])
    assert last_checkpoint(tmp_path / "cut" / stage).name == f"checkpoint-{step - 1}"
    taken = []

    class Count(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            taken.append(state.global_step)

    model, tokenizer, tokens = extended()  # a new process
    resumed = fine_tune(model, tokenizer, rows, tokens, config, tmp_path / "cut", callbacks=[Count()])
    assert resumed.n_steps == whole.n_steps == {"rows": 6, method: 10}
    assert taken[0] == step and len(taken) == (6 + 10 if stage == "rows" else 10) - (step - 1)
    for name, weight in whole.model.state_dict().items():
        torch.testing.assert_close(resumed.model.state_dict()[name], weight, atol=1e-6, rtol=1e-5)
    taken.clear()
    model, tokenizer, tokens = extended()
    done = fine_tune(model, tokenizer, rows, tokens, config, tmp_path / "cut", callbacks=[Count()])
    assert not taken and done.losses == resumed.losses
    with pytest.raises(ValueError, match="a run with other batch_size"):
        changed = FineTuning(method, 6, n_epochs=2, learning_rate=1e-3, batch_size=4, rank=4, pool=2)
        fine_tune(*extended()[:2], rows, tokens, changed, tmp_path / "cut")


def test_pools_make_batches_of_like_lengths_and_of_other_examples_every_epoch():
    lengths = np.random.default_rng(0).integers(5, 50, size=203)
    order = Pools(lengths, batch_size=10, pool=5, seed=0)
    first, again = list(order), list(order)
    order.set_epoch(1)
    assert first == again != list(order) and sorted(order) == sorted(first) == list(range(203))
    spread = [np.ptp(lengths[first[at : at + 10]]) for at in range(0, 200, 10)]
    loose = list(Pools(lengths, batch_size=10, pool=1, seed=0))
    assert np.mean(spread) < 0.4 * np.mean([np.ptp(lengths[loose[at : at + 10]]) for at in range(0, 200, 10)])


def test_packed_examples_do_not_see_each_other(extended, items, ids):
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

    model, tokenizer, _ = extended()
    data = tokenize(training_rows(items, ids, 6), tokenizer)
    examples = [{"input_ids": example["input_ids"], "labels": example["labels"]} for example in data]
    losses = [
        (answer_loss(model, {k: torch.tensor([v]) for k, v in each.items()}), sum(x >= 0 for x in each["labels"]))
        for each in examples
    ]
    packed = DataCollatorForLanguageModeling(0, padding_free=True)(examples)
    assert packed["input_ids"].shape[0] == 1 and "attention_mask" not in packed
    expected = sum(loss * n for loss, n in losses) / sum(n for _, n in losses)
    torch.testing.assert_close(answer_loss(model, packed), expected)


def test_training_with_packing_runs(extended, items, ids, tmp_path):
    model, tokenizer, tokens = extended()
    config = FineTuning("full", 0, n_epochs=1, batch_size=1, max_length=64, packing=True)
    tuned = fine_tune(model, tokenizer, training_rows(items, ids, 40), tokens, config, tmp_path)
    assert 0 < tuned.n_steps["full"] < 40


def test_two_hundred_steps_on_twenty_items_name_every_item_by_its_title(extended, items, ids, tmp_path):
    model, tokenizer, tokens = extended(hidden_size=64)
    rows = training_rows(items, ids, 800, weights={"title_to_id": 1})
    config = FineTuning("full", row_steps=0, n_epochs=4, learning_rate=3e-3, batch_size=16, pool=1)
    tuned = fine_tune(model, tokenizer, rows, tokens, config, tmp_path)
    assert tuned.n_steps == {"full": 200} and tuned.losses[-1][2] < 0.05 * tuned.losses[0][2]
    prompts = [prompt_for(tokenizer, title, "title_to_id") for title in items["title"]]
    trie = PrefixTrie.build(ids.unique)
    scorer, contexts = CausalScorer(tuned.model, tokens), encode_prompts(tokenizer, prompts)
    found = constrained_beam_search(scorer, contexts, trie, beam_width=5, k=3, compiled=False)
    assert found.items[:, 0].tolist() == list(range(N_ITEMS))
    written = tuned.model.generate(**contexts, max_new_tokens=5, do_sample=False)
    answer = written[0, contexts["input_ids"].shape[1] :].tolist()[:4]  # the three codes, and the end
    assert answer == [*(int(tokens[level][code]) for level, code in enumerate(ids.unique[0])), tokenizer.eos_token_id]


def test_the_estimate_and_the_speed_leave_the_model_as_it_is(extended, items, ids):
    model, tokenizer, tokens = extended()
    before = weights(model)
    data = tokenize(training_rows(items, ids, 40), tokenizer)
    speed = measured_speed(model, data, SHORT, tokens)
    assert speed > 0 and all(torch.equal(before[name], weight) for name, weight in model.state_dict().items())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
    cost = estimate(model, data, SHORT, tokens, tokens_per_second=speed)
    n_tokens = sum(map(len, data["input_ids"]))
    assert cost.seconds == pytest.approx((6 + 5) * 8 * n_tokens / 40 / speed, rel=0.01)
    assert 4 * model.num_parameters() / 2**30 == cost.weights_gib < cost.memory_gib < 0.1
    everything = estimate(model, data, FineTuning("full", 0), tokens, speed)
    assert everything.training_gib == pytest.approx(12 * model.num_parameters() / 2**30)


# --- base models ---


@pytest.mark.parametrize("key", MODELS)
def test_the_table_counts_what_a_model_of_that_shape_has(key):
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
        model = AutoModelForCausalLM.from_config(config)
    found = facts_of(model)
    assert found.n_parameters == facts.n_parameters
    assert found.lora_parameters(8) == facts.lora_parameters(8)
    assert len(facts.revision) == 40


def test_lora_has_as_many_parameters_as_the_facts_say(extended):
    from semid_lib.llm.fine_tuning import _with_rows

    model, _, tokens = extended()
    expected, n_rows = facts_of(model).lora_parameters(4), len(trained_tokens(tokens)) * 32
    assert _with_rows(model, tokens, SHORT, "lora").get_nb_trainable_parameters()[0] == expected + n_rows


def test_the_text_half_of_a_model_of_images_is_a_model_of_its_own(tmp_path):
    from transformers import Mistral3Config, Mistral3ForConditionalGeneration

    shape = {
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "head_dim": 16,
    }
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


def test_a_model_that_is_not_there_says_what_to_do(extended, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"hf download Qwen/Qwen3-4B --revision 1cfa9a7.*give its path"):
        load_base()
    with pytest.raises(FileNotFoundError, match="no/such is neither a local folder"):
        load_base("no/such")
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="four_bit needs CUDA and unsloth"):
            load_base(four_bit=True)
    model, tokenizer, _ = extended()
    save_model(model, tokenizer, tmp_path)
    again, words = load_base(str(tmp_path))
    assert again.num_parameters() == model.num_parameters() and len(words) == len(tokenizer)


# --- mistakes ---


def test_a_missing_package_names_the_extra(extended, items, ids, tmp_path, monkeypatch):
    model, tokenizer, tokens = extended()
    monkeypatch.setitem(sys.modules, "trl", None)
    with pytest.raises(ImportError, match=r"pip install 'semid-lib\[sft\]'"):
        fine_tune(model, tokenizer, training_rows(items, ids, 4), tokens, SHORT, tmp_path)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "qlora"}, "'lora' or 'full'"),
        ({"row_steps": 0, "n_epochs": 0}, "not both 0"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"learning_rate": 0.0}, "learning_rate must be positive"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        FineTuning(**settings)


def test_what_peft_would_spoil_is_refused(extended, items, ids, tmp_path):
    model, tokenizer, tokens = extended(tied=False)
    model.lm_head.bias = torch.nn.Parameter(torch.zeros(model.config.vocab_size))
    with pytest.raises(ValueError, match="has a bias, which peft drops"):
        fine_tune(model, tokenizer, training_rows(items, ids, 4), tokens, SHORT, tmp_path)
    model, tokenizer, tokens = extended()
    model.peft_config = {}
    with pytest.raises(ValueError, match="merge it first"):
        save_model(model, tokenizer, tmp_path)
