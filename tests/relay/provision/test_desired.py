"""What is made and fixed of topics and subscriptions, and what is left to people: decided purely, done on a broker."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import grpc
import pytest
from google.pubsub_v1.types import (
    DeadLetterPolicy,
    ExpirationPolicy,
    PubsubMessage,
    RetryPolicy,
    Subscription,
)

from engine.pubsub.client import EMULATOR, Names, names
from engine.settings import load
from ops.harness.pubsub_fake import Fail, FakePubSub, LoseReply
from relay.provision import apply as provisioning
from relay.provision.apply import BrokerError, Clients, examine, open_clients, provision
from relay.provision.desired import DELETED, Change, Step, compare, desired
from tests.support.pubsub_brokers import BrokerAt

NAMES = Names("projects/p/topics/jobs", "projects/p/topics/results", "projects/p/topics/dead")
JOBS, RESULTS, DEAD = range(3)


def found(which: int, **changes: Any) -> list[Subscription]:
    """The desired subscriptions, one of them changed."""
    subscriptions = desired(NAMES)
    for name, value in changes.items():
        setattr(subscriptions[which], name, value)
    return subscriptions


def test_what_is_missing_is_created_and_topics_come_first() -> None:
    changes = compare(NAMES, [NAMES.results], [])
    assert [str(change) for change in changes] == [
        "topic jobs: missing",
        "topic dead: missing",
        "subscription jobs-sub: missing",
        "subscription results-sub: missing",
        "subscription dead-sub: missing",
    ]
    assert {change.step for change in changes} == {Step.CREATE}


def test_what_is_as_it_should_be_is_left_alone() -> None:
    assert compare(NAMES, NAMES, desired(NAMES)) == []
    theirs = {"labels": {"team": "us"}, "enable_message_ordering": True}
    assert compare(NAMES, NAMES, found(RESULTS, **theirs)) == []


def test_the_emulator_reports_no_policy_where_it_never_expires_anything() -> None:
    assert compare(NAMES, NAMES, found(JOBS, expiration_policy=None)) == []


@pytest.mark.parametrize(
    ("which", "field", "value", "difference"),
    [
        (JOBS, "ack_deadline_seconds", 10, "ack deadline 10 s → 300 s"),
        (DEAD, "ack_deadline_seconds", 300, "ack deadline 300 s → 60 s"),
        (RESULTS, "message_retention_duration", timedelta(days=1), "retention 1 day → 7 days"),
        (JOBS, "message_retention_duration", timedelta(minutes=10), "retention 600 s → 7 days"),
        (
            JOBS,
            "expiration_policy",
            ExpirationPolicy(ttl=timedelta(days=31)),
            "expiry after 31 days → never",
        ),
        (JOBS, "retry_policy", None, "redelivery at once → after 1 s to 60 s"),
        (
            DEAD,
            "retry_policy",
            RetryPolicy(minimum_backoff=timedelta(seconds=10), maximum_backoff=timedelta(seconds=600)),
            "redelivery after 10 s to 600 s → after 1 s to 60 s",
        ),
        (
            JOBS,
            "dead_letter_policy",
            None,
            "dead letters none → to projects/p/topics/dead after 100 deliveries",
        ),
        (
            RESULTS,
            "dead_letter_policy",
            DeadLetterPolicy(dead_letter_topic=DELETED, max_delivery_attempts=5),
            "dead letters to _deleted-topic_ after 5 deliveries → none",
        ),
    ],
)
def test_a_setting_that_differs_is_updated_and_nothing_else(
    which: int, field: str, value: object, difference: str
) -> None:
    [change] = compare(NAMES, NAMES, found(which, **{field: value}))
    assert (change.step, change.fields, change.found) == (Step.UPDATE, (field,), difference)
    assert change.done == str(change) == f"subscription {change.name}: {difference}"


@pytest.mark.parametrize(
    ("which", "changes", "step"),
    [
        (JOBS, {"topic": DELETED}, Step.RECREATE),
        (RESULTS, {"topic": DELETED}, Step.BY_HAND),
        (DEAD, {"topic": DELETED}, Step.BY_HAND),
        (RESULTS, {"detached": True, "topic": DELETED}, Step.RECREATE),
        (JOBS, {"topic": NAMES.results}, Step.BY_HAND),
        (DEAD, {"filter": 'attributes.type = "x"'}, Step.BY_HAND),
    ],
    ids=["jobs orphaned", "results orphaned", "dead orphaned", "detached", "another topic's", "filtered"],
)
def test_only_what_can_hold_nothing_of_worth_is_made_anew(
    which: int, changes: dict[str, object], step: Step
) -> None:
    """One with its topic deleted still hands out what it holds; a detached one has lost it."""
    [change] = compare(NAMES, NAMES, found(which, **changes))
    assert change.step is step
    assert ("delete the subscription" in change.fix) == (step is Step.BY_HAND)


@pytest.fixture
def own(broker: BrokerAt, monkeypatch: pytest.MonkeyPatch) -> Names:
    """Names in a project of the test's own, on the broker that our clients find."""
    monkeypatch.setenv(EMULATOR, broker.host)
    return names(load({"OUTRIDER_PUBSUB_PROJECT": broker.project}))


