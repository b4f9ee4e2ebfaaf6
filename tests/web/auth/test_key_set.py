"""JWKS documents: which keys of a set are used, and for which tokens."""

from __future__ import annotations

import codecs
from typing import Any

import orjson
import pytest
from joserfc.jwk import ECKey, OctKey, OKPKey, RSAKey
from structlog.testing import capture_logs

from web.auth import key_set
from web.auth.key_set import fitting, matching, usable

OLD = ECKey.generate_key("P-256", {"kid": "old"}, private=True)
RSA = RSAKey.generate_key(2048, private=True).as_dict(private=False)
EC = OLD.as_dict(private=False)


def document(*listed: Any) -> bytes:
    return orjson.dumps({"keys": listed})


def test_a_broken_key_does_not_cost_its_neighbours() -> None:
    secret, encryption = OctKey.generate_key(256).as_dict(), RSAKey.generate_key(2048).as_dict(private=False)
    found = usable(
        document(
            {"kty": "EC", "crv": "P-256", "x": "!", "y": "!"},
            {"kty": "RSA", "n": "AQAB"},
            {"kty": "OKP", "crv": "nonsense", "x": "AA"},
            {"kty": "future"},
            {},
            secret,
            encryption | {"use": "enc"},
            EC,
        )
    )
    assert [key.kid for key in found] == ["old"]


@pytest.mark.parametrize(
    "body", [b"", b"no", b"[]", b"5", b"{}", b'{"keys": 5}', b'{"keys": [5]}', b"[" * 9999]
)
def test_what_is_no_key_set_is_refused(body: bytes) -> None:
    with pytest.raises(ValueError):  # orjson's errors are ValueErrors too
        usable(body)


@pytest.mark.parametrize("mark", [b"", codecs.BOM_UTF8])
def test_a_byte_order_mark_is_skipped(mark: bytes) -> None:
    assert [key.kid for key in usable(mark + document(EC))] == ["old"]


NOT_FOR_US = {
    "for encryption": RSA | {"use": "enc"},
    "for wrapping": RSA | {"key_ops": ["wrapKey"]},
    "for signing only": EC | {"key_ops": ["sign"]},
    "for nothing": EC | {"key_ops": []},
    "of another curve": ECKey.generate_key("P-384").as_dict(private=False),
    "of a curve of bitcoin": EC | {"crv": "secp256k1"},
    "an Edwards curve": OKPKey.generate_key("Ed25519").as_dict(private=False),
    "a shared secret": OctKey.generate_key(256).as_dict(),
    "a secret that says RS256": OctKey.generate_key(256).as_dict() | {"alg": "RS256"},
    "without a type": {"n": RSA["n"], "e": RSA["e"]},
}


@pytest.mark.parametrize("name", NOT_FOR_US)
def test_keys_for_other_uses_are_ignored_without_a_warning(name: str) -> None:
    with capture_logs() as logs:
        assert [key.kid for key in usable(document(NOT_FOR_US[name], EC))] == ["old"]
    assert logs == []


def test_a_short_rsa_key_is_refused_with_a_warning() -> None:
    short = RSA | {"n": "w" + "A" * 170, "kid": "short"}
    with capture_logs() as logs:
        assert [key.kid for key in usable(document(short, EC))] == ["old"]
    [line] = logs
    assert (line["event"], line["kid"]) == ("keys.key_refused", "short")
    assert "2048" in line["error"]


def test_null_members_of_a_key_are_absent() -> None:
    listed = EC | dict.fromkeys(("use", "key_ops", "alg", "x5c", "kid"))
    assert [key.kid for key in usable(document(listed))] == [None]


def test_a_huge_set_is_cut_and_few_of_its_keys_are_tried_for_one_token() -> None:
    many = [EC | {"kid": f"k{n}"} for n in range(key_set.MAX_KEYS + 10)]
    with capture_logs() as logs:
        kept = usable(document(*many))
    assert len(kept) == key_set.MAX_KEYS
    assert [line["event"] for line in logs] == ["keys.set_cut"]
    assert len(fitting(matching(kept, None), "ES256")) == key_set.MAX_TRIED
    assert [key.kid for key in fitting(matching(kept, "k200"), "ES256")] == ["k200"]


def test_all_keys_with_the_same_id_are_tried_and_those_of_another_kind_are_not() -> None:
    twin = ECKey.generate_key("P-256").as_dict(private=False) | {"kid": "old"}
    kept = usable(document(RSA | {"kid": "old"}, EC, twin, RSA))
    assert [key.get("x") for key in fitting(matching(kept, "old"), "ES256")] == [EC["x"], twin["x"]]
    assert [key.kid for key in fitting(matching(kept, "old"), "RS256")] == ["old", None]
