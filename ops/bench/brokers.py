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
from ops.harness.emulator import Emulator, find, require
from ops.harness.process import ROOT, STOP_SECONDS

FAKE: Final = "ops.harness.pubsub_fake"


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


def found() -> Mapping[str, Callable[[], AbstractContextManager[str]]]:
    """The available brokers by their names in tables."""
    brokers: dict[str, Callable[[], AbstractContextManager[str]]] = {"the fake": fake}
    if find():
        brokers["Google's emulator"] = emulator
    return brokers
