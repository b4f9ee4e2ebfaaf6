"""The brokers that a benchmark publishes to: a fake, and Google's emulator if it is installed."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from engine.process.prctl import die_with_parent
from engine.pubsub.client import EMULATOR, names
from engine.settings import load
from ops.harness.emulator import Emulator, find, require
from ops.harness.process import ROOT, STOP_SECONDS
from relay.provision.apply import open_clients, provision

FAKE: Final = "ops.harness.pubsub_fake"
SETTINGS: Final = {"OUTRIDER_TRANSPORT": "pubsub", "OUTRIDER_PUBSUB_PROJECT": "bench"}

Broker = Callable[[], AbstractContextManager[str]]
"""Runs a broker, and yields its host."""


@contextmanager
def fake() -> Iterator[str]:
    """Run the fake in a separate process and yield its host. The fake keeps no history of published messages."""
    command = [sys.executable, "-m", FAKE, "--no-history"]
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        preexec_fn=partial(die_with_parent, parent=os.getpid()),
    )
    assert process.stdout is not None
    try:
        yield json.loads(process.stdout.readline())["host"]
    finally:
        process.kill()
        process.wait(STOP_SECONDS)
        process.stdout.close()


@contextmanager
def emulator() -> Iterator[str]:
    """Run Google's emulator and yield its host."""
    with TemporaryDirectory() as folder, asyncio.Runner() as runner:
        running = Emulator(require(), Path(folder) / "log")
        runner.run(running.start())
        try:
            yield running.host
        finally:
            runner.run(running.stop())


def found() -> Mapping[str, Broker]:
    """The available brokers by their names in tables."""
    brokers: dict[str, Broker] = {"the fake": fake}
    if find():
        brokers["Google's emulator"] = emulator
    return brokers


@contextmanager
def provisioned(broker: Broker) -> Iterator[dict[str, str]]:
    """Run a broker with topics and subscriptions. Yields the settings of processes that use it."""
    with broker() as host, _at(host):
        asyncio.run(_provision())
        yield {**SETTINGS, EMULATOR: host}


@contextmanager
def _at(host: str) -> Iterator[None]:
    """Set the variable by which Google's clients, and ours, find an emulator."""
    before = os.environ.get(EMULATOR)
    os.environ[EMULATOR] = host
    try:
        yield
    finally:
        del os.environ[EMULATOR]
        if before is not None:
            os.environ[EMULATOR] = before


async def _provision() -> None:
    async with open_clients() as clients:
        async for _ in provision(clients, names(load(SETTINGS))):
            pass
