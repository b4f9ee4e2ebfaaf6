"""Whatever a header says, the answer is no 5xx, and the server goes on.

A seeded fuzz: HEADER_FUZZ_VALUES says how many values (30,000 take minutes), HEADER_FUZZ_SEED which.
"""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from collections.abc import Iterator
from random import Random
from typing import Final

import orjson
import pytest
from structlog.testing import capture_logs

from tests.support.web_harness import JOB, WebHarness, bearer, submit

pytestmark = pytest.mark.long

VALUES: Final = int(os.environ.get("HEADER_FUZZ_VALUES", "3000"))
SEED: Final = int(os.environ.get("HEADER_FUZZ_SEED", "1"))
CONNECTIONS: Final = 8
BODY: Final = orjson.dumps(JOB)

SAMPLES: Final[dict[bytes, tuple[bytes, ...]]] = {
    b"Content-Type": (
        b"application/json",
        b"application/json; charset=utf-8",
        b"application/json; x*",
        b'a/b; c="d"',
    ),
    b"Content-Length": (b"0", b"12", b"-1", b"1e3", b"99999999999999999999"),
    b"Content-Encoding": (b"gzip", b"deflate", b"identity", b"gzip, gzip", b"br", b"x-gzip"),
    b"Transfer-Encoding": (b"chunked", b"gzip, chunked", b"identity", b"chunked, chunked"),
    b"Accept": (b"*/*", b"application/json;q=0.5", b"text/event-stream"),
    b"Accept-Encoding": (b"gzip;q=1.0, *;q=0", b"identity", b"br"),
    b"Accept-Language": (b"en-GB, de;q=0.5",),
    b"Accept-Charset": (b"utf-8, latin-1;q=0.1",),
    b"Prefer": (b"wait=0", b"wait=10000000000", b'foo="a, wait=0"', b"respond-async, wait=0"),
    b"If-None-Match": (b'"0.0"', b"*", b'W/"0.0", "1.0"', b'"'),
    b"If-Match": (b'"0.0"', b"*"),
    b"If-Modified-Since": (b"Sun, 29 Nov 2026 21:00:00 GMT", b"0"),
    b"Last-Event-ID": (b"0", b"-1", b"9999999999", b"\xd9\xa3"),
    b"traceparent": (
        b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        b"00-0-0-0",
        b"ff-" + b"0" * 52,
    ),
    b"tracestate": (b"congo=t61rcWkgMzE", b"a=b,c=d"),
    b"baggage": (b"a=b;c,d=e",),
    b"Authorization": (b"Bearer a.b.c", b"Basic YTpi", b"Bearer", b"bearer eyJhbGciOiJub25lIn0.e30."),
    b"Idempotency-Key": (b"k", b'"k\\"1"', b'"', b"a" * 256),
    b"X-Request-Id": (b"r-1", b"a b"),
    b"Range": (b"bytes=0-1", b"bytes=-", b"items=0-1"),
    b"If-Range": (b'"0.0"',),
    b"Expect": (b"100-continue", b"200-ok", b"100-continue, 100-continue"),
    b"Host": (b"x", b"x:80", b"[::1]:80", b"x:99999", b"http://x", b"x/y?z#f@g"),
    b"Cookie": (b"a=b; c=d", b"a", b'a="b;c"'),
    b"Origin": (b"https://a.example", b"null", b"https://a.example:x"),
    b"Access-Control-Request-Method": (b"POST", b"a b"),
    b"Access-Control-Request-Headers": (b"authorization, x", b","),
    b"Forwarded": (b"for=192.0.2.1;proto=http",),
    b"X-Forwarded-For": (b"192.0.2.1, ::1",),
    b"Connection": (b"keep-alive", b"upgrade", b"close, keep-alive"),
    b"Upgrade": (b"websocket", b"h2c"),
    b"Sec-WebSocket-Key": (b"dGhlIHNhbXBsZSBub25jZQ==",),
    b"Trailer": (b"x",),
    b"TE": (b"trailers, deflate;q=0.5",),
    b"Content-Disposition": (b"attachment; filename*=utf-8''a",),
    b"Date": (b"Sun, 29 Nov 2026 21:00:00 GMT",),
}
PIECES: Final = (
    *(
        b"*",
        b"%",
        b"%00",
        b"''",
        b'"',
        b"\\",
        b";",
        b"; ",
        b",",
        b"=",
        b";;",
        b" ",
        b"\t",
        b"(",
        b")",
        b"<>",
        b"@",
        b"[",
        b"]",
    ),
    *(
        b"{",
        b"}",
        b"&",
        b"..",
        b"//",
        b"\x7f",
        b"\x80",
        b"\xff",
        b"\xc3\xa9",
        b"\xed\xa0\x80",
        b"\xf0\x9f\x98\x80",
        b"\xd9\xa3",
    ),
    *(
        b"utf-8''",
        b"charset",
        b"q=",
        b"0",
        b"-",
        b"1e999",
        b"9" * 30,
        b"null",
        b"a" * 300,
        b"=?utf-8?q?=00?=",
        b"\xe2\x84\xaa",
    ),
)
TARGETS: Final = (
    b"POST /pipeline/run",
    b"POST /pipeline/batch",
    b"GET /pipeline/jobs",
    b"GET /pipeline/job/%s",
    b"GET /pipeline/job/%s/events",
    b"POST /pipeline/job/%s/retry",
    b"GET /healthz",
    b"GET /openapi.json",
    b"OPTIONS /pipeline/run",
    b"DELETE /nowhere",
)


