# %% [markdown]
# # The hybrid ranker: how far does search get without a language model?
#
# A sentence encoder compares the meanings of a query and an item, [BM25](../book/notation.md) their words. The [hybrid
# ranker](../book/notation.md "hybrid ranker") adds both scores and a small trained network, and generates [semantic
# IDs](../book/notation.md "semantic ID") like the language model of chapter 05. This chapter measures what each part
# contributes: the sum of the two scores needs no training, so the question is what training adds to it.
#
# **What you will learn**
#
# 1. how the hybrid ranker scores codes, and how it ranks before training;
# 2. how it is trained, and when training stops;
# 3. how all methods compare on [synthetic queries](../book/notation.md "synthetic query"), and what training adds there;
# 4. how they compare on queries that were not made from templates, and what training adds there;
# 5. what the lists look like;
# 6. what is saved for later chapters.
#
# | | |
# | --- | --- |
# | reads | `embeddings` (chapter 01), `semantic_ids` (chapter 02), `synthetic_queries` (chapter 04), `recommender_llm` (chapter 05; without it, the language model is left out); the queries of the data set, if any, for the test alone |
# | writes | `recommender_hybrid`, a folder for `Recommender.from_pretrained`; result rows |
# | runs in | under a minute at `smoke`; minutes at `laptop`, more for a large catalogue, mostly for the language model |
#
# At `laptop`, the demo shop gets fewer test queries than other data, to save time.

# %% tags=["parameters"]
DATA = "demo"  # or a folder with items.jsonl and, perhaps, queries.jsonl
SCALE = "laptop"  # smoke, laptop or full
SEED = 0

# %%
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch

from semid_lib.data import dataset
from semid_lib.evaluation import evaluate, metrics, plotting
from semid_lib.evaluation import figures_models as figures
from semid_lib.ids import embed, tokenizer
from semid_lib.llm import llm_search
from semid_lib.queries import filters
from semid_lib.search import hybrid_ranker, retrieval
from semid_lib.serving.recommender import Recommender
from semid_lib.studies import search_study
from semid_lib.workbench import scale, store
from semid_lib.workbench import training as train
from semid_lib.workbench.text import one_line

plotting.use()
timer = store.Timer()
shop = dataset.load(DATA)
sizes = scale.get(SCALE, shop.name)
artefacts = store.Store(shop.name, SCALE, shop.fingerprint)
print(artefacts.origin())

# %% [markdown]
# The items, queries and random choices are those of chapter 05. Some items have no training queries; they represent
# items that arrive after training.

# %%
study = search_study.load(shop, artefacts, sizes, SEED)
ids, queries = study.ids, study.queries
print(f"{len(queries.train):,} queries to train on,", end=" ")
print(f"{len(queries.test):,} to test on")
print(f"{len(study.new_items):,} of {len(ids):,} items have no queries")

# %% [markdown]
# ## 1. Two scores and a correction
#
# With $x_q$ and $x_i$ the embeddings of query and item, the *text score* of an item adds its cosine similarity and its
# BM25 score [(Robertson and Zaragoza, 2009)](../book/references.bib "robertson2009"):
#
# $$ s(q, i) = \cos(x_q, x_i) + w \, \text{BM25}(q, i) . $$ (eq-hybrid-score)
#
# The model generates an ID code by code. With $P_c$ the items whose ID begins with the [prefix](../book/notation.md) so
# far, followed by code $c$, the next code has the score
#
# $$ a_c = \log \sum_{i \in P_c} e^{s(q, i) / \tau} + h(q, \text{prefix})_c , $$ (eq-hybrid)
#
# and $p(c \mid \text{prefix}, q)$ is the softmax of $a$ over the codes. The first term comes from the texts. Without
# the second, the ranking is that of $s$: a code is as probable as all items under it together, so the probabilities
# along the path to an item multiply to a softmax of $s / \tau$ over all items. The second term, $h$, is a small network
# that is trained on queries; it reads the vector and the words of the query, and the codes so far.
#
# The weight $w$ is not tuned: it makes cosine and BM25 vary equally over the catalogue, on average over some training
# queries. The temperature $\tau$ is learned.

