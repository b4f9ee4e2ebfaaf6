"""What every relay reports in the database, whatever its transport."""

from __future__ import annotations

import pytest

from engine.process.run import process_name
from engine.tables.relay_status import RelayStatus, ReportedStatus, report, reported
from ops.waiting import until
from tests.support.database import Conn
from tests.support.worker_harness import WorkerHarness


@pytest.fixture(autouse=True)
def _often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("relay.status.REPORT_SECONDS", 0.02)


async def heard(harness: WorkerHarness, state: str) -> ReportedStatus:
    async def look() -> ReportedStatus | None:
        return next((each for each in await reported(harness.conn) if each.state == state), None)

    return await until(look)


async def test_maintenance_reports_that_it_runs_and_goes_on_reporting(harness: WorkerHarness) -> None:
    async with harness.maintenance(lease=60):
        first = await heard(harness, "maintaining")

        async def again() -> bool:
            return (await reported(harness.conn))[0].heard_at > first.heard_at

        await until(again)
    assert (first.relay, first.topic, first.detail, first.live) == (process_name(), "maintenance", None, True)


@pytest.mark.alone
@pytest.mark.parametrize(
    ("table", "tasks"), [("outbox", ["promote", "lapse"]), ("workers", ["lapse"])], ids=["outbox", "workers"]
)
async def test_maintenance_that_fails_reports_since_when_and_of_what(
    harness: WorkerHarness, table: str, tasks: list[str]
) -> None:
    await harness.conn.execute(f"ALTER TABLE {table} RENAME TO elsewhere".encode())
    async with harness.maintenance(lease=0.05):
        failing = await heard(harness, "failing")
        assert failing.detail in [f'{task}: relation "{table}" does not exist' for task in tasks]
        await until(lambda: later(harness.conn, failing))
        [still] = await reported(harness.conn)
        assert (still.since - failing.since).total_seconds() == pytest.approx(0, abs=0.5)
        await harness.conn.execute(f"ALTER TABLE elsewhere RENAME TO {table}".encode())
        well = await heard(harness, "maintaining")
        # Tasks that can wait may still fail for a while.
        assert not (well.detail or "").startswith(tuple(f"{task}:" for task in tasks))
        assert well.since > failing.since


async def later(conn: Conn, than: ReportedStatus) -> bool:
    return (await reported(conn))[0].heard_at > than.heard_at


async def test_a_task_that_can_wait_is_no_fault_of_maintenance_but_is_named(harness: WorkerHarness) -> None:
    await harness.conn.execute("ALTER TABLE idempotency_keys RENAME TO elsewhere")
    async with harness.maintenance(lease=60) as maintenance:

        async def failed() -> bool:
            return "prune_keys" in maintenance._health._faults

        await until(failed)

        async def named() -> bool:
            status = await heard(harness, "maintaining")
            return status.detail == 'prune_keys: relation "idempotency_keys" does not exist'

        await until(named)


async def test_a_relay_that_has_reported_nothing_for_a_while_is_not_live(conn: Conn) -> None:
    await report(conn, "h:1", [RelayStatus("maintenance", "maintaining", 100, None)])
    await report(conn, "h:2", [RelayStatus("maintenance", "failing", 100, "promote: gone")])
    await conn.execute(
        "UPDATE relay_status SET updated_at = updated_at - interval '21 s' WHERE relay = 'h:1'"
    )
    assert [(each.relay, each.live) for each in await reported(conn)] == [("h:1", False), ("h:2", True)]
