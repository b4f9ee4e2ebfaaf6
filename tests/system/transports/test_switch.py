"""The transport may change between restarts, with jobs in every state: nothing is lost, and nothing runs twice."""

from __future__ import annotations

from collections import Counter
from typing import Any
from uuid import UUID

import pytest

from engine.model import JobState, Reason
from engine.moves import Ending, finish
from engine.pipeline import Pipeline
from engine.pubsub.client import EMULATOR
from ops.waiting import until
from tests.support.database import fetchone, started, worker
from tests.support.pubsub_brokers import BrokerAt
from tests.support.transport_harness import TransportHarness, open_system
from tests.support.worker_harness import WorkerHarness, preset
from tests.system.transports.messages import check_messages
from tests.worker.subscription_harness import counted

STATUSES = "SELECT status::text, count(*) FROM outbox GROUP BY status"


@pytest.fixture(autouse=True)
def at(broker: BrokerAt, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(EMULATOR, broker.host)
    monkeypatch.setattr("relay.publishing.publish_loop.MAX_IDLE_SECONDS", 0.05)


def ledger() -> tuple[Counter[UUID], Pipeline]:
    """How often each job has run, and the pipeline that writes it down."""
    ran: Counter[UUID] = Counter()

    @preset()
    async def work(job: Any, _run: Any) -> None:
        ran[job.id] += 1

    return ran, work


def messages(action: str) -> float:
    return counted("messages", action=action)


async def leave(system: TransportHarness, *, published: int) -> list[UUID]:
    """Jobs as a system that ends leaves them: with a worker that died, others due now, others later.

    Where some were `published`, results are left too, that no relay has told of.
    """
    conn = system.harness.conn
    ids = []
    if published:
        async with system.maintenance():
            ids += [await system.enqueue() for _ in range(published)]
            await system.harness.row(
                "SELECT 1 FROM outbox WHERE status = 'published' HAVING count(*) = %s", published
            )
        await ended_with_events(system.harness)
    ids += await system.held_by_the_dead(3)
    ids += [await system.harness.enqueue(delay_seconds=delay) for delay in (0, 0, 0.5, 0.5)]
    expected = {"leased": 3, "published": published, "ready": 2, "waiting": 2}
    cursor = await conn.execute(STATUSES)
    assert {status: count for status, count in await cursor.fetchall() if count} == {
        status: count for status, count in expected.items() if count
    }
    return ids


async def ended_with_events(harness: WorkerHarness) -> None:
    """Two jobs of a relay that stopped before it had told of them."""
    me = await worker(harness.conn)
    for state in (JobState.COMPLETED, JobState.FAILED):
        attempt = await started(harness.conn, me)
        error = '{"type": "E", "message": "e", "attempt": 1}' if state is JobState.FAILED else None
        ending = Ending(*attempt.key, state, Reason(state.lower()), error=error)
        await finish(harness.conn, me, [ending], publish_results=True)


async def test_postgres_takes_over_what_pubsub_left_and_pubsub_takes_over_again(
    harness: WorkerHarness, broker: BrokerAt
) -> None:
    ran, work = ledger()
    async with open_system(harness, broker) as pubsub:
        ids = await leave(pubsub, published=5)
        async with open_system(harness, None) as postgres, postgres.maintenance(), postgres.worker(work):
            await harness.ended(*ids)
        assert ran == Counter(ids)
        assert await fetchone(harness.conn, "SELECT count(*) FROM outbox_events") == (3,)
        late, unacknowledged = messages("late"), counted("messages_unacknowledged")
        async with pubsub.maintenance(), pubsub.worker(work):
            again = await pubsub.enqueue()
            await harness.ended(again)
            await until(lambda: messages("late") >= late + 5)
            await check_messages(pubsub, unpublished_jobs=ids)
    assert ran == Counter([*ids, again])
    assert (messages("late"), counted("messages_unacknowledged")) == (late + 5, unacknowledged)


async def test_pubsub_takes_over_what_postgres_left(harness: WorkerHarness, broker: BrokerAt) -> None:
    ran, work = ledger()
    async with open_system(harness, None) as postgres:
        async with postgres.maintenance(), postgres.worker(work):
            before = await postgres.enqueue()
            await harness.ended(before)
        ids = await leave(postgres, published=0)
    async with open_system(harness, broker) as pubsub, pubsub.maintenance():
        async with pubsub.worker(work):
            await harness.ended(*ids)
        await check_messages(pubsub, unpublished_jobs={before})
    assert ran == Counter([before, *ids])


async def test_both_at_once_run_each_job_once(harness: WorkerHarness, broker: BrokerAt) -> None:
    ran, work = ledger()
    async with (
        open_system(harness, broker) as pubsub,
        open_system(harness, None) as postgres,
        pubsub.maintenance(),
        pubsub.worker(work),
        postgres.worker(work),
    ):
        ids = [await pubsub.enqueue() for _ in range(100)]
        await harness.ended(*ids)
    assert ran == Counter(ids)
