"""The admin server of each process: /metrics, /healthz, /readyz and /autoscale, on a port that clients do not reach."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager

from aiohttp import web
from prometheus_client.aiohttp import make_aiohttp_handler

from engine import version
from engine.errors import ConfigurationError, DatabaseUnavailable, OutriderError
from engine.process import supervised
from engine.process.autoscale import Autoscale
from engine.process.http.admission import Limits
from engine.process.http.listener import listening
from engine.process.merged_metrics import Pages, merged_handler
from engine.settings import Settings
from engine.telemetry.metrics import BUILD, CONFIG, LOOP_LAG_SECONDS

Check = Callable[[], Awaitable[None]]
Checks = Mapping[str, Check]

PORTS: Mapping[str, int] = {"web": 9191, "relay": 9192, "worker": 9193}
CHECK_SECONDS = 3.0
LAG_SECONDS = 0.25
ALIKE = ("worker_concurrency", "lease_seconds", "drain_seconds", "retention_days", "log_level")
RETRY_SECONDS = "1"
MAX_CONNECTIONS = 100
"""Of the admin server: probes and a few that read the metrics."""
DRAIN_SECONDS = 5.0


async def verdict(checks: Checks) -> tuple[bool, dict[str, str]]:
    """Whether all `checks` pass, and the answer of each check. A check fails by raising."""
    answers = dict(zip(checks, await asyncio.gather(*map(_answer, checks.values())), strict=True))
    return all(answer == "ok" for answer in answers.values()), answers


async def health(checks: Checks) -> web.Response:
    """200 if all `checks` pass, else 503 with Retry-After. The body is `{"status", "checks"}`."""
    good, answers = await verdict(checks)
    if good:
        return web.json_response({"status": "ok", "checks": answers})
    body = {"status": "unavailable", "checks": answers}
    return web.json_response(body, status=503, headers={"Retry-After": RETRY_SECONDS})


def accepting(stop: asyncio.Event) -> Check:
    """A readiness check that raises once `stop` is set."""

    async def check() -> None:
        if stop.is_set():
            raise OutriderError("stopping")

    return check


@asynccontextmanager
async def admin_server(
    settings: Settings,
    role: str,
    checks: Checks,
    *,
    pages: Pages | None = None,
    shown_as: str | None = None,
) -> AsyncIterator[int]:
    """Serve until the block ends; yields the port. `checks` decide /readyz, and /healthz passes by answering at all.

    A supervisor gives the metrics of its processes as `pages`. The metrics name the role, or `shown_as`.
    Raises ConfigurationError if the port cannot be opened.
    """
    BUILD.info({"version": version.installed(), "role": shown_as or role, "transport": settings.transport})
    CONFIG.info({name: str(getattr(settings, name)) for name in ALIKE})
    autoscale = Autoscale(settings)

    async def alive(_request: web.Request) -> web.Response:
        return await health({})

    async def ready(_request: web.Request) -> web.Response:
        return await health(checks)

    async def scaled(_request: web.Request) -> web.Response:
        try:
            return web.json_response(await autoscale.answer())
        except DatabaseUnavailable as error:
            body = {"status": "unavailable", "detail": str(error)}
            return web.json_response(body, status=503, headers={"Retry-After": RETRY_SECONDS})

    app = web.Application()
    app.add_routes(
        [
            web.get("/metrics", merged_handler(pages) if pages else make_aiohttp_handler()),
            web.get("/healthz", alive),
            web.get("/readyz", ready),
            web.get("/autoscale", scaled),
        ]
    )
    lag = asyncio.create_task(_observe_lag())
    try:
        port = PORTS[role] if settings.admin_port is None else settings.admin_port
        limits = Limits(MAX_CONNECTIONS, MAX_CONNECTIONS, settings.head_seconds)
        async with AsyncExitStack() as stack:
            listener = listening(
                app, settings.admin_host, port, server="admin", limits=limits, drain_seconds=DRAIN_SECONDS
            )
            try:
                bound = await stack.enter_async_context(listener)
            except OSError as error:
                raise ConfigurationError([f"OUTRIDER_ADMIN_PORT: {error.strerror or error}"]) from error
            supervised.tell(bound)
            yield bound
    finally:
        lag.cancel()
        await autoscale.aclose()


async def _observe_lag() -> None:
    """Observe how late the loop runs a timer: all work on the loop waits that long beside its own time."""
    clock = asyncio.get_running_loop().time
    while True:
        due = clock() + LAG_SECONDS
        await asyncio.sleep(LAG_SECONDS)
        LOOP_LAG_SECONDS.observe(max(0.0, clock() - due))


async def _answer(check: Check) -> str:
    try:
        async with asyncio.timeout(CHECK_SECONDS):
            await check()
    except TimeoutError:
        return f"no answer within {CHECK_SECONDS:g} s"
    except Exception as error:  # noqa: BLE001 - any error is the check's answer
        return str(error) or type(error).__name__
    return "ok"
