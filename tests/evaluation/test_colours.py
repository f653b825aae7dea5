"""The colours of the book: one per method."""

from pathlib import Path

import pytest
from matplotlib.colors import to_rgb

from semid_lib.evaluation import figures

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
