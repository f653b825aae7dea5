"""A BERT sentence encoder with mean pooling in plain torch: what a query needs, without the imports of transformers.

`import sentence_transformers` takes longer than all the rest of a search service's start. The vectors are those of
sentence-transformers up to rounding; `read` is None for encoders of another kind, which that library loads.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

_BATCH = 64
_POOLING = {"pooling_mode_mean_tokens"}
_LAYER = "encoder.layer.{}."


def read(folder: str | Path) -> "SentenceBert | None":
    """Load an encoder from a folder of sentence-transformers, if it is BERT with mean pooling.

    Raises
    ------
    ValueError
        Naming the file if its weights do not fit its config.
    """
    folder = Path(folder)
    try:
        modules = [(one["type"].rsplit(".", 1)[-1], one["path"]) for one in _json(folder / "modules.json")]
        config, limits = _json(folder / "config.json"), _json(folder / "sentence_bert_config.json")
        pooling = _json(folder / dict(modules)["Pooling"] / "config.json")
        more = folder / "config_sentence_transformers.json"
        prompt = _json(more).get("default_prompt_name") if more.is_file() else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    is_known = (
        [name for name, _ in modules if name != "Normalize"] == ["Transformer", "Pooling"]
        and modules[0] == ("Transformer", "")
        and config.get("architectures") == ["BertModel"]
        and config.get("hidden_act") == "gelu"
        and config.get("position_embedding_type", "absolute") == "absolute"
        and {name for name, on in pooling.items() if name.startswith("pooling_mode_") and on} == _POOLING
        and isinstance(limits.get("max_seq_length"), int)
        and not limits.get("do_lower_case")
        and prompt is None
        and all((folder / name).is_file() for name in ("model.safetensors", "tokenizer.json"))
    )
    return SentenceBert(folder, config, limits["max_seq_length"]) if is_known else None


class SentenceBert:
    """Texts to the mean of their token vectors, not of length 1: (n, dim) float32.

    References
    ----------
    Devlin et al. (2019); Reimers & Gurevych (2019).
    """

    def __init__(self, folder: Path, config: dict[str, Any], max_length: int):
        from safetensors.torch import load_file
        from tokenizers import Tokenizer

        self._config, path = config, folder / "model.safetensors"
        self._weights = {name.removeprefix("bert."): weight for name, weight in load_file(path).items()}
        dim, n_layers = config["hidden_size"], config["num_hidden_layers"]
        last = _LAYER.format(n_layers - 1) + "output.dense.weight"
        if self._weights.get(last, np.empty(0)).shape != (dim, config["intermediate_size"]):
            raise ValueError(
                f"{path} has no {last} of shape ({dim}, {config['intermediate_size']}), as its config says"
            )
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.enable_truncation(min(max_length, config["max_position_embeddings"]))
        self._tokenizer.enable_padding(pad_id=config.get("pad_token_id", 0))

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        import torch

        order = sorted(range(len(texts)), key=lambda row: -len(texts[row]))  # little padding
        vectors = np.empty((len(texts), self._config["hidden_size"]), dtype=np.float32)
        with torch.inference_mode():
            for at in range(0, len(order), _BATCH):
                rows = order[at : at + _BATCH]
                found = self._tokenizer.encode_batch([texts[row] for row in rows])
                tokens = torch.tensor([one.ids for one in found])
                mask = torch.tensor([one.attention_mask for one in found])
                vectors[rows] = self._pooled(tokens, mask).numpy()
        return vectors

    def _pooled(self, tokens, mask):
        """(B, T) token ids and mask -> (B, dim) means over the real tokens."""
        from torch.nn import functional as F

        weights, n_heads = self._weights, self._config["num_attention_heads"]

        def linear(name: str, x):
            return F.linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])

        def norm(name: str, x):
            scale, shift = weights[f"{name}.weight"], weights[f"{name}.bias"]
            return F.layer_norm(x, scale.shape, scale, shift, self._config["layer_norm_eps"])

        n, length = tokens.shape
        x = weights["embeddings.word_embeddings.weight"][tokens]
        x = x + weights["embeddings.position_embeddings.weight"][:length]
        x = norm("embeddings.LayerNorm", x + weights["embeddings.token_type_embeddings.weight"][0])
        real = mask.bool()[:, None, None]
        for layer in range(self._config["num_hidden_layers"]):
            own = _LAYER.format(layer)
            heads = (
                linear(f"{own}attention.self.{part}", x).view(n, length, n_heads, -1).transpose(1, 2)
                for part in ("query", "key", "value")
            )
            seen = F.scaled_dot_product_attention(*heads, attn_mask=real).transpose(1, 2).reshape(x.shape)
            x = norm(f"{own}attention.output.LayerNorm", linear(f"{own}attention.output.dense", seen) + x)
            wide = F.gelu(linear(f"{own}intermediate.dense", x))
            x = norm(f"{own}output.LayerNorm", linear(f"{own}output.dense", wide) + x)
        share = mask[..., None].to(x.dtype)
        return (x * share).sum(1) / share.sum(1)


def _json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))
