"""Tables and numbers of the README and the book, written from published rows, so that none is typed by hand.

- `<!-- rows: next_item/beauty/laptop -->` ... `<!-- end rows -->`: a table of a topic from the rows in
  `book/results/beauty-laptop.json`, metrics down. `search:own` takes methods that begin with `own_`. Metrics behind the
  place are shown across, with a line a method; methods behind `of` are the only lines.
- `<!-- row: training/beauty/laptop/tiger/seconds as minutes -->` ... `<!-- end row -->`: one number, by the rest of its
  key. A mark begins no line, since Markdown would take the line for HTML.
- `<!-- reproductions -->` ... `<!-- end reproductions -->`: published figures of others from `book/reproductions.yml`
  beside ours. The verdict is **reproduced** inside our 95% interval over users, **close** outside it by no more than a
  few standard deviations over our seeds, **differs** otherwise, which takes a sentence why. It says whether two numbers
  can be told apart, not whether the protocols are the same.

`semid results publish` copies the rows of a run to `book/results`; `semid results check` fails if a page differs.
"""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from semid_lib.data.folder import open_store
from semid_lib.evaluation.evaluate import in_brackets, shown
from semid_lib.workbench import remote, store

_REPOSITORY = Path(__file__).resolve().parents[2]
_RESULTS = _REPOSITORY / "book" / "results"
_BOOK_PAGES = sorted((_REPOSITORY / "book").glob("*.md"))
_PAGES = (_REPOSITORY / "README.md", *(page for page in _BOOK_PAGES if page.stem != "log"))  # which stays as written
_PLACE = re.compile(
    r"(<!-- rows: (\w+(?::\w+)?)/([\w.-]+)/(\w+)((?: [\w@,]+)*) -->\n)(?:(?!<!-- rows:).)*?(<!-- end rows -->)",
    re.DOTALL,
)
_REPRODUCTIONS = re.compile(r"(<!-- reproductions -->\n).*?(<!-- end reproductions -->)", re.DOTALL)
_FIGURE = re.compile(r"(<!-- row: (\w+/[\w.-]+)/(\w+)/([^<>]+?)(?: as (\w+))? -->)[^<>\n]*(<!-- end row -->)")
FILE = _REPOSITORY / "book" / "reproductions.yml"
VERDICTS = ("not measured yet", "reproduced", "close", "differs")  # a system has the last of those of its figures
_PUBLISHED = ("recall@5", "ndcg@5", "recall@10", "ndcg@10", "recall@100", "recall@1000")
_FORMS = {
    "minutes": lambda row: f"{row['value'] / 60:.0f}",  # of seconds
    "percent": lambda row: f"{row['value']:.0%}",
    "n": lambda row: f"{row['n']:,}",  # of how many users or queries the row is a mean
}
_NAMES = {
    "item_knn": "item-kNN",
    "sasrec": "SASRec",
    "tiger": "TIGER",
    "timeline": "timeline model",
    "bm25": "BM25",
    "llm": "LLM",
}
_NAMES["timeline_item_knn"] = "timeline + item-kNN"
_NAMES |= {f"{name}_and_bm25": f"{_NAMES.get(name, name)} + BM25" for name in ("dense", "light", "llm")}
_UNITS = {"search": "queries"}  # of what the intervals are; users for any other topic
# what may end the name of a method, and how its rows are headed
_VARIANTS = {"_seen_allowed": "seen items allowed", "_refit": "trained on validation items too"}


