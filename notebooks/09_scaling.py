# %% [markdown]
# # Scaling: what happens when the catalogue grows?
#
# A method that is pleasant on twelve thousand items may be hopeless on ten million, or not notice the difference. How
# does the cost of every stage grow with the catalogue, and from what size on is a method no longer sensible?
#
# **What you will learn**
#
# 1. a growth law by hand: the slope of a line in logarithms;
# 2. a catalogue of any size that looks like this one;
# 3. time against items, stage by stage;
# 4. memory against items;
# 5. where each stage stops being sensible;
# 6. what to use on a catalogue of N items, and what it will cost;
# 7. where writing IDs wins, and where it does not;
# 8. the same work on more machines, and from when on that pays.
#
# | | |
# | --- | --- |
# | reads | `embeddings` (chapter 01), `semantic_ids` (chapter 02); published rows of `tests/bench/growth.py` and `distributed.py` |
# | writes | result rows |
# | runs in | under a minute at `smoke`; about a minute at `laptop`, on one thread |

# %% tags=["parameters"]
DATA = "demo"  # or a folder with items.jsonl
SCALE = "laptop"  # smoke, laptop or full
SEED = 0
# sizes to be told about
CATALOGUES = (1000, 12_000, 100_000, 1_000_000, 10_000_000, 100_000_000)

# %%
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pyarrow as pa
import torch

from semid_lib.data import dataset
from semid_lib.evaluation import report
from semid_lib.studies import growth, growth_stages
from semid_lib.workbench import scale, store, workers

torch.set_num_threads(1)  # so that points compare, here and with the bench
clock = store.Clock()
shop = dataset.load(DATA)
sizes = scale.get(SCALE)
shelf = store.Store(shop.name, SCALE, shop.fingerprint)
print(shelf.origin())

# %% [markdown]
# ## 1. A law by hand
#
# Look for an item in a list by looking at every one of n items, or in a trie with K children a node, where it takes
# as many steps as the ID has codes, $\lceil \log_K n \rceil$. Counted, not timed:

# %%
counts = {"items": [100, 10_000, 1_000_000], "list": [100, 10_000, 1_000_000]}
counts["trie, K = 10"] = [2, 4, 6]
pd.DataFrame(counts).set_index("items")

# %% [markdown]
# If a cost is $a n^b$, its logarithm is a line,
#
# $$ \log \text{cost} = \log a + b \log n , $$ (eq-growth)
#
# whose slope is $b$. From 100 to 1,000,000 items the list goes from 100 to 1,000,000 looks: $b = \log(10^4) /
# \log(10^4) = 1$. The trie goes from 2 to 6: $b = \log 3 / \log 10^4 = 0.12$, and it is no power at all: between 100
# and 10,000 the slope is $\log 2 / \log 100 = 0.15$, after that $\log 1.5 / \log 100 = 0.09$. A logarithm bends
# downwards in this plot. The library fits the line by least squares and says how far to trust it:

# %%
for name in ("list", "trie, K = 10"):
    law = growth.fit(counts["items"], counts[name])
    print(f"{name}: n^{law.exponent:.2f}, 95% interval {law.low:.2f} to {law.high:.2f}")

# %% [markdown]
# Three points leave one degree of freedom, so the interval of the second is wide. Real stages are no lines either. A
# cost that does not grow, such as reading the [history](../book/notation.md), hides at small sizes the one that does;
# and caches end. So with five points or more two other forms are tried, a fixed cost $c + a n^b$ and a second line from
# some size on, and taken where they explain the points much better. For extrapolation that is the whole difference: ten
# times the items after $1 + 10^{-5} n$ at up to 10,000 items looks like nothing, and at 10 million it is the only
# thing.

# %% [markdown]
# ## 2. A catalogue of any size
#
# Nobody hands us the same shop with ten times the items, so it is made (`semid_lib.studies.growth_stages`). Uniform codes would
# be too kind to a trie: real [prefixes](../book/notation.md "prefix") are crowded. Below each prefix, codes get a Zipf
# distribution whose exponent makes two items share the next code as often as they do here:

