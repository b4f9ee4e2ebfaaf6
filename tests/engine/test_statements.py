"""Every SQL constant is accepted by the migrated schema, and the hot ones keep their plans as tables grow."""

from __future__ import annotations

import importlib
import pkgutil
import re
import time
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

import engine
import relay
import worker as worker_package
from engine.ids import first_id_of
from engine.model import JobState
from engine.moves import publish
from engine.moves.claim import CLAIM, CLAIM_NAMED, CLAIM_PUBLISHED, CLAIM_SUSPECTS
from engine.moves.finish import FINISH
from engine.moves.promote import PROMOTE
from engine.moves.release import RELEASE
from engine.storage.literals import array, bare_array
from engine.tables import events
from engine.tables.outbox import PRESETS
from relay.maintenance.prune import PRUNE_JOBS, PRUNE_KEYS
from tests.conftest import Connect
from tests.support.database import Conn, fetchone, worker
from worker.suspects import WAITING

VERBS = ("SELECT", "INSERT", "UPDATE", "DELETE", "WITH")


def modules() -> Iterator[str]:
    for package in (engine, worker_package, relay):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            yield module.name


def statements() -> Iterator[Any]:
    for module in modules():
        for name, value in vars(importlib.import_module(module)).items():
            whole = name.isupper() and isinstance(value, str) and value.lstrip().startswith(VERBS)
            if whole and not name.startswith("_"):
                yield pytest.param(value, id=f"{module}.{name}")


def prepared(statement: str) -> str:
    """psycopg's placeholders as PostgreSQL's."""
    names: dict[str, int] = {}

    def number(match: re.Match[str]) -> str:
        key = match[1] or f"#{match.start()}"
        return f"${names.setdefault(key, len(names) + 1)}"

    return re.sub(r"%(?:\((\w+)\))?s", number, statement)


@pytest.mark.parametrize("statement", list(statements()))
async def test_the_schema_knows_every_statement(conn: Conn, statement: str) -> None:
    await conn.execute(f"PREPARE checked AS {prepared(statement)}".encode())


async def plan(conn: Conn, statement: str, parameters: dict[str, object]) -> str:
    cursor = await conn.execute(f"EXPLAIN (COSTS OFF) {statement}".encode(), parameters)
    return "\n".join(row[0] for row in await cursor.fetchall())


async def buffers(conn: Conn, statement: str, parameters: Mapping[str, object]) -> int:
    """Shared buffers that the statement touches; it is rolled back."""
    async with conn.transaction(force_rollback=True):
        explained = f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {statement}".encode()
        (found,) = await fetchone_json(conn, explained, parameters)
    top = found[0]["Plan"]
    return int(top["Shared Hit Blocks"] + top["Shared Read Blocks"])


async def fetchone_json(conn: Conn, statement: bytes, parameters: Mapping[str, object]) -> tuple[Any, ...]:
    row = await (await conn.execute(statement, parameters)).fetchone()
    assert row is not None
    return tuple(row)


async def fill(conn: Conn, status: str, rows: int, finished: int = 0) -> None:
    await conn.execute(
        """
        WITH j AS (
            INSERT INTO jobs (id, user_id, preset, content)
            SELECT outrider_uuid7(), 'ann', 'p', 'x' FROM generate_series(1, %(all)s)
            RETURNING id, user_id, preset, priority, run_at
        ), numbered AS (SELECT *, row_number() OVER () AS n FROM j)
        , o AS (
            INSERT INTO outbox (job_id, user_id, preset, priority, status, run_at, ready_at, published_at)
            SELECT id, user_id, preset, priority, %(status)s::outbox_status,
                   run_at + CASE WHEN %(status)s = 'waiting' THEN interval '1 d' ELSE '0' END, now(),
                   CASE WHEN %(status)s = 'published' THEN now() - interval '1 h' END
            FROM numbered WHERE n <= %(rows)s)
        INSERT INTO job_results (job_id, user_id, state, attempt, errors, crashes, version, run_at)
        SELECT id, user_id, 'COMPLETED', 1, 0, 0, 2, run_at FROM numbered WHERE n > %(rows)s
        """,
        {"all": rows + finished, "rows": rows, "status": status},
    )


def claiming(worker_id: int, limit: int = 100) -> dict[str, object]:
    return {
        "worker_id": worker_id,
        "presets": "{p,p,p,p}",
        "priorities": "{1,2,3,4}",
        "lows": "{0,0,0,0}",
        "limit": limit,
        "age": 0,
        "metadata": "{}",
        "reason": "claimed",
    }


async def test_the_cost_of_a_claim_does_not_grow_with_what_it_does_not_take(connect: Connect) -> None:
    conn = await connect(pinned=True)
    me = await worker(conn)
    await fill(conn, "ready", 1000)
    await conn.execute("VACUUM ANALYZE")
    before = await buffers(conn, CLAIM, claiming(me))
    for status, rows, finished in (("ready", 20_000, 0), ("waiting", 20_000, 0), ("waiting", 0, 20_000)):
        await fill(conn, status, rows, finished)
        await conn.execute("VACUUM ANALYZE")
        assert await buffers(conn, CLAIM, claiming(me)) <= 1.3 * before


