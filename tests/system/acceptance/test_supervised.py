"""Workers under a supervisor, which are killed together with it and apart: they come back, drain, and leave nobody."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess

import pytest

from engine.model import JobState
from engine.process.restarts import MAX_FAILED_STARTS
from ops.waiting import until
from tests.support.database import counters, fetchone
from tests.system.acceptance.conftest import Process, ProcessHarness, children
from tests.system.acceptance.supervised import get, gone, samples

UNSHARE = ("unshare", "--pid", "--fork", "--mount-proc", "--kill-child")


async def test_a_killed_process_is_started_again_and_the_other_goes_on(processes: ProcessHarness) -> None:
    supervisor = await processes.start(processes=2)
    victim, other = supervisor.children()
    os.kill(victim, signal.SIGKILL)
    await supervisor.says("worker.registered", times=3)
    assert supervisor.logged("child.ended") == 1
    assert supervisor.fields("child.ended")["exit_code"] == 128 + signal.SIGKILL
    assert other in supervisor.children()
    processes.go()
    [job] = await processes.ended(*await processes.submit("wait"))
    assert job.state is JobState.COMPLETED
    supervisor.send(signal.SIGTERM)
    assert await supervisor.ended() == 0


async def test_a_process_that_leaves_by_itself_is_started_again(processes: ProcessHarness) -> None:
    supervisor = await processes.start(processes=2)
    os.kill(supervisor.children()[0], signal.SIGTERM)
    await supervisor.says("worker.registered", times=3)
    assert supervisor.fields("child.ended")["exit_code"] == 0


async def test_a_stop_drains_all_processes_within_one_drain_time(processes: ProcessHarness) -> None:
    supervisor = await processes.start(processes=3, slots=1, drain=3)
    pids = supervisor.children()
    ids = await processes.submit("wait", 3)
    await processes.running(3)
    assert {pid for *_, pid in processes.runs()} == set(pids)
    supervisor.send(signal.SIGTERM)
    assert await supervisor.ended(3 + 5) == 0
    await gone(*pids)
    assert [await counters(processes.conn, job_id) for job_id in ids] == [(1, 0, 0)] * 3
    assert await fetchone(processes.conn, "SELECT count(*) FROM workers") == (0,)
    assert supervisor.logged("child.ended") == 0


async def test_a_process_that_does_not_heed_the_stop_is_killed_after_the_drain_time(
    processes: ProcessHarness,
) -> None:
    supervisor = await processes.start(processes=2, drain=0.5)
    pids = supervisor.children()
    os.kill(pids[0], signal.SIGSTOP)
    supervisor.send(signal.SIGTERM)
    assert await supervisor.ended(0.5 + 5) == 128 + signal.SIGKILL
    assert supervisor.logged("child.killed") == 1
    await gone(*pids)


async def test_running_attempts_finish_during_the_drain(processes: ProcessHarness) -> None:
    supervisor = await processes.start(processes=2, slots=1)
    ids = await processes.submit("wait", 2)
    await processes.running(2)
    supervisor.send(signal.SIGTERM)
    await supervisor.says("worker.draining", times=2)
    processes.go()
    assert await supervisor.ended() == 0
    assert {job.state for job in await processes.ended(*ids)} == {JobState.COMPLETED}


async def test_a_second_signal_ends_all_at_once(processes: ProcessHarness) -> None:
    supervisor = await processes.start(processes=2, slots=1)
    pids = supervisor.children()
    ids = await processes.submit("wait", 2)
    await processes.running(2)
    supervisor.send(signal.SIGINT)
    await supervisor.says("worker.draining", times=2)
    supervisor.send(signal.SIGINT)
    assert await supervisor.ended(3) == 128 + signal.SIGINT
    await gone(*pids)
    processes.go()
    async with processes.maintenance(lease=0.3):
        await processes.start()
        assert {job.state for job in await processes.ended(*ids)} == {JobState.COMPLETED}


async def test_no_process_outlives_a_killed_supervisor_and_its_attempts_finish(
    processes: ProcessHarness,
) -> None:
    supervisor = await processes.start(processes=2, slots=1)
    pids = supervisor.children()
    ids = await processes.submit("wait", 2)
    await processes.running(2)
    supervisor.send(signal.SIGKILL)
    await supervisor.ended()
    processes.go()
    await gone(*pids)
    assert {job.state for job in await processes.ended(*ids)} == {JobState.COMPLETED}
    assert await fetchone(processes.conn, "SELECT count(*) FROM workers") == (0,)


@pytest.mark.long
async def test_a_supervisor_gives_up_when_no_start_succeeds(processes: ProcessHarness) -> None:
    url = (
        processes.url.replace("dbname=", "dbname=no-")
        if "dbname=" in processes.url
        else processes.url + "-no"
    )
    supervisor = await processes.start(processes=2, registered=0, DATABASE_URL=url)
    assert await supervisor.ended(120) == 1
    assert supervisor.fields("supervisor.gave_up")["exit_code"] == 1
    assert supervisor.logged("child.ended") >= MAX_FAILED_STARTS - 1


async def test_a_wrong_configuration_ends_the_supervisor_at_once(processes: ProcessHarness) -> None:
    supervisor = await processes.start(processes=2, registered=0, PIPELINES="no.such.module")
    assert await supervisor.ended() == 2
    assert supervisor.logged("child.ended") == 0


async def test_a_supervisor_is_ready_once_all_its_processes_are(processes: ProcessHarness) -> None:
    supervisor = await processes.start(processes=2)

    async def ready() -> bool:
        return (await get(supervisor, "/readyz"))[0] == 200

    await until(ready)
    victim = supervisor.children()[0]
    os.kill(victim, signal.SIGSTOP)
    try:
        status, answer = await get(supervisor, "/readyz")
    finally:
        os.kill(victim, signal.SIGCONT)
    assert status == 503
    assert "no answer within 2 s" in answer
    await until(ready)


async def test_one_scrape_shows_every_process_by_its_place(processes: ProcessHarness) -> None:
    supervisor = await processes.start(processes=2, slots=1)
    ids = await processes.submit("wait", 2)
    await processes.running(2)

    async def shown() -> bool:
        _, page = await get(supervisor, "/metrics")
        busy = samples(page, "outrider_worker_busy_slots", "process")
        return busy == {("0",): 0, ("1",): 1, ("2",): 1}

    await until(shown)
    _, page = await get(supervisor, "/metrics")
    assert samples(page, "outrider_build_info", "role", "process") == {
        ("supervisor", "0"): 1,
        ("worker", "1"): 1,
        ("worker", "2"): 1,
    }
    assert samples(page, "outrider_processes", "process")[("0",)] == 2
    processes.go()
    await processes.ended(*ids)

    async def counted() -> bool:
        _, page = await get(supervisor, "/metrics")
        ended = samples(page, "outrider_attempts_total", "preset", "outcome")
        return ended[("wait", "completed")] == 2

    await until(counted)
    victim = supervisor.children()[0]
    os.kill(victim, signal.SIGSTOP)
    try:
        _, page = await get(supervisor, "/metrics")
    finally:
        os.kill(victim, signal.SIGCONT)
    assert samples(page, "outrider_processes_silent", "process")[("0",)] == 1
    assert len(samples(page, "outrider_worker_slots", "process")) == 2


@pytest.fixture
def unshare() -> tuple[str, ...]:
    """The command that makes its command process 1 of a namespace."""
    if subprocess.run([*UNSHARE, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this user may not make a namespace of processes")
    return UNSHARE


def inner(process: Process) -> int:
    """Process 1 of the namespace."""
    [pid] = process.children()
    return pid


@pytest.mark.parametrize("count", [1, 2])
async def test_process_1_drains_at_a_signal_and_its_exit_code_is_the_worker_s(
    processes: ProcessHarness, unshare: tuple[str, ...], count: int
) -> None:
    shell = await processes.start(prefix=unshare, processes=count, slots=1)
    ids = await processes.submit("wait", count)
    await processes.running(count)
    os.kill(inner(shell), signal.SIGTERM)
    await shell.says("worker.draining", times=count)
    processes.go()
    assert await shell.ended() == 0
    assert {job.state for job in await processes.ended(*ids)} == {JobState.COMPLETED}


async def test_process_1_ends_at_once_at_a_second_signal(
    processes: ProcessHarness, unshare: tuple[str, ...]
) -> None:
    shell = await processes.start(prefix=unshare)
    await processes.submit("wait")
    await processes.running(1)
    os.kill(inner(shell), signal.SIGTERM)
    await shell.says("worker.draining")
    os.kill(inner(shell), signal.SIGTERM)
    assert await shell.ended(5) == 128 + signal.SIGTERM
    processes.go()
    async with processes.maintenance(lease=0.3):
        await processes.start()
        await until(lambda: _none_left(processes))


async def test_process_1_reaps_what_an_author_s_code_leaves_behind(
    processes: ProcessHarness, unshare: tuple[str, ...]
) -> None:
    shell = await processes.start(prefix=unshare)
    first = inner(shell)
    [job] = await processes.ended(*await processes.submit("orphan"))
    assert job.state is JobState.COMPLETED

    async def alone() -> bool:
        return len(children(first)) == 1

    await until(alone)


async def _none_left(processes: ProcessHarness) -> bool:
    return await fetchone(processes.conn, "SELECT count(*) FROM outbox") == (0,)


@pytest.mark.long
async def test_under_kills_at_random_nothing_is_lost_and_effects_happen_once(
    processes: ProcessHarness,
) -> None:
    chance = random.Random(7)  # noqa: S311
    ids = await processes.submit("short", 600)
    seen: set[int] = set()
    async with processes.maintenance(lease=0.5):
        supervisor = await processes.start(processes=3, lease=2, slots=4)
        for _ in range(20):
            await asyncio.sleep(chance.uniform(0.2, 1))
            workers = supervisor.children()
            seen.update(workers)
            if chance.random() < 0.2:
                supervisor.send(signal.SIGKILL)
                await supervisor.ended()
                supervisor = await processes.start(processes=3, lease=2, slots=4)
            elif workers:
                os.kill(chance.choice(workers), signal.SIGKILL)
        ended = await processes.ended(*ids)
        supervisor.send(signal.SIGTERM)
        assert await supervisor.ended() == 0
    assert {job.state for job in ended} <= {JobState.COMPLETED, JobState.FAILED}
    written = [job_id for job_id, _ in await processes.ledger()]
    assert len(written) == len(set(written))
    completed = await processes.row("SELECT count(*) FROM job_results WHERE state = 'COMPLETED'")
    assert completed == (len(written),)
    await gone(*seen)
