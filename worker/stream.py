"""One StreamingPull call of a subscription: reads messages, and ends by half-closing the call."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, Final, NamedTuple

import grpc
from google.pubsub_v1.types import StreamingPullRequest, StreamingPullResponse

from engine.cancellation import being_cancelled
from engine.pubsub.client import Fault, code, details, fault, routed
from engine.pubsub.messages import NONE

ACK_SECONDS: Final = 300
KEEP_ALIVE_SECONDS: Final = 25.0
CLOSE_SECONDS: Final = 5.0
"""How long the broker may take to end a half-closed stream."""

RawRequest: Final = StreamingPullRequest.pb()


class Received(NamedTuple):
    """A message as received. `ack_id` names this delivery, not the message."""

    ack_id: str
    message_id: str
    data: bytes
    attributes: Mapping[str, str] = NONE


class StreamLost(Exception):
    """The stream brings no more messages, and nobody has closed it."""

    def __init__(self, kind: Fault, reason: grpc.StatusCode, text: str) -> None:
        super().__init__(text)
        self.kind = kind
        self.reason = reason


class Stream:
    """An open stream. At most `outstanding` messages are unacknowledged, if the broker honours that limit.

    `close` half-closes the call first: the emulator goes on delivering to a cancelled call for 90 s. Every method may
    raise StreamLost, whatever failed: the broker, the credentials, gRPC itself or a response that cannot be read.
    """

    def __init__(self, open_call: Callable[..., Any], subscription: str, outstanding: int) -> None:
        self._subscription = subscription
        self._outstanding = outstanding
        self._closing = asyncio.Event()
        with _losing():
            self._call = open_call(self._requests(), metadata=routed(subscription, "subscription"))

    @property
    def closing(self) -> bool:
        return self._closing.is_set()

    async def connected(self) -> None:
        """Wait until the call has reached the broker."""
        with _losing():
            await self._call.wait_for_connection()

    async def read(self) -> list[Received] | None:
        """The next messages; None when the stream has ended after `close`.

        Cancelling this call would cancel the stream: use `close` instead.
        """
        try:
            with _losing():
                response = await self._call.read()
        except StreamLost as lost:
            # The end of a closed stream, which gRPC reports so if the broker took too long to end it.
            if self.closing and lost.reason is grpc.StatusCode.CANCELLED:
                return None
            raise
        if response is grpc.aio.EOF:
            if self.closing:
                return None
            raise StreamLost(Fault.PASSING, grpc.StatusCode.OK, "the broker ended the stream")
        if response is None:
            # gRPC has logged why.
            raise StreamLost(Fault.PASSING, grpc.StatusCode.INTERNAL, "a response could not be read")
        raw = StreamingPullResponse.pb(response).received_messages
        return [
            Received(each.ack_id, each.message.message_id, each.message.data, each.message.attributes)
            for each in raw
        ]

    def close(self) -> None:
        """Half-close the call. `read` goes on until the broker ends the call, at most for CLOSE_SECONDS."""
        if not self.closing:
            self._closing.set()
            asyncio.get_running_loop().call_later(CLOSE_SECONDS, self._call.cancel)

    async def _requests(self) -> AsyncIterator[Any]:
        yield RawRequest(
            subscription=self._subscription,
            stream_ack_deadline_seconds=ACK_SECONDS,
            max_outstanding_messages=self._outstanding,
        )
        while not self.closing:
            with suppress(TimeoutError):
                async with asyncio.timeout(KEEP_ALIVE_SECONDS):
                    await self._closing.wait()
                    return
            yield RawRequest()


@contextmanager
def _losing() -> Iterator[None]:
    """Raise whatever fails in a call as StreamLost."""
    try:
        yield
    except asyncio.CancelledError as error:
        if being_cancelled():
            raise
        # The reader was not cancelled: this is how gRPC reports a cancelled call.
        raise StreamLost(Fault.PASSING, grpc.StatusCode.CANCELLED, "the call was cancelled") from error
    except Exception as error:
        raise StreamLost(fault(error), code(error), details(error)) from error
