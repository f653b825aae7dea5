"""The folder of a recommender: what is in it, and how each file is checked before it is used.

Checksums find damaged files. The checks here find files that were made wrong: types, ranges and shapes, before memory
is spent on a model.
"""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch

from semid_lib.data.table import arrow_table
from semid_lib.ids.semantic_ids import SemanticIDs
from semid_lib.ids.tokenizer import ItemTokenizer
from semid_lib.llm.llm_search import load_searcher
from semid_lib.next_item.timeline import Timeline, TimelineConfig
from semid_lib.serving import hub
from semid_lib.workbench.store import check_files, check_names, read_json, sha256, write_json
from semid_lib.workbench.text import one_line, shown
from semid_lib.workbench.weights import check_shapes, load_weights, save_weights, shapes_of

FORMAT, OLDER = 3, 2  # the older is still read
ALWAYS = ("semantic_ids.npz", "items.parquet")
_OF_SEARCH = ("query_model.safetensors", "item_vectors.safetensors", "word_index.safetensors", "llm")
_OF_CATALOGUE = ("quantizer.safetensors", "removed.json", "id_map.parquet")
FILES = (*ALWAYS, "config.json", "model.safetensors", *_OF_SEARCH, *_OF_CATALOGUE)
_ENDINGS = (".jinja", ".json", ".model", ".npz", ".parquet", ".safetensors", ".txt")  # no pickle, no Python
_TRIES = 100
_NO_SEARCHER = {"type": "hybrid ranker", "beam_width": 1, "encoder": ""}
_NO_BASE = {"name": "", "revision": ""}
_NO_TOKENIZER = {"encoder": "", "max_characters": 1, "n_fitted": 0}
Read = TypeVar("Read")


class Version(NamedTuple):
    """Which state of a catalogue a folder holds."""

    number: int = 1
    parent: str | None = None  # sha256 of the config.json of the version that it was made from
    change: str = "saved"  # one line, such as "add 1,000 items"
    written: str = ""  # in UTC


def write(
    folder: Path, recommender: Any, items: pa.Table, provenance: dict[str, Any], id_map: pa.Table | None = None
) -> None:
    """Write the files of a recommender into an empty folder; `items` is what `checked_table` returned.

    id_map: old and new semantic IDs, if all IDs were made anew.
    """
    model, files = recommender.model, list(ALWAYS)
    recommender.ids.save(folder / "semantic_ids.npz")
    pq.write_table(items, folder / "items.parquet")
    config: dict[str, Any] = {"format": FORMAT, "exclude_seen": recommender.exclude_seen}
    if model is not None:
        weights = {name: tensor.contiguous().cpu() for name, tensor in model.state_dict().items()}
        save_weights(folder / "model.safetensors", weights)
        config["model"] = {"type": "timeline", **asdict(model.config)}
        files.append("model.safetensors")
    if recommender.searcher is not None:
        config["searcher"], written = recommender.searcher.save(folder)
        files += written
    if recommender.tokenizer is not None:
        recommender.tokenizer.save(folder / "quantizer.safetensors")
        config["tokenizer"] = recommender.tokenizer.facts()
        files.append("quantizer.safetensors")
    if recommender.item_ids.removed:
        write_json(folder / "removed.json", sorted(recommender.item_ids.removed))
        files.append("removed.json")
    if id_map is not None:
        pq.write_table(id_map, folder / "id_map.parquet")
        files.append("id_map.parquet")
    if provenance:
        config["provenance"] = provenance
    config["version"] = recommender.version._asdict()
    config["sha256"] = {name: sha256(folder / name) for name in files}
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def read(
    folder: Path, source: hub.Source | None, device: str | torch.device, engine: str, fingerprint: str | None
) -> tuple[tuple, dict[str, Any]]:
    """Read what `write` wrote; the arguments are those of `Recommender.from_pretrained`.

    If the folder is the cache of a repository (`source`), missing files are fetched.

    Returns
    -------
    parts : tuple
        The arguments of `Recommender`.
    facts : dict
        Its attributes `provenance`, `version` and `saved_as`.
    """
    saved_as = sha256(folder / "config.json") if (folder / "config.json").is_file() else None
    config = read_config(folder)
    provenance, sums = config.get("provenance", {}), config["sha256"]
    if fingerprint is not None:
        check_provenance(provenance, fingerprint, source or folder)
    if source is not None:
        hub.fetch(source, sums)
    needed = [*["model.safetensors"] * ("model" in config), *["quantizer.safetensors"] * ("tokenizer" in config)]
    check_files(folder, sums, (*ALWAYS, *needed))
    ids, items = SemanticIDs.load(folder / "semantic_ids.npz"), read_items(folder / "items.parquet")
    if len(items) != len(ids):  # before a model is made of them
        raise ValueError(f"{source or folder}: {len(items)} items, {len(ids)} semantic IDs: expected the same items")
    model = searcher = None
    if "model" in config:
        model = read_timeline(folder / "model.safetensors", config["model"], ids, device)
    if "searcher" in config:
        searcher = load_searcher(folder, config["searcher"], ids, items, device, engine)
    tokenizer = None
    if "tokenizer" in config:
        tokenizer = ItemTokenizer.load(folder / "quantizer.safetensors", config["tokenizer"])
    facts = {
        "provenance": provenance,
        "version": Version(**config["version"]) if "version" in config else Version(),
        "saved_as": saved_as,
    }
    removed = read_json(folder / "removed.json", list) if "removed.json" in sums else []
    return (model, ids, items, searcher, config.get("exclude_seen", True), tokenizer, removed), facts


