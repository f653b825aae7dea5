"""A recommender's folder as versions: change it, see how it is, go back, and make all IDs anew.

Each change loads the folder and replaces it by a new version, whole (`atomic.fresh_folder`): after a kill the folder is
the old version or the new one. The versions before are kept beside it, in `.NAME.versions/NUMBER`, as hard links, so
files that do not change take no space. One change is made at a time.
"""

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from filelock import FileLock, Timeout

from semid_lib.ids import assignment, codebooks, quantize, rqvae
from semid_lib.ids.semantic_ids import SemanticIDs
from semid_lib.search.hybrid_ranker import HybridRanker, HybridRankerConfig, HybridSearch
from semid_lib.serving import saved
from semid_lib.serving.catalogue import changes
from semid_lib.serving.recommender import Recommender
from semid_lib.serving.saved import Version
from semid_lib.workbench import remote
from semid_lib.workbench.atomic import check_files, check_only, fresh_folder, settled, sha256

KEPT = 5  # versions before the present one
DRIFTED = 1.35  # distortion of new items over that of fitted ones: a refit is due above it, see `status`
ENOUGH = 100  # new items, of which the mean distortion says something
FULL = 0.05  # share of the items under full prefixes: a refit is due above it
UNTRAINED = 0.2  # share of the items without training signal: training is due above it


class Status(NamedTuple):
    """How a catalogue is; `str` has a line for each fact."""

    version: Version
    history: list[Version]  # those that can be had back, oldest first
    n_items: int
    n_removed: int
    n_new: int | None  # items that came after the codebooks were fitted; None without a tokenizer
    distortion: float | None  # of fitted items: mean squared distance from their vectors to those of their codes
    new_distortion: float | None  # of new ones
    n_prefixes: int  # all codes but the last
    full_prefixes: int  # whose last codes are all in use
    items_under_full: int
    untrained: int | None  # items without an item embedding in the next-item model; None without one
    room: float  # their share of the item head's probability; 0: what their scores say
    follows_sales: bool  # see `Recommender.follow_sales`
    advice: list[str]  # what is due, with its reason; empty if nothing is

    def __str__(self) -> str:
        now, lines = self.version, []
        lines += [f"version {now.number} of {now.written or 'an earlier library'}: {now.change}"]
        lines += [f"items: {self.n_items:,}; removed: {self.n_removed:,}"]
        if self.untrained is not None:
            room = f"together {self.room:.1%} of the probability" if self.room else "ranked by their scores"
            lines += [f"without training signal: {self.untrained:,} ({self.untrained / self.n_items:.1%}), {room}"]
            lines += ["scores follow the sales that were given last"] if self.follows_sales else []
        if self.n_new is None:
            lines += ["codebooks and encoder were not saved: items cannot be added"]
        elif self.distortion is not None:
            new = "none" if self.new_distortion is None else f"{self.new_distortion:.4f}"
            lines += [f"drift: distortion {self.distortion:.4f} of fitted items, {new} of {self.n_new:,} new ones"]
        share = self.items_under_full / self.n_items
        lines += [f"full prefixes: {self.full_prefixes:,} of {self.n_prefixes:,}, with {share:.1%} of the items"]
        kept = ", ".join(f"{each.number} ({each.change})" for each in self.history)
        lines += [f"kept versions: {kept or 'none'}"]
        return "\n".join([*lines, *(self.advice or ["nothing is due"])])


class Refit(NamedTuple):
    """What making all IDs anew did."""

    n_items: int
    moved: int  # items with another semantic ID than before
    distortion_before: float | None
    distortion_after: float
    dropped: list[str]  # the models that have to be trained again

    def __str__(self) -> str:
        lines = [f"{self.moved / self.n_items:.1%} of {self.n_items:,} items have another ID: see id_map.parquet"]
        if self.distortion_before is not None:
            lines += [f"distortion {self.distortion_before:.4f} before, {self.distortion_after:.4f} now"]
        lines += [f"dropped, train again on the new IDs: {', '.join(self.dropped) or 'nothing'}"]
        return "\n".join([*lines, "until then the folder answers queries by text alone, and no histories"])


# --- changes ---


