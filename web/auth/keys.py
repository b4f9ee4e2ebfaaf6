"""The keys that verify tokens: a shared secret, or a JWKS (RFC 7517) from a file or a URL."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final, Protocol

import aiohttp
import orjson
import structlog
from joserfc.jwk import ECKey, JWKRegistry, OctKey, RSAKey

from engine.errors import ConfigurationError, KeysUnavailable
from engine.settings import Settings
from engine.telemetry.metrics import JWKS_FETCHED_AT

log = structlog.get_logger()

Key = OctKey | RSAKey | ECKey
Fetch = Callable[[], Awaitable[bytes]]

FRESH_SECONDS: Final = 300.0
STALE_SECONDS: Final = 24 * 3600.0
"""How long a key set is used while its issuer cannot be reached."""
UNKNOWN_SECONDS: Final = 30.0
"""Minimum time between two fetches because of a key id that is not in the set."""
MISSING_SECONDS: Final = 1.0
FETCH_SECONDS: Final = 5.0
MAX_BYTES: Final = 256 * 1024


class Keys(Protocol):
    async def find(self, kid: str | None) -> Sequence[Key]:
        """The keys that may have signed a token with this key id. Raises KeysUnavailable."""


class Secret:
    """One shared secret, whatever the key id."""

    def __init__(self, secret: str) -> None:
        self._keys = (OctKey.import_key(secret.encode()),)

    async def find(self, kid: str | None) -> Sequence[Key]:  # noqa: ARG002 - the protocol's
        return self._keys


class Jwks:
    """A cached JWKS. One fetch runs at a time. An old set is renewed in the background, and kept if that fails.

    A request with an unknown key id waits for a fetch, but at most one every UNKNOWN_SECONDS: anyone can invent key
    ids.
    """

    def __init__(self, fetch: Fetch, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._fetch = fetch
        self._clock = clock
        self._keys: list[Key] = []
        self._fetched_at = -math.inf
        self._tried_at = -math.inf
        self._renewal: asyncio.Task[None] | None = None
        # Before the first fetch the age of the key set counts from here.
        JWKS_FETCHED_AT.set_to_current_time()

    async def find(self, kid: str | None) -> Sequence[Key]:
        age = self._clock() - self._fetched_at
        if age > STALE_SECONDS:
            await self._renewed(after=MISSING_SECONDS)
            if self._clock() - self._fetched_at > STALE_SECONDS:
                raise KeysUnavailable("no key set")
        elif age > FRESH_SECONDS:
            self._renew(after=UNKNOWN_SECONDS)
        if not (found := self._matching(kid)):
            await self._renewed(after=UNKNOWN_SECONDS)
            found = self._matching(kid)
        return found

    async def aclose(self) -> None:
        if self._renewal is not None:
            self._renewal.cancel()
            await asyncio.wait([self._renewal])

    def _matching(self, kid: str | None) -> list[Key]:
        return [key for key in self._keys if kid is None or key.kid == kid]

    async def _renewed(self, *, after: float) -> None:
        if renewal := self._renew(after=after):
            # Shielded, because all waiting requests share one fetch.
            await asyncio.shield(renewal)

    def _renew(self, *, after: float) -> asyncio.Task[None] | None:
        if self._renewal is None and self._clock() - self._tried_at >= after:
            self._tried_at = self._clock()
            self._renewal = asyncio.create_task(self._load(), name="jwks")
        return self._renewal

    async def _load(self) -> None:
        try:
            async with asyncio.timeout(FETCH_SECONDS):
                self._keys = usable(await self._fetch())
            self._fetched_at = self._clock()
            JWKS_FETCHED_AT.set_to_current_time()
            log.info("keys.loaded", count=len(self._keys))
        except Exception as error:  # noqa: BLE001 - whatever an issuer answers, the last set stays
            log.warning("keys.load_failed", error=f"{type(error).__name__}: {error}")
        finally:
            self._renewal = None


def usable(document: bytes) -> list[Key]:
    """The public signature keys of a JWKS document, imported one by one: a broken key must not cost the others.

    Raises ValueError if no key is usable.
    """
    parsed = orjson.loads(document)
    listed = parsed.get("keys") if isinstance(parsed, dict) else None
    keys: list[Key] = []
    for data in listed if isinstance(listed, list) else ():
        if not isinstance(data, dict) or data.get("kty") not in ("RSA", "EC") or data.get("use") == "enc":
            continue
        try:
            key = JWKRegistry.import_key(data)
        except Exception as error:  # noqa: BLE001 - joserfc and cryptography raise many kinds for a broken key
            log.warning("keys.key_refused", kid=data.get("kid"), error=type(error).__name__)
        else:
            if isinstance(key, RSAKey | ECKey):
                keys.append(key)
    if not keys:
        raise ValueError("not a JWKS with a usable key")
    return keys


@asynccontextmanager
async def open_keys(settings: Settings) -> AsyncIterator[Keys]:
    """The keys that `settings` name. Raises ConfigurationError if `settings` name no key."""
    if settings.jwt_secret is not None:
        yield Secret(settings.jwt_secret.get_secret_value())
    elif settings.jwks_file is not None:
        async with _cached(_from_file(settings.jwks_file)) as keys:
            yield keys
    elif settings.jwks_url is not None:
        limits = aiohttp.ClientTimeout(total=FETCH_SECONDS)
        async with (
            aiohttp.ClientSession(timeout=limits) as session,
            _cached(_from_url(session, settings.jwks_url)) as keys,
        ):
            yield keys
    else:
        raise ConfigurationError(
            ["set OUTRIDER_JWT_SECRET, OUTRIDER_JWKS_URL or OUTRIDER_JWKS_FILE: tokens need a key"]
        )


@asynccontextmanager
async def _cached(fetch: Fetch) -> AsyncIterator[Jwks]:
    keys = Jwks(fetch)
    try:
        yield keys
    finally:
        await keys.aclose()


def _from_file(path: Path) -> Fetch:
    async def fetch() -> bytes:
        return await asyncio.to_thread(path.read_bytes)

    return fetch


def _from_url(session: aiohttp.ClientSession, url: str) -> Fetch:
    async def fetch() -> bytes:
        async with session.get(url, allow_redirects=False) as response:
            if response.status != 200:
                raise ValueError(f"the issuer answered {response.status}")
            document = bytearray()
            async for chunk in response.content.iter_chunked(MAX_BYTES):
                document += chunk
                if len(document) > MAX_BYTES:
                    raise ValueError(f"the key set is larger than {MAX_BYTES} bytes")
            return bytes(document)

    return fetch
