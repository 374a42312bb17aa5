"""Requests that arrive one by one, answered together: a bounded queue in front of the one thread that owns the model."""

from __future__ import annotations

import asyncio
import itertools
import math
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Generic, TypeVar

from .metrics import ServingMetrics

Request = TypeVar("Request")
Answer = TypeVar("Answer")
Result = TypeVar("Result")

RATE_MEMORY = 0.9
"""Weight of the past in the running mean of seconds per request, from which Retry-After is told."""


class QueueFullError(Exception):
    """The requests do not fit into the queue; `retry_after` seconds from now they probably will."""

    def __init__(self, waiting: int, retry_after: int) -> None:
        super().__init__(f"{waiting} requests are waiting already; try again in {retry_after} s")
        self.retry_after = retry_after


class ClosedError(Exception):
    """No further requests are taken."""


class TooLateError(Exception):
    """The deadline passed before the answer was there."""


@dataclass(eq=False)
class Waiting(Generic[Request, Answer]):
    """A request in the queue; what it is keyed by is itself."""

    number: int
    request: Request
    group: Hashable
    arrived: float
    answer: asyncio.Future[Answer]


class Batcher(Generic[Request, Answer]):
    """Groups requests into batches and answers each batch in a thread of its own.

    While a batch is computed, requests gather; an idle model waits `max_wait` seconds, counted from the arrival of the request that has
    waited longest. That request decides the group of the next batch, so that no group starves, and others of its group join it in the
    order of their arrival.

    Args:
        answer: one batch of requests of one group → their answers in order; runs in the model's thread.
        group: what requests of one batch must have in common.
        max_batch_size, max_wait, queue_size: see `ServingConfig`; `max_wait` in seconds.
        metrics: where batches are counted.
    """

    def __init__(
        self,
        answer: Callable[[list[Request]], Sequence[Answer]],
        group: Callable[[Request], Hashable],
        *,
        max_batch_size: int,
        max_wait: float,
        queue_size: int,
        metrics: ServingMetrics,
    ) -> None:
        self._answer = answer
        self._group = group
        self._max_batch_size = max_batch_size
        self._max_wait = max_wait
        self._queue_size = queue_size
        self._metrics = metrics
        self._groups: dict[Hashable, dict[Waiting[Request, Answer], None]] = {}  # in order of arrival, and a request leaves in O(1)
        self._length = 0
        self._numbers = itertools.count()
        self._arrived = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._closed = False
        self._seconds_per_request = 0.0
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="cemg-model")
        self._dispatcher: asyncio.Task[None] | None = None

    @property
    def length(self) -> int:
        """Requests that wait for the model."""
        return self._length

    def start(self) -> None:
        """Begin to answer."""
        self._dispatcher = asyncio.create_task(self._dispatch(), name="cemg-dispatcher")

    async def submit(self, requests: Sequence[Request], timeout: float) -> list[Answer]:
        """Answers to `requests`, which are taken or refused together.

        Raises:
            ClosedError, QueueFullError: none of them was taken.
            TooLateError: `timeout` seconds went by; those that were still waiting left the queue.
        """
        if self._closed:
            raise ClosedError
        if self._length + len(requests) > self._queue_size:
            raise QueueFullError(self._length, max(1, math.ceil(self._length * self._seconds_per_request)))
        loop = asyncio.get_running_loop()
        now = loop.time()
        taken = [
            Waiting[Request, Answer](next(self._numbers), request, self._group(request), now, loop.create_future()) for request in requests
        ]
        for waiting in taken:
            self._groups.setdefault(waiting.group, {})[waiting] = None
        self._length += len(taken)
        self._idle.clear()
        self._arrived.set()
        try:
            async with asyncio.timeout(timeout):
                return list(await asyncio.gather(*(waiting.answer for waiting in taken)))
        except TimeoutError as error:
            raise TooLateError from error
        finally:
            for waiting in taken:
                self._leave(waiting)

    async def between_batches(self, work: Callable[[], Result]) -> Result:
        """Run `work` in the model's thread when the batch under way is done."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    def close(self) -> None:
        """Take no further requests; those that were taken are answered."""
        self._closed = True
        self._arrived.set()

    async def finish(self) -> None:
        """Close, answer what is queued, and end the model's thread."""
        self.close()
        if self._dispatcher is not None:
            await self._idle.wait()
            self._dispatcher.cancel()
        self._thread.shutdown()

    def _leave(self, waiting: Waiting[Request, Answer]) -> None:
        """Take a request out of the queue, if it is still there."""
        group = self._groups.get(waiting.group, {})
        if waiting in group:
            del group[waiting]
            self._length -= 1
            if not group:
                del self._groups[waiting.group]

    async def _dispatch(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            batch = await self._next_batch(loop)
            started = loop.time()
            running = loop.run_in_executor(self._thread, self._answer, [waiting.request for waiting in batch])
            await asyncio.wait([running])
            seconds = loop.time() - started
            before = self._seconds_per_request or seconds / len(batch)
            self._seconds_per_request = RATE_MEMORY * before + (1 - RATE_MEMORY) * seconds / len(batch)
            self._metrics.batch([started - waiting.arrived for waiting in batch], seconds)
            error = running.exception()
            answers: Sequence[Answer | None] = [None] * len(batch) if error else running.result()
            for waiting, answer in zip(batch, answers, strict=True):
                if waiting.answer.done():  # whoever asked is gone
                    continue
                if error is not None:
                    waiting.answer.set_exception(error)
                else:
                    waiting.answer.set_result(answer)  # type: ignore[arg-type]

    async def _next_batch(self, loop: asyncio.AbstractEventLoop) -> list[Waiting[Request, Answer]]:
        """Wait for requests, and for more of them, and take a batch from the queue."""
        while True:
            self._arrived.clear()
            if not self._groups:
                self._idle.set()
                await self._arrived.wait()
                continue
            first = min((next(iter(group)) for group in self._groups.values()), key=lambda waiting: waiting.number)
            group = self._groups[first.group]
            left = first.arrived + self._max_wait - loop.time()
            if len(group) >= self._max_batch_size or left <= 0 or self._closed:
                batch = list(group)[: self._max_batch_size]
                for waiting in batch:
                    self._leave(waiting)
                return batch
            with suppress(TimeoutError):
                async with asyncio.timeout(left):
                    await self._arrived.wait()
