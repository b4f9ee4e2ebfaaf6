"""The files of ops/deploy as data, and what holds for a process wherever it is deployed."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from configparser import ConfigParser
from pathlib import Path
from typing import Any

import pytest
import yaml

from engine.process.ending import EXIT_SECONDS, LAST_WORDS_SECONDS
from engine.settings import Settings, load
from ops.harness.process import ROOT
from web.__main__ import NOTICE_SECONDS

DEPLOY = ROOT / "ops" / "deploy"
KUBERNETES = DEPLOY / "kubernetes"
CLOUD_RUN = DEPLOY / "cloudrun"
ROLES = ("web", "relay", "worker")
HTTP_PORT = 8080

SECRETS = {
    "OUTRIDER_DATABASE_URL": "postgresql://outrider:secret@postgres/outrider",
    "OUTRIDER_JWT_SECRET": "an HS256 secret that is long enough",
}
"""What the files leave to whoever deploys."""


def documents(path: Path) -> list[Any]:
    """Each object of a YAML file."""
    return [each for each in yaml.safe_load_all(path.read_text()) if each]


def document(path: Path) -> Any:
    [only] = documents(path)
    return only


def accepted(environ: Mapping[str, str]) -> Settings:
    """The settings of a process with these variables. Raises ConfigurationError, as at its start."""
    assert all(isinstance(value, str) for value in environ.values()), environ
    return load(environ)


def stop_seconds(settings: Settings, *, before: float = 0) -> float:
    """How long a process may take to end by itself, `before` being what comes ahead of its SIGTERM."""
    return before + NOTICE_SECONDS + settings.drain_seconds + EXIT_SECONDS + LAST_WORDS_SECONDS


def interpolated(text: str, variables: Mapping[str, str]) -> str:
    """`text` with Compose's ${NAME}, ${NAME:-default} and ${NAME:?error} filled in."""

    def value(match: re.Match[str]) -> str:
        name, kind, rest = match.groups()
        if name not in variables and kind != ":-":
            raise AssertionError(f"{name} is not set: {rest}")
        return variables.get(name) or rest or ""

    return re.sub(r"\$\{(\w+)(?:(:[-?])([^}]*))?\}", value, text)


def version() -> str:
    parser = ConfigParser()
    parser.read(ROOT / "setup.cfg")
    return parser["metadata"]["version"]


def program(name: str) -> str:
    """The path of an optional program; without it the test is skipped."""
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found
