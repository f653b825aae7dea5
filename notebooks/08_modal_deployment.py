# %% [markdown]
# # Deployment on Modal: what does an endpoint cost while it is idle?
#
# A serverless endpoint sleeps while nobody asks and costs nothing then; whoever wakes it has to wait. How long is that
# wait, what of it is ours, and from how many requests a day on is it cheaper, or kinder, to stay awake?
#
# **What you will learn**
#
# 1. what a [cold start](../book/notation.md) consists of;
# 2. what each measure against it saves;
# 3. how fast the service answers once it is warm;
# 4. what sleeping costs and whom it makes wait, by hand and in closed form;
# 5. cost against traffic, and where it breaks even;
# 6. the two commands that deploy, and the one that measures what they deployed;
# 7. the language model on a GPU;
# 8. what to choose.
#
# | | |
# | --- | --- |
# | reads | `recommender` (chapter 07) or else `recommender_light` (chapter 10); result rows of `semid deploy measure`, if there are any |
# | writes | `service`: one folder that answers histories and queries, where there are models for both; result rows |
# | runs in | a minute or two at `smoke`; minutes at `laptop`, nearly all of them starts of the service |

# %% tags=["parameters"]
DATA = "demo"  # or a folder with items.jsonl
SCALE = "laptop"  # smoke, laptop or full
SEED = 0

# prices in dollars a second; they change: put in those of today
CORE = 0.0000131
GIB = 0.00000222  # of memory
GPU = 0.000222
GPU_NAME = "L4"
READ = ("modal.com/pricing", "2026-07-01")  # where and when
# dollars for a rented machine of the small container's size, and one with such a GPU:
RENTED_MONTH = 15.0  # assumptions, put in yours
RENTED_GPU_MONTH = 450.0

# containers
CORES = 2
MEMORY = 2  # GiB
GPU_CORES = 2
GPU_MEMORY = 16
CONCURRENCY = 32  # requests at once
FILL = 0.7  # how full of them one may be before another is started
WINDOW = 60  # idle seconds until a container goes: scaledown_window
# to find a machine and start a container: an assumption, nothing here can measure it
PLATFORM_SECONDS = 1.5

# traffic: requests a day, a weight for each hour of it (an assumed shop), and the hours
# that a schedule keeps awake
REQUESTS = 500
PROFILE = (2, 1, 1, 1, 1, 2, 4, 7, 10, 12, 13, 13, 12, 12, 12, 12, 13, 14, 16, 18, 18, 15, 10, 5)  # fmt: skip
WARM_HOURS = (8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21)
PATIENCE = 5.0  # seconds that the unluckiest hundredth of the shoppers may wait

# only for what nobody has measured yet: assumptions, and every table that uses them says so.
# seconds until a cold, and of a warm answer: where no model is on the shelf, and of the
# language model until rows of a GPU are found
SMALL_ASSUMED = (2.0, 0.02)
LLM_ASSUMED = (60.0, 0.5)

# %%
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from semid_lib.data import dataset
from semid_lib.serving.recommender import Recommender
from semid_lib.studies import cold_start, costs
from semid_lib.workbench import scale, store

clock = store.Clock()
shop = dataset.load(DATA)
sizes = scale.get(SCALE)
shelf = store.Store(shop.name, SCALE, shop.fingerprint)
rng = np.random.default_rng(SEED)
print(shelf.origin())

# %%
found = [
    shelf.checked(name)
    for name in ("recommender", "recommender_light")
    if (shelf.path(name) / "config.json").is_file()
]
folder = found[0] if found else None
if folder is None:
    print("no recommender is on the shelf (chapters 05 and 07): no start is measured,")
    print("and what costs is computed from the assumptions of the first cell")
else:
    print(f"the service of {folder.name}, {shop.name}: {len(shop.items):,} items")

# %% [markdown]
# ## 1. What does a cold start consist of?
#
# A *cold start* is all that happens from a request that finds no running service until its answer. Here the service is
# started in a fresh process, again and again, and asked until it answers; clocks inside it tell the parts apart
# (`semid_lib.studies.cold_start`). Two things they cannot see: what a provider does before our process begins (find a machine,
# fetch an image, start a container), and how long files take to come from a disk or over a network, since here they are
# in the machine's memory after the first start. So this is our part of a cold start and not the whole one.

# %%
if folder is not None and folder.name == "recommender":
    ids = shop.item_ids.for_json
    lengths = rng.integers(1, 20, size=sizes.warm_answers)
    questions = [
        {"item_ids": [ids[row] for row in rng.integers(len(ids), size=n)]}
        for n in lengths
    ]
