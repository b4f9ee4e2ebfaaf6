"""Authentication: turns bearer tokens (JWT, RFC 7519) into callers with an owner and scopes."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Final

from joserfc import jwt
from joserfc.jws import CompactSignature, JWSRegistry, extract_compact, validate_compact

from engine.settings import Settings
from engine.telemetry import metrics
from engine.text import text_fault
from web.auth.key_set import fitting
from web.auth.keys import Keys
from web.problems import Refused

READ: Final = "jobs:read"
WRITE: Final = "jobs:write"
ADMIN: Final = "jobs:admin"

MAX_TOKEN: Final = 8192
LEEWAY_SECONDS: Final = 30
CACHE_SECONDS: Final = 60.0
CACHE_SIZE: Final = 10_000
TYPES: Final = frozenset({"jwt", "at+jwt"})
"""Media types of tokens that grant access (RFC 7519 §5.1, RFC 9068 §2.1). Other types are for other uses."""
LATEST: Final = 253_402_300_799
"""The end of the year 9999: later times do not fit every number."""


@dataclass(frozen=True, slots=True)
class Caller:
    """The caller that a token names. `sees` is the owner to which reads and moves are restricted; None means any.

    `expires_at` is the time, in seconds since 1970, from which the token is refused: its expiry and the leeway.
    """

    owner: str
    scopes: frozenset[str]
    expires_at: float = math.inf

    @property
    def admin(self) -> bool:
        return ADMIN in self.scopes

    @property
    def sees(self) -> str | None:
        return None if self.admin else self.owner

    @property
    def seconds_left(self) -> float:
        return self.expires_at - time.time()

    def require(self, scope: str) -> None:
        if scope not in self.scopes and not self.admin:
            metrics.AUTH_FAILURES.labels("scope").inc()
            raise Refused(
                HTTPStatus.FORBIDDEN,
                f"This operation needs the scope {scope}.",
                headers={
                    "WWW-Authenticate": f'Bearer realm="outrider", error="insufficient_scope", scope="{scope}"'
                },
            )


ANYONE: Final = Caller("", frozenset())


class BadToken(Exception):
    """A token is refused; `str(self)` says why, and may be shown to the caller."""


class Authenticator:
    """Verifies tokens. Caches valid tokens for a minute: a signature costs more than the rest of a request.

    So a token outlives the removal of its key from the set by at most CACHE_SECONDS.
    """

    def __init__(self, keys: Keys, settings: Settings) -> None:
        self._keys = keys
        self._algorithms = settings.algorithms
        self._registry = JWSRegistry(algorithms=self._algorithms, strict_check_header=False)
        self._registry.max_header_length = 4096
        required: dict[str, Any] = {"exp": {"essential": True}, "sub": {"essential": True}}
        if settings.jwt_issuer:
            required["iss"] = {"essential": True, "value": settings.jwt_issuer}
        if settings.jwt_audience:
            required["aud"] = {"essential": True, "value": settings.jwt_audience}
        self._claims = jwt.JWTClaimsRegistry(leeway=LEEWAY_SECONDS, **required)
        self._known: dict[str, tuple[Caller, float]] = {}

    async def caller(self, authorization: Sequence[str]) -> Caller:
        """The caller that the request's Authorization header names. Raises Refused (401) or KeysUnavailable."""
        if len(authorization) != 1:
            raise _unauthorized("A bearer token is required.")
        try:
            # Remembered by the token: one user could pad the header in thousands of ways, and displace all others.
            token = _token(authorization[0])
            caller, until = self._known.pop(token, (ANYONE, 0.0))
            if time.time() >= until:
                caller = await self._verified(token)
                until = min(caller.expires_at, time.time() + CACHE_SECONDS)
        except BadToken as error:
            raise _unauthorized(str(error), invalid=True) from error
        if len(self._known) >= CACHE_SIZE:
            del self._known[next(iter(self._known))]
        self._known[token] = caller, until
        return caller

    async def _verified(self, token: str) -> Caller:
        signed = self._parsed(token)
        if not await self._is_signed(signed):
            raise BadToken("The token's signature cannot be verified.")
        try:
            claims = json.loads(signed.payload)
        except (ValueError, RecursionError) as error:
            raise BadToken("The token's claims are not JSON.") from error
        if not isinstance(claims, dict):
            raise BadToken("The token's claims are not a JSON object.")
        try:
            self._claims.validate(claims)
        except Exception as error:
            # joserfc raises TypeError and OverflowError, too, for claims of odd types.
            raise BadToken(f"The token's claims are invalid: {error}") from error
        return _caller(claims)

    def _parsed(self, token: str) -> CompactSignature:
        try:
            signed = extract_compact(token.encode(), registry=self._registry)
        except Exception as error:
            raise BadToken("The token is not a JWT.") from error
        header: Any = signed.headers()
        if not isinstance(header, dict):
            raise BadToken("The token's header is not a JSON object.")
        if header.get("alg") not in self._algorithms:
            raise BadToken("The token's algorithm is not accepted.")
        _check_header(header)
        try:
            self._registry.check_header(header)
        except Exception as error:
            raise BadToken(f"The token's header is invalid: {error}") from error
        return signed

    async def _is_signed(self, signed: CompactSignature) -> bool:
        """Whether a key verifies the signature. A set that has none may be older than the key."""
        algorithm, kid = signed.headers()["alg"], signed.headers().get("kid")
        for find in (self._keys.find, self._keys.find_newer):
            for key in fitting(await find(kid), algorithm):
                try:
                    if validate_compact(signed, key, self._algorithms, self._registry):
                        return True
                except Exception:  # noqa: BLE001, S112 - joserfc raises many kinds; the next key may fit
                    continue
        return False


