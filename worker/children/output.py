"""What an attempt prints: read line by line, and no faster than a log can take."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from typing import Final

MAX_LINE: Final = 4096
PORTION: Final = 64 * 1024
PAUSE_SECONDS: Final = 0.1
"""Between two portions of a flood, which the pipe holds up meanwhile: it slows the one who prints, and nobody else."""
MAX_LINES: Final = 20
"""Lines logged of one portion. The others are counted."""


class Output(asyncio.Protocol):
    """Calls `on_line` for each line of a child's standard output and error."""

    def __init__(self, descriptor: int, on_line: Callable[[str], None]) -> None:
        self._descriptor = descriptor
        self._on_line = on_line
        self._rest = b""
        self._read = 0
        self._transport: asyncio.ReadTransport | None = None
        self.ended = False
        """Whether nobody can print there any more."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.ReadTransport)
        self._transport = transport

    def drain(self) -> None:
        """Read what an attempt has left in the pipe at its end, so that it is not taken for the next one's."""
        if self._transport is not None and not self._transport.is_closing():
            if data := self._waiting():
                self._take(data)
            if self._rest:
                self._flush()

    def _waiting(self) -> bytes:
        try:
            data = os.read(self._descriptor, PORTION)
        except BlockingIOError:
            return b""
        self.ended = not data
        return data

    def data_received(self, data: bytes) -> None:
        self._take(data)
        self._read += len(data)
        if self._read >= PORTION and self._transport is not None:
            self._read = 0
            self._transport.pause_reading()
            asyncio.get_running_loop().call_later(PAUSE_SECONDS, self._resume)

    def _take(self, data: bytes) -> None:
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > MAX_LINE:
            lines, self._rest = [*lines, self._rest], b""
        for line in lines[:MAX_LINES]:
            if line.strip():
                self._on_line(line[:MAX_LINE].decode(errors="replace"))
        if (more := len(lines) - MAX_LINES) > 0:
            self._on_line(f"… and {more} more lines")

    def eof_received(self) -> None:
        self.ended = True
        self._flush()

    def _flush(self) -> None:
        if self._rest.strip():
            self._on_line(self._rest[:MAX_LINE].decode(errors="replace"))
        self._rest = b""

    def _resume(self) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()
