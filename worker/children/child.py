"""A child: imports the authors' modules, and runs one attempt at a time in its main thread.

A SIGTERM ends what runs: an async function is cancelled, in a plain one `Stopped` is raised. Whoever swallows that is
killed. The child ends after that, and also where an attempt has left something behind that its neighbours to come
would notice.
"""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import socket
import sys
import threading
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import replace
from inspect import isawaitable
from typing import Any, Final, NamedTuple, TypeVar

import structlog

from engine.errors import ConfigurationError, LeaseLost
from engine.model import Attempt, Completed, Job, Outcome
from engine.pipeline import Pipeline, load_pipelines
from engine.process import fork
from engine.telemetry import logs
from worker.children.board import Board
from worker.children.effects import Committer, Committing
from worker.children.frames import Begin, Commit, Committed, Ended, Line, Ready, encoded, receive
from worker.children.residue import Residue
from worker.children.run import ChildRun
from worker.children.setting import Setting
from worker.invocation import Invocation, Stopped, awaited
from worker.outcome import after, interpret

T = TypeVar("T")

MIB: Final = 1 << 20
PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")

log = structlog.get_logger()


class Kept(NamedTuple):
    """A completed attempt whose effects wait for Commit."""

    attempt: Attempt
    pipeline: Pipeline
    outcome: Completed


def main(link: socket.socket, board: int, setting: Setting) -> int:
    """Serve the worker at the other end of `link` until it is done with this child. Returns the exit code."""
    settings = setting.settings
    logs.configure(settings, setting.role, to=_Lines(link))
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    try:
        child = Child(link, Board(board), setting)
    except ConfigurationError as error:
        link.sendall(encoded(Ready("; ".join(error.problems))))
        return 1
    try:
        child.serve()
    except Stopped:
        # Ended between two attempts, or after one that has ended as it was told to.
        pass
    except (BrokenPipeError, ConnectionResetError):
        return 1  # the worker has gone
    sys.stdout.flush()
    return 0


class Child:
    """Raises ConfigurationError if an author's module cannot be imported."""

    def __init__(self, link: socket.socket, board: Board, setting: Setting) -> None:
        self._link = link
        self._setting = setting
        self._registry = load_pipelines(setting.settings.pipelines)
        self._loop = asyncio.new_event_loop()
        asyncio.set_event_loop(self._loop)
        self._board = board
        self._run = ChildRun(board)
        self._task: asyncio.Task[Any] | None = None
        self._kept: Kept | None = None
        self._committer: Committer | None = None
        self._jobs = 0
        signal.signal(signal.SIGTERM, self._stop)
        fork.protect(self._loop, [link])
        self._residue = Residue()
        self._memory = os.open("/proc/self/statm", os.O_RDONLY | os.O_CLOEXEC)

    def serve(self) -> None:
        self._send(Ready())
        while (message := receive(self._link)) is not None:
            spent = self._attempt(message.attempt) if isinstance(message, Begin) else self._commit(message)
            if spent:
                return

    def _attempt(self, attempt: Attempt) -> bool:
        """Run one attempt and say what it came to. Returns whether this child ends."""
        pipeline = self._registry[attempt.job.preset]
        self._jobs += 1
        self._run.begin(attempt.number)
        job = attempt.job
        with logs.about(job_id=job.id, preset=job.preset, attempt=attempt.number), _limited(pipeline):
            outcome = self._outcome(Invocation(attempt, pipeline))
        sys.stdout.flush()
        if isinstance(outcome, Completed) and outcome.effects is not None:
            self._kept = Kept(attempt, pipeline, outcome)
            outcome = replace(outcome, effects=None)
        spent = self._spent()
        self._send(Ended(outcome, self._kept is not None, spent))
        return spent is not None and self._kept is None

    def _outcome(self, invocation: Invocation) -> Outcome:
        job = invocation.prepared()
        if not isinstance(job, Job):
            return job
        if invocation.pipeline.is_async:
            outcome = self._on_loop(invocation, lambda: invocation.pipeline.function(job, self._run))
            invocation.call_hook()
            return outcome
        ended = invocation.call(job, self._run)
        return self._on_loop(invocation, lambda: ended) if isawaitable(ended) else ended

    def _on_loop(self, invocation: Invocation, call: Callable[[], Awaitable[Any]]) -> Outcome:
        async def called() -> Outcome:
            try:
                return interpret(await awaited(call()))
            except BaseException as error:
                fork.end_if_child(error)
                if isinstance(error, asyncio.CancelledError) and self._run.cancelled.is_set():
                    raise Stopped from error
                return invocation.raised(error)

        return self._until_complete(called())

    def _until_complete(self, coroutine: Coroutine[Any, Any, T]) -> T:
        task: asyncio.Task[T] = self._loop.create_task(coroutine)
        self._task = task
        try:
            return self._loop.run_until_complete(task)
        finally:
            self._task = None
            fork.end_if_child()

    def _commit(self, message: Commit) -> bool:
        kept, self._kept = self._kept, None
        assert kept is not None
        self._send(Committed(self._until_complete(self._committed(kept, message))))
        return self._spent() is not None

    async def _committed(self, kept: Kept, message: Commit) -> Outcome | None:
        try:
            if self._committer is None:
                self._committer = Committer()
                await self._committer.open(self._setting.settings.database())
            await self._committer.commit(Committing(kept.attempt, kept.pipeline), kept.outcome, message)
        except LeaseLost:
            return None
        except BaseException as error:  # noqa: BLE001 - effects are an author's code: what they raise is the job's
            return after(error)
        return replace(kept.outcome, effects=None)

    def _spent(self) -> str | None:
        """Why this child must not run another attempt."""
        if self._jobs >= self._setting.max_jobs:
            return f"it has run {self._jobs} attempts"
        if (used := self._resident()) > self._setting.max_bytes:
            return f"it holds {used // MIB} MB"
        return self._residue.left()

    def _resident(self) -> int:
        """The memory of this process in bytes, as proc(5) tells it."""
        return int(os.pread(self._memory, 128, 0).split()[1]) * PAGE_BYTES

    def _stop(self, _number: int, _frame: object) -> None:
        self._run.cancelled.set()
        if self._task is None:
            raise Stopped
        self._loop.call_soon_threadsafe(self._task.cancel)

    def _send(self, message: Any) -> None:
        self._link.sendall(encoded(message))


class _Lines:
    """Takes the finished lines of the log, and gives them to the worker, whose log they are."""

    def __init__(self, link: socket.socket) -> None:
        self._link = link
        self._sending = threading.Lock()

    def write(self, lines: bytes) -> int:
        with self._sending:
            self._link.sendall(encoded(Line(lines)))
        return len(lines)

    def flush(self) -> None: ...


@contextmanager
def _limited(pipeline: Pipeline) -> Iterator[None]:
    """Bound the private memory of this process (RLIMIT_DATA, getrlimit(2)) for one attempt."""
    if pipeline.memory_mb is None:
        yield
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (pipeline.memory_mb * MIB, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))
