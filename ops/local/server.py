"""A PostgreSQL server for local use, shared by all processes with the same data directory.

Each user of the server holds `users.lock` shared. The first user starts a supervisor, the server's parent. Five times
a second the supervisor tries to lock `users.lock` exclusively. If that succeeds, the last user has ended for any
reason, and the supervisor stops the server.

The supervisor and every PostgreSQL process hold `server.lock`. If it is free, none of them is left, and the user that
locks it may start the next server. So users that find the server dead do not compete for the data: one user starts
the server again, and the others wait until it answers.
"""

from __future__ import annotations

import fcntl
import json
import os
import select
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import psycopg

from engine.errors import ConfigurationError
from ops.local import supervisor
from ops.local.place import Place, choose
from ops.local.supervisor import try_lock
from ops.waiting import eventually

START_SECONDS = 60.0
STOP_SECONDS = 10.0
POLL_SECONDS = 0.05
LOG_LINES = 5


class Server:
    """The server of one `place`, for users that hold its `users.lock` shared."""

    def __init__(self, place: Place, settings: Mapping[str, str]) -> None:
        self._place = place
        self._settings = settings

    @property
    def url(self) -> str:
        return self._place.url

    @property
    def log(self) -> Path:
        """The log since the last start. The log before that start is in `server.log.1`."""
        return self._place.log

    def start(self) -> None:
        """Wait until the server answers. Start it if need be.

        Blocks for up to two minutes. Raises ConfigurationError.
        """
        try:
            with _lock_file(self._place, "server.lock") as lock:
                if not eventually(lambda: self._started(lock.fileno()), START_SECONDS, POLL_SECONDS):
                    raise ConfigurationError(
                        [f"the PostgreSQL in {self._place.home} does not answer; its log is {self.log}"]
                    )
        except (OSError, subprocess.SubprocessError) as error:
            raise ConfigurationError([f"the PostgreSQL in {self._place.home}: {error}"]) from error

    def ended(self) -> bool:
        """Whether no process of the server is left. A query that outlives its server may still write."""
        try:
            with _lock_file(self._place, "server.lock") as lock:
                return try_lock(lock.fileno(), fcntl.LOCK_SH)
        except FileNotFoundError:  # the data is gone too
            return True

    def _started(self, lock: int) -> bool:
        if _answers(self.url):
            return True
        if not try_lock(lock, fcntl.LOCK_EX):
            # Another process is starting the server, or the server is stopping.
            return False
        _start(self._place.with_reachable_programs(), lock, self._settings)
        return True


@contextmanager
def local_server(data_dir: Path, settings: Mapping[str, str] | None = None) -> Iterator[Server]:
    """Yield a running server with its data under `data_dir`. Blocks for up to two minutes.

    `settings` are PostgreSQL's, and apply if this user starts the server. The last user waits until the server has
    ended. Raises ConfigurationError that says what to do.
    """
    place = choose(data_dir)
    place.prepare()
    with _lock_file(place, "users.lock") as users:
        if not eventually(lambda: try_lock(users.fileno(), fcntl.LOCK_SH), START_SECONDS, POLL_SECONDS):
            raise ConfigurationError([f"the PostgreSQL in {place.home} does not end; its log is {place.log}"])
        server = Server(place, settings or {})
        server.start()
        try:
            yield server
        finally:
            last = try_lock(users.fileno(), fcntl.LOCK_EX)
    if last:
        with _lock_file(place, "server.lock") as lock:
            eventually(lambda: try_lock(lock.fileno(), fcntl.LOCK_EX), STOP_SECONDS, POLL_SECONDS)


@contextmanager
def local_postgres(data_dir: Path, settings: Mapping[str, str] | None = None) -> Iterator[str]:
    """As `local_server`, but yields only the URL."""
    with local_server(data_dir, settings) as server:
        yield server.url


def _start(place: Place, lock: int, settings: Mapping[str, str]) -> None:
    answer, report = os.pipe()
    plan = json.dumps(_plan(place, settings) | {"lock": lock, "report": report})
    with os.fdopen(answer, "rb") as reading:
        try:
            subprocess.run(
                [sys.executable, "-I", "-S", supervisor.__file__, plan],
                check=True,
                stdin=subprocess.DEVNULL,
                cwd="/",
                pass_fds=[lock, report],
                start_new_session=True,
            )
        finally:
            os.close(report)
        readable, _, _ = select.select([reading], [], [], START_SECONDS)
        said = reading.read().decode() if readable else f"no answer in {START_SECONDS:g} s"
    if said != "ready":
        tail = place.log.read_text(errors="replace").splitlines()[-LOG_LINES:]
        raise ConfigurationError([f"{said or 'the supervisor ended'}; the end of {place.log}:", *tail])


def _plan(place: Place, settings: Mapping[str, str]) -> dict[str, Any]:
    builtin = ["--locale-provider=builtin", "--builtin-locale=C.UTF-8"] if place.install.major >= 17 else []
    unsafe = ["--no-sync"] if settings.get("fsync") == "off" else []
    initdb = ["--username=outrider", "--auth=trust", "--encoding=UTF8", "--locale=C", *builtin, *unsafe]
    fixed = {"listen_addresses": "", "unix_socket_directories": str(place.sockets), "port": "5432"}
    return {
        "binaries": str(place.install.binaries),
        "home": str(place.home),
        "log": str(place.log),
        "initdb": initdb,
        "settings": {"max_connections": "200", "synchronous_commit": "on", **settings, **fixed},
        "account": [place.account.uid, place.account.gid] if place.account else None,
        "seconds": START_SECONDS,
    }


def _answers(url: str) -> bool:
    try:
        psycopg.connect(url, connect_timeout=2).close()
    except psycopg.OperationalError:
        return False
    return True


@contextmanager
def _lock_file(place: Place, name: str) -> Iterator[IO[bytes]]:
    try:
        file = (place.home / name).open("ab")
    except PermissionError as error:
        raise ConfigurationError([f"the data directory belongs to another user: {error}"]) from error
    with file:
        yield file
