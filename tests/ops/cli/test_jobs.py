from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest

from engine.model import JobState, Reason
from engine.moves import Ending, finish
from engine.moves.enqueue import enqueue
from tests.engine.queries.test_long_history import snooze
from tests.ops.cli.conftest import Outrider
from tests.support.database import Conn, fetchone, new, started, worker

pytestmark = pytest.mark.usefixtures("configured")

ERROR = '{"type": "ValueError", "message": "[red]no\\u001b[31m such page[/red]", "attempt": 1}'


async def dead(conn: Conn, *, preset: str = "p", fingerprint: str = "f1") -> UUID:
    """A job that failed for good."""
    mine = await worker(conn)
    attempt = await started(conn, mine)
    ending = Ending(
        attempt.job.id, attempt.number, JobState.FAILED, Reason.FAILED, None, ERROR, fingerprint, "{}", 1
    )
    await finish(conn, mine, [ending])
    await conn.execute("UPDATE jobs SET preset = %s WHERE id = %s", [preset, attempt.job.id])
    return attempt.job.id


async def test_the_list_shows_the_newest_first_and_filters(conn: Conn, outrider: Outrider) -> None:
    first = await dead(conn)
    second, third = await enqueue(conn, new(user_id="bob")), await enqueue(conn, new())
    listed = (await outrider("jobs", "list", "--json")).json
    assert [job["job_id"] for job in listed] == [str(third.id), str(second.id), str(first)]
    assert "content" not in listed[0]
    for arguments, found in (
        (["--owner", "bob"], [second.id]),
        (["--status", "failed"], [first]),
        (["--status", "pending", "--preset", "p", "--limit", "1"], [third.id]),
        (["--preset", "other"], []),
    ):
        said = await outrider("jobs", "list", "--json", *arguments)
        assert [job["job_id"] for job in said.json] == [str(job) for job in found]
    assert (await outrider("jobs", "list", "--preset", "other")).out == "no jobs\n"


async def test_a_table_shows_what_users_sent_as_it_is_but_for_control_codes(
    conn: Conn, outrider: Outrider
) -> None:
    job = await dead(conn)
    for arguments in (("jobs", "list"), ("jobs", "show", job), ("dead-letters", "list"), ("explain", job)):
        said = await outrider(*arguments)
        assert said.code == 0
        assert "\x1b" not in said.out
        assert "[red]no" in said.out
        assert "[31m such page[/red]" in said.out


async def test_show_gives_the_job_with_its_history(conn: Conn, outrider: Outrider) -> None:
    job = await dead(conn)
    shown = (await outrider("jobs", "show", job, "--json")).json
    assert (shown["status"], shown["content"], shown["owner"]) == ("failed", "text", "ann")
    assert [(step["from_status"], step["to_status"]) for step in shown["history"]] == [
        (None, "pending"),
        ("pending", "processing"),
        ("processing", "failed"),
    ]
    assert "processing  failed" in (await outrider("jobs", "show", job)).out


async def test_show_gives_the_latest_of_a_long_history_and_says_how_much_it_leaves_out(
    conn: Conn, outrider: Outrider
) -> None:
    job = (await enqueue(conn, new())).id
    await snooze(conn, job, 60)
    for arguments, shown in (([], 100), (["--history", "2"], 2), (["--history", "1000"], 121)):
        said = (await outrider("jobs", "show", job, "--json", *arguments)).json
        assert [step["seq"] for step in said["history"]] == [*range(121 - shown, 121)]
        assert said["earlier_transitions"] == 121 - shown
        out = (await outrider("jobs", "show", job, *arguments)).out
        left_out = f"{121 - shown} earlier transitions are not shown; --history shows more\n"
        assert out.endswith(left_out) == (shown < 121)


async def test_show_names_the_worker_that_runs_the_job_while_one_does(conn: Conn, outrider: Outrider) -> None:
    async def shown() -> tuple[Any, str | None]:
        said = (await outrider("jobs", "show", job, "--json")).json["worker"]
        lines = (await outrider("jobs", "show", job)).out.splitlines()
        return said, next((line for line in lines if line.startswith("worker ")), None)

    ended = await dead(conn)
    mine = await worker(conn)
    job = (await started(conn, mine)).job.id
    said, line = await shown()
    assert said == {"id": mine, "name": "w", "live": True}
    assert line is not None
    assert line.split(maxsplit=1)[1].strip() == f"w ({mine})"
    await conn.execute("DELETE FROM workers")
    said, line = await shown()
    assert said == {"id": mine, "name": None, "live": False}
    assert f"{mine}, which is gone" in str(line)
    job = ended
    assert await shown() == (None, None)


