"""Delivers the rows of one request: marks what the broker takes, and finds by halving what it does not take."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Final, Generic, NamedTuple

from psycopg import Error

from engine.errors import DatabaseUnavailable
from engine.pubsub.client import Fault
from engine.pubsub.messages import Message
from relay.publishing.answers import UNSENDABLE, Answer, Verdict
from relay.publishing.broker import Broker
from relay.publishing.outbox_sources import Cause, ItemT, OutboxSource
from relay.publishing.request_size import SMALL_BYTES

HOPELESS: Final = 2
"""So many messages that failed alone, while none was taken, are a fault of the broker's: the search ends."""


class Outgoing(NamedTuple, Generic[ItemT]):
    item: ItemT
    message: Message
    failures: int
    """How often the message has failed alone. One that has is given to us alone."""

    @classmethod
    def of(cls, item: ItemT) -> Outgoing[ItemT]:
        return cls(item, item.message, getattr(item, "failures", 0))


class Delivery(Generic[ItemT]):
    """One request of a topic, and the smaller ones that follow from it, until its reservation ends at `until`.

    `apart`: a row that fails is set back, so that the next probe tries another row.
    """

    def __init__(
        self, source: OutboxSource[ItemT], broker: Broker, until: float, *, apart: bool = False
    ) -> None:
        self._source = source
        self._broker = broker
        self._until = until
        self._apart = apart
        self._taken = False
        self._alone: list[tuple[Outgoing[ItemT], Answer]] = []
        """The messages that failed alone, and perhaps for their own fault."""

    async def run(self, items: Sequence[ItemT]) -> None:
        """Publish `items`, then mark, release, set back or refuse each of them. Raises the database's errors."""
        failed: DatabaseUnavailable | Error | None = None
        try:
            await self._publish([Outgoing.of(item) for item in items])
        except (DatabaseUnavailable, Error) as error:
            failed = error
        await self._blame()
        if failed is not None:
            raise failed

    async def _publish(self, rows: Sequence[Outgoing[ItemT]]) -> None:
        size = sum(row.item.weight for row in rows)
        items = [row.item for row in rows]
        answer = await self._broker.ask([row.message for row in rows], size)
        if answer is None:
            self._taken = True
            self._broker.answered()
            await self._source.sent(items)
        elif answer.verdict is Verdict.REFUSED:
            if answer.code != UNSENDABLE:
                self._broker.answered()
            await self._search(rows, answer)
        elif answer.verdict is Verdict.DOUBTFUL and (self._apart or self._searchable(answer)):
            await self._search(rows, answer)
        elif answer.verdict is Verdict.TOO_SLOW and size > SMALL_BYTES and self._broker.closed:
            # No proof that the broker is away. The next requests are smaller, and say more.
            await self._give_up(items, answer, Cause.TRANSIENT, 0.0)
        else:
            seconds = self._broker.unanswered(answer)
            await self._give_up(items, answer, self._cause(rows[0], answer), seconds)

    def _searchable(self, answer: Answer) -> bool:
        """A missing topic or right is one for every message, unless messages are taken."""
        return answer.fault is not Fault.MISCONFIGURED or self._taken or self._broker.healthy

    def _cause(self, row: Outgoing[ItemT], answer: Answer) -> Cause | None:
        """Why a row is set back that got no answer, or an answer that should pass. None: it need not be."""
        if (row.failures or self._apart) and self._broker.healthy:
            return Cause.TRANSIENT
        # Missing credentials are missing for every message.
        return Cause.UNKNOWN if self._apart and answer.fault is Fault.PASSING else None

    async def _give_up(
        self, items: Sequence[ItemT], answer: Answer, cause: Cause | None, pause: float
    ) -> None:
        if cause is not None and len(items) == 1:
            await self._source.set_back(items[0], str(answer), cause, pause)
        else:
            await self._source.release(items)

    async def _search(self, rows: Sequence[Outgoing[ItemT]], answer: Answer) -> None:
        if len(rows) > 1:
            await self._publish_halves(rows)
        elif answer.verdict is Verdict.REFUSED:
            await self._source.refuse(rows[0].item, answer.details)
        else:
            self._alone.append((rows[0], answer))

    async def _publish_halves(self, rows: Sequence[Outgoing[ItemT]]) -> None:
        """Find the bad message by halving: the broker refuses a whole request for one message.

        Raises the database's error after both halves have been tried.
        """
        middle = len(rows) // 2
        failed: DatabaseUnavailable | Error | None = None
        for half in (rows[:middle], rows[middle:]):
            try:
                if self._over:
                    await self._source.release([row.item for row in half])
                else:
                    await self._publish(half)
            except (DatabaseUnavailable, Error) as error:
                failed = error
        if failed is not None:
            raise failed

    @property
    def _over(self) -> bool:
        """Whether the search ends: it is hopeless, or another relay may have the rows by now."""
        hopeless = len(self._alone) >= HOPELESS and not self._taken
        return hopeless or time.monotonic() >= self._until

    async def _blame(self) -> None:
        """A message that fails alone while others are taken is to blame itself, else the broker is."""
        if not self._alone:
            return
        guilty, pause = self._taken or self._broker.healthy, 0.0
        if not guilty:
            pause = self._broker.unanswered(self._alone[-1][1])
        for row, answer in self._alone:
            if not self._taken:
                self._broker.failed_alone(answer, before=row.failures > 0)
            cause = Cause.GUILTY if guilty else Cause.UNKNOWN
            await self._source.set_back(row.item, str(answer), cause, pause)
