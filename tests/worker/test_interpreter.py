"""The log names the attempt that kept the interpreter to itself, and nobody when the process was only stopped."""

from __future__ import annotations

import asyncio
import re
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from structlog.testing import capture_logs

from engine.model import JobState
from ops.waiting import until
from tests.support.database import counters
from tests.support.worker_harness import WorkerHarness, known, preset
from worker.interpreter import InterpreterWatch, ThreadClock

LEASE = 0.6


def seize(seconds: float) -> None:
    """Hold the interpreter for at least `seconds`: `re` never lets another thread run meanwhile."""
    length, took = 20, 0.0
    while took < seconds:
        began = time.monotonic()
        re.match(r"(a+)+$", "a" * length + "b")
        took = time.monotonic() - began
        length += 1


def blocked(events: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return [event for event in events if event["event"] == "interpreter.blocked"]


@pytest.mark.alone
async def test_a_plain_function_that_seizes_the_interpreter_is_named_and_its_neighbours_pay_nothing(
    harness: WorkerHarness,
) -> None:
    free = threading.Event()
    seizing: list[int] = []

    @preset("greedy")
    def greedy(_job: Any, run: Any) -> None:
        # On a busy machine so short a lease may be lost before the first attempt begins.
        if not seizing:
            seizing.append(run.attempt)
            seize(2 * LEASE)

    @preset("busy")
    def busy(_job: Any, _run: Any) -> None:
        free.wait(20)

    @preset("idle")
    async def idle(_job: Any, _run: Any) -> None:
        await asyncio.to_thread(free.wait, 20)

    beside = [await harness.enqueue("busy"), await harness.enqueue("idle")]
    with capture_logs() as events:
        async with harness.worker(greedy, busy, idle, lease=LEASE), harness.maintenance(lease=LEASE):
            await harness.row("SELECT 1 FROM outbox HAVING bool_and(status = 'leased')")
            culprit = await harness.enqueue("greedy")
            await until(lambda: known(any(event["seconds"] > LEASE for event in blocked(events))))
            free.set()
            ended = await harness.ended(culprit, *beside)
    assert {event["job_id"] for event in blocked(events)} == {culprit}
    assert {(event["preset"], event["attempt"]) for event in blocked(events)} == {("greedy", *seizing)}
    assert {job.state for job in ended} == {JobState.COMPLETED}
    assert {(await counters(harness.conn, job_id))[1:] for job_id in (culprit, *beside)} == {(0, 0)}


@pytest.mark.alone
async def test_an_async_function_that_seizes_the_interpreter_is_among_those_that_are_named(
    harness: WorkerHarness,
) -> None:
    seizing: list[int] = []

    @preset()
    async def greedy(_job: Any, run: Any) -> None:
        if not seizing:
            seizing.append(run.attempt)
            seize(LEASE)

    job_id = await harness.enqueue()
    with capture_logs() as events:
        async with harness.worker(greedy, lease=LEASE):
            await harness.ended(job_id)
            await until(lambda: known(bool(blocked(events))))
    assert blocked(events)[0]["running"] == [f"{job_id}#{seizing[0]}"]


def test_nobody_is_named_when_nobody_ran() -> None:
    """As after a SIGSTOP: much time is gone, and no thread has used it."""
    watch = InterpreterWatch(1.0, list)
    watch.mark()
    with capture_logs() as events:
        watch.overslept(5.0)
    assert blocked(events) == []


def test_a_thread_clock_counts_from_its_start_and_stands_still_once_stopped() -> None:
    used: list[int] = []

    def work() -> None:
        seize(0.1)
        clock = ThreadClock()
        used.append(clock.used)
        seize(0.1)
        used.append(clock.used)
        clock.stop()
        used.append(clock.used)
        seize(0.1)
        used.append(clock.used)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    begun, ran, stopped, later = used
    assert begun < 10_000_000 < ran <= stopped == later
