"""Every deliberate error.

OutriderError
├── ConfigurationError     the environment or a pipeline is wrong; the process must not start
│   └── UnfitDatabase      the database, or a pooler in front of it, cannot serve; carries the fix
├── SchemaMismatch         the database is behind this code, its schema cannot be changed, or rights are missing
├── InvalidJob             a job that can never be accepted; carries one Problem per fault
├── DuplicateJob           the given id is another job's
├── JobNotFound            no such job, or a job of another owner
├── StateConflict          the job's state forbids the move
├── IdempotencyMismatch    the key was used before with another body
├── Overloaded             too much is waiting; try again later
├── LeaseLost              the attempt is no longer the current one; its outcome must be dropped
├── DatabaseUnavailable    PostgreSQL did not answer in time, or the connection broke
├── BrokerUnavailable      Pub/Sub delivers no messages
├── KeysUnavailable        the token issuer's keys cannot be fetched
└── PermanentError         raised by a pipeline: fail the job at once, no retry
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple
from uuid import UUID

from engine.model import JobState


class Problem(NamedTuple):
    """One fault of an input. `pointer` is a JSON pointer (RFC 6901); `detail` says what is wrong there."""

    pointer: str
    detail: str


class OutriderError(Exception):
    """Base class of every error that this project raises on purpose."""


class ConfigurationError(OutriderError):
    """The environment, or the declaration of a pipeline, is wrong. `problems` holds one line for each fault."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = tuple(problems)


class UnfitDatabase(ConfigurationError):
    """The database, or a pooler in front of it, can never serve. `found` says why, `fix` says what to do."""

    def __init__(self, found: str, fix: str) -> None:
        super().__init__([f"{found}: {fix}"])
        self.found = found
        self.fix = fix


class SchemaMismatch(OutriderError):
    """The schema, or the rights of the role on it, are not what this code needs, or a version could not be applied.

    `found` says what is wrong, `fix` what to do.
    """

    def __init__(self, found: str, fix: str = "") -> None:
        super().__init__(f"{found}: {fix}" if fix else found)
        self.found = found
        self.fix = fix


class InvalidJob(OutriderError):
    """The job can never be accepted as it is. `problems` holds every fault found."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__("; ".join(f"{p.pointer or '/'}: {p.detail}" for p in problems))
        self.problems = tuple(problems)


class DuplicateJob(OutriderError):
    """The given id is in use by another job: other content, or another owner's. Nothing of the call was kept.

    The caller's transaction can go on. `job_id` is the id. Nothing is said of the other job.
    """

    def __init__(self, job_id: UUID) -> None:
        super().__init__(f"the id {job_id} is in use by another job")
        self.job_id = job_id


class JobNotFound(OutriderError):
    """No job has this id, or the job belongs to another owner. A caller must not be able to tell the two apart."""

    def __init__(self, job_id: UUID | str) -> None:
        super().__init__(f"no job {job_id}")


class StateConflict(OutriderError):
    """The job's state forbids the move."""

    def __init__(self, job_id: UUID, state: JobState, move: str) -> None:
        super().__init__(f"a job that is {state.lower()} cannot be {move}")
        self.job_id = job_id
        self.state = state


class IdempotencyMismatch(OutriderError):
    """The idempotency key was used before, with another body."""


class Overloaded(OutriderError):
    """The work cannot be accepted now: too much is waiting, or the job is being written. The caller may try again."""


class LeaseLost(OutriderError):
    """The attempt is no longer the current one. Its outcome must be dropped."""


class DatabaseUnavailable(OutriderError):
    """PostgreSQL did not answer within its deadline, or the connection broke."""


class BrokerUnavailable(OutriderError):
    """Pub/Sub delivers no messages. Meanwhile workers claim jobs from the outbox."""


class KeysUnavailable(OutriderError):
    """The token issuer's keys cannot be fetched at present, and none are cached."""


class PermanentError(OutriderError):
    """Raise this in a pipeline, or in its effects, to fail the job at once: another attempt would not help.

    The message is shown to the job's owner. Returning `Failed` from a pipeline has the same meaning.
    """
