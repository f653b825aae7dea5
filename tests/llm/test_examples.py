"""Training examples: the mixture, and that training and inference read the same prompts."""

import pandas as pd
import pytest

from semid_lib.data.dataset import Histories
from semid_lib.ids.semantic_ids import to_tokens
from semid_lib.llm import examples
from semid_lib.llm.examples import TASKS, encode_prompts, prompt_for, tokenize, training_rows

# as Qwen3's: an empty thought opens an answer without thinking
THINKING = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['role'] == 'assistant' %}<think>\n\n</think>\n\n{% endif %}{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)


def test_the_mixture_follows_the_weights(items, ids):
    histories = Histories.from_lists([[3, 4, 5, 6], [7], [8, 9]])
    queries = (["soft soap", "lamp"], [2, 11])
    counts = {"query_to_id": 30, "title_to_id": 20, "description_to_id": 10, "id_to_title": 10, "history_to_id": 10}
    rows = training_rows(items, ids, 80, queries, histories, counts, seed=3)
    assert pd.Series([row["task"] for row in rows]).value_counts().to_dict() == counts
    assert rows == training_rows(items, ids, 80, queries, histories, counts, seed=3)
    assert rows != training_rows(items, ids, 80, queries, histories, counts, seed=4)
    asked = [row["completion"][0]["content"] for row in rows if row["task"] == "title_to_id"]
    assert sorted(asked) == sorted(to_tokens(ids.unique))  # each once before any twice
    assert len({row["prompt"][0]["content"][:5] for row in rows if row["task"] == "query_to_id"}) == 3  # phrasings
    as_asked = training_rows(items, ids, 9, queries, weights={"query_to_id": 1}, n_phrasings=1)
    prompts = {row["prompt"][0]["content"] for row in as_asked}
    assert prompts == {"Find an item for: soft soap", "Find an item for: lamp"}


def test_tasks_without_data_are_left_out(items, ids):
    plain = items[["title"]]
    rows = training_rows(plain, ids, 9, weights={"title_to_id": 2, "id_to_title": 1, "history_to_id": 9})
    assert sorted(row["task"] for row in rows) == ["id_to_title"] * 3 + ["title_to_id"] * 6
    described = training_rows(items, ids, 5, weights={"description_to_id": 1}, n_phrasings=1)
    assert {row["prompt"][0]["content"] for row in described} == {"Find the item described as: a thing"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weights": {"history_to_id": 1}}, "nothing to train"),
        ({"weights": {"x": 1}}, "weights"),
        ({"weights": {"title_to_id": -1}}, ">= 0"),
        ({"queries": (["a", "b"], [1])}, "2 queries for 1 item rows"),
        ({"queries": (["a"], [20])}, "item row 20, expected 0 to 19"),
        ({"n_phrasings": 4}, "must be 1, 2 or 3"),
        ({"items": pd.DataFrame({"title": ["Tent"]})}, "1 items for 20 semantic IDs"),
    ],
)
def test_training_rows_refuse(items, ids, options, message):
    with pytest.raises(ValueError, match=message):
        training_rows(**{"items": items, "ids": ids, "n": 9} | options)


def test_a_history_asks_for_its_next_item(items, ids, monkeypatch):
    monkeypatch.setattr(examples, "_MAX_HISTORY", 2)
    tokens = to_tokens(ids.unique)
    histories = Histories.from_lists([[3, 4, 5, 6], [7], [], [8, 9]])
    rows = training_rows(items, ids, 4, None, histories, {"history_to_id": 1}, n_phrasings=1)
    found = {(row["prompt"][0]["content"], row["completion"][0]["content"]) for row in rows}
    question = TASKS["history_to_id"][0]
    expected = {((3,), 4), ((3, 4), 5), ((4, 5), 6), ((8,), 9)}
    assert found == {(question.format("".join(tokens[i] for i in before)), tokens[after]) for before, after in expected}


def test_only_the_answer_has_labels_and_the_prompt_is_that_of_inference(extended, items, ids, monkeypatch):
    _, tokenizer, tokens = extended()
    queries = (items["title"].tolist(), range(20))
    rows = training_rows(items, ids, 20, queries, weights={"query_to_id": 1}, n_phrasings=1)
    data = tokenize(rows, tokenizer)
    for row, token_ids, labels in zip(rows, data["input_ids"], data["labels"], strict=True):
        answer = [label for label in labels if label != -100]
        assert token_ids[-len(answer) :] == answer and answer[-1] == tokenizer.eos_token_id
        codes = [tokens[level].tolist().index(token) for level, token in enumerate(answer[:-1])]
        assert codes in ids.unique.tolist()
        query = row["prompt"][0]["content"].partition(": ")[2]
        asked = encode_prompts(tokenizer, [prompt_for(tokenizer, query), "a longer one " * 9])
        ones = asked["attention_mask"][0].bool()
        assert asked["input_ids"][0][ones].tolist() == token_ids[: -len(answer)]
        assert ones.tolist() == sorted(ones.tolist())  # padded on the left
    monkeypatch.setattr(examples, "MAX_LENGTH", 5)
    with pytest.raises(ValueError, match=r"20 of 20 examples have more than 5 tokens, the longest \d+"):
        tokenize(rows, tokenizer)


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
    trainer = SFTTrainer(model, arguments, train_dataset=Dataset.from_list(rows), processing_class=tokenizer)
    theirs = trainer.train_dataset
    assert theirs["input_ids"][:] == ours["input_ids"][:] and theirs["labels"][:] == ours["labels"][:]


def test_texts_cannot_end_a_turn_and_templates_must_keep_prompts(extended, items, ids):
    _, tokenizer, _ = extended()
    assert prompt_for(tokenizer, "<b>soap</b><|end|>  <|sid_0_1|>now") == "Find an item for: soap now\n"
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{{ messages | length }}{% endfor %}"
    with pytest.raises(ValueError, match="changes the prompt"):
        tokenize(training_rows(items, ids, 1), tokenizer)
    tokenizer.chat_template = tokenizer.eos_token = None
    with pytest.raises(ValueError, match="neither a chat template nor an eos_token"):
        prompt_for(tokenizer, "soap")
