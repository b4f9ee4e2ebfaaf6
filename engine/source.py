"""Where a consumer's attempts come from: in Postgres mode straight from the outbox."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Final, Protocol

from engine.db import HotConnection
from engine.metrics import CLAIM_SECONDS
from engine.model import Attempt
from engine.moves import Lane, claim

PRIORITIES: Final = (1, 2, 3, 4)
SWEEP_SECONDS: Final = 2.0
SWEEP_COST: Final = 20.0
"""An unbounded scan may take a twentieth of the time: behind a held snapshot one costs 0.15 s."""


class Source(Protocol):
    """Gives attempts to a consumer."""

    async def claim(self, worker_id: int, limit: int) -> list[Attempt]:
        """Up to `limit` attempts leased to the worker; empty when nothing is due. Raises DatabaseUnavailable."""

    async def aclose(self) -> None:
        """Give the connection back."""


class PostgresSource:
    """Claims from the outbox on a connection of its own, remembering per lane how far it has come.

    Rows below that mark (late commits, released jobs) are found by a sweep of the whole index: when a claim comes
    back empty, every 2 s while claims do not, and never for more than 1/20 of the time.
    """

    def __init__(self, url: str, presets: Sequence[str]) -> None:
        self._conn = HotConnection(url, name="claim")
        self._presets = list(presets)
        self._low: dict[tuple[str, int], int] = {}
        self._swept = float("-inf")
        self._cost = 0.0

    async def claim(self, worker_id: int, limit: int) -> list[Attempt]:
        self._presets.append(
            self._presets.pop(0)
        )  # in turn, so that no preset starves one of its own priority
        if self._idle_since_sweep() >= max(SWEEP_SECONDS, SWEEP_COST * self._cost):
            return await self._sweep(worker_id, limit)
        found = await self._scan(worker_id, limit, sweep=False)
        if not found and self._idle_since_sweep() >= SWEEP_COST * self._cost:
            return await self._sweep(worker_id, limit)
        return found

    async def aclose(self) -> None:
        await self._conn.aclose()

    def _idle_since_sweep(self) -> float:
        return time.monotonic() - self._swept

    async def _sweep(self, worker_id: int, limit: int) -> list[Attempt]:
        began = time.monotonic()
        found = await self._scan(worker_id, limit, sweep=True)
        self._swept = time.monotonic()
        self._cost = self._swept - began
        return found

    async def _scan(self, worker_id: int, limit: int, *, sweep: bool) -> list[Attempt]:
        lanes = [
            Lane(preset, priority, 0 if sweep else self._low.get((preset, priority), 0))
            for priority in PRIORITIES
            for preset in self._presets
        ]
        with CLAIM_SECONDS.labels("sweep" if sweep else "cursor").time():
            async with self._conn.use() as conn:
                found = await claim(conn, worker_id, lanes, limit)
        for attempt in found:
            lane = (attempt.job.preset, attempt.job.priority)
            self._low[lane] = max(self._low.get(lane, 0), attempt.position)
        return found
