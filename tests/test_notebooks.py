"""The chapters on a catalogue without histories, brands or categories; `make test` runs them on the demo shop too.

Their cells are executed in this process, since a kernel of its own would import the same packages for each chapter.
"""

import ast
import re
import warnings
from functools import partial
from typing import NamedTuple

import matplotlib.pyplot as plt
import pandas as pd
import pytest

from semid_lib.chapters import runner
from semid_lib.data import demo_shop
from semid_lib.data.folder import open_store, write_folder

# without histories, chapters 11 and 12 continue with the demo shop of chapter 07, on which `make test` runs them
COLD = [name for name in runner.in_order() if not name.startswith(("11_", "12_"))]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def artefacts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("artefacts")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SEMID_ARTEFACTS", str(folder))
        yield folder


@pytest.fixture(scope="module")
def cold_catalogue(tmp_path_factory):
    """300 items of the demo shop with nothing but a title."""
    items = [{"item_id": item["item_id"], "title": item["title"]} for item in demo_shop.demo_shop().items[:300]]
    folder = tmp_path_factory.mktemp("data") / "cold"
    write_folder(folder, items)
    return folder


class Output(NamedTuple):
    printed: str
    pages: str  # HTML of what cells show
    complaints: list[str]


@pytest.fixture
def run(capsys, monkeypatch):
    """Executes the cells of a chapter at smoke, as Jupyter does: run(chapter, data folder)."""

    def draw():
        for number in plt.get_fignums():
            plt.figure(number).canvas.draw()
        plt.close("all")

    def execute(chapter: str, data) -> Output:
        text = (runner.NOTEBOOKS / f"{chapter}.py").read_text(encoding="utf-8")
        text = text.replace('SCALE = "laptop"', 'SCALE = "smoke"').replace('DATA = "demo"', f"DATA = {str(data)!r}")
        pages = []

        def show(value):
            pages.append(value._repr_html_() if hasattr(value, "_repr_html_") else "")

        names = {"__name__": "__main__", "display": show}
        with warnings.catch_warnings(record=True) as caught, plt.rc_context():
            warnings.simplefilter("default")
            for cell in re.split(r"^# %%", text, flags=re.MULTILINE):
                heading, _, code = cell.partition("\n")
                *body, last = [None] if "[markdown]" in heading else ast.parse(code).body or [None]
                is_shown = isinstance(last, ast.Expr)
                body += [last] if last and not is_shown else []
                exec(compile(ast.Module(body, []), chapter, "exec"), names)
                if is_shown:
                    show(eval(compile(ast.Expression(last.value), chapter, "eval"), names))
        unexpected = [each for each in caught if not issubclass(each.category, DeprecationWarning | ResourceWarning)]
        return Output(capsys.readouterr().out, "".join(pages), [str(each.message) for each in unexpected])

    monkeypatch.setattr(plt, "show", draw)
    with pd.option_context("display.html.use_mathjax", True, "display.max_colwidth", 50):
        yield execute


@pytest.mark.parametrize("chapter", COLD)
def test_a_chapter_runs_on_a_bare_cold_catalogue(chapter, cold_catalogue, artefacts, run, monkeypatch):
    # chapter 07 shows the demo shop instead: here a small one
    small = partial(demo_shop.write_demo_shop, n_items=300, n_users=300)
    monkeypatch.setattr(demo_shop, "write_demo_shop", small)
    output = run(chapter, cold_catalogue)
    assert "cold" in output.printed
    assert output.complaints == []
    if chapter == "07_next_item":
        assert "cold has no histories" in output.printed
        keys = [row["key"] for row in open_store(str(cold_catalogue), "smoke", artefacts).rows()]
        assert not [key for key in keys if key.startswith("next_item")]  # those are of the demo shop
    if chapter == "08_modal_deployment":
        assert "service: recommender_hybrid of cold" in output.printed  # chapter 10 has run


# text that has broken a label, a table or a search elsewhere
TITLES = ["Ba$$ boots for $5 <b>mud</b>", "手机 壳 红色", "👟 Shoes `x` *y* | z", "_hidden\nname\twith", "שלום עולם"]
BRANDS = ["Ba$$", "手机", "_brand", "👟", "$x^$"]
LEAVES = ["a$b$", "电脑", "_leaf", "<script>alert(1)</script>", "x" * 5000]
IDS = ["SKU 1", "-1", "0", "007", "Ä/?#", '"', "'", "手", "1e3", "a b", "#1", "B00X"]


def a_hard_catalogue(n_items: int) -> list[dict]:
    """Items with five different texts, and ids that are text."""
    return [
        {
            "item_id": IDS[at],
            "title": TITLES[at % 5],
            "brand": BRANDS[at % 5],
            "categories": [["Shop", LEAVES[at % 5]]],
        }
        for at in range(n_items)
    ]


@pytest.mark.parametrize("n_items", [2, 12])
def test_the_first_chapters_run_on_a_few_items_with_any_text(n_items, tmp_path, run):
    write_folder(tmp_path / "hard", a_hard_catalogue(n_items))
    for chapter in sorted(COLD)[:3]:
        output = run(chapter, tmp_path / "hard")
        assert output.complaints == []
        assert "<script" not in output.pages and "<b>mud" not in output.pages
        assert f"{n_items} items: too few" in output.printed
        assert "<table" in output.pages
