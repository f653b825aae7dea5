"""A trained recommender: models, semantic IDs and item table in one folder; histories or queries in, item ids out."""

import json
import tempfile
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from safetensors import SafetensorError

from semid_lib.data.item_ids import ItemIds
from semid_lib.decoding.ranking import Ranked, checked_mask, with_new_items
from semid_lib.decoding.trie import PrefixTrie
from semid_lib.ids.semantic_ids import SemanticIDs
from semid_lib.ids.tokenizer import ItemTokenizer
from semid_lib.llm.llm_search import LanguageModelSearch
from semid_lib.llm.vllm_search import VLLMSearch
from semid_lib.next_item.timeline import Timeline
from semid_lib.search.hybrid_ranker import HybridSearch
from semid_lib.search.retrieval import checked_queries
from semid_lib.serving import hub, saved
from semid_lib.serving.catalogue import changes
from semid_lib.serving.model_card import model_card
from semid_lib.workbench import remote
from semid_lib.workbench.atomic import check_only, fresh_folder, settled, sha256
from semid_lib.workbench.text import check_flag, check_histories, one_line, shown

Searcher = HybridSearch | LanguageModelSearch | VLLMSearch
_SHOWN = 30  # rows of an answer in a notebook


class _Lists(NamedTuple):
    item_ids: np.ndarray
    scores: np.ndarray


class Recommendations(_Lists):
    """The best items for each history or query, best first: a pair of arrays, which notebooks show as a table.

    Attributes
    ----------
    item_ids : (n, k) object array
        The shop's own ids, int or str; None where fewer items exist.
    scores : (n, k) float32 array
        Log-probabilities; -inf there.
    """

    skipped: int = 0  # items of the histories that were left out, because they were removed from the catalogue
    _titles: np.ndarray | None = None  # (n, k) text, where the item table has titles

    def to_frame(self) -> pd.DataFrame:
        """One row per recommended item: the position of its list, its rank from 1, id, title (if known) and score.

        Examples
        --------
        >>> ids, scores = np.array([[7, 9], [9, None]], dtype=object), np.array([[-0.7, -1.4], [-0.1, -np.inf]])
        >>> Recommendations(ids, scores).to_frame()[["list", "rank", "item_id"]].values.tolist()
        [[0, 1, 7], [0, 2, 9], [1, 1, 9]]
        """
        at, place = np.nonzero(~pd.isna(self.item_ids))
        columns = {"list": at, "rank": place + 1, "item_id": self.item_ids[at, place]}
        if self._titles is not None:
            columns["title"] = self._titles[at, place]
        return pd.DataFrame(columns | {"score": self.scores[at, place]})

    def __repr__(self) -> str:
        n, k = self.item_ids.shape
        return f"Recommendations({n:,} lists of up to {k} items; .item_ids, .scores, .to_frame())"

    def _repr_html_(self) -> str:
        n, k = self.item_ids.shape
        table = self.to_frame().head(_SHOWN).set_index(["list", "rank"])
        if "title" in table:
            table["title"] = [one_line(title) for title in table["title"]]
        # the catalogue's text as it is: escaped, and `$` no mathematics
        with pd.option_context("display.html.use_mathjax", False, "display.max_colwidth", None):
            return f"{table.to_html(notebook=True)}<p>from {n:,} lists of up to {k} items</p>"


