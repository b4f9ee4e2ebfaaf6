"""Worker processes that are killed, stopped, continued and asked to leave: no job is lost, none is done twice."""

from __future__ import annotations

import asyncio
import signal
from datetime import UTC, datetime, timedelta

import pytest

from engine.model import JobState
from tests.support.database import counters, fetchone, trail
from tests.system.acceptance.conftest import ProcessHarness


async def test_the_jobs_of_a_killed_worker_lapse_and_complete_elsewhere(processes: ProcessHarness) -> None:
    ids = [
        *await processes.submit("wait", 2),
        *await processes.submit("plain", 2),
        *await processes.submit("effects", 2),
    ]
    victim, heir = await asyncio.gather(processes.start(slots=6), processes.start(slots=6))
    await processes.running(6)
    mine = [job_id for _, job_id, _, pid in processes.runs() if pid == victim.pid]
    victim.send(signal.SIGKILL)
    await victim.ended()
    processes.go()
    async with processes.maintenance(lease=0.5):
        await processes.running(6 + len(mine))
        ended = await processes.ended(*ids)
    assert {job.state for job in ended} == {JobState.COMPLETED}
    charged = int(len(mine) == 1)
    for job_id in ids:
        assert await counters(processes.conn, job_id) == ((2, 0, charged) if job_id in mine else (1, 0, 0))
    assert sorted(job_id for job_id, _ in await processes.ledger()) == sorted(ids[4:])
    await heir.says("attempt.ended", times=len(mine))  # an attempt is logged after its commit


async def test_a_job_that_kills_its_worker_fails_at_the_third_crash(processes: ProcessHarness) -> None:
    [job_id] = await processes.submit("suicide")
    async with processes.maintenance(lease=0.3):
        for _ in range(3):
            worker = await processes.start(lease=1)
            assert await worker.ended() == -signal.SIGKILL
        [job] = await processes.ended(job_id)
    assert job.error
    assert (job.state, job.error["type"]) == (JobState.FAILED, "WorkerLost")
    assert await counters(processes.conn, job_id) == (3, 0, 3)


async def test_a_worker_that_was_stopped_past_its_lease_writes_nothing_when_it_goes_on(
    processes: ProcessHarness,
) -> None:
    ids = [
        *await processes.submit("effects", 2),
        *await processes.submit("wait", 2),
        *await processes.submit("plain", 2),
    ]
    zombie = await processes.start(lease=1)
    await processes.running(6)
    zombie.send(signal.SIGSTOP)
    processes.go()  # all it was doing is done when it goes on
    async with processes.maintenance(lease=0.3):
        heir = await processes.start()
        ended = await processes.ended(*ids)
        assert {job.output for job in ended} == {"2"}
        heir.send(signal.SIGKILL)
        await heir.ended()
        zombie.send(signal.SIGCONT)
        await zombie.says("worker.registered", times=2)
        [after] = await processes.ended(*await processes.submit("wait"))  # it has found out, and works again
    assert after.state is JobState.COMPLETED
    await zombie.says("attempt.ended", times=7)  # an attempt is logged after its commit
    assert zombie.logged("attempt.ended") == 7
    assert {attempt for _, attempt in await processes.ledger()} == {2}
    for job_id in ids:
        assert await counters(processes.conn, job_id) == (2, 0, 0)


async def test_a_worker_stopped_inside_its_effects_keeps_that_job(processes: ProcessHarness) -> None:
    """Its transaction holds the row: nobody takes the job while the effects may still be committed."""
    [job_id] = await processes.submit("slow_effects")
    worker = await processes.start(lease=1)
    await processes.running(1)
    worker.send(signal.SIGSTOP)
    async with processes.maintenance(lease=0.3):
        await processes.row("SELECT 1 FROM workers HAVING count(*) = 0")
        processes.go()
        worker.send(signal.SIGCONT)
        [job] = await processes.ended(job_id)
    assert (job.state, job.output) == (JobState.COMPLETED, "1")
    assert await processes.ledger() == [(job_id, 1)]


async def test_a_worker_that_is_asked_to_stop_finishes_what_it_runs(processes: ProcessHarness) -> None:
    ids = [
        *await processes.submit("wait"),
        *await processes.submit("plain"),
        *await processes.submit("effects"),
    ]
    worker = await processes.start()
    await processes.running(3)
    worker.send(signal.SIGTERM)
    await worker.says("worker.draining")
    [later] = await processes.submit("wait")
    processes.go()
    assert await worker.ended() == 0
    assert {job.state for job in await processes.ended(*ids)} == {JobState.COMPLETED}
    assert await counters(processes.conn, later) == (0, 0, 0)
    assert await fetchone(processes.conn, "SELECT count(*) FROM workers") == (0,)


