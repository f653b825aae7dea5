"""The built book: links, requests, words for screen readers, search.

`SEMID_BOOK` names a built book (`make check-book` does); else one is built here from the sources, with its chapters as
they stand in `notebooks/`, not executed.
"""

import doctest
import functools
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import version
from pathlib import Path
from urllib.parse import unquote, urlsplit

import jupytext
import pytest
from bs4 import BeautifulSoup
from chromium import CHROMIUM, Tab
from papermill.parameterize import parameterize_notebook

from semid_lib.workbench import store

ROOT = Path(__file__).resolve().parent.parent
slow = pytest.mark.slow  # needs a built book
in_a_browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: pages are loaded in a real browser only")
# what a page loads by itself, as (element, attribute)
LOADED = [("script", "src"), ("img", "src"), ("iframe", "src"), ("source", "src"), ("video", "src"), ("embed", "src")]


@pytest.fixture(scope="session")
def book(tmp_path_factory) -> Path:
    """The folder with index.html."""
    if "SEMID_BOOK" in os.environ:
        return Path(os.environ["SEMID_BOOK"]).resolve()
    root = tmp_path_factory.mktemp("book")
    shutil.copytree(ROOT / "book", root / "book", ignore=shutil.ignore_patterns("_build", "chapters", "__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", root)  # what status.md reads
    for chapter in sorted((ROOT / "notebooks").glob("[0-9]*.py")):
        (root / "book" / "chapters").mkdir(exist_ok=True)
        notebook = jupytext.read(chapter)
        notebook.metadata["language_info"] = {"name": "python"}
        jupytext.write(notebook, root / "book" / "chapters" / f"{chapter.stem}.ipynb")
    command = [str(Path(sys.executable).parent / "jupyter-book"), "build", "--warningiserror", "--keep-going", "book"]
    build = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert build.returncode == 0, build.stdout + build.stderr
    return root / "book" / "_build" / "html"


@pytest.fixture(scope="session")
def pages(book) -> dict[Path, BeautifulSoup]:
    found = {file: BeautifulSoup(file.read_text(encoding="utf-8"), "html.parser") for file in book.rglob("*.html")}
    found = {file: soup for file, soup in found.items() if "_static" not in file.relative_to(book).parts}
    assert {"index.html", "results.html", "status.html", "log.html"} <= {file.name for file in found}
    assert len([file for file in found if file.parent.name == "chapters"]) == len(
        list(ROOT.glob("notebooks/[0-9]*.py"))
    )
    return found


@pytest.fixture(scope="session")
def url(book):
    """The book on a free port of loopback."""
    with ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Quiet, directory=book)) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@slow
def test_every_link_leads_somewhere(book, pages):
    anchors = {file: {one["id"] for one in soup.find_all(id=True)} for file, soup in pages.items()}
    wrong = []
    for file, soup in pages.items():
        targets = [one["href"] for one in soup.find_all(href=True)] + [one["src"] for one in soup.find_all(src=True)]
        for target in targets:
            parts = urlsplit(target)
            if parts.scheme or parts.netloc:
                continue
            to = (file.parent / unquote(parts.path)).resolve() if parts.path else file
            there = to.is_relative_to(book) and to.is_file()
            if not there or (to in anchors and unquote(parts.fragment) not in {"", *anchors[to]}):
                wrong.append((file.name, target))
    assert wrong == []


@slow
def test_pages_and_styles_name_no_other_host_to_load_from(book, pages):
    loaded = []
    for file, soup in pages.items():
        loaded += [(file.name, one[key]) for name, key in LOADED for one in soup.find_all(name) if one.get(key)]
        loaded += [(file.name, one["href"]) for one in soup.find_all("link", href=True)]
        scripts = " ".join(one.get_text() for one in soup.find_all("script") if not one.get("src"))
        loaded += [(file.name, found) for found in re.findall(r"\w+://[^\s\"']+", scripts)]
    for file in book.rglob("*.css"):
        text = re.sub(r"/\*.*?\*/", "", file.read_text(encoding="utf-8"), flags=re.DOTALL)
        found = re.findall(r"url\(\s*[\"']?([^\"')]+)|@import\s+[\"']([^\"']+)", text)
        loaded += [(file.name, one or other) for one, other in found]
    assert len(loaded) > 100
    assert [(name, what) for name, what in loaded if re.match(r"(\w+:)?//", what)] == []


@slow
def test_every_picture_has_words_instead(pages):
    own = {file: soup for file, soup in pages.items() if file.name != "py-modindex.html"}  # Sphinx writes that one
    pictures = [(file.name, one) for file, soup in own.items() for one in soup.find_all("img")]
    assert pictures
    without = [(name, str(one)) for name, one in pictures if len(one.get("alt", "").split()) < 4]
    assert without == []


