# %% [markdown]
# # LLM fine-tuning: can a language model learn to answer with items?
#
# A language model knows words, but no catalogue. We add one token per [code](../book/notation.md) to its vocabulary, so
# that it can generate [semantic IDs](../book/notation.md "semantic ID"), and fine-tune it on [synthetic
# queries](../book/notation.md "synthetic query"). Chapter 10 compares it with other methods of search.
#
# **What you will learn**
#
# 1. how the vocabulary is extended, and how the new embedding rows are initialized;
# 2. which examples the model is trained on, and on which tokens the loss is computed;
# 3. what [fine-tuning](../book/notation.md) costs, estimated before it starts, and how it goes;
# 4. how often the model generates IDs that exist, and how often the right ones;
# 5. what is saved for later chapters.
#
# | | |
# | --- | --- |
# | reads | `embeddings` (chapter 01), `semantic_ids` (chapter 02), `synthetic_queries` (chapter 04) |
# | writes | `recommender_llm`, a folder for `Recommender.from_pretrained`; `sft_run`, checkpoints, which may be deleted; result rows |
# | runs in | under a minute at `smoke`; at `laptop` minutes on the demo shop and much longer on a large catalogue; `full` needs a GPU |
#
# At `laptop`, the demo shop gets a smaller model and fewer examples than other data, to save time.

# %% tags=["parameters"]
DATA = "demo"  # or a folder with items.jsonl and, perhaps, queries.jsonl
SCALE = "laptop"  # smoke, laptop or full
SEED = 0
BASE_MODEL = ""  # a name of base_models.MODELS, or a folder; "": see below

# %% [markdown]
# If `BASE_MODEL` is empty, `full` on a machine with a GPU takes Qwen3-4B, which was pretrained on web text. Everything
# else takes a small Qwen3 [(Qwen Team, 2025)](../book/references.bib "qwen2025"): the same architecture with random
# weights, trained here from scratch, and a tokenizer trained on the catalogue. Both use the same code.

# %%
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch

from semid_lib.data import dataset
from semid_lib.evaluation import figures_models as figures
from semid_lib.evaluation import plotting
from semid_lib.ids import codebooks
from semid_lib.llm import base_models, examples, fine_tuning, training_costs
from semid_lib.llm.llm_search import LanguageModelSearch, generate_freely
from semid_lib.llm.vocabulary import extend_vocabulary, initial_rows
from semid_lib.serving.recommender import Recommender
from semid_lib.studies import search_study
from semid_lib.workbench import scale, store
from semid_lib.workbench.text import one_line

plotting.use()
timer = store.Timer()
shop = dataset.load(DATA)
sizes = scale.get(SCALE, shop.name)
artefacts = store.Store(shop.name, SCALE, shop.fingerprint)
print(artefacts.origin())
if len(shop.items) < 100:
    print(f"{len(shop.items)} items are too few: comparing methods takes 100")

# %% [markdown]
# Some test items have no training queries; they represent items that arrive after training. The model is trained on the
# titles of half of them, as a shop could do overnight. The other half is *hidden*: these items are in the [prefix
# trie](../book/notation.md), so their IDs can be generated, but they do not occur in training. If the model generates
# one of these IDs, it has learned what the codes mean from other items with the same codes.

# %%
study = search_study.load(shop, artefacts, sizes, SEED)
ids, queries = study.ids, study.queries
print(f"{len(queries.train):,} queries to train on,", end=" ")
print(f"{len(queries.test):,} to test on")
print(f"{len(study.new_items):,} of {len(ids):,} items have no queries,")
print(f"{len(study.hidden):,} of these are hidden")

# %% [markdown]
# ## 1. New words for a language model
#
# Each code of each [level](../book/notation.md) becomes one token, `<|sid_level_code|>`, so an answer has as many
# tokens as an ID has codes. Each new token needs a row in the model's embedding table. A random row would have no
# meaning, and training would first have to find its place. So the row of code $c$ at level $l$ starts at the mean of
# the word rows of the items $I_{l,c}$ that carry it, scaled to the length of an ordinary row:
#
# $$ m_{l,c} = \frac{1}{|I_{l,c}|} \sum_{i \in I_{l,c}} \frac{1}{|t_i|} \sum_{w \in t_i} e_w , $$ (eq-new-rows-mean)
#
# $$ e_{l,c} = s \, \frac{m_{l,c}}{\lVert m_{l,c} \rVert} + \varepsilon , $$ (eq-new-rows)
#
# where $t_i$ are the tokens of the item's text, $s$ is the median length of an ordinary row and $\varepsilon$ is a
# little noise that separates codes with the same items. By hand, with two words, three items and two codes at one
# level:

