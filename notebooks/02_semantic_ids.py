# %% [markdown]
# # How does an item become a short tuple of codes?
#
# A language model writes tokens, and a catalogue has too many items for one token each to be learned. A *semantic ID*
# names an item by a few codes, coarse to fine, so that similar items share their first codes. How are such codes found,
# and what is lost on the way?
#
# **What you will learn**
#
# 1. residual k-means by hand, and that the library does the same;
# 2. how many codes the catalogue needs, and whether they are used;
# 3. whether a shared prefix means anything, against chance;
# 4. what to do when two items get the same codes;
# 5. the prefix trie, which lets a model write only IDs that exist.
#
# | | |
# | --- | --- |
# | reads | `embeddings` (chapter 01) |
# | writes | `semantic_ids`: codes, disambiguation codes and codebooks |
# | runs in | seconds at `smoke`; under a minute at `laptop` |

# %% tags=["parameters"]
DATA = "demo"  # or a folder with items.jsonl and, perhaps, sequences.tsv
SCALE = "laptop"  # smoke, laptop or full
SEED = 0
N_LEVELS = 3
CODEBOOK_SIZE = None  # None: by the size of the catalogue, see section 2

# %%
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from semid_lib import codebooks, data, embed, quantize, scale, semantic_ids, store, trie

clock = store.Clock()
shop = data.load(DATA)
sizes = scale.get(SCALE)
shelf = store.Store(shop.name, SCALE, shop.fingerprint)
vectors = embed.normalize(shelf.load("embeddings")["vectors"])
print(shelf.origin())

# %% [markdown]
# ## 1. Residual k-means
#
# The first level clusters the vectors. What a vector's cluster centre does not explain is its residual; the second
# level clusters the residuals, and so on {cite}`zeghidour2021`. With $r_0 = x$, at each level $l$
#
# $$ c_l = \arg\min_{k} \lVert r_l - e_{l,k} \rVert^2, \qquad r_{l+1} = r_l - e_{l, c_l}, \qquad \hat{x} = \sum_{l} e_{l, c_l} , $$ (eq-residual)
#
# where $e_{l,k}$ is codeword $k$ of level $l$. The semantic ID of the item is $(c_0, c_1, \dots)$. In code, with the
# codewords given:


# %%
def encode_by_hand(vectors, levels):
    residual, codes = vectors.copy(), []
    for codebook in levels:
        squared_distance = ((residual[:, None] - codebook[None]) ** 2).sum(axis=-1)
        codes.append(squared_distance.argmin(axis=1))
        residual = residual - codebook[codes[-1]]
    return np.stack(codes, axis=1)


# %% [markdown]
# Four points on a line, two codewords a level. The first level says "near 0.5" or "near 10.5", the second "a little
# less" or "a little more"; together they hit every point.

# %%
points = np.array([[0.0], [1.0], [10.0], [11.0]])
levels = np.array([[[0.5], [10.5]], [[-0.5], [0.5]]])
by_hand = encode_by_hand(points, levels)
print(by_hand.tolist(), quantize.decode(by_hand, levels).ravel())
assert (by_hand == quantize.encode(points, levels)).all()  # the library does the same

# %% [markdown]
# ## 2. How many codes?
#
# $L$ levels of $K$ codes name $K^L$ items, so even small codebooks give far more IDs than items; most of that room must
# stay empty if prefixes are to mean something. As a rule the first two levels should have about two prefixes per item,
# $K^2 \approx 2n$, with $K$ a power of two.

# %%
codebook_size = CODEBOOK_SIZE or quantize.suggest_codebook_size(len(vectors))
codes, levels = quantize.fit_residual_kmeans(
    vectors, N_LEVELS, codebook_size, sizes.kmeans_iterations, SEED, progress=True
)
for row in range(3):
    print(tuple(codes[row].tolist()), shop.items["title"][row][:80])

# %% [markdown]
# Each level should bring the reconstruction nearer, and should use all of its codes about equally. *Utilization* is the
# share of codes that any item carries; *perplexity* is the number of equally used codes that would be as diverse.

