"""What others have published beside what we have measured, with a verdict.

`book/reproductions.yml` holds the published figures with their sources and protocols, and says which of our result
rows answers which of them. The verdict of a figure is

- **reproduced** inside our 95% interval over users,
- **close** outside it by no more than a few standard deviations over our seeds,
- **differs** otherwise, which takes a sentence why,
- **not measured yet** without a row, **not built here** without such a model.

It says whether two numbers can be told apart, not whether one protocol was the other: read the notes under the table.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from semid_lib.evaluation.evaluate import shown

FILE = Path(__file__).resolve().parents[2] / "book" / "reproductions.yml"
VERDICTS = ("not measured yet", "reproduced", "close", "differs")  # a system has the last of those of its figures
_METRICS = {
    **{"recall@5": "Recall@5", "ndcg@5": "NDCG@5", "recall@10": "Recall@10", "ndcg@10": "NDCG@10"},
    **{"recall@100": "Recall@100", "recall@1000": "Recall@1000"},
}


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
                if metric not in _METRICS:
                    raise ValueError(f"{self.name} on {data} has {metric!r}, expected one of {', '.join(_METRICS)}")
                if not 0 <= value <= 1:
                    raise ValueError(f"{metric} of {self.name} on {data} is {value}, expected a share in [0, 1]")


def load(file: str | Path = FILE) -> tuple[list[System], float]:
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

    row: needs `ci95`; with several seeds it has `spread`, their standard deviation (`store.over_seeds`). Without it
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


def markdown_table(
    systems: list[System], close_within: float, rows_of: Callable[[str, str], list[dict[str, Any]]]
) -> str:
    """A line a system and data set, "theirs / ours" in each cell, then the protocol of each system.

    rows_of(data, scale): the published rows of that run, none if there is no such run.
    Raises ValueError for a system that differs without a sentence why.
    """
    metrics = [metric for metric in _METRICS if any(metric in found for s in systems for found in s.figures.values())]
    lines = [
        "| | data | verdict | " + " | ".join(_METRICS[metric] for metric in metrics) + " |",
        "| --- | --- | --- |" + " ---: |" * len(metrics),
    ]
    for system in systems:
        for data in system.figures:
            lines.append(
                "| " + " | ".join(_line(system, data, metrics, close_within, rows_of(data, system.scale))) + " |"
            )
    notes = [f"- **{system.name}** ({system.source}): {system.protocol}" for system in systems]
    return "\n".join([*lines, "", *notes]) + "\n"


def _line(system: System, data: str, metrics: list[str], close_within: float, rows: list[dict[str, Any]]) -> list[str]:
    found = {row["key"]: row for row in rows}
    figures = system.figures[data]
    ours = {metric: found.get(f"next_item/{data}/{system.ours}/{metric}") for metric in figures}
    cells = [_cell(figures[metric], ours[metric]) if metric in figures else "" for metric in metrics]
    verdicts = [verdict(value, ours[metric], close_within) for metric, value in figures.items()]
    worst = max(verdicts, key=VERDICTS.index) if system.ours else "not built here"
    if worst == "differs" and not system.why.get(data):
        raise ValueError(f"{system.name} on {data} differs from our rows: say why in reproductions.yml")
    return [system.name, data, f"**{worst}**: {system.why[data]}" if worst == "differs" else worst, *cells]


def _cell(published: float, row: dict[str, Any] | None) -> str:
    theirs = f"{published:.4f}".removeprefix("0")
    return theirs if row is None else f"{theirs} / {shown(row['value'], *row['ci95'])}"
