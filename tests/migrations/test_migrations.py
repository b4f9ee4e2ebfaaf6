from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlencode

import psycopg
import pytest
from psycopg import AsyncConnection
from psycopg.conninfo import conninfo_to_dict
from psycopg.rows import TupleRow
from yoyo import get_backend, read_migrations

import migrations
from engine.errors import DatabaseUnavailable, SchemaMismatch, UnfitDatabase
from migrations.backend import LOCK_KEY
from migrations.readiness import open_checks
from ops.harness.postgres import Databases
from ops.waiting import eventually
from tests.migrations.catalog import picture
from tests.support.pooler import transaction_pooler

ROOT = Path(migrations.__file__).parents[1]
WAITING = (
    "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event = 'advisory'"
)


def write(directory: Path, name: str, script: str, rollback: str = "SELECT 1") -> None:
    (directory / f"{name}.sql").write_text(script)
    (directory / f"{name}.rollback.sql").write_text(rollback)


def names(url: str) -> list[str]:
    return [str(row[0]) for row in picture(url)["relations"]]


def migrating(url: str, directory: Path, first: str = "pass") -> subprocess.Popen[bytes]:
    """`up` in a process of its own, after the Python statement `first`."""
    call = f"migrations.up({url!r}, directory=pathlib.Path({str(directory)!r}))"
    program = f"import os, pathlib, migrations; {first}; {call}"
    return subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stderr=subprocess.PIPE)


def wait_for(url: str, query: str) -> None:
    """Until the query's answer is 1."""
    with psycopg.connect(url, autocommit=True) as conn:
        assert eventually(lambda: conn.execute(query).fetchone() == (1,), 20), query


def test_up_from_nothing_applies_each_version_once(empty_database_url: str) -> None:
    versions = sorted(path.stem for path in migrations.SQL.glob("*.sql") if ".rollback" not in path.name)
    assert {one.state for one in migrations.status(empty_database_url)} == {"pending"}
    assert migrations.up(empty_database_url) == versions
    assert migrations.up(empty_database_url) == []
    report = migrations.status(empty_database_url)
    assert [one.id for one in report] == versions
    assert all(one.state == "applied" and one.applied_at is not None for one in report)


def test_every_version_has_a_rollback_that_leaves_no_trace(empty_database_url: str) -> None:
    bare = picture(empty_database_url)
    steps = migrations.status(empty_database_url)
    pictures = []
    applied = migrations.up(empty_database_url)
    for id_ in reversed(applied):
        pictures.append(picture(empty_database_url))
        assert migrations.down(empty_database_url) == [id_]
    assert picture(empty_database_url) == bare
    assert migrations.down(empty_database_url) == []
    assert migrations.status(empty_database_url) == steps
    assert migrations.up(empty_database_url) == applied
    assert picture(empty_database_url) == pictures[0] != bare


def test_what_relays_have_reported_stands_in_the_way_of_no_rollback(empty_database_url: str) -> None:
    migrations.up(empty_database_url)
    with psycopg.connect(empty_database_url, autocommit=True) as conn:
        tell = "INSERT INTO relay_facts (relay, topic, state, since) VALUES ('h:1', %s, %s, now())"
        for fact in (("jobs", "publishing"), ("maintenance", "maintaining"), ("maintenance", "failing")):
            conn.execute(f"{tell} ON CONFLICT DO NOTHING".encode(), fact)
        while "0003.widen-facts" not in migrations.down(empty_database_url):
            pass
        assert conn.execute("SELECT topic FROM relay_facts").fetchall() == [("jobs",)]
        with pytest.raises(psycopg.errors.CheckViolation):
            conn.execute(tell.encode(), ("maintenance", "maintaining"))


def test_down_takes_back_the_latest_first(empty_database_url: str, tmp_path: Path) -> None:
    for n in (1, 2, 3):
        write(tmp_path, f"000{n}.t{n}", f"CREATE TABLE t{n} ()", f"DROP TABLE t{n}")
    assert migrations.up(empty_database_url, directory=tmp_path) == ["0001.t1", "0002.t2", "0003.t3"]
    assert migrations.down(empty_database_url, 2, directory=tmp_path) == ["0003.t3", "0002.t2"]
    assert names(empty_database_url) == ["t1"]


