"""What a pipeline reports while it runs, made fit to be stored and shown."""

from __future__ import annotations

import math
from typing import Final

MAX_MESSAGE: Final = 500


def clamped(fraction: float, message: str) -> tuple[float, str]:
    """The fraction within 0..1, and the message as PostgreSQL can store it. Raises whatever an author's object does."""
    share, text = float(fraction), storable(message)
    return (min(max(share, 0.0), 1.0) if math.isfinite(share) else 0.0), text


def storable(text: object) -> str:
    """`str(text)` of at most MAX_MESSAGE characters, without NUL and lone surrogates."""
    return str(text)[:MAX_MESSAGE].replace("\0", "").encode(errors="replace").decode()
