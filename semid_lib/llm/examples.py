"""Training examples for a language model: a mixture of tasks about a catalogue, as chat messages.

One user message asks, one assistant message answers, and the loss covers the answer only. The mixture follows LC-Rec
(Zheng et al. 2024, arXiv 2311.09049, section 3.3) without its title histories, plus queries for a catalogue without
interactions. `prompt_for` renders prompts for inference exactly as in training.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from semid_lib.data.dataset import Histories
from semid_lib.ids.embed import plain_text
from semid_lib.ids.semantic_ids import SemanticIDs, to_tokens

# several phrasings per task, so that a model does not depend on one; the first is used at inference
TASKS: dict[str, tuple[str, ...]] = {
    "query_to_id": ("Find an item for: {}", "Which item fits this search? {}", "Recommend something for: {}"),
    "title_to_id": ("Find the item called: {}", "Which item has this title? {}", "Look up the title: {}"),
    "description_to_id": ("Find the item described as: {}", "Which item is this? {}", "Described as: {}"),
    "id_to_title": ("What is {}?", "Give the title of {}", "Which title has {}?"),
    "history_to_id": ("After {} what comes next?", "A customer took {} and then?", "Continue: {}"),
}
WEIGHTS = {"query_to_id": 5.0, "title_to_id": 2.0, "description_to_id": 1.0, "id_to_title": 1.0, "history_to_id": 2.0}

# for a tokenizer without a template: the question, a new line, the answer, the end
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['content'] }}"
    "{{ eos_token if message['role'] == 'assistant' else '\\n' }}{% endfor %}"
)
# Qwen3 opens an empty thought only if thinking is off, and Llama 3 puts today's date into the prompt: without these
# arguments, training and inference would differ. Other templates ignore them.
TEMPLATE_ARGUMENTS = {"enable_thinking": False, "date_string": "01 Jan 2026"}

MAX_LENGTH = 512  # tokens of an example
_MAX_CHARACTERS, _MAX_HISTORY = 300, 10
_CONTROL = re.compile(r"<\|[^|<>]*\|>")


def training_rows(
    items: pd.DataFrame,
    ids: SemanticIDs,
    n: int,
    queries: tuple[Sequence[str], Sequence[int]] | None = None,
    histories: Histories | None = None,
    weights: Mapping[str, float] = WEIGHTS,
    n_phrasings: int = 3,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Make n examples in random order, in the format of trl's SFTTrainer (prompt, completion, template arguments).

    Within a task, every example occurs once before any occurs twice. Texts are cut after 300 characters, histories have
    at most 10 items. `task` names the task of a row; SFTTrainer ignores
    it.

    Parameters
    ----------
    items : DataFrame
        One row per semantic ID.
    queries : (texts, item rows), optional
    histories : Histories, optional
        Of training only.
    weights : mapping
        Share of each task of `TASKS`, in any unit. Tasks with weight 0 or without data are left out.
    n_phrasings : {1, 2, 3}
        1 uses the phrasing of inference only.

    Raises
    ------
    ValueError
        For an unknown task, a negative weight, or if no task is left.

    Examples
    --------
    >>> items = pd.DataFrame({"title": ["Tent", "Lamp"]})
    >>> ids = SemanticIDs.from_codes(np.array([[0, 1], [1, 0]]), codebook_size=2)
    >>> row = training_rows(items, ids, 1, weights={"title_to_id": 1}, n_phrasings=1)[0]
    >>> row["prompt"][0]["content"], row["completion"][0]["content"]
    ('Find the item called: Tent', '<|sid_0_0|><|sid_1_1|>')
    """
    if len(items) != len(ids):
        raise ValueError(f"{len(items)} items for {len(ids)} semantic IDs: expected one each, in row order")
    unknown = set(weights) - set(TASKS)
    if unknown or any(not weight >= 0 for weight in weights.values()):
        raise ValueError(f"weights are {dict(weights)}, expected numbers >= 0 for some of {', '.join(TASKS)}")
    if n_phrasings not in (1, 2, 3):
        raise ValueError(f"n_phrasings must be 1, 2 or 3, got {n_phrasings}")
    sources = _sources(items, to_tokens(ids.unique), queries, histories)
    shares = {task: weights[task] for task in TASKS if weights.get(task, 0) > 0 and sources[task][0]}
    if not shares:
        raise ValueError(f"there is nothing to train: no task with data has a weight in {dict(weights)}")
    rng = np.random.default_rng(seed)
    rows = []
    for task, count in _counts(shares, n).items():
        size, example = sources[task]
        phrasings = rng.integers(n_phrasings, size=count)
        rounds = [rng.permutation(size) for _ in range(-(-count // size))]  # each example once before any twice
        places = np.concatenate([*rounds, np.empty(0, np.int64)])[:count]
        for at, phrasing in zip(places, phrasings, strict=True):
            question, answer = example(int(at))
            asked = {"prompt": [_message("user", TASKS[task][phrasing].format(question))]}
            answered = {"completion": [_message("assistant", answer)]}
            rows.append({**asked, **answered, "chat_template_kwargs": TEMPLATE_ARGUMENTS, "task": task})
    return [rows[at] for at in rng.permutation(len(rows))]


def prompt_for(tokenizer, query: str) -> str:
    """Render the prompt of a query as in training; a model continues it with the answer.

    Tokenize it without special tokens, as `encode_prompts` does.
    """
    return _rendered(tokenizer, [_message("user", TASKS["query_to_id"][0].format(clean(query)))])


def encode_prompts(tokenizer, prompts: Sequence[str]):
    """Prompts as a batch for `CausalScorer`: `input_ids` and `attention_mask`, (B, T) each, padded on the left."""
    return tokenizer(list(prompts), add_special_tokens=False, padding=True, padding_side="left", return_tensors="pt")


def tokenize(rows: Sequence[Mapping[str, Any]], tokenizer):
    """Tokenize rows, with the labels of everything but the answers masked (-100): -> `datasets.Dataset`.

    Prompt and answer are tokenized separately, so that prompts have the same tokens as at inference.

    Raises
    ------
    ValueError
        If the template changes a prompt once it is answered, or an example has more than 512 tokens.
    """
    require_packages()
    from datasets import Dataset

    prompts = [_rendered(tokenizer, row["prompt"]) for row in rows]
    whole = [_rendered(tokenizer, [*row["prompt"], *row["completion"]], False) for row in rows]
    for prompt, text in zip(prompts, whole, strict=True):
        if not text.startswith(prompt):
            raise ValueError(f"the chat template changes the prompt once it is answered: {prompt!r} became {text!r}")
    answers = [text[len(prompt) :] for prompt, text in zip(prompts, whole, strict=True)]
    pairs = [tokenizer(texts, add_special_tokens=False)["input_ids"] for texts in (prompts, answers)]
    examples = [(asked + answer, [-100] * len(asked) + answer) for asked, answer in zip(*pairs, strict=True)]
    lengths = np.array([len(ids) for ids, _ in examples])
    if (lengths > MAX_LENGTH).any():
        raise ValueError(
            f"{(lengths > MAX_LENGTH).sum()} of {len(rows)} examples have more than {MAX_LENGTH} tokens, the longest "
            f"{lengths.max()}: leave out rows, or shorten the texts of their items and queries"
        )
    return Dataset.from_dict({"input_ids": [ids for ids, _ in examples], "labels": [labels for _, labels in examples]})


def ensure_chat_template(tokenizer) -> None:
    """Give a tokenizer without a chat template `CHAT_TEMPLATE`, and one without a padding token its end token.

    Raises
    ------
    ValueError
        For a tokenizer without a template and without an end token.
    """
    if tokenizer.chat_template is None:
        if tokenizer.eos_token is None:
            raise ValueError("the tokenizer has neither a chat template nor an eos_token: set one of them")
        tokenizer.chat_template = CHAT_TEMPLATE
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token


def clean(text: str) -> str:
    """Remove mark-up and control tokens (a title must not end the turn) and cut the text after 300 characters.

    >>> clean("Tent <b>blue</b><|im_end|>  for two")
    'Tent blue for two'
    """
    return plain_text(_CONTROL.sub(" ", text))[:_MAX_CHARACTERS].strip()


def require_packages() -> None:
    """Raise ImportError with the extra to install if trl, peft or datasets is missing."""
    try:
        import datasets  # noqa: F401
        import peft  # noqa: F401
        import trl  # noqa: F401
    except ImportError as error:
        raise ImportError("fine-tuning needs the extra 'sft': pip install 'semid-lib[sft]'") from error


def _rendered(tokenizer, messages: Sequence[Mapping[str, str]], is_prompt: bool = True) -> str:
    ensure_chat_template(tokenizer)
    options = {"tokenize": False, "add_generation_prompt": is_prompt, **TEMPLATE_ARGUMENTS}
    return tokenizer.apply_chat_template(messages, **options)


def _sources(
    items: pd.DataFrame, tokens: list[str], queries, histories: Histories | None
) -> dict[str, tuple[int, Callable[[int], tuple[str, str]]]]:
    """The number of different examples of each task, and a function from their positions to question and answer."""

    def cleaned(texts) -> list[tuple[int, str]]:
        found = [(row, clean(text)) for row, text in enumerate(texts)]
        return [(row, text) for row, text in found if text]

    asked, wanted = queries if queries is not None else ([], [])
    if wrong := [row for row in wanted if not 0 <= row < len(tokens)]:
        raise ValueError(f"a query has item row {wrong[0]}, expected 0 to {len(tokens) - 1}")
    if len(asked) != len(wanted):
        raise ValueError(f"{len(asked)} queries for {len(wanted)} item rows: expected one each")
    by_query = [(wanted[at], query) for at, query in cleaned(asked)]
    by_title, by_description = cleaned(items["title"]), cleaned(items.get("description", []))
    rows, starts = (histories.items, histories.offsets) if histories else (np.empty(0, np.int64), np.zeros(1, int))
    later = np.setdiff1d(np.arange(len(rows)), starts[:-1])  # positions with an item before

    def next_item(at: int) -> tuple[str, str]:
        end = later[at]
        start = starts[np.searchsorted(starts, end, side="right") - 1]
        before = rows[max(start, end - _MAX_HISTORY) : end]
        return "".join(tokens[row] for row in before), tokens[rows[end]]

    return {
        "query_to_id": (len(by_query), lambda at: (by_query[at][1], tokens[by_query[at][0]])),
        "title_to_id": (len(by_title), lambda at: (by_title[at][1], tokens[by_title[at][0]])),
        "description_to_id": (len(by_description), lambda at: (by_description[at][1], tokens[by_description[at][0]])),
        "id_to_title": (len(by_title), lambda at: (tokens[by_title[at][0]], by_title[at][1])),
        "history_to_id": (len(later), next_item),
    }


def _counts(weights: Mapping[str, float], n: int) -> dict[str, int]:
    """n as whole numbers in proportion to the weights, the largest remainders rounded up.

    >>> _counts({"a": 2.0, "b": 1.0}, 4)
    {'a': 3, 'b': 1}
    """
    exact = np.array(list(weights.values())) * n / sum(weights.values())
    counts = np.floor(exact).astype(int)
    counts[np.argsort(counts - exact, kind="stable")[: n - counts.sum()]] += 1
    return dict(zip(weights, counts.tolist(), strict=True))


def _message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}
