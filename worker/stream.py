"""One StreamingPull of a subscription: read its messages, and end it by half-closing it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from typing import Any, Final, NamedTuple

import grpc
from google.pubsub_v1.types import StreamingPullRequest, StreamingPullResponse

from engine.pubsub.client import routed

ACK_SECONDS: Final = 300
KEEP_ALIVE_SECONDS: Final = 25.0
CLOSE_SECONDS: Final = 5.0
"""How long the broker may take to end a stream that was half-closed."""

RawRequest: Final = StreamingPullRequest.pb()


class Received(NamedTuple):
    """A message as it came; `ack_id` is of this delivery."""

    ack_id: str
    message_id: str
    data: bytes


class Stream:
    """An open stream. At most `outstanding` messages wait for their acknowledgement, where the broker heeds that.

    It is not cancelled while it can be half-closed: the emulator goes on delivering to a cancelled call for 90 s.
    """

    def __init__(self, open_call: Callable[..., Any], subscription: str, outstanding: int) -> None:
        self._subscription = subscription
        self._outstanding = outstanding
        self._closing = asyncio.Event()
        self._call = open_call(self._requests(), metadata=routed(subscription, "subscription"))

    @property
    def closing(self) -> bool:
        return self._closing.is_set()

    async def connected(self) -> None:
        """Wait until the call has reached the broker. Raises grpc.RpcError."""
        await self._call.wait_for_connection()

    async def read(self) -> list[Received] | None:
        """The next messages; None when the stream has ended, or was made to. Raises grpc.RpcError.

        To cancel this would cancel the stream: close it instead.
        """
        try:
            response = await self._call.read()
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            return None  # nobody has cancelled the reader: this is how gRPC tells of a call that was
        if response is grpc.aio.EOF:
            return None
        raw = StreamingPullResponse.pb(response).received_messages
        return [Received(each.ack_id, each.message.message_id, each.message.data) for each in raw]

    def close(self) -> None:
        """Half-close it; `read` goes on until the broker has ended it too, or is made to end."""
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
