"""What every relay tells in the database, whatever its transport."""

from __future__ import annotations

import pytest

from engine.process import process_name
from engine.relays import Standing, Told, tell, told
from tests.engine.scene import Scene, until
from tests.helpers import Conn


@pytest.fixture(autouse=True)
def _often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.relays.TELL_SECONDS", 0.02)


async def heard(scene: Scene, state: str) -> Told:
    async def look() -> Told | None:
        return next((each for each in await told(scene.conn) if each.state == state), None)

    return await until(look)


async def test_maintenance_tells_that_it_runs_and_goes_on_telling(scene: Scene) -> None:
    async with scene.maintenance(lease=60):
        first = await heard(scene, "maintaining")

        async def again() -> bool:
            return (await told(scene.conn))[0].heard_at > first.heard_at

        await until(again)
    assert (first.relay, first.topic, first.detail, first.live) == (process_name(), "maintenance", None, True)


@pytest.mark.parametrize(
    ("table", "chore"), [("outbox", "promote"), ("workers", "lapse")], ids=["promote", "lapse"]
)
async def test_maintenance_that_fails_tells_since_when_and_of_what(
    scene: Scene, table: str, chore: str
) -> None:
    await scene.conn.execute(f"ALTER TABLE {table} RENAME TO elsewhere".encode())
    async with scene.maintenance(lease=0.05):
        failing = await heard(scene, "failing")
        assert failing.detail == f'{chore}: relation "{table}" does not exist'
        await until(lambda: later(scene.conn, failing))
        [still] = await told(scene.conn)
        assert (still.since - failing.since).total_seconds() == pytest.approx(0, abs=0.5)
        await scene.conn.execute(f"ALTER TABLE elsewhere RENAME TO {table}".encode())
        well = await heard(scene, "maintaining")
        assert (well.detail, well.since > failing.since) == (None, True)


async def later(conn: Conn, than: Told) -> bool:
    return (await told(conn))[0].heard_at > than.heard_at


async def test_a_chore_that_can_wait_is_no_fault_of_maintenance(scene: Scene) -> None:
    await scene.conn.execute("ALTER TABLE idempotency_keys RENAME TO elsewhere")
    async with scene.maintenance(lease=60) as maintenance:

        async def failed() -> bool:
            return "prune_keys" in maintenance._faults._faults

        await until(failed)
        assert (await heard(scene, "maintaining")).detail is None


async def test_who_has_said_nothing_for_a_while_is_not_live(conn: Conn) -> None:
    await tell(conn, "h:1", [Standing("maintenance", "maintaining", 100, None)])
    await tell(conn, "h:2", [Standing("maintenance", "failing", 100, "promote: gone")])
    await conn.execute("UPDATE relay_facts SET updated_at = updated_at - interval '21 s' WHERE relay = 'h:1'")
    assert [(each.relay, each.live) for each in await told(conn)] == [("h:1", False), ("h:2", True)]
