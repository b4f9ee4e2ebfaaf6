"""Where key sets come from: files that vanish and return, and issuers that answer oddly."""

from __future__ import annotations

import asyncio
import codecs
import gzip
import os
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import orjson
import pytest
from aiohttp import web
from joserfc.jwk import ECKey
from structlog.testing import capture_logs

from engine.errors import ConfigurationError
from tests.support.web_harness import settings
from web.auth import jwks_sources, keys
from web.auth.jwks_sources import MAX_BYTES, from_file, open_url
from web.auth.keys import open_keys

OLD = ECKey.generate_key("P-256", {"kid": "old"}, private=True)
NEW = ECKey.generate_key("P-256", {"kid": "new"}, private=True)


def document(*listed: ECKey) -> bytes:
    return orjson.dumps({"keys": [key.as_dict(private=False) for key in listed]})


async def test_a_file_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keys, "UNKNOWN_SECONDS", 0.0)
    path = tmp_path / "jwks.json"
    path.write_bytes(document(OLD))
    async with open_keys(settings(jwks_file=path)) as opened:
        assert len(await opened.find("old")) == 1
        path.write_bytes(document(NEW))
        assert len(await opened.find("new")) == 1


NO_KEY_SETS: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (lambda _path: None, "No such file or directory"),
    "empty": (lambda path: path.write_bytes(b""), "zero-length"),
    "no JSON": (lambda path: path.write_bytes(b"-----BEGIN PUBLIC KEY-----"), "line 1 column"),
    "in UTF-16": (lambda path: path.write_text('{"keys": []}', "utf-16"), "line 1 column"),
    "without keys": (lambda path: path.write_bytes(b'{"keys": []}'), "not a JWKS with a usable key"),
    "too large": (lambda path: path.write_bytes(b" " * (MAX_BYTES + 1)), "larger than"),
    "a directory": (lambda path: path.mkdir(), "not a file"),
    "a pipe": (lambda path: os.mkfifo(path), "not a file"),
    "a dangling link": (lambda path: path.symlink_to("nowhere"), "No such file or directory"),
}


@pytest.mark.parametrize("name", NO_KEY_SETS)
async def test_a_file_without_a_key_set_stops_the_start_with_one_line(tmp_path: Path, name: str) -> None:
    make, cause = NO_KEY_SETS[name]
    path = tmp_path / "mount" / "jwks.json"
    path.parent.mkdir()
    make(path)
    with capture_logs() as logs, pytest.raises(ConfigurationError) as caught:
        async with open_keys(settings(jwks_file=path)):
            pass
    [line] = caught.value.problems
    assert line.startswith(f"OUTRIDER_JWKS_FILE: {path}: ")
    assert cause in line
    assert logs == []


async def test_a_file_that_vanishes_later_leaves_its_last_keys_and_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keys, "UNKNOWN_SECONDS", 0.0)
    path = tmp_path / "jwks.json"
    path.write_bytes(codecs.BOM_UTF8 + document(OLD))
    async with open_keys(settings(jwks_file=path)) as opened:
        path.unlink()
        for spoilt in (None, b"", b"{}"):
            if spoilt is not None:
                path.write_bytes(spoilt)
            with capture_logs() as logs:
                assert await opened.find("new") == []
            assert [line["event"] for line in logs] == ["keys.load_failed"]
            assert len(await opened.find("old")) == 1


async def test_a_link_that_is_swapped_is_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As Kubernetes renews a mounted secret."""
    monkeypatch.setattr(keys, "UNKNOWN_SECONDS", 0.0)
    path, data = tmp_path / "jwks.json", tmp_path / "..data"
    for name, key in (("1", OLD), ("2", NEW)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "jwks.json").write_bytes(document(key))
    data.symlink_to("1")
    path.symlink_to("..data/jwks.json")
    async with open_keys(settings(jwks_file=path)) as opened:
        assert len(await opened.find("old")) == 1
        (tmp_path / "next").symlink_to("2")
        (tmp_path / "next").rename(data)
        assert len(await opened.find("new")) == 1


async def test_a_file_is_not_read_beyond_its_bound() -> None:
    with pytest.raises(ValueError, match="not a file"):
        await from_file(Path("/dev/zero"))()


Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


@asynccontextmanager
async def issuing(answer: Answer) -> AsyncIterator[str]:
    app = web.Application()
    app.router.add_get("/jwks", answer)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/jwks"
    finally:
        await runner.cleanup()


CODINGS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": lambda raw: gzip.compress(raw),
    "x-gzip": lambda raw: gzip.compress(raw),
    "deflate": zlib.compress,
    "identity": bytes,
}


@pytest.mark.parametrize("coding", CODINGS)
async def test_a_set_is_read_in_every_usual_coding_whatever_its_type(coding: str) -> None:
    async def answer(request: web.Request) -> web.Response:
        assert request.headers["Accept-Encoding"] == "identity"
        headers = {"Content-Encoding": coding, "Content-Type": "text/html"}
        return web.Response(body=CODINGS[coding](document(OLD)), headers=headers)

    async with issuing(answer) as url, open_url(url) as fetch:
        assert await fetch() == document(OLD)


@pytest.mark.parametrize("coding", ["gzip", "deflate", "br", "gzip, gzip"])
async def test_a_bomb_or_an_unknown_coding_is_refused(coding: str) -> None:
    bomb = (zlib.compress if coding == "deflate" else gzip.compress)(bytes(200 << 20))

    async def answer(_request: web.Request) -> web.Response:
        return web.Response(body=bomb, headers={"Content-Encoding": coding})

    async with issuing(answer) as url, open_url(url) as fetch:
        with pytest.raises(ValueError, match=r"larger than|coding"):
            await fetch()


async def test_an_issuer_that_drips_is_left_after_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jwks_sources, "FETCH_SECONDS", 0.3)

    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        try:
            while True:
                await response.write(b" ")
                await asyncio.sleep(0.01)
        except ConnectionError:
            return response

    async with issuing(answer) as url, open_url(url) as fetch, asyncio.timeout(10):
        with pytest.raises(TimeoutError):
            await fetch()
