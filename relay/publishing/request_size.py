"""How much one request of a topic may hold, and how long it may take: by its bytes, and by how the last ones went."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final, NamedTuple

import grpc

from engine.pubsub.client import code
from engine.storage.batch_size import BatchSize

MAX_BYTES: Final = 8_000_000
"""Size of one request at most; the service takes 10 MB and 1000 messages."""
MAX_ROWS: Final = 500
SMALL_BYTES: Final = 64 * 1024
"""A request of this size passes within seconds on any line that is worth the name."""
ANY_BYTES: Final = 2**31 - 1

BASE_SECONDS: Final = 5.0
FLOOR_BYTES_PER_SECOND: Final = 64 * 1024
"""A line that carries less (half a Mbit/s) counts as broken."""
GOOD_SECONDS: Final = 5.0
"""A request that takes longer is too large for its line: what comes after it waits too long."""


def allowed_seconds(size: int) -> float:
    """How long a request may take, if `size` bytes are on their way, its own among them."""
    return BASE_SECONDS + size / FLOOR_BYTES_PER_SECOND


class Room(NamedTuple):
    """What the next request may hold. At least one row is taken, if there is one of at most `row_bytes`."""

    bytes: int
    row_bytes: int
    rows: int
    ahead: int
    """The bytes of the topic that are on their way already."""

    @property
    def lone(self) -> bool:
        """Whether one row is tried at a time, each in its turn."""
        return self.rows == 1


class RequestSize:
    """The room of one topic's requests.

    Large rows go in one request at a time, and small ones pass it. After a time-out, or a request that took long, the
    next ones are smaller.
    """

    def __init__(self) -> None:
        self._bytes = BatchSize(MAX_BYTES, GOOD_SECONDS, SMALL_BYTES, _timed_out)
        self._small = 0
        self._large = 0

    def room(self, *, probing: bool, alone: bool) -> Room:
        """The room for the next request. A probe is small, or has but one row if it goes `alone`."""
        size = max(0, self._bytes.current - self._small)
        return Room(
            bytes=min(size, SMALL_BYTES) if probing else size,
            row_bytes=SMALL_BYTES if self._large else ANY_BYTES,
            rows=1 if alone else MAX_ROWS,
            ahead=self._small + self._large,
        )

    def add(self, sizes: Sequence[int]) -> None:
        """Count a request as on its way, by the sizes of its messages."""
        self._count(sizes, 1)

    def remove(self, sizes: Sequence[int]) -> None:
        """A request that was added has ended."""
        self._count(sizes, -1)

    def _count(self, sizes: Sequence[int], sign: int) -> None:
        if max(sizes) <= SMALL_BYTES:
            self._small += sign * sum(sizes)
        else:
            self._large += sign * sum(sizes)

    @contextmanager
    def timing(self, size: int) -> Iterator[None]:
        """Judge one try of a request of `size` bytes."""
        with self._bytes.run(size):
            yield


def _timed_out(error: Exception) -> bool:
    return isinstance(error, grpc.RpcError) and code(error) is grpc.StatusCode.DEADLINE_EXCEEDED
