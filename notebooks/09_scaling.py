# %% [markdown]
# # Scaling: what happens when the catalogue grows?
#
# A method that is fast on 12,000 items may be too slow on ten million, or take no longer at all. How does the cost of
# every stage grow with the catalogue, and from which size on is a method too slow or too large?
#
# **What you will learn**
#
# 1. a growth law by hand: the slope of a line in logarithms;
# 2. a catalogue of any size that resembles this one;
# 3. time against items, stage by stage;
# 4. memory against items;
# 5. where each stage becomes too slow or too large;
# 6. what to use on a catalogue of N items, and what it will cost;
# 7. where generating IDs is faster, and where it is not;
# 8. the same work on more machines, and when that pays.
#
# | | |
# | --- | --- |
# | reads | `embeddings` (chapter 01), `semantic_ids` (chapter 02); published rows of `tests/bench/growth.py` and `distributed.py` |
# | writes | result rows |
# | runs in | under a minute at `smoke`, about a minute at `laptop`, on one thread |

# %% tags=["parameters"]
DATA = "demo"  # or a folder with items.jsonl
SCALE = "laptop"  # smoke, laptop or full
SEED = 0
# sizes of catalogue in the tables of section 6
CATALOGUES = (1000, 12_000, 100_000, 1_000_000, 10_000_000, 100_000_000)

# %%
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pyarrow as pa
import torch

from semid_lib.data import dataset
from semid_lib.evaluation import figures, report
from semid_lib.studies.growth import catalogue, laws, points, stages
from semid_lib.workbench import scale, store, workers

torch.set_num_threads(1)  # so that points compare, here and in the bench
timer = store.Timer()
shop = dataset.load(DATA)
sizes = scale.get(SCALE)
artefacts = store.Store(shop.name, SCALE, shop.fingerprint)
print(artefacts.origin())

# %% [markdown]
# ## 1. A law by hand
#
# Find an item in a list by looking at each of n items, or in a trie with K children per node, which takes as many steps
# as the ID has codes, $\lceil \log_K n \rceil$. Counted, not timed:

# %%
counts = {"items": [100, 10_000, 1_000_000], "list": [100, 10_000, 1_000_000]}
counts["trie, K = 10"] = [2, 4, 6]
pd.DataFrame(counts).set_index("items")

# %% [markdown]
# If a cost is $a n^b$, its logarithm is a line,
#
# $$ \log \text{cost} = \log a + b \log n , $$ (eq-growth)
#
# with slope $b$. From 100 to 1,000,000 items the list goes from 100 to 1,000,000 steps: $b = \log(10^4) / \log(10^4) =
# 1$. The trie goes from 2 to 6: $b = \log 3 / \log 10^4 = 0.12$. But its cost is no power of n: between 100 and 10,000
# the slope is $\log 2 / \log 100 = 0.15$, after that $\log 1.5 / \log 100 = 0.09$. A logarithm bends downwards in this
# plot. The library fits the line by least squares and gives an interval for its slope:

# %%
for name in ("list", "trie, K = 10"):
    law = laws.fit(counts["items"], counts[name])
    interval = f"{law.low:.2f} to {law.high:.2f}"
    print(f"{name}: n^{law.exponent:.2f}, 95% interval {interval}")

# %% [markdown]
# Three points leave one degree of freedom, so the second interval is wide. Real stages are not lines either. A cost that
# does not grow, such as reading the [history](../book/notation.md), hides at small sizes the one that does; and caches
# have a size. With five points or more, the library also tries a fixed cost $c + a n^b$ and a second line from some size
# on, and takes them where they explain the points much better. For extrapolation this decides everything: at up to
# 10,000 items, $1 + 10^{-5} n$ looks constant; at 10 million, the second term is all that matters.

# %% [markdown]
# ## 2. A catalogue of any size
#
# We need the same shop with ten times the items, so we make it (`semid_lib.studies.growth.catalogue`). Uniform codes
# would favour the trie: real [prefixes](../book/notation.md "prefix") are crowded. Below each prefix, codes get a Zipf
# distribution whose exponent makes two items share the next code as often as they do here:

