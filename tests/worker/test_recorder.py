"""Outcomes reach the database once, whatever breaks on the way, and no bad one costs its neighbours."""

from __future__ import annotations

import asyncio
from typing import Any

import psycopg
import pytest

from engine.errors import DatabaseUnavailable
from engine.model import Cancelled, Completed, Failed, JobState, Reason, Released, Retry, Snoozed, Unreadable
from ops.waiting import until
from tests.support.database import counters, fetchone, make_too_slow, trail
from tests.support.wire_proxy import Moment, wire_proxy
from tests.support.worker_harness import WorkerHarness, attempts, dropped, known, preset
from worker import recorder
from worker.attempt_metrics import AttemptMetrics
from worker.effects import EffectsCommit
from worker.outcome import substitutes

HOSTILE = {
    "nan": float("nan"),
    "nul": "a\0b",
    "surrogate": "\ud800",
    "large": "x" * (5 << 20),
    "bytes": b"",
    "number": 2**70,
}


async def test_output_that_cannot_be_stored_fails_its_job_and_its_neighbours_complete(
    harness: WorkerHarness,
) -> None:
    ready = asyncio.Event()

    @preset()
    async def answer(job: Any, _run: Any) -> Any:
        await ready.wait()  # all of them end in one group
        return HOSTILE.get(job.content, job.content)

    ids = [await harness.enqueue(content=name) for name in (*HOSTILE, "good", "better")]
    async with harness.worker(answer):
        await harness.row("SELECT 1 FROM outbox HAVING bool_and(status = 'leased')")
        ready.set()
        *bad, good, better = await harness.ended(*ids)
    assert [each.state for each in bad] == [JobState.FAILED] * len(HOSTILE)
    assert all(each.error and "cannot be stored" in each.error["message"] for each in bad)
    assert (good.output, better.output) == ('"good"', '"better"')


