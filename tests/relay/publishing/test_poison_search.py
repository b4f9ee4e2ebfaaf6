"""Rows that alone get no answer, at the head of a silent topic: the search for the others comes to each in its turn."""

from __future__ import annotations

import grpc
import pytest

from ops.harness.pubsub_fake import Fail
from ops.waiting import until
from relay.publishing import broker
from tests.relay.relay_harness import RESULTS, RelayHarness
from tests.support.database import fetchone

Code = grpc.StatusCode
CODES = [Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED, Code.RESOURCE_EXHAUSTED, Code.INTERNAL, Code.NOT_FOUND]
POISONS = 4


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pauses of tenths of a second. The broker counts as healthy for none after a success."""
    monkeypatch.setattr("engine.pubsub.breaker.PROBE_SECONDS", 0.1)
    monkeypatch.setattr("engine.pubsub.breaker.MAX_SECONDS", 0.2)
    monkeypatch.setattr(broker, "HEALTHY_SECONDS", 0.0)


@pytest.mark.parametrize("code", CODES, ids=str)
async def test_wake_ups_pass_those_that_fail_at_their_head(
    relay_harness: RelayHarness, code: grpc.StatusCode
) -> None:
    relay_harness.fake.inject(Fail(method="Publish", containing="poison", code=code))
    poison = set(await relay_harness.queue(POISONS, user_id="poison"))
    good = set(await relay_harness.queue(3))
    async with relay_harness.relay():
        await until(lambda: good <= set(relay_harness.jobs_sent()))
        [more] = await relay_harness.queue()
        await until(lambda: more in relay_harness.jobs_sent())
    assert not poison & set(relay_harness.jobs_sent())


@pytest.mark.parametrize("code", CODES, ids=str)
async def test_events_pass_those_that_fail_at_their_head(
    relay_harness: RelayHarness, code: grpc.StatusCode
) -> None:
    relay_harness.fake.inject(Fail(method="Publish", containing="poison", code=code))
    await relay_harness.write_events(*[b"poison"] * POISONS, b"one", b"two", b"three")

    def sent() -> set[bytes]:
        return {message.data for message in relay_harness.fake.published(RESULTS)}

    async with relay_harness.relay():
        await until(lambda: sent() == {b"one", b"two", b"three"})
        await relay_harness.write_events(b"four")
        await until(lambda: b"four" in sent())
    assert b"poison" not in sent()


async def test_a_wake_up_that_alone_gets_no_answer_waits_while_workers_may_claim_its_job(
    relay_harness: RelayHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(broker, "HEALTHY_SECONDS", 60.0)
    relay_harness.fake.inject(Fail(method="Publish", containing="poison", code=Code.UNAVAILABLE))
    set_back = (
        "SELECT status::text, publish_until > clock_timestamp() + interval '20 s'"
        " FROM outbox WHERE user_id = 'poison'"
    )

    async def waits() -> bool:
        return await fetchone(relay_harness.conn, set_back) == ("ready", True)

    async with relay_harness.relay():
        [first] = await relay_harness.queue()
        await until(lambda: first in relay_harness.jobs_sent())
        await relay_harness.queue(user_id="poison")
        await until(waits)
        more = set(await relay_harness.queue(100))
        await until(lambda: more <= set(relay_harness.jobs_sent()))
