"""The recommender behind a queue: requests of `schemas` in, answers ready for JSON out."""

import asyncio
import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any, Literal, NamedTuple

import numpy as np

from semid_lib.serving.http import schemas
from semid_lib.serving.http.batching import Batcher, OverloadedError
from semid_lib.serving.http.item_index import ItemIndex
from semid_lib.serving.http.middleware import Limits, Meters, facts_of, log
from semid_lib.serving.recommender import Recommender

# Beam widths: a request for k items gets the first that holds k, so that requests for 5, 10 and 20 share a call and no
# answer depends on the others.
_BEAMS = (50, 100, schemas.MAX_K)
_COST = {"recommend": 1, "search": 3}  # of a beam; a search has wider beams and a text encoder
_MAX_COST = 32 * 100  # of a call: 50 ms on a core
_NO_MODEL = {
    "recommend": "no next-item model in this folder: serve one that chapter 07 saved, or use /search",
    "search": "no search model in this folder: serve one that chapter 05 or 10 saved, or use /recommend",
}

Task = Literal["recommend", "search"]
Found = list[tuple[int, float]]  # item rows and scores, best first


class UnableError(Exception):
    """The loaded folder has no model for a request."""


class _Kind(NamedTuple):
    """What requests must have in common to be answered by one call."""

    task: Task
    beam_width: int
    exclude_seen: bool
    k: int | None = None  # only with new_items: a list with a floor cannot be cut
    new_items: tuple[int, int] | None = None  # see `Recommender.recommend`


class _Request(NamedTuple):
    asked: Any  # item rows of a history, or a query
    k: int
    allowed: np.ndarray | None  # (n_items,) bool


