"""Reads a JWKS document (RFC 7517), and says which of its keys may have signed a token."""

from __future__ import annotations

from codecs import BOM_UTF8
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Any, Final

import orjson
import structlog
from joserfc.jwk import ECKey, OctKey, RSAKey
from joserfc.util import base64_to_int

log = structlog.get_logger()

Key = OctKey | RSAKey | ECKey

KEY_TYPES: Final = {"HS256": "oct", "RS256": "RSA", "ES256": "EC"}
CURVE: Final = "P-256"
MIN_RSA_BITS: Final = 2048
"""RFC 7518 §3.3."""
MAX_KEYS: Final = 256
MAX_TRIED: Final = 32
"""Most keys that are tried for one token: anyone can send a token without a key id."""


def usable(document: bytes) -> list[Key]:
    """The public keys that can verify RS256 or ES256, imported one by one: a broken key must not cost the others.

    Raises ValueError if no key is usable.
    """
    parsed = orjson.loads(document.removeprefix(BOM_UTF8))
    listed = parsed.get("keys") if isinstance(parsed, dict) else None
    verifying = [key for key in listed if _verifies(key)] if isinstance(listed, list) else []
    if len(verifying) > MAX_KEYS:
        log.warning("keys.set_cut", count=len(verifying), kept=MAX_KEYS)
    keys: list[Key] = [key for data in verifying[:MAX_KEYS] if (key := _imported(data)) is not None]
    if not keys:
        raise ValueError("not a JWKS with a usable key")
    return keys


def matching(keys: Iterable[Key], kid: str | None) -> list[Key]:
    """The keys that a token with this key id may name: those with this id first, then those without any.

    RFC 7517 §4.5: the id of a key is optional. A token without a key id may name every key.
    """
    if kid is None:
        return list(keys)
    return sorted((key for key in keys if key.kid in (kid, None)), key=lambda key: key.kid is None)


def fitting(keys: Iterable[Key], algorithm: str) -> Sequence[Key]:
    """The keys that may verify signatures of this algorithm, at most MAX_TRIED."""
    return list(
        islice(
            (
                key
                for key in keys
                if key.key_type == KEY_TYPES[algorithm] and key.get("alg", algorithm) == algorithm
            ),
            MAX_TRIED,
        )
    )


def _verifies(data: Any) -> bool:
    """Whether this member of a set claims to verify signatures of our algorithms. Other keys are no fault."""
    match data:
        case {"use": str(use)} if use != "sig":
            return False
        case {"key_ops": list(operations)} if "verify" not in operations:
            return False
        case {"kty": "RSA"}:
            return True
        case {"kty": "EC", "crv": str(curve)}:
            return curve == CURVE
    return False


def _imported(data: dict[str, Any]) -> RSAKey | ECKey | None:
    """The key, or None if it is broken."""
    try:
        return _public_key(data)
    except Exception as error:  # noqa: BLE001 - joserfc and cryptography raise many kinds for a broken key
        log.warning("keys.key_refused", kid=data.get("kid"), error=f"{type(error).__name__}: {error}")
        return None


def _public_key(data: dict[str, Any]) -> RSAKey | ECKey:
    """The key. Members that are null are absent. Raises whatever a broken key makes joserfc raise, or ValueError."""
    present = {name: value for name, value in data.items() if value is not None}
    if data["kty"] == "EC":
        return ECKey.import_key(present)
    # Before the import, which would print a warning.
    if base64_to_int(data["n"]).bit_length() < MIN_RSA_BITS:
        raise ValueError(f"an RSA key of less than {MIN_RSA_BITS} bits")
    return RSAKey.import_key(present)
