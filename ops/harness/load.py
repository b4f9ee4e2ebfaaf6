"""Generates load: the same request again and again on many connections, from a separate process.

`python -m ops.harness.load PORT CONNECTIONS SECONDS STATUS` reads the request from standard input. The load must cost
less than the server that it measures. So it uses a selector and sockets instead of an HTTP client, and parses only
enough of HTTP to find the end of an answer.
"""

from __future__ import annotations

import json
import selectors
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Final, NamedTuple

from ops.harness.ports import HOST
from ops.harness.process import ROOT

WARM_SECONDS: Final = 0.3
SILENCE_SECONDS: Final = 15.0
LENGTH: Final = b"\r\nContent-Length: "


class Load(NamedTuple):
    """The measurement after the warm-up: answers a second, and milliseconds from request to answer.

    `answers` counts all answers, including those of the warm-up.
    """

    rate: float
    p50: float
    p99: float
    answers: int


class Unexpected(Exception):
    """An answer with another status."""


def drive(port: int, connections: int, seconds: float, request: bytes, status: int = 202) -> Load:
    """Run the load in a separate process. Each answer must have this status."""
    arguments = [str(port), str(connections), str(seconds), str(status)]
    ran = subprocess.run(
        [sys.executable, "-m", "ops.harness.load", *arguments],
        input=request,
        stdout=subprocess.PIPE,
        cwd=ROOT,
        check=True,
        start_new_session=True,
        timeout=seconds + 2 * SILENCE_SECONDS,
    )
    return Load(*json.loads(ran.stdout))


def percentile(samples: Sequence[float], share: float) -> float:
    """The smallest sample that `share` of them do not exceed."""
    ordered = sorted(samples)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


class _Client:
    """One connection in a closed loop: the next request is sent when the last answer has come."""

    def __init__(self, port: int, request: bytes, status: int) -> None:
        self.socket = socket.create_connection((HOST, port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._request = request
        self._expected = b"HTTP/1.1 %d " % status
        self._received = b""
        self.sent = 0.0

    def send(self) -> None:
        self.sent = time.perf_counter()
        self.socket.sendall(self._request)

    def answered(self) -> bool:
        """Read from the socket. True if the answer is complete. Raises Unexpected."""
        self._received += self.socket.recv(65_536)
        head, end, body = self._received.partition(b"\r\n\r\n")
        if not head.startswith(self._expected):
            raise Unexpected(self._received.decode(errors="replace"))
        if not end:
            return False
        begin = head.index(LENGTH) + len(LENGTH)
        stop = head.find(b"\r\n", begin)
        if len(body) < int(head[begin : stop if stop >= 0 else None]):
            return False
        self._received = b""
        return True


def _loop(port: int, connections: int, seconds: float, status: int, request: bytes) -> Load:
    selector = selectors.DefaultSelector()
    for _ in range(connections):
        client = _Client(port, request, status)
        selector.register(client.socket, selectors.EVENT_READ, client)
        client.send()
    begin = time.perf_counter() + WARM_SECONDS
    end = begin + seconds
    taken: list[float] = []
    answers = 0
    while time.perf_counter() < end:
        ready = selector.select(SILENCE_SECONDS)
        if not ready:
            raise Unexpected(f"no answer within {SILENCE_SECONDS:g} s")
        for key, _ in ready:
            client = key.data
            if client.answered():
                answers += 1
                now = time.perf_counter()
                if begin <= now < end:
                    taken.append(now - client.sent)
                client.send()
    return Load(len(taken) / seconds, 1000 * percentile(taken, 0.5), 1000 * percentile(taken, 0.99), answers)


if __name__ == "__main__":
    port, connections, seconds, status = sys.argv[1:]
    load = _loop(int(port), int(connections), float(seconds), int(status), sys.stdin.buffer.read())
    print(json.dumps(load))
