"""How the items of a catalogue became semantic IDs, so that later items can get theirs: texts, encoder, codebooks."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch

from semid_lib.ids import embed
from semid_lib.ids.quantize import ResidualQuantizer
from semid_lib.ids.rqvae import RQVAE, _Network
from semid_lib.ids.semantic_ids import SemanticIDs
from semid_lib.workbench.store import Store
from semid_lib.workbench.text import shown
from semid_lib.workbench.weights import load_weights, save_weights

_NETWORK, _OURS = "network.", "the catalogue"
_SAMPLE, _EQUAL = 8, 0.999  # known items that are encoded again, and the cosine that their vectors must have


def of_artefacts(artefacts: Store, max_characters: int) -> "ItemTokenizer | None":
    """The tokenizer that chapters 01 and 02 made the semantic IDs with, by residual k-means.

    max_characters: of the texts, `scale.Scale.text_characters`. None if these chapters were not run.
    """
    if not artefacts.has("semantic_ids") or not artefacts.has("embeddings"):
        return None
    saved, encoder = artefacts.load("semantic_ids"), artefacts.load("embeddings").facts["embedder"]
    kmeans = ResidualQuantizer(np.asarray(saved["kmeans_codes"]), np.asarray(saved["codebooks"]))
    return ItemTokenizer(kmeans, len(kmeans.codes), encoder, max_characters)


class ItemTokenizer(NamedTuple):
    """What makes semantic IDs of items: their texts are encoded, the vectors get length 1 and are quantized.

    Examples
    --------
    >>> from semid_lib.ids.quantize import fit_residual_kmeans
    >>> quantizer = fit_residual_kmeans(np.array([[0.0, 1.0], [1.0, 0.0], [0.6, 0.8]]), n_levels=1, codebook_size=3)
    >>> ItemTokenizer(quantizer, n_fitted=3).facts()
    {'encoder': 'all-MiniLM-L6-v2', 'max_characters': 1000, 'n_fitted': 3}
    """

    quantizer: ResidualQuantizer  # or RQVAE
    n_fitted: int  # the codebooks were fitted to the first rows of the catalogue; later rows are new items
    encoder: str = embed.DEFAULT_MODEL  # of the texts, as `embed.embed` knows it
    max_characters: int = 1000  # of a text, see `embed.item_texts`

    def vectors(self, items: pd.DataFrame) -> np.ndarray:
        """Text vectors of items, of length 1: (n, dim) float32.

        Raises ValueError that names an item without text.
        """
        texts = embed.item_texts(items, self.max_characters)
        if "" in texts:
            item = shown(items["item_id"].tolist()[texts.index("")])
            raise ValueError(f"item {item} has no text, expected a title, a brand, categories or a description")
        return embed.normalize(embed.embed(texts, self.encoder))

    @property
    def dim(self) -> int:
        """Dimensions of the vectors."""
        quantizer = self.quantizer
        return len(quantizer.mean) if isinstance(quantizer, RQVAE) else quantizer.codebooks.shape[2]

    def check_encoder(self, items: pd.DataFrame, vectors: np.ndarray) -> None:
        """Encode some items of a catalogue again, and compare with the vectors that it has of them, (n_items, dim).

        Raises ValueError that names the first item whose vector differs: the encoder, its weights or the text settings
        are others than those of the catalogue.
        """
        texts = embed.item_texts(items, self.max_characters)
        rows = [row for row, text in enumerate(texts) if text]
        rows = rows[:: max(1, len(rows) // _SAMPLE)][:_SAMPLE]
        found = self.vectors(items.iloc[rows]) if rows else np.empty((0, vectors.shape[1]))
        if found.shape[1] != vectors.shape[1]:
            raise ValueError(f"{self.encoder} gives vectors of {found.shape[1]} dimensions, {_OURS} {vectors.shape[1]}")
        for row, one in zip(rows, found, strict=True):
            cosine = float(one @ embed.normalize(vectors[row][None])[0])
            if cosine < _EQUAL:
                item = shown(items["item_id"].tolist()[row])
                raise ValueError(f"{self.encoder} gives item {item} another vector (cosine {cosine:.3f}) than {_OURS}")

    def check_ids(self, ids: SemanticIDs) -> None:
        """Raise ValueError unless levels and codebook sizes are those of the IDs."""
        held, wanted = self.quantizer.codebooks.shape[:2], (ids.n_levels, ids.codebook_size)
        if held != wanted or not 0 <= self.n_fitted <= len(ids):
            have = f"codebooks are {held}, fitted to {self.n_fitted} items"
            raise ValueError(f"the {have}, expected {wanted} of at most {len(ids)} items, as in the IDs")

    def facts(self) -> dict[str, Any]:
        """What is no array, for a config."""
        return {"encoder": self.encoder, "max_characters": self.max_characters, "n_fitted": self.n_fitted}

    def save(self, path: str | Path) -> None:
        """Write the quantizer as one safetensors file: the codebooks, and mean, scale and weights of an RQ-VAE."""
        quantizer = self.quantizer
        tensors = {"codebooks": torch.from_numpy(np.ascontiguousarray(quantizer.codebooks, dtype=np.float32))}
        if isinstance(quantizer, RQVAE):
            tensors |= {"mean": torch.from_numpy(quantizer.mean), "scale": torch.tensor([float(quantizer.scale)])}
            weights = quantizer.network.state_dict()
            tensors |= {f"{_NETWORK}{name}": weight.contiguous().cpu() for name, weight in weights.items()}
        save_weights(path, tensors)

    @classmethod
    def load(cls, path: str | Path, facts: dict[str, Any]) -> "ItemTokenizer":
        """Read the file of `save` with what `facts` returned; ValueError names a file that is none of its kind."""
        found = load_weights(path)
        try:
            books = found.pop("codebooks")
            if books.ndim != 3 or books.dtype != torch.float32:
                raise ValueError(f"codebooks are {tuple(books.shape)} {books.dtype}, expected float32, 3-D")
            parts: tuple = (np.empty((0, len(books)), np.int64), books.numpy())
            quantizer: ResidualQuantizer = ResidualQuantizer(*parts)
            if found:
                mean, scale = found.pop("mean").numpy(), float(found.pop("scale").double().item())
                weights = {name.removeprefix(_NETWORK): weight for name, weight in found.items()}
                (latent, dim), hidden = weights["encoder.weight"].shape, len(weights["mlp.0.weight"])
                if mean.shape != (dim,) or books.shape[2] != latent:
                    raise ValueError(f"mean {mean.shape} and codebooks {tuple(books.shape)} do not fit the network")
                with torch.device("meta"):
                    network = _Network(dim, latent, hidden)
                network.load_state_dict(weights, assign=True)
                quantizer = RQVAE(parts[0], parts[1], mean, scale, network.eval(), [])
        except (KeyError, ValueError, TypeError, RuntimeError) as error:
            raise ValueError(f"{path} holds no quantizer: {' '.join(str(error).split())}") from error
        return cls(quantizer, facts["n_fitted"], facts["encoder"], facts["max_characters"])
