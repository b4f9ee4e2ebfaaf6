"""A worker keeps its attempts running: none is lost, none is charged for what it did not do."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

import psycopg
import pytest

from engine.consumer import Consumer
from engine.errors import DatabaseUnavailable, PermanentError
from engine.model import Attempt, Completed, JobState, Retry, Snoozed
from engine.moves import cancel
from engine.pipeline import Metadata
from engine.source import PostgresSource
from tests.engine.cutter import cutter
from tests.engine.scene import WAIT, Scene, Worker, known, preset, until
from tests.helpers import counters, fetchone, trail

LEASED = "SELECT 1 FROM outbox WHERE status = 'leased'"


async def test_a_job_runs_and_its_history_tells_it(scene: Scene) -> None:
    @preset()
    async def shout(job: Any, run: Any) -> dict[str, Any]:
        return {"said": job.content.upper(), "attempt": run.attempt}

    job_id = await scene.enqueue(content="hello")
    async with scene.worker(shout):
        [job] = await scene.ended(job_id)
    assert (job.state, job.output) == (JobState.COMPLETED, '{"said":"HELLO","attempt":1}')
    assert [step[1:] for step in await trail(scene.conn, job_id)] == [
        (None, "PENDING", 0, "enqueued"),
        ("PENDING", "PROCESSING", 1, "claimed"),
        ("PROCESSING", "COMPLETED", 1, "completed"),
    ]


async def test_a_time_out_is_an_error_for_every_kind_of_pipeline(scene: Scene) -> None:
    let_go = threading.Event()

    @preset("async")
    async def patient(_job: Any, _run: Any) -> None:
        await asyncio.Event().wait()

    @preset("plain")
    def busy(_job: Any, _run: Any) -> None:
        assert let_go.wait(WAIT)

    @preset("stubborn")
    async def stubborn(_job: Any, _run: Any) -> None:
        while not let_go.is_set():
            try:
                await asyncio.to_thread(let_go.wait, WAIT)
            except asyncio.CancelledError:
                continue

    names = ("async", "plain", "stubborn")
    ids = [await scene.enqueue(name, max_attempts=1, timeout_seconds=1) for name in names]
    async with scene.worker(patient, busy, stubborn):
        ended = await scene.ended(*ids)
        let_go.set()
    for job in ended:
        assert job.error
        assert (job.state, job.error["type"]) == (JobState.FAILED, "TimeoutError")
        assert await counters(scene.conn, job.job_id) == (1, 1, 0)


async def test_outcomes_spend_what_they_should(scene: Scene) -> None:
    @preset("errs")
    def errs(_job: Any, _run: Any) -> None:
        raise ValueError("each time")

    @preset("asks")
    async def asks(_job: Any, run: Any) -> Any:
        return Retry(0, "not yet") if run.attempt < 3 else "at last"

    @preset("sleeps")
    async def sleeps(_job: Any, run: Any) -> Any:
        return Snoozed(0) if run.attempt < 6 else "awake"

    @preset("never")
    def never(_job: Any, _run: Any) -> None:
        raise PermanentError("no use")

    asked = [("errs", 3, 3), ("asks", 3, 2), ("sleeps", 6, 0), ("never", 1, 1)]
    ids = [await scene.enqueue(name) for name, *_ in asked]
    own = await scene.enqueue("errs", max_attempts=5)
    async with scene.worker(errs, asks, sleeps, never), scene.maintenance():
        ended = await scene.ended(*ids, own)
    assert [job.state for job in ended] == ["FAILED", "COMPLETED", "COMPLETED", "FAILED", "FAILED"]
    assert [await counters(scene.conn, job_id) for job_id in ids] == [(n, e, 0) for _, n, e in asked]
    assert await counters(scene.conn, own) == (5, 5, 0)


@pytest.mark.parametrize(
    "error", [SystemExit(), KeyboardInterrupt(), GeneratorExit(), asyncio.CancelledError()]
)
@pytest.mark.parametrize("kind", ["async", "plain"])
async def test_an_exception_that_would_end_a_process_costs_its_own_job(
    scene: Scene, error: BaseException, kind: str
) -> None:
    let_go = asyncio.Event()

    @preset("neighbour")
    async def neighbour(_job: Any, _run: Any) -> None:
        await let_go.wait()

    async def on_the_loop(_job: Any, _run: Any) -> None:
        raise error

    def in_a_thread(_job: Any, _run: Any) -> None:
        raise error

    bad = preset("bad", max_attempts=1)(on_the_loop if kind == "async" else in_a_thread)
    beside = await scene.enqueue("neighbour")
    async with scene.worker(neighbour, bad):
        [job] = await scene.ended(await scene.enqueue("bad"))
        let_go.set()
        [unhurt] = await scene.ended(beside)
    assert job.error
    assert (job.state, job.error["type"]) == (JobState.FAILED, type(error).__name__)
    assert unhurt.state is JobState.COMPLETED


class Speed(Metadata):
    speed: int


@pytest.mark.parametrize("stored", ['{"speed": "fast"}', '{"sped": 1}', '{"speed": 1e131071}'])
async def test_stored_metadata_that_cannot_be_used_fails_its_job_only(scene: Scene, stored: str) -> None:
    @preset(metadata=Speed)
    def run(job: Any, _run: Any) -> Any:
        return job.metadata.speed

    good = await scene.enqueue(metadata={"speed": 3})
    bad, _ = await fetchone(
        scene.conn, "SELECT outrider_enqueue('ann', 'p', 'text', %s::text::jsonb), 1", stored
    )
    async with scene.worker(run):
        first, second = await scene.ended(good, bad)
    assert (first.state, first.output) == (JobState.COMPLETED, "3")
    assert second.state is JobState.FAILED


@pytest.mark.parametrize("kind", ["async", "plain"])
async def test_a_running_attempt_hears_of_its_cancellation_within_a_moment(scene: Scene, kind: str) -> None:
    async def on_the_loop(_job: Any, _run: Any) -> None:
        await asyncio.Event().wait()

    def in_a_thread(_job: Any, run: Any) -> None:
        assert run.cancelled.wait(WAIT)

    pipeline = preset()(on_the_loop if kind == "async" else in_a_thread)
    job_id = await scene.enqueue()
    async with scene.worker(pipeline, lease=60):
        await scene.row(LEASED)
        began = time.monotonic()
        assert await cancel(scene.conn, job_id, "ann") is JobState.PROCESSING
        [job] = await scene.ended(job_id)
        assert time.monotonic() - began < 2  # a beat comes each 20 s
    assert job.state is JobState.CANCELLED


async def test_an_attempt_that_completes_before_it_hears_of_its_cancellation_stays_completed(
    scene: Scene,
) -> None:
    free = asyncio.Event()

    @preset()
    async def wait(_job: Any, _run: Any) -> str:
        await free.wait()
        return "done"

    job_id = await scene.enqueue()
    async with scene.worker(wait, lease=60):
        await scene.row(LEASED)
        await scene.conn.execute("UPDATE outbox SET cancel_requested = true")
        free.set()
        [job] = await scene.ended(job_id)
    assert job.state is JobState.COMPLETED


async def test_a_lost_worker_row_stops_its_attempts_drops_their_outcomes_and_brings_a_new_id(
    scene: Scene,
) -> None:
    ran: list[int] = []
    free = asyncio.Event()

    @preset()
    async def work(_job: Any, run: Any) -> int:
        ran.append(run.attempt)
        if run.attempt == 1:
            await asyncio.Event().wait()
        await free.wait()
        return int(run.attempt)

    job_id = await scene.enqueue()
    async with scene.worker(work, lease=0.6), scene.maintenance(lease=0.1):
        (worker_id,) = await scene.row("SELECT worker_id FROM outbox WHERE status = 'leased'")
        await scene.conn.execute("DELETE FROM workers")
        (new,) = await scene.row("SELECT worker_id FROM outbox WHERE attempt = 2 AND status = 'leased'")
        free.set()
        [job] = await scene.ended(job_id)
    assert new != worker_id
    assert (job.state, job.output, ran) == (JobState.COMPLETED, "2", [1, 2])
    assert await counters(scene.conn, job_id) == (2, 0, 1)


async def test_jobs_whose_claim_had_no_reply_are_released_after_two_beats_and_run(scene: Scene) -> None:
    @preset()
    async def work(_job: Any, run: Any) -> int:
        return int(run.attempt)

    ids = [await scene.enqueue() for _ in range(3)]
    async with cutter(scene.url) as cut:
        cut.arm("claim", "after its commit")
        async with scene.worker(work, lease=0.6, url=cut.url):
            ended = await scene.ended(*ids)
    assert [job.output for job in ended] == ["2"] * 3
    for job_id in ids:
        assert await counters(scene.conn, job_id) == (2, 0, 0)
        assert (await trail(scene.conn, job_id))[2][-1] == "unknown to its worker"


class SlowSource(PostgresSource):
    """A claim whose reply is long on its way."""

    def __init__(self, url: str, presets: tuple[str, ...]) -> None:
        super().__init__(url, presets)
        self.reply = asyncio.Event()

    async def claim(self, worker_id: int, limit: int) -> list[Attempt]:
        found = await super().claim(worker_id, limit)
        if found:
            await self.reply.wait()
        return found


async def test_what_is_still_being_claimed_is_not_taken_for_lost(scene: Scene) -> None:
    @preset()
    async def work(_job: Any, run: Any) -> int:
        return int(run.attempt)

    source = SlowSource(scene.url, ("p",))
    job_id = await scene.enqueue()
    async with scene.worker(work, lease=0.3, source=source):
        (expires,) = await scene.row("SELECT expires_at FROM workers, outbox WHERE status = 'leased'")
        for _ in range(4):
            (expires,) = await scene.row("SELECT expires_at FROM workers WHERE expires_at > %s", expires)
        source.reply.set()
        [job] = await scene.ended(job_id)
    assert job.output == "1"


async def test_a_claim_that_fails_is_tried_again(scene: Scene) -> None:
    errors = [DatabaseUnavailable("gone"), psycopg.DataError("a date after year 10K")]

    class Failing(PostgresSource):
        async def claim(self, worker_id: int, limit: int) -> list[Attempt]:
            if errors:
                raise errors.pop()
            return await super().claim(worker_id, limit)

    @preset()
    async def work(_job: Any, _run: Any) -> None: ...

    job_id = await scene.enqueue()
    async with scene.worker(work, source=Failing(scene.url, ("p",))):
        [job] = await scene.ended(job_id)
    assert job.state is JobState.COMPLETED


async def test_a_plain_function_that_never_returns_keeps_its_slot_and_the_rest_go_on(scene: Scene) -> None:
    let_go = threading.Event()

    @preset()
    def work(job: Any, _run: Any) -> str:
        if job.content == "stuck":
            assert let_go.wait(WAIT)
        return "done"

    stuck = await scene.enqueue(content="stuck", max_attempts=1, timeout_seconds=1)
    async with scene.worker(work, slots=2) as worker:
        await scene.ended(stuck)
        others = [await scene.enqueue() for _ in range(5)]
        assert {job.state for job in await scene.ended(*others)} == {JobState.COMPLETED}
        assert worker.consumer._occupied
        let_go.set()
        await until(lambda: known(not worker.consumer._occupied))


async def test_a_worker_whose_slots_are_all_stuck_for_a_lease_drains_and_says_so(scene: Scene) -> None:
    let_go = threading.Event()

    @preset()
    def stuck(_job: Any, _run: Any) -> None:
        assert let_go.wait(WAIT)

    ids = [await scene.enqueue(max_attempts=1, timeout_seconds=1) for _ in range(2)]
    async with scene.worker(stuck, slots=2, lease=0.3) as worker:
        await scene.ended(*ids)
        assert await worker.ended() == 1
    assert await fetchone(scene.conn, "SELECT count(*) FROM workers") == (0,)
    let_go.set()


async def test_a_loop_blocked_for_less_than_a_lease_loses_nothing(scene: Scene) -> None:
    @preset()
    async def work(job: Any, _run: Any) -> None:
        if job.content == "block":
            time.sleep(0.8)  # noqa: ASYNC251 - this is what it must not do

    first = [await scene.enqueue() for _ in range(20)]
    block = await scene.enqueue(content="block")
    rest = [await scene.enqueue() for _ in range(20)]
    ids = [*first, block, *rest]
    async with scene.worker(work, lease=1.2, slots=7), scene.maintenance(lease=1.2):
        await scene.ended(*ids)
    assert {await counters(scene.conn, job_id) for job_id in ids} == {(1, 0, 0)}


async def test_drain_finishes_what_runs(scene: Scene) -> None:
    free = asyncio.Event()

    @preset()
    async def work(_job: Any, _run: Any) -> None:
        await free.wait()

    job_id = await scene.enqueue()
    async with scene.worker(work) as worker:
        await scene.row(LEASED)
        worker.stop.set()
        await until(lambda: known(worker.consumer._draining))
        waiting = await scene.enqueue()
        free.set()
        assert await worker.ended() == 0
    assert (await scene.view(job_id)).state is JobState.COMPLETED
    assert await counters(scene.conn, waiting) == (0, 0, 0)
    assert await fetchone(scene.conn, "SELECT count(*) FROM workers") == (0,)


async def test_drain_releases_what_does_not_end_in_time_and_spends_nothing(scene: Scene) -> None:
    let_go = threading.Event()

    @preset("async")
    async def patient(_job: Any, _run: Any) -> None:
        await asyncio.Event().wait()

    @preset("plain")
    def busy(_job: Any, _run: Any) -> None:
        assert let_go.wait(WAIT)

    @preset("effects")
    async def late(_job: Any, _run: Any) -> Completed:
        async def effects(conn: Any) -> None:
            await conn.execute("SELECT pg_sleep(30)")

        return Completed(None, effects)

    ids = [await scene.enqueue(name) for name in ("async", "plain", "effects")]
    async with scene.worker(patient, busy, late, drain=0.1) as worker:
        await scene.row("SELECT 1 FROM outbox HAVING bool_and(status = 'leased')")
        await scene.row("SELECT 1 FROM pg_stat_activity WHERE wait_event = 'PgSleep'")
        assert await worker.stopped() == 0
    for job_id in ids:
        assert await counters(scene.conn, job_id) == (1, 0, 0)
        assert (await scene.view(job_id)).state is JobState.PENDING
        assert (await trail(scene.conn, job_id))[-1][-1] == "shutdown"
    let_go.set()


async def test_jobs_outlive_connections_that_are_terminated_under_them(scene: Scene) -> None:
    free = asyncio.Event()

    @preset()
    async def work(_job: Any, run: Any) -> Any:
        await free.wait()

        async def effects(conn: Any) -> None:
            await conn.execute("SELECT 1")

        return Completed(run.attempt, effects)

    ids = [await scene.enqueue() for _ in range(10)]
    async with scene.worker(work, lease=5):
        await scene.row("SELECT 1 FROM outbox HAVING bool_and(status = 'leased')")
        terminate = (
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
        await scene.conn.execute(terminate)
        free.set()
        for _ in range(3):
            await scene.conn.execute(terminate)
        ended = await scene.ended(*ids)
    assert {job.output for job in ended} == {"1"}
    assert {await counters(scene.conn, job_id) for job_id in ids} == {(1, 0, 0)}


async def test_progress_is_shown_while_its_attempt_runs(scene: Scene) -> None:
    free = asyncio.Event()

    @preset()
    async def work(_job: Any, run: Any) -> None:
        run.progress(0.25, "a quarter\0\ud800")
        await free.wait()

    job_id = await scene.enqueue()
    async with scene.worker(work):
        await scene.row("SELECT 1 FROM job_progress")
        job = await scene.view(job_id)
        assert (job.fraction, job.message, job.progress_n) == (0.25, "a quarter?", 1)
        free.set()
        await scene.ended(job_id)
    assert (await scene.view(job_id)).fraction is None


async def test_progress_that_could_not_be_written_is_shown_later(scene: Scene) -> None:
    free = asyncio.Event()

    @preset()
    async def work(_job: Any, run: Any) -> None:
        run.progress(0.5)
        await free.wait()

    await scene.conn.execute("ALTER TABLE job_progress RENAME TO elsewhere")
    job_id = await scene.enqueue()
    async with scene.worker(work):
        await scene.row(
            "SELECT 1 FROM pg_stat_database WHERE datname = current_database() AND xact_rollback > 0"
        )
        await scene.conn.execute("ALTER TABLE elsewhere RENAME TO job_progress")
        await scene.row("SELECT 1 FROM job_progress WHERE fraction = 0.5")
        free.set()
        await scene.ended(job_id)


async def test_more_jobs_than_slots_never_run_at_once(scene: Scene) -> None:
    running: set[int] = set()
    most = 0

    @preset()
    async def work(job: Any, _run: Any) -> None:
        nonlocal most
        running.add(job.id)
        most = max(most, len(running))
        await asyncio.sleep(0)
        running.discard(job.id)

    ids = [await scene.enqueue() for _ in range(60)]
    async with scene.worker(work, slots=4):
        await scene.ended(*ids)
    assert 0 < most <= 4


async def test_two_workers_share_the_jobs_and_run_each_once(scene: Scene) -> None:
    ran: list[str] = []

    @preset()
    def work(job: Any, _run: Any) -> None:
        ran.append(str(job.id))

    ids = [await scene.enqueue() for _ in range(80)]
    async with scene.worker(work), scene.worker(work):
        await scene.ended(*ids)
    assert sorted(ran) == sorted(map(str, ids))


async def test_a_worker_is_ready_while_it_holds_a_lease(scene: Scene) -> None:
    @preset()
    async def work(_job: Any, _run: Any) -> None: ...

    async with scene.worker(work) as worker:
        with pytest.raises(DatabaseUnavailable):
            await worker.consumer.ready()
        await scene.row("SELECT 1 FROM workers")
        await until(lambda: _ready(worker.consumer))


async def _ready(consumer: Consumer) -> bool:
    try:
        await consumer.ready()
    except DatabaseUnavailable:
        return False
    return True


async def test_a_fault_in_the_claiming_loop_still_drains(scene: Scene) -> None:
    free = asyncio.Event()

    class Broken(PostgresSource):
        async def claim(self, worker_id: int, limit: int) -> list[Attempt]:
            found = await super().claim(worker_id, limit)
            if not found:
                free.set()
                raise ZeroDivisionError
            return found

    @preset()
    async def work(_job: Any, _run: Any) -> None:
        await free.wait()

    job_id = await scene.enqueue()
    scene.limits["p"] = 3
    consumer = Consumer(
        scene.url,
        scene.pool,
        scene.effects,
        Broken(scene.url, ("p",)),
        {"p": work},
        slots=2,
        lease_seconds=2,
        drain_seconds=5,
    )
    with pytest.RaisesGroup(ZeroDivisionError):
        await Worker(consumer).ended()
    assert (await scene.view(job_id)).state is JobState.COMPLETED
