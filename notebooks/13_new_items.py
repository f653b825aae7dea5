# %% [markdown]
# # New items: does a model recommend what it has never seen sold?
#
# A shop adds items every week, and nobody trains a model every week. A new item has a text, and so it can get a
# [semantic ID](../book/notation.md) from the [codebooks](../book/notation.md "codebook") that exist. Is that enough to
# be recommended? This chapter trains a model as production does, on the items of its training period alone, adds the
# later ones, and measures who finds them.
#
# **What you will learn**
#
# 1. how a split by time tells known targets from new ones;
# 2. what a model needs in order to recommend items that it was not trained on;
# 3. what it costs the other items to give new ones room, and how to choose the room;
# 4. how much fresh sales figures add, without any training;
# 5. how the same model does when items are held out at random, as in [TIGER](../book/notation.md)'s test.
#
# | | |
# | --- | --- |
# | reads | `embeddings` (chapter 01), the histories of `DATA` |
# | writes | `runs_new_items`: trained models that are found again, may be deleted; result rows |
# | runs in | a minute or two at `smoke`; minutes at `laptop` on the demo shop, an hour or two on the Beauty benchmark |

# %% tags=["parameters"]
DATA = "demo"  # or a folder with items.jsonl and, perhaps, sequences.tsv
SCALE = "laptop"  # smoke, laptop or full
SEED = 0
N_SEEDS = 0  # how often the model is trained; 0: as often as the scale says

# %%
from functools import partial

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from semid_lib.data import dataset
from semid_lib.evaluation import evaluate, plotting
from semid_lib.evaluation import figures_models as figures
from semid_lib.evaluation.rows import metric_name, table_rows
from semid_lib.next_item import baselines, linear, recipes
from semid_lib.studies import new_items_study as study
from semid_lib.studies import next_item_study
from semid_lib.workbench import scale, store

plotting.use()
timer = store.Timer()
shop, instead = next_item_study.load_shop(DATA)
now, why_not = next_item_study.time_split(shop.histories)
if now is None:
    instead = f"{shop.name} {why_not}: this page shows the demo shop instead."
    shop = dataset.load("demo")
    now, _ = next_item_study.time_split(shop.histories)
if instead:
    print(instead)
sizes = scale.get(SCALE, shop.name)
artefacts = store.Store(shop.name, SCALE, shop.fingerprint)
print(artefacts.origin())

# %% [markdown]
# ## 1. The task
#
# All [histories](../book/notation.md "history") are split at the same two dates ([time-based
# split](../book/notation.md)). The model is trained on what was sold before the first date. The validation users buy
# between the two dates, the test users after the second. A target is *known* if training shows its item, and *new*
# otherwise.

# %%
vectors, encoder = next_item_study.text_vectors(shop, artefacts, instead)
n_items = len(shop.items)
new = study.launch(shop.histories, now, n_items, now.moments[1])
test = recipes.sample(new.test, sizes.test_users)
is_new = new.is_new(test)
days = pd.to_datetime(np.array(now.moments), unit="s").strftime("%Y-%m-%d")
task = {
    "items in training": new.n_known,
    "items that come before the test date": new.n_validation - new.n_known,
    "items that come later": n_items - new.n_validation,
    "validation users": len(new.validation.targets),
    "new among their targets": new.is_new(new.validation).mean(),
    "test users": len(test.targets),
    "new among the test targets": is_new.mean(),
}
print(f"training before {days[0]}, test from {days[1]}")
pd.Series(task, name=shop.name).map("{:,.4g}".format).to_frame()

# %% [markdown]
# Three things to keep in mind. The Amazon data sets keep only users and items with several interactions: each new item
# is known to sell again and again, and a real shop's new items come with no such promise. An item "comes" when it is
# first sold, since these data have no other date. And the model is not trained again between the two dates, so at the
# test date it is as old as the validation window is long.

# %% [markdown]
# ## 2. Training as production does
#
# The codebooks are fitted to the known items, and the [timeline model](../book/notation.md) is trained on them: a new
# item is no wrong answer in any training step, it is not there. Afterwards `Recommender.add_items` gives the new items
# the nearest free semantic IDs. They enter the [trie](../book/notation.md "prefix trie") and the ranking with the
# embeddings of their codes and their text; training has dropped the item embeddings of known items at random, so that
# it can do without.

# %%
seeds = range(SEED, SEED + (N_SEEDS or sizes.n_seeds))
runs = recipes.Task(new.train, None, sizes, artefacts.path("runs_new_items"))
make = partial(study.made, new, shop.items, vectors, encoder, runs, progress=True)
made = {seed: make(seed) for seed in seeds}
models = {seed: each.recommender for seed, each in made.items()}
first = models[SEED]
print(made[SEED].report)

# %% [markdown]
# Baselines without a neural network, counted on the training period: [popularity](../book/notation.md),
# [item-kNN](../book/notation.md) and SLIST, which know nothing about new items, and *text only*, which compares the
# texts of items with those of the history and needs no sales at all.

# %%
untrained = {
    "popularity": baselines.Popularity(new.train, n_items),
    "item_knn": baselines.ItemKNN(new.train, n_items),
    "slist": linear.SLIST(new.train, n_items),
    "text_only": baselines.TextOnly(new.train, vectors[new.order]),
}
validation = recipes.sample(new.validation, sizes.validation_users)
learnable = recipes.sample(new.learnable(), sizes.validation_users)

# %% [markdown]
# ## 3. Who can rank new items?
#
# First we only ask for the order among new items: lists of new items alone, for the validation users whose target is
# new ([Recall](../book/notation.md "Recall@K") within them; first seed).

# %%
come = np.arange(n_items) < new.n_validation
of_launch = come & (np.arange(n_items) >= new.n_known)
only_new = partial(first.model.rank, allowed=of_launch, exact=True)
ranks = {
    "text_only": study.only(untrained["text_only"], of_launch),
    "code_head": partial(only_new, weights=(1.0, 0.0)),
    "item_head": partial(only_new, weights=(0.0, 1.0)),
    "timeline": only_new,
}
among = study.among_new(ranks, new, new.validation)
print(f"{of_launch.sum():,} new items, {new.is_new(new.validation).sum():,} users")
plotting.rounded(among, 4)

# %% [markdown]
# Compare the [code head](../book/notation.md), which knows a new item by the codes that it shares with known ones, with
# *text only*, and the mixture of both heads with the [item head](../book/notation.md): the second difference is what
# codes add to text.
#
# ## 4. How much room?
#
# To rank new items well is not enough: the scores of new and known items must be comparable, and nobody has seen a new
# item sell. So we let the model share its probability by a rate (`TimelineConfig.new_item_rate`): how often a new item
# is bought for each time that a known one is, on average. With the number of new items, it says what part of the item
# head's probability all new items get together. We measure it in the validation window, and look at what other rates
# would do there.

# %%
rate = study.new_item_rate(new)
print(f"measured rate: {rate:.2f}")
rates = [0.0, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0]
by_rate = study.at_rates(first, new, rates, min(100, n_items), validation)
wide = by_rate.pivot_table(
    index="rate", columns="kind", values=["recall@10", "recall@100"]
)
plotting.rounded(wide.rename(columns=metric_name), 4)

# %% tags=["hide-input"] mystnb={"image": {"alt": "Recall@10 and Recall@100 of all, known and new validation targets against the rate of new items; a vertical line at the measured rate."}}
figures.recall_by_rate(by_rate[by_rate["rate"] > 0], rate)
plt.show()

# %% [markdown]
# *Figure 1.* Recall of validation targets against the rate; the grey line is the measured rate, which we use from here
# on. Room for new items is taken from known ones. Whoever wants another balance, such as a shop that launches a
# collection, can ask for it per request: `recommend(..., new_items=(2, 4))` gives lists with two to four new items, and
# `(0, 0)` gives none.

