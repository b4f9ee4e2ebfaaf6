"""What the Dockerfile makes, without Docker: its instructions carried out in a folder that stands for `/`."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from ops.harness.process import ROOT
from tests.ops.deploy.manifests import DEPLOY

STRANGER: dict[str, Any] = {"user": 65532, "group": 65532, "extra_groups": []} if os.geteuid() == 0 else {}
"""Who runs what is built: a user whom nobody knows, where the tests may become one."""
BUILD_SECONDS = 180.0
SYSTEM_PATH = "/usr/local/bin:/usr/bin:/bin"
VENV_OF_A_SUPPORTED_PYTHON = "import sys, venv; sys.exit(sys.version_info < (3, 11))"


@dataclass(frozen=True)
class Instruction:
    keyword: str
    value: str

    @property
    def words(self) -> list[str]:
        """Without the options before them."""
        return [word for word in shlex.split(self.value) if not word.startswith("--")]

    @property
    def options(self) -> dict[str, str]:
        options = [word.removeprefix("--") for word in shlex.split(self.value) if word.startswith("--")]
        return {name: value for name, _, value in (option.partition("=") for option in options)}


def stages(text: str) -> list[list[Instruction]]:
    """The instructions of each stage, its FROM first."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    found: list[list[Instruction]] = []
    for line in filter(None, map(str.strip, joined.splitlines())):
        keyword, _, value = line.partition(" ")
        if keyword == "FROM":
            found.append([])
        found[-1].append(Instruction(keyword, value.strip()))
    return found


STAGES = stages((DEPLOY / "Dockerfile").read_text())
FINAL = {each.keyword: each for each in STAGES[-1]}


def base_python() -> str:
    """An interpreter that a stranger can run, too: root's own may lie in root's home."""
    for candidate in (sys._base_executable, "/usr/bin/python3"):  # type: ignore[attr-defined]
        with suppress(OSError):
            command = [candidate, "-c", VENV_OF_A_SUPPORTED_PYTHON]
            if (
                subprocess.run(command, **STRANGER, cwd="/", timeout=10, stderr=subprocess.DEVNULL).returncode
                == 0
            ):
                return str(candidate)
    pytest.skip("no interpreter that another user can run")


@dataclass
class Image:
    """Paths of the image lie under `root`; one folder serves all stages, for the last copies nothing elsewhere."""

    root: Path
    environ: dict[str, str] = field(default_factory=dict)
    folder: Path = field(init=False)

    async def build(self) -> None:
        base = self._path("/usr/local/bin")
        base.mkdir(parents=True)
        for name, command in {"python": base_python(), "pip": f"{sys.executable} -m pip"}.items():
            (base / name).write_text(f'#!/bin/sh\nexec {command} "$@"\n')
            (base / name).chmod(0o755)
        for stage in STAGES:
            self.environ = {"PATH": f"{base}:{SYSTEM_PATH}"}
            for instruction in stage:
                await self._do(instruction)

    async def _do(self, step: Instruction) -> None:
        match step.keyword:
            case "COPY" if "from" not in step.options:
                self._copy(*step.words)
            case "COPY":
                [source, target] = step.words
                assert source == target, "one folder stands for all stages"
                assert self._path(source).exists()
            case "WORKDIR":
                self.folder = self._path(step.value)
                self.folder.mkdir(parents=True, exist_ok=True)
            case "ARG":
                name, _, value = step.value.partition("=")
                self.environ[name] = value
            case "ENV":
                for name, _, value in (word.partition("=") for word in step.words):
                    self.environ[name] = value.replace("$PATH", self.environ["PATH"])
                self.environ["PATH"] = self._moved(self.environ["PATH"])
            case "RUN":
                await self._shell(step.value)

    def _copy(self, *words: str) -> None:
        *sources, target = words
        for source in sources:
            came, to = ROOT / source, self._path(target)
            if came.is_dir():
                shutil.copytree(came, to, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                to = to / came.name if target.endswith("/") else to
                to.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(came, to)

    def _path(self, path: str) -> Path:
        return self.root / path.lstrip("/") if path.startswith("/") else self.folder / path

    def _moved(self, text: str) -> str:
        """`text` with the image's own folders under `root`."""
        return re.sub(r"/opt/outrider\b", f"{self.root}/opt/outrider", text)

    async def _shell(self, script: str) -> None:
        # The machine's own settings of pip hold here, too: they say where packages come from.
        environ = {
            k: v for k, v in os.environ.items() if k.startswith(("PIP_", "HOME", "SSL_"))
        } | self.environ
        process = await asyncio.create_subprocess_exec(
            *("sh", "-euc", self._moved(script)),
            cwd=self.folder,
            env=environ,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        async with asyncio.timeout(BUILD_SECONDS):
            said, _ = await process.communicate()
        assert process.returncode == 0, said.decode()

    @asynccontextmanager
    async def start(self, *command: str, **settings: object) -> AsyncIterator[Container]:
        """`docker run`; killed at the end."""
        process = await asyncio.create_subprocess_exec(
            *command,
            cwd=self.folder,
            env=self.environ | {name: str(value) for name, value in settings.items()},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            **STRANGER,
        )
        try:
            yield Container(process)
        finally:
            if process.returncode is None:
                process.kill()
            await process.wait()

    async def run(self, *command: str, **settings: object) -> tuple[int, str]:
        """The exit code and all that was printed."""
        async with self.start(*command, **settings) as container, asyncio.timeout(30):
            said = await container.rest()
            return await container.process.wait(), said


@dataclass(frozen=True)
class Container:
    process: asyncio.subprocess.Process

    async def logs(self, event: str) -> Mapping[str, object]:
        """The line of that event, once it is printed."""
        seen: list[str] = []
        async with asyncio.timeout(30):
            assert self.process.stdout is not None
            async for raw in self.process.stdout:
                seen.append(raw.decode())
                line: Mapping[str, object] = json.loads(raw) if raw.startswith(b"{") else {}
                if line.get("event") == event:
                    return line
        raise AssertionError(f"it ended without {event}: {''.join(seen)}")

    async def rest(self) -> str:
        assert self.process.stdout is not None
        return (await self.process.stdout.read()).decode()

    async def stopped(self) -> int:
        """The exit code after SIGTERM."""
        self.process.terminate()
        async with asyncio.timeout(30):
            await self.rest()
            return await self.process.wait()
