"""The ids of jobs: UUIDs of version 7, which increase with time."""

from __future__ import annotations

import random
import time
from uuid import UUID

_last_tick = 0


def first_id_of(moment: float) -> UUID:
    """A lower bound of all version 7 ids made at `moment` (seconds since 1970) or later."""
    return UUID(int=int(moment * 1000) << 80)


def uuid7() -> UUID:
    """A time-ordered id (RFC 9562 §5.7, method 3: sub-millisecond bits in rand_a). Ids increase within a process."""
    global _last_tick
    tick = max(time.time_ns() * 4096 // 1_000_000, _last_tick + 1)
    _last_tick = tick
    milliseconds, fraction = tick >> 12, tick & 0xFFF
    return UUID(int=milliseconds << 80 | 7 << 76 | fraction << 64 | 2 << 62 | random.getrandbits(62))
