"""TIGER: a T5 reads the semantic IDs of a history, code by code, and writes the ID of the next item.

The encoder-decoder of Rajput et al. 2023 (arXiv 2305.05065), trained from scratch on every prefix of every history.
One token stands for one (level, code), the disambiguation code included where the IDs have one. It is the model that
others are compared with; `timeline` is faster, because it encodes a history once and not once per prefix.
"""

import json
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_model
from torch import nn
from torch.utils.data import DataLoader

from semid_lib.decoding import ranking
from semid_lib.decoding.ranking import Ranked
from semid_lib.decoding.scorers import EncoderDecoderScorer
from semid_lib.decoding.trie import PrefixTrie
from semid_lib.ids.semantic_ids import SemanticIDs
from semid_lib.next_item.timeline import pad
from semid_lib.workbench.atomic import check_only, fresh_folder, settled
from semid_lib.workbench.store import check_files, sha256
from semid_lib.workbench.training import LengthBuckets

_FORMAT = 1
_FILES = ("model.safetensors", "semantic_ids.npz")
_PAD, _START, _FIRST = 0, 1, 2  # T5 begins an ID with the padding token; _START stands before a history
_BEAMS_AT_ONCE = 2**11
_EXACT_AT_ONCE = 8  # histories in an exact ranking


@dataclass(frozen=True)
class TigerConfig:
    """The shape of a TIGER; the defaults are the paper's.

    With them it has 4.6 million parameters at 3 x 256 codes. The paper says 13 million, which its sizes do not give.
    """

    dim: int = 128  # width of the model
    n_layers: int = 4  # of the encoder, and as many of the decoder
    n_heads: int = 6
    head_dim: int = 64  # of queries, keys and values; n_heads of them need not make up dim
    ff_dim: int = 1024
    dropout: float = 0.1
    max_length: int = 20  # the most recent items that the model sees
    n_user_tokens: int = 0  # a user is hashed to one of so many tokens (the paper: 2,000); 0 for none


class Batch(NamedTuple):
    """What the model is to learn from: the item that follows each history."""

    histories: torch.Tensor  # (B, T) int64 item rows, -1 after the end
    targets: torch.Tensor  # (B,) int64 item rows
    users: torch.Tensor  # (B,) int64, each user's number among the user tokens; -1 where there are none


