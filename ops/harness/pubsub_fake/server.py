"""The fake as a gRPC server that can stop and start again, with the methods that tests use."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from random import Random
from typing import Any, Self, TypeVar

import grpc
import grpc.aio

from ops.harness.pubsub_fake.broker import Broker, Topic
from ops.harness.pubsub_fake.calls import Calls
from ops.harness.pubsub_fake.clock import Clock
from ops.harness.pubsub_fake.faults import Fault, Faults, Stall
from ops.harness.pubsub_fake.limits import Raw, Refusal
from ops.harness.pubsub_fake.subscription import Subscription

TICK_SECONDS = 0.02
GRACE_SECONDS = 1.0
OPTIONS = [
    # Otherwise two servers could listen at one port and share its connections.
    ("grpc.so_reuseport", 0),
    ("grpc.max_receive_message_length", -1),
]
F = TypeVar("F", bound=Fault)
T = TypeVar("T")


class FakePubSub:
    """A Pub/Sub at `host` ("127.0.0.1:port") inside the `async with` block, or between `start` and `stop`.

    `stop` ends every call with UNAVAILABLE (gRPC answers CANCELLED to a call that comes in at that moment) and keeps
    the state. `start` serves the state again at the same port.
    Topics and subscriptions are named in full or by the last part of the name. `options` are gRPC's for a server, such
    as the age of its connections. Its policy on pings is gRPC's own.
    """

    def __init__(
        self,
        port: int = 0,
        *,
        seed: int = 0,
        keep_history: bool = True,
        options: Sequence[tuple[str, int]] = (),
    ) -> None:
        # The generator decides which faults strike: the same faults for the same seed.
        rng = Random(seed)  # noqa: S311
        self.port = port
        self._options = [*OPTIONS, *options]
        self.clock = Clock()
        self.faults = Faults(rng)
        self.broker = Broker(self.clock, self.faults, rng, keep_history)
        self._calls = Calls(self.broker, self.faults)
        self._server: Any = None
        self._ticking: asyncio.Task[None] | None = None
        self.clock.moved = self.broker.tick

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def calls(self) -> Counter[str]:
        """How often each method was called, by name."""
        return self._calls.counts

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def start(self) -> None:
        if self._server is not None:
            return
        self._calls.resume()
        self._server = grpc.aio.server(options=self._options)
        self._server.add_generic_rpc_handlers(self._calls.handlers())
        self.port = self._server.add_insecure_port(self.host)
        await self._server.start()
        self._ticking = asyncio.create_task(self._tick())

    async def stop(self) -> None:
        if self._server is None or self._ticking is None:
            return
        self._calls.stop()
        server, self._server = self._server, None
        await server.stop(GRACE_SECONDS)
        self._ticking.cancel()
        with suppress(asyncio.CancelledError):
            await self._ticking

    def inject(self, fault: F) -> F:
        if isinstance(fault, Stall) and not fault.new_streams:
            fault.before = next(self._calls.numbers)
        return self.faults.inject(fault)

    def lift(self, fault: Fault) -> None:
        self.faults.lift(fault)
        self._wake()

    def heal(self) -> None:
        """Lift every fault."""
        self.faults.clear()
        self._wake()

    def cut_streams(self, on: str, code: grpc.StatusCode = grpc.StatusCode.UNAVAILABLE) -> None:
        """End the subscription's open streams, as the service does now and then."""
        self.subscription(on).close(Refusal(code, "the stream was cut"))

    def topic(self, name: str) -> Topic:
        return _named(self.broker.topics, name)

    def subscription(self, name: str) -> Subscription:
        return _named(self.broker.subscriptions, name)

    def published(self, topic: str) -> list[Raw]:
        """Raw PubsubMessages, in the order in which they were accepted."""
        return self.topic(topic).published.items

    def acked(self, subscription: str) -> list[str]:
        """Message ids, each once."""
        return self.subscription(subscription).acked.items

    def nacked(self, subscription: str) -> list[str]:
        return self.subscription(subscription).nacked.items

    def streams(self, subscription: str) -> int:
        """The number of open streams. A waiting pull counts as a stream."""
        return len(self.subscription(subscription).receivers)

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK_SECONDS)
            self.broker.tick()

    def _wake(self) -> None:
        for subscription in self.broker.subscriptions.values():
            for receiver in subscription.receivers:
                receiver.wake.set()


def _named(those: dict[str, T], name: str) -> T:
    found = [each for whole, each in those.items() if name in (whole, whole.rpartition("/")[2])]
    if len(found) != 1:
        raise LookupError(f"{name!r} is not one of {list(those)}, or more than one")
    return found[0]
