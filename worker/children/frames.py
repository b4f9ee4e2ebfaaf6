"""The messages between a worker and its children: pickled, each behind its length.

Both ends run the same version of this code. What an author returns never crosses: only what it came to.
"""

from __future__ import annotations

import pickle
import struct
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

from engine.model import Attempt, Outcome

LENGTH: Final = struct.Struct("!I")
MAX_BYTES: Final = 64 << 20
"""More than any message has: an attempt's content and metadata, an output of 4 MiB, or a log line."""


class BrokenFrame(Exception):
    """The bytes are no message: an author's code has written into the descriptor."""


class Begin(NamedTuple):
    """To a child: run this attempt. `traced`: its steps are spans."""

    attempt: Attempt
    traced: bool = False


class Commit(NamedTuple):
    """To a child: commit the outcome with the effects that it has kept, and `metadata` (JSON text) beside it."""

    metadata: str
    publish_results: bool


class Ready(NamedTuple):
    """From a child: it has imported the pipelines and waits; or it cannot, and says why."""

    pid: int
    fault: str | None = None


class Line(NamedTuple):
    """From a child: finished lines of the log."""

    lines: bytes


class StepBegan(NamedTuple):
    """From a child: a step has begun, within the step `parent` if there is one."""

    key: int
    parent: int | None
    name: str


class StepEnded(NamedTuple):
    """From a child: a step has ended, by the exception `error` if there is one."""

    key: int
    error: str | None


class Ended(NamedTuple):
    """From a child: what the attempt came to. `effects`: the child waits for Commit. `spent`: why it must not go on."""

    outcome: Outcome
    effects: bool
    spent: str | None


class Committed(NamedTuple):
    """From a child: the outcome that is committed with its effects, or that is to be written instead; None if lost.

    `spent` as in Ended.
    """

    outcome: Outcome | None
    spent: str | None


def encoded(message: Any) -> bytes:
    body = pickle.dumps(message, pickle.HIGHEST_PROTOCOL)
    return LENGTH.pack(len(body)) + body


class Decoder:
    """Cuts what arrives into messages."""

    def __init__(self) -> None:
        self._bytes = bytearray()

    def feed(self, data: bytes) -> Iterator[Any]:
        """The messages that `data` completes. Raises BrokenFrame."""
        self._bytes += data
        while len(self._bytes) >= LENGTH.size:
            length = LENGTH.unpack_from(self._bytes)[0]
            if length > MAX_BYTES:
                raise BrokenFrame(f"{length} bytes")
            end = LENGTH.size + length
            if len(self._bytes) < end:
                return
            body = bytes(self._bytes[LENGTH.size : end])
            del self._bytes[:end]
            try:
                yield pickle.loads(body)  # noqa: S301 - a child runs the same code as this process, and no other
            except Exception as error:
                raise BrokenFrame(f"{type(error).__name__}: {error}") from error
