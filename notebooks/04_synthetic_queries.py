# %% [markdown]
# # Synthetic queries: what would a shopper ask for?
#
# A model that answers queries must have seen queries, and a shop without logs has none. Can such [synthetic
# queries](../book/notation.md "synthetic query") be written from the catalogue alone, and which of them are worth
# keeping?
#
# **What you will learn**
#
# 1. what one item's own fields let us ask, by hand;
# 2. how templates ask for a whole catalogue, in nine kinds of phrasing;
# 3. how far that is from what shoppers type;
# 4. what a language model would be asked, how its answers are read, and what they would cost;
# 5. which queries to drop, and how hard each kind is for [dense retrieval](../book/notation.md);
# 6. how to split queries so that the test asks something new.
#
# | | |
# | --- | --- |
# | reads | `embeddings` (chapter 01); the queries of the data set, if any, to compare with, never to train on |
# | writes | `synthetic_queries`: the queries for training and test, and their vectors (`queries.load_queries` reads both); result rows |
# | runs in | under a minute at `smoke`; minutes at `laptop`, and far less the second time: vectors are cached |

# %% tags=["parameters"]
DATA = "demo"  # or a folder with items.jsonl and, perhaps, queries.jsonl
SCALE = "laptop"  # smoke, laptop or full
SEED = 0
ENDPOINT = ""  # of a language model, such as http://127.0.0.1:8000/v1; "": none
MODEL = ""  # its name there
API_KEY_VARIABLE = "OPENAI_API_KEY"  # where the environment has the key; "": none
LLM_ITEMS = 5  # items that it is asked about; 0: as many as the templates
PRICE_PROMPT = 0.10  # per million tokens: an assumption, look up your own
PRICE_COMPLETION = 0.40

# %%
import textwrap
from functools import partial
from itertools import pairwise

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from semid_lib.data import dataset
from semid_lib.evaluation import metrics, plotting
from semid_lib.evaluation.rows import metric_rows
from semid_lib.ids import embed
from semid_lib.queries import filters, item_facts, llm_queries, synthesis, templates
from semid_lib.queries.endpoint import Endpoint, EndpointError
from semid_lib.workbench import scale, store, workers
from semid_lib.workbench.text import one_line

plotting.use()
clock = store.Clock()
shop = dataset.load(DATA)
sizes = scale.get(SCALE)
shelf = store.Store(shop.name, SCALE, shop.fingerprint)
saved = shelf.load("embeddings")
item_vectors = embed.normalize(saved["vectors"])
titles = shop.items["title"].map(embed.plain_text)
short_titles = titles.map(partial(one_line, width=58))
rng = np.random.default_rng(SEED)
print(shelf.origin())
if len(shop.items) < 100:
    print(f"{len(shop.items)} items are too few to judge queries: that takes 100")

# %% [markdown]
# ## 1. One item, by hand
#
# A search guesses the item $i$ behind a query $q$. What we can write ourselves is the other direction, queries for an
# item, and the two are tied by Bayes' rule:
#
# $$ p(i \mid q) = \frac{p(q \mid i) \, p(i)}{\sum_j p(q \mid j) \, p(j)} . $$ (eq-bayes)
#
# A model trained on pairs of query and item learns the left side. What it learns depends on two choices of ours: how we
# ask for an item is its $p(q \mid i)$, and how many queries an item gets is its $p(i)$. A shop without logs does not
# know which items are wanted, so each gets the same number. The same trick improves search engines [(Nogueira et al.,
# 2019)](../book/references.bib "nogueira2019").
#
# An item whose title is of middling length, so not a chosen one:

