"""Search by models that write semantic IDs, under the protocol of `retrieval`, and what they write without a trie.

`LightSearch` and `LanguageModelSearch` answer `search(queries, k, allowed, query_vectors)` as BM25 does, so that one
function measures them all, and `retrieval.FusedScores` merges them. `write_freely` lets a language
model write whatever it likes: how often that names an item says how much of the trie it has learned.
"""

import json
import re
import shutil
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from semid_lib.decoding.adapters import check_tokens, load_tokens, save_tokens
from semid_lib.decoding.beam_search import constrained_beam_search
from semid_lib.decoding.ranking import Ranked, checked_mask
from semid_lib.decoding.scorers import CausalScorer
from semid_lib.decoding.trie import PrefixTrie
from semid_lib.ids import embed as encoders
from semid_lib.ids.semantic_ids import SemanticIDs, trained_tokens
from semid_lib.llm.base_models import load_base
from semid_lib.llm.examples import TEMPLATE_ARGUMENTS, encode_prompts, ensure_chat_template, prompt_for
from semid_lib.llm.fine_tuning import merge_adapter, save_model
from semid_lib.search.hybrid_ranker import Queries, QueryModel, hashed_words
from semid_lib.search.retrieval import BM25, checked_queries
from semid_lib.workbench.text import one_line, shown
from semid_lib.workbench.weights import load_weights, save_weights, shapes_of

_ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")


class WrittenSearch:
    """Search by a constrained beam, for models that write IDs; `_contexts` makes of queries what the scorer reads."""

    def __init__(self, scorer, trie: PrefixTrie, beam_width: int, batch_size: int):
        if beam_width < 1 or batch_size < 1:
            raise ValueError(f"beam_width {beam_width} and batch_size {batch_size}, expected at least 1 of each")
        self.scorer, self.trie, self.beam_width, self.batch_size = scorer, trie, beam_width, batch_size
        self.n_items = trie.n_rows

    def _contexts(self, queries: list[str], query_vectors: np.ndarray | None):
        raise NotImplementedError

    def search(
        self,
        queries: Sequence[str],
        k: int,
        allowed: np.ndarray | None = None,
        query_vectors: np.ndarray | None = None,
        progress: bool = False,
    ) -> Ranked:
        """The k most probable items for each query: item rows and log-probabilities, (n_queries, k) each.

        allowed: which items may come out, bool, (n_items,) or (n_queries, n_items), as `rules` makes them; None for
        all. query_vectors: (n_queries, dim) vectors of the queries by the encoder of the items; a language model reads
        the text alone. The beam is `beam_width`, or k if that is more. Places that no item can fill hold -1 and -inf.
        Raises ValueError for one text instead of several, a query that is no text or is blank, k below 1, or a mask
        that does not fit.
        """
        queries = checked_queries(queries, k)
        allowed = checked_mask(allowed, len(queries), self.n_items)
        parts = [Ranked(np.empty((0, k), dtype=np.int64), np.empty((0, k), dtype=np.float32))]
        starts = range(0, len(queries), self.batch_size)
        for start in tqdm(starts, desc="writing", unit="batch", disable=not progress):
            rows = slice(start, start + self.batch_size)
            vectors = None if query_vectors is None else query_vectors[rows]
            mask = allowed if allowed is None or len(allowed) == 1 else allowed[rows]
            found = constrained_beam_search(
                self.scorer, self._contexts(queries[rows], vectors), self.trie, max(self.beam_width, k), k, mask
            )
            parts.append(Ranked(found.items.cpu().numpy(), found.scores.float().cpu().numpy()))
        return Ranked(*(np.concatenate(part) for part in zip(*parts, strict=True)))

    def scores(self, queries: Sequence[str], query_vectors: np.ndarray | None = None) -> np.ndarray:
        """Log-probabilities for `retrieval.FusedScores`, exact for the items of the beam: (n_queries, n_items) float32.

        All others get that of the last item found, which none of them is likely to exceed.
        """
        found = self.search(queries, min(self.beam_width, self.n_items), query_vectors=query_vectors)
        filled = found.items >= 0
        scores = np.where(filled, found.scores, np.inf).min(axis=1)[:, None].repeat(self.n_items, axis=1)
        rows = np.nonzero(filled)[0]
        scores[rows, found.items[filled]] = found.scores[filled]
        return scores


