"""The SQL functions write into the installation that they belong to, whoever calls them from wherever."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from uuid import uuid4

import psycopg
import pytest
from psycopg import AsyncConnection
from psycopg.conninfo import make_conninfo
from psycopg.rows import TupleRow
from psycopg.sql import SQL, Identifier

import migrations
from engine import NewJob, enqueue
from engine.errors import SchemaMismatch
from tests.support.database import Conn, fetchone, new

OURS, THEIRS = "ours", "Their's"
CALL = "SELECT ours.outrider_enqueue('ann', 'p', 'text')"
TABLES = ("jobs", "outbox", "job_state_records")


def in_schema(url: str, schema: str) -> str:
    path = '"' + schema.replace("\\", "\\\\") + '"'
    return make_conninfo(url, options=f"-c search_path={path}")


@pytest.fixture
async def conn(empty_database_url: str) -> AsyncIterator[Conn]:
    """A connection with the default search_path to a database with two installations, neither of them in public."""
    with psycopg.connect(empty_database_url, autocommit=True) as setting_up:
        for schema in (OURS, THEIRS):
            setting_up.execute(SQL("CREATE SCHEMA {}").format(Identifier(schema)))
    for schema in (OURS, THEIRS):
        migrations.up(in_schema(empty_database_url, schema))
    async with await AsyncConnection.connect(empty_database_url, autocommit=True) as conn:
        yield conn


@pytest.fixture
async def role(conn: AsyncConnection[TupleRow]) -> AsyncIterator[str]:
    """A role with the rights that enqueueing needs, and no other."""
    name = f"app_{uuid4().hex}"
    await conn.execute(
        SQL(
            "CREATE ROLE {role}; GRANT USAGE ON SCHEMA ours TO {role};"
            " GRANT INSERT ON ours.jobs, ours.outbox, ours.job_state_records TO {role};"
            " GRANT SELECT ON ours.jobs TO {role}; GRANT USAGE ON SEQUENCE ours.outbox_position TO {role}"
        ).format(role=Identifier(name))
    )
    yield name
    await conn.execute(
        SQL("RESET ROLE; DROP OWNED BY {role}; DROP ROLE {role}").format(role=Identifier(name))
    )


async def written(conn: Conn) -> dict[str, tuple[int, ...]]:
    """The rows of each installation in jobs, outbox and job_state_records."""
    counts = {}
    for schema in (OURS, THEIRS):
        tables = [SQL("(SELECT count(*) FROM {})").format(Identifier(schema, table)) for table in TABLES]
        row = await (await conn.execute(SQL("SELECT {}").format(SQL(", ").join(tables)))).fetchone()
        assert row is not None
        counts[schema] = tuple(row)
    return counts


ONE_OF_OURS = {OURS: (1, 1, 1), THEIRS: (0, 0, 0)}


@pytest.mark.parametrize(
    "path",
    ["public", '"Their\'s"', '"Their\'s", pg_catalog, ours', "ours", "pg_temp", "evil, pg_catalog"],
)
async def test_the_callers_search_path_changes_nothing(conn: Conn, path: str) -> None:
    await conn.execute("CREATE SCHEMA evil; CREATE TABLE evil.jobs (LIKE ours.jobs)")
    for broken in (
        "now() RETURNS timestamptz",
        "length(text) RETURNS int",
        "clock_timestamp() RETURNS timestamptz",
    ):
        await conn.execute(
            f"CREATE FUNCTION evil.{broken} LANGUAGE plpgsql AS 'BEGIN RAISE ''evil''; END'".encode()
        )
    await conn.execute(f"SET search_path = {path}".encode())
    await conn.execute(CALL)
    assert await written(conn) == ONE_OF_OURS


async def test_the_callers_temporary_tables_change_nothing(conn: Conn) -> None:
    for table in TABLES:
        await conn.execute(f"CREATE TEMP TABLE {table} (LIKE ours.{table})".encode())
    await conn.execute("SET search_path = pg_temp, ours")
    await enqueue(conn, new(), schema=OURS)
    await conn.execute("DELETE FROM ours.jobs; DELETE FROM ours.outbox; DELETE FROM ours.job_state_records")
    await conn.execute(CALL)
    assert await written(conn) == ONE_OF_OURS


ORDERS = """
CREATE TABLE orders (id int);
CREATE FUNCTION ordered() RETURNS trigger LANGUAGE plpgsql AS
$$ BEGIN PERFORM ours.outrider_enqueue('ann', 'p', NEW.id::text); RETURN NULL; END $$;
CREATE TRIGGER ordered AFTER INSERT ON orders FOR EACH ROW EXECUTE FUNCTION ordered()"""


@pytest.mark.parametrize(
    "options", ["VOLATILE", "SECURITY DEFINER", "SECURITY DEFINER SET search_path = pg_catalog"]
)
async def test_a_trigger_of_the_application_enqueues(conn: Conn, options: str) -> None:
    await conn.execute(ORDERS)
    await conn.execute(f"ALTER FUNCTION ordered() {options}".encode())
    await conn.execute("INSERT INTO orders VALUES (1)")
    assert await written(conn) == ONE_OF_OURS


async def test_a_function_of_the_owners_rights_enqueues_for_a_role_without_any(conn: Conn, role: str) -> None:
    await conn.execute(
        "CREATE FUNCTION public.placed() RETURNS uuid LANGUAGE sql SECURITY DEFINER SET search_path = public AS"
        " $$ SELECT ours.outrider_enqueue('ann', 'p', 'text') $$"
    )
    await conn.execute(SQL("REVOKE ALL ON ALL TABLES IN SCHEMA ours FROM {}").format(Identifier(role)))
    await conn.execute(SQL("SET ROLE {}").format(Identifier(role)))
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        await conn.execute(CALL)
    await conn.execute("SELECT public.placed()")
    await conn.execute("RESET ROLE")
    assert await written(conn) == ONE_OF_OURS


async def test_a_role_with_the_rights_to_insert_enqueues_by_python_and_sql(conn: Conn, role: str) -> None:
    await conn.execute(SQL("SET ROLE {}").format(Identifier(role)))
    job = await enqueue(conn, new(), schema=OURS)
    assert (await enqueue(conn, new(id=job.id), schema=OURS)).replayed
    await conn.execute("RESET ROLE")
    assert await written(conn) == ONE_OF_OURS
    await conn.execute(SQL("SET ROLE {}").format(Identifier(role)))
    await conn.execute(CALL)


NAMELESS = {"outrider_job_fits", "outrider_fault"}
"""Run for each row, and name nothing but what is in pg_catalog: a search_path of their own would double the cost."""


async def test_every_function_of_the_schema_is_bound_to_it(conn: Conn) -> None:
    cursor = await conn.execute(
        "SELECT proname::text, coalesce(proconfig::text, ''), prosqlbody IS NOT NULL FROM pg_proc"
        " WHERE pronamespace = 'ours'::regnamespace"
    )
    functions = await cursor.fetchall()
    assert {"outrider_enqueue", "outrider_enqueue_many", "outrider_uuid7"} <= {name for name, *_ in functions}
    loose = {
        name for name, config, atomic in functions if not atomic and "search_path=ours, pg_temp" not in config
    }
    assert loose == NAMELESS
    assert not [name for name, *_ in functions if name.startswith("_")]


async def test_no_function_of_the_schema_lends_its_owners_rights(conn: Conn) -> None:
    assert await fetchone(
        conn, "SELECT count(*) FROM pg_proc WHERE pronamespace = 'ours'::regnamespace AND prosecdef"
    ) == (0,)


async def test_python_finds_the_installation_by_argument_environment_or_search_path(
    conn: Conn, monkeypatch: pytest.MonkeyPatch
) -> None:
    await enqueue(conn, new(), schema=THEIRS)
    monkeypatch.setenv("OUTRIDER_SCHEMA", OURS)
    await enqueue(conn, new())
    await enqueue(conn, new(), schema=THEIRS)
    monkeypatch.setenv("OUTRIDER_SCHEMA", "")
    await conn.execute('SET search_path = nowhere, ours, "Their\'s"')
    await enqueue(conn, new())
    assert await written(conn) == {OURS: (2, 2, 2), THEIRS: (2, 2, 2)}


@pytest.mark.parametrize(
    ("schema", "where"),
    [
        (None, "the connection's search_path"),
        ("public", "the schema 'public'"),
        ("gone", "the schema 'gone'"),
    ],
)
async def test_where_no_installation_is_found_the_mend_is_said(
    conn: Conn, schema: str | None, where: str
) -> None:
    with pytest.raises(SchemaMismatch) as refused:
        await enqueue(conn, new(), schema=schema)
    assert str(refused.value).startswith(f"{where} has no outrider_enqueue_new")
    assert all(word in str(refused.value) for word in ("schema=", "OUTRIDER_SCHEMA", "outrider migrate up"))


async def test_what_a_trigger_of_the_caller_lacks_is_not_called_a_missing_installation(conn: Conn) -> None:
    await conn.execute(
        "CREATE FUNCTION public.broken() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN PERFORM public.no_such_function(); RETURN NEW; END $$;"
        "CREATE TRIGGER broken BEFORE INSERT ON ours.jobs FOR EACH ROW EXECUTE FUNCTION public.broken()"
    )
    with pytest.raises(psycopg.errors.UndefinedFunction):
        await enqueue(conn, new(), schema=OURS)


OLD = "outrider_enqueue(text, text, text, jsonb, integer, timestamptz)"
GRANTEES = """
SELECT array_agg(DISTINCT CASE acl.grantee WHEN 0 THEN 'PUBLIC' ELSE pg_get_userbyid(acl.grantee)::text END)
FROM pg_proc, aclexplode(proacl) acl WHERE proname = %s AND acl.privilege_type = 'EXECUTE'"""


async def test_who_might_call_the_function_before_may_call_it_after_and_after_a_rollback(
    empty_database_url: str, tmp_path: Path
) -> None:
    for path in migrations.SQL.glob("000[1-4].*.sql"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    migrations.up(empty_database_url, directory=tmp_path)
    async with await AsyncConnection.connect(empty_database_url, autocommit=True) as conn:
        name = f'app "{uuid4().hex}'
        role = Identifier(name)
        await conn.execute(SQL("CREATE ROLE {}").format(role))
        try:
            await conn.execute(f"REVOKE ALL ON FUNCTION {OLD} FROM PUBLIC".encode())
            await conn.execute(SQL("GRANT EXECUTE ON FUNCTION outrider_enqueue TO {}").format(role))
            (before,) = await fetchone(conn, GRANTEES, "outrider_enqueue")
            assert name in before
            applied = migrations.up(empty_database_url)
            for each in ("outrider_enqueue", "outrider_enqueue_many"):
                assert await fetchone(conn, GRANTEES, each) == (before,)
            migrations.down(empty_database_url, len(applied))
            assert await fetchone(conn, GRANTEES, "outrider_enqueue") == (before,)
        finally:
            await conn.execute(SQL("DROP OWNED BY {}; DROP ROLE {}").format(role, role))


def test_new_jobs_have_no_id_of_their_own() -> None:
    assert NewJob(user_id="ann", preset="p", content="text").id is None
