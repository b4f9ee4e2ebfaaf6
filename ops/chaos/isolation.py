"""What attempts in processes cost their neighbours: `python -m ops.chaos.isolation [--times N] [kind …]`.

Each kind of guilty job runs N times beside N long jobs of each kind that do nothing wrong. No innocent attempt may be
lost or delayed, each guilty job ends by itself and in time, nothing of it is left, and the attempts that come next in
the same processes find nothing changed there. Prints a table.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final, LiteralString, NamedTuple
from uuid import UUID

from engine import moves
from engine.model import NewJob
from engine.moves import enqueue
from engine.storage.connections import Connection, connect
from ops.bench import processes
from ops.bench.server import bench_server
from ops.chaos.isolation_kinds import KINDS, MODULES, Kind
from ops.chaos.marked import Mark, children_of
from ops.waiting import eventually, until

INNOCENT: Final = ("innocent-task", "innocent-thread", "innocent-process")
LOOK: Final = "look"
"""The preset whose jobs return what is not as it was at the start of their process."""
AT_ONCE: Final = 4
DELAY_SECONDS: Final = 1.0
LEFT_SECONDS: Final = 5.0
END_SECONDS: Final = 240.0

ENDS: LiteralString = """
SELECT state::text, coalesce(error->>'type', ''), coalesce(error->>'message', ''),
       extract(epoch FROM finished_at - started_at)::float8
