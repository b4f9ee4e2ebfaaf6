"""Commits an attempt with its effects on the child's own connection, behind the attempt's fence.

Only here does a child write to the database. A child that is killed meanwhile takes its transaction with it.
"""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import NamedTuple

from engine.model import Attempt, Completed
from engine.pipeline import Pipeline
from engine.storage.connections import Pool, open_pool
from engine.telemetry.spans import OFF, Span
from worker.children.frames import Commit
from worker.effects import EffectsCommit


class Committing(NamedTuple):
    """The part of an execution that a commit reads."""

    attempt: Attempt
    pipeline: Pipeline
    span: Span = OFF


class Committer:
    """Commits one attempt after the other on one connection, which lives as long as the child."""

    def __init__(self) -> None:
        # Kept open: the end of the child closes the connection.
        self._open = AsyncExitStack()
        self._pool: Pool | None = None

    async def open(self, url: str) -> None:
        """Raises DatabaseUnavailable."""
        pool = open_pool(url, name="effects", size=1, reset_on_return=True)
        self._pool = await self._open.enter_async_context(pool)

    async def commit(self, committing: Committing, outcome: Completed, message: Commit) -> None:
        """Raises what EffectsCommit.run raises."""
        assert self._pool is not None
        await EffectsCommit(
            self._pool,
            lambda: committing.attempt.worker_id,
            committing,
            outcome,
            message.metadata,
            publish_results=message.publish_results,
        ).run()
