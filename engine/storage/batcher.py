"""Coalesces concurrent calls: whatever arrived while the last group was written is the next group."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, NamedTuple, TypeVar

from psycopg import DataError, IntegrityError
from psycopg.errors import ProgramLimitExceeded

from engine.errors import DatabaseUnavailable, Overloaded
from engine.storage.deadline import transient

T = TypeVar("T")
R = TypeVar("R")

MAX_WAITING = 10_000
TRIES = 5

BISECTED = (DataError, IntegrityError, ProgramLimitExceeded, UnicodeError)
"""Errors that are an item's own fault: the rest of its group is written without it."""


class _Waiting(NamedTuple, Generic[T, R]):
    item: T
    weight: int
    answer: asyncio.Future[R]


class Batcher(Generic[T, R]):
    """Groups concurrent items into calls of `flush`, one at a time and without a timer.

    `flush` answers each item in order; an answer that is an exception is for its item alone. An item's own error
    is bisected down to it; a deadlock or a lost connection sends the same group again, so `flush` must be safe to
    repeat. `weigh` bounds a group, and what waits, beside their counts.
    """

    def __init__(
        self,
        flush: Callable[[Sequence[T]], Awaitable[Sequence[R | Exception]]],
        *,
        max_group: int = 500,
        weigh: Callable[[T], int] = lambda _: 1,
        max_weight: int = 8 << 20,
        max_waiting_weight: int = 64 << 20,
        tries: int = TRIES,
    ) -> None:
        self._flush = flush
        self._max_group = max_group
        self._weigh = weigh
        self._max_weight = max_weight
        self._max_waiting_weight = max_waiting_weight
        self._waiting_weight = 0
        self._tries = tries
        self._queue: deque[_Waiting[T, R]] = deque()
        self._writer: asyncio.Task[None] | None = None

    def __len__(self) -> int:
        """Items that wait, not yet taken into a group."""
        return len(self._queue)

    async def submit(self, item: T) -> R:
        """Wait for the group that holds `item` and return its answer.

        Cancelled before its group is taken, the item is withdrawn; later it is still written and its answer
        dropped. Raises Overloaded, or what `flush` raised for this item.
        """
        if len(self._queue) >= MAX_WAITING or self._waiting_weight >= self._max_waiting_weight:
            raise Overloaded(f"{len(self._queue)} requests are waiting already")
        return await self.put(item)

    def put(self, item: T) -> asyncio.Future[R]:
        """Have `item` written; the answer is the future's. As `submit`, for a caller that bounds what waits itself."""
        weight = self._weigh(item)
        self._waiting_weight += weight
        answer: asyncio.Future[R] = asyncio.get_running_loop().create_future()
        self._queue.append(_Waiting(item, weight, answer))
        if self._writer is None:
            self._writer = asyncio.create_task(self._write(), name="batcher")
        return answer

    async def drain(self) -> None:
        """Wait until everything put in so far has been answered."""
        while self._writer is not None:
            await asyncio.wait([self._writer])

    async def _write(self) -> None:
        try:
            while self._queue:
                if group := self._take():
                    await self._answer(group)
        finally:
            self._writer = None

    def _take(self) -> list[_Waiting[T, R]]:
        group: list[_Waiting[T, R]] = []
        weight = 0
        while self._queue and len(group) < self._max_group:
            if group and weight + self._queue[0].weight > self._max_weight:
                break
            waiting = self._queue.popleft()
            self._waiting_weight -= waiting.weight
            if not waiting.answer.cancelled():
                group.append(waiting)
                weight += waiting.weight
        return group

    async def _answer(self, group: list[_Waiting[T, R]]) -> None:
        try:
            answers = await self._flushed([waiting.item for waiting in group])
        except BISECTED as error:
            if len(group) == 1:
                _settle(group[0].answer, error)
                return
            half = len(group) // 2
            await self._answer(group[:half])
            await self._answer(group[half:])
        except Exception as error:  # noqa: BLE001 - it belongs to the waiters, and must not end the writer
            for waiting in group:
                _settle(waiting.answer, error)
        else:
            for waiting, answer in zip(group, answers, strict=True):
                _settle(waiting.answer, answer)

    async def _flushed(self, items: Sequence[T]) -> Sequence[R | Exception]:
        tries = 1
        while True:
            try:
                return await self._flush(items)
            except Exception as error:
                if tries == self._tries or not (transient(error) or isinstance(error, DatabaseUnavailable)):
                    raise
                await asyncio.sleep(0.02 * 2**tries)
                tries += 1


def _settle(answer: asyncio.Future[R], value: R | Exception) -> None:
    if answer.done():  # who gave up while the group was written
        return
    if isinstance(value, Exception):
        answer.set_exception(value)
    else:
        answer.set_result(value)
