from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cemg_hf.serving.batching import Batcher, ClosedError, QueueFullError, TooLateError
from cemg_hf.serving.metrics import ServingMetrics

FOREVER = 60.0


class Model:
    """Answers (group, number) by itself, keeps the batches it was given, and can be held before a batch."""

    def __init__(self) -> None:
        self.batches: list[list[tuple[str, int]]] = []
        self.may_run = threading.Event()
        self.may_run.set()
        self.running = threading.Event()
        self.events: list[str] = []

    def __call__(self, requests: list[tuple[str, int]]) -> list[tuple[str, int]]:
        self.batches.append(requests)
        self.events.append("begin")
        self.running.set()
        assert self.may_run.wait(FOREVER)
        if ("broken", 0) in requests:
            raise RuntimeError("no answer")
        self.events.append("end")
        return requests


def with_batcher(model: Model, test: Callable[[Batcher], Coroutine[Any, Any, None]], **options: Any) -> None:
    async def run() -> None:
        used = {"max_batch_size": 4, "max_wait": 0.0, "queue_size": 8, **options}
        batcher = Batcher(model, lambda request: request[0], metrics=ServingMetrics(), **used)
        batcher.start()
        try:
            await asyncio.wait_for(test(batcher), FOREVER)
        finally:
            model.may_run.set()
            await asyncio.wait_for(batcher.finish(), FOREVER)

    asyncio.run(run())


async def hold(model: Model, batcher: Batcher, requests: int = 1) -> asyncio.Task[Any]:
    """Requests that keep the model busy until `model.may_run` is set."""
    model.may_run.clear()
    model.running.clear()
    busy = asyncio.create_task(batcher.submit([("busy", number) for number in range(requests)], FOREVER))
    assert await asyncio.to_thread(model.running.wait, FOREVER)
    return busy


@settings(max_examples=40, deadline=None)
@given(calls=st.lists(st.lists(st.sampled_from("abc"), min_size=1, max_size=5), min_size=1, max_size=12), size=st.integers(1, 5))
def test_every_request_is_answered_once_in_batches_of_one_group_by_arrival(calls: list[list[str]], size: int) -> None:
    model = Model()
    numbered = iter(range(100))
    requests = [[(group, next(numbered)) for group in call] for call in calls]

    async def test(batcher: Batcher) -> None:
        busy = await hold(model, batcher)
        tasks = [asyncio.create_task(batcher.submit(call, FOREVER)) for call in requests]
        await asyncio.sleep(0)
        assert batcher.length == sum(map(len, requests))
        model.may_run.set()
        assert await asyncio.gather(*tasks) == requests
        await busy
        assert batcher.length == 0

    with_batcher(model, test, max_batch_size=size, queue_size=100)
    batches = model.batches[1:]
    for batch in batches:
        assert len({group for group, _ in batch}) == 1
        assert len(batch) <= size
    for group in "abc":
        numbers = [number for batch in batches for name, number in batch if name == group]
        assert numbers == sorted(number for call in requests for name, number in call if name == group)
        filled = [len(batch) for batch in batches if batch[0][0] == group]
        assert filled[:-1] == [size] * (len(filled) - 1), "what can share a pass does"
    firsts = [batch[0][1] for batch in batches]
    left = {request for call in requests for request in call}
    for first, batch in zip(firsts, batches, strict=True):
        assert first == min(number for _, number in left), "who waited longest is next"
        left -= set(batch)


def test_an_idle_model_waits_for_a_batch_to_fill_but_not_beyond() -> None:
    model = Model()

    async def test(batcher: Batcher) -> None:
        calls = [asyncio.create_task(batcher.submit([("a", number)], FOREVER)) for number in range(3)]
        await asyncio.gather(*calls)

    with_batcher(model, test, max_batch_size=3, max_wait=FOREVER)  # would run into the deadline of the test, if it waited for the time
    assert model.batches == [[("a", 0), ("a", 1), ("a", 2)]]
    with_batcher(model, test, max_batch_size=100, max_wait=0.01)  # would run into it, if it waited for the size


