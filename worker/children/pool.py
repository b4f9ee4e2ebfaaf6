"""The children of a worker: started by its nursery when they are needed, kept warm, replaced when they end."""

from __future__ import annotations

import asyncio
import os
import pickle
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from itertools import count
from typing import Any, Final

import structlog

from engine.telemetry.metrics import CHILDREN, CHILDREN_ENDED
from worker.children.board import Board, new_page
from worker.children.handle import Child, ChildUnavailable
from worker.children.output import Output
from worker.children.requests import MAX_REQUEST, Exited, Kill, Start
from worker.children.setting import Setting

START_SECONDS: Final = 30.0
"""How long a child may take to import the authors' modules."""
CLOSE_SECONDS: Final = 2.0

log = structlog.get_logger()


class Children:
    """As many children as attempts run at a time, and those that wait for the next one."""

    def __init__(self, setting: Setting) -> None:
        self._setting = setting
        self._names = count(1)
        self._living: dict[int, Child] = {}
        self._idle: list[Child] = []
        self._nursery: _Nursery | None = None
        self._opening = asyncio.Lock()
        self._stopping = False

    async def take(self) -> Child:
        """A child for one attempt: give it back with `give`. Raises ChildUnavailable."""
        while self._idle:
            child = self._idle.pop()
            if not child.over.done():
                return child
        child = await self._start()
        try:
            async with asyncio.timeout(START_SECONDS):
                await child.ready
        except TimeoutError as error:
            child.terminate(0.0)
            raise ChildUnavailable(f"a child was not ready within {START_SECONDS:g} s") from error
        return child

    def give(self, child: Child) -> None:
        """The attempt of `child` is over, and so are its effects."""
        if child.spent is None:
            self._idle.append(child)
            return
        if not child.over.done():
            log.debug("child.dismissed", reason=child.spent, **child.named)
            child.dismiss()

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
        if self._nursery is not None:
            await self._nursery.aclose()

    async def _start(self) -> Child:
        async with self._opening:
            if self._nursery is None or self._nursery.gone:
                self._nursery = await _Nursery.opened(self._exited, self._orphaned)
        nursery, name = self._nursery, next(self._names)
        page = new_page()
        board = Board(page)
        if self._stopping:
            board.stop()
        child = Child(name, board, lambda number, group: nursery.tell(Kill(name, number, group)))
        ours, theirs = socket.socketpair()
        reading, writing = os.pipe()
        self._living[name] = child
        CHILDREN.set(len(self._living))
        loop = asyncio.get_running_loop()
        try:
            await loop.connect_accepted_socket(lambda: child, ours)
            await loop.connect_read_pipe(lambda: Output(child.printed), os.fdopen(reading, "rb"))
            nursery.tell(Start(name, self._setting), (theirs.fileno(), page, writing))
        finally:
            theirs.close()
            os.close(page)
            os.close(writing)
        return child

    def _exited(self, exited: Exited) -> None:
        child = self._living.pop(exited.name, None)
        CHILDREN.set(len(self._living))
        if child is not None:
            code = os.waitstatus_to_exitcode(exited.status)
            how = "signal" if code < 0 else "exit" if code else "dismissed"
            CHILDREN_ENDED.labels(how).inc()
            child.exited(exited.status, exited.peak)

    def _orphaned(self) -> None:
        """The nursery is gone, and with it every child."""
        for name in list(self._living):
            self._exited(Exited(name, signal.SIGKILL, 0))


class _Nursery:
    """The worker's end of a nursery."""

    def __init__(
        self, process: asyncio.subprocess.Process, control: socket.socket, on_exit: Callable[[Exited], None]
    ) -> None:
        self._process = process
        self._control = control
        self._on_exit = on_exit
        self.gone = False

    @classmethod
    async def opened(cls, on_exit: Callable[[Exited], None], on_end: Callable[[], None]) -> _Nursery:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "worker.children.nursery",
                str(theirs.fileno()),
                pass_fds=[theirs.fileno()],
                stdin=asyncio.subprocess.DEVNULL,
            )
        nursery = cls(process, ours, on_exit)
        asyncio.get_running_loop().add_reader(ours, nursery._read, on_end)
        return nursery

    def tell(self, message: Any, descriptors: tuple[int, ...] = ()) -> None:
        # It has just died: its end is told by the control socket.
        with suppress(OSError):
            socket.send_fds(self._control, [pickle.dumps(message)], descriptors)

    async def aclose(self) -> None:
        self._leave()
        with suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_SECONDS):
                await self._process.wait()
                return
        self._process.kill()
        await self._process.wait()

    def _read(self, on_end: Callable[[], None]) -> None:
        try:
            # Requests are sent on the same socket, and must not be dropped when it is full.
            data = self._control.recv(MAX_REQUEST, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if data:
            self._on_exit(pickle.loads(data))  # noqa: S301 - from our own nursery
            return
        self._leave()
        log.warning("nursery.ended")
        on_end()

    def _leave(self) -> None:
        if not self.gone:
            self.gone = True
            asyncio.get_running_loop().remove_reader(self._control)
            self._control.close()


@asynccontextmanager
async def open_children(setting: Setting) -> AsyncIterator[Children]:
    children = Children(setting)
    try:
        yield children
    finally:
        await children.aclose()