FROM job_results WHERE job_id = ANY (%s::uuid[])
"""
INNOCENT_ENDS: LiteralString = """
SELECT state::text, attempt, output::text FROM job_results WHERE job_id = ANY (%s::uuid[])
"""


class Round(NamedTuple):
    kind: Kind
    began: float
    ended: float
    longest: float
    wrong: list[str]


async def run(url: str, times: int, innocent: int, kinds: Sequence[Kind] = KINDS) -> list[str]:
    """Run the scenario on the database at `url` and return what is wrong."""
    mark = await asyncio.to_thread(Mark, url)
    slots = innocent * len(INNOCENT) + AT_ONCE
    with TemporaryDirectory(prefix="outrider-chaos-") as folder:
        settings = {"OUTRIDER_PIPELINES": MODULES, "log": Path(folder) / "log", **mark.environ}
        worker = processes.worker(mark.url, slots, **settings)
        child = await asyncio.to_thread(worker.__enter__)
        try:
            async with await connect(url, name="chaos") as conn:
                end = Path(folder) / "end"
                ids = [await _add(conn, preset, str(end)) for preset in INNOCENT for _ in range(innocent)]
                await until(lambda: _started(conn, ids), END_SECONDS)
                # The worker opens connections when it first needs them.
                await _looks(conn)
                rounds = [await _round(conn, mark, child.pid, kind, times) for kind in kinds]
                end.touch()
                wrong = await _verdict(conn, rounds, ids)
            child.send_signal(signal.SIGTERM)
            code = await asyncio.to_thread(child.wait, 60)
        finally:
            await asyncio.to_thread(worker.__exit__, None, None, None)
    if code:
        wrong.append(f"the worker ended with {code}")
    if not await asyncio.to_thread(
        eventually, lambda: not (mark.processes() or mark.connections()), LEFT_SECONDS
    ):
        wrong.append(f"left: processes {mark.processes()}, {mark.connections()} connections")
    return wrong


async def _add(conn: Connection, preset: str, content: str = "-") -> UUID:
    return (await enqueue(conn, NewJob(user_id="chaos", preset=preset, content=content))).id


async def _started(conn: Connection, ids: Sequence[UUID]) -> bool:
    cursor = await conn.execute(
        "SELECT count(*) FROM outbox WHERE status = 'leased' AND job_id = ANY (%s::uuid[])", [list(ids)]
    )
    row = await cursor.fetchone()
    return row is not None and row[0] == len(ids)


async def _round(conn: Connection, mark: Mark, worker: int, kind: Kind, times: int) -> Round:
    began, connected = time.time(), mark.connections()
    ids = [await _add(conn, kind.preset) for _ in range(times)]
    if kind.state == "CANCELLED":
        for job_id in ids:
            await until(partial(_started, conn, [job_id]), END_SECONDS)
            await moves.cancel(conn, job_id, None)

    wrong = []
    try:
        await until(partial(_ended, conn, ids), END_SECONDS)
    except TimeoutError:
        wrong.append("not all have ended")
    at = time.time()
    longest = 0.0
    for state, error, message, seconds in await (await conn.execute(ENDS, [ids])).fetchall():
        longest = max(longest, seconds)
        if state != kind.state or kind.words not in f"{error}: {message}" or seconds > kind.seconds:
            wrong.append(f"{state} after {seconds:.1f} s: {error}: {message[:200]}")

    wrong += await _looks(conn)

    def clean() -> bool:
        return not _strays(mark, worker) and mark.connections() <= connected

    if not await asyncio.to_thread(eventually, clean, LEFT_SECONDS):
        wrong.append(
            f"left: processes {_strays(mark, worker)}, {mark.connections() - connected} connections more"
        )
    return Round(kind, began, at, longest, wrong)


async def _ended(conn: Connection, ids: Sequence[UUID]) -> bool:
    cursor = await conn.execute("SELECT count(*) FROM job_results WHERE job_id = ANY (%s)", [list(ids)])
    row = await cursor.fetchone()
    return row is not None and row[0] == len(ids)


async def _looks(conn: Connection) -> list[str]:
    """Run innocent attempts in the processes that are left, and return what is wrong with them."""
    ids = [await _add(conn, LOOK) for _ in range(AT_ONCE)]
    await until(partial(_ended, conn, ids), END_SECONDS)
    rows = await (await conn.execute(INNOCENT_ENDS, [ids])).fetchall()
    return [f"the next attempt: {row}" for row in rows if row != ("COMPLETED", 1, "[]")]


def _strays(mark: Mark, worker: int) -> set[int]:
    """Processes that are neither the worker, nor its nursery, nor children of that one."""
    nurseries = children_of(worker)
    known = {worker, *nurseries, *(child for nursery in nurseries for child in children_of(nursery))}
    return set(mark.processes()) - known


async def _verdict(conn: Connection, rounds: Sequence[Round], innocent: Sequence[UUID]) -> list[str]:
    await until(lambda: _none_left(conn), END_SECONDS)
    rows = await (await conn.execute(INNOCENT_ENDS, [list(innocent)])).fetchall()
    lost = sum(state != "COMPLETED" or attempt != 1 for state, attempt, _ in rows)
    delays = [(at, late) for *_, output in rows for at, late in json.loads(output or "[]")]
    wrong = [f"{lost} innocent attempts are lost"] if lost else []
    print(f"{'kind':<12} {'ends as':<10} {'longest':>8} {'innocent delayed by':>20}  wrong")
    for each in rounds:
        late = max(
            (late for at, late in delays if each.began <= at <= each.ended + LEFT_SECONDS), default=0.0
        )
        faults = each.wrong + (
            [f"an innocent attempt was delayed by {late:.1f} s"] if late > DELAY_SECONDS else []
        )
        print(
            f"{each.kind.preset:<12} {each.kind.state:<10} {each.longest:>6.1f} s {f'{late:.2f} s':>20}  "
            + ("; ".join(faults[:2]) or "nothing")
        )
        wrong += [f"{each.kind.preset}: {fault}" for fault in faults]
    return wrong


async def _none_left(conn: Connection) -> bool:
    return await (await conn.execute("SELECT count(*) FROM outbox")).fetchone() == (0,)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m ops.chaos.isolation")
    parser.add_argument("--times", type=int, default=20)
    parser.add_argument("--innocent", type=int, default=20, help="innocent jobs of each kind")
    parser.add_argument("kinds", nargs="*", help="default: all")
    asked = parser.parse_args(arguments)
    kinds = [kind for kind in KINDS if not asked.kinds or kind.preset in asked.kinds]
    with bench_server() as server, server.migrated() as url:
        wrong = asyncio.run(run(url, asked.times, asked.innocent, kinds))
    for line in wrong:
        print(f"WRONG: {line}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