def _check_header(header: Mapping[str, Any]) -> None:
    """Raise BadToken if the header asks for what we do not do, or says that the token is for another use."""
    if "typ" in header and _media_type(header["typ"]) not in TYPES:
        raise BadToken("The token's type (typ) is not accepted: it must be JWT or at+jwt, or left out.")
    if "cty" in header and _media_type(header["cty"]) == "jwt":
        raise BadToken("Nested tokens are not accepted.")
    # RFC 7515 §4.1.11: an extension that is not understood must be refused, and we understand none.
    if "crit" in header:
        raise BadToken("The token's critical header parameters (crit) are not understood.")


def _media_type(value: Any) -> str | None:
    """A media type of a header, in lower case and without `application/`, which may be left out (RFC 7515 §4.1.9)."""
    return value.lower().removeprefix("application/") if isinstance(value, str) else None


def _caller(claims: Mapping[str, Any]) -> Caller:
    """The caller of valid claims. Raises BadToken if the owner or the scopes cannot be used."""
    owner = claims["sub"]
    if not 1 <= len(owner) <= 255 or text_fault(owner):
        raise BadToken("The token's sub must be 1 to 255 storable characters.")
    # In whole seconds, because joserfc compares with those.
    expires_at = min(math.ceil(claims["exp"]), LATEST) + LEEWAY_SECONDS
    return Caller(owner, _scopes(claims), expires_at)


def _scopes(claims: Mapping[str, Any]) -> frozenset[str]:
    """The scopes in `scope` (RFC 9068 §2.2.3), else in `scp` (Entra ID, Okta). Without both claims: read and write."""
    match claims:
        case {"scope": str(scope)}:
            found = scope.split(" ")
        case {"scope": _}:
            raise BadToken("The token's scope is not a string.")
        case {"scp": str(scope)}:
            found = scope.split(" ")
        case {"scp": list(scopes)} if all(isinstance(each, str) for each in scopes):
            found = scopes
        case {"scp": _}:
            raise BadToken("The token's scp is neither a string nor a list of strings.")
        case _:
            found = [READ, WRITE]
    return frozenset(found) - {""}


def _token(authorization: str) -> str:
    scheme, _, token = authorization.partition(" ")
    token = token.strip()
    if scheme.lower() != "bearer" or not token:
        raise BadToken("The Authorization header contains no bearer token.")
    if len(token) > MAX_TOKEN or not token.isascii():
        raise BadToken("The token is too long or not ASCII.")
    return token


def _unauthorized(detail: str, *, invalid: bool = False) -> Refused:
    metrics.AUTH_FAILURES.labels("invalid" if invalid else "missing").inc()
    challenge = 'Bearer realm="outrider"' + (', error="invalid_token"' if invalid else "")
    return Refused(HTTPStatus.UNAUTHORIZED, detail, headers={"WWW-Authenticate": challenge})
