"""Figures in sentences: written from rows, or said by the code too; nothing that looks measured is typed.

The log is left out, being dated notes of trials, and so are tables and figures between marks, which `report check`
holds against their rows.
"""

import re
import tomllib
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub.constants import DOWNLOAD_CHUNK_SIZE
from packaging.specifiers import SpecifierSet

from semid_lib.evaluation import report
from semid_lib.ids.semantic_ids import SemanticIDs
from semid_lib.llm import vllm_search
from semid_lib.next_item.tiger import Tiger, TigerConfig
from semid_lib.serving import batch_io, predict
from semid_lib.serving.deployment import Settings
from semid_lib.serving.http import schemas
from semid_lib.serving.http.middleware import Limits
from semid_lib.workbench import scale

ROOT = Path(__file__).resolve().parent.parent
PAGES = [*report._PAGES, *sorted((ROOT / "notebooks").glob("[0-9]*.py"))]

_COUNT = "two|three|four|five|six|seven|eight|nine|ten|twelve|fifteen|twenty|thirty|forty|fifty|sixty|seventy|hundred"
_UNIT = r"(ms|s|(milli)?seconds?|minutes?|hours?|[kMG]i?B|times|percent|dollars|texts)\b"
# .0870 and 12.3, 19%, 12 ms, twelve times, twofold
_FIGURE = re.compile(
    rf"(?<![\w./@-])\d*\.\d+|\d ?%|\d[ -]{_UNIT}|\b({_COUNT}|half an?)[ -]{_UNIT}|\b({_COUNT})fold", re.IGNORECASE
)

# What no row and no code of ours can say: the text, and why it may stand there. All spaces count as one.
ALLOWED = {
    "02_semantic_ids.py": [('"near 0.5" or "near 10.5"', "four points on a line, computed in the next cell")],
    "03_codebook_analysis.py": [("The scale is logarithmic above .001 and linear below", "a setting of the plot")],
    "07_next_item.py": [("The floor of 0.01 and the power of 2", "the defaults of the library")],
    "09_scaling.py": [
        ("the same shop with ten times the items", "an example"),
        ("the dotted line is the 100 ms limit", "a setting of the chapter"),
    ],
    "08_modal_deployment.py": [
        ("at 0, 30, 100 and 400 s, a window of 60 s, a cold start of 5 s, a response of 1 s", "by hand"),
        ("which is ready at 5 s", "the same example, computed in the next cell"),
    ],
    "runpod.md": [
        ("closes a connection after 100 seconds", "RunPod's documentation"),
        ("finds no worker within two minutes", "RunPod's documentation"),
    ],
}


def rows_of(data: str) -> dict[str, dict]:
    return {row["key"]: row for row in report.published_rows(data, "bench" if data == "vllm" else "laptop")}


@cache
def n_parameters(name: str) -> int:
    """Of the TIGER that chapter 07 trains at a scale on IDs of three levels of 256 codes."""
    sizes = scale.get(name)
    shape = {key: getattr(sizes, f"tiger_{key}") for key in ("dim", "head_dim", "ff_dim")}
    config = TigerConfig(n_layers=sizes.tiger_layers, n_heads=sizes.tiger_heads, **shape)
    ids = SemanticIDs(np.zeros((1, 3), dtype=np.int64), np.zeros(1, dtype=np.int64), codebook_size=256)
    return sum(each.numel() for each in Tiger(config, ids).parameters())