def mutated(random: Random, value: bytes) -> bytes:
    """`value` with some of PIECES put in, or with parts cut out, doubled or swapped."""
    for _ in range(random.randint(1, 4)):
        at = random.randint(0, len(value))
        match random.randrange(4):
            case 0 | 1:
                value = value[:at] + random.choice(PIECES) + value[at:]
            case 2:
                value = value[:at] + value[random.randint(at, len(value)) :]
            case _:
                value = value[at:] + value[:at]
    return value


def requests(random: Random, job_id: str) -> Iterator[tuple[bytes, bytes]]:
    """Each header's samples, then mutations of them without end: the request and what is odd about it."""
    for name, values in SAMPLES.items():
        for value in values:
            yield request(random, job_id, name, value)
    names = list(SAMPLES)
    while True:
        name = random.choice(names)
        yield request(random, job_id, name, mutated(random, random.choice(SAMPLES[name])))


def request(random: Random, job_id: str, name: bytes, value: bytes) -> tuple[bytes, bytes]:
    target = random.choice(TARGETS)
    target = target % job_id.encode() if b"%s" in target else target
    fields = {b"Host": b"x"} | {key.encode(): each.encode() for key, each in bearer().items()}
    body = b""
    if target.startswith(b"POST"):
        body = BODY
        fields |= {b"Content-Type": b"application/json", b"Content-Length": b"%d" % len(body)}
    if b"/events" in target:
        fields[b"Connection"] = b"close"
    fields[name] = value
    head = b"".join(b"%s: %s\r\n" % field for field in fields.items())
    return b"%s HTTP/1.1\r\n%s\r\n%s" % (target, head, body), b"%s, %s: %r" % (target, name, value)


class Client:
    """A connection that is kept for as long as the server keeps it."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def status(self, raw: bytes) -> int:
        """The status of the answer; 0 without one, as for a body that was announced longer than it is."""
        if self._streams is None:
            self._streams = await asyncio.open_connection("127.0.0.1", self._port)
        reader, writer = self._streams
        try:
            writer.write(raw)
            async with asyncio.timeout(5):
                head = await reader.readuntil(b"\r\n\r\n")
            found, kept = await self._finished(reader, head)
        except (TimeoutError, asyncio.IncompleteReadError, ConnectionError):
            found, kept = 0, False
        if not kept:
            self.leave()
        return found

    async def _finished(self, reader: asyncio.StreamReader, head: bytes) -> tuple[int, bool]:
        """The status, and whether the connection can be used again: only after a plain body of known length."""
        status, lower = int(head.split()[1]), head.lower()
        if status == 100 or b"content-length: " not in lower or b"connection: close" in lower:
            return status, False
        await reader.readexactly(int(lower.split(b"content-length: ")[1].split(b"\r\n")[0]))
        return status, status < 400

    def leave(self) -> None:
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None


@pytest.mark.parametrize("values", [VALUES])
async def test_no_header_makes_a_5xx_and_the_server_goes_on(
    web_harness: WebHarness, values: int, caplog: pytest.LogCaptureFixture
) -> None:
    random = Random(SEED)  # noqa: S311 - a repeatable fuzz
    ann = await web_harness.client()
    endless = requests(random, await submit(ann))
    found: Counter[int] = Counter()
    wrong: list[bytes] = []
    left = values

    async def client() -> None:
        nonlocal left
        mine = Client(web_harness.port)
        while left > 0:
            left -= 1
            raw, odd = next(endless)
            status = await mine.status(raw)
            found[status] += 1
            if status >= 500:
                wrong.append(odd)
        mine.leave()

    with capture_logs() as lines:
        await asyncio.gather(*(client() for _ in range(CONNECTIONS)))
    print(sorted(found.items()))
    assert not wrong
    assert {line["event"] for line in lines} <= {"request.answered", "requests.unlogged"}
    assert not caplog.records
    async with ann.post("/pipeline/run", json=JOB) as response:
        assert response.status == 202
