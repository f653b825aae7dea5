# %% [markdown]
# # Deployment on Modal: what does an endpoint cost while it is idle?
#
# A serverless endpoint stops when there are no requests, and then costs nothing. The next request has to wait until it
# has started again. This chapter measures that wait, and computes at which traffic it pays to keep the endpoint running.
#
# **What you will learn**
#
# 1. what a [cold start](../book/notation.md) consists of;
# 2. what each measure against it saves;
# 3. how fast a warm service responds;
# 4. what stopping costs and how many requests have to wait, by hand and in closed form;
# 5. cost against traffic, and the break-even point;
# 6. the commands that deploy and measure an endpoint;
# 7. the language model on a GPU;
# 8. what to choose.
#
# | | |
# | --- | --- |
# | reads | `recommender` (chapter 07) or else `recommender_hybrid` (chapter 10); result rows of `semid deploy measure`, if there are any |
# | writes | `service`: one folder that answers histories and queries, if both models exist; result rows |
# | runs in | about a minute, mostly for starts of the service |

# %% tags=["parameters"]
DATA = "demo"  # or a folder with items.jsonl
SCALE = "laptop"  # smoke, laptop or full
SEED = 0

# prices in dollars per second; prices change: enter those of today
CORE = 0.0000131
GIB = 0.00000222  # of memory
GPU = 0.000222
GPU_NAME = "L4"
READ = ("modal.com/pricing", "2026-07-01")  # where and when
# dollars per month for a rented machine of the same size, without and with such a GPU
RENTED_MONTH = 15.0  # assumptions: enter yours
RENTED_GPU_MONTH = 450.0

# containers: cores, GiB, requests at once, and the load at which another one starts
CORES = 2
MEMORY = 2
GPU_CORES = 2
GPU_MEMORY = 16
CONCURRENCY = 32
FILL = 0.7
WINDOW = 60  # idle seconds until a container stops
PLATFORM_SECONDS = 1.5  # to find a machine and start a container: assumed

# traffic of an assumed shop: requests per day, a weight per hour, hours kept awake
REQUESTS = 500
PROFILE = (2, 1, 1, 1, 1, 2, 4, 7, 10, 12, 13, 13,
           12, 12, 12, 12, 13, 14, 16, 18, 18, 15, 10, 5)  # fmt: skip
WARM_HOURS = (8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21)
PATIENCE = 5.0  # seconds that the slowest 1% of the requests may wait

# seconds of a cold and a warm response where nothing was measured
SMALL_ASSUMED = (2.0, 0.02)
LLM_ASSUMED = (60.0, 0.5)

# %%
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from semid_lib.data import dataset
from semid_lib.evaluation import figures
from semid_lib.evaluation.rows import table_rows
from semid_lib.serving.recommender import Recommender
from semid_lib.studies.service import endpoint_costs as costs
from semid_lib.studies.service import service_start
from semid_lib.workbench import scale, store

timer = store.Timer()
shop = dataset.load(DATA)
sizes = scale.get(SCALE)
artefacts = store.Store(shop.name, SCALE, shop.fingerprint)
rng = np.random.default_rng(SEED)
print(artefacts.origin())

# %%
found = [
    artefacts.checked(name)
    for name in ("recommender", "recommender_hybrid")
    if (artefacts.path(name) / "config.json").is_file()
]
folder = found[0] if found else None
if folder is None:
    print("There is no recommender (chapters 07 and 10): no start is timed,")
    print("and costs are computed from the assumptions of the first cell.")
else:
    print(f"service: {folder.name} of {shop.name}, {len(shop.items):,} items")

# %% [markdown]
# ## 1. What does a cold start consist of?
#
# A *cold start* is everything between a request that finds no running service and its response. We start the service
# in a fresh process several times and send requests until it responds; timers inside the process measure each part
# (`semid_lib.studies.service.service_start`). Two things are not included: the provider's part (find a machine, fetch an image,
# start a container), and the first read of the files from a disk or a network.

