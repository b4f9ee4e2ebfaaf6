"""What a token is for, and what it allows: its type and its scopes."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.web_harness import JOB, SECRET, WebHarness, settings, token
from tests.web.auth.handmade import GOOD, HS, PRESETS, signed
from web.auth.keys import Secret
from web.auth.tokens import Authenticator


@pytest.mark.parametrize(
    "typ",
    [
        *(
            "logout+jwt",
            "secevent+jwt",
            "dpop+jwt",
            "id+jwt",
            "vc+sd-jwt",
            "oauth-authz-req+jwt",
            "JOSE",
            "JWS",
        ),
        *("", " ", "JWT ", "jwt;x=1", "application/", "application/application/jwt", "text/jwt", "at+jwt2"),
        *("application/logout+jwt", "xat+jwt", "at jwt", "J\u0077T\u0130"),
        *(None, 5, True, [], ["JWT"], {"JWT": 1}),
    ],
)
async def test_a_token_for_another_use_is_refused_by_its_type(door: Any, typ: Any) -> None:
    """RFC 8725 §3.11: a logout token must not open the door, though the same issuer has signed it."""
    headers = {"Authorization": f"Bearer {signed(HS | {'typ': typ}, GOOD)}"}
    async with door.get(PRESETS, headers=headers) as response:
        assert response.status == 401
        assert 'error="invalid_token"' in response.headers["WWW-Authenticate"]
        assert "typ" in (await response.json())["detail"]


@pytest.mark.parametrize(
    "typ",
    ["JWT", "jwt", "Jwt", "at+jwt", "AT+JWT", "application/at+jwt", "Application/AT+jwt", "application/jwt"],
)
async def test_a_token_for_access_is_let_in_by_its_type(door: Any, typ: str) -> None:
    headers = {"Authorization": f"Bearer {signed(HS | {'typ': typ}, GOOD)}"}
    async with door.get(PRESETS, headers=headers) as response:
        assert response.status == 200


SCOPES: dict[str, tuple[dict[str, Any], set[str]]] = {
    "neither": ({}, {"jobs:read", "jobs:write"}),
    "scope": ({"scope": "jobs:read"}, {"jobs:read"}),
    "scope, several": ({"scope": " jobs:read  jobs:write other "}, {"jobs:read", "jobs:write", "other"}),
    "scope empty": ({"scope": ""}, set()),
    "scope in other white space": ({"scope": "x\u00a0jobs:admin\tjobs:admin\njobs:admin"}, set()),
    "scp text": ({"scp": "jobs:read"}, {"jobs:read"}),
    "scp text, several": ({"scp": "jobs:read jobs:admin"}, {"jobs:read", "jobs:admin"}),
    "scp empty": ({"scp": ""}, set()),
    "scp a list": ({"scp": ["jobs:write", "openid"]}, {"jobs:write", "openid"}),
    "scp an empty list": ({"scp": []}, set()),
    "scp a list of an empty text": ({"scp": [""]}, set()),
    "scp with others' scopes": ({"scp": "openid profile"}, {"openid", "profile"}),
    "both: scope decides": ({"scope": "jobs:read", "scp": ["jobs:admin"]}, {"jobs:read"}),
    "both: an empty scope decides": ({"scope": "", "scp": "jobs:admin"}, set()),
    "roles are no scopes": (
        {"scp": [], "roles": ["jobs:admin"], "permissions": ["jobs:admin"], "scopes": "jobs:admin"},
        set(),
    ),
    "other spellings are no scopes": ({"scp": ["JOBS:ADMIN", "jobs:*", "*"]}, {"JOBS:ADMIN", "jobs:*", "*"}),
}


@pytest.mark.parametrize("name", SCOPES)
async def test_a_token_has_the_scopes_that_it_names_and_no_others(name: str) -> None:
    claims, scopes = SCOPES[name]
    caller = await Authenticator(Secret(SECRET), settings()).caller([f"Bearer {token(**claims)}"])
    known = {"jobs:read", "jobs:write", "jobs:admin"}
    assert caller.scopes & known == scopes & known


async def test_a_token_with_scp_alone_reads_and_does_not_write(shared_harness: WebHarness) -> None:
    for scp in ("jobs:read", ["jobs:read"]):
        reader = await shared_harness.client("ann", scp=scp)
        async with reader.get(PRESETS) as response:
            assert response.status == 200
        async with reader.post("/pipeline/run", json=JOB) as response:
            assert response.status == 403
