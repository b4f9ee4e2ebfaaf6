"""Clients that submit jobs on a connection each until nobody listens, and know what was accepted."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Mapping
from http.client import HTTPConnection, HTTPException
from typing import Any, Final, LiteralString, Self

import psycopg

from ops.harness.ports import HOST
from ops.harness.tokens import sign
from ops.waiting import eventually

CLIENTS: Final = 4
ANSWER_SECONDS: Final = 30.0
TOKEN_SECONDS: Final = 3600

STORED: LiteralString = "SELECT count(*) FROM jobs WHERE id = ANY (%s::uuid[])"


class Clients:
    """Inside the `with` block they submit to the API at `port`, which verifies tokens by `secret`."""

    def __init__(self, port: int, secret: str) -> None:
        claims: Mapping[str, Any] = {"sub": "ann", "exp": int(time.time()) + TOKEN_SECONDS}
        self._headers = {
            "Authorization": f"Bearer {sign(claims, secret)}",
            "Content-Type": "application/json",
        }
        self._port = port
        self._accepted: list[str] = []
        self._refused: list[int] = []
        self._threads = [threading.Thread(target=self._submit, daemon=True) for _ in range(CLIENTS)]

    def __enter__(self) -> Self:
        for each in self._threads:
            each.start()
        return self

    def __exit__(self, *_: object) -> None:
        for each in self._threads:
            each.join(ANSWER_SECONDS)

    def wait(self, count: int) -> None:
        """Wait until so many jobs are accepted. Raises TimeoutError."""
        if not eventually(lambda: len(self._accepted) >= count):
            raise TimeoutError(f"only {len(self._accepted)} jobs are accepted, and {self._refused} refused")

    def lost(self, conn: psycopg.Connection[tuple[Any, ...]]) -> list[str]:
        """What is wrong once nobody listens any more. Jobs that were accepted are stored, and no answer is an error."""
        for each in self._threads:
            each.join(ANSWER_SECONDS)
        row = conn.execute(STORED, [self._accepted]).fetchone()
        stored = [] if row == (len(self._accepted),) else [f"{row} of {len(self._accepted)} jobs are stored"]
        return stored + [f"an answer {status}" for status in self._refused]

    def _submit(self) -> None:
        body = json.dumps({"preset": "task", "content": "c"})
        while True:
            connection = HTTPConnection(HOST, self._port, timeout=ANSWER_SECONDS)
            try:
                connection.connect()
            except OSError:
                return
            try:
                connection.request("POST", "/pipeline/run", body, self._headers)
                answer = connection.getresponse()
                said = json.loads(answer.read())
            except (OSError, HTTPException, ValueError):
                # Not accepted by any process, or by one that was ended at once.
                continue
            finally:
                connection.close()
            if answer.status == 202:
                self._accepted.append(said["job_id"])
            else:
                self._refused.append(answer.status)