async def test_a_look_for_suspects_reads_no_other_job(connect: Connect) -> None:
    """On a connection of the pool, whose plans are not pinned."""
    conn = await connect()
    me = await worker(conn)
    for status in ("ready", "published"):
        await fill(conn, status, 20_000)
    await conn.execute("VACUUM ANALYZE")
    asked = {"worker_id": me, "presets": "{p}", "patience": 5, "counted": 1000}
    claimed = claiming(me) | {"presets": "{p}", "suspicion": 1}
    assert await buffers(conn, WAITING, asked) < 20
    assert await buffers(conn, CLAIM_SUSPECTS, claimed) < 20


async def marking(conn: Conn, limit: int = 100) -> dict[str, object]:
    """Names the first ready jobs as each of the statements by id does."""
    found = "SELECT job_id, position, attempt FROM outbox WHERE status = 'ready' ORDER BY position LIMIT %s"
    ids, positions, attempts = zip(*await (await conn.execute(found, [limit])).fetchall(), strict=True)
    return {
        "ids": bare_array(ids),
        "id": bare_array(ids),
        "position": bare_array(positions),
        "attempt": bare_array(attempts),
    }


async def test_the_cost_of_a_hand_over_does_not_grow_with_what_is_not_handed_over(connect: Connect) -> None:
    conn = await connect(pinned=True)
    # A row that finds room beside its old version costs half: here none does, neither before nor after.
    await conn.execute("ALTER TABLE outbox SET (fillfactor = 100)")
    me = await worker(conn)
    await fill(conn, "ready", 1000)
    await fill(conn, "published", 1000)
    await conn.execute("VACUUM ANALYZE")
    reserving = {"seconds": 10, "row_seconds": 0.1, "until": "{}"}
    parameters = claiming(me) | await marking(conn) | reserving
    asked = (CLAIM_NAMED, CLAIM_PUBLISHED, publish.RESERVE, publish.PUBLISHED, publish.RELEASE)
    before = {statement: await buffers(conn, statement, parameters) for statement in asked}
    for status, rows, finished in (
        ("ready", 20_000, 0),
        ("published", 20_000, 0),
        ("waiting", 20_000, 0),
        ("waiting", 0, 20_000),
    ):
        await fill(conn, status, rows, finished)
        await conn.execute("VACUUM ANALYZE")
        for statement in asked:  # an index that gets one level deeper costs a third
            assert await buffers(conn, statement, parameters) <= 1.5 * before[statement], statement


EVENTS = """
INSERT INTO outbox_events (id, topic, payload, attributes, quarantined_at) OVERRIDING SYSTEM VALUE
SELECT n, %s, 'x', '{}', %s::timestamptz FROM generate_series(%s::bigint, %s::bigint) n
"""


async def generic_plan(conn: Conn, statement: str) -> str:
    """As a hot connection plans it: once, without the values."""
    text = prepared(statement)
    parameters = set(re.findall(r"\$\d+", text))
    values = f"({', '.join(['NULL'] * len(parameters))})" if parameters else ""
    await conn.execute(f"PREPARE planned AS {text}".encode())
    cursor = await conn.execute(f"EXPLAIN (COSTS OFF) EXECUTE planned{values}".encode())
    found = "\n".join(row[0] for row in await cursor.fetchall())
    await conn.execute("DEALLOCATE planned")
    return found


HOT = {
    CLAIM: "outbox_ready",
    CLAIM_NAMED: "outbox_pkey",
    CLAIM_PUBLISHED: "outbox_published",
    CLAIM_SUSPECTS: "outbox_suspects",
    FINISH: "outbox_pkey",
    RELEASE: "outbox_pkey",
    publish.RESERVE: "outbox_ready",
    publish.PUBLISHED: "outbox_pkey",
    PRESETS: "outbox_ready",
    events.RESERVE: "outbox_events_due",
    events.PUBLISHED: "outbox_events_pkey",
}


@pytest.mark.parametrize("full", [False, True], ids=["empty", "full"])
async def test_no_statistics_spoil_the_plans(connect: Connect, full: bool) -> None:
    conn = await connect(pinned=True)
    if full:
        for status in ("ready", "published", "waiting"):
            await fill(conn, status, 5000, 5000)
        await conn.execute(EVENTS, ["results", None, 1, 5000])
        await conn.execute(EVENTS, ["dead-letters", None, 5001, 10_000])
    await conn.execute("ANALYZE")
    for statement, index in HOT.items():
        seen = await generic_plan(conn, statement)
        assert "Seq Scan" not in seen
        assert "Hash Join" not in seen
        assert f"using {index} " in seen, seen


