"""JSON text of schemas. Authors' models may have bounds that orjson does not write, or JSON does not know."""

from __future__ import annotations

import json
import math
from typing import Any


def schema_text(schema: Any) -> bytes:
    """The schema as JSON. Integers may exceed 64 bits. A bound of infinity bounds nothing and is left out."""
    return json.dumps(_finite(schema), ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items() if not _infinite(each)}
    if isinstance(value, list):
        return [_finite(each) for each in value if not _infinite(each)]
    return value


def _infinite(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)
