"""Why a job is where it is, told from its row, the workers and the audit trail."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, LiteralString, NamedTuple
from uuid import UUID

from psycopg import AsyncConnection
from psycopg.rows import class_row

from engine.db import timed
from engine.errors import JobNotFound
from engine.model import MAX_CRASHES, JobState
from engine.pipeline import Pipeline

COUNTED: Final = 1000
"""How many jobs ahead are counted; beyond it the answer is "more than"."""


class Fact(NamedTuple):
    """`code` is for programs and never changes its meaning, `detail` is for people."""

    code: str
    detail: str


@dataclass(frozen=True, slots=True)
class Explanation:
    """`summary` is the most telling fact as a sentence; `estimate_seconds` until a job is due, else None."""

    status: JobState
    summary: str
    facts: tuple[Fact, ...]
    estimate_seconds: float | None


@dataclass(frozen=True, slots=True)
class Sight:
    """Everything the facts are drawn from. `ahead` is bounded; `worker_live` is of the lease's holder."""

    state: JobState
    outbox_status: str | None
    preset: str
    attempt: int
    errors: int
    crashes: int
    max_attempts: int | None
    cancel_requested: bool
    run_at: datetime
    due_seconds: float
    published_at: datetime | None
    completed_at: datetime | None
    error: dict[str, Any] | None
    reason: str | None
    worker_id: int | None
    worker_name: str | None
    worker_live: bool | None
    lease_until: datetime | None
    fraction: float | None
    message: str | None
    workers: int
    ahead: int | None

    def __post_init__(self) -> None:
        object.__setattr__(self, "state", JobState(self.state))


# Jobs ahead are those that a worker with this preset alone would take first; other presets compete for its slots
# too, but in no fixed order.
SIGHT: LiteralString = """
SELECT s.state, s.outbox_status, s.preset, s.attempt, s.errors, s.crashes, s.max_attempts, s.cancel_requested,
       s.run_at, extract(epoch FROM s.run_at - clock_timestamp())::double precision AS due_seconds,
       s.published_at, s.completed_at, s.error,
       (SELECT a.reason FROM job_state_records a WHERE a.job_id = s.job_id ORDER BY a.seq DESC LIMIT 1) AS reason,
       s.worker_id, w.name AS worker_name, w.expires_at > clock_timestamp() AS worker_live,
       w.expires_at AS lease_until, s.fraction, s.message,
       (SELECT count(*) FROM workers
        WHERE s.preset = ANY (presets) AND expires_at > clock_timestamp()) AS workers,
       CASE WHEN s.outbox_status = 'ready' THEN (
           SELECT count(*) FROM (
               SELECT FROM outbox o
               WHERE o.status = 'ready' AND o.preset = s.preset
                 AND (o.priority, o.position) < (s.priority, mine.position)
               LIMIT %(counted)s + 1) ahead) END AS ahead
FROM job_status s
LEFT JOIN outbox mine ON mine.job_id = s.job_id
LEFT JOIN workers w ON w.id = s.worker_id
WHERE s.job_id = %(id)s AND (%(owner)s::text IS NULL OR s.user_id = %(owner)s)
"""


@timed("explain")
async def explain(
    conn: AsyncConnection[Any], registry: Mapping[str, Pipeline], job_id: UUID, owner: str | None
) -> Explanation:
    """Explain one job; `owner` None is an operator. Raises JobNotFound."""
    async with conn.cursor(row_factory=class_row(Sight)) as cursor:
        await cursor.execute(SIGHT, {"id": job_id, "owner": owner, "counted": COUNTED})
        sight = await cursor.fetchone()
    if sight is None:
        raise JobNotFound(job_id)
    return told(sight, registry.get(sight.preset))


def told(sight: Sight, pipeline: Pipeline | None) -> Explanation:
    """The facts of a sight, the most telling one first."""
    facts = tuple(_facts(sight, pipeline))
    waits = sight.outbox_status == "waiting" and sight.due_seconds > 0
    return Explanation(sight.state, facts[0].detail, facts, round(sight.due_seconds, 3) if waits else None)


def _facts(sight: Sight, pipeline: Pipeline | None) -> Iterator[Fact]:
    match sight.outbox_status:
        case None:
            yield _ended(sight)
        case "leased":
            yield from _running(sight)
        case _:
            yield from _pending(sight)
    if pipeline is None:
        yield Fact("preset_unknown", f"no pipeline for the preset {sight.preset} is known here")
    if sight.error:
        said = {name: sight.error.get(name, "?") for name in ("attempt", "type", "message")}
        yield Fact("last_error", "attempt {attempt} ended in {type}: {message}".format_map(said))
    if sight.attempt:
        allowed = sight.max_attempts or (pipeline.max_attempts if pipeline else None)
        yield Fact(
            "budget",
            f"{sight.attempt} attempts were started; spent since the last redrive: {sight.errors} of "
            f"{allowed or 'an unknown number of'} errors, {sight.crashes} of {MAX_CRASHES} crashes",
        )


def _ended(sight: Sight) -> Fact:
    what = sight.state.lower()
    why = f" ({sight.reason})" if sight.reason not in (None, what) else ""
    return Fact(what, f"the job has been {what} since {_at(sight.completed_at)}{why}")


def _running(sight: Sight) -> Iterator[Fact]:
    holder = f"worker {sight.worker_id}"
    if sight.worker_live:
        holder += f" ({sight.worker_name})"
        yield Fact("running", f"attempt {sight.attempt} is leased by {holder} until {_at(sight.lease_until)}")
    else:
        yield Fact(
            "worker_lost",
            f"attempt {sight.attempt} is leased by {holder}, which is gone: maintenance will take the job back",
        )
    if sight.cancel_requested:
        yield Fact("cancel_requested", "the attempt has been asked to stop")
    if sight.fraction is not None:
        yield Fact("progress", f"{sight.fraction:.0%} {sight.message or ''}".rstrip())


def _pending(sight: Sight) -> Iterator[Fact]:
    no_worker = Fact("no_worker", f"no live worker runs the preset {sight.preset}")
    if sight.outbox_status == "waiting":
        why = f" ({sight.reason})" if sight.reason != "enqueued" else ""
        if sight.due_seconds > 0:
            yield Fact("due_later", f"the job is due at {_at(sight.run_at)}{why}")
        else:
            yield Fact("due", f"the job was due at {_at(sight.run_at)}{why}: maintenance will make it ready")
    elif not sight.workers:
        yield no_worker
    if sight.outbox_status == "published":
        yield Fact("published", f"its wake-up was published at {_at(sight.published_at)}")
    if sight.ahead is not None:
        yield _queued(sight.ahead, sight.preset)
    if sight.outbox_status == "waiting" and not sight.workers:
        yield no_worker


def _queued(ahead: int, preset: str) -> Fact:
    if not ahead:
        return Fact("next", f"the job is ready, and the next of the preset {preset}")
    number = f"more than {COUNTED}" if ahead > COUNTED else str(ahead)
    return Fact("queued", f"the job is ready, behind {number} of the preset {preset}")


def _at(moment: datetime | None) -> str:
    return moment.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z") if moment else "?"
