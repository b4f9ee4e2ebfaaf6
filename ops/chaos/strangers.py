"""Clients without a token, each kind a process of its own: `python -m ops.chaos.strangers bombs|silent|probe …`."""

from __future__ import annotations

import asyncio
import os
import resource
import socket
import sys
import time
import zlib
from typing import Final

import orjson

HOST: Final = "127.0.0.1"
MIB: Final = 1 << 20
INFLATED_MIB: Final = 900
BODY_BYTES: Final = 3 * MIB
CLIENTS: Final = 8
REOPENED_AT_ONCE: Final = 50
REOPEN_SECONDS: Final = 0.1
PROBE_SECONDS: Final = 0.05
PATIENCE_SECONDS: Final = 10.0
HEALTH: Final = b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"


def bomb() -> bytes:
    """About 3 MB of gzip that inflate to 900 MiB: zeros, and then noise."""
    packer = zlib.compressobj(9, zlib.DEFLATED, 16 + zlib.MAX_WBITS)
    zeros = bytes(MIB)
    packed = b"".join(packer.compress(zeros) for _ in range(INFLATED_MIB))
    return packed + packer.compress(os.urandom(BODY_BYTES - len(packed))) + packer.flush()


async def bombs(port: int, seconds: float) -> dict[str, int]:
    """Post the bomb over and over. Returns how many answers there were of each first line."""
    body = bomb()
    head = (
        "POST /pipeline/batch HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Encoding: gzip\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    ).encode()
    counts: dict[str, int] = {}
    end = time.monotonic() + seconds

    async def client() -> None:
        while time.monotonic() < end:
            said = await _said(port, head + body)
            counts[said] = counts.get(said, 0) + 1

    await asyncio.gather(*(client() for _ in range(CLIENTS)))
    return counts


async def _said(port: int, request: bytes) -> str:
    """The first line of the answer, or the name of the error."""
    try:
        async with asyncio.timeout(PATIENCE_SECONDS):
            reader, writer = await asyncio.open_connection(HOST, port)
            try:
                writer.write(request)
                return (await reader.readline()).decode().strip() or "closed"
            finally:
                writer.transport.abort()
    except OSError as error:
        return type(error).__name__


def silent(port: int, seconds: float, wanted: int) -> dict[str, int]:
    """Hold `wanted` connections that say nothing, and open those again that the server closes, 500 a second."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    end = time.monotonic() + seconds
    held = [_connecting(port) for _ in range(wanted)]
    opened = wanted
    while time.monotonic() < end:
        time.sleep(REOPEN_SECONDS)
        closed = [number for number, each in enumerate(held) if _is_closed(each)]
        for number in closed[:REOPENED_AT_ONCE]:
            held[number].close()
            held[number] = _connecting(port)
            opened += 1
    return {"opened": opened, "held": sum(not _is_closed(each) for each in held)}


def _connecting(port: int) -> socket.socket:
    each = socket.socket()
    each.setblocking(False)
    each.connect_ex((HOST, port))
    return each


def _is_closed(each: socket.socket) -> bool:
    try:
        return each.recv(1) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True


def probe(port: int, seconds: float) -> dict[str, list[float] | int]:
    """Ask for /healthz on a new connection, 20 times a second. Returns the milliseconds of each, and the failures."""
    end = time.monotonic() + seconds
    took: list[float] = []
    failed = 0
    while time.monotonic() < end:
        began = time.monotonic()
        try:
            with socket.create_connection((HOST, port), PATIENCE_SECONDS) as conn:
                conn.sendall(HEALTH)
                failed += not conn.recv(64).startswith(b"HTTP/1.1 200")
        except OSError:
            failed += 1
        took.append((time.monotonic() - began) * 1000)
        time.sleep(PROBE_SECONDS)
    return {"took": took, "failed": failed}


def main(kind: str, port: str, seconds: str, *more: str) -> None:
    given = int(port), float(seconds)
    found: object
    match kind:
        case "bombs":
            found = asyncio.run(bombs(*given))
        case "silent":
            found = silent(*given, int(more[0]))
        case _:
            found = probe(*given)
    print(orjson.dumps(found).decode())


if __name__ == "__main__":
    main(*sys.argv[1:])
