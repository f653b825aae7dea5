"""Figures in sentences: written from rows, or said by the code too; nothing that looks measured is typed.

The log is left out, being dated notes of trials, and so are tables and figures between marks, which `report check`
holds against their rows.
"""

import inspect
import re
import tomllib
from pathlib import Path

import pytest
from huggingface_hub.constants import DOWNLOAD_CHUNK_SIZE
from packaging.specifiers import SpecifierSet

from semid_lib.evaluation import metrics, report, reproductions
from semid_lib.llm import vllm_search
from semid_lib.next_item import baselines, timeline
from semid_lib.serving import predict
from semid_lib.serving.deployment import Settings
from semid_lib.serving.http import schemas
from semid_lib.serving.http.middleware import Limits
from semid_lib.studies import growth

ROOT = Path(__file__).resolve().parent.parent
PAGES = [*report._PAGES, *sorted((ROOT / "notebooks").glob("[0-9]*.py"))]

_COUNT = "two|three|four|five|six|seven|eight|nine|ten|twelve|fifteen|twenty|thirty|forty|fifty|sixty|seventy|hundred"
_UNIT = r"(ms|s|(milli)?seconds?|minutes?|hours?|[kMG]i?B|times|percent|dollars|texts)\b"
# .0870 and 12.3, 19%, 12 ms, twelve times, twofold
_FIGURE = re.compile(
    rf"(?<![\w./@-])\d*\.\d+|\d ?%|\d[ -]{_UNIT}|\b({_COUNT}|half an?)[ -]{_UNIT}|\b({_COUNT})fold", re.IGNORECASE
)

_NINE = "What does ten times as many items cost?"
# What no row and no code of ours can say: the text, and why it may stand there. All spaces count as one.
ALLOWED = {
    "01_catalogue_and_embeddings.py": [("So a cosine of .3 alone says nothing", "an example")],
    "02_semantic_ids.py": [('"near 0.5" or "near 10.5"', "four points on a line, computed in the next cell")],
    "03_codebook_analysis.py": [("The scale is logarithmic down to .001 and linear below", "a setting of the plot")],
    "07_next_item.py": [("The floor of 0.01 and the power of 2", "held against the library below")],
    "09_scaling.py": [
        (_NINE, "its title"),
        ("ten times the items after at up to 10,000 items looks like nothing", "an example"),
        ("the same shop with ten times the items", "a thought"),
        ("more than ten times beyond", "held against the library below"),
    ],
    **{page: [(_NINE, "a chapter's title")] for page in ("README.md", "index.md")},
    "08_modal_deployment.py": [
        ("at 0, 30, 100 and 400 s, with a window of 60 s, a cold start of 5 s and an answer of 1 s", "by hand"),
        ("it is ready at 5 s", "the same example, computed in the next cell"),
    ],
    "runpod.md": [
        ("closes a connection after 100 seconds", "RunPod's documentation"),
        ("finds no worker within two minutes", "RunPod's documentation"),
    ],
}


def rows_of(data: str) -> dict[str, dict]:
    return {row["key"]: row for row in report.published_rows(data, "bench" if data == "vllm" else "laptop")}