# %%
words = torch.tensor([[1.0, 0.0], [0.0, 2.0]])  # the rows of "red" and "tent"
texts = [[0], [0, 1], [1]]  # "red", "red tent", "tent"
codes = np.array([[0], [0], [1]])
m = (words[0] + (words[0] + words[1]) / 2) / 2  # code 0: the first two items
by_hand = m / m.norm()  # torch's median of the lengths 1 and 2 is 1
draw = torch.Generator()
[rows] = initial_rows(words, texts, codes, (2,), 0.0, draw)
print(by_hand.tolist(), rows[0].tolist())
assert torch.allclose(by_hand, rows[0])

# %% [markdown]
# Now a model. The small one gets a tokenizer trained on this catalogue's texts and training queries. It does not know
# what words mean, and short queries teach it little. So its word rows start from the vectors that the sentence encoder
# of chapter 01 gives to single words, reduced to the model's width by principal components.

# %%
pretrained = BASE_MODEL or search_study.default_base(SCALE)
if pretrained:
    model, tokenizer = base_models.load_base(pretrained)
else:
    model, tokenizer = search_study.small_model(study, sizes, SEED)
n_words = len(tokenizer)

# %%
texts = study.known_texts()
tokens = extend_vocabulary(model, tokenizer, ids, texts, seed=SEED)
facts = base_models.facts_of(model)
print(f"{facts.n_parameters:,} parameters in {facts.n_layers} layers;")
print(f"{n_words:,} tokens and {sum(map(len, tokens)):,} new ones for codes,")
print(f"{len(tokens)} of them in an answer")

# %% [markdown]
# Does a row match its items before any training? For the three most used first codes, we subtract the mean of all first
# codes from the row and list the closest words:

# %%
counts = np.bincount(ids.codes[:, 0], minlength=len(tokens[0]))
most_used = counts.argsort()[::-1][:3].tolist()
near = search_study.nearest_words(model, tokenizer, tokens, most_used)
pd.Series(near, name="nearest words").to_frame()

# %% [markdown]
# If the words of a line fit together, the row reflects what its items have in common, although no query has been used
# yet.

# %% [markdown]
# ## 2. Training examples
#
# Examples are prompts and answers in chat format, of several kinds. The answer to a query is an ID; so are the answers
# to titles and descriptions, for all items that are not hidden. The answer to an ID is its title, which links the new
# tokens to words. The answer to a [history](../book/notation.md), if the shop has histories, is the next ID. This is
# the mixture of LC-Rec [(Zheng et al., 2023)](../book/references.bib "zheng2023") with queries added.

# %%
known, histories = search_study.known_data(shop, study)
items = queries.train["item"].to_numpy(copy=True)
asked = (queries.train["query"].tolist(), items)
material = {"queries": asked, "histories": histories}
print(f"{len(histories):,} histories" if histories else "no histories")

# %% [markdown]
# One example of each kind, exactly as it is tokenized: prompt, answer, end.

# %%
every = {"weights": dict.fromkeys(examples.TASKS, 1), "n_phrasings": 1}
few = examples.training_rows(known, ids, 25, **material, **every, seed=SEED)
example_of = {row["task"]: row for row in few}
for task in examples.TASKS:
    name = search_study.words(task)
    print(f"--- {name}" + ": no data here" * (task not in example_of))
    if task in example_of:
        print(search_study.rendered(example_of[task], tokenizer))

# %% [markdown]
# A large pretrained model gets all kinds (`examples.WEIGHTS`), each prompt in three phrasings. The small model gets
# only the two kinds that search needs, five queries for every title, in one phrasing: it starts without a language, and
# other kinds would take examples away from these.

# %%
for_small = {"weights": {"query_to_id": 5, "title_to_id": 1}, "n_phrasings": 1}
kinds = {} if pretrained else for_small
n = min(sizes.lm_rows, sizes.lm_rows_per_item * len(ids))
rows = examples.training_rows(known, ids, n, **material, **kinds, seed=SEED)
search_study.example_counts(rows)

# %% [markdown]
# *Distinct* is smaller than *examples* if some examples occur more than once. They are repeated only a few times,
# because a model from scratch memorizes queries that it sees often.
#
# **The loss is computed on the answer alone.** If the loss included the prompt, the model would spend its capacity on
# predicting what shoppers type. The tokens and labels of a short example; a dot marks tokens without a loss:

# %%
from_scratch = {
    "method": "full",
    "row_steps": 0,  # all rows are new: no first stage
    "n_epochs": 1,
    "learning_rate": 1.5e-3,
    "batch_size": 64,
    "weight_decay": 0.01,
    "pool": 16,
    "save_every": 1000,
}
recipe = {} if pretrained else from_scratch
config = fine_tuning.FineTuning(**recipe, seed=SEED)
tokenized = examples.tokenize(rows, tokenizer)

