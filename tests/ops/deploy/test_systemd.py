"""The systemd unit, by systemd's own check where it is installed."""

from __future__ import annotations

import subprocess
import sys
from collections import defaultdict
from pathlib import Path

from engine.process.run import USAGE
from ops.cli.app import app
from tests.ops.deploy.manifests import DEPLOY, ROLES, accepted, program, stop_seconds

UNIT = DEPLOY / "systemd" / "outrider@.service"
EXPOSURE = 20
"""The most that `systemd-analyze security` may find, in tenths; 96 is a unit without any hardening."""


def assignments(text: str) -> list[tuple[str, str]]:
    lines = [line.split("=", 1) for line in text.splitlines() if "=" in line and not line.startswith("#")]
    return [(name, value) for name, value in lines]


def unit() -> dict[str, list[str]]:
    values = defaultdict(list)
    for name, value in assignments(UNIT.read_text()):
        values[name].append(value)
    return values


def environment() -> dict[str, str]:
    return dict(assignments((DEPLOY / "systemd" / "outrider.env").read_text()))


def test_systemd_accepts_the_unit(tmp_path: Path) -> None:
    copy = tmp_path / UNIT.name
    copy.write_text(UNIT.read_text().replace("/opt/outrider/bin/outrider", sys.executable))
    checked = subprocess.run([program("systemd-analyze"), "verify", copy], capture_output=True, text=True)
    assert checked.returncode == 0
    assert not [line for line in checked.stderr.splitlines() if "outrider" in line]


def test_little_of_the_machine_is_exposed_to_the_process() -> None:
    command = [program("systemd-analyze"), "security", "--offline=true", f"--threshold={EXPOSURE}", str(UNIT)]
    judged = subprocess.run(command, capture_output=True, text=True)
    assert judged.returncode == 0, judged.stdout


def test_an_instance_runs_the_command_that_it_is_named_after() -> None:
    assert unit()["Environment"] == ["ROLE=%i"]
    [program, argument] = unit()["ExecStart"][0].split()
    assert (program, argument) == ("/opt/outrider/bin/outrider", "$ROLE")
    assert set(ROLES) <= {command.name for command in app.registered_commands}


def test_the_settings_are_accepted() -> None:
    accepted(environment())
    [everybody, own] = unit()["EnvironmentFile"]
    assert (everybody, own) == ("/etc/outrider/outrider.env", "-/etc/outrider/%i.env")


def test_a_stop_waits_for_the_drain_and_signals_our_process_alone() -> None:
    assert float(unit()["TimeoutStopSec"][0]) > stop_seconds(accepted(environment()))
    assert unit()["KillMode"] == ["mixed"]
    assert "KillSignal" not in unit(), "SIGTERM is the default, and what drains"


def test_a_process_that_ends_is_started_again_unless_its_configuration_is_wrong() -> None:
    assert unit()["Restart"] == ["always"]
    assert unit()["RestartPreventExitStatus"] == [str(USAGE)]
    assert unit()["StartLimitIntervalSec"] == ["0"]
