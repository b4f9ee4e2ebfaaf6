"""Where a JWKS document comes from: a file or a URL. Its size, its time and its redirects are bounded."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import aiohttp

Fetch = Callable[[], Awaitable[bytes]]

FETCH_SECONDS: Final = 5.0
MAX_BYTES: Final = 256 * 1024
ZLIB_OR_GZIP: Final = 32 + zlib.MAX_WBITS


def from_file(path: Path) -> Fetch:
    """Reads the file anew each time. Raises OSError, or ValueError if it is no file or too large."""

    def read() -> bytes:
        # A pipe or a device could keep its reader waiting for ever.
        if path.exists() and not path.is_file():
            raise ValueError("not a file")
        with path.open("rb") as file:
            return _bounded(file.read(MAX_BYTES + 1))

    async def fetch() -> bytes:
        return await asyncio.to_thread(read)

    return fetch


@asynccontextmanager
async def open_url(url: str) -> AsyncIterator[Fetch]:
    """Fetches `url` each time. Any answer but a 200 of at most MAX_BYTES raises."""
    limits = aiohttp.ClientTimeout(total=FETCH_SECONDS)
    # aiohttp itself would inflate without a bound.
    async with aiohttp.ClientSession(
        timeout=limits, auto_decompress=False, headers={"Accept-Encoding": "identity"}
    ) as session:

        async def fetch() -> bytes:
            async with session.get(url, allow_redirects=False) as response:
                if response.status != 200:
                    raise ValueError(f"the issuer answered {response.status}")
                document = bytearray()
                async for chunk in response.content.iter_chunked(MAX_BYTES):
                    document += chunk
                    _check_size(len(document))
                return _inflated(bytes(document), response.headers.get("Content-Encoding", "identity"))

        yield fetch


def _inflated(document: bytes, coding: str) -> bytes:
    """The document without its coding: some servers compress although they are asked not to."""
    match coding.strip().lower():
        case "identity":
            return document
        case "gzip" | "x-gzip" | "deflate":
            return _bounded(zlib.decompressobj(ZLIB_OR_GZIP).decompress(document, MAX_BYTES + 1))
    raise ValueError(f"the issuer answered with the coding {coding!r}")


def _bounded(document: bytes) -> bytes:
    _check_size(len(document))
    return document


def _check_size(size: int) -> None:
    if size > MAX_BYTES:
        raise ValueError(f"the key set is larger than {MAX_BYTES} bytes")
