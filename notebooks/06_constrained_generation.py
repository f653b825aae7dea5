# %% [markdown]
# # Constrained generation: how does a model generate only items that exist?
#
# A model that generates [codes](../book/notation.md "code") can generate any tuple of them, and most tuples name no
# item. A [prefix trie](../book/notation.md) restricts it to real items. Is the answer then the same as if every item
# had been scored, and what does it cost?
#
# **What you will learn**
#
# 1. the trie on six items, by hand: two small arrays per [level](../book/notation.md), and a
#    [subset](../book/notation.md) without a second trie;
# 2. a small language model to decode, trained on this catalogue;
# 3. how often [free generation](../book/notation.md) names an item;
# 4. how wide a beam must be, compared with the [exact ranking](../book/notation.md) of all items;
# 5. [business rules](../book/notation.md) and diversity inside the search;
# 6. where the time goes, compared with `generate`;
# 7. what other ways to constrain a decoder cost at this catalogue's size.
#
# | | |
# | --- | --- |
# | reads | `embeddings` (chapter 01), `semantic_ids` (chapter 02) |
# | writes | `prefix_trie.safetensors`, which maps into memory; result rows |
# | runs in | under a minute at `smoke`; minutes at `laptop`, most of it training |

# %% tags=["parameters"]
DATA = "demo"  # or a folder with items.jsonl
SCALE = "laptop"  # smoke, laptop or full
SEED = 0

# %%
import time
from functools import partial

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch

from semid_lib.data import dataset
from semid_lib.decoding import adapters, beam_search, rules, scorers
from semid_lib.decoding.trie import PrefixTrie
from semid_lib.evaluation import figures_models as figures
from semid_lib.evaluation import metrics, plotting
from semid_lib.ids import embed, semantic_ids
from semid_lib.studies import decoding_study as study
from semid_lib.workbench import scale, store
from semid_lib.workbench.text import one_line

plotting.use()
timer = store.Timer()
shop = dataset.load(DATA)
sizes = scale.get(SCALE, shop.name)
artefacts = store.Store(shop.name, SCALE, shop.fingerprint)
print(artefacts.origin())
if len(shop.items) < 100:
    print(f"{len(shop.items)} items are too few: comparing beams takes 100")

# %% [markdown]
# ## 1. Six items by hand
#
# Six items with three codes each. The trie keeps two arrays for each level: the code that leads to each node, and where
# the children of each node begin in the next level. That is all a walk from the root needs:

# %%
below_0 = [[0, 0, 1], [0, 2, 0], [0, 2, 1]]
below_1 = [[1, 1, 0], [1, 1, 2], [1, 1, 3]]
toy = PrefixTrie.build(np.array(below_0 + below_1))
for level in range(toy.n_levels):
    print(f"level {level}: codes {toy.code[level].tolist()}")
    print(f"  children begin at {toy.child_start[level].tolist()}")

# %% tags=["hide-input"] mystnb={"image": {"alt": "A tree of depth three over six items; each edge carries a code, each leaf an item; a bracket shows that the node 1-1 covers the leaves 3 to 5."}}
figures.trie(toy)
plt.show()

# %% [markdown]
# *Figure 1.* The trie of the six items. IDs are sorted, so the nodes of a depth are numbered from left to right, the
# children of a node are neighbours, and **every node covers an interval of items**: the right node of depth 1 covers
# leaves 3 to 5. So a subset of the catalogue needs no second trie, only running sums. With $a_i = 1$ for an allowed
# leaf $i$, else 0, and $S_j = \sum_{i < j} a_i$ the number of allowed leaves before leaf $j$, the search may enter a
# node that covers the leaves $[l, h)$ if and only if
#
# $$ S_h - S_l > 0, $$ (eq-allowed)
#
# which takes two look-ups for any subset. Suppose only items 1 and 3 are in stock:

# %%
in_stock = np.isin(np.arange(6), [1, 3])
subset = toy.subset(in_stock)
print("S:", subset.count[0].tolist())
low, high = (int(bound[0]) for bound in toy.leaves(1, torch.tensor([1])))
count = (subset.count[0][high] - subset.count[0][low]).item()
print(f"node 1 of depth 1 covers [{low}, {high}) with {count} allowed item")
[mask] = toy.allowed_mask(2, torch.tensor([2]), subset)
print("codes that can follow (1, 1):", torch.nonzero(mask).flatten().tolist())

# %% [markdown]
# Now this catalogue. (The usual trie in Python is a dictionary of dictionaries; section 7 compares the memory of both.)

