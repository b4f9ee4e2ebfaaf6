"""`outrider outbox`: what the engine still owes."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

import typer

from ops.cli.output import AsJson, as_json, echo, table

if TYPE_CHECKING:
    from engine.backlog import Queue, Topic

app = typer.Typer(help="Look at what is waiting: jobs and events.", no_args_is_help=True)


@app.callback()
def outbox() -> None:
    """Look at what is waiting: jobs and events."""


@app.command()
def status(json: AsJson = False) -> None:
    """Count the unfinished jobs by preset and status, and the events that wait to be published."""
    from engine import backlog
    from engine.settings import load
    from ops.cli.context import Conn, ask

    async def counted(conn: Conn) -> tuple[list[Queue], list[Topic]]:
        return await backlog.queues(conn), await backlog.topics(conn)

    queues, topics = ask(load(), counted)
    if json:
        as_json({"jobs": [asdict(each) for each in queues], "events": [asdict(each) for each in topics]})
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
