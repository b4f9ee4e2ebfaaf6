"""The image: how the Dockerfile is written, and what it makes."""

from __future__ import annotations

import asyncio
import json
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import AsyncExitStack
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import pytest

from engine.process.admin import PORTS
from ops.cli.commands.healthcheck import PROBE_SECONDS
from ops.harness.ports import free_port
from ops.harness.process import ROOT
from tests.ops.cli import pipelines
from tests.ops.deploy.dockerfile import FINAL, STAGES, Image
from tests.ops.deploy.manifests import DEPLOY, HTTP_PORT, KUBERNETES, ROLES, SECRETS, document, program
from tests.support.wire_proxy import wire_proxy

pytestmark = pytest.mark.long

ENTRYPOINT: list[str] = json.loads(FINAL["ENTRYPOINT"].value)
PROBE: list[str] = json.loads(FINAL["HEALTHCHECK"].value.partition("CMD ")[2])
SECRET = SECRETS["OUTRIDER_JWT_SECRET"]
SCALED_BY = document(KUBERNETES / "extras" / "keda.yaml")["spec"]["triggers"][0]["metadata"]


@pytest.fixture(scope="session")
def folder() -> Iterator[Path]:
    """Where, unlike in pytest's own folders, other users may go."""
    with tempfile.TemporaryDirectory(prefix="outrider-image-") as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.fixture(scope="session")
async def image(folder: Path) -> Image:
    image = Image(folder)
    await image.build()
    shutil.copy(pipelines.__file__, image.folder / "shop.py")
    return image


async def test_every_role_runs_from_the_image_alone_as_a_stranger_who_may_write_nothing(
    image: Image, empty_database_url: str
) -> None:
    async with wire_proxy(empty_database_url) as server:  # the socket's folder is not everybody's
        await run_every_role(image, server.url)


async def run_every_role(image: Image, database_url: str) -> None:
    given = {
        "OUTRIDER_DATABASE_URL": database_url,
        "OUTRIDER_JWT_SECRET": SECRET,
        "OUTRIDER_PIPELINES": "shop",
        "OUTRIDER_ADMIN_PORT": 0,
        "OUTRIDER_DRAIN_SECONDS": 1,
    }
    port = free_port()
    code, said = await image.run(*ENTRYPOINT, "migrate", "up", **given)
    assert code == 0, said
    async with AsyncExitStack() as stack:
        containers = {
            role: await stack.enter_async_context(image.start(*ENTRYPOINT, role, **given, PORT=port))
            for role in ROLES
        }
        started = {role: await each.logs(f"{role}.started") for role, each in containers.items()}
        assert (started["web"]["host"], started["web"]["port"]) == ("0.0.0.0", port)  # noqa: S104
        for line in started.values():
            code, said = await image.run(*PROBE, **given | {"OUTRIDER_ADMIN_PORT": line["admin_port"]})
            assert (code, said.split()[-1]) == (0, "ready")
        assert await fetched(port, "/healthz") == {"status": "ok", "checks": {}}
        submit = ("submit", "echo", "--content", "hello", "--wait", "--json")
        code, said = await image.run(*ENTRYPOINT, *submit, **given, PORT=port)
        assert code == 0, said
        assert '"hello"' in said
        answer = await fetched(started["relay"]["admin_port"], urlsplit(SCALED_BY["url"]).path)
        assert isinstance(reduce(getitem, SCALED_BY["valueLocation"].split("."), answer), int)
        assert [await each.stopped() for each in containers.values()] == [0, 0, 0]
    left = {path.name for path in image.folder.iterdir()}
    assert left == {"shop.py"}, "it wrote where it may not"


async def test_the_image_has_what_its_commands_need_and_nothing_to_build_with(image: Image) -> None:
    code, said = await image.run(*ENTRYPOINT, *json.loads(FINAL["CMD"].value))
    assert code == 0
    assert all(role in said for role in ROLES)
    # What is imported late, and only in Pub/Sub mode.
    modules = "relay.relay, worker.subscription, relay.provision.apply, web.app, ops.cli.app"
    code, said = await image.run("python", "-c", f"import {modules}")
    assert code == 0, said
    for absent in ("pip", "setuptools", "pytest", "tests"):
        code, said = await image.run("python", "-c", f"import {absent}")
        assert "ModuleNotFoundError" in said, absent
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        code, _ = await image.run(*PROBE, OUTRIDER_ADMIN_PORT=silent.getsockname()[1])
    assert code == 3


async def fetched(port: object, path: str) -> Any:
    """From an address that nobody named, as other machines would: any of 127/8 leads here."""
    async with (
        asyncio.timeout(10),
        aiohttp.ClientSession() as session,
        session.get(f"http://127.0.0.2:{port}{path}") as response,
    ):
        assert response.status == 200
        return await response.json()


def test_the_last_stage_takes_one_environment_and_no_source() -> None:
    copies = [each.words for each in STAGES[-1] if each.keyword == "COPY"]
    assert copies == [["/opt/outrider"] * 2, ["ops/deploy/entrypoint", "/usr/local/bin/entrypoint"]]
    assert {each.keyword for each in STAGES[-1]}.isdisjoint({"RUN", "ADD"})


def test_the_image_says_how_to_run_stop_and_probe_it() -> None:
    user, _, group = FINAL["USER"].value.partition(":")
    assert int(user) > 0
    assert int(group) > 0
    assert FINAL["STOPSIGNAL"].value == "SIGTERM"
    assert PROBE == ["outrider", "healthcheck"]
    options = FINAL["HEALTHCHECK"].options
    assert float(options["timeout"].removesuffix("s")) > PROBE_SECONDS
    assert set(map(int, FINAL["EXPOSE"].words)) == {HTTP_PORT, *PORTS.values()}


def test_docker_is_sent_what_is_copied_and_no_more() -> None:
    rules = (DEPLOY / "Dockerfile.dockerignore").read_text().split("\n")
    rules = [rule for rule in rules if rule and not rule.startswith("#")]
    assert rules[0] == "*"
    sent = {rule.removeprefix("!") for rule in rules if rule.startswith("!")}
    copied = [
        source
        for stage in STAGES
        for each in stage
        if each.keyword == "COPY" and "from" not in each.options
        for source in each.words[:-1]
    ]
    assert sent == {source.partition("/")[0] for source in copied}
    assert all((ROOT / source).exists() for source in copied)


def test_hadolint_has_nothing_to_say() -> None:
    done = subprocess.run([program("hadolint"), DEPLOY / "Dockerfile"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")
