"""The recommender behind a queue: requests as `messages` defines them in, answers ready for JSON out."""

import asyncio
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any, NamedTuple

import numpy as np

from semid_lib.serving.http import schemas
from semid_lib.serving.http.batching import Batcher, OverloadedError
from semid_lib.serving.http.item_index import Catalogue
from semid_lib.serving.http.middleware import Limits, Meters, facts_of, log
from semid_lib.serving.recommender import Recommender

# Beam widths: a request for k items gets the first that holds k, so that requests for 5, 10 and 20 share a call and no
# answer depends on the others.
_BEAMS = (50, 100, schemas.MAX_K)
_COST = {"recommend": 1, "search": 3}  # of a beam; one that reads text has wider beams and a text encoder
_MAX_COST = 32 * 100  # of a call: 50 ms on a core


class UnableError(Exception):
    """The loaded folder has no model for a request."""


class _Kind(NamedTuple):
    """What requests must have in common to be answered by one call."""

    task: str  # "recommend" or "search"
    beams: int
    exclude_seen: bool

    @property
    def cost(self) -> int:
        return _COST[self.task] * self.beams


class _Question(NamedTuple):
    asked: np.ndarray | str  # item rows of a history, or a query
    k: int
    mask: np.ndarray | None  # (n_items,) bool: what may come out


class Found(NamedTuple):
    """The answer to one question: item rows and scores, best first."""

    rows: list[int]
    scores: list[float]


