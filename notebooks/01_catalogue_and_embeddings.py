# %% [markdown]
# # Catalogue and embeddings: what does a text embedding keep of an item?
#
# Everything in this book starts from a catalogue and, if there are any, from the
# [histories](../book/notation.md "history") of its users. What do they look like? And do the vectors that a small
# language model makes of the items' texts put together what belongs together?
#
# **What you will learn**
#
# 1. what is in a catalogue, and what to look at before trusting it;
# 2. how uneven histories are, and why that matters for every later number;
# 3. how a text becomes a vector, and what to check about the vectors;
# 4. whether near vectors mean similar items, and how much of that is chance.
#
# | | |
# | --- | --- |
# | reads | the data set `DATA` |
# | writes | `embeddings`: one text vector per item |
# | runs in | a minute or two at `smoke` and at `laptop`, once: vectors are cached |

# %% tags=["parameters"]
DATA = "demo"  # or a folder with items.jsonl and, perhaps, sequences.tsv
SCALE = "laptop"  # smoke, laptop or full
SEED = 0
EMBEDDER = "all-MiniLM-L6-v2"  # of sentence-transformers, or a path

# %%
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from sklearn.neighbors import NearestNeighbors

from semid_lib.data import dataset
from semid_lib.evaluation import plotting
from semid_lib.ids import embed
from semid_lib.workbench import scale, store, workers
from semid_lib.workbench.text import one_line

plotting.use()
clock = store.Clock()
shop = dataset.load(DATA)
sizes = scale.get(SCALE)
shelf = store.Store(shop.name, SCALE, shop.fingerprint)
print(shelf.origin())
if len(shop.items) < 100:
    print(f"{len(shop.items)} items are too few to judge an embedding: 100 show more")

# %% [markdown]
# ## 1. The catalogue
#
# A data set is one folder with an item table and, optionally, histories and queries. Loading it checks every line; a
# line that cannot be right is an error that names file, line and value. What is merely odd, such as an empty title, is
# counted here and kept.

# %%
pd.Series(shop.counts, name="count").to_frame()

# %%
columns = [
    name for name in ("title", "brand", "categories", "description") if name in shop.items
]
shop.items[columns].sample(min(6, len(shop.items)), random_state=SEED)

# %% [markdown]
# Read a few rows before anything else. Real catalogues repeat titles, leave descriptions empty or fill them with
# mark-up, and sort half of the shop under one category. None of this stops a model from training, and all of it comes
# back later as a number that nobody can explain. Categories are paths from the general to the narrow; only the last
# name of a path, the *leaf category*, is counted below.

# %%
TOP = 15
labels = {
    "leaf category": dataset.leaf_categories(shop.items),
    "brand": shop.items.get("brand", pd.Series([""] * len(shop.items))),
}

# %% tags=["hide-input"] mystnb={"image": {"alt": "Two bar charts of the number of items, largest first: on the left by leaf category, on the right by brand."}}
figure, axes = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
notes = []
for axis, (name, values) in zip(axes, labels.items(), strict=True):
    counts = values.value_counts().head(TOP)
    notes.append(plotting.bars(axis, counts, name))
    n_names = values[values != ""].nunique()
    axis.set(title=f"{name}: the largest of {n_names:,}", xlabel="items")
plt.show()
print("\n".join(filter(None, notes)), end="")

# %% [markdown]
# *Figure 1.* Items under the largest leaf categories and brands. Bars that shrink slowly mean that no label dominates;
# a single bar that says "(none)" means that the catalogue has none of the kind.

# %% [markdown]
# ## 2. The histories
#
# A history is the list of items that one user bought or rated, in time order; each entry is an *interaction*. Two
# things about histories decide what any model can do with them: how long they are, and how unevenly the interactions
# fall on items.

# %%
if shop.histories is None:
    print(
        f"{shop.name} has no histories: this is the cold-start case, and section 2 has nothing to show."
    )
