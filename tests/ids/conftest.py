"""A quantizer on a line, with every distance written out."""

import numpy as np
import pytest

from semid_lib.ids import quantize


class Residual:
    """Frozen codebooks with the methods of a quantizer."""

    def __init__(self, codebooks):
        self.codebooks = np.asarray(codebooks, dtype=np.float32)
        self.sizes = (self.codebooks.shape[1],) * len(self.codebooks)

    def encode(self, vectors):
        return quantize.encode(vectors, self.codebooks)

    def decode(self, codes):
        return quantize.decode(codes, self.codebooks)

    def last_level_costs(self, vectors, codes):
        return np.sum(((vectors - self.decode(codes[:, :-1]))[:, None] - self.codebooks[-1]) ** 2, axis=2)


@pytest.fixture(scope="session")
def residual():
    return Residual


@pytest.fixture(scope="session")
def line():
    """Level 0: about 0, 100 or 200; level 1: 0, 1 or 3 more."""
    return Residual([[[0.0], [100.0], [200.0]], [[0.0], [1.0], [3.0]]])


@pytest.fixture(scope="session")
def vectors() -> np.ndarray:
    """300 vectors around 12 centres."""
    rng = np.random.default_rng(0)
    return (rng.normal(size=(12, 6))[rng.integers(12, size=300)] + 0.3 * rng.normal(size=(300, 6))).astype(np.float32)
