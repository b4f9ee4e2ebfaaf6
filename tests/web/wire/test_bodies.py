"""Compressed bodies: what is inflated, how far, and what is refused."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable
from typing import Any

import aiohttp
import pytest

from tests.web.wire.test_refusals import RUN, job, post, refused


def raw_deflate(document: bytes) -> bytes:
    return zlib.compress(document, wbits=-15)


CODED: list[tuple[str, Callable[[bytes], bytes]]] = [
    ("gzip", gzip.compress),
    ("GZip", gzip.compress),
    ("x-gzip", gzip.compress),
    ("identity, gzip", gzip.compress),
    ("deflate", zlib.compress),
    ("deflate", raw_deflate),
    ("identity", bytes),
    ("", bytes),
    (" , ", bytes),
]


@pytest.mark.parametrize(("coding", "pack"), CODED)
async def test_a_compressed_body_is_unpacked(anyone: aiohttp.ClientSession, coding: str, pack: Any) -> None:
    async with await post(anyone, pack(job()), **{"Content-Encoding": coding}) as response:
        assert response.status == 202, await response.text()


async def test_415_for_an_unknown_content_coding(anyone: aiohttp.ClientSession) -> None:
    response = await post(anyone, job(), **{"Content-Encoding": "compress"})
    await refused(response, 415)
    assert "gzip" in response.headers["Accept-Encoding"]


@pytest.mark.parametrize(
    "coding", ["gzip, gzip", "gzip, deflate", "br", "zstd", "x-deflate2", "gz\u0131p", "gzip;q=1"]
)
async def test_415_for_several_or_other_content_codings(anyone: aiohttp.ClientSession, coding: str) -> None:
    await refused(
        await post(anyone, gzip.compress(gzip.compress(job())), **{"Content-Encoding": coding}), 415
    )


async def test_415_for_a_content_coding_that_is_given_twice(anyone: aiohttp.ClientSession) -> None:
    headers = [
        ("Content-Type", "application/json"),
        ("Content-Encoding", "gzip"),
        ("Content-Encoding", "gzip"),
    ]
    await refused(await anyone.post(RUN, data=gzip.compress(job()), headers=headers), 415)


LARGE = b" " * 300_000

BROKEN: dict[str, tuple[str, bytes]] = {
    "no gzip": ("gzip", b"not gzip at all"),
    "no deflate": ("deflate", b"not deflate at all"),
    "nothing": ("gzip", b""),
    "half a head": ("gzip", gzip.compress(job())[:5]),
    "an early end": ("gzip", gzip.compress(job())[:-1]),
    "an early end of much": ("gzip", gzip.compress(LARGE + job())[:-1]),
    "an early end of deflate": ("deflate", zlib.compress(job())[:-1]),
    "a wrong sum": ("gzip", gzip.compress(job())[:-8] + bytes(8)),
    "a second member": ("gzip", gzip.compress(job()) + gzip.compress(b" ")),
    "a second member after much": ("gzip", gzip.compress(LARGE + job()) + gzip.compress(b" ")),
    "bytes behind the end": ("gzip", gzip.compress(job()) + b"x"),
    "zlib as gzip": ("gzip", zlib.compress(job())),
    "gzip as deflate": ("deflate", gzip.compress(job())),
}


@pytest.mark.parametrize(("coding", "body"), BROKEN.values(), ids=BROKEN.keys())
async def test_400_for_a_broken_compressed_body(
    anyone: aiohttp.ClientSession, coding: str, body: bytes
) -> None:
    await refused(await post(anyone, body, **{"Content-Encoding": coding}), 400)


@pytest.mark.parametrize("size", [65_535, 65_536, 65_537, (1 << 20) - 100, 1 << 20])
async def test_a_compressed_body_may_inflate_to_the_limit_and_no_further(
    anyone: aiohttp.ClientSession, size: int
) -> None:
    document = b" " * (size - len(job())) + job()
    for coding, pack in CODED[:6]:
        async with await post(anyone, pack(document), **{"Content-Encoding": coding}) as response:
            assert response.status == 202, await response.text()
    over = b" " * (1 << 20) + job()
    await refused(await post(anyone, gzip.compress(over), **{"Content-Encoding": "gzip"}), 413)
