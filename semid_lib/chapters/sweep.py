"""Run a chapter at each point of a grid of parameters, and collect all rows in one table (`semid sweep`).

Each point has its own artefacts in `artefacts/sweeps/<data>/<scale>/<chapter>/<point>/`, with links to what earlier
chapters wrote. Points that are up to date are skipped, so a stopped sweep resumes and a larger grid adds to a smaller
one. `table.parquet` and `table.csv` have a line a row and point, `table.md` mean and spread over seeds.
"""

import ast
import itertools
import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pandas as pd

from semid_lib.chapters import runner
from semid_lib.data.folder import open_store
from semid_lib.workbench import atomic, store

_SHOWN = 40  # lines of the table that are printed
_FACTS = ("key", "value", "ci95", "spread", "n", "seconds", "commit", "dirty", "hardware", "fingerprint")


def value(text: str) -> Any:
    """A parameter as it was typed: a Python literal, or else the text itself.

    >>> value("3"), value("0.5"), value("None"), value("all-MiniLM-L6-v2")
    (3, 0.5, None, 'all-MiniLM-L6-v2')
    """
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _pairs(texts: Sequence[str], expected: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for text in texts:
        key, _, rest = text.partition("=")
        if not key.isidentifier() or "=" not in text or key in found:
            raise ValueError(f"{text!r} is no parameter, expected {expected} with each key once")
        found[key] = rest
    return found


def parameters_from(texts: Sequence[str]) -> dict[str, Any]:
    """Parameters from KEY=VALUE. Raises ValueError for anything else or a key twice.

    >>> parameters_from(["SEED=1", "BASE_MODEL=models/small"])
    {'SEED': 1, 'BASE_MODEL': 'models/small'}
    """
    return {key: value(rest) for key, rest in _pairs(texts, "KEY=VALUE").items()}


def grid(texts: Sequence[str]) -> list[dict[str, Any]]:
    """All combinations of KEY=VALUE,VALUE as parameters. Raises ValueError for anything else, or a key or value twice.

    >>> grid(["SEED=0,1", "N_LEVELS=3"])
    [{'SEED': 0, 'N_LEVELS': 3}, {'SEED': 1, 'N_LEVELS': 3}]
    """
    axes = {key: [value(each) for each in rest.split(",")] for key, rest in _pairs(texts, "KEY=VALUE,VALUE").items()}
    for key, values in axes.items():
        if "" in values or len(set(map(str, values))) < len(values):
            raise ValueError(f"{key} has the values {values}, expected different ones")
    return [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]


def point_name(parameters: Mapping[str, Any]) -> str:
    """The folder of a point.

    >>> point_name({"SEED": 1, "BASE_MODEL": "models/small"})
    'SEED=1,BASE_MODEL=models_small'
    """
    return re.sub(r"[^\w.=,+-]", "_", ",".join(f"{key}={value}" for key, value in parameters.items()))


def _prepare(point: Path, source: Path, data: str, scale: str, root: Path) -> None:
    """Make a point's folder, with links to what earlier chapters wrote. Raises ValueError if that is missing."""
    shared, own = (open_store(data, scale, where).folder for where in (root, point))
    earlier, stages = runner.before(source.stem, source.parent), runner.stages(source.parent)
    # rows and executed notebooks are of the run; everything else may be read
    paths = [path for name in earlier for path in stages[name].outputs if not path.startswith(("rows/", "executed/"))]
    for path in paths:
        if not (shared / path).exists():
            do = f"run {', '.join(earlier)} with the same DATA and SCALE first"
            raise ValueError(f"{shared / path} is not there: {do}")
    # the facts of their runs tell whether the point is up to date
    paths += [f"executed/{name}.json" for name in stages[source.stem].needs]
    (root / "cache").mkdir(parents=True, exist_ok=True)
    for link, target in [(point / "cache", root / "cache"), *((own / path, shared / path) for path in paths)]:
        link.parent.mkdir(parents=True, exist_ok=True)
        if not link.is_symlink():
            link.symlink_to(target.resolve(), target_is_directory=target.is_dir())


def run(source: Path, axes: Sequence[str], data: str, scale: str, jobs: int = 1) -> int:
    """Run the points that are out of date, each in its own process, `jobs` at once, and print the table.

    A point that fails does not stop the others.

    Returns
    -------
    int
        The exit code: 0 if all points have run.

    Raises
    ------
    ValueError
        As `grid` does, if two points share a folder, for an unknown parameter, and if an earlier chapter has not run.
    """
    points, root = grid(axes), Path(store.default_root()).resolve()
    home = open_store(data, scale, root / "sweeps").folder / source.stem
    places = {home / point_name(point): point for point in points}
    if len(places) < len(points):
        raise ValueError(f"points of the grid share a folder: {sorted(place.name for place in places)}")
    for point in points:
        runner.check(source, data, scale, point)

    def has_run(place: Path) -> bool:
        return runner.is_up_to_date(source, open_store(data, scale, place), places[place])

    todo = [place for place in places if not has_run(place)]
    for place in todo:
        _prepare(place, source, data, scale, root)
    group = home.relative_to(root / "sweeps").as_posix()

    def start(place: Path) -> None:
        words = [f"--parameter={key}={value!r}" for key, value in places[place].items()]
        command = [sys.executable, "-m", "semid_lib.cli", "run", source.stem, "--only", f"--notebooks={source.parent}"]
        command += [f"--data={data}", f"--scale={scale}", f"--artefacts={place}", f"--group={group}", *words]
        subprocess.run(command, check=False, env=os.environ | {"SEMID_ARTEFACTS": str(root)})

    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(start, todo))
    done = [place for place in places if has_run(place)]
    if done:
        lines = write(table(done, source.stem, data, scale), list(points[0]), home)
        more = len(lines) - _SHOWN
        print(*lines[:_SHOWN], *([f"... and {more} more lines in {home / 'table.md'}"] if more > 0 else []), sep="\n")
    print(f"{len(done)} of {len(points)} points have run; tables: {home}/table.parquet, .csv, .md")
    return int(len(done) < len(points))


