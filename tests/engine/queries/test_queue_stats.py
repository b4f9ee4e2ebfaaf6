"""How much there is to do, counted within bounds, and how many workers would do it in time."""

from __future__ import annotations

import math
from datetime import UTC, datetime

import pytest

from engine.model import NewJob
from engine.process.autoscale import advice, needed, rounded
from engine.queries.queue_stats import OTHER, QUEUES, Queue, QueueStats, queue_stats
from tests.conftest import Connect
from tests.engine.test_statements import buffers, fill
from tests.support.database import Conn, fetchone, new, started, worker

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def queue(due: int = 0, leased: int = 0, workers: int = 0, pace: float = 0.0) -> Queue:
    """A preset whose workers have ten slots each."""
    return Queue({"leased": leased}, due, 1.0, workers, 10 * workers, pace)


@pytest.mark.parametrize(
    ("seen", "saturated", "expected"),
    [
        pytest.param(queue(workers=3, pace=5), False, 0, id="nothing to do"),
        pytest.param(queue(due=1), True, 1, id="nobody there yet: one, which will tell how fast it goes"),
        pytest.param(queue(due=100_000), True, 1, id="nobody there yet, whatever the backlog"),
        pytest.param(queue(leased=1, workers=1), False, 1, id="one runs the last job"),
        pytest.param(queue(leased=45, workers=9, pace=9), False, 5, id="as many as are busy"),
        pytest.param(queue(6000, 10, 1, 10), True, 11, id="600 a minute each: ten more than now"),
        pytest.param(queue(6000, 20, 2, 10), True, 22, id="at half that pace, twenty"),
        pytest.param(queue(6000, 0, 2, 10), False, 20, id="looked at between two claims"),
        pytest.param(queue(6000, 5, 1, 5), False, 11, id="half idle: the busy half's pace counts"),
        pytest.param(queue(30, 10, 1, 1), True, 2, id="quick enough: one more"),
        pytest.param(queue(20, 10, 1, 0.4), True, 2, id="the pace is known"),
        pytest.param(
            queue(1000, 10, 1, 0.0333), True, 2, id="one has ended of jobs that take minutes: doubled"
        ),
        pytest.param(queue(5000, 20, 50), False, 50, id="they have just come: none is let go"),
        pytest.param(queue(900, 10, 1), True, 2, id="nothing has ended yet: doubled"),
        pytest.param(queue(900, 40, 4), True, 8, id="and doubled again"),
        pytest.param(queue(12, 40, 4), True, 6, id="but no more slots than jobs"),
        pytest.param(queue(900, 25, 4), False, 4, id="slots are left: those that are there"),
    ],
)
def test_workers_are_as_many_as_drain_the_backlog_in_a_minute(
    seen: Queue, saturated: bool, expected: int
) -> None:
    assert rounded(needed(seen, saturated=saturated)) == expected


def test_presets_share_workers_and_the_sum_is_rounded_once() -> None:
    idle = {f"p{n}": queue(due=1, leased=1, workers=2, pace=10) for n in range(4)}
    said = advice(QueueStats(idle | {"done": queue(workers=2)}, 2, 20), NOW)
    assert [said["presets"][name]["desired_workers"] for name in idle] == [1, 1, 1, 1]
    assert said["presets"]["done"] == {
        "backlog": 0,
        "oldest_age_seconds": 1.0,
        "drain_per_second": 0.0,
        "desired_workers": 0,
    }
    assert (said["backlog"], said["desired_workers"]) == (4, 1)
    assert said["sampled_at"] == "2026-01-02T03:04:05.000Z"


def test_presets_that_no_worker_has_want_one_together() -> None:
    fresh = {f"p{n}": queue(due=50) for n in range(6)}
    said = advice(QueueStats(fresh, 0, 0), NOW)
    assert {each["desired_workers"] for each in said["presets"].values()} == {1}
    assert said["desired_workers"] == 1
    busy = {"busy": queue(leased=20, workers=2, pace=1), "misspelt": queue(due=1)}
    assert advice(QueueStats(busy, 2, 20), NOW)["desired_workers"] == 3


def test_a_slow_preset_grows_though_others_hold_most_of_the_slots() -> None:
    workers = 1
    for _ in range(5):
        half = {name: queue(1000, 5 * workers, workers) for name in ("a", "b")}
        workers = advice(QueueStats(half, workers, 10 * workers), NOW)["desired_workers"]
    assert workers == 32