class Recommender:
    """A model of the next item, one of search, or both, with their semantic IDs and item table.

    Parameters
    ----------
    model : Timeline, optional
        Answers histories.
    ids : SemanticIDs
    items : pandas.DataFrame
        A table with `item_id`, one row per semantic ID, in the same order.
    searcher : optional
        Answers queries.
    exclude_seen : bool
        Whether `recommend` leaves out items of the history when a call does not choose. It is saved with the models.
        Take `exclude_seen` of the validation examples: it is False where customers buy the same again.
    tokenizer : ItemTokenizer, optional
        How the items got their IDs, so that items can be added and updated.
    removed : collection of int or str
        Ids of items that were in the catalogue before. Histories may hold them; they are left out.

    Raises
    ------
    ValueError
        If the parts do not belong together, both models are missing, an item id occurs twice, or the table could not be
        saved (`table.arrow_table`).
    """

    def __init__(
        self,
        model: Timeline | None,
        ids: SemanticIDs,
        items: pd.DataFrame,
        searcher: Searcher | None = None,
        exclude_seen: bool = True,
        tokenizer: ItemTokenizer | None = None,
        removed: Collection[int | str] = (),
    ):
        saved.checked_table(items)
        self._join(model, ids, items, searcher, exclude_seen, tokenizer, removed)

    def _join(
        self, model: Timeline | None, ids: SemanticIDs, items: pd.DataFrame, searcher, exclude_seen, tokenizer, removed
    ) -> None:
        """Put the parts together; the item table has been checked."""
        if model is None and searcher is None:
            raise ValueError("there is neither a next-item model nor a search model: expected at least one")
        if len(items) != len(ids) or (model is not None and not np.array_equal(model.ids.cpu().numpy(), ids.unique)):
            in_model = "" if model is None else f", {len(model.ids)} in the model"
            found = f"{len(items)} items, {len(ids)} semantic IDs{in_model}"
            raise ValueError(f"{found}: expected the same items. Load all from one folder")
        trie = None if searcher is None else searcher.trie
        if trie and (trie.n_items != len(ids) or not np.array_equal(trie.ids(), ids.unique[trie.item.cpu().numpy()])):
            raise ValueError(f"the searcher's {searcher.n_items} semantic IDs are not those of the {len(ids)} items")
        self.model, self.searcher = None if model is None else model.eval(), searcher
        self.ids, self.items = ids, items.reset_index(drop=True)
        self.exclude_seen = check_flag("exclude_seen", exclude_seen)
        self.source: hub.Source | None = None  # where on the Hub it was loaded from
        self.provenance: dict[str, Any] = {}  # of data and run, as it was loaded or saved
        if tokenizer is not None:
            tokenizer.check_ids(ids)
            if (used := getattr(searcher, "embed", tokenizer.encoder)) != tokenizer.encoder:
                raise ValueError(f"the searcher's encoder is {used!r}, but that of the IDs {tokenizer.encoder!r}")
        self.tokenizer, self.version = tokenizer, saved.Version()
        self.saved_as: str | None = None  # sha256 of the config.json that it was loaded from or saved as
        self.item_ids = ItemIds(self.items, removed)

    def search(
        self,
        queries: Sequence[str],
        k: int = 10,
        allowed: np.ndarray | None = None,
        query_vectors: np.ndarray | None = None,
        progress: bool = False,
    ) -> Recommendations:
        """Find the k most probable items for each query.

        Parameters
        ----------
        queries : sequence of str
        k : int
        allowed : (n_items,) or (n_queries, n_items) bool, optional
            Items that may be returned, in the order of `items`; `rules` makes such masks.
        query_vectors : (n_queries, dim) float32, optional
            Embeddings by the encoder of the items, so that none is embedded twice. A language model reads the text
            alone.
        progress : bool

        Returns
        -------
        Recommendations

        Raises
        ------
        ValueError
            Without a searcher, for a query that is blank or no text, a k below 1 or a mask that does not fit.
        """
        if self.searcher is None:
            raise ValueError("this recommender has no search model: train one (chapter 10)")
        queries = checked_queries(queries, k)
        checked_mask(allowed, len(queries), len(self.ids))
        if not queries:
            return self._with_item_ids(Ranked(np.empty((0, k), dtype=np.int64), np.empty((0, k), dtype=np.float32)))
        return self._with_item_ids(self.searcher.search(queries, k, allowed, query_vectors, progress))

    def recommend(
        self,
        histories: Sequence[Sequence[int | str]],
        k: int = 10,
        exclude_seen: bool | None = None,
        beam_width: int | None = None,
        progress: bool = False,
        allowed: np.ndarray | None = None,
        diversity: tuple[int, int] | None = None,
        new_items: tuple[int, int] | None = None,
    ) -> Recommendations:
        """Find the k most probable next items after each history.

        Parameters
        ----------
        histories : sequence of sequences of int or str
            Item ids of each user, oldest first: lists, a Series of lists or a 2-D array. An empty history gets what
            users begin with. The model reads the last `max_length` items of a longer one.
        k : int
        exclude_seen : bool, optional
            Leave out all items of the history; by default as the recommender was made.
        beam_width : int, optional
            Prefixes kept per level, at least k; by default max(50, k).
        progress : bool
        allowed : (n_items,) or (n_histories, n_items) bool, optional
            Items that may be returned, in the order of `items`; `rules` makes such masks.
        diversity : (m, p), optional
            At most m items of a list share their first p codes. Lists may be shorter, unless the beam is wide.
        new_items : (at_least, at_most), optional
            How many items of a list are without training signal; by default as the model finds. (0, 0): none.

        Returns
        -------
        Recommendations

        Raises
        ------
        ValueError
            Without a model of the next item, for an unknown item id (the message names history and position), and for
            arguments that do not fit.
        """
        histories = [each if hasattr(each, "__len__") else list(each) for each in check_histories(histories)]
        rows = [self.item_ids.rows(history, f"history {at}") for at, history in enumerate(histories)]
        how = {"beam_width": beam_width, "progress": progress, "allowed": allowed, "diversity": diversity}
        found = self._with_item_ids(self.rank(rows, k, exclude_seen, new_items, **how))
        found.skipped = sum(map(len, histories)) - sum(map(len, rows))
        return found

    def rank(
        self,
        histories: Sequence[np.ndarray],
        k: int,
        exclude_seen: bool | None = None,
        new_items: tuple[int, int] | None = None,
        **how: Any,
    ) -> Ranked:
        """`recommend` in item rows: histories and answers hold positions in the item table.

        Parameters
        ----------
        histories, k, exclude_seen, new_items
            As for `recommend`, with item rows in the histories.
        **how
            Other arguments of `Timeline.rank`.

        Returns
        -------
        Ranked

        Raises
        ------
        ValueError
            As for `recommend`, and for a row that is not in the catalogue (the message names the history).
        """
        if self.model is None:
            raise ValueError("this recommender has no next-item model: train one on histories (chapter 07)")
        seen, rank = self.exclude_seen if exclude_seen is None else exclude_seen, self.model.rank
        if new_items is None:
            return rank(histories, k, seen, **how)
        if how.get("diversity") is not None:
            raise ValueError("new_items and diversity are both given: expected one of them")
        is_new, rules = np.arange(len(self.ids)) >= self.model.config.n_items, how.pop("allowed", None)
        return with_new_items(lambda mask: rank(histories, k, seen, allowed=mask, **how), is_new, new_items, rules)

    @property
    def trie(self) -> PrefixTrie:
        """The prefix trie of the items."""
        return self.searcher.trie if self.model is None else self.model.trie

    def _with_item_ids(self, ranked: Ranked) -> Recommendations:
        found = Recommendations(self.item_ids.at(ranked.items), ranked.scores)
        if "title" in self.items:
            found._titles = self.items["title"].to_numpy()[ranked.items]
        return found

    add_items = changes.add_items  # all return another recommender and a report
    remove_items, update_items = changes.remove_items, changes.update_items
    follow_sales = changes.follow_sales
    set_new_item_rate = changes.set_new_item_rate

    @property
    def version_name(self) -> str | None:
        """Number and digest of the folder that it was loaded from or saved as; None in memory alone."""
        return None if self.saved_as is None else f"{self.version.number}-{self.saved_as[:12]}"

    def __repr__(self) -> str:
        sizes = " x ".join(map(str, self.ids.sizes))
        names = ["none" if part is None else type(part).__name__ for part in (self.model, self.searcher)]
        parts = f"next item: {names[0]}, search: {names[1]}"
        return f"Recommender(items: {len(self.items):,}, codes per semantic ID: {sizes}, {parts})"

    def save_pretrained(self, folder: str | Path, provenance: Mapping[str, Any] | None = None) -> None:
        """Write `config.json`, `semantic_ids.npz`, `items.parquet` and the models' files; no pickle anywhere.

        A folder of an earlier save is replaced as a whole: beside a writer, or after a kill, either one is loaded.

        Parameters
        ----------
        folder : str or Path
            Also an address such as "s3://bucket/folder" (`remote`).
        provenance : mapping, optional
            JSON about data and run, as `store.Store.provenance` gives it; by default what was loaded.

        Raises
        ------
        ValueError
            If the folder holds other files, or the item table or the provenance cannot be written.
        OSError
            If the disk is full or read-only; the folder is as it was.
        """
        where, folder = folder, remote.local(folder)
        check_only(folder, saved.FILES)
        items = saved.checked_table(self.items)
        try:
            provenance = dict(self.provenance if provenance is None else provenance)
            json.dumps(provenance, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise ValueError(f"provenance is {shown(provenance)}, expected what JSON holds: {error}") from error
        if not self.version.written:
            self.version = self.version._replace(written=changes.now())
        try:
            with fresh_folder(folder) as fresh:
                saved.write(fresh, self, items, provenance)
                saved_as = sha256(fresh / "config.json")
        except (OSError, SafetensorError) as error:
            raise OSError(f"{folder} could not be written and is as it was: {one_line(str(error), 300)}") from error
        self.provenance, self.saved_as = provenance, saved_as
        remote.send(where, whole=True)

    @classmethod
    def from_pretrained(
        cls,
        where: str | Path,
        device: str | torch.device = "cpu",
        revision: str | None = None,
        engine: str = "transformers",
        fingerprint: str | None = None,
    ) -> "Recommender":
        """Read what `save_pretrained` wrote to a folder, or `push_to_hub` to a repository, "org/name", on the Hub.

        Only the files that `config.json` lists are fetched, neither pickle nor Python among them.

        Parameters
        ----------
        where : str or Path
            Also an address such as "s3://bucket/folder" (`remote`), of which files that have changed are brought.
        device : str or torch.device
        revision : str, optional
            Of the repository, a branch, tag or commit, by default main; `source` is the commit.
        engine : str
            "vllm" to let a language model answer through vLLM (`vllm_search`).
        fingerprint : str, optional
            Refuse a recommender that was not made from data with this fingerprint (`dataset.Dataset.fingerprint`).

        Raises
        ------
        ValueError
            Naming the file if one is missing, has another checksum than `config.json` says, is of another format, or
            does not fit the others; and as `hub.resolve`, `hub.fetch` and `remote.fetch` do.
        """
        if remote.is_remote(where):
            remote.fetch(where)
        folder = settled(remote.local(where))
        source = hub.resolve(folder if remote.is_remote(where) else where, revision)
        if source is not None:
            folder = hub.fetch(source, {"config.json": None})
        parts, facts = saved.steady(folder, lambda: saved.read(folder, source, device, engine, fingerprint))
        loaded = cls.__new__(cls)
        try:
            loaded._join(*parts)
        except ValueError as error:
            raise ValueError(f"{source or folder}: {error}") from error
        vars(loaded).update(facts, source=source)
        return loaded

    def push_to_hub(
        self,
        repo: str,
        private: bool = True,
        rows: Sequence[dict[str, Any]] | None = None,
        data: str | None = None,
        licence: str | None = None,
    ) -> hub.Source:
        """Put it into a repository on the Hub, "org/name", as one commit with a model card; returns the commit.

        rows: what was measured of it, as `store.Store.rows` has it. data: the name of the data set, by default that of
        the rows. licence: as the Hub calls it, such as "apache-2.0". The card, README.md, is written anew each time.
        Raises ValueError for rows that make no table, and what `hub.push` raises.
        """
        card = model_card(self, repo, rows or [], data, licence)
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            (Path(folder) / "README.md").write_text(card, encoding="utf-8")
            return hub.push(folder, repo, private, [*saved.FILES, "llm/*"])