def test_a_file_that_fails_leaves_nothing_and_those_before_it_stay(
    empty_database_url: str, tmp_path: Path
) -> None:
    write(tmp_path, "0001.good", "CREATE TABLE good ()")
    write(tmp_path, "0002.bad", "CREATE TABLE bad (); SELECT 1 / 0;")
    with pytest.raises(SchemaMismatch, match=r"apply of 0002\.bad failed: division by zero"):
        migrations.up(empty_database_url, directory=tmp_path)
    assert names(empty_database_url) == ["good"]
    states = [(one.id, one.state) for one in migrations.status(empty_database_url, directory=tmp_path)]
    assert states == [("0001.good", "applied"), ("0002.bad", "pending")]


def test_a_rollback_that_fails_leaves_its_version_applied(empty_database_url: str, tmp_path: Path) -> None:
    write(tmp_path, "0001.table", "CREATE TABLE kept ()", "DROP TABLE kept; SELECT 1 / 0")
    migrations.up(empty_database_url, directory=tmp_path)
    with pytest.raises(SchemaMismatch, match=r"rollback of 0001\.table failed"):
        migrations.down(empty_database_url, directory=tmp_path)
    (tmp_path / "0001.table.rollback.sql").unlink()
    with pytest.raises(SchemaMismatch, match=r"there is no 0001\.table\.rollback\.sql"):
        migrations.down(empty_database_url, directory=tmp_path)
    assert names(empty_database_url) == ["kept"]
    assert [one.state for one in migrations.status(empty_database_url, directory=tmp_path)] == ["applied"]


def test_a_process_killed_between_applying_and_marking_leaves_the_next_one_a_clean_start(
    empty_database_url: str, tmp_path: Path
) -> None:
    write(tmp_path, "0001.first", "CREATE TABLE first ()")
    write(tmp_path, "0002.second", "CREATE TABLE second (); SELECT pg_advisory_xact_lock(7)")
    with psycopg.connect(empty_database_url, autocommit=True) as conn:
        conn.execute("SELECT pg_advisory_lock(7)")
        with migrating(empty_database_url, tmp_path) as process:
            wait_for(empty_database_url, WAITING)
            process.send_signal(signal.SIGKILL)
            process.wait(10)
    assert migrations.up(empty_database_url, directory=tmp_path, wait_seconds=20) == ["0002.second"]
    assert names(empty_database_url) == ["first", "second"]


def test_a_version_that_cannot_be_marked_is_not_applied_either(
    empty_database_url: str, tmp_path: Path
) -> None:
    write(tmp_path, "0001.first", "CREATE TABLE first ()")
    migrations.up(empty_database_url, directory=tmp_path)
    write(tmp_path, "0002.second", "CREATE TABLE second ()")
    with psycopg.connect(empty_database_url, autocommit=True) as conn:
        conn.execute("ALTER TABLE _migration_checksum ADD CHECK (migration_id <> '0002.second')")
        with pytest.raises(SchemaMismatch, match=r"apply of 0002\.second failed"):
            migrations.up(empty_database_url, directory=tmp_path)
        assert names(empty_database_url) == ["first"]
        states = [one.state for one in migrations.status(empty_database_url, directory=tmp_path)]
        assert states == ["applied", "pending"]
        conn.execute("ALTER TABLE _migration_checksum DROP CONSTRAINT _migration_checksum_migration_id_check")
    assert migrations.up(empty_database_url, directory=tmp_path) == ["0002.second"]


def test_of_two_at_once_one_applies_and_the_other_finds_nothing_left(empty_database_url: str) -> None:
    with ThreadPoolExecutor(max_workers=4) as pool:
        runs = list(pool.map(migrations.up, [empty_database_url] * 4))
    applied = [run for run in runs if run]
    assert len(applied) == 1
    assert applied[0] == [one.id for one in migrations.status(empty_database_url)]


def test_the_wait_for_another_session_is_bounded(empty_database_url: str) -> None:
    with psycopg.connect(empty_database_url, autocommit=True) as conn:
        conn.execute("SELECT pg_advisory_lock(%s)", [LOCK_KEY])
        with pytest.raises(DatabaseUnavailable, match=r"another process has been migrating for 0\.2 s"):
            migrations.up(empty_database_url, wait_seconds=0.2)
    assert names(empty_database_url) == []


def test_a_server_that_does_not_answer_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(DatabaseUnavailable, match="connection"):
        migrations.up(f"postgresql:///none?host={tmp_path}")


def test_an_edited_file_shows_as_changed(empty_database_url: str, tmp_path: Path) -> None:
    write(tmp_path, "0001.table", "CREATE TABLE t ()")
    migrations.up(empty_database_url, directory=tmp_path)
    write(tmp_path, "0001.table", "CREATE TABLE t (id int)")
    assert [one.state for one in migrations.status(empty_database_url, directory=tmp_path)] == ["changed"]
    assert migrations.up(empty_database_url, directory=tmp_path) == []


