"""Shared by all commands: the settings, the database and the secret that signs tokens.

Without OUTRIDER_DATABASE_URL, commands use the server that `outrider up` runs under OUTRIDER_DATA_DIR.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import typer
from psycopg import AsyncConnection, Error, errors

import migrations
from engine.errors import ConfigurationError, DatabaseUnavailable, SchemaMismatch
from engine.settings import Settings
from engine.storage import connections as db
from engine.storage.faults import Blame, blame
from engine.tables.operator_actions import MAX_REASON
from engine.text import text_fault
from migrations import rights
from ops.local.place import SOCKET, choose

T = TypeVar("T")
Conn = AsyncConnection[Any]

LOCAL_OWNER = "local"
"""The default owner of jobs: the `sub` of the token that `up` prints."""


def database_url(settings: Settings) -> str:
    """The URL of the configured database, else of the local one. Raises ConfigurationError if there is neither."""
    if settings.database_url is not None:
        return settings.database_url.get_secret_value()
    if url := local_url(settings.data_dir):
        return url
    raise ConfigurationError(
        [f"OUTRIDER_DATABASE_URL is not set, and no `outrider up` runs in {settings.data_dir.absolute()}"]
    )


def local_url(data_dir: Path) -> str | None:
    """The URL of the server under `data_dir`. None if no server runs."""
    # Without PostgreSQL's programs, or with another user's directory, there is no local server to use.
    with suppress(ConfigurationError, PermissionError):
        place = choose(data_dir)
        if (place.sockets / SOCKET).exists():
            return place.url
    return None


@asynccontextmanager
async def database(settings: Settings) -> AsyncIterator[Conn]:
    """A connection in autocommit mode to a database with this code's schema.

    Raises ConfigurationError, DatabaseUnavailable or SchemaMismatch. An outage inside the block becomes
    DatabaseUnavailable.
    """
    async with await db.connect(database_url(settings), name="cli") as conn:
        try:
            await migrations.check(conn)
            yield conn
        except errors.UndefinedTable as error:
            raise SchemaMismatch(error.diag.message_primary or str(error), migrations.MIGRATE) from error
        except errors.InsufficientPrivilege as error:
            await rights.check(conn, rights.NEEDS)
            raise SchemaMismatch(error.diag.message_primary or str(error)) from error
        except Error as error:
            if blame(error) is not Blame.SERVER:
                raise
            raise DatabaseUnavailable(str(error).strip()) from error


def ask(settings: Settings, question: Callable[[Conn], Awaitable[T]]) -> T:
    """Run `question` on a connection of its own."""

    async def asked() -> T:
        async with database(settings) as conn:
            return await question(conn)

    return asyncio.run(asked())


def recorded(text: str, option: str) -> str:
    """A text for the record of operators' actions. Raises BadParameter unless it says something that can be stored."""
    kept = text.strip()
    fault = text_fault(kept) or ("empty" if not kept else None)
    if fault is None and len(kept) > MAX_REASON:
        fault = f"more than {MAX_REASON} characters"
    if fault is not None:
        raise typer.BadParameter(fault, param_hint=option)
    return kept


def dev_secret(data_dir: Path) -> str:
    """The secret for local use, created at the first call. Only this user can read the file."""
    path = data_dir / "dev-secret"
    if not path.exists():
        data_dir.mkdir(parents=True, exist_ok=True)
        # Only the complete file gets the name: a killed start leaves no partial secret, a second start no other one.
        with tempfile.NamedTemporaryFile("w", dir=data_dir) as part:
            part.write(secrets.token_urlsafe(48))
            part.flush()
            os.fsync(part.fileno())
            with suppress(FileExistsError):
                os.link(part.name, path)
    return path.read_text()


def signing_secret(settings: Settings) -> str:
    """The secret that signs tokens: the configured one, else that of a local `outrider up`.

    Raises ConfigurationError if there is neither.
    """
    if settings.jwt_secret is not None:
        return settings.jwt_secret.get_secret_value()
    if settings.jwks_url or settings.jwks_file:
        raise ConfigurationError(
            ["tokens are signed elsewhere: a JWKS is configured, not OUTRIDER_JWT_SECRET"]
        )
    if not (settings.data_dir / "dev-secret").exists():
        raise ConfigurationError(
            [f"OUTRIDER_JWT_SECRET is not set, and `outrider up` never ran in {settings.data_dir.absolute()}"]
        )
    return dev_secret(settings.data_dir)


def sign(settings: Settings, secret: str, *, sub: str, seconds: float, scopes: Sequence[str] = ()) -> str:
    """A token that a web process with these settings accepts. Without scopes the claim `scope` is left out."""
    import time

    from ops.harness import tokens

    now = int(time.time())
    claims: dict[str, Any] = {"sub": sub, "iat": now, "exp": now + int(seconds)}
    if scopes:
        claims["scope"] = " ".join(scopes)
    if settings.jwt_issuer:
        claims["iss"] = settings.jwt_issuer
    if settings.jwt_audience:
        claims["aud"] = settings.jwt_audience
    return tokens.sign(claims, secret)
