# %% [markdown]
# # Constrained generation: how does a model generate only items that exist?
#
# A model that writes [codes](../book/notation.md "code") can write any tuple of them, and most tuples name nothing. A
# [prefix trie](../book/notation.md) lets it choose only among real items. Is the answer then the same as if every item
# had been scored, and what does it cost?
#
# **What you will learn**
#
# 1. the trie on six items, by hand: two small arrays a [level](../book/notation.md), and a
#    [subset](../book/notation.md) without a trie of its own;
# 2. a small language model to decode, trained on this catalogue;
# 3. how often [free generation](../book/notation.md) names an item;
# 4. how wide a beam must be, against the [exact ranking](../book/notation.md) of all items;
# 5. [business rules](../book/notation.md) and diversity inside the search;
# 6. where the time goes, beside `generate`;
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
from itertools import pairwise

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from sklearn.neighbors import NearestNeighbors
from transformers import Qwen3Config, Qwen3ForCausalLM

from semid_lib.data import dataset
from semid_lib.decoding import beam_search, rules, scorers
from semid_lib.decoding.trie import PrefixTrie
from semid_lib.evaluation import metrics
from semid_lib.ids import embed, semantic_ids
from semid_lib.studies import other_decoders
from semid_lib.workbench import scale, store
from semid_lib.workbench import training as train
from semid_lib.workbench.text import one_line

clock = store.Clock()
shop = dataset.load(DATA)
sizes = scale.get(SCALE)
shelf = store.Store(shop.name, SCALE, shop.fingerprint)
rng = np.random.default_rng(SEED)
print(shelf.origin())
if len(shop.items) < 100:
    print(f"{len(shop.items)} items are too few to compare beams: that takes 100")

# %% [markdown]
# ## 1. Six items by hand
#
# Six items with three codes each. The trie keeps two arrays for each level: the code that leads to each node, and where
# the children of each node begin in the next level. Nothing else is needed to walk down from the root:

# %%
toy_ids = np.array([[0, 0, 1], [0, 2, 0], [0, 2, 1], [1, 1, 0], [1, 1, 2], [1, 1, 3]])
toy = PrefixTrie.build(toy_ids)
for level in range(toy.n_levels):
    print(f"level {level}: codes {toy.code[level].tolist()}, ", end="")
    print(f"children of node i begin at {toy.child_start[level].tolist()}")

# %% tags=["hide-input"] mystnb={"image": {"alt": "A tree of depth three over six items; each edge carries a code, each leaf an item; a bracket shows that the node 1-1 covers the leaves 3 to 5."}}
figure, axis = plt.subplots(figsize=(8, 3.4), layout="constrained")
place = [np.arange(toy.n_items, dtype=float)]
for depth in reversed(range(toy.n_levels)):
    start = toy.child_start[depth].tolist()
    place.insert(
        0,
        np.array([place[0][a:b].mean() for a, b in pairwise(start)]),
    )
for depth in range(toy.n_levels):
    for node in range(toy.n_nodes(depth)):
        for code, child in toy.children(depth, node).items():
            x, y = (place[depth][node], place[depth + 1][child]), (-depth, -depth - 1)
            axis.plot(x, y, color="tab:grey", linewidth=1, zorder=1)
            axis.text(
                np.mean(x),
                np.mean(y),
                code,
                ha="center",
                va="center",
                backgroundcolor="w",
            )
for depth in range(toy.n_levels + 1):
    axis.scatter(place[depth], [-depth] * len(place[depth]), color="tab:blue", zorder=2)
for leaf in range(toy.n_items):
    axis.text(leaf, -3.35, f"item {toy.item[leaf]}", ha="center")
axis.set(ylim=(-3.6, 0.3), yticks=[0, -1, -2, -3], yticklabels=range(4), ylabel="depth")
axis.set_xticks([])
axis.spines[["top", "right", "bottom"]].set_visible(False)
plt.show()

# %% [markdown]
# *Figure 1.* The trie of the six items. IDs are sorted, so the nodes of a depth are numbered from left to right, a
# node's children stand next to each other, and **every node covers an interval of items**: the right node of depth 1
# covers leaves 3 to 5. That is why a subset of the catalogue needs no trie of its own, only running sums. With
# $a_i = 1$ for an allowed leaf $i$, else 0, and $S_j = \sum_{i < j} a_i$ the number of allowed leaves before leaf $j$,
# a node that covers the leaves $[l, h)$ may be entered if and only if
#
# $$ S_h - S_l > 0, $$ (eq-allowed)
#
# two look-ups, whatever the subset. Suppose only items 1 and 3 are in stock:

