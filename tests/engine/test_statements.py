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
from engine.db import PINNED, array
from engine.maintenance import PRUNE_JOBS, PRUNE_KEYS
from engine.model import JobState, first_id_of
from engine.moves.claim import CLAIM
from engine.moves.record import FINISH, PUT_BACK, Ending, PutBack, _columns
from engine.moves.upkeep import PROMOTE
from tests.conftest import Connect
from tests.helpers import Conn, fetchone, worker

VERBS = ("SELECT", "INSERT", "UPDATE", "DELETE", "WITH")


def statements() -> Iterator[Any]:
    for module in pkgutil.walk_packages(engine.__path__, "engine."):
        for name, value in vars(importlib.import_module(module.name)).items():
            whole = name.isupper() and isinstance(value, str) and value.lstrip().startswith(VERBS)
            if whole and not name.startswith("_"):
                yield pytest.param(value, id=f"{module.name}.{name}")


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
            INSERT INTO outbox (job_id, user_id, preset, priority, status, run_at, ready_at)
            SELECT id, user_id, preset, priority, %(status)s::outbox_status,
                   run_at + CASE WHEN %(status)s = 'waiting' THEN interval '1 d' ELSE '0' END, now()
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
    }


async def test_the_cost_of_a_claim_does_not_grow_with_what_it_does_not_take(connect: Connect) -> None:
    conn = await connect(options=PINNED)
    me = await worker(conn)
    await fill(conn, "ready", 1000)
    await conn.execute("VACUUM ANALYZE")
    before = await buffers(conn, CLAIM, claiming(me))
    for status, rows, finished in (("ready", 20_000, 0), ("waiting", 20_000, 0), ("waiting", 0, 20_000)):
        await fill(conn, status, rows, finished)
        await conn.execute("VACUUM ANALYZE")
        assert await buffers(conn, CLAIM, claiming(me)) <= 1.3 * before


async def test_an_empty_queues_statistics_do_not_spoil_the_plans(connect: Connect) -> None:
    conn = await connect(options=PINNED)
    me = await worker(conn)
    await conn.execute("ANALYZE")
    ids = [f"00000000-0000-7000-8000-{n:012}" for n in range(50)]
    ending = [Ending(i, 1, JobState.COMPLETED, "completed") for i in ids]  # type: ignore[arg-type]
    putting = [PutBack(i, 1, "error", 1.0) for i in ids]  # type: ignore[arg-type]
    for statement, parameters, index in (
        (CLAIM, claiming(me), "outbox_ready"),
        (FINISH, _columns(Ending._fields, ending) | {"worker_id": me, "announce": True}, "outbox_pkey"),
        (PUT_BACK, _columns(PutBack._fields, putting) | {"worker_id": me, "announce": True}, "outbox_pkey"),
    ):
        seen = await plan(conn, statement, parameters)
        assert "Seq Scan" not in seen
        assert "Hash Join" not in seen
        assert index in seen


async def test_upkeep_reads_no_row_that_is_not_due(connect: Connect) -> None:
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
    from engine import jobs

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


def test_an_array_literal_keeps_every_text() -> None:
    assert array(["a", None, 'q"', "b\\", "NULL", "{,}", ""]) == '{"a",NULL,"q\\"","b\\\\","NULL","{,}",""}'


@pytest.mark.parametrize("text", ["", "NULL", 'a"b', "c\\d", "\\", '\\"', "{x,y}", "ü✓ \n\t", "'"])
async def test_postgresql_reads_an_array_literal_back(conn: Conn, text: str) -> None:
    assert await fetchone(conn, "SELECT %s::text[]", array([text, None, text])) == ([text, None, text],)