elif folder is not None:
    titles = shop.items["title"][shop.items["title"].str.strip() != ""]
    drawn = titles.sample(sizes.warm_answers, replace=True, random_state=SEED)
    questions = [{"query": " ".join(title.split()[:5])[:200]} for title in drawn]
ways = dict(list(cold_start.WAYS.items())[: sizes.cold_ways])

# %%
starts = None
if folder is not None:
    few = questions[: 1 + sizes.warm_answers // 10]
    starts = cold_start.table(folder, few, ways, sizes.cold_starts, progress=True)
    parts = starts.loc["as it is", list(cold_start.PARTS)].median()
    ours = parts[list(cold_start.OURS)].sum()
    print(f"{parts.sum():.2f} s to the first answer, the sum of the medians;")
    print(f"{ours:.2f} s of them ours, the others Python's and its libraries'")

# %% tags=["hide-input"] mystnb={"image": {"alt": "One horizontal bar, stacked from the parts of a cold start: most of it is the import of torch, then other libraries; what is ours is at its right end."}}
GREYS = ["0.3", "0.45", "0.6", "0.75", "0.85"]
BLUES = [plt.get_cmap("Blues")(shade) for shade in np.linspace(0.95, 0.3, 7)]
if starts is not None:
    figure, axis = plt.subplots(figsize=(10, 2.6), layout="constrained")
    left = 0.0
    for part, colour in zip(cold_start.PARTS, GREYS + BLUES, strict=True):
        axis.barh(0, parts[part], left=left, color=colour, edgecolor="w", label=part)
        left += parts[part]
    axis.set(yticks=[], xlabel="seconds since the process was started", xlim=(0, left))
    axis.spines[["top", "right", "left"]].set_visible(False)
    axis.legend(ncol=6, frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1))
    plt.show()
    share = 1 - ours / parts.sum()
    print(f"{share:.0%} of the time is not ours")

# %% [markdown]
# *Figure 1.* The parts of a start, each the median over the starts: in grey Python and the libraries that it imports,
# in blue ours (*text encoder* is what reads queries where the model answers nothing else). A smaller *model* would
# shorten nothing but its weights' part, and no part of the grey. Which imports cost what:

# %%
cold_start.imports().head(8).round(3)

# %% [markdown]
# ## 2. What does each measure save?
#
# The same start with one thing different at a time; the columns *more* have the seconds that it takes more, or less,
# than the service as it is. *Forked when loaded* imitates the memory snapshot of a provider, a picture of a process
# that has loaded everything, from which new ones continue: here such a process waits, is copied by `fork`, and the copy
# answers. A real snapshot is read from a disk and restored on another machine, so a fork is the limit that it can
# approach and not a forecast.

# %%
if starts is not None:
    starts["ours"] = starts[list(cold_start.OURS)].sum(axis=1)
    by_way = starts.groupby("way", sort=False)
    saved = by_way["total"].agg(["median", "min", "max"])
    saved["of it ours"] = by_way["ours"].median()
    for name in ("median", "of it ours"):
        saved[f"{name}, more"] = saved[name] - saved.loc["as it is", name]
    saved[f"p99 of the next {len(few) - 1} answers (ms)"] = by_way["p99"].median()
    display(saved.round(2))

# %% tags=["hide-input"] mystnb={"image": {"alt": "Horizontal bars of the seconds to the first answer, one for each way to start the service, grey for libraries and blue for ours; the fork's is tiny, the ones without compiled code are the longest."}}
if starts is not None:
    figure, axis = plt.subplots(figsize=(9, 0.8 + 0.42 * len(ways)), layout="constrained")
    middle = by_way[[*cold_start.PARTS, "ours"]].median()
    other = middle[[p for p in cold_start.PARTS if p not in cold_start.OURS]].sum(axis=1)
    axis.barh(middle.index, other, color="0.65", label="Python and libraries")
    axis.barh(
        middle.index,
        middle["ours"],
        left=other,
        color="tab:blue",
        label="ours",
    )
    totals = starts["total"].reset_index()
    axis.plot(totals["total"], totals["way"], "k.", markersize=4, label="one start")
    axis.invert_yaxis()
    axis.set(xlabel="seconds to the first answer", xlim=0)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False)
    plt.show()