class LightSearch(WrittenSearch):
    """Search by a `QueryModel`, which reads the vector of a query and its words.

    model: in evaluation mode. words: of the items' texts, for a model with a `word_weight`. embed: the encoder of the
    items, as the name that `embed.Encoder` takes, loaded at the first query that comes without its vector; or a
    function from texts to vectors, of any length. Raises ValueError if words are missing or not wanted, or are of
    other items.
    """

    def __init__(
        self,
        model: QueryModel,
        words: BM25 | None = None,
        embed: str | Callable[[Sequence[str]], np.ndarray] = encoders.DEFAULT_MODEL,
        beam_width: int = 100,
        batch_size: int = 32,
    ):
        super().__init__(model.eval(), model.trie, beam_width, batch_size)
        weight = model.config.word_weight
        if (words is None) != (weight == 0) or (words is not None and words.n_items != self.n_items):
            known = "without word scores" if words is None else f"with word scores of {words.n_items} items"
            raise ValueError(f"the model has word_weight {weight} and {self.n_items} items and comes {known}")
        self.words, self.embed = words, embed
        self._encode = None if isinstance(embed, str) else embed
        self._loading = threading.Lock()

    def training_batches(
        self, queries: Sequence[str], query_vectors: np.ndarray, items: np.ndarray, batch_size: int = 256, seed: int = 0
    ) -> DataLoader:
        """Batches for `training.fit`, in another order every epoch: queries as the model reads them, and item rows.

        Word scores, a number for every query and item, are made as they are needed.
        """
        items = torch.from_numpy(np.array(items, dtype=np.int64))

        def read(rows: list[int]) -> tuple[Queries, torch.Tensor]:
            return self._contexts([queries[row] for row in rows], query_vectors[rows]), items[rows]

        order = torch.Generator().manual_seed(seed)
        return DataLoader(range(len(items)), batch_size, shuffle=True, generator=order, collate_fn=read)

    def save(self, folder: Path) -> tuple[dict, list[str]]:
        """Write `query_model.safetensors` and the items' vectors: -> what `load_searcher` has to know, file names.

        Word scores are made again from the item table, and the encoder is kept by name. Raises ValueError if `embed` is
        a function, which has none.
        """
        if not isinstance(self.embed, str):
            raise ValueError("embed is a function, which cannot be saved: give the name of a model")
        self.scorer.save(folder / "query_model.safetensors")
        vectors = self.scorer.leaf_vectors.cpu()[self.trie.leaf_of_item().cpu()]
        save_weights(folder / "item_vectors.safetensors", {"vectors": vectors.contiguous()})
        files = ["query_model.safetensors", "item_vectors.safetensors"]
        return {"type": "light", "beam_width": self.beam_width, "encoder": self.embed}, files

    def _contexts(self, queries, query_vectors):
        if query_vectors is None:
            with self._loading:  # a service may warm it up while it is asked
                self._encode = self._encode or encoders.Encoder(self.embed)
            query_vectors = self._encode(queries)
        unit = torch.from_numpy(encoders.normalize(np.asarray(query_vectors, dtype=np.float32)))
        hashed = hashed_words(queries, self.scorer.config.n_buckets)
        return Queries(unit, hashed, None if self.words is None else torch.from_numpy(self.words.scores(queries)))


class Adapter(NamedTuple):
    """What fine-tuning by LoRA added to a model of the hub: all that has to be kept of it."""

    base: str  # the model's name on the hub
    revision: str  # its commit, 40 hexadecimal digits
    folder: Path  # where `sft.fine_tune` left the adapter: `lora/final` of the run's folder


class LanguageModelSearch(WrittenSearch):
    """Search by a language model that was fine-tuned to answer queries with semantic IDs (`sft`).

    tokens: per level the token of each code, as `vocabulary.extend_vocabulary` returns them. task: as what a query is
    asked, a key of `sft_examples.TASKS`. adapter: what to save instead of the model, which it must have been merged
    into; hundreds of megabytes where a model of 4 billion parameters has eight gigabytes.
    """

    def __init__(
        self,
        model,
        tokenizer,
        tokens: Sequence[np.ndarray],
        trie: PrefixTrie,
        beam_width: int = 100,
        batch_size: int = 16,
        task: str = "query_to_id",
        adapter: Adapter | None = None,
    ):
        super().__init__(CausalScorer(model, tokens), trie, beam_width, batch_size)
        self.model, self.tokenizer, self.tokens, self.task = model, tokenizer, tokens, task
        self.adapter = adapter

    def save(self, folder: Path) -> tuple[dict, list[str]]:
        """Write the model as vLLM loads it to `llm/` with its tokenizer and tokens: -> as `LightSearch.save`.

        With an adapter, that takes the place of the model, which is fetched by name and commit to load it. Raises
        ValueError for an adapter of a model that is not pinned, or one that does not hold the rows of the tokens.
        """
        facts = {"type": "language model", "beam_width": self.beam_width, "task": self.task}
        written = folder / "llm"
        if self.adapter is None:
            save_model(self.model, self.tokenizer, written)
        else:
            _copy_adapter(self.adapter, self.tokens, written)
            self.tokenizer.save_pretrained(written)
            facts["base"] = {"name": self.adapter.base, "revision": self.adapter.revision}
        save_tokens(written / "semantic_id_tokens.json", self.tokens, end_token(self.tokenizer))
        return facts, sorted(str(path.relative_to(folder)) for path in written.iterdir())

    def _contexts(self, queries, query_vectors):
        return encode_prompts(self.tokenizer, [prompt_for(self.tokenizer, query, self.task) for query in queries])