# %%
some = tokenized.select(range(min(20, len(rows))))
one = min(some, key=lambda example: len(example["input_ids"]))
columns = {"token": one["input_ids"], "label": one["labels"]}
tokens_and_labels = pd.DataFrame(columns)
tokens_and_labels.map(
    lambda token: "·" if token == -100 else repr(tokenizer.decode([token]))
)

# %% [markdown]
# ## 3. Fine-tuning
#
# First we estimate memory and time. In float32, a weight takes four bytes and its training twelve more (the gradient
# and AdamW's two moments); the activations of a batch are kept for the backward pass. The time is the number of tokens
# divided by the speed, which we measure on a few batches:

# %%
speed = training_costs.measured_speed(model, tokenized, config, tokens)
cost = training_costs.estimate(model, tokenized, config, tokens, speed)
n_steps = {stage: config.n_steps(stage, len(rows)) for stage in config.stages}
print(f"{len(rows):,} examples, steps: {n_steps}")
print(f"{speed:,.0f} tokens per second: {cost.seconds / 60:.1f} minutes")
print(f"{cost.memory_gib:.2f} GiB: {cost.weights_gib:.2f} for the weights,")
print(f"{cost.training_gib:.2f} to train them,", end=" ")
print(f"{cost.activations_gib:.2f} for a batch")

# %% [markdown]
# The same estimate for the models that `BASE_MODEL` knows by name, with the default settings for a GPU. First the new
# rows are trained alone. Then LoRA [(Hu et al., 2021)](../book/references.bib "hu2021") keeps the model's weights and
# trains a product of two thin matrices (here of rank 32) next to each linear map, together with the new rows, for two
# epochs over as many examples as above. Their speed is not measured: training takes about six floating-point operations
# per parameter and token, and we *assume* a GPU that does $10^{14}$ of them per second. The tokens are counted with the
# tokenizer of this run.

# %%
n_new, for_gpu = sum(map(len, tokens)), fine_tuning.FineTuning()
known_costs = training_costs.estimate_known(tokenized, n_new, for_gpu, 1e14)
known_costs.style.format("{:.2g}", subset=known_costs.columns[2:])

# %%
if pretrained:
    print(f"fine-tuned in this run: {pretrained}")
else:
    print("This run fine-tunes the small model, none of those in the table.")
    print("It does not show how well a model with 4 billion parameters does.")

# %%
checkpoints = artefacts.path("sft_run")
options = {"resume": bool(pretrained), "progress": True}  # resume long runs
tuned = fine_tuning.fine_tune(
    model, tokenizer, rows, tokens, config, checkpoints, **options
)
model = tuned.model
print(f"{tuned.seconds / 60:.1f} minutes, estimated {cost.seconds / 60:.1f}")

# %% [markdown]
# As a reference, consider a model that ignores the prompt and only knows how often each code is used. Its loss is the
# sum of the entropies of the levels, divided by the number of tokens in an answer (the last token, which ends it, is
# certain and adds nothing):

