"""Micro-batching with a fair queue: requests that wait together share calls of the model, and small ones do not wait
for large ones.

There is no timer. While the thread works, questions gather, and the next batch takes them: one client alone never waits
for others, and under load batches fill by themselves.

Questions are taken in rounds, at most 16 of each request in a round. So a request of one question waits for a few
questions of a request of 64, not for all.
"""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

_TURN = 16  # questions of one request in a round


class OverloadedError(Exception):
    """The queue is full; nothing of the request was accepted."""


class _Job(NamedTuple):
    round: int
    cost: float
    kind: Any
    question: Any
    answer: asyncio.Future


class Batcher:
    """Collects questions of one kind and answers them with one call.

    Parameters
    ----------
    work : callable
        (kind, questions) -> as many answers. It is called in a separate thread, never twice at once. If a call for
        several questions fails, each is tried alone.
    max_batch : int
        Questions in one call.
    max_queue : int
        Questions that may wait. Requests of several questions get half of the places, so that they leave room.
    cost : callable, optional
        kind -> cost of one of its questions, in any unit; by default 1.
    max_cost : float, optional
        Cost of one call; a question alone may cost more.

    Examples
    --------
    >>> async def main():
    ...     async with Batcher(lambda kind, words: map(kind, words), max_batch=8, max_queue=100) as batcher:
    ...         return await batcher.ask(str.upper, ["red", "pen"])
    >>> asyncio.run(main())
    ['RED', 'PEN']
    """

    def __init__(
        self,
        work: Callable[[Any, list], Sequence],
        max_batch: int,
        max_queue: int,
        cost: Callable[[Any], float] = lambda kind: 1.0,
        max_cost: float = float("inf"),
    ):
        self.work, self.max_batch, self.max_queue = work, max_batch, max_queue
        self.cost, self.max_cost = cost, max_cost
        self._waiting: list[_Job] = []
        self._round = 0  # of the question that was taken last
        self._arrived, self._working = asyncio.Event(), False
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="inference")

    async def __aenter__(self) -> "Batcher":
        self._runner = asyncio.create_task(self._run())
        return self

    async def __aexit__(self, *_) -> None:
        """Answer what was accepted, then stop."""
        while self._waiting or self._working:
            await asyncio.sleep(0.01)
        self._runner.cancel()
        await asyncio.gather(self._runner, return_exceptions=True)
        await asyncio.to_thread(self._thread.shutdown)
        del self.work  # often a method of what holds this: without the circle, a model is freed at once

    @property
    def n_waiting(self) -> int:
        return len(self._waiting)

    def check_room(self, n: int) -> None:
        """Raises OverloadedError if a request of n questions would not be accepted now."""
        places = self.max_queue if n == 1 else self.max_queue // 2
        if len(self._waiting) + n > places:
            taken = f"{len(self._waiting)} of {places} places are taken"
            raise OverloadedError(f"cannot queue {n} {'request' if n == 1 else 'requests'}: {taken}. Retry after 1 s")

    async def ask(self, kind: Any, questions: Sequence) -> list:
        """Answer questions of one kind, in their order; all are accepted or none.

        If the caller is cancelled, as by a time limit, its waiting questions leave the queue.

        Raises
        ------
        OverloadedError
            If the queue has no room.
        Exception
            Whatever `work` raises.
        """
        self.check_room(len(questions))
        loop, cost = asyncio.get_running_loop(), self.cost(kind)
        jobs = [
            _Job(self._round + 1 + at // _TURN, cost, kind, question, loop.create_future())
            for at, question in enumerate(questions)
        ]
        self._waiting.extend(jobs)
        self._arrived.set()
        return await asyncio.gather(*(job.answer for job in jobs))

    async def _run(self) -> None:
        while True:
            await self._arrived.wait()
            batch = self._take()
            if not batch:
                self._arrived.clear()
                continue
            self._working = True
            await self._answer(batch)
            self._working = False

    async def _answer(self, batch: list[_Job]) -> None:
        """Answer jobs of a kind by one call; if it fails, each is tried alone."""
        questions, loop = [job.question for job in batch], asyncio.get_running_loop()
        try:
            answers = await loop.run_in_executor(self._thread, self.work, batch[0].kind, questions)
            pairs = list(zip(batch, answers, strict=True))
        except Exception as error:  # the service goes on
            if len(batch) == 1 and not batch[0].answer.done():
                batch[0].answer.set_exception(error)
            for job in batch if len(batch) > 1 else []:
                if not job.answer.done():
                    await self._answer([job])
            return
        for job, answer in pairs:
            if not job.answer.done():
                job.answer.set_result(answer)

    def _take(self) -> list[_Job]:
        """Take the first job of the earliest round, and others of its kind, off the queue."""
        batch: list[_Job] = []
        others: list[_Job] = []
        for job in sorted((job for job in self._waiting if not job.answer.done()), key=lambda job: job.round):
            fits = len(batch) < self.max_batch and (len(batch) + 1) * job.cost <= self.max_cost
            is_next = not batch or (job.kind == batch[0].kind and fits)
            (batch if is_next else others).append(job)
        self._waiting = others
        self._round = batch[0].round if batch else self._round
        return batch
