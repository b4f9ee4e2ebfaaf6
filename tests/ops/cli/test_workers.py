"""`outrider workers`: who is registered, who is dead, and what each runs."""

from __future__ import annotations

import pytest

from engine.moves.enqueue import enqueue
from tests.ops.cli.conftest import Outrider
from tests.support.database import Conn, new

pytestmark = pytest.mark.usefixtures("configured")

REGISTER = (
    "INSERT INTO workers (name, presets, slots, lease_seconds, expires_at, throughput)"
    " VALUES (%s, %s, 4, 30, clock_timestamp() + %s * interval '1 second', %s::jsonb) RETURNING id"
)


async def test_workers_are_listed_with_their_load_and_the_dead_are_told_from_the_living(
    conn: Conn, outrider: Outrider
) -> None:
    assert (await outrider("workers")).out == "no worker is registered\n"
    assert (await outrider("workers", "--json")).json == []
    row = await (await conn.execute(REGISTER, ["h:1", ["p", "q"], 25, '{"p": 2.5}'])).fetchone()
    assert row
    await conn.execute(REGISTER, ["h:2", ["q"], -5, "{}"])
    job = await enqueue(conn, new())
    await conn.execute(
        "UPDATE outbox SET status = 'leased', worker_id = %s, attempt = 1, claimed_at = now() WHERE job_id = %s",
        [row[0], job.id],
    )
    first, second = (await outrider("workers", "--json")).json
    assert (first["name"], first["slots"], first["busy"], first["live"]) == ("h:1", 4, 1, True)
    assert (first["presets"], first["throughput"]) == (["p", "q"], {"p": 2.5})
    assert (second["name"], second["busy"], second["live"]) == ("h:2", 0, False)
    shown = (await outrider("workers")).out.splitlines()
    assert [word in shown[1] for word in ("h:1", "live", "1 of 4", "p, q", "p 2.5")] == [True] * 5
    assert "dead" in shown[2]