# %%
by_use = codebooks.perplexity(ids.unique, max(ids.sizes))
floor = float(np.log(by_use).sum()) / (len(tokens) + 1)
losses = pd.DataFrame(tuned.losses, columns=["stage", "step", "loss"])
last_stage = losses[losses["stage"] == losses["stage"].iloc[-1]]
last_tenth = last_stage.tail(len(losses) // 10)
end_loss = float((last_tenth if len(last_tenth) else losses)["loss"].mean())
print(f"{floor:.2f} nats by use alone; {end_loss:.2f} at the end of training")

# %% tags=["hide-input"] mystnb={"image": {"alt": "Loss of an answer's token against the training step, falling; a dotted line marks a model that knows only how often each code is used."}}
figures.fine_tuning_loss(losses, floor)
plt.show()

# %% [markdown]
# *Figure 1.* The training loss in nats (natural logarithms) per token of the answer. Below the dotted line the model
# uses the prompt. Some training examples occur more than once, so the final loss does not show how well the model
# answers new queries; the next section and chapter 10 do.

# %% [markdown]
# ## 4. Are the generated IDs real, and are they right?
#
# We take a fixed random sample of the held-out queries, equally many from each of chapter 04's four cells (items with
# or without training queries, phrasings that occur in training or not). In [free generation](../book/notation.md), the
# model chooses each token from its whole vocabulary: once always the most probable token, once a random token drawn by
# its probability. An answer is valid if it is the ID of an item and nothing else.

# %%
study.sample["cell"].value_counts().to_frame("queries")

# %%
prompts = study.sample["query"].iloc[study.prompts].tolist()
llm = (model, tokenizer, tokens, study.trie)
greedy = generate_freely(*llm, prompts, seed=SEED)
drawn = generate_freely(*llm, prompts, sample=True, seed=SEED)
llm_search = LanguageModelSearch(*llm)
ten = llm_search.search(prompts, min(10, len(ids)))
is_valid = {
    "most probable token, free": greedy.items >= 0,
    "drawn, free": drawn.items >= 0,
    "best ten, constrained": (ten.items >= 0).mean(axis=1),
}
valid = plotting.interval_table(is_valid, "validity rate")
print(f"{len(prompts)} queries")
valid.round(4)

# %% [markdown]
# A [validity rate](../book/notation.md) of 1 is no guarantee, although its [interval](../book/notation.md) has zero
# width. And a valid answer can be wrong. How often do the first code, the first two codes, and so on, of the first
# answer match the target item? The last line always answers with the most common [prefix](../book/notation.md).

# %%
truth = ids.unique[study.sample["item"].to_numpy()[study.prompts]]
first = {"LLM, free": greedy.codes, "LLM": ids.unique[ten.items[:, 0]]}
accuracy = search_study.prefix_accuracy(first, truth, ids.unique)
accuracy.round(3)

# %% tags=["hide-input"] mystnb={"image": {"alt": "Share of first answers whose first codes are right against the number of codes, one line for free and one for constrained generation, falling; the most common prefix is the lowest."}}
figures.prefix_accuracy(accuracy)
plt.show()

# %% [markdown]
# *Figure 2.* Where the first answer goes wrong. A line that falls most at its left end does not find the region of the
# catalogue. A line that falls later finds the region but not the item; a longer list can make up for that. Where the
# lines of free and constrained generation coincide, the trie had nothing to correct.

# %% [markdown]
# ## 5. What is saved
#
# The model is saved as a recommender: semantic IDs, item table and model in one folder, with a checksum for every file.
# In it, `llm/` is a plain checkpoint with its tokenizer and a table of its tokens, which transformers and vLLM load.

# %%
folder = artefacts.path("recommender_llm")
recommender = Recommender(None, ids, shop.items, llm_search)
recommender.save_pretrained(folder, artefacts.provenance())
files = [file for file in folder.rglob("*") if file.is_file()]
megabytes = sum(file.stat().st_size for file in files) / 1e6
print(f"recommender_llm: {megabytes:,.0f} MB in {len(files)} files")

# %% [markdown]
# The loaded recommender gives the same answers, now as [item ids](../book/notation.md "item id"):

# %%
loaded = Recommender.from_pretrained(folder)
found = loaded.search(prompts[:20], 5).item_ids
before = shop.item_ids.at(llm_search.search(prompts[:20], 5).items)
assert (found == before).all()
print(one_line(prompts[0]))
loaded.search(prompts[:1], 3)

# %% [markdown]
# ## Summary

# %%
print(f"model: {pretrained or 'a small Qwen3 from scratch'}")
print(f"{len(rows):,} examples, {tuned.seconds:.0f} s of training")
print(f"loss {end_loss:.2f}, {floor:.2f} by use alone")
for name, share in valid["mean"].items():
    print(f"valid, {name}: {share:.3f}")

# %%
single = {f"validity/{name}": mean for name, mean in valid["mean"].items()}
for depth, share in enumerate(accuracy.loc["LLM, free"], 1):
    single[f"first_{depth}_right/llm"] = share
single |= {"llm_examples": len(rows), "llm_loss": end_loss}
single |= {"llm_seconds": tuned.seconds}
result_rows = [
    {"key": f"search/{name}", "value": round(float(value), 6), "seed": SEED}
    for name, value in single.items()
]
_ = artefacts.record("05_llm_sft", result_rows)
print(f"{len(result_rows)} result rows; {timer.seconds:.0f} s in all")

# %% [markdown]
# **What did not work**, in single trials without paired intervals (the [log](../book/log.md) has some of the numbers):
#
# - *Qwen's default spread of initial weights* is made for wide models. A narrow model learned much more slowly with it
#   than with a spread that fits its width.
# - *Sorting many batches by length* saves the most padding, but the same examples then always share a batch, and the
#   model learned to separate items much more slowly. Only a few batches at a time are sorted.
# - *Long lists of IDs* as further answers ("items of this category"), meant to teach which IDs exist, changed neither
#   validity nor recall.
#
# **What this chapter does not show**: whether the model finds more than other methods of search, on template queries or
# on others. [Chapter 10](10_hybrid_ranker.ipynb) compares them on the same queries, the data set's own included. Those
# are no untouched test: settings were chosen on the queries of the demo shop, and the authors looked at Amazon Beauty's
# 61 queries after every run. With so few, one query changes a recall by more than a hundredth, and small differences
# between two methods mean little. This chapter does not show either how a pretrained model with billions of parameters would do (it knows many
# words that ours has never seen, and needs a GPU), or what better queries would do: the model learned how templates
# ask.
#
# **Next:** [how a model generates only items that exist](06_constrained_generation.ipynb), and what that costs.
