"""A clock that stands still until a test moves it."""

from __future__ import annotations

from types import ModuleType

import pytest


class Clock:
    """Takes the place of `time` in one module. Its time is in seconds."""

    now = 1000.0

    def monotonic(self) -> float:
        return self.now


def set_clock(monkeypatch: pytest.MonkeyPatch, module: ModuleType) -> Clock:
    """Give `module` a clock, for as long as `monkeypatch` lasts."""
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock
