"""Labels and maps of any catalogue: what matplotlib draws is what the catalogue says."""

import warnings

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from semid_lib.evaluation import plotting

matplotlib.use("Agg")

# what has broken labels elsewhere, beside whatever hypothesis finds
HARD = st.sampled_from(
    [
        *("Ba$$", "$x^$", r"a\$b", r"\frac{", "_new", "", " ", "(none)", "label 1", "None", "{}", "%s", "#", "a\nb"),
        *("手机", "电脑", "שלום", "مرحبا", "हिन्दी", "👟", "Shoes 👟", "e\u0301\u0302", "\u202eabc", "\x00", "\ud800"),
        *("Women's Running Shoes Size 10 Wide", "Women's Running Shoes Size 10 Narrow", "x" * 10_000, "手" * 10_000),
    ]
)
ANYTHING = st.text(st.characters(exclude_categories=[]), max_size=60)
NAMES = st.lists(HARD | ANYTHING, min_size=1, max_size=6, unique=True)


@pytest.fixture(autouse=True)
def figure():
    """A small figure in which every warning is an error, as one of a missing glyph."""
    with warnings.catch_warnings(), matplotlib.rc_context():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", module="umap", category=ImportWarning)  # it has a part that needs TensorFlow
        plotting.use()
        yield
    plt.close("all")


def test_items_of_no_group_that_is_drawn_are_other():
    _, axis = plt.subplots()
    plotting.draw_map(axis, np.zeros((3, 2)), ["a", "b", "c"], ["b"], "PCA")
    assert [text.get_text() for text in axis.legend().get_texts()] == ["other", "b"]
    assert [len(dots.get_offsets()) for dots in axis.collections] == [2, 1]


@pytest.mark.slow
@settings(max_examples=30)
@given(NAMES)
@example(["Ba$$", "Ba$$ 2", "$x^$", "_a", "_b", ""])
@example(["x" * 40 + str(number) + "y" * 40 for number in range(6)])
def test_any_names_give_as_many_bars_and_legend_entries(names):
    figure, (left, right) = plt.subplots(1, 2, figsize=(3, 2), dpi=30)
    plotting.bars(left, pd.Series(range(len(names)), index=pd.Index(names, dtype=object)))
    groups = np.arange(len(names))
    places = np.column_stack([groups, groups])
    note = plotting.draw_map(right, places, np.array(names, dtype=object), names, "PCA")
    legend = right.legend()
    figure.canvas.draw()
    plt.close(figure)
    ticks = [label.get_text() for label in left.get_yticklabels()]
    assert len(left.patches) == len(set(ticks)) == len(names)
    assert len(legend.get_texts()) == len(names)  # "other" has no item, and no entry
    assert all(len(collection.get_offsets()) == 1 for collection in right.collections)
    numbered = [tick for tick in ticks if tick.startswith("label ")]
    assert len(note.splitlines()) <= len(numbered) + 1


def drawn(name: str) -> str:
    """What matplotlib makes of a label."""
    [label] = plotting.labels([name]).drawn
    text, is_mathematics = matplotlib.text.Text(0, 0, label)._preprocess_math(label)
    assert not is_mathematics
    return text


@settings(max_examples=100)
@given(st.text("$\\_ab{}^", min_size=1, max_size=8))
def test_dollars_and_backslashes_are_drawn_as_they_are(name):
    assert drawn(name) == " " * name.startswith("_") + name


def test_names_that_no_font_draws_are_numbered_and_told():
    glyphs = plotting._glyphs(tuple(plt.rcParams["font.family"]))
    if ord("手") in glyphs:
        pytest.skip("a font of this machine draws Chinese")
    found = plotting.labels(["Shoes", "手机", "电脑 $5"], kind="brand")
    assert found.drawn == ["Shoes", "brand 2", "brand 3"]
    assert found.note.splitlines()[1:] == ["brand 2: 手机", "brand 3: 电脑 $5"]
    assert plotting.labels(["Shoes"]).note == ""


def test_a_name_is_shown_with_both_ends_and_equal_ones_are_numbered():
    first, second = "Women's Running Shoes Size 10 Wide", "Women's Running Shoes Size 10 Narrow"
    assert [name[-6:] for name in plotting.labels([first, second], width=28).drawn] == ["0 Wide", "Narrow"]
    assert plotting.labels(["a", "a", "a (2)"]).drawn == ["a", "a (2)", "a (2) (2)"]


@pytest.mark.parametrize(("n", "n_distinct"), [(1, 1), (2, 1), (2, 2), (3, 29), (12, 29), (29, 2), (29, 29)])
def test_a_few_items_have_a_map(n, n_distinct):
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(n, 5))[np.arange(n) % n_distinct]
    places, method = plotting.map_2d(vectors)
    assert places.shape == (n, 2) and np.isfinite(places).all() and method == "PCA"
    apart = np.linalg.norm(places[:, None] - places, axis=2)
    in_full = np.linalg.norm(vectors[:, None] - vectors, axis=2)
    assert (apart <= in_full + 1e-9).all()  # a projection
    assert np.isclose(apart, in_full).all() or (n > 3 and n_distinct > 3)  # of up to three points it loses nothing


@pytest.mark.slow  # numba compiles UMAP for twenty seconds
def test_more_items_are_mapped_by_umap_and_neighbours_stay_together():
    rng = np.random.default_rng(0)
    group = np.arange(60) % 2
    vectors = rng.normal(scale=0.1, size=(60, 5)) + np.where(group[:, None], 1.0, -1.0)
    places, method = plotting.map_2d(vectors, seed=7)
    assert places.shape == (60, 2) and method == "UMAP"
    apart = np.linalg.norm(places[:, None] - places, axis=2)
    np.fill_diagonal(apart, np.inf)
    assert (group[apart.argmin(axis=1)] == group).all()


def test_one_dimension_has_a_map():
    places, _ = plotting.map_2d(np.array([[0.0], [2.0]]))
    assert np.allclose(np.abs(places), [[1.0, 0.0], [1.0, 0.0]])
