"""`outrider outbox`: what the engine still owes."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Final

import typer

from ops.cli.output import AsJson, as_json, echo, table

if TYPE_CHECKING:
    from engine.backlog import Quarantined, Queue, Topic

SHOWN: Final = 20
"""Quarantined events; the table counts them all."""

app = typer.Typer(help="Look at what is waiting: jobs and events.", no_args_is_help=True)


@app.callback()
def outbox() -> None:
    """Look at what is waiting: jobs and events."""


@app.command()
def status(json: AsJson = False) -> None:
    """Count the unfinished jobs by preset and status, and the events that wait to be published.

    Events that the broker refused for good are shown with its reason, the latest first.
    """
    from engine import backlog
    from engine.settings import load
    from ops.cli.context import Conn, ask

    async def counted(conn: Conn) -> tuple[list[Queue], list[Topic], list[Quarantined]]:
        refused = await backlog.quarantined(conn, SHOWN)
        return await backlog.queues(conn), await backlog.topics(conn), refused

    queues, topics, refused = ask(load(), counted)
    if json:
        as_json(
            {
                "jobs": [asdict(each) for each in queues],
                "events": [asdict(each) for each in topics],
                "quarantined": [asdict(each) for each in refused],
            }
        )
        return
    table(
        ["preset", "status", "jobs", "oldest"],
        [(each.preset, each.status, each.jobs, each.oldest) for each in queues],
        empty="no unfinished jobs",
    )
    echo("")
    table(
        ["topic", "events", "quarantined", "oldest"],
        [(each.topic, each.events, each.quarantined, each.oldest) for each in topics],
        empty="no events to publish",
    )
    if refused:
        echo("")
        table(
            ["event", "topic", "job", "quarantined", "reason"],
            [(each.id, each.topic, each.job_id, each.quarantined_at, each.reason) for each in refused],
            empty="",
        )