@slow
def test_chapters_say_how_to_run_them_and_status_lists_them(pages):
    [status] = [soup.get_text() for file, soup in pages.items() if file.name == "status.html"]
    for file, soup in pages.items():
        if file.parent.name == "chapters":
            assert soup.get_text().count(f"make run NOTEBOOK={file.stem}") == 1
            assert soup.h1.get_text().rstrip("#") in status
    assert re.search(r"torch\s+\d+\.\d+", status) and "<!--" not in status


@pytest.fixture
def tab(browser):
    opened = Tab(browser)
    yield opened
    opened.send("Page.close")


OF_SPHINX = ("genindex.html", "search.html", "py-modindex.html")


def names(book, some: bool = False) -> list[str]:
    """The pages, or some: one of each kind."""
    found = sorted(file.relative_to(book).as_posix() for file in book.rglob("*.html") if "_static" not in file.parts)
    if some:
        firsts = [next(name for name in found if name.startswith(folder)) for folder in ("api/", "chapters/")]
        found = ["index.html", "results.html", "search.html", *firsts]
    return found


# code, output, tables, equations and pictures that need more room than they have, hidden cells included
TOO_WIDE = """
(() => {
  document.querySelectorAll('.bd-article details').forEach((one) => { one.open = true; });
  dispatchEvent(new Event('resize'));  // equations are fitted
  const article = document.querySelector('.bd-article').getBoundingClientRect();
  const boxes = '.bd-article :is(pre, table, div.math, div.math mjx-container, img, .cell_output .output)';
  return [...document.querySelectorAll(boxes)].filter((one) => one.offsetParent !== null)
    .filter((one) => one.scrollWidth > one.clientWidth + 1 || one.getBoundingClientRect().right > article.right + 1)
    .map((one) => `${one.tagName} ${one.scrollWidth} in ${one.clientWidth}: ${one.textContent.trim().slice(0, 50)}`);
})()
"""


@in_a_browser
@pytest.mark.parametrize("width", [1300, 390])
@slow
def test_pages_fit_their_box_ask_no_other_host_and_complain_of_nothing(tab, book, url, width):
    too_wide = {}
    for name in names(book):
        tab.open(f"{url}/{name}", width)
        tab.js("window.MathJax?.startup?.promise.then(() => 0)")  # equations are set
        assert tab.js("document.documentElement.scrollWidth <= innerWidth"), f"{name} is wider than the screen"
        too_wide |= {name: wide} if name not in OF_SPHINX and (wide := tab.js(TOO_WIDE)) else {}
    assert too_wide == {}
    assert {urlsplit(asked).netloc for asked in tab.requests if not asked.startswith("data:")} == {urlsplit(url).netloc}
    assert tab.complaints == []


# what a reader should not meet: raw keys of results, missing numbers, paths of the machine, many digits
RAW = re.compile(
    r"\bNaN\b|\bnan\b|PosixPath|\d[.]\d+e-?\d+|\b(?:recall|ndcg)@\d|"
    r"\b(?:item_knn|timeline_item_knn|query_to_id|title_to_id)\b"
)


@slow
def test_no_output_shows_raw_keys_missing_numbers_or_paths(pages):
    raw = {
        file.name: found
        for file, soup in pages.items()
        if (found := [word for one in soup.select(".cell_output") for word in RAW.findall(one.get_text(" "))])
    }
    assert raw == {}


@in_a_browser
@pytest.mark.parametrize("place", ["server", "file"])
@slow
def test_search_finds_a_word(tab, book, url, place):
    root = url if place == "server" else book.as_uri()
    tab.open(f"{root}/search.html?q=codeword")
    found = "[...document.querySelectorAll('#search-results li a')].map((a) => a.pathname.split('/').pop())"
    tab.wait(f"({found}).includes('notation.html')")


# findings of axe-core that keep somebody from reading, by rule, with the first element
FINDINGS = """
Promise.allSettled(document.getAnimations().map((one) => one.finished))  // colours fade over
    .then(() => axe.run(%s)).then((all) => all.violations
    .filter((one) => ["serious", "critical"].includes(one.impact))
    .map((one) => `${one.id}, ${one.nodes.length} times, first ${one.nodes[0].html.slice(0, 200)}`))
"""


@in_a_browser
@slow
def test_pages_are_accessible(tab, book, url):
    """No serious or critical finding of axe-core, which `make setup` installs with axe-playwright-python."""
    carrier = importlib.util.find_spec("axe_playwright_python")
    if carrier is None:
        pytest.skip("no axe-core here: pip install --no-deps axe-playwright-python")
    axe = (Path(carrier.origin).parent / "axe.min.js").read_text(encoding="utf-8")
    findings = []
    for name in names(book, some="SEMID_BOOK" not in os.environ):
        as_the_system_asks(tab, "light")
        tab.open(f"{url}/{name}")
        tab.js(f"{axe}; true")
        for theme, rules in {"light": {}, "dark": {"runOnly": ["color-contrast"]}}.items():
            as_the_system_asks(tab, theme)
            tab.wait(f"document.documentElement.dataset.theme === '{theme}'")
            findings += [
                f"{name}, {theme}: {finding}" for finding in tab.js(FINDINGS % json.dumps(rules | {"preload": False}))
            ]
    assert findings == []


