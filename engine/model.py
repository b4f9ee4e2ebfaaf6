"""The vocabulary, pure: what a job is, the states it passes through, and how an attempt can end."""

from __future__ import annotations

import random
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any, NamedTuple
from uuid import UUID

MAX_CRASHES = 3
"""Lapses since the last redrive; the third one fails the job."""

DEFAULT_PRIORITY = 2


class JobState(StrEnum):
    """Where a job stands, as the audit trail records it. JSON shows it in lower case as `status`."""

    PENDING = "PENDING"
    PROCESSING = "PROCESSING"
    COMPLETED = "COMPLETED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"

    @property
    def terminal(self) -> bool:
        return self in TERMINAL


TERMINAL = frozenset({JobState.COMPLETED, JobState.FAILED, JobState.CANCELLED})

TRANSITIONS: Mapping[JobState | None, frozenset[JobState]] = {
    None: frozenset({JobState.PENDING}),
    JobState.PENDING: frozenset({JobState.PROCESSING, JobState.CANCELLED}),
    JobState.PROCESSING: TERMINAL | {JobState.PENDING},
    JobState.COMPLETED: frozenset(),
    JobState.FAILED: frozenset({JobState.PENDING}),
    JobState.CANCELLED: frozenset({JobState.PENDING}),
}
"""Every legal edge; None is "not yet there". FAILED | CANCELLED → PENDING is a redrive."""


class Reason(StrEnum):
    """Why a job changed its state, as the audit row of the change says."""

    ENQUEUED = "enqueued"
    CLAIMED = "claimed"
    COMPLETED = "completed"
    FAILED = "failed"
    ERROR = "error"
    """An error or a time-out; the job is tried again."""
    SNOOZED = "snoozed"
    CANCELLED = "cancelled"
    SHUTDOWN = "shutdown"
    UNKNOWN = "unknown to its worker"
    """The reply to the claim was lost: the worker has never run the attempt."""
    LEASE_LOST = "lease lost"
    """The worker's lease ran out while the database was away; the worker stopped the attempt."""
    LAPSED = "lapsed"
    """The worker is gone, and its lease has run out: a crash."""
    REDRIVEN = "redriven"

    @property
    def ends_attempt(self) -> bool:
        """Whether an outcome of the attempt's own worker stands behind it."""
        return self in _OUTCOMES


_OUTCOMES = frozenset(Reason) - {
    Reason.ENQUEUED,
    Reason.CLAIMED,
    Reason.LEASE_LOST,
    Reason.LAPSED,
    Reason.REDRIVEN,
}


_last_tick = 0


def first_id_of(moment: float) -> UUID:
    """A bound below every version 7 id made at `moment` (seconds since 1970) or later."""
    return UUID(int=int(moment * 1000) << 80)


def uuid7() -> UUID:
    """A time-ordered id (RFC 9562 §5.7, method 3: sub-millisecond bits in rand_a), increasing in a process."""
    global _last_tick
    tick = max(time.time_ns() * 4096 // 1_000_000, _last_tick + 1)
    _last_tick = tick
    milliseconds, fraction = tick >> 12, tick & 0xFFF
    return UUID(int=milliseconds << 80 | 7 << 76 | fraction << 64 | 2 << 62 | random.getrandbits(62))


@dataclass(frozen=True, slots=True, kw_only=True)
class NewJob:
    """A job to be enqueued. `max_attempts` and `timeout_seconds` of None mean the preset's own.

    `run_at` must be timezone-aware; None, or a time that has passed, means at once. `delay_seconds` instead counts
    from the transaction's start, by the database's clock.
    """

    user_id: str
    preset: str
    content: str
    metadata: Mapping[str, Any] = field(default_factory=dict)
    priority: int = DEFAULT_PRIORITY
    run_at: datetime | None = None
    delay_seconds: float | None = None
    max_attempts: int | None = None
    timeout_seconds: int | None = None
    traceparent: str | None = None
    id: UUID = field(default_factory=uuid7)


class Job(NamedTuple):
    """What a pipeline is given. `metadata` is the pipeline's metadata model where it declares one, else a dict."""

    id: UUID
    user_id: str
    preset: str
    content: str
    metadata: Any
    priority: int
    created_at: datetime
    traceparent: str | None


class Attempt(NamedTuple):
    """One execution of a job: `(job.id, number, worker_id)` is the fence of everything it writes.

    `errors` and `crashes` are what the job has spent of its budget before this attempt. `max_attempts` and
    `timeout_seconds` of None are the preset's. `ready_at` is since when it could be claimed, by the outbox or by a
    message. `undecodable` says why the stored metadata cannot be read.
    """

    job: Job
    number: int
    worker_id: int
    errors: int
    crashes: int
    max_attempts: int | None
    timeout_seconds: int | None
    position: int
    due_at: datetime
    started_at: datetime
    ready_at: datetime
    undecodable: str | None = None

    @property
    def key(self) -> tuple[UUID, int]:
        return self.job.id, self.number

    @property
    def lane(self) -> tuple[str, int]:
        return self.job.preset, self.job.priority


@dataclass(frozen=True, slots=True)
class JobError:
    """What went wrong, as clients see it: never a traceback."""

    type: str
    message: str


Effects = Callable[[Any], Awaitable[None]]
"""`effects(conn)`, on a psycopg AsyncConnection in an open transaction."""


@dataclass(frozen=True, slots=True)
class Completed:
    """Done. `effects(conn)` runs in the completing transaction: exactly once per completed job."""

    output: Any = None
    effects: Effects | None = None


@dataclass(frozen=True, slots=True)
class Retry:
    """An error: try again after `delay` seconds, or after the pipeline's back-off when None. Spends budget."""

    delay: float | None
    error: BaseException | JobError | str


@dataclass(frozen=True, slots=True)
class Failed:
    """An error that another attempt would not fix."""

    error: BaseException | JobError | str


@dataclass(frozen=True, slots=True)
class Snoozed:
    """Not now: run again after `delay` seconds. Spends no budget."""

    delay: float


@dataclass(frozen=True, slots=True)
class Cancelled:
    """The attempt stopped because its owner asked for it."""


@dataclass(frozen=True, slots=True)
class Released:
    """Not finished here, and nobody's error: at shutdown, or because the lease is lost. Spends no budget."""

    reason: Reason


Outcome = Completed | Retry | Failed | Snoozed | Cancelled | Released
