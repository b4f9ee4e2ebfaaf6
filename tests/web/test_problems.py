"""The members of a problem that quote the request."""

from __future__ import annotations

import asyncio
from urllib.parse import urljoin, urlsplit

import orjson
import pytest
from yarl import URL

from tests.support.web_harness import WebHarness
from web import problems


@pytest.mark.parametrize(
    ("target", "instance"),
    [
        ("/nowhere", "/nowhere"),
        ("//x", "/.//x"),
        ("///x", "/.///x"),
        ("//x@y:80/a", "/.//x@y:80/a"),
        ("/%2Fx", "/%2Fx"),
        ("/a b", "/a%20b"),
        ("/%", "/%25"),
        ("/%zz%41", "/%25zz%41"),
        ('/a|b^c`{d}<">\\[e]', "/a%7Cb%5Ec%60%7Bd%7D%3C%22%3E%5C%5Be%5D"),
        ("/x?a=b&c=//d", "/x"),
        ("/x#y", "/x"),
        ("/\u00e9", "/%C3%A9"),
        ("/\udcff", "/%FF"),
        ("/a:b", "/a:b"),
        ("http://else.where//x", "/.//x"),
        ("*", "*"),
    ],
)
def test_an_instance_is_a_uri_reference_of_the_path_that_was_asked(target: str, instance: str) -> None:
    url = URL(target, encoded=True) if "://" in target or target == "*" else None
    raw = url.raw_path if url else target.partition("?")[0].partition("#")[0]
    found = problems.reference(raw)
    assert found == instance
    assert found.isascii()
    base = urlsplit(urljoin("http://host/", found))
    assert (base.scheme, base.netloc) == ("http", "host")


@pytest.mark.parametrize("target", [b"//evil.example/x", b"/\xff\xfe", b"/a|b", b"/%"])
async def test_a_problem_s_instance_names_no_host_and_is_ascii(
    shared_harness: WebHarness, target: bytes
) -> None:
    async with asyncio.timeout(10):
        reader, writer = await asyncio.open_connection("127.0.0.1", shared_harness.port)
        writer.write(b"GET " + target + b" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        body = orjson.loads((await reader.read()).partition(b"\r\n\r\n")[2])
        writer.close()
    assert body["instance"].isascii()
    assert urlsplit(urljoin("http://host/", body["instance"])).netloc == "host"
