"""The children of a worker: started by its nursery when they are needed, kept warm, replaced when they end."""

from __future__ import annotations

import asyncio
import os
import socket
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import ExitStack, asynccontextmanager
from itertools import count
from typing import Final

import structlog

from engine.errors import ConfigurationError
from engine.telemetry.metrics import CHILDREN, CHILDREN_ENDED
from worker.children.board import Board, new_page
from worker.children.handle import Child, ChildUnavailable, ChildUnfit
from worker.children.nursery_handle import Nursery
from worker.children.output import Output
from worker.children.requests import Exited, Kill, Refused, Start
from worker.children.setting import Setting

START_SECONDS: Final = 30.0
"""How long a child may take to import the authors' modules."""
MAX_STARTS: Final = 2 * (os.cpu_count() or 1)
"""Children that start at the same time: more would only take each other's processors."""

log = structlog.get_logger()


class Children:
    """As many children as attempts run at a time, and those that wait for the next one.

    Attempts that wait get the first child that is ready: one that another attempt gives back, or a new one.
    """

    def __init__(self, setting: Setting) -> None:
        self._setting = setting
        self._names = count(1)
        self._living: dict[int, Child] = {}
        self._idle: list[Child] = []
        self._waiting: deque[asyncio.Future[Child]] = deque()
        self._starting: set[asyncio.Task[Child]] = set()
        self._nursery: Nursery | None = None
        self._opening = asyncio.Lock()
        self._stopping = False
        self._unstarted: BaseException | None = None
        """Why the latest start failed."""

    def ready(self) -> None:
        """A readiness check: raises ChildUnavailable while no child lives because none can be started."""
        if self._unstarted is not None and not self.pids():
            raise ChildUnavailable(str(self._unstarted))

    async def take(self) -> Child:
        """A child for one attempt: give it back with `give`. Raises ChildUnavailable."""
        while self._idle:
            child = self._idle.pop()
            if not child.over.done():
                return child
        waiter: asyncio.Future[Child] = asyncio.get_running_loop().create_future()
        self._waiting.append(waiter)
        self._start_for_waiting()
        try:
            return await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
                self.give(waiter.result())
            raise

    def give(self, child: Child) -> None:
        """The attempt of `child` is over, and so are its effects."""
        if child.over.done():
            return
        if child.spent is not None:
            log.debug("child.dismissed", reason=child.spent, **child.named)
            child.dismiss()
        elif (waiter := self._next_waiting()) is not None:
            waiter.set_result(child)
        else:
            self._idle.append(child)

    @property
    def presets(self) -> Sequence[str]:
        """Those whose attempts the children run."""
        return self._setting.presets

    def pids(self) -> list[int]:
        """The process ids of the children that are ready."""
        return [child.pid for child in self._living.values() if child.pid is not None]

    def expect(self, number: int) -> None:
        """Begin to start as many of `number` children as may start at once, before their first attempts come."""
        # A start that fails is told by the attempt that asks for the next one.
        self._start_to(number)

    async def try_one(self) -> None:
        """Start a child ahead of its first attempt. Raises ConfigurationError if it does not find its pipelines."""
        try:
            self.give(await self.take())
        except ChildUnfit as error:
            raise ConfigurationError([f"in a child: {error}"]) from error
        except ChildUnavailable as error:
            # The user's limit of processes, say. It may pass: the attempts that ask next try again.
            log.warning("child.not_started", error=str(error))

    async def warm(self, number: int) -> None:
        """Start `number` children ahead of their first attempts."""
        children = await asyncio.gather(*(self.take() for _ in range(number)))
        for child in children:
            self.give(child)

    def stop(self) -> None:
        """Tell running attempts that the worker has begun to drain."""
        self._stopping = True
        for child in self._living.values():
            child.board.stop()

    async def aclose(self) -> None:
        """End all children, and what they have started."""
        for task in self._starting:
            task.cancel()
        for child in self._living.values():
            child.dismiss()
        if self._nursery is not None:
            await self._nursery.aclose()

    def _next_waiting(self) -> asyncio.Future[Child] | None:
        while self._waiting:
            if not (waiter := self._waiting.popleft()).done():
                return waiter
        return None

    def _start_for_waiting(self) -> None:
        self._start_to(len(self._waiting))

    def _start_to(self, number: int) -> None:
        while len(self._starting) < min(MAX_STARTS, number):
            task = asyncio.get_running_loop().create_task(self._started())
            self._starting.add(task)
            task.add_done_callback(self._has_started)

    def _has_started(self, task: asyncio.Task[Child]) -> None:
        self._starting.discard(task)
        if task.cancelled():
            return
        self._unstarted = error = task.exception()
        if error is None:
            self.give(task.result())
        elif (waiter := self._next_waiting()) is not None:
            waiter.set_exception(error)
        self._start_for_waiting()

    async def _started(self) -> Child:
        """A new child that is ready. Raises ChildUnavailable."""
        try:
            child = await self._start()
        except OSError as error:
            # This process has reached its limit of descriptors or processes.
            raise ChildUnavailable(f"a child could not be started: {error}") from error
        try:
            async with asyncio.timeout(START_SECONDS):
                await asyncio.shield(child.ready)
        except TimeoutError as error:
            child.terminate(0.0)
            raise ChildUnavailable(f"a child was not ready within {START_SECONDS:g} s") from error
        return child

    async def _start(self) -> Child:
        async with self._opening:
            if self._nursery is None or self._nursery.gone:
                self._nursery = await Nursery.opened(self._exited, self._refused, self._orphaned)
        nursery, name, loop = self._nursery, next(self._names), asyncio.get_running_loop()
        with ExitStack() as theirs:
            page = _closing(theirs, new_page())
            child = Child(name, Board(page), lambda number, group: nursery.tell(Kill(name, number, group)))
            if self._stopping:
                child.board.stop()
            ours, link = socket.socketpair()
            theirs.enter_context(link)
            await loop.connect_accepted_socket(lambda: child, ours)
            reading, output = os.pipe()
            _closing(theirs, output)
            child.output = printed = Output(reading, child.printed)
            await loop.connect_read_pipe(lambda: printed, os.fdopen(reading, "rb"))
            self._living[name] = child
            CHILDREN.set(len(self._living))
            # The nursery gets copies, for as long as they wait to be sent.
            nursery.tell(Start(name, self._setting), [os.dup(each) for each in (link.fileno(), page, output)])
        return child

    def _refused(self, refused: Refused) -> None:
        if (child := self._living.pop(refused.name, None)) is not None:
            CHILDREN.set(len(self._living))
            child.refused(refused.fault)

    def _exited(self, exited: Exited) -> None:
        child = self._living.pop(exited.name, None)
        CHILDREN.set(len(self._living))
        if child is not None:
            code = os.waitstatus_to_exitcode(exited.status)
            how = (
                "stopped" if child.board.ending else "signal" if code < 0 else "exit" if code else "dismissed"
            )
            CHILDREN_ENDED.labels(how).inc()
            child.exited(exited.status, exited.peak)

    def _orphaned(self) -> None:
        """The nursery is gone, and with it every child. One that ran an attempt alone may be why."""
        gone = list(self._living.values())
        self._living.clear()
        CHILDREN.set(0)
        alone = sum(child.running for child in gone) == 1
        for child in gone:
            CHILDREN_ENDED.labels("signal").inc()
            child.bereave(alone=alone)


def _closing(stack: ExitStack, descriptor: int) -> int:
    stack.callback(os.close, descriptor)
    return descriptor


@asynccontextmanager
async def open_children(setting: Setting) -> AsyncIterator[Children]:
    children = Children(setting)
    try:
        yield children
    finally:
        await children.aclose()