# %%
few = queries.train.sample(min(500, len(queries.train)), random_state=SEED)
dense = retrieval.Dense(study.item_vectors)
bm25 = retrieval.BM25(study.item_texts)
w = hybrid_ranker.balanced_weight(
    dense.scores(few["query"], queries.train_vectors[few.index]),
    bm25.scores(few["query"].tolist()),
)
print(f"w = {w:.3f}")

# %%
dim = study.item_vectors.shape[1]
shape = hybrid_ranker.HybridRankerConfig(ids.sizes, dim, word_weight=w)
parts = (shape, ids.unique, study.item_vectors)
untrained = hybrid_ranker.HybridSearch(
    hybrid_ranker.HybridRanker(*parts), bm25, study.embedder
)
torch.manual_seed(SEED)
hybrid = hybrid_ranker.HybridRanker(*parts)
hybrid_search = hybrid_ranker.HybridSearch(hybrid, bm25, study.embedder)

# %% [markdown]
# The network starts at zero, so before training the list must be that of $s$. We keep an untrained copy, *hybrid
# ranker, untrained*, as a method of its own.

# %%
few = queries.test.sample(min(50, len(queries.test)), random_state=SEED)
asked, vectors = few["query"].tolist(), queries.test_vectors[few.index]
s = dense.scores(asked, vectors) + w * bm25.scores(asked)
k = min(10, len(ids))
found = untrained.search(asked, k, None, vectors).items
same = found == np.argsort(-s, axis=1)[:, :k]
print(f"the same item at {same.mean():.1%} of {same.size} ranks")

# %% [markdown]
# ## 2. Training
#
# When should training stop? The queries of a twentieth of the items are held back, so that these items represent new
# ones, and so is a twentieth of the other queries. After each epoch the model answers some of both, and the best epoch
# is kept. The test queries are not used.

# %%
held = queries.train.iloc[study.looks]
held_vectors = queries.train_vectors[study.looks]


def validate(model):
    """Recall@10 on held-back queries."""
    asked, items = held["query"].tolist(), held["item"].to_numpy()
    found = hybrid_search.search(asked, 10, None, held_vectors).items
    return metrics.recall_at_k(metrics.ranks(found, items), 10).mean()


n_held, n_all = study.held_back.sum(), len(queries.train)
print(f"{n_held:,} of {n_all:,} queries held back,")
print(f"{len(held):,} of them answered after each epoch")
before_training = validate(hybrid)
print(f"Recall@10 on them before training: {before_training:.3f}")

# %%
learned = np.flatnonzero(~study.held_back)
used, vectors = queries.train.iloc[learned], queries.train_vectors[learned]
texts, items = used["query"].tolist(), used["item"].to_numpy()
loader = hybrid_search.training_batches(texts, vectors, items, seed=SEED)
n = (sizes.query_epochs, sizes.query_steps, len(loader))
settings = train.TrainingConfig.sized(*n, seed=SEED)
epochs = train.fit(hybrid, loader, settings, validate, progress=True)

# %%
n_parameters = sum(parameter.numel() for parameter in hybrid.parameters())
print(f"{n_parameters:,} parameters, {epochs[-1].seconds:.0f} s of training")
history = pd.DataFrame(epochs).set_index("epoch")[["loss", "validation"]]
history.columns = ["loss, nats per item", "Recall@10, held back"]
gain = history["Recall@10, held back"].max() - before_training
print(f"gain in Recall@10 on held-back queries: {gain:+.3f}")
history.round(3)

# %% [markdown]
# The loss can keep falling while the recall does not: then the model memorizes training queries. The held-back queries
# come from the same templates as the training queries, and the best epoch was chosen on them. So this gain is an upper
# bound; sections 3 and 4 measure the gain on other queries.

