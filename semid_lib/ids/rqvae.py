"""The RQ-VAE: residual quantization between a trained encoder and decoder.

Vectors become latents, latents a code per level (van den Oord et al. 2017; Zeghidour et al. 2021, Algorithm 1), and the
decoder reconstructs the vector from the sum of the codewords, as in TIGER (Rajput et al. 2023, section 3.1). Training
starts near the result of `quantize.fit_residual_kmeans`: encoder and decoder from the principal axes of the vectors,
codebooks from residual k-means of the latents. This start, and replacing codewords that fall out of use, keeps the
codebooks from collapsing.
"""

import copy
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn
from tqdm.auto import tqdm

from semid_lib.ids import quantize
from semid_lib.workbench.weights import check_config

_WARMUP_SHARE = 0.1  # of all steps
_COMMITMENT = 0.25  # weight of the squared distance from latents to codewords (van den Oord 2017, eq. 3)
_DECAY = 0.95  # per step, of the moving averages that give the codewords
_DEAD_SHARE = 0.05  # a codeword used less than this share of the mean use is replaced by a residual
_SAMPLE = 20_000  # random vectors for the k-means start of the codebooks


@dataclass(frozen=True)
class RQVAEConfig:
    """Architecture and training of an RQ-VAE; the defaults are the recipe of chapter 02."""

    n_levels: int = 3
    codebook_size: int = 256
    latent_dim: int = 256  # at most; the dimension of the vectors if that is smaller
    hidden_dim: int = 1024  # of the decoder's MLP
    n_epochs: int = 20  # at most; more improve the fitted vectors alone
    batch_size: int = 1024
    learning_rate: float = 3e-3  # peak: linear warm-up over a tenth of the steps, then cosine decay
    patience: int = 10  # training stops after so many epochs without a distortion lower by a thousandth

    def __post_init__(self):
        check_config(self, {"learning_rate": 1e-15, "codebook_size": 2})


class RQVAEEpoch(NamedTuple):
    """State after an epoch; epoch 0 is the start, with a loss of nan."""

    epoch: int
    loss: float  # reconstruction + commitment, per standardized vector; it may rise while the distortion falls
    distortion: float  # of all fitted vectors, as `codebooks.distortion`
    utilization: tuple[float, ...]  # share of the codes in use, per level
    seconds: float  # since the start, k-means included


class _Network(nn.Module):
    """Linear encoder and a decoder that is linear plus an MLP, which starts at zero, of standardized vectors.

    An MLP in the encoder changed the distortion by less than 1%.
    """

    def __init__(self, dim: int, latent_dim: int, hidden_dim: int):
        super().__init__()
        self.encoder = nn.Linear(dim, latent_dim, bias=False)
        self.linear = nn.Linear(latent_dim, dim, bias=False)
        self.mlp = nn.Sequential(nn.Linear(latent_dim, hidden_dim), nn.GELU(), nn.Linear(hidden_dim, dim))

    def decoder(self, latents: torch.Tensor) -> torch.Tensor:
        return self.linear(latents) + self.mlp(latents)

    @torch.no_grad()
    def start(self, vectors: torch.Tensor) -> None:
        """Set the weights to project (n, dim) standardized vectors onto their principal axes and back."""
        axes = torch.linalg.eigh(vectors.T @ vectors).eigenvectors.flip(1)[:, : self.encoder.out_features]
        self.encoder.weight.copy_(axes.T)
        self.linear.weight.copy_(axes)
        for parameter in self.mlp[2].parameters():
            nn.init.zeros_(parameter)


