"""Finds, starts and stops Google's Pub/Sub emulator of the Google Cloud SDK, on the loopback address.

The emulator loses everything at a restart. It frees no message before it ends, so its heap limits how long it can run.
"""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import sys
import time
from asyncio.subprocess import DEVNULL, Process
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

import aiohttp

from engine.errors import ConfigurationError
from engine.process import prctl
from ops.harness.ports import HOST, free_port

SDK_FOLDERS: Final = (
    "/usr/lib/google-cloud-sdk",  # Debian's package
    "/usr/share/google-cloud-sdk",
    "/snap/google-cloud-cli/current",
    "/snap/google-cloud-sdk/current",
    "/opt/google-cloud-sdk",
    "/opt/homebrew/share/google-cloud-sdk",
    "~/google-cloud-sdk",
)
JARS: Final = "platform/pubsub-emulator/lib/cloud-pubsub-emulator-*-all.jar"
MISSING: Final = (
    "Google's Pub/Sub emulator is not installed: `gcloud components install pubsub-emulator`,"
    " or Debian's google-cloud-cli-pubsub-emulator"
)
NO_JAVA: Final = "Google's Pub/Sub emulator needs Java: put `java`, 11 or newer, on the PATH"
START_SECONDS: Final = 60.0
STOP_SECONDS: Final = 5.0
POLL_SECONDS: Final = 0.05
LOG_LINES: Final = 5


@dataclass(frozen=True, slots=True)
class Install:
    java: Path
    jar: Path


def find() -> Install | None:
    """The newest emulator of the first SDK that has one. None without an emulator or without Java."""
    java, jar = _java(), _jar()
    return Install(java, jar) if java and jar else None


def require() -> Install:
    """As `find`, but raises ConfigurationError that says what to install."""
    java, jar = _java(), _jar()
    if java and jar:
        return Install(java, jar)
    raise ConfigurationError([line for line, found in ((MISSING, jar), (NO_JAVA, java)) if not found])


class Emulator:
    """One emulator process, which dies with the thread that starts it. It can be started again at the same port.

    Inside the `async with` block the emulator is ready. Its output goes to the file `log`. `heap` is Java's -Xmx:
    200 MB hold some 130,000 messages of 1 kB.
    """

    def __init__(self, install: Install, log: Path, port: int = 0, heap: str = "1g") -> None:
        self.port = port or free_port()
        self._install = install
        self._log = log
        self._heap = heap
        self._process: Process | None = None

    @property
    def host(self) -> str:
        """The value of PUBSUB_EMULATOR_HOST."""
        return f"{HOST}:{self.port}"

    @property
    def living(self) -> bool:
        return self._process is not None and self._process.returncode is None

    async def __aenter__(self) -> Self:
        try:
            await self.start()
        except BaseException:
            await self.stop()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def start(self) -> None:
        """Start the emulator and wait until it answers. Raises ConfigurationError with the end of its log."""
        self._process = await self._spawn()
        deadline = time.monotonic() + START_SECONDS
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=5)) as session:
            while not await _answers(session, f"http://{self.host}/"):
                if self._process.returncode is not None or time.monotonic() > deadline:
                    tail = self._log.read_text(errors="replace").splitlines()[-LOG_LINES:]
                    raise ConfigurationError(
                        [f"the Pub/Sub emulator did not start; the end of {self._log}:", *tail]
                    )
                await asyncio.sleep(POLL_SECONDS)

    async def ended(self) -> int:
        """Wait for the end of a started emulator and return its exit code, negative for a signal."""
        return await self._process.wait() if self._process else 0

    async def stop(self, seconds: float = STOP_SECONDS) -> None:
        """Send SIGTERM, and SIGKILL if the emulator has not ended within `seconds`. 0 kills it at once."""
        process = self._process
        if process is None or process.returncode is not None:
            return
        if seconds:
            process.terminate()
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await process.wait()
        if process.returncode is None:
            process.kill()
            await process.wait()

    async def _spawn(self) -> Process:
        heap, address = f"-Xmx{self._heap}", [f"--host={HOST}", f"--port={self.port}"]
        tied = [sys.executable, "-I", "-S", prctl.__file__, str(os.getpid()), str(self._install.java)]
        command = [*tied, heap, "-XX:+UseSerialGC", "-jar", str(self._install.jar), *address]
        with self._log.open("wb") as sink:
            # In its own session: else the terminal's Ctrl-C would end it before the processes that still use it.
            return await asyncio.create_subprocess_exec(
                *command, stdin=DEVNULL, stdout=sink, stderr=sink, start_new_session=True
            )


def _java() -> Path | None:
    home = os.environ.get("JAVA_HOME")
    found = shutil.which("java", path=str(Path(home) / "bin")) if home else None
    found = found or shutil.which("java")
    return Path(found) if found else None


def _jar() -> Path | None:
    for folder in _sdk_folders():
        if jars := list(folder.glob(JARS)):
            return max(jars, key=_version)
    return None


def _sdk_folders() -> Iterator[Path]:
    for variable in ("CLOUDSDK_ROOT_DIR", "CLOUDSDK_ROOT"):
        if folder := os.environ.get(variable):
            yield Path(folder)
    if gcloud := shutil.which("gcloud"):
        yield Path(gcloud).resolve().parent.parent
    yield from (Path(folder).expanduser() for folder in SDK_FOLDERS)


def _version(jar: Path) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", jar.name)]


async def _answers(session: aiohttp.ClientSession, url: str) -> bool:
    with suppress(aiohttp.ClientError, TimeoutError):  # not listening yet
        async with session.get(url) as response:
            return response.status == 200
    return False
