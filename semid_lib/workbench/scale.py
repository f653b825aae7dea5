"""The one dial: how large everything is at smoke, laptop and full, side by side.

`smoke` is for tests (four minutes for all chapters), `laptop` for two CPU cores (minutes), `full` for a GPU box.
"""

from dataclasses import dataclass
from typing import Any

NAMES = ("smoke", "laptop", "full")

# field: (smoke, laptop, full)
_SIZES: dict[str, tuple[Any, Any, Any]] = {
    "kmeans_iterations": (5, 25, 50),
    "rqvae_epochs": (2, 20, 20),
    "map_items": (500, 3000, 10_000),
    "dim": (32, 128, 256),
    "n_layers": (1, 2, 4),
    "dropout": (0.1, 0.2, 0.3),
    "n_epochs": (1, 14, 60),
    "min_steps": (30, 300, 5000),
    "batch_size": (128, 128, 256),
    "tiger_dim": (32, 96, 128),
    "tiger_layers": (1, 2, 4),
    "tiger_heads": (2, 4, 6),
    "tiger_head_dim": (16, 24, 64),
    "tiger_ff_dim": (64, 384, 1024),
    "tiger_dropout": (0.0, 0.0, 0.2),
    "tiger_epochs": (1, 10, 200),
    "tiger_batch_size": (128, 128, 256),
    "sasrec_epochs": (1, 17, 30),
    "n_seeds": (2, 3, 3),
    "tiger_seeds": (1, 1, 3),
    "validation_users": (200, 2000, 5000),
    "test_users": (300, None, None),
    "beam_width": (100, 1000, 1000),
    "list_length": (100, 1000, 1000),
    "queries_per_item": (2, 8, 16),
    "queried_items": (300, 15_000, None),
    "similar_steps": (60, 1000, 4000),
    "prompts": (20, 150, 1000),
    "peer_seconds": (0.02, 0.3, 3.0),
    "lm_vocabulary": (400, 8000, 8000),
    "lm_dim": (32, 384, 384),
    "lm_layers": (1, 2, 4),
    "lm_heads": (2, 6, 6),
    "lm_rows_per_item": (2, 17, 50),
    "lm_rows": (1000, 200_000, 1_000_000),
    "query_epochs": (1, 3, 6),
    "query_steps": (5, 200, 1000),
    "test_queries": (60, 1000, 4000),
    "cold_starts": (1, 2, 10),
    "cold_ways": (2, 5, 8),
    "warm_answers": (40, 300, 2000),
    "growth_from": (100, 316, 1000),
    "growth_to": (3162, 31_623, 1_000_000),
    "growth_budget": (0.3, 1.0, 60.0),
}

# the demo shop is small and invented: at laptop its models train shorter and fewer times, so that a book takes minutes
_DEMO: dict[str, Any] = {
    "map_items": 1000,
    "n_seeds": 2,
    "tiger_epochs": 4,
    "lm_rows_per_item": 6,
    "lm_dim": 256,
    "lm_vocabulary": 3000,
    "test_queries": 200,
    "test_users": 600,
}


@dataclass(frozen=True)
class Scale:
    """All sizes at one setting of the dial."""

    name: str
    kmeans_iterations: int  # Lloyd's iterations per level
    rqvae_epochs: int
    map_items: int  # items drawn on a two-dimensional map
    dim: int  # width of the timeline model
    n_layers: int  # its transformer layers
    dropout: float
    n_epochs: int  # at most; early stopping may end sooner
    min_steps: int  # more epochs on a small data set, to come to this many steps
    batch_size: int  # histories a step
    tiger_dim: int  # width of the TIGER; its sizes at full are the paper's
    tiger_layers: int  # of its encoder, and as many of its decoder
    tiger_heads: int
    tiger_head_dim: int
    tiger_ff_dim: int
    tiger_dropout: float  # at full that of cornac's reproduction; at laptop so short a training gains nothing from it
    tiger_epochs: int  # at most; at laptop twenty minutes of one core on the Beauty benchmark
    tiger_batch_size: int  # prefixes of histories a step
    sasrec_epochs: int  # at most
    n_seeds: int  # runs of a next-item model, for the spread over seeds
    tiger_seeds: int  # of them, how many of the TIGER
    validation_users: int  # a fixed random sample, looked at during training
    test_users: int | None  # None: everybody
    beam_width: int  # the widest beam that chapter 11 compares
    list_length: int  # K of the longest list that is evaluated
    queries_per_item: int  # synthetic queries that are written for an item
    queried_items: int | None  # items that get some, a fixed random sample; None: all of them
    similar_steps: int  # training steps of the small language model of chapter 06, at least
    prompts: int  # that it is asked
    peer_seconds: float  # how long each step of each method is timed there
    lm_vocabulary: int  # tokens of the small language model of chapter 05, without those of the semantic IDs
    lm_dim: int  # its width
    lm_layers: int
    lm_heads: int
    lm_rows_per_item: int  # examples that a language model is taught, per item of the catalogue
    lm_rows: int  # and at most
    query_epochs: int  # of the hybrid ranker
    query_steps: int  # more epochs on few queries, to come to this many steps
    test_queries: int  # synthetic queries that methods of search are measured on, as many from each cell
    cold_starts: int  # of the service, for each way to start it
    cold_ways: int  # of `service_start.WAYS`, from the first on
    warm_answers: int  # that are timed
    growth_from: int  # items of the smallest catalogue on which chapter 09 measures every stage
    growth_to: int  # and of the largest, where the budget allows it
    growth_budget: float  # seconds that a point may take there


def get(name: str, data: str = "") -> Scale:
    """The sizes at a scale, for one data set.

    Parameters
    ----------
    name : str
        "smoke", "laptop" or "full".
    data : str
        Name of the data set. For "demo" at laptop some sizes are smaller; all others have the same.

    Raises
    ------
    ValueError
        For any other scale.

    Examples
    --------
    >>> get("smoke").n_layers, get("full").n_layers
    (1, 4)
    >>> get("laptop").n_seeds, get("laptop", "demo").n_seeds
    (3, 2)
    """
    if name not in NAMES:
        raise ValueError(f"SCALE is {name!r}, expected one of {', '.join(NAMES)}")
    at = NAMES.index(name)
    sizes = {field: sizes[at] for field, sizes in _SIZES.items()}
    if (name, data) == ("laptop", "demo"):
        sizes |= _DEMO
    return Scale(name, **sizes)
