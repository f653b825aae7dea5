# %% [markdown]
# # Synthetic queries: what would a shopper ask for?
#
# A model that answers queries needs queries to train on, and a shop without logs has none. Can such [synthetic
# queries](../book/notation.md "synthetic query") be written from the catalogue alone, and which of them are worth
# keeping?
#
# **What you will learn**
#
# 1. how to write queries for one item by hand;
# 2. how templates write queries for a whole catalogue, in nine kinds of phrasing;
# 3. how these differ from real queries;
# 4. how a language model writes queries, how its answers are read, and what they cost;
# 5. which queries to drop, and how hard each kind is for [dense retrieval](../book/notation.md);
# 6. how to split queries so that the test asks something new.
#
# | | |
# | --- | --- |
# | reads | `embeddings` (chapter 01); the queries of the data set, if it has any: for comparison, never for training |
# | writes | `synthetic_queries`: queries for training and test, with their vectors; result rows |
# | runs in | under a minute at `smoke`; minutes at `laptop`, seconds the second time, because vectors are cached |

# %% tags=["parameters"]
DATA = "demo"  # or a folder with items.jsonl and, perhaps, queries.jsonl
SCALE = "laptop"  # smoke, laptop or full
SEED = 0
ENDPOINT = ""  # a language model's, as http://127.0.0.1:8000/v1; "": none
MODEL = ""  # its name there
API_KEY_VARIABLE = "OPENAI_API_KEY"  # has the key; "": none is sent
LLM_ITEMS = 5  # items that the model writes for; 0: as many as templates
PRICE_PROMPT = 0.10  # per million tokens: an assumption, check yours
PRICE_COMPLETION = 0.40

# %%
import textwrap
from functools import partial

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from semid_lib.data import dataset
from semid_lib.evaluation import figures_data as figures
from semid_lib.evaluation import metrics, plotting
from semid_lib.evaluation.rows import metric_rows
from semid_lib.ids import embed
from semid_lib.queries import filters, llm_queries, measures, templates
from semid_lib.queries.endpoint import Endpoint, EndpointError
from semid_lib.queries.item_facts import words
from semid_lib.queries.synthesis import load_queries, save_queries, synthesize
from semid_lib.workbench import scale, store, workers
from semid_lib.workbench.text import one_line

plotting.use()
timer = store.Timer()
shop = dataset.load(DATA)
sizes = scale.get(SCALE, shop.name)
artefacts = store.Store(shop.name, SCALE, shop.fingerprint)
embedded = artefacts.load("embeddings")
item_vectors = embed.normalize(embedded["vectors"])
titles = shop.items["title"].map(embed.plain_text)
short_titles = titles.map(partial(one_line, width=58))
rng = np.random.default_rng(SEED)
print(artefacts.origin())
if len(shop.items) < 100:
    print(f"{len(shop.items)} items are too few: judging queries takes 100")

# %% [markdown]
# ## 1. One item, by hand
#
# A search model estimates the item $i$ behind a query $q$. We can write the opposite, queries for an item. Bayes' rule
# connects the two:
#
# $$ p(i \mid q) = \frac{p(q \mid i) \, p(i)}{\sum_j p(q \mid j) \, p(j)} . $$ (eq-bayes)
#
# A model trained on pairs of query and item learns the left side. Two choices of ours decide what it learns: how we
# phrase queries for an item is $p(q \mid i)$, and how many queries an item gets is $p(i)$. A shop without logs does not
# know which items are popular, so each gets the same number. Search engines use the same method [(Nogueira et al.,
# 2019)](../book/references.bib "nogueira2019").
#
# We take the item whose title has the median length, so that the example is not a chosen one. Its title, brand,
# category and description:

