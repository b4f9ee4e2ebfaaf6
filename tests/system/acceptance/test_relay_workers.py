"""A relay's workers are processes of their own: whatever they do, its maintenance keeps time."""

from __future__ import annotations

import os
import signal
from datetime import UTC, datetime, timedelta

import orjson
import pytest

from engine.model import JobState
from ops.harness.pubsub_fake import FakePubSub
from ops.waiting import until
from tests.support.database import fetchone
from tests.system.acceptance.conftest import ProcessHarness
from tests.system.acceptance.supervised import get, gone, samples

HERE = "tests.system.acceptance"
DELAYED = 1000
SPREAD_SECONDS = 15.0
LATE_SECONDS = 1.5
LATENESS = """
SELECT count(*), percentile_disc(0.99) WITHIN GROUP (ORDER BY extract(epoch FROM r.started_at - r.run_at))
FROM job_results r JOIN jobs j ON j.id = r.job_id WHERE j.preset = 'timed'
"""


async def test_a_relay_runs_no_attempt_in_its_own_process(processes: ProcessHarness) -> None:
    relay = await processes.start("relay")
    [job] = await processes.submit("wait")
    await processes.running(1)
    [(*_, pid)] = processes.runs()
    assert pid in relay.children()
    processes.go()
    assert [each.state for each in await processes.ended(job)] == [JobState.COMPLETED]


async def test_a_relay_starts_a_killed_worker_again_and_is_not_ready_meanwhile(
    processes: ProcessHarness,
) -> None:
    relay = await processes.start("relay", registered=2, RELAY_WORKERS=2)
    victim, _ = relay.children()

    async def ready() -> bool:
        return (await get(relay, "/readyz", "relay.started"))[0] == 200

    await until(ready)
    os.kill(victim, signal.SIGKILL)
    await gone(victim)
    status, answer = await get(relay, "/readyz", "relay.started")
    assert status == 503
    checks = orjson.loads(answer)["checks"]
    # The other one may not have started yet.
    assert checks["worker 1"] != "ok" or checks["worker 2"] != "ok"
    assert checks["maintenance"] == "ok"
    await relay.says("worker.registered", times=3)
    await until(ready)


async def test_a_relay_shows_its_workers_metrics_with_its_own(processes: ProcessHarness) -> None:
    relay = await processes.start("relay")

    async def shown() -> bool:
        _, page = await get(relay, "/metrics", "relay.started")
        roles = samples(page, "outrider_build_info", "role", "process")
        return roles == {("relay", "0"): 1, ("worker", "1"): 1}

    await until(shown)
    _, page = await get(relay, "/metrics", "relay.started")
    assert samples(page, "outrider_worker_slots", "process")[("1",)] == 10


BROKEN = """
import os
os._exit(5)
"""


async def test_a_relay_works_without_the_modules_of_its_workers(processes: ProcessHarness) -> None:
    relay = await processes.start("relay", registered=0, PIPELINES="no.such.module")
    await relay.says("workers.rest")
    later = datetime.now(UTC) + timedelta(seconds=0.3)
    job = await processes.enqueue("wait", content=str(processes.folder), run_at=later)
    await processes.row("SELECT 1 FROM outbox WHERE job_id = %s AND status = 'ready'", job)
    status, answer = await get(relay, "/readyz", "relay.started")
    assert status == 503
    checks = orjson.loads(answer)["checks"]
    assert checks.pop("worker 1") == "not running"
    assert set(checks.values()) == {"ok"}
    relay.send(signal.SIGTERM)
    assert await relay.ended() == 0


IMPORTED = """
import os
from pathlib import Path
with Path(__file__).with_name("imported").open("a") as file:
    file.write(f"{os.getpid()}\\n")
pipelines = []
"""


@pytest.mark.parametrize("transport", ["postgres", "pubsub"])
async def test_a_relay_imports_nothing_of_an_author_s(
    processes: ProcessHarness, fake: FakePubSub, transport: str
) -> None:
    (processes.folder / "author.py").write_text(IMPORTED)
    relay = await processes.start(
        "relay",
        prefix=("env", f"PYTHONPATH={processes.folder}"),
        registered=int(transport == "postgres"),
        emulator=fake.host,
        PIPELINES="author",
        TRANSPORT=transport,
        PUBSUB_PROJECT="test",
    )
    await relay.says("relay.started")
    imported = processes.folder / "imported"
    pids = imported.read_text().split() if imported.exists() else []
    assert len(pids) == int(transport == "postgres")
    assert str(relay.pid) not in pids