# %%
saved = artefacts.load("semantic_ids")
codes, extra = saved["codes"], saved["disambiguation_code"]
ids = semantic_ids.SemanticIDs(codes, extra, saved.facts["codebook_size"])
started = time.perf_counter()
trie = PrefixTrie.build(ids.unique)
build_ms = 1000 * (time.perf_counter() - started)
trie.save(artefacts.path("prefix_trie.safetensors"))
print(f"{trie.n_items:,} items in {build_ms:.1f} ms", end=" ")
print(f"and {trie.n_bytes / 1000:.0f} kB")

# %%
depths = pd.Index(range(1, trie.n_levels + 1), name="depth")
nodes = pd.DataFrame({"nodes": map(trie.n_nodes, depths)}, index=depths)
nodes.assign(**{"most children of a node above": trie.branching})

# %% [markdown]
# ## 2. A model to decode
#
# To study decoding we need a trained model. This task works for every catalogue, with [histories](../book/notation.md
# "history") or without: after the ID of an item, generate the ID of a similar one. Similar items are the ten nearest by
# [text embedding](../book/notation.md); a tenth of the items is never used as a prompt in training. The model is a
# small Qwen3 [(Qwen Team, 2025)](../book/references.bib "qwen2025"): the architecture of the real one, smaller and with
# random weights; its vocabulary is one token per level and code.

# %%
vectors = embed.normalize(artefacts.load("embeddings")["vectors"])
task = study.similar_items(vectors, ids, SEED)
print(f"{len(task.pairs):,} training pairs, one of them:", end=" ")
print(task.pairs[0].tolist())

# %%
model, epochs = study.train(task, sizes, SEED, progress=True)
begin, end = epochs[0].loss, epochs[-1].loss
print(f"loss {begin:.2f} -> {end:.2f} nats per code", end=" ")
print(f"in {epochs[-1].seconds:.0f} s; {model.num_parameters():,} parameters")

# %% [markdown]
# ## 3. Does free generation name items?
#
# For prompts that did not occur in training, the model generates one ID drawn by its probabilities, and the ten best by
# the beam search of `generate`, both without a trie. We compare them with our beam search, which follows the trie:

# %%
prompts = task.held_out[: sizes.prompts]
contexts = {
    "input_ids": task.as_tokens[prompts],
    "attention_mask": torch.ones_like(task.as_tokens[prompts]),
}
length = {"max_new_tokens": trie.n_levels, "min_new_tokens": trie.n_levels}
sampled = model.generate(**contexts, **length, do_sample=True)
ten = {"num_beams": 10, "num_return_sequences": 10, "do_sample": False}
best_ten = model.generate(**contexts, **length, **ten)
scorer = scorers.CausalScorer(model, task.tokens)
search = beam_search.constrained_beam_search
constrained = search(scorer, contexts, trie, 50, 10).items.numpy()

# %%
is_item = {
    "one sample, free": study.items_of(sampled, task.tokens, trie)[:, None] >= 0,
    "best ten, free": study.items_of(best_ten, task.tokens, trie) >= 0,
    "best ten, constrained": constrained >= 0,
}
validity = {}
for name, each in is_item.items():
    validity[name] = each.reshape(len(prompts), -1).mean(axis=1)
plotting.interval_table(validity, "validity rate").round(4)

# %% [markdown]
# The gap to 1 is the share of generated IDs that name no item. Training narrows it; the trie closes it if there are ten
# items. Codes drawn uniformly at random name an item once in so many draws:

# %%
print(f"{np.prod(ids.sizes, dtype=float) / trie.n_items:,.0f}")

# %% [markdown]
# ## 4. How wide must the beam be?
#
# `exact_ranking` scores *every* item by expanding the whole trie; a beam can at best return the same list. Two
# questions for each width: how much of the exact top ten does it find, and does the difference matter for the task,
# which is to have the nearest item among the ten ([Recall@10](../book/notation.md "Recall@K"); the prompt's item is
# left out)?

# %%
itself = trie.subset(excluded=torch.from_numpy(prompts[:, None]))
k = min(10, trie.n_items - 1)
started = time.perf_counter()
query = (scorer, contexts, trie)
exact = beam_search.exact_ranking(*query, k, itself, progress=True).items
exact_ms = 1000 * (time.perf_counter() - started) / len(prompts)
truth = task.neighbours[prompts, 0]
limit = metrics.recall_at_k(metrics.ranks(exact.numpy(), truth), 10).mean()
print(f"exact: Recall@10 {limit:.3f}, {exact_ms:.1f} ms per prompt")

