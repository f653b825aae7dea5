# %% [markdown]
# # Can a language model learn to answer with items?
#
# A language model knows words and no catalogue. Taught one new token for every [code](../book/notation.md), it can
# write [semantic IDs](../book/notation.md "semantic ID"); taught [synthetic
# queries](../book/notation.md "synthetic query"), it can answer a search with them. Is that better than looking for
# similar words, or similar vectors?
#
# **What you will learn**
#
# 1. how a vocabulary grows by the codes, and where the new rows begin;
# 2. what the model is taught, and on which tokens the loss falls;
# 3. what [fine-tuning](../book/notation.md) will cost, before it starts, and how it goes;
# 4. a [light model](../book/notation.md) for a CPU, which starts as [dense retrieval](../book/notation.md) and
#    [BM25](../book/notation.md) and learns from queries;
# 5. whether a model writes IDs that exist when nothing holds it back;
# 6. how all methods compare on the same queries, on new items, and by kind of query;
# 7. what the lists look like;
# 8. what is saved for later chapters.
#
# | | |
# | --- | --- |
# | reads | `embeddings` (chapter 01), `semantic_ids` (chapter 02), `synthetic_queries` (chapter 04); the queries of the data set, if any, for the test alone |
# | writes | `recommender_light` and `recommender_llm`: folders for `Recommender.from_pretrained`; `sft_run`: checkpoints, which may be deleted; result rows |
# | runs in | under a minute at `smoke`; at `laptop` minutes for the demo shop and up to an hour for a large catalogue; `full` wants a GPU |

# %% tags=["parameters"]
DATA = "demo"  # or a folder with items.jsonl and, perhaps, queries.jsonl
SCALE = "laptop"  # smoke, laptop or full
SEED = 0
BASE_MODEL = ""  # a name of base_models.MODELS, or a folder; "": see below

# %% [markdown]
# Where `BASE_MODEL` has no name, `full` on a machine with a GPU takes Qwen3-4B, which was pretrained on the texts of
# the web; everything else takes a small Qwen3 [(Qwen Team, 2025)](../book/references.bib "qwen2025"): the same
# architecture with random weights, trained here from scratch, with a tokenizer trained on the catalogue. Both go
# through the same code.

# %%
import textwrap

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch

from semid_lib.data import dataset
from semid_lib.decoding.trie import PrefixTrie
from semid_lib.evaluation import evaluate, metrics, plotting
from semid_lib.ids import codebooks, embed, semantic_ids
from semid_lib.llm import base_models, examples, fine_tuning, vocabulary
from semid_lib.llm import llm_search as generative
from semid_lib.queries import filters, synthesis
from semid_lib.search import hybrid_ranker, retrieval
from semid_lib.serving.recommender import Recommender
from semid_lib.workbench import scale, store
from semid_lib.workbench import training as train
from semid_lib.workbench.text import one_line

plotting.use()
clock = store.Clock()
shop = dataset.load(DATA)
sizes = scale.get(SCALE)
shelf = store.Store(shop.name, SCALE, shop.fingerprint)
rng = np.random.default_rng(SEED)
print(shelf.origin())
if len(shop.items) < 100:
    print(f"{len(shop.items)} items are too few to compare methods: that takes 100")

# %%
embedded = shelf.load("embeddings")
item_vectors = embed.normalize(embedded["vectors"])
saved = shelf.load("semantic_ids")
ids = semantic_ids.SemanticIDs(
    saved["codes"], saved["disambiguation_code"], saved.facts["codebook_size"]
)
trie = PrefixTrie.build(ids.unique)
asked = synthesis.load_queries(shelf)
print(f"{len(asked.train):,} queries to learn from, {len(asked.test):,} held out")

# %% [markdown]
# Some items of the test have no queries to learn from: they play the items that arrive after training. Of half of them
# the language model is taught the title, as a shop could do at night. The other half is *hidden*: it stands in the
# [prefix trie](../book/notation.md) of chapter 02, so its IDs may be written, but nowhere in the training. If the model
# writes one of these IDs, it is because it has learned what the codes mean from other items that carry them.