# %% [markdown]
# ## 3. All methods on the same queries
#
# *BM25* and *dense* retrieval (cosine similarity of embeddings) are not trained. *dense + BM25*, a
# [fusion](../book/notation.md), adds their scores, standardized for each query; it is the baseline to beat. *hybrid
# ranker, untrained* adds the same scores with one weight $w$ for all queries. *LLM* is the model of chapter 05. *hybrid
# ranker + BM25* and *LLM + BM25* add standardized scores too: the items in a beam of 300 keep their scores, and all
# others get that of the last item in the beam. Every list has 100 ranks, and every method can return every item.

# %%
wide_hybrid = hybrid_ranker.HybridSearch(hybrid, bm25, beam_width=300)
methods = {
    "BM25": bm25,
    "dense": dense,
    "dense + BM25": retrieval.FusedScores(dense, bm25),
    search_study.UNTRAINED: untrained,
    "hybrid ranker": hybrid_search,
    "hybrid ranker + BM25": retrieval.FusedScores(wide_hybrid, bm25),
}
folder = artefacts.path("recommender_llm")
if (folder / "config.json").is_file():
    on_gpu = SCALE == "full" and torch.cuda.is_available()
    device = "cuda" if on_gpu else "cpu"
    llm = Recommender.from_pretrained(folder, device).searcher
    parts = (llm.model, llm.tokenizer, llm.tokens, llm.trie)
    wide_llm = llm_search.LanguageModelSearch(*parts, beam_width=300)
    methods["LLM"] = llm
    methods["LLM + BM25"] = retrieval.FusedScores(wide_llm, bm25)
else:
    print("Chapter 05 has not been run: no language model is compared.")


# %%
sample, right = study.sample, study.sample["item"].to_numpy()
asked, vectors = sample["query"].tolist(), study.sample_vectors
synthetic = search_study.measure(methods, asked, right, vectors, SEED)
print(f"{len(sample):,} held-out synthetic queries of {shop.name}")
search_study.table(synthetic)

# %% [markdown]
# ± is half the 95% interval over queries. It does not cover training: another seed gives another model. BM25 compares
# words; in scripts without spaces between words, such as Chinese, it compares pairs of neighbouring
# characters, which is a weaker baseline. Times are in milliseconds on this machine. They exclude embedding the query,
# which all methods except BM25 and the language model need first:

# %%
encode = embed.Encoder(study.embedder)
encode(asked[:1])
lap = store.Timer()
for query in asked[:20]:
    encode([query])
embedding_ms = 1000 * lap.seconds / len(asked[:20])
print(f"{embedding_ms:.1f} ms to embed a query")

# %% tags=["hide-input"] mystnb={"image": {"alt": "Share of first answers whose first codes are right against the number of codes, one line per method, falling."}}
first = {
    name: ids.unique[synthetic[name].recommended[:, 0]]
    for name in ("BM25", "dense", "hybrid ranker", "LLM")
    if name in methods
}
accuracy = search_study.prefix_accuracy(first, ids.unique[right], ids.unique)
figures.prefix_accuracy(accuracy)
plt.show()

# %% [markdown]
# *Figure 1.* How often the first codes of the first answer are those of the target. A method whose line starts low does
# not find the region of the catalogue; one whose line falls late finds the region but not the item.
#
# **Compared with dense + BM25.** The intervals of two methods can overlap although the methods differ, since the same
# queries are hard for both. The differences per query have narrower intervals: method minus *dense + BM25*, for all
# metrics of the table above except the [validity rate](../book/notation.md), which describes the lists and not their quality. A method is
# measurably better if the whole interval is above 0, and worse if it is below. Of twenty comparisons of equal methods,
# about one shows a difference by chance.

# %%
ahead = {"synthetic": search_study.ahead_of(synthetic)}
search_study.difference_table(ahead["synthetic"])

