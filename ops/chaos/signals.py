"""Sends signals to every role while it works: `python -m ops.chaos.signals [--role ROLE …]`.

Each role runs several processes, as a plain process and as process 1 of a namespace, and gets each signal once or
twice. It must end in time with the right exit code, finish or release what it ran, and leave no process and no
connection behind. Process 1 must have reaped the orphans.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from signal import SIGHUP, SIGINT, SIGTERM, Signals
from tempfile import TemporaryDirectory
from typing import Any, Final, LiteralString

import psycopg

from ops.bench.processes import SECRET
from ops.bench.server import bench_server
from ops.chaos.clients import Clients
from ops.chaos.marked import Mark, children_of
from ops.chaos.signal_pipelines import GO
from ops.harness import process
from ops.harness.ports import free_port
from ops.harness.process import ROOT, outrider
from ops.waiting import eventually

MODULE: Final = "ops.chaos.signal_pipelines"
UNSHARE: Final = ("unshare", "--pid", "--fork", "--mount-proc", "--kill-child")
ROLES: Final = {
    "worker": ("worker", "--processes", "2"),
    "relay": ("relay",),
    "web": ("web", "--processes", "2"),
}
KINDS: Final = ("task", "thread", "process")
DRAIN_SECONDS: Final = 3
OVER_SECONDS: Final = 6.0
"""How much longer than the drain a stop may take."""
AT_ONCE_SECONDS: Final = 2.5
LEFT_SECONDS: Final = 5.0
BETWEEN_SECONDS: Final = 0.5
"""Between two signals: a process must have heeded the first."""
REQUESTS: Final = 50

ADD: LiteralString = "SELECT outrider_enqueue('ann', preset, %s) FROM unnest(%s::text[]) AS preset"
ENDS: LiteralString = """
SELECT (SELECT count(*) FROM job_results WHERE state = 'COMPLETED'),
       (SELECT count(*) FROM outbox WHERE status = 'ready' AND errors = 0 AND crashes = 0)
"""
CLEAR: LiteralString = "TRUNCATE jobs, outbox, job_results, job_state_records, workers"

Connection = psycopg.Connection[tuple[Any, ...]]


@dataclass(frozen=True, slots=True)
class Case:
    """`finish`: the attempts end soon after the first signal, else not before the drain does."""

    role: str
    first: bool
    signals: tuple[Signals, ...]
    finish: bool

    @property
    def at_once(self) -> bool:
        """A second signal means that, unless it is a terminal's, which a shell may repeat."""
        return len(self.signals) > 1 and self.signals[-1] != SIGHUP

    @property
    def code(self) -> int:
        return 128 + self.signals[-1] if self.at_once else 0

    @property
    def most_seconds(self) -> float:
        if self.at_once:
            return AT_ONCE_SECONDS
        return OVER_SECONDS if self.finish else DRAIN_SECONDS + OVER_SECONDS

    def __str__(self) -> str:
        how = "process 1" if self.first else "plain"
        work = "" if self.role == "web" or self.at_once else ("finish" if self.finish else "go on")
        return f"{self.role:<7} {how:<10} {' '.join(each.name for each in self.signals):<16} {work:<7}"


def cases(roles: Sequence[str], *, namespaces: bool) -> Iterator[Case]:
    for role in roles:
        for first in (False, True) if namespaces else (False,):
            for number in (SIGTERM, SIGINT, SIGHUP):
                yield Case(role, first, (number,), finish=True)
                yield Case(role, first, (number, number), finish=number == SIGHUP)
            if role != "web":
                yield Case(role, first, (SIGTERM,), finish=False)