async def test_a_look_shows_what_is_due_since_when_and_who_is_there(conn: Conn) -> None:
    await conn.execute("DELETE FROM workers")
    for status, count in (("ready", 3), ("published", 2), ("waiting", 4), ("leased", 0)):
        if count:
            await fill(conn, status, count)
    await conn.execute("UPDATE outbox SET published_at = now() WHERE status = 'published'")
    await conn.execute(
        "UPDATE outbox SET run_at = now() - interval '50 s' WHERE job_id ="
        " (SELECT job_id FROM outbox WHERE status = 'waiting' LIMIT 1)"
    )
    await conn.execute(
        "UPDATE outbox SET priority = 4, ready_at = now() - interval '90 s' WHERE status = 'ready'"
    )
    await worker(conn, seconds=-1)
    first, second = await worker(conn), await worker(conn)
    await conn.execute('UPDATE workers SET throughput = \'{"p": 1.5, "q": 9}\' WHERE id = %s', [first])
    await conn.execute("UPDATE workers SET presets = '{p,q}' WHERE id = %s", [second])
    seen = await queue_stats(conn)
    assert (seen.workers, seen.slots, set(seen.queues)) == (2, 20, {"p", "q"})
    p = seen.queues["p"]
    assert p.jobs == {"ready": 3, "published": 2, "waiting": 4}
    assert (p.due, p.workers, p.slots, p.per_second) == (6, 2, 20, 1.5)
    assert p.age_seconds == pytest.approx(90, abs=10)
    assert seen.queues["q"] == Queue({"ready": 0}, 0, 0.0, 1, 10, 0.0)


async def test_counts_end_at_their_bound_and_so_does_their_cost(
    connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.queries.queue_stats.COUNTED", 500)
    conn = await connect(pinned=True)
    asked = {"presets": 100, "counted": 500}
    for status in ("ready", "waiting", "published"):
        await fill(conn, status, 600)
    await conn.execute("UPDATE outbox SET published_at = now() WHERE status = 'published'")
    await conn.execute("VACUUM ANALYZE")
    before = await buffers(conn, QUEUES, asked)
    assert (await queue_stats(conn)).queues["p"].jobs == {"ready": 500, "waiting": 500, "published": 500}
    for status in ("ready", "waiting", "published"):
        await fill(conn, status, 10_000, 1000)
    await conn.execute("VACUUM ANALYZE")
    assert await buffers(conn, QUEUES, asked) <= 1.5 * before + 50


async def test_presets_that_nobody_has_are_shown_as_one_beyond_a_hundred(
    conn: Conn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.queries.queue_stats.MAX_PRESETS", 3)
    await worker(conn)
    later = "SELECT outrider_enqueue('ann', 'made-up-' || n, 'x', run_at => now() + interval '1 h')"
    await conn.execute(f"{later} FROM generate_series(1, 9) n".encode())
    seen = await queue_stats(conn)
    assert len(seen.queues) == 4
    assert sum(each.jobs.get("waiting", 0) for each in seen.queues.values()) == 9
    assert seen.queues[OTHER].jobs["waiting"] >= 6


async def test_presets_that_nobody_has_hide_none_that_somebody_has(
    conn: Conn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.queries.queue_stats.MAX_PRESETS", 3)
    await conn.execute("UPDATE workers SET presets = '{zebra}' WHERE id = %s", [await worker(conn)])
    await conn.execute("SELECT outrider_enqueue('ann', 'made-up-' || n, 'x') FROM generate_series(1, 9) n")
    await conn.execute("SELECT outrider_enqueue('ann', 'zebra', 'x')")
    seen = await queue_stats(conn)
    assert (seen.queues["zebra"].due, seen.queues["zebra"].workers) == (1, 1)
    assert len(seen.queues) <= 4


def test_rounding_is_up_but_for_the_noise_of_floats() -> None:
    assert [rounded(sum([0.1] * n)) for n in (0, 1, 10, 11)] == [0, 1, 1, 2]
    assert rounded(math.nextafter(3.0, 4.0)) == 3


async def test_a_job_that_is_due_later_is_no_backlog(conn: Conn) -> None:
    from engine.moves.enqueue import enqueue

    job: NewJob = new(delay_seconds=3600)
    await enqueue(conn, job)
    seen = (await queue_stats(conn)).queues["p"]
    assert (seen.jobs, seen.due, seen.age_seconds) == ({"waiting": 1}, 0, 0.0)
    assert await fetchone(conn, "SELECT count(*) FROM outbox") == (1,)


async def test_a_running_job_is_no_backlog(conn: Conn) -> None:
    await started(conn, await worker(conn))
    seen = (await queue_stats(conn)).queues["p"]
    assert (seen.leased, seen.due, seen.age_seconds) == (1, 0, 0.0)
