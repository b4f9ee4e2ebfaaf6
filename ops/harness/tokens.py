"""Signs tokens, as an issuer does."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from joserfc import jwt
from joserfc.jwk import Key, OctKey


def sign(
    claims: Mapping[str, Any],
    key: str | Key,
    *,
    algorithm: str = "HS256",
    header: Mapping[str, Any] | None = None,
) -> str:
    """A JWT (RFC 7519) of these claims; a `key` that is text is an HS256 secret."""
    imported = OctKey.import_key(key) if isinstance(key, str) else key
    return jwt.encode({"alg": algorithm, **(header or {})}, dict(claims), imported, [algorithm])
