"""migrate, token, healthcheck, and what every command has in common."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
import typer
from joserfc import jwt
from joserfc.jwk import OctKey

from engine.errors import DatabaseUnavailable
from engine.moves.enqueue import enqueue
from engine.process.admin import admin_server
from engine.settings import load
from ops.cli.app import app
from ops.cli.commands.jobs import Status
from ops.cli.commands.token import Scope
from ops.cli.context import dev_secret
from ops.harness.process import ROOT
from tests.ops.cli.conftest import SECRET, Outrider
from tests.support.database import Conn, new
from web.auth import tokens as auth
from web.wire import responses as shown

Set = Callable[..., None]

HEAVY = {"psycopg", "pydantic", "aiohttp", "structlog", "yoyo", "joserfc", "prometheus_client"}


def commands(command: Any, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    below = getattr(command, "commands", {})
    return [path, *(each for name, sub in below.items() for each in commands(sub, (*path, name)))]


COMMANDS = commands(typer.main.get_command(app))


def test_help_imports_nothing_heavy() -> None:
    script = "import sys, ops.cli.app; print(*{name.partition('.')[0] for name in sys.modules})"
    loaded = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert HEAVY & set(loaded.stdout.split()) == set()


def test_statuses_and_scopes_are_those_of_the_api() -> None:
    """They are written down again, for what has them imports what is heavy."""
    assert [*Status] == [*get_args(shown.Status.__value__)]
    assert [*Scope] == [auth.READ, auth.WRITE, auth.ADMIN]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
async def test_every_command_explains_itself(outrider: Outrider, command: tuple[str, ...]) -> None:
    said = await outrider(*command, "--help")
    assert said.code == 0
    assert "Usage: " + " ".join(["outrider", *command]) in said.out
    assert len(said.out.splitlines()) > 5


@pytest.mark.parametrize(
    "command", [("frobnicate",), ("jobs", "list", "--frobnicate"), ("jobs",), ("token",)]
)
async def test_wrong_usage_exits_with_2(outrider: Outrider, command: tuple[str, ...]) -> None:
    assert (await outrider(*command)).code == 2


@pytest.mark.parametrize("command", [("jobs", "list"), ("web",), ("up",), ("token", "--sub", "ann")])
async def test_a_wrong_environment_exits_with_2_and_a_line_for_each_fault(
    outrider: Outrider, settings: Set, command: tuple[str, ...]
) -> None:
    settings(lease_secnods=3, http_port="many")
    said = await outrider(*command)
    assert said.code == 2
    assert len(said.err.splitlines()) == 2
    assert "OUTRIDER_LEASE_SECNODS: no such setting" in said.err
    assert "OUTRIDER_HTTP_PORT: " in said.err


async def test_migrate_takes_the_schema_up_and_down_and_says_where_it_is(
    outrider: Outrider, settings: Set, empty_database_url: str
) -> None:
    settings(database_url=empty_database_url)
    status = await outrider("migrate", "status", "--json")
    assert (status.code, {each["state"] for each in status.json}) == (3, {"pending"})
    ids = [each["id"] for each in status.json]
    assert (await outrider("migrate", "up", "--json")).json == {"applied": ids}
    assert (await outrider("migrate", "up")).out == ""
    assert (await outrider("migrate", "status")).code == 0
    down = await outrider("migrate", "down", "--yes", "--count", len(ids) - 1)
    assert (down.code, len(down.out.splitlines()), down.err) == (0, len(ids) - 1, "")
    for applied, err in (
        (1, "no more versions are applied\n"),
        (0, "no version is applied: nothing to roll back\n"),
    ):
        down = await outrider("migrate", "down", "--yes", "--count", 2)
        assert (down.code, len(down.out.splitlines()), down.err) == (0, applied, err)
    assert (await outrider("migrate", "status")).code == 3


@pytest.mark.usefixtures("configured")
async def test_migrate_down_asks_first(outrider: Outrider, conn: Conn) -> None:
    assert (await outrider("migrate", "down")).code == 1
    await enqueue(conn, new())


async def test_a_token_carries_what_was_asked_for(outrider: Outrider, settings: Set) -> None:
    settings(jwt_secret=SECRET, jwt_issuer="me", jwt_audience="you")
    before = int(time.time())
    said = await outrider(
        "token", "--sub", "ann", "--scope", "jobs:read", "--scope", "jobs:admin", "--ttl", "2h"
    )
    claims = jwt.decode(said.out.strip(), OctKey.import_key(SECRET)).claims
    assert claims["sub"] == "ann"
    assert claims["scope"] == "jobs:read jobs:admin"
    assert (claims["iss"], claims["aud"]) == ("me", "you")
    assert 7200 <= claims["exp"] - before <= 7230
    plain = (await outrider("token", "--sub", "ann", "--json")).json
    assert "scope" not in jwt.decode(plain["token"], OctKey.import_key(SECRET)).claims
    assert plain["expires_in"] == 3600


@pytest.mark.parametrize("ttl", ["0", "1w", "-5", "1.5h", ""])
async def test_a_token_lives_for_a_sensible_time(outrider: Outrider, settings: Set, ttl: str) -> None:
    settings(jwt_secret=SECRET)
    assert (await outrider("token", "--sub", "ann", "--ttl", ttl)).code == 2


async def test_without_a_configured_secret_the_local_one_signs_and_else_none(
    outrider: Outrider, settings: Set, tmp_path: Path
) -> None:
    refused = await outrider("token", "--sub", "ann")
    assert (refused.code, refused.out) == (2, "")
    secret = dev_secret(tmp_path)
    assert (tmp_path / "dev-secret").stat().st_mode & 0o777 == 0o600
    assert dev_secret(tmp_path) == secret
    said = await outrider("token", "--sub", "ann")
    assert jwt.decode(said.out.strip(), OctKey.import_key(secret)).claims["sub"] == "ann"
    settings(jwks_file=tmp_path / "keys.json")
    assert (await outrider("token", "--sub", "ann")).code == 2


async def test_healthcheck_distinguishes_ready_unready_and_absent(outrider: Outrider, settings: Set) -> None:
    settings(admin_port=0)
    ill = False

    async def database() -> None:
        if ill:
            raise DatabaseUnavailable("gone")

    async with admin_server(load(), "web", {"database": database}) as port:
        assert (await outrider("healthcheck", "--port", port)).code == 0
        settings(admin_port=port)
        assert (await outrider("healthcheck")).out == f"127.0.0.1:{port}: ready\n"
        ill = True
        said = await outrider("healthcheck", "worker", "--json")
        assert (said.code, said.json["healthy"]) == (3, False)
        assert said.json["processes"][f"127.0.0.1:{port}"]["detail"] == "database: gone"
    absent = await outrider("healthcheck")
    assert (absent.code, absent.out) == (3, f"127.0.0.1:{port}: no answer\n")


@pytest.mark.usefixtures("configured")
async def test_json_is_all_that_json_prints(outrider: Outrider) -> None:
    for command in (("jobs", "list"), ("outbox", "status"), ("dead-letters", "list"), ("migrate", "up")):
        said = await outrider(*command, "--json")
        assert json.loads(said.out) is not None
        assert said.err == ""
