# %% [markdown]
# # Who is served: for which users and items does the next-item model work?
#
# Chapter 07 reports one number per method. Here we look behind it: at groups of users and items, at a split by time as
# production sees it, and at the [beam width](../book/notation.md), which trades time for recall.
#
# **What you will learn**
#
# 1. which users get good lists, and which items are recommended;
# 2. what production sees: a [time-based split](../book/notation.md);
# 3. how wide a beam must be, and what an answer costs.
#
# | | |
# | --- | --- |
# | reads | `embeddings` (chapter 01), `semantic_ids` (chapter 02), `recommender` and `next_item_lists` (chapter 07), the histories of `DATA` |
# | writes | `runs_by_time`: trained models that are found again, may be deleted; result rows |
# | runs in | under a minute at `smoke`; minutes at `laptop` |
#
# At `laptop`, the demo shop gets fewer test users than other data, to save time.

# %% tags=["parameters"]
DATA = "demo"  # or a folder with items.jsonl and, perhaps, sequences.tsv
SCALE = "laptop"  # smoke, laptop or full
SEED = 0

# %%
from functools import partial

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from semid_lib.data import dataset
from semid_lib.evaluation import evaluate, plotting
from semid_lib.evaluation import figures_models as figures
from semid_lib.evaluation.rows import LABELS, table_rows
from semid_lib.next_item import baselines, recipes
from semid_lib.serving.recommender import Recommender
from semid_lib.studies import next_item_study as study
from semid_lib.workbench import scale, store

plotting.use()
timer = store.Timer()
shop, instead = study.load_shop(DATA)
if instead:
    print(instead)
sizes = scale.get(SCALE, shop.name)
artefacts = store.Store(shop.name, SCALE, shop.fingerprint)
print(artefacts.origin())

# %%
ids, _, vectors = study.load_ids(shop, artefacts, instead)
split = dataset.leave_one_out(shop.histories)
test = recipes.sample(split.test, sizes.test_users)
first = study.load_lists(artefacts)  # of the first seed of each method
first = {name: first[name] for name in study.MAIN}
print(f"{len(test.targets):,} test users, {len(ids):,} items")

# %% [markdown]
# ## 1. Groups of users, and the items in the lists
#
# Sort the items by popularity: the most popular ones that together have a fifth of all interactions are the *head*, the
# least popular ones with the last fifth the *tail*; *cold* items do not occur in training.
# [Recall@10](../book/notation.md "Recall@K") by the group of the target, with half of the widest interval in the row
# (±):

# %%
counts = np.bincount(split.train.items, minlength=len(ids))
of_target = evaluate.popularity_groups(counts)[test.targets]
by_target = evaluate.group_table(first, of_target)
plotting.rounded(by_target.rename(columns=LABELS), 4)

# %% [markdown]
# And by the number of items in the [history](../book/notation.md):

# %%
names = ["2-4", "5-6", "7-10", "11+"]
lengths = pd.cut(test.histories.lengths, [0, 4, 6, 10, np.inf], labels=names)
by_length = evaluate.group_table(first, lengths)
plotting.rounded(by_length.rename(columns=LABELS), 4)

# %% tags=["hide-input"] mystnb={"image": {"alt": "Two groups of bars: Recall@10 of each method for targets of the head, middle, tail and for cold ones, and by the length of the history, with 95% intervals."}}
groups = {
    "popularity of the target": of_target,
    "items in the history": lengths,
}
figures.recall_by_group(first, groups)
plt.show()

# %% [markdown]
# *Figure 1.* Recall@10 by the popularity of the target and by the length of the history, with the number of users
# below; grey lines are 95% intervals. In the published runs, [item-kNN](../book/notation.md) finds the tail best on
# Beauty and the small [TIGER](../book/notation.md) the head; on the demo shop the [timeline model](../book/notation.md)
# finds most of both. Almost no method finds cold items there: training shows them only as wrong answers, so a model
# learns not to generate them, although their texts and codes could help.
#
# The other side is what the lists hold, whether hit or miss. *[Coverage](../book/notation.md "coverage")* is the share
# of the catalogue that occurs in the first ten of any user; *popularity* is the mean number of training interactions of
# a recommended item; the rest are shares of ranks. The first line shows the items that users chose; each chose one
# item, so their coverage cannot be compared.

# %%
lists = {"targets": test.targets[:, None]}
lists |= {name: each.recommended for name, each in first.items()}
in_lists = evaluate.exposure(lists, counts)
plotting.rounded(in_lists.rename(index=LABELS))

# %% [markdown]
# ## 2. What production sees
#
# [Leave-one-out](../book/notation.md "leave-one-out") leaks the future: the training data contain what other users did
# *after* the test interaction. In production, only the past is known. We now use a time-based split: the last tenth of
# all interactions is for testing, the tenth before for validation. Each user with interactions on both sides of the
# test date has one target, the first after it. Three limits: models do not train on the validation tenth, so more
# targets are new than for a model retrained last night; settings were chosen on leave-one-out; TIGER is left out
# because it trains longest.

# %%
now, why_not = study.time_split(shop.histories)
later, facts_of_task = {}, {}
if now is None:
    print(f"{shop.name} {why_not}")
else:
    present = recipes.sample(now.test, sizes.test_users)
    days = pd.to_datetime(np.array(now.moments), unit="s").strftime("%Y-%m-%d")
    cold = ~np.isin(present.targets, now.train.items)
    facts_of_task = {"unseen targets": cold.mean()}
    print(f"validation from {days[0]}, test from {days[1]}:", end=" ")
    print(f"{len(present.targets):,} users, of whose targets")
    print(f"{cold.mean():.1%} do not occur in training")

