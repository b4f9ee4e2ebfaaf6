"""A primary and a hot standby that streams from it: two real servers."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple
from urllib.parse import quote

import psycopg

import migrations
from engine.process.prctl import die_with_parent
from ops.harness.postgres import folder_in_memory
from ops.local.place import Place, choose
from ops.local.server import local_postgres
from ops.waiting import eventually

QUICK = {"fsync": "off", "max_connections": "50"}
SOCKETS = "s"


class Pair(NamedTuple):
    """The URLs of the two servers."""

    primary: str
    standby: str


@contextmanager
def replicated() -> Iterator[Pair]:
    """A migrated primary and its standby."""
    with TemporaryDirectory(prefix="outrider-", dir=folder_in_memory()) as name:
        folder = Path(name)
        folder.chmod(0o755)
        with local_postgres(folder, QUICK) as url:
            migrations.up(url)
        place = choose(folder).with_reachable_programs()
        # Of a server that is shut down, the copied files are a base backup.
        copy = shutil.copytree(place.cluster, folder / "copy")
        (copy / "standby.signal").touch()
        (folder / SOCKETS).mkdir()
        _give(place, copy, *copy.rglob("*"), folder / SOCKETS)
        with local_postgres(folder, QUICK) as url, _standby(place, copy, folder / SOCKETS) as standby_url:
            yield Pair(url, standby_url)


@contextmanager
def _standby(place: Place, cluster: Path, sockets: Path) -> Iterator[str]:
    source = f"host={place.sockets} user=outrider"
    settings = QUICK | {
        "listen_addresses": "",
        "unix_socket_directories": str(sockets),
        "port": "5432",
        "primary_conninfo": source,
    }
    server = subprocess.Popen(
        [place.install.binaries / "postgres", "-D", cluster, *(f"--{k}={v}" for k, v in settings.items())],
        stdin=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd=sockets,
        user=place.account.uid if place.account else None,
        group=place.account.gid if place.account else None,
        preexec_fn=partial(die_with_parent, signal.SIGQUIT, os.getpid()),
    )
    url = f"postgresql://outrider@/outrider?host={quote(str(sockets), safe='')}"
    try:
        assert eventually(lambda: _answers(url)), "the standby does not answer"
        yield url
    finally:
        server.send_signal(signal.SIGINT)
        server.wait(30)


def _answers(url: str) -> bool:
    try:
        psycopg.connect(url, connect_timeout=2).close()
    except psycopg.OperationalError:
        return False
    return True


def _give(place: Place, *paths: Path) -> None:
    if place.account:
        for path in paths:
            os.chown(path, place.account.uid, place.account.gid)
