"""`outrider outbox`: the unfinished jobs, the unpublished events and the relays' reports."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Final

import typer

from ops.cli.output import AsJson, as_json, cell, echo, span, table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from engine.queries.queue_stats import EventCount, JobCount, Quarantined
    from engine.tables.relay_status import ReportedStatus

SHOWN: Final = 20
"""How many quarantined events are listed. The table of topics counts all of them."""

app = typer.Typer(help="Show the jobs and events that wait.", no_args_is_help=True)


@app.callback()
def outbox() -> None:
    """Show the jobs and events that wait."""


@app.command()
def status(json: AsJson = False) -> None:
    """Count the unfinished jobs by preset and status, and the events that wait to be published.

    Overdue jobs are marked. Also show the relays' reports on topics and maintenance, and the events that the broker
    refused for good, with the reason, the latest first.
    """
    from engine.queries.queue_stats import event_counts, job_counts, quarantined
    from engine.settings import load
    from engine.tables.relay_status import reported
    from ops.cli.context import Conn, ask

    async def counted(
        conn: Conn,
    ) -> tuple[list[JobCount], list[EventCount], list[ReportedStatus], list[Quarantined]]:
        statuses, refused = await reported(conn), await quarantined(conn, SHOWN)
        return await job_counts(conn), await event_counts(conn), statuses, refused

    jobs, events, statuses, refused = ask(load(), counted)
    if json:
        as_json(
            {
                "jobs": [asdict(each) for each in jobs],
                "events": [asdict(each) for each in events],
                "relays": [asdict(each) for each in statuses],
                "quarantined": [asdict(each) for each in refused],
            }
        )
        return
    _print_counts(jobs, events)
    echo("")
    _print_relays(statuses)
    if refused:
        echo("")
        table(
            ["event", "topic", "job", "quarantined", "reason"],
            [(each.id, each.topic, each.job_id, each.quarantined_at, each.reason) for each in refused],
            empty="",
        )


def _print_counts(jobs: Sequence[JobCount], events: Sequence[EventCount]) -> None:
    table(
        ["preset", "status", "jobs", "oldest", "age"],
        [(each.preset, each.status, each.jobs, each.oldest, _age(each)) for each in jobs],
        empty="no unfinished jobs",
    )
    echo("")
    table(
        ["topic", "events", "quarantined", "oldest"],
        [(each.topic, each.events, each.quarantined, each.oldest) for each in events],
        empty="no events to publish",
    )


def _print_relays(statuses: Sequence[ReportedStatus]) -> None:
    heard = max((each.heard_at for each in statuses), default=None)
    table(
        ["relay", "topic", "state", "since", "why"],
        [(each.relay, each.topic, _state(each), each.since, each.detail) for each in statuses if each.live],
        empty=f"no relay has reported{f' since {cell(heard)}' if heard else ''}",
    )


def _age(count: JobCount) -> str:
    if count.overdue:
        return f"{count.overdue} overdue, by up to {span(count.age_seconds)}"
    return span(count.age_seconds) if count.age_seconds >= 0 else f"due in {span(-count.age_seconds)}"


def _state(fact: ReportedStatus) -> str:
    return "breaker open" if fact.state in ("passing", "misconfigured") else fact.state