# %%
beam_rows = {}
for width in (10, 20, 50, 100, 200, 500):
    started = time.perf_counter()
    found = search(scorer, contexts, trie, width, k, itself).items
    seconds = time.perf_counter() - started
    in_both = (found[:, :, None] == exact[:, None, :]).any(dim=2)
    rank = metrics.ranks(found.numpy(), truth)
    beam_rows[width] = {
        "share of the exact top 10": in_both.double().mean().item(),
        "same list, same order": (found == exact).all(dim=1).double().mean(),
        "Recall@10": metrics.recall_at_k(rank, 10).mean(),
        "ms a prompt": 1000 * seconds / len(prompts),
    }
beams = pd.DataFrame(beam_rows, dtype=float).T.rename_axis("beam width")
beams = beams.rename(columns={"ms a prompt": "ms per prompt"})
beams.round(3)

# %% tags=["hide-input"] mystnb={"image": {"alt": "Left: share of the exact top ten found and Recall@10 against beam width, both levelling off. Right: milliseconds per prompt against beam width."}}
figures.beams_against_exact(beams, limit, exact_ms)
plt.show()

# %% [markdown]
# *Figure 2.* A beam loses an item if its first codes score low although the whole ID scores high. The list is complete
# at every width, but a narrow beam can list *other* items; only this comparison shows it. Recall@10 of a narrow beam
# can even be above that of the exact ranking: the beam misses items that the model prefers, and these are not always
# right.
#
# **Which probability ranks?** At each level a model also gives some probability to tokens that cannot occur there, such
# as the codes of other levels. In `generate`, this lowers the score of the item. Dividing by the probability of the
# level's codes instead (`normalization="level"`) removes the effect and can change the ranking. On this model:

# %%
query = (scorer, contexts, trie, 50, k, itself)
by_level = search(*query, normalization="level").items
by_vocabulary = search(*query).items
same = (by_level == by_vocabulary).double().mean()
print(f"{same:.1%} of ranks hold the same item under both normalizations")

# %% [markdown]
# ## 5. Business rules and diversity
#
# A rule is a Boolean per item; rules are combined with `&`. The search enters only allowed nodes, so a list is full as
# long as enough allowed items exist. Filtering a finished list does not guarantee this; the last column shows how many
# of ten would remain:

# %%
random_stock = np.random.default_rng(SEED).random(trie.n_items)
unfiltered = search(scorer, contexts, trie, 50, k).items.numpy()
rule_rows = {}
for share in (1.0, 0.1, 0.01, 0.001):
    allowed = random_stock <= np.quantile(random_stock, share)
    found = search(scorer, contexts, trie, 50, k, allowed).items.numpy()
    rule_rows[f"{allowed.sum():,} items"] = {
        "ranks filled": (found >= 0).mean() * k,
        "outside the subset": (~allowed[found[found >= 0]]).sum(),
        "left after filtering": allowed[unfiltered].mean() * k,
    }
pd.DataFrame(rule_rows).T.rename_axis("allowed").round(2)

# %% [markdown]
# Rules use the columns of the item table, if it has them:

# %%
brands = shop.items.get("brand", pd.Series(dtype=str)).dropna()
brands = brands[brands != ""]
if len(brands):
    name = brands.mode()[0]
    asked = int(prompts[0])
    rule = rules.brand(shop.items, name)
    rule &= ~rules.items_with_ids(shop.items, [shop.item_ids.values[asked]])
    one = {key: tensor[:1] for key, tensor in contexts.items()}
    found = search(scorer, one, trie, 50, 3, rule).items[0].tolist()
    print(f"like {one_line(shop.items['title'][asked], 70)},")
    print(f"but one of {rule.sum()} of {one_line(name)}:")
    for row in filter(lambda row: row >= 0, found):
        print(one_line(shop.items["title"][row], 70))

# %% [markdown]
# A list of ten may hold ten items of one kind. The rule *at most m items under one [prefix](../book/notation.md) of p
# codes*, here two under each first code (`diversity=(2, 1)`), takes the best candidates of the beam in turn and skips
# those whose prefix is full; within the beam no other choice is better.

# %%
wide = (scorer, contexts, trie, 200, k, itself)
diverse = search(*wide, diversity=(2, 1)).items
prompt = int(np.argmax((by_vocabulary != diverse).sum(dim=1)))
title = shop.items["title"].map(lambda text: one_line(text, 36))
print("prompt:", title[prompts[prompt]])
columns = {"plain": by_vocabulary, "at most 2 per first code": diverse}
lists = {name: rows[prompt].tolist()[:6] for name, rows in columns.items()}
first = ids.unique[:, 0]
pd.DataFrame(
    {
        name: [f"{first[row]}: {title[row]}" * (row >= 0) for row in rows]
        for name, rows in lists.items()
    }
)

