"""`outrider jobs` and `explain`: reads and changes jobs of all owners directly in the database."""

from __future__ import annotations

import json as jsonlib
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any
from uuid import UUID

import typer

from ops.cli.output import AsJson, as_json, card, cell, echo, table

if TYPE_CHECKING:
    from engine.queries.audit import AuditRow
    from engine.queries.jobs import Holder, JobView

app = typer.Typer(help="Show, cancel and retry jobs of all owners.", no_args_is_help=True)

JobId = Annotated[UUID, typer.Argument(metavar="JOB", help="The job's id.")]


class Status(StrEnum):
    PENDING = "pending"
    PROCESSING = "processing"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"


@app.command("list")
def list_(
    owner: Annotated[str | None, typer.Option(help="Only jobs of this owner.")] = None,
    status: Annotated[Status | None, typer.Option(help="Only jobs of this status.")] = None,
    preset: Annotated[str | None, typer.Option(help="Only jobs of this preset.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="List at most this many.")] = 20,
    json: AsJson = False,
) -> None:
    """List jobs, the newest first."""
    from engine.model import JobState
    from engine.queries import jobs
    from engine.settings import load
    from ops.cli.context import Conn, ask

    async def found(conn: Conn) -> list[JobView]:
        state = JobState(status.upper()) if status else None
        return await jobs.page(conn, owner=owner, state=state, preset=preset, limit=limit)

    views = ask(load(), found)
    if json:
        as_json([_listed(view) for view in views])
        return
    table(
        ["job", "owner", "preset", "status", "attempt", "created at", "updated at", "error"],
        [
            (v.job_id, v.user_id, v.preset, v.state.lower(), v.attempt, v.created_at, v.updated_at, _error(v))
            for v in views
        ],
        empty="no jobs",
    )


@app.command()
def show(
    job: JobId,
    history: Annotated[
        int, typer.Option(min=1, max=10_000, help="Show at most this many transitions, the latest.")
    ] = 100,
    json: AsJson = False,
) -> None:
    """Show a job: its request, status, worker, result and latest history."""
    from engine.errors import JobNotFound
    from engine.queries import audit, jobs
    from engine.settings import load
    from ops.cli.context import Conn, ask

    async def found(conn: Conn) -> tuple[JobView, Holder | None, list[AuditRow]]:
        [view] = await jobs.read(conn, [(job, None)])
        if view is None:
            raise JobNotFound(job)
        return view, await jobs.holder(conn, job), await audit.latest(conn, job, history)

    view, holder, steps = ask(load(), found)
    worker = {"worker": holder and holder._asdict()}
    shown = (
        _listed(view)
        | worker
        | {"content": view.content, "result": view.output and jsonlib.loads(view.output)}
    )
    earlier = steps[0].seq if steps else 0
    if json:
        as_json(shown | {"history": [_step(row) for row in steps], "earlier_transitions": earlier})
        return
    card(shown | {"worker": holder and _worker(holder)})
    echo("")
    table(
        ["seq", "at", "from", "to", "attempt", "reason"],
        [
            (row.seq, row.timestamp, _lower(row.from_state), _lower(row.to_state), row.attempt, row.reason)
            for row in steps
        ],
        empty="no history",
    )
    if earlier:
        echo(f"{earlier} earlier transitions are not shown; --history shows more")


@app.command()
def cancel(job: JobId, json: AsJson = False) -> None:
    """Cancel a job. A running job is asked to stop. Exit code 1 if the job has completed or failed."""
    from engine import moves
    from engine.settings import load
    from ops.cli.context import ask

    settings = load()
    written: list[str] = []
    state = ask(
        settings,
        lambda conn: moves.cancel(
            conn, job, None, publish_results=settings.publish_results, on_result=written.append
        ),
    )
    if json:
        as_json({"job_id": job, "status": state.lower()})
    elif not state.terminal:
        echo("the running attempt has been asked to stop")
    else:
        echo("cancelled" if written else "was cancelled before")


@app.command()
def retry(job: JobId, json: AsJson = False) -> None:
    """Run a failed or cancelled job again with a new budget. Exit code 1 in any other state."""
    from engine import moves
    from engine.settings import load
    from ops.cli.context import ask

    ask(load(), lambda conn: moves.redrive(conn, job, None))
    if json:
        as_json({"job_id": job, "status": "pending"})
    else:
        echo("queued again")


def explain(job: JobId, json: AsJson = False) -> None:
    """Explain the state of a job: due later, behind other jobs, without a worker, running or ended."""
    from engine.pipeline import load_pipelines
    from engine.queries.explain import explain as explained
    from engine.settings import load
    from ops.cli.context import ask

    settings = load()
    registry = load_pipelines(settings.pipelines)
    said = ask(settings, lambda conn: explained(conn, registry, job, None))
    if json:
        as_json(
            {
                "status": said.status.lower(),
                "summary": said.summary,
                "facts": [fact._asdict() for fact in said.facts],
                "estimate_seconds": said.estimate_seconds,
            }
        )
        return
    echo(f"{said.status.lower()}: {cell(said.summary)}")
    for fact in said.facts[1:]:
        echo(f"  {cell(fact.detail)}")


def _listed(view: JobView) -> dict[str, Any]:
    """The job as the API shows it, without content and result."""
    return {
        "job_id": view.job_id,
        "owner": view.user_id,
        "status": view.state.lower(),
        "preset": view.preset,
        "metadata": jsonlib.loads(view.metadata),
        "priority": view.priority,
        "attempt": view.attempt,
        "max_attempts": view.max_attempts,
        "timeout_seconds": view.timeout_seconds,
        "created_at": view.created_at,
        "updated_at": view.updated_at,
        "run_at": view.run_at,
        "started_at": view.started_at,
        "completed_at": view.completed_at,
        "progress": None if view.fraction is None else {"fraction": view.fraction, "message": view.message},
        "error": view.error,
    }


def _worker(holder: Holder) -> str:
    name = f"{holder.name} ({holder.id})" if holder.name else str(holder.id)
    return name if holder.live else f"{name}, which is gone"


def _step(row: AuditRow) -> dict[str, Any]:
    return {
        "seq": row.seq,
        "from_status": _lower(row.from_state),
        "to_status": _lower(row.to_state),
        "timestamp": row.timestamp,
        "attempt": row.attempt,
        "reason": row.reason,
        "metadata": row.metadata,
    }


def _lower(text: str | None) -> str | None:
    return text and text.lower()


def _error(view: JobView) -> str | None:
    return f"{view.error.get('type')}: {view.error.get('message')}"[:80] if view.error else None
