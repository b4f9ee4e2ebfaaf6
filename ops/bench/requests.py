"""Requests as bytes, for clients that must cost little."""

from __future__ import annotations

import time
from typing import Any
from uuid import UUID

import orjson

from ops.bench.processes import SECRET
from ops.harness.ports import HOST
from ops.harness.tokens import sign


def headers() -> dict[str, str]:
    claims: dict[str, Any] = {"sub": "bench", "exp": int(time.time()) + 3600}
    token = sign(claims, SECRET)
    return {"Host": HOST, "Authorization": f"Bearer {token}", "Content-Type": "application/json"}


def body(preset: str) -> bytes:
    """A job with 225 bytes of content, a short paragraph, as server.fill makes them."""
    return orjson.dumps({"preset": preset, "content": "outrider " * 25})


def submission(preset: str) -> bytes:
    """A whole `POST /pipeline/run`."""
    return _whole("POST /pipeline/run", body(preset))


def batch(preset: str, jobs: int) -> bytes:
    """A whole `POST /pipeline/batch`."""
    return _whole("POST /pipeline/batch", b'{"jobs":[%s]}' % b",".join([body(preset)] * jobs))


def read(job_id: UUID) -> bytes:
    """A whole `GET /pipeline/job/{job_id}`."""
    return _whole(f"GET /pipeline/job/{job_id}", b"")


def _whole(asked: str, sent: bytes) -> bytes:
    lines = [f"{name}: {value}" for name, value in headers().items()]
    head = "\r\n".join([f"{asked} HTTP/1.1", *lines, f"Content-Length: {len(sent)}", "", ""])
    return head.encode() + sent