def said_by_code() -> list[tuple[str, str]]:
    """Page, and a text on it that is put together here from what the code, a paper or the rows have."""
    limits, settings = Limits(), Settings()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    pythons = [minor for minor in range(30) if SpecifierSet(project["requires-python"]).contains(f"3.{minor}")]
    [tiger] = [system for system in reproductions.load()[0] if system.name == "TIGER"]
    theirs = f"Recall@10 {tiger.figures['beauty']['recall@10']:.4f}".replace(" 0.", " .")
    value = {key.removeprefix("semantic_ids/beauty/"): row["value"] for key, row in rows_of("beauty").items()}
    fitted = 1 - value["rqvae_distortion"] / value["distortion"]
    unseen = 1 - value["rqvae_held_out_distortion"] / value["held_out_distortion"]
    decoding, serving = (
        (ROOT / "tests" / "bench" / name).read_text(encoding="utf-8") for name in ("decoding.py", "serving.py")
    )
    prompt, width = re.search(
        r"def searches\(n_items: int, prompt: int = (\d+), width: int = (\d+)\)", decoding
    ).groups()
    soak, users = (int(re.search(rf'"--{name}", type=int, default=(\w+)', serving)[1]) for name in ("soak", "users"))
    return [
        ("results.md", f"prompts of {prompt} tokens, beam {width}"),
        ("06_constrained_generation.py", f"searches with prompts of {prompt} tokens"),
        ("serving.md", f"watched over {soak:,} requests, and {users:,} histories go through the batch command"),
        ("README.md", "Python " + " or ".join(f"3.{minor}" for minor in pythons)),
        ("README.md", theirs),
        ("results.md", theirs),
        ("02_semantic_ids.py", f"a lead of {fitted:.0%} on fitted items became {unseen:.0%} on unseen ones"),
        ("serving.md", f"| {schemas.MAX_K} items in an answer |"),
        ("serving.md", f"| {schemas.MAX_HISTORY:,} items in a history, {schemas.MAX_BLOCKED:,} blocked items,"),
        ("serving.md", f"{schemas.MAX_NAMES} categories or brands, {schemas.MAX_INSTANCES} instances |"),
        ("serving.md", f"| {schemas.MAX_TEXT} characters in a query, a title search or a user id |"),
        ("serving.md", f"| {limits.max_body / 2**20:g} MiB in a body |"),
        ("serving.md", f"| {limits.seconds:g} seconds to send a body, and {limits.seconds:g} to answer |"),
        ("serving.md", f"| {limits.max_queue} waiting questions |"),
        ("serving.md", f"| {2 * limits.max_queue:,} connections |"),
        ("serving.md", f"After each block of {predict.BLOCK:,} lines"),
        ("serving.md", f"a line above {predict.records.LONGEST / 2**20:g} MiB"),
        ("serving.md", f"(in steps of {DOWNLOAD_CHUNK_SIZE // 2**20} MB)"),
        ("serving.md", f"lets vLLM {vllm_search.VERSION} run"),
        ("serving.md", f"| `SEMID_CPU`, `SEMID_MEMORY` | {settings.cpu:g}, {settings.memory} |"),
        ("serving.md", f"| `SEMID_SCALEDOWN` | {settings.scaledown} |"),
        ("serving.md", f"_MAX_CONTAINERS` | {settings.min_containers}, {settings.max_containers} |"),
        ("serving.md", f"| `SEMID_CONCURRENCY`, `SEMID_TIMEOUT` | {settings.concurrency}, {settings.timeout} |"),
        ("serving.md", f"| `SEMID_SNAPSHOT` | {settings.snapshot:d} |"),
        ("torchserve.md", f"up to {limits.max_batch} questions that wait are answered together"),
        ("torchserve.md", f"{limits.seconds:g} seconds, then 504; {limits.max_queue} questions, then 503"),
        ("torchserve.md", f"at most {schemas.MAX_INSTANCES} instances and lists of {schemas.MAX_K} items"),
        ("torchserve.md", f"and is {schemas.PredictQuestion.model_fields['topk'].default} then"),
        ("torchserve.md", f"a history of more than {schemas.MAX_HISTORY:,} items"),
    ]


def prose(path: Path, text: str | None = None) -> str:
    """The sentences of a page, or of a chapter's Markdown cells, without code, mathematics, marked places and links."""
    text = path.read_text(encoding="utf-8") if text is None else text
    if path.suffix == ".py":
        cells = re.split(r"^# %%", text, flags=re.MULTILINE)
        cells = [cell.partition("\n")[2] for cell in cells if cell.startswith(" [markdown]")]
        text = "\n\n".join(re.sub(r"^# ?", "", cell, flags=re.MULTILINE) for cell in cells)
    text = re.sub(r"<!-- (row|rows|reproductions)\b.*?<!-- end \1 -->", "", text, flags=re.DOTALL)
    text = re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)
    return " ".join(re.sub(r"\$\$.*?\$\$|\$[^$]+\$|(?<=\])\([^)]*\)", "", text, flags=re.DOTALL).split())


def typed_figures(path: Path, text: str | None = None) -> list[str]:
    """What looks measured on a page, each with the words around it."""
    text = prose(path, text)
    known = [said for page, said in said_by_code() if page == path.name]
    known += [said for said, _ in ALLOWED.get(path.name, [])]
    for said in known:
        text = text.replace(said, "")
    text = re.sub(r"`[^`]+`", "", text).replace("95% ", "")  # the level of an interval, see below
    return [text[max(0, found.start() - 60) : found.end() + 30] for found in _FIGURE.finditer(text)]


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_no_figure_is_typed(path):
    assert typed_figures(path) == [], (
        "write it by <!-- row: ... --> (semid_lib/evaluation/report.py), or say it in words"
    )


