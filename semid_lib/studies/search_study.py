"""Chapters 05 and 10 on common ground: the same items, queries and random choices for every method of search."""

import textwrap
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch

from semid_lib.data import dataset
from semid_lib.decoding.trie import PrefixTrie
from semid_lib.evaluation import evaluate
from semid_lib.evaluation.rows import metric_rows
from semid_lib.ids import embed
from semid_lib.ids.semantic_ids import SemanticIDs
from semid_lib.llm import base_models, examples
from semid_lib.queries import synthesis
from semid_lib.workbench.scale import Scale
from semid_lib.workbench.store import Store
from semid_lib.workbench.text import one_line

LOOKS = 500  # held-back queries that decide when to stop


class SearchStudy(NamedTuple):
    """What both chapters share. Items are rows of the item table."""

    ids: SemanticIDs
    trie: PrefixTrie
    embedder: str  # name of the encoder of items and queries
    item_vectors: np.ndarray  # (n_items, dim) float32, unit length
    item_texts: list[str]
    queries: synthesis.SavedQueries
    new_items: np.ndarray  # items without training queries
    hidden: np.ndarray  # those of them that no model is trained on in any way
    held_back: np.ndarray  # (n_train,) bool, training queries that decide when to stop
    looks: np.ndarray  # at most `LOOKS` of them, as rows of the training queries
    sample: pd.DataFrame  # the test queries of the study, as many from each cell
    sample_vectors: np.ndarray
    prompts: np.ndarray  # a few of them, as positions in the sample

    def is_hidden(self) -> np.ndarray:
        """(n_items,) bool."""
        return np.isin(np.arange(len(self.ids)), self.hidden)

    def known_texts(self) -> list[str]:
        """The texts of all items, "" for hidden ones."""
        return ["" if hidden else text for text, hidden in zip(self.item_texts, self.is_hidden(), strict=True)]


