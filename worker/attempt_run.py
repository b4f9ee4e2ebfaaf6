"""The `Run` that a pipeline gets: the part of an execution that is for authors."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from engine.pipeline import Flag
from engine.telemetry import tracing
from engine.telemetry.spans import Span

if TYPE_CHECKING:
    from worker.execution import Execution


class AttemptRun:
    """The `Run` that a pipeline gets: the part of an execution that is for authors."""

    __slots__ = ("_execution", "attempt")

    def __init__(self, execution: Execution) -> None:
        self.attempt = execution.number
        self._execution = execution

    @property
    def cancelled(self) -> threading.Event:
        return self._execution.cancelled

    @property
    def stopping(self) -> Flag:
        return self._execution.stopping

    def progress(self, fraction: float, message: str = "") -> None:
        self._execution.progress(fraction, message)

    def step(self, name: str) -> Span:
        """A child of the attempt's span, which is the current span on the event loop and in the thread."""
        self._execution.began_step(name)
        return tracing.step(name)
