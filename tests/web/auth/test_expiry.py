"""A request that waits ends with its token, at the moment from which a new request with that token is refused."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from tests.support.web_harness import SECRET, ManualWorker, WebHarness, settings, submit, token
from tests.web.api.test_streams import events
from web.api import streams
from web.auth import tokens
from web.auth.keys import Secret
from web.auth.tokens import Authenticator, Caller
from web.problems import Refused


@pytest.fixture
def no_leeway(monkeypatch: pytest.MonkeyPatch, web_harness: WebHarness) -> None:
    """The leeway, 30 s, is only waited for in the long test."""
    monkeypatch.setattr(tokens, "LEEWAY_SECONDS", 0)
    auth = web_harness.api.auth
    assert isinstance(auth, Authenticator)
    monkeypatch.setattr(auth._claims, "leeway", 0)


async def refused(web_harness: WebHarness, headers: dict[str, str]) -> bool:
    client = await web_harness.client(None)
    async with client.get("/pipeline/presets", headers=headers) as response:
        return response.status == 401


@pytest.mark.usefixtures("no_leeway")
async def test_a_stream_ends_with_its_token_and_another_resumes_it(
    web_harness: WebHarness, ann: Any, manual_worker: ManualWorker
) -> None:
    job_id = await submit(ann)
    headers = {"Authorization": f"Bearer {token(ttl=2)}"}
    client = await web_harness.client(None)
    # Known already: the stream's end is the token's, not that of the minute for which it is remembered.
    assert not await refused(web_harness, headers)
    async with asyncio.timeout(20):
        async with client.get(f"/pipeline/job/{job_id}/events", headers=headers) as response:
            assert [seq async for _, seq, _ in events(response)] == ["0"]
        assert await refused(web_harness, headers)
        assert len(web_harness.store.watcher) == 0
        await manual_worker.finish(await manual_worker.claim())
        async with ann.get(f"/pipeline/job/{job_id}/events", headers={"Last-Event-ID": "0"}) as response:
            assert [seq async for _, seq, _ in events(response)] == ["1", "2"]


@pytest.mark.usefixtures("no_leeway")
async def test_a_stream_of_a_job_that_changes_all_the_time_ends_with_its_token(
    web_harness: WebHarness, ann: Any, manual_worker: ManualWorker
) -> None:
    job_id = await submit(ann)
    attempt = await manual_worker.claim()
    headers = {"Authorization": f"Bearer {token(ttl=2)}"}
    client = await web_harness.client(None)

    async def keep_changing() -> None:
        for n in range(1, 1_000):
            await manual_worker.progress(attempt, n, 0.5, str(n))

    async with asyncio.timeout(20):
        changing = asyncio.create_task(keep_changing())
        async with client.get(f"/pipeline/job/{job_id}/events", headers=headers) as response:
            assert [event async for event, _, _ in events(response)][:2] == ["status", "status"]
        changing.cancel()
        await asyncio.wait([changing])
        assert await refused(web_harness, headers)


async def test_a_long_trail_is_not_sent_beyond_its_tokens_end(
    ann: Any, manual_worker: ManualWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = await submit(ann)
    await manual_worker.finish(await manual_worker.claim())
    monkeypatch.setattr(streams, "PAGE", 1)
    left = iter((1.0, 1.0))
    monkeypatch.setattr(Caller, "seconds_left", property(lambda _caller: next(left, 0.0)))
    async with asyncio.timeout(20), ann.get(f"/pipeline/job/{job_id}/events") as response:
        assert [seq async for _, seq, _ in events(response)] == ["0", "1"]


@pytest.mark.usefixtures("no_leeway")
async def test_a_long_poll_answers_with_the_state_at_its_tokens_end(
    web_harness: WebHarness, ann: Any
) -> None:
    job_id = await submit(ann)
    headers = {"Authorization": f"Bearer {token(ttl=2)}", "Prefer": "wait=30"}
    client = await web_harness.client(None)
    async with asyncio.timeout(20), client.get(f"/pipeline/job/{job_id}", headers=headers) as response:
        assert (response.status, response.headers["Preference-Applied"]) == (200, "wait=30")
        assert (await response.json())["status"] == "pending"
    assert await refused(web_harness, headers)


@pytest.mark.long
async def test_a_stream_lives_until_the_leeway_is_over(web_harness: WebHarness, ann: Any) -> None:
    job_id = await submit(ann)
    expiry = int(time.time()) - 27
    headers = {"Authorization": f"Bearer {token(exp=expiry)}"}
    client = await web_harness.client(None)
    async with (
        asyncio.timeout(20),
        client.get(f"/pipeline/job/{job_id}/events", headers=headers) as response,
    ):
        assert [seq async for _, seq, _ in events(response)] == ["0"]
    assert time.time() >= expiry + 30


@pytest.mark.parametrize("exp", [0.0, 0.25, 0.5, 0.999])
async def test_a_callers_end_is_the_moment_from_which_its_token_is_refused(
    monkeypatch: pytest.MonkeyPatch, exp: float
) -> None:
    expires = int(time.time()) + 100 + exp
    header = [f"Bearer {token(exp=expires)}"]
    end = (await Authenticator(Secret(SECRET), settings()).caller(header)).expires_at
    assert expires + 30 <= end < expires + 31
    monkeypatch.setattr(time, "time", lambda: end - 0.001)
    await Authenticator(Secret(SECRET), settings()).caller(header)
    monkeypatch.setattr(time, "time", lambda: end)
    with pytest.raises(Refused, match="expired"):
        await Authenticator(Secret(SECRET), settings()).caller(header)