def load(shop: dataset.Dataset, artefacts: Store, sizes: Scale, seed: int) -> SearchStudy:
    """Read what chapters 01, 02 and 04 wrote, and draw what is random.

    A twentieth of the items and a twentieth of the other training queries are held back to decide when to stop.

    Raises
    ------
    FileNotFoundError
        If one of the chapters has not been run.
    """
    embedded, saved = artefacts.load("embeddings"), artefacts.load("semantic_ids")
    ids = SemanticIDs(saved["codes"], saved["disambiguation_code"], saved.facts["codebook_size"])
    queries = synthesis.load_queries(artefacts)
    rng, wanted = np.random.default_rng(seed), queries.train["item"].to_numpy()
    is_new = queries.test["cell"].str.startswith("unseen item")
    new_items = np.unique(queries.test["item"][is_new])
    hidden = rng.permutation(new_items)[: len(new_items) // 2]
    held_back = (rng.random(len(ids)) < 0.05)[wanted] | (rng.random(len(wanted)) < 0.05)
    if len(wanted) > 1 and held_back.sum() % len(wanted) == 0:
        held_back = np.arange(len(wanted)) == 0  # few queries: one, neither none nor all
    looks = rng.permutation(np.flatnonzero(held_back))[:LOOKS]
    order = queries.test.sample(frac=1, random_state=seed)
    sample = order.groupby("cell").head(max(1, sizes.test_queries // order["cell"].nunique())).sort_index()
    return SearchStudy(
        ids=ids,
        trie=PrefixTrie.build(ids.unique),
        embedder=embedded.facts["embedder"],
        item_vectors=embed.normalize(embedded["vectors"]),
        item_texts=embed.item_texts(shop.items),
        queries=queries,
        new_items=new_items,
        hidden=hidden,
        held_back=held_back,
        looks=looks,
        sample=sample,
        sample_vectors=queries.test_vectors[sample.index],
        prompts=np.sort(rng.permutation(len(sample))[: sizes.prompts]),
    )


def default_base(scale: str) -> str:
    """The base model that chapter 05 takes if none is named: "" for a small one that is trained from scratch."""
    return "qwen3-4b" if scale == "full" and torch.cuda.is_available() else ""


def small_model(study: SearchStudy, sizes: Scale, seed: int):
    """A small language model with random weights, and a tokenizer trained on the texts and prompts of the study."""
    prompts = map(examples.TASKS["query_to_id"][0].format, study.queries.train["query"])
    shape = (sizes.lm_vocabulary, sizes.lm_dim, sizes.lm_layers, sizes.lm_heads)
    corpus = [*study.item_texts, *prompts]
    return base_models.small_model(corpus, *shape, seed=seed, embed=embed.Encoder(study.embedder))


def known_data(shop: dataset.Dataset, study: SearchStudy) -> tuple[pd.DataFrame, dataset.Histories | None]:
    """The item table without the texts of hidden items, and the training histories without these items, if any."""
    items, is_hidden = shop.items.copy(), study.is_hidden()
    for column in {"title", "description"} & set(items):
        items[column] = items[column].where(~is_hidden, "")
    if shop.histories is None:
        return items, None
    past = dataset.leave_one_out(shop.histories, allow_empty=True).train
    return items, dataset.Histories.from_lists([history[~is_hidden[history]] for history in past])


def nearest_words(model, tokenizer, tokens: list[np.ndarray], codes: list[int], n: int = 8) -> dict[str, str]:
    """For some first codes the n words whose embedding rows are closest to what sets the code's row apart.

    Parameters
    ----------
    model, tokenizer : a language model whose vocabulary was extended by `vocabulary.extend_vocabulary`
    tokens : the layout that it returned
    """
    table = model.get_input_embeddings().weight.detach().float().cpu()
    first = table[torch.as_tensor(tokens[0])]
    apart = torch.nn.functional.normalize(first - first.mean(dim=0), dim=1)
    nearness = apart @ torch.nn.functional.normalize(table[: min(tokens[0])], dim=1).T
    best = {code: nearness[code].topk(n).indices.tolist() for code in codes}
    return {
        f"<|sid_0_{code}|>": ", ".join(repr(tokenizer.decode([word]).strip()) for word in words)
        for code, words in best.items()
    }


def rendered(row: dict[str, Any], tokenizer) -> str:
    """A training example of `examples.training_rows` as the text that is tokenized, in lines that fit a page."""
    chat = [*row["prompt"], *row["completion"]]
    text = tokenizer.apply_chat_template(chat, tokenize=False, **row["chat_template_kwargs"])
    return "\n".join(textwrap.fill(line, 78) for line in text.split("\n"))


def example_counts(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """Training examples of each task, and how many of them are distinct."""
    texts = [row["prompt"][0]["content"] + row["completion"][0]["content"] for row in rows]
    table = pd.DataFrame({"task": [row["task"] for row in rows], "example": texts})
    counts = pd.DataFrame(table.groupby("task")["example"].agg(examples="size", distinct="nunique"))
    return counts.rename(index=words)


def words(key: str) -> str:
    """A key as a page shows it: `query_to_id` is "query to id"."""
    return str(key).replace("_", " ")


def prefix_accuracy(first: dict[str, np.ndarray], truth: np.ndarray, codes: np.ndarray) -> pd.DataFrame:
    """How often the first codes of first answers are right: a row per method, a column per number of codes.

    Parameters
    ----------
    first : dict of (n, n_levels) arrays
        Codes of the first answer of each method.
    truth : (n, n_levels) array
        Codes of the targets.
    codes : (n_items, n_levels) array
        Codes of the catalogue. The last row, "most common prefix", always answers with its most common prefix.
    """
    right = {name: np.logical_and.accumulate(written == truth, axis=1) for name, written in first.items()}
    table = {name: each.mean(axis=0) for name, each in right.items()}
    depths = range(1, codes.shape[1] + 1)
    most = [np.unique(codes[:, :depth], axis=0, return_counts=True)[1].max() for depth in depths]
    table["most common prefix"] = np.array(most) / len(codes)
    return pd.DataFrame(table, index=[f"{depth} code" + "s" * (depth > 1) for depth in depths]).T


def measure(methods: dict[str, Any], queries, relevant, vectors: np.ndarray, seed: int) -> dict:
    """`evaluate.evaluate_queries` of every method, by name, on the same queries."""
    options = {"n_items": methods["BM25"].n_items, "query_vectors": vectors, "seed": seed}
    return {
        name: evaluate.evaluate_queries(method.search, queries, relevant, **options) for name, method in methods.items()
    }


def table(evaluations: dict[str, evaluate.QueryEvaluation]) -> pd.DataFrame:
    """A line per method as a page shows it: recall, MRR and times."""
    shown = evaluate.query_table(evaluations).T.drop(columns="validity_rate")
    return shown.rename(columns=lambda name: name.replace("recall@", "Recall@").replace("mrr", "MRR"))


def new_over_old(
    evaluations: dict[str, evaluate.QueryEvaluation], is_new: np.ndarray, is_hidden: np.ndarray
) -> pd.DataFrame:
    """Recall@10 of each method on old and new items, and its ratio, "new / old".

    Parameters
    ----------
    is_new, is_hidden : (n_queries,) bool
        Whether the target of a query has no training queries, and whether it is hidden.
    """
    parts = {"old items": ~is_new, "new, title known": is_new & ~is_hidden, "new, hidden": is_hidden}
    parts = {f"{name} (n = {chosen.sum():,})": chosen for name, chosen in parts.items() if chosen.any()}
    table = {}
    for name, evaluation in evaluations.items():
        recall = evaluation.per_query["recall@10"].to_numpy()
        line = {part: recall[chosen].mean() for part, chosen in parts.items()}
        old = recall[~is_new].mean() if (~is_new).any() else 0.0
        line["new / old"] = recall[is_new].mean() / old if old and is_new.any() else np.nan
        table[name] = line
    return pd.DataFrame(table).T


def summary(tests: dict[str, dict[str, evaluate.QueryEvaluation]]) -> pd.DataFrame:
    """Recall@10 of every method, a column per set of queries."""
    found = {
        where: {name: each.per_query["recall@10"].mean() for name, each in of.items()} for where, of in tests.items()
    }
    return pd.DataFrame(found).add_prefix("Recall@10, ")


def own_queries(shop: dataset.Dataset) -> pd.DataFrame | None:
    """The queries of a data set that have a relevant item; None if there are none."""
    if shop.queries is None:
        return None
    own = shop.queries[shop.queries["item_rows"].map(len) > 0].reset_index(drop=True)
    return own if len(own) else None


def ahead_of(evaluations: dict[str, evaluate.QueryEvaluation], baseline: str) -> pd.DataFrame:
    """Difference in Recall@10 to a baseline on the same queries, with 95% intervals."""
    lines = {}
    for name, each in evaluations.items():
        if name != baseline:
            shown = f"({name})" if "+" in name else name
            ahead = evaluate.differences(each, evaluations[baseline])
            lines[f"{shown} − {baseline}"] = ahead.loc["recall@10"]
    return pd.DataFrame(lines).T


def lists_table(lists: dict[str, np.ndarray], relevant: np.ndarray, titles: pd.Series, width: int = 26) -> pd.DataFrame:
    """Titles of short lists, a column per method; "✓" marks a relevant item."""

    def cell(row: int) -> str:
        return "" if row < 0 else "✓ " * (row in relevant) + one_line(titles[row], width)

    length = max(map(len, lists.values()))
    return pd.DataFrame({name: map(cell, rows) for name, rows in lists.items()}, index=range(1, length + 1))


def key(method: str) -> str:
    """The name of a method in the keys of result rows, which is older than its name on pages.

    >>> key("hybrid ranker + BM25")
    'light + BM25'
    """
    return method.replace("hybrid ranker", "light")


def rows(tests: dict[str, dict[str, evaluate.QueryEvaluation]]) -> list[dict[str, Any]]:
    """Result rows of every method on every set of queries: metrics with intervals, and the time of a single query."""
    found = []
    for where, evaluations in tests.items():
        for name, evaluation in evaluations.items():
            start = f"search/{where}_{key(name).replace(' + ', '_and_').lower()}"
            found += metric_rows(start, evaluate.figures(evaluation), n=len(evaluation.rank))
            alone = 1000 * np.median(evaluation.seconds_alone)
            found.append({"key": f"{start}/ms_alone", "value": round(float(alone), 3)})
    return found