# %%
by_length = np.argsort(titles.str.len().to_numpy(), kind="stable")
example = int(by_length[len(titles) // 2])
[text] = embed.item_texts(shop.items.iloc[[example]])
print(textwrap.fill(one_line(text, 500), 80))

# %%
title_words = words(titles[example])
brand = shop.items.iloc[example].get("brand", "")
leaf = dataset.leaf_categories(shop.items)[example]
thing = leaf.lower() or " ".join(title_words[-2:])
by_hand = {
    "three neighbouring words": " ".join(title_words[-3:]),
    "brand and category": f"{brand} {thing}".strip().lower(),
    "a question": f"what is a good {thing}",
}
pd.Series(by_hand, name="query").to_frame()

# %% [markdown]
# Each query shows a limit. The first repeats the title, which a shopper has never seen. The second and third fit many
# items, and only a reader notices a wrong plural. And only the description, if anything, says what the item is good for.

# %% [markdown]
# ## 2. A whole catalogue, from templates
#
# `templates.item_queries` does the same with more care. It finds what the item is called, which words are sizes or
# packaging, and what follows "for" and "with" in the description. It processes one item at a time, so new items do not
# change the queries of the others, and it knows no domain. Its nine kinds:

# %%
pd.Series(templates.DATA["kinds"], name="what it is made of").to_frame()

# %% [markdown]
# The kinds take turns. *need* and *typo* take two turns per round, because they are among the hardest for a search by
# similarity (section 5).

# %%
# a small catalogue needs more queries per item, or none is left after section 5
n_per_item = sizes.queries_per_item if len(shop.items) >= 20 else 8
n_items = min(len(shop.items), sizes.queried_items or len(shop.items))
queried = np.sort(rng.permutation(len(shop.items))[:n_items])
options = {"weights": {"need": 2, "typo": 2}, "run": workers.chosen()}
written = synthesize(shop.items, n_per_item, SEED, **options)
written = written[written["item"].isin(queried)].reset_index(drop=True)
n_without = n_items - written["item"].nunique()
print(f"{len(written):,} queries for {n_items:,} of {len(shop.items):,} items")
print(f"{n_without} items have no text to write queries from")

# %%
shuffled = written.sample(frac=1, random_state=SEED)
drawn = shuffled.drop_duplicates("kind").set_index("kind")[["query", "item"]]
drawn["item"] = short_titles[drawn["item"]].to_numpy()
drawn["queries"] = written["kind"].value_counts()
drawn.reindex(templates.KINDS).dropna()

# %% [markdown]
# Some of these are what people type, some are stiff, and some mistake a word for a product: rules know words, not
# products. A kind is missing if the catalogue has no words for it, such as brands.

# %% [markdown]
# ## 3. Real queries
#
# If a data set has queries, we can compare. Two properties need no model: the length of queries, and the share of their
# words that occur in the title of the relevant item. **Real queries are for comparison and for tests; no chapter trains
# on them.** The templates use one fact about real queries, their length, from the 61 queries for Amazon Beauty in the
# ESCI data [(Reddy et al., 2022)](../book/references.bib "reddy2022").

# %%
written = measures.title_overlap(written, titles)
real = None
if shop.queries is None:
    print(f"{shop.name} has no queries: a cold start, without a comparison")
else:
    own = shop.queries[shop.queries["item_rows"].map(len) > 0]
    real = measures.title_overlap(measures.relevant_pairs(own), titles)
    print(f"{shop.name} has {len(own)} queries of its own, for example:\n")
    some = own["query"].sample(min(6, len(own)), random_state=SEED)
    print(*map(one_line, some), sep="\n")

# %% [markdown]
# The demo shop is invented, and so are its 300 queries: other templates wrote them, and the shop's plan says which items
# are relevant. They can show that a method is wrong, not that it would please a shopper.

# %%
compared = written.groupby("kind")[["words", "in_title"]].mean()
if real is not None:
    of_real = measures.per_query(real[["words", "in_title"]], real["share"])
    compared.loc["the data set's own"] = of_real.mean()
share = "share of the words in the title"
compared.rename(columns={"in_title": share}).round(2)

# %% tags=["hide-input"] mystnb={"image": {"alt": "Share of queries against their number of words, a blue line for synthetic queries and a black one for those of the data set, where there are any; both are highest at a few words."}}
lengths = None if real is None else real["words"].groupby(level=0).first()
figures.query_lengths(written["words"], lengths)
plt.show()

# %% [markdown]
# *Figure 1.* Length of queries. The templates imitate this length, so agreement proves nothing. The share of title words
# is more important: if real queries share fewer words with the title than synthetic ones, a model trains on an easier
# task than it will get.

# %% [markdown]
# ## 4. A language model
#
# A language model can write what no rule can: the problem that an item solves, in words that its text does not use. This
# is the prompt for the item above:

# %%
for message in llm_queries.messages(text, 8):
    print(f"--- {message['role']}")
    for line in message["content"].splitlines():
        print(textwrap.fill(line, 80))

# %% [markdown]
# The answer must be a list of objects with these fields. Servers that support JSON schemas enforce it:

# %%
llm_queries.answer_schema()["properties"]["queries"]["items"]["properties"]

# %% [markdown]
# Other servers do not, so every answer is checked. These four answers were **written by hand** to show how:

# %%
answers = {
    "correct": '{"queries": [{"kind": "need", "query": "Hiking shoes"}]}',
    "with prose": 'Sure!\n```json\n{"queries": ["acme boots"]}\n``` Else?',
    "a bare list": '["walking boots", "boots for mud", "Walking  Boots"]',
    "a refusal": "I'm sorry, I can't help with that.",
}
for name, answer in answers.items():
    try:
        print(f"{name}: {llm_queries.parse_answer(answer, 8)}")
    except ValueError as error:
        print(textwrap.fill(f"{name}: ValueError: {error}", 80))

# %% [markdown]
# What would it cost to write as many queries for the same items? The estimate is made before the first request and
# includes only items that are not in the cache: each answer is stored as it arrives, so none is paid for twice. The
# prices are parameters of this page, per million tokens, and an assumption; so is one token per four bytes.

# %%
url, key = ENDPOINT or "http://127.0.0.1:8000/v1", API_KEY_VARIABLE or None
endpoint = Endpoint(url, MODEL or "any", key)
cache = artefacts.cache("language_model_queries")
prices = {"price_prompt": PRICE_PROMPT, "price_completion": PRICE_COMPLETION}
some = shop.items.iloc[queried]
request = (n_per_item, endpoint)
estimate = llm_queries.estimate_cost(some, *request, cache=cache, **prices)
pd.Series(estimate._asdict(), dtype=object).to_frame("estimate")

# %%
if not ENDPOINT:
    print("ENDPOINT is not set: no language model was asked in this run")
else:
    some = queried[: LLM_ITEMS or None]
    few = shop.items.iloc[some].reset_index(drop=True)
    try:
        told = llm_queries.ask(few, *request, cache=cache, progress=True)
        found = told.queries.assign(item=some[told.queries["item"]])
        parts = [written, measures.title_overlap(found, titles)]
        written = pd.concat(parts, ignore_index=True)
        print(MODEL, told.counts, *told.failed["reason"].head(3), sep="\n")
        found["title"] = short_titles[found["item"]].to_numpy()
        display(found.head(8))
    except EndpointError as error:
        print(f"no answers, so the chapter uses templates only: {error}")

# %% [markdown]
# ## 5. Which queries to keep
#
# Four filters need only the text. *length*: one word says too little, and nobody types thirteen. *repeated*: the same
# words for the same item, in any order. *title*: a query that is almost the title trains a model to copy. *ambiguous*:
# queries of several items are counted but kept, because shoppers do ask for "walking boots", and by equation
# {eq}`eq-bayes` all boots are right answers.

# %%
kept, report = filters.filter_queries(written, titles)
report.set_index("filter")

# %% [markdown]
# The fifth filter tests whether a query leads back to its item, the *round-trip consistency* of [(Alberti et al.,
# 2019)](../book/references.bib "alberti2019"). With $x_q$ and $x_i$ the text vectors of query and item, the rank of the
# item is
#
# $$ r(q, i) = 1 + \left| \{\, j : \cos(x_q, x_j) > \cos(x_q, x_i) \,\} \right| . $$ (eq-round-trip)
#
# By hand: three items in the plane and a query between the last two. The first item has rank 3, the last has rank 1:

# %%
plane = np.array([[1.0, 0.0], [0.0, 1.0], [0.2, 1.0]])
filters.round_trip_ranks([0, 2], np.array([[0.15, 1.0], [0.15, 1.0]]), plane)

# %%
texts = [*kept["query"], *(real["query"] if real is not None else [])]
options = {"cache": artefacts.cache("embeddings"), "run": workers.chosen()}
encoder = embedded.facts["embedder"]
vectors = embed.embed(texts, encoder, progress=True, **options)
query_vectors, real_vectors = vectors[: len(kept)], vectors[len(kept) :]
ranks_of = partial(filters.round_trip_ranks, item_vectors=item_vectors)
kept = kept.assign(rank=ranks_of(kept["item"], query_vectors))
if real is not None:
    real["rank"] = ranks_of(real["item"], real_vectors)
# all queries of a language model are one family, named after it
family = kept["kind"].where(kept["source"] == "templates", kept["source"])

# %% tags=["hide-input"] mystnb={"image": {"alt": "Share of queries whose own item is found within the first r ranks by dense retrieval, against r on a logarithmic axis, a line per kind of synthetic query and a dashed black one for the queries of the data set."}}
figures.round_trips(kept["rank"], family, len(shop.items), real)
plt.show()

# %% [markdown]
# *Figure 2.* How hard each kind is for dense retrieval, which was trained on other text. The grey line marks
# [Recall@10](../book/notation.md "Recall@K"), by which kinds are sorted. If several items are relevant to a query of the
# data set, each counts in part.

# %%
cutoffs = (1, 10, 100)
found = pd.DataFrame({f"Recall@{k}": kept["rank"] <= k for k in cutoffs})
hardness = found.groupby(family).mean()
hardness = hardness.sort_values("Recall@10", ascending=False)
hardness.insert(0, "queries", family.value_counts())
hardness.round(3)

# %%
if real is not None:
    hits = pd.DataFrame({f"Recall@{k}": real["rank"] <= k for k in cutoffs})
    per_query = measures.per_query(hits, real["share"])
    intervals = metrics.bootstrap_intervals(per_query.to_numpy(), seed=SEED)
    real_recall = pd.DataFrame(intervals, index=per_query.columns)
    print(f"{len(per_query)} queries of {shop.name} itself")
    display(real_recall.round(3))

# %% [markdown]
# A kind that dense retrieval finds easily teaches a model little that similarity does not know: hence the weights of
# section 2. But hard has two meanings. Only the item of a query counts, although all clocks answer "wall clock"; so part
# of the gap to 1 is ambiguity, not an error of the search. Which queries are lost altogether?

# %%
K = 100
lost = kept[kept["rank"] > K]
n_lost = len(lost)
n_left = len(kept) - n_lost
report.loc[len(report)] = ("round trip", n_lost, n_lost, n_left, "")
report.drop(columns="examples").set_index("filter")

# %%
some = lost.sample(min(6, n_lost), random_state=SEED)
some = some.assign(title=short_titles[some["item"]].to_numpy())
some[["query", "kind", "rank", "title"]]

# %% [markdown]
# There are two sorts of *lost* queries: those that do not describe their item, which should be dropped, and those that
# are fair but too hard for this embedding, such as a typing error in the one important word. The filter cannot separate
# them. So we apply it to the training part only. **The test keeps lost queries**: otherwise one of the methods that the
# test compares would have chosen it.

# %% [markdown]
# ## 6. A test that asks something new
#
# With a random split, the test would have neighbours of the training queries: the same item, the same phrasing, one word
# less. `split_queries` holds out a tenth of the items with all their queries, some kinds with all their queries, and a
# tenth of the rest. A held-out query with the words of a training query is in neither part. Which kinds should be held
# out? A kind is new if it combines words as no other kind does, so we count the neighbouring words that occur in one
# kind only:

# %%
measures.own_word_pairs(kept).to_frame("word pairs of its own").round(2)

# %% [markdown]
# We hold out two kinds, the same for every data set. *question* is new because of its sentences. *typo* is new because
# of its errors, but otherwise repeats other kinds. *need* stays in the training part, since a model should learn needs.
# So the second is *brand_words*: only *drop* and *typo* also combine a brand with any word of the title.
#
# A training query that equals one of the data set's own queries by chance is removed, so that no model trains on them.

# %%
wanted = ("question", "brand_words")
held_out = [kind for kind in wanted if (kept["kind"] == kind).any()]
if kept["kind"].isin(held_out).mean() > 0.5:
    held_out = []  # with few queries, none might be left
split = filters.split_queries(kept, held_out, SEED)
own_keys = set(map(filters.query_key, [] if real is None else real["query"]))
by_chance = split.train["query"].map(filters.query_key).isin(own_keys)
train = split.train[~by_chance & (split.train["rank"] <= K)]
still_known = split.test["item"].isin(train["item"])
is_new = split.test["cell"].str.startswith("unseen item")
test = split.test[still_known | is_new]
print(f"{len(train):,} for training, {len(test):,} for the test")
print(f"held out: {held_out}")
print(f"{split.n_dropped:,} removed from the test: also in training")
print(f"{by_chance.sum()} removed from training: the data set asks the same")

# %% [markdown]
# Is the test new? It has four cells: items with and without training queries, in kinds with and without training
# queries. For each cell, the table has the share of words that are new for the item, the share that are new at all, and
# Recall@10 of dense retrieval, with and without the lost queries:

# %%
test = measures.new_words(test, train).assign(found=1.0 * (test["rank"] <= 10))
test["found_if_not_lost"] = test["found"].where(test["rank"] <= K)
columns = {"new_for_item": "new for item", "new": "new at all"}
columns |= {"found": "Recall@10", "found_if_not_lost": "without the lost"}
cells = test.groupby("cell")[list(columns)].mean().rename(columns=columns)
cells.insert(0, "queries", test["cell"].value_counts())
plotting.rounded(cells)

# %% [markdown]
# Dense retrieval treats all items alike, so items without training queries are not harder for it. For a trained model
# they may be, and the difference between the cells shows how much it memorizes. Without the lost queries, the results of
# dense retrieval would look better than they are. The cells differ in size: compare methods by cell.

# %% [markdown]
# ## Summary
#
# Later chapters train on these queries and their vectors. Loading them checks that they fit these data and each other:

# %%
at = pd.Series(np.arange(len(kept)), index=kept.index)
columns = ["item", "query", "kind", "source", "rank"]
vectors_of = [query_vectors[at[part.index]] for part in (train, test)]
facts = {"embedder": encoder, "held_out_kinds": held_out, "seed": SEED}
tables = (train[columns], test[[*columns, "cell"]])
save_queries(artefacts, *tables, *vectors_of, **facts)
back = load_queries(artefacts)
assert back.train["query"].tolist() == train["query"].tolist()
pd.Series(back._asdict(), name="shape").map(np.shape).to_frame()

# %%
results = {"written": len(written), "kept": len(kept), "train": len(train)}
results |= {"test": len(test), "lost_on_the_round_trip": n_lost / len(kept)}
results["share_of_words_in_the_title"] = written["in_title"].mean()
results["seconds"] = round(timer.seconds, 1)
rows = [
    {"key": f"queries/{name}", "value": round(float(value), 6)}
    for name, value in results.items()
]
of_kind = "queries/round_trip/{}/recall@{}"
rows += [
    {"key": of_kind.format(kind, k), "value": round(value, 6), "n": n}
    for kind, n, *values in hardness.itertuples()
    for k, value in zip(cutoffs, values, strict=True)
]
if real is not None:
    own_rows = real_recall.rename(index=str.lower)
    rows += metric_rows("queries/round_trip/own", own_rows, n=len(per_query))
rows = [row | {"seed": SEED} for row in rows]
artefacts.record("04_synthetic_queries", rows)
print(f"{len(written):,} queries for {n_items:,} items")
print(f"{len(kept):,} kept by their text, {n_lost:,} lost")
print(f"{len(train):,} for training, {len(test):,} for the test")
compared["in_title"].round(2).to_frame("share of the words in the title").T

# %% [markdown]
# **What did not work.** *Purposes by rule*: the words after "for" are not always a purpose ("what helps with much else
# besides"); a language model should do better. *Holding out "brand_type"*, our first choice: most of its word pairs
# occur in other kinds, so it tests little. *Weights by difficulty*: a vague query is as hard as a thoughtful one, so
# difficulty alone is no reason for a higher weight.
#
# *Imitating real queries*: on Amazon Beauty, which has 61, every kind of template shares more words with the title than
# they do, and is easier for dense retrieval.
#
# **What this does not show.** That a model learns anything useful from these queries. Only real queries, and finally
# shoppers, can show that.
#
# **Next:** [a language model that learns from these queries](05_llm_sft.ipynb) to answer with items.
