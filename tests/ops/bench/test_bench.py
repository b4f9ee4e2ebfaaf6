from __future__ import annotations

import asyncio
import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from ops.bench import brokers
from ops.bench.__main__ import SECTIONS, measure
from ops.bench.figures import Row, ratio
from ops.bench.plan import Plan
from ops.harness.load import Unexpected, drive, percentile
from ops.harness.process import ROOT
from ops.waiting import eventually

START_SECONDS = 60.0
END_SECONDS = 15.0
TINY = Plan(
    repeat=1,
    submission_seconds=0.1,
    connections=(64,),
    drain_rows=1200,
    relay_rows=1200,
    child_rows=200,
    pickups=5,
    small_rows=600,
    middle_rows=700,
    large_rows=800,
    held_seconds=2.0,
    held_window=1.0,
)
GOALS = {
    "submissions": 2,
    "calls": 3,
    "web": 0,
    "drain": 1,
    "relay": 2 * len(brokers.found()),
    "pickup": 2 * 3,
    "claim": 3,
    "held": 1,
    "overhead": 3,
    "children": 4,
}


@pytest.mark.long
async def test_every_section_gives_all_its_figures() -> None:
    shown = StringIO()
    async with asyncio.timeout(300):
        report = await asyncio.to_thread(measure, list(SECTIONS), TINY, Console(file=shown, width=200))
    sections = json.loads(json.dumps(report))["sections"]
    assert list(sections) == list(SECTIONS)
    for section, rows in sections.items():
        assert sum(row["met"] is not None for row in rows) == GOALS[section]
        for row in rows:
            assert row["name"] in shown.getvalue()
            assert row["samples"]
            assert all(math.isfinite(sample) and sample >= 0 for sample in row["samples"])
    [rate] = [row for row in sections["drain"] if row["name"] == "1 worker"]
    assert rate["median"] > 0


def test_a_goal_is_held_against_the_median() -> None:
    assert Row("", [1.0, 5.0, 9.0], at_least=5).met
    assert not Row("", [1.0, 4.9, 9.0], at_least=5).met
    assert Row("", [1.0, 5.0, 9.0], at_most=5).met
    assert not Row("", [1.0, 5.1, 9.0], at_most=5).met
    assert Row("", [1.0]).met is None


def test_a_ratio_pairs_what_was_measured_together() -> None:
    assert ratio("", Row("", [10.0, 2.0]), Row("", [5.0, 4.0])).samples == [2.0, 0.5]


def test_a_percentile_is_one_of_the_samples() -> None:
    samples = [float(n) for n in range(100, 0, -1)]
    assert percentile(samples, 0.5) == 51
    assert percentile(samples, 0.99) == 100
    assert percentile([7.0], 0.99) == 7


async def test_the_load_does_not_count_an_answer_that_is_not_202(capfd: pytest.CaptureFixture[str]) -> None:
    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(refuse, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with asyncio.timeout(30), server:
        with pytest.raises(subprocess.CalledProcessError):
            await asyncio.to_thread(drive, port, 1, 0.1, b"GET / HTTP/1.1\r\n\r\n")
    assert Unexpected.__name__ in capfd.readouterr().err


@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_benchmark_leaves_nothing_behind(number: signal.Signals, tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    bench = subprocess.Popen(
        [sys.executable, "-m", "ops.bench", "--quick", "submissions"],
        cwd=ROOT,
        env=os.environ | {"TMPDIR": str(tmp_path)},
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        assert eventually(
            lambda: any("ops.harness.load" in command for command in _commands(tmp_path)), START_SECONDS
        )
        bench.send_signal(number)
        assert bench.wait(END_SECONDS) == 130
    finally:
        bench.kill()
    assert eventually(lambda: not list(_commands(tmp_path)), END_SECONDS)
    assert not list(tmp_path.iterdir())


def _commands(folder: Path) -> Iterator[str]:
    """The command lines of the processes that know of `folder`: by their arguments, or by their TMPDIR."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command, environ = (process / "cmdline").read_bytes(), (process / "environ").read_bytes()
        except OSError:
            continue  # it has ended meanwhile
        if bytes(folder) in command or b"TMPDIR=" + bytes(folder) in environ.split(b"\0"):
            yield command.replace(b"\0", b" ").decode()
