"""The engine's processes as they run in production, started beside the benchmark and ended with it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple, Self

from ops.harness import process
from ops.harness.ports import free_port
from ops.harness.process import ROOT

PIPELINES: Final = "ops.bench.pipelines"

# The secret guards a server that lives for minutes.
SECRET: Final = "the benchmark signs its own tokens with this"  # noqa: S105
ENVIRON: Final[Mapping[str, str]] = {
    "OUTRIDER_LOG_LEVEL": "warning",
    "OUTRIDER_LOG_FORMAT": "json",
    "OUTRIDER_DRAIN_SECONDS": "0",
}

Child = subprocess.Popen[bytes]


@dataclass(frozen=True, slots=True)
class Checkout:
    """The code that is measured: a folder with our packages, and the interpreter that has their dependencies."""

    folder: Path
    python: str

    @classmethod
    def at(cls, folder: Path) -> Self:
        """A clone with its virtual environment, as `./ops/check` makes it."""
        return cls(folder.resolve(), str(folder.resolve() / ".venv" / "bin" / "python"))


HERE: Final = Checkout(ROOT, sys.executable)


class Web(NamedTuple):
    port: int
    child: Child


@contextmanager
def web(url: str, store: str, pipelines: str = PIPELINES, **given: Any) -> Iterator[Web]:
    """A web process with one of the stores of ops.bench.web. `given` goes to `_process`."""
    port = free_port()
    keys = {"OUTRIDER_JWT_SECRET": SECRET, "OUTRIDER_PIPELINES": pipelines, "OUTRIDER_HTTP_PORT": str(port)}
    with _process("ops.bench.web", store, url=url, **(given | keys)) as child:
        yield Web(port, child)


@contextmanager
def webs(url: str, count: int) -> Iterator[Web]:
    """So many web processes on one port, under a supervisor if it is more than one."""
    port = free_port()
    keys: dict[str, Any] = {"OUTRIDER_JWT_SECRET": SECRET, "OUTRIDER_HTTP_PORT": str(port)}
    command = ("ops.cli", "web", "--processes", str(count))
    with _process(*command, url=url, OUTRIDER_PIPELINES=PIPELINES, **keys) as child:
        yield Web(port, child)


@contextmanager
def worker(url: str, slots: int, **settings: Any) -> Iterator[Child]:
    """A worker process with the benchmark's pipelines, unless its `settings` say otherwise."""
    own = {"OUTRIDER_WORKER_CONCURRENCY": str(slots), "OUTRIDER_PIPELINES": PIPELINES}
    with _process("worker", url=url, **{**own, **settings}) as child:
        yield child


@contextmanager
def workers(url: str, slots: int, count: int, **settings: Any) -> Iterator[Child]:
    """A supervisor of `count` workers of so many slots each, as `outrider worker --processes` runs them."""
    own = {"OUTRIDER_WORKER_CONCURRENCY": str(slots)}
    command = ("ops.cli", "worker", "--processes", str(count))
    with _process(*command, url=url, **{**own, **settings}) as child:
        yield child


@contextmanager
def relay(url: str, **settings: Any) -> Iterator[Child]:
    """A relay process: maintenance, and in Pub/Sub mode publishing. It has no workers unless `settings` say so."""
    with _process("relay", url=url, **{"OUTRIDER_RELAY_WORKERS": "0", **settings}) as child:
        yield child


@contextmanager
def _process(
    module: str,
    *arguments: str,
    url: str,
    code: Checkout = HERE,
    dark: bool = False,
    log: Path | None = None,
    **settings: str,
) -> Iterator[Child]:
    """Run `python -m module` of a checkout, and yield it when it is ready. `dark`: no metrics. `log`: a file."""
    port = free_port()
    own = {"OUTRIDER_DATABASE_URL": url, "OUTRIDER_ADMIN_PORT": str(port)}
    kept = {name: value for name, value in os.environ.items() if not name.startswith("OUTRIDER_")}
    command = [code.python, "-m", *(["ops.bench.dark"] if dark else []), module, *arguments]
    with ExitStack() as opened:
        errors = opened.enter_context(log.open("ab")) if log else None
        environ = {**kept, **ENVIRON, **own, **settings}
        yield opened.enter_context(
            process.running(command, environ, admin_port=port, errors=errors, cwd=code.folder)
        )
