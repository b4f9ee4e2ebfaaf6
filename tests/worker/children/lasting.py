"""Pipelines whose attempts last until somebody ends their process, each in another state of a process."""

from __future__ import annotations

import ctypes
import os
import re
import signal
import subprocess
import time
from contextlib import suppress

from engine import Job, Pipeline, Run
from ops.chaos.isolation_pipelines import guilty

CLONE = {"x86_64": 56, "aarch64": 220}
CLONE_VFORK = 0x4000
PR_SET_PDEATHSIG = 1


@guilty("running")
def runs_python(_job: Job, run: Run) -> None:
    run.progress(0)
    while True:
        pass


@guilty("holding")
def holds_the_gil(_job: Job, run: Run) -> None:
    run.progress(0)
    re.match(r"(a+)+$", "a" * 40 + "b")


@guilty("stopped")
def stops_itself(_job: Job, run: Run) -> None:
    run.progress(0)
    os.kill(os.getpid(), signal.SIGSTOP)


@guilty("forking")
def waits_for_its_fork(_job: Job, run: Run) -> None:
    """In the kernel, until its child calls exec or ends, as vfork(2) does."""
    run.progress(0)
    libc = ctypes.CDLL(None)
    if libc.syscall(CLONE[os.uname().machine], CLONE_VFORK | signal.SIGCHLD, 0, 0, 0, 0) == 0:
        time.sleep(600)
        os._exit(0)


@guilty("sleeping")
def leaves_a_daemon_and_sleeps(_job: Job, run: Run) -> None:
    subprocess.run(["sh", "-c", "setsid sleep 600 &"], check=True)
    run.progress(0)
    time.sleep(600)


@guilty("undying")
def cuts_its_tie(_job: Job, run: Run) -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, 0)
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    run.progress(0)
    while True:
        with suppress(BaseException):  # as some authors' code does
            time.sleep(60)


@guilty("idle")
def idle(_job: Job, _run: Run) -> None: ...


pipelines = [each for each in list(globals().values()) if isinstance(each, Pipeline)]
