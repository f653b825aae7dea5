"""Made catalogues resemble the real one, and every stage is measured on them."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from semid_lib.decoding.trie import PrefixTrie
from semid_lib.ids import quantize
from semid_lib.studies.growth import catalogue, stages
from semid_lib.workbench import store


@pytest.fixture(scope="module")
def like():
    """300 vectors in clouds of a few smaller clouds each, with codes, texts and histories."""
    rng = np.random.default_rng(0)
    large, small = rng.standard_normal((16, 24)), rng.standard_normal((4, 24))
    vectors = 2 * large[rng.integers(0, 16, 300)] + 0.8 * small[rng.integers(0, 4, 300)]
    vectors += 0.1 * rng.standard_normal((300, 24))
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    codes = quantize.fit_residual_kmeans(vectors, 3, 16).codes
    histories = [rng.integers(0, 300, length) for length in rng.integers(2, 9, 100)]
    return catalogue.Sample(vectors, codes, 16, [f"thing {at}" for at in range(300)], histories)


def test_codes_of_a_made_catalogue_are_as_crowded_as_those_it_is_like(like):
    exponents = catalogue.zipf_exponents(like.codes, 16)
    made = catalogue.made_ids(300, exponents, 16, 3)
    assert exponents[1] > 0.2  # clouds are no uniform codes
    uniform = np.random.default_rng(0).integers(0, 16, like.codes.shape)
    real, ours, even = (len(np.unique(codes[:, :2], axis=0)) for codes in (like.codes, made, uniform))
    assert abs(ours - real) < 0.5 * abs(even - real)
    large = catalogue.made_ids(60_000, (1.0, 1.5, 0.0), codebook_size=64, n_levels=4)[:, :2]  # no prefix is full
    assert catalogue.zipf_exponents(large, 64) == pytest.approx((1.0, 1.5), abs=0.08)
    with pytest.raises(ValueError, match=r"of two items or more, got \(3,\)"):
        catalogue.zipf_exponents(np.zeros(3, dtype=np.int64), 4)


@pytest.mark.parametrize(("n", "size", "n_levels"), [(1, 4, 2), (8, 4, 2), (500, 10, 3), (30_000, 256, 2)])
@pytest.mark.parametrize("skew", [0.0, 3.0])
def test_made_ids_are_distinct_and_in_range_however_crowded(n, size, n_levels, skew):
    ids = catalogue.made_ids(n, (skew,), size, n_levels, seed=1)
    assert ids.shape == (n, n_levels) and ids.dtype == np.int64
    assert len(np.unique(ids, axis=0)) == n and ids.min() >= 0 and ids.max() < size
    assert np.array_equal(ids, catalogue.made_ids(n, (skew,), size, n_levels, seed=1))
    with pytest.raises(ValueError, match="expected 1 to 8 items for 2 levels, got 9"):
        catalogue.made_ids(9, (skew,), codebook_size=4, n_levels=2)


def test_made_vectors_and_histories_resemble_real_ones(like):
    made = catalogue.vectors_like(like, 400, seed=3)
    assert made.shape == (400, 24) and made.dtype == np.float32
    assert np.allclose(np.linalg.norm(made, axis=1), 1, atol=1e-5)
    random = np.random.default_rng(0).standard_normal((400, 24))
    random /= np.linalg.norm(random, axis=1, keepdims=True)
    nearest = [np.median((some @ like.vectors.T).max(axis=1)) for some in (made, random)]
    assert nearest[0] > 0.85 > nearest[1]
    more = catalogue.histories_like(like, 900)
    assert len(more) == 300 and {len(h) for h in more} == {len(h) for h in like.histories}
    assert np.array_equal(more[100], like.histories[0] + 300)
    without = like._replace(histories=None)
    with pytest.raises(ValueError, match="no histories"):
        catalogue.histories_like(without, 10)
    assert stages.STAGES.keys() - stages.stages_for(without).keys() == {"item-kNN, fit", "item-kNN"}


@pytest.mark.slow
@pytest.mark.parametrize("stage", [name for name in stages.STAGES if name not in ("embedding", "T5, exact scoring")])
def test_every_stage_is_measured(stage, like):
    state = torch.random.get_rng_state()
    point = stages.measure(stage, 100, like, seconds=0.0)
    assert (point.stage, point.n) == (stage, 100)
    assert point.cost > 0 and point.kept > 0
    assert torch.equal(torch.random.get_rng_state(), state)  # the global generator is as before
    if stage == "trie, build":
        ids = catalogue.made_ids(100, catalogue.zipf_exponents(like.codes, 16))
        assert point.kept == PrefixTrie.build(ids).n_bytes


def test_a_point_contains_the_median_the_peak_and_the_slowest_of_several_runs(like, monkeypatch):
    now, memory = 0.0, {"VmRSS": 100.0, "VmHWM": 350.0}
    monkeypatch.setattr(stages.time, "perf_counter", lambda: now)
    monkeypatch.setattr(stages, "memory", memory.get)
    monkeypatch.setattr(stages, "_warm", {"known"})

    def takes(*seconds):
        left = iter(seconds)

        def run():
            nonlocal now
            now += next(left)

        return run

    def known(unit, *runs, per=1.0):
        work = stages.Work(runs, lambda _: 5.0, per)
        monkeypatch.setitem(stages.STAGES, "known", stages.Stage(unit, 1.0, "", lambda *_: work))

    known("s", takes(1.0, 3.0, 2.0))
    assert stages.measure("known", 10, like, seconds=5.5) == stages.Point("known", 10, 2.0, 250.0, 5.0, 6.0)
    known("ms a user", takes(0.1, 0.1), takes(9.0, 0.4), per=8)  # the first run is not timed
    assert stages.measure("known", 10, like, seconds=0.0).cost == pytest.approx(50.0)
    with pytest.raises(ValueError, match="'sorting' is none of embedding, residual k-means"):
        stages.measure("sorting", 10, like)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells")
def test_the_peak_counts_what_a_run_takes_and_gives_back(like, monkeypatch):
    def prepare(like, n, seed):
        return stages.Work((lambda: np.ones(n * 2**17).sum(),), lambda _: 8.0)  # n MiB, gone at the end

    monkeypatch.setitem(stages.STAGES, "greedy", stages.Stage("s", 1.0, "a second", prepare))
    monkeypatch.setattr(stages, "_warm", {"greedy"})
    large, small = (stages.measure("greedy", n, like, seconds=0.0).peak for n in (256, 128))
    # the large one before it is forgotten; a smaller one might find its room in what the process has already
    assert large - small == pytest.approx(128 * 2**20, rel=0.25)


def test_a_sample_is_read_from_the_artefacts_of_the_chapters(tmp_path, shop):
    artefacts = store.Store("shop", "smoke", "", root=tmp_path)
    artefacts.save("embeddings", {"vectors": 3 * shop.vectors})
    found = {"kmeans_codes": shop.ids.codes, "codebooks": np.zeros((3, 32, 8), dtype=np.float32)}
    artefacts.save("semantic_ids", found)
    like = catalogue.sample(SimpleNamespace(items=shop.items, histories=shop.histories), artefacts)
    assert np.allclose(like.vectors, shop.vectors, atol=1e-6)
    assert like.codebook_size == 32 and len(like.texts) == 40 and len(like.histories) == 60
    assert catalogue.sample(SimpleNamespace(items=shop.items, histories=None), artefacts).histories is None