class Tiger(nn.Module):
    """A T5 over the codes of semantic IDs.

    ids: of the whole catalogue; they are what the model reads and writes, and all that it knows of an item.

    >>> ids = SemanticIDs.from_codes(np.array([[0, 1], [1, 0], [1, 1]]), codebook_size=2)
    >>> model = Tiger(TigerConfig(dim=8, n_layers=1, n_heads=1, head_dim=8, ff_dim=8), ids).eval()
    >>> np.sort(model.rank([np.array([2]), np.array([], dtype=np.int64)], k=3).items)
    array([[-1,  0,  1],
           [ 0,  1,  2]])
    """

    def __init__(self, config: TigerConfig, ids: SemanticIDs):
        try:
            from transformers import T5Config, T5ForConditionalGeneration
        except ImportError as error:
            raise ImportError("a TIGER needs the extra 'tiger': pip install 'semid-lib[tiger]'") from error
        super().__init__()
        self.config, self.ids = config, ids
        starts = _FIRST + np.cumsum([0, *ids.sizes])
        self._first_user = int(starts[-1])
        self.t5 = T5ForConditionalGeneration(
            T5Config(
                vocab_size=self._first_user + config.n_user_tokens,
                d_model=config.dim,
                d_kv=config.head_dim,
                d_ff=config.ff_dim,
                num_layers=config.n_layers,
                num_heads=config.n_heads,
                dropout_rate=config.dropout,
                pad_token_id=_PAD,
                eos_token_id=None,  # all IDs have the same number of codes
                decoder_start_token_id=_PAD,
            )
        )
        # the tokens of every item, made once
        self.register_buffer("tokens", torch.from_numpy(ids.unique + starts[:-1]), persistent=False)
        of_level = [np.arange(start, start + size) for start, size in zip(starts, ids.sizes, strict=False)]
        self._scorer = EncoderDecoderScorer(self.t5, of_level)
        self._trie = PrefixTrie.build(ids.unique)

    def forward(self, batch: Batch) -> torch.Tensor:
        """Mean of -log p(item | the items before it), a scalar in nats."""
        contexts = self._contexts(batch.histories, batch.users)
        return self.t5(**contexts, labels=self.tokens[batch.targets]).loss * self.tokens.shape[1]

    def _contexts(self, histories: torch.Tensor, users: torch.Tensor) -> dict[str, torch.Tensor]:
        """What the encoder reads: the user's token or the start token, then the codes of one item after the other."""
        first = torch.where(users < 0, _START, self._first_user + users)
        tokens = self.tokens[histories.clamp(min=0)].masked_fill((histories < 0)[..., None], _PAD)
        tokens = torch.cat([first[:, None], tokens.flatten(1)], dim=1)
        return {"input_ids": tokens, "attention_mask": tokens != _PAD}

    # recommending

    def rank(
        self,
        histories: Sequence[np.ndarray],
        k: int,
        exclude_seen: bool = True,
        beam_width: int | None = None,
        progress: bool = False,
        allowed: np.ndarray | None = None,
        users: Sequence | None = None,
        exact: bool = False,
    ) -> Ranked:
        """The k most probable next items after each history of item rows, oldest first.

        exclude_seen: leave out items of the history. beam_width: hypotheses kept, at least k; by default max(50, k).
        allowed: which items may come out, bool, (n_items,) or (n_histories, n_items). users: whose histories they are,
        for a model with user tokens. exact: score every item instead of searching; for 12,000 items that is three times
        the work of a beam of 1,000.

        An empty history gets what shoppers start with; of one longer than the model's window the most recent items
        count, and all are excluded. Places that no item can fill, as with k above the number of items, hold -1.
        Raises ValueError for a row that is not in the catalogue (naming the history), k < 1, users that are missing or
        not asked for, and a model in training mode.
        """
        k, beam_width = ranking.widths(k, beam_width)
        histories = ranking.checked_rows(histories, len(self.ids))
        numbers = torch.from_numpy(hashed_users(users, len(histories), self.config.n_user_tokens))

        def contexts(batch: list[np.ndarray], at: np.ndarray) -> dict[str, torch.Tensor]:
            recent = pad(batch, self.config.max_length)
            return self._contexts(recent.to(self.t5.device), numbers[at].to(self.t5.device))

        return ranking.rank(
            self._scorer,
            self.trie,
            histories,
            k,
            contexts,
            beam_width=beam_width,
            n_at_once=_EXACT_AT_ONCE if exact else _BEAMS_AT_ONCE // beam_width,
            exclude_seen=exclude_seen,
            allowed=allowed,
            exact=exact,
            progress=progress,
        )

    @property
    def trie(self) -> PrefixTrie:
        """The prefix trie, where the model is."""
        self._trie = self._trie.to(self.t5.device)
        return self._trie

    # to and from a folder

    def save_pretrained(self, folder: str | Path) -> None:
        """Write `config.json` and `model.safetensors`, which transformers reads as a T5, and `semantic_ids.npz`.

        The folder is replaced as a whole. Raises ValueError if it holds other files.
        """
        check_only(folder, (*_FILES, "config.json", "generation_config.json"))
        with fresh_folder(folder) as fresh:
            self._write(fresh)

    def _write(self, folder: Path) -> None:
        self.t5.save_pretrained(folder)
        self.ids.save(folder / "semantic_ids.npz")
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        config["tiger"] = {
            "format": _FORMAT,
            "config": asdict(self.config),
            "sha256": {name: sha256(folder / name) for name in _FILES},
        }
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def from_pretrained(cls, folder: str | Path, device: str | torch.device = "cpu") -> "Tiger":
        """Read what `save_pretrained` wrote; in evaluation mode.

        Raises ValueError naming the file if one is missing, has another checksum than `config.json` says, or is of
        another format.
        """
        folder = settled(folder)
        saved = _read_config(folder / "config.json")
        check_files(folder, saved["sha256"], _FILES)
        ids = SemanticIDs.load(folder / "semantic_ids.npz")
        try:
            model = cls(TigerConfig(**saved["config"]), ids)
            load_model(model.t5, folder / "model.safetensors")
        except (TypeError, RuntimeError, SafetensorError) as error:
            raise ValueError(f"{folder / 'config.json'} does not fit model.safetensors: {error}") from error
        return model.to(device).eval()


