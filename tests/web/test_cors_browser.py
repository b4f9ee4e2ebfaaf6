"""A real browser, and a page of another origin that submits a job, reads its headers and streams its events."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from tests.support.web_harness import JOB, ManualWorker, WebHarness, served, token

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
OPTIONS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update"),
)
SCRIPT = """<!doctype html><script>
async function used() {
  const api = "%(api)s", auth = {Authorization: "Bearer %(token)s"};
  const found = {};
  const posted = await fetch(api + "/pipeline/run", {
    method: "POST", body: '%(job)s',
    headers: {...auth, "Content-Type": "application/json", "Idempotency-Key": "page", "X-Request-Id": "from-a-page"},
  });
  found.posted = [posted.status, posted.headers.get("Location"), posted.headers.get("X-Request-Id")];
  const path = posted.headers.get("Location");
  await fetch("/submitted", {method: "POST"});
  const stream = await fetch(api + path + "/events", {headers: {...auth, "Last-Event-ID": "0"}});
  found.stream = await stream.text();
  const read = await fetch(api + path, {headers: {...auth, Prefer: "wait=1"}});
  found.read = [read.status, read.headers.get("ETag"), read.headers.get("Preference-Applied")];
  const same = await fetch(api + path, {
    headers: {...auth, "If-None-Match": read.headers.get("ETag")}, cache: "no-store",
  });
  found.same = same.status;
  const refused = await fetch(api + "/pipeline/jobs");
  found.refused = [refused.status, (await refused.json()).title, refused.headers.get("WWW-Authenticate")];
  return found;
}
used().catch((error) => ({error: String(error)})).then((found) =>
  fetch("/found", {method: "POST", body: JSON.stringify(found)}));
</script>"""


class Page:
    """The site of a page: serves it, and takes what it has found."""

    def __init__(self) -> None:
        self.html = ""
        self.submitted = asyncio.Event()
        self.found: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[str]:
        app = web.Application()
        app.router.add_get("/", self._page)
        app.router.add_post("/submitted", self._submitted)
        app.router.add_post("/found", self._found)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        try:
            yield f"http://127.0.0.1:{runner.addresses[0][1]}"
        finally:
            await runner.cleanup()

    async def _page(self, _request: web.Request) -> web.Response:
        return web.Response(text=self.html, content_type="text/html")

    async def _submitted(self, _request: web.Request) -> web.Response:
        self.submitted.set()
        return web.Response()

    async def _found(self, request: web.Request) -> web.Response:
        self.found.set_result(await request.json())
        return web.Response()


@asynccontextmanager
async def browser(url: str, profile: Path) -> AsyncIterator[None]:
    assert BROWSER is not None
    process = await asyncio.create_subprocess_exec(
        *(BROWSER, *OPTIONS, f"--user-data-dir={profile}", url),
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        yield
    finally:
        process.terminate()
        await process.wait()


def script(web_harness: WebHarness) -> str:
    return SCRIPT % {"api": web_harness.url, "token": token(), "job": json.dumps(JOB)}


@pytest.mark.long
@pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed")
async def test_a_page_of_an_allowed_origin_uses_the_api(
    database_url: str, manual_worker: ManualWorker, tmp_path: Path
) -> None:
    site = Page()
    async with (
        asyncio.timeout(120),
        site.serving() as origin,
        served(database_url, cors_origins=origin) as web_harness,
    ):
        site.html = script(web_harness)
        async with browser(origin, tmp_path):
            await site.submitted.wait()
            await manual_worker.finish(await manual_worker.claim(), output={})
            found = await site.found
    assert "error" not in found, found
    status, location, request_id = found["posted"]
    assert (status, location[:14], request_id) == (202, "/pipeline/job/", "from-a-page")
    assert "event: status" in found["stream"]
    assert '"to_status":"completed"' in found["stream"]
    assert found["read"] == [200, '"2.0"', "wait=1"]
    assert found["same"] == 304
    assert found["refused"] == [401, "Unauthorized", 'Bearer realm="outrider"']


@pytest.mark.long
@pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed")
@pytest.mark.parametrize("origins", ["", "https://app.example"])
async def test_a_page_of_another_origin_is_kept_out_by_the_browser(
    database_url: str, tmp_path: Path, origins: str
) -> None:
    site = Page()
    async with (
        asyncio.timeout(120),
        site.serving() as origin,
        served(database_url, cors_origins=origins) as web_harness,
    ):
        site.html = script(web_harness)
        async with browser(origin, tmp_path):
            assert "Failed to fetch" in (await site.found)["error"]
