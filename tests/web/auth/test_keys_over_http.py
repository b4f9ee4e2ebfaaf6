"""Key sets of an issuer that answers over HTTP: rotation, silence, and readiness."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable

import pytest
from aiohttp import web
from joserfc.jwk import ECKey

from engine.errors import KeysUnavailable
from ops.waiting import until
from tests.support.web_harness import bearer, served, settings
from tests.web.auth.test_keys import NEW, OLD, ROTATED, document
from web.auth import keys
from web.auth.jwks_sources import MAX_BYTES
from web.auth.keys import open_keys


class Endpoint:
    def __init__(self) -> None:
        self.response: Callable[[], web.Response] = lambda: web.Response(body=document(OLD))
        self.requests = 0

    async def handle(self, _request: web.Request) -> web.Response:
        self.requests += 1
        return self.response()


@pytest.fixture
async def endpoint() -> AsyncIterator[tuple[Endpoint, str]]:
    made = Endpoint()
    app = web.Application()
    app.router.add_get("/{path:.*}", made.handle)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield made, f"http://127.0.0.1:{runner.addresses[0][1]}/jwks"
    await runner.cleanup()


async def test_a_token_signed_after_a_rotation_is_accepted(
    endpoint: tuple[Endpoint, str], database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, url = endpoint
    monkeypatch.setattr(keys, "UNKNOWN_SECONDS", 0.0)
    async with served(database_url, jwks_url=url) as web_harness:
        client = await web_harness.client(None)

        async def status(key: ECKey) -> int:
            headers = bearer(key=key, alg="ES256", header={"kid": key.kid})
            async with client.get("/pipeline/presets", headers=headers) as response:
                return int(response.status)

        assert await status(OLD) == 200
        assert await status(NEW) == 401
        made.response = lambda: web.Response(body=document(NEW))
        assert await status(NEW) == 200
        made.response = lambda: web.Response(status=500)
        assert await status(NEW) == 200


async def test_503_while_no_key_set_was_ever_reached(
    endpoint: tuple[Endpoint, str], database_url: str
) -> None:
    made, url = endpoint
    made.response = lambda: web.Response(status=404)
    async with served(database_url, jwks_url=url) as web_harness:
        client = await web_harness.client("ann", key=OLD, alg="ES256")
        async with client.get("/pipeline/presets") as response:
            assert response.status == 503
            assert response.headers["Retry-After"]


async def test_redirects_are_not_followed_and_large_sets_not_read(endpoint: tuple[Endpoint, str]) -> None:
    made, url = endpoint
    for response in (
        lambda: web.Response(status=302, headers={"Location": url + "2"}),
        lambda: web.Response(body=document(OLD) + b" " * MAX_BYTES),
    ):
        made.response = response
        made.requests = 0
        async with open_keys(settings(jwks_url=url)) as opened:
            with pytest.raises(KeysUnavailable):
                await opened.find("old")
        assert made.requests == 1


async def test_a_key_rotated_under_its_id_is_accepted_while_junk_signatures_come(
    endpoint: tuple[Endpoint, str], database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, url = endpoint
    monkeypatch.setattr(keys, "UNKNOWN_SECONDS", 0.0)
    stranger = ECKey.generate_key("P-256", {"kid": "old"}, private=True)
    async with served(database_url, jwks_url=url) as web_harness:
        client = await web_harness.client(None)

        async def status(key: ECKey) -> int:
            headers = bearer(key=key, alg="ES256", header={"kid": "old"})
            async with client.get("/pipeline/presets", headers=headers) as response:
                return int(response.status)

        assert await status(OLD) == 200
        assert await status(stranger) == 401
        made.response = lambda: web.Response(body=document(ROTATED))
        assert await status(ROTATED) == 200
        assert await status(OLD) == 401
        assert await status(stranger) == 401


async def test_junk_signatures_fetch_the_keys_once_and_not_again_soon(
    endpoint: tuple[Endpoint, str], database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keys, "UNKNOWN_SECONDS", 60.0)
    made, url = endpoint
    stranger = ECKey.generate_key("P-256", private=True)
    async with served(database_url, jwks_url=url) as web_harness:
        client = await web_harness.client(None)
        await until(lambda: made.requests == 1)
        for n in range(50):
            headers = bearer(key=stranger, alg="ES256", header={"kid": "old" if n % 2 else f"kid-{n}"})
            async with client.get("/pipeline/presets", headers=headers) as response:
                assert response.status == 401
    assert made.requests == 2


async def test_not_ready_until_the_issuer_has_answered_once(
    endpoint: tuple[Endpoint, str], database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first set is fetched although no request comes: no balancer sends any to a process that is not ready."""
    made, url = endpoint
    monkeypatch.setattr(keys, "MISSING_SECONDS", 0.0)
    made.response = lambda: web.Response(text="<html>not yet</html>", content_type="text/html")
    async with served(database_url, jwks_url=url) as web_harness:
        client = await web_harness.client(None)

        async def readiness() -> tuple[int, str]:
            async with client.get("/readyz") as response:
                return response.status, (await response.json())["checks"]["keys"]

        assert await readiness() == (503, "no key set is loaded: see keys.load_failed in the log")
        made.response = lambda: web.Response(body=document(OLD))
        assert await readiness() == (200, "ok")
        made.response = lambda: web.Response(status=500)
        assert await readiness() == (200, "ok")
