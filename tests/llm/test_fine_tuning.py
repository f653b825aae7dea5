"""Fine-tuning on semantic IDs: which weights move, resuming, and the saved model."""

import copy
import json
import os
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback

from semid_lib.decoding.beam_search import constrained_beam_search
from semid_lib.decoding.scorers import CausalScorer
from semid_lib.decoding.trie import PrefixTrie
from semid_lib.ids.semantic_ids import to_tokens, token_layout, trained_tokens
from semid_lib.llm import fine_tuning, llm_search
from semid_lib.llm.base_models import facts_of
from semid_lib.llm.examples import encode_prompts, prompt_for, tokenize, training_rows
from semid_lib.llm.fine_tuning import FineTuning, fine_tune, last_checkpoint, merge_adapter, save_model, with_rows
from semid_lib.llm.llm_search import Adapter, LanguageModelSearch, load_searcher
from semid_lib.llm.trainer import Pools, answer_loss

SHORT = FineTuning(row_steps=6, n_epochs=1, learning_rate=1e-3, batch_size=8, rank=4, save_every=4)


def moved_rows(after, before, name):
    return (after[name] != before[name]).any(dim=1).nonzero()[:, 0].tolist()


@pytest.fixture(scope="module", params=[True, pytest.param(False, marks=pytest.mark.slow)], ids=["tied", "untied"])
def run(request, extended, few_rows, tmp_path_factory):
    """A short run of both stages, and the model before it."""
    model, tokenizer, tokens = extended(tied=request.param)
    folder, before = tmp_path_factory.mktemp("run"), copy.deepcopy(model)
    tuned = fine_tune(model, tokenizer, few_rows, tokens, SHORT, folder)
    return SimpleNamespace(
        tuned=tuned, before=before, tokenizer=tokenizer, tokens=tokens, folder=folder, tied=request.param
    )


def read(run, ids):
    """The rows of the input embedding that training reads: those of tokens that some item has."""
    if run.tied:
        return trained_tokens(run.tokens)
    return sorted({int(run.tokens[level][code]) for row in ids.unique for level, code in enumerate(row)})


def test_the_first_stage_moves_the_new_rows_and_nothing_else(run, ids):
    before = run.before.state_dict()
    merged = merge_adapter(copy.deepcopy(run.before), run.tokenizer, run.folder / "rows" / "final")
    after = merged.state_dict()
    assert after.keys() == before.keys()
    assert moved_rows(after, before, "lm_head.weight") == trained_tokens(run.tokens)
    assert moved_rows(after, before, "model.embed_tokens.weight") == read(run, ids)
    assert (after["model.embed_tokens.weight"] - before["model.embed_tokens.weight"]).abs().max() > 1e-3
    unmoved = [name for name in before if "embed" not in name and "lm_head" not in name]
    assert unmoved and all(torch.equal(after[name], before[name]) for name in unmoved)
    assert (merged.lm_head.weight is merged.model.embed_tokens.weight) == run.tied


def test_lora_moves_the_model_and_the_new_rows(run, ids):
    before, after = run.before.state_dict(), run.tuned.model.state_dict()
    assert moved_rows(after, before, "lm_head.weight") == trained_tokens(run.tokens)
    assert moved_rows(after, before, "model.embed_tokens.weight") == read(run, ids)
    for name, weight in before.items():
        if "embed" not in name and "lm_head" not in name:
            assert torch.equal(after[name], weight) == ("proj" not in name), name