# %%
like = growth_stages.sample(shop, shelf)
exponents = growth_stages.zipf_exponents(like.codes, like.codebook_size)
print("Zipf exponents by level:", *np.round(exponents, 2))
made = growth_stages.catalogue(
    len(like.codes), exponents, like.codebook_size, like.codes.shape[1], SEED
)


def by_level(codes):
    """Prefixes of one, two, ... codes that occur."""
    return [len(np.unique(codes[:, : at + 1], axis=0)) for at in range(codes.shape[1])]


pd.DataFrame(
    {"this catalogue": by_level(like.codes), "made": by_level(made)}
).rename_axis("codes before the last")

# %% [markdown]
# How many prefixes of each length occur. The last line differs by design: before
# [collisions](../book/notation.md "collision") are resolved, several items of this catalogue share an ID; made items
# have one each. What the exponents cannot tell is how they would change in a larger shop: more items may crowd the same
# prefixes, or bring prefixes of their own. The curves below assume the first.
#
# Vectors are made between neighbours. Are the made ones as near to each other as the real ones are?

# %%
some = np.random.default_rng(SEED).permutation(len(like.vectors))[:500]
near = {}
for name, vectors in (
    ("this catalogue", like.vectors),
    ("made", growth_stages.vectors_like(like, len(like.vectors), SEED)),
):
    cosines = vectors[some] @ vectors.T
    cosines[np.arange(len(some)), some] = -1
    near[name] = {
        "nearest": np.median(cosines.max(axis=1)),
        "any two": np.median(cosines),
    }
pd.DataFrame(near).round(3).rename_axis("median cosine")

# %% [markdown]
# They need not agree to the last digit: how near items are matters for what is *found* and hardly for what it *costs*.
# Quality is no subject here; chapters [07](07_next_item.ipynb) and [10](10_hybrid_ranker.ipynb) measure it.

# %% [markdown]
# ## 3. Time against items
#
# Every stage is measured from small to large, two sizes a decade, until the law of the points so far says that the next
# would take more than the budget. One thread, random weights (which change no cost).

# %%
stages = growth_stages.stages_for(like)
if shop.histories is None:
    print(f"{shop.name} has no histories: the item-kNN is left out")
points = list(
    growth.walk(
        stages,
        growth.half_decades(sizes.growth_from, sizes.growth_to),
        lambda stage, n: growth_stages.measure(stage, n, like, SEED, seconds=0.1),
        sizes.growth_budget,
    )
)
here = growth.laws(points)
print(f"{len(points)} points in {clock.seconds:.0f} s")

# %% [markdown]
# These are small sizes on whatever else this machine does. The bench measures the same stages up to ten million items,
# each point in a process of its own; where its rows are published, the conclusions below come from them.

# %%
try:
    rows = report.published_rows("random", "bench")
except FileNotFoundError:
    rows = []
published = [point for point in growth.points(rows) if point.stage in stages]
print("published points:", sum(isinstance(one, growth.Point) for one in published))
if published:
    row = next(row for row in rows if row["key"].startswith("growth_time/"))
    changed = " with uncommitted changes" if row["dirty"] else ""
    print(f"commit {row['commit'][:10]}{changed}, {row['hardware']},")
    print(f"on catalogues like {row['like']}")
else:
    print("the curves below are those of this run")

# %% tags=["hide-input"]
COLOURS = {
    "embedding": "tab:cyan",
    "residual k-means": "tab:blue",
    "RQ-VAE, an epoch": "tab:green",
    "collisions": "tab:brown",
    "trie, build": "tab:pink",
    "trie, open": "tab:grey",
    "item-kNN, fit": "tab:orange",
    "mask step, 400 beams": "tab:pink",
    "T5, beam search": "tab:red",
    "T5, exact scoring": "darkred",
    "timeline model": "tab:blue",
    "item-kNN": "tab:orange",
    "dense": "tab:cyan",
    "dense, inverted lists": "tab:olive",
}


