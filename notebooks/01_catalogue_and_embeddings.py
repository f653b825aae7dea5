# %% [markdown]
# # Catalogue and embeddings: what does a text embedding keep of an item?
#
# A catalogue, and the [histories](../book/notation.md "history") of its users if there are any, are the input of every
# chapter. This one shows both. It then asks whether the vectors that a small language model makes of the items' texts
# bring similar items together.
#
# **What you will learn**
#
# 1. what a catalogue contains, and what to check before you trust it;
# 2. how uneven histories are, and why that affects every later number;
# 3. how a text becomes a vector, and what to check about the vectors;
# 4. whether close vectors mean similar items, and how much of that is chance.
#
# | | |
# | --- | --- |
# | reads | the data set `DATA` |
# | writes | `embeddings`: one text vector per item |
# | runs in | a minute or two at `smoke` and at `laptop`, once: vectors are cached |

# %% tags=["parameters"]
DATA = "demo"  # or a folder with items.jsonl and, optionally, sequences.tsv
SCALE = "laptop"  # smoke, laptop or full
SEED = 0
EMBEDDER = "all-MiniLM-L6-v2"  # of sentence-transformers, or a path

# %%
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from sklearn.neighbors import NearestNeighbors

from semid_lib.data import dataset
from semid_lib.evaluation import figures_data, plotting
from semid_lib.ids import embed
from semid_lib.workbench import scale, store, workers
from semid_lib.workbench.text import one_line

plotting.use()
timer = store.Timer()
shop = dataset.load(DATA)
sizes = scale.get(SCALE)
results = store.Store(shop.name, SCALE, shop.fingerprint)
print(results.origin())
if len(shop.items) < 100:
    print(f"{len(shop.items)} items: too few to judge an embedding, use 100")

# %% [markdown]
# ## 1. The catalogue
#
# A data set is one folder with an item table and, optionally, histories and queries. Loading checks every line: bad
# input is an error that names file, line and value. Input that is merely odd, such as an empty title, is kept and
# counted here.

# %%
counts = pd.DataFrame({"count": shop.counts})
counts.rename(lambda name: name.removeprefix("n_").replace("_", " "))

# %%
names = ("title", "brand", "categories", "description")
columns = [name for name in names if name in shop.items]
some = shop.items[columns].sample(min(6, len(shop.items)), random_state=SEED)
if "categories" in some:
    lists = some["categories"]
    paths = [", ".join(" > ".join(path) for path in item) for item in lists]
    some = some.assign(categories=paths)
some

# %% [markdown]
# Read a few rows before you train anything. Real catalogues repeat titles, leave descriptions empty or fill them with
# markup, and put half of the shop under one category. Training runs all the same, and the damage shows later, in
# numbers that are hard to explain. Categories are paths from the general to the specific. The figure counts the last
# name of each path, the *leaf category*.

# %%
labels = {
    "leaf category": dataset.leaf_categories(shop.items),
    "brand": shop.items.get("brand", pd.Series([""] * len(shop.items))),
}

# %% tags=["hide-input"] mystnb={"image": {"alt": "Two bar charts of the number of items, largest first: on the left by leaf category, on the right by brand."}}
figure, note = figures_data.label_counts(labels)
plt.show()
print(note, end="")

# %% [markdown]
# *Figure 1.* Items by leaf category and by brand, the largest first. If the bars shrink slowly, no label dominates. A
# single bar "(none)" means that the catalogue has no such labels.

# %% [markdown]
# ## 2. The histories
#
# A history is the list of items that one user bought or rated, in time order. Each entry is an *interaction*. Two
# properties of histories limit what any model can do with them: their length, and how unevenly interactions are spread
# over items.

# %%
if shop.histories is None:
    print(f"{shop.name} has no histories: nothing to show in this section")
