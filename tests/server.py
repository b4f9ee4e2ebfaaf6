"""The PostgreSQL the tests run on: the given one, or one of our own that ends with the session."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote


@contextmanager
def scratch_server(given: str | None) -> Iterator[str]:
    if given is not None:
        yield given
        return
    root = Path(tempfile.mkdtemp(prefix="outrider-test-"))
    as_user = {"user": "nobody", "group": "nogroup", "extra_groups": []} if os.geteuid() == 0 else {}
    if as_user:
        shutil.chown(root, "nobody")
    binaries = max(Path("/usr/lib/postgresql").glob("*/bin"))

    def run(*command: str) -> None:
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=root, **as_user)

    data = str(root / "data")
    settings = f"-c fsync=off -c listen_addresses= -c unix_socket_directories={root} -c max_connections=300"
    pg_ctl = str(binaries / "pg_ctl")
    run(str(binaries / "initdb"), "-D", data, "-U", "outrider", "-A", "trust", "-E", "UTF8", "--locale=C")
    run(pg_ctl, "-D", data, "-w", "-l", str(root / "log"), "-o", settings, "start")
    try:
        yield f"postgresql://outrider@/postgres?host={quote(str(root), safe='')}"
    finally:
        run(pg_ctl, "-D", data, "-w", "-m", "immediate", "stop")
        shutil.rmtree(root)