def change(where: str | Path, make: Callable[[Recommender], tuple[Recommender, Any]]) -> Any:
    """Replace a folder by what `make` makes of its recommender, and return the report of `make`.

    Parameters
    ----------
    where : str or Path
        A folder, also at an address (`remote`).
    make : callable
        Recommender -> Recommender and report, such as `lambda old: old.add_items(items)`.

    Raises
    ------
    ValueError
        As `Recommender.from_pretrained` and `make` do; the folder is as it was.
    BlockingIOError
        If another change of this folder is being made.
    """
    with _locked(where) as folder:
        fresh, report = make(Recommender.from_pretrained(folder))
        _put(folder, fresh, getattr(report, "change", "change"))
        remote.send(where, whole=True)
        return report


def put(where: str | Path, recommender: Recommender, change: str = "a new model") -> Version:
    """Replace a folder by a recommender, such as one that was trained again: its next version. Raises as `change`."""
    with _locked(where) as folder:
        _put(folder, recommender, change)
        remote.send(where, whole=True)
        return recommender.version


def rollback(where: str | Path, number: int | None = None) -> Version:
    """Make an earlier version the present one; it becomes a new version, so that this can be undone, too.

    Parameters
    ----------
    where : str or Path
    number : int, optional
        Of a version that is kept; by default that which the present one was made from.

    Returns
    -------
    Version
        The new one. Models, items and answers are exactly those of the earlier one.

    Raises
    ------
    ValueError
        If that version is not kept, or damaged.
    """
    with _locked(where) as folder:
        config, parent = saved.read_config(folder), sha256(folder / "config.json")
        now = _version(config)
        kept = {_version(saved.read_config(path)).number: path for path in _kept(folder)}
        if number is None:
            found = [each for each, path in kept.items() if sha256(path / "config.json") == now.parent]
            number = found[0] if found else None
        if number not in kept or number == now.number:
            wanted = "the version before" if number is None else f"version {number}"
            held = ", ".join(str(each) for each in sorted(kept) if each != now.number)
            raise ValueError(f"{wanted} of {folder} is not kept, kept are: {held or 'none'}")
        old = saved.read_config(kept[number])
        check_files(kept[number], old["sha256"], saved.ALWAYS)
        version = Version(now.number + 1, parent, f"roll back to version {number}", changes.now())
        _keep(folder, now.number)
        check_only(folder, saved.FILES)
        with fresh_folder(folder) as fresh:
            _link(kept[number], fresh, list(old["sha256"]))
            text = json.dumps(old | {"version": version._asdict()}, indent=2) + "\n"
            (fresh / "config.json").write_text(text, encoding="utf-8")
        _forget(folder)
        remote.send(where, whole=True)
        return version


def refit(where: str | Path, drop_models: bool = False, seed: int = 0) -> Refit:
    """Fit new codebooks to all items and give all of them new semantic IDs, as the next version.

    A model that was trained on the old IDs knows nothing of the new ones. So a refit drops the next-item model and the
    training of the search model: until they are trained again, the folder answers queries by an untrained hybrid
    ranker, which compares texts, and no histories. `id_map.parquet` in the folder has the old and the new ID of each
    item. The numbers of fresh codes are arbitrary, so almost all IDs move.

    Parameters
    ----------
    where : str or Path
    drop_models : bool
        Has to be True: that the models go is meant.
    seed : int
        Of the codebooks; they are of the same kind and number of levels as before, and as large as
        `quantize.suggest_codebook_size` says, or as before if that is larger.

    Raises
    ------
    ValueError
        Without `drop_models`, for a folder without a tokenizer, and as `quantize.fit_residual_kmeans` does.
    """
    with _locked(where) as folder:
        old = Recommender.from_pretrained(folder)
        tokenizer = changes._tokenizer(old)
        dropped = ["next-item model"] * (old.model is not None) + ["search model"] * (old.searcher is not None)
        if not drop_models:
            raise ValueError(
                f"a refit drops the {' and the '.join(dropped)} of {folder}, to be trained again: say that you mean it "
                "(drop_models=True, or --drop-models)"
            )
        vectors = changes.vectors_of(old)
        vectors = tokenizer.vectors(old.items) if vectors is None else vectors
        size = max(old.ids.codebook_size, quantize.suggest_codebook_size(len(vectors)))
        quantizer = _fitted(tokenizer.quantizer, vectors, old.ids.n_levels, size, seed)
        ids, costs = assignment.resolve_collisions(quantizer.codes, vectors, quantizer)
        tokenizer = tokenizer._replace(quantizer=quantizer, n_fitted=len(ids))
        searcher = _untrained(old, ids, vectors, tokenizer.encoder)
        fresh = Recommender(None, ids, old.items, searcher, old.exclude_seen, tokenizer, old.item_ids.removed)
        fresh.provenance = old.provenance
        pairs = {"item_id": old.items["item_id"], "old": old.ids.unique.tolist(), "new": ids.unique.tolist()}
        moved = sum(one != two for one, two in zip(pairs["old"], pairs["new"], strict=True))
        before = None if old.tokenizer is None else _distortion(old.tokenizer.quantizer, old.ids.codes, vectors)
        id_map = pa.table({name: pa.array(list(column)) for name, column in pairs.items()})
        _put(folder, fresh, f"refit, {moved / len(ids):.1%} of the IDs moved", id_map)
        remote.send(where, whole=True)
        return Refit(len(ids), moved, before, costs.distortion_after, dropped)