# %% [markdown]
# These queries come from the same templates as the training queries, which favours trained methods. The four cells
# separate this effect: [Recall@10](../book/notation.md "Recall@K"), and half of the widest interval in the row (±).

# %%
cells = [cell for cell in filters.CELLS if cell in set(sample["cell"])]
by_cell = evaluate.group_table(synthetic, sample["cell"])
plotting.rounded(by_cell.loc[cells])

# %% [markdown]
# **New items.** The column *new / old* divides Recall@10 on items without training queries by that on the others: 1
# would mean that a new item is found as easily as an old one. [Dense retrieval](../book/notation.md "dense retrieval")
# and BM25 are not trained, so their distance from 1 is chance, and the yardstick for the others. Hidden items do not
# occur in the training of the language model; the titles of the other new items do.

# %%
is_new = sample["cell"].str.startswith("unseen item").to_numpy()
is_hidden = study.is_hidden()[right]
new_over_old = search_study.new_over_old(synthetic, is_new, is_hidden)
plotting.rounded(new_over_old)

# %% [markdown]
# **What training adds.** The trained hybrid ranker minus the untrained one, on all queries and in each cell:

# %%
gain = search_study.gain_of_training({"synthetic": synthetic}, sample["cell"])
search_study.difference_table(gain)

# %% [markdown]
# A gain that is smaller for unseen kinds or items than for seen ones is a gain from the templates. And all methods by
# kind of query:

# %%
kinds = sample["kind"].map(search_study.words)
plotting.rounded(evaluate.group_table(synthetic, kinds))

# %% [markdown]
# ## 4. Queries that were not made from templates
#
# Only queries of a different origin can show whether a method helps a shopper. No method was trained on them. They are
# no untouched test, however, for the data sets of this book: settings were chosen on the queries of the demo shop, and
# the authors looked at the queries of Amazon Beauty after every run (the [log](../book/log.md) says when).

# %%
own = search_study.own_queries(shop)
tests = {"synthetic": synthetic}
if own is None:
    print(f"{shop.name} has no queries of its own")
else:
    cache, texts = artefacts.cache("embeddings"), own["query"].tolist()
    vectors = embed.embed(texts, study.embedder, cache=cache)
    items = own["item_rows"].tolist()
    tests["own"] = search_study.measure(methods, texts, items, vectors, SEED)
    print(f"{len(own)} queries of {shop.name} itself")
    print(f"one query is up to {1 / len(own):.3f} of every mean")
    display(search_study.table(tests["own"]))

# %% [markdown]
# Compared with *dense + BM25*, as in section 3:

# %%
if own is not None:
    ahead["own"] = search_study.ahead_of(tests["own"])
    display(search_study.difference_table(ahead["own"]))

# %% [markdown]
# What training adds on these queries, and for comparison on the synthetic ones:

# %%
if own is not None:
    gain = search_study.gain_of_training(tests, sample["cell"])
    both = {where: gain[where] for where in tests}
    display(search_study.difference_table(both))

# %%
if own is not None and "kind" in own:
    kinds = own["kind"].fillna("(none)").astype(str)
    display(plotting.rounded(evaluate.group_table(tests["own"], kinds)))

# %% tags=["hide-input"] mystnb={"image": {"alt": "Recall@10 with 95% intervals of every method, one panel for synthetic queries of old items, one for new items, and one for the queries of the data set where it has any."}}
panels = {"synthetic, old items": (synthetic, ~is_new)}
panels["synthetic, new items"] = (synthetic, is_new)
if own is not None:
    every = np.ones(len(own), dtype=bool)
    panels[f"the {len(own)} queries of {shop.name}"] = (tests["own"], every)
figures.recall_panels(panels)
plt.show()

# %% [markdown]
# *Figure 2.* Recall@10 of all methods, with 95% intervals. Compare the panels: if training helps on synthetic
# queries and not on the data set's own, the model has learned how our templates
# ask, and not what shoppers want.

# %% [markdown]
# ## 5. Examples to look at
#
# Three queries drawn at random (the data set's own, if there are any), with the first five items of each method; ✓
# marks a right answer.