@pytest.mark.parametrize(
    "typed",
    [
        *("Recall@10 .1234", "it is 12.5 long", "19% of them", "19 % of them", "in 12 ms", "in 3 s", "70 minutes"),
        *("seventy minutes of a core", "Five times faster", "a twofold gain", "half an hour", "| 1.5 |"),
    ],
)
def test_a_typed_figure_is_found(typed):
    page = (ROOT / "README.md").read_text(encoding="utf-8")
    [found] = typed_figures(ROOT / "README.md", f"{page}\n\nOurs: {typed}.\n")
    assert typed.strip("|. ").split()[0] in found
    chapter = ROOT / "notebooks" / "09_toy.py"
    assert typed_figures(chapter, f"# %% [markdown]\n# Ours: {typed}.\n")
    assert not typed_figures(chapter, f"# %% [markdown]\n# Ours:\n\n# %%\nprint('{typed}')\n")


def test_what_the_code_has_is_what_the_page_says():
    pages = {path.name: prose(path) for path in PAGES}
    assert [text for page, text in said_by_code() if text not in pages[page]] == []


def test_the_constants_of_chapter_07_are_those_of_the_library():
    chapter = re.sub(r"\s*\n# ?", " ", (ROOT / "notebooks" / "07_next_item.py").read_text(encoding="utf-8"))
    knn = {name: each.default for name, each in inspect.signature(baselines.ItemKNN).parameters.items()}
    prior = {name: each.default for name, each in inspect.signature(baselines.ItemKNN.prior).parameters.items()}
    model = timeline.TimelineConfig(sizes=(2,), text_dim=1, n_items=1)
    assert knn["backward"] == 1 / 2 and r"\tfrac12 & j \text{ before } i" in chapter
    assert model.item_dropout == 3 / 10 and "three in ten items lose theirs" in chapter
    for text in (
        rf"(n_i\, n_j)^{{{knn['popularity_exponent']:g}}}",
        f"with weight ${knn['decay']:g}^t$",
        f"more than {knn['window']} places apart",
        f"items of the batch and {model.n_sampled:,} others",
        rf"(s + {prior['floor']:g})^{prior['weight']:g}",
        f"The floor of {prior['floor']:g} and the power of {prior['weight']:g}",
    ):
        assert text in chapter


def test_no_law_of_growth_is_asked_further_than_chapter_09_says():
    assert growth.REACH == 10


def test_intervals_are_of_95_percent():
    assert metrics.bootstrap_intervals.__defaults__[1] == 0.95


def test_every_section_of_the_log_says_when_and_at_which_commit():
    log = (ROOT / "book" / "log.md").read_text(encoding="utf-8")
    headings = re.findall(r"^## .*", log, flags=re.MULTILINE)
    assert [each for each in headings if not re.fullmatch(r"## \d{4}-\d\d, .+ \(`[0-9a-f]{7,40}`\)", each)] == []


# --- claims in words ---


def test_what_is_said_of_next_item_on_beauty_is_in_the_rows():
    rows = rows_of("beauty")
    value = {key: row["value"] for key, row in rows.items()}
    [tiger] = [system for system in reproductions.load()[0] if system.name == "TIGER"]
    mine = {name: value[f"next_item/beauty/{name}/recall@10"] for name in ("item_knn", "tiger")}
    assert mine["item_knn"] > tiger.figures["beauty"]["recall@10"] > mine["tiger"]  # "lies above both"
    for other in ("item_knn", "sasrec"):  # "level with ... at 10 and ahead of both at 100 and 1,000"
        low, high = rows[f"timeline_ahead_of/beauty/{other}/recall@10"]["ci95"]
        assert low <= 0 <= high
        assert all(rows[f"timeline_ahead_of/beauty/{other}/recall@{k}"]["ci95"][0] > 0 for k in (100, 1000))
    for k in (5, 10, 50, 100, 1000):  # "with item-kNN as a third voice it is ahead of all from 5 on"
        everybody = {name: value[f"next_item/beauty/{name}/recall@{k}"] for name in report._NAMES if name in mine}
        everybody |= {name: value[f"next_item/beauty/{name}/recall@{k}"] for name in ("timeline", "sasrec")}
        assert value[f"next_item/beauty/timeline_item_knn/recall@{k}"] > max(everybody.values())
    for k in (10, 100, 1000):  # chapter 07: "SASRec lies between them"
        knn, sasrec, timeline = (value[f"next_item/beauty/{n}/recall@{k}"] for n in ("item_knn", "sasrec", "timeline"))
        assert knn < sasrec < timeline
    tiger, knn = ([value[f"next_item/beauty/{name}/recall@{k}"] for k in (10, 1000)] for name in ("tiger", "item_knn"))
    assert tiger[0] < 0.7 * knn[0] and tiger[1] > 1.05 * knn[1]  # "A small TIGER is far behind ... and ahead"
    for name in ("item_knn", "sasrec", "timeline"):  # "cut at one moment ... all figures are far lower"
        at_once = [value[f"{topic}/beauty/{name}/recall@10"] for topic in ("next_item_by_time", "next_item")]
        assert at_once[0] < at_once[1] / 2


