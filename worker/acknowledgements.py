"""Settles the messages of a subscription: acknowledges them in groups, or gives them back to the broker."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any, Final

import structlog
from google.pubsub_v1.types import AcknowledgeRequest, ModifyAckDeadlineRequest

from engine.cancellation import survivable
from engine.process.run import pause
from engine.pubsub.client import code, details, routed
from engine.storage.batcher import Batcher
from engine.telemetry.metrics import MESSAGES, UNACKNOWLEDGED

CALL_SECONDS: Final = 5.0
ACK_PAUSES: Final = (0.1, 1.0, 0.0)
"""Seconds to wait after each failed try to acknowledge."""
MAX_IDS: Final = 1000
"""Ack ids in one request: an ack id has up to 200 bytes, and a request up to 512 KiB."""

RELEASED: Final = MESSAGES.labels("released")

log = structlog.get_logger()

RawAcknowledge: Final = AcknowledgeRequest.pb()
RawModify: Final = ModifyAckDeadlineRequest.pb()


class Acknowledgements:
    """The acknowledgements of one subscription. Once `closing` is set, a failed one is tried again without a pause."""

    def __init__(self, transport: Any, subscription: str, closing: asyncio.Event) -> None:
        self._transport = transport
        self._subscription = subscription
        self._closing = closing
        self._acks: Batcher[str, None] = Batcher(self._acknowledge, max_group=MAX_IDS)
        self._failing = False

    def put(self, ack_id: str) -> None:
        """Acknowledge a message soon. No caller waits for it, because PostgreSQL owns the job already."""
        self._acks.put(ack_id)

    async def drain(self) -> None:
        """Wait until all is acknowledged, for one call's time at most."""
        # Messages that stay unacknowledged are delivered again, and are late then.
        with suppress(TimeoutError):
            async with asyncio.timeout(CALL_SECONDS):
                await self._acks.drain()

    async def release(self, ids: Sequence[str]) -> None:
        """Give messages back: other workers get them before their ack deadline."""
        for start in range(0, len(ids), MAX_IDS):
            batch = ids[start : start + MAX_IDS]
            request = RawModify(subscription=self._subscription, ack_ids=batch, ack_deadline_seconds=0)
            if not await self._sent(self._transport.modify_ack_deadline, request):
                # The broker delivers the messages again at their ack deadline.
                return
            RELEASED.inc(len(batch))

    async def _acknowledge(self, ids: Sequence[str]) -> list[None]:
        """Acknowledge, with retries: an unacknowledged message takes room in the stream until its ack deadline."""
        request = RawAcknowledge(subscription=self._subscription, ack_ids=ids)
        for seconds in ACK_PAUSES:
            if await self._sent(self._transport.acknowledge, request):
                return [None] * len(ids)
            await pause(self._closing, seconds)
        UNACKNOWLEDGED.inc(len(ids))
        return [None] * len(ids)

    async def _sent(self, call: Callable[..., Awaitable[Any]], request: Any) -> bool:
        """Whether the broker has taken `request`. The first of several failures in a row is logged.

        Anything may fail: the broker, the credentials or gRPC itself. No message is worth the end of a loop.
        """
        try:
            await call(request, timeout=CALL_SECONDS, metadata=routed(self._subscription, "subscription"))
        except BaseException as error:
            if not survivable(error):
                raise
            if not self._failing:
                log.warning("messages.not_settled", reason=code(error).name, error=details(error))
            self._failing = True
            return False
        self._failing = False
        return True
