"""The kinds of guilty jobs in ops/chaos/isolation_pipelines.py and tampering_pipelines.py, and how each must end."""

from __future__ import annotations

from typing import Final, NamedTuple

from ops.chaos.isolation_pipelines import TIMEOUT

MODULES: Final = "ops.chaos.isolation_pipelines,ops.chaos.tampering_pipelines"
SPARE_SECONDS: Final = 2.0
"""How long after its time-out a slot may stay taken."""
TIMED_OUT: Final = f"did not end within {TIMEOUT} s"


class Kind(NamedTuple):
    """How a guilty job ends, with a part of what its error says, and after how many seconds at most."""

    preset: str
    state: str
    words: str = ""
    seconds: float = 30.0


def _times_out(preset: str) -> Kind:
    return Kind(preset, "FAILED", TIMED_OUT, TIMEOUT + SPARE_SECONDS)


CRUDE: Final = (
    Kind("exit", "FAILED", "exited with code 9"),
    Kind("segfault", "FAILED", "was killed by SIGSEGV"),
    _times_out("spin"),
    _times_out("gil"),
    Kind("memory", "FAILED", "more than its 512 MB"),
    Kind("forks", "COMPLETED"),
    Kind("sys-exit", "FAILED", "SystemExit"),
    Kind("thread", "COMPLETED"),
    Kind("pool", "COMPLETED"),
    Kind("recursion", "FAILED", "RecursionError"),
    Kind("signals", "COMPLETED"),
    Kind("flood", "COMPLETED", seconds=60),
    _times_out("sleep"),
    Kind("cancelled", "CANCELLED"),
)
"""What goes wrong without anybody's intent."""

TAMPERING: Final = (
    Kind("exit-well", "FAILED", "exited with code 0"),
    Kind("descriptors", "FAILED", "the attempt's process"),
    Kind("output", "COMPLETED"),
    Kind("leak", "COMPLETED"),
    Kind("scribble", "FAILED", "it wrote into its connection to the worker"),
    Kind("daemon", "COMPLETED"),
    Kind("parent", "COMPLETED"),
    Kind("group", "COMPLETED"),
    Kind("folder", "COMPLETED"),
    Kind("stack", "FAILED", "was killed by SIGSEGV"),
    Kind("interpreter", "COMPLETED"),
    Kind("environment", "COMPLETED"),
    Kind("context", "COMPLETED"),
    Kind("kernel", "COMPLETED"),
    Kind("timers", "COMPLETED"),
    Kind("watchdog", "COMPLETED"),
    Kind("user", "COMPLETED"),
    Kind("patches", "COMPLETED"),
    Kind("random", "COMPLETED"),
    Kind("modules", "COMPLETED"),
    Kind("loop", "COMPLETED"),
    Kind("bare-thread", "COMPLETED"),
    Kind("at-exit", "COMPLETED"),
    Kind("core", "FAILED", "was killed by SIGABRT"),
    _times_out("stopped"),
    _times_out("blocked"),
    _times_out("undying"),
)
"""What somebody may do who wants to hurt others, or a library that takes the process for its own."""

KINDS: Final = (*CRUDE, *TAMPERING)
