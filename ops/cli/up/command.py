"""`outrider up`: runs a database with its schema, web, relay and worker as one tree of processes."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from ops.cli.output import complain, echo

if TYPE_CHECKING:
    from engine.process.supervision import Kept
    from engine.settings import Settings
    from ops.cli.addresses import Ports
    from ops.cli.up.broker import Broker
    from ops.local.server import Server

TOKEN_SECONDS: Final = 7 * 24 * 3600

HURRY: Final = "stopping: Ctrl-C again stops at once"
GREETING: Final = """
  address  {address}   (documentation: {address}/docs)
  metrics  {metrics}
  database {database}
{broker}  token    {token}

A request to paste. The first command submits a script, the second waits for its storyboard:

TOKEN={token}
JOB=$(curl -sS {address}/pipeline/run -H "Authorization: Bearer $TOKEN" -H 'Content-Type: application/json' \
-d '{{"preset": "storyboard", "content": "The harbour was quiet. Then, one by one, the lamps went out."}}' \
| sed 's/.*"job_id": *"\\([^"]*\\)".*/\\1/')
curl -sS {address}/pipeline/job/$JOB -H "Authorization: Bearer $TOKEN" -H 'Prefer: wait=30'

ready"""


def up(
    pubsub: Annotated[
        bool,
        typer.Option(
            "--pubsub",
            help="Use Google's Pub/Sub emulator. Start one, unless PUBSUB_EMULATOR_HOST names one.",
        ),
    ] = False,
) -> None:
    """Run everything for local use: PostgreSQL, its schema, web, relay and worker.

    PostgreSQL is embedded, with its data under OUTRIDER_DATA_DIR, unless OUTRIDER_DATABASE_URL names another server.
    Print the address, a token and a request to paste. Ctrl-C stops everything; a second Ctrl-C stops at once.
    """
    from engine.process.run import run
    from engine.settings import load

    if not pubsub:
        run("up", _main, load())
    from ops.cli.up.broker import Broker, pubsub_settings

    settings = pubsub_settings()
    run("up", partial(_main, broker=Broker(settings)), settings)


async def _main(settings: Settings, stop: asyncio.Event, broker: Broker | None = None) -> int:
    import migrations
    from engine.process.run import FAILED, unless
    from engine.process.supervision import run_in_turns
    from ops.cli.addresses import Ports
    from ops.cli.up.children import all_ready, keep_server, places

    ports = Ports.choose(settings)
    async with _database(settings) as (url, server), broker or nullcontext():
        await asyncio.to_thread(migrations.up, url)
        if stop.is_set():
            return 0
        settings = _with_secret(settings)
        pubsub = broker.environ if broker else {}
        web, *others = places(ports, settings.drain_seconds, {**_environ(settings, url, ports), **pubsub})
        # web first, so that no new jobs come in while the others drain.
        turns: list[Sequence[Kept]] = [[web], others, [broker] if broker else []]
        async with asyncio.TaskGroup() as group:
            # PostgreSQL first: without it the others may have to be killed.
            kept = [group.create_task(keep_server(server, stop))] if server else []
            kept.append(group.create_task(run_in_turns(turns, stop)))
            ready = await unless(stop, all_ready([web, *others]))
            if ready:
                with _findable(ports, settings.data_dir):
                    echo(_greeting(settings, ports, server, pubsub))
                    await stop.wait()
                if sys.stderr.isatty():
                    complain(HURRY)
            stop.set()
    late = FAILED if ready is False else 0
    return next(filter(None, (late, *(task.result() for task in kept))), 0)


@asynccontextmanager
async def _database(settings: Settings) -> AsyncIterator[tuple[str, Server | None]]:
    """The URL of the configured database, or of an embedded server, which ends with the block, and that server."""
    if settings.database_url is not None:
        yield settings.database_url.get_secret_value(), None
        return
    from ops.local.server import local_server

    # In threads, because start and stop block for seconds, and a second signal must work meanwhile.
    using = local_server(settings.data_dir)
    server = await asyncio.to_thread(using.__enter__)
    try:
        yield server.url, server
    finally:
        await asyncio.to_thread(using.__exit__, None, None, None)


@contextmanager
def _findable(ports: Ports, data_dir: Path) -> Iterator[None]:
    """Let other commands find this `up` by the data directory, if the directory can be written."""
    import structlog

    from ops.cli.addresses import published

    with ExitStack() as stack:
        try:
            stack.enter_context(published(ports, data_dir))
        except OSError as error:
            structlog.get_logger().warning("addresses.not_published", error=str(error))
        yield


def _with_secret(settings: Settings) -> Settings:
    """`settings` with a key. If no key is configured, the key is the secret for local use."""
    from pydantic import SecretStr

    from ops.cli.context import dev_secret

    if settings.jwt_secret or settings.jwks_file or settings.jwks_url:
        return settings
    return settings.model_copy(update={"jwt_secret": SecretStr(dev_secret(settings.data_dir))})


def _environ(settings: Settings, url: str, ports: Ports) -> dict[str, str]:
    """What the processes have beside our own environment."""
    environ = {"OUTRIDER_DATABASE_URL": url, "OUTRIDER_HTTP_PORT": str(ports.http)}
    if settings.jwt_secret:
        environ["OUTRIDER_JWT_SECRET"] = settings.jwt_secret.get_secret_value()
    return environ


def _greeting(settings: Settings, ports: Ports, server: Server | None, broker: Mapping[str, str]) -> str:
    from ops.cli.context import LOCAL_OWNER, sign

    # A text for people, not a secret.
    token = "<one from your issuer>"  # noqa: S105
    if settings.jwt_secret:
        secret = settings.jwt_secret.get_secret_value()
        token = sign(settings, secret, sub=LOCAL_OWNER, seconds=TOKEN_SECONDS)
    pubsub = " ".join(f"{name}={value}" for name, value in broker.items())
    return GREETING.format(
        address=ports.web,
        metrics="  ".join(f"{role} {ports.admin_url(role, '/metrics')}" for role in ports.admin),
        # OUTRIDER_DATABASE_URL may hold a password.
        database=server.url if server else "<the one in OUTRIDER_DATABASE_URL>",
        broker=f"  pubsub   {pubsub}\n" if broker else "",
        token=token,
    )