async def test_a_worker_whose_drain_time_is_up_releases_the_rest_and_spends_nothing(
    processes: ProcessHarness,
) -> None:
    ids = [
        *await processes.submit("wait"),
        *await processes.submit("plain"),
        *await processes.submit("slow_effects"),
    ]
    worker = await processes.start(drain=0.2)
    await processes.running(3)
    worker.send(signal.SIGTERM)
    assert await worker.ended() == 0
    for job_id in ids:
        assert await counters(processes.conn, job_id) == (1, 0, 0)
        assert (await trail(processes.conn, job_id))[-1][2:] == ("PENDING", 1, "shutdown")
    assert await processes.ledger() == []
    processes.go()
    await processes.start()
    assert {job.output for job in await processes.ended(*ids)} == {"2"}


@pytest.mark.alone
async def test_a_second_signal_ends_a_worker_at_once_and_its_jobs_lapse(processes: ProcessHarness) -> None:
    [job_id] = await processes.submit("wait")
    worker = await processes.start()
    await processes.running(1)
    worker.send(signal.SIGTERM)
    await worker.says("worker.draining")
    worker.send(signal.SIGTERM)
    assert await worker.ended(2) == 128 + signal.SIGTERM
    processes.go()
    async with processes.maintenance(lease=0.3):
        await processes.start()
        [job] = await processes.ended(job_id)
    assert (job.state, await counters(processes.conn, job_id)) == (JobState.COMPLETED, (2, 0, 1))


@pytest.mark.alone
async def test_a_worker_whose_slots_are_all_stuck_for_a_lease_exits_by_itself(
    processes: ProcessHarness,
) -> None:
    ids = await processes.submit("stuck", 2)
    worker = await processes.start(slots=2, lease=1)
    assert await worker.ended() == 1
    assert worker.logged("worker.exhausted") == 1
    for job in await processes.ended(*ids):
        assert job.error
        assert (job.state, job.error["type"]) == (JobState.FAILED, "TimeoutError")
    assert await fetchone(processes.conn, "SELECT count(*) FROM workers") == (0,)


async def test_a_loop_that_is_blocked_for_two_leases_ends_its_process_and_neither_job_is_charged(
    processes: ProcessHarness,
) -> None:
    [neighbour] = await processes.submit("wait")
    worker = await processes.start(lease=1)
    await processes.running(1)
    [culprit] = await processes.submit("block")
    assert await worker.ended() == 1
    assert worker.logged("process.stalled") == 1
    processes.go()
    async with processes.maintenance(lease=0.3):
        await processes.start()
        ended = await processes.ended(neighbour, culprit)
    assert {job.state for job in ended} == {JobState.COMPLETED}
    assert {await counters(processes.conn, job_id) for job_id in (neighbour, culprit)} == {(2, 0, 0)}


@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
async def test_workers_that_come_and_go_do_every_job_s_effects_once(
    processes: ProcessHarness, number: signal.Signals
) -> None:
    ids = await processes.submit("short", 200)
    async with processes.maintenance(lease=0.5):
        # A short one where it has to run out; a loaded machine must not bring that about by itself.
        lease = 1 if number == signal.SIGKILL else 15
        leaving = await asyncio.gather(*(processes.start(slots=4, lease=lease) for _ in range(2)))
        for round_, worker in enumerate(leaving, 1):
            await processes.running(40 * round_)
            replaced = asyncio.create_task(processes.start(lease=15))
            worker.send(number)
            await worker.ended()
            await replaced
        ended = await processes.ended(*ids)
    assert {job.state for job in ended} == {JobState.COMPLETED}
    assert sorted(job_id for job_id, _ in await processes.ledger()) == sorted(ids)
    spent = {(await counters(processes.conn, job_id))[1:] for job_id in ids}
    assert spent <= ({(0, 0)} if number == signal.SIGTERM else {(0, 0), (0, 1), (0, 2)})


async def test_a_relay_alone_runs_promotes_and_releases_what_another_left(
    processes: ProcessHarness,
) -> None:
    ids = await processes.submit("wait", 4)
    victim = await processes.start(lease=1, slots=2)
    await processes.running(2)
    relay = await processes.start("relay", lease=1)
    victim.send(signal.SIGKILL)
    later = datetime.now(UTC) + timedelta(seconds=0.5)
    ids.append(await processes.enqueue("wait", content=str(processes.folder), run_at=later))
    processes.go()
    ended = await processes.ended(*ids)
    assert {job.state for job in ended} == {JobState.COMPLETED}
    assert (
        sorted([await counters(processes.conn, job_id) for job_id in ids])
        == [(1, 0, 0)] * 3 + [(2, 0, 0)] * 2
    )
    relay.send(signal.SIGTERM)
    assert await relay.ended() == 0
