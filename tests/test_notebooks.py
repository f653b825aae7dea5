"""The chapters on a catalogue without histories, brands or categories; `make test` runs them on the demo shop too."""

import json
import os
from pathlib import Path

import nbformat
import pytest

from semid_lib import chapters, synthetic
from semid_lib.folder import write_folder

CHAPTERS = sorted((Path(__file__).parent.parent / "notebooks").glob("[0-9]*.py"))


@pytest.fixture(scope="module")
def cold_catalogue(tmp_path_factory):
    """300 items of the demo shop with nothing but a title."""
    items = [{"item_id": item["item_id"], "title": item["title"]} for item in synthetic.demo_shop().items[:300]]
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


@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda path: path.stem)
def test_a_chapter_runs_on_a_bare_cold_catalogue(chapter, cold_catalogue, artefacts):
    facts = chapters.run(chapter, str(cold_catalogue), "smoke")
    assert facts["state"] == "executed", facts["error"]
    executed = nbformat.read(artefacts / "cold" / "smoke" / "executed" / f"{chapter.stem}.ipynb", as_version=4)
    printed = json.dumps(executed)
    assert "cold" in printed
    assert "Warning" not in "".join(_error_output(executed))
    if chapter.stem == "07_next_item":
        assert "cold has no histories" in printed
        assert facts["rows"] == 0
    if chapter.stem == "08_modal_deployment":
        has_light = (artefacts / "cold" / "smoke" / "recommender_light" / "config.json").is_file()
        assert ("the service of recommender_light" if has_light else "no recommender is on the shelf") in printed


def _error_output(notebook) -> list[str]:
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return [output["text"] for output in outputs if output.get("name") == "stderr"]
