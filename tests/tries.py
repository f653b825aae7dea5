"""Semantic IDs for tests of tries, and their prefixes by plain loops."""

import numpy as np
from hypothesis import strategies as st


@st.composite
def distinct_ids(draw, max_items=30):
    """Distinct IDs in any order, of a few codes far apart: branching is ragged, codes are no node numbers."""
    n_levels = draw(st.integers(1, 4))
    codes = [st.sampled_from(sorted(draw(st.sets(st.integers(0, 300), min_size=1, max_size=5))))] * n_levels
    return np.array(draw(st.lists(st.tuples(*codes), unique=True, min_size=1, max_size=max_items)))


def rows_below(ids, depth):
    """{prefix: rows} of a depth, node after node."""
    found = {}
    for row in sorted(range(len(ids)), key=lambda row: ids[row].tolist()):
        found.setdefault(tuple(ids[row, :depth].tolist()), []).append(row)
    return found