def table(places: Sequence[Path], chapter: str, data: str, scale: str) -> pd.DataFrame:
    """The rows of all points: a line a row and point, with the swept parameters first."""
    lines = []
    for place in places:
        own = open_store(data, scale, place).folder
        parameters = runner.facts_of(chapter, own / "executed")["parameters"]
        swept = {key: parameters[key] for key in (part.partition("=")[0] for part in place.name.split(","))}
        for row in store.read_json(own / "rows" / f"{chapter}.json", list):
            lines.append(swept | {name: row[name] for name in _FACTS if name in row})
    return pd.DataFrame(lines)


def over_seeds(rows: pd.DataFrame, swept: Sequence[str]) -> pd.DataFrame:
    """Mean, spread (sample standard deviation) and number of points per key and per parameters other than SEED.

    >>> rows = pd.DataFrame({"SEED": [0, 1], "key": ["a/mrr"] * 2, "value": [0.1, 0.3]})
    >>> over_seeds(rows, ["SEED"]).round(4).to_dict("records")
    [{'key': 'a/mrr', 'mean': 0.2, 'spread': 0.1414, 'points': 2}]
    """
    by = [name for name in swept if name != "SEED"]
    groups = rows.groupby(["key", *by], sort=False, dropna=False)["value"]
    return groups.agg(mean="mean", spread="std", points="count").reset_index()


def write(rows: pd.DataFrame, swept: Sequence[str], home: Path) -> list[str]:
    """Write the three tables and return the lines of the Markdown one."""
    plain = rows.assign(**{name: rows[name].map(repr) for name in swept if rows[name].dtype == object})
    means = over_seeds(rows, swept)
    lines = ["| " + " | ".join(means.columns) + " |", "|" + " --- |" * len(means.columns)]
    for line in means.itertuples(index=False):
        words = [f"{word:.4g}" if isinstance(word, float) else str(word) for word in line]
        lines.append("| " + " | ".join("" if word == "nan" else word for word in words) + " |")
    for name, written in (
        ("table.parquet", lambda file: plain.to_parquet(file, index=False)),
        ("table.csv", lambda file: plain.to_csv(file, index=False)),
        ("table.md", lambda file: file.write_text("\n".join(lines) + "\n", encoding="utf-8")),
    ):
        with atomic.fresh_file(home / name) as partial:
            written(partial)
    return lines
