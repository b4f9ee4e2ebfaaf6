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
SEQUENCE: Final = struct.Struct("=Q")
BEGUN: Final = 8
ENDED: Final = BEGUN + SEQUENCE.size
"""Two counts of the reports. They differ while one is written."""
HEAD: Final = struct.Struct("=QdHH")
"""How many reports there were, the fraction, and the bytes of the message and of the step, which follow."""
AT: Final = ENDED + SEQUENCE.size
TEXTS: Final = AT + HEAD.size
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
        SEQUENCE.pack_into(self._page, BEGUN, report.n)
        HEAD.pack_into(self._page, AT, report.n, fraction, len(message), len(step))
        if texts := message + step:
            self._page[TEXTS : TEXTS + len(texts)] = texts
        SEQUENCE.pack_into(self._page, ENDED, report.n)

    @property
    def count(self) -> int:
        """How many reports there were."""
        return int(SEQUENCE.unpack_from(self._page, ENDED)[0])

    def read(self) -> Report:
        """The latest report that is whole."""
        (before,) = SEQUENCE.unpack_from(self._page, ENDED)
        if before != self._last.n:
            n, fraction, message, step = HEAD.unpack_from(self._page, AT)
            texts = self._page[TEXTS : TEXTS + message + step]
            (after,) = SEQUENCE.unpack_from(self._page, BEGUN)
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
