"""Chapters 05 and 10 on common ground: the same items, queries and random choices for every method of search."""

import textwrap
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch

from semid_lib.data import dataset
from semid_lib.decoding.trie import PrefixTrie
from semid_lib.evaluation import evaluate
from semid_lib.evaluation.rows import metric_name, metric_rows
from semid_lib.ids import embed
from semid_lib.ids.semantic_ids import SemanticIDs
from semid_lib.llm import base_models, examples
from semid_lib.queries import filters, synthesis
from semid_lib.workbench.scale import Scale
from semid_lib.workbench.store import Store
from semid_lib.workbench.text import one_line

LOOKS = 500  # held-back queries that decide when to stop
UNTRAINED = "hybrid ranker, untrained"  # the text score alone, generated under the trie


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
    return shown.rename(columns=metric_name)


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


def ahead_of(
    evaluations: dict[str, evaluate.QueryEvaluation], baseline: str = "dense + BM25"
) -> dict[str, pd.DataFrame]:
    """Paired differences of every other method to a baseline, by method: `evaluate.differences`, with a column n.

    The metrics are those of `table` except the validity rate, which describes the lists and not their quality.
    """
    against = evaluations[baseline]
    return {name: _difference(each, against) for name, each in evaluations.items() if name != baseline}


def gain_of_training(
    tests: dict[str, dict[str, evaluate.QueryEvaluation]], cells: pd.Series
) -> dict[str, pd.DataFrame]:
    """Paired differences of the trained hybrid ranker to the untrained one, by set of queries.

    Parameters
    ----------
    tests : dict
        Evaluations by set of queries and method.
    cells : (n_queries,) Series of str
        Cells of the set "synthetic", see `filters.CELLS`; each becomes a set of its own, "synthetic, <cell>".
    """
    found = {}
    for where, of in tests.items():
        found[where] = _difference(of["hybrid ranker"], of[UNTRAINED])
        for cell in filters.CELLS:
            if where == "synthetic" and (cells == cell).any():
                parts = [each._replace(per_query=each.per_query[(cells == cell).to_numpy()]) for each in of.values()]
                chosen = dict(zip(of, parts, strict=True))
                found[f"{where}, {cell}"] = _difference(chosen["hybrid ranker"], chosen[UNTRAINED])
    return found


def _difference(ours: evaluate.QueryEvaluation, theirs: evaluate.QueryEvaluation) -> pd.DataFrame:
    found = evaluate.differences(ours, theirs).drop("validity_rate")
    return found.assign(n=len(ours.per_query))


def difference_table(differences: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """Differences of `ahead_of` or `gain_of_training` as a page shows them: a line each, all metrics."""
    lines = {}
    for name, each in differences.items():
        cells = {metric_name(str(metric)): interval(line) for metric, line in each.iterrows()}
        lines[name] = {"n": f"{each['n'].iloc[0]:,}"} | cells
    return pd.DataFrame(lines).T


def interval(line: pd.Series) -> str:
    """A difference with its 95% interval.

    >>> interval(pd.Series({"mean": 0.0031, "low": -0.0042, "high": 0.0104}))
    '+.003 (−.004 to +.010)'
    """
    mean, low, high = (f"{line[end]:+.3f}".replace("0.", ".").replace("-", "−") for end in ("mean", "low", "high"))
    return f"{mean} ({low} to {high})"


def verdict(line: pd.Series) -> str:
    """Whether the 95% interval of a difference is above 0, below 0 or contains it.

    >>> verdict(pd.Series({"mean": 0.0031, "low": -0.0042, "high": 0.0104}))
    'no measurable difference'
    """
    return "better" if line["low"] > 0 else "worse" if line["high"] < 0 else "no measurable difference"


def lists_table(lists: dict[str, np.ndarray], relevant: np.ndarray, titles: pd.Series, width: int = 26) -> pd.DataFrame:
    """Titles of short lists, a column per method; "✓" marks a relevant item."""

    def cell(row: int) -> str:
        return "" if row < 0 else "✓ " * (row in relevant) + one_line(titles[row], width)

    length = max(map(len, lists.values()))
    return pd.DataFrame({name: map(cell, rows) for name, rows in lists.items()}, index=range(1, length + 1))


def key(method: str) -> str:
    """The name of a method or of a set of queries in the keys of result rows.

    >>> key("hybrid ranker + BM25"), key("hybrid ranker, untrained")
    ('hybrid_and_bm25', 'hybrid_untrained')
    """
    short = method.replace("hybrid ranker", "hybrid").replace(" + ", "_and_").replace(", ", "_")
    return short.replace(" ", "_").lower()


def rows(tests: dict[str, dict[str, evaluate.QueryEvaluation]]) -> list[dict[str, Any]]:
    """Result rows of every method on every set of queries: metrics with intervals, and the time of a single query."""
    found = []
    for where, evaluations in tests.items():
        for name, evaluation in evaluations.items():
            start = f"search/{where}_{key(name)}"
            found += metric_rows(start, evaluate.figures(evaluation), n=len(evaluation.rank))
            alone = 1000 * np.median(evaluation.seconds_alone)
            found.append({"key": f"{start}/ms_alone", "value": round(float(alone), 3)})
    return found


def difference_rows(start: str, differences: dict[str, pd.DataFrame]) -> list[dict[str, Any]]:
    """Result rows of differences; the keys begin with `start` and the name of the difference."""
    found = []
    for name, each in differences.items():
        found += metric_rows(f"{start}{key(name)}", each.drop(columns="n"), n=int(each["n"].iloc[0]))
    return found