def test_a_full_queue_refuses_whole_calls_and_takes_others_when_there_is_room() -> None:
    model = Model()

    async def test(batcher: Batcher) -> None:
        busy = await hold(model, batcher)
        waiting = asyncio.create_task(batcher.submit([("a", number) for number in range(7)], FOREVER))
        await asyncio.sleep(0)
        with pytest.raises(QueueFullError) as refused:
            await batcher.submit([("a", 7), ("a", 8)], FOREVER)
        assert refused.value.retry_after >= 1
        assert batcher.length == 7
        last = asyncio.create_task(batcher.submit([("a", 9)], FOREVER))
        await asyncio.sleep(0)
        model.may_run.set()
        await asyncio.gather(busy, waiting, last)
        assert await batcher.submit([("a", number) for number in range(8)], FOREVER)

    with_batcher(model, test, queue_size=8)
    answered = [request for batch in model.batches for request in batch]
    assert ("a", 8) not in answered
    assert ("a", 9) in answered


def test_who_waited_too_long_leaves_the_queue() -> None:
    model = Model()

    async def test(batcher: Batcher) -> None:
        busy = await hold(model, batcher)
        with pytest.raises(TooLateError):
            await batcher.submit([("late", 0), ("late", 1)], timeout=0.01)
        assert batcher.length == 0
        model.may_run.set()
        await busy
        assert await batcher.submit([("a", 0)], FOREVER) == [("a", 0)]

    with_batcher(model, test)
    assert [("late", 0)] not in model.batches
    assert len(model.batches) == 2


def test_an_answer_that_comes_too_late_is_dropped() -> None:
    model = Model()

    async def test(batcher: Batcher) -> None:
        model.may_run.clear()
        with pytest.raises(TooLateError):
            await batcher.submit([("a", 0)], timeout=0.05)
        model.may_run.set()
        assert await batcher.submit([("a", 1)], FOREVER) == [("a", 1)]

    with_batcher(model, test)


def test_a_failing_batch_fails_alone() -> None:
    model = Model()

    async def test(batcher: Batcher) -> None:
        busy = await hold(model, batcher)
        broken = asyncio.create_task(batcher.submit([("broken", 0), ("broken", 1)], FOREVER))
        fine = asyncio.create_task(batcher.submit([("fine", 0)], FOREVER))
        await asyncio.sleep(0)
        model.may_run.set()
        with pytest.raises(RuntimeError, match="no answer"):
            await broken
        assert await fine == [("fine", 0)]
        await busy

    with_batcher(model, test)


def test_closing_refuses_and_finishing_answers_what_is_queued() -> None:
    model = Model()

    async def test(batcher: Batcher) -> None:
        busy = await hold(model, batcher, requests=4)
        waiting = asyncio.create_task(batcher.submit([("a", number) for number in range(6)], FOREVER))
        await asyncio.sleep(0)
        batcher.close()
        with pytest.raises(ClosedError):
            await batcher.submit([("b", 0)], FOREVER)
        finishing = asyncio.create_task(batcher.finish())
        await asyncio.sleep(0)
        assert not finishing.done()
        model.may_run.set()
        await finishing
        assert len(await waiting) == 6
        await busy

    with_batcher(model, test, max_wait=FOREVER)  # nobody else will come: a closed queue is not waited for


def test_work_is_done_between_batches() -> None:
    model = Model()

    async def test(batcher: Batcher) -> None:
        busy = await hold(model, batcher)
        work = asyncio.create_task(batcher.between_batches(lambda: model.events.append("work")))
        waiting = asyncio.create_task(batcher.submit([("a", 0)], FOREVER))
        await asyncio.sleep(0)
        model.may_run.set()
        await asyncio.gather(busy, work, waiting)

    with_batcher(model, test)
    assert model.events == ["begin", "end", "work", "begin", "end"]
