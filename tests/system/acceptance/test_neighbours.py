"""What authors' code does to the worker process that it runs in: children that outlive it, cycles, its own sessions."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from engine.model import JobState
from ops.waiting import until
from tests.support.database import counters, fetchone
from tests.system.acceptance.conftest import ProcessHarness

GROWTH = 1.5
"""How much larger the process may be after ten times the jobs."""


@pytest.fixture
def children(tmp_path: Path) -> Iterator[None]:
    """The children that `orphaning` leaves end with the test."""
    yield
    for file in tmp_path.glob("child-*"):
        with suppress(ProcessLookupError):
            os.kill(int(file.read_text()), signal.SIGKILL)


def largest(pid: int) -> int:
    """The most memory that the process has had, in kB."""
    return int(Path(f"/proc/{pid}/status").read_text().partition("VmHWM:")[2].split()[0])


@pytest.mark.usefixtures("children")
async def test_the_children_of_a_killed_worker_hold_no_connection_and_no_lock(
    processes: ProcessHarness,
) -> None:
    [job_id] = await processes.submit("orphaning")
    worker = await processes.start()
    await until((processes.folder / "child-of-loop-1").exists)
    held = "SELECT count(*) > 0 FROM pg_stat_activity WHERE application_name ~ '^outrider (effects|lease|worker)'"
    assert await fetchone(processes.conn, held) == (True,)
    worker.send(signal.SIGKILL)
    await worker.ended()
    await processes.row("SELECT 1 FROM outbox WHERE job_id = %s FOR UPDATE SKIP LOCKED", job_id)
    await processes.row(f"SELECT 1 WHERE NOT ({held})")
    for name in ("child-of-thread-1", "child-of-loop-1"):
        os.kill(int((processes.folder / name).read_text()), 0)  # it still lives
    processes.go()
    async with processes.maintenance(lease=0.3):
        await processes.start()
        [job] = await processes.ended(job_id)
    assert (job.state, await counters(processes.conn, job_id)) == (JobState.COMPLETED, (2, 0, 1))


@pytest.mark.parametrize(("preset", "code"), [("returning", 0), ("returning_async", 1)])
async def test_a_child_that_comes_back_from_its_pipeline_ends_and_its_parent_goes_on(
    processes: ProcessHarness, preset: str, code: int
) -> None:
    ids = [*await processes.submit(preset, 3), *await processes.submit("effects", 3)]
    processes.go()
    worker = await processes.start()
    ended = await processes.ended(*ids)
    assert [job.output for job in ended] == [str(code)] * 3 + ["1"] * 3
    worker.send(signal.SIGTERM)
    assert await worker.ended() == 0
    assert worker.logged("attempt.ended") == 6


@pytest.mark.long
async def test_cycles_that_jobs_leave_do_not_add_up(processes: ProcessHarness) -> None:
    # Each search spares what runs at that moment, and older garbage is searched for less often: so few slots.
    worker = await processes.start(slots=4, lease=15)

    async def peak(jobs: int) -> int:
        """The most memory that the worker has had by the end of so many more jobs, in kB."""
        ids = await processes.submit("cycle", jobs)

        async def done() -> bool:
            return await fetchone(processes.conn, "SELECT count(*) FROM outbox") == (0,)

        await until(done, 300)
        assert {job.state for job in await processes.ended(*ids[-10:])} == {JobState.COMPLETED}
        return largest(worker.pid)

    first = await peak(2_000)
    assert await peak(18_000) < GROWTH * first