else:
    lengths = shop.histories.lengths
    popularity = np.sort(np.bincount(shop.histories.items, minlength=len(shop.items)))[
        ::-1
    ]
    share = np.cumsum(popularity) / popularity.sum()
    print(
        f"half of the users have at most {np.median(lengths):.0f} interactions, the longest history {lengths.max()}"
    )
    print(
        f"the most popular 10% of the items take {share[len(share) // 10]:.0%} of the interactions"
    )

# %% tags=["hide-input"] mystnb={"image": {"alt": "Left: histogram of the lengths of histories. Right: interactions of an item against its rank by popularity, falling, both axes logarithmic."}}
if shop.histories is not None:
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
    left.hist(
        lengths, bins=np.arange(0, np.quantile(lengths, 0.99) + 2) - 0.5, color="tab:blue"
    )
    left.set(xlabel="interactions of a user (up to the 99th percentile)", ylabel="users")
    right.loglog(np.arange(1, len(popularity) + 1), popularity, color="tab:blue")
    right.set(xlabel="rank of the item by popularity", ylabel="interactions")
    plt.show()

# %% [markdown]
# *Figure 2.* How long histories are, and how interactions fall off with the rank of an item. A long tail of items with
# a handful of interactions is the rule: a model that memorizes items learns little about them, while their text is as
# good as anyone's. That is the case for [semantic IDs](../book/notation.md "semantic ID") in one picture.

# %% [markdown]
# ## 3. From text to vector
#
# The item's title, brand, leaf category and description become one text; a small transformer turns each of its $T$ word
# pieces into a vector $u_t \in \mathbb{R}^d$; and their mean is the item's
# [embedding](../book/notation.md "text embedding") [(Reimers and Gurevych,
# 2019)](../book/references.bib "reimers2019"):
#
# $$ x = \frac{1}{T} \sum_{t=1}^{T} u_t, \qquad \cos(x, y) = \frac{x^\top y}{\lVert x \rVert \, \lVert y \rVert} . $$ (eq-embedding)
#
# How alike two items are is the cosine of their embeddings, which looks at direction only. A toy case that can be
# checked by hand: the first two vectors point the same way and differ in length, so their cosine is 1; the third is at
# a right angle to both, cosine 0.

# %%
toy = embed.normalize(np.array([[3.0, 4.0], [6.0, 8.0], [-4.0, 3.0]]))
(toy @ toy.T).round(2)

# %% [markdown]
# Now the catalogue. The model is a parameter of this page; the default one comes with its weights in a pip package, so
# that no network is needed, and vectors are cached by text and model.

# %%
texts = embed.item_texts(shop.items)
run = workers.chosen()  # in this process, if SEMID_WORKERS says nothing else
kept = shelf.cache("embeddings")
vectors = embed.embed(texts, EMBEDDER, cache=kept, progress=True, run=run)
unit = embed.normalize(vectors)
print(texts[0])
vectors.shape, vectors.dtype

# %%
facts = embed.statistics(vectors, texts)
pd.Series(facts, name="value").to_frame()

# %% [markdown]
# `mean_cosine`, the mean over all pairs of items, deserves a second look. If it were 0, two random items would look
# unrelated to the model; with text from one shop it is well above 0, since all items share a subject. So a cosine says
# nothing alone, and only differences between cosines do. `duplicate_vectors` are items that no method based on text can
# tell apart: they will share a semantic ID in the next chapter, however it is found.

# %% [markdown]
# ## 4. Does near mean similar?
#
# The eyes first: three random items, each with its three nearest neighbours.

# %%
n_neighbours = min(10, len(unit) - 1)
distance = near = np.empty((len(unit), 0), dtype=int)
if n_neighbours:
    neighbours = NearestNeighbors(n_neighbors=n_neighbours, metric="cosine").fit(unit)
    distance, near = neighbours.kneighbors()  # of each item, without itself
