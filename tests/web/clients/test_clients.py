"""Clients that generators make of /openapi.json, against real processes."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.support import commands
from tests.support.commands import Command
from tests.web.clients.tools import Tools, installed

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def tools() -> Tools:
    return installed()


@pytest.fixture(scope="module")
def up(tools: Tools, tmp_path_factory: pytest.TempPathFactory, shared_database_url: str) -> Iterator[Command]:
    """Web, relay and worker with the built-in presets and those of pipelines.py."""
    assert tools
    settings = {"database_url": shared_database_url, "pipelines": "tests.web.clients.pipelines"}
    with commands.running(tmp_path_factory.mktemp("up"), "up", **settings) as up:
        up.says("\nready\n")
        yield up


@pytest.fixture
def folder(up: Command, tmp_path: Path) -> Path:
    """With the document that the server answers."""
    connection = HTTPConnection(urlsplit(up.shown("address")).netloc, timeout=10)
    connection.request("GET", "/openapi.json")
    (tmp_path / "openapi.json").write_bytes(connection.getresponse().read())
    connection.close()
    return tmp_path


def server(up: Command) -> dict[str, str]:
    return {"SERVER": up.shown("address"), "TOKEN": up.token}


@pytest.mark.long
def test_a_client_by_openapi_python_client_works(tools: Tools, up: Command, folder: Path) -> None:
    made = ("--path", "openapi.json", "--meta", "none", "--output-path", "made_by_python_client")
    said = tools.run("openapi-python-client", "generate", *made, "--fail-on-warning", cwd=folder)
    assert "Warning" not in said
    tools.run("python", HERE / "drive_python_client.py", cwd=folder, PYTHONPATH=str(folder), **server(up))


@pytest.mark.long
def test_a_client_by_openapi_generator_works(tools: Tools, up: Command, folder: Path) -> None:
    made = ("-i", "openapi.json", "-g", "python", "-o", ".", "--package-name", "made_by_generator")
    tools.run("openapi-generator-cli", "generate", *made, cwd=folder)
    tools.run("python", HERE / "drive_generator.py", cwd=folder, PYTHONPATH=str(folder), **server(up))


@pytest.mark.long
def test_a_client_by_openapi_typescript_works(tools: Tools, up: Command, folder: Path) -> None:
    tools.run("openapi-typescript", "openapi.json", "-o", "schema.d.ts", cwd=folder)
    (folder / "node_modules").symlink_to(tools.modules)
    (folder / "package.json").write_text('{"type": "module"}')
    shutil.copy(HERE / "drive_typescript.ts", folder)
    strict = ("--strict", "--noUncheckedIndexedAccess", "--skipLibCheck", "--types", "node")
    made = ("--target", "es2022", "--module", "nodenext", "--lib", "es2022,dom")
    tools.run("tsc", *strict, *made, "drive_typescript.ts", cwd=folder)
    tools.run("node", "drive_typescript.js", cwd=folder, **server(up))
