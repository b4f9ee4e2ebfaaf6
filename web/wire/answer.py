"""The bytes of an answer with a body, written at once."""

from __future__ import annotations

from typing import Final

from aiohttp import ClientConnectionResetError, HttpVersion11, hdrs, web
from aiohttp.abc import AbstractStreamWriter
from aiohttp.helpers import rfc822_formatted_time
from aiohttp.http_writer import _serialize_headers

JSON: Final = "application/json"


class Answer(web.Response):
    """A JSON answer. In the usual case its head and body are one write, which costs a third of aiohttp's way.

    The usual case is HTTP/1.1 on a connection that is kept, and no HEAD. aiohttp writes the others.
    """

    _head = b""

    async def prepare(self, request: web.BaseRequest) -> AbstractStreamWriter | None:
        usual = request.version == HttpVersion11 and request.keep_alive and request.method != hdrs.METH_HEAD
        if not usual or self.prepared or self._keep_alive is False or not isinstance(self._body, bytes):
            return await super().prepare(request)
        self._req, self._keep_alive = request, True
        writer = self._payload_writer = request._payload_writer
        headers = self._headers
        headers[hdrs.CONTENT_LENGTH] = str(len(self._body))
        headers[hdrs.DATE] = rfc822_formatted_time()
        await request._prepare_hook(self)
        self._head = _serialize_headers(f"HTTP/1.1 {self._status} {self._reason}", headers)
        return writer

    async def write_eof(self, data: bytes = b"") -> None:
        request, writer, body = self._req, self._payload_writer, self._body
        if not self._head or request is None or writer is None or not isinstance(body, bytes):
            await super().write_eof(data)
            return
        transport = request.transport
        if transport is None or transport.is_closing():
            raise ClientConnectionResetError("the client has left")
        transport.write(self._head + body)
        # A client that does not read is given no further answer.
        await writer.drain()
        self._head, self._eof_sent = b"", True
        self._req = self._payload_writer = None