class Prefixes:
    """Every interaction as a sample, to be predicted from those before it: a data set that copies no prefix.

    histories: item rows in time order, as `data.Histories` or one sequence a user. users: (n_users,) numbers of
    `hashed_users`.

    >>> Prefixes([[4, 5, 6], [7]], np.array([-1, -1]), max_length=2).__getitems__([0, 2, 3])
    Batch(histories=tensor([[-1, -1],
            [ 4,  5],
            [-1, -1]]), targets=tensor([4, 6, 7]), users=tensor([-1, -1, -1]))
    """

    def __init__(self, histories: Sequence[np.ndarray], users: np.ndarray, max_length: int):
        counts = np.array([len(history) for history in histories], dtype=np.int64)
        parts = [np.asarray(history, dtype=np.int64) for history in histories]
        self.items = np.concatenate([np.empty(0, dtype=np.int64), *parts])
        n_before = np.arange(len(self.items)) - np.repeat(np.cumsum(counts) - counts, counts)
        self.lengths = np.minimum(n_before, max_length)  # of what the model sees
        self.users = np.repeat(users, counts)

    def __len__(self) -> int:
        return len(self.items)

    def __getitems__(self, indices: list[int]) -> Batch:
        at = np.array(indices)
        lengths = self.lengths[at][:, None]
        place = np.arange(lengths.max())
        histories = np.where(place < lengths, self.items[np.minimum(at[:, None] - lengths + place, at[:, None])], -1)
        return Batch(*(torch.from_numpy(part) for part in (histories, self.items[at], self.users[at])))


def training_batches(
    histories: Sequence[np.ndarray], config: TigerConfig, batch_size: int, seed: int = 0, users: Sequence | None = None
) -> DataLoader:
    """Batches for `training.fit`: each interaction once, histories of similar length together.

    The first interaction of a user is predicted from nothing, so that an empty history has an answer. users: one id
    (of any type with a `str`) a history, for a model with user tokens. Raises ValueError if there is nothing to learn
    from, and for users that are missing or not asked for.
    """
    numbers = hashed_users(users, len(histories), config.n_user_tokens)
    samples = Prefixes(histories, numbers, config.max_length)
    if not len(samples):
        raise ValueError("no history holds an item: there is nothing to train on")
    buckets = LengthBuckets(samples.lengths, batch_size, seed)
    return DataLoader(samples, batch_sampler=buckets, collate_fn=_as_it_is)


def _as_it_is(batch: Batch) -> Batch:
    return batch


def hashed_users(users: Sequence | None, n: int, n_user_tokens: int) -> np.ndarray:
    """Each user's number among the user tokens, (n,) int64; -1 for all if there are no such tokens.

    >>> hashed_users(["ann", 7, "ann"], 3, n_user_tokens=100).tolist()
    [47, 46, 47]
    """
    if (users is None) != (n_user_tokens == 0):
        raise ValueError(
            f"users are {'missing' if users is None else 'given'}, the model has {n_user_tokens} tokens for them"
        )
    if users is None:
        return np.full(n, -1, dtype=np.int64)
    if len(users) != n:
        raise ValueError(f"there are {len(users)} users for {n} histories, expected one each")
    return np.array([zlib.crc32(str(user).encode()) % n_user_tokens for user in users], dtype=np.int64)


def _read_config(path: Path) -> dict:
    if not path.is_file():
        raise ValueError(f"{path} is missing: expected a folder that save_pretrained wrote")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    saved = config.get("tiger") if isinstance(config, dict) else None
    if not isinstance(saved, dict):
        raise ValueError(f"{path} describes no TIGER: it has no entry 'tiger'")
    if saved.get("format") != _FORMAT or not all(isinstance(saved.get(name), dict) for name in ("config", "sha256")):
        raise ValueError(f"{path} has format {saved.get('format')!r}, this version reads format {_FORMAT}")
    return saved