def steady(folder: Path, read: Callable[[], Read]) -> Read:
    """Return what `read` returns; call it again if the folder is replaced meanwhile.

    Raises
    ------
    OSError
        If that happens again and again.
    """
    for _ in range(_TRIES):
        before = _state(folder)
        try:
            found = read()
        except (OSError, ValueError):
            if _state(folder) == before:
                raise
        else:
            if _state(folder) == before:
                return found
    raise OSError(f"{folder} was replaced {_TRIES} times while it was read: load it when its writer has finished")


def _state(folder: Path) -> tuple[int, int] | None:
    try:
        facts = (folder / "config.json").stat()
    except OSError:
        return None
    return facts.st_ino, facts.st_mtime_ns


# --- config.json ---


def read_config(folder: Path) -> dict[str, Any]:
    """Read `config.json` and check it.

    Raises
    ------
    ValueError
        Naming the file if it is missing or no JSON, has another format, or a value of another type.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise ValueError(f"{path} is missing: expected a folder that save_pretrained wrote")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    found = config if isinstance(config, dict) else {}
    parts = [found[name] for name in ("model", "searcher") if name in found]
    version, tokenizer = found.get("version", Version()._asdict()), found.get("tokenizer", _NO_TOKENIZER)
    tables = [*parts, found.get("sha256"), found.get("provenance", {}), version, tokenizer]
    if found.get("format") not in (OLDER, FORMAT) or not parts or not all(isinstance(table, dict) for table in tables):
        raise ValueError(f"{path} has format {found.get('format')!r}, this version reads formats {OLDER} and {FORMAT}")
    model, searcher = found.get("model", {"type": "timeline"}), found.get("searcher", _NO_SEARCHER)
    if searcher.get("type") == "light":  # as earlier versions called it
        searcher["type"] = "hybrid ranker"
    seen, kind, task = found.get("exclude_seen", True), searcher.get("type"), searcher.get("task")
    width, encoder, base = searcher.get("beam_width"), searcher.get("encoder"), searcher.get("base", _NO_BASE)
    named = isinstance(base, dict) and all(isinstance(base.get(name), str) for name in _NO_BASE)
    for name, value, fits, expected in (
        ("exclude_seen", seen, isinstance(seen, bool), "true or false"),
        ("type of model", model.get("type"), model.get("type") == "timeline", "'timeline'"),
        ("type of searcher", kind, kind in ("hybrid ranker", "language model"), "'hybrid ranker' or 'language model'"),
        ("beam_width of searcher", width, type(width) is int and width > 0, "an integer of at least 1"),
        ("encoder of searcher", encoder, kind != "hybrid ranker" or isinstance(encoder, str), "the name of an encoder"),
        ("task of searcher", task, kind == "hybrid ranker" or task == "query_to_id", "'query_to_id'"),
        ("base of searcher", base, named, "name and revision of a model"),
        ("version", version, _is_version(version), "number, parent, change and written"),
        ("tokenizer", tokenizer, _is_tokenizer(tokenizer), "encoder, max_characters and n_fitted"),
    ):
        if not fits:
            raise ValueError(f"{path}: {name} is {shown(value)}, expected {expected}")
    check_names(found["sha256"], path)
    for name in found["sha256"]:
        if Path(name).suffix not in _ENDINGS:
            raise ValueError(f"{path} lists {name!r}, expected files that end in {', '.join(_ENDINGS)}")
    for file in sorted((folder / "llm").rglob("*")):  # transformers would read others, too, but not .DS_Store
        name = file.relative_to(folder).as_posix()
        if name not in found["sha256"] and file.is_file() and not file.name.startswith("."):
            raise ValueError(f"{file} is not listed in {path}: remove it, or save the model again")
    return found


def _is_version(found: dict[str, Any]) -> bool:
    parent, texts = found.get("parent"), (found.get("change"), found.get("written"))
    right = parent is None or (isinstance(parent, str) and re.fullmatch("[0-9a-f]{64}", parent) is not None)
    number = found.get("number")
    return right and type(number) is int and number > 0 and all(isinstance(x, str) for x in texts) and len(found) == 4


def _is_tokenizer(found: dict[str, Any]) -> bool:
    counts = (found.get("max_characters"), found.get("n_fitted"))
    return isinstance(found.get("encoder"), str) and all(type(x) is int and x >= 0 for x in counts)


def check_provenance(provenance: Mapping[str, Any], fingerprint: str, where: object) -> None:
    """Refuse a recommender that was made from other data.

    Parameters
    ----------
    provenance : mapping
        As `store.Store.provenance` gives it.
    fingerprint : str
        Of the data now, `dataset.Dataset.fingerprint`.
    where : object
        What the message begins with.

    Raises
    ------
    ValueError
        If the fingerprint differs, or none was saved.

    Examples
    --------
    >>> check_provenance({"data": "shop", "fingerprint": "a1"}, "b2", "shop/recommender")
    Traceback (most recent call last):
        ...
    ValueError: shop/recommender was made from other data (fingerprint a1, expected b2): run its chapter again
    """
    found = provenance.get("fingerprint")
    if found != fingerprint:
        held = "none" if found is None else str(found)[:12]
        raise ValueError(
            f"{where} was made from other data (fingerprint {held}, expected {fingerprint[:12]}): run its chapter again"
        )


# --- items.parquet ---


def checked_table(items: pd.DataFrame) -> pa.Table:
    """Convert the item table to what will be written, with columns of the types that a recommender reads.

    Raises
    ------
    ValueError
        As `table.arrow_table` does, and naming a column of another type.
    """
    found = arrow_table(items)
    _check_types(found)
    return found


def read_items(path: Path) -> pd.DataFrame:
    """Read the item table as it was saved; lists are lists, and missing values None (NaN among decimal numbers).

    Raises
    ------
    ValueError
        Naming the file if it cannot be read, or a column has another type than a recommender reads.
    """
    try:
        found = pq.ParquetFile(path.absolute()).read().replace_schema_metadata()  # pyarrow expands a leading ~
        found.validate(full=True)
        _check_types(found)
        nested = [field.name for field in found.schema if pa.types.is_nested(field.type)]
        items = found.drop_columns(nested).to_pandas(integer_object_nulls=True)
        return items.assign(**found.select(nested).to_pydict())[found.schema.names]
    except (pa.ArrowException, OSError, ValueError) as error:
        raise ValueError(f"{path} is no item table that can be read: {error}") from error


def _check_types(items: pa.Table) -> None:
    names = items.schema.names
    if "item_id" not in names or len(set(names)) < len(names):
        raise ValueError(f"it has the columns {', '.join(names)}, expected item_id, and each name once")
    kind = items.schema.field("item_id").type
    whole = pa.types.is_integer(kind) and not pa.types.is_uint64(kind)
    if not (whole or _is_text(kind)) or items["item_id"].null_count:
        raise ValueError(f"item_id is of type {kind}, expected int64 or text, and no null")
    for name in ("title", "brand", "description"):
        if name in names and not _is_text(items.schema.field(name).type) and items[name].null_count < len(items):
            raise ValueError(f"{name} is of type {items.schema.field(name).type}, expected text")
    if "categories" in names and not _are_paths(items["categories"]):
        raise ValueError(f"categories is of type {items['categories'].type}, expected lists of lists of text, no null")


def _are_paths(column: pa.ChunkedArray) -> bool:
    """Whether a column has lists of lists of text; null is allowed for a whole item, and for all of them."""
    if column.null_count == len(column):
        return True
    try:
        paths = pc.list_flatten(column)
        names = pc.list_flatten(paths) if len(paths) else paths
    except pa.ArrowException:
        return False
    return not paths.null_count and not names.null_count and (not len(names) or _is_text(names.type))


def _is_text(kind: pa.DataType) -> bool:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


# --- model.safetensors ---

_ENCODERS = ("item_encoder.", "code_encoder.")


def read_timeline(path: Path, shape: Mapping[str, Any], ids: SemanticIDs, device: str | torch.device) -> Timeline:
    """Read the next-item model, with weights that are mapped from the file.

    Raises
    ------
    ValueError
        Naming the file if weights and config do not fit each other or the IDs, or a weight is not finite.
    """
    # what is missing is refused as None
    settings = {"sizes": None, "text_dim": None, "n_items": None} | {x: shape[x] for x in shape if x != "type"}
    if isinstance(settings["sizes"], list):
        settings["sizes"] = tuple(settings["sizes"])
    try:
        config = TimelineConfig(**settings)
        shapes = shapes_of(path)
        encoders = ("",) if "start" in shapes else _ENCODERS
        expected = {  # the tensors that make a model large
            "ids": (len(ids), len(ids.sizes)),
            "vectors": (len(ids), config.text_dim),
            "item.weight": (config.n_items, config.dim),
            **{f"{each}position.weight": (config.max_length + 1, config.dim) for each in encoders},
        }
        levels = {f"code.{level}.weight": (size, config.dim) for level, size in enumerate(config.sizes)}
        check_shapes(path, expected | levels)
        for each in encoders:
            start = f"{each}encoder.layers."
            layers = {name.removeprefix(start).split(".")[0] for name in shapes if name.startswith(start)}
            if len(layers) != config.n_layers:
                raise ValueError(f"n_layers is {config.n_layers}, the file has {len(layers)} layers")
        weights = load_weights(path, device)
        if encoders != _ENCODERS:
            weights = _with_two_encoders(weights)
        weights = {"n_trained": torch.zeros(config.n_items, dtype=torch.long), "trend": torch.zeros(len(ids))} | weights
        # the file's mapped tensors replace those that the model is made with
        model = Timeline(config, ids.unique, torch.zeros(()).expand(weights["vectors"].shape))
        own = model.state_dict()
        for name in own.keys() & weights.keys():
            if weights[name].dtype != own[name].dtype:
                raise ValueError(f"{name} is {weights[name].dtype}, expected {own[name].dtype}")
        model.load_state_dict(weights, assign=True)
    except (KeyError, TypeError, RuntimeError, ValueError) as error:
        why = one_line(str(error), 300).removeprefix(f"{path}: ")  # torch writes several lines
        raise ValueError(f"{path.with_name('config.json')} does not describe {path.name}: {why}") from error
    return model.to(device)


def _with_two_encoders(weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The weights of format 2, where both heads read one encoder, as a model with an encoder for each."""
    weights = {"backward_start": torch.zeros_like(weights["start"]), **weights}
    of_encoder = ("start", "backward_start", "position.", "encoder.")
    shared = {name: weights.pop(name) for name in list(weights) if name.startswith(of_encoder)}
    chosen = {name.replace("code", "chosen"): weights[name].clone() for name in weights if name.startswith("code.")}
    del chosen[f"chosen.{len(chosen) - 1}.weight"]
    return weights | chosen | {f"{each}{name}": x.clone() for each in _ENCODERS for name, x in shared.items()}