def as_the_system_asks(tab, theme: str) -> None:
    tab.send("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": theme}])


# --- what book/pages.py writes ---


@pytest.fixture(scope="module")
def book_pages():
    spec = importlib.util.spec_from_file_location("book_pages", ROOT / "book" / "pages.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert doctest.testmod(module).failed == 0
    return module


def executed(line: str, seconds: float | None = 61.2) -> dict:
    metadata = {} if seconds is None else {"papermill": {"duration": seconds}}
    cells = [{"cell_type": "code", "outputs": [{"name": "stdout", "text": ["first\n", f"{line}\n"]}]}]
    return {"metadata": metadata, "cells": cells}


def test_a_run_is_read_from_the_line_that_the_store_prints(book_pages, tmp_path):
    origin = store.Store("beauty", "laptop", "f" * 64, root=tmp_path).origin()
    run = book_pages.run_of(executed(origin))
    assert (run.data, run.scale, run.hardware, run.seconds) == ("beauty", "laptop", store.hardware(), 61.2)
    assert f"; {run.commit}; " in origin and origin.endswith(run.day)
    assert book_pages.run_of(executed("no such line")) is None
    spaced = book_pages.run_of(executed(origin.replace("beauty", "my shop, new")))
    assert spaced.data == "my shop, new"
    assert "DATA='path/to/my shop, new' SCALE=laptop" in book_pages.how_to_run("07_next_item", spaced)
    assert book_pages.run_of(executed(origin, seconds=None)) is None


@pytest.mark.parametrize(("more", "shown"), [({}, []), ({"SEED": 1}, ["# Parameters\nSEED = 1\n"])])
def test_no_page_and_no_download_shows_a_path_of_the_machine(book_pages, tmp_path, more, shown):
    notebook = jupytext.read(ROOT / "notebooks" / "01_catalogue_and_embeddings.py")
    before = list(notebook.cells)
    notebook.metadata["papermill"] = {}
    for cell in before:
        cell.metadata.setdefault("tags", [])  # as papermill does when it reads a file
    values = {"DATA": str(tmp_path), "SCALE": "laptop", **more}
    injected = parameterize_notebook(notebook, values, kernel_name="python3", language="python")
    injected.metadata["papermill"] |= {"input_path": str(tmp_path / "01.ipynb"), "duration": 2.5}
    assert str(tmp_path) in str(injected.cells)
    notebook = book_pages.published(injected)
    assert str(tmp_path) not in str(notebook) and notebook["metadata"]["papermill"] == {"duration": 2.5}
    cells = notebook["cells"]
    assert [cell["source"] for cell in cells if "injected-parameters" in cell["metadata"].get("tags", [])] == shown
    assert [cell["source"] for cell in cells if cell["source"] not in shown] == [cell.source for cell in before]


def test_the_table_of_runs(book_pages):
    notebooks = {
        "01_a": executed("demo, laptop; 0a1b2c3d; 2 x CPU, 24 GiB, no GPU; 2026-11-22", 9),
        "02_b": executed("demo, full; 0a1b2c3d, changed; 8 x CPU, 128 GiB, H200; 2026-11-23", 112),
        "03_c": executed("nothing"),
    }
    table = book_pages.runs_table(notebooks).replace("\u00a0", " ").splitlines()
    assert table[2] == "| [](chapters/01_a) | demo | laptop | 2026-11-22 | `0a1b2c3d` | 9 s |"
    assert table[3] == "| [](chapters/02_b) | demo | full | 2026-11-23 | `0a1b2c3d, changed` | 1 min 52 s |"
    assert table[4] == "| [](chapters/03_c) | not executed | | | | |".replace("| |", "|  |").replace("| |", "|  |")
    assert table[5] == "| all | | | | | 2 min 1 s |"
    assert table[-2:] == ["- chapters 01: 2 x CPU, 24 GiB, no GPU", "- chapters 02: 8 x CPU, 128 GiB, H200"]


def test_the_table_of_versions(book_pages, monkeypatch):
    table = book_pages.versions_table()
    assert f"| numpy | {version('numpy')} |" in table and "ruff" not in table and "sphinx" not in table
    monkeypatch.setattr(book_pages, "version", lambda name: version(name if name != "modal" else "no-such-package"))
    assert "| modal | not installed |" in book_pages.versions_table()