async def test_an_outcome_that_cannot_be_counted_costs_its_neighbours_nothing(
    harness: WorkerHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    ready = asyncio.Event()

    @preset("uncounted")
    async def answer(_job: Any, _run: Any) -> None:
        await ready.wait()  # all of them end in one group

    ids = [await harness.enqueue("uncounted") for _ in range(3)]
    before = attempts("uncounted", "completed")
    count, counted = AttemptMetrics.recorded, list[Any]()

    def once(self: AttemptMetrics, execution: Any, outcome: Any) -> None:
        counted.append(execution)
        if len(counted) == 1:
            raise ZeroDivisionError
        count(self, execution, outcome)

    monkeypatch.setattr(AttemptMetrics, "recorded", once)
    async with harness.worker(answer) as worker:
        await harness.row("SELECT 1 FROM outbox HAVING bool_and(status = 'leased')")
        ready.set()
        assert [job.state for job in await harness.ended(*ids)] == [JobState.COMPLETED] * 3
        await until(lambda: known(not worker.consumer._slots.held))
    assert attempts("uncounted", "completed") == before + 2


async def test_output_that_postgresql_alone_refuses_fails_its_job_only(harness: WorkerHarness) -> None:
    # A numeric in a trigger stands for whatever a deployment adds to its tables.
    await harness.conn.execute(
        "CREATE FUNCTION judge() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        " PERFORM (new.output #>> '{}')::numeric; RETURN new; END $$;"
        "CREATE TRIGGER judge BEFORE INSERT ON job_results FOR EACH ROW WHEN (new.state = 'COMPLETED')"
        " EXECUTE FUNCTION judge()"
    )
    ready = asyncio.Event()

    @preset()
    async def answer(job: Any, _run: Any) -> Any:
        await ready.wait()
        return job.content

    ids = [await harness.enqueue(content=content) for content in ("1", "two", "3", "4")]
    async with harness.worker(answer):
        await harness.row("SELECT 1 FROM outbox HAVING bool_and(status = 'leased')")
        ready.set()
        states = [each.state for each in await harness.ended(*ids)]
    assert states == ["COMPLETED", "FAILED", "COMPLETED", "COMPLETED"]


@pytest.mark.parametrize("moment", ["before it is sent", "after its commit"])
@pytest.mark.parametrize("end", ["result", "put back"])
async def test_a_connection_cut_at_a_write_records_it_once_and_counts_nothing_lost(
    harness: WorkerHarness, moment: Moment, end: str
) -> None:
    name = f"cut-{end[:3]}-{moment[:3]}"
    free = asyncio.Event()

    @preset(name)
    async def answer(_job: Any, run: Any) -> Any:
        await free.wait()
        return Retry(0, "again") if end == "put back" and run.attempt == 1 else "done"

    async with wire_proxy(harness.url) as proxy, harness.worker(answer, url=proxy.url):
        job_id = await harness.enqueue(name)
        await harness.row("SELECT 1 FROM outbox WHERE status = 'leased'")
        proxy.arm("record", moment)
        free.set()
        await harness.row("SELECT 1 FROM job_state_records WHERE seq = 2")
        await until(lambda: known(attempts(name, "completed" if end == "result" else "retry") == 1))
        async with harness.maintenance():
            [job] = await harness.ended(job_id)
    assert proxy.cuts == 1
    assert job.state is JobState.COMPLETED
    assert await counters(harness.conn, job_id) == ((1, 0, 0) if end == "result" else (2, 1, 0))
    assert dropped(name) == 0


@pytest.mark.parametrize("effects", [False, True])
async def test_a_result_whose_reply_was_lost_counts_though_the_lease_has_run_out_meanwhile(
    harness: WorkerHarness, monkeypatch: pytest.MonkeyPatch, effects: bool
) -> None:
    name = f"late-{effects:d}"
    free = asyncio.Event()

    async def nothing(_conn: Any) -> None: ...

    @preset(name)
    async def answer(_job: Any, _run: Any) -> Any:
        await free.wait()
        return Completed("done", nothing) if effects else "done"

    writer, step = (EffectsCommit, "_commit") if effects else (recorder, "write")
    write = getattr(writer, step)

    async def late(*args: Any, **kwargs: Any) -> Any:
        await write(*args, **kwargs)
        worker.consumer._recorder._worker_id = lambda: None
        raise DatabaseUnavailable("the reply was lost")

    async with harness.worker(answer) as worker:
        job_id = await harness.enqueue(name)
        await harness.row("SELECT 1 FROM outbox WHERE status = 'leased'")
        monkeypatch.setattr(writer, step, late)
        free.set()
        [job] = await harness.ended(job_id)
        await until(lambda: known(attempts(name, "completed") == 1))
    assert job.state is JobState.COMPLETED
    assert (await counters(harness.conn, job_id)) == (1, 0, 0)


async def test_a_write_that_was_interrupted_is_sent_again(harness: WorkerHarness) -> None:
    free = asyncio.Event()

    @preset()
    async def answer(_job: Any, _run: Any) -> None:
        await free.wait()

    job_id = await harness.enqueue()
    async with harness.worker(answer):
        await harness.row("SELECT 1 FROM outbox WHERE status = 'leased'")
        other = await psycopg.AsyncConnection.connect(harness.url)
        async with other:
            await other.execute("SELECT 1 FROM outbox FOR UPDATE")
            free.set()
            (pid,) = await harness.row(
                "SELECT pid FROM pg_stat_activity WHERE datname = current_database()"
                " AND application_name = 'outrider record' AND wait_event_type = 'Lock'"
            )
            await harness.conn.execute("SELECT pg_cancel_backend(%s)", [pid])
        [job] = await harness.ended(job_id)
    assert job.state is JobState.COMPLETED
    assert await counters(harness.conn, job_id) == (1, 0, 0)


async def test_a_write_that_is_refused_is_held_until_it_is_allowed(harness: WorkerHarness) -> None:
    @preset("held")
    async def answer(_job: Any, _run: Any) -> None: ...

    await harness.conn.execute("ALTER TABLE job_results RENAME TO elsewhere")
    job_id = await harness.enqueue("held")
    async with harness.worker(answer):
        await harness.row(
            "SELECT 1 FROM pg_stat_database WHERE datname = current_database() AND xact_rollback > 0"
        )
        await harness.conn.execute("ALTER TABLE elsewhere RENAME TO job_results")
        [job] = await harness.ended(job_id)
    assert (job.state, dropped("held")) == (JobState.COMPLETED, 0)
    assert await counters(harness.conn, job_id) == (1, 0, 0)


async def test_an_outcome_that_postgresql_refuses_fails_its_job_and_its_group_is_written_without_it(
    harness: WorkerHarness,
) -> None:
    """Results and jobs put back are written together or not at all: split, the group starts from nothing."""
    await harness.conn.execute(
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE check_violation; END $$;"
        "CREATE TRIGGER refuse BEFORE UPDATE ON outbox FOR EACH ROW WHEN (new.status = 'waiting')"
        " EXECUTE FUNCTION refuse()"
    )
    free = asyncio.Event()

    @preset("mixed")
    async def answer(job: Any, _run: Any) -> Any:
        await free.wait()
        return Retry(0, "again") if job.content == "again" else "done"

    ids = [await harness.enqueue("mixed", content=content) for content in ("one", "again", "two")]
    async with harness.worker(answer):
        await harness.row("SELECT 1 FROM outbox HAVING bool_and(status = 'leased')")
        free.set()
        states = [job.state for job in await harness.ended(*ids)]
    assert states == [JobState.COMPLETED, JobState.FAILED, JobState.COMPLETED]
    assert dropped("mixed") == 0


async def test_an_error_whose_text_postgresql_refuses_is_tried_again_all_the_same(
    harness: WorkerHarness,
) -> None:
    await harness.conn.execute(
        "ALTER TABLE job_state_records ADD CHECK (coalesce(metadata ->> 'error', '') NOT LIKE '%unspeakable%')"
    )

    @preset()
    async def answer(_job: Any, run: Any) -> Any:
        if run.attempt == 1:
            raise ValueError("unspeakable")
        return "done"

    job_id = await harness.enqueue()
    async with harness.worker(answer), harness.maintenance():
        [job] = await harness.ended(job_id)
    assert (job.state, await counters(harness.conn, job_id)) == (JobState.COMPLETED, (2, 1, 0))
    assert await fetchone(
        harness.conn, "SELECT metadata #>> '{error,message}' FROM job_state_records WHERE reason = 'error'"
    ) == ("the error cannot be stored: CheckViolation",)


async def test_a_retry_that_its_owner_cancelled_meanwhile_is_counted_as_cancelled(
    harness: WorkerHarness,
) -> None:
    free = asyncio.Event()

    @preset("unwanted")
    async def answer(_job: Any, _run: Any) -> Retry:
        await free.wait()
        return Retry(60, "later")

    job_id = await harness.enqueue("unwanted")
    async with harness.worker(answer, lease=30):
        await harness.row("SELECT 1 FROM outbox WHERE status = 'leased'")
        await harness.conn.execute("UPDATE outbox SET cancel_requested = true")
        free.set()
        [job] = await harness.ended(job_id)
        await until(lambda: known(attempts("unwanted", "cancelled") == 1))
    assert job.state is JobState.CANCELLED
    assert [reason for *_, reason in await trail(harness.conn, job_id)][-1] == "cancelled"


@pytest.mark.parametrize("publish_results", [False, True])
async def test_with_pubsub_each_result_that_a_worker_writes_is_to_be_published(
    harness: WorkerHarness, publish_results: bool
) -> None:
    free = asyncio.Event()

    async def nothing(_conn: Any) -> None: ...

    endings = {
        "completed": ("done", ["results"]),
        "with effects": (Completed("done", nothing), ["results"]),
        "failed": (Failed("no"), ["dead-letters", "results"]),
        "unwanted": (Retry(60, "later"), ["results"]),
    }

    @preset()
    async def answer(job: Any, _run: Any) -> Any:
        await free.wait()
        return endings[job.content][0]

    ids = {await harness.enqueue(content=name): name for name in endings}
    async with harness.worker(answer, publish_results=publish_results):
        await harness.row("SELECT 1 FROM outbox HAVING bool_and(status = 'leased')")
        await harness.conn.execute(
            "UPDATE outbox SET cancel_requested = true"
            " WHERE job_id = (SELECT id FROM jobs WHERE content = 'unwanted')"
        )
        free.set()
        await harness.ended(*ids)
    events = await harness.conn.execute(
        "SELECT (attributes ->> 'job_id')::uuid, array_agg(topic ORDER BY topic) FROM outbox_events GROUP BY 1"
    )
    published = {ids[job_id]: topics for job_id, topics in await events.fetchall()}
    assert published == ({name: topics for name, (_, topics) in endings.items()} if publish_results else {})


@pytest.mark.parametrize(
    ("outcome", "kinds"),
    [
        (Completed(1), [Failed, Failed]),
        (Retry(3, "e"), [Retry, Failed]),
        (Failed("e"), [Failed]),
        (Unreadable("e"), [Unreadable]),
        (Snoozed(3), []),
        (Released(Reason.SHUTDOWN), []),
        (Cancelled(), []),
    ],
)
def test_only_what_an_author_s_data_may_have_caused_is_written_otherwise(outcome: Any, kinds: Any) -> None:
    assert [type(each) for each in substitutes(outcome, ValueError("fault"))] == kinds


@pytest.mark.parametrize("bad", [False, True], ids=["all good", "one that cannot be stored"])
async def test_a_database_too_slow_for_a_whole_group_records_smaller_portions(
    harness: WorkerHarness, bad: bool
) -> None:
    """A group that hits its deadline is rolled back: with a fixed size all its attempts would be lost."""
    await harness.conn.execute(
        "CREATE FUNCTION number() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        " PERFORM (new.output #>> '{}')::numeric; RETURN new; END $$;"
        "CREATE TRIGGER number BEFORE INSERT ON job_results FOR EACH ROW WHEN (new.state = 'COMPLETED')"
        " EXECUTE FUNCTION number()"
    )
    await make_too_slow(harness.conn, "INSERT ON job_results", 25)
    ready = asyncio.Event()

    @preset()
    async def answer(job: Any, _run: Any) -> Any:
        await ready.wait()  # all of them end in one group
        return job.content

    ids = [await harness.enqueue(content="bad" if bad and n == 77 else str(n)) for n in range(100)]
    async with harness.worker(answer, slots=100, lease=20):
        await harness.row("SELECT 1 FROM outbox HAVING bool_and(status = 'leased')")
        ready.set()
        ended = await harness.ended(*ids)
    failed = [n for n, job in enumerate(ended) if job.state is not JobState.COMPLETED]
    assert failed == ([77] if bad else [])
    assert {job.attempt for job in ended} == {1}
