"""Strangers at the door of a web process: `python -m ops.chaos.door [--seconds N] [--silent N] [--descriptors N]`.

Eight clients without a token post 3 MB of gzip that inflate to 900 MiB, and others try thousands of connections that
say nothing, while a prober asks for /healthz from the same address. It must be answered within 100 ms, 99 of 100 times,
every answer must be a 200, the log must stay short and the memory flat.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import orjson

from ops.bench.processes import SECRET
from ops.bench.server import bench_server
from ops.harness import process
from ops.harness.ports import free_port
from ops.waiting import eventually

P99_MILLISECONDS: Final = 100.0
MAX_LOG_LINES: Final = 100
MAX_GROWTH_MIB: Final = 64
PATIENCE_SECONDS: Final = 60.0
LIMITED: Final = ("sh", "-c", 'ulimit -n "$0"; exec "$@"')

Child = subprocess.Popen[bytes]


@dataclass(frozen=True, slots=True)
class Served:
    """A web process that is attacked."""

    port: int
    child: Child
    log: Path

    def memory_mib(self) -> int:
        pages = int(Path(f"/proc/{self.child.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") >> 20

    def log_lines(self) -> int:
        return len(self.log.read_bytes().splitlines())


@contextmanager
def served(url: str, folder: Path, descriptors: int | None) -> Iterator[Served]:
    """A web process, with so many descriptors at most."""
    port, admin_port, log = free_port(), free_port(), folder / "web.log"
    environ = {name: value for name, value in os.environ.items() if not name.startswith("OUTRIDER_")} | {
        "OUTRIDER_DATABASE_URL": url,
        "OUTRIDER_JWT_SECRET": SECRET,
        "OUTRIDER_HTTP_PORT": str(port),
        "OUTRIDER_ADMIN_PORT": str(admin_port),
        "OUTRIDER_LOG_FORMAT": "json",
    }
    limited = (*LIMITED, str(descriptors)) if descriptors else ()
    command = [*limited, sys.executable, "-m", "web"]
    with (
        log.open("ab") as errors,
        process.running(command, environ, admin_port=admin_port, errors=errors) as child,
    ):
        yield Served(port, child, log)


def run(url: str, seconds: float, silent: int, descriptors: int | None) -> list[str]:
    """Run the scenario on the database at `url` and return what is wrong. Blocks."""
    with (
        TemporaryDirectory(prefix="outrider-chaos-") as folder,
        served(url, Path(folder), descriptors) as web,
    ):
        calm = _said(_stranger("probe", web.port, seconds / 4))
        before = web.memory_mib()
        attack = [
            _stranger("bombs", web.port, seconds * 2),
            _stranger("silent", web.port, seconds * 2, silent),
        ]
        # The bomb is packed for some seconds before the first is sent.
        eventually(lambda: web.memory_mib() > before, seconds / 2)
        grown = []
        probe = _stranger("probe", web.port, seconds)
        while probe.poll() is None:
            grown.append(web.memory_mib() - before)
            # Ten looks at the memory during the probe.
            time.sleep(seconds / 10)
        hit = _said(probe)
        bombs, held = (_said(each) for each in attack)
        lines = web.log_lines()
        print(f"calm: {_figures(calm)}\nattacked: {_figures(hit)}")
        print(f"bombs: {bombs}, silent: {held}, memory {before} MiB {grown}, log {lines} lines")
        return _wrong(hit, max(grown), lines)


def _wrong(hit: dict[str, Any], memory: int, lines: int) -> list[str]:
    wrong = []
    if hit["failed"]:
        wrong.append(f"{hit['failed']} probes were not answered by 200")
    if _quantile(hit["took"], 0.99) > P99_MILLISECONDS:
        wrong.append(f"1 of 100 probes took {_quantile(hit['took'], 0.99):.0f} ms")
    if lines > MAX_LOG_LINES:
        wrong.append(f"the log has {lines} lines")
    if memory > MAX_GROWTH_MIB:
        wrong.append(f"the memory grew by {memory} MiB")
    return wrong


def _stranger(kind: str, *arguments: float) -> Child:
    command = [sys.executable, "-m", "ops.chaos.strangers", kind, *map(str, arguments)]
    return subprocess.Popen(command, cwd=process.ROOT, stdout=subprocess.PIPE)


def _said(stranger: Child) -> Any:
    output, _ = stranger.communicate(timeout=PATIENCE_SECONDS + 600)
    return orjson.loads(output)


def _quantile(took: list[float], share: float) -> float:
    return sorted(took)[min(int(len(took) * share), len(took) - 1)]


def _figures(probed: dict[str, Any]) -> str:
    took = probed["took"]
    figures = ", ".join(f"p{share * 100:g} {_quantile(took, share):.1f} ms" for share in (0.5, 0.9, 0.99))
    return f"{len(took)} probes, {figures}, longest {max(took):.1f} ms, {probed['failed']} failed"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m ops.chaos.door")
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--silent", type=int, default=5000, help="connections that say nothing")
    parser.add_argument("--descriptors", type=int, help="the hard limit of open files of the web process")
    asked = parser.parse_args(arguments)
    with bench_server() as server, server.migrated() as url:
        wrong = run(url, asked.seconds, asked.silent, asked.descriptors)
    for line in wrong:
        print(f"WRONG: {line}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
