"""The chapters on a catalogue without histories, brands or categories; `make test` runs them on the demo shop too."""

import json
import os

import nbformat
import pytest

from semid_lib.chapters import runner
from semid_lib.data import demo_shop
from semid_lib.data.folder import open_store, write_folder

CHAPTERS = sorted(runner.NOTEBOOKS.glob("[0-9]*.py"))
# without histories, chapter 11 continues with the demo shop of chapter 07, on which `make test` runs it
COLD = [runner.NOTEBOOKS / f"{name}.py" for name in runner.in_order() if not name.startswith("11_")]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def cold_catalogue(tmp_path_factory):
    """300 items of the demo shop with nothing but a title."""
    items = [{"item_id": item["item_id"], "title": item["title"]} for item in demo_shop.demo_shop().items[:300]]
    folder = tmp_path_factory.mktemp("data") / "cold"
    write_folder(folder, items)
    return folder


@pytest.fixture(scope="module")
def artefacts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("artefacts")
    before = os.environ.get("SEMID_ARTEFACTS")
    os.environ["SEMID_ARTEFACTS"] = str(folder)
    yield folder
    os.environ.pop("SEMID_ARTEFACTS")
    if before is not None:
        os.environ["SEMID_ARTEFACTS"] = before


@pytest.mark.parametrize("chapter", COLD, ids=lambda path: path.stem)
def test_a_chapter_runs_on_a_bare_cold_catalogue(chapter, cold_catalogue, artefacts):
    facts = runner.run(chapter, str(cold_catalogue), "smoke")
    assert facts["state"] == "executed", facts["error"]
    run = open_store(str(cold_catalogue), "smoke", artefacts)
    executed = nbformat.read(run.path("executed") / f"{chapter.stem}.ipynb", as_version=4)
    printed = json.dumps(executed)
    assert "cold" in printed
    assert "Warning" not in "".join(_error_output(executed))
    if chapter.stem == "07_next_item":
        assert "cold has no histories" in printed
        assert facts["rows"] == 0
    if chapter.stem == "08_modal_deployment":
        assert "service: recommender_light of cold" in printed  # chapter 10 has run


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
def test_the_first_chapters_run_on_a_few_items_with_any_text(n_items, artefacts, tmp_path):
    folder = tmp_path / f"hard{n_items}"
    write_folder(folder, a_hard_catalogue(n_items))
    for chapter in CHAPTERS[:3]:
        facts = runner.run(chapter, str(folder), "smoke")
        assert facts["state"] == "executed", facts["error"]
        [file] = artefacts.glob(f"{folder.name}*/smoke/executed/{chapter.stem}.ipynb")
        executed = nbformat.read(file, as_version=4)
        assert "Warning" not in "".join(_error_output(executed))
        pages = "".join(page for output in _outputs(executed) for page in output.get("data", {}).get("text/html", ""))
        assert "<script" not in pages and "<b>mud" not in pages
        assert f"{n_items} items: too few" in json.dumps(executed)


def _outputs(notebook) -> list[dict]:
    return [output for cell in notebook.cells for output in cell.get("outputs", [])]


def _error_output(notebook) -> list[str]:
    return [output["text"] for output in _outputs(notebook) if output.get("name") == "stderr"]