@dataclass(frozen=True, eq=False)
class RQVAE(quantize.ResidualQuantizer):
    """A trained RQ-VAE: a residual quantizer of latents. A vector is standardized by (vector - mean) / scale.

    Attributes
    ----------
    codes : (n, n_levels) int64 array
        Of the fitted vectors.
    codebooks : (n_levels, codebook_size, latent_dim) float32 array
    mean : (dim,) float32 array
    scale : float
    network : torch.nn.Module
    history : list of RQVAEEpoch
    """

    mean: np.ndarray
    scale: float
    network: _Network
    history: list[RQVAEEpoch]

    def latents(self, vectors: np.ndarray) -> np.ndarray:
        """Encoder output: (m, dim) -> (m, latent_dim) float32.

        Raises ValueError if the dimensions differ or a vector is not finite.
        """
        vectors = quantize.finite_vectors(vectors)
        if vectors.shape[1] != len(self.mean):
            raise ValueError(f"vectors have {vectors.shape[1]} dimensions, the RQ-VAE was fitted on {len(self.mean)}")
        return _apply(self.network.encoder, (vectors - self.mean) / np.float32(self.scale))

    def encode(self, vectors: np.ndarray, beam_width: int = 1) -> np.ndarray:
        """Codes of the latents: (m, dim) -> (m, n_levels) int64. Raises as `latents`."""
        return super().encode(self.latents(vectors), beam_width)

    def decode(self, codes: np.ndarray) -> np.ndarray:
        """Reconstructed vectors: (m, k <= n_levels) -> (m, dim) float32; fewer columns give the vector of a prefix."""
        return _apply(self.network.decoder, super().decode(codes)) * np.float32(self.scale) + self.mean

    def last_level_costs(self, vectors: np.ndarray, codes: np.ndarray) -> np.ndarray:
        """`ResidualQuantizer.last_level_costs` of the latents: (m, dim) -> (m, codebook_size) float32."""
        return super().last_level_costs(self.latents(vectors), codes)


def fit_rqvae(vectors: np.ndarray, config: RQVAEConfig | None = None, seed: int = 0, progress: bool = False) -> RQVAE:
    """Train an RQ-VAE and keep the epoch with the lowest distortion, including the start.

    The loss is the squared error of the reconstruction, summed over dimensions, plus commitment x the squared distance
    of latents to their codewords, summed over dimensions and levels. The gradient passes straight through the
    quantizer to the encoder; codewords are moving averages of the latents that choose them. (The rotation trick of
    Fifty et al. 2025 made the reconstruction worse.) The same seed gives the same result on one machine with the same
    number of threads; torch's global random state does not change.

    Parameters
    ----------
    vectors : (n, dim) float array
        Finite, at least two distinct ones.

    Raises
    ------
    ValueError
        If the vectors are not finite, not 2-D or all equal, or the loss is no longer finite.

    Examples
    --------
    >>> vectors = np.random.default_rng(0).normal(size=(200, 6))
    >>> model = fit_rqvae(vectors, RQVAEConfig(n_levels=2, codebook_size=8, hidden_dim=16, n_epochs=2))
    >>> model.codes.shape, model.codebooks.shape, model.decode(model.codes[:, :1]).shape
    ((200, 2), (2, 8, 6), (200, 6))
    """
    from semid_lib.workbench.training import seeded  # slow to import

    config = config or RQVAEConfig()
    vectors = quantize.finite_vectors(vectors)
    quantize.check_distinct(vectors)
    mean = vectors.mean(axis=0)
    scale = float((vectors - mean).std())

    with seeded(seed), tqdm(total=config.n_epochs, desc="RQ-VAE", unit="epoch", disable=not progress) as bar:
        run = _Training(torch.from_numpy((vectors - mean) / np.float32(scale)), scale, config, seed)
        history = [run.state(0, math.nan)]
        network, codebooks = run.snapshot()
        while len(history) <= config.n_epochs and not _stalled(history, config.patience):
            now = run.state(len(history), run.epoch())
            if now.distortion < min(past.distortion for past in history):
                network, codebooks = run.snapshot()
            history.append(now)
            bar.set_postfix(loss=f"{now.loss:.2f}", distortion=f"{now.distortion:.4f}")
            bar.update()
    fitted = RQVAE(np.empty((0, config.n_levels), np.int64), codebooks, mean, scale, network, history)
    return replace(fitted, codes=fitted.encode(vectors))


