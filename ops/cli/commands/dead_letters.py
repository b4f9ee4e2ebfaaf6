"""`outrider dead-letters`: lists the jobs that failed for good, and redrives them."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from ops.cli.output import AsJson, as_json, complain, echo, table

if TYPE_CHECKING:
    from engine.queries.dead_letters import DeadLetter
    from ops.cli.context import Conn

app = typer.Typer(help="List the jobs that failed for good, and redrive them.", no_args_is_help=True)

BATCH = 500

Preset = Annotated[str | None, typer.Option(help="Only jobs of this preset.")]
Fingerprint = Annotated[
    str | None, typer.Option(help="Only failures of this fingerprint, as `list` shows it.")
]


@app.command("list")
def list_(
    preset: Preset = None,
    fingerprint: Fingerprint = None,
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="List at most this many.")] = 50,
    json: AsJson = False,
) -> None:
    """List dead letters, the oldest job first."""
    from engine.queries import dead_letters
    from engine.settings import load
    from ops.cli.context import ask

    found = ask(
        load(), lambda conn: dead_letters.page(conn, preset=preset, fingerprint=fingerprint, limit=limit)
    )
    if json:
        as_json([asdict(each) for each in found])
        return
    table(
        ["job", "owner", "preset", "failed at", "attempt", "fingerprint", "error"],
        [(d.job_id, d.user_id, d.preset, d.failed_at, d.attempt, d.fingerprint, _error(d)) for d in found],
        empty="no dead letters",
    )


@app.command()
def redrive(
    preset: Preset = None,
    fingerprint: Fingerprint = None,
    limit: Annotated[
        int, typer.Option(min=1, help="Redrive at most this many, the oldest jobs first.")
    ] = 1000,
    rate: Annotated[
        float, typer.Option(min=0, help="Redrive at most this many a second; 0 means no limit.")
    ] = 0,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would be redriven. Change nothing.")
    ] = False,
    json: AsJson = False,
) -> None:
    """Redrive dead letters: the jobs run again with new budgets. The old results go to the audit trail."""
    from engine.settings import load
    from ops.cli.context import ask

    async def release(conn: Conn) -> list[str]:
        found = _found(conn, preset, fingerprint, limit)
        return [str(each.job_id) async for each in (found if dry_run else _redriven(conn, found, rate))]

    ids = ask(load(), release)
    if json:
        as_json({"dry_run": dry_run, "redriven": len(ids), "job_ids": ids})
    else:
        echo(f"{len(ids)} {'would be' if dry_run else 'were'} redriven")
    if len(ids) == limit:
        complain(f"more may be left: --limit is {limit}")


async def _found(
    conn: Conn, preset: str | None, fingerprint: str | None, limit: int
) -> AsyncIterator[DeadLetter]:
    """Yield dead letters page by page above the last id. A job that fails again meanwhile is not found twice."""
    from engine.queries import dead_letters

    after = dead_letters.FIRST
    while limit > 0:
        page = await dead_letters.page(
            conn, preset=preset, fingerprint=fingerprint, after=after, limit=min(limit, BATCH)
        )
        for each in page:
            yield each
        if len(page) < min(limit, BATCH):
            return
        limit -= len(page)
        after = page[-1].job_id


async def _redriven(conn: Conn, found: AsyncIterator[DeadLetter], rate: float) -> AsyncIterator[DeadLetter]:
    """Redrive jobs one by one, evenly spaced, and yield them. A job that somebody else redrove is skipped."""
    from engine import moves
    from engine.errors import JobNotFound, StateConflict

    loop = asyncio.get_running_loop()
    start, done = loop.time(), 0
    async for each in found:
        if rate:
            await asyncio.sleep(max(0.0, start + done / rate - loop.time()))
        try:
            await moves.redrive(conn, each.job_id, None)
        except (JobNotFound, StateConflict) as error:
            complain(f"{each.job_id} is skipped: {error}")
            continue
        done += 1
        if done % BATCH == 0 and sys.stderr.isatty():
            complain(f"{done} redriven")
        yield each


def _error(letter: DeadLetter) -> str | None:
    return f"{letter.error.get('type')}: {letter.error.get('message')}"[:80] if letter.error else None
