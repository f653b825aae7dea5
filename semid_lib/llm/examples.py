"""What a language model is taught: a mixture of questions and answers about a catalogue, as chat messages.

Every question is asked by one user message and answered by one assistant message, and only the answer is learned. The
mixture is that of LC-Rec (Zheng et al. 2024, arXiv 2311.09049, section 3.3) without its title histories, with queries
for a catalogue that nobody has bought from yet. What is rendered for training is what `prompt_for` gives at inference.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from semid_lib.data.dataset import Histories
from semid_lib.ids.embed import plain_text
from semid_lib.ids.semantic_ids import SemanticIDs, to_tokens

# Several phrasings of each question, so that a model does not hang on one; the first is the one asked at inference.
TASKS: dict[str, tuple[str, ...]] = {
    "query_to_id": ("Find an item for: {}", "Which item fits this search? {}", "Recommend something for: {}"),
    "title_to_id": ("Find the item called: {}", "Which item has this title? {}", "Look up the title: {}"),
    "description_to_id": ("Find the item described as: {}", "Which item is this? {}", "Described as: {}"),
    "id_to_title": ("What is {}?", "Give the title of {}", "Which title has {}?"),
    "history_to_id": ("After {} what comes next?", "A customer took {} and then?", "Continue: {}"),
}
WEIGHTS = {"query_to_id": 5.0, "title_to_id": 2.0, "description_to_id": 1.0, "id_to_title": 1.0, "history_to_id": 2.0}

# For a tokenizer without a template of its own: the question, a new line, the answer, the end.
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['content'] }}"
    "{{ eos_token if message['role'] == 'assistant' else '\\n' }}{% endfor %}"
)
# Qwen3 opens an empty thought only when it must not think, Llama 3 writes today's date into the prompt: both would make
# training and inference differ. Other templates do not look at these.
TEMPLATE_ARGUMENTS = {"enable_thinking": False, "date_string": "01 Jan 2026"}

_CONTROL = re.compile(r"<\|[^|<>]*\|>")


class Source(NamedTuple):
    """Where the examples of a task come from."""

    size: int  # how many different ones there are
    example: Callable[[int], tuple[str, str]]  # position -> what is asked about, what is to be answered


def training_rows(
    items: pd.DataFrame,
    ids: SemanticIDs,
    n: int,
    queries: tuple[Sequence[str], Sequence[int]] | None = None,
    histories: Histories | None = None,
    weights: Mapping[str, float] = WEIGHTS,
    n_phrasings: int = 3,
    max_history: int = 10,
    max_characters: int = 300,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """n examples in a random order, in the form that trl's SFTTrainer takes: prompt, completion, template arguments.

    items: the item table, one row per semantic ID. queries: their texts and the item row that each asks for.
    histories: of training only. weights: share of each task of `TASKS`, in any unit; tasks of weight 0 or without
    material (no histories, no descriptions) are left out, and the others share what is theirs. Within a task every
    example comes once before any comes twice. n_phrasings: 1 asks every question as at inference. max_history: the
    last items that a prompt shows. max_characters: texts are cut there. `task` says which is which; SFTTrainer
    ignores it. Raises ValueError for an unknown task, a negative weight, or if nothing is left to teach.

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
    if not 1 <= n_phrasings <= 3:
        raise ValueError(f"n_phrasings must be 1, 2 or 3, got {n_phrasings}")
    sources = _sources(items, ids, queries, histories, max_history, max_characters)
    asked = {task: weights[task] for task in TASKS if weights.get(task, 0) > 0 and sources[task].size}
    if not asked:
        raise ValueError(f"there is nothing to teach: weights {dict(weights)} leave no task that has examples")
    rng = np.random.default_rng(seed)
    rows = []
    for task, count in _shares(asked, n).items():
        phrasing = rng.integers(n_phrasings, size=count)
        for position, which in zip(_draw(sources[task].size, count, rng), phrasing, strict=True):
            question, answer = sources[task].example(int(position))
            rows.append(_row(task, TASKS[task][which].format(question), answer))
    return [rows[at] for at in rng.permutation(len(rows))]


def prompt_for(tokenizer, asked: str, task: str = "query_to_id", max_characters: int = 300) -> str:
    """The prompt of a question, rendered as in training: what a model continues with the answer.

    asked: a query, a title, a description; or semantic-ID tokens (`to_tokens`), one after the other, for the tasks
    that ask about IDs. Tokenize it without special tokens, as `encode_prompts` does.
    """
    about_ids = task in ("id_to_title", "history_to_id")
    content = TASKS[task][0].format(asked if about_ids else clean(asked, max_characters))
    return _rendered(tokenizer, [_message("user", content)], True, TEMPLATE_ARGUMENTS)


def encode_prompts(tokenizer, prompts: Sequence[str]):
    """Prompts as a batch for `CausalScorer`: `input_ids` and `attention_mask`, (B, T) each, padded on the left."""
    return tokenizer(list(prompts), add_special_tokens=False, padding=True, padding_side="left", return_tensors="pt")