def two(number):
    """With two digits that count: 380, 1,400,000 or 0.052."""
    return f"{float(f'{number:.2g}'):,.10g}"


def draw(axis, names, value):
    """Measured points of this run as dots, published ones as circles, and the law."""
    for name in names:
        for some, look in ((points, "."), (published, "o")):
            mine = [p for p in some if isinstance(p, growth.Point) and p.stage == name]
            if not mine:
                continue
            n, y = [p.n for p in mine], [value(p) for p in mine]
            style = {"color": COLOURS[name]}
            if look == "o":
                style["markerfacecolor"] = "none"
            is_last = some is published or not published
            axis.plot(n, y, look, **style, label=name if is_last else None)
            if len(mine) > 1 and is_last:
                law = growth.fit(n, y)
                grid = np.geomspace(min(n), max(n), 100)
                axis.plot(grid, [law.at(x) for x in grid], color=COLOURS[name], lw=1)
    axis.set(xscale="log", yscale="log", xlabel="items")
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))


once = [name for name, stage in stages.items() if stage.unit == "s"]
answers = [name for name, stage in stages.items() if stage.unit == "ms a user"]

# %% tags=["hide-input"] mystnb={"image": {"alt": "Seconds against items on two logarithmic axes for the stages that are done once: embedding lies highest and rises in proportion, the trie's build lies orders of magnitude lower, its opening is nearly flat."}}
figure, axis = plt.subplots(figsize=(9, 5), layout="constrained")
draw(axis, once, lambda point: point.cost)
axis.set_ylabel("seconds, once for a catalogue")
plt.show()

# %% [markdown]
# *Figure 1.* What is done once for a catalogue, by items. Dots are this run, circles the bench, lines the laws.
# Parallel lines grow alike: what differs is the height. The [codebook](../book/notation.md) grows with the catalogue,
# up to 1,024 codes, which is why k-means takes more than proportional time until then.

# %% tags=["hide-input"] mystnb={"image": {"alt": "Milliseconds a user against items on two logarithmic axes: beam search with a T5 is a flat line, exact scoring with it lies far above and rises in proportion, dense retrieval, item-kNN and the timeline model begin low and rise."}}
figure, axis = plt.subplots(figsize=(9, 5), layout="constrained")
draw(axis, answers, lambda point: point.cost)
axis.axhline(100, color="black", linestyle=":", linewidth=1)
axis.set_ylabel("milliseconds a user, 8 users at once")
plt.show()

# %% [markdown]
# *Figure 2.* Time per user by catalogue size; the dotted line is the limit of section 5. The cost of a beam search by
# codes alone (*T5*) depends on codes and beams, not on items. Any method that scores every item eventually reaches the
# limit.

# %%
used = [p for p in published or points if isinstance(p, growth.Point)]
if max(point.n for point in used) < 10_000:
    print(
        "these sizes are too small for any conclusion: what follows shows its form only"
    )
laws = growth.laws(used)
lines = {
    name: {
        "cost grows as n^": f"{law.exponent:.2f}",
        "95% interval": f"{law.low:.2f} to {law.high:.2f}",
        "fixed": f"{two(law.fixed)} {stages[name].unit}" if law.fixed else "",
        "bends at": f"{law.bend:,.0f}" if law.bend else "",
        "measured to": f"{law.n_to:,}",
    }
    for name, law in laws.items()
}
pd.DataFrame(lines).T

# %% [markdown]
# The exponents with their 95% intervals: of the part that grows where there is a fixed one, and beyond the bend where
# there is one. Infinite intervals come from two points. An interval knows how the points scatter around the curve; it
# does not know that the curve may be the wrong one, and on a machine that does other things too it is too narrow.
#
# Where the published curve of [residual k-means](../book/notation.md) ends flat it is not: from 200,000 items on it is
# fitted to a sample, and the codebook no longer grows. What still grows is encoding, in proportion and too little to
# show there. A law from the points before would have called a million items several times as dear as they turned out.

# %% [markdown]
# ## 4. Memory against items
#
# What has to be kept to answer, counted from the arrays and not measured:

