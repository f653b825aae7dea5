"""The RQ-VAE: residual quantization between a learned encoder and decoder, and its training.

Vectors become latents, latents become a code per level (van den Oord et al. 2017; Zeghidour et al. 2021, Algorithm 1),
and the decoder rebuilds the vector from the sum of the codewords, as in TIGER (Rajput et al. 2023, section 3.1).
Both maps start as the principal axes of the vectors, and the codebooks as residual k-means of the latents: training
sets out from about where `quantize.fit_residual_kmeans` ends. That, and re-seeding codewords that fall out of use,
keeps the codebooks from collapsing.
"""

import copy
import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np
import torch
from safetensors import safe_open
from torch import nn
from tqdm.auto import tqdm

from semid_lib.ids import quantize
from semid_lib.workbench.training import seeded, warmup_then_cosine
from semid_lib.workbench.weights import save_weights

_WARMUP_SHARE = 0.1  # of all steps


@dataclass(frozen=True)
class RQVAEConfig:
    """The shape of an RQ-VAE and its training; the defaults are the recipe of chapter 02."""

    n_levels: int = 3
    codebook_size: int = 256
    latent_dim: int = 256  # at most the dimension of the vectors, which is used where it is smaller
    hidden_dim: int = 1024  # of the decoder's MLP
    n_epochs: int = 20  # more fit the fitted vectors better, and further ones no better or worse
    batch_size: int = 1024
    learning_rate: float = 3e-3  # at its peak: a tenth of the steps up, then down along a cosine
    commitment: float = 0.25  # weight of the squared distance from latents to codewords (van den Oord 2017, eq. 3)
    decay: float = 0.95  # of the moving averages, per step, that the codewords are
    dead_share: float = 0.05  # a codeword used less than this share of the mean use is re-seeded with a residual
    n_init: int = 20_000  # vectors, drawn at random, that k-means starts the codebooks on
    patience: int = 10  # epochs without a distortion lower by a thousandth before training stops

    def __post_init__(self):
        for name in ("n_levels", "latent_dim", "hidden_dim", "n_epochs", "batch_size", "patience"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.n_init < self.codebook_size:
            raise ValueError(f"n_init must be at least codebook_size = {self.codebook_size}, got {self.n_init}")
        if not (self.learning_rate > 0 and self.commitment >= 0 and 0 < self.decay < 1 and 0 <= self.dead_share < 1):
            raise ValueError(f"learning_rate, commitment, decay or dead_share out of range in {self}")


class RQVAEEpoch(NamedTuple):
    """What one epoch did; epoch 0 is the start, before any step, with a loss of `nan`."""

    epoch: int
    loss: float  # reconstruction + commitment, per vector, standardized; it may rise while the distortion falls
    distortion: float  # of all fitted vectors in their own space, as `codebooks.distortion`
    utilization: tuple[float, ...]  # share of the codes in use, per level
    seconds: float  # since the start, k-means included


class _Network(nn.Module):
    """Encoder and decoder between standardized vectors and latents.

    The encoder is linear: an MLP beside it changed the distortion by less than 1%. The decoder is linear plus an MLP,
    which starts at zero.
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
        """Project onto the principal axes and back; vectors: standardized, (n, dim)."""
        axes = torch.linalg.eigh(vectors.T @ vectors).eigenvectors.flip(1)[:, : self.encoder.out_features]
        self.encoder.weight.copy_(axes.T)
        self.linear.weight.copy_(axes)
        nn.init.zeros_(self.mlp[2].weight)
        nn.init.zeros_(self.mlp[2].bias)


@dataclass(frozen=True, eq=False)
class RQVAE:
    """A trained RQ-VAE: codes of the fitted vectors, and what encodes and decodes further ones."""

    config: RQVAEConfig
    codes: np.ndarray  # (n, n_levels) int64, of the fitted vectors
    codebooks: np.ndarray  # (n_levels, codebook_size, latent_dim) float32
    mean: np.ndarray  # (dim,) float32; a vector is standardized by (vector - mean) / scale
    scale: float  # one number for all dimensions, so that distances keep their meaning
    network: _Network
    history: list[RQVAEEpoch] = field(default_factory=list)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Number of codes of each level."""
        return self._quantizer.sizes

    def latents(self, vectors: np.ndarray) -> np.ndarray:
        """What the encoder makes of vectors: (m, dim) -> (m, latent_dim) float32.

        Raises ValueError if the dimensions differ or a vector is not finite.
        """
        vectors = quantize.finite_vectors(vectors)
        if vectors.shape[1] != len(self.mean):
            raise ValueError(f"vectors have {vectors.shape[1]} dimensions, the RQ-VAE was fitted on {len(self.mean)}")
        return _apply(self.network.encoder, (vectors - self.mean) / np.float32(self.scale))

    def encode(self, vectors: np.ndarray) -> np.ndarray:
        """Codes of any vectors, greedily level by level: (m, dim) -> (m, n_levels) int64. Raises as `latents`."""
        return self._quantizer.encode(self.latents(vectors))

    def decode(self, codes: np.ndarray) -> np.ndarray:
        """The vectors that codes stand for, in the space of the fitted ones: (m, k <= n_levels) -> (m, dim) float32.

        Fewer columns than levels give the coarser vector of a prefix.
        Raises ValueError for more columns, and for codes outside 0 .. codebook_size - 1.
        """
        rebuilt = _apply(self.network.decoder, self._quantizer.decode(codes))
        return rebuilt * np.float32(self.scale) + self.mean

    def last_level_costs(self, vectors: np.ndarray, codes: np.ndarray | None = None) -> np.ndarray:
        """What each codeword of the last level would cost: (m, dim) -> (m, codebook_size) float32, >= 0.

        The squared distance, among latents, from what the levels before the last leave over to each last codeword.
        codes: (m, n_levels - 1 or more), whose prefixes count; by default `encode(vectors)`. Raises as `latents`.
        """
        return self._quantizer.last_level_costs(self.latents(vectors), codes)

    @property
    def _quantizer(self) -> quantize.ResidualQuantizer:
        """Of latents."""
        return quantize.ResidualQuantizer(self.codes, self.codebooks)

    def arrays(self) -> dict[str, np.ndarray]:
        """All that `from_arrays` needs besides the config, by name: to keep with `store.Store.save`."""
        weights = {f"network.{name}": weight.numpy() for name, weight in self.network.state_dict().items()}
        scale = np.float64(self.scale).reshape(1)
        return {"codes": self.codes, "codebooks": self.codebooks, "mean": self.mean, "scale": scale, **weights}

    @classmethod
    def from_arrays(cls, arrays: dict[str, np.ndarray], config: RQVAEConfig, history=()) -> Self:
        """The RQ-VAE of `arrays()`."""
        with torch.device("meta"):  # without drawing weights that are replaced at once
            network = _Network(len(arrays["mean"]), arrays["codebooks"].shape[2], config.hidden_dim)
        weights = {name: torch.from_numpy(np.array(arrays[f"network.{name}"])) for name in network.state_dict()}
        network.load_state_dict(weights, assign=True)
        own = {name: arrays[name] for name in ("codes", "codebooks", "mean")}
        return cls(config, **own, scale=float(arrays["scale"][0]), network=network.eval(), history=list(history))

    def save(self, path: str | Path) -> None:
        """Write one safetensors file with the config and the history in its header; no pickle."""
        facts = {"config": json.dumps(asdict(self.config)), "history": json.dumps(self.history)}
        save_weights(path, {name: np.array(array, order="C") for name, array in self.arrays().items()}, facts)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read what `save` wrote; encoding and decoding need no training package."""
        with safe_open(path, framework="numpy") as saved:
            facts = saved.metadata()
            arrays = {name: saved.get_tensor(name) for name in saved.keys()}  # noqa: SIM118  (it is no dict)
        history = [
            RQVAEEpoch(epoch, loss, distortion, tuple(used), seconds)
            for epoch, loss, distortion, used, seconds in json.loads(facts["history"])
        ]
        return cls.from_arrays(arrays, RQVAEConfig(**json.loads(facts["config"])), history)


def fit_rqvae(vectors: np.ndarray, config: RQVAEConfig | None = None, seed: int = 0, progress: bool = False) -> RQVAE:
    """Train an RQ-VAE and keep the epoch with the lowest distortion, the start included.

    vectors: (n, dim) float, finite, at least two distinct ones. The loss is the squared error of the
    reconstruction, summed over dimensions, + commitment x the squared distance of latents to their codewords, summed
    over dimensions and levels. The gradient passes straight through the quantizer to the encoder; the codewords are
    moving averages of the latents that choose them. The rotation trick (Fifty et al. 2025), on by default in
    `vector_quantize_pytorch`, made the reconstruction worse. The same seed gives the same result on one machine at
    one thread count; the random state of torch outside is left alone.
    Raises ValueError for vectors that are not finite, not 2-D or all the same, and when the loss stops being finite.

    >>> vectors = np.random.default_rng(0).normal(size=(200, 6))
    >>> model = fit_rqvae(vectors, RQVAEConfig(n_levels=2, codebook_size=8, hidden_dim=16, n_epochs=2))
    >>> model.codes.shape, model.codebooks.shape, model.decode(model.codes[:, :1]).shape
    ((200, 2), (2, 8, 6), (200, 6))
    """
    config = config or RQVAEConfig()
    vectors = quantize.finite_vectors(vectors)
    quantize.check_distinct(vectors)
    mean = vectors.mean(axis=0)
    scale = float((vectors - mean).std())
    with seeded(seed):
        trainer = _Trainer(torch.from_numpy((vectors - mean) / np.float32(scale)), scale, config, seed)
        network, codebooks, history = trainer.run(progress)
    fitted = RQVAE(config, np.empty((0, config.n_levels), np.int64), codebooks, mean, scale, network, history)
    return replace(fitted, codes=fitted.encode(vectors))


class _Trainer:
    """The state of one training run: network, quantizer, optimizer, and the best epoch so far."""

    def __init__(self, vectors: torch.Tensor, scale: float, config: RQVAEConfig, seed: int):
        self.started = time.perf_counter()
        self.vectors, self.scale, self.config = vectors, scale, config  # (n, dim) standardized
        self.batch_size = min(config.batch_size, len(vectors))
        self.n_batches = len(vectors) // self.batch_size
        self.network = _Network(vectors.shape[1], min(config.latent_dim, vectors.shape[1]), config.hidden_dim)
        self.network.start(vectors)
        self.quantizer = self._started_quantizer(seed)
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=config.learning_rate)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, warmup_then_cosine(config.n_epochs * self.n_batches, _WARMUP_SHARE)
        )

    def _started_quantizer(self, seed: int) -> nn.Module:
        """The residual quantizer, its codewords at the k-means centres of the latents of a large sample."""
        from vector_quantize_pytorch import ResidualVQ  # only training needs it

        config = self.config
        mean_use = self.batch_size / config.codebook_size  # of a codeword, in vectors a step
        quantizer = ResidualVQ(
            dim=self.network.encoder.out_features,
            num_quantizers=config.n_levels,
            codebook_size=config.codebook_size,
            decay=config.decay,
            threshold_ema_dead_code=config.dead_share * mean_use,
            rotation_trick=False,
        )
        sample = self.vectors[torch.randperm(len(self.vectors))[: config.n_init]]
        start = quantize.fit_residual_kmeans(
            _apply(self.network.encoder, sample.numpy()), config.n_levels, config.codebook_size, seed=seed
        )
        for layer, codes, codebook in zip(quantizer.layers, start.codes.T, start.codebooks, strict=True):
            use = torch.from_numpy(np.bincount(codes, minlength=config.codebook_size) * self.batch_size / len(codes))
            averages = layer._codebook  # the library's own k-means starts from random vectors, at the first batch only
            averages.embed.copy_(torch.from_numpy(codebook))
            averages.cluster_size.copy_(use)
            averages.embed_avg.copy_(averages.embed * averages.cluster_size[..., None])
        return quantizer

    def run(self, progress: bool) -> tuple[_Network, np.ndarray, list[RQVAEEpoch]]:
        """Train until the epochs or the patience are used up; the best weights, their codebooks, and the history."""
        history = [self._look(0, math.nan)]
        best = self._snapshot()
        with tqdm(total=self.config.n_epochs, desc="RQ-VAE", unit="epoch", disable=not progress) as bar:
            for epoch in range(1, self.config.n_epochs + 1):
                now = self._look(epoch, self._epoch())
                if now.distortion < min(past.distortion for past in history):
                    best = self._snapshot()
                history.append(now)
                used = "/".join(f"{share:.2f}" for share in now.utilization)
                bar.set_postfix(loss=f"{now.loss:.2f}", distortion=f"{now.distortion:.4f}", utilization=used)
                bar.update()
                if _stalled(history, self.config.patience):
                    break
        self.network.load_state_dict(best[0])
        return self.network.eval(), best[1], history

    def _epoch(self) -> float:
        """One pass in random order; what does not fill a batch is left out. Returns the mean loss."""
        order = torch.randperm(len(self.vectors))[: self.n_batches * self.batch_size]
        losses = [self._step(self.vectors[rows]) for rows in order.view(self.n_batches, self.batch_size)]
        mean = float(torch.stack(losses).mean())
        if not math.isfinite(mean):
            raise ValueError(f"the loss became {mean}; try a smaller learning_rate than {self.config.learning_rate}")
        return mean

    def _step(self, batch: torch.Tensor) -> torch.Tensor:
        latents = self.network.encoder(batch)
        quantized, _, distances = self.quantizer(latents)  # distances: (n_levels,), means over vectors and dimensions
        reconstruction = (self.network.decoder(quantized) - batch).square().sum(dim=1).mean()
        loss = reconstruction + self.config.commitment * latents.shape[1] * distances.sum()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        self.schedule.step()
        return loss.detach()

    def _look(self, epoch: int, loss: float) -> RQVAEEpoch:
        """Distortion and utilization on all vectors, as they would be if training ended here."""
        size, codebooks = self.config.codebook_size, self._codebooks()
        codes = quantize.encode(_apply(self.network.encoder, self.vectors.numpy()), codebooks)
        error = _apply(self.network.decoder, quantize.decode(codes, codebooks)) - self.vectors.numpy()
        distortion = float(np.mean(np.sum(error**2, axis=1, dtype=np.float64))) * self.scale**2
        used = tuple(len(np.unique(level)) / size for level in codes.T)
        return RQVAEEpoch(epoch, loss, distortion, used, time.perf_counter() - self.started)

    def _codebooks(self) -> np.ndarray:
        return self.quantizer.codebooks.numpy().copy()

    def _snapshot(self) -> tuple[dict[str, torch.Tensor], np.ndarray]:
        return copy.deepcopy(self.network.state_dict()), self._codebooks()


def _stalled(history: list[RQVAEEpoch], patience: int) -> bool:
    distortions = [epoch.distortion for epoch in history]
    return len(distortions) > patience and min(distortions[-patience:]) > 0.999 * min(distortions[:-patience])


@torch.no_grad()
def _apply(function: Callable[[torch.Tensor], torch.Tensor], array: np.ndarray, block: int = 8192) -> np.ndarray:
    """A part of the network on an array, `block` rows at a time."""
    blocks = torch.from_numpy(np.asarray(array, dtype=np.float32)).split(block)
    return torch.cat([function(rows) for rows in blocks]).numpy()