def markdown_table(
    rows: list[dict[str, Any]], topic: str, metrics: Sequence[str] = (), methods: Sequence[str] = ()
) -> str:
    """The rows of a topic with keys topic/data/method/metric as a Markdown table, metrics down, methods across.

    metrics: those to show, in this order, and then across, with a line a method. methods: those to show, as the rows
    have them; their order stays that of the rows. Raises ValueError for one that no row has.

    >>> row = {"key": "next_item/shop/popularity/mrr", "value": 0.5, "ci95": [0.4, 0.6], "n": 9, "seconds": 1.0}
    >>> origin = {"data": "shop", "scale": "smoke", "commit": "abc", "dirty": False, "hardware": "", "fingerprint": ""}
    >>> print(markdown_table([row | origin], "next_item").splitlines()[2].replace("\\xa0", " "))
    | MRR | .5000 ± .1000 |
    """
    topic, _, part = topic.partition(":")
    rows = [row for row in rows if row["key"].startswith(f"{topic}/")]
    if part:
        rows = [
            row | {"key": f"{topic}/{data}/{rest[0].removeprefix(f'{part}_')}/{'/'.join(rest[1:])}"}
            for row in rows
            for _, data, *rest in [row["key"].split("/")]
            if rest[0].startswith(f"{part}_")
        ]
    if not rows:
        raise ValueError(f"no row has a key that starts with {topic!r}")
    rows = _only(rows, "metric", -1, metrics)
    rows = _only(rows, "method", 2, methods)
    if any("must" in row for row in rows):
        return _promises_table(rows)
    if not any("ci95" in row for row in rows):
        return _plain_table(rows, metrics)
    rows = [row for row in rows if "ci95" in row]
    cells: dict[tuple[str, str], dict[str, str]] = {}  # by metric and variant, then by method
    for row in rows:
        _, _, method, metric = row["key"].split("/")
        variant = next((ending for ending in _VARIANTS if method.endswith(ending)), "")
        cells.setdefault((metric, variant), {})[method.removesuffix(variant)] = _cell(row)
    lines = _methods_down(cells, metrics) if metrics else _methods_across(cells)
    return "\n".join(lines) + "\n\n" + _origin(rows, _UNITS.get(topic, "users")) + "\n"


def _only(rows: list[dict[str, Any]], what: str, part: int, wanted: Sequence[str]) -> list[dict[str, Any]]:
    """The rows that have one of the wanted words as that part of their key; all if none is wanted."""
    known = {row["key"].split("/")[part] for row in rows}
    if unknown := set(wanted) - known:
        topic = rows[0]["key"].split("/")[0]
        raise ValueError(f"no row of {topic!r} has the {what} {min(unknown)!r}, expected some of {sorted(known)}")
    return [row for row in rows if not wanted or row["key"].split("/")[part] in wanted]


def _methods_across(cells: dict[tuple[str, str], dict[str, str]]) -> list[str]:
    methods = list(dict.fromkeys(method for line in cells.values() for method in line))
    table = {_heading(*key): [line.get(method, "") for method in methods] for key, line in cells.items()}
    return _lines([_NAMES.get(method, method) for method in methods], table)


def _methods_down(cells: dict[tuple[str, str], dict[str, str]], metrics: Sequence[str]) -> list[str]:
    table = {}
    for variant in dict.fromkeys(variant for _, variant in cells):
        lines = [cells.get((metric, variant), {}) for metric in metrics]
        for method in dict.fromkeys(method for line in lines for method in line):
            name = _NAMES.get(method, method) + (f", {_VARIANTS[variant]}" if variant else "")
            table[name] = [line.get(method, "") for line in lines]
    return _lines([_heading(metric, "") for metric in metrics], table)


def _lines(headings: Sequence[str], table: dict[str, list[str]]) -> list[str]:
    return [
        "| | " + " | ".join(headings) + " |",
        "| --- |" + " ---: |" * len(headings),
        *(f"| {name} | " + " | ".join(line) + " |" for name, line in table.items()),
    ]


def _cell(row: dict[str, Any]) -> str:
    return shown(row["value"], *row["ci95"]) + (in_brackets(row["spread"]) if "spread" in row else "")


def _plain_table(rows: list[dict[str, Any]], metrics: Sequence[str]) -> str:
    """Rows without intervals, such as those of a bench: methods down, metrics across."""
    cells: dict[str, dict[str, str]] = {}
    for row in rows:
        _, _, method, metric = row["key"].split("/")
        cells.setdefault(method, {})[metric] = _number(row["value"])
    metrics = metrics or list(dict.fromkeys(metric for line in cells.values() for metric in line))
    table = {_NAMES.get(method, method): [line.get(metric, "") for metric in metrics] for method, line in cells.items()}
    lines = _lines([metric.replace("_", " ") for metric in metrics], table)
    return "\n".join(lines) + f"\n\n*{_run(rows)}.*\n"


