"""The vocabulary of the engine, without I/O: jobs, their states, and how an attempt can end."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any, NamedTuple
from uuid import UUID

MAX_CRASHES = 3
"""The number of crashes since the last redrive at which a job fails."""

MAX_SUSPICION = 2
"""Of a job that runs alone. A job with less, but not 0, runs beside few others that are suspected too."""

UNREADABLE_SECONDS = 900.0
"""How long a job waits for a worker whose code can read its metadata, from the first attempt that could not."""

DEFAULT_PRIORITY = 2


class JobState(StrEnum):
    """The state of a job, as the audit trail records it. JSON shows the state in lower case as `status`."""

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
"""Every legal transition. None stands for a job that does not exist yet. FAILED | CANCELLED → PENDING is a redrive."""


class Reason(StrEnum):
    """Why a job changed its state, as the audit row of the change records."""

    ENQUEUED = "enqueued"
    CLAIMED = "claimed"
    COMPLETED = "completed"
    FAILED = "failed"
    ERROR = "error"
    """An error or a time-out. The job will be retried."""
    SNOOZED = "snoozed"
    CANCELLED = "cancelled"
    SHUTDOWN = "shutdown"
    UNKNOWN = "unknown to its worker"
    """The reply to the claim was lost: the worker never ran the attempt."""
    UNREADABLE = "unreadable to its worker"
    """The metadata do not fit the model that the worker's code has. The job waits for a worker with other code."""
    LEASE_LOST = "lease lost"
    """The worker's lease ran out while the database was away. The worker stopped the attempt."""
    LAPSED = "lapsed"
    """The worker is gone and its lease has run out. The attempt ran alone there: this counts as a crash."""
    LAPSED_BESIDE_OTHERS = "lapsed beside others"
    """The worker is gone, and any of its attempts may be why. No crash is counted, but the job is suspected."""
    LAPSED_APART = "lapsed apart"
    """The worker is gone, or what starts its processes, and the attempt ran in a process of its own: it is not why."""
    REDRIVEN = "redriven"

    @property
    def ends_attempt(self) -> bool:
        """Whether this is an outcome that the attempt's own worker recorded."""
        return self in _OUTCOMES

    @property
    def clears(self) -> bool:
        """Whether a job that ends an attempt so is suspected no more: its pipeline came to an end of its own."""
        return self in (Reason.ERROR, Reason.SNOOZED)


