"""Groups concurrent calls: the calls that arrive while one group is written form the next group."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Generic, TypeVar

from psycopg import DataError, IntegrityError
from psycopg.errors import ProgramLimitExceeded

from engine.cancellation import being_cancelled
from engine.errors import DatabaseUnavailable, Overloaded
from engine.storage.batch_size import BatchSize
from engine.storage.deadline import STATEMENT_SECONDS, transient

T = TypeVar("T")
R = TypeVar("R")

MAX_WAITING = 10_000
TRIES = 5

BISECTED = (DataError, IntegrityError, ProgramLimitExceeded, UnicodeError)
"""Errors caused by a single item. The rest of the group is written without that item."""


@dataclass(slots=True)
class _Waiting(Generic[T, R]):
    """`settle` takes the answer. Of an item that somebody awaits, `future` gets it."""

    item: T
    weight: int
    since: float
    settle: Callable[[R | Exception], None]
    future: asyncio.Future[R] | None


class Batcher(Generic[T, R]):
    """Groups concurrent items into calls of `flush`, one at a time and without a timer.

    `flush` answers each item in order. An answer that is an exception is raised for that item alone. If `flush` raises
    one of BISECTED, the group is halved until the faulty item stands alone. After a deadlock or a lost connection the
    same group is sent again, up to `tries` times, so `flush` must be safe to repeat. The weights that `weigh` returns
    bound a group and the waiting items, beside their counts. Whatever `flush` raises, every waiter gets an answer.
    After a time-out the next groups are smaller for a while. An item that has waited for `patience` seconds gets
    DatabaseUnavailable, though it may still be written.
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
        patience: float | None = None,
    ) -> None:
        self._flush = flush
        self._size = BatchSize(max_group, STATEMENT_SECONDS)
        self._weigh = weigh
        self._max_weight = max_weight
        self._max_waiting_weight = max_waiting_weight
        self._waiting_weight = 0
        self._tries = tries
        self._patience = patience
        self._timer: asyncio.TimerHandle | None = None
        """For whoever waits longest: a timer for each item would cost more than all else here."""
        self._queue: deque[_Waiting[T, R]] = deque()
        self._group: list[_Waiting[T, R]] = []
        """The group in hand."""
        self._writer: asyncio.Task[None] | None = None

    def __len__(self) -> int:
        """The number of items that wait and are not in a group yet."""
        return len(self._queue)

    def submit(self, item: T) -> asyncio.Future[R]:
        """Queue `item` and return a future of the answer, or of what `flush` raised for this item. Raises Overloaded.

        If the future is cancelled before the group is formed, the item is withdrawn. Later, the item is still written
        and the answer is dropped.
        """
        if len(self._queue) >= MAX_WAITING or self._waiting_weight >= self._max_waiting_weight:
            raise Overloaded(f"{len(self._queue)} requests are waiting already")
        return self.put(item)

    def put(self, item: T) -> asyncio.Future[R]:
        """As `submit`, but the caller must bound the waiting items."""
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[R] = loop.create_future()
        self._add(item, partial(_settle, answer), answer)
        if self._timer is None and self._patience is not None:
            self._timer = loop.call_later(self._patience, self._give_up, self._patience)
        return answer

    def post(self, item: T, settle: Callable[[R | Exception], None]) -> None:
        """Queue `item`, as `put` does. `settle` is called with its answer, must not raise, and wakes no task.

        It is called however late the answer is, and never if the process ends before the item is written.
        """
        self._add(item, settle, None)

    def _add(
        self, item: T, settle: Callable[[R | Exception], None], future: asyncio.Future[R] | None
    ) -> None:
        weight = self._weigh(item)
        self._waiting_weight += weight
        self._queue.append(_Waiting(item, weight, time.monotonic(), settle, future))
        if self._writer is None:
            self._start()

    def _give_up(self, patience: float) -> None:
        """Answer those who have waited too long, and come again when the next one will have."""
        self._timer = None
        for waiting in chain(self._group, self._queue):
            if waiting.future is None or waiting.future.done():
                continue
            if (left := waiting.since + patience - time.monotonic()) > 0:
                self._timer = asyncio.get_running_loop().call_later(left, self._give_up, patience)
                return
            waiting.settle(DatabaseUnavailable(f"no answer within {patience:g} s"))

    async def drain(self) -> None:
        """Wait until every queued item has been answered."""
        while self._writer is not None:
            await asyncio.wait([self._writer])

    def _start(self) -> None:
        self._writer = asyncio.create_task(self._write(), name="batcher")
        # A callback, because a task that is cancelled before its first step runs no `finally`.
        self._writer.add_done_callback(self._ended)

    def _ended(self, writer: asyncio.Task[None]) -> None:
        """Nobody but the end of the process stops the writer. Its waiters then get no answer, and stop waiting."""
        self._writer = None
        if writer.cancelled() or writer.exception() is not None:
            for waiting in (*self._group, *self._queue):
                if waiting.future is not None:
                    waiting.future.cancel()
            self._group = []
            self._queue.clear()
            self._waiting_weight = 0
        elif self._queue:
            self._start()

    async def _write(self) -> None:
        while self._queue:
            self._group = self._take()
            if self._group:
                await self._answer(self._group)
        self._group = []

    def _take(self) -> list[_Waiting[T, R]]:
        group: list[_Waiting[T, R]] = []
        weight = 0
        while self._queue and len(group) < self._size.current:
            if group and weight + self._queue[0].weight > self._max_weight:
                break
            waiting = self._queue.popleft()
            self._waiting_weight -= waiting.weight
            if waiting.future is None or not waiting.future.done():
                group.append(waiting)
                weight += waiting.weight
        return group

    async def _answer(self, group: list[_Waiting[T, R]]) -> None:
        try:
            answers = _of(len(group), await self._flushed([waiting.item for waiting in group]))
        except BISECTED as error:
            if len(group) == 1:
                group[0].settle(error)
                return
            half = len(group) // 2
            await self._answer(group[:half])
            await self._answer(group[half:])
        except asyncio.CancelledError:
            if being_cancelled():
                raise
            # gRPC, for one, reports a closed channel so. The writer goes on.
            _settle_all(group, DatabaseUnavailable("the write was cancelled, perhaps after its commit"))
        except Exception as error:  # noqa: BLE001 - the waiters get the error; the writer goes on
            _settle_all(group, error)
        else:
            for waiting, answer in zip(group, answers, strict=True):
                waiting.settle(answer)

    async def _flushed(self, items: Sequence[T]) -> Sequence[R | Exception]:
        tries = 1
        while True:
            try:
                with self._size.run():
                    return await self._flush(items)
            except Exception as error:
                if tries == self._tries or not (transient(error) or isinstance(error, DatabaseUnavailable)):
                    raise
                await asyncio.sleep(0.02 * 2**tries)
                tries += 1


def _of(items: int, answers: Sequence[R | Exception]) -> Sequence[R | Exception]:
    """The answers. Raises RuntimeError if there are more or fewer than items: nobody knows then whose each one is."""
    if len(answers) != items:
        raise RuntimeError(f"{len(answers)} answers for {items} items")
    return answers


def _settle_all(group: Sequence[_Waiting[T, R]], error: Exception) -> None:
    for waiting in group:
        waiting.settle(error)


def _settle(answer: asyncio.Future[R], value: R | Exception) -> None:
    # The caller may have been cancelled while the group was written.
    if answer.done():
        return
    if isinstance(value, StopIteration):
        # A future refuses this exception.
        answer.set_exception(RuntimeError(repr(value)))
    elif isinstance(value, Exception):
        answer.set_exception(value)
    else:
        answer.set_result(value)