# %% [markdown]
# ## 6. Where does the time go?
#
# `generate` copies the prompt once per beam, processes every copy, and moves the attention cache of the beams whenever
# their order changes. Our search processes the prompt once. The beams are parts of one sequence, masked so that they do
# not attend to each other (`semid_lib.decoding.scorers`). Both must return the same items in the same order.

# %%
small = {name: tensor[:16] for name, tensor in contexts.items()}
width = min(50, trie.n_items)
follow = adapters.allowed_tokens_fn((task.as_tokens).numpy(), prompt_length=trie.n_levels)
options = {"num_beams": width, "num_return_sequences": width}
options |= {"do_sample": False, "length_penalty": 0.0}
options |= {"prefix_allowed_tokens_fn": follow}

# %%
beams_of_50 = partial(search, scorer, small, trie, width, width)
ours, found = study.best_seconds(beams_of_50)
found = found.items.numpy()
theirs, generated = study.best_seconds(
    lambda: model.generate(**small, **length, **options), repeats=1
)
generated = study.items_of(generated, task.tokens, trie).reshape(-1, width)
same, n = (generated == found).all(axis=1), len(found)
speedup = theirs / ours
print(f"generate: {1000 * theirs / n:.1f} ms per prompt,", end=" ")
print(f"here {1000 * ours / n:.1f} ms: {speedup:.0f} times as fast")
print(f"the same list for {same.sum()} of {n} prompts")

# %% [markdown]
# The prompt here is a single ID. The longer it is, the larger the difference: the [results page](../book/results.md)
# has whole searches with prompts of 82 tokens. The parts of our time:

# %%
timed = study.Timed(scorer)
started = time.perf_counter()
for _ in range(5):
    search(timed, small, trie, width, width)
seconds = time.perf_counter() - started
parts = pd.Series(timed.parts)
parts["select on the trie"] = seconds - parts.sum()
(parts / seconds).map("{:.1%}".format).to_frame("share of the search")

# %% [markdown]
# ## 7. Other ways to constrain a decoder
#
# Now the work of the constraint alone, without a model: given log-probabilities for 8 users with 50 beams each, exclude
# the codes that cannot follow and select the best 50. All methods get the same input and must return the same beams.
# *dict trie* is the usual one; *STATIC* is our implementation of a published design (see the results page), whose trie
# is a set of dense arrays. Engines for grammars of text (outlines, xgrammar, llguidance) were made for JSON, not for
# sets of IDs; if a catalogue is too large for one, it gets as many items as it can handle.

# %%
step_rows = study.compare(
    ids.unique, n_users=8, beam_width=50, seconds=sizes.peer_seconds
)
plotting.rounded(pd.DataFrame(step_rows).set_index("method"))

# %% [markdown]
# The times of one step at each level, in milliseconds; *items* is the number of items that a method ran on. A whole
# search is the sum over the levels. A method that masks the whole vocabulary spends time on tokens that can never
# follow. Timings on a busy machine are rough; the [results page](../book/results.md) has the same comparison with a
# million items.

# %% [markdown]
# ## Summary

# %%
values = {f"validity/{name}": each.mean() for name, each in validity.items()}
for width, line in beam_rows.items():
    values |= {f"beam_{width}/{name}": each for name, each in line.items()}
n_prompts = len(prompts)
rows = [
    {"key": f"decoding/{name}", "value": round(float(one), 6), "n": n_prompts}
    for name, one in values.items()
]
rows += [{"key": "decoding/speedup_over_generate", "value": round(speedup, 2)}]
rows = [row | {"seed": SEED} for row in rows]
_ = artefacts.record("06_constrained_generation", rows)

# %%
assert (constrained >= 0).all() or trie.n_items < 10
free = validity["best ten, free"].mean()
kept = validity["best ten, constrained"].mean()
print(f"validity: free {free:.3f}, constrained {kept:.3f}")
found_by_50 = beams.loc[50, "share of the exact top 10"]
print(f"beam 50 finds {found_by_50:.1%} of the exact top ten")
print(f"generate: the same list for {same.sum()} of {n} prompts,", end=" ")
print(f"{speedup:.0f} times the time")
print(f"{timer.seconds:.0f} s in all")

# %% [markdown]
# **What did not work.** Stopping a step early, when no remaining beam can enter the list, is exact and part of the
# compiled loop, but saves little. A second, small trie for items that come and go was not needed, because building the
# arrays again is fast even with a million items. The [log](../book/log.md) has the numbers of both.
#
# **Next:** [next-item prediction](07_next_item.ipynb), compared with simple baselines.