# %% tags=["hide-input"] mystnb={"image": {"alt": "Bytes kept against items on two logarithmic axes, all lines rising in proportion: the trie's lies two orders of magnitude below those that hold a vector an item."}}
figure, axis = plt.subplots(figsize=(9, 4.5), layout="constrained")
draw(axis, answers, lambda point: point.kept / growth.GIB)
axis.axhline(growth_stages.MEMORY / growth.GIB, color="black", linestyle=":", linewidth=1)
axis.set_ylabel("GiB of arrays that are kept")
plt.show()

# %% [markdown]
# *Figure 3.* Memory of what answers, without the weights of the T5, which do not grow with the catalogue; the dotted
# line is the memory of an ordinary machine. Everything grows in proportion, so the bytes an item are what counts:

# %%
kept = growth.laws(used, "kept")
largest = {point.stage: point for point in used}  # the last of each
pd.DataFrame(
    {
        name: {"bytes an item": f"{p.kept / p.n:,.1f}", "at items": f"{p.n:,}"}
        for name, p in largest.items()
        if name in answers or name == "trie, build"
    }
).T

# %% [markdown]
# A trie takes fewer bytes an item the larger it is, since items share their first codes. The [timeline
# model](../book/notation.md) keeps the text vector of every item, an embedding of its own and a third vector to compare
# with.

# %% [markdown]
# ## 5. Where each stage stops being sensible
#
# Limits are a matter of taste; those taken here are named in the table. From the laws follows where each is passed:

# %%
limits = {name: stage.limit for name, stage in stages.items()}
peaks = growth.laws(published, "peak", least=2**22)
ends = pd.DataFrame(growth.sensible(laws, peaks or kept, limits, growth_stages.MEMORY))
ends["limit"] = [stages[name].why for name in ends["stage"]]
ends.loc[ends["by"] == "memory", "limit"] = f"{growth_stages.MEMORY / growth.GIB:g} GiB"
passed = ends["no longer sensible from"]
known = np.isfinite(passed)
ends["no longer sensible from"] = passed.map(two).where(known, "not in reach")
columns = ["no longer sensible from", "limit", "extrapolated"]
ends = ends.set_index("stage")[columns].astype(object)
ends.loc[~known.to_numpy(), ["limit", "extrapolated"]] = ""
ends

# %% [markdown]
# Where *extrapolated* is true, that size lies beyond what was measured: read the first digit at most. *Not in reach* is
# what lies more than ten times beyond, of which the laws say nothing.

# %% [markdown]
# ## 6. What to use on N items
#
# Milliseconds a user by the laws. A star marks what is extrapolated, brackets what passes a limit of section 5,
# *memory* what would at any speed; a place stays empty where the stage was never measured on as much as a tenth of
# the items.


# %%
def told(offer):
    """An offer in a few characters."""
    if np.isnan(offer.cost):
        return "(memory)"
    text = two(offer.cost) + ("*" if offer.extrapolated else "")
    return text if offer.fits else f"({text})"


asked = {
    n: growth.offers(n, laws, kept, peaks or kept, limits, growth_stages.MEMORY)
    for n in CATALOGUES
}
pd.DataFrame(
    {
        f"{n:,}": {name: told(found[name]) for name in answers if name in found}
        for n, found in asked.items()
    }
).T.fillna("").rename_axis("items (ms a user)")

# %% [markdown]
# Which one, then? Costs alone do not choose. On Beauty chapter 07 found the timeline model best,
# [item-kNN](../book/notation.md) behind it and a T5 that writes codes behind that, and chapter 10 found [dense
# retrieval](../book/notation.md) hard to beat for queries. So: the first of those that fits the limits, and what it
# takes to get there.

# %%
NEXT_ITEM = ("timeline model", "item-kNN", "T5, beam search")
QUERIES = ("dense", "dense, inverted lists", "T5, beam search")
BEFORE = ("embedding", "residual k-means", "collisions", "trie, build")


