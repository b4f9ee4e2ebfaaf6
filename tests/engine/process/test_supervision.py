"""A supervisor: what ends is started again, what cannot run ends it, and nothing costs the others."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from engine.process import restarts
from engine.process.place import Place
from engine.process.restarts import MAX_FAILED_STARTS
from engine.process.run import DONE, FAILED, USAGE
from engine.process.supervision import Supervisor, run_in_turns
from ops.waiting import until

CHILD = """
import os, signal, sys, time
from engine.process import supervised
name, log, port = sys.argv[1:4]
supervised.follow(sys.argv)
with open(log, "a") as file:
    file.write(f"{name} {os.getpid()}\\n")
def stop(*_):
    with open(log, "a") as file:
        file.write(f"{name} stops\\n")
    os._exit(0)
signal.signal(signal.SIGTERM, stop)
if not port.isdigit():
    sys.exit(int(port.removeprefix("exit")))
supervised.tell(int(port))
time.sleep(60)
"""


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(restarts, "MIN_BACKOFF_SECONDS", 0.01)
    monkeypatch.setattr(restarts.Backoff.__init__, "__defaults__", (0.02, 60.0))


class Log:
    def __init__(self, file: Path) -> None:
        self._file = file

    def place(self, name: str, then: str = "1") -> Place:
        """A process that notes its start and its stop; `then` is the port that it tells, or exitCODE."""
        command = [sys.executable, "-c", CHILD, name, str(self._file), then]
        return Place(name, command, stop_seconds=20)

    @property
    def lines(self) -> list[list[str]]:
        text = self._file.read_text() if self._file.exists() else ""
        return [line.split() for line in text.splitlines()]

    async def started(self, name: str, times: int = 1) -> list[int]:
        """The process ids of the first starts."""
        await until(lambda: len(self._pids(name)) >= times, 30)
        return self._pids(name)[:times]

    def stops(self) -> list[str]:
        return [name for name, what in self.lines if what == "stops"]

    def _pids(self, name: str) -> list[int]:
        return [int(what) for each, what in self.lines if each == name and what != "stops"]


@pytest.fixture
def log(tmp_path: Path) -> Log:
    return Log(tmp_path / "log")


async def test_what_is_killed_is_started_again_and_the_other_goes_on(log: Log) -> None:
    stop, places = asyncio.Event(), [log.place("a"), log.place("b")]
    running = asyncio.create_task(Supervisor(places).run(stop))
    [pid] = await log.started("a")
    await log.started("b")
    os.kill(pid, signal.SIGKILL)
    await log.started("a", 2)
    await until(lambda: all(place.started for place in places))
    stop.set()
    assert await running == DONE
    assert sorted(log.stops()) == ["a", "b"]
    assert len(log.lines) == 5


async def test_a_wrong_configuration_at_the_first_start_ends_all(log: Log) -> None:
    with capture_logs() as logged:
        code = await Supervisor([log.place("a"), log.place("b", "exit2")]).run(asyncio.Event())
    assert code == USAGE
    assert [line["role"] for line in logged if line["event"] == "supervisor.gave_up"] == ["b"]


async def test_starts_that_fail_again_and_again_end_all(log: Log) -> None:
    code = await Supervisor([log.place("a"), log.place("b", "exit1")]).run(asyncio.Event())
    assert code == FAILED
    assert len(await log.started("b", MAX_FAILED_STARTS)) == MAX_FAILED_STARTS


class Unstartable:
    """Cannot be started, until its third start."""

    name = "poor"

    def __init__(self) -> None:
        self.starts = 0
        self.runs = asyncio.Event()

    @property
    def started(self) -> bool:
        return self.runs.is_set()

    async def start(self) -> None:
        self.starts += 1
        if self.starts < 3:
            raise BlockingIOError(11, "Resource temporarily unavailable")
        self.runs.set()

    async def ended(self) -> int:
        await asyncio.Event().wait()
        return 1

    async def stop(self) -> int:
        return 0


async def test_what_cannot_be_started_is_tried_again_and_costs_the_others_nothing(log: Log) -> None:
    stop, poor = asyncio.Event(), Unstartable()
    with capture_logs() as logged:
        running = asyncio.create_task(Supervisor([log.place("a"), poor]).run(stop))
        async with asyncio.timeout(10):
            await poor.runs.wait()
        await log.started("a")
        stop.set()
        assert await running == DONE
    events = [line["event"] for line in logged if line.get("role") == "poor"]
    assert events == ["child.not_started", "child.ended"] * 2


async def test_turns_are_stopped_one_after_the_other(log: Log) -> None:
    stop, places = asyncio.Event(), [log.place(name) for name in "abc"]
    running = asyncio.create_task(run_in_turns([places[:1], places[1:2], places[2:]], stop))
    await until(lambda: all(place.started for place in places), 30)
    stop.set()
    assert await running == DONE
    assert log.stops() == ["a", "b", "c"]


async def test_a_turn_that_gives_up_stops_the_others_and_its_code_is_told(log: Log) -> None:
    stop = asyncio.Event()
    assert await run_in_turns([[log.place("a")], [log.place("b", "exit2")]], stop) == USAGE
    assert stop.is_set()
