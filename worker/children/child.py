"""A child: imports the authors' modules, and runs one attempt at a time in its main thread.

The worker's SIGTERM ends what runs: an async function is cancelled, in a plain one `Stopped` is raised. What swallows
that is killed. Anybody else's SIGTERM is left to the worker: a service manager sends one to all processes. The child
ends after an attempt that was ended, and after one that has left something behind that others to come would notice.
"""

from __future__ import annotations

import asyncio
import os
import pickle
import resource
import signal
import socket
import sys
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from contextvars import copy_context
from dataclasses import replace
from decimal import localcontext
from typing import Any, Final, NamedTuple, TypeVar

import structlog

from engine.errors import ConfigurationError, LeaseLost
from engine.model import Attempt, Completed, Job, JobError, Outcome, Retry
from engine.pipeline import Pipeline, load_pipelines
from engine.process import fork
from engine.storage.connections import Connection
from engine.telemetry import logs
from worker.children.board import Board
from worker.children.effects import Committer, Committing
from worker.children.frames import Begin, Commit, Committed, Done, Ended, Ready
from worker.children.link import Lines, Link
from worker.children.loop import Loop
from worker.children.residue import Residue
from worker.children.run import ChildRun
from worker.children.setting import Setting
from worker.effects import awaitable
from worker.invocation import Invocation, Stopped, awaited
from worker.outcome import after, encode, interpret

T = TypeVar("T")

MIB: Final = 1 << 20
PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")
UNLISTED: Final = (
    "runs in a process, and that knows the lists `pipelines` of OUTRIDER_PIPELINES alone: "
    'list it there, or declare it with runs="thread"'
)

log = structlog.get_logger()


class Kept(NamedTuple):
    """A completed attempt whose effects wait for Commit."""

    attempt: Attempt
    pipeline: Pipeline
    outcome: Completed


def main(sock: socket.socket, board: int, setting: Setting) -> int:
    """Serve the worker at the other end of `sock` until it is done with this child. Returns the exit code."""
    settings = setting.settings
    link = Link(sock)
    logs.configure(settings, setting.role, to=Lines(link))
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    try:
        child = Child(link, Board(board), setting)
    except ConfigurationError as error:
        link.send(Ready(os.getpid(), "; ".join(error.problems)))
        return 1
    try:
        child.serve()
    except Stopped:
        # Ended between two attempts, or after one that has ended as it was told to.
        pass
    except (BrokenPipeError, ConnectionResetError):
        return 1  # the worker has gone
    with suppress(ValueError, OSError):  # an author's code has closed it
        sys.stdout.flush()
    return 0