# %%
spread = codebooks.distortion(vectors, vectors.mean(axis=0))
quality = pd.DataFrame(
    {
        "distortion": [
            codebooks.distortion(vectors, quantize.decode(codes[:, :depth], levels))
            for depth in range(1, N_LEVELS + 1)
        ],
        "utilization": codebooks.utilization(codes, codebook_size),
        "perplexity": codebooks.perplexity(codes, codebook_size),
    },
    index=pd.RangeIndex(N_LEVELS, name="level"),
)
quality.assign(explained=1 - quality["distortion"] / spread).round(3)

# %% tags=["hide-input"] mystnb={"image": {"alt": "Per level, the number of items carrying each code, codes sorted from most to least used, with a dashed line where all would be equal."}}
items_per_code = codebooks.code_counts(codes, codebook_size)
figure, axes = plt.subplots(
    1, N_LEVELS, figsize=(10, 3), sharey=True, layout="constrained", squeeze=False
)
for level, axis in enumerate(axes[0]):
    axis.bar(np.arange(codebook_size), np.sort(items_per_code[level])[::-1], width=1)
    axis.axhline(len(codes) / codebook_size, color="black", linestyle="--", linewidth=1)
    axis.set(title=f"level {level}", xlabel="codes, most used first")
axes[0, 0].set_ylabel("items")
plt.show()

# %% [markdown]
# *Figure 1.* How many items carry each code. The dashed line is the even share. A level that ends long before the
# right edge has dead codes; k-means places each codeword on items, so it rarely has any. An RQ-VAE, which learns codes
# and encoder together, often does.

# %% [markdown]
# ## 3. Does a prefix mean anything?
#
# Look first: some items under one code of level 0, in the order of their second code.

# %%
prefix = np.argsort(items_per_code[0])[
    codebook_size // 2
]  # of middling size, not a chosen one
under = np.flatnonzero(codes[:, 0] == prefix)
under = under[np.lexsort(codes[under, 1:].T[::-1])][:10]
for row in under:
    print(str(tuple(codes[row].tolist())).ljust(16), shop.items["title"][row][:70])
print("as tokens of a language model:", semantic_ids.to_tokens(codes[row : row + 1])[0])

# %% [markdown]
# Then a number. Take two items that share a prefix: how often do they share their leaf category (or their brand, where
# there are no categories)? Chance is not zero here, since popular categories agree with themselves; so the same is
# computed after shuffling the labels over the items, which keeps every group's size.

# %%
kind, labels = "leaf category", data.leaf_categories(shop.items).to_numpy()
if not labels.astype(bool).any() and "brand" in shop.items:
    kind, labels = "brand", shop.items["brand"].to_numpy()
shuffled = np.random.default_rng(SEED).permutation(labels)
purity = pd.DataFrame(
    {
        name: [
            codebooks.pair_agreement(codes[:, :depth], values)
            for depth in range(1, N_LEVELS + 1)
        ]
        for name, values in {"semantic IDs": labels, "shuffled labels": shuffled}.items()
    },
    index=[f"{depth} code{'s' if depth > 1 else ''}" for depth in range(1, N_LEVELS + 1)],
)
print(f"share of item pairs under a shared prefix that agree on their {kind}")
purity.map("{:.1%}".format)

# %% [markdown]
# ## 4. Collisions
#
# Items whose vectors are close may get the same codes. The *collision rate* is one minus the share of distinct IDs over
# the whole catalogue. A model that writes a shared ID has not said which item it means, so collisions must be resolved
# before anything is measured: here a last *disambiguation code* numbers the items under each ID, as in TIGER
# {cite}`rajput2023`. It carries no meaning, which is why it is never counted as a level.

# %%
ids = semantic_ids.SemanticIDs.from_codes(codes, codebook_size)
_, group, group_sizes = np.unique(codes, axis=0, return_inverse=True, return_counts=True)
print(
    f"collision rate {codebooks.collision_rate(codes):.1%}, largest group {group_sizes.max()} items"
)
for row in np.flatnonzero(group == group_sizes.argmax())[:5]:
    print(tuple(ids.unique[row].tolist()), shop.items["title"][row][:80])

