"""`outrider outbox`: what waits, what is overdue, who should see to it, and what to do with what cannot leave."""

from __future__ import annotations

import hashlib
import socket
from datetime import UTC, datetime, timedelta

import pytest

from engine.moves.enqueue import enqueue
from engine.pubsub.messages import Message
from engine.tables import events
from engine.tables.operator_actions import OperatorAction, latest
from engine.tables.relay_status import RelayStatus, report
from ops.cli.output import span
from tests.ops.cli.conftest import Outrider
from tests.support.database import Conn, fetchone, new

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


async def held(conn: Conn, quarantined: bool = True, failures: int = 0) -> int:
    (id_,) = await fetchone(
        conn,
        "INSERT INTO outbox_events (topic, payload, attributes, quarantined_at, failures, reason) VALUES"
        ' (\'dead-letters\', \'abc\', \'{"message_id": "m", "job_id": "j"}\','
        " CASE WHEN %s THEN now() END, %s, 'too large') RETURNING id",
        quarantined,
        failures,
    )
    return int(id_)


async def actions(conn: Conn) -> list[OperatorAction]:
    return await latest(conn, 10)


async def test_a_discarded_event_is_gone_and_who_did_it_and_why_is_kept(
    conn: Conn, outrider: Outrider
) -> None:
    one, two = await held(conn), await held(conn, quarantined=False, failures=3)
    said = await outrider("outbox", "discard", one, two, "--reason", "nobody reads it", "--as", "ann")
    assert (said.code, said.out) == (0, "2 were discarded\n")
    assert await fetchone(conn, "SELECT count(*) FROM outbox_events") == (0,)
    (role,) = await fetchone(conn, "SELECT session_user::text")
    second, first = await actions(conn)
    assert (first.actor, first.role, first.action, first.reason) == (
        "ann",
        role,
        "outbox.discard",
        "nobody reads it",
    )
    assert (first.target_kind, first.target, second.target) == ("event", str(one), str(two))
    assert first.after is None
    assert first.before is not None
    assert (first.before["bytes"], first.before["job_id"], first.before["reason"]) == (3, "j", "too large")
    assert first.before["sha256"] == hashlib.sha256(b"abc").hexdigest()


async def test_a_republished_event_is_as_new(conn: Conn, outrider: Outrider) -> None:
    event = await held(conn, failures=9)
    said = await outrider("outbox", "republish", event, "--reason", "the schema is mended", "--json")
    assert (said.code, said.json) == (0, {"republished": [event], "left": []})
    [found] = await events.reserve(conn, "dead-letters", low=0, limit=9, max_bytes=1000, seconds=9)
    assert (found.id, found.failures, found.message.data) == (event, 0, b"abc")
    [action] = await actions(conn)
    assert action.actor.endswith(f"@{socket.gethostname()}")
    assert action.before is not None
    assert action.after is not None
    assert (action.before["quarantined_at"] is None, action.after["quarantined_at"]) == (False, None)


@pytest.mark.parametrize("verb", ["discard", "republish"])
async def test_only_events_that_are_held_are_acted_on_and_the_others_are_named(
    conn: Conn, outrider: Outrider, verb: str
) -> None:
    event, pending = await held(conn), await held(conn, quarantined=False)
    said = await outrider("outbox", verb, event, pending, 987, event, "--reason", "x")
    assert said.code == 1
    assert said.out.startswith("1 was ")
    assert f"event {pending} is neither" in said.err
    assert "event 987 is neither" in said.err
    assert [each.target for each in await actions(conn)] == [str(event)]


@pytest.mark.parametrize(
    "wrong",
    [
        ["1"],
        ["1", "--reason", " "],
        ["1", "--reason", "x" * 1001],
        ["x", "--reason", "y"],
        ["0", "--reason", "y"],
        [str(2**63), "--reason", "y"],
        ["1", "--reason", "y", "--as", "\ud800"],
        ["--reason", "y"],
    ],
)
@pytest.mark.parametrize("verb", ["discard", "republish"])
async def test_wrong_usage_changes_nothing(
    conn: Conn, outrider: Outrider, verb: str, wrong: list[str]
) -> None:
    await held(conn)
    assert (await outrider("outbox", verb, *wrong)).code == 2
    assert await actions(conn) == []


async def test_events_that_cannot_be_published_are_listed_with_bytes_age_and_failures(
    conn: Conn, outrider: Outrider
) -> None:
    one, two = await held(conn), await held(conn, quarantined=False, failures=3)
    found = (await outrider("outbox", "status", "--json")).json
    [quarantined], [set_back] = found["quarantined"], found["set_back"]
    assert (quarantined["id"], quarantined["topic"], quarantined["bytes"]) == (one, "dead-letters", 3)
    assert (set_back["id"], set_back["failures"], set_back["reason"]) == (two, 3, "too large")
    assert 0 <= set_back["age_seconds"] < 60
    assert [(each["events"], each["set_back"], each["quarantined"]) for each in found["events"]] == [
        (1, 1, 1)
    ]
    assert (await outrider("outbox", "status")).code == 0


@pytest.mark.parametrize("verb", ["discard", "republish"])
async def test_an_event_that_nothing_else_shows_to_be_at_fault_is_listed_and_can_be_acted_on(
    conn: Conn, outrider: Outrider, verb: str
) -> None:
    """The only event of its topic fails: the broker may be to blame, or the event."""
    await events.write(conn, "results", Message(b"{}", {"message_id": "m"}))
    [event] = await events.reserve(conn, "results", low=0, limit=9, max_bytes=1000, seconds=9)
    assert (await outrider("outbox", verb, event.id, "--reason", "x")).code == 1
    await events.set_back(conn, event, seconds=9, failures=0, reason="INTERNAL: no")
    [shown] = (await outrider("outbox", "status", "--json")).json["set_back"]
    assert (shown["id"], shown["failures"], shown["reason"]) == (event.id, 0, "INTERNAL: no")
    assert (await outrider("outbox", verb, event.id, "--reason", "x")).code == 0
