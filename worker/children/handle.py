"""A child as its worker sees it: runs one attempt at a time there, and knows how the child came to its end."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final

import structlog

from engine.errors import LeaseLost, OutriderError
from engine.model import Attempt, Completed, JobError, Outcome, Reason, Released, Retry
from engine.telemetry import logs
from engine.telemetry.spans import OFF, Span
from worker.children.board import Board, Report
from worker.children.child_effects import ChildEffects
from worker.children.frames import (
    Begin,
    BrokenFrame,
    Commit,
    Committed,
    Decoder,
    Done,
    Ended,
    Line,
    Ready,
    StepBegan,
    StepEnded,
    encoded,
)
from worker.children.output import PAUSE_SECONDS, PORTION, Output
from worker.children.steps import Steps
from worker.outcome import Encoded

DIED: Final = "ProcessDied"
TAIL_LINES: Final = 5
TAIL_CHARACTERS: Final = 800
LAST_BYTES_SECONDS: Final = 0.5
"""How long what a child has sent may take to arrive after the child has ended."""
GB: Final = 1e9

log = structlog.get_logger()


class ChildUnavailable(OutriderError):
    """A child could not be started."""


class ChildUnfit(ChildUnavailable):
    """A child could not import the authors' modules, or did not find a pipeline there."""


class NotBegun(ChildUnavailable):
    """The child had ended before it could begin the attempt."""


