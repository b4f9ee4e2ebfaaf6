"""`outrider up --pubsub`: the same system against Google's emulator, its death, and every way to end."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from engine.pubsub.client import EMULATOR, names
from engine.settings import load
from ops.cli.up.broker import LOCAL_PROJECT
from ops.harness.emulator import find
from ops.waiting import eventually
from relay.provision.apply import Clients, examine, open_clients
from tests.support.commands import Command, curl, gone, living, pasted, running

pytestmark = pytest.mark.long

NAMES = names(load({"OUTRIDER_PUBSUB_PROJECT": LOCAL_PROJECT}))
PROVISIONED = '"event":"topics.provisioned"'


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """An emulator that `up` may start, and none that it is emulator_of of."""
    monkeypatch.delenv(EMULATOR, raising=False)
    if os.environ.get("TEST_PUBSUB_EMULATOR") != "require" and not find():
        pytest.skip("Google's Pub/Sub emulator is not installed")


def emulator_of(up: Command) -> str:
    """The emulator's address, as the greeting has it."""
    return up.out.partition(f"{EMULATOR}=")[2].split()[0]


def emulators(folder: Path) -> list[int]:
    return [pid for pid, line in living(folder).items() if "pubsub-emulator" in line]


def completed(up: Command) -> str:
    """Runs the pasted requests to their end; gives the job's id."""
    submit, follow = pasted(up)
    job = str(curl(submit)["job_id"])
    assert curl(follow, job)["status"] == "completed"
    return job


async def results(clients: Clients, count: int) -> list[dict[str, Any]]:
    """That many ResultMessages, or more."""
    request = {"subscription": NAMES.subscription(NAMES.results), "max_messages": 10}
    messages: list[dict[str, Any]] = []
    async with asyncio.timeout(30):
        while len(messages) < count:
            response = await clients.subscriber.pull(request=request, timeout=20)
            messages += [json.loads(each.message.data) for each in response.received_messages]
    return messages


@pytest.mark.usefixtures("installed")
async def test_a_job_completes_and_its_result_is_announced_also_after_the_emulator_has_died(
    folder: Path, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running(folder, "up", "--pubsub", database_url=database_url) as up:
        up.says("\nready\n")
        monkeypatch.setenv(EMULATOR, emulator_of(up))
        async with open_clients() as clients:
            first = completed(up)
            assert [(each["job_id"], each["status"]) for each in await results(clients, 1)] == [
                (first, "completed")
            ]
            [emulator] = emulators(folder)
            os.kill(emulator, signal.SIGKILL)
            up.says('"role":"emulator","exit_code":137')
            assert eventually(lambda: up.err.count(PROVISIONED) == 2), up.err
            assert await examine(clients, NAMES) == []
            second = completed(up)
            assert [each["job_id"] for each in await results(clients, 1)] == [second]
        assert emulators(folder) != [emulator]
        up.process.send_signal(signal.SIGINT)
        up.ends(0)
    assert gone(folder), living(folder)


@pytest.mark.usefixtures("installed")
def test_killed_at_any_moment_leaves_no_emulator(folder: Path, database_url: str) -> None:
    moments: list[Callable[[Command], object]] = [
        lambda _: emulators(folder),
        lambda up: PROVISIONED in up.err,
        lambda up: "\nready\n" in up.out,
    ]
    for moment in moments:
        with running(folder, "up", "--pubsub", database_url=database_url) as up:
            assert eventually(partial(moment, up)), up.err
            up.process.kill()
            assert gone(folder), living(folder)


@pytest.mark.usefixtures("installed")
def test_a_second_signal_ends_the_emulator_too(folder: Path, database_url: str) -> None:
    with running(folder, "up", "--pubsub", database_url=database_url) as up:
        up.says("\nready\n")
        up.process.terminate()
        up.says("process.stopping")
        up.process.terminate()
        up.ends(128 + signal.SIGTERM, seconds=5)
        assert gone(folder), living(folder)


def test_the_emulator_that_is_named_is_used_and_provisioned(
    folder: Path, database_url: str, emulator: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(EMULATOR, emulator)
    settings = {"database_url": database_url, "pubsub_project": "named-by-the-user"}
    with running(folder, "up", "--pubsub", **settings) as up:
        up.says("\nready\n")
        assert emulator_of(up) == emulator
        assert "OUTRIDER_PUBSUB_PROJECT=named-by-the-user" in up.out
        assert '"changes":6' in up.err
        assert emulators(folder) == []
        completed(up)
        up.process.terminate()
        up.ends(0)


def test_without_an_emulator_it_says_how_to_get_one_and_starts_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in (EMULATOR, "JAVA_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", "/nowhere")
    with running(folder, "up", "--pubsub") as up:
        up.ends(2)
    assert up.out == ""
    assert "outrider: Google's Pub/Sub emulator needs Java: put `java`" in up.err
    assert not (folder / "data").exists()


def test_a_named_emulator_that_is_away_ends_it(
    folder: Path, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(EMULATOR, "127.0.0.1:1")
    with running(folder, "up", "--pubsub", database_url=database_url) as up:
        up.ends(1)
    [line] = up.err.splitlines()
    assert "check that PUBSUB_EMULATOR_HOST names a running emulator" in line