# %% [markdown]
# *Figure 2.* Bars are sums of medians, dots are single starts: differences smaller than the spread of the dots are no
# differences. The service does four things by default, and the bars show what starts are like without them:
#
# - Python's code is compiled beforehand, in an image when it is built (*our code not compiled*, *nothing compiled*).
# - Python's garbage collector is off until everything is loaded, since hardly anything that is imported is garbage
#   (*collector left on*).
# - Only what one answer needs is warmed before the service opens. The compiled loop for batches (numba, chapter 06) is
#   loaded beside the first answers, which are slower for a moment: the last column of the table has this side of the
#   bargain. *Batches first* waits for the loop instead, and for much longer where no compiled one was kept, as in a
#   fresh image.
# - Files are held against the checksums in `config.json` (*without checksums*). This stays, whatever it costs: it
#   protects from a folder that was half copied.

# %% [markdown]
# ## 3. How fast is a warm answer?
#
# One client, one question after the other, over HTTP on this machine, with everything that a request passes through:
# limits, validation, queue, search, descriptions of the items. A client elsewhere adds its network.

# %%
warm = np.zeros(0)
if folder is not None:
    all_warm = cold_start.Way(batches_first=True)
    warm = np.array(cold_start.measure(folder, questions, all_warm).warm_ms)
    p50, p99 = np.percentile(warm, [50, 99])
    print(f"{len(warm)} answers: half within {p50:.1f} ms, 99 in 100 within {p99:.1f} ms")

# %% tags=["hide-input"] mystnb={"image": {"alt": "Share of warm answers that were there within so many milliseconds, a steep S-shaped curve with dotted lines at the median and the 99th percentile."}}
if len(warm):
    figure, axis = plt.subplots(figsize=(7, 3.2), layout="constrained")
    axis.ecdf(warm, color="tab:blue")
    for quantile, value, height in (("median", p50, 0.05), ("99%", p99, 0.4)):
        axis.axvline(value, color="black", linestyle=":", linewidth=1)
        axis.text(value, height, f" {quantile}: {value:.1f} ms")
    axis.set(
        xscale="log", xlabel="milliseconds", ylabel="share of answers within", ylim=(0, 1)
    )
    axis.spines[["top", "right"]].set_visible(False)
    plt.show()

# %% [markdown]
# *Figure 3.* The times of warm answers, with nothing left to warm up. Where other work shares the processor, the right
# end of the curve shows it first.

# %% [markdown]
# ## 4. What does sleeping cost?
#
# A container is up from the request that wakes it until nobody has asked for $w$ seconds, the *window*. By hand: four
# requests, at 0, 30, 100 and 400 s, with a window of 60 s, a cold start of 5 s and an answer of 1 s. The first wakes
# the container, and it is ready at 5 s; the second finds it awake and lets it stay until $30 + 1 + 60 = 91$; the third
# comes too late and wakes it for $5 + 1 + 60 = 66$ seconds, and so does the fourth. Three of four meet a cold start,
# and the container was up for $91 + 66 + 66$ seconds.


# %%
def by_hand(arrivals, cold, seconds, window):
    """Which requests meet a cold start, and the seconds that the container is up."""
    is_cold, up, ready, sleeps_at = [], 0.0, 0.0, -np.inf
    for arrival in arrivals:
        if arrival >= sleeps_at:
            ready, awake_from = arrival + cold, arrival
        else:
            awake_from = sleeps_at
        sleeps_at = max(arrival, ready) + seconds + window
        up += sleeps_at - awake_from
        is_cold.append(arrival < ready)
    return is_cold, up


by_hand([0, 30, 100, 400], cold=5, seconds=1, window=60)

# %% [markdown]
# Now requests at random and independent of each other, $\lambda$ a second on average (a Poisson process). The container
# goes to sleep at the first gap between two requests that is longer than $\tau = s + w$, where $s$ is the time of an
# answer. A gap is that long with probability
#
# $$ q = e^{-\lambda \tau} . $$ (eq-gap)
#
# Waking and sleeping alternate. The container is asleep for $1 / \lambda$ on average, until the next request. It is up
# for the cold start $C$ and then for as long as gaps stay short, which queueing theory knows as the busy period of a
# queue with infinitely many servers [(Takács, 1962)](../book/references.bib "takacs1962"):
#
# $$ \mathbb{E}[\text{up}] = C + \frac{e^{\lambda \tau} - 1}{\lambda} , \qquad
# \text{share of time asleep} = \frac{q}{1 + \lambda C q} . $$ (eq-up)
#
# The request that wakes the container waits for all of $C$; those that come meanwhile, $\lambda C$ of them on average,
# wait for what is left of it. So a request waits longer than $t$ with probability
#
# $$ P(\text{wait} > t) = \frac{\bigl(1 + \lambda (C - t)\bigr)\, q}{1 + \lambda C q} , \qquad 0 \le t < C . $$ (eq-wait)
#
# Money is the time up, times the price. Ten thousand random requests, by hand and by these equations
# (`semid_lib.studies.costs`):

