"""The colours of the book, one per method, and the figures that no catalogue without histories has."""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgb

from semid_lib.evaluation import evaluate, figures, figures_data, figures_models

ROOT = Path(__file__).resolve().parents[2]
DRAWING = [*sorted(ROOT.glob("notebooks/[0-9]*.py")), *sorted(ROOT.glob("semid_lib/**/figures*.py"))]


def test_every_method_has_one_colour_and_no_two_share_one():
    colours = {name: to_rgb(value) for name, value in figures.COLOURS.items() if name != "T5"}
    assert len(set(colours.values())) == len(colours)
    assert not {to_rgb(value) for value in figures.POLICIES} & set(colours.values())
    assert figures.colour("T5, beam search") == figures.colour("TIGER")
    assert figures.colour("dense, inverted lists") != figures.colour("dense")
    with pytest.raises(ValueError, match="'no such'"):
        figures.colour("no such")


@pytest.mark.parametrize("path", DRAWING, ids=lambda path: path.stem)
def test_no_figure_takes_a_colour_of_matplotlib_for_a_method(path):
    assert '"tab:' not in path.read_text(encoding="utf-8"), "take it from evaluation/figures.py"


# three users and two methods; a sweep of beams; queries of two kinds and the data set's own
FOUND = evaluate.Evaluation(np.array([1.0, 4.0, np.inf]), np.zeros((3, 100), np.int64), 0.1)
BEAMS = pd.DataFrame({"recall@10": [0.1, 0.2, 0.3], "ms per user": [1.0, 2.0, 9.0]}, index=[10, 100, "exact"])
REAL = pd.DataFrame({"rank": [1, 3], "share": [0.5, 0.5]})


@pytest.mark.parametrize(
    ("draw", "n_lines", "n_bars"),
    [
        (lambda: figures_data.history_lengths(np.array([2, 3, 3, 5]), np.array([7, 2, 1])), 1, 6),
        (lambda: figures_data.query_lengths(pd.Series([1, 2, 2, 20]), pd.Series([3])), 2, 0),
        (lambda: figures_data.round_trips(pd.Series([1, 30, 2]), pd.Series(["a", "b", "a"]), 40, REAL), 5, 0),
        (lambda: figures_models.beam_widths(BEAMS), 4, 0),
        (
            lambda: figures_models.recall_by_group(
                {"tiger": FOUND, "timeline": FOUND}, {"history": ["short", "long", "long"]}
            ),
            0,
            4,
        ),
    ],
    ids=["histories", "query lengths", "round trips", "beams", "groups"],
)
def test_a_figure_has_all_its_lines_and_bars_and_labelled_axes(draw, n_lines, n_bars):
    figure = draw()
    figure.canvas.draw()
    assert sum(len([line for line in axis.lines if len(line.get_xdata())]) for axis in figure.axes) >= n_lines
    assert sum(len(axis.patches) for axis in figure.axes) == n_bars
    assert all(axis.get_xlabel() and (axis.get_ylabel() or n_bars) for axis in figure.axes)
    plt.close(figure)
