"""What the files of the project say about each other, and which module may import which."""

import ast
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from pybtex.database import parse_file

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
CHAPTERS = sorted((ROOT / "notebooks").glob("[0-9]*.py"))
LIBRARY = sorted(path for path in (ROOT / "semid_lib").rglob("*.py") if path.stem != "__init__")

# A room may import those before it (DESIGN.md, section 2).
ROOMS = ["workbench", "data", "chapters", "ids", "queries", "decoding", "evaluation", "next_item", "search", "llm"]
ROOMS += ["serving", "studies", "cli"]
BOOK_API = sorted((ROOT / "book" / "api").glob("*.md"))
ON_THEIR_OWN = ("ids/quantize", "ids/codebooks", "decoding/trie", "evaluation/metrics")


def pins() -> dict[str, Requirement]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    wanted = [Requirement(line) for line in lines if line.strip() and not line.startswith("#")]
    assert len({canonicalize_name(each.name) for each in wanted}) == len(wanted), "a package is pinned twice"
    return {canonicalize_name(each.name): each for each in wanted}


def direct_dependencies() -> set[str]:
    wanted = [Requirement(line) for lines in (PROJECT["dependencies"], *EXTRAS.values()) for line in lines]
    return {canonicalize_name(each.name) for each in wanted} - {PROJECT["name"]}