async def test_an_unknown_job_fails_and_a_malformed_id_is_wrong_usage(outrider: Outrider) -> None:
    missing = uuid4()
    for arguments in (("jobs", "show"), ("jobs", "cancel"), ("jobs", "retry"), ("explain",)):
        said = await outrider(*arguments, missing)
        assert (said.code, said.out, said.err) == (1, "", f"outrider: no job {missing}\n")
        assert (await outrider(*arguments, "17")).code == 2


async def test_cancel_and_retry_move_the_job_and_refuse_what_its_state_forbids(
    conn: Conn, outrider: Outrider
) -> None:
    job = (await enqueue(conn, new())).id
    refused = await outrider("jobs", "retry", job)
    assert (refused.code, refused.err) == (1, "outrider: a job that is pending cannot be retried\n")
    assert (await outrider("jobs", "cancel", job)).out == "cancelled\n"
    assert (await outrider("jobs", "cancel", job)).out == "was cancelled before\n"
    assert (await outrider("jobs", "retry", job, "--json")).json == {"job_id": str(job), "status": "pending"}
    attempt = await started(conn, await worker(conn))
    asked = await outrider("jobs", "cancel", attempt.job.id, "--json")
    assert asked.json == {"job_id": str(attempt.job.id), "status": "processing"}


async def test_a_cancellation_is_published_as_every_result_is(
    conn: Conn, outrider: Outrider, settings: Callable[..., None]
) -> None:
    settings(transport="pubsub", pubsub_project="test")
    job = (await enqueue(conn, new())).id
    assert (await outrider("jobs", "cancel", job)).out == "cancelled\n"
    assert await fetchone(conn, "SELECT array_agg(topic) FROM outbox_events") == (["results"],)


async def test_explain_gives_summary_facts_and_estimate(conn: Conn, outrider: Outrider) -> None:
    job = (await enqueue(conn, new(run_at=datetime.now(UTC) + timedelta(hours=1)))).id
    said = (await outrider("explain", job, "--json")).json
    assert said["status"] == "pending"
    assert said["facts"][0] == {"code": "due_later", "detail": said["summary"]}
    assert 3500 < said["estimate_seconds"] <= 3600
    assert (await outrider("explain", job)).out.startswith(f"pending: {said['summary']}\n  ")


async def test_dead_letters_are_filtered_and_a_dry_run_leaves_them(conn: Conn, outrider: Outrider) -> None:
    jobs = [str(await dead(conn)), str(await dead(conn, preset="q")), str(await dead(conn, fingerprint="f2"))]
    for arguments, found in (
        ([], jobs),
        (["--preset", "q"], jobs[1:2]),
        (["--fingerprint", "f2"], jobs[2:]),
        (["--limit", "2"], jobs[:2]),
    ):
        listed = (await outrider("dead-letters", "list", "--json", *arguments)).json
        assert [each["job_id"] for each in listed] == found
        dry = (await outrider("dead-letters", "redrive", "--dry-run", "--json", *arguments)).json
        assert dry == {"dry_run": True, "redriven": len(found), "job_ids": found}
    assert await fetchone(conn, "SELECT count(*) FROM job_results WHERE state = 'FAILED'") == (3,)


async def test_a_redrive_puts_back_what_it_names_at_the_rate_asked_for(
    conn: Conn, outrider: Outrider
) -> None:
    jobs = [await dead(conn, fingerprint=name) for name in ("f1", "f1", "f1", "f1", "f2")]
    before = time.monotonic()
    said = await outrider("dead-letters", "redrive", "--fingerprint", "f1", "--limit", 3, "--rate", 10)
    assert (said.code, said.out, said.err) == (0, "3 were redriven\n", "more may be left: --limit is 3\n")
    assert time.monotonic() - before >= 0.2
    rows = await (await conn.execute("SELECT job_id FROM outbox ORDER BY job_id")).fetchall()
    assert [job for (job,) in rows] == jobs[:3]


async def test_a_database_without_the_schema_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, empty_database_url: str, outrider: Outrider
) -> None:
    monkeypatch.setenv("OUTRIDER_DATABASE_URL", empty_database_url)
    said = await outrider("jobs", "list")
    assert said.code == 1
    assert said.err.endswith("run `outrider migrate up`\n")


async def test_a_database_that_does_not_answer_fails_in_one_line(
    monkeypatch: pytest.MonkeyPatch, outrider: Outrider
) -> None:
    monkeypatch.setenv("OUTRIDER_DATABASE_URL", "postgresql://127.0.0.1:1/x")
    said = await outrider("outbox", "status")
    assert said.code == 1
    assert said.err.startswith("outrider: ")
    assert "Traceback" not in said.err


async def test_no_database_at_all_is_wrong_usage(monkeypatch: pytest.MonkeyPatch, outrider: Outrider) -> None:
    monkeypatch.delenv("OUTRIDER_DATABASE_URL")
    said = await outrider("jobs", "list")
    assert said.code == 2
    assert said.err.startswith("outrider: OUTRIDER_DATABASE_URL is not set, and no `outrider up` runs in ")