class _Training:
    """Network, quantizer and optimizer of one run."""

    def __init__(self, vectors: torch.Tensor, scale: float, config: RQVAEConfig, seed: int):
        from semid_lib.workbench.training import warmup_then_cosine  # slow to import

        self.started = time.perf_counter()
        self.vectors, self.scale, self.config = vectors, scale, config  # (n, dim) standardized
        self.batch_size = min(config.batch_size, len(vectors))
        self.n_batches = len(vectors) // self.batch_size
        self.network = _Network(vectors.shape[1], min(config.latent_dim, vectors.shape[1]), config.hidden_dim)
        self.network.start(vectors)
        self.quantizer: Any = self._started_quantizer(seed)
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=config.learning_rate)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, warmup_then_cosine(config.n_epochs * self.n_batches, _WARMUP_SHARE)
        )

    def _started_quantizer(self, seed: int) -> nn.Module:
        """A residual quantizer that starts from k-means of the latents of a random sample."""
        from vector_quantize_pytorch import ResidualVQ  # only training needs it

        n_levels, size = self.config.n_levels, self.config.codebook_size
        quantizer = ResidualVQ(
            dim=self.network.encoder.out_features,
            num_quantizers=n_levels,
            codebook_size=size,
            decay=_DECAY,
            threshold_ema_dead_code=_DEAD_SHARE * (self.batch_size / size),  # vectors a step
            rotation_trick=False,
        )
        sample = self.vectors[torch.randperm(len(self.vectors))[:_SAMPLE]].numpy()
        start = quantize.fit_residual_kmeans(_apply(self.network.encoder, sample), n_levels, size, seed=seed)
        for layer, codes, codebook in zip(quantizer.layers, start.codes.T, start.codebooks, strict=True):
            averages = layer._codebook  # the library's own k-means starts from random vectors, at the first batch only
            averages.embed.copy_(torch.from_numpy(codebook))
            use = np.bincount(codes, minlength=size) * self.batch_size / len(codes)
            averages.cluster_size.copy_(torch.from_numpy(use))
            averages.embed_avg.copy_(averages.embed * averages.cluster_size[..., None])
        return quantizer

    def epoch(self) -> float:
        """Train on all full batches in random order. Returns the mean loss."""
        order = torch.randperm(len(self.vectors))[: self.n_batches * self.batch_size]
        losses = []
        for rows in order.view(self.n_batches, self.batch_size):
            batch = self.vectors[rows]
            latents = self.network.encoder(batch)
            quantized, _, distances = self.quantizer(latents)  # (n_levels,) means over vectors and dimensions
            reconstruction = (self.network.decoder(quantized) - batch).square().sum(dim=1).mean()
            loss = reconstruction + _COMMITMENT * latents.shape[1] * distances.sum()
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            self.optimizer.step()
            self.schedule.step()
            losses.append(loss.detach())
        mean = float(torch.stack(losses).mean())
        if not math.isfinite(mean):
            raise ValueError(f"the loss became {mean}; try a smaller learning_rate than {self.config.learning_rate}")
        return mean

    def state(self, epoch: int, loss: float) -> RQVAEEpoch:
        """Distortion and utilization on all vectors with the current weights."""
        codebooks = self.quantizer.codebooks.numpy()
        codes = quantize.encode(_apply(self.network.encoder, self.vectors.numpy()), codebooks)
        error = _apply(self.network.decoder, quantize.decode(codes, codebooks)) - self.vectors.numpy()
        distortion = float(np.mean(np.sum(error**2, axis=1, dtype=np.float64))) * self.scale**2
        used = tuple(len(np.unique(level)) / self.config.codebook_size for level in codes.T)
        return RQVAEEpoch(epoch, loss, distortion, used, time.perf_counter() - self.started)

    def snapshot(self) -> tuple[_Network, np.ndarray]:
        return copy.deepcopy(self.network).eval(), self.quantizer.codebooks.numpy().copy()


def _stalled(history: list[RQVAEEpoch], patience: int) -> bool:
    distortions = [epoch.distortion for epoch in history]
    return len(distortions) > patience and min(distortions[-patience:]) > 0.999 * min(distortions[:-patience])


@torch.no_grad()
def _apply(function: Callable[[torch.Tensor], torch.Tensor], array: np.ndarray, block: int = 8192) -> np.ndarray:
    """A part of the network on an array, `block` rows at a time."""
    blocks = torch.from_numpy(np.asarray(array, dtype=np.float32)).split(block)
    return torch.cat([function(rows) for rows in blocks]).numpy()
