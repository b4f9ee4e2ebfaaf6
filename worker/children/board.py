"""A page of memory that a worker and one child share: what an attempt reports, and whether it should come to its end.

Reports cost no message, however many an author's code makes, and outlive a child that is killed. The child alone
writes reports; the worker alone writes what it wants of the attempt. A reader that meets a report half written
keeps the one before.
"""

from __future__ import annotations

import mmap
import os
import struct
import time
from typing import Final, NamedTuple

SIZE: Final = 8192
STOPPING: Final = 0
ENDING: Final = 1
REPORT: Final = 8
HEAD: Final = struct.Struct("=QdHH")
"""How many reports there were, the fraction, and the bytes of the message and of the step, which follow."""
SEQUENCE: Final = struct.Struct("=Q")
MAX_BYTES: Final = 2000
POLL_SECONDS: Final = 0.05


class Report(NamedTuple):
    """`n` counts the reports of the child. `step` is the step that began last, or empty."""

    n: int = 0
    fraction: float | None = None
    message: str = ""
    step: str = ""


class Board:
    """The page behind a descriptor, which is made by `new_page` and stays the caller's. It lives as long as this."""

    def __init__(self, descriptor: int) -> None:
        self._page = mmap.mmap(descriptor, SIZE)
        self._last = Report()

    def write(self, report: Report) -> None:
        message, step = report.message.encode()[:MAX_BYTES], report.step.encode()[:MAX_BYTES]
        fraction = -1.0 if report.fraction is None else report.fraction
        head = HEAD.pack(report.n, fraction, len(message), len(step))
        at = REPORT + 2 * SEQUENCE.size
        # Two counts that differ mark a report that is being written.
        SEQUENCE.pack_into(self._page, REPORT, report.n)
        self._page[at : at + len(head) + len(message) + len(step)] = head + message + step
        SEQUENCE.pack_into(self._page, REPORT + SEQUENCE.size, report.n)

    @property
    def count(self) -> int:
        """How many reports there were."""
        return int(SEQUENCE.unpack_from(self._page, REPORT + SEQUENCE.size)[0])

    def read(self) -> Report:
        """The latest report that is whole."""
        (before,) = SEQUENCE.unpack_from(self._page, REPORT + SEQUENCE.size)
        if before != self._last.n:
            at = REPORT + 2 * SEQUENCE.size
            n, fraction, message, step = HEAD.unpack_from(self._page, at)
            at += HEAD.size
            texts = self._page[at : at + message + step]
            (after,) = SEQUENCE.unpack_from(self._page, REPORT)
            if after == before == n and message + step <= 2 * MAX_BYTES:
                self._last = Report(
                    n,
                    None if fraction < 0 else fraction,
                    texts[:message].decode(errors="ignore"),
                    texts[message:].decode(errors="ignore"),
                )
        return self._last

    def stop(self) -> None:
        """Tell the child that its worker is stopping."""
        self._page[STOPPING] = 1

    def end(self) -> None:
        """Tell the child that the SIGTERM that follows comes from its worker."""
        self._page[ENDING] = 1

    @property
    def ending(self) -> bool:
        return self._page[ENDING] == 1

    @property
    def stopping(self) -> bool:
        return self._page[STOPPING] == 1

    def wait_for_stop(self, seconds: float | None) -> bool:
        """Wait until the worker is stopping, at most `seconds`. Returns whether it is."""
        until = None if seconds is None else time.monotonic() + seconds
        while not self.stopping and (until is None or time.monotonic() < until):
            time.sleep(POLL_SECONDS)
        return self.stopping


def new_page() -> int:
    """The descriptor of a new page, all zero. The caller closes it."""
    descriptor = os.memfd_create("outrider-board", os.MFD_CLOEXEC)
    os.ftruncate(descriptor, SIZE)
    return descriptor
