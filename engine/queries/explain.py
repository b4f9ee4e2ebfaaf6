"""Explains why a job is in its state, from its row, the workers, the relays and the audit trail."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, NamedTuple
from uuid import UUID

from psycopg import AsyncConnection

from engine.errors import JobNotFound
from engine.model import MAX_CRASHES, MAX_SUSPICION, UNREADABLE_SECONDS, JobState, Reason
from engine.pipeline import Pipeline
from engine.queries.explain_query import ERRORS_SHOWN, JobSnapshot, job_snapshot


class Fact(NamedTuple):
    """`code` is for programs and never changes its meaning. `detail` is for people."""

    code: str
    detail: str


@dataclass(frozen=True, slots=True)
class Explanation:
    """`summary` is the detail of the most important fact.

    `estimate_seconds` is the time until the job is due, or, for a due job, until the job starts. The start is estimated
    from the jobs ahead and the throughput of the last half minute. None if there are no figures to estimate from.
    """

    status: JobState
    summary: str
    facts: tuple[Fact, ...]
    estimate_seconds: float | None


async def explain(
    conn: AsyncConnection[Any], registry: Mapping[str, Pipeline], job_id: UUID, owner: str | None
) -> Explanation:
    """Explain one job. `owner` None stands for an operator. Raises JobNotFound.

    Only operators are shown the worker's host and process, and the broker's own words: both tell of the installation.
    """
    job = await job_snapshot(conn, job_id, owner)
    if job is None:
        raise JobNotFound(job_id)
    if owner is not None:
        job = replace(job, worker_name=None, relay_detail=None)
    return explanation_of(job, registry.get(job.preset))


def explanation_of(job: JobSnapshot, pipeline: Pipeline | None) -> Explanation:
    """The explanation of a job, its most important fact first."""
    facts = tuple(_facts(job, pipeline))
    return Explanation(job.state, facts[0].detail, facts, _estimate(job))


def _estimate(job: JobSnapshot) -> float | None:
    if job.outbox_status == "waiting":
        return round(job.due_seconds, 3) if job.due_seconds > 0 else None
    if job.ahead is None or job.uncounted or not job.per_second:
        return None
    return round((job.ahead + 1) / job.per_second, 3)


def _facts(job: JobSnapshot, pipeline: Pipeline | None) -> Iterator[Fact]:
    match job.outbox_status:
        case None:
            yield _ended(job)
        case "leased":
            yield from _running(job, pipeline)
        case _:
            yield from _pending(job)
    if pipeline is None:
        yield Fact("preset_unknown", f"this process has no pipeline for the preset {job.preset}")
    for code, error in zip(
        ("last_error", *["earlier_error"] * ERRORS_SHOWN), job.latest_errors, strict=False
    ):
        said = {name: error.get(name, "?") for name in ("attempt", "type", "message")}
        yield Fact(code, "attempt {attempt} ended in {type}: {message}".format_map(said))
    if job.attempt:
        allowed = job.max_attempts or (pipeline.max_attempts if pipeline else None)
        yield Fact(
            "budget",
            f"attempts started: {job.attempt}; counted since the last redrive: {job.errors} of "
            f"{allowed or 'an unknown number of'} errors, {job.crashes} of {MAX_CRASHES} crashes",
        )


def _ended(job: JobSnapshot) -> Fact:
    what = job.state.lower()
    why = f" ({job.reason})" if job.reason not in (None, what) else ""
    return Fact(what, f"the job ended as {what} at {_at(job.completed_at)}{why}")


def _running(job: JobSnapshot, pipeline: Pipeline | None) -> Iterator[Fact]:
    name = f" ({job.worker_name})" if job.worker_name else ""
    leased = f"attempt {job.attempt} is leased by worker {job.worker_id}{name}"
    if job.worker_live:
        allowed = job.timeout_seconds or (pipeline.timeout if pipeline else None)
        of = f" of {allowed:g} s" if allowed else ""
        ran = f"and has been running since {_at(job.claimed_at)}, for {job.running_seconds:.0f} s{of}"
        yield Fact("running", f"{leased} until {_at(job.lease_until)}, {ran}")
    else:
        yield from _kept(job, Fact("worker_lost", f"{leased}, which is gone"), "lapse the attempt")
    if job.cancel_requested:
        yield Fact("cancel_requested", "the attempt has been asked to stop")
    if job.fraction is not None:
        yield Fact("progress", f"{job.fraction:.0%} {job.message or ''}".rstrip())


def _pending(job: JobSnapshot) -> Iterator[Fact]:
    no_worker = Fact("no_worker", f"no live worker runs the preset {job.preset}")
    waiting = job.outbox_status == "waiting"
    if waiting:
        why = f" ({job.reason})" if job.reason != Reason.ENQUEUED else ""
        if job.due_seconds > 0:
            yield Fact("due_later", f"the job is due at {_at(job.run_at)}{why}")
        else:
            due = Fact("due", f"the job was due at {_at(job.run_at)}{why}")
            yield from _kept(job, due, "make the job ready")
    if job.reason == Reason.UNREADABLE:
        yield Fact(
            "unreadable",
            "the job's metadata did not fit the code of its last worker; the job waits for a worker with newer or "
            f"older code, and fails {UNREADABLE_SECONDS / 60:.0f} minutes after the first such attempt",
        )
    if not job.workers:
        yield no_worker
    if job.suspicion and not waiting:
        # Neither a message nor its place in the queue brings a suspect to a worker.
        yield _suspected(job)
        return
    if job.outbox_status == "ready":
        yield from _unpublished(job)
    if job.outbox_status == "published":
        yield Fact(
            "published",
            f"the wake-up was published at {_at(job.published_at)}; no worker has claimed the job yet",
        )
    if job.ahead is not None:
        yield _queued(job, job.ahead)


def _suspected(job: JobSnapshot) -> Fact:
    alone = job.suspicion >= MAX_SUSPICION
    how = "alone" if alone else "beside few others that are suspected too"
    lost = next((each for each in job.latest_errors if each.get("type") == "WorkerLost"), {})
    why = lost.get("message", "its worker was lost")
    return Fact("suspected", f"suspected: {why}; the job runs {how}, on a worker that runs nothing else")


def _kept(job: JobSnapshot, fact: Fact, promise: str) -> Iterator[Fact]:
    """A fact that maintenance will change, and before that fact the reason if maintenance cannot."""
    if not job.relays_live:
        since = f" since {_at(job.relays_heard_at)}" if job.relays_heard_at else ""
        why = f"no relay has reported{since}: due jobs are not promoted, and lost attempts do not lapse, until one runs"
        yield Fact("no_maintenance", why)
    elif job.maintenance_state == "failing":
        why = f"the relays' maintenance has been failing since {_at(job.maintenance_since)}"
        yield Fact(
            "maintenance_failing", f"{why}: due jobs and lost attempts may have to wait until that is fixed"
        )
    else:
        fact = Fact(fact.code, f"{fact.detail}: maintenance will {promise}")
    yield fact


def _unpublished(job: JobSnapshot) -> Iterator[Fact]:
    """Why the wake-up of a ready job is not published yet. Nothing is said if no relay publishes."""
    if job.relay_state is None:
        return
    instead = "workers claim such jobs from the outbox"
    if not job.relay_live:
        yield Fact("no_relay", f"no relay has reported since {_at(job.relay_heard_at)}; {instead}")
    elif job.relay_state == "publishing":
        yield Fact(
            "unpublished",
            f"the job has been ready since {_at(job.ready_at)}; its wake-up is not published yet",
        )
    else:
        fix = (
            "until an operator fixes that" if job.relay_state == "misconfigured" else "until publishing works"
        )
        why = f" ({job.relay_detail})" if job.relay_detail else ""
        yield Fact(
            "breaker_open",
            f"publishing has failed since {_at(job.relay_since)}{why}; {fix}, {instead}",
        )


def _queued(job: JobSnapshot, ahead: int) -> Fact:
    rate = f"; throughput: {job.per_second:.3g} per second" if job.per_second else ""
    if not ahead:
        return Fact(
            "next", f"the job is {job.outbox_status} and the next one of the preset {job.preset}{rate}"
        )
    ahead_of_it = f"jobs of the preset {job.preset} ahead"
    if job.uncounted:
        # Of published jobs the first COUNTED are looked at, whatever their preset.
        ahead_of_it = "jobs published earlier" if job.outbox_status == "published" else ahead_of_it
    number = f"more than {ahead - 1}" if job.uncounted else str(ahead)
    return Fact("queued", f"the job is {job.outbox_status}; {ahead_of_it}: {number}{rate}")


def _at(moment: datetime | None) -> str:
    return moment.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z") if moment else "?"
