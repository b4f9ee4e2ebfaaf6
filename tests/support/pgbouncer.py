"""A real PgBouncer in front of a database, where one is installed."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import pytest
from psycopg.conninfo import conninfo_to_dict

from ops.harness.ports import HOST, free_port
from ops.waiting import eventually

CONFIGURATION = """
[databases]
* = host={host} port={port}
[pgbouncer]
listen_addr = {here}
listen_port = {listen}
unix_socket_dir =
auth_type = trust
auth_file = {users}
pool_mode = {mode}
default_pool_size = 100
max_client_conn = 500
ignore_startup_parameters = {ignored}
"""


def program() -> str:
    """Where it is not installed the test is skipped, or fails if TEST_PGBOUNCER=require."""
    found = shutil.which("pgbouncer", path=f"{os.environ['PATH']}:/usr/sbin:/usr/local/sbin")
    if found is None and os.environ.get("TEST_PGBOUNCER") != "require":
        pytest.skip("pgbouncer is not installed")
    assert found, "pgbouncer is not installed"
    return found


@contextmanager
def pgbouncer(url: str, mode: Literal["session", "transaction"], ignored: str = "") -> Iterator[str]:
    """The URL of a PgBouncer in front of `url`, which names a folder of sockets as its host.

    `ignored` are the parameters that it drops from the startup packet instead of refusing the client.
    """
    place = conninfo_to_dict(url)
    host, user, port = str(place["host"]), str(place["user"]), free_port()
    # It refuses to run as root, and must be able to enter the folder of sockets.
    owner = Path(host).stat().st_uid if os.geteuid() == 0 else None
    with tempfile.TemporaryDirectory(prefix="outrider-pgbouncer-") as folder:
        Path(folder).chmod(0o755)
        users, configuration, log = (Path(folder, name) for name in ("users", "ini", "log"))
        users.write_text(f'"{user}" ""\n')
        configuration.write_text(
            CONFIGURATION.format(
                host=host,
                port=place.get("port", 5432),
                here=HOST,
                listen=port,
                users=users,
                mode=mode,
                ignored=ignored,
            )
        )
        with log.open("wb") as stream:
            process = subprocess.Popen(
                [program(), str(configuration)], stderr=stream, start_new_session=True, user=owner
            )
        try:
            assert eventually(lambda: _listens(port) or process.poll() is not None), log.read_text()
            assert process.poll() is None, log.read_text()
            yield f"postgresql://{user}@{HOST}:{port}/{place['dbname']}"
        finally:
            process.kill()
            process.wait()


def _listens(port: int) -> bool:
    try:
        socket.create_connection((HOST, port), timeout=1).close()
    except OSError:
        return False
    return True
