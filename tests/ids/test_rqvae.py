"""The RQ-VAE: it learns, uses its codes, equals residual encoding written out by hand, and what it refuses."""

import dataclasses

import numpy as np
import pytest
import torch

from semid_lib.ids import codebooks, quantize, rqvae
from semid_lib.ids.rqvae import RQVAE, RQVAEConfig, _Training, fit_rqvae

TINY = RQVAEConfig(
    n_levels=2,
    codebook_size=8,
    latent_dim=6,
    hidden_dim=32,
    n_epochs=60,
    batch_size=64,
    learning_rate=1e-2,
    patience=20,
)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def vectors() -> np.ndarray:
    """400 points on a curved sheet in 10 dimensions: there is something for the decoder's MLP to learn."""
    rng = np.random.default_rng(0)
    flat = rng.normal(size=(400, 3))
    curved = np.hstack([flat, flat**2 - 1, np.sin(2 * flat)])
    return (curved @ rng.normal(size=(9, 10)) + 0.1 * rng.normal(size=(400, 10)) + 5).astype(np.float32)


@pytest.fixture(scope="module")
def model(vectors) -> RQVAE:
    return fit_rqvae(vectors, TINY)


def short(n_epochs: int = 1, **changes) -> RQVAEConfig:
    return dataclasses.replace(TINY, n_epochs=n_epochs, **changes)


def test_codes_and_costs_equal_residual_encoding_by_hand(model, vectors):
    residual, codes = model.latents(vectors).astype(np.float64), []
    for codebook in model.codebooks.astype(np.float64):
        costs = np.sum((residual[:, None] - codebook[None]) ** 2, axis=2)
        codes.append(costs.argmin(axis=1))
        residual = residual - codebook[codes[-1]]
    np.testing.assert_array_equal(model.codes, np.column_stack(codes))
    np.testing.assert_array_equal(model.encode(vectors), model.codes)
    np.testing.assert_array_equal(model.encode(vectors[17:18]), model.codes[17:18])
    np.testing.assert_allclose(model.last_level_costs(vectors, model.codes), costs, rtol=1e-4, atol=1e-4)
    assert (model.sizes, model.codes.dtype, model.codebooks.shape) == ((8, 8), np.int64, (2, 8, 6))


def test_each_code_brings_the_reconstruction_nearer(model, vectors):
    coarse, fine = model.decode(model.codes[:, :1]), model.decode(model.codes)
    mean, one, two = (codebooks.distortion(vectors, each) for each in (vectors.mean(axis=0), coarse, fine))
    assert mean * 0.8 > one and one * 0.8 > two
    plain = quantize.fit_residual_kmeans(vectors, n_levels=2, codebook_size=8)
    assert two < 0.95 * codebooks.distortion(vectors, plain.decode(plain.codes))  # the vectors lie on a curve
    assert fit_rqvae(vectors, short(latent_dim=256)).codebooks.shape == (2, 8, 10)


def test_the_history_tells_the_truth(model, vectors):
    history = model.history
    assert [epoch.epoch for epoch in history] == list(range(len(history)))
    assert np.isnan(history[0].loss)
    best = min(history, key=lambda epoch: epoch.distortion)
    assert best.distortion < 0.9 * history[0].distortion, "training did not improve on its start"
    assert codebooks.distortion(vectors, model.decode(model.codes)) == pytest.approx(best.distortion, rel=1e-4)
    np.testing.assert_allclose(codebooks.utilization(model.codes, 8), best.utilization)
    assert best.utilization == (1, 1)


def test_dead_codewords_come_back(vectors):
    """All codewords but one far away from any latent: the quantizer must fetch them back during training."""
    torch.manual_seed(0)
    run = _Training(torch.from_numpy((vectors - vectors.mean(axis=0)) / vectors.std()), 1.0, short(15), seed=0)
    for layer in run.quantizer.layers:
        layer._codebook.embed[0, 1:] = 1000.0
        layer._codebook.embed_avg[0, 1:] = 0.0
        layer._codebook.cluster_size[0, 1:] = 0.0
    assert run.state(0, 0.0).utilization == (1 / 8, 1 / 8)
    losses = [run.epoch() for _ in range(15)]
    assert run.state(15, losses[-1]).utilization == (1.0, 1.0)
    assert losses[-1] < 0.5 * losses[0]


def test_training_stops_when_nothing_improves(vectors, monkeypatch):
    monkeypatch.setattr(rqvae, "_DECAY", 0.9999)
    assert len(fit_rqvae(vectors, short(50, learning_rate=1e-12, patience=2)).history) - 1 <= 4


def test_the_same_seed_gives_the_same_codes_and_leaves_torch_alone(vectors):
    torch.manual_seed(123)
    before = torch.get_rng_state()
    one, again, other = (fit_rqvae(vectors, short(3), seed) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    np.testing.assert_array_equal(one.codes, again.codes)
    np.testing.assert_array_equal(one.decode(one.codes), again.decode(one.codes))
    assert (other.codes != one.codes).any()


def test_fewer_vectors_than_codewords_leave_codes_unused(vectors):
    model = fit_rqvae(vectors[:3], short(2))
    assert len(np.unique(model.codes[:, 0])) == 3
    assert model.history[0].utilization[0] == 3 / 8


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda model, vectors: fit_rqvae(np.ones((20, 4)), TINY), "20 vectors, but fewer than 2 different ones"),
        (lambda model, vectors: fit_rqvae(vectors[0], TINY), "must be"),
        (lambda model, vectors: fit_rqvae(vectors * np.inf, TINY), "NaN or infinity .* the first is row 0"),
        (lambda model, vectors: fit_rqvae(vectors, short(4, learning_rate=1e30)), "smaller learning_rate"),
        (lambda model, vectors: model.encode(vectors * np.nan), "the first is row 0"),
        (lambda model, vectors: model.encode(vectors[:, :9]), "9 dimensions, the RQ-VAE was fitted on 10"),
        (lambda model, vectors: model.decode(np.zeros((2, 3), int)), "codes must be"),
        (lambda model, vectors: model.decode(np.array([[0, 8]])), "expected 0 to 7"),
    ],
)
def test_what_does_not_fit_is_refused(model, vectors, call, message):
    with np.errstate(invalid="ignore"), pytest.raises(ValueError, match=message):
        call(model, vectors)


@pytest.mark.parametrize(
    "setting",
    [{"n_levels": 0}, {"codebook_size": 1}, {"learning_rate": 0.0}],
)
def test_settings_out_of_range_are_refused(setting):
    with pytest.raises(ValueError, match=next(iter(setting))):
        dataclasses.replace(TINY, **setting)
