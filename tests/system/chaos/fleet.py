"""The engine's processes over one database and one broker: killed, stopped and started again, their logs in files."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import sys
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, Protocol

import aiohttp
from prometheus_client.parser import text_string_to_metric_families

from engine.pubsub.client import EMULATOR
from ops.harness.emulator import Emulator, require
from ops.harness.ports import free_port
from ops.harness.process import ROOT
from ops.harness.pubsub_fake import pubsub_process
from ops.waiting import until
from tests.support.json_lines import events

PROJECT = "chaos"
START_SECONDS = 30.0
LOUD = ("warning", "error", "critical")

Kind = Literal["fake", "emulator"]


class Broker(Protocol):
    """Stopped and started, the fake keeps what it had; the emulator keeps nothing."""

    @property
    def host(self) -> str: ...
    async def start(self) -> None: ...
    async def stop(self) -> None: ...


class KilledEmulator(Emulator):
    async def stop(self, seconds: float = 0) -> None:
        await super().stop(seconds)


@asynccontextmanager
async def open_broker(kind: Kind, folder: Path, seed: int = 0) -> AsyncIterator[Any]:
    """A Broker in a process of its own; the fake's is a Remote, which takes faults."""
    if kind == "fake":
        async with pubsub_process("--seed", str(seed)) as remote:
            yield remote
    else:
        async with KilledEmulator(require(), folder / "emulator.log") as emulator:
            yield emulator


class Process:
    """`outrider ROLE`."""

    def __init__(self, name: str, child: asyncio.subprocess.Process, log: Path, port: int) -> None:
        self.name = name
        self._child = child
        self._log = log
        self._port = port

    def send(self, number: signal.Signals) -> None:
        self._child.send_signal(number)

    async def kill(self) -> None:
        if self._child.returncode is None:
            self._child.kill()  # ends a stopped process, too
        await self._child.wait()

    def logged(self) -> list[dict[str, Any]]:
        return events(self._log)

    def loud(self) -> Counter[str]:
        """How many warnings and worse it has logged, by event. A busy machine may keep any loop from turning."""
        loud = Counter(line["event"] for line in self.logged() if line["level"] in LOUD)
        del loud["loop.blocked"]
        return loud

    async def started(self, event: str) -> None:
        async def look() -> bool:
            assert self._child.returncode is None, (self._child.returncode, self._log.read_text())
            return any(line["event"] == event for line in self.logged())

        await until(look, START_SECONDS)

    async def metrics(self) -> dict[str, float]:
        """Each counter's and gauge's sum over its labels."""
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=10)) as session,
            session.get(f"http://127.0.0.1:{self._port}/metrics") as answer,
        ):
            families = text_string_to_metric_families(await answer.text())
            sums: defaultdict[str, float] = defaultdict(float)
            for family in families:
                for sample in family.samples:
                    sums[sample.name] += sample.value
        return sums


class Fleet:
    """Starts processes on the database at `url` and the broker at `host`; all of them end with it."""

    def __init__(self, url: str, host: str, folder: Path, **settings: object) -> None:
        self._folder = folder
        self._numbers = itertools.count(1)
        self.processes: list[Process] = []
        self._ledger = folder / "executions"
        given = {"DATABASE_URL": url, "TRANSPORT": "pubsub", "PUBSUB_PROJECT": PROJECT, **settings}
        self._environ = {
            **{name: value for name, value in os.environ.items() if not name.startswith("OUTRIDER_")},
            **{f"OUTRIDER_{name}": str(value) for name, value in given.items()},
            EMULATOR: host,
            "CHAOS_LEDGER": str(self._ledger),
        }

    def executions(self) -> list[str]:
        """A line for each start of an attempt, written outside the database by tests.system.chaos.pipelines."""
        return self._ledger.read_text().splitlines()

    async def start(self, role: str, **settings: object) -> Process:
        """`outrider ROLE`, once it says that it has started."""
        name = f"{role}-{next(self._numbers)}"
        port = free_port()
        own = {f"OUTRIDER_{key}": str(value) for key, value in {"ADMIN_PORT": port, **settings}.items()}
        log = self._folder / f"{name}.log"
        process = Process(name, await self._spawn([role, "--tied"], log, own), log, port)
        self.processes.append(process)
        await process.started(f"{role}.started")
        return process

    async def provision(self) -> None:
        await self.command("provision")

    async def command(self, *words: str) -> None:
        """`outrider …`, to its good end."""
        log = self._folder / "command.log"
        child = await self._spawn(words, log, {})
        async with asyncio.timeout(START_SECONDS):
            assert await child.wait() == 0, log.read_text()

    async def _spawn(
        self, words: Sequence[str], log: Path, own: dict[str, str]
    ) -> asyncio.subprocess.Process:
        """Without `preexec_fn`, or gRPC's threads may break what is forked beside them."""
        with log.open("wb") as sink:
            return await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "ops.cli", *words),
                cwd=ROOT,
                env=self._environ | own,
                stdin=asyncio.subprocess.PIPE,
                stdout=sink,
                stderr=sink,
            )

    async def aclose(self) -> None:
        await asyncio.gather(*(process.kill() for process in self.processes))


@asynccontextmanager
async def open_fleet(
    url: str, kind: Kind, seed: int = 0, **settings: object
) -> AsyncIterator[tuple[Fleet, Any]]:
    """A fleet without processes, and its broker, provisioned. The logs go when it ends."""
    with TemporaryDirectory(prefix="outrider-chaos-") as name:
        folder = Path(name)
        async with open_broker(kind, folder, seed) as broker:
            fleet = Fleet(url, broker.host, folder, **settings)
            try:
                await fleet.provision()
                yield fleet, broker
            finally:
                await fleet.aclose()