# %%
in_stock = np.isin(np.arange(6), [1, 3])
subset = toy.subset(in_stock)
print("S:", subset.count[0].tolist())
low, high = (int(bound[0]) for bound in toy.leaves(1, torch.tensor([1])))
print(f"node 1 of depth 1 covers [{low}, {high}): S_{high} - S_{low} = 1, so enter")
codes_of_2 = toy.allowed_mask(2, torch.tensor([2]), subset)
print("codes that may follow (1, 1):", torch.nonzero(codes_of_2[0]).flatten().tolist())

# %% [markdown]
# Now this catalogue. (The usual trie in Python is a dictionary of dictionaries; section 7 has its memory beside this
# one's.)

# %%
saved = shelf.load("semantic_ids")
ids = semantic_ids.SemanticIDs(
    saved["codes"], saved["disambiguation_code"], saved.facts["codebook_size"]
)
started = time.perf_counter()
trie = PrefixTrie.build(ids.unique)
build_ms = 1000 * (time.perf_counter() - started)
trie.save(shelf.path("prefix_trie.safetensors"))
print(f"{trie.n_items:,} items in {build_ms:.1f} ms and {trie.n_bytes / 1000:.0f} kB")
pd.DataFrame(
    {
        "nodes": [trie.n_nodes(depth + 1) for depth in range(trie.n_levels)],
        "most children of a node above": trie.branching,
    },
    index=pd.Index(range(1, trie.n_levels + 1), name="depth"),
)

# %% [markdown]
# ## 2. A model to decode
#
# To look at decoding we need a model that has learned something, and every catalogue, with
# [histories](../book/notation.md "history") or without, can teach one this: after the ID of an item, write the ID of a
# similar one. Similar items are the ten nearest by [text embedding](../book/notation.md); a tenth of the items is never
# used as a prompt in training. The model is a small Qwen3 [(Qwen Team, 2025)](../book/references.bib "qwen2025"): the
# architecture of the real one, smaller and with random weights; its vocabulary is one token per level and code.

