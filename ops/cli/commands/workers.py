"""`outrider workers`: the worker processes that are registered in the database."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from ops.cli.output import AsJson, as_json, table

if TYPE_CHECKING:
    from engine.queries.workers import RegisteredWorker


def workers(json: AsJson = False) -> None:
    """List the workers, wherever they run: slots, presets, last heartbeat, and attempts ended a second.

    The name is host and process. A worker whose lease has run out is dead until it is heard of again; a relay takes
    its jobs back.
    """
    from engine.queries.workers import registered
    from engine.settings import load
    from ops.cli.context import ask

    found = ask(load(), registered)
    if json:
        as_json([asdict(each) for each in found])
        return
    table(
        ["worker", "name", "state", "busy", "presets", "last beat", "per second"],
        [
            (
                each.id,
                each.name,
                "live" if each.live else "dead",
                f"{each.busy} of {each.slots}",
                ", ".join(each.presets),
                each.beat_at,
                _throughput(each),
            )
            for each in found
        ],
        empty="no worker is registered",
    )


def _throughput(worker: RegisteredWorker) -> str:
    return (
        ", ".join(f"{preset} {rate:.1f}" for preset, rate in sorted((worker.throughput or {}).items())) or "-"
    )
