"""A worker's pace is that of the last half minute, by preset."""

from __future__ import annotations

import pytest

from engine.telemetry.throughput import Throughput


def test_the_pace_is_of_the_last_half_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    pace = Throughput()
    assert pace.per_second() == {}
    for _ in range(4):
        now += 10
        for _ in range(20):
            pace.count("p")
        seen = pace.per_second()
        assert seen == {"p": 2.0}
    pace.count("q")
    now = 50
    assert pace.per_second() == {"p": 1.3333, "q": 0.0333}
    now = 90
    assert pace.per_second() == {}
