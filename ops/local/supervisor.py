"""The server's parent: a separate process that runs PostgreSQL as long as any process holds `users.lock`.

The supervisor is started by its path and uses only the standard library, and a file that does the same. So it needs no
import path, and is up in 50 ms. It inherits `server.lock` locked and passes the lock on to every program that it
starts. The lock is free again when all of them have ended.
"""

from __future__ import annotations

import fcntl
import json
import os
import runpy
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

POLL_SECONDS = 0.2
PRCTL = Path(__file__).parents[2] / "engine" / "process" / "prctl.py"
die_with_parent = runpy.run_path(str(PRCTL))["die_with_parent"]


class Supervisor:
    def __init__(self, plan: dict[str, Any]) -> None:
        self.binaries = Path(plan["binaries"])
        self.home = Path(plan["home"])
        self.cluster = self.home / "cluster"
        self.initdb: list[str] = plan["initdb"]
        self.options = [f"--{name}={value}" for name, value in plan["settings"].items()]
        self.account: list[int] | None = plan["account"]
        self.lock: int = plan["lock"]
        self.deadline = time.monotonic() + plan["seconds"]
        self.stopped = False

    def start(self) -> subprocess.Popen[bytes]:
        if not self.cluster.exists():
            self._make_cluster()
        # No other process holds the lock, so the pid in the file belongs to a zombie or by now to another program.
        # PostgreSQL would take either for a running server.
        (self.cluster / "postmaster.pid").unlink(missing_ok=True)
        server = subprocess.Popen(
            [self.binaries / "postgres", "-D", self.cluster, *self.options],
            stdin=subprocess.DEVNULL,
            **self._as_child(signal.SIGQUIT),
        )
        while not self._ready():
            if server.poll() is not None or time.monotonic() > self.deadline:
                stop(server)
                raise ChildProcessError("PostgreSQL did not start")
            # A starting server sends no signal when it is ready, so it is polled.
            time.sleep(0.01)
        return server

    def watch(self, server: subprocess.Popen[bytes]) -> None:
        """Wait until the last user is gone, the server has died or a signal asks to stop. Then stop the server."""
        # Once this process has the lock, it keeps the lock until the server has stopped. New users wait meanwhile.
        with (self.home / "users.lock").open("rb") as users:
            while server.poll() is None and not self.stopped and not try_lock(users.fileno(), fcntl.LOCK_EX):
                with suppress(subprocess.TimeoutExpired):
                    server.wait(POLL_SECONDS)
            stop(server)

    def _make_cluster(self) -> None:
        """Create the cluster completely or not at all: it gets its name only when everything is on disk."""
        part = self.home / "cluster.new"
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(mode=0o700)
        if self.account:
            os.chown(part, *self.account)
        self._run(b"", "initdb", "-D", str(part), *self.initdb)
        single = ["--single", "-D", str(part), *self.options, "--exit_on_error=true", "postgres"]
        self._run(b"CREATE DATABASE outrider;\n", "postgres", *single)
        part.rename(self.cluster)
        home = os.open(self.home, os.O_RDONLY)
        os.fsync(home)
        os.close(home)

    def _run(self, given: bytes, program: str, *arguments: str) -> None:
        seconds = max(0.0, self.deadline - time.monotonic())
        command = [str(self.binaries / program), *arguments]
        child = self._as_child(signal.SIGKILL)
        if subprocess.run(command, input=given, timeout=seconds, check=False, **child).returncode:
            raise ChildProcessError(f"{program} failed")

    def _as_child(self, at_parents_death: signal.Signals) -> dict[str, Any]:
        """Options of a child. Its environment is bare, because the server would also read PGPORT, PGDATA and LC_*."""
        uid, gid = self.account or (None, None)
        return {
            "env": {"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"},
            "cwd": self.home,
            "pass_fds": [self.lock],
            "user": uid,
            "group": gid,
            "extra_groups": [] if self.account else None,
            "umask": 0o077,
            "preexec_fn": partial(die_with_parent, at_parents_death, os.getpid()),
        }

    def _ready(self) -> bool:
        """Whether the server is ready, by the eighth line of the pid file, as pg_ctl does."""
        with suppress(FileNotFoundError):
            lines = (self.cluster / "postmaster.pid").read_text().splitlines()
            return len(lines) >= 8 and lines[7].strip() == "ready"
        return False


def try_lock(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def stop(server: subprocess.Popen[bytes]) -> None:
    """Stop the server: fast, then at once (the next start recovers), then by force."""
    for signum in (signal.SIGINT, signal.SIGQUIT, signal.SIGKILL):
        if server.poll() is not None:
            return
        server.send_signal(signum)
        with suppress(subprocess.TimeoutExpired):
            server.wait(3)


def report(descriptor: int, line: str) -> None:
    # The process that started the supervisor may be gone. `watch` will find that out.
    with suppress(BrokenPipeError):
        os.write(descriptor, line.encode())
    os.close(descriptor)


def main() -> int:
    plan = json.loads(sys.argv[1])
    if os.fork():
        return 0
    # The last log is kept: it says why the last server ended.
    with suppress(FileNotFoundError):
        Path(plan["log"]).replace(plan["log"] + ".1")
    log = os.open(plan["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    for stream in (1, 2):
        os.dup2(log, stream)
    supervisor = Supervisor(plan)
    for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(signum, lambda *_: setattr(supervisor, "stopped", True))
    try:
        server = supervisor.start()
    except (OSError, subprocess.SubprocessError) as error:
        report(plan["report"], str(error))
        return 1
    report(plan["report"], "ready")
    supervisor.watch(server)
    return 0


if __name__ == "__main__":
    sys.exit(main())
