"""Tokens: who is let in, as whom, and what hostile ones get."""

from __future__ import annotations

import re
import time
from typing import Any

import orjson
import pytest
from joserfc.jwk import ECKey, OctKey, RSAKey

from tests.support.web_harness import JOB, SECRET, WebHarness, served, settings, submit, token
from tests.web.auth.handmade import GOOD, HS, PRESETS, segment, signed
from web.auth.keys import Secret
from web.auth.tokens import Authenticator
from web.problems import Refused

RSA = RSAKey.generate_key(2048, private=True)
EC = ECKey.generate_key("P-256", private=True)


public_pem = RSA.as_pem(private=False)


def bad_tokens() -> dict[str, str]:
    """Made anew for each test: some depend on the time, and a long session is older than they may be."""
    return {
        "not a token": "hello",
        "two parts": "a.b",
        "empty parts": "..",
        "not base64": "!!.??.**",
        "not ASCII": "é.é.é",
        "a header that is not JSON": f"{segment(b'no')}.{segment(GOOD)}.x",
        "a header that is a list": signed([], GOOD),
        "a header that is a list with alg": signed(["alg"], GOOD),
        "a header that is text with alg": signed("alg", GOOD),
        "a header that is null": signed(None, GOOD),
        "no algorithm": signed({}, GOOD),
        "algorithm none": f"{segment({'alg': 'none'})}.{segment(GOOD)}.",
        "algorithm NONE": f"{segment({'alg': 'NONE'})}.{segment(GOOD)}.",
        "algorithm HS512": signed({"alg": "HS512"}, GOOD),
        "algorithm RS256 with a secret": token(key=RSA, alg="RS256"),
        "algorithm a list": signed({"alg": ["HS256"]}, GOOD),
        "another secret": token(key="another secret of thirty-two bytes!!"),
        "tampered claims": re.sub(r"\..*\.", f".{segment(GOOD | {'sub': 'bob'})}.", token()),
        "no signature": ".".join(token().split(".")[:2]) + ".",
        "expired": token(ttl=-31),
        "no exp": signed(HS, {"sub": "ann"}),
        "exp as text": signed(HS, {"sub": "ann", "exp": "tomorrow"}),
        "exp true": signed(HS, {"sub": "ann", "exp": True}),
        "exp null": signed(HS, {"sub": "ann", "exp": None}),
        "not yet valid": token(nbf=int(time.time()) + 100),
        "no sub": token(None),  # type: ignore[arg-type]
        "empty sub": token(""),
        "sub a number": token(5),  # type: ignore[arg-type]
        "sub with NUL": token("a\x00b"),
        "sub with a surrogate": signed(HS, GOOD | {"sub": "\ud800"}),
        "sub too long": token("x" * 256),
        "scope a list": token(scope=["jobs:read"]),
        "scope a number": token(scope=1),
        "scope null": signed(HS, GOOD | {"scope": None}),
        "scope null beside scp": signed(HS, GOOD | {"scope": None, "scp": "jobs:read"}),
        "scp a number": token(scp=1),
        "scp an object": token(scp={"jobs:read": True}),
        "scp null": signed(HS, GOOD | {"scp": None}),
        "scp with a number": token(scp=["jobs:read", 1]),
        "scp with null": token(scp=["jobs:read", None]),
        "scp with a list": token(scp=[["jobs:read"]]),
        "claims a list": signed(HS, [1]),
        "claims not JSON": signed(HS, b"no"),
        "claims nested": signed(HS, (b"[" * 5000) + b"]" * 5000),
        "unknown crit": signed(HS | {"crit": ["x"], "x": 1}, GOOD),
        "crit of a registered name": signed(HS | {"crit": ["kid"], "kid": "x"}, GOOD),
        "crit empty": signed(HS | {"crit": []}, GOOD),
        "crit null": signed(HS | {"crit": None}, GOOD),
        "crit a number": signed(HS | {"crit": 5}, GOOD),
        "crit b64": signed(HS | {"crit": ["b64"], "b64": True}, GOOD),
        "an unencoded payload": signed(HS | {"crit": ["b64"], "b64": False}, GOOD),
        "an unencoded payload that is not critical": signed(HS | {"b64": False}, GOOD),
        "a nested token": signed(HS | {"cty": "JWT"}, GOOD),
        "a nested token inside": signed(HS | {"cty": "jwt"}, token().encode()),
        "exp NaN": signed(HS, b'{"sub": "ann", "exp": NaN}'),
        "exp too large for a float": signed(HS, b'{"sub": "ann", "exp": 1e400}'),
        "exp of too many digits": signed(HS, b'{"sub": "ann", "exp": ' + b"9" * 5000 + b"}"),
        "exp negative": signed(HS, GOOD | {"exp": -1}),
        "exp a list": signed(HS, GOOD | {"exp": [GOOD["exp"]]}),
        "exp twice, the last one past": signed(HS, b'{"sub": "ann", "exp": 9999999999, "exp": 1}'),
        "issued in the future": token(iat=int(time.time()) + 100),
        "iat as text": token(iat="now"),
        "nbf NaN": signed(HS, b'{"sub": "ann", "exp": 9999999999, "nbf": NaN}'),
        "key id a number": signed(HS | {"kid": 5}, GOOD),
        "key id null": signed(HS | {"kid": None}, GOOD),
        "an address of keys that is a number": signed(HS | {"jku": 5}, GOOD),
        "too long": token(pad="x" * 9000),
    }