_OUTCOMES = frozenset(Reason) - {
    Reason.ENQUEUED,
    Reason.CLAIMED,
    Reason.LEASE_LOST,
    Reason.LAPSED,
    Reason.LAPSED_BESIDE_OTHERS,
    Reason.LAPSED_APART,
    Reason.REDRIVEN,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class NewJob:
    """A job to be enqueued. `enqueue` checks the limits; the fields themselves accept any value.

    None is absent: an optional field that is None has its default.

    - `user_id`: the owner, 1 to 255 characters.
    - `preset`: the name of the pipeline, `[a-z0-9][a-z0-9_.-]{0,62}`. A job of an unknown preset waits for a worker
      that runs the preset.
    - `content`: the input, 1 byte to 256 KiB in UTF-8, without NUL.
    - `metadata`: parameters of the pipeline, at most 256 KiB as JSON and nested at most 64 deep. `enqueue` does not
      check them against the pipeline's model: see `Metadata`.
    - `priority`: 1 (most urgent) to 4.
    - `run_at`: the earliest start, with a time zone, in the years 1 to 9998 of UTC. None or a past time means at once.
    - `delay_seconds`: the earliest start in seconds after the start of the transaction, by the database's clock, at
      most a year. Not together with `run_at`.
    - `max_attempts`: the number of errors at which the job fails, 1 to 25. None means the pipeline's own.
    - `timeout_seconds`: the longest run of one attempt, 1 to 86 400. None means the pipeline's own.
    - `traceparent`: the W3C trace context that the job belongs to.
    - `id`: a version 7 UUID. None lets each call of `enqueue` draw a new one. A given id makes the call repeatable: it
      adds one job, however often it is made. The same job is then answered as the first call was, with `replayed`
      true. Another job raises DuplicateJob. Compared are `user_id`, `preset`, `content`, `metadata`, `priority`,
      `max_attempts`, `timeout_seconds`, and `run_at` if it is given; `delay_seconds` and `traceparent` are not.
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
    id: UUID | None = None

    def __post_init__(self) -> None:
        if self.metadata is None:
            object.__setattr__(self, "metadata", {})
        if self.priority is None:
            object.__setattr__(self, "priority", DEFAULT_PRIORITY)


class Job(NamedTuple):
    """A job as its pipeline receives it, and as `enqueue` returns it.

    - `id`: a version 7 UUID.
    - `user_id`: the owner.
    - `preset`: the name of the pipeline.
    - `content`: the input, at most 256 KiB in UTF-8.
    - `metadata`: an instance of the pipeline's metadata model, or a dict if the pipeline declares none. `enqueue`
      always returns a dict.
    - `priority`: 1 (most urgent) to 4.
    - `created_at`: when the job was enqueued, by the database's clock, with a time zone.
    - `traceparent`: the W3C trace context that the job belongs to, or None.
    - `replayed`: whether an earlier call of `enqueue` with this id added the job. Always false in a pipeline.
    """

    id: UUID
    user_id: str
    preset: str
    content: str
    metadata: Any
    priority: int
    created_at: datetime
    traceparent: str | None
    replayed: bool = False


class Attempt(NamedTuple):
    """One execution of a job. `(job.id, number, worker_id)` fences every write of the attempt.

    `errors` and `crashes` are the part of the job's budget that was used before this attempt. `max_attempts` and
    `timeout_seconds` of None mean the preset's own. `ready_at` is the time from which the job could be claimed, from
    the outbox or by a message. `undecodable` is the reason why the stored metadata cannot be read, or None.
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
    """An error as clients see it, without a traceback. `type` is the name of the exception's class."""

    type: str
    message: str


@dataclass(frozen=True, slots=True)
class TimedOut(JobError):
    """The error of an attempt whose own deadline passed. A TimeoutError that a pipeline raises is not one."""


Effects = Callable[[Any], Awaitable[None]]
"""`effects(conn)`: an async function that writes on a psycopg AsyncConnection in an open transaction."""


@dataclass(frozen=True, slots=True)
class Completed:
    """Returned by a pipeline: the job is done.

    - `output`: the result, JSON-able and at most 4 MiB as JSON. An output that cannot be stored fails the job.
    - `effects`: an async function `effects(conn)` whose writes commit together with the result, exactly once for each
      completed job. `conn` is a psycopg AsyncConnection in the worker's open transaction, READ COMMITTED, with the
      role's own search_path and time zone. Whatever is SET there ends with the function. A function that commits or
      rolls back fails the job.
      The function may be called again after a deadlock or a lost connection, and may take as long as an attempt. If
      the function raises, nothing is written and the attempt ends as if the pipeline had raised.
    """

    output: Any = None
    effects: Effects | None = None


@dataclass(frozen=True, slots=True)
class Retry:
    """Returned by a pipeline: the attempt failed, and the job should be tried again. One error is counted.

    The job fails instead when its errors reach `max_attempts`. Raising any exception but `PermanentError` means
    `Retry(None, exception)`.

    - `delay`: seconds until the next attempt, bounded to 0 to 31 536 000 (a year). None means the pipeline's random,
      exponential back-off, see `Pipeline`.
    - `error`: what went wrong. An exception is stored as the name of its class and its message, without a traceback.
    """

    delay: float | None
    error: BaseException | JobError | str


@dataclass(frozen=True, slots=True)
class Failed:
    """Returned by a pipeline: the job fails at once, because another attempt would not help.

    `error` is what went wrong. An exception is stored as the name of its class and its message, without a traceback.
    Raising `PermanentError` has the same meaning.
    """

    error: BaseException | JobError | str


@dataclass(frozen=True, slots=True)
class Snoozed:
    """Returned by a pipeline: not now. The job runs again after `delay` seconds, and no error is counted.

    `delay` is bounded to 0 to 31 536 000 seconds (a year).
    """

    delay: float


@dataclass(frozen=True, slots=True)
class Cancelled:
    """The attempt stopped because the job's cancellation was requested."""


@dataclass(frozen=True, slots=True)
class Released:
    """The attempt was released unfinished, at shutdown or because the lease was lost. No error is counted."""

    reason: Reason


@dataclass(frozen=True, slots=True)
class Unreadable:
    """The pipeline did not run, because the job's metadata do not fit the model that this worker's code has.

    In a rolling deploy another worker's code may read them, so the job waits `delay` seconds, and no error is counted.
    """

    error: BaseException | JobError | str
    delay: float = 1.0


Outcome = Completed | Retry | Failed | Snoozed | Cancelled | Released | Unreadable
