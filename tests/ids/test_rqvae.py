"""The RQ-VAE: it learns, uses its codes, equals residual encoding written out by hand, and what it must refuse."""

import dataclasses
import itertools

import numpy as np
import pytest
import torch

from semid_lib.ids import codebooks, quantize
from semid_lib.ids.rqvae import RQVAE, RQVAEConfig, fit_rqvae

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


def by_hand(latents, levels):
    """Codes by comparing every distance, and what is left over before the last level, in double precision."""
    residual, codes = latents.astype(np.float64), []
    for codebook in levels.astype(np.float64):
        before = residual
        distance = np.sum((residual[:, None] - codebook[None]) ** 2, axis=2)
        codes.append(distance.argmin(axis=1))
        residual = residual - codebook[codes[-1]]
    return np.column_stack(codes), before, distance


# --- what comes out ---


def test_shapes_and_types(model, vectors):
    assert (model.codes.shape, model.codes.dtype) == ((400, 2), np.int64)
    assert (model.codebooks.shape, model.codebooks.dtype) == ((2, 8, 6), np.float32)
    assert model.sizes == (8, 8)
    rebuilt = model.decode(model.codes)
    assert (rebuilt.shape, rebuilt.dtype) == (vectors.shape, np.float32)
    costs = model.last_level_costs(vectors)
    assert (costs.shape, costs.dtype) == ((400, 8), np.float32)


def test_latents_have_at_most_the_dimension_of_the_vectors(vectors):
    config = dataclasses.replace(TINY, latent_dim=256, n_epochs=1)
    assert fit_rqvae(vectors, config).codebooks.shape == (2, 8, 10)


def test_encoding_the_fitted_vectors_gives_their_codes_again(model, vectors):
    np.testing.assert_array_equal(model.encode(vectors), model.codes)
    np.testing.assert_array_equal(model.encode(vectors[17:18]), model.codes[17:18])
    assert model.encode(vectors[:0]).shape == (0, 2)


