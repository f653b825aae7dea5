"""Requests that wait together are answered together; none is lost, mixed up or answered twice."""

import asyncio
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from semid_lib.serving.http.batching import Batcher, OverloadedError


class Counting:
    """Doubles numbers and remembers its batches; holds until it is released."""

    def __init__(self):
        self.batches, self.release = [], threading.Event()
        self.at_once = self.most_at_once = 0

    def __call__(self, kind, questions):
        self.at_once += 1
        self.most_at_once = max(self.at_once, self.most_at_once)
        self.release.wait(60)
        self.batches.append((kind, list(questions)))
        self.at_once -= 1
        if "bad" in questions:
            raise ZeroDivisionError
        return [2 * question for question in questions]


def run(scenario, max_batch=4, max_queue=100, **more):
    """Plays a scenario (batcher, work) in an event loop; returns what it returned, and the work."""
    work = Counting()

    async def main():
        async with Batcher(work, max_batch, max_queue, **more) as batcher:
            try:
                return await asyncio.wait_for(scenario(batcher, work), 120)
            finally:
                work.release.set()

    return asyncio.run(main()), work


async def waiting(batcher, n):
    """Until the thread is busy with the first question and n others wait."""
    while not batcher.work.at_once or batcher.n_waiting != n:
        await asyncio.sleep(0.001)


def test_each_request_gets_its_answers_in_batches_of_a_kind_the_oldest_first():
    async def scenario(batcher, work):
        tasks = [asyncio.create_task(batcher.ask("x", [0]))]
        await waiting(batcher, 0)
        tasks += [asyncio.create_task(batcher.ask(kind, [n, n + 100])) for n, kind in enumerate("babcab", start=1)]
        await waiting(batcher, 12)
        work.release.set()
        return await asyncio.gather(*tasks)

    answers, work = run(scenario)
    assert answers == [[0], *([2 * n, 2 * n + 200] for n in range(1, 7))]
    assert work.batches[1:] == [("b", [1, 101, 3, 103]), ("a", [2, 102, 5, 105]), ("c", [4, 104]), ("b", [6, 106])]
    assert work.most_at_once == 1


def test_a_full_queue_takes_all_of_a_request_or_nothing():
    async def scenario(batcher, work):
        first = asyncio.create_task(batcher.ask("a", [0]))
        await waiting(batcher, 0)
        second = asyncio.create_task(batcher.ask("a", [1, 2]))
        await waiting(batcher, 2)
        with pytest.raises(OverloadedError, match="cannot queue 2 requests: 2 of 3 places are taken"):
            await batcher.ask("a", [3, 4])
        assert batcher.n_waiting == 2
        third = asyncio.create_task(batcher.ask("a", [5]))  # one question finds a place in the other half
        await waiting(batcher, 3)
        work.release.set()
        return await asyncio.gather(first, second, third)

    answers, _ = run(scenario, max_queue=6)
    assert answers == [[0], [2, 4], [10]]


def test_small_requests_do_not_wait_for_large_ones():
    async def scenario(batcher, work):
        first = asyncio.create_task(batcher.ask(1, ["busy"]))
        await waiting(batcher, 0)
        large = [asyncio.create_task(batcher.ask(5, [f"large {n}"] * 64)) for n in range(3)]
        await waiting(batcher, 192)
        small = asyncio.create_task(batcher.ask(1, ["small"]))
        await waiting(batcher, 193)
        work.release.set()
        return await asyncio.gather(first, *large, small)

    _, work = run(scenario, cost=lambda kind: kind, max_cost=20, max_queue=400)
    assert work.batches[1:13] == [(5, [f"large {n // 4}"] * 4) for n in range(12)]  # 16 of each, four in a call
    assert work.batches[13] == (1, ["small"]) and len(work.batches) == 2 + 48


@settings(max_examples=30)
@given(st.lists(st.tuples(st.sampled_from([1, 3, 50]), st.integers(1, 9)), min_size=1, max_size=20))
def test_every_request_is_answered_and_no_call_is_too_expensive(requests):
    async def scenario(batcher, work):
        work.release.set()
        return await asyncio.gather(*(batcher.ask(cost, [at] * n) for at, (cost, n) in enumerate(requests)))

    answers, work = run(scenario, cost=lambda kind: kind, max_cost=12, max_queue=400)
    assert answers == [[2 * at] * n for at, (_, n) in enumerate(requests)]
    assert all(len(batch) <= 4 and (len(batch) == 1 or cost * len(batch) <= 12) for cost, batch in work.batches)


def test_who_gave_up_is_not_answered_and_disturbs_nobody():
    async def scenario(batcher, work):
        first = asyncio.create_task(batcher.ask("a", [0]))
        await waiting(batcher, 0)
        impatient = asyncio.create_task(batcher.ask("a", [1, 2, 3]))
        patient = asyncio.create_task(batcher.ask("a", [4]))
        await waiting(batcher, 4)
        impatient.cancel()
        first.cancel()  # under way already
        await asyncio.gather(impatient, first, return_exceptions=True)
        work.release.set()
        return await patient

    answer, work = run(scenario)
    assert answer == [8]
    assert [batch for _, batch in work.batches] == [[0], [4]]


def test_a_question_that_fails_spoils_no_other_of_its_batch():
    async def scenario(batcher, work):
        work.release.set()
        asked = [batcher.ask("a", [question]) for question in ("good", "bad", "fine")]
        return await asyncio.gather(*asked, return_exceptions=True)

    (good, bad, fine), work = run(scenario)
    assert (good, fine) == (["goodgood"], ["finefine"]) and isinstance(bad, ZeroDivisionError)
    assert [batch for _, batch in work.batches] == [["good", "bad", "fine"], ["good"], ["bad"], ["fine"]]
