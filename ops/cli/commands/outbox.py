"""`outrider outbox`: the unfinished jobs, the unpublished events and the relays' reports; and what to do with events
that cannot be published."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Final

import typer

from ops.cli.output import AsJson, as_json, cell, complain, echo, span, table

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from engine.queries.held_events import Quarantined, SetBack
    from engine.queries.queue_stats import EventCount, JobCount
    from engine.tables.relay_status import ReportedStatus
    from ops.cli.context import Conn

SHOWN: Final = 20
"""How many events of a kind are listed. The table of topics counts all of them."""

app = typer.Typer(help="Show the jobs and events that wait.", no_args_is_help=True)

Events = Annotated[
    list[int],
    typer.Argument(
        min=1, max=2**63 - 1, metavar="EVENT...", help="Numbers of events, as `status` shows them."
    ),
]
Reason = Annotated[str, typer.Option(help="Why, for the record.")]
Actor = Annotated[
    str | None, typer.Option("--as", help="Who acts, for the record. The user of this host if not given.")
]


@app.callback()
def outbox() -> None:
    """Show the jobs and events that wait."""


@app.command()
def status(json: AsJson = False) -> None:
    """Count the unfinished jobs by preset and status, and the events that wait to be published.

    Overdue jobs are marked. Also show the relays' reports on topics and maintenance, the events that the broker
    refused for good, with the reason, the latest first, and those that alone could not be published and wait for
    another try.
    """
    from engine.queries.held_events import quarantined, set_back
    from engine.queries.queue_stats import event_counts, job_counts
    from engine.settings import load
    from engine.tables.relay_status import reported
    from ops.cli.context import ask

    async def counted(
        conn: Conn,
    ) -> tuple[list[JobCount], list[EventCount], list[ReportedStatus], list[Quarantined], list[SetBack]]:
        statuses, refused, slow = (
            await reported(conn),
            await quarantined(conn, SHOWN),
            await set_back(conn, SHOWN),
        )
        return await job_counts(conn), await event_counts(conn), statuses, refused, slow

    jobs, events, statuses, refused, slow = ask(load(), counted)
    if json:
        as_json(
            {
                "jobs": [asdict(each) for each in jobs],
                "events": [asdict(each) for each in events],
                "relays": [asdict(each) for each in statuses],
                "quarantined": [asdict(each) for each in refused],
                "set_back": [asdict(each) for each in slow],
            }
        )
        return
    _print_counts(jobs, events)
    echo("")
    _print_relays(statuses)
    _print_held(refused, slow)


@app.command()
def discard(events: Events, reason: Reason, actor: Actor = None, json: AsJson = False) -> None:
    """Delete events that cannot be published: quarantined ones, or such as failed alone.

    The results of their jobs stay. Who did that, and why, is kept in the table operator_actions.
    """
    from engine.tables import held_events

    _act(events, reason, actor, json, "discarded", held_events.discard)


@app.command()
def republish(events: Events, reason: Reason, actor: Actor = None, json: AsJson = False) -> None:
    """Let events that were quarantined, or failed alone, be published again, as soon as a relay finds them.

    Who did that, and why, is kept in the table operator_actions.
    """
    from engine.tables import held_events

    _act(events, reason, actor, json, "republished", held_events.republish)


def _act(
    events: Sequence[int],
    reason: str,
    actor: str | None,
    json: bool,
    verb: str,
    act: Callable[..., Awaitable[list[int]]],
) -> None:
    """Act on all events that are held. The others are named, and the command has failed."""
    from engine.settings import load
    from ops.cli.context import ask, recorded

    by, why = recorded(actor or _user(), "--as"), recorded(reason, "--reason")

    async def acted(conn: Conn) -> list[int]:
        return await act(conn, events, actor=by, reason=why)

    done = ask(load(), acted)
    left = [each for each in dict.fromkeys(events) if each not in done]
    if json:
        as_json({verb: done, "left": left})
    else:
        echo(f"{len(done)} {'was' if len(done) == 1 else 'were'} {verb}")
    for each in left:
        complain(f"event {each} is neither quarantined nor set back")
    if left:
        raise typer.Exit(1)


def _user() -> str:
    import getpass
    import socket

    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = "unknown"  # a container's user may have no name
    return f"{user}@{socket.gethostname()}"


def _print_held(refused: Sequence[Quarantined], slow: Sequence[SetBack]) -> None:
    for column, rows in (
        ("quarantined", [(each, each.quarantined_at) for each in refused]),
        ("failures", [(each, each.failures) for each in slow]),
    ):
        if rows:
            echo("")
            table(
                ["event", "topic", "job", "bytes", "age", column, "reason"],
                [
                    (each.id, each.topic, each.job_id, each.bytes, span(each.age_seconds), value, each.reason)
                    for each, value in rows
                ],
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
        ["topic", "events", "set back", "quarantined", "oldest"],
        [(each.topic, each.events, each.set_back, each.quarantined, each.oldest) for each in events],
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