class Service:
    """A recommender, its catalogue, and the queue in front of it.

    Start and stop it with `async with service.batcher`. All methods that answer raise UnableError, `OverloadedError`
    when the queue is full, and `UnknownError` or `UnknownItemError` for a name or an item that the catalogue does not
    have.
    """

    def __init__(self, recommender: Recommender, limits: Limits, meters: Meters):
        self.recommender, self.meters, self._seconds = recommender, meters, limits.seconds
        self.can_recommend = recommender.model is not None
        self.can_search = recommender.searcher is not None
        self.catalogue = Catalogue(recommender.items, recommender.ids, recommender.trie, recommender.item_ids)
        self.state = "ready"  # or "loading", or "failed"
        self.batcher = Batcher(self._work, limits.max_batch, limits.max_queue, lambda kind: kind.cost, _MAX_COST)
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="catalogue")

    async def recommend(self, question: schemas.RecommendQuestion) -> dict:
        """The next items after a history, and what each has in common with it."""
        history = self.catalogue.item_ids.rows(question.item_ids, "item_ids")
        [found] = await self._ask("recommend", question.k, question.exclude_seen, [history], self._mask(question))
        return {"items": await self._read(self._hits, found, history)}

    async def search(self, question: schemas.SearchQuestion) -> dict:
        """The items that a text asks for, and the words that they share with it."""
        await self._until_loaded()
        [found] = await self._ask("search", question.k, False, [question.query], self._mask(question))
        return await self._read(self._matches, found, question.query)

    async def predict(self, question: schemas.PredictQuestion) -> dict:
        """Histories of several users, answered with bare item ids."""
        self.batcher.check_room(len(question.instances))  # before the work of reading 64,000 ids
        rows, item_ids = self.catalogue.item_ids.rows, self.catalogue.item_ids.for_json
        histories = [rows(one.item_ids, f"instances {at}") for at, one in enumerate(question.instances)]
        answers = await self._ask("recommend", question.topk, None, histories, None)
        return {
            "predictions": [
                {"user_id": one.user_id, "predictions": [item_ids[row] for row in found.rows]}
                for one, found in zip(question.instances, answers, strict=True)
            ]
        }

    async def find(self, text: str, limit: int) -> list[dict]:
        """Items by the words of their titles, or by id."""
        return [self.catalogue.describe(row) for row in await self._read(self.catalogue.find, text, limit)]

    def neighbours(self, row: int, limit: int) -> dict:
        """An item and those whose semantic IDs begin as its own does."""
        describe = self.catalogue.describe
        groups = [
            {"prefix": prefix.codes, "n_items": prefix.n_items, "items": [describe(near) for near in prefix.rows]}
            for prefix in self.catalogue.neighbours(row, limit)
        ]
        return {"item": describe(row), "prefixes": groups}

    def facts(self) -> dict:
        """What there is, and what the loaded model can do."""
        brands = self.catalogue.with_brand.n_items
        return {
            "n_items": len(self.catalogue),
            "n_levels": self.catalogue.codes.shape[1],
            "can_recommend": self.can_recommend,
            "can_search": self.can_search,
            "exclude_seen": self.recommender.exclude_seen,
            "max_k": schemas.MAX_K,
            "source": None if self.recommender.source is None else str(self.recommender.source),
            "categories": _counted(self.catalogue.with_category.n_items.items()),
            "brands": _counted(islice(brands.items(), schemas.MAX_BRANDS)),
            "n_brands": len(brands),
            "example_queries": self.catalogue.example_queries if self.can_search else [],
        }

    def warm_up(self) -> None:
        """Run one dummy request, because first calls are slow: a history if the model can answer one, else a query."""
        self._run_dummy("recommend" if self.can_recommend else "search", 1)

    def warm_up_rest(self) -> None:
        """Run dummy requests for all that `warm_up` leaves out: batches, rules, the index of words, a query.

        Batches load numba's loop, and a query loads the text encoder. This takes longer than one history needs, so a
        service may open before it (`warm_up_beside`).
        """
        task = "recommend" if self.can_recommend else "search"
        self._run_dummy(task, 8)
        self._run_dummy(task, 8, has_mask=True)
        self.catalogue.find("a", 1)
        if self.can_search:
            self.catalogue.holds_word_of("a")
            self.facts()
        if self.can_recommend and self.can_search:
            self._run_dummy("search", 1)

    def warm_up_beside(self) -> None:
        """Run `warm_up_rest` in a thread. Until it is done, `state` is "loading" and queries wait for it."""
        self.state = "loading"
        threading.Thread(target=self._warm_up_beside, daemon=True).start()

    def _warm_up_beside(self) -> None:
        try:
            self.warm_up_rest()
        except Exception as error:  # the thread would end without a line in the log
            self.state = "failed"
            log.error("loading failed", extra={"facts": facts_of(error)})
        else:
            self.state = "ready"
            log.info("ready")

    def _run_dummy(self, task: str, n: int, has_mask: bool = False) -> None:
        asked = np.zeros(1, dtype=np.int64) if task == "recommend" else "a"
        mask = np.ones(len(self.catalogue), dtype=bool) if has_mask else None
        self._answer(_Kind(task, _BEAMS[0], task == "recommend"), [_Question(asked, 1, mask)] * n)

    def _mask(self, question: schemas.RecommendQuestion | schemas.SearchQuestion) -> np.ndarray | None:
        return self.catalogue.allowed(question.allowed_categories, question.allowed_brands, question.blocked_items)

    async def _ask(
        self, task: str, k: int, exclude_seen: bool | None, asked: Sequence, mask: np.ndarray | None
    ) -> list[Found]:
        if task == "recommend" and not self.can_recommend:
            raise UnableError("no next-item model in this folder: serve one that chapter 07 saved, or use /search")
        if task == "search" and not self.can_search:
            raise UnableError(
                "no search model in this folder: serve one that chapter 05 or 10 saved, or use /recommend"
            )
        exclude_seen = self.recommender.exclude_seen if exclude_seen is None else exclude_seen
        kind = _Kind(task, next(beams for beams in _BEAMS if beams >= k), exclude_seen)
        return await self.batcher.ask(kind, [_Question(one, k, mask) for one in asked])

    async def _until_loaded(self) -> None:
        """Wait for the text encoder: to load it, a query would hold up the histories behind it."""
        try:
            async with asyncio.timeout(0.8 * self._seconds):
                while self.state == "loading" and self.can_recommend:  # else `warm_up` has loaded it
                    await asyncio.sleep(0.05)
        except TimeoutError:
            raise OverloadedError("the text encoder is still loading: retry after 1 s") from None

    async def _read(self, work: Callable, *args) -> Any:
        """Work on the catalogue in a thread, so that the event loop stays free."""
        return await asyncio.get_running_loop().run_in_executor(self._reader, work, *args)

    def _work(self, kind: _Kind, questions: list[_Question]) -> list[Found]:
        self.meters.batch.observe(len(questions))
        return self._answer(kind, questions)

    def _answer(self, kind: _Kind, questions: list[_Question]) -> list[Found]:
        """One call for all questions of a kind."""
        asked, k = [question.asked for question in questions], min(kind.beams, len(self.catalogue))
        allowed = self._allowed([question.mask for question in questions])
        if kind.task == "recommend":
            rows, scores = self.recommender.rank(asked, k, kind.exclude_seen, allowed=allowed)
        else:
            rows, scores = self.recommender.searcher.search(asked, k, allowed)
        lengths = np.minimum((rows >= 0).sum(axis=1), [question.k for question in questions])  # -1 at the end
        return [
            Found(rows[at, :length].tolist(), scores[at, :length].tolist())
            for at, length in enumerate(lengths.tolist())
        ]

    def _allowed(self, masks: list[np.ndarray | None]) -> np.ndarray | None:
        if all(mask is None for mask in masks):
            return None
        everything = np.ones(len(self.catalogue), dtype=bool)
        return np.stack([everything if mask is None else mask for mask in masks])

    def _hits(self, found: Found, history: np.ndarray) -> list[dict]:
        return [
            {**self.catalogue.describe(row), "score": score, "why": self._why(row, history)}
            for row, score in zip(found.rows, found.scores, strict=True)
        ]

    def _why(self, row: int, history: np.ndarray) -> dict | None:
        shared = self.catalogue.shared_prefix(row, history)
        if shared is None:
            return None
        item_id, title = self.catalogue.item_ids.for_json[shared.row], self.catalogue.titles[shared.row]
        return {"item_id": item_id, "title": title or "", "shared_codes": shared.n_codes}

    def _matches(self, found: Found, query: str) -> dict:
        hits = [
            {**self.catalogue.describe(row), "score": score, "matched_words": self.catalogue.shared_words(query, row)}
            for row, score in zip(found.rows, found.scores, strict=True)
        ]
        return {"items": hits, "any_word_found": self.catalogue.holds_word_of(query)}


def _counted(names: Iterable[tuple[str, int]]) -> list[dict]:
    return [{"name": name, "n_items": n} for name, n in names]