def first(ways, found):
    """The first way that fits; None if none does, or one before it is unknown."""
    for way in (way for way in ways if way in stages):
        if way not in found or found[way].fits:
            return found.get(way)


choice = {}
for n, found in asked.items():
    line = choice[f"{n:,}"] = {}
    for purpose, ways in (("next item", NEXT_ITEM), ("queries", QUERIES)):
        offer = first(ways, found)
        line[purpose] = offer.stage if offer else "not in reach"
        if offer:
            line[f"{purpose}: ms"] = f"{told(offer)} (up to {two(offer.high)})"
            line[f"{purpose}: GiB"] = two(offer.kept / growth.GIB)
    if all(stage in found for stage in BEFORE):
        hours = sum(found[stage].cost for stage in BEFORE) / 3600
        is_far = any(found[stage].extrapolated for stage in BEFORE)
        line["hours before"] = two(hours) + ("*" if is_far else "")
pd.DataFrame(choice).T.fillna("").rename_axis("items")

# %% [markdown]
# *Up to* is the upper end of the interval in which a measurement there would lie. *Hours before* is embedding, k-means,
# resolving collisions and the trie, on one core; most of it is embedding, which a GPU does far faster. Training the
# models is not in it: it grows with interactions, not with items. The place stays empty where one of the four was never
# measured on a tenth of the items, which mostly is embedding. The GiB are what is kept to answer from, without the
# weights of a T5.
#
# Where something stands in the line of 100,000,000 items, it is an extrapolation. It assumes that prefixes stay as
# crowded as here, that four codes of 256 still tell items apart (there are $256^4$ IDs), and that no cache, disk
# or integer ends on the way.

# %% [markdown]
# ## 7. Where writing IDs wins
#
# From how many items on does a beam search by codes alone take no more time than the others?

# %%
beam_name = "T5, beam search"
beam = laws[beam_name]
for name in answers:
    if name in laws and name != beam_name:
        n = growth.crossing(beam, laws[name])
        reach = growth.REACH * min(laws[name].n_to, beam.n_to)
        said = f"from {two(n)} items" if n <= reach else f"not below {two(reach)}"
        print(f"no more than {name}: {said}")

# %% [markdown]
# What the published bench says, from which these crossings come wherever it has rows:
#
# - **Against scoring every item with the same model** it wins from very few items on: nobody would score a catalogue
#   through a transformer that writes codes.
# - **Against methods that take a dot product an item** (dense, the timeline model) it wins late. The product is so cheap
#   that below some hundred thousand items, and that is the catalogue of most shops, a flat line through a transformer
#   lies above it. A larger model, or fewer users at once, moves the crossing further out.
# - **Against dense retrieval with inverted lists**, which looks at some lists and not at all items, time is no
#   argument: its line rises more slowly than n, and stays below as far as it was measured. What is left is memory, a
#   few bytes an item in a large trie against those of a vector, and even there compressed vectors ([product
#   quantization](../book/notation.md)) come near.
# - **Against item-kNN** time becomes one at millions of items. It needs memory for neighbours, and histories.
#
# So the case for generation is not that search is slow. It is one model for histories, queries and rules, which keeps
# a few bytes for an item, and whose cost at ten million items is known from that at ten thousand.

# %% [markdown]
# ## 8. Past one machine
#
# Embedding, encoding into IDs, queries by templates and recommendation for a file of users go item by item or user by
# user. On more machines they need no other code: one function is applied to batches, in order, and who applies it is an
# argument. By hand, squares of two batches:


# %%
def load():
    """Makes the function, once in each worker, where it may keep a model."""
    return lambda batch: pa.table({"square": [x**2 for x in batch["x"].to_pylist()]})


batches = [pa.table({"x": [1, 2]}), pa.table({"x": [3, 4]})]
[answer["square"].to_pylist() for answer in workers.here(load, batches)]