def test_on_the_demo_shop_the_model_is_far_ahead_of_counting():
    rows = rows_of("demo")
    assert rows["timeline_ahead_of/demo/item_knn/recall@10"]["ci95"][0] > 0.05  # chapter 07


def test_our_decoder_is_several_times_faster_than_vllm_on_a_processor():
    ms = {key.split("/", 2)[2]: row["value"] for key, row in rows_of("vllm").items() if key.startswith("vllm_search/")}
    ours = {key: found for key, found in ms.items() if key.endswith("/here ms")}
    assert ours and all(ms[key.replace("/here ms", "/VLLMSearch ms")] > 3 * found for key, found in ours.items())


def test_the_lists_of_generate_come_in_a_fraction_of_its_time():
    rows = [row for row in report.published_rows("random", "bench") if row["key"].startswith("decoding_search/")]
    value = {row["key"].removeprefix("decoding_search/random/"): row["value"] for row in rows}
    for search in {key.rpartition("/")[0] for key in value}:
        assert value[f"{search}/times faster"] > 5
        assert value[f"{search}/users with the same list"] == int(re.search(r"(\d+) users$", search)[1])


def test_what_is_said_of_growth_is_in_the_rows():
    rows = report.published_rows("random", "bench")
    laws = growth.laws(growth.points(rows))
    costs = {(point.stage, point.n): point.cost for point in growth.points(rows) if isinstance(point, growth.Point)}
    mask = [costs["mask step, 400 beams", n] for n in (10**6, 10**7)]
    assert mask[1] < 1.1 * mask[0]  # README: "hardly later at ten"
    peaks = [row["value"] for row in rows if row["key"].startswith("memory/")]
    assert len(peaks) == 6 and max(peaks) < 4  # CHANGELOG: "a million items in less than 4 GiB"
    beam = laws["T5, beam search"]
    for name in ("dense", "timeline model"):  # chapter 09: "below some hundred thousand items"
        assert 10**5 < growth.crossing(beam, laws[name]) < 10**6
    assert 10**6 < growth.crossing(beam, laws["item-kNN"]) < 10**7  # "at millions of items"
    lists = laws["dense, inverted lists"]
    assert lists.high < 1 and growth.crossing(beam, lists) > lists.n_to  # "rises more slowly than n, and stays below"
    before = sorted(n for stage, n in costs if stage == "residual k-means" and n < 10**6)
    law = growth.fit(before, [costs["residual k-means", n] for n in before])
    assert law.at(10**6) > 3 * costs["residual k-means", 10**6]  # "several times as dear as they turned out"


def test_what_the_notes_on_published_figures_say_of_ours_is_in_the_rows():
    value = {key: row["value"] for key, row in rows_of("beauty").items()}
    [recbole] = [system for system in reproductions.load()[0] if system.name.endswith("RecBole")]
    theirs = recbole.figures["beauty"]["ndcg@10"] / recbole.figures["beauty"]["recall@10"]
    allowed, not_allowed = (
        value[f"next_item/beauty/{name}/ndcg@10"] / value[f"next_item/beauty/{name}/recall@10"]
        for name in ("sasrec_seen_allowed", "sasrec")
    )
    assert f"is {theirs:.2f} of its Recall@10".replace("0.", ".") in recbole.protocol
    assert round(allowed, 2) == round(theirs, 2)
    assert f"(without seen items: {not_allowed:.2f})".replace("0.", ".") in recbole.protocol
    for system in reproductions.load()[0]:
        if system.ours == "tiger":
            assert "an eighth of" in system.why["beauty"]  # test_tiger.py counts its parameters
            assert "about twenty minutes of one core" in system.why["beauty"]
    assert 17 < value["training/beauty/tiger/seconds"] / 60 < 23