# %%
like = catalogue.sample(shop, artefacts)
exponents = catalogue.zipf_exponents(like.codes, like.codebook_size)
print("Zipf exponents by level:", *np.round(exponents, 2))
n, n_levels = like.codes.shape
made = catalogue.made_ids(n, exponents, like.codebook_size, n_levels, SEED)
depths = range(1, n_levels + 1)
prefixes = {"codes": depths}
for name, codes in (("this catalogue", like.codes), ("made", made)):
    prefixes[name] = [len(np.unique(codes[:, :depth], axis=0)) for depth in depths]
pd.DataFrame(prefixes).set_index("codes")

# %% [markdown]
# How many prefixes of each length occur. The last line differs by design: before [collisions](../book/notation.md
# "collision") are resolved, several items of this catalogue share an ID; made items have one each. The exponents do not
# tell how they would change in a larger shop: more items may crowd the same prefixes, or bring new ones. The curves
# below assume the first.
#
# Vectors are made between neighbours. How similar is an item to its nearest neighbour, and to any other? Median
# cosines:

# %%
rows = np.random.default_rng(SEED).permutation(n)[:500]
near = {}
copy = catalogue.vectors_like(like, n, SEED)
for name, vectors in (("this catalogue", like.vectors), ("made", copy)):
    cosines = vectors[rows] @ vectors.T
    cosines[np.arange(len(rows)), rows] = -1
    near[name] = np.median(cosines.max(axis=1)), np.median(cosines)
pd.DataFrame(near, index=["nearest", "any two"]).round(3)

# %% [markdown]
# They need not agree to the last digit: similarity affects what is *found*, and has little effect on what it *costs*.
# This chapter does not measure quality; chapters [05](05_llm_sft.ipynb), [07](07_next_item.ipynb) and
# [10](10_hybrid_ranker.ipynb) do.

# %% [markdown]
# ## 3. Time against items
#
# Every stage is measured from small to large, two sizes per decade, until the law of its points predicts that the next
# one exceeds the budget. All runs use one thread and random weights, which do not change the speed.

# %%
timed = stages.stages_for(like)
if shop.histories is None:
    print(f"{shop.name} has no histories: the item-kNN is left out")
walked = list(
    points.walk(
        timed,
        points.half_decades(sizes.growth_from, sizes.growth_to),
        lambda stage, n: stages.measure(stage, n, like, SEED, seconds=0.1),
        sizes.growth_budget,
    )
)
here = [point for point in walked if isinstance(point, points.Point)]
print(f"{len(here)} points in {timer.seconds:.0f} s")

# %% [markdown]
# These are small sizes on a machine that may be busy. The bench measures the same stages up to ten million items, each
# point in a fresh process; if its rows are published, the conclusions below come from them.

# %%
published = {}
for data in ("random", "demo"):
    try:
        published[data] = report.published_rows(data, "bench")
    except FileNotFoundError:
        published[data] = []
rows = published["random"]
bench = [point for point in points.from_rows(rows) if point.stage in timed]
print("published points:", len(bench))
for row in [row for row in rows if row["key"].startswith("growth_time/")][:1]:
    changed = " with uncommitted changes" if row["dirty"] else ""
    print(f"commit {row['commit'][:10]}{changed}, {row['hardware']},")
    print(f"on catalogues like {row['like']}")

# %%
used = bench or here
costs = points.fit_all(used)
kept = points.fit_all(used, "kept")
shown = pd.concat([pd.DataFrame(here), pd.DataFrame(bench)], ignore_index=True)
shown["published"] = np.arange(len(shown)) >= len(here)
once = [name for name, stage in timed.items() if stage.unit == "s"]
answers = [name for name, stage in timed.items() if stage.unit == "ms a user"]


def draw(names, column, fitted, label, unit=1, limit=None):
    """The points of some stages, and the curves of their laws."""
    some = shown[shown["stage"].isin(names)].assign(value=shown[column] / unit)
    curves = {name: fitted[name].curve() for name in names if name in fitted}
    curves = {name: (n, cost / unit) for name, (n, cost) in curves.items()}
    figures.costs_by_size(some, curves, label, limit)
    plt.show()


# %% tags=["hide-input"] mystnb={"image": {"alt": "Seconds against items on two logarithmic axes for the stages that are done once: embedding lies highest and rises in proportion, the trie's build lies orders of magnitude lower, its opening is nearly flat."}}
draw(once, "cost", costs, "seconds per catalogue")