# %% [markdown]
# `here` is this process. `with distributed.Cluster(4) as cluster:` has a `map` that does the same in four, by Ray
# [(Moritz et al., 2018)](../book/references.bib "moritz2018"). The chapters ask `distributed.chosen()`, so
# `SEMID_WORKERS=4 make run` is enough to share their work out, and `SEMID_RAY_ADDRESS` does so over the machines of a
# cluster ([how](../book/running.md)).
#
# It is not free. Batches travel, and workers start. If $W$ seconds of work take $(1 + o) W$ in a worker, of which there are
# $p$, and $s$ seconds pass before they begin, sharing out pays from
#
# $$ s + \frac{1 + o}{p} W = W \quad \Leftrightarrow \quad W = \frac{s}{1 - (1 + o) / p} $$ (eq-sharing)
#
# on. With nothing lost, $o = 0$, a start of $s = 10$ and $p = 2$ it is $W = 20$. As `tests/bench/distributed.py`
# measured it on this kind of machine, at equal work in one process and in one worker:

# %%
try:
    told_by = {row["key"]: row["value"] for row in report.published_rows("demo", "bench")}
except FileNotFoundError:
    told_by = {}
    print("the bench of Ray was never published: nothing can be said here")
begin = told_by.get("ray/demo/the cluster itself/start")
shared = {}
for key, overhead in told_by.items():
    topic, _, work, metric = key.split("/")
    if (topic, metric) == ("ray", "overhead"):
        start = begin + told_by[f"ray/demo/{work}/start"]
        line = {"overhead": f"{overhead:.0%}", "seconds until it begins": two(start)}
        for p in (2, 16):
            gain = 1 - (1 + overhead) / p
            line[f"{p} workers pay from"] = f"{two(start / gain)} s of work"
        shared[work] = line
pd.DataFrame(shared).T

# %% [markdown]
# Minutes of work are worth it, seconds are not. What cannot be shared out so is what looks at all items at once: fitting a
# quantizer, resolving collisions, building a trie. By section 3 those are not what takes the time.

# %% [markdown]
# ## Summary

# %%
units = {name: stage.unit for name, stage in stages.items()}
rows = growth.rows(points, units)
rows += [
    {
        "key": f"growth_law/{name}/exponent",
        "value": round(law.exponent, 4),
        "ci95": [round(law.low, 4), round(law.high, 4)],
        "n": law.n_to,
    }
    for name, law in here.items()
    if np.isfinite(law.high)
]
shelf.record("09_scaling", [row | {"seed": SEED} for row in rows])

PROMISES = (
    ("trie, build", 10**6, 5),
    ("trie, build", 10**7, 60),
    ("trie, open", 10**7, 0.1),
    ("mask step, 400 beams", 10**6, 5),
)
for name, n, limit in PROMISES:
    law, unit = laws[name], stages[name].unit
    value = f"{two(law.at(n))} {unit}" if n <= growth.REACH * law.n_to else "not in reach"
    said = " extrapolated" if law.n_to < n <= growth.REACH * law.n_to else ""
    print(f"{name} at {n:,} items: {value}{said} (must be under {limit} {unit})")
trie = largest["trie, build"]
print(f"trie of {trie.n:,} items: {trie.kept / trie.n:.1f} bytes each (must be under 40)")
law = laws["mask step, 400 beams"]
print(f"a mask step grows as n^{law.exponent:.2f} up to {law.n_to:,} items")
print(f"conclusions from {'the published bench' if published else 'this run alone'}")
print(f"the whole chapter took {clock.seconds:.0f} s")

# %% [markdown]
# **What did not work.** Uniform random IDs, as in the bench of chapter 06, make every prefix about as full as any
# other: the fullest nodes of the trie are then several times smaller than under Zipf. A power law without a fixed cost
# promised that the timeline model is as fast on a million items as on ten thousand. `getrusage`, the usual way to ask
# for a process's memory, cannot be set back and passes from parent to child; peaks are read from `/proc` instead, and
# zeroed before the work. The [log](../book/log.md) has the figures.
#
# **Back to:** [the results](../book/results.md), or [the first chapter](01_catalogue_and_embeddings.ipynb) with a
# catalogue of your own.