def _promises_table(rows: list[dict[str, Any]]) -> str:
    """Rows with keys topic/data/figure that say what they had to reach: figures down."""
    headings = ["measured", "asked for", "wished for"][: 3 if any(row["wish"] for row in rows) else 2]
    table = {
        row["key"].split("/")[2].replace("_", " "): [_number(row["value"]), row["must"] or "", row["wish"] or ""]
        for row in rows
    }
    lines = _lines(headings, {name: line[: len(headings)] for name, line in table.items()})
    return "\n".join(lines) + f"\n\n*{_run(rows)}.*\n"


def _number(value: float) -> str:
    """Whole and large numbers with commas, others to three digits that count.

    >>> [_number(value) for value in (1_000_000, 4137.12, 0.12345, 25.678, 1.5, 0, -0.5)]
    ['1,000,000', '4,137', '.123', '25.7', '1.5', '0', '−.5']
    """
    is_whole = abs(value) >= 1000 or float(value).is_integer()
    digits = f"{abs(value):,.0f}" if is_whole else f"{abs(value):.3g}".removeprefix("0")
    return "−" + digits if value < 0 else digits


def figure(rows: list[dict[str, Any]], key: str, form: str | None = None) -> str:
    """The row with this key as a sentence says it: `_FORMS`, or else its value.

    Raises ValueError if there is no such row, or no such form.

    >>> row = {"key": "training/shop/tiger/seconds", "value": 4174.2}
    >>> figure([row], "training/shop/tiger/seconds"), figure([row], "training/shop/tiger/seconds", "minutes")
    ('4,174', '70')
    """
    row = next((row for row in rows if row["key"] == key), None)
    if row is None:
        raise ValueError(f"no row has the key {key!r}")
    if form is not None and form not in _FORMS:
        raise ValueError(f"{key} is to be shown as {form!r}, expected one of {', '.join(_FORMS)}")
    if form:
        return _FORMS[form](row)
    return shown(row["value"], *row["ci95"]).split("\N{NO-BREAK SPACE}")[0] if "ci95" in row else _number(row["value"])


def _heading(metric: str, variant: str) -> str:
    name, _, k = metric.partition("@")
    labels = {"recall": "Recall", "ndcg": "NDCG", "mrr": "MRR", "validity_rate": "validity rate"}
    label = labels.get(name, name) + (f"@{k}" if k else "")
    return label + (f", {_VARIANTS[variant]}" if variant else "")


def _origin(rows: list[dict[str, Any]], units: str) -> str:
    """Where the numbers come from, as one small line; rows of one table come from one run."""
    n = max(row.get("n", 0) for row in rows)
    data, scale = rows[0]["data"], rows[0]["scale"]
    n_seeds = {len(row["seeds"]) for row in rows if "seeds" in row}
    seeds = "".join(f" (in brackets the standard deviation over {n} seeds)" for n in sorted(n_seeds))
    bootstrap = f"± half of the 95% bootstrap interval over {units}{seeds}"
    return f"*{n:,} {units} of {data}, `SCALE={scale}`, {bootstrap}; {_run(rows)}.*"


def _run(rows: list[dict[str, Any]]) -> str:
    """Commit and machine, which all rows of one table share. Raises ValueError if they do not."""
    origin = {(r["data"], r["scale"], r["commit"][:10], r["dirty"], r["hardware"], r["fingerprint"]) for r in rows}
    if len(origin) != 1:
        raise ValueError(f"the rows of one table come from {len(origin)} runs: {sorted(origin)}")
    [(_, _, commit, dirty, hardware, _)] = origin
    return f"commit `{commit}`{' with uncommitted changes' if dirty else ''}, {hardware}"


