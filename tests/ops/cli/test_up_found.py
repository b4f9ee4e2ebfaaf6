"""How people and other commands find a running `outrider up`: by what it prints, and by its data directory."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from engine.settings import load
from ops.cli.addresses import FILE, Ports, local, published, running, web_address
from ops.harness.process import ROOT
from tests.support import commands as processes
from tests.support.commands import Command, called

PORTS = Ports("127.0.0.1", 1001, "127.0.0.1", {"web": 1002, "relay": 1003, "worker": 1004})
UNSET = {"http_port": "", "admin_port": ""}
DEFAULT = "http://127.0.0.1:8080"

# An `up` as far as its file goes: says when that is there.
PUBLISHER = """
import sys
from pathlib import Path
from ops.cli.addresses import Ports, published
with published(Ports("127.0.0.1", 1001, "127.0.0.1", {}), Path(sys.argv[1])):
    print("published", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def up(folder: Path) -> Iterator[Command]:
    """With an embedded database, on ports that nobody knows."""
    with processes.running(folder, "up", pipelines="gates") as process:
        process.says("\nready\n")
        yield process


@pytest.mark.long
def test_the_printed_database_is_one_that_psycopg_connects_to(up: Command) -> None:
    with psycopg.connect(up.shown("database")) as conn:
        assert conn.execute("SELECT count(*) FROM jobs").fetchone() == (0,)


@pytest.mark.long
def test_a_configured_database_is_not_printed_for_it_may_hold_a_password(
    folder: Path, database_url: str
) -> None:
    with processes.running(folder, "up", database_url=database_url) as up:
        up.says("\nready\n")
        assert database_url not in up.out
        assert "\n  database <the one in OUTRIDER_DATABASE_URL>\n" in up.out


@pytest.mark.usefixtures("up")
def test_every_command_finds_it_by_the_data_directory(folder: Path) -> None:
    for ports in ({}, UNSET):
        said = called(folder, "submit", "echo", "--content", "found", "--wait", **ports)
        assert json.loads(said.stdout) == {"content": "found"}, said.stderr
        health = json.loads(called(folder, "healthcheck", "--json", **ports).stdout)["processes"]
        assert [name.split()[0] for name in health] == ["web", "relay", "worker"]
        assert all(each["healthy"] for each in health.values()), health
        assert called(folder, "healthcheck", "worker", **ports).stdout.endswith(": ready\n")
    assert len(json.loads(called(folder, "jobs", "list", "--json").stdout)) == 2
    assert called(folder, "doctor").returncode == 0


@pytest.mark.long
def test_a_process_of_it_that_does_not_answer_is_reported(folder: Path, up: Command) -> None:
    worker = up.child("worker")
    os.kill(worker, signal.SIGSTOP)
    said = called(folder, "healthcheck")
    os.kill(worker, signal.SIGCONT)
    assert said.returncode == 3
    assert [": ready" in line for line in said.stdout.splitlines()] == [True, True, False]


@pytest.mark.long
def test_once_it_was_killed_its_file_leads_nobody_anywhere(folder: Path, up: Command) -> None:
    port = int(up.shown("address").rpartition(":")[2])
    settings = load({"OUTRIDER_DATA_DIR": str(folder / "data")})
    assert web_address(settings) == up.shown("address")
    up.process.kill()
    up.process.wait()
    assert (folder / "data" / FILE).exists()
    assert (web_address(settings), local(settings, "admin")) == (DEFAULT, None)
    assert processes.gone(folder)
    with socket.create_server(("127.0.0.1", port)) as stranger:
        stranger.settimeout(0)
        said = called(folder, "submit", "echo", "--content", "x", **UNSET)
        assert (said.returncode, str(port) in said.stderr) == (1, False)
        with pytest.raises(BlockingIOError):
            stranger.accept()


@pytest.mark.long
def test_it_runs_where_no_data_directory_can_be_made(folder: Path, database_url: str) -> None:
    given = {"data_dir": folder / "gates.py" / "data", "database_url": database_url, "jwt_secret": "s" * 32}
    with processes.running(folder, "up", **given) as up:
        up.says("\nready\n")
        assert "addresses.not_published" in up.err


@pytest.mark.long
def test_the_file_is_believed_for_as_long_as_its_writer_lives(tmp_path: Path) -> None:
    command = [sys.executable, "-c", PUBLISHER, str(tmp_path)]
    with subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "published\n"
        assert running(tmp_path) == Ports("127.0.0.1", 1001, "127.0.0.1", {})
        writer.send_signal(signal.SIGKILL)
        writer.wait(10)
        assert running(tmp_path) is None


@pytest.mark.long
def test_the_last_one_of_a_directory_is_found_and_none_after_it(tmp_path: Path) -> None:
    assert running(tmp_path) is None
    later = Ports("::1", 2001, "127.0.0.1", {"web": 2002})
    with published(PORTS, tmp_path):
        assert running(tmp_path) == PORTS
        with published(later, tmp_path):
            assert running(tmp_path) == later
        assert running(tmp_path) is None
    assert running(tmp_path) is None
    assert [each.name for each in tmp_path.iterdir()] == [FILE]


@pytest.mark.long
@pytest.mark.parametrize(
    ("environ", "address", "admin"),
    [
        ({}, PORTS.web, True),
        ({"HTTP_PORT": "0", "ADMIN_PORT": "0"}, PORTS.web, True),
        ({"HTTP_HOST": "127.0.0.1", "ADMIN_HOST": "127.0.0.1"}, PORTS.web, True),
        ({"DATABASE_URL": "postgresql://elsewhere"}, PORTS.web, True),
        ({"HTTP_PORT": "8080"}, DEFAULT, True),
        ({"HTTP_HOST": "web.example"}, "http://web.example:8080", True),
        ({"ADMIN_PORT": "9191"}, PORTS.web, False),
        ({"ADMIN_HOST": "web.example"}, PORTS.web, False),
    ],
    ids=str,
)
def test_what_is_set_wins(tmp_path: Path, environ: dict[str, str], address: str, admin: bool) -> None:
    given = {f"OUTRIDER_{name}": value for name, value in ({"DATA_DIR": str(tmp_path)} | environ).items()}
    with published(PORTS, tmp_path):
        settings = load(given)
        assert web_address(settings) == address
        assert local(settings, "admin") == (PORTS if admin else None)


@pytest.mark.long
@pytest.mark.parametrize("content", ["", "{", "[]", '{"http": 1}'])
def test_a_locked_file_of_another_kind_leads_nobody_anywhere(tmp_path: Path, content: str) -> None:
    with published(PORTS, tmp_path):
        (tmp_path / FILE).write_text(content)
        assert running(tmp_path) is None
