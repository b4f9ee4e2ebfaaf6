"""The README of ops/deploy names what there is."""

from __future__ import annotations

import re

from ops.cli.app import app
from ops.harness.process import ROOT
from tests.ops.deploy.manifests import DEPLOY, KUBERNETES

README = (DEPLOY / "README.md").read_text()
HERE = [DEPLOY, KUBERNETES, DEPLOY / "cloudrun", ROOT]


def test_every_file_that_is_named_is_there() -> None:
    named = set(re.findall(r"[\w./@-]+\.(?:yaml|yml|service)\b|ops/[\w./@-]*\w", README))
    named -= {"secret.yaml"}  # the reader's own
    missing = {name for name in named if not any((folder / name).exists() for folder in HERE)}
    assert not missing
    assert len(named) > 10


def test_every_command_that_is_named_is_there() -> None:
    known = {command.name for command in app.registered_commands} | {
        group.name for group in app.registered_groups
    }
    named = set(re.findall(r"(?<!-n )\boutrider (\w+)", README))
    named |= set(re.findall(r"outrider@(\w+) ", README))
    assert named <= known
    assert {"migrate", "web", "token", "doctor", "provision", "healthcheck"} <= named
