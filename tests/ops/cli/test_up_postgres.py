"""The embedded PostgreSQL of a running `outrider up` dies: it comes back, or `up` says why it does not."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from ops.cli.context import local_url
from ops.waiting import eventually
from tests.support.commands import Command, called, gone, living, postmaster, running

pytestmark = pytest.mark.long


@pytest.fixture
def up(folder: Path) -> Iterator[Command]:
    with running(folder, "up", pipelines="gates") as process:
        process.says("\nready\n")
        yield process
    assert gone(folder), living(folder)


def kill(folder: Path) -> int:
    pid = postmaster(folder)
    os.kill(pid, signal.SIGKILL)
    return pid


def test_a_killed_server_comes_back_and_jobs_old_and_new_complete(folder: Path, up: Command) -> None:
    gate, submit = folder / "gate", ("submit", "--url", up.shown("address"))
    before = called(folder, *submit, "gated", "--content", str(gate)).stdout.strip()
    killed = kill(folder)
    assert eventually(lambda: "postgres.restarted" in up.err, 10), up.err
    assert postmaster(folder) != killed
    gate.touch()
    after = called(folder, *submit, "echo", "--content", "again", "--wait", "--json")
    assert '"completed"' in after.stdout, after.stderr
    assert eventually(lambda: "completed" in called(folder, "jobs", "show", before).stdout), up.err
    assert up.err.count("postgres.ended") == 1
    up.process.terminate()
    up.ends(0)


def test_killed_after_its_server_was_replaced_it_leaves_nothing(folder: Path, up: Command) -> None:
    for count in (1, 2):
        kill(folder)
        assert eventually(lambda: up.err.count("postgres.restarted") == count), up.err  # noqa: B023
    up.process.kill()
    assert gone(folder), living(folder)


def test_killed_while_its_server_comes_back_it_leaves_nothing(folder: Path, up: Command) -> None:
    kill(folder)
    up.says("postgres.ended")
    assert eventually(lambda: any("supervisor.py" in line for line in living(folder).values())), up.err
    up.process.kill()
    assert gone(folder), living(folder)


def test_a_server_that_starts_no_more_ends_it_with_1_and_names_the_log(folder: Path, up: Command) -> None:
    [configuration] = folder.glob("data/postgres-*/cluster/postgresql.conf")
    configuration.write_text("max_connections = many\n")
    kill(folder)
    up.ends(1, seconds=60)
    [given_up] = [line for line in up.err.splitlines() if "postgres.given_up" in line]
    assert "/server.log" in given_up
    assert up.err.count("postgres.start_failed") == 5
    assert 'invalid value for parameter \\"max_connections\\"' in up.err
    assert gone(folder), living(folder)


def test_two_of_one_directory_share_the_server_that_either_starts_again(folder: Path, up: Command) -> None:
    other = folder / "other"
    other.mkdir()
    with running(other, "up", data_dir=folder / "data", pipelines="") as second:
        second.says("\nready\n")
        killed = kill(folder)
        for each in (up, second):
            each.says("postgres.restarted")
        replaced = postmaster(folder)
        assert replaced != killed
        up.process.terminate()
        up.ends(0)
        assert "web.started" in second.err
        with psycopg.connect(str(local_url(folder / "data"))) as conn:
            assert conn.execute("SELECT count(*) FROM jobs").fetchone() == (0,)
        assert postmaster(folder) == replaced
        second.process.terminate()
        second.ends(0)
        assert "start_failed" not in up.err + second.err
