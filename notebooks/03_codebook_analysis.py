# %% [markdown]
# # Codebook analysis: are the codes used, and do prefixes mean anything?
#
# A [semantic ID](../book/notation.md) is only as good as what its first [codes](../book/notation.md "code") say. Do the
# IDs of chapter 02 say more than an [RQ-VAE](../book/notation.md)'s, and more than controls that should lose? And what
# happens to them when new items arrive?
#
# **What you will learn**
#
# 1. whether all codes are used, and how large [collisions](../book/notation.md "collision") are;
# 2. whether items under one [prefix](../book/notation.md) belong together, against chance and against controls;
# 3. what a prefix looks like;
# 4. whether another seed would have found the same groups;
# 5. what more [levels](../book/notation.md "level") and larger [codebooks](../book/notation.md "codebook") buy;
# 6. how new items get an ID without retraining, and when the codebooks are out of date.
#
# | | |
# | --- | --- |
# | reads | `embeddings` (chapter 01), `semantic_ids` (chapter 02) |
# | writes | result rows |
# | runs in | under a minute at `smoke`; a minute or two at `laptop` |

# %% tags=["parameters"]
DATA = "demo"  # or a folder with items.jsonl and, perhaps, sequences.tsv
SCALE = "laptop"  # smoke, laptop or full
SEED = 0

# %%
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from semid_lib.data import dataset
from semid_lib.decoding import trie
from semid_lib.evaluation import plotting
from semid_lib.ids import (
    assignment,
    codebooks,
    control_codes,
    embed,
    quantize,
)
from semid_lib.workbench import scale, store
from semid_lib.workbench.text import one_line

plotting.use()
clock = store.Clock()
shop = dataset.load(DATA)
sizes = scale.get(SCALE)
shelf = store.Store(shop.name, SCALE, shop.fingerprint)
vectors = embed.normalize(shelf.load("embeddings")["vectors"])
saved = shelf.load("semantic_ids")
K, n_levels = saved.facts["codebook_size"], saved.facts["n_levels"]
title = shop.items["title"]
print(shelf.origin())
if len(vectors) < 100:
    print(f"{len(vectors)} items are too few to judge codes: that takes 100")

# %%
labels = {"leaf category": dataset.leaf_categories(shop.items)}
labels["brand"] = shop.items.get("brand", pd.Series([""] * len(shop.items)))
kind = max(labels, key=lambda name: (labels[name] != "").sum())  # the fuller column
label = labels[kind].to_numpy()
known = label != ""

# %% [markdown]
# Two controls stand beside the learned codes. *Random codes* have every property of an ID but meaning. The *category
# tree* takes the shop's own labels, such as categories, as the first code and clusters the vectors below them, so it
# knows what the others must find out; it needs labels, which a catalogue may not have.

# %%
methods = {
    "residual k-means": saved["kmeans_codes"],
    "RQ-VAE": saved["rqvae_codes"],
    "random codes": control_codes.random_codes(len(vectors), n_levels, K, SEED),
}
if known.mean() > 0.5:
    methods["category tree"] = control_codes.category_codes(
        vectors, label.tolist(), n_levels, K, seed=SEED
    )
COLOURS = {
    "residual k-means": "tab:blue",
    "RQ-VAE": "tab:green",
    "random codes": "tab:grey",
    "category tree": "tab:purple",
}

# %% [markdown]
# ## 1. Are the codes used?

# %%
used = {}
for name, codes in methods.items():
    room = max(K, int(codes.max()) + 1)
    used[name] = {
        **{
            f"utilization {level}": u
            for level, u in enumerate(codebooks.utilization(codes, room))
        },
        **{
            f"perplexity {level}": p
            for level, p in enumerate(codebooks.perplexity(codes, room))
        },
        "collision rate": codebooks.collision_rate(codes),
    }
pd.DataFrame(used).T.round(3)

# %% tags=["hide-input"] mystnb={"image": {"alt": "A panel per level: items per code for each method, codes sorted from most to least used; a dashed line marks the even share, random codes stay nearest to it."}}
figure, axes = plt.subplots(
    1, n_levels, figsize=(10, 3.2), layout="constrained", squeeze=False
)
for level, axis in enumerate(axes[0]):
    for name, codes in methods.items():
        counts = np.sort(np.bincount(codes[:, level], minlength=K))[::-1]
        axis.plot(np.arange(1, len(counts) + 1), counts, color=COLOURS[name], label=name)
    axis.axhline(len(vectors) / K, color="black", linestyle="--", linewidth=1)
    axis.set(title=f"level {level}", xlabel="codes, most used first", yscale="symlog")
    axis.set_ylim(bottom=0)
