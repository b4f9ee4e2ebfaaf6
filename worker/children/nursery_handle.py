"""A nursery as its worker sees it."""

from __future__ import annotations

import asyncio
import os
import pickle
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Final

import structlog

from worker.children.requests import MAX_REQUEST, Exited, Refused

CLOSE_SECONDS: Final = 2.0
# With the path of this process, and not with the working directory before it: that may have modules of the same names.
COMMAND: Final = """
import sys
_, control, *sys.path[:] = sys.argv
del sys.argv[1:]
from worker.children.nursery import main
main(int(control))
"""

log = structlog.get_logger()


class Nursery:
    """The worker's end of a nursery. Requests wait in order while the nursery does not read: nobody waits for it."""

    def __init__(
        self,
        process: asyncio.subprocess.Process,
        control: socket.socket,
        on_exit: Callable[[Exited], None],
        on_refusal: Callable[[Refused], None],
        on_end: Callable[[], None],
    ) -> None:
        self._process = process
        self._control = control
        self._on_exit, self._on_refusal, self._on_end = on_exit, on_refusal, on_end
        self._unsent: deque[tuple[bytes, Sequence[int]]] = deque()
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(control, self._read)
        self.gone = False

    @classmethod
    async def opened(
        cls,
        on_exit: Callable[[Exited], None],
        on_refusal: Callable[[Refused], None],
        on_end: Callable[[], None],
    ) -> Nursery:
        """Raises OSError."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            with theirs:
                process = await asyncio.create_subprocess_exec(
                    sys.executable,
                    *subprocess._args_from_interpreter_flags(),  # type: ignore[attr-defined]
                    "-c",
                    COMMAND,
                    str(theirs.fileno()),
                    *sys.path,
                    pass_fds=[theirs.fileno()],
                    stdin=asyncio.subprocess.DEVNULL,
                )
        except BaseException:
            ours.close()
            raise
        return cls(process, ours, on_exit, on_refusal, on_end)

    def tell(self, message: Any, descriptors: Sequence[int] = ()) -> None:
        """Send `message` with `descriptors`, which are closed then."""
        self._unsent.append((pickle.dumps(message), descriptors))
        self._send()

    async def aclose(self) -> None:
        self._leave()
        with suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_SECONDS):
                await self._process.wait()
                return
        self._process.kill()
        await self._process.wait()

    def _send(self) -> None:
        while self._unsent:
            data, descriptors = self._unsent[0]
            try:
                if not self.gone:
                    socket.send_fds(self._control, [data], descriptors, socket.MSG_DONTWAIT)
            except BlockingIOError:
                self._loop.add_writer(self._control, self._send)
                return
            except OSError:
                # It has just died: its end is told by the control socket.
                pass
            self._unsent.popleft()
            for each in descriptors:
                os.close(each)
        if not self.gone:
            self._loop.remove_writer(self._control)

    def _read(self) -> None:
        try:
            data = self._control.recv(MAX_REQUEST, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        match pickle.loads(data) if data else None:  # noqa: S301 - from our own nursery
            case Exited() as exited:
                self._on_exit(exited)
            case Refused() as refused:
                self._on_refusal(refused)
            case _:
                self._leave()
                log.warning("nursery.ended")
                self._on_end()

    def _leave(self) -> None:
        if not self.gone:
            self.gone = True
            self._loop.remove_reader(self._control)
            self._loop.remove_writer(self._control)
            self._control.close()
            self._send()
