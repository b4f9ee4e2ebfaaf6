"""Worker processes that are killed, stopped, continued and asked to leave: no job is lost, none is done twice."""

from __future__ import annotations

import asyncio
import signal
from datetime import UTC, datetime, timedelta

import pytest

from engine.model import JobState
from tests.acceptance.conftest import Site
from tests.helpers import counters, fetchone, trail


async def test_the_jobs_of_a_killed_worker_lapse_and_complete_elsewhere(site: Site) -> None:
    ids = [*await site.submit("wait", 2), *await site.submit("plain", 2), *await site.submit("effects", 2)]
    victim, heir = await asyncio.gather(site.start(slots=6), site.start(slots=6))
    await site.running(6)
    mine = [job_id for _, job_id, _, pid in site.runs() if pid == victim.pid]
    victim.send(signal.SIGKILL)
    await victim.ended()
    site.go(2)
    async with site.maintenance(lease=0.5):
        await site.running(6 + len(mine))
        site.go()
        ended = await site.ended(*ids)
    assert {job.state for job in ended} == {JobState.COMPLETED}
    for job_id in ids:
        assert await counters(site.conn, job_id) == ((2, 0, 1) if job_id in mine else (1, 0, 0))
    assert sorted(job_id for job_id, _ in await site.ledger()) == sorted(ids[4:])
    assert heir.logged("attempt.ended") >= len(mine)


async def test_a_job_that_kills_its_worker_fails_at_the_third_crash(site: Site) -> None:
    [job_id] = await site.submit("suicide")
    async with site.maintenance(lease=0.3):
        for _ in range(3):
            worker = await site.start(lease=1)
            assert await worker.ended() == -signal.SIGKILL
        [job] = await site.ended(job_id)
    assert job.error
    assert (job.state, job.error["type"]) == (JobState.FAILED, "WorkerLost")
    assert await counters(site.conn, job_id) == (3, 0, 3)


async def test_a_worker_that_was_stopped_past_its_lease_writes_nothing_when_it_goes_on(site: Site) -> None:
    ids = [*await site.submit("effects", 2), *await site.submit("wait", 2), *await site.submit("plain", 2)]
    zombie = await site.start(lease=1)
    await site.running(6)
    zombie.send(signal.SIGSTOP)
    site.go()  # all it was doing is done when it goes on
    async with site.maintenance(lease=0.3):
        heir = await site.start()
        ended = await site.ended(*ids)
        assert {job.output for job in ended} == {"2"}
        heir.send(signal.SIGKILL)
        await heir.ended()
        zombie.send(signal.SIGCONT)
        await zombie.says("worker.registered", times=2)
        [after] = await site.ended(*await site.submit("wait"))  # it has found out, and works again
    assert after.state is JobState.COMPLETED
    assert zombie.logged("attempt.ended") == 7
    assert {attempt for _, attempt in await site.ledger()} == {2}
    for job_id in ids:
        assert await counters(site.conn, job_id) == (2, 0, 1)


async def test_a_worker_stopped_inside_its_effects_keeps_that_job(site: Site) -> None:
    """Its transaction holds the row: nobody takes the job while the effects may still be committed."""
    [job_id] = await site.submit("slow_effects")
    worker = await site.start(lease=1)
    await site.running(1)
    worker.send(signal.SIGSTOP)
    async with site.maintenance(lease=0.3):
        await site.row("SELECT 1 FROM workers HAVING count(*) = 0")
        site.go()
        worker.send(signal.SIGCONT)
        [job] = await site.ended(job_id)
    assert (job.state, job.output) == (JobState.COMPLETED, "1")
    assert await site.ledger() == [(job_id, 1)]


async def test_a_worker_that_is_asked_to_stop_finishes_what_it_runs(site: Site) -> None:
    ids = [*await site.submit("wait"), *await site.submit("plain"), *await site.submit("effects")]
    worker = await site.start()
    await site.running(3)
    worker.send(signal.SIGTERM)
    await worker.says("worker.draining")
    [later] = await site.submit("wait")
    site.go()
    assert await worker.ended() == 0
    assert {job.state for job in await site.ended(*ids)} == {JobState.COMPLETED}
    assert await counters(site.conn, later) == (0, 0, 0)
    assert await fetchone(site.conn, "SELECT count(*) FROM workers") == (0,)