# %% [markdown]
# *Figure 1.* Stages that run once per catalogue, by items. Dots are this run, circles the bench, lines the laws. Parallel
# lines grow alike and differ in height. The [codebook](../book/notation.md) grows with the catalogue, up to 1,024 codes,
# so until then the time of k-means grows faster than the number of items.

# %% tags=["hide-input"] mystnb={"image": {"alt": "Milliseconds per user against items on two logarithmic axes: beam search with a T5 is a flat line, exact scoring with it lies far above and rises in proportion, dense retrieval, item-kNN and the timeline model begin low and rise."}}
label = "milliseconds per user, 8 users at once"
draw(answers, "cost", costs, label, limit=100)

# %% [markdown]
# *Figure 2.* Time per user by catalogue size; the dotted line is the 100 ms limit of section 5. The cost of beam search
# (*T5*) depends on codes and beams, not on items. Any method that scores every item eventually reaches the limit.

# %%
if max(point.n for point in used) < 10_000:
    print("these sizes are too small for conclusions: only the form counts")
lines = {
    name: {
        "cost grows as n^": f"{law.exponent:.2f}",
        "95% interval": f"{law.low:.2f} to {law.high:.2f}",
        "fixed": laws.two_digits(law.fixed) if law.fixed else "",
        "unit": timed[name].unit,
        "bends at": f"{law.bend:,.0f}" if law.bend else "",
        "measured to": f"{law.n_to:,}",
    }
    for name, law in costs.items()
}
pd.DataFrame(lines).T

# %% [markdown]
# The exponents with their 95% intervals: of the growing part if there is a fixed cost, and beyond the bend if there is
# one. Two points give an infinite interval. An interval reflects how the points scatter around the curve. It does not
# reflect that the curve may be the wrong one, and it is too narrow on a busy machine.
#
# The published curve of [residual k-means](../book/notation.md) is flat at its end: from 200,000 items on, k-means is
# fitted to a sample, and the codebook no longer grows. Encoding still grows in proportion, but too little to show there.
# A law fitted to the points before would have predicted several times the measured time at a million items.

# %% [markdown]
# ## 4. Memory against items
#
# The memory that an answer needs, counted from the arrays:

# %% tags=["hide-input"] mystnb={"image": {"alt": "Bytes kept against items on two logarithmic axes, all lines rising in proportion: the trie's lies two orders of magnitude below those that hold a vector an item."}}
most = stages.MEMORY / points.GIB
draw(answers, "kept", kept, "GiB of arrays", points.GIB, limit=most)

# %% [markdown]
# *Figure 3.* Memory of the stages that answer, without the weights of the T5, which do not grow with the catalogue; the
# dotted line is the memory of an ordinary machine. Everything grows in proportion, so bytes per item tell it all:

# %%
largest = {point.stage: point for point in used}  # the last of each
per_item = {
    name: {"bytes per item": f"{p.kept / p.n:,.1f}", "at items": f"{p.n:,}"}
    for name, p in largest.items()
    if name in answers or name == "trie, build"
}
pd.DataFrame(per_item).T

# %% [markdown]
# A larger trie takes fewer bytes per item, since items share their first codes. The [timeline
# model](../book/notation.md) keeps the text vector of every item, an item embedding and a third vector to compare with.

# %% [markdown]
# ## 5. Where each stage becomes too slow or too large
#
# The limits are a choice; the table names those taken here. The laws give the size at which each is reached:

# %%
limits = {name: stage.limit for name, stage in timed.items()}
peaks = points.fit_all(bench, "peak", least=2**22) or kept
ends = pd.DataFrame(laws.sensible(costs, peaks, limits, stages.MEMORY))
ends["limit"] = [timed[name].why for name in ends["stage"]]
ends.loc[ends["by"] == "memory", "limit"] = f"{most:g} GiB"
reached = np.isfinite(ends["no longer sensible from"])
ends["limit reached at"] = ends["no longer sensible from"].map(laws.two_digits)
columns = ["limit reached at", "limit", "extrapolated"]
ends = ends.set_index("stage")[columns].astype(object)
ends.loc[~reached.to_numpy()] = "not in reach", "", ""
ends

# %% [markdown]
# If *extrapolated* is true, the size lies beyond all measured ones: only its first digit means anything. *Not in reach*
# means that it is further beyond them than the laws hold.