def imported(tree: ast.AST) -> set[str]:
    """Names of the modules of ours that a file imports anywhere, inside functions too."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = "semid_lib." * bool(node.level) + (node.module or "")
            found |= {f"{base}.{alias.name}".replace("..", ".") for alias in node.names} | {base}
    return {name.split(".")[1] for name in found if name.startswith("semid_lib.") and name.split(".")[1]}


# --- installation ---


def test_every_direct_dependency_is_pinned():
    assert direct_dependencies() <= pins().keys()


def test_pins_are_exact_public_versions():
    for name, requirement in pins().items():
        assert requirement.url is None, name
        assert re.fullmatch(r"==[0-9][\w.]*", str(requirement.specifier)), requirement
        assert not requirement.extras, requirement
    text = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    assert not re.search(r"://|^\s*-|@", text, re.MULTILINE), "a URL, an option or a host"


def test_pins_fit_what_pyproject_asks():
    pinned = pins()
    for line in [*PROJECT["dependencies"], *(line for lines in EXTRAS.values() for line in lines)]:
        asked = Requirement(line)
        if asked.name != PROJECT["name"]:
            [pin] = pinned[canonicalize_name(asked.name)].specifier
            assert asked.specifier.contains(pin.version), f"{asked} against {pin}"


def test_the_extra_all_names_all_the_others():
    [line] = EXTRAS["all"]
    requirement = Requirement(line)
    assert (requirement.name, requirement.extras) == (PROJECT["name"], EXTRAS.keys() - {"all"})


def test_conda_installs_the_same():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    from_conda = [line for line in environment["dependencies"] if isinstance(line, str)]
    [from_pip] = [line["pip"] for line in environment["dependencies"] if isinstance(line, dict)]
    assert sorted(re.split("[=<>]", line)[0] for line in from_conda) == ["pip", "python"]
    [python] = [line.partition("=")[2].strip("=") for line in from_conda if line.startswith("python")]
    assert SpecifierSet(PROJECT["requires-python"]).contains(python)
    words = [word for line in from_pip for word in re.split(r"[\s=]+", line)]
    short = {"-c": "--constraint", "-e": "--editable"}
    assert sorted(short.get(word, word) for word in words) == [
        "--constraint", "--editable", ".[all]", "constraints.txt",
    ]  # fmt: skip


# --- chapters ---


@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda path: path.stem)
def test_a_chapter_has_parameters_and_no_header(chapter):
    cells = re.split(r"^# %%", chapter.read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert cells[0].strip() == "", "something stands before the first cell, such as a YAML header"
    [parameters] = [cell for cell in cells if re.match(r'.*tags=\[[^\]\n]*"parameters"', cell)]
    values = {}
    for node in ast.parse(parameters.partition("\n")[2]).body:
        assert isinstance(node, ast.Assign), "the parameters are plain assignments"
        values[node.targets[0].id] = ast.literal_eval(node.value)
    assert all(name.isupper() for name in values)
    assert (values["DATA"], values["SCALE"]) == ("demo", "laptop")  # what is published


def test_every_chapter_stands_in_the_book_in_order():
    toc = yaml.safe_load((ROOT / "book" / "_toc.yml").read_text(encoding="utf-8"))
    listed = [entry["file"] for part in toc["parts"] for entry in part["chapters"]]
    chapters = [Path(file).name for file in listed if file.startswith("chapters/")]
    assert chapters == [chapter.stem for chapter in CHAPTERS]
    for page in [toc["root"], *(file for file in listed if not file.startswith("chapters/"))]:
        assert (ROOT / "book" / f"{page}.md").is_file(), page


def test_the_tree_names_each_room():
    page = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    tree = page[page.index("## The tree") : page.index("## Every change")]
    assert re.findall(r"^  (\w+)/ ", tree, re.MULTILINE) == ROOMS


def test_the_book_has_a_reference_of_each_room():
    pages = {path.read_text(encoding="utf-8").split("<!-- room: ")[1].split(" -->")[0] for path in BOOK_API}
    rooms = {path.parent.relative_to(ROOT / "semid_lib").as_posix() for path in LIBRARY}
    assert pages == rooms - {".", "cli"}  # `semid --help` is that of the command


@pytest.mark.parametrize("room", [*ROOMS, "serving/http", "serving/catalogue", "studies/growth", "studies/service"])
def test_a_room_stays_small(room):
    files = [path for path in LIBRARY if path.parent == ROOT / "semid_lib" / room]
    assert 0 < len(files) <= 8
    assert {path.name: n for path in files if (n := len(path.read_text(encoding="utf-8").splitlines())) > 400} == {}


# --- words ---

# terms that are everyday words too: a chapter links them where it means them, which no rule can tell
EVERYDAY = {"code", "level", "scale", "interval", "popularity", "seen items"}
# what is no prose: fenced text, headings, tables, equations, links, code; links to the glossary are kept
NO_PROSE = re.compile(
    r"(\[[^\]]*\]\(\.\./book/notation\.md[^)]*\))|```.*?```|^[#|].*?$|\$\$.*?\$\$|\$[^$]*\$|\[[^\]]*\]\([^)]*\)"
    r"|`[^`]*`",
    re.DOTALL | re.MULTILINE,
)


def glossary() -> list[str]:
    page = (ROOT / "book" / "notation.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```\{glossary\}\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    return [line for block in blocks for line in block.splitlines() if re.match(r"\w", line)]


def prose(source: str) -> str:
    """What a chapter says in its markdown cells."""
    cells = re.findall(r"^# %% \[markdown\]\n((?:#.*\n)+?)(?=# %%|\n|\Z)", source, re.MULTILINE)
    text = "\n\n".join(re.sub(r"^# ?", "", cell, flags=re.MULTILINE) for cell in cells)
    return NO_PROSE.sub(lambda found: found[1] or " ", text)


def uses(text: str, terms: list[str]) -> list[tuple[str, bool]]:
    """Terms in their order in a text, in singular or plural, the longest that fits; and whether it is a link."""
    terms = sorted(terms, key=len, reverse=True)
    forms = [re.escape(term).replace(r"\ ", r"\s+") for term in terms]
    forms = [re.sub("y$", "(?:y|ies)", form) if form.endswith("y") else f"{form}(?:e?s)?" for form in forms]
    forms = [re.sub(r"@K.*", r"@(?:K|\\d+)?", form) for form in forms]
    words = "|".join(f"(?P<term{place}>{form})" for place, form in enumerate(forms))
    link = r'\[(?P<words>[^\]]*)\]\(\.\./book/notation\.md(?:\s"(?P<link>[^"]*)")?\)'
    found = re.finditer(rf"{link}|(?<![\w-])(?:{words})(?![\w-])", text, re.IGNORECASE)
    return [
        (terms[int(one.lastgroup[4:])], False)
        if one["words"] is None
        else (" ".join((one["link"] or one["words"]).split()), True)
        for one in found
    ]


def test_uses_of_words_by_hand():
    source = "# %% [markdown]\n# # A beam\n#\n# Two beams, `beam` by\n"
    source += '# [beam\n# widths](../book/notation.md "beam width").\n'
    source += "# | beam |\n# Histories, $beam$ [beam](beam), beam-like, Recall@10.\n\n# %%\nbeam = 1  # beam\n"
    found = uses(prose(source), ["beam", "beam width", "history", "Recall@K"])
    assert found == [("beam", False), ("beam width", True), ("history", False), ("Recall@K", False)]
    assert len(glossary()) == len(set(glossary())) > 50


@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda path: path.stem)
def test_a_chapter_links_each_word_of_the_glossary_where_it_first_uses_it(chapter):
    terms, first, twice = glossary(), {}, []
    for term, is_link in uses(prose(chapter.read_text(encoding="utf-8")), terms):
        if is_link and first.get(term):
            twice.append(term)
        if is_link or term not in EVERYDAY:
            first.setdefault(term, is_link)
    assert first.keys() <= set(terms), "a link to what the glossary does not have"
    assert [term for term, is_link in first.items() if not is_link] == [], 'write [words](../book/notation.md "term")'
    assert twice == [], "one link a chapter is enough"


@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda path: path.stem)
def test_the_links_of_a_chapter_lead_somewhere_in_jupyterlab_too(chapter):
    text = chapter.read_text(encoding="utf-8")
    assert not re.findall(r"\{(?:term|cite)\}`", text), "JupyterLab knows no such role: see for_sphinx in book/pages.py"
    for target in re.findall(r"\]\(([^\s):]+)", text):
        file = (chapter.parent / target).with_suffix(".py" if target.endswith(".ipynb") else Path(target).suffix)
        assert file.is_file() or target.startswith(("eq-", "https")), (
            f"{target}: no file beside the chapter or of the book"
        )


def test_citations_name_the_authors_and_the_year_of_the_bibliography():
    entries = parse_file(ROOT / "book" / "references.bib").entries
    found = [
        cite
        for chapter in CHAPTERS
        for cite in re.findall(
            r'\[\(([^\]]*)\)\]\(\.\./book/references\.bib "(\w+)"\)',
            re.sub(r"\n# *", " ", chapter.read_text(encoding="utf-8")),
        )
    ]
    assert len(found) > 20
    for words, key in found:
        names = [" ".join(one.prelast_names + one.last_names).strip("{}") for one in entries[key].persons["author"]]
        names = " and ".join(names) if len(names) < 3 else f"{names[0]} et al."
        assert words == f"{names}, {entries[key].fields['year']}"


def test_make_help_lists_the_commands():
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    make = subprocess.run(["make", "-C", ROOT, "help"], capture_output=True, text=True, check=True, env=clean)
    listed = set(re.findall(r"^  ([a-z]+) +\S", make.stdout, flags=re.MULTILINE))
    assert listed >= {"setup", "lint", "test", "run", "sweep", "pipeline", "ui", "book", "lab", "bench", "clean"}


# --- modules ---


@pytest.mark.parametrize("path", LIBRARY, ids=lambda path: path.stem)
def test_a_module_imports_only_from_rooms_before_its_own(path):
    room, *_ = path.relative_to(ROOT / "semid_lib").parts
    wrong = imported(ast.parse(path.read_text(encoding="utf-8"))) - set(ROOMS[: ROOMS.index(room) + 1])
    assert not wrong, f"{path.stem} imports {sorted(wrong)}"


@pytest.mark.parametrize("name", ON_THEIR_OWN)
def test_what_others_may_lift_out_needs_nothing_of_ours(name):
    needed = imported(ast.parse((ROOT / "semid_lib" / f"{name}.py").read_text(encoding="utf-8")))
    assert needed <= ({"decoding"} if name == "decoding/trie" else set())  # the trie comes with its subsets


def test_the_reader_of_imports_reads_them_all():
    source = "import semid_lib.a\nfrom semid_lib import b\nfrom . import c\nfrom .d import x\ndef f():\n"
    source += "    from semid_lib.e import y\n    import numpy, semid_lib.f as g\nfrom numpy import z"
    assert imported(ast.parse(source)) >= set("abcdef")
    assert "z" not in imported(ast.parse(source))


# what each module may not load, in an order in which nothing is loaded that a later one may not load
LOADS = {
    "without torch": {
        "__init__": "numpy pandas torch sklearn",
        "workbench.scale": "numpy pandas torch",
        "studies.service.service_start": "numpy pandas torch fastapi",
        "evaluation.metrics": "pandas torch sklearn scipy",
        "ids.codebooks": "pandas torch sklearn scipy",
        "studies.growth.laws": "pandas torch sklearn scipy",
        "studies.service.endpoint_costs": "pandas torch sklearn scipy",
        "workbench.store": "pandas torch sklearn pyarrow",
        "data.dataset": "torch sklearn",
        "next_item.baselines": "torch sklearn",
        "ids.embed": "torch sentence_transformers transformers",
        "search.retrieval": "torch sklearn bm25s sentence_transformers",
        "queries.synthesis": "torch sklearn transformers openai outlines",
        "chapters.runner": "torch mlflow papermill",
    },
    "with torch": {
        "decoding.trie": "pandas sklearn transformers",
        "decoding.beam_search": "pandas sklearn transformers numba",
        "decoding.scorers": "pandas sklearn transformers",
        "decoding.adapters": "pandas sklearn transformers vllm",
        "next_item.tiger": "sklearn transformers",
        "llm.fine_tuning": "sklearn transformers datasets peft trl",
        "serving.predict": "sklearn transformers sentence_transformers fastapi numba",
        "serving.http.web": "sklearn scipy accelerate transformers sentence_transformers numba",
    },
}
LOOK = """
import importlib, sys
for module, unwanted in {}.items():
    importlib.import_module("semid_lib." + module)
    print(*[f"{{module}} loads {{name}}" for name in unwanted.split() if name in sys.modules])
"""


@pytest.mark.slow
@pytest.mark.parametrize("modules", LOADS.values(), ids=LOADS)
def test_importing_a_module_loads_only_what_it_needs(modules):
    command = [sys.executable, "-c", LOOK.format(modules)]
    run = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    assert run.stdout.split() == []
