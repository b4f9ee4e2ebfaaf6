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
from engine.relays import SILENT_SECONDS

COUNTED: Final = 10_000
"""How many jobs ahead are counted; beyond it the answer is "more than"."""
ERRORS_SHOWN: Final = 3


class Fact(NamedTuple):
    """`code` is for programs and never changes its meaning, `detail` is for people."""

    code: str
    detail: str


@dataclass(frozen=True, slots=True)
class Explanation:
    """`summary` is the most telling fact as a sentence.

    `estimate_seconds` is how long it will take until the job is due, or, if it is, until it starts: from the jobs
    ahead and the pace of the last half minute. None where there is nothing to tell it from.
    """

    status: JobState
    summary: str
    facts: tuple[Fact, ...]
    estimate_seconds: float | None


@dataclass(frozen=True, slots=True)
class Sight:
    """Everything the facts are drawn from. `ahead` is bounded; `worker_live` is of the lease's holder.

    `errors_said` are the latest, the last one first. `relay_…` is of the relay that fares best with the jobs' topic.
    """

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
    ready_at: datetime | None
    published_at: datetime | None
    completed_at: datetime | None
    errors_said: list[dict[str, Any]]
    reason: str | None
    worker_id: int | None
    worker_name: str | None
    worker_live: bool | None
    lease_until: datetime | None
    fraction: float | None
    message: str | None
    workers: int
    per_second: float
    ahead: int | None
    relay_state: str | None
    relay_since: datetime | None
    relay_said: str | None
    relay_heard_at: datetime | None
    relay_live: bool | None

    def __post_init__(self) -> None:
        object.__setattr__(self, "state", JobState(self.state))


# Jobs ahead are those that a worker with this preset alone would take first; other presets compete for its slots
# too, but in no fixed order. Published jobs are taken about in the order in which they were published.
SIGHT: LiteralString = """
SELECT s.state, s.outbox_status, s.preset, s.attempt, s.errors, s.crashes, s.max_attempts, s.cancel_requested,
       s.run_at, extract(epoch FROM s.run_at - clock_timestamp())::double precision AS due_seconds,
       s.ready_at, s.published_at, s.completed_at,
       array(SELECT a.metadata -> 'error' FROM job_state_records a
             WHERE a.job_id = s.job_id AND a.metadata ? 'error' AND s.state <> 'COMPLETED'
             ORDER BY a.seq DESC LIMIT %(errors)s) AS errors_said,
       (SELECT a.reason FROM job_state_records a WHERE a.job_id = s.job_id ORDER BY a.seq DESC LIMIT 1) AS reason,
       s.worker_id, w.name AS worker_name, w.expires_at > clock_timestamp() AS worker_live,
       w.expires_at AS lease_until, s.fraction, s.message, live.workers, live.per_second,
       CASE s.outbox_status
           WHEN 'ready' THEN (
               SELECT count(*) FROM (
                   SELECT FROM outbox o
                   WHERE o.status = 'ready' AND o.preset = s.preset
                     AND (o.priority, o.position) < (s.priority, mine.position)
                   LIMIT %(counted)s + 1) ahead)
           WHEN 'published' THEN (
               SELECT count(*) FILTER (WHERE ahead.preset = s.preset) FROM (
                   SELECT o.preset FROM outbox o
                   WHERE o.status = 'published' AND o.published_at < s.published_at
                   LIMIT %(counted)s + 1) ahead)
       END AS ahead,
       r.state AS relay_state, r.since AS relay_since, r.detail AS relay_said, r.updated_at AS relay_heard_at,
       r.live AS relay_live
FROM job_status s
LEFT JOIN outbox mine ON mine.job_id = s.job_id
LEFT JOIN workers w ON w.id = s.worker_id
CROSS JOIN LATERAL (
    SELECT count(*) AS workers, coalesce(sum((drained ->> s.preset)::double precision), 0) AS per_second
    FROM workers WHERE s.preset = ANY (presets) AND expires_at > clock_timestamp()
) live
LEFT JOIN LATERAL (
    SELECT state, since, detail, updated_at,
           updated_at > clock_timestamp() - %(silent)s * interval '1 second' AS live
    FROM relay_facts
    WHERE topic = 'jobs'
    ORDER BY live DESC, (state = 'publishing') DESC, updated_at DESC
    LIMIT 1
) r ON true
WHERE s.job_id = %(id)s AND (%(owner)s::text IS NULL OR s.user_id = %(owner)s)
"""