async def test_events_are_found_without_a_look_at_those_of_the_other_topic_or_in_quarantine(
    connect: Connect,
) -> None:
    conn = await connect(pinned=True)
    asked = {"topic": "results", "low": 0, "limit": 100, "max_bytes": 8_000_000, "seconds": 10}
    asked |= {"max_row_bytes": 8_000_000, "bytes_per_second": 65_536.0, "most": 8_000_000}
    await conn.execute(EVENTS, ["dead-letters", None, 1, 20_000])
    await conn.execute(EVENTS, ["results", "2026-01-01", 20_001, 40_000])
    await conn.execute("VACUUM ANALYZE")
    assert await buffers(conn, events.RESERVE, asked) < 20


async def test_maintenance_reads_no_row_that_is_not_due(connect: Connect) -> None:
    conn = await connect()
    await fill(conn, "waiting", 20_000, 20_000)
    await conn.execute(
        "INSERT INTO idempotency_keys SELECT 'ann', 'r', n::text, '', '[]', now() + interval '1 d'"
        " FROM generate_series(1, 20000) n"
    )
    await conn.execute("VACUUM ANALYZE")
    bound = first_id_of(time.time() - 86_400)
    for statement, parameters in (
        (PROMOTE, {"limit": 1000}),
        (PRUNE_KEYS, {"limit": 1000}),
        (PRUNE_JOBS, {"limit": 1000, "days": 2, "bound": bound}),
    ):
        named = statement.replace("%s", "%(limit)s")
        assert await buffers(conn, named, parameters) < 50


async def test_an_owners_pages_are_read_from_their_indexes(connect: Connect) -> None:
    from engine.queries import jobs

    conn = await connect()
    await fill(conn, "ready", 20_000, 20_000)
    await conn.execute(
        "UPDATE jobs SET user_id = 'bob' WHERE id IN (SELECT id FROM jobs ORDER BY id LIMIT 5)"
    )
    await conn.execute("VACUUM ANALYZE")
    common: dict[str, object] = {
        "owner": "bob", "before": jobs._LAST, "zero": jobs._ZERO, "preset": None, "limit": 20, "offset": 0,
    }  # fmt: skip
    for state, found in jobs._FOUND_BY_OWNER.items():
        seen = await plan(conn, found + " LIMIT %(limit)s OFFSET %(offset)s", common | {"state": state})
        assert re.search(r"jobs_owner|job_results_owner|outbox_owner_leased|outbox_owner_pending", seen), seen


async def test_a_list_by_preset_reads_no_row_that_it_leaves_out(connect: Connect) -> None:
    from engine.queries import jobs

    conn = await connect()
    await fill(conn, "ready", 0, 20_000)
    await conn.execute("UPDATE jobs SET preset = 'rare' WHERE id = (SELECT id FROM jobs ORDER BY id LIMIT 1)")
    await conn.execute("VACUUM ANALYZE")
    asked: dict[str, object] = {
        "owner": "ann", "before": jobs._LAST, "zero": jobs._ZERO, "preset": "rare", "limit": 20, "offset": 0,
    }  # fmt: skip
    for state in (None, JobState.COMPLETED):
        found = jobs._FOUND_BY_OWNER[state] + " LIMIT %(limit)s OFFSET %(offset)s"
        seen = await plan(conn, found, asked | {"state": state})
        assert "Index Only Scan using jobs_owner_preset" in seen.replace(" Backward", ""), seen
        assert not re.search(r"Seq Scan|Index Scan|Sort", seen), seen


@pytest.mark.parametrize("status", ["ready", "completed"])
async def test_a_rare_preset_is_not_looked_for_in_every_job_of_a_state(connect: Connect, status: str) -> None:
    from engine.queries import jobs

    conn = await connect()
    state = JobState.COMPLETED if status == "completed" else JobState.PENDING
    await fill(conn, "ready", *((0, 20_000) if state is JobState.COMPLETED else (20_000, 0)))
    [rare] = await fetchone(conn, "SELECT id FROM jobs ORDER BY id LIMIT 1")
    await conn.execute("UPDATE jobs SET preset = 'rare' WHERE id = %s", [rare])
    await conn.execute("UPDATE outbox SET preset = 'rare' WHERE job_id = %s", [rare])
    await conn.execute("VACUUM ANALYZE")
    reads = "SELECT sum(idx_scan + idx_tup_fetch) FROM pg_stat_xact_user_tables WHERE relname IN ('jobs', 'outbox')"
    for preset, found in (("rare", [rare]), ("none", [])):
        async with conn.transaction():
            page = await jobs.page(conn, owner="ann", state=state, preset=preset)
            [looked_at] = await fetchone(conn, reads)
        assert [view.job_id for view in page] == found
        assert looked_at < 2 * jobs.FEW


def test_an_array_literal_keeps_every_text() -> None:
    assert array(["a", None, 'q"', "b\\", "NULL", "{,}", ""]) == '{"a",NULL,"q\\"","b\\\\","NULL","{,}",""}'


@pytest.mark.parametrize("text", ["", "NULL", 'a"b', "c\\d", "\\", '\\"', "{x,y}", "ü✓ \n\t", "'"])
async def test_postgresql_reads_an_array_literal_back(conn: Conn, text: str) -> None:
    assert await fetchone(conn, "SELECT %s::text[]", array([text, None, text])) == ([text, None, text],)