def load_searcher(
    folder: Path, facts: dict, ids: SemanticIDs, items: pd.DataFrame, device="cpu"
) -> LightSearch | LanguageModelSearch:
    """The searcher whose `save` wrote to the folder and returned the facts, for these items, in row order.

    Raises ValueError naming a file that cannot be read, or does not fit the others or the items.
    """
    folder, width = Path(folder), facts["beam_width"]
    if facts["type"] == "light":
        vectors = _item_vectors(folder / "item_vectors.safetensors", len(ids))
        model = QueryModel.load(folder / "query_model.safetensors", ids.unique, vectors).to(device)
        words = BM25(encoders.item_texts(items)) if model.config.word_weight else None
        return LightSearch(model, words, facts["encoder"], width)
    adapter, llm, trie = None, folder / "llm", PrefixTrie.build(ids.unique).to(device)
    base = None
    if "base" in facts:
        adapter = Adapter(facts["base"]["name"], facts["base"]["revision"], llm)
        _check_pinned(adapter)
        base = load_base(*adapter[:2], four_bit=False)[0]
    model, tokenizer = _language_model(llm, base)
    tokens, _ = load_tokens(llm / "semantic_id_tokens.json")
    try:
        check_tokens(tokens, trie, model.get_input_embeddings().weight.shape[0])
    except ValueError as error:
        raise ValueError(f"{llm / 'semantic_id_tokens.json'} does not fit the semantic IDs: {error}") from error
    return LanguageModelSearch(
        model.to(device).eval(), tokenizer, tokens, trie, width, task=facts["task"], adapter=adapter
    )


def _item_vectors(path: Path, n_items: int) -> np.ndarray:
    found = shapes_of(path).get("vectors", ())
    if len(found) != 2 or found[0] != n_items:
        raise ValueError(f"{path}: tensor 'vectors' has shape {found}, expected ({n_items}, dim)")
    vectors = load_weights(path)["vectors"]
    if not vectors.is_floating_point():
        raise ValueError(f"{path}: tensor 'vectors' is {vectors.dtype}, expected real numbers")
    return vectors.float().numpy()


