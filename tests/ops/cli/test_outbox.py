"""`outrider outbox status`: what waits, what is overdue, and who should see to it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from engine.moves.enqueue import enqueue
from engine.tables.relay_status import RelayStatus, report
from ops.cli.output import span
from tests.ops.cli.conftest import Outrider
from tests.support.database import Conn, new

pytestmark = pytest.mark.usefixtures("configured")


async def test_the_outbox_is_counted_by_preset_and_status_and_events_by_topic(
    conn: Conn, outrider: Outrider
) -> None:
    assert (
        await outrider("outbox", "status")
    ).out == "no unfinished jobs\n\nno events to publish\n\nno relay has reported\n"
    for _ in range(2):
        await enqueue(conn, new())
    later = datetime.now(UTC) + timedelta(hours=1)
    await enqueue(conn, new(run_at=later))
    await conn.execute(
        "INSERT INTO outbox_events (topic, payload, attributes, quarantined_at)"
        " VALUES ('results', '', '{}', NULL), ('results', '', '{}', now())"
    )
    counted = (await outrider("outbox", "status", "--json")).json
    assert [(each["preset"], each["status"], each["jobs"]) for each in counted["jobs"]] == [
        ("p", "waiting", 1),
        ("p", "ready", 2),
    ]
    assert counted["jobs"][0]["oldest"].startswith(later.strftime("%Y-%m-%dT%H:%M"))
    assert [(each["topic"], each["events"], each["quarantined"]) for each in counted["events"]] == [
        ("results", 1, 1)
    ]


async def test_the_oldest_event_is_of_those_that_will_be_published(conn: Conn, outrider: Outrider) -> None:
    await conn.execute(
        "INSERT INTO outbox_events (topic, payload, attributes, created_at, quarantined_at)"
        " VALUES ('results', '', '{}', '2026-01-02T00:00Z', now()), ('results', '', '{}', '2026-01-03T00:00Z', NULL),"
        " ('dead-letters', '', '{}', '2026-01-02T00:00Z', now())"
    )
    counted = (await outrider("outbox", "status", "--json")).json
    assert [(each["topic"], each["oldest"]) for each in counted["events"]] == [
        ("dead-letters", None),
        ("results", "2026-01-03T00:00:00Z"),
    ]
    assert (await outrider("outbox", "status")).code == 0


async def test_what_is_overdue_is_marked_and_the_rest_shows_its_age(conn: Conn, outrider: Outrider) -> None:
    age = "UPDATE outbox SET {} = clock_timestamp() - interval '{}' WHERE job_id = %s"
    later = datetime.now(UTC) + timedelta(hours=2, seconds=30)
    for preset, given, column, since in (
        ("ready", {}, "ready_at", "250.2 s"),
        ("late", {"run_at": later}, "run_at", "90.2 s"),
        ("prompt", {"run_at": later}, "run_at", "3.2 s"),
    ):
        job = await enqueue(conn, new(preset=preset, **given))
        await conn.execute(age.format(column, since).encode(), [job.id])
    await enqueue(conn, new(preset="later", run_at=later))
    counted = (await outrider("outbox", "status", "--json")).json["jobs"]
    assert {each["preset"]: each["overdue"] for each in counted} == {
        "late": 1,
        "later": 0,
        "prompt": 0,
        "ready": 0,
    }
    assert {each["preset"]: round(each["age_seconds"], -1) for each in counted} == {
        "late": 90,
        "later": -7230,
        "prompt": 0,
        "ready": 250,
    }
    lines = {line.split()[0]: line for line in (await outrider("outbox", "status")).out.splitlines() if line}
    assert "  1 overdue, by up to 1 min 3" in lines["late"]
    assert "  due in 2 h" in lines["later"]
    assert "  4 min 1" in lines["ready"]
    assert "overdue" not in lines["prompt"] + lines["later"] + lines["ready"]


async def test_the_relays_say_how_their_topics_fare_and_since_when(conn: Conn, outrider: Outrider) -> None:
    async def lines() -> list[str]:
        return (await outrider("outbox", "status")).out.splitlines()

    facts = [
        RelayStatus("jobs", "misconfigured", 60, "NOT_FOUND: no topic"),
        RelayStatus("results", "publishing", 60, None),
        RelayStatus("maintenance", "maintaining", 60, None),
    ]
    await report(conn, "h:1", facts)
    shown = [line.split(maxsplit=2) for line in (await lines())[-3:]]
    assert [(relay, topic) for relay, topic, _ in shown] == [
        ("h:1", "jobs"),
        ("h:1", "maintenance"),
        ("h:1", "results"),
    ]
    assert shown[0][2].startswith("breaker open  20")
    assert shown[0][2].rstrip().endswith("NOT_FOUND: no topic")
    assert shown[2][2].startswith("publishing ")
    said = (await outrider("outbox", "status", "--json")).json["relays"]
    assert (said[0]["topic"], said[0]["state"], said[0]["live"]) == ("jobs", "misconfigured", True)
    await conn.execute("UPDATE relay_status SET updated_at = '2026-01-02T03:04:05Z'")
    assert (await lines())[-1] == "no relay has reported since 2026-01-02 03:04:05Z"


async def test_quarantined_events_are_shown_with_their_reasons_the_latest_first(
    conn: Conn, outrider: Outrider
) -> None:
    for name, reason in (("first", "too large"), ("second", "no data")):
        await conn.execute(
            "INSERT INTO outbox_events (topic, payload, attributes, quarantined_at, reason)"
            " VALUES ('results', '', jsonb_build_object('message_id', %s::text, 'job_id', 'j'), now(), %s)",
            [name, reason],
        )
    shown = (await outrider("outbox", "status", "--json")).json["quarantined"]
    assert [(each["message_id"], each["job_id"], each["reason"]) for each in shown] == [
        ("second", "j", "no data"),
        ("first", "j", "too large"),
    ]
    lines = (await outrider("outbox", "status")).out.splitlines()
    assert [line.split()[-2:] for line in lines[-2:]] == [["no", "data"], ["too", "large"]]


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0.2, "0 s"),
        (35, "35 s"),
        (59.7, "1 min"),
        (250, "4 min 10 s"),
        (3600, "1 h"),
        (3605, "1 h"),
        (90_061, "1 d 1 h"),
        (86_460, "1 d"),
    ],
)
def test_a_duration_is_shown_by_its_two_largest_units(seconds: float, shown: str) -> None:
    assert span(seconds) == shown
