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
from semid_lib.evaluation.rows import LATER_DAY, in_brackets, metric_name, shown
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
    "hybrid": "hybrid ranker",
    "hybrid_untrained": "hybrid ranker, untrained",
    # sets of queries
    "own": "the data set's own queries",
    "synthetic": "synthetic queries",
}
_NAMES |= {
    f"synthetic_{item}_item_{kind}_kind": f"synthetic queries, {item} item, {kind} kind"
    for item in ("seen", "unseen")
    for kind in ("seen", "unseen")
}
_NAMES["timeline_item_knn"] = "timeline + item-kNN"
_NAMES |= {f"{name}_and_bm25": f"{_NAMES.get(name, name)} + BM25" for name in ("dense", "hybrid", "llm")}
# what may end the name of a method, and what its rows are headed by then
_VARIANTS = {"_seen_allowed": ", seen items allowed", "_refit": ", trained on validation items too", "": ""}


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
    prefix, found = part and f"{part}_", []
    for row in rows:
        name, _, method, *rest = row["key"].split("/")
        if name == topic and method.startswith(prefix):
            found.append(row | {"method": method.removeprefix(prefix), "metric": "/".join(rest) or method})
    if not found:
        raise ValueError(f"no row has a key that starts with {topic!r}")
    for what, wanted in (("metric", metrics), ("method", methods)):
        known = {row[what] for row in found}
        if unknown := set(wanted) - known:
            raise ValueError(f"no row of {topic!r} has the {what} {min(unknown)!r}, expected some of {sorted(known)}")
        found = [row for row in found if not wanted or row[what] in wanted]
    if any("must" in row for row in found):
        table = _promises_table(found)
    elif any("ci95" in row for row in found):
        found = [row for row in found if "ci95" in row]
        table = _interval_table(found, metrics)
    else:
        table = _plain_table(found, metrics)
    return f"{table}\n\n*{_origin(found, 'queries' if topic.startswith('search') else 'users')}.*\n"


def _interval_table(rows: list[dict[str, Any]], metrics: Sequence[str]) -> str:
    """Metrics down, methods across; with metrics, a line a method. Rows of a variant have lines of their own."""
    variants = [next(ending for ending in _VARIANTS if row["method"].endswith(ending)) for row in rows]
    order = list(dict.fromkeys(variants))
    pairs = list(zip(rows, variants, strict=True))
    if metrics:
        pairs.sort(key=lambda pair: (order.index(pair[1]), metrics.index(pair[0]["metric"])))
    lines: dict[str, dict[str, str]] = {}
    for row, variant in pairs:
        method, metric = row["method"].removesuffix(variant), metric_name(row["metric"])
        line, column = _NAMES.get(method, method), metric
        if not metrics:
            line, column = column, line
        spread = in_brackets(row["spread"]) if "spread" in row else ""
        lines.setdefault(line + _VARIANTS[variant], {})[column] = shown(row["value"], *row["ci95"]) + spread
    return _markdown(lines, [metric_name(metric) for metric in metrics])


def _plain_table(rows: list[dict[str, Any]], metrics: Sequence[str]) -> str:
    """Rows without intervals, such as those of a bench: methods down, metrics across."""
    lines: dict[str, dict[str, str]] = {}
    for row in rows:
        line = lines.setdefault(_NAMES.get(row["method"], row["method"]), {})
        line[row["metric"].replace("_", " ")] = _number(row["value"])
    return _markdown(lines, [metric.replace("_", " ") for metric in metrics])


def _promises_table(rows: list[dict[str, Any]]) -> str:
    """Rows with keys topic/data/figure that say what they had to reach: figures down."""
    headings = ["measured", "asked for", "wished for"][: 3 if any(row["wish"] for row in rows) else 2]
    cells = [(_number(row["value"]), row["must"] or "", row["wish"] or "") for row in rows]
    names = [row["metric"].replace("_", " ") for row in rows]
    return _markdown({name: dict(zip(headings, line, strict=False)) for name, line in zip(names, cells, strict=True)})


def _markdown(lines: dict[str, dict[str, str]], headings: Sequence[str] = ()) -> str:
    """Lines by name, with their cells by heading; the headings are all there are, unless named."""
    headings = headings or list(dict.fromkeys(heading for line in lines.values() for heading in line))
    rows = ["| | " + " | ".join(headings) + " |", "| --- |" + " ---: |" * len(headings)]
    for name, line in lines.items():
        rows.append(f"| {name} | " + " | ".join(line.get(heading, "") for heading in headings) + " |")
    return "\n".join(rows)


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


def _origin(rows: list[dict[str, Any]], units: str) -> str:
    """Where the numbers of a table come from. Raises ValueError for rows of several runs."""
    origin = {(r["data"], r["scale"], r["commit"][:10], r["dirty"], r["hardware"], r["fingerprint"]) for r in rows}
    if len(origin) != 1:
        raise ValueError(f"the rows of one table come from {len(origin)} runs: {sorted(origin)}")
    [(data, scale, commit, dirty, hardware, _)] = origin
    run = f"commit `{commit}`{' with uncommitted changes' if dirty else ''}, {hardware}"
    if "ci95" not in rows[0]:
        return run
    n = max(row.get("n", 0) for row in rows)
    n_later = max((row.get("n", 0) for row in rows if row["metric"].startswith(LATER_DAY)), default=n)
    later = f" ({n_later:,} of them with a target on a later day)" if n_later < n else ""
    n_seeds = sorted({len(row["seeds"]) for row in rows if "seeds" in row})
    seeds = "".join(f" (in brackets the standard deviation over {n} seeds)" for n in n_seeds)
    interval = f"± half of the 95% bootstrap interval over {units}{seeds}"
    return f"{n:,} {units} of {data}{later}, `SCALE={scale}`, {interval}; {run}"


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
            wrong = {name: value for name, value in figures.items() if name not in _PUBLISHED or not 0 <= value <= 1}
            if wrong:
                raise ValueError(f"{self.name} on {data} has {wrong}, expected shares in [0, 1] of {_PUBLISHED}")


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
    headings = ["data", "verdict", *(metric_name(metric) for metric in metrics)]
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

    The table of reproductions is always written. Raises ValueError for the mark of a figure that has no end, or stands
    at the beginning of a line.
    """

    def table(place: re.Match) -> str:
        start, topic, data, scale, words, end = place.groups()
        metrics, _, methods = words.partition(" of ")
        rows = rows_of(data, scale)
        if rows is None:
            return place.group()
        return f"{start}{markdown_table(rows, topic, metrics.split(), methods.split())}{end}"

    def published(*run: str) -> list[dict[str, Any]]:
        try:
            return rows_of(*run) or []
        except FileNotFoundError:
            return []

    def reproduced(place: re.Match) -> str:
        start, end = place.groups()
        return f"{start}{reproductions_table(*load_systems(), published)}{end}"

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

    def rows_of(*run: str) -> list[dict[str, Any]] | None:
        if run == (name, scale):
            return rows
        return published_rows(*run) if (_RESULTS / f"{'-'.join(run)}.json").is_file() else None

    written = {page: render(page.read_text(encoding="utf-8"), rows_of) for page in _PAGES}
    store.write_json(_RESULTS / f"{name}-{scale}.json", rows)
    for page, text in written.items():
        if text != page.read_text(encoding="utf-8"):
            page.write_text(text, encoding="utf-8")


def stale_pages() -> list[str]:
    """Pages with a table or a figure that differs from the published rows; none if all is well."""
    texts = {page: page.read_text(encoding="utf-8") for page in _PAGES}
    return [page.name for page, text in texts.items() if render(text, published_rows) != text]
