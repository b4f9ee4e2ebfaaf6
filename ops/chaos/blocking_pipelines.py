"""Pipelines that hurt the worker whose process they run in: as tasks on its event loop, and in its threads."""

from __future__ import annotations

import ctypes
import os
import re
import time
from collections.abc import Callable
from typing import Any, Final, Literal

from engine import Job, Pipeline, Run, pipeline

BLOCKED_SECONDS: Final = 40.0
HELD_SECONDS: Final = 30.0
HELD_BYTES: Final = 2 << 30


def guilty(preset: str, runs: Literal["task", "thread"]) -> Callable[[Any], Pipeline]:
    return pipeline(preset, runs=runs, backoff=0.0, max_attempts=1, timeout=120)


@guilty("task-sleep", "task")
async def blocks_the_loop(_job: Job, _run: Run) -> None:
    # The mistake in question.
    time.sleep(BLOCKED_SECONDS)  # noqa: ASYNC251


@guilty("task-spin", "task")
async def spins(_job: Job, _run: Run) -> None:
    until = time.monotonic() + BLOCKED_SECONDS
    while time.monotonic() < until:
        pass


@guilty("task-exit", "task")
async def exits(_job: Job, _run: Run) -> None:
    os._exit(9)


@guilty("task-segfault", "task")
async def segfault(_job: Job, _run: Run) -> None:
    ctypes.string_at(0)


@guilty("thread-gil", "thread")
def keeps_the_gil(_job: Job, _run: Run) -> None:
    # One match takes too short or too long a time, as the machine has it.
    until = time.monotonic() + HELD_SECONDS
    while time.monotonic() < until:
        re.match(r"(a+)+$", "a" * 26 + "b")


@guilty("thread-exit", "thread")
def exits_from_a_thread(_job: Job, _run: Run) -> None:
    os._exit(9)


@guilty("thread-segfault", "thread")
def segfault_in_a_thread(_job: Job, _run: Run) -> None:
    ctypes.string_at(0)


@guilty("thread-memory", "thread")
def eats_memory(_job: Job, _run: Run) -> int:
    # Each page is written, so that the kernel has to give it.
    held = b"x" * HELD_BYTES
    # Others shall meet the shortage.
    time.sleep(5)
    return len(held)


pipelines = [each for each in list(globals().values()) if isinstance(each, Pipeline)]
