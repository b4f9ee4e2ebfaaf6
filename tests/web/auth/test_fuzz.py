"""Random tokens: each is let in or gets a 401, whatever the JSON types of its header and claims."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from typing import Any

import pytest

from tests.support.web_harness import SECRET, WebHarness
from tests.web.auth.handmade import segment, signed

CASES = 6_000
HEADERS = ("alg", "typ", "cty", "crit", "b64", "kid", "jwk", "jku", "x5u", "x5c", "x5t", "zip", "enc", "")
CLAIMS = ("exp", "nbf", "iat", "sub", "iss", "aud", "jti", "scope", "scp", "roles", "")
TEXTS = (
    "",
    "alg",
    "HS256",
    "none",
    "JWT",
    "at+jwt",
    "jobs:read",
    "ann",
    "1",
    "\x00",
    "\ud800",
    "é",
    "b64",
    "a" * 300,
)


def value(rng: random.Random, depth: int = 0) -> Any:
    match rng.randrange(12 if depth < 3 else 9):
        case 0:
            return None
        case 1:
            return rng.random() < 0.5
        case 2:
            return rng.choice((0, -1, 2**31, 2**63, 10**30, int(time.time()) + 500))
        case 3:
            return rng.choice((0.5, -1e300, 1e308, float("inf"), float("nan"), time.time() + 500))
        case 4 | 5 | 6 | 7 | 8:
            return rng.choice(TEXTS)
        case 9:
            return [value(rng, depth + 1) for _ in range(rng.randrange(4))]
        case _:
            return {rng.choice(HEADERS + CLAIMS): value(rng, depth + 1) for _ in range(rng.randrange(4))}


def spoilt(rng: random.Random, good: dict[str, Any], names: tuple[str, ...]) -> Any:
    """`good` with a few members changed; at times something else altogether."""
    if rng.random() < 0.1:
        return value(rng)
    changed = good | {rng.choice(names): value(rng) for _ in range(rng.randrange(4))}
    if rng.random() < 0.2:
        changed.pop(rng.choice(list(changed)), None)
    return changed


def cut(rng: random.Random, made: str) -> str:
    """The token with some of its characters changed, cut off or put in."""
    at = rng.randrange(len(made) + 1)
    return made[:at] + rng.choice(("", ".", "=", "A", "-", "..", " ")) + made[at + rng.randrange(4) :]


def tokens(seed: int) -> list[str]:
    rng = random.Random(seed)  # noqa: S311 - the same cases each time
    claims = {"sub": "ann", "exp": int(time.time()) + 86_400}
    made = []
    for _ in range(CASES):
        header = spoilt(rng, {"alg": "HS256"}, HEADERS)
        payload = spoilt(rng, claims, CLAIMS)
        secret = SECRET.encode() if rng.random() < 0.9 else b""
        one = signed(header, payload, secret)
        made.append(cut(rng, one) if rng.random() < 0.2 else one)
    return [*made, *(f"{segment(value(rng))}.{segment(value(rng))}.{segment(b'x')}" for _ in range(500))]


@pytest.mark.long
async def test_a_random_token_is_let_in_or_refused_and_nothing_else(shared_harness: WebHarness) -> None:
    client = await shared_harness.client(None)
    waiting = tokens(seed=9)
    statuses: Counter[int] = Counter()

    async def send() -> None:
        while waiting:
            one = waiting.pop()
            async with client.get("/pipeline/jobs", headers={"Authorization": f"Bearer {one}"}) as response:
                statuses[response.status] += 1
                assert response.status in (200, 401, 403), one

    async with asyncio.timeout(120), asyncio.TaskGroup() as group:
        for _ in range(8):
            group.create_task(send())
    assert sum(statuses.values()) == CASES + 500
    assert min(statuses[status] for status in (200, 401, 403)) > 20
