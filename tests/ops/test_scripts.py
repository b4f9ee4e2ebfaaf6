"""The scripts' care for `.venv`, with an interpreter that records what it is asked and installs nothing."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from contextlib import suppress
from io import FileIO
from pathlib import Path

import pytest

from ops.harness.process import ROOT

# Makes environments that hold itself; `hold`, where it exists, is a pipe that an installation waits on.
INTERPRETER = """#!/bin/bash
root="{root}"
case "$*" in
    *version_info*) exit "$(cat "$root/too-old" 2>/dev/null || echo 0)" ;;
    "--version") echo "Python 3.9.1" ;;
    *"import ensurepip"*) exit "$(cat "$root/no-venv" 2>/dev/null || echo 0)" ;;
    "-m venv "*) rm -rf "$root/.venv"; mkdir -p "$root/.venv/bin"; cp "$0" "$root/.venv/bin/python" ;;
    "-m pip --version") ;;
    "-m pip install "*)
        echo "install ${{!#}}" >>"$root/asked"
        [[ ! -e "$root/hold" ]] || read -r _ <"$root/hold"
        exit "$(cat "$root/offline" 2>/dev/null || echo 0)" ;;
    *) echo "$*" >>"$root/asked"
esac
"""


class Checkout:
    def __init__(self, root: Path) -> None:
        self.root = root
        for name in ("venv.sh", "up", "test", "check"):
            (root / "ops").mkdir(exist_ok=True)
            shutil.copy(ROOT / "ops" / name, root / "ops" / name)
        for name in ("setup.cfg", "pyproject.toml"):
            shutil.copy(ROOT / name, root / name)
        (root / "engine").mkdir()
        (root / "engine" / "__init__.py").touch()
        self.python = root / "python3"
        self.python.write_text(INTERPRETER.format(root=root))
        self.python.chmod(0o755)

    def start(self, *command: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [self.root / "ops" / command[0], *command[1:]],
            env={"PATH": os.environ["PATH"], "PYTHON": str(self.python)},
            cwd="/",
            text=True,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )

    def run(self, *command: str) -> tuple[int, str]:
        with self.start(*command) as process:
            _, errors = process.communicate(timeout=20)
        return process.returncode, errors

    def asked(self) -> list[str]:
        """What the interpreter was asked since the last call, without the root's path."""
        lines = (self.root / "asked").read_text().splitlines()
        (self.root / "asked").unlink()
        return [line.replace(f"{self.root}", "ROOT") for line in lines]


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path)


def writing(pipe: Path) -> FileIO:
    """The pipe's end for writing, once there is a reader, that is an installation under way."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        with suppress(OSError):  # ENXIO: nobody reads
            return FileIO(os.open(pipe, os.O_WRONLY | os.O_NONBLOCK), "w")
        time.sleep(0.01)
    pytest.fail("the installation has not begun")


INSTALL = "install ROOT[dev]"
PYTEST = "-m pytest -n 4 -k 'two words'"
ARGUMENTS = ("test", "-k", "'two words'")


def test_the_first_run_installs_and_the_next_ones_do_not(checkout: Checkout) -> None:
    assert checkout.run(*ARGUMENTS)[0] == 0
    assert checkout.asked() == [INSTALL, PYTEST]
    assert checkout.run(*ARGUMENTS)[0] == 0
    assert checkout.asked() == [PYTEST]


@pytest.mark.parametrize("name", ["setup.cfg", "pyproject.toml", "web/__init__.py"])
def test_a_change_of_what_is_required_installs_again(checkout: Checkout, name: str) -> None:
    checkout.run(*ARGUMENTS)
    checkout.asked()
    (checkout.root / name).parent.mkdir(exist_ok=True)
    with (checkout.root / name).open("a") as file:
        file.write("# changed\n")
    assert checkout.run(*ARGUMENTS)[0] == 0
    assert checkout.asked() == [INSTALL, PYTEST]


def test_a_failed_installation_is_tried_again(checkout: Checkout) -> None:
    (checkout.root / "offline").write_text("1")
    code, errors = checkout.run(*ARGUMENTS)
    assert (code, checkout.asked()) == (1, [INSTALL])
    assert "The installation failed" in errors
    (checkout.root / "offline").unlink()
    assert checkout.run(*ARGUMENTS)[0] == 0
    assert checkout.asked() == [INSTALL, PYTEST]


def test_after_a_killed_installation_everything_is_made_anew(checkout: Checkout) -> None:
    hold = checkout.root / "hold"
    os.mkfifo(hold)
    with checkout.start(*ARGUMENTS) as process, writing(hold):
        os.killpg(process.pid, signal.SIGKILL)
    hold.unlink()
    half = checkout.root / ".venv" / "half-installed"
    half.touch()
    assert checkout.run(*ARGUMENTS)[0] == 0
    assert checkout.asked() == [INSTALL, INSTALL, PYTEST]
    assert not half.exists()


def test_of_two_at_once_one_installs_and_the_other_waits(checkout: Checkout) -> None:
    hold = checkout.root / "hold"
    os.mkfifo(hold)
    with checkout.start(*ARGUMENTS) as one, writing(hold) as held, checkout.start(*ARGUMENTS) as other:
        assert other.stderr is not None
        assert "Waiting for another installation" in other.stderr.readline()
        held.write(b"\n")
        assert [one.wait(20), other.wait(20)] == [0, 0]
    assert sorted(checkout.asked()) == sorted([INSTALL, PYTEST, PYTEST])


@pytest.mark.parametrize(
    ("fault", "message"),
    [("too-old", "Python 3.11 or newer is needed"), ("no-venv", "apt install")],
)
def test_a_python_that_will_not_do_is_reported_with_what_to_install(
    checkout: Checkout, fault: str, message: str
) -> None:
    (checkout.root / fault).write_text("1")
    code, errors = checkout.run("up")
    assert code == 1
    assert message in errors
    assert not (checkout.root / ".venv").exists()