# %%
toy = costs.Service(cold_seconds=5, seconds=1, concurrency=8, fill=0.7)
arrivals = np.cumsum(rng.exponential(1 / 0.02, size=10_000))  # every 50 seconds
is_cold, up = by_hand(arrivals, 5, 1, 60)
formula = costs.cycle(0.02, toy, window=60)
print(f"cold: {np.mean(is_cold):.3f}, by the equation {formula.cold:.3f}")
print(f"asleep: {1 - up / arrivals[-1]:.3f}, by the equation {formula.asleep:.3f}")

# %% [markdown]
# Shoppers do not come evenly: each hour of the day gets a rate of its own, and the hours are added up. This leaves out:
#
# - shoppers who come in waves: then more requests meet a warm container;
# - containers that are awake from one hour into the next;
# - the cold starts of a second container under load;
# - storage, network and a plan's monthly fee.

# %% [markdown]
# ## 5. Cost against traffic
#
# First the small model of sections 1 to 3, with its seconds measured there. Three things are assumptions of the first
# cell: the provider's part of the cold start (unless an endpoint was measured, see section 6), how requests spread over
# the day, and the price of a rented machine. Rows of an endpoint, where there are any:

# %%
rows_of_shelf = {row["key"]: row for row in shelf.rows()}


def endpoint_rows(is_gpu):
    """Measured seconds of a cold and of a warm answer over the network, None where nobody measured."""
    keys = {"cold": "endpoint_cold/seconds", "warm": "endpoint_warm/p50_ms"}
    rows = {
        n: rows_of_shelf.get(f"deployment/{shop.name}/{key}") for n, key in keys.items()
    }
    if any(
        row is None or bool(row["endpoint"]["gpu"]) != is_gpu for row in rows.values()
    ):
        return None
    return rows["cold"]["value"], rows["warm"]["value"] / 1000


on_cpu, on_gpu = endpoint_rows(is_gpu=False), endpoint_rows(is_gpu=True)

# %%
measured = starts is not None
own_seconds, warm_seconds = (parts.sum(), p50 / 1000) if measured else SMALL_ASSUMED
cold_seconds = on_cpu[0] if on_cpu else PLATFORM_SECONDS + own_seconds
small = costs.Service(cold_seconds, warm_seconds, CONCURRENCY, FILL)
price = costs.Price("small", CORES * CORE + MEMORY * GIB, *READ)
day = costs.Traffic(REQUESTS, PROFILE)
policies = {
    f"sleeps after {WINDOW} s": costs.Policy(WINDOW),
    f"sleeps after {10 * WINDOW} s": costs.Policy(10 * WINDOW),
    f"awake {len(WARM_HOURS)} hours a day": costs.Policy(WINDOW, warm_hours=WARM_HOURS),
    "always awake": costs.Policy(WINDOW, min_containers=1),
}
said = "measured" if measured else "ASSUMED"
print(f"{said}: {own_seconds:.2f} s of our own until a cold answer is there,")
print(f"{warm_seconds:.3f} s for a warm one")
said = "measured" if on_cpu else "ASSUMED"
print(f"{said}: {cold_seconds:.2f} s with the provider's part")
print(f"{price.per_second * 3600:.3f} dollars an hour ({price.source}, {price.date})")


# %%
def bills(service, price, per_day):
    """One line a policy for so many requests a day."""
    traffic = costs.Traffic(per_day, PROFILE)
    lines = {
        name: costs.bill(service, price, traffic, policy)
        for name, policy in policies.items()
    }
    return pd.DataFrame(
        lines.values(), index=pd.Index(lines, name=f"{per_day:g} requests a day")
    )


bills(small, price, REQUESTS).round(3)

# %% tags=["hide-input"]
POLICY_COLOURS = ["tab:blue", "tab:cyan", "tab:orange", "tab:red"]