def said_by_code() -> list[tuple[str, str]]:
    """Page, and a text on it that is put together here from what the code, a paper or the rows have."""
    limits, settings = Limits(), Settings()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    pythons = [minor for minor in range(30) if SpecifierSet(project["requires-python"]).contains(f"3.{minor}")]
    systems, close_within = report.load_systems()
    [tiger] = [system for system in systems if system.name == "TIGER"]
    theirs = f"a Recall@10 of {tiger.figures['beauty']['recall@10']:.4f}".replace(" 0.", " .")
    ours, full = (f"{n_parameters(name) / 1e6:.2g}".removeprefix("0") for name in ("laptop", "full"))
    size = f"has {ours} million parameters where the paper's sizes give {full} million in our code"
    assert size in tiger.why["beauty"]
    value = {key.removeprefix("semantic_ids/beauty/"): row["value"] for key, row in rows_of("beauty").items()}
    fitted = 1 - value["rqvae_distortion"] / value["distortion"]
    unseen = 1 - value["rqvae_held_out_distortion"] / value["held_out_distortion"]
    decoding, serving = (
        (ROOT / "tests" / "bench" / name).read_text(encoding="utf-8") for name in ("decoding.py", "serving.py")
    )
    prompt, width = re.search(
        r"def searches\(n_items: int, prompt: int = (\d+), width: int = (\d+)\)", decoding
    ).groups()
    soak, users = (int(re.search(rf"{name}: int = (\w+)", serving)[1]) for name in ("soak", "users"))
    return [
        ("results.md", f"prompts of {prompt} tokens, beam width {width}"),
        ("06_constrained_generation.py", f"searches with prompts of {prompt} tokens"),
        ("serving.md", f"its memory over {soak:,} requests."),
        ("serving.md", f"It also sends {users:,} histories through the batch command"),
        ("README.md", "Python " + " or ".join(f"3.{minor}" for minor in pythons)),
        ("README.md", theirs),
        ("results.md", theirs),
        ("README.md", size),
        ("results.md", size),
        ("results.md", f"no more than {close_within} standard deviations over our seeds"),
        (
            "02_semantic_ids.py",
            f"is {fitted:.0%} below k-means on fitted items, but only {unseen:.0%} on held-out ones",
        ),
        ("serving.md", f"| {schemas.MAX_K} items in an answer |"),
        ("serving.md", f"| {schemas.MAX_HISTORY:,} items in a history, {schemas.MAX_BLOCKED:,} blocked items,"),
        ("serving.md", f"{schemas.MAX_NAMES} categories or brands, {schemas.MAX_INSTANCES} instances |"),
        ("serving.md", f"| {schemas.MAX_TEXT} characters in a query, a title search or a user id |"),
        ("serving.md", f"| {limits.max_body / 2**20:g} MiB in a body |"),
        ("serving.md", f"| {limits.seconds:g} seconds to send a body, and {limits.seconds:g} to answer |"),
        ("serving.md", f"| {limits.max_queue} waiting requests |"),
        ("serving.md", f"| {2 * limits.max_queue:,} connections |"),
        ("serving.md", f"After each block of {predict.BLOCK:,} lines"),
        ("serving.md", f"a line above {batch_io.LONGEST / 2**20:g} MiB"),
        ("serving.md", f"(in steps of {DOWNLOAD_CHUNK_SIZE // 2**20} MB)"),
        ("serving.md", f"makes vLLM {vllm_search.VERSION} run"),
        ("serving.md", f"| `SEMID_CPU`, `SEMID_MEMORY` | {settings.cpu:g}, {settings.memory} |"),
        ("serving.md", f"| `SEMID_SCALEDOWN` | {settings.scaledown} |"),
        ("serving.md", f"_MAX_CONTAINERS` | {settings.min_containers}, {settings.max_containers} |"),
        ("serving.md", f"| `SEMID_CONCURRENCY`, `SEMID_TIMEOUT` | {settings.concurrency}, {settings.timeout} |"),
        ("serving.md", f"| `SEMID_SNAPSHOT` | {settings.snapshot:d} |"),
        ("torchserve.md", f"up to {limits.max_batch} waiting requests form a batch"),
        ("torchserve.md", f"{limits.seconds:g} seconds, then 504; {limits.max_queue} requests, then 503"),
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


def test_every_section_of_the_log_says_when_and_at_which_commit():
    log = (ROOT / "book" / "log.md").read_text(encoding="utf-8")
    headings = re.findall(r"^## .*", log, flags=re.MULTILINE)
    assert [each for each in headings if not re.fullmatch(r"## \d{4}-\d\d, .+ \(`[0-9a-f]{7,40}`\)", each)] == []
