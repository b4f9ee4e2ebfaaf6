"""The keys that verify tokens: a shared secret, or a JWKS from a file or a URL, cached and renewed."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final, Protocol

import structlog
from joserfc.jwk import OctKey

from engine.errors import ConfigurationError, KeysUnavailable
from engine.process.admin import Check
from engine.settings import Settings
from engine.telemetry.metrics import JWKS_FETCHED_AT
from web.auth.jwks_sources import FETCH_SECONDS, Fetch, from_file, open_url
from web.auth.key_set import Key, matching, usable

log = structlog.get_logger()

FRESH_SECONDS: Final = 300.0
STALE_SECONDS: Final = 24 * 3600.0
"""How long a key set is used while its issuer cannot be reached."""
UNKNOWN_SECONDS: Final = 10.0
"""Minimum time between two fetches because of tokens that no key of the set verifies."""
RENEW_SECONDS: Final = 30.0
"""Minimum time between two tries to renew a set that is no longer fresh."""
MISSING_SECONDS: Final = 1.0


class Keys(Protocol):
    async def find(self, kid: str | None) -> Sequence[Key]:
        """The keys that may have signed a token with this key id. Raises KeysUnavailable."""

    async def find_newer(self, kid: str | None) -> Sequence[Key]:
        """The keys of a newer set, for a token that no key of `find` verifies. Empty if there is no newer set."""

    @property
    def checks(self) -> Mapping[str, Check]:
        """What readiness needs of the keys."""


class Secret:
    """One shared secret, whatever the key id."""

    checks: Mapping[str, Check] = {}

    def __init__(self, secret: str) -> None:
        self._keys = (OctKey.import_key(secret.encode()),)

    async def find(self, kid: str | None) -> Sequence[Key]:  # noqa: ARG002 - the protocol's
        return self._keys

    async def find_newer(self, kid: str | None) -> Sequence[Key]:  # noqa: ARG002 - the protocol's
        return ()


class Jwks:
    """A cached JWKS. One fetch runs at a time. An old set is renewed in the background, and kept if that fails.

    A request that no key verifies waits for a fetch, but at most one every UNKNOWN_SECONDS: anyone can invent key ids
    and signatures. Other fetches do not count: a key may be rotated just after one of them. A request that a key
    verifies never waits for that fetch. A key that its issuer removes goes with the first renewal after FRESH_SECONDS.
    """

    def __init__(self, fetch: Fetch, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._fetch = fetch
        self._clock = clock
        self._keys: list[Key] = []
        self._fetched_at = -math.inf
        self._tried_at = -math.inf
        self._asked_at = -math.inf
        self._renewal: asyncio.Task[None] | None = None
        # Before the first fetch the age of the key set counts from here.
        JWKS_FETCHED_AT.set_to_current_time()

    @property
    def checks(self) -> Mapping[str, Check]:
        return {"keys": self._ready}

    def begin(self) -> None:
        """Start the first fetch, for which nobody waits."""
        self._renew(after=MISSING_SECONDS)

    async def load(self) -> None:
        """Fetch a set. Raises whatever the source does, and ValueError if it gives no set with a usable key."""
        self._tried_at = self._clock()
        async with asyncio.timeout(FETCH_SECONDS):
            # In a thread, because a large set takes a tenth of a second.
            self._keys = await asyncio.to_thread(usable, await self._fetch())
        self._fetched_at = self._clock()
        JWKS_FETCHED_AT.set_to_current_time()
        log.info("keys.loaded", count=len(self._keys))

    async def find(self, kid: str | None) -> Sequence[Key]:
        await self._available()
        if self._clock() - self._fetched_at > FRESH_SECONDS:
            self._renew(after=RENEW_SECONDS)
        if not (found := matching(self._keys, kid)):
            await self._asked()
            found = matching(self._keys, kid)
        return found

    async def find_newer(self, kid: str | None) -> Sequence[Key]:
        known = self._keys
        await self._asked()
        return () if self._keys == known else matching(self._keys, kid)

    async def aclose(self) -> None:
        if self._renewal is not None:
            self._renewal.cancel()
            await asyncio.wait([self._renewal])

    async def _available(self) -> None:
        """Wait for a set, if there is none. Raises KeysUnavailable."""
        if self._stale():
            await self._renewed(after=MISSING_SECONDS)
            if self._stale():
                raise KeysUnavailable("no key set")

    def _stale(self) -> bool:
        return self._clock() - self._fetched_at > STALE_SECONDS

    async def _ready(self) -> None:
        try:
            await self._available()
        except KeysUnavailable as error:
            # Anyone can read /readyz, so the issuer's address and answer are only in the log.
            raise KeysUnavailable("no key set is loaded: see keys.load_failed in the log") from error

    async def _asked(self) -> None:
        """Wait for a fetch because of a token that no key verifies, unless the last such fetch is too recent."""
        if self._renewal is None:
            if self._clock() - self._asked_at < UNKNOWN_SECONDS:
                return
            self._asked_at = self._clock()
        await self._renewed(after=0.0)

    async def _renewed(self, *, after: float) -> None:
        if renewal := self._renew(after=after):
            # Shielded, because all waiting requests share one fetch.
            await asyncio.shield(renewal)

    def _renew(self, *, after: float) -> asyncio.Task[None] | None:
        if self._renewal is None and self._clock() - self._tried_at >= after:
            self._renewal = asyncio.create_task(self._try(), name="jwks")
        return self._renewal

    async def _try(self) -> None:
        try:
            await self.load()
        except Exception as error:  # noqa: BLE001 - whatever an issuer answers, the last set stays
            log.warning("keys.load_failed", error=f"{type(error).__name__}: {error}")
        finally:
            self._renewal = None


@asynccontextmanager
async def open_keys(settings: Settings) -> AsyncIterator[Keys]:
    """The keys that `settings` name. An issuer that cannot be reached stops no process: readiness waits for it.

    Raises ConfigurationError if `settings` name no key, or a file without a usable key set.
    """
    if settings.jwt_secret is not None:
        yield Secret(settings.jwt_secret.get_secret_value())
    elif settings.jwks_file is not None:
        async with _cached(from_file(settings.jwks_file)) as keys:
            try:
                await keys.load()
            except Exception as error:
                raise ConfigurationError([_unfit(settings.jwks_file, error)]) from error
            yield keys
    elif settings.jwks_url is not None:
        async with open_url(settings.jwks_url) as fetch, _cached(fetch) as keys:
            keys.begin()
            yield keys
    else:
        raise ConfigurationError(
            ["set OUTRIDER_JWT_SECRET, OUTRIDER_JWKS_URL or OUTRIDER_JWKS_FILE: tokens need a key"]
        )


def _unfit(path: Path, error: Exception) -> str:
    cause = (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
    return f"OUTRIDER_JWKS_FILE: {path}: {cause}"


@asynccontextmanager
async def _cached(fetch: Fetch) -> AsyncIterator[Jwks]:
    keys = Jwks(fetch)
    try:
        yield keys
    finally:
        await keys.aclose()