# %% [markdown]
# ## 6. What to use on N items
#
# Milliseconds per user by the laws. A star marks an extrapolation, brackets a limit of section 5 that is exceeded, and
# *memory* a stage whose arrays do not fit at any speed. An empty cell was never measured on as much as a tenth of the
# items.

# %%
offers, memory = {}, stages.MEMORY
for n in CATALOGUES:
    offers[n] = laws.offers(n, costs, kept, peaks, limits, memory)
table = {
    f"{n:,}": {name: str(found[name]) for name in answers if name in found}
    for n, found in offers.items()
}
pd.DataFrame(table).T.fillna("").rename_axis("items (ms per user)")

# %% [markdown]
# Which one, then? Cost alone does not decide. On Beauty, chapter 07 found the timeline model best, then
# [item-kNN](../book/notation.md), then a T5 that generates codes; in chapter 05, [dense retrieval](../book/notation.md)
# was hard to beat for queries. So we take the first of these that fits the limits, and the hours that it takes to build:

# %%
NEXT_ITEM = ("timeline model", "item-kNN", "T5, beam search")
QUERIES = ("dense", "dense, inverted lists", "T5, beam search")
BEFORE = ("embedding", "residual k-means", "collisions", "trie, build")

choice = {}
for n, found in offers.items():
    line = choice[f"{n:,}"] = {}
    for purpose, ways in (("next item", NEXT_ITEM), ("queries", QUERIES)):
        known = [way for way in ways if way in timed]
        offer = laws.first_that_fits(known, found)
        line[purpose] = offer.stage if offer else "not in reach"
        if offer:
            high = laws.two_digits(offer.high)
            line[f"{purpose}: ms"] = f"{offer} (up to {high})"
            line[f"{purpose}: GiB"] = laws.two_digits(offer.kept / points.GIB)
    if all(stage in found for stage in BEFORE):
        hours = sum(found[stage].cost for stage in BEFORE) / 3600
        is_far = any(found[stage].extrapolated for stage in BEFORE)
        line["hours before"] = laws.two_digits(hours) + "*" * is_far
pd.DataFrame(choice).T.fillna("").rename_axis("items")

# %% [markdown]
# *Up to* is the upper end of the interval for a measurement at that size. *Hours before* is embedding, k-means, resolving
# collisions and building the trie, on one core. Most of it is embedding, which is far faster on a GPU. Training is not
# included: it grows with interactions, not with items. The cell is empty if one of the four, usually embedding, was
# never measured on a tenth of the items. GiB are the arrays needed to answer, without the weights of a T5.
#
# All values in the line of 100,000,000 items are extrapolations. They assume that prefixes stay as crowded as here, that
# four codes of 256 still tell items apart (there are $256^4$ IDs), and that no cache, disk or integer overflows on the
# way.

# %% [markdown]
# ## 7. Where generating IDs is faster
#
# From how many items on does a beam search by codes alone take no more time than the others?

# %%
beam = costs["T5, beam search"]
for name in answers:
    if name in costs and name != "T5, beam search":
        n = laws.crossing(beam, costs[name])
        reach = laws.REACH * min(costs[name].n_to, beam.n_to)
        text = "from" if n <= reach else "not below"
        n = laws.two_digits(min(n, reach))
        print(f"no more than {name}: {text} {n} items")

# %% [markdown]
# On the published bench, from which these crossings come if it has rows:
#
# - **Against scoring every item with the same model**, beam search is faster from very few items on: no one would score
#   a catalogue through a transformer that generates codes.
# - **Against methods with one dot product per item** (dense, the timeline model), it is faster only for large catalogues.
#   The product is so cheap that below some hundred thousand items, which covers most shops, a constant time through a
#   transformer is longer. A larger model, or fewer users at once, moves the crossing further out.
# - **Against dense retrieval with inverted lists**, which looks at some lists and not at all items, time is no argument:
#   its cost grows more slowly than n, and stays below as far as it was measured. Memory is one: a few bytes per item in
#   a large trie, against a vector. But compressed vectors ([product quantization](../book/notation.md)) come near.
# - **Against item-kNN**, time is an argument at millions of items. Item-kNN also needs memory for neighbours, and
#   histories.
#
# So the case for generation is not that search is slow. One model serves histories, queries and rules, keeps a few bytes
# per item, and its cost at ten million items is known from that at ten thousand.

