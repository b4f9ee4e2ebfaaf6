"""`outrider provision`: the topics and subscriptions of Pub/Sub mode."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import typer

from ops.cli.output import AsJson, as_json, echo

if TYPE_CHECKING:
    from engine.pubsub.client import Names
    from relay.provision.desired import Change

Tell = Callable[[str], None]


def provision(
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only show the changes that are needed.")
    ] = False,
    json: AsJson = False,
) -> None:
    """Create or fix topics and subscriptions in OUTRIDER_PUBSUB_PROJECT, and report each change.

    Exit code 1 if something has to be fixed by hand.
    """
    from engine.process.run import FAILED
    from engine.pubsub.client import names
    from engine.settings import load
    from relay.provision.desired import Step

    act = _examined if dry_run else _provisioned
    changes = asyncio.run(act(names(load()), _nothing if json else echo))
    if json:
        as_json({"changes": [_plain(change) for change in changes]})
    elif not changes:
        echo("nothing to change")
    if any(change.step is Step.BY_HAND for change in changes):
        raise typer.Exit(FAILED)


async def _provisioned(names: Names, tell: Tell) -> list[Change]:
    """Make the changes. Each change is reported as soon as it is made, because a later one may fail."""
    from relay.provision.apply import open_clients, provision

    changes = []
    async with open_clients() as clients:
        async for change in provision(clients, names):
            changes.append(change)
            tell(change.done)
    return changes


async def _examined(names: Names, tell: Tell) -> list[Change]:
    from relay.provision.apply import examine, open_clients

    async with open_clients() as clients:
        changes = await examine(clients, names)
    for change in changes:
        tell(str(change))
    return changes


def _nothing(_line: str) -> None:
    """Report nothing: with --json all changes are printed at the end."""


def _plain(change: Change) -> dict[str, str]:
    return {"step": change.step, "kind": change.kind, "name": change.name, "found": change.found}
