"""Authentication: turns bearer tokens (JWT, RFC 7519) into callers with an owner and scopes."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Final

from joserfc import jwt
from joserfc.jws import JWSRegistry, extract_compact

from engine.settings import Settings
from engine.telemetry import metrics
from engine.text import text_fault
from web.auth.keys import Key, Keys
from web.problems import Refused

READ: Final = "jobs:read"
WRITE: Final = "jobs:write"
ADMIN: Final = "jobs:admin"

MAX_TOKEN: Final = 8192
LEEWAY_SECONDS: Final = 30
CACHE_SECONDS: Final = 60.0
CACHE_SIZE: Final = 10_000
KEY_TYPES: Final = {"HS256": "oct", "RS256": "RSA", "ES256": "EC"}


@dataclass(frozen=True, slots=True)
class Caller:
    """The caller that a token names. `sees` is the owner to which reads and moves are restricted; None means any."""

    owner: str
    scopes: frozenset[str]

    @property
    def admin(self) -> bool:
        return ADMIN in self.scopes

    @property
    def sees(self) -> str | None:
        return None if self.admin else self.owner

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
    """Verifies tokens. Caches valid tokens for a minute: a signature costs more than the rest of a request."""

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
        known = self._known.get(authorization[0])
        if known is not None and time.time() < known[1]:
            return known[0]
        try:
            caller, until = await self._verified(_token(authorization[0]))
        except BadToken as error:
            self._known.pop(authorization[0], None)
            raise _unauthorized(str(error), invalid=True) from error
        if len(self._known) >= CACHE_SIZE:
            del self._known[next(iter(self._known))]
        self._known[authorization[0]] = (caller, until)
        return caller

    async def _verified(self, token: str) -> tuple[Caller, float]:
        keys = await self._candidates(token)
        claims = self._decoded(token, keys)
        owner = claims["sub"]
        if not 1 <= len(owner) <= 255 or text_fault(owner):
            raise BadToken("The token's sub must be 1 to 255 storable characters.")
        scope = claims.get("scope", f"{READ} {WRITE}")
        if not isinstance(scope, str):
            raise BadToken("The token's scope is not a string.")
        until = min(claims["exp"] + LEEWAY_SECONDS, time.time() + CACHE_SECONDS)
        return Caller(owner, frozenset(scope.split())), until

    async def _candidates(self, token: str) -> list[Key]:
        try:
            header = extract_compact(token.encode(), registry=self._registry).headers()
        except Exception as error:
            raise BadToken("The token is not a JWT.") from error
        algorithm, kid = header.get("alg"), header.get("kid")
        if algorithm not in self._algorithms:
            raise BadToken("The token's algorithm is not accepted.")
        if kid is not None and not isinstance(kid, str):
            raise BadToken("The token's key id is not a string.")
        return [
            key
            for key in await self._keys.find(kid)
            if key.key_type == KEY_TYPES[algorithm] and key.get("alg", algorithm) == algorithm
        ]

    def _decoded(self, token: str, keys: Sequence[Key]) -> dict[str, Any]:
        for key in keys:
            try:
                claims = jwt.decode(token, key, algorithms=self._algorithms, registry=self._registry).claims
            except Exception:  # noqa: BLE001, S112 - joserfc raises many kinds; without a key id the next key may fit
                continue
            try:
                self._claims.validate(claims)
            except Exception as error:
                # joserfc raises TypeError and OverflowError, too, for claims of odd types.
                raise BadToken(f"The token's claims are invalid: {error}") from error
            return claims
        raise BadToken("The token's signature cannot be verified.")


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