def draw(service, price, rented):
    """Money a month and the share of cold answers against requests a day."""
    grid = np.logspace(0, 6, 61)
    table = {n: bills(service, price, n) for n in grid}
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
    for name, colour in zip(policies, POLICY_COLOURS, strict=True):
        left.plot(
            grid, [table[n].loc[name, "money"] for n in grid], color=colour, label=name
        )
        right.plot(
            grid, [100 * table[n].loc[name, "cold_share"] for n in grid], color=colour
        )
    left.axhline(rented, color="black", linestyle=":", label="rented by the month")
    by_second = costs.Price("rented", rented / costs.SECONDS_A_MONTH, "", "")
    even = costs.break_even(service, price, by_second, PROFILE, WINDOW)
    if np.isfinite(even):
        left.plot(even, rented, "ko")
        text = {"xytext": (6, -13), "textcoords": "offset points"}
        left.annotate(f"{even:,.0f} a day", (even, rented), **text)
    left.set(xscale="log", xlabel="requests a day", ylabel="dollars a month", ylim=0)
    right.set(xscale="log", xlabel="requests a day", ylim=(0, 103))
    right.set_ylabel("answers that meet a cold start (%)")
    figure.legend(loc="outside upper center", ncol=5, frameon=False)
    for axis in (left, right):
        axis.spines[["top", "right"]].set_visible(False)
    plt.show()
    return even


# %% tags=["hide-input"] mystnb={"image": {"alt": "Left: dollars a month against requests a day for four policies; those that sleep rise from nothing to the price of staying awake, and a dot marks where a rented machine becomes cheaper. Right: the share of cold answers falls from 100 percent to nothing."}}
even = draw(small, price, RENTED_MONTH)

# %% [markdown]
# *Figure 4.* Left: at the same price a second, sleeping never costs more than staying awake, but nearly as much where
# requests are many. Right: what staying awake buys is that hardly anybody meets a cold start. The dot is where a
# machine that is rented by the month becomes cheaper than a container that sleeps.
#
# Is it worth it to stay awake? What it costs more, divided by the cold answers that it avoids, is the price of one of
# them:

# %%
asleep, awake = (
    costs.bill(small, price, day, policies[name])
    for name in (f"sleeps after {WINDOW} s", "always awake")
)
cents = 100 * (awake.money - asleep.money) / max(asleep.cold_a_month, 1e-9)
print(
    f"{REQUESTS} requests a day: {asleep.money:.2f} dollars a month asleep when idle, {awake.money:.2f} always awake"
)
print(
    f"{asleep.cold_share:.0%} of the answers are cold, each avoided for {cents:.2f} cents"
)

# %% [markdown]
# ## 6. Two commands
#
# Chapter 07 has left a model for [histories](../book/notation.md "history"), chapter 10 one for queries. Where they
# name items by the same IDs, one folder holds both, and one endpoint answers both.

# %%
whole = folder
if len(found) == 2:
    histories, queries = (Recommender.from_pretrained(place) for place in found)
    if np.array_equal(histories.ids.unique, queries.ids.unique):
        joined = Recommender(
            histories.model,
            histories.ids,
            histories.items,
            queries.searcher,
            histories.exclude_seen,
        )
        whole = shelf.path("service")
        joined.save_pretrained(whole, shelf.provenance())
print("to deploy:", whole.name if whole else "nothing yet")

# %% [markdown]
# With an account at Modal, in the environment of `make setup` (`source .venv/bin/activate`), and after `modal setup`, which
# logs in:
#
# ```text
# semid deploy upload --folder artefacts/demo/laptop/service
# SEMID_TOKEN=... modal deploy -m semid_lib.serving.modal_app
# ```
#
# The first checks the folder and sends it to a volume; the second builds the image once and prints the address of the
# endpoint, which is the very service measured above, behind the bearer token that you chose. The window and the
# containers that stay are environment variables: `SEMID_SCALEDOWN`, `SEMID_MIN_CONTAINERS`, and `SEMID_WARM_UP` for a
# schedule. The [page on serving](../book/serving.md) has the others. What this chapter assumed of the provider is
# measured by
#
# ```text
# semid deploy measure --url https://... --cold 3 --warm 100
# ```
#
# which waits until the endpoint sleeps, wakes it, and keeps the times as rows beside this chapter's. Found here:

# %%
for name, pair in (("small model on CPUs", on_cpu), ("language model on a GPU", on_gpu)):
    print(
        f"{name}: "
        + (
            "not measured"
            if pair is None
            else f"{pair[0]:.1f} s cold, {pair[1]:.3f} s warm"
        )
    )

