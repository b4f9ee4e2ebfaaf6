"""The broker of `outrider up --pubsub`: a new emulator, unless PUBSUB_EMULATOR_HOST names a running one."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from typing import Final, Self

import structlog

from engine.errors import OutriderError
from engine.process.restarts import exit_code
from engine.pubsub.client import EMULATOR, names
from engine.settings import PREFIX, Settings, load
from ops.harness.emulator import Emulator, require
from relay.provision.apply import BrokerError, open_clients, provision
from relay.provision.desired import Step

LOCAL_PROJECT: Final = "outrider-local"

log = structlog.get_logger()


def pubsub_settings() -> Settings:
    """The settings of the environment, with Pub/Sub as the transport and a project. Raises ConfigurationError."""
    given = {name: value for name, value in os.environ.items() if value}
    return load({f"{PREFIX}PUBSUB_PROJECT": LOCAL_PROJECT} | given, transport="pubsub")


class Broker:
    """Inside the `async with` block the broker runs and has its topics. A supervisor starts an emulator of ours again.

    The emulator loses its topics when it ends, so each start provisions them.
    """

    name = "emulator"

    def __init__(self, settings: Settings) -> None:
        """Raises ConfigurationError if an emulator is needed and none is installed."""
        self._settings = settings
        self._emulator: Emulator | None = None
        self._started = False
        if not os.environ.get(EMULATOR):
            self._emulator = Emulator(require(), settings.data_dir / "pubsub-emulator.log")
            # The clients in this process read the variable too.
            os.environ[EMULATOR] = self._emulator.host

    @property
    def environ(self) -> Mapping[str, str]:
        """The variables that the processes need to use the broker."""
        return {
            EMULATOR: os.environ[EMULATOR],
            f"{PREFIX}TRANSPORT": "pubsub",
            f"{PREFIX}PUBSUB_PROJECT": self._settings.pubsub_project or LOCAL_PROJECT,
        }

    async def __aenter__(self) -> Self:
        try:
            await self._start()
        except BaseException:
            await self._stop()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stop()

    @property
    def started(self) -> bool:
        return self._started

    async def start(self) -> None:
        """Start the broker and provision its topics, unless it runs. If that fails, the emulator is stopped."""
        if self._emulator is None or self._emulator.living:
            return
        self._started = False
        try:
            await self._start()
        except OutriderError as error:
            log.warning("emulator.start_failed", reason=str(error))
            await self._stop()

    async def ended(self) -> int:
        if self._emulator:
            return exit_code(await self._emulator.ended())
        unheard_of: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        # An emulator that was not started here is not watched.
        return await unheard_of

    async def stop(self) -> int:
        await self._stop()
        return 0

    async def _start(self) -> None:
        if self._emulator:
            self._settings.data_dir.mkdir(parents=True, exist_ok=True)
            await self._emulator.start()
        async with open_clients() as clients:
            changes = [change async for change in provision(clients, names(self._settings))]
        for change in changes:
            if change.step is Step.BY_HAND:
                raise BrokerError(str(change), change.fix)
        log.info("topics.provisioned", changes=len(changes))
        self._started = True

    async def _stop(self) -> None:
        if self._emulator:
            await self._emulator.stop()