# %% [markdown]
# ## 8. More than one machine
#
# Embedding, encoding into IDs, queries by templates and recommendation for a file of users work item by item or user by
# user. On more machines they need no other code: a function is applied to batches, in order, and an argument says by
# whom. By hand, squares of two batches:


# %%
def load():
    """Makes the function, once in each worker, where it may keep a model."""
    return lambda batch: pa.table({"square": [x**2 for x in batch["x"].to_pylist()]})


batches = [pa.table({"x": [1, 2]}), pa.table({"x": [3, 4]})]
[answer["square"].to_pylist() for answer in workers.here(load, batches)]

# %% [markdown]
# `here` is this process. `with workers.Cluster(4) as cluster:` has a `map` that does the same in four, by Ray
# [(Moritz et al., 2018)](../book/references.bib "moritz2018"). The chapters call `workers.chosen()`, so `SEMID_WORKERS=4
# make run` shares their work, and `SEMID_RAY_ADDRESS` does so over the machines of a cluster
# ([how](../book/running.md)).
#
# Sharing is not free: batches travel, and workers have to start. If $W$ seconds of work take $(1 + o) W$ in one of $p$
# workers, and it takes $s$ seconds until they begin, sharing pays for
#
# $$ s + \frac{1 + o}{p} W \le W \quad \Leftrightarrow \quad W \ge \frac{s}{1 - (1 + o) / p} . $$ (eq-sharing)
#
# With no overhead, $o = 0$, a start of $s = 10$ and $p = 2$, that is $W \ge 20$. `tests/bench/distributed.py` measured,
# at equal work in one process and in one worker:

# %%
values = {row["key"]: row["value"] for row in published["demo"]}
shared = {}
for key, overhead in values.items():
    topic, _, work, metric = key.split("/")
    if (topic, metric) == ("ray", "overhead"):
        start = values[f"ray/demo/{work}/start"]
        start += values["ray/demo/the cluster itself/start"]
        line = {"overhead": f"{overhead:.0%}", "seconds to start": laws.two_digits(start)}
        for p in (2, 16):
            pays = laws.two_digits(start / (1 - (1 + overhead) / p))
            line[f"{p} workers pay from"] = f"{pays} s of work"
        shared[work] = line
pd.DataFrame(shared).T

# %% [markdown]
# Minutes of work are worth sharing, seconds are not. Stages that look at all items at once cannot be shared like this:
# fitting a quantizer, resolving collisions, building a trie. By section 3, they take little of the time.

# %% [markdown]
# ## Summary

# %%
units = {name: stage.unit for name, stage in timed.items()}
result_rows = points.as_rows(walked, units)
result_rows += [
    {
        "key": f"growth_law/{name}/exponent",
        "value": round(law.exponent, 4),
        "ci95": [round(law.low, 4), round(law.high, 4)],
        "n": law.n_to,
    }
    for name, law in points.fit_all(here).items()
    if np.isfinite(law.high)
]
artefacts.record("09_scaling", [row | {"seed": SEED} for row in result_rows])

PROMISES = (
    ("trie, build", 10**6, 5),
    ("trie, build", 10**7, 60),
    ("trie, open", 10**7, 0.1),
    ("mask step, 400 beams", 10**6, 5),
)
for name, n, limit in PROMISES:
    law, unit = costs[name], timed[name].unit
    value = laws.two_digits(law.at(n)) + "*" * (n > law.n_to)
    value = value if n <= laws.REACH * law.n_to else "not in reach"
    print(f"{name} at {n:,} items: {value} {unit} (< {limit} {unit})")
trie = largest["trie, build"]
print(f"trie of {trie.n:,} items: {trie.kept / trie.n:.1f} bytes each (< 40)")
print("conclusions from", "the published bench" if bench else "this run alone")
print(f"the whole chapter took {timer.seconds:.0f} s")

# %% [markdown]
# **What did not work.** Uniform random IDs, as in the bench of chapter 06, make all prefixes about equally full: the
# fullest nodes of the trie are then several times smaller than under Zipf. A power law without a fixed cost predicted
# that the timeline model is as fast on a million items as on ten thousand. `getrusage`, the usual way to measure the
# memory of a process, cannot be reset and passes from parent to child; peaks are read from `/proc` instead, and reset
# before the work. The [log](../book/log.md) has the figures.
#
# **Back to:** [the results](../book/results.md), or [the first chapter](01_catalogue_and_embeddings.ipynb) with your own
# catalogue.