def tokenize(rows: Sequence[Mapping[str, Any]], tokenizer, max_length: int = 512):
    """Rows as token ids, with the labels of all but the answers masked (-100): a `datasets.Dataset`.

    Prompt and answer are tokenized apart, so that the ids of a prompt are those of inference, whatever follows. The
    answer ends where the chat template ends a turn. Raises ValueError if the template renders a prompt differently
    once it is answered, or if rows have more than max_length tokens (cutting them would cut answers).
    """
    require_packages()
    from datasets import Dataset

    ensure_chat_template(tokenizer)
    prompts = [_rendered(tokenizer, row["prompt"], True, row["chat_template_kwargs"]) for row in rows]
    whole = [
        _rendered(tokenizer, [*row["prompt"], *row["completion"]], False, row["chat_template_kwargs"]) for row in rows
    ]
    for prompt, text in zip(prompts, whole, strict=True):
        if not text.startswith(prompt):
            raise ValueError(f"the chat template changes the prompt once it is answered: {prompt!r} became {text!r}")
    asked = tokenizer(prompts, add_special_tokens=False)["input_ids"]
    answers = [text[len(prompt) :] for prompt, text in zip(prompts, whole, strict=True)]
    answered = tokenizer(answers, add_special_tokens=False)["input_ids"]
    lengths = np.array([len(a) + len(b) for a, b in zip(asked, answered, strict=True)])
    if (lengths > max_length).any():
        raise ValueError(
            f"{(lengths > max_length).sum()} of {len(rows)} examples have more than {max_length} tokens, the longest "
            f"{lengths.max()}: lower max_characters or max_history of training_rows, or raise max_length"
        )
    return Dataset.from_dict(
        {
            "input_ids": [a + b for a, b in zip(asked, answered, strict=True)],
            "labels": [[-100] * len(a) + b for a, b in zip(asked, answered, strict=True)],
        }
    )


def ensure_chat_template(tokenizer) -> str:
    """The tokenizer's chat template; one without gets `CHAT_TEMPLATE`, and the end of text to pad with if need be.

    Raises ValueError for a tokenizer that has no template and no end-of-text token either.
    """
    if tokenizer.chat_template is None:
        if tokenizer.eos_token is None:
            raise ValueError("the tokenizer has neither a chat template nor an eos_token: set one of them")
        tokenizer.chat_template = CHAT_TEMPLATE
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer.chat_template


def clean(text: str, max_characters: int) -> str:
    """Text without mark-up and without control tokens (a title must not end the turn), cut to so many characters.

    >>> clean("Tent <b>blue</b><|im_end|>  for two", 12)
    'Tent blue fo'
    """
    return plain_text(_CONTROL.sub(" ", text))[:max_characters].strip()


def require_packages() -> None:
    """Raise ImportError with the extra to install if trl, peft or datasets is missing."""
    try:
        import datasets  # noqa: F401
        import peft  # noqa: F401
        import trl  # noqa: F401
    except ImportError as error:
        raise ImportError("fine-tuning needs the extra 'sft': pip install 'semid-lib[sft]'") from error


def _rendered(tokenizer, messages, is_prompt: bool, arguments: Mapping[str, Any]) -> str:
    ensure_chat_template(tokenizer)
    return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=is_prompt, **arguments)


def _sources(items, ids, queries, histories, max_history, max_characters) -> dict[str, Source]:
    tokens = to_tokens(ids.unique)
    titles = [clean(title, max_characters) for title in items["title"]]
    descriptions = [clean(text, max_characters) for text in items.get("description", [])]
    titled = [row for row, title in enumerate(titles) if title]
    described = [row for row, text in enumerate(descriptions) if text]
    asked, wanted = queries if queries is not None else ([], [])
    if len(asked) != len(wanted):
        raise ValueError(f"{len(asked)} queries for {len(wanted)} item rows: expected one each")
    asked = [clean(query, max_characters) for query in asked]
    usable = [position for position, query in enumerate(asked) if query]
    later = np.empty(0, dtype=np.int64)  # places in the histories that have something before them
    if histories is not None:
        later = np.setdiff1d(np.arange(len(histories.items)), histories.offsets[:-1])

    def next_item(place: int) -> tuple[str, str]:
        end = later[place]
        start = histories.offsets[np.searchsorted(histories.offsets, end, side="right") - 1]
        before = histories.items[max(start, end - max_history) : end]
        return "".join(tokens[row] for row in before), tokens[histories.items[end]]

    return {
        "query_to_id": Source(len(usable), lambda i: (asked[usable[i]], tokens[wanted[usable[i]]])),
        "title_to_id": Source(len(titled), lambda i: (titles[titled[i]], tokens[titled[i]])),
        "description_to_id": Source(len(described), lambda i: (descriptions[described[i]], tokens[described[i]])),
        "id_to_title": Source(len(titled), lambda i: (tokens[titled[i]], titles[titled[i]])),
        "history_to_id": Source(len(later), next_item),
    }


def _shares(weights: Mapping[str, float], n: int) -> dict[str, int]:
    """n as whole numbers in proportion to the weights, the largest remainders rounded up.

    >>> _shares({"a": 2.0, "b": 1.0}, 4)
    {'a': 3, 'b': 1}
    """
    exact = np.array(list(weights.values())) * n / sum(weights.values())
    counts = np.floor(exact).astype(int)
    counts[np.argsort(counts - exact, kind="stable")[: n - counts.sum()]] += 1
    return dict(zip(weights, counts.tolist(), strict=True))


def _draw(size: int, n: int, rng: np.random.Generator) -> np.ndarray:
    """n positions below size, each once before any comes twice."""
    rounds = [rng.permutation(size) for _ in range(-(-n // size))]
    return np.concatenate([*rounds, np.empty(0, dtype=np.int64)])[:n]


def _row(task: str, question: str, answer: str) -> dict[str, Any]:
    return {
        "prompt": [_message("user", question)],
        "completion": [_message("assistant", answer)],
        "chat_template_kwargs": TEMPLATE_ARGUMENTS,
        "task": task,
    }


def _message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}
