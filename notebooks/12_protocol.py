# %% [markdown]
# # The protocol: does it decide who wins?
#
# Chapter 07 compares next-item methods under one protocol. Part of each score comes from the file and the protocol,
# not from what users do. How large is that part, and does the order of the methods depend on it?
#
# **What you will learn**
#
# 1. what the order of a file gives away, and to which methods;
# 2. what is left if the items of a day are shuffled, in training and test;
# 3. how much training on the validation items adds;
# 4. what a report of next-item results should state.
#
# | | |
# | --- | --- |
# | reads | `embeddings` (chapter 01), `semantic_ids` (chapter 02), `next_item_lists` and the trained models in `runs` (chapter 07), the histories of `DATA` |
# | writes | `runs_shuffled` and `runs_refit`: trained models that are found again, may be deleted; result rows |
# | runs in | a minute or two at `smoke`; minutes at `laptop` on the demo shop, hours on the Beauty benchmark |
#
# At `laptop`, the demo shop gets fewer test users than other data, to save time.

# %% tags=["parameters"]
DATA = "demo"  # or a folder with items.jsonl and, perhaps, sequences.tsv
SCALE = "laptop"  # smoke, laptop or full
SEED = 0

# %%
from functools import partial

import matplotlib.pyplot as plt
import pandas as pd

from semid_lib.data import dataset
from semid_lib.evaluation import evaluate, plotting
from semid_lib.evaluation import figures_models as figures
from semid_lib.evaluation.rows import LABELS, table_rows
from semid_lib.next_item import baselines, linear, recipes
from semid_lib.studies import next_item_study as study
from semid_lib.studies import protocol_study as protocol
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
validation = recipes.sample(split.validation, sizes.validation_users)
test = recipes.sample(split.test, sizes.test_users)
first = study.load_lists(artefacts)  # of the first seed of each method
measure = partial(evaluate.evaluate, examples=test, progress=True)
print(f"{len(test.targets):,} test users, {len(ids):,} items")

# %% [markdown]
# ## 1. The order of the file
#
# The Amazon 2014 reviews carry a date and no time of day. Interactions of one day have no known order, yet each file
# lists them in some order, and a [leave-one-out](../book/notation.md "leave-one-out") split takes it for the order of
# the purchases. [Woolridge et al. (2021)](../book/references.bib "woolridge2021") and [Klenitskiy et al.
# (2024)](../book/references.bib "klenitskiy2024") show how many public data sets have this problem. A simple check:
# among neighbours in a [history](../book/notation.md), how often does the second have the higher [item
# id](../book/notation.md) (on Amazon data, the ASIN, which is the catalogue number)? If ids and
# order are unrelated, it is about half of the time.

# %%
facts, later = {}, test.later_day
key = shop.items.get("asin", shop.items["item_id"])
if shop.histories.times is None:
    print(f"{shop.name} has no times: no users by day, no shuffling")
else:
    days = protocol.by_day(shop.histories)
    same, others = dataset.same_time_order(days, key)
    facts = {"ids ascend within a day": same, "ids ascend between days": others}
    facts["last two on one day"] = dataset.same_time_share(days)
pd.Series(facts, name="share").map("{:.1%}".format).to_frame() if facts else None

# %% [markdown]
# If the first line is near all or near nothing, the order within a day is that of the file. If it is about half, as in
# the demo shop, whose times are in seconds, it may be real. The last line is the share of users whose last two items
# are of one day: their test target is whatever the file lists last.
#
# So we split the test users of chapter 07 in two: the target is of the *same day* as the last item of the history, or
# of a *later day*. [Recall@10](../book/notation.md "Recall@K") of its lists, first seed, with half of the widest
# interval in the column (±):

# %%
groups, rows = {}, []
if later is not None and later.any() and not later.all():
    names = pd.Categorical.from_codes(later.astype(int), ["same day", "later day"])
    groups = {"day of the target": names}
elif later is not None:
    print(f"all targets are of {'a later' if later.all() else 'the same'} day")
by_group = evaluate.group_table(first, names) if groups else None
shares = by_group.drop(columns="n").T if groups else None
plotting.rounded(shares.rename(index=LABELS), 4) if groups else None

# %% tags=["hide-input"] mystnb={"image": {"alt": "Two groups of bars, same day and later day: Recall@10 of each method of chapter 07, with 95% intervals."}}
if groups:
    figures.recall_by_group({name: first[name] for name in study.MAIN}, groups)
    plt.show()

