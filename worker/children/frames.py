"""The messages between a worker and its children: pickled, each behind its length.

Both ends run the same version of this code. What an author returns never crosses: only what it came to. A message
crosses as the number of its kind and its members, and those that each attempt needs are plain values: to find a class
by its name takes longer than all else, in a process whose code is not in the processor's caches.
"""

from __future__ import annotations

import pickle
import struct
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, Final, NamedTuple
from uuid import UUID

from engine.model import Attempt, Job, Outcome

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


class Done(NamedTuple):
    """From a child: the attempt is completed, its output is JSON text. `effects`: the child waits for Commit.

    `spent` says why the child must not run another attempt.
    """

    output: str
    effects: bool
    spent: str | None


class Ended(NamedTuple):
    """From a child: what an attempt came to that is not completed. `spent` as in Done."""

    outcome: Outcome
    spent: str | None


class Committed(NamedTuple):
    """From a child: the outcome that is committed with its effects, or that is to be written instead; None if lost.

    `spent` as in Done.
    """

    outcome: Outcome | None
    spent: str | None


def _plain(begin: Begin) -> tuple[Any, ...]:
    attempt = begin.attempt
    job, *numbers, due, started, ready, undecodable = attempt
    job_id, *named, created, traceparent, replayed = job
    times = [each.isoformat() for each in (created, due, started, ready)]
    return begin.traced, job_id.int, named, traceparent, replayed, numbers, undecodable, times


def _begin(
    traced: bool,
    job_id: int,
    named: list[Any],
    traceparent: str | None,
    replayed: bool,
    numbers: list[Any],
    undecodable: str | None,
    times: list[str],
) -> Begin:
    created, due, started, ready = map(datetime.fromisoformat, times)
    job = Job._make((UUID(int=job_id), *named, created, traceparent, replayed))
    return Begin(Attempt._make((job, *numbers, due, started, ready, undecodable)), traced)


KINDS: Final[Mapping[type, int]] = {
    kind: number
    for number, kind in enumerate((Begin, Done, Ended, Commit, Committed, Ready, Line, StepBegan, StepEnded))
}
BEGIN: Final = KINDS[Begin]
MAKERS: Final[tuple[Callable[..., Any], ...]] = (_begin, *list(KINDS)[1:])


def encoded(message: Any) -> bytes:
    """Raises what `pickle` raises of an author's objects."""
    kind = KINDS[type(message)]
    members = _plain(message) if kind == BEGIN else message
    body = pickle.dumps((kind, *members), pickle.HIGHEST_PROTOCOL)
    return LENGTH.pack(len(body)) + body


class Decoder:
    """Cuts what arrives into messages."""

    def __init__(self) -> None:
        self._begun = bytearray()
        """A message of which more is to come."""
        self._wanted = 0
        """Its bytes, as far as they are known."""

    def feed(self, data: bytes) -> list[Any]:
        """The messages that `data` completes. Raises BrokenFrame."""
        if self._begun:
            self._begun += data
            if len(self._begun) < self._wanted:
                return []
            data = bytes(self._begun)
        messages: list[Any] = []
        at = 0
        while (begin := at + LENGTH.size) <= (end := len(data)):
            (length,) = LENGTH.unpack_from(data, at)
            if length > MAX_BYTES:
                raise BrokenFrame(f"{length} bytes")
            if begin + length > end:
                begin += length
                break
            messages.append(_decoded(data[begin : begin + length]))
            at = begin + length
        self._begun, self._wanted = bytearray(data[at:]), begin - at
        return messages


def _decoded(body: bytes) -> Any:
    try:
        kind, *members = pickle.loads(body)  # noqa: S301 - both ends run the same code
        return MAKERS[kind](*members)
    except Exception as error:
        raise BrokenFrame(f"{type(error).__name__}: {error}") from error