@pytest.mark.parametrize("name", list(bad_tokens()))
async def test_401_for_a_bad_token(door: Any, name: str) -> None:
    bad = bad_tokens()[name]
    async with door.get(PRESETS, headers={"Authorization": f"Bearer {bad}"}) as response:
        body = orjson.loads(await response.read())
        assert response.status == 401, body
        assert response.headers["WWW-Authenticate"] == 'Bearer realm="outrider", error="invalid_token"'
        assert response.headers["Content-Type"] == "application/problem+json"
        assert bad not in str(body)


@pytest.mark.parametrize(
    "given", ["", "Bearer", "Bearer ", "Basic YTpi", "{}", "Token {}", "Bearer\t{}", "Bearer {0}, Bearer {0}"]
)
async def test_401_for_what_is_no_bearer_token(door: Any, given: str) -> None:
    async with door.get(PRESETS, headers={"Authorization": given.format(token())}) as response:
        assert response.status == 401
        assert response.headers["WWW-Authenticate"].startswith("Bearer ")


async def test_401_without_a_token_before_anything_else_is_looked_at(door: Any) -> None:
    for method, path in (
        ("GET", PRESETS),
        ("POST", "/pipeline/run"),
        ("GET", "/pipeline/job/x"),
        ("GET", "/pipeline/jobs?x=1"),
    ):
        async with door.request(method, path, data=b"not json" if method == "POST" else None) as response:
            assert response.status == 401
            assert response.headers["WWW-Authenticate"] == 'Bearer realm="outrider"'


async def test_401_for_two_tokens(door: Any) -> None:
    headers = [("Authorization", f"Bearer {token()}"), ("Authorization", f"Bearer {token('bob')}")]
    async with door.get(PRESETS, headers=headers) as response:
        assert response.status == 401


def good_tokens() -> dict[str, str]:
    return {
        "expired within the leeway": token(ttl=-20),
        "a long owner": token("x" * 255),
        "an owner in any script": token("名前 with spaces/and?signs"),
        "a key id that nobody asked for": token(header={"kid": "whatever"}),
        "a header parameter that nobody knows": signed(HS | {"zip": "DEF"}, GOOD),
        "an expiry beyond all clocks": signed(HS, GOOD | {"exp": 10**400}),
        "an expiry as large as a float can be": token(exp=1e308),
        "valid and issued within the leeway": token(nbf=int(time.time()) + 20, iat=int(time.time()) + 20),
        "an address of keys, which is not followed": token(header={"jku": "http://127.0.0.1:9/keys"}),
        "another type, and members of its own": signed(HS | {"x-unknown": 1, "typ": "at+jwt"}, GOOD),
        "more claims": token(iss="anyone", aud=["a", "b"], jti="1", iat=int(time.time())),
        "an expiry with a fraction": token(exp=time.time() + 0.5),
        "an unknown scope": token(scope="jobs:read other"),
    }


@pytest.mark.parametrize("name", list(good_tokens()))
async def test_a_good_token_is_let_in(door: Any, name: str) -> None:
    good = good_tokens()[name]
    for scheme in ("Bearer", "bearer", "BEARER  "):
        async with door.get(PRESETS, headers={"Authorization": f"{scheme} {good}"}) as response:
            assert response.status == 200, await response.text()


async def test_403_names_the_scope_that_is_missing(shared_harness: WebHarness) -> None:
    reader = await shared_harness.client("ann", scope="jobs:read")
    writer = await shared_harness.client("ann", scope="jobs:write")
    nobody = await shared_harness.client("ann", scope="")
    job_id = await submit(writer)
    for client, method, path, scope in (
        (reader, "POST", "/pipeline/run", "jobs:write"),
        (reader, "POST", "/pipeline/batch", "jobs:write"),
        (reader, "POST", f"/pipeline/job/{job_id}/cancel", "jobs:write"),
        (reader, "POST", f"/pipeline/job/{job_id}/retry", "jobs:write"),
        (writer, "GET", f"/pipeline/job/{job_id}", "jobs:read"),
        (writer, "GET", "/pipeline/jobs", "jobs:read"),
        (nobody, "GET", PRESETS, "jobs:read"),
    ):
        async with client.request(method, path) as response:
            assert response.status == 403
            assert f'scope="{scope}"' in response.headers["WWW-Authenticate"]
    async with reader.get(f"/pipeline/job/{job_id}") as response:
        assert response.status == 200
    operator = await shared_harness.client("op", scope="jobs:admin")
    async with operator.post("/pipeline/run", json=JOB) as response:
        assert response.status == 202