def test_the_merged_folder_loads_without_peft_and_answers_the_same(run, ids, tmp_path):
    tuned, tokenizer = run.tuned.model, run.tokenizer
    tuned.generation_config.update(do_sample=True, temperature=0.6, top_p=0.95, min_p=0.1, repetition_penalty=1.05)
    save_model(tuned, tokenizer, tmp_path)
    kept = json.loads((tmp_path / "generation_config.json").read_text(encoding="utf-8"))
    kept = {name: value for name, value in kept.items() if value is not None}
    ends = {"eos_token_id": [tokenizer.eos_token_id], "pad_token_id": tokenizer.pad_token_id}  # trl makes it a list
    assert kept.pop("transformers_version") and kept == {"do_sample": False} | ends
    assert not [file for file in tmp_path.iterdir() if "adapter" in file.name or file.suffix == ".bin"]
    plain, words = AutoModelForCausalLM.from_pretrained(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    assert not any("peft" in type(module).__module__ for module in plain.modules())
    prompt = prompt_for(words, "soap")
    assert prompt == prompt_for(tokenizer, "soap")
    batch = encode_prompts(words, [prompt + to_tokens(ids.unique)[3], prompt])
    expected = tuned(**encode_prompts(tokenizer, [prompt + to_tokens(ids.unique)[3], prompt])).logits
    assert torch.equal(plain(**batch).logits, expected)
    assert all(map(np.array_equal, token_layout(words, ids.sizes), run.tokens))
    # as after 4-bit training; the adapter has the rows of the first stage, too
    again = merge_adapter(copy.deepcopy(run.before), tokenizer, run.folder / "lora" / "final")
    torch.testing.assert_close(again(**batch).logits, expected, atol=1e-5, rtol=1e-5)


class StopAt(TrainerCallback):
    """In place of the progress bar: count the steps, and interrupt a stage at one of them."""

    def __init__(self, stage="", step=0):
        self.step, self.stage, self.taken = step, stage, []

    def on_step_end(self, args, state, control, **kwargs):
        self.taken.append(state.global_step)
        if args.output_dir.endswith(self.stage) and state.global_step == self.step:
            raise KeyboardInterrupt


@pytest.mark.slow
@pytest.mark.parametrize(("method", "stage", "step"), [("lora", "lora", 7), ("full", "full", 3)])
def test_an_interrupted_run_resumes_and_gives_the_same_model(
    extended, few_rows, tmp_path, monkeypatch, method, stage, step
):
    config = FineTuning(method, 6, n_epochs=2, learning_rate=1e-3, batch_size=8, rank=4, pool=2, save_every=2)

    def tune(name, callback=None, config=config):
        monkeypatch.setattr(fine_tuning, "progress_bar", lambda stage: callback)
        model, tokenizer, tokens = extended()  # as in a new process
        progress = callback is not None
        return fine_tune(model, tokenizer, few_rows, tokens, config, tmp_path / name, progress=progress)

    whole = tune("whole")
    with pytest.raises(KeyboardInterrupt):
        tune("cut", StopAt(stage, step))
    assert last_checkpoint(tmp_path / "cut" / stage).name == f"checkpoint-{step - 1}"
    count = StopAt()
    resumed = tune("cut", count)
    assert count.taken[0] == step and len(count.taken) == 10 - (step - 1)
    for name, weight in whole.model.state_dict().items():
        torch.testing.assert_close(resumed.model.state_dict()[name], weight, atol=1e-6, rtol=1e-5)
    count = StopAt()
    done = tune("cut", count)
    assert not count.taken and done.losses == resumed.losses
    with pytest.raises(ValueError, match="a run with other batch_size"):
        tune("cut", config=FineTuning(method, 6, n_epochs=2, learning_rate=1e-3, batch_size=4, rank=4, pool=2))


def test_pools_make_batches_of_similar_lengths_and_of_other_examples_every_epoch():
    lengths = np.random.default_rng(0).integers(5, 50, size=203)
    order = Pools(lengths, batch_size=10, pool=5, seed=0)
    first, again = list(order), list(order)
    order.set_epoch(1)
    assert first == again != list(order) and sorted(order) == sorted(first) == list(range(203))
    spread = [np.ptp(lengths[first[at : at + 10]]) for at in range(0, 200, 10)]
    loose = list(Pools(lengths, batch_size=10, pool=1, seed=0))
    assert np.mean(spread) < 0.4 * np.mean([np.ptp(lengths[loose[at : at + 10]]) for at in range(0, 200, 10)])


def test_the_loss_is_the_model_s_own_on_the_answers(extended, few_rows):
    model, tokenizer, _ = extended()
    for example in tokenize(few_rows[:4], tokenizer):
        batch = {name: torch.tensor([example[name]]) for name in ("input_ids", "labels")}
        torch.testing.assert_close(answer_loss(model, batch), model(**batch).loss)


GPU_LOSS = """
import sys, torch
from semid_lib.llm.base_models import small_model
from semid_lib.llm.fine_tuning import FineTuning, with_rows
from semid_lib.llm.trainer import answer_loss
from trl import SFTConfig, SFTTrainer
from datasets import Dataset
for tied in (True, False):
    model, tokenizer = small_model(["soap"], 300, hidden_size=32, n_layers=1, n_heads=2, tied=tied)
    wrapped = with_rows(model, [[250, 251]], FineTuning(rank=2), "lora").train()
    labels = [[-100, -100, 250, 251], [-100, 250, 6]]
    data = Dataset.from_dict({"input_ids": [[3, 4, 250, 251], [5, 250, 6]], "labels": labels})
    arguments = SFTConfig(sys.argv[1], use_cpu=True, bf16=False, report_to="none")
    trainer, gradients = SFTTrainer(wrapped, arguments, train_dataset=data, processing_class=tokenizer), []
    for loss_of in (answer_loss, trainer.compute_loss):
        loss = loss_of(wrapped, trainer.data_collator([data[0], data[1]]))
        loss.backward()
        gradients.append([loss.detach()] + [each.grad for each in wrapped.parameters() if each.grad is not None])
        wrapped.zero_grad()
    torch.testing.assert_close(*gradients)
"""


@pytest.mark.slow
def test_the_loss_on_a_gpu_is_the_same(tmp_path):
    """trl's Triton kernel, which our trainer uses on a GPU, run by Triton's interpreter."""
    pytest.importorskip("triton")
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    subprocess.run([sys.executable, "-c", GPU_LOSS, tmp_path], check=True, env=environment, capture_output=True)


@pytest.mark.slow
def test_two_hundred_steps_on_twenty_items_name_every_item_by_its_title(extended, items, ids, tmp_path):
    model, tokenizer, tokens = extended(hidden_size=64)
    queries = (items["title"].tolist(), range(len(items)))
    rows = training_rows(items, ids, 800, queries, weights={"query_to_id": 1}, n_phrasings=1)
    config = FineTuning("full", row_steps=0, n_epochs=4, learning_rate=3e-3, batch_size=16, pool=1)
    tuned = fine_tune(model, tokenizer, rows, tokens, config, tmp_path, progress=True)
    assert tuned.losses[-1][1] == 200 and tuned.losses[-1][2] < 0.05 * tuned.losses[0][2]
    prompts = [prompt_for(tokenizer, title) for title in items["title"]]
    scorer, contexts = CausalScorer(tuned.model, tokens), encode_prompts(tokenizer, prompts)
    found = constrained_beam_search(scorer, contexts, PrefixTrie.build(ids.unique), beam_width=5, k=3)
    assert found.items[:, 0].tolist() == list(range(len(items)))
    written = tuned.model.generate(**contexts, max_new_tokens=5, do_sample=False)
    answer = written[0, contexts["input_ids"].shape[1] :].tolist()[:4]  # the three codes, and the end
    assert answer == [*(int(tokens[level][code]) for level, code in enumerate(ids.unique[0])), tokenizer.eos_token_id]


@pytest.mark.slow
def test_batches_of_a_step_train_as_one_batch(extended, few_rows, tmp_path):
    models = []
    for batch_size, accumulation in ((8, 1), (4, 2)):
        model, tokenizer, tokens = extended()
        options = {"batch_size": batch_size, "accumulation": accumulation}
        config = FineTuning("full", row_steps=0, n_epochs=2, learning_rate=1e-3, pool=1, **options)
        assert config.n_steps("full", 8) == 2
        models.append(fine_tune(model, tokenizer, few_rows[:8], tokens, config, tmp_path / str(batch_size)).model)
    for name, weight in models[0].state_dict().items():
        torch.testing.assert_close(models[1].state_dict()[name], weight, atol=1e-5, rtol=1e-4)


def test_lora_has_as_many_parameters_as_the_facts_say(extended):
    model, _, tokens = extended()
    expected, n_rows = facts_of(model).lora_parameters(4), len(trained_tokens(tokens)) * 32
    assert with_rows(model, tokens, SHORT, "lora").get_nb_trainable_parameters()[0] == expected + n_rows


def test_an_adapter_is_saved_in_place_of_its_model(run, ids, tmp_path, monkeypatch):
    trie, folder = PrefixTrie.build(ids.unique), run.folder / "lora" / "final"
    with pytest.raises(ValueError, match="'main', expected a commit"):
        Adapter("org/base", "main", folder)
    adapter = Adapter("org/base", "a" * 40, folder)
    search = LanguageModelSearch(run.tuned.model, run.tokenizer, run.tokens, trie, 5, adapter=adapter)
    facts, files = search.save(tmp_path)
    assert facts["base"] == {"name": "org/base", "revision": "a" * 40} and "llm/model.safetensors" not in files
    monkeypatch.setattr(llm_search, "load_base", lambda *_, **__: (copy.deepcopy(run.before), None))
    again = load_searcher(tmp_path, facts, ids, None)
    assert again.search(["soap"], 5).items.tolist() == search.search(["soap"], 5).items.tolist()
    again.save(tmp_path)  # over itself
    path = tmp_path / "llm" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"trainable_token_indices": {"embed_tokens": [3, 4]}}))
    with pytest.raises(ValueError, match="without the rows of these"):
        again.save(tmp_path)
    path.unlink()
    with pytest.raises(ValueError, match=r"adapter_config\.json is missing"):
        again.save(tmp_path)


