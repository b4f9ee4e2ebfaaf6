"""Finding Google's Pub/Sub emulator in made-up SDKs, and running the real one where it is installed."""

from __future__ import annotations

import asyncio
import signal
import sys
from asyncio.subprocess import PIPE
from pathlib import Path

import pytest
from google.api_core.exceptions import NotFound

from engine.errors import ConfigurationError
from ops.harness import emulator
from ops.harness.emulator import Emulator, Install, find, require
from tests.support.pubsub_brokers import EMULATOR_HEAP, installed_emulator
from tests.support.pubsub_clients import SECONDS, clients

PARENT = """
import asyncio, sys
from pathlib import Path
from ops.harness.emulator import Emulator, require

async def main():
    async with Emulator(require(), Path(sys.argv[1]), heap="64m") as running:
        print(running.port, flush=True)
        await running.ended()

asyncio.run(main())
"""


@pytest.fixture
def emulator_install() -> Install:
    return installed_emulator()


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that alone is on the PATH; nothing is installed."""
    programs = tmp_path / "programs"
    programs.mkdir()
    monkeypatch.setenv("PATH", str(programs))
    monkeypatch.setattr(emulator, "SDK_FOLDERS", ("~/google-cloud-sdk",))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for variable in ("JAVA_HOME", "CLOUDSDK_ROOT_DIR", "CLOUDSDK_ROOT"):
        monkeypatch.delenv(variable, raising=False)
    return programs


def program(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch(0o755)
    return path


def sdk(folder: Path, *versions: str) -> Path:
    lib = folder / "platform" / "pubsub-emulator" / "lib"
    lib.mkdir(parents=True)
    for version in versions:
        (lib / f"cloud-pubsub-emulator-{version}-all.jar").touch()
    program(folder / "bin" / "gcloud")
    return folder


def test_without_an_emulator_the_error_says_what_to_install(machine: Path) -> None:
    assert find() is None
    with pytest.raises(ConfigurationError) as caught:
        require()
    sdk_line, java_line = caught.value.problems
    assert "gcloud components install pubsub-emulator" in sdk_line
    assert "google-cloud-cli-pubsub-emulator" in sdk_line
    assert "Java" in java_line
    program(machine / "java")
    with pytest.raises(ConfigurationError) as caught:
        require()
    assert caught.value.problems == (sdk_line,)


def test_the_newest_emulator_is_found_beside_the_gcloud_on_the_path(machine: Path, tmp_path: Path) -> None:
    folder = sdk(tmp_path / "somewhere", "0.8.9", "0.8.20", "0.8.3")
    (machine / "gcloud").symlink_to(folder / "bin" / "gcloud")
    java = program(machine / "java")
    found = find()
    assert found is not None
    assert found.java == java
    assert found.jar.name == "cloud-pubsub-emulator-0.8.20-all.jar"


@pytest.mark.parametrize("variable", ["CLOUDSDK_ROOT_DIR", "CLOUDSDK_ROOT"])
def test_the_configured_sdk_and_java_come_first(
    machine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    (machine / "gcloud").symlink_to(sdk(tmp_path / "other", "9.9.9") / "bin" / "gcloud")
    program(machine / "java")
    java = program(tmp_path / "jdk" / "bin" / "java")
    monkeypatch.setenv(variable, str(sdk(tmp_path / "mine", "0.8.20")))
    monkeypatch.setenv("JAVA_HOME", str(tmp_path / "jdk"))
    found = require()
    assert found.java == java
    assert found.jar.is_relative_to(tmp_path / "mine")


def test_an_sdk_in_the_home_folder_is_found(machine: Path, tmp_path: Path) -> None:
    sdk(tmp_path / "home" / "google-cloud-sdk", "0.8.20")
    program(machine / "java")
    assert find() is not None


async def test_one_that_cannot_start_says_why(emulator_install: Install, tmp_path: Path) -> None:
    broken = Install(emulator_install.java, tmp_path / "none.jar")
    with pytest.raises(ConfigurationError, match=r"none\.jar"):
        async with Emulator(broken, tmp_path / "log"):
            pass


async def test_killed_it_starts_again_at_the_same_port_and_empty(
    emulator_install: Install, tmp_path: Path
) -> None:
    async with Emulator(emulator_install, tmp_path / "log", heap=EMULATOR_HEAP) as running:
        host = running.host
        async with clients(host, "p") as google:
            await google.create_topic()
            await google.publish(b"x")
        await running.stop(0)
        assert await running.ended() == -signal.SIGKILL
        await running.start()
        assert running.host == host
        async with clients(host, "p") as google:
            with pytest.raises(NotFound):
                await google.publish(b"x")
    assert await running.ended() != 0
    await running.stop()  # again is no error


async def test_it_dies_with_its_parent(emulator_install: Install, tmp_path: Path) -> None:
    assert emulator_install
    parent = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", PARENT, str(tmp_path / "log")),
        stdout=PIPE,
        cwd=Path(emulator.__file__).parents[2],
    )
    assert parent.stdout is not None
    async with asyncio.timeout(SECONDS):
        port = int(await parent.stdout.readline())
        assert await listens(port)
        parent.kill()
        await parent.wait()
        while await listens(port):  # noqa: ASYNC110 - nobody is left who could tell
            await asyncio.sleep(0.01)


async def listens(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    writer.close()
    await writer.wait_closed()
    return True