shown = np.random.default_rng(SEED).choice(len(unit), min(3, len(unit)), replace=False)
for row in shown:
    print(one_line(shop.items["title"][row]))
    for other, apart in zip(near[row, :3], distance[row, :3], strict=True):
        print(f"    {1 - apart:.2f}  {one_line(shop.items['title'][other])}")

# %% [markdown]
# Then a number, with its doubt beside it. If the embedding keeps what an item *is*, an item's nearest neighbours should
# share its category; but in a shop where one category holds half of the items, random neighbours would share it half of
# the time too. So the share among the neighbours is compared with the share among random pairs.

# %%
rng = np.random.default_rng(SEED)
random_items = rng.integers(len(unit), size=near.shape)
agreement = {}
for name, column in labels.items():
    values = column.to_numpy()
    known = values != ""
    if known.any() and n_neighbours:
        agreement[name] = {
            "neighbours": (values[near[known]] == values[known, None]).mean(),
            "random pairs": (values[random_items[known]] == values[known, None]).mean(),
        }
pd.DataFrame(agreement).T.map("{:.1%}".format)

# %% [markdown]
# The map below shows the same by eye. UMAP [(McInnes et al., 2018)](../book/references.bib "mcinnes2018") draws points
# that are near in the many-dimensional space near each other on paper; it keeps neighbourhoods, not distances, so
# neither the size of a cluster nor the gap to the next one means anything.

# %%
shown = rng.permutation(len(unit))[: sizes.map_items]
places, method = plotting.map_2d(unit[shown], SEED)
kind = max(labels, key=lambda name: (labels[name] != "").sum())  # the fuller column
group = labels[kind].to_numpy()[shown]
largest = labels[kind].value_counts().index[:9]
if method != "UMAP":
    print(f"too few different texts for UMAP: this map is by {method}")

# %% tags=["hide-input"] mystnb={"image": {"alt": "Map of the items as dots in two dimensions, coloured by the nine largest categories or brands; dots of one colour mostly lie together."}}
figure, axis = plt.subplots(figsize=(10, 5.5), layout="constrained")
note = plotting.draw_map(axis, places, group, largest, method, kind)
axis.set_title(kind)
axis.legend(loc="center left", bbox_to_anchor=(1, 0.5), markerscale=3, frameon=False)
plt.show()
print(note, end="")

# %% [markdown]
# *Figure 3.* Items near each other have similar texts. Colours (the nine largest categories, or brands where there are
# no categories) were not shown to the embedding: where they form regions, the text says what the shop's own taxonomy
# says.

# %% [markdown]
# ## Summary
#
# The vectors go to the next chapter as the model gives them; whoever wants cosines brings them to length 1.

# %%
shelf.save("embeddings", {"vectors": vectors}, embedder=EMBEDDER, statistics=facts)
rows = [
    {
        "key": f"embeddings/{kind}/{pair}".replace(" ", "_"),
        "value": round(float(value), 6),
        "seed": SEED,
    }
    for kind, pairs in agreement.items()
    for pair, value in pairs.items()
]
rows += [
    {"key": "embeddings/items", "value": len(unit), "seconds": round(clock.seconds, 1)}
]
shelf.record("01_catalogue_and_embeddings", rows)
print(
    f"{len(unit):,} items as vectors of {vectors.shape[1]} dimensions, in {clock.seconds:.0f} s"
)
for kind, pairs in agreement.items():
    print(
        f"{kind}: {pairs['neighbours']:.0%} of the {n_neighbours} nearest neighbours ",
        end="",
    )
    print(f"agree, {pairs['random pairs']:.0%} by chance")

# %% [markdown]
# **What the embedding does not keep.** It was trained on general English, so it knows what a lipstick is and not who
# buys it; words that decide for a shopper (a shade, a size) hardly move the vector. Chapter 07 shows what histories
# add.
#
# **Next:** [from vectors to short tuples of codes](02_semantic_ids.ipynb).