# %% [markdown]
# ## 7. The language model
#
# The same service with a language model behind it needs a GPU, and its cold start is another: gigabytes of weights to a
# device and, with vLLM, kernels to compile, both kept in a volume between starts. Nothing on this page measured that,
# unless the cell above says so. With an account it is
#
# ```text
# semid deploy upload --folder artefacts/demo/laptop/recommender_llm --name llm
# SEMID_GPU=L4 SEMID_MODEL=llm SEMID_TOKEN=... modal deploy -m semid_lib.serving.modal_app
# SEMID_GPU=L4 SEMID_TOKEN=... semid deploy measure --url https://... --cold 3 --warm 100
# ```

# %%
llm_cold, llm_warm = on_gpu or LLM_ASSUMED
said = "measured" if on_gpu else "not measured, ASSUMED"
print(f"{said}: {llm_cold:.1f} s until a cold answer, {llm_warm:.2f} s for a warm one")
llm = costs.Service(llm_cold, llm_warm, CONCURRENCY, FILL)
gpu_price = costs.Price("LLM", GPU + GPU_CORES * CORE + GPU_MEMORY * GIB, *READ)
print(
    f"{GPU_NAME}: {gpu_price.per_second * 3600:.2f} dollars an hour ({gpu_price.source}, {gpu_price.date})"
)
bills(llm, gpu_price, REQUESTS).round(3)

# %% tags=["hide-input"] mystnb={"image": {"alt": "The same two panels for a language model on a GPU: the same shapes at far more money, the break-even with a rented GPU marked by a dot."}}
even_gpu = draw(llm, gpu_price, RENTED_GPU_MONTH)

# %% [markdown]
# *Figure 5.* The same for a language model on a GPU: the shape is the same, the money is not. The dearer the machine,
# the more requests a day it takes until staying awake pays; and the price of a rented one is an assumption that moves
# the dot a lot.

# %% [markdown]
# ## 8. What to choose
#
# For each amount of traffic, the cheapest policy under which 99 of 100 shoppers wait no longer than `PATIENCE` of the
# first cell:

# %%
choice = {}
for n in (10, 100, 1000, 10_000, 100_000):
    for name, service, cost in (("small", small, price), ("LLM", llm, gpu_price)):
        fits = bills(service, cost, n).query("p99 <= @PATIENCE").sort_values("money")
        best = fits.index[0] if len(fits) else "none"
        line = choice.setdefault(f"{n:,}", {})
        line[name] = best
        line[f"{name}, dollars a month"] = fits["money"].iloc[0] if len(fits) else np.nan
        line[f"{name}, p99 (s)"] = fits["p99"].iloc[0] if len(fits) else np.nan
pd.DataFrame(choice).T.rename_axis("requests a day").round(2)

# %% [markdown]
# ## Summary

# %%
rows = store.table_rows(
    "deployment",
    {"cost_small": {"break even requests a day": even} if np.isfinite(even) else {}},
)
if starts is not None:
    rows += store.table_rows(
        "deployment",
        {
            "cold_start": {f"{part} s": value for part, value in parts.items()}
            | {"ours s": ours, "total s": parts.sum()},
            "warm": {"p50 ms": p50, "p99 ms": p99},
        },
    )
    rows += store.table_rows(
        "deployment",
        {f"start {way}": {"total s": value} for way, value in saved["median"].items()},
    )
    facts = {"model": folder.name, "n": sizes.cold_starts}
    rows = [row | facts for row in rows]
shelf.record("08_modal_deployment", [row | {"seed": SEED} for row in rows])
if starts is not None:
    print(
        f"cold: {parts.sum():.2f} s until the first answer, {ours:.2f} s of them ours (must be under 2)"
    )
    print(f"warm: p50 {p50:.1f} ms (must be under 50), p99 {p99:.1f} ms")
print(f"{REQUESTS} requests a day to the small model: {asleep.money:.2f} dollars a month")
print(f"the language model: {'measured' if on_gpu else 'not measured'}")
print(f"the whole chapter took {clock.seconds:.0f} s")

# %% [markdown]
# **What did not work.** Leaving checksums out saves little, since a file in memory is read fast. pandas could go from
# the service only together with the item table that `Recommender.items` promises. The [light
# model](../book/notation.md) cannot be made fast to start: its text encoder needs libraries that take longer to import
# than everything else together, so it is the case for a memory snapshot. The [log](../book/log.md) has more.
#
# **Next:** [how cost grows with the catalogue](09_scaling.ipynb).
