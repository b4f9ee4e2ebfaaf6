"""Controls a fake in another process: a second gRPC server, which stays up, injects faults into the first.

Its one unary method takes and returns JSON. `Control` serves the method, `Remote` calls it.
"""

from __future__ import annotations

import base64
import json
import sys
from asyncio import timeout
from asyncio.subprocess import PIPE, create_subprocess_exec
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import grpc
import grpc.aio

from ops.harness.process import ROOT
from ops.harness.pubsub_fake.broker import PubsubMessage
from ops.harness.pubsub_fake.faults import Fault, from_json, to_json
from ops.harness.pubsub_fake.limits import Raw
from ops.harness.pubsub_fake.server import FakePubSub
from ops.harness.pubsub_fake.subscription import Log, Subscription

SERVICE = "outrider.fake.Control"
METHOD = "Call"
SECONDS = 10
UNBOUNDED = (("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1))


class Control:
    """The public coroutines can be called by name. Arguments and answers are JSON."""

    def __init__(self, fake: FakePubSub) -> None:
        self._fake = fake
        self._faults: list[Fault] = []

    def handler(self) -> Any:
        call: Any = grpc.unary_unary_rpc_method_handler(self._call)
        return grpc.method_handlers_generic_handler(SERVICE, {METHOD: call})

    async def _call(self, request: bytes, context: Any) -> bytes:
        name, arguments = json.loads(request)
        try:
            return json.dumps(await getattr(self, name)(**arguments)).encode()
        except (AttributeError, LookupError, TypeError, ValueError) as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"{name}: {error!r}")
            raise

    async def start(self) -> None:
        await self._fake.start()

    async def stop(self) -> None:
        await self._fake.stop()

    async def advance(self, seconds: float) -> None:
        self._fake.clock.advance(seconds)

    async def inject(self, fault: dict[str, Any]) -> int:
        self._faults.append(self._fake.inject(from_json(fault)))
        return len(self._faults) - 1

    async def lift(self, number: int) -> None:
        self._fake.lift(self._faults[number])

    async def heal(self) -> None:
        self._fake.heal()

    async def hits(self, number: int) -> int:
        return self._faults[number].hits

    async def cut_streams(self, on: str, code: str) -> None:
        self._fake.cut_streams(on, grpc.StatusCode[code])

    async def published(self, topic: str, start: int) -> list[str]:
        messages = self._fake.published(topic)[start:]
        return [base64.b64encode(message.SerializeToString()).decode() for message in messages]

    async def state(self) -> dict[str, Any]:
        broker = self._fake.broker
        return {
            "calls": dict(self._fake.calls),
            "topics": {name: topic.published.total for name, topic in broker.topics.items()},
            "subscriptions": {name: _counts(each) for name, each in broker.subscriptions.items()},
        }


class Remote:
    """The fake in another process, with most of FakePubSub's methods. Faults are identified by their numbers."""

    def __init__(self, host: str, channel: grpc.aio.Channel) -> None:
        self.host = host
        self._method: Any = channel.unary_unary(f"/{SERVICE}/{METHOD}")

    async def start(self) -> None:
        await self._call("start")

    async def stop(self) -> None:
        """Stop Pub/Sub. The fake keeps its state, and `start` serves it again at the same port."""
        await self._call("stop")

    async def advance(self, seconds: float) -> None:
        await self._call("advance", seconds=seconds)

    async def inject(self, fault: Fault) -> int:
        return int(await self._call("inject", fault=to_json(fault)))

    async def lift(self, number: int) -> None:
        await self._call("lift", number=number)

    async def heal(self) -> None:
        await self._call("heal")

    async def hits(self, number: int) -> int:
        return int(await self._call("hits", number=number))

    async def cut_streams(self, on: str, code: grpc.StatusCode = grpc.StatusCode.UNAVAILABLE) -> None:
        await self._call("cut_streams", on=on, code=code.name)

    async def published(self, topic: str, start: int = 0) -> list[Raw]:
        """Raw PubsubMessages from the `start`th on, in the order in which they were accepted."""
        messages = await self._call("published", topic=topic, start=start)
        return [PubsubMessage.FromString(base64.b64decode(message)) for message in messages]

    async def state(self) -> dict[str, Any]:
        """Counts: `calls` by method, `topics` with the messages published to each, `subscriptions` with a dict each of
        backlog, outstanding, delivered, acked, nacked, expired and streams.
        """
        state: dict[str, Any] = await self._call("state")
        return state

    async def _call(self, name: str, **arguments: Any) -> Any:
        return json.loads(await self._method(json.dumps([name, arguments]).encode(), timeout=SECONDS))


@asynccontextmanager
async def pubsub_process(*options: str) -> AsyncIterator[Remote]:
    """A fake in a child process. Its standard input ends with this process, and so does the fake.

    `options` are those of `python -m ops.harness.pubsub_fake`.
    """
    command = [sys.executable, "-m", "ops.harness.pubsub_fake", "--tied", *options]
    child = await create_subprocess_exec(*command, stdin=PIPE, stdout=PIPE, cwd=ROOT)
    try:
        assert child.stdout is not None
        async with timeout(SECONDS):
            said = json.loads(await child.stdout.readline())
        async with grpc.aio.insecure_channel(said["control"], options=UNBOUNDED) as channel:
            yield Remote(said["host"], channel)
    finally:
        with suppress(ProcessLookupError):  # it ended by itself
            child.kill()
        await child.wait()


def _counts(subscription: Subscription) -> dict[str, int]:
    logs = {name: log.total for name, log in vars(subscription).items() if isinstance(log, Log)}
    return logs | {
        "backlog": len(subscription.backlog),
        "outstanding": len(subscription.outstanding),
        "streams": len(subscription.receivers),
    }