# --- errors ---


def test_a_missing_package_names_the_extra(extended, few_rows, tmp_path, monkeypatch):
    model, tokenizer, tokens = extended()
    monkeypatch.setitem(sys.modules, "trl", None)
    with pytest.raises(ImportError, match=r"pip install 'semid-lib\[sft\]'"):
        fine_tune(model, tokenizer, few_rows, tokens, SHORT, tmp_path)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "qlora"}, "'lora' or 'full'"),
        ({"row_steps": 0, "n_epochs": 0}, "not both 0"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"accumulation": 0}, "accumulation is 0"),
        ({"learning_rate": 0.0}, "learning_rate is 0.0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        FineTuning(**settings)


def test_what_peft_would_spoil_is_refused(extended, few_rows, tmp_path):
    model, tokenizer, tokens = extended(tied=False)
    model.lm_head.bias = torch.nn.Parameter(torch.zeros(model.config.vocab_size))
    with pytest.raises(ValueError, match="has a bias, which peft drops"):
        fine_tune(model, tokenizer, few_rows, tokens, SHORT, tmp_path)
    model, tokenizer, tokens = extended()
    model.peft_config = {}
    with pytest.raises(ValueError, match="merge it first"):
        save_model(model, tokenizer, tmp_path)
    model.is_loaded_in_4bit = True
    with pytest.raises(ValueError, match="4-bit weights cannot be trained"):
        fine_tune(model, tokenizer, few_rows, tokens, FineTuning("full"), tmp_path)