# %% [markdown]
# ## 5. The test users
#
# All choices so far were made on the validation window. The table has the model with new items ranked by their *scores*
# alone (rate 0) and with *room* for them at the measured rate. With SLIST as a prior, as in chapter 07, it also has
# lists of *known items only*.

# %%
LENGTH = min(sizes.list_length, n_items)
measure = partial(evaluate.evaluate, examples=test, k=LENGTH, progress=True)
slist = untrained["slist"].prior
found = {name: [measure(each.rank)] for name, each in untrained.items()}
mixtures = {}
for seed, recommender in models.items():
    weights = recipes.mixture_weights(recommender.model, learnable, slist)
    mixtures[seed] = weights
    mixed = partial(recommender.rank, prior=slist, weights=weights)
    of_known = partial(mixed, new_items=(0, 0))
    study.set_rate(recommender, 0.0)
    found.setdefault("timeline_slist_known", []).append(measure(of_known))
    found.setdefault("timeline_scores", []).append(measure(recommender.rank))
    study.set_rate(recommender, rate)
    found.setdefault("timeline_room", []).append(measure(recommender.rank))
    found.setdefault("timeline_slist_room", []).append(measure(mixed))

# %%
rows = study.rows_of("new_items", found, is_new, seeds)
study.table(rows)

# %% [markdown]
# By difference to *text only*, on the same users, with paired 95% intervals, and what room costs known targets:

# %%
pairs = [(name, "text_only") for name in ("timeline_room", "timeline_slist_room")]
pairs += [("timeline_slist_room", "timeline_slist_known")]
ahead = study.ahead_rows("new_items", found, pairs, is_new, seeds)
rows += ahead
study.difference_table(ahead)

# %% [markdown]
# ## 6. What sells now
#
# At the test date the model is as old as the validation window is long. It does not know what has become popular since,
# and it need not be trained to: sales figures of the last weeks are at hand. `Recommender.follow_sales` adds to the
# score of each item how many times as well it sells now as in training (`baselines.trend`), and new items with their
# first sales rise among the new ones. The baselines get the same sales: item-kNN and SLIST count everything until the
# test date, and recent popularity the last thirty days alone.
#
# How far should a few sales move a score? We choose the smoothing on the validation users, with the sales of the thirty
# days before them; at infinity nothing moves.

# %%
past, sales = (study.recent_sales(new.histories, day, n_items) for day in now.moments)
smoothings = [0.1, 0.3, 1.0, 3.0, 10.0, np.inf]
if not (past.any() and sales.any()):
    smoothings = [np.inf]
by_smoothing = study.at_smoothings(first, past, smoothings, 10, learnable)
smoothing = by_smoothing.idxmax()
print(f"chosen: {smoothing:g}")
plotting.rounded(by_smoothing.to_frame(), 4)

# %%
until = study.before(new.histories, now.moments[1])
sold = [np.repeat(np.arange(n_items), sales)]
fresh = {
    "recent_popularity": baselines.Popularity(sold, n_items),
    "item_knn_fresh": baselines.ItemKNN(until, n_items),
    "slist_fresh": linear.SLIST(until, n_items),
}
followed = {name: [measure(each.rank)] for name, each in fresh.items()}
item_ids = first.items["item_id"].tolist()
for seed, recommender in models.items():
    later = recommender
    if np.isfinite(smoothing):
        later, _ = recommender.follow_sales(item_ids, sales, smoothing)
    prior = fresh["slist_fresh"].prior
    mixed = partial(later.rank, prior=prior, weights=mixtures[seed])
    followed.setdefault("timeline_sales", []).append(measure(later.rank))
    followed.setdefault("timeline_slist_sales", []).append(measure(mixed))

# %% [markdown]
# What would another training give? The last line is a model that was trained until the test date, for as many epochs as
# before (first seed): for it, fewer targets are new. The columns stay those of the first model.

