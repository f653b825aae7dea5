"""Tables and numbers of the README and the book, written from published rows, so that none is typed by hand.

- `<!-- rows: next_item/beauty/laptop -->` ... `<!-- end rows -->`: a table of a topic from the rows in
  `book/results/beauty-laptop.json`, metrics down. `search:own` takes methods that begin with `own_`. Metrics behind the
  place are shown across, with a line a method; methods behind `of` are the only lines. `ahead_of/beauty/laptop`: all
  paired differences, a line a pair. A table of differences shows all metrics of its rows, so a mark cannot name some.
- `<!-- row: training/beauty/laptop/tiger/seconds as minutes -->` ... `<!-- end row -->`: one number, by the rest of its
  key. A mark begins no line, since Markdown would take the line for HTML.
- `<!-- reproductions -->` ... `<!-- end reproductions -->`: published figures of others from `book/reproductions.yml`,
  and below each our row of the same protocol: seen items excluded or allowed, both where the source does not say. The
  verdict of a row is **reproduced** if the figure is inside our 95% interval over users, **close** if outside it by no
  more than a few standard deviations over our seeds, **differs** otherwise, which takes a sentence why.

`semid results publish` copies the rows of a run to `book/results`; `semid results check` fails if a page differs.
"""

import itertools
import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from semid_lib.data.folder import open_store
from semid_lib.evaluation.rows import LATER_DAY, NAMES, cell, markdown, metric_name, number, shown
from semid_lib.workbench import remote, store
from semid_lib.workbench.atomic import fresh_file

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
VERDICTS = ("not measured yet", "reproduced", "close", "differs")  # a line of ours has the last of those of its figures
# what a source says of items of the history in its lists, and our rows that compare with it: their word, and how the
# names of their methods end
_EXCLUDED, _ALLOWED = ("excluded", ""), ("allowed", "_seen_allowed")
SEEN_ITEMS = {"excluded": (_EXCLUDED,), "allowed": (_ALLOWED,), "not stated": (_EXCLUDED, _ALLOWED)}
_OURS = ("item_knn", "slist", "sasrec", "timeline", "timeline_item_knn", "timeline_slist")  # at the end of each table
_PUBLISHED = ("recall@5", "ndcg@5", "recall@10", "ndcg@10", "recall@100", "recall@1000")
_DIFFERENCES = "ahead_of"  # in the topics of paired differences; ends those with keys ours_ahead_of/data/theirs/metric
_FORMS = {
    "minutes": lambda row: f"{row['value'] / 60:.0f}",  # of seconds
    "percent": lambda row: f"{row['value']:.0%}",
    "n": lambda row: f"{row['n']:,}",  # of how many users or queries the row is a mean
}
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
    if topic == _DIFFERENCES and not metrics and not methods:
        return _differences(rows)
    if _DIFFERENCES in topic and metrics:
        raise ValueError(f"a table of {topic!r} shows all metrics of its rows: expected a mark that names none")
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


def _differences(rows: list[dict[str, Any]]) -> str:
    """All rows of the topics .../ahead_of with a line a pair: metrics of all users, then those of a later day."""
    pairs = []
    for row in rows:
        ours, _, theirs, *rest = row["key"].split("/")
        if ours.endswith(f"_{_DIFFERENCES}") and rest:
            names = (NAMES.get(name, name) for name in (ours.removesuffix(f"_{_DIFFERENCES}"), theirs))
            method = " − ".join(f"({name})" if "+" in name else name for name in names)
            pairs.append(row | {"method": method, "metric": rest[0]})
    if not pairs:
        raise ValueError(f"no row has a key that starts with '..._{_DIFFERENCES}'")
    tables = []
    for of_later_day in (False, True):
        found = [row for row in pairs if row["metric"].startswith(LATER_DAY) == of_later_day]
        metrics = list(dict.fromkeys(row["metric"] for row in found))
        if found:
            tables.append(f"{_interval_table(found, metrics)}\n\n*{_origin(found, 'users')}.*\n")
    return "\n".join(tables)


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
        line, column = NAMES.get(method, method), metric
        if not metrics:
            line, column = column, line
        lines.setdefault(line + _VARIANTS[variant], {})[column] = cell(row)
    return markdown(lines, [metric_name(metric) for metric in metrics])


def _plain_table(rows: list[dict[str, Any]], metrics: Sequence[str]) -> str:
    """Rows without intervals, such as those of a bench: methods down, metrics across."""
    lines: dict[str, dict[str, str]] = {}
    for row in rows:
        line = lines.setdefault(NAMES.get(row["method"], row["method"]), {})
        line[row["metric"].replace("_", " ")] = number(row["value"])
    return markdown(lines, [metric.replace("_", " ") for metric in metrics])


def _promises_table(rows: list[dict[str, Any]]) -> str:
    """Rows with keys topic/data/figure that say what they had to reach: figures down."""
    headings = ["measured", "asked for", "wished for"][: 3 if any(row["wish"] for row in rows) else 2]
    cells = [(number(row["value"]), row["must"] or "", row["wish"] or "") for row in rows]
    names = [row["metric"].replace("_", " ") for row in rows]
    return markdown({name: dict(zip(headings, line, strict=False)) for name, line in zip(names, cells, strict=True)})


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
    return shown(row["value"], *row["ci95"]).split("\N{NO-BREAK SPACE}")[0] if "ci95" in row else number(row["value"])


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
    spreads = ""
    for what in ("seeds", "draws"):
        if counts := sorted({len(row[what]) for row in rows if what in row}):
            spreads += f" (in brackets the standard deviation over {' or '.join(map(str, counts))} {what})"
    interval = f"± half of the 95% bootstrap interval over {units}{spreads}"
    return f"{n:,} {units} of {data}{later}, `SCALE={scale}`, {interval}; {run}"