async def test_issuer_and_audience_are_required_where_configured(database_url: str) -> None:
    async with served(database_url, jwt_issuer="https://id.example", jwt_audience="outrider") as web_harness:
        good = {"iss": "https://id.example", "aud": ["other", "outrider"]}
        for claims, status in (
            (good, 200),
            (good | {"aud": "outrider"}, 200),
            (good | {"iss": "https://evil.example"}, 401),
            (good | {"iss": ["https://id.example"]}, 401),
            (good | {"aud": "other"}, 401),
            ({"iss": good["iss"]}, 401),
            ({"aud": "outrider"}, 401),
        ):
            client = await web_harness.client("ann", **claims)
            async with client.get(PRESETS) as response:
                assert response.status == status, claims


async def test_a_remembered_token_is_forgotten_when_it_expires(monkeypatch: pytest.MonkeyPatch) -> None:
    auth = Authenticator(Secret(SECRET), settings())
    header = [f"Bearer {token(ttl=100)}"]
    assert (await auth.caller(header)).owner == "ann"
    later = time.time() + 131
    monkeypatch.setattr(time, "time", lambda: later)
    with pytest.raises(Refused, match="expired"):
        await auth.caller(header)


async def test_a_public_key_is_no_shared_secret(database_url: str, tmp_path: Any) -> None:
    """The classic confusion: an HS256 token whose secret is the RS256 key that everyone knows."""
    document = tmp_path / "jwks.json"
    public = RSA.as_dict(private=False)
    document.write_bytes(
        orjson.dumps({"keys": [public | {"kid": "r"}, EC.as_dict(private=False) | {"kid": "e"}]})
    )
    async with served(database_url, jwks_file=document) as web_harness:
        client = await web_harness.client(None)
        for bad in (
            signed({"alg": "HS256", "kid": "r"}, GOOD, public_pem),
            signed({"alg": "HS256"}, GOOD, orjson.dumps(public)),
            signed({"alg": "RS256", "kid": "r"}, GOOD, public_pem),
            token(key=OctKey.import_key(SECRET)),
            token(key=RSA, alg="RS256", header={"kid": "e"}),
            token(key=RSA, alg="PS256", header={"kid": "r"}),
            token(key=RSAKey.generate_key(2048, private=True), alg="RS256", header={"kid": "r"}),
            token(
                key=RSAKey.generate_key(2048, private=True), alg="RS256", header={"kid": "x", "jwk": public}
            ),
            token(key=RSA, alg="RS256", header={"kid": "../../etc/passwd"}),
        ):
            async with client.get(PRESETS, headers={"Authorization": f"Bearer {bad}"}) as response:
                assert response.status == 401
        for good in (
            token(key=RSA, alg="RS256", header={"kid": "r"}),
            token(key=EC, alg="ES256", header={"kid": "e"}),
            token(key=EC, alg="ES256"),
        ):
            async with client.get(PRESETS, headers={"Authorization": f"Bearer {good}"}) as response:
                assert response.status == 200, await response.text()


@pytest.mark.parametrize(("later", "good"), [(38, True), (42, False)])
async def test_a_remembered_token_lives_no_longer_than_its_expiry_and_the_leeway(
    monkeypatch: pytest.MonkeyPatch, later: float, good: bool
) -> None:
    """It is remembered for a minute, and this one ends before."""
    auth = Authenticator(Secret(SECRET), settings())
    header = [f"Bearer {token(ttl=10)}"]
    assert (await auth.caller(header)).owner == "ann"
    now = time.time() + later
    monkeypatch.setattr(time, "time", lambda: now)
    if good:
        assert (await auth.caller(header)).owner == "ann"
    else:
        with pytest.raises(Refused, match="expired"):
            await auth.caller(header)


@pytest.mark.parametrize(("said", "status"), [(None, 200), ("RS256", 200), ("PS256", 401), ("RS512", 401)])
async def test_a_key_verifies_only_the_algorithm_that_it_names(
    database_url: str, tmp_path: Any, said: str | None, status: int
) -> None:
    document = tmp_path / "jwks.json"
    public = RSA.as_dict(private=False) | {"kid": "r"} | ({"alg": said} if said else {})
    document.write_bytes(orjson.dumps({"keys": [public]}))
    async with served(database_url, jwks_file=document) as web_harness:
        client = await web_harness.client(None)
        headers = {"Authorization": f"Bearer {token(key=RSA, alg='RS256', header={'kid': 'r'})}"}
        async with client.get(PRESETS, headers=headers) as response:
            assert response.status == status


async def test_a_remembered_caller_ends_with_its_token_and_not_with_the_memory() -> None:
    auth = Authenticator(Secret(SECRET), settings())
    header = [f"Bearer {token(ttl=3600)}"]
    first, again = await auth.caller(header), await auth.caller(header)
    assert first is again
    assert again.seconds_left > 3600
    padded = await auth.caller([header[0].replace(" ", " " * 100)])
    assert padded is first
    endless = await auth.caller([f"Bearer {signed(HS, GOOD | {'exp': 10**400})}"])
    assert endless.seconds_left > 3600
