"""A reader with gRPC's default options takes every message that a relay sends: nothing is larger than 4 MiB."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import grpc
import pytest
from google import pubsub_v1 as types

from engine.model import JobState, Reason
from engine.moves import Ending, finish
from engine.pubsub.messages import Undecodable, undecodable
from engine.tables import events
from tests.relay.relay_harness import RelayHarness
from tests.support.database import started, worker

PullRequest, PullResponse = types.PullRequest.pb(), types.PullResponse.pb()
MAX_OUTPUT = 4 * 2**20


async def pulled(host: str, subscription: str) -> list[bytes]:
    async with grpc.aio.insecure_channel(host) as channel:
        pull = channel.unary_unary(
            "/google.pubsub.v1.Subscriber/Pull", PullRequest.SerializeToString, PullResponse.FromString
        )
        name = f"projects/test/subscriptions/{subscription}"
        answer = await pull(PullRequest(subscription=name, max_messages=1), timeout=20)
        return [each.message.data for each in answer.received_messages]


@pytest.mark.parametrize("letter", ["x", "ü", "😀"])
@pytest.mark.parametrize("size", [MAX_OUTPUT, MAX_OUTPUT - 512, 3_604_480])
async def test_a_result_of_any_allowed_size_reaches_a_reader_with_default_options(
    relay_harness: RelayHarness, letter: str, size: int
) -> None:
    me = await worker(relay_harness.conn)
    attempt = await started(relay_harness.conn, me, user_id="\u0001" * 255)
    count, rest = divmod(size - 2, len(letter.encode()))
    output = json.dumps(letter * count + "x" * rest, ensure_ascii=False)
    ending = Ending(*attempt.key, JobState.COMPLETED, Reason.COMPLETED, output)
    await finish(relay_harness.conn, me, [ending], publish_results=True)
    async with relay_harness.relay():
        await relay_harness.all_left()
    [data] = await pulled(relay_harness.fake.host, "pipeline-results-sub")
    body = json.loads(data)
    assert body["output"] == json.loads(output) or (body["output"], body["output_bytes"]) == (None, size)


async def test_the_dead_letter_of_a_stray_message_of_9_megabytes_leaves_and_is_read(
    relay_harness: RelayHarness,
) -> None:
    stray = {f"{n:03}" + "k" * 253: "v" * 1024 for n in range(100)}
    letter = undecodable("7", b"\xff" * 9_000_000, Undecodable("no JSON"), datetime.now(UTC), stray)
    await events.write(relay_harness.conn, "dead-letters", letter)
    async with relay_harness.relay():
        await relay_harness.all_left()
    [data] = await pulled(relay_harness.fake.host, "pipeline-dlq-sub")
    assert json.loads(data)["raw_bytes"] == 9_000_000