class Child(asyncio.Protocol):
    """Belongs to one attempt at a time. `kill(number, group)` has a signal sent by the nursery."""

    def __init__(self, name: int, board: Board, kill: Callable[[int, bool], None]) -> None:
        self.name = name
        self.board = board
        self.spent: str | None = None
        """Why the child must not run another attempt."""
        self.tail: deque[str] = deque(maxlen=TAIL_LINES)
        """The last lines that the attempt has logged or printed."""
        self.attempt: Attempt | None = None
        self.pid: int | None = None
        """Known once the child is ready. For people and tests: the nursery alone may send it signals."""
        loop = asyncio.get_running_loop()
        self.ready: asyncio.Future[None] = loop.create_future()
        self.over: asyncio.Future[None] = loop.create_future()
        # Nobody may wait for it any more.
        self.ready.add_done_callback(lambda ready: ready.cancelled() or ready.exception())
        self.output: Output | None = None
        self._answer: asyncio.Future[Any] | None = None
        self._decoder = Decoder()
        self._transport: asyncio.Transport | None = None
        self._began = time.monotonic()
        self._exit: tuple[int, int] | None = None
        self._kill = kill
        self._loop = loop
        self._logged = 0
        """Bytes of the log since the last pause."""
        self._guilt = ""
        """Why the worker has killed the child, apart from the end of its attempt."""
        self._bereft = False
        """Whether its nursery has died, beside other attempts than this one."""
        self._steps = Steps()

    async def run(self, attempt: Attempt, memory_mb: int | None, span: Span = OFF) -> Outcome:
        """What the attempt came to. If the child dies of it, that is an error of the attempt, told in words.

        The outcome's effects, if there are any, stand for those that the child keeps: see ChildEffects.
        Raises NotBegun.
        """
        self.attempt, self._began, self._steps.within = attempt, time.monotonic(), span
        self.tail.clear()
        reports = self.board.count
        answer: Done | Ended | None = await self._asked(Begin(attempt, span is not OFF))
        self._steps.end(DIED)
        if self.output is not None:
            self.output.drain()
            if self.output.ended:
                self.spent = self.spent or "an attempt has closed its output"
        if answer is None and self.board.count == reports:
            raise NotBegun(f"a child {self._end_in_words()} before its attempt began")
        if answer is None:
            return self.death(memory_mb)
        self.spent = self.spent or answer.spent
        if isinstance(answer, Ended):
            return answer.outcome
        return Completed(Encoded(answer.output), ChildEffects(self, memory_mb) if answer.effects else None)

    async def commit(self, message: Commit) -> Outcome | None:
        """Raises LeaseLost. None: the child has died, and nobody knows yet whether it has committed."""
        answer: Committed | None = await self._asked(message)
        if answer is None:
            return None
        self.spent = self.spent or answer.spent
        if answer.outcome is None:
            raise LeaseLost("the fence of the effects")
        return answer.outcome

    def terminate(self, grace: float) -> None:
        """End the child: SIGTERM now, and SIGKILL to its process group if it still runs after `grace` seconds."""
        if self.over.done():
            return
        self.spent = self.spent or "ended with its attempt"
        self.board.end()
        self._kill(signal.SIGTERM, False)
        self._loop.call_later(grace, self._kill_group)

    def dismiss(self) -> None:
        """Let an idle child end by itself: its socket closes."""
        if self._transport is not None:
            self._transport.close()

    def exited(self, status: int, peak: int) -> None:
        """The nursery has reaped the child. What it has sent may still be on its way."""
        self._exit = (status, peak)
        self._loop.call_later(LAST_BYTES_SECONDS, self._end)
        if self._transport is None or self._transport.is_closing():
            self._end()

    def bereave(self, *, alone: bool) -> None:
        """The nursery has died, and this child with it. `alone`: no other child ran an attempt then."""
        self._bereft = not alone
        if self.pid is not None:
            # Without a nursery nobody else does this. A process id that has just been freed is not yet another's.
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, signal.SIGKILL)
        self.exited(signal.SIGKILL, 0)

    def refused(self, fault: str) -> None:
        """The nursery could not fork the child."""
        if not self.ready.done():
            self.ready.set_exception(ChildUnavailable(f"a child could not be started: {fault}"))
        self._end()

    @property
    def report(self) -> Report:
        return self.board.read()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        try:
            for message in self._decoder.feed(data):
                self._heed(message)
        except BrokenFrame as error:
            log.warning("child.broken", error=str(error), **self.named)
            self._kill_for("it wrote into its connection to the worker")

    def connection_lost(self, _error: Exception | None) -> None:
        if self._exit is not None:
            self._end()
        else:
            # It ends by itself, or has lost its socket to an author's code.
            self._loop.call_later(
                LAST_BYTES_SECONDS, self._kill_for, "it closed its connection to the worker"
            )

    @property
    def running(self) -> bool:
        """Whether an attempt runs, or its effects are being committed."""
        return self._answer is not None

    @property
    def named(self) -> dict[str, Any]:
        if self.attempt is None:
            return {}
        job = self.attempt.job
        return {"job_id": job.id, "preset": job.preset, "attempt": self.attempt.number}

    def printed(self, text: str) -> None:
        """Log a line that the attempt has written to its standard output or error."""
        self.tail.append(text)
        log.info("attempt.printed", text=text, **self.named)

    def _heed(self, message: Any) -> None:
        match message:
            case Line(lines):
                self.tail.extend(line.decode(errors="replace") for line in lines.splitlines())
                logs.pass_on(lines)
                self._hold_up(len(lines))
            case StepBegan():
                self._steps.began(message)
            case StepEnded():
                self._steps.ended(message)
            case Ready(pid, fault) if not self.ready.done():
                if fault is None:
                    self.pid = pid
                    self.ready.set_result(None)
                else:
                    self.ready.set_exception(ChildUnfit(fault))
            case Done() | Ended() | Committed():
                self._settle(message)

    def _hold_up(self, size: int) -> None:
        """A flood of lines slows the one who logs, and nobody else."""
        self._logged += size
        if self._logged >= PORTION and self._transport is not None:
            self._logged = 0
            self._transport.pause_reading()
            self._loop.call_later(PAUSE_SECONDS, self._resume)

    def _resume(self) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()

    async def _asked(self, message: Any) -> Any:
        assert self._transport is not None
        if self.over.done():
            return None
        self._answer = answer = self._loop.create_future()
        self._transport.write(encoded(message))
        return await answer

    def _settle(self, message: Any) -> None:
        answer, self._answer = self._answer, None
        if answer is not None and not answer.done():
            answer.set_result(message)

    def _kill_for(self, guilt: str) -> None:
        if self._exit is None:
            self._guilt = self._guilt or guilt
            self._kill_group()

    def _kill_group(self) -> None:
        if not self.over.done():
            self._kill(signal.SIGKILL, True)

    def _end(self) -> None:
        if self.over.done():
            return
        self.over.set_result(None)
        if not self.ready.done():
            self.ready.set_exception(ChildUnavailable(f"a child ended at its start: {self._end_in_words()}"))
        if self._transport is not None:
            self._transport.abort()
        self.spent = self.spent or "it has ended"
        self._settle(None)

    def death(self, memory_mb: int | None) -> Outcome:
        """What an attempt comes to whose child has died: it is to blame, unless others may be."""
        if self._bereft:
            return Released(Reason.LAPSED_APART)
        return Retry(None, JobError(DIED, self._obituary(memory_mb)))

    def _obituary(self, memory_mb: int | None) -> str:
        """How the attempt's process came to its end, in words."""
        report, peak = self.report, self._exit[1] if self._exit else 0
        text = f"the attempt's process {self._end_in_words()} after {time.monotonic() - self._began:.1f} s"
        if self._guilt:
            text += f", because {self._guilt}"
        if report.step:
            text += f", at step {report.step!r}"
        if report.fraction is not None:
            text += f", at {report.fraction:.0%} {report.message}".rstrip()
        text += f" (peak memory {peak / GB:.2f} GB"
        text += f" of {memory_mb * 2**20 / GB:.2f} GB)" if memory_mb else ")"
        if self.tail:
            text += "; its last lines: " + "\n".join(self.tail)[-TAIL_CHARACTERS:]
        return text

    def _end_in_words(self) -> str:
        if self._exit is None:
            return "could not be started"
        code = os.waitstatus_to_exitcode(self._exit[0])
        return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"exited with code {code}"
