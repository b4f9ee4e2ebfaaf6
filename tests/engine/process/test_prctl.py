"""Processes that end with the one that started them, by SIGKILL too."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from engine.process import prctl
from ops.waiting import eventually
from tests.system.acceptance.supervised import lives

PARENT = f"""
import os, subprocess, sys
command = [sys.executable, "-I", "-S", {prctl.__file__!r}, sys.argv[1] or str(os.getpid()), "/bin/sleep", "60"]
child = subprocess.Popen(command)
print(child.pid, flush=True)
sys.exit(child.wait() < 0)
"""


def parent(of: str = "") -> tuple[subprocess.Popen[str], int]:
    """A process, and the id of a child that ends with the process `of`, or else with it."""
    process = subprocess.Popen([sys.executable, "-c", PARENT, of], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    return process, int(process.stdout.readline())


def test_a_program_ends_with_its_killed_parent() -> None:
    process, child = parent()
    with process:
        assert eventually(lambda: b"sleep" in _command(child))
        os.kill(process.pid, signal.SIGKILL)
    assert eventually(lambda: not lives(child))


def test_a_program_whose_parent_has_ended_before_ends_at_once() -> None:
    process, _ = parent(of="1")
    with process:
        assert process.wait(10) == 1


def _command(pid: int) -> bytes:
    return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0]
