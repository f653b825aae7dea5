"""A small catalogue, its semantic IDs, and small language models."""

import numpy as np
import pandas as pd
import pytest

from semid_lib.ids.semantic_ids import SemanticIDs
from semid_lib.llm.base_models import small_model
from semid_lib.llm.examples import training_rows
from semid_lib.llm.vocabulary import extend_vocabulary

N_ITEMS = 20
WORDS = ["red", "blue", "tent", "lamp", "soap", "brush", "cream", "nail", "polish", "deluxe", "mini", "travel", "set"]


@pytest.fixture(scope="session")
def items():
    rng = np.random.default_rng(0)
    titles = [" ".join(rng.choice(WORDS, 4)) + f" No. {row}" for row in range(N_ITEMS)]
    return pd.DataFrame({"title": titles, "description": ["a <b>thing</b>"] * 5 + [""] * (N_ITEMS - 5)})


@pytest.fixture(scope="session")
def ids():
    rng = np.random.default_rng(1)
    codes = np.unique(rng.integers(4, size=(60, 3)), axis=0)
    codes = rng.permutation(codes[codes[:, 0] != 2])[:N_ITEMS]  # code 2 of level 0 has no item
    return SemanticIDs.from_codes(codes, codebook_size=4)


@pytest.fixture(scope="session")
def base(items):
    """Makes a small model and its tokenizer, without semantic-ID tokens."""
    shape = {"hidden_size": 32, "n_layers": 2, "n_heads": 2}
    return lambda **changes: small_model(list(items["title"]), 300, **shape | changes)


@pytest.fixture(scope="session")
def extended(base, ids, items):
    """Makes a small model, its tokenizer and the layout of its new tokens."""

    def make(**changes):
        model, tokenizer = base(**changes)
        return model, tokenizer, extend_vocabulary(model, tokenizer, ids, list(items["title"]))

    return make


@pytest.fixture(scope="session")
def few_rows(items, ids):
    return training_rows(items, ids, 40)
