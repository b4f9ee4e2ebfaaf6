"""Somebody else who reads what the engine announces."""

from __future__ import annotations

from collections import Counter
from contextlib import suppress
from typing import Any, Final

import orjson
from google.api_core.exceptions import DeadlineExceeded
from google.pubsub_v1.types import ReceivedMessage

from tests.support.pubsub_clients import clients
from tests.system.chaos.fleet import PROJECT

PULL_SECONDS: Final = 5.0


class Subscriber:
    """Reads a subscription as any other client would. `seen`: message id → how often it came, and its body."""

    def __init__(self, host: str, subscription: str) -> None:
        self._host = host
        self._subscription = subscription
        self.seen: Counter[str] = Counter()
        self.bodies: dict[str, dict[str, Any]] = {}

    async def read(self) -> None:
        """Until cancelled."""
        async with clients(self._host, PROJECT) as google:
            name = google.subscription(self._subscription)
            while True:
                with suppress(DeadlineExceeded):  # there was nothing
                    answer = await google.subscriber.pull(
                        subscription=name, max_messages=1000, retry=None, timeout=PULL_SECONDS
                    )
                    for each in answer.received_messages:
                        self._note(each)
                    if answer.received_messages:
                        ack_ids = [each.ack_id for each in answer.received_messages]
                        await google.acknowledge(ack_ids, self._subscription)

    def _note(self, received: ReceivedMessage) -> None:
        name = received.message.attributes["message_id"]
        self.seen[name] += 1
        self.bodies.setdefault(name, orjson.loads(received.message.data))