@pytest.fixture
def faked(fake: FakePubSub, monkeypatch: pytest.MonkeyPatch) -> Names:
    monkeypatch.setenv(EMULATOR, fake.host)
    monkeypatch.setattr(provisioning, "PATIENCE_SECONDS", 1.0)
    monkeypatch.setattr(provisioning, "MIN_PAUSE_SECONDS", 0.01)
    return names(load({"OUTRIDER_PUBSUB_PROJECT": "faked"}))


@pytest.fixture
async def clients() -> AsyncIterator[Clients]:
    async with open_clients() as opened:
        yield opened


async def provisioned(clients: Clients, own: Names) -> list[Change]:
    async with asyncio.timeout(20):
        return [change async for change in provision(clients, own)]


async def subscription(clients: Clients, topic: str) -> Subscription:
    name = Names.subscription(topic)
    return await clients.subscriber.get_subscription(subscription=name, retry=None, timeout=5)


async def test_from_nothing_to_everything_and_then_there_is_nothing_to_change(
    own: Names, clients: Clients
) -> None:
    assert len(await examine(clients, own)) == 6
    assert [change.done for change in await provisioned(clients, own)] == [
        "created topic pipeline-jobs",
        "created topic pipeline-results",
        "created topic pipeline-dlq",
        "created subscription pipeline-jobs-sub",
        "created subscription pipeline-results-sub",
        "created subscription pipeline-dlq-sub",
    ]
    assert await provisioned(clients, own) == []
    assert await examine(clients, own) == []
    made = [await subscription(clients, topic) for topic in own]
    assert [each.ack_deadline_seconds for each in made] == [300, 60, 60]
    assert [each.dead_letter_policy.max_delivery_attempts for each in made] == [100, 0, 0]
    assert "ttl" not in made[JOBS].expiration_policy


async def test_settings_are_fixed_in_place_and_foreign_ones_stay(own: Names, clients: Clients) -> None:
    await provisioned(clients, own)
    name = Names.subscription(own.jobs)
    await clients.subscriber.delete_subscription(subscription=name)
    theirs = Subscription(name=name, topic=own.jobs, ack_deadline_seconds=20, retain_acked_messages=True)
    theirs.expiration_policy = ExpirationPolicy()  # the emulator cannot change it
    await clients.subscriber.create_subscription(request=theirs)
    [change] = await provisioned(clients, own)
    assert change.fields == ("ack_deadline_seconds", "retry_policy", "dead_letter_policy")
    fixed = await subscription(clients, own.jobs)
    assert (fixed.ack_deadline_seconds, fixed.retain_acked_messages) == (300, True)
    assert fixed.dead_letter_policy.dead_letter_topic == own.dead_letters
    assert await examine(clients, own) == []


async def test_the_services_own_expiry_is_taken_away(faked: Names, clients: Clients) -> None:
    await clients.publisher.create_topic(name=faked.results)
    bare = Subscription(name=Names.subscription(faked.results), topic=faked.results)
    await clients.subscriber.create_subscription(request=bare)
    changes = {change.name: change.found for change in await provisioned(clients, faked)}
    assert "expiry after 31 days → never" in changes["pipeline-results-sub"]
    assert await examine(clients, faked) == []


