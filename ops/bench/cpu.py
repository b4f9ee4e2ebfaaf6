"""CPU time of one of our processes and of its PostgreSQL: the cost of a job, however busy the machine is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import psycopg

from ops.harness.process import cpu_seconds

MICROSECONDS: Final = 1e6


class Spent:
    """Microseconds, set when the block has ended."""

    process: float
    family: float
    """Of the process and all below it."""
    server: float


@contextmanager
def spent(pid: int, url: str) -> Iterator[Spent]:
    """The CPU time of the process `pid` and of the server at `url` while the block runs."""
    with psycopg.connect(url) as conn:
        postmaster = _parent(conn.info.backend_pid)
    figures = Spent()
    process, family, server = cpu_seconds(pid), _below(pid), _family(postmaster)
    yield figures
    figures.process = (cpu_seconds(pid) - process) * MICROSECONDS
    figures.family = (_below(pid) - family) * MICROSECONDS
    figures.server = (_family(postmaster) - server) * MICROSECONDS


def _family(postmaster: int) -> float:
    """The CPU seconds of a server: the postmaster's, with its ended children's, and its living children's."""
    living = [pid for pid in _pids() if _parent(pid) == postmaster]
    return cpu_seconds(postmaster) + sum(_seconds(pid) for pid in living)


def _below(pid: int) -> float:
    """The CPU seconds of a process and of all that it or those below it have started."""
    parents = {each: _parent(each) for each in _pids()}
    found, last = {pid}, set[int]()
    while found != last:
        last = found
        found = found | {each for each, parent in parents.items() if parent in found}
    return sum(map(_seconds, found))


def _pids() -> Iterator[int]:
    return (int(entry.name) for entry in Path("/proc").glob("[0-9]*"))


def _parent(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except (FileNotFoundError, ProcessLookupError):  # ended meanwhile
        return 0


def _seconds(pid: int) -> float:
    try:
        return cpu_seconds(pid)
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