# --- state ---


def status(where: str | Path) -> Status:
    """Report the state of a catalogue, and what is due.

    A *refit* is due if the mean distortion of at least `ENOUGH` new items is above `DRIFTED` times that of the fitted
    ones, or if a share of the items above `FULL` has a full prefix. *Training* on the same IDs is due if a share of the
    items above `UNTRAINED` has no training signal. The first limit is chosen so that a random sample of a catalogue's
    own items does not reach it, and a new department does (book/log.md); the others are rules of thumb.
    """
    folder = settled(remote.local(remote.fetch(where)) if remote.is_remote(where) else Path(where))
    found = Recommender.from_pretrained(folder)
    codes, size, tokenizer = found.ids.codes, found.ids.codebook_size, found.tokenizer
    _, prefix = np.unique(codes[:, :-1], axis=0, return_inverse=True)
    last = np.unique(np.column_stack([prefix, codes[:, -1]]), axis=0)[:, 0]
    full = np.bincount(last) == size
    under = int(full[prefix].sum())
    n_new = distortion = new_distortion = None
    vectors = changes.vectors_of(found)
    if tokenizer is not None:
        n_fitted = tokenizer.n_fitted
        n_new = len(codes) - n_fitted
        if vectors is not None and n_fitted:
            distortion = _distortion(tokenizer.quantizer, codes[:n_fitted], vectors[:n_fitted])
        if vectors is not None and n_new:
            new_distortion = _distortion(tokenizer.quantizer, codes[n_fitted:], vectors[n_fitted:])
    untrained, room, follows = None, 0.0, False
    if found.model is not None:
        n_known, rate = found.model.config.n_items, found.model.config.new_item_rate
        untrained = len(codes) - n_known
        room = rate * untrained / (rate * untrained + n_known)
        follows = bool(found.model.trend.any())
    advice = []
    if distortion and new_distortion and n_new and n_new >= ENOUGH and new_distortion > DRIFTED * distortion:
        ratio = new_distortion / distortion
        advice.append(f"refit: the codes fit new items {ratio:.2f} times worse than fitted ones (limit {DRIFTED})")
    if under > FULL * len(codes):
        advice.append(f"refit: {under / len(codes):.1%} of the items have a full prefix (limit {FULL:.0%})")
    if untrained is not None and untrained > UNTRAINED * len(codes):
        share = f"{untrained / len(codes):.1%} of the items have no training signal (limit {UNTRAINED:.0%})"
        advice.append(f"train again, on the same IDs: {share}")
    return Status(
        found.version,
        [each for each in history(folder) if each.number < found.version.number],
        len(codes),
        len(found.item_ids.removed),
        n_new,
        distortion,
        new_distortion,
        len(full),
        int(full.sum()),
        under,
        untrained,
        room,
        follows,
        advice,
    )


def history(folder: str | Path) -> list[Version]:
    """The versions of a folder that are kept beside it, oldest first."""
    return sorted(_version(saved.read_config(path)) for path in _kept(Path(folder)))


# --- folders ---