async def test_after_a_topic_was_deleted_results_are_kept_and_the_jobs_flow_again(
    own: Names, clients: Clients
) -> None:
    await provisioned(clients, own)
    for topic in (own.jobs, own.results):
        await clients.publisher.publish(topic=topic, messages=[PubsubMessage(data=b"before")])
        await clients.publisher.delete_topic(topic=topic)
    changes = await provisioned(clients, own)
    assert [(change.step, change.name) for change in changes] == [
        (Step.CREATE, "pipeline-jobs"),
        (Step.CREATE, "pipeline-results"),
        (Step.RECREATE, "pipeline-jobs-sub"),
        (Step.BY_HAND, "pipeline-results-sub"),
    ]
    assert await provisioned(clients, own) == changes[3:], "it is reported until it is done"
    await clients.publisher.publish(topic=own.jobs, messages=[PubsubMessage(data=b"after")])
    assert await pulled(clients, own.jobs) == b"after"
    assert await pulled(clients, own.results) == b"before"
    await clients.subscriber.delete_subscription(subscription=Names.subscription(own.results))
    assert [change.done for change in await provisioned(clients, own)] == [
        "created subscription pipeline-results-sub"
    ]


async def pulled(clients: Clients, topic: str) -> bytes:
    request = {"subscription": Names.subscription(topic), "max_messages": 1}
    async with asyncio.timeout(20):
        response = await clients.subscriber.pull(request=request, retry=None, timeout=10)
    return bytes(response.received_messages[0].message.data)


async def test_many_at_once_end_in_one_state(own: Names, clients: Clients) -> None:
    await asyncio.gather(*(provisioned(clients, own) for _ in range(4)))
    assert await examine(clients, own) == []


@pytest.mark.parametrize("method", ["CreateTopic", "CreateSubscription", "UpdateSubscription"])
async def test_an_outage_or_a_lost_reply_only_takes_longer(
    fake: FakePubSub, faked: Names, clients: Clients, method: str
) -> None:
    await provisioned(clients, faked)
    await clients.subscriber.update_subscription(
        subscription=Subscription(name=Names.subscription(faked.jobs), ack_deadline_seconds=20),
        update_mask={"paths": ["ack_deadline_seconds"]},
    )
    await clients.publisher.delete_topic(topic=faked.dead_letters)
    await clients.subscriber.delete_subscription(subscription=Names.subscription(faked.dead_letters))
    failing = fake.inject(Fail(method=method, times=2))
    losing = fake.inject(LoseReply(method=method, times=1))
    await provisioned(clients, faked)
    assert (failing.hits, losing.hits) == (2, 1)
    assert await examine(clients, faked) == []


@pytest.mark.parametrize(
    ("method", "code", "fix"),
    [
        ("GetTopic", grpc.StatusCode.UNAVAILABLE, "names a running emulator"),
        ("GetTopic", grpc.StatusCode.UNAUTHENTICATED, "roles/pubsub.editor"),
        ("GetSubscription", grpc.StatusCode.PERMISSION_DENIED, "roles/pubsub.editor"),
        ("CreateTopic", grpc.StatusCode.NOT_FOUND, "OUTRIDER_PUBSUB_PROJECT"),
        ("CreateTopic", grpc.StatusCode.ALREADY_EXISTS, "run `outrider provision` again"),
        ("CreateSubscription", grpc.StatusCode.INVALID_ARGUMENT, "see the message"),
    ],
)
async def test_what_stands_in_the_way_is_named_with_its_fix(
    fake: FakePubSub, faked: Names, clients: Clients, method: str, code: grpc.StatusCode, fix: str
) -> None:
    fake.inject(Fail(method=method, code=code))
    with pytest.raises(BrokerError) as caught:
        await provisioned(clients, faked)
    assert fix in caught.value.fix
    assert caught.value.found
    assert caught.value.fix in str(caught.value)


async def test_looking_changes_nothing(fake: FakePubSub, faked: Names, clients: Clients) -> None:
    await examine(clients, faked)
    assert set(fake.calls) == {"GetTopic", "GetSubscription"}
