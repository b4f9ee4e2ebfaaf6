"""What `outrider doctor` finds, and what it says to do about it."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from engine.moves.enqueue import enqueue
from engine.tables.relay_status import RelayStatus, report
from tests.ops.cli.conftest import Outrider
from tests.support.database import Conn, fetchone, new, worker
from tests.support.pooler import transaction_pooler

pytestmark = pytest.mark.usefixtures("configured")

Set = Callable[..., None]

MAINTAINING = RelayStatus("maintenance", "maintaining", 60, None)


async def alive(conn: Conn) -> None:
    """A relay and a worker, as they would tell of themselves."""
    await report(conn, "h:1", [MAINTAINING])
    await worker(conn)


async def found(outrider: Outrider, check: str) -> tuple[bool, str, str | None]:
    """Whether the check is good, what it found, and the fix."""
    checks = (await outrider("doctor", "--json")).json["checks"]
    [verdict] = [each for each in checks if each["check"] == check]
    return verdict["good"], verdict["found"], verdict["fix"]


def verdicts(document: Any) -> dict[str, bool]:
    return {each["check"]: each["good"] for each in document["checks"]}


async def test_doctor_finds_nothing_wrong_with_a_sound_installation(outrider: Outrider, conn: Conn) -> None:
    await alive(conn)
    await enqueue(conn, new())
    said = await outrider("doctor", "--json", "--invariants")
    assert said.code == 0
    assert set(verdicts(said.json).values()) == {True}
    assert said.json["invariants"]["jobs"] == 1
    assert len(verdicts(said.json)) == 15
    text = (await outrider("doctor", "--invariants")).out
    assert "1 jobs checked" in text
    assert "FAIL" not in text


async def test_doctor_shows_broken_invariants_and_fails(outrider: Outrider, conn: Conn) -> None:
    await alive(conn)
    job = await enqueue(conn, new())
    await conn.execute("DELETE FROM outbox")
    assert (await outrider("doctor")).code == 0
    said = await outrider("doctor", "--invariants")
    assert said.code == 3
    assert "FAIL  I1: every job has" in said.out
    assert f"      {job.id}: neither an outbox row nor a result\n      1 jobs in all" in said.out
    document = (await outrider("doctor", "--invariants", "--json")).json["invariants"]
    assert [each["invariant"] for each in document["checks"] if each["offending_jobs"]] == ["I1"]


@pytest.mark.parametrize(
    ("given", "check"),
    [
        ({"retention_dais": 1}, "configuration"),
        ({"pipelines": "no.such.module"}, "pipelines"),
        ({"jwt_secret": "", "jwks_file": "/nowhere"}, "keys"),
        ({"jwt_secret": ""}, "keys"),
        ({"database_url": "postgresql://127.0.0.1:1/x"}, "database"),
    ],
    ids=["configuration", "pipelines", "jwks", "no key", "database"],
)
async def test_doctor_names_what_is_wrong_and_the_fix(
    outrider: Outrider, settings: Set, given: dict[str, object], check: str
) -> None:
    settings(**given)
    said = await outrider("doctor", "--json", "--invariants")
    assert said.code == 3
    assert [name for name, good in verdicts(said.json).items() if not good] == [check]
    assert all(each["fix"] for each in said.json["checks"] if not each["good"])
    text = (await outrider("doctor")).out
    assert f"FAIL  {check}: " in text
    assert "fix: " in text


@pytest.mark.parametrize(
    ("planted", "fix"),
    [
        (
            "DELETE FROM _yoyo_migration WHERE migration_id = '0001.create-schema'",
            "run `outrider migrate up`",
        ),
        ("UPDATE _migration_checksum SET sha256 = 'x'", "restore the file as it was applied"),
        (
            "UPDATE _yoyo_migration SET migration_id = '9999.future' WHERE migration_id = '0001.create-schema';"
            " UPDATE _migration_checksum SET migration_id = '9999.future' WHERE migration_id = '0001.create-schema'",
            "newer code",
        ),
    ],
    ids=["behind", "changed", "ahead"],
)
async def test_doctor_knows_a_schema_that_is_not_this_codes(
    outrider: Outrider, conn: Conn, planted: str, fix: str
) -> None:
    await conn.execute(planted.encode())
    said = await outrider("doctor", "--json")
    assert verdicts(said.json)["schema"] is False
    [said_to] = [each["fix"] for each in said.json["checks"] if not each["good"]]
    assert fix in said_to


async def test_doctor_refuses_a_transaction_pooler(
    outrider: Outrider, settings: Set, database_url: str
) -> None:
    async with transaction_pooler(database_url) as url:
        async with await psycopg.AsyncConnection.connect(url) as through:
            assert await fetchone(through, "SELECT 1") == (1,)
        settings(database_url=url)
        said = await outrider("doctor", "--json")
    assert (said.code, verdicts(said.json)["connection"]) == (3, False)


async def test_a_fresh_database_is_no_cause_for_alarm(outrider: Outrider) -> None:
    said = await outrider("doctor", "--json")
    assert said.code == 0
    shown = {each["check"]: each["found"] for each in said.json["checks"]}
    assert shown["relay"] == "no relay has reported, and there are no jobs"
    assert shown["workers"] == "no worker is alive, and no job is due"
    assert shown["flow"] == "no job is due"


async def test_a_database_without_the_schema_says_that_it_has_none(
    outrider: Outrider, settings: Set, empty_database_url: str
) -> None:
    settings(database_url=empty_database_url)
    said = await found(outrider, "schema")
    assert said == (False, "the database has no schema yet", "run `outrider migrate up`")
    checks = verdicts((await outrider("doctor", "--json")).json)
    assert {name for name, good in checks.items() if not good} == {"schema"}
    assert "relay" not in checks


async def test_without_a_relay_somebody_should_start_one(outrider: Outrider, conn: Conn) -> None:
    await enqueue(conn, new())
    good, said, fix = await found(outrider, "relay")
    assert (good, said) == (False, "no relay has reported")
    assert "run `outrider relay`" in str(fix)
    await report(conn, "h:1", [MAINTAINING])
    await report(conn, "h:2", [MAINTAINING, RelayStatus("jobs", "publishing", 60, None)])
    assert (await found(outrider, "relay"))[:2] == (True, "2 reported within 20 s: h:1, h:2")
    await conn.execute("UPDATE relay_status SET updated_at = '2026-01-02T03:04:05Z'")
    good, said, _ = await found(outrider, "relay")
    assert (good, said) == (False, "no relay has reported since 2026-01-02 03:04:05Z")
    await conn.execute("DELETE FROM outbox; DELETE FROM jobs")
    assert (await found(outrider, "relay"))[0] is False


async def test_a_relay_whose_maintenance_fails_is_ill(outrider: Outrider, conn: Conn) -> None:
    await report(conn, "h:1", [MAINTAINING])
    await report(conn, "h:2", [RelayStatus("maintenance", "failing", 60, "promote: permission denied")])
    good, said, fix = await found(outrider, "relay")
    assert good is False
    assert said.startswith("maintenance of h:2 has been failing since 20")
    assert said.endswith("(promote: permission denied)")
    assert fix


async def test_presets_of_due_jobs_that_no_live_worker_has_are_named(outrider: Outrider, conn: Conn) -> None:
    await worker(conn)
    assert await found(outrider, "workers") == (True, "1 alive with 10 slots and the presets p", None)
    await enqueue(conn, new())
    await enqueue(conn, new(preset="later", run_at=datetime.now(UTC) + timedelta(hours=1)))
    assert (await found(outrider, "workers"))[0] is True
    for _ in range(2):
        await enqueue(conn, new(preset="q"))
    good, said, fix = await found(outrider, "workers")
    assert (good, said) == (
        False,
        "no live worker runs the presets of due jobs: q (2); 1 alive with 10 slots and the presets p",
    )
    assert "run `outrider worker`" in str(fix)
    await conn.execute("UPDATE workers SET expires_at = now() - interval '1 s'")
    assert (await found(outrider, "workers"))[1].endswith("due jobs: p (1), q (2); 0 alive with 0 slots")


async def test_presets_of_later_jobs_that_no_live_worker_has_are_named_and_no_failure(
    outrider: Outrider, conn: Conn
) -> None:
    await worker(conn)
    for preset in ("p", "removed", "removed"):
        await enqueue(conn, new(preset=preset, run_at=datetime.now(UTC) + timedelta(hours=1)))
    good, said, _ = await found(outrider, "workers")
    assert good is True
    assert said.endswith("presets p; no live worker runs the presets of jobs due later: removed (2)")


async def test_a_job_that_nobody_takes_for_two_minutes_is_a_failure(outrider: Outrider, conn: Conn) -> None:
    await enqueue(conn, new(preset="q"))
    await enqueue(conn, new())
    waited = "UPDATE outbox SET ready_at = clock_timestamp() - %s * interval '1 s' WHERE preset = 'p'"
    await conn.execute(waited, [100])
    good, said, _ = await found(outrider, "flow")
    assert good
    assert said.startswith(
        "the oldest due job that no worker has claimed, of the preset p, has waited for 1 min 4"
    )
    await conn.execute(waited, [130])
    good, said, fix = await found(outrider, "flow")
    assert not good
    assert "has waited for 2 min 1" in said
    assert "outrider explain" in str(fix)


async def test_a_waiting_job_that_is_not_promoted_is_a_failure(outrider: Outrider, conn: Conn) -> None:
    await enqueue(conn, new(run_at=datetime.now(UTC) + timedelta(hours=1)))
    due = "UPDATE outbox SET run_at = clock_timestamp() - %s * interval '1 s'"
    await conn.execute(due, [1])
    assert (await found(outrider, "flow"))[0] is True
    await conn.execute(due, [20])
    good, said, fix = await found(outrider, "flow")
    assert not good
    assert said.startswith("1 waiting jobs are overdue, the first by 2")
    assert "outrider relay" in str(fix)


@pytest.mark.long
async def test_an_open_breaker_is_reported_with_since_when_and_why(
    outrider: Outrider, settings: Set, conn: Conn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PUBSUB_EMULATOR_HOST", "127.0.0.1:1")
    settings(transport="pubsub", pubsub_project="p1")
    assert (await found(outrider, "publishing"))[:2] == (True, "no relay is alive")
    await report(conn, "h:1", [MAINTAINING])
    assert (await found(outrider, "publishing"))[:2] == (False, "no live relay publishes")
    well = RelayStatus("jobs", "publishing", 60, None)
    await report(conn, "h:1", [well])
    assert (await found(outrider, "publishing"))[:2] == (True, "h:1 can publish to every topic")
    for state, said, fixed in (
        ("passing", "UNAVAILABLE: no route", "workers look for jobs in the outbox themselves"),
        ("misconfigured", "NOT_FOUND: no topic", "run `outrider provision`"),
    ):
        await report(conn, "h:1", [well, RelayStatus("results", state, 60, said)])  # type: ignore[arg-type]
        good, detail, fix = await found(outrider, "publishing")
        assert not good
        assert detail.startswith("results: the breaker of h:1 has been open since 20")
        assert detail.endswith(f"({said})")
        assert fixed in str(fix)


async def test_a_role_that_lacks_a_right_is_reported_and_is_no_failure(
    outrider: Outrider, settings: Set, conn: Conn, database_url: str
) -> None:
    assert (await found(outrider, "rights"))[1].endswith("may VACUUM and ANALYZE, and sees every session")
    role = f"poor_{(await fetchone(conn, 'SELECT pg_backend_pid()'))[0]}"
    await conn.execute(f"CREATE ROLE {role} LOGIN".encode())
    try:
        for kind in ("TABLES", "SEQUENCES"):
            await conn.execute(f"GRANT ALL ON ALL {kind} IN SCHEMA public TO {role}".encode())
            if await fetchone(conn, "SELECT current_setting('server_version_num')::int >= 170000") == (True,):
                await conn.execute(f"REVOKE MAINTAIN ON ALL TABLES IN SCHEMA public FROM {role}".encode())
        settings(database_url=psycopg.conninfo.make_conninfo(database_url, options=f"-c role={role}"))
        good, said, _ = await found(outrider, "rights")
        assert good
        assert (
            f"{role} may run web, worker, relay, may not VACUUM and ANALYZE job_progress, job_results, "
            in said
        )
        assert said.endswith("sees only its own sessions (grant the role pg_read_all_stats)")
        await conn.execute(f"GRANT pg_monitor TO {role}".encode())
        assert (await found(outrider, "rights"))[1].endswith("sees every session")
    finally:
        await conn.execute(f"DROP OWNED BY {role}; DROP ROLE {role}".encode())


ALTERED = {
    "writable": ("default_transaction_read_only = on", "RESET default_transaction_read_only"),
    "durability": ("synchronous_commit = off", "RESET synchronous_commit"),
}


@pytest.mark.parametrize("check", ALTERED)
async def test_doctor_fails_where_nothing_can_be_written_or_what_is_written_may_be_lost(
    outrider: Outrider, conn: Conn, check: str
) -> None:
    setting, fix = ALTERED[check]
    await conn.execute(f'ALTER DATABASE "{conn.info.dbname}" SET {setting}'.encode())
    said = await outrider("doctor", "--json")
    [verdict] = [each for each in said.json["checks"] if not each["good"]]
    assert (said.code, verdict["check"]) == (3, check)
    assert fix in verdict["fix"]


async def test_a_server_that_may_lose_everything_is_a_warning(outrider: Outrider, conn: Conn) -> None:
    [off] = await (await conn.execute("SHOW fsync")).fetchall()
    said = await outrider("doctor")
    assert ("warn  durability: fsync" in said.out) == (off == ("off",))
    assert said.code == 0


@pytest.mark.parametrize("limit", [1, 4])
async def test_doctor_knows_a_limit_of_connections(
    outrider: Outrider, settings: Set, conn: Conn, database_url: str, limit: int
) -> None:
    role = f"limited {os.getpid()}"
    await conn.execute(f'CREATE ROLE "{role}" LOGIN CONNECTION LIMIT {limit}'.encode())
    await conn.execute(f'GRANT ALL ON ALL TABLES IN SCHEMA public TO "{role}"'.encode())
    await conn.execute(f'GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO "{role}"'.encode())
    try:
        settings(database_url=make_conninfo(database_url, user=role))
        said = await outrider("doctor", "--json")
    finally:
        await conn.execute(f'DROP OWNED BY "{role}"; DROP ROLE "{role}"'.encode())
    [verdict] = [each for each in said.json["checks"] if not each["good"]]
    assert verdict["check"] == ("database" if limit == 1 else "connections")
    assert f"role {role}" in verdict["found"] or f'role "{role}"' in verdict["found"]
    assert "CONNECTION LIMIT" in verdict["fix"]


async def test_doctor_names_the_missing_grants(
    outrider: Outrider, settings: Set, conn: Conn, database_url: str
) -> None:
    role = f"poor {os.getpid()}"
    await conn.execute(f'CREATE ROLE "{role}" LOGIN'.encode())
    try:
        settings(database_url=make_conninfo(database_url, user=role))
        assert "permission denied" in (await found(outrider, "schema"))[1]
        for command in (["jobs", "list"], ["migrate", "status"], ["outbox", "status"]):
            said = await outrider(*command)
            assert (said.code, "Traceback" in said.err) == (1, False), said.err
        await conn.execute(f'GRANT SELECT ON ALL TABLES IN SCHEMA public TO "{role}"'.encode())
        good, what, fix = await found(outrider, "rights")
    finally:
        await conn.execute(f'DROP OWNED BY "{role}"; DROP ROLE "{role}"'.encode())
    assert not good
    assert f"the role {role} lacks INSERT, DELETE on jobs" in what or "on jobs" in what
    assert f'ON TABLE "public"."jobs" TO "{role}"' in str(fix)


async def test_doctor_lets_an_applications_own_migrations_be(outrider: Outrider, conn: Conn) -> None:
    await conn.execute(
        "INSERT INTO _yoyo_migration (migration_hash, migration_id, applied_at_utc)"
        " VALUES ('x', '20261129_shop', now())"
    )
    said = await outrider("doctor", "--json")
    assert (said.code, verdicts(said.json)["schema"]) == (0, True)
    assert (await outrider("migrate", "status")).code == 0


async def test_a_preset_whose_max_attempts_was_lowered_breaks_no_invariant(
    outrider: Outrider, conn: Conn, settings: Set, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "lowered_preset.py").write_text(
        "from engine import pipeline\n\n\n"
        "@pipeline('p', max_attempts=2)\nasync def p(job, run): ...\n\n\npipelines = [p]\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    settings(pipelines="lowered_preset")
    await alive(conn)
    await enqueue(conn, new())
    await conn.execute("UPDATE outbox SET errors = 4")
    said = await outrider("doctor", "--invariants")
    assert "ok    I7" in said.out, said.out
    await conn.execute("UPDATE outbox SET errors = 26")
    assert "26 errors of 25" in (await outrider("doctor", "--invariants")).out
