"""Cursors: opaque texts that say where the next page of a list begins."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Final
from urllib.parse import urlencode
from uuid import UUID

CURSOR: Final = "^[A-Za-z0-9_-]{21}[AQgw]$"
"""Exactly the base64url texts of the 16 bytes of an id. Every id is a valid place in the caller's own list."""
HISTORY_CURSOR: Final = "^[A-Za-f][A-Za-z0-9_-]{4}[AQgw]$"
"""Exactly the base64url texts of the 4 bytes of a `seq`, which is not negative."""


def cursor_after(job_id: UUID) -> str:
    """The cursor of the page that follows `job_id`."""
    return _text(job_id.bytes)


def job_before(cursor: str) -> UUID:
    """The job after which the page of a `cursor` (one that matches CURSOR) begins."""
    return UUID(bytes=_bytes(cursor))


def cursor_after_seq(seq: int) -> str:
    """The cursor of the page of a history that follows `seq`."""
    return _text(seq.to_bytes(4, "big"))


def seq_before(cursor: str) -> int:
    """The `seq` after which the page of a `cursor` (one that matches HISTORY_CURSOR) begins."""
    return int.from_bytes(_bytes(cursor), "big")


def next_link(path: str, parameters: Mapping[str, object]) -> str:
    """A Link header (RFC 8288) to the next page."""
    given = {name: value for name, value in parameters.items() if value is not None}
    return f'<{path}?{urlencode(given)}>; rel="next"'


def _text(place: bytes) -> str:
    return base64.urlsafe_b64encode(place).decode().rstrip("=")


def _bytes(cursor: str) -> bytes:
    return base64.urlsafe_b64decode(cursor + "==")