axes[0, 0].set_ylabel("items")
axes[0, -1].legend(frameon=False, fontsize=8)
plt.show()

# %% [markdown]
# *Figure 1.* Items per code. The dashed line is the even share; a curve that reaches the bottom before the right edge
# has [dead codes](../book/notation.md "dead code"). The category tree has them by design: under a label it spends only
# as many codes as the items there need. Random codes are as even as chance allows, so even use is no merit by itself:
# it is a condition.

# %% tags=["hide-input"] mystnb={"image": {"alt": "Bars for each method: how many semantic IDs are carried by one item, by two, by three and so on, on a logarithmic axis, falling quickly."}}
figure, axis = plt.subplots(figsize=(8, 3.2), layout="constrained")
for at, (name, codes) in enumerate(methods.items()):
    groups = codebooks.collision_sizes(codes)[1:]
    place = np.arange(1, len(groups) + 1) + 0.18 * (at - 1.5)
    axis.bar(place, groups, width=0.18, color=COLOURS[name], label=name)
axis.set(
    xlabel="items that share all codes",
    ylabel="semantic IDs",
    yscale="log",
    xlim=(0.4, 12.6),
    xticks=range(1, 13),
)
axis.set_ylim(bottom=0.5)  # so that a single ID still shows
axis.legend(frameon=False)
plt.show()

# %% [markdown]
# *Figure 2.* Collisions before anything is done about them (groups of more than 12 are not shown). Random codes collide
# by chance only. Where learned codes collide more, that is the price of meaning: similar items come together.

# %% [markdown]
# ## 2. Do prefixes mean anything?
#
# *[Purity](../book/notation.md "purity")*: of all pairs of items under one prefix, the share that has the same label.
# In a shop with one large category that share is high for any codes, so what chance would give is taken out, as in
# [(Hubert and Arabie, 1985)](../book/references.bib "hubert1985"):
#
# $$ \text{purity} = \frac{\text{observed} - \text{expected}}{1 - \text{expected}} , $$ (eq-purity)
#
# It is 0 for codes that know nothing of the label, and 1 if every prefix holds one label only. Its 95%
# [interval](../book/notation.md), in square brackets below, resamples prefixes and not pairs, since pairs under one
# prefix share their items. By hand: the prefixes 0, 0, 1, 1 on the labels a, a, b, b are pure:

# %%
codebooks.prefix_purity(
    np.array([[0], [0], [1], [1]]), np.array(["a", "a", "b", "b"])
).adjusted

# %%
purity = {
    name: [
        codebooks.prefix_purity(codes[known, :depth], label[known])
        for depth in range(1, n_levels)
    ]
    for name, codes in methods.items()
}
shown = {
    name: [f"{p.adjusted:.3f} [{p.low:.3f}, {p.high:.3f}]" for p in values]
    for name, values in purity.items()
}
print(
    f"purity in {kind}, by chance {purity['residual k-means'][0].expected:.3f} before adjusting"
)
pd.DataFrame(
    shown, index=[f"{depth} code{'s'[: depth > 1]}" for depth in range(1, n_levels)]
).T

# %% [markdown]
# A category tree has the labels as its first code, so its purity is high by construction. Compare the learned codes with
# random ones: purity above theirs was found from text alone.
#
# *Neighbour preservation* needs no labels: of an item's ten nearest neighbours among the vectors (or all, if there are
# fewer), what share lies under its prefix?

# %%
n_near = min(10, len(vectors) - 1)
kept = {
    name: codebooks.neighbour_preservation(vectors, codes, n_near, 2000, SEED)
    for name, codes in methods.items()
}

# %% tags=["hide-input"] mystnb={"image": {"alt": "Share of the ten nearest neighbours under the same prefix against the number of its codes, falling, a line per method and its share by chance dotted, on a logarithmic axis; random codes lie near their dotted line."}}
figure, axis = plt.subplots(figsize=(7, 3.6), layout="constrained")
depths = np.arange(1, n_levels + 1)
for name, preserved in kept.items():
    axis.plot(depths, preserved.share, "o-", color=COLOURS[name], label=name)
    axis.plot(depths, preserved.by_chance, ":", color=COLOURS[name])
axis.set(
    xlabel="codes of the prefix",
    ylabel=f"share of {n_near} nearest neighbours",
    xticks=depths,
)
axis.set(yscale="symlog", ylim=(0, 1.1))
axis.set_yscale("symlog", linthresh=1e-3)
axis.legend(frameon=False)
plt.show()