def test_a_version_of_newer_code_shows_as_unknown_and_is_not_rolled_back(
    empty_database_url: str, tmp_path: Path
) -> None:
    write(tmp_path, "0001.old", "CREATE TABLE old ()")
    write(tmp_path, "0002.new", "CREATE TABLE new ()")
    migrations.up(empty_database_url, directory=tmp_path)
    for path in tmp_path.glob("0002*"):
        path.unlink()
    states = [one.state for one in migrations.status(empty_database_url, directory=tmp_path)]
    assert states == ["applied", "unknown"]
    with pytest.raises(SchemaMismatch, match=r"only newer code can roll back 0002\.new"):
        migrations.down(empty_database_url, directory=tmp_path)


@pytest.mark.parametrize("first", ["ours", "theirs"])
def test_an_applications_own_yoyo_in_the_same_schema_is_left_alone_and_leaves_ours_alone(
    empty_database_url: str, tmp_path: Path, first: str
) -> None:
    write(tmp_path, "0001.theirs", "CREATE TABLE theirs ()", "DROP TABLE theirs")
    host = urlencode({"host": conninfo_to_dict(empty_database_url)["host"]})
    user, name = (str(conninfo_to_dict(empty_database_url)[key]) for key in ("user", "dbname"))

    def theirs() -> None:
        backend = get_backend(f"postgresql+psycopg://{user}@/{name}?{host}")
        with backend.lock():
            known = read_migrations(str(tmp_path))
            backend.apply_migrations(backend.to_apply(known))
        backend.connection.close()

    if first == "theirs":
        theirs()
        assert {one.state for one in migrations.status(empty_database_url)} == {"pending"}
    applied = migrations.up(empty_database_url)
    theirs()
    report = migrations.status(empty_database_url)
    assert [(one.id, one.state) for one in report] == [(id_, "applied") for id_ in applied]
    assert migrations.up(empty_database_url) == []
    assert migrations.down(empty_database_url, len(applied)) == applied[::-1]
    assert "theirs" in names(empty_database_url)
    assert migrations.up(empty_database_url) == applied


def test_another_applications_migration_of_the_same_name_is_not_taken_for_ours(
    empty_database_url: str, tmp_path: Path
) -> None:
    write(tmp_path, "0001.first", "CREATE TABLE first ()")
    migrations.up(empty_database_url, directory=tmp_path)
    with psycopg.connect(empty_database_url, autocommit=True) as conn:
        conn.execute("DELETE FROM _migration_checksum")
    assert [one.state for one in migrations.status(empty_database_url, directory=tmp_path)] == ["pending"]
    with pytest.raises(SchemaMismatch, match=r"called 0001\.first too: give Outrider a schema of its own"):
        migrations.up(empty_database_url, directory=tmp_path)


def test_a_file_is_sent_whole(empty_database_url: str, tmp_path: Path) -> None:
    body = "CREATE FUNCTION f() RETURNS int LANGUAGE plpgsql AS $$ DECLARE x int; BEGIN RETURN 1; END $$;"
    write(
        tmp_path,
        "0001.odd",
        f"/* a /* nested; */ one; */ CREATE TABLE odd (begin int, declare int);\n{body}\nSELECT f();",
    )
    migrations.up(empty_database_url, directory=tmp_path)
    assert names(empty_database_url) == ["odd"]


def test_an_index_left_invalid_by_a_concurrent_build_is_built_again(
    empty_database_url: str, tmp_path: Path
) -> None:
    write(tmp_path, "0001.table", "CREATE TABLE t (id int); INSERT INTO t VALUES (1), (1)")
    build = "-- transactional: false\nCREATE UNIQUE INDEX CONCURRENTLY IF NOT EXISTS t_id ON t (id)"
    write(tmp_path, "0002.index", build, "-- transactional: false\nDROP INDEX CONCURRENTLY t_id")
    with pytest.raises(SchemaMismatch, match="could not create unique index"):
        migrations.up(empty_database_url, directory=tmp_path)
    with psycopg.connect(empty_database_url, autocommit=True) as conn:
        conn.execute("DELETE FROM t")
        assert migrations.up(empty_database_url, directory=tmp_path) == ["0002.index"]
        assert conn.execute("SELECT bool_and(indisvalid) FROM pg_index").fetchone() == (True,)
    assert migrations.down(empty_database_url, directory=tmp_path) == ["0002.index"]
    assert names(empty_database_url) == ["t"]


