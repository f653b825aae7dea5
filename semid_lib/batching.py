"""Micro-batching: questions that wait together are answered together, by one thread, in the order they came.

There is no timer. While the thread works, questions gather, and whatever has gathered is its next batch: a lone client
never waits for company, and under load batches fill by themselves.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple


class OverloadedError(Exception):
    """The queue is full; nothing of the request was accepted."""


class _Job(NamedTuple):
    kind: Hashable
    question: Any
    answer: asyncio.Future


class Batcher:
    """Collects questions of one kind and answers them with one call.

    work: (kind, questions) -> as many answers; called in one thread of its own, never twice at once; where several
    fail together it is called again for each alone. max_batch: questions in one call. max_queue: questions that may
    wait; beyond it `ask` raises OverloadedError at once.

    >>> async def main():
    ...     async with Batcher(lambda kind, words: map(kind, words), max_batch=8, max_queue=100) as batcher:
    ...         return await batcher.ask(str.upper, ["red", "pen"])
    >>> asyncio.run(main())
    ['RED', 'PEN']
    """

    def __init__(self, work: Callable[[Hashable, list], Sequence], max_batch: int, max_queue: int):
        self.work, self.max_batch, self.max_queue = work, max_batch, max_queue
        self._waiting: deque[_Job] = deque()
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

    @property
    def n_waiting(self) -> int:
        return len(self._waiting)

    async def ask(self, kind: Hashable, questions: Sequence) -> list:
        """The answers to questions of one kind, in their order; all are accepted or none.

        Whoever is cancelled meanwhile, as by a time limit, takes his waiting questions with him. Raises
        OverloadedError if the queue has no room, and whatever `work` raises.
        """
        if len(self._waiting) + len(questions) > self.max_queue:
            raise OverloadedError(f"{len(self._waiting)} questions are waiting, there is room for {self.max_queue}")
        loop = asyncio.get_running_loop()
        jobs = [_Job(kind, question, loop.create_future()) for question in questions]
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
            for job, answer in await self._answered(batch):
                if job.answer.done():
                    continue
                if isinstance(answer, Exception):
                    job.answer.set_exception(answer)
                else:
                    job.answer.set_result(answer)
            self._working = False

    async def _answered(self, batch: list[_Job]) -> list[tuple[_Job, Any]]:
        """The jobs of a batch with answers or errors; if they fail together each is asked alone, to fail for itself."""
        questions, loop = [job.question for job in batch], asyncio.get_running_loop()
        try:
            answers = await loop.run_in_executor(self._thread, self.work, batch[0].kind, questions)
            return list(zip(batch, answers, strict=True))
        except Exception as error:  # the service goes on
            if len(batch) == 1:
                return [(batch[0], error)]
        return [pair for job in batch if not job.answer.done() for pair in await self._answered([job])]

    def _take(self) -> list[_Job]:
        """The oldest question that somebody still waits for, and those of its kind, off the queue."""
        batch: list[_Job] = []
        others: deque[_Job] = deque()
        while self._waiting and len(batch) < self.max_batch:
            job = self._waiting.popleft()
            if job.answer.done():
                continue
            if batch and job.kind != batch[0].kind:
                others.append(job)
            else:
                batch.append(job)
        others.extend(self._waiting)
        self._waiting = others
        return batch
