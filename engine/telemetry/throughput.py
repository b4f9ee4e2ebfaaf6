"""A worker's throughput: ended attempts per second, by preset. The heartbeat writes it to the worker's row."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping
from typing import Final

WINDOW_SECONDS: Final = 30.0


class Throughput:
    """Counted on the event loop and read from the lease's thread. Each reading covers the last half minute."""

    def __init__(self) -> None:
        self._ended: dict[str, int] = {}
        self._readings: deque[tuple[float, Mapping[str, int]]] = deque([(time.monotonic(), {})])

    def count(self, preset: str) -> None:
        self._ended[preset] = self._ended.get(preset, 0) + 1

    def per_second(self) -> dict[str, float]:
        """Ended attempts per second, for the presets that had any."""
        now, ended = time.monotonic(), self._ended.copy()
        while len(self._readings) > 1 and self._readings[1][0] <= now - WINDOW_SECONDS:
            self._readings.popleft()
        began, before = self._readings[0]
        self._readings.append((now, ended))
        seconds = max(now - began, 0.001)
        rates = {preset: (count - before.get(preset, 0)) / seconds for preset, count in ended.items()}
        return {preset: round(rate, 4) for preset, rate in rates.items() if rate}