class Child:
    """Raises ConfigurationError if an author's module cannot be imported, or a preset of this child is in none."""

    def __init__(self, link: Link, board: Board, setting: Setting) -> None:
        self._link = link
        self._setting = setting
        self._registry = load_pipelines(setting.settings.pipelines)
        if unlisted := [preset for preset in setting.presets if preset not in self._registry]:
            raise ConfigurationError([f"pipeline {preset!r} {UNLISTED}" for preset in unlisted])
        self._loop = Loop()
        asyncio.set_event_loop(self._loop)
        self._board = board
        self._run = ChildRun(board, link)
        self._task: asyncio.Task[Any] | None = None
        self._kept: Kept | None = None
        self._committer: Committer | None = None
        self._jobs = 0
        signal.signal(signal.SIGTERM, self._stop)
        fork.protect(self._loop, [link.socket])
        self._residue = Residue(self._loop)
        self._memory = os.open("/proc/self/statm", os.O_RDONLY | os.O_CLOEXEC)
        self._max_open = resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2

    def serve(self) -> None:
        self._link.send(Ready(os.getpid()))
        while (message := self._link.receive()) is not None:
            spent = self._attempt(message) if isinstance(message, Begin) else self._commit(message)
            if spent:
                return

    def _attempt(self, message: Begin) -> bool:
        """Run one attempt and say what it came to. Returns whether this child ends."""
        attempt = message.attempt
        pipeline = self._registry[attempt.job.preset]
        self._jobs += 1
        self._run.begin(attempt, traced=message.traced)
        logs.about(job_id=attempt.job.id, preset=attempt.job.preset, attempt=attempt.number)
        invocation = Invocation(attempt, pipeline)
        # Not undone if `Stopped` passes here: the child ends then.
        self._loop.lent = True
        run = self._outcome if pipeline.memory_mb is None else self._limited
        # In a context of its own, and `decimal` keeps its precision in an object that contexts share.
        with localcontext():
            outcome = copy_context().run(run, invocation)
        self._loop.lent = False
        logs.about()
        spent = self._spent()
        if isinstance(outcome, Completed):
            # None also instead of what an earlier attempt has kept, whose Commit has never come.
            self._kept = Kept(attempt, pipeline, outcome) if outcome.effects is not None else None
            self._link.send(Done(encode(outcome.output).text, self._kept is not None, spent))
            return spent is not None and self._kept is None
        try:
            self._link.send(Ended(outcome, spent))
        except (pickle.PicklingError, TypeError, AttributeError) as error:
            # An outcome with an object of an author's own class, that only this process knows.
            self._link.send(Ended(after(error), spent))
        return spent is not None

    def _limited(self, invocation: Invocation) -> Outcome:
        """The outcome with the private memory of this process bounded meanwhile (RLIMIT_DATA, getrlimit(2))."""
        megabytes = invocation.pipeline.memory_mb
        assert megabytes is not None
        soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
        resource.setrlimit(resource.RLIMIT_DATA, (megabytes * MIB, hard))
        try:
            outcome = self._outcome(invocation)
        finally:
            # Where the attempt has lowered the hard limit: then the look for residue ends this process.
            with suppress(ValueError):
                resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))
        match outcome:
            case Retry(delay, JobError(type="MemoryError")):
                # It has no words of its own.
                told = JobError("MemoryError", f"the attempt needed more than its {megabytes} MB")
                return Retry(delay, told)
            case _:
                return outcome

    def _outcome(self, invocation: Invocation) -> Outcome:
        job = invocation.prepared()
        if not isinstance(job, Job):
            return job
        if invocation.pipeline.is_async:
            outcome = self._on_loop(invocation, lambda: invocation.pipeline.function(job, self._run))
            invocation.call_hook()
            return outcome
        ended = invocation.call(job, self._run)
        return ended if isinstance(ended, Outcome) else self._on_loop(invocation, lambda: ended)

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
        outcome = self._until_complete(self._committed(kept, message))
        spent = "ended in its effects" if self._run.cancelled.is_set() else self._spent()
        self._link.send(Committed(outcome, spent))
        return spent is not None

    async def _committed(self, kept: Kept, message: Commit) -> Outcome | None:
        try:
            if self._committer is None:
                self._committer = Committer()
                await self._committer.open(self._setting.settings.database())
            effects = kept.outcome.effects
            assert effects is not None

            async def watched(conn: Connection) -> None:
                self._loop.lent = True
                try:
                    await awaitable(effects(conn))
                finally:
                    self._loop.lent = False

            outcome = replace(kept.outcome, effects=watched)
            await self._committer.commit(Committing(kept.attempt, kept.pipeline), outcome, message)
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
        if self._is_crowded():
            return f"it holds more than {self._max_open} descriptors"
        return self._residue.left()

    def _resident(self) -> int:
        """The memory of this process in bytes, as proc(5) tells it."""
        return int(os.pread(self._memory, 128, 0).split()[1]) * PAGE_BYTES

    def _is_crowded(self) -> bool:
        """Whether more than half of the descriptors that this process may have are open."""
        try:
            # The lowest one that is free: all below it are open.
            descriptor = os.dup(self._memory)
        except OSError:
            return True
        os.close(descriptor)
        return descriptor > self._max_open

    def _stop(self, _number: int, _frame: object) -> None:
        if not self._board.ending:
            return
        self._run.cancelled.set()
        if self._task is None:
            self._link.interrupt(Stopped())
        else:
            self._loop.call_soon_threadsafe(self._task.cancel)