# %%
starts, OURS = None, list(service_start.OURS)
if folder is not None:
    ways = dict(list(service_start.WAYS.items())[: sizes.cold_ways])
    n = sizes.warm_answers
    requests = service_start.example_requests(folder, shop, n, SEED)
    few, repeats = requests[: 1 + n // 10], sizes.cold_starts
    starts = service_start.table(folder, few, ways, repeats, progress=True)
    parts = starts.loc["as it is", list(service_start.PARTS)].median()
    ours = parts[OURS].sum()
    print(f"{parts.sum():.2f} s to the first response (sum of the medians),")
    print(f"{ours:.2f} s of them in this library, the rest in packages")

# %% tags=["hide-input"] mystnb={"image": {"alt": "One horizontal bar, stacked from the parts of a cold start: most of it is the import of torch, then other packages; the parts of this library are at its right end."}}
if starts is not None:
    figures.cold_start_parts(parts[parts > 0], OURS)
    plt.show()

# %% [markdown]
# *Figure 1.* Parts of a start, medians over the starts: Python and packages in grey, this library in blue. A smaller
# model would only shorten the part "weights". The most expensive imports:

# %%
service_start.imports().head(8).round(3)

# %% [markdown]
# ## 2. What does each measure save?
#
# Each row is the same start with one difference; "more" is the difference in seconds to the service as it is. *Forked
# when loaded* imitates a provider's memory snapshot: a process that has loaded everything is copied by `fork`, and the
# copy responds. A real snapshot is read from a disk on another machine, so a fork is a lower bound.

# %%
if starts is not None:
    starts["ours"] = starts[OURS].sum(axis=1)
    by_way = starts.groupby("way", sort=False)
    seconds = by_way["total"].agg(["median", "min", "max"])
    seconds["this library"] = by_way["ours"].median()
    for name in ("median", "this library"):
        usual = seconds.loc["as it is", name]
        seconds[f"{name}, more"] = seconds[name] - usual
    seconds[f"p99 of the next {len(few) - 1} (ms)"] = by_way["p99"].median()
    display(seconds.round(2))

# %% tags=["hide-input"] mystnb={"image": {"alt": "Horizontal bars of the seconds to the first response, one for each way to start the service, grey for packages and blue for this library; the fork's is tiny, the ones without compiled code are the longest."}}
if starts is not None:
    medians = by_way[[*service_start.PARTS, "ours"]].median()
    others = [part for part in service_start.PARTS if part not in OURS]
    medians["libraries"] = medians[others].sum(axis=1)
    figures.cold_starts(medians, starts["total"].droplevel("repeat"))
    plt.show()

# %% [markdown]
# *Figure 2.* Bars are sums of medians, dots are single starts. A difference smaller than the spread of the dots is
# noise. By default, the service
#
# - uses Python code that was compiled before, as in an image (otherwise *our code not compiled*);
# - turns Python's garbage collector off while it loads, because imports leave almost no garbage (*collector left on*);
# - loads the compiled loop for batches (numba, chapter 06) during the first responses. They are a little slower: see the
#   last column of the table. *Batches first*, which only `full` measures, waits for the loop;
# - compares files with the checksums in `config.json` (*without checksums*), because a folder may be half copied.

# %% [markdown]
# ## 3. How fast is a warm response?
#
# One client sends one request after the other over HTTP on this machine. Each request passes limits, validation, queue
# and search. A client elsewhere adds its network.

# %%
warm = np.zeros(0)
if folder is not None:
    all_warm = service_start.Way(batches_first=True)
    warm = np.array(service_start.measure(folder, requests, all_warm).warm_ms)
    p50, p99 = np.percentile(warm, [50, 99])
    print(f"{len(warm)} responses: median {p50:.1f} ms, 99% {p99:.1f} ms")

# %% tags=["hide-input"] mystnb={"image": {"alt": "Cumulative share of warm responses against milliseconds, a steep S-shaped curve with dotted lines at the median and the 99th percentile."}}
if len(warm):
    figures.response_times(warm)
    plt.show()

# %% [markdown]
# *Figure 3.* Times of warm responses. Other work on the same processor affects the right end of the curve first.

# %% [markdown]
# ## 4. What does stopping cost?
#
# A container runs from the request that starts it until no request has come for $w$ seconds, the *window*. An example
# by hand: requests at 0, 30, 100 and 400 s, a window of 60 s, a cold start of 5 s, a response of 1 s. The first request
# starts the container, which is ready at 5 s. The second finds it running and keeps it until $30 + 1 + 60 = 91$ s. The
# third comes too late and starts it again for $5 + 1 + 60 = 66$ s, and so does the fourth. Three of four requests meet
# a cold start, and the container runs for $91 + 66 + 66$ seconds.


# %%
def by_hand(arrivals, cold, seconds, window):
    """Which requests meet a cold start; seconds that the container runs."""
    is_cold, running, ready, stops_at = [], 0.0, 0.0, -np.inf
    for arrival in arrivals:
        if arrival >= stops_at:
            ready, runs_from = arrival + cold, arrival
        else:
            runs_from = stops_at
        stops_at = max(arrival, ready) + seconds + window
        running += stops_at - runs_from
        is_cold.append(arrival < ready)
    return is_cold, running


by_hand([0, 30, 100, 400], cold=5, seconds=1, window=60)

# %% [markdown]
# Now let requests be random and independent, $\lambda$ per second on average (a Poisson process). The container stops at
# the first gap between two requests that is longer than $\tau = s + w$, where $s$ is the time of a response. A gap is
# that long with probability
#
# $$ q = e^{-\lambda \tau} . $$ (eq-gap)
#
# Running and being stopped alternate. The container is stopped for $1 / \lambda$ on average, until the next request. It
# runs for the cold start $C$ and as long as gaps stay short, which is the busy period of a queue with infinitely many
# servers [(Takács, 1962)](../book/references.bib "takacs1962"):
#
# $$ \mathbb{E}[\text{up}] = C + \frac{e^{\lambda \tau} - 1}{\lambda} , \qquad
# \text{share of time asleep} = \frac{q}{1 + \lambda C q} . $$ (eq-up)
#
# The request that starts the container waits for all of $C$. Requests during the start, $\lambda C$ on average, wait for
# the rest of it. So a request waits longer than $t$ with probability
#
# $$ P(\text{wait} > t) = \frac{\bigl(1 + \lambda (C - t)\bigr)\, q}{1 + \lambda C q} , \qquad 0 \le t < C . $$ (eq-wait)
#
# The cost is the running time multiplied by the price. Ten thousand random requests, by hand and by the equations
# (`semid_lib.studies.service.endpoint_costs`):

# %%
toy = costs.Service(cold_seconds=5, seconds=1, concurrency=8, fill=0.7)
arrivals = np.cumsum(rng.exponential(50, size=10_000))  # 0.02 per second
is_cold, running = by_hand(arrivals, 5, 1, 60)
formula = costs.cycle(0.02, toy, window=60)
print(f"cold: {np.mean(is_cold):.3f}, by the equation {formula.cold:.3f}")
stopped = 1 - running / arrivals[-1]
print(f"stopped: {stopped:.3f}, by the equation {formula.asleep:.3f}")

# %% [markdown]
# Traffic changes during the day, so each hour has its own rate, and the hours are added up. The model leaves out
#
# - bursts of requests, which make more of them warm;
# - containers that run from one hour into the next;
# - cold starts of a second container under load;
# - storage, network and a plan's monthly fee.

# %% [markdown]
# ## 5. Cost against traffic
#
# First the small model, with the seconds measured in sections 1 to 3. Three inputs are assumptions of the first cell:
# the provider's part of the cold start (unless an endpoint was measured, section 6), the traffic over the day, and the
# price of a rented machine.

# %%
prefix = f"deployment/{shop.name}/"
rows = {row["key"].removeprefix(prefix): row for row in artefacts.rows()}


def endpoint(gpu):
    """Seconds of a cold and a warm response, if an endpoint was measured."""
    pair = rows.get("endpoint_cold/seconds"), rows.get("endpoint_warm/p50_ms")
    if all(row and bool(row["endpoint"]["gpu"]) == gpu for row in pair):
        return pair[0]["value"], pair[1]["value"] / 1000


on_cpu, on_gpu = endpoint(gpu=False), endpoint(gpu=True)

# %%
own = SMALL_ASSUMED if starts is None else (parts.sum(), p50 / 1000)
cold_seconds = on_cpu[0] if on_cpu else PLATFORM_SECONDS + own[0]
small = costs.Service(cold_seconds, own[1], CONCURRENCY, FILL)
price = CORES * CORE + MEMORY * GIB
policies = {
    f"stops after {WINDOW} s": costs.Policy(WINDOW),
    f"stops after {10 * WINDOW} s": costs.Policy(10 * WINDOW),
    f"kept {len(WARM_HOURS)} h": costs.Policy(WINDOW, warm_hours=WARM_HOURS),
    "always running": costs.Policy(WINDOW, min_containers=1),
}
print("ASSUMED" if starts is None else "measured", end=": ")
print(f"cold start {own[0]:.2f} s without the provider, warm {own[1]:.3f} s")
print("measured" if on_cpu else "ASSUMED", end=": ")
print(f"cold start {cold_seconds:.2f} s with the provider")
print(f"{price * 3600:.3f} dollars per hour ({', '.join(READ)})")


# %%
COLUMNS = ("dollars per month", "hours running", "share cold")
COLUMNS += ("cold per month", "median (s)", "99% (s)", "containers")


def bills(service, price, per_day):
    """One line per policy for so many requests per day."""
    day = costs.traffic(per_day, PROFILE)
    lines = [costs.bill(service, price, day, one) for one in policies.values()]
    index = pd.Index(policies, name=f"{per_day:,.0f} requests per day")
    return pd.DataFrame(lines, index).set_axis(COLUMNS, axis=1)


bills(small, price, REQUESTS).round(3)


# %% tags=["hide-input"]
def draw(service, price, rented):
    """Cost and cold responses against traffic; returns the break-even."""
    tables = {n: bills(service, price, n) for n in np.logspace(0, 6, 61)}
    money = pd.DataFrame({n: t[COLUMNS[0]] for n, t in tables.items()}).T
    cold = pd.DataFrame({n: t[COLUMNS[2]] for n, t in tables.items()}).T
    by_second = rented / costs.SECONDS_A_MONTH
    even = costs.break_even(service, price, by_second, PROFILE, WINDOW)
    figures.cost_against_traffic(money, cold, rented, even)
    plt.show()
    return even


# %% tags=["hide-input"] mystnb={"image": {"alt": "Left: dollars per month against requests per day for four policies; those that stop rise from nothing to the price of always running, and a dot marks where a rented machine becomes cheaper. Right: the share of cold responses falls from 100 percent to nothing."}}
even = draw(small, price, RENTED_MONTH)

# %% [markdown]
# *Figure 4.* Left: at the same price per second, stopping never costs more than always running, and almost as much at
# high traffic. Right: a container that always runs has almost no cold responses. At the dot, a machine that is rented by
# the month becomes cheaper than a container that stops.
#
# The extra cost of always running, divided by the cold responses that it avoids, is the price of one of them:

# %%
table = bills(small, price, REQUESTS)
money, avoided = table["dollars per month"], table["cold per month"].iloc[0]
cents = 100 * (money.iloc[-1] - money.iloc[0]) / max(avoided, 1e-9)
print(f"{REQUESTS} requests per day: {money.iloc[0]:.2f} dollars per month,")
print(f"or {money.iloc[-1]:.2f} if always running")
print(f"cold responses: {table['share cold'].iloc[0]:.0%}; avoiding one costs")
print(f"{cents:.2f} cents")

# %% [markdown]
# ## 6. Two commands
#
# Chapter 07 wrote a model for [histories](../book/notation.md "history"), chapter 10 one for queries. If both use the
# same [semantic IDs](../book/notation.md "semantic ID"), one folder holds both, and one endpoint answers both.

# %%
whole = folder
if len(found) == 2:
    first, second = (Recommender.from_pretrained(place) for place in found)
    if np.array_equal(first.ids.unique, second.ids.unique):
        parts_of_both = (first.model, first.ids, first.items, second.searcher)
        settings = (first.exclude_seen, first.tokenizer)
        joined = Recommender(*parts_of_both, *settings)
        whole = artefacts.path("service")
        joined.save_pretrained(whole, artefacts.provenance())
print("to deploy:", whole.name if whole else "nothing yet")

# %% [markdown]
# With a Modal account, in the environment of `make setup` (`source .venv/bin/activate`), and after `modal setup`, which
# logs in:
#
# ```text
# semid deploy upload --folder artefacts/demo/laptop/service
# SEMID_TOKEN=... modal deploy -m semid_lib.serving.modal_app
# ```
#
# The first command checks the folder and sends it to a volume. The second builds the image once and prints the address
# of the endpoint: the service measured above, with the bearer token that you chose. Environment variables set the window
# (`SEMID_SCALEDOWN`), the containers that always run (`SEMID_MIN_CONTAINERS`) and a schedule (`SEMID_WARM_UP`); the [page
# on serving](../book/serving.md) has the others. To measure the provider's part, run
#
# ```text
# semid deploy measure --url https://... --cold 3 --warm 100
# ```
#
# It waits until the endpoint has stopped, starts it with a request, and keeps the times as [result rows](../book/notation.md "result row"), which this
# chapter reads:

# %%
for name, pair in {"small model": on_cpu, "language model": on_gpu}.items():
    text = "{:.1f} s cold, {:.3f} s warm".format(*pair) if pair else "no rows"
    print(f"{name}: {text}")

# %% [markdown]
# ## 7. The language model
#
# The same service with a language model needs a GPU, and its cold start is longer: it copies gigabytes of weights to a
# device and, with vLLM, compiles kernels. A volume keeps both between starts. This page has not measured it unless the
# cell above says so. With an account:
#
# ```text
# semid deploy upload --folder artefacts/demo/laptop/recommender_llm --name llm
# SEMID_GPU=L4 SEMID_MODEL=llm SEMID_TOKEN=... modal deploy -m semid_lib.serving.modal_app
# SEMID_GPU=L4 SEMID_TOKEN=... semid deploy measure --url https://... --cold 3 --warm 100
# ```

# %%
llm_cold, llm_warm = on_gpu or LLM_ASSUMED
llm = costs.Service(llm_cold, llm_warm, CONCURRENCY, FILL)
gpu_price = GPU + GPU_CORES * CORE + GPU_MEMORY * GIB
print("measured" if on_gpu else "ASSUMED", end=": ")
print(f"{llm_cold:.1f} s for a cold response, {llm_warm:.2f} s for a warm one")
print(f"{GPU_NAME}: {gpu_price * 3600:.2f} dollars per hour")
bills(llm, gpu_price, REQUESTS).round(3)

# %% tags=["hide-input"] mystnb={"image": {"alt": "The same two panels for a language model on a GPU: the same shapes at far higher cost, the break-even with a rented GPU marked by a dot."}}
even_gpu = draw(llm, gpu_price, RENTED_GPU_MONTH)

# %% [markdown]
# *Figure 5.* The same for a language model on a GPU: the curves have the same shape at a much higher cost. The more
# expensive the machine, the more requests per day it takes until always running pays. The dot depends strongly on the
# assumed price of a rented GPU.

# %% [markdown]
# ## 8. What to choose
#
# For each number of requests per day, the cheapest policy under which 99 of 100 requests take at most `PATIENCE` seconds.
# A model without a line has none:

# %%
choice = []
models = {"small": (small, price), "LLM": (llm, gpu_price)}
for per_day in (10, 100, 1000, 10_000, 100_000):
    for model, (service, cost) in models.items():
        lines = bills(service, cost, per_day).reset_index(names="policy")
        fits = lines[lines["99% (s)"] <= PATIENCE]
        best = fits.nsmallest(1, "dollars per month")
        choice.append(best.assign(model=model, requests=f"{per_day:,}"))
columns = ["requests", "model", "policy", "dollars per month", "99% (s)"]
pd.concat(choice)[columns].set_index("requests").round(2)

# %% [markdown]
# ## Summary

# %%
measured, facts = {}, {"seed": SEED}
if np.isfinite(even):
    measured["cost_small"] = {"break even requests a day": even}
if starts is not None:
    measured["cold_start"] = {f"{part} s": x for part, x in parts.items()}
    measured["cold_start"] |= {"ours s": ours, "total s": parts.sum()}
    measured["warm"] = {"p50 ms": p50, "p99 ms": p99}
    medians = seconds["median"].items()
    measured |= {f"start {way}": {"total s": x} for way, x in medians}
    facts |= {"model": folder.name, "n": sizes.cold_starts}
    print(f"cold: {parts.sum():.2f} s, ours {ours:.2f} s (target: under 2)")
    print(f"warm: median {p50:.1f} ms (target: under 50), 99% {p99:.1f} ms")
result_rows = table_rows("deployment", measured)
artefacts.record("08_modal_deployment", [row | facts for row in result_rows])
print(f"small model: {money.iloc[0]:.2f} dollars per month")
print(f"language model: {'measured' if on_gpu else 'not measured'}")
print(f"the chapter took {timer.seconds:.0f} s")

# %% [markdown]
# **What did not work.** Leaving checksums out saves little, because a file in memory is read fast. pandas cannot go
# without the item table that `Recommender.items` promises. The [hybrid ranker](../book/notation.md) cannot start fast:
# its text encoder needs packages whose import takes longer than everything else together, so it needs a memory snapshot.
# The [log](../book/log.md) has more.
#
# **Next:** [how cost grows with the catalogue](09_scaling.ipynb).