def run(url: str, case: Case) -> list[str]:
    """Run one case on the database at `url`, and return what is wrong. Blocks."""
    mark = Mark(url)
    with ExitStack() as stack:
        conn: Connection = stack.enter_context(psycopg.connect(url, autocommit=True))
        conn.execute(CLEAR)
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="outrider-chaos-")))
        port = free_port()
        started = stack.enter_context(_started(case, mark, port))
        target = children_of(started.pid)[0] if case.first else started.pid
        wrong: list[str] = []
        if case.role == "web":
            clients = stack.enter_context(Clients(port, SECRET))
            clients.wait(REQUESTS)
        else:
            _occupy(conn, folder)
            # What is left of process 1 beside its one child is an orphan that it has not reaped.
            if case.first and not eventually(lambda: len(children_of(target)) == 1, LEFT_SECONDS):
                wrong.append(f"process 1 has the children {children_of(target)}")
        seconds = _stop(started, target, case, folder)
        if started.returncode != case.code:
            wrong.append(f"exit code {started.returncode} instead of {case.code}")
        if seconds > case.most_seconds:
            wrong.append(f"{seconds:.1f} s instead of {case.most_seconds:g}")
        if not eventually(lambda: not (mark.processes() or mark.connections()), LEFT_SECONDS):
            wrong.append(f"left: processes {mark.processes()}, {mark.connections()} connections")
        if case.role == "web":
            wrong += clients.lost(conn)
        elif not case.at_once:
            wrong += _unfinished(conn, case)
    print(
        f"{case}  exit code {started.returncode:>3}  {seconds:5.2f} s  {'; '.join(wrong) or 'ok'}", flush=True
    )
    return [f"{case}: {each}" for each in wrong]


@contextmanager
def _started(case: Case, mark: Mark, port: int) -> Iterator[subprocess.Popen[bytes]]:
    admin = free_port()
    settings = {
        "DATABASE_URL": mark.url,
        "ADMIN_PORT": admin,
        "HTTP_PORT": port,
        "JWT_SECRET": SECRET,
        "PIPELINES": MODULE,
        "RELAY_WORKERS": 2,
        "DRAIN_SECONDS": DRAIN_SECONDS,
        "LOG_LEVEL": "error",
    }
    environ = {name: value for name, value in os.environ.items() if not name.startswith("OUTRIDER_")}
    environ |= {f"OUTRIDER_{name}": str(value) for name, value in settings.items()} | dict(mark.environ)
    command = [*(UNSHARE if case.first else ()), *outrider(*ROLES[case.role])]
    with process.running(command, environ, admin_port=admin, cwd=ROOT) as started:
        yield started


def _occupy(conn: Connection, folder: Path) -> None:
    """Let two attempts of each kind run, after one that has left an orphan. Raises TimeoutError."""
    jobs = ["orphan", *KINDS, *KINDS]
    conn.execute(ADD, [str(folder), jobs])
    if not eventually(lambda: len(list(folder.iterdir())) == len(jobs)):
        raise TimeoutError(f"only {[each.name for each in folder.iterdir()]} run")


def _stop(started: subprocess.Popen[bytes], target: int, case: Case, folder: Path) -> float:
    """Send the signals, and wait for the end. Returns the seconds from the last signal on."""
    for number in case.signals[:-1]:
        os.kill(target, number)
        time.sleep(BETWEEN_SECONDS)  # no event says to this process that the other has heeded the signal
    os.kill(target, case.signals[-1])
    began = time.monotonic()
    if case.finish and not case.at_once:
        (folder / GO).touch()
    started.wait(DRAIN_SECONDS + 5 * OVER_SECONDS)
    return time.monotonic() - began


def _unfinished(conn: Connection, case: Case) -> list[str]:
    """Attempts that end are recorded, and the others cost their jobs nothing."""
    row = conn.execute(ENDS).fetchone()
    attempts = 2 * len(KINDS)
    wanted = (1 + attempts, 0) if case.finish else (1, attempts)
    return [] if row == wanted else [f"(completed, released) is {row} instead of {wanted}"]


def namespaces() -> bool:
    """Whether this user may make a namespace of processes."""
    return not subprocess.run([*UNSHARE, "true"], capture_output=True, check=False).returncode


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m ops.chaos.signals")
    parser.add_argument("--role", choices=ROLES, action="append", help="default: all")
    asked = parser.parse_args(arguments)
    allowed = namespaces()
    if not allowed:
        print("left out: this user may not make a namespace of processes, so nothing runs as process 1")
    wrong: list[str] = []
    with bench_server() as server, server.migrated() as url:
        for case in cases(asked.role or list(ROLES), namespaces=allowed):
            wrong += run(url, case)
    for line in wrong:
        print(f"WRONG: {line}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
