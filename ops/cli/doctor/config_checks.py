"""Checks of `outrider doctor`: settings, pipelines, keys, topics, database, schema and clock."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any, Final

import migrations
from engine.errors import ConfigurationError, KeysUnavailable, OutriderError, UnfitDatabase
from engine.pipeline import load_pipelines
from engine.settings import Settings, load
from engine.storage.connections import Connection, connect
from engine.storage.session import refuse_pooler
from engine.telemetry import logs
from ops.cli.context import database_url, signing_secret
from ops.cli.doctor import runtime_checks, server_checks
from ops.cli.doctor.result import CheckFailed, CheckResult, checked
from web.auth.keys import open_keys

if TYPE_CHECKING:
    from relay.provision.desired import Change

VERSIONS: Final = range(15, 19)
MAX_SKEW_SECONDS: Final = 5.0
SAMPLES: Final = 3


async def examine() -> AsyncIterator[CheckResult]:
    """Yield every result. Each check depends only on checks before it."""
    try:
        settings = load()
    except ConfigurationError as error:
        for problem in error.problems:
            yield CheckResult("configuration", False, problem, "correct the variable, or unset it")
        return
    # Logs go to standard error, because standard output may be JSON.
    logs.configure(settings, "doctor")
    yield CheckResult("configuration", True, "every OUTRIDER_* variable is known and valid")
    yield await checked("pipelines", lambda: _pipelines(settings))
    yield await checked("keys", lambda: _keys(settings))
    if settings.transport == "pubsub":
        changes: list[Change] = []
        broker = await checked("broker", lambda: _broker(settings, changes))
        for result in (broker, *(_topics(changes) if broker.good else ())):
            yield result
    async with AsyncExitStack() as stack:
        conns: list[Connection] = []
        yield await checked("database", lambda: _connected(settings, stack, conns))
        if not conns:
            return
        yield await checked("version", lambda: _version(conns[0]))
        yield await checked("connection", lambda: _direct(*conns))
        async for result in server_checks.examine(conns[0]):
            yield result
        schema = await checked("schema", lambda: _schema(settings))
        yield schema
        yield await checked("clock", lambda: _clock(conns[0]))
        if schema.good:
            async for result in runtime_checks.examine(conns[0], settings):
                yield result


async def _pipelines(settings: Settings) -> str:
    try:
        registry = load_pipelines(settings.pipelines)
    except ConfigurationError as error:
        raise CheckFailed(str(error), "fix the module, or OUTRIDER_PIPELINES") from error
    return f"presets {', '.join(registry)}" if registry else "no presets"


async def _keys(settings: Settings) -> str:
    if settings.jwks_file or settings.jwks_url:
        try:
            async with open_keys(settings) as keys:
                return f"{len(await keys.find(None))} keys in the JWKS"
        except (ConfigurationError, KeysUnavailable) as error:
            where = "OUTRIDER_JWKS_FILE" if settings.jwks_file else "OUTRIDER_JWKS_URL"
            raise CheckFailed(
                f"no key can be loaded: {error}", f"check that {where} names a JWKS with a usable key"
            ) from error
    try:
        signing_secret(settings)
    except ConfigurationError as error:
        raise CheckFailed(
            str(error), "set OUTRIDER_JWT_SECRET, OUTRIDER_JWKS_FILE or OUTRIDER_JWKS_URL"
        ) from error
    return "an HS256 secret" if settings.jwt_secret else "the secret of a local `outrider up`"


async def _broker(settings: Settings, changes: list[Change]) -> str:
    """Finds the changes that topics and subscriptions need."""
    from engine.pubsub.client import names
    from relay.provision.apply import BrokerError, address, examine, open_clients

    try:
        async with open_clients() as clients:
            changes += await examine(clients, names(settings))
    except BrokerError as error:
        raise CheckFailed(error.found, error.fix) from error
    except ConfigurationError as error:
        fix = "run `gcloud auth application-default login`, or set GOOGLE_APPLICATION_CREDENTIALS"
        raise CheckFailed(str(error), fix) from error
    return f"{address()} answers"


def _topics(changes: list[Change]) -> list[CheckResult]:
    if not changes:
        return [CheckResult("topics", True, "every topic and subscription is correct")]
    return [CheckResult("topics", False, str(change), change.fix) for change in changes]


async def _connected(settings: Settings, stack: AsyncExitStack, conns: list[Connection]) -> str:
    """Opens the two connections that the other checks share."""
    try:
        url = database_url(settings)
        found = [await stack.enter_async_context(await connect(url, name="doctor")) for _ in range(2)]
    except UnfitDatabase as error:
        raise CheckFailed(error.found, error.fix) from error
    except ConfigurationError as error:
        raise CheckFailed(str(error), "set OUTRIDER_DATABASE_URL, or start `outrider up`") from error
    except OutriderError as error:
        raise CheckFailed(str(error), server_checks.fix_of(str(error))) from error
    conns += found
    info = conns[0].info
    return f"{info.dbname} at {info.host or 'a local socket'} answers"


async def _version(conn: Connection) -> str:
    major = int(await _value(conn, "SHOW server_version_num")) // 10_000
    if major not in VERSIONS:
        raise CheckFailed(f"PostgreSQL {major}", f"use PostgreSQL {VERSIONS[0]} to {VERSIONS[-1]}")
    return f"PostgreSQL {major}"


async def _direct(first: Connection, second: Connection) -> str:
    """Find a pooler. Any pooler invents the process id that a client is told; a session pooler is harmless."""
    try:
        session = await refuse_pooler(first, second)
    except UnfitDatabase as error:
        raise CheckFailed(error.found, error.fix) from error
    return "direct" if session == first.info.backend_pid else "through a session pooler"


async def _schema(settings: Settings) -> str:
    versions = migrations.status(database_url(settings))
    ids = {
        state: [each.id for each in versions if each.state == state]
        for state in ("unknown", "changed", "pending")
    }
    if ids["unknown"]:
        raise CheckFailed(
            f"{ids['unknown'][-1]} is unknown to this code",
            "run the newer code, or roll the schema back with the newer code",
        )
    if ids["changed"]:
        raise CheckFailed(
            f"{ids['changed'][-1]} is not the file that was applied", "restore the file as it was applied"
        )
    if len(ids["pending"]) == len(versions):
        raise CheckFailed("the database has no schema yet", "run `outrider migrate up`")
    if ids["pending"]:
        raise CheckFailed(f"the schema lacks {', '.join(ids['pending'])}", "run `outrider migrate up`")
    return versions[-1].id


async def _clock(conn: Connection) -> str:
    """Measure the skew by the fastest of a few samples. The error is half of its round trip."""
    samples = []
    for _ in range(SAMPLES):
        before = time.time()
        theirs = float(await _value(conn, "SELECT extract(epoch FROM clock_timestamp())"))
        after = time.time()
        samples.append((after - before, theirs - (before + after) / 2))
    trip, skew = min(samples)
    if abs(skew) - trip / 2 > MAX_SKEW_SECONDS:
        raise CheckFailed(
            f"the database's clock differs by {skew:+.1f} s from this host's clock",
            "run NTP on both: schedules use the database's clock, tokens use this host's clock",
        )
    return (
        f"the database's clock differs by {skew * 1000:+.0f} ms from this host's clock, ± {trip * 500:.0f} ms"
    )


async def _value(conn: Connection, query: Any) -> Any:
    [(value,)] = await (await conn.execute(query)).fetchall()
    return value