# %%
example = int(np.argsort(titles.str.len().to_numpy(), kind="stable")[len(titles) // 2])
item = shop.items.iloc[example]
leaf = dataset.leaf_categories(shop.items)[example]
fields = {"title": titles[example], "brand": item.get("brand", ""), "category": leaf}
fields["description"] = embed.plain_text(item.get("description", ""))[:300]
for name, text in fields.items():
    shown = f"{name}: {one_line(text, 400) or '(none)'}"
    print(textwrap.fill(shown, 80))

# %%
title_words = item_facts.words(fields["title"])
thing = leaf.lower() or " ".join(title_words[-2:])
by_hand = {
    "three neighbouring words": " ".join(title_words[-3:]),
    "the maker and the thing": f"{fields['brand']} {thing}".strip().lower(),
    "a question": f"what is a good {thing}",
}
pd.Series(by_hand, name="query").to_frame()

# %% [markdown]
# Each shows a limit. The first repeats the title, which a shopper has never seen. The second and third fit many items
# of a shop, and only a reader sees where a plural is wrong. And no field says what the item does for somebody, unless
# the description does.

# %% [markdown]
# ## 2. A whole catalogue, from templates
#
# `query_templates` does the same with more care: it finds out what the thing is called, what is a size or packing, and
# what stands after "for" and "with" in the description. It looks at one item at a time, so new items do not change the
# queries of old ones, and it knows no domain. Its nine kinds:
#
# | kind | what it is made of |
# | --- | --- |
# | `fragment`, `words` | neighbouring words of the title; some of its words, in their order |
# | `brand_type`, `brand_words` | the brand and what the thing is; the brand and words of the title |
# | `attribute_type` | a trait or two and what the thing is |
# | `need` | what it is good for, from the description |
# | `question` | the same as one would ask a shop assistant |
# | `typo`, `drop` | one of the above with a slip of the finger; without one of its words |
#
# They take turns; *need* and *typo* take two in each round, since they are among those that a search by similarity
# finds hard (section 5).

# %%
WEIGHTS = {"need": 2, "typo": 2}
# few items need more queries each, or none is left after the filters of section 5
n_per_item = sizes.queries_per_item if len(shop.items) >= 20 else 8
n_items = min(len(shop.items), sizes.queried_items or len(shop.items))
queried = np.sort(rng.permutation(len(shop.items))[:n_items])
by_templates = synthesis.synthesize(
    shop.items,
    n_per_item,
    seed=SEED,
    weights=WEIGHTS,
    run=workers.chosen(),
)
asked = by_templates[by_templates["item"].isin(queried)].reset_index(drop=True)
n_without = n_items - asked["item"].nunique()
print(
    f"{shop.name}: {len(asked):,} queries for {n_items:,} of {len(shop.items):,} items,"
)
print(f"{n_without} of which have no text to ask with")

# %%
drawn = asked.sample(frac=1, random_state=SEED).drop_duplicates("kind").set_index("kind")
drawn = drawn.reindex(templates.KINDS).dropna()
pd.DataFrame(
    {
        "queries": asked["kind"].value_counts()[drawn.index],
        "one of them, drawn at random": drawn["query"],
        "asks for": short_titles[drawn["item"].astype(int)].to_numpy(),
    }
)

# %% [markdown]
# Read them as a shop assistant would. Some are what people type, some are stiff, and some take a word for a thing that
# is none: rules see words, not products. A kind that is missing has no words in this catalogue, such as brands.

# %% [markdown]
# ## 3. What shoppers type
#
# Where a data set has queries of its own, they are the measure. Two things can be compared without a model: how long
# queries are, and how many of their words stand in the title of the item that was wanted. **Such queries are for
# looking at and for tests; no chapter trains on them.** The templates took one thing only from real queries, how many
# words they have: from the 61 for Amazon Beauty in the ESCI data [(Reddy et al.,
# 2022)](../book/references.bib "reddy2022").

# %%
title_sets = [set(item_facts.words(title)) for title in titles]


def looks(pairs):
    """Number of words of each query, and the share of them that the title has."""
    split = [item_facts.words(query) for query in pairs["query"]]
    shared = [
        np.mean([word in title_sets[row] for word in words]) if words else 0.0
        for words, row in zip(split, pairs["item"], strict=True)
    ]
    return pairs.assign(words=[len(words) for words in split], in_title=shared)


# %%
asked = looks(asked)
if shop.queries is None:
    real = None
    print(f"{shop.name} has no queries: a cold start, with nothing to compare to")
else:
    own = shop.queries[shop.queries["item_rows"].map(len) > 0]
    real = own.assign(share=1 / own["item_rows"].map(len)).explode("item_rows")
    real = looks(real.rename(columns={"item_rows": "item"}).astype({"item": np.int64}))
    print(f"{shop.name} has {len(own)} queries of its own, some of them:\n")
    some = own["query"].sample(min(6, len(own)), random_state=SEED)
    print(*map(one_line, some), sep="\n")

# %% [markdown]
# The demo shop is invented, and so are its 300 queries: they come from forms too, other ones, with the truth known from
# the shop's plan. They can show that a method is wrong, not that it would please a shopper.

# %%
compared = asked.groupby("kind")[["words", "in_title"]].mean()
if real is not None:  # an item of a query with n wanted items counts 1/n
    weighed = real[["words", "in_title"]].multiply(real["share"], axis=0)
    compared.loc["the data set's own"] = weighed.groupby(level=0).sum().mean()
compared.rename(columns={"in_title": "share of the words in the title"}).round(2)

# %% tags=["hide-input"] mystnb={"image": {"alt": "Share of queries against their number of words, a blue line for synthetic queries and a black one for those of the data set, where there are any; both are highest at a few words."}}
figure, axis = plt.subplots(figsize=(7, 3.2), layout="constrained")
lengths = {"synthetic": (asked["words"], "tab:blue")}
if real is not None:
    lengths["the data set's own"] = (real["words"].groupby(level=0).first(), "black")
longest = 14
for label, (n_words, colour) in lengths.items():
    share = np.bincount(n_words.clip(upper=longest), minlength=longest + 1) / len(n_words)
    axis.plot(np.arange(longest + 1), share, "o-", color=colour, label=label)
axis.set(xlabel=f"words of a query ({longest}: or more)", ylabel="share of the queries")
axis.set_ylim(bottom=0)
axis.legend(frameon=False)
plt.show()

# %% [markdown]
# *Figure 1.* How long queries are. The length was made to fit, so agreement here proves nothing. The column of title
# words is the one to worry about: where real queries share fewer words with the title than synthetic ones do, a model
# trained on these is trained for an easier task than the one it will get.

# %% [markdown]
# ## 4. What a language model would be asked
#
# A language model can write what no rule can: the problem that an item solves, in words that its text does not use.
# This is the prompt, for the item above:

# %%
text = embed.item_texts(shop.items.iloc[[example]])[0]
for message in llm_queries.messages(text, 8):
    print(f"--- {message['role']}")
    for line in message["content"].splitlines():
        print(textwrap.fill(line, 80))

# %% [markdown]
# The answer must be a list of objects like this, which servers that know JSON schemas enforce:

# %%
llm_queries.answer_schema()["properties"]["queries"]["items"]["properties"]

# %% [markdown]
# Other servers do not, so every answer is read with suspicion. These were **written by hand** to show how:

# %%
answers = {
    "as asked": '{"queries": [{"kind": "need", "query": "Shoes for wet hills"}]}',
    "with talk": 'Sure!\n```json\n{"queries": ["acme boots"]}\n``` Anything else?',
    "a bare list": '["walking boots", "boots for mud", "Walking  Boots"]',
    "cut off": '{"queries": [{"kind": "need", "query": "shoes for',
    "a refusal": "I'm sorry, I can't help with that.",
}


def read(answer):
    try:
        return llm_queries.parse_answer(answer, 8)
    except ValueError as error:
        return f"ValueError: {error}"


pd.DataFrame({"read as": {name: read(answer) for name, answer in answers.items()}})

# %% [markdown]
# What would it take for the same items and as many queries? The estimate comes before anything is asked, and counts
# only what the cache does not hold: each answer is kept as it comes, so nothing is paid for twice. The prices are
# parameters of this page, per million tokens, and an assumption; so is a token for every four bytes.

# %%
source = Endpoint(
    ENDPOINT or "http://127.0.0.1:8000/v1",
    MODEL or "any",
    api_key_variable=API_KEY_VARIABLE or None,
)
kept_answers = shelf.cache("language_model_queries")
prices = {"price_prompt": PRICE_PROMPT, "price_completion": PRICE_COMPLETION}
estimate = llm_queries.estimate_cost(
    shop.items.iloc[queried], n_per_item, source, cache=kept_answers, **prices
)
counts = {name: f"{value:,}" for name, value in estimate._asdict().items()}
pd.Series(counts | {"cost": f"{estimate.cost:.2f}"}).to_frame("estimate")

# %%
if not ENDPOINT:
    print("no endpoint is set: no language model was asked in this run")
else:
    some = queried[: LLM_ITEMS or None]
    few = shop.items.iloc[some].reset_index(drop=True)
    try:
        told = llm_queries.ask(few, n_per_item, source, cache=kept_answers, progress=True)
        found = told.queries.assign(item=some[told.queries["item"]])
        asked = pd.concat([asked, looks(found)], ignore_index=True)
        print(MODEL, told.counts, *told.failed["reason"].unique()[:3], sep="\n")
        display(found.assign(title=short_titles[found["item"]].to_numpy()).head(8))
    except EndpointError as error:
        print(f"no answer, so the chapter goes on with templates alone: {error}")

# %% [markdown]
# ## 5. Which queries to keep
#
# Four filters need the text alone. *Length*: one word says too little, and nobody types thirteen. *Repeated*: the same
# words for the same item, in whatever order. *Title*: a query that is the title, or nearly, teaches to copy.
# *Ambiguous* queries, asked for several items, are only counted: shoppers do ask for "walking boots", and equation
# {eq}`eq-bayes` has a right answer for it, which is all of them.

# %%
kept, report = filters.filter_queries(asked, titles)
report.set_index("filter")

# %% [markdown]
# The fifth filter asks whether a query still leads to its item, the *round-trip consistency* of [(Alberti et al.,
# 2019)](../book/references.bib "alberti2019"): with $x_q$ and $x_i$ the text vectors of query and item, the rank of the
# item is
#
# $$ r(q, i) = 1 + \left| \{\, j : \cos(x_q, x_j) > \cos(x_q, x_i) \,\} \right| . $$ (eq-round-trip)
#
# By hand: three items in the plane and a query between the last two, asked once for the first item, which comes third,
# and once for the last, which comes first:

# %%
plane = np.array([[1.0, 0.0], [0.0, 1.0], [0.2, 1.0]])
filters.round_trip_ranks([0, 2], np.array([[0.15, 1.0], [0.15, 1.0]]), plane)

# %%
texts = [*kept["query"], *(real["query"] if real is not None else [])]
vectors = embed.embed(
    texts,
    saved.facts["embedder"],
    cache=shelf.cache("embeddings"),
    progress=True,
    run=workers.chosen(),
)
query_vectors, real_vectors = vectors[: len(kept)], vectors[len(kept) :]
kept = kept.assign(
    rank=filters.round_trip_ranks(kept["item"], query_vectors, item_vectors)
)
if real is not None:
    real["rank"] = filters.round_trip_ranks(real["item"], real_vectors, item_vectors)
# what a language model wrote is one family, named after it
family = kept["kind"].where(kept["source"] == "templates", kept["source"])

# %% tags=["hide-input"] mystnb={"image": {"alt": "Share of queries whose own item is found within the first r places by dense retrieval, against r on a logarithmic axis, a line per kind of synthetic query and a dashed black one for the queries of the data set."}}
figure, axis = plt.subplots(figsize=(8.5, 4.2), layout="constrained")
places = np.unique(np.geomspace(1, len(shop.items), 60).astype(int))
ordered = kept["rank"].groupby(family).agg(lambda rank: (rank <= 10).mean())
names = ordered.sort_values(ascending=False).index
drawn_names = plotting.labels(names).drawn
for index, (name, label) in enumerate(zip(names, drawn_names, strict=True)):
    rank = np.sort(kept["rank"][family == name])
    found = np.searchsorted(rank, places, side="right") / len(rank)
    axis.plot(places, found, color=plt.cm.tab10(index % 10), label=label)
if real is not None:
    weight = real["share"].to_numpy() / real["share"].sum()
    found = [(weight * (real["rank"] <= place)).sum() for place in places]
    axis.plot(places, found, "--", color="black", label="the data set's own")
axis.plot(places, places / len(shop.items), ":", color="grey", label="by chance")
axis.axvline(10, color="lightgrey", linewidth=1, zorder=0)
axis.set(xscale="log", xlabel="rank r of the item by cosine", ylim=(0, 1.02))
axis.set_ylabel("share of the queries found by then")
axis.legend(frameon=False, fontsize=9, loc="center left", bbox_to_anchor=(1, 0.5))
plt.show()

# %% [markdown]
# *Figure 2.* How hard each kind is for dense retrieval that was trained on other text. The grey line marks
# [Recall@10](../book/notation.md "Recall@K"); kinds are sorted by it. A query of the data set that several items
# answer counts for each of them in part, so its line is Recall@$K$ as well.

# %%
cutoffs = (1, 10, 100)
found = pd.DataFrame({f"Recall@{k}": kept["rank"] <= k for k in cutoffs})
hardness = found.groupby(family).mean().sort_values("Recall@10", ascending=False)
hardness.insert(0, "queries", family.value_counts())
hardness.round(3)

# %%
if real is not None:
    found = pd.DataFrame(
        {f"Recall@{k}": real["share"] * (real["rank"] <= k) for k in cutoffs}
    )
    per_query = found.groupby(level=0).sum()
    real_recall = pd.DataFrame(
        metrics.bootstrap_intervals(per_query.to_numpy(), seed=SEED), index=found.columns
    )
    print(f"{len(per_query)} queries of {shop.name} itself")
    display(real_recall.round(3))

# %% [markdown]
# Kinds made of title words are mostly the easiest before any training, and a model that gets only those learns little
# that similarity does not know: hence the weights of section 2. Hard has two meanings here, though. Only the item for which
# a query was written counts, and to "wall clock" all clocks are right answers; so part of what is missing from 1 is
# ambiguity and no fault of the search. What is lost altogether?

# %%
K = 100
lost = kept[kept["rank"] > K]
row = ("round trip", len(lost), len(lost), len(kept) - len(lost), "")
report.loc[len(report)] = row
report.drop(columns="examples").set_index("filter")

# %%
some_lost = lost.sample(min(6, len(lost)), random_state=SEED)
some_lost[["query", "kind", "rank"]].assign(
    title=short_titles[some_lost["item"]].to_numpy()
)

# %% [markdown]
# Two very different things are among these *lost* queries: those that say nothing of their item, which are right to
# drop, and those that are fair but beyond this embedding, such as a slip in the one word that counts. The filter cannot
# tell them apart. So it works on training only. **The test keeps them**: a test without them would have been chosen by
# one of the methods that it is going to compare.

# %% [markdown]
# ## 6. A test that asks something new
#
# Were queries split at random, the test would hold the neighbours of what was learned: the same item, the same way of
# asking, one word less. `split_queries` holds out a tenth of the items with all their queries, some kinds with all
# their queries, and a tenth of the rest; a query of these that says the same as a training query is in neither part.
# Which kinds? A kind is new if it puts words together as no other does, so count the neighbouring words that only it
# has:

# %%
as_words = kept["query"].map(item_facts.words)
pairs = as_words.map(lambda w: [" ".join(two) for two in pairwise(w)]).explode().dropna()
kind_of_pair = kept["kind"][pairs.index]
only_here = kind_of_pair.groupby(pairs.to_numpy()).transform("nunique") == 1
novelty = only_here.groupby(kind_of_pair).mean().sort_values(ascending=False)
novelty.to_frame("word pairs of its own").round(2)

# %% [markdown]
# *typo* is new for its slips, which spoil what other kinds wrote. *question* is new for its sentences, and is held out.
# *need* stays in the training wherever it stands here, since needs are what a model should learn to answer. So the
# second is *brand_words*: a maker beside any word of the title is what only *drop* and *typo* write too, and the table
# says how new that is here.
#
# And the promise about the data set's own queries is kept to the letter: should a template have written one of them by
# chance, it leaves the training part.

# %%
HELD_OUT = ("question", "brand_words")
held_out = [kind for kind in HELD_OUT if (kept["kind"] == kind).any()]
if kept["kind"].isin(held_out).mean() > 0.5:  # so few queries that none might be left
    held_out = []
split = filters.split_queries(kept, seed=SEED, held_out_kinds=held_out)
own_keys = set(real["query"].map(filters.query_key)) if real is not None else set()
by_chance = split.train["query"].map(filters.query_key).isin(own_keys)
train = split.train[~by_chance & (split.train["rank"] <= K)]
still_known = split.test["item"].isin(train["item"])
test = split.test[still_known | split.test["cell"].str.startswith("unseen item")]
print(f"{len(train):,} for training, {len(test):,} for the test; held out: {held_out}")
print(f"{split.n_dropped:,} would have asked in words of the training")
print(f"{by_chance.sum()} left the training because the data set asks the same")

# %% [markdown]
# Is the test new? It has four cells: items that the training asks for or does not, in kinds that it has or has not. For
# each cell: what share of a query's words did no training query *of its item* use, and what share did none at all? And
# what does dense retrieval find, with and without the lost queries?

# %%
train_words = train["query"].map(item_facts.words)
used_for = train_words.groupby(train["item"]).agg(lambda parts: set().union(*parts))
used_at_all = set().union(*train_words)


def share_new(words, used):
    """Share of the words that were not used before; unknown where none were."""
    return np.mean([word not in used for word in words]) if used else np.nan


test_words = test["query"].map(item_facts.words)
sets = [used_for.get(row) for row in test["item"]]
test = test.assign(
    new_for_item=list(map(share_new, test_words, sets)),
    new=[share_new(words, used_at_all) for words in test_words],
    found=test["rank"] <= 10,
)

# %%
test["found_if_not_lost"] = test["found"].astype(float).where(test["rank"] <= K)
columns = {"new_for_item": "new for item", "new": "new at all", "found": "Recall@10"}
columns["found_if_not_lost"] = "without the lost"
by_cell = test.groupby("cell")
cells = by_cell[list(columns)].mean().rename(columns=columns)
cells.insert(0, "queries", by_cell.size())
cells.round(3).astype(object).fillna("–")

# %% [markdown]
# Dense retrieval knows every item alike, so for it an unseen item is no harder than another; for a trained model it may
# be, and the distance between the cells will say how much it learned by heart. Leaving out the lost queries
# lifts dense retrieval wherever there are any: that is the favour that the test does not do it. Held-out kinds
# mostly make the second cell the largest, so compare by cell, or draw as many from each.

# %% [markdown]
# ## Summary
#
# Queries, what is known of each, and their vectors go to the chapters that train. Reading them back checks that they
# belong to these data and to each other.

# %%
position = pd.Series(np.arange(len(kept)), index=kept.index)
columns = ["item", "query", "kind", "source", "rank"]
synthesis.save_queries(
    shelf,
    train[columns],
    test[[*columns, "cell"]],
    query_vectors[position[train.index]],
    query_vectors[position[test.index]],
    embedder=saved.facts["embedder"],
    held_out_kinds=held_out,
    seed=SEED,
)
back = synthesis.load_queries(shelf)
assert back.train["query"].tolist() == train["query"].tolist()
pd.Series({name: getattr(back, name).shape for name in back._fields}).to_frame("shape")

# %%
figures = {
    "written": len(asked),
    "kept": len(kept),
    "lost_on_the_round_trip": len(lost) / len(kept),
    "train": len(train),
    "test": len(test),
    "share_of_words_in_the_title": asked["in_title"].mean(),
}
rows = [
    {"key": f"queries/{name}", "value": round(float(v), 6)} for name, v in figures.items()
]
rows += [
    {"key": f"queries/round_trip/{kind}/recall@{k}", "value": round(value, 6), "n": n}
    for kind, n, *values in hardness.itertuples()
    for k, value in zip(cutoffs, values, strict=True)
]
if real is not None:
    table = real_recall.rename(index=str.lower)
    rows += metric_rows("queries/round_trip/own", table, n=len(per_query))
rows += [{"key": "queries/seconds", "value": round(clock.seconds, 1)}]
shelf.record("04_synthetic_queries", [row | {"seed": SEED} for row in rows])
print(
    f"{len(asked):,} queries written for {n_items:,} items, {len(kept):,} kept by their text"
)
print(f"{asked['in_title'].mean():.0%} of their words stand in the title", end="")
print(
    f", {compared['in_title'].iloc[-1]:.0%} of the data set's own"
    if real is not None
    else ""
)
print(f"language model: {(asked['source'] != 'templates').sum()} queries")
easiest, hardest = hardness.index[[0, -1]]
print(f"dense Recall@10 from {hardness['Recall@10'].iloc[-1]:.2f} ({hardest}) ", end="")
print(f"to {hardness['Recall@10'].iloc[0]:.2f} ({easiest}), {len(lost):,} lost")
print(f"{len(train):,} to train on, {len(test):,} to test on, in {clock.seconds:.0f} s")

# %% [markdown]
# **What did not work.** *Purposes by rule*: what stands after "for" is not always one ("what helps with much else
# besides"), and *need* loses more than any other kind on the round trip; telling a purpose from a phrase is where a
# language model should earn its price. *Holding out "brand_type"*, our first choice: most of its neighbouring words
# stand together in other kinds too, so it tests little. *Hard and good are not the same*: a vague query is as hard as a
# thoughtful one, so no kind should be given weight for its difficulty alone.
#
# *Coming close to real queries*: on Amazon Beauty, where 61 are at hand, every kind of template shares more words with
# the title than they do, and is easier for dense retrieval.
#
# **What this does not show.** That a model learns anything useful from these queries. Only the data set's own queries,
# and in the end shoppers, can tell.
#
# **Next:** [models that learn from these queries](05_llm_sft.ipynb) to answer with items.
