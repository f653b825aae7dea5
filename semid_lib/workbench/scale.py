"""The one dial: how large everything is at smoke, laptop and full. `scale.toml` has all sizes side by side.

`smoke` is for tests (minutes for all chapters), `laptop` for two CPU cores (minutes), `full` for a GPU box.
"""

import tomllib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

NAMES = ("smoke", "laptop", "full")


class Scale(SimpleNamespace):
    """All sizes at one setting of the dial, as attributes; `scale.toml` says what each one is. None means no limit."""


def get(name: str, data: str = "", **changes: Any) -> Scale:
    """The sizes at a scale, for one data set.

    Parameters
    ----------
    name : str
        "smoke", "laptop" or "full".
    data : str
        Name of the data set. For "demo" at laptop some sizes are smaller; all others have the same.
    changes
        Sizes that are to differ.

    Raises
    ------
    ValueError
        For any other scale.

    Examples
    --------
    >>> get("smoke").n_layers, get("full").n_layers
    (1, 4)
    >>> get("laptop").n_seeds, get("laptop", "demo").n_seeds, get("laptop", n_seeds=9).n_seeds
    (3, 2, 9)
    """
    check(name)
    sizes = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))
    demo, at = sizes.pop("demo"), NAMES.index(name)
    found = {size: None if values[at] == "all" else values[at] for size, values in sizes.items()}
    return Scale(name=name, **found | (demo if (name, data) == ("laptop", "demo") else {}) | changes)


def check(name: str) -> None:
    """Raise ValueError for what is no scale."""
    if name not in NAMES:
        raise ValueError(f"SCALE is {name!r}, expected one of {', '.join(NAMES)}")