def test_codes_and_costs_equal_residual_encoding_by_hand(model, vectors):
    codes, _, costs = by_hand(model.latents(vectors), model.codebooks)
    np.testing.assert_array_equal(model.codes, codes)
    np.testing.assert_allclose(model.last_level_costs(vectors), costs, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(model.last_level_costs(vectors).argmin(axis=1), model.codes[:, -1])


def test_costs_of_a_single_level_are_those_of_the_latents(vectors):
    model = fit_rqvae(vectors, dataclasses.replace(TINY, n_levels=1, n_epochs=1))
    _, before, costs = by_hand(model.latents(vectors), model.codebooks)
    np.testing.assert_array_equal(before, model.latents(vectors))
    np.testing.assert_allclose(model.last_level_costs(vectors), costs, rtol=1e-4, atol=1e-4)


def test_the_decoder_by_hand(model):
    linear, first, _, second = model.network.linear, *model.network.mlp
    latents = torch.from_numpy(model.codebooks[0][model.codes[:, 0]] + model.codebooks[1][model.codes[:, 1]])
    with torch.no_grad():
        mlp = torch.nn.functional.gelu(latents @ first.weight.T + first.bias) @ second.weight.T + second.bias
        standardized = latents @ linear.weight.T + mlp
    expected = standardized.numpy() * model.scale + model.mean
    np.testing.assert_allclose(model.decode(model.codes), expected, rtol=1e-4, atol=1e-4)


def test_a_prefix_decodes_to_a_coarser_vector(model, vectors):
    mean = np.broadcast_to(vectors.mean(axis=0), vectors.shape)
    coarse, fine = model.decode(model.codes[:, :1]), model.decode(model.codes)
    distortions = [codebooks.distortion(vectors, each) for each in (mean, coarse, fine)]
    assert all(finer < 0.8 * coarser for coarser, finer in itertools.pairwise(distortions)), distortions
    assert len(np.unique(coarse.round(4), axis=0)) == len(np.unique(model.codes[:, 0]))  # a product of equal rows


# --- training ---


def test_the_loss_falls_and_the_history_tells_the_truth(model, vectors):
    history = model.history
    assert [epoch.epoch for epoch in history] == list(range(len(history)))
    assert np.isnan(history[0].loss)
    best = min(history, key=lambda epoch: epoch.distortion)
    assert best.distortion < 0.9 * history[0].distortion, "training did not improve on its start"
    assert codebooks.distortion(vectors, model.decode(model.codes)) == pytest.approx(best.distortion, rel=1e-4)
    np.testing.assert_allclose(codebooks.utilization(model.codes, 8), best.utilization)
    assert all(before.seconds <= after.seconds for before, after in itertools.pairwise(history))


def test_it_beats_residual_k_means_where_vectors_lie_on_a_curve(model, vectors):
    plain = quantize.fit_residual_kmeans(vectors, n_levels=2, codebook_size=8)
    of_plain = codebooks.distortion(vectors, quantize.decode(plain.codes, plain.codebooks))
    assert codebooks.distortion(vectors, model.decode(model.codes)) < 0.95 * of_plain


def test_all_codes_are_used(model):
    assert (codebooks.utilization(model.codes, 8) == 1).all()


def test_eight_clear_clusters_get_eight_codes():
    rng = np.random.default_rng(1)
    label = rng.integers(8, size=400)
    points = 10 * np.eye(8)[label] + 0.1 * rng.normal(size=(400, 8))
    model = fit_rqvae(points, dataclasses.replace(TINY, latent_dim=8, n_epochs=8))
    pairs = np.unique(np.column_stack([label, model.codes[:, 0]]), axis=0)
    assert len(pairs) == 8, "a code holds two clusters, or a cluster two codes"
    assert (codebooks.utilization(model.codes, 8) == 1).all()


def test_dead_codewords_come_back(vectors):
    """All codewords but one far away from any latent: the quantizer must fetch them back during training."""
    from semid_lib.ids.rqvae import _Trainer

    torch.manual_seed(0)
    standardized = torch.from_numpy((vectors - vectors.mean(axis=0)) / vectors.std())
    trainer = _Trainer(standardized, 1.0, dataclasses.replace(TINY, n_epochs=15), seed=0)
    for layer in trainer.quantizer.layers:
        layer._codebook.embed[0, 1:] = 1000.0
        layer._codebook.embed_avg[0, 1:] = 0.0
        layer._codebook.cluster_size[0, 1:] = 0.0
    assert trainer._look(0, 0.0).utilization == (1 / 8, 1 / 8)
    _, _, history = trainer.run(progress=False)
    assert history[-1].utilization == (1.0, 1.0)
    assert history[-1].loss < 0.5 * history[1].loss


def test_training_stops_when_nothing_improves(vectors):
    slow = dataclasses.replace(TINY, learning_rate=1e-12, decay=0.9999, n_epochs=50, patience=2)
    model = fit_rqvae(vectors, slow)
    assert len(model.history) - 1 <= 4


def test_the_same_seed_gives_the_same_codes_and_leaves_torch_alone(vectors):
    torch.manual_seed(123)
    before = torch.get_rng_state()
    short = dataclasses.replace(TINY, n_epochs=5)
    one, again, other = fit_rqvae(vectors, short), fit_rqvae(vectors, short), fit_rqvae(vectors, short, seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    np.testing.assert_array_equal(one.codes, again.codes)
    np.testing.assert_array_equal(one.codebooks, again.codebooks)
    np.testing.assert_array_equal(one.decode(one.codes), again.decode(one.codes))
    assert (other.codes != one.codes).any()


def test_progress_shows_loss_and_utilization(vectors, capsys):
    fit_rqvae(vectors, dataclasses.replace(TINY, n_epochs=1), progress=True)
    shown = capsys.readouterr().err
    assert "loss=" in shown and "utilization=1.00/1.00" in shown
    fit_rqvae(vectors, dataclasses.replace(TINY, n_epochs=1))
    assert capsys.readouterr() == ("", "")


# --- saving ---


def test_what_is_loaded_equals_what_was_saved(model, vectors, tmp_path):
    model.save(tmp_path / "rqvae.safetensors")
    loaded = RQVAE.load(tmp_path / "rqvae.safetensors")
    assert loaded.config == model.config
    np.testing.assert_array_equal(loaded.codes, model.codes)
    np.testing.assert_array_equal(loaded.encode(vectors), model.codes)
    np.testing.assert_array_equal(loaded.decode(model.codes), model.decode(model.codes))
    np.testing.assert_array_equal(loaded.last_level_costs(vectors), model.last_level_costs(vectors))
    assert loaded.history[1:] == model.history[1:]  # the loss of epoch 0 is nan, which equals nothing
    assert np.isnan(loaded.history[0].loss)


# --- bad input ---


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_vectors_that_are_not_finite_are_refused(model, vectors, bad):
    broken = vectors.copy()
    broken[3, 1] = bad
    for call in (lambda: fit_rqvae(broken, TINY), lambda: model.encode(broken), lambda: model.last_level_costs(broken)):
        with pytest.raises(ValueError, match="NaN or infinity or are longer than 1e15, the first is row 3"):
            call()


def test_fewer_vectors_than_codewords_leave_codes_unused(vectors):
    model = fit_rqvae(vectors[:3], TINY)
    assert model.codes.shape == (3, TINY.n_levels)
    assert len(np.unique(model.codes[:, 0])) == 3
    assert model.history[0].utilization[0] == 3 / TINY.codebook_size


@pytest.mark.parametrize("n", [0, 1, 20])
def test_vectors_that_are_all_the_same_are_refused(n):
    with pytest.raises(ValueError, match=f"{n} vectors, but fewer than 2 different ones"):
        fit_rqvae(np.ones((n, 4)), TINY)


def test_other_shapes_are_refused(model, vectors):
    with pytest.raises(ValueError, match="must be"):
        fit_rqvae(vectors[0], TINY)
    with pytest.raises(ValueError, match="9 dimensions, the RQ-VAE was fitted on 10"):
        model.encode(vectors[:, :9])
    for codes in (np.zeros((2, 3), int), np.zeros(2, int)):
        with pytest.raises(ValueError, match="codes must be"):
            model.decode(codes)
    for code in (-1, 8):
        with pytest.raises(ValueError, match="expected 0 to 7"):
            model.decode(np.array([[0, code]]))


@pytest.mark.parametrize(
    "setting",
    [{"n_levels": 0}, {"batch_size": 0}, {"n_init": 5}, {"learning_rate": 0.0}, {"decay": 1.0}, {"commitment": -1.0}],
)
def test_settings_out_of_range_are_refused(setting):
    with pytest.raises(ValueError, match=next(iter(setting))):
        dataclasses.replace(TINY, **setting)


def test_a_loss_that_explodes_is_an_error(vectors):
    with pytest.raises(ValueError, match="smaller learning_rate"):
        fit_rqvae(vectors, dataclasses.replace(TINY, learning_rate=1e30, n_epochs=4))
