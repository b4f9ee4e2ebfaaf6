"""The `Run` that a pipeline gets in a child: it reports on the board."""

from __future__ import annotations

import threading
from contextlib import suppress

from engine.telemetry import tracing
from engine.telemetry.spans import Span
from worker.children.board import Board, Report
from worker.report import clamped, storable


class Stopping:
    """Set once the worker has begun to drain."""

    def __init__(self, board: Board) -> None:
        self._board = board

    def is_set(self) -> bool:
        return self._board.stopping

    def wait(self, timeout: float | None = None) -> bool:
        return self._board.wait_for_stop(timeout)


class ChildRun:
    """One for all attempts of a child, which run one at a time."""

    def __init__(self, board: Board) -> None:
        self.attempt = 0
        self.cancelled = threading.Event()
        self.stopping = Stopping(board)
        self._board = board
        self._report = Report()

    def begin(self, attempt: int) -> None:
        self.attempt = attempt
        self._show(None, "", "")

    def progress(self, fraction: float, message: str = "") -> None:
        reported = clamped(fraction, message)
        if reported is not None:
            self._show(*reported, self._report.step)

    def step(self, name: str) -> Span:
        with suppress(Exception):  # the span refuses the name, too, and the pipeline goes on
            self._show(self._report.fraction, self._report.message, storable(name))
        return tracing.step(name)

    def _show(self, fraction: float | None, message: str, step: str) -> None:
        self._report = Report(self._report.n + 1, fraction, message, step)
        self._board.write(self._report)