@timed("explain")
async def explain(
    conn: AsyncConnection[Any], registry: Mapping[str, Pipeline], job_id: UUID, owner: str | None
) -> Explanation:
    """Explain one job; `owner` None is an operator. Raises JobNotFound."""
    async with conn.cursor(row_factory=class_row(Sight)) as cursor:
        await cursor.execute(
            SIGHT,
            {
                "id": job_id,
                "owner": owner,
                "counted": COUNTED,
                "errors": ERRORS_SHOWN,
                "silent": SILENT_SECONDS,
            },
        )
        sight = await cursor.fetchone()
    if sight is None:
        raise JobNotFound(job_id)
    return told(sight, registry.get(sight.preset))


def told(sight: Sight, pipeline: Pipeline | None) -> Explanation:
    """The facts of a sight, the most telling one first."""
    facts = tuple(_facts(sight, pipeline))
    return Explanation(sight.state, facts[0].detail, facts, _estimate(sight))


def _estimate(sight: Sight) -> float | None:
    if sight.outbox_status == "waiting":
        return round(sight.due_seconds, 3) if sight.due_seconds > 0 else None
    if sight.ahead is None or sight.ahead > COUNTED or not sight.per_second:
        return None
    return round((sight.ahead + 1) / sight.per_second, 3)


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
    for code, error in zip(
        ("last_error", *["earlier_error"] * ERRORS_SHOWN), sight.errors_said, strict=False
    ):
        said = {name: error.get(name, "?") for name in ("attempt", "type", "message")}
        yield Fact(code, "attempt {attempt} ended in {type}: {message}".format_map(said))
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
    waiting = sight.outbox_status == "waiting"
    if waiting:
        why = f" ({sight.reason})" if sight.reason != "enqueued" else ""
        if sight.due_seconds > 0:
            yield Fact("due_later", f"the job is due at {_at(sight.run_at)}{why}")
        else:
            yield Fact("due", f"the job was due at {_at(sight.run_at)}{why}: maintenance will make it ready")
    if not sight.workers:
        yield no_worker
    if sight.outbox_status == "ready":
        yield from _unpublished(sight)
    if sight.outbox_status == "published":
        yield Fact(
            "published",
            f"its wake-up was published at {_at(sight.published_at)}; no worker has claimed the job yet",
        )
    if sight.ahead is not None:
        yield _queued(sight, sight.ahead)


def _unpublished(sight: Sight) -> Iterator[Fact]:
    """Why a ready job's wake-up has not left. Without relays that publish there is none to leave."""
    if sight.relay_state is None:
        return
    instead = "workers look for such jobs in the outbox themselves"
    if not sight.relay_live:
        yield Fact("no_relay", f"no relay has been heard of since {_at(sight.relay_heard_at)}; {instead}")
    elif sight.relay_state == "publishing":
        yield Fact(
            "unpublished", f"the job is ready since {_at(sight.ready_at)}, its wake-up still to be published"
        )
    else:
        mend = "until somebody mends that" if sight.relay_state == "misconfigured" else "until it can again"
        yield Fact(
            "breaker_open",
            f"nothing could be published since {_at(sight.relay_since)} ({sight.relay_said}); {mend}, {instead}",
        )


def _queued(sight: Sight, ahead: int) -> Fact:
    pace = f", at {sight.per_second:.3g} a second" if sight.per_second else ""
    if not ahead:
        return Fact(
            "next", f"the job is {sight.outbox_status}, and the next of the preset {sight.preset}{pace}"
        )
    number = f"more than {COUNTED}" if ahead > COUNTED else str(ahead)
    return Fact(
        "queued", f"the job is {sight.outbox_status}, behind {number} of the preset {sight.preset}{pace}"
    )


def _at(moment: datetime | None) -> str:
    return moment.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z") if moment else "?"