# %% [markdown]
# *Figure 1.* Recall@10 of the users whose target is of the same or of a later day than their last item, with the
# number of users below; grey lines are 95% intervals. Not all of a gap is the order of the file: what is bought
# together also belongs together. Section 2 tells these apart.
#
# Who wins? The same lists by difference to [item-kNN](../book/notation.md), in each group, with paired 95% intervals:

# %%
if groups:
    ahead, parts = protocol.ahead_by_day(first, "item_knn", SEED)
    rows += ahead
    for group, part in parts.items():
        for name, each in part.items():
            rows += evaluate.rows(f"next_item_{group}/{name}", [each], [SEED])
columns = {("same_day_ahead_of_item_knn", "recall@10"): "Recall@10, same day"}
columns[("later_day_ahead_of_item_knn", "recall@10")] = "Recall@10, later day"
protocol.change_table(rows, columns) if groups else None

# %% [markdown]
# How much can item-kNN gain from a hint at the order of the file? Positive scores of items with a higher id than the
# last item of the history are doubled. The factor was not tuned. This is no method, and it is in no other table of this
# book: it shows that the order can be used, not how much other methods use it.

# %%
knn = baselines.ItemKNN(split.train, len(ids))
oracle = measure(protocol.with_file_order(knn, key), k=10)
both = {"item_knn": first["item_knn"], "item_knn_file_order": oracle}
ours = {"item_knn_file_order": [oracle]}
plain = {"item_knn_file_order": first["item_knn"]}
gained = protocol.change_rows("file_order_gain", ours, plain, [SEED])
rows += gained + evaluate.rows("file_order/item_knn_file_order", [oracle], [SEED])
study.table(both, protocol.METRICS)

# %%
protocol.change_table(gained, protocol.headings("file_order_gain"))

# %% [markdown]
# If the file is sorted within a day, the doubled votes should help on the same day and harm on later days; if it is
# not, they should not help. A trained sequential model needs no such hint: it sees sorted items in training.

# %% [markdown]
# ## 2. Shuffled days
#
# Now the order of the file is removed: each user's items of one day are put in random order, before the split, so
# that training, validation and test lose it. Items of one day stay together. All methods are trained again on each
# draw, with the same settings and training seed, and compared with the usual order (lists of ten; the [timeline
# model](../book/notation.md) from a beam of 50). [TIGER](../book/notation.md) is left out because it trains longest.
#
# All methods but popularity give recent items more weight. Sequential rules, item-kNN, SLIST, the transition graph
# and the two trained models also count what comes *after* what; user-kNN, EASE and text alone do not.

# %%
lists = partial(protocol.lists_of_ten, ids=ids, vectors=vectors, sizes=sizes, seed=SEED)
usual = lists(shop.histories, runs=artefacts.path("runs"), progress=True)
draws = range(SEED, SEED + sizes.shuffled_draws) if facts else []
found = []
for draw in draws:
    mixed = dataset.shuffle_same_time(days, draw)
    found.append(lists(mixed, runs=artefacts.path("runs_shuffled"), progress=True))
shuffled = {name: [each[name] for each in found] for name in usual if found}
changed = protocol.change_rows("shuffled_gain", shuffled, usual, draws)
changed = protocol.of_draws(changed, SEED)
print(f"draws: {len(draws)}")

# %% [markdown]
# The mean over draws beside the usual order, with the place of each method among all, and the change with a paired
# 95% interval over users (a same-day target is another item after shuffling, a later-day target the same):

# %%
order = protocol.order_table(usual, shuffled) if draws else pd.DataFrame()
columns = {("shuffled_gain", "recall@10"): "change"}
columns[("shuffled_gain", "later_day_recall@10")] = "change, later day"
table = order.join(protocol.change_table(changed, columns))
plotting.rounded(table, 4) if draws else None

# %%
if draws:
    moved = order[order["place"] != order["place, shuffled"]]
    print(f"{len(moved)} of {len(order)} methods change their place")
    print("best in the usual order:", order["usual"].idxmax())
    print("best when shuffled:", order["shuffled"].idxmax())

# %% [markdown]
# Shuffling takes away the order within a day, and it also changes which items are held out. Popularity reads no order:
# its change shows how much the second matters. All settings were chosen in the usual order, which favours methods that
# read it. On a later day the targets stay the same, so that column is the cleaner comparison. On data with real times,
# such as the demo shop, shuffling destroys real order. A single training run can also change by chance: chapter 07 has
# the spread over seeds.

