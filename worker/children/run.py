"""The `Run` that a pipeline gets in a child: it reports on the board."""

from __future__ import annotations

import threading
from contextvars import ContextVar, Token
from itertools import count
from typing import Any, Final

import structlog

from engine.model import Attempt
from engine.telemetry.spans import OFF, Span
from worker.children.board import Board, Report
from worker.children.frames import StepBegan, StepEnded
from worker.children.link import Link
from worker.outcome import describe
from worker.report import clamped, storable

_current: Final[ContextVar[int | None]] = ContextVar("step", default=None)
"""The step whose block runs, by its key."""

log = structlog.get_logger()


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

    def __init__(self, board: Board, link: Link) -> None:
        self.attempt = 0
        self.cancelled = threading.Event()
        self.stopping = Stopping(board)
        self._board = board
        self._link = link
        self._report = Report()
        self._keys = count(1)
        self._traced = False
        self._refused = False
        """Whether a report of the attempt was refused. Only the first one is logged: a loop may send thousands."""
        self._job: dict[str, Any] = {}

    def begin(self, attempt: Attempt, *, traced: bool) -> None:
        self.attempt = attempt.number
        self._job = {"job_id": attempt.job.id, "attempt": attempt.number}
        self._traced, self._refused = traced, False
        self._show(None, "", "")

    def progress(self, fraction: float, message: str = "") -> None:
        try:
            latest = clamped(fraction, message)
        except Exception as error:  # noqa: BLE001 - a pipeline must not fail for how it reports its progress
            if not self._refused:
                self._refused = True
                log.warning("progress.refused", error=describe(error).message, **self._job)
            return
        self._show(*latest, self._report.step)

    def step(self, name: str) -> Span:
        try:
            text = storable(name)
        except Exception:  # noqa: BLE001 - as in `progress`: a step without a name is none
            return OFF
        self._show(self._report.fraction, self._report.message, text)
        return ChildSpan(self._link, next(self._keys), text) if self._traced else OFF

    def _show(self, fraction: float | None, message: str, step: str) -> None:
        self._report = Report(self._report.n + 1, fraction, message, step)
        self._board.write(self._report)


class ChildSpan(Span):
    """A span of a step, which the worker records. Within another step's block it belongs to that one."""

    def __init__(self, link: Link, key: int, name: str) -> None:
        self._link = link
        self._key = key
        self._token: Token[int | None] | None = None
        self._over = False
        link.send(StepBegan(key, _current.get(), name))

    def fail(self, error: str) -> None:
        self._finish(error)

    def end(self) -> None:
        self._finish(None)

    def __enter__(self) -> ChildSpan:
        self._token = _current.set(self._key)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._token is not None:
            _current.reset(self._token)
        self._finish(kind.__name__ if kind is not None else None)

    def _finish(self, error: str | None) -> None:
        if not self._over:
            self._over = True
            self._link.send(StepEnded(self._key, error))
