"""A quantizer on a line, with every distance written out."""

import numpy as np
import pytest

from semid_lib.ids import quantize


@pytest.fixture(scope="session")
def quantizer_of():
    """A quantizer with given codebooks."""

    def make(codebooks) -> quantize.ResidualQuantizer:
        return quantize.ResidualQuantizer(np.empty((0, len(codebooks)), np.int64), np.asarray(codebooks, np.float32))

    return make


@pytest.fixture(scope="session")
def line(quantizer_of):
    """Level 0: about 0, 100 or 200; level 1: 0, 1 or 3 more."""
    return quantizer_of([[[0.0], [100.0], [200.0]], [[0.0], [1.0], [3.0]]])


@pytest.fixture(scope="session")
def vectors() -> np.ndarray:
    """300 vectors around 12 centres."""
    rng = np.random.default_rng(0)
    return (rng.normal(size=(12, 6))[rng.integers(12, size=300)] + 0.3 * rng.normal(size=(300, 6))).astype(np.float32)