# %%
LENGTH = min(sizes.list_length, len(ids))
if now is not None:
    validation = recipes.sample(now.validation, sizes.validation_users)
    runs = artefacts.path("runs_by_time")
    task = recipes.Task(now.train, validation, sizes, runs)
    model = recipes.train_timeline(task, ids, vectors, SEED, progress=True)
    sasrec = recipes.train_sasrec(task, len(ids), SEED, progress=True)
    knn_now = baselines.ItemKNN(now.train, len(ids))
    rank = Recommender(model.model, ids, shop.items).rank
    methods = {
        "popularity": baselines.Popularity(now.train, len(ids)).rank,
        "item_knn": knn_now.rank,
        "sasrec": sasrec.model.rank,
        "timeline": rank,
        "timeline_item_knn": partial(rank, prior=knn_now.prior),
    }
    later = {
        name: evaluate.evaluate(rank, present, LENGTH, progress=True)
        for name, rank in methods.items()
    }
headline = [f"recall@{k}" for k in (5, 10, 100, 1000)] + ["ndcg@10"]
headline += ["seen items"] * (not test.exclude_seen)
study.table(later, headline) if later else None

# %%
if later:
    known = np.where(cold, "not in training", "in training")
    metric = "recall@100" if LENGTH >= 100 else "recall@10"
    print(f"{study.metric_name(metric)} by target:")
    by_target = evaluate.group_table(later, pd.Categorical(known), metric)
    display(plotting.rounded(by_target.rename(columns=LABELS), 4))

# %% [markdown]
# Two things change at once: what is known at test time, and which users are tested, since only those with interactions
# on both sides of the test date are. So only the order of the methods can be compared between this table and that of
# chapter 07. In the published runs almost no method finds targets that do not occur in training, although codes and
# texts could point to them (see Figure 1). [SASRec](../book/notation.md) finds some by chance: training shows it these
# items only as wrong answers, so their vectors do not differ in a useful way.

# %% [markdown]
# ## 3. How wide a beam, and what does an answer cost?
#
# A beam keeps the best [prefixes](../book/notation.md "prefix") at each level and drops the others. A wider beam scores
# more prefixes and comes closer to the [exact ranking](../book/notation.md) of all items. What does it find here, and
# what does it cost?

# %%
recommender = Recommender.from_pretrained(artefacts.checked("recommender"))
few = recipes.sample(split.test, min(1000, sizes.test_users or 1000))
recommender.rank(few.histories.select(slice(50)), 10)  # the first call is slow
widest = min(sizes.beam_width, len(ids))
widths = [w for w in (10, 20, 50, 100, 200, 500, 1000) if w <= widest]
answers = {}
for width in widths:
    rank = partial(recommender.rank, beam_width=width)
    answers[width] = evaluate.evaluate(rank, few, width, progress=True)
exact = partial(recommender.rank, exact=True)
answers["exact"] = evaluate.evaluate(exact, few, LENGTH, progress=True)

# %%
beam_rows = study.beam_rows(answers, len(ids))
beam_table = pd.DataFrame(beam_rows).T.rename_axis("beam width")
beam_table = beam_table.rename(columns={"ms a user": "ms per user"})
plotting.rounded(beam_table.rename(columns=study.metric_name), 4)

# %% tags=["hide-input"] mystnb={"image": {"alt": "Recall@10, @100 and @1000 against the width of the beam, logarithmic, each with the exact value as a dashed line; and milliseconds a user against the width."}}
figures.beam_widths(beam_table)
plt.show()

# %% [markdown]
# *Figure 2.* Recall against the beam width; dashed is the exact ranking of all items. Recall@K needs a beam of at least
# K, since a narrower one cannot fill the list. The validity column shows the promise of the trie: every rank of every
# list is an item. Times are those of one run next to other work on this machine: small differences are noise, and a
# wider beam can even appear faster.
#
# And how long a user waits for ten recommendations from a beam of 50, in batches and alone, in milliseconds:

# %%
knn = baselines.ItemKNN(split.train, len(ids))
options = {"timeline": {}, "timeline_item_knn": {"prior": knn.prior}}
rank = partial(recommender.rank, beam_width=50)
waits = {
    name: study.waiting_times(rank, few.histories, **each)
    for name, each in options.items()
}
names = [
    "per user in a batch",
    "one user, median",
    "one user, 99th percentile",
]
pd.DataFrame(waits).T.rename(index=LABELS).set_axis(names, axis=1).round(2)

# %% [markdown]
# ## Summary

# %%
rows = []
for name, each in later.items():
    rows += evaluate.rows(f"next_item_by_time/{name}", [each], [SEED])
rows += table_rows("task", {"one_moment": facts_of_task})
rows += table_rows("exposure", in_lists.T.to_dict())
rows += table_rows("beam", beam_rows)
rows += table_rows("latency", waits)
_ = artefacts.record("11_who_is_served", rows)

# %%
best = beam_table.loc["exact", "recall@10"]
narrow = beam_table.loc[widths[0], "recall@10"]
print(f"Recall@10: exact {best:.4f}, beam of {widths[0]} {narrow:.4f}")
coverage = in_lists.loc["timeline", "coverage"]
print(f"coverage of the timeline model: {coverage:.1%}")
print(f"{timer.seconds:.0f} s in all, without the runs that it found")

# %% [markdown]
# **What this chapter shows.** In the published runs, one average hides large differences: between popular and rare
# targets, between items in training and new ones, and between leave-one-out and a time-based split. The beam width is a
# minor choice in comparison.
#
# **What it does not show**: whether users like the lists. All measures are about one next item per user.
#
# **Next:** [does the protocol decide who wins?](12_protocol.ipynb) **Back to** [the table of chapter
# 07](07_next_item.ipynb).