# %%
is_new = asked.test["cell"].str.startswith("unseen item")
new_items = np.unique(asked.test["item"][is_new])
hidden = rng.permutation(new_items)[: len(new_items) // 2]
is_taught = ~np.isin(np.arange(len(ids)), hidden)
print(f"{len(new_items):,} of {len(ids):,} items without queries, {len(hidden):,} hidden")

# %% [markdown]
# ## 1. New words for a language model
#
# Each code of each [level](../book/notation.md) becomes one token, `<|sid_level_code|>`, so an answer is as many tokens
# as an ID has codes. Each new token needs a row in the model's embedding table. A random row would mean nothing, and
# fine-tuning would first have to find out where it belongs. So the row of code $c$ at level $l$ begins among the words
# of the items $I_{l,c}$ that carry it, as the mean of their mean word rows, brought to the length of an ordinary row:
#
# $$ e_{l,c} = s \, \frac{m_{l,c}}{\lVert m_{l,c} \rVert} + \varepsilon , \qquad m_{l,c} = \frac{1}{|I_{l,c}|} \sum_{i \in I_{l,c}} \frac{1}{|t_i|} \sum_{w \in t_i} e_w , $$ (eq-new-rows)
#
# where $t_i$ are the tokens of the item's text, $s$ the median length of an ordinary row and $\varepsilon$ a little noise
# that keeps two codes apart. By hand, with two words, three items and two codes at one level:

# %%
words = torch.tensor([[1.0, 0.0], [0.0, 2.0]])  # the rows of "red" and "tent"
texts = [[0], [0, 1], [1]]  # "red", "red tent", "tent"
codes = np.array([[0], [0], [1]])
m = (words[0] + (words[0] + words[1]) / 2) / 2  # code 0: the first two items
by_hand = 1.0 * m / m.norm()  # torch's median of the lengths 1 and 2 is the lower one
[rows] = vocabulary.initial_rows(words, texts, codes, (2,), 0.0, torch.Generator())
print(by_hand.tolist(), rows[0].tolist())
assert torch.allclose(by_hand, rows[0])

# %% [markdown]
# Now a model. The small one gets a tokenizer made of this catalogue's texts and of the questions to learn from; a
# pretrained one comes with its own. What a small one lacks is any idea of what words mean, and short questions about
# one shop teach little of it. So the row of each of its words begins with the vector that the sentence encoder of
# chapter 01 gives to the word alone, reduced to as many principal components as the model is wide.

# %%
item_texts = embed.item_texts(shop.items)
encode = embed.Encoder(embedded.facts["embedder"])
base_model = BASE_MODEL or (
    "qwen3-4b" if SCALE == "full" and torch.cuda.is_available() else ""
)
if base_model:
    model, tokenizer = base_models.load_base(base_model)
else:
    shape = (sizes.lm_vocabulary, sizes.lm_dim, sizes.lm_layers, sizes.lm_heads)
    questions = map(examples.TASKS["query_to_id"][0].format, asked.train["query"])
    corpus = [*item_texts, *questions]
    model, tokenizer = base_models.small_model(corpus, *shape, seed=SEED, embed=encode)
n_words = len(tokenizer)

# %%
known_texts = [
    text if here else "" for text, here in zip(item_texts, is_taught, strict=True)
]
tokens = vocabulary.extend_vocabulary(model, tokenizer, ids, known_texts, seed=SEED)
facts = base_models.facts_of(model)
print(f"{facts.n_parameters:,} parameters in {facts.n_layers} layers; {n_words:,} tokens")
print(f"and {sum(map(len, tokens)):,} new ones for codes, {len(tokens)} in an answer")

# %% [markdown]
# Does a row know its items before any training? For each of the three most used first codes, take what sets its row
# apart from the mean of all first codes, and look for the words whose rows lie nearest to that:

# %%
table = model.get_input_embeddings().weight.detach().float().cpu()
first_codes = table[tokens[0]]
apart = torch.nn.functional.normalize(first_codes - first_codes.mean(dim=0), dim=1)
nearness = apart @ torch.nn.functional.normalize(table[: min(tokens[0])], dim=1).T
most_used = np.bincount(ids.codes[:, 0], minlength=len(tokens[0])).argsort()[::-1][:3]
near = {
    f"<|sid_0_{code}|>": ", ".join(
        repr(tokenizer.decode([word]).strip())
        for word in nearness[code].topk(8).indices.tolist()
    )
    for code in most_used.tolist()
}
pd.Series(near, name="nearest words").to_frame()

# %% [markdown]
# Where the words of a line fit together, the row knows what its items have in common before a single question was
# answered.

# %% [markdown]
# ## 2. What it is taught
#
# Questions and answers, as a chat, of several kinds. A query is answered with an ID; so are titles and descriptions,
# for every item that is not hidden. An ID is answered with its title, which ties the new words to old ones; a
# [history](../book/notation.md), where a shop has them, with the next ID. The mixture is that of LC-Rec [(Zheng et al.,
# 2023)](../book/references.bib "zheng2023"), with queries added for a shop without histories.

# %%
known = shop.items.assign(title=shop.items["title"].where(is_taught, ""))
if "description" in known:
    known["description"] = known["description"].where(is_taught, "")
histories = None
if shop.histories is not None:
    past = dataset.leave_one_out(shop.histories, allow_empty=True).train
    histories = dataset.Histories.from_lists([h[is_taught[h]] for h in past])
wanted = asked.train["item"].to_numpy(copy=True)  # what is read from a file is read-only
material = {"queries": (asked.train["query"].tolist(), wanted), "histories": histories}
print("without histories" if histories is None else f"{len(histories):,} histories")

# %% [markdown]
# One example of each kind, as the model reads it: question, answer, end. What stands here is exactly what is tokenized.

# %%
every_task = dict.fromkeys(examples.TASKS, 1)
few = examples.training_rows(
    known, ids, 25, **material, weights=every_task, n_phrasings=1, seed=SEED
)
example_of = {row["task"]: row for row in few}
for task in examples.TASKS:
    print(f"--- {task}" + ("" if task in example_of else ": nothing to teach it from"))
    if task in example_of:
        row = example_of[task]
        chat = [*row["prompt"], *row["completion"]]
        options = row["chat_template_kwargs"]
        for line in tokenizer.apply_chat_template(chat, tokenize=False, **options).split(
            "\n"
        ):
            print(textwrap.fill(line, 84))

# %% [markdown]
# A large pretrained model gets all kinds (`sft_examples.WEIGHTS`), each question in three phrasings. The small one gets
# the two kinds that answering queries needs, five queries for every title, always in one phrasing: it starts without a
# language, and every other kind would take examples from these.

# %%
weights = examples.WEIGHTS if base_model else {"query_to_id": 5, "title_to_id": 1}
n_rows = min(sizes.lm_rows, sizes.lm_rows_per_item * len(ids))
rows = examples.training_rows(
    known,
    ids,
    n_rows,
    **material,
    weights=weights,
    n_phrasings=3 if base_model else 1,
    seed=SEED,
)
taught = pd.DataFrame(
    {
        "task": [row["task"] for row in rows],
        "example": [
            row["prompt"][0]["content"] + row["completion"][0]["content"] for row in rows
        ],
    }
)
taught.groupby("task")["example"].agg(examples="size", different="nunique")

# %% [markdown]
# Where *different* is the smaller number, some examples come more than once. It is kept to a few times, because a model
# from scratch learns queries by heart if it sees them often.
#
# **The loss falls on the answer alone.** The question is read but not learned: a model whose loss also counts the
# question spends itself on guessing what shoppers type. The tokens and labels of an example (the shortest of the first
# 20); a dot stands where there is no label, so no loss:

# %%
config = (
    fine_tuning.FineTuning(seed=SEED)
    if base_model
    else fine_tuning.FineTuning(
        method="full",
        row_steps=0,  # from scratch all rows are new: no first stage
        n_epochs=1,
        learning_rate=1.5e-3,
        batch_size=64,
        weight_decay=0.01,
        pool=16,
        save_every=1000,
        seed=SEED,
    )
)
tokenized = examples.tokenize(rows, tokenizer, config.max_length)

# %%
one = min(
    tokenized.select(range(min(20, len(rows)))),
    key=lambda example: len(example["input_ids"]),
)
pd.DataFrame(
    {
        "token": [repr(tokenizer.decode([token])) for token in one["input_ids"]],
        "label": [
            "·" if label == -100 else repr(tokenizer.decode([label]))
            for label in one["labels"]
        ],
    }
)

# %% [markdown]
# ## 3. Fine-tuning
#
# Before hours are spent: will it fit, and when will it be done? Memory is arithmetic: in float32 four bytes for a
# weight, twelve more for what trains it (its gradient and AdamW's two moments), and what a batch leaves behind for the
# backward pass. Time is the number of tokens divided by a speed, which a few batches tell:

# %%
speed = fine_tuning.measured_speed(model, tokenized, config, tokens)
cost = fine_tuning.estimate(model, tokenized, config, tokens, speed)
n_steps = {stage: config.n_steps(stage, len(rows)) for stage in config.stages}
print(f"{len(rows):,} examples, steps: {n_steps}")
print(f"{speed:,.0f} tokens a second, so about {cost.seconds / 60:.1f} minutes")
print(f"{cost.memory_gib:.2f} GiB: {cost.weights_gib:.2f} for the weights, ", end="")
print(f"{cost.training_gib:.2f} to train them, {cost.activations_gib:.2f} for a batch")

# %% [markdown]
# The same arithmetic for the models that `BASE_MODEL` knows by name, with the defaults for a GPU. First the new rows
# are trained alone; then LoRA [(Hu et al., 2021)](../book/references.bib "hu2021"), which leaves the weights of the
# model as they are and trains a product of two thin matrices (here of rank 32) beside each linear map, with the new
# rows still in training; two epochs over as many examples as above. No speed was measured for them. Training takes
# about six floating-point operations for each parameter and token; with a GPU that is *assumed* to do $10^{14}$ of them
# a second that gives an order of magnitude. The tokens are counted by the tokenizer of this run.

# %%
known_costs = fine_tuning.estimate_known(
    tokenized, sum(map(len, tokens)), fine_tuning.FineTuning(), operations_per_second=1e14
)
known_costs.style.format("{:.2g}", subset=known_costs.columns[2:])

# %%
if base_model:
    print(f"fine-tuned in this run: {base_model}")
else:
    print("fine-tuned in this run: the small model. None of those in the table was, so")
    print("nothing on this page says how well a model of 4 billion parameters would do.")

# %%
tuned = fine_tuning.fine_tune(
    model,
    tokenizer,
    rows,
    tokens,
    config,
    shelf.path("sft_run"),
    resume=bool(base_model),  # a small model is trained anew, a long run goes on
    progress=True,
)
model = tuned.model
print(f"{tuned.seconds / 60:.1f} minutes, {cost.seconds / 60:.1f} were estimated")

# %% [markdown]
# What would the loss be for a model that ignores the question and only knows how often each code is used? The entropies
# of the levels, added up and divided by the number of tokens in an answer (the last of them, which ends it, is certain
# and adds nothing):

# %%
by_use = codebooks.perplexity(ids.unique, max(ids.sizes))
floor = float(np.log(by_use).sum()) / (len(tokens) + 1)
losses = pd.DataFrame(tuned.losses, columns=["stage", "step", "loss"])
last_tenth = losses[losses["stage"] == losses["stage"].iloc[-1]].tail(len(losses) // 10)
end_loss = float((last_tenth if len(last_tenth) else losses)["loss"].mean())
print(f"{floor:.2f} nats by use alone; {end_loss:.2f} at the end of the training")

# %% tags=["hide-input"] mystnb={"image": {"alt": "Loss of an answer's token against the training step, falling; a dotted line marks a model that knows only how often each code is used."}}
figure, axis = plt.subplots(figsize=(7.5, 3.4), layout="constrained")
for stage, part in losses.groupby("stage", sort=False):
    axis.plot(part["step"], part["loss"], label=f"stage: {stage}", linewidth=1)
axis.axhline(floor, color="black", linestyle=":", label="codes by use alone")
axis.set(xlabel="step", ylabel="loss, nats a token of the answer", ylim=0)
axis.legend(frameon=False)
plt.show()

# %% [markdown]
# *Figure 1.* The loss while training. Below the dotted line the model makes use of the question. The loss is that of
# the examples as they come, some of which have been seen before, so where it ends says little about new queries:
# sections 5 and 6 do.

# %% [markdown]
# ## 4. A light model for a CPU
#
# Does it take a language model at all? A sentence encoder already knows what a query means, and BM25 [(Robertson and
# Zaragoza, 2009)](../book/references.bib "robertson2009") which words it shares with an item. The light model keeps
# both as they are, and writes an ID code by code, like the language model. With $x_q$ and $x_i$ the embeddings of query
# and item, and $P_c$ the items whose ID begins with the [prefix](../book/notation.md) written so far and then code $c$,
#
# $$ p(c \mid \text{prefix}, q) \propto \exp\Big( \log \sum_{i \in P_c} e^{s(q, i) / \tau} \; + \; h(q, \text{prefix})_c \Big) , $$ (eq-light)
#
# $$ s(q, i) = \cos(x_q, x_i) + w \, \text{BM25}(q, i) . $$ (eq-light-score)
#
# The first term is *what the texts say*. Alone, it ranks items as $s$ does: a code is as probable as the items under it
# together, so along the path to one item the probabilities multiply to a softmax of $s / \tau$ over all items. The
# weight $w$ is not tuned, but set so that cosine and BM25 spread equally over the catalogue, on average over some
# queries; the temperature $\tau$ is learned. The second term, $h$, is *what queries taught*: a small network that reads
# the vector and the words of the query, and the codes so far. It begins at zero, so that before training the list must
# be that of $s$:

# %%
few = asked.train.sample(min(500, len(asked.train)), random_state=SEED)
dense, bm25 = retrieval.Dense(item_vectors), retrieval.BM25(item_texts)
few_scores = (
    dense.scores(few["query"], asked.train_vectors[few.index]),
    bm25.scores(few["query"].tolist()),
)
w = hybrid_ranker.balanced_weight(*few_scores)
torch.manual_seed(SEED)
shape = hybrid_ranker.QueryModelConfig(ids.sizes, item_vectors.shape[1], word_weight=w)
light = hybrid_ranker.QueryModel(shape, ids.unique, item_vectors)
light_search = generative.LightSearch(light, bm25, embedded.facts["embedder"])
print(f"w = {w:.3f}")

# %%
few = asked.test.sample(min(50, len(asked.test)), random_state=SEED)
ask, few_vectors = few["query"].tolist(), asked.test_vectors[few.index]
by_s = np.argsort(-(dense.scores(ask, few_vectors) + w * bm25.scores(ask)), axis=1)
k = min(10, len(ids))
same = light_search.search(ask, k, None, few_vectors).items == by_s[:, :k]
print(f"the same item as by s alone at {same.mean():.1%} of {same.size} places")

# %% [markdown]
# When should training stop? A twentieth of the items give up their queries and play new items, and a twentieth of the
# other queries is held back as well; after each epoch the model is asked some of both, and the best epoch is kept. The
# test has no part in it.

# %%
plays_new = rng.random(len(ids)) < 0.05
watched = plays_new[wanted] | (rng.random(len(wanted)) < 0.05)
if len(wanted) > 1 and watched.sum() % len(wanted) == 0:
    watched = np.arange(len(wanted)) == 0  # few queries: one, neither none nor all
looked_at = rng.permutation(np.flatnonzero(watched))[:500]
held = asked.train.iloc[looked_at]
held_vectors = asked.train_vectors[looked_at]


def look(model):
    """Recall@10 on the queries that are held back."""
    items = light_search.search(held["query"].tolist(), 10, None, held_vectors).items
    return metrics.recall_at_k(metrics.ranks(items, held["item"].to_numpy()), 10).mean()


print(f"{watched.sum():,} of {len(wanted):,} queries held back, {len(held):,} looked at")
print(f"Recall@10 on them before training: {look(light):.3f}")

# %%
learned = np.flatnonzero(~watched)
loader = light_search.training_batches(
    asked.train["query"].iloc[learned].tolist(),
    asked.train_vectors[learned],
    wanted[learned],
    seed=SEED,
)
settings = train.TrainingConfig.sized(
    sizes.query_epochs, sizes.query_steps, len(loader), seed=SEED
)
epochs = train.fit(light, loader, settings, validate=look, progress=True)
n_light = sum(parameter.numel() for parameter in light.parameters())
print(f"{n_light:,} parameters, {epochs[-1].seconds:.0f} s for {len(epochs)} epochs")
history = pd.DataFrame(epochs).set_index("epoch")[["loss", "validation"]]
history.rename(columns={"validation": "Recall@10, held back"}).round(3).T

# %% [markdown]
# The loss is in nats an item. It may go on falling while the recall does not, as the words of the query make it easy to
# learn training queries by heart. Where no epoch is above the recall before training, templates had nothing to teach
# that the texts did not say already, and what this model can do comes from its first term.

# %% [markdown]
# ## 5. Does it write IDs that exist?
#
# On a fixed random sample of the held-out queries, as many from each of chapter 04's four cells (an item with or
# without training queries, asked for in a way that was or was not trained on). Left alone, the language model may
# choose each token from its whole vocabulary. It answers twice: with the most probable token at each step, and with
# tokens that are drawn by their probabilities. An answer is valid if it is the ID of an item and nothing else.

# %%
order = asked.test.sample(frac=1, random_state=SEED)
per_cell = max(1, sizes.test_queries // order["cell"].nunique())
sample = order.groupby("cell").head(per_cell).sort_index()
sample_vectors = asked.test_vectors[sample.index]
sample_queries, right = sample["query"].tolist(), sample["item"].to_numpy()
sample["cell"].value_counts().to_frame("queries")

# %%
some = np.sort(rng.permutation(len(sample))[: sizes.prompts])
prompts = [sample_queries[at] for at in some]
free = (model, tokenizer, tokens, trie, prompts)
greedy = generative.write_freely(*free, seed=SEED)
drawn = generative.write_freely(*free, sample=True, seed=SEED)
llm_search = generative.LanguageModelSearch(model, tokenizer, tokens, trie)
ten = llm_search.search(prompts, min(10, len(ids)))
validity = {
    "most probable token, free": greedy.items >= 0,
    "drawn, free": drawn.items >= 0,
    "best ten, constrained": (ten.items >= 0).mean(axis=1),
}
valid = pd.DataFrame(
    metrics.bootstrap_intervals(np.column_stack(list(validity.values())).astype(float)),
    index=pd.Index(validity, name="validity rate"),
    columns=["mean", "low", "high"],
)
print(f"{len(prompts)} queries")
valid.round(4)

# %% [markdown]
# A [validity rate](../book/notation.md) of 1 is no guarantee, although its [interval](../book/notation.md) has no
# width. And a valid answer is not a right one. How often are the first code, the first two, and all codes of the first
# answer those of the item that was meant? The last line always answers with the most common prefix. About half of the
# queries ask for items that no model here has learned a query for, where every cell has enough.

# %%
truth = ids.unique[right[some]]
first = {
    "LLM, free": greedy.codes,
    "LLM, constrained": ids.unique[ten.items[:, 0]],
    "light": light_search.search(prompts, 1, None, sample_vectors[some]).items[:, 0],
    "dense": dense.search(prompts, 1, None, sample_vectors[some]).items[:, 0],
}
accuracy = {
    name: generative.prefix_accuracy(
        written if written.ndim == 2 else ids.unique[written], truth
    ).mean(axis=0)
    for name, written in first.items()
}
common = [
    np.unique(ids.unique[:, :depth], axis=0, return_counts=True)[1].max() / len(ids)
    for depth in range(1, len(tokens) + 1)
]
accuracy["most common prefix"] = np.array(common)
depths = [f"{depth} code{'s'[: depth > 1]}" for depth in range(1, len(tokens) + 1)]
pd.DataFrame(accuracy, index=depths).T.round(3)

# %% tags=["hide-input"] mystnb={"image": {"alt": "Share of first answers whose first codes are right against the number of codes, one line per method, falling; the most common prefix is the lowest."}}
COLOURS = {
    "BM25": "tab:orange",
    "dense": "tab:blue",
    "dense + BM25": "tab:cyan",
    "light": "tab:green",
    "light + BM25": "tab:olive",
    "LLM": "tab:red",
    "LLM + BM25": "tab:pink",
}
colours = COLOURS | {"LLM, constrained": "tab:red", "most common prefix": "tab:grey"}
figure, axis = plt.subplots(figsize=(7.5, 3.6), layout="constrained")
for name, share in accuracy.items():
    style = "o--" if name == "LLM, free" else "o-"
    colour = colours.get(name, "tab:red")
    axis.plot(np.arange(1, len(tokens) + 1), share, style, color=colour, label=name)
axis.set(xlabel="first codes that must be right", ylabel="share of the queries")
axis.set(xticks=np.arange(1, len(tokens) + 1), ylim=0)
axis.legend(frameon=False)
plt.show()

# %% [markdown]
# *Figure 2.* Where the first answer goes wrong. A line that falls most at its left end does not find the region of the
# catalogue; one that falls later finds the region and not the item, which a longer list can make good. Where the two
# lines of the language model lie on each other, the trie had nothing to correct.

# %% [markdown]
# ## 6. All methods on the same queries
#
# BM25 counts words [(Robertson and Zaragoza, 2009)](../book/references.bib "robertson2009"); dense retrieval compares
# vectors, with nothing trained; *dense + BM25*, a [fusion](../book/notation.md), adds their standardized scores.
# *light + BM25* and *LLM + BM25* do the same with a model that writes IDs: the items that its beam of 300 finds have its
# scores, and all others that of the last of these. Every list has 100 places, and every method may answer with every
# item.

# %%
wide_light = generative.LightSearch(light, bm25, beam_width=300)
wide_llm = generative.LanguageModelSearch(model, tokenizer, tokens, trie, beam_width=300)
methods = {
    "BM25": bm25,
    "dense": dense,
    "dense + BM25": retrieval.FusedScores(dense, bm25),
    "light": light_search,
    "light + BM25": retrieval.FusedScores(wide_light, bm25),
    "LLM": llm_search,
    "LLM + BM25": retrieval.FusedScores(wide_llm, bm25),
}


def measure(texts, relevant, vectors):
    """Every method on the same queries."""
    options = {"n_items": len(ids), "query_vectors": vectors, "seed": SEED}
    return {
        name: evaluate.evaluate_queries(method.search, texts, relevant, **options)
        for name, method in methods.items()
    }


synthetic = measure(sample_queries, right, sample_vectors)
print(f"{len(sample):,} held-out synthetic queries of {shop.name}")
evaluate.query_table(synthetic).T.drop(columns="validity_rate")

# %% [markdown]
# ± is half the 95% interval over queries. It does not cover training: two seeds of a small language model may differ by
# more. BM25 counts words; in scripts that put no spaces between words, such as Chinese, it counts pairs of neighbouring
# characters, a weaker baseline. Times are in milliseconds on this machine. They exclude embedding the query, which all
# but BM25 and the language model need first:

# %%
few = sample_queries[:20]
encode(few[:1])
lap = store.Clock()
for query in few:
    encode([query])
embedding_ms = 1000 * lap.seconds / len(few)
print(f"{embedding_ms:.1f} ms to embed a query")

# %% [markdown]
# These queries come from the same templates as the training, so they favour whoever trained on them. The four cells
# take that apart. [Recall@10](../book/notation.md "Recall@K"), and half of the widest interval of the row:


# %%
by_cell = evaluate.group_table(synthetic, sample["cell"])
by_cell.loc[[cell for cell in filters.CELLS if cell in by_cell.index]].round(3)

# %% [markdown]
# **New items.** Recall@10 on items without training queries, divided by that on the others (*new / old*): 1 would mean
# that an item can be found on its first day as well as later. Dense retrieval and BM25 learn nothing, so how far they
# are from 1 is the luck of the draw, and the yardstick for the others.

# %%
item_is_new = sample["cell"].str.startswith("unseen item").to_numpy()
item_is_hidden = np.isin(right, hidden)
parts = {
    "old items": ~item_is_new,
    "new, title taught": item_is_new & ~item_is_hidden,
    "new, hidden": item_is_hidden,
}
found = pd.DataFrame(
    {
        name: {
            part: evaluation.per_query["recall@10"][chosen].mean()
            for part, chosen in parts.items()
        }
        for name, evaluation in synthetic.items()
    }
).T
new = [e.per_query["recall@10"][item_is_new].mean() for e in synthetic.values()]
found["new / old"] = np.array(new) / found["old items"].replace(0, np.nan)
print({part: int(chosen.sum()) for part, chosen in parts.items()}, "queries")
found.round(3)

# %% [markdown]
# And by kind of query:

# %%
evaluate.group_table(synthetic, sample["kind"]).round(3)

# %% [markdown]
# ### Queries that nobody here wrote
#
# Only these can say whether any of it helps a shopper, and no method has seen one of them.

# %%
own = None
if shop.queries is None or not shop.queries["item_rows"].map(len).sum():
    print(f"{shop.name} has no queries of its own: nothing can be said here")
else:
    own = shop.queries[shop.queries["item_rows"].map(len) > 0].reset_index(drop=True)
    own_vectors = embed.embed(
        own["query"].tolist(),
        embedded.facts["embedder"],
        cache=shelf.cache("embeddings"),
    )
    real = measure(own["query"].tolist(), own["item_rows"].tolist(), own_vectors)
    print(f"{len(own)} queries of {shop.name} itself")
    display(evaluate.query_table(real).T.drop(columns="validity_rate"))

# %%
if own is not None:
    figures = {
        name: evaluate.query_figures(e).loc["recall@10"] for name, e in real.items()
    }
    width = np.mean([line["high"] - line["low"] for line in figures.values()])
    print(f"{len(own)} queries: an interval of Recall@10 is {width:.2f} wide on average")
    ahead = {
        name: evaluate.query_differences(evaluation, real["dense"]).loc["recall@10"]
        for name, evaluation in real.items()
        if name != "dense"
    }
    print("Recall@10, ahead of dense on the same queries:")
    display(pd.DataFrame(ahead).T.round(3))

# %% [markdown]
# Two methods whose intervals overlap may still differ, since the same queries are hard for both: the differences, query
# by query, have narrower intervals. A method is ahead if its whole interval lies above 0.

# %%
if own is not None and "kind" in own:
    kinds = own["kind"].fillna("(none)").astype(str)
    display(evaluate.group_table(real, kinds).round(3))

# %% tags=["hide-input"] mystnb={"image": {"alt": "Recall@10 with 95% intervals of every method, one panel for synthetic queries of old items, one for new items, and one for the queries of the data set where it has any."}}
panels = {
    "synthetic, old items": (synthetic, ~item_is_new),
    "synthetic, new items": (synthetic, item_is_new),
}
if own is not None:
    [name] = plotting.labels([f"the {len(own)} queries of {shop.name}"], width=40).drawn
    panels[name] = (real, np.ones(len(own), bool))
panels = {title: panel for title, panel in panels.items() if panel[1].any()}
figure, axes = plt.subplots(
    1, len(panels), figsize=(10, 3.4), layout="constrained", sharex=True, sharey=True
)
axes = np.atleast_1d(axes)
for axis, (title, (evaluations, chosen)) in zip(axes, panels.items(), strict=True):
    for place, (name, evaluation) in enumerate(evaluations.items()):
        values = evaluation.per_query["recall@10"].to_numpy()[chosen]
        [(mean, low, high)] = metrics.bootstrap_intervals(values[:, None])
        axis.plot([low, high], [place, place], color=COLOURS[name], linewidth=2)
        axis.plot(mean, place, "o", color=COLOURS[name])
    axis.set(title=title, xlabel="Recall@10", xlim=0)
axes[0].set_yticks(range(len(methods)), methods)
axes[0].invert_yaxis()
plt.show()

# %% [markdown]
# *Figure 3.* Recall@10 of all methods, with 95% intervals. Compare the panels: a method that is ahead in the left ones
# and not in the right one has learned our way of asking, and not what shoppers want.

# %% [markdown]
# ## 7. Examples to look at
#
# Three queries drawn at random (the data set's own, where there are any), not chosen: the first five of each method, a
# tick before what is right.

# %%
if own is not None:
    shown_queries, relevant, evaluations = own["query"], own["item_rows"], real
else:
    shown_queries, relevant = sample["query"], [np.array([row]) for row in right]
    evaluations = synthetic
title = shop.items["title"].map(embed.plain_text)
compared = ("BM25", "dense", "light", "LLM")
drawn_rows = np.random.default_rng(SEED).permutation(len(shown_queries))[:3]


def line(item, wanted_items):
    """A title with a tick if it is right."""
    if item < 0:
        return ""
    tick = "✓ " if item in wanted_items else ""
    return tick + one_line(title[item], 38)


for at in drawn_rows:
    wanted_items = list(relevant)[at]
    print(f"{one_line(shown_queries.iloc[at])} ({len(wanted_items)} right)")
    lists = {name: evaluations[name].recommended[at, :5] for name in compared}
    display(
        pd.DataFrame(
            {
                name: [line(row, wanted_items) for row in rows]
                for name, rows in lists.items()
            },
            index=range(1, 6),
        )
    )

# %% [markdown]
# Look at what is wrong as well: an item without a tick may be a good answer that nobody has judged. Judged queries count
# such items as misses, for all methods alike.

# %% [markdown]
# ## 8. What is saved
#
# Both models, each as a recommender: semantic IDs, item table and model in one folder, with a checksum for every file.
# The language model's folder holds it as a plain checkpoint, `llm/`, with its tokenizer and a table of its tokens,
# which transformers and vLLM load.

# %%
searchers = {"recommender_light": light_search, "recommender_llm": llm_search}
for name, searcher in searchers.items():
    folder = shelf.path(name)
    Recommender(None, ids, shop.items, searcher).save_pretrained(
        folder, shelf.provenance()
    )
    files = [file for file in folder.rglob("*") if file.is_file()]
    megabytes = sum(file.stat().st_size for file in files) / 1e6
    print(f"{name}: {megabytes:,.0f} MB in {len(files)} files")

# %% [markdown]
# Read back, they answer as before, now in [item ids](../book/notation.md "item id") and to plain text:

# %%
for name, searcher in searchers.items():
    again = Recommender.from_pretrained(shelf.path(name))
    found_again = again.search(prompts[:20], 5, query_vectors=sample_vectors[some[:20]])
    before = searcher.search(prompts[:20], 5, None, sample_vectors[some[:20]])
    assert (found_again.item_ids == shop.item_ids.at(before.items)).all(), name
print(one_line(prompts[0]))
again.search(prompts[:1], 3)

# %% [markdown]
# ## Summary
#
# What this run has to say:

# %%
test_sets = {"synthetic": synthetic} | ({"own": real} if own is not None else {})
recall = {
    where: {name: e.per_query["recall@10"].mean() for name, e in evaluations.items()}
    for where, evaluations in test_sets.items()
}
kind_of_model = base_model or "a small Qwen3 from scratch"
print(f"the LLM ({kind_of_model}): {len(rows):,} examples, {tuned.seconds:.0f} s")
print(f"loss of the LLM {end_loss:.2f}, {floor:.2f} by use alone")
print(f"the light model: {len(asked.train):,} queries, {epochs[-1].seconds:.0f} s")
for name, share in valid["mean"].items():
    print(f"valid, {name}: {share:.3f}")
summary = pd.DataFrame(recall).add_prefix("Recall@10, ")
summary.assign(**{"new / old items": found["new / old"]}).round(3)

# %%
result_rows = []
for where, evaluations in test_sets.items():
    for name, evaluation in evaluations.items():
        key = f"search/{where}_{name.replace(' + ', '_and_').lower()}"
        measured = evaluate.query_figures(evaluation)
        result_rows += store.metric_rows(key, measured, n=len(evaluation.rank))
        alone = 1000 * np.median(evaluation.seconds_alone)
        result_rows.append({"key": f"{key}/ms_alone", "value": round(alone, 3)})
single = {f"validity/{name}": mean for name, mean in valid["mean"].items()}
single |= {f"new_over_old/{name}": share for name, share in found["new / old"].items()}
single |= {
    f"first_{depth}_right/llm": share
    for depth, share in enumerate(accuracy["LLM, free"], 1)
}
single |= {"llm_examples": len(rows), "llm_seconds": tuned.seconds, "llm_loss": end_loss}
single |= {"light_seconds": epochs[-1].seconds, "embedding_ms": embedding_ms}
single |= {"seconds": clock.seconds}
result_rows += [
    {"key": f"search/{name}", "value": round(float(value), 6)}
    for name, value in single.items()
    if np.isfinite(value)
]
shelf.record("05_llm_sft", [row | {"seed": SEED} for row in result_rows])
print(f"{len(result_rows)} result rows; the whole chapter took {clock.seconds:.0f} s")

# %% [markdown]
# **What did not work**, in trials (the [log](../book/log.md) has figures of some):
#
# - *Qwen's own spread of initial weights* was made for wide models: a narrow one learned much more slowly with it than
#   with a spread that fits its width.
# - *Sorting many batches by length* saves the most padding, but then the same examples met every time, and the model
#   learned to tell items apart much more slowly. A few batches at a time are sorted instead.
# - *Long lists of IDs* as further answers ("items of this category"), to teach which IDs exist, changed neither
#   validity nor recall.
# - *A light model without what the texts say* had to learn all of the catalogue from queries; it overfitted and stayed
#   below dense retrieval on Amazon Beauty's real ones. *One with the cosine alone* learned little more than that from
#   templates.
# - *Merging a beam with BM25 by ranks* [(Cormack et al., 2009)](../book/references.bib "cormack2009"): sums of scores
#   were better with the light model and no worse with the other.
#
# **What this does not show.** How a pretrained model of billions of parameters would do: it brings the words that ours
# has never read, and needs a GPU. Nor what better queries would do: both models learned how templates ask.
#
# **Next:** [how a model writes only items that exist](06_constrained_generation.ipynb), and what that costs.
