"""Key sets: cached, renewed, rotated, and outliving an issuer that cannot be reached."""

from __future__ import annotations

import asyncio
from typing import Any

import orjson
import pytest
from joserfc.jwk import ECKey

from engine.errors import ConfigurationError, KeysUnavailable
from engine.settings import load
from ops.waiting import until
from web.auth import keys
from web.auth.keys import Jwks, open_keys

OLD = ECKey.generate_key("P-256", {"kid": "old"}, private=True)
NEW = ECKey.generate_key("P-256", {"kid": "new"}, private=True)


def document(*listed: Any) -> bytes:
    return orjson.dumps(
        {"keys": [key if isinstance(key, dict) else key.as_dict(private=False) for key in listed]}
    )


class Issuer:
    """A source of key sets that counts, fails and waits as its test says; with a clock that tests move."""

    def __init__(self, *listed: Any) -> None:
        self.body: bytes | Exception = document(*listed)
        self.fetches = 0
        self.now = 1000.0
        self.gate = asyncio.Event()
        self.gate.set()

    async def fetch(self) -> bytes:
        self.fetches += 1
        await self.gate.wait()
        if isinstance(self.body, Exception):
            raise self.body
        return self.body

    def jwks(self) -> Jwks:
        return Jwks(self.fetch, clock=lambda: self.now)


async def kids(jwks: Jwks, kid: str | None) -> list[Any]:
    return [key.kid for key in await jwks.find(kid)]


async def test_one_fetch_serves_all_who_wait_and_all_who_come_while_it_is_fresh() -> None:
    issuer = Issuer(OLD)
    jwks = issuer.jwks()
    issuer.gate.clear()
    waiting = [asyncio.create_task(kids(jwks, "old")) for _ in range(50)]
    await until(lambda: issuer.fetches == 1)
    issuer.gate.set()
    assert await asyncio.gather(*waiting) == [["old"]] * 50
    issuer.now += keys.FRESH_SECONDS
    assert await kids(jwks, None) == ["old"]
    assert issuer.fetches == 1


async def test_one_waiter_that_gives_up_does_not_cost_the_others_their_keys() -> None:
    issuer = Issuer(OLD)
    jwks = issuer.jwks()
    issuer.gate.clear()
    first, second = asyncio.create_task(kids(jwks, "old")), asyncio.create_task(kids(jwks, "old"))
    await until(lambda: issuer.fetches == 1)
    first.cancel()
    issuer.gate.set()
    assert await second == ["old"]


async def test_an_old_set_is_renewed_behind_the_requests_back() -> None:
    issuer = Issuer(OLD)
    jwks = issuer.jwks()
    assert await kids(jwks, "old") == ["old"]
    issuer.now += keys.FRESH_SECONDS + 1
    issuer.gate.clear()
    assert await kids(jwks, "old") == ["old"]
    issuer.body = document(NEW)
    issuer.gate.set()
    await until(lambda: issuer.fetches == 2)
    assert await kids(jwks, "new") == ["new"]
    assert await kids(jwks, "old") == []


async def test_an_unknown_key_id_is_fetched_for_but_no_more_often_than_each_10_seconds() -> None:
    issuer = Issuer(OLD)
    jwks = issuer.jwks()
    await kids(jwks, "old")
    issuer.body = document(OLD, NEW)
    assert await kids(jwks, "new") == ["new"]
    assert issuer.fetches == 2
    for n in range(100):
        assert await kids(jwks, f"invented-{n}") == []
    assert issuer.fetches == 2
    issuer.now += keys.UNKNOWN_SECONDS
    assert await kids(jwks, "invented") == []
    assert issuer.fetches == 3


async def test_an_unreachable_issuers_keys_are_used_for_a_day_and_no_longer() -> None:
    issuer = Issuer(OLD)
    jwks = issuer.jwks()
    await kids(jwks, "old")
    for failure in (OSError("unreachable"), ValueError("500"), TimeoutError()):
        issuer.body = failure
        issuer.now += keys.STALE_SECONDS / 4
        assert await kids(jwks, "old") == ["old"]
    issuer.body = b'{"keys": []}'
    issuer.now += keys.STALE_SECONDS / 4
    assert await kids(jwks, "old") == ["old"]
    issuer.now += 1
    with pytest.raises(KeysUnavailable):
        await jwks.find("old")
    issuer.now += keys.MISSING_SECONDS
    issuer.body = document(OLD)
    assert await kids(jwks, "old") == ["old"]