def test_up_makes_the_schema_of_the_environment_and_leaves_the_others_alone(
    empty_database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    applied = migrations.up(empty_database_url)
    for name in ("first", "second"):
        monkeypatch.setenv("OUTRIDER_SCHEMA", name)
        assert {one.state for one in migrations.status(empty_database_url)} == {"pending"}
        assert migrations.up(empty_database_url) == applied
        assert migrations.up(empty_database_url) == []
    with psycopg.connect(empty_database_url, autocommit=True) as conn:
        found = "SELECT schemaname FROM pg_tables WHERE tablename = 'outbox' ORDER BY 1"
        assert conn.execute(found).fetchall() == [("first",), ("public",), ("second",)]


def test_a_role_that_may_not_make_the_schema_is_told_who_must_and_how(
    empty_database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OUTRIDER_SCHEMA", "mine")
    with psycopg.connect(empty_database_url, autocommit=True) as conn:
        role = f"{conn.info.dbname}_weak"
        conn.execute(f"CREATE ROLE {role} LOGIN".encode())
        weak = psycopg.conninfo.make_conninfo(empty_database_url, user=role)
        make = f"CREATE SCHEMA mine AUTHORIZATION {role}"
        with pytest.raises(SchemaMismatch, match=make):
            migrations.up(weak)
        conn.execute(make.encode())
        # The right to create a schema is not needed where it exists.
        assert migrations.up(weak) != []
        conn.execute(f"DROP OWNED BY {role}; DROP ROLE {role}".encode())


@pytest.mark.parametrize("encoding", ["LATIN1", "SQL_ASCII"])
def test_a_database_in_another_encoding_is_refused_before_anything_is_made(
    databases: Databases, encoding: str
) -> None:
    name = databases.create(encoding=encoding)
    for _ in range(2):
        with pytest.raises(UnfitDatabase, match=encoding):
            migrations.up(databases.url(name))
    with psycopg.connect(databases.url(name)) as conn:
        assert conn.execute("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'").fetchone() == (0,)
    databases.drop_later(name)


async def test_up_and_start_refuse_a_transaction_pooler(empty_database_url: str) -> None:
    async with transaction_pooler(empty_database_url) as url:
        with pytest.raises(UnfitDatabase, match="transaction pooler"):
            await asyncio.to_thread(migrations.up, url)
        with pytest.raises(UnfitDatabase, match="transaction pooler"):
            async with open_checks(url, "web"):
                raise AssertionError("a process that starts behind a transaction pooler")
    async with await AsyncConnection.connect(empty_database_url) as conn:
        made = await conn.execute("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'")
        assert await made.fetchone() == (0,)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can take a foreign uid")
def test_run_by_root_for_a_uid_without_a_name_up_works(empty_database_url: str) -> None:
    become = (
        "[os.environ.pop(n, 0) for n in ('USER', 'LOGNAME', 'LNAME', 'USERNAME')]; os.setresuid(54321, 0, 0)"
    )
    with migrating(empty_database_url, migrations.SQL, become) as process:
        _, errors = process.communicate(timeout=30)
    assert process.returncode == 0, errors.decode()
    assert {one.state for one in migrations.status(empty_database_url)} == {"applied"}


async def test_check_asks_for_this_codes_schema_and_lets_it_run_ahead(
    conn: AsyncConnection[TupleRow], empty_database_url: str
) -> None:
    await migrations.check(conn)
    await conn.execute(
        "INSERT INTO _yoyo_migration (migration_hash, migration_id) VALUES ('x', '9999.later')"
    )
    await migrations.check(conn)
    await conn.execute("DELETE FROM _yoyo_migration")
    with pytest.raises(
        SchemaMismatch, match=r"the schema lacks 0001\.create-schema.*run `outrider migrate up`"
    ):
        await migrations.check(conn)
    async with await AsyncConnection.connect(empty_database_url, autocommit=True) as bare:
        with pytest.raises(SchemaMismatch, match="no schema yet"):
            await migrations.check(bare)


def test_a_version_that_builds_an_index_leaves_other_applications_broken_indexes_alone(
    empty_database_url: str,
) -> None:
    migrations.up(empty_database_url)
    with psycopg.connect(empty_database_url, autocommit=True) as conn:
        conn.execute("CREATE TABLE orders (id integer); INSERT INTO orders VALUES (1), (1)")
        with pytest.raises(psycopg.errors.UniqueViolation):
            conn.execute("CREATE UNIQUE INDEX CONCURRENTLY orders_once ON orders (id)")
        migrations.down(empty_database_url, 4)
        migrations.up(empty_database_url)
        assert conn.execute("SELECT count(*) FROM pg_class WHERE relname = 'orders_once'").fetchone() == (1,)