class Service:
    """A recommender, its item index, and the queue in front of it.

    Start it with `async with service.batcher`, and end it so or by `retire`. All methods that answer raise UnableError,
    `OverloadedError` when the queue is full, and `UnknownError` or `UnknownItemError` for a name or an item that the
    catalogue does not have.
    """

    def __init__(self, recommender: Recommender, limits: Limits, meters: Meters):
        self.recommender, self.limits, self.meters = recommender, limits, meters
        self.can = {"recommend": recommender.model is not None, "search": recommender.searcher is not None}
        self.index = ItemIndex(recommender.items, recommender.ids, recommender.trie, recommender.item_ids)
        self.state: Literal["ready", "loading", "failed"] = "ready"
        self.batcher = Batcher(
            self._work, limits.max_batch, limits.max_queue, lambda kind: _COST[kind.task] * kind.beam_width, _MAX_COST
        )
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="item index")
        self._held: np.ndarray | None = None  # (n_items,) bool: what `hold` allows
        self._n_users = 0

    @contextlib.contextmanager
    def in_use(self) -> Iterator["Service"]:
        """While a request has it, it is not retired."""
        self._n_users += 1
        try:
            yield self
        finally:
            self._n_users -= 1

    async def retire(self) -> None:
        """Answer all requests that have this service, then free its threads."""
        while self._n_users:
            await asyncio.sleep(0.01)
        await self.batcher.__aexit__()
        await asyncio.to_thread(self._reader.shutdown)

    def hold(self, rules: schemas.Rules) -> int:
        """Let rules hold for every answer from now on; returns how many listed items the catalogue does not have.

        Raises
        ------
        UnknownError
            For a category or brand that no item has.
        ValueError
            If the rules leave no item. In both cases the rules before stay.
        """
        index, row_of = self.index, self.index.item_ids.row_of
        allowed = index.allowed(rules.allowed_categories, rules.allowed_brands, [])
        allowed = np.ones(len(index), dtype=bool) if allowed is None else allowed
        unknown = 0
        for listed, keep in ((rules.allowed_items, True), (rules.blocked_items, False)):
            if listed is not None:
                rows = [row_of[str(item_id)] for item_id in listed if str(item_id) in row_of]
                unknown += len(listed) - len(rows)
                mask = np.full(len(index), not keep)
                mask[rows] = keep
                allowed &= mask
        if not allowed.any():
            raise ValueError(f"the rules leave none of {len(index)} items, expected at least one")
        self._held = None if allowed.all() else allowed
        return unknown

    @property
    def n_allowed(self) -> int:
        """Number of items that `hold` allows."""
        return len(self.index) if self._held is None else int(self._held.sum())

    async def recommend(self, request: schemas.RecommendQuestion) -> dict:
        """The next items after a history, each with the item of the history that is nearest to it."""
        history = self.index.item_ids.rows(request.item_ids, "item_ids")
        wish = request.new_items
        new_items = None if wish is None else (wish.at_least, wish.at_most)
        rules = self._allowed(request)
        [found] = await self._ask("recommend", request.k, request.exclude_seen, [history], rules, new_items)
        hits = await self._read(self._hits, found, lambda row: {"why": self.index.why(row, history)})
        return {"items": hits, "skipped": len(request.item_ids) - len(history)}

    async def search(self, request: schemas.SearchQuestion) -> dict:
        """The items that a query asks for, each with the words that it shares with the query."""
        await self._until_loaded()
        [found] = await self._ask("search", request.k, False, [request.query], self._allowed(request))
        query, index = request.query, self.index
        hits = await self._read(self._hits, found, lambda row: {"matched_words": index.matched_words(row, query)})
        return {"items": hits, "any_word_found": await self._read(index.knows_word_of, query)}

    async def predict(self, request: schemas.PredictQuestion) -> dict:
        """Histories of several users, answered with item ids alone."""
        self.batcher.check_room(len(request.instances))  # before the work of reading 64,000 ids
        rows, item_ids = self.index.item_ids.rows, self.index.item_ids.for_json
        histories = [rows(one.item_ids, f"instances {at}") for at, one in enumerate(request.instances)]
        answers = await self._ask("recommend", request.topk, None, histories, self._held)
        return {
            "predictions": [
                {"user_id": one.user_id, "predictions": [item_ids[row] for row, _ in found]}
                for one, found in zip(request.instances, answers, strict=True)
            ]
        }

    async def find(self, text: str, limit: int) -> list[dict]:
        """Items by the words of their titles, or by id."""
        return [self.index.describe(row) for row in await self._read(self.index.find, text, limit)]

    def facts(self) -> dict:
        """Size, names and examples of the catalogue, and what the loaded model can do."""
        source, name, brands = self.recommender.source, self.recommender.version_name, self.index.brands.n_items
        return {
            "n_items": len(self.index),
            "n_levels": self.index.codes.shape[1],
            "can_recommend": self.can["recommend"],
            "can_search": self.can["search"],
            "exclude_seen": self.recommender.exclude_seen,
            "max_k": schemas.MAX_K,
            "source": None if source is None else str(source),
            "version": None if name is None else {"name": name, **self.recommender.version._asdict()},
            "categories": _counted(self.index.categories.n_items),
            "brands": _counted(brands, schemas.MAX_BRANDS),
            "n_brands": len(brands),
            "example_queries": self.index.example_queries if self.can["search"] else [],
        }

    def warm_up(self) -> None:
        """Run one dummy request, because first calls are slow: a history if the model can answer one, else a query."""
        self._run_dummy("recommend" if self.can["recommend"] else "search", 1)

    def warm_up_rest(self) -> None:
        """Run dummy requests for all that `warm_up` leaves out: batches, rules, the index of words, a query.

        Batches load numba's loop, and a query loads the text encoder. This takes longer than one history needs, so a
        service may open before it (`warm_up_beside`).
        """
        task: Task = "recommend" if self.can["recommend"] else "search"
        self._run_dummy(task, 8)
        self._run_dummy(task, 8, np.ones(len(self.index), dtype=bool))
        self.index.find("a", 1)
        if self.can["search"]:
            self.index.knows_word_of("a")
            self.facts()
            self._run_dummy("search", 1)

    def warm_up_beside(self) -> None:
        """Run `warm_up_rest` in a thread. Until it is done, `state` is "loading" and queries wait for it."""

        def warm_up() -> None:
            try:
                self.warm_up_rest()
                self.state = "ready"
                log.info("ready")
            except Exception as error:  # the thread would end without a line in the log
                log.error("loading failed", extra={"facts": facts_of(error)})
                self.state = "failed"  # which says: see the log

        self.state = "loading"
        threading.Thread(target=warm_up, daemon=True).start()

    def _run_dummy(self, task: Task, n: int, allowed: np.ndarray | None = None) -> None:
        asked = np.zeros(1, dtype=np.int64) if task == "recommend" else "a"
        self._answer(_Kind(task, _BEAMS[0], task == "recommend"), [_Request(asked, 1, allowed)] * n)

    def _allowed(self, request: schemas.RecommendQuestion | schemas.SearchQuestion) -> np.ndarray | None:
        mask = self.index.allowed(request.allowed_categories, request.allowed_brands, request.blocked_items)
        held = self._held
        return held if mask is None else mask if held is None else mask & held

    async def _ask(
        self,
        task: Task,
        k: int,
        exclude_seen: bool | None,
        asked: Sequence,
        allowed: np.ndarray | None = None,
        new_items: tuple[int, int] | None = None,
    ) -> list[Found]:
        if not self.can[task]:
            raise UnableError(_NO_MODEL[task])
        exclude_seen = self.recommender.exclude_seen if exclude_seen is None else exclude_seen
        width = next(width for width in _BEAMS if width >= k)
        kind = _Kind(task, width, exclude_seen, None if new_items is None else k, new_items)
        return await self.batcher.ask(kind, [_Request(one, k, allowed) for one in asked])

    async def _until_loaded(self) -> None:
        """Wait for the text encoder: to load it, a query would hold up the histories behind it."""
        try:
            async with asyncio.timeout(0.8 * self.limits.seconds):
                while self.state == "loading" and self.can["recommend"]:  # else `warm_up` has loaded it
                    await asyncio.sleep(0.05)
        except TimeoutError:
            raise OverloadedError("the text encoder is still loading: retry after 1 s") from None

    async def _read(self, work: Callable, *args) -> Any:
        """Read the item index in a thread, so that the event loop stays free."""
        return await asyncio.get_running_loop().run_in_executor(self._reader, work, *args)

    def _work(self, kind: _Kind, requests: list[_Request]) -> list[Found]:
        self.meters.batch.observe(len(requests))
        return self._answer(kind, requests)

    def _answer(self, kind: _Kind, requests: list[_Request]) -> list[Found]:
        """Answer all requests of a kind in one call."""
        asked, k = [request.asked for request in requests], min(kind.k or kind.beam_width, len(self.index))
        allowed = None
        if any(request.allowed is not None for request in requests):
            everything = np.ones(len(self.index), dtype=bool)
            allowed = np.stack([everything if one.allowed is None else one.allowed for one in requests])
        if kind.task == "recommend":
            how = {"allowed": allowed, "beam_width": kind.beam_width}
            rows, scores = self.recommender.rank(asked, k, kind.exclude_seen, kind.new_items, **how)
        else:
            rows, scores = self.recommender.searcher.search(asked, k, allowed)
        lists = zip(rows.tolist(), scores.tolist(), requests, strict=True)
        return [
            [(row, score) for row, score in zip(found, its_scores, strict=True) if row >= 0][: request.k]
            for found, its_scores, request in lists
        ]

    def _hits(self, found: Found, explain: Callable[[int], dict]) -> list[dict]:
        return [{**self.index.describe(row), "score": score, **explain(row)} for row, score in found]


def _counted(names: Mapping[str, int], most: int | None = None) -> list[dict]:
    return [{"name": name, "n_items": n} for name, n in islice(names.items(), most)]