@dataclass(frozen=True)
class System:
    """One published system, a record of `book/reproductions.yml`. Raises ValueError for a figure that cannot be."""

    name: str
    source: str  # where the figures stand, as Markdown
    protocol: str  # what a reader must know before comparing
    figures: dict[str, dict[str, float]]  # data set -> metric -> value
    ours: str | None = None  # the method in our keys; None for a system that we have not built
    scale: str = "laptop"  # the run of ours that is published
    why: dict[str, str] = field(default_factory=dict)  # data set -> a sentence, needed where the verdict is "differs"

    def __post_init__(self):
        for data, figures in self.figures.items():
            for metric, value in figures.items():
                if metric not in _PUBLISHED:
                    raise ValueError(f"{self.name} on {data} has {metric!r}, expected one of {', '.join(_PUBLISHED)}")
                if not 0 <= value <= 1:
                    raise ValueError(f"{metric} of {self.name} on {data} is {value}, expected a share in [0, 1]")


def load_systems(file: str | Path = FILE) -> tuple[list[System], float]:
    """The published systems, and how many standard deviations over seeds count as close. Needs PyYAML (extra `dev`).

    Raises ValueError for what is no such file.
    """
    import yaml

    content = yaml.safe_load(Path(file).read_text(encoding="utf-8"))
    try:
        return [System(**record) for record in content["systems"]], float(content["close_within"])
    except (TypeError, KeyError) as error:
        raise ValueError(f"{file} is not a list of systems and `close_within`: {error}") from error


def verdict(published: float, row: dict[str, Any] | None, close_within: float) -> str:
    """One of `VERDICTS` for one published figure and our row of it, or None.

    row: needs `ci95`; with several seeds it has `spread`, their standard deviation (`rows.over_seeds`). Without it
    nothing is known about seeds and no figure is close.

    >>> row = {"value": 0.062, "ci95": [0.059, 0.065], "spread": 0.001}
    >>> [verdict(published, row, close_within=2.8) for published in (0.0648, 0.0677, 0.0679)]
    ['reproduced', 'close', 'differs']
    >>> verdict(0.0677, {"value": 0.062, "ci95": [0.059, 0.065]}, close_within=2.8)
    'differs'
    """
    if row is None:
        return "not measured yet"
    low, high = row["ci95"]
    outside = max(low - published, published - high)
    if outside <= 0:
        return "reproduced"
    return "close" if outside <= close_within * row.get("spread", 0.0) else "differs"


def reproductions_table(
    systems: list[System], close_within: float, rows_of: Callable[[str, str], list[dict[str, Any]]]
) -> str:
    """A line a system and data set, "theirs / ours" in each cell, then the protocol of each system.

    `rows_of(data, scale)` gives the published rows of a run. Raises ValueError for a system that differs without a
    sentence why.
    """
    metrics = [name for name in _PUBLISHED if any(name in found for each in systems for found in each.figures.values())]
    headings = ["data", "verdict", *(_heading(metric, "") for metric in metrics)]
    lines = ["| | " + " | ".join(headings) + " |", "| --- | --- | --- |" + " ---: |" * len(metrics)]
    for system in systems:
        for data in system.figures:
            found = {row["key"]: row for row in rows_of(data, system.scale)}
            lines.append("| " + " | ".join(_compared(system, data, metrics, close_within, found)) + " |")
    notes = [f"- **{system.name}** ({system.source}): {system.protocol}" for system in systems]
    return "\n".join([*lines, "", *notes]) + "\n"


def _compared(system: System, data: str, metrics: list[str], close_within: float, found: dict) -> list[str]:
    figures, cells = system.figures[data], []
    ours = {metric: found.get(f"next_item/{data}/{system.ours}/{metric}") for metric in figures}
    for metric in metrics:
        theirs = f"{figures[metric]:.4f}".removeprefix("0") if metric in figures else ""
        row = ours.get(metric)
        cells.append(f"{theirs} / {shown(row['value'], *row['ci95'])}" if row else theirs)
    verdicts = [verdict(value, ours[metric], close_within) for metric, value in figures.items()]
    worst = max(verdicts, key=VERDICTS.index) if system.ours else "not built here"
    if worst == "differs" and not system.why.get(data):
        raise ValueError(f"{system.name} on {data} differs from our rows: say why in reproductions.yml")
    return [system.name, data, f"**{worst}**: {system.why[data]}" if worst == "differs" else worst, *cells]