# %%
title = shop.items["title"].map(embed.plain_text)
shown, relevant, answers = sample["query"], right[:, None], synthetic
if own is not None:
    shown, relevant, answers = own["query"], own["item_rows"], tests["own"]
for at in np.random.default_rng(SEED).permutation(len(shown))[:3]:
    print(f"{one_line(shown.iloc[at])} ({len(relevant[at])} right)")
    lists = {name: answers[name].recommended[at, :5] for name in first}
    display(search_study.lists_table(lists, relevant[at], title))

# %% [markdown]
# Look at the wrong answers, too: an item without ✓ may be a good answer that has not been judged. Such items count as
# misses, for all methods alike.

# %% [markdown]
# ## 6. What is saved
#
# The hybrid ranker is saved as a recommender: semantic IDs, item table and model in one folder, with a checksum for
# every file. The loaded recommender gives the same answers:

# %%
folder = artefacts.path("recommender_hybrid")
made_by = tokenizer.of_artefacts(artefacts, sizes.text_characters)
parts = (None, ids, shop.items, hybrid_search)
recommender = Recommender(*parts, tokenizer=made_by)
recommender.save_pretrained(folder, artefacts.provenance())
loaded = Recommender.from_pretrained(folder)
asked, vectors = asked[:20], study.sample_vectors[:20]
found = loaded.search(asked, 5, query_vectors=vectors).item_ids
before = hybrid_search.search(asked, 5, None, vectors).items
assert (found == shop.item_ids.at(before)).all()
loaded.search(asked[:1], 3)

# %% [markdown]
# ## Summary

# %%
summary = search_study.summary(tests)
summary["new / old"] = ratio = new_over_old["new / old"]
print(f"hybrid ranker: {len(learned):,} queries,", end=" ")
print(f"{epochs[-1].seconds:.0f} s of training")
for where in tests:
    for name, line in (
        ("untrained, against dense + BM25", ahead[where][search_study.UNTRAINED]),
        ("trained, against dense + BM25", ahead[where]["hybrid ranker"]),
        ("trained, against untrained", gain[where]),
    ):
        at_10 = line.loc["recall@10"]
        print(f"{where} queries, {name}: Recall@10", end=" ")
        print(f"{search_study.interval(at_10)}, {search_study.verdict(at_10)}")
plotting.rounded(summary)

# %%
result_rows = search_study.rows(tests)
for where in tests:
    start = f"search_ahead_of_dense_and_bm25/{where}_"
    result_rows += search_study.difference_rows(start, ahead[where])
result_rows += search_study.difference_rows("search_training/", gain)
single = ratio.rename(index=search_study.key).add_prefix("new_over_old/")
single = single.to_dict() | {"hybrid_seconds": epochs[-1].seconds}
single |= {"embedding_ms": embedding_ms, "seconds": timer.seconds}
result_rows += [
    {"key": f"search/{name}", "value": round(float(value), 6)}
    for name, value in single.items()
    if np.isfinite(value)
]
result_rows = [row | {"seed": SEED} for row in result_rows]
_ = artefacts.record("10_hybrid_ranker", result_rows)
print(f"{len(result_rows)} result rows; {timer.seconds:.0f} s in all")

# %% [markdown]
# **What did not work**, in single trials without paired intervals (the [log](../book/log.md) has their numbers):
#
# - *A text score of the cosine alone*: training on templates did not make up for the missing word scores.
# - *Merging a beam with BM25 by ranks* [(Cormack et al., 2009)](../book/references.bib "cormack2009"): on the demo
#   shop's queries, sums of scores had a higher recall with the hybrid ranker and about the same with the language model.
#
# **What this chapter does not show**: what better queries would do. Both trained models were trained on templates, so a
# gain on synthetic queries does not show a gain for shoppers.
#
# **Next:** [chapter 11](11_who_is_served.ipynb) looks closer at the next-item models.