else:
    lengths = shop.histories.lengths
    per_item = np.bincount(shop.histories.items, minlength=len(shop.items))
    popularity = np.sort(per_item)[::-1]
    share = np.cumsum(popularity) / popularity.sum()
    print(f"median length of a history: {np.median(lengths):.0f} interactions")
    print(f"longest history: {lengths.max()} interactions")
    top_tenth = share[len(share) // 10]
    print(f"interactions with the most popular tenth: {top_tenth:.0%}")

# %% tags=["hide-input"] mystnb={"image": {"alt": "Left: histogram of the lengths of histories. Right: interactions of an item against its rank by popularity, falling, both axes logarithmic."}}
if shop.histories is not None:
    figures_data.history_lengths(lengths, popularity)
    plt.show()

# %% [markdown]
# *Figure 2.* Lengths of histories, and interactions of an item by its rank. A long tail of items with a handful of
# interactions is the rule. A model that memorizes items learns little about the tail, although these items have texts
# like all others. This is the case for [semantic IDs](../book/notation.md "semantic ID"), which come from the texts.

# %% [markdown]
# ## 3. From text to vector
#
# Title, brand, leaf category and description of an item are joined to one text. A small transformer turns each of its
# $T$ word pieces into a vector $u_t \in \mathbb{R}^d$. Their mean is the
# [embedding](../book/notation.md "text embedding") of the item [(Reimers and Gurevych,
# 2019)](../book/references.bib "reimers2019"):
#
# $$ x = \frac{1}{T} \sum_{t=1}^{T} u_t, \qquad \cos(x, y) = \frac{x^\top y}{\lVert x \rVert \, \lVert y \rVert} . $$ (eq-embedding)
#
# The similarity of two items is the cosine of their embeddings, which depends on their directions only. You can check
# this toy case by hand: the first two vectors have the same direction and different lengths, so their cosine is 1. The
# third is at a right angle to both, so its cosine with them is 0.

# %%
toy = embed.normalize(np.array([[3.0, 4.0], [6.0, 8.0], [-4.0, 3.0]]))
(toy @ toy.T).round(2)

# %% [markdown]
# Now the catalogue. The model is a parameter of this page. The weights of the default model come in a pip package, so
# that no network is needed, and vectors are cached by text and model.

# %%
texts = embed.item_texts(shop.items, sizes.text_characters)
run = workers.chosen()  # in this process, unless SEMID_WORKERS says otherwise
cache = results.cache("embeddings")
vectors = embed.embed(texts, EMBEDDER, cache=cache, progress=True, run=run)
unit = embed.normalize(vectors)
print(texts[0])
print(f"{len(vectors):,} vectors of {vectors.shape[1]} numbers")

# %%
facts = embed.statistics(vectors, texts)
values = [f"{v:,}" if v == int(v) else f"{v:.3f}" for v in facts.values()]
pd.DataFrame({"value": values}, [name.replace("_", " ") for name in facts])

# %% [markdown]
# The mean cosine is the mean over all pairs of items. A mean of 0 would say that two random items look unrelated to the
# model. The texts of one shop share a subject, so the mean is above 0: compare a cosine with this mean, never with 0.
# Items with duplicate vectors are the same to every method based on text. They will share a semantic ID in the next
# chapter, whatever the method.

# %% [markdown]
# ## 4. Are close vectors similar items?
#
# First by eye: three random items, each with its three nearest neighbours and their cosines.

# %%
n_neighbours = min(10, len(unit) - 1)
distance = near = np.empty((len(unit), 0), dtype=int)
if n_neighbours:
    neighbours = NearestNeighbors(n_neighbors=n_neighbours, metric="cosine")
    distance, near = neighbours.fit(unit).kneighbors()  # without the item
rng = np.random.default_rng(SEED)
chosen = rng.choice(len(unit), min(3, len(unit)), replace=False)
for row in chosen:
    print(one_line(shop.items["title"][row]))
    for other, apart in zip(near[row, :3], distance[row, :3], strict=True):
        print(f"    {1 - apart:.2f}  {one_line(shop.items['title'][other])}")

# %% [markdown]
# Then as a number. If the embedding keeps what an item *is*, its nearest neighbours should share its category. In a
# shop with half of its items in one category, random items would share it half of the time, too. So we compare the
# share among neighbours with the share among random pairs.

# %%
rng = np.random.default_rng(SEED)
random_items = rng.integers(len(unit), size=near.shape)
agreement = {}
for name, column in labels.items():
    values = column.to_numpy()
    known = values != ""
    if known.any() and n_neighbours:
        same = {"neighbours": near, "random pairs": random_items}
        agreement[name] = {
            pair: (values[others[known]] == values[known, None]).mean()
            for pair, others in same.items()
        }
pd.DataFrame(agreement).T.map("{:.1%}".format)

# %% [markdown]
# The map shows the same by eye. UMAP [(McInnes et al., 2018)](../book/references.bib "mcinnes2018") places items with
# close vectors close to each other on paper. It keeps neighbourhoods, not distances: neither the size of a cluster nor
# the gap between two clusters means anything.

# %%
chosen = rng.permutation(len(unit))[: sizes.map_items]
places, method = plotting.map_2d(unit[chosen], SEED)
kind = max(labels, key=lambda name: (labels[name] != "").sum())  # the fuller
groups = labels[kind].to_numpy()[chosen]
largest = labels[kind].value_counts().index[:9]
if method != "UMAP":
    print(f"too few different texts for UMAP: this map is by {method}")

# %% tags=["hide-input"] mystnb={"image": {"alt": "Map of the items as dots in two dimensions, coloured by the nine largest categories or brands; dots of one colour mostly lie together."}}
figure, note = figures_data.item_map(places, groups, largest, method, kind)
plt.show()
print(note, end="")

# %% [markdown]
# *Figure 3.* Items close to each other have similar texts. The colours are the nine largest categories, or brands if
# there are no categories. Where a colour forms a region, items that the shop groups together have similar texts. Brand
# and leaf category are part of the text, which helps.

# %% [markdown]
# ## Summary
#
# The next chapter reads the vectors as the model gives them. To compute cosines, normalize them to length 1.

# %%
about = {"embedder": EMBEDDER, "statistics": facts}
results.save("embeddings", {"vectors": vectors}, **about)
rows = [
    {
        "key": f"embeddings/{kind}/{pair}".replace(" ", "_"),
        "value": round(float(value), 6),
        "seed": SEED,
    }
    for kind, pairs in agreement.items()
    for pair, value in pairs.items()
]
seconds = round(timer.seconds, 1)
rows += [{"key": "embeddings/items", "value": len(unit), "seconds": seconds}]
results.record("01_catalogue_and_embeddings", rows)
print(f"{len(unit):,} items, {vectors.shape[1]} dimensions, {seconds:.0f} s")
for kind, pairs in agreement.items():
    near, by_chance = pairs["neighbours"], pairs["random pairs"]
    print(f"{kind} of {n_neighbours} nearest neighbours: {near:.0%} agree,")
    print(f"    {by_chance:.0%} by chance")

# %% [markdown]
# **What the embedding does not keep.** The model was trained on general English. It knows what a lipstick is, but not
# who buys it, and details that matter to a shopper (a shade, a size) barely move the vector. Chapter 07 shows what
# histories add.
#
# **Next:** [from vectors to short tuples of codes](02_semantic_ids.ipynb).
