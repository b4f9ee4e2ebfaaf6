"""Tokens made by hand, for headers and claims that no library would write."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
from typing import Any

from tests.support.web_harness import SECRET

PRESETS = "/pipeline/presets"


def segment(value: Any) -> str:
    raw = value if isinstance(value, bytes) else json.dumps(value).encode()
    return base64.urlsafe_b64encode(raw).decode().rstrip("=")


def signed(header: Any, claims: Any, secret: bytes = SECRET.encode()) -> str:
    """A token of this header and these claims. Bytes are not made JSON."""
    message = f"{segment(header)}.{segment(claims)}"
    return f"{message}.{segment(hmac.digest(secret, message.encode(), hashlib.sha256))}"


GOOD = {"sub": "ann", "exp": int(time.time()) + 86_400}
HS = {"alg": "HS256"}