# %% [markdown]
# ## 3. Training on the validation items
#
# So far no model was trained on the validation items. A model in production would be, and some papers do it without
# saying so. We train the timeline model again on all items except the last of each tested user, for as many epochs as
# validation chose, with a learning rate that falls to 0 within them, and count the baselines anew (first seed;
# settings and mixture weights as before).

# %%
task = recipes.Task(split.train, validation, sizes, artefacts.path("runs"))
timeline = recipes.train_timeline(task, ids, vectors, SEED, progress=True)
slist = linear.SLIST(split.train, len(ids))
priors = {"item_knn": knn.prior, "slist": slist.prior}
weights = study.prior_weights(timeline.model, validation, priors)
late = split.test.histories
late_task = task._replace(train=late, validation=None, runs=artefacts.path("runs_refit"))
n_epochs = timeline.best.epoch
refit = recipes.train_timeline(late_task, ids, vectors, SEED, n_epochs, progress=True)
refit.model.config = timeline.model.config  # with its mixture weights
late_knn = baselines.ItemKNN(late, len(ids))
late_slist = linear.SLIST(late, len(ids))
late_priors = {"item_knn": late_knn.prior, "slist": late_slist.prior}
late_parts = study.component_ranks(refit.model, late_priors, weights)
late_ranks = {"item_knn": late_knn.rank, "slist": late_slist.rank}
for name in ("timeline", "timeline_item_knn", "timeline_slist"):
    late_ranks[name] = late_parts[name]

# %%
LENGTH = min(sizes.list_length, len(ids))
refitted = {
    f"{name}_refit": [measure(rank, k=LENGTH)] for name, rank in late_ranks.items()
}
headline = [f"recall@{k}" for k in (5, 10, 100, 1000)] + ["ndcg@10"]
headline += ["later_day_recall@10"]
headline += ["seen items"] * (not test.exclude_seen)
study.table(refitted, headline)

# %% [markdown]
# By difference to the same methods without the validation items:

# %%
of_refit = {name: refitted[f"{name}_refit"] for name in late_ranks}
gain = protocol.change_rows("refit_gain", of_refit, usual | first, [SEED])
protocol.change_table(gain, protocol.headings("refit_gain"))

# %% [markdown]
# A method that gains here gains from more and fresher data, not from a better idea. A baseline that gets the
# validation items too is the fair opponent of a model that was trained on them.

# %% [markdown]
# ## 4. Summary

# %%
for name, of_draws in shuffled.items():
    of_method = evaluate.rows(f"next_item_shuffled/{name}", of_draws, draws)
    rows += protocol.of_draws(of_method, SEED)
for name, each in refitted.items():
    rows += evaluate.rows(f"next_item/{name}", each, [SEED])
rows += changed + gain
measured = {name: each for name, each in facts.items() if pd.notna(each)}
rows += table_rows("file_order", {"share": measured})
_ = artefacts.record("12_protocol", rows)

# %%
best = {}
if groups:
    best |= by_group.drop(columns=["n", "±"]).idxmax(axis=1).map(LABELS)
if draws:
    best["usual order, all users"] = order["usual"].idxmax()
    best["shuffled, all users"] = order["shuffled"].idxmax()
best["validation items used"] = protocol.means(refitted).idxmax()
print(f"{timer.seconds:.0f} s in all, without the runs that it found")
pd.Series(best, name="best at Recall@10").to_frame() if best else None

# %% [markdown]
# **Does the protocol decide who wins?** The table above has the best method in each setting of this run. Its lines
# compare different sets of methods: those of the section that a line comes from. Being first
# is not being ahead measurably: see the intervals of sections 1 to 3. The [results](../book/results.md) have the
# published runs.
#
# **What to report** with a next-item score:
#
# - the users whose target is of a later day in a column of their own, wherever times have the resolution of a day;
# - whether lists may hold [seen items](../book/notation.md) (chapter 07 has both);
# - whether the models, and the baselines beside them, were trained on the validation items;
# - whether anything that a method reads, such as ids that are sorted, gives away the order of the file.
#
# **What it does not show**: the other leak of leave-one-out, training on what other users did later. Chapter 11
# measures it with a [time-based split](../book/notation.md). And few draws with one training seed do not show small
# effects.
#
# **Back to** [the table of chapter 07](07_next_item.ipynb).
