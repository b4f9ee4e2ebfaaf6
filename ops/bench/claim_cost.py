"""The cost of a claim beside many other jobs: ready, scheduled and finished ones."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, LiteralString, NamedTuple

import psycopg
from psycopg import sql

from engine.model import Reason
from engine.moves.claim import CLAIM
from engine.storage.connections import connect
from engine.storage.literals import array
from engine.tables import workers
from engine.tables.outbox import PRIORITIES
from ops.bench.figures import Row, number, ratio
from ops.bench.plan import Plan
from ops.bench.server import fill, settle
from ops.harness.postgres import Databases

TITLE = "Claim, 500 rows at a time: cost of one row"
PRESET: Final = "noop"
BATCH: Final = 500
TRIES: Final = 5
MOST: Final = 1.3

LATER: Final = "2100-01-01T00:00Z"

# Finishes all jobs: each gets a result and two more audit rows.
FINISH_ALL: LiteralString = """
WITH done AS (
    DELETE FROM outbox RETURNING job_id, user_id, run_at
), result AS (
    INSERT INTO job_results (job_id, user_id, state, output, attempt, errors, crashes, version, run_at, started_at)
    SELECT job_id, user_id, 'COMPLETED', 'null', 1, 0, 0, 2, run_at, now() FROM done
)
INSERT INTO job_state_records (job_id, seq, from_state, to_state, attempt, reason)
SELECT job_id, 1, 'PENDING'::job_state, 'PROCESSING'::job_state, 1, 'claimed' FROM done
UNION ALL
SELECT job_id, 2, 'PROCESSING', 'COMPLETED', 1, 'completed' FROM done
"""

Connection = psycopg.Connection[tuple[Any, ...]]


class Cost(NamedTuple):
    """The cost of one claimed row, over several claims: microseconds, and shared buffers hit or read."""

    microseconds: Sequence[float]
    buffers: Sequence[float]


def run(server: Databases, plan: Plan) -> Iterator[Row]:
    small, middle, large = plan.small_rows, plan.middle_rows, plan.large_rows
    base, half_way = f"{number(small)} ready", f"{number(middle)} ready"
    with server.migrated() as url:
        costs = {
            base: _cost(url, lambda conn: fill(conn, PRESET, small)),
            half_way: _cost(url, lambda conn: fill(conn, PRESET, middle - small)),
            f"{number(large)} ready": _cost(url, lambda conn: fill(conn, PRESET, large - middle)),
            f"{base}, {number(large)} finished": _cost(url, lambda conn: _finished(conn, small)),
        }
    with server.migrated() as url:
        costs[f"{base}, {number(large)} scheduled"] = _cost(url, lambda conn: _scheduled(conn, small, large))
    times = {name: Row(f"{name}: time", cost.microseconds, "µs") for name, cost in costs.items()}
    buffers = {name: Row(f"{name}: shared buffers", cost.buffers, "") for name, cost in costs.items()}
    for name in costs:
        yield times[name]
        yield buffers[name]
        if name != base:
            goal = None if name == half_way else MOST
            yield ratio(f"{name}: time / {base}", times[name], times[base])
            yield ratio(f"{name}: buffers / {base}", buffers[name], buffers[base], at_most=goal)


def _finished(conn: Connection, ready: int) -> None:
    conn.execute(FINISH_ALL)
    fill(conn, PRESET, ready)


def _scheduled(conn: Connection, ready: int, scheduled: int) -> None:
    fill(conn, PRESET, scheduled, LATER)
    fill(conn, PRESET, ready)


def _cost(url: str, change: Callable[[Connection], None]) -> Cost:
    with psycopg.connect(url, autocommit=True) as conn:
        change(conn)
        settle(conn)
        worker_id = workers.register(conn, workers.Registration("bench", [PRESET], BATCH), 3600)
    return asyncio.run(_claimed(url, worker_id))


async def _claimed(url: str, worker_id: int) -> Cost:
    """Each claim is rolled back, so that the next one finds the same queue. The first one warms the caches."""
    microseconds: list[float] = []
    buffers: list[float] = []
    prepare, explain = _prepared(), _explained(worker_id)
    async with await connect(url, name="bench", pinned=True) as conn:
        for _ in range(1 + TRIES):
            async with conn.transaction(force_rollback=True):
                # Prepared each time, because psycopg deallocates everything at a rollback.
                await conn.execute(prepare)
                row = await (await conn.execute(explain)).fetchone()
                assert row is not None
                [explained] = row[0]
                microseconds.append(1000 * explained["Execution Time"] / BATCH)
                buffers.append(_buffers(explained["Plan"]) / BATCH)
    return Cost(microseconds[1:], buffers[1:])


def _prepared() -> sql.SQL:
    """The claim as psycopg prepares it: a number for each parameter's name."""
    names = _names()
    return sql.SQL(
        "PREPARE bench AS " + re.sub(r"%\((\w+)\)s", lambda found: f"${names.index(found[1]) + 1}", CLAIM)
    )


def _explained(worker_id: int) -> sql.Composed:
    values: dict[str, object] = {
        "worker_id": worker_id,
        "presets": array(PRESET for _ in PRIORITIES),
        "priorities": array(PRIORITIES),
        "lows": array(0 for _ in PRIORITIES),
        "age": 0.0,
        "limit": BATCH,
        "metadata": "{}",
        "reason": Reason.CLAIMED,
    }
    arguments = sql.SQL(", ").join(sql.Literal(values[name]) for name in _names())
    return sql.SQL("EXPLAIN (ANALYZE, BUFFERS, TIMING OFF, FORMAT JSON) EXECUTE bench ({})").format(arguments)


def _names() -> list[str]:
    return list(dict.fromkeys(re.findall(r"%\((\w+)\)s", CLAIM)))


def _buffers(plan: dict[str, Any]) -> int:
    return int(plan["Shared Hit Blocks"]) + int(plan["Shared Read Blocks"])