async def test_a_worker_whose_drain_time_is_up_releases_the_rest_and_spends_nothing(site: Site) -> None:
    ids = [*await site.submit("wait"), *await site.submit("plain"), *await site.submit("slow_effects")]
    worker = await site.start(drain=0.2)
    await site.running(3)
    worker.send(signal.SIGTERM)
    assert await worker.ended() == 0
    for job_id in ids:
        assert await counters(site.conn, job_id) == (1, 0, 0)
        assert (await trail(site.conn, job_id))[-1][2:] == ("PENDING", 1, "shutdown")
    assert await site.ledger() == []
    site.go()
    await site.start()
    assert {job.output for job in await site.ended(*ids)} == {"2"}


async def test_a_second_signal_ends_a_worker_at_once_and_its_jobs_lapse(site: Site) -> None:
    [job_id] = await site.submit("wait")
    worker = await site.start()
    await site.running(1)
    worker.send(signal.SIGTERM)
    await worker.says("worker.draining")
    worker.send(signal.SIGTERM)
    assert await worker.ended(2) == 128 + signal.SIGTERM
    site.go()
    async with site.maintenance(lease=0.3):
        await site.start()
        [job] = await site.ended(job_id)
    assert (job.state, await counters(site.conn, job_id)) == (JobState.COMPLETED, (2, 0, 1))


async def test_a_worker_whose_slots_are_all_stuck_for_a_lease_exits_by_itself(site: Site) -> None:
    ids = await site.submit("stuck", 2)
    worker = await site.start(slots=2, lease=1)
    assert await worker.ended() == 1
    assert worker.logged("worker.exhausted") == 1
    for job in await site.ended(*ids):
        assert job.error
        assert (job.state, job.error["type"]) == (JobState.FAILED, "TimeoutError")
    assert await fetchone(site.conn, "SELECT count(*) FROM workers") == (0,)


async def test_a_loop_that_is_blocked_for_two_leases_ends_its_process_and_costs_a_crash(site: Site) -> None:
    [neighbour] = await site.submit("wait")
    worker = await site.start(lease=1)
    await site.running(1)
    [culprit] = await site.submit("block")
    assert await worker.ended() == 1
    assert worker.logged("process.stalled") == 1
    site.go()
    async with site.maintenance(lease=0.3):
        await site.start()
        ended = await site.ended(neighbour, culprit)
    assert {job.state for job in ended} == {JobState.COMPLETED}
    assert {await counters(site.conn, job_id) for job_id in (neighbour, culprit)} == {(2, 0, 1)}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
async def test_workers_that_come_and_go_do_every_job_s_effects_once(
    site: Site, number: signal.Signals
) -> None:
    ids = await site.submit("short", 200)
    async with site.maintenance(lease=0.5):
        # A short one where it has to run out; a loaded machine must not bring that about by itself.
        lease = 1 if number == signal.SIGKILL else 15
        leaving = await asyncio.gather(*(site.start(slots=4, lease=lease) for _ in range(2)))
        for round_, worker in enumerate(leaving, 1):
            await site.running(40 * round_)
            replaced = asyncio.create_task(site.start(lease=15))
            worker.send(number)
            await worker.ended()
            await replaced
        ended = await site.ended(*ids)
    assert {job.state for job in ended} == {JobState.COMPLETED}
    assert sorted(job_id for job_id, _ in await site.ledger()) == sorted(ids)
    spent = {(await counters(site.conn, job_id))[1:] for job_id in ids}
    assert spent <= ({(0, 0)} if number == signal.SIGTERM else {(0, 0), (0, 1), (0, 2)})


async def test_a_relay_alone_runs_promotes_and_takes_back_what_another_left(site: Site) -> None:
    ids = await site.submit("wait", 4)
    victim = await site.start(lease=1, slots=2)
    await site.running(2)
    relay = await site.start("relay", lease=1)
    victim.send(signal.SIGKILL)
    later = datetime.now(UTC) + timedelta(seconds=0.5)
    ids.append(await site.enqueue("wait", content=str(site.folder), run_at=later))
    site.go()
    ended = await site.ended(*ids)
    assert {job.state for job in ended} == {JobState.COMPLETED}
    assert sorted([await counters(site.conn, job_id) for job_id in ids]) == [(1, 0, 0)] * 3 + [(2, 0, 1)] * 2
    relay.send(signal.SIGTERM)
    assert await relay.ended() == 0
