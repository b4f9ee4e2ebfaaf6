"""`outrider provision`, and what `outrider doctor` says of topics, as real processes beside a broker."""

from __future__ import annotations

import asyncio
from asyncio.subprocess import DEVNULL, PIPE
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from engine.pubsub.client import EMULATOR, Names, names
from engine.settings import load
from relay.provision.apply import open_clients
from tests.ops.cli.conftest import SECRET, Said
from tests.support.commands import OUTRIDER, environment
from tests.support.pubsub_brokers import BrokerAt

Run = Callable[..., Awaitable[Said]]
CREATED = [
    "created topic pipeline-jobs",
    "created topic pipeline-results",
    "created topic pipeline-dlq",
    "created subscription pipeline-jobs-sub",
    "created subscription pipeline-results-sub",
    "created subscription pipeline-dlq-sub",
]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """`await run("provision", pubsub_project="p")`: a command in a process of its own, as a shell would start it."""

    async def called(*arguments: str, **settings: object) -> Said:
        process = await asyncio.create_subprocess_exec(
            *OUTRIDER,
            *arguments,
            env=environment(tmp_path, settings),
            stdin=DEVNULL,
            stdout=PIPE,
            stderr=PIPE,
        )
        async with asyncio.timeout(30):
            out, err = await process.communicate()
        assert process.returncode is not None
        return Said(process.returncode, out.decode(), err.decode())

    return called


@pytest.fixture
def project(broker: BrokerAt, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv(EMULATOR, broker.host)
    return broker.project


@pytest.fixture
def topics(project: str) -> Names:
    return names(load({"OUTRIDER_PUBSUB_PROJECT": project}))


async def test_every_change_is_reported_once_and_then_there_is_none(run: Run, project: str) -> None:
    """With any transport: the topics are there before it is switched."""
    said = await run("provision", pubsub_project=project)
    assert (said.code, said.out.splitlines(), said.err) == (0, CREATED, "")
    again = await run("provision", pubsub_project=project, transport="pubsub")
    assert (again.code, again.out, again.err) == (0, "nothing to change\n", "")


async def test_a_dry_run_reports_and_changes_nothing(run: Run, project: str) -> None:
    said = await run("provision", "--dry-run", pubsub_project=project)
    assert said.code == 0
    assert said.out.splitlines()[0] == "topic pipeline-jobs: missing"
    planned = (await run("provision", "--json", pubsub_project=project)).json["changes"]
    assert [(each["step"], each["kind"], each["name"]) for each in planned] == [
        ("create", *line.removeprefix("created ").split()) for line in CREATED
    ]
    assert (await run("provision", "--json", pubsub_project=project)).json == {"changes": []}


async def test_what_is_left_to_people_fails(run: Run, project: str, topics: Names) -> None:
    await run("provision", pubsub_project=project)
    async with open_clients() as clients:
        await clients.publisher.delete_topic(topic=topics.results)
    said = await run("provision", pubsub_project=project)
    assert said.code == 1
    assert "subscription pipeline-results-sub: the topic was deleted: read the remaining messages" in said.out


async def test_without_a_project_there_is_nothing_to_provision(run: Run) -> None:
    said = await run("provision")
    assert (said.code, said.out, said.err) == (2, "", "outrider: OUTRIDER_PUBSUB_PROJECT is not set\n")


@pytest.mark.long
async def test_a_broker_that_is_away_and_one_that_knows_us_not_are_reported_in_one_line(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(EMULATOR, "127.0.0.1:1")
    away = await run("provision", pubsub_project="p1")
    assert (away.code, away.out, len(away.err.splitlines())) == (1, "", 1)
    assert "Pub/Sub at 127.0.0.1:1 does not answer" in away.err
    assert "check that PUBSUB_EMULATOR_HOST names a running emulator" in away.err
    monkeypatch.delenv(EMULATOR)
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", "/nowhere.json")
    stranger = await run("provision", "--json", pubsub_project="p1")
    assert (stranger.code, stranger.out, len(stranger.err.splitlines())) == (2, "", 1)
    assert "no credentials for Pub/Sub: " in stranger.err


async def diagnosed(run: Run, **settings: object) -> dict[str, list[str | None]]:
    """check → the fix of each of its verdicts, None where it is good. Topics are not the only thing it looks at."""
    said = await run("doctor", "--json", jwt_secret=SECRET, **settings)
    fixes: dict[str, list[str | None]] = {}
    # The server of the tests keeps nothing, and says so.
    checks = [each for each in said.json["checks"] if each["check"] != "durability"]
    for each in checks:
        fixes.setdefault(each["check"], []).append(each["fix"])
    assert (said.code == 3) == any(fix for found in fixes.values() for fix in found)
    return fixes


@pytest.mark.long
async def test_doctor_knows_which_topics_need_provisioning(
    run: Run, project: str, topics: Names, database_url: str
) -> None:
    settings = {"transport": "pubsub", "pubsub_project": project, "database_url": database_url}
    provision = "run `outrider provision`"
    before = await diagnosed(run, **settings)
    assert (before["broker"], before["topics"]) == ([None], [provision] * 6)
    await run("provision", pubsub_project=project)
    assert (await diagnosed(run, **settings))["topics"] == [None]
    async with open_clients() as clients:
        await clients.publisher.delete_topic(topic=topics.results)
    topic, subscription = (await diagnosed(run, **settings))["topics"]
    assert topic == provision
    assert subscription == f"read the remaining messages, delete the subscription, and {provision}"


@pytest.mark.long
async def test_doctor_reports_a_broker_that_is_away_and_goes_on(
    run: Run, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(EMULATOR, "127.0.0.1:1")
    settings = {"pubsub_project": "p1", "database_url": database_url}
    found = await diagnosed(run, transport="pubsub", **settings)
    assert found["broker"] == ["check that PUBSUB_EMULATOR_HOST names a running emulator"]
    assert "topics" not in found
    assert found["schema"] == [None]
    assert "broker" not in await diagnosed(run, **settings), "Postgres mode has none"


async def test_doctor_reports_missing_credentials(
    run: Run, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(EMULATOR, raising=False)
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", "/nowhere.json")
    found = await diagnosed(run, transport="pubsub", pubsub_project="p1", database_url=database_url)
    assert "GOOGLE_APPLICATION_CREDENTIALS" in str(found["broker"])