@pytest.mark.long
async def test_a_relay_whose_workers_cannot_live_does_its_maintenance(processes: ProcessHarness) -> None:
    (processes.folder / "broken_pipelines.py").write_text(BROKEN)
    relay = await processes.start(
        "relay",
        prefix=("env", f"PYTHONPATH={processes.folder}"),
        registered=0,
        PIPELINES=f"broken_pipelines,{HERE}.ledger_pipelines",
    )
    await until(lambda: relay.logged("workers.rest") > 0, 120)
    later = datetime.now(UTC) + timedelta(seconds=0.3)
    job = await processes.enqueue("wait", content=str(processes.folder), run_at=later)
    await processes.row("SELECT 1 FROM outbox WHERE job_id = %s AND status = 'ready'", job)
    assert (await get(relay, "/readyz", "relay.started"))[0] == 503
    relay.send(signal.SIGTERM)
    assert await relay.ended() == 0


async def test_a_relay_without_workers_is_maintenance_alone(processes: ProcessHarness) -> None:
    relay = await processes.start("relay", registered=0, RELAY_WORKERS=0)
    await relay.says("relay.started")
    later = datetime.now(UTC) + timedelta(seconds=0.3)
    job = await processes.enqueue("wait", content=str(processes.folder), run_at=later)
    await processes.row("SELECT 1 FROM outbox WHERE job_id = %s AND status = 'ready'", job)
    assert relay.children() == []
    _, page = await get(relay, "/metrics", "relay.started")
    assert ("",) in samples(page, "outrider_processes", "process")
    relay.send(signal.SIGTERM)
    assert await relay.ended() == 0


async def test_a_relay_that_publishes_has_no_workers(processes: ProcessHarness, fake: FakePubSub) -> None:
    relay = await processes.start(
        "relay", registered=0, TRANSPORT="pubsub", PUBSUB_PROJECT="test", emulator=fake.host
    )
    await relay.says("relay.started")
    assert relay.children() == []
    relay.send(signal.SIGTERM)
    assert await relay.ended() == 0


async def test_a_relay_drains_its_workers_within_the_drain_time(processes: ProcessHarness) -> None:
    relay = await processes.start("relay", drain=2, RELAY_WORKERS=2, registered=2)
    await processes.submit("wait", 2)
    await processes.running(2)
    relay.send(signal.SIGTERM)
    assert await relay.ended(2 + 5) == 0
    assert await fetchone(processes.conn, "SELECT count(*) FROM workers") == (0,)
    assert await fetchone(processes.conn, "SELECT count(*) FROM outbox WHERE status = 'ready'") == (2,)


async def test_no_worker_outlives_a_killed_relay(processes: ProcessHarness) -> None:
    relay = await processes.start("relay")
    pids = relay.children()
    relay.send(signal.SIGKILL)
    await relay.ended()
    await gone(*pids)


async def test_a_blocked_worker_does_not_outlive_a_killed_relay_by_more_than_a_stop(
    processes: ProcessHarness,
) -> None:
    processes.limits |= {"blocking": 5}
    relay = await processes.start("relay", lease=30, drain=0.5, PIPELINES=f"{HERE}.blocking_pipelines")
    await processes.enqueue("blocking")
    await relay.says("loop.blocked")
    pids = relay.children()
    relay.send(signal.SIGKILL)
    await relay.ended()
    await gone(*pids)


@pytest.mark.long
async def test_delayed_jobs_start_on_time_while_a_relay_s_worker_blocks(processes: ProcessHarness) -> None:
    relay = await processes.start("relay", lease=30, PIPELINES=f"{HERE}.blocking_pipelines")
    await processes.start(lease=30, PIPELINES=f"{HERE}.timed_pipelines")
    await processes.enqueue("blocking")
    await relay.says("loop.blocked")
    for n in range(DELAYED):
        due = datetime.now(UTC) + timedelta(seconds=3 + n * SPREAD_SECONDS / DELAYED)
        await processes.enqueue("timed", run_at=due)

    async def all_ran() -> bool:
        return bool((await fetchone(processes.conn, LATENESS))[0] == DELAYED)

    await until(all_ran, 60)
    assert relay.logged("loop.unblocked") == 0
    _, late = await fetchone(processes.conn, LATENESS)
    assert float(late) <= LATE_SECONDS
    print(f"99 of 100 started within {float(late):.2f} s")
    processes.limits |= {"timed": 5, "blocking": 5}
