"""`outrider up` and its children as real processes: from nothing to a finished job, and every way to end."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path
from uuid import UUID

import pytest

from engine.moves.enqueue import enqueue
from ops.cli.up.command import HURRY
from ops.harness.process import ROOT
from ops.waiting import eventually
from tests.support.commands import (
    OUTRIDER,
    Command,
    Screen,
    curl,
    gone,
    living,
    pasted,
    running,
)
from tests.support.database import Conn, fetchone, new


def test_from_nothing_to_a_storyboard_and_a_second_start_still_knows_it(folder: Path) -> None:
    with running(folder, "up") as up:
        up.says("\nready\n")
        submit, follow = pasted(up)
        job = curl(submit)["job_id"]
        done = curl(follow, job)
        assert done["status"] == "completed"
        assert done["result"]["scenes"]
        listed = subprocess.run(
            [*OUTRIDER, "jobs", "list", "--json"],
            cwd=folder,
            env=os.environ | {"PYTHONPATH": str(ROOT), "OUTRIDER_DATA_DIR": str(folder / "data")},
            capture_output=True,
            check=True,
        )
        assert [each["job_id"] for each in json.loads(listed.stdout)] == [job]
        up.process.send_signal(signal.SIGINT)
        up.ends(0)
        assert gone(folder)
    with running(folder, "up") as up:
        up.says("\nready\n")
        assert curl(pasted(up)[1], job)["result"] == done["result"]
        up.process.terminate()
        up.ends(0)


@pytest.mark.long
def test_killed_at_any_moment_leaves_no_orphan_and_the_next_start_works(folder: Path) -> None:
    data = folder / "data"

    def lives(name: str) -> bool:
        return any(name in line for line in living(folder).values())

    moments: list[Callable[[Command], object]] = [
        lambda _: list(data.glob("*/cluster.new")),
        lambda _: lives("supervisor.py"),
        lambda _: lives("--tied"),
        lambda up: "\nready\n" in up.out,
    ]
    for moment in moments:
        with running(folder, "up") as up:
            assert eventually(partial(moment, up)), up.err
            up.process.kill()
            assert gone(folder), living(folder)
    with running(folder, "up") as up:
        up.says("\nready\n")
        up.process.terminate()
        up.ends(0)


def test_ctrl_c_on_a_terminal_reaches_the_parent_alone_and_stops_web_first(
    folder: Path, database_url: str
) -> None:
    screen = Screen(folder, database_url=database_url)
    try:
        assert eventually(lambda: "\nready\r\n" in screen.text), screen.text
        screen.type(b"\x03")
        assert eventually(lambda: screen.text and screen.process.poll() is not None), screen.text
    finally:
        screen.close()
    assert screen.process.returncode == 0
    assert "aborted" not in screen.text
    stopping = [found.start() for found in re.finditer("process.stopping", screen.text)]
    # `up`, web, worker, relay, and the relay's own worker.
    assert len(stopping) == 5
    assert stopping[1] < screen.text.index("web.stopped") < stopping[2]
    assert "\x1b[" in screen.text, "logs are for people on a terminal"


async def test_a_terminal_that_closes_drains_it_all(folder: Path, database_url: str, conn: Conn) -> None:
    screen = Screen(folder, database_url=database_url, pipelines="gates", drain_seconds=30)
    try:
        assert eventually(lambda: "\nready\r\n" in screen.text), screen.text
        job = (await enqueue(conn, new(preset="gated", content=str(folder / "gate")))).id
        await until(conn, "SELECT state FROM job_status WHERE job_id = %s", job, "PROCESSING")
        screen.hang_up()
        # web stops first; the worker still runs the job.
        await until(
            conn,
            "SELECT count(*)::text FROM pg_stat_activity WHERE datname = current_database()"
            " AND application_name LIKE 'outrider web%%' AND %s::uuid IS NOT NULL",
            job,
            "0",
        )
        (folder / "gate").touch()
        assert eventually(lambda: screen.process.poll() is not None)
    finally:
        screen.close()
    assert screen.process.returncode == 0
    assert await fetchone(conn, "SELECT state FROM job_status WHERE job_id = %s", job) == ("COMPLETED",)


@pytest.mark.long
async def test_a_drain_on_a_terminal_says_once_that_ctrl_c_now_ends_it_and_it_does(
    folder: Path, database_url: str, conn: Conn
) -> None:
    screen = Screen(folder, database_url=database_url, pipelines="gates", drain_seconds=60)
    try:
        assert eventually(lambda: "\nready\r\n" in screen.text), screen.text
        job = (await enqueue(conn, new(preset="gated", content=str(folder / "never")))).id
        await until(conn, "SELECT state FROM job_status WHERE job_id = %s", job, "PROCESSING")
        assert HURRY not in screen.text
        screen.type(b"\x03")
        assert eventually(lambda: "worker.draining" in screen.text), screen.text
        assert screen.text.count(HURRY) == 1
        screen.type(b"\x03")
        assert eventually(lambda: screen.text and screen.process.poll() is not None, 5), screen.text
    finally:
        screen.close()
    assert screen.process.returncode == 128 + signal.SIGINT
    assert screen.text.count(HURRY) == 1


@pytest.mark.long
def test_a_child_that_dies_is_reported_and_started_again(folder: Path, database_url: str) -> None:
    with running(folder, "up", database_url=database_url) as up:
        up.says("\nready\n")
        first = up.child("worker")
        os.kill(first, signal.SIGKILL)
        up.says('"role":"worker","exit_code":137')
        assert eventually(lambda: up.err.count("worker.registered") == 3), up.err
        assert up.child("worker") != first
        up.process.terminate()
        up.ends(0)


def test_a_child_that_fails_at_the_start_ends_it_with_the_childs_code(
    folder: Path, database_url: str
) -> None:
    with running(folder, "up", database_url=database_url, pipelines="no.such.module") as up:
        up.ends(2)
        assert "OUTRIDER_PIPELINES: no.such.module" in up.err
        assert up.out == ""


@pytest.mark.parametrize("variable", ["http_port", "admin_port"])
def test_a_port_in_use_is_reported_in_one_line(folder: Path, database_url: str, variable: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with running(folder, "up", database_url=database_url, **{variable: port}) as up:
            up.ends(1)
    [line] = up.err.splitlines()
    assert f"port {port} of 127.0.0.1" in line
    assert f"set OUTRIDER_{variable.upper()} to another" in line


@pytest.mark.long
async def test_a_second_signal_ends_all_of_it_at_once(folder: Path, database_url: str, conn: Conn) -> None:
    """While a job runs that would keep the drain busy for a minute; its pipeline is found in the folder."""
    with running(folder, "up", database_url=database_url, pipelines="gates", drain_seconds=60) as up:
        up.says("\nready\n")
        await enqueue(conn, new(preset="gated", content=str(folder / "never")))
        assert eventually(lambda: len(living(folder)) >= 4)
        up.process.terminate()
        up.says("worker.draining")
        assert HURRY not in up.out + up.err, "that is for people on a terminal"
        up.process.terminate()
        up.ends(128 + signal.SIGTERM, seconds=5)
        assert gone(folder), living(folder)


def test_a_tied_process_ends_with_its_standard_input(folder: Path, database_url: str) -> None:
    with running(folder, "worker", "--tied", database_url=database_url) as worker:
        worker.says("worker.registered")
        assert worker.process.stdin is not None
        worker.process.stdin.close()
        worker.ends(1, seconds=5)


async def test_a_worker_drains_at_the_first_signal_and_ends_at_the_second(
    folder: Path, database_url: str, conn: Conn
) -> None:
    job = (await enqueue(conn, new(preset="gated", content=str(folder / "gate")))).id
    settings = {"database_url": database_url, "pipelines": "gates", "drain_seconds": 60}
    state = "SELECT state FROM job_status WHERE job_id = %s"
    with running(folder, "worker", **settings) as worker:
        worker.says("worker.registered")
        await until(conn, state, job, "PROCESSING")
        worker.process.terminate()
        worker.says("worker.draining")
        (folder / "gate").touch()
        worker.ends(0)
    assert await fetchone(conn, state, job) == ("COMPLETED",)
    other = (await enqueue(conn, new(preset="gated", content=str(folder / "never")))).id
    with running(folder, "worker", **settings) as worker:
        await until(conn, state, other, "PROCESSING")
        worker.process.terminate()
        worker.says("worker.draining")
        worker.process.terminate()
        worker.ends(128 + signal.SIGTERM, seconds=5)


async def until(conn: Conn, query: str, job: UUID, answer: str) -> None:
    async with asyncio.timeout(30):
        while await fetchone(conn, query, job) != (answer,):  # noqa: ASYNC110 - another process writes it
            await asyncio.sleep(0.01)


async def test_workers_in_the_midst_of_attempts_do_not_outlive_a_killed_up(
    folder: Path, database_url: str, conn: Conn
) -> None:
    with running(folder, "up", database_url=database_url, pipelines="gates", worker_concurrency=1) as up:
        up.says("\nready\n")
        # One slot each: one runs in the relay's worker.
        for _ in range(2):
            job = (await enqueue(conn, new(preset="gated", content=str(folder / "never")))).id
            await until(conn, "SELECT state FROM job_status WHERE job_id = %s", job, "PROCESSING")
        up.process.kill()
        assert gone(folder), living(folder)
