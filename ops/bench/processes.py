"""The engine's processes as they run in production, started beside the benchmark and ended with it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from http.client import HTTPConnection
from pathlib import Path
from typing import Any, Final

from ops.local.supervisor import dying_with_parent

ROOT: Final = Path(__file__).parents[2]
HOST: Final = "127.0.0.1"
START_SECONDS: Final = 30.0
STOP_SECONDS: Final = 30.0
PIPELINES: Final = "ops.bench.pipelines"
POLL_SECONDS: Final = 0.02

SECRET: Final = "the benchmark signs its own tokens with this"  # noqa: S105  # it guards a server that lives for minutes
ENVIRON: Final[Mapping[str, str]] = {
    "OUTRIDER_LOG_LEVEL": "warning",
    "OUTRIDER_LOG_FORMAT": "json",
    "OUTRIDER_DRAIN_SECONDS": "0",
}


@contextmanager
def web(url: str, store: str, pipelines: str = PIPELINES, **given: Any) -> Iterator[int]:
    """A web process over one of the stores of ops.bench.web; gives its port. `given` is as of `_process`."""
    port = _free_port()
    keys = {"OUTRIDER_JWT_SECRET": SECRET, "OUTRIDER_PIPELINES": pipelines, "OUTRIDER_HTTP_PORT": str(port)}
    with _process("ops.bench.web", store, url=url, **(given | keys)):
        yield port


@contextmanager
def worker(url: str, slots: int, **settings: Any) -> Iterator[None]:
    """A worker process with the benchmark's pipelines, unless its `settings` say otherwise."""
    own = {"OUTRIDER_WORKER_CONCURRENCY": str(slots), "OUTRIDER_PIPELINES": PIPELINES}
    with _process("worker", url=url, **{**own, **settings}):
        yield


@contextmanager
def relay(url: str, **settings: Any) -> Iterator[None]:
    """A relay process. It does not know the benchmark's presets: in Postgres mode it maintains, and runs nothing."""
    with _process("relay", url=url, **settings):
        yield


@contextmanager
def _process(
    module: str, *arguments: str, url: str, dark: bool = False, log: Path | None = None, **settings: str
) -> Iterator[None]:
    """`python -m module`, from its readiness to its end; `dark` without metrics, with its log in a file.

    In a session of its own, or the terminal's Ctrl-C would reach it beside our SIGTERM, and two mean "at once".
    """
    port = _free_port()
    own = {"OUTRIDER_DATABASE_URL": url, "OUTRIDER_ADMIN_PORT": str(port)}
    kept = {name: value for name, value in os.environ.items() if not name.startswith("OUTRIDER_")}
    with ExitStack() as opened:
        stderr = opened.enter_context(log.open("ab")) if log else None
        process = subprocess.Popen(
            [sys.executable, "-m", *(["ops.bench.dark"] if dark else []), module, *arguments],
            cwd=ROOT,
            env={**kept, **ENVIRON, **own, **settings},
            stdin=subprocess.DEVNULL,
            stderr=stderr,
            start_new_session=True,
            preexec_fn=dying_with_parent(signal.SIGKILL),
        )
    try:
        _until_ready(process, port)
        yield
    finally:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(STOP_SECONDS)
        process.kill()
        process.wait()


def _until_ready(process: subprocess.Popen[bytes], port: int) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not _ready(port):
        if process.poll() is not None or time.monotonic() > deadline:
            raise ChildProcessError(f"{process.args!r} does not get ready; exit code {process.poll()}")
        time.sleep(POLL_SECONDS)  # another process gets ready: only asking tells


def _ready(port: int) -> bool:
    connection = HTTPConnection(HOST, port, timeout=5)
    try:
        connection.request("GET", "/readyz")
        return connection.getresponse().status == 200
    except OSError:
        return False  # it does not listen yet
    finally:
        connection.close()


def _free_port() -> int:
    with socket.create_server((HOST, 0)) as listener:
        return int(listener.getsockname()[1])
