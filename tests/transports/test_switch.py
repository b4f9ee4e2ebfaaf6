"""The transport may change between restarts, with jobs in every state: nothing is lost, and nothing runs twice."""

from __future__ import annotations

from collections import Counter
from typing import Any
from uuid import UUID

import pytest

from engine.model import JobState
from engine.moves import Ending, finish
from engine.pipeline import Pipeline
from engine.pubsub import EMULATOR
from tests.engine.scene import Scene, preset
from tests.fakes.clients import eventually
from tests.fakes.fixtures import BrokerAt
from tests.helpers import fetchone, started, worker
from tests.transports.stage import Stage, open_stage
from tests.transports.told import check_told
from tests.worker.site import counted

STATUSES = "SELECT status::text, count(*) FROM outbox GROUP BY status"


@pytest.fixture(autouse=True)
def at(broker: BrokerAt, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(EMULATOR, broker.host)
    monkeypatch.setattr("relay.drain.MAX_IDLE_SECONDS", 0.05)


def ledger() -> tuple[Counter[UUID], Pipeline]:
    """How often each job has run, and the pipeline that writes it down."""
    ran: Counter[UUID] = Counter()

    @preset()
    async def work(job: Any, _run: Any) -> None:
        ran[job.id] += 1

    return ran, work


def messages(action: str) -> float:
    return counted("messages", action=action)


async def leave(stage: Stage, *, published: int) -> list[UUID]:
    """Jobs as a system that ends leaves them: with a worker that died, others due now, others later.

    Where some were `published`, results are left too, that no relay has told of.
    """
    conn = stage.scene.conn
    ids = []
    if published:
        async with stage.upkeep():
            ids += [await stage.enqueue() for _ in range(published)]
            await stage.scene.row(
                "SELECT 1 FROM outbox WHERE status = 'published' HAVING count(*) = %s", published
            )
        await ended_with_events(stage.scene)
    ids += await stage.held_by_the_dead(3)
    ids += [await stage.scene.enqueue(delay_seconds=delay) for delay in (0, 0, 0.5, 0.5)]
    expected = {"leased": 3, "published": published, "ready": 2, "waiting": 2}
    cursor = await conn.execute(STATUSES)
    assert {status: count for status, count in await cursor.fetchall() if count} == {
        status: count for status, count in expected.items() if count
    }
    return ids


async def ended_with_events(scene: Scene) -> None:
    """Two jobs of a relay that stopped before it had told of them."""
    me = await worker(scene.conn)
    for state in (JobState.COMPLETED, JobState.FAILED):
        attempt = await started(scene.conn, me)
        error = '{"type": "E", "message": "e", "attempt": 1}' if state is JobState.FAILED else None
        ending = Ending(*attempt.key, state, state.lower(), error=error)
        await finish(scene.conn, me, [ending], announce=True)


async def test_postgres_takes_over_what_pubsub_left_and_pubsub_takes_over_again(
    scene: Scene, broker: BrokerAt
) -> None:
    ran, work = ledger()
    async with open_stage(scene, broker) as pubsub:
        ids = await leave(pubsub, published=5)
        async with open_stage(scene, None) as postgres, postgres.upkeep(), postgres.worker(work):
            await scene.ended(*ids)
        assert ran == Counter(ids)
        assert await fetchone(scene.conn, "SELECT count(*) FROM outbox_events") == (3,)
        late, unacknowledged = messages("late"), counted("messages_unacknowledged")
        async with pubsub.upkeep(), pubsub.worker(work):
            again = await pubsub.enqueue()
            await scene.ended(again)
            await eventually(lambda: messages("late") >= late + 5)
            await check_told(pubsub, untold=ids)
    assert ran == Counter([*ids, again])
    assert (messages("late"), counted("messages_unacknowledged")) == (late + 5, unacknowledged)


async def test_pubsub_takes_over_what_postgres_left(scene: Scene, broker: BrokerAt) -> None:
    ran, work = ledger()
    async with open_stage(scene, None) as postgres:
        async with postgres.upkeep(), postgres.worker(work):
            before = await postgres.enqueue()
            await scene.ended(before)
        ids = await leave(postgres, published=0)
    async with open_stage(scene, broker) as pubsub, pubsub.upkeep():
        async with pubsub.worker(work):
            await scene.ended(*ids)
        await check_told(pubsub, untold={before})
    assert ran == Counter([before, *ids])


async def test_both_at_once_run_each_job_once(scene: Scene, broker: BrokerAt) -> None:
    ran, work = ledger()
    async with (
        open_stage(scene, broker) as pubsub,
        open_stage(scene, None) as postgres,
        pubsub.upkeep(),
        pubsub.worker(work),
        postgres.worker(work),
    ):
        ids = [await pubsub.enqueue() for _ in range(100)]
        await scene.ended(*ids)
    assert ran == Counter(ids)
