"""TIGER: a T5 reads the semantic IDs of a history, code by code, and generates the ID of the next item.

The encoder-decoder of Rajput et al. 2023 (arXiv 2305.05065), trained from scratch on every prefix of every history. One
token is one (level, code), the disambiguation code included if the IDs have one. The timeline model is faster, because
it encodes a history once and not once per prefix.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_model
from torch import nn

from semid_lib.decoding import ranking
from semid_lib.decoding.ranking import ItemRows, Ranked
from semid_lib.decoding.scorers import EncoderDecoderScorer
from semid_lib.decoding.trie import PrefixTrie
from semid_lib.ids.semantic_ids import SemanticIDs
from semid_lib.next_item.batches import Prefixes, pad
from semid_lib.next_item.layers import Dropout
from semid_lib.workbench.atomic import check_only, fresh_folder, settled
from semid_lib.workbench.store import check_files, sha256

_FORMAT = 1
_FILES = ("model.safetensors", "semantic_ids.npz")
_PAD, _START, _FIRST = 0, 1, 2  # T5 begins an ID with the padding token; _START precedes a history
_BEAMS_AT_ONCE = 2**11
_EXACT_AT_ONCE = 8  # histories in an exact ranking


@dataclass(frozen=True)
class TigerConfig:
    """The shape of a TIGER; the defaults are the paper's, without its user tokens.

    It then has 4.6 million parameters at 3 x 256 codes. The paper says 13 million, which its sizes do not give.
    """

    dim: int = 128  # width of the model
    n_layers: int = 4  # of the encoder, and as many of the decoder
    n_heads: int = 6
    head_dim: int = 64  # of queries, keys and values; n_heads of them need not make up dim
    ff_dim: int = 1024
    dropout: float = 0.1
    max_length: int = 20  # the most recent items that the model reads


class Tiger(nn.Module):
    """A T5 over the codes of semantic IDs.

    Parameters
    ----------
    config : TigerConfig
    ids : SemanticIDs
        Of the whole catalogue. The model reads and generates them, and knows nothing else of an item.

    Raises
    ------
    ImportError
        Without the extra 'tiger'.

    Examples
    --------
    >>> ids = SemanticIDs.from_codes(np.array([[0, 1], [1, 0], [1, 1]]), codebook_size=2)
    >>> model = Tiger(TigerConfig(dim=8, n_layers=1, n_heads=1, head_dim=8, ff_dim=8), ids).eval()
    >>> np.sort(model.rank([np.array([2]), np.array([], dtype=np.int64)], k=3).items)
    array([[-1,  0,  1],
           [ 0,  1,  2]])
    """

    tokens: torch.Tensor

    def __init__(self, config: TigerConfig, ids: SemanticIDs):
        try:
            from transformers import T5Config, T5ForConditionalGeneration
        except ImportError as error:
            raise ImportError("a TIGER needs the extra 'tiger': pip install 'semid-lib[tiger]'") from error
        super().__init__()
        self.config, self.ids = config, ids
        starts = _FIRST + np.cumsum([0, *ids.sizes])
        self.t5 = T5ForConditionalGeneration(
            T5Config(
                vocab_size=int(starts[-1]),
                d_model=config.dim,
                d_kv=config.head_dim,
                d_ff=config.ff_dim,
                num_layers=config.n_layers,
                num_heads=config.n_heads,
                dropout_rate=config.dropout,
                pad_token_id=_PAD,
                eos_token_id=None,  # all IDs have the same number of codes
                decoder_start_token_id=_PAD,  # type: ignore[call-arg]
            )
        )
        for parent in list(self.t5.modules()):
            for name, part in parent.named_children():
                if isinstance(part, nn.Dropout):
                    setattr(parent, name, Dropout(config.dropout))
        self.register_buffer("tokens", torch.from_numpy(ids.unique + starts[:-1]), persistent=False)  # of every item
        of_level = [np.arange(start, start + size) for start, size in zip(starts, ids.sizes, strict=False)]
        self._scorer = EncoderDecoderScorer(self.t5, of_level)
        self._trie = PrefixTrie.build(ids.unique)

    def forward(self, batch: Prefixes) -> torch.Tensor:
        """Mean of -log p(item | the items before it), a scalar in nats."""
        return self.t5(**self._contexts(batch.histories), labels=self.tokens[batch.targets]).loss * len(self.ids.sizes)

    def _contexts(self, histories: torch.Tensor) -> dict[str, torch.Tensor]:
        """Input of the encoder: the start token, then the codes of one item after the other."""
        first = torch.full((len(histories), 1), _START, device=histories.device)
        tokens = self.tokens[histories.clamp(min=0)].masked_fill((histories < 0)[..., None], _PAD)
        tokens = torch.cat([first, tokens.flatten(1)], dim=1)
        return {"input_ids": tokens, "attention_mask": tokens != _PAD}

    def rank(
        self,
        histories: ItemRows,
        k: int,
        exclude_seen: bool = True,
        beam_width: int | None = None,
        progress: bool = False,
        allowed: np.ndarray | None = None,
        exact: bool = False,
    ) -> Ranked:
        """Find the k most probable next items after each history; see `ranking.rank`.

        Parameters
        ----------
        histories, k, exclude_seen, progress, allowed, exact
            As for `ranking.rank`. The model reads the last `config.max_length` items of a longer history.
        beam_width : int, optional
            Prefixes kept per level, at least k; by default max(50, k).

        Raises
        ------
        ValueError
            As `ranking.rank` does, and for a model in training mode.
        """
        k, beam_width = ranking.widths(k, beam_width)
        return ranking.rank(
            self._scorer,
            self.trie,
            histories,
            k,
            lambda batch, _: self._contexts(pad(batch, self.config.max_length).to(self.t5.device)),
            beam_width=beam_width,
            n_at_once=_EXACT_AT_ONCE if exact else _BEAMS_AT_ONCE // beam_width,
            exclude_seen=exclude_seen,
            allowed=allowed,
            exact=exact,
            progress=progress,
        )

    @property
    def trie(self) -> PrefixTrie:
        """The prefix trie of all items, on the device of the model."""
        self._trie = self._trie.to(self.t5.device)
        return self._trie

    def save_pretrained(self, folder: str | Path) -> None:
        """Write `config.json` and `model.safetensors`, which transformers reads as a T5, and `semantic_ids.npz`.

        The folder is replaced atomically.

        Raises
        ------
        ValueError
            If it holds other files.
        """
        check_only(folder, (*_FILES, "config.json", "generation_config.json"))
        with fresh_folder(folder) as fresh:
            self.t5.save_pretrained(fresh)
            self.ids.save(fresh / "semantic_ids.npz")
            config = json.loads((fresh / "config.json").read_text(encoding="utf-8"))
            sums = {name: sha256(fresh / name) for name in _FILES}
            config["tiger"] = {"format": _FORMAT, "config": asdict(self.config), "sha256": sums}
            (fresh / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def from_pretrained(cls, folder: str | Path, device: str | torch.device = "cpu") -> "Tiger":
        """Read what `save_pretrained` wrote; in evaluation mode.

        Raises
        ------
        ValueError
            Naming the file if one is missing, damaged (its checksum differs) or of another format.
        """
        folder = settled(folder)
        path = folder / "config.json"
        try:
            saved = json.loads(path.read_text(encoding="utf-8"))["tiger"]
            if saved["format"] != _FORMAT:
                raise ValueError(f"it has format {saved['format']!r}, expected format {_FORMAT}")
            sums, shape = dict(saved["sha256"]), dict(saved["config"])
            if shape.pop("n_user_tokens", 0):  # earlier versions could have such tokens
                raise ValueError("it has user tokens, which this version does not know; train it again")
            config = TigerConfig(**shape)
        except (OSError, ValueError, KeyError, TypeError) as error:
            why = f"it has no entry {error}" if isinstance(error, KeyError) else error
            raise ValueError(f"{path} is not that of a TIGER: {why}") from error
        check_files(folder, sums, _FILES)
        try:
            model = cls(config, SemanticIDs.load(folder / "semantic_ids.npz"))
            load_model(model.t5, folder / "model.safetensors")
        except (RuntimeError, SafetensorError) as error:
            raise ValueError(f"{path} does not fit model.safetensors: {error}") from error
        return model.to(device).eval()
