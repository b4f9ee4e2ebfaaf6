"""Every deliberate error.

OutriderError
├── ConfigurationError     the environment is wrong; the process must not start
├── SchemaMismatch         the database is behind this code, or its schema cannot be changed
├── InvalidJob             a job that can never be accepted; carries one Problem per fault
├── JobNotFound            no such job, or another owner's
├── StateConflict          the job's state forbids the move
├── IdempotencyMismatch    the key was used before with another body
├── Overloaded             too much waits already; try again later
├── LeaseLost              the attempt is no longer the current one; its outcome must be dropped
├── DatabaseUnavailable    PostgreSQL did not answer in time, or the connection broke
├── BrokerUnavailable      Pub/Sub delivers nothing
├── KeysUnavailable        the keys of the token issuer cannot be had
└── PermanentError         raised by a pipeline: fail the job at once, no retry
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple
from uuid import UUID

from engine.model import JobState


class Problem(NamedTuple):
    """One fault of an input: `pointer` is a JSON pointer (RFC 6901), `detail` says what is wrong there."""

    pointer: str
    detail: str


class OutriderError(Exception):
    """Base of every error this project raises on purpose."""


class ConfigurationError(OutriderError):
    """The environment is wrong. `problems` holds one line for each fault."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = tuple(problems)


class SchemaMismatch(OutriderError):
    """The database lacks versions of the schema that this code needs, or one could not be applied."""


class InvalidJob(OutriderError):
    """The job can never be accepted as it is."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__("; ".join(f"{p.pointer or '/'}: {p.detail}" for p in problems))
        self.problems = tuple(problems)


class JobNotFound(OutriderError):
    """No such job, or it belongs to somebody else: the two must look the same."""

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
    """More is waiting than this process accepts."""


class LeaseLost(OutriderError):
    """The attempt is no longer the current one: whatever it wanted to write must be dropped."""


class DatabaseUnavailable(OutriderError):
    """PostgreSQL did not answer within its deadline, or the connection broke."""


class BrokerUnavailable(OutriderError):
    """Pub/Sub delivers nothing; jobs come by the outbox meanwhile."""


class KeysUnavailable(OutriderError):
    """The keys of the token issuer cannot be had at present, and none are remembered."""


class PermanentError(OutriderError):
    """Raised by a pipeline to fail its job at once: trying again would not help."""
