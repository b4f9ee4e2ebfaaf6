"""Content codings of a body: inflated here, with a bound, and only once the body is wanted."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from http import HTTPStatus
from typing import Final

from aiohttp import web

from web.offload import LARGE_BYTES, Offload
from web.problems import Refused

CODINGS: Final = ("gzip", "deflate", "identity")
GZIP_BITS: Final = 16 + zlib.MAX_WBITS


def coding(given: Sequence[str]) -> str | None:
    """The coding that the Content-Encoding fields name, None if the body is not coded. Raises Refused (415)."""
    named = [each.strip(" \t").lower() for each in ",".join(given).split(",")]
    codings = [each.removeprefix("x-") for each in named if each not in ("", "identity")]
    if not codings:
        return None
    if len(codings) > 1:
        raise _unsupported("The body has more than one Content-Encoding.")
    if codings[0] not in CODINGS:
        raise _unsupported("The body's Content-Encoding is not supported.")
    return codings[0]


async def inflated(request: web.BaseRequest, raw: bytes, coding: str, limit: int, offload: Offload) -> bytes:
    """`raw` without its coding: in a thread, unless it turns out to be small.

    Raises Refused (400, 413), Overloaded, or ClientConnectionResetError if the client leaves before its turn.
    """
    inflation = _Inflation(raw, coding, limit)
    inflation.go_on(min(LARGE_BYTES, limit + 1))
    if not inflation.over:
        await offload.run(request, len(raw), inflation.go_on, limit + 1)
    return inflation.document()


class _Inflation:
    """The inflating of one body. Never holds more than the bound of each step."""

    def __init__(self, raw: bytes, coding: str, limit: int) -> None:
        # RFC 9110 means zlib's format by deflate, and some clients send what is inside it (§8.4.1.2).
        zipped = zlib.MAX_WBITS if raw[:1] and raw[0] & 0xF == 8 else -zlib.MAX_WBITS
        self._inflater = zlib.decompressobj(GZIP_BITS if coding == "gzip" else zipped)
        self._left = raw
        self._limit = limit
        self._done = bytearray()
        self._starved = False

    @property
    def over(self) -> bool:
        """Whether the body is whole, too large, or ends early."""
        return self._inflater.eof or self._starved or len(self._done) > self._limit

    def go_on(self, most: int) -> None:
        """Inflate until the document has `most` bytes. Raises Refused (400)."""
        try:
            self._done += self._inflater.decompress(self._left, most - len(self._done))
            self._starved = len(self._done) < most
        except zlib.error as error:
            raise _broken("is not what its Content-Encoding says") from error
        self._left = self._inflater.unconsumed_tail

    def document(self) -> bytes:
        """The whole document. Raises Refused (400, 413)."""
        if len(self._done) > self._limit:
            raise too_large(self._limit)
        if not self._inflater.eof:
            raise _broken("ends early")
        if self._inflater.unused_data:
            raise _broken("goes on after its compressed part")
        return bytes(self._done)


def too_large(limit: int) -> Refused:
    return Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"The body is larger than {limit} bytes.")


def _broken(how: str) -> Refused:
    return Refused(HTTPStatus.BAD_REQUEST, f"The compressed body {how}.")


def _unsupported(detail: str) -> Refused:
    headers = {"Accept-Post": "application/json", "Accept-Encoding": ", ".join(CODINGS)}
    return Refused(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, detail, headers=headers)
