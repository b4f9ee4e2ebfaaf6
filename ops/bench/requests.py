"""A submission as bytes, for clients that must cost nothing."""

from __future__ import annotations

import time
from typing import Any

import orjson
from joserfc import jwt
from joserfc.jwk import OctKey

from ops.bench.processes import HOST, SECRET


def headers() -> dict[str, str]:
    claims: dict[str, Any] = {"sub": "bench", "exp": int(time.time()) + 3600}
    token = jwt.encode({"alg": "HS256"}, claims, OctKey.import_key(SECRET))
    return {"Host": HOST, "Authorization": f"Bearer {token}", "Content-Type": "application/json"}


def body(preset: str) -> bytes:
    """A job with 225 bytes of content, a short paragraph, as server.fill makes them."""
    return orjson.dumps({"preset": preset, "content": "outrider " * 25})


def submission(preset: str) -> bytes:
    """A whole `POST /pipeline/run`."""
    sent = body(preset)
    lines = [f"{name}: {value}" for name, value in headers().items()]
    head = "\r\n".join(["POST /pipeline/run HTTP/1.1", *lines, f"Content-Length: {len(sent)}", "", ""])
    return head.encode() + sent
