"""The rules in ops/prometheus as data, the cases that show when alerts fire, and promtool, which judges both."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from ops.harness.process import ROOT
from tests.system.observability.catalogue import Labels, scraped

FOLDER: Final = ROOT / "ops" / "prometheus"
FILES: Final = [FOLDER / "recording.yml", FOLDER / "alerts.yml"]
CASES: Final = Path(__file__).parent / "alerts"
PROMTOOL_SECONDS: Final = 60.0

Rule = Mapping[str, Any]


def loaded(files: Iterable[Path]) -> list[Rule]:
    return [
        rule
        for file in files
        for group in yaml.safe_load(file.read_text())["groups"]
        for rule in group["rules"]
    ]


RULES: Final = loaded(FILES)
ALERTS: Final = {rule["alert"]: rule for rule in RULES if "alert" in rule}
RECORDED: Final = {rule["record"] for rule in RULES if "record" in rule}
SLO: Final[Labels] = frozenset({"slo"})


def known() -> dict[str, Labels]:
    """What is scraped, what rules record, and what Prometheus writes of alerts."""
    return (
        scraped()
        | dict.fromkeys(RECORDED, SLO)
        | {"ALERTS": frozenset({"alertname", "alertstate", "severity"})}
    )


def cases() -> dict[str, list[dict[str, Any]]]:
    """By alert. Each has `series` and a time to look `at` them; and either the description with which the alert
    `fires`, and its `labels`, or a line that says why all is `quiet`.
    """
    files = [yaml.safe_load(file.read_text()) for file in sorted(CASES.glob("*.yml"))]
    return {alert: found for file in files for alert, found in file.items()}


def promtool(*arguments: str) -> str:
    """What it prints. Where it is not installed the test is skipped, or fails if TEST_PROMTOOL=require."""
    program = shutil.which("promtool")
    if program is None and os.environ.get("TEST_PROMTOOL") != "require":
        pytest.skip("promtool is not installed")
    assert program, "promtool is not installed (Debian's package prometheus has it)"
    done = subprocess.run(
        [program, *arguments], capture_output=True, text=True, timeout=PROMTOOL_SECONDS, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