def _language_model(folder: Path, base=None):
    """A saved model, or a base with the saved adapter, and the tokenizer.

    transformers would draw weights that are missing at random, and build as many layers as the config says.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        if base is not None:
            return merge_adapter(base, tokenizer, folder), tokenizer
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False).get_text_config()
        names = [name for file in folder.glob("*.safetensors") for name in shapes_of(file)]
        layers = {int(found[1]) for name in names if (found := re.search(r"\.layers\.(\d+)\.", name))}
        if layers and config.num_hidden_layers != len(layers):
            raise ValueError(f"config.json has {config.num_hidden_layers} layers, the weights have {len(layers)}")
        model, found = AutoModelForCausalLM.from_pretrained(
            folder, trust_remote_code=False, use_safetensors=True, output_loading_info=True
        )
        if lacking := [*found["missing_keys"], *found["mismatched_keys"]]:
            raise ValueError(f"{len(lacking)} weights are missing or of another shape, such as {shown(lacking[0])}")
        return model, tokenizer
    except Exception as error:  # of some twenty types, by which part of transformers meets the file
        raise ValueError(f"{folder} holds no language model that can be loaded: {one_line(str(error), 300)}") from error


def _check_pinned(adapter: Adapter) -> None:
    if not re.fullmatch(r"[0-9a-f]{40}", adapter.revision):
        raise ValueError(f"the adapter is for {adapter.base} at {adapter.revision!r}, expected a commit of 40 digits")


def _copy_adapter(adapter: Adapter, tokens: Sequence[np.ndarray], folder: Path) -> None:
    _check_pinned(adapter)
    source = Path(adapter.folder)
    for name in _ADAPTER_FILES:
        if not (source / name).is_file():
            raise ValueError(f"{source / name} is missing: expected the folder lora/final of a run of sft.fine_tune")
    trained = json.loads((source / _ADAPTER_FILES[0]).read_text(encoding="utf-8")).get("trainable_token_indices") or {}
    if not trained or any(sorted(rows) != trained_tokens(tokens) for rows in trained.values()):
        raise ValueError(f"{source} is an adapter without the rows of these semantic-ID tokens")
    folder.mkdir(parents=True, exist_ok=True)
    for name in _ADAPTER_FILES:
        if source.resolve() != folder.resolve():
            shutil.copyfile(source / name, folder / name)


# --- without a trie ---


class Written(NamedTuple):
    """What a language model wrote when nothing held it back."""

    codes: np.ndarray  # (n, n_levels) int64, -1 where it wrote something else than a code of that level
    items: np.ndarray  # (n,) int64 item rows, -1 where the whole answer is no semantic ID of an item


@torch.inference_mode()
def write_freely(
    model,
    tokenizer,
    tokens: Sequence[np.ndarray],
    trie: PrefixTrie,
    queries: Sequence[str],
    sample: bool = False,
    batch_size: int = 64,
    seed: int = 0,
    progress: bool = False,
) -> Written:
    """Let a language model answer queries token by token over its whole vocabulary.

    sample: draw every token from the model's distribution, nothing cut off; by default take the most probable. An
    answer names an item if it has a code of each level in order, the codes are those of an item, and the end of the
    text comes next.
    """
    answers = [np.empty((0, len(tokens) + 1), dtype=np.int64)]
    how = {"do_sample": True, "top_k": 0, "top_p": 1.0, "temperature": 1.0} if sample else {"do_sample": False}
    devices = [model.device] if model.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        for start in tqdm(range(0, len(queries), batch_size), desc="writing", unit="batch", disable=not progress):
            asked = [prompt_for(tokenizer, query) for query in queries[start : start + batch_size]]
            prompts = encode_prompts(tokenizer, asked).to(model.device)
            written = model.generate(
                input_ids=prompts["input_ids"],
                attention_mask=prompts["attention_mask"],
                max_new_tokens=len(tokens) + 1,
                pad_token_id=tokenizer.pad_token_id,
                **how,
            )[:, prompts["input_ids"].shape[1] :].cpu()
            short = len(tokens) + 1 - written.shape[1]
            answers.append(torch.nn.functional.pad(written, (0, short), value=-1).numpy())
    return read_answers(np.concatenate(answers), tokens, trie, end_token(tokenizer))


def read_answers(answers: np.ndarray, tokens: Sequence[np.ndarray], trie: PrefixTrie, end_token: int) -> Written:
    """Tokens of answers (n, n_levels + 1) as codes and items.

    >>> trie = PrefixTrie.build(np.array([[1, 0], [0, 1]]))
    >>> answers = np.array([[6, 7, 2], [6, 8, 2], [7, 7, 2], [6, 7, 3]])
    >>> read_answers(answers, [np.array([5, 6]), np.array([7, 8])], trie, end_token=2)
    Written(codes=array([[ 1,  0],
           [ 1,  1],
           [-1,  0],
           [ 1,  0]]), items=array([ 0, -1, -1, -1]))
    """
    codes = np.full((len(answers), len(tokens)), -1, dtype=np.int64)
    for level, ids in enumerate(tokens):
        order = np.argsort(ids)
        place = np.searchsorted(ids, answers[:, level], sorter=order).clip(max=len(ids) - 1)
        right = ids[order[place]] == answers[:, level]
        codes[right, level] = order[place[right]]
    node = torch.zeros(len(codes), dtype=torch.long)
    for level in range(len(tokens)):
        node = trie.step(level, node, torch.from_numpy(codes[:, level]))
    return Written(codes, np.where(answers[:, len(tokens)] == end_token, trie.item_at(node).numpy(), -1))


def prefix_accuracy(codes: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Whether the first 1, 2, ... codes are all right: (n, n_levels) float64 of 0 and 1.

    codes: (n, n_levels) as written, -1 for none. wanted: (n, n_levels) semantic IDs. Raises ValueError if the shapes
    differ.

    >>> prefix_accuracy(np.array([[3, 1, 4], [3, 0, 4]]), np.array([[3, 1, 5], [3, 1, 4]]))
    array([[1., 1., 0.],
           [1., 0., 0.]])
    """
    if np.shape(codes) != np.shape(wanted):
        raise ValueError(f"codes are {np.shape(codes)} and those wanted {np.shape(wanted)}, expected equal shapes")
    return np.logical_and.accumulate(np.equal(codes, wanted), axis=1).astype(np.float64)


def end_token(tokenizer) -> int:
    """The token with which the chat template ends an answer."""
    messages = [{"role": "user", "content": "question"}, {"role": "assistant", "content": "ANSWER"}]
    ensure_chat_template(tokenizer)
    text = tokenizer.apply_chat_template(messages, tokenize=False, **TEMPLATE_ARGUMENTS)
    return tokenizer(text.rpartition("ANSWER")[2], add_special_tokens=False)["input_ids"][0]