# %% [markdown]
# *Figure 3.* Neighbours kept under the prefix; dotted, the share of all items there, which is what chance would keep.
# The lines must fall, since a long prefix has no room for ten neighbours: compare methods at one length, and each with
# its own dotted line. The scale is logarithmic down to .001 and linear below, so that 0 can be shown.

# %% [markdown]
# ## 3. What a prefix looks like
#
# One first code with the items under it: the tree that a model walks when it writes an ID.

# %%
codes = saved["codes"]
items_per_code = np.bincount(codes[:, 0], minlength=K)
first = int(np.argsort(items_per_code)[K // 2])  # of middling size, not a chosen one
under = pd.DataFrame(codes[codes[:, 0] == first]).assign(
    title=title[codes[:, 0] == first].to_numpy()
)
print(f"{first}  ({len(under)} items)")
for second, branch in list(under.groupby(1))[:6]:
    print(f" ├─ {second}")
    for row in branch.head(3).itertuples(index=False):
        print(f" │   ├─ {row[2]}  {one_line(row.title, 70)}")
    if len(branch) > 3:
        print(f" │   └─ and {len(branch) - 3} more")

# %%
chosen = np.random.default_rng(SEED).permutation(len(vectors))[: sizes.map_items]
places, method = plotting.map_2d(vectors[chosen], SEED)

# %% tags=["hide-input"] mystnb={"image": {"alt": "The same map of items twice, as dots: on the left coloured by the ten largest first codes, on the right by the ten largest labels; regions of one colour mostly coincide."}}
figure, axes = plt.subplots(1, 2, figsize=(10, 4.6), layout="constrained")
largest = pd.Series(label[known]).value_counts().index[:10]
largest_codes = np.argsort(items_per_code)[::-1][:10]
groups = {
    f"the {len(largest_codes)} largest first codes": (codes[chosen, 0], largest_codes),
    f"the {len(largest)} largest: {kind}": (label[chosen], largest),
}
for axis, (name, (group, members)) in zip(axes, groups.items(), strict=True):
    plotting.draw_map(axis, places, group, members, method)
    axis.set(title=name)
plt.show()

# %% [markdown]
# *Figure 4.* One map of the items, as in chapter 01, coloured by the first code (left) and by the shop's own labels
# (right). Colours are not matched between the two; look whether regions of one colour coincide.

# %% [markdown]
# ## 4. Would another seed find the same groups?
#
# K-means starts from random centres, so another seed gives other codes. Does it give other groups? The *adjusted mutual
# information* of the prefixes of two runs is 1 if they group the items alike, whatever the codes are called, and 0 if
# they have no more in common than chance.

# %%
iterations = sizes.kmeans_iterations
others = [
    quantize.fit_residual_kmeans(vectors, n_levels, K, iterations, SEED + s).codes
    for s in (1, 2)
]
stability = [codebooks.prefix_stability(saved["kmeans_codes"], other) for other in others]
names = [f"{depth} code{'s'[: depth > 1]}" for depth in range(1, n_levels + 1)]
pd.DataFrame(stability, index=["seed + 1", "seed + 2"], columns=names).round(3)

# %% [markdown]
# Usually it falls with the length of the prefix: first codes are found again more often than last ones, which are one
# choice among many. And even equal groups have other numbers, so a model trained on one run's IDs cannot be used with another's.

# %% [markdown]
# ## 5. More levels, larger codebooks
#
# $L$ levels of $K$ codes take $L \log_2 K$ bits. Are they better spent on more levels or on larger codebooks?

# %%
sweep = {}
for size in sorted({min(K, max(4, K // 4)), min(K, max(4, K // 2)), K}):
    fitted = quantize.fit_residual_kmeans(vectors, n_levels + 1, size, iterations, SEED)
    sweep[size] = codebooks.distortion_per_level(vectors, fitted.codes, fitted.decode)

# %% tags=["hide-input"] mystnb={"image": {"alt": "Distortion against bits per item, falling, one line per codebook size with a point for each level."}}
figure, axis = plt.subplots(figsize=(7, 3.6), layout="constrained")
for size, distortion in sweep.items():
    bits = np.log2(size) * np.arange(1, len(distortion) + 1)
    axis.plot(bits, distortion, "o-", label=f"{size} codes a level")
axis.set(
    xlabel="bits per item (levels x log2 of the codebook size)",
    ylabel="distortion",
    ylim=0,
)
axis.legend(frameon=False)
plt.show()

# %% [markdown]
# *Figure 5.* What an ID leaves unexplained, against its length in bits; a point is a level. Where the line of a larger
# codebook lies below the others, the same bits are better spent on it than on more levels; where lines lie together it
# does not matter, and fewer levels are shorter to generate. The price of a larger codebook does not show here: fewer
# items share a code, so a model sees each code less often.

# %% [markdown]
# ## 6. New items
#
# A tenth of the catalogue plays the items that arrive later: codebooks are fitted on the rest and stay frozen, each new
# item is encoded with them and gets the nearest ID that is free.

# %%
arrival = np.random.default_rng(SEED).permutation(len(vectors))
late, early = arrival[: len(arrival) // 10], arrival[len(arrival) // 10 :]
if len(np.unique(vectors[early], axis=0)) < quantize.MIN_ITEMS:
    late, early = arrival[:0], arrival  # too few to hold one back
frozen = quantize.fit_residual_kmeans(vectors[early], n_levels, K, iterations, SEED)
before, _ = assignment.resolve_collisions(frozen.codes, vectors[early], frozen)
after, added = assignment.add_items(before, vectors[late], frozen)
assert (after.unique[: len(before)] == before.unique).all()  # no old ID has changed
prefix_tree = trie.PrefixTrie.build(after.unique)
print(added)
print(f"the trie now leads to {prefix_tree.n_items:,} items, {len(late):,} of them new")

# %% [markdown]
# In the report, items *at nearest* have just the codes that the codebooks give them, the others moved to a free last
# code, and those *left over* found none and would need a longer ID than the model was made for.
#
# Are the codebooks still right for what arrives? The [drift](../book/notation.md) report compares the squared errors of
# the new items with those of the old: first for this random tenth, then for the largest label as if it had not existed
# before. It tells the ratio of the means, the share of new items above the 95th percentile of the old ones, and how far
# the two distributions lie apart (`ks`: 0 for the same, 1 for no overlap).

# %%
training_errors = codebooks.squared_errors(vectors[early], frozen.decode(frozen.codes))
arrived = frozen.decode(frozen.encode(vectors[late]))
drift = {
    "a random tenth": codebooks.drift(
        training_errors, codebooks.squared_errors(vectors[late], arrived)
    )
}
strange = label == largest[0] if len(largest) else np.zeros(len(label), bool)
if 30 <= strange.sum() < len(vectors) - K:
    old = quantize.fit_residual_kmeans(vectors[~strange], n_levels, K, iterations, SEED)
    old_errors = codebooks.squared_errors(vectors[~strange], old.decode(old.codes))
    new_errors = codebooks.squared_errors(
        vectors[strange], old.decode(old.encode(vectors[strange]))
    )
    drift[f"all of {one_line(largest[0], 40)}"] = codebooks.drift(old_errors, new_errors)
for name, report in drift.items():
    print(f"{name}: {report.advice}")
pd.DataFrame({name: report._asdict() for name, report in drift.items()}).T.drop(
    columns="advice"
)

# %% [markdown]
# Codebooks always fit their own items best, so the ratio of a random tenth is above 1 without any drift; the limits of
# the rule allow for that. A refit gives all items new IDs, and the model has to be trained again: hence a rule and no
# habit.

# %% [markdown]
# ## Summary

# %%
figures = {
    "purity_first_code": purity["residual k-means"][0].adjusted,
    "rqvae_purity_first_code": purity["RQ-VAE"][0].adjusted,
    "random_purity_first_code": purity["random codes"][0].adjusted,
    "neighbours_first_code": kept["residual k-means"].share[0],
    "neighbours_first_code_by_chance": kept["residual k-means"].by_chance[0],
    "stability_first_code": stability[0][0],
    "new_items_left_over": added.left_over,
    "drift_of_random_items": drift["a random tenth"].ratio,
}
rows = [
    {"key": f"codebooks/{name}", "value": round(float(value), 6), "seed": SEED}
    for name, value in figures.items()
    if np.isfinite(value)
]
shelf.record(
    "03_codebook_analysis",
    [*rows, {"key": "codebooks/seconds", "value": round(clock.seconds, 1)}],
)
pd.Series(figures, name="value").to_frame().round(3)

# %% [markdown]
# **What this does not show.** That prefixes mean something to a shopper: labels and neighbours are the catalogue's own
# view. Whether the IDs help a model is for chapter 07 to say.
#
# **Next:** [the queries that a shopper would ask](04_synthetic_queries.ipynb); or, for a shop with
# [histories](../book/notation.md "history"), [a model that writes these IDs](07_next_item.ipynb) against baselines that
# only count.