@dataclass(frozen=True)
class System:
    """One published system, a record of `book/reproductions.yml`.

    Raises ValueError for a figure that cannot be, or another word on seen items than those of `SEEN_ITEMS`.
    """

    name: str
    source: str  # where the figures stand, as Markdown
    protocol: str  # what a reader must know before comparing
    seen_items: str  # whether its lists may hold items of the history: a key of SEEN_ITEMS
    figures: dict[str, dict[str, float]]  # data set -> metric -> value
    ours: list[str] = field(default_factory=list)  # the methods in our keys; none for a system that we have not built
    scale: str = "laptop"  # the run of ours that is published
    why: dict[str, str] = field(default_factory=dict)  # data set -> what follows "because" where a verdict is "differs"

    def __post_init__(self):
        if self.seen_items not in SEEN_ITEMS:
            raise ValueError(f"{self.name} has seen_items {self.seen_items!r}, expected one of {list(SEEN_ITEMS)}")
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
    """A table a data set, then the protocol of each system.

    Below the line of a system stand our methods that compare with it, a line each with the same word on seen items, two
    where the source does not say. The verdict of a line is the worst of its figures. Our own methods end the table.

    `rows_of(data, scale)` gives the published rows of a run. Raises ValueError for a system that differs without a
    sentence why.
    """
    tables, differing = [], set()
    for data in dict.fromkeys(data for system in systems for data in system.figures):
        of_data = [system for system in systems if data in system.figures]
        metrics = [name for name in _PUBLISHED if any(name in system.figures[data] for system in of_data)]
        headings = ["", "seen items", "verdict", *(metric_name(metric) for metric in metrics)]
        lines = [headings, ["---"] * 3 + ["---:"] * len(metrics)]
        for system in of_data:
            figures = system.figures[data]
            ours = _ours(data, system.ours, SEEN_ITEMS[system.seen_items], rows_of(data, system.scale))
            is_measured = any(found for _, _, found in ours)
            state = "not built here" if not ours else "" if is_measured else VERDICTS[0]
            theirs = [f"{figures[name]:.4f}".removeprefix("0") if name in figures else "" for name in metrics]
            lines.append([system.name, system.seen_items, state, *theirs])
            for name, seen, found in ours if is_measured else ():
                verdicts = [verdict(value, found.get(metric), close_within) for metric, value in figures.items()]
                worst = max(verdicts, key=VERDICTS.index)
                if worst == "differs":
                    differing.add((system.name, data))
                lines.append([name, seen, f"**{worst}**" if worst == "differs" else worst, *_cells(found, metrics)])
        for protocol in SEEN_ITEMS["not stated"]:
            for name, seen, found in _ours(data, _OURS, (protocol,), rows_of(data, "laptop")):
                if found:
                    lines.append([name, seen, "", *_cells(found, metrics)])
        tables.append(f"**{data}**\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines))
    return "\n\n".join([*tables, "\n".join(_note(system, differing) for system in systems)]) + "\n"


def _ours(data: str, methods: Iterable[str], protocols: Iterable[tuple[str, str]], rows: list[dict[str, Any]]) -> list:
    """Of each of our methods its name, what it says of seen items, and its rows by metric, which may be none."""
    found = []
    for method, (seen, ending) in itertools.product(methods, protocols):
        start = f"next_item/{data}/{method}{ending}/"
        of_metric = {row["key"].removeprefix(start): row for row in rows if row["key"].startswith(start)}
        found.append((f"*ours: {NAMES.get(method, method)}*", seen, of_metric))
    return found


def _cells(found: dict[str, dict[str, Any]], metrics: Iterable[str]) -> list[str]:
    return [cell(found[metric]) if metric in found else "" for metric in metrics]


def _note(system: System, differing: set[tuple[str, str]]) -> str:
    """The protocol of a system, and why ours differs where it does."""
    text = f"- **{system.name}** ({system.source}): {system.protocol}"
    for data in system.figures:
        if (system.name, data) in differing:
            if not system.why.get(data):
                raise ValueError(f"{system.name} on {data} differs from our rows: say why in reproductions.yml")
            text += f" On {data}, ours differs because {system.why[data]}."
    return text


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
    with fresh_file(_RESULTS / f"{name}-{scale}.json") as file:  # a row a line, so that a diff can be read
        file.write_text("[\n" + ",\n".join(map(json.dumps, rows)) + "\n]\n", encoding="utf-8")
    for page, text in written.items():
        if text != page.read_text(encoding="utf-8"):
            page.write_text(text, encoding="utf-8")


def stale_pages() -> list[str]:
    """Pages with a table or a figure that differs from the published rows; none if all is well."""
    texts = {page: page.read_text(encoding="utf-8") for page in _PAGES}
    return [page.name for page, text in texts.items() if render(text, published_rows) != text]