# %%
at_test = now._replace(train=study.before(shop.histories, now.moments[1]))
late = study.launch(shop.histories, at_test, n_items, now.moments[1])
make_late = partial(study.made, late, shop.items, vectors, encoder, runs)
retrained = make_late(SEED, n_epochs=made[SEED].n_epochs, progress=True).recommender
study.set_rate(retrained, rate)
late_slist = linear.SLIST(late.train, n_items).prior
mixed = partial(retrained.rank, prior=late_slist, weights=mixtures[SEED])
of_late = recipes.sample(late.test, sizes.test_users)
late_found = evaluate.evaluate(mixed, of_late, LENGTH, progress=True)
followed["timeline_slist_late"] = [late_found]

# %%
fresh_rows = study.rows_of("new_items", followed, is_new, seeds)
rows += fresh_rows
study.table(fresh_rows)

# %%
both = found | followed
pairs = [
    ("timeline_slist_sales", name) for name in ("timeline_slist_room", "slist_fresh")
]
pairs += [("timeline_slist_late", "timeline_slist_sales")]
ahead = study.ahead_rows("new_items", both, pairs, is_new, seeds)
rows += ahead
study.difference_table(ahead)

# %% [markdown]
# ## 7. Items held out at random
#
# [Rajput et al. (2023)](../book/references.bib "rajput2023") test new items otherwise: a twentieth of the test items of
# a [leave-one-out](../book/notation.md "leave-one-out") split is removed from training. Such items are not newer than
# others. We take a rate of 1, as if they sold like the average item, which is a little too low: test targets sell
# better. Histories lose them, too. LIGER ([Yang et al. 2024](../book/references.bib "yang2024")) measures the cold
# items of leave-one-out in the same spirit: items that only validation and test have. On Beauty it is said to find
# one in ten of them within the first ten, and TIGER none. We have this from a news summary, not from the paper, and few
# of Beauty's test users have such a target: read it as an order of magnitude.

# %%
held = study.launch(shop.histories, study.hold_out(shop.histories, seed=SEED), n_items)
make_held = partial(study.made, held, shop.items, vectors, encoder, runs)
without = make_held(SEED, progress=True).recommender
held_test = recipes.sample(held.test, sizes.test_users)
is_held = held.is_new(held_test)
held_measure = partial(evaluate.evaluate, examples=held_test, k=LENGTH, progress=True)
texts = baselines.TextOnly(held.train, vectors[held.order])
held_found = {"text_only": [held_measure(texts.rank)]}
for name, one in {"timeline_scores": 0.0, "timeline_room": 1.0}.items():
    study.set_rate(without, one)
    held_found[name] = [held_measure(without.rank)]
held_rows = study.rows_of("held_out", held_found, is_held, [SEED])
rows += held_rows
print(f"{n_items - held.n_known:,} items are absent from training,", end=" ")
print(f"the target of {is_held.sum():,} users")
study.table(held_rows)

# %% [markdown]
# ## 8. Summary

# %%
rows += table_rows("new_items_task", {"test": task | {"rate": rate}})
rows += table_rows("among_new", among.T.to_dict())
_ = artefacts.record("13_new_items", rows)
print(f"{timer.seconds:.0f} s in all, without the runs that it found")
best = study.best(rows, "new_items", "recall@10")
pd.Series(best, name="best at Recall@10").to_frame()

# %% [markdown]
# **Does a model recommend what it has never seen sold?** Three things decide: whether it was taught that absent items
# are wrong, whether new items get room in its lists, and whether it knows what sells now. The tables above say how much
# each gives on these data, and the [results](../book/results.md) have the published runs.
#
# **In a shop.** `semid catalogue FOLDER add` gives new items their semantic IDs, `sales` lets the model follow what
# sells, and `status` says when enough is new for another training. A service that runs takes each change over without
# an outage ([book](../book/serving.md)).
#
# **What it does not show**: items that never sell. On the Amazon data, each new item does.
#
# **Back to** [the table of chapter 07](07_next_item.ipynb).