async def test_whatever_an_issuer_answers_its_last_keys_are_kept() -> None:
    issuer = Issuer(OLD)
    jwks = issuer.jwks()
    assert await kids(jwks, "old") == ["old"]
    answers: list[bytes | Exception] = [b"[" * 100_000, b'{"keys": 7}', RecursionError(), TypeError("a bug")]
    for answer in answers:
        issuer.body = answer
        issuer.now += keys.UNKNOWN_SECONDS
        assert await kids(jwks, "new") == []
        assert await kids(jwks, "old") == ["old"]


async def test_a_key_without_an_id_may_have_signed_any_token_and_is_tried_last() -> None:
    nameless = ECKey.generate_key("P-256", private=True).as_dict(private=False)
    nameless.pop("kid", None)
    for unnamed in (nameless, nameless | {"kid": None}):
        jwks = Issuer(unnamed, OLD).jwks()
        assert await kids(jwks, "new") == [None]
        assert await kids(jwks, "old") == ["old", None]
        assert await kids(jwks, None) == [None, "old"]


async def newer(jwks: Jwks, kid: str | None) -> list[Any]:
    return [key.get("x") for key in await jwks.find_newer(kid)]


ROTATED = ECKey.generate_key("P-256", {"kid": "old"}, private=True)


async def test_a_key_rotated_under_its_id_is_fetched_for_but_no_more_often_than_each_10_seconds() -> None:
    issuer = Issuer(OLD)
    jwks = issuer.jwks()
    await kids(jwks, "old")
    issuer.body = document(ROTATED)
    assert await newer(jwks, "old") == [ROTATED.get("x")]
    assert issuer.fetches == 2
    issuer.body = document(OLD)
    for _ in range(100):
        assert await newer(jwks, "old") == []
    assert issuer.fetches == 2
    issuer.now += keys.UNKNOWN_SECONDS
    assert await newer(jwks, "old") == [OLD.get("x")]
    assert issuer.fetches == 3


async def test_a_key_rotated_just_after_a_renewal_is_fetched_for() -> None:
    issuer = Issuer(OLD)
    jwks = issuer.jwks()
    await kids(jwks, "old")
    issuer.now += keys.FRESH_SECONDS + 1
    await kids(jwks, "old")
    await until(lambda: issuer.fetches == 2 and jwks._renewal is None)
    issuer.body = document(ROTATED)
    assert await newer(jwks, "old") == [ROTATED.get("x")]
    assert issuer.fetches == 3


async def test_no_key_is_tried_twice_while_the_set_is_the_same_or_its_issuer_away() -> None:
    issuer = Issuer(OLD)
    jwks = issuer.jwks()
    await kids(jwks, "old")
    for body in (document(OLD), OSError("unreachable"), b"<html>"):
        issuer.body = body
        issuer.now += keys.UNKNOWN_SECONDS
        assert await newer(jwks, "old") == []
    assert issuer.fetches == 4
    assert await kids(jwks, "old") == ["old"]


async def test_many_whom_no_key_verifies_share_one_fetch_and_nobody_else_waits_for_it() -> None:
    issuer = Issuer(OLD)
    jwks = issuer.jwks()
    await kids(jwks, "old")
    issuer.now += keys.UNKNOWN_SECONDS
    issuer.gate.clear()
    issuer.body = document(ROTATED)
    waiting = [asyncio.create_task(newer(jwks, "old")) for _ in range(50)]
    await until(lambda: issuer.fetches == 2)
    async with asyncio.timeout(5):
        assert await kids(jwks, "old") == ["old"]
    issuer.gate.set()
    assert await asyncio.gather(*waiting) == [[ROTATED.get("x")]] * 50
    assert issuer.fetches == 2


async def test_without_any_set_a_fetch_is_tried_each_second_at_most() -> None:
    issuer = Issuer(OLD)
    issuer.body = OSError("unreachable")
    jwks = issuer.jwks()
    for _ in range(20):
        with pytest.raises(KeysUnavailable):
            await jwks.find("old")
    assert issuer.fetches == 1


async def test_settings_without_any_key_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="OUTRIDER_JWT_SECRET"):
        async with open_keys(load({})):
            pass