def render(page: str, rows_of) -> str:
    """A page with its tables and figures written anew; rows_of(data, scale) gives the rows, or None to leave them.

    The table of reproductions is always written from what is published of all runs. Raises ValueError for the mark of
    a figure that has no end, or stands at the beginning of a line.
    """

    def table(place: re.Match) -> str:
        start, topic, data, scale, words, end = place.groups()
        metrics, _, methods = words.partition(" of ")
        rows = rows_of(data, scale)
        if rows is None:
            return place.group()
        return f"{start}{markdown_table(rows, topic, metrics.split(), methods.split())}{end}"

    def reproduced(place: re.Match) -> str:
        start, end = place.groups()
        return f"{start}{reproductions_table(*load_systems(), _published_rows_or_none)}{end}"

    def figures(place: re.Match) -> str:
        start, topic_and_data, scale, rest, form, end = place.groups()
        rows = rows_of(topic_and_data.split("/")[1], scale)
        return place.group() if rows is None else f"{start}{figure(rows, f'{topic_and_data}/{rest}', form)}{end}"

    if broken := re.search(r"<!-- (end )?row\b.*", _FIGURE.sub("", page)):
        raise ValueError(f"the mark of a figure has no other end, or no key: {broken.group()[:100]}")
    if first := re.search(r"^<!-- (end )?row\b.*", page, re.MULTILINE):
        raise ValueError(f"the mark of a figure begins a line: {first.group()[:100]}")
    return _FIGURE.sub(figures, _REPRODUCTIONS.sub(reproduced, _PLACE.sub(table, page)))


def published_rows(data: str, scale: str) -> list[dict[str, Any]]:
    """The rows in `book/results/<data>-<scale>.json`. Raises FileNotFoundError if that run was never published."""
    return json.loads((_RESULTS / f"{data}-{scale}.json").read_text(encoding="utf-8"))


def _published_rows_or_none(data: str, scale: str) -> list[dict[str, Any]]:
    return published_rows(data, scale) if (_RESULTS / f"{data}-{scale}.json").is_file() else []


def publish(data: str, scale: str) -> None:
    """Copy a run's rows into `book/results` and write what shows them anew.

    Parameters
    ----------
    data : str
        "demo", the folder of a data set, or, for rows that belong to no data set, their name, such as "random".
    scale : str

    Raises
    ------
    ValueError
        If there are no rows, or the last run of a chapter failed or did not end.
    """
    is_folder = data == "demo" or remote.is_remote(data) or Path(data).is_dir()
    shelf = open_store(data, scale) if is_folder else store.Store(data, scale, fingerprint="")
    rows = shelf.rows()
    if not rows:
        raise ValueError(f"no rows for {data} at {scale} in {shelf.folder}: run the chapters first")
    executed = shelf.path("executed")
    if broken := sorted([*executed.glob("*.failed.ipynb"), *executed.glob("*.running.ipynb")]):
        raise ValueError(
            f"{broken[0]} is of a run that did not succeed: run its chapter again before its rows are published"
        )
    name = rows[0]["data"]
    file = _RESULTS / f"{name}-{scale}.json"
    before = file.read_bytes() if file.is_file() else None
    store.write_json(file, rows)  # the table of reproductions reads it
    texts = {page: page.read_text(encoding="utf-8") for page in _PAGES}
    try:
        written = {
            page: render(text, lambda *run: rows if run == (name, scale) else None) for page, text in texts.items()
        }
    except ValueError:
        file.unlink() if before is None else file.write_bytes(before)
        raise
    for page, text in written.items():
        if text != texts[page]:
            page.write_text(text, encoding="utf-8")


def stale_pages() -> list[str]:
    """Pages with a table or a figure that differs from the published rows; none if all is well."""
    texts = {page: page.read_text(encoding="utf-8") for page in _PAGES}
    return [page.name for page, text in texts.items() if render(text, published_rows) != text]
