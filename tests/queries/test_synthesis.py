"""The artefact of synthetic queries."""

import numpy as np
import pandas as pd
import pytest

from semid_lib.queries import synthesis
from semid_lib.workbench.store import Store


@pytest.fixture
def store(tmp_path):
    return Store("demo", "smoke", "a" * 64, root=tmp_path)


def made(seed=0):
    names = [f"red pen {seed} {row}" for row in range(30)]
    train = pd.DataFrame({"item": range(30), "query": names, "kind": "words", "source": "templates"})
    test = train.head(10).assign(query="a blue one", cell="seen item, seen kind")
    return train, test, *(np.random.default_rng(seed).normal(size=(len(part), 4)) for part in (train, test))


@pytest.fixture
def saved(store):
    synthesis.save_queries(store, *made(), embedder="none")
    return made()


def test_saved_queries_are_loaded(store, saved):
    train, test, train_vectors, test_vectors = saved
    back = synthesis.load_queries(store)
    pd.testing.assert_frame_equal(back.train, train, check_dtype=False)
    pd.testing.assert_frame_equal(back.test, test, check_dtype=False)
    assert back.train_vectors.dtype == np.float32
    np.testing.assert_allclose(back.train_vectors, train_vectors, atol=2e-3)
    np.testing.assert_allclose(back.test_vectors, test_vectors, atol=2e-3)
    assert store.load("synthetic_queries").facts["embedder"] == "none"
    synthesis.save_queries(store, train, test[:0], train_vectors, test_vectors[:0])
    assert len(synthesis.load_queries(store).test) == 0


def test_other_queries_are_refused(store, saved, tmp_path):
    with pytest.raises(ValueError, match="other data"):
        synthesis.load_queries(Store("demo", "smoke", "b" * 64, root=tmp_path))
    with pytest.raises(FileNotFoundError, match="synthetic_queries"):
        synthesis.load_queries(Store("demo", "smoke", "a" * 64, root=tmp_path / "empty"))
    train, test, train_vectors, test_vectors = saved
    with pytest.raises(ValueError, match="vectors, expected as many"):
        synthesis.save_queries(store, train, test, train_vectors[1:], test_vectors)


def test_a_source_in_place_of_the_seed_is_refused():
    with pytest.raises(ValueError, match="seed is 'templates', expected a whole number"):
        synthesis.synthesize(pd.DataFrame({"title": ["Red tent"]}), 1, "templates")