# %%
vectors = embed.normalize(shelf.load("embeddings")["vectors"])
nearest = NearestNeighbors(n_neighbors=min(10, len(vectors) - 1), metric="cosine")
neighbours = nearest.fit(vectors).kneighbors(return_distance=False)  # itself left out
n_held_out = min(max(20, len(ids) // 10), len(ids) // 2)
held_out = rng.permutation(len(ids))[:n_held_out]
learned_from = np.setdiff1d(np.arange(len(ids)), held_out)
starts = 1 + np.cumsum([0, *ids.sizes[:-1]])
tokens = [start + np.arange(size) for start, size in zip(starts, ids.sizes, strict=True)]
as_tokens = torch.from_numpy(ids.unique + starts)  # (n_items, n_levels)
pairs = torch.cat(
    [
        as_tokens[np.repeat(learned_from, neighbours.shape[1])],
        as_tokens[neighbours[learned_from].ravel()],
    ],
    dim=1,
)
print(f"{len(pairs):,} training pairs, one of them: {pairs[0].tolist()}")


# %%
class WithLoss(torch.nn.Module):
    """The language model with its loss on the second ID of each pair."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, batch):
        labels = batch.clone()
        labels[:, : batch.shape[1] // 2] = -100
        return self.model(input_ids=batch, labels=labels).loss


torch.manual_seed(SEED)
config = Qwen3Config(
    vocab_size=int(starts[-1] + ids.sizes[-1]),
    hidden_size=sizes.dim,
    intermediate_size=3 * sizes.dim,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=32,
    pad_token_id=0,
    bos_token_id=None,
    eos_token_id=None,
)
model = Qwen3ForCausalLM(config)
loader = torch.utils.data.DataLoader(pairs, batch_size=256, shuffle=True)
settings = train.TrainingConfig.sized(1, sizes.similar_steps, len(loader), seed=SEED)
epochs = train.fit(WithLoss(model), loader, settings, progress=True)
print(f"loss {epochs[0].loss:.2f} -> {epochs[-1].loss:.2f} nats a code ", end="")
print(f"in {epochs[-1].seconds:.0f} s; {model.num_parameters():,} parameters")

# %% [markdown]
# ## 3. Does free generation name items?
#
# After each of some prompts that it has never seen, the model writes one ID that is drawn at random by its
# probabilities, and the ten best by the beam search of `generate`, both without a trie. Beside them our beam search,
# which follows the trie:

# %%
prompts = held_out[: sizes.prompts]
contexts = {
    "input_ids": as_tokens[prompts],
    "attention_mask": torch.ones(len(prompts), trie.n_levels, dtype=torch.long),
}
length = {"max_new_tokens": trie.n_levels, "min_new_tokens": trie.n_levels}


def items_named(sequences):
    """The item that each written sequence names, -1 for none."""
    written = sequences[:, trie.n_levels :] - torch.from_numpy(starts)
    node = torch.zeros(len(written), dtype=torch.long)
    for level in range(trie.n_levels):
        node = trie.step(level, node, written[:, level])
    return trie.item_at(node).numpy()


sampled = items_named(model.generate(**contexts, **length, do_sample=True))
ten = {"num_beams": 10, "num_return_sequences": 10, "do_sample": False}
best_ten = items_named(model.generate(**contexts, **length, **ten)).reshape(-1, 10)
scorer = scorers.CausalScorer(model, tokens)
constrained = beam_search.constrained_beam_search(scorer, contexts, trie, 50, 10)
validity = {
    "one sample, free": (sampled[:, None] >= 0).mean(axis=1),
    "best ten, free": (best_ten >= 0).mean(axis=1),
    "best ten, constrained": (constrained.items >= 0).double().mean(dim=1).numpy(),
}
pd.DataFrame(
    metrics.bootstrap_intervals(np.column_stack(list(validity.values()))),
    index=pd.Index(validity, name="validity rate"),
    columns=["mean", "low", "high"],
).round(4)

# %% [markdown]
# The gap to 1 is the share of generated IDs that name no item. Training narrows it; the trie closes it, where there are
# ten items. Codes drawn uniformly at random name an item with probability:

# %%
print(f"{trie.n_items / np.prod(ids.sizes, dtype=float):.2e}")

# %% [markdown]
# ## 4. How wide must the beam be?
#
# `exact_ranking` scores *every* item, by expanding the whole trie; a beam can at best return the same list. Two
# questions for each width: how much of the exact top ten does it find, and does the difference matter for the task,
# which is to have the nearest item among the ten ([Recall@10](../book/notation.md "Recall@K"); the prompt's own item is
# left out)?

# %%
itself = trie.subset(excluded=torch.from_numpy(prompts[:, None]))
k = min(10, trie.n_items - 1)
started = time.perf_counter()
exact = beam_search.exact_ranking(scorer, contexts, trie, k, itself, progress=True)
exact_ms = 1000 * (time.perf_counter() - started) / len(prompts)
truth = neighbours[prompts, 0]
limit = metrics.recall_at_k(metrics.ranks(exact.items.numpy(), truth), 10).mean()
print(f"exact: Recall@10 {limit:.3f}, {exact_ms:.1f} ms a prompt")

# %%
beam_rows = {}
for width in (10, 20, 50, 100, 200, 500):
    started = time.perf_counter()
    found = beam_search.constrained_beam_search(scorer, contexts, trie, width, k, itself)
    seconds = time.perf_counter() - started
    in_both = (found.items[:, :, None] == exact.items[:, None, :]).any(dim=2)
    same = (found.items == exact.items).all(dim=1)
    rank = metrics.ranks(found.items.numpy(), truth)
    beam_rows[width] = {
        "share of the exact top 10": in_both.double().mean().item(),
        "same list, same order": same.double().mean().item(),
        "Recall@10": metrics.recall_at_k(rank, 10).mean(),
        "ms a prompt": 1000 * seconds / len(prompts),
    }
beams = pd.DataFrame(beam_rows).T.rename_axis("beam width")
beams.round(3)

# %% tags=["hide-input"] mystnb={"image": {"alt": "Left: share of the exact top ten found and Recall@10 against beam width, both levelling off. Right: milliseconds a prompt against beam width."}}
figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.4), layout="constrained")
left.plot(
    beams["share of the exact top 10"],
    color="tab:blue",
    marker="o",
    label="of the exact top 10, found",
)
left.plot(
    beams["Recall@10"],
    color="tab:green",
    marker="o",
    label="Recall@10 of the nearest item",
)
left.axhline(limit, color="tab:green", linestyle=":", label="Recall@10, exact")
left.set(xscale="log", xlabel="beam width", ylabel="share", ylim=(0, 1.05))
left.legend(frameon=False)
right.plot(beams["ms a prompt"], color="tab:blue", marker="o")
right.axhline(exact_ms, color="black", linestyle=":", label="every item scored")
right.set(xscale="log", yscale="log", xlabel="beam width", ylabel="ms a prompt")
right.legend(frameon=False)
for axis in (left, right):
    axis.set_xticks(beams.index, beams.index)
    axis.minorticks_off()
plt.show()

# %% [markdown]
# *Figure 2.* A beam loses an item when its first codes look poor although the whole ID is good. The list is complete at
# every width; a narrow beam can list *other* items, and only this comparison shows it. Recall@10 of a narrow beam may
# even be above that of the exact ranking: what the beam misses is what the model prefers, not always what is right.
#
# **Which probability ranks?** At each level a model also gives some probability to tokens that cannot stand there, such
# as the codes of other levels. `generate` lets that count against the item. Dividing by the probability of the level's
# own codes instead (`normalization="level"`) forgives it, and can rank differently. On this model:

# %%
by_level = beam_search.constrained_beam_search(
    scorer, contexts, trie, 50, k, itself, normalization="level"
)
by_vocabulary = beam_search.constrained_beam_search(scorer, contexts, trie, 50, k, itself)
same = (by_level.items == by_vocabulary.items).double().mean()
print(f"{same:.1%} of places hold the same item under both normalizations")

# %% [markdown]
# ## 5. Business rules and diversity
#
# A rule is a Boolean per item; rules compose with `&`. The search sees only allowed nodes, so a list is full as long as
# enough allowed items exist, however few they are. Filtering a finished list could not promise that; the last column
# says how many of ten would be left:

# %%
random_stock = rng.random(trie.n_items)
rule_rows = {}
for share in (1.0, 0.1, 0.01, 0.001):
    allowed = random_stock <= np.quantile(random_stock, share)
    found = beam_search.constrained_beam_search(scorer, contexts, trie, 50, k, allowed)
    unfiltered = beam_search.constrained_beam_search(scorer, contexts, trie, 50, k).items
    listed = found.items[found.items >= 0].numpy()
    rule_rows[f"{allowed.sum():,} items"] = {
        "places filled": (found.items >= 0).double().mean().item() * k,
        "outside the subset": int((~allowed[listed]).sum()),
        "left of ten by filtering afterwards": allowed[unfiltered.numpy()].mean() * k,
    }
pd.DataFrame(rule_rows).T.rename_axis("allowed").round(2)

# %% [markdown]
# Rules come from the columns of the item table, where it has them:

# %%
brands = shop.items.get("brand", pd.Series(dtype=str)).dropna()
brands = brands[brands != ""]
if len(brands):
    name = brands.mode()[0]
    asked = int(prompts[0])
    rule = rules.brand(shop.items, name)
    rule &= ~rules.items_with_ids(shop.items, [shop.item_ids.values[asked]])
    one = {key: tensor[:1] for key, tensor in contexts.items()}
    found = beam_search.constrained_beam_search(scorer, one, trie, 50, 3, rule)
    print(f"like {one_line(shop.items['title'][asked])},")
    print(f"but one of {rule.sum()} of {one_line(name)}:")
    for row in found.items[0].tolist():
        print(one_line(shop.items["title"][row]) if row >= 0 else "(no more)")

# %% [markdown]
# A list of ten may be ten of one kind. The rule *at most m items under one [prefix](../book/notation.md) of p codes*,
# here two under each first code (`diversity=(2, 1)`), takes the best candidates of the beam in turn and skips those
# whose prefix is full; within the beam no other choice would be better.

# %%
diverse = beam_search.constrained_beam_search(
    scorer, contexts, trie, 200, k, itself, diversity=(2, 1)
)
prompt = int(np.argmax((by_vocabulary.items != diverse.items).sum(dim=1)))
title = shop.items["title"].map(lambda text: one_line(text, 44))
columns = {"plain": by_vocabulary.items, "at most 2 per first code": diverse.items}
print("prompt:", title[prompts[prompt]])
pd.DataFrame(
    {
        name: [
            f"{ids.unique[row][0]}: {title[row]}" if row >= 0 else ""
            for row in rows[prompt].tolist()
        ]
        for name, rows in columns.items()
    }
).head(6)

# %% [markdown]
# ## 6. Where does the time go?
#
# `generate` copies the prompt once per beam, reads it that often, and moves the keys and values that attention keeps of
# each beam when beams change places. Here the prompt is read once, and beams stand beside one another in one sequence,
# masked so that they do not see each other (`semid_lib.decoding.scorers`). Both must return the same items in the same order.

# %%
WIDTH, few = 50, slice(0, 16)
small = {name: tensor[few] for name, tensor in contexts.items()}
width = min(WIDTH, trie.n_items)


def best_seconds(work, repeats=3):
    """Seconds of the fastest of a few runs, and what the work returned."""
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        answer = work()
        seconds.append(time.perf_counter() - started)
    return min(seconds), answer


ours, found = best_seconds(
    lambda: beam_search.constrained_beam_search(scorer, small, trie, width, width)
)
theirs, generated = best_seconds(
    lambda: model.generate(
        **small,
        **length,
        num_beams=width,
        num_return_sequences=width,
        do_sample=False,
        length_penalty=0.0,
        prefix_allowed_tokens_fn=other_decoders.allowed_tokens_fn(
            ids.unique + starts, prompt_length=trie.n_levels
        ),
    ),
    repeats=1,
)
same = (items_named(generated).reshape(-1, width) == found.items.numpy()).all(axis=1)
users = len(found.items)
slow, fast = 1000 * theirs / users, 1000 * ours / users
print(f"generate {slow:.1f} ms a prompt, here {fast:.1f} ms: {slow / fast:.0f} times")
print(f"the same list for {same.sum()} of {users} prompts")

# %% [markdown]
# The prompt here is a single ID. The longer it is, the more `generate` loses: the [results page](../book/results.md)
# has whole searches with prompts of 82 tokens. The parts of our time:

# %%
parts = {"read the prompt": 0.0, "extend the beams": 0.0, "select on the trie": 0.0}


class Timed:
    """A scorer that adds up the time of its two methods."""

    def begin(self, *arguments):
        started = time.perf_counter()
        answer = scorer.begin(*arguments)
        parts["read the prompt"] += time.perf_counter() - started
        return answer

    def advance(self, *arguments):
        started = time.perf_counter()
        answer = scorer.advance(*arguments)
        parts["extend the beams"] += time.perf_counter() - started
        return answer


started = time.perf_counter()
for _ in range(5):
    beam_search.constrained_beam_search(Timed(), small, trie, width, width)
parts["select on the trie"] = time.perf_counter() - started - sum(parts.values())
share = pd.Series(parts) / sum(parts.values())
share.map("{:.1%}".format).to_frame("share of the search")

# %% [markdown]
# ## 7. Other ways to constrain a decoder
#
# Now the work of the constraint alone, without a model: given log-probabilities for 8 users with 50 beams each, rule
# out what may not follow and select the best 50. All methods get the same input and must return the same beams. Engines
# for grammars of text (outlines, xgrammar, llguidance) were made for JSON, not for sets of IDs; where a catalogue is
# too large for one, it gets as many items as it can take.

# %%
step_rows = other_decoders.compare(
    ids.unique, n_users=8, beam_width=50, seconds=sizes.peer_seconds
)
steps = pd.DataFrame(step_rows).set_index("method")
steps.round(3)

# %% [markdown]
# The times of one step at each level, in milliseconds; `items` says on how many items a method ran. A whole search adds
# the levels up. A method that masks the whole vocabulary pays for tokens that never could follow. Timings on a busy
# machine are rough; the [results page](../book/results.md) has the same comparison at a million items.

# %% [markdown]
# ## Summary

# %%
rows = [
    {
        "key": f"decoding/validity/{name}",
        "value": round(float(value.mean()), 6),
        "n": len(prompts),
    }
    for name, value in validity.items()
]
rows += [
    {
        "key": f"decoding/beam_{width}/{name}",
        "value": round(float(value), 6),
        "n": len(prompts),
    }
    for width, line in beam_rows.items()
    for name, value in line.items()
]
rows += [{"key": "decoding/speedup_over_generate", "value": round(theirs / ours, 2)}]
shelf.record("06_constrained_generation", [row | {"seed": SEED} for row in rows])
assert (constrained.items >= 0).all() or trie.n_items < 10
free, kept = (validity[f"best ten, {how}"].mean() for how in ("free", "constrained"))
print(f"validity: free {free:.3f}, constrained {kept:.3f}")
found_by_50 = beams.loc[50, "share of the exact top 10"]
print(f"beam 50 finds {found_by_50:.1%} of the exact top ten")
print(f"the list of generate for {same.sum()} of {users} prompts, ", end="")
print(f"{theirs / ours:.0f} times faster at this size")
print(f"the whole chapter took {clock.seconds:.0f} s")

# %% [markdown]
# **What did not work.** Stopping a step early, when no beam that is left can still enter the list, is exact and built
# into the compiled loop, but saves little. A second, small trie for items that come and go was not needed, since making
# the arrays anew is fast even at a million items. The [log](../book/log.md) has the figures of both.
#
# **Next:** [next-item prediction](07_next_item.ipynb), measured against methods that only count.
