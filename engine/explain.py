"""Why a job is where it is, told from its row, the workers and the audit trail."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, NamedTuple
from uuid import UUID

from psycopg import AsyncConnection

from engine.errors import JobNotFound
from engine.model import MAX_CRASHES, JobState
from engine.pipeline import Pipeline
from engine.sight import ERRORS_SHOWN, Sight, see


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


async def explain(
    conn: AsyncConnection[Any], registry: Mapping[str, Pipeline], job_id: UUID, owner: str | None
) -> Explanation:
    """Explain one job; `owner` None is an operator. Raises JobNotFound."""
    sight = await see(conn, job_id, owner)
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
    if sight.ahead is None or sight.uncounted or not sight.per_second:
        return None
    return round((sight.ahead + 1) / sight.per_second, 3)


def _facts(sight: Sight, pipeline: Pipeline | None) -> Iterator[Fact]:
    match sight.outbox_status:
        case None:
            yield _ended(sight)
        case "leased":
            yield from _running(sight, pipeline)
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


def _running(sight: Sight, pipeline: Pipeline | None) -> Iterator[Fact]:
    name = f" ({sight.worker_name})" if sight.worker_name else ""
    leased = f"attempt {sight.attempt} is leased by worker {sight.worker_id}{name}"
    if sight.worker_live:
        allowed = sight.timeout_seconds or (pipeline.timeout if pipeline else None)
        of = f" of {allowed:g} s" if allowed else ""
        ran = f"and has been running since {_at(sight.claimed_at)}, for {sight.running_seconds:.0f} s{of}"
        yield Fact("running", f"{leased} until {_at(sight.lease_until)}, {ran}")
    else:
        yield from _kept(sight, Fact("worker_lost", f"{leased}, which is gone"), "take the job back")
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
            due = Fact("due", f"the job was due at {_at(sight.run_at)}{why}")
            yield from _kept(sight, due, "make it ready")
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


def _kept(sight: Sight, fact: Fact, promise: str) -> Iterator[Fact]:
    """A fact that maintenance will change, and before it why it will not."""
    if not sight.relays_live:
        since = f" since {_at(sight.relays_heard_at)}" if sight.relays_heard_at else ""
        why = f"no relay has been heard of{since}: nothing is promoted or taken back until one runs"
        yield Fact("no_maintenance", why)
    elif sight.upkeep_state == "failing":
        why = f"the relays' maintenance has been failing since {_at(sight.upkeep_since)}"
        yield Fact(
            "maintenance_failing", f"{why}: jobs may be neither promoted nor taken back until that is mended"
        )
    else:
        fact = Fact(fact.code, f"{fact.detail}: maintenance will {promise}")
    yield fact


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
    whose = f"of the preset {sight.preset}"
    if sight.uncounted:
        # Of published jobs the first so many are looked at, whichever preset they have.
        whose = "that were published before it" if sight.outbox_status == "published" else whose
    number = f"more than {ahead - 1}" if sight.uncounted else str(ahead)
    return Fact("queued", f"the job is {sight.outbox_status}, behind {number} {whose}{pace}")


def _at(moment: datetime | None) -> str:
    return moment.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z") if moment else "?"