@contextlib.contextmanager
def _locked(where: str | Path) -> Iterator[Path]:
    """The folder, for one change at a time; the lock of a process ends with it."""
    if remote.is_remote(where):
        remote.fetch(where)
    folder = settled(Path(os.path.realpath(remote.local(where))))
    if not folder.is_dir():
        raise ValueError(f"{where} is not a folder, expected one that Recommender.save_pretrained wrote")
    try:
        with FileLock(folder.with_name(f".{folder.name}.lock"), timeout=0):
            yield folder
    except Timeout:
        raise BlockingIOError(f"another change of {where} is being made: wait for it") from None


def _put(folder: Path, recommender: Recommender, change: str, id_map: pa.Table | None = None) -> None:
    config, parent = saved.read_config(folder), sha256(folder / "config.json")
    check_only(folder, saved.FILES)
    items = saved.checked_table(recommender.items)
    now = _version(config)
    recommender.version = Version(now.number + 1, parent, change, changes.now())
    _keep(folder, now.number)
    with fresh_folder(folder) as fresh:
        saved.write(fresh, recommender, items, recommender.provenance, id_map)
        sums = saved.read_config(fresh)["sha256"]
        same = [name for name, checksum in sums.items() if config["sha256"].get(name) == checksum]
        for name in same:
            (fresh / name).unlink()
        _link(folder, fresh, same)
        recommender.saved_as = sha256(fresh / "config.json")
    _forget(folder)


def _keep(folder: Path, number: int) -> None:
    """Keep the present version beside the folder."""
    to = _beside(folder) / str(number)
    if (to / "config.json").is_file() and sha256(to / "config.json") == sha256(folder / "config.json"):
        return
    with fresh_folder(to) as fresh:
        _link(folder, fresh, ["config.json", *saved.read_config(folder)["sha256"]])


def _forget(folder: Path) -> None:
    """Remove all but the last versions before the present one, and what a kill left of those that were being removed.

    Higher numbers are those of an earlier model, in whose place a chapter saved another one.
    """
    number = _version(saved.read_config(folder)).number
    before = [path for path in _kept(folder) if int(path.name) < number]
    for path in set(_beside(folder).glob("[0-9]*")) - set(before[-KEPT:]):
        (path / "config.json").unlink(missing_ok=True)  # first: from here on it is no version
        shutil.rmtree(path, ignore_errors=True)


def _kept(folder: Path) -> list[Path]:
    found = [path for path in _beside(folder).glob("[0-9]*") if (path / "config.json").is_file()]
    return sorted(found, key=lambda path: int(path.name))


def _beside(folder: Path) -> Path:
    folder = Path(os.path.realpath(folder))
    return folder.with_name(f".{folder.name}.versions")


def _link(source: Path, target: Path, names: list[str]) -> None:
    for name in names:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(source / name, target / name)
        except OSError:  # another file system, or one without links
            shutil.copy2(source / name, target / name)


def _version(config: dict[str, Any]) -> Version:
    return Version(**config["version"]) if "version" in config else Version()


# --- codebooks ---


def _distortion(quantizer, codes: np.ndarray, vectors: np.ndarray) -> float:
    return codebooks.distortion(vectors, quantizer.decode(codes))


def _fitted(old: quantize.ResidualQuantizer, vectors: np.ndarray, n_levels: int, size: int, seed: int):
    if not isinstance(old, rqvae.RQVAE):
        return quantize.fit_residual_kmeans(vectors, n_levels, size, seed=seed)
    hidden = len(old.network.state_dict()["mlp.0.weight"])
    config = rqvae.RQVAEConfig(n_levels, size, latent_dim=old.codebooks.shape[2], hidden_dim=hidden)
    return rqvae.fit_rqvae(vectors, config, seed)


def _untrained(old: Recommender, ids: SemanticIDs, vectors: np.ndarray, encoder: str) -> HybridSearch:
    """Search by text alone: the scores of the hybrid ranker that the folder had, or cosines."""
    searcher = old.searcher if isinstance(old.searcher, HybridSearch) else None
    weight = searcher.scorer.config.word_weight if searcher else 0.0
    config = HybridRankerConfig(ids.sizes, vectors.shape[1], word_weight=weight)
    ranker = HybridRanker(config, ids.unique, vectors)
    return HybridSearch(ranker, searcher.words if searcher else None, encoder, searcher.beam_width if searcher else 100)