# %% tags=["hide-input"] mystnb={"image": {"alt": "Bar chart on a logarithmic axis: how many semantic IDs are shared by one, two, three and more items."}}
figure, axis = plt.subplots(figsize=(6, 3), layout="constrained")
how_many = np.bincount(group_sizes)[1:]
axis.bar(np.arange(1, len(how_many) + 1), how_many, color="tab:blue")
axis.set(xlabel="items that share one semantic ID", ylabel="semantic IDs", yscale="log")
axis.xaxis.get_major_locator().set_params(integer=True)
plt.show()

# %% [markdown]
# *Figure 2.* Most IDs belong to one item; the right tail is mostly one product in several shades and sizes, which the
# text hardly tells apart.

# %% [markdown]
# ## 5. The prefix trie
#
# All IDs form a tree: the children of a prefix are the codes that may follow it. A model that only ever picks among
# children writes an existing item, always. Six IDs, small enough to draw:
#
# ```text
# root ─┬─ 0 ─┬─ 1   item 3
#       │     └─ 4   item 0
#       ├─ 2 ─── 2   item 5
#       └─ 5 ─┬─ 0   item 1
#             ├─ 1   item 4
#             └─ 3   item 2
# ```

# %%
six = trie.PrefixTrie.build(np.array([[0, 4], [5, 0], [5, 3], [0, 1], [5, 1], [2, 2]]))
print("from the root:", six.children(0, 0))  # code -> node
print("after code 5: ", six.children(1, six.children(0, 0)[5]))
print("items by leaf:", six.item.tolist())

# %% [markdown]
# And the catalogue's own. The number of children shrinks from level to level: after two codes only a few remain, and a
# free model would have to hit one of them among all codes.

# %%
tree = trie.PrefixTrie.build(ids.unique)
shape = pd.DataFrame(
    {
        "nodes": [len(starts) - 1 for starts in tree.child_start],
        "children on average": [
            float(starts.diff().float().mean()) for starts in tree.child_start
        ],
        "children at most": [int(starts.diff().max()) for starts in tree.child_start],
        "codes of the level": ids.sizes,
    },
    index=pd.RangeIndex(tree.n_levels, name="codes so far"),
)
shape.round(1)

# %%
rng = np.random.default_rng(SEED)
drawn = pd.DataFrame(
    {level: rng.integers(size, size=100_000) for level, size in enumerate(ids.sizes)}
)
chance = len(drawn.merge(pd.DataFrame(ids.unique))) / len(drawn)
print(f"codes drawn at random name an item in {chance:.4%} of the cases")
print("codes drawn along the trie: always")

# %% [markdown]
# ## Summary

# %%
facts = {
    "n_levels": N_LEVELS,
    "codebook_size": codebook_size,
    "seed": SEED,
    "method": "residual k-means",
}
arrays = {
    "codes": ids.codes,
    "disambiguation_code": ids.disambiguation_code,
    "codebooks": levels,
}
shelf.save("semantic_ids", arrays, **facts)
figures = {
    "collision_rate": codebooks.collision_rate(codes),
    "distortion": quality["distortion"].iloc[-1],
    "utilization_min": quality["utilization"].min(),
    "purity_first_code": purity.iloc[0, 0],
    "purity_first_code_by_chance": purity.iloc[0, 1],
}
rows = [
    {"key": f"semantic_ids/{k}", "value": round(float(v), 6), "seed": SEED}
    for k, v in figures.items()
]
shelf.record(
    "02_semantic_ids",
    [*rows, {"key": "semantic_ids/seconds", "value": round(clock.seconds, 1)}],
)
print(
    f"{len(ids):,} items as {N_LEVELS} codes of {codebook_size}, in {clock.seconds:.0f} s"
)
pd.Series(figures, name="value").to_frame().round(3)

# %% [markdown]
# **What did not work.** The disambiguation code is a makeshift: it makes the ID longer for every item because a few
# need it, and a model can only learn it by heart.
#
# **Next:** [a model that writes these IDs](07_next_item), against baselines that only count.
