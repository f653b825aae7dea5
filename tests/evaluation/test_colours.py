"""The colours of the book: one per method."""

import doctest

import pytest
from matplotlib.colors import to_rgb

from semid_lib.evaluation import figures


def test_examples():
    assert doctest.testmod(figures).failed == 0


def test_every_method_has_one_colour_and_no_two_share_one():
    colours = {name: to_rgb(value) for name, value in figures.COLOURS.items() if name != "T5"}
    assert len(set(colours.values())) == len(colours)
    assert figures.colour("T5, beam search") == figures.colour("TIGER")
    assert figures.colour("dense, inverted lists") != figures.colour("dense")
    with pytest.raises(ValueError, match="'no such'"):
        figures.colour("no such")
