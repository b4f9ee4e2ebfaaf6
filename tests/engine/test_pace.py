"""A worker's pace is that of the last half minute, by preset."""

from __future__ import annotations

import pytest

from engine.pace import Pace


def test_the_pace_is_of_the_last_half_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    pace = Pace()
    assert pace.look() == {}
    for _ in range(4):
        now += 10
        for _ in range(20):
            pace.count("p")
        seen = pace.look()
        assert seen == {"p": 2.0}
    pace.count("q")
    now = 50
    assert pace.look() == {"p": 1.3333, "q": 0.0333}
    now = 90
    assert pace.look() == {}
